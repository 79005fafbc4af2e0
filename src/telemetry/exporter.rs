//! `/metrics`, on its own listener.
//!
//! For operators and their scrapers only: on a quiet machine the difference of two scrapes shows the size of one
//! request. So it binds to loopback by default, can ask for a bearer token, and never sends a CORS header, so that no
//! web page can read it through an operator's browser.

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::pin::Pin;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio::time::timeout;
use zeroize::Zeroize;
use zeroize::Zeroizing;

use crate::clock::TokioTimer;
use crate::telemetry::labels::IoFault;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::log::Event;
use crate::telemetry::log::emit;
use crate::telemetry::metrics::Metrics;

/// What a scraper has to show. Wiped when dropped, printed nowhere.
pub(crate) struct BearerToken(Zeroizing<Box<[u8]>>);

impl BearerToken {
    /// None for an empty token or one that cannot be sent in a header.
    pub(crate) fn new(token: Zeroizing<Box<[u8]>>) -> Option<Self> {
        (!token.is_empty() && token.iter().all(u8::is_ascii_graphic)).then_some(Self(token))
    }

    /// Exactly one `authorization: Bearer <token>`.
    fn admits(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        match value.as_bytes().split_at_checked(SCHEME.len()) {
            Some((scheme, token)) => scheme.eq_ignore_ascii_case(SCHEME) && same(token, &self.0),
            None => false,
        }
    }
}

/// Serves until dropped; open connections end with it. Needs a `LocalSet` or a `LocalRuntime` around it.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>, auth: Option<BearerToken>) {
    let address = listener
        .local_addr()
        .unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let auth = auth.map(Rc::new);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            // The rest wait in the kernel's queue; each connection here ends by its deadlines.
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn_local(connection(stream, metrics.clone(), auth.clone()));
            }
            Err(error) => {
                let error = IoFault::from(&error);
                emit(Event::AcceptFailed {
                    kind: ListenerKind::Metrics,
                    address,
                    error,
                });
                // Out of descriptors, most likely, and asking again at once would spin.
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, metrics: Arc<Metrics>, auth: Option<Rc<BearerToken>>) {
    let service = service_fn(|request: Request<Incoming>| {
        ready(Ok::<_, Infallible>(answer(
            request.method(),
            request.uri().path(),
            request.headers(),
            &metrics,
            &auth,
        )))
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer)
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(PlainIo(stream), service)
    );
    // An error here is a scraper that left or one that does not speak HTTP. Neither is worth a line.
    if timeout(CONNECTION_AGE_MAX, connection.as_mut())
        .await
        .is_err()
    {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(CONNECTION_GRACE, connection).await;
    }
}

fn answer(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    metrics: &Metrics,
    auth: &Option<Rc<BearerToken>>,
) -> Response<Text> {
    if !auth.as_ref().is_none_or(|token| token.admits(headers)) {
        return refusal(
            StatusCode::UNAUTHORIZED,
            Some((header::WWW_AUTHENTICATE, "Bearer")),
        );
    }
    if path != "/metrics" {
        return refusal(StatusCode::NOT_FOUND, None);
    }
    if method != Method::GET && method != Method::HEAD {
        return refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            Some((header::ALLOW, "GET, HEAD")),
        );
    }
    let mut response = Response::new(Text(Some(metrics.render().into())));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn refusal(
    status: StatusCode,
    extra: Option<(header::HeaderName, &'static str)>,
) -> Response<Text> {
    let mut response = Response::new(Text(None));
    *response.status_mut() = status;
    if let Some((name, value)) = extra {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Takes the same time wherever the two differ; only a wrong length is quicker. `black_box` keeps the compiler from
/// leaving the loop early.
fn same(shown: &[u8], expected: &[u8]) -> bool {
    if shown.len() != expected.len() {
        return false;
    }
    shown
        .iter()
        .zip(expected)
        .fold(0, |difference, (a, b)| black_box(difference | (a ^ b)))
        == 0
}

/// A body of one piece.
struct Text(Option<Bytes>);

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |text| text.len() as u64))
    }
}

/// A socket in hyper's terms. Reading in place would take `unsafe`; a scrape is small, so it goes through a piece of
/// stack, which is wiped because a token passes there.
struct PlainIo(TcpStream);

impl hyper::rt::Read for PlainIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = [0; READ_BYTES];
        let room = cursor.remaining().min(READ_BYTES);
        let mut buffer = ReadBuf::new(&mut piece[..room]);
        ready!(Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        cursor.put_slice(buffer.filled());
        let read = buffer.filled().len();
        piece[..read].zeroize();
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for PlainIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }
}

const SCHEME: &[u8] = b"Bearer ";

/// Far more than the scrapers of one machine, far fewer than its descriptors.
const CONNECTIONS_MAX: usize = 64;

/// Also ends a connection that idles between two scrapes; scrapers come back with a new one.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The end of a peer that sends requests but does not read answers: after this and the grace its place is free.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);
const CONNECTION_GRACE: Duration = Duration::from_secs(10);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A scrape has about eight headers in half a kilobyte; 8 KiB is the smallest buffer hyper takes.
const HEADERS_MAX: usize = 64;
const BUFFER_BYTES_MAX: usize = 8 << 10;
const READ_BYTES: usize = 2 << 10;
