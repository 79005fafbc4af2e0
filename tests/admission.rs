//! Who may, how much, and with whose key: the running program with keys of its own, both tracks, and every limit.

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use nullhop_loadtests::client::Answer;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::Vector;
use nullhop_loadtests::tls::Alpn;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::keys::key;
use support::keys::nullhop;
use support::wait_for;

const SOON: Duration = Duration::from_secs(20);

const PROVIDER_KEY: &str = "sk-operators-own-key-0123456789abcdef";

/// Three upstreams for managed callers, the first with two keys, and one for both tracks.
const UPSTREAMS: &str = r#"
[[upstream]]
name = "openai"
provider = "openai"
url = "{url}"
{ca}
plan = "whole"
[[upstream.key]]
secret = { file = "provider.key" }

[[upstream]]
name = "anthropic"
provider = "anthropic"
url = "{url}"
{ca}
[[upstream.key]]
secret = { file = "provider.key" }

[[upstream]]
name = "gemini"
provider = "gemini"
url = "{url}"
{ca}
[[upstream.key]]
secret = { file = "provider.key" }

[[upstream]]
name = "both"
provider = "openai"
url = "{url}"
{ca}
access = "both"
caller_plan = "callers"
[[upstream.key]]
name = "one"
secret = { file = "provider.key" }
[[upstream.key]]
name = "other"
secret = { file = "other.key" }
weight = 3
"#;

const PLANS: &str = r#"
[keys]
file = "keys.jsonl"
secret = { file = "keys.secret" }
on_revoke = "cut"

[[plan]]
name = "whole"
concurrency = 1000

[[plan]]
name = "callers"
rates = ["3 requests/1h"]

[[plan]]
name = "two-streams"
concurrency = 2

[[plan]]
name = "five-requests"
rates = ["5 requests/10s"]

[[plan]]
name = "tokens"
rates = ["1000 output tokens/1h"]

[[plan]]
name = "day"
budgets = ["100 tokens/day"]
soft_percent = 80

[[plan]]
name = "money"
budgets = ["1 usd/month"]

[[plan]]
name = "cut"
budgets = ["40 tokens/day"]
on_budget = "cut"

[[account]]
name = "acme"
plan = "two-streams"

[[price]]
models = ["gpt-4o*"]
input = "2.50"
cache_read = "1.25"
output = "10"
"#;

/// A provider with an edge in front of it, and the keys that it knows.
struct World {
    provider: Provider,
    edge: Edge,
    keys: Vec<String>,
}

impl World {
    /// `keys`: a label and flags each.
    fn new(alpn: Alpn, extra: &str, keys: &[(&str, &[&str])]) -> Self {
        let options = ProviderOptions { alpn, vectors: Some(support::vectors()), ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let maker = Scratch::new();
        let keys: Vec<_> = keys.iter().map(|(label, flags)| key(&maker, label, flags)).collect();
        if keys.is_empty() {
            key(&maker, "nobodys", &[]);
        }
        let setup = Setup {
            extra: format!("{PLANS}{extra}"),
            upstreams: Some(UPSTREAMS.to_owned()),
            files: [
                support::keys::files(&maker),
                vec![
                    ("provider.key".to_owned(), format!("{PROVIDER_KEY}\n")),
                    ("other.key".to_owned(), "sk-other-key-of-the-operator".to_owned()),
                ],
            ]
            .concat(),
            metrics: "per_key = true".to_owned(),
            ..Setup::default()
        };
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        Self { provider, edge, keys }
    }

    /// An answer of the provider's with these figures, as `file=NAME`.
    fn answer(&self, name: &str, input: u64, output: u64) {
        let body = format!(
            "{{\"id\":\"c\",\"model\":\"gpt-4o-2024-08-06\",\"choices\":[],\"usage\":{{\"prompt_tokens\":{input},\
             \"completion_tokens\":{output},\"total_tokens\":{}}}}}",
            input + output
        );
        let vector = Vector {
            bytes: Bytes::from(body),
            content_type: Some("application/json".to_owned()),
            framing: "json".to_owned(),
            status: http::StatusCode::OK,
            content_encoding: None,
            splits: Vec::new(),
        };
        self.provider.put(name, vector);
    }
}

const CHAT: &str = "/openai/v1/chat/completions";

fn chat(client: &Client, path: &str, key: &str, script: &str) -> Request<FullBody> {
    post(client, path, &[("authorization", &format!("Bearer {key}")), ("x-script", script)], BODY)
}

/// 40 bytes: ten tokens by the rule of thumb.
const BODY: &str = "{\"model\":\"gpt-4o-mini\",\"max_tokens\":  10}";

fn post(client: &Client, path: &str, headers: &[(&str, &str)], body: &str) -> Request<FullBody> {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{path}")),
        false => Request::post(path).header("host", "localhost"),
    };
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.header("content-type", "application/json").body(FullBody::new(body.to_owned())).expect("request")
}

