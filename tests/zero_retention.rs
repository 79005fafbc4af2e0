//! Nothing stays: the memory of the running process is read and searched for what has passed.
//!
//! Every readable mapping of the process (`/proc/PID/maps`, `/proc/PID/mem`) is searched for the words
//! of the content, each 16 letters that occur nowhere else. Reading another process's memory takes
//! root or its parent; where it cannot be read, the test fails rather than passes.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use nullhop_loadtests::client::ChannelBody;
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

/// A word of the content: `seed` makes it unlike those of other steps.
fn word(seed: u32) -> Vec<u8> {
    // Letters that neither code nor headers hold in this order.
    format!("q{seed:04}zvjxkqwyhgp").into_bytes()
}

/// `bytes` of content made of that word.
fn content(seed: u32, bytes: usize) -> Bytes {
    let word = word(seed);
    word.iter().copied().cycle().take(bytes / word.len() * word.len()).collect::<Vec<u8>>().into()
}

/// How many bytes of the process's memory are pieces of the word: eight letters or more.
fn found(edge: &Edge, seed: u32) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", edge.pid())).expect("maps can be read");
    let memory = File::open(format!("/proc/{}/mem", edge.pid())).expect("memory can be read");
    // Every eight letters of the endless word, at each of its beginnings.
    let word = word(seed);
    let endless: Vec<u8> = word.iter().copied().cycle().take(2 * word.len()).collect();
    let pieces: Vec<[u8; 8]> =
        (0..word.len()).map(|start| endless[start..start + 8].try_into().expect("eight")).collect();
    let mut hits = 0;
    let mut scanned = 0;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().expect("range"), fields.next().expect("rights"));
        if !rights.starts_with('r')
            || line.ends_with("[vvar]")
            || line.ends_with("[vsyscall]")
            || line.contains("[vvar_")
        {
            continue;
        }
        let (start, end) = range.split_once('-').expect("range");
        let parse = |text| u64::from_str_radix(text, 16).expect("address");
        let (start, end) = (parse(start), parse(end));
        let mut at = start;
        let mut buffer = vec![0_u8; 1 << 20];
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let read = memory.read_at(&mut buffer[..wanted], at).unwrap_or(0);
            if read == 0 {
                break;
            }
            scanned += read;
            for (place, window) in buffer[..read].windows(8).enumerate() {
                // The first letter decides nearly always.
                if word.contains(&window[0]) && pieces.iter().any(|piece| piece == window) {
                    hits += 1;
                    if std::env::var_os("NULLHOP_SHOW").is_some() && hits < 4 {
                        let around = &buffer[place.saturating_sub(48)..(place + 64).min(read)];
                        eprintln!("{line}\n  {:x} {:?}", at + place as u64, String::from_utf8_lossy(around));
                    }
                }
            }
            at += read as u64;
        }
    }
    assert!(scanned > 4 << 20, "only {scanned} bytes of memory could be read");
    hits
}

/// Searches until nothing is found or two seconds are over: a connection gets to the end of its turn.
fn left(edge: &Edge, seed: u32) -> usize {
    for _ in 0..8 {
        if found(edge, seed) == 0 {
            return 0;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    found(edge, seed)
}

struct Rig {
    provider: Provider,
    edge: Edge,
    runtime: tokio::runtime::Runtime,
    client: Alpn,
    pair: String,
}

fn on_all_pairs(test: impl Fn(&Rig)) {
    for upstream in [Alpn::H1, Alpn::H2] {
        for client in [Alpn::H1, Alpn::H2] {
            let provider =
                Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() }).expect("provider");
            let setup =
                Setup { extra: "[runtime]\nworkers = 1\n[memory]\nheap = \"plain\"\n".to_owned(), ..Setup::default() };
            let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
            let pair = format!("{client:?} to {upstream:?}");
            test(&Rig { provider, edge, runtime, client, pair });
        }
    }
}

fn ask(client: &Client, script: &str) -> http::request::Builder {
    let path = "/openai/v1/chat/completions";
    let builder = if client.is_h2() {
        Request::post(format!("https://localhost{path}"))
    } else {
        Request::post(path).header("host", "localhost")
    };
    builder.header("authorization", "Bearer k").header("x-script", script)
}

