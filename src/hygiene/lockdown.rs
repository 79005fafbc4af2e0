//! Stage two: what the process gives up once its configuration is read and its sockets are bound.
//!
//! The order matters. Memory is locked while the capability to do so is there; capabilities go
//! before the filters, which forbid changing them; Landlock and capabilities hold for one thread and
//! those that it starts, so all of this comes before there are others; seccomp is the last, because
//! it forbids the rest.

use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use super::Secret;
use super::capabilities;
use super::landlock;
use super::memory;
use super::memory::MemoryLock;
use super::seccomp::Filters;

/// What the process still needs.
pub(crate) struct Needs<'n> {
    pub(crate) memory: MemoryLock,
    /// Folders and files that a reload reads, besides the system's own.
    pub(crate) readable: &'n [PathBuf],
    /// Folders in which files are written; none by default.
    pub(crate) writable: &'n [PathBuf],
}

/// What holds after [`lock_down`].
#[derive(Clone, Copy)]
pub(crate) struct LockedDown {
    pub(crate) capabilities_dropped: bool,
    pub(crate) landlock: bool,
    pub(crate) memory_locked: bool,
    pub(crate) seccomp: bool,
}

/// Memory must be locked and cannot be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotLocked {
    /// Bytes that may be locked; `None`: the limit is not what is in the way.
    pub(crate) limit: Option<u64>,
}

/// Closes what serving does not need, for this thread and those that it will start. Each step that the system refuses
/// is reported, not fatal.
///
/// # Errors
/// Memory is not locked although [`MemoryLock::Required`]; nothing else has been done then.
pub(crate) fn lock_down(needs: &Needs<'_>) -> Result<LockedDown, NotLocked> {
    // The first random bytes open files.
    let _ = aws_lc_rs::rand::fill(&mut [0; 1]);
    let memory_locked = needs.memory != MemoryLock::Off && memory::lock_all();
    if needs.memory == MemoryLock::Required && !memory_locked {
        return Err(NotLocked { limit: memory::limit() });
    }
    let keep = match memory_locked && memory::held_by_capability() {
        true => CapabilitySet::IPC_LOCK,
        false => CapabilitySet::empty(),
    };
    Ok(LockedDown {
        memory_locked,
        capabilities_dropped: capabilities::drop_all_but(keep),
        landlock: landlock::confine(needs.readable, needs.writable),
        seccomp: Filters::new(!needs.writable.is_empty()).is_some_and(|filters| filters.apply()),
    })
}

/// Whether every [`Secret`] stands in memory that does not go to swap.
pub(crate) fn secrets_locked() -> bool {
    Secret::all_locked()
}
