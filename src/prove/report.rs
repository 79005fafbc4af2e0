//! The report: a table for people, JSON for auditors (docs/prove.md has the schema).

use std::fmt::Write as _;

use serde_json::Value;
use serde_json::json;

use super::canary::Counts;
use super::canary::Kind;
use super::paths::Lane;
use super::paths::Path;
use super::paths::Point;

/// Of the JSON: a change that could break a reader makes it another one.
const VERSION: u32 = 1;

/// What a stream may hold (256 KiB) while its receiver does not take more.
pub(super) const IN_FLIGHT_MAX: u64 = 256 << 10;

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// As it should be.
    Good,
    /// Not promised, but it could be better. Does not make the verdict red.
    Attention,
    /// No program can do anything about it.
    Outside,
    /// Promised, and not so.
    Broken,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Attention => "attention",
            Self::Outside => "outside",
            Self::Broken => "broken",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Attention => "attention",
            Self::Outside => "out of reach",
            Self::Broken => "NOT SO",
        }
    }
}

/// One check of the child or of the machine. `says` holds numbers and fixed words, never what was looked at.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) state: State,
    pub(super) says: String,
}

impl Line {
    pub(super) fn new(name: &'static str, state: State, says: String) -> Self {
        Self { name, state, says }
    }

    fn to_json(&self) -> Value {
        json!({ "name": self.name, "state": self.state.name(), "says": self.says })
    }
}

/// One search of the memory, for the words of one lane.
pub(super) struct Searched {
    pub(super) point: Point,
    pub(super) pair: String,
    pub(super) tls: &'static str,
    /// What should have been gone and was not. Zero for what was not to be gone yet.
    pub(super) found: Counts,
    /// Where the receiver is stalled: what stands in memory of what it does not take.
    pub(super) in_flight: Option<u64>,
}

/// How one path went.
pub(super) struct PathReport {
    pub(super) path: Path,
    pub(super) searched: Vec<Searched>,
    /// Lanes that did not go as planned, so that their searches prove nothing.
    pub(super) failed: Vec<(String, &'static str)>,
    /// This configuration cannot go there.
    pub(super) impossible: Option<&'static str>,
}

impl PathReport {
    fn found(&self) -> Counts {
        let most = |counts: Counts, one: &Searched| std::array::from_fn(|kind| counts[kind].max(one.found[kind]));
        self.searched.iter().fold(Counts::default(), most)
    }

    fn in_flight(&self) -> Option<u64> {
        self.searched.iter().filter_map(|one| one.in_flight).max()
    }

    /// A stalled receiver leaves something in flight: a search that sees nothing then is blind.
    fn is_blind(&self) -> bool {
        self.searched.iter().any(|one| one.in_flight == Some(0))
    }

    fn holds(&self) -> bool {
        self.impossible.is_some()
            || (self.failed.is_empty()
                && !self.searched.is_empty()
                && self.found().iter().all(|bytes| *bytes == 0)
                && self.in_flight().is_none_or(|bytes| bytes <= IN_FLIGHT_MAX)
                && !self.is_blind())
    }

    fn to_json(&self) -> Value {
        let searched = self.searched.iter().map(|one| {
            json!({
                "at": one.point.name(),
                "pair": one.pair,
                "tls": one.tls,
                "found_bytes": by_kind(&one.found),
                "in_flight_bytes": one.in_flight,
            })
        });
        json!({
            "path": self.path.name(),
            "says": self.path.says(),
            "holds": self.holds(),
            "impossible": self.impossible,
            "found_bytes": by_kind(&self.found()),
            "in_flight_bytes": self.in_flight(),
            "searches": searched.collect::<Vec<_>>(),
            "failed": self.failed.iter().map(|(lane, why)| json!({ "lane": lane, "why": why })).collect::<Vec<_>>(),
        })
    }
}

fn by_kind(counts: &Counts) -> Value {
    Kind::ALL.iter().map(|kind| (kind.name().to_owned(), Value::from(counts[*kind as usize]))).collect()
}

/// "h1 to h2, TLS 1.3".
pub(super) fn lane_name(lane: &Lane) -> String {
    match lane.tls() {
        "none" => format!("{}, no TLS", lane.pair()),
        version => format!("{}, TLS {version}", lane.pair()),
    }
}

/// All of it.
pub(super) struct Report {
    pub(super) quick: bool,
    /// Only some paths were asked for.
    pub(super) partial: bool,
    pub(super) configuration: &'static str,
    pub(super) paths: Vec<PathReport>,
    /// The search itself, and searches that belong to no path.
    pub(super) memory: Vec<Line>,
    pub(super) surfaces: Vec<Line>,
    pub(super) guards: Vec<Line>,
    pub(super) measures: Vec<Line>,
    pub(super) machine: Vec<Line>,
    pub(super) notes: Vec<&'static str>,
    pub(super) seconds: f64,
    pub(super) memory_searches: u32,
    pub(super) memory_bytes: u64,
}

impl Report {
    fn lines(&self) -> impl Iterator<Item = &Line> {
        [&self.memory, &self.surfaces, &self.guards, &self.measures, &self.machine].into_iter().flatten()
    }

