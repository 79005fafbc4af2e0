//! AWS event stream: binary frames with typed headers. What a frame is called stands in its headers, its payload is JSON.
//! InvokeModel's `chunk` frames hold the model's own JSON once more, in base64; it is decoded a few bytes at a time.
//!
//! Format: <https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html>; lengths and the checksum of a frame's
//! first bytes are checked, the frame's own checksum is not.

use zeroize::Zeroize;

use super::document::Progress;
use super::document::Reader;
use super::json::Paths;
use super::json::Place;
use super::json::Step;
use super::json::Walker;
use super::table::Kind;

/// Total length, length of the headers, checksum of both.
const PRELUDE: usize = 12;
/// The checksum at a frame's end.
const TRAILER: u32 = 4;
/// A frame's maximum: 16 MiB of payload, 128 KiB of headers, and what is around them.
const FRAME_MAX: u32 = 16 * 1024 * 1024 + 128 * 1024 + 16;

const WRAPPED: Paths = Paths::new(&["bytes"]);
const BYTES: Place = WRAPPED.place("bytes");

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Prelude,
    NameLength,
    Name,
    ValueType,
    /// The two bytes of a value's length.
    ValueLength,
    Value,
    Payload,
    Trailer,
}

/// A header of interest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Header {
    MessageType,
    EventType,
    Other,
}

/// Where in a stream of frames we are.
pub(super) struct Frames {
    at: At,
    header: Header,
    /// Documents come wrapped in base64.
    wrapped: bool,
    /// The frame tells of an error.
    exception: bool,
    /// What the frame's headers call it.
    kind: Kind,
    /// Bytes of the prelude or of a length that have come.
    have: u8,
    /// Base64 digits in `bits`.
    digits: u8,
    /// Nothing more may come in the base64 text: it was padded.
    padded: bool,
    /// Bytes left of what `at` says.
    left: u32,
    /// Bytes left of the headers, and of the payload.
    headers_left: u32,
    payload_left: u32,
    bits: u32,
    wrapper: Walker,
}

impl Frames {
    pub(super) const fn new(wrapped: bool) -> Self {
        Self {
            at: At::Prelude,
            header: Header::Other,
            wrapped,
            exception: false,
            kind: Kind::Other,
            have: 0,
            digits: 0,
            padded: false,
            left: 0,
            headers_left: 0,
            payload_left: 0,
            bits: 0,
            wrapper: Walker::new(),
        }
    }

