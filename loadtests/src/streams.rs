//! Answers made of random words and figures, in the dialects of the providers, each with an account of what has been said
//! after any number of its bytes. The account is kept by hand while the bytes are made: nothing here reads them again.
//!
//! The words are full of traps: quotes, backslashes, all of Unicode, things that look like events, and objects named like
//! those that hold figures, in places where they mean nothing.

use std::cell::Cell;

use bytes::Bytes;
use http::StatusCode;

use crate::provider::Vector;
use crate::websocket::base64;

/// Random numbers from a seed (splitmix64).
pub struct Random(Cell<u64>);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(Cell::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)))
    }

    fn next(&self) -> u64 {
        let mut z = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(z);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From `low` to `high`, both included.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `of` times.
    pub fn one_in(&self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// One of them.
    pub fn pick<'a, T: ?Sized>(&self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// How sure the figures are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sure {
    /// There are none.
    #[default]
    Absent,
    /// They stood where they may still change.
    Provisional,
    /// They stood at their final place.
    Final,
}

/// How an answer ended by its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Neither of the others was said.
    #[default]
    Cut,
    /// The dialect's last word was said.
    Clean,
    /// An error was reported.
    Error,
}

/// What has been said so far, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// How sure the figures are.
    pub sure: Sure,
    /// How it ended.
    pub end: End,
    /// The whole prompt.
    pub input: Option<u64>,
    /// Part of `input`.
    pub cached: Option<u64>,
    /// Part of `input`.
    pub cache_write: Option<u64>,
    /// All that was generated.
    pub output: Option<u64>,
    /// Part of `output`.
    pub reasoning: Option<u64>,
}

/// What one event says.
#[derive(Clone, Copy, Default)]
struct Said {
    figures: Figures,
    last_place: bool,
    end: Option<End>,
}

/// As one provider has them; None: not said here.
#[derive(Clone, Copy, Default)]
struct Figures {
    input: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
}

/// The kinds of streams that are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Chat completions, streamed.
    Chat,
    /// In one piece.
    ChatWhole,
    /// OpenAI's Responses, streamed.
    Responses,
    /// In one piece.
    ResponsesWhole,
    /// Transcriptions and images.
    Media,
    /// Anthropic's messages, streamed.
    Messages,
    /// In one piece.
    MessagesWhole,
    /// Gemini with `alt=sse`.
    Gemini,
    /// Gemini as a JSON array.
    GeminiArray,
    /// In one piece.
    GeminiWhole,
    /// Gemini's interactions, streamed.
    Interactions,
    /// Bedrock's ConverseStream.
    Converse,
    /// Bedrock's InvokeModelWithResponseStream with one of Anthropic's models.
    Invoke,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 13] = [
        Kind::Chat,
        Kind::ChatWhole,
        Kind::Responses,
        Kind::ResponsesWhole,
        Kind::Media,
        Kind::Messages,
        Kind::MessagesWhole,
        Kind::Gemini,
        Kind::GeminiArray,
        Kind::GeminiWhole,
        Kind::Interactions,
        Kind::Converse,
        Kind::Invoke,
    ];

    /// Which provider says such things, by its name in nullhop's configuration.
    pub fn provider(self) -> &'static str {
        match self {
            Kind::Chat | Kind::ChatWhole | Kind::Responses | Kind::ResponsesWhole | Kind::Media => "openai",
            Kind::Messages | Kind::MessagesWhole => "anthropic",
            Kind::Gemini | Kind::GeminiArray | Kind::GeminiWhole | Kind::Interactions => "gemini",
            Kind::Converse | Kind::Invoke => "bedrock",
        }
    }

    /// The path of the request, and its query.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Chat | Kind::ChatWhole => "/v1/chat/completions",
            Kind::Responses | Kind::ResponsesWhole => "/v1/responses",
            Kind::Media => "/v1/images/generations",
            Kind::Messages | Kind::MessagesWhole => "/v1/messages",
            Kind::Gemini => "/v1beta/models/gemini-fake-3:streamGenerateContent?alt=sse",
            Kind::GeminiArray => "/v1beta/models/gemini-fake-3:streamGenerateContent",
            Kind::GeminiWhole => "/v1beta/models/gemini-fake-3:generateContent",
            Kind::Interactions => "/v1beta/interactions",
            Kind::Converse => "/model/fake-model-1/converse-stream",
            Kind::Invoke => "/model/anthropic.fake-model-1/invoke-with-response-stream",
        }
    }

    /// Beside each other: the input figure does not hold the cached ones.
    fn beside(self) -> bool {
        matches!(self, Kind::Messages | Kind::MessagesWhole | Kind::Converse | Kind::Invoke)
    }
}

/// An answer and its account.
pub struct Stream {
    /// What it is.
    pub kind: Kind,
    bytes: Vec<u8>,
    /// Where each event is complete, and what it says.
    said: Vec<(usize, Said)>,
    content_type: &'static str,
    line: &'static str,
    sse: bool,
    comments: bool,
}

