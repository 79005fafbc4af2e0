//! What the running program counts is what the provider said: every sample stream, ten thousand random ones with random
//! cuts, breaks and clients that leave, and encoded ones.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::encoding::Coding;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::Vector;
use nullhop_loadtests::streams::Account;
use nullhop_loadtests::streams::End;
use nullhop_loadtests::streams::Kind;
use nullhop_loadtests::streams::Random;
use nullhop_loadtests::streams::Stream;
use nullhop_loadtests::streams::Sure;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Ca;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::WebSocket;
use serde_json::Value;
use support::Edge;
use support::Setup;
use support::wait_for;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(30);
/// Every await on a single exchange.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tokens of one upstream, in the kinds of the metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tokens {
    uncached: u64,
    cache_read: u64,
    cache_write: u64,
    response: u64,
    reasoning: u64,
    missing: u64,
}

impl Tokens {
    fn of(account: &Account) -> Self {
        let parts = (account.cached.unwrap_or(0), account.cache_write.unwrap_or(0), account.reasoning.unwrap_or(0));
        Self {
            uncached: account.input.unwrap_or(0) - parts.0 - parts.1,
            cache_read: parts.0,
            cache_write: parts.1,
            response: account.output.unwrap_or(0) - parts.2,
            reasoning: parts.2,
            missing: u64::from(account.sure == Sure::Absent),
        }
    }

    fn each(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        self.uncached = with(self.uncached, other.uncached);
        self.cache_read = with(self.cache_read, other.cache_read);
        self.cache_write = with(self.cache_write, other.cache_write);
        self.response = with(self.response, other.response);
        self.reasoning = with(self.reasoning, other.reasoning);
        self.missing = with(self.missing, other.missing);
    }
}

/// A metrics page, read once.
struct Page(Vec<(String, f64)>);

impl Page {
    fn of(edge: &Edge) -> Self {
        let page = edge.scrape();
        let lines = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Self(lines.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect())
    }

    /// The sum of all series of `name` with these labels, written `key="value"`.
    fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let series = self.0.iter().filter(|(series, _)| {
            series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
                && labels.iter().all(|label| series.contains(label))
        });
        series.map(|(_, value)| *value as u64).sum()
    }

    fn tokens(&self, upstream: &str) -> Tokens {
        let upstream = format!("upstream=\"{upstream}\"");
        let kind = |kind: &str| self.sum("nullhop_tokens_total", &[&upstream, &format!("kind=\"{kind}\"")]);
        Tokens {
            uncached: kind("uncached"),
            cache_read: kind("cache_read"),
            cache_write: kind("cache_write"),
            response: kind("response"),
            reasoning: kind("reasoning"),
            missing: self.sum("nullhop_usage_missing_total", &[&upstream]),
        }
    }

    /// Exchanges by outcome.
    fn outcomes(&self, upstream: &str) -> BTreeMap<String, u64> {
        let mut outcomes = BTreeMap::new();
        let upstream = format!("upstream=\"{upstream}\"");
        for (series, value) in &self.0 {
            if let Some(labels) = series.strip_prefix("nullhop_requests_total{")
                && labels.contains(&upstream)
                && let Some((_, outcome)) = labels.split_once("outcome=\"")
                && *value > 0.0
            {
                let outcome = outcome.split('"').next().unwrap_or_default();
                *outcomes.entry(outcome.to_owned()).or_default() += *value as u64;
            }
        }
        outcomes
    }
}

/// Upstreams of every kind in front of one provider.
fn upstreams(url: &str, suffix: &str, providers: &[&str]) -> String {
    let one = |provider: &&str| {
        format!(
            "[[upstream]]\nname = \"{provider}{suffix}\"\nprovider = \"{provider}\"\nurl = \"{url}\"\n\
             ca_file = \"provider-ca.pem\"\nbare = false\n"
        )
    };
    providers.iter().map(one).collect()
}

const PROVIDERS: [&str; 6] = ["openai", "anthropic", "gemini", "bedrock", "azure", "compatible"];

fn provider(alpn: Alpn, ca: &Arc<Ca>) -> Provider {
    let options = ProviderOptions {
        alpn,
        ca: Some(ca.clone()),
        vectors: Some(support::vectors()),
        workers: 2,
        hash_bodies: false,
        journal_max: 100,
        ..ProviderOptions::default()
    };
    Provider::spawn(options).expect("provider")
}

