//! Which API a path is, and how an answer's bytes are cut: by where a request went and by what the answer calls itself.

use super::Api;
use super::Framing;
use super::anthropic;
use super::bedrock;
use super::gemini;
use super::openai_chat;
use super::openai_media;
use super::openai_responses;
use super::table::Table;
use crate::provider::Provider;

impl Api {
    /// The API at `path` of `provider` (an upstream's own path, no query), if it is one that reports usage.
    ///
    /// Free counts (`count_tokens`, `countTokens`, `/responses/input_tokens`) are none, nor are batches, whose answers are
    /// results that were billed before.
    #[cfg_attr(not(test), expect(dead_code, reason = "taken into use by the relay"))]
    pub(crate) fn of(provider: Provider, path: &str) -> Option<Self> {
        match provider {
            Provider::Anthropic => messages(path),
            Provider::Gemini => google(path),
            Provider::Vertex => match path.contains("/publishers/anthropic/") {
                true => {
                    let (model, method) = path.rsplit_once(':')?;
                    let counts = model.ends_with("/count-tokens");
                    (matches!(method, "rawPredict" | "streamRawPredict") && !counts).then_some(Self::Anthropic)
                }
                // Vertex also serves OpenAI's chat form, below `endpoints/openapi`.
                false => google(path).or_else(|| openai(path).filter(|api| *api == Self::OpenaiChat)),
            },
            Provider::Bedrock => bedrock(path),
            Provider::Openai | Provider::Azure => openai(path),
            Provider::Compatible => messages(path).or_else(|| openai(path)),
        }
    }

    /// The places to look at.
    pub(super) fn table(self, unary: bool) -> &'static Table {
        match (self, unary) {
            (Self::OpenaiChat, _) => &openai_chat::TABLE,
            (Self::OpenaiResponses, true) => &openai_responses::UNARY,
            (Self::OpenaiResponses, false) => &openai_responses::STREAM,
            (Self::OpenaiMedia, _) => &openai_media::MEDIA,
            (Self::OpenaiRealtime, _) => &openai_media::REALTIME,
            (Self::OpenaiLive, _) => &openai_responses::LIVE,
            (Self::Anthropic, true) => &anthropic::UNARY,
            (Self::Anthropic, false) => &anthropic::STREAM,
            (Self::Gemini, _) => &gemini::CONTENT_TABLE,
            (Self::GeminiLive, _) => &gemini::LIVE,
            (Self::GeminiInteractions, true) => &gemini::INTERACTION,
            (Self::GeminiInteractions, false) => &gemini::INTERACTION_EVENTS,
            (Self::BedrockConverse, _) => &bedrock::CONVERSE,
            (Self::BedrockInvoke, true) => &bedrock::INVOKE,
            (Self::BedrockInvoke, false) => &bedrock::INVOKE_STREAM,
        }
    }
}

impl Framing {
    /// How an answer is cut that calls its body `content_type` (the header's value, empty if there is none); `None` if it
    /// is nothing to look into. A Gemini array is [`Framing::Json`], which sees by itself that it is one.
    #[cfg_attr(not(test), expect(dead_code, reason = "taken into use by the relay"))]
    pub(crate) fn of(content_type: &[u8], websocket: bool) -> Option<Self> {
        if websocket {
            return Some(Self::Messages);
        }
        let name = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("text/event-stream") {
            Some(Self::Sse)
        } else if is("application/vnd.amazon.eventstream") {
            Some(Self::EventStream)
        } else if is("application/jsonl")
            || is("application/x-ndjson")
            || is("application/x-jsonl")
            || is("application/ndjson")
        {
            Some(Self::Lines)
        } else if is("application/json") || ends_with_json(name) {
            Some(Self::Json)
        } else {
            None
        }
    }
}

/// `application/problem+json` and the like.
fn ends_with_json(name: &[u8]) -> bool {
    name.len() > 5 && name[name.len() - 5..].eq_ignore_ascii_case(b"+json")
}

/// OpenAI's paths, with whatever prefix: `/v1`, `/openai/v1`, `/openai/deployments/{name}`.
fn openai(path: &str) -> Option<Api> {
    let mut segments = path.rsplit('/');
    let last = segments.next()?;
    let before = segments.next().unwrap_or("");
    match last {
        "completions" | "embeddings" => return Some(Api::OpenaiChat),
        "responses" => return Some(Api::OpenaiResponses),
        "compact" if before == "responses" => return Some(Api::OpenaiResponses),
        "realtime" => return Some(Api::OpenaiRealtime),
        _ => {}
    }
    match before {
        "audio" | "images" => Some(Api::OpenaiMedia),
        "live" if last == "sessions" => Some(Api::OpenaiLive),
        _ => None,
    }
}

/// Anthropic's, with whatever prefix.
fn messages(path: &str) -> Option<Api> {
    path.ends_with("/messages").then_some(Api::Anthropic)
}

/// Google's.
fn google(path: &str) -> Option<Api> {
    if path.starts_with("/ws/") {
        return path.contains("BidiGenerateContent").then_some(Api::GeminiLive);
    }
    if path.ends_with("/interactions") {
        return Some(Api::GeminiInteractions);
    }
    let (_, method) = path.rsplit_once(':')?;
    matches!(method, "generateContent" | "streamGenerateContent" | "embedContent" | "batchEmbedContents")
        .then_some(Api::Gemini)
}

/// Amazon's: `/model/{id}/{method}`.
fn bedrock(path: &str) -> Option<Api> {
    match path.rsplit('/').next()? {
        "converse" | "converse-stream" => Some(Api::BedrockConverse),
        "invoke" | "invoke-with-response-stream" => Some(Api::BedrockInvoke),
        // Its other host speaks OpenAI's and Anthropic's.
        _ => messages(path).or_else(|| openai(path)),
    }
}
