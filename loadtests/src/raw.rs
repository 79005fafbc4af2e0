//! A server without an HTTP stack: it reads a head, then writes whatever it was told to.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use crate::BoxError;
use crate::io::Background;
use crate::io::Ending;
use crate::io::Transport;
use crate::io::listen;
use crate::tls::Alpn;
use crate::tls::Ca;
use crate::tls::Leaf;

/// One thing to do on an accepted connection. Behind the last one the connection is closed with a full goodbye.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads up to an empty line; what follows it stays for [`Step::ReadBody`].
    ExpectHead,
    /// Reads that many bytes.
    ReadBody(usize),
    /// Reads until the peer sends no more.
    ReadToEnd,
    /// Writes and flushes.
    Write(Bytes),
    /// Writes the same bytes again and again: floods and endless things.
    Repeat(Bytes, usize),
    /// Waits.
    Sleep(Duration),
    /// Goes back to the first step, for keep-alive.
    Again,
    /// TCP RST. It overtakes what was just written: put a [`Step::Sleep`] between.
    Reset,
    /// FIN without close_notify.
    Fin,
    /// close_notify and FIN.
    Close,
    /// Does nothing until the peer closes.
    Hold,
}

impl Step {
    /// Text or bytes to write.
    pub fn write(bytes: impl AsRef<[u8]>) -> Step {
        Step::Write(Bytes::copy_from_slice(bytes.as_ref()))
    }
}

/// How a raw provider is set up.
#[derive(Default)]
pub struct RawOptions {
    /// 0 picks a free port.
    pub port: u16,
    /// What the handshake offers. The default is h2 and http/1.1; most lies want [`Alpn::H1`] or [`Alpn::Plain`].
    pub alpn: Alpn,
    /// Signs the certificate; a fresh one if not given.
    pub ca: Option<Arc<Ca>>,
    /// Shown instead of one for localhost and 127.0.0.1.
    pub leaf: Option<Leaf>,
}

impl RawOptions {
    /// With this protocol offer, everything else by default.
    pub fn alpn(alpn: Alpn) -> RawOptions {
        RawOptions { alpn, ..RawOptions::default() }
    }
}

/// A running raw provider; dropping it closes everything.
pub struct RawProvider {
    address: SocketAddr,
    tls: bool,
    ca_pem: String,
    seen: Arc<RawSeen>,
    _background: Background,
}

#[derive(Default)]
struct RawSeen {
    connects: AtomicU64,
    open: AtomicU64,
    heads: Mutex<Vec<Bytes>>,
    received: AtomicU64,
}

impl RawProvider {
    /// Runs the same steps on every connection.
    pub fn steps(options: RawOptions, steps: Vec<Step>) -> Result<RawProvider, BoxError> {
        let steps = Arc::new(steps);
        RawProvider::spawn(options, move |connection| {
            let steps = steps.clone();
            async move { connection.run(&steps).await }
        })
    }

