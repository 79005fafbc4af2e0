//! TOML text to [`RawConfig`]: every value has its type and its bounds, defaults are filled in.

use std::net::SocketAddr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Endpoint;
use super::report::{Cause, Fault, KeyName, Span, SyntaxWords};
use super::table::{self, Key, Kind, SECTIONS, Section};
use super::value;
use crate::keys;
use crate::telemetry::models::pattern_fault;

/// The configuration as written, section by section.
pub(super) struct RawConfig {
    /// In the order of the table; a section that is not repeated is there exactly once.
    pub blocks: Vec<Block>,
    /// What of the text may be shown in a report.
    pub showable: Vec<Span>,
}

/// One section as written, or its defaults.
pub(super) struct Block {
    pub section: &'static Section,
    /// The header. `None`: not written.
    pub span: Option<Span>,
    /// As long as `section.keys` and in the same order.
    entries: Vec<Entry>,
    /// Blocks of the sections below this one.
    pub children: Vec<Block>,
}

struct Entry {
    value: Option<Value>,
    span: Option<Span>,
}

/// A value of the right type, within its bounds, in its one spelling.
pub(super) enum Value {
    Address(SocketAddr),
    Bool(bool),
    Duration(Duration),
    Endpoint(Endpoint),
    Integer(u64),
    List(Vec<(Span, String)>),
    Secret(SecretSource),
    Size(u64),
    Text(String),
}

/// Where a secret is. Not the secret.
#[derive(Clone)]
pub(super) enum SecretSource {
    Credential(String),
    Env(String),
    File(String),
}

/// Reads what can be read of `text`; what cannot is in `faults`. `Err`: not TOML at all.
pub(super) fn parse(text: &str, faults: &mut Vec<Fault>) -> Result<RawConfig, Fault> {
    let root = DeTable::parse(text)
        .map_err(|error| Fault { span: error.span(), cause: Cause::Syntax(SyntaxWords::new(error.message(), text)) })?;
    let mut reader = Reader { text, faults, showable: Vec::new() };
    let mut blocks: Vec<Block> = Vec::new();
    for (key, value) in root.get_ref() {
        let word: &str = key.get_ref();
        match table::top_level().find(|section| section.name() == word) {
            Some(section) => blocks.extend(reader.blocks(section, value)),
            None => reader.unknown_at_top(key, value),
        }
    }
    let showable = reader.showable;
    for section in table::top_level().filter(|section| !section.repeated && !section.is_optional()) {
        if !blocks.iter().any(|b| std::ptr::eq(b.section, section)) {
            blocks.push(Block::defaults(section, None));
        }
    }
    let rank = |block: &Block| SECTIONS.iter().position(|s| s.path == block.section.path);
    blocks.sort_by_key(rank);
    Ok(RawConfig { blocks, showable })
}

impl RawConfig {
    /// The only block of a section that is not repeated and not optional.
    pub(super) fn one(&self, path: &str) -> &Block {
        self.all(path).next().expect("parse() adds what is not written")
    }

    /// The blocks of a section, in file order.
    pub(super) fn all(&self, path: &str) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(move |block| block.section.path == path)
    }
}

impl Block {
    pub(super) fn defaults(section: &'static Section, span: Option<Span>) -> Self {
        let entry =
            |key: &'static Key| Entry { value: key.default.map(|text| default(section, key, text)), span: None };
        Self { section, span, entries: section.keys.iter().map(entry).collect(), children: Vec::new() }
    }

