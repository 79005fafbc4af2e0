//! The heap in secret memory: the relay works on it, nobody reads it, it shrinks, and where it cannot be had that is said.
//!
//! `tests/zero_retention.rs` searches the plain heap, where it can see everything. Here even what is in flight, and
//! stands on the heap for that reason, must not be found: the reading itself fails.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::pattern::pattern_sha256;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use rustix::process::Resource;
use rustix::process::Rlimit;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::wait_for;

const CHAT: &str = "/openai/v1/chat/completions";
const BIG: u64 = 64 << 20;

/// One at a time: they read each other's machine.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime")
}

fn setup(heap: &str) -> Setup {
    let extra = format!("[runtime]\nworkers = 1\n[limits]\nbody_bytes = \"128MiB\"\n[memory]\nheap = \"{heap}\"\n");
    Setup { extra, ..Setup::default() }
}

fn rig(upstream: Alpn, setup: Setup) -> (Provider, Edge) {
    let provider = Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() }).expect("provider");
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
    (provider, edge)
}

fn ask(client: &Client, script: &str) -> http::request::Builder {
    let builder = if client.is_h2() {
        Request::post(format!("https://localhost{CHAT}"))
    } else {
        Request::post(CHAT).header("host", "localhost")
    };
    builder.header("authorization", "Bearer k").header("x-script", script)
}

/// A mapping of the edge's memory.
struct Mapping {
    start: u64,
    end: u64,
    readable: bool,
    secret: bool,
}

fn mappings(edge: &Edge) -> Vec<Mapping> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", edge.pid())).expect("maps can be read");
    let parse = |text| u64::from_str_radix(text, 16).expect("address");
    let lines = maps.lines().filter(|line| !line.contains("[v"));
    lines
        .map(|line| {
            let (range, rest) = line.split_once(' ').expect("range");
            let (start, end) = range.split_once('-').expect("range");
            let secret = line.contains("/secretmem");
            Mapping { start: parse(start), end: parse(end), readable: rest.starts_with('r'), secret }
        })
        .collect()
}

/// Bytes of secret memory that are mapped, touched or not.
fn secret_bytes(edge: &Edge) -> u64 {
    mappings(edge).iter().filter(|mapping| mapping.secret).map(|mapping| mapping.end - mapping.start).sum()
}

/// How often `word` stands in what can be read of the process's memory. Reading secret memory must fail.
fn found(edge: &Edge, word: &[u8]) -> usize {
    let memory = File::open(format!("/proc/{}/mem", edge.pid())).expect("memory can be opened");
    let (mut hits, mut scanned) = (0, 0);
    let mut buffer = vec![0_u8; 1 << 20];
    for mapping in mappings(edge) {
        if mapping.secret {
            for place in [mapping.start, mapping.end - 4096] {
                let error = memory.read_at(&mut buffer[..64], place).expect_err("secret memory was read");
                // EIO
                assert_eq!(error.raw_os_error(), Some(5));
            }
            continue;
        }
        let mut at = mapping.start;
        while mapping.readable && at < mapping.end {
            let wanted = usize::try_from(mapping.end - at).unwrap_or(usize::MAX).min(buffer.len());
            let Ok(read @ 1..) = memory.read_at(&mut buffer[..wanted], at) else { break };
            scanned += read;
            hits += buffer[..read].windows(word.len()).filter(|window| window[0] == word[0] && *window == word).count();
            at += read as u64;
        }
    }
    assert!(scanned > 4 << 20, "only {scanned} bytes of memory could be read");
    hits
}

fn guard(edge: &Edge) -> f64 {
    edge.metric("nullhop_guard_active", &["guard=\"secret_heap\""])
}

#[test]
fn the_relay_works_and_gives_memory_back() {
    let _alone = alone();
    // Side by side: most of the time goes by until free segments are given back.
    std::thread::scope(|scope| {
        for client in [Alpn::H1, Alpn::H2] {
            for upstream in [Alpn::H1, Alpn::H2] {
                scope.spawn(move || works_and_gives_back(client, upstream));
            }
        }
    });
}

