//! The provider keeps to its scripts, and its journal tells the truth.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Request;
use nullhop_loadtests::client::Answer;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::client::sha256;
use nullhop_loadtests::encoding::Coding;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::pattern::PatternCheck;
use nullhop_loadtests::pattern::pattern_sha256;
use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Outcome;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::parse_event;
use nullhop_loadtests::streams::Kind;
use nullhop_loadtests::streams::Random;
use nullhop_loadtests::streams::Stream;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Ca;
use nullhop_loadtests::tls::Trust;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use nullhop_loadtests::websocket::WebSocket;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

const PATIENCE: Duration = Duration::from_secs(10);
const PROTOCOLS: [Alpn; 2] = [Alpn::H1, Alpn::H2];

/// `NULLHOP_VECTORS` names a fuller set.
fn vectors() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
    std::env::var_os("NULLHOP_VECTORS").map_or_else(|| own.into(), PathBuf::from)
}

fn provider() -> Provider {
    let options = ProviderOptions { vectors: Some(vectors()), keep_body_bytes: 1024, ..ProviderOptions::default() };
    Provider::spawn(options).unwrap()
}

async fn connect(provider: &Provider, alpn: Alpn) -> Client {
    let trust = Trust::Root(provider.ca_pem().to_owned());
    let client = Client::connect(provider.address(), "localhost", alpn, &trust).await.unwrap();
    assert_eq!(client.is_h2(), alpn == Alpn::H2);
    client
}

fn ask(alpn: Alpn, method: Method, path: &str, script: &str) -> http::request::Builder {
    let uri = if alpn == Alpn::H2 { format!("https://localhost{path}") } else { path.to_owned() };
    let mut builder = Request::builder().method(method).uri(uri);
    if alpn == Alpn::H1 {
        builder = builder.header("host", "localhost");
    }
    if script.is_empty() { builder } else { builder.header("x-script", script) }
}

fn get(alpn: Alpn, script: &str) -> Request<FullBody> {
    ask(alpn, Method::GET, "/any", script).body(FullBody::empty()).unwrap()
}

fn post(alpn: Alpn, path: &str, body: &Value) -> Request<FullBody> {
    ask(alpn, Method::POST, path, "").body(FullBody::new(body.to_string())).unwrap()
}

/// Everything here is over in seconds; a hang is a failure with a name.
async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("the scene ends in time")
}

#[tokio::test]
async fn files_come_back_byte_exact_whole_and_at_cuts() {
    let provider = provider();
    bounded(async {
        for alpn in PROTOCOLS {
            let mut client = connect(&provider, alpn).await;
            for name in provider.vectors().names() {
                let vector = provider.vectors().get(name).unwrap();
                for how in ["", ";cuts=splits", ";cuts=3,17,200", ";every=100;len=chunked", ";len=known;every=999"] {
                    let answer = client.fetch(get(alpn, &format!("file={name}{how}"))).await.unwrap();
                    assert_eq!(answer.body, vector.bytes, "{name}{how}");
                    assert_eq!(answer.head.status, vector.status);
                    assert_eq!(answer.header("content-type"), vector.content_type.as_deref().unwrap_or(""));
                    let has_len = answer.head.headers.contains_key("content-length");
                    assert_eq!(has_len, !how.contains("chunked"), "{name}{how}");
                }
            }
        }
    })
    .await;
    assert_eq!(provider.open_streams(), 0);
    assert_eq!(provider.connects(), 2);
    assert!(provider.requests().iter().all(|seen| seen.outcome == Outcome::Complete));
}

