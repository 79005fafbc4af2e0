//! `nullhop usage`: what the files of journals add up to.

use std::collections::BTreeMap;
use std::io;
use std::io::Read;
use std::path::Path;

use jiff::Timestamp;
use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::event::dollars;
use super::read;
use super::read::FIGURES;
use super::read::Record;
use super::read::Seen;

/// What events are put together by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    Account,
    Day,
    Key,
    Model,
    Pop,
    Upstream,
}

impl By {
    /// The column's name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Day => "day",
            Self::Key => "key",
            Self::Model => "model",
            Self::Pop => "pop",
            Self::Upstream => "upstream",
        }
    }
}

/// What an event has nothing of.
const NOTHING: &str = "-";

/// Between the names of a group. Stands in no name, and before every letter in order.
const BETWEEN: char = '\u{1f}';

/// Which events count, and what a day is.
pub(crate) struct Span {
    /// Its days count.
    pub(crate) zone: TimeZone,
    /// The first moment.
    pub(crate) from: Option<Timestamp>,
    /// The first moment that does not count any more.
    pub(crate) to: Option<Timestamp>,
}

impl Span {
    /// Whole days of `zone`, both named ones among them. `None`: there is no such day.
    pub(crate) fn days(zone: TimeZone, first: Option<Date>, last: Option<Date>) -> Option<Self> {
        let begin = |date: Date| Some(date.to_zoned(zone.clone()).ok()?.timestamp());
        let from = first.map(|date| begin(date).ok_or(())).transpose().ok()?;
        let to = last.map(|date| date.tomorrow().ok().and_then(begin).ok_or(())).transpose().ok()?;
        Some(Self { zone, from, to })
    }

    fn has(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.to.is_none_or(|to| time < to)
    }
}

/// A day of a zone, and from when to when it lasts. Events come in order, so the next one is often of the same day.
struct Day {
    name: String,
    from: Timestamp,
    to: Timestamp,
}

impl Day {
    fn of(time: Timestamp, zone: &TimeZone) -> Self {
        let date = time.to_zoned(zone.clone()).date();
        let begin = |date: Date| date.to_zoned(zone.clone()).ok().map(|begin| begin.timestamp());
        let from = begin(date).unwrap_or(time);
        let to = date.checked_add(1.day()).ok().and_then(begin).unwrap_or(time);
        Self { name: date.to_string(), from, to }
    }
}

/// The sums of one group.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Sum {
    requests: u64,
    figures: [u64; FIGURES.len()],
    /// Picodollars.
    cost: u128,
}

impl Sum {
    fn add(&mut self, record: &Record<'_>) {
        self.requests += 1;
        for (figure, more) in self.figures.iter_mut().zip(record.figures) {
            *figure = figure.saturating_add(more);
        }
        self.cost = self.cost.saturating_add(record.cost);
    }

    fn cells(&self) -> impl Iterator<Item = String> {
        let figures = [self.requests].into_iter().chain(self.figures).map(|figure| figure.to_string());
        figures.chain([dollars(self.cost)])
    }
}

/// Sums of journals by groups.
pub(crate) struct Sums {
    by: Vec<By>,
    span: Span,
    day: Option<Day>,
    /// By the names of `by`.
    groups: BTreeMap<String, Sum>,
    total: Sum,
    /// By a key's id: the label that its latest event has.
    labels: BTreeMap<String, (Timestamp, String)>,
    seen: Seen,
    /// The group of the event at hand.
    group: String,
    repeated: u64,
    unread: u64,
}

impl Sums {
    /// Nothing yet. Without `by`, all is one group.
    pub(crate) fn new(by: &[By], span: Span) -> Self {
        let mut once: Vec<By> = Vec::new();
        for by in by {
            if !once.contains(by) {
                once.push(*by);
            }
        }
        Self {
            by: once,
            span,
            day: None,
            groups: BTreeMap::new(),
            total: Sum::default(),
            labels: BTreeMap::new(),
            seen: Seen::default(),
            group: String::new(),
            repeated: 0,
            unread: 0,
        }
    }

