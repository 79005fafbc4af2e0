//! The meter's naive twin, for tests only: parses every document as a whole and looks up what the dialect's table says.
//! Written from the same tables as the meter, and with nothing of its code.

use serde_json::Value;

use super::Api;
use super::End;
use super::Framing;
use super::Meter;
use super::Report;
use super::Usage;

/// What the twin makes of an answer.
#[derive(Debug, PartialEq)]
pub struct Reading {
    pub usage: Usage,
    pub end: End,
    /// Input, cached, cache write, output, reasoning.
    pub figures: Option<[u64; 5]>,
    pub side: [u64; 2],
    pub seconds: Option<f64>,
    pub model: Option<String>,
}

/// Documents in order, each with the name that its frame or event gives it.
#[derive(Default)]
struct Documents {
    all: Vec<(String, Value)>,
    done: bool,
    closed: bool,
    whole: bool,
    array: bool,
    exception: bool,
}

/// What `bytes` say, or `None` if something in them is not well-formed, where the meter may be more lenient.
pub fn read(api: Api, framing: Framing, bytes: &[u8]) -> Option<Reading> {
    let mut documents = Documents::default();
    let array = api == Api::Gemini && framing == Framing::Json && bytes.trim_ascii_start().first() == Some(&b'[');
    match framing {
        Framing::Array => documents.array(bytes)?,
        Framing::Json if array => documents.array(bytes)?,
        Framing::Json => documents.json(bytes)?,
        Framing::Sse => documents.events(bytes)?,
        Framing::Lines | Framing::Messages => {
            for line in bytes.split(|byte| *byte == b'\n') {
                if let Some(value) = parse(line)? {
                    documents.all.push((String::new(), value));
                }
            }
        }
        Framing::EventStream => documents.frames(bytes, api == Api::BedrockInvoke)?,
    }
    let unary = framing == Framing::Json && !array;
    Some(look(api, unary, framing == Framing::Messages, &documents))
}

/// All dialects and framings, for those who choose by number.
pub const APIS: [Api; 11] = [
    Api::OpenaiChat,
    Api::OpenaiResponses,
    Api::OpenaiMedia,
    Api::OpenaiRealtime,
    Api::OpenaiLive,
    Api::Anthropic,
    Api::Gemini,
    Api::GeminiLive,
    Api::GeminiInteractions,
    Api::BedrockConverse,
    Api::BedrockInvoke,
];
const FRAMINGS: [Framing; 6] =
    [Framing::Json, Framing::Sse, Framing::Array, Framing::Lines, Framing::Messages, Framing::EventStream];

/// What a meter says of `bytes`, cut at `cuts`, which ascend; WebSocket messages are lines.
pub fn metered(api: Api, framing: Framing, bytes: &[u8], cuts: &[usize]) -> (Report, Option<Vec<u8>>, u64) {
    let mut meter = Meter::new(api, framing);
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let mut piece = &bytes[from..cut];
        from = cut;
        if framing == Framing::Messages {
            while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                meter.feed(&piece[..end]);
                meter.message_end();
                piece = &piece[end + 1..];
            }
        }
        meter.feed(piece);
    }
    let report = meter.finish();
    assert_eq!(meter.finish(), report, "once more");
    (report, meter.model().map(<[u8]>::to_vec), meter.output_events())
}

/// Holds a meter against its twin, where the twin can say something; whether it could.
pub fn agrees(api: Api, framing: Framing, bytes: &[u8], metered: &(Report, Option<Vec<u8>>, u64)) -> bool {
    let Some(expected) = read(api, framing, bytes) else { return false };
    let (report, model, _) = metered;
    let figures = [report.input, report.cached, report.cache_write, report.output, report.reasoning];
    let found = Reading {
        usage: report.usage,
        end: report.end,
        figures: report.input.map(|_| figures.map(|figure| figure.expect("all or none"))),
        side: [report.side_input, report.side_output],
        seconds: report.seconds,
        model: model.as_ref().map(|model| String::from_utf8_lossy(model).into_owned()),
    };
    assert_eq!(found, expected, "{api:?} {framing:?}: {}", String::from_utf8_lossy(bytes));
    true
}

