//! Nothing stays: the memory of the running process is searched for what has passed (`support::memory`).
//!
//! Each step sends words of its own, other ones in the request than in the answer, over all four pairs of HTTP versions,
//! and then searches all memory of nullhop for eight bytes of them or more. Covered:
//!
//! - bodies in mid-stream, of all chunks that were delivered: events of 1 byte to 1 MiB, one or several a write, cut at
//!   random; after the end, on connections that live on; bodies of 0 bytes to 50 MB in both directions
//! - errors of the upstream; an upstream that breaks off, in the head and in the body, in each way it can; clients that
//!   leave and uploads that break off, in each way they can
//! - slow readers: what is held while they stall, at most 256 KiB a stream, and that it is gone when they have caught up;
//!   the same for uploads that the upstream does not take
//! - many clients at once; WebSockets on h1 and h2; trailers; requests that nullhop refuses itself; reload and drain;
//!   TLS 1.2 and 1.3
//! - heads: credentials, paths, queries, header values, one second after the exchange's end, on connections that live on
//!
//! That the search is not blind: it finds what is planted in a process, what is in flight, and what stays when one of
//! the measures (`hygiene::measure`) is left out.

mod support;

use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use hyper::body::Incoming;
use nullhop_loadtests::client::BodySender;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::ClientOptions;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::encoding::Coding;
use nullhop_loadtests::h2raw;
use nullhop_loadtests::hpack;
use nullhop_loadtests::hpack::Field;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::io::Transport;
use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::Vector;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Versions;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use nullhop_loadtests::websocket::Role;
use nullhop_loadtests::websocket::WebSocket;
use nullhop_loadtests::words::content;
use nullhop_loadtests::words::text;
use nullhop_loadtests::words::word;
use support::Edge;
use support::Setup;
use support::memory::Search;

const CHAT: &str = "/openai/v1/chat/completions";
const REALTIME: &str = "/openai/v1/realtime?model=m";
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a stream may hold while its reader stalls (the retention contract's bound).
const STALLED_BYTES_MAX: usize = 256 << 10;

/// From one byte to 1 MiB; around the block of AES, h2's copies below 256 bytes, TLS records, windows and buffers.
const EVENT_SIZES: [usize; 16] =
    [1, 7, 8, 15, 16, 17, 64, 200, 255, 256, 300, 2 << 10, 16 << 10, 64 << 10, 200 << 10, 1 << 20];

/// Words that no other step has.
fn fresh() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// nullhop between a provider and clients, each of one HTTP version.
struct Rig {
    provider: Provider,
    edge: Edge,
    client: Alpn,
    versions: Versions,
    name: String,
    /// What was found, step by step.
    faults: Mutex<Vec<String>>,
}

/// How the rigs of a test are set up.
#[derive(Clone, Default)]
struct Plan {
    extra: &'static str,
    skip: &'static str,
    /// The retention policy is in force; otherwise any bytes may pass.
    strict: bool,
    client_versions: Versions,
    upstream_versions: Versions,
}

impl Rig {
    fn new(client: Alpn, upstream: Alpn, plan: &Plan) -> Self {
        let options = ProviderOptions {
            alpn: upstream,
            versions: plan.upstream_versions,
            hash_bodies: false,
            ..ProviderOptions::default()
        };
        let provider = Provider::spawn(options).expect("provider");
        let mut setup = Setup {
            extra: format!(
                "[runtime]\nworkers = 1\n[memory]\nheap = \"plain\"\n[limits]\nbody_bytes = \"64MiB\"\n{}",
                plan.extra
            ),
            ..Setup::default()
        };
        if plan.strict {
            let upstream =
                "[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\nurl = \"{url}\"\n{ca}\nusage = \"ask\"\n";
            setup.upstreams = Some(upstream.to_owned());
        }
        if !plan.skip.is_empty() {
            setup.environment.push(("NULLHOP_SKIP_MEASURES".to_owned(), plan.skip.to_owned()));
        }
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        let name = format!("{client:?} to {upstream:?}");
        let versions = plan.client_versions;
        Self { provider, edge, client, versions, name, faults: Mutex::default() }
    }

    fn run(&self, test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("runtime").block_on(test);
    }

    async fn connect(&self) -> Client {
        self.connect_with(|_| ()).await
    }

    async fn connect_with(&self, change: impl FnOnce(&mut ClientOptions)) -> Client {
        let mut options = ClientOptions::new(self.client, self.edge.trust());
        options.versions = self.versions;
        change(&mut options);
        Client::connect_with(self.edge.address(), "localhost", &options).await.expect("connects")
    }

    fn found(&self, search: &Search) -> usize {
        search.process(self.edge.pid()).total()
    }

    /// Nothing of these words is found, at the latest when a connection has come to the end of its turn.
    fn gone(&self, step: &str, seeds: &[u32]) {
        self.gone_all(step, &Search::of_words(seeds));
    }

    fn gone_all(&self, step: &str, search: &Search) {
        let deadline = Instant::now() + 2 * SECOND;
        loop {
            let found = search.process(self.edge.pid());
            if found.total() == 0 {
                return;
            }
            if Instant::now() > deadline {
                let found: Vec<usize> = found.0.into_iter().filter(|found| *found > 0).collect();
                let fault = format!("{}: {step}: {found:?} bytes found", self.name);
                self.faults.lock().expect("faults").push(fault);
                return;
            }
            std::thread::sleep(10 * MS);
        }
    }

    /// Waits until the latest request has brought its body this far.
    async fn uploaded(&self, bytes: u64) {
        let came = self.provider.wait_for(|state| state.last().is_some_and(|seen| seen.body_len >= bytes), 20 * SECOND);
        assert!(came.await, "{}: the upload does not arrive", self.name);
    }

    /// Both bodies open, `bytes` of each delivered in events of `size`.
    async fn open(&self, client: &mut Client, size: usize, bytes: usize, cuts: &str) -> Open {
        let (asked, answered) = (fresh(), fresh());
        let (sender, body) = ChannelBody::new(4);
        let script = format!("words={answered};size={};beside=1;hold_at={bytes};{cuts}", bytes + size);
        let answer = client.send(ask(client, &script).body(body).expect("request")).await.expect("answer");
        let mut body = answer.into_body();
        let all = content(asked, bytes);
        let up = async {
            for start in (0..bytes).step_by(size) {
                sender.send(all.slice(start..(start + size).min(bytes))).await.expect("taken");
            }
        };
        let down = async {
            let mut got = 0;
            while got < bytes {
                got += next_data(&mut body).await.expect("more").expect("data").len();
            }
            assert_eq!(got, bytes);
        };
        tokio::join!(up, down);
        self.uploaded(bytes as u64).await;
        Open { sender, body, asked, answered }
    }
}

/// An exchange in the middle of both its bodies.
struct Open {
    sender: BodySender,
    body: Incoming,
    asked: u32,
    answered: u32,
}

impl Open {
    fn seeds(&self) -> [u32; 2] {
        [self.asked, self.answered]
    }

    /// Both bodies to their ends.
    async fn finish(self, client: &mut Client) {
        let Self { sender, mut body, .. } = self;
        drop(sender);
        while let Some(data) = next_data(&mut body).await {
            data.expect("a good end");
        }
        client.ready().await.expect("lives on");
    }
}

/// The same test on all four pairs of HTTP versions at once; what was found in any of them fails it.
fn on_all_pairs(plan: &Plan, test: impl Fn(&Rig) + Sync) {
    let pairs = [(Alpn::H1, Alpn::H1), (Alpn::H2, Alpn::H1), (Alpn::H1, Alpn::H2), (Alpn::H2, Alpn::H2)];
    on_pairs(&pairs, plan, test);
}

fn on_pairs(pairs: &[(Alpn, Alpn)], plan: &Plan, test: impl Fn(&Rig) + Sync) {
    let faults: Vec<String> = std::thread::scope(|scope| {
        let test = &test;
        let of_pair = |(client, upstream): &(Alpn, Alpn)| {
            let (client, upstream) = (*client, *upstream);
            scope.spawn(move || {
                let rig = Rig::new(client, upstream, plan);
                test(&rig);
                rig.faults.into_inner().expect("faults")
            })
        };
        let threads: Vec<_> = pairs.iter().map(of_pair).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(faults.is_empty(), "{} steps left something:\n{}", faults.len(), faults.join("\n"));
}

fn ask(client: &Client, script: &str) -> http::request::Builder {
    ask_at(client, CHAT, script)
}

fn ask_at(client: &Client, path: &str, script: &str) -> http::request::Builder {
    let builder = if client.is_h2() {
        Request::post(format!("https://localhost{path}"))
    } else {
        Request::post(path).header("host", "localhost")
    };
    builder.header("authorization", "Bearer k").header("x-script", script)
}

/// How many bytes of events of `size` a step sends: some of them, and enough for the search.
fn some_events(size: usize) -> usize {
    (3 * size).min(size.max(400 << 10)).max(48 / size * size + size)
}

// The search itself.

#[test]
fn the_search_finds_what_is_there_and_counts_it() {
    let seed = fresh();
    let search = Search::of_words(&[seed, fresh()]);
    let all = content(seed, 4096);
    // Each length at each place, against a search by comparing.
    for len in [7, 8, 9, 11, 12, 16, 100, 1000] {
        for place in 0..9 {
            for phase in [0, 5, 13] {
                let mut memory = vec![0x55_u8; 2048];
                memory[place..place + len].copy_from_slice(&all[phase..phase + len]);
                let expected = if len < 8 { 0 } else { len };
                assert_eq!(search.slice(&memory).0, [expected, 0], "{len} bytes at {place}");
            }
        }
    }
    // In this very process: on the heap, on the stack, in a mapping of its own that crosses the blocks of the search.
    let me = std::process::id();
    for (kind, bytes) in [("heap", 40), ("mapping", 3 << 20)] {
        let seed = fresh();
        let kept: Vec<u8> = content(seed, bytes).to_vec();
        let found = Search::of_words(&[seed]).process(me).total();
        assert!(found >= bytes, "{kind}: {found} of {bytes}");
        std::hint::black_box(&kept);
    }
    let seed = fresh();
    let kept = word(seed);
    assert!(Search::of_words(&[seed]).process(me).total() >= kept.len(), "stack");
    std::hint::black_box(&kept);
    // Huffman-coded, behind any value and thus at any bit.
    for front in ["", "B", "Be", "Bea", "Bear", "Bearer ", "/v1/x?key=", "sk-0"] {
        let seed = fresh();
        let value = format!("{front}{}", text(seed, 48));
        let coded = hpack::huffman_coded(value.as_bytes(), 0);
        let found = Search::of_heads(&[seed]).slice(&coded).total();
        assert!(found * 8 > 48 * 5, "{front}: {found} of {}", coded.len());
    }
}

#[test]
fn what_is_in_flight_is_found() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            // An answer that the client does not read, an upload that the provider does not read.
            let mut client = rig.connect().await;
            let (asked, answered) = (fresh(), fresh());
            let script = format!("words={answered};size={}", 64 << 20);
            let answer = client.send(ask(&client, &script).body(FullBody::empty()).expect("request")).await;
            let mut other = rig.connect().await;
            let upload = ask(&other, "read_stall=1").body(FullBody::new(content(asked, 30 << 20))).expect("request");
            let upload = tokio::spawn(other.send(upload));
            let search = Search::of_words(&[asked, answered]);
            let both = support::wait_for(10 * SECOND, || {
                search.process(rig.edge.pid()).0.iter().all(|found| *found > 1 << 10)
            });
            assert!(both, "{}: a stalled stream must be found, or the search is blind", rig.name);
            upload.abort();
            drop(answer);
        });
    });
}

