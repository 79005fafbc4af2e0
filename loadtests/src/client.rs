//! A small HTTP client for tests: one connection, h1 or h2, bodies that stream, and no helpfulness.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Instant;

use aws_lc_rs::digest;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderMap;
use http::Request;
use http::Response;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::client::conn::http2;
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use crate::BoxError;
use crate::io::Control;
use crate::io::Ending;
use crate::io::Io;
use crate::io::Transport;
use crate::pattern::digest_array;
use crate::pattern::pattern_bytes;
use crate::tls::Alpn;
use crate::tls::Trust;
use crate::tls::Versions;

/// What a client may want to choose.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// TLS or not, and which protocols.
    pub alpn: Alpn,
    /// Whom to believe.
    pub trust: Trust,
    /// Which versions of TLS to offer.
    pub versions: Versions,
    /// h2 receive window of a stream; small ones make a slow reader felt at once.
    pub h2_stream_window: u32,
    /// h2 receive window of the connection.
    pub h2_connection_window: u32,
    /// SO_RCVBUF; the kernel's choice if not given.
    pub receive_buffer_bytes: Option<u32>,
}

impl ClientOptions {
    /// Large windows.
    pub fn new(alpn: Alpn, trust: Trust) -> ClientOptions {
        ClientOptions {
            alpn,
            trust,
            versions: Versions::Both,
            h2_stream_window: 1024 * 1024,
            h2_connection_window: 256 * 1024 * 1024,
            receive_buffer_bytes: None,
        }
    }
}

/// One connection. Dropped, it closes when its exchanges are over; [`Client::abort`] does not wait.
pub struct Client {
    sender: Sender,
    control: Arc<Control>,
    driver: AbortHandle,
    /// hyper's h2 drives its connection in a task of its own, which outlives the driver.
    stop: Arc<watch::Sender<()>>,
    local_address: SocketAddr,
}

enum Sender {
    H1(http1::SendRequest<AnyBody>),
    H2(http2::SendRequest<AnyBody>),
}

impl Client {
    /// Connects with large windows.
    pub async fn connect(
        address: SocketAddr,
        server_name: &str,
        alpn: Alpn,
        trust: &Trust,
    ) -> Result<Client, BoxError> {
        Client::connect_with(address, server_name, &ClientOptions::new(alpn, trust.clone())).await
    }

    /// Connects.
    pub async fn connect_with(
        address: SocketAddr,
        server_name: &str,
        options: &ClientOptions,
    ) -> Result<Client, BoxError> {
        let tcp = connect_tcp(address, options.receive_buffer_bytes).await?;
        let local_address = tcp.local_addr()?;
        let transport = match options.alpn.is_tls() {
            true => tls(tcp, server_name, options).await?,
            false => Transport::Plain(tcp),
        };
        let h2 = options.alpn.speaks_h2(transport.alpn());
        let control = Arc::new(Control::default());
        let stop = Arc::new(watch::Sender::new(()));
        let io = Io::new(transport, control.clone(), None);
        let (sender, driver) = if h2 {
            let (sender, connection) = http2::Builder::new(AbortableSpawner(stop.subscribe()))
                .initial_stream_window_size(options.h2_stream_window)
                .initial_connection_window_size(options.h2_connection_window)
                .max_concurrent_reset_streams(10_000)
                .handshake(io)
                .await?;
            // The error of a connection reaches the test through its exchanges.
            (Sender::H2(sender), tokio::spawn(async move { drop(connection.await) }))
        } else {
            let (sender, connection) = http1::Builder::new().max_headers(1000).handshake(io).await?;
            (Sender::H1(sender), tokio::spawn(async move { drop(connection.with_upgrades().await) }))
        };
        Ok(Client { sender, control, driver: driver.abort_handle(), stop, local_address })
    }

    /// Sends a request. The future does not borrow the client: on h2 many can be under way, dropping one resets it.
    pub fn send<B>(
        &mut self,
        request: Request<B>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + Send + use<B>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let request = request.map(any_body);
        let answer: Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>> = match &mut self.sender {
            Sender::H1(sender) => Box::pin(sender.send_request(request)),
            Sender::H2(sender) => Box::pin(sender.send_request(request)),
        };
        answer
    }