#[tokio::test]
async fn cuts_and_pauses_are_felt() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let script = "size=30;cuts=10,20;delay_ms=60;head_delay_ms=80;header=x-a:1;header=x-a:2;status=201";
        let before = Instant::now();
        let response = bounded(client.send(get(alpn, script))).await.unwrap();
        assert!(before.elapsed() >= Duration::from_millis(80));
        let received = bounded(Received::read(response, 100)).await;
        assert_eq!(received.head.status, 201);
        assert_eq!(received.head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(received.pieces.iter().map(|(_, len)| *len).collect::<Vec<_>>(), [10, 10, 10]);
        assert!(before.elapsed() >= Duration::from_millis(200));
        assert_eq!(received.sha256, pattern_sha256(30));
    }
}

#[tokio::test]
async fn framing_is_as_asked() {
    let provider = Provider::spawn(ProviderOptions { alpn: Alpn::Plain, ..ProviderOptions::default() }).unwrap();
    let mut tcp = tokio::net::TcpStream::connect(provider.address()).await.unwrap();
    tcp.write_all(b"GET /x?script=size%3D4;every=1;len=close HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    bounded(tcp.read_to_end(&mut all)).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("connection: close\r\n"));
    assert!(!text.contains("content-length") && !text.contains("transfer-encoding"), "{text}");
    assert_eq!(all[all.len() - 8..][..4], *b"\r\n\r\n");

    let mut tcp = tokio::net::TcpStream::connect(provider.address()).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nx-script: status=200;file=x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\
        x-script: size=4;every=1;len=chunked;close=1\r\n\r\n";
    tcp.write_all(request).await.unwrap();
    let mut all = Vec::new();
    bounded(tcp.read_to_end(&mut all)).await.unwrap();
    // Each cut is a chunk of its own.
    assert_eq!(all.windows(3).filter(|window| window == b"1\r\n").count(), 4);
    assert!(all.ends_with(b"\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn faults_come_after_the_bytes_they_were_told() {
    let provider = provider();
    for alpn in PROTOCOLS {
        for fault in ["reset_after", "fin_after", "goodbye_after", "kill_after"] {
            for len in ["len=auto", "len=chunked"] {
                let mut client = connect(&provider, alpn).await;
                let script = format!("size=5000;{len};{fault}=1234");
                let response = bounded(client.send(get(alpn, &script))).await.unwrap();
                let received = bounded(Received::read(response, 0)).await;
                assert_eq!(received.len, 1234, "{alpn:?} {script}");
                assert_eq!(received.sha256, pattern_sha256(1234));
                assert!(received.error.is_some(), "{alpn:?} {script}");
                let settled = provider.wait_for(|state| state.open_streams == 0, PATIENCE).await;
                assert!(settled && provider.last().outcome == Outcome::Broken && !provider.last().aborted);
                assert_eq!(provider.last().response_bytes, 1234);
                // On h2 a reset is the stream's affair.
                if alpn == Alpn::H2 && fault == "reset_after" {
                    assert_eq!(bounded(client.fetch(get(alpn, "size=1"))).await.unwrap().status(), 200);
                }
            }
            let mut client = connect(&provider, alpn).await;
            assert!(bounded(client.send(get(alpn, &format!("{fault}=head")))).await.is_err());
        }
    }
    assert!(provider.wait_for(|state| state.open_connections <= 2, PATIENCE).await);
}

#[tokio::test]
async fn a_reset_on_the_wire_is_a_reset_and_a_fin_a_fin() {
    let provider = Provider::spawn(ProviderOptions { alpn: Alpn::Plain, ..ProviderOptions::default() }).unwrap();
    for (fault, error) in [("reset_after", Some(std::io::ErrorKind::ConnectionReset)), ("fin_after", None)] {
        let mut tcp = tokio::net::TcpStream::connect(provider.address()).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\nx-script: size=100;{fault}=10\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let result = bounded(tcp.read_to_end(&mut all)).await;
        assert_eq!(result.err().map(|error| error.kind()), error, "{fault}");
        let head = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert_eq!(all.len() - head, 10);
    }
}

#[tokio::test]
async fn reset_codes_reach_the_peer() {
    let provider = provider();
    let mut client = connect(&provider, Alpn::H2).await;
    for (script, code) in [("reset_after=head;reset_code=7", 7), ("size=9;reset_after=3;reset_code=8", 8)] {
        let error = match bounded(client.send(get(Alpn::H2, script))).await {
            Ok(response) => bounded(Received::read(response, 0)).await.error.unwrap(),
            Err(error) => error,
        };
        let source = std::error::Error::source(&error).unwrap().downcast_ref::<h2::Error>().unwrap();
        assert_eq!(source.reason().map(u32::from), Some(code));
    }
}

#[tokio::test]
async fn a_stall_hangs_until_the_client_leaves_and_that_is_noticed() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let mut response = bounded(client.send(get(alpn, "size=1000;stall_after=100"))).await.unwrap();
        let first = bounded(next_data(response.body_mut())).await.unwrap().unwrap();
        assert_eq!(first.len(), 100);
        let silence = tokio::time::timeout(Duration::from_millis(150), next_data(response.body_mut())).await;
        assert!(silence.is_err());
        assert_eq!(provider.open_streams(), 1);
        let left = Instant::now();
        drop(response);
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await);
        let seen = provider.last();
        assert!(seen.aborted && seen.outcome == Outcome::Aborted);
        assert!(seen.ended_at.unwrap().saturating_duration_since(left) < Duration::from_secs(1));
    }
}

