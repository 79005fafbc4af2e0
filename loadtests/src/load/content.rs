//! What travels under load, and its checkers. All of it is made of a few numbers, so that either side can compare every
//! byte without having kept any: chat completion events of [`EVENT_BYTES`], and JSON documents with one long string.

use std::sync::LazyLock;

/// The length of an event, with its empty line.
pub const EVENT_BYTES: usize = 160;

/// What arrived is not what was sent. It says what and where, for the tool's one line before it gives up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl std::fmt::Display for Fault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// Takes the bytes of a body as they arrive, in any cut, and compares each.
pub trait Sink {
    /// The answer's head is there; its status is 200.
    fn begin(&mut self) {}
    /// Something was read: one piece, however many calls of `data` it takes.
    fn arrived(&mut self) {}
    /// The next bytes.
    fn data(&mut self, data: &[u8]) -> Result<(), Fault>;
    /// There is no more.
    fn end(&mut self) -> Result<(), Fault>;
}

/// Writes event `number` with the time stamp in nanoseconds behind `out`. Of the stamp the low 48 bits travel.
pub fn push_event(out: &mut Vec<u8>, number: u32, stamp_ns: u64) {
    let at = out.len();
    out.extend_from_slice(&*EVENT);
    write_hex(&mut out[at + STAMP..at + NUMBER], stamp_ns);
    write_hex(&mut out[at + NUMBER..at + NUMBER + NUMBER_DIGITS], u64::from(number));
}

/// What follows `count` events: one with the usage, and the mark of the end.
pub fn push_tail(out: &mut Vec<u8>, count: u32) {
    let prompt = 11;
    let total = u64::from(count) + prompt;
    // Spaces, which JSON allows there, keep the length the same.
    let usage = format!(
        "{COMMON}],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{count:10},\"total_tokens\":{total:10}}}}}\n\n\
         data: [DONE]\n\n"
    );
    out.extend_from_slice(usage.as_bytes());
}

/// Compares a stream of events. Counts them, and hands out the stamp of each.
pub struct Events {
    count: u32,
    /// The beginning of an event whose rest has not arrived.
    part: Vec<u8>,
    /// What has to come from here on, once the events are over, and how much of it has.
    tail: Option<(Vec<u8>, usize)>,
}

impl Default for Events {
    fn default() -> Events {
        Events { count: 0, part: Vec::with_capacity(EVENT_BYTES), tail: None }
    }
}

impl Events {
    /// Compares the next bytes and calls `seen` with the stamp of each event that is complete by them.
    pub fn feed(&mut self, mut data: &[u8], mut seen: impl FnMut(u64)) -> Result<(), Fault> {
        while !data.is_empty() {
            if self.tail.is_some() {
                return self.feed_tail(data);
            }
            if !self.part.is_empty() || data.len() < EVENT_BYTES {
                let taken = data.len().min(EVENT_BYTES - self.part.len());
                self.part.extend_from_slice(&data[..taken]);
                data = &data[taken..];
                if self.part.get(COMMON.len()) == Some(&b']') {
                    // The events are over. The tail is compared with all there is of it.
                    let part = std::mem::take(&mut self.part);
                    self.begin_tail();
                    self.feed_tail(&part)?;
                } else if self.part.len() == EVENT_BYTES {
                    let stamp = check(&self.part, self.count)?;
                    self.part.clear();
                    self.count += 1;
                    seen(stamp);
                }
            } else if data[COMMON.len()] == b']' {
                self.begin_tail();
            } else {
                let (event, rest) = data.split_at(EVENT_BYTES);
                seen(check(event, self.count)?);
                self.count += 1;
                data = rest;
            }
        }
        Ok(())
    }

    fn feed_tail(&mut self, data: &[u8]) -> Result<(), Fault> {
        if let Some((tail, at)) = &mut self.tail {
            if tail.get(*at..*at + data.len()) != Some(data) {
                return Err(Fault(format!("after {} events: the end is not as sent", self.count)));
            }
            *at += data.len();
        }
        Ok(())
    }

    fn begin_tail(&mut self) {
        let mut tail = Vec::new();
        push_tail(&mut tail, self.count);
        self.tail = Some((tail, 0));
    }

