//! The h1 server alone, without the guards that look after a connection twice a second: whoever is not woken stays asleep
//! here. Bodies are read, and answers made, by the task that writes and by others; over TCP and both versions of TLS.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::time::SystemTime;

use http::HeaderName;
use http_body::Body;
use http_body::Frame;
use rustls::SupportedProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::version::TLS12;
use rustls::version::TLS13;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::h1::Client;
use crate::config::Config;
use crate::config::Limits;
use crate::h1::Decoder;
use crate::h1::Head;
use crate::h1::ResponseHead;
use crate::hygiene::Chunk;
use crate::incoming::Incoming;
use crate::message::Request;
use crate::message::Response;
use crate::socket::Socket;
use crate::socket::Transport;
use crate::tls;
use crate::tls::server::CertificateKind;
use crate::tls::server::CertificateSource;
use crate::tls::server::ClientAuth;
use crate::tls::server::ServerSettings;
use crate::tls::server::ServerTls;
use crate::tls::server::SessionKeys;

/// Longer than any of these takes on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a connection runs over; `None` is TCP alone.
type Version = Option<&'static SupportedProtocolVersion>;

const VERSIONS: [Version; 3] = [None, Some(&TLS12), Some(&TLS13)];

/// Of each side's socket, in each direction; the kernel takes twice as much.
const BUFFER_BYTES: u32 = 32 << 10;

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

fn limits() -> Limits {
    Config::built_in().limits.clone()
}

/// Both ends of a connection; the client's is rustls' own.
async fn connected(version: Version) -> (Transport, Box<dyn Stream>) {
    // Small, so that either side finds no room again and again.
    let (listening, connecting) = (TcpSocket::new_v4().unwrap(), TcpSocket::new_v4().unwrap());
    for socket in [&listening, &connecting] {
        socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
        socket.set_send_buffer_size(BUFFER_BYTES).unwrap();
    }
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listening.listen(1).unwrap();
    let (far, near) = tokio::join!(connecting.connect(listener.local_addr().unwrap()), listener.accept());
    let (far, (near, _)) = (far.unwrap(), near.unwrap());
    let (socket, _watch) = Socket::new(near);
    let Some(version) = version else { return (Transport::Plain(socket), Box::new(far)) };
    let settings = ServerSettings {
        min_version: tls::MinVersion::Tls12,
        certificates: vec![CertificateSource {
            name: "made".to_owned(),
            kind: CertificateKind::SelfSigned { names: Vec::new() },
            default: true,
        }],
        client_auth: ClientAuth::None,
        crl: None,
        strict_sni: false,
    };
    let server = ServerTls::load(settings, SessionKeys::new().unwrap(), SystemTime::now()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.first_pem().unwrap().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("localhost").unwrap();
    let (near, far) = tokio::join!(tls::handshake::accept(&server, socket, PATIENCE), connector.connect(name, far));
    let (near, _) = near.map_err(|fault| format!("{fault:?}")).unwrap();
    (Transport::Tls(near), Box::new(far.unwrap()))
}

/// An answer's body.
enum Reply {
    /// Comes from another task.
    Passed(mpsc::Receiver<Chunk>),
    /// Is the request's, read by whoever writes it.
    Echo(Incoming),
    /// Whole, with pieces.
    Ready(VecDeque<Chunk>),
    /// Stays away; the sender hears when it is dropped.
    Never(#[expect(dead_code, reason = "held for its drop")] Option<oneshot::Sender<()>>),
}

impl Body for Reply {
    type Data = Chunk;
    type Error = ();

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, ()>>> {
        match self.get_mut() {
            Self::Passed(receiver) => receiver.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
            Self::Echo(body) => loop {
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    // What a request has behind its body is not for its client.
                    Some(Ok(frame)) if frame.is_trailers() => {}
                    other => return Poll::Ready(other.map(|frame| frame.map_err(|_| ()))),
                }
            },
            Self::Ready(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Self::Never(_) => Poll::Pending,
        }
    }
}

async fn next_data(body: &mut Incoming) -> Option<Chunk> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?.ok()?;
        if let Ok(chunk) = frame.into_data() {
            return Some(chunk);
        }
    }
}

