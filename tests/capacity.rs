//! What the edge holds: behind readers that stop, below gigabytes, under thousands of slow streams.
//! Sizes are small by default; `NULLHOP_SCALE=full` brings them to what is promised. The tests run
//! one after the other: each reads its own edge's memory, but they share the machine.

mod support;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use std::time::Instant;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::ClientOptions;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::pattern::pattern_sha256;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::parse_event;
use nullhop_loadtests::tls::Alpn;
use support::Edge;
use support::Setup;

const BOTH: [Alpn; 2] = [Alpn::H1, Alpn::H2];
const CHAT: &str = "/openai/v1/chat/completions";
const STREAMS: u64 = 64;

/// Held per stream whose reader has stopped, everything counted: the promise of `docs/walk.md`.
const STREAM_BYTES_MAX: u64 = 256 << 10;

/// Growth while any number of bytes passes.
const FLAT_BYTES_MAX: u64 = 8 << 20;

fn full_scale() -> bool {
    std::env::var("NULLHOP_SCALE").is_ok_and(|scale| scale == "full")
}

fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

fn rig(upstream: Alpn) -> (Provider, Edge) {
    let provider = Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() }).expect("provider");
    let setup = Setup {
        extra: "[limits]\nconnections_per_address = 20000\nbody_bytes = \"2GiB\"\n[memory]\nheap = \"plain\"\n"
            .to_owned(),
        upstream: "connections = 20000".to_owned(),
        ..Setup::default()
    };
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
    (provider, edge)
}

fn ask(client: &Client, script: &str) -> http::request::Builder {
    let builder = Request::post(if client.is_h2() { format!("https://localhost{CHAT}") } else { CHAT.to_owned() });
    let builder = if client.is_h2() { builder } else { builder.header("host", "localhost") };
    builder.header("authorization", "Bearer k").header("x-script", script)
}

/// As many connections as `streams` need: one each on h1, one for a hundred on h2.
async fn connect(edge: &Edge, alpn: Alpn, streams: u64, options: &ClientOptions) -> Vec<Client> {
    let per_connection = if alpn == Alpn::H2 { 100 } else { 1 };
    let (count, mut clients) = (streams.div_ceil(per_connection), Vec::new());
    while (clients.len() as u64) < count {
        let missing = (count - clients.len() as u64).min(32);
        let opening: Vec<_> = (0..missing)
            .map(|_| {
                let (address, options) = (edge.address(), options.clone());
                tokio::spawn(async move { Client::connect_with(address, "localhost", &options).await })
            })
            .collect();
        for opened in opening {
            clients.push(opened.await.expect("joins").expect("connects"));
        }
    }
    clients
}

