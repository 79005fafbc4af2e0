//! Amazon Bedrock: Converse in its own words, and InvokeModel in the words of the model's family.
//!
//! Of the families, Anthropic's is read in full, and OpenAI's chat form for those that imitate it. For the rest a stream's
//! last chunk carries figures of Bedrock's own.

use super::anthropic;
use super::document::Document;
use super::table::ERROR;
use super::table::ITEM_REASON;
use super::table::Kind;
use super::table::REASON;
use super::table::Row;
use super::table::Slot;
use super::table::Table;
use super::table::What;
use super::table::array;
use super::table::at;
use super::table::no_items;
use super::table::number;
use super::totals::Figures;
use super::totals::Totals;

const INPUT: Slot = 0;
const READ: Slot = 1;
const WRITE: Slot = 2;
const OUTPUT: Slot = 3;

const USAGE: &[Row] = &[
    number("inputTokens", INPUT),
    number("cacheReadInputTokens", READ),
    number("cacheWriteInputTokens", WRITE),
    number("outputTokens", OUTPUT),
];

/// Converse: one document, and the frames of its stream, whose kind their heads tell.
pub(super) static CONVERSE: Table = Table::new(&[("usage", USAGE)], converse_kind, no_items, commit_converse);

/// Where the figures of Bedrock's own begin, in a chunk.
const METRICS: Slot = anthropic::FREE;
/// Where those of OpenAI's chat form do.
const CHAT: Slot = METRICS + 4;

const CHAT_USAGE: &[Row] = &[
    number("prompt_tokens", CHAT + INPUT),
    number("prompt_tokens_details.cached_tokens", CHAT + READ),
    number("completion_tokens_details.reasoning_tokens", CHAT + WRITE),
    number("completion_tokens", CHAT + OUTPUT),
];

const CHAT_CHOICES: &[Row] = &[
    array("choices", What::Pass, &[ITEM_REASON, REASON]),
    at("choices[].delta", What::Output),
    at("choices[].finish_reason", What::Reason(ITEM_REASON)),
];

const INVOCATION_METRICS: &[Row] = &[
    number("inputTokenCount", METRICS + INPUT),
    number("cacheReadInputTokenCount", METRICS + READ),
    number("cacheWriteInputTokenCount", METRICS + WRITE),
    number("outputTokenCount", METRICS + OUTPUT),
];

/// InvokeModel, one document.
pub(super) static INVOKE: Table = Table::new(
    &[("", anthropic::WHOLE), ("usage", anthropic::USAGE), ("usage", CHAT_USAGE)],
    anthropic::kind,
    anthropic::item,
    commit_invoke,
);

/// InvokeModelWithResponseStream, what its chunks hold.
pub(super) static INVOKE_STREAM: Table = Table::new(
    &[
        ("", anthropic::EVENTS),
        ("usage", anthropic::USAGE),
        ("message.usage", anthropic::MESSAGE_USAGE),
        ("usage", CHAT_USAGE),
        ("", CHAT_CHOICES),
        ("", &[at("model", What::Model), at("error", What::Object(ERROR))]),
        ("amazon-bedrock-invocationMetrics", INVOCATION_METRICS),
    ],
    anthropic::kind,
    invoke_item,
    commit_chunk,
);

fn converse_kind(name: &[u8]) -> Kind {
    match name {
        b"messageStop" => Kind::MessageStop,
        b"metadata" => Kind::Final,
        b"contentBlockStart" | b"contentBlockDelta" => Kind::Output,
        _ => Kind::Other,
    }
}

fn commit_converse(document: &Document, totals: &mut Totals) {
    totals.ended |= document.kind == Kind::MessageStop;
    if (document.kind == Kind::Final || totals.unary) && document.has_any(INPUT..OUTPUT + 1) {
        totals.replace(Figures {
            input: document.number(INPUT),
            cached: document.number(READ),
            cache_write: document.number(WRITE),
            output: document.number(OUTPUT),
            reasoning: 0,
        });
        totals.beside = true;
        totals.settled = true;
    }
}

fn invoke_item(document: &mut Document) {
    super::table::reasons(document);
    anthropic::item(document);
}

fn chat_figures(document: &Document) -> Option<Figures> {
    let known = document.known(CHAT + INPUT).or_else(|| document.known(CHAT + OUTPUT)).is_some();
    known.then(|| Figures {
        input: document.number(CHAT + INPUT),
        cached: document.number(CHAT + READ),
        cache_write: 0,
        output: document.number(CHAT + OUTPUT),
        reasoning: document.number(CHAT + WRITE),
    })
}

fn commit_invoke(document: &Document, totals: &mut Totals) {
    anthropic::commit_unary(document, totals);
    if document.kind != Kind::Message
        && let Some(figures) = chat_figures(document)
    {
        totals.replace(figures);
        totals.settled = true;
    }
}

fn commit_chunk(document: &Document, totals: &mut Totals) {
    anthropic::commit_event(document, totals);
    if matches!(document.kind, Kind::Other) {
        totals.failed |= document.has(ERROR);
        totals.reason |= document.has(REASON);
        if let Some(figures) = chat_figures(document) {
            totals.replace(figures);
            totals.beside = false;
            totals.settled = totals.reason;
        }
    }
    if document.has_any(METRICS..METRICS + 4) {
        // Always in the last chunk. Where the family told its figures, these only repeat them.
        totals.settled |= totals.figures;
        totals.ended |= !totals.figures || !totals.beside || totals.makeshift;
        if !totals.figures || totals.makeshift {
            totals.replace(Figures {
                input: document.number(METRICS + INPUT),
                cached: document.number(METRICS + READ),
                cache_write: document.number(METRICS + WRITE),
                output: document.number(METRICS + OUTPUT),
                reasoning: 0,
            });
            totals.beside = true;
            totals.makeshift = true;
            totals.settled = true;
        }
    }
}