#[tokio::test]
async fn never_answering_and_never_reading() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let never = ask(alpn, Method::POST, "/v1/messages", "never=1").body(PatternBody::new(100_000)).unwrap();
        let waiting = client.send(never);
        assert!(tokio::time::timeout(Duration::from_millis(200), waiting).await.is_err());
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await, "{alpn:?} {:?}", provider.last());
        assert_eq!(provider.last().body_end, BodyEnd::Clean);
        assert_eq!(provider.last().body_sha256, Some(pattern_sha256(100_000)));
        assert!(provider.last().aborted);

        let mut client = connect(&provider, alpn).await;
        let (sender, body) = ChannelBody::new(1);
        let stalled = ask(alpn, Method::POST, "/x", "read_stall=1").body(body).unwrap();
        let waiting = tokio::spawn(client.send(stalled));
        let mut pushed = 0;
        let push = async {
            loop {
                sender.send(vec![0; 65_536]).await.unwrap();
                pushed += 65_536;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), push).await;
        assert!(pushed < 64 * 1024 * 1024, "{pushed} bytes went in");
        assert_eq!(provider.last().body_len, 0);
        waiting.abort();
        // A FIN would wait behind the bytes that found no room.
        client.abort(Ending::Reset);
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await, "{alpn:?}");
        assert!(provider.last().aborted);

        let mut client = connect(&provider, alpn).await;
        let stalled = ask(alpn, Method::POST, "/x", "read_stall=1").body(PatternBody::new(50_000)).unwrap();
        let waiting = tokio::spawn(client.send(stalled));
        assert!(provider.wait_for(|state| state.open_streams == 1, PATIENCE).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        waiting.abort();
        client.abort(Ending::Fin);
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await, "{alpn:?}");
    }
}

#[tokio::test]
async fn slow_reading_takes_its_time() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let before = Instant::now();
        let request = ask(alpn, Method::POST, "/x", "read_rate=200000").body(PatternBody::new(100_000)).unwrap();
        assert_eq!(bounded(client.fetch(request)).await.unwrap().status(), 200);
        assert!(before.elapsed() > Duration::from_millis(300), "{:?}", before.elapsed());
    }
}

