//! One request and its answer.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use http::request::Parts;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;

use super::Shared;
use super::answers;
use super::answers::Answer;
use super::body::Bends;
use super::body::ScriptBody;
use super::body::Source;
use super::body::Sse;
use super::journal::BodyReader;
use super::journal::Exchange;
use super::script::Cuts;
use super::script::Fault;
use super::script::FaultAt;
use super::script::FaultKind;
use super::script::Framing;
use super::script::Script;
use super::script::ScriptError;
use super::script::WebSocketScript;
use super::script::script_of_query;
use super::vectors::Vector;
use crate::BoxError;
use crate::io::Control;
use crate::io::Ending;
use crate::io::FromHyper;
use crate::websocket::Frame;
use crate::websocket::Opcode;
use crate::websocket::Role;
use crate::websocket::WebSocket;
use crate::websocket::accept_key;
use crate::words;

/// What the requests of one connection share.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) control: Arc<Control>,
    pub(crate) number: u64,
    pub(crate) sni: Option<String>,
    pub(crate) h2: bool,
}

/// The service of hyper. An error resets the stream (h2) or closes the connection (h1).
pub(crate) async fn exchange(
    connection: Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<ScriptBody>, BoxError> {
    let upgrade = is_websocket(&request).then(|| hyper::upgrade::on(&mut request));
    let (parts, incoming) = request.into_parts();
    let mut exchange = connection.shared.journal.open(&parts, connection.number, connection.sni.clone());
    let script = script_of(&connection.shared, &parts);
    let scripted = !matches!(script, Ok(None));
    let script = match script {
        Ok(script) => script.unwrap_or_default(),
        Err(error) => return Ok(complaint(&connection, exchange, &error)),
    };

    if let Some(upgrade) = upgrade
        && !matches!(script.ws, WebSocketScript::Refuse)
    {
        return Ok(websocket(&connection, &parts, script, exchange, upgrade));
    }

    // The request body: before the answer, beside it, behind it, or never.
    let mut body = Vec::new();
    let mut reader = BodyReader::new(incoming, &exchange, script.read_rate);
    let mut unread = None;
    let mut echo = None;
    let mut read_beside = None;
    if script.beside {
        let (sender, ended) = tokio::sync::oneshot::channel();
        read_beside = Some(ended);
        tokio::spawn(async move {
            let _ = reader.read(0).await;
            drop(sender);
        });
    } else if script.echo {
        echo = Some(reader);
    } else if script.early || script.early_close {
        unread = Some(reader);
    } else if script.read_stall {
        // hyper's h1 does not look at a socket that nobody reads.
        connection.control.peer_gone().await;
        return Err("the client left a stalled upload".into());
    } else {
        let wanted = answers::reads_body(&parts) && !script.has_source();
        body = reader.read(if wanted { BODY_BYTES_MAX } else { 0 }).await?;
    }

    for status in script.info.iter().filter(|_| !connection.h2) {
        let reason = if *status == 103 { "Early Hints\r\nlink: </fake>; rel=preload" } else { "Informational" };
        connection.control.inject(format!("HTTP/1.1 {status} {reason}\r\n\r\n").as_bytes());
    }
    if script.never {
        return pending().await;
    }
    let answer = match find_answer(&connection.shared, &parts, &script, scripted, &body, echo) {
        Ok(answer) => answer,
        Err(error) => return Ok(complaint(&connection, exchange, &error)),
    };
    drop(body);
    let head_delay = script.head_delay + answer.head_delay;
    if !head_delay.is_zero() {
        tokio::time::sleep(head_delay).await;
    }
    if let Some(Fault { at: FaultAt::Head, what }) = script.fault {
        return break_before_head(&connection, &mut exchange, what, script.reset_code).await;
    }

    let mut done = None;
    if let Some(mut reader) = unread
        && !script.early_close
    {
        let (sender, answered) = tokio::sync::oneshot::channel();
        done = Some(sender);
        let stall = script.read_stall.then(|| connection.control.clone());
        tokio::spawn(async move {
            // The sender is dropped with the response body.
            let _ = answered.await;
            match stall {
                Some(control) => control.peer_gone().await,
                None => drop(reader.read(0).await),
            }
        });
    }
    let opened = script.gate.as_ref().map(|gate| {
        let (sender, opened) = tokio::sync::oneshot::channel();
        connection.shared.gates.lock().expect("no panics under this lock").insert(gate.clone(), sender);
        opened
    });
    let hold = script.hold_at.zip(opened.or(read_beside));
    Ok(respond(&connection, &parts, script, answer, exchange, hold, done))
}

/// Header, query, default: the first that is there.
fn script_of(shared: &Shared, parts: &Parts) -> Result<Option<Script>, ScriptError> {
    if let Some(value) = parts.headers.get("x-script") {
        let text = value.to_str().map_err(|_| ScriptError("not ASCII".to_owned()))?;
        return text.parse().map(Some);
    }
    if let Some(text) = parts.uri.query().and_then(script_of_query) {
        return text.parse().map(Some);
    }
    Ok(shared.default_script.lock().expect("no panics under this lock").clone())
}

impl Script {
    fn has_source(&self) -> bool {
        self.echo || self.words.is_some() || self.file.is_some() || self.size.is_some() || self.events.is_some()
    }
}

fn find_answer(
    shared: &Shared,
    parts: &Parts,
    script: &Script,
    scripted: bool,
    body: &[u8],
    echo: Option<BodyReader>,
) -> Result<Answer, ScriptError> {
    let ok = script.status.unwrap_or(StatusCode::OK);
    Ok(if let Some(reader) = echo {
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Answer::of(ok, content_type.unwrap_or("application/octet-stream"), Source::Echo(reader))
    } else if let Some(vector) = vector_of(shared, script)? {
        let mut answer = Answer::empty(script.status.unwrap_or(vector.status));
        answer.source = Source::bytes(vector.bytes.clone());
        for (name, value) in
            [(header::CONTENT_TYPE, &vector.content_type), (header::CONTENT_ENCODING, &vector.content_encoding)]
        {
            if let Some(value) = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
                answer.headers.push((name, value));
            }
        }
        answer
    } else if let Some(seed) = script.words {
        let piece_bytes = if script.event_bytes == 0 { u64::MAX } else { script.event_bytes as u64 };
        let source = Source::Words { seed, offset: 0, len: script.size.unwrap_or(0), piece_bytes };
        Answer::of(ok, "application/octet-stream", source)
    } else if let Some(len) = script.size {
        Answer::of(ok, "application/octet-stream", Source::Pattern { offset: 0, len })
    } else if let Some(count) = script.events {
        let sse = Sse::load(count, script.event_bytes, script.period, script.stamp, script.usage);
        Answer::of(ok, answers::SSE, Source::Sse(sse))
    } else if let Some(mut answer) = answers::answer(parts, body, script.status) {
        answer.status = script.status.unwrap_or(answer.status);
        answer
    } else if scripted {
        Answer::empty(ok)
    } else {
        answers::not_found(parts)
    })
}

