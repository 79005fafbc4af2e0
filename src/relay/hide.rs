//! Takes out of a stream of OpenAI's chat events what is there only because nullhop asked for usage: the one extra event,
//! and `"usage":null` in the others.
//!
//! The client did not ask, so it must see what it would have seen. [`Filter`] reads the events as they pass and splits
//! pieces off around what goes; nothing is copied but the end of a piece that may be the beginning of the extra event,
//! and of that at most [`HELD_BYTES_MAX`]. An event that turns out to be another one goes on at once. What is not a
//! stream of events, or no JSON, passes as it is.

use std::collections::VecDeque;

use crate::hygiene::Chunk;
use crate::hygiene::wipe::wipe;

/// The longest event that is taken out. The extra event has some 500 bytes; a longer one is none.
pub(super) const HELD_BYTES_MAX: usize = 4096;

/// One answer's filter.
pub(super) struct Filter {
    reader: Reader,
    /// What has come and is not decided: the end of the pieces so far. Cleared when it is.
    held: Vec<u8>,
    /// Where `held` begins in the stream.
    held_at: u64,
    /// What the reader decided on the piece at hand.
    marks: Vec<Mark>,
}

/// The bytes from the last mark to `end` stay or go.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark {
    end: u64,
    stays: bool,
}

impl Filter {
    /// At the beginning of an answer of the type `text/event-stream`.
    pub(super) fn new() -> Self {
        Self { reader: Reader::new(), held: Vec::new(), held_at: 0, marks: Vec::new() }
    }

    /// Takes the next piece in and puts what goes on into `out`.
    pub(super) fn push(&mut self, chunk: Chunk, out: &mut VecDeque<Chunk>) {
        let mut marks = std::mem::take(&mut self.marks);
        for byte in chunk.as_slice() {
            self.reader.read(*byte, &mut marks);
        }
        self.reader.settle(&mut marks);
        let mut rest = Some(chunk);
        for mark in marks.drain(..) {
            self.apply(mark, &mut rest, out);
        }
        self.marks = marks;
        if let Some(tail) = rest.filter(|tail| !tail.as_slice().is_empty()) {
            self.held.extend_from_slice(tail.as_slice());
        }
    }

    /// The answer has ended well: what is held goes on, unless it is the extra event without its blank line.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Chunk>) {
        let end = self.held_at + self.held.len() as u64;
        let mark = Mark { end, stays: !self.reader.is_extra() };
        self.apply(mark, &mut None, out);
    }

    fn apply(&mut self, mark: Mark, rest: &mut Option<Chunk>, out: &mut VecDeque<Chunk>) {
        let mut len = usize::try_from(mark.end - self.held_at).unwrap_or(usize::MAX);
        self.held_at = mark.end;
        let from_held = len.min(self.held.len());
        if from_held > 0 {
            if mark.stays {
                out.push_back(Chunk::copied(&self.held[..from_held]));
            }
            self.held.copy_within(from_held.., 0);
            let left = self.held.len() - from_held;
            wipe(&mut self.held[left..]);
            self.held.truncate(left);
            len -= from_held;
        }
        let Some(chunk) = rest else { return };
        if len == 0 {
            return;
        }
        if len >= chunk.as_slice().len() {
            let all = rest.take().filter(|_| mark.stays);
            out.extend(all);
        } else {
            // Dropped here if it goes, and cleared with that.
            let part = chunk.split_to(len);
            out.extend(Some(part).filter(|_| mark.stays));
        }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        wipe(&mut self.held);
    }
}

/// Reads a stream of events byte by byte and says what stays and what goes.
struct Reader {
    /// Bytes read so far.
    at: u64,
    /// Everything before this is marked.
    marked: u64,
    line: Line,
    /// The last byte was a carriage return, which a line feed may follow as a part of the same line end.
    after_return: bool,
    /// Whether that line end ended an event that went.
    return_went: bool,
    event: Event,
}

/// Where in a line it stands.
#[derive(Clone, Copy)]
enum Line {
    /// In the byte order mark that a stream may begin with: bytes of it so far.
    Mark(u8),
    Start,
    Comment,
    /// In a field's name: which ones it may still be, and its length.
    Name {
        fields: u8,
        len: usize,
    },
    /// After `data:`, where one space does not belong to the data.
    DataStart,
    Data,
    /// In the value of another field.
    Value,
}

