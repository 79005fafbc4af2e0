//! Looks on: counts what a provider reports, from the bytes of an answer as they pass, and keeps none of them.

pub(crate) mod json;
mod scan;

use crate::provider::Provider;

/// Which of a provider's APIs an answer speaks; each reports usage at places of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Api {
    /// `/chat/completions`, `/completions`, `/embeddings` of OpenAI and all that imitate it.
    OpenaiChat,
    OpenaiResponses,
    /// Images and audio.
    OpenaiMedia,
    OpenaiRealtime,
    /// `/live/sessions`: seconds of audio.
    OpenaiLive,
    Anthropic,
    Gemini,
    GeminiLive,
    GeminiInteractions,
    BedrockConverse,
    BedrockInvoke,
}

/// How an answer's bytes are cut into documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// One JSON document.
    Json,
    /// Server-sent events.
    Sse,
    /// One JSON array, sent element by element.
    Array,
    /// One JSON document a line.
    Lines,
    /// WebSocket messages, each ended by [`Meter::message_end`].
    Messages,
    /// AWS event stream frames.
    EventStream,
}

/// How sure the figures are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Usage {
    /// From the place where they are final.
    Final,
    /// Figures were seen, not at their final place.
    Provisional,
    /// None were seen.
    #[default]
    Absent,
}

/// How the answer ended, by its own words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum End {
    /// The dialect's last word was said.
    Clean,
    /// The provider reported an error inside the body.
    Error,
    /// Neither.
    #[default]
    Cut,
}

/// The longest model name that is looked at.
pub const MODEL_BYTES_MAX: usize = 96;

/// What an answer said of itself. Figures are tokens, at most 100,000,000 each.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Report {
    pub usage: Usage,
    pub end: End,
    /// All prompt tokens, cached ones included.
    pub input: Option<u64>,
    /// Part of `input`.
    pub cached: Option<u64>,
    /// Part of `input`.
    pub cache_write: Option<u64>,
    /// All generated tokens, reasoning included.
    pub output: Option<u64>,
    /// Part of `output`.
    pub reasoning: Option<u64>,
    /// Beside the main usage, for another model or pass; in neither `input` nor `output`.
    pub side_input: u64,
    /// See `side_input`.
    pub side_output: u64,
    /// Audio that is billed by its length.
    pub seconds: Option<f64>,
    /// Whether the meter gave up on the answer because it is not what its dialect says.
    pub gave_up: bool,
}

/// Counts along with one answer, or one WebSocket.
pub struct Meter {
    _todo: (),
}

impl Meter {
    /// A meter for an answer with a status below 400.
    pub fn new(_api: Api, _framing: Framing) -> Self {
        todo!()
    }

    /// Looks at the next bytes.
    pub fn feed(&mut self, _bytes: &[u8]) {
        todo!()
    }

    /// A WebSocket message has ended.
    pub fn message_end(&mut self) {
        todo!()
    }

    /// How many events with output have begun so far; for the time to the first token and between tokens.
    pub fn output_events(&self) -> u64 {
        todo!()
    }

    /// The model that the answer names so far.
    pub fn model(&self) -> Option<&[u8]> {
        todo!()
    }

    /// The body's end, or where it broke off: what was counted. Figures that were only begun do not count.
    pub fn finish(&mut self) -> Report {
        todo!()
    }
}

impl Api {
    /// The API at `path` of `provider` (an upstream's own path, no query), if it is one that reports usage.
    pub(crate) fn of(_provider: Provider, _path: &str) -> Option<Self> {
        todo!()
    }
}
