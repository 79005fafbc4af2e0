//! An endless deterministic byte sequence: any part of it can be made or checked without the parts before.

use std::sync::LazyLock;

use bytes::Bytes;

/// Writes the bytes of the sequence at `offset` into `out`.
pub fn pattern(offset: u64, out: &mut [u8]) {
    let mut done = 0;
    while done < out.len() {
        let piece = slice_at(offset + done as u64, out.len() - done);
        out[done..done + piece.len()].copy_from_slice(piece);
        done += piece.len();
    }
}

/// A piece of the sequence at `offset`, at most `len_max` and at most [`PIECE_BYTES`] long, without copying.
pub fn pattern_bytes(offset: u64, len_max: u64) -> Bytes {
    let start = (offset % PERIOD as u64) as usize;
    let len = len_max.min(PIECE_BYTES as u64) as usize;
    BLOCK.slice(start..start + len)
}

/// SHA-256 of the first `len` bytes of the sequence.
pub fn pattern_sha256(len: u64) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut offset = 0;
    while offset < len {
        let piece = pattern_bytes(offset, len - offset);
        context.update(&piece);
        offset += piece.len() as u64;
    }
    digest_array(context)
}

/// Follows a received body and compares it with the sequence.
#[derive(Debug, Default)]
pub struct PatternCheck {
    offset: u64,
}

impl PatternCheck {
    /// Starts at offset 0.
    pub fn new() -> PatternCheck {
        PatternCheck::default()
    }

    /// Bytes compared so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Compares the next bytes; the error is the offset of the first byte that differs.
    pub fn feed(&mut self, mut data: &[u8]) -> Result<(), u64> {
        while !data.is_empty() {
            let wanted = slice_at(self.offset, data.len());
            let (head, rest) = data.split_at(wanted.len());
            if head != wanted {
                let same = head.iter().zip(wanted).take_while(|(a, b)| a == b).count();
                return Err(self.offset + same as u64);
            }
            self.offset += head.len() as u64;
            data = rest;
        }
        Ok(())
    }
}

pub(crate) fn digest_array(context: aws_lc_rs::digest::Context) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn slice_at(offset: u64, len_max: usize) -> &'static [u8] {
    let start = (offset % PERIOD as u64) as usize;
    &BLOCK[start..start + len_max.min(PIECE_BYTES)]
}

/// The longest piece that [`pattern_bytes`] gives: big enough that a GiB is few polls.
pub const PIECE_BYTES: usize = 64 * 1024;

/// A prime, so that a body shifted by any power of two, or by a whole buffer of anyone, does not look right.
const PERIOD: usize = 65_521;

/// The period, repeated until a full piece fits behind every start.
static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    let mut period = Vec::with_capacity(PERIOD);
    // xorshift64*: any generator without short cycles would do.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while period.len() < PERIOD {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        period.push((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8);
    }
    let mut block = Vec::with_capacity(PERIOD * 3);
    for _ in 0..3 {
        block.extend_from_slice(&period);
    }
    block.into()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_copies_agree_at_every_kind_of_offset() {
        for offset in [0, 1, 65_520, 65_521, 65_522, 131_071, 1 << 32] {
            let mut copy = vec![0; 200_000];
            pattern(offset, &mut copy);
            let piece = pattern_bytes(offset, u64::MAX);
            assert_eq!(copy[..piece.len()], piece);
            let mut check = PatternCheck { offset };
            assert_eq!(check.feed(&copy), Ok(()));
            copy[150_000] ^= 1;
            let mut check = PatternCheck { offset };
            assert_eq!(check.feed(&copy), Err(offset + 150_000));
        }
    }
}
