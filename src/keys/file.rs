//! The file of keys: one JSON object a line, each with the hash of a key and what the key may do. Written by `nullhop key`
//! or by whatever manages accounts; never holds a key.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::Map;
use serde_json::Value;

use super::text::Hash;

/// A million keys fit; a wrong file does not take the machine's memory.
const FILE_BYTES_MAX: u64 = 512 << 20;

/// Longest label, account, plan or upstream name.
const NAME_BYTES_MAX: usize = 64;

/// Most entries of one list of a key.
const LIST_MAX: usize = 64;

/// What becomes of the credential that a caller with this key sends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Track {
    /// The provider's key is the operator's.
    Managed,
    /// The caller brings the provider's key, and this one beside it.
    Byok,
}

/// One key, without its text.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Names the key in lists and events; 1 to 64 of `A-Za-z0-9._-`.
    pub(crate) id: String,
    pub(crate) hash: Hash,
    /// For people; the same letters.
    pub(crate) label: String,
    pub(crate) account: Option<String>,
    pub(crate) plan: Option<String>,
    pub(crate) track: Track,
    /// Empty: all of its track.
    pub(crate) upstreams: Vec<String>,
    /// Patterns; empty: all that the upstream allows.
    pub(crate) models: Vec<String>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) revoked: Option<Timestamp>,
}

/// What is wrong with a line. Quotes nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// Two keys have one hash or one id.
    Duplicate,
    /// A member that must be there is not.
    Missing(&'static str),
    /// Not a JSON object.
    NotJson,
    /// A member that no version of this program writes.
    Unknown,
    /// A member's value is none that it can have.
    Value(&'static str),
}

/// Why a file of keys could not be read or written.
#[derive(Debug)]
pub(crate) enum FileFault {
    Io(std::io::ErrorKind),
    /// What is wrong with which line, from 1.
    Line(usize, Line),
    TooLarge,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Duplicate => f.write_str("its id or hash stands in the file twice"),
            Self::Missing(name) => write!(f, "\"{name}\" is missing"),
            Self::NotJson => f.write_str("it is no JSON object"),
            Self::Unknown => f.write_str("it has a member that is not known"),
            Self::Value(name) => write!(f, "\"{name}\" has a value that it cannot have"),
        }
    }
}

impl std::fmt::Display for FileFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(kind) => write!(f, "{kind}"),
            Self::Line(number, fault) => write!(f, "line {number}: {fault}"),
            Self::TooLarge => write!(f, "it is larger than {} MiB", FILE_BYTES_MAX >> 20),
        }
    }
}

impl From<std::io::Error> for FileFault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind())
    }
}

impl Record {
    /// Reads one line.
    fn parse(line: &[u8]) -> Result<Self, Line> {
        let Ok(Value::Object(members)) = serde_json::from_slice(line) else { return Err(Line::NotJson) };
        let mut members = Members(members);
        let record = Self {
            id: members.name("id")?.ok_or(Line::Missing("id"))?,
            hash: members.hash()?,
            label: members.name("label")?.ok_or(Line::Missing("label"))?,
            account: members.name("account")?,
            plan: members.name("plan")?,
            track: match members.text("track")?.as_deref() {
                None | Some("managed") => Track::Managed,
                Some("byok") => Track::Byok,
                Some(_) => return Err(Line::Value("track")),
            },
            upstreams: members.list("upstreams", is_name)?,
            models: members.list("models", is_pattern)?,
            created: members.time("created")?,
            expires: members.time("expires")?,
            revoked: members.time("revoked")?,
        };
        if members.0.is_empty() { Ok(record) } else { Err(Line::Unknown) }
    }

