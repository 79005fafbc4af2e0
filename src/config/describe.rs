//! The table, told to people and to editors: a file to begin with, a reference page, a JSON Schema.

use std::fmt::Write;

use serde_json::{Value as Json, json};
use toml::de::DeValue;

use super::BUILT_IN;
use super::parse::{self, Block};
use super::table::{self, BLOCKS_MAX, Key, Kind, LIMITS_MAX, LIST_MAX, NAME_PATTERN, SECTIONS, Section};
use super::value::{duration_text, size_text};

const DURATION_PATTERN: &str = "^[0-9]+(ms|s|m|h|d)$";
const SIZE_PATTERN: &str = "^[0-9]+(B|KiB|MiB|GiB)?$";
/// No JSON Schema can say which addresses are; the parser does.
const ADDRESS_PATTERN: &str = "^([0-9.]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}$";
const NETWORK_PATTERN: &str = "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$";
const HOST_PATTERN: &str = "^([A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*|\\[[0-9A-Fa-f:.]+\\])$";
const URL_PATTERN: &str = "^https?://[^/?#@]+(/[^?#]*)?$";
const MODEL_PATTERN: &str = "^[A-Za-z0-9._:/@*-]{1,96}$";
const ACCOUNT_PATTERN: &str = "^[A-Za-z0-9._-]{1,64}$";
const HEADER_PATTERN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$";
const PRICE_PATTERN: &str = "^[0-9]+(\\.[0-9]{1,6})?$";
const RATE_PATTERN: &str = "^\\s*[0-9]+(\\.[0-9]+)?[kMG]?\\s+(requests?|((input|output)\\s+)?tokens?)\\s*/\\s*\
                            (second|minute|hour|day|[0-9]+(ms|s|m|h|d))\\s*$";
const BUDGET_PATTERN: &str = "^\\s*[0-9]+(\\.[0-9]+)?[kMG]?\\s+(requests?|((input|output)\\s+)?tokens?|usd|USD)\\s*/\\s*\
                              (day|month)\\s*$";
const PREFIX_PATTERN: &str = "^(/[A-Za-z0-9._~-]+)*$";

/// What `nullhop init` writes: every key with its meaning and default, the built-in listener and
/// upstreams in force.
pub fn init() -> String {
    let mut faults = Vec::new();
    let built_in = match parse::parse(BUILT_IN, &mut faults) {
        Ok(raw) if faults.is_empty() => raw,
        _ => unreachable!("a test reads it"),
    };
    let mut out = String::from(
        "# nullhop: configuration\n\
         #\n\
         # A line that begins with `#` and no space is a setting, at its default or with an example.\n\
         # `nullhop check -c FILE` finds mistakes, `nullhop config reference` explains more.\n\
         # No secret stands here: { file = \"path\" }, { env = \"NAME\" } or { credential = \"name\" } say where it is.\n",
    );
    for section in SECTIONS {
        let _ = write!(out, "\n# {}\n", section.doc);
        let mut written = built_in.all(section.path).filter(|block| block.span.is_some());
        let header = section.header();
        let first = written.next();
        if first.is_some() || (!section.repeated && !section.path.contains('.') && !section.is_optional()) {
            let _ = writeln!(out, "{header}");
        } else {
            let _ = writeln!(out, "#{header}");
        }
        if let Some(block) = first {
            write_active(&mut out, block);
        }
        for key in section.keys {
            if first.is_some_and(|block| block.is_written(key.name)) {
                continue;
            }
            let _ = write!(out, "\n# {}\n#{} = {}\n", key.doc, key.name, key.example);
        }
        for block in written {
            let _ = writeln!(out, "\n{header}");
            write_active(&mut out, block);
        }
    }
    out
}

fn write_active(out: &mut String, block: &Block) {
    for key in block.section.keys {
        if let (true, Some(value)) = (block.is_written(key.name), block.get(key.name)) {
            let _ = writeln!(out, "{} = {}", key.name, value.to_toml());
        }
    }
}

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut out = String::from(REFERENCE_HEAD);
    for section in SECTIONS {
        let header = section.header();
        let _ = write!(out, "\n## {header}\n\n{}\n\n", section.doc);
        out.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let default = match (key.default, key.required) {
                (Some(text), _) => format!("`{text}`"),
                (None, true) => "**required**".to_owned(),
                (None, false) => "none".to_owned(),
            };
            let _ = writeln!(
                out,
                "| `{}` | {} | {default} | {} |",
                key.name,
                short(&key.kind),
                key.doc.replace('|', "\\|")
            );
        }
        let examples: Vec<_> = section
            .keys
            .iter()
            .filter(|key| key.default.is_none())
            .map(|key| format!("{} = {}\n", key.name, key.example))
            .collect();
        if !examples.is_empty() && !has_choices(section) {
            let _ = write!(out, "\n```toml\n{header}\n{}```\n", examples.concat());
        }
    }
    out.push_str("\n## Without a file\n\n`nullhop run` without `-c` behaves as if it read this:\n\n```toml\n");
    out.push_str(BUILT_IN);
    out.push_str("```\n");
    out
}