    /// Sends a request and collects the answer.
    pub async fn fetch<B>(&mut self, request: Request<B>) -> Result<Answer, BoxError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        Answer::collect(self.send(request).await?).await
    }

    /// Waits until the connection takes a request.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await,
            Sender::H2(sender) => sender.ready().await,
        }
    }

    /// Another handle on an h2 connection.
    pub fn share(&self) -> Option<Client> {
        let Sender::H2(sender) = &self.sender else { return None };
        Some(Client {
            sender: Sender::H2(sender.clone()),
            control: self.control.clone(),
            driver: self.driver.clone(),
            stop: self.stop.clone(),
            local_address: self.local_address,
        })
    }

    /// Whether h2 was negotiated.
    pub fn is_h2(&self) -> bool {
        matches!(self.sender, Sender::H2(_))
    }

    /// Whether the connection is over.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }

    /// This end of the connection.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Ends the connection now, in mid-exchange.
    pub fn abort(&self, ending: Ending) {
        self.control.end(ending);
        self.driver.abort();
        self.stop.send_replace(());
    }
}

/// Spawns what [`Client::abort`] can end.
#[derive(Clone)]
struct AbortableSpawner(watch::Receiver<()>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for AbortableSpawner {
    fn execute(&self, future: F) {
        let mut stop = self.0.clone();
        tokio::spawn(async move {
            // A client that was dropped without an abort leaves its tasks to themselves.
            let stopped = async {
                if stop.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = future => {}
                () = stopped => {}
            }
        });
    }
}

/// A TLS stream to send handwritten bytes over. For plain bytes a `TcpStream` will do.
pub async fn raw_tls_connect(
    address: SocketAddr,
    server_name: &str,
    alpn: Alpn,
    trust: &Trust,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, BoxError> {
    let tcp = connect_tcp(address, None).await?;
    let connector = TlsConnector::from(trust.client_config(alpn)?);
    Ok(connector.connect(ServerName::try_from(server_name.to_owned())?, tcp).await?)
}

async fn connect_tcp(address: SocketAddr, receive_buffer_bytes: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(bytes) = receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    let tcp = socket.connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn tls(tcp: TcpStream, server_name: &str, options: &ClientOptions) -> Result<Transport, BoxError> {
    let connector = TlsConnector::from(options.trust.client_config_of(options.alpn, options.versions)?);
    let stream = connector.connect(ServerName::try_from(server_name.to_owned())?, tcp).await?;
    Ok(Transport::Tls(Box::new(stream.into())))
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The head.
    pub head: http::response::Parts,
    /// The body.
    pub body: Bytes,
    /// Trailers, if any came.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Reads to the end; a body that breaks is an error.
    pub async fn collect(response: Response<Incoming>) -> Result<Answer, BoxError> {
        let received = Received::read(response, usize::MAX).await;
        match received.error {
            Some(error) => Err(error.into()),
            None => Ok(Answer { head: received.head, body: received.body, trailers: received.trailers }),
        }
    }

    /// The status as a number.
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// A header's value as text, or "".
    pub fn header(&self, name: &str) -> &str {
        self.head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// What came of an answer, whether it ended well or not.
#[derive(Debug)]
pub struct Received {
    /// The head.
    pub head: http::response::Parts,
    /// The first `keep_bytes` of the body.
    pub body: Bytes,
    /// Length of what came.
    pub len: u64,
    /// SHA-256 of what came.
    pub sha256: [u8; 32],
    /// Trailers, if any came.
    pub trailers: Option<HeaderMap>,
    /// When each piece came, and its length; at most the first 10,000.
    pub pieces: Vec<(Instant, usize)>,
    /// Why it ended early.
    pub error: Option<hyper::Error>,
}

impl Received {
    /// Reads to the end, good or bad.
    pub async fn read(response: Response<Incoming>, keep_bytes: usize) -> Received {
        let (head, mut incoming) = response.into_parts();
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut body = BytesMut::new();
        let (mut len, mut trailers, mut pieces, mut error) = (0, None, Vec::new(), None);
        while let Some(frame) = next_frame(&mut incoming).await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => {
                    hash.update(&data);
                    len += data.len() as u64;
                    body.extend_from_slice(&data[..data.len().min(keep_bytes.saturating_sub(body.len()))]);
                    if pieces.len() < 10_000 {
                        pieces.push((Instant::now(), data.len()));
                    }
                }
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(broken) => {
                    error = Some(broken);
                    break;
                }
            }
        }
        Received { head, body: body.freeze(), len, sha256: digest_array(hash), trailers, pieces, error }
    }
}

/// The next frame of any body.
pub async fn next_frame<B: Body + Unpin>(body: &mut B) -> Option<Result<Frame<B::Data>, B::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// The next data of a body; None at its end or at trailers.
pub async fn next_data(body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
    next_frame(body).await?.map(|frame| frame.into_data().ok()).transpose()
}

/// SHA-256, for comparing.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(bytes);
    digest_array(hash)
}

/// Any body behind one type.
pub type AnyBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// Boxes a body.
pub fn any_body<B>(body: B) -> AnyBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Box::pin(BoxedErrors(Box::pin(body)))
}

struct BoxedErrors<B>(Pin<Box<B>>);

impl<B> Body for BoxedErrors<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Bytes that are there already; the default is no body.
#[derive(Clone, Debug, Default)]
pub struct FullBody(Option<Bytes>);

impl FullBody {
    /// A body of known length.
    pub fn new(bytes: impl Into<Bytes>) -> FullBody {
        FullBody(Some(bytes.into()).filter(|bytes| !bytes.is_empty()))
    }

    /// No body.
    pub fn empty() -> FullBody {
        FullBody(None)
    }
}

impl Body for FullBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// The deterministic sequence of [`crate::pattern`], of known length.
#[derive(Clone, Debug)]
pub struct PatternBody {
    offset: u64,
    len: u64,
    piece_bytes: u64,
}

impl PatternBody {
    /// The first `len` bytes.
    pub fn new(len: u64) -> PatternBody {
        PatternBody { offset: 0, len, piece_bytes: u64::MAX }
    }

    /// In pieces of this size.
    pub fn pieces(self, piece_bytes: u64) -> PatternBody {
        PatternBody { piece_bytes, ..self }
    }
}

impl Body for PatternBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let piece = pattern_bytes(self.offset, (self.len - self.offset).min(self.piece_bytes));
        self.offset += piece.len() as u64;
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.offset == self.len
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len - self.offset)
    }
}

