//! One exchange's account: settled once, whatever its end is.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use prometheus::IntCounter;

use super::record::Owner;
use super::record::Recorder;
use super::usage::Account;
use super::usage::Call;
use super::usage::Counted;
use super::usage::Look;
use super::usage::Relayed;
use super::usage::Tokens;
use super::usage::UsageSource;
use crate::admission::Charged;
use crate::admission::Permit;
use crate::admission::Used;
use crate::hygiene::stack::scrub_look;
use crate::message::Fields;
use crate::meter::End;
use crate::meter::Report;
use crate::meter::Usage;
use crate::provider::Operation;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::MissingReason;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Source;
use crate::telemetry::labels::TokenDirection;
use crate::telemetry::labels::TokenKind;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::metrics::GaugeGuard;
use crate::telemetry::metrics::Handles;
use crate::telemetry::models::ModelId;
use crate::upstream::Upload;

/// How often the bytes of a running stream are added to the shared counters.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// The account. Dropped without [`Tally::settle`]: the client went away, or the drain's deadline came.
pub(crate) struct Tally {
    handles: Arc<Handles>,
    /// Where its record goes; `None` without a journal.
    recorder: Option<Rc<Recorder>>,
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
    /// The request as it went up, once the call is known to be one that is billed.
    billed: Option<(Rc<Upload>, Call)>,
    /// By what the request said.
    model: ModelId,
    /// Looks on while an answer of 200 to 299 passes.
    look: Option<Box<Look>>,
    /// By what the answer said, which knows better.
    model_answered: Option<ModelId>,
    /// What a WebSocket's own meter counted.
    websocket: Option<Box<Report>>,
    /// All bytes of the answer's body so far.
    response_bytes_all: u64,
    first_byte: Option<Instant>,
    /// When the first and the latest output event were relayed.
    output: Option<(Instant, Instant)>,
    /// The answer's body has come to its end.
    read_to_its_end: bool,
    /// When the client left; the answer is read on without it.
    left: Option<Instant>,
    /// What the request has reserved; `None` before it is admitted.
    permit: Option<Rc<Permit>>,
    /// Over a WebSocket: answers that were asked for.
    asked: Option<u64>,
    /// Raised for the upstream once there is one, or when an answer without one goes out. Between its head and its route a
    /// request waits for nothing, so that nobody can see it there.
    in_flight: Option<GaugeGuard>,
}

impl Tally {
    /// Opens the account of a request whose route is not known yet.
    pub(crate) fn open(handles: Arc<Handles>, recorder: Option<Rc<Recorder>>, started: Instant) -> Self {
        Self {
            handles,
            recorder,
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
            billed: None,
            model: ModelId::OTHER,
            model_answered: None,
            look: None,
            websocket: None,
            response_bytes_all: 0,
            first_byte: None,
            output: None,
            read_to_its_end: false,
            left: None,
            permit: None,
            asked: None,
            in_flight: None,
        }
    }

    /// The request goes to `upstream`.
    pub(crate) fn routed(&mut self, upstream: UpstreamId, operation: Operation, mode: Mode) {
        let known = self.upstream.replace(upstream);
        self.operation = operation;
        self.mode = mode;
        if known != self.upstream {
            self.in_flight = Some(GaugeGuard::new(&self.handles.traffic(self.upstream).in_flight));
        }
    }

    /// Takes off an answer's trailers what is not the caller's to know.
    pub(crate) fn rewrite_trailers(&self, trailers: &mut Fields) {
        if let Some(permit) = &self.permit {
            permit.rewrite_trailers(trailers);
        }
    }

    /// The request is admitted; its permit is settled with this account.
    pub(crate) fn admitted(&mut self, permit: Rc<Permit>) {
        self.permit = Some(permit);
    }

    /// Over a WebSocket so many answers were asked for.
    pub(super) fn asked(&mut self, answers: u64) {
        self.asked = Some(answers);
    }

    /// Whether the stream must be cut: a budget is used up or the key is revoked.
    pub(super) fn must_be_cut(&self) -> bool {
        let Some(permit) = self.permit.as_ref().filter(|permit| permit.may_be_cut()) else { return false };
        let relayed = self.relayed();
        let output = self.look.as_ref().map_or(0, |look| look.output_events());
        let so_far = Charged { uncached: relayed.input(), response: output, ..Charged::default() };
        permit.must_be_cut(&so_far, self.model_answered.unwrap_or(self.model))
    }

