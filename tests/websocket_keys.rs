//! WebSockets with keys of nullhop's own, on the running program, on h1 and on h2: where a key may stand, what each answer
//! costs, which limit holds when, and how a socket ends that may not go on.

mod support;

use std::time::Duration;
use std::time::Instant;

use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::Seen;
use nullhop_loadtests::tls::Alpn;
use serde_json::Value;
use serde_json::json;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::keys::key;
use support::keys::revoke;
use support::socket::Socket;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);

const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";
const REALTIME: &str = "/openai/v1/realtime?model=m";
const LIVE: &str = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";

const PROVIDER_KEY: &str = "sk-operators-own-key-0123456789abcdef";

/// What the provider reports over the two answers of `openai-responses-ws.jsonl` (its manifest).
const SAMPLE: &str = "ws=script;file=openai-responses-ws.jsonl";
const SAMPLE_MESSAGES: usize = 5;

const PLANS: &str = r#"
[keys]
file = "keys.jsonl"
secret = { file = "keys.secret" }
on_revoke = "cut"

[admission]
wrong_keys_per_minute = 1000
lag_max = "0s"

[[plan]]
name = "two"
rates = ["2 requests/1h"]

[[plan]]
name = "three"
rates = ["3 requests/1h"]

[[plan]]
name = "output"
rates = ["100 output tokens/1h"]

[[plan]]
name = "budget"
budgets = ["300 tokens/day"]

[[plan]]
name = "cut"
budgets = ["200 tokens/day"]
on_budget = "cut"

[[plan]]
name = "place"
concurrency = 1
"#;

/// A provider with an edge in front of it, and a key of the edge's by a plan; each test runs on h1 and h2.
struct World {
    provider: Provider,
    edge: Edge,
    alpn: Alpn,
    key: String,
}

/// Runs `test` on h1 and on h2, each with a key of its own: `flags`.
fn on_both(flags: &[&str], test: impl AsyncFn(&World)) {
    for alpn in [Alpn::H1, Alpn::H2] {
        let options = ProviderOptions {
            alpn: Alpn::H1,
            keep_body_bytes: 1 << 20,
            vectors: Some(support::vectors()),
            ..ProviderOptions::default()
        };
        let provider = Provider::spawn(options).expect("provider");
        let maker = Scratch::new();
        let key = key(&maker, "socket", flags);
        let upstreams = ["openai", "gemini"].map(|name| {
            format!(
                "[[upstream]]\nname = \"{name}\"\nprovider = \"{name}\"\nurl = \"{{url}}\"\n{{ca}}\naccess = \"both\"\n\
                 [[upstream.key]]\nsecret = {{ file = \"provider.key\" }}\n"
            )
        });
        let setup = Setup {
            extra: PLANS.to_owned(),
            upstreams: Some(upstreams.concat()),
            files: [support::keys::files(&maker), vec![("provider.key".to_owned(), PROVIDER_KEY.to_owned())]].concat(),
            metrics: "per_key = true".to_owned(),
            ..Setup::default()
        };
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        let world = World { provider, edge, alpn, key };
        support::runtime().block_on(test(&world));
    }
}

impl World {
    async fn try_open(&self, path: &str, script: &str) -> Result<Socket, u16> {
        let bearer = format!("Bearer {}", self.key);
        Socket::ask(&self.edge, self.alpn, path, &[("authorization", &bearer), ("x-script", script)]).await
    }

    async fn open(&self, path: &str, script: &str) -> Socket {
        self.try_open(path, script).await.expect("a socket")
    }

    /// One chat with the same key, whose answer may have so many tokens: its status.
    async fn chat(&self, output_tokens_max: u64) -> u16 {
        let mut client: Client = self.edge.connect(Alpn::H1).await;
        let request = http::Request::post(CHAT)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(FullBody::new(format!("{{\"model\":\"m\",\"max_tokens\":{output_tokens_max}}}")));
        client.fetch(request.expect("request")).await.expect("an answer").status()
    }

