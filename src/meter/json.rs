//! Walks one JSON document, in pieces, and tells only of the places that it was given paths for.
//!
//! [`Paths`] are built at compile time from texts such as `usage.prompt_tokens` or `choices[].delta`. A [`Walker`] is
//! pulled: [`Walker::next`] takes bytes off the front of its input and returns at the next thing to tell, at the
//! document's end, or when the input is used up. Where the input is cut makes no difference. What no path leads to is
//! skipped: strings by looking for their end only, objects and arrays by counting brackets.
//!
//! ```ignore
//! const PATHS: Paths = Paths::new(&["choices[]", "usage"]);
//! const USAGE: Place = PATHS.place("usage");
//! let mut walker = Walker::new();
//! let mut rest: &[u8] = br#"{"choices":[],"usage":{"prompt_tokens":1}}"#;
//! loop {
//!     match walker.next(&PATHS, &mut rest) {
//!         Step::Enter { place: USAGE, array: false } => { /* `usage` is an object. */ }
//!         Step::Done => break,            // The document is complete; `rest` is what follows it.
//!         Step::More | Step::Broken => break, // It ends too early, or is not JSON.
//!         _ => {}
//!     }
//! }
//! ```
//!
//! What is told is not a proof that the document is well-formed: skipped parts are not checked beyond their brackets'
//! number. A duplicate key is told twice; the later one counts in JSON, and so whoever listens has to forget what the
//! earlier one said when it hears of a place again.

use zeroize::Zeroize;

use super::scan;

/// Names one place that [`Paths`] lead to or through.
pub(crate) type Place = u8;

/// No place: nobody looks at it.
const NOWHERE: Place = 0;
/// The document itself.
const ROOT: Place = 1;

/// How many places all paths of one table may have.
pub(super) const PLACES: usize = 72;
/// How deep paths may lead.
const DEPTH: usize = 8;
/// The longest key or number that is put together from pieces; longer ones match nothing.
const TOKEN: usize = 32;
/// What [`Walker::filled`] says of a longer one.
const TOO_LONG: u8 = u8::MAX;
/// How deep what is skipped may be.
const SKIP_DEPTH_MAX: u32 = 1 << 30;

/// A tree of the keys on the way to each place.
pub(crate) struct Paths {
    places: [Node; PLACES],
    used: u8,
}

#[derive(Clone, Copy)]
struct Node {
    /// The key's first eight bytes, which settle most comparisons.
    head: u64,
    key: &'static [u8],
    /// Bit n: there is a key below for which [`sieve`] gives n.
    keys: u64,
    /// The first key below.
    below: Place,
    /// The next key beside.
    beside: Place,
    /// An array's first element, if it has a path of its own: `[0]`.
    first: Place,
    /// An array's elements, or all but the first: `[]`.
    each: Place,
    /// The place around.
    around: Place,
}

const BLANK: Node = Node {
    head: 0,
    key: &[],
    keys: 0,
    below: NOWHERE,
    beside: NOWHERE,
    first: NOWHERE,
    each: NOWHERE,
    around: NOWHERE,
};

