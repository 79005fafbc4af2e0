//! Who may: turns a request's head into a [`Permit`] or a [`Refusal`].
//!
//! There are two tracks, and both may lead to one upstream. On the managed one a caller shows a key of this gateway's, which
//! is taken off, and one of the operator's keys goes up. In pass-through the caller's own provider credential goes on
//! untouched and is forgotten; limits then hold by a hash of it that only this process can make, or by a key of this
//! gateway's that stands beside it in a header of its own.
//!
//! A permit lives as long as its answer's body. It holds what a request has reserved of its limits; its end, whatever it
//! is, gives that back and writes down what was used.

mod back_off;
#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
pub(crate) mod clock;
mod credential;
mod grant;
mod headers;
mod ledger;
mod prices;
mod provider_keys;
mod restore;

use std::cell::Cell;
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use http::HeaderName;
use jiff::Timestamp;

use crate::config::Config;
use crate::config::OnBudget;
use crate::config::OnRevoke;
use crate::config::Plan;
use crate::config::Priority;
use crate::keys::KeyFault;
use crate::keys::Track;
use crate::limits::Amount;
use crate::limits::Class;
use crate::limits::Limit;
use crate::message::Fields;
use crate::message::Known;
use crate::message::Names;
use crate::message::Value;
use crate::message::name;
use crate::provider::Dialect;
use crate::provider::Operation;
use crate::provider::Provider;
use crate::retention::Denied;
use crate::retention::Facts;
use crate::retention::Policy;
use crate::telemetry::labels::AuthenticationFailure;
use crate::telemetry::labels::BudgetScope;
use crate::telemetry::labels::Decision;
use crate::telemetry::labels::KeyLabel;
use crate::telemetry::labels::LimitLabel;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Resource;
use crate::telemetry::labels::TokenDirection;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::log;
use crate::telemetry::metrics::Handles;
use crate::telemetry::models::ModelId;
use crate::upstream::Approve;
use crate::upstream::Tenant;

use back_off::BackOff;
pub(crate) use clock::Clock;
use clock::Now;
use credential::Shown;
use grant::Grant;
pub(crate) use grant::Keys;
pub(crate) use grant::KeysFault;
pub(crate) use headers::Standing;
use ledger::Exhausted;
pub(crate) use ledger::Ledger;
use ledger::Reservation;
pub(crate) use ledger::Scope;
use ledger::Subject;
use ledger::Subjects;
pub(crate) use prices::Charged;
pub(crate) use prices::Prices;
use provider_keys::Picked;
use provider_keys::ProviderKeys;
pub(crate) use restore::restore;

/// The headers in which SDKs send keys. Marked sensitive, so that HPACK does not index them and
/// `Debug` does not print them.
const CREDENTIAL_HEADERS: Names = Names::of(&[
    name::AUTHORIZATION,
    name::X_API_KEY,
    name::X_GOOG_API_KEY,
    name::API_KEY,
    Known::named("proxy-authorization"),
    Known::named("cookie"),
]);

/// What every key of this gateway's begins with.
const OURS: &str = crate::keys::PREFIX;

/// Bytes of a request for one token of its input, for a reservation; a rule of thumb of the vendors' for English text.
const BYTES_PER_TOKEN: u64 = 4;

/// No model reads more at once.
const INPUT_ESTIMATE_MAX: u64 = 1 << 20;

/// What a process counts over all of its configurations.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    back_off: BackOff,
    /// Open streams.
    streams: AtomicU32,
    /// Requests that were refused for overload.
    shed: AtomicU64,
}

/// One configuration's admission, shared by all workers.
pub(crate) struct Admission {
    config: Arc<Config>,
    shared: Arc<Shared>,
    handles: Arc<Handles>,
    prices: Prices,
    upstreams: Box<[Upstream]>,
}

/// What admission knows of one upstream.
struct Upstream {
    keys: ProviderKeys,
    /// Of the upstream as a whole, if it has a plan.
    subject: Option<Arc<Subject>>,
    on_budget: OnBudget,
}

/// What a request's head says to admission. Borrowed; nothing of it is kept but a hash.
pub(crate) struct Asked<'r> {
    pub(crate) headers: &'r Fields,
    pub(crate) query: Option<&'r str>,
    /// Place of the upstream in the configuration.
    pub(crate) upstream: usize,
    /// Whether the call is one that is billed by tokens.
    pub(crate) billed: bool,
    pub(crate) operation: Operation,
    /// Of the request's body, if it is known.
    pub(crate) body_bytes: Option<u64>,
    /// Asks for a WebSocket.
    pub(crate) upgrade: bool,
    /// The client's.
    pub(crate) address: Option<IpAddr>,
    /// When its head was read.
    pub(crate) came: Instant,
}

