//! How a running nullhop is stopped, reloaded and reached: signals, drain, new configurations and certificates, what the
//! handshake settles, PROXY headers, and what a supervisor hands over and hears.

mod support;

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::h2raw;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Ca;
use nullhop_loadtests::tls::Leaf;
use nullhop_loadtests::tls::Trust;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use nullhop_loadtests::websocket::WebSocket;
use rustls::ClientConfig;
use rustls::ProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::wait_for;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);

fn provider() -> Provider {
    Provider::spawn(ProviderOptions::default()).expect("provider")
}

fn request(client: &Client, path: &str, script: &str) -> Request<FullBody> {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{path}")),
        false => Request::post(path).header("host", "localhost"),
    };
    let request = request.header("authorization", "Bearer k").header("content-type", "application/json");
    request.header("x-script", script).body(FullBody::new("{}")).expect("request")
}

const CHAT: &str = "/openai/v1/chat/completions";

/// A stream that is under way: its head has come.
async fn stream(client: &mut Client, path: &str, script: &str) -> tokio::task::JoinHandle<Received> {
    let request = request(client, path, script);
    let response = client.send(request).await.expect("head");
    assert_eq!(response.status(), 200);
    tokio::spawn(Received::read(response, usize::MAX))
}

fn events(received: &Received) -> usize {
    String::from_utf8_lossy(&received.body).matches("data: ").count()
}

async fn websocket(edge: &Edge, script: &str) -> WebSocket<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let stream = raw_tls_connect(edge.address(), "localhost", Alpn::H1, &edge.trust()).await.expect("TLS");
    let headers = format!("authorization: Bearer k\r\nx-script: {script}\r\n");
    WebSocket::connect(stream, "localhost", "/openai/v1/realtime", &headers).await.expect("101")
}

/// Whether somebody accepts there.
fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

/// Writes the edge's configuration anew and has it read.
fn reload(edge: &Edge, config: &str) {
    edge.scratch.file("nullhop.toml", config);
    edge.signal("HUP");
}

fn lines_with(edge: &Edge, text: &str) -> usize {
    edge.log().iter().filter(|line| line.contains(text)).count()
}

fn reload_well(edge: &Edge, config: &str) {
    let before = lines_with(edge, " config_reloaded");
    reload(edge, config);
    let done = wait_for(SOON, || lines_with(edge, " config_reloaded") > before);
    assert!(done, "not reloaded:\n{}", edge.log().join("\n"));
    // The workers hear of it a moment later.
    std::thread::sleep(Duration::from_millis(50));
}

// ---------------------------------------------------------------------------------------------------------------------
// The end

#[test]
fn sigterm_lets_streams_finish() {
    drains(|edge| edge.signal("TERM"));
}

#[test]
fn sigint_lets_streams_finish() {
    drains(|edge| edge.signal("INT"));
}

#[test]
fn post_drain_lets_streams_finish() {
    drains(|edge| {
        assert_eq!(edge.admin("POST", "/drain"), (202, "draining\n".to_owned()));
        // It is in force as soon as it is answered.
        assert_eq!(edge.admin("GET", "/readyz"), (503, "draining\n".to_owned()));
    });
}