    pub(super) fn holds(&self) -> bool {
        self.paths.iter().all(PathReport::holds) && self.lines().all(|line| line.state != State::Broken)
    }

    pub(super) fn to_json(&self) -> Value {
        let all = |lines: &[Line]| lines.iter().map(Line::to_json).collect::<Vec<_>>();
        json!({
            "version": VERSION,
            "nullhop": env!("CARGO_PKG_VERSION"),
            "holds": self.holds(),
            "quick": self.quick,
            "partial": self.partial,
            "configuration": self.configuration,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "memory_searches": self.memory_searches,
            "memory_bytes": self.memory_bytes,
            "in_flight_bytes_max": IN_FLIGHT_MAX,
            "paths": self.paths.iter().map(PathReport::to_json).collect::<Vec<_>>(),
            "memory": all(&self.memory),
            "surfaces": all(&self.surfaces),
            "guards": all(&self.guards),
            "measures": all(&self.measures),
            "machine": all(&self.machine),
            "notes": self.notes,
            "to_do": self.to_do(),
        })
    }

    /// What is red, and what to do about it; a sentence each.
    fn to_do(&self) -> Vec<String> {
        let mut todo = Vec::new();
        let mut of_paths = |is_so: &dyn Fn(&PathReport) -> bool, what: &str| {
            let names: Vec<_> = self.paths.iter().filter(|path| is_so(path)).map(|path| path.path.name()).collect();
            if !names.is_empty() {
                todo.push(format!("{}: {what}", names.join(", ")));
            }
        };
        let found = |path: &PathReport, body| {
            let found = path.found();
            Kind::ALL.into_iter().any(|kind| kind.is_body() == body && found[kind as usize] > 0)
        };
        of_paths(&|path| found(path, true), "content stays in memory. Do not run this build; report it with --json.");
        of_paths(
            &|path| found(path, false),
            "parts of heads (credentials, URLs, header values) stay for more than a second after the exchange. Lower \
             idle_timeout in [limits] and in the upstreams, which bounds it; report it with --json.",
        );
        of_paths(
            &|path| path.in_flight().is_some_and(|bytes| bytes > IN_FLIGHT_MAX),
            "a stalled stream holds more than 256 KiB; report it with --json.",
        );
        of_paths(
            &PathReport::is_blind,
            "the search did not find what is certain to be in flight, so it proves nothing; report it with --json.",
        );
        for path in &self.paths {
            if let Some((lane, why)) = path.failed.first() {
                let (name, lanes) = (path.path.name(), path.failed.len());
                todo.push(format!(
                    "{name}: {lanes} of its lanes did not go as planned, so they prove nothing (first {lane}: {why}). If the \
                     machine is very busy, try again."
                ));
            }
        }
        for line in self.lines().filter(|line| line.state == State::Broken) {
            todo.push(format!("{}: {}. {}", line.name, line.says, advice(line.name)).trim_end().to_owned());
        }
        todo
    }