#[tokio::test]
async fn early_answers_overtake_the_request() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let (sender, body) = ChannelBody::new(1);
        sender.send("first").await.unwrap();
        let request = ask(alpn, Method::POST, "/x", "early=1;size=10").body(body).unwrap();
        let answer = bounded(client.fetch(request)).await.unwrap();
        assert_eq!(answer.body.len(), 10);
        assert_eq!(provider.last().body_end, BodyEnd::Open);
        sender.send("second").await.unwrap();
        drop(sender);
        let read = |state: &nullhop_loadtests::provider::State<'_>| state.last().unwrap().body_end == BodyEnd::Clean;
        assert!(provider.wait_for(read, PATIENCE).await, "{alpn:?} {:?}", provider.last());
        assert_eq!(provider.last().body, "firstsecond");
    }
    let mut client = connect(&provider, Alpn::H1).await;
    let (sender, body) = ChannelBody::new(1);
    sender.send("first").await.unwrap();
    let request = ask(Alpn::H1, Method::POST, "/x", "early_close=1;status=413").body(body).unwrap();
    let answer = bounded(client.fetch(request)).await.unwrap();
    assert_eq!((answer.status(), answer.header("connection")), (413, "close"));
    assert!(provider.wait_for(|state| state.open_connections <= 1, PATIENCE).await);
    assert_eq!(provider.last().body_end, BodyEnd::Unread);
}

#[tokio::test]
async fn the_echo_is_full_duplex() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let (sender, body) = ChannelBody::new(1);
        let request = ask(alpn, Method::POST, "/x", "echo=1").header("te", "trailers").body(body).unwrap();
        sender.send("0").await.unwrap();
        let mut response = bounded(client.send(request)).await.unwrap();
        assert_eq!(bounded(next_data(response.body_mut())).await.unwrap().unwrap(), "0");
        for round in 1..20 {
            sender.send(round.to_string()).await.unwrap();
            assert_eq!(bounded(next_data(response.body_mut())).await.unwrap().unwrap(), round.to_string());
        }
        if alpn == Alpn::H2 {
            sender.trailers(HeaderMap::from_iter([("x-end".parse().unwrap(), "1".parse().unwrap())])).await.unwrap();
        }
        drop(sender);
        let rest = bounded(Answer::collect(response)).await.unwrap();
        assert_eq!(rest.trailers.is_some(), alpn == Alpn::H2);
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await);
        assert_eq!(
            (provider.last().outcome, provider.last().body_end),
            (Outcome::Complete, BodyEnd::Clean),
            "{alpn:?}"
        );

        let known = ask(alpn, Method::POST, "/x", "echo=1;len=known").body(PatternBody::new(300_000)).unwrap();
        let answer = bounded(client.fetch(known)).await.unwrap();
        assert_eq!(answer.header("content-length"), "300000");
        assert_eq!(sha256(&answer.body), pattern_sha256(300_000));
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await);
        assert_eq!(
            (provider.last().outcome, provider.last().body_end),
            (Outcome::Complete, BodyEnd::Clean),
            "{alpn:?}"
        );
    }
}

#[tokio::test]
async fn big_bodies_are_whole_in_both_directions() {
    const LEN: u64 = 64 * 1024 * 1024;
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let before = Instant::now();
        let mut response = bounded(client.send(get(alpn, &format!("size={LEN}")))).await.unwrap();
        let mut check = PatternCheck::new();
        while let Some(data) = bounded(next_data(response.body_mut())).await {
            check.feed(&data.unwrap()).unwrap();
        }
        assert_eq!(check.offset(), LEN);
        let down = before.elapsed();
        let upload = ask(alpn, Method::POST, "/x", "status=204").body(PatternBody::new(LEN)).unwrap();
        assert_eq!(bounded(client.fetch(upload)).await.unwrap().status(), 204);
        assert_eq!(provider.last().body_sha256, Some(pattern_sha256(LEN)));
        assert_eq!(provider.last().body_len, LEN);
        println!("{alpn:?}: {LEN} bytes down in {down:?}, both ways in {:?}", before.elapsed());
    }
}

