//! What the vendors would say: plausible answers by path, so that their SDKs work without a script.
//!
//! All words, ids and figures are invented; the figures are the constants below.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use http::header::RETRY_AFTER;
use http::request::Parts;
use serde_json::Value;
use serde_json::json;

use super::body::Source;
use super::body::Sse;

/// Prompt tokens of every default answer, cached ones included.
pub const INPUT_TOKENS: u64 = 57;
/// Part of [`INPUT_TOKENS`].
pub const CACHED_TOKENS: u64 = 16;
/// Generated tokens of every default answer, reasoning included.
pub const OUTPUT_TOKENS: u64 = 11;
/// Part of [`OUTPUT_TOKENS`], where the dialect reports it.
pub const REASONING_TOKENS: u64 = 4;
/// What the counting endpoints say.
pub const COUNTED_TOKENS: u64 = 2095;

/// Head and body of an answer, before a script bends it.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) source: Source,
    /// A unary answer of the model `slow` takes its time.
    pub(crate) head_delay: Duration,
}

impl Answer {
    pub(crate) fn empty(status: StatusCode) -> Answer {
        Answer { status, headers: Vec::new(), source: Source::Pieces(VecDeque::new()), head_delay: Duration::ZERO }
    }

    pub(crate) fn of(status: StatusCode, content_type: &str, source: Source) -> Answer {
        let content_type = HeaderValue::from_str(content_type).expect("content types are ASCII");
        Answer { headers: vec![(CONTENT_TYPE, content_type)], source, ..Answer::empty(status) }
    }

    fn json(status: StatusCode, value: &Value) -> Answer {
        Answer::of(status, "application/json", Source::bytes(value.to_string()))
    }
}

/// The families of wire formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
    Google,
}

impl Dialect {
    fn of(parts: &Parts) -> Dialect {
        let path = parts.uri.path();
        if path.contains("/messages") || parts.headers.contains_key("anthropic-version") {
            Dialect::Anthropic
        } else if path.contains(":") || path.starts_with("/v1beta") || parts.headers.contains_key("x-goog-api-key") {
            Dialect::Google
        } else {
            Dialect::OpenAi
        }
    }

    /// The error body the vendor would send with this status.
    fn error(self, status: StatusCode) -> Answer {
        let code = status.as_u16();
        let body = match self {
            Dialect::OpenAi => {
                let (kind, code) = match code {
                    401 => ("invalid_request_error", "invalid_api_key"),
                    403 => ("invalid_request_error", "unsupported_country_region_territory"),
                    404 => ("invalid_request_error", "model_not_found"),
                    429 => ("requests", "rate_limit_exceeded"),
                    500.. => ("server_error", "server_error"),
                    _ => ("invalid_request_error", "invalid_value"),
                };
                json!({"error": {"message": "Scripted failure.", "type": kind, "param": null, "code": code}})
            }
            Dialect::Anthropic => {
                let kind = match code {
                    401 => "authentication_error",
                    402 => "billing_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    408 | 504 => "timeout_error",
                    413 => "request_too_large",
                    429 => "rate_limit_error",
                    529 => "overloaded_error",
                    500.. => "api_error",
                    _ => "invalid_request_error",
                };
                let error = json!({"type": kind, "message": "Scripted failure."});
                json!({"type": "error", "error": error, "request_id": REQUEST_ID})
            }
            Dialect::Google => {
                let name = match code {
                    401 => "UNAUTHENTICATED",
                    403 => "PERMISSION_DENIED",
                    404 => "NOT_FOUND",
                    409 => "ABORTED",
                    429 => "RESOURCE_EXHAUSTED",
                    500 | 502 => "INTERNAL",
                    503 | 529 => "UNAVAILABLE",
                    504 => "DEADLINE_EXCEEDED",
                    _ => "INVALID_ARGUMENT",
                };
                json!({"error": {"code": code, "message": "Scripted failure.", "status": name, "details": []}})
            }
        };
        let mut answer = Answer::json(status, &body);
        answer.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
        answer
    }

