//! [`super::stream`] against rustls itself, byte by byte where it matters.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::ConnectionTrafficSecrets;
use rustls::ProtocolVersion;
use rustls::ServerConfig;
use rustls::SupportedCipherSuite;
use rustls::SupportedProtocolVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::version::TLS12;
use rustls::version::TLS13;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::DuplexStream;

use super::TlsStream;
use super::shake;

/// Configurations for both sides that speak this suite alone.
fn configs(version: &'static SupportedProtocolVersion, suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["api.example".to_owned()]).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![suite];
    let provider = Arc::new(provider);
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let cert: CertificateDer<'static> = made.cert.der().clone();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (server, client)
}

/// Every suite that is spoken: three of 1.3, and of 1.2 those with ECDSA.
fn suites() -> Vec<(&'static SupportedProtocolVersion, SupportedCipherSuite)> {
    let all = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
    let of = |suite: SupportedCipherSuite| match suite.version().version {
        ProtocolVersion::TLSv1_3 => Some((&TLS13, suite)),
        _ if format!("{:?}", suite.suite()).contains("ECDSA") => Some((&TLS12, suite)),
        _ => None,
    };
    all.into_iter().filter_map(of).collect()
}

fn name() -> ServerName<'static> {
    ServerName::try_from("api.example").unwrap()
}

type Ours = TlsStream<DuplexStream>;

/// Ours as the server, rustls' as the client.
async fn served(server: ServerConfig, client: ClientConfig) -> (Ours, tokio_rustls::client::TlsStream<DuplexStream>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let (ours, theirs) =
        tokio::join!(shake::accept(Arc::new(server), near, || {}, |_| ()), connector.connect(name(), far));
    (ours.unwrap().0, theirs.unwrap())
}

/// The same over what takes a kilobyte at a time.
async fn narrow() -> (Ours, tokio_rustls::client::TlsStream<DuplexStream>) {
    let (server, client) = configs(&TLS13, suites()[0].1);
    let (near, far) = tokio::io::duplex(1_000);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let (ours, theirs) =
        tokio::join!(shake::accept(Arc::new(server), near, || {}, |_| ()), connector.connect(name(), far));
    (ours.unwrap().0, theirs.unwrap())
}

