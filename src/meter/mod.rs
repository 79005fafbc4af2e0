//! Looks on: counts what a provider reports, from the bytes of an answer as they pass, and keeps none of them.

mod alike;
mod anthropic;
mod api;
mod array;
mod bedrock;
mod document;
mod event_stream;
mod gemini;
pub(crate) mod json;
mod openai_chat;
mod openai_media;
mod openai_responses;
mod scan;
mod sse;
mod table;
mod totals;
#[cfg(any(test, fuzzing))]
pub mod twin;

use document::Progress;
use document::Reader;
use table::Kind;
use totals::Totals;

/// Which of a provider's APIs an answer speaks; each reports usage at places of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Api {
    /// `/chat/completions`, `/completions`, `/embeddings` of OpenAI and all that imitate it.
    OpenaiChat,
    /// `/responses`, also over a WebSocket.
    OpenaiResponses,
    /// Images and audio.
    OpenaiMedia,
    /// `/realtime`.
    OpenaiRealtime,
    /// `/live/sessions`: seconds of audio.
    OpenaiLive,
    /// `/messages`, wherever it is served.
    Anthropic,
    /// `generateContent`, `streamGenerateContent`.
    Gemini,
    /// `BidiGenerateContent`.
    GeminiLive,
    /// `/interactions`.
    GeminiInteractions,
    /// `converse`, `converse-stream`.
    BedrockConverse,
    /// `invoke`, `invoke-with-response-stream`.
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

/// What an answer said of itself. Figures are tokens, at most 100,000,000 for each reply; where replies add up, at most
/// what 32 bits hold. All are there, 0 if they were not given, unless none was.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Report {
    /// How sure the figures are.
    pub usage: Usage,
    /// How the answer ended.
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
///
/// Its size is all it ever holds: of the content at most the key, number or name that a chunk's end has cut, and the
/// model's name.
pub struct Meter {
    api: Api,
    framing: Cut,
    /// It stopped looking.
    gave_up: bool,
    finished: bool,
    reader: Reader,
}

const _: () = assert!(size_of::<Meter>() < 512);

/// Where documents begin and end, and how far that has come.
enum Cut {
    /// One document. For Gemini it may turn out to be an array.
    Json,
    Sse(sse::Events),
    Array(array::Elements),
    Lines,
    Messages,
    EventStream(event_stream::Frames),
}

impl Meter {
    /// A meter for an answer with a status below 400.
    pub fn new(api: Api, framing: Framing) -> Self {
        let cut = match framing {
            Framing::Json => Cut::Json,
            Framing::Sse => Cut::Sse(sse::Events::new()),
            Framing::Array => Cut::Array(array::Elements::new()),
            Framing::Lines => Cut::Lines,
            Framing::Messages => Cut::Messages,
            Framing::EventStream => Cut::EventStream(event_stream::Frames::new(api == Api::BedrockInvoke)),
        };
        let unary = framing == Framing::Json;
        let totals = Totals { unary, many: framing == Framing::Messages, ..Totals::default() };
        Self { api, framing: cut, gave_up: false, finished: false, reader: Reader::new(api.table(unary), totals) }
    }

    /// Looks at the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.gave_up || self.finished {
            return;
        }
        let begins = !self.reader.totals.whole && self.reader.walker.is_new();
        if matches!(self.framing, Cut::Json) && self.api == Api::Gemini && begins {
            let first = bytes.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
            if first == Some(&b'[') {
                self.framing = Cut::Array(array::Elements::new());
                self.reader.totals.unary = false;
            }
        }
        let reader = &mut self.reader;
        let understood = match &mut self.framing {
            Cut::Json => whole(reader, bytes),
            Cut::Sse(events) => {
                events.feed(reader, bytes);
                true
            }
            Cut::Array(elements) => elements.feed(reader, bytes),
            Cut::Lines => {
                lines(reader, bytes);
                true
            }
            Cut::Messages => {
                document(reader, bytes);
                true
            }
            Cut::EventStream(frames) => frames.feed(reader, bytes),
        };
        if !understood {
            self.gave_up = true;
            reader.restart();
        }
    }

    /// A WebSocket message has ended.
    pub fn message_end(&mut self) {
        if matches!(self.framing, Cut::Messages) && !self.finished {
            self.reader.end(Kind::Other);
        }
    }

    /// How many events with output have begun so far; for the time to the first token and between tokens.
    ///
    /// An event counts as soon as it shows that it carries generated output, and once. Which do, by API, is in
    /// `docs/meter.md`. An answer that is one JSON document has no events.
    pub fn output_events(&self) -> u64 {
        self.reader.output_events
    }

    /// What was reported so far.
    pub fn so_far(&self) -> Report {
        self.reader.totals.report(false)
    }

    /// Over a WebSocket: answers that have begun and not ended.
    pub fn answers_open(&self) -> u32 {
        self.reader.totals.open
    }

    /// The model that the answer names so far: the first name that is not empty. `None` again once it is forgotten.
    pub fn model(&self) -> Option<&[u8]> {
        self.reader.model()
    }

    /// Wipes the model's name, for whoever has looked it up. No later name takes its place.
    pub fn forget_model(&mut self) {
        self.reader.forget_model();
    }

    /// The body's end, or where it broke off: what was counted. Figures that were only begun do not count. The same
    /// again if it is called again.
    pub fn finish(&mut self) -> Report {
        if !std::mem::replace(&mut self.finished, true) && !self.gave_up {
            match &mut self.framing {
                Cut::Sse(events) => events.finish(&mut self.reader),
                Cut::Lines | Cut::Messages => _ = self.reader.end(Kind::Other),
                Cut::Json | Cut::Array(_) | Cut::EventStream(_) => self.reader.restart(),
            }
        }
        let closed = matches!(&self.framing, Cut::Array(elements) if elements.closed());
        let array = matches!(self.framing, Cut::Array(_));
        let totals = &mut self.reader.totals;
        if totals.unary {
            totals.ended = totals.whole;
        } else {
            match self.api {
                Api::OpenaiChat => {
                    totals.ended = totals.done;
                    totals.settled |= totals.reason || totals.ended;
                }
                Api::OpenaiResponses if totals.many => totals.ended &= totals.open == 0,
                Api::OpenaiRealtime => totals.ended = totals.open == 0,
                Api::Gemini => totals.ended = totals.reason && (closed || !array),
                _ => {}
            }
        }
        totals.settled |= totals.unary && totals.whole;
        totals.report(self.gave_up)
    }
}

/// The one document of an answer: it counts as soon as it is complete.
fn whole(reader: &mut Reader, bytes: &[u8]) -> bool {
    if reader.totals.whole {
        return true;
    }
    let mut rest = bytes;
    match reader.read(&mut rest) {
        Progress::More => true,
        Progress::Done => {
            reader.totals.whole = true;
            reader.end(Kind::Other);
            true
        }
        Progress::Broken => false,
    }
}

/// Part of a document after which only white space may come.
fn document(reader: &mut Reader, bytes: &[u8]) {
    let mut rest = bytes;
    while reader.read(&mut rest) == Progress::Done {}
}

/// One document a line.
fn lines(reader: &mut Reader, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        document(reader, &rest[..end]);
        reader.end(Kind::Other);
        rest = &rest[end + 1..];
    }
    document(reader, rest);
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.reader.restart();
    }
}

#[cfg(test)]
mod tests;