/// One case of a fuzzer.
pub fn check(api: usize, framing: usize, bytes: &[u8]) {
    let (api, framing) = (APIS[api % APIS.len()], FRAMINGS[framing % FRAMINGS.len()]);
    let whole = metered(api, framing, bytes, &[]);
    for cut in 0..bytes.len().min(300) {
        assert!(metered(api, framing, bytes, &[cut]) == whole, "cut at {cut}");
    }
    agrees(api, framing, bytes, &whole);
}

/// A document, `Some(None)` if it is incomplete or no object, `None` if it is malformed.
fn parse(text: &[u8]) -> Option<Option<Value>> {
    match text.trim_ascii_start().first() {
        Some(b'{') => {}
        _ => return Some(None),
    }
    match serde_json::from_slice(text) {
        Ok(value) => Some(Some(value)),
        Err(fault) if fault.is_eof() => Some(None),
        Err(_) => None,
    }
}

impl Documents {
    fn json(&mut self, bytes: &[u8]) -> Option<()> {
        let mut stream = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) if value.is_object() || value.is_array() => {
                self.whole = true;
                self.all.push((String::new(), value));
                Some(())
            }
            None | Some(Ok(_)) => Some(()),
            Some(Err(fault)) => fault.is_eof().then_some(()),
        }
    }

    fn array(&mut self, bytes: &[u8]) -> Option<()> {
        self.array = true;
        let mut rest = bytes.trim_ascii_start();
        if rest.is_empty() {
            return Some(());
        }
        rest = rest.strip_prefix(b"[")?;
        loop {
            rest = rest.trim_ascii_start();
            match rest.first() {
                None => return Some(()),
                Some(b']') => {
                    self.closed = true;
                    return Some(());
                }
                Some(b'{') => {}
                Some(_) => return None,
            }
            let mut stream = serde_json::Deserializer::from_slice(rest).into_iter::<Value>();
            match stream.next()? {
                Ok(value) => self.all.push((String::new(), value)),
                Err(fault) => return fault.is_eof().then_some(()),
            }
            rest = rest[stream.byte_offset()..].trim_ascii_start();
            match rest.first() {
                None => return Some(()),
                Some(b',') => rest = &rest[1..],
                Some(b']') => {}
                Some(_) => return None,
            }
        }
    }

    fn events(&mut self, bytes: &[u8]) -> Option<()> {
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n").replace('\r', "\n");
        if bytes.first() == Some(&0xEF) || text.contains('\u{FFFD}') {
            return None;
        }
        let (mut name, mut data) = (String::new(), None::<String>);
        for line in text.split('\n').chain([""]) {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    if data.starts_with("[DONE]") {
                        self.done = true;
                    } else if let Some(value) = parse(data.as_bytes())? {
                        self.all.push((name.clone(), value));
                    }
                }
                name.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                },
                "event" => name = value.to_owned(),
                _ => {}
            }
        }
        Some(())
    }

    fn frames(&mut self, bytes: &[u8], wrapped: bool) -> Option<()> {
        use base64::Engine;
        let mut rest = bytes;
        let number = |bytes: &[u8]| bytes.iter().fold(0_usize, |value, byte| value << 8 | usize::from(*byte));
        while rest.len() >= 12 {
            let (total, headers) = (number(&rest[..4]), number(&rest[4..8]));
            let mut digest = flate2::Crc::new();
            digest.update(&rest[..8]);
            if number(&rest[8..12]) != digest.sum() as usize || total < 16 || headers > total - 16 {
                return None;
            }
            if rest.len() < total - 4 {
                return Some(());
            }
            let (mut name, mut exception) = (String::new(), false);
            let mut header = &rest[12..12 + headers];
            while !header.is_empty() {
                let length = usize::from(header[0]);
                let key = header.get(1..1 + length)?;
                header = header.get(1 + length..)?;
                if *header.first()? != 7 {
                    return None;
                }
                let length = number(header.get(1..3)?);
                let value = header.get(3..3 + length)?;
                header = &header[3 + length..];
                match key {
                    b":event-type" => name = String::from_utf8_lossy(value).into_owned(),
                    b":message-type" => exception |= value == b"exception" || value == b"error",
                    _ => {}
                }
            }
            let payload = &rest[12 + headers..total - 4];
            self.exception |= exception;
            if let Some(value) = parse(payload)?
                && !exception
            {
                if !wrapped {
                    self.all.push((name, value));
                } else if let Some(inner) = value.get("bytes").and_then(Value::as_str) {
                    let inner = base64::engine::general_purpose::STANDARD.decode(inner).ok()?;
                    if let Some(value) = parse(&inner)? {
                        self.all.push((name, value));
                    }
                }
            }
            rest = rest.get(total..).unwrap_or_default();
        }
        Some(())
    }
}