/// The fields that the format knows (WHATWG HTML, section 9.2.6). A line with another name shows that this is no such
/// stream, or one that is not OpenAI's.
const FIELDS: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];

struct Event {
    start: u64,
    /// Whether a line of it that is no comment has begun.
    begun: bool,
    /// It is not the extra event, so what is read of it goes on.
    passes: bool,
    /// Lines of data so far.
    lines: u32,
    json: Json,
}

impl Reader {
    fn new() -> Self {
        Self {
            at: 0,
            marked: 0,
            line: Line::Mark(0),
            after_return: false,
            return_went: false,
            event: Event { start: 0, begun: false, passes: false, lines: 0, json: Json::new() },
        }
    }

    fn read(&mut self, byte: u8, marks: &mut Vec<Mark>) {
        let place = self.at;
        self.at += 1;
        if std::mem::take(&mut self.after_return) && byte == b'\n' {
            // The second half of a line end. It goes where the first half went.
            if place == self.event.start {
                self.event.start = self.at;
                self.mark(self.at, !self.return_went, marks);
            }
            return;
        }
        if byte == b'\n' || byte == b'\r' {
            self.after_return = byte == b'\r';
            self.line_end(marks);
            return;
        }
        match &mut self.line {
            Line::Mark(seen) => {
                const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
                if byte == BYTE_ORDER_MARK[usize::from(*seen)] {
                    *seen += 1;
                    if *seen == 3 {
                        self.line = Line::Start;
                        self.event.start = self.at;
                        self.mark(self.at, true, marks);
                    }
                } else if *seen == 0 {
                    self.line_start(byte);
                } else {
                    self.event.begun = true;
                    self.event.passes = true;
                    self.line = Line::Value;
                }
            }
            Line::Start => self.line_start(byte),
            Line::Comment | Line::Value => {}
            Line::Name { fields, len } => {
                if byte == b':' {
                    self.name_end(true);
                } else {
                    *fields = narrowed(*fields, *len, byte);
                    *len += 1;
                    if *fields == 0 {
                        self.event.passes = true;
                        self.line = Line::Value;
                    }
                }
            }
            Line::DataStart => {
                self.line = Line::Data;
                if byte != b' ' {
                    self.event.json.read(byte, place);
                }
            }
            Line::Data => self.event.json.read(byte, place),
        }
        if self.event.json.removable.is_some() {
            self.take_out(marks);
        }
        let held = self.at - self.event.start;
        if !self.event.passes && (self.event.json.is_not_extra() || held > HELD_BYTES_MAX as u64) {
            self.event.passes = true;
        }
    }

    fn line_start(&mut self, byte: u8) {
        if byte == b':' {
            self.line = Line::Comment;
            return;
        }
        self.event.begun = true;
        let fields = narrowed(0b1111, 0, byte);
        self.line = if fields == 0 {
            self.event.passes = true;
            Line::Value
        } else {
            Line::Name { fields, len: 1 }
        };
    }

    /// A field's name is over, by a colon or by the end of its line.
    fn name_end(&mut self, colon: bool) {
        let Line::Name { fields, len } = self.line else { return };
        let whole = FIELDS.iter().enumerate().find(|(place, name)| fields & 1 << place != 0 && name.len() == len);
        match whole {
            None => self.event.passes = true,
            Some((0, _)) => {
                if self.event.lines > 0 {
                    self.event.json.line_break();
                }
                self.event.lines += 1;
            }
            Some(_) => {}
        }
        self.line = match whole {
            Some((0, _)) if colon => Line::DataStart,
            _ => Line::Value,
        };
    }

