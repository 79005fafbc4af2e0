//! Content that can be found again in a process's memory: for each seed an endless repetition of a word that occurs
//! nowhere else. Any eight bytes of it in a row name the seed.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;

use bytes::Bytes;

/// The length of a word.
pub const WORD_BYTES: usize = 16;

/// The word of `seed`: small letters and digits, so that it may stand in text, in header values and in paths.
pub fn word(seed: u32) -> [u8; WORD_BYTES] {
    // SplitMix64 (Steele, Lea, Flood 2014): 80 of its bits, five a letter. Eight letters in a row are 40 bits, enough
    // for tens of thousands of seeds and a process of any size, because memory that is not text holds hardly any letters.
    let mut state = u64::from(seed).wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut bits = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    });
    let (first, second) = (bits.next().unwrap_or(0), bits.next().unwrap_or(0));
    std::array::from_fn(|at| {
        let half = if at < 8 { first } else { second };
        ALPHABET[(half >> (5 * (at % 8))) as usize & 31]
    })
}

/// The bytes of the repetition from `offset` on, at most `len_max` and at most [`PIECE_BYTES`] of them, without copying.
pub fn words_bytes(seed: u32, offset: u64, len_max: u64) -> Bytes {
    let start = (offset % WORD_BYTES as u64) as usize;
    let len = usize::try_from(len_max).unwrap_or(usize::MAX).min(PIECE_BYTES);
    block(seed).slice(start..start + len)
}

/// The first `len` bytes of the repetition.
pub fn content(seed: u32, len: usize) -> Bytes {
    if len <= PIECE_BYTES {
        return words_bytes(seed, 0, len as u64);
    }
    word(seed).repeat(len.div_ceil(WORD_BYTES)).into_iter().take(len).collect::<Vec<u8>>().into()
}

/// The first `len` letters of the repetition, for heads.
pub fn text(seed: u32, len: usize) -> String {
    word(seed).iter().cycle().take(len).copied().map(char::from).collect()
}

/// The block of the seed that was asked for last is kept: bodies are made piece by piece.
fn block(seed: u32) -> Bytes {
    static LAST: LazyLock<Mutex<(u32, Bytes)>> = LazyLock::new(Mutex::default);
    let mut last = LAST.lock().expect("no panics under this lock");
    if last.0 != seed || last.1.is_empty() {
        let block: Arc<[u8]> = word(seed).repeat(PIECE_BYTES / WORD_BYTES + 1).into();
        *last = (seed, Bytes::from_owner(block));
    }
    last.1.clone()
}

/// The longest piece: a multiple of the word's length.
pub const PIECE_BYTES: usize = 64 * 1024;

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_name_their_seed() {
        let mut seen = std::collections::HashMap::new();
        for seed in 0..10_000 {
            let twice = word(seed).repeat(2);
            for start in 0..WORD_BYTES {
                let eight: [u8; 8] = twice[start..start + 8].try_into().unwrap();
                assert_eq!(*seen.entry(eight).or_insert(seed), seed);
            }
        }
        assert_eq!(seen.len(), 10_000 * WORD_BYTES, "and none of them twice in a word");
    }

    #[test]
    fn pieces_go_on_where_the_last_one_ended() {
        let mut pieces = Vec::new();
        while pieces.len() < 200_000 {
            pieces.extend_from_slice(&words_bytes(7, pieces.len() as u64, 70_001));
        }
        assert_eq!(pieces[..200_000], content(7, 200_000)[..]);
        assert_eq!(text(7, 20).as_bytes(), &pieces[..20]);
    }
}
