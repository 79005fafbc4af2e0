//! The relay between real peers: the binary in front of a scripted provider, TLS and both protocols
//! on both sides. One promise a test; where it makes sense, on all four pairs of h1 and h2.

mod support;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::BytesMut;
use http::HeaderValue;
use http::Request;
use nullhop_loadtests::client::Answer;
use nullhop_loadtests::client::BodySender;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::client::sha256;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::pattern::pattern_sha256;
use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::raw::RawOptions;
use nullhop_loadtests::raw::RawProvider;
use nullhop_loadtests::raw::Step;
use nullhop_loadtests::raw::lies;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Ca;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use nullhop_loadtests::websocket::Role;
use nullhop_loadtests::websocket::WebSocket;
use support::Edge;
use support::Setup;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const BOTH: [Alpn; 2] = [Alpn::H1, Alpn::H2];
const CHAT: &str = "/openai/v1/chat/completions";
const MINUTE: Duration = Duration::from_secs(60);

/// A provider, the edge in front of it, and a runtime for the clients. One worker: pools are per
/// worker, and what is asked twice here shall come to the same pool.
struct Rig {
    provider: Provider,
    edge: Edge,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new(upstream: Alpn) -> Self {
        Self::with(upstream, "")
    }

    /// With `settings` in each upstream.
    fn with(upstream: Alpn, settings: &str) -> Self {
        let provider = Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() });
        let provider = provider.expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(settings));
        Self { provider, edge, runtime: runtime() }
    }

    /// Runs `test` with both kinds of clients against both kinds of providers.
    fn on_all_pairs(settings: &str, test: impl AsyncFn(&Rig, Alpn, &str)) {
        for upstream in BOTH {
            let rig = Self::with(upstream, settings);
            for client in BOTH {
                let pair = format!("{client:?} to {upstream:?}");
                rig.runtime.block_on(async {
                    tokio::time::timeout(MINUTE, test(&rig, client, &pair))
                        .await
                        .unwrap_or_else(|_| panic!("{pair}: stuck"));
                });
            }
        }
    }
}

fn setup(settings: &str) -> Setup {
    Setup { extra: "[runtime]\nworkers = 1\n".to_owned(), upstream: settings.to_owned(), ..Setup::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

/// A request's head as `client` has to write it.
fn ask(client: &Client, method: &str, target: &str, script: &str) -> http::request::Builder {
    let builder = Request::builder().method(method).header("authorization", "Bearer k");
    let builder = if client.is_h2() {
        builder.uri(format!("https://localhost{target}"))
    } else {
        builder.uri(target).header("host", "localhost")
    };
    if script.is_empty() { builder } else { builder.header("x-script", script) }
}

async fn fetch(client: &mut Client, method: &str, target: &str, script: &str, body: &'static str) -> Answer {
    client.ready().await.expect("ready");
    let request = ask(client, method, target, script).body(FullBody::new(body)).expect("request");
    let answer = tokio::time::timeout(MINUTE, client.fetch(request)).await.expect("no timeout");
    answer.unwrap_or_else(|error| panic!("{method} {target} {script}: {error}"))
}

/// The account of requests, to be compared before and after.
struct Account<'a> {
    edge: &'a Edge,
    outcome: String,
    total: f64,
    of_outcome: f64,
}

impl<'a> Account<'a> {
    fn open(edge: &'a Edge, outcome: &str) -> Self {
        let outcome = format!("outcome=\"{outcome}\"");
        let total = edge.metric("nullhop_requests_total", &[]);
        let of_outcome = edge.metric("nullhop_requests_total", &[&outcome]);
        Self { edge, outcome, total, of_outcome }
    }

    /// `count` requests more, all with the outcome, and none in flight.
    fn closed_with(self, count: f64, what: &str) {
        let edge = self.edge;
        let none = edge.wait_for_metric("nullhop_requests_in_flight", &[], |open| open == 0.0, 20 * SECOND);
        let total = edge.metric("nullhop_requests_total", &[]) - self.total;
        let of_outcome = edge.metric("nullhop_requests_total", &[&self.outcome]) - self.of_outcome;
        assert!(none, "{what}: still in flight");
        assert_eq!((total, of_outcome), (count, count), "{what}: {}\n{}", self.outcome, requests(edge));
    }
}

fn requests(edge: &Edge) -> String {
    let page = edge.scrape();
    let lines = page.lines().filter(|line| line.starts_with("nullhop_requests_total") && !line.ends_with(" 0"));
    lines.collect::<Vec<_>>().join("\n")
}

// ---------------------------------------------------------------------------------------------
// The client leaves

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// The provider thinks.
    Head,
    /// The answer flows.
    Body,
    /// Half of the request is there, and the provider waits for more.
    Upload,
    /// The provider does not read the request, and back-pressure has reached the client.
    Blocked,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    Connection(Ending),
    /// h2: only this request is given up.
    Stream,
}

#[test]
fn a_client_that_leaves_is_felt_within_a_second_while_it_waits_or_reads() {
    leaving(&[Stage::Head, Stage::Body]);
}

#[test]
fn a_client_that_leaves_is_felt_within_a_second_while_it_uploads() {
    leaving(&[Stage::Upload, Stage::Blocked]);
}

fn leaving(stages: &[Stage]) {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        for stage in stages {
            for leave in [Ending::Reset, Ending::Fin, Ending::Goodbye] {
                leave_at(rig, alpn, *stage, Leave::Connection(leave), pair).await;
            }
            if alpn == Alpn::H2 {
                leave_at(rig, alpn, *stage, Leave::Stream, pair).await;
            }
        }
    });
}

async fn leave_at(rig: &Rig, alpn: Alpn, stage: Stage, leave: Leave, pair: &str) {
    let what = format!("{pair}, {stage:?}, {leave:?}");
    let account = Account::open(&rig.edge, "client_abort");
    let seen = rig.provider.state().requests;
    let mut client = rig.edge.connect(alpn).await;
    let script = match stage {
        Stage::Head | Stage::Upload => "never=1",
        Stage::Body => "events=100000;period_us=5000",
        Stage::Blocked => "read_stall=1",
    };
    let (sender, body) = ChannelBody::new(1);
    let request = ask(&client, "POST", CHAT, script).body(body).expect("request");
    let mut answering = tokio::spawn(client.send(request));
    let mut response = None;
    match stage {
        Stage::Head => {
            sender.send("{}").await.expect("sends");
            drop(sender);
            assert!(rig.provider.wait_for(|state| state.requests > seen, 20 * SECOND).await, "{what}: never arrived");
            // The end of the body, too.
            assert!(
                rig.provider
                    .wait_for(|state| state.last().is_some_and(|seen| seen.body_end == BodyEnd::Clean), 20 * SECOND)
                    .await
            );
        }
        Stage::Body => {
            drop(sender);
            let mut started = (&mut answering).await.expect("joins").expect("head");
            next_data(started.body_mut()).await.expect("data").expect("data");
            response = Some(started);
        }
        Stage::Upload => {
            sender.send(vec![b'x'; 100_000]).await.expect("sends");
            let arrived = rig.provider.wait_for(|state| state.requests > seen, 20 * SECOND).await;
            assert!(arrived, "{what}: never arrived");
            let all = rig
                .provider
                .wait_for(
                    |state| state.last().is_some_and(|seen| seen.id == state.requests - 1 && seen.body_len == 100_000),
                    20 * SECOND,
                )
                .await;
            assert!(all, "{what}: the upload does not flow");
            std::mem::forget(sender);
        }
        Stage::Blocked => {
            assert!(rig.provider.wait_for(|state| state.requests > seen, 20 * SECOND).await, "{what}: never arrived");
            fill(&sender, &client, rig.edge.address()).await;
            std::mem::forget(sender);
        }
    }
    let left = Instant::now();
    match leave {
        Leave::Connection(ending) => client.abort(ending),
        Leave::Stream => {
            answering.abort();
            drop(response.take());
        }
    }
    let gone = rig.provider.wait_for(|state| state.last().is_some_and(|seen| seen.aborted), 20 * SECOND).await;
    assert!(gone, "{what}: never felt");
    let ended_at = rig.provider.last().ended_at.expect("ended");
    let took = ended_at.saturating_duration_since(left);
    assert!(took < SECOND, "{what}: felt after {took:?}");
    account.closed_with(1.0, &what);
    if leave == Leave::Stream {
        let answer = fetch(&mut client, "GET", "/openai/v1/models", "size=10", "").await;
        assert_eq!(answer.body.len(), 10, "{what}: the connection is of no more use");
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Feeds an upload until nothing moves any more. On h1 it stops as soon as bytes wait in the edge's
/// socket: a FIN behind more than the window takes would not arrive.
async fn fill(sender: &BodySender, client: &Client, edge: std::net::SocketAddr) {
    let mut waited = 0;
    for _ in 0..4096 {
        if !client.is_h2() && support::queues(edge.port(), client.local_address().port()).0 > 0 {
            waited += 1;
            if waited == 4 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
            continue;
        }
        waited = 0;
        let piece = sender.send(vec![b'x'; 32 << 10]);
        match tokio::time::timeout(Duration::from_millis(400), piece).await {
            Ok(sent) => sent.expect("sends"),
            Err(_) => return,
        }
    }
    panic!("128 MiB of upload disappeared");
}

// ---------------------------------------------------------------------------------------------
// The upstream breaks

#[test]
fn a_broken_answer_never_ends_cleanly() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        for framing in ["chunked", "known", "close"] {
            for fault in ["reset", "fin", "goodbye", "kill"] {
                let h1_upstream = pair.ends_with("H1");
                // Without a length or chunks a proper goodbye is the end.
                if framing == "close" && (!h1_upstream || fault == "goodbye") {
                    continue;
                }
                let what = format!("{pair}, {framing}, {fault}");
                let mut client = rig.edge.connect(alpn).await;
                let account = Account::open(&rig.edge, "upstream_cut");
                let script = format!("size=200000;len={framing};{fault}_after=50000");
                let request = ask(&client, "POST", CHAT, &script).body(FullBody::new("{}")).expect("request");
                let response = client.send(request).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(response.status(), 200);
                let received = Received::read(response, 0).await;
                assert!(received.error.is_some(), "{what}: ended cleanly after {}", received.len);
                assert!(received.len <= 50_000, "{what}: {} bytes", received.len);
                account.closed_with(1.0, &what);
                let mut client = if client.is_h2() { client } else { rig.edge.connect(alpn).await };
                let answer = fetch(&mut client, "POST", CHAT, "size=1000", "{}").await;
                assert_eq!((answer.status(), answer.body.len()), (200, 1000), "{what}: the pool is poisoned");
            }
        }
    });
}