    fn id_header(self) -> Option<HeaderName> {
        match self {
            Dialect::OpenAi => Some(HeaderName::from_static("x-request-id")),
            Dialect::Anthropic => Some(HeaderName::from_static("request-id")),
            Dialect::Google => None,
        }
    }
}

/// Whether the answer depends on the request body.
pub(crate) fn reads_body(parts: &Parts) -> bool {
    parts.method == Method::POST
}

/// The default answer, or None where no vendor has such a path. `forced` is a script's status.
pub(crate) fn answer(parts: &Parts, body: &[u8], forced: Option<StatusCode>) -> Option<Answer> {
    let dialect = Dialect::of(parts);
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let ask = Ask::of(parts, &body);
    let failure = forced.or(ask.failure).filter(|status| status.is_client_error() || status.is_server_error());
    let mut answer = match failure {
        Some(status) => dialect.error(status),
        None => success(parts, &body, &ask)?,
    };
    if let Some(name) = dialect.id_header() {
        answer.headers.push((name, HeaderValue::from_static(REQUEST_ID)));
    }
    Some(answer)
}

/// The answer to a path nobody has.
pub(crate) fn not_found(parts: &Parts) -> Answer {
    Dialect::of(parts).error(StatusCode::NOT_FOUND)
}

/// What matters of a request.
struct Ask {
    model: String,
    stream: bool,
    /// The name of the first tool that was offered.
    tool: Option<String>,
    failure: Option<StatusCode>,
    deltas: Option<u64>,
    slow: bool,
}

impl Ask {
    fn of(parts: &Parts, body: &Value) -> Ask {
        let in_path = || {
            let (_, model) = parts.uri.path().rsplit_once('/')?;
            model.split_once(':').map(|(model, _)| model)
        };
        let model = body["model"].as_str().or_else(in_path).unwrap_or("gpt-fake-1").to_owned();
        let first = &body["tools"][0];
        let tool = [&first["function"]["name"], &first["name"], &first["functionDeclarations"][0]["name"]]
            .into_iter()
            .find_map(Value::as_str)
            .map(str::to_owned);
        Ask {
            failure: model.strip_prefix("err-").and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok()),
            deltas: model.strip_prefix("count-").and_then(|count| count.parse().ok()),
            slow: model == "slow",
            stream: body["stream"] == true || parts.uri.path().ends_with(":streamGenerateContent"),
            model,
            tool,
        }
    }

    /// The words of the answer, or numbered ones for `count-N` and `slow`.
    fn sse(
        &self,
        prologue: Vec<Bytes>,
        word: impl Fn(u64, &str) -> Bytes + Send + 'static,
        epilogue: Vec<Bytes>,
    ) -> Answer {
        let (count, period, numbered) = match (self.slow, self.deltas) {
            (true, _) => (SLOW_EVENTS, SLOW_PERIOD, true),
            (_, Some(count)) => (count, Duration::ZERO, true),
            _ => (WORDS.len() as u64, Duration::ZERO, false),
        };
        let make = move |index: u64| {
            if numbered { word(index, &format!("{index} ")) } else { word(index, WORDS[index as usize]) }
        };
        Answer::of(StatusCode::OK, SSE, Source::Sse(Sse::new(prologue, count, period, Box::new(make), epilogue)))
    }

    fn unary(&self, value: &Value) -> Answer {
        let mut answer = Answer::json(StatusCode::OK, value);
        if self.slow {
            answer.head_delay = SLOW_PERIOD * SLOW_EVENTS as u32;
        }
        answer
    }
}