    /// Whether everything has come.
    pub fn end(&self) -> Result<(), Fault> {
        match &self.tail {
            Some((tail, at)) if *at == tail.len() => Ok(()),
            _ => Err(Fault(format!("the stream ends within or after event {}", self.count))),
        }
    }
}

/// Nanoseconds since `stamp_ns`, of which 48 bits travelled.
pub fn since(stamp_ns: u64, now_ns: u64) -> u64 {
    now_ns.wrapping_sub(stamp_ns) & ((1 << 48) - 1)
}

/// Compares one event and reads its stamp.
fn check(event: &[u8], number: u32) -> Result<u64, Fault> {
    let wrong = || Fault(format!("event {number} is not as sent"));
    let mut digits = [0; NUMBER_DIGITS];
    write_hex(&mut digits, u64::from(number));
    let same = event[..STAMP] == EVENT[..STAMP]
        && event[NUMBER..NUMBER + NUMBER_DIGITS] == digits
        && event[NUMBER + NUMBER_DIGITS..] == EVENT[NUMBER + NUMBER_DIGITS..];
    if !same {
        return Err(wrong());
    }
    read_hex(&event[STAMP..NUMBER]).ok_or_else(wrong)
}

fn write_hex(out: &mut [u8], number: u64) {
    let mut rest = number;
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
}

fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | u64::from((*digit as char).to_digit(16)?)))
}

/// How every event begins.
const COMMON: &str =
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m-1\",\"choices\":[";
/// Where the stamp stands in an event: behind the beginning of its delta.
const STAMP: usize = COMMON.len() + DELTA.len();
const DELTA: &str = "{\"index\":0,\"delta\":{\"content\":\"";
const STAMP_DIGITS: usize = 12;
const NUMBER: usize = STAMP + STAMP_DIGITS;
const NUMBER_DIGITS: usize = 8;
const EVENT_END: &str = "\"}}]}\n\n";

static EVENT: LazyLock<[u8; EVENT_BYTES]> = LazyLock::new(|| {
    let mut event = format!("{COMMON}{DELTA}");
    while event.len() < EVENT_BYTES - EVENT_END.len() {
        event.push(char::from(b"the words of an answer "[event.len() % 23]));
    }
    event.push_str(EVENT_END);
    let mut out = [0; EVENT_BYTES];
    out.copy_from_slice(event.as_bytes());
    out
});

/// A JSON document of a certain length: a beginning, a long string of text, an end.
#[derive(Clone)]
pub struct Document {
    head: Vec<u8>,
    fill: usize,
    tail: &'static [u8],
}

impl Document {
    /// A chat completion request of `len` bytes (more if the frame needs more). `number` tells it from its neighbours.
    pub fn request(len: usize, number: u32, stream: bool) -> Document {
        let asked = if stream { "\"stream\":true,\"stream_options\":{\"include_usage\":true}," } else { "" };
        let head = format!("{{\"model\":\"m-1\",{asked}\"messages\":[{{\"role\":\"user\",\"content\":\"{number:08x}");
        Document::new(head, len, b"\"}]}")
    }

    /// The answer to it.
    pub fn answer(len: usize, number: u32) -> Document {
        let head = format!(
            "{{\"id\":\"c1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"m-1\",\"choices\":[{{\"index\":0,\
             \"message\":{{\"role\":\"assistant\",\"content\":\"{number:08x}"
        );
        let tail = b"\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"total_tokens\":11}}";
        Document::new(head, len, tail)
    }

