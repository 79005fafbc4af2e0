//! The client's side: connections over h1 and h2 that ask for what a [`Script`] says and compare what comes.

use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::Request;
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::io::AsyncRead;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::BoxError;
use crate::load::content::Document;
use crate::load::content::Fault;
use crate::load::content::Sink;
use crate::load::provider::Script;
use crate::load::wire::Message;
use crate::load::wire::read;

/// Whom to ask, and how to shake hands.
#[derive(Clone)]
pub struct Target {
    /// The proxy's, or the provider's own.
    pub address: SocketAddr,
    /// http/1.1, tickets used.
    pub h1: Arc<rustls::ClientConfig>,
    /// h2, tickets used.
    pub h2: Arc<rustls::ClientConfig>,
    /// http/1.1, each handshake in full.
    pub full: Arc<rustls::ClientConfig>,
}

impl Target {
    /// A connection that has shaken hands.
    async fn connect(
        &self,
        config: &Arc<rustls::ClientConfig>,
        receive_buffer: Option<u32>,
    ) -> Result<TlsStream<tokio::net::TcpStream>, BoxError> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        Ok(TlsConnector::from(config.clone()).connect(name, tcp).await?)
    }

    /// An h1 connection. `receive_buffer`: of the socket, in bytes, for readers that are to be felt soon.
    pub async fn h1(&self, receive_buffer: Option<u32>) -> Result<H1, BoxError> {
        let tls = self.connect(&self.h1, receive_buffer).await?;
        Ok(H1 { tls, head: Vec::new(), out: Vec::new() })
    }

    /// An h2 connection, driven by a task of its own.
    pub async fn h2(&self) -> Result<H2, BoxError> {
        let tls = self.connect(&self.h2, None).await?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(1024 * 1024)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .data_frame_budget(H2_CONNECTION_WINDOW as usize)
            .enable_push(false)
            .handshake(tls)
            .await?;
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(H2 { sender })
    }

    /// Shakes hands, waits for a ticket, says goodbye; done when the other side is. Tells how it went.
    pub async fn handshake(&self, resume: bool) -> Result<HandshakeKind, BoxError> {
        let mut tls = self.connect(if resume { &self.h1 } else { &self.full }, None).await?;
        // Tickets come behind the handshake, and reading is how they get in. A side that hangs up at once may lose them.
        let ticket = std::future::poll_fn(|cx| {
            let mut byte = [0; 1];
            let ended = Pin::new(&mut tls).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_ready();
            let came = tls.get_ref().1.tls13_tickets_received() > 0;
            if came || ended { Poll::Ready(came) } else { Poll::Pending }
        });
        if !ticket.await {
            return Err(Fault("a handshake without a ticket".into()).into());
        }
        tls.shutdown().await?;
        // A side that hangs up on close_notify without its own is let go.
        while read(&mut tls, |data| data.len()).await.is_ok_and(|len| len > 0) {}
        Ok(tls.get_ref().1.handshake_kind().ok_or("no handshake")?)
    }
}

/// The fields of a request besides those that frame it, as an SDK sends them.
const FIELDS: [(&str, &str); 11] = [
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("user-agent", "OpenAI/Python 2.8.1"),
    ("authorization", "Bearer nhk_Ky9Pf34qY6Nb3wWD25RQ4F5ZR3qa7yEeeby3abP32NKfOT"),
    ("x-stainless-lang", "python"),
    ("x-stainless-package-version", "2.8.1"),
    ("x-stainless-os", "Linux"),
    ("x-stainless-arch", "x64"),
    ("x-stainless-runtime", "CPython"),
    ("x-stainless-runtime-version", "3.13.5"),
    ("x-stainless-retry-count", "0"),
];

/// Where every request goes.
const PATH: &str = "/v1/chat/completions";

/// An h1 connection, one request after the other.
pub struct H1 {
    tls: TlsStream<tokio::net::TcpStream>,
    head: Vec<u8>,
    out: Vec<u8>,
}

impl H1 {
    /// Asks, with a body of `len` bytes.
    pub async fn send(&mut self, script: Script, len: usize) -> Result<(), BoxError> {
        let document: Document = script.request(len);
        let out = &mut self.out;
        out.clear();
        write!(out, "POST {PATH} HTTP/1.1\r\nhost: localhost\r\n")?;
        for (name, value) in FIELDS {
            write!(out, "{name}: {value}\r\n")?;
        }
        let len = document.len();
        write!(out, "content-length: {len}\r\nx-length: {len}\r\nx-load: {script}\r\n\r\n")?;
        let mut at = 0;
        while at < document.len() {
            let piece = document.piece(at);
            at += piece.len();
            out.extend_from_slice(piece);
            if out.len() >= 64 * 1024 || at == document.len() {
                self.tls.write_all(out).await?;
                out.clear();
            }
        }
        Ok(self.tls.flush().await?)
    }

    /// Reads the answer to its end.
    pub async fn receive(&mut self, sink: &mut impl Sink) -> Result<(), BoxError> {
        let mut message = self.begin();
        while !self.step(&mut message, sink).await? {}
        self.head = message.into_buffer();
        Ok(())
    }

    /// An answer whose head has not come.
    pub fn begin(&mut self) -> Message {
        Message::new(std::mem::take(&mut self.head))
    }

    /// Reads once. True: the answer is complete.
    pub async fn step(&mut self, message: &mut Message, sink: &mut impl Sink) -> Result<bool, BoxError> {
        let step = read(&mut self.tls, |data| {
            if data.is_empty() {
                return Err(Fault("the connection ends within an answer".into()));
            }
            let fresh = message.head().is_none();
            let rest = message.feed_head(data)?;
            if let (true, Some(head)) = (fresh, message.head()) {
                if head.status() != 200 {
                    return Err(Fault(format!("status {}", head.status())));
                }
                sink.begin();
            }
            sink.arrived();
            let done = message.feed_body(rest, sink)?;
            if done {
                sink.end()?;
            }
            Ok(done)
        });
        Ok(step.await??)
    }
}

/// An h2 connection.
#[derive(Clone)]
pub struct H2 {
    sender: h2::client::SendRequest<Bytes>,
}

impl H2 {
    /// Asks, with a body of `len` bytes that fits the window, and reads the answer to its end.
    pub async fn exchange(&self, script: Script, len: usize, sink: &mut impl Sink) -> Result<(), BoxError> {
        let document = script.request(len);
        let mut request = Request::post(format!("https://localhost{PATH}"));
        for (name, value) in FIELDS {
            request = request.header(name, value);
        }
        let len = document.len();
        let request = request
            .header("content-length", len)
            .header("x-length", len)
            .header("x-load", script.to_string())
            .body(())?;
        let (answer, mut stream) = self.sender.clone().ready().await?.send_request(request, false)?;
        stream.send_data(document.bytes().into(), true)?;
        let (head, mut body) = answer.await?.into_parts();
        if head.status != 200 {
            return Err(Fault(format!("status {}", head.status.as_u16())).into());
        }
        sink.begin();
        while let Some(data) = body.data().await {
            let data = data?;
            sink.arrived();
            sink.data(&data)?;
            body.flow_control().release_capacity(data.len())?;
        }
        Ok(sink.end()?)
    }
}

/// So much that the client never is what holds streams up.
const H2_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
