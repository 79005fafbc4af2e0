//! The way to the providers: one pool a worker and upstream, and [`Upstream::send`], which gets an
//! answer's head for a request's head.

mod connect;
mod endpoint;
mod h1_line;
mod h2_line;
mod resolve;
mod upload;

use std::cell::Cell;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::time::Instant;

use http::Method;
use http::StatusCode;
use http::Uri;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;

use crate::config;
use crate::config::UpstreamProtocol;
use crate::h1;
use crate::hygiene::Chunk;
use crate::incoming::Broken;
use crate::incoming::Incoming;
use crate::incoming::h2_error;
use crate::message::Fields;
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
pub(crate) use endpoint::Open as OpenLine;
use h1_line::H1Line;
use h1_line::LineFault;
use h2_line::H2Slot;
pub(crate) use upload::Approve;
pub(crate) use upload::RequestBody;
pub(crate) use upload::Upload;
pub(crate) use upload::UploadFault;

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
    pub(crate) headers: Fields,
}

/// An answer: its head, and where its body comes from.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Fields,
    pub(crate) body: Inflow,
}

/// An answer's body on its way in, with the line that it comes over.
pub(crate) enum Inflow {
    H1(H1Lease),
    H2 { body: Incoming, slot: H2Slot },
}

/// An h1 line on loan from its endpoint.
pub(crate) struct H1Lease {
    line: Box<H1Line>,
    endpoint: Rc<Endpoint>,
    tenant: Tenant,
}

impl Inflow {
    /// The next piece. The line brings it, and sends what is left of the request, only when this is called.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Broken>>> {
        match self {
            Self::H1(lease) => lease.line.poll_frame(cx),
            Self::H2 { body, slot } => {
                let mut polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &mut polled
                    && let Some(trailers) = frame.trailers_mut()
                    && !slot.stand_ins().restore_headers(trailers)
                {
                    return Poll::Ready(Some(Err(Broken::Cut)));
                }
                polled
            }
        }
    }

    /// Whether all of it has come.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(lease) => lease.line.is_end_stream(),
            Self::H2 { body, .. } => body.is_end_stream(),
        }
    }

    /// What is still to come.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(lease) => lease.line.size_hint(),
            Self::H2 { body, .. } => body.size_hint(),
        }
    }

    /// Lets the line send more of the request without asking for the answer. `Ready` when it has broken.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(lease) => lease.line.drive(cx),
            // Its connection's own task does.
            Self::H2 { .. } => Poll::Pending,
        }
    }

    /// Takes the connection out after a 101. `None` if there is none.
    pub(crate) fn into_switched(self) -> Option<Switched> {
        match self {
            Self::H1(lease) => Some(lease.line.into_switched()),
            Self::H2 { .. } => None,
        }
    }

    /// The answer has been read to its end, by `now`; the line may serve its tenant again.
    pub(crate) fn give_back(self, now: Instant) {
        if let Self::H1(H1Lease { line, endpoint, tenant }) = self {
            endpoint.give_back(tenant, line, now);
        }
    }
}

/// A connection after its 101: no HTTP on it any more.
pub(crate) struct Switched {
    pub(crate) transport: Transport,
    pub(crate) watch: SocketWatch,
    /// What was read beyond the head.
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
        match line {
            Line::H1(mut line, age) => match line.send(head, &endpoint.config, upload).await {
                // A switch that nobody asked for (RFC 9110 section 15.2.2).
                Ok(answer) if answer.status == StatusCode::SWITCHING_PROTOCOLS => Err((SendFault::Protocol, None)),
                Ok(h1::ResponseHead { status, headers, .. }) => {
                    let body = Inflow::H1(H1Lease { line, endpoint: endpoint.clone(), tenant });
                    Ok(Answer { status, headers, body })
                }
                Err(LineFault::Informational) => {
                    self.handles.guard(Guard::UpstreamInformational).inc();
                    Err((SendFault::Protocol, None))
                }
                Err(LineFault::Malformed) => Err((SendFault::Protocol, None)),
                // A pooled line that died while idle; with nothing of the answer read.
                Err(LineFault::Gone { heard }) => {
                    let stale = age == LineAge::Pooled && !heard;
                    let repeatable = head.method.is_idempotent() || !upload.ended();
                    Err((SendFault::Reset, (stale && repeatable).then_some(RetryReason::Reset)))
                }
                Err(LineFault::Upload) => Err((SendFault::Reset, None)),
            },
            Line::H2(slot, mut sender) => {
                let mut request =
                    head.to_h2(&endpoint.config, RequestBody(upload.clone())).ok_or((SendFault::Protocol, None))?;
                let _departure = slot.stand_ins().replace_request(&mut request);
                let mut answer = sender.try_send_request(request).await;
                if let Ok(response) = &mut answer
                    && !slot.stand_ins().restore_headers(response.headers_mut())
                {
                    return Err((SendFault::Protocol, None));
                }
                match answer {
                    Ok(response) if response.status().is_informational() => Err((SendFault::Protocol, None)),
                    Ok(response) => {
                        let (parts, body) = response.into_parts();
                        let body = Inflow::H2 { body: Incoming::h2(body), slot };
                        Ok(Answer { status: parts.status, headers: parts.headers.into(), body })
                    }
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
        match line.send(head, &endpoint.config, upload).await {
            Ok(h1::ResponseHead { status, headers, .. }) => {
                let body = Inflow::H1(H1Lease { line, endpoint: endpoint.clone(), tenant: Tenant::Nobody });
                Ok(Answer { status, headers, body })
            }
            Err(fault) => {
                if fault == LineFault::Informational {
                    self.handles.guard(Guard::UpstreamInformational).inc();
                }
                let protocol = matches!(fault, LineFault::Malformed | LineFault::Informational);
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
    fn to_h2(&self, endpoint: &config::Endpoint, body: RequestBody) -> Option<http::Request<RequestBody>> {
        let uri = Uri::builder()
            .scheme("https")
            .authority(endpoint.authority())
            .path_and_query([&endpoint.base_path, self.path.as_str()].concat())
            .build()
            .ok()?;
        let mut request = http::Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone().into();
        *request.version_mut() = http::Version::HTTP_2;
        Some(request)
    }
}

impl config::Endpoint {
    /// Host, and the port where it is not the scheme's own.
    fn authority(&self) -> String {
        let default = if self.tls { 443 } else { 80 };
        if self.port == default { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}