/// Examples of all keys together would contradict each other.
fn has_choices(section: &Section) -> bool {
    ["listener", "upstream", "journal"].contains(&section.path)
}

const REFERENCE_HEAD: &str = "\
# Configuration

<!-- Made by `nullhop config reference`; a test holds it up to date. -->

One TOML file, read by `nullhop run -c FILE` and on SIGHUP, checked as a whole before any of it counts.
`nullhop init` writes a file to begin with, `nullhop check -c FILE` lists every problem at once,
`nullhop config schema` is a JSON Schema for editors, `nullhop config show -c FILE` prints the file with all defaults
filled in. No key turns on the storing or logging of content: there is none.

- **Durations** are strings: `\"250ms\"`, `\"5s\"`, `\"15m\"`, `\"1h\"`, `\"1d\"`.
- **Sizes** are a number of bytes or strings: `65536`, `\"64KiB\"`, `\"32MiB\"`, `\"1GiB\"`.
- **Addresses** are an IP address and a port: `\"127.0.0.1:8443\"`, `\"[::1]:8443\"`, `\"0.0.0.0:443\"`.
- **Names** match `^[a-z][a-z0-9-]{0,31}$`, because they become labels in the metrics.
- **Rates** are an amount of something in a time: `\"600 requests/1m\"`, `\"2M tokens/1m\"`, `\"400k input tokens/hour\"`,
  `\"1G output tokens/day\"`. `k`, `M` and `G` are thousands, millions and milliards; the time is a duration from `1s` to `31d`, or
  `second`, `minute`, `hour` or `day`. All of it can be had at once, and what was used comes back evenly.
- **Budgets** last until a day or a month ends in the time zone of [admission], and begin anew then: `\"50M tokens/day\"`,
  `\"20M output tokens/month\"`, `\"12.50 usd/day\"`. US dollars have at most 6 places and count by [[price]].
- **Prices** are US dollars for a million tokens, as strings, so that nothing is rounded: `\"0.25\"`, `\"2\"`.
- **Paths** that are relative begin at the folder of the configuration file.
- **Secrets** never stand in the file. Each says where it is:
  - `{ file = \"path\" }`: the file's content without its last newline. Mode 600; others may not read it. At most 64 KiB.
  - `{ env = \"NAME\" }`: an environment variable. It stays readable in `/proc/PID/environ` of this process, so a file is better.
  - `{ credential = \"name\" }`: a systemd credential (`LoadCredential=`), a file in `$CREDENTIALS_DIRECTORY`.

Reports never quote the file's values: strings, comments and what does not look like a key are shown as `***`, so that a
report can go into a ticket.
";

/// The middle column of the reference.
fn short(kind: &Kind) -> String {
    match kind {
        Kind::Account => "name of an account".to_owned(),
        Kind::Address => "address and port".to_owned(),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Budget => "budget".to_owned(),
        Kind::Cidr => "network".to_owned(),
        Kind::Duration { min, max } => {
            let text = |ms: &u64| duration_text(std::time::Duration::from_millis(*ms));
            format!("duration, {} to {}", text(min), text(max))
        }
        Kind::Endpoint | Kind::PublicUrl => "URL".to_owned(),
        Kind::Header => "header name".to_owned(),
        Kind::Host => "host name".to_owned(),
        Kind::Integer { min, max } => format!("integer, {min} to {max}"),
        // They have a page of their own.
        Kind::List(Kind::OneOf(_)) => "list of rules".to_owned(),
        Kind::List(kind) => format!("list of {}s", short(kind)),
        Kind::Model => "pattern".to_owned(),
        Kind::Name => "name".to_owned(),
        Kind::OneOf(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(", ")
        }
        Kind::Path => "path".to_owned(),
        Kind::Pattern => "model".to_owned(),
        Kind::Prefix => "path prefix".to_owned(),
        Kind::Price => "price".to_owned(),
        Kind::Rate => "rate".to_owned(),
        Kind::Secret => "secret".to_owned(),
        Kind::Size { min, max } => format!("size, {} to {}", size_text(*min), size_text(*max)),
        Kind::TimeZone => "time zone".to_owned(),
    }
}

