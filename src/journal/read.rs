//! Reading what journals have written: also while they write, and after others have carried the files about.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::Value;

use super::event::pico;
use super::file::CLOSED;
use super::file::OPEN;

/// The longest line that is read. Ours have some 500 bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Tokens and the like that are added up, by their names in a line.
pub(super) const FIGURES: [&str; 10] = [
    "input_uncached",
    "input_cache_read",
    "input_cache_write",
    "output_response",
    "output_reasoning",
    "estimated_input",
    "estimated_output",
    "side_input",
    "side_output",
    "audio_ms",
];

/// One line.
pub(super) struct Record<'l> {
    /// The process, and its number of the event.
    pub(super) id: (u64, u64),
    pub(super) time: Timestamp,
    pub(super) pop: Option<Cow<'l, str>>,
    pub(super) key: Option<Cow<'l, str>>,
    pub(super) label: Option<Cow<'l, str>>,
    pub(super) account: Option<Cow<'l, str>>,
    pub(super) upstream: Cow<'l, str>,
    pub(super) model: Cow<'l, str>,
    /// In the order of [`FIGURES`].
    pub(super) figures: [u64; FIGURES.len()],
    /// Picodollars; 0 without a price.
    pub(super) cost: u128,
}

/// What stands in a line as the value of a member.
enum Field<'l> {
    Text(Cow<'l, str>),
    Number(u64),
    /// None of the two.
    Other,
}

/// The members of a line so far.
#[derive(Default)]
struct Members<'l> {
    id: Option<(u64, u64)>,
    time: Option<Timestamp>,
    /// `pop`, `key`, `label`, `account`, `upstream` and `model`.
    texts: [Option<Cow<'l, str>>; 6],
    figures: [u64; FIGURES.len()],
    cost: u128,
    wrong: bool,
}

/// Which member a name is of.
enum Member {
    Id,
    Time,
    Cost,
    /// Place in `Members::texts`.
    Text(usize),
    /// Place in [`FIGURES`].
    Figure(usize),
}

impl Member {
    /// `None`: it is not read. One comparison for each member of a line: there are two dozen.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "time" => Self::Time,
            "cost_usd" => Self::Cost,
            "pop" => Self::Text(0),
            "key" => Self::Text(1),
            "label" => Self::Text(2),
            "account" => Self::Text(3),
            "upstream" => Self::Text(4),
            "model" => Self::Text(5),
            "input_uncached" => Self::Figure(0),
            "input_cache_read" => Self::Figure(1),
            "input_cache_write" => Self::Figure(2),
            "output_response" => Self::Figure(3),
            "output_reasoning" => Self::Figure(4),
            "estimated_input" => Self::Figure(5),
            "estimated_output" => Self::Figure(6),
            "side_input" => Self::Figure(7),
            "side_output" => Self::Figure(8),
            "audio_ms" => Self::Figure(9),
            _ => return None,
        })
    }
}

impl<'l> Members<'l> {
    fn take(&mut self, name: &str, field: Field<'l>) {
        match (Member::of(name), field) {
            (Some(Member::Id), Field::Text(text)) => self.id = id(&text),
            (Some(Member::Time), Field::Text(text)) => self.time = time(&text),
            (Some(Member::Cost), Field::Text(text)) => match pico(&text) {
                Some(cost) => self.cost = cost,
                None => self.wrong = true,
            },
            (Some(Member::Text(place)), Field::Text(text)) => self.texts[place] = Some(text),
            (Some(Member::Figure(place)), Field::Number(number)) => self.figures[place] = number,
            (Some(_), _) => self.wrong = true,
            (None, _) => {}
        }
    }

    fn record(self) -> Option<Record<'l>> {
        let [pop, key, label, account, upstream, model] = self.texts;
        let (id, time, upstream, model) = (self.id?, self.time?, upstream?, model?);
        let Self { figures, cost, .. } = self;
        (!self.wrong).then_some(Record { id, time, pop, key, label, account, upstream, model, figures, cost })
    }
}

/// A time as our lines write it, `2026-11-21T14:00:00.123Z`, or else as RFC 3339 allows. The first way takes half of the time
/// that a line took before.
fn time(text: &str) -> Option<Timestamp> {
    let bytes: Option<&[u8; 24]> = text.as_bytes().try_into().ok();
    if let Some(bytes) = bytes
        && [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')]
            .iter()
            .all(|(place, letter)| bytes[*place] == *letter)
    {
        let number = |from: usize, to: usize| {
            bytes[from..to]
                .iter()
                .try_fold(0_i16, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i16::from(digit - b'0')))
        };
        let date = Date::new(number(0, 4)?, number(5, 7)? as i8, number(8, 10)? as i8).ok()?;
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = i64::from((date - UNIX_EPOCH).get_days());
        let seconds = days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        return Timestamp::from_millisecond(seconds * 1000 + i64::from(number(20, 23)?)).ok();
    }
    text.parse().ok()
}

const UNIX_EPOCH: Date = Date::constant(1970, 1, 1);

