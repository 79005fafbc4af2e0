//! Which messages a policy has to read: those that any reader could take for JSON with fields.
//!
//! Programs also send what is none: empty messages, sound, plain words. No field stands in them that could ask a provider
//! for anything, so they pass as they are. Where that is not certain from how a message begins, in any encoding and to any
//! lenient reader (byte order marks, white space that only some skip, comments, UTF-16), the policy's own strict reading decides.

use super::judged::Edit;
use crate::hygiene::Chunk;
use crate::retention::Denied;

/// Reads a message if it could have fields.
pub(super) struct Objects<E> {
    editor: E,
    begins: Begins,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// With nothing but white space so far.
    Nowhere,
    /// With a zero, which UTF-16 and UTF-32 do as well; it is held back.
    Zero,
    /// As something without fields.
    Plain,
    /// As something that is to be read.
    Text,
}

impl<E: Edit> Objects<E> {
    pub(super) fn new(editor: E) -> Self {
        Self { editor, begins: Begins::Nowhere }
    }
}

/// Whether no reader takes a message for JSON with fields that begins with this byte, behind JSON's own white space.
fn is_plain(first: u8) -> bool {
    match first {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'"' | b'-' => true,
        // Of UTF-8: letters. Not those first bytes behind which stand spaces that are wider or do not break (C2, E1 to E3)
        // or the byte order mark (EF).
        0xc3..=0xdf | 0xe4..=0xed | 0xf0..=0xf4 => true,
        _ => false,
    }
}

impl<E: Edit> Edit for Objects<E> {
    fn feed(&mut self, mut chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        if self.begins == Begins::Nowhere {
            let bytes = chunk.as_slice();
            let spaces = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
            if spaces > 0 {
                out.push(chunk.split_to(spaces));
            }
            match chunk.as_slice().first() {
                None => return Ok(()),
                Some(0) => {
                    drop(chunk.split_to(1));
                    self.begins = Begins::Zero;
                }
                Some(first) => self.begins = if is_plain(*first) { Begins::Plain } else { Begins::Text },
            }
        }
        if self.begins == Begins::Zero {
            // Wide encodings go on with a zero, white space, a brace or a mark of a comment.
            let Some(second) = chunk.as_slice().first() else { return Ok(()) };
            self.begins = if matches!(second, 1..=8) { Begins::Plain } else { Begins::Text };
            let zero = Chunk::copied(&[0]);
            self.pass(zero, out)?;
        }
        self.pass(chunk, out)
    }

    fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        match self.begins {
            Begins::Nowhere | Begins::Plain => Ok(()),
            Begins::Zero => {
                out.push(Chunk::copied(&[0]));
                Ok(())
            }
            Begins::Text => self.editor.finish(out),
        }
    }
}

impl<E: Edit> Objects<E> {
    fn pass(&mut self, chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        if self.begins == Begins::Text {
            return self.editor.feed(chunk, out);
        }
        out.push(chunk);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing.
    struct Never;

    impl Edit for Never {
        fn feed(&mut self, _chunk: Chunk, _out: &mut Vec<Chunk>) -> Result<(), Denied> {
            Err(Denied::Unreadable)
        }

        fn finish(&mut self, _out: &mut Vec<Chunk>) -> Result<(), Denied> {
            Err(Denied::Unreadable)
        }
    }

    fn passes(message: &[u8]) -> bool {
        let whole = feed(&[message]);
        for cut in 0..message.len() {
            assert_eq!(feed(&[&message[..cut], &message[cut..]]), whole, "cut at {cut}");
        }
        assert!(whole.as_ref().is_none_or(|out| out == message));
        whole.is_some()
    }

    fn feed(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let (mut objects, mut out) = (Objects::new(Never), Vec::new());
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            objects.feed(Chunk::copied(piece), &mut out).ok()?;
        }
        objects.finish(&mut out).ok()?;
        Some(out.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect())
    }

    #[test]
    fn words_and_sound_pass() {
        for message in ["", " ", "hello", "  12", "\"{}\"", "-1", "null", "\u{f6}\u{1f980}x"] {
            assert!(passes(message.as_bytes()), "{message}");
        }
        assert!(passes(&[0]) && passes(&[0, 1, 2, 3]));
    }

    #[test]
    fn what_any_reader_may_take_for_an_object_is_read() {
        let object = "{\"store\":true}";
        for before in [
            "", " \n\t\r", "\u{feff}", "\u{a0}", "\u{2028}", "\u{3000}", "\u{b}", "\u{c}", "/**/", "//\n", "#\n",
            ")]}'",
        ] {
            assert!(!passes(format!("{before}{object}").as_bytes()), "{before:?}");
        }
        assert!(!passes(b"[{}]") && !passes(b"({})"));
        for space in ["", " ", "\n  "] {
            let text = format!("{space}{object}");
            let wide = |order: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
            let wider = |order: fn(u32) -> [u8; 4]| {
                text.chars().flat_map(|letter| order(u32::from(letter))).collect::<Vec<u8>>()
            };
            assert!(!passes(&wide(u16::to_be_bytes)) && !passes(&wide(u16::to_le_bytes)));
            assert!(!passes(&wider(u32::to_be_bytes)) && !passes(&wider(u32::to_le_bytes)));
            let marked = |mark: &[u8], bytes: Vec<u8>| [mark, &bytes].concat();
            assert!(!passes(&marked(&[0xfe, 0xff], wide(u16::to_be_bytes))));
            assert!(!passes(&marked(&[0xff, 0xfe], wide(u16::to_le_bytes))));
        }
    }
}
