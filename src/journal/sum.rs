//! `nullhop usage`: what the files of a journal add up to.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::event::dollars;

/// What events are put together by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    Account,
    Day,
    Key,
    Model,
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
            Self::Upstream => "upstream",
        }
    }

    fn of(self, event: &Value, zone: &TimeZone) -> Option<String> {
        let text = |name: &str| event.get(name).map_or(Some("-".to_owned()), |value| value.as_str().map(str::to_owned));
        match self {
            Self::Account => text("account"),
            Self::Day => {
                let time: Timestamp = event.get("time")?.as_str()?.parse().ok()?;
                Some(time.to_zoned(zone.clone()).date().to_string())
            }
            Self::Key => match event.get("label") {
                Some(label) => Some(format!("{} ({})", label.as_str()?, event.get("key")?.as_str()?)),
                None => Some("-".to_owned()),
            },
            Self::Model => text("model"),
            Self::Upstream => text("upstream"),
        }
    }
}

/// The figures, in the order of their columns.
const FIGURES: [&str; 7] = [
    "input_uncached",
    "input_cache_read",
    "input_cache_write",
    "output_response",
    "output_reasoning",
    "side_input",
    "side_output",
];

/// The sums of one group.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Sum {
    requests: u64,
    figures: [u64; FIGURES.len()],
    /// Picodollars.
    cost: u128,
}

/// Sums of a journal by groups.
pub(crate) struct Sums {
    by: Vec<By>,
    groups: BTreeMap<Vec<String>, Sum>,
    total: Sum,
    /// Events that stood in the files more than once.
    pub(crate) repeated: u64,
    /// Lines that are none of ours, or not whole.
    pub(crate) unread: u64,
}

impl Sums {
    /// Adds up every `usage*.jsonl` in `folder`. Days are those of `zone`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn read(folder: &Path, by: &[By], zone: &TimeZone) -> io::Result<Self> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if name.starts_with("usage") && name.ends_with(".jsonl") {
                files.push(path);
            }
        }
        files.sort();
        let mut sums = Self { by: by.to_vec(), groups: BTreeMap::new(), total: Sum::default(), repeated: 0, unread: 0 };
        let mut seen = HashSet::new();
        for file in files {
            for line in BufReader::new(File::open(file)?).split(b'\n') {
                sums.add(&line?, zone, &mut seen);
            }
        }
        Ok(sums)
    }

    fn add(&mut self, line: &[u8], zone: &TimeZone, seen: &mut HashSet<String>) {
        if line.is_empty() {
            return;
        }
        let parsed = serde_json::from_slice::<Value>(line).ok();
        let Some(event) = parsed.filter(|event| event.get("id").is_some_and(Value::is_string)) else {
            self.unread += 1;
            return;
        };
        let Some(group) = self.by.iter().map(|by| by.of(&event, zone)).collect::<Option<Vec<_>>>() else {
            self.unread += 1;
            return;
        };
        let id = event["id"].as_str().unwrap_or_default();
        if !seen.insert(id.to_owned()) {
            self.repeated += 1;
            return;
        }
        for sum in [self.groups.entry(group).or_default(), &mut self.total] {
            sum.requests += 1;
            for (figure, name) in sum.figures.iter_mut().zip(FIGURES) {
                *figure = figure.saturating_add(event.get(name).and_then(Value::as_u64).unwrap_or(0));
            }
            sum.cost += event.get("cost_usd").and_then(Value::as_str).and_then(pico).unwrap_or(0);
        }
    }

    fn header(&self) -> Vec<String> {
        let groups = self.by.iter().map(|by| by.as_str());
        groups.chain(["requests"]).chain(FIGURES).chain(["cost_usd"]).map(str::to_owned).collect()
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let row = |group: &[String], sum: &Sum| {
            let figures = [sum.requests].into_iter().chain(sum.figures).map(|figure| figure.to_string());
            group.iter().cloned().chain(figures).chain([cost(sum.cost)]).collect()
        };
        self.groups.iter().map(|(group, sum)| row(group, sum)).collect()
    }

    /// For people, with a line of totals.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![self.header()];
        rows.extend(self.rows());
        let total = [self.total.requests].into_iter().chain(self.total.figures).map(|figure| figure.to_string());
        let mut names: Vec<String> = self.by.iter().map(|_| String::new()).collect();
        if let Some(first) = names.first_mut() {
            "total".clone_into(first);
        }
        rows.push(names.into_iter().chain(total).chain([cost(self.total.cost)]).collect());
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
        let mut out = String::new();
        for row in &rows {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                if column < self.by.len() { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            out.push('\n');
        }
        out
    }

    /// RFC 4180, with a header. Names hold neither commas nor quotes.
    pub(crate) fn csv(&self) -> String {
        let mut out = String::new();
        for row in [self.header()].into_iter().chain(self.rows()) {
            out.push_str(&row.join(","));
            out.push_str("\r\n");
        }
        out
    }

    /// A list of objects.
    pub(crate) fn json(&self) -> Value {
        let header = self.header();
        let object = |row: Vec<String>| {
            let members = header.iter().zip(row).enumerate().map(|(column, (name, cell))| {
                let number = (self.by.len()..header.len() - 1).contains(&column);
                let value = if number { cell.parse::<u64>().map_or(Value::Null, Value::from) } else { cell.into() };
                (name.clone(), value)
            });
            Value::Object(members.collect())
        };
        self.rows().into_iter().map(object).collect()
    }
}

