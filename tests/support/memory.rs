//! Searching the memory of a running process for content that is known.
//!
//! Found is what stands there in eight bytes or more. The idea: eight bytes in a row, wherever they
//! begin, contain one whole group of four at an address that is a multiple of four. So each group is
//! looked up in a bitmap of the groups that the content has, and only where one is in it are the
//! eight bytes compared, at the four beginnings that have this group first. All that is searched for
//! is searched for in one pass.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nullhop_loadtests::hpack::huffman_coded;
use nullhop_loadtests::words::word;

/// What is searched for. Each target is counted by itself.
pub struct Search {
    targets: usize,
    /// Eight bytes, and the target that they are a piece of.
    pieces: HashMap<u64, usize>,
    /// By hash of a group of four: whether one of the pieces holds it.
    filter: Vec<u64>,
}

/// How many bytes were found, by target in the order in which they were named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found(pub Vec<usize>);

impl Found {
    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }
}

impl Search {
    /// For the words of seeds (`nullhop_loadtests::words`), a target each.
    pub fn of_words(seeds: &[u32]) -> Self {
        seeds.iter().fold(Self::default(), |search, seed| search.endless(&word(*seed)))
    }

    /// For the words of seeds in heads, a target each: as they are, and Huffman-coded as HPACK does it (RFC 7541
    /// section 5.2), at whatever bit they begin.
    pub fn of_heads(seeds: &[u32]) -> Self {
        let mut search = Self::of_words(seeds);
        for (target, seed) in seeds.iter().enumerate() {
            let thrice = word(*seed).repeat(3);
            for offset in 0..8 {
                let coded = huffman_coded(&thrice, offset);
                // The first and the last byte are shared with what stands before and behind.
                search.add(&coded[1..coded.len() - 1], target);
            }
        }
        search
    }

    /// A further target: the endless repetition of `word`, of eight bytes at least.
    pub fn endless(mut self, word: &[u8]) -> Self {
        let twice: Vec<u8> = word.iter().copied().cycle().take(word.len() + 7).collect();
        self.add(&twice, self.targets);
        self.targets += 1;
        self
    }

    /// A further target: `text` in pieces of at least eight bytes.
    pub fn text(mut self, text: &[u8]) -> Self {
        self.add(text, self.targets);
        self.targets += 1;
        self
    }

    /// A further target: `text` as it may stand in a head, also Huffman-coded at whatever bit it begins.
    pub fn head(mut self, text: &[u8]) -> Self {
        self.add(text, self.targets);
        for offset in 0..8 {
            let coded = huffman_coded(text, offset);
            // The first and the last byte are shared with what stands before and behind.
            self.add(&coded[1..coded.len() - 1], self.targets);
        }
        self.targets += 1;
        self
    }

    fn add(&mut self, text: &[u8], target: usize) {
        assert!(text.len() >= PIECE, "too short to be found");
        for piece in text.windows(PIECE) {
            self.pieces.insert(number(piece), target);
            for group in piece.windows(GROUP) {
                let place = place_of(group.try_into().expect("a group"));
                self.filter[place / 64] |= 1 << (place % 64);
            }
        }
    }

    /// Searches `memory`, which stands at `address`; `found_to` is how far earlier calls have counted each target.
    fn search(&self, memory: &[u8], address: u64, found_to: &mut [u64], mut hit: impl FnMut(usize, usize, usize)) {
        for (at, group) in memory.chunks_exact(GROUP).enumerate() {
            let place = place_of(group.try_into().expect("a group"));
            if self.filter[place / 64] & (1 << (place % 64)) == 0 {
                continue;
            }
            let at = at * GROUP;
            for start in at.saturating_sub(GROUP - 1)..=at {
                let Some(piece) = memory.get(start..start + PIECE) else { break };
                let Some(target) = self.pieces.get(&number(piece)) else { continue };
                let (start_address, end) = (address + start as u64, address + (start + PIECE) as u64);
                let new = end - found_to[*target].clamp(start_address, end);
                found_to[*target] = end.max(found_to[*target]);
                hit(*target, start, new as usize);
            }
        }
    }

    /// Searches a piece of memory of this process.
    pub fn slice(&self, memory: &[u8]) -> Found {
        let mut found = vec![0; self.targets];
        self.search(memory, 0, &mut vec![0; self.targets], |target, _, bytes| found[target] += bytes);
        Found(found)
    }

