//! The rows of the table: what is done to a proxy, and what is read off meanwhile. Each begins with a fresh process.

use std::cell::Cell;
use std::cell::RefCell;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio::time::sleep;

use crate::BoxError;
use crate::load::client::Target;
use crate::load::content::Document;
use crate::load::content::DocumentCheck;
use crate::load::content::Events;
use crate::load::content::Fault;
use crate::load::content::Sink;
use crate::load::content::since;
use crate::load::machine;
use crate::load::machine::Cores;
use crate::load::provider::Provider;
use crate::load::provider::Script;
use crate::load::proxies::Kind;
use crate::load::proxies::Proxy;
use crate::load::proxies::Site;
use crate::load::suite;
use crate::monotonic_ns;
use crate::tls::Ca;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// Many streams, each event alone.
    SsePaced,
    /// Many streams, eight events in each segment that arrives.
    SseGrouped,
    /// Few streams as fast as they go.
    SseUnpaced,
    /// 1 KB for 1 KB, on connections that stay.
    Unary,
    /// A large answer.
    Down,
    /// A large request.
    Up,
    /// Handshakes without a ticket.
    HandshakeFull,
    /// Handshakes with one.
    HandshakeResumed,
    /// [`Row::SsePaced`] to h2 clients.
    H2SsePaced,
    /// [`Row::SseUnpaced`] to h2 clients.
    H2SseUnpaced,
    /// [`Row::Unary`] for h2 clients.
    H2Unary,
    /// What an idle stream of an h1 client takes.
    MemoryH1,
    /// What an idle stream of an h2 client takes.
    MemoryH2,
    /// What a client takes that does not read.
    SlowReaders,
    /// Latencies with few streams open.
    LatencyFew,
    /// Latencies with many streams open, and no more events.
    LatencyMany,
    /// Latencies while a proxy is busy for about half of its time.
    LatencyHalf,
}

impl Row {
    /// All, in the table's order.
    pub const ALL: [Row; 17] = [
        Row::SsePaced,
        Row::SseGrouped,
        Row::SseUnpaced,
        Row::Unary,
        Row::Down,
        Row::Up,
        Row::HandshakeFull,
        Row::HandshakeResumed,
        Row::H2SsePaced,
        Row::H2SseUnpaced,
        Row::H2Unary,
        Row::MemoryH1,
        Row::MemoryH2,
        Row::SlowReaders,
        Row::LatencyFew,
        Row::LatencyMany,
        Row::LatencyHalf,
    ];

    /// As the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Row::SsePaced => "sse-paced",
            Row::SseGrouped => "sse-grouped",
            Row::SseUnpaced => "sse-unpaced",
            Row::Unary => "unary",
            Row::Down => "down",
            Row::Up => "up",
            Row::HandshakeFull => "handshake-full",
            Row::HandshakeResumed => "handshake-resumed",
            Row::H2SsePaced => "h2-sse-paced",
            Row::H2SseUnpaced => "h2-sse-unpaced",
            Row::H2Unary => "h2-unary",
            Row::MemoryH1 => "memory-h1",
            Row::MemoryH2 => "memory-h2",
            Row::SlowReaders => "slow-readers",
            Row::LatencyFew => "latency-few",
            Row::LatencyMany => "latency-many",
            Row::LatencyHalf => "latency-half",
        }
    }

    /// As the table calls it.
    pub fn title(self, scale: &Scale) -> String {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        match self {
            Row::SsePaced => format!("SSE, {} streams, event by event", scale.streams),
            Row::SseGrouped => format!("SSE, {} events a segment", scale.group),
            Row::SseUnpaced => format!("SSE unpaced, {} streams", scale.unpaced),
            Row::Unary => "unary 1 KB/1 KB, keep-alive".into(),
            Row::Down => format!("{} MB down", mb(scale.down_bytes)),
            Row::Up => format!("{} MB up", mb(scale.up_bytes)),
            Row::HandshakeFull => "handshake, full".into(),
            Row::HandshakeResumed => "handshake, resumed".into(),
            Row::H2SsePaced => format!("h2: SSE, {} streams, event by event", scale.streams),
            Row::H2SseUnpaced => format!("h2: SSE unpaced, {} streams", scale.unpaced),
            Row::H2Unary => "h2: unary 1 KB/1 KB".into(),
            Row::MemoryH1 => format!("memory, {} idle streams", scale.many),
            Row::MemoryH2 => format!("h2: memory, {} idle streams", scale.many),
            Row::SlowReaders => format!("memory, {} stalled readers", scale.slow),
            Row::LatencyFew => format!("latency, {} streams", scale.few),
            Row::LatencyMany => format!("latency, {} streams", scale.many),
            Row::LatencyHalf => format!("latency, half load, {} streams", scale.half),
        }
    }

    /// Whether its figures are differences to those without a proxy.
    pub fn needs_direct(self) -> bool {
        matches!(self, Row::LatencyFew | Row::LatencyMany | Row::LatencyHalf)
    }
}