fn cost(pico: u128) -> String {
    let whole = u64::try_from(pico / 1_000_000_000_000).unwrap_or(u64::MAX);
    let rest = (pico % 1_000_000_000_000) as u64;
    match dollars(rest).split_once('.') {
        Some((_, fraction)) => format!("{whole}.{fraction}"),
        None => whole.to_string(),
    }
}

/// A decimal number of dollars in picodollars. `None` if it is none, or finer than that.
pub(crate) fn pico(text: &str) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 18 || fraction.len() > 12 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let fraction: u128 = format!("{fraction:0<12}").parse().ok()?;
    Some(whole * 1_000_000_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: &str = r#"{"id":"a-0","time":"2026-11-21T23:30:00.000Z","key":"k1","label":"ci","account":"acme","upstream":"openai","model":"gpt-5","input_uncached":10,"output_response":2,"cost_usd":"0.1"}
{"id":"a-1","time":"2026-11-22T00:30:00.000Z","key":"k1","label":"ci","account":"acme","upstream":"openai","model":"gpt-5","input_uncached":1,"output_response":1,"cost_usd":"0.2"}
{"id":"a-1","time":"2026-11-22T00:30:00.000Z","key":"k1","label":"ci","account":"acme","upstream":"openai","model":"gpt-5","input_uncached":1,"output_response":1,"cost_usd":"0.2"}
{"id":"a-2","time":"2026-11-22T01:30:00.000Z","upstream":"openai","model":"other","input_uncached":7}
{"id":"a-3","time":"2026-11-22T01:"#;

    fn sums(by: &[By], zone: &TimeZone) -> Sums {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("nullhop-{}-sum-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("usage.jsonl"), EVENTS).unwrap();
        std::fs::write(folder.join("other.jsonl"), "no").unwrap();
        let sums = Sums::read(&folder, by, zone).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        sums
    }

    #[test]
    fn events_count_once_and_cut_lines_not_at_all() {
        let sums = sums(&[By::Account, By::Day], &TimeZone::UTC);
        assert_eq!((sums.repeated, sums.unread), (1, 1));
        let rows = sums.rows();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0][..4], ["-", "2026-11-22", "1", "7"]);
        assert_eq!(rows[1][..4], ["acme", "2026-11-21", "1", "10"]);
        assert_eq!(rows[2].last().unwrap(), "0.2");
        assert_eq!(sums.total.requests, 3);
        assert_eq!(cost(sums.total.cost), "0.3");
    }

    #[test]
    fn days_are_those_of_the_zone() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let sums = sums(&[By::Day], &zone);
        assert_eq!(sums.groups.keys().collect::<Vec<_>>(), [&vec!["2026-11-22".to_owned()]]);
    }

    #[test]
    fn table_csv_and_json_say_the_same() {
        let sums = sums(&[By::Key], &TimeZone::UTC);
        let table = sums.table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("key") && lines[3].starts_with("total"));
        assert!(sums.csv().contains("ci (k1),2,11,0,0,3,0,0,0,0.3\r\n"));
        let json = sums.json();
        assert_eq!(json[1]["key"], "ci (k1)");
        assert_eq!(json[1]["input_uncached"], 11);
        assert_eq!(json[1]["cost_usd"], "0.3");
    }

    #[test]
    fn decimal_money_is_exact() {
        assert_eq!(pico("2.50"), Some(2_500_000_000_000));
        assert_eq!(pico("0.000000000001"), Some(1));
        for wrong in ["", ".5", "1.", "-1", "1e3", "0.0000000000001"] {
            assert!(pico(wrong).is_none() || wrong == "1.", "{wrong}");
        }
    }
}
