//! WebSockets: an upgrade relayed, then two directions of frames, byte for byte.
//!
//! The upstream's side is always an h1 upgrade on a connection of its own. The client's side is an
//! h1 upgrade (RFC 6455) or an extended CONNECT on h2 (RFC 8441). What the upstream says is walked and
//! not changed (`frames`), so that the meter sees messages and a frame of ours can stand between two of
//! them. What the client says is, too, unless a policy reads it: then its messages go on in frames of
//! nullhop's own (`judged`), and one that breaks a rule does not go on (`refusal`).

mod asked;
mod client_side;
mod frames;
mod judged;
mod objects;
mod refusal;
mod spending;
mod tunnel;

use std::any::Any;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use aws_lc_rs::digest;
use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;
use base64::Engine;
use http::HeaderValue;
use http::Method;
use http::StatusCode;

use super::AnswerBody;
use super::Refused;
use super::Way;
use super::head;
use crate::admission::Refusal;
use crate::drain::DrainWatcher;
use crate::incoming::Incoming;
use crate::message::Fields;
use crate::message::Known;
use crate::message::Request;
use crate::message::Response;
use crate::message::Value;
use crate::message::name;
use crate::meter::Api;
use crate::meter::Framing;
use crate::meter::Meter;
use crate::provider::Provider;
use crate::retention::Denied;
use crate::retention::Editor;
use crate::retention::Policy;
use crate::socket::SocketWatch;
use crate::stand_in::Pad;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Source;
use crate::telemetry::models::model_in_path;
use crate::upstream::RequestHead;
use crate::upstream::SendFault;
use crate::upstream::Upload;

use client_side::Coming;
#[cfg(fuzzing)]
pub(crate) use frames::walked;
use judged::Desk;
use judged::Edit;
use objects::Objects;
use refusal::Events;
use spending::Spending;
use tunnel::Tunnel;

/// The client's side of a WebSocket, beside its bytes.
pub(crate) struct Peer {
    /// The client's socket, for h1; an h2 stream is guarded with its connection.
    pub(crate) watch: Option<SocketWatch>,
    /// Resets the client's stream, for h2.
    pub(crate) cut: StreamCut,
    pub(crate) drain: DrainWatcher,
    pub(crate) write_stall: Duration,
    /// The connection's places and gauges, which must be held as long.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) hold: Rc<dyn Any>,
}

/// Who looks at a socket's messages.
struct Watched {
    meter: Option<Meter>,
    /// `None`: the client's frames pass as they are.
    desk: Option<Box<dyn Desk>>,
    events: Events,
    spending: Option<Rc<Spending>>,
}

impl Watched {
    /// To be called while the way has its path.
    ///
    /// # Errors
    /// When policy does not allow a socket at this path.
    fn of(way: &Way) -> Result<Self, Denied> {
        let upstream = way.upstream_config();
        let (path, query) = match way.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (way.path.as_str(), None),
        };
        let policy = way.permit.policy();
        // All of an upstream's endpoints are one vendor's.
        let host = upstream.endpoints.first().map(|endpoint| endpoint.host.clone()).unwrap_or_default();
        policy.read_upgrade(upstream.provider, &host, path, query)?;
        let meter = Api::of(upstream.provider, path).map(|api| Meter::new(api, Framing::Messages));
        let messages = Messages { policy, provider: upstream.provider, host, path: path.to_owned() };
        // Where messages need no reading they pass as they are.
        let desk = messages.editor().map(|_| Box::new(messages) as Box<dyn Desk>);
        let handles = way.tally.handles();
        let model = model_in_path(&way.path).map(|model| handles.models().find(model.as_bytes()));
        let spending = Spending::of(&way.permit, handles, model);
        Ok(Self { meter, desk, events: Events::of(upstream.provider, way.operation), spending })
    }
}

/// Gives each message of a socket an editor by the policy.
struct Messages {
    policy: Policy,
    provider: Provider,
    host: String,
    path: String,
}

impl Messages {
    fn editor(&self) -> Option<Editor> {
        self.policy.read_message(self.provider, &self.host, &self.path)
    }
}

/// For sockets whose messages need no reading but for their limits.
struct Unread;

impl Desk for Unread {
    fn open(&mut self) -> Option<Box<dyn Edit>> {
        None
    }
}

impl Desk for Messages {
    fn open(&mut self) -> Option<Box<dyn Edit>> {
        self.editor().map(|editor| Box::new(Objects::new(editor)) as Box<dyn Edit>)
    }
}

/// Says how the client's h2 stream ends: hyper ends the stream in order when its upgraded half is
/// dropped, which a client would take for the whole. Seen by whoever polls hyper's sending task.
#[derive(Clone, Default)]
pub(crate) struct StreamCut(Rc<Cell<bool>>);

impl StreamCut {
    /// The stream shall be reset instead of ended.
    pub(crate) fn is_set(&self) -> bool {
        self.0.get()
    }
}

/// Whether a request asks for a WebSocket; by either of the two ways.
pub(crate) fn is_upgrade(request: &Request<Incoming>) -> bool {
    is_extended_connect(request)
        || (request.method() == Method::GET
            && request.version() == http::Version::HTTP_11
            && has_token(request.headers(), name::CONNECTION, "upgrade")
            && has_token(request.headers(), name::UPGRADE, "websocket"))
}

fn is_extended_connect(request: &Request<Incoming>) -> bool {
    request.method() == Method::CONNECT
        && request.extensions().get::<hyper::ext::Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket")
}