/// Ours as the client, rustls' as the server.
async fn asked(server: ServerConfig, client: ClientConfig) -> (Ours, tokio_rustls::server::TlsStream<DuplexStream>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let (ours, theirs) = tokio::join!(shake::connect(Arc::new(client), name(), near, |_| ()), acceptor.accept(far));
    (ours.unwrap().0, theirs.unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Lengths around the borders of records and buffers, each way, then a goodbye each way.
async fn converse<A, B>(one: &mut A, two: &mut B)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    for len in [1, 2, 255, 16_383, 16_384, 16_385, 32_768, 32_769, 100_000] {
        let sent = pattern(len);
        let mut got = vec![0; len];
        let (wrote, read) = tokio::join!(
            async {
                one.write_all(&sent).await?;
                one.flush().await
            },
            two.read_exact(&mut got)
        );
        wrote.unwrap();
        read.unwrap();
        assert!(got == sent, "{len} bytes");
        let (wrote, read) = tokio::join!(
            async {
                two.write_all(&sent).await?;
                two.flush().await
            },
            one.read_exact(&mut got)
        );
        wrote.unwrap();
        read.unwrap();
        assert!(got == sent, "{len} bytes back");
    }
}

#[tokio::test]
async fn every_suite_is_spoken_on_either_side() {
    let suites = suites();
    assert_eq!(suites.len(), 6);
    for (version, suite) in suites {
        let (server, client) = configs(version, suite);
        let (mut ours, mut theirs) = served(server.clone(), client.clone()).await;
        converse(&mut ours, &mut theirs).await;
        let (mut ours, mut theirs) = asked(server, client).await;
        converse(&mut ours, &mut theirs).await;
        // A goodbye is an end in order, and the other half stays open.
        theirs.shutdown().await.unwrap();
        assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0);
        ours.write_all(b"still").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut last = Vec::new();
        theirs.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"still");
        assert_eq!(ours.read(&mut [0; 10]).await.unwrap(), 0);
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

#[tokio::test]
async fn small_reads_get_every_byte() {
    let (server, client) = configs(&TLS13, suites()[0].1);
    let (mut ours, mut theirs) = served(server, client).await;
    let sent = pattern(40_000);
    theirs.write_all(&sent).await.unwrap();
    theirs.flush().await.unwrap();
    let mut got = Vec::new();
    let mut step = 1;
    while got.len() < sent.len() {
        let mut room = vec![0; step];
        let read = ours.read(&mut room).await.unwrap();
        assert!(read > 0);
        got.extend_from_slice(&room[..read]);
        step = step % 5_000 + 7;
    }
    assert!(got == sent);
}

/// What stays in registers reaches the stack later, and the heap from there ([`crate::hygiene::registers`]).
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn neither_registers_nor_stack_keep_what_was_opened_or_sealed() {
    use std::task::Waker;

    use tokio::io::ReadBuf;

    use crate::hygiene::registers::testing::held;
    use crate::hygiene::stack::scrub_turn;
    use crate::hygiene::stack::testing::below;
    let sent = pattern(900);
    let holds = |memory: &[u8]| memory.windows(8).any(|window| sent.windows(8).any(|part| part == window));
    let mut stack = vec![0; 4 << 10];
    for (version, suite) in suites() {
        let (server, client) = configs(version, suite);
        let (mut ours, mut theirs) = served(server, client).await;
        // With the type behind it, the last of these fills a block of the cipher.
        for len in [10, 15, 100, 127] {
            theirs.write_all(&sent[..len]).await.unwrap();
            theirs.flush().await.unwrap();
            let mut room = [0; 1_000];
            let mut cx = Context::from_waker(Waker::noop());
            let mut buffer = ReadBuf::new(&mut room);
            // What is looked for is our side's alone.
            scrub_turn();
            while Pin::new(&mut ours).poll_read(&mut cx, &mut buffer).is_pending() {
                tokio::task::yield_now().await;
            }
            let registers = held();
            below(&mut stack);
            assert_eq!(buffer.filled(), &sent[..len]);
            assert!(!holds(&registers) && !holds(&stack), "{:?}: {len} bytes opened", suite.suite());
            scrub_turn();
            assert!(matches!(Pin::new(&mut ours).poll_write(&mut cx, &sent[..len]), Poll::Ready(Ok(_))));
            let registers = held();
            below(&mut stack);
            assert!(!holds(&registers) && !holds(&stack), "{:?}: {len} bytes sealed", suite.suite());
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_no_end() {
    for (version, suite) in suites() {
        let (server, client) = configs(version, suite);
        let (mut ours, mut theirs) = asked(server, client).await;
        theirs.write_all(b"half").await.unwrap();
        theirs.flush().await.unwrap();
        // The socket ends, TLS does not.
        theirs.get_mut().0.shutdown().await.unwrap();
        let mut got = Vec::new();
        let fault = ours.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((&got[..], fault.kind()), (&b"half"[..], io::ErrorKind::UnexpectedEof));
    }
}

#[tokio::test]
async fn the_next_keys_are_followed_in_both_directions() {
    let (server, client) = configs(&TLS13, suites()[0].1);
    let (mut ours, mut theirs) = served(server, client).await;
    for round in 0..40 {
        // rustls demands ours with its own.
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(b"ping").await.unwrap();
        theirs.flush().await.unwrap();
        let mut got = [0; 4];
        ours.read_exact(&mut got).await.unwrap();
        ours.write_all(b"pong").await.unwrap();
        ours.flush().await.unwrap();
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"pong", "{round}");
    }
}

#[tokio::test]
async fn a_used_up_key_is_replaced_before_its_last_record() {
    let (server, client) = configs(&TLS13, suites()[0].1);
    let (mut ours, mut theirs) = served(server, client).await;
    for _ in 0..3 {
        ours.limit_records(7);
        for _ in 0..10 {
            ours.write_all(b"pong").await.unwrap();
            ours.flush().await.unwrap();
            let mut got = [0; 4];
            theirs.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"pong");
        }
    }
    // 1.2 has no next key.
    let (version, suite) = suites()[3];
    assert_eq!(version.version, ProtocolVersion::TLSv1_2);
    let (server, client) = configs(version, suite);
    let (mut ours, _theirs) = served(server, client).await;
    ours.limit_records(3);
    let mut sealed = 0;
    while ours.write_all(b"pong").await.is_ok() {
        sealed += 1;
    }
    assert_eq!(sealed, 3);
}

#[tokio::test]
async fn a_bit_that_flips_anywhere_ends_the_stream() {
    for (version, suite) in suites() {
        let (server, client) = configs(version, suite);
        for place in [0, 1, 3, 4, 5, 12, 13, 20, 40] {
            let (near, mut wire) = tokio::io::duplex(1 << 16);
            let (mut wire_back, far) = tokio::io::duplex(1 << 16);
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
            let server = Arc::new(server.clone());
            let relay = tokio::spawn(async move {
                let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                // The handshake passes; then one record of the client's is touched.
                loop {
                    tokio::select! {
                        read = wire.read(&mut down) => match read {
                            Ok(len) if len > 0 => { let _ = wire_back.write_all(&down[..len]).await; }
                            _ => return,
                        },
                        read = wire_back.read(&mut up) => match read {
                            Ok(len) if len > 0 => {
                                // The only write of this length.
                                if up[..len].len() >= 900 && up[0] == 23 && len < 1_100 {
                                    up[place] ^= 0x20;
                                }
                                let _ = wire.write_all(&up[..len]).await;
                            }
                            _ => return,
                        },
                    }
                }
            });
            let (ours, theirs) =
                tokio::join!(shake::accept(server, near, || {}, |_| ()), connector.connect(name(), far));
            let (mut ours, mut theirs) = (ours.unwrap().0, theirs.unwrap());
            theirs.write_all(&pattern(1_000)).await.unwrap();
            theirs.flush().await.unwrap();
            let mut room = [7; 2_000];
            let outcome = tokio::time::timeout(Duration::from_millis(500), ours.read(&mut room)).await;
            match outcome {
                // A length that grew waits for more, which never comes.
                Err(_) => assert!(place == 3 || place == 4),
                Ok(read) => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData, "{place}"),
            }
            let left = room.windows(8).any(|window| pattern(1_000).windows(8).any(|part| part == window));
            assert!(!left, "what was not authentic was left to see");
            relay.abort();
        }
    }
}

/// A peer that holds the keys and says what it likes.
struct Rogue {
    io: DuplexStream,
    number: u64,
    key: aws_lc_rs::aead::LessSafeKey,
    iv: [u8; 12],
}

impl Rogue {
    /// As the client of one of our streams.
    async fn new() -> (Ours, Self) {
        let (server, client) = configs(&TLS13, suites()[0].1);
        let (near, far) = tokio::io::duplex(1 << 20);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let (ours, theirs) =
            tokio::join!(shake::accept(Arc::new(server), near, || {}, |_| ()), connector.connect(name(), far));
        let (io, connection) = theirs.unwrap().into_inner();
        let secrets = connection.dangerous_extract_secrets().unwrap();
        let (number, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = secrets.tx else { panic!("another suite") };
        let key = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, key.as_ref()).unwrap();
        let iv = iv.as_ref().try_into().unwrap();
        (ours.unwrap().0, Self { io, number, key: aws_lc_rs::aead::LessSafeKey::new(key), iv })
    }

    async fn say(&mut self, kind: u8, content: &[u8], padding: usize) {
        let mut inner = content.to_vec();
        inner.push(kind);
        inner.resize(inner.len() + padding, 0);
        let [high, low] = ((inner.len() + 16) as u16).to_be_bytes();
        let head = [23, 3, 3, high, low];
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, part)| *byte ^= part);
        self.number += 1;
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, aws_lc_rs::aead::Aad::from(head), &mut inner).unwrap();
        self.io.write_all(&head).await.unwrap();
        self.io.write_all(&inner).await.unwrap();
    }
}