/// One edge before two providers, h1 and h2: upstreams `openai-h1`, `openai-h2` and so on.
fn edge(providers: &[Provider; 2], metrics: &str) -> Edge {
    let text =
        ["-h1", "-h2"].iter().zip(providers).map(|(suffix, provider)| upstreams(&provider.url(), suffix, &PROVIDERS));
    let setup = Setup {
        upstreams: Some(text.collect()),
        metrics: metrics.to_owned(),
        // The same connections serve thousands of requests, and many of them are given up.
        extra: "[limits]\nrequests_per_connection = 1000000\ncancels_per_connection = 100000\n".to_owned(),
        ..Setup::default()
    };
    Edge::with(&providers[0].url(), providers[0].ca_pem(), setup)
}

fn request(client: &Client, path: &str, script: &str) -> Request<FullBody> {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{path}")),
        false => Request::post(path).header("host", "localhost"),
    };
    let request = request.header("authorization", "Bearer k").header("content-type", "application/json");
    request.header("x-script", script).body(FullBody::new("{\"model\":\"m\",\"stream\":true}")).expect("request")
}

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the exchange comes to its end")
}

/// Waits until `count` exchanges are settled at all upstreams together.
fn settled(edge: &Edge, count: u64) -> Page {
    let mut seen = 0;
    let all = wait_for(SOON, || Page::of(edge).sum("nullhop_requests_total", &[]) >= count);
    let page = Page::of(edge);
    for upstream in PROVIDERS.iter().flat_map(|name| [format!("{name}-h1"), format!("{name}-h2")]) {
        seen += page.outcomes(&upstream).values().sum::<u64>();
    }
    assert!(all && seen == count, "{seen} exchanges were settled, not {count}");
    assert_eq!(page.sum("nullhop_requests_in_flight", &[]), 0);
    page
}

// ---------------------------------------------------------------------------------------------------------------------

/// Which upstream, and which path there.
fn place(entry: &Value) -> (&'static str, String) {
    let endpoint = entry["endpoint"].as_str().expect("endpoint");
    let dialect = entry["dialect"].as_str().expect("dialect");
    let provider = match entry["provider"].as_str().expect("provider") {
        "openai" => "openai",
        "azure" => "azure",
        "anthropic" => "anthropic",
        "gemini" => "gemini",
        "bedrock" => "bedrock",
        _ => "compatible",
    };
    let path = match dialect {
        "gemini_live" => "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent",
        _ => endpoint.split(' ').nth(1).expect("a method and a path"),
    };
    (provider, path.replace("{id}", "fake-model-1").replace("version=", "version=2"))
}

fn expected(entry: &Value) -> Tokens {
    let expect = &entry["expect"];
    let figure = |name: &str| expect[name].as_u64().unwrap_or(0);
    let endpoint = entry["endpoint"].as_str().expect("endpoint");
    // Neither an error's status nor counting in advance is billed.
    let free = endpoint.contains("(HTTP ") || endpoint.contains("count_tokens");
    Tokens {
        uncached: figure("input") - figure("cached") - figure("cache_write"),
        cache_read: figure("cached"),
        cache_write: figure("cache_write"),
        response: figure("output") - figure("reasoning"),
        reasoning: figure("reasoning"),
        missing: u64::from(expect["usage"] == "absent" && !free),
    }
}

