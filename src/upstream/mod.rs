//! The way to the providers: one pool a worker and upstream, and [`Upstream::send`], which gets an
//! answer's head for a request's head.

mod connect;
mod endpoint;
mod line;
mod resolve;
mod upload;

use std::cell::Cell;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::header;
use hyper::body::Incoming;

use crate::config;
use crate::config::UpstreamProtocol;
use crate::hygiene::Chunk;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::telemetry::labels::FailureReason;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::RetryReason;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::log;
use crate::telemetry::log::Event;
use crate::telemetry::metrics::Handles;
use crate::tls::client::ClientTls;

use endpoint::Endpoint;
use endpoint::Line;
use endpoint::LineAge;
pub(crate) use line::H1Line;
use line::H2Slot;
use line::LineFault;
pub(crate) use line::Open as OpenLine;
pub(crate) use upload::Approve;
pub(crate) use upload::RequestBody;
pub(crate) use upload::Upload;
pub(crate) use upload::UploadFault;

/// How long a finished h1 exchange may take to leave its line ready for the next one.
const SETTLE: Duration = Duration::from_secs(1);

/// Whose request it is, as far as a pooled h1 line cares: two numbers that only this process can
/// derive from the credential.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tenant {
    /// Without a credential: the line is not used again.
    Nobody,
    Caller(u64, u64),
}

impl Tenant {
    /// The tenant that `credential` stands for.
    pub(crate) fn of(credential: &[u8]) -> Self {
        static KEYS: OnceLock<(RandomState, RandomState)> = OnceLock::new();
        let (first, second) = KEYS.get_or_init(|| (RandomState::new(), RandomState::new()));
        Self::Caller(first.hash_one(credential), second.hash_one(credential))
    }
}

/// A request's head as the upstream shall see it, but for its address.
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    /// Path and query at the upstream, without the endpoint's base path; starts with a slash.
    pub(crate) path: String,
    /// Without `host`.
    pub(crate) headers: HeaderMap,
}

/// An answer's head, and the line that its body comes over.
pub(crate) struct Answer {
    pub(crate) response: http::Response<Incoming>,
    pub(crate) lease: Lease,
}

/// What an answer's body needs to keep coming.
pub(crate) enum Lease {
    H1(H1Lease),
    H2 { slot: H2Slot },
}

/// An h1 line on loan from its endpoint.
pub(crate) struct H1Lease {
    line: Box<H1Line>,
    endpoint: Rc<Endpoint>,
    tenant: Tenant,
}

impl Lease {
    /// Lets the line bring more of the body. `Ready` when it will bring no more.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(lease) => lease.line.drive(cx),
            // Its connection's own task does.
            Self::H2 { .. } => Poll::Pending,
        }
    }

    /// Trailers as the upstream sent them. `false` if they cannot be had.
    pub(crate) fn receive_trailers(&self, trailers: &mut HeaderMap) -> bool {
        match self {
            Self::H1(_) => true,
            Self::H2 { slot } => slot.stand_ins().restore_headers(trailers),
        }
    }

    /// Takes the connection out after a 101. `None` if it broke meanwhile.
    pub(crate) async fn into_switched(self) -> Option<Switched> {
        let Self::H1(H1Lease { mut line, .. }) = self else { return None };
        tokio::time::timeout(SETTLE, line.upgraded()).await.ok()?;
        Some(line.into_switched())
    }

    /// The answer has been read to its end; the line may serve its tenant again. Not to be called
    /// when the request body has not been sent to its end.
    pub(crate) fn give_back(self) {
        let Self::H1(H1Lease { mut line, endpoint, tenant }) = self else { return };
        if line.reusable() {
            endpoint.give_back(tenant, *line);
            return;
        }
        // The end of the message may still be on its way (a last chunk, a flush).
        tokio::task::spawn_local(async move {
            let settled = tokio::time::timeout(
                SETTLE,
                std::future::poll_fn(|cx| {
                    let over = line.drive(cx).is_ready();
                    if over || line.reusable_now() { Poll::Ready(()) } else { Poll::Pending }
                }),
            )
            .await;
            if settled.is_ok() {
                endpoint.give_back(tenant, *line);
            }
        });
    }
}