    /// Runs a function on every connection; [`RawConnection::number`] tells them apart.
    pub fn spawn<F, C>(options: RawOptions, handler: F) -> Result<RawProvider, BoxError>
    where
        F: Fn(RawConnection) -> C + Send + Sync + 'static,
        C: Future<Output = io::Result<()>> + Send + 'static,
    {
        let ca = options.ca.unwrap_or_else(|| Arc::new(Ca::new("Raw Provider Test CA")));
        let leaf = options.leaf.unwrap_or_else(|| ca.leaf(&["localhost", "127.0.0.1"]));
        let tls = options.alpn.is_tls();
        let acceptor = if tls { Some(TlsAcceptor::from(leaf.server_config(options.alpn)?)) } else { None };
        let listener = listen(options.port)?;
        let address = listener.local_addr()?;
        let seen = Arc::new(RawSeen::default());
        let handler = Arc::new(handler);
        let background = Background::accept(&listener, 1, {
            let seen = seen.clone();
            move |tcp| {
                let (seen, handler, acceptor) = (seen.clone(), handler.clone(), acceptor.clone());
                async move {
                    let number = seen.connects.fetch_add(1, SeqCst);
                    seen.open.fetch_add(1, SeqCst);
                    let open = OpenConnection(seen.clone());
                    let transport = match acceptor {
                        Some(acceptor) => match acceptor.accept(tcp).await {
                            Ok(tls) => Transport::Tls(Box::new(tls.into())),
                            Err(_) => return,
                        },
                        None => Transport::Plain(tcp),
                    };
                    let buffer = BytesMut::new();
                    let connection = RawConnection { transport: Some(transport), buffer, number, seen, _open: open };
                    // An error is the peer's going away, which the test sees on its own side.
                    let _ = handler(connection).await;
                }
            }
        })?;
        Ok(RawProvider { address, tls, ca_pem: ca.pem(), seen, _background: background })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port alone.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `https://127.0.0.1:PORT`, or `http://`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// The certificate that clients have to trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TCP connections so far.
    pub fn connects(&self) -> u64 {
        self.seen.connects.load(SeqCst)
    }

    /// Connections whose handler is still running.
    pub fn open_connections(&self) -> u64 {
        self.seen.open.load(SeqCst)
    }

    /// Bytes received by all steps and helpers.
    pub fn received(&self) -> u64 {
        self.seen.received.load(SeqCst)
    }

    /// Every head that was read, byte-exact.
    pub fn heads(&self) -> Vec<Bytes> {
        self.seen.heads.lock().expect("no panics under this lock").clone()
    }
}

struct OpenConnection(Arc<RawSeen>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

/// An accepted connection in the hands of a test. Dropped, it just closes the socket.
pub struct RawConnection {
    /// Taken by what ends the connection.
    transport: Option<Transport>,
    buffer: BytesMut,
    number: u64,
    seen: Arc<RawSeen>,
    _open: OpenConnection,
}

impl RawConnection {
    /// Counts connections from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The bare stream, for handlers that speak something else; bytes already read behind a head are lost with it.
    pub fn stream(&mut self) -> &mut Transport {
        self.transport.as_mut().expect("the connection has not been ended")
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let transport = self.transport.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let len = transport.read_buf(&mut self.buffer).await?;
        self.seen.received.fetch_add(len as u64, SeqCst);
        Ok(len)
    }

    /// Reads up to and with an empty line.
    pub async fn head(&mut self) -> io::Result<Bytes> {
        let mut searched: usize = 0;
        loop {
            let from = searched.saturating_sub(3);
            if let Some(at) = self.buffer[from..].windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.buffer.split_to(from + at + 4).freeze();
                self.seen.heads.lock().expect("no panics under this lock").push(head.clone());
                return Ok(head);
            }
            searched = self.buffer.len();
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads exactly `len` bytes.
    pub async fn body(&mut self, len: usize) -> io::Result<Bytes> {
        while self.buffer.len() < len {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.split_to(len).freeze())
    }

    /// Reads and forgets until the peer sends no more.
    pub async fn drain(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            if self.fill().await? == 0 {
                return Ok(());
            }
        }
    }

    /// Writes and flushes.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let transport = self.transport.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        transport.write_all(bytes.as_ref()).await?;
        transport.flush().await
    }

    /// Ends the connection; nothing works afterwards.
    pub fn end(&mut self, ending: Ending) {
        if let Some(transport) = self.transport.take() {
            transport.end(ending);
        }
    }

    /// Runs steps.
    pub async fn run(mut self, steps: &[Step]) -> io::Result<()> {
        let mut at = 0;
        while let Some(step) = steps.get(at) {
            at += 1;
            match step {
                Step::ExpectHead => drop(self.head().await?),
                Step::ReadBody(len) => drop(self.body(*len).await?),
                Step::ReadToEnd | Step::Hold => self.drain().await?,
                Step::Write(bytes) => self.write(bytes).await?,
                Step::Repeat(bytes, times) => {
                    for _ in 0..*times {
                        self.write(bytes).await?;
                    }
                }
                Step::Sleep(time) => tokio::time::sleep(*time).await,
                Step::Again => at = 0,
                Step::Reset => self.end(Ending::Reset),
                Step::Fin => self.end(Ending::Fin),
                Step::Close => self.end(Ending::Goodbye),
            }
        }
        self.end(Ending::Goodbye);
        Ok(())
    }
}

/// Ready-made lies. Each is one answer to one request; the head is read first.
pub mod lies {
    use super::*;

    /// `content-length: claimed` in front of `body`, then the connection closes.
    pub fn content_length(claimed: usize, body: &str) -> Vec<Step> {
        answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {claimed}\r\n\r\n{body}"))
    }

    /// Two lengths that disagree.
    pub fn two_content_lengths() -> Vec<Step> {
        answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 5\r\n\r\nhello")
    }

    /// A length and chunks.
    pub fn content_length_and_chunked() -> Vec<Step> {
        answer("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    }

    /// A transfer coding that nobody asked for.
    pub fn gzip_chunked() -> Vec<Step> {
        answer("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    }

    /// A chunk size beyond all integers.
    pub fn huge_chunk() -> Vec<Step> {
        answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello")
    }

    /// `count` interim answers, then a real one.
    pub fn informational_flood(count: usize) -> Vec<Step> {
        vec![
            Step::ExpectHead,
            Step::Repeat(Bytes::from_static(b"HTTP/1.1 103 Early Hints\r\nlink: </fake>\r\n\r\n"), count),
            Step::write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
            Step::Hold,
        ]
    }

    /// A protocol switch that nobody asked for.
    pub fn unasked_101() -> Vec<Step> {
        vec![
            Step::ExpectHead,
            Step::write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: fake\r\n\r\nhello"),
            Step::Hold,
        ]
    }

    /// A good answer, and later another one that belongs to no request.
    pub fn second_answer(after: Duration) -> Vec<Step> {
        vec![
            Step::ExpectHead,
            Step::write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst"),
            Step::Sleep(after),
            Step::write("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond"),
            Step::Hold,
        ]
    }

    /// A head with `bytes` of one header.
    pub fn big_header(bytes: usize) -> Vec<Step> {
        answer(format!("HTTP/1.1 200 OK\r\nx-big: {}\r\ncontent-length: 2\r\n\r\nok", "b".repeat(bytes)))
    }

    /// A head with `count` small headers.
    pub fn many_headers(count: usize) -> Vec<Step> {
        let headers: String = (0..count).map(|number| format!("x-{number}: y\r\n")).collect();
        answer(format!("HTTP/1.1 200 OK\r\n{headers}content-length: 2\r\n\r\nok"))
    }

    /// Nothing like HTTP.
    pub fn garbage() -> Vec<Step> {
        answer("\x00\x01\x02 220 fake.example ESMTP ready\r\n\r\n")
    }

    /// Half a head, then the end.
    pub fn half_head() -> Vec<Step> {
        answer("HTTP/1.1 200 OK\r\ncontent-le")
    }

    /// Close-delimited HTTP/1.1, which is legal and rare.
    pub fn close_delimited(body: &str) -> Vec<Step> {
        answer(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}"))
    }

    fn answer(bytes: impl AsRef<[u8]>) -> Vec<Step> {
        vec![Step::ExpectHead, Step::write(bytes), Step::Close]
    }
}