/// The value at a path of keys and indices joined by dots.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| match key.strip_prefix('#') {
        Some(index) => value.get(index.parse::<usize>().expect("an index")),
        None => value.as_object()?.get(key),
    })
}

fn number(value: &Value, path: &str) -> Option<u64> {
    at(value, path)?.as_u64().filter(|value| *value <= 100_000_000)
}

/// The sum of those figures that are there; `None` if none is.
fn numbers(value: &Value, paths: &[&str]) -> Option<u64> {
    let found: Vec<u64> = paths.iter().filter_map(|path| number(value, path)).collect();
    (!found.is_empty()).then(|| found.iter().sum())
}

fn text<'v>(value: &'v Value, path: &str) -> Option<&'v str> {
    at(value, path)?.as_str()
}

fn seconds(value: &Value) -> Option<f64> {
    at(value, "usage.seconds")?.as_f64().filter(|value| value.is_sign_positive() && *value <= 1e8)
}

fn given(value: &Value, path: &str) -> bool {
    text(value, path).is_some_and(|reason| !reason.is_empty() && reason != "error")
}

fn elements<'v>(value: &'v Value, path: &str) -> impl Iterator<Item = &'v Value> {
    at(value, path).and_then(Value::as_array).into_iter().flatten()
}

fn is_object(value: &Value, path: &str) -> bool {
    at(value, path).is_some_and(Value::is_object)
}

/// Input, cached, cache write, output, reasoning of one object, by the paths of each; `None` if it has no figure.
fn figures(value: &Value, paths: [&[&str]; 5]) -> Option<[u64; 5]> {
    let found = paths.map(|paths| numbers(value, paths));
    found.iter().any(Option::is_some).then(|| found.map(|figure| figure.unwrap_or(0)))
}

fn response(value: &Value) -> Option<[u64; 5]> {
    figures(
        value,
        [
            &["usage.input_tokens"],
            &["usage.input_tokens_details.cached_tokens"],
            &["usage.input_tokens_details.cache_write_tokens"],
            &["usage.output_tokens"],
            &["usage.output_tokens_details.reasoning_tokens"],
        ],
    )
}

fn response_side(value: &Value) -> [u64; 2] {
    ["input_tokens", "output_tokens"].map(|name| {
        number(value, &format!("tool_usage.image_gen.{name}")).unwrap_or(0)
            + elements(value, "output").filter_map(|item| number(item, &format!("svg_usage.{name}"))).sum::<u64>()
    })
}

fn chat(usage: &Value) -> Option<[u64; 5]> {
    let cached = ["prompt_tokens_details.cached_tokens", "prompt_cache_hit_tokens", "cached_tokens"]
        .iter()
        .find_map(|path| number(usage, path));
    let names = ["prompt_tokens", "completion_tokens", "total_tokens"];
    let [input, output, total] = names.map(|name| number(usage, name));
    let reasoning = number(usage, "completion_tokens_details.reasoning_tokens");
    let write = number(usage, "prompt_tokens_details.cache_write_tokens");
    if [input, output, total, cached, reasoning, write].iter().all(Option::is_none) {
        return None;
    }
    let [input, mut output, reasoning] = [input, output, reasoning].map(|figure| figure.unwrap_or(0));
    if reasoning > 0 && total == Some(input + output + reasoning) {
        output += reasoning;
    }
    Some([input, cached.unwrap_or(0), write.unwrap_or(0), output, reasoning])
}