impl Stream {
    /// A stream from a seed.
    pub fn new(kind: Kind, random: &Random) -> Stream {
        let mut stream = Stream {
            kind,
            bytes: Vec::new(),
            said: Vec::new(),
            content_type: "text/event-stream; charset=utf-8",
            line: random.pick(&["\n", "\n", "\n", "\r\n", "\r"]),
            sse: true,
            comments: random.one_in(3),
        };
        match kind {
            Kind::Chat => stream.chat(random),
            Kind::ChatWhole => stream.chat_whole(random),
            Kind::Responses => stream.responses(random),
            Kind::ResponsesWhole => stream.responses_whole(random),
            Kind::Media => stream.media(random),
            Kind::Messages => stream.messages(random),
            Kind::MessagesWhole => stream.messages_whole(random),
            Kind::Gemini => stream.gemini(random),
            Kind::GeminiArray => stream.gemini_array(random),
            Kind::GeminiWhole => stream.gemini_whole(random),
            Kind::Interactions => stream.interactions(random),
            Kind::Converse => stream.converse(random),
            Kind::Invoke => stream.invoke(random),
        }
        stream
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// For [`crate::provider::Provider::put`].
    pub fn vector(&self) -> Vector {
        Vector {
            bytes: Bytes::copy_from_slice(&self.bytes),
            content_type: Some(self.content_type.to_owned()),
            framing: String::new(),
            status: StatusCode::OK,
            content_encoding: None,
            splits: Vec::new(),
        }
    }

    /// What the first `bytes` bytes say.
    pub fn account(&self, bytes: u64) -> Account {
        let mut figures = Figures::default();
        let (mut last_place, mut end) = (false, End::Cut);
        for (_, said) in self.said.iter().take_while(|(at, _)| *at as u64 <= bytes) {
            let new = said.figures;
            figures.input = new.input.or(figures.input);
            figures.cached = new.cached.or(figures.cached);
            figures.cache_write = new.cache_write.or(figures.cache_write);
            figures.output = new.output.or(figures.output);
            figures.reasoning = new.reasoning.or(figures.reasoning);
            last_place |= said.last_place;
            // An error stays one.
            if end != End::Error {
                end = said.end.unwrap_or(end);
            }
        }
        let some = figures.input.is_some() || figures.output.is_some();
        let input = match self.kind.beside() {
            true => figures.input.map(|n| n + figures.cached.unwrap_or(0) + figures.cache_write.unwrap_or(0)),
            false => figures.input,
        };
        let sure = match (some, last_place) {
            (false, _) => Sure::Absent,
            (true, false) => Sure::Provisional,
            (true, true) => Sure::Final,
        };
        Account {
            sure,
            end,
            input,
            cached: figures.cached,
            cache_write: figures.cache_write,
            output: figures.output,
            reasoning: figures.reasoning,
        }
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Framing

    /// One event of server-sent events.
    fn event(&mut self, random: &Random, name: Option<&str>, data: &str, said: Said) {
        let line = self.line;
        if self.comments && random.one_in(4) {
            let comment = random.pick(&[": keep-alive", ":", ": {\"usage\":{\"prompt_tokens\":7}}", ": data: [DONE]"]);
            self.bytes.extend_from_slice(format!("{comment}{line}{line}").as_bytes());
        }
        if self.comments && random.one_in(6) {
            self.bytes.extend_from_slice(format!("id: {}{line}", random.below(100)).as_bytes());
        }
        if let Some(name) = name {
            self.bytes.extend_from_slice(format!("event: {name}{line}").as_bytes());
        }
        let blank = if self.comments && random.one_in(3) { "" } else { " " };
        let data = data.replace(BREAK, &format!("{line}data:{blank}"));
        self.bytes.extend_from_slice(format!("data:{blank}{data}").as_bytes());
        self.said.push((self.bytes.len(), said));
        self.bytes.extend_from_slice(format!("{line}{line}").as_bytes());
    }

    /// One document.
    fn whole(&mut self, random: &Random, json: &str, said: Said) {
        self.content_type = "application/json";
        self.sse = false;
        let lead = random.pick(&["", "", "\n\n\n", " "]);
        let json = json.replace(BREAK, "\n");
        self.bytes.extend_from_slice(format!("{lead}{json}").as_bytes());
        self.said.push((self.bytes.len(), said));
        self.bytes.extend_from_slice(random.pick(&["", "\n"]).as_bytes());
    }

    /// One frame of AWS' event stream.
    fn frame(&mut self, message: &str, event: &str, payload: &str, said: Said) {
        self.content_type = "application/vnd.amazon.eventstream";
        self.sse = false;
        let mut headers = Vec::new();
        let kind = if message == "exception" { ":exception-type" } else { ":event-type" };
        for (name, value) in [(kind, event), (":content-type", "application/json"), (":message-type", message)] {
            headers.push(name.len() as u8);
            headers.extend_from_slice(name.as_bytes());
            headers.push(7);
            headers.extend_from_slice(&(value.len() as u16).to_be_bytes());
            headers.extend_from_slice(value.as_bytes());
        }
        let payload = payload.replace(BREAK, " ");
        let mut frame = Vec::new();
        frame.extend_from_slice(&((16 + headers.len() + payload.len()) as u32).to_be_bytes());
        frame.extend_from_slice(&(headers.len() as u32).to_be_bytes());
        frame.extend_from_slice(&crc32(&frame).to_be_bytes());
        frame.extend_from_slice(&headers);
        frame.extend_from_slice(payload.as_bytes());
        frame.extend_from_slice(&crc32(&frame).to_be_bytes());
        self.bytes.extend_from_slice(&frame);
        // As with events: said with the last byte of its JSON, not of what frames it.
        self.said.push((self.bytes.len() - 4, said));
    }

    // -----------------------------------------------------------------------------------------------------------------
    // OpenAI's chat completions and what imitates them

    fn chat(&mut self, random: &Random) {
        let style = random.below(7);
        let model = string(random.pick(&["gpt-fake-1", "gpt-4o-2024-08-06", "ft:x:y", "an/other"]));
        let (usage, figures) = chat_usage(random, style == 2);
        let chunk = |random: &Random, choices: &str, more: Vec<(&str, String)>| {
            let mut members = vec![
                ("id", "\"chatcmpl-FAKE\"".to_owned()),
                ("object", "\"chat.completion.chunk\"".to_owned()),
                ("model", model.clone()),
                ("choices", choices.to_owned()),
            ];
            if random.one_in(3) {
                members.push(("obfuscation", words(random)));
            }
            if random.one_in(5) {
                members.push(("x_other", trap(random)));
            }
            members.extend(more);
            object(random, members)
        };
        // Which of them says nothing at all.
        let silent = style == 6;
        let count = random.between(1, 8);
        for index in 0..count {
            let delta = match random.below(3) {
                0 => object(random, vec![("tool_calls", tool_call(random))]),
                _ => {
                    let text = words(random);
                    object(random, vec![("content", text)])
                }
            };
            let choice =
                object(random, vec![("index", "0".to_owned()), ("delta", delta), ("finish_reason", "null".to_owned())]);
            let mut said = Said::default();
            let more = match style {
                // Zeros first, then growing.
                1 => {
                    let (usage, figures) = if index == 0 { zeros() } else { (usage.clone(), figures) };
                    said.figures = figures;
                    vec![("usage", usage)]
                }
                0 | 2 => vec![("usage", "null".to_owned())],
                _ => Vec::new(),
            };
            let json = chunk(random, &format!("[{choice}]"), more);
            self.event(random, None, &json, said);
        }
        if random.one_in(8) {
            let error = object(random, vec![("message", words(random)), ("code", "500".to_owned())]);
            let json = format!("{{\"error\":{error}}}");
            self.event(random, None, &json, Said { end: Some(End::Error), ..Said::default() });
            return;
        }
        let reason = string(random.pick(&["stop", "length", "tool_calls"]));
        let in_choice = style == 4;
        let mut members = vec![("index", "0".to_owned()), ("delta", "{}".to_owned()), ("finish_reason", reason)];
        let mut said = Said { last_place: true, ..Said::default() };
        if in_choice {
            members.push(("usage", usage.clone()));
            said.figures = figures;
        }
        let choice = object(random, members);
        let more = match style {
            3 => {
                said.figures = figures;
                vec![("usage", usage.clone())]
            }
            5 => {
                said.figures = figures;
                let inner = object(random, vec![("id", "\"r\"".to_owned()), ("usage", usage.clone())]);
                vec![("x_groq", inner)]
            }
            0 | 2 => vec![("usage", "null".to_owned())],
            _ => Vec::new(),
        };
        let json = chunk(random, &format!("[{choice}]"), more);
        self.event(random, None, &json, said);
        if !silent && !in_choice && style != 3 && style != 5 {
            let json = chunk(random, "[]", vec![("usage", usage)]);
            self.event(random, None, &json, Said { figures, last_place: true, end: None });
        }
        let said = Said { last_place: true, end: Some(End::Clean), ..Said::default() };
        self.event(random, None, "[DONE]", said);
    }

    fn chat_whole(&mut self, random: &Random) {
        let (usage, figures) = chat_usage(random, false);
        let message = object(
            random,
            vec![("role", "\"assistant\"".to_owned()), ("content", words(random)), ("tool_calls", tool_call(random))],
        );
        let choice = object(
            random,
            vec![("index", "0".to_owned()), ("message", message), ("finish_reason", "\"stop\"".to_owned())],
        );
        let json = object(
            random,
            vec![
                ("object", "\"chat.completion\"".to_owned()),
                ("model", "\"gpt-fake-1\"".to_owned()),
                ("choices", format!("[{choice}]")),
                ("metadata", trap(random)),
                ("usage", usage),
            ],
        );
        self.whole(random, &json, Said { figures, last_place: true, end: Some(End::Clean) });
    }

    // -----------------------------------------------------------------------------------------------------------------
    // OpenAI's Responses and media

    fn responses(&mut self, random: &Random) {
        let (usage, figures) = responses_usage(random);
        let response = |random: &Random, status: &str, usage: String| {
            let tool = object(
                random,
                vec![("type", "\"function\"".to_owned()), ("name", words(random)), ("parameters", trap(random))],
            );
            object(
                random,
                vec![
                    ("id", "\"resp_FAKE\"".to_owned()),
                    ("status", string(status)),
                    ("model", "\"gpt-fake-5\"".to_owned()),
                    ("instructions", words(random)),
                    ("tools", format!("[{tool}]")),
                    ("metadata", trap(random)),
                    ("output", format!("[{}]", trap(random))),
                    ("usage", usage),
                ],
            )
        };
        let mut number = 0;
        let mut emit = |this: &mut Stream, random: &Random, kind: &str, more: Vec<(&str, String)>, said: Said| {
            let mut members = vec![("type", string(kind)), ("sequence_number", format!("{number}"))];
            number += 1;
            members.extend(more);
            let json = object(random, members);
            let named = !random.one_in(4);
            this.event(random, named.then_some(kind), &json, said);
        };
        let open = response(random, "in_progress", "null".to_owned());
        emit(self, random, "response.created", vec![("response", open)], Said::default());
        for _ in 0..random.between(1, 8) {
            let more = vec![("delta", words(random)), ("item_id", "\"i\"".to_owned()), ("obfuscation", words(random))];
            let kind = random.pick(&["response.output_text.delta", "response.function_call_arguments.delta"]);
            emit(self, random, kind, more, Said::default());
        }
        match random.below(8) {
            0 => {
                let failed = response(random, "failed", "null".to_owned());
                let said = Said { end: Some(End::Error), ..Said::default() };
                emit(self, random, "response.failed", vec![("response", failed)], said);
            }
            1 => {
                let more = vec![("message", words(random)), ("code", "null".to_owned())];
                emit(self, random, "error", more, Said { end: Some(End::Error), ..Said::default() });
            }
            which => {
                let status = if which == 2 { "incomplete" } else { "completed" };
                let last = response(random, status, usage);
                let kind = format!("response.{status}");
                let said = Said { figures, last_place: true, end: Some(End::Clean) };
                emit(self, random, &kind, vec![("response", last)], said);
            }
        }
    }

    fn responses_whole(&mut self, random: &Random) {
        let (usage, figures) = responses_usage(random);
        let json = object(
            random,
            vec![
                ("object", "\"response\"".to_owned()),
                ("status", "\"completed\"".to_owned()),
                ("model", "\"gpt-fake-5\"".to_owned()),
                ("output", format!("[{}]", trap(random))),
                ("metadata", trap(random)),
                ("usage", usage),
            ],
        );
        self.whole(random, &json, Said { figures, last_place: true, end: Some(End::Clean) });
    }

    fn media(&mut self, random: &Random) {
        let (input, output) = (figure(random), figure(random));
        for index in 0..random.below(3) {
            let json = object(
                random,
                vec![
                    ("type", "\"image_generation.partial_image\"".to_owned()),
                    ("partial_image_index", format!("{index}")),
                    ("b64_json", string(&base64(&[index as u8; 700]))),
                ],
            );
            self.event(random, Some("image_generation.partial_image"), &json, Said::default());
        }
        let usage = object(
            random,
            vec![
                ("input_tokens", format!("{input}")),
                ("output_tokens", format!("{output}")),
                ("total_tokens", format!("{}", input + output)),
                ("input_tokens_details", "{\"text_tokens\":1,\"image_tokens\":2}".to_owned()),
            ],
        );
        let json = object(
            random,
            vec![
                ("type", "\"image_generation.completed\"".to_owned()),
                ("b64_json", string(&base64(&[7; 900]))),
                ("usage", usage),
            ],
        );
        let figures = Figures { input: Some(input), output: Some(output), ..Figures::default() };
        let said = Said { figures, last_place: true, end: Some(End::Clean) };
        self.event(random, Some("image_generation.completed"), &json, said);
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Anthropic

    fn messages(&mut self, random: &Random) {
        for (name, json, said) in message_events(random) {
            let named = !random.one_in(5);
            self.event(random, named.then_some(name), &json, said);
        }
    }

    fn messages_whole(&mut self, random: &Random) {
        let (usage, figures) = messages_usage(random, true);
        let block =
            object(random, vec![("type", "\"tool_use\"".to_owned()), ("name", words(random)), ("input", trap(random))]);
        let json = object(
            random,
            vec![
                ("type", "\"message\"".to_owned()),
                ("model", "\"claude-fake-4-0\"".to_owned()),
                ("content", format!("[{block}]")),
                ("stop_reason", "\"tool_use\"".to_owned()),
                ("usage", usage),
            ],
        );
        self.whole(random, &json, Said { figures, last_place: true, end: Some(End::Clean) });
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Gemini

    fn gemini(&mut self, random: &Random) {
        self.content_type = "text/event-stream";
        self.comments = false;
        for (json, said) in gemini_chunks(random) {
            // This dialect is cut into one line each.
            self.event(random, None, &json.replace(BREAK, " "), said);
        }
    }

    fn gemini_array(&mut self, random: &Random) {
        self.content_type = "application/json; charset=UTF-8";
        self.sse = false;
        let mut clean = false;
        for (index, (json, mut said)) in gemini_chunks(random).into_iter().enumerate() {
            self.bytes.extend_from_slice(if index == 0 { b"[" } else { b"\n,\r\n" });
            self.bytes.extend_from_slice(json.replace(BREAK, "\n").as_bytes());
            // The bracket belongs to the end.
            if said.end == Some(End::Clean) {
                said.end = None;
                clean = true;
            }
            self.said.push((self.bytes.len(), said));
        }
        self.bytes.extend_from_slice(b"\n]");
        self.said.push((self.bytes.len(), Said { end: clean.then_some(End::Clean), ..Said::default() }));
        self.bytes.extend_from_slice(b"\n");
    }

    fn gemini_whole(&mut self, random: &Random) {
        let (json, said) = gemini_chunks(random).pop().expect("at least one");
        self.whole(random, &json, said);
        self.content_type = "application/json; charset=UTF-8";
    }

    fn interactions(&mut self, random: &Random) {
        self.content_type = "text/event-stream";
        self.comments = false;
        let (input, cached, output, thoughts, tools) = gemini_figures(random);
        for _ in 0..random.between(1, 5) {
            let delta = object(random, vec![("type", "\"text\"".to_owned()), ("text", words(random))]);
            let json = object(random, vec![("event_type", "\"step.delta\"".to_owned()), ("delta", delta)]);
            self.event(random, Some("step.delta"), &json.replace(BREAK, " "), Said::default());
        }
        if random.one_in(8) {
            let json = object(
                random,
                vec![("event_type", "\"error\"".to_owned()), ("error", "{\"code\":\"internal\"}".to_owned())],
            );
            let said = Said { end: Some(End::Error), ..Said::default() };
            self.event(random, Some("error"), &json.replace(BREAK, " "), said);
            return;
        }
        let usage = object(
            random,
            vec![
                ("total_input_tokens", format!("{input}")),
                ("total_cached_tokens", format!("{cached}")),
                ("total_output_tokens", format!("{output}")),
                ("total_thought_tokens", format!("{thoughts}")),
                ("total_tool_use_tokens", format!("{tools}")),
                ("total_tokens", format!("{}", input + output + thoughts + tools)),
            ],
        );
        let interaction = object(
            random,
            vec![
                ("id", "\"v1_x\"".to_owned()),
                ("status", "\"completed\"".to_owned()),
                ("outputs", format!("[{}]", trap(random))),
                ("usage", usage),
            ],
        );
        let json =
            object(random, vec![("event_type", "\"interaction.completed\"".to_owned()), ("interaction", interaction)]);
        let figures = Figures {
            input: Some(input + tools),
            cached: Some(cached),
            output: Some(output + thoughts),
            reasoning: Some(thoughts),
            cache_write: None,
        };
        let said = Said { figures, last_place: true, end: Some(End::Clean) };
        self.event(random, Some("interaction.completed"), &json.replace(BREAK, " "), said);
    }

    // -----------------------------------------------------------------------------------------------------------------
    // Bedrock

    fn converse(&mut self, random: &Random) {
        self.frame("event", "messageStart", "{\"role\":\"assistant\",\"p\":\"abcd\"}", Said::default());
        for _ in 0..random.between(1, 6) {
            let delta = object(random, vec![("text", words(random))]);
            let json =
                object(random, vec![("contentBlockIndex", "0".to_owned()), ("delta", delta), ("p", words(random))]);
            self.frame("event", "contentBlockDelta", &json, Said::default());
        }
        if random.one_in(8) {
            let json = object(random, vec![("message", words(random))]);
            let said = Said { end: Some(End::Error), ..Said::default() };
            self.frame("exception", "modelStreamErrorException", &json, said);
            return;
        }
        let json = object(random, vec![("stopReason", "\"end_turn\"".to_owned()), ("p", words(random))]);
        let said = Said { end: Some(End::Clean), ..Said::default() };
        self.frame("event", "messageStop", &json, said);
        let figures = Figures {
            input: Some(figure(random)),
            cached: Some(figure(random)),
            cache_write: Some(figure(random)),
            output: Some(figure(random)),
            reasoning: None,
        };
        let number = |figure: Option<u64>| format!("{}", figure.unwrap_or(0));
        let usage = object(
            random,
            vec![
                ("inputTokens", number(figures.input)),
                ("outputTokens", number(figures.output)),
                ("totalTokens", "99".to_owned()),
                ("cacheReadInputTokens", number(figures.cached)),
                ("cacheWriteInputTokens", number(figures.cache_write)),
                ("cacheDetails", "[{\"ttl\":\"5m\",\"inputTokens\":3}]".to_owned()),
            ],
        );
        let json = object(random, vec![("metrics", "{\"latencyMs\":5}".to_owned()), ("usage", usage)]);
        self.frame("event", "metadata", &json, Said { figures, last_place: true, end: None });
    }

    fn invoke(&mut self, random: &Random) {
        for (_, json, said) in message_events(random) {
            let bytes = base64(json.replace(BREAK, " ").as_bytes());
            let json = object(random, vec![("bytes", string(&bytes)), ("p", "\"abcdef\"".to_owned())]);
            self.frame("event", "chunk", &json, said);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Figures

fn figure(random: &Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => random.below(10),
        2 => random.below(30_000_000),
        _ => random.below(5_000),
    }
}

fn zeros() -> (String, Figures) {
    let figures = Figures { input: Some(0), cached: Some(0), output: Some(0), reasoning: Some(0), cache_write: None };
    let text = "{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0,\
        \"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}";
    (text.to_owned(), figures)
}

/// `outside`: the reasoning is not in the completion, as at xAI.
fn chat_usage(random: &Random, outside: bool) -> (String, Figures) {
    let (input, output) = (figure(random), figure(random));
    let cached = random.below(input + 1);
    let reasoning = if outside { figure(random) } else { random.below(output + 1) };
    let total = input + output + if outside { reasoning } else { 0 };
    let prompt = object(
        random,
        vec![("cached_tokens", format!("{cached}")), ("audio_tokens", "0".to_owned()), ("text_tokens", "1".to_owned())],
    );
    let completion = object(
        random,
        vec![("reasoning_tokens", format!("{reasoning}")), ("accepted_prediction_tokens", "3".to_owned())],
    );
    let text = object(
        random,
        vec![
            ("prompt_tokens", format!("{input}")),
            ("completion_tokens", format!("{output}")),
            ("total_tokens", format!("{total}")),
            ("prompt_tokens_details", prompt),
            ("completion_tokens_details", completion),
            ("queue_time", "0.25".to_owned()),
        ],
    );
    let figures = Figures {
        input: Some(input),
        cached: Some(cached),
        cache_write: None,
        output: Some(if outside { output + reasoning } else { output }),
        reasoning: Some(reasoning),
    };
    (text, figures)
}

fn responses_usage(random: &Random) -> (String, Figures) {
    let (input, output) = (figure(random), figure(random));
    let cached = random.below(input + 1);
    let cache_write = random.below(input - cached + 1);
    let reasoning = random.below(output + 1);
    let details = object(
        random,
        vec![
            ("cached_tokens", format!("{cached}")),
            ("cache_write_tokens", format!("{cache_write}")),
            ("cache_write_tokens_details", "{\"ttl_30m_tokens\":1}".to_owned()),
        ],
    );
    let text = object(
        random,
        vec![
            ("input_tokens", format!("{input}")),
            ("input_tokens_details", details),
            ("output_tokens", format!("{output}")),
            ("output_tokens_details", format!("{{\"reasoning_tokens\":{reasoning}}}")),
            ("total_tokens", format!("{}", input + output)),
        ],
    );
    let figures = Figures {
        input: Some(input),
        cached: Some(cached),
        cache_write: Some(cache_write),
        output: Some(output),
        reasoning: Some(reasoning),
    };
    (text, figures)
}

/// `all`: with the input side.
fn messages_usage(random: &Random, all: bool) -> (String, Figures) {
    let output = figure(random);
    let mut figures = Figures { output: Some(output), ..Figures::default() };
    let mut members = vec![("output_tokens", format!("{output}"))];
    if all {
        let (input, cached, cache_write) = (figure(random), figure(random), figure(random));
        figures = Figures { input: Some(input), cached: Some(cached), cache_write: Some(cache_write), ..figures };
        members.push(("input_tokens", format!("{input}")));
        members.push(("cache_read_input_tokens", format!("{cached}")));
        members.push(("cache_creation_input_tokens", format!("{cache_write}")));
        members.push(("cache_creation", "{\"ephemeral_5m_input_tokens\":5}".to_owned()));
        members.push(("server_tool_use", "{\"web_search_requests\":1}".to_owned()));
    } else if random.one_in(3) {
        members.push(("input_tokens", "null".to_owned()));
        members.push(("cache_read_input_tokens", "null".to_owned()));
    }
    (object(random, members), figures)
}

fn message_events(random: &Random) -> Vec<(&'static str, String, Said)> {
    let mut events = Vec::new();
    let (usage, figures) = messages_usage(random, true);
    let message = object(
        random,
        vec![
            ("type", "\"message\"".to_owned()),
            ("model", "\"claude-fake-4-0\"".to_owned()),
            ("content", "[]".to_owned()),
            ("stop_reason", "null".to_owned()),
            ("usage", usage),
        ],
    );
    let json = object(random, vec![("type", "\"message_start\"".to_owned()), ("message", message)]);
    events.push(("message_start", json, Said { figures, ..Said::default() }));
    let block =
        object(random, vec![("type", "\"tool_use\"".to_owned()), ("id", "\"t\"".to_owned()), ("input", trap(random))]);
    let json = object(random, vec![("type", "\"content_block_start\"".to_owned()), ("content_block", block)]);
    events.push(("content_block_start", json, Said::default()));
    for _ in 0..random.between(1, 6) {
        if random.one_in(5) {
            events.push(("ping", "{\"type\":\"ping\"}".to_owned(), Said::default()));
        }
        let delta = object(random, vec![("type", "\"text_delta\"".to_owned()), ("text", words(random))]);
        let json = object(
            random,
            vec![("type", "\"content_block_delta\"".to_owned()), ("index", "0".to_owned()), ("delta", delta)],
        );
        events.push(("content_block_delta", json, Said::default()));
    }
    if random.one_in(8) {
        let error = object(random, vec![("type", "\"overloaded_error\"".to_owned()), ("message", words(random))]);
        let json = object(random, vec![("type", "\"error\"".to_owned()), ("error", error)]);
        events.push(("error", json, Said { end: Some(End::Error), ..Said::default() }));
        return events;
    }
    let delta = |random: &Random, reason: &str, all| {
        let (usage, figures) = messages_usage(random, all);
        let delta = object(random, vec![("stop_reason", reason.to_owned()), ("stop_sequence", "null".to_owned())]);
        let json = object(random, vec![("type", "\"message_delta\"".to_owned()), ("delta", delta), ("usage", usage)]);
        (json, figures)
    };
    if random.one_in(4) {
        let (json, figures) = delta(random, "null", false);
        events.push(("message_delta", json, Said { figures, ..Said::default() }));
    }
    let all = random.one_in(3);
    let (json, figures) = delta(random, "\"end_turn\"", all);
    events.push(("message_delta", json, Said { figures, last_place: true, end: None }));
    let said = Said { end: Some(End::Clean), ..Said::default() };
    events.push(("message_stop", "{\"type\":\"message_stop\"}".to_owned(), said));
    events
}

/// Prompt, the cached part of it, candidates, thoughts, tools.
fn gemini_figures(random: &Random) -> (u64, u64, u64, u64, u64) {
    let input = figure(random);
    let tools = if random.one_in(3) { random.below(1_000) } else { 0 };
    (input, random.below(input + 1), figure(random), figure(random), tools)
}

fn gemini_chunks(random: &Random) -> Vec<(String, Said)> {
    let (input, cached, output, thoughts, tools) = gemini_figures(random);
    // Some models count the thoughts among the candidates' tokens; then the total says so.
    let inside = thoughts > 0 && random.one_in(4);
    let count = random.between(1, 6);
    let fails = random.one_in(8);
    let mut chunks = Vec::new();
    for index in 1..=count {
        let last = index == count && !fails;
        let candidates = if last { output } else { output * index / (count + 1) };
        let in_candidates = if inside { candidates + thoughts } else { candidates };
        let total = input + tools + candidates + thoughts;
        let mut usage = vec![
            ("promptTokenCount", format!("{input}")),
            ("cachedContentTokenCount", format!("{cached}")),
            ("thoughtsTokenCount", format!("{thoughts}")),
            ("candidatesTokenCount", format!("{in_candidates}")),
            ("totalTokenCount", format!("{total}")),
            ("promptTokensDetails", "[{\"modality\":\"TEXT\",\"tokenCount\":5}]".to_owned()),
        ];
        if tools > 0 {
            usage.push(("toolUsePromptTokenCount", format!("{tools}")));
        }
        let usage = object(random, usage);
        let part = match random.below(3) {
            0 => {
                let call = object(random, vec![("name", words(random)), ("args", trap(random))]);
                object(random, vec![("functionCall", call)])
            }
            _ => object(random, vec![("text", words(random))]),
        };
        let content = object(random, vec![("role", "\"model\"".to_owned()), ("parts", format!("[{part}]"))]);
        let mut candidate = vec![("index", "0".to_owned()), ("content", content)];
        if last {
            candidate.push(("finishReason", "\"STOP\"".to_owned()));
        }
        let candidate = object(random, candidate);
        let json = object(
            random,
            vec![
                ("candidates", format!("[{candidate}]")),
                ("usageMetadata", usage),
                ("modelVersion", "\"gemini-fake-3\"".to_owned()),
            ],
        );
        let figures = Figures {
            input: Some(input + tools),
            cached: Some(cached),
            cache_write: None,
            output: Some(candidates + thoughts),
            reasoning: Some(thoughts),
        };
        chunks.push((json, Said { figures, last_place: last, end: last.then_some(End::Clean) }));
    }
    if fails {
        let error = object(random, vec![("code", "503".to_owned()), ("message", words(random))]);
        chunks.push((format!("{{\"error\":{error}}}"), Said { end: Some(End::Error), ..Said::default() }));
    }
    chunks
}

// ---------------------------------------------------------------------------------------------------------------------
// JSON

/// A place where a document may be broken into lines.
const BREAK: char = '\u{1}';

/// An object of these members, in any order, with white space in between.
fn object(random: &Random, mut members: Vec<(&str, String)>) -> String {
    if random.one_in(2) {
        for index in (1..members.len()).rev() {
            members.swap(index, random.below(index as u64 + 1) as usize);
        }
    }
    let space = |random: &Random| match random.below(24) {
        0 => "\t ".to_owned(),
        1 | 2 => " ".to_owned(),
        3 => BREAK.to_string(),
        _ => String::new(),
    };
    let mut text = "{".to_owned();
    for (index, (key, value)) in members.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&space(random));
        text.push_str(&string(key));
        text.push_str(&space(random));
        text.push(':');
        text.push_str(&space(random));
        text.push_str(value);
    }
    text.push('}');
    text
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A string of random words.
fn words(random: &Random) -> String {
    let mut text = String::new();
    for _ in 0..random.below(6) {
        text.push_str(random.pick(&[
            "fake ",
            "\"",
            "\\",
            "\\\"",
            "\n\n",
            "\r\n",
            "data: [DONE]\n\n",
            "data: {\"usage\":{\"prompt_tokens\":111111}}\n\n",
            "\"usage\":{\"input_tokens\":222222,\"output_tokens\":333333}",
            "},\"usageMetadata\":{\"promptTokenCount\":444444}",
            "}]}",
            "{[",
            "\u{2028}",
            "\u{feff}",
            "é",
            "漢字",
            "😀",
            "\u{7f}\u{0}",
            "event: error\n",
        ]));
    }
    let text = string(&text);
    if !random.one_in(4) {
        return text;
    }
    // The same in escapes: pairs of surrogates for what lies beyond the first plane.
    let mut escaped = String::new();
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

/// An object that is full of figures and means nothing.
fn trap(random: &Random) -> String {
    let usage = object(
        random,
        vec![
            ("prompt_tokens", "555555".to_owned()),
            ("completion_tokens", "666666".to_owned()),
            ("input_tokens", "777777".to_owned()),
            ("output_tokens", "888888".to_owned()),
        ],
    );
    let inner = object(
        random,
        vec![
            ("usage", usage.clone()),
            ("usageMetadata", "{\"promptTokenCount\":999999}".to_owned()),
            ("response", format!("{{\"usage\":{usage}}}")),
            ("type", "\"response.completed\"".to_owned()),
            ("note", words(random)),
        ],
    );
    let deep = random.below(4);
    (0..deep).fold(inner, |inner, _| format!("{{\"properties\":[{inner},[]]}}"))
}

/// A list with one call of a tool, its arguments being a text that holds a trap.
fn tool_call(random: &Random) -> String {
    let arguments = string(&trap(random).replace(BREAK, ""));
    let function = object(random, vec![("name", words(random)), ("arguments", arguments)]);
    let call = object(random, vec![("index", "0".to_owned()), ("function", function)]);
    format!("[{call}]")
}

/// CRC-32 as in zlib.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The data of a stream's events, by plain splitting.
    fn documents(stream: &Stream) -> Vec<String> {
        let text = String::from_utf8(stream.bytes.clone()).unwrap();
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        if !stream.sse {
            return vec![text];
        }
        let data = |event: &str| {
            let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
            lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
        };
        text.split("\n\n").map(data).filter(|data| !data.is_empty()).collect()
    }

    #[test]
    fn every_document_is_json_and_the_account_ends_as_it_should() {
        let mut ends = Vec::new();
        for seed in 0..2_000 {
            let random = Random::new(seed);
            let kind = Kind::ALL[seed as usize % Kind::ALL.len()];
            let stream = Stream::new(kind, &random);
            assert_eq!(stream.account(0), Account::default());
            let account = stream.account(stream.len());
            ends.push((account.sure, account.end));
            assert!(account.cached.unwrap_or(0) + account.cache_write.unwrap_or(0) <= account.input.unwrap_or(0));
            assert!(account.reasoning.unwrap_or(0) <= account.output.unwrap_or(0));
            if kind.provider() == "bedrock" {
                let mut at = 0;
                while at < stream.bytes.len() {
                    let len = u32::from_be_bytes(stream.bytes[at..at + 4].try_into().unwrap()) as usize;
                    at += len;
                }
                assert_eq!(at, stream.bytes.len());
                continue;
            }
            for document in documents(&stream) {
                if document != "[DONE]" {
                    let parsed: Result<Value, _> = serde_json::from_str(&document);
                    assert!(parsed.is_ok(), "{kind:?} {seed}: {parsed:?} {document}");
                }
            }
        }
        for wanted in [(Sure::Final, End::Clean), (Sure::Absent, End::Clean), (Sure::Absent, End::Error)] {
            assert!(ends.contains(&wanted), "{wanted:?}");
        }
        assert!(ends.contains(&(Sure::Provisional, End::Error)));
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
