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

/// Bytes of the blocks in which escapes are told from what they escape.
const WIDE: usize = 64;
/// After so many of them without an escape, looking for the next one is left to `memchr`.
const PLAIN: usize = 4;

/// Where the string that `from` stands in ends, at its `"`. If it does not end here, the length of `bytes`, or one more
/// than that if the first byte that is not here yet is escaped.
#[inline(always)]
pub(super) fn quote(bytes: &[u8], from: usize) -> usize {
    let end = string_end(bytes, from);
    if bytes.get(end) == Some(&b'\\') { escaped_quote(bytes, end) } else { end }
}

/// The same from a `\` on, which is not escaped itself.
#[inline(never)]
fn escaped_quote(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    // Whether the byte at `at` is escaped: 0 or 1.
    let mut carry = 0;
    let mut plain = 0;
    while let Some(whole) = bytes.get(at..at + WIDE) {
        let (mut quotes, mut slashes) = (0, 0);
        for (nth, part) in whole.as_chunks::<WIDTH>().0.iter().enumerate() {
            let block = Block::new(part);
            quotes |= Block::bits(block.equal(b'"')) << (nth * WIDTH);
            slashes |= Block::bits(block.equal(b'\\')) << (nth * WIDTH);
        }
        let escaped = if slashes == 0 { std::mem::take(&mut carry) } else { escaped(slashes, &mut carry) };
        let found = quotes & !escaped;
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += WIDE;
        plain = if slashes == 0 { plain + 1 } else { 0 };
        if plain == PLAIN {
            at = far_string_end(bytes, at);
            if bytes.get(at) != Some(&b'\\') {
                return at;
            }
            plain = 0;
        }
    }
    at += carry as usize;
    while at <= bytes.len() {
        at = string_end(bytes, at);
        if bytes.get(at) != Some(&b'\\') {
            break;
        }
        at += 2;
    }
    at
}

/// Which of 64 bytes are escaped by a `\` before them, where `slashes` are `\`. `carry` says so of the first byte, and
/// then of the one after the last.
///
/// Of each run of `\` that escape one another, every second is escaped, and so is what follows a run of odd length.
/// Adding a run's first bit to it carries to the bit behind it; a subtraction from alternating bits does so for all runs
/// at once and leaves those bits in which a run differs from the alternation.
#[inline(always)]
fn escaped(slashes: u64, carry: &mut u64) -> u64 {
    const ODD: u64 = 0xAAAA_AAAA_AAAA_AAAA;
    let begin = slashes & !*carry;
    let ends = ((begin << 1 | ODD).wrapping_sub(begin)) ^ ODD;
    let escaped = ends ^ (slashes | *carry);
    *carry = (ends & slashes) >> 63;
    escaped
}

/// Where a string ends that `from` stands in, if it does so here, before any control character: none of those is allowed
/// in a string, and a line may end at one.
#[inline(always)]
pub(super) fn quote_in_line(bytes: &[u8], from: usize) -> Option<usize> {
    let find = |block: &Block| block.equal(b'"') | block.equal(b'\\') | block.at_most(0x1F);
    let mut at = from;
    loop {
        let end = loop {
            let Some(block) = block(bytes, at) else { break tail(bytes, at, find) };
            let found = find(&block);
            if found != 0 {
                break at + Block::first(found);
            }
            at += WIDTH;
        };
        match bytes.get(end..end + 2) {
            Some([b'"', _]) => return Some(end),
            Some([b'\\', b' '..=u8::MAX]) => at = end + 2,
            _ => return None,
        }
    }
}

/// How many bytes of `one` and `other`, which are of one length, are the same in both before one differs.
#[inline(always)]
pub(super) fn alike(one: &[u8], other: &[u8]) -> usize {
    let mut at = 0;
    while let (Some(left), Some(right)) = (block(one, at), block(other, at)) {
        let found = left.differs(&right);
        if found != 0 {
            return at + Block::first(found);
        }
        at += WIDTH;
    }
    let same = |(left, right): &(&u8, &u8)| left == right;
    match (one.last_chunk(), other.last_chunk()) {
        (Some(left), Some(right)) => {
            // What this block has of the ones before is the same in both.
            let found = Block::new(left).differs(&Block::new(right));
            if found == 0 { one.len() } else { one.len() - WIDTH + Block::first(found) }
        }
        _ => one.iter().zip(other).take_while(same).count(),
    }
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

/// How far [`line_end`] looks before `memchr` takes over.
const LINE: usize = 512;

/// Where the line that `bytes` begin with ends: at its first LF or CR.
#[inline(always)]
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
    let find = |block: &Block| block.equal(b'\n') | block.equal(b'\r');
    let mut at = 0;
    while let Some(block) = block(bytes, at) {
        let found = find(&block);
        if found != 0 {
            return Some(at + Block::first(found));
        }
        at += WIDTH;
        if at >= LINE {
            return far_line_end(bytes, at);
        }
    }
    let end = tail(bytes, at, find);
    (end < bytes.len()).then_some(end)
}

#[cold]
#[inline(never)]
fn far_line_end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr2(b'\n', b'\r', bytes.get(from..)?).map(|at| from + at)
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
    fn strings_end_where_a_loop_says() {
        // Whole, or what `quote` says of a string that does not end here.
        let naive = |bytes: &[u8], from: usize| {
            let mut at = from;
            loop {
                match bytes.get(at) {
                    Some(b'"') => return at,
                    Some(b'\\') => at += 2,
                    Some(_) => at += 1,
                    None => return at,
                }
            }
        };
        // Numbers in no order to speak of, which are the same in each run.
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..3000 {
            let length = random(600) as usize;
            let rare = [2, 5, 40, 300][round % 4];
            let bytes: Vec<u8> = (0..length)
                .map(|_| match random(rare) {
                    0 => b'\\',
                    1 if random(20) == 0 => b'"',
                    _ => b'a',
                })
                .collect();
            for from in [0, length / 3] {
                let end = naive(&bytes, from);
                assert_eq!(quote(&bytes, from), end, "{} from {from}", String::from_utf8_lossy(&bytes));
                let here = (end + 1 < length).then_some(end);
                assert_eq!(quote_in_line(&bytes, from), here, "{} from {from}", String::from_utf8_lossy(&bytes));
                if length > 0 {
                    let mut line = bytes.clone();
                    let newline = random(length as u64) as usize;
                    line[newline] = b'\n';
                    let end = naive(&line, from);
                    let here = (end + 1 < length && !(from..end).contains(&newline)).then_some(end);
                    assert_eq!(quote_in_line(&line, from), here, "{newline} {}", String::from_utf8_lossy(&bytes));
                }
            }
        }
    }

    #[test]
    fn lines_end_where_a_loop_says() {
        for length in (0..80).chain([LINE - 1, LINE, LINE + 1, LINE + 100]) {
            assert_eq!(line_end(&vec![b'a'; length]), None);
            for end in 0..length {
                for byte in *b"\n\r" {
                    let mut bytes = vec![b'a'; length];
                    bytes[end] = byte;
                    bytes[length - 1] = b'\n';
                    assert_eq!(line_end(&bytes), Some(end), "of {length}");
                }
            }
        }
    }

    #[test]
    fn likeness_ends_at_the_first_difference() {
        for length in 0..70 {
            let one = vec![b'a'; length];
            assert_eq!(alike(&one, &one), length);
            for differs in 0..length {
                let mut other = one.clone();
                other[differs] = b'b';
                other[length - 1] = b'c';
                assert_eq!(alike(&one, &other), differs, "of {length}");
            }
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