    /// Waits until no request is in flight. The client's side of h2 goes on meanwhile.
    async fn quiet(&self) {
        let began = Instant::now();
        while self.edge.metric("nullhop_requests_in_flight", &[]) > 0.0 {
            assert!(began.elapsed() < SOON, "{:?}: a socket stays in flight", self.alpn);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn outcomes(&self, outcome: &str) -> f64 {
        self.edge.metric("nullhop_requests_total", &[&format!("outcome=\"{outcome}\"")])
    }

    /// Waits until there are so many usage events of sockets, which never become more: all of them.
    fn events(&self, count: usize) -> Vec<Value> {
        let folder = self.edge.scratch.path().join("usage");
        let read = || -> Vec<Value> {
            let files = std::fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path());
            let files = files.filter(|path| path.extension().is_some_and(|kind| kind == "jsonl"));
            let text: String = files.map(|path| std::fs::read_to_string(path).expect("a file")).collect();
            let events = text.lines().map(|line| serde_json::from_str(line).expect("an event"));
            events.filter(|event: &Value| event["operation"] != "chat_completions").collect()
        };
        support::wait_for(SOON, || read().len() >= count);
        std::thread::sleep(Duration::from_millis(500));
        let events = read();
        assert_eq!(events.len(), count, "{:?}: {events:?}", self.alpn);
        events
    }

    /// Waits until the latest of what the provider got over the latest socket asks for so much output.
    async fn arrived(&self, message: &Value) {
        let asks = format!("\"max_output_tokens\":{}", message["max_output_tokens"]);
        let came = |seen: &Seen| {
            let text = String::from_utf8_lossy(&seen.body).into_owned();
            text.rfind("\"max_output_tokens\"").is_some_and(|place| text[place..].starts_with(&asks))
        };
        let came = self.provider.wait_for(|state| state.last().is_some_and(|seen| came(&seen)), SOON);
        assert!(came.await, "{:?}: {message} does not arrive", self.alpn);
    }
}

/// Says `message`, which must be refused because of `limit`, as `kind`; the socket goes on.
async fn refused(socket: &mut Socket, message: &Value, kind: &str, code: &str, limit: &str) {
    socket.say(message).await;
    let event = socket.hear().await;
    assert_eq!(event["type"], "error", "{event}");
    assert_eq!((&event["error"]["type"], &event["error"]["code"]), (&json!(kind), &json!(code)), "{event}");
    let text = event["error"]["message"].as_str().expect("a text");
    assert!(text.contains(limit), "{text}");
}

fn create(output_tokens_max: u64) -> Value {
    json!({"type": "response.create", "model": "m", "max_output_tokens": output_tokens_max, "input": "Hi"})
}

#[test]
fn a_key_is_found_where_clients_put_it_and_the_operators_goes_up() {
    on_both(&[], async |world| {
        let key = &world.key;
        let bearer = format!("Bearer {key}");
        let protocols = format!("realtime, openai-insecure-api-key.{key}, openai-beta.realtime-v1");
        let live = format!("{LIVE}?alt=x&key={key}");
        for (path, header, value, credential) in [
            (REALTIME, "authorization", bearer.as_str(), "authorization"),
            (RESPONSES, "authorization", bearer.as_str(), "authorization"),
            (REALTIME, "sec-websocket-protocol", protocols.as_str(), "authorization"),
            (REALTIME, "x-nullhop-key", key.as_str(), "authorization"),
            (LIVE, "x-goog-api-key", key.as_str(), "x-goog-api-key"),
            (live.as_str(), "x-note", "none", "x-goog-api-key"),
        ] {
            let mut headers = vec![(header, value), ("x-script", "ws=echo"), ("openai-organization", "org-callers")];
            let mut socket = Socket::ask(&world.edge, world.alpn, path, &headers).await.expect("a socket");
            let fine = match path == REALTIME || path == RESPONSES {
                true => json!({"type": "response.create"}),
                false => json!({"setup": {"model": "models/m"}}),
            };
            socket.say(&fine).await;
            assert_eq!(socket.hear().await["type"], fine["type"]);
            let seen = world.provider.last();
            let what = format!("{:?} {path} {header}", world.alpn);
            let operators = seen.header(credential).trim_start_matches("Bearer ");
            assert_eq!(operators, PROVIDER_KEY, "{what}");
            assert!(!format!("{:?} {}", seen.headers, seen.path).contains("nhk_"), "{what}: it went up");
            for gone in ["x-nullhop-key", "openai-organization"] {
                assert!(!seen.headers.contains_key(gone), "{what}: {gone}");
            }
            let wanted = if header == "sec-websocket-protocol" { "realtime, openai-beta.realtime-v1" } else { "" };
            assert_eq!(seen.header("sec-websocket-protocol"), wanted, "{what}");
            assert_eq!(seen.path.contains("alt=x"), path == live, "{what}");
            socket.close().await;

            // The same with a key that is none.
            let before = world.provider.requests().len();
            let wrong = value.replace(key.as_str(), "nhk_wrong");
            headers[0].1 = wrong.as_str();
            let path = path.replace(key.as_str(), "nhk_wrong");
            assert_eq!(Socket::ask(&world.edge, world.alpn, &path, &headers).await.err(), Some(401), "{what}");
            assert_eq!(world.provider.requests().len(), before, "{what}");
        }
        // Pass-through in a subprotocol: it is the caller's own, and stays.
        let headers = [("sec-websocket-protocol", "realtime, openai-insecure-api-key.sk-own"), ("x-script", "ws=echo")];
        let socket = Socket::ask(&world.edge, world.alpn, REALTIME, &headers).await.expect("a socket");
        assert_eq!(world.provider.last().header("sec-websocket-protocol"), headers[0].1);
        assert_eq!(world.provider.last().header("authorization"), "");
        socket.close().await;
    });
}

#[test]
fn each_answer_is_a_request_and_the_one_too_many_is_refused_alone() {
    for path in [RESPONSES, REALTIME] {
        on_both(&["--plan", "two"], async |world| {
            let mut socket = world.open(path, "ws=echo").await;
            let asked = json!({"type": "response.create"});
            for _ in 0..2 {
                socket.say(&asked).await;
                assert_eq!(socket.hear().await["type"], "response.create");
                // What asks for no answer is not counted.
                for _ in 0..3 {
                    let other = json!({"type": "input_audio_buffer.commit"});
                    socket.say(&other).await;
                    assert_eq!(socket.hear().await, other);
                }
            }
            for _ in 0..3 {
                socket.say(&asked).await;
                let event = socket.hear().await;
                assert_eq!(event["type"], "error", "{event}");
                assert_eq!(event["error"]["type"], "rate_limit_error", "{event}");
                assert_eq!(event["error"]["code"], "rate_limit_exceeded");
                let status = if path == RESPONSES { json!(429) } else { Value::Null };
                assert_eq!(event["status"], status, "{event}");
            }
            let other = json!({"type": "response.cancel"});
            socket.say(&other).await;
            assert_eq!(socket.hear().await, other);
            assert_eq!(world.chat(1).await, 429, "and by HTTP");
            // It holds for the next socket as well.
            let mut second = world.open(path, "ws=echo").await;
            refused(&mut second, &asked, "rate_limit_error", "rate_limit_exceeded", "requests").await;
            socket.close().await;
            refused(&mut second, &asked, "rate_limit_error", "rate_limit_exceeded", "requests").await;
            second.close().await;
            world.quiet().await;
            let denied = ["limit=\"requests\"", "decision=\"deny\""];
            assert_eq!(world.edge.metric("nullhop_limit_decisions_total", &denied), 6.0);
            assert_eq!(world.outcomes("ok"), 2.0);
            let arrived = |seen: &Seen| String::from_utf8_lossy(&seen.body).matches("response.create").count();
            assert_eq!(world.provider.requests().iter().map(arrived).sum::<usize>(), 2, "answers that were asked for");
        });
    }
}

#[test]
fn what_a_socket_asked_for_is_what_is_left_elsewhere() {
    on_both(&["--plan", "three"], async |world| {
        let mut socket = world.open(RESPONSES, "ws=echo").await;
        for _ in 0..2 {
            socket.say(&create(1)).await;
            socket.hear().await;
        }
        socket.close().await;
        world.quiet().await;
        assert_eq!((world.chat(1).await, world.chat(1).await), (200, 429));
    });
}

#[test]
fn output_is_reserved_for_each_answer_and_given_back_by_what_was_used() {
    let (kind, code) = ("rate_limit_error", "rate_limit_exceeded");
    on_both(&["--plan", "output"], async |world| {
        let mut socket = world.open(RESPONSES, SAMPLE).await;
        socket.say(&create(90)).await;
        for _ in 0..SAMPLE_MESSAGES {
            socket.hear().await;
        }
        // 30 were used of 90.
        refused(&mut socket, &create(71), kind, code, "output tokens").await;
        socket.say(&create(60)).await;
        world.arrived(&create(60)).await;
        // The provider says nothing to that one: it stays reserved.
        refused(&mut socket, &create(11), kind, code, "output tokens").await;
        assert_eq!(world.chat(11).await, 429, "it holds everywhere");
        socket.say(&create(10)).await;
        world.arrived(&create(10)).await;
        refused(&mut socket, &create(1), kind, code, "output tokens").await;
        // One that says nothing of a limit takes what is set aside for those.
        refused(&mut socket, &json!({"type": "response.create"}), kind, code, "output tokens").await;
        socket.close().await;
        world.quiet().await;
        // What was not answered was not used.
        let mut socket = world.open(RESPONSES, "ws=echo").await;
        refused(&mut socket, &create(72), kind, code, "output tokens").await;
        socket.say(&create(70)).await;
        assert_eq!(socket.hear().await["type"], "response.create");
        socket.close().await;
    });
}

#[test]
fn answers_count_into_budgets_as_they_are_reported() {
    let (kind, code) = ("insufficient_quota", "insufficient_quota");
    on_both(&["--plan", "budget"], async |world| {
        let mut socket = world.open(RESPONSES, SAMPLE).await;
        socket.say(&create(10)).await;
        for _ in 0..SAMPLE_MESSAGES {
            socket.hear().await;
        }
        // 290 of 300.
        refused(&mut socket, &create(10), kind, code, "the day's budget of tokens").await;
        assert_eq!(world.chat(10).await, 429, "while the socket is open");
        socket.close().await;
        world.quiet().await;
        assert_eq!(world.chat(10).await, 429, "and when it is over");
        let of = |direction: &str| {
            world.edge.metric("nullhop_key_tokens_total", &["key=\"socket\"", &format!("direction=\"{direction}\"")])
        };
        assert_eq!((of("input"), of("output")), (260.0, 30.0));
        // One event a socket, however many answers it had.
        let event = &world.events(1)[0];
        let figure = |name: &str| event[name].as_u64().unwrap_or_else(|| panic!("{name} in {event}"));
        assert_eq!(figure("input_uncached") + figure("input_cache_read") + figure("input_cache_write"), 260);
        assert_eq!(figure("output_response") + figure("output_reasoning"), 30);
        for (name, value) in [("label", "socket"), ("operation", "responses"), ("mode", "managed"), ("outcome", "ok")] {
            assert_eq!(event[name], value, "{event}");
        }
        let mut socket = world.open(REALTIME, "ws=echo").await;
        refused(&mut socket, &create(10), kind, code, "the day's budget of tokens").await;
        socket.close().await;
        assert_eq!(world.events(2)[1]["operation"], "realtime");
    });
}

#[test]
fn a_socket_over_its_budget_is_cut() {
    on_both(&["--plan", "cut"], async |world| {
        let mut socket = world.open(RESPONSES, SAMPLE).await;
        socket.say(&create(10)).await;
        let end = loop {
            match socket.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => break "in order",
                Err(_) => break "cut",
            }
        };
        assert_eq!(end, "cut", "{:?}", world.alpn);
        world.quiet().await;
        assert_eq!(world.outcomes("limited"), 1.0);
        assert_eq!(world.chat(10).await, 429);
        assert!(world.edge.metric("nullhop_limit_overrun_tokens_total", &[]) >= 90.0);
        let gone = |seen: Seen| seen.ended_at.is_some();
        assert!(world.provider.wait_for(|state| state.last().is_some_and(gone), SOON).await, "the provider's side");
    });
}

