//! `/chat/completions`, `/completions`, `/embeddings` of OpenAI, and all that imitate them.
//!
//! Figures stand in the root's `usage`; Groq's also, or only, in `x_groq.usage`; Moonshot's in `choices[0].usage`.

use super::document::Document;
use super::table::CHOICE;
use super::table::CHOICES;
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
use super::table::number;
use super::table::reasons;
use super::totals::Figures;
use super::totals::Totals;

/// Numbers of one usage object, from its first slot on.
const PROMPT: Slot = 0;
const COMPLETION: Slot = 1;
const TOTAL: Slot = 2;
const CACHED: Slot = 3;
const CACHE_HIT: Slot = 4;
const CACHED_FLAT: Slot = 5;
const CACHE_WRITE: Slot = 6;
const REASONING: Slot = 7;
const SLOTS: Slot = 8;

/// Where the three usage objects' slots begin; an earlier one goes before a later one.
const ROOT: Slot = 0;
const GROQ: Slot = SLOTS;
const CHOICE_0: Slot = 2 * SLOTS;

macro_rules! usage {
    ($first:expr) => {
        &[
            number("prompt_tokens", $first + PROMPT),
            number("completion_tokens", $first + COMPLETION),
            number("total_tokens", $first + TOTAL),
            number("prompt_tokens_details.cached_tokens", $first + CACHED),
            number("prompt_cache_hit_tokens", $first + CACHE_HIT),
            number("cached_tokens", $first + CACHED_FLAT),
            number("prompt_tokens_details.cache_write_tokens", $first + CACHE_WRITE),
            number("completion_tokens_details.reasoning_tokens", $first + REASONING),
        ]
    };
}

const REST: &[Row] = &[
    at("model", What::Model),
    at("error", What::Object(ERROR)),
    array("choices", What::Array(CHOICES), &[CHOICE, REASON]),
    at("choices[0]", What::Element(CHOICE)),
    at("choices[]", What::Element(CHOICE)),
    at("choices[0].delta", What::Output),
    at("choices[].delta", What::Output),
    at("choices[0].finish_reason", What::Reason(ITEM_REASON)),
    at("choices[].finish_reason", What::Reason(ITEM_REASON)),
];

/// The dialect's places.
pub(super) static TABLE: Table = Table::new(
    &[("", REST), ("usage", usage!(ROOT)), ("x_groq.usage", usage!(GROQ)), ("choices[0].usage", usage!(CHOICE_0))],
    kind,
    reasons,
    commit,
);

fn kind(name: &[u8]) -> Kind {
    match name {
        b"error" => Kind::Error,
        _ => Kind::Other,
    }
}

fn commit(document: &Document, totals: &mut Totals) {
    totals.failed |= document.has(ERROR) || document.kind == Kind::Error;
    totals.reason |= document.has(REASON);
    let Some(first) = [ROOT, GROQ, CHOICE_0].into_iter().find(|first| document.has_any(*first..*first + SLOTS)) else {
        return;
    };
    let number = |slot: Slot| document.number(first + slot);
    let cached = [CACHED, CACHE_HIT, CACHED_FLAT].into_iter().find_map(|slot| document.known(first + slot));
    let [input, completion, reasoning] = [number(PROMPT), number(COMPLETION), number(REASONING)];
    // xAI's completion tokens leave the reasoning out, and its total shows it.
    let left_out = reasoning > 0 && document.known(first + TOTAL) == Some(input + completion + reasoning);
    totals.replace(Figures {
        input,
        cached: cached.unwrap_or(0),
        cache_write: number(CACHE_WRITE),
        output: if left_out { completion + reasoning } else { completion },
        reasoning,
    });
    totals.settled = document.has(CHOICES) && !document.has(CHOICE);
}