// Each measure is needed, and its absence is seen.

const SIZES: [usize; 6] = [13, 200, 300, 5000, 16 << 10, 100_000];

/// How many bytes streams of events of `sizes` leave with a measure left out: by pair, in mid-stream, after their ends, and after the
/// connection's end.
fn left_without(measure: &'static str, sizes: &[usize]) -> Vec<(String, [usize; 3])> {
    let sums = Mutex::new(Vec::new());
    let plan = Plan { skip: measure, ..Plan::default() };
    on_all_pairs(&plan, |rig| {
        let sum = Mutex::new([0; 3]);
        rig.run(async {
            let mut client = rig.connect().await;
            let mut all = Vec::new();
            let add = |place: usize, seeds: &[u32]| {
                // Long enough for a turn to end; what stays then stays.
                std::thread::sleep(50 * MS);
                sum.lock().expect("sum")[place] += rig.found(&Search::of_words(seeds));
            };
            for &size in sizes {
                let open = rig.open(&mut client, size, some_events(size), &format!("event_bytes={size}")).await;
                let seeds = open.seeds();
                add(0, &seeds);
                open.finish(&mut client).await;
                add(1, &seeds);
                all.extend(seeds);
            }
            drop(client);
            add(2, &all);
        });
        sums.lock().expect("sums").push((rig.name.clone(), sum.into_inner().expect("sum")));
    });
    let sums = sums.into_inner().expect("sums");
    eprintln!("without {measure:?}, bytes in mid-stream, after it, after the connection: {sums:?}");
    sums
}

fn sum_of(left: &[(String, [usize; 3])]) -> usize {
    left.iter().flat_map(|(_, sums)| sums).sum()
}

#[test]
fn with_all_measures_nothing_is_left() {
    assert_eq!(sum_of(&left_without("", &SIZES)), 0);
}

/// The sum over all pairs, as docs/promises.md has it.
fn found_without(measure: &'static str, sizes: &[usize]) -> usize {
    let found = sum_of(&left_without(measure, sizes));
    println!("{measure}: {found} bytes");
    found
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds leave no measure out")]
fn without_clearing_freed_blocks_content_is_found() {
    assert!(found_without("freed_blocks", &SIZES) > 0);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds leave no measure out")]
fn without_clearing_chunks_content_is_found() {
    assert!(found_without("chunks", &SIZES) > 0);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds leave no measure out")]
fn without_clearing_spare_room_content_is_found() {
    assert!(found_without("spare_room", &SIZES) > 0);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds leave no measure out")]
fn without_clearing_written_frames_content_is_found() {
    assert!(found_without("written_frames", &SIZES) > 0);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "release builds leave no measure out")]
fn without_clearing_the_stack_content_is_found() {
    // Up to fifteen bytes of a record's last block, if nothing has been laid over them since: some lengths show them.
    let sizes: Vec<usize> = (33..=64).collect();
    assert!(found_without("stack", &sizes) > 0);
}

// Streams.

#[test]
fn delivered_events_are_gone_in_mid_stream_and_after_the_end() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            for size in EVENT_SIZES {
                for cuts in [format!("every={size}"), format!("event_bytes={size}")] {
                    let open = rig.open(&mut client, size, some_events(size), &cuts).await;
                    let seeds = open.seeds();
                    rig.gone(&format!("{cuts} in mid-stream"), &seeds);
                    if size < 8 {
                        let step = format!("{cuts} in mid-stream, in their frames");
                        rig.gone_all(&step, &in_frames(&seeds, size));
                    }
                    open.finish(&mut client).await;
                    rig.gone(&format!("{cuts} after the end"), &seeds);
                }
            }
        });
    });
}

