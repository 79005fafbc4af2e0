//! Log lines: events of the process, not of requests.
//!
//! An `Event` is made of numbers, durations, labels, our own listeners' addresses and configured names. There is no
//! variant for text, so a line cannot hold content, and there is none for a single request. Lines go to standard
//! error, one write each, and a kind of event that repeats is cut to a few a second.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::panic::Location;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use prometheus::IntCounter;
use prometheus::Opts;

use crate::telemetry::labels::BudgetScope;
use crate::telemetry::labels::HeapKind;
use crate::telemetry::labels::IoFault;
use crate::telemetry::labels::KeyLabel;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::labels::LogLevel;
use crate::telemetry::labels::Name;
use crate::telemetry::labels::ProcessGuard;
use crate::telemetry::labels::labels;

/// Something worth a line.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    AcceptFailed {
        kind: ListenerKind,
        address: SocketAddr,
        error: IoFault,
    },
    /// To be told once a period.
    BudgetSoft {
        scope: BudgetScope,
        name: KeyLabel,
    },
    /// What was used before the start counts again.
    BudgetsRestored {
        events: u64,
        took: Duration,
    },
    CertificateExpiresSoon {
        certificate: Name,
        left: Duration,
    },
    CertificateRefused {
        certificate: Name,
    },
    CertificateReloaded {
        certificate: Name,
        left: Duration,
    },
    ConfigRefused {
        problems: usize,
    },
    ConfigReloaded,
    DrainFinished {
        streams_cut: usize,
        took: Duration,
    },
    DrainStarted {
        streams: usize,
        deadline: Duration,
    },
    HeapChosen {
        heap: HeapKind,
    },
    HeapLimitReached,
    /// The journal's folder, or that there is one, has changed; this process cannot write anywhere else any more.
    JournalNeedsRestart,
    /// The disk refuses usage events. They wait.
    JournalRefused {
        error: IoFault,
    },
    /// It takes them again.
    JournalResumed,
    /// `line`: where the file is wrong; `None` if it could not be read.
    KeysRefused {
        line: Option<usize>,
    },
    KeysReloaded {
        active: usize,
        revoked: usize,
    },
    Listening {
        kind: ListenerKind,
        address: SocketAddr,
    },
    PanicCaught {
        site: PanicSite,
    },
    ProcessGuardMissing {
        guard: ProcessGuard,
    },
    /// `status`: the provider's answer to it; `seconds`: until it is tried again.
    ProviderKeyCooling {
        upstream: Name,
        key: Name,
        seconds: u64,
        status: u16,
    },
    RetentionWarning {
        warning: RetentionWarning,
    },
    Shedding {
        on: bool,
    },
    Started {
        workers: usize,
    },
    Stopped {
        uptime: Duration,
    },
    UpstreamDown {
        upstream: Name,
    },
    UpstreamUp {
        upstream: Name,
    },
    /// `events`: how many found no room since the line before.
    UsageEventsLost {
        events: u64,
    },
}

labels! {
    /// A setting or a machine that weakens the retention contract.
    RetentionWarning, "warning" {
        AdminListenerNotLoopback => "admin_listener_not_loopback",
        MetricsListenerNotLoopback => "metrics_listener_not_loopback",
    }

    /// How lines are written.
    Format, "format" {
        Text => "text",
        Json => "json",
    }

    /// An event without its fields.
    EventKind, "event" {
        AcceptFailed => "accept_failed",
        BudgetSoft => "budget_soft",
        BudgetsRestored => "budgets_restored",
        CertificateExpiresSoon => "certificate_expires_soon",
        CertificateRefused => "certificate_refused",
        CertificateReloaded => "certificate_reloaded",
        ConfigRefused => "config_refused",
        ConfigReloaded => "config_reloaded",
        DrainFinished => "drain_finished",
        DrainStarted => "drain_started",
        HeapChosen => "heap_chosen",
        HeapLimitReached => "heap_limit_reached",
        JournalNeedsRestart => "journal_needs_restart",
        JournalRefused => "journal_refused",
        JournalResumed => "journal_resumed",
        KeysRefused => "keys_refused",
        KeysReloaded => "keys_reloaded",
        Listening => "listening",
        PanicCaught => "panic_caught",
        ProcessGuardMissing => "process_guard_missing",
        ProviderKeyCooling => "provider_key_cooling",
        RetentionWarning => "retention_warning",
        Shedding => "shedding",
        Started => "started",
        Stopped => "stopped",
        UpstreamDown => "upstream_down",
        UpstreamUp => "upstream_up",
        UsageEventsLost => "usage_events_lost",
    }
}