    /// Adds every `usage*.jsonl` in a folder, or one file whatever its name is. What has been added before does not count
    /// again.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn add(&mut self, path: &Path) -> io::Result<()> {
        if !std::fs::metadata(path)?.is_dir() {
            return self.add_lines(std::fs::File::open(path)?);
        }
        for stem in read::stems(path)? {
            if let Some(file) = read::open(path, &stem)? {
                self.add_lines(file)?;
            }
        }
        Ok(())
    }

    /// Adds lines from wherever they come.
    ///
    /// # Errors
    /// If they do not come.
    pub(crate) fn add_lines(&mut self, from: impl Read) -> io::Result<()> {
        // What is behind the last whole line is being written, or was cut by a crash: not an event yet, or never one.
        read::lines(from, &mut |line| match line {
            Some([]) => {}
            line => match line.and_then(Record::read) {
                Some(record) => self.take(&record),
                None => self.unread += 1,
            },
        })
        .map(|_| ())
    }

    /// Events that were there more than once, and counted once.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Lines that are none of ours, or not whole.
    pub(crate) fn unread(&self) -> u64 {
        self.unread
    }

    fn take(&mut self, record: &Record<'_>) {
        if !self.seen.insert(record.id) {
            self.repeated += 1;
            return;
        }
        if !self.span.has(record.time) {
            return;
        }
        self.group.clear();
        for by in &self.by {
            if by != &self.by[0] {
                self.group.push(BETWEEN);
            }
            let name = match by {
                By::Account => record.account.as_deref(),
                By::Key => record.key.as_deref(),
                By::Model => Some(&*record.model),
                By::Pop => record.pop.as_deref(),
                By::Upstream => Some(&*record.upstream),
                By::Day => {
                    let same = |day: &&Day| (day.from..day.to).contains(&record.time);
                    if self.day.as_ref().filter(same).is_none() {
                        self.day = Some(Day::of(record.time, &self.span.zone));
                    }
                    self.day.as_ref().map(|day| &*day.name)
                }
            };
            // A file that others have written may hold anything.
            self.group.extend(name.unwrap_or(NOTHING).chars().filter(|letter| !letter.is_control()));
        }
        match self.groups.get_mut(&self.group) {
            Some(sum) => sum.add(record),
            None => self.groups.entry(self.group.clone()).or_default().add(record),
        }
        self.total.add(record);
        if self.by.contains(&By::Key)
            && let (Some(key), Some(label)) = (&record.key, &record.label)
        {
            match self.labels.get_mut(&**key) {
                Some((time, _)) if *time > record.time => {}
                Some((time, known)) => {
                    *time = record.time;
                    if known != label {
                        label.as_ref().clone_into(known);
                    }
                }
                None => {
                    self.labels.insert(key.to_string(), (record.time, label.to_string()));
                }
            }
        }
    }

    /// Names of the columns that say whose sums a row has; a key has two.
    fn names(&self) -> Vec<&'static str> {
        let columns = self.by.iter().flat_map(|by| match by {
            By::Key => vec!["key", "label"],
            by => vec![by.as_str()],
        });
        columns.collect()
    }

    fn header(&self) -> Vec<String> {
        let names = self.names().into_iter().chain(["requests"]).chain(FIGURES).chain(["cost_usd"]);
        names.map(str::to_owned).collect()
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |(group, sum): (&String, &Sum)| {
            let mut cells = Vec::new();
            // Without `by` there are no names at all.
            for (by, name) in self.by.iter().zip(group.split(BETWEEN)) {
                cells.push(name.to_owned());
                if *by == By::Key {
                    cells.push(self.labels.get(name).map_or(NOTHING, |(_, label)| label).to_owned());
                }
            }
            cells.extend(sum.cells());
            cells
        };
        self.groups.iter().map(row).collect()
    }

    /// For people: with a line of totals, and without figures that nobody has.
    pub(crate) fn table(&self) -> String {
        let names = self.names().len();
        let mut rows = vec![self.header()];
        rows.extend(self.rows());
        let mut total: Vec<String> = vec![String::new(); names];
        if let Some(first) = total.first_mut() {
            "total".clone_into(first);
        }
        rows.push(total.into_iter().chain(self.total.cells()).collect());
        let shown = |column: &usize| {
            let figure = column.checked_sub(names + 1).and_then(|place| Some((FIGURES.get(place)?, place)));
            figure.is_none_or(|(name, place)| {
                matches!(*name, "input_uncached" | "output_response") || self.total.figures[place] > 0
            })
        };
        let columns: Vec<usize> = (0..rows[0].len()).filter(shown).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
        let mut out = String::new();
        for row in &rows {
            let cells = columns.iter().map(|&column| {
                let (cell, width) = (&row[column], widths[column]);
                if column < names { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// RFC 4180, with a header and without totals: who adds up a column wants the rows alone.
    pub(crate) fn csv(&self) -> String {
        let mut out = String::new();
        for row in [self.header()].into_iter().chain(self.rows()) {
            let cells = row.into_iter().map(|cell| match cell.contains([',', '"']) {
                true => format!("\"{}\"", cell.replace('"', "\"\"")),
                false => cell,
            });
            out.push_str(&cells.collect::<Vec<_>>().join(","));
            out.push_str("\r\n");
        }
        out
    }

    /// `rows` and `total`. Money is text: a number of most readers would round it.
    pub(crate) fn json(&self) -> Value {
        let header = self.header();
        let names = self.names().len();
        let object = |first: usize, row: Vec<String>| {
            let members = header[first..].iter().zip(row).enumerate().map(|(place, (name, cell))| {
                let number = (names..header.len() - 1).contains(&(first + place));
                let value = if number { cell.parse::<u64>().map_or(Value::Null, Value::from) } else { cell.into() };
                (name.clone(), value)
            });
            Value::Object(members.collect())
        };
        let rows: Value = self.rows().into_iter().map(|row| object(0, row)).collect();
        let members = [("rows", rows), ("total", object(names, self.total.cells().collect()))];
        Value::Object(members.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = r#"{"id":"000000000000000a-0","time":"2026-11-21T23:30:00.000Z","key":"k1","label":"ci","account":"acme","upstream":"openai","model":"gpt-5","input_uncached":10,"output_response":2,"estimated_output":3,"cost_usd":"0.1"}
{"id":"000000000000000a-1","time":"2026-11-22T00:30:00.000Z","key":"k1","label":"ci-2","account":"acme","upstream":"openai","model":"gpt-5","input_uncached":1,"output_response":1,"cost_usd":"0.2"}
{"id":"000000000000000a-1","time":"2026-11-22T00:30:00.000Z","key":"k1","label":"ci-2","account":"acme","upstream":"openai","model":"gpt-5","input_uncached":1,"output_response":1,"cost_usd":"0.2"}
{"id":"000000000000000a-2","time":"2026-11-22T01:30:00.000Z","upstream":"openai","model":"other","input_uncached":7}
{"id":"000000000000000a-3","time":"2026-11-22T01:
{"id":"000000000000000a-4","time":"2026-11-22T01:"#;

    fn spanned(by: &[By], span: Span) -> Sums {
        let mut sums = Sums::new(by, span);
        sums.add_lines(EVENTS.as_bytes()).unwrap();
        sums
    }

    fn sums(by: &[By], zone: TimeZone) -> Sums {
        spanned(by, Span::days(zone, None, None).unwrap())
    }

    #[test]
    fn events_count_once_and_cut_lines_not_at_all() {
        let mut sums = sums(&[By::Account, By::Day, By::Account], TimeZone::UTC);
        sums.add_lines(EVENTS.as_bytes()).unwrap();
        assert_eq!((sums.repeated(), sums.unread()), (5, 2));
        let rows = sums.rows();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0][..4], ["-", "2026-11-22", "1", "7"]);
        assert_eq!(rows[1][..4], ["acme", "2026-11-21", "1", "10"]);
        assert_eq!(rows[2].last().unwrap(), "0.2");
        assert_eq!(sums.total.requests, 3);
        assert_eq!(dollars(sums.total.cost), "0.3");
    }

    #[test]
    fn days_are_those_of_the_zone() {
        let days = |zone: &str, first: Option<&str>, last: Option<&str>| {
            let date = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let span = Span::days(TimeZone::get(zone).unwrap(), date(first), date(last)).unwrap();
            let sums = spanned(&[By::Day], span);
            sums.groups.iter().map(|(day, sum)| (day.clone(), sum.requests)).collect::<Vec<_>>()
        };
        let day = |day: &str, requests: u64| (day.to_owned(), requests);
        assert_eq!(days("Europe/Berlin", None, None), [day("2026-11-22", 3)]);
        assert_eq!(days("UTC", None, None), [day("2026-11-21", 1), day("2026-11-22", 2)]);
        assert_eq!(days("America/New_York", None, None), [day("2026-11-21", 3)]);
        assert_eq!(days("UTC", Some("2026-11-22"), None), [day("2026-11-22", 2)]);
        assert_eq!(days("UTC", None, Some("2026-11-21")), [day("2026-11-21", 1)]);
        assert_eq!(days("UTC", Some("2026-11-21"), Some("2026-11-22")).len(), 2);
        assert_eq!(days("Europe/Berlin", Some("2026-11-23"), Some("2026-11-23")), []);
        // A day of 25 hours is one day.
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let date = "2026-10-25".parse().unwrap();
        let span = Span::days(zone, Some(date), Some(date)).unwrap();
        assert_eq!(span.to.unwrap().as_second() - span.from.unwrap().as_second(), 25 * 3600);
    }

    #[test]
    fn table_csv_and_json_say_the_same() {
        let sums = sums(&[By::Key, By::Model], TimeZone::UTC);
        let table = sums.table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("key") && lines[3].starts_with("total"));
        assert!(lines[0].contains("estimated_output") && !lines[0].contains("cache_read"), "nobody has any");
        assert!(lines[2].starts_with("k1     ci-2   gpt-5"), "the latest label: {table}");
        assert!(sums.csv().contains("k1,ci-2,gpt-5,2,11,0,0,3,0,0,3,0,0,0,0.3\r\n"));
        let json = sums.json();
        assert_eq!(json["rows"][1]["key"], "k1");
        assert_eq!(json["rows"][1]["label"], "ci-2");
        assert_eq!(json["rows"][1]["input_uncached"], 11);
        assert_eq!(json["rows"][1]["cost_usd"], "0.3");
        assert_eq!(json["total"]["requests"], 3);
        assert_eq!(json["total"]["input_uncached"], 18);
        assert_eq!(json["total"]["cost_usd"], "0.3");
        assert_eq!(json["total"].get("key"), None);
    }

    #[test]
    fn without_groups_there_is_one_row() {
        let sums = sums(&[], TimeZone::UTC);
        assert_eq!(sums.rows().len(), 1);
        assert_eq!(sums.rows()[0].len(), sums.header().len());
        assert_eq!(sums.table().lines().count(), 3);
    }

    #[test]
    fn nothing_of_a_foreign_file_breaks_out() {
        let mut sums = Sums::new(&[By::Model], Span::days(TimeZone::UTC, None, None).unwrap());
        let line = "{\"id\":\"000000000000000a-0\",\"time\":\"2026-11-21T23:30:00Z\",\"upstream\":\"o\",\
                    \"model\":\"a,\\\"b\\u001f\\u001b[2J\\n\"}\n";
        sums.add_lines(line.as_bytes()).unwrap();
        assert!(sums.csv().contains("\r\n\"a,\"\"b[2J\",1,"), "{}", sums.csv());
        assert_eq!(sums.table().lines().count(), 3);
    }
}
