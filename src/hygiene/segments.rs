//! Pieces of address space with memory behind them that others cannot read or that is not swapped:
//! what [`super::heap`] cuts its blocks from.
//!
//! A segment of secret memory is a `memfd_secret(2)` file of its own, mapped once, its descriptor
//! closed at once. Its pages leave the kernel's own map of memory: neither `/proc/PID/mem` nor
//! `process_vm_readv` nor a core file reaches them, not even as root. Such a file cannot shrink and
//! has no holes, so its memory goes back only as a whole, when it is unmapped. That is why segments
//! are small and many.
//!
//! Faulting in a page of secret memory costs several times an ordinary fault, because the kernel
//! changes its own page tables for each. A segment that is free again is therefore kept for some
//! seconds, for whoever needs one next.

#![expect(unsafe_code, reason = "maps and unmaps memory, and keeps a list in memory that is free")]

use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;

use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::MlockFlags;
use rustix::mm::ProtFlags;

/// Segments begin at multiples of this from their room's start. Also the size of the first ones,
/// picked so that an idle worker holds little.
const SLOT: usize = 256 << 10;

/// From this many bytes in segments on, new ones have [`SLOTS_LATER`] slots: at 1 MiB each, 60 GiB
/// stay below the 65,530 mappings that `vm.max_map_count` allows by default.
const SMALL_UNTIL: usize = 16 << 20;
const SLOTS_LATER: usize = 4;

/// Address space of one heap: more than what a worker with 20,000 streams at 256 KiB needs.
pub(super) const ROOM_BYTES: usize = 8 << 30;
const SLOTS: usize = ROOM_BYTES / SLOT;

/// How long a free segment is kept, in calls of [`Segments::tick`]. Long enough for a proxy between
/// two bursts, short enough to see memory go back.
const KEPT_TICKS: u32 = 10;

/// What stands behind an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// `memfd_secret(2)`.
    Secret,
    /// Anonymous, `mlock2(2)`, left out of core files.
    Locked,
}

/// One heap's room of addresses and the segments in it.
pub(super) struct Segments {
    /// First address; 0 until [`Segments::open`].
    base: Cell<usize>,
    backing: Cell<Backing>,
    /// A bit for each slot that is mapped.
    taken: [Cell<u64>; SLOTS / 64],
    /// Mapped, in use or kept.
    bytes: Cell<usize>,
    /// Free segments that are still mapped, the last one freed first.
    kept: Cell<*mut Kept>,
    ticks: Cell<u32>,
    /// The system refused a segment since the last tick: it is not asked again until the next.
    refused: Cell<bool>,
}

/// Stands at the start of a kept segment.
struct Kept {
    next: *mut Kept,
    size: usize,
    /// When it was freed.
    tick: u32,
}

/// Segments that are to be unmapped; see [`Segments::tick`].
pub(super) struct Old(*mut Kept);

// SAFETY: the pointers lead into segments that this list alone owns; no thread owns a mapping.
unsafe impl Send for Segments {}
// SAFETY: as above.
unsafe impl Send for Old {}

impl Segments {
    pub(super) const fn new() -> Self {
        Self {
            base: Cell::new(0),
            backing: Cell::new(Backing::Secret),
            taken: [const { Cell::new(0) }; SLOTS / 64],
            bytes: Cell::new(0),
            kept: Cell::new(null_mut()),
            ticks: Cell::new(0),
            refused: Cell::new(false),
        }
    }

    /// Gives it the [`ROOM_BYTES`] from `base` on, which nothing else may ever use.
    pub(super) fn open(&self, base: usize, backing: Backing) {
        self.base.set(base);
        self.backing.set(backing);
    }

    /// Bytes of segments that are mapped, in use or kept.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Called about once a second: hands out up to `bytes_max` of what has been kept long enough, to
    /// be unmapped with [`Old::unmap`], and asks the system again if it refused.
    pub(super) fn tick(&self, bytes_max: usize) -> Old {
        let now = self.ticks.get().wrapping_add(1);
        self.ticks.set(now);
        self.refused.set(false);
        let (mut fresh, mut old, mut bytes) = (null_mut::<Kept>(), null_mut::<Kept>(), 0);
        let mut at = self.kept.get();
        let mut fresh_last: *mut Kept = null_mut();
        while !at.is_null() {
            // SAFETY: what is on the list is mapped and nobody else's.
            unsafe {
                let next = (*at).next;
                if now.wrapping_sub((*at).tick) >= KEPT_TICKS && bytes < bytes_max {
                    bytes += (*at).size;
                    (*at).next = old;
                    old = at;
                } else {
                    (*at).next = null_mut();
                    match fresh_last.is_null() {
                        true => fresh = at,
                        false => (*fresh_last).next = at,
                    }
                    fresh_last = at;
                }
                at = next;
            }
        }
        self.kept.set(fresh);
        Old(old)
    }

