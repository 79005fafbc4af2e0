//! `nullhop usage`: adds up a journal.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;

use super::{FAILED, WRONG};
use crate::journal::{By, Sums};

/// `nullhop usage`
#[derive(Args)]
pub struct UsageArgs {
    /// Folder of the journal
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// What to add up by
    #[arg(long, value_delimiter = ',', default_values = ["account", "model"])]
    by: Vec<Group>,
    /// Time zone whose days count, such as Europe/Berlin
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    zone: String,
    /// How to say it
    #[arg(long, default_value = "table")]
    format: Format,
}

/// What events are put together by.
#[derive(Clone, Copy, ValueEnum)]
pub enum Group {
    /// The key's account
    Account,
    /// The day on which the exchange ended
    Day,
    /// The client key
    Key,
    /// The model's canonical name
    Model,
    /// The upstream
    Upstream,
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
    let Ok(zone) = TimeZone::get(&args.zone) else {
        writeln!(err, "error: there is no time zone {:?}", args.zone)?;
        return Ok(WRONG);
    };
    let by: Vec<By> = args
        .by
        .iter()
        .map(|group| match group {
            Group::Account => By::Account,
            Group::Day => By::Day,
            Group::Key => By::Key,
            Group::Model => By::Model,
            Group::Upstream => By::Upstream,
        })
        .collect();
    let sums = match Sums::read(&args.folder, &by, &zone) {
        Ok(sums) => sums,
        Err(error) => {
            writeln!(err, "error: {}: {}", args.folder.display(), error.kind())?;
            return Ok(FAILED);
        }
    };
    match args.format {
        Format::Table => out.write_all(sums.table().as_bytes())?,
        Format::Csv => out.write_all(sums.csv().as_bytes())?,
        Format::Json => writeln!(out, "{:#}", sums.json())?,
    }
    if sums.repeated > 0 || sums.unread > 0 {
        writeln!(err, "{} events came twice and count once; {} lines could not be read", sums.repeated, sums.unread)?;
    }
    Ok(0)
}