/// Events too short to be found by themselves, in the frames of h1 (RFC 9112 section 7.1) and h2 (RFC 9113 section 6.1).
/// Single bytes in frames of h2 cannot be told from numbers.
fn in_frames(seeds: &[u32], size: usize) -> Search {
    let mut search = Search::default();
    for seed in seeds {
        let all = content(*seed, 16 * size);
        let chunks: Vec<u8> =
            all.chunks(size).flat_map(|event| [format!("{size:x}\r\n").as_bytes(), event, b"\r\n"].concat()).collect();
        search = search.text(&chunks);
        if size < 4 {
            continue;
        }
        for event in all.chunks(size) {
            for stream in (1..=255).step_by(2) {
                let head = [0, 0, size as u8, 0, 0, 0, 0, 0, stream];
                // Half of what is searched for is content.
                search = search.text(&[&head[5..], event].concat());
            }
        }
    }
    search
}

#[test]
fn streams_cut_at_random_leave_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            let mut random = 0x2545_f491_4f6c_dd1d_u64;
            for step in 0..12 {
                let mut at = 0;
                let mut cuts = Vec::new();
                while cuts.len() < 60 {
                    // Xorshift (Marsaglia 2003): pieces from one byte to a few records.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    at += 1 + random % (1 << (random >> 60));
                    cuts.push(at.to_string());
                }
                let bytes = usize::try_from(at).expect("small");
                let event = 1 + (random % 5000) as usize;
                let cuts = format!("cuts={}", cuts.join(","));
                let open = rig.open(&mut client, event, bytes, &cuts).await;
                let seeds = open.seeds();
                rig.gone(&format!("random cuts {step} in mid-stream"), &seeds);
                open.finish(&mut client).await;
                rig.gone(&format!("random cuts {step} after the end"), &seeds);
            }
        });
    });
}

#[test]
fn both_versions_of_tls_on_both_sides_leave_nothing() {
    for (client_versions, upstream_versions) in
        [(Versions::Tls12, Versions::Tls12), (Versions::Tls12, Versions::Tls13), (Versions::Tls13, Versions::Tls12)]
    {
        let plan = Plan { client_versions, upstream_versions, ..Plan::default() };
        on_all_pairs(&plan, |rig| {
            rig.run(async {
                let mut client = rig.connect().await;
                for size in [7, 15, 17, 255, 300, 2 << 10, 16 << 10, 200 << 10] {
                    let open = rig.open(&mut client, size, some_events(size), &format!("event_bytes={size}")).await;
                    let seeds = open.seeds();
                    let step = format!("{size} bytes, {client_versions:?} and {upstream_versions:?}");
                    rig.gone(&format!("{step}, in mid-stream"), &seeds);
                    open.finish(&mut client).await;
                    rig.gone(&format!("{step}, after the end"), &seeds);
                }
            });
        });
    }
}

// Whole bodies.

#[test]
fn bodies_of_any_size_leave_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            let sizes = [0, 1, 7, 8, 15, 16, 17, 100, 1000, 16 << 10, 100_000, 1 << 20, 8 << 20, 50_000_000];
            for (place, size) in sizes.into_iter().enumerate() {
                let (asked, answered) = (fresh(), fresh());
                // A known length and an unknown one in turn.
                let len = if place % 2 == 0 { "len=known" } else { "len=chunked" };
                let script = format!("words={answered};size={size};{len}");
                let request = ask(&client, &script);
                let answer = if place % 2 == 0 {
                    client.send(request.body(FullBody::new(content(asked, size))).expect("request")).await
                } else {
                    let (sender, body) = ChannelBody::new(1);
                    let sent = tokio::spawn(async move { sender.send(content(asked, size)).await });
                    let answer = client.send(request.body(body).expect("request")).await;
                    sent.await.expect("no panic").expect("taken");
                    answer
                };
                let received = Received::read(answer.expect("answer"), 0).await;
                assert!(received.error.is_none() && received.len == size as u64, "{} {size}", rig.name);
                client.ready().await.expect("lives on");
                rig.gone(&format!("bodies of {size}, {len}"), &[asked, answered]);
            }
            assert_eq!(rig.provider.connects(), 1, "{}: the connection is kept", rig.name);
        });
    });
}

#[test]
fn refusals_of_the_upstream_leave_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            for status in [400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 529] {
                for early in ["", ";early=1", ";early_close=1"] {
                    let (asked, answered) = (fresh(), fresh());
                    let script = format!("status={status};words={answered};size=3000{early}");
                    let bytes = if early.is_empty() { 200 << 10 } else { 1 << 20 };
                    let request = ask(&client, &script).body(FullBody::new(content(asked, bytes))).expect("request");
                    match client.send(request).await {
                        Ok(answer) => drop(Received::read(answer, 0).await),
                        // An answer whose body is never read may be overtaken by the connection's end.
                        Err(_) => assert!(early == ";early_close=1", "{} {script}", rig.name),
                    }
                    if client.ready().await.is_err() {
                        client = rig.connect().await;
                    }
                    rig.gone(&script, &[asked, answered]);
                }
            }
        });
    });
}

// Ends that are none.

#[test]
fn an_upstream_that_breaks_off_leaves_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            for ending in ["fin_after", "goodbye_after", "kill_after", "reset_after"] {
                for at in ["head", "0", "100", "20000", "300000"] {
                    let (asked, answered) = (fresh(), fresh());
                    let script = format!("words={answered};size=1000000;beside=1;{ending}={at}");
                    let mut client = rig.connect().await;
                    let (sender, body) = ChannelBody::new(4);
                    let request = ask(&client, &script).body(body).expect("request");
                    let answer = tokio::spawn(client.send(request));
                    // The client goes on sending until it hears of the end.
                    for _ in 0..20 {
                        if sender.send(content(asked, 10_000)).await.is_err() {
                            break;
                        }
                    }
                    if let Ok(answer) = answer.await.expect("no panic") {
                        let received = Received::read(answer, 0).await;
                        let whole = received.error.is_none() && received.len >= 1_000_000;
                        assert!(!whole, "{} {script}: a whole answer", rig.name);
                    }
                    rig.gone(&script, &[asked, answered]);
                    drop(sender);
                    rig.gone(&format!("{script}, upload over"), &[asked, answered]);
                }
            }
        });
    });
}

#[test]
fn clients_that_leave_leave_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            // On h1 there is no leaving but by the connection's end.
            let endings = [Some(Ending::Fin), Some(Ending::Goodbye), Some(Ending::Reset), None];
            for ending in endings.into_iter().take(if rig.client == Alpn::H2 { 4 } else { 3 }) {
                for size in [100, 20_000] {
                    // In mid-stream in both directions, everything delivered.
                    let mut client = rig.connect().await;
                    let open = rig.open(&mut client, size, some_events(size), &format!("event_bytes={size}")).await;
                    let seeds = open.seeds();
                    leave(&client, ending, open.body, open.sender).await;
                    rig.gone(&format!("{size}, left by {ending:?}"), &seeds);

                    // With an answer that was not read.
                    let mut client = rig.connect().await;
                    let answered = fresh();
                    let script = format!("words={answered};size={};event_bytes={size}", 8 << 20);
                    let request = ask(&client, &script).body(FullBody::empty()).expect("request");
                    let answer = client.send(request).await.expect("answer");
                    tokio::time::sleep(100 * MS).await;
                    leave(&client, ending, answer.into_body(), ChannelBody::new(1).0).await;
                    rig.gone(&format!("{size}, unread, left by {ending:?}"), &[answered]);

                    // In mid-upload, taken by the provider or not.
                    for script in ["never=1", "read_stall=1"] {
                        let mut client = rig.connect().await;
                        let asked = fresh();
                        let (sender, body) = ChannelBody::new(4);
                        let request = ask(&client, script).body(body).expect("request");
                        let answer = tokio::spawn(client.send(request));
                        // Not more than nullhop takes while the provider does not: the end would stand behind it, unseen.
                        for _ in 0..(60_000 / size).min(200) {
                            let piece = sender.send(content(asked, size));
                            if tokio::time::timeout(100 * MS, piece).await.is_err() {
                                break;
                            }
                        }
                        if let Some(ending) = ending {
                            client.abort(ending);
                        }
                        answer.abort();
                        drop(sender);
                        rig.gone(&format!("{size}, {script}, upload left by {ending:?}"), &[asked]);
                    }
                }
            }
        });
    });
}