impl FromStr for Row {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Row, BoxError> {
        Row::ALL.into_iter().find(|row| row.name() == text).ok_or_else(|| format!("no row {text}").into())
    }
}

/// How much of everything.
#[derive(Clone, Debug)]
pub struct Scale {
    /// How long is measured once all streams are there.
    pub window: Duration,
    /// Between the last stream's begin and the window.
    pub settle: Duration,
    /// Paced streams.
    pub streams: usize,
    /// Between two writes of a paced stream.
    pub period: Duration,
    /// Events in a grouped write.
    pub group: u32,
    /// Streams of grouped writes.
    pub grouped: usize,
    /// Streams without a pace.
    pub unpaced: usize,
    /// Unary requests at once.
    pub unary: usize,
    /// Of a large answer.
    pub down_bytes: usize,
    /// Of a large request.
    pub up_bytes: usize,
    /// Large bodies, one after the other.
    pub bodies: usize,
    /// Handshakes without a ticket; with one it is twice as many.
    pub handshakes: usize,
    /// Streams of an h2 connection.
    pub h2_streams: usize,
    /// Idle streams.
    pub many: usize,
    /// Streams with few of them open.
    pub few: usize,
    /// Events a second, of all streams together, while latencies are measured.
    pub rate: u64,
    /// Streams at half load.
    pub half: usize,
    /// Events a second at half load.
    pub half_rate: u64,
    /// Clients that do not read.
    pub slow: usize,
    /// What they were to read.
    pub slow_bytes: usize,
}

impl Scale {
    /// For figures.
    pub fn full() -> Scale {
        Scale {
            window: Duration::from_secs(4),
            settle: Duration::from_millis(700),
            streams: 500,
            period: Duration::from_millis(40),
            group: 8,
            grouped: 250,
            unpaced: 20,
            unary: 8,
            down_bytes: 50_000_000,
            up_bytes: 20_000_000,
            bodies: 6,
            handshakes: 800,
            h2_streams: 100,
            many: 5_000,
            few: 100,
            rate: 10_000,
            half: 250,
            half_rate: 25_000,
            slow: 200,
            slow_bytes: 8_000_000,
        }
    }

    /// For correctness: everything happens, nothing takes long.
    pub fn tiny() -> Scale {
        Scale {
            window: Duration::from_millis(100),
            settle: Duration::from_millis(20),
            streams: 20,
            period: Duration::from_millis(5),
            grouped: 10,
            unpaced: 4,
            unary: 4,
            down_bytes: 3_000_000,
            up_bytes: 2_000_000,
            bodies: 2,
            handshakes: 12,
            h2_streams: 10,
            many: 60,
            few: 10,
            rate: 1_000,
            half: 10,
            half_rate: 1_000,
            slow: 5,
            slow_bytes: 3_000_000,
            ..Scale::full()
        }
    }
}

/// A figure.
#[derive(Clone, Debug)]
pub struct Measure {
    /// What of the row it is; empty if the row says it all.
    pub name: &'static str,
    /// In what it is told.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
    /// Compared in the table; the others only tell how the figure came about.
    pub judged: bool,
}

fn judged(name: &'static str, unit: &'static str, value: f64) -> Measure {
    Measure { name, unit, value, judged: true }
}

fn told(name: &'static str, unit: &'static str, value: f64) -> Measure {
    Measure { name, unit, value, judged: false }
}