async fn ask(world: &World, alpn: Alpn, path: &str, key: &str, script: &str) -> Answer {
    let mut client = world.edge.connect(alpn).await;
    let request = chat(&client, path, key, script);
    client.fetch(request).await.expect("an answer")
}

#[test]
fn the_callers_key_is_taken_off_and_the_operators_goes_up() {
    for upstream in [Alpn::H1, Alpn::H2] {
        let world = World::new(upstream, "", &[("ci", &[])]);
        let ours = &world.keys[0];
        let bearer = format!("Bearer {ours}");
        let query = format!("/gemini/v1beta/models/gemini-2.5-flash:generateContent?alt=json&key={ours}");
        support::runtime().block_on(async {
            for alpn in [Alpn::H1, Alpn::H2] {
                for (path, headers, header, value) in [
                    (CHAT, vec![("authorization", bearer.as_str())], "authorization", format!("Bearer {PROVIDER_KEY}")),
                    (
                        "/anthropic/v1/messages",
                        vec![("authorization", bearer.as_str())],
                        "x-api-key",
                        PROVIDER_KEY.to_owned(),
                    ),
                    (
                        "/anthropic/v1/messages",
                        vec![("x-api-key", ours.as_str())],
                        "x-api-key",
                        PROVIDER_KEY.to_owned(),
                    ),
                    (
                        "/anthropic/v1/messages",
                        vec![("x-api-key", ours.as_str()), ("authorization", bearer.as_str())],
                        "x-api-key",
                        PROVIDER_KEY.to_owned(),
                    ),
                    (
                        "/gemini/v1beta/models/gemini-2.5-flash:generateContent",
                        vec![("x-goog-api-key", ours.as_str())],
                        "x-goog-api-key",
                        PROVIDER_KEY.to_owned(),
                    ),
                    (query.as_str(), vec![], "x-goog-api-key", PROVIDER_KEY.to_owned()),
                    (CHAT, vec![("x-nullhop-key", ours.as_str())], "authorization", format!("Bearer {PROVIDER_KEY}")),
                    (
                        CHAT,
                        vec![("x-nullhop-key", ours.as_str()), ("authorization", "Bearer placeholder")],
                        "authorization",
                        format!("Bearer {PROVIDER_KEY}"),
                    ),
                ] {
                    let headers = [
                        &headers[..],
                        &[
                            ("openai-organization", "org-callers"),
                            ("openai-project", "p"),
                            ("anthropic-workspace-id", "w"),
                            ("x-custom", "stays"),
                        ],
                    ]
                    .concat();
                    let mut client = world.edge.connect(alpn).await;
                    let request = post(&client, path, &headers, BODY);
                    let answer = client.fetch(request).await.expect("an answer");
                    assert_eq!(answer.status(), 200, "{path} {}", answer.text());
                    let seen = world.provider.last();
                    assert_eq!(seen.header(header), value, "{path}");
                    assert_eq!(seen.header("x-custom"), "stays");
                    let carried: Vec<_> = seen.headers.keys().map(|name| name.as_str().to_owned()).collect();
                    for gone in ["openai-organization", "openai-project", "anthropic-workspace-id", "x-nullhop-key"] {
                        assert!(!carried.contains(&gone.to_owned()), "{gone} {carried:?}");
                    }
                    let credentials = ["authorization", "x-api-key", "x-goog-api-key", "api-key"];
                    assert_eq!(carried.iter().filter(|name| credentials.contains(&name.as_str())).count(), 1);
                    assert!(!seen.path.contains("nhk_") && !seen.path.contains("key="), "{}", seen.path);
                }
            }
        });
        assert!(world.edge.metric("nullhop_requests_total", &["mode=\"managed\"", "outcome=\"ok\""]) >= 16.0);
        assert_eq!(world.edge.metric("nullhop_api_keys", &["state=\"active\""]), 1.0);
        let log = world.edge.log().join("\n");
        assert!(!log.contains("nhk_") && !log.contains(PROVIDER_KEY));
    }
}