    /// Looks at the next bytes; `false` if they are no such frames.
    pub(super) fn feed(&mut self, reader: &mut Reader, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.at {
                At::Prelude => {
                    let (part, after) = rest.split_at(rest.len().min(PRELUDE - usize::from(self.have)));
                    let first = self.have == 0;
                    self.have += part.len() as u8;
                    rest = after;
                    let whole = reader.document.word(part, first, usize::from(self.have) == PRELUDE);
                    let begun = whole.map(|prelude| self.begin(prelude));
                    if begun == Some(false) {
                        return false;
                    }
                }
                At::NameLength => {
                    self.left = u32::from(rest[0]);
                    if !self.take_header(1 + self.left) {
                        return false;
                    }
                    rest = &rest[1..];
                    self.at = At::Name;
                    _ = reader.document.word(&[], true, false);
                }
                At::Name | At::Value => {
                    let (part, after) = rest.split_at(rest.len().min(self.left as usize));
                    self.left -= part.len() as u32;
                    rest = after;
                    let Some(word) = reader.document.word(part, false, self.left == 0) else { continue };
                    if self.at == At::Name {
                        self.header = match word {
                            b":message-type" => Header::MessageType,
                            b":event-type" => Header::EventType,
                            _ => Header::Other,
                        };
                        self.at = At::ValueType;
                    } else {
                        match self.header {
                            Header::MessageType => self.exception |= matches!(word, b"exception" | b"error"),
                            Header::EventType => self.kind = reader.table.kind_of(word),
                            Header::Other => {}
                        }
                        self.after_value();
                    }
                    reader.document.clear_word();
                }
                At::ValueType => {
                    let length = match rest[0] {
                        0 | 1 => 0,
                        2 => 1,
                        3 => 2,
                        4 => 4,
                        5 | 8 => 8,
                        9 => 16,
                        6 | 7 => 2,
                        _ => return false,
                    };
                    if !self.take_header(1 + length) {
                        return false;
                    }
                    self.left = length;
                    self.have = 0;
                    if rest[0] < 6 || rest[0] > 7 {
                        self.header = Header::Other;
                        self.at = At::Value;
                        _ = reader.document.word(&[], true, false);
                    } else {
                        self.left = 0;
                        self.at = At::ValueLength;
                    }
                    rest = &rest[1..];
                    if length == 0 {
                        self.after_value();
                    }
                }
                At::ValueLength => {
                    self.left = self.left << 8 | u32::from(rest[0]);
                    self.have += 1;
                    rest = &rest[1..];
                    if self.have == 2 {
                        if !self.take_header(self.left) {
                            return false;
                        }
                        self.at = At::Value;
                        _ = reader.document.word(&[], true, false);
                        if self.left == 0 {
                            self.after_value();
                        }
                    }
                }
                At::Payload => {
                    let (part, after) = rest.split_at(rest.len().min(self.payload_left as usize));
                    self.payload_left -= part.len() as u32;
                    rest = after;
                    if self.wrapped {
                        self.unwrap(reader, part);
                    } else {
                        super::document(reader, part);
                    }
                    if self.payload_left == 0 {
                        self.end(reader);
                    }
                }
                At::Trailer => {
                    let skipped = rest.len().min(self.left as usize);
                    self.left -= skipped as u32;
                    rest = &rest[skipped..];
                    if self.left == 0 {
                        self.at = At::Prelude;
                        self.have = 0;
                    }
                }
            }
            if self.at == At::Payload && self.payload_left == 0 {
                self.end(reader);
            }
        }
        true
    }

    /// The prelude is complete.
    fn begin(&mut self, prelude: &[u8]) -> bool {
        let [total, headers, checksum] = [0, 4, 8].map(|at| {
            let mut four = [0; 4];
            four.copy_from_slice(&prelude[at..at + 4]);
            u32::from_be_bytes(four)
        });
        let around = PRELUDE as u32 + TRAILER;
        if checksum != crc32(&prelude[..8]) || total > FRAME_MAX || total < around || headers > total - around {
            return false;
        }
        self.headers_left = headers;
        self.payload_left = total - around - headers;
        self.kind = Kind::Other;
        self.exception = false;
        self.after_value();
        true
    }

    /// Takes so many bytes off the headers; `false` if there are not so many.
    fn take_header(&mut self, length: u32) -> bool {
        match self.headers_left.checked_sub(length) {
            Some(left) => self.headers_left = left,
            None => return false,
        }
        true
    }

    fn after_value(&mut self) {
        self.at = if self.headers_left > 0 { At::NameLength } else { At::Payload };
    }

    /// The payload is complete.
    fn end(&mut self, reader: &mut Reader) {
        if self.wrapped {
            self.wrapper.restart();
            self.begin_text();
        }
        if self.exception {
            reader.totals.failed = true;
            reader.restart();
        } else {
            reader.end(self.kind);
        }
        self.at = At::Trailer;
        self.left = TRAILER;
    }

    /// Part of a payload that holds base64.
    fn unwrap(&mut self, reader: &mut Reader, part: &[u8]) {
        let mut rest = part;
        loop {
            // Taken out so that the text, which may stand in the wrapper, can be decoded into the reader.
            match self.wrapper.next(&WRAPPED, &mut rest) {
                Step::More => return,
                Step::Broken => {
                    reader.walker.give_up();
                    return;
                }
                Step::Text { place: BYTES, piece, first, .. } => {
                    if first {
                        // Of two, the later one counts.
                        reader.restart();
                        self.bits.zeroize();
                        self.digits = 0;
                        self.padded = false;
                    }
                    decode(reader, piece, &mut self.bits, &mut self.digits, &mut self.padded);
                }
                Step::Enter { place: BYTES, .. }
                | Step::Number { place: BYTES, .. }
                | Step::True { place: BYTES }
                | Step::False { place: BYTES }
                | Step::Null { place: BYTES } => reader.restart(),
                _ => {}
            }
        }
    }

    fn begin_text(&mut self) {
        self.bits.zeroize();
        self.digits = 0;
        self.padded = false;
    }
}

/// Decodes a piece of base64 into the reader's document, a few bytes at a time.
fn decode(reader: &mut Reader, piece: &[u8], bits: &mut u32, digits: &mut u8, padded: &mut bool) {
    let mut plain = [0; 192];
    for part in piece.chunks(plain.len() / 3 * 4) {
        let mut length = 0;
        for byte in part {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' => {
                    *padded = true;
                    continue;
                }
                _ => {
                    reader.walker.give_up();
                    break;
                }
            };
            if *padded {
                reader.walker.give_up();
                break;
            }
            *bits = *bits << 6 | u32::from(value);
            *digits += 1;
            if *digits > 1 {
                plain[length] = (*bits >> (8 - 2 * u32::from(*digits))) as u8;
                length += 1;
            }
            *digits %= 4;
        }
        let mut rest = &plain[..length];
        while reader.read(&mut rest) == Progress::Done {}
    }
    plain.zeroize();
}

/// CRC-32 as in Ethernet and zip, over the few bytes of a prelude.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (crc & 1).wrapping_neg() & 0xEDB8_8320;
        }
    }
    !crc
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.bits.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }
}
