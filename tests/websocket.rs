//! WebSockets that a policy reads and a meter counts, on the running program, on h1 and on h2: what the provider gets, what
//! the client is told, what is counted. The scripted provider's echo shows each message as it arrived there.

mod support;

use std::time::Duration;

use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use serde_json::Value;
use serde_json::json;
use support::Edge;
use support::Setup;
use support::socket::Socket;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);

const RESPONSES: &str = "/openai/v1/responses";
const REALTIME: &str = "/openai/v1/realtime?model=m";
const LIVE: &str = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";

/// Runs `test` on h1 and on h2.
fn on_both(test: impl AsyncFn(&Edge, &Provider, Alpn)) {
    let options = ProviderOptions {
        alpn: Alpn::H1,
        keep_body_bytes: 4 << 20,
        vectors: Some(support::vectors()),
        ..ProviderOptions::default()
    };
    let provider = Provider::spawn(options).expect("provider");
    // With every rule in force.
    let upstreams = ["openai", "gemini"]
        .map(|name| format!("[[upstream]]\nname = \"{name}\"\nprovider = \"{name}\"\nurl = \"{{url}}\"\n{{ca}}\n"));
    let setup = Setup { upstreams: Some(upstreams.concat()), ..Setup::default() };
    let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
    for alpn in [Alpn::H1, Alpn::H2] {
        support::runtime().block_on(test(&edge, &provider, alpn));
    }
}

fn guard(edge: &Edge, name: &str) -> f64 {
    edge.metric("nullhop_guard_total", &[&format!("guard=\"{name}\"")])
}

/// Waits until a socket was settled as `outcome` once more than `before`.
fn settled(edge: &Edge, outcome: &str, before: f64) {
    let label = format!("outcome=\"{outcome}\"");
    let moved = edge.wait_for_metric("nullhop_requests_total", &[&label], |now| now > before, SOON);
    assert!(moved, "not settled as {outcome}");
}

fn outcomes(edge: &Edge, outcome: &str) -> f64 {
    edge.metric("nullhop_requests_total", &[&format!("outcome=\"{outcome}\"")])
}

#[test]
fn what_is_asked_for_is_not_kept() {
    on_both(async |edge, _, alpn| {
        let mut socket = Socket::open(edge, alpn, RESPONSES, "ws=echo").await;
        for size in [0, 10, 125, 16_300, 20_000, 300_000] {
            for stored in [None, Some(Value::Null), Some(json!(false))] {
                let mut message = json!({"type": "response.create", "model": "m", "input": "x".repeat(size)});
                if let Some(stored) = &stored {
                    message["store"] = stored.clone();
                }
                socket.say(&message).await;
                message["store"] = json!(false);
                let arrived = socket.hear().await;
                assert!(arrived == message, "{alpn:?} {size} {stored:?}: {arrived:.200}");
            }
        }
        // In fragments, with a ping between, and a character cut in two.
        let message =
            json!({"type": "response.create", "model": "m", "input": "ö".repeat(9000)}).to_string().into_bytes();
        let last = message.len() / 999;
        for (place, piece) in message.chunks(999).enumerate() {
            let opcode = if place == 0 { Opcode::Text } else { Opcode::Continuation };
            socket.send(Frame::fragment(opcode, piece.to_vec(), place == last)).await;
            if place % 5 == 0 && place < last {
                socket.send(Frame::new(Opcode::Ping, format!("{place}"))).await;
                let pong = socket.next().await.expect("a pong");
                assert!(pong.opcode == Opcode::Pong && pong.payload == format!("{place}"), "{alpn:?}");
            }
        }
        assert_eq!(socket.hear().await["store"], false);
        // Other messages say nothing of storing.
        let other = json!({"type": "response.cancel"});
        socket.say(&other).await;
        assert_eq!(socket.hear().await, other);
        // What has no fields passes as it is.
        for text in ["", "hello", "ö\u{1f980}"] {
            socket.send(Frame::new(Opcode::Text, text)).await;
            assert_eq!(socket.next().await.expect("a message").payload, text.as_bytes());
        }
        let before = outcomes(edge, "ok");
        socket.send(Frame::close(4001, "mine")).await;
        assert_eq!(socket.next().await.expect("a close").close_code(), 4001);
        drop(socket);
        settled(edge, "ok", before);
    });
}