#[test]
fn both_tracks_lead_to_one_upstream() {
    let world = World::new(Alpn::H2, "", &[("managed", &[]), ("own", &["--track", "byok", "--plan", "five-requests"])]);
    let both = "/both/v1/chat/completions";
    support::runtime().block_on(async {
        // Pass-through: untouched, also what names the account.
        let mut client = world.edge.connect(Alpn::H2).await;
        let headers = [("authorization", "Bearer sk-callers-own"), ("openai-organization", "org-callers")];
        let answer = client.fetch(post(&client, both, &headers, BODY)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let seen = world.provider.last();
        assert_eq!((seen.header("authorization"), seen.header("openai-organization")), (headers[0].1, headers[1].1));
        // The same with a key of ours beside it, which has limits and does not go up.
        let headers = [("authorization", "Bearer sk-callers-own"), ("x-nullhop-key", world.keys[1].as_str())];
        let statuses = async |client: &mut Client| {
            let mut statuses = Vec::new();
            for _ in 0..6 {
                statuses.push(client.fetch(post(client, both, &headers, BODY)).await.unwrap().status());
            }
            statuses
        };
        assert_eq!(statuses(&mut client).await, [200, 200, 200, 200, 200, 429]);
        let seen = world.provider.last();
        assert_eq!((seen.header("authorization"), seen.header("x-nullhop-key")), (headers[0].1, ""));
        // Without one, the plan of callers holds, by each caller's own credential.
        for (key, wanted) in [("sk-callers-own", [200, 200, 429]), ("sk-another", [200, 200, 200])] {
            for wanted in wanted {
                assert_eq!(ask(&world, Alpn::H2, both, key, "").await.status(), wanted, "{key}");
            }
        }
        // Managed, with the operator's keys by weight.
        let mut others = 0;
        for _ in 0..20 {
            assert_eq!(ask(&world, Alpn::H1, both, &world.keys[0], "").await.status(), 200);
            others +=
                usize::from(world.provider.last().header("authorization") == "Bearer sk-other-key-of-the-operator");
        }
        assert!((14..=16).contains(&others), "three of four: {others}");
        // A key of ours never goes up as if it were the provider's, and each stands in its place.
        let requests = world.provider.requests().len();
        for headers in [
            vec![("authorization", format!("Bearer {}", world.keys[1]))],
            vec![("authorization", "Bearer nhk_0000".to_owned())],
            vec![("authorization", format!("Bearer {}", world.keys[0])), ("x-nullhop-key", world.keys[1].clone())],
            vec![("authorization", format!("Bearer {}", world.keys[0])), ("x-api-key", "sk-x".to_owned())],
            vec![("x-nullhop-key", "sk-x".to_owned()), ("authorization", "Bearer sk-x".to_owned())],
        ] {
            let mut client = world.edge.connect(Alpn::H1).await;
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = client.fetch(post(&client, both, &headers, BODY)).await.unwrap();
            assert_eq!((answer.status(), answer.header("x-should-retry")), (401, "false"), "{}", answer.text());
        }
        assert_eq!(world.provider.requests().len(), requests);
    });
    assert!(world.edge.metric("nullhop_requests_total", &["mode=\"byok\"", "outcome=\"ok\""]) >= 11.0);
}

#[test]
fn wrong_keys_are_refused_in_each_dialect_and_told_to_wait() {
    let world = World::new(
        Alpn::H1,
        "[admission]\nwrong_keys_per_minute = 8\nlag_max = \"0s\"\n",
        &[("ci", &[]), ("narrow", &["--upstream", "anthropic", "--model", "claude-*"]), ("old", &["--expires", "1d"])],
    );
    support::runtime().block_on(async {
        for (path, kind) in [
            (CHAT, "/error/code"),
            ("/anthropic/v1/messages", "/error/type"),
            ("/gemini/v1beta/models/m:generateContent", "/error/status"),
        ] {
            for key in ["", "nhk_wrong", "sk-somebodys"] {
                let answer = ask(&world, Alpn::H2, path, key, "").await;
                assert_eq!(answer.status(), 401, "{path} {key}");
                let wanted = match kind {
                    "/error/code" => "invalid_api_key",
                    "/error/type" => "authentication_error",
                    _ => "UNAUTHENTICATED",
                };
                assert_eq!(answer.json().pointer(kind).and_then(|value| value.as_str()), Some(wanted));
                assert!(!answer.text().contains("somebodys"));
            }
        }
        // Six had a key; two more, and the ninth has to wait. A right one is served all the same.
        let mut statuses = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..5 {
            let answer = ask(&world, Alpn::H1, CHAT, "nhk_guess", "").await;
            statuses.push(answer.status());
            waits.push(answer.header("retry-after").to_owned());
        }
        assert_eq!(statuses, [401, 401, 429, 429, 429]);
        assert_eq!(waits, ["", "", "1", "2", "4"]);
        assert_eq!(ask(&world, Alpn::H1, CHAT, &world.keys[0], "").await.status(), 200);

        let answer = ask(&world, Alpn::H1, CHAT, &world.keys[1], "").await;
        assert_eq!((answer.status(), answer.json()["error"]["code"].as_str()), (403, Some("policy_refused")));
        let mut client = world.edge.connect(Alpn::H1).await;
        let headers = [("x-api-key", world.keys[1].as_str())];
        for (model, wanted) in [("claude-sonnet-5", 200), ("gpt-5", 403)] {
            let body = format!("{{\"max_tokens\":1,\"messages\":[],\"model\":\"{model}\"}}");
            let answer = client.fetch(post(&client, "/anthropic/v1/messages", &headers, &body)).await.unwrap();
            assert_eq!(answer.status(), wanted, "{model} {}", answer.text());
            client = world.edge.connect(Alpn::H1).await;
        }
    });
    for (reason, count) in [("missing", 3.0), ("unknown", 0.0), ("malformed", 11.0)] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(world.edge.metric("nullhop_authentication_failures_total", &[&label]), count, "{reason}");
    }
}