#[test]
fn an_old_client_sees_a_broken_answer_as_a_reset() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let mut stream = raw(&rig.edge).await;
            let head = "POST /openai/v1/chat/completions HTTP/1.0\r\nhost: localhost\r\ncontent-length: 2\r\n\
                        x-script: size=200000;len=chunked;reset_after=50000\r\n\r\n{}";
            stream.write_all(head.as_bytes()).await.expect("writes");
            let mut received = Vec::new();
            let error = stream.read_to_end(&mut received).await.expect_err("no clean end");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{upstream:?}");
        });
    }
}

#[test]
fn a_provider_that_breaks_before_its_head_becomes_a_502_in_the_right_dialect() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        for fault in ["reset", "fin", "goodbye", "kill"] {
            for target in [CHAT, "/anthropic/v1/messages", "/gemini/v1beta/models/m:generateContent"] {
                let what = format!("{pair}, {fault}, {target}");
                let account = Account::open(&rig.edge, "upstream_error");
                let mut client = rig.edge.connect(alpn).await;
                let answer = fetch(&mut client, "POST", target, &format!("{fault}_after=head"), "{}").await;
                assert_eq!(answer.status(), 502, "{what}");
                let json = answer.json();
                match target {
                    CHAT => assert_eq!(json["error"]["code"], "upstream_error", "{what}"),
                    "/anthropic/v1/messages" => assert_eq!(json["error"]["type"], "api_error", "{what}"),
                    _ => assert_eq!(json["error"]["status"], "UNAVAILABLE", "{what}"),
                }
                account.closed_with(1.0, &what);
                let answer = fetch(&mut client, "POST", target, "size=10", "{}").await;
                assert_eq!(answer.body.len(), 10, "{what}: the pool is poisoned");
            }
        }
    });
}

#[test]
fn lies_of_the_provider_become_a_502_or_a_cut() {
    let runtime = runtime();
    for (name, steps) in [
        ("two lengths", lies::two_content_lengths()),
        ("garbage", lies::garbage()),
        ("half a head", lies::half_head()),
        ("switch", lies::unasked_101()),
        ("big header", lies::big_header(200 << 10)),
        ("many headers", lies::many_headers(2000)),
        ("1xx flood", lies::informational_flood(20_000)),
    ] {
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
        runtime.block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            let answer = fetch(&mut client, "POST", CHAT, "", "{}").await;
            assert_eq!(answer.status(), 502, "{name}");
            assert_eq!(answer.json()["error"]["type"], "server_error", "{name}");
        });
    }
    for (name, steps) in [
        ("too short", lies::content_length(100, "short")),
        ("length and chunks", lies::content_length_and_chunked()),
        ("gzip", lies::gzip_chunked()),
        ("huge chunk", lies::huge_chunk()),
    ] {
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
        runtime.block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            let request = ask(&client, "POST", CHAT, "").body(FullBody::new("{}")).expect("request");
            // The reset may overtake the head.
            let Ok(response) = client.send(request).await else { return };
            let status = response.status().as_u16();
            let received = Received::read(response, 100).await;
            // A length beside chunks is legal to ignore (RFC 9112 section 6.3).
            let whole = name == "length and chunks" && received.body == "hello";
            assert!(status == 502 || received.error.is_some() || whole, "{name}: {:?}", received.body);
        });
    }
}

// ---------------------------------------------------------------------------------------------
// Both ways at once

#[test]
fn both_directions_flow_at_once() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;
        let (sender, body) = ChannelBody::new(1);
        let request = ask(&client, "POST", CHAT, "echo=1").body(body).expect("request");
        let answering = tokio::spawn(client.send(request));
        sender.send("first").await.expect("sends");
        let mut response = answering.await.expect("joins").expect("head");
        assert_eq!(next_data(response.body_mut()).await.expect("data").expect("data"), "first", "{pair}");
        for round in 0..20 {
            let text = format!("round {round}");
            sender.send(text.clone()).await.expect("sends");
            let back = next_data(response.body_mut()).await.expect("data").expect("data");
            assert_eq!(back, text, "{pair}");
        }
        drop(sender);
        let rest = next_data(response.body_mut()).await;
        assert!(rest.as_ref().is_none_or(|rest| rest.as_ref().is_ok_and(|rest| rest.is_empty())), "{pair}: {rest:?}");
    });
}

#[test]
fn a_request_that_grows_too_large_in_its_answers_midst_is_no_fault_of_the_provider() {
    for upstream in BOTH {
        let provider = Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() });
        let provider = provider.expect("provider");
        let mut setup = setup("");
        setup.extra += "[limits]\nbody_bytes = \"1MiB\"\n";
        let rig = Rig { edge: Edge::with(&provider.url(), provider.ca_pem(), setup), provider, runtime: runtime() };
        rig.runtime.block_on(async {
            for alpn in BOTH {
                let what = format!("{alpn:?} to {upstream:?}");
                let account = Account::open(&rig.edge, "client_error");
                let too_large = ["guard=\"body_too_large\""];
                let refused = rig.edge.metric("nullhop_guard_total", &too_large);
                let mut client = rig.edge.connect(alpn).await;
                let (sender, body) = ChannelBody::new(1);
                let script = "beside=1;events=100000;period_us=5000";
                let answer = client.send(ask(&client, "POST", CHAT, script).body(body).expect("request")).await;
                let mut body = answer.expect("head").into_body();
                next_data(&mut body).await.expect("more").expect("data");
                let feeder = tokio::spawn(async move { while sender.send(vec![b'x'; 5_000]).await.is_ok() {} });
                let cut =
                    tokio::time::timeout(20 * SECOND, async { while let Some(Ok(_)) = next_data(&mut body).await {} });
                cut.await.unwrap_or_else(|_| panic!("{what}: goes on"));
                feeder.abort();
                account.closed_with(1.0, &what);
                assert_eq!(rig.edge.metric("nullhop_upstream_failures_total", &[]), 0.0, "{what}");
                assert_eq!(rig.edge.metric("nullhop_guard_total", &too_large), refused + 1.0, "{what}");
            }
        });
    }
}

#[test]
fn an_early_answer_arrives_whole_while_the_client_still_sends() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        // Behind `early_close` the provider resets its connection, so its answer has to fit a window.
        for (script, size) in [
            ("early=1;size=100000", 100_000),
            ("early=1;size=100000;len=chunked", 100_000),
            ("early_close=1;size=10000", 10_000),
        ] {
            let account = Account::open(&rig.edge, "ok");
            let mut client = rig.edge.connect(alpn).await;
            let request = ask(&client, "POST", CHAT, script);
            let request = request.body(PatternBody::new(20 << 20)).expect("request");
            let response = client.send(request).await.unwrap_or_else(|error| panic!("{pair}, {script}: {error}"));
            let received = Received::read(response, 0).await;
            assert!(received.error.is_none(), "{pair}, {script}: {:?} after {}", received.error, received.len);
            assert_eq!((received.head.status.as_u16(), received.len), (200, size), "{pair}, {script}");
            assert_eq!(received.sha256, pattern_sha256(size), "{pair}, {script}");
            account.closed_with(1.0, &format!("{pair}, {script}"));
        }
    });
}