#[tokio::test]
async fn events_are_paced_numbered_and_stamped() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let before = Instant::now();
        let script = "events=50;event_bytes=400;period_us=4000;stamp=1;usage=1";
        let answer = bounded(client.fetch(get(alpn, script))).await.unwrap();
        assert!(before.elapsed() >= Duration::from_millis(190));
        let text = answer.text();
        let events: Vec<&str> = text.split_inclusive("\n\n").collect();
        assert_eq!(events.len(), 52);
        let mut last = 0;
        for (index, event) in events[..50].iter().enumerate() {
            assert_eq!(event.len(), 400);
            let (sequence, stamp) = parse_event(event.as_bytes()).unwrap();
            assert_eq!(sequence, index as u64);
            assert!(stamp > last && stamp <= nullhop_loadtests::monotonic_ns());
            last = stamp;
            let chunk: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(chunk["object"], "chat.completion.chunk");
        }
        assert!(events[50].contains("\"completion_tokens\":50"));
        assert_eq!(events[51], "data: [DONE]\n\n");
    }
}

#[tokio::test]
async fn a_thousand_streams_at_once() {
    let provider = provider();
    let mut client = connect(&provider, Alpn::H2).await;
    let streams: Vec<_> = (0..1000)
        .map(|_| {
            let send = client.send(get(Alpn::H2, "events=20;event_bytes=300;period_us=20000"));
            tokio::spawn(async move { Answer::collect(send.await.unwrap()).await.unwrap().body.len() })
        })
        .collect();
    assert!(provider.wait_for(|state| state.open_streams == 1000, PATIENCE).await, "{}", provider.open_streams());
    for stream in streams {
        assert_eq!(bounded(stream).await.unwrap(), 20 * 300 + 14);
    }
    assert_eq!((provider.connects(), provider.state().complete), (1, 1000));
}