#[test]
fn sample_streams_count_as_the_manifest_says() {
    let manifest = std::fs::read_to_string(support::vectors().join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("manifest");
    let files = manifest["vectors"].as_array().expect("vectors");
    assert!(files.len() > 40, "the set is complete");
    let ca = Arc::new(Ca::new("providers"));
    let providers = [provider(Alpn::H1, &ca), provider(Alpn::H2, &ca)];
    let edge = edge(&providers, "models = [\"gpt-fake-*\", \"claude-fake-*\", \"gemini-fake-*\", \"grok-*\"]");
    let mut count = 0;
    let mut wrong = Vec::new();
    for alpn in [Alpn::H1, Alpn::H2] {
        for suffix in ["-h1", "-h2"] {
            for entry in files {
                let name = entry["file"].as_str().expect("file");
                let (upstream, path) = place(entry);
                let upstream = format!("{upstream}{suffix}");
                let path = format!("/{upstream}{path}");
                let socket = entry["framing"] == "ws_jsonl";
                // Upwards they are always h1, and downwards their h2 form has tests of its own.
                if socket && (alpn == Alpn::H2 || suffix == "-h2") {
                    continue;
                }
                let before = Page::of(&edge);
                support::runtime().block_on(async {
                    match socket {
                        true => converse(&edge, &path, name).await,
                        false => {
                            let mut client = edge.connect(alpn).await;
                            let request = request(&client, &path, &format!("cuts=splits;file={name}"));
                            let received =
                                bounded(async { Received::read(client.send(request).await.expect("head"), 0).await });
                            assert!(received.await.error.is_none(), "{name}");
                        }
                    }
                });
                count += 1;
                let page = settled(&edge, count);
                let mut got = page.tokens(&upstream);
                got.each(&before.tokens(&upstream), |now, before| now - before);
                let wanted = expected(entry);
                if got != wanted {
                    wrong.push(format!("{alpn:?} {upstream} {name}:\n   got {got:?}\nwanted {wanted:?}"));
                }
                if let Some(model) = entry["expect"]["model"].as_str()
                    && got == wanted
                    && wanted.uncached > 0
                {
                    let label = match model.split('-').next() {
                        Some("gpt") if !model.starts_with("gpt-realtime") => "gpt-fake-*",
                        Some("claude") => "claude-fake-*",
                        Some("gemini") => "gemini-fake-*",
                        Some("grok") => "grok-*",
                        _ => continue,
                    };
                    let labels =
                        [format!("upstream=\"{upstream}\""), format!("model=\"{label}\""), "uncached".to_owned()];
                    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                    let of = |page: &Page| page.sum("nullhop_tokens_total", &labels);
                    if of(&page) - of(&before) != wanted.uncached {
                        wrong.push(format!("{alpn:?} {upstream} {name}: not counted as {label}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Reads a WebSocket's messages to the file's end, then closes.
async fn converse(edge: &Edge, path: &str, name: &str) {
    let lines = std::fs::read_to_string(support::vectors().join(name)).expect("vector");
    let stream = raw_tls_connect(edge.address(), "localhost", Alpn::H1, &edge.trust()).await.expect("TLS");
    let headers = format!("authorization: Bearer k\r\nx-script: ws=script;file={name}\r\n");
    let path = if path.ends_with("model=") { format!("{path}m") } else { path.to_owned() };
    let mut socket = bounded(WebSocket::connect(stream, "localhost", &path, &headers)).await.expect("101");
    socket.send_text("{\"type\":\"response.create\",\"model\":\"m\"}").await.expect("sent");
    for _ in lines.lines().filter(|line| !line.is_empty()) {
        bounded(socket.next_message()).await.expect("message").expect("not the end");
    }
    socket.send(Frame::close(1000, "")).await.expect("sent");
    while let Ok(Some(_)) = bounded(socket.next_frame()).await {}
}

// ---------------------------------------------------------------------------------------------------------------------

/// How a random exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    /// The whole body arrives.
    Whole,
    /// The provider breaks off after so many bytes, all of which the client has read.
    Break(u64),
    /// The client leaves after so many bytes; the provider has sent no more.
    Leave(u64),
}

/// What ten thousand exchanges should have moved.
#[derive(Default)]
struct Sum {
    tokens: BTreeMap<String, Tokens>,
    outcomes: BTreeMap<String, BTreeMap<&'static str, u64>>,
    /// By clients that left and by providers that broke off before any figure.
    aborted: u64,
    kinds: BTreeMap<Kind, u64>,
}

const RANDOM_STREAMS: u64 = 10_000;
/// Connections at once.
const WORKERS: u64 = 16;

#[test]
fn random_streams_count_as_the_provider_says() {
    let ca = Arc::new(Ca::new("providers"));
    let providers = Arc::new([provider(Alpn::H1, &ca), provider(Alpn::H2, &ca)]);
    let edge = Arc::new(edge(&providers, ""));
    // NULLHOP_SEED repeats what went wrong, or tries something new.
    let seed: u64 = std::env::var("NULLHOP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let count = std::env::var("NULLHOP_STREAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(RANDOM_STREAMS);
    let next = Arc::new(AtomicU64::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let mut all = Sum::default();
    runtime.block_on(async {
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let (edge, providers, next) = (edge.clone(), providers.clone(), next.clone());
            workers.push(tokio::spawn(async move {
                let mut sum = Sum::default();
                let alpn = if worker % 2 == 0 { Alpn::H1 } else { Alpn::H2 };
                let mut client = edge.connect(alpn).await;
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    if index >= count {
                        return sum;
                    }
                    if client.is_closed() || bounded(client.ready()).await.is_err() {
                        client = edge.connect(alpn).await;
                    }
                    let which = (index % 2) as usize;
                    exchange(&edge, &mut client, &providers[which], which, seed + index, &mut sum).await;
                }
            }));
        }
        for worker in workers {
            let sum = worker.await.expect("no worker panics");
            for (upstream, tokens) in sum.tokens {
                all.tokens.entry(upstream).or_default().each(&tokens, |a, b| a + b);
            }
            for (upstream, outcomes) in sum.outcomes {
                let of = all.outcomes.entry(upstream).or_default();
                outcomes.into_iter().for_each(|(outcome, count)| *of.entry(outcome).or_default() += count);
            }
            sum.kinds.into_iter().for_each(|(kind, count)| *all.kinds.entry(kind).or_default() += count);
            all.aborted += sum.aborted;
        }
    });
    assert_eq!(all.kinds.len(), Kind::ALL.len(), "every kind had its turn: {:?}", all.kinds);
    let page = settled(&edge, count);
    for (upstream, wanted) in &all.tokens {
        assert_eq!(page.tokens(upstream), *wanted, "{upstream}");
        let got = page.outcomes(upstream);
        let wanted = &all.outcomes[upstream];
        assert_eq!(got.values().sum::<u64>(), wanted.values().sum::<u64>(), "{upstream}: one outcome an exchange");
        for outcome in ["client_abort", "upstream_cut"] {
            let of = |map: Option<&u64>| map.copied().unwrap_or(0);
            assert_eq!(of(got.get(outcome)), of(wanted.get(outcome)), "{upstream} {outcome}: {got:?} {wanted:?}");
        }
        assert_eq!(got.get("internal"), None, "{upstream}");
    }
    assert!(page.sum("nullhop_usage_missing_total", &["reason=\"aborted\""]) >= all.aborted);
    assert_eq!(page.sum("nullhop_usage_missing_total", &["reason=\"unparsed\""]), 0);
    let panics = edge.log().iter().filter(|line| line.contains("panic")).count();
    assert_eq!(panics, 0);
}

/// What comes next, if it is not an empty frame, as h2 ends a stream with.
async fn rest(body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
    loop {
        match bounded(next_data(body)).await {
            Some(Ok(data)) if data.is_empty() => {}
            other => return other,
        }
    }
}

/// One random exchange, from a seed.
async fn exchange(edge: &Edge, client: &mut Client, provider: &Provider, which: usize, seed: u64, sum: &mut Sum) {
    let random = Random::new(seed);
    let kind = Kind::ALL[random.below(Kind::ALL.len() as u64) as usize];
    let stream = Stream::new(kind, &random);
    let finish = match random.below(6) {
        0 | 1 => Finish::Leave(random.between(1, stream.len() - 1)),
        2 => Finish::Break(random.between(1, stream.len() - 1)),
        _ => Finish::Whole,
    };
    let name = format!("random-{seed}");
    let mut script = format!("file={name};");
    match random.below(3) {
        0 => script.push_str(&format!("every={};", random.between(40, 400))),
        1 => {
            let cuts: Vec<String> = (0..6).map(|_| random.between(1, stream.len()).to_string()).collect();
            script.push_str(&format!("cuts={};", cuts.join(",")));
        }
        _ => {}
    }
    if random.one_in(2) {
        script.push_str("len=chunked;");
    }
    let reached = match finish {
        Finish::Whole => stream.len(),
        Finish::Leave(at) => {
            script.push_str(&format!("stall_after={at};"));
            at
        }
        Finish::Break(at) => {
            // On h2 the end of a connection is the end of all its streams.
            let ending = if which == 1 { "reset" } else { random.pick(&["reset", "fin", "goodbye", "kill"]) };
            // Not before the client has everything up to here: a reset would overtake it.
            script.push_str(&format!("hold_at={at};gate={name};{ending}_after={at};"));
            at
        }
    };
    provider.put(&name, stream.vector());
    let upstream = format!("{}-h{}", kind.provider(), which + 1);
    let request = request(client, &format!("/{upstream}{}", kind.path()), &script);
    let what = format!("seed {seed}: {kind:?} {finish:?} of {}, {script}", stream.len());
    let response = bounded(client.send(request)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(response.status(), 200, "{what}");
    let mut body = response.into_body();
    let mut got = Vec::new();
    while got.len() < reached as usize {
        match bounded(next_data(&mut body)).await {
            Some(Ok(data)) => got.extend_from_slice(&data),
            other => panic!("{what}: {other:?} after {} bytes", got.len()),
        }
    }
    assert!(got == stream.bytes()[..reached as usize], "{what}: other bytes");
    match finish {
        Finish::Whole => {
            let end = rest(&mut body).await;
            assert!(end.is_none(), "{what}: {end:?}");
        }
        Finish::Break(_) => {
            assert!(provider.open(&name), "{what}: it waits");
            let end = rest(&mut body).await;
            assert!(matches!(end, Some(Err(_))), "{what}: {end:?}");
        }
        Finish::Leave(_) => {
            if client.is_h2() {
                drop(body);
            } else {
                client.abort(Ending::Reset);
                drop(body);
                *client = edge.connect(Alpn::H1).await;
            }
        }
    }
    provider.take(&name);
    let account = stream.account(reached);
    sum.tokens.entry(upstream.clone()).or_default().each(&Tokens::of(&account), |a, b| a + b);
    let outcome = match finish {
        Finish::Whole if account.end == End::Error => "error",
        Finish::Whole => "ok",
        Finish::Break(_) => "upstream_cut",
        Finish::Leave(_) => "client_abort",
    };
    *sum.outcomes.entry(upstream).or_default().entry(outcome).or_default() += 1;
    *sum.kinds.entry(kind).or_default() += 1;
    if account.sure == Sure::Absent && matches!(finish, Finish::Leave(_)) {
        sum.aborted += 1;
    }
}

// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn encoded_answers_pass_untouched_and_are_counted() {
    let ca = Arc::new(Ca::new("providers"));
    let providers = [provider(Alpn::H1, &ca), provider(Alpn::H2, &ca)];
    let edge = edge(&providers, "");
    let mut count = 0;
    let mut wanted: BTreeMap<String, Tokens> = BTreeMap::new();
    support::runtime().block_on(async {
        for alpn in [Alpn::H1, Alpn::H2] {
            let mut client = edge.connect(alpn).await;
            for seed in 0..100 {
                let random = Random::new(seed);
                let which = (seed % 2) as usize;
                let coding = Coding::ALL[random.below(Coding::ALL.len() as u64) as usize];
                let kind = Kind::ALL[random.below(Kind::ALL.len() as u64) as usize];
                let stream = Stream::new(kind, &random);
                let plain = stream.vector();
                let bytes = Bytes::from(coding.encode(&plain.bytes));
                let encoding = Some(coding.name().to_owned());
                providers[which].put("x", Vector { bytes: bytes.clone(), content_encoding: encoding, ..plain });
                let upstream = format!("{}-h{}", kind.provider(), which + 1);
                let script = format!("file=x;every={}", random.between(1, 300));
                let request = request(&client, &format!("/{upstream}{}", kind.path()), &script);
                let answer = bounded(client.fetch(request)).await.expect("answer");
                assert_eq!(answer.header("content-encoding"), coding.name());
                assert!(answer.body == bytes, "{coding:?} {kind:?}: other bytes");
                let tokens = Tokens::of(&stream.account(stream.len()));
                wanted.entry(upstream.clone()).or_default().each(&tokens, |a, b| a + b);
                count += 1;
            }
        }
    });
    let page = settled(&edge, count);
    for (upstream, wanted) in &wanted {
        assert_eq!(page.tokens(upstream), *wanted, "{upstream}");
    }
}

#[test]
fn bombs_and_broken_encodings_stop_only_the_meter() {
    let ca = Arc::new(Ca::new("providers"));
    let providers = [provider(Alpn::H1, &ca), provider(Alpn::H2, &ca)];
    let edge = edge(&providers, "");
    let usage =
        b"{\"object\":\"chat.completion\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6}}";
    let mut answers: Vec<(String, Bytes)> = Vec::new();
    for coding in Coding::ALL {
        // A quarter of a gigabyte of nothing.
        let mut bytes = coding.encode_repeated(&vec![b' '; 1 << 20], 256);
        assert!(bytes.len() < 4 << 20, "{coding:?}: {} bytes", bytes.len());
        answers.push((coding.name().to_owned(), bytes.clone().into()));
        bytes.truncate(bytes.len() / 2);
        answers.push((coding.name().to_owned(), bytes.into()));
        let mut broken = coding.encode(usage);
        let middle = broken.len() / 2;
        broken[middle..].iter_mut().for_each(|byte| *byte = !*byte);
        answers.push((coding.name().to_owned(), broken.into()));
        // Said to be what it is not.
        answers.push((coding.name().to_owned(), Bytes::from_static(usage)));
    }
    answers.push(("gzip, br".to_owned(), Bytes::from_static(usage)));
    answers.push(("nonsense".to_owned(), Bytes::from_static(usage)));
    let before = edge.rss();
    let mut count = 0;
    support::runtime().block_on(async {
        for alpn in [Alpn::H1, Alpn::H2] {
            let mut client = edge.connect(alpn).await;
            for (which, provider) in providers.iter().enumerate() {
                for (encoding, bytes) in &answers {
                    let content_type = Some("application/json".to_owned());
                    let plain = Stream::new(Kind::ChatWhole, &Random::new(1)).vector();
                    let encoding = Some(encoding.clone());
                    provider.put(
                        "x",
                        Vector { bytes: bytes.clone(), content_type, content_encoding: encoding.clone(), ..plain },
                    );
                    let path = format!("/openai-h{}/v1/chat/completions", which + 1);
                    let request = request(&client, &path, "file=x");
                    let answer = bounded(client.fetch(request)).await.expect("answer");
                    assert!(answer.body == bytes, "{encoding:?}: other bytes");
                    count += 1;
                }
            }
        }
    });
    let page = settled(&edge, count);
    assert_eq!(page.sum("nullhop_tokens_total", &[]), 0);
    assert_eq!(page.sum("nullhop_usage_missing_total", &["reason=\"unparsed\""]), count);
    assert_eq!(page.sum("nullhop_requests_total", &["outcome=\"ok\""]), count);
    let grown = edge.rss().saturating_sub(before);
    assert!(grown < 64 << 20, "grew by {grown} bytes");
}

// ---------------------------------------------------------------------------------------------------------------------

/// Streams with a known pace: the times are of the right order, and only streams have them.
#[test]
fn times_and_sizes_are_observed_once() {
    let ca = Arc::new(Ca::new("providers"));
    let providers = [provider(Alpn::H1, &ca), provider(Alpn::H2, &ca)];
    let edge = edge(&providers, "");
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        for script in ["events=20;period_us=20000;usage=1;head_delay_ms=300", "events=3;usage=1", "events=5"] {
            let request = request(&client, "/openai-h1/v1/chat/completions", script);
            bounded(client.fetch(request)).await.expect("answer");
        }
        providers[0].put("x", Stream::new(Kind::ChatWhole, &Random::new(2)).vector());
        let request = request(&client, "/openai-h1/v1/chat/completions", "file=x");
        bounded(client.fetch(request)).await.expect("answer");
    });
    let page = settled(&edge, 4);
    let upstream = "upstream=\"openai-h1\"";
    let labels = [upstream];
    assert_eq!(page.sum("nullhop_time_to_first_token_seconds_count", &labels), 3, "streams only");
    // Three of these have figures; only they have a time per token, and a whole answer has none.
    assert_eq!(page.sum("nullhop_time_per_output_token_seconds_count", &labels), 2);
    assert_eq!(page.sum("nullhop_request_tokens_count", &[upstream, "direction=\"output\""]), 3);
    assert_eq!(page.sum("nullhop_request_tokens_count", &[upstream, "direction=\"input\""]), 3);
    let slow = page.sum("nullhop_time_to_first_token_seconds_bucket", &[upstream, "le=\"0.25\""]);
    assert!(slow <= 2, "one came after 300 ms");
    assert_eq!(page.sum("nullhop_usage_missing_total", &[upstream, "reason=\"absent\""]), 1);
}