    /// Their slots may be mapped again. To be called after [`Old::unmap`], with what it returned.
    pub(super) fn forget(&self, mut unmapped: Unmapped) {
        while let Some((start, size)) = unmapped.pop() {
            self.mark((start - self.base.get()) / SLOT, slots_of(size), false);
            self.bytes.set(self.bytes.get() - size);
        }
    }

    /// A kept segment of at least `size` bytes, but not much more.
    fn reuse(&self, size: usize) -> Option<(*mut u8, usize)> {
        let roomy = size.max(SLOTS_LATER * SLOT) * 2;
        let mut before: *mut Kept = null_mut();
        let mut at = self.kept.get();
        while !at.is_null() {
            // SAFETY: as in `tick`.
            unsafe {
                let next = (*at).next;
                if (*at).size >= size && (*at).size <= roomy {
                    match before.is_null() {
                        true => self.kept.set(next),
                        false => (*before).next = next,
                    }
                    return Some((at.cast(), (*at).size));
                }
                before = at;
                at = next;
            }
        }
        None
    }

    /// A new segment of at least `size` bytes.
    fn map(&self, size: usize) -> Option<(*mut u8, usize)> {
        if self.refused.get() || self.base.get() == 0 {
            return None;
        }
        // The last page of each stays unmapped: an overrun faults, and neighbours cannot be taken
        // for one segment, which could then only be given back together.
        let page = rustix::param::page_size();
        let least = if self.bytes.get() < SMALL_UNTIL { 1 } else { SLOTS_LATER };
        let slots = size.checked_add(page)?.div_ceil(SLOT).max(least);
        let first = self.find(slots)?;
        let (start, size) = (self.base.get() + first * SLOT, slots * SLOT - page);
        match map_at(start, size, self.backing.get()) {
            Ok(segment) => {
                self.mark(first, slots, true);
                self.bytes.set(self.bytes.get() + size);
                Some((segment, size))
            }
            Err(_) => {
                self.refused.set(true);
                None
            }
        }
    }

    /// The first of `count` free slots that follow each other.
    fn find(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        let mut slot = 0;
        while slot < SLOTS {
            let word = self.taken[slot / 64].get();
            if slot % 64 == 0 && word == u64::MAX {
                run = 0;
                slot += 64;
                continue;
            }
            run = if word >> (slot % 64) & 1 == 0 { run + 1 } else { 0 };
            slot += 1;
            if run == count {
                return Some(slot - count);
            }
        }
        None
    }

    fn mark(&self, first: usize, count: usize, taken: bool) {
        for slot in first..first + count {
            let word = &self.taken[slot / 64];
            let bit = 1 << (slot % 64);
            word.set(if taken { word.get() | bit } else { word.get() & !bit });
        }
    }
}

fn slots_of(size: usize) -> usize {
    (size + rustix::param::page_size()).div_ceil(SLOT)
}

/// The starts and sizes of what [`Old::unmap`] has unmapped: few at a time, because nothing can be
/// allocated here.
pub(super) struct Unmapped {
    entries: [(usize, usize); Self::MAX],
    len: usize,
}

impl Unmapped {
    const MAX: usize = 64;

    fn pop(&mut self) -> Option<(usize, usize)> {
        self.len = self.len.checked_sub(1)?;
        Some(self.entries[self.len])
    }
}

impl Old {
    /// Unmaps some of them; `None` when none is left. Takes a microsecond or two a page, so nobody
    /// should hold a lock meanwhile.
    pub(super) fn unmap(&mut self) -> Option<Unmapped> {
        let mut done = Unmapped { entries: [(0, 0); Unmapped::MAX], len: 0 };
        while !self.0.is_null() && done.len < Unmapped::MAX {
            let segment = self.0;
            // SAFETY: the list owns its segments; what is in one is read before it is unmapped, and
            // nobody looks at it again.
            unsafe {
                let size = (*segment).size;
                self.0 = (*segment).next;
                if rustix::mm::munmap(segment.cast(), size).is_ok() {
                    done.entries[done.len] = (segment.expose_provenance(), size);
                    done.len += 1;
                }
            }
        }
        (done.len > 0).then_some(done)
    }
}