#[tokio::test]
async fn trailers_and_interim_answers() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let script = "size=10;trailer=x-checksum:abc;info=103;close=1";
        let mut request = get(alpn, script);
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let answer = bounded(client.fetch(request)).await.unwrap();
        assert_eq!(answer.trailers.unwrap()["x-checksum"], "abc", "{alpn:?}");
        assert!(provider.wait_for(|state| state.open_connections == 0, PATIENCE).await);
    }
    let trust = Trust::Root(provider.ca_pem().to_owned());
    let mut tls = raw_tls_connect(provider.address(), "localhost", Alpn::H1, &trust).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-script: info=103;size=1;close=1;head_delay_ms=100\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 100];
    let len = bounded(tls.read(&mut first)).await.unwrap();
    assert!(
        first[..len].starts_with(b"HTTP/1.1 103 Early Hints\r\nlink:"),
        "{:?}",
        String::from_utf8_lossy(&first[..len])
    );
    let mut rest = Vec::new();
    bounded(tls.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn nonsense_is_complained_about() {
    let provider = provider();
    let mut client = connect(&provider, Alpn::H2).await;
    for script in ["sise=5", "file=missing.sse"] {
        let answer = bounded(client.fetch(get(Alpn::H2, script))).await.unwrap();
        assert_eq!(answer.status(), 599);
        assert!(answer.text().contains(script.split('=').next_back().unwrap()));
    }
    provider.default_script("status=202");
    assert_eq!(bounded(client.fetch(get(Alpn::H2, ""))).await.unwrap().status(), 202);
    provider.default_script("");
    assert_eq!(bounded(client.fetch(get(Alpn::H2, ""))).await.unwrap().status(), 404);
}

fn sse_data(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn vendors_answer_unscripted() {
    let provider = provider();
    let tool = json!([{"type": "function", "name": "t", "function": {"name": "t", "parameters": {}},
        "functionDeclarations": [{"name": "t"}]}]);
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let mut fetch = async |path: &str, body: Value| bounded(client.fetch(post(alpn, path, &body))).await.unwrap();

        let chat = "/v1/chat/completions";
        let answer = fetch(chat, json!({"model": "m"})).await;
        assert_eq!(answer.json()["usage"]["total_tokens"], 68);
        assert_eq!((answer.json()["model"].as_str(), answer.header("x-request-id")), (Some("m"), "req_FAKE"));
        let answer = fetch(chat, json!({"model": "m", "tools": tool})).await;
        assert_eq!(answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "t");
        let streaming = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}});
        let answer = fetch(chat, streaming).await;
        assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(sse_data(&answer.text()).last().unwrap()["usage"]["completion_tokens"], 11);
        let answer = fetch(chat, json!({"model": "count-5", "stream": true})).await;
        assert_eq!(sse_data(&answer.text()).len(), 7);

        let answer = fetch("/v1/responses", json!({"model": "m", "input": "x"})).await;
        assert_eq!(answer.json()["usage"]["output_tokens"], 11);
        for body in [json!({"stream": true}), json!({"stream": true, "tools": tool})] {
            let events = sse_data(&fetch("/v1/responses", body).await.text());
            assert!(events.iter().enumerate().all(|(at, event)| event["sequence_number"] == at));
            assert_eq!(events.last().unwrap()["type"], "response.completed");
        }

        let answer = fetch("/v1/embeddings", json!({"input": ["a", "b"], "encoding_format": "base64"})).await;
        assert_eq!(answer.json()["data"].as_array().unwrap().len(), 2);

        let answer = fetch("/v1/messages", json!({"model": "m"})).await;
        assert_eq!(
            (answer.json()["usage"]["input_tokens"].as_u64(), answer.header("request-id")),
            (Some(41), "req_FAKE")
        );
        for body in [json!({"stream": true}), json!({"stream": true, "tools": tool})] {
            let events = sse_data(&fetch("/v1/messages", body).await.text());
            assert_eq!(events.first().unwrap()["type"], "message_start");
            assert_eq!(events.last().unwrap()["type"], "message_stop");
        }
        assert_eq!(fetch("/v1/messages/count_tokens", json!({})).await.json()["input_tokens"], 2095);

        let gemini = "/v1beta/models/gemini-fake-3";
        let answer = fetch(&format!("{gemini}:generateContent"), json!({})).await;
        assert_eq!(answer.json()["usageMetadata"]["totalTokenCount"], 68);
        assert_eq!(answer.json()["modelVersion"], "gemini-fake-3");
        let events = sse_data(&fetch(&format!("{gemini}:streamGenerateContent?alt=sse"), json!({})).await.text());
        assert_eq!(events.last().unwrap()["usageMetadata"]["totalTokenCount"], 68);
        assert_eq!(events.last().unwrap()["candidates"][0]["finishReason"], "STOP");
        let array = fetch(&format!("{gemini}:streamGenerateContent"), json!({})).await.json();
        assert_eq!(array.as_array().unwrap().last().unwrap()["usageMetadata"]["totalTokenCount"], 68);

        for status in [400_u16, 401, 403, 404, 409, 422, 429, 500, 503, 529] {
            let model = format!("err-{status}");
            let answer = fetch(chat, json!({"model": model})).await;
            assert_eq!((answer.status(), answer.header("retry-after")), (status, "1"));
            assert!(answer.json()["error"]["message"].is_string());
            let answer = fetch("/v1/messages", json!({"model": model})).await;
            assert_eq!((answer.status(), answer.json()["type"].as_str()), (status, Some("error")));
            let answer = fetch(&format!("/v1/models/{model}:generateContent"), json!({})).await;
            assert_eq!((answer.status(), answer.json()["error"]["code"].as_u64()), (status, Some(status.into())));
        }
        let models = ask(alpn, Method::GET, "/v1/models", "").body(FullBody::empty()).unwrap();
        assert_eq!(bounded(client.fetch(models)).await.unwrap().json()["object"], "list");
    }
}