/// JSON Schema, draft 2020-12, for editors. It knows less than `check`: no bounds of durations, no
/// rules that span keys.
pub fn schema() -> Json {
    let mut root =
        object(table::top_level().map(|section| (section.name(), section_schema(section))), vec!["upstream"]);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("nullhop configuration");
    let forms = ["file", "env", "credential"].map(|form| {
        let text = json!({ "type": "string", "minLength": 1 });
        object([(form, text)].into_iter(), vec![form])
    });
    root["$defs"] = json!({
        "duration": { "type": "string", "pattern": DURATION_PATTERN },
        "secret": { "oneOf": forms },
    });
    root
}

fn section_schema(section: &'static Section) -> Json {
    let keys = section.keys.iter().map(|key| (key.name, key_schema(key)));
    let children = section.children().map(|child| (child.name(), section_schema(child)));
    let required = section.keys.iter().filter(|key| key.required).map(|key| key.name);
    let mut schema = object(keys.chain(children), required.collect());
    if section.repeated {
        schema = json!({ "type": "array", "maxItems": BLOCKS_MAX, "items": schema });
    }
    schema["description"] = json!(section.doc);
    schema
}

fn object<'n>(properties: impl Iterator<Item = (&'n str, Json)>, required: Vec<&str>) -> Json {
    let properties: serde_json::Map<_, _> = properties.map(|(name, schema)| (name.to_owned(), schema)).collect();
    let mut object = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn key_schema(key: &'static Key) -> Json {
    let mut schema = kind_schema(&key.kind);
    schema["description"] = json!(key.doc);
    match key.default {
        Some(text) => schema["default"] = to_json(text),
        None => schema["examples"] = json!([to_json(key.example)]),
    }
    schema
}

fn kind_schema(kind: &Kind) -> Json {
    let text = |pattern| json!({ "type": "string", "pattern": pattern });
    match kind {
        Kind::Account => text(ACCOUNT_PATTERN),
        Kind::Address => text(ADDRESS_PATTERN),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Budget => text(BUDGET_PATTERN),
        Kind::Cidr => text(NETWORK_PATTERN),
        Kind::Duration { .. } => json!({ "$ref": "#/$defs/duration" }),
        Kind::Endpoint | Kind::PublicUrl => text(URL_PATTERN),
        Kind::Header => text(HEADER_PATTERN),
        Kind::Host => text(HOST_PATTERN),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::List(kind @ (Kind::Budget | Kind::Rate)) => {
            json!({ "type": "array", "maxItems": LIMITS_MAX, "items": kind_schema(kind) })
        }
        Kind::List(kind) => {
            json!({ "type": "array", "maxItems": LIST_MAX, "items": kind_schema(kind) })
        }
        Kind::Model => text(MODEL_PATTERN),
        Kind::Name => text(NAME_PATTERN),
        Kind::OneOf(words) => json!({ "enum": words }),
        Kind::Path | Kind::Pattern | Kind::TimeZone => json!({ "type": "string", "minLength": 1 }),
        Kind::Prefix => text(PREFIX_PATTERN),
        Kind::Price => text(PRICE_PATTERN),
        Kind::Rate => text(RATE_PATTERN),
        Kind::Secret => json!({ "$ref": "#/$defs/secret" }),
        Kind::Size { min, max } => json!({
            "anyOf": [
                { "type": "integer", "minimum": min, "maximum": max },
                { "type": "string", "pattern": SIZE_PATTERN },
            ],
        }),
    }
}

/// A default or an example of the table as JSON.
fn to_json(text: &str) -> Json {
    fn convert(value: &DeValue<'_>) -> Json {
        match value {
            DeValue::Array(items) => items.iter().map(|item| convert(item.get_ref())).collect(),
            DeValue::Boolean(yes) => json!(yes),
            DeValue::Integer(_) => json!(parse::integer(value)),
            DeValue::String(text) => json!(text),
            DeValue::Table(table) => {
                let members = table.iter().map(|(key, value)| (key.get_ref().to_string(), convert(value.get_ref())));
                Json::Object(members.collect())
            }
            DeValue::Float(_) | DeValue::Datetime(_) => unreachable!("the table has none"),
        }
    }
    let value = DeValue::parse(text).expect("the table's defaults and examples are TOML");
    convert(value.get_ref())
}
