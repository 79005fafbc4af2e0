//! The string code of HPACK (RFC 7541 section 5.2 and appendix B), decoding only: what goes out is
//! written plainly.
//!
//! The code is canonical: among codes of one length the numbers ascend with the symbols, and each
//! length goes on where the shorter one ended. So the lengths say everything.

/// The code's length in bits for each byte (RFC 7541 appendix B). The end-of-string symbol has 30 bits.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];

const LEN_MIN: usize = 5;
const LEN_MAX: usize = 30;

/// Codes of up to this many bits are looked up in one step: letters and digits.
const QUICK_BITS: usize = 8;

struct Tables {
    /// The bytes in the order of their codes.
    symbols: [u8; 256],
    /// By length: the place in `symbols` of its first code.
    first_place: [u16; LEN_MAX + 1],
    /// By length: its first code.
    first_code: [u32; LEN_MAX + 1],
    /// By length: the first code behind it, shifted to the left end of 32 bits. What is below has this length or less.
    limit: [u64; LEN_MAX + 1],
    /// By the next eight bits: the byte and its length, or 0 if it is longer.
    quick: [(u8, u8); 1 << QUICK_BITS],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables {
        symbols: [0; 256],
        first_place: [0; LEN_MAX + 1],
        first_code: [0; LEN_MAX + 1],
        limit: [0; LEN_MAX + 1],
        quick: [(0, 0); 1 << QUICK_BITS],
    };
    let (mut len, mut place, mut code) = (LEN_MIN, 0, 0_u32);
    while len <= LEN_MAX {
        tables.first_place[len] = place;
        tables.first_code[len] = code;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == len {
                tables.symbols[place as usize] = symbol as u8;
                if len <= QUICK_BITS {
                    let mut rest = 0;
                    while rest < 1 << (QUICK_BITS - len) {
                        tables.quick[((code as usize) << (QUICK_BITS - len)) + rest] = (symbol as u8, len as u8);
                        rest += 1;
                    }
                }
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        tables.limit[len] = (code as u64) << (32 - len);
        code <<= 1;
        len += 1;
    }
    tables
}

/// Appends what `coded` stands for. `None` if it is not a valid code, its padding is longer than
/// seven bits or not of ones, or it holds the end-of-string symbol; what is appended then is of no use.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let begin = out.len();
    out.resize(begin + coded.len() * 8 / LEN_MIN, 0);
    let len = decode_into(coded, &mut out[begin..])?;
    out.truncate(begin + len);
    Some(())
}

/// The same into `room`, which has as many bytes as the shortest codes would give; how many there are.
fn decode_into(coded: &[u8], room: &mut [u8]) -> Option<usize> {
    let mut coded = coded;
    let mut place = 0;
    // The next bits, from the left.
    let mut bits = 0_u64;
    let mut have = 0;
    loop {
        if let (Some((word, rest)), ..=32) = (coded.split_first_chunk(), have) {
            bits |= u64::from(u32::from_be_bytes(*word)) << (32 - have);
            have += 32;
            coded = rest;
        } else {
            while have <= 56
                && let Some((byte, rest)) = coded.split_first()
            {
                bits |= u64::from(*byte) << (56 - have);
                have += 8;
                coded = rest;
            }
        }
        // Letters and digits, as long as their codes are there as a whole.
        while have >= QUICK_BITS {
            let (symbol, len) = TABLES.quick[(bits >> (64 - QUICK_BITS)) as usize];
            if len == 0 {
                break;
            }
            *room.get_mut(place)? = symbol;
            place += 1;
            bits <<= len;
            have -= usize::from(len);
        }
        if !coded.is_empty() && have <= 32 {
            continue;
        }
        if have == 0 {
            return Some(place);
        }
        let (symbol, len) = match TABLES.quick[(bits >> (64 - QUICK_BITS)) as usize] {
            (_, 0) => longer(bits >> 32).unwrap_or((0, usize::MAX)),
            (symbol, len) => (symbol, usize::from(len)),
        };
        if len > have {
            // No code is complete: padding, which is the start of a code of ones.
            let padding = bits >> (64 - have);
            return (have < 8 && padding == (1 << have) - 1).then_some(place);
        }
        *room.get_mut(place)? = symbol;
        place += 1;
        bits <<= len;
        have -= len;
    }
}