/// A worker's own part.
pub(crate) struct Worker {
    pub(crate) clock: Rc<Clock>,
    /// How late its timers come.
    pub(crate) lag: Rc<Cell<Duration>>,
}

/// What an admitted request may use. Lives as long as its answer's body.
pub(crate) struct Permit {
    pub(crate) mode: Mode,
    pub(crate) tenant: Tenant,
    clock: Rc<Clock>,
    upstream: usize,
    grant: Option<Arc<Grant>>,
    /// Whose series count it.
    keys: Option<Arc<Keys>>,
    picked: Option<Picked>,
    /// `None` where nobody is limited.
    reservation: RefCell<Option<Reservation>>,
    /// Whether its tokens are counted.
    billed: bool,
    input_estimate: Cell<u64>,
    /// What is reserved for output that the request does not limit.
    output_estimate: u64,
    /// Why the body was not let through.
    exhausted: Cell<Option<Exhausted>>,
    /// A stream of this request's is cut when a budget is used up.
    cut_on_budget: bool,
    cut_on_revoke: bool,
    /// Held for its drop; it leads to the configuration as well.
    place: StreamPlace,
}

/// A stream's place among those of the whole process.
struct StreamPlace(Arc<Admission>);

impl StreamPlace {
    fn take(admission: &Arc<Admission>, max: u32) -> Option<Self> {
        let place = Self(admission.clone());
        (admission.shared.streams.fetch_add(1, Relaxed) < max).then_some(place)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.shared.streams.fetch_sub(1, Relaxed);
    }
}

/// What is wrong with what a caller shows. It is told no more than this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyRefused {
    /// None is shown.
    Missing,
    /// None of ours, or no longer.
    Wrong,
    /// The same, from an address that has had many: wait for so many seconds.
    WrongAgain(u64),
    /// Two that differ.
    Two,
    /// A key for pass-through stands where the provider's credential belongs, or the reverse.
    Place,
}

/// Which limit is reached, and what is left of the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Limited {
    pub(crate) scope: Scope,
    pub(crate) limit: Limit,
    /// Whole seconds after which another try may pass. `None`: nobody can say.
    pub(crate) retry_after: Option<u64>,
    pub(crate) standing: Standing,
    /// Seconds since 1970.
    pub(crate) unix: i64,
}

/// How an exchange ended, for its limits.
pub(crate) struct Used {
    /// As reported and as estimated, together.
    pub(crate) tokens: Charged,
    /// Beside them, of other models.
    pub(crate) side: u64,
    pub(crate) model: ModelId,
    pub(crate) outcome: Outcome,
    /// WebSockets: answers that were asked for. 1 otherwise.
    pub(crate) requests: u64,
    /// About now.
    pub(crate) at: Instant,
}

/// Why a request is not served. What it says on the wire is one table, `server::answer`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The request body is longer than the route allows.
    BodyTooLarge,
    /// The request body came too slowly.
    BodyTooSlow,
    /// The request body broke off; nobody reads the answer.
    ClientGone,
    /// An expectation other than `100-continue`.
    Expectation,
    /// The key may not use this upstream.
    Forbidden,
    /// The head has more bytes or fields than allowed.
    HeadTooLarge,
    /// A fault of ours.
    Internal,
    /// No key, or not the right one.
    Key(KeyRefused),
    /// A limit is reached.
    Limited(Box<Limited>),
    /// The head is ambiguous or malformed.
    Malformed,
    /// CONNECT, TRACE or a method that no provider knows.
    Method,
    /// `Host` names something that is not served here.
    Misdirected,
    /// No route at this path.
    NoRoute,
    /// Too many connections or streams.
    Overloaded,
    /// What the request asks of the provider is not allowed here.
    Policy(Denied),
    /// The provider does not know the operator's key, which is not the caller's fault.
    ProviderKey,
    /// The upstream gave no head in time.
    UpstreamTimeout,
    /// The upstream could not be reached, or broke off before its head.
    UpstreamUnreachable,
    /// The upstream's answer is not one.
    UpstreamProtocol,
    /// This upstream has no WebSocket.
    WebSocketNotServed,
    /// The path shows a base URL set wrongly; the text names the right one.
    WrongBase(Arc<str>),
}