/// What stays from row to row.
pub struct Bench<'s> {
    site: &'s Site,
    scale: &'s Scale,
    /// On h1, for all.
    provider: Provider,
    /// On h2, for nullhop if asked.
    provider_h2: Option<Provider>,
    ca_pem: String,
    run: Cell<u64>,
}

impl<'s> Bench<'s> {
    /// Starts the providers, on the current `LocalSet` if there is no core for them.
    pub fn new(
        ca: &Ca,
        site: &'s Site,
        scale: &'s Scale,
        cores: Option<Cores>,
        h2: bool,
    ) -> Result<Bench<'s>, BoxError> {
        let leaf = ca.leaf(&["localhost", "127.0.0.1"]);
        let core = cores.and_then(|cores| cores.provider);
        Ok(Bench {
            site,
            scale,
            provider: Provider::start(suite::server(&leaf, false)?, false, core)?,
            provider_h2: match h2 {
                true => Some(Provider::start(suite::server(&leaf, true)?, true, core)?),
                false => None,
            },
            ca_pem: ca.pem(),
            run: Cell::new(0),
        })
    }

    /// Does a row to a proxy. `base`: the same without a proxy.
    pub async fn measure(&self, row: Row, kind: Kind, base: Option<&[Measure]>) -> Result<Vec<Measure>, BoxError> {
        let provider = match &self.provider_h2 {
            Some(h2) if kind == Kind::Nullhop => h2,
            _ => &self.provider,
        };
        let proxy = self.site.start(kind, provider.address())?;
        self.run.set(self.run.get() + 1);
        let work = Work {
            run: self.run.get(),
            scale: self.scale,
            provider,
            processes: proxy.processes(),
            // Fresh ones, so that no ticket is from a process that is gone.
            target: Target {
                address: proxy.address(),
                h1: suite::client(&self.ca_pem, false, true)?,
                h2: suite::client(&self.ca_pem, true, true)?,
                full: suite::client(&self.ca_pem, false, false)?,
            },
            tally: Rc::new(Tally::default()),
        };
        let done = tokio::time::timeout(ROW_TIMEOUT, work.row(row, base)).await;
        // Whatever happened: nothing of this row is left for the next.
        provider.stop(work.run);
        if let Some(fault) = provider.fault() {
            return Err(format!("at the provider: {fault}").into());
        }
        let measures = done.map_err(|_| "no end in sight")??;
        self.check_alive(&proxy)?;
        Ok(measures)
    }

    fn check_alive(&self, proxy: &Proxy) -> Result<(), BoxError> {
        match std::net::TcpStream::connect(proxy.address()) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{} did not survive: {error}", proxy.kind()).into()),
        }
    }
}

/// What the streams of a row have in common.
#[derive(Default)]
struct Tally {
    /// Streams whose first event has come.
    started: Cell<usize>,
    /// Events, or requests, or bytes: units of work.
    units: Cell<u64>,
    /// Reads that brought something.
    reads: Cell<u64>,
    /// Requests are to end.
    stop: Cell<bool>,
    /// Latencies are taken.
    timing: Cell<bool>,
    /// Of each event, in nanoseconds.
    events_ns: RefCell<Vec<u32>>,
    /// From the request to the first byte, in nanoseconds.
    first_bytes_ns: RefCell<Vec<u32>>,
}

fn add(cell: &Cell<u64>, number: u64) {
    cell.set(cell.get() + number);
}

/// A stream of events, compared and counted.
struct Stream {
    events: Events,
    tally: Rc<Tally>,
    started: bool,
    /// Held until it is: how many open at once has a limit.
    opening: Option<OwnedSemaphorePermit>,
    now_ns: u64,
}

impl Stream {
    fn new(tally: &Rc<Tally>) -> Stream {
        Stream { events: Events::default(), tally: tally.clone(), started: false, opening: None, now_ns: 0 }
    }
}

