//! Overwriting memory so that the optimiser keeps the stores.

#![expect(unsafe_code, reason = "writes through raw pointers and an assembly barrier")]

/// Overwrites `len` bytes at `start` with zeros.
///
/// `memset` speed; the empty assembly block that follows may, as far as the compiler knows, read the
/// memory, so the stores cannot be removed even when the block is freed next. (`zeroize` writes byte
/// by byte, which costs too much at gigabytes a second.)
///
/// # Safety
/// `start` must be valid for writes of `len` bytes, and no reference to them may be live.
#[inline]
pub(super) unsafe fn wipe_raw(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the assembly block has no instruction.
    unsafe {
        std::ptr::write_bytes(start, 0, len);
        std::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags));
    }
}

/// Overwrites `bytes` with zeros; the stores are kept even if nobody reads the slice again.
#[inline]
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: an exclusive slice is valid for writes of its own length.
    unsafe { wipe_raw(bytes.as_mut_ptr(), bytes.len()) }
}