#[test]
fn clients_that_leave_in_full_flow_leave_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            for event in [300, 5000, 16 << 10] {
                for round in 0..5 {
                    let (asked, answered) = (fresh(), fresh());
                    let mut client = rig.connect().await;
                    let (sender, body) = ChannelBody::new(4);
                    let script = format!("words={answered};size={};beside=1;event_bytes={event}", 64 << 20);
                    let answer = client.send(ask(&client, &script).body(body).expect("request")).await;
                    let mut body = answer.expect("answer").into_body();
                    // A stream is reset once neither of its bodies is wanted any more.
                    let reset_stream = rig.client == Alpn::H2 && round % 2 == 0;
                    let feeder = tokio::spawn(async move {
                        while !reset_stream && sender.send(content(asked, event)).await.is_ok() {}
                    });
                    let mut got = 0;
                    while got < (100 + 77 * round) << 10 {
                        got += next_data(&mut body).await.expect("more").expect("data").len();
                    }
                    if reset_stream {
                        drop(body);
                    } else {
                        // A FIN stands behind what is in flight and is seen when that has been taken.
                        client.abort(Ending::Reset);
                    }
                    feeder.abort();
                    rig.gone(&format!("events of {event}, left after {got}"), &[asked, answered]);
                }
            }
        });
    });
}

/// The connection ends so, or, without an ending, the exchange alone: RST_STREAM on h2.
async fn leave(client: &Client, ending: Option<Ending>, body: Incoming, sender: BodySender) {
    match ending {
        Some(ending) => client.abort(ending),
        None => drop(body),
    }
    drop(sender);
}

// Slow readers.

#[test]
fn a_stalled_reader_holds_little_and_nothing_stays_when_it_has_caught_up() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            for event in [16, 64, 300, 2 << 10, 16 << 10, 1 << 20] {
                let answered = fresh();
                let len: u64 = 4 << 20;
                let mut client = rig.connect_with(slow).await;
                let script = format!("words={answered};size={len};event_bytes={event}");
                let request = ask(&client, &script).body(FullBody::empty()).expect("request");
                let answer = client.send(request).await.expect("answer");
                let held = held_at_rest(rig, answered, || rig.provider.last().response_bytes).await;
                eprintln!("{}: {held} bytes held of a stalled answer of events of {event}", rig.name);
                let step = format!("stalled, events of {event}");
                assert!(held > 0, "{}: {step}: nothing is stalled", rig.name);
                if held > STALLED_BYTES_MAX {
                    rig.faults.lock().expect("faults").push(format!("{}: {step}: {held} bytes held", rig.name));
                }
                let received = Received::read(answer, 0).await;
                let whole = received.error.is_none() && received.len == len;
                assert!(whole, "{}: {step}: {} bytes, {:?}", rig.name, received.len, received.error);
                rig.gone(&format!("{step}, caught up"), &[answered]);
            }
        });
    });
}

#[test]
fn several_stalled_streams_of_a_connection_hold_little_each() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let streams = if rig.client == Alpn::H2 { 4 } else { 1 };
            let answered = fresh();
            let mut client = rig.connect_with(slow).await;
            let mut answers = Vec::new();
            for _ in 0..streams {
                let request = ask(&client, &format!("words={answered};size={};event_bytes=300", 8 << 20))
                    .body(FullBody::empty())
                    .expect("request");
                answers.push(client.send(request).await.expect("answer"));
            }
            let sum = || rig.provider.requests().iter().map(|seen| seen.response_bytes).sum();
            let held = held_at_rest(rig, answered, sum).await;
            eprintln!("{}: {} bytes held a stream, {streams} stalled", rig.name, held / streams);
            assert!(held > 0 && held <= streams * STALLED_BYTES_MAX, "{}: {held} of {streams} streams", rig.name);
            for answer in answers {
                drop(Received::read(answer, 0).await);
            }
            rig.gone("several stalled streams, caught up", &[answered]);
        });
    });
}

#[test]
fn a_stalled_upload_holds_little_and_nothing_stays() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            // h2 cuts a client off that sends more than some hundred small frames which nobody takes.
            let smallest = if rig.client == Alpn::H2 { 300 } else { 16 };
            for event in [16, 64, 300, 2 << 10, 16 << 10, 1 << 20].into_iter().filter(|event| *event >= smallest) {
                // Stalled for good, left by the client.
                let asked = fresh();
                let mut client = rig.connect().await;
                let (sender, body) = ChannelBody::new(64);
                let answer = tokio::spawn(client.send(ask(&client, "read_stall=1").body(body).expect("request")));
                let feeder = tokio::spawn(async move {
                    let mut sent = 0;
                    while sent < (16 << 20) && sender.send(content(asked, event)).await.is_ok() {
                        sent += event;
                    }
                    std::future::pending::<()>().await;
                });
                let search = Search::of_words(&[asked]);
                let held = settled(|| search.process(rig.edge.pid()).total() as u64).await;
                eprintln!("{}: {held} bytes held of a stalled upload of events of {event}", rig.name);
                let step = format!("stalled upload, events of {event}");
                assert!(held > 0, "{}: {step}: nothing is stalled", rig.name);
                if held > STALLED_BYTES_MAX as u64 {
                    rig.faults.lock().expect("faults").push(format!("{}: {step}: {held} bytes held", rig.name));
                }
                client.abort(Ending::Reset);
                feeder.abort();
                answer.abort();
                rig.gone(&format!("{step}, left"), &[asked]);
            }
            // Slow, and taken to the end.
            let asked = fresh();
            let mut client = rig.connect().await;
            let request = ask(&client, &format!("read_rate={}", 16 << 20));
            let request = request.body(FullBody::new(content(asked, 12 << 20))).expect("request");
            let answer = client.send(request).await.expect("answer");
            drop(Received::read(answer, 0).await);
            rig.gone("slow upload, taken", &[asked]);
        });
    });
}

/// Windows and buffers so small that a stall is felt at once.
fn slow(options: &mut ClientOptions) {
    options.receive_buffer_bytes = Some(4096);
    // h2 gives up on a peer that has sent it more than some hundred small frames which nobody reads.
    options.h2_stream_window = 1000;
    options.h2_connection_window = 65_535;
}

/// What nullhop holds of the words once `sent` has stopped growing.
async fn held_at_rest(rig: &Rig, seed: u32, sent: impl Fn() -> u64) -> usize {
    settled(sent).await;
    rig.found(&Search::of_words(&[seed]))
}

/// A count once it has not changed for a while.
async fn settled(count: impl Fn() -> u64) -> u64 {
    let (mut last, mut since) = (count(), Instant::now());
    while since.elapsed() < 250 * MS || last == 0 {
        tokio::time::sleep(10 * MS).await;
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < 10 * SECOND, "nothing comes");
    }
    last
}

