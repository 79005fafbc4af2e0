//! The retention policy on the running program: what a client asks for beside what arrives at the provider. A request that
//! is refused is never completed there.

mod support;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::Request;
use nullhop_loadtests::client::AnyBody;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::any_body;
use nullhop_loadtests::encoding::Coding;
use nullhop_loadtests::provider::BodyEnd;
use nullhop_loadtests::provider::Outcome;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::provider::Seen;
use nullhop_loadtests::tls::Alpn;
use serde_json::Value;
use serde_json::json;
use support::Edge;
use support::Setup;
use support::wait_for;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(30);

/// How a body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Send {
    /// At once, with its length.
    Whole,
    /// In pieces, without a length.
    Pieces,
    /// Byte by byte, with its length.
    Bytes,
}

const SENDS: [Send; 3] = [Send::Whole, Send::Pieces, Send::Bytes];

/// What becomes of a request.
#[derive(Clone, Debug)]
enum Want {
    /// It arrives as it was sent, byte by byte; white space may be added before the last brace.
    Same,
    /// This arrives.
    Json(Value),
    /// 403, and the text names this.
    Refused(&'static str),
    /// 400, so that Anthropic's client sends the whole history.
    Thread,
    /// One of these statuses, by nullhop.
    Status(&'static [u16]),
}

/// A request and its fate.
struct Case {
    upstream: &'static str,
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Bytes,
    want: Want,
}

fn post(upstream: &'static str, path: &'static str, body: impl Into<Bytes>, want: Want) -> Case {
    Case { upstream, method: Method::POST, path, headers: Vec::new(), body: body.into(), want }
}

/// Upstreams in front of one provider, with `more` in each; `openrouter` and others are told what they are.
fn edge(provider: &Provider, more: &str) -> Edge {
    let mut text = String::new();
    for (name, kind, vendor) in [
        ("openai", "openai", ""),
        ("anthropic", "anthropic", ""),
        ("gemini", "gemini", ""),
        ("azure", "azure", ""),
        ("bedrock", "bedrock", ""),
        ("compatible", "compatible", ""),
        ("openrouter", "compatible", "vendor = \"openrouter\"\n"),
        ("mistral", "compatible", "vendor = \"mistral\"\n"),
        ("groq", "compatible", "vendor = \"groq\"\n"),
        ("xai", "compatible", "vendor = \"xai\"\n"),
    ] {
        text.push_str(&format!(
            "[[upstream]]\nname = \"{name}\"\nprovider = \"{kind}\"\nurl = \"{{url}}\"\n{{ca}}\n{vendor}{more}\n"
        ));
    }
    let setup = Setup {
        upstreams: Some(text),
        extra: "[limits]\nrequests_per_connection = 1000000\ncancels_per_connection = 100000\n".to_owned(),
        ..Setup::default()
    };
    Edge::with(&provider.url(), provider.ca_pem(), setup)
}

fn provider(alpn: Alpn) -> Provider {
    let options = ProviderOptions {
        alpn,
        keep_body_bytes: 8 << 20,
        hash_bodies: false,
        journal_max: 20_000,
        ..Default::default()
    };
    Provider::spawn(options).expect("provider")
}

fn body(bytes: &Bytes, send: Send) -> AnyBody {
    if send == Send::Whole {
        return any_body(FullBody::new(bytes.clone()));
    }
    let (sender, body) = ChannelBody::new(1);
    let bytes = bytes.clone();
    let len = bytes.len();
    tokio::spawn(async move {
        let piece = if send == Send::Bytes { 1 } else { 7.max(len / 100) };
        for at in (0..len).step_by(piece) {
            // An answer that comes early ends the upload.
            if sender.send(bytes.slice(at..len.min(at + piece))).await.is_err() {
                return;
            }
        }
    });
    if send == Send::Bytes { any_body(body.with_len(len as u64)) } else { any_body(body) }
}

/// One request: its name in the journal, status, headers and body of the answer.
async fn ask(edge: &Edge, client: &mut Client, case: &Case, send: Send) -> (String, u16, http::HeaderMap, Value) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("case-{}", COUNT.fetch_add(1, Relaxed));
    if client.is_closed() || client.ready().await.is_err() {
        *client = edge.connect(if client.is_h2() { Alpn::H2 } else { Alpn::H1 }).await;
    }
    let path = format!("/{}{}", case.upstream, case.path);
    let request = match client.is_h2() {
        true => Request::builder().uri(format!("https://localhost{path}")),
        false => Request::builder().uri(path).header("host", "localhost"),
    };
    let mut request = request
        .method(case.method.clone())
        .header("authorization", "Bearer k")
        .header("x-case", &name)
        .header("x-script", "size=10");
    if case.method == Method::POST {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in &case.headers {
        request = request.header(*name, *value);
    }
    let body = if case.method == Method::POST { body(&case.body, send) } else { any_body(FullBody::empty()) };
    let answer = tokio::time::timeout(SOON, client.fetch(request.body(body).expect("request"))).await;
    let answer = answer.unwrap_or_else(|_| panic!("no answer to {}", describe(case, send)));
    let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", describe(case, send)));
    (name, answer.status(), answer.head.headers.clone(), answer.json())
}

fn describe(case: &Case, send: Send) -> String {
    let body = String::from_utf8_lossy(&case.body[..case.body.len().min(300)]).into_owned();
    format!("{} {}{} {body} ({send:?})", case.method, case.upstream, case.path)
}

/// The provider's record of a request; all of its attempts.
fn seen(provider: &Provider, name: &str) -> Vec<Seen> {
    provider.requests().into_iter().filter(|seen| seen.header("x-case") == name).collect()
}

/// None, or what is wrong.
fn fault(
    provider: &Provider,
    case: &Case,
    name: &str,
    status: u16,
    headers: &http::HeaderMap,
    said: &Value,
) -> Option<String> {
    match &case.want {
        Want::Same | Want::Json(_) => {
            if status != 200 {
                return Some(format!("{status}: {said}"));
            }
            let seen = seen(provider, name);
            let [seen] = &seen[..] else { return Some(format!("{} requests at the provider", seen.len())) };
            if seen.body_end != BodyEnd::Clean {
                return Some(format!("arrived {:?}", seen.body_end));
            }
            let announced = seen.header("content-length");
            if !announced.is_empty() && announced != seen.body_len.to_string() {
                return Some(format!("announced {announced}, sent {}", seen.body_len));
            }
            if let Want::Json(wanted) = &case.want {
                let Ok(got) = serde_json::from_slice::<Value>(&seen.body) else {
                    return Some(format!("no JSON arrived: {}", String::from_utf8_lossy(&seen.body)));
                };
                if got != *wanted {
                    return Some(format!("arrived: {got:.600}\nwanted {wanted:.600}"));
                }
                // Nor may a parser that takes the first of two members see something else.
                if let Some(double) = doubled(&seen.body) {
                    return Some(format!("two members `{double}` arrived: {}", String::from_utf8_lossy(&seen.body)));
                }
            } else if stem(&seen.body) != stem(&case.body) {
                return Some(format!("arrived: {}", String::from_utf8_lossy(&seen.body)));
            }
            None
        }
        Want::Refused(_) | Want::Thread | Want::Status(_) => {
            let fits = match &case.want {
                Want::Refused(_) => status == 403,
                Want::Thread => status == 400,
                Want::Status(statuses) => statuses.contains(&status),
                _ => unreachable!("above"),
            };
            if !fits {
                return Some(format!("{status}: {said}"));
            }
            if let Some(wrong) = shape(case, status, headers, said) {
                return Some(wrong);
            }
            // Whatever went up must be broken off, not ended.
            let ended = || seen(provider, name).iter().all(|seen| seen.outcome != Outcome::Open);
            if !wait_for(SOON, ended) {
                return Some("still open at the provider".to_owned());
            }
            let seen = seen(provider, name);
            let whole = seen.iter().filter(|seen| seen.body_end == BodyEnd::Clean).count();
            (whole > 0).then(|| format!("{whole} completed at the provider"))
        }
    }
}

/// An object without its last brace and the white space around that.
fn stem(body: &[u8]) -> &[u8] {
    let body = body.trim_ascii_end();
    body.strip_suffix(b"}").map_or(body, <[u8]>::trim_ascii_end)
}

/// What is wrong with a refusal's form.
fn shape(case: &Case, status: u16, headers: &http::HeaderMap, said: &Value) -> Option<String> {
    let text = said.to_string();
    let error = &said["error"];
    let well_formed = match (case.upstream, &case.want) {
        ("anthropic", Want::Thread) => {
            said["type"] == "error"
                && error["type"] == "invalid_request_error"
                && error["details"]["error_code"] == "thread_unsupported_request"
        }
        ("anthropic", Want::Refused(_)) => said["type"] == "error" && error["type"] == "permission_error",
        ("anthropic", _) => said["type"] == "error" && error["type"].is_string(),
        ("gemini", Want::Refused(_)) => error["status"] == "PERMISSION_DENIED" && error["code"] == 403,
        ("gemini", _) => error["status"].is_string() && error["code"] == status,
        (_, Want::Refused(_)) => error["code"] == "policy_refused" && error["type"] == "invalid_request_error",
        _ => error["code"].is_string() && error["message"].is_string(),
    };
    if !well_formed {
        return Some(format!("not in its dialect: {said}"));
    }
    if let Want::Refused(rule) = &case.want {
        if !text.contains(rule) {
            return Some(format!("{said} does not name `{rule}`"));
        }
        if headers.get("x-should-retry").is_none_or(|value| value != "false") {
            return Some("x-should-retry is not false".to_owned());
        }
    }
    if headers.get("content-type").is_none_or(|value| value != "application/json") {
        return Some("not application/json".to_owned());
    }
    // Nothing of the request is repeated.
    (text.contains("CANARY") || text.contains("resp_1")).then(|| format!("repeats the request: {said}"))
}

/// The name of a member that some object has twice, whatever its spelling.
fn doubled(json: &[u8]) -> Option<String> {
    struct Walk<'a>(&'a [u8], usize);
    impl Walk<'_> {
        fn space(&mut self) {
            while self.0.get(self.1).is_some_and(u8::is_ascii_whitespace) {
                self.1 += 1;
            }
        }
        fn string(&mut self) -> String {
            let start = self.1;
            self.1 += 1;
            while self.0[self.1] != b'"' {
                self.1 += if self.0[self.1] == b'\\' { 2 } else { 1 };
            }
            self.1 += 1;
            serde_json::from_slice(&self.0[start..self.1]).expect("a string")
        }
        fn value(&mut self) -> Option<String> {
            self.space();
            match self.0[self.1] {
                b'{' => {
                    let mut names = std::collections::HashSet::new();
                    self.1 += 1;
                    loop {
                        self.space();
                        match self.0[self.1] {
                            b'}' => break,
                            b',' => self.1 += 1,
                            _ => {
                                let name = self.string();
                                if !names.insert(name.to_lowercase()) {
                                    return Some(name);
                                }
                                self.space();
                                self.1 += 1;
                                if let Some(found) = self.value() {
                                    return Some(found);
                                }
                            }
                        }
                    }
                    self.1 += 1;
                }
                b'[' => {
                    self.1 += 1;
                    loop {
                        self.space();
                        match self.0[self.1] {
                            b']' => break,
                            b',' => self.1 += 1,
                            _ => {
                                if let Some(found) = self.value() {
                                    return Some(found);
                                }
                            }
                        }
                    }
                    self.1 += 1;
                }
                b'"' => drop(self.string()),
                _ => {
                    while self.0.get(self.1).is_some_and(|byte| !matches!(byte, b',' | b'}' | b']')) {
                        self.1 += 1;
                    }
                }
            }
            None
        }
    }
    Walk(json, 0).value()
}