fn gemini(value: &Value) -> Option<[u64; 5]> {
    let usage = at(value, "usageMetadata")?;
    let names = ["promptTokenCount", "toolUsePromptTokenCount", "cachedContentTokenCount", "candidatesTokenCount"];
    let [prompt, tools, cached, candidates] = names.map(|name| number(usage, name));
    let [live, thoughts, total] =
        ["responseTokenCount", "thoughtsTokenCount", "totalTokenCount"].map(|name| number(usage, name));
    [prompt, tools, cached, candidates, live, thoughts].iter().any(Option::is_some).then(|| {
        let input = prompt.unwrap_or(0) + tools.unwrap_or(0);
        let answer = candidates.or(live).unwrap_or(0);
        let thoughts = thoughts.unwrap_or(0);
        let inclusive = thoughts > 0 && total == Some(input + answer);
        [input, cached.unwrap_or(0), 0, if inclusive { answer } else { answer + thoughts }, thoughts]
    })
}

fn interaction(value: &Value, usage: &str) -> Option<[u64; 5]> {
    let usage = at(value, usage)?;
    figures(
        usage,
        [
            &["total_input_tokens", "total_tool_use_tokens"],
            &["total_cached_tokens"],
            &[],
            &["total_output_tokens", "total_thought_tokens"],
            &["total_thought_tokens"],
        ],
    )
}

/// The figures of Anthropic's form so far, each of which a later one replaces.
#[derive(Default)]
struct Claude {
    parts: [Option<u64>; 5],
    side: Option<[u64; 2]>,
}

impl Claude {
    fn take(&mut self, usage: &Value) {
        let names = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"];
        for (part, name) in
            self.parts.iter_mut().zip(names.into_iter().chain(["output_tokens_details.thinking_tokens"]))
        {
            *part = number(usage, name).or(*part);
        }
        if at(usage, "iterations").is_some_and(Value::is_array) {
            let beside = |entry: &&Value| matches!(text(entry, "type"), Some("compaction" | "advisor_message"));
            let sum = |names: &[&str]| {
                elements(usage, "iterations").filter(beside).filter_map(|entry| numbers(entry, names)).sum()
            };
            self.side = Some([sum(&names[..3]), sum(&names[3..])]);
        }
    }

    fn figures(&self) -> Option<[u64; 5]> {
        let [input, read, write, output, thinking] = self.parts.map(|part| part.unwrap_or(0));
        self.parts.iter().any(Option::is_some).then_some([input + read + write, read, write, output, thinking])
    }
}

fn plus(sum: &mut Option<[u64; 5]>, more: Option<[u64; 5]>) -> bool {
    if let Some(more) = more {
        let before = sum.unwrap_or_default();
        *sum = Some(std::array::from_fn(|at| before[at] + more[at]));
    }
    more.is_some()
}