    /// The line that [`Record::parse`] reads, without its newline.
    fn line(&self) -> String {
        let mut members = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                members.insert(name.to_owned(), value);
            }
        };
        let list = |list: &[String]| (!list.is_empty()).then(|| Value::from(list.to_vec()));
        let time = |time: Option<Timestamp>| time.map(|time| Value::from(time.to_string()));
        let hash: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        put("id", Some(self.id.as_str().into()));
        put("hash", Some(hash.into()));
        put("label", Some(self.label.as_str().into()));
        put("account", self.account.as_deref().map(Value::from));
        put("plan", self.plan.as_deref().map(Value::from));
        let track = match self.track {
            Track::Managed => "managed",
            Track::Byok => "byok",
        };
        put("track", Some(track.into()));
        put("upstreams", list(&self.upstreams));
        put("models", list(&self.models));
        put("created", time(self.created));
        put("expires", time(self.expires));
        put("revoked", time(self.revoked));
        Value::Object(members).to_string()
    }
}

struct Members(Map<String, Value>);

impl Members {
    fn text(&mut self, name: &'static str) -> Result<Option<String>, Line> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Line::Value(name)),
        }
    }

    fn name(&mut self, name: &'static str) -> Result<Option<String>, Line> {
        match self.text(name)? {
            Some(text) if !is_name(&text) => Err(Line::Value(name)),
            text => Ok(text),
        }
    }

    fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, Line> {
        let text = self.text(name)?;
        text.map(|text| text.parse().map_err(|_| Line::Value(name))).transpose()
    }

    fn list(&mut self, name: &'static str, good: fn(&str) -> bool) -> Result<Vec<String>, Line> {
        let items = match self.0.remove(name) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            // A list that is empty would mean "all", which nobody who writes it out can be sure of.
            Some(Value::Array(items)) if (1..=LIST_MAX).contains(&items.len()) => items,
            Some(_) => return Err(Line::Value(name)),
        };
        let text = |item| match item {
            Value::String(text) if good(&text) => Ok(text),
            _ => Err(Line::Value(name)),
        };
        items.into_iter().map(text).collect()
    }

    fn hash(&mut self) -> Result<Hash, Line> {
        let text = self.text("hash")?.ok_or(Line::Missing("hash"))?;
        parse_hash(&text).ok_or(Line::Value("hash"))
    }
}

/// 64 hexadecimal digits.
fn parse_hash(text: &str) -> Option<Hash> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

pub(crate) fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// A model name in which `*` stands for anything.
pub(crate) fn is_pattern(text: &str) -> bool {
    (1..=96).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

/// All keys of a file's text, in its order. Empty lines are skipped.
///
/// # Errors
/// At the first line that is wrong: a file that is wrong in one place may be wrong in others.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Record>, FileFault> {
    Ok(parse_lines(text)?.into_iter().map(|(_, record)| record).collect())
}

/// The same, each with the number of its line, from 1.
fn parse_lines(text: &[u8]) -> Result<Vec<(usize, Record)>, FileFault> {
    let mut records = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut ids = std::collections::HashSet::new();
    for (place, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let record = Record::parse(line).map_err(|fault| FileFault::Line(place + 1, fault))?;
        if !seen.insert(record.hash) || !ids.insert(record.id.clone()) {
            return Err(FileFault::Line(place + 1, Line::Duplicate));
        }
        records.push((place + 1, record));
    }
    Ok(records)
}

/// Reads a file of keys.
///
/// # Errors
/// If it cannot be read, or a line of it is wrong.
pub(crate) fn read(path: &Path) -> Result<Vec<Record>, FileFault> {
    parse(&text(path)?)
}

/// Reads a file of keys, each with the number of its line, from 1.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_lines(path: &Path) -> Result<Vec<(usize, Record)>, FileFault> {
    parse_lines(&text(path)?)
}

fn text(path: &Path) -> Result<Vec<u8>, FileFault> {
    let mut text = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(FileFault::TooLarge);
    }
    Ok(text)
}