/// Where a panic came from, by the names the compiler gave: never what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PanicSite {
    file: Box<str>,
    line: u32,
}

impl PanicSite {
    pub(crate) fn new(location: Option<&Location<'_>>) -> Self {
        let Some(location) = location else {
            return Self { file: "unknown".into(), line: 0 };
        };
        Self { file: short_path(location.file()), line: location.line() }
    }
}

/// Sets how lines are written, from now on. Until then: text, all levels.
pub(crate) fn init(format: Format, max_level: LogLevel) {
    LOGGER.format.store(format as u8, Ordering::Relaxed);
    LOGGER.max_level.store(max_level as u8, Ordering::Relaxed);
}

/// Writes the line, unless its level is off or its kind has had enough lines this second. Waits for standard error to
/// take it: lines are rare, and a line that is worth writing is worth a blocked millisecond.
pub(crate) fn emit(event: Event) {
    let Some((level, line)) = LOGGER.line(&event, SystemTime::now()) else {
        return;
    };
    lines()[level.index()].inc();
    // Nobody is left to be told that standard error is gone.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Replaces std's panic message, which prints the payload, by a line that has the location only. Nothing in here may
/// panic: std answers a panic inside a hook by printing the message after all.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| emit(Event::PanicCaught { site: PanicSite::new(panic.location()) })));
}

/// `nullhop_log_lines_total`, by level. One for the process, because lines are written before and after there are
/// `Metrics`.
pub(super) fn lines() -> &'static [IntCounter; LogLevel::ALL.len()] {
    static LINES: LazyLock<[IntCounter; LogLevel::ALL.len()]> = LazyLock::new(|| {
        std::array::from_fn(|index| {
            let options = Opts::new("nullhop_log_lines_total", "Is something unusual being logged?")
                .const_label(LogLevel::NAME, LogLevel::ALL[index].as_str());
            IntCounter::with_opts(options).expect("name and label are constants")
        })
    });
    &LINES
}

static LOGGER: Logger = Logger::new();

struct Logger {
    format: AtomicU8,
    max_level: AtomicU8,
    throttles: [Throttle; EventKind::ALL.len()],
}

impl Logger {
    const fn new() -> Self {
        Self {
            format: AtomicU8::new(Format::Text as u8),
            max_level: AtomicU8::new(LogLevel::Info as u8),
            throttles: [const { Throttle::new() }; EventKind::ALL.len()],
        }
    }

    fn line(&self, event: &Event, at: SystemTime) -> Option<(LogLevel, String)> {
        let level = event.level();
        if level as u8 > self.max_level.load(Ordering::Relaxed) {
            return None;
        }
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let suppressed = self.throttles[event.kind().index()].admit(since_epoch.as_secs())?;

        let json = self.format.load(Ordering::Relaxed) == Format::Json as u8;
        let mut line = Line { json, text: String::with_capacity(160) };
        line.start(&rfc3339(since_epoch), level, event.kind());
        event.fields(&mut line);
        if suppressed > 0 {
            line.number("suppressed", suppressed);
        }
        Some((level, line.end()))
    }
}