#[test]
fn a_refused_message_is_dropped_alone() {
    on_both(async |edge, provider, alpn| {
        for (path, message, rule, status) in [
            (
                RESPONSES,
                json!({"type": "response.create", "background": true, "input": "canary"}),
                "background",
                json!(403),
            ),
            (
                REALTIME,
                json!({"type": "session.update", "session": {"tracing": "auto"}, "canary": 1}),
                "tracing",
                Value::Null,
            ),
        ] {
            let mut socket = Socket::open(edge, alpn, path, "ws=echo").await;
            let before = guard(edge, "message_refused");
            for _ in 0..3 {
                socket.say(&message).await;
                let event = socket.hear().await;
                assert_eq!(event["type"], "error", "{alpn:?} {path}");
                assert_eq!(event["status"], status, "{alpn:?} {path}");
                assert_eq!(event["error"]["code"], "policy_refused");
                assert_eq!(event["error"]["type"], "invalid_request_error");
                let text = event["error"]["message"].as_str().expect("a text");
                assert!(text.contains(rule) && !event.to_string().contains("canary"), "{text}");
            }
            // What no program could read alike is refused, too.
            socket.send(Frame::new(Opcode::Text, "\u{feff}{\"type\":\"response.create\"}")).await;
            assert_eq!(socket.hear().await["type"], "error");
            let fine = json!({"type": "response.cancel"});
            socket.say(&fine).await;
            assert_eq!(socket.hear().await, fine);
            assert_eq!(guard(edge, "message_refused") - before, 4.0);
            let rule = format!("rule=\"{rule}\"");
            assert!(edge.metric("nullhop_retention_refusals_total", &["upstream=\"openai\"", &rule]) >= 3.0, "{rule}");
            let seen = provider.last();
            let arrived: Value = serde_json::from_slice(&seen.body).expect("one message");
            assert_eq!(arrived, fine, "{alpn:?}: nothing else arrived");
            socket.send(Frame::close(1000, "")).await;
            assert_eq!(socket.next().await.expect("a close").close_code(), 1000);
        }
    });
}

