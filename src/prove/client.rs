//! The client: connections to the child, by any HTTP and TLS version it serves, and bytes after an upgrade.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::client::conn::http2;
use hyper::rt::Executor as _;
use hyper::rt::Read;
use hyper::rt::ReadBuf;
use hyper::rt::Write;
use hyper::upgrade::Upgraded;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use crate::clock::TokioTimer;
use crate::hygiene::io::HyperIo;
use crate::scripted::Script;

/// What the kernel holds for a reader that stops: small, so that the stall reaches nullhop soon.
const RECEIVE_BUFFER: u32 = 64 << 10;

/// What a reader that stops lets nullhop send on an h2 stream.
const H2_WINDOW: u32 = 64 << 10;

/// Nothing on loopback takes longer, unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How to connect.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub(super) address: SocketAddr,
    pub(super) tls: bool,
    pub(super) tls12: bool,
    pub(super) h2: bool,
}

/// A connection to the child.
pub(super) struct Client {
    sender: Sender,
    tasks: Tasks,
}

/// A connection's tasks; dropping this ends them, and with them the connection. hyper's h2 client has
/// more than one, and the connection ends with the last.
#[derive(Clone, Default)]
struct Tasks(Rc<RefCell<Vec<AbortHandle>>>);

impl<F: Future + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let task = tokio::task::spawn_local(async move { drop(future.await) });
        self.0.borrow_mut().push(task.abort_handle());
    }
}

/// What the kernel does when a connection is dropped (socket(7), SO_LINGER).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Sends what waits, then FIN.
    Closes,
    /// Sends RST. A FIN behind an upload that nobody reads would not get through.
    Resets,
}

enum Sender {
    H1(http1::SendRequest<Script>),
    H2(http2::SendRequest<Script>),
}

impl Client {
    /// `None`: it cannot be connected like this.
    pub(super) async fn connect(how: How) -> Option<Self> {
        tokio::time::timeout(PATIENCE, Self::try_connect(how, Leaving::Closes)).await.ok()?
    }

    /// The same; dropping it resets the connection.
    pub(super) async fn connect_to_reset(how: How) -> Option<Self> {
        tokio::time::timeout(PATIENCE, Self::try_connect(how, Leaving::Resets)).await.ok()?
    }

    async fn try_connect(how: How, leaving: Leaving) -> Option<Self> {
        let socket = TcpSocket::new_v4().ok()?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER).ok()?;
        let stream = socket.connect(how.address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        if leaving == Leaving::Resets {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
        }
        if !how.tls {
            return Self::over(stream, false).await;
        }
        let connector = TlsConnector::from(Arc::new(tls(how)?));
        let stream = connector.connect(ServerName::try_from("localhost").ok()?, stream).await.ok()?;
        let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if agreed != how.h2 {
            return None;
        }
        Self::over(stream, how.h2).await
    }

    async fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(transport: T, h2: bool) -> Option<Self> {
        let io = HyperIo::new(transport);
        let tasks = Tasks::default();
        if !h2 {
            let (sender, connection) = http1::handshake(io).await.ok()?;
            tasks.execute(connection.with_upgrades());
            return Some(Self { sender: Sender::H1(sender), tasks });
        }
        let (sender, connection) = http2::Builder::new(tasks.clone())
            .timer(TokioTimer)
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .handshake(io)
            .await
            .ok()?;
        tasks.execute(connection);
        Some(Self { sender: Sender::H2(sender), tasks })
    }

    pub(super) fn is_h2(&self) -> bool {
        matches!(self.sender, Sender::H2(_))
    }

    /// Sends a request; waits for the head of its answer.
    pub(super) fn send(
        &mut self,
        request: Request<Script>,
    ) -> Pin<Box<dyn Future<Output = Option<Response<Incoming>>>>> {
        let answer: Pin<Box<dyn Future<Output = _>>> = match &mut self.sender {
            Sender::H1(sender) => Box::pin(sender.send_request(request)),
            Sender::H2(sender) => Box::pin(sender.send_request(request)),
        };
        Box::pin(async move { tokio::time::timeout(PATIENCE, answer).await.ok()?.ok() })
    }

