//! Images and audio, and `/realtime`, whose usage objects look alike.

use super::document::Document;
use super::table::ERROR;
use super::table::Kind;
use super::table::SECONDS;
use super::table::Slot;
use super::table::Table;
use super::table::What;
use super::table::at;
use super::table::no_items;
use super::table::number;
use super::totals::Figures;
use super::totals::Totals;

const INPUT: Slot = 0;
const OUTPUT: Slot = 1;
/// Of drawings as text, beside the image itself.
const SVG_INPUT: Slot = 2;
const SVG_OUTPUT: Slot = 3;
/// Of a response in `/realtime`.
const RESPONSE_INPUT: Slot = 4;
const RESPONSE_CACHED: Slot = 5;
const RESPONSE_OUTPUT: Slot = 6;

/// Images and audio.
pub(super) static MEDIA: Table = Table::new(
    &[(
        "",
        &[
            at("type", What::Kind),
            at("model", What::Model),
            at("error", What::Object(ERROR)),
            number("usage.input_tokens", INPUT),
            number("usage.output_tokens", OUTPUT),
            at("usage.seconds", What::Seconds),
            number("svg_usage.input_tokens", SVG_INPUT),
            number("svg_usage.output_tokens", SVG_OUTPUT),
        ],
    )],
    media_kind,
    no_items,
    commit_media,
);

/// `/realtime`: here the root's `usage` is that of a transcription, by another model.
pub(super) static REALTIME: Table = Table::new(
    &[(
        "",
        &[
            at("type", What::Kind),
            at("session.model", What::Model),
            number("response.usage.input_tokens", RESPONSE_INPUT),
            number("response.usage.input_token_details.cached_tokens", RESPONSE_CACHED),
            number("response.usage.output_tokens", RESPONSE_OUTPUT),
            number("usage.input_tokens", INPUT),
            number("usage.output_tokens", OUTPUT),
            at("usage.seconds", What::Seconds),
        ],
    )],
    realtime_kind,
    no_items,
    commit_realtime,
);

fn media_kind(name: &[u8]) -> Kind {
    if name.ends_with(b".completed") {
        // An image stands in it; of audio, `.completed` is not said.
        Kind::FinalOutput
    } else if name.ends_with(b".done") {
        Kind::Final
    } else if name.ends_with(b".delta") || name.ends_with(b".partial_image") {
        Kind::Output
    } else {
        Kind::Other
    }
}

fn commit_media(document: &Document, totals: &mut Totals) {
    totals.failed |= document.has(ERROR);
    let last = matches!(document.kind, Kind::Final | Kind::FinalOutput);
    if !last && !totals.unary {
        return;
    }
    totals.ended |= last;
    if document.has_any(INPUT..OUTPUT + 1) {
        totals.add(Figures { input: document.number(INPUT), output: document.number(OUTPUT), ..Figures::default() });
        totals.settled = true;
    }
    totals.add_side([document.number(SVG_INPUT), document.number(SVG_OUTPUT)]);
    add_seconds(document, totals);
}

fn realtime_kind(name: &[u8]) -> Kind {
    match name {
        b"response.created" => Kind::Opened,
        b"response.done" => Kind::Final,
        b"conversation.item.input_audio_transcription.completed" => Kind::Transcribed,
        _ if name.ends_with(b".delta") => Kind::Output,
        _ => Kind::Other,
    }
}

fn commit_realtime(document: &Document, totals: &mut Totals) {
    match document.kind {
        Kind::Opened => totals.open = totals.open.saturating_add(1),
        Kind::Final => {
            totals.open = totals.open.saturating_sub(1);
            if document.has_any(RESPONSE_INPUT..RESPONSE_OUTPUT + 1) {
                totals.add(Figures {
                    input: document.number(RESPONSE_INPUT),
                    cached: document.number(RESPONSE_CACHED),
                    output: document.number(RESPONSE_OUTPUT),
                    ..Figures::default()
                });
                totals.settled = true;
            }
        }
        Kind::Transcribed => {
            if document.has_any(INPUT..OUTPUT + 1) {
                totals.add_side([document.number(INPUT), document.number(OUTPUT)]);
                totals.figures = true;
                totals.settled = true;
            }
            add_seconds(document, totals);
        }
        _ => {}
    }
}

fn add_seconds(document: &Document, totals: &mut Totals) {
    if document.has(SECONDS) {
        totals.seconds += document.seconds;
        totals.timed = true;
        totals.settled = true;
    }
}
