//! What one document has said so far. It counts only once the document is complete.

use zeroize::Zeroize;

use super::MODEL_BYTES_MAX;
use super::json::Hearer;
use super::json::Place;
use super::json::Step;
use super::json::Walker;
use super::table::ITEM_KIND;
use super::table::KIND;
use super::table::Kind;
use super::table::MODEL;
use super::table::NUMBERS;
use super::table::SECONDS;
use super::table::Slot;
use super::table::Table;
use super::table::What;
use super::totals::Totals;

/// Figures above this are no figures.
pub(super) const FIGURE_MAX: u32 = 100_000_000;

/// How much of a word is looked at. Names of kinds are shorter; one that long is [`Kind::Other`].
pub(super) const WORD: usize = 56;
/// What [`Document::word_length`] says of a longer one.
const TOO_LONG: u8 = u8::MAX;

/// The figures and facts of one document.
pub(super) struct Document {
    /// Which numbers and facts are known.
    pub(super) seen: u64,
    pub(super) seconds: f64,
    numbers: [u32; NUMBERS],
    pub(super) kind: Kind,
    pub(super) item_kind: Kind,
    /// Whether it was counted as one that carries output.
    counted: bool,
    word_length: u8,
    /// A kind or reason in parts.
    word: [u8; WORD],
}

/// All that a complete document without figures has said. Where it named a model, that is known.
pub(super) struct Said {
    seen: u64,
    kind: Kind,
    item_kind: Kind,
    counted: bool,
}

/// Those of [`Document::seen`] that stand for figures.
const FIGURES: u64 = ((1 << NUMBERS) - 1) | (1 << SECONDS);

/// How far a document has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
    Broken,
}

/// Documents one after another: where in one we are, what it has said, and what all have said.
pub(super) struct Reader {
    pub(super) table: &'static Table,
    pub(super) totals: Totals,
    pub(super) walker: Walker,
    pub(super) document: Document,
    /// Events that began to carry output.
    pub(super) output_events: u64,
    model_length: u8,
    /// Where it stood.
    model_place: Place,
    /// Whether the model's name is of a complete document.
    model_known: bool,
    model: [u8; MODEL_BYTES_MAX],
}

impl Document {
    const fn new() -> Self {
        Self {
            seen: 0,
            seconds: 0.0,
            numbers: [0; NUMBERS],
            kind: Kind::Other,
            item_kind: Kind::Other,
            counted: false,
            word_length: 0,
            word: [0; WORD],
        }
    }

    /// Whether a number or fact is known.
    #[inline]
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.seen >> slot & 1 == 1
    }

    /// Whether any of `slots` is.
    #[inline]
    pub(super) fn has_any(&self, slots: std::ops::Range<Slot>) -> bool {
        self.seen & ((1 << slots.end) - (1 << slots.start)) != 0
    }

    /// Notes a fact.
    #[inline]
    pub(super) fn note(&mut self, slot: Slot) {
        self.seen |= 1 << slot;
    }

    /// A number, 0 if it is missing.
    #[inline]
    pub(super) fn number(&self, slot: Slot) -> u64 {
        self.known(slot).unwrap_or(0)
    }

    /// A number, if it is known.
    #[inline]
    pub(super) fn known(&self, slot: Slot) -> Option<u64> {
        self.has(slot).then(|| self.numbers.get(usize::from(slot)).copied().map_or(0, u64::from))
    }

    /// Adds to a sum.
    pub(super) fn sum(&mut self, slot: Slot, more: u64) {
        let value = self.number(slot).saturating_add(more);
        if let Some(number) = self.numbers.get_mut(usize::from(slot)) {
            *number = u32::try_from(value).unwrap_or(u32::MAX);
            self.note(slot);
        }
    }

    fn set(&mut self, slot: Slot, value: u32) {
        if let Some(number) = self.numbers.get_mut(usize::from(slot)) {
            *number = value;
            self.note(slot);
        }
    }

    /// The next part of a word; the whole, if this was the last. What has [`WORD`] bytes may have had more.
    #[inline]
    pub(super) fn word<'w>(&'w mut self, piece: &'w [u8], first: bool, last: bool) -> Option<&'w [u8]> {
        if first && last {
            return Some(piece.get(..WORD).unwrap_or(piece));
        }
        if first {
            self.word_length = 0;
        }
        let room = self.word.get_mut(usize::from(self.word_length)..).unwrap_or_default();
        let length = piece.len().min(room.len());
        room[..length].copy_from_slice(&piece[..length]);
        self.word_length += length as u8;
        last.then(|| self.word.get(..usize::from(self.word_length)).unwrap_or_default())
    }

    /// Clears what a word left behind.
    #[inline]
    pub(super) fn clear_word(&mut self) {
        if self.word_length != 0 {
            self.word.zeroize();
            self.word_length = 0;
        }
    }

    #[inline]
    fn restart(&mut self) {
        self.seen = 0;
        self.counted = false;
        self.clear_word();
    }
}