impl Paths {
    /// The tree of `paths`: keys joined by dots; `[]` stands for each element of an array, `[0]` for its first alone.
    pub(crate) const fn new(paths: &[&'static str]) -> Self {
        let mut tree = Self::empty();
        let mut at = 0;
        while at < paths.len() {
            tree.add(ROOT, paths[at]);
            at += 1;
        }
        tree
    }

    /// A tree with nothing but its root.
    pub(super) const fn empty() -> Self {
        Self { places: [BLANK; PLACES], used: ROOT + 1 }
    }

    /// The root of every tree.
    pub(super) const fn root() -> Place {
        ROOT
    }

    /// The place that `path` leads to. Fails, at compile time, if there is no such path.
    pub(crate) const fn place(&self, path: &str) -> Place {
        let mut copy = Self { places: self.places, used: self.used };
        let place = copy.walk(ROOT, path.as_bytes(), &[]);
        assert!(copy.used == self.used, "no such path");
        place
    }

    /// Adds `path`, which begins at `from`; the place that it leads to.
    pub(super) const fn add(&mut self, from: Place, path: &'static str) -> Place {
        self.walk(from, path.as_bytes(), path.as_bytes())
    }

    /// The place around `place`; the root's is [`ROOT`]'s own mark for none.
    pub(super) const fn around(&self, place: Place) -> Option<Place> {
        match self.places[place as usize].around {
            NOWHERE => None,
            around => Some(around),
        }
    }

    /// Follows `path` and adds what is missing, with keys out of `lasting`, which is the same text.
    const fn walk(&mut self, from: Place, path: &[u8], lasting: &'static [u8]) -> Place {
        let mut place = from;
        let mut at = 0;
        while at < path.len() {
            if path[at] == b'.' {
                at += 1;
            } else if path[at] == b'[' {
                let first = path[at + 1] == b'0';
                place = self.element(place, first);
                at += if first { 3 } else { 2 };
            } else {
                let mut end = at;
                while end < path.len() && path[end] != b'.' && path[end] != b'[' {
                    end += 1;
                }
                let key = if lasting.is_empty() { &[] } else { lasting.split_at(end).0.split_at(at).1 };
                place = self.child(place, path.split_at(end).0.split_at(at).1, key);
                at = end;
            }
        }
        place
    }

    const fn element(&mut self, array: Place, first: bool) -> Place {
        let node = self.places[array as usize];
        let known = if first { node.first } else { node.each };
        if known != NOWHERE {
            return known;
        }
        let new = self.grow(array);
        if first {
            self.places[array as usize].first = new;
        } else {
            self.places[array as usize].each = new;
        }
        new
    }

    const fn child(&mut self, object: Place, wanted: &[u8], lasting: &'static [u8]) -> Place {
        let mut place = self.places[object as usize].below;
        while place != NOWHERE {
            if same(self.places[place as usize].key, wanted) {
                return place;
            }
            place = self.places[place as usize].beside;
        }
        assert!(wanted.len() <= TOKEN, "a key too long to be put together from pieces");
        let new = self.grow(object);
        let mut head = 0;
        let mut at = 0;
        while at < wanted.len() && at < 8 {
            head |= (wanted[at] as u64) << (8 * at);
            at += 1;
        }
        self.places[new as usize].head = head;
        self.places[new as usize].key = lasting;
        self.places[new as usize].beside = self.places[object as usize].below;
        self.places[object as usize].below = new;
        self.places[object as usize].keys |= 1 << sieve(wanted[0], wanted.len());
        new
    }

    const fn grow(&mut self, around: Place) -> Place {
        let new = self.used;
        self.used += 1;
        self.places[new as usize] = BLANK;
        self.places[new as usize].around = around;
        new
    }

    #[inline(always)]
    fn node(&self, place: Place) -> &Node {
        // Places are made here only, so the second branch is never taken; it spares a panic's code.
        self.places.get(usize::from(place)).unwrap_or(&BLANK)
    }

    /// The place of the key `bytes[at..end]` in the object at `object`.
    #[inline(always)]
    fn key(&self, object: Place, bytes: &[u8], at: usize, end: usize) -> Place {
        self.key_in(self.node(object), bytes, at, end)
    }

    #[inline(always)]
    fn key_in(&self, object: &Node, bytes: &[u8], at: usize, end: usize) -> Place {
        let length = end - at;
        let first = bytes.get(at).copied().unwrap_or(0);
        if object.keys >> sieve(first, length) & 1 == 0 || length == 0 {
            return NOWHERE;
        }
        let head = scan::head(bytes, at, length);
        let mut place = object.below;
        while place != NOWHERE {
            let node = self.node(place);
            if node.head == head && node.key.len() == length && (length <= 8 || bytes.get(at..end) == Some(node.key)) {
                return place;
            }
            place = node.beside;
        }
        NOWHERE
    }
}

/// A number below 64 in which few keys meet.
#[inline(always)]
const fn sieve(first: u8, length: usize) -> usize {
    (first as usize).wrapping_add(length * 5) % 64
}

const fn same(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// What [`Walker::next`] came upon. Pieces of text and numbers point into its input or, if they were cut or escaped,
/// into the walker, which clears them when it goes on.
pub(crate) enum Step<'s> {
    /// The input is used up and the document goes on.
    More,
    /// An object or array begins. What is in it is told of next, if paths lead there.
    Enter {
        /// Whose value it is.
        place: Place,
        /// An array, not an object.
        array: bool,
    },
    /// An array's element, itself an object or array that paths lead into, has ended.
    Leave,
    /// Part of a string, unescaped. Parts may be empty. `first` and `last` say whether it begins or ends here.
    Text {
        /// Whose value it is.
        place: Place,
        /// The part.
        piece: &'s [u8],
        /// It is the first.
        first: bool,
        /// It is the last.
        last: bool,
    },
    /// A number as it is written; empty if it has more than 32 characters and was cut.
    Number {
        /// Whose value it is.
        place: Place,
        /// Its text.
        text: &'s [u8],
    },
    /// The word `true`.
    True {
        /// Whose value it is.
        place: Place,
    },
    /// The word `false`.
    False {
        /// Whose value it is.
        place: Place,
    },
    /// The word `null`.
    Null {
        /// Whose value it is.
        place: Place,
    },
    /// The document is complete. From here on only white space may follow.
    Done,
    /// This is not JSON, or nests deeper than can be counted. Nothing else comes until [`Walker::restart`].
    Broken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the document.
    Start,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After `,` in an object.
    Key,
    /// In a key.
    InKey,
    /// After a key.
    Colon,
    /// After `:`, or after `,` in an array.
    Value,
    /// After `[`: a value or `]`.
    FirstElement,
    /// After a value.
    After,
    /// In a string that someone looks at.
    Text,
    /// In a number or word that someone looks at.
    Scalar,
    /// After `\` in a key or in such a string.
    Escape,
    /// In the digits of `\u`.
    Hex,
    /// In objects and arrays that nobody looks at, `skip` of them.
    Skip,
    /// In a string that nobody looks at.
    SkipText,
    /// After `\` in such a string.
    SkipEscape,
    /// In a number or word that nobody looks at.
    SkipScalar,
    Done,
    Broken,
}

/// Hears where strings, numbers and words stand that nobody looks at, if they stand whole in one input of
/// [`Walker::next_hearing`]. Anything else of their sort could stand there and would change nothing of what is told.
pub(super) trait Hearer {
    /// One was passed: from the first byte after its `"` to its last `"`, or from a number's or word's first byte to
    /// the one after it; both as numbers of bytes up to the input's end.
    fn passed(&mut self, from: usize, to: usize);
}

/// Nobody wants to know.
impl Hearer for () {
    #[inline(always)]
    fn passed(&mut self, _: usize, _: usize) {}
}

/// Where in a document one is. Holds of its content at most the key or number that the input's end cut.
pub(crate) struct Walker {
    state: State,
    /// Objects and arrays around, of those that paths lead into.
    depth: u8,
    /// The place of the value that comes next.
    place: Place,
    /// A place that nobody wants to hear of any more.
    muted: Place,
    /// How much of `token` is in use.
    filled: u8,
    /// Whether the string that is being told has been begun.
    begun: bool,
    /// Whether the escape at hand stands in a key.
    in_key: bool,
    /// Digits of `\u` seen.
    digits: u8,
    /// Whether `token` was lent out and has to be cleared.
    lent: bool,
    /// Bit n: the place `around[n]` is an array.
    arrays: u16,
    /// The value of those digits.
    hex: u16,
    /// The first half of a pair of `\u`, or 0.
    half: u16,
    skip: u32,
    around: [Place; DEPTH],
    token: [u8; TOKEN],
}

impl Walker {
    /// At a document's beginning.
    pub(crate) const fn new() -> Self {
        Self {
            state: State::Start,
            depth: 0,
            place: NOWHERE,
            muted: NOWHERE,
            filled: 0,
            begun: false,
            in_key: false,
            digits: 0,
            lent: false,
            arrays: 0,
            hex: 0,
            half: 0,
            skip: 0,
            around: [NOWHERE; DEPTH],
            token: [0; TOKEN],
        }
    }