impl Sink for Stream {
    fn arrived(&mut self) {
        add(&self.tally.reads, 1);
        if self.tally.timing.get() {
            self.now_ns = monotonic_ns();
        }
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
        let (tally, now) = (&self.tally, self.now_ns);
        let mut seen = 0;
        if tally.timing.get() && now > 0 {
            let mut latencies = tally.events_ns.borrow_mut();
            self.events.feed(data, |stamp| {
                seen += 1;
                latencies.push(u32::try_from(since(stamp, now)).unwrap_or(u32::MAX));
            })?;
        } else {
            self.events.feed(data, |_| seen += 1)?;
        }
        add(&tally.units, seen);
        if !self.started && seen > 0 {
            self.started = true;
            self.opening = None;
            tally.started.set(tally.started.get() + 1);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.events.end()
    }
}

/// A document, compared, and how long its first byte took.
struct Timed {
    check: DocumentCheck,
    begun_ns: u64,
    tally: Rc<Tally>,
}

impl Sink for Timed {
    fn begin(&mut self) {
        if self.tally.timing.get() {
            let taken = monotonic_ns() - self.begun_ns;
            self.tally.first_bytes_ns.borrow_mut().push(u32::try_from(taken).unwrap_or(u32::MAX));
        }
    }

    fn data(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.check.data(data)
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.check.end()
    }
}

/// What was read off at one moment.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    proxy_ns: u64,
    own_ns: u64,
    units: u64,
    reads: u64,
}

/// One row, done to one proxy.
struct Work<'w> {
    run: u64,
    scale: &'w Scale,
    provider: &'w Provider,
    processes: Vec<u32>,
    target: Target,
    tally: Rc<Tally>,
}

type Tasks = JoinSet<Result<(), BoxError>>;