fn id(text: &str) -> Option<(u64, u64)> {
    let (process, number) = text.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if process.len() != 16 || !digits(process) || !digits(number) {
        return None;
    }
    Some((u64::from_str_radix(process, 16).ok()?, number.parse().ok()?))
}

impl<'l> Record<'l> {
    /// `None`: it is none of ours, or not whole. Members that are not ours may stand in it, and all may stand in any order:
    /// collectors add some, and write lines anew.
    pub(super) fn read(line: &'l [u8]) -> Option<Self> {
        let mut members = Members::default();
        if flat(line, &mut |name, field| members.take(name, field)) {
            return members.record();
        }
        let Ok(Value::Object(object)) = serde_json::from_slice(line) else { return None };
        let mut members = Members::default();
        for (name, value) in object {
            let field = match value {
                Value::String(text) => Field::Text(text.into()),
                Value::Number(number) => number.as_u64().map_or(Field::Other, Field::Number),
                _ => Field::Other,
            };
            members.take(&name, field);
        }
        members.record()
    }
}

/// Shows the members of an object of plain texts and whole numbers, as our lines are. `false`: it is not written so, and
/// what was shown means nothing.
fn flat<'l>(line: &'l [u8], each: &mut dyn FnMut(&str, Field<'l>)) -> bool {
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let Some(mut rest) = line.trim_ascii_end().strip_prefix("{\"") else { return false };
    loop {
        let Some((name, after)) = text(rest) else { return false };
        let Some(value) = after.strip_prefix(':') else { return false };
        if let Some(value) = value.strip_prefix('"') {
            let Some((text, after)) = text(value) else { return false };
            each(name, Field::Text(Cow::Borrowed(text)));
            rest = after;
        } else {
            let digits = value.bytes().take_while(u8::is_ascii_digit).count();
            let Ok(number) = value[..digits].parse() else { return false };
            if digits > 1 && value.starts_with('0') {
                return false;
            }
            each(name, Field::Number(number));
            rest = &value[digits..];
        }
        match rest.strip_prefix(",\"") {
            Some(next) => rest = next,
            None => return rest == "}",
        }
    }
}

/// A text without escapes up to its quote, and what stands behind it.
fn text(rest: &str) -> Option<(&str, &str)> {
    let end = memchr::memchr(b'"', rest.as_bytes())?;
    let text = &rest[..end];
    (!text.bytes().any(|byte| byte == b'\\' || byte < b' ')).then(|| (text, &rest[end + 1..]))
}

/// Shows each whole line, without its end; `None` for one that is too long. What stands behind the last end of a line is
/// not shown: somebody is writing it, or was cut off. Returns whether there is such a thing.
pub(super) fn lines(mut from: impl Read, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<bool> {
    let mut buffer = vec![0; 4 * LINE_BYTES_MAX];
    let (mut filled, mut too_long) = (0, false);
    loop {
        let read = match from.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(filled > 0 || too_long),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (mut begin, mut look) = (0, filled);
        filled += read;
        while let Some(place) = memchr::memchr(b'\n', &buffer[look..filled]) {
            let line = &buffer[begin..look + place];
            let whole = !std::mem::take(&mut too_long) && line.len() <= LINE_BYTES_MAX;
            each(whole.then_some(line));
            begin = look + place + 1;
            look = begin;
        }
        buffer.copy_within(begin..filled, 0);
        filled -= begin;
        if filled > LINE_BYTES_MAX {
            (filled, too_long) = (0, true);
        }
    }
}

/// The files of a journal's folder, without the ends of their names, in order.
pub(super) fn stems(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut stems = BTreeSet::new();
    // Twice: a file that gets its other name meanwhile may be seen under neither.
    for _ in 0..2 {
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("usage")) else { continue };
            if let Some(stem) = name.strip_suffix(OPEN).or_else(|| name.strip_suffix(CLOSED)) {
                stems.insert(stem.to_owned());
            }
        }
    }
    Ok(stems)
}