#[test]
fn the_search_finds_what_is_there() {
    // The other way round: a client's memory, this process's, does hold the word.
    let kept = content(9999, 4096);
    let provider = Provider::spawn(ProviderOptions::default()).expect("provider");
    let setup = Setup { extra: "[memory]\nheap = \"plain\"\n".to_owned(), ..Setup::default() };
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", edge.pid())).expect("maps can be read");
    assert!(maps.contains("[heap]"));
    // A request that is held up in nullhop: its body waits for a provider that does not read.
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        let (sender, body) = ChannelBody::new(1);
        let request = ask(&client, "read_stall=1").body(body).expect("request");
        let answer = tokio::spawn(client.send(request));
        for _ in 0..4000 {
            if tokio::time::timeout(Duration::from_millis(300), sender.send(kept.clone())).await.is_err() {
                break;
            }
        }
        assert!(found(&edge, 9999) > 0, "a stalled upload must be found, or the search is blind");
        answer.abort();
    });
}

#[test]
fn echoed_content_is_gone_while_the_stream_still_runs_and_after_it() {
    on_all_pairs(|rig| {
        rig.runtime.block_on(async {
            let mut client = rig.edge.connect(rig.client).await;
            for (seed, bytes) in
                [(1_u32, 64_usize), (2, 200), (3, 255), (4, 300), (5, 2048), (6, 16 << 10), (7, 200 << 10)]
            {
                let sent = content(seed, bytes);
                let (sender, body) = ChannelBody::new(4);
                let request = ask(&client, "echo=1").body(body).expect("request");
                let (response, _) = tokio::join!(client.send(request), sender.send(sent.clone()));
                let mut answer = response.expect("answer").into_body();
                let mut got = 0;
                while got < sent.len() {
                    got += next_data(&mut answer).await.expect("more").expect("data").len();
                }
                // Both bodies are still open; all that was sent has been delivered.
                let stayed = left(&rig.edge, seed);
                assert_eq!(stayed, 0, "{}: {bytes} bytes, in mid-stream", rig.pair);
                drop(sender);
                while next_data(&mut answer).await.is_some() {}
                assert_eq!(left(&rig.edge, seed), 0, "{}: {bytes} bytes, after the end", rig.pair);
                let _ = client.ready().await;
            }
        });
    });
}

#[test]
fn big_bodies_errors_and_aborts_leave_nothing() {
    on_all_pairs(|rig| {
        rig.runtime.block_on(async {
            let mut client = rig.edge.connect(rig.client).await;
            // 8 MB up, a small answer; the connection is kept.
            for (seed, script) in [(11_u32, "size=10"), (12, "status=429"), (13, "status=500"), (14, "early=1")] {
                let request = ask(&client, script).body(FullBody::new(content(seed, 8 << 20))).expect("request");
                let received = Received::read(client.send(request).await.expect("answer"), 0).await;
                assert!(received.error.is_none(), "{} {script}", rig.pair);
                let _ = client.ready().await;
                assert_eq!(left(&rig.edge, seed), 0, "{} {script}", rig.pair);
            }
            // The provider breaks off after half of what it echoes; a client leaves in mid-upload.
            for (seed, script) in [(15_u32, "never=1"), (16, "read_stall=1")] {
                let mut client = rig.edge.connect(rig.client).await;
                let (sender, body) = ChannelBody::new(4);
                let request = ask(&client, script).body(body).expect("request");
                let answer = tokio::spawn(client.send(request));
                for _ in 0..40 {
                    let piece = sender.send(content(seed, 32 << 10));
                    if tokio::time::timeout(Duration::from_millis(200), piece).await.is_err() {
                        break;
                    }
                }
                client.abort(Ending::Reset);
                answer.abort();
                assert_eq!(left(&rig.edge, seed), 0, "{} {script}, client gone", rig.pair);
            }
            assert!(rig.provider.connects() > 0);
        });
    });
}
