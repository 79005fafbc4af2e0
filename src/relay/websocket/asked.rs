//! What a client's message asks for, read from its first level as it passes: its type, and for a `response.create` the
//! model and the limit of output.
//!
//! A message is read to its end before it is completed towards the provider, so a later duplicate of a field is seen as
//! well. Of two types a `response.create` wins, since readers differ in which one they take.

use crate::hygiene::wipe::wipe;
use crate::meter::MODEL_BYTES_MAX;

/// The longest field name that matters is `max_output_tokens`; the longest value is a model's name.
const TEXT_BYTES_MAX: usize = MODEL_BYTES_MAX;

/// Reads one message after another. Holds one name or value of the first level at a time, at most 96 bytes.
pub(super) struct Asked {
    depth: u32,
    token: Token,
    /// The name that precedes the value that is read now.
    field: Field,
    /// The next string at the first level is a name.
    name_next: bool,
    /// Inside a string: the escape so far.
    escape: Escape,
    /// A name or a value of the first level, as far as it fits.
    text: [u8; TEXT_BYTES_MAX],
    text_len: usize,
    /// It did not fit.
    overlong: bool,
    creates: bool,
    model: [u8; MODEL_BYTES_MAX],
    model_len: usize,
    output_tokens_max: Option<u64>,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Between,
    Text,
    Number,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Type,
    Model,
    OutputTokensMax,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    /// Digits so far, and their value.
    Unicode(u8, u16),
}

/// A message of type `response.create`: one more answer, at one more price.
pub(super) struct Create<'m> {
    /// The model that it names, at most 96 bytes. Realtime names it in the session instead.
    pub(super) model: Option<&'m [u8]>,
    /// Its `max_output_tokens`.
    pub(super) output_tokens_max: Option<u64>,
    /// Of the whole message.
    pub(super) bytes: u64,
}

impl Asked {
    pub(super) fn new() -> Self {
        Self {
            depth: 0,
            token: Token::Between,
            field: Field::Other,
            name_next: false,
            escape: Escape::None,
            text: [0; TEXT_BYTES_MAX],
            text_len: 0,
            overlong: false,
            creates: false,
            model: [0; MODEL_BYTES_MAX],
            model_len: 0,
            output_tokens_max: None,
            bytes: 0,
        }
    }

    /// Another message begins.
    pub(super) fn clear(&mut self) {
        wipe(&mut self.text);
        wipe(&mut self.model);
        *self = Self::new();
    }

