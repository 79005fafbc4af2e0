//! The raw provider lies as told, and handwritten frames are understood.

use std::time::Duration;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::h2raw;
use nullhop_loadtests::h2raw::kind;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::raw::RawOptions;
use nullhop_loadtests::raw::RawProvider;
use nullhop_loadtests::raw::Step;
use nullhop_loadtests::raw::lies;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Trust;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("the scene ends in time")
}

/// Sends one GET by hand and returns everything that comes.
async fn answer_of(steps: Vec<Step>) -> Vec<u8> {
    let provider = RawProvider::steps(RawOptions::alpn(Alpn::Plain), steps).unwrap();
    let mut tcp = tokio::net::TcpStream::connect(provider.address()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut all = Vec::new();
    bounded(tcp.read_to_end(&mut all)).await.unwrap();
    assert_eq!(provider.heads(), ["GET / HTTP/1.1\r\nhost: x\r\n\r\n"]);
    all
}

#[tokio::test]
async fn lies_are_on_the_wire() {
    let contains = |all: &[u8], text: &str| String::from_utf8_lossy(all).contains(text);
    let all = answer_of(lies::content_length(50, "hello")).await;
    assert!(contains(&all, "content-length: 50\r\n\r\nhello") && all.ends_with(b"hello"));
    assert!(contains(&answer_of(lies::two_content_lengths()).await, "content-length: 2\r\ncontent-length: 5"));
    assert!(contains(&answer_of(lies::gzip_chunked()).await, "gzip, chunked"));
    let all = answer_of(lies::informational_flood(500)).await;
    assert_eq!(String::from_utf8_lossy(&all).matches("HTTP/1.1 103").count(), 500);
    assert!(contains(&answer_of(lies::unasked_101()).await, "101 Switching"));
    assert!(contains(&answer_of(lies::second_answer(Duration::from_millis(50))).await, "second"));
    assert!(answer_of(lies::big_header(1024 * 1024)).await.len() > 1024 * 1024);
}

#[tokio::test]
async fn a_decent_client_sees_through_them() {
    for (steps, good) in [
        (lies::content_length(50, "hello"), false),
        (lies::content_length(5, "hello"), true),
        (lies::huge_chunk(), false),
        (lies::garbage(), false),
        (lies::half_head(), false),
        (lies::close_delimited("hello"), true),
        (vec![Step::ExpectHead, Step::Reset], false),
        (vec![Step::ExpectHead, Step::write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello"), Step::Fin], false),
    ] {
        let provider = RawProvider::steps(RawOptions::alpn(Alpn::H1), steps.clone()).unwrap();
        let trust = Trust::Root(provider.ca_pem().to_owned());
        let mut client = Client::connect(provider.address(), "127.0.0.1", Alpn::H1, &trust).await.unwrap();
        let request = Request::get("/").header("host", "x").body(FullBody::empty()).unwrap();
        let fine = match bounded(client.send(request)).await {
            Ok(response) => bounded(Received::read(response, 0)).await.error.is_none(),
            Err(_) => false,
        };
        assert_eq!(fine, good, "{steps:?}");
    }
}

#[tokio::test]
async fn keep_alive_by_hand_and_handlers() {
    let steps = vec![
        Step::ExpectHead,
        Step::ReadBody(3),
        Step::write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        Step::Again,
    ];
    let provider = RawProvider::steps(RawOptions::alpn(Alpn::Plain), steps).unwrap();
    let mut client = Client::connect(provider.address(), "", Alpn::Plain, &Trust::AcceptAny).await.unwrap();
    for _ in 0..3 {
        let request = Request::post("/").header("host", "x").body(FullBody::new("abc")).unwrap();
        bounded(client.ready()).await.unwrap();
        assert_eq!(bounded(client.fetch(request)).await.unwrap().body, "ok");
    }
    assert_eq!((provider.connects(), provider.heads().len(), provider.open_connections()), (1, 3, 1));

    let provider = RawProvider::spawn(RawOptions::alpn(Alpn::Plain), |mut connection| async move {
        connection.head().await?;
        let body = format!("number {}", connection.number());
        connection.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await
    })
    .unwrap();
    for number in 0..2 {
        let mut client = Client::connect(provider.address(), "", Alpn::Plain, &Trust::AcceptAny).await.unwrap();
        let request = Request::get("/").header("host", "x").body(FullBody::empty()).unwrap();
        assert_eq!(bounded(client.fetch(request)).await.unwrap().text(), format!("number {number}"));
    }
}

#[tokio::test]
async fn handwritten_h2_gets_an_answer() {
    let provider = Provider::spawn(ProviderOptions::default()).unwrap();
    let trust = Trust::Root(provider.ca_pem().to_owned());
    let mut tls = raw_tls_connect(provider.address(), "localhost", Alpn::H2, &trust).await.unwrap();
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", "/"),
        ("x-script", "size=5"),
        ("x-long", &"y".repeat(300)),
    ];
    let mut wire = h2raw::PREFACE.to_vec();
    wire.extend_from_slice(&h2raw::frame(kind::SETTINGS, 0, 0, &[]));
    let flags = h2raw::END_HEADERS | h2raw::END_STREAM;
    wire.extend_from_slice(&h2raw::frame(kind::HEADERS, flags, 1, &h2raw::header_block(&fields)));
    tls.write_all(&wire).await.unwrap();
    let data = bounded(async {
        loop {
            let frame = h2raw::read_frame(&mut tls).await.unwrap().unwrap();
            if frame.kind == kind::DATA {
                break frame;
            }
        }
    })
    .await;
    assert_eq!((data.stream, data.payload.len()), (1, 5));
    assert_eq!(provider.last().header("x-long").len(), 300);
    assert_eq!(provider.last().sni.as_deref(), Some("localhost"));
}