#[tokio::test]
async fn what_has_no_place_in_a_stream_ends_it() {
    let key_update = [24, 0, 0, 1, 0];
    #[expect(clippy::type_complexity, reason = "a table")]
    let cases: [(&str, Vec<(u8, Vec<u8>)>); 14] = [
        ("a fatal alert", vec![(21, vec![2, 40])]),
        ("a warning of 1.2", vec![(21, vec![1, 41])]),
        ("half an alert", vec![(21, vec![1])]),
        ("two alerts in one", vec![(21, vec![1, 0, 1, 0])]),
        ("an empty message", vec![(22, vec![])]),
        ("a ticket for a server", vec![(22, vec![4, 0, 0, 1, 0])]),
        ("another hello", vec![(22, vec![1, 0, 0, 1, 0])]),
        ("a message without end", vec![(22, vec![24, 255, 255, 255, 0])]),
        ("an update that is none", vec![(22, vec![24, 0, 0, 1, 7])]),
        ("something behind an update", vec![(22, [&key_update[..], &key_update[..]].concat())]),
        ("content inside a message", vec![(22, vec![24, 0]), (23, vec![1, 2, 3])]),
        ("a change of cipher", vec![(20, vec![1])]),
        ("no type at all", vec![(0, vec![])]),
        ("warnings without end", vec![(21, vec![1, 90]); 5]),
    ];
    for (what, said) in cases {
        let (mut ours, mut rogue) = Rogue::new().await;
        for (kind, content) in said {
            rogue.say(kind, &content, 0).await;
        }
        let fault = ours.read(&mut [0; 100]).await.unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::InvalidData, "{what}");
        assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{what}");
    }
}