    /// Back to a document's beginning.
    #[inline]
    pub(crate) fn restart(&mut self) {
        if self.filled != 0 || self.lent {
            self.clear_token();
        }
        self.state = State::Start;
        self.depth = 0;
        self.skip = 0;
        self.half = 0;
    }

    /// Tells no more of `place`, in this document and all that follow.
    pub(super) fn mute(&mut self, place: Place) {
        self.muted = place;
    }

    /// Gives the document up.
    pub(super) fn give_up(&mut self) {
        self.restart();
        self.state = State::Broken;
    }

    /// Whether nothing but white space has come yet.
    #[inline]
    pub(super) fn is_new(&self) -> bool {
        self.state == State::Start
    }

    /// Whether the document is complete.
    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the last byte stands inside a string, where a line cannot end.
    pub(super) fn in_string(&self) -> bool {
        matches!(
            self.state,
            State::InKey | State::Text | State::Escape | State::Hex | State::SkipText | State::SkipEscape
        )
    }

    /// Goes on to the next thing to tell, and takes what it passes off the front of `input`.
    #[inline(always)]
    pub(crate) fn next<'s, 'b: 's>(&'s mut self, paths: &Paths, input: &mut &'b [u8]) -> Step<'s> {
        self.next_hearing(paths, input, &mut ())
    }

