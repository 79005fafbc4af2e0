//! `nullhop prove`: does this build keep what it promises, on this machine, with this configuration?
//!
//! A second nullhop is started with the configuration in use, between a client and a scripted provider
//! that are both in this process. Words that occur nowhere else are driven through it on every path,
//! and its whole memory is searched for them while it runs; then its log, pages, files and sockets.
//! `paths` is what is driven, `canary` the words and the search, `report` what it all comes to.

mod canary;
mod child;
mod client;
mod machine;
mod memory;
mod paths;
mod report;
mod surface;
mod upstream;

use std::io::IsTerminal;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;

use crate::cli::ProveArgs;
use crate::config;
use crate::config::derive;
use crate::config::derive::Derived;
use crate::config::derive::Substitute;
use crate::provider::Dialect;

use canary::Counts;
use canary::Dictionary;
use canary::Kind;
use canary::Search;
use child::Child;
use child::Handed;
use child::NotStarted;
use client::How;
use memory::Look;
use memory::Memory;
use paths::Drive;
use paths::Lane;
use paths::Path;
use paths::Point;
use paths::Sizes;
use paths::Told;
use report::Line;
use report::PathReport;
use report::Report;
use report::Searched;
use report::State;
use upstream::Upstream;

/// Names (and prefixes) of the upstreams that are added, by `tls12` and `h2`.
const FURTHER: [[&str; 2]; 2] = [["prove-h1", "prove-h2"], ["prove-h1-tls12", "prove-h2-tls12"]];

/// Promised for heads: gone a second after the exchange.
const HEADS_GONE: Duration = Duration::from_secs(1);

/// A body that was delivered is gone when nullhop has come to the end of its turn. A busy machine may
/// keep it from that; what is still there after this time stays.
const SETTLE: Duration = Duration::from_secs(1);

/// One path, on the slowest machine that is of any use.
const PATH_TIMEOUT: Duration = Duration::from_secs(60);

/// Clients of [`Path::Parallel`], all lanes together.
const PARALLEL: usize = 16;