/// A connection after its 101: no HTTP on it any more.
pub(crate) struct Switched {
    pub(crate) transport: Transport,
    pub(crate) watch: SocketWatch,
    /// What hyper had read beyond the head: cleared on drop, because the head's values may keep the block.
    pub(crate) read_ahead: Chunk,
    /// The connection's place and gauge, to be held as long.
    pub(crate) open: OpenLine,
}

/// Why there is no answer. None of them holds text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SendFault {
    /// No connection to any endpoint.
    Connect,
    /// Every connection that the configuration allows is taken.
    Crowded,
    /// The connection ended or the stream was reset before the head.
    Reset,
    /// What came was not HTTP, or more than we take.
    Protocol,
    /// The request body failed; the upload knows why.
    Upload,
}

/// The rustls configurations of one upstream: ALPN differs.
pub(crate) struct TlsConfigs {
    pub(crate) auto: Arc<ClientTls>,
    pub(crate) h1: Arc<ClientTls>,
    pub(crate) h2: Arc<ClientTls>,
}

impl TlsConfigs {
    fn choose(&self, protocol: UpstreamProtocol, h2_wanted: bool) -> Arc<ClientTls> {
        match protocol {
            _ if !h2_wanted => self.h1.clone(),
            UpstreamProtocol::Auto => self.auto.clone(),
            UpstreamProtocol::H1 => self.h1.clone(),
            UpstreamProtocol::H2 => self.h2.clone(),
        }
    }
}

/// One upstream, for one worker.
pub(crate) struct Upstream {
    pub(crate) id: UpstreamId,
    endpoints: Vec<Rc<Endpoint>>,
    /// Smooth weighted round robin: each endpoint's current weight.
    turns: Vec<Cell<i64>>,
    attempts: u32,
    handles: Arc<Handles>,
    /// How many workers see this upstream down; shared by them.
    down: Arc<AtomicUsize>,
    /// Whether this worker is one of them.
    is_down: Cell<bool>,
}

impl Upstream {
    /// The pool of `config`, empty at first. `None` if an endpoint's host is not a name that TLS can check.
    pub(crate) fn new(
        id: UpstreamId,
        config: &config::Upstream,
        tls: &Rc<TlsConfigs>,
        handles: &Arc<Handles>,
        down: &Arc<AtomicUsize>,
    ) -> Option<Self> {
        let endpoints: Option<Vec<_>> =
            config.endpoints.iter().map(|endpoint| Endpoint::new(id, config, endpoint, tls, handles.clone())).collect();
        let endpoints = endpoints?;
        let turns = endpoints.iter().map(|_| Cell::new(0)).collect();
        Some(Self {
            id,
            endpoints,
            turns,
            attempts: config.attempts,
            handles: handles.clone(),
            down: down.clone(),
            is_down: Cell::new(false),
        })
    }

    /// Gets the head of an answer to `head`. Tries another line or endpoint only while no byte of
    /// an answer has come and the body has not been touched. Has no deadline but that of
    /// connecting; dropping the future cancels the request.
    ///
    /// # Errors
    /// Why there is none, after the last attempt.
    pub(crate) async fn send(
        &self,
        head: &RequestHead,
        upload: &Rc<Upload>,
        tenant: Tenant,
    ) -> Result<Answer, SendFault> {
        let metrics = self.handles.upstream(self.id);
        let mut tried = 0_u64;
        let mut attempt = 1;
        loop {
            let (place, endpoint) = self.choose(tried);
            let (fault, again) = match endpoint.line(tenant).await {
                Err(fault) => {
                    tried |= 1 << (place % 64);
                    (fault, Some(RetryReason::Connect))
                }
                Ok(line) => match self.send_over(endpoint, line, head, upload, tenant).await {
                    Ok(answer) => return Ok(answer),
                    Err((fault, again)) => (fault, again),
                },
            };
            let again = again.filter(|_| attempt < self.attempts && !upload.touched() && upload.fault().is_none());
            let Some(reason) = again else {
                if upload.fault().is_some() {
                    return Err(SendFault::Upload);
                }
                let failure = match fault {
                    SendFault::Connect => FailureReason::Connect,
                    SendFault::Protocol => FailureReason::Protocol,
                    SendFault::Reset => FailureReason::Reset,
                    SendFault::Crowded | SendFault::Upload => return Err(fault),
                };
                metrics.failures(failure).inc();
                return Err(fault);
            };
            metrics.retries(reason).inc();
            attempt += 1;
        }
    }

