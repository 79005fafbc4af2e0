//! `nullhop usage`: adds up journals.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{FAILED, WRONG};
use crate::journal::{By, Span, Sums};

/// `nullhop usage`
#[derive(Args)]
pub struct UsageArgs {
    /// Folders of journals, or files of theirs; `-` is standard input
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// What to add up by: one or more, with commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = ["account", "model"])]
    by: Vec<Group>,
    /// The first day that counts, such as 2026-11-01
    #[arg(long, value_name = "DATE")]
    since: Option<String>,
    /// The last day that counts
    #[arg(long, value_name = "DATE")]
    until: Option<String>,
    /// Time zone whose days they are, such as Europe/Berlin
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    time_zone: String,
    /// How to say it
    #[arg(long, default_value = "table")]
    format: Format,
}

/// What events are put together by.
#[derive(Clone, Copy, ValueEnum)]
pub enum Group {
    /// The key's account
    Account,
    /// The client key, by its id, with its latest label
    Key,
    /// The model's label
    Model,
    /// The day on which the exchange ended
    Day,
    /// The upstream
    Upstream,
    /// The point of presence
    Pop,
}

/// How sums are printed.
#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For spreadsheets
    Csv,
    /// For programs
    Json,
}

/// Does what `args` say.
pub(super) fn usage(args: &UsageArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let Ok(zone) = TimeZone::get(&args.time_zone) else {
        writeln!(err, "error: there is no time zone {:?}", args.time_zone)?;
        return Ok(WRONG);
    };
    let mut days = [None; 2];
    for (day, (name, text)) in days.iter_mut().zip([("--since", &args.since), ("--until", &args.until)]) {
        let Some(text) = text else { continue };
        // A date and nothing behind it: a time would not do what it says.
        *day = text.parse::<Date>().ok().filter(|date| date.to_string() == **text);
        if day.is_none() {
            writeln!(err, "error: {name} {text:?} is no date; write it like 2026-11-01")?;
            return Ok(WRONG);
        }
    }
    let [first, last] = days;
    if first > last && last.is_some() {
        writeln!(err, "error: --since is after --until")?;
        return Ok(WRONG);
    }
    let Some(span) = Span::days(zone, first, last) else {
        writeln!(err, "error: a date is out of range")?;
        return Ok(WRONG);
    };
    let by: Vec<By> = args.by.iter().map(|group| group.by()).collect();
    let mut sums = Sums::new(&by, span);
    for path in &args.paths {
        let added = match path == Path::new("-") {
            true => sums.add_lines(io::stdin().lock()),
            false => sums.add(path),
        };
        if let Err(error) = added {
            let (code, text) = match error.kind() {
                io::ErrorKind::NotFound => (WRONG, "there is no such folder or file".to_owned()),
                kind => (FAILED, kind.to_string()),
            };
            writeln!(err, "error: {}: {text}", path.display())?;
            return Ok(code);
        }
    }
    match args.format {
        Format::Table => out.write_all(sums.table().as_bytes())?,
        Format::Csv => out.write_all(sums.csv().as_bytes())?,
        Format::Json => writeln!(out, "{:#}", sums.json())?,
    }
    out.flush()?;
    if sums.repeated() > 0 {
        writeln!(err, "note: {} events were there more than once and count once", sums.repeated())?;
    }
    if sums.unread() > 0 {
        writeln!(err, "error: {} lines are no usage events and do not count", sums.unread())?;
        return Ok(FAILED);
    }
    Ok(0)
}

impl Group {
    fn by(self) -> By {
        match self {
            Self::Account => By::Account,
            Self::Key => By::Key,
            Self::Model => By::Model,
            Self::Day => By::Day,
            Self::Upstream => By::Upstream,
            Self::Pop => By::Pop,
        }
    }
}
