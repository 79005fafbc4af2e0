//! The admin listener: is it alive, is it ready, let it drain. Loopback only.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::clock::TokioTimer;
use crate::drain::DrainWatcher;
use crate::drain::Phase;
use crate::hygiene::io::HyperIo;
use crate::relay::AnswerBody;

/// More than probes and an operator need.
const CONNECTIONS_MAX: usize = 32;

/// How long one connection may last.
const CONNECTION_AGE: Duration = Duration::from_secs(30);

/// Serves until dropped. `drain_wanted` is notified by `POST /drain`.
pub(crate) async fn serve(listener: TcpListener, drain: DrainWatcher, drain_wanted: Rc<Notify>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
            continue;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (drain, drain_wanted) = (drain.clone(), drain_wanted.clone());
        connections.spawn_local(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = answer(&request, drain.phase(), &drain_wanted);
                let mut drain = drain.clone();
                async move {
                    // Whoever reads "draining" may rely on it.
                    if answer.status() == StatusCode::ACCEPTED {
                        drain.reached(Phase::Unready).await;
                    }
                    Ok::<_, Infallible>(answer)
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer)
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(8 << 10)
                .serve_connection(HyperIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_AGE, connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, phase: Phase, drain_wanted: &Notify) -> Response<AnswerBody> {
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, text, allow) = match request.uri().path() {
        "/healthz" if reading => (StatusCode::OK, "alive\n", None),
        "/readyz" if reading && phase == Phase::Open => (StatusCode::OK, "ready\n", None),
        "/readyz" if reading => (StatusCode::SERVICE_UNAVAILABLE, "draining\n", None),
        "/drain" if request.method() == Method::POST => {
            drain_wanted.notify_one();
            (StatusCode::ACCEPTED, "draining\n", None)
        }
        "/drain" if reading => {
            let text = match phase {
                Phase::Open => "open\n",
                Phase::Unready => "unready\n",
                Phase::Closing => "closing\n",
                Phase::Cut => "cut\n",
            };
            (StatusCode::OK, text, None)
        }
        "/healthz" | "/readyz" => (StatusCode::METHOD_NOT_ALLOWED, "", Some("GET, HEAD")),
        "/drain" => (StatusCode::METHOD_NOT_ALLOWED, "", Some("GET, HEAD, POST")),
        _ => (StatusCode::NOT_FOUND, "paths: /healthz /readyz /drain\n", None),
    };
    let mut response = Response::new(AnswerBody::unaccounted(text.to_owned()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(allow) = allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    response
}