/// Runs the proof.
pub(crate) fn run(arguments: &ProveArgs) -> ExitCode {
    let mut wanted = Vec::new();
    for name in &arguments.only {
        match Path::named(name) {
            Some(path) => wanted.push(path),
            None => {
                let names: Vec<_> = Path::ALL.iter().map(|path| path.name()).collect();
                eprintln!("error: --only takes one of: {}", names.join(", "));
                return ExitCode::from(2);
            }
        }
    }
    let report = match Proof::prepare(arguments) {
        Ok(proof) => proof.conduct(&wanted),
        Err(Refused::Configuration(refused)) => {
            eprintln!("{}", refused.to_string().trim_end());
            return ExitCode::from(2);
        }
        Err(Refused::Report(report)) => *report,
    };
    let text = if arguments.json { format!("{:#}\n", report.to_json()) } else { report.to_text() };
    // Whoever closed standard output does not want to read it.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

enum Refused {
    Configuration(config::Report),
    /// It could not be tried: the report says why.
    Report(Box<Report>),
}

/// Everything that a run needs, started.
struct Proof {
    upstream: Upstream,
    child: Child,
    memory: Memory,
    derived: Derived,
    dictionary: Rc<Dictionary>,
    lanes: Vec<Lane>,
    /// Of [`Path::Configured`]: one for each upstream as it was configured.
    configured: Vec<Lane>,
    sizes: Sizes,
    report: Report,
    started: Instant,
    /// Inherited by the child; open as long as it may reload.
    #[expect(dead_code, reason = "held for their descriptors")]
    handed: [Handed; 2],
}

impl Proof {
    fn prepare(arguments: &ProveArgs) -> Result<Self, Refused> {
        let started = Instant::now();
        let mut report = Report {
            quick: arguments.quick,
            partial: !arguments.only.is_empty(),
            configuration: if arguments.config.is_some() {
                "the configuration file"
            } else {
                "the built-in configuration"
            },
            paths: Vec::new(),
            memory: Vec::new(),
            surfaces: Vec::new(),
            guards: Vec::new(),
            measures: surface::measures(),
            machine: machine::posture(),
            notes: Vec::new(),
            seconds: 0.0,
            memory_searches: 0,
            memory_bytes: 0,
        };
        let cannot = |mut report: Report, name, says: String| {
            report.memory.push(Line::new(name, State::Broken, says));
            Refused::Report(Box::new(report))
        };
        let upstream = match Upstream::start() {
            Ok(upstream) => upstream,
            Err(error) => return Err(cannot(report, "provider", format!("cannot be started: {}", error.kind()))),
        };
        let ca = match Handed::new(&upstream.ca_pem) {
            Ok(ca) => ca,
            Err(error) => return Err(cannot(report, "child", format!("no memory file: {}", error.kind()))),
        };
        let further: Vec<(&str, u16)> =
            FURTHER.into_iter().flatten().zip(upstream.only.into_iter().flatten()).collect();
        let substitute = Substitute { ca_file: &ca.path(), port: upstream.any, further: &further };
        let derived = derive::derive(arguments.config.as_deref(), &substitute).map_err(Refused::Configuration)?;
        let text = match Handed::new(&derived.text) {
            Ok(text) => text,
            Err(error) => return Err(cannot(report, "child", format!("no memory file: {}", error.kind()))),
        };
        let child = match Child::start(&text) {
            Ok(child) => child,
            Err(NotStarted::Spawn(error)) => {
                return Err(cannot(report, "child", format!("cannot be started: {error}")));
            }
            Err(NotStarted::Silent(log)) => {
                // Content-free by construction, and the only hint that there is.
                let _ = std::io::stderr().write_all(&log);
                return Err(cannot(report, "child", "did not start with this configuration".to_owned()));
            }
        };
        let memory = match Memory::open(child.pid()) {
            Ok(memory) => memory,
            Err(error) => {
                report.guards = surface::guards(&surface::metrics(&child));
                return Err(cannot(
                    report,
                    "reading",
                    format!("cannot read the memory of the child: {}", error.kind()),
                ));
            }
        };
        let (lanes, configured) = lanes(&derived, &child, arguments.quick, &mut report.notes);
        let dictionary = Rc::new(Dictionary::new(Path::ALL.len(), lanes.len().max(configured.len())));
        let sizes = if arguments.quick { Sizes::QUICK } else { Sizes::FULL };
        let handed = [ca, text];
        Ok(Self { upstream, child, memory, derived, dictionary, lanes, configured, sizes, report, started, handed })
    }

    fn conduct(mut self, wanted: &[Path]) -> Report {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        let Ok(runtime) = runtime else {
            self.report.memory.push(Line::new("child", State::Broken, "no runtime could be started".to_owned()));
            return self.report;
        };
        let interrupted = runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return true;
            };
            tokio::select! {
                () = self.all(wanted) => false,
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
            }
        });
        if interrupted {
            self.report.memory.push(Line::new("run", State::Broken, "interrupted".to_owned()));
        }
        self.report.seconds = self.started.elapsed().as_secs_f64();
        self.report
    }

    async fn all(&mut self, wanted: &[Path]) {
        let all = self.dictionary.search_for_all();
        self.apart("before", "no word before the first request", &all);
        let quick = self.report.quick;
        let is_wanted = |path: Path| match wanted {
            [] => !quick || path.is_quick(),
            wanted => wanted.contains(&path),
        };
        for (place, path) in Path::ALL.into_iter().enumerate() {
            // What ends the child comes when everything else was looked at.
            if is_wanted(path) && path != Path::Drain {
                let report = self.path(path, place).await;
                self.report.paths.push(report);
            }
        }
        self.apart("afterwards", "no word of any path, at the end of the run", &all);
        let ports: Vec<u16> = self.upstream.ports().collect();
        self.report.surfaces = surface::pages(&self.child, &all);
        self.report.surfaces.extend(surface::files(&self.child));
        self.report.surfaces.push(surface::sockets(&self.child, &ports));
        let mut page = surface::metrics(&self.child);
        if let Some(text) = self.derived.with_configured_heap() {
            let (line, of_second) = self.configured_heap(&text);
            self.report.memory.push(line);
            page = of_second;
        }
        self.report.guards = surface::guards(&page);
        self.report.guards.extend(surface::retention(&self.derived.original));
        if is_wanted(Path::Drain) {
            let report = self.path(Path::Drain, Path::ALL.len() - 1).await;
            self.report.paths.push(report);
            let ended = self.child.wait(Duration::from_secs(10));
            self.report.surfaces.push(match ended {
                Some(status) if status.success() => {
                    Line::new("end", State::Good, "it drained and ended by itself".to_owned())
                }
                _ => Line::new("end", State::Broken, "it did not end in order after the drain".to_owned()),
            });
        }
        let log = self.child.log();
        self.report.surfaces.insert(0, surface::text("log", "standard output and standard error", &log, &all));
    }

    /// A search that belongs to no path.
    fn apart(&mut self, name: &'static str, what: &str, search: &Search) {
        let Some(look) = self.look(search) else { return };
        let line = match look.found.total().iter().sum::<u64>() {
            0 => Line::new(name, State::Good, what.to_owned()),
            bytes => {
                let total = look.found.total();
                let kinds = Kind::ALL.iter().filter(|kind| total[**kind as usize] > 0).map(|kind| kind.name());
                let kinds: Vec<_> = kinds.collect();
                Line::new(name, State::Broken, format!("{bytes} bytes of words: {}", kinds.join(", ")))
            }
        };
        self.report.memory.push(line);
    }

    /// Searches the whole memory. What could not be read is on record, once.
    fn look(&mut self, search: &Search) -> Option<Look> {
        let resident = self.memory.resident();
        let looked = self.memory.search(search);
        let problem = match &looked {
            Err(error) => Some(("reading", format!("the memory could not be read: {}", error.kind()))),
            Ok(look) if !look.refused.is_empty() => {
                let bytes: u64 = look.refused.iter().map(memory::Mapping::bytes).sum();
                Some(("coverage", format!("{} mappings of {bytes} bytes could not be read", look.refused.len())))
            }
            // Some of what is resident may be shared or gone since; a search that reads nothing is far below.
            Ok(look) if look.bytes_read < resident / 2 => {
                Some(("coverage", format!("{} bytes read of {resident} in memory", look.bytes_read)))
            }
            Ok(_) => None,
        };
        if let Some((name, says)) = problem
            && self.report.memory.iter().all(|line| line.name != name)
        {
            self.report.memory.push(Line::new(name, State::Broken, says));
        }
        let look = looked.ok()?;
        self.report.memory_searches += 1;
        self.report.memory_bytes += look.bytes_read;
        Some(look)
    }

    /// Drives one path on all its lanes at once, and searches whenever all that still run have come to a point.
    async fn path(&mut self, path: Path, place: usize) -> PathReport {
        tell_progress(path);
        let mut report = PathReport { path, searched: Vec::new(), failed: Vec::new(), impossible: None };
        let lanes = if path == Path::Configured { self.configured.clone() } else { self.lanes.clone() };
        let lanes: Vec<(usize, Lane)> = lanes.into_iter().enumerate().filter(|(_, lane)| path.takes(lane)).collect();
        if lanes.is_empty() {
            report.impossible = Some("not with this configuration");
            return report;
        }
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for (lane_place, lane) in &lanes {
            let drive = Drive {
                path,
                place,
                lane_place: *lane_place,
                lane: lane.clone(),
                sizes: self.sizes,
                clients: PARALLEL.div_ceil(lanes.len()),
                dictionary: self.dictionary.clone(),
                plans: self.upstream.plans.clone(),
                tell: tell.clone(),
            };
            tasks.push(tokio::task::spawn_local(drive.run()));
        }
        drop(tell);
        let search = self.dictionary.search_for(place);
        let of_lane = |place: usize| &lanes.iter().find(|(of, _)| *of == place).expect("it was spawned").1;
        let deadline = tokio::time::Instant::now() + PATH_TIMEOUT;
        let mut running: Vec<usize> = lanes.iter().map(|(place, _)| *place).collect();
        let mut waiting = Vec::new();
        while !running.is_empty() {
            match tokio::time::timeout_at(deadline, told.recv()).await {
                Ok(Some(Told::Reached { lane, point, go_on })) => waiting.push((lane, point, go_on)),
                Ok(Some(Told::Ended { lane, outcome })) => {
                    running.retain(|of| *of != lane);
                    if let Err(failed) = outcome {
                        report.failed.push((report::lane_name(of_lane(lane)), failed.0));
                    }
                }
                Ok(None) | Err(_) => {
                    let hung = |place: &usize| (report::lane_name(of_lane(*place)), "it did not come to its end");
                    report.failed.extend(running.iter().map(hung));
                    break;
                }
            }
            if !waiting.is_empty() && waiting.len() == running.len() {
                let points: Vec<(usize, Point)> = waiting.iter().map(|(lane, point, _)| (*lane, *point)).collect();
                for (place, (point, found, in_flight)) in self.search_at(&search, &points).await {
                    let lane = of_lane(place);
                    report.searched.push(Searched { point, pair: lane.pair(), tls: lane.tls(), found, in_flight });
                }
                for (_, _, go_on) in waiting.drain(..) {
                    let _ = go_on.send(());
                }
            }
        }
        for task in tasks {
            task.abort();
        }
        report
    }

    /// Searches once for all lanes that wait: by lane, what should have been gone, and what is in flight.
    async fn search_at(
        &mut self,
        search: &Search,
        points: &[(usize, Point)],
    ) -> Vec<(usize, (Point, Counts, Option<u64>))> {
        let reached = Instant::now();
        let is = |wanted: Point| points.iter().any(|(_, point)| *point == wanted);
        if is(Point::Reload) {
            self.child.signal(Signal::HUP);
            if !self.child.wait_for_log("config_reloaded", Duration::from_secs(10)) {
                let line = Line::new("reload", State::Broken, "the configuration was not taken again".to_owned());
                self.report.memory.push(line);
            }
        }
        if is(Point::Drain) {
            self.child.signal(Signal::TERM);
            if !self.child.wait_for_log("drain_started", Duration::from_secs(10)) {
                self.report.memory.push(Line::new("drain", State::Broken, "it did not begin to drain".to_owned()));
            }
            // Listeners close, connections are told.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let mut results: Vec<_> =
            points.iter().map(|(lane, point)| (*lane, (*point, Counts::default(), None))).collect();
        // Bodies: gone at once, or as soon as nullhop has come to the end of its turn.
        loop {
            let Some(look) = self.look(search) else { return results };
            let lanes: Vec<Counts> = look.found.by_lane().collect();
            for (lane, (point, counts, in_flight)) in &mut results {
                *counts = only(&lanes[*lane], |kind| kind.is_body());
                if let Point::Stalled(kind) = point {
                    let bytes = std::mem::take(&mut counts[*kind as usize]);
                    *in_flight = Some(in_flight.unwrap_or(0).max(bytes));
                }
            }
            let gone = results.iter().all(|(_, (_, counts, _))| counts.iter().all(|bytes| *bytes == 0));
            if gone || reached.elapsed() > SETTLE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if points.iter().any(|(_, point)| matches!(point, Point::Stalled(_))) {
            // What is in flight goes up and down: two more looks.
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let Some(look) = self.look(search) else { return results };
                let lanes: Vec<Counts> = look.found.by_lane().collect();
                for (lane, (point, _, in_flight)) in &mut results {
                    if let Point::Stalled(kind) = point {
                        *in_flight = Some(in_flight.unwrap_or(0).max(lanes[*lane][*kind as usize]));
                    }
                }
            }
        }
        // Heads: a second after the exchange. Once more a quarter of a second later, because a search takes time.
        if is(Point::End) {
            for after in [HEADS_GONE, HEADS_GONE + Duration::from_millis(250)] {
                tokio::time::sleep_until((reached + after).into()).await;
                let Some(look) = self.look(search) else { return results };
                let lanes: Vec<Counts> = look.found.by_lane().collect();
                let mut gone = true;
                for (lane, (point, counts, _)) in &mut results {
                    if *point == Point::End {
                        let heads = only(&lanes[*lane], |kind| !kind.is_body());
                        gone &= heads.iter().all(|bytes| *bytes == 0);
                        let bodies = only(counts, |kind| kind.is_body());
                        *counts = std::array::from_fn(|kind| bodies[kind] + heads[kind]);
                    }
                }
                if gone {
                    break;
                }
            }
        }
        results
    }

    /// The searches are made on a plain heap, so that they see everything. If the configuration has another one, a second
    /// child has it as configured. Where it is secret, reading it must fail. Also that child's metrics page.
    fn configured_heap(&self, text: &str) -> (Line, String) {
        let line = |state, says: String| Line::new("configured_heap", state, says);
        let started = Handed::new(text).ok().map(|handed| (Child::start(&handed), handed));
        let Some((Ok(child), _handed)) = started else {
            return (line(State::Broken, "the child did not start with it".to_owned()), String::new());
        };
        let page = surface::metrics(&child);
        if !surface::is_active(&page, "secret_heap") {
            let line = match self.derived.demands_secret_heap() {
                true => line(State::Broken, "secret is configured, and it is not".to_owned()),
                false => line(State::Attention, "not secret: root can read it while it works".to_owned()),
            };
            return (line, page);
        }
        let search = self.dictionary.search_for(0);
        let Some(look) = Memory::open(child.pid()).ok().and_then(|memory| memory.search(&search).ok()) else {
            return (line(State::Broken, "its list of mappings could not be read".to_owned()), page);
        };
        let secret: u64 = look.refused.iter().filter(|mapping| mapping.is_secret()).map(memory::Mapping::bytes).sum();
        let line = match secret {
            0 => line(State::Broken, "it says that it is secret, and all of it could be read".to_owned()),
            bytes => line(State::Good, format!("secret: {bytes} bytes that could not be read from here")),
        };
        (line, page)
    }
}