// Many, and other ways.

#[test]
fn sixteen_clients_at_once_leave_nothing() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let mut clients = Vec::new();
            let mut seeds = Vec::new();
            for place in 0..16 {
                let mut client = rig.connect().await;
                let (asked, answered) = (fresh(), fresh());
                seeds.extend([asked, answered]);
                clients.push(tokio::spawn(async move {
                    for round in 0..4 {
                        let size = 1 + (place * 7919 + round * 104_729) % 60_000;
                        let script = format!("words={answered};size={size};event_bytes=300;every=5000");
                        let request = ask(&client, &script).body(FullBody::new(content(asked, size)));
                        let answer = client.send(request.expect("request")).await.expect("answer");
                        let received = Received::read(answer, 0).await;
                        assert!(received.error.is_none() && received.len == size as u64);
                        client.ready().await.expect("lives on");
                    }
                    client
                }));
            }
            let mut kept = Vec::new();
            for client in clients {
                kept.push(client.await.expect("no panic"));
            }
            rig.gone("16 clients, connections kept", &seeds);
            drop(kept);
            rig.gone("16 clients, connections closed", &seeds);
        });
    });
}

#[test]
fn trailers_leave_nothing_of_the_bodies_before_them() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            for size in [10, 300, 20_000] {
                let (asked, answered) = (fresh(), fresh());
                let (sender, body) = ChannelBody::new(4);
                let script = format!("words={answered};size={size};trailer=x-end:done");
                let request = ask(&client, &script).header("te", "trailers").header("trailer", "x-sum").body(body);
                let answer = tokio::spawn(client.send(request.expect("request")));
                sender.send(content(asked, size)).await.expect("taken");
                let trailers = HeaderMap::from_iter([("x-sum".parse().expect("name"), HeaderValue::from_static("1"))]);
                sender.trailers(trailers).await.expect("taken");
                drop(sender);
                let received = Received::read(answer.await.expect("no panic").expect("answer"), 0).await;
                assert!(received.trailers.is_some(), "{} {:?}", rig.name, received.error);
                client.ready().await.expect("lives on");
                rig.gone(&format!("{size} bytes and trailers"), &[asked, answered]);
            }
        });
    });
}

#[test]
fn requests_that_nullhop_refuses_leave_nothing() {
    let plan = Plan { extra: "body_grace = \"1s\"\n", ..Plan::default() };
    on_all_pairs(&plan, |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            for (path, status) in
                [("/nowhere", 404), ("/openai/chat/completions", 404), ("/openai/../secret", 400), (CHAT, 413)]
            {
                for size in [100, 300 << 10] {
                    let asked = fresh();
                    let request = ask_at(&client, path, "size=1");
                    // Only the promise of a length is too large; a part of it comes.
                    let answer = if status == 413 {
                        let (sender, body) = ChannelBody::new(4);
                        let answer = client.send(request.body(body.with_len(100 << 20)).expect("request"));
                        let (answer, _) = tokio::join!(answer, sender.send(content(asked, size)));
                        answer
                    } else {
                        client.send(request.body(FullBody::new(content(asked, size))).expect("request")).await
                    };
                    let step = format!("{path} refused with {status}, {size} bytes");
                    let received = Received::read(answer.expect("answer"), 0).await;
                    assert_eq!(received.head.status.as_u16(), status, "{}: {step}", rig.name);
                    if client.ready().await.is_err() {
                        client = rig.connect().await;
                    }
                    rig.gone(&step, &[asked]);
                }
            }
            // Too large as it comes.
            let asked = fresh();
            let mut client = rig.connect().await;
            let (sender, body) = ChannelBody::new(4);
            let answer = tokio::spawn(client.send(ask(&client, "size=1").body(body).expect("request")));
            for _ in 0..70 {
                if sender.send(content(asked, 1 << 20)).await.is_err() {
                    break;
                }
            }
            let answer = answer.await.expect("no panic").expect("answer");
            assert_eq!(answer.status(), 413, "{}", rig.name);
            drop(sender);
            rig.gone("413 in mid-upload", &[asked]);
            if rig.client == Alpn::H1 {
                bad_framing(rig).await;
            }
        });
    });
}

/// Heads and bodies that no client library would send.
async fn bad_framing(rig: &Rig) {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    let framings = [
        "content-length: 100\r\ncontent-length: 200\r\n",
        "content-length: 100\r\ntransfer-encoding: chunked\r\n",
        "content-length: 12x\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: chunked\r\n",
    ];
    for framing in framings {
        let asked = fresh();
        let mut stream =
            raw_tls_connect(rig.edge.address(), "localhost", Alpn::H1, &rig.edge.trust()).await.expect("tls");
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer k\r\n{framing}\r\n");
        stream.write_all(head.as_bytes()).await.expect("writes");
        // For the last of them: a chunk, and then no chunk.
        let parts = [&b"200\r\n"[..], &content(asked, 0x200), b"\r\nzz\r\n", &content(asked, 3000)];
        for part in parts {
            // Refused already, perhaps.
            let _ = stream.write_all(part).await;
        }
        let mut answer = [0; 4096];
        let _ = tokio::time::timeout(2 * SECOND, stream.read(&mut answer)).await;
        assert!(answer.starts_with(b"HTTP/1.1 4"), "{framing}: {}", String::from_utf8_lossy(&answer));
        rig.gone(&format!("bad framing {}", framing.trim()), &[asked]);
    }
}

// WebSockets.

/// A client's mask, fixed so that masked words can be searched for.
const MASK: [u8; 4] = [0xa5, 0x3c, 0x96, 0x5a];

/// A client's WebSocket over h1 or over an extended CONNECT on h2.
enum Socket {
    H1(Box<WebSocket<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>>),
    H2 { send: h2::SendStream<Bytes>, receive: h2::RecvStream, received: BytesMut },
}

impl Socket {
    async fn open(rig: &Rig, script: &str) -> Self {
        let alpn = if rig.client == Alpn::H2 { Alpn::H2 } else { Alpn::H1 };
        let tls = raw_tls_connect(rig.edge.address(), "localhost", alpn, &rig.edge.trust()).await.expect("connects");
        if alpn == Alpn::H1 {
            let headers = format!("authorization: Bearer k\r\nx-script: {script}\r\n");
            let socket = WebSocket::connect(tls, "localhost", REALTIME, &headers).await.expect("upgrades");
            return Self::H1(Box::new(socket));
        }
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(tls)
            .await
            .expect("handshake");
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("ready");
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::time::sleep(MS).await;
        }
        let request = Request::builder()
            .method("CONNECT")
            .uri(format!("https://localhost{REALTIME}"))
            .header("sec-websocket-version", "13")
            .header("authorization", "Bearer k")
            .header("x-script", script)
            .extension(h2::ext::Protocol::from_static("websocket"))
            .body(())
            .expect("request");
        let (response, send) = sender.send_request(request, false).expect("sends");
        let response = response.await.expect("answer");
        assert_eq!(response.status(), 200);
        Self::H2 { send, receive: response.into_body(), received: BytesMut::new() }
    }

    /// Leaves at once; on h2 by a RST_STREAM.
    fn reset(self) {
        if let Self::H1(socket) = self {
            Transport::Tls(Box::new(socket.into_inner().into())).end(Ending::Reset);
        }
    }

    async fn send(&mut self, frame: Frame) {
        let bytes = frame.encode(Some(MASK));
        match self {
            Self::H1(socket) => socket.send_raw(&bytes).await.expect("sends"),
            Self::H2 { send, .. } => send.send_data(bytes, false).expect("sends"),
        }
    }

    async fn next(&mut self) -> Frame {
        match self {
            Self::H1(socket) => socket.next_frame().await.expect("frame").expect("frame"),
            Self::H2 { receive, received, .. } => loop {
                if let Some(frame) = Frame::decode(received, Role::Client).expect("frame") {
                    return frame;
                }
                let data = receive.data().await.expect("more").expect("data");
                receive.flow_control().release_capacity(data.len()).expect("capacity");
                received.extend_from_slice(&data);
            },
        }
    }
}

