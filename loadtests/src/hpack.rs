//! Header blocks by hand (RFC 7541): what goes into the dynamic table, what refers to it, and Huffman coding.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

/// One field of a header block.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// A literal with a literal name that goes into the dynamic table (section 6.2.1).
    Indexed(&'a str, &'a str),
    /// A literal with a literal name that stays out of it (section 6.2.2).
    Plain(&'a str, &'a str),
    /// A literal that nobody on the way may index (section 6.2.3).
    Never(&'a str, &'a str),
    /// The entry with this index; dynamic ones begin with 62, the youngest first (section 6.1).
    Reference(u64),
}

/// A header block; `huffman` codes the values so, names stay as they are.
pub fn block(fields: &[Field<'_>], huffman: bool) -> Bytes {
    let mut out = BytesMut::new();
    for field in fields {
        let (first, name, value) = match *field {
            Field::Indexed(name, value) => (0x40, name, value),
            Field::Plain(name, value) => (0x00, name, value),
            Field::Never(name, value) => (0x10, name, value),
            Field::Reference(index) => {
                put_integer(&mut out, 0x80, 7, index);
                continue;
            }
        };
        out.put_u8(first);
        put_integer(&mut out, 0, 7, name.len() as u64);
        out.put_slice(name.as_bytes());
        if huffman {
            let coded = huffman_coded(value.as_bytes(), 0);
            put_integer(&mut out, 0x80, 7, coded.len() as u64);
            out.put_slice(&coded);
        } else {
            put_integer(&mut out, 0, 7, value.len() as u64);
            out.put_slice(value.as_bytes());
        }
    }
    out.freeze()
}

/// Section 5.1.
fn put_integer(out: &mut BytesMut, first: u8, prefix_bits: u32, value: u64) {
    let most = (1_u64 << prefix_bits) - 1;
    if value < most {
        out.put_u8(first | value as u8);
        return;
    }
    out.put_u8(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// `text` Huffman-coded behind `offset_bits` zero bits, padded with ones to whole bytes (section 5.2).
///
/// # Panics
/// For what is neither a letter, a digit nor one of ` %&*,-./:;=?_`.
pub fn huffman_coded(text: &[u8], offset_bits: u32) -> Vec<u8> {
    let (mut bits, mut held, mut out) = (0_u64, offset_bits, Vec::new());
    for letter in text {
        let (code, len) = code_of(*letter);
        bits = bits << len | u64::from(code);
        held += len;
        while held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    if held > 0 {
        out.push((bits << (8 - held)) as u8 | ((1 << (8 - held)) - 1));
    }
    out
}

/// Appendix B is canonical: codes of one length follow each other in the order of the letters.
fn code_of(letter: u8) -> (u32, u32) {
    let groups: [(&[u8], u32, u32); 5] = [
        (b"012aceiost", 0x00, 5),
        (b" %-./3456789=A_bdfghlmnpru", 0x14, 6),
        (b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", 0x5c, 7),
        (b"&*,;XZ", 0xf8, 8),
        (b"!\"()?", 0x3f8, 10),
    ];
    for (letters, first, len) in groups {
        if let Some(at) = letters.iter().position(|other| *other == letter) {
            return (first + at as u32, len);
        }
    }
    panic!("no Huffman code for byte {letter} here");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_examples_hold() {
        // Sections C.4.1 to C.4.3, C.6.1.
        let coded = |text: &str| huffman_coded(text.as_bytes(), 0);
        assert_eq!(coded("www.example.com"), b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff");
        assert_eq!(coded("no-cache"), b"\xa8\xeb\x10\x64\x9c\xbf");
        assert_eq!(coded("custom-value"), b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf");
        assert_eq!(
            coded("https://www.example.com"),
            b"\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3"
        );
        // Section C.2.1, and an index of the dynamic table.
        let written = block(&[Field::Indexed("custom-key", "custom-header"), Field::Reference(62)], false);
        assert_eq!(written[..], *b"\x40\x0acustom-key\x0dcustom-header\xbe");
    }
}