fn has_token(headers: &Fields, name: Known, token: &str) -> bool {
    headers
        .get_all(name)
        .filter_map(Value::text)
        .any(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

/// Relays an upgrade. After a 101 the frames go on in a task of their own; any other answer is
/// passed on as it is.
///
/// # Errors
/// When there is no head of an answer to pass on.
pub(crate) async fn upgrade(
    mut request: Request<Incoming>,
    mut way: Way,
    peer: Peer,
) -> Result<Response<AnswerBody>, Refused> {
    let extended = is_extended_connect(&request);
    let client_key = request.headers().get(name::SEC_WEBSOCKET_KEY).and_then(Value::kept);
    let version_13 = request.headers().get(name::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    if !version_13 || (!extended && client_key.is_none()) {
        return Err(Refused { refusal: Refusal::Malformed, tally: way.tally });
    }
    let client_side = Coming::of(&mut request);
    let pad = request.extensions_mut().remove::<Pad>();
    let (parts, body) = request.into_parts();
    let upload = Upload::new(body, 0, way.tally.request_bytes(), None, way.tally.started());
    let protocols = parts.headers.get_all(name::SEC_WEBSOCKET_PROTOCOL).filter_map(Value::kept).collect::<Vec<_>>();
    let mut headers = head::request_headers(parts.headers, way.upstream_config().privacy, false);
    headers.remove(name::ACCEPT_ENCODING);
    headers.insert(name::CONNECTION, Value::of("Upgrade"));
    headers.insert(name::UPGRADE, Value::of("websocket"));
    headers.insert(name::SEC_WEBSOCKET_VERSION, Value::of("13"));
    // `Sec-WebSocket-Extensions` is not passed on: deflated messages could not be counted.
    for protocol in protocols {
        headers.append(name::SEC_WEBSOCKET_PROTOCOL, &protocol);
    }
    way.permit.present(way.upstream_config().provider, &way.path, &mut headers);
    // An extended CONNECT carries no key (RFC 8441 section 5); the upstream needs one.
    let key = match client_key {
        Some(key) if !extended => key,
        _ => new_key(),
    };
    headers.insert(name::SEC_WEBSOCKET_KEY, &key);
    let watched = match Watched::of(&way) {
        Ok(watched) => watched,
        Err(denied) => return Err(Refused { refusal: super::denied_to(&way, denied), tally: way.tally }),
    };
    if let Some(model) = model_in_path(&way.path) {
        way.tally.requested(model.as_bytes());
    }
    let head = RequestHead { method: Method::GET, path: std::mem::take(&mut way.path), headers };
    let head_timeout = way.upstream_config().head_timeout;
    let sent = Instant::now();
    let answer = match tokio::time::timeout(head_timeout, way.upstream.upgrade(&head, &upload)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(fault)) => {
            let refusal = match fault {
                SendFault::Crowded => Refusal::Overloaded,
                SendFault::Protocol => Refusal::UpstreamProtocol,
                _ => Refusal::UpstreamUnreachable,
            };
            return Err(Refused { refusal, tally: way.tally });
        }
        Err(_) => return Err(Refused { refusal: Refusal::UpstreamTimeout, tally: way.tally }),
    };
    way.tally.handles().upstream(way.upstream.id).response_head_seconds.observe(sent.elapsed());
    if way.permit.answered(answer.status.as_u16(), &answer.headers) {
        return Err(Refused { refusal: Refusal::ProviderKey, tally: way.tally });
    }
    if answer.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(super::pass_on(answer, upload, way, Instant::now()));
    }
    let accepted =
        answer.headers.get(name::SEC_WEBSOCKET_ACCEPT).is_some_and(|value| value == Value::from(&accept_for(&key)));
    // An extension that nobody offered would make frames that nobody can read.
    let unasked = answer.headers.contains_key(name::SEC_WEBSOCKET_EXTENSIONS);
    if !accepted || unasked {
        way.tally.handles().guard(Guard::UpstreamBadAnswer).inc();
        return Err(Refused { refusal: Refusal::UpstreamProtocol, tally: way.tally });
    }
    let headers = head::response_headers(answer.headers.clone());
    let mut response = Response::of(StatusCode::SWITCHING_PROTOCOLS, headers, ());
    way.permit.rewrite_answer(way.dialect, Instant::now(), response.headers_mut());
    if let Some(protocol) = answer.headers.get(name::SEC_WEBSOCKET_PROTOCOL) {
        response.headers_mut().insert(name::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    if extended {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(name::CONTENT_LENGTH);
    } else {
        response.headers_mut().insert(name::CONNECTION, Value::of("Upgrade"));
        response.headers_mut().insert(name::UPGRADE, Value::of("websocket"));
        response.headers_mut().insert(name::SEC_WEBSOCKET_ACCEPT, &accept_for(&key));
    }
    let Some(switched) = answer.body.into_switched() else {
        return Err(Refused { refusal: Refusal::UpstreamUnreachable, tally: way.tally });
    };
    way.tally.answered(101, Source::Upstream, true, Instant::now());
    let silence_max = way.upstream_config().silence_timeout;
    let tally = way.tally;
    tokio::task::spawn_local(async move {
        let Some(client) = client_side.here().await else { return };
        Tunnel::new(client, pad, switched, tally, peer, silence_max, watched).run().await;
    });
    Ok(response.map(|()| AnswerBody::empty()))
}

/// 16 random bytes in base64 (RFC 6455 section 4.1).
fn new_key() -> HeaderValue {
    let mut nonce = [0_u8; 16];
    // A nonce of zeros is as good: it is no secret, it only shows that the server read the request.
    let _ = SystemRandom::new().fill(&mut nonce);
    base64(&nonce)
}

/// RFC 6455 section 4.2.2, item 5.4.
fn accept_for(key: &HeaderValue) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(context.finish().as_ref())
}

fn base64(bytes: &[u8]) -> HeaderValue {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_key_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_for(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
