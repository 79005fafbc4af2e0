//! Reads one JSON document as it passes, byte by byte and strictly, and edits it in place.
//!
//! However the document is cut into pieces, what comes out is the same stream of bytes. It is always as long as what went
//! in plus the slot: JSON's whitespace is free, so what is taken out is overwritten with spaces, and what is left of the slot
//! is filled with spaces before the root's last brace. That brace is withheld until the document has ended and everything
//! is decided. What cannot be decided yet (a comma, a key, `stream_options`) waits in `held`, at most [`HELD_MAX`] bytes.

use memchr::memchr2;

use super::Denied;
use super::Facts;
use super::Models;
use super::fields::Act;
use super::fields::Ensured;
use super::fields::NAME_BYTES_MAX;
use super::fields::Node;
use super::fields::folds_to;
use super::rules::Rule;
use super::rules::RuleSet;
use crate::hygiene::Chunk;
use crate::hygiene::wipe::wipe;
use crate::meter::MODEL_BYTES_MAX;

/// Containers in one another. Far more than any request has, and few enough for two bits each.
pub(super) const DEPTH_MAX: usize = 512;
/// Whitespace between a comma and its key that waits with them; more of it goes ahead of the comma.
const GAP_MAX: usize = 64;
/// A `stream_options` member that is longer stays where it is.
const OPTIONS_MAX: usize = 512;
/// The text of a string that is looked at: names of members and models, types.
const TEXT_MAX: usize = 96;
/// No hold grows beyond the longest gap and the longest key, all escapes, or `stream_options`.
#[cfg(test)]
pub(super) const HELD_MAX: usize = GAP_MAX + 6 * TEXT_MAX + 64 + OPTIONS_MAX;

const USAGE_MEMBER: &str = r#""stream_options":{"include_usage":true}"#;
const USAGE_INSIDE: &str = r#""include_usage":true"#;
/// Room for forced values that are longer than what the client sent.
const SPARE: usize = 24;

const _: () = assert!(TEXT_MAX >= NAME_BYTES_MAX && TEXT_MAX >= MODEL_BYTES_MAX);

/// What is to be done with one document.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) root: &'static Node,
    pub(super) rules: RuleSet,
    pub(super) models: Models,
    /// Whether a document that names no model is refused, if there is a list of models.
    pub(super) model_required: bool,
    /// Whether usage is asked for in a stream.
    pub(super) usage: bool,
    /// Members that the root must have are for messages of the type `response.create` only.
    pub(super) only_create: bool,
    /// What the head says already.
    pub(super) stream: bool,
}

impl Plan {
    /// How many bytes are announced beyond the client's length.
    pub(super) fn slot(&self) -> usize {
        let mut room = 0;
        let member = |ensured: &Ensured| ensured.name.len() + ensured.value.len() + 4;
        let ensured = self.root.ensured.iter().filter(|ensured| self.rules.has(ensured.rule));
        room += ensured.map(member).sum::<usize>();
        if self.usage {
            room += USAGE_MEMBER.len() + 1;
        }
        // Without rules that write, and without usage to ask for, nothing grows.
        if room == 0 { 0 } else { room + SPARE }
    }
}

pub(super) struct Json {
    plan: Plan,
    slot: usize,
    facts: Facts,
    model: [u8; MODEL_BYTES_MAX],
    model_len: usize,
    model_seen: bool,
    /// The root has named its model, which goes before any that stands deeper.
    root_named: bool,

    state: State,
    depth: usize,
    /// A bit for each open container: set if it is an array.
    arrays: [u64; DEPTH_MAX / 64],
    /// The open containers that matter; the innermost one matters if there are `depth` of them.
    frames: Vec<Frame>,
    /// What the tree says of the value that comes next, or is being read.
    node: Option<&'static Node>,
    number: Number,
    literal: &'static [u8],
    literal_at: usize,
    in_key: bool,
    utf8: Utf8,

    /// Decoded text of the string, or digits of the number, that is being read. Wiped when dropped.
    text: [u8; TEXT_MAX],
    /// More than `TEXT_MAX`: the text was longer.
    text_len: usize,
    capture: bool,
    unicode: u32,
    unicode_digits: u8,
    /// The first half of a surrogate pair, or 0; the other one comes next.
    high: u32,

    edits: Vec<Edit>,
    /// Bytes put out beyond those taken in, so far.
    delta: i64,
    /// Whether a member of the root was put out.
    kept: bool,
    /// Where in the current piece begins what waits for a decision.
    hold: Option<usize>,
    /// What waits from earlier pieces.
    held: Vec<u8>,
    comma: Comma,
    /// Where in the hold its key begins.
    key_at: usize,
    /// From where on in the current piece everything becomes blank, and at which depth that ends.
    blank: Option<(usize, usize)>,
    options: Options,
    /// A `stream_options` member without its comma, taken out to be put in at the end.
    taken: Vec<u8>,
    is_create: bool,
}