/// The words of a seed: as a server sends them, and as a client does, masked.
fn masked_too(search: Search, seed: u32) -> Search {
    let masked: Vec<u8> = word(seed).iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    search.endless(&word(seed)).endless(&masked)
}

#[test]
fn websocket_messages_on_h1_leave_nothing() {
    websocket_messages(Alpn::H1);
}

#[test]
fn websocket_messages_on_h2_leave_nothing() {
    websocket_messages(Alpn::H2);
}

fn websocket_messages(client: Alpn) {
    // The upstream's side of a WebSocket is always h1.
    on_pairs(&[(client, Alpn::H1)], &Plan::default(), |rig| {
        rig.run(async {
            let mut socket = Socket::open(rig, "ws=echo").await;
            let mut all = Search::default();
            for size in [8, 16, 100, 125, 126, 300, 5000, 20_000, 70_000, 1 << 20] {
                for opcode in [Opcode::Text, Opcode::Binary] {
                    let seed = fresh();
                    socket.send(Frame::new(opcode, content(seed, size))).await;
                    let back = socket.next().await;
                    assert!(back.opcode == opcode && back.payload == content(seed, size), "{} {size}", rig.name);
                    let step = format!("websocket, {opcode:?} of {size}, open");
                    rig.gone_all(&step, &masked_too(Search::default(), seed));
                    all = masked_too(all, seed);
                }
            }
            // In fragments.
            let seed = fresh();
            for place in 0..10 {
                let opcode = if place == 0 { Opcode::Text } else { Opcode::Continuation };
                socket.send(Frame::fragment(opcode, content(seed, 1600), place == 9)).await;
            }
            assert_eq!(socket.next().await.payload.len(), 16_000);
            rig.gone_all("websocket, fragments, open", &masked_too(Search::default(), seed));
            socket.send(Frame::close(1000, "")).await;
            assert_eq!(socket.next().await.close_code(), 1000);
            rig.gone_all("websocket, closed", &masked_too(all, seed));
            drop(socket);

            // Messages of the provider's alone.
            let seed = fresh();
            let mut socket = Socket::open(rig, &format!("ws=flood;events=50;event_bytes=3000;words={seed}")).await;
            for _ in 0..50 {
                assert_eq!(socket.next().await.payload, content(seed, 3000));
            }
            rig.gone_all("websocket, flooded, open", &masked_too(Search::default(), seed));

            // Broken by either side.
            for script in ["ws=reset", "ws=fin", "ws=stall"] {
                let seed = fresh();
                let mut socket = Socket::open(rig, script).await;
                socket.send(Frame::new(Opcode::Text, content(seed, 3000))).await;
                if script == "ws=stall" {
                    for _ in 0..100 {
                        let more = socket.send(Frame::new(Opcode::Text, content(seed, 3000)));
                        if tokio::time::timeout(50 * MS, more).await.is_err() {
                            break;
                        }
                    }
                } else {
                    tokio::time::sleep(100 * MS).await;
                }
                // With a reset: an end in order would wait behind what nullhop has not read, unseen.
                socket.reset();
                rig.gone_all(&format!("websocket, {script}"), &masked_too(Search::default(), seed));
            }
        });
    });
}

/// Messages that a policy reads and puts into frames of nullhop's own.
#[test]
fn websocket_messages_that_are_read_leave_nothing() {
    for client in [Alpn::H1, Alpn::H2] {
        on_pairs(&[(client, Alpn::H1)], &Plan { strict: true, ..Plan::default() }, |rig| {
            rig.run(async {
                let mut socket = Socket::open(rig, "ws=echo").await;
                // Messages that a policy reads, and one that it refuses when much of it has passed already.
                for size in [8, 300, 5000, 20_000, 70_000] {
                    let seed = fresh();
                    let text = String::from_utf8(content(seed, size).to_vec()).expect("words");
                    socket.send(Frame::new(Opcode::Text, format!("{{\"type\":\"note\",\"text\":\"{text}\"}}"))).await;
                    let back = String::from_utf8(socket.next().await.payload.to_vec()).expect("words");
                    assert!(back.contains(&text), "{} {size}", rig.name);
                    let step = format!("websocket, JSON of {size}, open");
                    rig.gone_all(&step, &masked_too(Search::default(), seed));
                }
                for size in [8, 70_000] {
                    let seed = fresh();
                    let text = String::from_utf8(content(seed, size).to_vec()).expect("words");
                    let mut socket = Socket::open(rig, "ws=echo").await;
                    let refused = format!("{{\"session\":{{\"text\":\"{text}\",\"tracing\":\"auto\"}}}}");
                    socket.send(Frame::new(Opcode::Text, refused)).await;
                    assert!(String::from_utf8_lossy(&socket.next().await.payload).contains("policy_refused"));
                    rig.gone_all(&format!("websocket, refused JSON of {size}"), &masked_too(Search::default(), seed));
                }
            });
        });
    }
}

// What is read, edited, decoded and taken out on the way.

fn words_of(seed: u32, size: usize) -> String {
    String::from_utf8(content(seed, size).to_vec()).expect("words are letters")
}

/// A chat stream in which usage was asked for: an event with `size` bytes of words, `usage: null` in it, and the extra event.
fn chat_stream(seed: u32, size: usize) -> String {
    let words = words_of(seed, size);
    let head = format!("data: {{\"id\":\"c\",\"model\":\"{}\",", &words[..words.len().min(40)]);
    format!(
        "{head}\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{words}\"}}}}],\"usage\":null}}\n\n\
         {head}\"choices\":[],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":2,\"total_tokens\":11}}}}\n\n\
         data: [DONE]\n\n"
    )
}

fn vector(text: String) -> Vector {
    Vector {
        bytes: text.into(),
        content_type: Some("text/event-stream".to_owned()),
        framing: "sse".to_owned(),
        status: http::StatusCode::OK,
        content_encoding: None,
        splits: Vec::new(),
    }
}

