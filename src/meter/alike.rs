//! Events that say the same as one before them.
//!
//! A stream's events are mostly alike: what differs from one to the next is the text that was generated, and a number or
//! two beside it, which nobody looks at. So an event that was read is a [`Pattern`] for those after it in the same input:
//! one that has the same bytes, but for strings and numbers that were passed over, takes a [`Walker`] the same way and
//! says the same. To compare bytes takes a tenth of the time that reading them does.
//!
//! A pattern is a range of the input and ends with it. Nothing is copied, and nothing is kept for the next input: an event
//! that comes alone, or cut, is read.
//!
//! [`Walker`]: super::json::Walker

use super::document::Said;
use super::json::Hearer;
use super::scan;

/// How many strings and numbers may differ; further ones have to be the same.
const GAPS: usize = 12;

/// From a string's or number's first byte to the one after its last, as places in the input.
type Gap = (u32, u32);

/// What was passed over in the event at hand.
pub(super) struct Gaps {
    /// Where the bytes end that a walker has been given.
    end: usize,
    count: usize,
    /// In order.
    all: [Gap; GAPS],
}

impl Gaps {
    pub(super) const fn new() -> Self {
        Self { end: 0, count: 0, all: [(0, 0); GAPS] }
    }

    /// An event begins.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// A walker is given bytes up to `end`.
    #[inline]
    pub(super) fn ending_at(&mut self, end: usize) -> &mut Self {
        self.end = end;
        self
    }
}

impl Hearer for Gaps {
    #[inline(always)]
    fn passed(&mut self, from: usize, to: usize) {
        if let Some(gap) = self.all.get_mut(self.count) {
            // What does not fit is not used: see `Pattern::new`.
            *gap = ((self.end - from) as u32, (self.end - to) as u32);
            self.count += 1;
        }
    }
}

/// An event that was read, by its place in the input; all but what it said.
pub(super) struct Pattern {
    start: usize,
    end: usize,
    count: usize,
    gaps: [Gap; GAPS],
    pub(super) said: Said,
}

impl Pattern {
    /// The event from `start` to `end` said `said`, and `gaps` were passed over.
    pub(super) fn new(start: usize, end: usize, gaps: &Gaps, said: Said) -> Self {
        let count = if u32::try_from(end).is_ok() { gaps.count } else { 0 };
        Self { start, end, count, gaps: gaps.all, said }
    }

    /// Where the event at `from` ends, if it is whole and says the same.
    ///
    /// Two walkers that took the same bytes stand at the same point. If that is in a gap, both are in a string that
    /// nobody looks at, or both in such a number; once each has come to its end, they stand at the same point again.
    #[inline]
    pub(super) fn end_of_alike(&self, input: &[u8], from: usize) -> Option<usize> {
        let mut gaps = self.gaps.get(..self.count)?.iter();
        // A place in the pattern, and the one in the event that goes with it.
        let (mut there, mut here) = (self.start, from);
        loop {
            let length = (self.end - there).min(input.len().saturating_sub(here));
            let alike = scan::alike(input.get(there..there + length)?, input.get(here..here + length)?);
            there += alike;
            here += alike;
            if there >= self.end {
                return Some(here);
            }
            if alike == length {
                return None;
            }
            let &(start, end) = gaps.find(|(_, end)| *end as usize >= there)?;
            let (start, end) = (start as usize, end as usize);
            if there < start {
                return None;
            }
            if input.get(end) == Some(&b'"') {
                // After a backslash one has to know whether it is itself escaped, so the string is read from its start.
                let back = if input.get(here - 1) == Some(&b'\\') { there - start } else { 0 };
                here = scan::quote_in_line(input, here - back)?;
            } else {
                if there == start && !matches!(input.get(here), Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n')) {
                    return None;
                }
                here = scan::scalar_end(input, here);
            }
            there = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Api;
    use super::super::document::Progress;
    use super::super::document::Reader;
    use super::super::table::Kind;
    use super::super::totals::Totals;
    use super::*;

    /// Whether `other` is taken for saying the same as `one`.
    fn alike(one: &str, other: &str) -> bool {
        let input = [one, other].concat();
        let mut reader = Reader::new(Api::OpenaiChat.table(false), Totals::default());
        let mut gaps = Gaps::new();
        let line = one.trim_end();
        let mut rest = line.strip_prefix("data: ").expect("an event").as_bytes();
        assert!(reader.read_hearing(&mut rest, gaps.ending_at(line.len())) == Progress::Done, "{one}");
        let said = reader.end(Kind::Other).expect("no figures");
        let pattern = Pattern::new(0, one.len(), &gaps, said);
        for end in one.len()..input.len() {
            assert!(pattern.end_of_alike(&input.as_bytes()[..end], one.len()).is_none(), "cut at {end}: {other}");
        }
        let end = pattern.end_of_alike(input.as_bytes(), one.len());
        assert!(end.is_none_or(|end| end == input.len()), "{other}");
        end.is_some()
    }

    fn event(text: &str, number: &str, reason: &str) -> String {
        format!(
            "data: {{\"id\":\"x\",\"created\":{number},\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}},\
             \"index\":{number},\"finish_reason\":{reason}}}]}}\n\n"
        )
    }

    #[test]
    fn what_nobody_looks_at_may_differ() {
        let texts = [
            "",
            "a",
            "ab",
            "b",
            "\\n",
            "a\\\"",
            "a\\\\",
            "a\\\\b",
            "\\\\\\\"",
            "a\\\\\\\"b",
            "\u{e9}",
            "}]}",
            "data: {",
            "\\u00e9",
            "a text that is longer than a block of bytes is",
            "a text that is longer than a \\\"block\\\" of bytes is",
        ];
        let numbers = ["0", "1", "12", "-1", "1.5e9", "null", "true", "18446744073709551616"];
        for one in texts {
            for other in texts {
                assert!(alike(&event(one, "1", "null"), &event(other, "1", "null")), "{one} and {other}");
            }
        }
        for one in numbers {
            for other in numbers {
                assert!(alike(&event("a", one, "null"), &event("b", other, "null")), "{one} and {other}");
            }
        }
    }

    #[test]
    fn nothing_else_may() {
        let one = event("text", "1", "null");
        for other in [
            event("text", "1", "\"stop\""),
            event("text", "1", "\"\""),
            event("text", "1", "false"),
            event("text", "1", "null "),
            event("text", "\"1\"", "null"),
            event("text", "{}", "null"),
            event("text", "", "null"),
            event("text", "]", "null"),
            event("te\nxt", "1", "null"),
            event("te\rxt", "1", "null"),
            event("te\\\nxt", "1", "null"),
            event("text\\", "1", "null"),
            event("te\"xt", "1", "null"),
            event("text", "1\n", "null"),
            one.replace("index", "indes"),
            one.replace("\"id\"", "\"model\""),
            one.replace("}]}", "}],\"usage\":{\"prompt_tokens\":1}}"),
            one.replace("data: ", "data:"),
            one.replace("\n\n", "\r\n\r\n"),
            one.replace("\n\n", "\n:\n"),
        ] {
            assert!(!alike(&one, &other), "{other}");
        }
    }
}