    /// Waits until the connection takes another request; false if it is over.
    pub(super) async fn ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await.is_ok(),
            Sender::H2(sender) => sender.ready().await.is_ok(),
        }
    }
}

/// Leaves at once, whatever is under way.
impl Drop for Client {
    fn drop(&mut self) {
        for task in self.tasks.0.borrow().iter() {
            task.abort();
        }
    }
}

fn tls(how: How) -> Option<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let version = if how.tls12 { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whatever(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![if how.h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Some(config)
}

/// Takes any certificate: the child's may be of an authority that this machine does not know, and the
/// connection goes to a port on loopback that the child itself named. Signatures are checked all the same.
#[derive(Debug)]
struct Whatever(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Whatever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The bytes after an upgrade, on either side.
pub(super) struct Wire(Upgraded);

impl Wire {
    pub(super) fn new(upgraded: Upgraded) -> Self {
        Self(upgraded)
    }

    /// Reads exactly so many bytes and drops them.
    pub(super) async fn read(&mut self, mut bytes: usize) -> io::Result<()> {
        let mut room = vec![0; 16 << 10];
        while bytes > 0 {
            let room = &mut room[..bytes.min(16 << 10)];
            let mut buffer = ReadBuf::new(room);
            std::future::poll_fn(|cx| Pin::new(&mut self.0).poll_read(cx, buffer.unfilled())).await?;
            match buffer.filled().len() {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => bytes -= read,
            }
        }
        Ok(())
    }

    /// Reads a message, in however many frames, and drops it: how many bytes of payload it had.
    pub(super) async fn read_message(&mut self) -> io::Result<usize> {
        let mut payload = 0;
        loop {
            let mut head = [0; 2];
            self.read_into(&mut head).await?;
            let mut length = [0; 8];
            let len = match head[1] & 0x7f {
                126 => 2,
                127 => 8,
                short => {
                    length[7] = short;
                    0
                }
            };
            self.read_into(&mut length[8 - len..]).await?;
            let len = usize::try_from(u64::from_be_bytes(length)).map_err(|_| io::ErrorKind::InvalidData)?;
            let mask = if head[1] & 0x80 != 0 { 4 } else { 0 };
            self.read(mask + len).await?;
            payload += len;
            if head[0] & 0x80 != 0 {
                return Ok(payload);
            }
        }
    }

    async fn read_into(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut buffer = ReadBuf::new(bytes);
            std::future::poll_fn(|cx| Pin::new(&mut self.0).poll_read(cx, buffer.unfilled())).await?;
            let read = buffer.filled().len();
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[read..];
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = std::future::poll_fn(|cx| Pin::new(&mut self.0).poll_write(cx, bytes)).await?;
            bytes = &bytes[written..];
        }
        std::future::poll_fn(|cx| Pin::new(&mut self.0).poll_flush(cx)).await
    }

    pub(super) async fn end(mut self) {
        let _ = std::future::poll_fn(|cx| Pin::new(&mut self.0).poll_shutdown(cx)).await;
    }
}

/// A text message in one frame (RFC 6455 section 5.2). A client's must be masked; the mask is zero, so
/// that its words stand in memory as they are.
pub(super) fn frame(payload: &[u8], masked: bool) -> Bytes {
    let mut frame = vec![0x81];
    let mask = if masked { 0x80 } else { 0 };
    match payload.len() {
        short @ ..=125 => frame.push(mask | short as u8),
        middle @ ..=0xffff => {
            frame.push(mask | 126);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(mask | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    if masked {
        frame.extend([0; 4]);
    }
    frame.extend(payload);
    frame.into()
}