impl Work<'_> {
    async fn row(&self, row: Row, base: Option<&[Measure]>) -> Result<Vec<Measure>, BoxError> {
        let scale = self.scale;
        match row {
            Row::SsePaced => self.streams(false, scale.streams, scale.period, 1).await,
            Row::SseGrouped => self.streams(false, scale.grouped, scale.period, scale.group).await,
            Row::SseUnpaced => self.streams(false, scale.unpaced, Duration::ZERO, 1).await,
            Row::H2SsePaced => self.streams(true, scale.streams, scale.period, 1).await,
            Row::H2SseUnpaced => self.streams(true, scale.unpaced, Duration::ZERO, 1).await,
            Row::Unary => self.unary(false).await,
            Row::H2Unary => self.unary(true).await,
            Row::Down => self.bodies(SMALL, scale.down_bytes, scale.down_bytes).await,
            Row::Up => self.bodies(scale.up_bytes, SMALL, scale.up_bytes).await,
            Row::HandshakeFull => self.handshakes(false, scale.handshakes).await,
            Row::HandshakeResumed => self.handshakes(true, scale.handshakes * 2).await,
            Row::MemoryH1 => self.idle(false).await,
            Row::MemoryH2 => self.idle(true).await,
            Row::SlowReaders => self.slow_readers().await,
            Row::LatencyFew => self.latency(scale.few, scale.rate, base).await,
            Row::LatencyMany => self.latency(scale.many, scale.rate, base).await,
            Row::LatencyHalf => self.latency(scale.half, scale.half_rate, base).await,
        }
    }

    fn moment(&self) -> Result<Moment, BoxError> {
        Ok(Moment {
            at: Instant::now(),
            proxy_ns: machine::cpu_ns(&self.processes)?,
            own_ns: machine::cpu_ns(&[std::process::id()])?,
            units: self.tally.units.get(),
            reads: self.tally.reads.get(),
        })
    }

    /// The CPU time for each unit between two moments, and how busy everyone was.
    fn between(&self, unit: &'static str, per_ns: f64, from: Moment, to: Moment) -> Vec<Measure> {
        let units = (to.units - from.units) as f64;
        let wall = (to.at - from.at).as_nanos() as f64;
        let mut measures = vec![
            judged("", unit, to.proxy_ns.saturating_sub(from.proxy_ns) as f64 / units / per_ns),
            told("units a second", "", units / wall * 1e9),
            told("proxy busy", "%", to.proxy_ns.saturating_sub(from.proxy_ns) as f64 / wall * 100.0),
            told("load tool busy", "%", to.own_ns.saturating_sub(from.own_ns) as f64 / wall * 100.0),
        ];
        if to.reads > from.reads {
            measures.push(told("units a read", "", units / (to.reads - from.reads) as f64));
        }
        measures
    }

    /// Measures what goes on by itself. On a machine that has no time for us the window grows until something arrives.
    async fn window(&self, unit: &'static str) -> Result<Vec<Measure>, BoxError> {
        sleep(self.scale.settle).await;
        let from = self.moment()?;
        let mut to = from;
        while to.units == from.units {
            sleep(self.scale.window).await;
            to = self.moment()?;
        }
        Ok(self.between(unit, 1e3, from, to))
    }

    fn events(&self, period: Duration, group: u32, number: usize) -> Script {
        Script::Events { run: self.run, period_us: period.as_micros() as u64, group, number: number as u32 }
    }

    /// Opens streams; they are all there when this returns.
    async fn open(&self, h2: bool, count: usize, period: Duration, group: u32) -> Result<Tasks, BoxError> {
        let mut tasks = Tasks::new();
        let at_once = Arc::new(Semaphore::new(CONNECTS_AT_ONCE));
        let mut shared = Vec::new();
        for number in 0..count {
            let script = self.events(period, group, number);
            let mut sink = Stream::new(&self.tally);
            let (target, at_once) = (self.target.clone(), at_once.clone());
            if h2 && number % self.scale.h2_streams == 0 {
                shared.push(self.target.h2().await?);
            }
            let connection = shared.last().cloned();
            tasks.spawn_local(async move {
                sink.opening = Some(at_once.acquire_owned().await?);
                match connection {
                    Some(connection) => connection.exchange(script, REQUEST_BYTES, &mut sink).await,
                    None => {
                        let mut connection = target.h1(None).await?;
                        connection.send(script, REQUEST_BYTES).await?;
                        connection.receive(&mut sink).await
                    }
                }
            });
        }
        while self.tally.started.get() < count {
            sleep(Duration::from_millis(5)).await;
            if let Some(ended) = tasks.try_join_next() {
                ended??;
                return Err("a stream ended too soon".into());
            }
        }
        Ok(tasks)
    }

    async fn streams(&self, h2: bool, count: usize, period: Duration, group: u32) -> Result<Vec<Measure>, BoxError> {
        let mut tasks = self.open(h2, count, period, group).await?;
        let measures = self.window("us/event").await?;
        self.provider.stop(self.run);
        finish(&mut tasks).await?;
        Ok(measures)
    }

    fn timed(&self, len: usize, number: u32) -> Timed {
        let check = DocumentCheck::new(Document::answer(len, number));
        Timed { check, begun_ns: monotonic_ns(), tally: self.tally.clone() }
    }

    async fn unary(&self, h2: bool) -> Result<Vec<Measure>, BoxError> {
        let mut tasks = Tasks::new();
        for place in 0..self.scale.unary {
            let (target, tally) = (self.target.clone(), self.tally.clone());
            let shared = if h2 { Some(self.target.h2().await?) } else { None };
            tasks.spawn_local(async move {
                let mut own = if h2 { None } else { Some(target.h1(None).await?) };
                let mut number = place as u32;
                while !tally.stop.get() {
                    number = number.wrapping_add(0x1_0001);
                    let script = Script::Document { len: REQUEST_BYTES, number };
                    let mut sink = DocumentCheck::new(Document::answer(REQUEST_BYTES, number));
                    match (&mut own, &shared) {
                        (Some(own), _) => {
                            own.send(script, REQUEST_BYTES).await?;
                            own.receive(&mut sink).await?;
                        }
                        (None, Some(shared)) => shared.exchange(script, REQUEST_BYTES, &mut sink).await?,
                        (None, None) => return Err("no connection".into()),
                    }
                    add(&tally.units, 1);
                }
                Ok(())
            });
        }
        let measures = self.window("us/request").await?;
        self.tally.stop.set(true);
        finish(&mut tasks).await?;
        Ok(measures)
    }

    async fn bodies(&self, up: usize, down: usize, counted: usize) -> Result<Vec<Measure>, BoxError> {
        let mut connection = self.target.h1(None).await?;
        let mut from = self.moment()?;
        for number in 0..=self.scale.bodies {
            connection.send(Script::Document { len: down, number: number as u32 }, up).await?;
            connection.receive(&mut DocumentCheck::new(Document::answer(down, number as u32))).await?;
            if number == 0 {
                // The first one has warmed the connections up.
                from = self.moment()?;
            } else {
                add(&self.tally.units, counted as u64);
            }
        }
        let to = self.moment()?;
        // Nanoseconds a byte are milliseconds a megabyte.
        let mut measures = self.between("ms/MB", 1.0, from, to);
        measures.retain(|measure| measure.name != "units a second");
        measures.push(told("MB a second", "", (to.units - from.units) as f64 / (to.at - from.at).as_micros() as f64));
        Ok(measures)
    }

    async fn handshakes(&self, resume: bool, count: usize) -> Result<Vec<Measure>, BoxError> {
        // All of these in full, at once, so that there are tickets for as many. OpenSSL gives one for one afterwards.
        let mut first = Tasks::new();
        for _ in 0..HANDSHAKES_AT_ONCE {
            let target = self.target.clone();
            first.spawn_local(async move { target.handshake(resume).await.map(drop) });
        }
        finish(&mut first).await?;
        let wanted = if resume { HandshakeKind::Resumed } else { HandshakeKind::Full };
        let from = self.moment()?;
        let mut tasks = Tasks::new();
        for _ in 0..HANDSHAKES_AT_ONCE {
            let (target, tally) = (self.target.clone(), self.tally.clone());
            tasks.spawn_local(async move {
                for _ in 0..count / HANDSHAKES_AT_ONCE {
                    let kind = target.handshake(resume).await?;
                    if kind != wanted {
                        return Err(format!("a handshake is {kind:?} and not {wanted:?}").into());
                    }
                    add(&tally.units, 1);
                }
                Ok(())
            });
        }
        finish(&mut tasks).await?;
        // What is left to be closed belongs to them.
        sleep(Duration::from_millis(50)).await;
        let to = self.moment()?;
        Ok(self.between("us/handshake", 1e3, from, to))
    }

    /// A few requests, so that what is made once is there.
    async fn warm(&self, h2: bool) -> Result<(), BoxError> {
        for number in 0..4 {
            let script = Script::Document { len: REQUEST_BYTES, number };
            let mut sink = self.timed(REQUEST_BYTES, number);
            if h2 {
                self.target.h2().await?.exchange(script, REQUEST_BYTES, &mut sink).await?;
            } else {
                let mut connection = self.target.h1(None).await?;
                connection.send(script, REQUEST_BYTES).await?;
                connection.receive(&mut sink).await?;
            }
        }
        sleep(self.scale.settle).await;
        Ok(())
    }

    async fn idle(&self, h2: bool) -> Result<Vec<Measure>, BoxError> {
        self.warm(h2).await?;
        let count = self.scale.many;
        let before = machine::memory(&self.processes)?;
        let mut tasks = self.open(h2, count, IDLE, 1).await?;
        sleep(self.scale.settle).await;
        let open = machine::memory(&self.processes)?;
        self.provider.stop(self.run);
        finish(&mut tasks).await?;
        sleep(self.scale.settle).await;
        let after = machine::memory(&self.processes)?;
        let each = |now: u64, then: u64| (now as f64 - then as f64) / count as f64 / 1024.0;
        Ok(vec![
            judged("RSS", "KiB/stream", each(open.rss, before.rss)),
            judged("PSS", "KiB/stream", each(open.pss, before.pss)),
            told("PSS left after the end", "KiB/stream", each(after.pss, before.pss)),
            told("PSS before", "MiB", before.pss as f64 / 1048576.0),
        ])
    }

    async fn slow_readers(&self) -> Result<Vec<Measure>, BoxError> {
        self.warm(false).await?;
        let before = machine::memory(&self.processes)?;
        let len = self.scale.slow_bytes;
        let mut open = Vec::new();
        for number in 0..self.scale.slow {
            let number = number as u32;
            let mut connection = self.target.h1(Some(16 * 1024)).await?;
            connection.send(Script::Document { len, number }, SMALL).await?;
            open.push((connection, DocumentCheck::new(Document::answer(len, number))));
        }
        // Until all that stands between has filled up.
        sleep(self.scale.settle * 2).await;
        let stalled = machine::memory(&self.processes)?;
        let mut tasks = Tasks::new();
        for (mut connection, mut check) in open {
            tasks.spawn_local(async move { connection.receive(&mut check).await });
        }
        finish(&mut tasks).await?;
        let each = |now: u64, then: u64| (now as f64 - then as f64) / self.scale.slow as f64 / 1024.0;
        Ok(vec![
            judged("RSS", "KiB/reader", each(stalled.rss, before.rss)),
            judged("PSS", "KiB/reader", each(stalled.pss, before.pss)),
        ])
    }

    /// Events at a steady `rate`, so many a second over `count` streams, and requests in between.
    async fn latency(&self, count: usize, rate: u64, base: Option<&[Measure]>) -> Result<Vec<Measure>, BoxError> {
        let period = Duration::from_secs(count as u64) / rate as u32;
        let mut tasks = self.open(false, count, period, 1).await?;
        let mut probes = Tasks::new();
        for place in 0..PROBES {
            let (target, tally) = (self.target.clone(), self.tally.clone());
            probes.spawn_local(async move {
                let mut connection = target.h1(None).await?;
                let mut number = place;
                sleep(PROBE_PERIOD / PROBES * place).await;
                while !tally.stop.get() {
                    number += PROBES;
                    let check = DocumentCheck::new(Document::answer(REQUEST_BYTES, number));
                    let mut sink = Timed { check, begun_ns: monotonic_ns(), tally: tally.clone() };
                    connection.send(Script::Document { len: REQUEST_BYTES, number }, REQUEST_BYTES).await?;
                    connection.receive(&mut sink).await?;
                    sleep(PROBE_PERIOD).await;
                }
                Ok(())
            });
        }
        sleep(self.scale.settle).await;
        self.tally.timing.set(true);
        let from = self.moment()?;
        let mut to = from;
        while to.units == from.units || self.tally.first_bytes_ns.borrow().is_empty() {
            // Longer than the period of many streams, so that each of them is heard.
            sleep(self.scale.window + period).await;
            to = self.moment()?;
        }
        self.tally.timing.set(false);
        self.tally.stop.set(true);
        finish(&mut probes).await?;
        self.provider.stop(self.run);
        finish(&mut tasks).await?;
        let events = std::mem::take(&mut *self.tally.events_ns.borrow_mut());
        let first_bytes = std::mem::take(&mut *self.tally.first_bytes_ns.borrow_mut());
        let mut measures = Vec::new();
        for (names, sample) in [(EVENT_NAMES, events), (FIRST_BYTE_NAMES, first_bytes)] {
            let (p50, p99) = percentiles(sample).ok_or("no latencies")?;
            for ((raw, added), value) in names.into_iter().zip([p50, p99]) {
                measures.push(told(raw, "us", value));
                let direct = base.and_then(|base| base.iter().find(|measure| measure.name == raw));
                if let Some(direct) = direct {
                    measures.push(judged(added, "us", value - direct.value));
                }
            }
        }
        measures.extend(self.between("us/event", 1e3, from, to).into_iter().filter(|measure| !measure.judged));
        Ok(measures)
    }
}