fn probe(edge: &Edge, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    command.args(["probe", "--admin", &edge.admin.to_string()]).args(arguments);
    let output = command.output().expect("runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn drains(end: fn(&Edge)) {
    let provider = provider();
    let extra = "[drain]\ngrace = \"5s\"\ndeadline = \"60s\"\n".to_owned();
    let mut edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { extra, ..Setup::default() });
    assert_eq!(edge.admin("GET", "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(edge.admin("GET", "/healthz").0, 200);
    assert_eq!(edge.admin("GET", "/drain"), (200, "open\n".to_owned()));
    assert_eq!(probe(&edge, &[]), (Some(0), "ready\n".to_owned()));
    assert_eq!(edge.admin("GET", "/secret").0, 404);
    assert_eq!(edge.admin("PUT", "/drain").0, 405);
    support::runtime().block_on(async {
        let mut h1 = edge.connect(Alpn::H1).await;
        let mut h2 = edge.connect(Alpn::H2).await;
        let script = "events=70;event_bytes=100;period_us=100000";
        let (on_h1, on_h2) = (stream(&mut h1, CHAT, script).await, stream(&mut h2, CHAT, script).await);
        // Waits for its head when the door closes.
        let mut late = edge.connect(Alpn::H1).await;
        let late_request = request(&late, CHAT, "size=10;head_delay_ms=6500");
        let late_answer = tokio::spawn(late.send(late_request));
        let mut idle = edge.connect(Alpn::H1).await;
        let asked = request(&idle, CHAT, "size=10");
        assert_eq!(idle.fetch(asked).await.expect("answer").header("connection"), "");
        let mut socket = websocket(&edge, "ws=echo").await;
        socket.send_text("hello").await.expect("sent");
        assert_eq!(socket.next_message().await.expect("echo").expect("echo").payload, "hello");
        let mut frames = raw_tls_connect(edge.address(), "localhost", Alpn::H2, &edge.trust()).await.expect("TLS");
        frames.write_all(h2raw::PREFACE).await.expect("preface");
        frames.write_all(&h2raw::frame(h2raw::kind::SETTINGS, 0, 0, b"")).await.expect("settings");
        tokio::time::sleep(Duration::from_millis(100)).await;

        let began = Instant::now();
        end(&edge);
        assert!(wait_for(Duration::from_secs(3), || edge.admin("GET", "/readyz").0 == 503));
        assert_eq!(edge.admin("GET", "/healthz").0, 200, "alive");
        assert_eq!(probe(&edge, &[]), (Some(1), "draining\n".to_owned()));
        assert_eq!(probe(&edge, &["--alive"]), (Some(0), "alive\n".to_owned()));
        assert_eq!(edge.admin("GET", "/drain"), (200, "unready\n".to_owned()));
        assert_eq!(edge.metric("nullhop_ready", &[]), 0.0);
        assert_eq!(edge.metric("nullhop_draining", &[]), 1.0);
        let mut newcomer = edge.connect(Alpn::H2).await;
        let asked = request(&newcomer, CHAT, "size=10");
        assert_eq!(newcomer.fetch(asked).await.expect("answer").status(), 200, "served during the grace");
        assert!(began.elapsed() < Duration::from_secs(5), "the machine is too slow for this test");

        // A second signal changes nothing.
        edge.signal("TERM");
        assert!(wait_for(SOON, || edge.admin("GET", "/drain").1 == "closing\n"));
        assert!(began.elapsed() >= Duration::from_millis(4900), "{:?}", began.elapsed());
        assert!(wait_for(SOON, || !accepts(edge.address())), "the door is closed");
        edge.signal("INT");

        let goaway = async {
            loop {
                match h2raw::read_frame(&mut frames).await.expect("frame") {
                    Some(frame) if frame.kind == h2raw::kind::GOAWAY => return true,
                    Some(_) => {}
                    None => return false,
                }
            }
        };
        assert!(tokio::time::timeout(SOON, goaway).await.expect("in time"), "GOAWAY before the end");
        drop(frames);
        let closed = async {
            while !idle.is_closed() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, closed).await.expect("the idle h1 connection is closed");
        let close = tokio::time::timeout(SOON, socket.next_frame()).await.expect("in time");
        let close = close.expect("frame").expect("a close frame before the end");
        assert_eq!((close.opcode, close.close_code()), (Opcode::Close, 1012));
        socket.send(Frame::close(1012, "")).await.expect("answered");

        let answer = late_answer.await.expect("task").expect("head");
        assert_eq!(answer.headers()["connection"], "close");
        assert!(Received::read(answer, 100).await.error.is_none());
        for received in [on_h1.await.expect("task"), on_h2.await.expect("task")] {
            assert!(received.error.is_none(), "{:?}", received.error);
            assert_eq!(events(&received), 71);
        }
    });
    assert_eq!(edge.wait_exit(Duration::from_secs(40)), Some(0), "{}", edge.log().join("\n"));
    assert!(edge.wait_for_log(" drain_finished streams_cut=0 ", SOON), "{}", edge.log().join("\n"));
    assert_eq!(lines_with(&edge, " drain_started "), 1);
    assert!(edge.wait_for_log(" stopped ", SOON));
}

#[test]
fn old_connections_end_where_they_are() {
    let provider = provider();
    let extra = "[drain]\ngrace = \"200ms\"\ndeadline = \"60s\"\n".to_owned();
    let mut edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { extra, ..Setup::default() });
    support::runtime().block_on(async {
        let post = |script: &str| {
            format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\nx-script: {script}\r\n\r\n{{}}")
        };
        let short = post("size=0");
        // What is sent before the drain and while it goes on, the answers, and whether the last one says that it is that.
        let half = short.len() / 2;
        let long = post("events=20;event_bytes=100;period_us=100000");
        let cases: Vec<(&str, String, usize, String, usize, bool)> = vec![
            ("idle", short.clone(), 1, String::new(), 0, false),
            ("nothing said", String::new(), 0, String::new(), 0, false),
            ("in a head", short.clone() + &short[..half], 1, short[half..].to_owned(), 1, true),
            ("behind a head", short.clone() + &short[..short.len() - 2], 1, "{}".to_owned(), 1, true),
            ("in a body", short.clone() + &short[..short.len() - 1], 1, "}".to_owned(), 1, true),
            ("in an answer", long.clone(), 1, String::new(), 0, false),
            ("in an answer, the next one asked for", long + &short, 1, String::new(), 1, true),
        ];
        let mut open = Vec::new();
        for (name, before, heads, ..) in &cases {
            let mut stream =
                raw_tls_connect(edge.address(), "localhost", Alpn::H1, &edge.trust()).await.expect("connects");
            stream.write_all(before.as_bytes()).await.expect("writes");
            let mut received = Vec::new();
            while count(&received, "HTTP/1.1 200 OK\r\n") < *heads {
                let read = tokio::time::timeout(SOON, stream.read_buf(&mut received)).await.expect("in time");
                assert!(read.expect("reads") > 0, "{name}: the end");
            }
            open.push((stream, received));
        }
        edge.signal("TERM");
        assert!(wait_for(SOON, || edge.admin("GET", "/drain").1 == "closing\n"));
        for ((name, _, heads, after, more, told), (mut stream, mut received)) in cases.into_iter().zip(open) {
            stream.write_all(after.as_bytes()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut received)).await.expect("in time");
            let text = String::from_utf8_lossy(&received);
            ended.unwrap_or_else(|error| panic!("{name}: {error} behind {text}"));
            assert_eq!(count(&received, "HTTP/1.1 200 OK\r\n"), heads + more, "{name}: {text}");
            assert_eq!(count(&received, "connection: close\r\n"), usize::from(told), "{name}: {text}");
            if name.starts_with("in an answer") {
                assert_eq!(count(&received, "data: "), 21, "{name}: {text}");
            }
        }
    });
    assert_eq!(edge.wait_exit(SOON), Some(0), "{}", edge.log().join("\n"));
    assert!(edge.wait_for_log(" drain_finished streams_cut=0 ", SOON), "{}", edge.log().join("\n"));
}

