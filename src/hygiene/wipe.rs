//! Overwriting memory so that the optimiser keeps the stores.

#![expect(unsafe_code, reason = "writes through raw pointers and an assembly barrier")]

/// Up to this many bytes are cleared without a call.
const SHORT: usize = 128;

/// Overwrites `len` bytes at `start` with zeros.
///
/// `memset` speed, and faster where it is short; the empty assembly block that follows may, as far as the compiler knows, read the
/// memory, so the stores cannot be removed even when the block is freed next. (`zeroize` writes byte
/// by byte, which costs too much at gigabytes a second.)
///
/// # Safety
/// `start` must be valid for writes of `len` bytes, and no reference to them may be live.
#[inline]
pub(super) unsafe fn wipe_raw(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the assembly block has no instruction.
    unsafe {
        if len <= SHORT {
            clear_short(start, len);
        } else {
            std::ptr::write_bytes(start, 0, len);
        }
        std::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags));
    }
}

/// A few stores from both ends, which meet or overlap in the middle.
///
/// # Safety
/// As for [`wipe_raw`]; `len` is [`SHORT`] at most.
#[inline]
unsafe fn clear_short(start: *mut u8, len: usize) {
    // SAFETY: in each branch, every store lies within the first `len` bytes.
    unsafe {
        let end = start.add(len);
        let wide = |place: *mut u8| place.cast::<[u64; 2]>().write_unaligned([0; 2]);
        if len >= 16 {
            wide(start);
            wide(end.sub(16));
            if len > 32 {
                wide(start.add(16));
                wide(end.sub(32));
            }
            if len > 64 {
                wide(start.add(32));
                wide(start.add(48));
                wide(end.sub(48));
                wide(end.sub(64));
            }
        } else if len >= 8 {
            start.cast::<u64>().write_unaligned(0);
            end.sub(8).cast::<u64>().write_unaligned(0);
        } else if len >= 4 {
            start.cast::<u32>().write_unaligned(0);
            end.sub(4).cast::<u32>().write_unaligned(0);
        } else if len > 0 {
            start.write(0);
            start.add(len / 2).write(0);
            end.sub(1).write(0);
        }
    }
}

/// Overwrites `bytes` with zeros; the stores are kept even if nobody reads the slice again.
#[inline]
pub fn wipe(bytes: &mut [u8]) {
    // SAFETY: an exclusive slice is valid for writes of its own length.
    unsafe { wipe_raw(bytes.as_mut_ptr(), bytes.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_cleared_is_and_nothing_else() {
        for len in 0..=SHORT + 70 {
            for offset in 0..17 {
                let mut bytes = vec![0xa5_u8; offset + len + 33];
                wipe(&mut bytes[offset..offset + len]);
                for (place, byte) in bytes.iter().enumerate() {
                    let within = (offset..offset + len).contains(&place);
                    assert_eq!(*byte, if within { 0 } else { 0xa5 }, "{len} bytes at {offset}: byte {place}");
                }
            }
        }
    }
}