/// Waits until a number stays the same; the number.
fn settled(mut number: impl FnMut() -> u64) -> u64 {
    let (mut last, mut since) = (number(), Instant::now());
    let deadline = since + Duration::from_secs(20);
    while since.elapsed() < Duration::from_millis(600) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        let now = number();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[test]
fn a_reader_that_stops_holds_little() {
    held("answers", "size=1000000000000;len=chunked", &|_| Box::new(FullBody::new("{}")));
}

#[test]
fn small_events_hold_little_too() {
    held("small events", "events=1000000000;event_bytes=200;len=chunked", &|_| Box::new(FullBody::new("{}")));
}

#[test]
fn a_provider_that_does_not_read_holds_little() {
    held("uploads", "read_stall=1", &|_| Box::new(PatternBody::new(1 << 30)));
}

type Body = Box<dyn http_body::Body<Data = bytes::Bytes, Error = nullhop_loadtests::BoxError> + Send + Unpin>;

fn held(kind: &str, script: &str, body: &dyn Fn(u64) -> Body) {
    let _alone = alone();
    let mut too_much = Vec::new();
    for upstream in BOTH {
        for alpn in BOTH {
            // A fresh process for each: what one pair has grown the heap to would hide the next.
            let (provider, edge) = rig(upstream);
            let runtime = runtime();
            let (held, pushed, queued) = runtime.block_on(async {
                let mut options = ClientOptions::new(alpn, edge.trust());
                options.h2_stream_window = 64 << 10;
                options.receive_buffer_bytes = Some(64 << 10);
                // Warm: every code path and cache has been paid for once.
                for client in &mut connect(&edge, alpn, 4, &options).await {
                    let request = ask(client, "size=300000").body(PatternBody::new(300_000)).expect("request");
                    client.fetch(request).await.expect("answer");
                }
                let before = settled(|| edge.rss());
                let mut clients = connect(&edge, alpn, STREAMS, &options).await;
                let mut open = Vec::new();
                for stream in 0..STREAMS {
                    let client = if alpn == Alpn::H2 { &mut clients[0] } else { &mut clients[stream as usize] };
                    client.ready().await.expect("ready");
                    let request = ask(client, script).body(http_body_of(body(stream))).expect("request");
                    // Held by its task: an answer's body is not read.
                    open.push(tokio::spawn(client.send(request)));
                }
                let moved = || provider.requests().iter().map(|seen| seen.response_bytes + seen.body_len).sum::<u64>();
                let pushed = settled(moved);
                let held = settled(|| edge.rss() >> 14) << 14;
                let (own_port, provider_port) = (edge.address().port(), provider.address().port());
                let queued: u64 = [(own_port, 0), (0, own_port), (provider_port, 0), (0, provider_port)]
                    .map(|(local, remote)| support::queues(local, remote))
                    .iter()
                    .map(|(received, sent)| received + sent)
                    .sum();
                for client in &clients {
                    client.abort(Ending::Reset);
                }
                (held.saturating_sub(before), pushed, queued)
            });
            let each = held / STREAMS;
            println!(
                "{kind}, {alpn:?} to {upstream:?}: {} KiB of memory a stream ({} KiB handed out by the provider, {} KiB queued in kernels)",
                each >> 10,
                (pushed / STREAMS) >> 10,
                (queued / STREAMS) >> 10,
            );
            if each > STREAM_BYTES_MAX {
                too_much.push(format!("{kind}, {alpn:?} to {upstream:?}: {} KiB", each >> 10));
            }
            assert!(edge.wait_for_metric(
                "nullhop_requests_in_flight",
                &[],
                |open| open == 0.0,
                Duration::from_secs(20)
            ));
        }
    }
    assert!(too_much.is_empty(), "{too_much:#?}");
}

fn http_body_of(body: Body) -> Body {
    body
}

/// The highest resident size while it lives.
struct Peak {
    highest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Peak {
    fn of(pid: u32) -> Self {
        let (highest, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (highest.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                let Ok(statm) = std::fs::read_to_string(format!("/proc/{pid}/statm")) else { return };
                let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
                shared.fetch_max(pages * 4096, SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { highest, stop }
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

#[test]
fn memory_stays_flat_while_gigabytes_pass() {
    let _alone = alone();
    let bytes: u64 = if full_scale() { 1 << 30 } else { 64 << 20 };
    let wanted = pattern_sha256(bytes);
    for upstream in BOTH {
        let (provider, edge) = rig(upstream);
        let runtime = runtime();
        for alpn in BOTH {
            runtime.block_on(async {
                let mut client = edge.connect(alpn).await;
                let mut down = async |bytes: u64| {
                    client.ready().await.expect("ready");
                    let request = ask(&client, &format!("size={bytes}")).body(FullBody::new("{}")).expect("request");
                    let received = Received::read(client.send(request).await.expect("head"), 0).await;
                    assert!(received.error.is_none(), "{:?}", received.error);
                    received.sha256
                };
                down(16 << 20).await;
                let before = edge.rss();
                let peak = Peak::of(edge.pid());
                let started = Instant::now();
                assert_eq!(down(bytes).await, wanted, "{alpn:?} to {upstream:?}");
                let (down_took, down_grew) = (started.elapsed(), peak.highest.load(SeqCst).saturating_sub(before));
                drop(peak);

                let mut up = async |bytes: u64| {
                    client.ready().await.expect("ready");
                    let request = ask(&client, "status=200").body(PatternBody::new(bytes)).expect("request");
                    assert_eq!(client.fetch(request).await.expect("answer").status(), 200);
                };
                up(16 << 20).await;
                let before = edge.rss();
                let peak = Peak::of(edge.pid());
                let started = Instant::now();
                up(bytes).await;
                let (up_took, up_grew) = (started.elapsed(), peak.highest.load(SeqCst).saturating_sub(before));
                assert_eq!(provider.last().body_sha256, Some(wanted), "{alpn:?} to {upstream:?}");
                println!(
                    "{alpn:?} to {upstream:?}, {} MiB: down {down_took:.1?}, {} KiB more; up {up_took:.1?}, {} KiB more",
                    bytes >> 20,
                    down_grew >> 10,
                    up_grew >> 10,
                );
                assert!(down_grew < FLAT_BYTES_MAX && up_grew < FLAT_BYTES_MAX, "{alpn:?} to {upstream:?}");
            });
        }
    }
}

#[test]
fn thousands_of_slow_streams_are_open_at_once() {
    let _alone = alone();
    let streams: u64 = if full_scale() { 5000 } else { 500 };
    let events = 8;
    // Long enough that the last stream is open before the first one ends.
    let period_us = if full_scale() { 5_000_000 } else { 500_000 };
    for (alpn, upstream) in [(Alpn::H1, Alpn::H1), (Alpn::H2, Alpn::H2)] {
        let (provider, edge) = rig(upstream);
        let runtime = runtime();
        runtime.block_on(async {
            let before = edge.rss();
            let started = Instant::now();
            let options = ClientOptions::new(alpn, edge.trust());
            let mut clients = connect(&edge, alpn, streams, &options).await;
            let connected = started.elapsed();
            let per_connection = streams / clients.len() as u64;
            let script = format!("events={events};period_us={period_us}");
            let mut open = Vec::new();
            for client in &mut clients {
                for _ in 0..per_connection {
                    client.ready().await.expect("ready");
                    let answering = client.send(ask(client, &script).body(FullBody::new("{}")).expect("request"));
                    open.push(tokio::spawn(async move { Received::read(answering.await.expect("head"), 1 << 20).await }));
                }
            }
            let all = edge.wait_for_metric(
                "nullhop_requests_in_flight",
                &[],
                |open| open == streams as f64,
                Duration::from_secs(60),
            );
            // The edge counts a request from its head on; the provider, once it is connected.
            let all = provider.wait_for(|state| state.open_streams == streams, Duration::from_secs(20)).await && all;
            let open_now = edge.metric("nullhop_requests_in_flight", &[]);
            let grew = edge.rss().saturating_sub(before);
            println!(
                "{alpn:?} to {upstream:?}: {open_now} streams open over {} and {} connections (connected in {connected:.1?}), {} KiB of memory a stream",
                clients.len(),
                provider.open_connections(),
                (grew / streams) >> 10,
            );
            assert!(all, "{open_now} of {streams} are open at once");
            for stream in open {
                let received = stream.await.expect("joins");
                assert!(received.error.is_none(), "{:?}", received.error);
                let text = received.body;
                assert!(text.ends_with(b"data: [DONE]\n\n"));
                let sequence: Vec<u64> = text
                    .split(|byte| *byte == b'\n')
                    .filter_map(|line| parse_event(line).map(|(sequence, _)| sequence))
                    .collect();
                assert_eq!(sequence, (0..events).collect::<Vec<_>>());
            }
        });
        assert_eq!(edge.metric("nullhop_requests_total", &["outcome=\"ok\""]), streams as f64);
        assert!(edge.wait_for_metric("nullhop_requests_in_flight", &[], |open| open == 0.0, Duration::from_secs(20)));
    }
}