fn success(parts: &Parts, body: &Value, ask: &Ask) -> Option<Answer> {
    let path = parts.uri.path();
    let get = parts.method == Method::GET;
    if get && path.contains("/models") {
        return Some(models(parts));
    }
    if parts.method != Method::POST {
        return None;
    }
    let last = path.rsplit('/').next().unwrap_or("");
    Some(match last {
        "completions" if path.ends_with("/chat/completions") => chat(body, ask),
        "responses" => responses(ask),
        "embeddings" => embeddings(body, ask),
        "messages" => messages(ask),
        "count_tokens" => Answer::json(StatusCode::OK, &json!({"input_tokens": COUNTED_TOKENS})),
        _ => match last.split_once(':')?.1 {
            "generateContent" => ask.unary(&gemini(ask, 0, None, true)),
            "streamGenerateContent" => gemini_stream(parts, ask),
            "countTokens" => Answer::json(StatusCode::OK, &json!({"totalTokens": COUNTED_TOKENS})),
            "embedContent" => Answer::json(StatusCode::OK, &json!({"embedding": {"values": EMBEDDING}})),
            "batchEmbedContents" => Answer::json(StatusCode::OK, &json!({"embeddings": [{"values": EMBEDDING}]})),
            _ => return None,
        },
    })
}

fn chat(body: &Value, ask: &Ask) -> Answer {
    let usage = json!({
        "prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": REASONING_TOKENS, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    });
    let finish = if ask.tool.is_some() { "tool_calls" } else { "stop" };
    if !ask.stream {
        let mut message = json!({"role": "assistant", "content": WORDS.concat(), "refusal": null, "annotations": []});
        if let Some(tool) = &ask.tool {
            message["content"] = Value::Null;
            message["tool_calls"] = json!([{"id": "call_FAKE", "type": "function",
                "function": {"name": tool, "arguments": TOOL_ARGUMENTS.concat()}}]);
        }
        return ask.unary(&json!({
            "id": "chatcmpl-FAKE", "object": "chat.completion", "created": CREATED, "model": ask.model,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}],
            "usage": usage, "service_tier": "default", "system_fingerprint": "fp_fake",
        }));
    }
    let include_usage = body["stream_options"]["include_usage"] == true;
    let model = ask.model.clone();
    let chunk = move |delta: Value, finish: Option<&str>| {
        let mut chunk = json!({
            "id": "chatcmpl-FAKE", "object": "chat.completion.chunk", "created": CREATED, "model": model,
            "service_tier": "default", "system_fingerprint": "fp_fake",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        });
        if include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    };
    let mut prologue = vec![event(None, &chunk(json!({"role": "assistant", "content": "", "refusal": null}), None))];
    let mut epilogue = vec![event(None, &chunk(json!({}), Some(finish)))];
    if include_usage {
        let mut last = chunk(json!({}), None);
        last["choices"] = json!([]);
        last["usage"] = usage;
        epilogue.push(event(None, &last));
    }
    epilogue.push(Bytes::from_static(DONE));
    if let Some(tool) = &ask.tool {
        let call =
            json!({"index": 0, "id": "call_FAKE", "type": "function", "function": {"name": tool, "arguments": ""}});
        prologue.push(event(None, &chunk(json!({"tool_calls": [call]}), None)));
        for part in TOOL_ARGUMENTS {
            let call = json!({"index": 0, "function": {"arguments": part}});
            prologue.push(event(None, &chunk(json!({"tool_calls": [call]}), None)));
        }
        let pieces = prologue.into_iter().chain(epilogue).collect();
        return Answer::of(StatusCode::OK, SSE, Source::Pieces(pieces));
    }
    ask.sse(prologue, move |_, word| event(None, &chunk(json!({"content": word}), None)), epilogue)
}