/// Answers with the request's body, in the way that its path asks for.
async fn echo(request: Request<Incoming>, framed: bool) -> Response<Reply> {
    assert!(framed);
    let (parts, mut body) = request.into_parts();
    let reply = match parts.uri.path() {
        // Read here, then answered.
        "/inline" => {
            let mut pieces = VecDeque::new();
            while let Some(chunk) = next_data(&mut body).await {
                pieces.push_back(chunk);
            }
            Reply::Ready(pieces)
        }
        "/echo" => Reply::Echo(body),
        // As towards an upstream on h2: another task reads, while the answer is written here.
        "/passed" => {
            let (sender, receiver) = mpsc::channel(1);
            tokio::task::spawn_local(async move {
                while let Some(chunk) = next_data(&mut body).await {
                    if sender.send(chunk).await.is_err() {
                        return;
                    }
                }
            });
            Reply::Passed(receiver)
        }
        // The same, and the answer waits for the request's end.
        "/late" => {
            let (sender, receiver) = oneshot::channel();
            tokio::task::spawn_local(async move {
                let mut pieces = VecDeque::new();
                while let Some(chunk) = next_data(&mut body).await {
                    pieces.push_back(chunk);
                }
                // Some time after it.
                tokio::time::sleep(Duration::from_millis(3)).await;
                let _ = sender.send(pieces);
                // Held a little longer than the answer takes.
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(body);
            });
            Reply::Ready(receiver.await.unwrap())
        }
        // Answered at once; the rest is read away.
        "/away" => {
            tokio::task::spawn_local(async move { while next_data(&mut body).await.is_some() {} });
            Reply::Ready(VecDeque::from([Chunk::copied(b"away")]))
        }
        path => panic!("{path}"),
    };
    Response::new(reply)
}

const WAYS: [&str; 5] = ["/inline", "/echo", "/passed", "/late", "/away"];

/// xorshift; the seed must not be 0.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }

    /// Now and then another task's turn, or a pause.
    async fn pause(&mut self) {
        match self.below(8) {
            0 => tokio::time::sleep(Duration::from_millis(self.below(4) as u64)).await,
            1 | 2 => tokio::task::yield_now().await,
            _ => {}
        }
    }
}

/// A request's bytes, where its body begins, and the answer's body that it is to get.
fn request(random: &mut Random, way: &str) -> (Vec<u8>, usize, Vec<u8>) {
    let len = match random.below(6) {
        0 => 0,
        1 => 1 + random.below(10),
        2..=4 => random.below(60_000),
        // More than all buffers on the way hold.
        _ => 400_000 + random.below(400_000),
    };
    let first = random.below(251);
    let body: Vec<u8> = (0..len).map(|at| ((first + at) % 251) as u8).collect();
    let chunked = random.below(2) == 0;
    let expect = if random.below(4) == 0 { "expect: 100-continue\r\n" } else { "" };
    let framing = if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {len}") };
    let mut bytes = format!("POST {way} HTTP/1.1\r\nhost: a\r\n{expect}{framing}\r\n\r\n").into_bytes();
    let head = bytes.len();
    if chunked {
        let mut rest = &body[..];
        while !rest.is_empty() {
            let most = if random.below(3) == 0 { 10 } else { 40_000 };
            let (chunk, behind) = rest.split_at((1 + random.below(most)).min(rest.len()));
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
            rest = behind;
        }
        bytes.extend_from_slice(if random.below(3) == 0 { b"0\r\nx-sum: 1\r\n\r\n" } else { b"0\r\n\r\n" });
    } else {
        bytes.extend_from_slice(&body);
    }
    let answer = if way == "/away" { b"away".to_vec() } else { body };
    (bytes, head, answer)
}

/// Reads answers, however they are cut.
struct Answers {
    received: Vec<u8>,
}

impl Answers {
    async fn more(&mut self, stream: &mut (impl AsyncRead + Unpin), random: &mut Random) {
        random.pause().await;
        let most = if random.below(4) == 0 { 100 } else { 100_000 };
        let mut room = vec![0; 1 + random.below(most)];
        let read = stream.read(&mut room).await.unwrap();
        assert!(read > 0, "the end instead of an answer");
        self.received.extend_from_slice(&room[..read]);
    }