impl Reader {
    pub(super) const fn new(table: &'static Table, totals: Totals) -> Self {
        Self {
            table,
            totals,
            walker: Walker::new(),
            document: Document::new(),
            output_events: 0,
            model_length: 0,
            model_place: 0,
            model_known: false,
            model: [0; MODEL_BYTES_MAX],
        }
    }

    /// The model that the answer names, until it is forgotten.
    pub(super) fn model(&self) -> Option<&[u8]> {
        let named = self.model_known && self.model_length > 0;
        named.then(|| self.model.get(..usize::from(self.model_length))).flatten()
    }

    /// Wipes the model's name. No later one takes its place.
    pub(super) fn forget_model(&mut self) {
        if self.model_known {
            self.model.zeroize();
            self.model_length = 0;
        }
    }

    /// Looks at more of the document, up to its end; takes what it passes off the front of `input`.
    #[inline]
    pub(super) fn read(&mut self, input: &mut &[u8]) -> Progress {
        self.read_hearing(input, &mut ())
    }

    /// The same, with a word to `hearer` of what nobody looks at.
    #[inline]
    pub(super) fn read_hearing(&mut self, input: &mut &[u8], hearer: &mut impl Hearer) -> Progress {
        let table = self.table;
        loop {
            let step = self.walker.next_hearing(&table.paths, input, hearer);
            match step {
                Step::More => return Progress::More,
                Step::Done => return Progress::Done,
                Step::Broken => return Progress::Broken,
                Step::Leave => (table.item)(&mut self.document),
                Step::Null { place } => _ = self.begin(place),
                Step::Enter { place, array } => match self.begin(place) {
                    What::Object(slot) if !array => self.document.note(slot),
                    What::Array(slot) if array => self.document.note(slot),
                    What::Output => self.count(),
                    _ => {}
                },
                Step::True { place } => match self.begin(place) {
                    What::True(slot) => self.document.note(slot),
                    What::Output => self.count(),
                    _ => {}
                },
                Step::False { place } => {
                    if self.begin(place) == What::Output {
                        self.count();
                    }
                }
                Step::Number { place, text } => match what(table, &mut self.document, place) {
                    What::Number(slot) => {
                        if let Some(value) = figure(text) {
                            self.document.set(slot, value);
                        }
                    }
                    What::Seconds => {
                        if let Some(value) = seconds(text) {
                            self.document.seconds = value;
                            self.document.note(SECONDS);
                        }
                    }
                    What::Output => self.count(),
                    _ => {}
                },
                Step::Text { place, piece, first, last } => {
                    let what = if first { what(table, &mut self.document, place) } else { table.what(place) };
                    match what {
                        What::Kind => {
                            if let Some(word) = self.document.word(piece, first, last) {
                                let kind = table.kind_of(word);
                                self.document.kind = kind;
                                self.document.note(KIND);
                                self.document.clear_word();
                                if kind.is_output() {
                                    self.count();
                                }
                            }
                        }
                        What::ItemKind => {
                            if let Some(word) = self.document.word(piece, first, last) {
                                self.document.item_kind = table.kind_of(word);
                                self.document.note(ITEM_KIND);
                                self.document.clear_word();
                            }
                        }
                        What::Reason(slot) => {
                            if let Some(word) = self.document.word(piece, first, last) {
                                let given = !word.is_empty() && word != b"error";
                                self.document.clear_word();
                                if given {
                                    self.document.note(slot);
                                }
                            }
                        }
                        What::Model if !self.model_known => {
                            if first {
                                self.model_length = 0;
                            }
                            let from = usize::from(self.model_length);
                            match self.model.get_mut(from..from + piece.len()) {
                                Some(room) => {
                                    room.copy_from_slice(piece);
                                    self.model_length += piece.len() as u8;
                                }
                                None => self.model_length = TOO_LONG,
                            }
                            if last && !matches!(self.model_length, 0 | TOO_LONG) {
                                self.document.note(MODEL);
                                self.model_place = place;
                            }
                        }
                        What::Output if first => self.count(),
                        _ => {}
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn begin(&mut self, place: Place) -> What {
        what(self.table, &mut self.document, place)
    }

    /// The document carries output.
    #[inline]
    fn count(&mut self) {
        if !self.document.counted && !self.totals.unary {
            self.document.counted = true;
            self.output_events += 1;
        }
    }

    /// The document is over. It counts if it is complete; `kind` stands in for a kind that it does not name itself.
    ///
    /// What it said, if it is complete and had no figures.
    #[inline]
    pub(super) fn end(&mut self, kind: Kind) -> Option<Said> {
        let mut said = None;
        if self.walker.is_done() {
            if !self.document.has(KIND) {
                self.document.kind = kind;
                if kind.is_output() {
                    self.count();
                }
            }
            (self.table.commit)(&self.document, &mut self.totals);
            if self.document.seen & FIGURES == 0 {
                let Document { seen, kind, item_kind, counted, .. } = self.document;
                said = Some(Said { seen, kind, item_kind, counted });
            }
            if self.document.has(MODEL) && !self.model_known {
                self.model_known = true;
                // Names are looked for at one place, or rarely at two; the one that was seen last need not be told of again.
                self.walker.mute(self.model_place);
            }
        }
        self.restart();
        said
    }

    /// Another document, between two that are being read, says the same.
    #[inline]
    pub(super) fn again(&mut self, said: &Said) {
        self.document.seen = said.seen;
        self.document.kind = said.kind;
        self.document.item_kind = said.item_kind;
        (self.table.commit)(&self.document, &mut self.totals);
        self.output_events += u64::from(said.counted);
        self.document.seen = 0;
    }

    /// Forgets the document at hand.
    #[inline]
    pub(super) fn restart(&mut self) {
        if !self.model_known && self.model_length != 0 {
            self.model.zeroize();
            self.model_length = 0;
        }
        self.document.restart();
        self.walker.restart();
    }
}

/// A value begins: what an earlier one said at this place is forgotten. What is to be done with it.
#[inline(always)]
fn what(table: &Table, document: &mut Document, place: Place) -> What {
    document.seen &= !table.below(place);
    let what = table.what(place);
    if let What::Element(slot) = what {
        document.note(slot);
    }
    what
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.model.zeroize();
        self.document.word.zeroize();
        self.document.numbers.zeroize();
    }
}

impl Kind {
    #[inline]
    fn is_output(self) -> bool {
        matches!(self, Self::Output | Self::FinalOutput)
    }
}

/// A number of tokens as it is written: digits only, in range.
#[inline]
fn figure(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 9 || (text.len() > 1 && text[0] == b'0') {
        return None;
    }
    let mut value = 0;
    for digit in text {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u32::from(digit);
    }
    (value <= FIGURE_MAX).then_some(value)
}

/// Seconds as they are written: any number that is not negative, in range.
fn seconds(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value.is_sign_positive() && value <= f64::from(FIGURE_MAX)).then_some(value)
}
