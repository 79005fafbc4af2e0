//! `/responses`, as one document, as events, and as messages of a WebSocket; and the delegated responses of `/live`.

use super::document::Document;
use super::table::ERROR;
use super::table::ITEM_KIND;
use super::table::Kind;
use super::table::Row;
use super::table::SECONDS;
use super::table::Slot;
use super::table::Table;
use super::table::What;
use super::table::array;
use super::table::at;
use super::table::number;
use super::totals::Figures;
use super::totals::Totals;

const INPUT: Slot = 0;
const CACHED: Slot = 1;
const CACHE_WRITE: Slot = 2;
const OUTPUT: Slot = 3;
const REASONING: Slot = 4;
/// Of the image tool.
const IMAGE_INPUT: Slot = 5;
const IMAGE_OUTPUT: Slot = 6;
/// Of the output's item at hand, and of all before it.
const SVG_INPUT: Slot = 7;
const SVG_OUTPUT: Slot = 8;
const SVG_INPUT_SUM: Slot = 9;
const SVG_OUTPUT_SUM: Slot = 10;

/// What a response object holds.
pub(super) const RESPONSE: &[Row] = &[
    at("model", What::Model),
    at("error", What::Object(ERROR)),
    number("usage.input_tokens", INPUT),
    number("usage.input_tokens_details.cached_tokens", CACHED),
    number("usage.input_tokens_details.cache_write_tokens", CACHE_WRITE),
    number("usage.output_tokens", OUTPUT),
    number("usage.output_tokens_details.reasoning_tokens", REASONING),
    number("tool_usage.image_gen.input_tokens", IMAGE_INPUT),
    number("tool_usage.image_gen.output_tokens", IMAGE_OUTPUT),
    array("output", What::Pass, &[SVG_INPUT_SUM, SVG_OUTPUT_SUM]),
    number("output[].svg_usage.input_tokens", SVG_INPUT),
    number("output[].svg_usage.output_tokens", SVG_OUTPUT),
];

/// The places in one document.
pub(super) static UNARY: Table = Table::new(&[("", RESPONSE)], |_| Kind::Other, item, commit_unary);

/// The places in events and messages.
pub(super) static STREAM: Table =
    Table::new(&[("response", RESPONSE), ("", &[at("type", What::Kind)])], kind, item, commit_event);

/// The places in the messages of `/live`, whose own figures are seconds.
pub(super) static LIVE: Table = Table::new(
    &[
        ("event.response", RESPONSE),
        ("", &[at("type", What::Kind), at("event.type", What::ItemKind), at("usage.seconds", What::Seconds)]),
        ("session", &[at("model", What::Model)]),
    ],
    kind,
    item,
    commit_live,
);

fn kind(name: &[u8]) -> Kind {
    match name {
        b"response.created" => Kind::Opened,
        b"response.completed" | b"response.incomplete" => Kind::Final,
        b"response.failed" => Kind::Failed,
        b"error" => Kind::Error,
        b"session.usage.updated" => Kind::Running,
        b"session.closed" => Kind::MessageStop,
        b"response.event" => Kind::Side,
        _ if name.ends_with(b".delta") => Kind::Output,
        _ => Kind::Other,
    }
}

/// One of the output's items has ended.
pub(super) fn item(document: &mut Document) {
    for (slot, sum) in [(SVG_INPUT, SVG_INPUT_SUM), (SVG_OUTPUT, SVG_OUTPUT_SUM)] {
        if let Some(value) = document.known(slot) {
            document.sum(sum, value);
        }
    }
}

fn figures(document: &Document) -> Option<Figures> {
    document.has_any(INPUT..REASONING + 1).then(|| Figures {
        input: document.number(INPUT),
        cached: document.number(CACHED),
        cache_write: document.number(CACHE_WRITE),
        output: document.number(OUTPUT),
        reasoning: document.number(REASONING),
    })
}

fn side(document: &Document) -> [u64; 2] {
    [
        document.number(IMAGE_INPUT) + document.number(SVG_INPUT_SUM),
        document.number(IMAGE_OUTPUT) + document.number(SVG_OUTPUT_SUM),
    ]
}

fn add(document: &Document, totals: &mut Totals) {
    if let Some(figures) = figures(document) {
        totals.add(figures);
        totals.settled = true;
    }
    totals.add_side(side(document));
}

fn commit_unary(document: &Document, totals: &mut Totals) {
    totals.failed |= document.has(ERROR);
    commit_response(document, totals);
}

fn commit_event(document: &Document, totals: &mut Totals) {
    match document.kind {
        Kind::Opened => totals.open = totals.open.saturating_add(1),
        Kind::Error => totals.failed = true,
        Kind::Final | Kind::Failed => {
            totals.failed |= document.kind == Kind::Failed;
            totals.ended |= document.kind == Kind::Final;
            totals.open = totals.open.saturating_sub(1);
            if totals.many {
                add(document, totals);
            } else {
                commit_response(document, totals);
            }
        }
        _ => {}
    }
}

/// The figures of the one response that a stream of events is about.
fn commit_response(document: &Document, totals: &mut Totals) {
    if let Some(figures) = figures(document) {
        totals.replace(figures);
        totals.settled = true;
    }
    totals.replace_side(side(document));
}

fn commit_live(document: &Document, totals: &mut Totals) {
    match document.kind {
        Kind::Running | Kind::MessageStop => {
            let last = document.kind == Kind::MessageStop;
            totals.ended |= last;
            if document.has(SECONDS) {
                // Totals of the session so far, not increments.
                totals.seconds = document.seconds;
                totals.timed = true;
                totals.settled = last;
            }
        }
        Kind::Side if matches!(document.item_kind, Kind::Final | Kind::Failed) && document.has(ITEM_KIND) => {
            let settled = totals.settled;
            add(document, totals);
            totals.settled = settled;
        }
        _ => {}
    }
}