fn look(api: Api, unary: bool, socket: bool, documents: &Documents) -> Reading {
    let mut figures: Option<[u64; 5]> = None;
    let mut side = [0; 2];
    let mut time = None;
    let (mut settled, mut ended, mut failed, mut reason, mut open) = (false, false, documents.exception, false, 0_u64);
    let mut names = Vec::new();
    let mut claude = Claude::default();
    let mut metrics: Option<[u64; 5]> = None;
    let mut others = false;
    for (name, value) in &documents.all {
        let kind = text(value, if api == Api::GeminiInteractions { "event_type" } else { "type" });
        let kind = if api == Api::BedrockConverse { name } else { kind.unwrap_or(name) };
        let kind = if kind.len() < 56 { kind } else { "" };
        match api {
            Api::OpenaiChat => {
                names.push(text(value, "model"));
                failed |= is_object(value, "error") || name == "error";
                reason |= elements(value, "choices").any(|choice| given(choice, "finish_reason"));
                let places = ["usage", "x_groq.usage", "choices.#0.usage"];
                if let Some(found) = places.iter().find_map(|path| chat(at(value, path)?)) {
                    figures = Some(found);
                    settled = at(value, "choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
                }
            }
            Api::OpenaiResponses => {
                let object = if unary { Some(value) } else { value.get("response") };
                names.push(object.and_then(|object| text(object, "model")));
                let empty = Value::Null;
                let object = object.unwrap_or(&empty);
                let last = unary || matches!(kind, "response.completed" | "response.incomplete" | "response.failed");
                if kind == "response.created" && !unary {
                    open += 1;
                }
                if last {
                    open = open.saturating_sub(1);
                    ended |= !unary && kind != "response.failed";
                    if socket {
                        settled |= plus(&mut figures, response(object));
                        let [input, output] = response_side(object);
                        side = [side[0] + input, side[1] + output];
                    } else {
                        figures = response(object).or(figures);
                        settled |= figures.is_some();
                        side = response_side(object);
                    }
                }
                failed |= if unary { is_object(value, "error") } else { matches!(kind, "error" | "response.failed") };
            }
            Api::OpenaiMedia => {
                names.push(text(value, "model"));
                failed |= is_object(value, "error");
                let last = kind.ends_with(".completed") || kind.ends_with(".done");
                ended |= last;
                if last || unary {
                    let found =
                        self::figures(value, [&["usage.input_tokens"], &[], &[], &["usage.output_tokens"], &[]]);
                    settled |= plus(&mut figures, found);
                    side[0] += number(value, "svg_usage.input_tokens").unwrap_or(0);
                    side[1] += number(value, "svg_usage.output_tokens").unwrap_or(0);
                    if let Some(more) = seconds(value) {
                        time = Some(time.unwrap_or(0.0) + more);
                        settled = true;
                    }
                }
            }
            Api::OpenaiRealtime => {
                names.push(text(value, "session.model"));
                match kind {
                    "response.created" => open += 1,
                    "response.done" => {
                        open = open.saturating_sub(1);
                        let paths: [&[&str]; 5] = [
                            &["response.usage.input_tokens"],
                            &["response.usage.input_token_details.cached_tokens"],
                            &[],
                            &["response.usage.output_tokens"],
                            &[],
                        ];
                        settled |= plus(&mut figures, self::figures(value, paths));
                    }
                    "conversation.item.input_audio_transcription.completed" => {
                        let found = ["usage.input_tokens", "usage.output_tokens"].map(|path| number(value, path));
                        if found.iter().any(Option::is_some) {
                            side = [side[0] + found[0].unwrap_or(0), side[1] + found[1].unwrap_or(0)];
                            settled |= plus(&mut figures, Some([0; 5]));
                        }
                        if let Some(more) = seconds(value) {
                            time = Some(time.unwrap_or(0.0) + more);
                            settled = true;
                        }
                    }
                    _ => {}
                }
            }
            Api::OpenaiLive => {
                names.push(text(value, "session.model").or_else(|| text(value, "event.response.model")));
                ended |= kind == "session.closed";
                if matches!(kind, "session.closed" | "session.usage.updated") {
                    if let Some(total) = seconds(value) {
                        time = Some(total);
                        settled = kind == "session.closed";
                    }
                } else if kind == "response.event"
                    && let Some("response.completed" | "response.incomplete" | "response.failed") =
                        text(value, "event.type")
                    && let Some(object) = at(value, "event.response")
                {
                    plus(&mut figures, response(object));
                    let [input, output] = response_side(object);
                    side = [side[0] + input, side[1] + output];
                }
            }
            Api::Anthropic | Api::BedrockInvoke => {
                let chunk = !unary && api == Api::BedrockInvoke;
                let kind = if chunk && kind == "chunk" { "" } else { kind };
                let place = if unary { "model" } else { "message.model" };
                names.push(text(value, place).or_else(|| if chunk { text(value, "model") } else { None }));
                let known = match (unary, kind) {
                    (true, "message") => {
                        claude.take(value.get("usage").unwrap_or(&Value::Null));
                        settled = true;
                        true
                    }
                    (false, "message_start") => {
                        claude.take(at(value, "message.usage").unwrap_or(&Value::Null));
                        true
                    }
                    (false, "message_delta") => {
                        claude.take(value.get("usage").unwrap_or(&Value::Null));
                        settled |= given(value, "delta.stop_reason");
                        true
                    }
                    (false, "message_stop") => {
                        ended = true;
                        true
                    }
                    (_, "error") => {
                        failed = true;
                        true
                    }
                    _ => false,
                };
                failed |= unary && is_object(value, "error");
                if api == Api::BedrockInvoke && (!known || unary && kind != "message") {
                    let usage = value.get("usage").unwrap_or(&Value::Null);
                    let known =
                        ["message", "content_block_delta", "content_block_start", "compaction", "advisor_message"];
                    if unary || !known.contains(&kind) {
                        failed |= is_object(value, "error");
                        reason |= elements(value, "choices").any(|choice| given(choice, "finish_reason"));
                        if number(usage, "prompt_tokens").or(number(usage, "completion_tokens")).is_some() {
                            figures = chat(usage).map(|[input, _, _, _, reasoning]| {
                                let cached = number(usage, "prompt_tokens_details.cached_tokens").unwrap_or(0);
                                [input, cached, 0, number(usage, "completion_tokens").unwrap_or(0), reasoning]
                            });
                            others = true;
                            settled = reason || unary;
                        }
                    }
                }
                if let Some(own) = value.get("amazon-bedrock-invocationMetrics").filter(|_| chunk) {
                    let input = ["inputTokenCount", "cacheReadInputTokenCount", "cacheWriteInputTokenCount"];
                    metrics =
                        self::figures(own, [&input, &input[1..2], &input[2..], &["outputTokenCount"], &[]]).or(metrics);
                    if metrics.is_some() {
                        ended |= claude.figures().is_none();
                        settled = true;
                    }
                }
            }
            Api::Gemini => {
                names.push(text(value, "modelVersion"));
                failed |= is_object(value, "error");
                reason |= elements(value, "candidates").any(|candidate| given(candidate, "finishReason"))
                    || given(value, "promptFeedback.blockReason");
                if let Some(found) = gemini(value) {
                    figures = Some(found);
                    settled = reason;
                }
            }
            Api::GeminiLive => {
                if is_object(value, "serverContent") {
                    ended = at(value, "serverContent.turnComplete") == Some(&Value::Bool(true));
                }
                settled |= plus(&mut figures, gemini(value));
            }
            Api::GeminiInteractions if unary => {
                names.push(text(value, "model"));
                failed |= is_object(value, "error");
                figures = interaction(value, "usage").or(figures);
            }
            Api::GeminiInteractions => {
                names.push(text(value, "interaction.model"));
                failed |= kind == "error";
                let running = match kind {
                    "interaction.completed" => {
                        ended = true;
                        if let Some(found) = interaction(value, "interaction.usage") {
                            figures = Some(found);
                            settled = true;
                        }
                        None
                    }
                    "interaction.status_update" | "step.stop" => interaction(value, "usage"),
                    _ if kind.ends_with(".delta") => interaction(value, "metadata.total_usage"),
                    _ => None,
                };
                if !settled {
                    figures = running.or(figures);
                }
            }
            Api::BedrockConverse => {
                ended |= kind == "messageStop";
                if unary || kind == "metadata" {
                    let input = ["usage.inputTokens", "usage.cacheReadInputTokens", "usage.cacheWriteInputTokens"];
                    let found = self::figures(value, [&input, &input[1..2], &input[2..], &["usage.outputTokens"], &[]]);
                    settled |= found.is_some();
                    figures = found.or(figures);
                }
            }
        }
    }
    if matches!(api, Api::Anthropic | Api::BedrockInvoke) {
        if !others {
            figures = claude.figures().or(metrics);
        }
        side = claude.side.unwrap_or_default();
    }
    match api {
        _ if unary => {
            ended = documents.whole;
            settled = documents.whole;
        }
        Api::OpenaiChat => {
            ended = documents.done;
            settled |= reason || ended;
        }
        Api::OpenaiResponses if socket => ended &= open == 0,
        Api::OpenaiRealtime => ended = open == 0,
        Api::Gemini => ended = reason && (documents.closed || !documents.array),
        _ => {}
    }
    let usage = match (figures.is_some() || time.is_some(), settled) {
        (false, _) => Usage::Absent,
        (true, true) => Usage::Final,
        (true, false) => Usage::Provisional,
    };
    let end = match (failed, ended) {
        (true, _) => End::Error,
        (false, true) => End::Clean,
        (false, false) => End::Cut,
    };
    let figures = figures.or_else(|| time.map(|_| [0; 5]));
    let model = names.into_iter().flatten().find(|name| !name.is_empty() && name.len() <= super::MODEL_BYTES_MAX);
    Reading { usage, end, figures, side, seconds: time, model: model.map(str::to_owned) }
}
