//! What is wrong with a configuration, told without quoting it.
//!
//! A finding is put together from fixed words, our own key names, numbers of the table, and the
//! names of unknown keys when they look like names. The line that is shown beside it is rebuilt
//! from an allow list: punctuation, known words, and the numbers and booleans of known keys.
//! Everything else is `***`, and a comment ends the line. So a secret that was written in the wrong
//! place does not travel on into a terminal, a CI log or a ticket.

use std::fmt;
use std::ops::Range;

use super::table::{self, Kind, Section};
use crate::keys::FileFault;
use crate::retention::Rule;

/// More than anyone reads; and a wrong file of 1 MiB has tens of thousands.
const SHOWN_MAX: usize = 100;
/// Of a shown line.
const COLUMNS_MAX: usize = 160;

/// Bytes of the file.
pub(super) type Span = Range<usize>;

/// Every problem of one configuration, in file order. `Display` is for terminals.
pub struct Report {
    source_name: String,
    count: usize,
    /// The first [`SHOWN_MAX`] of them.
    problems: Vec<Finding>,
}

/// Something that works and probably should be otherwise. `Display` is for terminals.
pub struct Warning {
    source_name: String,
    finding: Finding,
}

impl Report {
    /// How many problems there are; at least one.
    pub fn problems(&self) -> usize {
        self.count
    }

    /// For `check --json`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "file": self.source_name,
            "valid": false,
            "count": self.count,
            "problems": self.problems.iter().map(Finding::to_json).collect::<Vec<_>>(),
        })
    }

    pub(super) fn new(source_name: &str, lines: &Lines<'_>, mut faults: Vec<Fault>) -> Self {
        // Stable: what has no place in the file comes last.
        faults.sort_by_key(|fault| fault.span.as_ref().map_or(usize::MAX, |span| span.start));
        Self {
            source_name: source_name.to_owned(),
            count: faults.len(),
            problems: faults.iter().take(SHOWN_MAX).map(|fault| lines.finding(fault)).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count;
        let noun = if count == 1 { "problem" } else { "problems" };
        writeln!(f, "{}: {count} {noun}", self.source_name)?;
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.write(f, "error", &self.source_name)?;
        }
        match count - self.problems.len() {
            0 => Ok(()),
            more => writeln!(f, "\nand {more} more"),
        }
    }
}

/// The same as `Display`: there is nothing else in it.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Report {}

impl Warning {
    /// For `check --json`.
    pub fn to_json(&self) -> serde_json::Value {
        self.finding.to_json()
    }

    pub(super) fn new(source_name: &str, lines: &Lines<'_>, fault: &Fault) -> Self {
        Self { source_name: source_name.to_owned(), finding: lines.finding(fault) }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.finding.write(f, "warning", &self.source_name)
    }
}

/// A fault and where it is, on its way to a [`Finding`].
pub(super) struct Fault {
    pub span: Option<Span>,
    pub cause: Cause,
}