    async fn send_over(
        &self,
        endpoint: &Rc<Endpoint>,
        line: Line,
        head: &RequestHead,
        upload: &Rc<Upload>,
        tenant: Tenant,
    ) -> Result<Answer, (SendFault, Option<RetryReason>)> {
        let body = RequestBody(upload.clone());
        match line {
            Line::H1(mut line, age) => {
                let request = head.to_h1(&endpoint.config, body).ok_or((SendFault::Protocol, None))?;
                match line.send(request).await {
                    // A switch that nobody asked for (RFC 9110 section 15.2.2).
                    Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS || !framed_well(&response) => {
                        Err((SendFault::Protocol, None))
                    }
                    Ok(response) => {
                        let lease = Lease::H1(H1Lease { line, endpoint: endpoint.clone(), tenant });
                        Ok(Answer { response, lease })
                    }
                    Err(LineFault::Informational) => {
                        self.handles.guard(Guard::UpstreamInformational).inc();
                        Err((SendFault::Protocol, None))
                    }
                    Err(LineFault::Http(error)) if error.is_parse() => Err((SendFault::Protocol, None)),
                    // A pooled line that died while idle; with nothing of the answer read.
                    Err(LineFault::Http(error)) => {
                        let stale = age == LineAge::Pooled
                            && (error.is_canceled()
                                || error.is_closed()
                                || error.is_incomplete_message()
                                || is_io(&error));
                        let repeatable = head.method.is_idempotent() || !upload.ended();
                        Err((SendFault::Reset, (stale && repeatable).then_some(RetryReason::Reset)))
                    }
                }
            }
            Line::H2(slot, mut sender) => {
                let mut request = head.to_h2(&endpoint.config, body).ok_or((SendFault::Protocol, None))?;
                let _departure = slot.stand_ins().replace_request(&mut request);
                let mut answer = sender.try_send_request(request).await;
                if let Ok(response) = &mut answer
                    && !slot.stand_ins().restore_headers(response.headers_mut())
                {
                    return Err((SendFault::Protocol, None));
                }
                match answer {
                    Ok(response) if response.status().is_informational() => Err((SendFault::Protocol, None)),
                    Ok(response) => Ok(Answer { response, lease: Lease::H2 { slot } }),
                    Err(mut error) => {
                        // The request came back unsent, or the peer says that it did not look at it
                        // (RFC 9113 section 8.7: REFUSED_STREAM, or GOAWAY below its number).
                        let unsent = error.take_message().is_some();
                        let error = error.into_error();
                        let refused = h2_error(&error).is_some_and(|h2| {
                            h2.reason() == Some(h2::Reason::REFUSED_STREAM)
                                || (h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR))
                        });
                        let again = unsent || refused;
                        Err((SendFault::Reset, again.then_some(RetryReason::Reset)))
                    }
                }
            }
        }
    }

    /// Sends an upgrade request over a line of its own and returns the answer's head, whatever its
    /// status is.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn upgrade(&self, head: &RequestHead, upload: &Rc<Upload>) -> Result<Answer, SendFault> {
        let metrics = self.handles.upstream(self.id);
        let mut tried = 0_u64;
        let mut attempt = 1;
        let (endpoint, mut line) = loop {
            let (place, endpoint) = self.choose(tried);
            match endpoint.upgrade_line().await {
                Ok(line) => break (endpoint, line),
                Err(_) if attempt < self.attempts => {
                    tried |= 1 << (place % 64);
                    attempt += 1;
                    metrics.retries(RetryReason::Connect).inc();
                }
                Err(fault) => {
                    metrics.failures(FailureReason::Connect).inc();
                    return Err(fault);
                }
            }
        };
        let request = head.to_h1(&endpoint.config, RequestBody(upload.clone())).ok_or(SendFault::Protocol)?;
        match line.send(request).await {
            Ok(response) if !framed_well(&response) => {
                metrics.failures(FailureReason::Protocol).inc();
                Err(SendFault::Protocol)
            }
            Ok(response) => {
                let lease = Lease::H1(H1Lease { line, endpoint: endpoint.clone(), tenant: Tenant::Nobody });
                Ok(Answer { response, lease })
            }
            Err(fault) => {
                let protocol = match fault {
                    LineFault::Http(error) => error.is_parse(),
                    LineFault::Informational => {
                        self.handles.guard(Guard::UpstreamInformational).inc();
                        true
                    }
                };
                metrics.failures(if protocol { FailureReason::Protocol } else { FailureReason::Reset }).inc();
                Err(if protocol { SendFault::Protocol } else { SendFault::Reset })
            }
        }
    }

    /// The endpoint whose turn it is: healthy and not `tried` if there is one, else not tried, else any.
    fn choose(&self, tried: u64) -> (usize, &Rc<Endpoint>) {
        if let [only] = self.endpoints.as_slice() {
            return (0, only);
        }
        let now = Instant::now();
        let untried = |place: usize| tried & (1 << (place % 64)) == 0;
        let pick = |eligible: &dyn Fn(usize) -> bool| {
            let mut total = 0;
            let mut best: Option<usize> = None;
            for (place, endpoint) in self.endpoints.iter().enumerate() {
                if !eligible(place) {
                    continue;
                }
                let weight = i64::from(endpoint.config.weight);
                total += weight;
                self.turns[place].set(self.turns[place].get() + weight);
                if best.is_none_or(|best| self.turns[place].get() > self.turns[best].get()) {
                    best = Some(place);
                }
            }
            if let Some(best) = best {
                self.turns[best].set(self.turns[best].get() - total);
            }
            best
        };
        let place = pick(&|place| untried(place) && self.endpoints[place].healthy(now))
            .or_else(|| pick(&untried))
            .or_else(|| pick(&|_| true))
            .unwrap_or(0);
        (place, &self.endpoints[place])
    }

    /// Closes idle lines and keeps none from now on.
    pub(crate) fn retire(&self) {
        for endpoint in &self.endpoints {
            endpoint.retire();
        }
    }

    /// Once a second: closes idle lines and tells the dashboards how the endpoints are. An upstream is
    /// down when some worker can reach none of its endpoints, until a connect succeeds.
    pub(crate) fn sweep(&self) {
        for endpoint in &self.endpoints {
            endpoint.sweep();
        }
        let is_down = self.endpoints.iter().all(|endpoint| endpoint.failing());
        if self.is_down.replace(is_down) == is_down {
            return;
        }
        let metrics = self.handles.upstream(self.id);
        if is_down {
            if self.down.fetch_add(1, Relaxed) == 0 {
                metrics.set_up(false);
                log::emit(Event::UpstreamDown { upstream: metrics.name().clone() });
            }
        } else if self.down.fetch_sub(1, Relaxed) == 1 {
            metrics.set_up(true);
            log::emit(Event::UpstreamUp { upstream: metrics.name().clone() });
        }
    }
}