/// Every case, sent in each of these ways, on all four pairs of protocols.
fn run(cases: &[Case], sends: &[Send], more: &str) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for upstream in [Alpn::H1, Alpn::H2] {
        let provider = provider(upstream);
        let edge = edge(&provider, more);
        support::runtime().block_on(async {
            for alpn in [Alpn::H1, Alpn::H2] {
                let mut client = edge.connect(alpn).await;
                for case in cases {
                    for send in sends {
                        let (name, status, headers, said) = ask(&edge, &mut client, case, *send).await;
                        count += 1;
                        if let Some(fault) = fault(&provider, case, &name, status, &headers, &said) {
                            wrong.push(format!("{alpn:?} to {upstream:?}, {}:\n  {fault}", describe(case, *send)));
                        }
                    }
                }
            }
        });
        assert_eq!(edge.metric("nullhop_requests_total", &["outcome=\"internal\""]), 0.0);
        let quiet = edge.wait_for_metric("nullhop_requests_in_flight", &[], |value| value == 0.0, SOON);
        assert!(quiet, "requests stay in flight");
    }
    let shown: Vec<&str> = wrong.iter().take(40).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), shown.join("\n"));
}

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GENERATE: &str = "/v1beta/models/gemini-fake-3:generateContent";
const INTERACTIONS: &str = "/v1beta/interactions";

// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn fields_are_set() {
    let set = |upstream, path, body: &str, wanted: Value| post(upstream, path, body.to_owned(), Want::Json(wanted));
    let deny = json!({"data_collection": "deny", "zdr": true});
    run(
        &[
            set("openai", RESPONSES, "{}", json!({"store": false})),
            set("openai", RESPONSES, "{ }", json!({"store": false})),
            set(
                "openai",
                RESPONSES,
                r#" {"model":"m","input":"Hi"} "#,
                json!({"model": "m", "input": "Hi", "store": false}),
            ),
            set("openai", RESPONSES, "\n{\"model\":\"m\"\n}\n\n", json!({"model": "m", "store": false})),
            set("openai", RESPONSES, r#"{"store":null,"model":"m"}"#, json!({"model": "m", "store": false})),
            set("openai", RESPONSES, r#"{"store":false,"model":"m"}"#, json!({"model": "m", "store": false})),
            // Inside of something else it means nothing.
            set(
                "openai",
                RESPONSES,
                r#"{"input":[{"role":"user","content":"{\"store\":true}"}],"text":{"store":true}}"#,
                json!({"input": [{"role": "user", "content": "{\"store\":true}"}], "text": {"store": true}, "store": false}),
            ),
            set(
                "openai",
                RESPONSES,
                r#"{"tools":[{"type":"function","name":"f","parameters":{"properties":{"store":{"type":"boolean"},"type":{"const":"file_search"}}}}]}"#,
                json!({"tools": [{"type": "function", "name": "f", "parameters": {"properties":
                    {"store": {"type": "boolean"}, "type": {"const": "file_search"}}}}], "store": false}),
            ),
            set("azure", "/openai/v1/responses", r#"{"model":"m"}"#, json!({"model": "m", "store": false})),
            set("xai", RESPONSES, r#"{"model":"m"}"#, json!({"model": "m", "store": false})),
            set("compatible", RESPONSES, r#"{"model":"m"}"#, json!({"model": "m", "store": false})),
            set(
                "gemini",
                INTERACTIONS,
                r#"{"model":"m","input":"Hi"}"#,
                json!({"model": "m", "input": "Hi", "store": false}),
            ),
            set("openrouter", CHAT, r#"{"model":"v/m"}"#, json!({"model": "v/m", "provider": deny})),
            set(
                "openrouter",
                CHAT,
                r#"{"provider":{"only":["a"],"order":["b"],"allow_fallbacks":false},"model":"v/m"}"#,
                json!({"model": "v/m", "provider": {"only": ["a"], "order": ["b"], "allow_fallbacks": false,
                    "data_collection": "deny", "zdr": true}}),
            ),
            set("openrouter", CHAT, r#"{"provider":null}"#, json!({"provider": deny})),
            set("openrouter", CHAT, r#"{"provider":{}}"#, json!({"provider": deny})),
            set("openrouter", CHAT, r#"{"provider":{"zdr":true,"data_collection":"deny"}}"#, json!({"provider": deny})),
            set(
                "openrouter",
                CHAT,
                r#"{"user":"u","a":1,"session_id":"s","trace":{"a":[1,"x"]},"b":2,"metadata":{"k":"v"}}"#,
                json!({"a": 1, "b": 2, "provider": deny}),
            ),
            set(
                "openrouter",
                MESSAGES,
                r#"{"model":"m","metadata":{"user_id":"x"}}"#,
                json!({"model": "m", "provider": deny}),
            ),
            set("openai", CHAT, r#"{"model":"m","metadata":{"a":"b"},"n":1}"#, json!({"model": "m", "n": 1})),
        ],
        &SENDS,
        "",
    );
}

#[test]
fn requests_without_a_wish_arrive_as_they_are() {
    let same = |upstream, path, body: &str| post(upstream, path, body.to_owned(), Want::Same);
    run(
        &[
            same("openai", CHAT, r#"{"model":"m","messages":[{"role":"user","content":"store background"}]}"#),
            same("openai", CHAT, r#"{"model":"m","stream":true,"messages":[]}"#),
            same("openai", CHAT, r#"{"model":"m","store":false}"#),
            same(
                "openai",
                CHAT,
                r#"{"tools":[{"type":"function","function":{"name":"f","parameters":{"store":true}}}]}"#,
            ),
            same("openai", "/v1/embeddings", r#"{"model":"m","input":"Hi"}"#),
            same("openai", "/v1/moderations", r#"{"input":"Hi"}"#),
            same("openai", "/v1/audio/speech", r#"{"model":"m","input":"Hi","voice":"v"}"#),
            same(
                "anthropic",
                MESSAGES,
                r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"Hi"}],"metadata":{"user_id":"x"}}"#,
            ),
            same(
                "anthropic",
                MESSAGES,
                r#"{"tools":[{"type":"web_search_20250305","name":"web_search"},{"name":"f","input_schema":{"type":"code_execution"}}]}"#,
            ),
            same("anthropic", "/v1/messages/count_tokens", r#"{"model":"m","messages":[]}"#),
            same(
                "gemini",
                GENERATE,
                r#"{"contents":[{"parts":[{"text":"{\"cachedContent\":\"x\"}"}]}],"tools":[{"functionDeclarations":[{"name":"googleSearch"}]}]}"#,
            ),
            same("gemini", "/v1beta/models/m:countTokens", r#"{"contents":[]}"#),
            same("gemini", "/v1beta/models/m:embedContent", r#"{"content":{"parts":[{"text":"Hi"}]}}"#),
            same("bedrock", "/model/m/converse", r#"{"messages":[]}"#),
            same("mistral", CHAT, r#"{"model":"m","messages":[]}"#),
            same("groq", "/openai/v1/chat/completions", r#"{"model":"m","messages":[]}"#),
        ],
        &SENDS,
        "",
    );
}

#[test]
fn wishes_are_refused() {
    let no = |upstream, path, body: &str, rule| post(upstream, path, body.to_owned(), Want::Refused(rule));
    run(
        &[
            no("openai", RESPONSES, r#"{"store":true,"input":"CANARY"}"#, "store"),
            no("openai", RESPONSES, r#"{"input":"Hi","background":true}"#, "background"),
            no("openai", RESPONSES, r#"{"conversation":"conv_1"}"#, "conversation"),
            no("openai", RESPONSES, r#"{"conversation":{"id":"conv_1"}}"#, "conversation"),
            no("openai", RESPONSES, r#"{"previous_response_id":"resp_1"}"#, "previous_response"),
            no("openai", RESPONSES, r#"{"prompt":{"id":"pmpt_1"}}"#, "prompt"),
            no("openai", RESPONSES, r#"{"tools":[{"type":"file_search","vector_store_ids":["v"]}]}"#, "file_search"),
            no(
                "openai",
                RESPONSES,
                r#"{"tools":[{"type":"function"},{"type":"code_interpreter","container":{"type":"auto"}}]}"#,
                "code",
            ),
            no("openai", RESPONSES, r#"{"tools":[{"type":"mcp","server_url":"https://CANARY.example"}]}"#, "mcp"),
            no("openai", RESPONSES, r#"{"tools":[{"type":"shell"}]}"#, "code"),
            no(
                "openai",
                RESPONSES,
                r#"{"input":[{"role":"user","content":[{"type":"input_file","file_id":"file_1"}]}]}"#,
                "file",
            ),
            no("openai", CHAT, r#"{"store":true}"#, "store"),
            no(
                "openai",
                CHAT,
                r#"{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file_1"}}]}]}"#,
                "file",
            ),
            no("azure", "/openai/v1/responses", r#"{"store":true}"#, "store"),
            no("xai", RESPONSES, r#"{"store":true}"#, "store"),
            no("anthropic", MESSAGES, r#"{"container":"c_1"}"#, "code"),
            no("anthropic", MESSAGES, r#"{"mcp_servers":[{"type":"url","url":"https://CANARY.example"}]}"#, "mcp"),
            no(
                "anthropic",
                MESSAGES,
                r#"{"tools":[{"type":"code_execution_20250825","name":"code_execution"}]}"#,
                "code",
            ),
            no("anthropic", MESSAGES, r#"{"tools":[{"type":"web_search_20260209","name":"web_search"}]}"#, "code"),
            no(
                "anthropic",
                MESSAGES,
                r#"{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"file_1"}}]}]}"#,
                "file",
            ),
            no("gemini", GENERATE, r#"{"tools":[{"googleSearch":{}}]}"#, "grounding"),
            no("gemini", GENERATE, r#"{"tools":[{"google_search":{}}]}"#, "grounding"),
            no("gemini", GENERATE, r#"{"tools":[{"googleMaps":{}}]}"#, "grounding"),
            no("gemini", GENERATE, r#"{"cachedContent":"cachedContents/x"}"#, "cache"),
            no("gemini", GENERATE, r#"{"contents":[{"parts":[{"fileData":{"fileUri":"https://CANARY"}}]}]}"#, "file"),
            no("gemini", GENERATE, r#"{"contents":[{"parts":[{"file_data":{"file_uri":"https://CANARY"}}]}]}"#, "file"),
            no("gemini", INTERACTIONS, r#"{"store":true}"#, "store"),
            no("gemini", INTERACTIONS, r#"{"background":true}"#, "background"),
            no("gemini", INTERACTIONS, r#"{"previous_interaction_id":"i"}"#, "previous"),
            no("openrouter", CHAT, r#"{"plugins":[{"id":"web"}]}"#, "plugins"),
            no("openrouter", CHAT, r#"{"debug":{"echo_upstream_body":true}}"#, "debug"),
        ],
        &SENDS,
        "",
    );
}

#[test]
fn no_spelling_leads_around_a_rule() {
    let no = |body: &str| post("openai", RESPONSES, body.to_owned(), Want::Refused("store"));
    let escapes: Vec<String> = (0..5)
        .map(|at| {
            let name: String = "store".char_indices().fold(String::new(), |text, (index, c)| match index == at {
                true => format!("{text}\\u{:04x}", c as u32),
                false => format!("{text}{c}"),
            });
            format!("{{\"model\":\"m\",\"{name}\":true}}")
        })
        .collect();
    let mut cases: Vec<Case> = escapes.iter().map(|body| no(body)).collect();
    for body in [
        r#"{"store":false,"store":true}"#,
        r#"{"store":true,"store":false}"#,
        r#"{"store":false,"a":{"store":false},"\u0073\u0074\u006f\u0072\u0065":true}"#,
        r#"{"Store":true}"#,
        r#"{"STORE":true}"#,
        "{\"\u{17f}tore\":true}",
        r#"{"\u017ftore":true}"#,
        r#"{"store" : true}"#,
        "{\"store\"\t:\r\n  true}",
        r#"{"store":1}"#,
        r#"{"store":"true"}"#,
        r#"{"a":"\"}","store":true}"#,
        r#"{"a":"\\","store":true}"#,
        r#"{"a":[[[{}]]],"store":true}"#,
        r#"{"":{},"store":true}"#,
    ] {
        cases.push(no(body));
    }
    for body in [
        r#"{"previous_response_id":null,"previous\u005fresponse\u005fid":"resp_1"}"#,
        r#"{"Previous_Response_Id":"resp_1"}"#,
    ] {
        cases.push(post("openai", RESPONSES, body, Want::Refused("previous_response")));
    }
    for body in [
        r#"{"tools":[{"ty\u0070e":"file_search"}]}"#,
        r#"{"tools":[{"type":"file\u005fsearch"}]}"#,
        r#"{"tools":[{"type":"function","type":"file_search"}]}"#,
        r#"{"tools":[{"type":"file_search","type":"function"}]}"#,
        r#"{"tools":[],"tools":[{"type":"file_search"}]}"#,
        r#"{"tools":{"type":"file_search"}}"#,
        r#"{"tools":[[{"type":"file_search"}]]}"#,
    ] {
        cases.push(post("openai", RESPONSES, body, Want::Refused("file_search")));
    }
    // What is not JSON is read differently by different parsers: it does not pass.
    for body in [
        "",
        "x",
        "[]",
        "\"store\"",
        "{\"store\":true",
        "{\"a\":1}{\"store\":true}",
        "{'store':true}",
        "{store:true}",
        "{\"a\":1,}",
        "{\"a\":1 \"store\":true}",
        "{\"a\":\u{1}}",
        "{\"a\":01}",
        "{\"a\":tru}",
        "{\"a\"\"b\"}",
        "\u{feff}{\"store\":true}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\ud800\"}",
    ] {
        cases.push(post("openai", RESPONSES, body.to_owned(), Want::Status(&[400, 403])));
    }
    cases.push(post("openai", RESPONSES, &b"{\"a\":\"\xff\"}"[..], Want::Status(&[400, 403])));
    cases.push(post("openai", RESPONSES, &b"\xff\xfe{\0}\0"[..], Want::Status(&[400, 403])));
    let deep = format!("{}{}{}", "{\"a\":".repeat(100_000), "1", "}".repeat(100_000));
    cases.push(post("openai", RESPONSES, deep, Want::Status(&[400, 403])));
    run(&cases, &[Send::Whole, Send::Pieces], "");

    // Each of these is refused, or arrives with both switches as they must be for every parser.
    let provider = provider(Alpn::H1);
    let edge = self::edge(&provider, "");
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        for body in [
            r#"{"provider":{"zdr":false}}"#,
            r#"{"provider":{"zdr":false,"data_collection":"allow"}}"#,
            r#"{"provider":{"data_collection":"allow"}}"#,
            r#"{"provider":{"zdr":true,"zdr":false}}"#,
            r#"{"provider":{"z\u0064r":false}}"#,
            r#"{"provider":{"ZDR":false}}"#,
            r#"{"provider":{"zdr":true,"data_collection":"deny"},"provider":{"zdr":false}}"#,
            r#"{"provider":{"zdr":false},"provider":{"zdr":true,"data_collection":"deny"}}"#,
            r#"{"provider":{"only":["a"]},"provider":null}"#,
            r#"{"provider":{},"Provider":{"zdr":false}}"#,
            r#"{"provider":{},"\u0070rovider":{"zdr":false}}"#,
            r#"{"provider":[{"zdr":false}]}"#,
            r#"{"provider":{"zdr":{"zdr":true}}}"#,
            r#"{"provider":{"zdr":[false]}}"#,
            r#"{"provider":"x"}"#,
        ] {
            let case = post("openrouter", CHAT, body, Want::Same);
            let (name, status, _, said) = ask(&edge, &mut client, &case, Send::Whole).await;
            let seen = seen(&provider, &name);
            if status == 403 || status == 400 {
                assert!(seen.iter().all(|seen| seen.body_end != BodyEnd::Clean), "{body}: {said}");
                continue;
            }
            assert_eq!(status, 200, "{body}: {said}");
            let text = String::from_utf8_lossy(&seen[0].body).into_owned();
            let got: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(got["provider"]["zdr"], true, "{body}: {text}");
            assert_eq!(got["provider"]["data_collection"], "deny", "{body}: {text}");
            assert_eq!(doubled(&seen[0].body), None, "{body}: {text}");
        }
    });
}

#[test]
fn paths_that_keep_things_are_refused() {
    let mut cases = Vec::new();
    for path in [
        "/v1/files",
        "/v1/uploads",
        "/v1/batches",
        "/v1/vector_stores",
        "/v1/vector_stores/v/files",
        "/v1/assistants",
        "/v1/threads",
        "/v1/threads/t/runs",
        "/v1/conversations",
        "/v1/containers",
        "/v1/fine_tuning/jobs",
        "/v1/evals",
        "/v1/videos",
        "/v1/skills",
        "/v1/agents",
        "/v1/chatkit/sessions",
        "/v1/files/",
        "/v1/files?a=b",
    ] {
        cases.push(post("openai", path, "{}", Want::Refused("policy")));
    }
    for path in [
        "/v1/files",
        "/v1/skills",
        "/v1/agents",
        "/v1/sessions",
        "/v1/environments",
        "/v1/memory_stores",
        "/v1/vaults",
        "/v1/tunnels",
        "/v1/messages/batches",
    ] {
        cases.push(post("anthropic", path, "{}", Want::Refused("policy")));
    }
    for path in [
        "/v1beta/files",
        "/upload/v1beta/files",
        "/v1beta/cachedContents",
        "/v1beta/fileSearchStores",
        "/v1beta/models/m:batchGenerateContent",
        "/v1beta/models/m:asyncBatchEmbedContent",
        "/v1beta/models/m:predictLongRunning",
    ] {
        cases.push(post("gemini", path, "{}", Want::Refused("policy")));
    }
    for (upstream, path) in [
        ("openrouter", "/v1/files"),
        ("openrouter", "/v1/batches"),
        ("groq", "/openai/v1/batches"),
        ("groq", "/openai/v1/files"),
        ("groq", "/openai/v1/fine_tunings"),
        ("mistral", "/v1/agents/completions"),
        ("mistral", "/v1/conversations"),
        ("mistral", "/v1/libraries"),
        ("mistral", "/v1/batch/jobs"),
        ("mistral", "/v1/files"),
        ("azure", "/openai/v1/files"),
        ("azure", "/openai/assistants?api-version=1"),
    ] {
        cases.push(post(upstream, path, "{}", Want::Refused("policy")));
    }
    for (upstream, path) in [
        ("openai", "/v1/chat/completions"),
        ("openai", "/v1/responses/resp_1"),
        ("openai", "/v1/files/file_1/content"),
        ("gemini", "/v1beta/interactions/i"),
        ("openrouter", "/v1/generation/content?id=g"),
    ] {
        let case = post(upstream, path, "", Want::Refused("policy"));
        cases.push(Case { method: Method::GET, ..case });
    }
    // Other spellings of a path do not reach the provider.
    for path in
        ["/v1/%66iles", "/v1//files", "/v1/./files", "/v1/x/../files", "/v1/Files", "/v1/files%2f", "/v1/files;a"]
    {
        cases.push(post("openai", path, "{}", Want::Status(&[400, 403, 404])));
    }
    run(&cases, &[Send::Whole], "");
}

#[test]
fn threads_are_declined() {
    let with = |beta: &'static str, body: &str, want| {
        let case = post("anthropic", MESSAGES, body.to_owned(), want);
        Case { headers: vec![("anthropic-beta", beta), ("anthropic-version", "2023-06-01")], ..case }
    };
    let both = "other-2026-01-01,message-threads-2026-08-12";
    let cases = [
        with(
            both,
            r#"{"model":"m","thread":{"type":"create"},"messages":[]}"#,
            Want::Json(json!({"model": "m", "messages": []})),
        ),
        with("message-threads-2026-08-12", r#"{"thread":{"type":"create"}}"#, Want::Json(json!({}))),
        with("message-threads-2026-08-12", r#"{"model":"m"}"#, Want::Json(json!({"model": "m"}))),
        with(
            both,
            r#"{"model":"m","thread":{"type":"continue","previous_message_id":"msg_1"},"messages":[]}"#,
            Want::Thread,
        ),
        with(both, r#"{"thread":{"previous_message_id":"msg_1","type":"continue"}}"#, Want::Thread),
        with(both, r#"{"thr\u0065ad":{"type":"continue","previous_message_id":"msg_1"}}"#, Want::Thread),
        with("", r#"{"thread":{"type":"continue","previous_message_id":"msg_1"}}"#, Want::Thread),
    ];
    run(&cases, &SENDS, "");
    let provider = provider(Alpn::H2);
    let edge = edge(&provider, "");
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        for (case, left) in [(&cases[0], "other-2026-01-01"), (&cases[1], ""), (&cases[2], "")] {
            let (name, ..) = ask(&edge, &mut client, case, Send::Whole).await;
            let seen = seen(&provider, &name);
            assert_eq!(seen[0].header("anthropic-beta").replace(' ', ""), left);
            assert_eq!(seen[0].header("anthropic-version"), "2023-06-01");
        }
    });
}

#[test]
fn big_bodies_are_read_to_their_end() {
    let text = "x".repeat(5 << 20);
    let big = |tail: &str| format!("{{\"model\":\"m\",\"input\":\"{text}\"{tail}}}");
    let list = format!("[{}0]", "{\"a\":[1,2,\"store\"]},".repeat(200_000));
    let many = |tail: &str| format!("{{\"x\":{list}{tail}}}");
    let parsed: Value = serde_json::from_str(&list).expect("JSON");
    run(
        &[
            post("openai", RESPONSES, big(""), Want::Json(json!({"model": "m", "input": text, "store": false}))),
            post("openai", RESPONSES, many(""), Want::Json(json!({"x": parsed, "store": false}))),
            post("openai", RESPONSES, big(",\"store\":true"), Want::Refused("store")),
            post("openai", RESPONSES, many(",\"background\":true"), Want::Refused("background")),
            post("openai", CHAT, big(""), Want::Same),
            post("openai", CHAT, big(",\"store\":true"), Want::Refused("store")),
        ],
        &[Send::Whole, Send::Pieces],
        "",
    );
}

#[test]
fn encoded_bodies_go_on_plain() {
    let plain = "{\"model\":\"m\",\"input\":\"Hi\"}";
    let wanted = json!({"model": "m", "input": "Hi", "store": false});
    let encoded = |coding: Coding, name: &'static str, body: &str, want| {
        let case = post("openai", RESPONSES, coding.encode(body.as_bytes()), want);
        Case { headers: vec![("content-encoding", name)], ..case }
    };
    let mut cases = Vec::new();
    for (coding, name) in [(Coding::Zstd, "zstd"), (Coding::Gzip, "gzip"), (Coding::Gzip, "GZIP")] {
        cases.push(encoded(coding, name, plain, Want::Json(wanted.clone())));
        cases.push(encoded(coding, name, "{\"input\":\"Hi\",\"store\":true}", Want::Refused("store")));
        let long = format!("{{\"input\":\"{}\",\"background\":true}}", "Hi ".repeat(500_000));
        cases.push(encoded(coding, name, &long, Want::Refused("background")));
        let mut cut = coding.encode(plain.as_bytes());
        cut.truncate(cut.len() - 9);
        let case = post("openai", RESPONSES, cut, Want::Status(&[400]));
        cases.push(Case { headers: vec![("content-encoding", name)], ..case });
        // 300 MiB in a few hundred KiB.
        let bomb = coding.encode_repeated(&vec![b' '; 1 << 20], 300);
        let case = post("openai", RESPONSES, bomb, Want::Status(&[413]));
        cases.push(Case { headers: vec![("content-encoding", name)], ..case });
    }
    for name in ["x-custom", "gzip, gzip", "compress"] {
        let case = post("openai", RESPONSES, plain, Want::Status(&[415]));
        cases.push(Case { headers: vec![("content-encoding", name)], ..case });
    }
    run(&cases, &[Send::Whole, Send::Pieces], "");
    // The head no longer says what is no longer so.
    let provider = provider(Alpn::H1);
    let edge = edge(&provider, "");
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H2).await;
        let (name, ..) = ask(&edge, &mut client, &cases[0], Send::Whole).await;
        let seen = seen(&provider, &name);
        assert_eq!(seen[0].header("content-encoding"), "");
    });
}

#[test]
fn other_models_are_refused_wherever_they_are_named() {
    let models = "models = [\"gpt-a*\", \"claude-a*\", \"gemini-a\"]\n";
    let model = |upstream, path, body: &str, want| post(upstream, path, body.to_owned(), want);
    let no = || Want::Refused("model");
    let long = "x".repeat(300_000);
    let late = format!("{{\"messages\":[\"{long}\"],\"model\":\"gpt-b\"}}");
    let late_ok = format!("{{\"messages\":[\"{long}\"],\"model\":\"gpt-a1\"}}");
    run(
        &[
            model("openai", CHAT, r#"{"model":"gpt-a1"}"#, Want::Same),
            model("openai", CHAT, r#"{"model":"gpt-b"}"#, no()),
            model("openai", CHAT, r#"{"model":"gpt-a1","model":"gpt-b"}"#, no()),
            model("openai", CHAT, r#"{"model":"gpt-b","model":"gpt-a1"}"#, no()),
            model("openai", CHAT, r#"{"mod\u0065l":"gpt-b"}"#, no()),
            model("openai", CHAT, r#"{"model":"gpt-\u0062"}"#, no()),
            model("openai", CHAT, r#"{"model":"gpt-\u00611"}"#, Want::Same),
            model("openai", CHAT, r#"{"messages":[{"model":"gpt-b"}],"model":"gpt-a1"}"#, Want::Same),
            model("openai", CHAT, &late, no()),
            model("openai", CHAT, &late_ok, Want::Same),
            model("openai", "/v1/embeddings", r#"{"model":"gpt-b"}"#, no()),
            model("openai", RESPONSES, r#"{"model":"gpt-b"}"#, no()),
            model("openai", RESPONSES, r#"{"model":"gpt-a2"}"#, Want::Json(json!({"model": "gpt-a2", "store": false}))),
            model("anthropic", MESSAGES, r#"{"max_tokens":1,"model":"claude-b"}"#, no()),
            model("anthropic", MESSAGES, r#"{"max_tokens":1,"model":"claude-a"}"#, Want::Same),
            model("gemini", "/v1beta/models/gemini-a:generateContent", r#"{"contents":[]}"#, Want::Same),
            model("gemini", "/v1beta/models/gemini-b:generateContent", r#"{"contents":[]}"#, no()),
            model("gemini", "/v1beta/models/gemini-%62:generateContent", r#"{"contents":[]}"#, no()),
            model("openrouter", CHAT, r#"{"model":"gpt-a1","models":["gpt-a2","gpt-b"]}"#, no()),
            model("bedrock", "/model/gpt-b/converse", "{}", no()),
            model("bedrock", "/model/gpt-a1/converse", "{}", Want::Same),
        ],
        &SENDS[..2],
        models,
    );
}

// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn usage_is_asked_for() {
    let chat = |body: &str, wanted: Value| post("openai", CHAT, body.to_owned(), Want::Json(wanted));
    let same = |body: &str| post("openai", CHAT, body.to_owned(), Want::Same);
    let on = json!({"include_usage": true});
    let mut both = on.clone();
    both["include_obfuscation"] = json!(false);
    run(
        &[
            chat(r#"{"stream":true}"#, json!({"stream": true, "stream_options": on})),
            chat(
                r#"{"model":"m","stream":true,"messages":[]}"#,
                json!({"model": "m", "stream": true, "messages": [], "stream_options": on}),
            ),
            chat(r#"{"stream_options":{},"stream":true}"#, json!({"stream": true, "stream_options": on})),
            chat(r#"{"stream":true,"stream_options":{}}"#, json!({"stream": true, "stream_options": on})),
            chat(r#"{"stream":true,"stream_options":{ } }"#, json!({"stream": true, "stream_options": on})),
            chat(r#"{"stream":true,"stream_options":null}"#, json!({"stream": true, "stream_options": on})),
            chat(r#"{"stream_options":null,"stream":true}"#, json!({"stream": true, "stream_options": on})),
            chat(
                r#"{"stream_options":{"include_obfuscation":false},"stream":true}"#,
                json!({"stream": true, "stream_options": both}),
            ),
            chat(
                r#"{"stream":true,"stream_options":{"include_obfuscation":false}}"#,
                json!({"stream": true, "stream_options": both}),
            ),
            chat(
                r#"{"stream":true,"stream_options":{"include_usage":false}}"#,
                json!({"stream": true, "stream_options": on}),
            ),
            chat(
                r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
                json!({"stream": true, "stream_options": on}),
            ),
            same(r#"{"model":"m"}"#),
            same(r#"{"stream":false,"messages":[{"stream":true}]}"#),
            same(r#"{"stream":null}"#),
            post("openai", "/v1/embeddings", r#"{"input":"Hi"}"#, Want::Same),
            post("anthropic", MESSAGES, r#"{"stream":true}"#, Want::Same),
            post("gemini", GENERATE, r#"{"contents":[]}"#, Want::Same),
            post("openai", RESPONSES, r#"{"stream":true}"#, Want::Json(json!({"stream": true, "store": false}))),
        ],
        &SENDS,
        "usage = \"ask\"\n",
    );
    run(&[same(r#"{"stream":true}"#)], &SENDS, "usage = \"auto\"\n");
    run(&[same(r#"{"stream":true}"#)], &SENDS, "usage = \"leave\"\n");
}

/// The provider's own answers, with usage asked for on the client's behalf and without.
#[test]
fn usage_that_was_asked_for_is_hidden() {
    for upstream in [Alpn::H1, Alpn::H2] {
        let provider = provider(upstream);
        let with = edge(&provider, "usage = \"ask\"\n");
        let without = edge(&provider, "");
        support::runtime().block_on(async {
            for alpn in [Alpn::H1, Alpn::H2] {
                for (model, more, cut) in [
                    ("m", "", ""),
                    ("m", "", "every=1"),
                    ("m", "", "every=7;len=chunked"),
                    ("count-30", "", ""),
                    ("count-30", "", "every=97"),
                    ("m", ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]", "every=11"),
                    ("m", ",\"stream_options\":{\"include_obfuscation\":false}", "every=3"),
                ] {
                    let body = format!("{{\"model\":\"{model}\",\"stream\":true{more}}}");
                    let mut answers = Vec::new();
                    for edge in [&with, &without] {
                        let mut client = edge.connect(alpn).await;
                        let request = match client.is_h2() {
                            true => Request::post(format!("https://localhost/openai{CHAT}")),
                            false => Request::post(format!("/openai{CHAT}")).header("host", "localhost"),
                        };
                        let request =
                            request.header("authorization", "Bearer k").header("content-type", "application/json");
                        let request = if cut.is_empty() { request } else { request.header("x-script", cut) };
                        let request = request.body(FullBody::new(body.clone())).expect("request");
                        let answer = client.fetch(request).await.expect("answer");
                        assert_eq!(answer.status(), 200);
                        answers.push(answer);
                    }
                    let (hidden, plain) = (answers[0].text(), answers[1].text());
                    assert_eq!(events(&hidden), events(&plain), "{body} {cut}");
                    assert!(hidden.ends_with("data: [DONE]\n\n"), "{body} {cut}");
                    let announced = answers[0].header("content-length");
                    assert!(announced.is_empty() || announced == hidden.len().to_string());
                }
                // Who asks gets it.
                let body = "{\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
                let mut texts = Vec::new();
                for edge in [&with, &without] {
                    let mut client = edge.connect(alpn).await;
                    let case = Case { headers: vec![], ..post("openai", CHAT, body, Want::Same) };
                    let request = match client.is_h2() {
                        true => Request::post(format!("https://localhost/openai{CHAT}")),
                        false => Request::post(format!("/openai{CHAT}")).header("host", "localhost"),
                    };
                    let request =
                        request.header("authorization", "Bearer k").header("content-type", "application/json");
                    let request = request.body(FullBody::new(case.body.clone())).expect("request");
                    texts.push(client.fetch(request).await.expect("answer").text());
                }
                assert_eq!(texts[0], texts[1]);
                assert!(texts[0].contains("\"prompt_tokens\":57"));
            }
        });
        // What was hidden was counted all the same.
        let uncached = with.metric("nullhop_tokens_total", &["kind=\"uncached\""]);
        assert_eq!(uncached, 16.0 * 41.0);
    }
}

/// The data of each event, as JSON where it is.
fn events(text: &str) -> Vec<Value> {
    let data =
        text.split("\n\n").filter(|event| !event.is_empty()).map(|event| event.strip_prefix("data: ").unwrap_or(event));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}
