//! What an exchange cost: the meter that looks on while the answer passes, and the figures that are left at the end.

use std::time::Duration;

use crate::decode::Decoder;
use crate::decode::Encoding;
use crate::message::Fields;
use crate::message::name;
use crate::meter::Api;
use crate::meter::End;
use crate::meter::Framing;
use crate::meter::Meter;
use crate::meter::Report;
use crate::meter::Usage;
use crate::provider::Operation;
use crate::telemetry::labels::MissingReason;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::TokenKind;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::models::ModelId;

/// The most plain bytes that are decoded of one answer. An answer has some megabytes at most, and those are images.
const PLAIN_BYTES_MAX: u64 = 64 << 20;

/// Estimates of a request's tokens end here: no model reads more at once.
const INPUT_ESTIMATE_MAX: u64 = 1 << 20;

/// Bytes for one token, as vendors' rules of thumb for English text have it.
const BYTES_PER_TOKEN: u64 = 4;

/// The most tokens that a figure may have.
const TOKENS_MAX: u64 = 100_000_000;

/// A call to an API that bills by tokens and reports them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Call {
    pub(super) api: Api,
    /// Gemini: a stream is asked for, which comes as an array where it is not asked for as events.
    pub(super) array: bool,
}

/// The meter of one answer, behind a decoder where the answer comes encoded. Holds what those two hold: no content but
/// the decoder's window, which is cleared with it.
pub(super) struct Look {
    /// `None`: the answer is not of a kind that can be read.
    meter: Option<Meter>,
    decoder: Option<Decoder>,
    framing: Option<Framing>,
    /// The rest is not looked at: it could not be decoded.
    broken: bool,
    /// Set while the meter works: it stays set if that panics.
    busy: bool,
}

impl Look {
    /// For an answer with a status of 200 to 299.
    pub(super) fn new(call: Call, headers: &Fields) -> Self {
        let framing = framing(call, headers);
        let mut encodings = headers.get_all(name::CONTENT_ENCODING);
        let encoding = encodings.next().map(|value| value.as_bytes().trim_ascii());
        let encoding = encoding.filter(|value| !value.is_empty() && !value.eq_ignore_ascii_case(b"identity"));
        let decoder = encoding.and_then(Encoding::of).map(|encoding| Decoder::new(encoding, PLAIN_BYTES_MAX));
        let broken = (encoding.is_some() && decoder.is_none()) || encodings.next().is_some();
        let meter = framing.map(|framing| Meter::new(call.api, framing));
        Self { meter, decoder, framing, broken, busy: false }
    }

    /// Whether the answer is one that comes in pieces as they are made.
    pub(super) fn streams(&self) -> bool {
        matches!(self.framing, Some(Framing::Sse | Framing::Array | Framing::Lines | Framing::EventStream))
    }

    /// Looks at bytes as they came. Returns whether output began with them.
    pub(super) fn see(&mut self, bytes: &[u8]) -> bool {
        let Some(meter) = self.meter.as_mut().filter(|_| !self.broken && !self.busy) else { return false };
        let before = meter.output_events();
        self.busy = true;
        match &mut self.decoder {
            None => meter.feed(bytes),
            Some(decoder) => {
                let fed = decoder.push(bytes, &mut |plain| meter.feed(plain));
                if fed.is_err() {
                    self.broken = true;
                    self.decoder = None;
                }
            }
        }
        self.busy = false;
        meter.output_events() > before
    }

    /// What was counted. `whole`: the answer has come to its end.
    pub(super) fn finish(&mut self, whole: bool) -> Counted {
        let streams = self.streams();
        let text = self.framing.is_some();
        let Some(meter) = self.meter.as_mut().filter(|_| !self.busy) else {
            return Counted { report: Report::absent(), output_events: 0, unread: self.busy, streams, text };
        };
        if let Some(decoder) = &mut self.decoder
            && decoder.finish(&mut |plain| meter.feed(plain)).is_err()
            && whole
        {
            self.broken = true;
        }
        let report = meter.finish();
        let unread = self.broken || report.gave_up;
        Counted { report, output_events: meter.output_events(), unread, streams, text }
    }

    /// How many events with output have gone by.
    pub(super) fn output_events(&self) -> u64 {
        self.meter.as_ref().filter(|_| !self.busy).map_or(0, Meter::output_events)
    }

    /// Shows the model that the answer names, once, and wipes its name.
    pub(super) fn name_model<T>(&mut self, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let meter = self.meter.as_mut().filter(|_| !self.busy)?;
        let found = meter.model().map(look)?;
        meter.forget_model();
        Some(found)
    }
}

