//! Peers that mean harm, on both sides, against the real binary: what each gets, which guard counts
//! it, that nobody else suffers, and that nothing they said is repeated in log lines or metrics.

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use nullhop_loadtests::client::Answer;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::ClientOptions;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::any_body;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::h2raw;
use nullhop_loadtests::h2raw::RawFrame;
use nullhop_loadtests::h2raw::kind;
use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::raw::RawOptions;
use nullhop_loadtests::raw::RawProvider;
use nullhop_loadtests::raw::Step;
use nullhop_loadtests::raw::lies;
use nullhop_loadtests::tls::Alpn;
use support::Edge;
use support::Setup;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// In paths, queries, headers, bodies and server names of all attacks; must be found nowhere.
const CANARY: &str = "kanarie7f3q9zx";

// What the tests stand on.

/// An edge before a provider. Dropped, it looks for the canary in all that the edge has said.
struct Site {
    edge: Edge,
    provider: Option<Provider>,
}

impl Site {
    fn new(limits: &str) -> Self {
        Self::with(limits, Alpn::Both, "")
    }

    fn with(limits: &str, upstream: Alpn, more: &str) -> Self {
        let options = ProviderOptions { alpn: upstream, keep_body_bytes: 1 << 16, ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let edge =
            Edge::with(&provider.url(), provider.ca_pem(), Setup { extra: extra(limits, more), ..Setup::default() });
        Self { edge, provider: Some(provider) }
    }

    fn provider(&self) -> &Provider {
        self.provider.as_ref().expect("a scripted provider")
    }

    fn guard(&self, name: &str) -> f64 {
        self.edge.metric("nullhop_guard_total", &[&format!("guard=\"{name}\"")])
    }

    /// Waits until a guard has acted `times` times since it stood at `before`.
    #[track_caller]
    fn guard_moved(&self, name: &str, before: f64, times: u32) {
        let labels = format!("guard=\"{name}\"");
        let wanted = before + f64::from(times);
        let moved = self.edge.wait_for_metric("nullhop_guard_total", &[&labels], |now| now >= wanted, SOON);
        if !moved {
            let page = self.edge.scrape();
            let acted: Vec<&str> =
                page.lines().filter(|line| line.starts_with("nullhop_guard_total") && !line.ends_with(" 0")).collect();
            panic!("guard {name} has not come to {wanted}: {acted:#?}");
        }
    }

    /// Another client is served, and soon.
    async fn others_fine(&self) {
        let started = Instant::now();
        let answer = ask(&mut self.edge.connect(Alpn::H2).await, "/openai/v1/others", "size=1000", "{}").await;
        assert_eq!((answer.status(), answer.body.len()), (200, 1000));
        assert!(started.elapsed() < Duration::from_secs(10), "others waited {:?}", started.elapsed());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let said = self.edge.log().join("\n") + &self.edge.scrape();
        for disguise in disguises(CANARY) {
            assert!(!said.contains(&disguise), "the edge repeats what clients say");
        }
        assert!(!said.contains("panic"), "something panicked");
    }
}

fn extra(limits: &str, more: &str) -> String {
    format!("[limits]\n{limits}\n[runtime]\nworkers = 1\n{more}\n")
}

/// The forms in which a text may hide: plain, upper case, hex, base64 at each offset, percent.
fn disguises(text: &str) -> Vec<String> {
    use base64::Engine;
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut all = vec![text.to_owned(), text.to_uppercase(), hex.to_uppercase(), hex, percent.to_uppercase(), percent];
    for offset in 0..3 {
        let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode("x".repeat(offset) + text);
        // The outermost characters depend on the neighbours.
        all.push(encoded[4..encoded.len() - 2].to_owned());
    }
    all
}

fn request(h2: bool, path: &str, script: &str) -> http::request::Builder {
    let request = if h2 { Request::post(format!("https://localhost{path}")) } else { Request::post(path) };
    let request = if h2 { request } else { request.header("host", "localhost") };
    request.header("authorization", format!("Bearer {CANARY}")).header("x-script", script)
}

async fn ask(client: &mut Client, path: &str, script: &str, body: &str) -> Answer {
    let request = request(client.is_h2(), path, script).body(FullBody::new(body.to_owned())).expect("request");
    client.ready().await.expect("ready");
    client.fetch(request).await.expect("answer")
}

async fn tls(edge: &Edge, alpn: Alpn) -> Tls {
    raw_tls_connect(edge.address(), "localhost", alpn, &edge.trust()).await.expect("connects")
}

/// Writes, then reads until the end or until nothing has come for a while. The second value says
/// whether the connection was closed.
async fn say(edge: &Edge, bytes: impl AsRef<[u8]>) -> (Vec<u8>, bool) {
    let mut stream = tls(edge, Alpn::H1).await;
    // Fails where the edge has closed already.
    let _ = stream.write_all(bytes.as_ref()).await;
    let _ = stream.flush().await;
    listen(&mut stream, Duration::from_secs(9)).await
}

async fn listen(stream: &mut Tls, patience: Duration) -> (Vec<u8>, bool) {
    let mut answer = Vec::new();
    loop {
        // Behind an answer that announces the end comes the end, however busy the machine is.
        let settled = !answer.is_empty() && !answer.windows(17).any(|part| part == b"connection: close");
        let wait = if settled { Duration::from_millis(750) } else { patience };
        match tokio::time::timeout(wait, stream.read_buf(&mut answer)).await {
            Err(_) => return (answer, false),
            Ok(Ok(0) | Err(_)) => return (answer, true),
            Ok(Ok(_)) => {}
        }
    }
}

/// The status codes of h1 answers in the order of their arrival.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.").skip(1).map(|rest| rest[2..5].parse().expect("status")).collect()
}

/// The JSON of a single h1 answer.
fn json_of(answer: &[u8]) -> serde_json::Value {
    let text = String::from_utf8_lossy(answer);
    text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or_default()
}

async fn h2(edge: &Edge, settings: &[(u16, u32)]) -> Tls {
    let mut stream = tls(edge, Alpn::H2).await;
    let payload: Vec<u8> =
        settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()).collect();
    let hello = [h2raw::PREFACE, &h2raw::frame(kind::SETTINGS, 0, 0, &payload)].concat();
    stream.write_all(&hello).await.expect("writes");
    stream
}

fn h2_head(stream: u32, flags: u8, method: &str, path: &str, script: &str) -> Bytes {
    let block = h2raw::header_block(&[
        (":method", method),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("authorization", &format!("Bearer {CANARY}")),
        ("x-script", script),
    ]);
    h2raw::frame(kind::HEADERS, flags, stream, &block)
}

/// Reads frames, answering SETTINGS and, if `pongs`, PINGs, until `done` says so, the end comes or
/// the time is over. The second value says whether the connection was closed.
async fn frames(
    stream: &mut Tls,
    pongs: bool,
    patience: Duration,
    mut done: impl FnMut(&RawFrame) -> bool,
) -> (Vec<RawFrame>, bool) {
    let mut seen = Vec::new();
    let closed = tokio::time::timeout(patience, async {
        while let Ok(Some(frame)) = h2raw::read_frame(stream).await {
            if frame.flags & 1 == 0 && (frame.kind == kind::SETTINGS || (frame.kind == kind::PING && pongs)) {
                let payload: &[u8] = if frame.kind == kind::PING { &frame.payload } else { &[] };
                let _ = stream.write_all(&h2raw::frame(frame.kind, 1, 0, payload)).await;
                let _ = stream.flush().await;
            }
            let enough = done(&frame);
            seen.push(frame);
            if enough {
                return false;
            }
        }
        true
    })
    .await;
    (seen, closed.unwrap_or(false))
}

fn has(frames: &[RawFrame], kind: u8) -> bool {
    frames.iter().any(|frame| frame.kind == kind)
}

// 1. Framing.