    fn line_end(&mut self, marks: &mut Vec<Mark>) {
        self.event.json.line_end();
        let blank = matches!(self.line, Line::Start | Line::Mark(0));
        if matches!(self.line, Line::Name { .. }) {
            self.name_end(false);
        }
        let comment = matches!(self.line, Line::Comment);
        self.line = Line::Start;
        if blank {
            let went = self.is_extra();
            self.mark(self.at, !went, marks);
            self.return_went = went;
            self.event = Event { start: self.at, begun: false, passes: false, lines: 0, json: Json::new() };
        } else if comment && !self.event.begun {
            // A sign of life in front of an event; it is not kept waiting.
            self.mark(self.at, true, marks);
            self.return_went = false;
            self.event.start = self.at;
        } else if !self.event.passes && self.at - self.event.start > HELD_BYTES_MAX as u64 {
            self.event.passes = true;
        }
    }

    /// Whether the event so far is the extra one, if it ends here.
    fn is_extra(&self) -> bool {
        !self.event.passes && self.event.lines > 0 && self.event.json.is_extra()
    }

    /// A member is to go.
    fn take_out(&mut self, marks: &mut Vec<Mark>) {
        let Some((start, end)) = self.event.json.removable.take() else { return };
        self.event.passes = true;
        self.mark(start, true, marks);
        self.mark(end, false, marks);
    }

    /// The end of a piece: what passes for certain goes on.
    fn settle(&mut self, marks: &mut Vec<Mark>) {
        if self.event.passes {
            let end = self.event.json.undecided().map_or(self.at, |start| start.min(self.at));
            self.mark(end, true, marks);
        }
    }

    fn mark(&mut self, end: u64, stays: bool, marks: &mut Vec<Mark>) {
        if end <= self.marked {
            return;
        }
        self.marked = end;
        match marks.last_mut() {
            // Neighbours with one fate are one piece.
            Some(last) if last.stays == stays => last.end = end,
            _ => marks.push(Mark { end, stays }),
        }
    }
}

/// Which of the fields in `fields` have `byte` at the place `len`.
fn narrowed(fields: u8, len: usize, byte: u8) -> u8 {
    let has = |place: usize| fields & 1 << place != 0 && FIELDS[place].get(len) == Some(&byte);
    (0..FIELDS.len()).filter(|place| has(*place)).fold(0, |all, place| all | 1 << place)
}