#[test]
fn bodies_that_are_read_and_edited_leave_nothing() {
    on_all_pairs(&Plan { strict: true, ..Plan::default() }, |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            for (place, size) in [8, 40, 300, 4000, 20_000, 300_000].into_iter().enumerate() {
                let (asked, answered) = (fresh(), fresh());
                let name = format!("chat-{answered}");
                rig.provider.put(&name, vector(chat_stream(answered, size)));
                let words = words_of(asked, size);
                let (name_of_member, held) = (&words[..size.min(90)], &words[..size.min(300)]);
                let body = format!(
                    "{{\"model\":\"{}\",\"stream_options\":{{\"note\":\"{held}\"}},\"{name_of_member}\":1,\
                     \"metadata\":{{\"k\":\"{words}\"}},\"messages\":[{{\"content\":\"{words}\"}}],\"stream\":true}}",
                    &words[..size.min(60)],
                );
                // The answer stops in the middle of its first event.
                let stop = chat_stream(answered, size).find("\"usage\":null").expect("there") - 5;
                let script = format!("file={name};hold_at={stop};gate={name};len=chunked;cuts=3,{}", stop / 2);
                let request = ask(&client, &script).header("content-type", "application/json");
                let answer = if place % 2 == 0 {
                    client.send(request.body(FullBody::new(body)).expect("request")).await
                } else {
                    // Piece by piece, so that what is held is held over cuts.
                    let (sender, out) = ChannelBody::new(1);
                    let sent = tokio::spawn(async move {
                        for piece in body.as_bytes().chunks(body.len() / 7 + 1) {
                            sender.send(Bytes::copy_from_slice(piece)).await.expect("taken");
                        }
                    });
                    let answer = client.send(request.body(out).expect("request")).await;
                    sent.await.expect("no panic");
                    answer
                };
                let mut answer = answer.expect("answer").into_body();
                let mut got = Vec::new();
                // An event that may still be the one to take out waits; a longer one goes on.
                let shown = if size > 4096 { stop - 10 } else { 0 };
                while got.len() < shown {
                    got.extend_from_slice(&next_data(&mut answer).await.expect("more").expect("data"));
                }
                rig.gone(&format!("edited request of {size}, in mid-answer"), &[asked]);
                assert!(rig.provider.wait_for(|_| rig.provider.open(&name), 20 * SECOND).await, "{} {size}", rig.name);
                while let Some(data) = next_data(&mut answer).await {
                    got.extend_from_slice(&data.expect("a good end"));
                }
                let got = String::from_utf8(got).expect("text");
                assert!(got.ends_with("data: [DONE]\n\n") && !got.contains("usage"), "{} {size}", rig.name);
                let seen = rig.provider.requests().pop().expect("a request");
                assert!(seen.body_len as usize > size && seen.body_end == BodyEnd::Clean, "{} {size}", rig.name);
                client.ready().await.expect("lives on");
                rig.gone(&format!("edited stream of {size}"), &[asked, answered]);
            }
        });
    });
}

#[test]
fn bodies_that_are_decoded_leave_nothing() {
    on_all_pairs(&Plan { strict: true, ..Plan::default() }, |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            for size in [40, 4000, 300_000] {
                for coding in Coding::ALL {
                    let (asked, answered) = (fresh(), fresh());
                    let name = format!("chat-{answered}");
                    rig.provider.put(&name, vector(chat_stream(answered, size)));
                    let body =
                        format!("{{\"messages\":[{{\"content\":\"{}\"}}],\"stream\":true}}", words_of(asked, size));
                    let script = format!(
                        "file={name};encoding={}",
                        if coding == Coding::DeflateRaw { "deflate-raw" } else { coding.name() }
                    );
                    let request = ask(&client, &script)
                        .header("content-type", "application/json")
                        .header("content-encoding", coding.name());
                    let encoded = FullBody::new(coding.encode(body.as_bytes()));
                    let answer = client.send(request.body(encoded).expect("request")).await.expect("answer");
                    let received = Received::read(answer, 0).await;
                    assert!(received.error.is_none() && received.head.status == 200, "{} {coding:?}", rig.name);
                    let seen = rig.provider.requests().pop().expect("a request");
                    assert!(seen.body_len as usize > size, "{} {coding:?}: it went up plain", rig.name);
                    client.ready().await.expect("lives on");
                    rig.gone(&format!("{coding:?} of {size}"), &[asked, answered]);
                }
            }
        });
    });
}

#[test]
fn bodies_that_the_policy_refuses_leave_nothing() {
    on_all_pairs(&Plan { strict: true, ..Plan::default() }, |rig| {
        rig.run(async {
            for size in [8, 5000, 100_000] {
                for body in [
                    "{\"messages\":\"WORDS\",\"store\":true}",
                    "{\"store\":true,\"messages\":\"WORDS\"}",
                    "{\"messages\":\"WORDS\"",
                    "{\"WORDS\":1,\"messages\":[\"WORDS\"}",
                ] {
                    let mut client = rig.connect().await;
                    let asked = fresh();
                    let body = body.replace("WORDS", &words_of(asked, size));
                    let request = ask(&client, "size=2").header("content-type", "application/json");
                    let answer =
                        client.send(request.body(FullBody::new(body)).expect("request")).await.expect("answer");
                    assert!(matches!(answer.status().as_u16(), 400 | 403), "{} {size}: {}", rig.name, answer.status());
                    Received::read(answer, 0).await;
                    rig.gone(&format!("refused body of {size}"), &[asked]);
                }
            }
        });
    });
}

// Reload and drain.

#[test]
fn a_reload_and_a_drain_leave_nothing() {
    let plan = Plan { extra: "[drain]\ngrace = \"0s\"\ndeadline = \"30s\"\n", ..Plan::default() };
    on_all_pairs(&plan, |rig| {
        rig.run(async {
            let mut client = rig.connect().await;
            let open = rig.open(&mut client, 300, 3000, "event_bytes=300").await;
            let mut done_client = rig.connect().await;
            let done = rig.open(&mut done_client, 300, 3000, "event_bytes=300").await;
            let done_seeds = done.seeds();
            done.finish(&mut done_client).await;
            let seeds = [open.seeds(), done_seeds].concat();

            rig.edge.signal("HUP");
            let reloaded = || rig.edge.log().iter().any(|line| line.contains(" config_reloaded"));
            assert!(support::wait_for(5 * SECOND, reloaded), "{:?}", rig.edge.log());
            rig.gone("after a reload, streams open", &seeds);
            let open_seeds = open.seeds();
            open.finish(&mut client).await;
            rig.gone("after a reload, streams over", &open_seeds);

            let mut client = rig.connect().await;
            let open = rig.open(&mut client, 300, 3000, "event_bytes=300").await;
            let seeds = [seeds, open.seeds().to_vec()].concat();
            rig.edge.signal("TERM");
            assert!(rig.edge.wait_for_log(" drain_started", 5 * SECOND), "{:?}", rig.edge.log());
            rig.gone("draining, streams open", &seeds);
            // To its end, which lets the process end.
            let Open { sender, mut body, .. } = open;
            drop(sender);
            while next_data(&mut body).await.is_some() {}
        });
    });
}

// Heads. The promise: gone one second after the exchange's end.

/// Where words can stand in a head: a name for the report, and the request with them. `x-script` asks for the answer.
fn heads(client: &Client, place: usize, seed: u32) -> Option<(&'static str, http::request::Builder)> {
    let words = text(seed, 48);
    let (messages, gemini) = ("/anthropic/v1/messages", "/gemini/v1beta/models/m:generateContent");
    let with = |path: &str, name: &str, value: &str, script: &str| {
        let builder = if client.is_h2() {
            Request::post(format!("https://localhost{path}"))
        } else {
            Request::post(path).header("host", "localhost")
        };
        builder.header(name, value).header("x-script", script)
    };
    Some(match place {
        0 => ("Authorization", with(CHAT, "authorization", &format!("Bearer {words}"), "size=10")),
        1 => ("x-api-key", with(messages, "x-api-key", &words, "size=10")),
        2 => ("x-goog-api-key", with(gemini, "x-goog-api-key", &words, "size=10")),
        3 => ("api-key", with(CHAT, "api-key", &words, "size=10")),
        4 => ("?key=", with(&format!("{gemini}?key={words}"), "x-note", "none", "size=10")),
        5 => ("path", with(&format!("/openai/v1/files/{words}"), "api-key", "k", "size=10")),
        6 => ("query", with(&format!("{CHAT}?after={words}"), "api-key", "k", "size=10")),
        7 => ("request header", with(CHAT, "x-note", &words, "size=10")),
        8 => ("response header", with(CHAT, "api-key", "k", &format!("size=10;header_words=x-note:{seed}"))),
        9 => ("credential refused upstream", with(CHAT, "authorization", &words, "status=401;size=10")),
        10 => ("path refused", with(&format!("/nowhere/{words}"), "api-key", "k", "")),
        11 => ("query of a wrong base", with(&format!("/openai/chat/completions?a={words}"), "api-key", "k", "")),
        12 => ("header of a refused path", with("/openai/../x", "x-note", &words, "")),
        13 => ("long header", with(CHAT, "x-note", &words.repeat(100), "size=10")),
        14 => ("response trailer", with(CHAT, "te", "trailers", &format!("size=10;trailer_words=x-note:{seed}"))),
        _ => return None,
    })
}