/// What is wrong. Fields are closed: fixed words, table entries, numbers, [`KeyName`].
pub(super) enum Cause {
    /// A file that the configuration names.
    File {
        key: &'static str,
        section: &'static Section,
        why: &'static str,
    },
    Invalid {
        key: &'static str,
        section: &'static Section,
        why: &'static str,
    },
    /// What is wrong inside the file of keys.
    KeyFile(FileFault),
    /// A key in that file names something that is not there.
    KeyNames {
        /// From 1.
        line: usize,
        /// 1 to 64 of `A-Za-z0-9._-`: what `nullhop key list` shows.
        id: String,
        what: &'static str,
        of: &'static Section,
    },
    /// A secret written as text.
    LiteralSecret {
        key: &'static str,
        section: &'static Section,
    },
    Missing {
        key: &'static str,
        section: &'static Section,
    },
    NotOneOf {
        key: &'static str,
        section: &'static Section,
        allowed: &'static [&'static str],
        near: Option<&'static str>,
    },
    NotRepeated(&'static Section),
    NotSingle(&'static Section),
    NotTable(&'static Section),
    OutOfBounds {
        key: &'static str,
        section: &'static Section,
        kind: &'static Kind,
    },
    /// Fixed words that say it all.
    Rule {
        says: &'static str,
        help: Option<&'static str>,
    },
    /// A rule of the retention policy that is not in force; `None`: none is.
    /// So many keys relax it.
    RelaxedByKeys(Rule, usize),
    Relaxed(Option<Rule>),
    Syntax(SyntaxWords),
    TooMany(&'static Section),
    /// The same value as at `first`.
    Twice {
        key: &'static str,
        section: &'static Section,
        first: Option<Span>,
    },
    /// A name that no block of `of` has.
    Unknown {
        key: &'static str,
        section: &'static Section,
        of: &'static Section,
        near: Near,
    },
    UnknownKey {
        name: KeyName,
        /// `None`: the top of the file.
        section: Option<&'static Section>,
        near: Option<&'static str>,
        elsewhere: Option<&'static Section>,
    },
    UnknownSection {
        name: KeyName,
        near: Option<&'static Section>,
    },
    WrongType {
        key: &'static str,
        section: &'static Section,
        kind: &'static Kind,
        found: &'static str,
    },
}

/// What an unknown name was probably meant to be. Told by its line, since the name itself is a value.
pub(super) enum Near {
    At(Span),
    Nothing,
    /// There is nothing that could be named.
    NothingThere,
}

impl Cause {
    /// A sentence without a capital and without a full stop.
    fn message(&self, lines: &Lines<'_>) -> String {
        match self {
            Self::File { key, section, why } => {
                format!("the file of `{key}` in {} {why}", section.header())
            }
            Self::Invalid { key, section, why } => format!("`{key}` in {} {why}", section.header()),
            Self::KeyFile(fault) => format!("the file of `file` in [keys] is not one of keys: {fault}"),
            Self::KeyNames { line, id, what, of } => {
                format!("the file of `file` in [keys], line {line}: the {what} of key {id} is no {}", of.header())
            }
            Self::LiteralSecret { key, section } => {
                format!("`{key}` in {} is a secret and must not stand in this file", section.header())
            }
            Self::Missing { key, section } => format!("{} needs `{key}`", section.header()),
            Self::NotOneOf { key, section, allowed, near } => {
                let allowed = allowed.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
                let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                match allowed.contains(',') {
                    true => format!("`{key}` in {} must be one of {allowed}{near}", section.header()),
                    false => format!("`{key}` in {} must be {allowed}{near}", section.header()),
                }
            }
            Self::Relaxed(Some(rule)) => {
                let (name, says) = (rule.as_str(), rule.says());
                format!("the retention rule `{name}` is relaxed: requests may ask the provider for {says}")
            }
            Self::RelaxedByKeys(rule, keys) => {
                let (name, says, plural) = (rule.as_str(), rule.says(), if *keys == 1 { "" } else { "s" });
                format!(
                    "{keys} key{plural} relax{} the retention rule `{name}`: requests may ask the provider for {says}",
                    if *keys == 1 { "es" } else { "" }
                )
            }
            Self::Relaxed(None) => "all retention rules are relaxed: requests are passed on as they come".to_owned(),
            Self::NotRepeated(section) => {
                format!("`{}` may be there several times: write {}", section.name(), section.header())
            }
            Self::NotSingle(section) => format!("`{}` is there once: write {}", section.name(), section.header()),
            Self::NotTable(section) => format!("`{}` is a section: write {}", section.name(), section.header()),
            Self::OutOfBounds { key, section, kind } => {
                format!("`{key}` in {} must be {}", section.header(), kind.expected())
            }
            Self::Rule { says, .. } => (*says).to_owned(),
            Self::Syntax(words) => format!("not valid TOML: {}", words.0),
            Self::TooMany(section) => {
                format!("more than {} of {}", table::BLOCKS_MAX, section.header())
            }
            Self::Twice { key, section, first } => {
                let again = match first {
                    Some(span) => format!(", the same as on line {}", lines.position(span.start).0),
                    None => String::new(),
                };
                format!("`{key}` in {} must be unique{again}", section.header())
            }
            Self::Unknown { key, section, of, near } => {
                let hint = match near {
                    Near::At(span) => format!(", did you mean the one on line {}?", lines.position(span.start).0),
                    Near::Nothing => String::new(),
                    Near::NothingThere => ": there is none".to_owned(),
                };
                format!("`{key}` in {} names no {}{hint}", section.header(), of.header())
            }
            Self::UnknownKey { name, section, near, elsewhere } => {
                let place = match section {
                    Some(section) => format!("in {}", section.header()),
                    None => "above the first section".to_owned(),
                };
                let hint = match (near, elsewhere) {
                    (Some(near), _) => format!(", did you mean `{near}`?"),
                    (None, Some(section)) => format!(", it belongs in {}", section.header()),
                    (None, None) => String::new(),
                };
                format!("unknown key `{}` {place}{hint}", name.as_str())
            }
            Self::UnknownSection { name, near } => {
                let hint = near.map_or(String::new(), |near| format!(", did you mean {}?", near.header()));
                format!("unknown section `{}`{hint}", name.as_str())
            }
            Self::WrongType { key, section, kind, found } => {
                format!("`{key}` in {} must be {}, not {found}", section.header(), kind.expected())
            }
        }
    }

    fn help(&self) -> Option<&'static str> {
        match self {
            Self::File { section, why: "does not exist", .. } if section.path == "keys" => Some(FIRST_KEY),
            Self::LiteralSecret { .. } => Some(SECRET_FORMS),
            Self::Rule { help, .. } => *help,
            _ => None,
        }
    }
}

pub(super) const SECRET_FORMS: &str =
    "say where it is: { file = \"path\" }, { env = \"NAME\" } or { credential = \"name\" } (systemd)";

/// Both files are made by the first key.
pub(super) const FIRST_KEY: &str = "`nullhop key new --keys FILE --secret FILE --label NAME` makes the first key, and both files if they are not there";

/// The name of an unknown key, if it looks like a name and not like a key of the other kind.
pub(super) struct KeyName(String);

impl KeyName {
    /// `source` is the key as it is written. Shown when it is bare, short, and has few digits: a
    /// pasted token has more.
    pub(super) fn new(source: &str) -> Self {
        let looks_like_a_name = (1..=32).contains(&source.len())
            && source.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            && source.bytes().filter(u8::is_ascii_digit).count() <= 3;
        match looks_like_a_name {
            true => Self(source.to_owned()),
            false => Self("***".to_owned()),
        }
    }

    pub(super) fn is_shown(&self) -> bool {
        self.0 != "***"
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the TOML parser says. Its texts are fixed words today; this holds should they change.
pub(super) struct SyntaxWords(String);

impl SyntaxWords {
    pub(super) fn new(message: &str, source: &str) -> Self {
        let quotes = message
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| (word.len() >= 5 || word.contains(|c: char| c.is_ascii_digit())) && source.contains(word));
        match quotes || message.is_empty() || message.len() > 200 || !message.is_ascii() {
            true => Self("cannot be read from here on".to_owned()),
            false => Self(message.replace('\n', " ")),
        }
    }
}

/// A fault, ready to be printed; nothing of the file is left in it but what may be shown.
struct Finding {
    message: String,
    help: Option<&'static str>,
    place: Option<Place>,
}

struct Place {
    line: usize,
    column: usize,
    masked: String,
    underline: Range<usize>,
}

impl Finding {
    fn write(&self, f: &mut fmt::Formatter<'_>, kind: &str, source_name: &str) -> fmt::Result {
        writeln!(f, "{kind}: {}", self.message)?;
        let mut gutter = 2;
        if let Some(place) = &self.place {
            let Place { line, column, .. } = place;
            gutter = line.to_string().len() + 1;
            writeln!(f, "{:gutter$}--> {source_name}:{line}:{column}", "")?;
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, " {line} | {}", place.masked)?;
            let Range { start, end } = place.underline;
            let carets = "^".repeat(end.saturating_sub(start).max(1));
            writeln!(f, "{:gutter$} | {:start$}{carets}", "", "")?;
        }
        if let Some(help) = self.help {
            writeln!(f, "{:gutter$} = {help}", "")?;
        }
        Ok(())
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "message": self.message,
            "help": self.help,
            "line": self.place.as_ref().map(|place| place.line),
            "column": self.place.as_ref().map(|place| place.column),
        })
    }
}