// SAFETY: `alloc` returns memory that is mapped for reading and writing, aligned to a page, and
// handed to nobody else until `free` gets it back. Everything runs under the heap's lock.
unsafe impl dlmalloc::Allocator for Segments {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let (start, size) = self.reuse(size).or_else(|| self.map(size)).unwrap_or((null_mut(), 0));
        (start, size, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        let kept: *mut Kept = start.cast();
        // SAFETY: the segment is the allocator's to give, and begins at a page's start.
        unsafe { kept.write(Kept { next: self.kept.get(), size, tick: self.ticks.get() }) }
        self.kept.set(kept);
        true
    }

    fn can_release_part(&self, _: u32) -> bool {
        // Whole segments; `free_part` refuses parts.
        true
    }

    fn allocates_zeros(&self) -> bool {
        // Kept segments are not zero.
        false
    }

    fn page_size(&self) -> usize {
        rustix::param::page_size()
    }
}

/// Maps `size` bytes at exactly `start`.
fn map_at(start: usize, size: usize, backing: Backing) -> Result<*mut u8, Errno> {
    let at: *mut c_void = std::ptr::with_exposed_provenance_mut(start);
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: `FIXED_NOREPLACE` fails where anything is mapped already, so no memory that somebody
    // uses changes. The same holds for what is undone below: it was mapped here a line before.
    unsafe {
        match backing {
            Backing::Secret => {
                let file = memfd_secret()?;
                rustix::fs::ftruncate(&file, size as u64)?;
                // The kernel locks it and leaves it out of core files by itself (mm/secretmem.c).
                let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
                rustix::mm::mmap(at, size, rights, flags, &file, 0).map(<*mut c_void>::cast)
            }
            Backing::Locked => {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
                let segment = rustix::mm::mmap_anonymous(at, size, rights, flags)?;
                // On fault: an idle process then holds what it has touched and not more.
                let locked = rustix::mm::mlock_with(segment, size, MlockFlags::ONFAULT)
                    .and_then(|()| rustix::mm::madvise(segment, size, Advice::LinuxDontDump));
                if let Err(error) = locked {
                    let _ = rustix::mm::munmap(segment, size);
                    return Err(error);
                }
                Ok(segment.cast())
            }
        }
    }
}

/// `memfd_secret(2)`, since Linux 5.14 (x86-64, arm64, RISC-V); behind `secretmem.enable` on the
/// kernel's command line before 6.5. Needs neither a right nor memory by itself; mapping it counts
/// against `RLIMIT_MEMLOCK` for who has no `CAP_IPC_LOCK`.
fn memfd_secret() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags and no pointer.
    let file = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    match i32::try_from(file) {
        // SAFETY: the descriptor was made in this call and nobody else has it.
        Ok(file) if file >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(file) }),
        _ => Err(std::io::Error::last_os_error().raw_os_error().map_or(Errno::NOSYS, Errno::from_raw_os_error)),
    }
}

/// Looks for `size` bytes of address space that nothing uses and that the kernel does not hand out:
/// it begins at the top of the address space (or, with an unlimited stack, at a third of it), and
/// programs stand above its middle. Nothing is left mapped there, because a reservation would count
/// as locked memory under `mlockall`.
pub(super) fn find_window(size: usize) -> Option<usize> {
    const LOW: usize = 0x1000_0000_0000;
    const STEPS: usize = 0x1000_0000_0000 >> STEP_BITS;
    const STEP_BITS: u32 = 21;
    for _ in 0..16 {
        let mut random = [0_u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok()?;
        let start = LOW + ((usize::from_le_bytes(random) % STEPS) << STEP_BITS);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: as in `map_at`; the mapping cannot be accessed and goes at once.
        let free = unsafe {
            let at = std::ptr::with_exposed_provenance_mut(start);
            rustix::mm::mmap_anonymous(at, size, ProtFlags::empty(), flags).and_then(|at| rustix::mm::munmap(at, size))
        };
        if free.is_ok() {
            return Some(start);
        }
    }
    None
}

/// Whether the system gives `size` bytes of this kind, at `start`; they go back at once, untouched.
pub(super) fn probe(start: usize, size: usize, backing: Backing) -> Result<(), Errno> {
    let segment = map_at(start, size, backing)?;
    // SAFETY: mapped a line before, and nobody else knows it.
    unsafe { rustix::mm::munmap(segment.cast(), size) }
}