impl Event {
    fn kind(&self) -> EventKind {
        match self {
            Self::AcceptFailed { .. } => EventKind::AcceptFailed,
            Self::BudgetSoft { .. } => EventKind::BudgetSoft,
            Self::BudgetsRestored { .. } => EventKind::BudgetsRestored,
            Self::CertificateExpiresSoon { .. } => EventKind::CertificateExpiresSoon,
            Self::CertificateRefused { .. } => EventKind::CertificateRefused,
            Self::CertificateReloaded { .. } => EventKind::CertificateReloaded,
            Self::ConfigRefused { .. } => EventKind::ConfigRefused,
            Self::ConfigReloaded => EventKind::ConfigReloaded,
            Self::DrainFinished { .. } => EventKind::DrainFinished,
            Self::DrainStarted { .. } => EventKind::DrainStarted,
            Self::HeapChosen { .. } => EventKind::HeapChosen,
            Self::HeapLimitReached => EventKind::HeapLimitReached,
            Self::JournalNeedsRestart => EventKind::JournalNeedsRestart,
            Self::JournalRefused { .. } => EventKind::JournalRefused,
            Self::JournalResumed => EventKind::JournalResumed,
            Self::KeysRefused { .. } => EventKind::KeysRefused,
            Self::KeysReloaded { .. } => EventKind::KeysReloaded,
            Self::Listening { .. } => EventKind::Listening,
            Self::PanicCaught { .. } => EventKind::PanicCaught,
            Self::ProcessGuardMissing { .. } => EventKind::ProcessGuardMissing,
            Self::ProviderKeyCooling { .. } => EventKind::ProviderKeyCooling,
            Self::RetentionWarning { .. } => EventKind::RetentionWarning,
            Self::Shedding { .. } => EventKind::Shedding,
            Self::Started { .. } => EventKind::Started,
            Self::Stopped { .. } => EventKind::Stopped,
            Self::UpstreamDown { .. } => EventKind::UpstreamDown,
            Self::UpstreamUp { .. } => EventKind::UpstreamUp,
            Self::UsageEventsLost { .. } => EventKind::UsageEventsLost,
        }
    }

    fn level(&self) -> LogLevel {
        match self {
            Self::AcceptFailed { .. }
            | Self::CertificateRefused { .. }
            | Self::ConfigRefused { .. }
            | Self::HeapLimitReached
            | Self::JournalRefused { .. }
            | Self::KeysRefused { .. }
            | Self::PanicCaught { .. }
            | Self::UsageEventsLost { .. } => LogLevel::Error,
            Self::BudgetSoft { .. }
            | Self::CertificateExpiresSoon { .. }
            | Self::JournalNeedsRestart
            | Self::ProcessGuardMissing { .. }
            | Self::ProviderKeyCooling { .. }
            | Self::RetentionWarning { .. }
            | Self::Shedding { .. }
            | Self::UpstreamDown { .. } => LogLevel::Warn,
            Self::DrainFinished { streams_cut, .. } if *streams_cut > 0 => LogLevel::Warn,
            Self::CertificateReloaded { .. }
            | Self::BudgetsRestored { .. }
            | Self::ConfigReloaded
            | Self::DrainFinished { .. }
            | Self::DrainStarted { .. }
            | Self::HeapChosen { .. }
            | Self::JournalResumed
            | Self::KeysReloaded { .. }
            | Self::Listening { .. }
            | Self::Started { .. }
            | Self::Stopped { .. }
            | Self::UpstreamUp { .. } => LogLevel::Info,
        }
    }

    fn fields(&self, line: &mut Line) {
        match self {
            Self::AcceptFailed { kind, address, error } => {
                line.label(*kind);
                line.address(*address);
                line.label(*error);
            }
            Self::BudgetSoft { scope, name } => {
                line.label(*scope);
                line.word("name", name.as_str());
            }
            Self::CertificateExpiresSoon { certificate, left } | Self::CertificateReloaded { certificate, left } => {
                line.name("certificate", certificate);
                line.seconds("left_seconds", *left);
            }
            Self::CertificateRefused { certificate } => line.name("certificate", certificate),
            Self::ConfigRefused { problems } => line.number("problems", *problems as u64),
            Self::ConfigReloaded => {}
            Self::BudgetsRestored { events, took } => {
                line.number("events", *events);
                line.seconds("took_seconds", *took);
            }
            Self::DrainFinished { streams_cut, took } => {
                line.number("streams_cut", *streams_cut as u64);
                line.seconds("took_seconds", *took);
            }
            Self::DrainStarted { streams, deadline } => {
                line.number("streams", *streams as u64);
                line.seconds("deadline_seconds", *deadline);
            }
            Self::HeapChosen { heap } => line.label(*heap),
            Self::HeapLimitReached | Self::JournalNeedsRestart | Self::JournalResumed => {}
            Self::JournalRefused { error } => line.label(*error),
            Self::KeysRefused { line: place } => {
                if let Some(place) = place {
                    line.number("line", *place as u64);
                }
            }
            Self::KeysReloaded { active, revoked } => {
                line.number("active", *active as u64);
                line.number("revoked", *revoked as u64);
            }
            Self::Listening { kind, address } => {
                line.label(*kind);
                line.address(*address);
            }
            Self::PanicCaught { site } => {
                line.word("file", &site.file);
                line.number("line", site.line.into());
            }
            Self::ProcessGuardMissing { guard } => line.label(*guard),
            Self::ProviderKeyCooling { upstream, key, seconds, status } => {
                line.name("upstream", upstream);
                line.name("key", key);
                line.number("seconds", *seconds);
                line.number("status", (*status).into());
            }
            Self::RetentionWarning { warning } => line.label(*warning),
            Self::Shedding { on } => line.flag("on", *on),
            Self::Started { workers } => {
                line.word("version", env!("CARGO_PKG_VERSION"));
                line.number("workers", *workers as u64);
            }
            Self::Stopped { uptime } => line.seconds("uptime_seconds", *uptime),
            Self::UpstreamDown { upstream } | Self::UpstreamUp { upstream } => line.name("upstream", upstream),
            Self::UsageEventsLost { events } => line.number("events", *events),
        }
    }
}