    /// The same, with a word to `hearer` of what is passed over.
    #[inline(always)]
    pub(super) fn next_hearing<'s, 'b: 's>(
        &'s mut self,
        paths: &Paths,
        input: &mut &'b [u8],
        hearer: &mut impl Hearer,
    ) -> Step<'s> {
        let bytes = *input;
        let mut at = 0;
        // Where what is being passed over began, if it did so in this input.
        let mut began = None;
        if self.lent {
            self.clear_token();
        }
        let mut state = self.state;
        // Ends this call: the state to go on from, and what is told.
        macro_rules! tell {
            ($state:expr, $step:expr) => {{
                self.state = $state;
                *input = bytes.get(at..).unwrap_or_default();
                return $step;
            }};
        }
        loop {
            match state {
                State::FirstKey | State::Key => match bytes.get(at) {
                    Some(b'"') => {
                        at += 1;
                        state = State::InKey;
                    }
                    Some(b' ' | b'\t' | b'\n' | b'\r') => at = after_space(bytes, at + 1),
                    Some(b'}') if state == State::FirstKey => state = State::After,
                    Some(_) => state = State::Broken,
                    None => tell!(state, Step::More),
                },
                State::InKey => {
                    let end = scan::string_end(bytes, at);
                    match bytes.get(end) {
                        Some(b'"') if self.filled == 0 && self.half == 0 => {
                            let (after, place) = members(paths, self.innermost(), self.muted, bytes, at, end, hearer);
                            self.place = place;
                            at = after;
                            if bytes.get(at) == Some(&b':') {
                                at += 1;
                                state = State::Value;
                            } else {
                                state = State::Colon;
                            }
                            continue;
                        }
                        Some(_) if self.half != 0 && (end > at || bytes.get(end) != Some(&b'\\')) => {
                            state = State::Broken;
                            continue;
                        }
                        Some(b'"') => {
                            self.keep(bytes.get(at..end).unwrap_or_default());
                            self.place = match self.filled {
                                TOO_LONG => NOWHERE,
                                filled => paths.key(self.innermost(), &self.token, 0, usize::from(filled)),
                            };
                            if self.place == self.muted {
                                self.place = NOWHERE;
                            }
                            self.clear_token();
                        }
                        Some(_) => {
                            self.keep(bytes.get(at..end).unwrap_or_default());
                            self.in_key = true;
                            at = end + 1;
                            state = State::Escape;
                            continue;
                        }
                        None => {
                            if self.half != 0 && at < bytes.len() {
                                state = State::Broken;
                                continue;
                            }
                            self.keep(bytes.get(at..).unwrap_or_default());
                            at = bytes.len();
                            tell!(State::InKey, Step::More);
                        }
                    }
                    at = end + 1;
                    if bytes.get(at) != Some(&b':') {
                        state = State::Colon;
                        continue;
                    }
                    at += 1;
                    state = State::Value;
                }
                State::Colon => match bytes.get(at) {
                    Some(b':') => {
                        at += 1;
                        state = State::Value;
                    }
                    Some(b' ' | b'\t' | b'\n' | b'\r') => at = after_space(bytes, at + 1),
                    Some(_) => state = State::Broken,
                    None => tell!(state, Step::More),
                },
                State::Value | State::FirstElement => match bytes.get(at) {
                    Some(b'"') => {
                        at += 1;
                        self.begun = false;
                        began = Some(at);
                        state = if self.place == NOWHERE { State::SkipText } else { State::Text };
                    }
                    Some(b' ' | b'\t' | b'\n' | b'\r') => at = after_space(bytes, at + 1),
                    Some(open @ (b'{' | b'[')) => {
                        let array = *open == b'[';
                        at += 1;
                        let place = self.place;
                        if place == NOWHERE {
                            self.skip = 1;
                            state = State::Skip;
                            continue;
                        }
                        let node = paths.node(place);
                        let deeper =
                            if array { node.each != NOWHERE || node.first != NOWHERE } else { node.below != NOWHERE };
                        if !deeper {
                            self.skip = 1;
                            tell!(State::Skip, Step::Enter { place, array });
                        }
                        if !self.push(place, array) {
                            state = State::Broken;
                            continue;
                        }
                        if array {
                            self.place = if node.first == NOWHERE { node.each } else { node.first };
                            tell!(State::FirstElement, Step::Enter { place, array });
                        }
                        tell!(State::FirstKey, Step::Enter { place, array });
                    }
                    Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                        began = Some(at);
                        state = if self.place == NOWHERE { State::SkipScalar } else { State::Scalar };
                    }
                    Some(b']') if state == State::FirstElement => state = State::After,
                    Some(_) => state = State::Broken,
                    None => tell!(state, Step::More),
                },
                State::After => match bytes.get(at) {
                    Some(b',') => {
                        at += 1;
                        if self.in_array() {
                            self.place = paths.node(self.innermost()).each;
                            state = State::Value;
                        } else if bytes.get(at) == Some(&b'"') {
                            at += 1;
                            state = State::InKey;
                        } else {
                            state = State::Key;
                        }
                    }
                    Some(close @ (b'}' | b']')) => {
                        if (*close == b']') != self.in_array() {
                            state = State::Broken;
                            continue;
                        }
                        at += 1;
                        self.depth -= 1;
                        if self.depth == 0 {
                            tell!(State::Done, Step::Done);
                        }
                        if self.in_array() {
                            tell!(State::After, Step::Leave);
                        }
                        // Still after a value: of the object or array around.
                    }
                    Some(b' ' | b'\t' | b'\n' | b'\r') => at = after_space(bytes, at + 1),
                    Some(_) => state = State::Broken,
                    None => tell!(state, Step::More),
                },
                State::SkipText => {
                    let end = scan::quote(bytes, at);
                    if end >= bytes.len() {
                        at = bytes.len();
                        tell!(if end > at { State::SkipEscape } else { State::SkipText }, Step::More);
                    }
                    if let Some(began) = began.take() {
                        hearer.passed(bytes.len() - began, bytes.len() - end);
                    }
                    at = end + 1;
                    state = if self.skip == 0 { State::After } else { State::Skip };
                }
                State::SkipEscape => {
                    if at >= bytes.len() {
                        tell!(state, Step::More);
                    }
                    at += 1;
                    state = State::SkipText;
                }
                State::SkipScalar => {
                    at = scan::scalar_end(bytes, at);
                    if at >= bytes.len() {
                        tell!(state, Step::More);
                    }
                    if let Some(began) = began.take() {
                        hearer.passed(bytes.len() - began, bytes.len() - at);
                    }
                    state = State::After;
                }
                State::Skip => {
                    let end = scan::structure(bytes, at);
                    at = end + 1;
                    match bytes.get(end) {
                        Some(b'"') => {
                            began = Some(at);
                            state = State::SkipText;
                        }
                        Some(b'{' | b'[') => {
                            self.skip += 1;
                            if self.skip > SKIP_DEPTH_MAX {
                                state = State::Broken;
                            }
                        }
                        Some(_) => {
                            self.skip -= 1;
                            if self.skip == 0 {
                                if self.depth == 0 {
                                    tell!(State::Done, Step::Done);
                                }
                                state = State::After;
                            }
                        }
                        None => {
                            at = bytes.len();
                            tell!(state, Step::More);
                        }
                    }
                }
                State::Scalar => {
                    let end = scan::scalar_end(bytes, at);
                    let place = self.place;
                    if end >= bytes.len() {
                        self.keep(bytes.get(at..).unwrap_or_default());
                        at = bytes.len();
                        tell!(state, Step::More);
                    }
                    let from = at;
                    at = end;
                    let kept = self.filled != 0;
                    if kept {
                        self.keep(bytes.get(from..end).unwrap_or_default());
                        self.lent = true;
                    }
                    let length = if self.filled == TOO_LONG { 0 } else { usize::from(self.filled) };
                    let text = if kept { &self.token[..length] } else { bytes.get(from..end).unwrap_or_default() };
                    match Word::of(text) {
                        Word::Null => tell!(State::After, Step::Null { place }),
                        Word::True => tell!(State::After, Step::True { place }),
                        Word::False => tell!(State::After, Step::False { place }),
                        Word::Number if kept => {
                            tell!(State::After, Step::Number { place, text: &self.token[..length] })
                        }
                        Word::Number => {
                            let text = bytes.get(from..end).unwrap_or_default();
                            tell!(State::After, Step::Number { place, text });
                        }
                        Word::Other => state = State::Broken,
                    }
                }
                State::Text => {
                    let place = self.place;
                    if self.half != 0 && bytes.get(at).is_some_and(|byte| *byte != b'\\') {
                        state = State::Broken;
                        continue;
                    }
                    let end = scan::string_end(bytes, at);
                    let piece = bytes.get(at..end).unwrap_or_default();
                    let first = !self.begun;
                    match bytes.get(end) {
                        Some(b'"') => {
                            at = end + 1;
                            tell!(State::After, Step::Text { place, piece, first, last: true });
                        }
                        Some(_) => {
                            at = end + 1;
                            self.in_key = false;
                            state = State::Escape;
                        }
                        None => at = bytes.len(),
                    }
                    if piece.is_empty() {
                        if state == State::Escape {
                            continue;
                        }
                        tell!(state, Step::More);
                    }
                    self.begun = true;
                    tell!(state, Step::Text { place, piece, first, last: false });
                }
                State::Escape => {
                    let Some(byte) = bytes.get(at) else { tell!(state, Step::More) };
                    at += 1;
                    let plain = match byte {
                        b'u' => {
                            self.digits = 0;
                            self.hex = 0;
                            state = State::Hex;
                            continue;
                        }
                        b'"' | b'\\' | b'/' => *byte,
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        _ => 0,
                    };
                    if plain == 0 || self.half != 0 {
                        state = State::Broken;
                        continue;
                    }
                    if self.in_key {
                        self.keep(&[plain]);
                        state = State::InKey;
                        continue;
                    }
                    self.state = State::Text;
                    *input = bytes.get(at..).unwrap_or_default();
                    return self.lend(&[plain]);
                }
                State::Hex => {
                    let Some(byte) = bytes.get(at) else { tell!(state, Step::More) };
                    at += 1;
                    let Some(digit) = char::from(*byte).to_digit(16) else {
                        state = State::Broken;
                        continue;
                    };
                    self.hex = self.hex << 4 | digit as u16;
                    self.digits += 1;
                    if self.digits < 4 {
                        continue;
                    }
                    let unit = [std::mem::take(&mut self.half), self.hex];
                    let units = if unit[0] == 0 { &unit[1..] } else { &unit[..] };
                    let back = if self.in_key { State::InKey } else { State::Text };
                    if unit[0] == 0 && (0xD800..0xDC00).contains(&self.hex) {
                        self.half = self.hex;
                        state = back;
                        continue;
                    }
                    let Some(Ok(letter)) = char::decode_utf16(units.iter().copied()).next() else {
                        state = State::Broken;
                        continue;
                    };
                    let mut buffer = [0; 4];
                    let letter = letter.encode_utf8(&mut buffer).as_bytes();
                    if self.in_key {
                        self.keep(letter);
                        state = back;
                        continue;
                    }
                    self.state = back;
                    *input = bytes.get(at..).unwrap_or_default();
                    return self.lend(letter);
                }
                State::Start => match bytes.get(at) {
                    Some(b'{') => {
                        at += 1;
                        self.push(ROOT, false);
                        state = State::FirstKey;
                    }
                    Some(b'[') => {
                        at += 1;
                        self.skip = 1;
                        state = State::Skip;
                    }
                    Some(b' ' | b'\t' | b'\n' | b'\r') => at = after_space(bytes, at + 1),
                    Some(_) => state = State::Broken,
                    None => tell!(state, Step::More),
                },
                State::Done => {
                    at = after_space(bytes, at);
                    if at >= bytes.len() {
                        tell!(state, Step::More);
                    }
                    state = State::Broken;
                }
                State::Broken => {
                    at = bytes.len();
                    self.give_up();
                    tell!(state, Step::Broken);
                }
            }
        }
    }

    /// The place of the object or array around.
    #[inline(always)]
    fn innermost(&self) -> Place {
        self.around.get(usize::from(self.depth).wrapping_sub(1)).copied().unwrap_or(NOWHERE)
    }

    /// Whether that is an array.
    #[inline(always)]
    fn in_array(&self) -> bool {
        self.arrays >> (self.depth.wrapping_sub(1) & 15) & 1 == 1
    }

    /// Steps into an object or array; `false` if that is too deep, which no path is.
    #[inline(always)]
    fn push(&mut self, place: Place, array: bool) -> bool {
        let depth = self.depth & 15;
        let Some(around) = self.around.get_mut(usize::from(depth)) else { return false };
        *around = place;
        self.arrays = self.arrays & !(1 << depth) | u16::from(array) << depth;
        self.depth += 1;
        true
    }

    /// Keeps a part of a key or number, because the rest is not here yet.
    fn keep(&mut self, part: &[u8]) {
        let from = usize::from(self.filled);
        match self.token.get_mut(from..from + part.len()) {
            Some(room) => {
                room.copy_from_slice(part);
                self.filled += part.len() as u8;
            }
            None => self.filled = TOO_LONG,
        }
    }

    /// Tells of a letter that was escaped.
    fn lend(&mut self, letter: &[u8]) -> Step<'_> {
        self.lent = true;
        self.token[..letter.len()].copy_from_slice(letter);
        let first = !std::mem::replace(&mut self.begun, true);
        Step::Text { place: self.place, piece: &self.token[..letter.len()], first, last: false }
    }

    fn clear_token(&mut self) {
        self.token.zeroize();
        self.filled = 0;
        self.lent = false;
        self.hex = 0;
    }
}