    /// Whether it has to be asked that once in a while.
    pub(super) fn may_be_cut(&self) -> bool {
        self.permit.as_ref().is_some_and(|permit| permit.may_be_cut())
    }

    /// A call that is billed goes up as `upload`.
    pub(super) fn billed(&mut self, upload: &Rc<Upload>, call: Call) {
        self.billed = Some((upload.clone(), call));
    }

    /// The call, if it is one that is billed.
    pub(super) fn call(&self) -> Option<Call> {
        self.billed.as_ref().map(|(_, call)| *call)
    }

    /// What the request calls its model. An answer that names one knows better.
    pub(super) fn requested(&mut self, model: &[u8]) {
        self.model = self.handles.models().find(model);
    }

    /// Looks at the answer's body from now on.
    pub(super) fn look(&mut self, look: Look) {
        self.look = Some(Box::new(look));
    }

    /// Whether the rest of the answer may tell what the call costs.
    pub(super) fn looks(&self) -> bool {
        self.look.is_some()
    }

    /// The model that an answer names.
    pub(super) fn answered_by(&mut self, model: &[u8]) {
        self.model_answered = Some(self.handles.models().find(model));
    }

    /// What a WebSocket's meter counted, once, at its end.
    pub(crate) fn metered(&mut self, report: &Report) {
        self.websocket = Some(Box::new(*report));
    }