struct Frame {
    node: &'static Node,
    /// A bit for each of `node.ensured` that is there.
    seen: u8,
    /// Whether it has members.
    members: bool,
    /// One of `node.ensured` is there twice, or in another spelling: parsers differ over which one counts.
    doubled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Root,
    Value,
    FirstItem,
    FirstKey,
    Key,
    Colon,
    After,
    Text,
    Escape,
    Unicode,
    Number,
    Literal,
    Tail,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

/// Where the comma before the root's next member is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comma {
    None,
    /// The first byte of the hold.
    Held,
    /// Taken out; to be put in again in front of a member that is kept.
    Owed,
}

/// How `stream_options` goes.
#[derive(Default)]
struct Options {
    /// It is being held.
    open: bool,
    /// Not asked for usage: the client does, or it cannot be done.
    given_up: bool,
    /// The first byte of the value.
    value: u8,
    members: bool,
    /// The value of `include_usage` in the hold, first and end.
    include: Option<(usize, usize)>,
    include_open: bool,
    asked: bool,
    /// Of the member that was taken out.
    taken_value: u8,
}

enum Edit {
    Blank {
        start: usize,
        end: usize,
    },
    Remove {
        start: usize,
        end: usize,
    },
    /// Text of ours and of the client's, in a block of its own.
    Insert {
        at: usize,
        text: Vec<u8>,
    },
}

