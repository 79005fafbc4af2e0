//! Server-sent events, cut into documents.
//!
//! As the HTML standard has it: lines end in LF, CRLF or CR; a byte order mark may come first; `data:` lines of one event
//! are joined by a newline. `event:` names the kind of an event whose document does not. Unlike there, a last event
//! without its blank line counts if it is complete, and so does a last line without its end.

use super::document::Progress;
use super::document::Reader;
use super::table::Kind;

/// What ends the stream of OpenAI's chat form.
const DONE: &[u8] = b"[DONE]";
/// [`Events::done`] of an event whose data may be a document.
const JSON: u8 = u8::MAX;
/// The same, of one whose data is neither: a document does not begin with `[` here.
const NEITHER: u8 = u8::MAX - 1;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Where in a line we are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the first line: in its byte order mark, so many bytes.
    Mark(u8),
    Begin,
    /// In the field's name.
    Field,
    /// After `data:`.
    DataBegin,
    Data,
    /// After `event:`.
    EventBegin,
    Event,
    /// In a comment, or in a field of no interest.
    Rest,
}

/// Where in a stream of events we are.
pub(super) struct Events {
    at: At,
    /// The last byte was CR, and LF may follow.
    after_cr: bool,
    /// The event has had a `data:` line.
    data: bool,
    /// How much of [`DONE`] the event's data is.
    done: u8,
    /// What the event's `event:` line says.
    kind: Kind,
    /// How much of the field's name has come.
    field_length: u8,
    /// Its first bytes: those of the longest of interest, and one more.
    field: [u8; 6],
}

impl Events {
    pub(super) const fn new() -> Self {
        Self {
            at: At::Mark(0),
            after_cr: false,
            data: false,
            done: 0,
            kind: Kind::Other,
            field_length: 0,
            field: [0; 6],
        }
    }

    /// Looks at the next bytes.
    pub(super) fn feed(&mut self, reader: &mut Reader, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                rest = &rest[1..];
                continue;
            }
            match self.at {
                At::Begin => {
                    if let Some(data) = rest.strip_prefix(b"data: ") {
                        self.begin_data(reader);
                        self.at = At::Data;
                        rest = data;
                    } else if matches!(byte, b'\n' | b'\r') {
                        self.end_of_event(reader);
                        self.after_cr = byte == b'\r';
                        rest = &rest[1..];
                    } else {
                        self.field_length = 0;
                        self.at = At::Field;
                    }
                }
                At::Data => {
                    let end = memchr::memchr2(b'\n', b'\r', rest);
                    self.data(reader, &rest[..end.unwrap_or(rest.len())]);
                    rest = self.after_line(rest, end);
                }
                At::Rest => rest = self.after_line(rest, memchr::memchr2(b'\n', b'\r', rest)),
                At::Event => {
                    let end = memchr::memchr2(b'\n', b'\r', rest);
                    // The walker is between two tokens here, so nothing else is in need of the word.
                    let word = reader.document.word(&rest[..end.unwrap_or(rest.len())], false, end.is_some());
                    if let Some(word) = word {
                        self.kind = reader.table.kind_of(word);
                        reader.document.clear_word();
                    }
                    rest = self.after_line(rest, end);
                }
                At::DataBegin | At::EventBegin => {
                    if self.at == At::DataBegin {
                        self.begin_data(reader);
                        self.at = At::Data;
                    } else {
                        _ = reader.document.word(&[], true, false);
                        self.at = At::Event;
                    }
                    if byte == b' ' {
                        rest = &rest[1..];
                    }
                }
                At::Field => match byte {
                    b':' => {
                        self.at = match self.field.get(..usize::from(self.field_length)) {
                            Some(b"data") => At::DataBegin,
                            Some(b"event") => At::EventBegin,
                            _ => At::Rest,
                        };
                        rest = &rest[1..];
                    }
                    b'\n' | b'\r' => {
                        // A name without a colon is a field with nothing in it.
                        match self.field.get(..usize::from(self.field_length)) {
                            Some(b"data") => self.begin_data(reader),
                            Some(b"event") => self.kind = Kind::Other,
                            _ => {}
                        }
                        rest = self.after_line(rest, Some(0));
                    }
                    _ => {
                        match self.field.get_mut(usize::from(self.field_length)) {
                            Some(place) => {
                                *place = byte;
                                self.field_length += 1;
                            }
                            None => self.at = At::Rest,
                        }
                        rest = &rest[1..];
                    }
                },
                At::Mark(matched) => {
                    if BYTE_ORDER_MARK.get(usize::from(matched)) == Some(&byte) {
                        self.at = if matched == 2 { At::Begin } else { At::Mark(matched + 1) };
                        rest = &rest[1..];
                    } else {
                        // Part of a mark belongs to the name of a field, which is then none of interest.
                        self.at = if matched == 0 { At::Begin } else { At::Rest };
                    }
                }
            }
        }
    }

    /// The bytes have ended, well or not.
    pub(super) fn finish(&mut self, reader: &mut Reader) {
        match self.at {
            At::Event => {
                if let Some(word) = reader.document.word(&[], false, true) {
                    self.kind = reader.table.kind_of(word);
                }
            }
            At::EventBegin => self.kind = Kind::Other,
            _ => {}
        }
        reader.document.clear_word();
        self.end_of_event(reader);
    }

    /// What follows the line's end, if it has come.
    #[inline]
    fn after_line<'b>(&mut self, rest: &'b [u8], end: Option<usize>) -> &'b [u8] {
        let Some(end) = end else { return &[] };
        self.at = At::Begin;
        self.after_cr = rest.get(end) == Some(&b'\r');
        rest.get(end + 1..).unwrap_or_default()
    }

    /// A `data:` line begins.
    #[inline]
    fn begin_data(&mut self, reader: &mut Reader) {
        if std::mem::replace(&mut self.data, true) {
            // No string and no `[DONE]` has a newline in it.
            if reader.walker.in_string() {
                reader.walker.give_up();
            }
            self.data(reader, b"\n");
        }
    }

    /// Part of an event's data.
    #[inline]
    fn data(&mut self, reader: &mut Reader, bytes: &[u8]) {
        let mut rest = bytes;
        if self.done == JSON {
            while reader.read(&mut rest) == Progress::Done {}
            return;
        }
        for byte in bytes {
            match DONE.get(usize::from(self.done)) {
                Some(wanted) if wanted == byte => self.done += 1,
                Some(_) if self.done == 0 => {
                    self.done = JSON;
                    return self.data(reader, bytes);
                }
                Some(_) => self.done = NEITHER,
                // Complete, or neither.
                None => return,
            }
        }
    }

    /// The event is over.
    #[inline]
    fn end_of_event(&mut self, reader: &mut Reader) {
        if self.data {
            if usize::from(self.done) == DONE.len() {
                reader.totals.done = true;
            }
            reader.end(self.kind);
            self.data = false;
            self.done = 0;
        }
        self.kind = Kind::Other;
    }
}
