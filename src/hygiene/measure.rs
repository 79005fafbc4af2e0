//! The measures by name, and a way for tests and benches to leave one out.
//!
//! A search that finds nothing proves something only if it finds what is there. In debug builds, and
//! in builds with the feature `skip-measures` (benches, which compare costs), the environment
//! variable `NULLHOP_SKIP_MEASURES` names measures to leave out, separated by commas. No other build
//! reads it: [`taken`] is a constant there.

#[cfg(any(debug_assertions, feature = "skip-measures"))]
use std::sync::atomic::AtomicU32;
#[cfg(any(debug_assertions, feature = "skip-measures"))]
use std::sync::atomic::Ordering::Relaxed;

/// What keeps memory free of content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Every block is cleared before it goes back to the system's allocator.
    FreedBlocks,
    /// A relayed piece of a body is cleared when it was handed over.
    Chunks,
    /// The free end of a connection's read buffer is cleared before the connection waits.
    SpareRoom,
    /// What h2 has written is cleared where it stood.
    WrittenFrames,
    /// The stack and the vector registers are cleared after each TLS call and when a worker parks.
    Stack,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::FreedBlocks, Self::Chunks, Self::SpareRoom, Self::WrittenFrames, Self::Stack];

    /// Its name, in reports and in `NULLHOP_SKIP_MEASURES`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FreedBlocks => "freed_blocks",
            Self::Chunks => "chunks",
            Self::SpareRoom => "spare_room",
            Self::WrittenFrames => "written_frames",
            Self::Stack => "stack",
        }
    }
}

#[cfg(any(debug_assertions, feature = "skip-measures"))]
static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Whether `measure` is in force. Always, but in the builds that the module's text names.
#[inline(always)]
pub(super) fn taken(measure: Measure) -> bool {
    #[cfg(any(debug_assertions, feature = "skip-measures"))]
    return SKIPPED.load(Relaxed) & (1 << measure as u32) == 0;
    #[cfg(not(any(debug_assertions, feature = "skip-measures")))]
    {
        let _ = measure;
        true
    }
}

/// The measures that are left out: none, but in the builds that the module's text names.
pub fn skipped() -> impl Iterator<Item = Measure> {
    Measure::ALL.into_iter().filter(|measure| !taken(*measure))
}

/// Reads `NULLHOP_SKIP_MEASURES`, in the builds that do.
pub(crate) fn read_environment() {
    #[cfg(any(debug_assertions, feature = "skip-measures"))]
    {
        let Some(names) = std::env::var_os("NULLHOP_SKIP_MEASURES") else { return };
        let wanted = names.to_string_lossy().into_owned();
        let bits = Measure::ALL
            .into_iter()
            .filter(|measure| wanted.split(',').any(|name| name == measure.name()))
            .fold(0, |bits, measure| bits | 1 << measure as u32);
        SKIPPED.store(bits, Relaxed);
    }
}