/// Follows one JSON object as far as its own members `choices` and `usage`.
struct Json {
    at: At,
    member: Member,
    /// Where the member begins: its comma, or its key if it is the first one. `None`: a line ended since.
    member_start: Option<u64>,
    first: bool,
    choices: Choices,
    usage: Usage,
    /// A first member `"usage":null` from here on, which goes together with the comma after it.
    waits_for_comma: Option<(u64, u64)>,
    /// What is to be taken out now.
    removable: Option<(u64, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// In front of the root.
    Before,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After a comma: a key.
    Key,
    /// In a key; how much of which name it may be.
    InKey {
        len: usize,
        escape: bool,
    },
    Colon,
    Value,
    /// In a number or a word; letters of `null` so far, or [`NOT_NULL`].
    Word(u8),
    Text {
        escape: bool,
    },
    /// In an array or an object of a member.
    Deep {
        depth: u32,
        text: bool,
        escape: bool,
    },
    /// After a value: a comma or `}`.
    After,
    Done,
    /// No object, or none that can be read.
    Bad,
}

const NOT_NULL: u8 = u8::MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Member {
    Choices,
    Usage,
    Other,
    /// The key is not over: which of the two it may be.
    Maybe {
        choices: bool,
        usage: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choices {
    Unseen,
    Empty,
    /// Not empty, or no array.
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Usage {
    Unseen,
    Object,
    /// `null` or something else.
    None,
}

impl Json {
    fn new() -> Self {
        Self {
            at: At::Before,
            member: Member::Other,
            member_start: None,
            first: true,
            choices: Choices::Unseen,
            usage: Usage::Unseen,
            waits_for_comma: None,
            removable: None,
        }
    }

    fn is_extra(&self) -> bool {
        self.at == At::Done && self.choices == Choices::Empty && self.usage == Usage::Object
    }

    fn is_not_extra(&self) -> bool {
        self.at == At::Bad
            || self.choices == Choices::Full
            || self.usage == Usage::None
            || (self.at == At::Done && !self.is_extra())
    }

    /// From where on it is not known whether a member goes.
    fn undecided(&self) -> Option<u64> {
        if let Some((start, _)) = self.waits_for_comma {
            return Some(start);
        }
        let may_be_usage = match self.at {
            At::Key => true,
            At::InKey { .. } => matches!(self.member, Member::Maybe { usage: true, .. }),
            At::Colon | At::Value => self.member == Member::Usage,
            At::Word(letters) => self.member == Member::Usage && letters != NOT_NULL,
            _ => false,
        };
        self.member_start.filter(|_| may_be_usage)
    }

    /// A line ended; the data may go on in another one.
    fn line_end(&mut self) {
        self.member_start = None;
        self.waits_for_comma = None;
    }

    /// Between two lines of data stands a line feed.
    fn line_break(&mut self) {
        self.read(b'\n', 0);
        self.member_start = None;
    }

    fn read(&mut self, byte: u8, place: u64) {
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        // A member that is longer than this is no `"usage":null` worth waiting for.
        if self.member_start.is_some_and(|start| place > start + MEMBER_BYTES_MAX) {
            self.member_start = None;
        }
        if self.waits_for_comma.is_some_and(|(start, _)| place > start + MEMBER_BYTES_MAX) {
            self.waits_for_comma = None;
        }
        match &mut self.at {
            At::Before if space => {}
            At::Before => self.at = if byte == b'{' { At::FirstKey } else { At::Bad },
            At::FirstKey | At::Key if space => {}
            At::FirstKey if byte == b'}' => self.at = At::Done,
            At::FirstKey | At::Key if byte == b'"' => {
                if self.at == At::FirstKey {
                    self.member_start = Some(place);
                }
                self.member = Member::Maybe { choices: true, usage: true };
                self.at = At::InKey { len: 0, escape: false };
            }
            At::FirstKey | At::Key => self.at = At::Bad,
            At::InKey { len, escape } => {
                if *escape {
                    *escape = false;
                } else if byte == b'\\' {
                    // The two names need no escapes, and nobody writes them with any.
                    self.member = Member::Other;
                    *escape = true;
                } else if byte == b'"' {
                    self.member = match self.member {
                        Member::Maybe { choices: true, .. } if *len == CHOICES.len() => Member::Choices,
                        Member::Maybe { usage: true, .. } if *len == USAGE.len() => Member::Usage,
                        _ => Member::Other,
                    };
                    self.at = At::Colon;
                } else if let Member::Maybe { choices, usage } = &mut self.member {
                    *choices &= CHOICES.get(*len) == Some(&byte);
                    *usage &= USAGE.get(*len) == Some(&byte);
                    if !*choices && !*usage {
                        self.member = Member::Other;
                    }
                    *len += 1;
                }
            }
            At::Colon if space => {}
            At::Colon => self.at = if byte == b':' { At::Value } else { At::Bad },
            At::Value if space => {}
            At::Value => self.value(byte),
            At::Word(letters) => match byte {
                b',' | b'}' => self.value_end(byte, place),
                _ if space => self.value_end(byte, place),
                _ if *letters < 4 && byte == NULL[usize::from(*letters)] => *letters += 1,
                _ => {
                    *letters = NOT_NULL;
                    self.scalar();
                }
            },
            At::Text { escape } => match byte {
                _ if *escape => *escape = false,
                b'\\' => *escape = true,
                b'"' => self.at = At::After,
                _ => {}
            },
            At::Deep { depth, text, escape } => {
                if *text {
                    match byte {
                        _ if *escape => *escape = false,
                        b'\\' => *escape = true,
                        b'"' => *text = false,
                        _ => {}
                    }
                    return;
                }
                match byte {
                    b'"' => *text = true,
                    b'[' | b'{' => *depth += 1,
                    b']' | b'}' => *depth -= 1,
                    _ => {}
                }
                let over = *depth == 0;
                if self.member == Member::Choices && !space && !over {
                    self.choices = Choices::Full;
                }
                if over {
                    self.at = At::After;
                }
            }
            At::After if space => {}
            At::After => self.after(byte, place),
            At::Done if space => {}
            At::Done => self.at = At::Bad,
            At::Bad => {}
        }
    }

    /// The first byte of a member's value.
    fn value(&mut self, byte: u8) {
        match (self.member, byte) {
            // A second array replaces the first; one that is full stays so.
            (Member::Choices, b'[') if self.choices == Choices::Unseen => self.choices = Choices::Empty,
            (Member::Choices, b'[') => {}
            (Member::Choices, _) => self.choices = Choices::Full,
            (Member::Usage, b'{') if self.usage == Usage::Unseen => self.usage = Usage::Object,
            (Member::Usage, b'{' | b'n') => {}
            (Member::Usage, _) => self.usage = Usage::None,
            _ => {}
        }
        self.at = match byte {
            b'"' => At::Text { escape: false },
            b'[' | b'{' => At::Deep { depth: 1, text: false, escape: false },
            b'n' => At::Word(1),
            b']' | b'}' | b',' | b':' => At::Bad,
            _ => At::Word(NOT_NULL),
        };
    }

    /// A word that is not `null`.
    fn scalar(&mut self) {
        if self.member == Member::Usage {
            self.usage = Usage::None;
        }
    }

    /// A number or a word has ended in front of `byte`.
    fn value_end(&mut self, byte: u8, place: u64) {
        let null = self.at == At::Word(NULL.len() as u8);
        self.at = At::After;
        if self.member == Member::Usage {
            self.usage = Usage::None;
            if null && let Some(start) = self.member_start.take() {
                if self.first {
                    self.waits_for_comma = Some((start, place));
                } else {
                    self.removable = Some((start, place));
                }
            }
        }
        if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            self.after(byte, place);
        }
    }

    /// What comes after a value.
    fn after(&mut self, byte: u8, place: u64) {
        let waiting = self.waits_for_comma.take();
        match byte {
            b',' => {
                self.at = At::Key;
                if let Some((start, _)) = waiting {
                    // With the comma, so that the next member is the first one.
                    self.removable = Some((start, place + 1));
                    self.at = At::FirstKey;
                    self.member_start = None;
                } else {
                    self.first = false;
                    self.member_start = Some(place);
                }
            }
            b'}' => {
                self.at = At::Done;
                if let Some(span) = waiting {
                    self.removable = Some(span);
                }
            }
            _ => self.at = At::Bad,
        }
    }
}

const CHOICES: &[u8] = b"choices";
const USAGE: &[u8] = b"usage";
const NULL: &[u8] = b"null";

/// More than `, "usage" : null` with generous white space.
const MEMBER_BYTES_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of a stream that arrives in pieces with these ends.
    fn filtered(stream: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut filter = Filter::new();
        let mut out = VecDeque::new();
        let mut passed = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([stream.len()]) {
            if end <= start {
                continue;
            }
            filter.push(Chunk::copied(&stream[start..end]), &mut out);
            assert!(filter.held.len() <= HELD_BYTES_MAX, "{} bytes held", filter.held.len());
            start = end;
            for chunk in out.drain(..) {
                assert!(!chunk.as_slice().is_empty());
                passed.extend_from_slice(chunk.as_slice());
            }
        }
        filter.finish(&mut out);
        out.iter().for_each(|chunk| passed.extend_from_slice(chunk.as_slice()));
        passed
    }

    const EXTRA: &str = concat!(
        "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,",
        "\"completion_tokens\":2,\"total_tokens\":11,\"prompt_tokens_details\":{\"cached_tokens\":0}}}"
    );

    #[test]
    fn an_openai_stream_looks_as_if_nobody_had_asked() {
        let plain = "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}],\"obfuscation\":\"aX3\"}\n\n\
                     data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
                     data: [DONE]\n\n";
        let asked = format!(
            "data: {{\"id\":\"c1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"Hi\"}}}}],\"usage\":null,\"obfuscation\":\"aX3\"}}\n\n\
             data: {{\"id\":\"c1\",\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}],\"usage\":null}}\n\n\
             {EXTRA}\n\ndata: [DONE]\n\n"
        );
        for cut in 0..asked.len() {
            assert_eq!(String::from_utf8(filtered(asked.as_bytes(), &[cut])).unwrap(), plain, "{cut}");
        }
        let every: Vec<usize> = (0..asked.len()).collect();
        assert_eq!(String::from_utf8(filtered(asked.as_bytes(), &every)).unwrap(), plain);
    }

    #[test]
    fn only_the_extra_event_goes() {
        let long = format!("data: {{\"choices\":[],\"usage\":{{\"x\":\"{}\"}}}}\n\n", "y".repeat(HELD_BYTES_MAX));
        for (stream, wanted) in [
            (format!("{EXTRA}\n\n"), ""),
            (format!("{EXTRA}\r\n\r\nx"), "x"),
            (format!("{EXTRA}\r\r: x"), ": x"),
            (format!("\u{feff}{EXTRA}\n\n"), "\u{feff}"),
            // Without its blank line it counts for a client that is not strict.
            (EXTRA.to_owned(), ""),
            (format!("{EXTRA}\n"), ""),
            (format!("event: message\nid: 5\n{EXTRA}\nretry: 3\n\ndata: x\n\n"), "data: x\n\n"),
            (format!(": KEEP\n{EXTRA}\n\n"), ": KEEP\n"),
            ("data:{\"usage\":{},\"choices\":[ ]}\n\n".to_owned(), ""),
            ("data: {\"choices\":[],\ndata: \"usage\":{}}\n\n".to_owned(), ""),
        ] {
            assert_eq!(String::from_utf8(filtered(stream.as_bytes(), &[])).unwrap(), wanted, "{stream:?}");
        }
        for stream in [
            // Azure's first event.
            "data: {\"choices\":[],\"id\":\"\",\"prompt_filter_results\":[{\"prompt_index\":0}]}\n\n",
            "data: {\"choices\":[{\"delta\":{}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"a\":{\"choices\":[],\"usage\":{}}}\n\n",
            "data: {\"a\":\"{\\\"choices\\\":[],\\\"usage\\\":{}}\"}\n\n",
            "data: {\"choices\":{},\"usage\":{}}\n\n",
            "data: {\"choices\":[],\"usage\":[]}\n\n",
            "data: {\"choices\":[],\"usage\":{}}x\n\n",
            "data: {\"choices\":[],\"usage\":{}\n\n",
            "data: {\"choices\":[],\"usage\":{}}\ndata: x\n\n",
            "data: {\"choices\":[null],\"usage\":{}}\n\n",
            "data: {\"choices\":[0],\"usage\":{}}\n\n",
            "data: [{\"choices\":[],\"usage\":{}}]\n\n",
            "data: {\"error\":{\"message\":\"x\",\"usage\":null}}\n\n",
            "data: {\"x\":[{\"usage\":null}]}\n\n",
            "data: {\"usages\":null,\"usag\":null,\"us\\u0061ge\":null}\n\n",
            "data: {\"usage\":nulls,\"choices\":[]}\n\n",
            "data: {\"a\":1,\ndata: \"usage\":null}\n\n",
            "data: {\"usage\":\ndata: null,\"a\":1}\n\n",
            "data\n\ndata:\n\n",
            "{\"choices\":[],\"usage\":{}}\n\n",
            "{\"choices\":[],\"usage\":{}}",
            "data: {\"choi",
            "data: {\"choices\":[],\"usage\":{\"x\":1",
            "\n\n\r\n\r\r\n",
            "",
            "\u{feff}",
            "<html>data: {\"choices\":[],\"usage\":{}}</html>",
            &long,
        ] {
            let every: Vec<usize> = (0..stream.len()).collect();
            for cuts in [&[][..], &every[..]] {
                let passed = filtered(stream.as_bytes(), cuts);
                assert_eq!(String::from_utf8_lossy(&passed), stream);
            }
        }
    }

    #[test]
    fn usage_null_goes_with_one_comma() {
        for (stream, wanted) in [
            ("{\"a\":1,\"usage\":null}", "{\"a\":1}"),
            ("{\"a\":1 , \"usage\" : null }", "{\"a\":1  }"),
            ("{\"a\":1,\"usage\":null,\"b\":2}", "{\"a\":1,\"b\":2}"),
            ("{\"usage\":null,\"b\":2}", "{\"b\":2}"),
            ("{\"usage\":null , \"b\":2}", "{ \"b\":2}"),
            ("{\"usage\":null}", "{}"),
            ("{\"choices\":[],\"moderation\":{},\"usage\":null}", "{\"choices\":[],\"moderation\":{}}"),
        ] {
            let stream = format!("data: {stream}\r\n\r\n");
            let every: Vec<usize> = (0..stream.len()).collect();
            for cuts in [&[][..], &every[..]] {
                let passed = String::from_utf8(filtered(stream.as_bytes(), cuts)).unwrap();
                assert_eq!(passed, format!("data: {wanted}\r\n\r\n"), "{stream}");
            }
        }
    }

    #[test]
    fn what_cannot_be_it_is_not_kept_waiting() {
        let mut filter = Filter::new();
        let mut out = VecDeque::new();
        let mut text = |filter: &mut Filter, piece: &str| {
            filter.push(Chunk::copied(piece.as_bytes()), &mut out);
            let passed: Vec<u8> = out.drain(..).flat_map(|chunk| chunk.as_slice().to_vec()).collect();
            String::from_utf8(passed).unwrap()
        };
        for (piece, wanted) in [
            (": keep-alive\n", ": keep-alive\n"),
            ("data: {\"id\":\"x\",\"choi", ""),
            (
                "ces\":[{\"delta\":{\"content\":\"a long",
                "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"a long",
            ),
            (" text\"}}]", " text\"}}]"),
            (",\"usa", ""),
            ("ges\":1", ",\"usages\":1"),
            ("}\n", "}\n"),
            ("\ndata: [DO", "\ndata: [DO"),
            ("NE]\n\n", "NE]\n\n"),
            ("event: x", ""),
            ("\ndata: {\"choices\":[],\"usage\":{}}\n", ""),
            ("\n: there\n\n", ": there\n\n"),
        ] {
            assert_eq!(text(&mut filter, piece), wanted, "{piece:?}");
        }
    }

    /// The same by reading the whole stream at once, with another reader of JSON.
    fn naive(stream: &[u8]) -> Vec<u8> {
        let mut lines: Vec<(&[u8], &[u8])> = Vec::new();
        let mut rest = stream;
        let mut passed = Vec::new();
        if let Some(after) = rest.strip_prefix(b"\xef\xbb\xbf") {
            passed.extend_from_slice(&stream[..3]);
            rest = after;
        }
        while !rest.is_empty() {
            let len = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
            let end = if rest[len..].starts_with(b"\r\n") { 2 } else { rest.len().min(len + 1) - len };
            let (line, ending) = (&rest[..len], &rest[len..len + end]);
            rest = &rest[len + end..];
            if line.starts_with(b":") && lines.is_empty() && !ending.is_empty() {
                passed.extend_from_slice(line);
                passed.extend_from_slice(ending);
                continue;
            }
            lines.push((line, ending));
            if line.is_empty() || rest.is_empty() {
                passed.extend(naive_event(&std::mem::take(&mut lines)));
            }
        }
        passed
    }

    fn naive_event(lines: &[(&[u8], &[u8])]) -> Vec<u8> {
        let data = |line: &[u8]| -> Option<Vec<u8>> {
            let rest = line.strip_prefix(b"data:")?;
            Some(rest.strip_prefix(b" ").unwrap_or(rest).to_vec())
        };
        let datas: Vec<Vec<u8>> = lines.iter().filter_map(|(line, _)| data(line)).collect();
        let json: Option<serde_json::Value> = serde_json::from_slice(&datas.join(&b'\n')).ok();
        if let Some(json) = &json
            && json["choices"].as_array().is_some_and(Vec::is_empty)
            && json["usage"].is_object()
        {
            return Vec::new();
        }
        let takes_out = json.as_ref().is_some_and(|json| json.get("usage").is_some_and(serde_json::Value::is_null));
        let mut passed = Vec::new();
        for (line, ending) in lines {
            // The generator writes it in these ways, and nowhere below the root.
            let text = String::from_utf8_lossy(line);
            let cut = if takes_out {
                text.replace(",\"usage\":null", "").replace("\"usage\":null,", "").replace("\"usage\":null", "")
            } else {
                text.into()
            };
            passed.extend_from_slice(cut.as_bytes());
            passed.extend_from_slice(ending);
        }
        passed
    }

    #[test]
    fn random_streams_with_random_cuts() {
        // xorshift64, a fixed seed.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let mut gone = 0;
        for round in 0..4000 {
            let mut stream = Vec::new();
            if random(10) == 0 {
                stream.extend_from_slice("\u{feff}".as_bytes());
            }
            let events = random(8);
            for event in 0..events {
                let ending = ["\n", "\r\n", "\r"][random(3)];
                for _ in 0..random(3) {
                    let line = [": a comment", "event: message", "id: 7", "retry: 5", "data", "id"][random(6)];
                    stream.extend_from_slice(line.as_bytes());
                    stream.extend_from_slice(ending.as_bytes());
                }
                let mut members: Vec<String> = Vec::new();
                let choices = ["[]", "[{\"delta\":{\"content\":\"\\\"}]\u{e9}\"}}]", "[ ]", "[[]]", "null"][random(5)];
                if random(5) > 0 {
                    members.push(format!("\"choices\":{choices}"));
                }
                let usage = ["null", "{}", "{\"prompt_tokens\":5,\"x\":{\"y\":[1,2]}}", "7"][random(4)];
                if random(4) > 0 {
                    let place = random(members.len() + 1);
                    members.insert(place, format!("\"usage\":{usage}"));
                }
                for _ in 0..random(4) {
                    let member = [
                        "\"model\":\"a \\\\\\\" b\"",
                        "\"usag\":1",
                        "\"usages\":null",
                        "\"choice\":[]",
                        "\"created\":-1.5e3",
                        "\"x\":{\"choices\":[{}]}",
                    ][random(6)];
                    let place = random(members.len() + 1);
                    if !members.iter().any(|known| known == member) {
                        members.insert(place, member.to_owned());
                    }
                }
                let json = match random(12) {
                    0 => "[DONE]".to_owned(),
                    // serde_json does not take what is cut off, so it must not have its null taken out.
                    1 => format!("{{{}", members.join(",")).replace("null", "0"),
                    _ => format!("{{{}}}", members.join(",")),
                };
                let space = ["", " "][random(2)];
                stream.extend_from_slice(format!("data:{space}{json}{ending}").as_bytes());
                // Only the last one may lack its blank line: two documents in one event are none, which is known only
                // after the first one is gone.
                if event + 1 < events || random(4) > 0 {
                    stream.extend_from_slice(ending.as_bytes());
                }
            }
            let wanted = naive(&stream);
            gone += stream.len() - wanted.len();
            let cuts: Vec<usize> = match round % 3 {
                0 => (0..stream.len()).collect(),
                1 => Vec::new(),
                _ => {
                    let mut cuts: Vec<usize> = (0..random(12)).map(|_| random(stream.len() + 1)).collect();
                    cuts.sort_unstable();
                    cuts
                }
            };
            let passed = filtered(&stream, &cuts);
            assert_eq!(
                String::from_utf8_lossy(&passed),
                String::from_utf8_lossy(&wanted),
                "{:?}",
                String::from_utf8_lossy(&stream)
            );
        }
        assert!(gone > 10_000, "{gone} bytes were taken out");
    }

    #[test]
    fn noise_passes_and_breaks_nothing() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        const PIECES: &[&str] = &[
            "data: ",
            "data:",
            "\n",
            "\n\n",
            "\r",
            "{",
            "}",
            "[",
            "]",
            "\"",
            "\"choices\":",
            "\"usage\":",
            "null",
            ",",
            "[]",
            "{}",
            "\\",
            ":",
            " ",
            "x",
            "\u{e9}",
            "event: y",
        ];
        for _ in 0..20_000 {
            let stream: String = (0..random(40)).map(|_| PIECES[random(PIECES.len())]).collect();
            let every: Vec<usize> = (0..stream.len()).collect();
            let whole = filtered(stream.as_bytes(), &[]);
            assert_eq!(filtered(stream.as_bytes(), &every), whole, "{stream:?}");
            let cuts = [random(stream.len() + 1)];
            assert_eq!(filtered(stream.as_bytes(), &cuts), whole, "{stream:?}");
        }
    }
}