    fn new(head: String, len: usize, tail: &'static [u8]) -> Document {
        let fill = len.saturating_sub(head.len() + tail.len());
        Document { head: head.into_bytes(), fill, tail }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.fill + self.tail.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A piece of it from `at` on, as long as can be had without copying; empty at its end.
    pub fn piece(&self, at: usize) -> &[u8] {
        if at < self.head.len() {
            return &self.head[at..];
        }
        let at = at - self.head.len();
        if at < self.fill {
            let start = at % TEXT_PERIOD;
            return &TEXT[start..start + (TEXT.len() - start).min(self.fill - at)];
        }
        self.tail.get(at - self.fill..).unwrap_or(&[])
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        while bytes.len() < self.len() {
            bytes.extend_from_slice(self.piece(bytes.len()));
        }
        bytes
    }
}

/// Compares a document as it arrives.
pub struct DocumentCheck {
    document: Document,
    at: usize,
}

impl DocumentCheck {
    /// Nothing of it has come.
    pub fn new(document: Document) -> DocumentCheck {
        DocumentCheck { document, at: 0 }
    }
}

impl Sink for DocumentCheck {
    fn data(&mut self, mut data: &[u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let wanted = self.document.piece(self.at);
            let len = wanted.len().min(data.len());
            if len == 0 || data[..len] != wanted[..len] {
                return Err(Fault(format!("a document differs at or behind byte {}", self.at)));
            }
            self.at += len;
            data = &data[len..];
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        if self.at == self.document.len() {
            return Ok(());
        }
        Err(Fault(format!("a document of {} bytes ends after {}", self.document.len(), self.at)))
    }
}

/// A prime, so that what is shifted by a whole buffer of anyone does not look right.
const TEXT_PERIOD: usize = 65_521;

/// Text without quotes or backslashes, repeated so that pieces are long: words of random letters, a newline as `\n` never.
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut period = Vec::with_capacity(TEXT_PERIOD);
    while period.len() < TEXT_PERIOD {
        // xorshift64*: any generator without short cycles would do.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let letter = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 59) as u8;
        period.push(b"abcdefghijklmnopqrstuvwxyz ,. 01"[usize::from(letter)]);
    }
    period.repeat(2)
});

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(count: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in 0..count {
            push_event(&mut bytes, number, 0xfeed_0000 + u64::from(number));
        }
        push_tail(&mut bytes, count);
        bytes
    }

    fn feed(bytes: &[u8], cut: usize) -> Result<Vec<u64>, Fault> {
        let mut events = Events::default();
        let mut stamps = Vec::new();
        for piece in bytes.chunks(cut) {
            events.feed(piece, |stamp| stamps.push(stamp))?;
        }
        events.end().map(|()| stamps)
    }

    #[test]
    fn events_are_events_in_any_cut() {
        let bytes = stream(5);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let chunks: Vec<_> = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(chunks.len(), 7);
        for chunk in &chunks[..6] {
            serde_json::from_str::<serde_json::Value>(chunk).unwrap();
        }
        assert_eq!(text.find("\n\n"), Some(EVENT_BYTES - 2));
        for cut in 1..=bytes.len() {
            assert_eq!(feed(&bytes, cut).unwrap(), (0..5).map(|n| 0xfeed_0000 + n).collect::<Vec<_>>(), "{cut}");
        }
    }

    #[test]
    fn every_wrong_byte_is_found() {
        let bytes = stream(3);
        for at in 0..bytes.len() {
            let in_stamp = at < 3 * EVENT_BYTES && (STAMP..NUMBER).contains(&(at % EVENT_BYTES));
            let mut wrong = bytes.clone();
            wrong[at] = if in_stamp { b'g' } else { wrong[at] ^ 1 };
            for cut in [1, 7, 160, 1000] {
                assert!(feed(&wrong, cut).is_err(), "byte {at}, cut {cut}");
            }
        }
        for end in 0..bytes.len() {
            assert!(feed(&bytes[..end], 64).is_err(), "cut short to {end}");
        }
        assert!(feed(&[&bytes[..], b"x"].concat(), 64).is_err());
        assert!(feed(&[&bytes[..EVENT_BYTES], &bytes[..]].concat(), 64).is_err(), "one event twice");
    }

    #[test]
    fn documents_are_json_and_compared_whole() {
        for document in
            [Document::request(1000, 7, false), Document::request(1000, 7, true), Document::answer(200_000, 9)]
        {
            let bytes = document.bytes();
            assert!(bytes.len() == 1000 || bytes.len() == 200_000);
            serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
            let ok = |bytes: &[u8]| {
                let mut check = DocumentCheck::new(document.clone());
                bytes.chunks(777).try_for_each(|piece| check.data(piece)).and_then(|()| check.end()).is_ok()
            };
            assert!(ok(&bytes));
            assert!(!ok(&bytes[..bytes.len() - 1]));
            assert!(!ok(&[&bytes[..], b" "].concat()));
            let mut wrong = bytes.clone();
            wrong[bytes.len() / 2] ^= 1;
            assert!(!ok(&wrong));
        }
    }

    #[test]
    fn stamps_wrap() {
        assert_eq!(since(5, 7), 2);
        assert_eq!(since((1 << 48) - 1, (3 << 48) + 1), 2);
    }
}