#[tokio::test]
async fn a_slow_model_streams_until_cancelled() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let body = json!({"model": "slow", "stream": true});
        let mut response = bounded(client.send(post(alpn, "/v1/messages", &body))).await.unwrap();
        for _ in 0..3 {
            bounded(next_data(response.body_mut())).await.unwrap().unwrap();
        }
        drop(response);
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await);
        assert!(provider.last().aborted);
    }
}

#[tokio::test]
async fn uploads_that_break_are_seen_as_broken() {
    let provider = provider();
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let (sender, body) = ChannelBody::new(1);
        let request = ask(alpn, Method::POST, "/x", "").body(body.with_len(100)).unwrap();
        let waiting = tokio::spawn(client.send(request));
        sender.send(Bytes::from_static(b"half")).await.unwrap();
        let half = |state: &nullhop_loadtests::provider::State<'_>| state.last().is_some_and(|seen| seen.body_len == 4);
        assert!(provider.wait_for(half, PATIENCE).await);
        sender.fail().await;
        assert!(bounded(waiting).await.unwrap().is_err());
        assert!(provider.wait_for(|state| state.open_streams == 0, PATIENCE).await);
        assert!(provider.last().aborted);
        assert_ne!(provider.last().body_end, BodyEnd::Clean);
        assert_eq!(provider.last().header("x-script"), "");
    }
}

async fn open_websocket(
    provider: &Provider,
    path: &str,
) -> WebSocket<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let trust = Trust::Root(provider.ca_pem().to_owned());
    let tls = raw_tls_connect(provider.address(), "localhost", Alpn::H1, &trust).await.unwrap();
    WebSocket::connect(tls, "localhost", path, "").await.unwrap()
}

#[tokio::test]
async fn the_websocket_echoes() {
    let provider = provider();
    bounded(async {
        let mut socket = open_websocket(&provider, "/v1/realtime").await;
        for payload in ["", "hello", &"x".repeat(70_000)] {
            socket.send_text(payload).await.unwrap();
            assert_eq!(socket.next_message().await.unwrap().unwrap(), Frame::new(Opcode::Text, payload.to_owned()));
        }
        socket.send(Frame::fragment(Opcode::Binary, "ab", false)).await.unwrap();
        socket.send(Frame::new(Opcode::Ping, "between")).await.unwrap();
        socket.send(Frame::fragment(Opcode::Continuation, "cd", true)).await.unwrap();
        assert_eq!(socket.next_message().await.unwrap().unwrap(), Frame::new(Opcode::Pong, "between"));
        assert_eq!(socket.next_message().await.unwrap().unwrap(), Frame::new(Opcode::Binary, "abcd"));
        assert_eq!(provider.open_streams(), 1);
        socket.send(Frame::close(1000, "done")).await.unwrap();
        assert_eq!(socket.next_message().await.unwrap().unwrap().close_code(), 1000);
        assert_eq!(socket.next_message().await.ok().flatten(), None);
        assert!(provider.wait_for(|state| state.open_streams == 0 && state.open_connections == 0, PATIENCE).await);
        assert_eq!((provider.last().outcome, provider.last().body_len), (Outcome::Complete, 70_009));
        assert_eq!(provider.last().status, Some(101));
    })
    .await;
}

#[tokio::test]
async fn websocket_scripts() {
    let provider = provider();
    bounded(async {
        let lines = provider.vectors().get("openai-responses-ws.jsonl").unwrap().bytes.clone();
        let mut socket =
            open_websocket(&provider, "/v1/responses?script=ws%3Dscript%3Bfile%3Dopenai-responses-ws.jsonl").await;
        socket.send_text("{}").await.unwrap();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            assert_eq!(socket.next_message().await.unwrap().unwrap().payload, line);
        }

        let mut socket = open_websocket(&provider, "/?script=ws=close1011").await;
        assert_eq!(socket.next_message().await.unwrap().unwrap().close_code(), 1011);

        let mut socket = open_websocket(&provider, "/?script=ws=flood;events=100;event_bytes=500").await;
        for _ in 0..100 {
            assert_eq!(socket.next_message().await.unwrap().unwrap().payload.len(), 500);
        }
        let mut socket = open_websocket(&provider, "/?script=ws=reset").await;
        socket.send_text("x").await.unwrap();
        assert!(socket.next_message().await.is_err());

        // Someone who just leaves is an abort.
        drop(open_websocket(&provider, "/").await);
        let aborted = |state: &nullhop_loadtests::provider::State<'_>| state.last().unwrap().aborted;
        assert!(provider.wait_for(aborted, PATIENCE).await);
    })
    .await;
}