fn responses(ask: &Ask) -> Answer {
    let usage = json!({
        "input_tokens": INPUT_TOKENS, "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
        "output_tokens": OUTPUT_TOKENS, "output_tokens_details": {"reasoning_tokens": REASONING_TOKENS},
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    });
    let text = WORDS.concat();
    let part = |text: &str| json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text});
    let item = |status: &str, done: bool| match &ask.tool {
        Some(tool) => json!({"id": ITEM_ID, "type": "function_call", "status": status, "call_id": "call_FAKE",
            "name": tool, "arguments": if done { TOOL_ARGUMENTS.concat() } else { String::new() }}),
        None => json!({"id": ITEM_ID, "type": "message", "status": status, "role": "assistant",
            "content": if done { json!([part(&text)]) } else { json!([]) }}),
    };
    let response = |status: &str, output: Value, usage: Value| {
        json!({
            "id": "resp_FAKE", "object": "response", "created_at": CREATED, "status": status, "background": false,
            "error": null, "incomplete_details": null, "instructions": null, "max_output_tokens": null,
            "metadata": {}, "model": ask.model, "output": output, "parallel_tool_calls": true,
            "previous_response_id": null, "reasoning": {"effort": null, "summary": null}, "store": false,
            "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_p": 1.0, "truncation": "disabled", "usage": usage, "user": null,
        })
    };
    let complete = response("completed", json!([item("completed", true)]), usage);
    if !ask.stream {
        return ask.unary(&complete);
    }
    let numbered = |number: u64, mut value: Value| {
        value["sequence_number"] = json!(number);
        let name = value["type"].as_str().expect("every event has a type").to_owned();
        event(Some(&name), &value)
    };
    let open = response("in_progress", json!([]), Value::Null);
    let mut prologue = vec![
        numbered(0, json!({"type": "response.created", "response": open})),
        numbered(1, json!({"type": "response.in_progress", "response": open})),
        numbered(
            2,
            json!({"type": "response.output_item.added", "output_index": 0, "item": item("in_progress", false)}),
        ),
    ];
    let at = |kind: &str, more: Value| {
        let mut value = json!({"type": kind, "item_id": ITEM_ID, "output_index": 0});
        value.as_object_mut().expect("made so").extend(more.as_object().expect("made so").clone());
        value
    };
    let item_done = json!({"type": "response.output_item.done", "output_index": 0, "item": item("completed", true)});
    let completed = json!({"type": "response.completed", "response": complete});
    if ask.tool.is_some() {
        let mut number = 2;
        let mut next = |value| {
            number += 1;
            numbered(number, value)
        };
        for part in TOOL_ARGUMENTS {
            prologue.push(next(at("response.function_call_arguments.delta", json!({"delta": part}))));
        }
        let arguments = TOOL_ARGUMENTS.concat();
        prologue.push(next(at("response.function_call_arguments.done", json!({"arguments": arguments}))));
        prologue.push(next(item_done));
        prologue.push(next(completed));
        return Answer::of(StatusCode::OK, SSE, Source::Pieces(prologue.into()));
    }
    prologue.push(numbered(3, at("response.content_part.added", json!({"content_index": 0, "part": part("")}))));
    let first = prologue.len() as u64;
    let after = first + ask.deltas.unwrap_or(if ask.slow { SLOW_EVENTS } else { WORDS.len() as u64 });
    let text_done = json!({"content_index": 0, "text": text, "logprobs": []});
    let epilogue = vec![
        numbered(after, at("response.output_text.done", text_done)),
        numbered(after + 1, at("response.content_part.done", json!({"content_index": 0, "part": part(&text)}))),
        numbered(after + 2, item_done),
        numbered(after + 3, completed),
    ];
    let delta = move |index, word: &str| {
        let delta = json!({"content_index": 0, "delta": word, "logprobs": []});
        numbered(first + index, at("response.output_text.delta", delta))
    };
    ask.sse(prologue, delta, epilogue)
}