/// A line in the making. Words are made of letters that neither format has to escape.
struct Line {
    json: bool,
    text: String,
}

impl Line {
    fn start(&mut self, time: &str, level: LogLevel, kind: EventKind) {
        if self.json {
            self.text.push_str("{\"time\":\"");
            self.text.push_str(time);
            self.text.push('"');
            self.label(level);
            self.label(kind);
        } else {
            for word in [time, " ", level.as_str(), " ", kind.as_str()] {
                self.text.push_str(word);
            }
        }
    }

    fn label<L: Label>(&mut self, label: L) {
        self.word(L::NAME, label.as_str());
    }

    fn name(&mut self, key: &'static str, name: &Name) {
        self.word(key, name.as_str());
    }

    fn address(&mut self, address: SocketAddr) {
        self.word("address", &address.to_string());
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        // Writing to a `String` cannot fail.
        let _ = write!(self.text, "{value}");
    }

    fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.text.push_str(if value { "true" } else { "false" });
    }

    fn seconds(&mut self, key: &'static str, value: Duration) {
        self.key(key);
        let _ = write!(self.text, "{}.{:03}", value.as_secs(), value.subsec_millis());
    }

    fn word(&mut self, key: &'static str, value: &str) {
        self.key(key);
        if self.json {
            self.text.push('"');
        }
        self.text.extend(value.chars().map(|c| if is_plain(c) { c } else { '_' }));
        if self.json {
            self.text.push('"');
        }
    }

    fn key(&mut self, key: &'static str) {
        if self.json {
            self.text.push_str(",\"");
            self.text.push_str(key);
            self.text.push_str("\":");
        } else {
            self.text.push(' ');
            self.text.push_str(key);
            self.text.push('=');
        }
    }

    fn end(mut self) -> String {
        self.text.push_str(if self.json { "}\n" } else { "\n" });
        self.text
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '/' | ':' | '[' | ']' | '%')
}

