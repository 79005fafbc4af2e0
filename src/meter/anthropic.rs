//! Anthropic's Messages, as one document and as events. Also what others serve in its likeness, and what Bedrock wraps.

use super::document::Document;
use super::table::ERROR;
use super::table::ITEM_KIND;
use super::table::ITERATIONS;
use super::table::Kind;
use super::table::REASON;
use super::table::Row;
use super::table::Slot;
use super::table::Table;
use super::table::What;
use super::table::array;
use super::table::at;
use super::table::number;
use super::totals::Totals;

/// Numbers of one usage object, from its first slot on.
const INPUT: Slot = 0;
const READ: Slot = 1;
const WRITE: Slot = 2;
const OUTPUT: Slot = 3;
const THINKING: Slot = 4;
const SLOTS: Slot = 5;

/// Of `message.usage` and of the root's `usage`.
const MESSAGE: Slot = 0;
const ROOT: Slot = SLOTS;
/// Of the iteration at hand: input, read, write, output.
const ITERATION: Slot = 2 * SLOTS;
/// Of those beside the main pass.
const SIDE_INPUT: Slot = ITERATION + 4;
const SIDE_OUTPUT: Slot = SIDE_INPUT + 1;
/// The first slot that is free for [`super::bedrock`].
pub(super) const FREE: Slot = SIDE_OUTPUT + 1;

macro_rules! usage {
    ($first:expr) => {
        &[
            number("input_tokens", $first + INPUT),
            number("cache_read_input_tokens", $first + READ),
            number("cache_creation_input_tokens", $first + WRITE),
            number("output_tokens", $first + OUTPUT),
            number("output_tokens_details.thinking_tokens", $first + THINKING),
            array("iterations", What::Array(ITERATIONS), &[SIDE_INPUT, SIDE_OUTPUT]),
            at("iterations[].type", What::ItemKind),
            number("iterations[].input_tokens", ITERATION + INPUT),
            number("iterations[].cache_read_input_tokens", ITERATION + READ),
            number("iterations[].cache_creation_input_tokens", ITERATION + WRITE),
            number("iterations[].output_tokens", ITERATION + OUTPUT),
        ]
    };
}

/// The root's usage: of a whole message, and of `message_delta`.
pub(super) const USAGE: &[Row] = usage!(ROOT);
/// `message_start`'s.
pub(super) const MESSAGE_USAGE: &[Row] = usage!(MESSAGE);
/// What else a whole message says.
pub(super) const WHOLE: &[Row] = &[at("type", What::Kind), at("model", What::Model), at("error", What::Object(ERROR))];
/// What else the events say.
pub(super) const EVENTS: &[Row] =
    &[at("type", What::Kind), at("message.model", What::Model), at("delta.stop_reason", What::Reason(REASON))];

/// The places in one document.
pub(super) static UNARY: Table = Table::new(&[("", WHOLE), ("usage", USAGE)], kind, item, commit_unary);

/// The places in events.
pub(super) static STREAM: Table =
    Table::new(&[("", EVENTS), ("usage", USAGE), ("message.usage", MESSAGE_USAGE)], kind, item, commit_event);

/// The kind of an event, a document or an iteration.
pub(super) fn kind(name: &[u8]) -> Kind {
    match name {
        b"content_block_delta" | b"content_block_start" => Kind::Output,
        b"message_start" => Kind::MessageStart,
        b"message_delta" => Kind::MessageDelta,
        b"message_stop" => Kind::MessageStop,
        b"message" => Kind::Message,
        b"error" => Kind::Error,
        b"compaction" | b"advisor_message" => Kind::Side,
        _ => Kind::Other,
    }
}

/// An iteration has ended.
pub(super) fn item(document: &mut Document) {
    if document.has(ITEM_KIND) && document.item_kind == Kind::Side {
        let [input, read, write, output] = [INPUT, READ, WRITE, OUTPUT].map(|slot| document.number(ITERATION + slot));
        document.sum(SIDE_INPUT, input + read + write);
        document.sum(SIDE_OUTPUT, output);
    }
}

pub(super) fn commit_unary(document: &Document, totals: &mut Totals) {
    totals.failed |= document.has(ERROR) || document.kind == Kind::Error;
    if document.kind == Kind::Message {
        take(document, ROOT, totals);
        totals.settled = true;
    }
}

pub(super) fn commit_event(document: &Document, totals: &mut Totals) {
    match document.kind {
        Kind::MessageStart => take(document, MESSAGE, totals),
        Kind::MessageDelta => {
            take(document, ROOT, totals);
            totals.settled |= document.has(REASON);
        }
        Kind::MessageStop => totals.ended = true,
        Kind::Error => totals.failed = true,
        _ => {}
    }
}

/// Each figure that is given replaces the earlier one.
fn take(document: &Document, first: Slot, totals: &mut Totals) {
    for (slot, to) in [
        (INPUT, &mut totals.input),
        (READ, &mut totals.cached),
        (WRITE, &mut totals.cache_write),
        (OUTPUT, &mut totals.output),
        (THINKING, &mut totals.reasoning),
    ] {
        if let Some(value) = document.known(first + slot) {
            *to = u32::try_from(value).unwrap_or(u32::MAX);
            totals.figures = true;
            totals.beside = true;
        }
    }
    if document.has(ITERATIONS) {
        totals.replace_side([document.number(SIDE_INPUT), document.number(SIDE_OUTPUT)]);
    }
}