#[test]
fn big_uploads_arrive_byte_for_byte() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;
        let wanted = pattern_sha256(20 << 20);
        let request = ask(&client, "POST", CHAT, "status=200").body(PatternBody::new(20 << 20)).expect("request");
        assert_eq!(client.fetch(request).await.expect("answer").status(), 200, "{pair}");
        let seen = rig.provider.last();
        assert_eq!(seen.body_sha256, Some(wanted), "{pair}");
        if !pair.ends_with("H2") {
            assert_eq!(seen.header("content-length"), (20 << 20).to_string(), "{pair}");
        }

        // Without a length.
        let (sender, body) = ChannelBody::new(1);
        client.ready().await.expect("ready");
        let request = ask(&client, "POST", CHAT, "status=200").body(body).expect("request");
        let answering = tokio::spawn(client.send(request));
        for piece in 0..20_u8 {
            sender.send(vec![piece; 50_000]).await.expect("sends");
        }
        drop(sender);
        assert_eq!(answering.await.expect("joins").expect("answer").status(), 200, "{pair}");
        let whole: Vec<u8> = (0..20_u8).flat_map(|piece| vec![piece; 50_000]).collect();
        let seen = rig.provider.last();
        assert_eq!(seen.body_sha256, Some(sha256(&whole)), "{pair}");
        assert_eq!(seen.header("content-length"), "", "{pair}");
    });
}

// ---------------------------------------------------------------------------------------------
// Shapes of messages

#[test]
fn heads_and_bodies_of_every_shape() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;

        let head = fetch(&mut client, "HEAD", "/openai/v1/models", "size=1234;header=content-length:1234", "").await;
        assert_eq!((head.status(), head.header("content-length"), head.body.len()), (200, "1234", 0), "{pair}");
        for status in ["204", "304"] {
            let answer =
                fetch(&mut client, "GET", "/openai/v1/models", &format!("status={status};header=etag:e"), "").await;
            assert_eq!((answer.status().to_string().as_str(), answer.body.len()), (status, 0), "{pair}");
            assert_eq!(answer.header("etag"), "e", "{pair}");
        }
        let empty = fetch(&mut client, "GET", "/openai/v1/models", "size=0", "").await;
        assert_eq!((empty.status(), empty.body.len()), (200, 0), "{pair}");
        for script in ["size=0;len=chunked", "size=70000;len=chunked", "size=70000;len=close", "size=1"] {
            let answer = fetch(&mut client, "GET", "/openai/v1/models", script, "").await;
            let wanted: usize = script[5..].split(';').next().expect("size").parse().expect("size");
            assert_eq!((answer.status(), answer.body.len()), (200, wanted), "{pair}, {script}");
        }

        // Requests: no body, an empty one, a small one.
        for (method, body) in
            [("DELETE", ""), ("DELETE", "{}"), ("GET", ""), ("PUT", "{}"), ("PATCH", "{}"), ("OPTIONS", "")]
        {
            let answer = fetch(&mut client, method, "/openai/v1/files/f", "status=200", body).await;
            let seen = rig.provider.last();
            assert_eq!((answer.status(), seen.method.as_str()), (200, method), "{pair}");
            assert_eq!(seen.body_len, body.len() as u64, "{pair} {method}");
            assert_eq!(seen.header("transfer-encoding"), "", "{pair} {method}");
            if body.is_empty() && method != "OPTIONS" {
                assert_eq!(seen.header("content-length"), "", "{pair} {method}");
            }
        }
        client.ready().await.expect("ready");
        let request = ask(&client, "POST", "/openai/v1/responses/r/cancel", "status=200").header("content-length", "0");
        let answer = client.fetch(request.body(FullBody::empty()).expect("request")).await.expect("answer");
        assert_eq!(answer.status(), 200, "{pair}");
        assert_eq!(rig.provider.last().header("content-length"), "0", "{pair}");

        // Trailers, announced so that h1 passes them.
        client.ready().await.expect("ready");
        let script = "size=100;len=chunked;trailer=x-checksum:abc;header=trailer:x-checksum";
        let request = ask(&client, "GET", "/openai/v1/models", script).header("te", "trailers");
        let request = if client.is_h2() { request } else { request.header("connection", "te") };
        let answer = client.fetch(request.body(FullBody::empty()).expect("request")).await.expect("answer");
        assert_eq!(answer.body.len(), 100, "{pair}");
        assert_eq!(
            answer.trailers.map(|trailers| trailers["x-checksum"].clone()),
            Some(HeaderValue::from_static("abc")),
            "{pair}"
        );
        assert_eq!(rig.provider.last().header("te"), "trailers", "{pair}");

        // An interim answer before the real one.
        let answer = fetch(&mut client, "GET", "/openai/v1/models", "info=103;info=102;size=10", "").await;
        assert_eq!((answer.status(), answer.body.len()), (200, 10), "{pair}");

        // The provider closes its connection; the client's stays.
        let answer = fetch(&mut client, "GET", "/openai/v1/models", "close=1;size=10", "").await;
        assert_eq!((answer.status(), answer.header("connection")), (200, ""), "{pair}");
        let answer = fetch(&mut client, "POST", CHAT, "size=11", "{}").await;
        assert_eq!((answer.status(), answer.body.len()), (200, 11), "{pair}");
    });
}

#[test]
fn header_values_pass_unless_policy_says_otherwise() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;
        let odd = HeaderValue::from_bytes(b"\"q, \\\x80\xff;\t=x").expect("value");
        let script = "size=5;header=set-cookie:a%3D1;header=alt-svc:h3;header=x-request-id:r1;header=request-id:r2;\
                      header=x-ratelimit-remaining-tokens:7;header=x-twice:a;header=x-twice:b;header=retry-after:3";
        let request = ask(&client, "POST", CHAT, script)
            .header("x-odd", odd.clone())
            .header("x-twice", "one")
            .header("x-twice", "two")
            .header("X-Mixed-Case", "MiXeD")
            .header("x-empty", "")
            .header("openai-beta", "a=v1")
            .header("anthropic-version", "2023-06-01")
            .header("idempotency-key", "i")
            .header("user-agent", "sdk/1")
            .header("x-stainless-lang", "python")
            .header("x-stainless-os", "Linux")
            .header("x-forwarded-for", "10.1.1.1")
            .header("forwarded", "for=10.1.1.1")
            .header("via", "1.1 x")
            .header("cookie", "a=b")
            .header("traceparent", "00-1")
            .header("origin", "https://x")
            .header("cf-connecting-ip", "10.1.1.1")
            .header("accept-encoding", "gzip")
            .header("accept-language", "de")
            .header("session-id", "s");
        let request =
            if client.is_h2() { request } else { request.header("connection", "x-empty").header("keep-alive", "1") };
        let answer = client.fetch(request.body(FullBody::new("{}")).expect("request")).await.expect("answer");
        let seen = rig.provider.last();
        assert_eq!(seen.headers["x-odd"], odd, "{pair}");
        assert_eq!(seen.headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["one", "two"], "{pair}");
        for (name, value) in [
            ("x-mixed-case", "MiXeD"),
            ("authorization", "Bearer k"),
            ("openai-beta", "a=v1"),
            ("anthropic-version", "2023-06-01"),
            ("idempotency-key", "i"),
            ("user-agent", "sdk/1"),
            ("x-stainless-lang", "python"),
            ("accept-encoding", "identity"),
            ("session-id", "s"),
        ] {
            assert_eq!(seen.header(name), value, "{pair} {name}");
        }
        for name in [
            "x-stainless-os",
            "x-forwarded-for",
            "forwarded",
            "via",
            "cookie",
            "traceparent",
            "origin",
            "cf-connecting-ip",
            "accept-language",
            "keep-alive",
            "expect",
        ] {
            assert!(!seen.headers.contains_key(name), "{pair} {name}");
        }
        assert_eq!(seen.headers.contains_key("x-empty"), client.is_h2(), "{pair}: listed in connection");
        let authority = seen.authority.as_deref().unwrap_or_else(|| seen.header("host"));
        assert_eq!(authority, rig.provider.address().to_string(), "{pair}");
        for name in ["set-cookie", "alt-svc"] {
            assert_eq!(answer.header(name), "", "{pair} {name}");
        }
        for (name, value) in
            [("x-request-id", "r1"), ("request-id", "r2"), ("x-ratelimit-remaining-tokens", "7"), ("retry-after", "3")]
        {
            assert_eq!(answer.header(name), value, "{pair} {name}");
        }
        assert_eq!(answer.head.headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["a", "b"], "{pair}");
    });
}