impl Json {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            slot: plan.slot(),
            facts: Facts { stream: plan.stream, ..Facts::default() },
            model: [0; MODEL_BYTES_MAX],
            model_len: 0,
            model_seen: false,
            root_named: false,
            state: State::Root,
            depth: 0,
            arrays: [0; DEPTH_MAX / 64],
            frames: Vec::with_capacity(8),
            node: Some(plan.root),
            number: Number::Minus,
            literal: b"",
            literal_at: 0,
            in_key: false,
            utf8: Utf8::default(),
            text: [0; TEXT_MAX],
            text_len: 0,
            capture: false,
            unicode: 0,
            unicode_digits: 0,
            high: 0,
            edits: Vec::new(),
            delta: 0,
            kept: false,
            hold: None,
            held: Vec::new(),
            comma: Comma::None,
            key_at: 0,
            blank: None,
            options: Options::default(),
            taken: Vec::new(),
            is_create: false,
            plan,
        }
    }

    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    pub(super) fn facts(&self) -> Facts {
        self.facts
    }

    pub(super) fn model(&self) -> Option<&[u8]> {
        (self.model_len > 0).then(|| &self.model[..self.model_len])
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What waits, in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len() + self.taken.len()
    }

    /// Wipes the model's name.
    pub(super) fn forget_model(&mut self) {
        wipe(&mut self.model);
        self.model_len = 0;
    }

    /// Takes one piece in; what goes on is put into `out`.
    pub(super) fn feed(&mut self, chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        self.edits.clear();
        let len = chunk.as_slice().len();
        self.scan(chunk.as_slice())?;
        if let Some((from, depth)) = self.blank {
            self.edits.push(Edit::Blank { start: from, end: len });
            self.blank = Some((0, depth));
        }
        if let Some(from) = self.hold {
            if self.options.open && self.held.len() + len - from > OPTIONS_MAX {
                self.leave_options();
            } else {
                self.take_in(chunk.as_slice(), from, len);
                self.hold = Some(0);
            }
        }
        self.apply(chunk, out);
        Ok(())
    }

    /// Whether the root has been closed.
    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Tail
    }

    /// The document has ended.
    pub(super) fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        match self.state {
            State::Tail => {
                out.push(Chunk::own("}".to_owned()));
                Ok(())
            }
            _ => Err(Denied::Unreadable),
        }
    }

    fn apply(&mut self, mut chunk: Chunk, out: &mut Vec<Chunk>) {
        let mut base = 0;
        let pass = |chunk: &mut Chunk, base: &mut usize, to: usize, out: &mut Vec<Chunk>| {
            if to > *base {
                out.push(chunk.split_to(to - *base));
                *base = to;
            }
        };
        for edit in self.edits.drain(..) {
            match edit {
                Edit::Blank { start, end } => chunk.blank(start - base..end - base),
                Edit::Remove { start, end } => {
                    pass(&mut chunk, &mut base, start, out);
                    drop(chunk.split_to(end - start));
                    base = end;
                }
                Edit::Insert { at, text } => {
                    pass(&mut chunk, &mut base, at, out);
                    out.push(Chunk::taken(text));
                }
            }
        }
        if !chunk.as_slice().is_empty() {
            out.push(chunk);
        }
    }

    fn scan(&mut self, bytes: &[u8]) -> Result<(), Denied> {
        let mut place = 0;
        while let Some(&byte) = bytes.get(place) {
            match self.state {
                State::Text => {
                    place = self.text_run(bytes, place)?;
                    continue;
                }
                State::Escape => self.escape(byte)?,
                State::Unicode => self.unicode(byte)?,
                State::Number => {
                    if !self.number(byte) {
                        if !matches!(self.number, Number::Zero | Number::Integer | Number::Fraction | Number::Power) {
                            return Err(Denied::Unreadable);
                        }
                        self.end_number();
                        self.end_value(bytes, place)?;
                        // The byte is looked at again.
                        continue;
                    }
                    if self.capture {
                        self.push_text(&[byte]);
                    }
                }
                State::Literal => {
                    if byte != self.literal[self.literal_at] {
                        return Err(Denied::Unreadable);
                    }
                    self.literal_at += 1;
                    if self.literal_at == self.literal.len() {
                        self.end_value(bytes, place + 1)?;
                    }
                }
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {
                    if self.state == State::Key
                        && self.depth == 1
                        && self.comma == Comma::Held
                        && let Some(from) = self.hold
                        && self.held.len() + place + 1 - from > GAP_MAX
                    {
                        self.detach_comma(from);
                    }
                }
                State::Root if byte == b'{' => self.begin_value(byte, place)?,
                State::Value => self.begin_value(byte, place)?,
                State::FirstItem if byte == b']' => self.close(bytes, place)?,
                State::FirstItem => self.begin_value(byte, place)?,
                State::FirstKey if byte == b'}' => self.close(bytes, place)?,
                State::FirstKey | State::Key if byte == b'"' => self.begin_key(place)?,
                State::Colon if byte == b':' => self.state = State::Value,
                State::After => match (byte, self.in_array()) {
                    (b',', true) => {
                        self.state = State::Value;
                        self.node = self.tracked().map(|frame| frame.node);
                    }
                    (b',', false) => {
                        self.state = State::Key;
                        if self.depth == 1 {
                            self.hold = Some(place);
                            self.comma = Comma::Held;
                        }
                    }
                    (b']', true) | (b'}', false) => self.close(bytes, place)?,
                    _ => return Err(Denied::Unreadable),
                },
                _ => return Err(Denied::Unreadable),
            }
            place += 1;
        }
        Ok(())
    }

    fn in_array(&self) -> bool {
        let place = self.depth - 1;
        self.arrays[place / 64] & (1 << (place % 64)) != 0
    }

    /// The innermost open container, if it matters.
    fn tracked(&mut self) -> Option<&mut Frame> {
        if self.frames.len() == self.depth { self.frames.last_mut() } else { None }
    }

    // Strings.

    fn begin_text(&mut self, capture: bool, in_key: bool) {
        self.state = State::Text;
        self.in_key = in_key;
        self.capture = capture;
        self.text_len = 0;
        self.high = 0;
    }

    /// What stands in front of the next quotation mark or backslash, if that is near and all of it ASCII. Names and words are
    /// short, and looked at in one go with less ado than many bytes at once take.
    fn short_run<'b>(&self, rest: &'b [u8]) -> Option<&'b [u8]> {
        let near = &rest[..rest.len().min(SHORT)];
        let end = near.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' ' | 0x80..))?;
        (matches!(near[end], b'"' | b'\\') && self.utf8.needed == 0).then_some(&near[..end])
    }

    fn text_run(&mut self, bytes: &[u8], place: usize) -> Result<usize, Denied> {
        let rest = &bytes[place..];
        let (run, stop) = match self.short_run(rest) {
            Some(run) => (run, Some(run.len())),
            None => {
                let stop = memchr2(b'"', b'\\', rest);
                let run = &rest[..stop.unwrap_or(rest.len())];
                // No early exit, so that it is done many bytes at a time.
                let control = run.iter().fold(false, |bad, byte| bad | (*byte < b' '));
                if control || !self.utf8.check(run, stop.is_some()) {
                    return Err(Denied::Unreadable);
                }
                (run, stop)
            }
        };
        if self.high != 0 && (!run.is_empty() || stop.is_some_and(|stop| rest[stop] == b'"')) {
            // Half a pair is no character, and parsers differ over what to make of it.
            return Err(Denied::Unreadable);
        }
        if self.capture {
            self.push_text(run);
        }
        let Some(stop) = stop else { return Ok(bytes.len()) };
        let stop = place + stop;
        if bytes[stop] == b'\\' {
            self.state = State::Escape;
        } else {
            if self.in_key { self.end_key() } else { self.end_text(bytes, stop + 1)? }
        }
        Ok(stop + 1)
    }

    fn escape(&mut self, byte: u8) -> Result<(), Denied> {
        let letter = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.unicode = 0;
                self.unicode_digits = 0;
                self.state = State::Unicode;
                return Ok(());
            }
            _ => return Err(Denied::Unreadable),
        };
        self.state = State::Text;
        if self.high != 0 {
            return Err(Denied::Unreadable);
        }
        if self.capture {
            self.push_text(&[letter]);
        }
        Ok(())
    }

    fn unicode(&mut self, byte: u8) -> Result<(), Denied> {
        let digit = char::from(byte).to_digit(16).ok_or(Denied::Unreadable)?;
        self.unicode = self.unicode << 4 | digit;
        self.unicode_digits += 1;
        if self.unicode_digits < 4 {
            return Ok(());
        }
        self.state = State::Text;
        let unit = self.unicode;
        match (std::mem::take(&mut self.high), unit) {
            (high @ 1.., 0xDC00..=0xDFFF) => self.push_char(0x10000 + ((high - 0xD800) << 10) + (unit - 0xDC00)),
            (0, 0xD800..=0xDBFF) => self.high = unit,
            (1.., _) | (_, 0xDC00..=0xDFFF) => return Err(Denied::Unreadable),
            _ => self.push_char(unit),
        }
        Ok(())
    }

    fn push_char(&mut self, code: u32) {
        if !self.capture {
            return;
        }
        let letter = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        self.push_text(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }

    fn push_text(&mut self, bytes: &[u8]) {
        let room = TEXT_MAX.saturating_sub(self.text_len);
        let taken = bytes.len().min(room);
        let at = self.text_len.min(TEXT_MAX);
        self.text[at..at + taken].copy_from_slice(&bytes[..taken]);
        self.text_len = (self.text_len + bytes.len()).min(TEXT_MAX + 1);
        // A key that is none of ours need not be held to its end.
        if self.in_key && self.text_len > TEXT_MAX && self.depth == 1 && self.hold.is_some() {
            self.keep();
        }
    }

    /// Nothing of the text is needed any more.
    fn clear_text(&mut self) {
        let used = self.text_len.min(TEXT_MAX);
        wipe(&mut self.text[..used]);
        self.text_len = 0;
    }

    /// As much of the text as is looked at.
    fn text(&self) -> &[u8] {
        &self.text[..self.text_len.min(TEXT_MAX)]
    }

    fn text_is_whole(&self) -> bool {
        self.text_len <= TEXT_MAX
    }

    // Numbers.

    /// Whether the number goes on with `byte`.
    fn number(&mut self, byte: u8) -> bool {
        let next = match (self.number, byte) {
            (Number::Minus, b'0') => Number::Zero,
            (Number::Minus, b'1'..=b'9') => Number::Integer,
            (Number::Integer, b'0'..=b'9') => Number::Integer,
            (Number::Zero | Number::Integer, b'.') => Number::Point,
            (Number::Zero | Number::Integer | Number::Fraction, b'e' | b'E') => Number::Exponent,
            (Number::Point | Number::Fraction, b'0'..=b'9') => Number::Fraction,
            (Number::Exponent, b'+' | b'-') => Number::Sign,
            (Number::Exponent | Number::Sign | Number::Power, b'0'..=b'9') => Number::Power,
            _ => return false,
        };
        self.number = next;
        true
    }

    fn end_number(&mut self) {
        if !self.capture || !self.text_is_whole() {
            return;
        }
        let tokens = std::str::from_utf8(self.text()).ok().and_then(|text| {
            // `1e3` and `4096.0` are numbers as well; as a cast, too large or negative ones end at the bounds.
            text.parse::<u64>().ok().or_else(|| text.parse::<f64>().ok().map(|number| number as u64))
        });
        if let Some(tokens) = tokens {
            self.facts.output_tokens_max = Some(self.facts.output_tokens_max.unwrap_or(0).max(tokens));
        }
    }

    // Members.

    fn begin_key(&mut self, place: usize) -> Result<(), Denied> {
        let rules = self.plan.rules;
        let tracked = match self.tracked() {
            Some(frame) => {
                frame.members = true;
                if let Act::Wish(rule) = frame.node.act
                    && rules.has(rule)
                {
                    return Err(Denied::Rule(rule));
                }
                !frame.node.is_leaf()
            }
            None => false,
        };
        if self.depth == 1 {
            let from = *self.hold.get_or_insert(place);
            self.key_at = self.held.len() + place - from;
        }
        self.begin_text(tracked, true);
        Ok(())
    }

    fn end_key(&mut self) {
        self.state = State::Colon;
        self.node = None;
        if self.capture
            && self.text_is_whole()
            && self.frames.len() == self.depth
            && let Some(frame) = self.frames.last_mut()
        {
            let name = &self.text[..self.text_len];
            let ascii = name.is_ascii();
            for (place, ensured) in frame.node.ensured.iter().enumerate() {
                if self.plan.rules.has(ensured.rule) && folds_to(name, ascii, ensured.name) {
                    let seen = 1 << place;
                    frame.doubled |= frame.seen & seen != 0 || ensured.name.as_bytes() != name;
                    frame.seen |= seen;
                }
            }
            self.node = frame.node.member(name);
        }
        if self.depth == 2 && self.options.open {
            self.options.members = true;
        }
        if self.depth == 1 && self.hold.is_some() {
            self.decide_member();
        }
    }

    /// A member of the root has its name: is it kept, taken out, or held on to?
    fn decide_member(&mut self) {
        match self.node.map(|node| node.act) {
            Some(Act::Drop(rule)) if self.plan.rules.has(rule) => self.drop_member(),
            Some(Act::Thread) if self.plan.rules.has(Rule::Threads) => self.drop_member(),
            Some(Act::StreamOptions) if self.plan.usage => {
                let exact = self.text() == b"stream_options";
                let first = self.taken.is_empty() && !self.options.given_up && !self.options.asked;
                if exact && first {
                    self.options.open = true;
                    self.options.value = 0;
                    return;
                }
                self.options.given_up = true;
                self.put_back();
                self.keep();
            }
            _ => self.keep(),
        }
    }

    /// A second `stream_options`: the first one goes in front of it, so that their order stays.
    fn put_back(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let at = if self.held.is_empty() { self.hold.unwrap_or(0) } else { 0 };
        let mut text = Vec::with_capacity(self.taken.len() + 1);
        text.extend(self.kept.then_some(b','));
        move_to(&mut self.taken, &mut text);
        self.kept = true;
        self.insert(at, text);
    }

    fn drop_member(&mut self) {
        let Some(from) = self.hold.take() else { return };
        if !self.held.is_empty() {
            let spaces = vec![b' '; self.held.len()];
            self.insert(0, spaces);
            wipe(&mut self.held);
            self.held.clear();
        }
        self.comma = Comma::None;
        // Up to here, and on to the end of the value.
        self.blank = Some((from, 1));
    }

    /// The member that waits goes on as it is, with its comma if there is something in front of it.
    fn keep(&mut self) {
        let Some(from) = self.hold.take() else { return };
        let owed = self.comma == Comma::Owed && self.kept;
        // Nearly every member stays where it is, and there is nothing to put in front of it.
        let room = if owed || !self.held.is_empty() { self.held.len() + 1 } else { 0 };
        let mut text = Vec::with_capacity(room);
        match self.comma {
            Comma::Held if !self.kept => match self.held.first_mut() {
                Some(comma) => *comma = b' ',
                None => self.edits.push(Edit::Blank { start: from, end: from + 1 }),
            },
            _ => text.extend(owed.then_some(b',')),
        }
        self.comma = Comma::None;
        move_to(&mut self.held, &mut text);
        self.insert(from, text);
        self.kept = true;
    }

    /// A long gap behind a comma: the gap goes on, the comma waits for its member.
    fn detach_comma(&mut self, from: usize) {
        self.hold = None;
        self.comma = Comma::Owed;
        if self.held.is_empty() {
            self.edits.push(Edit::Remove { start: from, end: from + 1 });
            self.delta -= 1;
        } else {
            self.held.remove(0);
            let mut gap = Vec::with_capacity(self.held.len());
            move_to(&mut self.held, &mut gap);
            self.insert(0, gap);
        }
    }

    fn insert(&mut self, at: usize, text: Vec<u8>) {
        if !text.is_empty() {
            self.delta += text.len() as i64;
            self.edits.push(Edit::Insert { at, text });
        }
    }

    /// Moves a part of the current piece to what is held.
    fn take_in(&mut self, bytes: &[u8], start: usize, end: usize) {
        if self.held.capacity() == 0 {
            // Grown once, so that no copy stays behind in a smaller block.
            self.held.reserve_exact(GAP_MAX + 6 * TEXT_MAX + 64 + OPTIONS_MAX);
        }
        self.held.extend_from_slice(&bytes[start..end]);
        self.edits.push(Edit::Remove { start, end });
        self.delta -= (end - start) as i64;
    }

    // Values.

    fn begin_value(&mut self, byte: u8, place: usize) -> Result<(), Denied> {
        if let Some(node) = self.node {
            self.judge_start(node, byte, place)?;
        }
        // That of the value's key.
        self.clear_text();
        self.capture = false;
        match byte {
            b'{' | b'[' => self.open(byte == b'['),
            b'"' => {
                let capture = self.node.is_some_and(|node| {
                    matches!(
                        node.act,
                        Act::Wish(_)
                            | Act::Judge(_)
                            | Act::Model
                            | Act::RoutedModel
                            | Act::ThreadType
                            | Act::MessageType
                    )
                });
                self.begin_text(capture, false);
                Ok(())
            }
            b'-' | b'0'..=b'9' => {
                self.state = State::Number;
                self.number = match byte {
                    b'-' => Number::Minus,
                    b'0' => Number::Zero,
                    _ => Number::Integer,
                };
                self.in_key = false;
                self.text_len = 0;
                self.capture = self.node.is_some_and(|node| matches!(node.act, Act::OutputMax));
                if self.capture {
                    self.push_text(&[byte]);
                }
                Ok(())
            }
            b't' | b'f' | b'n' => {
                self.literal = match byte {
                    b't' => b"true",
                    b'f' => b"false",
                    _ => b"null",
                };
                self.literal_at = 1;
                self.state = State::Literal;
                Ok(())
            }
            _ => Err(Denied::Unreadable),
        }
    }

    /// What the first byte of a value says already.
    fn judge_start(&mut self, node: &'static Node, byte: u8, place: usize) -> Result<(), Denied> {
        let rules = self.plan.rules;
        let refuse = |rule: Rule| if rules.has(rule) { Err(Denied::Rule(rule)) } else { Ok(()) };
        match node.act {
            Act::Pass | Act::Drop(_) | Act::Judge(_) | Act::MessageType | Act::Thread => Ok(()),
            Act::Present(rule) => match byte {
                b'n' | b'f' => Ok(()),
                _ => refuse(rule),
            },
            Act::Wish(rule) => match byte {
                b'n' | b'f' | b'"' | b'[' | b'{' => Ok(()),
                _ => refuse(rule),
            },
            Act::Store(rule) => match byte {
                b'f' => Ok(()),
                b'n' => {
                    if rules.has(rule) {
                        self.force(place, "false");
                    }
                    Ok(())
                }
                _ => refuse(rule),
            },
            Act::Force(rule, value) => match byte {
                b'{' if !node.is_leaf() => Ok(()),
                b'{' | b'[' => refuse(rule),
                b't' if value == "true" => Ok(()),
                _ => {
                    if rules.has(rule) {
                        self.force(place, value);
                    }
                    Ok(())
                }
            },
            Act::Model | Act::RoutedModel => match byte {
                b'"' | b'[' | b'n' => Ok(()),
                _ if self.plan.models.is_any() => Ok(()),
                _ => Err(Denied::Model),
            },
            Act::Stream => {
                self.facts.stream = byte == b't';
                Ok(())
            }
            Act::OutputMax => Ok(()),
            Act::StreamOptions => {
                if self.options.open && self.depth == 1 {
                    self.options.value = byte;
                }
                Ok(())
            }
            Act::IncludeUsage => {
                if self.options.open && self.depth == 2 {
                    let from = self.hold.unwrap_or(place);
                    let at = self.held.len() + place - from;
                    // Twice is more than can be set straight.
                    self.options.given_up |= self.options.include.is_some()
                        || !matches!(byte, b't' | b'f' | b'n')
                        // The text is still that of the key: another spelling may not count at the provider.
                        || self.text() != b"include_usage";
                    self.options.asked = byte == b't';
                    self.options.include = Some((at, at));
                    self.options.include_open = true;
                }
                Ok(())
            }
            Act::ThreadType => match byte {
                b'"' | b'n' => Ok(()),
                _ => refuse(Rule::Threads),
            },
            Act::ThreadPrevious => match byte {
                b'n' => Ok(()),
                _ if rules.has(Rule::Threads) => Err(Denied::Thread),
                _ => Ok(()),
            },
        }
    }

    /// Puts `value` in front of a scalar, which becomes blank.
    fn force(&mut self, place: usize, value: &str) {
        self.insert(place, value.as_bytes().to_vec());
        self.blank = Some((place, self.depth));
    }

    /// A string's end.
    fn end_text(&mut self, bytes: &[u8], end: usize) -> Result<(), Denied> {
        if self.capture
            && let Some(node) = self.node
        {
            self.judge_text(node)?;
        }
        self.end_value(bytes, end)
    }

    fn judge_text(&mut self, node: &'static Node) -> Result<(), Denied> {
        let rules = self.plan.rules;
        let refused = match node.act {
            Act::Wish(rule) if self.text_len > 0 => Some(rule),
            Act::Judge(judge) => judge(self.text()),
            Act::RoutedModel if !self.text_is_whole() || self.text().ends_with(b":online") => Some(Rule::Plugins),
            Act::ThreadType if rules.has(Rule::Threads) => match self.text() {
                b"create" => None,
                b"continue" => return Err(Denied::Thread),
                _ => Some(Rule::Threads),
            },
            _ => None,
        };
        if let Some(rule) = refused
            && rules.has(rule)
        {
            return Err(Denied::Rule(rule));
        }
        match node.act {
            Act::Model | Act::RoutedModel => {
                self.model_seen = true;
                if !self.plan.models.allows(self.text(), self.text_is_whole()) {
                    return Err(Denied::Model);
                }
                let root = self.depth == 1;
                if (root || !self.root_named) && self.text_is_whole() {
                    self.root_named = root;
                    self.model_len = self.text_len;
                    self.model[..self.text_len].copy_from_slice(&self.text[..self.text_len]);
                }
            }
            Act::MessageType => self.is_create = self.text() == b"response.create",
            _ => {}
        }
        Ok(())
    }

    /// A value's end: `end` is behind it.
    fn end_value(&mut self, bytes: &[u8], end: usize) -> Result<(), Denied> {
        self.state = State::After;
        self.node = None;
        if self.capture {
            self.clear_text();
        }
        if let Some((from, depth)) = self.blank
            && depth == self.depth
        {
            self.edits.push(Edit::Blank { start: from, end });
            self.blank = None;
        }
        if self.options.open {
            if self.depth == 2
                && std::mem::take(&mut self.options.include_open)
                && let Some((_, last)) = &mut self.options.include
            {
                *last = self.held.len() + end - self.hold.unwrap_or(end);
            }
            if self.depth == 1 {
                self.end_options(bytes, end);
            }
        }
        Ok(())
    }

    fn end_options(&mut self, bytes: &[u8], end: usize) {
        let from = self.hold.unwrap_or(end);
        let fits = self.held.len() + end - from <= OPTIONS_MAX;
        let usable = matches!(self.options.value, b'{' | b'n') && !self.options.asked && !self.options.given_up;
        if !fits || !usable {
            self.leave_options();
            return;
        }
        self.take_in(bytes, from, end);
        self.hold = None;
        self.options.open = false;
        self.comma = Comma::None;
        self.options.taken_value = self.options.value;
        self.taken.reserve_exact(self.held.len());
        self.taken.extend_from_slice(&self.held[self.key_at..]);
        if let Some((first, last)) = &mut self.options.include {
            *first -= self.key_at;
            *last -= self.key_at;
        }
        wipe(&mut self.held);
        self.held.clear();
    }

    /// `stream_options` stays where and what it is.
    fn leave_options(&mut self) {
        self.options.open = false;
        self.options.include_open = false;
        self.options.given_up = true;
        self.keep();
    }

    fn open(&mut self, array: bool) -> Result<(), Denied> {
        if self.depth == DEPTH_MAX {
            return Err(Denied::Unreadable);
        }
        if let Some(node) = self.node
            && self.frames.len() == self.depth
        {
            self.frames.push(Frame { node, seen: 0, members: false, doubled: false });
        } else {
            self.node = None;
        }
        let bit = 1 << (self.depth % 64);
        let word = &mut self.arrays[self.depth / 64];
        *word = if array { *word | bit } else { *word & !bit };
        self.depth += 1;
        // An array's items stand where the array stands.
        self.state = if array { State::FirstItem } else { State::FirstKey };
        Ok(())
    }

    fn close(&mut self, bytes: &[u8], place: usize) -> Result<(), Denied> {
        if self.depth == 1 {
            return self.close_root(place);
        }
        if self.frames.len() == self.depth
            && let Some(frame) = self.frames.pop()
            && bytes[place] == b'}'
        {
            if frame.doubled {
                return Err(Denied::Unreadable);
            }
            let mut members = frame.members;
            for (bit, ensured) in frame.node.ensured.iter().enumerate() {
                if frame.seen & (1 << bit) == 0 && self.plan.rules.has(ensured.rule) {
                    let comma = if members { "," } else { "" };
                    self.insert(place, format!("{comma}\"{}\":{}", ensured.name, ensured.value).into_bytes());
                    members = true;
                }
            }
        }
        self.depth -= 1;
        self.end_value(bytes, place + 1)
    }

    /// The last brace of all: what is missing goes in front of it, and the slot is filled up.
    fn close_root(&mut self, place: usize) -> Result<(), Denied> {
        if self.plan.model_required && !self.plan.models.is_any() && !self.model_seen {
            return Err(Denied::Model);
        }
        let mut tail = Vec::with_capacity(self.slot + self.taken.len());
        let (seen, doubled) = self.frames.first().map_or((0, false), |frame| (frame.seen, frame.doubled));
        if doubled {
            return Err(Denied::Unreadable);
        }
        let mut comma = self.kept;
        let mut separate = |tail: &mut Vec<u8>| {
            if std::mem::replace(&mut comma, true) {
                tail.push(b',');
            }
        };
        let ask = self.plan.usage && self.facts.stream && !self.options.given_up && !self.options.asked;
        if !self.taken.is_empty() {
            separate(&mut tail);
            let text = &self.taken;
            match (ask, self.options.taken_value, self.options.include) {
                (false, ..) => tail.extend_from_slice(text),
                (true, b'{', Some((first, last))) => {
                    tail.extend_from_slice(&text[..first]);
                    tail.extend_from_slice(b"true");
                    tail.extend_from_slice(&text[last..]);
                }
                (true, b'{', None) => {
                    tail.extend_from_slice(&text[..text.len() - 1]);
                    tail.extend(self.options.members.then_some(b','));
                    tail.extend_from_slice(USAGE_INSIDE.as_bytes());
                    tail.push(b'}');
                }
                (true, ..) => tail.extend_from_slice(USAGE_MEMBER.as_bytes()),
            }
            self.facts.usage_added = ask;
            wipe(&mut self.taken);
        } else if ask {
            separate(&mut tail);
            tail.extend_from_slice(USAGE_MEMBER.as_bytes());
            self.facts.usage_added = true;
        }
        for (bit, ensured) in self.plan.root.ensured.iter().enumerate() {
            let wanted = self.plan.rules.has(ensured.rule) && (self.is_create || !self.plan.only_create);
            if wanted && seen & (1 << bit) == 0 {
                separate(&mut tail);
                tail.extend_from_slice(format!("\"{}\":{}", ensured.name, ensured.value).as_bytes());
            }
        }
        // What is short of the announced length. More than was announced, by values forced over and over, is refused.
        let short = self.slot as i64 - self.delta - tail.len() as i64;
        let short = usize::try_from(short).map_err(|_| Denied::Unreadable)?;
        tail.resize(tail.len() + short, b' ');
        self.edits.push(Edit::Remove { start: place, end: place + 1 });
        self.edits.push(Edit::Insert { at: place + 1, text: tail });
        self.state = State::Tail;
        Ok(())
    }
}