fn count(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).filter(|part| *part == text.as_bytes()).count()
}

#[test]
fn deadline_cuts_what_is_left() {
    let provider = provider();
    let extra = "[drain]\ngrace = \"300ms\"\ndeadline = \"2s\"\n".to_owned();
    let mut edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { extra, ..Setup::default() });
    support::runtime().block_on(async {
        let mut h1 = edge.connect(Alpn::H1).await;
        let mut h2 = edge.connect(Alpn::H2).await;
        let script = "events=1000;event_bytes=100;period_us=50000";
        let (on_h1, on_h2) = (stream(&mut h1, CHAT, script).await, stream(&mut h2, CHAT, script).await);
        let mut sized = edge.connect(Alpn::H1).await;
        let on_length = stream(&mut sized, CHAT, "size=1000000;len=known;stall_after=1000").await;
        let mut busy = websocket(&edge, "ws=flood;events=1000;event_bytes=100;period_us=50000").await;
        busy.send_text("go").await.expect("sent");

        let began = Instant::now();
        edge.signal("TERM");
        tokio::time::sleep(Duration::from_millis(600)).await;
        edge.signal("TERM");
        for (name, task) in [("h1", on_h1), ("h2", on_h2), ("h1 with a length", on_length)] {
            let received = task.await.expect("task");
            assert!(received.error.is_some(), "{name} looks whole");
            let took = began.elapsed();
            assert!(took >= Duration::from_millis(1900), "{name} cut after {took:?}");
        }
        let broken = async {
            loop {
                match busy.next_frame().await {
                    Ok(Some(frame)) => assert_ne!(frame.opcode, Opcode::Close),
                    Ok(None) => return false,
                    Err(_) => return true,
                }
            }
        };
        assert!(tokio::time::timeout(SOON, broken).await.expect("in time"), "the WebSocket looks closed in order");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    });
    assert_eq!(edge.wait_exit(SOON), Some(0));
    assert!(edge.wait_for_log(" warn drain_finished streams_cut=4 ", SOON), "{}", edge.log().join("\n"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Reloads

#[test]
fn reload_swaps_upstreams_and_limits() {
    let provider = provider();
    let upstream = |name: &str| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nprovider = \"openai\"\nurl = \"{{url}}\"\n{{ca}}\nprotocol = \"h1\"\nretention = {{ allow = [\"all\"] }}\n"
        )
    };
    let setup = |names: &[&str], extra: &str| Setup {
        upstreams: Some(names.iter().map(|name| upstream(name)).collect()),
        extra: extra.to_owned(),
        ..Setup::default()
    };
    let url = provider.url();
    let edge = Edge::with(&url, provider.ca_pem(), setup(&["old", "kept"], ""));
    let fingerprint = edge.metric("nullhop_config_fingerprint", &[]);
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H2).await;
        let running =
            stream(&mut client, "/old/v1/chat/completions", "events=30;event_bytes=100;period_us=100000").await;
        // A quiet connection of the old days, and idle lines to the upstreams.
        let mut quiet = edge.connect(Alpn::H1).await;
        for path in ["/old/v1/models", "/kept/v1/models"] {
            let asked = request(&quiet, path, "size=10");
            assert_eq!(quiet.fetch(asked).await.expect("answer").status(), 200);
        }
        assert_eq!(edge.metric("nullhop_upstream_open_connections", &["upstream=\"kept\""]), 1.0);
        assert_eq!(edge.metric("nullhop_upstream_open_connections", &["upstream=\"old\""]), 2.0);

        let new = setup(&["new", "kept"], "[limits]\nrequests_per_connection = 1\n");
        reload_well(&edge, &Edge::config(&url, &new));
        assert_eq!(edge.metric("nullhop_config_reloads_total", &["result=\"ok\""]), 1.0);
        assert_ne!(edge.metric("nullhop_config_fingerprint", &[]), fingerprint);
        let mut newcomer = edge.connect(Alpn::H1).await;
        let asked = request(&newcomer, "/new/v1/models", "size=10");
        let answer = newcomer.fetch(asked).await.expect("answer");
        assert_eq!((answer.status(), answer.header("connection")), (200, "close"), "new limits, new upstream");
        let asked = request(&quiet, "/old/v1/models", "size=10");
        let answer = quiet.fetch(asked).await.expect("answer");
        assert_eq!((answer.status(), answer.header("connection")), (404, ""), "its connection keeps its limits");
        // Idle lines of before are closed although `quiet` and a stream live on.
        let closed = |name: &str, left: f64| {
            let label = format!("upstream=\"{name}\"");
            edge.wait_for_metric("nullhop_upstream_open_connections", &[&label], |open| open == left, SOON)
        };
        assert!(closed("old", 1.0) && closed("kept", 0.0));
        let asked = request(&quiet, "/kept/v1/models", "size=10");
        assert_eq!(quiet.fetch(asked).await.expect("answer").status(), 200);

        let broken =
            Edge::config(&url, &new).replace("requests_per_connection = 1", "requests_per_conection = 1\nbogus = 2");
        reload(&edge, &broken);
        assert!(edge.wait_for_log(" error config_refused problems=2", SOON), "{}", edge.log().join("\n"));
        assert_eq!(edge.metric("nullhop_config_reloads_total", &["result=\"error\""]), 1.0);
        assert_eq!(edge.metric("nullhop_config_last_reload_successful", &[]), 0.0);
        let asked = request(&quiet, "/new/v1/models", "size=10");
        assert_eq!(quiet.fetch(asked).await.expect("answer").status(), 200, "the old one stays in force");
        reload_well(&edge, &Edge::config(&url, &new));
        assert_eq!(edge.metric("nullhop_config_last_reload_successful", &[]), 1.0);

        let received = running.await.expect("task");
        assert!(received.error.is_none() && events(&received) == 31, "the stream of before runs to its end");
        assert!(closed("old", 0.0));
    });
}