#[test]
fn targets_reach_the_provider_as_they_are() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;
        for (target, wanted) in [
            ("/openai/v1/chat/completions?a=b&c", "/v1/chat/completions?a=b&c"),
            ("/openai/v1/files/%41%2fb%20c?x=%26&&=%ff", "/v1/files/%41%2fb%20c?x=%26&&=%ff"),
            (
                "/gemini/v1beta/models/m-1.5:streamGenerateContent?alt=sse",
                "/v1beta/models/m-1.5:streamGenerateContent?alt=sse",
            ),
            ("/openai/v1/models?", "/v1/models?"),
            ("/openai/v1/x?a?b/../c//d", "/v1/x?a?b/../c//d"),
            ("/openai/v1/new/thing;p=1/,@!$'()*+~", "/v1/new/thing;p=1/,@!$'()*+~"),
            // Bare base URLs.
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/messages?beta=true", "/v1/messages?beta=true"),
            ("/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ] {
            let answer = fetch(&mut client, "POST", target, "size=3", "{}").await;
            assert_eq!(answer.status(), 200, "{pair} {target}");
            assert_eq!(rig.provider.last().path, wanted, "{pair}");
        }
    });
    // Below a path at the provider, and by host name.
    for upstream in BOTH {
        let provider =
            Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() }).expect("provider");
        let upstreams = "[[upstream]]\nname = \"router\"\nprovider = \"compatible\"\nurl = \"{url}/api\"\n{ca}\nretention = { allow = [\"all\"] }\n\
                         [[upstream]]\nname = \"named\"\nprovider = \"openai\"\nurl = \"{url}\"\n{ca}\nretention = { allow = [\"all\"] }\nhosts = [\"api.edge.test\"]\n";
        let edge = Edge::with(
            &provider.url(),
            provider.ca_pem(),
            Setup { upstreams: Some(upstreams.to_owned()), ..setup("") },
        );
        runtime().block_on(async {
            for alpn in BOTH {
                let mut client = edge.connect(alpn).await;
                fetch(&mut client, "POST", "/router/v1/chat/completions?q", "size=3", "{}").await;
                assert_eq!(provider.last().path, "/api/v1/chat/completions?q", "{alpn:?}");
                client.ready().await.expect("ready");
                let request = Request::builder().method("POST").header("x-script", "size=3");
                let request = if client.is_h2() {
                    request.uri("https://api.edge.test/v1/embeddings")
                } else {
                    request.uri("/v1/embeddings").header("host", "api.edge.test")
                };
                let answer = client.fetch(request.body(FullBody::new("{}")).expect("request")).await.expect("answer");
                assert_eq!((answer.status(), provider.last().path.as_str()), (200, "/v1/embeddings"), "{alpn:?}");
            }
        });
    }
}

// ---------------------------------------------------------------------------------------------
// h1 by hand

async fn raw(edge: &Edge) -> TlsStream<TcpStream> {
    raw_tls_connect(edge.address(), "localhost", Alpn::H1, &edge.trust()).await.expect("connects")
}

/// Reads until `text` has come; what came.
async fn read_until(stream: &mut TlsStream<TcpStream>, received: &mut BytesMut, text: &str) -> String {
    loop {
        if let Some(at) = received.windows(text.len()).position(|part| part == text.as_bytes()) {
            return String::from_utf8_lossy(&received.split_to(at + text.len())).into_owned();
        }
        let read = tokio::time::timeout(10 * SECOND, stream.read_buf(received)).await;
        let so_far = String::from_utf8_lossy(received);
        let read = read.unwrap_or_else(|_| panic!("no {text:?} in {so_far:?}")).expect("reads");
        assert!(read > 0, "the end instead of {text:?} behind {so_far:?}");
    }
}

#[test]
fn expect_100_continue_is_met_when_the_provider_is_there() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            let head = |length: u64| {
                format!(
                    "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\
                     x-script: size=4\r\n\r\n"
                )
            };
            stream.write_all(head(5).as_bytes()).await.expect("writes");
            let interim = read_until(&mut stream, &mut received, "\r\n\r\n").await;
            assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
            stream.write_all(b"hello").await.expect("writes");
            let answer = read_until(&mut stream, &mut received, "\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert_eq!(rig.provider.last().body_len, 5);

            // Refused before a byte of the body: no 100.
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            stream.write_all(head(1 << 40).as_bytes()).await.expect("writes");
            let answer = read_until(&mut stream, &mut received, "\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert!(answer.contains("connection: close"), "{answer}");
        });
    }
    // No provider, no 100.
    let edge = Edge::with(&format!("https://127.0.0.1:{}", closed_port()), &Ca::new("none").pem(), setup(""));
    runtime().block_on(async {
        let mut stream = raw(&edge).await;
        let head =
            format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("writes");
        let answer = read_until(&mut stream, &mut BytesMut::new(), "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    });
}

#[test]
fn old_clients_closing_clients_and_hasty_clients() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let get = |version: &str, extra: &str, script: &str| {
                format!("GET /openai/v1/models HTTP/{version}\r\nhost: localhost\r\n{extra}x-script: {script}\r\n\r\n")
            };
            // HTTP/1.0: the end of the connection is the end of the answer.
            for script in ["size=70000;len=known", "size=70000;len=chunked"] {
                let mut stream = raw(&rig.edge).await;
                stream.write_all(get("1.0", "", script).as_bytes()).await.expect("writes");
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.expect("a clean end");
                let text = String::from_utf8_lossy(&answer);
                let (head, _) = text.split_once("\r\n\r\n").expect("head");
                assert!(head.starts_with("HTTP/1.0 200") && !head.contains("transfer-encoding"), "{head}");
                assert_eq!(answer.len() - head.len() - 4, 70_000, "{upstream:?} {script}");
            }
            // HTTP/1.0 with keep-alive.
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            for _ in 0..2 {
                stream.write_all(get("1.0", "connection: keep-alive\r\n", "size=0").as_bytes()).await.expect("writes");
                let head = read_until(&mut stream, &mut received, "\r\n\r\n").await;
                assert!(head.contains("connection: keep-alive") && head.contains("content-length: 0"), "{head}");
            }
            // The client's wish to close is met.
            let mut stream = raw(&rig.edge).await;
            stream.write_all(get("1.1", "connection: close\r\n", "size=0").as_bytes()).await.expect("writes");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("a clean end");
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
            // Pipelined requests are answered in order.
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            let all: String = (1..=5)
                .map(|number| {
                    get("1.1", "", &format!("size=0;header=x-number:{number};head_delay_ms={}", 60 - 10 * number))
                })
                .collect();
            stream.write_all(all.as_bytes()).await.expect("writes");
            for number in 1..=5 {
                let head = read_until(&mut stream, &mut received, "\r\n\r\n").await;
                assert!(head.contains(&format!("x-number: {number}\r\n")), "{head}");
            }
        });
    }
}

/// The next answer on an h1 connection: its head in lower case, and its body. Interim answers are passed over.
async fn next_answer(stream: &mut TlsStream<TcpStream>, received: &mut BytesMut) -> (String, Vec<u8>) {
    let head = loop {
        let head = read_until(stream, received, "\r\n\r\n").await.to_lowercase();
        if !head.starts_with("http/1.1 1") {
            break head;
        }
    };
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = Vec::new();
    if field("transfer-encoding:").is_some() {
        loop {
            let line = read_until(stream, received, "\r\n").await;
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("no size: {line:?}"));
            if size == 0 {
                // Trailers are not looked at here.
                while read_until(stream, received, "\r\n").await != "\r\n" {}
                break;
            }
            body.extend(read_bytes(stream, received, size).await);
            assert_eq!(read_bytes(stream, received, 2).await, b"\r\n");
        }
    } else if let Some(length) = field("content-length:") {
        body = read_bytes(stream, received, length.parse().expect("a length")).await;
    }
    (head, body)
}

async fn read_bytes(stream: &mut TlsStream<TcpStream>, received: &mut BytesMut, count: usize) -> Vec<u8> {
    while received.len() < count {
        let read = tokio::time::timeout(10 * SECOND, stream.read_buf(received)).await.expect("in time").expect("reads");
        assert!(read > 0, "the end after {} of {count} bytes", received.len());
    }
    received.split_to(count).to_vec()
}

/// What comes until the end.
async fn rest(stream: &mut TlsStream<TcpStream>, received: &mut BytesMut) -> Vec<u8> {
    while tokio::time::timeout(30 * SECOND, stream.read_buf(received))
        .await
        .expect("in time")
        .is_ok_and(|read| read > 0)
    {}
    received.to_vec()
}

#[test]
fn pipelined_requests_keep_their_bodies_and_their_order() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let one = |number: usize| {
                let (field, body) = match number % 4 {
                    0 => ("content-length: 5\r\n".to_owned(), "hello".to_owned()),
                    1 => ("transfer-encoding: chunked\r\n".to_owned(), "3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n".to_owned()),
                    // As much as stands in many records.
                    2 => ("content-length: 40000\r\n".to_owned(), "x".repeat(40_000)),
                    _ => (String::new(), String::new()),
                };
                let framing = ["known", "chunked"][number % 2];
                format!(
                    "POST /openai/v1/n{number} HTTP/1.1\r\nhost: localhost\r\n{field}\
                     x-script: size={};len={framing};head_delay_ms={}\r\n\r\n{body}",
                    100 * number,
                    20 - 2 * number
                )
            };
            for count in [2, 10] {
                rig.provider.forget();
                let mut stream = raw(&rig.edge).await;
                let mut received = BytesMut::new();
                let all: String = (0..count).map(one).collect();
                let (mut reading, mut writing) = tokio::io::split(stream);
                let sending = tokio::spawn(async move {
                    writing.write_all(all.as_bytes()).await.expect("writes");
                    writing.flush().await.expect("writes");
                    writing
                });
                // The whole is more than buffers hold: read before all is written.
                let first = reading.read_buf(&mut received).await.expect("reads");
                assert!(first > 0);
                stream = reading.unsplit(sending.await.expect("joins"));
                for number in 0..count {
                    let (head, body) = next_answer(&mut stream, &mut received).await;
                    assert!(head.starts_with("http/1.1 200 "), "{upstream:?}, {number} of {count}: {head}");
                    assert_eq!(body.len(), 100 * number, "{upstream:?}, {number} of {count}");
                }
                let seen = rig.provider.requests();
                for (number, seen) in seen.iter().enumerate() {
                    assert!(seen.path.ends_with(&format!("n{number}")), "{upstream:?}: {} as {number}", seen.path);
                    assert_eq!(seen.body_len, [5, 5, 40_000, 0][number % 4], "{upstream:?}, {number} of {count}");
                }
                assert_eq!(seen.len(), count, "{upstream:?}");
            }
        });
    }
}