/// What may come of a request whose framing is odd.
enum Fate {
    /// Nothing reaches the provider.
    Refused,
    /// The same, counted as another guard.
    TooLarge,
    /// The provider sees it once, with this body, or not at all.
    Once(&'static str),
    /// If the provider sees it, its body does not end well.
    Cut,
}

#[test]
fn odd_framing_never_makes_two_requests_of_one() {
    use Fate::*;
    let many_zeros = format!("{}2\r\nab\r\n0\r\n\r\n", "0".repeat(64 << 10));
    let big_extension = format!("2;{}\r\nab\r\n0\r\n\r\n", "e".repeat(64 << 10));
    // Header lines, what follows the empty line, and whether a second request follows behind it all.
    let cases: Vec<(&str, &str, bool, Fate)> = vec![
        ("content-length: 6\r\ntransfer-encoding: chunked", "0\r\n\r\n", true, Once("")),
        ("transfer-encoding: chunked\r\ncontent-length: 6", "0\r\n\r\n", true, Once("")),
        ("content-length: 3\r\ntransfer-encoding: chunked", "3\r\nabc\r\n0\r\n\r\n", true, Once("abc")),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: identity\r\ntransfer-encoding: chunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: gzip, chunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: chunked, chunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: xchunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: chunkedx", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: chunked;q=1", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: \x0bchunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding:\r\n chunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding : chunked", "0\r\n\r\n", true, Refused),
        (" transfer-encoding: chunked", "0\r\n\r\n", true, Refused),
        ("content-length: ", "ab", true, Refused),
        ("content-length: 2, 2", "ab", true, Refused),
        ("content-length: 2,3", "ab", true, Refused),
        ("content-length: +2", "ab", true, Refused),
        ("content-length: -2", "ab", true, Refused),
        ("content-length: 0x2", "ab", true, Refused),
        ("content-length: 2 2", "ab", true, Refused),
        ("content-length: 18446744073709551616", "ab", true, Refused),
        ("content-length: 18446744073709551615", "ab", true, TooLarge),
        ("content-length: 2\r\ncontent-length: 2", "ab", false, Once("ab")),
        ("content-length: 2\r\ncontent-length: 3", "abc", true, Refused),
        ("content-length : 2", "ab", true, Refused),
        ("content-length: 2\r\nx: a\r\n b", "ab", true, Refused),
        ("content-length: 2\r\nx\x00: a", "ab", true, Refused),
        ("content-length: 2\r\nx: a\x00b", "ab", true, Refused),
        ("content-length: 2\r\nx: a\rb", "ab", true, Refused),
        ("content-length: 2\nx: b", "ab", false, Once("ab")),
        ("content_length: 2", "", true, Refused),
        ("transfer_encoding: chunked", "", true, Refused),
        ("x_api_key: a", "", true, Refused),
        ("content-length: 2\r\nexpect: 200-ok", "ab", true, Refused),
        ("transfer-encoding: chunked,", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: , chunked", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: \"chunked\"", "0\r\n\r\n", true, Refused),
        ("transfer-encoding: chunked\r\ntransfer-encoding: x", "0\r\n\r\n", true, Refused),
        ("transfer-encoding:\tchunked \t", "2\r\nab\r\n0\r\n\r\n", false, Once("ab")),
        ("content-length: 2\r\ncontent-length:", "ab", true, Refused),
        ("content-length: 2\r\ntransfer-encoding:", "ab", true, Refused),
        ("content-length: 2\r\ntransfer-encoding: identity", "ab", true, Refused),
        ("content-length:\t2 \t", "ab", false, Once("ab")),
        ("content-length: 2;", "ab", true, Refused),
        ("content-length: 2.0", "ab", true, Refused),
        ("content-length: \"2\"", "ab", true, Refused),
        ("content-length: 2\r\n: a", "ab", true, Refused),
        ("content-length: 2\r\nx", "ab", true, Refused),
        ("content-length: 2\r\nx: a\x7fb", "ab", true, Refused),
        ("content-length: 2\r\nx: a\x01b", "ab", true, Refused),
        ("content-length: 2\r\r\nx: a", "ab", true, Refused),
        ("transfer-encoding: chunked", "2 ;a=b\r\nab\r\n0\r\n\r\n", false, Once("ab")),
        ("transfer-encoding: chunked", "2\t\r\nab\r\n0;a\r\n\r\n", false, Once("ab")),
        ("transfer-encoding: chunked", "00000000000000000000002\r\nab\r\n000\r\n\r\n", false, Once("ab")),
        ("transfer-encoding: chunked", &many_zeros, true, Cut),
        ("transfer-encoding: chunked", " 2\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2 2\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2_\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\n\rab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2;a\rb\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nab\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nab\r\n0\r\n\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nab\r\n0\r\nx: a\x00b\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nab\r\n0\r\n: a\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "0x2\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "fffffffffffffffff\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "-2\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "+2\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nabc\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nab0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\nab\n0\n\n", true, Cut),
        ("transfer-encoding: chunked", "2;a\nb\r\nab\r\n0\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", &big_extension, true, Cut),
        ("transfer-encoding: chunked", "2\r\nab\r\n0\r\nx y: z\r\n\r\n", true, Cut),
        ("transfer-encoding: chunked", "2\r\nab\r\n0\r\ncontent-length: 9\r\n\r\n", false, Once("ab")),
    ];
    for upstream in [Alpn::H1, Alpn::H2] {
        let site = Site::with("", upstream, "");
        support::runtime().block_on(async {
            for (number, (fields, rest, second, fate)) in cases.iter().enumerate() {
                let before = site.guard("bad_framing");
                let mut bytes = format!(
                    "POST /openai/v1/case-{number}?{CANARY} HTTP/1.1\r\nhost: localhost\r\nx-script: size=2\r\nx-{CANARY}: 1\r\n{fields}\r\n\r\n{rest}"
                );
                if *second {
                    bytes += &format!("POST /openai/v1/second-{number} HTTP/1.1\r\nhost: localhost\r\nx-script: size=2\r\n\r\n");
                }
                let (answer, closed) = say(&site.edge, bytes).await;
                let codes = statuses(&answer);
                let what = format!("{upstream:?} {number} {fields:?} {:?}: {codes:?}", &rest[..rest.len().min(20)]);
                let seen = site.provider().requests();
                assert!(!seen.iter().any(|seen| seen.path.contains("second")), "{what}: smuggled");
                let hits: Vec<_> =
                    seen.iter().filter(|seen| seen.path.contains(&format!("/case-{number}?"))).collect();
                match fate {
                    TooLarge => {
                        // Its rest is read away for a while, so that the client gets to read the answer.
                        assert!(hits.is_empty() && matches!(codes[..], [413]), "{what}");
                        assert!(site.guard("body_too_large") > 0.0, "{what}");
                    }
                    Refused => {
                        assert!(hits.is_empty(), "{what}: reached the provider");
                        assert!(closed, "{what}: stays open");
                        assert!(matches!(codes[..], [400 | 417]), "{what}");
                        site.guard_moved("bad_framing", before, 1);
                    }
                    Once(body) => {
                        assert!(matches!(codes[..], [200 | 400]), "{what}");
                        assert_eq!(hits.len(), usize::from(codes == [200]), "{what}");
                        for hit in hits {
                            assert_eq!((&hit.body[..], hit.body_end), (body.as_bytes(), BodyEnd::Clean), "{what}");
                            assert_eq!(hit.trailers, None, "{what}");
                        }
                    }
                    Cut => {
                        assert!(closed, "{what}: stays open");
                        assert!(matches!(codes[..], [400] | []), "{what}");
                        assert!(hits.len() <= 1, "{what}");
                        assert!(hits.iter().all(|hit| hit.body_end != BodyEnd::Clean), "{what}: {:?}", hits[0].body_end);
                        site.guard_moved("bad_framing", before, 1);
                    }
                }
            }
            let before = site.guard("bad_framing");
            let old = "POST /openai/v1/old HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
            let codes = statuses(&say(&site.edge, old).await.0);
            assert!(matches!(codes[..], [400]), "{codes:?}");
            site.guard_moved("bad_framing", before, 1);
            assert!(!site.provider().requests().iter().any(|seen| seen.path.contains("/old")));
            site.others_fine().await;
        });
    }
}

#[test]
fn what_a_body_says_is_never_a_request() {
    let inner = |number: usize| {
        format!("POST /openai/v1/inner-{number} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
    };
    // Request lines, whether what is asked for comes to a provider, and fields. A body is behind each, which looks like a
    // request, and a request behind that.
    let cases = [
        // Nobody wants the body.
        ("POST /nowhere", ""),
        ("GET /nowhere", ""),
        ("HEAD /nowhere", ""),
        ("DELETE /nowhere", "expect: 100-continue\r\n"),
        ("POST /openai/v1/%2e%2e/x", ""),
        ("POST /openai/v1/x", "expect: 200-ok\r\n"),
        // With methods that seldom have one.
        ("GET /openai/v1/models", ""),
        ("HEAD /openai/v1/models", ""),
        ("OPTIONS /openai/v1/models", ""),
        ("DELETE /openai/v1/models/x", ""),
        // The answer comes before it is read.
        ("POST /openai/v1/x", "x-script: size=2;early=1\r\n"),
        ("POST /openai/v1/x", "x-script: status=400;size=2;early=1;len=chunked\r\n"),
        ("POST /openai/v1/x", "x-script: status=204\r\n"),
        ("POST /openai/v1/x", "x-script: status=304\r\n"),
        ("POST /openai/v1/x", "x-script: size=2;len=chunked;close=1\r\n"),
        // Another protocol is asked for.
        (
            "GET /openai/v1/realtime",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        (
            "GET /openai/v1/x",
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        ),
    ];
    let one = async |site: &Site, upstream: Alpn, number: usize, chunked: bool| {
        let (line, fields) = cases[number];
        let number = 2 * number + usize::from(chunked);
        let said = inner(number);
        let (framing, body) = if chunked {
            ("transfer-encoding: chunked".to_owned(), format!("{:x}\r\n{said}\r\n0\r\n\r\n", said.len()))
        } else {
            (format!("content-length: {}", said.len()), said)
        };
        let fields =
            if fields.contains("x-script") { fields.to_owned() } else { format!("{fields}x-script: size=2\r\n") };
        let bytes = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\n{fields}{framing}\r\n\r\n{body}\
             POST /openai/v1/own-{number} HTTP/1.1\r\nhost: localhost\r\nx-script: status=203;size=3\r\ncontent-length: 0\r\n\r\n"
        );
        let (answer, closed) = say(&site.edge, bytes).await;
        let codes: Vec<_> = statuses(&answer).into_iter().filter(|code| *code != 100).collect();
        let what = format!("{upstream:?} {line} {fields:?} chunked {chunked}: {codes:?}");
        let seen = site.provider().requests();
        assert!(!seen.iter().any(|seen| seen.path.contains("inner")), "{what}: smuggled");
        let own = seen.iter().filter(|seen| seen.path.ends_with(&format!("/own-{number}"))).count();
        match codes[..] {
            [_, 203] => assert_eq!(own, 1, "{what}"),
            [_] => assert!(closed && own == 0, "{what}: {own}, closed {closed}"),
            _ => panic!("{what}"),
        }
    };
    // Each waits whether anything else comes.
    std::thread::scope(|scope| {
        for upstream in [Alpn::H1, Alpn::H2] {
            let (one, count) = (&one, cases.len());
            scope.spawn(move || {
                let site = Site::with("", upstream, "");
                support::runtime().block_on(async {
                    for number in 0..count {
                        tokio::join!(one(&site, upstream, number, false), one(&site, upstream, number, true));
                    }
                    site.others_fine().await;
                });
            });
        }
    });
}

// 2. Targets, hosts, methods.

#[test]
fn odd_targets_hosts_and_methods_reach_nobody() {
    let site = Site::new("");
    // Request line, Host lines, guard, status.
    let long = |method: &str, target: &str| format!("{method} {target} HTTP/1.1");
    let mut cases: Vec<(String, &str, &str, u16)> = Vec::new();
    let host = "host: localhost\r\n";
    for (method, target, guard, status) in [
        ("GET", "http://localhost/openai/v1/models", "bad_target", 400),
        ("GET", "https://localhost/openai/v1/models", "bad_target", 400),
        ("GET", "http://169.254.169.254/openai/v1/models", "bad_target", 400),
        ("GET", "localhost:443", "bad_target", 400),
        ("OPTIONS", "*", "bad_target", 400),
        ("CONNECT", "localhost:443", "bad_method", 405),
        ("CONNECT", "10.0.0.1:22", "bad_method", 405),
        ("TRACE", "/openai/v1/models", "bad_method", 405),
        ("BREW", "/openai/v1/models", "bad_method", 405),
        ("get", "/openai/v1/models", "bad_method", 405),
        ("PRI", "/openai/v1/models", "bad_method", 405),
        ("GET", "//openai/v1/models", "bad_target", 400),
        ("GET", "/openai//v1/models", "bad_target", 400),
        ("GET", "/openai/../anthropic/v1/models", "bad_target", 400),
        ("GET", "/openai/v1/..", "bad_target", 400),
        ("GET", "/openai/./v1/models", "bad_target", 400),
        ("GET", "/openai/%2e%2e/v1/models", "bad_target", 400),
        ("GET", "/openai/%2E./v1/models", "bad_target", 400),
        ("GET", "/openai/v1/%00", "bad_target", 400),
        ("GET", "/openai/v1/%0d%0ahost:%20x", "bad_target", 400),
        ("GET", "/openai/v1/%5c..", "bad_target", 400),
        ("GET", "/openai/v1/..;/models", "bad_target", 400),
        ("GET", "/openai/v1/%zz", "bad_target", 400),
        ("GET", "/openai/v1/%", "bad_target", 400),
    ] {
        cases.push((long(method, target), host, guard, status));
    }
    for hosts in [
        "",
        "host:\r\n",
        "host: localhost\r\nhost: localhost\r\n",
        "host: localhost\r\nhost: evil.example\r\n",
        "host: a@localhost\r\n",
        "host: localhost/x\r\n",
        "host: localhost,evil.example\r\n",
        "host: local%68ost\r\n",
        "host: localhost evil\r\n",
        "host: localhost#\r\n",
    ] {
        cases.push((long("GET", "/openai/v1/models"), hosts, "bad_host", 400));
    }
    for hosts in [
        "host: evil.example\r\n",
        "host: evil.example:443\r\n",
        "host: localhost.evil.example\r\n",
        "host: 169.254.169.254\r\n",
        "host: 0x7f.1\r\n",
        "host: localhost:x\r\n",
        "host: localhost..\r\n",
    ] {
        cases.push((long("GET", "/openai/v1/models"), hosts, "bad_host", 421));
    }
    support::runtime().block_on(async {
        for (line, hosts, guard, status) in &cases {
            for (dialect, mark, shape) in [
                ("", "openai", "code"),
                ("anthropic-version: 1\r\n", "anthropic", "type"),
                ("x-goog-api-key: k\r\n", "google", "status"),
            ] {
                // The path decides before the fields do.
                if !dialect.is_empty() && line.contains("/openai") {
                    continue;
                }
                let before = site.guard(guard);
                let (answer, closed) =
                    say(&site.edge, format!("{line}\r\n{hosts}{dialect}x-c: {CANARY}\r\n\r\n")).await;
                let what = format!("{line} {hosts:?} {mark}: {:?}", String::from_utf8_lossy(&answer));
                assert_eq!(statuses(&answer), [*status], "{what}");
                assert!(closed, "{what}: stays open");
                assert!(json_of(&answer)["error"][shape].is_string(), "{what}");
                site.guard_moved(guard, before, 1);
            }
        }
        // hyper refuses these by itself.
        for target in ["/openai/v1/\\..\\x\x7f", "/openai/v1/\x01", "openai/v1/models", ""] {
            let (answer, closed) = say(&site.edge, format!("GET {target} HTTP/1.1\r\n{host}\r\n")).await;
            assert!(closed && statuses(&answer) == [400], "{target:?}: {:?}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(site.provider().requests().len(), 0, "nothing reaches the provider");
        // A backslash and a fragment: the one is refused, the other is no part of a target and goes nowhere.
        let (answer, _) = say(&site.edge, format!("GET /openai/v1\\models HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!(statuses(&answer), [400]);
        say(&site.edge, format!("GET /openai/v1/models#/../{CANARY} HTTP/1.1\r\n{host}\r\n")).await;
        assert!(site.provider().requests().iter().all(|seen| seen.path == "/v1/models"));
        site.others_fine().await;
    });
}

#[test]
fn odd_h2_heads_reach_nobody() {
    let site = Site::new("");
    let good = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/openai/v1/models")];
    let change = |name: &'static str, value: &'static str| -> Vec<(&str, &str)> {
        good.iter().map(|&(key, old)| (key, if key == name { value } else { old })).collect()
    };
    let add = |name: &'static str, value: &'static str| -> Vec<(&str, &str)> {
        good.iter().copied().chain([(name, value)]).collect()
    };
    // The guard, or "" where h2 itself resets the stream or ends the connection.
    let cases: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![(":method", "CONNECT"), (":authority", "localhost:22")], "bad_method"),
        (vec![(":method", "CONNECT"), (":authority", "10.0.0.1:22")], "bad_method"),
        (change(":method", "TRACE"), "bad_method"),
        (change(":method", "BREW"), "bad_method"),
        (change(":path", "//openai/v1/models"), "bad_target"),
        (change(":path", "/openai/../v1/models"), "bad_target"),
        (change(":path", "/openai/%2e%2e/models"), "bad_target"),
        (change(":path", "/openai/v1/%0d%0a"), "bad_target"),
        (change(":path", "*"), "bad_target"),
        (change(":authority", "evil.example"), "bad_host"),
        (change(":authority", "a@localhost"), "bad_host"),
        (change(":authority", "localhost:99x"), ""),
        (add("host", "evil.example"), "bad_host"),
        (add("content_length", "5"), "bad_framing"),
        (add("transfer-encoding", "chunked"), ""),
        (add("connection", "x"), ""),
        (add("x-a", "b\r\nx-c: d"), ""),
        (add("x-a\r\nx-c", "d"), ""),
        (add("x-A", "d"), ""),
        (add("x-a", "b\0"), ""),
        (add(":path", "/openai/v1/second"), ""),
        (add(":status", "200"), ""),
        (change(":path", "/openai/v1/mod els"), ""),
        (change(":path", "/openai/v1/x\r\nhost: evil"), ""),
        (change(":authority", "localhost\r\nx: y"), ""),
        (change(":method", "GET / HTTP/1.1\r\nx:"), ""),
        (vec![(":method", "GET"), (":scheme", "https"), (":path", "/openai/v1/models")], "bad_host"),
    ];
    support::runtime().block_on(async {
        for (fields, guard) in &cases {
            let before = site.guard(guard);
            let mut stream = h2(&site.edge, &[]).await;
            let block = h2raw::header_block(fields);
            let head = h2raw::frame(kind::HEADERS, h2raw::END_HEADERS | h2raw::END_STREAM, 1, &block);
            stream.write_all(&head).await.expect("writes");
            let (seen, closed) = frames(&mut stream, true, SOON, |frame| {
                frame.kind == kind::RST_STREAM
                    || frame.kind == kind::GOAWAY
                    || (frame.stream == 1 && frame.flags & 1 == 1)
            })
            .await;
            let refused = has(&seen, kind::RST_STREAM) || has(&seen, kind::GOAWAY) || closed;
            let answered = has(&seen, kind::HEADERS);
            assert!(refused || answered, "{fields:?}: {seen:?}");
            if guard.is_empty() {
                assert!(refused && !has(&seen, kind::DATA) || answered, "{fields:?}: {seen:?}");
            } else {
                assert!(answered, "{fields:?}: {seen:?}");
                let data: Vec<u8> = seen
                    .iter()
                    .filter(|frame| frame.kind == kind::DATA)
                    .flat_map(|frame| frame.payload.to_vec())
                    .collect();
                let json: serde_json::Value = serde_json::from_slice(&data).unwrap_or_default();
                assert!(json["error"]["code"].is_string(), "{fields:?}: {json}");
                site.guard_moved(guard, before, 1);
            }
        }
        assert_eq!(site.provider().requests().len(), 0, "nothing reaches the provider");
        // A body that is not as long as announced.
        let mut stream = h2(&site.edge, &[]).await;
        let block = h2raw::header_block(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", "/openai/v1/short"),
            ("content-length", "5"),
        ]);
        let head = h2raw::frame(kind::HEADERS, h2raw::END_HEADERS, 1, &block);
        let body = h2raw::frame(kind::DATA, h2raw::END_STREAM, 1, b"abcdefg");
        stream.write_all(&[head, body].concat()).await.expect("writes");
        let (seen, closed) = frames(&mut stream, true, SOON, |frame| frame.kind == kind::RST_STREAM).await;
        assert!(closed || has(&seen, kind::RST_STREAM), "{seen:?}");
        assert!(!site.provider().requests().iter().any(|seen| seen.body_end == BodyEnd::Clean));
        site.others_fine().await;
    });
}

#[test]
fn an_answer_that_ends_the_connection_is_not_lost_for_what_follows_it() {
    let site = Site::new("");
    support::runtime().block_on(async {
        let more = "x".repeat(300 << 10);
        let whole =
            "POST /openai/v1/models HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\nx-script: size=1000\r\n";
        for (head, status) in [
            ("GET / HTTP/1.1\r\nhost : localhost\r\n\r\n".to_owned(), 400),
            (format!("GET / HTTP/1.1\r\nhost: localhost\r\nx-big: {more}"), 431),
            (format!("{whole}connection: close\r\n\r\n{{}}{whole}\r\n{{}}"), 200),
        ] {
            let mut stream = tls(&site.edge, Alpn::H1).await;
            stream.write_all(head.as_bytes()).await.expect("taken");
            // Sent without a look at the answer, which has come by then: a reset would end this, and elsewhere than on Linux
            // take the answer along.
            for _ in 0..30 {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.write_all(&[b'x'; 1_000]).await.expect("taken");
                stream.flush().await.expect("taken");
            }
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("an orderly end");
            assert_eq!(statuses(&answer), [status]);
        }
        // Not for ever, nor for any number of bytes.
        for pause in [Duration::ZERO, Duration::from_millis(50)] {
            let mut stream = tls(&site.edge, Alpn::H1).await;
            stream.write_all(b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n").await.expect("taken");
            let begun = Instant::now();
            while stream.write_all(&[b'x'; 1_000]).await.is_ok() && stream.flush().await.is_ok() {
                assert!(begun.elapsed() < Duration::from_secs(20), "still read after {:?}", begun.elapsed());
                tokio::time::sleep(pause).await;
            }
        }
        site.others_fine().await;
    });
}

// 3. Too much.

#[test]
fn oversize_heads_are_431() {
    let site = Site::new("");
    let big = "b".repeat(70 << 10);
    support::runtime().block_on(async {
        let many: String = (0..200).map(|number| format!("x-{number}: {CANARY}\r\n")).collect();
        let start = "GET /openai/v1/models";
        for head in [
            format!("{start} HTTP/1.1\r\nhost: localhost\r\nx-big: {CANARY}{big}\r\n\r\n"),
            format!("{start} HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"),
            format!("{start}?{CANARY}{big} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
            // Never ends.
            format!("{start} HTTP/1.1\r\nhost: localhost\r\nx-big: {CANARY}{big}"),
        ] {
            let before = site.guard("head_too_large");
            let (answer, closed) = say(&site.edge, &head).await;
            assert!(closed && matches!(statuses(&answer)[..], [431 | 414]), "{:?}", String::from_utf8_lossy(&answer));
            site.guard_moved("head_too_large", before, 1);
        }
        let uri = format!("https://localhost/openai/v1/models?{}", "b".repeat(60 << 10));
        let wide = |request: http::request::Builder| {
            (0..150).fold(request, |it, number| it.header(format!("x-{number}"), CANARY))
        };
        for request in [
            Request::get("https://localhost/openai/v1/models").header("x-big", &big),
            wide(Request::get("https://localhost/openai/v1/models")),
            Request::get(uri).header("x-big", &big[..10 << 10]),
        ] {
            let before = site.guard("head_too_large");
            let mut client = site.edge.connect(Alpn::H2).await;
            let answer = client.fetch(request.body(FullBody::empty()).expect("request")).await.expect("answer");
            assert_eq!((answer.status(), answer.json()["error"]["code"].as_str()), (431, Some("head_too_large")));
            site.guard_moved("head_too_large", before, 1);
        }
        assert_eq!(site.provider().requests().len(), 0, "nothing reaches the provider");
        site.others_fine().await;
    });
}

#[test]
fn oversize_bodies_are_413_in_the_right_dialect() {
    const PATHS: [(&str, &str, &str); 3] = [
        ("/openai/v1/chat/completions", "code", "request_too_large"),
        ("/anthropic/v1/messages", "type", "request_too_large"),
        ("/gemini/v1beta/models/m:generateContent", "status", "INVALID_ARGUMENT"),
    ];
    for upstream in [Alpn::H1, Alpn::H2] {
        let site = Site::with("body_bytes = \"1MiB\"", upstream, "");
        support::runtime().block_on(async {
            for (path, key, word) in PATHS {
                for alpn in [Alpn::H1, Alpn::H2] {
                    for announced in [true, false] {
                        let before = site.guard("body_too_large");
                        let mut client = site.edge.connect(alpn).await;
                        let request = request(client.is_h2(), path, "");
                        // 40 MB nonstop; the answer has to arrive all the same.
                        let body = PatternBody::new(40_000_000).pieces(50_000);
                        let sent = if announced {
                            client.send(request.body(any_body(body)).expect("request"))
                        } else {
                            client.send(request.body(any_body(Endless(body))).expect("request"))
                        };
                        let what = format!("{upstream:?} {path} {alpn:?} announced={announced}");
                        let answer = sent.await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                        let answer = Answer::collect(answer).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                        assert_eq!(answer.status(), 413, "{what}");
                        assert_eq!(answer.json()["error"][key], word, "{what}");
                        assert_eq!(answer.header("x-should-retry"), "false", "{what}");
                        site.guard_moved("body_too_large", before, 1);
                    }
                }
            }
            assert!(site.provider().wait_for(|state| state.open_streams == 0, SOON).await);
            let seen = site.provider().requests();
            assert!(
                seen.iter().all(|seen| seen.body_end != BodyEnd::Clean && seen.body_len <= 1 << 20),
                "cut upstream"
            );
            site.others_fine().await;
            // By hand, all written before a byte is read: no RST may overtake the answer.
            let mut stream = tls(&site.edge, Alpn::H1).await;
            let head = "POST /openai/v1/files-not HTTP/1.1\r\nhost: localhost\r\ncontent-length: 40000000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.expect("writes");
            let piece = vec![b'x'; 1_000_000];
            for _ in 0..40 {
                stream.write_all(&piece).await.expect("the edge goes on reading");
            }
            stream.flush().await.expect("flushes");
            assert_eq!(statuses(&listen(&mut stream, SOON).await.0), [413]);
        });
    }
}

/// A body that does not say how long it is.
struct Endless(PatternBody);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = nullhop_loadtests::BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(cx)
    }
}

// 4. Slow peers.

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);

/// Longer than any of the deadlines below on a busy machine, and shorter than what they are without configuration.
const BELOW_DEFAULTS: Duration = Duration::from_secs(8);

/// All deadlines as short as the configuration takes them.
const SHORT: &str = "handshake_timeout = \"1s\"\nhead_timeout = \"1s\"\nfirst_request_timeout = \"1s\"\nidle_timeout = \"1s\"\n\
     body_grace = \"1s\"\nwrite_stall = \"2s\"\nconnection_age = \"10s\"\n";

#[test]
fn slow_peers_are_ended_before_their_first_request() {
    let site = Site::new(SHORT);
    support::runtime().block_on(async {
        let address = site.edge.address();
        let hello = async {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            // A record that promises 512 bytes of ClientHello.
            stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await.expect("writes");
            gone_within(&mut stream, BELOW_DEFAULTS).await
        };
        let silent = async {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            gone_within(&mut stream, BELOW_DEFAULTS).await
        };
        let drop_by_drop = async {
            let mut stream = tls(&site.edge, Alpn::H1).await;
            let head = format!("GET /openai/v1/models?{CANARY} HTTP/1.1\r\nhost: localhost\r\nx: {}", "y".repeat(200));
            let started = Instant::now();
            for byte in head.bytes() {
                if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            started.elapsed() < Duration::from_secs(8)
        };
        let silent_h1 = async { gone_within(&mut tls(&site.edge, Alpn::H1).await, BELOW_DEFAULTS).await };
        let silent_h2 = async { gone_within(&mut tls(&site.edge, Alpn::H2).await, BELOW_DEFAULTS).await };
        let half_preface = async {
            let mut stream = tls(&site.edge, Alpn::H2).await;
            stream.write_all(&h2raw::PREFACE[..10]).await.expect("writes");
            gone_within(&mut stream, BELOW_DEFAULTS).await
        };
        let pongs = async {
            let mut stream = h2(&site.edge, &[]).await;
            frames(&mut stream, true, BELOW_DEFAULTS, |_| false).await.1
        };
        let half_head = async {
            let mut stream = h2(&site.edge, &[]).await;
            stream.write_all(&h2_head(1, 0, "GET", &format!("/openai/v1/{CANARY}"), "")).await.expect("writes");
            gone_within(&mut stream, BELOW_DEFAULTS).await
        };
        let all = tokio::join!(
            hello,
            silent,
            drop_by_drop,
            silent_h1,
            silent_h2,
            half_preface,
            pongs,
            half_head,
            site.others_fine()
        );
        assert_eq!(
            (all.0, all.1, all.2, all.3, all.4, all.5, all.6, all.7),
            (true, true, true, true, true, true, true, true)
        );
        site.guard_moved("handshake_timeout", 0.0, 2);
        site.guard_moved("first_request_timeout", 0.0, 6);
        assert_eq!(site.provider().requests().len(), 1, "only the other client's");
    });
}

#[test]
fn slow_peers_are_ended_after_their_first_request() {
    let site = Site::new(SHORT);
    support::runtime().block_on(async {
        let ok = "GET /openai/v1/models HTTP/1.1\r\nhost: localhost\r\nx-script: size=2\r\n\r\n";
        let idle_h1 = async {
            let mut stream = tls(&site.edge, Alpn::H1).await;
            stream.write_all(ok.as_bytes()).await.expect("writes");
            gone_within(&mut stream, BELOW_DEFAULTS).await
        };
        let half_second = async {
            let mut stream = tls(&site.edge, Alpn::H1).await;
            stream.write_all(ok.as_bytes()).await.expect("writes");
            listen(&mut stream, Duration::from_secs(2)).await;
            stream.write_all(b"GET /openai/v1/mod").await.expect("writes");
            gone_within(&mut stream, BELOW_DEFAULTS).await
        };
        let idle_h2 = async {
            let mut stream = h2(&site.edge, &[]).await;
            let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
            stream.write_all(&h2_head(1, flags, "GET", "/openai/v1/models", "size=2")).await.expect("writes");
            // Answers PINGs and opens nothing.
            frames(&mut stream, true, Duration::from_secs(9), |_| false).await.1
        };
        let half_head_h2 = async {
            let mut stream = h2(&site.edge, &[]).await;
            let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
            stream.write_all(&h2_head(1, flags, "GET", "/openai/v1/models", "size=2")).await.expect("writes");
            stream.write_all(&h2_head(3, 0, "GET", "/openai/v1/models", "size=2")).await.expect("writes");
            gone_within(&mut stream, Duration::from_secs(9)).await
        };
        let slow_h1 = async {
            let head =
                format!("POST /openai/v1/slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000\r\n\r\n{CANARY}");
            statuses(&say(&site.edge, head).await.0)
        };
        let slow_h2 = async {
            let mut client = site.edge.connect(Alpn::H2).await;
            let (sender, body) = ChannelBody::new(1);
            sender.send(CANARY).await.expect("sends");
            let request = request(true, "/anthropic/v1/messages", "").body(body).expect("request");
            let answer = client.fetch(request).await.expect("answer");
            (answer.status(), answer.json()["error"]["type"].as_str().unwrap_or("").to_owned())
        };
        let all = tokio::join!(idle_h1, half_second, idle_h2, half_head_h2, slow_h1, slow_h2, site.others_fine());
        assert_eq!((all.0, all.1, all.2, all.3), (true, true, true, true));
        assert_eq!((all.4, all.5), (vec![408], (408, "timeout_error".to_owned())));
        site.guard_moved("idle_timeout", 0.0, 3);
        site.guard_moved("body_too_slow", 0.0, 2);
        assert!(site.provider().wait_for(|state| state.open_streams == 0, SOON).await);
    });
}

#[test]
fn readers_that_do_not_read_are_ended() {
    let site = Site::new(SHORT);
    support::runtime().block_on(async {
        let h1 = async {
            let options =
                ClientOptions { receive_buffer_bytes: Some(4096), ..ClientOptions::new(Alpn::H1, site.edge.trust()) };
            let mut client = Client::connect_with(site.edge.address(), "localhost", &options).await.expect("connects");
            let request = request(false, "/openai/v1/big", "size=50000000").body(FullBody::new("{}")).expect("request");
            let answer = client.send(request).await.expect("answer");
            tokio::time::sleep(Duration::from_secs(6)).await;
            Received::read(answer, 0).await.error.is_some()
        };
        // The window is shut from the first byte on, or after the first 100; the connection stays for others.
        let shut = |window: u32| {
            let site = &site;
            async move {
                let mut stream = h2(&site.edge, &[(4, window)]).await;
                let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
                let script = "events=100000;event_bytes=100;period_us=1000";
                stream.write_all(&h2_head(1, flags, "POST", "/openai/v1/shut", script)).await.expect("writes");
                let (seen, closed) =
                    frames(&mut stream, true, SOON, |frame| frame.kind == kind::RST_STREAM && frame.stream == 1).await;
                assert!(!closed && has(&seen, kind::RST_STREAM), "window {window}: {closed} {seen:?}");
                // The next stream is served on the same connection.
                stream.write_all(&h2raw::frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])).await.expect("writes");
                stream.write_all(&h2_head(3, flags, "POST", "/openai/v1/open", "size=500")).await.expect("writes");
                let (seen, _) =
                    frames(&mut stream, true, SOON, |frame| frame.stream == 3 && frame.flags & h2raw::END_STREAM != 0)
                        .await;
                let bytes: usize = seen
                    .iter()
                    .filter(|frame| frame.kind == kind::DATA && frame.stream == 3)
                    .map(|frame| frame.payload.len())
                    .sum();
                assert_eq!(bytes, 500, "window {window}");
            }
        };
        let answered_by_us = async {
            // Also an answer of ours that nobody takes.
            let mut stream = h2(&site.edge, &[(4, 0)]).await;
            let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
            stream.write_all(&h2_head(1, flags, "BREW", "/openai/v1/x", "")).await.expect("writes");
            let (seen, _) = frames(&mut stream, true, SOON, |frame| frame.kind == kind::RST_STREAM).await;
            assert!(has(&seen, kind::RST_STREAM), "{seen:?}");
        };
        let all = tokio::join!(h1, shut(0), shut(100), answered_by_us, site.others_fine());
        assert!(all.0, "the h1 answer was cut");
        site.guard_moved("write_stall", 0.0, 4);
        assert!(site.provider().wait_for(|state| state.open_streams == 0, SOON).await);
    });
}

#[test]
fn connections_end_by_age_and_by_number_of_requests() {
    let site = Site::new("connection_age = \"10s\"\nrequests_per_connection = 10\n");
    support::runtime().block_on(async {
        let h1 = async {
            let mut client = site.edge.connect(Alpn::H1).await;
            let mut served = 0;
            for _ in 0..20 {
                let answer = ask(&mut client, "/openai/v1/x", "size=2", "{}").await;
                served += 1;
                if answer.header("connection") == "close" {
                    break;
                }
            }
            served
        };
        let h2s = async {
            let mut client = site.edge.connect(Alpn::H2).await;
            let mut served = 0;
            while client.ready().await.is_ok() && served < 20 {
                let request = request(true, "/openai/v1/x", "size=2").body(FullBody::new("{}")).expect("request");
                if client.fetch(request).await.is_err() {
                    break;
                }
                served += 1;
            }
            served
        };
        // Never answers the PING that the last GOAWAY waits for, and goes on.
        let deaf = async {
            let mut stream = h2(&site.edge, &[]).await;
            let mut number = 1;
            let mut closed = false;
            while !closed && number < 2001 {
                for _ in 0..20 {
                    let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
                    let _ = stream.write_all(&h2_head(number, flags, "GET", "/openai/v1/deaf", "size=2")).await;
                    number += 2;
                }
                let _ = stream.flush().await;
                let last = number - 2;
                let done = |frame: &RawFrame| frame.stream == last && frame.flags & h2raw::END_STREAM != 0;
                closed = frames(&mut stream, false, Duration::from_millis(500), done).await.1;
            }
            (closed, number / 2)
        };
        let (h1, h2s, (closed, deaf), ()) = tokio::join!(h1, h2s, deaf, site.others_fine());
        assert!((9..=10).contains(&h1), "{h1} requests on h1");
        assert!((9..=11).contains(&h2s), "{h2s} requests on h2");
        assert!(closed && deaf <= 300, "the deaf one was served {deaf} times");
        site.guard_moved("requests_per_connection", 0.0, 3);

        let mut stream = h2(&site.edge, &[]).await;
        let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
        let script = "events=13;event_bytes=50;period_us=1000000";
        stream.write_all(&h2_head(1, flags, "POST", "/openai/v1/long", script)).await.expect("writes");
        let (seen, _) = frames(&mut stream, true, Duration::from_secs(16), |frame| {
            frame.stream == 1 && frame.flags & h2raw::END_STREAM != 0
        })
        .await;
        assert!(has(&seen, kind::GOAWAY), "told by age");
        assert!(
            seen.iter().any(|frame| frame.stream == 1 && frame.flags & h2raw::END_STREAM != 0),
            "and served to the end"
        );
        site.guard_moved("connection_age", 0.0, 1);
    });
}

/// Whether the peer ends the connection in time.
async fn gone_within(stream: &mut (impl tokio::io::AsyncRead + Unpin), patience: Duration) -> bool {
    let mut bytes = Vec::new();
    tokio::time::timeout(patience, stream.read_to_end(&mut bytes)).await.is_ok()
}

// 5. Floods.

#[test]
fn connection_caps_hold() {
    let flood = |limits: &'static str, guard: &'static str| async move {
        let site = Site::new(limits);
        let mut early = site.edge.connect(Alpn::H2).await;
        let mut held = Vec::new();
        for _ in 0..60 {
            // May be reset while it is still connecting.
            held.extend(TcpStream::connect(site.edge.address()).await);
        }
        site.guard_moved(guard, 0.0, 20);
        // Who is in stays in.
        assert_eq!(ask(&mut early, "/openai/v1/x", "size=10", "{}").await.status(), 200);
        // Those beyond the cap were closed, and the places come back with the others' end.
        drop(held);
        let back = async {
            let edge = &site.edge;
            while Client::connect(edge.address(), "localhost", Alpn::H2, &edge.trust()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(SOON, back).await.expect("the places come back");
        site.others_fine().await;
        assert!(site.edge.metric("nullhop_connections_refused_total", &["reason=\"limit\""]) >= 20.0);
    };
    support::runtime().block_on(async {
        tokio::join!(
            flood("connections_per_address = 30\nhandshake_timeout = \"1s\"", "connections_per_address"),
            flood("connections = 30\nhandshake_timeout = \"1s\"", "connections_total"),
            flood("handshakes_in_flight = 30\nhandshake_timeout = \"1s\"", "handshakes_in_flight"),
        );
    });
}

#[test]
fn resets_end_the_connection_that_makes_them() {
    let site = Site::new("cancels_per_connection = 20");
    support::runtime().block_on(async {
        // All at once.
        let mut stream = h2(&site.edge, &[]).await;
        let mut bytes = Vec::new();
        for number in 0..300 {
            let id = number * 2 + 1;
            bytes.extend_from_slice(&h2_head(
                id,
                h2raw::END_HEADERS | h2raw::END_STREAM,
                "POST",
                "/openai/v1/r",
                "never=1",
            ));
            bytes.extend_from_slice(&h2raw::frame(kind::RST_STREAM, 0, id, &[0, 0, 0, 8]));
        }
        stream.write_all(&bytes).await.expect("writes");
        let (seen, _) = frames(&mut stream, true, SOON, |frame| frame.kind == kind::GOAWAY).await;
        assert!(has(&seen, kind::GOAWAY), "{seen:?}");
        site.guard_moved("h2_abuse", 0.0, 1);
        let many = site.provider().requests().len();
        assert!(many < 60, "{many} requests reached the provider");

        // Each after a round trip.
        let mut client = site.edge.connect(Alpn::H2).await;
        let mut sent: usize = 0;
        for _ in 0..100 {
            if client.ready().await.is_err() {
                break;
            }
            let request = request(true, "/openai/v1/paced", "never=1").body(FullBody::new("{}")).expect("request");
            let before = site.provider().state().requests;
            let answer = client.send(request);
            let answer = tokio::spawn(answer);
            if !site.provider().wait_for(|state| state.requests > before, Duration::from_secs(5)).await {
                break;
            }
            answer.abort();
            sent += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!((15..30).contains(&sent), "{sent} cancelled requests");
        site.guard_moved("cancels_per_connection", 0.0, 1);
        assert!(site.provider().wait_for(|state| state.open_streams == 0, SOON).await, "all cancelled upstream");
        site.others_fine().await;
    });
}

#[test]
fn h2_floods_stay_with_their_connection() {
    let site = Site::new("");
    support::runtime().block_on(async {
        site.others_fine().await;
        let rss = site.edge.rss();
        let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
        let goaway = |frame: &RawFrame| frame.kind == kind::GOAWAY;

        // CONTINUATION without end.
        let before = site.guard("h2_abuse");
        let mut stream = h2(&site.edge, &[]).await;
        let _ = stream.write_all(&h2_head(1, 0, "GET", "/openai/v1/x", "")).await;
        let more = h2raw::frame(kind::CONTINUATION, 0, 1, &h2raw::header_block(&[("x-a", CANARY)]));
        for _ in 0..20_000 {
            if stream.write_all(&more).await.is_err() {
                break;
            }
        }
        let (seen, closed) = frames(&mut stream, true, SOON, goaway).await;
        site.guard_moved("h2_abuse", before, 1);
        assert!(closed || has(&seen, kind::GOAWAY));

        // A table entry of 4 KB, named again and again.
        let mut block =
            h2raw::header_block(&[(":method", "GET"), (":scheme", "https"), (":path", "/openai/v1/b")]).to_vec();
        block.extend_from_slice(&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
        block.extend_from_slice(&vec![b'v'; 0x7f + 0x21 + (0x1e << 7)]);
        block.extend_from_slice(&[0xbe; 8000]);
        let mut stream = h2(&site.edge, &[]).await;
        let before = site.guard("h2_abuse");
        let _ = stream.write_all(&h2raw::frame(kind::HEADERS, flags, 1, &block)).await;
        frames(&mut stream, true, SOON, goaway).await;
        site.guard_moved("h2_abuse", before, 1);

        // Empty DATA.
        let before = site.guard("h2_abuse");
        let mut stream = h2(&site.edge, &[]).await;
        let _ = stream.write_all(&h2_head(1, h2raw::END_HEADERS, "POST", "/openai/v1/x", "never=1")).await;
        let empty = h2raw::frame(kind::DATA, 0, 1, b"").repeat(1000);
        let _ = stream.write_all(&empty).await;
        frames(&mut stream, true, SOON, goaway).await;
        site.guard_moved("h2_abuse", before, 1);

        // A thousand heads whose bodies never come.
        let before = site.guard("h2_abuse");
        let mut stream = h2(&site.edge, &[]).await;
        for number in 0..1000 {
            let head = h2_head(number * 2 + 1, h2raw::END_HEADERS, "POST", "/openai/v1/heads", "never=1");
            if stream.write_all(&head).await.is_err() {
                break;
            }
        }
        frames(&mut stream, true, SOON, goaway).await;
        site.guard_moved("h2_abuse", before, 1);
        let heads = site.provider().requests().iter().filter(|seen| seen.path.contains("heads")).count();
        assert!(heads <= 100, "{heads} at once");
        drop(stream);

        // PING and SETTINGS, neither answer read; others do not wait.
        for flood in [h2raw::frame(kind::PING, 0, 0, &[7; 8]), h2raw::frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0])]
        {
            let mut stream = h2(&site.edge, &[]).await;
            let stop = Arc::new(AtomicBool::new(false));
            let flooding = tokio::spawn({
                let (stop, flood) = (stop.clone(), flood.repeat(1000));
                async move {
                    while !stop.load(Relaxed) {
                        match tokio::time::timeout(Duration::from_secs(2), stream.write_all(&flood)).await {
                            Ok(Ok(())) => tokio::task::yield_now().await,
                            _ => break,
                        }
                    }
                }
            });
            let mut client = site.edge.connect(Alpn::H2).await;
            let mut worst = Duration::ZERO;
            for _ in 0..30 {
                let started = Instant::now();
                assert_eq!(ask(&mut client, "/openai/v1/x", "size=10", "{}").await.status(), 200);
                worst = worst.max(started.elapsed());
            }
            stop.store(true, Relaxed);
            let _ = flooding.await;
            assert!(worst < Duration::from_secs(5), "others waited {worst:?}");
        }
        site.others_fine().await;
        let grown = site.edge.rss().saturating_sub(rss) >> 20;
        assert!(grown < 48, "grew by {grown} MiB");
        assert!(site.provider().wait_for(|state| state.open_streams == 0, SOON).await);
    });
}

// 6. Hostile providers.

#[test]
fn providers_that_lie_harm_only_their_own_request() {
    const TINY: &str = "1\r\nx\r\n";
    let split = "HTTP/1.1 200 OK\r\nx-a: b\r\r\nx-smuggled: 1\r\ncontent-length: 2\r\n\r\nok";
    let then = |bytes: &'static str| vec![Step::ExpectHead, Step::write(bytes), Step::Hold];
    // What it does, which statuses will do, and whether the body must be cut; the guard.
    #[expect(clippy::type_complexity, reason = "a table")]
    let cases: Vec<(&str, Vec<Step>, &[u16], bool, &str)> = vec![
        ("too long a length", lies::content_length(10, "hello"), &[200], true, ""),
        ("too short a length", lies::content_length(3, "hello"), &[200], false, ""),
        ("two lengths", lies::two_content_lengths(), &[502], false, "upstream_bad_answer"),
        (
            "the same length twice",
            then("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"),
            &[502],
            false,
            "upstream_bad_answer",
        ),
        (
            "a list of lengths",
            then("HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok"),
            &[502],
            false,
            "upstream_bad_answer",
        ),
        ("length and chunks", lies::content_length_and_chunked(), &[502], false, "upstream_bad_answer"),
        ("gzip, chunked", lies::gzip_chunked(), &[502], false, "upstream_bad_answer"),
        (
            "chunked twice",
            then("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            &[502],
            false,
            "upstream_bad_answer",
        ),
        (
            "gzip alone",
            then("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok"),
            &[502],
            false,
            "upstream_bad_answer",
        ),
        ("a huge chunk", lies::huge_chunk(), &[200], true, ""),
        ("interim answers", lies::informational_flood(100_000), &[502], false, "upstream_informational"),
        ("a few interim answers", lies::informational_flood(5), &[200], false, ""),
        ("an unasked 101", lies::unasked_101(), &[502], false, "upstream_bad_answer"),
        ("a header of 1 MB", lies::big_header(1 << 20), &[502], false, "upstream_bad_answer"),
        ("2000 headers", lies::many_headers(2000), &[502], false, "upstream_bad_answer"),
        ("garbage", lies::garbage(), &[502], false, "upstream_bad_answer"),
        ("half a head", lies::half_head(), &[502], false, ""),
        ("nothing", vec![Step::ExpectHead, Step::Close], &[502], false, ""),
        ("a reset", vec![Step::ExpectHead, Step::Reset], &[502], false, ""),
        ("a split answer", then(split), &[502], false, "upstream_bad_answer"),
        (
            "a NUL",
            then("HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok"),
            &[502],
            false,
            "upstream_bad_answer",
        ),
        (
            "a folded line",
            then("HTTP/1.1 200 OK\r\nx: a\r\n b: c\r\ncontent-length: 2\r\n\r\nok"),
            &[200, 502],
            false,
            "",
        ),
        ("status 99", then("HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok"), &[502], false, "upstream_bad_answer"),
        ("HTTP/9", then("HTTP/9.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), &[502], false, "upstream_bad_answer"),
        (
            "half a chunk",
            vec![
                Step::ExpectHead,
                Step::write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"),
                Step::Close,
            ],
            &[200],
            true,
            "",
        ),
        (
            "tiny chunks",
            vec![
                Step::ExpectHead,
                Step::write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
                Step::Repeat(Bytes::from(TINY.repeat(100)), 500),
                Step::write("0\r\n\r\n"),
                Step::Hold,
            ],
            &[200],
            false,
            "",
        ),
        ("a late second answer", lies::second_answer(Duration::from_millis(100)), &[200], false, ""),
    ];
    let steps: Arc<Vec<Vec<Step>>> = Arc::new(cases.iter().map(|case| case.1.clone()).collect());
    let raw = RawProvider::spawn(RawOptions::alpn(Alpn::H1), move |mut connection| {
        let steps = steps.clone();
        async move {
            let head = String::from_utf8_lossy(&connection.head().await?).into_owned();
            let number =
                head.split("lie-").nth(1).and_then(|rest| rest.split([' ', '?']).next()?.parse::<usize>().ok());
            match number.and_then(|number| steps.get(number)) {
                Some(steps) => connection.run(&steps[1..]).await,
                None => {
                    connection
                        .write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n".to_owned() + &"o".repeat(1000))
                        .await
                }
            }
        }
    })
    .expect("raw provider");
    let edge = Edge::with(&raw.url(), raw.ca_pem(), Setup { extra: extra("", ""), ..Setup::default() });
    let site = Site { edge, provider: None };
    support::runtime().block_on(async {
        for alpn in [Alpn::H1, Alpn::H2] {
            for (number, (name, _, wanted, cut, guard)) in cases.iter().enumerate() {
                let before = if guard.is_empty() { 0.0 } else { site.guard(guard) };
                let mut client = site.edge.connect(alpn).await;
                // A caller of its own: kept lines of others are in the hands of a liar that has said all.
                let mut request = request(client.is_h2(), &format!("/openai/v1/lie-{number}"), "")
                    .body(FullBody::new("{}"))
                    .expect("request");
                let caller = format!("Bearer {CANARY}{number}{alpn:?}").parse().expect("value");
                request.headers_mut().insert("authorization", caller);
                let sent = tokio::time::timeout(SOON, client.send(request));
                let what = format!("{name} {alpn:?}");
                let answer = sent
                    .await
                    .unwrap_or_else(|_| panic!("{what}: no answer"))
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                let received = Received::read(answer, usize::MAX).await;
                assert!(wanted.contains(&received.head.status.as_u16()), "{what}: {}", received.head.status);
                assert_eq!(received.error.is_some(), *cut, "{what}: {:?}", received.error);
                assert!(!received.head.headers.contains_key("x-smuggled"), "{what}");
                assert!(!received.body.ends_with(b"second"), "{what}");
                if *name == "tiny chunks" {
                    assert_eq!(received.len, 50_000, "{what}");
                }
                if !guard.is_empty() {
                    site.guard_moved(guard, before, 1);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            site.others_fine().await;
        }
    });
}

#[test]
fn stalled_readers_do_not_end_the_shared_upstream_connection() {
    let site = Site::with("write_stall = \"60s\"", Alpn::H2, "");
    support::runtime().block_on(async {
        let options = ClientOptions { h2_stream_window: 200, ..ClientOptions::new(Alpn::H2, site.edge.trust()) };
        let mut stalled = Vec::new();
        let mut client = Client::connect_with(site.edge.address(), "localhost", &options).await.expect("connects");
        for _ in 0..90 {
            let request = request(true, "/openai/v1/stalled", "events=3000;event_bytes=40;period_us=300")
                .body(FullBody::new("{}"))
                .expect("request");
            client.ready().await.expect("ready");
            stalled.push(client.send(request).await.expect("answer"));
        }
        let mut good = site.edge.connect(Alpn::H2).await;
        let request = request(true, "/openai/v1/good", "events=500;event_bytes=40;period_us=6000")
            .body(FullBody::new("{}"))
            .expect("request");
        let answer = Answer::collect(good.send(request).await.expect("answer")).await.expect("not cut");
        assert!(answer.text().contains("[DONE]"));
        let seen = site.provider().requests();
        assert!(seen.iter().all(|seen| !seen.aborted), "no stream was cut");
        assert_eq!(site.provider().connects(), 1, "all on one connection");
        site.others_fine().await;
        drop(stalled);
    });
}

// 7. Headers, and who one claims to be.

#[test]
fn connection_fields_take_no_credential_off() {
    for upstream in [Alpn::H1, Alpn::H2] {
        let site = Site::with("", upstream, "");
        support::runtime().block_on(async {
            let head = format!(
                "POST /anthropic/v1/messages HTTP/1.1\r\nhost: localhost\r\nx-script: size=2\r\nauthorization: Bearer {CANARY}\r\n\
                 x-api-key: {CANARY}\r\nanthropic-version: 2023-06-01\r\nx-hop: 1\r\nkeep-alive: 1\r\nproxy-connection: x\r\n\
                 proxy-authorization: x\r\nte: gzip\r\ntrailer: x\r\nx-forwarded-for: 10.1.2.3\r\nforwarded: for=10.1.2.3\r\nvia: x\r\n\
                 cookie: a=b\r\nhttp2-settings: AAA\r\n\
                 connection: authorization, x-api-key, anthropic-version, x-hop, content-length, host\r\ncontent-length: 2\r\n\r\n{{}}"
            );
            assert_eq!(statuses(&say(&site.edge, head).await.0), [200]);
            let seen = site.provider().last();
            assert_eq!(seen.header("authorization"), format!("Bearer {CANARY}"));
            assert_eq!(seen.header("x-api-key"), CANARY);
            assert_eq!(seen.header("anthropic-version"), "2023-06-01");
            assert_eq!(&seen.body[..], b"{}");
            for name in [
                "x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "te", "trailer", "x-forwarded-for",
                "forwarded", "via", "cookie", "http2-settings", "connection", "upgrade",
            ] {
                assert!(!seen.headers.contains_key(name), "{upstream:?}: {name} arrived");
            }
            // No switch to another protocol, and nothing smuggled behind the wish for one.
            let head = "GET /openai/v1/h2c HTTP/1.1\r\nhost: localhost\r\nx-script: size=2\r\nconnection: upgrade, http2-settings\r\n\
                 upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
            let (answer, _) = say(&site.edge, head).await;
            assert_eq!(statuses(&answer), [200]);
            assert!(!site.provider().last().headers.contains_key("upgrade"));
            site.others_fine().await;
        });
    }
}

#[test]
fn proxy_headers_are_believed_from_nobody_else() {
    let listener = |networks: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\nproxy_protocol_from = [\"{networks}\"]\n[[listener]]\nname = \"plain\"\naddress = \"127.0.0.2:0\"\n"
        )
    };
    let provider = Provider::spawn(ProviderOptions::default()).expect("provider");
    let start = |networks: &str| {
        let setup =
            Setup { listener: listener(networks), extra: extra("handshake_timeout = \"1s\"", ""), ..Setup::default() };
        Site { edge: Edge::with(&provider.url(), provider.ca_pem(), setup), provider: None }
    };
    let claim = b"PROXY TCP4 10.9.8.7 10.0.0.1 4711 443\r\n";
    support::runtime().block_on(async {
        // Not from the trusted network.
        let site = start("10.0.0.0/8");
        // It may be closed before the client knows that it was open.
        if let Ok(mut stream) = TcpStream::connect(site.edge.address()).await {
            let _ = stream.write_all(claim).await;
            assert!(gone_within(&mut stream, SOON).await);
        }
        let refused = ["reason=\"not_allowed\""];
        assert!(site.edge.wait_for_metric("nullhop_connections_refused_total", &refused, |count| count >= 1.0, SOON));
        // A listener that expects none takes it for a broken handshake.
        let plain = site.edge.listeners[1];
        let mut stream = TcpStream::connect(plain).await.expect("connects");
        let _ = stream.write_all(claim).await;
        assert!(gone_within(&mut stream, SOON).await);
        // From the trusted network, but without.
        let site = start("127.0.0.0/8");
        assert!(raw_tls_connect(site.edge.address(), "localhost", Alpn::H1, &site.edge.trust()).await.is_err());
        let silent = async {
            let mut stream = TcpStream::connect(site.edge.address()).await.expect("connects");
            gone_within(&mut stream, SOON).await
        };
        assert!(silent.await, "a header that does not come");
        assert!(site.edge.metric("nullhop_connections_refused_total", &["reason=\"proxy_header\""]) >= 2.0);
        let mut client =
            Client::connect(site.edge.listeners[1], "localhost", Alpn::H2, &site.edge.trust()).await.expect("connects");
        assert_eq!(ask(&mut client, "/openai/v1/x", "size=3", "{}").await.status(), 200);
    });
}

// 9. Server names; the canary is also in all of the above.

#[test]
fn server_names_are_not_repeated() {
    let site = Site::new("");
    support::runtime().block_on(async {
        let name = format!("{CANARY}.example");
        let trust = nullhop_loadtests::tls::Trust::AcceptAny;
        let mut client = Client::connect(site.edge.address(), &name, Alpn::H2, &trust).await.expect("connects");
        let request =
            Request::get(format!("https://{name}/openai/v1/models")).body(FullBody::empty()).expect("request");
        assert_eq!(client.fetch(request).await.expect("answer").status(), 421);
        site.guard_moved("bad_host", 0.0, 1);
        site.others_fine().await;
    });
}
