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
use support::Setup;

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

fn installed() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("NULLHOP_CLIENTS").map_or_else(|| root.join("target/clients"), PathBuf::from);
    folder.join("node/.installed").exists().then_some(folder)
}

fn run(suite: &str) {
    let Some(clients) = installed() else {
        assert!(std::env::var_os("NULLHOP_REQUIRE_CLIENTS").is_none(), "run .ci/install-clients first");
        eprintln!("{suite}: NOT RUN, the clients are not installed: .ci/install-clients");
        return;
    };
    let options = ProviderOptions { vectors: Some(support::vectors()), ..ProviderOptions::default() };
    let provider = Provider::spawn(options).expect("provider");
    // curl sends and echoes any bytes.
    let any_bytes = suite.contains("curl");
    let edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { any_bytes, ..Setup::default() });
    // Another one that asks for usage where a client does not.
    let setup = Setup { upstream: "usage = \"ask\"\n".to_owned(), any_bytes: false, ..Setup::default() };
    let asking = Edge::with(&provider.url(), provider.ca_pem(), setup);
    let authorities = format!("{}{}{}", edge.ca.pem(), asking.ca.pem(), provider.ca_pem());
    let authorities = edge.scratch.file("authorities.pem", &authorities);
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/run"))
        .arg(suite)
        .env("NULLHOP_CLIENTS", clients)
        .env("NULLHOP_BASE", format!("https://localhost:{}", edge.address().port()))
        .env("PROVIDER_BASE", provider.url())
        .env("NULLHOP_ASKING_BASE", format!("https://localhost:{}", asking.address().port()))
        .env("NULLHOP_CA", authorities)
        .output()
        .expect("the suite starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{suite}:\n{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{suite} failed");
    assert!(said.lines().any(|line| line.ends_with(" passed, 0 failed")), "{suite} has no closing line");

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