#[test]
fn an_error_stands_between_messages_of_the_provider() {
    on_both(async |edge, _, alpn| {
        let script = "ws=flood;events=60;event_bytes=20000;period_us=2000";
        let mut socket = Socket::open(edge, alpn, RESPONSES, script).await;
        for _ in 0..10 {
            socket.say(&json!({"type": "response.create", "background": true})).await;
        }
        let (mut events, mut errors) = (0, 0);
        while events < 60 || errors < 10 {
            // Each is a whole frame with whole JSON in it.
            let said = socket.hear().await;
            match said["type"].as_str() {
                Some("flood") => {
                    assert_eq!(said["index"], events, "{alpn:?}");
                    events += 1;
                }
                Some("error") => errors += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((events, errors), (60, 10));
    });
}

#[test]
fn a_refused_message_that_has_begun_closes_both_sides() {
    on_both(async |edge, provider, alpn| {
        let (refused, before) = (guard(edge, "message_refused"), outcomes(edge, "client_error"));
        let mut socket = Socket::open(edge, alpn, RESPONSES, "ws=echo").await;
        let text = format!(r#"{{"type":"response.create","input":"{}","background":true}}"#, "x".repeat(100_000));
        socket.send(Frame::new(Opcode::Text, text)).await;
        let event = socket.hear().await;
        assert_eq!(event["error"]["code"], "policy_refused", "{alpn:?}");
        let close = socket.next().await.expect("a close");
        assert_eq!((close.opcode, close.close_code()), (Opcode::Close, 1008), "{alpn:?}");
        socket.send(Frame::close(1008, "")).await;
        if alpn == Alpn::H1 {
            assert!(socket.next().await.is_none(), "ends in order");
        }
        drop(socket);
        settled(edge, "client_error", before);
        assert_eq!(guard(edge, "message_refused") - refused, 1.0);
        let over = provider.wait_for(|state| state.last().is_some_and(|seen| seen.ended_at.is_some()), SOON).await;
        assert!(over && provider.last().body_len == 0, "{alpn:?}: it was never completed");
    });
}

#[test]
fn gemini_live_is_told_by_the_close() {
    on_both(async |edge, provider, alpn| {
        let mut socket = Socket::open(edge, alpn, LIVE, "ws=echo").await;
        let fine = json!({"setup": {"model": "models/m"}});
        socket.send(Frame::new(Opcode::Binary, fine.to_string())).await;
        assert_eq!(socket.hear().await, fine);
        socket.say(&json!({"setup": {"model": "models/m", "sessionResumption": {}}})).await;
        let close = socket.next().await.expect("a close");
        assert_eq!((close.opcode, close.close_code()), (Opcode::Close, 1008), "{alpn:?}");
        let reason = String::from_utf8_lossy(&close.payload[2..]).into_owned();
        assert!(reason.contains("session_resumption"), "{reason}");
        drop(socket);
        let over = provider.wait_for(|state| state.last().is_some_and(|seen| seen.ended_at.is_some()), SOON).await;
        assert!(over && provider.last().body == fine.to_string().as_bytes(), "{alpn:?}");
    });
}

#[test]
fn frames_that_are_none_close_both_sides() {
    on_both(async |edge, _, alpn| {
        let before = guard(edge, "bad_framing");
        let mut socket = Socket::open(edge, alpn, RESPONSES, "ws=echo").await;
        // Without a mask.
        socket.send_raw(Frame::new(Opcode::Text, "{\"background\":true}").encode(None)).await;
        let close = socket.next().await.expect("a close");
        assert_eq!((close.opcode, close.close_code()), (Opcode::Close, 1002), "{alpn:?}");
        assert_eq!(guard(edge, "bad_framing") - before, 1.0);
    });
}

#[test]
fn figures_are_those_of_the_samples() {
    let manifest = std::fs::read_to_string(support::vectors().join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("manifest");
    on_both(async |edge, _, alpn| {
        for (path, upstream, file) in [
            (REALTIME, "openai", "openai-realtime.jsonl"),
            (RESPONSES, "openai", "openai-responses-ws.jsonl"),
            (LIVE, "gemini", "gemini-live.jsonl"),
        ] {
            let entries = manifest["vectors"].as_array().expect("vectors");
            let expect = &entries.iter().find(|entry| entry["file"] == file).expect("a sample")["expect"];
            let figure = |name: &str| expect[name].as_u64().unwrap_or(0) as f64;
            let upstream = format!("upstream=\"{upstream}\"");
            let of = |direction: &str| edge.metric("nullhop_tokens_total", &[&upstream, direction]);
            let read = || [of("direction=\"input\""), of("direction=\"output\""), of("kind=\"cache_read\"")];
            let (before, ok) = (read(), outcomes(edge, "ok"));
            let lines = std::fs::read_to_string(support::vectors().join(file)).expect("a sample");
            let mut socket = Socket::open(edge, alpn, path, &format!("ws=script;file={file}")).await;
            socket.say(&json!({"type": "response.create"})).await;
            for line in lines.lines().filter(|line| !line.is_empty()) {
                assert_eq!(socket.next().await.expect("a message").payload, line.as_bytes());
            }
            socket.send(Frame::close(1000, "")).await;
            assert_eq!(socket.next().await.expect("a close").close_code(), 1000);
            drop(socket);
            settled(edge, "ok", ok);
            let after = read();
            let moved: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            assert_eq!(moved, [figure("input"), figure("output"), figure("cached")], "{alpn:?} {file}");
        }
    });
}
