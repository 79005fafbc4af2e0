//! Blocks of bytes, compared all at once. For scanners above, which may hold no unsafe code of their own.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector instructions"))]

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::Block;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::Found;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::WIDTH;
#[cfg(target_arch = "x86_64")]
pub(crate) use sse2::Block;
#[cfg(target_arch = "x86_64")]
pub(crate) use sse2::Found;
#[cfg(target_arch = "x86_64")]
pub(crate) use sse2::WIDTH;

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::__m128i;
    use std::arch::x86_64::_mm_cmpeq_epi8;
    use std::arch::x86_64::_mm_loadu_si128;
    use std::arch::x86_64::_mm_min_epu8;
    use std::arch::x86_64::_mm_movemask_epi8;
    use std::arch::x86_64::_mm_or_si128;
    use std::arch::x86_64::_mm_set1_epi8;

    /// Bytes in a block.
    pub(crate) const WIDTH: usize = 16;

    /// Which bytes of a block were found: a bit for each.
    pub(crate) type Found = u32;

    /// Bytes that are compared at once.
    pub(crate) struct Block(__m128i);

    impl Block {
        #[inline(always)]
        pub(crate) fn new(bytes: &[u8; WIDTH]) -> Self {
            // SAFETY: every x86-64 has SSE2; the pointer is good for 16 bytes and need not be aligned.
            Self(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
        }

        /// The block with `bits` set in each byte.
        #[inline(always)]
        pub(crate) fn with(&self, bits: u8) -> Self {
            // SAFETY: every x86-64 has SSE2; there is no other condition.
            Self(unsafe { _mm_or_si128(self.0, _mm_set1_epi8(bits.cast_signed())) })
        }

        /// Which bytes are `byte`; results may be joined with `|` and are for [`Block::first`].
        #[inline(always)]
        pub(crate) fn equal(&self, byte: u8) -> u32 {
            // SAFETY: every x86-64 has SSE2; there is no other condition.
            unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(self.0, _mm_set1_epi8(byte.cast_signed()))).cast_unsigned() }
        }

        /// Which bytes are `byte` or below it.
        #[inline(always)]
        pub(crate) fn at_most(&self, byte: u8) -> u32 {
            // SAFETY: every x86-64 has SSE2; there is no other condition.
            unsafe {
                let lower = _mm_min_epu8(self.0, _mm_set1_epi8(byte.cast_signed()));
                _mm_movemask_epi8(_mm_cmpeq_epi8(lower, self.0)).cast_unsigned()
            }
        }

        /// What a result says of the bytes from `place` on, which is in the block.
        #[inline(always)]
        pub(crate) fn from_place(found: u32, place: usize) -> u32 {
            found & (u32::MAX << (place & 31))
        }

        /// The place of the first byte in a result that is not zero.
        #[inline(always)]
        pub(crate) fn first(found: u32) -> usize {
            found.trailing_zeros() as usize
        }
    }
}

/// Eight bytes in a `u64`, where there are no vector instructions that every processor has.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable {
    /// Bytes in a block.
    pub(crate) const WIDTH: usize = 8;

    /// Which bytes of a block were found: the high bit of each.
    pub(crate) type Found = u64;

    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;

    /// Bytes that are compared at once.
    pub(crate) struct Block(u64);

    impl Block {
        #[inline(always)]
        pub(crate) fn new(bytes: &[u8; WIDTH]) -> Self {
            Self(u64::from_le_bytes(*bytes))
        }

        /// The block with `bits` set in each byte.
        #[inline(always)]
        pub(crate) fn with(&self, bits: u8) -> Self {
            Self(self.0 | (LOW * u64::from(bits)))
        }

        /// Which bytes are `byte`; results may be joined with `|` and are for [`Block::first`].
        #[inline(always)]
        pub(crate) fn equal(&self, byte: u8) -> u64 {
            let zero = self.0 ^ (LOW * u64::from(byte));
            // The high bit of each byte that is not zero; no carry leaves a byte.
            !(((zero & !HIGH) + !HIGH) | zero) & HIGH
        }

        /// Which bytes are `byte`, which is below 128, or below it.
        #[inline(always)]
        pub(crate) fn at_most(&self, byte: u8) -> u64 {
            !(((self.0 & !HIGH) + LOW * u64::from(127 - byte)) | self.0) & HIGH
        }

        /// What a result says of the bytes from `place` on, which is in the block.
        #[inline(always)]
        pub(crate) fn from_place(found: u64, place: usize) -> u64 {
            found & (u64::MAX << (8 * place & 63))
        }

        /// The place of the first byte in a result that is not zero.
        #[inline(always)]
        pub(crate) fn first(found: u64) -> usize {
            found.trailing_zeros() as usize / 8
        }
    }
}

#[cfg(test)]
mod tests {
    macro_rules! finds_the_first_of_two {
        ($name:ident, $module:ident) => {
            #[test]
            fn $name() {
                use super::$module::Block;
                use super::$module::WIDTH;
                for byte in 0..=u8::MAX {
                    let found = Block::new(&[byte; WIDTH]).at_most(b' ');
                    assert_eq!(found != 0, byte <= b' ', "{byte}");
                    assert!(found == 0 || Block::first(found) == 0);
                }
                for first in 0..WIDTH {
                    for second in 0..WIDTH {
                        for (one, two) in [(b'"', b'}'), (b'}', b'"'), (b'"', b'"'), (0x7c, b'}'), (b'#', b'"')] {
                            let mut bytes = [b'!'; WIDTH];
                            bytes[first] = one;
                            bytes[second] = two;
                            let block = Block::new(&bytes);
                            let found = block.equal(b'"') | block.with(0x20).equal(b'}');
                            let wanted = |byte: &u8| *byte == b'"' || *byte | 0x20 == b'}';
                            assert_eq!((found != 0).then(|| Block::first(found)), bytes.iter().position(wanted));
                            let found = Block::from_place(found, first);
                            let naive = bytes[first..].iter().position(wanted).map(|at| at + first);
                            assert_eq!((found != 0).then(|| Block::first(found)), naive, "{bytes:?} from {first}");
                        }
                    }
                }
            }
        };
    }

    #[cfg(target_arch = "x86_64")]
    finds_the_first_of_two!(sixteen_bytes, sse2);
    finds_the_first_of_two!(eight_bytes, portable);
}
