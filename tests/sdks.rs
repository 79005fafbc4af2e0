//! The vendors' SDKs, curl and a WebSocket library against the real binary, TLS on both sides. Only the
//! base URL and the trusted certificate differ from what a caller's own code says.
//!
//! `.ci/install-clients` fetches them. Without them these tests say so and pass, except where
//! `NULLHOP_REQUIRE_CLIENTS` is set, as in CI.

mod support;

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Outcome;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::Seen;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::keys::key;
use support::keys::revoke;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn openai_python() {
    run("python/openai_suite.py");
}

#[test]
fn anthropic_python() {
    run("python/anthropic_suite.py");
}

#[test]
fn gemini_python() {
    run("python/gemini_suite.py");
}

#[test]
fn websocket_python() {
    run("python/websocket_suite.py");
}

#[test]
fn openai_node() {
    run("node/openai_suite.mjs");
}

#[test]
fn anthropic_node() {
    run("node/anthropic_suite.mjs");
}

#[test]
fn gemini_node() {
    run("node/gemini_suite.mjs");
}

#[test]
fn curl() {
    run("curl_suite.sh");
}

#[test]
fn keys_python() {
    run_with_keys("python/admission_suite.py");
}

#[test]
fn keys_node() {
    run_with_keys("node/admission_suite.mjs");
}

fn installed() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("NULLHOP_CLIENTS").map_or_else(|| root.join("target/clients"), PathBuf::from);
    folder.join("node/.installed").exists().then_some(folder)
}

/// Where the clients are. `None`: nowhere, and that is allowed here.
fn clients(suite: &str) -> Option<PathBuf> {
    let clients = installed();
    if clients.is_none() {
        assert!(std::env::var_os("NULLHOP_REQUIRE_CLIENTS").is_none(), "run .ci/install-clients first");
        eprintln!("{suite}: NOT RUN, the clients are not installed: .ci/install-clients");
    }
    clients
}

/// Runs a suite that trusts `authorities` and asks `edge`; hands back what it said.
fn say(suite: &str, clients: &Path, edge: &Edge, authorities: &str, more: &[(&str, String)]) -> String {
    let authorities = edge.scratch.file("authorities.pem", authorities);
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/run"))
        .arg(suite)
        .env("NULLHOP_CLIENTS", clients)
        .env("NULLHOP_BASE", format!("https://localhost:{}", edge.address().port()))
        .env("NULLHOP_CA", authorities)
        .envs(more.iter().cloned())
        .output()
        .expect("the suite starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{suite}:\n{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{suite} failed");
    assert!(said.lines().any(|line| line.ends_with(" passed, 0 failed")), "{suite} has no closing line");
    said
}

fn run(suite: &str) {
    let Some(clients) = clients(suite) else { return };
    let options = ProviderOptions { vectors: Some(support::vectors()), ..ProviderOptions::default() };
    let provider = Provider::spawn(options).expect("provider");
    // curl sends and echoes any bytes.
    let any_bytes = suite.contains("curl");
    let edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { any_bytes, ..Setup::default() });
    // Another one that asks for usage where a client does not.
    let setup = Setup { upstream: "usage = \"ask\"\n".to_owned(), any_bytes: false, ..Setup::default() };
    let asking = Edge::with(&provider.url(), provider.ca_pem(), setup);
    let authorities = format!("{}{}{}", edge.ca.pem(), asking.ca.pem(), provider.ca_pem());
    let more = [
        ("PROVIDER_BASE", provider.url()),
        ("NULLHOP_ASKING_BASE", format!("https://localhost:{}", asking.address().port())),
    ];
    let said = say(suite, &clients, &edge, &authorities, &more);

    let mut left = 0;
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["#", "left", case, nanoseconds] => {
                left += 1;
                let at: u64 = nanoseconds.parse().expect("nanoseconds");
                saw_abort(&provider, case, at);
            }
            ["#", "refused", case] => {
                let requests = provider.requests();
                let whole = |seen: &&Seen| seen.header("x-case") == *case && seen.body_end == BodyEnd::Clean;
                assert_eq!(requests.iter().filter(whole).count(), 0, "{case}: a refused request was completed");
            }
            ["#", "sent", case, bytes, digest] => {
                let seen = last_of(&provider, case);
                assert_eq!(seen.body_len, bytes.parse::<u64>().expect("bytes"), "{case}");
                let hex: String = seen.body_sha256.iter().flatten().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hex, *digest, "{case}");
            }
            _ => {}
        }
    }
    if suite.contains("_suite.py") && !suite.contains("websocket") {
        assert!(left > 0, "{suite} never walked out");
    }
    for edge in [&edge, &asking] {
        let quiet = edge.wait_for_metric("nullhop_requests_in_flight", &[], |value| value == 0.0, SOON);
        assert!(quiet, "{suite}: requests stay in flight");
        assert_eq!(edge.metric("nullhop_requests_total", &["outcome=\"internal\""]), 0.0, "{suite}");
    }
}