#[test]
fn reload_closes_idle_h2_lines() {
    let provider = provider();
    let url = provider.url();
    let edge = Edge::before(&provider);
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H2).await;
        let running = stream(&mut client, CHAT, "events=15;event_bytes=100;period_us=100000").await;
        let asked = request(&client, "/anthropic/v1/messages", "size=10");
        assert_eq!(client.fetch(asked).await.expect("answer").status(), 200);
        assert_eq!(provider.open_connections(), 2);
        reload_well(&edge, &Edge::config(&url, &Setup::default()));
        assert!(wait_for(SOON, || provider.open_connections() == 1), "{}", provider.open_connections());
        let received = running.await.expect("task");
        assert!(received.error.is_none() && events(&received) == 16);
        assert!(wait_for(SOON, || provider.open_connections() == 0), "{}", provider.open_connections());
        assert!(edge.wait_for_metric("nullhop_upstream_open_connections", &[], |open| open == 0.0, SOON));
    });
}

#[test]
fn reload_moves_listeners() {
    let provider = provider();
    let url = provider.url();
    // Two that take any free port have a socket each.
    let two = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\n";
    let with = |listener: &str| Setup { listener: listener.to_owned(), ..Setup::default() };
    let edge = Edge::with(&url, provider.ca_pem(), with(two));
    support::runtime().block_on(async {
        for address in &edge.listeners {
            let mut client = Client::connect(*address, "localhost", Alpn::H1, &edge.trust()).await.expect("connects");
            let asked = request(&client, CHAT, "size=10");
            assert_eq!(client.fetch(asked).await.expect("answer").status(), 200);
        }
        let mut guest =
            Client::connect(edge.listeners[1], "localhost", Alpn::H1, &edge.trust()).await.expect("connects");
        let running = stream(&mut guest, CHAT, "events=15;event_bytes=100;period_us=100000").await;

        let third: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let moved =
            format!("[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"third\"\naddress = \"{third}\"\n");
        reload_well(&edge, &Edge::config(&url, &with(&moved)));
        let mut client = Client::connect(third, "localhost", Alpn::H2, &edge.trust()).await.expect("connects");
        let asked = request(&client, CHAT, "size=10");
        assert_eq!(client.fetch(asked).await.expect("answer").status(), 200);
        assert!(wait_for(SOON, || !accepts(edge.listeners[1])), "the second is gone");
        assert!(accepts(edge.address()), "the first has stayed");
        let received = running.await.expect("task");
        assert!(received.error.is_none() && events(&received) == 16);

        // Somebody else has the address: refused as a whole.
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("address");
        let config = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\nname = \"fourth\"\naddress = \"{address}\"\n"
        );
        let setup = Setup { upstreams: Some(String::new()), ..with(&config) };
        let upstream = format!("[[upstream]]\nname = \"other\"\nprovider = \"openai\"\nurl = \"{url}\"\n");
        reload(&edge, &(Edge::config(&url, &setup) + &upstream));
        assert!(edge.wait_for_log(" config_refused problems=1", SOON), "{}", edge.log().join("\n"));
        assert!(accepts(third));
        assert_eq!(edge.metric("nullhop_upstream_info", &["upstream=\"openai\""]), 1.0);
        assert_eq!(edge.metric("nullhop_upstream_info", &["upstream=\"other\""]), 0.0);

        // The metrics listener moves, and the log changes its format.
        let metrics: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let config = Edge::config(&url, &with("[[listener]]\naddress = \"127.0.0.1:0\"\n"));
        let config = config.replace(
            "[metrics]\naddress = \"127.0.0.1:0\"",
            &format!("[log]\nformat = \"json\"\n[metrics]\naddress = \"{metrics}\""),
        );
        reload(&edge, &config);
        assert!(edge.wait_for_log("\"event\":\"config_reloaded\"", SOON), "{}", edge.log().join("\n"));
        assert_eq!(support::get(metrics, "/metrics").0, 200);
        assert!(wait_for(SOON, || !accepts(edge.metrics)));
        assert!(wait_for(SOON, || !accepts(third)));
    });
}

