//! `nullhop key`: makes, lists and revokes client keys.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};

use super::{FAILED, WRONG};
use crate::hygiene::Secret;
use crate::keys::{
    FileFault, HashKey, Record, Track, change, generate, is_key, is_name, is_pattern, random_name, read,
};

/// `nullhop key`
#[derive(Args)]
pub struct KeyArgs {
    /// What to do with keys.
    #[command(subcommand)]
    pub what: KeyCommand,
}

/// What to do with keys.
#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "made once a process")]
pub enum KeyCommand {
    /// Make a key, write its hash into the file, and print it: once, here
    #[command(after_help = "\
Examples:
  nullhop key new --label ci
  nullhop key new --label alice --account acme --plan pro --expires 90d
  nullhop key new --label app --upstream openai --model 'gpt-5*' --json

The key is printed on standard output and stands nowhere else: only its keyed hash is stored. A running nullhop that
uses the file takes the key within a second.")]
    New(NewArgs),
    /// Print the hash of a key that standard input brings, for whoever manages the file otherwise
    #[command(after_help = "Example:\n  nullhop key hash < key.txt")]
    Hash(HashArgs),
    /// List keys, without hashes
    List(ListArgs),
    /// Revoke keys by their ids
    #[command(after_help = "Example:\n  nullhop key revoke k7f3a91c2")]
    Revoke(RevokeArgs),
}

/// The files behind keys.
#[derive(Args)]
pub struct Files {
    /// File of keys
    #[arg(long, value_name = "FILE", default_value = "keys.jsonl")]
    pub keys: PathBuf,
    /// File with the secret that hashes are keyed with; made if it does not exist yet
    #[arg(long, value_name = "FILE", default_value = "keys.secret")]
    pub secret: PathBuf,
}

/// `nullhop key new`
#[derive(Args)]
pub struct NewArgs {
    #[command(flatten)]
    files: Files,
    /// For people and metrics: letters, digits, `.`, `_`, `-`
    #[arg(long, value_name = "NAME")]
    label: String,
    /// Whose it is: limits of an account hold for all of its keys together
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Limits of its own
    #[arg(long, value_name = "NAME")]
    plan: Option<String>,
    /// `managed`: the operator's provider keys are used. `byok`: the caller brings the provider's key as well
    #[arg(long, value_name = "TRACK", default_value = "managed", value_parser = ["managed", "byok"])]
    track: String,
    /// Only this upstream; may be given several times
    #[arg(long, value_name = "NAME")]
    upstream: Vec<String>,
    /// Only models like this, `*` for anything; may be given several times
    #[arg(long, value_name = "PATTERN")]
    model: Vec<String>,
    /// Relax this retention rule for the key; may be given several times. docs/retention.md lists them
    #[arg(long, value_name = "RULE", value_parser = crate::retention::RULE_WORDS.to_vec())]
    allow: Vec<String>,
    /// Whether chat streams are asked for their usage, whatever the upstream says
    #[arg(long, value_name = "WORD", value_parser = ["ask", "leave"])]
    usage: Option<String>,
    /// A time such as 2027-01-31T00:00:00Z, or days from now such as 90d
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Say it in JSON
    #[arg(long)]
    json: bool,
}

/// `nullhop key hash`
#[derive(Args)]
pub struct HashArgs {
    /// File with the secret that hashes are keyed with
    #[arg(long, value_name = "FILE", default_value = "keys.secret")]
    secret: PathBuf,
}

/// `nullhop key list`
#[derive(Args)]
pub struct ListArgs {
    /// File of keys
    #[arg(long, value_name = "FILE", default_value = "keys.jsonl")]
    keys: PathBuf,
    /// Also those that are revoked or expired
    #[arg(long)]
    all: bool,
    /// Say it in JSON
    #[arg(long)]
    json: bool,
}