#[test]
fn keys_come_and_go_within_a_second_and_streams_of_revoked_ones_are_cut() {
    let world = World::new(Alpn::H1, "", &[("first", &[])]);
    let scratch = &world.edge.scratch;
    support::runtime().block_on(async {
        let second = key(scratch, "second", &[]);
        let began = Instant::now();
        while ask(&world, Alpn::H1, CHAT, &second, "").await.status() != 200 {
            assert!(began.elapsed() < SOON, "the new key is taken");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("a new key was taken after {:?}", began.elapsed());
        // A stream that says nothing, and one that goes on.
        let mut streams = Vec::new();
        for script in ["events=2;stall_after=200", "events=100000;period_us=20000"] {
            let mut client = world.edge.connect(Alpn::H1).await;
            let request = chat(&client, CHAT, &second, script);
            let mut body = client.send(request).await.expect("head").into_body();
            next_data(&mut body).await.expect("first").expect("data");
            streams.push((client, body));
        }
        let list = nullhop(scratch, &["key", "list", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
        let id = list.as_array().unwrap().iter().find(|key| key["label"] == "second").unwrap()["id"].as_str().unwrap();
        // A file that is wrong changes nothing.
        let good = std::fs::read_to_string(scratch.path().join("keys.jsonl")).unwrap();
        std::fs::write(scratch.path().join("keys.jsonl"), format!("{good}{{}}\n")).unwrap();
        assert!(world.edge.wait_for_log("keys_refused line=3", SOON), "{:?}", world.edge.log());
        assert_eq!(ask(&world, Alpn::H1, CHAT, &second, "").await.status(), 200);
        std::fs::write(scratch.path().join("keys.jsonl"), good).unwrap();
        nullhop(scratch, &["key", "revoke", id]);
        let began = Instant::now();
        // Told to wait, by now: so many wrong ones came from here.
        while ask(&world, Alpn::H1, CHAT, &second, "").await.status() == 200 {
            assert!(began.elapsed() < SOON, "the revoked key is refused");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (_client, mut body) in streams {
            let end = tokio::time::timeout(SOON, async { while let Some(Ok(_)) = next_data(&mut body).await {} });
            end.await.expect("the stream of a revoked key is cut");
        }
        assert_eq!(ask(&world, Alpn::H1, CHAT, &world.keys[0], "").await.status(), 200);
    });
    assert!(world.edge.wait_for_metric("nullhop_requests_total", &["outcome=\"limited\""], |count| count == 2.0, SOON));
    assert_eq!(world.edge.metric("nullhop_keys_reloads_total", &["result=\"error\""]), 1.0);
}

#[test]
fn each_limit_holds_and_says_which_it_is() {
    let plan = |name: &'static str| vec!["--plan", name];
    let flags: Vec<_> = ["five-requests", "tokens", "day", "money"].map(plan).to_vec();
    let keys: Vec<(&str, &[&str])> = ["a", "b", "c", "d"].into_iter().zip(flags.iter().map(Vec::as_slice)).collect();
    let world = World::new(Alpn::H1, "", &keys);
    world.answer("small", 10, 5);
    world.answer("dear", 100_000, 75_000);
    support::runtime().block_on(async {
        // Requests: five at once, then one every two seconds.
        for left in ["4", "3", "2", "1", "0"] {
            let answer = ask(&world, Alpn::H1, CHAT, &world.keys[0], "file=small").await;
            assert_eq!((answer.status(), answer.header("x-ratelimit-remaining-requests")), (200, left));
            assert_eq!(answer.header("x-ratelimit-limit-requests"), "5");
        }
        let answer = ask(&world, Alpn::H1, CHAT, &world.keys[0], "file=small").await;
        assert_eq!((answer.status(), answer.json()["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
        assert!(answer.text().contains("`requests`"), "{}", answer.text());
        let wait: u64 = answer.header("retry-after").parse().expect("seconds");
        assert!((1..=2).contains(&wait));
        tokio::time::sleep(Duration::from_secs(wait)).await;
        assert_eq!(
            ask(&world, Alpn::H1, CHAT, &world.keys[0], "file=small").await.status(),
            200,
            "right to the second"
        );

        // Output tokens: what a request asks for is reserved before it is let through.
        let mut client = world.edge.connect(Alpn::H1).await;
        let auth = format!("Bearer {}", world.keys[1]);
        let headers = [("authorization", auth.as_str()), ("x-script", "file=small")];
        let large = "{\"model\":\"gpt-4o\",\"messages\":[],\"max_tokens\":996}";
        assert_eq!(client.fetch(post(&client, CHAT, &headers, large)).await.unwrap().status(), 200);
        // 5 were used of 996; 995 are left.
        let whole =
            |world: &World| world.provider.requests().iter().filter(|seen| seen.body_end == BodyEnd::Clean).count();
        let before = whole(&world);
        let answer = client.fetch(post(&client, CHAT, &headers, large)).await.unwrap();
        assert_eq!(answer.status(), 429, "{}", answer.text());
        assert!(answer.text().contains("`output_tokens`"), "{}", answer.text());
        assert_eq!(whole(&world), before, "never let through");
        let mut client = world.edge.connect(Alpn::H1).await;
        let fits = large.replace("996", "990");
        assert_eq!(client.fetch(post(&client, CHAT, &headers, &fits)).await.unwrap().status(), 200);

        // A budget of 100 tokens: 15 for each, as the provider reports them.
        let mut passed = 0;
        let refused = loop {
            let answer = ask(&world, Alpn::H1, CHAT, &world.keys[2], "file=small").await;
            match answer.status() {
                200 => passed += 1,
                _ => break answer,
            }
        };
        assert_eq!((passed, refused.status(), refused.header("x-should-retry")), (6, 429, "false"));
        assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
        assert_eq!(refused.header("retry-after"), "");
        assert!(refused.text().contains("`tokens_per_day`"), "{}", refused.text());

        // Money: 1.00 USD for one of them, more than the budget has left afterwards.
        assert_eq!(ask(&world, Alpn::H1, CHAT, &world.keys[3], "file=dear").await.status(), 200);
        let refused = ask(&world, Alpn::H1, CHAT, &world.keys[3], "file=dear").await;
        assert_eq!((refused.status(), refused.json()["error"]["code"].as_str()), (429, Some("insufficient_quota")));
        assert!(refused.text().contains("`money_per_month`"), "{}", refused.text());
    });
    let cost = world.edge.metric("nullhop_cost_usd_total", &["upstream=\"openai\"", "model=\"gpt-4o*\""]);
    let small = 10.0 * 2.5e-6 + 5.0 * 10e-6;
    assert!((cost - (1.0 + 14.0 * small)).abs() < 1e-9, "{cost}");
    for (limit, denied) in [("requests", 1.0), ("tokens", 1.0), ("budget", 2.0)] {
        let labels = [format!("limit=\"{limit}\""), "decision=\"deny\"".to_owned()];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        assert_eq!(world.edge.metric("nullhop_limit_decisions_total", &labels), denied, "{limit}");
    }
    assert_eq!(world.edge.metric("nullhop_key_requests_total", &["key=\"c\"", "outcome=\"limited\""]), 1.0);
    assert_eq!(world.edge.metric("nullhop_key_tokens_total", &["key=\"c\"", "direction=\"input\""]), 60.0);
}

#[test]
fn a_burst_never_passes_and_every_end_gives_its_place_back() {
    let aborts: usize = std::env::var("NULLHOP_ABORTS").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let world =
        World::new(Alpn::H2, "", &[("one", &["--account", "acme"]), ("two", &["--account", "acme"]), ("free", &[])]);
    support::runtime().block_on(async {
        // Forty at once by two keys of an account that has two places.
        let passed = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for number in 0..40 {
            let mut client = world.edge.connect(if number % 2 == 0 { Alpn::H1 } else { Alpn::H2 }).await;
            let request = chat(&client, CHAT, &world.keys[number % 2], "events=3;stall_after=100");
            let passed = passed.clone();
            tasks.push(tokio::spawn(async move {
                let answer = client.send(request).await.expect("head");
                match answer.status().as_u16() {
                    200 => {
                        passed.fetch_add(1, SeqCst);
                        Some((client, answer))
                    }
                    429 => {
                        assert_eq!(answer.headers()["retry-after"], "1");
                        None
                    }
                    other => panic!("{other}"),
                }
            }));
        }
        let mut held = Vec::new();
        for task in tasks {
            held.extend(task.await.expect("no panic"));
        }
        assert_eq!(passed.load(SeqCst), 2);
        drop(held);
        let began = Instant::now();
        while ask(&world, Alpn::H1, CHAT, &world.keys[0], "").await.status() != 200 {
            assert!(began.elapsed() < SOON, "places are free again");
        }
        // Ends of every kind, at random moments.
        let mut random = 88_172_645_463_325_252_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for round in 0..aborts / 20 {
            let mut running = Vec::new();
            for _ in 0..20 {
                let alpn = if next(2) == 0 { Alpn::H1 } else { Alpn::H2 };
                let mut client = world.edge.connect(alpn).await;
                let script = match next(5) {
                    0 => "events=50;period_us=1000".to_owned(),
                    1 => format!("events=20;reset_after={}", next(2000)),
                    2 => "never=1".to_owned(),
                    3 => format!("events=20;kill_after={}", next(2000)),
                    _ => "head_delay_ms=5;status=500".to_owned(),
                };
                let key = &world.keys[usize::from(next(4) != 0) * 2];
                let request = chat(&client, CHAT, key, &script);
                let after = Duration::from_micros(next(20_000));
                let reset = next(2) == 0;
                running.push(tokio::spawn(async move {
                    let answer = client.send(request);
                    let _ = tokio::time::timeout(after, async {
                        if let Ok(answer) = answer.await {
                            let mut body = answer.into_body();
                            while let Some(Ok(_)) = next_data(&mut body).await {}
                        }
                    })
                    .await;
                    if reset {
                        client.abort(Ending::Reset);
                    }
                }));
            }
            for task in running {
                task.await.unwrap_or_else(|fault| panic!("round {round}: {fault}"));
            }
        }
    });
    let idle = || {
        let page = world.edge.scrape();
        let gauges = page.lines().filter(|line| {
            line.starts_with("nullhop_requests_in_flight") || line.starts_with("nullhop_key_limit_used_ratio")
        });
        gauges.clone().count() > 0 && gauges.clone().all(|line| line.ends_with(" 0"))
    };
    assert!(wait_for(SOON, idle), "{}", world.edge.scrape());
    // The account's two places are there again, both at once.
    support::runtime().block_on(async {
        for _ in 0..2 {
            let mut held = Vec::new();
            for wanted in [200, 200, 429] {
                let mut client = world.edge.connect(Alpn::H1).await;
                let request = chat(&client, CHAT, &world.keys[1], "events=3;stall_after=100");
                let answer = client.send(request).await.expect("head");
                assert_eq!(answer.status(), wanted);
                held.push((client, answer));
            }
            drop(held);
            let began = Instant::now();
            while world.edge.metric("nullhop_requests_in_flight", &["upstream=\"openai\""]) > 0.0 {
                assert!(began.elapsed() < SOON);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
}

#[test]
fn a_stream_over_its_budget_is_cut_and_what_it_used_is_owed() {
    let extra = "[admission]\nreserve_output_tokens = 20\nlag_max = \"0s\"\n";
    let world = World::new(Alpn::H1, extra, &[("cut", &["--plan", "cut"])]);
    support::runtime().block_on(async {
        let mut client = world.edge.connect(Alpn::H1).await;
        let bearer = format!("Bearer {}", world.keys[0]);
        let headers = [("authorization", bearer.as_str()), ("x-script", "events=100000;period_us=2000")];
        let request = post(&client, CHAT, &headers, "{\"model\":\"gpt-4o-mini\"}");
        let mut body = client.send(request).await.expect("head").into_body();
        let end = tokio::time::timeout(SOON, async {
            loop {
                match next_data(&mut body).await {
                    Some(Ok(_)) => {}
                    end => break end.is_some(),
                }
            }
        });
        assert!(end.await.expect("an end"), "cut, not ended");
        let refused = ask(&world, Alpn::H1, CHAT, &world.keys[0], "").await;
        assert_eq!((refused.status(), refused.json()["error"]["code"].as_str()), (429, Some("insufficient_quota")));
    });
    assert!(world.edge.metric("nullhop_limit_overrun_tokens_total", &[]) > 20.0);
}

#[test]
fn a_key_that_the_provider_refuses_rests_and_its_caller_does_not_see_why() {
    let world = World::new(Alpn::H1, "", &[("ci", &[])]);
    let both = "/both/v1/chat/completions";
    support::runtime().block_on(async {
        let answer = ask(&world, Alpn::H1, both, &world.keys[0], "status=401;size=30").await;
        assert_eq!(answer.status(), 502);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("gateway's own key"));
        let rested = world.provider.last().header("authorization").to_owned();
        for _ in 0..8 {
            assert_eq!(ask(&world, Alpn::H1, both, &world.keys[0], "").await.status(), 200);
            assert_ne!(world.provider.last().header("authorization"), rested);
        }
        // The provider's own limit is passed on, with its word on when; its figures on the operator's account are not.
        let script = "status=429;header=retry-after:7;header=x-ratelimit-remaining-requests:3;\
                      header=x-ratelimit-limit-requests:100;header=openai-organization:org-operator;size=10";
        let answer = ask(&world, Alpn::H1, both, &world.keys[0], script).await;
        assert_eq!((answer.status(), answer.header("retry-after")), (429, "7"));
        assert_eq!((answer.header("x-ratelimit-remaining-requests"), answer.header("openai-organization")), ("", ""));
        // In pass-through they are the caller's own.
        let answer = ask(&world, Alpn::H1, both, "sk-own", script).await;
        assert_eq!(
            (answer.header("x-ratelimit-remaining-requests"), answer.header("openai-organization")),
            ("3", "org-operator")
        );
        // Nor do they come behind a body.
        let script = "size=10;len=chunked;trailer=x-ratelimit-remaining-requests:3;trailer=openai-organization:org-operator;\
                      trailer=x-checksum:a";
        for (key, count) in [(world.keys[0].as_str(), 1), ("sk-own", 3)] {
            let mut client = world.edge.connect(Alpn::H2).await;
            let mut request = chat(&client, both, key, script);
            request.headers_mut().insert("te", http::HeaderValue::from_static("trailers"));
            let answer = client.fetch(request).await.expect("an answer");
            let trailers = answer.trailers.unwrap_or_default();
            assert_eq!((answer.head.status.as_u16(), trailers.len()), (200, count), "{trailers:?}");
            assert!(trailers.contains_key("x-checksum"));
        }
    });
    assert!(world.edge.wait_for_log("provider_key_cooling", SOON));
    assert!(world.edge.wait_for_metric(
        "nullhop_upstream_keys",
        &["upstream=\"both\"", "state=\"cooling\""],
        |count| count == 2.0,
        SOON
    ));
    let headroom =
        world.edge.metric("nullhop_upstream_limit_remaining_ratio", &["upstream=\"both\"", "resource=\"requests\""]);
    assert!((headroom - 0.03).abs() < 1e-9, "{headroom}");
}

#[test]
fn budgets_survive_the_process_and_records_name_the_key() {
    let mut world = World::new(Alpn::H1, "", &[("day", &["--plan", "day", "--account", "acme"])]);
    world.answer("small", 10, 5);
    support::runtime().block_on(async {
        for _ in 0..6 {
            assert_eq!(ask(&world, Alpn::H1, CHAT, &world.keys[0], "file=small").await.status(), 200);
        }
        assert_eq!(ask(&world, Alpn::H1, CHAT, &world.keys[0], "file=small").await.status(), 429);
    });
    // 90 of 100 tokens, and the threshold stands at 80: said once.
    assert!(world.edge.wait_for_log("budget_soft scope=key", SOON), "{:?}", world.edge.log());
    assert_eq!(world.edge.log().iter().filter(|line| line.contains("budget_soft")).count(), 1);
    world.edge.restart();
    assert!(world.edge.wait_for_log("budgets_restored", SOON), "{:?}", world.edge.log());
    support::runtime().block_on(async {
        let answer = ask(&world, Alpn::H1, CHAT, &world.keys[0], "file=small").await;
        assert_eq!((answer.status(), answer.json()["error"]["code"].as_str()), (429, Some("insufficient_quota")));
    });
    world.edge.signal("TERM");
    assert_eq!(world.edge.wait_exit(SOON), Some(0));
    let sums = nullhop(&world.edge.scratch, &["usage", "usage", "--by", "account,key,model", "--format", "csv"]);
    let rows: Vec<&str> = sums.lines().collect();
    // Six answers of 15 tokens at 0.000075 USD.
    assert_eq!(rows.len(), 2, "what was refused has no record: {sums}");
    assert!(
        rows[1].starts_with("acme,") && rows[1].contains(",day,gpt-4o*,6,60,0,0,30,") && rows[1].ends_with(",0.00045")
    );
    for file in std::fs::read_dir(world.edge.scratch.path().join("usage")).expect("a folder") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("text");
        assert!(!text.contains("nhk_") && !text.contains(PROVIDER_KEY));
    }
}

#[test]
fn one_key_at_its_limit_and_a_full_house_cost_others_nothing() {
    let extra = "[admission]\nstreams = 12\nlag_max = \"0s\"\n";
    let world = World::new(Alpn::H2, extra, &[("greedy", &["--account", "acme"]), ("other", &[])]);
    support::runtime().block_on(async {
        let mut held = Vec::new();
        let hold = async |key: usize| {
            let mut client = world.edge.connect(Alpn::H2).await;
            let request = chat(&client, CHAT, &world.keys[key], "events=3;stall_after=100");
            let answer = client.send(request).await.expect("head");
            (answer.status().as_u16(), client, answer)
        };
        // Far beyond its two places; those that it is refused take none of the twelve.
        for wanted in std::iter::repeat_n(200, 2).chain(std::iter::repeat_n(429, 30)) {
            let (status, client, answer) = hold(0).await;
            assert_eq!(status, wanted);
            if status == 200 {
                held.push((client, answer));
            }
        }
        for _ in 0..10 {
            let (status, client, answer) = hold(1).await;
            assert_eq!(status, 200);
            held.push((client, answer));
        }
        // Twelve: the newest are refused, in their dialect, and those that run go on.
        assert_eq!(ask(&world, Alpn::H1, CHAT, &world.keys[1], "").await.status(), 503);
        assert_eq!(ask(&world, Alpn::H1, "/anthropic/v1/messages", &world.keys[1], "").await.status(), 529);
        let refused = ask(&world, Alpn::H2, CHAT, &world.keys[1], "").await;
        assert_eq!(
            (refused.header("retry-after"), refused.json()["error"]["code"].as_str()),
            ("1", Some("overloaded"))
        );
        for (_client, answer) in &mut held {
            assert!(next_data(answer.body_mut()).await.is_some_and(|data| data.is_ok()));
        }
        drop(held);
        let began = Instant::now();
        while ask(&world, Alpn::H1, CHAT, &world.keys[1], "").await.status() != 200 {
            assert!(began.elapsed() < SOON);
        }
    });
    assert!(world.edge.metric("nullhop_limit_decisions_total", &["limit=\"global\"", "decision=\"deny\""]) >= 3.0);
    assert!(world.edge.wait_for_log("shedding on=true", SOON), "{:?}", world.edge.log());
    assert!(world.edge.wait_for_log("shedding on=false", SOON));
}

#[test]
fn the_page_on_limits_is_right() {
    let page = include_str!("../docs/limits.md");
    let block = |kind: &str| {
        let (_, rest) = page.split_once(&format!("```{kind}\n")).expect("a block");
        rest.split("```").next().expect("its end").to_owned()
    };
    let scratch = Scratch::new();
    scratch.file("openai.key", PROVIDER_KEY);
    scratch.file("nullhop.toml", &block("toml"));
    let command = block("console").lines().next().expect("a command").to_owned();
    let words: Vec<&str> = command.split_whitespace().skip(2).take_while(|word| *word != "#").collect();
    assert!(nullhop(&scratch, &words).starts_with("nhk_"), "{command}");
    let says = nullhop(&scratch, &["check", "-c", "nullhop.toml"]);
    assert!(says.contains("1 key in"), "{says}");
}

#[test]
fn nobody_starts_with_the_operators_keys_and_an_open_door() {
    let scratch = Scratch::new();
    scratch.file("provider.key", PROVIDER_KEY);
    let path = scratch.file(
        "nullhop.toml",
        "[[upstream]]\nname = \"o\"\nprovider = \"openai\"\n[[upstream.key]]\nsecret = { file = \"provider.key\" }\n",
    );
    let ran = Command::new(env!("CARGO_BIN_EXE_nullhop")).arg("run").arg("-c").arg(path).output().expect("runs");
    assert_eq!(ran.status.code(), Some(2));
    let says = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(says.contains("[keys]") && !says.contains(PROVIDER_KEY), "{says}");
}
