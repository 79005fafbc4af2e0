//! One account for each exchange, whatever its end: what the client's leaving, a provider's break, an estimate and a drain
//! after an abort move in the metrics.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use support::Edge;
use support::Setup;
use support::wait_for;

const SOON: Duration = Duration::from_secs(20);

fn provider(alpn: Alpn) -> Provider {
    let options = ProviderOptions { alpn, vectors: Some(support::vectors()), ..ProviderOptions::default() };
    Provider::spawn(options).expect("provider")
}

fn edge(provider: &Provider, upstream: &str) -> Edge {
    Edge::with(&provider.url(), provider.ca_pem(), Setup { upstream: upstream.to_owned(), ..Setup::default() })
}

fn request(client: &Client, path: &str, script: &str, body: &str) -> Request<FullBody> {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{path}")),
        false => Request::post(path).header("host", "localhost"),
    };
    let request = request.header("authorization", "Bearer k").header("content-type", "application/json");
    request.header("x-script", script).body(FullBody::new(body.to_owned())).expect("request")
}

/// What moved in the families of this file, without upstreams and buckets.
fn moved(before: &str, after: &str) -> BTreeMap<String, u64> {
    let read = |page: &str| -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for line in page.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                Some(rest.split('"').next()?.to_owned())
            };
            let key = match name {
                "nullhop_tokens_total" => label("kind"),
                "nullhop_tokens_estimated_total" => {
                    label("direction").map(|direction| format!("estimated {direction}"))
                }
                "nullhop_usage_missing_total" => label("reason").map(|reason| format!("missing {reason}")),
                "nullhop_requests_total" => label("outcome"),
                "nullhop_request_tokens_count" => label("direction").map(|direction| format!("sizes {direction}")),
                "nullhop_time_to_first_token_seconds_count" => Some("first token".to_owned()),
                "nullhop_time_per_output_token_seconds_count" => Some("per token".to_owned()),
                _ => None,
            };
            if let Some(key) = key {
                *sums.entry(key).or_default() += value.parse::<f64>().expect("a number") as u64;
            }
        }
        sums
    };
    let (before, after) = (read(before), read(after));
    let by = after.into_iter().map(|(key, value)| (key.clone(), value - before.get(&key).unwrap_or(&0)));
    by.filter(|(_, by)| *by != 0).collect()
}

fn sums(wanted: &[(&str, u64)]) -> BTreeMap<String, u64> {
    wanted.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()
}

/// Waits until one more exchange is settled, and says what moved.
fn settled(edge: &Edge, before: &str) -> BTreeMap<String, u64> {
    let outcomes = |moved: &BTreeMap<String, u64>| moved.keys().any(|key| key.contains('_') || key == "ok");
    let outcome = || {
        let after = edge.scrape();
        let moved = moved(before, &after);
        let count = |page: &str| -> f64 {
            let lines = page.lines().filter(|line| line.starts_with("nullhop_requests_total"));
            lines.map(|line| line.rsplit_once(' ').expect("value").1.parse::<f64>().expect("value")).sum()
        };
        (count(&after) - count(before), moved)
    };
    assert!(wait_for(SOON, || outcome().0 >= 1.0), "it is settled");
    let (count, moved) = outcome();
    assert_eq!(count, 1.0, "once");
    assert!(outcomes(&moved) || moved.contains_key("internal"), "{moved:?}");
    moved
}