impl Admission {
    /// That of `config`; what the process counts goes on in `shared`.
    pub(crate) fn new(config: &Arc<Config>, shared: &Arc<Shared>, handles: &Arc<Handles>, now: u64) -> Self {
        let upstreams = config.upstreams.iter().enumerate().map(|(place, upstream)| {
            let plan = upstream.plan.map(|place| &config.plans[place]);
            let subject = plan
                .map(|plan| shared.ledger.subject(Scope::Upstream, &upstream.name.as_str().into(), &plan.limits, now));
            Upstream {
                keys: ProviderKeys::new(place, &upstream.keys),
                subject,
                on_budget: plan.map_or(OnBudget::Finish, |plan| plan.on_budget),
            }
        });
        Self {
            upstreams: upstreams.collect(),
            prices: Prices::new(config, handles.models()),
            config: config.clone(),
            shared: shared.clone(),
            handles: handles.clone(),
        }
    }

    /// Admits a request, or says why not.
    ///
    /// # Errors
    /// What to answer instead.
    pub(crate) fn admit(
        self: &Arc<Self>,
        keys: Option<&Arc<Keys>>,
        worker: &Worker,
        asked: &Asked<'_>,
    ) -> Result<Permit, Refusal> {
        let now = worker.clock.now(asked.came);
        let shown = Shown::of(asked.headers, asked.query);
        let grant = self.authenticate(keys, asked, &shown, &now)?;
        if let Some(grant) = &grant
            && !grant.may_use(asked.upstream)
        {
            return Err(Refusal::Forbidden);
        }
        let priority = self.priority(grant.as_deref(), asked.upstream);
        let process = self.handles.process();
        let place = StreamPlace::take(self, self.config.admission.streams).filter(|_| !self.sheds(worker, priority));
        let Some(place) = place else {
            self.shared.shed.fetch_add(1, Relaxed);
            process.limit_decided(LimitLabel::Global, Decision::Deny);
            return Err(Refusal::Overloaded);
        };
        let managed = grant.as_ref().is_some_and(|grant| grant.track == Track::Managed);
        let mode = if managed { Mode::Managed } else { Mode::Byok };
        let here = &self.upstreams[asked.upstream];
        process.limit_decided(LimitLabel::Global, Decision::Allow);
        let picked = managed.then(|| here.keys.pick(now.nanos)).flatten();
        // With the operator's keys lines may be shared: what keeps tenants apart is the credential that goes up.
        let tenant = match (picked, shown.first()) {
            (Some(picked), _) => here.keys.tenant(picked),
            (None, Some(text)) => Tenant::of(text),
            (None, None) => Tenant::Nobody,
        };
        let (subjects, plan) = self.subjects(grant.as_deref(), asked.upstream, tenant, now.nanos);
        let on_budget = grant.as_ref().map(|grant| grant.on_budget).or(plan.map(|plan| plan.on_budget));
        let reserve = &self.config.admission;
        let known = asked.body_bytes.map(|bytes| (bytes / BYTES_PER_TOKEN).min(INPUT_ESTIMATE_MAX));
        let input = if asked.operation.uploads() { 0 } else { known.unwrap_or(reserve.reserve_input_tokens) };
        let writes = !matches!(asked.operation, Operation::Embeddings);
        let permit = Permit {
            mode,
            tenant,
            clock: worker.clock.clone(),
            upstream: asked.upstream,
            keys: grant.as_ref().and(keys.cloned()),
            grant,
            picked,
            reservation: RefCell::new(None),
            billed: asked.billed,
            input_estimate: Cell::new(input),
            output_estimate: if writes { reserve.reserve_output_tokens } else { 0 },
            exhausted: Cell::new(None),
            cut_on_budget: on_budget == Some(OnBudget::Cut) || here.on_budget == OnBudget::Cut,
            cut_on_revoke: self.config.keys.as_ref().is_some_and(|keys| keys.on_revoke == OnRevoke::Cut),
            place,
        };
        if subjects.iter().all(Option::is_none) {
            return Ok(permit);
        }
        // The body will tell how much output it wants; until then one token shows whether there is any.
        let mut wanted = match asked.upgrade {
            true => Amount::default(),
            false => Amount::REQUEST,
        };
        if asked.billed {
            wanted.output = u64::from(writes);
        }
        if asked.billed && !asked.upgrade {
            wanted.input = input;
        }
        match ledger::admit(subjects, wanted, now.nanos, now.calendar) {
            Ok(reservation) => {
                for class in Class::ALL {
                    if reservation.subjects().iter().flatten().any(|subject| subject.has(class)) {
                        process.limit_decided(label_of(class), Decision::Allow);
                    }
                }
                *permit.reservation.borrow_mut() = Some(reservation);
                Ok(permit)
            }
            Err((exhausted, subjects)) => {
                process.limit_decided(label_of(exhausted.exceeded.limit.class()), Decision::Deny);
                permit.count(Outcome::Limited);
                Err(Refusal::Limited(Box::new(limited(&exhausted, &subjects, &now))))
            }
        }
    }

