//! One exchange, straight through: head rewritten, request body out, answer back.
//!
//! Before the answer's head is known a fault becomes a [`Refusal`]; afterwards it can only cut the
//! stream. [`exchange`] is the whole of it; `body` carries the answer, `websocket` what follows a 101.

#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
mod body;
mod head;
mod hide;
mod record;
mod tally;
mod usage;
mod websocket;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use http::StatusCode;
use http_body::Body;

use crate::admission::Permit;
use crate::admission::Refusal;
use crate::config;
use crate::incoming::Incoming;
use crate::message::Fields;
use crate::message::Request;
use crate::message::Response;
use crate::message::name;
use crate::meter::Api;
use crate::provider::Dialect;
use crate::provider::Operation;
use crate::provider::Provider;
use crate::retention::Denied;
use crate::retention::Editor;
use crate::telemetry::labels::FailureReason;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Phase;
use crate::telemetry::labels::Source;
use crate::telemetry::models::model_in_path;
use crate::upstream::Answer;
use crate::upstream::Approve;
use crate::upstream::RequestHead;
use crate::upstream::SendFault;
use crate::upstream::Upload;
use crate::upstream::UploadFault;
use crate::upstream::Upstream;

pub(crate) use body::AnswerBody;
pub(crate) use body::BodyFault;
use body::Relayed;
pub(crate) use body::StallMark;
use body::Stream;
pub(crate) use record::Names as RecordNames;
pub(crate) use record::Recorder;
pub(crate) use tally::Tally;
use usage::Call;
use usage::Look;
pub(crate) use websocket::Peer;
pub(crate) use websocket::StreamCut;
pub(crate) use websocket::is_upgrade;
pub(crate) use websocket::upgrade;
#[cfg(fuzzing)]
pub(crate) use websocket::walked;

/// A client that still sends when its answer is ready may go on for this long and this much, so
/// that it comes to reading it. Closing at once would reset the connection, answer and all.
const REST_TIME: Duration = Duration::from_secs(20);
const REST_BYTES: u64 = 64 << 20;

/// What an exchange needs to know beside the request.
pub(crate) struct Way {
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) config: Arc<config::Config>,
    /// Place of the upstream in the configuration.
    pub(crate) place: usize,
    pub(crate) operation: Operation,
    /// Path and query at the upstream.
    pub(crate) path: String,
    pub(crate) permit: Rc<Permit>,
    pub(crate) dialect: Dialect,
    pub(crate) tally: Tally,
    pub(crate) stall: StallMark,
}

/// An exchange that got no answer's head: what to say, the account, and what is left of the body.
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) tally: Tally,
}

impl Way {
    fn upstream_config(&self) -> &config::Upstream {
        &self.config.upstreams[self.place]
    }

    fn billed_api(&self, method: &http::Method) -> Option<Api> {
        billed_api(self.upstream_config().provider, method, self.operation, &self.path)
    }

    fn body_bytes_max(&self) -> u64 {
        let limits = &self.config.limits;
        let default = if self.operation.uploads() { limits.upload_bytes } else { limits.body_bytes };
        self.upstream_config().body_bytes.unwrap_or(default)
    }
}

/// The API of a call that is billed by tokens; `path` may have a query. Reading what was stored, and counting tokens, is
/// free.
pub(crate) fn billed_api(provider: Provider, method: &http::Method, operation: Operation, path: &str) -> Option<Api> {
    if *method != http::Method::POST || operation == Operation::CountTokens {
        return None;
    }
    Api::of(provider, without_query(path))
}

/// Relays one request and returns its answer, whose body goes on relaying.
///
/// # Errors
/// When there is no head of an answer to pass on.
pub(crate) async fn exchange(request: Request<Incoming>, mut way: Way) -> Result<Response<AnswerBody>, Refused> {
    let bytes_max = way.body_bytes_max();
    let (parts, body) = request.into_parts();
    if body.size_hint().lower() > bytes_max {
        way.tally.handles().guard(Guard::BodyTooLarge).inc();
        drain_rest(Some(body));
        return Err(Refused { refusal: Refusal::BodyTooLarge, tally: way.tally });
    }
    let mut parts = parts;
    let editor = match read_head(&way, &parts.method, &mut parts.headers) {
        Ok(editor) => editor,
        Err(denied) => {
            drain_rest(Some(body));
            return Err(Refused { refusal: denied_to(&way, denied), tally: way.tally });
        }
    };
    let empty = body.is_end_stream() && editor.is_none();
    let in_path = model_in_path(&way.path);
    let named = in_path.map(|model| way.tally.handles().models().find(model.as_bytes()));
    if editor.is_none()
        && let Err(refusal) = way.permit.approve_unread(named)
    {
        drain_rest(Some(body));
        return Err(Refused { refusal, tally: way.tally });
    }
    let editor = editor.map(|mut editor| {
        editor.limit(bytes_max);
        (editor, way.tally.handles().clone(), way.permit.clone() as Rc<dyn Approve>)
    });
    let upload = Upload::new(body, bytes_max, way.tally.request_bytes(), editor, way.tally.started());
    let api = way.billed_api(&parts.method);
    if let Some(api) = api {
        way.tally.billed(&upload, Call { api, array: without_query(&way.path).ends_with(":streamGenerateContent") });
        if let Some(model) = in_path {
            way.tally.requested(model.as_bytes());
        }
    }
    let mut headers = head::request_headers(parts.headers, way.upstream_config().privacy, empty);
    way.permit.present(way.upstream_config().provider, &way.path, &mut headers);
    let head = RequestHead { method: parts.method, path: std::mem::take(&mut way.path), headers };
    let sent = Instant::now();
    way.tally.handles().overhead(Phase::Request).observe(way.tally.age(sent));
    match await_head(&way, &head, &upload, sent).await {
        Ok(answer) if way.permit.answered(answer.status.as_u16(), &answer.headers) => {
            drain_rest(upload.take_rest());
            Err(Refused { refusal: Refusal::ProviderKey, tally: way.tally })
        }
        Ok(answer) => {
            let came = Instant::now();
            let handles = way.tally.handles().clone();
            handles.upstream(way.upstream.id).response_head_seconds.observe(came.saturating_duration_since(sent));
            let response = pass_on(answer, upload, way, came);
            handles.overhead(Phase::ResponseHead).observe(came.elapsed());
            Ok(response)
        }
        Err(refusal) => {
            drain_rest(upload.take_rest());
            Err(Refused { refusal, tally: way.tally })
        }
    }
}