/// Reads so many bytes of the answer and leaves.
async fn leave_after(edge: &Edge, alpn: Alpn, path: &str, script: &str, bytes: usize, body: &str) {
    let mut client = edge.connect(alpn).await;
    let request = request(&client, path, script, body);
    let mut answer = client.send(request).await.expect("head").into_body();
    let mut seen = 0;
    while seen < bytes {
        seen += next_data(&mut answer).await.expect("not the end").expect("data").len();
    }
    drop(answer);
    client.abort(Ending::Reset);
    // The runtime of this thread closes it; what follows blocks the thread.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// A request body of 400 bytes: a hundred tokens by the rule of thumb.
fn four_hundred_bytes() -> String {
    let frame = "{\"model\":\"gpt-4o-2024-08-06\",\"messages\":[]}";
    format!("{frame}{}", " ".repeat(400 - frame.len()))
}

#[test]
fn every_end_is_one_account() {
    const CHAT: &str = "/openai/v1/chat/completions";
    const MESSAGES: &str = "/anthropic/v1/messages";
    let body = four_hundred_bytes();
    for upstream in [Alpn::H1, Alpn::H2] {
        let provider = provider(upstream);
        let edge = edge(&provider, "silence_timeout = \"1s\"");
        support::runtime().block_on(async {
            for alpn in [Alpn::H1, Alpn::H2] {
                for (path, script, wanted) in [
                    // A status of 400 and above is not billed, whatever the body says.
                    (CHAT, "file=openai-chat-stream.sse;status=500", sums(&[("upstream_error", 1)])),
                    (CHAT, "file=openai-chat-stream.sse;status=429", sums(&[("upstream_limited", 1)])),
                    // Nor is counting in advance.
                    ("/anthropic/v1/messages/count_tokens", "file=anthropic-count-tokens.json", sums(&[("ok", 1)])),
                    ("/openai/v1/models", "size=10", sums(&[("ok", 1)])),
                    // An error inside the body is one of the provider.
                    (
                        MESSAGES,
                        "file=anthropic-stream-error.sse",
                        sums(&[("upstream_error", 1), ("uncached", 40), ("response", 2), ("first token", 1)]),
                    ),
                    // The answer is whole and says nothing: twenty events are twenty tokens.
                    (
                        CHAT,
                        "events=20",
                        sums(&[
                            ("ok", 1),
                            ("missing absent", 1),
                            ("estimated input", 100),
                            ("estimated output", 20),
                            ("first token", 1),
                        ]),
                    ),
                    // Not JSON: its bytes are all there is.
                    (
                        CHAT,
                        "size=4000;header=content-type:application/json",
                        sums(&[
                            ("ok", 1),
                            ("missing unparsed", 1),
                            ("estimated input", 100),
                            ("estimated output", 1000),
                        ]),
                    ),
                    // Sound says nothing of tokens.
                    (
                        "/openai/v1/audio/speech",
                        "size=4000;header=content-type:audio/mpeg",
                        sums(&[("ok", 1), ("missing absent", 1)]),
                    ),
                ] {
                    let before = edge.scrape();
                    let mut client = edge.connect(alpn).await;
                    let asked = request(&client, path, script, &body);
                    Received::read(client.send(asked).await.expect("head"), 0).await;
                    assert_eq!(settled(&edge, &before), wanted, "{alpn:?} {path} {script}");
                }
                // It breaks off after the first figures: they count, and so does each output event since.
                for (script, outcome) in
                    [("reset_after=2000", "upstream_cut"), ("stall_after=2000", "upstream_timeout")]
                {
                    let before = edge.scrape();
                    let mut client = edge.connect(alpn).await;
                    let script = format!("file=anthropic-stream-cut.sse;{script}");
                    let asked = request(&client, MESSAGES, &script, &body);
                    Received::read(client.send(asked).await.expect("head"), 0).await;
                    let mut got = settled(&edge, &before);
                    assert_eq!(got.remove(outcome), Some(1), "{script} {got:?}");
                    // A reset overtakes what was sent before it.
                    if outcome == "upstream_timeout" {
                        assert!(got.remove("estimated output").is_some_and(|tokens| tokens > 3), "{script}");
                        got.retain(|key, _| {
                            !["uncached", "cache_read", "cache_write", "first token"].contains(&&**key)
                        });
                        assert_eq!(got, sums(&[("response", 1)]), "{script}");
                    }
                }
                // The client leaves: in mid-answer, and before there is one.
                let before = edge.scrape();
                leave_after(&edge, alpn, CHAT, "file=openai-chat-stream.sse;stall_after=1000", 1000, &body).await;
                let mut got = settled(&edge, &before);
                assert!(got.remove("estimated output").is_some_and(|tokens| tokens > 0), "{got:?}");
                let wanted =
                    sums(&[("client_abort", 1), ("missing aborted", 1), ("estimated input", 100), ("first token", 1)]);
                assert_eq!(got, wanted);

                let before = edge.scrape();
                let mut client = edge.connect(alpn).await;
                let waiting = client.send(request(&client, CHAT, "never=1", &body));
                assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
                client.abort(Ending::Reset);
                tokio::time::sleep(Duration::from_millis(50)).await;
                let wanted = sums(&[("client_abort", 1), ("missing aborted", 1), ("estimated input", 100)]);
                assert_eq!(settled(&edge, &before), wanted);
            }
        });
    }
}

#[test]
fn the_model_of_the_answer_counts_else_that_of_the_path() {
    let provider = provider(Alpn::Both);
    let edge = edge(&provider, "");
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        for (path, script) in [
            ("/anthropic/v1/messages", "file=anthropic-stream.sse"),
            // It names gemini-fake-3, which is no family.
            ("/gemini/v1beta/models/gemini-2.5-pro:generateContent", "file=gemini-unary.json"),
            // It names none.
            ("/gemini/v1beta/models/gemini-2.5-pro:generateContent", "file=gemini-thoughts-inclusive.json"),
        ] {
            client.ready().await.expect("ready");
            let asked = request(&client, path, script, "{}");
            assert!(Received::read(client.send(asked).await.expect("head"), 0).await.error.is_none());
        }
    });
    let tokens = |model: &str| edge.metric("nullhop_tokens_total", &[&format!("model=\"{model}\"")]);
    assert!(edge.wait_for_metric("nullhop_requests_total", &["outcome=\"ok\""], |count| count == 3.0, SOON));
    assert!(tokens("claude") > 0.0);
    assert!(tokens("other") + tokens("gemini-pro") > 0.0);
    let first = "nullhop_time_to_first_token_seconds_count";
    assert_eq!(edge.metric(first, &["model=\"claude\""]), 1.0, "of the stream only");
    assert_eq!(edge.metric(first, &[]), 1.0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading on without the client

#[test]
fn an_abort_may_be_read_to_its_end() {
    for upstream in [Alpn::H1, Alpn::H2] {
        let provider = provider(upstream);
        let edge = edge(&provider, "abort_drain = \"60s\"");
        support::runtime().block_on(async {
            for alpn in [Alpn::H1, Alpn::H2] {
                let before = edge.scrape();
                // The client is gone long before the second half is sent.
                let script = "file=anthropic-stream.sse;cuts=600;delay_ms=700";
                leave_after(&edge, alpn, "/anthropic/v1/messages", script, 600, "{}").await;
                let mut got = settled(&edge, &before);
                assert_eq!(got.remove("client_abort"), Some(1), "{got:?}");
                got.remove("first token");
                got.remove("per token");
                let input: u64 =
                    ["uncached", "cache_read", "cache_write"].iter().filter_map(|kind| got.remove(*kind)).sum();
                let output: u64 = ["response", "reasoning"].iter().filter_map(|kind| got.remove(*kind)).sum();
                assert_eq!((input, output), (4876, 47));
                // Neither missing nor estimated, and no successful call.
                assert_eq!(got, BTreeMap::new());
            }
        });
        assert_eq!(edge.metric("nullhop_requests_in_flight", &[]), 0.0);
    }
}

#[test]
fn reading_on_ends_with_its_time() {
    let provider = provider(Alpn::H2);
    let edge = edge(&provider, "abort_drain = \"1s\"");
    support::runtime().block_on(async {
        let before = edge.scrape();
        let began = Instant::now();
        let script = "file=anthropic-stream.sse;stall_after=700";
        leave_after(&edge, Alpn::H1, "/anthropic/v1/messages", script, 700, "{}").await;
        let got = settled(&edge, &before);
        assert!(began.elapsed() >= Duration::from_secs(1), "it was read on");
        assert_eq!(got.get("client_abort"), Some(&1));
        assert!(got.contains_key("uncached") && !got.contains_key("sizes input"), "{got:?}");
        assert!(
            wait_for(SOON, || provider.state().open_streams == 0),
            "the provider is told that nobody reads any more"
        );
    });
}

#[test]
fn reading_on_is_bounded_in_number() {
    const MAX: usize = 64;
    let provider = provider(Alpn::H2);
    let setup = Setup {
        upstream: "abort_drain = \"10m\"".to_owned(),
        extra: "[runtime]\nworkers = 1\n[limits]\ncancels_per_connection = 100000\n".to_owned(),
        ..Setup::default()
    };
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H2).await;
        let mut answers = Vec::new();
        for _ in 0..MAX + 6 {
            client.ready().await.expect("ready");
            let script = "file=anthropic-stream.sse;stall_after=700";
            let mut answer =
                client.send(request(&client, "/anthropic/v1/messages", script, "{}")).await.expect("head").into_body();
            next_data(&mut answer).await.expect("not the end").expect("data");
            answers.push(answer);
        }
        drop(answers);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let aborted = |count: f64| count == 6.0;
        assert!(edge.wait_for_metric("nullhop_requests_total", &["outcome=\"client_abort\""], aborted, SOON));
        assert_eq!(edge.metric("nullhop_requests_in_flight", &[]), MAX as f64);
    });
}

#[test]
fn reading_on_does_not_hold_up_the_end() {
    let provider = provider(Alpn::H1);
    let mut edge = edge(&provider, "abort_drain = \"10m\"");
    support::runtime().block_on(async {
        let script = "file=anthropic-stream.sse;stall_after=700";
        leave_after(&edge, Alpn::H2, "/anthropic/v1/messages", script, 700, "{}").await;
        assert_eq!(edge.metric("nullhop_requests_in_flight", &[]), 1.0);
    });
    edge.signal("TERM");
    assert_eq!(edge.wait_exit(SOON), Some(0));
}