#[tokio::test]
async fn what_carries_nothing_is_passed_over() {
    let (mut ours, mut rogue) = Rogue::new().await;
    rogue.say(23, &[], 0).await;
    rogue.say(21, &[1, 90], 0).await;
    rogue.say(23, &[], 3_000).await;
    rogue.say(23, b"padded", 1_000).await;
    // Less room than the record has, and then none but padding.
    let mut got = [0; 6];
    ours.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"padded");
    rogue.say(23, &[], 0).await;
    rogue.say(21, &[1, 0], 0).await;
    assert_eq!(ours.read(&mut got).await.unwrap(), 0);
}

#[tokio::test]
async fn a_record_that_is_too_long_is_refused() {
    for (content, padding, good) in [(16_384, 0, true), (16_385, 0, false), (16_384, 1, false), (10, 16_374, true)] {
        let (mut ours, mut rogue) = Rogue::new().await;
        rogue.say(23, &pattern(content), padding).await;
        let mut got = vec![0; 20_000];
        let read = ours.read(&mut got).await;
        assert_eq!(read.is_ok(), good, "{content} and {padding}");
        if good {
            assert_eq!(read.unwrap(), content);
        }
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_us_hold_two_records() {
    let (mut ours, mut theirs) = narrow().await;
    let block = pattern(100_000);
    let mut taken = 0;
    while let Ok(wrote) = tokio::time::timeout(Duration::from_millis(50), ours.write(&block[taken..])).await {
        taken += wrote.unwrap();
    }
    assert!(taken > 0 && taken <= 32_768, "{taken}");
    assert!(ours.held() <= 34_000, "{}", ours.held());
    let mut got = vec![0; taken];
    let (flushed, read) = tokio::join!(ours.flush(), theirs.read_exact(&mut got));
    flushed.unwrap();
    read.unwrap();
    assert!(got == block[..taken]);
    assert_eq!(ours.held(), 0, "an idle stream holds nothing");
}

#[tokio::test]
async fn a_reader_does_not_take_the_place_of_who_waits_to_write() {
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    let (mut ours, mut theirs) = narrow().await;

    let writer = Arc::new(Woken::default());
    let waker = writer.clone().into();
    let mut writing = Context::from_waker(&waker);
    let block = pattern(100_000);
    let mut taken = 0;
    while let Poll::Ready(wrote) = Pin::new(&mut ours).poll_write(&mut writing, &block[taken..]) {
        taken += wrote.unwrap();
    }
    theirs.write_all(b"hello").await.unwrap();
    theirs.flush().await.unwrap();
    let mut other = Context::from_waker(std::task::Waker::noop());
    for _ in 0..2 {
        // What was there, and the wait for more.
        drop(ours.poll_block(&mut other));
    }
    writer.0.store(false, std::sync::atomic::Ordering::Relaxed);
    // The socket has room again, if not for a whole record.
    theirs.get_mut().0.read_exact(&mut [0; 500]).await.unwrap();
    assert!(writer.0.load(std::sync::atomic::Ordering::Relaxed), "the writer waits for ever");
}