/// What policy says to a request's head.
fn read_head(way: &Way, method: &http::Method, headers: &mut Fields) -> Result<Option<Editor>, Denied> {
    let upstream = way.upstream_config();
    let policy = way.permit.policy();
    let (path, query) = match way.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (way.path.as_str(), None),
    };
    let endpoint = upstream.endpoints.first();
    // A base path is a part of what the provider reads, and cannot name anything that a rule is about.
    let host = endpoint.map_or("", |endpoint| endpoint.host.as_str());
    policy.read_head(upstream.provider, host, method, path, query, headers)
}

/// Counts what policy has refused.
fn denied_to(way: &Way, denied: Denied) -> Refusal {
    if let Denied::Rule(rule) = denied {
        way.tally.handles().upstream(way.upstream.id).retention_refused(rule);
    }
    Refusal::Policy(denied)
}

/// Sends the request and waits for the head of its answer, with an eye on the upload and the clock.
async fn await_head(way: &Way, head: &RequestHead, upload: &Rc<Upload>, started: Instant) -> Result<Answer, Refusal> {
    let limits = &way.config.limits;
    let head_timeout = way.upstream_config().head_timeout;
    let metrics = way.tally.handles().upstream(way.upstream.id);
    let mut send = std::pin::pin!(way.upstream.send(head, upload, way.permit.tenant));
    let mut rate = RateWatch::new(started, limits.body_grace, limits.body_rate_min);
    let mut alarm = std::pin::pin!(tokio::time::sleep_until((started + head_timeout.min(limits.body_grace)).into()));
    let mut early: Option<Answer> = None;
    let answer = std::future::poll_fn(|cx| {
        upload.watch(cx);
        if early.is_none()
            && let Poll::Ready(answer) = send.as_mut().poll(cx)
        {
            match answer {
                // An answer that began before the request was let through waits for that. One that says no may go.
                Ok(answer) if upload.undecided() && answer.status.as_u16() < 400 => early = Some(answer),
                Ok(_) if matches!(upload.fault(), Some(UploadFault::Denied(_) | UploadFault::Limited)) => {}
                Ok(answer) => return Poll::Ready(Ok(answer)),
                Err(fault) => return Poll::Ready(Err(refusal_of(fault, way, upload))),
            }
        }
        if let Some(answer) = &mut early {
            // On h1 the rest of the request goes on only if somebody drives the line.
            let over = answer.body.drive(cx).is_ready();
            if upload.fault().is_none() && (over || !upload.undecided()) {
                return Poll::Ready(match upload.undecided() {
                    true => Err(Refusal::UpstreamUnreachable),
                    false => early.take().ok_or(Refusal::UpstreamProtocol),
                });
            }
        }
        if upload.fault().is_some() {
            return Poll::Ready(Err(refusal_of(SendFault::Upload, way, upload)));
        }
        while alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if !upload.ended() && rate.too_slow(upload, now) {
                upload.fail(UploadFault::TooSlow);
                return Poll::Ready(Err(Refusal::BodyTooSlow));
            }
            let deadline = upload.last_byte().max(started) + head_timeout;
            if deadline <= now {
                metrics.failures(FailureReason::HeadTimeout).inc();
                return Poll::Ready(Err(Refusal::UpstreamTimeout));
            }
            let next = if upload.ended() { deadline } else { deadline.min(now + limits.body_grace) };
            alarm.as_mut().reset(next.into());
        }
        Poll::Pending
    })
    .await;
    if let Err(refusal) = &answer {
        if let Refusal::Policy(denied) = refusal {
            denied_to(way, *denied);
        }
        let guard = match refusal {
            Refusal::BodyTooLarge => Some(Guard::BodyTooLarge),
            Refusal::BodyTooSlow => Some(Guard::BodyTooSlow),
            Refusal::Malformed => Some(Guard::BadFraming),
            Refusal::UpstreamProtocol => Some(Guard::UpstreamBadAnswer),
            _ => None,
        };
        if let Some(guard) = guard {
            way.tally.handles().guard(guard).inc();
        }
    }
    answer
}