fn vector_of(shared: &Shared, script: &Script) -> Result<Option<Vector>, ScriptError> {
    let Some(name) = &script.file else { return Ok(None) };
    let made = || shared.made.lock().expect("no panics under this lock").get(name).cloned();
    match shared.vectors.get(name).cloned().or_else(made) {
        Some(vector) => Ok(Some(vector)),
        None => Err(ScriptError(format!("no file {name} in the vectors"))),
    }
}

fn respond(
    connection: &Connection,
    parts: &Parts,
    mut script: Script,
    mut answer: Answer,
    exchange: Exchange,
    hold: Option<(u64, tokio::sync::oneshot::Receiver<()>)>,
    done: Option<tokio::sync::oneshot::Sender<()>>,
) -> Response<ScriptBody> {
    exchange.status(answer.status.as_u16());
    let close_delimited = script.framing == Framing::Close && !connection.h2;
    if let Cuts::Splits = script.cuts
        && let Ok(Some(vector)) = vector_of(&connection.shared, &script)
    {
        script.cuts = Cuts::At(vector.splits);
    }
    if let Some(coding) = script.encoding
        && let Some(plain) = answer.source.all()
    {
        answer.source = Source::bytes(coding.encode(&plain));
        answer.headers.push((header::CONTENT_ENCODING, HeaderValue::from_static(coding.name())));
    }
    let trailers: HeaderMap = script.trailers.iter().cloned().collect();
    let echoes = matches!(answer.source, Source::Echo(_));
    let bends = Bends {
        cuts: script.cuts,
        delay: script.delay,
        fault: script.fault.and_then(|fault| match fault.at {
            FaultAt::BodyByte(at) => Some((at, fault.what)),
            FaultAt::Head => None,
        }),
        hold,
        reset_code: script.reset_code.unwrap_or(h2::Reason::INTERNAL_ERROR.into()),
        hide_len: match script.framing {
            // A length would leave no room for trailers, neither the script's nor echoed ones.
            Framing::Auto => echoes || !trailers.is_empty(),
            Framing::Known => false,
            Framing::Chunked | Framing::Close => true,
        },
        trailers: (!trailers.is_empty()).then_some(trailers),
        h2: connection.h2,
    };

    let mut headers = HeaderMap::new();
    for (name, value) in answer.headers.drain(..) {
        headers.insert(name, value);
    }
    // Declared on both versions: an h1 hop on the way passes only those on that it was told of (RFC 9110 section 6.6.2).
    if let Some(trailers) = &bends.trailers {
        let names: Vec<&str> = trailers.keys().map(|name| name.as_str()).collect();
        headers.insert(header::TRAILER, HeaderValue::from_str(&names.join(", ")).expect("header names are ASCII"));
    }
    if connection.h2 && script.close {
        connection.control.drain();
    } else if script.close || script.early_close || close_delimited {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // The script's headers replace ours and add to each other.
    for (name, _) in &script.headers {
        headers.remove(name);
    }
    for (name, value) in script.headers {
        headers.append(name, value);
    }

    let mut body = ScriptBody::new(answer.source, bends, Some(exchange), connection.control.clone(), done);
    if parts.method == Method::HEAD || matches!(answer.status.as_u16(), 204 | 304) {
        body = body.bodyless();
    }
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = headers;
    if close_delimited {
        *response.version_mut() = Version::HTTP_10;
        connection.control.write_http10_as_11();
    }
    response
}

async fn break_before_head(
    connection: &Connection,
    exchange: &mut Exchange,
    what: FaultKind,
    reset_code: Option<u32>,
) -> Result<Response<ScriptBody>, BoxError> {
    match what {
        FaultKind::Stall => return pending().await,
        FaultKind::ResetStream if connection.h2 => {
            exchange.broken();
            let reason = h2::Reason::from(reset_code.unwrap_or(h2::Reason::INTERNAL_ERROR.into()));
            return Err(h2::Error::from(reason).into());
        }
        FaultKind::ResetStream => connection.control.end(Ending::Reset),
        FaultKind::Connection(ending) => connection.control.end(ending),
    }
    exchange.broken();
    pending().await
}

/// A test that scripts nonsense should see so at once.
fn complaint(connection: &Connection, mut exchange: Exchange, error: &ScriptError) -> Response<ScriptBody> {
    let status = StatusCode::from_u16(599).expect("three digits");
    exchange.status(599);
    exchange.broken();
    let source = Source::bytes(Bytes::from(format!("{error}\n")));
    let mut response = Response::new(ScriptBody::new(
        source,
        Bends::none(connection.h2),
        Some(exchange),
        connection.control.clone(),
        None,
    ));
    *response.status_mut() = status;
    response
}

fn is_websocket(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && request
            .headers()
            .get(header::UPGRADE)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn websocket(
    connection: &Arc<Connection>,
    parts: &Parts,
    script: Script,
    exchange: Exchange,
    upgrade: hyper::upgrade::OnUpgrade,
) -> Response<ScriptBody> {
    exchange.status(101);
    let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).and_then(|value| value.to_str().ok()).unwrap_or("");
    let accept = HeaderValue::from_str(&accept_key(key)).expect("base64 is ASCII");
    let control = connection.control.clone();
    let messages: Vec<Bytes> = match vector_of(&connection.shared, &script) {
        Ok(Some(vector)) => {
            let lines = vector.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.map(|line| vector.bytes.slice_ref(line)).collect()
        }
        Ok(None) => Vec::new(),
        Err(error) => return complaint(connection, exchange, &error),
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    for (name, value) in &script.headers {
        headers.append(name, value.clone());
    }
    tokio::spawn(async move {
        let mut exchange = exchange;
        if let Ok(upgraded) = upgrade.await {
            let socket = WebSocket::new(FromHyper(upgraded), Role::Server, &[]);
            // An error is the peer's disappearance: the exchange is dropped unsettled.
            let _ = converse(socket, &script, messages, &mut exchange, &control).await;
        }
    });
    // The exchange goes on in the WebSocket.
    let nothing = Source::Pieces(Default::default());
    let mut response =
        Response::new(ScriptBody::new(nothing, Bends::none(false), None, connection.control.clone(), None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

async fn converse(
    mut socket: WebSocket<FromHyper<Upgraded>>,
    script: &Script,
    messages: Vec<Bytes>,
    exchange: &mut Exchange,
    control: &Control,
) -> std::io::Result<()> {
    let mut messages = Some(messages);
    match script.ws {
        WebSocketScript::Close(code) => socket.send(Frame::close(code, "scripted")).await?,
        WebSocketScript::Ping => socket.send(Frame::new(Opcode::Ping, "scripted")).await?,
        WebSocketScript::Flood => {
            for index in 0..script.events.unwrap_or(1) {
                if !script.period.is_zero() {
                    tokio::time::sleep(script.period).await;
                }
                let payload = match script.words {
                    Some(seed) => words::text(seed, script.event_bytes),
                    None => {
                        let mut payload = format!("{{\"type\":\"flood\",\"index\":{index},\"padding\":\"");
                        let padding = script.event_bytes.saturating_sub(payload.len() + 2);
                        payload.extend(std::iter::repeat_n('x', padding));
                        payload.push_str("\"}");
                        payload
                    }
                };
                sent(exchange, payload.len());
                socket.send(Frame::new(Opcode::Text, payload)).await?;
            }
        }
        _ => {}
    }
    while let Some(message) = socket.next_message().await? {
        match message.opcode {
            Opcode::Close => {
                // Answered with the same code, unless it answers ours.
                if !matches!(script.ws, WebSocketScript::Close(_)) {
                    let _ = socket.send(message).await;
                }
                exchange.complete();
                return Ok(());
            }
            Opcode::Text | Opcode::Binary => {
                exchange.record.received.fetch_add(message.payload.len() as u64, Relaxed);
                exchange.record.keep(&exchange.journal, &message.payload);
                match script.ws {
                    WebSocketScript::Stall => pending().await,
                    WebSocketScript::End(ending) => {
                        exchange.broken();
                        control.end(ending);
                        return Ok(());
                    }
                    WebSocketScript::File => {
                        for line in messages.take().unwrap_or_default() {
                            if !script.delay.is_zero() {
                                tokio::time::sleep(script.delay).await;
                            }
                            sent(exchange, line.len());
                            socket.send(Frame::new(Opcode::Text, line)).await?;
                        }
                    }
                    WebSocketScript::Echo | WebSocketScript::Ping | WebSocketScript::Flood => {
                        sent(exchange, message.payload.len());
                        socket.send(message).await?;
                    }
                    WebSocketScript::Close(_) | WebSocketScript::Refuse => {}
                }
            }
            Opcode::Ping | Opcode::Pong | Opcode::Continuation => {}
        }
    }
    Ok(())
}

fn sent(exchange: &Exchange, len: usize) {
    exchange.record.sent.fetch_add(len as u64, Relaxed);
}

/// What is parsed for `model` and `stream`; more than any SDK sends.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