impl Drop for Json {
    fn drop(&mut self) {
        wipe(&mut self.text);
        wipe(&mut self.model);
        wipe(&mut self.held);
        wipe(&mut self.taken);
    }
}

/// Moves what was held to what goes on; nothing stays behind.
fn move_to(held: &mut Vec<u8>, out: &mut Vec<u8>) {
    out.extend_from_slice(held);
    wipe(held);
    held.clear();
}

/// What is short for a text.
const SHORT: usize = 24;

/// So many bytes are looked at together for one that is not ASCII.
const ASCII_AT_ONCE: usize = 512;

/// Checks UTF-8 across cuts (RFC 3629 section 4).
#[derive(Default)]
struct Utf8 {
    /// Bytes that are still to come, and the bounds of the next one.
    needed: u8,
    low: u8,
    high: u8,
}

impl Utf8 {
    /// Whether `run` goes on well. `ended`: no character may be open behind it.
    fn check(&mut self, run: &[u8], ended: bool) -> bool {
        let mut rest = run;
        while self.needed > 0
            && let [byte, after @ ..] = rest
        {
            if !self.step(*byte) {
                return false;
            }
            rest = after;
        }
        // Code and prompts are ASCII for the most part, which is told several times as fast as UTF-8 is checked.
        let plain: usize = rest.chunks(ASCII_AT_ONCE).take_while(|block| block.is_ascii()).map(<[u8]>::len).sum();
        let rest = &rest[plain..];
        if let Err(error) = std::str::from_utf8(rest) {
            if error.error_len().is_some() {
                return false;
            }
            // Cut within a character.
            if !rest[error.valid_up_to()..].iter().all(|byte| self.step(*byte)) {
                return false;
            }
        }
        !ended || self.needed == 0
    }

    fn step(&mut self, byte: u8) -> bool {
        if self.needed > 0 {
            let good = (self.low..=self.high).contains(&byte);
            (self.needed, self.low, self.high) = (self.needed - 1, 0x80, 0xBF);
            return good;
        }
        (self.needed, self.low, self.high) = match byte {
            0..=0x7F => (0, 0, 0),
            0xC2..=0xDF => (1, 0x80, 0xBF),
            0xE0 => (2, 0xA0, 0xBF),
            0xED => (2, 0x80, 0x9F),
            0xE1..=0xEF => (2, 0x80, 0xBF),
            0xF0 => (3, 0x90, 0xBF),
            0xF1..=0xF3 => (3, 0x80, 0xBF),
            0xF4 => (3, 0x80, 0x8F),
            _ => return false,
        };
        true
    }
}