fn embeddings(body: &Value, ask: &Ask) -> Answer {
    let count = body["input"].as_array().map_or(1, Vec::len);
    // The Python SDK asks for base64 by itself.
    let vector = if body["encoding_format"] == "base64" {
        let bytes: Vec<u8> = EMBEDDING.iter().flat_map(|value| value.to_le_bytes()).collect();
        json!(crate::websocket::base64(&bytes))
    } else {
        json!(EMBEDDING)
    };
    let data: Vec<Value> =
        (0..count).map(|index| json!({"object": "embedding", "index": index, "embedding": vector})).collect();
    ask.unary(&json!({"object": "list", "data": data, "model": ask.model,
        "usage": {"prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS}}))
}

fn messages(ask: &Ask) -> Answer {
    // Anthropic counts cached tokens beside input_tokens, not inside.
    let usage = |output: u64| {
        json!({
            "input_tokens": INPUT_TOKENS - CACHED_TOKENS, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED_TOKENS, "output_tokens": output, "service_tier": "standard",
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        })
    };
    let stop = if ask.tool.is_some() { "tool_use" } else { "end_turn" };
    let message = |content: Value, stop: Option<&str>, usage: Value| {
        json!({"id": "msg_FAKE", "type": "message", "role": "assistant", "model": ask.model, "content": content,
            "stop_reason": stop, "stop_sequence": null, "usage": usage})
    };
    let block = |filled: bool| match &ask.tool {
        Some(tool) => {
            let arguments = serde_json::from_str(&TOOL_ARGUMENTS.concat()).expect("the constant is JSON");
            let input: Value = if filled { arguments } else { json!({}) };
            json!({"type": "tool_use", "id": "toolu_FAKE", "name": tool, "input": input})
        }
        None => json!({"type": "text", "text": if filled { WORDS.concat() } else { String::new() }}),
    };
    if !ask.stream {
        return ask.unary(&message(json!([block(true)]), Some(stop), usage(OUTPUT_TOKENS)));
    }
    let named = |value: Value| event(value["type"].as_str(), &value);
    let mut prologue = vec![
        named(json!({"type": "message_start", "message": message(json!([]), None, usage(1))})),
        named(json!({"type": "content_block_start", "index": 0, "content_block": block(false)})),
        named(json!({"type": "ping"})),
    ];
    let epilogue = vec![
        named(json!({"type": "content_block_stop", "index": 0})),
        named(json!({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": null},
            "usage": {"output_tokens": OUTPUT_TOKENS}})),
        named(json!({"type": "message_stop"})),
    ];
    let delta = move |delta: Value| named(json!({"type": "content_block_delta", "index": 0, "delta": delta}));
    if ask.tool.is_some() {
        for part in TOOL_ARGUMENTS {
            prologue.push(delta(json!({"type": "input_json_delta", "partial_json": part})));
        }
        prologue.extend(epilogue);
        return Answer::of(StatusCode::OK, SSE, Source::Pieces(prologue.into()));
    }
    ask.sse(prologue, move |_, word| delta(json!({"type": "text_delta", "text": word})), epilogue)
}

fn gemini(ask: &Ask, index: u64, word: Option<&str>, last: bool) -> Value {
    let part = match (&ask.tool, word) {
        (Some(tool), _) => {
            let arguments: Value = serde_json::from_str(&TOOL_ARGUMENTS.concat()).expect("the constant is JSON");
            json!({"functionCall": {"name": tool, "args": arguments}})
        }
        (None, Some(word)) => json!({"text": word}),
        (None, None) => json!({"text": WORDS.concat()}),
    };
    let mut candidate = json!({"content": {"parts": [part], "role": "model"}, "index": 0});
    let output = OUTPUT_TOKENS - REASONING_TOKENS;
    let mut usage = json!({
        "promptTokenCount": INPUT_TOKENS, "cachedContentTokenCount": CACHED_TOKENS,
        "thoughtsTokenCount": REASONING_TOKENS, "candidatesTokenCount": output.min(index + 1),
        "totalTokenCount": INPUT_TOKENS + REASONING_TOKENS + output.min(index + 1),
    });
    if last {
        candidate["finishReason"] = json!("STOP");
        usage["candidatesTokenCount"] = json!(output);
        usage["totalTokenCount"] = json!(INPUT_TOKENS + OUTPUT_TOKENS);
    }
    json!({"candidates": [candidate], "usageMetadata": usage, "modelVersion": ask.model, "responseId": "FAKEid"})
}

fn gemini_stream(parts: &Parts, ask: &Ask) -> Answer {
    let sse = parts.uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "alt=sse"));
    let whole = ask.tool.is_some();
    if !sse {
        let words: Vec<Value> = if whole {
            vec![gemini(ask, 0, None, true)]
        } else {
            let last = WORDS.len() - 1;
            WORDS.iter().enumerate().map(|(index, word)| gemini(ask, index as u64, Some(word), index == last)).collect()
        };
        let mut pieces: VecDeque<Bytes> = VecDeque::new();
        for (index, word) in words.iter().enumerate() {
            pieces.push_back(Bytes::from(format!("{}{word:#}", if index == 0 { "[" } else { ",\n" })));
        }
        pieces.push_back(Bytes::from_static(b"]\n"));
        return Answer::of(StatusCode::OK, "application/json; charset=UTF-8", Source::Pieces(pieces));
    }
    let last = event(None, &gemini(ask, u64::MAX - 1, Some(""), true));
    if whole {
        return Answer::of(StatusCode::OK, SSE_GOOGLE, Source::Pieces(VecDeque::from([last])));
    }
    let model = Ask { tool: None, model: ask.model.clone(), failure: None, ..*ask };
    let word = move |index, word: &str| event(None, &gemini(&model, index, Some(word), false));
    let mut answer = ask.sse(Vec::new(), word, vec![last]);
    answer.headers = vec![(CONTENT_TYPE, HeaderValue::from_static(SSE_GOOGLE))];
    answer
}

fn models(parts: &Parts) -> Answer {
    let path = parts.uri.path();
    let single = path.rsplit_once("/models/").map(|(_, id)| id);
    let id = single.unwrap_or("fake-1");
    let model = match Dialect::of(parts) {
        Dialect::OpenAi => json!({"id": id, "object": "model", "created": CREATED, "owned_by": "nobody"}),
        Dialect::Anthropic => {
            json!({"type": "model", "id": id, "display_name": "Fake 1", "created_at": "2000-01-01T00:00:00Z"})
        }
        Dialect::Google => json!({"name": format!("models/{id}"), "displayName": "Fake 1", "version": "1",
            "inputTokenLimit": 1000, "outputTokenLimit": 1000, "supportedGenerationMethods": ["generateContent"]}),
    };
    if single.is_some() {
        return Answer::json(StatusCode::OK, &model);
    }
    let list = match Dialect::of(parts) {
        Dialect::OpenAi => json!({"object": "list", "data": [model]}),
        Dialect::Anthropic => json!({"data": [model], "has_more": false, "first_id": id, "last_id": id}),
        Dialect::Google => json!({"models": [model]}),
    };
    Answer::json(StatusCode::OK, &list)
}

fn event(name: Option<&str>, data: &Value) -> Bytes {
    Bytes::from(match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    })
}

pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
pub(crate) const SSE: &str = "text/event-stream; charset=utf-8";
const SSE_GOOGLE: &str = "text/event-stream";
const REQUEST_ID: &str = "req_FAKE";
const ITEM_ID: &str = "item_FAKE";
const CREATED: u64 = 1_700_000_000;
const WORDS: [&str; 7] = ["Fake", " words", " only", ".", " éè", " 😀", " Done."];
const TOOL_ARGUMENTS: [&str; 3] = ["{\"place\":", "\"Nowhere\"", ",\"days\":3}"];
const EMBEDDING: [f32; 8] = [0.5, -0.25, 0.125, 0.0625, -0.5, 0.25, -0.125, 0.75];
/// Ten minutes of events, longer than any test waits: whoever asks for `slow` means to cancel.
const SLOW_EVENTS: u64 = 6_000;
const SLOW_PERIOD: Duration = Duration::from_millis(100);