    /// The client has left. What comes from now on is looked at and goes nowhere.
    pub(super) fn client_left(&mut self, now: Instant) {
        self.settle(Outcome::ClientAbort);
        self.left = Some(now);
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
    pub(crate) fn answered(&mut self, status: u16, source: Source, streaming: bool, now: Instant) {
        self.streaming = streaming;
        self.head_came = true;
        self.last_byte = now;
        let traffic = self.handles.traffic(self.upstream);
        traffic.response(status, source);
        self.in_flight.get_or_insert_with(|| GaugeGuard::new(&traffic.in_flight));
    }

    /// Looks the answer's model up as soon as it has a name, so that nobody keeps the name.
    fn name_model(&mut self) {
        if let Some(look) = &mut self.look
            && let Some(model) = look.name_model(|name| self.handles.models().find(name))
        {
            self.model_answered = Some(model);
        }
    }

    /// A chunk of the answer passes.
    pub(super) fn passed(&mut self, bytes: &[u8], now: Instant) {
        let output_began = self.look.as_mut().is_some_and(|look| look.see(bytes));
        scrub_look();
        self.name_model();
        if self.left.is_some() {
            self.last_byte = now;
            return;
        }
        if output_began {
            let first = self.output.map_or(now, |(first, _)| first);
            self.output = Some((first, now));
        }
        if self.first_byte.is_none() && !bytes.is_empty() {
            self.first_byte = Some(now);
        }
        self.response_bytes += bytes.len() as u64;
        self.response_bytes_all += bytes.len() as u64;
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

    /// When its request's head was read.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// How long ago that was.
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

    /// The answer's body has come to its end; with `outcome`, unless the client has left before.
    pub(super) fn ended(&mut self, outcome: Outcome) {
        self.read_to_its_end = true;
        self.settle(outcome);
    }

    /// The payload of a finished WebSocket.
    pub(super) fn websocket_bytes(&mut self, up: u64, down: u64) {
        let traffic = self.handles.traffic(self.upstream);
        traffic.request_bytes.inc_by(up);
        traffic.response_bytes.inc_by(down);
    }

    fn flush(&mut self) {
        let traffic = self.handles.traffic(self.upstream);
        add(&traffic.response_bytes, std::mem::take(&mut self.response_bytes));
    }
}

/// What is known of an answer when its exchange is over.
enum Figures {
    Reported(Report, ModelId),
    /// A billed call without figures: what the meter saw, if one looked on.
    Missing(MissingReason, Option<Counted>, ModelId),
    /// Not billed, or nothing that says so.
    None,
}

impl Tally {
    /// Closes the account: how it ended and what it cost. To be called once.
    fn settle_usage(&mut self, now: Instant) -> Account {
        let now = self.left.unwrap_or(now);
        let mut outcome = self.outcome.unwrap_or(if std::thread::panicking() {
            Outcome::Internal
        } else if self.handles.process().cutting() {
            Outcome::Unavailable
        } else {
            Outcome::ClientAbort
        });
        if let Some((upload, _)) = &self.billed
            && let Some(model) = upload.model()
        {
            self.model = model;
        }
        let figures = self.figures(&mut outcome);
        let mut account = Account {
            upstream: self.upstream,
            operation: self.operation,
            mode: self.mode,
            model: self.model,
            outcome,
            source: UsageSource::None,
            tokens: Tokens::default(),
            estimated_input: 0,
            estimated_output: 0,
            side_input: 0,
            side_output: 0,
            seconds: None,
            missing: None,
            streaming: self.streaming,
            duration: self.age(now),
            first_byte: self.first_byte.map(|at| self.age(at)),
            first_token: self.output.filter(|_| self.streaming).map(|(first, _)| self.age(first)),
            per_token: None,
        };
        let relayed = self.relayed();
        match figures {
            Figures::Reported(report, model) => {
                account.model = model;
                account.tokens = Tokens::of(&report);
                account.side_input = report.side_input;
                account.side_output = report.side_output;
                account.seconds = report.seconds;
                if report.usage == Usage::Final {
                    account.source = UsageSource::Provider;
                    account.per_token = self.per_token(account.tokens.output());
                } else {
                    account.source = UsageSource::Partial;
                    // Provisional output is what the first event said; what went by since is worth more.
                    let events = self.look.as_ref().map_or(0, |look| look.output_events());
                    let allowed = relayed.output_tokens_max.unwrap_or(u64::MAX);
                    account.estimated_output = events.min(allowed).saturating_sub(account.tokens.output());
                }
            }
            Figures::Missing(reason, counted, model) => {
                account.model = model;
                account.missing = Some(reason);
                account.estimated_input = relayed.input();
                account.estimated_output = relayed.output(counted.as_ref());
                if account.estimated_input + account.estimated_output > 0 {
                    account.source = UsageSource::Estimate;
                }
            }
            Figures::None => {}
        }
        self.charge_for_leaving(&mut account);
        account
    }

    /// A client that leaves before the figures come does not get around its limits by that: where the provider goes on and
    /// bills, what was reserved for the output is charged (WIRE section 8).
    fn charge_for_leaving(&self, account: &mut Account) {
        let unknown = matches!(account.source, UsageSource::Partial | UsageSource::Estimate);
        let goes_on = !self.streaming || self.permit.as_ref().is_some_and(|permit| permit.provider_goes_on());
        if account.outcome != Outcome::ClientAbort || !unknown || !goes_on {
            return;
        }
        let Some(reserved) = self.permit.as_ref().and_then(|permit| permit.output_reserved()) else { return };
        let known = account.tokens.output() + account.estimated_output;
        account.estimated_output += reserved.saturating_sub(known);
    }

    /// Settles the permit by the account. Returns what the exchange costs, in picodollars.
    fn settle_permit(&self, permit: &Permit, account: &Account, now: Instant) -> Option<u64> {
        let tokens = Charged {
            uncached: account.tokens.uncached + account.estimated_input,
            cache_read: account.tokens.cache_read,
            cache_write: account.tokens.cache_write,
            response: account.tokens.response + account.estimated_output,
            reasoning: account.tokens.reasoning,
        };
        permit.settle(&Used {
            tokens,
            side: account.side_input.saturating_add(account.side_output),
            model: account.model,
            outcome: account.outcome,
            requests: self.asked.unwrap_or(1),
            at: now,
        })
    }

    fn figures(&mut self, outcome: &mut Outcome) -> Figures {
        if let Some(counted) = self.websocket.take() {
            let (report, model) = (*counted, self.model_answered.unwrap_or(self.model));
            return match report.usage {
                // A socket over which nothing was asked is no leak.
                Usage::Absent => Figures::None,
                Usage::Final | Usage::Provisional => Figures::Reported(report, model),
            };
        }
        let whole = self.read_to_its_end;
        let Some(look) = &mut self.look else {
            // The client left before there was a head, and the provider has all of the request.
            let asked = !self.head_came && self.billed.as_ref().is_some_and(|(upload, _)| upload.ended());
            return match asked {
                true => Figures::Missing(MissingReason::Aborted, None, self.model),
                false => Figures::None,
            };
        };
        let counted = look.finish(whole);
        let named = look.name_model(|name| self.handles.models().find(name));
        let model = named.or(self.model_answered).unwrap_or(self.model);
        if counted.report.end == End::Error && *outcome == Outcome::Ok {
            *outcome = Outcome::UpstreamError;
        }
        if counted.report.usage != Usage::Absent {
            return Figures::Reported(counted.report, model);
        }
        let reason = match (counted.unread, whole && counted.report.end != End::Error) {
            (_, false) => MissingReason::Aborted,
            (true, true) => MissingReason::Unparsed,
            (false, true) => MissingReason::Absent,
        };
        Figures::Missing(reason, Some(counted), model)
    }

    fn relayed(&self) -> Relayed {
        let upload = self.billed.as_ref().map(|(upload, _)| upload);
        Relayed {
            request_bytes: upload.map_or(0, |upload| upload.bytes()),
            response_bytes: self.response_bytes_all,
            output_tokens_max: upload.and_then(|upload| upload.facts().output_tokens_max),
            operation: self.operation,
        }
    }

    /// The time between two output tokens of a stream.
    fn per_token(&self, tokens: u64) -> Option<Duration> {
        let (first, last) = self.output.filter(|_| self.streaming)?;
        let gaps = u32::try_from(tokens).ok()?.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some(last.saturating_duration_since(first) / gaps)
    }

    fn count(&self, account: &Account) {
        if let Some(upstream) = account.upstream {
            self.count_tokens(upstream, account);
        }
        // Last: who sees the request counted finds the rest counted, too.
        let traffic = self.handles.traffic(account.upstream);
        traffic.finished(account.operation, account.mode, account.streaming, account.outcome, account.duration);
    }

    fn count_tokens(&self, upstream: UpstreamId, account: &Account) {
        let metrics = &self.handles.upstream(upstream).tokens;
        if let Some(reason) = account.missing {
            metrics.missing(reason).inc();
        }
        add(metrics.estimated(TokenDirection::Input), account.estimated_input);
        add(metrics.estimated(TokenDirection::Output), account.estimated_output);
        if matches!(account.source, UsageSource::Provider | UsageSource::Partial) {
            let model = metrics.model(account.model);
            for kind in TokenKind::ALL {
                add(model.tokens(*kind), account.tokens.of_kind(*kind));
            }
        }
        if account.source == UsageSource::Provider && account.outcome == Outcome::Ok {
            metrics.observe_request(TokenDirection::Input, account.tokens.input());
            metrics.observe_request(TokenDirection::Output, account.tokens.output());
        }
        if let Some(first_token) = account.first_token {
            metrics.model(account.model).first_token_seconds.observe(first_token);
        }
        if let Some(per_token) = account.per_token {
            metrics.model(account.model).per_token_seconds.observe(per_token);
        }
    }
}

/// What is nothing need not be added: all workers move the same counters, and each move takes them from the others' caches.
fn add(counter: &IntCounter, more: u64) {
    if more > 0 {
        counter.inc_by(more);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.flush();
        let now = Instant::now();
        let account = self.settle_usage(now);
        // Its own bytes are counted with this, before the end of the request is.
        self.billed = None;
        if self.head_came {
            self.handles.traffic(self.upstream).stall_seconds.observe(self.longest_silence);
        }
        // What was not let in has no record: otherwise anybody could fill the disk with wrong keys.
        if let Some(permit) = self.permit.take() {
            let cost = self.settle_permit(&permit, &account, now);
            if let Some(recorder) = &self.recorder {
                recorder.record(&account, Owner::of(&permit, cost), permit.wall(now));
            }
        }
        self.count(&account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Provider;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::metrics::Names;

    const UPSTREAM: UpstreamId = UpstreamId(0);

    fn metrics() -> (Metrics, Arc<Handles>) {
        let metrics = Metrics::new(None);
        let names = Names::new(["main"], [], [("openai", Provider::Openai)]).unwrap();
        let handles = Arc::new(metrics.bind(&names));
        (metrics, handles)
    }

    fn tally(handles: &Arc<Handles>) -> Tally {
        let mut tally = Tally::open(handles.clone(), None, Instant::now());
        tally.routed(UPSTREAM, Operation::Realtime, Mode::Byok);
        tally
    }

    fn value(metrics: &Metrics, series: &[&str]) -> u64 {
        let page = metrics.render();
        let lines = page.lines().filter(|line| !line.starts_with('#') && series.iter().all(|part| line.contains(part)));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64).sum()
    }

    #[test]
    fn the_figures_of_a_websocket_are_counted_once() {
        let (metrics, handles) = metrics();
        let report = Report {
            usage: Usage::Final,
            input: Some(280),
            cached: Some(64),
            output: Some(72),
            side_input: 20,
            ..Report::absent()
        };
        let mut end = tally(&handles);
        end.answered(101, Source::Upstream, true, Instant::now());
        end.answered_by(b"gpt-realtime-2");
        end.metered(&report);
        end.settle(Outcome::Ok);
        drop(end);
        for (kind, tokens) in [("uncached", 216), ("cache_read", 64), ("response", 72), ("reasoning", 0)] {
            let series = ["nullhop_tokens_total", "model=\"gpt-realtime\"", &format!("kind=\"{kind}\"")];
            assert_eq!(value(&metrics, &series), tokens, "{kind}");
        }
        assert_eq!(value(&metrics, &["nullhop_tokens_total"]), 352, "no side tokens");
        assert_eq!(value(&metrics, &["nullhop_request_tokens_count"]), 2);
        assert_eq!(value(&metrics, &["nullhop_requests_total", "outcome=\"ok\""]), 1);

        // A socket over which nothing was asked is no leak.
        let mut idle = tally(&handles);
        idle.answered(101, Source::Upstream, true, Instant::now());
        idle.metered(&Report::absent());
        let account = idle.settle_usage(Instant::now());
        assert_eq!((account.source, account.missing), (UsageSource::None, None));
        drop(idle);
        assert_eq!(value(&metrics, &["nullhop_usage_missing_total"]), 0);
    }

    #[test]
    fn an_account_says_where_its_figures_come_from() {
        let (_metrics, handles) = metrics();
        let of = |usage: Usage, outcome: Option<Outcome>| {
            let mut tally = tally(&handles);
            tally.requested(b"gpt-4o-2024-08-06");
            tally.metered(&Report { usage, input: Some(5), output: Some(3), ..Report::absent() });
            if let Some(outcome) = outcome {
                tally.settle(outcome);
                tally.settle(Outcome::Internal);
            }
            tally.settle_usage(Instant::now())
        };
        let account = of(Usage::Final, Some(Outcome::Ok));
        assert_eq!((account.source, account.outcome), (UsageSource::Provider, Outcome::Ok));
        assert_eq!(account.model, handles.models().find(b"gpt-4o"), "what the request said");
        assert_eq!((account.tokens.input(), account.tokens.output()), (5, 3));
        let account = of(Usage::Provisional, Some(Outcome::UpstreamCut));
        assert_eq!(
            (account.source, account.outcome),
            (UsageSource::Partial, Outcome::UpstreamCut),
            "the first one stays"
        );
        let account = of(Usage::Absent, None);
        assert_eq!((account.source, account.outcome), (UsageSource::None, Outcome::ClientAbort));
        assert_eq!(account.tokens, Tokens::default());
    }

    #[test]
    fn a_panic_is_one_account_with_what_was_counted() {
        let (metrics, handles) = metrics();
        let mut tally = tally(&handles);
        tally.metered(&Report { usage: Usage::Final, input: Some(5), ..Report::absent() });
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _tally = tally;
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        assert_eq!(value(&metrics, &["nullhop_requests_total", "outcome=\"internal\""]), 1);
        assert_eq!(value(&metrics, &["nullhop_requests_total"]), 1);
        assert_eq!(value(&metrics, &["nullhop_tokens_total"]), 5);
        assert_eq!(value(&metrics, &["nullhop_requests_in_flight"]), 0);
    }

    #[test]
    fn times_are_those_of_what_the_client_got() {
        let (metrics, handles) = metrics();
        let started = Instant::now();
        let at = |ms: u64| started + Duration::from_millis(ms);
        let mut tally = Tally::open(handles.clone(), None, started);
        tally.routed(UPSTREAM, Operation::ChatCompletions, Mode::Byok);
        tally.answered(200, Source::Upstream, true, started);
        tally.passed(b"", at(50));
        tally.passed(b"x", at(100));
        tally.output = Some((at(200), at(1200)));
        tally.client_left(at(1300));
        tally.passed(b"more", at(5000));
        tally.ended(Outcome::Ok);
        tally.metered(&Report { usage: Usage::Final, output: Some(11), ..Report::absent() });
        let account = tally.settle_usage(Instant::now());
        assert_eq!(account.outcome, Outcome::ClientAbort);
        assert_eq!(account.duration, Duration::from_millis(1300));
        assert_eq!(account.first_byte, Some(Duration::from_millis(100)));
        assert_eq!(account.first_token, Some(Duration::from_millis(200)));
        assert_eq!(account.per_token, Some(Duration::from_millis(100)));
        drop(tally);
        assert_eq!(value(&metrics, &["nullhop_body_bytes_total", "response"]), 1, "what the client got");
    }
}
