//! Gemini: `generateContent` and its stream, the Live API, and Interactions.

use super::document::Document;
use super::table::CONTENT;
use super::table::ERROR;
use super::table::ITEM_REASON;
use super::table::Kind;
use super::table::REASON;
use super::table::Row;
use super::table::Slot;
use super::table::TURN_COMPLETE;
use super::table::Table;
use super::table::What;
use super::table::array;
use super::table::at;
use super::table::no_items;
use super::table::number;
use super::table::reasons;
use super::totals::Figures;
use super::totals::Totals;

const PROMPT: Slot = 0;
const TOOL_PROMPT: Slot = 1;
const CACHED: Slot = 2;
const CANDIDATES: Slot = 3;
/// What the Live API calls the candidates.
const RESPONSE: Slot = 4;
const THOUGHTS: Slot = 5;
const TOTAL: Slot = 6;

const USAGE: &[Row] = &[
    number("promptTokenCount", PROMPT),
    number("toolUsePromptTokenCount", TOOL_PROMPT),
    number("cachedContentTokenCount", CACHED),
    number("candidatesTokenCount", CANDIDATES),
    number("responseTokenCount", RESPONSE),
    number("thoughtsTokenCount", THOUGHTS),
    number("totalTokenCount", TOTAL),
];

/// `generateContent`, `streamGenerateContent`.
pub(super) static CONTENT_TABLE: Table = Table::new(
    &[
        ("usageMetadata", USAGE),
        (
            "",
            &[
                at("modelVersion", What::Model),
                at("error", What::Object(ERROR)),
                array("candidates", What::Pass, &[ITEM_REASON, REASON]),
                at("candidates[]", What::Output),
                at("candidates[].finishReason", What::Reason(ITEM_REASON)),
                at("promptFeedback.blockReason", What::Reason(BLOCKED)),
            ],
        ),
    ],
    |_| Kind::Other,
    reasons,
    commit_content,
);

/// A prompt was refused; of its own, because `candidates` forgets its reasons.
const BLOCKED: Slot = 50;

/// The Live API.
pub(super) static LIVE: Table = Table::new(
    &[
        ("usageMetadata", USAGE),
        (
            "",
            &[
                at("serverContent", What::Object(CONTENT)),
                at("serverContent.turnComplete", What::True(TURN_COMPLETE)),
                at("serverContent.modelTurn", What::Output),
            ],
        ),
    ],
    |_| Kind::Other,
    no_items,
    commit_live,
);

/// Where Interactions' running totals begin: `.usage`, `.metadata.total_usage`.
const RUNNING: Slot = 5;
const RUNNING_DELTA: Slot = 10;

macro_rules! interaction_usage {
    ($first:expr) => {
        &[
            number("total_input_tokens", $first),
            number("total_tool_use_tokens", $first + 1),
            number("total_cached_tokens", $first + 2),
            number("total_output_tokens", $first + 3),
            number("total_thought_tokens", $first + 4),
        ]
    };
}

/// Interactions, one document: the root is the interaction.
pub(super) static INTERACTION: Table = Table::new(
    &[("usage", interaction_usage!(0)), ("", &[at("model", What::Model), at("error", What::Object(ERROR))])],
    |_| Kind::Other,
    no_items,
    commit_interaction,
);

/// Interactions, events.
pub(super) static INTERACTION_EVENTS: Table = Table::new(
    &[
        ("interaction.usage", interaction_usage!(0)),
        ("usage", interaction_usage!(RUNNING)),
        ("metadata.total_usage", interaction_usage!(RUNNING_DELTA)),
        ("", &[at("event_type", What::Kind), at("interaction.model", What::Model)]),
    ],
    interaction_kind,
    no_items,
    commit_interaction_event,
);

/// The figures of a `usageMetadata`, if it has any.
fn figures(document: &Document) -> Option<Figures> {
    if !document.has_any(PROMPT..TOTAL) {
        return None;
    }
    let input = document.number(PROMPT) + document.number(TOOL_PROMPT);
    let candidates = document.known(CANDIDATES).or_else(|| document.known(RESPONSE)).unwrap_or(0);
    let thoughts = document.number(THOUGHTS);
    // Some models count the thoughts among the candidates; then the total is complete without them.
    let among = thoughts > 0 && document.known(TOTAL) == Some(input + candidates);
    Some(Figures {
        input,
        cached: document.number(CACHED),
        cache_write: 0,
        output: if among { candidates } else { candidates + thoughts },
        reasoning: thoughts,
    })
}

fn commit_content(document: &Document, totals: &mut Totals) {
    totals.failed |= document.has(ERROR);
    totals.reason |= document.has(REASON) || document.has(BLOCKED);
    if let Some(figures) = figures(document) {
        totals.replace(figures);
        totals.settled = totals.reason || totals.unary;
    }
}

fn commit_live(document: &Document, totals: &mut Totals) {
    if document.has(CONTENT) {
        totals.ended = document.has(TURN_COMPLETE);
    }
    if let Some(figures) = figures(document) {
        totals.add(figures);
        totals.settled = true;
    }
}

fn interaction_kind(name: &[u8]) -> Kind {
    match name {
        b"interaction.completed" => Kind::Final,
        b"error" => Kind::Error,
        b"interaction.status_update" | b"step.stop" => Kind::Running,
        _ if name.ends_with(b".delta") => Kind::Output,
        _ => Kind::Other,
    }
}

fn interaction_figures(document: &Document, first: Slot) -> Option<Figures> {
    let number = |slot: Slot| document.number(first + slot);
    document.has_any(first..first + 5).then(|| Figures {
        input: number(0) + number(1),
        cached: number(2),
        cache_write: 0,
        output: number(3) + number(4),
        reasoning: number(4),
    })
}

fn commit_interaction(document: &Document, totals: &mut Totals) {
    totals.failed |= document.has(ERROR);
    if let Some(figures) = interaction_figures(document, 0) {
        totals.replace(figures);
        totals.settled = true;
    }
}

fn commit_interaction_event(document: &Document, totals: &mut Totals) {
    let (first, last) = match document.kind {
        Kind::Error => {
            totals.failed = true;
            return;
        }
        Kind::Final => {
            totals.ended = true;
            (0, true)
        }
        Kind::Running => (RUNNING, false),
        Kind::Output => (RUNNING_DELTA, false),
        _ => return,
    };
    // What is running on after the last word changes nothing any more.
    if !last && totals.settled {
        return;
    }
    if let Some(figures) = interaction_figures(document, first) {
        totals.replace(figures);
        totals.settled = last;
    }
}
