//! The command line as people and scripts meet it: texts, exit codes, which stream says what.

mod support;

use std::io::BufRead;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use support::Scratch;

/// Exit code, standard output, standard error.
fn nullhop(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

/// For commands that must succeed and have nothing to complain about.
fn says(arguments: &[&str]) -> String {
    let (code, out, err) = nullhop(arguments);
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
    out
}

const COMMANDS: [&[&str]; 11] = [
    &["run"],
    &["check"],
    &["init"],
    &["config"],
    &["config", "schema"],
    &["config", "show"],
    &["config", "reference"],
    &["demo"],
    &["prove"],
    &["probe"],
    &["usage"],
];

#[test]
fn help_teaches() {
    let help = says(&["--help"]);
    for text in ["OPENAI_BASE_URL=", "ANTHROPIC_BASE_URL=", "GOOGLE_GEMINI_BASE_URL=", "openai_base_url", "Exit codes:"]
    {
        assert!(help.contains(text), "{text}");
    }
    let short = says(&["-h"]);
    assert!(short.len() < help.len() && short.lines().count() < 20, "{short}");
    for command in COMMANDS {
        assert!(command.len() > 1 || short.contains(&format!("  {} ", command[0])), "{command:?}");
        let help = says(&[command, &["--help"]].concat());
        assert!(help.contains(&format!("Usage: nullhop {}", command.join(" "))), "{help}");
        assert!(command == ["config"] || help.contains("Example") || command == ["config", "show"], "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
    }
    let version = says(&["--version"]);
    assert_eq!(version, concat!("nullhop ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_commands_are_2_and_help() {
    for (arguments, text) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["chek"], "similar subcommand exists: 'check'"),
        (&["run", "--confg", "x"], "similar argument exists: '--config'"),
        (&["run", "--listen", "nowhere"], "invalid value 'nowhere' for '--listen <ADDR>'"),
        (&["check"], "--config <FILE>"),
        (&["check", "-c", "/does/not/exist.toml"], "this file does not exist"),
        (&["run", "-c", "/does/not/exist.toml"], "this file does not exist"),
        (&["config", "show", "-c", "/does/not/exist.toml"], "this file does not exist"),
        (&["demo", "--port", "70000"], "invalid value '70000'"),
        (&[], "Usage: nullhop"),
    ] {
        let (code, out, err) = nullhop(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(err.contains(text), "{arguments:?}: {err}");
    }
}

const TEN_MISTAKES: &str = r#"# A file with ten mistakes
[runtime]
workers = 1000

[[listener]]
adress = "10.11.12.13:8443" # the office

[limits]
handshake_timeout = 5
head_bytes = "1KiB"

[drain]
grace = "10m"
deadline = "1m"

[metrics]
token = "s3cr3t-t0k3n"

[admin]
address = "0.0.0.0:9465"

[[upstream]]
name = "openai"
provider = "open-ai"

[[upstream]]
name = "openai"
provider = "compatible"
url = "https://user:pass@api.example.com"
"#;

const TEN_PROBLEMS: &str = r#"FILE: 10 problems
error: `workers` in [runtime] must be an integer from 0 to 256
  --> FILE:3:11
   |
 3 | workers = 1000
   |           ^^^^

error: unknown key `adress` in [[listener]], did you mean `address`?
  --> FILE:6:1
   |
 6 | adress = "***"
   | ^^^^^^

error: `handshake_timeout` in [limits] must be a duration from 100ms to 1m, such as "250ms", "5s", "15m" or "1h", not an integer
  --> FILE:9:21
   |
 9 | handshake_timeout = 5
   |                     ^

error: `head_bytes` in [limits] must be a size from 8KiB to 256KiB: a number of bytes, or such as "64KiB" or "32MiB"
   --> FILE:10:14
    |
 10 | head_bytes = "***"
    |              ^^^^^

error: `deadline` in [drain] must not be below `grace`: both count from the signal
   --> FILE:14:12
    |
 14 | deadline = "***"
    |            ^^^^^

error: `token` in [metrics] is a secret and must not stand in this file
   --> FILE:17:9
    |
 17 | token = "***"
    |         ^^^^^
    = say where it is: { file = "path" }, { env = "NAME" } or { credential = "name" } (systemd)

error: `address` in [admin] must be a loopback address: it has no authentication
   --> FILE:20:11
    |
 20 | address = "***"
    |           ^^^^^

error: `provider` in [[upstream]] must be one of `openai`, `anthropic`, `gemini`, `vertex`, `bedrock`, `azure`, `compatible`; did you mean `openai`?
   --> FILE:24:12
    |
 24 | provider = "***"
    |            ^^^^^

error: `name` in [[upstream]] must be unique, the same as on line 23
   --> FILE:27:8
    |
 27 | name = "***"
    |        ^^^^^

error: `url` in [[upstream]] must not hold a user name or a password (`@`)
   --> FILE:29:7
    |
 29 | url = "***"
    |       ^^^^^
"#;

#[test]
fn ten_mistakes_are_told_at_once() {
    let scratch = Scratch::new();
    let path = scratch.file("nullhop.toml", TEN_MISTAKES);
    let path = path.to_str().expect("UTF-8");
    let expected = TEN_PROBLEMS.replace("FILE", path);
    assert_eq!(nullhop(&["check", "-c", path]), (2, String::new(), expected.clone()));
    // `run` and `config show` say the same.
    let (code, out, err) = nullhop(&["run", "-c", path]);
    assert_eq!((code, out.as_str(), err.trim_end()), (2, "", expected.trim_end()));
    let (code, out, err) = nullhop(&["config", "show", "-c", path]);
    assert_eq!((code, out.as_str(), err), (2, "", expected));

    let (code, out, err) = nullhop(&["check", "-c", path, "--json"]);
    assert_eq!((code, err.as_str()), (2, ""));
    let said: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(said["count"], 10);
    let problems = said["problems"].as_array().expect("problems");
    assert_eq!(problems.len(), 10);
    for problem in problems {
        assert!(problem["line"].as_u64().is_some() && problem["column"].as_u64().is_some(), "{problem}");
        assert!(!problem["message"].as_str().expect("message").is_empty());
    }
    for value in ["s3cr3t", "10.11.12.13", "user:pass", "office"] {
        assert!(!out.contains(value), "{value}");
    }
}

#[test]
fn init_check_and_show() {
    let scratch = Scratch::new();
    let path = scratch.path().join("nullhop.toml");
    let path = path.to_str().expect("UTF-8");
    assert_eq!(says(&["init", "-o", path]), format!("wrote {path}; next: nullhop check -c {path}\n"));
    let written = std::fs::read_to_string(path).expect("file");
    assert_eq!(written, says(&["init"]));
    let (code, _, err) = nullhop(&["init", "-o", path]);
    assert!(code == 2 && err.contains("exists and is left alone"), "{err}");
    assert_eq!(std::fs::read_to_string(path).expect("file"), written);
    let (code, _, err) = nullhop(&["init", "-o", "/does/not/exist/nullhop.toml"]);
    assert!(code == 1 && err.contains("cannot write"), "{err}");

    let said = says(&["check", "-c", path]);
    assert!(said.contains("is valid: 1 listener, 5 upstreams"), "{said}");
    assert!(said.contains("https://127.0.0.1:8443/openai/v1"), "{said}");
    let said: serde_json::Value = serde_json::from_str(&says(&["check", "-c", path, "--json"])).expect("JSON");
    assert_eq!((&said["valid"], said["upstreams"].as_array().map(Vec::len)), (&true.into(), Some(5)));
    // What it shows is a configuration again, and the same one.
    let shown = says(&["config", "show", "-c", path]);
    let again = scratch.file("again.toml", &shown);
    assert_eq!(says(&["config", "show", "-c", again.to_str().expect("UTF-8")]), shown);
    assert_eq!(says(&["config", "show"]), shown);
}

#[test]
fn secrets_are_masked() {
    let scratch = Scratch::new();
    scratch.file("token", "s3cr3t-t0k3n");
    let config = "[metrics]\ntoken = { file = \"token\" }\n[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n";
    let path = scratch.file("nullhop.toml", config);
    let shown = says(&["config", "show", "-c", path.to_str().expect("UTF-8")]);
    assert!(shown.contains("token = \"***\"") && !shown.contains("s3cr3t"), "{shown}");
}

#[test]
fn schema_and_reference() {
    let schema: serde_json::Value = serde_json::from_str(&says(&["config", "schema"])).expect("JSON");
    assert!(schema["$schema"].as_str().is_some_and(|url| url.contains("json-schema.org")));
    for section in ["listener", "certificate", "tls", "limits", "drain", "metrics", "admin", "log", "upstream"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).expect("page");
    assert_eq!(says(&["config", "reference"]), page);
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    let mut child =
        command.args(["config", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

const WORDS: &str = "Prompts pass through, chunk by chunk, and nothing stays.";

#[test]
fn demo_once_shows_a_stream_and_leaves() {
    let began = Instant::now();
    let said = says(&["demo", "--once"]);
    assert!(said.contains(WORDS), "{said}");
    assert!(said.contains("What was measured: TLS 1.3 with X25519MLKEM768, "), "{said}");
    assert!(!said.contains("Ctrl-C"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn demo_stays_until_it_is_interrupted() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    let mut child = command.arg("demo").stdout(Stdio::piped()).spawn().expect("runs");
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok) {
        said += &line;
        said.push('\n');
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    assert!(said.contains(WORDS), "{said}");
    for snippet in ["curl -kN https://localhost:", "openai.OpenAI(base_url=", "ANTHROPIC_BASE_URL=", "/metrics"] {
        assert!(said.contains(snippet), "{snippet}");
    }
    // It serves: the metrics address that it tells answers.
    let metrics = said.split("curl http://").nth(1).and_then(|rest| rest.split('/').next()).expect("address");
    let (status, page) = support::get(metrics.parse().expect("address"), "/metrics");
    assert!(status == 200 && page.contains("outcome=\"ok\",upstream=\"openai\"} 1\n"), "{page}");
    assert!(child.try_wait().expect("state").is_none(), "it stays");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
    let began = Instant::now();
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn usage_says_what_is_wrong() {
    let scratch = Scratch::new();
    let event = "{\"id\":\"000000000000000a-0\",\"time\":\"2026-11-21T23:30:00.000Z\",\"upstream\":\"openai\",\
                 \"model\":\"gpt-5\",\"input_uncached\":10,\"cost_usd\":\"0.000001\"}\n";
    let file = scratch.file("usage-a.jsonl", &format!("{event}no event\n"));
    let folder = scratch.path().to_str().expect("a path");
    let missing = scratch.path().join("missing");
    for (arguments, code, text) in [
        (&["usage"][..], 2, "<PATH>"),
        (&["usage", missing.to_str().expect("a path")], 2, "there is no such folder or file"),
        (&["usage", folder, "--by", "colour"], 2, "[possible values: account, key, model, day, upstream, pop]"),
        (&["usage", folder, "--since", "yesterday"], 2, "--since \"yesterday\" is no date; write it like 2026-11-01"),
        (&["usage", folder, "--until", "2026-02-30"], 2, "--until \"2026-02-30\" is no date"),
        (&["usage", folder, "--since", "2026-11-02T01:00:00"], 2, "is no date"),
        (&["usage", folder, "--since", "2026-11-02", "--until", "2026-11-01"], 2, "--since is after --until"),
        (&["usage", folder, "--time-zone", "Europe/Nowhere"], 2, "there is no time zone \"Europe/Nowhere\""),
        (&["usage", folder, "--format", "xml"], 2, "possible values: table, csv, json"),
        (&["usage", folder], 1, "error: 1 lines are no usage events and do not count"),
    ] {
        let (found, _, err) = nullhop(arguments);
        assert_eq!(found, code, "{arguments:?}: {err}");
        assert!(err.contains(text), "{arguments:?}: {err}");
    }
    std::fs::write(&file, event).expect("file");
    let out = says(&["usage", folder, "--by", "day", "--time-zone", "Asia/Tokyo", "--format", "csv"]);
    assert!(out.contains("\r\n2026-11-22,1,10,0,"), "{out}");
    assert!(out.ends_with(",0.000001\r\n"), "{out}");
    let out = says(&["usage", file.to_str().expect("a path"), "--until", "2026-11-20"]);
    assert_eq!(out.lines().count(), 2, "{out}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_nullhop"))
        .args(["usage", "-", "--format", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), event.as_bytes()).expect("written");
    let out = child.wait_with_output().expect("ends").stdout;
    assert!(String::from_utf8_lossy(&out).contains("\"cost_usd\": \"0.000001\""));
}