/// The symbol at the left end of these 32 bits, and its length. `None` for the end-of-string symbol.
fn longer(bits: u64) -> Option<(u8, usize)> {
    let len = (QUICK_BITS + 1..=LEN_MAX).find(|len| bits < TABLES.limit[*len])?;
    let place = usize::from(TABLES.first_place[len]) + (bits >> (32 - len)) as usize - TABLES.first_code[len] as usize;
    Some((*TABLES.symbols.get(place)?, len))
}

/// The other way round, for tests: they need coded heads.
#[cfg(test)]
pub(super) fn encode(plain: &[u8]) -> Vec<u8> {
    let (mut out, mut bits, mut have) = (Vec::new(), 0_u64, 0);
    for byte in plain {
        let len = usize::from(LENGTHS[usize::from(*byte)]);
        let first = usize::from(TABLES.first_place[len]);
        let place = first + TABLES.symbols[first..].iter().position(|symbol| symbol == byte).expect("a symbol");
        bits = bits << len | (TABLES.first_code[len] as usize + place - first) as u64;
        have += len;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push((bits << (8 - have)) as u8 | (0xff >> have));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    /// RFC 7541 appendix C.4 and C.6.
    #[test]
    fn the_rfcs_examples() {
        let examples: [(&[u8], &str); 4] = [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
            (&[0x64, 0x02], "302"),
        ];
        for (coded, plain) in examples {
            assert_eq!(decoded(coded).expect("valid"), plain.as_bytes());
            assert_eq!(encode(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn every_byte_survives() {
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        assert_eq!(decoded(&encode(&all)).expect("valid"), all);
        for byte in 0..=255 {
            assert_eq!(decoded(&encode(&[byte])).expect("valid"), [byte]);
        }
    }

    /// Bit by bit, as the RFC tells it.
    fn slowly(coded: &[u8]) -> Option<Vec<u8>> {
        let (mut out, mut code, mut len) = (Vec::new(), 0_u32, 0);
        for bit in coded.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)) {
            (code, len) = (code << 1 | u32::from(bit), len + 1);
            let known = (0..256).find(|symbol| {
                usize::from(LENGTHS[*symbol]) == len && {
                    let first = usize::from(TABLES.first_place[len]);
                    let place = TABLES.symbols[first..].iter().position(|byte| usize::from(*byte) == *symbol);
                    place.is_some_and(|place| TABLES.first_code[len] as usize + place == code as usize)
                }
            });
            if let Some(symbol) = known {
                out.push(symbol as u8);
                (code, len) = (0, 0);
            } else if len == LEN_MAX {
                return None;
            }
        }
        (len < 8 && code == (1 << len) - 1).then_some(out)
    }

    #[test]
    fn what_is_read_many_bits_at_a_time_is_what_is_read_bit_by_bit() {
        let mut state = 7_u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let mut valid = 0;
        for round in 0..400 {
            // Text, any bytes, and codes that need not be any.
            let plain: Vec<u8> =
                (0..round % 40).map(|_| if round % 3 == 0 { b' ' + byte() % 95 } else { byte() }).collect();
            assert_eq!(decoded(&encode(&plain)).as_ref(), Some(&plain));
            let mut coded = if round % 2 == 0 { encode(&plain) } else { plain };
            if let Some(last) = coded.last_mut() {
                *last ^= byte() & byte() & byte();
            }
            let slow = slowly(&coded);
            valid += u32::from(slow.is_some());
            assert_eq!(decoded(&coded), slow, "{coded:x?}");
        }
        assert!((50..350).contains(&valid), "{valid} are valid");
    }

    #[test]
    fn bad_padding_and_the_end_symbol_are_refused() {
        // A whole byte of padding; padding with a zero; the end-of-string symbol, 30 ones.
        for coded in [&[0x64, 0x02, 0xff][..], &[0x60], &[0xff, 0xff, 0xff, 0xff], &[0xff]] {
            assert!(decoded(coded).is_none(), "{coded:x?}");
        }
        assert!(decoded(&[]).expect("valid").is_empty());
    }
}