/// The text of a file and what of it may be shown.
pub(super) struct Lines<'t> {
    text: &'t str,
    /// `None`: the text is not valid TOML, so that nothing is known about its inside.
    showable: Option<Vec<Span>>,
    tokens: Vec<(Span, Token)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Comment,
    Newline,
    Other,
    Punctuation,
    Space,
    Text,
    Word,
}

impl<'t> Lines<'t> {
    /// For valid TOML; `showable` are the unknown keys, numbers and booleans that may be shown.
    pub(super) fn parsed(text: &'t str, mut showable: Vec<Span>) -> Self {
        showable.sort_by_key(|span| span.start);
        Self { text, showable: Some(showable), tokens: tokens(text) }
    }

    /// For anything else.
    pub(super) fn unparsed(text: &'t str) -> Self {
        Self { text, showable: None, tokens: Vec::new() }
    }

    fn finding(&self, fault: &Fault) -> Finding {
        Finding {
            message: fault.cause.message(self),
            help: fault.cause.help(),
            place: fault.span.clone().map(|span| self.place(span)),
        }
    }

    /// Line and column, both from 1. Columns count characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let is_char_start = |b: &&u8| **b & 0xC0 != 0x80;
        (line, before[start..].iter().filter(is_char_start).count() + 1)
    }

    fn place(&self, span: Span) -> Place {
        let bytes = self.text.as_bytes();
        let at = span.start.min(bytes.len());
        let start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let end = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |length| at + length);
        let (line, column) = self.position(at);
        let (masked, underline) = match &self.showable {
            Some(showable) => self.masked(start..end, span, showable),
            None => masked_unparsed(&bytes[start..end], at - start),
        };
        Place { line, column, masked, underline }
    }

    /// The line rebuilt, and what of the rebuilt line `span` covers.
    fn masked(&self, line: Span, span: Span, showable: &[Span]) -> (String, Range<usize>) {
        let mut out = String::new();
        let mut underline: Option<Range<usize>> = None;
        let first = self.tokens.partition_point(|(token, _)| token.end <= line.start);
        for (token_span, token) in &self.tokens[first..] {
            if token_span.start >= line.end || matches!(token, Token::Comment | Token::Newline) {
                break;
            }
            if out.len() > COLUMNS_MAX {
                out.push_str(" ...");
                break;
            }
            let begin = out.len();
            let source = &self.text[token_span.clone()];
            match token {
                Token::Space => out.push(' '),
                Token::Punctuation => out.push_str(source),
                Token::Word if table::is_known_word(source) => out.push_str(source),
                Token::Word => {
                    let after = showable.partition_point(|s| s.start <= token_span.start);
                    let shown = after > 0 && token_span.end <= showable[after - 1].end;
                    out.push_str(if shown { source } else { "***" });
                }
                Token::Text => out.push_str("\"***\""),
                Token::Other | Token::Comment | Token::Newline => out.push('*'),
            }
            if token_span.start < span.end && span.start < token_span.end {
                let begin = underline.map_or(begin, |underline| underline.start);
                underline = Some(begin..out.len());
            }
        }
        let out = out.trim_end().to_owned();
        let end = out.len();
        let underline = underline.unwrap_or(end..end + 1);
        (out, underline.start..underline.end.min(end.max(underline.start + 1)))
    }
}