/// `nullhop key revoke`
#[derive(Args)]
pub struct RevokeArgs {
    /// File of keys
    #[arg(long, value_name = "FILE", default_value = "keys.jsonl")]
    keys: PathBuf,
    /// Ids as `nullhop key list` shows them
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// Does what `args` say.
pub(super) fn key(args: &KeyArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    match &args.what {
        KeyCommand::New(args) => new(args, Timestamp::now(), out, err),
        KeyCommand::Hash(args) => hash(args, &mut io::stdin().lock(), out, err),
        KeyCommand::List(args) => list(args, Timestamp::now(), out, err),
        KeyCommand::Revoke(args) => revoke(args, Timestamp::now(), out, err),
    }
}

fn new(args: &NewArgs, now: Timestamp, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let names = [Some(&args.label), args.account.as_ref(), args.plan.as_ref()];
    for name in names.into_iter().flatten().chain(&args.upstream) {
        if !is_name(name) {
            writeln!(err, "error: names are 1 to 64 letters, digits, `.`, `_` and `-`: {name:?} is none")?;
            return Ok(WRONG);
        }
    }
    if let Some(pattern) = args.model.iter().find(|pattern| !is_pattern(pattern)) {
        writeln!(err, "error: a model is 1 to 96 visible letters, `*` for anything: {pattern:?} is none")?;
        return Ok(WRONG);
    }
    let expires = match args.expires.as_deref().map(|text| time(text, now)) {
        Some(None) => {
            writeln!(err, "error: --expires takes a time to come such as 2027-01-31T00:00:00Z, or 90d")?;
            return Ok(WRONG);
        }
        expires => expires.flatten(),
    };
    let hash_key = match hash_key(&args.files.secret, true) {
        Ok(hash_key) => hash_key,
        Err(says) => {
            writeln!(err, "error: {}: {says}", args.files.secret.display())?;
            return Ok(FAILED);
        }
    };
    let (Ok(text), Ok(id)) = (generate(), random_name(10)) else {
        writeln!(err, "error: the system gives no random bytes")?;
        return Ok(FAILED);
    };
    let record = Record {
        id: format!("k{id}"),
        hash: hash_key.hash(text.as_bytes()),
        label: args.label.clone(),
        account: args.account.clone(),
        plan: args.plan.clone(),
        track: if args.track == "byok" { Track::Byok } else { Track::Managed },
        upstreams: args.upstream.clone(),
        models: args.model.clone(),
        allow: args.allow.clone(),
        usage: args.usage.clone(),
        created: Some(now),
        expires,
        revoked: None,
    };
    let id = record.id.clone();
    if let Err(fault) = change(&args.files.keys, |records| records.push(record)) {
        return refused(&args.files.keys, &fault, err);
    }
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "id": id, "label": args.label, "key": &**text }))?;
    } else {
        writeln!(out, "{}", &**text)?;
        writeln!(err, "{id} ({}) is in {}; the key is shown this once", args.label, args.files.keys.display())?;
    }
    Ok(0)
}

fn hash(args: &HashArgs, input: &mut dyn Read, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let mut text = Vec::new();
    input.take(4096).read_to_end(&mut text)?;
    let text = Secret::new(text);
    let key = text.expose().trim_ascii();
    if !is_key(key) {
        writeln!(err, "error: this is no key of nullhop's: its form or its checksum is wrong")?;
        return Ok(WRONG);
    }
    match hash_key(&args.secret, false) {
        Ok(hash_key) => {
            let hash: String = hash_key.hash(key).iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(out, "{hash}")?;
            Ok(0)
        }
        Err(says) => {
            writeln!(err, "error: {}: {says}", args.secret.display())?;
            Ok(FAILED)
        }
    }
}

fn list(args: &ListArgs, now: Timestamp, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let records = match read(&args.keys) {
        Ok(records) => records,
        Err(fault) => return refused(&args.keys, &fault, err),
    };
    let state = |record: &Record| match (record.revoked, record.expires) {
        (Some(_), _) => "revoked",
        (None, Some(expires)) if expires <= now => "expired",
        _ => "active",
    };
    let shown: Vec<_> = records.iter().filter(|record| args.all || state(record) == "active").collect();
    let day = |time: Option<Timestamp>| time.map_or("-".to_owned(), |time| time.to_string().chars().take(10).collect());
    let track = |record: &Record| match record.track {
        Track::Managed => "managed",
        Track::Byok => "byok",
    };
    if args.json {
        let object = |record: &&Record| {
            serde_json::json!({
                "id": record.id, "label": record.label, "state": state(record), "track": track(record),
                "account": record.account, "plan": record.plan, "upstreams": record.upstreams, "models": record.models,
                "created": record.created.map(|time| time.to_string()),
                "expires": record.expires.map(|time| time.to_string()),
                "revoked": record.revoked.map(|time| time.to_string()),
            })
        };
        writeln!(out, "{:#}", serde_json::Value::from(shown.iter().map(object).collect::<Vec<_>>()))?;
        return Ok(0);
    }
    let mut rows = vec![["id", "label", "account", "plan", "track", "state", "expires"].map(str::to_owned)];
    rows.extend(shown.iter().map(|record| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or("-".to_owned());
        [
            record.id.clone(),
            record.label.clone(),
            or_dash(&record.account),
            or_dash(&record.plan),
            track(record).to_owned(),
            state(record).to_owned(),
            day(record.expires),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(0)
}

fn revoke(args: &RevokeArgs, now: Timestamp, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let revoked = change(&args.keys, |records| {
        let unknown = args.ids.iter().find(|id| !records.iter().any(|record| record.id == **id));
        if unknown.is_none() {
            for record in records.iter_mut().filter(|record| args.ids.contains(&record.id)) {
                record.revoked.get_or_insert(now);
            }
        }
        unknown
    });
    match revoked {
        Ok(None) => {
            writeln!(out, "revoked: {}", args.ids.join(", "))?;
            Ok(0)
        }
        Ok(Some(unknown)) => {
            writeln!(err, "error: no key has the id {unknown:?}; nothing was revoked")?;
            Ok(WRONG)
        }
        Err(fault) => refused(&args.keys, &fault, err),
    }
}

fn refused(path: &Path, fault: &FileFault, err: &mut dyn Write) -> io::Result<u8> {
    writeln!(err, "error: {}: {fault}", path.display())?;
    Ok(if matches!(fault, FileFault::Line(..)) { WRONG } else { FAILED })
}

/// The secret in the file at `path`; with `make`, a new one where there is none.
fn hash_key(path: &Path, make: bool) -> Result<HashKey, String> {
    let text = match std::fs::read(path) {
        Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
            use std::os::unix::fs::OpenOptionsExt;
            let text = random_name(48).map_err(|_| "the system gives no random bytes".to_owned())?;
            let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            made.and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.write_all(b"\n")?;
                file.sync_all()
            })
            .map_err(|error| error.kind().to_string())?;
            text.into_bytes()
        }
        text => text.map_err(|error| error.kind().to_string())?,
    };
    HashKey::new(&Secret::new(text)).ok_or_else(|| format!("a secret has {} bytes or more", HashKey::BYTES_MIN))
}