#[test]
fn heads_and_chunk_lines_may_come_byte_by_byte() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            let text = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nx-script: size=7\r\n\r\n\
                 6;a=b\r\nhello \r\n0005\r\nworld\r\n0\r\nx-sum: 1\r\n\r\n"
            );
            for _ in 0..2 {
                for byte in text.bytes() {
                    stream.write_all(&[byte]).await.expect("writes");
                    stream.flush().await.expect("writes");
                    // Now and then they are apart on the wire, too.
                    tokio::task::yield_now().await;
                }
                let (head, body) = next_answer(&mut stream, &mut received).await;
                assert!(head.starts_with("http/1.1 200 ") && body.len() == 7, "{upstream:?}: {head}");
                let seen = rig.provider.last();
                assert_eq!((seen.body_len, seen.body_end), (11, BodyEnd::Clean), "{upstream:?}");
                assert_eq!(seen.body_sha256, Some(sha256(b"hello world")), "{upstream:?}");
            }
        });
    }
}

#[test]
fn a_client_that_expects_a_word_gets_it_before_its_answer_or_never() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let head = |target: &str, length: u64| {
                format!(
                    "POST {target} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\
                     x-script: size=4\r\n\r\n"
                )
            };
            // It does not wait for the word.
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            for _ in 0..2 {
                stream.write_all((head(CHAT, 5) + "hello").as_bytes()).await.expect("writes");
                let (head, body) = next_answer(&mut stream, &mut received).await;
                assert!(head.starts_with("http/1.1 200 ") && body.len() == 4, "{upstream:?}: {head}");
                assert_eq!(rig.provider.last().body_len, 5);
            }
            // Refused: the body is read away, and its client is not asked for it behind the answer.
            for (target, length, status) in [(CHAT, 1 << 40, "413"), ("/nowhere", 5, "404")] {
                let mut stream = raw(&rig.edge).await;
                let mut received = BytesMut::new();
                stream.write_all(head(target, length).as_bytes()).await.expect("writes");
                let (head, body) = next_answer(&mut stream, &mut received).await;
                assert!(head.starts_with(&format!("http/1.1 {status} ")) && !body.is_empty(), "{upstream:?}: {head}");
                let more = tokio::time::timeout(SECOND, stream.read_buf(&mut received)).await;
                assert!(received.is_empty(), "{upstream:?}, {status}: {more:?} {received:?}");
            }
            // What it sends all the same leaves the connection of use.
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            stream.write_all((head("/nowhere", 5) + "hello" + &head(CHAT, 2) + "{}").as_bytes()).await.expect("writes");
            let (refused, _) = next_answer(&mut stream, &mut received).await;
            assert!(refused.starts_with("http/1.1 404 "), "{refused}");
            if !refused.contains("connection: close") {
                let (head, body) = next_answer(&mut stream, &mut received).await;
                assert!(head.starts_with("http/1.1 200 ") && body.len() == 4, "{upstream:?}: {head}");
            }
        });
    }
}

#[test]
fn old_clients_keep_what_has_a_length() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let post = |script: &str| {
                format!(
                    "POST {CHAT} HTTP/1.0\r\nhost: localhost\r\nconnection: Keep-Alive\r\ncontent-length: 5\r\n\
                     x-script: {script}\r\n\r\nhello"
                )
            };
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            for _ in 0..3 {
                stream.write_all(post("size=5;len=known").as_bytes()).await.expect("writes");
                let (head, body) = next_answer(&mut stream, &mut received).await;
                assert!(head.contains("connection: keep-alive\r\n") && body.len() == 5, "{upstream:?}: {head}");
                assert_eq!(rig.provider.last().body_len, 5);
            }
            // Without one, its end is the connection's.
            stream.write_all(post("size=70000;len=chunked").as_bytes()).await.expect("writes");
            let (head, _) = next_answer(&mut stream, &mut received).await;
            assert!(!head.contains("keep-alive") && !head.contains("transfer-encoding"), "{upstream:?}: {head}");
            assert_eq!(rest(&mut stream, &mut received).await.len(), 70_000, "{upstream:?}");
        });
    }
}

#[test]
fn trailers_reach_who_asked_for_them() {
    for upstream in BOTH {
        let rig = Rig::new(upstream);
        rig.runtime.block_on(async {
            let script = "size=3;len=chunked;trailer=x-checksum:abc;header=trailer:x-checksum";
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            for (asks, passes) in [("", false), ("te: trailers\r\nconnection: te\r\n", true), ("te: gzip\r\n", false)] {
                let get =
                    format!("GET /openai/v1/models HTTP/1.1\r\nhost: localhost\r\n{asks}x-script: {script}\r\n\r\n");
                stream.write_all(get.as_bytes()).await.expect("writes");
                read_until(&mut stream, &mut received, "\r\n\r\n").await;
                let chunks = read_until(&mut stream, &mut received, "\r\n0\r\n").await;
                assert!(chunks.starts_with("3\r\n"), "{upstream:?}: {chunks:?}");
                let end = if passes { "x-checksum: abc\r\n\r\n" } else { "\r\n" };
                assert_eq!(
                    read_bytes(&mut stream, &mut received, end.len()).await,
                    end.as_bytes(),
                    "{upstream:?} {asks}"
                );
                assert!(received.is_empty(), "{upstream:?} {asks}: {received:?}");
            }
        });
    }
}

#[test]
fn trailers_say_nothing_that_belongs_before_a_body() {
    let fields = [
        ("x-checksum", "abc"),
        ("content-length", "7"),
        ("content-type", "text/evil"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-1/2"),
        ("set-cookie", "a=b"),
        ("trailer", "x-other"),
        ("host", "evil"),
        ("authorization", "Bearer evil"),
        ("www-authenticate", "Basic"),
        ("cache-control", "public"),
        ("location", "/evil"),
        ("retry-after", "9"),
        ("date", "never"),
        ("alt-svc", "h3"),
        ("x-last", "1"),
    ];
    // A peer on h2 must not send these at all (RFC 9113 section 8.2.2).
    let of_connection = [
        ("transfer-encoding", "chunked"),
        ("connection", "x-hop"),
        ("keep-alive", "1"),
        ("upgrade", "x"),
        ("x-hop", "1"),
    ];
    let check = |pair: &str, answer: Answer| {
        let trailers = answer.trailers.unwrap_or_else(|| panic!("{pair}: none"));
        let mut names: Vec<_> = trailers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-checksum", "x-last"], "{pair}");
        assert_eq!(answer.body.len(), 2, "{pair}");
    };
    let runtime = runtime();
    let ask = async |edge: &Edge, alpn: Alpn, script: &str| {
        let mut client = edge.connect(alpn).await;
        let request = ask(&client, "GET", "/openai/v1/models", script).header("te", "trailers");
        client.fetch(request.body(FullBody::new("")).expect("request")).await.expect("answer")
    };
    // By hand: a library may leave some out.
    let lines: String =
        fields.iter().chain(&of_connection).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum, x-last, set-cookie\r\n\r\n";
    let steps = vec![Step::ExpectHead, Step::write(format!("{head}2\r\nok\r\n0\r\n{lines}\r\n")), Step::Again];
    let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
    for alpn in BOTH {
        check(&format!("{alpn:?} to H1"), runtime.block_on(ask(&edge, alpn, "")));
    }
    assert_eq!(provider.connects(), 1, "the line is of use again");
    let script: String =
        fields.iter().map(|(name, value)| format!(";trailer={name}:{}", value.replace(' ', "%20"))).collect();
    let rig = Rig::new(Alpn::H2);
    for alpn in BOTH {
        check(
            &format!("{alpn:?} to H2"),
            rig.runtime.block_on(ask(&rig.edge, alpn, &format!("size=2;len=chunked{script}"))),
        );
        // Where nothing is left there are none.
        let answer = rig.runtime.block_on(ask(&rig.edge, alpn, "size=2;len=chunked;trailer=set-cookie:a"));
        assert_eq!((answer.body.len(), answer.trailers.unwrap_or_default().len()), (2, 0), "{alpn:?}");
    }
}

#[test]
fn a_client_that_ends_its_side_has_left() {
    use nullhop_loadtests::tls::Versions;
    trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {}
    impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Stream for T {}

    for upstream in BOTH {
        let provider = Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() });
        let provider = provider.expect("provider");
        let listener = "[[listener]]\naddress = \"127.0.0.1:0\"\n\
                        [[listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\ntls = false\n";
        let edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { listener: listener.to_owned(), ..setup("") });
        runtime().block_on(async {
            for versions in [Some(Versions::Tls12), Some(Versions::Tls13), None] {
                let connect = async || {
                    let address = edge.listeners[usize::from(versions.is_none())];
                    let tcp = TcpStream::connect(address).await.expect("connects");
                    let Some(versions) = versions else { return Box::new(tcp) as Box<dyn Stream> };
                    let config = edge.trust().client_config_of(Alpn::H1, versions).expect("a configuration");
                    let name = "localhost".try_into().expect("a name");
                    let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await;
                    Box::new(tls.expect("shakes hands"))
                };
                for (script, begun) in [("never=1", false), ("events=100000;period_us=5000", true)] {
                    let what = format!("{upstream:?}, {versions:?}, {script}");
                    let account = Account::open(&edge, "client_abort");
                    let mut stream = connect().await;
                    let seen = provider.state().requests;
                    let text = format!(
                        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-script: {script}\r\ncontent-length: 2\r\n\r\n{{}}"
                    );
                    stream.write_all(text.as_bytes()).await.expect("writes");
                    stream.flush().await.expect("writes");
                    let arrived = provider.wait_for(|state| state.requests > seen, 20 * SECOND).await;
                    assert!(arrived, "{what}: never arrived");
                    if begun {
                        assert!(stream.read(&mut [0; 1000]).await.expect("reads") > 0, "{what}");
                    }
                    stream.shutdown().await.expect("ends its side");
                    // It would read on, and gets no whole answer.
                    let mut rest = Vec::new();
                    let end = tokio::time::timeout(20 * SECOND, stream.read_to_end(&mut rest)).await;
                    assert!(end.is_ok(), "{what}: goes on");
                    assert!(!rest.ends_with(b"0\r\n\r\n") && (begun || rest.is_empty()), "{what}: {rest:?}");
                    let felt =
                        provider.wait_for(|state| state.last().is_some_and(|seen| seen.aborted), 20 * SECOND).await;
                    assert!(felt, "{what}: never felt");
                    account.closed_with(1.0, &what);
                }
                // What nullhop says by itself is said.
                let mut stream = connect().await;
                let text = "POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(text.as_bytes()).await.expect("writes");
                stream.shutdown().await.expect("ends its side");
                let mut answer = Vec::new();
                let _ = tokio::time::timeout(20 * SECOND, stream.read_to_end(&mut answer)).await.expect("an end");
                assert!(answer.starts_with(b"HTTP/1.1 404 "), "{upstream:?}, {versions:?}: {answer:?}");
            }
        });
    }
}