    async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin), random: &mut Random) -> Vec<u8> {
        let head = loop {
            match ResponseHead::parse(&self.received, 16).expect("a head") {
                Some((head, len)) => {
                    self.received.drain(..len);
                    if head.status != 100 {
                        break head;
                    }
                }
                None => self.more(stream, random).await,
            }
        };
        assert_eq!(head.status, 200);
        let mut decoder = Decoder::new(head.framing(&http::Method::POST).unwrap());
        let mut body = Vec::new();
        loop {
            let mut block = std::mem::take(&mut self.received);
            let decoded = decoder.decode(&mut block).unwrap();
            self.received = block[decoded.used..].to_vec();
            body.extend_from_slice(&block[..decoded.content]);
            if decoder.is_done() {
                return body;
            }
            if self.received.is_empty() {
                self.more(stream, random).await;
            }
        }
    }
}

fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

#[test]
fn whoever_reads_and_writes_goes_on_by_itself() {
    run(async || {
        for round in 1..=40 {
            for version in VERSIONS {
                let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(round) | 1);
                let requests: Vec<_> = (0..1 + random.below(6))
                    .map(|_| {
                        let way = WAYS[random.below(WAYS.len())];
                        (way, request(&mut random, way))
                    })
                    .collect();
                let ways: Vec<_> = requests.iter().map(|(way, (bytes, ..))| (*way, bytes.len())).collect();
                let what = format!("round {round}, {version:?}: {ways:?}");
                let (transport, far) = connected(version).await;
                let client = Client::new(transport, &limits());
                // A task of its own, which nothing wakes but its connection.
                let serving = tokio::task::spawn_local(async move {
                    let _ = client.serve(echo).await;
                });
                let (mut reading, mut writing) = tokio::io::split(far);
                let (mut reader, mut writer) = (Random(random.0 ^ 0x5555), Random(random.0 ^ 0xaaaa));
                let sending = async {
                    for (_, (bytes, head, _)) in &requests {
                        // The head's end often comes with the body's beginning, and often apart from it.
                        let mut at = if writer.below(2) == 0 { *head } else { 1 + writer.below(bytes.len()) };
                        let mut from = 0;
                        while from < bytes.len() {
                            // Whether it is taken or not is for the server to say: what it does not read it must be told of.
                            writing.write_all(&bytes[from..at]).await.unwrap();
                            writing.flush().await.unwrap();
                            from = at;
                            at = bytes.len().min(at + 1 + writer.below(50_000));
                            writer.pause().await;
                        }
                    }
                };
                let hearing = async {
                    let mut answers = Answers { received: Vec::new() };
                    for (number, (_, (.., wanted))) in requests.iter().enumerate() {
                        let got = answers.next(&mut reading, &mut reader).await;
                        assert!(got == *wanted, "{what}: answer {number}");
                    }
                    assert!(answers.received.is_empty(), "{what}");
                };
                let all = async {
                    tokio::select! {
                        _ = serving => panic!("{what}: ended"),
                        _ = async { tokio::join!(sending, hearing) } => {}
                    }
                };
                assert!(tokio::time::timeout(PATIENCE, all).await.is_ok(), "{what}: asleep");
            }
        }
    });
}

/// An answer that owes nothing to its request, whose body somebody else reads away: what wakes the one is nothing to the other.
#[test]
fn a_writer_is_woken_by_its_client_alone() {
    run(async || {
        for round in 1..=8 {
            for version in VERSIONS {
                let what = format!("round {round}, {version:?}");
                let mut random = Random(0x2545_f491_4f6c_dd1d_u64.wrapping_mul(round) | 1);
                let (transport, far) = connected(version).await;
                let client = Client::new(transport, &limits());
                let service = async |request: Request<Incoming>, _| {
                    let mut body = request.into_body();
                    tokio::task::spawn_local(async move { while next_data(&mut body).await.is_some() {} });
                    Response::new(Reply::Ready((0..100).map(|_| Chunk::copied(&[b'x'; 9_000])).collect()))
                };
                let serving = tokio::task::spawn_local(async move {
                    let _ = client.serve(service).await;
                });
                let (mut reading, mut writing) = tokio::io::split(far);
                let pieces = 20 + random.below(40);
                let (heard, hears) = oneshot::channel::<()>();
                let mut writer = Random(random.0 ^ 0xaaaa);
                let sending = async {
                    let head =
                        format!("POST /beside HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", pieces * 50 + 1);
                    writing.write_all(head.as_bytes()).await.unwrap();
                    for _ in 0..pieces {
                        writing.write_all(&[b'y'; 50]).await.unwrap();
                        writing.flush().await.unwrap();
                        tokio::time::sleep(Duration::from_micros(writer.below(1500) as u64)).await;
                    }
                    // The last byte does not come before the whole answer has.
                    hears.await.unwrap();
                    writing.write_all(b"y").await.unwrap();
                    writing.flush().await.unwrap();
                };
                let hearing = async {
                    // The answer has filled all buffers by then, and pieces of the request come all the while.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let mut answers = Answers { received: Vec::new() };
                    assert_eq!(answers.next(&mut reading, &mut random).await.len(), 900_000, "{what}");
                    heard.send(()).unwrap();
                };
                let all = async {
                    tokio::select! {
                        _ = serving => panic!("{what}: ended"),
                        _ = async { tokio::join!(sending, hearing) } => {}
                    }
                };
                assert!(tokio::time::timeout(PATIENCE, all).await.is_ok(), "{what}: asleep");
            }
        }
    });
}