impl RequestHead {
    fn to_h1(&self, endpoint: &config::Endpoint, body: RequestBody) -> Option<http::Request<RequestBody>> {
        let uri: Uri = self.path_at(endpoint).parse().ok()?;
        let mut request = self.with_body(uri, body);
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(&endpoint.authority()).ok()?);
        Some(request)
    }

    fn to_h2(&self, endpoint: &config::Endpoint, body: RequestBody) -> Option<http::Request<RequestBody>> {
        let uri = Uri::builder()
            .scheme("https")
            .authority(endpoint.authority())
            .path_and_query(self.path_at(endpoint))
            .build()
            .ok()?;
        let mut request = self.with_body(uri, body);
        *request.version_mut() = http::Version::HTTP_2;
        Some(request)
    }

    fn path_at(&self, endpoint: &config::Endpoint) -> String {
        let mut path = String::with_capacity(endpoint.base_path.len() + self.path.len());
        path.push_str(&endpoint.base_path);
        path.push_str(&self.path);
        path
    }

    fn with_body(&self, uri: Uri, body: RequestBody) -> http::Request<RequestBody> {
        let mut request = http::Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

impl config::Endpoint {
    /// Host, and the port where it is not the scheme's own.
    fn authority(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

/// Whether the body's length can be read in one way only. hyper takes `gzip, chunked` for chunked, and
/// chunks for the length if both are there; the coding would be lost on the way to the client.
fn framed_well<B>(response: &http::Response<B>) -> bool {
    let headers = response.headers();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() || length.is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return false;
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none(),
        _ => false,
    }
}

/// The h2 error inside hyper's.
pub(crate) fn h2_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a h2::Error> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return Some(h2);
        }
        source = error.source();
    }
    None
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}