/// Lets a few events of a kind through in each second of the clock and counts the rest. Without a lock, because a panic
/// may come from anywhere. The count is told by the next line of the kind; if none comes, it is lost.
struct Throttle {
    /// The second, and in the low 8 bits the lines it has had.
    state: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    const fn new() -> Self {
        Self { state: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// How many were suppressed since the last line, if this one may be written.
    fn admit(&self, second: u64) -> Option<u64> {
        let admitted = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
            if state >> 8 != second {
                Some(second << 8 | 1)
            } else if state & 0xff < LINES_PER_SECOND_MAX {
                Some(state + 1)
            } else {
                None
            }
        });
        match admitted {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Picked by feel: enough for every upstream of a common configuration to go down at once.
const LINES_PER_SECOND_MAX: u64 = 10;

/// RFC 3339 in UTC with milliseconds.
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Days since 1970-01-01 to a date. Counts years from March, so that the leap day is a year's last, in eras of 400
/// years, which all have the same days (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// `hyper-1.12.0/src/proto/h1/io.rs` for a dependency, `src/relay/body.rs` for us: the folders above belong to the
/// machine that built this.
fn short_path(file: &str) -> Box<str> {
    let start = match file.rfind("/src/") {
        Some(source) => file[..source].rfind('/').map_or(0, |slash| slash + 1),
        None if file.starts_with('/') => file.rfind('/').map_or(0, |slash| slash + 1),
        None => 0,
    };
    file[start..].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn every_event() -> Vec<Event> {
        let address = "[::1]:9464".parse().unwrap();
        let left = Duration::from_secs(86_400);
        vec![
            Event::AcceptFailed { kind: ListenerKind::Traffic, address, error: IoFault::TooManyFiles },
            Event::BudgetSoft { scope: BudgetScope::Account, name: KeyLabel::new("Team.7_eu").unwrap() },
            Event::BudgetsRestored { events: 7, took: Duration::from_millis(20) },
            Event::CertificateExpiresSoon { certificate: name("main"), left },
            Event::CertificateRefused { certificate: name("main") },
            Event::CertificateReloaded { certificate: name("main"), left },
            Event::ConfigRefused { problems: 3 },
            Event::ConfigReloaded,
            Event::DrainFinished { streams_cut: 2, took: Duration::from_millis(1500) },
            Event::DrainStarted { streams: 7, deadline: Duration::from_secs(300) },
            Event::HeapChosen { heap: HeapKind::Secret },
            Event::HeapLimitReached,
            Event::JournalNeedsRestart,
            Event::JournalRefused { error: IoFault::DiskFull },
            Event::JournalResumed,
            Event::KeysRefused { line: Some(12) },
            Event::KeysReloaded { active: 100_000, revoked: 3 },
            Event::Listening { kind: ListenerKind::Metrics, address },
            Event::PanicCaught { site: PanicSite::new(Some(Location::caller())) },
            Event::ProcessGuardMissing { guard: ProcessGuard::Seccomp },
            Event::ProviderKeyCooling { upstream: name("openai"), key: name("second"), seconds: 30, status: 429 },
            Event::RetentionWarning { warning: RetentionWarning::MetricsListenerNotLoopback },
            Event::Shedding { on: true },
            Event::Started { workers: 4 },
            Event::Stopped { uptime: Duration::from_millis(61_005) },
            Event::UpstreamDown { upstream: name("openai") },
            Event::UpstreamUp { upstream: name("openai") },
            Event::UsageEventsLost { events: 12 },
        ]
    }

    fn logger(format: Format, max_level: LogLevel) -> Logger {
        let logger = Logger::new();
        logger.format.store(format as u8, Ordering::Relaxed);
        logger.max_level.store(max_level as u8, Ordering::Relaxed);
        logger
    }

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn timestamps() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_251_199, "2024-02-29T23:59:59"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_735_689_600, "2025-01-01T00:00:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (253_402_300_799, "9999-12-31T23:59:59"),
        ] {
            assert_eq!(rfc3339(Duration::from_millis(seconds * 1000 + 7)), format!("{expected}.007Z"));
        }
    }

    #[test]
    fn dates_follow_each_other() {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..300_000 {
            assert_eq!(civil_from_days(days), (year, month, day));
            let last = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn every_kind_has_an_event() {
        let kinds: Vec<EventKind> = every_event().iter().map(Event::kind).collect();
        assert_eq!(kinds, EventKind::ALL);
    }

    #[test]
    fn text_lines() {
        let logger = logger(Format::Text, LogLevel::Info);
        let lines: Vec<String> =
            every_event().iter().map(|event| logger.line(event, at(1_735_689_600_123)).unwrap().1).collect();
        let expect = |index: usize, rest: &str| {
            assert_eq!(lines[index], format!("2025-01-01T00:00:00.123Z {rest}\n"));
        };
        expect(0, "error accept_failed kind=traffic address=[::1]:9464 error=too_many_files");
        expect(1, "warn budget_soft scope=account name=Team.7_eu");
        expect(3, "warn certificate_expires_soon certificate=main left_seconds=86400.000");
        expect(6, "error config_refused problems=3");
        expect(7, "info config_reloaded");
        expect(8, "warn drain_finished streams_cut=2 took_seconds=1.500");
        expect(12, "warn journal_needs_restart");
        expect(13, "error journal_refused error=disk_full");
        expect(14, "info journal_resumed");
        expect(15, "error keys_refused line=12");
        expect(16, "info keys_reloaded active=100000 revoked=3");
        expect(20, "warn provider_key_cooling upstream=openai key=second seconds=30 status=429");
        expect(22, "warn shedding on=true");
        expect(23, concat!("info started version=", env!("CARGO_PKG_VERSION"), " workers=4"));
        expect(24, "info stopped uptime_seconds=61.005");
        expect(25, "warn upstream_down upstream=openai");
        assert!(lines.iter().all(|line| line.matches('\n').count() == 1));
    }

    #[test]
    fn json_lines_parse() {
        let logger = logger(Format::Json, LogLevel::Info);
        for event in every_event() {
            let (level, line) = logger.line(&event, at(1_735_689_600_123)).unwrap();
            assert!(line.ends_with("}\n"));
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["time"], "2025-01-01T00:00:00.123Z");
            assert_eq!(value["level"], level.as_str());
            assert_eq!(value["event"], event.kind().as_str());
        }
        let (_, line) = logger.line(&Event::Stopped { uptime: Duration::from_millis(61_005) }, at(0)).unwrap();
        assert_eq!(
            line,
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"level\":\"info\",\"event\":\"stopped\",\"uptime_seconds\":61.005}\n"
        );
    }

    #[test]
    fn levels_are_filtered() {
        let logger = logger(Format::Text, LogLevel::Warn);
        assert!(logger.line(&Event::ConfigReloaded, at(0)).is_none());
        assert!(logger.line(&Event::UpstreamDown { upstream: name("a") }, at(0)).is_some());
        assert!(logger.line(&Event::ConfigRefused { problems: 1 }, at(0)).is_some());
    }

    #[test]
    fn repeated_kinds_are_cut_and_counted() {
        let logger = logger(Format::Text, LogLevel::Info);
        let down = Event::UpstreamDown { upstream: name("a") };
        let written = (0..100).filter(|_| logger.line(&down, at(5_000)).is_some()).count();
        assert_eq!(written as u64, LINES_PER_SECOND_MAX);
        // Another kind has its own share.
        assert!(logger.line(&Event::ConfigReloaded, at(5_500)).is_some());
        let (_, line) = logger.line(&down, at(6_000)).unwrap();
        assert!(line.ends_with(" upstream=a suppressed=90\n"), "{line}");
        let (_, line) = logger.line(&down, at(6_001)).unwrap();
        assert!(line.ends_with(" upstream=a\n"), "{line}");
    }

    #[test]
    fn emitted_lines_are_counted() {
        let before = lines()[LogLevel::Warn.index()].get();
        emit(Event::RetentionWarning { warning: RetentionWarning::AdminListenerNotLoopback });
        assert!(lines()[LogLevel::Warn.index()].get() > before);
    }

    #[test]
    fn a_panic_leaves_its_place_only() {
        let site = PanicSite::new(Some(Location::caller()));
        assert_eq!(&*site.file, "src/telemetry/log.rs");
        assert!(site.line > 0);
        assert_eq!(&*PanicSite::new(None).file, "unknown");
        for (path, short) in [
            ("/builder/registry/src/index-1/hyper-1.12.0/src/proto/h1/io.rs", "hyper-1.12.0/src/proto/h1/io.rs"),
            ("/rustc/0123/library/core/src/option.rs", "core/src/option.rs"),
            ("/builder/generated.rs", "generated.rs"),
            ("src/main.rs", "src/main.rs"),
        ] {
            assert_eq!(&*short_path(path), short);
        }
    }

    const CHILD: &str = "NULLHOP_TEST_CHILD_PANICS";

    /// Runs in a process of its own, started by the next test: a panic hook is there for all threads.
    #[test]
    fn child_panics() {
        if std::env::var_os(CHILD).is_some() {
            install_panic_hook();
            let secret = String::from("canary-in-a-prompt");
            let caught = std::panic::catch_unwind(|| panic!("{secret}"));
            assert!(caught.is_err());
        }
    }

    #[test]
    fn a_panic_does_not_print_its_message() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "telemetry::log::tests::child_panics", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(child.status.success());
        let printed = String::from_utf8([child.stdout, child.stderr].concat()).unwrap();
        assert!(printed.contains("error panic_caught file=src/telemetry/log.rs line="), "{printed}");
        assert!(!printed.contains("canary"), "{printed}");
    }
}