    /// The table, fit for 100 columns.
    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "nullhop prove: {}", self.configuration);
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        if !self.paths.is_empty() {
            let _ = writeln!(out, "\nBytes found in memory that should have been gone, the most of any pair\n");
            let heads = ["request", "answer", "credential", "path", "query", "headers", "in flight"];
            let _ = write!(out, "  {:15} {:>5}", "path", "lanes");
            for head in heads {
                let _ = write!(out, " {head:>10}");
            }
            out.push('\n');
            for path in &self.paths {
                path_line(path, &mut out);
            }
        }
        for (title, lines) in [
            ("Memory", &self.memory),
            ("Other ways out", &self.surfaces),
            ("Guards of the process", &self.guards),
            ("Measures in memory", &self.measures),
            ("This machine (nothing here is nullhop's to promise)", &self.machine),
        ] {
            if lines.is_empty() {
                continue;
            }
            let _ = writeln!(out, "\n{title}\n");
            for line in lines {
                let start = format!("  {:18} {:13}", line.name, line.state.in_words());
                wrapped(&start, &line.says, &mut out);
            }
        }
        let _ = writeln!(
            out,
            "\n{} searches of {:.0} MB of memory in {:.0} s",
            self.memory_searches,
            self.memory_bytes as f64 / f64::from(self.memory_searches.max(1)) / 1e6,
            self.seconds
        );
        let todo = self.to_do();
        if todo.is_empty() {
            let which = match (self.partial, self.quick) {
                (true, _) => " on the paths that were asked for",
                (false, true) => " (quick: half of the paths, TLS 1.3 only, smaller bodies)",
                (false, false) => "",
            };
            let _ = writeln!(out, "\nVerdict: everything promised holds{which}.");
        } else {
            let _ = writeln!(out, "\nVerdict: NOT everything promised holds. What to do:\n");
            for what in todo {
                wrapped("  - ", &what, &mut out);
            }
        }
        out
    }
}

fn path_line(path: &PathReport, out: &mut String) {
    if let Some(why) = path.impossible {
        let _ = writeln!(out, "  {:15}       {why}", path.path.name());
        return;
    }
    let mut lanes: Vec<_> = path.searched.iter().map(|one| (&one.pair, one.tls)).collect();
    lanes.sort_unstable();
    lanes.dedup();
    let found = path.found();
    let of = |kind: Kind| found[kind as usize];
    let mut line = format!("  {:15} {:>5}", path.path.name(), lanes.len());
    for bytes in [
        of(Kind::RequestBody),
        of(Kind::ResponseBody),
        of(Kind::Credential),
        of(Kind::Path),
        of(Kind::Query),
        of(Kind::RequestHeader).max(of(Kind::ResponseHeader)),
    ] {
        let _ = write!(line, " {bytes:>10}");
    }
    let in_flight = path.in_flight().map_or(String::new(), |bytes| format!("{} KiB", bytes.div_ceil(1024)));
    let _ = write!(line, " {in_flight:>10} {}", if path.holds() { "" } else { "RED" });
    out.push_str(line.trim_end());
    out.push('\n');
}

/// What to do about a broken line; what is not here says it itself.
fn advice(name: &str) -> &'static str {
    match name {
        "reading" => "Run it as root, or with CAP_SYS_PTRACE: sudo nullhop prove.",
        "coverage" => "A part of the memory was not searched, so nothing is proved.",
        "child" => "nullhop run -c with this configuration says more.",
        "capabilities_dropped" | "core_dumps_off" | "core_filter_empty" | "no_new_privileges" | "not_dumpable" => {
            "The system refused what every Linux allows: ask its administrator why."
        }
        "environment_clean" => "Unset the variables that docs/hardening.md names.",
        "log" | "metrics" | "admin" | "open_files" | "new_files" | "storage" | "sockets" | "before" | "afterwards" => {
            "Do not run this build; report it with --json."
        }
        _ => "",
    }
}

/// `text` after `start`, broken at blanks before column 100; further lines stand below its first letter.
fn wrapped(start: &str, text: &str, out: &mut String) {
    const COLUMNS: usize = 100;
    let indent = start.chars().count();
    let mut column = indent;
    out.push_str(start);
    for (place, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if place > 0 && column + 1 + length > COLUMNS {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if place > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
}