#[test]
fn a_line_is_used_again_after_a_whole_answer_and_only_then() {
    let whole = [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n",
        "HTTP/1.1 103 x\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 204 x\r\n\r\n",
        "HTTP/1.1 304 x\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
    ];
    let done = [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokX",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nX",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nX",
        "HTTP/1.1 204 x\r\n\r\nX",
        "HTTP/1.1 204 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 304 x\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ];
    let runtime = runtime();
    for (answer, connects) in whole.iter().map(|answer| (answer, 1)).chain(done.iter().map(|answer| (answer, 3))) {
        let steps = vec![Step::ExpectHead, Step::write(answer), Step::Again];
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
        runtime.block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            for _ in 0..3 {
                let got = fetch(&mut client, "GET", "/openai/v1/models", "", "").await;
                assert!(got.body == "ok" || got.body.is_empty(), "{answer:?}: {:?}", got.body);
                assert_eq!(got.header("connection"), "", "{answer:?}");
            }
        });
        assert_eq!(provider.connects(), connects, "{answer:?}");
    }
    // The same for HEAD, whose answer ends with its head whatever that says.
    for (extra, connects) in [("", 1), ("ok", 3)] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{extra}");
        let steps = vec![Step::ExpectHead, Step::write(answer), Step::Again];
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
        runtime.block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            for _ in 0..3 {
                let got = fetch(&mut client, "HEAD", "/openai/v1/models", "", "").await;
                assert_eq!((got.header("content-length"), got.body.len()), ("2", 0));
            }
        });
        assert_eq!(provider.connects(), connects, "HEAD, {extra:?} behind it");
    }
}

#[test]
fn an_early_refusal_arrives_and_leaves_the_client_its_connection() {
    const TOO_LARGE: &str = "HTTP/1.1 413 x\r\ncontent-length: 2\r\n\r\nno";
    let runtime = runtime();
    // One that keeps its connection does not read, so that half of a request stays on it.
    for end in [Step::Sleep(MINUTE), Step::Close, Step::Fin] {
        let steps = vec![Step::ExpectHead, Step::write(TOO_LARGE), end.clone()];
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
        runtime.block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            for round in 1..=4 {
                client.ready().await.expect("ready");
                let request = ask(&client, "POST", CHAT, "").body(PatternBody::new(20 << 20)).expect("request");
                let answer = tokio::time::timeout(MINUTE, client.fetch(request)).await;
                let answer = answer.unwrap_or_else(|_| panic!("{end:?}, {round}: no answer"));
                let answer = answer.unwrap_or_else(|error| panic!("{end:?}, {round}: {error}"));
                assert_eq!((answer.status(), answer.text().as_str()), (413, "no"), "{end:?}, {round}");
                assert_eq!(provider.connects(), round, "{end:?}");
            }
        });
        assert_eq!(edge.metric("nullhop_upstream_retries_total", &[]), 0.0);
    }
}

#[test]
fn a_client_that_asks_early_and_leaves_is_felt_within_a_second() {
    let rig = Rig::new(Alpn::H1);
    rig.runtime.block_on(async {
        for wait in [20 * MS, 2500 * MS] {
            let account = Account::open(&rig.edge, "client_abort");
            let mut stream = raw(&rig.edge).await;
            let mut received = BytesMut::new();
            let post = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\
                 x-script: events=100000;period_us=5000\r\n\r\n{{}}"
            );
            stream.write_all(post.as_bytes()).await.expect("writes");
            read_until(&mut stream, &mut received, "data:").await;
            stream.write_all(post.as_bytes()).await.expect("writes");
            let deadline = Instant::now() + wait;
            while Instant::now() < deadline {
                let _ = tokio::time::timeout(wait, stream.read_buf(&mut received)).await;
                received.clear();
            }
            let left = Instant::now();
            stream.shutdown().await.expect("ends");
            let gone = rig.provider.wait_for(|state| state.last().is_some_and(|seen| seen.aborted), 20 * SECOND).await;
            assert!(gone, "never felt");
            let took = rig.provider.last().ended_at.expect("ended").saturating_duration_since(left);
            assert!(took < SECOND, "felt after {took:?}");
            account.closed_with(1.0, "asked early");
            rig.provider.forget();
        }
    });
}

// ---------------------------------------------------------------------------------------------
// Pools and endpoints

fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("address").port()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_stale_connection_costs_no_request() {
    let runtime = runtime();
    // Closed while idle: seen before it is used.
    for end in [Step::Fin, Step::Close, Step::Reset] {
        let steps = vec![Step::ExpectHead, Step::ReadBody(2), Step::write(OK), Step::Sleep(30 * MS), end.clone()];
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
        runtime.block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            for _ in 0..3 {
                let answer = fetch(&mut client, "POST", CHAT, "", "{}").await;
                assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{end:?}");
                tokio::time::sleep(100 * MS).await;
            }
        });
        assert_eq!(provider.connects(), 3);
    }
    // Closed when the next request is on its way: sent again, unless its body was touched.
    let steps = vec![Step::ExpectHead, Step::write(OK), Step::ExpectHead, Step::Fin];
    let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps).expect("provider");
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
    runtime.block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        for _ in 0..2 {
            assert_eq!(fetch(&mut client, "GET", "/openai/v1/models", "", "").await.status(), 200);
        }
        assert_eq!(edge.metric("nullhop_upstream_retries_total", &["reason=\"reset\""]), 1.0);
        let heads = provider.heads().len();
        assert_eq!(fetch(&mut client, "POST", CHAT, "", "{}").await.status(), 502);
        assert_eq!(provider.heads().len(), heads + 1, "sent once");
        assert_eq!(edge.metric("nullhop_upstream_retries_total", &["reason=\"reset\""]), 1.0);
    });
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_connection_is_used_again_by_its_tenant_alone() {
    let rig = Rig::new(Alpn::H1);
    rig.runtime.block_on(async {
        let mut client = rig.edge.connect(Alpn::H2).await;
        for _ in 0..5 {
            fetch(&mut client, "POST", CHAT, "size=10", "{}").await;
            tokio::time::sleep(20 * MS).await;
        }
        assert_eq!(rig.provider.connects(), 1, "the pool works");
        let request = Request::post(format!("https://localhost{CHAT}")).header("authorization", "Bearer other");
        client
            .fetch(request.header("x-script", "size=10").body(FullBody::new("{}")).expect("request"))
            .await
            .expect("answer");
        assert_eq!(rig.provider.connects(), 2, "tenants do not share");
        // Nobody in particular: never shared.
        for _ in 0..2 {
            let request = Request::post(format!("https://localhost{CHAT}")).header("x-script", "size=10");
            client.fetch(request.body(FullBody::new("{}")).expect("request")).await.expect("answer");
        }
        assert_eq!(rig.provider.connects(), 4);
    });
}

