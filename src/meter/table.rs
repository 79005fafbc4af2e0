//! What a dialect looks at: a table of paths with what to do at each, built at compile time.

use super::document::Document;
use super::document::WORD;
use super::json::PLACES;
use super::json::Paths;
use super::json::Place;
use super::totals::Totals;

/// Names a number of a [`Document`], or with [`flag`] a fact about it.
pub(super) type Slot = u8;

/// How many numbers there are.
pub(super) const NUMBERS: usize = 24;

/// Facts that all dialects share; each stands in one bit of [`Document::seen`], above the numbers.
pub(super) const KIND: Slot = 63;
pub(super) const MODEL: Slot = 62;
pub(super) const SECONDS: Slot = 61;
/// A reason to stop was given, in the array's element at hand or where there is no array.
pub(super) const ITEM_REASON: Slot = 60;
/// A reason to stop was given in any element.
pub(super) const REASON: Slot = 59;
/// The root has an `error` object.
pub(super) const ERROR: Slot = 58;
/// `choices` is an array.
pub(super) const CHOICES: Slot = 57;
/// It has an element.
pub(super) const CHOICE: Slot = 56;
/// There was an array of passes beside the main one.
pub(super) const ITERATIONS: Slot = 55;
/// `serverContent` is an object.
pub(super) const CONTENT: Slot = 54;
/// A turn is complete.
pub(super) const TURN_COMPLETE: Slot = 53;
/// A kind was named inside an array's element.
pub(super) const ITEM_KIND: Slot = 52;

/// What is done at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Nothing; it is only on the way.
    Pass,
    /// Keeps an integer.
    Number(Slot),
    /// Keeps a length in seconds.
    Seconds,
    /// Keeps what kind of event this is.
    Kind,
    /// Keeps what kind of element this is.
    ItemKind,
    /// Keeps the model's name.
    Model,
    /// Notes that the value is an object.
    Object(Slot),
    /// Notes that the value is an array.
    Array(Slot),
    /// Notes that the value is `true`.
    True(Slot),
    /// Notes that the value is a text, and neither empty nor `error`.
    Reason(Slot),
    /// Notes that there is something here: an array's element.
    Element(Slot),
    /// The value, unless it is `null`, is generated output.
    Output,
}

/// What kind of event a document is, by its `type`, its `event:` line or its frame's head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of no interest.
    Other,
    /// Begins to carry output, and is otherwise of no interest.
    Output,
    /// The last one, or the one with the figures.
    Final,
    /// The last one, and begins to carry output as well.
    FinalOutput,
    /// A last one that tells of a failure.
    Failed,
    Error,
    /// Something was opened that a later event closes.
    Opened,
    /// Figures so far.
    Running,
    MessageStart,
    MessageDelta,
    MessageStop,
    Message,
    /// Input audio was transcribed.
    Transcribed,
    /// A pass beside the main one.
    Side,
}

/// One line of a dialect's table.
pub(super) struct Row {
    path: &'static str,
    what: What,
    /// What is forgotten when this place is come upon again.
    own: u64,
}

/// An integer at `path`.
pub(super) const fn number(path: &'static str, slot: Slot) -> Row {
    Row { path, what: What::Number(slot), own: 1 << slot }
}

/// Something else at `path`.
pub(super) const fn at(path: &'static str, what: What) -> Row {
    let own = match what {
        What::Number(slot) | What::Object(slot) | What::Array(slot) | What::True(slot) | What::Reason(slot) => {
            1 << slot
        }
        What::Seconds => 1 << SECONDS,
        What::Kind => 1 << KIND,
        What::ItemKind => 1 << ITEM_KIND,
        What::Model => 1 << MODEL,
        What::Pass | What::Element(_) | What::Output => 0,
    };
    Row { path, what, own }
}

/// An array at `path`; `sums` are forgotten when it is come upon again.
pub(super) const fn array(path: &'static str, what: What, sums: &[Slot]) -> Row {
    let mut row = at(path, what);
    let mut next = 0;
    while next < sums.len() {
        row.own |= 1 << sums[next];
        next += 1;
    }
    row
}

/// All that is known of a dialect.
pub(super) struct Table {
    pub(super) paths: Paths,
    what: [What; PLACES],
    /// What is forgotten when a place is come upon (again): its own and all below.
    below: [u64; PLACES],
    /// The kind that a name stands for.
    kind: fn(&[u8]) -> Kind,
    /// An array's element has ended.
    pub(super) item: fn(&mut Document),
    /// A document is complete.
    pub(super) commit: fn(&Document, &mut Totals),
}

impl Table {
    /// The rows of all groups, each below its own prefix.
    pub(super) const fn new(
        groups: &[(&'static str, &[Row])],
        kind: fn(&[u8]) -> Kind,
        item: fn(&mut Document),
        commit: fn(&Document, &mut Totals),
    ) -> Self {
        let mut table =
            Self { paths: Paths::empty(), what: [What::Pass; PLACES], below: [0; PLACES], kind, item, commit };
        let mut group = 0;
        while group < groups.len() {
            let from = table.paths.add(Paths::root(), groups[group].0);
            let rows = groups[group].1;
            let mut row = 0;
            while row < rows.len() {
                let place = table.paths.add(from, rows[row].path);
                table.what[place as usize] = rows[row].what;
                let mut around = Some(place);
                while let Some(outer) = around {
                    table.below[outer as usize] |= rows[row].own;
                    around = table.paths.around(outer);
                }
                row += 1;
            }
            group += 1;
        }
        table
    }

    /// The kind that a name stands for.
    #[inline]
    pub(super) fn kind_of(&self, word: &[u8]) -> Kind {
        if word.len() < WORD { (self.kind)(word) } else { Kind::Other }
    }

    #[inline(always)]
    pub(super) fn what(&self, place: Place) -> What {
        self.what.get(usize::from(place)).copied().unwrap_or(What::Pass)
    }

    #[inline(always)]
    pub(super) fn below(&self, place: Place) -> u64 {
        self.below.get(usize::from(place)).copied().unwrap_or(0)
    }
}

/// For dialects without arrays to look into.
pub(super) fn no_items(_: &mut Document) {}

/// Of several elements, a reason given in one is a reason given.
pub(super) fn reasons(document: &mut Document) {
    if document.has(ITEM_REASON) {
        document.note(REASON);
    }
}