/// A body that a test feeds while it is under way; of unknown length unless one is promised.
pub struct ChannelBody {
    frames: mpsc::Receiver<Result<Frame<Bytes>, BoxError>>,
    remaining: Option<u64>,
}

impl ChannelBody {
    /// The feeding end and the body. Dropping the sender ends the body cleanly.
    pub fn new(capacity: usize) -> (BodySender, ChannelBody) {
        let (sender, frames) = mpsc::channel(capacity);
        (BodySender(sender), ChannelBody { frames, remaining: None })
    }

    /// Promises a length; on h1 it becomes the content-length.
    pub fn with_len(self, len: u64) -> ChannelBody {
        ChannelBody { remaining: Some(len), ..self }
    }
}

/// Feeds a [`ChannelBody`].
#[derive(Clone)]
pub struct BodySender(mpsc::Sender<Result<Frame<Bytes>, BoxError>>);

impl BodySender {
    /// Waits while the body is not being read; an error means that nobody reads it any more.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), BoxError> {
        self.0.send(Ok(Frame::data(bytes.into()))).await.map_err(|_| "the body was dropped".into())
    }

    /// Trailers are the last thing.
    pub async fn trailers(&self, trailers: HeaderMap) -> Result<(), BoxError> {
        self.0.send(Ok(Frame::trailers(trailers))).await.map_err(|_| "the body was dropped".into())
    }

    /// Breaks the body: a reset on h2, a connection closed in mid-body on h1.
    pub async fn fail(&self) {
        let _ = self.0.send(Err("broken off by the test".into())).await;
    }

    /// Waits until the body is dropped by whoever read it.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = std::task::ready!(self.frames.poll_recv(cx));
        if let (Some(Ok(frame)), Some(remaining)) = (&frame, self.remaining)
            && let Some(data) = frame.data_ref()
        {
            self.remaining = Some(remaining.saturating_sub(data.len() as u64));
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