#[test]
fn a_late_answer_reaches_nobody() {
    let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), lies::second_answer(300 * MS)).expect("provider");
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup(""));
    runtime().block_on(async {
        for alpn in BOTH {
            let mut client = edge.connect(alpn).await;
            let mut get = async |key: &str| {
                client.ready().await.expect("ready");
                let request = ask(&client, "GET", "/openai/v1/models", "");
                let mut request = request.body(FullBody::empty()).expect("request");
                request.headers_mut().insert("authorization", key.parse().expect("value"));
                client.fetch(request).await.expect("answer").text()
            };
            assert_eq!(get("Bearer a").await, "first");
            // While the late answer is still to come.
            assert_eq!(get("Bearer b").await, "first");
            tokio::time::sleep(500 * MS).await;
            assert_eq!(get("Bearer c").await, "first");
            // The same tenant does not get it either.
            assert_eq!(get("Bearer a").await, "first");
            assert_eq!(get("Bearer b").await, "first");
            tokio::time::sleep(500 * MS).await;
        }
    });
}

fn endpoints(list: &[(String, u32)], settings: &str) -> String {
    let endpoints: String = list
        .iter()
        .map(|(url, weight)| format!("[[upstream.endpoint]]\nurl = \"{url}\"\nweight = {weight}\n"))
        .collect();
    format!(
        "[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n{{ca}}\nretention = {{ allow = [\"all\"] }}\n{settings}\n{endpoints}"
    )
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    for upstream in BOTH {
        let provider =
            Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() }).expect("provider");
        let list = [(format!("https://127.0.0.1:{}", closed_port()), 1), (provider.url(), 1)];
        let edge = Edge::with(
            &provider.url(),
            provider.ca_pem(),
            Setup { upstreams: Some(endpoints(&list, "")), ..setup("") },
        );
        runtime().block_on(async {
            let mut client = edge.connect(Alpn::H1).await;
            for _ in 0..20 {
                assert_eq!(fetch(&mut client, "POST", CHAT, "size=10", "{}").await.status(), 200, "{upstream:?}");
            }
            let refused = edge.metric("nullhop_upstream_connects_total", &["result=\"refused\""]);
            assert_eq!(refused, 3.0, "{upstream:?}: paused after three failures");
            assert_eq!(edge.metric("nullhop_upstream_retries_total", &["reason=\"connect\""]), 3.0);
            assert_eq!(edge.metric("nullhop_upstream_up", &["upstream=\"openai\""]), 1.0);
            // WebSockets as well, where the provider can.
            for _ in 0..if upstream == Alpn::H1 { 3 } else { 0 } {
                tokio::time::sleep(800 * MS).await;
                let stream = raw(&edge).await;
                WebSocket::connect(stream, "localhost", "/openai/v1/realtime", "").await.expect("upgrades");
            }
        });
    }
}

#[test]
fn weights_share_the_requests_out() {
    let ca = Arc::new(Ca::new("weights"));
    let spawn =
        || Provider::spawn(ProviderOptions { ca: Some(ca.clone()), ..ProviderOptions::default() }).expect("provider");
    let (heavy, light) = (spawn(), spawn());
    let list = [(heavy.url(), 3), (light.url(), 1)];
    let edge = Edge::with(&heavy.url(), &ca.pem(), Setup { upstreams: Some(endpoints(&list, "")), ..setup("") });
    runtime().block_on(async {
        let mut client = edge.connect(Alpn::H2).await;
        for _ in 0..40 {
            assert_eq!(fetch(&mut client, "POST", CHAT, "size=10", "{}").await.status(), 200);
        }
    });
    assert_eq!((heavy.state().requests, light.state().requests), (30, 10));
}

#[test]
fn with_no_endpoint_left_the_answer_is_a_502_and_the_upstream_down() {
    let list =
        [(format!("https://127.0.0.1:{}", closed_port()), 1), (format!("https://127.0.0.1:{}", closed_port()), 1)];
    let setup = Setup { upstreams: Some(endpoints(&list, "")), ..setup("") };
    let edge = Edge::with("https://unused", &Ca::new("none").pem(), setup);
    runtime().block_on(async {
        for alpn in BOTH {
            let mut client = edge.connect(alpn).await;
            for _ in 0..3 {
                assert_eq!(fetch(&mut client, "POST", CHAT, "", "{}").await.status(), 502);
            }
        }
    });
    assert!(edge.wait_for_metric("nullhop_upstream_up", &["upstream=\"openai\""], |up| up == 0.0, 20 * SECOND));
    assert!(edge.metric("nullhop_upstream_failures_total", &["reason=\"connect\""]) >= 6.0);
}

#[test]
fn a_full_upstream_is_overloaded_and_nothing_else_suffers() {
    for upstream in BOTH {
        let options = ProviderOptions { alpn: upstream, h2_streams_max: 1, ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup("connections = 1\nconnect_timeout = \"1s\""));
        runtime().block_on(async {
            for (path, status, kind) in [(CHAT, 503, "overloaded"), ("/anthropic/v1/messages", 529, "overloaded_error")]
            {
                let mut holder = edge.connect(Alpn::H1).await;
                let request = ask(&holder, "POST", path, "events=30;period_us=100000").body(FullBody::new("{}"));
                let held = holder.send(request.expect("request")).await.expect("head");
                let account = Account::open(&edge, "unavailable");
                let mut client = edge.connect(Alpn::H2).await;
                let answer = fetch(&mut client, "POST", path, "", "{}").await;
                assert_eq!(answer.status(), status, "{upstream:?}");
                assert_eq!(answer.header("retry-after"), "1");
                let error = &answer.json()["error"];
                assert_eq!(if status == 529 { &error["type"] } else { &error["code"] }, kind);
                let received = Received::read(held, 0).await;
                assert!(received.error.is_none() && received.len > 0, "{upstream:?}");
                // With the place free again the next one passes.
                assert_eq!(fetch(&mut client, "POST", path, "", "{}").await.status(), 200, "{upstream:?}");
                let refused = edge.metric("nullhop_requests_total", &["outcome=\"unavailable\""]);
                assert_eq!(refused - account.of_outcome, 1.0, "{upstream:?}");
            }
        });
    }
}

// ---------------------------------------------------------------------------------------------
// Silence

#[test]
fn a_stream_that_stays_silent_too_long_is_cut() {
    Rig::on_all_pairs("silence_timeout = \"1s\"\nhead_timeout = \"1s\"", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;
        let account = Account::open(&rig.edge, "upstream_timeout");
        let silent = rig.edge.metric("nullhop_upstream_failures_total", &["reason=\"idle_timeout\""]);
        let request =
            ask(&client, "POST", CHAT, "events=100;stall_after=2000").body(FullBody::new("{}")).expect("request");
        let started = Instant::now();
        let received = Received::read(client.send(request).await.expect("head"), 0).await;
        let took = started.elapsed();
        assert!(received.error.is_some(), "{pair}: ended cleanly");
        assert_eq!(received.len, 2000, "{pair}");
        assert!(took > 900 * MS && took < 10 * SECOND, "{pair}: {took:?}");
        account.closed_with(1.0, pair);
        let silent = rig.edge.metric("nullhop_upstream_failures_total", &["reason=\"idle_timeout\""]) - silent;
        assert_eq!(silent, 1.0, "{pair}");
        assert!(
            rig.provider.wait_for(|state| state.last().is_some_and(|seen| seen.aborted), 20 * SECOND).await,
            "{pair}"
        );

        // Longer than a second in all, but never silent for one.
        let mut client = rig.edge.connect(alpn).await;
        let answer = fetch(&mut client, "POST", CHAT, "events=6;period_us=400000", "{}").await;
        assert_eq!(answer.status(), 200, "{pair}");

        let account = Account::open(&rig.edge, "upstream_timeout");
        let started = Instant::now();
        let answer = fetch(&mut client, "POST", CHAT, "never=1", "{}").await;
        assert_eq!(
            (answer.status(), answer.json()["error"]["code"].as_str()),
            (504, Some("upstream_timeout")),
            "{pair}"
        );
        assert!(started.elapsed() < 10 * SECOND, "{pair}");
        account.closed_with(1.0, pair);
    });
}

#[test]
fn silence_is_allowed_by_default() {
    Rig::on_all_pairs("", async |rig, alpn, pair| {
        let mut client = rig.edge.connect(alpn).await;
        let started = Instant::now();
        let answer = fetch(&mut client, "POST", CHAT, "events=2;period_us=5000000", "{}").await;
        assert!(started.elapsed() >= 5 * SECOND && answer.text().ends_with("[DONE]\n\n"), "{pair}");
    });
}

// ---------------------------------------------------------------------------------------------
// WebSocket

const REALTIME: &str = "/openai/v1/realtime?model=m";

async fn upgraded(edge: &Edge, script: &str) -> WebSocket<TlsStream<TcpStream>> {
    let headers = format!("authorization: Bearer k\r\nx-script: {script}\r\n");
    WebSocket::connect(raw(edge).await, "localhost", REALTIME, &headers).await.expect("upgrades")
}

