//! A secret text in pages of its own: locked, left out of dumps, empty in a forked child, wiped at the end.

#![expect(unsafe_code, reason = "maps, advises and unmaps memory")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use zeroize::Zeroizing;

use super::wipe::wipe;
use super::wipe::wipe_raw;

/// A secret text: no `Clone`, no `Debug`, no `Display`. It stands once, in an anonymous mapping that
/// holds nothing else.
///
/// ```
/// # use nullhop::hygiene::Secret;
/// assert_eq!(Secret::new(b"key".to_vec()).expose(), b"key");
/// ```
///
/// None of these compiles:
///
/// ```compile_fail,E0277
/// # use nullhop::hygiene::Secret;
/// println!("{:?}", Secret::new(b"key".to_vec()));
/// ```
/// ```compile_fail,E0277
/// # use nullhop::hygiene::Secret;
/// println!("{}", Secret::new(b"key".to_vec()));
/// ```
/// ```compile_fail,E0599
/// # use nullhop::hygiene::Secret;
/// let twice = Secret::new(b"key".to_vec()).clone();
/// ```
pub struct Secret {
    /// The mapping's first byte; `len` bytes of it are the secret.
    start: NonNull<u8>,
    len: usize,
    /// Whole pages, at least one.
    mapped: usize,
    locked: bool,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Secret {}
// SAFETY: nothing writes to it between `new` and `drop`, which have it for themselves.
unsafe impl Sync for Secret {}

/// Turns false with the first secret that could not be locked, and stays so.
static ALL_LOCKED: AtomicBool = AtomicBool::new(true);

impl Secret {
    /// Moves `bytes` into pages of their own; where they stood is wiped.
    ///
    /// # Panics
    /// Ends the process if the kernel has no page left, as the allocator would.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut bytes = Zeroizing::new(bytes);
        let page = rustix::param::page_size();
        let mapped = bytes.len().max(1).next_multiple_of(page);
        // SAFETY: a new private mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let Some(start) = start.ok().and_then(NonNull::new) else {
            let layout = std::alloc::Layout::array::<u8>(bytes.len()).expect("a vector has had this size");
            std::alloc::handle_alloc_error(layout)
        };
        let place: *mut c_void = start.as_ptr();
        // SAFETY: the range is the mapping made above, which nobody else knows; locking does not change its bytes, and
        // the advice is about cores and forks only (madvise(2)).
        let locked = unsafe {
            for advice in [Advice::LinuxDontDump, Advice::LinuxWipeOnFork] {
                let _ = rustix::mm::madvise(place, mapped, advice);
            }
            rustix::mm::mlock(place, mapped).is_ok()
        };
        if !locked {
            ALL_LOCKED.store(false, Relaxed);
        }
        let start = start.cast::<u8>();
        // SAFETY: the mapping is writable, `mapped` is at least `bytes.len()`, and the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr(), bytes.len()) };
        wipe(&mut bytes);
        Self { start, len: bytes.len(), mapped, locked }
    }

    /// The only door to the bytes.
    pub fn expose(&self) -> &[u8] {
        // SAFETY: `len` bytes at `start` were written by `new` and stay mapped and unchanged until `drop`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Whether its pages can not go to swap.
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// Whether this holds for all secrets that there have been.
    pub(crate) fn all_locked() -> bool {
        ALL_LOCKED.load(Relaxed)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, `mapped` bytes long, and nobody borrows from it any more. Unmapping
        // ends its lock, too.
        unsafe {
            wipe_raw(self.start.as_ptr(), self.mapped);
            let _ = rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's words on the mapping that `address` is in: its flags (proc_pid_smaps(5)).
    fn flags_of(address: usize) -> Vec<String> {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("own mappings");
        let mut inside = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((start, end)) = range {
                let parse = |text| usize::from_str_radix(text, 16).ok();
                if let (Some(start), Some(end)) = (parse(start), parse(end)) {
                    inside = (start..end).contains(&address);
                }
            }
            if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        Vec::new()
    }

    #[test]
    fn stands_in_pages_of_its_own() {
        for len in [0, 1, 4096, 10_000] {
            let text: Vec<u8> = (0..len).map(|place| b'a' + (place % 23) as u8).collect();
            let secret = Secret::new(text.clone());
            assert!(secret.expose() == text);
            let flags = flags_of(secret.expose().as_ptr() as usize);
            let has = |flag: &str| flags.iter().any(|found| found == flag);
            // Not in dumps, wiped in a child; locked where the limit allows a few pages.
            assert!(has("dd") && has("wf"), "{flags:?}");
            assert_eq!(has("lo"), secret.is_locked(), "{flags:?}");
            assert!(secret.is_locked(), "not even {len} bytes can be locked here");
        }
        assert!(Secret::all_locked());
    }
}