#[test]
fn connections_end_where_descriptors_do() {
    use rustix::process::Pid;
    use rustix::process::Resource;
    use rustix::process::Rlimit;
    let edge = Edge::with("http://127.0.0.1:9", "", Setup::default());
    let pid = Pid::from_raw(i32::try_from(edge.pid()).expect("a pid")).expect("a pid");
    // 64 of its own, and two for each client.
    let limit = Rlimit { current: Some(104), maximum: Some(104) };
    rustix::process::prlimit(Some(pid), Resource::Nofile, limit).expect("its limit is lowered");
    reload_well(&edge, &Edge::config("http://127.0.0.1:9", &Setup::default()));
    let clients: Vec<TcpStream> = (0..30).map(|_| TcpStream::connect(edge.address()).expect("connects")).collect();
    let refused = |count: f64| count == 10.0;
    assert!(edge.wait_for_metric("nullhop_connections_refused_total", &["reason=\"limit\""], refused, SOON));
    drop(clients);
    let config = Arc::new(tls_config(&edge.ca.pem(), None, None));
    assert!(edge.wait_for_metric("nullhop_open_connections", &[], |open| open == 0.0, SOON));
    std::thread::sleep(Duration::from_millis(100));
    support::runtime().block_on(shake(edge.address(), "localhost", config)).expect("there is room again");
    assert_eq!(lines_with(&edge, " accept_failed "), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Certificates and what the handshake settles

fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(pem: &str) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("root");
    roots
}

fn tls_config(
    ca: &str,
    version: Option<&'static rustls::SupportedProtocolVersion>,
    show: Option<&Leaf>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(crypto());
    let versions = version.map_or(rustls::ALL_VERSIONS.to_vec(), |version| vec![version]);
    let builder = builder.with_protocol_versions(&versions).expect("versions").with_root_certificates(roots(ca));
    let mut config = match show {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).expect("key");
            builder.with_client_auth_cert(chain(leaf), key).expect("certificate")
        }
    };
    config.alpn_protocols = Alpn::H1.protocols();
    config
}

fn chain(leaf: &Leaf) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(leaf.cert_pem.as_bytes()).map(|der| der.expect("PEM")).collect()
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// A handshake and one small exchange, so that tickets and alerts have arrived.
async fn shake(address: SocketAddr, name: &str, config: Arc<ClientConfig>) -> std::io::Result<Tls> {
    let tcp = tokio::net::TcpStream::connect(address).await?;
    shake_over(tcp, name, config).await
}

async fn shake_over(tcp: tokio::net::TcpStream, name: &str, config: Arc<ClientConfig>) -> std::io::Result<Tls> {
    let name = ServerName::try_from(name.to_owned()).expect("name");
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
    stream.write_all(b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut first = [0; 12];
    stream.read_exact(&mut first).await?;
    assert_eq!(&first, b"HTTP/1.1 404");
    Ok(stream)
}

fn shown(stream: &Tls) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
}