/// What a meter saw.
pub(super) struct Counted {
    pub(super) report: Report,
    pub(super) output_events: u64,
    /// Some of the answer could not be read.
    pub(super) unread: bool,
    pub(super) streams: bool,
    /// The answer is text: its bytes say something of its tokens.
    pub(super) text: bool,
}

impl Report {
    /// Of an answer that was not looked at.
    pub(super) fn absent() -> Self {
        Self {
            usage: Usage::Absent,
            end: End::Cut,
            input: None,
            cached: None,
            cache_write: None,
            output: None,
            reasoning: None,
            side_input: 0,
            side_output: 0,
            seconds: None,
            gave_up: false,
        }
    }
}

/// How the bytes of an answer are cut into documents, by its own word. `None`: it is none that holds figures.
fn framing(call: Call, headers: &Fields) -> Option<Framing> {
    // Who says nothing sends JSON; the meter gives up where that is not so.
    let Some(value) = headers.get(name::CONTENT_TYPE) else { return Some(Framing::Json) };
    match Framing::of(value.as_bytes(), false) {
        Some(Framing::Json) if call.array && call.api == Api::Gemini => Some(Framing::Array),
        framing => framing,
    }
}

/// Where the figures of an account come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum UsageSource {
    /// The provider reported them where they are final.
    Provider,
    /// The provider reported some before the answer broke off.
    Partial,
    /// None were reported of a call that is billed.
    Estimate,
    /// There is nothing to charge, or nothing to tell it by.
    None,
}

/// Tokens by kind: each is of one kind, so the kinds of a direction add up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) uncached: u64,
    pub(crate) cache_read: u64,
    pub(crate) cache_write: u64,
    pub(crate) response: u64,
    pub(crate) reasoning: u64,
}

impl Tokens {
    /// The partition of a report. Parts that exceed their whole are cut.
    pub(super) fn of(report: &Report) -> Self {
        let figure = |figure: Option<u64>| figure.unwrap_or(0).min(TOKENS_MAX);
        let input = figure(report.input);
        let cache_read = figure(report.cached).min(input);
        let cache_write = figure(report.cache_write).min(input - cache_read);
        let output = figure(report.output);
        let reasoning = figure(report.reasoning).min(output);
        Self {
            uncached: input - cache_read - cache_write,
            cache_read,
            cache_write,
            response: output - reasoning,
            reasoning,
        }
    }

    /// All input.
    pub(crate) fn input(&self) -> u64 {
        self.uncached + self.cache_read + self.cache_write
    }

    /// All output.
    pub(crate) fn output(&self) -> u64 {
        self.response + self.reasoning
    }

    /// Those of one kind.
    pub(crate) fn of_kind(&self, kind: TokenKind) -> u64 {
        match kind {
            TokenKind::Uncached => self.uncached,
            TokenKind::CacheRead => self.cache_read,
            TokenKind::CacheWrite => self.cache_write,
            TokenKind::Response => self.response,
            TokenKind::Reasoning => self.reasoning,
        }
    }
}

/// A rough idea of an answer's tokens, from what went by.
pub(super) struct Relayed {
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    /// What the request allowed, where it said so.
    pub(super) output_tokens_max: Option<u64>,
    pub(super) operation: Operation,
}

impl Relayed {
    /// Input tokens, by the request's bytes.
    pub(super) fn input(&self) -> u64 {
        if self.operation.uploads() {
            return 0;
        }
        (self.request_bytes / BYTES_PER_TOKEN).min(INPUT_ESTIMATE_MAX)
    }

    /// Output tokens: events of a stream that could be read, else by the answer's bytes.
    pub(super) fn output(&self, counted: Option<&Counted>) -> u64 {
        let Some(counted) = counted.filter(|counted| counted.text && !self.operation.uploads()) else { return 0 };
        let tokens = match counted.streams && !counted.unread {
            true => counted.output_events,
            false if self.operation == Operation::Embeddings => 0,
            false => self.response_bytes / BYTES_PER_TOKEN,
        };
        tokens.min(self.output_tokens_max.unwrap_or(u64::MAX)).min(TOKENS_MAX)
    }
}