fn only(counts: &Counts, is_wanted: impl Fn(Kind) -> bool) -> Counts {
    Kind::ALL.map(|kind| if is_wanted(kind) { counts[kind as usize] } else { 0 })
}

/// The combinations to drive, and one more for each upstream as configured.
fn lanes(derived: &Derived, child: &Child, quick: bool, notes: &mut Vec<&'static str>) -> (Vec<Lane>, Vec<Lane>) {
    let original = &derived.original;
    let doors: Vec<_> =
        original.listeners.iter().zip(&child.listeners).map(|(listener, address)| (*address, listener.tls)).collect();
    let main = doors.iter().find(|(_, tls)| *tls).or(doors.first()).copied();
    let Some((address, tls)) = main else { return (Vec::new(), Vec::new()) };
    if !tls {
        notes.push("No listener has TLS: clients speak plain HTTP/1.1 here.");
    }
    if !matches!(original.tls.client_auth, config::ClientAuth::None) {
        notes.push("Client certificates are not asked for in this run: nobody here has one.");
    }
    let serves_tls12 = tls && original.tls.min_version == config::TlsVersion::V1_2;
    if tls && !serves_tls12 {
        notes.push("TLS 1.2 is off in this configuration: TLS 1.3 only.");
    }
    let mut lanes = Vec::new();
    for tls12 in [false, true] {
        for h2 in [false, true] {
            for upstream_h2 in [false, true] {
                if (tls12 && (quick || !serves_tls12)) || (h2 && !tls) {
                    continue;
                }
                lanes.push(Lane {
                    how: How { address, tls, tls12, h2 },
                    upstream_h2,
                    prefix: format!("/{}", FURTHER[usize::from(tls12)][usize::from(upstream_h2)]),
                    host: "localhost".to_owned(),
                    fixed_path: None,
                });
            }
        }
    }
    let configured = original.upstreams.iter().enumerate().map(|(place, upstream)| {
        // The listeners take turns.
        let (address, tls) = doors[place % doors.len()];
        let by_host = upstream.prefix.is_none();
        Lane {
            how: How { address, tls, tls12: false, h2: tls && place % 2 == 1 },
            upstream_h2: upstream.protocol != config::UpstreamProtocol::H1,
            prefix: upstream.prefix.clone().unwrap_or_default(),
            host: upstream.hosts.first().filter(|_| by_host).cloned().unwrap_or_else(|| "localhost".to_owned()),
            fixed_path: (by_host && upstream.hosts.is_empty()).then_some(match upstream.provider.dialect("/") {
                Dialect::Openai => "/v1/chat/completions",
                Dialect::Anthropic => "/v1/messages",
                Dialect::Google => "/v1beta/models/any:generateContent",
            }),
        }
    });
    let configured = configured.collect();
    (lanes, configured)
}

/// For people who wait.
fn tell_progress(path: Path) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = writeln!(err, "  {}: {}", path.name(), path.says());
    }
}