#[test]
fn websocket_frames_pass_as_they_are() {
    let rig = Rig::new(Alpn::Both);
    rig.runtime.block_on(async {
        let account = Account::open(&rig.edge, "ok");
        let headers =
            "sec-websocket-extensions: permessage-deflate\r\nsec-websocket-protocol: realtime\r\nx-script: ws=echo\r\n";
        let mut socket =
            WebSocket::connect(raw(&rig.edge).await, "localhost", REALTIME, headers).await.expect("upgrades");
        let seen = rig.provider.last();
        assert_eq!(seen.header("sec-websocket-extensions"), "", "no extension is offered on");
        assert_eq!(seen.header("sec-websocket-protocol"), "realtime");
        assert_eq!(seen.path, "/v1/realtime?model=m");
        assert_eq!(rig.edge.metric("nullhop_requests_in_flight", &[]), 1.0);
        for text in ["hello", "", &"x".repeat(1 << 20)] {
            socket.send_text(text).await.expect("sends");
            let back = socket.next_message().await.expect("reads").expect("message");
            assert!(back.opcode == Opcode::Text && back.payload == text.as_bytes());
        }
        socket.send(Frame::fragment(Opcode::Text, "one ", false)).await.expect("sends");
        socket.send(Frame::new(Opcode::Ping, "p")).await.expect("sends");
        socket.send(Frame::fragment(Opcode::Continuation, "two", true)).await.expect("sends");
        let pong = socket.next_message().await.expect("reads").expect("message");
        assert_eq!((pong.opcode, &pong.payload[..]), (Opcode::Pong, &b"p"[..]));
        let back = socket.next_message().await.expect("reads").expect("message");
        assert_eq!(&back.payload[..], b"one two");
        // Our close comes back with its code.
        socket.send(Frame::close(4001, "mine")).await.expect("sends");
        let close = socket.next_message().await.expect("reads").expect("message");
        assert_eq!((close.opcode, close.close_code()), (Opcode::Close, 4001));
        assert!(matches!(socket.next_frame().await, Ok(None)), "ends in order");
        account.closed_with(1.0, "echo");

        // The provider's close, and its ping.
        let mut socket = upgraded(&rig.edge, "ws=close4242").await;
        let close = socket.next_message().await.expect("reads").expect("message");
        assert_eq!((close.opcode, close.close_code()), (Opcode::Close, 4242));
        socket.send(Frame::close(4242, "")).await.expect("sends");
        assert!(matches!(socket.next_frame().await, Ok(None)), "ends in order");
        let mut socket = upgraded(&rig.edge, "ws=ping").await;
        let ping = socket.next_message().await.expect("reads").expect("message");
        assert_eq!(ping.opcode, Opcode::Ping);
    });
}

#[test]
fn websockets_that_are_refused_or_break() {
    let rig = Rig::new(Alpn::Both);
    rig.runtime.block_on(async {
        let stream = raw(&rig.edge).await;
        let headers = "x-script: ws=refuse;status=403\r\n";
        let refused = WebSocket::connect(stream, "localhost", REALTIME, headers).await.err().expect("refused");
        assert!(refused.to_string().starts_with("HTTP/1.1 403"), "{refused}");
        let stream = raw(&rig.edge).await;
        let refused =
            WebSocket::connect(stream, "localhost", "/anthropic/v1/messages", "").await.err().expect("refused");
        assert!(refused.to_string().starts_with("HTTP/1.1 426"), "{refused}");
        assert!(refused.to_string().contains("upgrade: "), "{refused}");

        // The provider breaks off: never an orderly end. It does so behind the first message.
        for script in ["ws=reset", "ws=fin"] {
            let account = Account::open(&rig.edge, "upstream_cut");
            let mut socket = upgraded(&rig.edge, script).await;
            socket.send_text("go").await.expect("sends");
            let end = socket.next_message().await;
            let kind = end.map(|frame| frame.map(|frame| frame.opcode)).expect_err("no clean end").kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "{script}");
            account.closed_with(1.0, script);
        }

        // The client leaves, in every way, while idle or while the provider does not read.
        for script in ["ws=echo", "ws=stall", "ws=flood;events=1000000;event_bytes=100000;period_us=1000"] {
            for way in ["drop", "reset", "fin"] {
                let account = Account::open(&rig.edge, "client_abort");
                let mut socket = upgraded(&rig.edge, script).await;
                if script != "ws=stall" {
                    socket.send_text("hello").await.expect("sends");
                    socket.next_message().await.expect("reads");
                }
                let left = Instant::now();
                let stream = socket.into_inner();
                match way {
                    "reset" => {
                        socket2::SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO)).expect("linger")
                    }
                    "fin" => {
                        socket2::SockRef::from(stream.get_ref().0).shutdown(std::net::Shutdown::Write).expect("FIN")
                    }
                    _ => {}
                }
                let kept = (way == "fin").then_some(stream);
                let gone =
                    rig.provider.wait_for(|state| state.last().is_some_and(|seen| seen.aborted), 20 * SECOND).await;
                assert!(gone, "{script} {way}: never felt");
                let took = rig.provider.last().ended_at.expect("ended").saturating_duration_since(left);
                assert!(took < SECOND, "{script} {way}: {took:?}");
                account.closed_with(1.0, &format!("{script} {way}"));
                drop(kept);
            }
        }
    });
}

/// A WebSocket's frames over an extended CONNECT.
struct ConnectSocket {
    send: h2::SendStream<bytes::Bytes>,
    receive: h2::RecvStream,
    received: BytesMut,
}

impl ConnectSocket {
    fn send(&mut self, frame: Frame) {
        self.send.send_data(frame.encode(Some([1, 2, 3, 4])), false).expect("sends");
    }

    /// None at the end of the stream.
    async fn next(&mut self) -> Option<Result<Frame, h2::Error>> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.received, Role::Client).expect("frame") {
                return Some(Ok(frame));
            }
            match self.receive.data().await? {
                Ok(data) => {
                    self.receive.flow_control().release_capacity(data.len()).expect("capacity");
                    self.received.extend_from_slice(&data);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[test]
fn websockets_over_h2() {
    let rig = Rig::new(Alpn::Both);
    rig.runtime.block_on(async {
        let tls =
            raw_tls_connect(rig.edge.address(), "localhost", Alpn::H2, &rig.edge.trust()).await.expect("connects");
        let (sender, connection) = h2::client::handshake(tls).await.expect("handshake");
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("ready");
        for _ in 0..100 {
            if sender.is_extended_connect_protocol_enabled() {
                break;
            }
            tokio::time::sleep(10 * MS).await;
        }
        assert!(sender.is_extended_connect_protocol_enabled());
        let mut open = async |target: &str, script: &str| {
            let request = Request::builder()
                .method("CONNECT")
                .uri(format!("https://localhost{target}"))
                .header("sec-websocket-version", "13")
                .header("authorization", "Bearer k")
                .header("x-script", script)
                .extension(h2::ext::Protocol::from_static("websocket"))
                .body(())
                .expect("request");
            let (response, send) = sender.send_request(request, false).expect("sends");
            let response = response.await.expect("answer");
            let status = response.status().as_u16();
            (status, ConnectSocket { send, receive: response.into_body(), received: BytesMut::new() })
        };
        let account = Account::open(&rig.edge, "ok");
        let (status, mut socket) = open(REALTIME, "ws=echo").await;
        assert_eq!(status, 200);
        for text in ["hello".to_owned(), "y".repeat(200_000)] {
            socket.send(Frame::new(Opcode::Text, text.clone()));
            let back = socket.next().await.expect("frame").expect("frame");
            assert!(back.payload == text.as_bytes());
        }
        socket.send(Frame::close(4003, ""));
        assert_eq!(socket.next().await.expect("frame").expect("frame").close_code(), 4003);
        let _ = socket.send.send_data(bytes::Bytes::new(), true);
        assert!(socket.next().await.is_none(), "ends in order");
        account.closed_with(1.0, "echo");

        let (status, _) = open(REALTIME, "ws=refuse;status=403").await;
        assert_eq!(status, 403);
        let (status, _) = open("/anthropic/v1/messages", "").await;
        assert_eq!(status, 426);

        // Broken by the provider: the stream is reset.
        for script in ["ws=reset", "ws=fin"] {
            let account = Account::open(&rig.edge, "upstream_cut");
            let (status, mut socket) = open(REALTIME, script).await;
            assert_eq!(status, 200);
            socket.send(Frame::new(Opcode::Text, "go"));
            assert!(matches!(socket.next().await, Some(Err(_))), "{script}: ended cleanly");
            account.closed_with(1.0, script);
        }

        // Left by the client: the provider sees it, the connection stays.
        let account = Account::open(&rig.edge, "client_abort");
        let (_, mut socket) = open(REALTIME, "ws=echo").await;
        socket.send(Frame::new(Opcode::Text, "hello"));
        socket.next().await.expect("frame").expect("frame");
        let left = Instant::now();
        socket.send.send_reset(h2::Reason::CANCEL);
        drop(socket);
        assert!(rig.provider.wait_for(|state| state.last().is_some_and(|seen| seen.aborted), 20 * SECOND).await);
        let took = rig.provider.last().ended_at.expect("ended").saturating_duration_since(left);
        assert!(took < SECOND, "{took:?}");
        account.closed_with(1.0, "left");
        let (status, _) = open(REALTIME, "ws=echo").await;
        assert_eq!(status, 200);
    });
}