/// How one exchange ended and what it cost: numbers and labels. Made once, when the exchange is over.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Account {
    pub(crate) upstream: Option<UpstreamId>,
    pub(crate) operation: Operation,
    pub(crate) mode: Mode,
    pub(crate) model: ModelId,
    pub(crate) outcome: Outcome,
    pub(crate) source: UsageSource,
    /// As the provider reported them.
    pub(crate) tokens: Tokens,
    /// Input beyond `tokens` that is charged without a report.
    pub(crate) estimated_input: u64,
    /// The same for output.
    pub(crate) estimated_output: u64,
    /// Reported for another model or pass; not in `tokens`.
    pub(crate) side_input: u64,
    /// See `side_input`.
    pub(crate) side_output: u64,
    /// Audio that is billed by its length.
    pub(crate) seconds: Option<f64>,
    /// Why there are no figures of a call that is billed.
    pub(crate) missing: Option<MissingReason>,
    pub(crate) streaming: bool,
    /// From the request's head to the last byte, or to when the client left.
    pub(crate) duration: Duration,
    /// From the request's head to the first byte of the answer's body.
    pub(crate) first_byte: Option<Duration>,
    /// From the request's head to the first output event; of streams.
    pub(crate) first_token: Option<Duration>,
    /// Between two output tokens; of streams with final figures.
    pub(crate) per_token: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn parts_never_exceed_their_whole() {
        let report = |figures: [u64; 5]| {
            let [input, cached, cache_write, output, reasoning] = figures.map(Some);
            Report { input, cached, cache_write, output, reasoning, ..Report::absent() }
        };
        for (figures, wanted) in [
            ([100, 30, 20, 50, 10], [50, 30, 20, 40, 10]),
            ([100, 0, 0, 50, 50], [100, 0, 0, 0, 50]),
            ([100, 80, 40, 50, 60], [0, 80, 20, 0, 50]),
            ([100, 200, 40, 0, 60], [0, 100, 0, 0, 0]),
            ([u64::MAX, 1, 1, u64::MAX, 0], [TOKENS_MAX - 2, 1, 1, TOKENS_MAX, 0]),
            ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
        ] {
            let tokens = Tokens::of(&report(figures));
            let [uncached, cache_read, cache_write, response, reasoning] = wanted;
            assert_eq!(tokens, Tokens { uncached, cache_read, cache_write, response, reasoning }, "{figures:?}");
            assert_eq!(tokens.input(), figures[0].min(TOKENS_MAX));
            assert_eq!(tokens.output(), figures[3].min(TOKENS_MAX));
        }
        assert_eq!(Tokens::of(&Report::absent()), Tokens::default());
    }

    #[test]
    fn the_answer_says_how_it_is_cut() {
        let chat = Call { api: Api::OpenaiChat, array: false };
        for (kind, framing_wanted) in [
            ("text/event-stream", Some(Framing::Sse)),
            ("Text/Event-Stream; charset=utf-8", Some(Framing::Sse)),
            ("application/json", Some(Framing::Json)),
            ("application/json;charset=UTF-8", Some(Framing::Json)),
            ("application/x-ndjson", Some(Framing::Lines)),
            ("application/vnd.amazon.eventstream", Some(Framing::EventStream)),
            ("audio/mpeg", None),
            ("text/event-streams", None),
            ("", None),
        ] {
            let headers = Fields::from_iter([(name::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(framing(chat, &headers), framing_wanted, "{kind}");
        }
        let json = Fields::from_iter([(name::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        assert_eq!(framing(Call { api: Api::Gemini, array: true }, &json), Some(Framing::Array));
        assert_eq!(framing(Call { api: Api::Gemini, array: false }, &json), Some(Framing::Json));
        assert_eq!(framing(chat, &Fields::default()), Some(Framing::Json));
    }

    #[test]
    fn estimates_are_bounded() {
        let mut relayed = Relayed {
            request_bytes: 4000,
            response_bytes: 800,
            output_tokens_max: None,
            operation: Operation::ChatCompletions,
        };
        let counted =
            |streams, unread, text| Counted { report: Report::absent(), output_events: 7, unread, streams, text };
        assert_eq!(relayed.input(), 1000);
        assert_eq!(relayed.output(Some(&counted(true, false, true))), 7);
        assert_eq!(relayed.output(Some(&counted(true, true, true))), 200);
        assert_eq!(relayed.output(Some(&counted(false, false, true))), 200);
        assert_eq!(relayed.output(Some(&counted(false, false, false))), 0);
        assert_eq!(relayed.output(None), 0);
        relayed.output_tokens_max = Some(5);
        assert_eq!(relayed.output(Some(&counted(true, false, true))), 5);
        relayed.request_bytes = u64::MAX;
        assert_eq!(relayed.input(), INPUT_ESTIMATE_MAX);
        relayed.operation = Operation::Audio;
        assert_eq!((relayed.input(), relayed.output(Some(&counted(false, false, true)))), (0, 0));
    }
}