/// The median and the 99th percentile, in microseconds.
fn percentiles(mut sample: Vec<u32>) -> Option<(f64, f64)> {
    sample.sort_unstable();
    let at = |part: f64| sample.get(((sample.len() as f64 * part) as usize).min(sample.len().checked_sub(1)?));
    Some((f64::from(*at(0.5)?) / 1e3, f64::from(*at(0.99)?) / 1e3))
}

/// Waits for all; the first that went wrong ends them.
async fn finish(tasks: &mut Tasks) -> Result<(), BoxError> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

const EVENT_NAMES: [(&str, &str); 2] =
    [("event p50", "added to an event, p50"), ("event p99", "added to an event, p99")];
const FIRST_BYTE_NAMES: [(&str, &str); 2] =
    [("first byte p50", "added to the first byte, p50"), ("first byte p99", "added to the first byte, p99")];

/// Of requests, and of unary answers.
const REQUEST_BYTES: usize = 1000;
/// The other direction of a large body.
const SMALL: usize = 300;
/// Longer than any row.
const IDLE: Duration = Duration::from_secs(3600);
/// Streams that are being opened: fewer than any listener's queue holds, so that none waits for a lost SYN.
const CONNECTS_AT_ONCE: usize = 32;
const HANDSHAKES_AT_ONCE: usize = 4;
/// Requests for the time to the first byte.
const PROBES: u32 = 4;
const PROBE_PERIOD: Duration = Duration::from_millis(20);
/// A row that takes this long hangs.
const ROW_TIMEOUT: Duration = Duration::from_secs(120);