fn refusal_of(fault: SendFault, way: &Way, upload: &Upload) -> Refusal {
    match (fault, upload.fault()) {
        (_, Some(UploadFault::TooLarge)) => Refusal::BodyTooLarge,
        (_, Some(UploadFault::TooSlow)) => Refusal::BodyTooSlow,
        (_, Some(UploadFault::BadFraming)) => Refusal::Malformed,
        (_, Some(UploadFault::ClientGone)) => Refusal::ClientGone,
        (_, Some(UploadFault::Denied(denied))) => Refusal::Policy(denied),
        (_, Some(UploadFault::Limited)) => way.permit.refused(),
        (SendFault::Crowded, _) => Refusal::Overloaded,
        (SendFault::Protocol, _) => Refusal::UpstreamProtocol,
        (SendFault::Connect | SendFault::Reset | SendFault::Upload, _) => Refusal::UpstreamUnreachable,
    }
}

fn pass_on(answer: Answer, upload: Rc<Upload>, mut way: Way, came: Instant) -> Response<AnswerBody> {
    let Answer { status, headers, body } = answer;
    let mut headers = head::response_headers(headers);
    way.permit.rewrite_answer(way.dialect, came, &mut headers);
    let kind = headers.get(name::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let events = kind.starts_with(b"text/event-stream");
    let mut streaming = events || kind.starts_with(b"application/vnd.amazon.eventstream");
    if let Some(call) = way.tally.call()
        && status.is_success()
    {
        let look = Look::new(call, &headers);
        streaming |= look.streams();
        way.tally.look(look);
    }
    way.tally.answered(status.as_u16(), Source::Upstream, streaming, came);
    // What comes encoded cannot be taken out of; its client sees one event more.
    let hide = events && upload.facts().usage_added && plain(&headers);
    if hide {
        headers.remove(name::CONTENT_LENGTH);
    }
    let outcome = outcome_of(status);
    let (silence_max, abort_drain) = (way.upstream_config().silence_timeout, way.upstream_config().abort_drain);
    let stream = Stream::new(body, upload, way.tally, way.stall, silence_max, outcome, abort_drain);
    Response::of(status, headers, AnswerBody::Relayed(Relayed::new(stream, hide)))
}

/// Whether an answer's body comes as it is.
fn plain(headers: &Fields) -> bool {
    let mut values = headers.get_all(name::CONTENT_ENCODING);
    values.all(|value| matches!(value.as_bytes().trim_ascii(), b"") || value == "identity")
}

fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

/// What an answer that ends well counts as.
fn outcome_of(status: StatusCode) -> Outcome {
    match status.as_u16() {
        429 | 529 => Outcome::UpstreamLimited,
        400..=499 => Outcome::UpstreamRejected,
        500..=599 => Outcome::UpstreamError,
        _ => Outcome::Ok,
    }
}

/// Reads and clears what a client still sends, within bounds, beside everything else.
pub(crate) fn drain_rest(rest: Option<Incoming>) {
    let Some(mut rest) = rest else { return };
    if rest.is_end_stream() {
        return;
    }
    tokio::task::spawn_local(async move {
        let mut left = REST_BYTES;
        let _ = tokio::time::timeout(REST_TIME, async {
            while let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await {
                let bytes = frame.data_ref().map_or(0, |data| data.as_slice().len() as u64);
                let Some(rest) = left.checked_sub(bytes) else { return };
                left = rest;
            }
        })
        .await;
    });
}

/// Whether a client that sends too little per second is to blame for it.
struct RateWatch {
    window: Duration,
    bytes_per_second_min: u64,
    since: Instant,
    bytes: u64,
    waited: Duration,
}

impl RateWatch {
    fn new(now: Instant, window: Duration, bytes_per_second_min: u64) -> Self {
        Self { window, bytes_per_second_min, since: now, bytes: 0, waited: Duration::ZERO }
    }

    /// Looks at the window that ends now, if it is over, and starts the next.
    fn too_slow(&mut self, upload: &Upload, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < self.window || self.bytes_per_second_min == 0 {
            return false;
        }
        let waited = upload.waited_for_client(now);
        // An upstream that does not read makes the client slow as well; that is not its fault.
        let clients_fault = waited.saturating_sub(self.waited) * 10 >= elapsed * 9;
        let bytes = upload.bytes() - self.bytes;
        let slow = clients_fault && bytes < self.bytes_per_second_min.saturating_mul(elapsed.as_secs());
        self.since = now;
        self.bytes = upload.bytes();
        self.waited = waited;
        slow
    }
}