impl Drop for Walker {
    fn drop(&mut self) {
        self.clear_token();
        self.half = 0;
    }
}

/// Passes over members of an object that stand here whole, without white space, and that nobody looks at: which most
/// do. `bytes[at..end]` is the first one's key. Where the last key that it looked at ends, and that key's place.
#[inline(always)]
fn members(
    paths: &Paths,
    object: Place,
    muted: Place,
    bytes: &[u8],
    at: usize,
    end: usize,
    hearer: &mut impl Hearer,
) -> (usize, Place) {
    let object = paths.node(object);
    let (mut at, mut end) = (at, end);
    loop {
        let place = paths.key_in(object, bytes, at, end);
        if place != NOWHERE && place != muted {
            return (end + 1, place);
        }
        // A member: `":`, the value, `,"`, and the next key up to its own `"`.
        let value = end + 2;
        if bytes.get(end + 1) != Some(&b':') {
            return (end + 1, NOWHERE);
        }
        let after = match bytes.get(value) {
            Some(b'"') => scan::string_end(bytes, value + 1) + 1,
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => scan::scalar_end(bytes, value),
            _ => return (end + 1, NOWHERE),
        };
        let Some([b'"' | b'0'..=b'9' | b'l' | b'e', b',', b'"']) =
            after.checked_sub(1).and_then(|last| bytes.get(last..last + 3))
        else {
            return (end + 1, NOWHERE);
        };
        let next = scan::string_end(bytes, after + 2);
        if bytes.get(next) != Some(&b'"') {
            return (end + 1, NOWHERE);
        }
        match bytes.get(value) {
            Some(b'"') => hearer.passed(bytes.len() - value - 1, bytes.len() - after + 1),
            _ => hearer.passed(bytes.len() - value, bytes.len() - after),
        }
        (at, end) = (after + 2, next);
    }
}