    /// Whose key it is. `Ok(None)`: pass-through without one of ours.
    fn authenticate(
        &self,
        keys: Option<&Arc<Keys>>,
        asked: &Asked<'_>,
        shown: &Shown<'_>,
        now: &Now,
    ) -> Result<Option<Arc<Grant>>, Refusal> {
        let access = self.config.upstreams[asked.upstream].access;
        let settings = self.config.keys.as_ref();
        let apart = settings.and_then(|settings| asked.headers.get(&settings.header));
        let refused = |reason, refused| {
            self.handles.process().authentication_failed(reason);
            Err(Refusal::Key(refused))
        };
        if let Some(value) = apart {
            let grant = self.look_up(keys, value.as_bytes().trim_ascii(), asked, now)?;
            return match grant.track {
                Track::Managed if access.managed => Ok(Some(grant)),
                // Ours must not go up in the place of the provider's.
                Track::Byok if access.byok && !shown.any_begins_with(OURS) => Ok(Some(grant)),
                _ => refused(AuthenticationFailure::Unknown, KeyRefused::Place),
            };
        }
        if shown.any_begins_with(OURS) || !access.byok {
            let Some(text) = shown.first() else {
                return refused(AuthenticationFailure::Missing, KeyRefused::Missing);
            };
            if shown.differ() {
                return refused(AuthenticationFailure::Malformed, KeyRefused::Two);
            }
            let grant = self.look_up(keys, text, asked, now)?;
            return match grant.track {
                Track::Managed if access.managed => Ok(Some(grant)),
                _ => refused(AuthenticationFailure::Unknown, KeyRefused::Place),
            };
        }
        if settings.is_some_and(|settings| settings.required) {
            return refused(AuthenticationFailure::Missing, KeyRefused::Missing);
        }
        Ok(None)
    }

    fn look_up(
        &self,
        keys: Option<&Arc<Keys>>,
        text: &[u8],
        asked: &Asked<'_>,
        now: &Now,
    ) -> Result<Arc<Grant>, Refusal> {
        let fault = match keys.map(|keys| keys.find(text, now.unix)) {
            Some(Ok(grant)) => return Ok(grant.clone()),
            Some(Err(fault)) => fault,
            None => KeyFault::Unknown,
        };
        self.handles.process().authentication_failed(match fault {
            KeyFault::Expired => AuthenticationFailure::Expired,
            KeyFault::Malformed => AuthenticationFailure::Malformed,
            KeyFault::Revoked => AuthenticationFailure::Revoked,
            KeyFault::Unknown => AuthenticationFailure::Unknown,
        });
        let allowed = self.config.admission.wrong_keys_per_minute;
        let wait = asked.address.and_then(|address| self.shared.back_off.wrong_key(address, allowed, now.nanos));
        Err(Refusal::Key(wait.map_or(KeyRefused::Wrong, KeyRefused::WrongAgain)))
    }