/// A line of a text that is not TOML: shown up to its `=` if all before it are words of ours.
fn masked_unparsed(line: &[u8], at: usize) -> (String, Range<usize>) {
    let shown = known_beginning(line).unwrap_or(0);
    let mut out = String::from_utf8_lossy(&line[..shown]).replace('\t', " ");
    let column = if at < shown { at } else { out.len() };
    if line[shown..].iter().any(|b| !b.is_ascii_whitespace()) {
        if shown > 0 && !out.ends_with(' ') {
            out.push(' ');
        }
        out.push_str("***");
    }
    let column = match out[column.min(out.len())..].starts_with(' ') {
        true => column + 1,
        false => column,
    };
    let length = if out[column.min(out.len())..].starts_with("***") { 3 } else { 1 };
    (out, column..column + length)
}

/// How many bytes of `line` are `[known.words]` or `known.words =`.
fn known_beginning(line: &[u8]) -> Option<usize> {
    let skip = |at: &mut usize, set: &[u8], most: usize| {
        let from = *at;
        while *at < line.len() && *at - from < most && set.contains(&line[*at]) {
            *at += 1;
        }
        *at - from
    };
    let mut at = 0;
    skip(&mut at, b" \t", usize::MAX);
    let opened = skip(&mut at, b"[", 2);
    loop {
        skip(&mut at, b" \t", usize::MAX);
        let from = at;
        while at < line.len() && is_word(line[at]) {
            at += 1;
        }
        let word = std::str::from_utf8(&line[from..at]).ok()?;
        if !table::is_known_word(word) {
            return None;
        }
        let word_end = at;
        skip(&mut at, b" \t", usize::MAX);
        if skip(&mut at, b".", 1) == 0 {
            if opened == 0 {
                return (skip(&mut at, b"=", 1) == 1).then_some(at);
            }
            return Some(if skip(&mut at, b"]", 2) > 0 { at } else { word_end });
        }
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
}

/// Takes valid TOML apart, as far as masking needs it. On anything else it still ends, and nothing
/// it returns overlaps.
fn tokens(text: &str) -> Vec<(Span, Token)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (length, token) = match rest[0] {
            b'#' => (run(rest, |b| b != b'\n'), Token::Comment),
            b'\n' => (1, Token::Newline),
            b' ' | b'\t' | b'\r' => (1, Token::Space),
            b'"' | b'\'' => (string_length(rest), Token::Text),
            b'[' | b']' | b'{' | b'}' | b'=' | b',' | b'.' | b'+' | b':' => (1, Token::Punctuation),
            b if is_word(b) => (run(rest, is_word), Token::Word),
            _ => (run(rest, |b| !b.is_ascii()).max(1), Token::Other),
        };
        tokens.push((at..at + length, token));
        at += length;
    }
    tokens
}

fn run(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|b| !belongs(*b)).unwrap_or(bytes.len())
}

/// The length of the string at the beginning of `bytes`, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let quote = bytes[0];
    let many = bytes.len() >= 3 && bytes[1] == quote && bytes[2] == quote;
    let mut at = if many { 3 } else { 1 };
    while at < bytes.len() {
        if quote == b'"' && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] != quote {
            at += 1;
        } else if !many {
            return at + 1;
        } else {
            // Up to two quotes may stand before the three that end it.
            let quotes = run(&bytes[at..], |b| b == quote);
            at += quotes.min(5);
            if quotes >= 3 {
                return at;
            }
        }
    }
    bytes.len()
}