/// What a value without quotes or brackets is, by its text.
enum Word {
    Null,
    True,
    False,
    Number,
    Other,
}

impl Word {
    #[inline(always)]
    fn of(text: &[u8]) -> Self {
        match text {
            b"null" => Self::Null,
            b"true" => Self::True,
            b"false" => Self::False,
            [] | [b'-' | b'0'..=b'9', ..] => Self::Number,
            _ => Self::Other,
        }
    }
}

/// Where white space ends.
#[inline(always)]
fn after_space(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: Paths =
        Paths::new(&["a.b", "list[0].x", "list[].x", "list[].y", "text", "twelve_bytes", "twelve_bytEs", "deep[][].z"]);

    /// What is told of `document`, as lines; strings put together.
    fn told(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut walker = Walker::new();
        let mut text = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            loop {
                match walker.next(&PATHS, &mut rest) {
                    Step::More => break,
                    Step::Enter { place, array } => lines.push(format!("{place} {}", if array { "[" } else { "{" })),
                    Step::Leave => lines.push("leave".to_owned()),
                    Step::Text { place, piece, first, last } => {
                        assert_eq!(first, text.is_empty() && first);
                        text.extend_from_slice(piece);
                        if last {
                            lines.push(format!("{place} {:?}", String::from_utf8_lossy(&std::mem::take(&mut text))));
                        }
                    }
                    Step::Number { place, text } => {
                        lines.push(format!("{place} {}", std::str::from_utf8(text).expect("text")));
                    }
                    Step::True { place } => lines.push(format!("{place} true")),
                    Step::False { place } => lines.push(format!("{place} false")),
                    Step::Null { place } => lines.push(format!("{place} null")),
                    Step::Done => lines.push("done".to_owned()),
                    Step::Broken => {
                        lines.push("broken".to_owned());
                        return lines;
                    }
                }
            }
        }
        lines
    }

    /// The same, asserted to be so at every cut in two and byte by byte.
    fn told_whole(document: &str) -> Vec<String> {
        let bytes = document.as_bytes();
        let whole = told(&[bytes]);
        for cut in 0..bytes.len() {
            assert_eq!(told(&[&bytes[..cut], &bytes[cut..]]), whole, "{document} cut at {cut}");
        }
        assert_eq!(told(&bytes.chunks(1).collect::<Vec<_>>()), whole, "{document} byte by byte");
        whole
    }

    #[test]
    fn only_what_paths_lead_to_is_told() {
        let [b, x0, x, y, text] = ["a.b", "list[0].x", "list[].x", "list[].y", "text"].map(|path| PATHS.place(path));
        let [a, list, first, each] = ["a", "list", "list[0]", "list[]"].map(|path| PATHS.place(path));
        let document = r#" {"x":{"b":1,"a":{"b":2}},"a":{"c":[{"b":3},"}",[4]],"b":5.5e1},"list":[{"x":1},{"x":2,"y":null},
            7,[8],{"y":true}],"text":"a\"\\\u0041\ud83d\ude00é","b":9} "#;
        assert_eq!(
            told_whole(document),
            [
                format!("{a} {{"),
                format!("{b} 5.5e1"),
                format!("{list} ["),
                format!("{first} {{"),
                format!("{x0} 1"),
                "leave".to_owned(),
                format!("{each} {{"),
                format!("{x} 2"),
                format!("{y} null"),
                "leave".to_owned(),
                format!("{each} 7"),
                format!("{each} ["),
                format!("{each} {{"),
                format!("{y} true"),
                "leave".to_owned(),
                format!("{text} {:?}", "a\"\\A😀é"),
                "done".to_owned(),
            ]
        );
    }

    #[test]
    fn keys_match_as_a_parser_would_read_them() {
        let text = PATHS.place("text");
        for key in ["text", "t\\u0065xt", "\\u0074\\u0065\\u0078\\u0074"] {
            assert_eq!(told_whole(&format!("{{\"{key}\" : 1 }}")), [format!("{text} 1"), "done".to_owned()], "{key}");
        }
        for key in ["tex", "textt", "Text", "te\\nxt", "\\u0000text", "", "a.b", &"t".repeat(300), "text\\u0000"] {
            assert_eq!(told_whole(&format!("{{\"{key}\":1}}")), ["done"], "{key}");
        }
        let [one, other] = ["twelve_bytes", "twelve_bytEs"].map(|path| PATHS.place(path));
        assert_ne!(one, other);
        assert_eq!(
            told_whole(r#"{"twelve_bytEs":1,"twelve_bytes":2,"twelve_bytez":3}"#),
            [format!("{other} 1"), format!("{one} 2"), "done".to_owned()]
        );
    }

    #[test]
    fn what_is_not_json_breaks() {
        for (document, last) in [
            ("x", "broken"),
            ("7", "broken"),
            ("{]", "broken"),
            ("{\"a\" 1}", "broken"),
            ("{,}", "broken"),
            ("{\"text\":nul}", "broken"),
            ("{\"text\":\"\\x\"}", "broken"),
            ("{\"text\":\"\\ud83d\"}", "broken"),
            ("{\"text\":\"\\ud83dx\"}", "broken"),
            ("{\"text\":\"\\ude00\"}", "broken"),
            ("{\"text\":\"\\ud83d\\u0041\"}", "broken"),
            ("{\"\\ud83d\":1}", "broken"),
            ("{\"\\ud83dx\":1}", "broken"),
            ("{} {", "broken"),
            ("{\"list\":[}", "broken"),
            ("[{\"text\":1}]", "done"),
            ("{}", "done"),
            ("\n\n{ } \n", "done"),
        ] {
            assert_eq!(told_whole(document).last().map(String::as_str), Some(last), "{document}");
        }
        assert!(told_whole("").is_empty());
        let deep = format!("{{\"q\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(told(&[deep.as_bytes()]), ["done"]);
    }

    #[test]
    fn nothing_of_the_content_stays() {
        let mut walker = Walker::new();
        for piece in ["{\"tex", "t\":\"\\u00", "41secret\",\"a\":{\"b\":123456", "7 },\"se"] {
            let mut rest = piece.as_bytes();
            while !matches!(walker.next(&PATHS, &mut rest), Step::More) {}
        }
        assert_eq!(&walker.token[..3], b"se\0");
        assert!(walker.token[2..].iter().all(|byte| *byte == 0));
        walker.restart();
        assert_eq!(walker.token, [0; TOKEN]);
    }
}