    /// Who is limited, and the plan of a caller without a key.
    fn subjects(&self, grant: Option<&Grant>, upstream: usize, tenant: Tenant, now: u64) -> (Subjects, Option<&Plan>) {
        let whole = self.upstreams[upstream].subject.clone();
        if let Some(grant) = grant {
            return ([Some(grant.subject.clone()), grant.account.clone(), whole], None);
        }
        let plan = self.config.upstreams[upstream].caller_plan.map(|place| &self.config.plans[place]);
        let caller = plan.map(|plan| {
            // Those without a credential share one.
            let (first, second) = match tenant {
                Tenant::Caller(first, second) => (first, second),
                Tenant::Nobody => (0, 1),
            };
            // Of each upstream's plan apart.
            let hash = (first, second ^ (upstream as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            self.shared.ledger.caller(hash, &plan.limits, now)
        });
        ([caller, None, whole], plan)
    }

    fn priority(&self, grant: Option<&Grant>, upstream: usize) -> Priority {
        let caller_plan = self.config.upstreams[upstream].caller_plan.map(|place| self.config.plans[place].priority);
        grant.map(|grant| grant.priority).or(caller_plan).unwrap_or(Priority::Normal)
    }

    /// Whether a worker is so late that a newcomer of this priority makes it worse for everybody: those of low priority at
    /// half of what is allowed, those of high priority at twice that.
    fn sheds(&self, worker: &Worker, priority: Priority) -> bool {
        let allowed = self.config.admission.lag_max;
        let bound = match priority {
            Priority::Low => allowed / 2,
            Priority::Normal => allowed,
            Priority::High => allowed * 2,
        };
        !allowed.is_zero() && worker.lag.get() > bound
    }

    /// Once a second, by the control side: what the metrics show of keys.
    pub(crate) fn show(&self, keys: Option<&Arc<Keys>>, now: u64, unix: i64) {
        for (place, upstream) in self.upstreams.iter().enumerate() {
            let (ready, resting) = upstream.keys.count(now);
            if ready + resting > 0 {
                self.handles.upstream(upstream_id(place)).set_provider_keys(ready, resting);
            }
        }
        if let Some(keys) = keys {
            let (active, revoked) = keys.count(unix);
            self.handles.process().set_api_keys(active, revoked);
            for (rule, count) in &keys.relaxing {
                self.handles.process().set_relaxed_by_keys(*rule, *count);
            }
        }
    }
}

impl Shared {
    /// Keys that have left the file count as revoked, and are forgotten when their last stream has ended.
    pub(crate) fn close_absent(&self, keys: Option<&Arc<Keys>>) {
        let known: std::collections::HashSet<*const Subject> =
            keys.into_iter().flat_map(|keys| keys.grants()).map(|grant| Arc::as_ptr(&grant.subject)).collect();
        self.ledger.each_named(|subject| {
            if subject.scope() == Scope::Key && !known.contains(&Arc::as_ptr(subject)) {
                subject.close(true);
            }
        });
        self.ledger.forget_unused();
    }

    /// Requests that were refused for overload so far.
    pub(crate) fn shed(&self) -> u64 {
        self.shed.load(Relaxed)
    }

    /// Once a minute: forgets who has been quiet.
    pub(crate) fn sweep(&self, now: u64) {
        self.ledger.sweep(now);
        self.back_off.sweep(now);
    }
}

fn upstream_id(place: usize) -> UpstreamId {
    UpstreamId(u16::try_from(place).unwrap_or(u16::MAX))
}

fn label_of(class: Class) -> LimitLabel {
    match class {
        Class::Concurrency => LimitLabel::Concurrency,
        Class::Requests => LimitLabel::Requests,
        Class::Tokens => LimitLabel::Tokens,
        Class::Budget => LimitLabel::Budget,
    }
}

fn limited(exhausted: &Exhausted, subjects: &Subjects, now: &Now) -> Limited {
    let seconds = |nanos: u64| nanos.div_ceil(1_000_000_000).max(1);
    Limited {
        scope: exhausted.scope,
        limit: exhausted.exceeded.limit,
        retry_after: exhausted.exceeded.retry_after.map(seconds),
        standing: Standing::of(subjects, now.nanos),
        unix: now.unix,
    }
}

impl Permit {
    fn admission(&self) -> &Admission {
        &self.place.0
    }

    fn now(&self) -> Now {
        self.clock.now(Instant::now())
    }

    /// Counts a request of the key's, if it has series.
    fn count(&self, outcome: Outcome) {
        if let (Some(keys), Some(grant)) = (&self.keys, &self.grant)
            && let Some(series) = keys.series.get(grant.series)
        {
            series.requests(outcome).inc();
        }
    }

    fn config(&self) -> &crate::config::Upstream {
        &self.admission().config.upstreams[self.upstream]
    }

    /// The upstream's policy as it holds for this caller.
    pub(crate) fn policy(&self) -> Policy {
        let policy = &self.config().policy;
        let managed = self.mode == Mode::Managed;
        match &self.grant {
            Some(grant) => policy.narrowed(&grant.models, &grant.relaxed, grant.usage).settled(managed),
            None => policy.settled(managed),
        }
    }

    /// Puts the operator's key in the place of the caller's, and takes off what names another account. In pass-through the
    /// caller's goes on untouched. A key of ours that stands apart is taken off either way.
    pub(crate) fn present(&self, provider: Provider, path: &str, headers: &mut Fields) {
        if let Some(keys) = &self.admission().config.keys {
            headers.remove(&keys.header);
        }
        let Some(picked) = self.picked else { return };
        credential::take_off(headers);
        headers::take_off_account_names(headers);
        // It is the operator's account that asks, not the caller's application.
        headers.insert(name::USER_AGENT, Value::of("nullhop"));
        headers.remove(name::X_GOOG_API_CLIENT);
        let header = provider_keys::header_of(provider, path, self.config().key_header);
        if let Some((name, value)) = self.admission().upstreams[self.upstream].keys.header(picked, header)
            && let Some(value) = Value::new(&value)
        {
            headers.insert_sensitive(name, value);
        }
    }

    /// The target that goes up: without the caller's key if the operator's goes up.
    pub(crate) fn target(&self, target: String) -> String {
        match self.mode {
            Mode::Managed => credential::without_key(target),
            _ => target,
        }
    }

    /// The provider has answered. Says whether its answer must not reach the caller, since it speaks of the operator's key.
    pub(crate) fn answered(&self, status: u16, headers: &Fields) -> bool {
        let Some(picked) = self.picked else { return false };
        let told = headers.get(name::RETRY_AFTER).filter(|_| status == 429);
        let retry_after = told.and_then(|value| value.text()?.trim().parse().ok());
        let keys = &self.admission().upstreams[self.upstream].keys;
        let metrics = self.admission().handles.upstream(upstream_id(self.upstream));
        if let Some(rest) = keys.answered(picked, status, retry_after, || self.now().nanos)
            && let Some(key) = metrics.provider_key(rest.key).cloned()
        {
            let upstream = metrics.name().clone();
            log::emit(log::Event::ProviderKeyCooling { upstream, key, seconds: rest.seconds, status });
        }
        self.admission().headroom(self.upstream, headers);
        status == 401
    }

    /// What a managed caller sees of its own limits instead of the operator's, in an answer that `came` just now; in
    /// pass-through the provider's stay.
    pub(crate) fn rewrite_answer(&self, dialect: Dialect, came: Instant, headers: &mut Fields) {
        if self.mode != Mode::Managed {
            return;
        }
        let reservation = self.reservation.borrow();
        let (standing, unix) = match &*reservation {
            Some(reservation) => {
                let now = self.clock.now(came);
                (Standing::of(reservation.subjects(), now.nanos), now.unix)
            }
            None => (Standing::default(), 0),
        };
        standing.replace(dialect, unix, headers);
    }

    /// The same for what follows an answer's body; nothing is put there.
    pub(crate) fn rewrite_trailers(&self, trailers: &mut Fields) {
        if self.mode == Mode::Managed {
            headers::take_off_all_of_account(trailers);
        }
    }

    /// The key's id and label, for usage events.
    pub(crate) fn key(&self) -> Option<(Arc<str>, Arc<str>)> {
        self.grant.as_ref().map(|grant| (grant.id.clone(), grant.label.clone()))
    }

    /// The account's name, for usage events.
    pub(crate) fn account(&self) -> Option<Arc<str>> {
        self.grant.as_ref()?.account_name.clone()
    }

    /// How much output stands reserved. `None` where nobody is limited.
    pub(crate) fn output_reserved(&self) -> Option<u64> {
        self.reservation.borrow().as_ref().map(|reservation| reservation.reserved().output)
    }

    /// Whether the provider goes on, and bills, when a client leaves in the middle of a stream (WIRE section 8).
    pub(crate) fn provider_goes_on(&self) -> bool {
        matches!(self.config().provider, Provider::Gemini | Provider::Vertex | Provider::Bedrock)
    }

    /// Whether the stream has to be looked at once in a while, since it may have to be cut.
    pub(crate) fn may_be_cut(&self) -> bool {
        let limited = self.reservation.borrow().is_some();
        limited && (self.cut_on_budget || (self.cut_on_revoke && self.grant.is_some()))
    }

    /// Whether the stream must be cut: its key has been revoked, or with what it has used `so_far` a budget is used up.
    pub(crate) fn must_be_cut(&self, so_far: &Charged, model: ModelId) -> bool {
        let reservation = self.reservation.borrow();
        let Some(reservation) = &*reservation else { return false };
        // By its own price: a stream whose model has none costs nothing in the end, and is not cut for what another would.
        let money = || self.admission().prices.cost(self.upstream, model, so_far).unwrap_or(0);
        (self.cut_on_revoke && reservation.is_closed())
            || (self.cut_on_budget
                && reservation.is_spent(&Amount {
                    requests: 0,
                    input: so_far.input(),
                    output: so_far.output(),
                    money: money(),
                }))
    }

    /// Reserves what the call may use, now that it is known, or is known not to become known.
    ///
    /// # Errors
    /// The limit that does not have it.
    fn reserve(&self, output_tokens_max: Option<u64>, model: Option<ModelId>) -> Result<(), Exhausted> {
        let mut reservation = self.reservation.borrow_mut();
        let Some(reservation) = reservation.as_mut().filter(|_| self.billed) else { return Ok(()) };
        let output = output_tokens_max.unwrap_or(self.output_estimate);
        let input = self.input_estimate.get();
        let tokens = Charged { uncached: input, response: output, ..Charged::default() };
        let money = self.admission().prices.cost_at_most(self.upstream, model, &tokens);
        let wanted = Amount { requests: reservation.reserved().requests, input, output, money };
        let now = self.now();
        let resized = reservation.resize(wanted, now.nanos);
        if let Err(exhausted) = &resized {
            let label = label_of(exhausted.exceeded.limit.class());
            self.admission().handles.process().limit_decided(label, Decision::Deny);
        }
        resized
    }

    /// For a body that nobody reads: reserves by what is known without it.
    ///
    /// # Errors
    /// What to answer instead.
    pub(crate) fn approve_unread(&self, model: Option<ModelId>) -> Result<(), Refusal> {
        self.reserve(None, model).map_err(|exhausted| self.refusal(&exhausted))
    }

    /// Why the body was not let through.
    pub(crate) fn refused(&self) -> Refusal {
        self.exhausted.get().map_or(Refusal::Internal, |exhausted| self.refusal(&exhausted))
    }

    fn refusal(&self, exhausted: &Exhausted) -> Refusal {
        Refusal::Limited(self.limited(exhausted))
    }

    fn limited(&self, exhausted: &Exhausted) -> Box<Limited> {
        let reservation = self.reservation.borrow();
        let nobody = [const { None }; 3];
        let subjects = reservation.as_ref().map_or(&nobody, Reservation::subjects);
        Box::new(limited(exhausted, subjects, &self.now()))
    }

    /// One more answer is asked for over a WebSocket. `used` is what the answers before have used, `running` what those
    /// that are under way may use, this one among them; `requests` counts them all.
    ///
    /// # Errors
    /// What to say to the client.
    pub(crate) fn ask_again(
        &self,
        used: &Charged,
        running: &Charged,
        requests: u64,
        model: Option<ModelId>,
    ) -> Result<(), Box<Limited>> {
        let mut reservation = self.reservation.borrow_mut();
        let Some(held) = reservation.as_mut() else { return Ok(()) };
        let wanted = self.wanted(used, running, requests, model);
        let now = self.now();
        let resized = held.extend(wanted, now.nanos);
        drop(reservation);
        let class = resized.as_ref().err().map_or(Class::Requests, |exhausted| exhausted.exceeded.limit.class());
        let decision = if resized.is_ok() { Decision::Allow } else { Decision::Deny };
        self.admission().handles.process().limit_decided(label_of(class), decision);
        resized.map_err(|exhausted| self.limited(&exhausted))
    }

    /// What the answers of a WebSocket have used takes the place of what was reserved for them, as far as there is room: the
    /// rest is owed at its end.
    pub(crate) fn spent_so_far(&self, used: &Charged, running: &Charged, requests: u64, model: Option<ModelId>) {
        let mut reservation = self.reservation.borrow_mut();
        let Some(held) = reservation.as_mut() else { return };
        let _ = held.extend(self.wanted(used, running, requests, model), self.now().nanos);
    }

    fn wanted(&self, used: &Charged, running: &Charged, requests: u64, model: Option<ModelId>) -> Amount {
        let money = |tokens| self.admission().prices.cost_at_most(self.upstream, model, tokens);
        Amount {
            requests,
            input: used.input().saturating_add(running.input()),
            output: used.output().saturating_add(running.output()),
            money: money(used).saturating_add(money(running)),
        }
    }

    /// Whether anybody limits it.
    pub(crate) fn is_limited(&self) -> bool {
        self.reservation.borrow().is_some()
    }

    /// The output that is reserved for an answer that does not limit it.
    pub(crate) fn output_estimate(&self) -> u64 {
        self.output_estimate
    }

    /// What the wall clock says at `at`, which must be about now.
    pub(crate) fn wall(&self, at: Instant) -> Timestamp {
        self.clock.wall(at)
    }

    /// Writes down what was used and gives the places back. Returns what it costs, in picodollars, if there is a price.
    pub(crate) fn settle(&self, used: &Used) -> Option<u64> {
        let cost = self.admission().prices.cost(self.upstream, used.model, &used.tokens);
        let handles = &self.admission().handles;
        let charged = used.tokens.input() + used.tokens.output();
        let metrics = handles.upstream(upstream_id(self.upstream));
        match cost {
            Some(cost) => metrics.tokens.model(used.model).cost(cost),
            None if charged > 0 && self.admission().prices.any() => metrics.tokens.unpriced.inc(),
            None => {}
        }
        let series = match (&self.keys, &self.grant) {
            (Some(keys), Some(grant)) => keys.series.get(grant.series).map(|series| (series, grant)),
            _ => None,
        };
        if let Some((series, _)) = series {
            series.requests(used.outcome).inc();
            series.tokens(TokenDirection::Input).inc_by(used.tokens.input());
            series.tokens(TokenDirection::Output).inc_by(used.tokens.output());
        }
        let Some(mut reservation) = self.reservation.borrow_mut().take() else { return cost };
        let now = self.clock.now(used.at);
        let amount = Amount {
            requests: used.requests,
            input: used.tokens.input(),
            output: used.tokens.output().saturating_add(used.side),
            money: cost.unwrap_or(0),
        };
        let mut overrun = 0;
        reservation.settle(amount, now.nanos, |subject, settled| {
            overrun = overrun.max(settled.overrun);
            if settled.soft
                && let Some(name) = subject.name()
                && let Ok(name) = KeyLabel::new(name)
            {
                let scope = match subject.scope() {
                    Scope::Key => BudgetScope::Key,
                    Scope::Account => BudgetScope::Account,
                    Scope::Upstream => BudgetScope::Upstream,
                };
                log::emit(log::Event::BudgetSoft { scope, name });
            }
        });
        if overrun > 0 {
            handles.process().limit_overrun_tokens.inc_by(overrun);
        }
        if let Some((series, grant)) = series {
            for (class, ratio) in Class::ALL.into_iter().zip(grant.subject.used_ratios(now.nanos)) {
                if let Some(ratio) = ratio {
                    series.used_ratio(label_of(class), ratio);
                }
            }
        }
        cost
    }
}

impl Approve for Permit {
    fn approve(&self, facts: &Facts, model: Option<ModelId>, bytes: u64) -> bool {
        if self.input_estimate.get() > 0 {
            self.input_estimate.set((bytes / BYTES_PER_TOKEN).min(INPUT_ESTIMATE_MAX));
        }
        match self.reserve(facts.output_tokens_max, model) {
            Ok(()) => true,
            Err(exhausted) => {
                self.exhausted.set(Some(exhausted));
                false
            }
        }
    }
}

impl Admission {
    /// What the provider says of the operator's own limits.
    fn headroom(&self, upstream: usize, headers: &Fields) {
        let number = |name: Known| {
            let text = headers.get(name)?.text()?.trim();
            // Nearly always whole numbers, which are read with less work.
            text.parse::<u32>().map(f64::from).ok().or_else(|| text.parse().ok())
        };
        let metrics = self.handles.upstream(upstream_id(upstream));
        let anthropic = self.config.upstreams[upstream].provider == Provider::Anthropic;
        let told: &[_] = if anthropic { &HEADROOM_OF_ANTHROPIC } else { &HEADROOM_OF_OPENAI };
        for (resource, remaining, limit) in told {
            // Azure may say -1 or 0 of limits that it does not have.
            if let (Some(remaining), Some(limit)) = (number(*remaining), number(*limit))
                && remaining >= 0.0
                && limit > 0.0
            {
                metrics.limit_remaining(*resource, (remaining / limit).min(1.0));
            }
        }
    }
}

/// What remains of a limit of the operator's, and the limit.
type Headroom = (Resource, Known, Known);

static HEADROOM_OF_OPENAI: [Headroom; 2] = [
    (Resource::Requests, Known::named("x-ratelimit-remaining-requests"), Known::named("x-ratelimit-limit-requests")),
    (Resource::Tokens, Known::named("x-ratelimit-remaining-tokens"), Known::named("x-ratelimit-limit-tokens")),
];

static HEADROOM_OF_ANTHROPIC: [Headroom; 4] = [
    (
        Resource::Requests,
        Known::named("anthropic-ratelimit-requests-remaining"),
        Known::named("anthropic-ratelimit-requests-limit"),
    ),
    (
        Resource::Tokens,
        Known::named("anthropic-ratelimit-tokens-remaining"),
        Known::named("anthropic-ratelimit-tokens-limit"),
    ),
    (
        Resource::InputTokens,
        Known::named("anthropic-ratelimit-input-tokens-remaining"),
        Known::named("anthropic-ratelimit-input-tokens-limit"),
    ),
    (
        Resource::OutputTokens,
        Known::named("anthropic-ratelimit-output-tokens-remaining"),
        Known::named("anthropic-ratelimit-output-tokens-limit"),
    ),
];

/// Marks the credentials of `headers` as sensitive. `apart`: the header of our own keys, if there are any.
pub(crate) fn protect_credentials(headers: &mut Fields, apart: Option<&HeaderName>) {
    headers.protect(&CREDENTIAL_HEADERS, apart);
}

/// The dialect of an answer, for a request that got no further than its head.
pub(crate) fn guess_dialect(path: &str, headers: &Fields) -> Dialect {
    Dialect::guess(path, headers.contains_key(name::ANTHROPIC_VERSION), headers.contains_key(name::X_GOOG_API_KEY))
}