/// `90d`, or a time as RFC 3339 has it; must be to come.
fn time(text: &str, now: Timestamp) -> Option<Timestamp> {
    let time = match text.strip_suffix('d') {
        Some(days) => {
            let days: u64 = days.parse().ok().filter(|days| (1..=36_500).contains(days))?;
            now.checked_add(SignedDuration::try_from(Duration::from_secs(days * 86_400)).ok()?).ok()?
        }
        None => text.parse().ok()?,
    };
    (time > now).then_some(time)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn said(line: &[&str], input: &str) -> (u8, String, String) {
        let cli = Cli::try_parse_from([&["nullhop", "key"], line].concat()).unwrap_or_else(|error| panic!("{error}"));
        let Command::Key(args) = cli.command else { panic!("a key command") };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let code = match &args.what {
            KeyCommand::New(args) => new(args, now, &mut out, &mut err),
            KeyCommand::Hash(args) => hash(args, &mut input.as_bytes(), &mut out, &mut err),
            KeyCommand::List(args) => list(args, now, &mut out, &mut err),
            KeyCommand::Revoke(args) => revoke(args, now, &mut out, &mut err),
        };
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code.unwrap(), text(out), text(err))
    }

    #[test]
    fn a_keys_life() {
        let folder = std::env::temp_dir().join(format!("nullhop-{}-key-life", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (keys, secret) = (folder.join("keys.jsonl"), folder.join("keys.secret"));
        let (keys, secret) = (keys.to_str().unwrap(), secret.to_str().unwrap());
        let files = ["--keys", keys, "--secret", secret];
        let new = |more: &[&str]| said(&[&["new"], &files[..], more].concat(), "");

        let (code, key, note) = new(&["--label", "ci", "--account", "acme", "--expires", "90d", "--model", "gpt-*"]);
        assert_eq!(code, 0);
        let key = key.trim_end();
        assert!(is_key(key.as_bytes()) && note.contains("(ci)") && !note.contains(key));
        // Only the hash is stored, and `hash` makes the same.
        let text = std::fs::read_to_string(keys).unwrap();
        assert!(!text.contains(&key[4..]));
        let (code, hash, _) = said(&["hash", "--secret", secret], &format!("{key}\n"));
        assert!(code == 0 && text.contains(hash.trim_end()));
        assert_eq!(said(&["hash", "--secret", secret], "sk-other").0, 2);

        let (code, json, _) = new(&["--label", "app", "--track", "byok", "--upstream", "openai", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(code == 0 && is_key(json["key"].as_str().unwrap().as_bytes()));
        let id = json["id"].as_str().unwrap();

        let (_, list, _) = said(&["list", "--keys", keys], "");
        let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1][1..], ["ci", "acme", "-", "managed", "active", "2027-02-19"]);
        assert_eq!(rows[2][..6], [id, "app", "-", "-", "byok", "active"]);

        assert_eq!(said(&["revoke", "--keys", keys, id, "k0"], "").0, 2);
        assert_eq!(said(&["revoke", "--keys", keys, id], ""), (0, format!("revoked: {id}\n"), String::new()));
        assert_eq!(said(&["list", "--keys", keys], "").1.lines().count(), 2);
        let (_, all, _) = said(&["list", "--keys", keys, "--all", "--json"], "");
        let all: serde_json::Value = serde_json::from_str(&all).unwrap();
        assert_eq!((&all[1]["state"], &all[1]["revoked"]), (&"revoked".into(), &"2026-11-21T12:00:00Z".into()));

        for wrong in [
            &["--label", "a b"][..],
            &["--label", "a", "--expires", "2020-01-01T00:00:00Z"],
            &["--label", "a", "--expires", "soon"],
            &["--label", "a", "--model", "a b"],
            &["--label", "a", "--upstream", ""],
        ] {
            assert_eq!(new(wrong).0, 2, "{wrong:?}");
        }
        std::fs::write(secret, "short").unwrap();
        assert_eq!(new(&["--label", "a"]).0, 1);
        std::fs::write(keys, "sesame\n").unwrap();
        let (code, _, err) = said(&["list", "--keys", keys], "");
        assert!(code == 2 && err.ends_with("line 1: it is no JSON object\n") && !err.contains("sesame"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