/// Opens a file of a journal's folder under the name that it has now. `None`: it is gone. Empty ones go with their
/// processes, and collectors may take others.
pub(super) fn open(folder: &Path, stem: &str) -> io::Result<Option<File>> {
    for end in [OPEN, CLOSED] {
        match File::open(folder.join(format!("{stem}{end}"))) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Which events there have been. Small, because the events of a process are numbered: what is kept are ranges.
#[derive(Default)]
pub(super) struct Seen {
    /// By process: first and last numbers of ranges that neither touch nor overlap.
    processes: HashMap<u64, BTreeMap<u64, u64>>,
}

impl Seen {
    /// Whether this is the first time.
    pub(super) fn insert(&mut self, (process, number): (u64, u64)) -> bool {
        let ranges = self.processes.entry(process).or_default();
        let after = number.checked_add(1).and_then(|next| ranges.get(&next).copied());
        let before = ranges.range_mut(..=number).next_back();
        let last = after.unwrap_or(number);
        match before {
            Some((_, end)) if *end >= number => return false,
            Some((_, end)) if *end + 1 == number => *end = last,
            _ => {
                ranges.insert(number, last);
            }
        }
        if after.is_some() {
            ranges.remove(&(number + 1));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::event;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut line = String::new();
        event::Lines::default().put(&event::tests::event(), &mut line);
        for line in [
            line.trim_end().to_owned(),
            line.clone(),
            // As other programs would write it.
            serde_json::from_str::<Value>(&line).unwrap().to_string(),
            format!("{:#}", serde_json::from_str::<Value>(&line).unwrap()),
            line.replace("\"pop\"", "\"host\":{\"name\":[1,null]},\"pop\""),
            line.replace("fra-1", "fra\\u002d1"),
        ] {
            let record = Record::read(line.as_bytes()).expect(&line);
            assert_eq!(record.id.0, event::process());
            assert_eq!(record.time.to_string(), "2026-11-21T14:00:00.123Z");
            assert_eq!((&*record.upstream, &*record.model), ("openai", "gpt-5"));
            assert_eq!((record.pop.as_deref(), record.account.as_deref()), (Some("fra-1"), Some("acme")));
            assert_eq!((record.key.as_deref(), record.label.as_deref()), (Some("k1"), Some("ci-bot")));
            assert_eq!(record.figures, [10, 0, 0, 5, 0, 3, 4, 0, 0, 0]);
            assert_eq!(record.cost, 1_500_000);
        }
    }

    #[test]
    fn times_are_what_they_say() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "1969-12-31T23:59:59.999Z",
            "2024-02-29T12:34:56.789Z",
            "2026-11-21T23:59:59.001Z",
            "9999-12-30T21:59:59.999Z",
            "2026-02-29T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-11-21T24:00:00.000Z",
            "2026-11-21T23:60:00.000Z",
            "2026-11-2xT23:00:00.000Z",
            "2026-11-21T23:00:00Z",
            "2026-11-21T23:00:00.5+02:00",
            "2026-11-21",
        ] {
            assert_eq!(time(text), text.parse().ok(), "{text}");
        }
    }

    #[test]
    fn figures_have_their_places() {
        for (place, name) in FIGURES.iter().enumerate() {
            assert!(matches!(Member::of(name), Some(Member::Figure(found)) if found == place), "{name}");
        }
    }

    #[test]
    fn what_is_not_ours_or_not_whole_is_not_read() {
        let mut line = String::new();
        event::Lines::default().put(&event::tests::event(), &mut line);
        let line = line.trim_end();
        for cut in 0..line.len() {
            assert!(Record::read(&line.as_bytes()[..cut]).is_none(), "{cut}");
        }
        for (old, new) in [
            ("\"id\":\"", "\"id\":\"x"),
            ("\"time\":\"2026", "\"time\":\"yesterday"),
            ("\"upstream\"", "\"downstream\""),
            ("\"input_uncached\":10", "\"input_uncached\":\"10\""),
            ("\"input_uncached\":10", "\"input_uncached\":-10"),
            ("\"input_uncached\":10", "\"input_uncached\":010"),
            ("\"input_uncached\":10", "\"input_uncached\":18446744073709551616"),
            ("\"cost_usd\":\"", "\"cost_usd\":\"-"),
            ("\"model\":\"gpt-5\"", "\"model\":5"),
            ("}", "}}"),
            ("{", "[{"),
        ] {
            assert!(line.contains(old));
            assert!(Record::read(line.replace(old, new).as_bytes()).is_none(), "{new}");
        }
    }

    /// Gives its bytes in pieces of this many.
    struct Pieces<'b>(&'b [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let longest = "y".repeat(LINE_BYTES_MAX);
        let much_longer = "z".repeat(9 * LINE_BYTES_MAX);
        let text = format!("a\n\n{longest}\n{long}\nbc\n{much_longer}\nd\nrest");
        for piece in [1, 2, 1000, LINE_BYTES_MAX, 1 << 20] {
            let mut seen = Vec::new();
            let cut = lines(Pieces(text.as_bytes(), piece), &mut |line| seen.push(line.map(<[u8]>::to_vec))).unwrap();
            let text = |text: &str| Some(text.as_bytes().to_vec());
            assert_eq!(seen, [text("a"), text(""), text(&longest), None, text("bc"), None, text("d")]);
            assert!(cut);
        }
        assert!(!lines(&b"a\n"[..], &mut |_| {}).unwrap());
        assert!(lines(much_longer.as_bytes(), &mut |_| panic!("no line")).unwrap());
    }

    #[test]
    fn ranges_know_what_a_set_knows() {
        let mut state = 7_u64;
        let mut next = |below: u64| {
            // Numerical Recipes' generator.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % below
        };
        let (mut seen, mut set) = (Seen::default(), HashSet::new());
        for _ in 0..20_000 {
            let id = (next(3), next(3000));
            assert_eq!(seen.insert(id), set.insert(id), "{id:?}");
        }
        for process in 0..3 {
            for number in 0..3000 {
                seen.insert((process, number));
            }
            assert_eq!(seen.processes[&process].len(), 1, "one range");
        }
        assert!(seen.insert((9, u64::MAX)) && seen.insert((9, u64::MAX - 1)) && !seen.insert((9, u64::MAX)));
    }
}