/// How a client goes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Leave {
    /// It ends its side in order, as for a half-closed connection, and goes on to read: TLS's goodbye and a FIN, or a FIN.
    HalfClose,
    /// Its socket is closed.
    Drop,
}

#[test]
fn a_client_that_ends_its_side_behind_a_request_has_left() {
    run(async || {
        for version in VERSIONS {
            for leave in [Leave::HalfClose, Leave::Drop] {
                for (way, chunked, early, at_once) in [
                    // Another task reads the body, and the answer does not come.
                    ("task", false, false, false),
                    ("task", true, false, false),
                    ("task", true, false, true),
                    ("here", true, false, false),
                    ("here", false, false, true),
                    // The answer has begun.
                    ("task", true, true, false),
                    ("here", true, true, false),
                    ("here", false, true, true),
                ] {
                    let what = format!("{version:?}, {leave:?}, {way}, chunked {chunked}, early {early}, {at_once}");
                    let (transport, mut far) = connected(version).await;
                    let client = Client::new(transport, &limits());
                    let (dropped, gone) = oneshot::channel::<()>();
                    let dropped = Rc::new(std::cell::Cell::new(Some(dropped)));
                    let read_whole = Rc::new(tokio::sync::Notify::new());
                    let service = {
                        let read_whole = read_whole.clone();
                        move |request: Request<Incoming>, _| {
                            let (read_whole, held) = (read_whole.clone(), dropped.take());
                            async move {
                                let mut body = request.into_body();
                                let reading = async move {
                                    while next_data(&mut body).await.is_some() {}
                                    read_whole.notify_one();
                                    // It is not given up.
                                    std::future::pending::<()>().await;
                                    drop(body);
                                };
                                match (way, early) {
                                    ("task", _) => drop(tokio::task::spawn_local(reading)),
                                    (_, true) => drop(tokio::task::spawn_local(reading)),
                                    (_, false) => reading.await,
                                }
                                if !early {
                                    std::future::pending::<()>().await;
                                }
                                let mut response = Response::new(Reply::Never(held));
                                response
                                    .headers_mut()
                                    .insert(HeaderName::from_static("x-early"), crate::message::Value::of("1"));
                                response
                            }
                        }
                    };
                    let serving = tokio::task::spawn_local(async move {
                        let _ = client.serve(service).await;
                        // The socket is closed with the connection.
                        drop(client);
                    });
                    let body = if chunked { "2\r\n{}\r\n0\r\n\r\n" } else { "{}" };
                    let framing = if chunked { "transfer-encoding: chunked" } else { "content-length: 2" };
                    let text = format!("POST / HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n{body}");
                    let leaving = async {
                        far.write_all(text.as_bytes()).await.unwrap();
                        far.flush().await.unwrap();
                        if !at_once {
                            read_whole.notified().await;
                            if early {
                                assert!(far.read(&mut [0; 1000]).await.unwrap() > 0);
                            }
                        }
                        match leave {
                            Leave::HalfClose => {
                                far.shutdown().await.unwrap();
                                // No answer comes: the end does, or the connection is reset.
                                let mut rest = Vec::new();
                                let _ = far.read_to_end(&mut rest).await;
                                assert!(!rest.windows(4).any(|part| part == b"\r\n0\r"), "{what}: an answer");
                            }
                            Leave::Drop => drop(far),
                        }
                    };
                    let all = async {
                        let (served, ()) = tokio::join!(serving, leaving);
                        served.unwrap();
                        // With the connection goes the request.
                        assert!(gone.await.is_err(), "{what}");
                    };
                    assert!(tokio::time::timeout(PATIENCE, all).await.is_ok(), "{what}: not felt");
                }
            }
        }
    });
}