fn works_and_gives_back(client: Alpn, upstream: Alpn) {
    let (provider, edge) = rig(upstream, setup("secret"));
    let pair = format!("{client:?} to {upstream:?}");
    assert!(edge.log().iter().any(|line| line.contains("heap_chosen heap=secret")), "{:#?}", edge.log());
    assert_eq!(guard(&edge), 1.0);
    runtime().block_on(async {
        let mut one = edge.connect(client).await;
        let request = ask(&one, &format!("size={BIG}")).body(FullBody::new("{}")).expect("request");
        let down = Received::read(one.send(request).await.expect("answer"), 0).await;
        assert!(down.error.is_none() && down.sha256 == pattern_sha256(BIG), "{pair}: {} bytes down", down.len);
        one.ready().await.expect("ready");
        let request = ask(&one, "echo=1").body(PatternBody::new(BIG)).expect("request");
        let echo = Received::read(one.send(request).await.expect("answer"), 0).await;
        assert!(echo.error.is_none() && echo.sha256 == pattern_sha256(BIG), "{pair}: {} bytes back", echo.len);
    });
    assert!(wait_for(Duration::from_secs(30), || secret_bytes(&edge) < 4 << 20), "{pair}: after big bodies");

    let before = secret_bytes(&edge);
    let high = runtime().block_on(async {
        // Nobody reads them at first: a stream that moves holds too little to be seen.
        let mut streams = Vec::new();
        for _ in 0..200 {
            let mut one = edge.connect(client).await;
            let request = ask(&one, "size=1000000").body(FullBody::new("{}")).expect("request");
            let answer = one.send(request).await.expect("answer");
            streams.push((one, answer));
        }
        let mut high = 0;
        for _ in 0..100 {
            high = high.max(secret_bytes(&edge));
            if high > before + (8 << 20) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (_one, answer) in streams {
            let received = Received::read(answer, 0).await;
            assert!(received.error.is_none() && received.len == 1_000_000, "{} bytes", received.len);
        }
        high
    });
    assert!(high > before + (8 << 20), "{pair}: the streams were not held there: {before} to {high} bytes");
    // Of what they held; pooled connections to the provider live on.
    let back = || secret_bytes(&edge) < before + (high - before) / 4;
    assert!(
        wait_for(Duration::from_secs(60), back),
        "{pair}: from {before} to {high} bytes, back to {} only",
        secret_bytes(&edge)
    );
    println!(
        "{pair}: {} KiB, {} KiB under 200 streams, {} KiB after",
        before >> 10,
        high >> 10,
        secret_bytes(&edge) >> 10
    );
    assert_eq!(guard(&edge), 1.0);
    drop(provider);
}

#[test]
fn what_is_in_flight_is_found_on_the_plain_heap_only() {
    let _alone = alone();
    let word = *b"q7741zvjxkqwyhgp";
    let content: Bytes = word.iter().copied().cycle().take(16 << 10).collect::<Vec<u8>>().into();
    for (heap, client, upstream) in [
        ("plain", Alpn::H1, Alpn::H1),
        ("plain", Alpn::H2, Alpn::H2),
        ("locked", Alpn::H1, Alpn::H1),
        ("secret", Alpn::H1, Alpn::H1),
        ("secret", Alpn::H2, Alpn::H2),
    ] {
        let (_provider, edge) = rig(upstream, setup(heap));
        let says = format!("heap_chosen heap={heap}");
        assert!(edge.log().iter().any(|line| line.contains(&says)), "{:#?}", edge.log());
        assert_eq!(guard(&edge), if heap == "secret" { 1.0 } else { 0.0 });
        assert_eq!(secret_bytes(&edge) > 0, heap == "secret");
        runtime().block_on(async {
            let mut one = edge.connect(client).await;
            let (sender, body) = ChannelBody::new(1);
            let request = ask(&one, "read_stall=1").body(body).expect("request");
            let _answer = tokio::spawn(one.send(request));
            // Until nobody takes more.
            for _ in 0..4000 {
                if tokio::time::timeout(Duration::from_millis(1000), sender.send(content.clone())).await.is_err() {
                    break;
                }
            }
            let hits = found(&edge, &word);
            match heap {
                "secret" => assert_eq!(hits, 0, "{client:?} to {upstream:?}"),
                _ => assert!(hits > 100, "{heap}, {client:?} to {upstream:?}: the search finds {hits}"),
            }
        });
    }
}

#[test]
fn a_private_key_is_not_found_either() {
    let _alone = alone();
    for heap in ["plain", "secret"] {
        let (_provider, edge) = rig(Alpn::H1, setup(heap));
        let pem = std::fs::read_to_string(edge.scratch.path().join("edge.key")).expect("key");
        // The middle of the key: a P-256 key's PKCS#8 holds the 32 secret bytes at offset 36.
        let line: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
        let der = base64_decode(&line);
        let secret = &der[36..68];
        runtime().block_on(async {
            // The key is used once.
            edge.connect(Alpn::H1).await;
        });
        // As text, as it stands in the file, and as the library keeps numbers: its lowest byte first.
        let reversed: Vec<u8> = secret.iter().rev().copied().collect();
        let hits: Vec<usize> =
            [&line.as_bytes()[40..72], secret, &reversed].into_iter().map(|form| found(&edge, form)).collect();
        println!("{heap}: the private key stands {hits:?} times in what can be read");
        match heap {
            "secret" => assert_eq!(hits, [0, 0, 0]),
            // The search can find it.
            _ => assert!(hits[2] > 0),
        }
    }
}

fn base64_decode(text: &str) -> Vec<u8> {
    let value = |letter: u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|one| *one == letter)
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for six in text.bytes().filter_map(value) {
        bits = bits << 6 | six as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[test]
fn auto_falls_back_and_says_so() {
    let _alone = alone();
    let setup = Setup { nobody: Some(64), ..setup("auto") };
    let (_provider, edge) = rig(Alpn::H1, setup);
    assert!(edge.log().iter().any(|line| line.contains("heap_chosen heap=plain")), "{:#?}", edge.log());
    assert!(edge.log().iter().any(|line| line.contains("warn process_guard_missing guard=secret_heap")));
    assert_eq!(guard(&edge), 0.0);
    assert_eq!(secret_bytes(&edge), 0);
    runtime().block_on(async {
        let mut one = edge.connect(Alpn::H1).await;
        let request = ask(&one, "size=1000").body(FullBody::new("{}")).expect("request");
        assert_eq!(one.fetch(request).await.expect("answer").body.len(), 1000);
    });
}

#[test]
fn a_demand_that_cannot_be_met_is_fatal() {
    let _alone = alone();
    for heap in ["secret", "locked"] {
        let scratch = Scratch::new();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[metrics]\nenabled = false\n[admin]\nenabled = false\n\
             [memory]\nheap = \"{heap}\"\n[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n"
        );
        let path = scratch.file("nullhop.toml", &text);
        let mut command = support::as_nobody(&scratch, 64);
        let output = command.arg("run").arg("-c").arg(path).stdin(Stdio::null()).output().expect("runs");
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{says}");
        assert!(says.contains("LimitMEMLOCK=infinity") && says.contains("CAP_IPC_LOCK"), "{says}");
        assert!(!says.contains("listening"), "{says}");
    }
}

#[test]
fn beyond_the_limit_the_relay_goes_on_and_says_so() {
    let _alone = alone();
    let (_provider, edge) = rig(Alpn::H2, setup("secret"));
    assert_eq!(guard(&edge), 1.0);
    let pid = rustix::process::Pid::from_raw(edge.pid().cast_signed());
    // A segment takes a descriptor for a moment: without any, the system refuses.
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let descriptors = |current| {
        rustix::process::prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).expect("limit");
    };
    runtime().block_on(async {
        let mut clients = Vec::new();
        for _ in 0..60 {
            clients.push(edge.connect(Alpn::H1).await);
        }
        // The line to the provider is there, and each connection is past its handshake.
        for one in &mut clients {
            let request = ask(one, "size=1000").body(FullBody::new("{}")).expect("request");
            assert_eq!(one.fetch(request).await.expect("answer").body.len(), 1000);
            one.ready().await.expect("ready");
        }
        descriptors(Some(4));
        let mut held = Vec::new();
        for one in &mut clients {
            let request = ask(one, "size=8000000").body(FullBody::new("{}")).expect("request");
            held.push(one.send(request).await.expect("answer"));
        }
        let told = || edge.log().iter().any(|line| line.contains("error heap_limit_reached"));
        assert!(wait_for(Duration::from_secs(30), told), "{} bytes, {:#?}", secret_bytes(&edge), edge.log());
        for response in held {
            let received = Received::read(response, 0).await;
            assert!(received.error.is_none() && received.sha256 == pattern_sha256(8_000_000));
        }
        descriptors(maximum);
        let mut one = edge.connect(Alpn::H1).await;
        let request = ask(&one, "size=1000").body(FullBody::new("{}")).expect("request");
        assert_eq!(one.fetch(request).await.expect("answer").body.len(), 1000);
    });
    assert_eq!(guard(&edge), 0.0);
    assert_eq!(edge.log().iter().filter(|line| line.contains("heap_limit_reached")).count(), 1);
}