    /// Reads on.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for &byte in bytes {
            match self.token {
                Token::Text => self.in_text(byte),
                Token::Number => {
                    if byte.is_ascii_digit() {
                        self.push(byte);
                    } else {
                        self.number_over();
                        self.between(byte);
                    }
                }
                Token::Between => self.between(byte),
            }
        }
    }

    /// What the message asks for, once it has ended, if it is a `response.create`.
    pub(super) fn create(&self) -> Option<Create<'_>> {
        self.creates.then(|| Create {
            model: (self.model_len > 0).then(|| &self.model[..self.model_len]),
            output_tokens_max: self.output_tokens_max,
            bytes: self.bytes,
        })
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.token = Token::Text;
                self.escape = Escape::None;
                self.text_len = 0;
                self.overlong = false;
            }
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                if self.depth == 1 {
                    self.name_next = byte == b'{';
                }
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b',' if self.depth == 1 => self.name_next = true,
            b':' if self.depth == 1 => self.name_next = false,
            b'0'..=b'9' if self.depth == 1 => {
                self.token = Token::Number;
                self.text_len = 0;
                self.overlong = false;
                self.push(byte);
            }
            _ => {}
        }
    }

    fn in_text(&mut self, byte: u8) {
        match (self.escape, byte) {
            (Escape::None, b'"') => self.text_over(),
            (Escape::None, b'\\') => self.escape = Escape::Begun,
            (Escape::None, _) => self.push(byte),
            (Escape::Begun, b'u') => self.escape = Escape::Unicode(0, 0),
            (Escape::Begun, _) => {
                self.escape = Escape::None;
                self.push(byte);
            }
            (Escape::Unicode(digits, value), _) => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0) as u16;
                let value = value << 4 | digit;
                if digits < 3 {
                    self.escape = Escape::Unicode(digits + 1, value);
                } else {
                    self.escape = Escape::None;
                    // All that is compared is ASCII.
                    self.push(u8::try_from(value).ok().filter(u8::is_ascii).unwrap_or(0xff));
                }
            }
        }
    }

    fn push(&mut self, byte: u8) {
        if self.depth != 1 {
            return;
        }
        if self.text_len < self.text.len() {
            self.text[self.text_len] = byte;
            self.text_len += 1;
        } else {
            self.overlong = true;
        }
    }

    fn text_over(&mut self) {
        self.token = Token::Between;
        if self.depth != 1 {
            return;
        }
        let text = if self.overlong { &[] } else { &self.text[..self.text_len] };
        if self.name_next {
            self.field = match text {
                b"type" => Field::Type,
                b"model" => Field::Model,
                b"max_output_tokens" => Field::OutputTokensMax,
                _ => Field::Other,
            };
        } else {
            match self.field {
                Field::Type => self.creates |= text == b"response.create",
                Field::Model => {
                    self.model_len = text.len();
                    self.model[..text.len()].copy_from_slice(text);
                }
                Field::OutputTokensMax | Field::Other => {}
            }
            self.field = Field::Other;
        }
        wipe(&mut self.text);
    }

    fn number_over(&mut self) {
        self.token = Token::Between;
        if self.field == Field::OutputTokensMax && !self.overlong {
            let digits = std::str::from_utf8(&self.text[..self.text_len]).unwrap_or("");
            self.output_tokens_max = digits.parse().ok();
        }
        self.field = Field::Other;
        wipe(&mut self.text);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        wipe(&mut self.text);
        wipe(&mut self.model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = Option<(Option<Vec<u8>>, Option<u64>)>;

    fn read(pieces: &[&[u8]]) -> Read {
        let mut asked = Asked::new();
        for piece in pieces {
            asked.read(piece);
        }
        asked.create().map(|create| (create.model.map(<[u8]>::to_vec), create.output_tokens_max))
    }

    #[test]
    fn creates_are_told_apart_whatever_the_cut() {
        let full = Some((Some(b"m-1".to_vec()), Some(500)));
        let bare = Some((None, None));
        for (message, expected) in [
            (r#"{"type":"response.create","model":"m-1","max_output_tokens":500}"#, full.clone()),
            (r#" { "max_output_tokens" : 500 , "model":"m-1", "type" : "response.create" } "#, full.clone()),
            (
                r#"{"input":[{"type":"x","model":"y"}],"max_output_tokens":500,"model":"m-1","type":"response.create"}"#,
                full,
            ),
            (r#"{"type":"response.create"}"#, bare.clone()),
            (r#"{"\u0074ype":"response\u002ecreate"}"#, bare.clone()),
            (r#"{"type":"session.update","type":"response.create"}"#, bare.clone()),
            (r#"{"type":"response.create","type":"session.update"}"#, bare.clone()),
            (r#"{"input":"\"type\":\"x\\","type":"response.create"}"#, bare.clone()),
            (r#"{"type":"response.create","response":{"model":"inner","max_output_tokens":9}}"#, bare),
            (r#"{"type":"response.cancel","model":"m-1"}"#, None),
            (r#"{"session":{"type":"response.create"}}"#, None),
            (r#"["type","response.create"]"#, None),
            (r#"{"response.create":"type"}"#, None),
            (r#"{"a":"type","b":"response.create"}"#, None),
            ("", None),
        ] {
            let message = message.as_bytes();
            assert_eq!(read(&[message]), expected);
            for cut in 0..message.len() {
                assert_eq!(read(&[&message[..cut], &message[cut..]]), expected);
            }
        }
    }

    #[test]
    fn what_is_too_long_is_nothing() {
        let long = "m".repeat(97);
        let message = format!(r#"{{"type":"response.create","model":"{long}","{long}":1}}"#);
        assert_eq!(read(&[message.as_bytes()]), Some((None, None)));
        let fits = "m".repeat(96);
        let message = format!(r#"{{"type":"response.create","model":"{fits}"}}"#);
        assert_eq!(read(&[message.as_bytes()]), Some((Some(fits.into_bytes()), None)));
    }

    #[test]
    fn nothing_is_left_between_messages() {
        let mut asked = Asked::new();
        asked.read(br#"{"model":"m-1","type":"response.create"}"#);
        asked.clear();
        assert!(asked.create().is_none() && asked.text.iter().chain(&asked.model).all(|byte| *byte == 0));
    }
}