#[test]
fn heads_are_gone_a_second_after_the_exchange() {
    on_all_pairs(&Plan::default(), |rig| {
        rig.run(async {
            // Each on a connection of its own, that lives on; then again, several on one.
            for shared in [false, true] {
                let mut kept = Vec::new();
                let mut client = rig.connect().await;
                let mut names = Vec::new();
                let mut seeds = Vec::new();
                for place in 0.. {
                    let seed = fresh();
                    let Some((name, request)) = heads(&client, place, seed) else { break };
                    let request = request.body(FullBody::new("{}")).expect("request");
                    let received = Received::read(client.send(request).await.expect("answer"), 0).await;
                    assert!(received.error.is_none(), "{} {name}", rig.name);
                    names.push(name);
                    seeds.push(seed);
                    if !shared || client.ready().await.is_err() {
                        kept.push(std::mem::replace(&mut client, rig.connect().await));
                    }
                }
                tokio::time::sleep(SECOND).await;
                let found = Search::of_heads(&seeds).process(rig.edge.pid()).0;
                let way = if shared { "one connection" } else { "each on its own" };
                for (name, found) in names.iter().zip(&found).filter(|(_, found)| **found > 0) {
                    rig.faults.lock().expect("faults").push(format!("{}: {name}, {way}: {found} bytes", rig.name));
                }
                assert!(rig.client == Alpn::H1 || kept.iter().all(|client| !client.is_closed()), "{}", rig.name);
            }
        });
    });
}

#[test]
fn websocket_heads_are_gone_a_second_after_the_upgrade() {
    on_pairs(&[(Alpn::H1, Alpn::H1), (Alpn::H2, Alpn::H1)], &Plan::default(), |rig| {
        rig.run(async {
            let seed = fresh();
            let script = format!("ws=echo;header_words=x-note:{seed}");
            let mut socket = Socket::open(rig, &script).await;
            socket.send(Frame::new(Opcode::Text, "hello")).await;
            socket.next().await;
            tokio::time::sleep(SECOND).await;
            let found = rig.found(&Search::of_heads(&[seed]));
            if found > 0 {
                rig.faults.lock().expect("faults").push(format!("{}: 101's header: {found} bytes", rig.name));
            }
        });
    });
}

#[test]
fn heads_in_the_dynamic_table_are_gone_a_second_after_the_exchange() {
    on_pairs(&[(Alpn::H2, Alpn::H1), (Alpn::H2, Alpn::H2)], &Plan::default(), |rig| {
        rig.run(async {
            for huffman in [false, true] {
                let seeds = [fresh(), fresh(), fresh()];
                let mut client = TableClient::connect(rig).await;
                // Indexed before anything of the server's has been seen, then referred to.
                let (key, note) = (format!("Bearer {}", text(seeds[0], 48)), text(seeds[1], 48));
                let path = format!("{CHAT}?after={}", text(seeds[2], 48));
                let mut fields = vec![Field::Indexed(":path", &path)];
                fields.extend([Field::Indexed("authorization", &key), Field::Indexed("x-note", &note)]);
                client.ask(&fields, huffman).await;
                client.ask(&[Field::Reference(64), Field::Reference(63), Field::Reference(62)], huffman).await;
                client.answers(2, false).await;
                // The same as literals, once the server's settings are acknowledged.
                let fields = [Field::Plain(":path", &path), Field::Never("authorization", &key)];
                client.ask_acknowledged(&fields, huffman).await;
                client.answers(1, true).await;
                tokio::time::sleep(SECOND).await;
                let found = Search::of_heads(&seeds).process(rig.edge.pid()).0;
                if found.iter().any(|found| *found > 0) {
                    let coding = if huffman { "Huffman-coded" } else { "as they are" };
                    let fault = format!("{}: credential, header, query {coding}: {found:?} bytes", rig.name);
                    rig.faults.lock().expect("faults").push(fault);
                }
                drop(client);
            }
        });
    });
}

/// An h2 client that writes its own header blocks.
struct TableClient {
    stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    next_id: u32,
    /// The server wants a smaller table than the default.
    smaller_table: bool,
}

impl TableClient {
    async fn connect(rig: &Rig) -> Self {
        use tokio::io::AsyncWriteExt;
        let address = rig.edge.address();
        let mut stream = raw_tls_connect(address, "localhost", Alpn::H2, &rig.edge.trust()).await.expect("connects");
        let hello = [h2raw::PREFACE, &h2raw::frame(h2raw::kind::SETTINGS, 0, 0, &[])].concat();
        stream.write_all(&hello).await.expect("writes");
        Self { stream, next_id: 1, smaller_table: false }
    }

    async fn ask(&mut self, fields: &[Field<'_>], huffman: bool) {
        self.write(hpack::block(&whole(fields), huffman)).await;
    }

    async fn ask_acknowledged(&mut self, fields: &[Field<'_>], huffman: bool) {
        use tokio::io::AsyncWriteExt;
        let ack = h2raw::frame(h2raw::kind::SETTINGS, h2raw::END_STREAM, 0, &[]);
        self.stream.write_all(&ack).await.expect("writes");
        let block = hpack::block(&whole(fields), huffman);
        // RFC 7541 section 4.2: a smaller table is acknowledged at the beginning of the next block; to nothing, here.
        let update: &[u8] = if self.smaller_table { &[0x20] } else { &[] };
        self.write([update, &block].concat().into()).await;
    }

    async fn write(&mut self, block: Bytes) {
        use tokio::io::AsyncWriteExt;
        let flags = h2raw::END_STREAM | h2raw::END_HEADERS;
        let frame = h2raw::frame(h2raw::kind::HEADERS, flags, self.next_id, &block);
        self.stream.write_all(&frame).await.expect("writes");
        self.next_id += 2;
    }

    /// Waits for the ends of so many answers; `over`: or for the connection's.
    async fn answers(&mut self, count: usize, over: bool) {
        let mut ended = 0;
        while ended < count {
            let read = tokio::time::timeout(5 * SECOND, h2raw::read_frame(&mut self.stream)).await.expect("in time");
            let Ok(Some(frame)) = read else {
                assert!(over, "the connection ended");
                return;
            };
            match frame.kind {
                h2raw::kind::SETTINGS if frame.flags == 0 => {
                    // SETTINGS_HEADER_TABLE_SIZE (RFC 9113 section 6.5.2).
                    let table = frame.payload.chunks_exact(6).find(|setting| setting[..2] == [0, 1]);
                    self.smaller_table |= table.is_some_and(|setting| setting[2..6] < [0, 0, 16, 0][..]);
                }
                h2raw::kind::DATA | h2raw::kind::HEADERS if frame.flags & h2raw::END_STREAM != 0 => ended += 1,
                h2raw::kind::RST_STREAM | h2raw::kind::GOAWAY => panic!("{frame:?}"),
                _ => {}
            }
        }
    }
}

/// A request of these fields, which begin with the path.
fn whole<'a>(fields: &[Field<'a>]) -> Vec<Field<'a>> {
    let front = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost")];
    let front = front.map(|(name, value)| Field::Plain(name, value));
    [&front, fields, &[Field::Plain("x-script", "size=10")]].concat()
}
