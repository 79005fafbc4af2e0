//! The scripted provider: one thread, several ports, and for each request the plan that it names.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use aws_lc_rs::digest;
use base64::Engine;
use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use hyper::body::Incoming;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::client::Wire;
use crate::scripted;
use crate::scripted::Gate;
use crate::scripted::Port;
use crate::scripted::Script;
use crate::scripted::Step;

/// The request header that names a plan. It passes nullhop like any other.
pub(super) const PLAN: &str = "x-nullhop-prove";

/// The request header and the response header that carry words.
pub(super) const NOTE: &str = "x-nullhop-prove-note";
pub(super) const REPLY: &str = "x-nullhop-prove-reply";

/// What is done with one request.
pub(super) struct Plan {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) reading: Reading,
    /// Value of the header [`REPLY`].
    pub(super) reply: String,
    pub(super) steps: Vec<Step>,
    /// Parts of the head that must have arrived: in the path and query, in the credential, in the header [`NOTE`].
    pub(super) expected: [String; 4],
}

/// How the request's body is read.
pub(super) enum Reading {
    /// All of it, before the answer.
    Whole,
    /// None of it, ever.
    Never,
    /// It is a WebSocket: a message of so many bytes in, these bytes out, in turns, then so many bytes in once more.
    WebSocket { turns: Vec<(usize, Bytes)>, last: usize },
}

/// What the provider saw of a request; shared with whoever made the plan.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) body_bytes: AtomicU64,
    /// 0: no such request came. 1: without its words. 2 and 3: whole, by HTTP/1.1 and HTTP/2.
    head: AtomicU32,
}

impl Seen {
    /// The HTTP version, 1 or 2, of a head that arrived with all its words.
    pub(super) fn version(&self) -> Option<u32> {
        self.head.load(Relaxed).checked_sub(1).filter(|version| *version > 0)
    }
}

/// Plans that wait for their request.
#[derive(Clone, Default)]
pub(super) struct Plans(Arc<Mutex<HashMap<u64, Laid>>>);

/// A plan, and where its maker looks for what came of it.
type Laid = (Plan, Arc<Seen>);

impl Plans {
    /// Lays a plan; the number is what the request's header must say.
    pub(super) fn lay(&self, plan: Plan) -> (u64, Arc<Seen>) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Relaxed);
        let seen = Arc::new(Seen::default());
        self.0.lock().expect("nobody panics holding it").insert(number, (plan, seen.clone()));
        (number, seen)
    }

    fn take(&self, headers: &HeaderMap) -> Option<Laid> {
        let number = headers.get(PLAN)?.to_str().ok()?.parse().ok()?;
        self.0.lock().expect("nobody panics holding it").remove(&number)
    }
}

/// The running provider.
pub(super) struct Upstream {
    pub(super) plans: Plans,
    pub(super) ca_pem: String,
    /// Offers h2 and http/1.1, TLS 1.3 and 1.2.
    pub(super) any: u16,
    /// By `tls12` and `h2`: offers only that.
    pub(super) only: [[u16; 2]; 2],
}

impl Upstream {
    /// # Errors
    /// No port on 127.0.0.1, no thread, or no certificate.
    pub(super) fn start() -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
        let key = made.signing_key.serialize_der();
        let tls = |versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[&[u8]]| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
            let mut config = rustls::ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)
                .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
                .map_err(io::Error::other)?;
            config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
            Ok::<_, io::Error>(Some(Arc::new(config)))
        };
        let mut ports = Vec::new();
        let mut numbers = Vec::new();
        let mut open = |tls| {
            let socket = TcpListener::bind("127.0.0.1:0")?;
            numbers.push(socket.local_addr()?.port());
            ports.push(Port { socket, tls });
            Ok::<_, io::Error>(())
        };
        open(tls(rustls::ALL_VERSIONS, &[b"h2", b"http/1.1"])?)?;
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            for protocol in [&b"http/1.1"[..], b"h2"] {
                open(tls(&[version], &[protocol])?)?;
            }
        }
        let plans = Plans::default();
        let of_thread = plans.clone();
        scripted::serve("prove-provider", ports, move |request| play(of_thread.clone(), request))?;
        Ok(Self {
            plans,
            ca_pem: made.cert.pem(),
            any: numbers[0],
            only: [[numbers[1], numbers[2]], [numbers[3], numbers[4]]],
        })
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.only.iter().flatten().copied().chain([self.any])
    }
}

async fn play(plans: Plans, mut request: Request<Incoming>) -> Response<Script> {
    let mut response = Response::new(Script::empty());
    let Some((plan, seen)) = plans.take(request.headers()) else {
        *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
        return response;
    };
    let version = if request.version() == Version::HTTP_2 { 2 } else { 1 };
    seen.head.store(if has_words(&request, &plan.expected) { version + 1 } else { 1 }, Relaxed);
    *response.status_mut() = StatusCode::from_u16(plan.status).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(plan.content_type));
    if let Ok(reply) = HeaderValue::from_str(&plan.reply) {
        response.headers_mut().insert(REPLY, reply);
    }
    match plan.reading {
        Reading::Whole => {
            let mut body = request.into_body();
            while let Some(Ok(data)) = scripted::next_data(&mut body).await {
                seen.body_bytes.fetch_add(data.len() as u64, Relaxed);
            }
        }
        Reading::Never => {
            // Kept open and never asked for a frame.
            let never: Gate = scripted::gate();
            let _kept = request;
            let _ = never.acquire().await;
        }
        Reading::WebSocket { turns, last } => {
            let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else { return response };
            let accept = accept_for(key);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.remove(header::CONTENT_TYPE);
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::task::spawn_local(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let mut wire = Wire::new(upgraded);
                for (bytes_in, frame_out) in turns {
                    // In frames of nullhop's own, where a policy reads messages.
                    let read = wire.read_message().await;
                    if !read.is_ok_and(|read| read == bytes_in) || wire.write(&frame_out).await.is_err() {
                        return;
                    }
                    seen.body_bytes.fetch_add(bytes_in as u64, Relaxed);
                }
                // The client's close, and ours.
                if wire.read(last).await.is_ok() {
                    let _ = wire.write(&CLOSE).await;
                }
                wire.end().await;
            });
            return response;
        }
    }
    *response.body_mut() = Script::new(plan.steps);
    response
}

/// Close, code 1000, unmasked (RFC 6455 section 5.5.1).
pub(super) const CLOSE: [u8; 4] = [0x88, 0x02, 0x03, 0xe8];

fn has_words(request: &Request<Incoming>, [path, query, credential, note]: &[String; 4]) -> bool {
    let uri = request.uri();
    let has = |name: &str, word: &str| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.contains(word))
    };
    uri.path().contains(path.as_str())
        && uri.query().unwrap_or("").contains(query.as_str())
        && has("authorization", credential)
        && has(NOTE, note)
}

/// RFC 6455 section 4.2.2, item 5.4.
fn accept_for(key: &HeaderValue) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let text = base64::engine::general_purpose::STANDARD.encode(context.finish());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}
