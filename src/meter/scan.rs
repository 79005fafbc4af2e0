//! Finding the few bytes that matter, sixteen at a time.
//!
//! Long runs go to `memchr`, which picks the widest instructions at run time.

use crate::hygiene::block::Block;
use crate::hygiene::block::Found;
use crate::hygiene::block::WIDTH;

/// How far the loops here look before `memchr` takes over: below this, its call costs more than it saves.
const NEAR: usize = 64;

/// Where the first `"` or `\` at or after `from` stands; the length of `bytes` if there is none.
#[inline(always)]
pub(super) fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    let near = from + NEAR;
    while let Some(block) = block(bytes, at) {
        let found = block.equal(b'"') | block.equal(b'\\');
        if found != 0 {
            return at + Block::first(found);
        }
        at += WIDTH;
        if at >= near {
            return far_string_end(bytes, at);
        }
    }
    tail(bytes, at, |block| block.equal(b'"') | block.equal(b'\\'))
}

/// The same for what is left at the end, which is less than a block: by the block that ends there.
#[inline(always)]
fn tail(bytes: &[u8], from: usize, find: impl Fn(&Block) -> Found) -> usize {
    if from >= bytes.len() {
        return bytes.len();
    }
    let last = match bytes.last_chunk() {
        Some(last) => Block::new(last),
        None => return short_tail(bytes, from, find),
    };
    let start = bytes.len() - WIDTH;
    let found = Block::from_place(find(&last), from - start);
    if found == 0 { bytes.len() } else { start + Block::first(found) }
}

/// And where there is no block at all.
#[cold]
#[inline(never)]
fn short_tail(bytes: &[u8], from: usize, find: impl Fn(&Block) -> Found) -> usize {
    // What follows the bytes is found nowhere: no one looks for it.
    let mut block = [b'a'; WIDTH];
    block[..bytes.len()].copy_from_slice(bytes);
    let found = Block::from_place(find(&Block::new(&block)), from);
    zeroize::Zeroize::zeroize(&mut block);
    if found == 0 { bytes.len() } else { Block::first(found) }
}

/// Where a number or word ends: at the first comma, closing bracket or white space.
#[inline(always)]
pub(super) fn scalar_end(bytes: &[u8], from: usize) -> usize {
    let find = |block: &Block| {
        // `]` and `}` differ in this bit only, and no other byte becomes one of them by it.
        block.equal(b',') | block.with(0x20).equal(b'}') | block.at_most(b' ')
    };
    let mut at = from;
    while let Some(block) = block(bytes, at) {
        let found = find(&block);
        if found != 0 {
            return at + Block::first(found);
        }
        at += WIDTH;
    }
    tail(bytes, at, find)
}

#[cold]
#[inline(never)]
fn far_string_end(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    memchr::memchr2(b'"', b'\\', rest).map_or(bytes.len(), |at| from + at)
}

/// Where the first `"`, bracket or brace at or after `from` stands; the length of `bytes` if there is none.
#[inline(always)]
pub(super) fn structure(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(block) = block(bytes, at) {
        // `[` and `{`, `]` and `}` differ in this bit only, and no other byte becomes one of them by it.
        let lower = block.with(0x20);
        let found = block.equal(b'"') | lower.equal(b'{') | lower.equal(b'}');
        if found != 0 {
            return at + Block::first(found);
        }
        at += WIDTH;
    }
    tail(bytes, at, |block| {
        let lower = block.with(0x20);
        block.equal(b'"') | lower.equal(b'{') | lower.equal(b'}')
    })
}

/// The first eight bytes of a key of `length` bytes, not 0, at `at`, the rest zero; keys are compared by this first.
#[inline(always)]
pub(super) fn head(bytes: &[u8], at: usize, length: usize) -> u64 {
    let mut eight = [0; 8];
    if let Some(whole) = bytes.get(at..at + 8) {
        eight.copy_from_slice(whole);
        return u64::from_le_bytes(eight) & (u64::MAX >> ((64 - 8 * length.min(8)) & 63));
    }
    for (to, from) in eight.iter_mut().zip(bytes.get(at..at + length).unwrap_or_default()) {
        *to = *from;
    }
    u64::from_le_bytes(eight)
}

/// The block at `at`, if `bytes` holds all of it.
#[inline(always)]
fn block(bytes: &[u8], at: usize) -> Option<Block> {
    let whole: &[u8; WIDTH] = bytes.get(at..at + WIDTH)?.try_into().ok()?;
    Some(Block::new(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_loop_finds() {
        let mut bytes = [b'a'; 150];
        for at in 0..bytes.len() {
            for byte in *b"\"\\{}[], " {
                bytes[at] = byte;
                for from in [0, 1.min(at), at.saturating_sub(1), at, at + 1] {
                    let naive = |wanted: &[u8]| {
                        (from..bytes.len()).find(|place| wanted.contains(&bytes[*place])).unwrap_or(bytes.len())
                    };
                    assert_eq!(string_end(&bytes, from), naive(b"\"\\"), "{byte} at {at} from {from}");
                    assert_eq!(structure(&bytes, from), naive(b"\"{}[]"), "{byte} at {at} from {from}");
                    assert_eq!(scalar_end(&bytes, from), naive(b",}] "), "{byte} at {at} from {from}");
                    assert_eq!(string_end(&bytes[..at + 1], from), naive(b"\"\\").min(at + 1));
                }
            }
            bytes[at] = b'a' + u8::try_from(at % 23).expect("small") + 1;
        }
        for byte in 0..=u8::MAX {
            let bytes = [byte; 40];
            assert_eq!(structure(&bytes, 0) == 0, b"\"{}[]".contains(&byte), "{byte}");
        }
    }

    #[test]
    fn heads_are_the_same_wherever_they_stand() {
        let bytes = b"prompt_tokens";
        for length in 1..=8 {
            let mut alone = [0; 8];
            alone[..length].copy_from_slice(&bytes[..length]);
            assert_eq!(head(bytes, 0, length), u64::from_le_bytes(alone));
            assert_eq!(head(&bytes[..length], 0, length), u64::from_le_bytes(alone));
        }
    }
}