#[test]
fn certificates_that_should_fail_do() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ca = std::sync::Arc::new(Ca::new("test"));
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(86_400);
    for (leaf, trusted) in [
        (ca.leaf(&["localhost"]), true),
        (ca.leaf(&["elsewhere.example"]), false),
        (ca.leaf_valid(&["localhost"], now - day * 2, now - day), false),
        (nullhop_loadtests::tls::Leaf::self_signed(&["localhost"]), false),
    ] {
        let options = ProviderOptions { ca: Some(ca.clone()), leaf: Some(leaf), ..ProviderOptions::default() };
        let provider = Provider::spawn(options).unwrap();
        runtime.block_on(async {
            let root = Trust::Root(provider.ca_pem().to_owned());
            let connected = Client::connect(provider.address(), "localhost", Alpn::Both, &root).await;
            assert_eq!(connected.is_ok(), trusted);
            let anyone = Client::connect(provider.address(), "localhost", Alpn::Both, &Trust::AcceptAny).await;
            assert!(anyone.unwrap().is_h2());
        });
        let failures = u64::from(!trusted);
        assert!(provider.wait_for_blocking(|state| state.handshake_failures == failures, PATIENCE));
    }
}

#[tokio::test]
async fn answers_that_were_put_there_wait_at_a_gate() {
    let provider = provider();
    let stream = Stream::new(Kind::Chat, &Random::new(1));
    provider.put("mine", stream.vector());
    for alpn in PROTOCOLS {
        let mut client = connect(&provider, alpn).await;
        let request = get(alpn, "file=mine;hold_at=5;gate=a;len=chunked");
        let mut body = bounded(client.send(request)).await.unwrap().into_body();
        let mut got = Vec::new();
        while got.len() < 5 {
            got.extend_from_slice(&bounded(next_data(&mut body)).await.unwrap().unwrap());
        }
        assert_eq!(got.len(), 5, "the rest waits");
        assert!(!provider.open("b"), "another gate");
        assert!(provider.open("a"));
        assert!(!provider.open("a"), "it is open");
        while let Some(data) = bounded(next_data(&mut body)).await {
            got.extend_from_slice(&data.unwrap());
        }
        assert_eq!(got, stream.bytes());
    }
    assert!(provider.take("mine").is_some());
    let mut client = connect(&provider, Alpn::H1).await;
    let answer = bounded(client.fetch(get(Alpn::H1, "file=mine"))).await.unwrap();
    assert_eq!(answer.status(), 599);
}

#[tokio::test]
async fn answers_come_encoded() {
    let provider = provider();
    let mut client = connect(&provider, Alpn::H1).await;
    let plain =
        bounded(client.fetch(get(Alpn::H1, "events=50;usage=1;period_us=1000000;encoding=gzip"))).await.unwrap();
    assert_eq!(plain.header("content-encoding"), "gzip");
    let wanted = bounded(client.fetch(get(Alpn::H1, "events=50;usage=1"))).await.unwrap();
    assert_eq!(plain.body, Coding::Gzip.encode(&wanted.body));
    for coding in ["br", "zstd", "deflate"] {
        let answer = bounded(client.fetch(get(Alpn::H1, &format!("size=1000;encoding={coding}")))).await.unwrap();
        assert_eq!(answer.header("content-encoding"), coding);
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    }
}
