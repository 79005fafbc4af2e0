//! One exchange's account: settled once, whatever its end is.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use prometheus::IntCounter;

use crate::provider::Operation;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Source;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::metrics::GaugeGuard;
use crate::telemetry::metrics::Handles;

/// How often the bytes of a running stream are added to the shared counters.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// The account. Dropped without [`Tally::settle`]: the client went away, or the drain's deadline came.
pub(crate) struct Tally {
    handles: Arc<Handles>,
    upstream: Option<UpstreamId>,
    operation: Operation,
    mode: Mode,
    streaming: bool,
    started: Instant,
    /// Set once; the drop counts it.
    outcome: Option<Outcome>,
    response_bytes: u64,
    flushed: Instant,
    last_byte: Instant,
    longest_silence: Duration,
    head_came: bool,
    in_flight: GaugeGuard,
}

impl Tally {
    /// Opens the account of a request whose route is not known yet.
    pub(crate) fn open(handles: Arc<Handles>, started: Instant) -> Self {
        let in_flight = GaugeGuard::new(&handles.no_upstream().in_flight);
        Self {
            handles,
            upstream: None,
            operation: Operation::Other,
            mode: Mode::None,
            streaming: false,
            started,
            outcome: None,
            response_bytes: 0,
            flushed: started,
            last_byte: started,
            longest_silence: Duration::ZERO,
            head_came: false,
            in_flight,
        }
    }

    /// The request goes to `upstream`.
    pub(crate) fn routed(&mut self, upstream: UpstreamId, operation: Operation, mode: Mode) {
        self.upstream = Some(upstream);
        self.operation = operation;
        self.mode = mode;
        self.in_flight = GaugeGuard::new(&self.handles.traffic(self.upstream).in_flight);
    }

    /// The counter that the request's body moves.
    pub(super) fn request_bytes(&self) -> IntCounter {
        self.handles.traffic(self.upstream).request_bytes.clone()
    }

    pub(crate) fn handles(&self) -> &Arc<Handles> {
        &self.handles
    }

    pub(super) fn upstream(&self) -> Option<UpstreamId> {
        self.upstream
    }

    /// The head of an answer goes to the client.
    pub(crate) fn answered(&mut self, status: u16, source: Source, streaming: bool) {
        self.streaming = streaming;
        self.head_came = true;
        self.last_byte = Instant::now();
        self.handles.traffic(self.upstream).response(status, source);
    }

    /// A chunk of the answer passes. Here the meter will look on.
    pub(super) fn passed(&mut self, bytes: usize, now: Instant) {
        self.response_bytes += bytes as u64;
        let silence = now.saturating_duration_since(self.last_byte);
        self.last_byte = now;
        if silence > self.longest_silence {
            self.longest_silence = silence;
        }
        if now.saturating_duration_since(self.flushed) >= FLUSH_EVERY {
            self.flushed = now;
            self.flush();
        }
    }

    /// How long ago its request's head was read.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// When the last byte came.
    pub(super) fn last_byte(&self) -> Instant {
        self.last_byte
    }

    /// Closes the account with the first outcome given.
    pub(crate) fn settle(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    /// The payload of a finished WebSocket.
    pub(super) fn websocket_bytes(&mut self, up: u64, down: u64) {
        let traffic = self.handles.traffic(self.upstream);
        traffic.request_bytes.inc_by(up);
        traffic.response_bytes.inc_by(down);
    }

    fn flush(&mut self) {
        let traffic = self.handles.traffic(self.upstream);
        traffic.response_bytes.inc_by(std::mem::take(&mut self.response_bytes));
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.flush();
        let outcome = self.outcome.unwrap_or(if std::thread::panicking() {
            Outcome::Internal
        } else if self.handles.process().cutting() {
            Outcome::Unavailable
        } else {
            Outcome::ClientAbort
        });
        let traffic = self.handles.traffic(self.upstream);
        traffic.finished(self.operation, self.mode, self.streaming, outcome, self.started.elapsed());
        if self.head_came {
            traffic.stall_seconds.observe(self.longest_silence);
        }
    }
}