#[test]
fn certificates_change_under_open_streams() {
    let provider = provider();
    let setup = || Setup { extra: "[tls]\nreload_interval = \"1s\"\n".to_owned(), ..Setup::default() };
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup());
    // A new one each time: a resumed session would show the certificate of its first handshake.
    let config = || Arc::new(tls_config(&edge.ca.pem(), None, None));
    let names = ["localhost", "127.0.0.1"];
    support::runtime().block_on(async {
        let first = shown(&shake(edge.address(), "localhost", config()).await.expect("handshake"));
        let mut client = edge.connect(Alpn::H2).await;
        let running = stream(&mut client, CHAT, "events=50;event_bytes=100;period_us=100000").await;

        let second = edge.ca.leaf(&names);
        edge.scratch.file("edge.pem", &second.cert_pem);
        edge.scratch.file("edge.key", &second.key_pem);
        assert!(edge.wait_for_log(" certificate_reloaded certificate=edge ", SOON), "{}", edge.log().join("\n"));
        let now = shown(&shake(edge.address(), "localhost", config()).await.expect("handshake"));
        assert!(now != first && now == chain(&second)[0]);

        // A key that does not belong to the certificate.
        edge.scratch.file("edge.key", &edge.ca.leaf(&names).key_pem);
        assert!(edge.wait_for_log(" error certificate_refused certificate=edge", SOON), "{}", edge.log().join("\n"));
        let still = shown(&shake(edge.address(), "localhost", config()).await.expect("handshake"));
        assert!(still == now);

        // Other paths, by a reload.
        let third = edge.ca.leaf(&names);
        edge.scratch.file("other.pem", &third.cert_pem);
        edge.scratch.file("other.key", &third.key_pem);
        let text =
            Edge::config(&provider.url(), &setup()).replace("edge.pem", "other.pem").replace("edge.key", "other.key");
        reload_well(&edge, &text);
        let now = shown(&shake(edge.address(), "localhost", config()).await.expect("handshake"));
        assert!(now == chain(&third)[0]);
        // The files of before are bad, which only matters to a configuration that names them.
        reload(&edge, &Edge::config(&provider.url(), &setup()));
        assert!(edge.wait_for_log(" config_refused ", SOON), "{}", edge.log().join("\n"));

        let received = running.await.expect("task");
        assert!(received.error.is_none() && events(&received) == 51);
    });
}

#[test]
fn server_name_chooses_the_certificate() {
    let ca = Ca::new("second authority");
    let (one, two) = (ca.leaf(&["one.test"]), ca.leaf(&["*.two.test"]));
    let scratch = Scratch::new();
    let mut extra = String::new();
    for (name, leaf) in [("one", &one), ("two", &two)] {
        let cert = scratch.file(&format!("{name}.pem"), &leaf.cert_pem);
        let key = scratch.file(&format!("{name}.key"), &leaf.key_pem);
        extra += &format!(
            "[[certificate]]\nname = \"{name}\"\ncert_file = \"{}\"\nkey = {{ file = \"{}\" }}\n",
            cert.display(),
            key.display()
        );
    }
    let edge = Edge::with("http://127.0.0.1:9", "", Setup { extra, ..Setup::default() });
    support::runtime().block_on(async {
        let config = Arc::new(tls_config(&ca.pem(), None, None));
        for (name, leaf) in [("one.test", &one), ("a.two.test", &two), ("b.two.test", &two)] {
            let stream = shake(edge.address(), name, config.clone()).await.expect(name);
            assert!(shown(&stream) == chain(leaf)[0], "{name}");
        }
        // The default one for all others; it is of another authority.
        assert!(shake(edge.address(), "three.test", config).await.is_err());
        let config = Arc::new(tls_config(&edge.ca.pem(), None, None));
        assert!(shake(edge.address(), "127.0.0.1", config).await.is_ok());
    });
    assert_eq!(edge.scrape().matches("nullhop_tls_certificate_not_after_timestamp_seconds{").count(), 3);
}

#[test]
fn client_certificates() {
    let (ca, stranger) = (Ca::new("clients"), Ca::new("strangers"));
    let scratch = Scratch::new();
    let file = scratch.file("clients.pem", &ca.pem());
    let (ours, theirs) = (ca.leaf(&["client.test"]), stranger.leaf(&["client.test"]));
    let extra = |word: &str| format!("[tls]\nclient_auth = \"{word}\"\nca_file = \"{}\"\n", file.display());
    let setup = |word: &str| Setup { extra: extra(word), ..Setup::default() };
    let url = "http://127.0.0.1:9";
    let edge = Edge::with(url, "", setup("optional"));
    support::runtime().block_on(async {
        let client = |leaf: Option<&Leaf>| Arc::new(tls_config(&edge.ca.pem(), None, leaf));
        assert!(shake(edge.address(), "localhost", client(None)).await.is_ok());
        assert!(shake(edge.address(), "localhost", client(Some(&ours))).await.is_ok());
        assert!(shake(edge.address(), "localhost", client(Some(&theirs))).await.is_err());

        let plain = tls_config(&edge.ca.pem(), None, None);
        reload_well(&edge, &Edge::config(url, &Setup::default()));
        let anonymous = Arc::new(plain);
        shake(edge.address(), "localhost", anonymous.clone()).await.expect("nobody is asked");
        reload_well(&edge, &Edge::config(url, &setup("required")));
        assert!(shake(edge.address(), "localhost", anonymous).await.is_err(), "a ticket of before is no way in");
        assert!(shake(edge.address(), "localhost", client(Some(&ours))).await.is_ok());
        assert!(shake(edge.address(), "localhost", client(Some(&theirs))).await.is_err());
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let config = Arc::new(tls_config(&edge.ca.pem(), Some(version), None));
            assert!(shake(edge.address(), "localhost", config).await.is_err());
        }
    });
    assert!(edge.metric("nullhop_tls_handshakes_total", &["result=\"bad_client\""]) >= 5.0);
}