fn last_of(provider: &Provider, case: &str) -> Seen {
    let of_case = provider.requests().into_iter().rev().find(|seen| seen.header("x-case") == case);
    of_case.unwrap_or_else(|| panic!("the provider saw no request of {case}"))
}

/// The client walked out at `left`, in nanoseconds of the monotonic clock: the provider's stream must
/// be cancelled within a second.
fn saw_abort(provider: &Provider, case: &str, left: u64) {
    let ended = support::wait_for(SOON, || last_of(provider, case).outcome != Outcome::Open);
    let seen = last_of(provider, case);
    assert!(ended && seen.outcome == Outcome::Aborted, "{case}: {:?}", seen.outcome);
    let ended = seen.ended_at.expect("ended");
    let ended = nullhop_loadtests::monotonic_ns() - u64::try_from(ended.elapsed().as_nanos()).expect("nanoseconds");
    let late = ended.saturating_sub(left);
    assert!(late < 1_000_000_000, "{case}: cancelled after {late} ns");
}

const PROVIDER_KEY: &str = "sk-operators-own-key-0123456789abcdef";
/// The suites' own.
const CALLERS_KEY: &str = "sk-callers-own-key-at-the-provider";

const PLANS: &str = r#"
[keys]
file = "keys.jsonl"
secret = { file = "keys.secret" }

[admission]
wrong_keys_per_minute = 1000
lag_max = "0s"

[[plan]]
name = "rate"
rates = ["1 requests/4s"]

[[plan]]
name = "tokens"
rates = ["20 output tokens/1h"]

[[plan]]
name = "budget"
budgets = ["80 tokens/day"]

[[plan]]
name = "place"
concurrency = 1

[[plan]]
name = "left"
rates = ["5 requests/1h"]

[[plan]]
name = "two"
rates = ["2 requests/1h"]
"#;

/// Keys by the name under which a suite asks for them: a plan for each SDK and HTTP version, and some of no plan.
fn keys_of(scratch: &Scratch) -> serde_json::Map<String, serde_json::Value> {
    let mut keys = serde_json::Map::new();
    let rounds = [("openai", "h1"), ("openai", "h2"), ("anthropic", "h1"), ("anthropic", "h2"), ("gemini", "h1")];
    for (upstream, version) in rounds {
        for (limit, plan, track) in [
            ("rate", "rate", "managed"),
            ("tokens", "tokens", "managed"),
            ("budget", "budget", "managed"),
            ("place", "place", "managed"),
            ("left", "left", "managed"),
            ("beside", "two", "byok"),
        ] {
            let label = format!("{limit}-{upstream}-{version}");
            let key = key(scratch, &label, &["--plan", plan, "--track", track]);
            keys.insert(format!("{limit}/{upstream}/{version}"), key.into());
        }
    }
    for socket in ["realtime", "responses"] {
        keys.insert(format!("{socket}/openai/h1"), key(scratch, socket, &["--plan", "two"]).into());
    }
    for (name, flags) in [
        ("free", &[][..]),
        ("elsewhere", &["--upstream", "other"]),
        ("narrow", &["--model", "fine-*"]),
        ("revoked", &[]),
    ] {
        keys.insert(name.to_owned(), key(scratch, name, flags).into());
    }
    revoke(scratch, "revoked");
    // Of another gateway.
    keys.insert("stranger".to_owned(), key(&Scratch::new(), "stranger", &[]).into());
    keys
}