    /// Searches all memory of a process: every page that it has, whatever the rights on it, but the pages of files as
    /// they stand on the disk. Reading another's memory takes root or its parent.
    ///
    /// With `NULLHOP_SHOW` set, the surroundings of the first finds go to stderr.
    ///
    /// # Panics
    /// If memory that is there cannot be read.
    pub fn process(&self, pid: u32) -> Found {
        let memory = File::open(format!("/proc/{pid}/mem")).expect("memory can be read");
        let pages = File::open(format!("/proc/{pid}/pagemap")).expect("the page map can be read");
        let anonymous = anonymous_bytes(pid);
        let mut found = vec![0; self.targets];
        let mut found_to = vec![0; self.targets];
        let mut scanned = 0;
        let mut buffer = vec![0_u8; BLOCK];
        let mut shown = if std::env::var_os("NULLHOP_SHOW").is_some() { 0 } else { SHOWN_MAX };
        for mapping in mappings(pid) {
            for (from, to) in runs(&pages, &mapping) {
                let mut at = from;
                // How much of the buffer is the end of the block before.
                let mut before: usize = 0;
                while at < to {
                    let wanted = usize::try_from(to - at).expect("small").min(BLOCK - before);
                    let read = memory.read_at(&mut buffer[before..before + wanted], at).unwrap_or(0);
                    if read == 0 {
                        // Unmapped meanwhile, or there and out of reach.
                        let still = mappings(pid).any(|other| other.start <= at && at < other.end);
                        assert!(!still || runs(&pages, &mapping).is_empty(), "{at:x} cannot be read: {}", mapping.line);
                        break;
                    }
                    scanned += read;
                    let block = &buffer[..before + read];
                    let address = at - before as u64;
                    self.search(block, address, &mut found_to, |target, start, bytes| {
                        found[target] += bytes;
                        if bytes == PIECE && shown < SHOWN_MAX {
                            shown += 1;
                            let around = &block[start.saturating_sub(64)..(start + 96).min(block.len())];
                            eprintln!(
                                "{}\n  {:x} target {target}: {:?}",
                                mapping.line,
                                address + start as u64,
                                String::from_utf8_lossy(around)
                            );
                        }
                    });
                    at += read as u64;
                    // A multiple of the group, and longer than a piece.
                    let kept = block.len().min(2 * PIECE);
                    buffer.copy_within(before + read - kept..before + read, 0);
                    before = kept;
                }
            }
        }
        // It may have given some back meanwhile.
        assert!(scanned > anonymous / 2, "only {scanned} bytes of {anonymous} could be read");
        Found(found)
    }
}

impl Default for Search {
    fn default() -> Self {
        Self { targets: 0, pieces: HashMap::new(), filter: vec![0; (1 << FILTER_BITS) / 64] }
    }
}

/// How much memory of its own a process has, by the kernel's count.
fn anonymous_bytes(pid: u32) -> usize {
    let sums = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("sums can be read");
    let line = sums.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a sum");
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1024
}

struct Mapping {
    start: u64,
    end: u64,
    /// A private mapping of a file: its untouched pages are the file's.
    private_file: bool,
    line: String,
}

/// The mappings of a process but for the kernel's own, which hold clocks.
fn mappings(pid: u32) -> impl Iterator<Item = Mapping> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps can be read");
    let lines: Vec<String> = maps.lines().map(str::to_owned).collect();
    lines.into_iter().filter(|line| !line.contains("[vvar") && !line.ends_with("[vsyscall]")).map(|line| {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().expect("range"), fields.next().expect("rights"));
        let (start, end) = range.split_once('-').expect("range");
        let parse = |text| u64::from_str_radix(text, 16).expect("address");
        let private_file = rights.ends_with('p') && fields.nth(3).is_some_and(|name| name.starts_with('/'));
        Mapping { start: parse(start), end: parse(end), private_file, line: line.clone() }
    })
}

/// Where the pages of a mapping are that the process has: present or swapped out (proc_pid_pagemap(5)).
fn runs(pages: &File, mapping: &Mapping) -> Vec<(u64, u64)> {
    let count = usize::try_from((mapping.end - mapping.start) / PAGE).expect("fits");
    let mut entries = vec![0_u8; 8 * count];
    let read = pages.read_at(&mut entries, mapping.start / PAGE * 8).expect("the page map can be read");
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (place, entry) in entries[..read].chunks_exact(8).enumerate() {
        let entry = u64::from_ne_bytes(entry.try_into().expect("eight"));
        let (there, of_a_file) = (entry >> 62 != 0, entry >> 61 & 1 != 0);
        if !there || (of_a_file && mapping.private_file) {
            continue;
        }
        let start = mapping.start + place as u64 * PAGE;
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end += PAGE,
            _ => runs.push((start, start + PAGE)),
        }
    }
    runs
}

fn number(piece: &[u8]) -> u64 {
    u64::from_ne_bytes(piece.try_into().expect("eight bytes"))
}

/// Multiplicative hashing (Knuth, volume 3, section 6.4).
fn place_of(group: [u8; GROUP]) -> usize {
    (u32::from_ne_bytes(group).wrapping_mul(0x9e37_79b1) >> (32 - FILTER_BITS)) as usize
}

/// What is found, at least.
const PIECE: usize = 8;
const GROUP: usize = 4;
const PAGE: u64 = 4096;
const BLOCK: usize = 1 << 20;
/// Large enough that few groups pass that are none of the content's, small enough for the first cache.
const FILTER_BITS: u32 = 17;
const SHOWN_MAX: usize = 6;