#[test]
fn versions_groups_and_resumption() {
    let edge = Edge::with("http://127.0.0.1:9", "", Setup::default());
    support::runtime().block_on(async {
        for (version, wanted) in
            [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
        {
            let config = Arc::new(tls_config(&edge.ca.pem(), Some(version), None));
            let first = shake(edge.address(), "localhost", config.clone()).await.expect("handshake");
            let session = first.get_ref().1;
            assert_eq!(session.protocol_version(), Some(wanted));
            assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_ne!(session.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
            if wanted == ProtocolVersion::TLSv1_3 {
                let group = session.negotiated_key_exchange_group().expect("group").name();
                assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
            }
            let second = shake(edge.address(), "localhost", config.clone()).await.expect("handshake");
            assert_eq!(second.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "{wanted:?}");
            // Also after a reload, whose session keys are the same.
            reload_well(&edge, &Edge::config("http://127.0.0.1:9", &Setup::default()));
            let third = shake(edge.address(), "localhost", config).await.expect("handshake");
            assert_eq!(third.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "{wanted:?}");
        }
        let setup = Setup { extra: "[tls]\nmin_version = \"1.3\"\n".to_owned(), ..Setup::default() };
        reload_well(&edge, &Edge::config("http://127.0.0.1:9", &setup));
        let old = Arc::new(tls_config(&edge.ca.pem(), Some(&rustls::version::TLS12), None));
        assert!(shake(edge.address(), "localhost", old).await.is_err());
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// The PROXY protocol

#[test]
fn proxy_headers_from_trusted_networks() {
    let listener =
        |networks: &str| format!("[[listener]]\naddress = \"127.0.0.1:0\"\nproxy_protocol_from = [\"{networks}\"]\n");
    let extra = "[limits]\nconnections_per_address = 1\nhandshake_timeout = \"1s\"\n";
    let setup = |networks: &str| Setup { listener: listener(networks), extra: extra.to_owned(), ..Setup::default() };
    let url = "http://127.0.0.1:9";
    let edge = Edge::with(url, "", setup("127.0.0.0/8"));
    support::runtime().block_on(async {
        let config = Arc::new(tls_config(&edge.ca.pem(), None, None));
        let through = async |header: &[u8]| -> std::io::Result<Tls> {
            let mut tcp = tokio::net::TcpStream::connect(edge.address()).await?;
            tcp.write_all(header).await?;
            shake_over(tcp, "localhost", config.clone()).await
        };
        let v1 = |source: &str| format!("PROXY TCP4 {source} 192.0.2.1 4000 443\r\n").into_bytes();
        let v2 = |source: [u8; 4]| {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
            header.extend(source);
            header.extend([192, 0, 2, 1, 0x0f, 0xa0, 1, 187]);
            header
        };
        let held = through(&v1("198.51.100.1")).await.expect("v1");
        let _other = through(&v2([198, 51, 100, 2])).await.expect("v2");
        assert!(through(&v2([198, 51, 100, 1])).await.is_err(), "the client's address is what counts");
        assert_eq!(edge.metric("nullhop_connections_refused_total", &["reason=\"limit\""]), 1.0);
        drop(held);
        let freed = async {
            while through(&v1("198.51.100.1")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(SOON, freed).await.expect("the place is free again");

        for bad in [&b""[..], b"PROXY TCP4 nonsense\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
            assert!(through(bad).await.is_err());
        }
        assert!(edge.wait_for_metric(
            "nullhop_connections_refused_total",
            &["reason=\"proxy_header\""],
            |n| n == 3.0,
            SOON
        ));
        // Nothing at all is waited for as long as a handshake may take.
        let began = Instant::now();
        let mut silent = tokio::net::TcpStream::connect(edge.address()).await.expect("connects");
        let _ = silent.read(&mut [0; 1]).await;
        assert!(began.elapsed() > Duration::from_millis(900) && began.elapsed() < Duration::from_secs(5));

        reload_well(&edge, &Edge::config(url, &setup("10.0.0.0/8")));
        assert!(through(&v1("198.51.100.7")).await.is_err(), "loopback is not trusted any more");
        assert_eq!(edge.metric("nullhop_connections_refused_total", &["reason=\"not_allowed\""]), 1.0);
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// The supervisor and the machine

/// Runs the program to its end.
fn run_to_end(scratch: &Scratch, config: &str) -> (Option<i32>, String) {
    let path = scratch.file("ended.toml", config);
    let output = Command::new(env!("CARGO_BIN_EXE_nullhop")).arg("run").arg("-c").arg(path).output().expect("runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const UPSTREAM: &str = "[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n";

fn everything_at(listener: &str, metrics: &str, admin: &str) -> String {
    format!(
        "[[listener]]\naddress = \"{listener}\"\n[metrics]\naddress = \"{metrics}\"\n[admin]\naddress = \"{admin}\"\n{UPSTREAM}"
    )
}

#[test]
fn taken_ports_are_told() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("address").to_string();
    let free = "127.0.0.1:0";
    for (kind, config) in [
        ("traffic", everything_at(&address, free, free)),
        ("metrics", everything_at(free, &address, free)),
        ("admin", everything_at(free, free, &address)),
    ] {
        let (code, said) = run_to_end(&scratch, &config);
        assert_eq!(code, Some(1), "{said}");
        let wanted =
            format!("nullhop: cannot listen on {address} ({kind} listener): address in use; another process has it");
        assert!(said.contains(&wanted), "{said}");
    }
    // Another nullhop has it, with sockets that would let this one in.
    let edge = Edge::with("http://127.0.0.1:9", "", Setup::default());
    let (code, said) = run_to_end(&scratch, &everything_at(&edge.address().to_string(), free, free));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process has it"), "{said}");
    let (code, said) = run_to_end(&scratch, "[listner]\n");
    assert_eq!(code, Some(2), "{said}");
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sockets_of_a_supervisor() {
    let scratch = Scratch::new();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("address");
    let spawn = |socket: TcpListener, config: String| {
        let path = scratch.file("activated.toml", &config);
        // The socket comes as standard input and is passed on as the first descriptor of its kind.
        let script = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" run -c \"$1\" 3<&0 0</dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_nullhop")]).arg(path);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(socket))).stderr(Stdio::piped());
        Killed(command.spawn().expect("starts"))
    };
    let free = "127.0.0.1:0";
    // A socket that nobody wants would swallow connections.
    let two = everything_at(free, free, free) + "[[listener]]\nname = \"second\"\naddress = \"127.0.0.1:0\"\n";
    let mut child = spawn(socket.try_clone().expect("socket"), two);
    let mut said = String::new();
    child.0.stderr.take().expect("piped").read_to_string(&mut said).expect("reads");
    assert_eq!(child.0.wait().expect("ends").code(), Some(1));
    assert!(said.contains(&format!("a socket at {address} was passed")), "{said}");

    let child = spawn(socket, everything_at(&address.to_string(), free, free));
    support::runtime().block_on(async {
        // The kernel queues us until it is there.
        let config = Trust::AcceptAny.client_config(Alpn::H1).expect("config");
        shake(address, "localhost", config).await.expect("handshake");
    });
    drop(child);
}

#[test]
fn the_supervisor_is_told() {
    let scratch = Scratch::new();
    let path = scratch.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(SOON)).expect("timeout");
    let hear = || {
        let mut text = [0; 200];
        let len = socket.recv(&mut text).expect("a message");
        String::from_utf8_lossy(&text[..len]).into_owned()
    };
    let environment = vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string())];
    let mut edge = Edge::with("http://127.0.0.1:9", "", Setup { environment, ..Setup::default() });
    assert_eq!(hear(), "READY=1");
    for config in [Edge::config("http://127.0.0.1:9", &Setup::default()), "nonsense".to_owned()] {
        reload(&edge, &config);
        let heard = hear();
        let micros = heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&heard);
        assert!(micros.parse::<u64>().expect("a number") > 0);
        assert_eq!(hear(), "READY=1", "also when it was refused");
    }
    edge.signal("TERM");
    assert_eq!(hear(), "STOPPING=1");
    assert_eq!(edge.wait_exit(SOON), Some(0));
}

#[test]
fn starts_without_a_file() {
    let ports = [8443, 9464, 9465];
    if ports.iter().any(|port| TcpListener::bind(("127.0.0.1", *port)).is_err()) {
        eprintln!("SKIPPED starts_without_a_file: one of {ports:?} is taken");
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    let mut child = Killed(command.arg("run").stderr(Stdio::null()).spawn().expect("starts"));
    let address: SocketAddr = ([127, 0, 0, 1], 8443).into();
    assert!(wait_for(Duration::from_secs(10), || accepts(address)));
    support::runtime().block_on(async {
        let config = Trust::AcceptAny.client_config(Alpn::H1).expect("config");
        shake(address, "localhost", config).await.expect("handshake");
    });
    let mut metrics = TcpStream::connect("127.0.0.1:9464").expect("metrics");
    metrics.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("writes");
    let mut page = String::new();
    metrics.read_to_string(&mut page).expect("reads");
    for name in ["openai", "anthropic", "gemini", "deepseek", "openrouter"] {
        assert!(
            page.contains(&"nullhop_upstream_info{provider=".to_string())
                && page.contains(&format!("upstream=\"{name}\"")),
            "{name}"
        );
    }
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
    assert_eq!(child.0.wait().expect("ends").code(), Some(0));
}
