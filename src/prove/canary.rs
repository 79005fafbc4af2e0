//! Words that occur nowhere else, and the search for pieces of them.
//!
//! A word is sixteen letters of an alphabet of eight, repeated to any length, so that every remainder
//! of eight bytes tells which word it comes from. The eight letters are those whose Huffman code in
//! HPACK is seven bits long (RFC 7541, appendix B): sixteen of them fill fourteen bytes, so the coded
//! form of an endless word repeats as well, and is searched for in each of its bit positions.

use std::collections::HashMap;
use std::collections::HashSet;

use bytes::Bytes;

/// Their codes are 0x74 to 0x7b, in this order.
const ALPHABET: [u8; 8] = *b"jkqvwxyz";
const FIRST_CODE: u64 = 0x74;
const CODE_BITS: usize = 7;

/// Letters of a word.
const LETTERS: usize = 16;

/// The shortest remainder that is found.
const PIECE: usize = 8;

/// Where in an exchange a word travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    RequestBody,
    ResponseBody,
    Credential,
    Path,
    Query,
    RequestHeader,
    ResponseHeader,
}

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::RequestBody,
        Self::ResponseBody,
        Self::Credential,
        Self::Path,
        Self::Query,
        Self::RequestHeader,
        Self::ResponseHeader,
    ];

    /// Its key in the JSON report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RequestBody => "request_body",
            Self::ResponseBody => "response_body",
            Self::Credential => "credential",
            Self::Path => "path",
            Self::Query => "query",
            Self::RequestHeader => "request_header",
            Self::ResponseHeader => "response_header",
        }
    }

    /// Promised to be gone as soon as it was handed over. The others are a head's: a second after the exchange.
    pub(super) fn is_body(self) -> bool {
        matches!(self, Self::RequestBody | Self::ResponseBody)
    }
}

/// Bytes found, by kind.
pub(super) type Counts = [u64; Kind::ALL.len()];

/// One word.
pub(super) struct Word([u8; LETTERS]);

impl Word {
    /// The word over and over, `bytes` long.
    pub(super) fn content(&self, bytes: usize) -> Bytes {
        self.0.iter().copied().cycle().take(bytes).collect::<Vec<u8>>().into()
    }

    /// As text, three times over: as long as a key.
    pub(super) fn text(&self) -> String {
        self.0.iter().copied().cycle().take(3 * LETTERS).map(char::from).collect()
    }

    /// Every eight bytes of the endless word, plain and in HPACK's code.
    fn pieces(&self) -> impl Iterator<Item = u64> + '_ {
        let plain = (0..LETTERS)
            .map(|start| u64::from_le_bytes(std::array::from_fn(|place| self.0[(start + place) % LETTERS])));
        let bit = |place: usize| {
            let letter = self.0[place / CODE_BITS % LETTERS];
            let code = FIRST_CODE + ALPHABET.iter().position(|of| *of == letter).unwrap_or(0) as u64;
            code >> (CODE_BITS - 1 - place % CODE_BITS) & 1
        };
        let coded = (0..LETTERS * CODE_BITS).map(move |start| {
            let bytes: u64 = (0..64).fold(0, |bytes, place| bytes << 1 | bit(start + place));
            u64::from_le_bytes(bytes.to_be_bytes())
        });
        plain.chain(coded)
    }
}

/// Whether all of it may be a part of some word. Looks at the ends only: what is relayed is checked
/// for cuts and mix-ups elsewhere.
pub(super) fn is_content(bytes: &[u8]) -> bool {
    [bytes.first(), bytes.last()].into_iter().flatten().all(|byte| ALPHABET.contains(byte))
}

/// All words of a run: no two share a piece.
pub(super) struct Dictionary {
    words: Vec<Word>,
    lanes: usize,
}

impl Dictionary {
    pub(super) fn new(paths: usize, lanes: usize) -> Self {
        let wanted = paths * lanes * Kind::ALL.len();
        let mut words = Vec::with_capacity(wanted);
        let mut pieces = HashSet::new();
        let mut state: u64 = 0;
        while words.len() < wanted {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let bits = split_mix(state);
            let word = Word(std::array::from_fn(|place| ALPHABET[(bits >> (3 * place)) as usize & 7]));
            let own: HashSet<u64> = word.pieces().collect();
            if own.len() == LETTERS * (1 + CODE_BITS) && pieces.is_disjoint(&own) {
                pieces.extend(own);
                words.push(word);
            }
        }
        Self { words, lanes }
    }

    pub(super) fn word(&self, path: usize, lane: usize, kind: Kind) -> &Word {
        &self.words[self.place(path, lane) + kind as usize]
    }

    fn place(&self, path: usize, lane: usize) -> usize {
        (path * self.lanes + lane) * Kind::ALL.len()
    }

    /// Looks for the words of one path.
    pub(super) fn search_for(&self, path: usize) -> Search {
        Search::new(&self.words[self.place(path, 0)..self.place(path + 1, 0)])
    }

    /// Looks for all words.
    pub(super) fn search_for_all(&self) -> Search {
        Search::new(&self.words)
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): spreads a counter over 64 bits.
fn split_mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Finds pieces of words in memory, at a few nanoseconds a byte: a bitmap of hashes first, which
/// nearly nothing passes that is no piece.
pub(super) struct Search {
    filter: Vec<u64>,
    shift: u32,
    pieces: HashMap<u64, usize>,
    words: usize,
}

/// What was found, in the order of the words.
pub(super) struct Found {
    bytes: Vec<u64>,
    /// Where the last counted byte ends.
    end: u64,
}

impl Found {
    /// By kind, of each lane in turn.
    pub(super) fn by_lane(&self) -> impl Iterator<Item = Counts> + '_ {
        self.bytes.chunks_exact(Kind::ALL.len()).map(|lane| std::array::from_fn(|kind| lane[kind]))
    }