/// Changes a file of keys, which need not exist yet: `change` gets all records and returns what to answer. Whoever reads
/// the file meanwhile sees the old or the new one, never a part; two changes wait for each other.
///
/// # Errors
/// If it cannot be read or written, or a line of it is wrong. Then nothing was changed.
pub(crate) fn change<T>(path: &Path, change: impl FnOnce(&mut Vec<Record>) -> T) -> Result<T, FileFault> {
    let beside = |suffix: &str| -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    };
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(beside(".lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(std::io::Error::from)?;
    let mut records = match read(path) {
        Err(FileFault::Io(std::io::ErrorKind::NotFound)) => Vec::new(),
        read => read?,
    };
    let answer = change(&mut records);
    let mut text = String::new();
    for record in &records {
        text.push_str(&record.line());
        text.push('\n');
    }
    let draft = beside(".new");
    // Readable as the file was: the service's user may be another than the operator.
    let mode =
        std::fs::metadata(path).map_or(0o600, |known| std::os::unix::fs::PermissionsExt::mode(&known.permissions()));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&draft)?;
    if let Ok(known) = std::fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        // Fails where it is the same owner's anyway, or where it must not.
        let _ = std::os::unix::fs::fchown(&file, Some(known.uid()), Some(known.gid()));
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> Record {
        Record {
            id: format!("k{number}"),
            hash: [number; 32],
            label: format!("label-{number}"),
            account: (number.is_multiple_of(2)).then(|| "acme".to_owned()),
            plan: Some("pro".to_owned()),
            track: if number.is_multiple_of(3) { Track::Byok } else { Track::Managed },
            upstreams: if number.is_multiple_of(2) { vec!["openai".to_owned()] } else { Vec::new() },
            models: vec!["gpt-*".to_owned()],
            created: Some("2026-11-21T10:00:00Z".parse().unwrap()),
            expires: None,
            revoked: (number == 4).then(|| "2026-11-22T10:00:00Z".parse().unwrap()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let records: Vec<_> = (1..9).map(record).collect();
        let text: String = records.iter().map(|record| record.line() + "\n").collect();
        assert!(parse(text.as_bytes()).unwrap() == records);
        assert!(parse(b"\n  \n").unwrap().is_empty());
        // Empty lines count, so that a fault is found where an editor shows it.
        let lines = parse_lines(format!("\n{text}").as_bytes()).unwrap();
        assert_eq!(lines.iter().map(|(line, _)| *line).collect::<Vec<_>>(), (2..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_wrong_line_is_named_and_not_quoted() {
        let good = record(1).line();
        let hash = "ab".repeat(32);
        for (line, says) in [
            ("sesame".to_owned(), "line 2: it is no JSON object"),
            ("[1]".to_owned(), "line 2: it is no JSON object"),
            (good.clone(), "line 2: its id or hash stands in the file twice"),
            (format!(r#"{{"hash":"{hash}","label":"x"}}"#), "line 2: \"id\" is missing"),
            (
                format!(r#"{{"id":"a b","hash":"{hash}","label":"x"}}"#),
                "line 2: \"id\" has a value that it cannot have",
            ),
            (r#"{"id":"a","hash":"12","label":"x"}"#.to_owned(), "line 2: \"hash\" has a value that it cannot have"),
            (
                format!(r#"{{"id":"a","hash":"{hash}","label":"x","sesame":1}}"#),
                "line 2: it has a member that is not known",
            ),
            (
                format!(r#"{{"id":"a","hash":"{hash}","label":"x","models":[]}}"#),
                "line 2: \"models\" has a value that it cannot have",
            ),
            (
                format!(r#"{{"id":"a","hash":"{hash}","label":"x","expires":"soon"}}"#),
                "line 2: \"expires\" has a value that it cannot have",
            ),
            (
                format!(r#"{{"id":"a","hash":"{hash}","label":"x","track":"none"}}"#),
                "line 2: \"track\" has a value that it cannot have",
            ),
        ] {
            let text = format!("{good}\n{line}\n");
            let Err(fault) = parse(text.as_bytes()) else { panic!("{line}") };
            assert_eq!(fault.to_string(), says);
        }
    }

    #[test]
    fn changes_at_once_are_all_kept() {
        let folder = std::env::temp_dir().join(format!("nullhop-{}-keys", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("keys.jsonl");
        std::thread::scope(|scope| {
            for number in 1..=20 {
                let path = &path;
                scope.spawn(move || change(path, |records| records.push(record(number))).unwrap());
            }
        });
        assert_eq!(read(&path).unwrap().len(), 20);
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