#[test]
fn the_socket_of_a_revoked_key_is_cut() {
    // Also without a limit.
    for flags in [&["--plan", "two"][..], &[]] {
        on_both(flags, async |world| {
            let mut socket = world.open(REALTIME, "ws=echo").await;
            let fine = json!({"type": "response.create"});
            socket.say(&fine).await;
            assert_eq!(socket.hear().await, fine);
            revoke(&world.edge.scratch, "socket");
            assert!(socket.try_next().await.is_err(), "{:?}: cut, not ended", world.alpn);
            world.quiet().await;
            assert_eq!(world.try_open(REALTIME, "ws=echo").await.err(), Some(401));
            assert_eq!(world.outcomes("limited"), 1.0);
        });
    }
}

#[test]
fn a_socket_is_a_stream_as_long_as_it_lives() {
    on_both(&["--plan", "place"], async |world| {
        for way in 0..4 {
            let script = if way == 3 { "ws=fin" } else { "ws=echo" };
            let mut socket = world.open(REALTIME, script).await;
            assert_eq!(world.try_open(REALTIME, "ws=echo").await.err(), Some(429), "{way}");
            assert_eq!(world.chat(1).await, 429, "{way}");
            match way {
                0 => socket.close().await,
                1 => socket.reset(),
                // Without a word.
                2 => drop(socket),
                _ => {
                    socket.say(&json!({"type": "response.create"})).await;
                    assert!(!matches!(socket.try_next().await, Ok(Some(_))), "the provider left");
                }
            }
            world.quiet().await;
            assert_eq!(world.chat(1).await, 200, "{way}: the place is free again");
            world.quiet().await;
        }
        // A refusal by the provider takes none either.
        assert_eq!(world.try_open(REALTIME, "ws=refuse;status=403").await.err(), Some(403));
        world.quiet().await;
        world.open(REALTIME, "ws=echo").await.close().await;
    });
}