    /// By kind, of all lanes.
    pub(super) fn total(&self) -> Counts {
        self.by_lane().fold(Counts::default(), |sum, lane| std::array::from_fn(|kind| sum[kind] + lane[kind]))
    }
}

const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

impl Search {
    fn new(words: &[Word]) -> Self {
        let pieces: HashMap<u64, usize> =
            words.iter().enumerate().flat_map(|(place, word)| word.pieces().map(move |piece| (piece, place))).collect();
        // One bit in 64 or fewer is set.
        let bits = (pieces.len() * 64).next_power_of_two().max(1 << 16);
        let mut search = Self {
            filter: vec![0; bits / 64],
            shift: 64 - bits.trailing_zeros(),
            pieces: HashMap::new(),
            words: words.len(),
        };
        for piece in pieces.keys() {
            let bit = search.bit(*piece);
            search.filter[bit / 64] |= 1 << (bit % 64);
        }
        search.pieces = pieces;
        search
    }

    fn bit(&self, piece: u64) -> usize {
        // Fibonacci hashing: the top bits of a product with the golden ratio.
        (piece.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    pub(super) fn nothing(&self) -> Found {
        Found { bytes: vec![0; self.words], end: 0 }
    }

    /// Counts the bytes of `memory`, which begins at `address`, that belong to pieces of words.
    /// Pieces across two calls are found if the second begins seven bytes before the first's end.
    pub(super) fn count(&self, memory: &[u8], address: u64, found: &mut Found) {
        let mut piece = 0_u64;
        let mut place = 0;
        while place < memory.len() {
            // No piece has a zero in it, so one that reaches into an empty page is none.
            if place % PAGE == 0 && memory[place..].starts_with(&ZEROS) {
                place += PAGE;
                piece = 0;
                continue;
            }
            let end = memory.len().min((place / PAGE + 1) * PAGE);
            for (offset, byte) in memory[place..end].iter().enumerate() {
                piece = piece >> 8 | u64::from(*byte) << 56;
                let bit = self.bit(piece);
                if self.filter[bit / 64] >> (bit % 64) & 1 != 0
                    && let Some(word) = self.pieces.get(&piece)
                {
                    let end = address + (place + offset) as u64 + 1;
                    let new = end - (end - PIECE as u64).max(found.end.min(end));
                    found.bytes[*word] += new;
                    found.end = end;
                }
            }
            place = end;
        }
    }

    /// The same for a text of its own.
    pub(super) fn in_text(&self, text: &[u8]) -> u64 {
        let mut found = self.nothing();
        // Away from zero, so that a piece's start has an address.
        self.count(text, PAGE as u64, &mut found);
        found.total().iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_to_the_byte_wherever_they_stand() {
        let dictionary = Dictionary::new(2, 3);
        let search = dictionary.search_for(1);
        let word = dictionary.word(1, 2, Kind::Query);
        for length in [0, 7, 8, 9, 16, 100, 9000] {
            for start in [0, 1, 4090, 5000] {
                let mut memory = vec![b'.'; 20_000];
                memory[start..start + length].copy_from_slice(&word.content(length));
                let mut found = search.nothing();
                search.count(&memory[..8192], 1 << 20, &mut found);
                search.count(&memory[8192 - 7..], (1 << 20) + 8192 - 7, &mut found);
                let expected = if length < 8 { 0 } else { length as u64 };
                let of_lane = found.by_lane().nth(2).unwrap();
                assert_eq!(of_lane[Kind::Query as usize], expected, "{length} bytes at {start}");
                assert_eq!(found.total().iter().sum::<u64>(), expected);
                assert_eq!(dictionary.search_for(0).in_text(&memory), 0, "a word of another path");
            }
        }
    }

    #[test]
    fn the_coded_form_is_found_behind_any_prefix() {
        let dictionary = Dictionary::new(1, 1);
        let word = dictionary.word(0, 0, Kind::Credential);
        // RFC 7541, appendix B.
        let code = |letter: u8| match letter {
            b'B' => (0x5d, 7),
            b'e' => (0x5, 5),
            b'a' => (0x3, 5),
            b'r' => (0x2c, 6),
            b' ' => (0x14, 6),
            letter => (FIRST_CODE + ALPHABET.iter().position(|of| *of == letter).unwrap() as u64, 7),
        };
        for prefix in ["", "a", "ar", "Bear", "Bearer ", "eeeeeee"] {
            let bits: Vec<u64> = prefix
                .bytes()
                .chain(word.text().bytes())
                .flat_map(|letter| {
                    let (code, length) = code(letter);
                    (0..length).rev().map(move |bit| code >> bit & 1)
                })
                .collect();
            let coded: Vec<u8> =
                bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | *bit as u8)).collect();
            let found = dictionary.search_for_all().in_text(&coded);
            assert!((40..=48).contains(&found), "{prefix}: {found} of {}", coded.len());
        }
    }

    #[test]
    fn no_two_words_share_a_piece() {
        let dictionary = Dictionary::new(20, 8);
        let all: Vec<u64> = dictionary.words.iter().flat_map(Word::pieces).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}
