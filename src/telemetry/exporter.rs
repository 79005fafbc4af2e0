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
    /// None for an empty token or one that cannot be sent in a header. The copy is the token's only one here.
    pub(crate) fn new(token: &[u8]) -> Option<Self> {
        (!token.is_empty() && token.iter().all(u8::is_ascii_graphic)).then(|| Self(Zeroizing::new(token.into())))
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
    serve_within(listener, metrics, auth, DEADLINES).await;
}

async fn serve_within(listener: TcpListener, metrics: Arc<Metrics>, auth: Option<BearerToken>, deadlines: Deadlines) {
    let address = listener.local_addr().unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
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
                connections.spawn_local(connection(stream, metrics.clone(), auth.clone(), deadlines));
            }
            Err(error) => {
                let error = IoFault::from(&error);
                emit(Event::AcceptFailed { kind: ListenerKind::Metrics, address, error });
                // Out of descriptors, most likely, and asking again at once would spin.
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How long a peer may keep one of the places.
#[derive(Clone, Copy)]
struct Deadlines {
    /// Also ends a connection that idles between two scrapes; scrapers come back with a new one.
    head: Duration,
    /// The end of a peer that sends requests but does not read answers, once the grace is over too.
    age: Duration,
    grace: Duration,
}

async fn connection(stream: TcpStream, metrics: Arc<Metrics>, auth: Option<Rc<BearerToken>>, deadlines: Deadlines) {
    let service = service_fn(|request: Request<Incoming>| {
        ready(Ok::<_, Infallible>(answer(request.method(), request.uri().path(), request.headers(), &metrics, &auth)))
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer)
            .header_read_timeout(deadlines.head)
            .max_headers(HEADERS_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(PlainIo(stream), service)
    );
    // An error here is a scraper that left or one that does not speak HTTP. Neither is worth a line.
    if timeout(deadlines.age, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(deadlines.grace, connection).await;
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
        return refusal(StatusCode::UNAUTHORIZED, Some((header::WWW_AUTHENTICATE, "Bearer")));
    }
    if path != "/metrics" {
        return refusal(StatusCode::NOT_FOUND, None);
    }
    if method != Method::GET && method != Method::HEAD {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, Some((header::ALLOW, "GET, HEAD")));
    }
    let mut response = Response::new(Text(Some(metrics.render().into())));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn refusal(status: StatusCode, extra: Option<(header::HeaderName, &'static str)>) -> Response<Text> {
    let mut response = Response::new(Text(None));
    *response.status_mut() = status;
    if let Some((name, value)) = extra {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Takes the same time wherever the two differ; only a wrong length is quicker. `black_box` keeps the compiler from
/// leaving the loop early.
fn same(shown: &[u8], expected: &[u8]) -> bool {
    if shown.len() != expected.len() {
        return false;
    }
    shown.iter().zip(expected).fold(0, |difference, (a, b)| black_box(difference | (a ^ b))) == 0
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
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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

const DEADLINES: Deadlines =
    Deadlines { head: Duration::from_secs(5), age: Duration::from_secs(60), grace: Duration::from_secs(10) };

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A scrape has about eight headers in half a kilobyte; 8 KiB is the smallest buffer hyper takes.
const HEADERS_MAX: usize = 64;
const BUFFER_BYTES_MAX: usize = 8 << 10;
const READ_BYTES: usize = 2 << 10;

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::runtime::Builder;
    use tokio::runtime::LocalOptions;
    use tokio::task::spawn_local;
    use tokio::time::Instant;

    use super::*;

    const SHORT: Deadlines = Deadlines {
        head: Duration::from_millis(300),
        age: Duration::from_millis(600),
        grace: Duration::from_millis(200),
    };

    fn with_exporter<F: Future<Output = ()>>(
        token: Option<&[u8]>,
        deadlines: Deadlines,
        test: impl FnOnce(SocketAddr) -> F,
    ) {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let auth = token.map(|token| BearerToken::new(token).unwrap());
            let server = spawn_local(serve_within(listener, Arc::new(Metrics::new(None)), auth, deadlines));
            timeout(Duration::from_secs(30), test(address)).await.unwrap();
            assert!(!server.is_finished());
        });
    }

    /// Sends a request that asks for the connection's end, gives back the head in lower case and the body.
    async fn exchange(address: SocketAddr, line: &str, headers: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: metrics\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    #[test]
    fn a_scrape_is_answered() {
        with_exporter(None, DEADLINES, |address| async move {
            let (head, body) = exchange(address, "GET /metrics", "origin: https://page.example\r\n").await;
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
            assert!(!head.contains("access-control"), "{head}");
            assert!(body.contains("\nnullhop_build_info{"), "{body}");

            let (head, body) = exchange(address, "HEAD /metrics", "").await;
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert!(head.contains("content-length: ") && !head.contains("content-length: 0"), "{head}");
            assert_eq!(body, "");
        });
    }

    #[test]
    fn the_rest_is_refused() {
        with_exporter(None, DEADLINES, |address| async move {
            for line in ["GET /", "GET /metrics/", "GET //metrics", "POST /other", "GET /%6detrics"] {
                let (head, body) = exchange(address, line, "").await;
                assert!(head.starts_with("http/1.1 404 "), "{line}: {head}");
                assert_eq!(body, "");
            }
            for line in ["POST /metrics", "OPTIONS /metrics", "DELETE /metrics"] {
                let (head, _) = exchange(address, line, "").await;
                assert!(head.starts_with("http/1.1 405 "), "{line}: {head}");
                assert!(head.contains("allow: get, head"), "{head}");
                assert!(!head.contains("access-control"), "{head}");
            }
        });
    }

    #[test]
    fn a_token_is_asked_for() {
        with_exporter(Some(b"t0ken-of-the-scraper"), DEADLINES, |address| async move {
            for (headers, status) in [
                ("", 401),
                ("authorization: Bearer\r\n", 401),
                ("authorization: Bearer \r\n", 401),
                ("authorization: Bearer t0ken-of-the-scrapes\r\n", 401),
                ("authorization: Bearer t0ken-of-the-scrape\r\n", 401),
                ("authorization: Bearer t0ken-of-the-scraperr\r\n", 401),
                ("authorization: Basic t0ken-of-the-scraper\r\n", 401),
                ("authorization: Bearer t0ken-of-the-scraper\r\nauthorization: Bearer x\r\n", 401),
                ("authorization: Bearer t0ken-of-the-scraper\r\n", 200),
                ("authorization: bearer t0ken-of-the-scraper\r\n", 200),
            ] {
                let (head, body) = exchange(address, "GET /metrics", headers).await;
                assert!(head.starts_with(&format!("http/1.1 {status} ")), "{headers:?}: {head}");
                assert_eq!(status == 401, body.is_empty());
                assert_eq!(status == 401, head.contains("www-authenticate: bearer"));
            }
            // Without a token not even the paths are told.
            let (head, _) = exchange(address, "GET /", "").await;
            assert!(head.starts_with("http/1.1 401 "), "{head}");
        });
    }

    #[test]
    fn tokens_that_cannot_be_sent_are_refused() {
        for token in [&b""[..], b"two words", b"line\n", b"\xff"] {
            assert!(BearerToken::new(token).is_none());
        }
    }

    #[test]
    fn places_are_limited_and_come_back() {
        with_exporter(None, SHORT, |address| async move {
            let started = Instant::now();
            let mut silent = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\nho").await.unwrap();
                silent.push(stream);
            }
            // The next one waits for the deadline of the silent ones.
            let (head, _) = exchange(address, "GET /metrics", "").await;
            assert!(head.starts_with("http/1.1 200 "), "{head}");
            assert!(started.elapsed() >= SHORT.head, "{:?}", started.elapsed());
        });
    }

    #[test]
    fn a_peer_that_does_not_read_is_cut() {
        with_exporter(None, SHORT, |address| async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let started = Instant::now();
            let requests = b"GET /metrics HTTP/1.1\r\nhost: metrics\r\n\r\n".repeat(100);
            // Ends when the other side does, with a reset for all that was not read.
            while stream.write_all(&requests).await.is_ok() {}
            assert!(started.elapsed() >= SHORT.age, "{:?}", started.elapsed());
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        });
    }
}