/// A suite with keys of nullhop's own, on upstreams that take both those and the provider's.
fn run_with_keys(suite: &str) {
    let Some(clients) = clients(suite) else { return };
    let options = ProviderOptions { vectors: Some(support::vectors()), ..ProviderOptions::default() };
    let provider = Provider::spawn(options).expect("provider");
    let maker = Scratch::new();
    let keys = keys_of(&maker);
    let upstreams = [("openai", "openai"), ("anthropic", "anthropic"), ("gemini", "gemini"), ("other", "openai")];
    let upstreams = upstreams.map(|(name, provider)| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nprovider = \"{provider}\"\nurl = \"{{url}}\"\n{{ca}}\naccess = \"both\"\n\
             [[upstream.key]]\nsecret = {{ file = \"provider.key\" }}\n"
        )
    });
    let setup = Setup {
        extra: PLANS.to_owned(),
        upstreams: Some(upstreams.concat()),
        files: [support::keys::files(&maker), vec![("provider.key".to_owned(), PROVIDER_KEY.to_owned())]].concat(),
        ..Setup::default()
    };
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
    let authorities = format!("{}{}", edge.ca.pem(), provider.ca_pem());
    let more = [("NULLHOP_KEYS", serde_json::Value::Object(keys).to_string())];
    let said = say(suite, &clients, &edge, &authorities, &more);

    let requests = provider.requests();
    assert!(requests.len() > 50, "{suite}: {} requests", requests.len());
    let (mut managed, mut passed) = (0, 0);
    for seen in &requests {
        let case = seen.header("x-case");
        let shown = ["authorization", "x-api-key", "x-goog-api-key", "api-key"].map(|name| seen.header(name));
        let shown: Vec<&str> = shown.iter().map(|value| value.trim_start_matches("Bearer ")).collect();
        let one_of = |key: &str| shown.iter().filter(|value| **value == key).count();
        assert!(!format!("{:?} {}", seen.headers, seen.path).contains("nhk_"), "{case}: the client's key went up");
        assert!(!seen.headers.contains_key("x-nullhop-key"), "{case}");
        let others = shown.iter().filter(|value| !value.is_empty()).count();
        assert_eq!((one_of(PROVIDER_KEY) + one_of(CALLERS_KEY), others), (1, 1), "{case}");
        if case.contains("/passed") {
            passed += one_of(CALLERS_KEY);
            assert_eq!(one_of(CALLERS_KEY), 1, "{case}");
        } else if case.contains("/managed") {
            managed += one_of(PROVIDER_KEY);
            assert_eq!(one_of(PROVIDER_KEY), 1, "{case}");
        }
    }
    assert!(managed >= 15 && passed >= 20, "{suite}: {managed} managed, {passed} passed");
    let mut told = 0;
    for line in said.lines() {
        if let ["#", "reached", case, count] = line.split_whitespace().collect::<Vec<_>>().as_slice() {
            told += 1;
            let whole = |seen: &&Seen| seen.header("x-case") == *case && seen.body_end == BodyEnd::Clean;
            let count: usize = count.parse().expect("a number");
            assert_eq!(requests.iter().filter(whole).count(), count, "{case}: requests that reached the provider");
        }
    }
    assert!(told >= 40, "{suite} told of {told} cases");
    let quiet = edge.wait_for_metric("nullhop_requests_in_flight", &[], |value| value == 0.0, SOON);
    assert!(quiet, "{suite}: requests stay in flight");
    assert_eq!(edge.metric("nullhop_requests_total", &["outcome=\"internal\""]), 0.0, "{suite}");
    // What was hidden from the callers was counted here.
    let read = |direction| edge.metric("nullhop_tokens_total", &["upstream=\"openai\"", direction]);
    assert!(read("direction=\"input\"") > 500.0 && read("direction=\"output\"") > 100.0, "{suite}");
    for (reason, least) in [("malformed", 10.0), ("unknown", 5.0), ("revoked", 5.0)] {
        let counted = edge.metric("nullhop_authentication_failures_total", &[&format!("reason=\"{reason}\"")]);
        assert!(counted >= least, "{suite}: {counted} {reason} keys");
    }
    let written = edge.log().join("\n") + &edge.scrape();
    assert!(!written.contains("nhk_") && !written.contains("sk-"), "{suite}: a key is written down");
}