    /// The value as written or by default; `None` also after a fault.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.entries[self.index(key)].value.as_ref()
    }

    /// Puts in a default that depends on other keys.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        let index = self.index(key);
        self.entries[index].value = Some(value);
    }

    /// Takes a value out, as if it had not been written.
    pub(super) fn unset(&mut self, key: &str) {
        let index = self.index(key);
        self.entries[index] = Entry { value: None, span: None };
    }

    /// Whether the file has this key, rightly or wrongly.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.entries[self.index(key)].span.is_some()
    }

    /// Where the value is, or else the header.
    pub(super) fn span_of(&self, key: &str) -> Option<Span> {
        self.entries[self.index(key)].span.clone().or_else(|| self.span.clone())
    }

    /// The blocks of an upstream's addresses.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Block> {
        self.below("upstream.endpoint")
    }

    /// The blocks of a section below this one, in file order.
    pub(super) fn below(&self, path: &str) -> impl Iterator<Item = &Block> {
        self.children.iter().filter(move |child| child.section.path == path)
    }

    pub(super) fn address(&self, key: &str) -> Option<SocketAddr> {
        match self.get(key)? {
            Value::Address(address) => Some(*address),
            _ => None,
        }
    }

    pub(super) fn endpoint(&self, key: &str) -> Option<&Endpoint> {
        match self.get(key)? {
            Value::Endpoint(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    pub(super) fn list(&self, key: &str) -> &[(Span, String)] {
        match self.get(key) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    pub(super) fn secret(&self, key: &str) -> Option<&SecretSource> {
        match self.get(key)? {
            Value::Secret(source) => Some(source),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Of a key that has a default.
    pub(super) fn bool(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    /// Of a key that has a default.
    pub(super) fn duration(&self, key: &str) -> Duration {
        match self.get(key) {
            Some(Value::Duration(duration)) => *duration,
            _ => unreachable!("a default stands in for a faulty value"),
        }
    }

    /// A count or a size. Of a key that has a default.
    pub(super) fn number(&self, key: &str) -> u64 {
        match self.get(key) {
            Some(Value::Integer(number) | Value::Size(number)) => *number,
            _ => unreachable!("a default stands in for a faulty value"),
        }
    }

    fn index(&self, key: &str) -> usize {
        self.section.keys.iter().position(|k| k.name == key).expect("callers name keys of the table")
    }
}

impl Value {
    /// As TOML, secrets masked.
    pub(super) fn to_toml(&self) -> String {
        match self {
            Self::Address(address) => format!("\"{address}\""),
            Self::Bool(yes) => yes.to_string(),
            Self::Duration(duration) => format!("\"{}\"", value::duration_text(*duration)),
            Self::Endpoint(endpoint) => quoted(&endpoint.to_string()),
            Self::Integer(number) => number.to_string(),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|(_, item)| quoted(item)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Secret(_) => "\"***\"".to_owned(),
            Self::Size(bytes) => format!("\"{}\"", value::size_text(*bytes)),
            Self::Text(text) => quoted(text),
        }
    }
}

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn default(section: &'static Section, key: &'static Key, text: &str) -> Value {
    let value = DeValue::parse(text).expect("the table's defaults are TOML");
    let mut faults = Vec::new();
    let mut reader = Reader { text, faults: &mut faults, showable: Vec::new() };
    reader.value(section, key, &value).expect("the table's defaults are within its bounds")
}

struct Reader<'r> {
    text: &'r str,
    faults: &'r mut Vec<Fault>,
    showable: Vec<Span>,
}

impl Reader<'_> {
    fn fault(&mut self, span: Span, cause: Cause) {
        self.faults.push(Fault { span: Some(span), cause });
    }

    fn blocks(&mut self, section: &'static Section, value: &Spanned<DeValue<'_>>) -> Vec<Block> {
        match (value.get_ref(), section.repeated) {
            (DeValue::Table(table), repeated) => {
                if repeated {
                    self.fault(value.span(), Cause::NotRepeated(section));
                }
                vec![self.block(section, table, value.span())]
            }
            (DeValue::Array(items), true) => {
                if items.len() > table::BLOCKS_MAX {
                    self.fault(value.span(), Cause::TooMany(section));
                    return Vec::new();
                }
                let mut blocks = Vec::new();
                for item in items.iter() {
                    match item.get_ref() {
                        DeValue::Table(table) => blocks.push(self.block(section, table, item.span())),
                        _ => self.fault(item.span(), Cause::NotTable(section)),
                    }
                }
                blocks
            }
            (DeValue::Array(items), false) => {
                // The second header is the one too many.
                let at = items.iter().map(Spanned::span).nth(1).unwrap_or(value.span());
                self.fault(at, Cause::NotSingle(section));
                Vec::new()
            }
            _ => {
                self.fault(value.span(), Cause::NotTable(section));
                Vec::new()
            }
        }
    }

    fn block(&mut self, section: &'static Section, table: &DeTable<'_>, span: Span) -> Block {
        let mut block = Block::defaults(section, Some(span.clone()));
        // Required keys that are there under a mistyped name: one problem, not two.
        let mut mistyped = Vec::new();
        for (key, value) in table {
            let word: &str = key.get_ref();
            if let Some(index) = section.keys.iter().position(|k| k.name == word) {
                block.entries[index].span = Some(value.span());
                if let Some(value) = self.value(section, &section.keys[index], value) {
                    block.entries[index].value = Some(value);
                }
            } else if let Some(child) = section.children().find(|child| child.name() == word) {
                let children = self.blocks(child, value);
                block.children.extend(children);
            } else {
                mistyped.extend(self.unknown_key(Some(section), key));
            }
        }
        for (key, entry) in section.keys.iter().zip(&block.entries) {
            if key.required && entry.span.is_none() && !mistyped.contains(&key.name) {
                let key = key.name;
                self.fault(span.clone(), Cause::Missing { key, section });
            }
        }
        block
    }

    fn unknown_at_top(&mut self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let is_section = match value.get_ref() {
            DeValue::Table(_) => true,
            DeValue::Array(items) => items.iter().any(|item| item.get_ref().is_table()),
            _ => false,
        };
        if !is_section {
            self.unknown_key(None, key);
            return;
        }
        let name = self.name_of(key);
        let near = nearest(&name, table::top_level().map(Section::name))
            .and_then(|near| table::top_level().find(|section| section.name() == near));
        self.fault(key.span(), Cause::UnknownSection { name, near });
    }

    /// Returns the key that was probably meant.
    fn unknown_key(&mut self, section: Option<&'static Section>, key: &Spanned<DeString<'_>>) -> Option<&'static str> {
        let name = self.name_of(key);
        let near = section.and_then(|section| {
            let own = section.keys.iter().map(|k| k.name);
            nearest(&name, own.chain(section.children().map(Section::name)))
        });
        let mut homes = SECTIONS.iter().filter(|s| s.keys.iter().any(|k| k.name == name.as_str()));
        let elsewhere = homes.next().filter(|_| homes.next().is_none());
        let cause = Cause::UnknownKey { name, section, near, elsewhere };
        self.fault(key.span(), cause);
        near
    }

    fn name_of(&mut self, key: &Spanned<DeString<'_>>) -> KeyName {
        let name = KeyName::new(self.text.get(key.span()).unwrap_or_default());
        if name.is_shown() {
            self.showable.push(key.span());
        }
        name
    }

    /// `None`: the fault is on record.
    fn value(&mut self, section: &'static Section, key: &'static Key, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        let name = key.name;
        let span = value.span();
        let got = value.get_ref();
        let is_number = matches!(got, DeValue::Boolean(_) | DeValue::Integer(_) | DeValue::Float(_));
        if is_number && !matches!(key.kind, Kind::Secret) {
            self.showable.push(span.clone());
        }
        let read = match (&key.kind, got) {
            (Kind::Bool, DeValue::Boolean(yes)) => Ok(Value::Bool(*yes)),
            (Kind::Integer { min, max }, DeValue::Integer(_)) => {
                integer(got).filter(|number| (*min..=*max).contains(number)).map(Value::Integer).ok_or(Refused::Kind)
            }
            (Kind::Size { min, max }, DeValue::Integer(_) | DeValue::String(_)) => match got {
                DeValue::String(text) => value::size(text),
                _ => integer(got),
            }
            .filter(|bytes| (*min..=*max).contains(bytes))
            .map(Value::Size)
            .ok_or(Refused::Kind),
            (Kind::Duration { min, max }, DeValue::String(text)) => value::duration(text)
                .filter(|d| (*min..=*max).contains(&u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
                .map(Value::Duration)
                .ok_or(Refused::Kind),
            (Kind::OneOf(allowed), DeValue::String(text)) => match allowed.iter().find(|word| *word == text) {
                Some(word) => Ok(Value::Text((*word).to_owned())),
                None => {
                    let near = (text.len() <= 32).then(|| closest(text, allowed.iter().copied())).flatten();
                    Err(Refused::Because(Cause::NotOneOf { key: name, section, allowed, near }))
                }
            },
            (Kind::Address, DeValue::String(text)) => value::address(text).map(Value::Address).map_err(Refused::Words),
            (Kind::Endpoint, DeValue::String(text)) => {
                value::endpoint(text).map(Value::Endpoint).map_err(Refused::Words)
            }
            (Kind::List(kind), DeValue::Array(items)) => self.list(section, key, kind, items),
            (Kind::Secret, DeValue::String(_)) => Err(Refused::Because(Cause::LiteralSecret { key: name, section })),
            (Kind::Secret, DeValue::Table(table)) => secret_source(table).map(Value::Secret).ok_or(Refused::Kind),
            (kind, DeValue::String(text)) if kind.is_text() => {
                one_text(kind, text).map(Value::Text).map_err(Refused::Words)
            }
            _ => {
                let found = match got {
                    DeValue::Array(_) => "a list",
                    DeValue::Boolean(_) => "a boolean",
                    DeValue::Datetime(_) => "a date",
                    DeValue::Float(_) => "a fraction",
                    DeValue::Integer(_) => "an integer",
                    DeValue::String(_) => "a string",
                    DeValue::Table(_) => "a table",
                };
                Err(Refused::Because(Cause::WrongType { key: name, section, kind: &key.kind, found }))
            }
        };
        let cause = match read {
            Ok(value) => return Some(value),
            Err(Refused::Because(cause)) => cause,
            Err(Refused::Kind) => Cause::OutOfBounds { key: name, section, kind: &key.kind },
            Err(Refused::OnRecord) => return None,
            Err(Refused::Words(why)) => Cause::Invalid { key: name, section, why },
        };
        self.fault(span, cause);
        None
    }

    fn list(
        &mut self,
        section: &'static Section,
        key: &'static Key,
        kind: &'static Kind,
        items: &[Spanned<DeValue<'_>>],
    ) -> Result<Value, Refused> {
        if items.len() > table::LIST_MAX {
            return Err(Refused::Words("has more than 1024 entries"));
        }
        let mut values = Vec::new();
        for item in items {
            let read = match item.get_ref() {
                DeValue::String(text) if matches!(kind, Kind::OneOf(_)) => {
                    let Kind::OneOf(allowed) = kind else { continue };
                    match allowed.iter().find(|word| *word == text) {
                        Some(word) => Ok((*word).to_owned()),
                        None => {
                            let near = (text.len() <= 32).then(|| closest(text, allowed.iter().copied())).flatten();
                            self.fault(item.span(), Cause::NotOneOf { key: key.name, section, allowed, near });
                            continue;
                        }
                    }
                }
                DeValue::String(text) => one_text(kind, text),
                _ => Err("must hold strings only"),
            };
            match read {
                Ok(text) => values.push((item.span(), text)),
                Err(why) => self.fault(item.span(), Cause::Invalid { key: key.name, section, why }),
            }
        }
        match values.len() == items.len() {
            true => Ok(Value::List(values)),
            false => Err(Refused::OnRecord),
        }
    }
}

enum Refused {
    Because(Cause),
    /// What the kind expects says it.
    Kind,
    OnRecord,
    Words(&'static str),
}

pub(super) fn integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    // An underscore may stand between digits; the parser has taken it out.
    u64::from_str_radix(integer.as_str(), integer.radix()).ok().filter(|number| *number <= value::INTEGER_MAX)
}

/// Kinds whose value is a text that is checked and put into its one spelling.
fn one_text(kind: &Kind, text: &str) -> Result<String, &'static str> {
    match kind {
        Kind::Account if keys::is_name(text) => Ok(text.to_owned()),
        Kind::Account => Err("must be a name: 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`"),
        Kind::Budget => value::budget(text).map(|budget| value::budget_text(&budget)),
        Kind::Cidr => value::cidr(text),
        Kind::Header => value::header(text).map(|name| name.as_str().to_owned()),
        Kind::Host => value::host(text),
        Kind::Model => match pattern_fault(text) {
            Some(why) => Err(why),
            None => Ok(text.to_owned()),
        },
        Kind::Name => value::name(text).map(|()| text.to_owned()),
        Kind::Path if text.is_empty() || text.contains('\0') => Err("must be a path"),
        Kind::Path => Ok(text.to_owned()),
        Kind::Pattern => value::pattern(text).map(|()| text.to_owned()),
        Kind::Prefix => value::prefix(text).map(|()| text.to_owned()),
        Kind::Price => value::price(text).map(value::price_text),
        Kind::PublicUrl => value::public_url(text),
        Kind::Rate => value::rate(text).map(|rate| value::rate_text(&rate)),
        Kind::TimeZone => value::time_zone(text).map(|zone| zone.iana_name().unwrap_or("UTC").to_owned()),
        _ => unreachable!("callers ask is_text()"),
    }
}

fn secret_source(table: &DeTable<'_>) -> Option<SecretSource> {
    let mut entries = table.iter();
    let (key, value) = entries.next()?;
    let text = value.get_ref().as_str()?;
    if entries.next().is_some() {
        return None;
    }
    let key: &str = key.get_ref();
    match key {
        "credential" if value::is_credential(text) => Some(SecretSource::Credential(text.to_owned())),
        "env" if value::is_variable(text) => Some(SecretSource::Env(text.to_owned())),
        "file" if !text.is_empty() && !text.contains('\0') => Some(SecretSource::File(text.to_owned())),
        _ => None,
    }
}

fn nearest(name: &KeyName, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    name.is_shown().then(|| closest(name.as_str(), candidates)).flatten()
}

/// The candidate that `text` was probably meant to be.
pub(super) fn closest<'w>(text: &str, candidates: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let text = text.to_ascii_lowercase().replace('-', "_");
    candidates
        .map(|word| (strsim::damerau_levenshtein(&text, &word.replace('-', "_")), word))
        // A third of the word may be wrong: picked by feel.
        .filter(|(distance, word)| *distance <= (word.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}
