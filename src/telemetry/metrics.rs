//! The metric families of `docs/metrics.md` and the handles that move them.
//!
//! `Metrics` is made once a process. `Metrics::bind` turns the names of a configuration into `Handles`: arrays of
//! ready counters, indexed by the ids the configuration handed out. Whoever works on a request only touches those.
//! Two kinds of children come into being later, at their first use: histograms (a histogram without an observation
//! says nothing and costs a dozen series) and `nullhop_requests_total` for an (upstream, operation, mode), which
//! would be a thousand zeros an upstream.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;

use crate::provider::Operation;
use crate::provider::Provider;
use crate::retention::Rule;
use crate::telemetry::keys::KeyFamilies;
pub(crate) use crate::telemetry::keys::KeySeries;
use crate::telemetry::labels::AuthenticationFailure;
use crate::telemetry::labels::Basis;
use crate::telemetry::labels::CertificateId;
use crate::telemetry::labels::ConnectResult;
use crate::telemetry::labels::Decision;
use crate::telemetry::labels::Direction;
use crate::telemetry::labels::EventResult;
use crate::telemetry::labels::FailureReason;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::HandshakeResult;
use crate::telemetry::labels::InvalidName;
use crate::telemetry::labels::KeyState;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::LimitLabel;
use crate::telemetry::labels::ListenerId;
use crate::telemetry::labels::MissingReason;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::NONE;
use crate::telemetry::labels::Name;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Phase;
use crate::telemetry::labels::ProcessGuard;
use crate::telemetry::labels::Protocol;
use crate::telemetry::labels::ProviderKeyState;
use crate::telemetry::labels::RefusedReason;
use crate::telemetry::labels::ReloadResult;
use crate::telemetry::labels::Resource;
use crate::telemetry::labels::RetryReason;
use crate::telemetry::labels::Source;
use crate::telemetry::labels::StatusLabel;
use crate::telemetry::labels::Streaming;
use crate::telemetry::labels::TokenDirection;
use crate::telemetry::labels::TokenKind;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::log;
use crate::telemetry::models::ModelId;
use crate::telemetry::models::ModelTable;
use crate::telemetry::series::Cost;
use crate::telemetry::series::Family;
use crate::telemetry::series::Ratio;

/// The names of one configuration; their places are the ids.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    listeners: Vec<Name>,
    certificates: Vec<Name>,
    upstreams: Vec<(Name, Provider)>,
    /// By upstream.
    provider_keys: Vec<Box<[Name]>>,
    models: ModelTable,
}

impl Names {
    /// To be called with what a configuration says and nothing else: these texts are printed as they are.
    pub(crate) fn new<'a>(
        listeners: impl IntoIterator<Item = &'a str>,
        certificates: impl IntoIterator<Item = &'a str>,
        upstreams: impl IntoIterator<Item = (&'a str, Provider)>,
    ) -> Result<Self, InvalidName> {
        Ok(Self {
            listeners: listeners.into_iter().map(Name::new).collect::<Result<_, _>>()?,
            certificates: certificates.into_iter().map(Name::new).collect::<Result<_, _>>()?,
            upstreams: upstreams
                .into_iter()
                .map(|(name, provider)| Ok((Name::new(name)?, provider)))
                .collect::<Result<_, _>>()?,
            provider_keys: Vec::new(),
            models: ModelTable::default(),
        })
    }

    /// With the names of the operator's keys at each upstream, in the order of the upstreams. For log lines.
    pub(crate) fn with_provider_keys<'a, K: IntoIterator<Item = &'a str>>(
        self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Self, InvalidName> {
        let names = |keys: K| keys.into_iter().map(Name::new).collect::<Result<_, _>>();
        Ok(Self { provider_keys: keys.into_iter().map(names).collect::<Result<_, _>>()?, ..self })
    }

    /// With another table of models than the built-in one.
    pub(crate) fn with_models(self, models: ModelTable) -> Self {
        Self { models, ..self }
    }
}

/// All series of the process, over all configurations it has had.
pub(crate) struct Metrics {
    registry: Registry,
    families: Families,
    process: Arc<ProcessMetrics>,
    /// What the last `bind` exported, to know what is gone at the next.
    bound: Mutex<Bound>,
}

#[derive(Default)]
struct Bound {
    certificates: BTreeSet<Name>,
    upstreams: BTreeMap<Name, Provider>,
}

impl Metrics {
    /// `pop` becomes a label of every series.
    pub(crate) fn new(pop: Option<&str>) -> Self {
        let labels = pop.map(|pop| HashMap::from([("pop".to_owned(), pop.to_owned())]));
        let registry = Registry::new_custom(None, labels).expect(STATIC);
        let families = Families::register(&registry);
        registry.register(Box::new(ProcessCollector::for_self())).expect(STATIC);
        for lines in log::lines().iter() {
            register(&registry, lines.clone());
        }
        families
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION"), option_env!("NULLHOP_REVISION").unwrap_or("unknown")])
            .set(1);
        let process = Arc::new(ProcessMetrics::new(&families));
        // What has not been refused is in force; where there are no keys as well.
        process.keys_reload_successful.set(1);
        Self { registry, families, process, bound: Mutex::default() }
    }

    /// Resolves the handles of a configuration. Series that exist go on where they were. What states the present of a
    /// part that is no longer configured (its info, its health, its expiry) is dropped; its counters stay, and so do
    /// its gauges of open connections and requests, which old exchanges still bring down to zero.
    pub(crate) fn bind(&self, names: &Names) -> Handles {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let upstreams: BTreeMap<Name, Provider> = names.upstreams.iter().cloned().collect();
        let certificates: BTreeSet<Name> = names.certificates.iter().cloned().collect();
        // Nothing to remove is no fault: a certificate may never have been read.
        for (name, provider) in &bound.upstreams {
            if upstreams.get(name) != Some(provider) {
                let _ = self.families.upstream_info.remove_label_values(&[name.as_str(), provider.as_str()]);
            }
            if !upstreams.contains_key(name) {
                let _ = self.families.upstream_up.remove_label_values(&[name.as_str()]);
                for state in ProviderKeyState::ALL {
                    let _ = self.families.upstream_keys.remove_label_values(&[name.as_str(), state.as_str()]);
                }
                for resource in Resource::ALL {
                    self.families.upstream_limit_remaining.remove([name.into(), (*resource).into()]);
                }
                for rule in Rule::ALL {
                    let _ = self.families.rules_relaxed.remove_label_values(&[name.as_str(), rule.as_str()]);
                }
            }
        }
        for name in bound.certificates.difference(&certificates) {
            let _ = self.families.certificate_not_after.remove_label_values(&[name.as_str()]);
        }
        let handles = Handles {
            process: self.process.clone(),
            listeners: names.listeners.iter().map(|name| ListenerMetrics::new(&self.families, name)).collect(),
            certificates: names.certificates.iter().map(|name| CertificateMetrics::new(&self.families, name)).collect(),
            upstreams: names
                .upstreams
                .iter()
                .enumerate()
                .map(|(place, (name, provider))| {
                    let known = bound.upstreams.contains_key(name);
                    let keys = names.provider_keys.get(place).cloned().unwrap_or_default();
                    UpstreamMetrics::new(&self.families, name, *provider, keys, &names.models, known)
                })
                .collect(),
            models: names.models.clone(),
            no_upstream: TrafficMetrics::new(&self.families, None),
        };
        *bound = Bound { certificates, upstreams };
        handles
    }

    /// Gives series of their own to the first `keys_max` labels that differ, at most 65,535; all others share those of
    /// `other`, and so does what is no label (see `KeyLabel`). 0: no key has any. To be called whenever the file of keys
    /// was read or the configuration changed. Counters of labels that come back go on; of those that are gone, the gauges
    /// end, and the counters of the last `keys_max` stay.
    pub(crate) fn bind_keys<'a>(&self, labels: impl IntoIterator<Item = &'a str>, keys_max: usize) -> Arc<KeySeries> {
        Arc::new(self.families.keys.bind(labels, keys_max))
    }

    /// Streams that are open, whatever configuration they began with.
    pub(crate) fn requests_in_flight(&self) -> i64 {
        let families = self.families.requests_in_flight.collect();
        let gauges = families.iter().flat_map(|family| family.get_metric());
        gauges.map(|gauge| gauge.get_gauge().get_value() as i64).sum()
    }

    /// The text format 0.0.4.
    pub(crate) fn render(&self) -> String {
        // The encoder fails on families without a name, a type or a series; the registry gathers none of these.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

/// The handles of one configuration, shared by all workers.
pub(crate) struct Handles {
    process: Arc<ProcessMetrics>,
    listeners: Box<[ListenerMetrics]>,
    certificates: Box<[CertificateMetrics]>,
    upstreams: Box<[UpstreamMetrics]>,
    models: ModelTable,
    no_upstream: TrafficMetrics,
}

/// The ids must be those of the configuration whose names were bound; another's may be out of range and panic.
impl Handles {
    pub(crate) fn process(&self) -> &Arc<ProcessMetrics> {
        &self.process
    }

    pub(crate) fn guard(&self, guard: Guard) -> &IntCounter {
        self.process.guard(guard)
    }

    pub(crate) fn overhead(&self, phase: Phase) -> &LazyHistogram {
        self.process.overhead(phase)
    }

    pub(crate) fn listener(&self, id: ListenerId) -> &ListenerMetrics {
        &self.listeners[usize::from(id.0)]
    }

    pub(crate) fn certificate(&self, id: CertificateId) -> &CertificateMetrics {
        &self.certificates[usize::from(id.0)]
    }

    pub(crate) fn upstream(&self, id: UpstreamId) -> &UpstreamMetrics {
        &self.upstreams[usize::from(id.0)]
    }

    /// What the ids of models stand for.
    pub(crate) fn models(&self) -> &ModelTable {
        &self.models
    }

    /// `None`: of requests that end before an upstream is chosen.
    pub(crate) fn traffic(&self, upstream: Option<UpstreamId>) -> &TrafficMetrics {
        match upstream {
            Some(id) => &self.upstream(id).traffic,
            None => &self.no_upstream,
        }
    }
}

/// What there is once in a process, whatever its configuration.
pub(crate) struct ProcessMetrics {
    pub(crate) runtime_workers: IntGauge,
    pub(crate) runtime_lag: LazyHistogram,
    runtime_tasks: IntGauge,
    ready: IntGauge,
    draining: IntGauge,
    cutting: AtomicBool,
    reloads: ByLabel<ReloadResult, IntCounter>,
    reload_successful: IntGauge,
    reload_success_timestamp: IntGauge,
    fingerprint: IntGauge,
    process_guards: ByLabel<ProcessGuard, IntGauge>,
    guards: ByLabel<Guard, IntCounter>,
    overhead: ByLabel<Phase, LazyHistogram>,
    /// Tokens that were settled beyond what had been reserved.
    relaxed_by_keys: ByLabel<Rule, IntGauge>,
    pub(crate) limit_overrun_tokens: IntCounter,
    /// On disk.
    pub(crate) usage_events_written: IntCounter,
    /// Never to be on disk.
    pub(crate) usage_events_lost: IntCounter,
    /// Each time that the disk refuses the journal.
    pub(crate) usage_event_disk_failures: IntCounter,
    authentication_failures: ByLabel<AuthenticationFailure, IntCounter>,
    limit_decisions: ByLabel<LimitLabel, ByLabel<Decision, IntCounter>>,
    api_keys: ByLabel<KeyState, IntGauge>,
    keys_reloads: ByLabel<ReloadResult, IntCounter>,
    keys_reload_successful: IntGauge,
}

impl ProcessMetrics {
    fn new(families: &Families) -> Self {
        Self {
            runtime_workers: families.runtime_workers.clone(),
            runtime_lag: LazyHistogram::new(&families.runtime_lag, []),
            runtime_tasks: families.runtime_tasks.clone(),
            ready: families.ready.clone(),
            draining: families.draining.clone(),
            cutting: AtomicBool::new(false),
            reloads: ByLabel::new(|result: ReloadResult| families.config_reloads.with_label_values(&[result.as_str()])),
            reload_successful: families.config_last_reload_successful.clone(),
            reload_success_timestamp: families.config_last_reload_success_timestamp.clone(),
            fingerprint: families.config_fingerprint.clone(),
            process_guards: ByLabel::new(|guard: ProcessGuard| {
                families.guard_active.with_label_values(&[guard.as_str()])
            }),
            guards: ByLabel::new(|guard: Guard| families.guards.with_label_values(&[guard.as_str()])),
            overhead: ByLabel::new(|phase: Phase| LazyHistogram::new(&families.overhead, [phase.into()])),
            relaxed_by_keys: ByLabel::new(|rule: Rule| {
                families.rules_relaxed_by_keys.with_label_values(&[rule.as_str()])
            }),
            limit_overrun_tokens: families.limit_overrun_tokens.clone(),
            usage_events_written: families.usage_events.with_label_values(&[EventResult::Written.as_str()]),
            usage_events_lost: families.usage_events.with_label_values(&[EventResult::Lost.as_str()]),
            usage_event_disk_failures: families.usage_event_disk_failures.clone(),
            authentication_failures: ByLabel::new(|reason: AuthenticationFailure| {
                families.authentication_failures.with_label_values(&[reason.as_str()])
            }),
            limit_decisions: ByLabel::new(|limit: LimitLabel| {
                ByLabel::new(|decision: Decision| {
                    let labels = [limit.as_str(), decision.as_str(), Basis::Local.as_str()];
                    families.limit_decisions.with_label_values(&labels)
                })
            }),
            api_keys: ByLabel::new(|state: KeyState| families.api_keys.with_label_values(&[state.as_str()])),
            keys_reload_successful: families.keys_last_reload_successful.clone(),
            keys_reloads: ByLabel::new(|result: ReloadResult| {
                families.keys_reloads.with_label_values(&[result.as_str()])
            }),
        }
    }

    /// A request showed no key that is good.
    pub(crate) fn authentication_failed(&self, reason: AuthenticationFailure) {
        self.authentication_failures.get(reason).inc();
    }

    /// A limit let a request through, or did not.
    pub(crate) fn limit_decided(&self, limit: LimitLabel, decision: Decision) {
        self.limit_decisions.get(limit).get(decision).inc();
    }

    /// How many client keys relax a retention rule.
    pub(crate) fn set_relaxed_by_keys(&self, rule: Rule, keys: usize) {
        self.relaxed_by_keys.get(rule).set(gauge_value(keys));
    }

    /// How many client keys there are now.
    pub(crate) fn set_api_keys(&self, active: usize, revoked: usize) {
        self.api_keys.get(KeyState::Active).set(gauge_value(active));
        self.api_keys.get(KeyState::Revoked).set(gauge_value(revoked));
    }

    /// The file of keys was read; if it was refused, the keys from before stay. Not to be called for the first reading at
    /// the start, like the configuration's.
    pub(crate) fn keys_loaded(&self, ok: bool) {
        self.keys_reloads.get(if ok { ReloadResult::Ok } else { ReloadResult::Error }).inc();
        self.keys_reload_successful.set(ok.into());
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.set(ready.into());
    }

    /// From now on, what ends unfinished was ended by us.
    pub(crate) fn set_cutting(&self) {
        self.cutting.store(true, Ordering::Relaxed);
    }

    pub(crate) fn cutting(&self) -> bool {
        self.cutting.load(Ordering::Relaxed)
    }

    pub(crate) fn set_draining(&self, draining: bool) {
        self.draining.set(draining.into());
    }

    /// The configuration the process starts with. Not a reload, but it is the newest one and it is in force.
    pub(crate) fn config_loaded(&self, fingerprint: u64, at: SystemTime) {
        self.reload_successful.set(1);
        self.reload_success_timestamp.set(unix_seconds(at));
        // 48 bits, because a sample is a float and holds 53.
        self.fingerprint.set((fingerprint & 0xffff_ffff_ffff) as i64);
    }

    pub(crate) fn config_reloaded(&self, fingerprint: u64, at: SystemTime) {
        self.reloads.get(ReloadResult::Ok).inc();
        self.config_loaded(fingerprint, at);
    }

    /// The old configuration stays in force.
    pub(crate) fn config_refused(&self) {
        self.reloads.get(ReloadResult::Error).inc();
        self.reload_successful.set(0);
    }

    pub(crate) fn set_process_guard(&self, guard: ProcessGuard, active: bool) {
        self.process_guards.get(guard).set(active.into());
    }

    pub(crate) fn guard(&self, guard: Guard) -> &IntCounter {
        self.guards.get(guard)
    }

    pub(crate) fn overhead(&self, phase: Phase) -> &LazyHistogram {
        self.overhead.get(phase)
    }
}

/// One listener's clients.
pub(crate) struct ListenerMetrics {
    pub(crate) connections: IntCounter,
    pub(crate) handshake_seconds: LazyHistogram,
    open: ByLabel<Protocol, IntGauge>,
    refused: ByLabel<RefusedReason, IntCounter>,
    handshakes: ByLabel<HandshakeResult, IntCounter>,
}

impl ListenerMetrics {
    fn new(families: &Families, name: &Name) -> Self {
        let listener = name.as_str();
        Self {
            connections: families.connections.with_label_values(&[listener]),
            handshake_seconds: LazyHistogram::new(&families.handshake_duration, [name.into()]),
            open: ByLabel::new(|protocol: Protocol| {
                families.open_connections.with_label_values(&[listener, protocol.as_str()])
            }),
            refused: ByLabel::new(|reason: RefusedReason| {
                families.connections_refused.with_label_values(&[listener, reason.as_str()])
            }),
            handshakes: ByLabel::new(|result: HandshakeResult| {
                families.handshakes.with_label_values(&[listener, result.as_str()])
            }),
        }
    }

    pub(crate) fn open(&self, protocol: Protocol) -> &IntGauge {
        self.open.get(protocol)
    }

    pub(crate) fn refused(&self, reason: RefusedReason) -> &IntCounter {
        self.refused.get(reason)
    }

    pub(crate) fn handshakes(&self, result: HandshakeResult) -> &IntCounter {
        self.handshakes.get(result)
    }
}

/// One certificate.
pub(crate) struct CertificateMetrics {
    name: Name,
    /// Absent until set: zero would say that it expired in 1970 and wake somebody.
    not_after: OnceLock<IntGauge>,
    family: IntGaugeVec,
}

impl CertificateMetrics {
    fn new(families: &Families, name: &Name) -> Self {
        Self { name: name.clone(), not_after: OnceLock::new(), family: families.certificate_not_after.clone() }
    }

    /// For log lines.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn set_not_after(&self, not_after: SystemTime) {
        self.not_after
            .get_or_init(|| self.family.with_label_values(&[self.name.as_str()]))
            .set(unix_seconds(not_after));
    }
}

/// One upstream: the connections to it and what goes wrong there.
pub(crate) struct UpstreamMetrics {
    pub(crate) traffic: TrafficMetrics,
    pub(crate) tokens: TokenMetrics,
    pub(crate) connect_seconds: LazyHistogram,
    pub(crate) response_head_seconds: LazyHistogram,
    name: Name,
    up: IntGauge,
    open: ByLabel<Protocol, IntGauge>,
    connects: ByLabel<ConnectResult, IntCounter>,
    failures: ByLabel<FailureReason, IntCounter>,
    retries: ByLabel<RetryReason, IntCounter>,
    relaxed: ByLabel<Rule, IntGauge>,
    refusals: ByLabel<Rule, IntCounter>,
    provider_keys: Box<[Name]>,
    keys: ByLabel<ProviderKeyState, IntGauge>,
    limit_remaining: ByLabel<Resource, Arc<Ratio>>,
}

impl UpstreamMetrics {
    /// `known`: the configuration before this one had it too, so its circuit is what it is.
    fn new(
        families: &Families,
        name: &Name,
        provider: Provider,
        provider_keys: Box<[Name]>,
        models: &ModelTable,
        known: bool,
    ) -> Self {
        let upstream = name.as_str();
        families.upstream_info.with_label_values(&[upstream, provider.as_str()]).set(1);
        let up = families.upstream_up.with_label_values(&[upstream]);
        if !known {
            up.set(1);
        }
        Self {
            traffic: TrafficMetrics::new(families, Some(name)),
            tokens: TokenMetrics::new(families, name, models),
            connect_seconds: LazyHistogram::new(&families.upstream_connect_duration, [name.into()]),
            response_head_seconds: LazyHistogram::new(&families.upstream_response_head, [name.into()]),
            name: name.clone(),
            up,
            open: ByLabel::new(|protocol: Protocol| {
                families.upstream_open_connections.with_label_values(&[upstream, protocol.as_str()])
            }),
            connects: ByLabel::new(|result: ConnectResult| {
                families.upstream_connects.with_label_values(&[upstream, result.as_str()])
            }),
            failures: ByLabel::new(|reason: FailureReason| {
                families.upstream_failures.with_label_values(&[upstream, reason.as_str()])
            }),
            retries: ByLabel::new(|reason: RetryReason| {
                families.upstream_retries.with_label_values(&[upstream, reason.as_str()])
            }),
            relaxed: ByLabel::new(|rule: Rule| families.rules_relaxed.with_label_values(&[upstream, rule.as_str()])),
            refusals: ByLabel::new(|rule: Rule| {
                families.retention_refusals.with_label_values(&[upstream, rule.as_str()])
            }),
            provider_keys,
            keys: ByLabel::new(|state: ProviderKeyState| {
                families.upstream_keys.with_label_values(&[upstream, state.as_str()])
            }),
            limit_remaining: ByLabel::new(|resource: Resource| {
                families.upstream_limit_remaining.get([name.into(), resource.into()])
            }),
        }
    }

    /// For log lines.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn set_up(&self, up: bool) {
        self.up.set(up.into());
    }

    pub(crate) fn open(&self, protocol: Protocol) -> &IntGauge {
        self.open.get(protocol)
    }

    pub(crate) fn connects(&self, result: ConnectResult) -> &IntCounter {
        self.connects.get(result)
    }

    pub(crate) fn failures(&self, reason: FailureReason) -> &IntCounter {
        self.failures.get(reason)
    }

    /// A retention rule is in force or not.
    pub(crate) fn set_relaxed(&self, rule: Rule, relaxed: bool) {
        self.relaxed.get(rule).set(relaxed.into());
    }

    /// A request was refused by this rule.
    pub(crate) fn retention_refused(&self, rule: Rule) {
        self.refusals.get(rule).inc();
    }

    /// The name of the operator's key in this place, for log lines. `None` if `Names` were not told of it.
    pub(crate) fn provider_key(&self, place: usize) -> Option<&Name> {
        self.provider_keys.get(place)
    }

    /// How many of the operator's keys may be used now, and how many are left alone.
    pub(crate) fn set_provider_keys(&self, ready: usize, cooling: usize) {
        self.keys.get(ProviderKeyState::Ready).set(gauge_value(ready));
        self.keys.get(ProviderKeyState::Cooling).set(gauge_value(cooling));
    }

    /// What is left of a limit of the provider's, by its own words: 1 is all of it, the lowest over the operator's keys.
    /// What is no number changes nothing. Absent until the first call.
    pub(crate) fn limit_remaining(&self, resource: Resource, ratio: f64) {
        self.limit_remaining.get(resource).set(ratio);
    }

    pub(crate) fn retries(&self, reason: RetryReason) -> &IntCounter {
        self.retries.get(reason)
    }
}

/// What calls to one upstream cost in tokens, and how fast they come.
pub(crate) struct TokenMetrics {
    /// Calls that no price covers, while there are prices.
    pub(crate) unpriced: IntCounter,
    estimated: ByLabel<TokenDirection, IntCounter>,
    missing: ByLabel<MissingReason, IntCounter>,
    request_tokens: ByLabel<TokenDirection, LazyHistogram>,
    /// By `ModelId`; each made when its model is first met.
    models: Box<[OnceLock<ModelMetrics>]>,
    table: ModelTable,
    upstream: Name,
    tokens_family: IntCounterVec,
    first_token_family: HistogramVec,
    per_token_family: HistogramVec,
    cost_family: Family<Cost>,
}

/// The series of one model at one upstream.
pub(crate) struct ModelMetrics {
    tokens: ByLabel<TokenKind, IntCounter>,
    /// Request head read to first output event relayed.
    pub(crate) first_token_seconds: LazyHistogram,
    /// Between output tokens, one observation a stream.
    pub(crate) per_token_seconds: LazyHistogram,
    /// Without prices it never comes into being.
    cost: OnceLock<Arc<Cost>>,
    cost_family: Family<Cost>,
    labels: [LabelValue; 2],
}

impl TokenMetrics {
    fn new(families: &Families, name: &Name, models: &ModelTable) -> Self {
        let upstream = name.as_str();
        Self {
            estimated: ByLabel::new(|direction: TokenDirection| {
                families.tokens_estimated.with_label_values(&[upstream, direction.as_str()])
            }),
            missing: ByLabel::new(|reason: MissingReason| {
                families.usage_missing.with_label_values(&[upstream, reason.as_str()])
            }),
            request_tokens: ByLabel::new(|direction: TokenDirection| {
                LazyHistogram::new(&families.request_tokens, [name.into(), direction.into()])
            }),
            models: (0..models.len()).map(|_| OnceLock::new()).collect(),
            table: models.clone(),
            upstream: name.clone(),
            tokens_family: families.tokens.clone(),
            first_token_family: families.time_to_first_token.clone(),
            per_token_family: families.time_per_output_token.clone(),
            cost_family: families.cost.clone(),
            unpriced: families.unpriced.with_label_values(&[upstream]),
        }
    }

    /// Tokens that are charged without a report.
    pub(crate) fn estimated(&self, direction: TokenDirection) -> &IntCounter {
        self.estimated.get(direction)
    }

    /// A billed call without figures.
    pub(crate) fn missing(&self, reason: MissingReason) -> &IntCounter {
        self.missing.get(reason)
    }

    /// How big a successful call was.
    pub(crate) fn observe_request(&self, direction: TokenDirection, tokens: u64) {
        // A float holds 53 bits, a count of tokens 27.
        self.request_tokens.get(direction).observe_value(tokens as f64);
    }

    /// The series of `model`. The first call makes all kinds of tokens appear, so that ratios of them have zeros. Another
    /// table's id counts as `other`.
    pub(crate) fn model(&self, model: ModelId) -> &ModelMetrics {
        let place = if usize::from(model.0) < self.models.len() { model } else { ModelId::OTHER };
        self.models[usize::from(place.0)].get_or_init(|| {
            let label = LabelValue::Model(self.table.label(place).into());
            let upstream = LabelValue::from(&self.upstream);
            ModelMetrics {
                tokens: ByLabel::new(|kind: TokenKind| {
                    self.tokens_family.with_label_values(&[
                        upstream.as_ref(),
                        label.as_ref(),
                        kind.direction().as_str(),
                        kind.as_str(),
                    ])
                }),
                first_token_seconds: LazyHistogram::new(&self.first_token_family, [upstream.clone(), label.clone()]),
                per_token_seconds: LazyHistogram::new(&self.per_token_family, [upstream.clone(), label.clone()]),
                cost: OnceLock::new(),
                cost_family: self.cost_family.clone(),
                labels: [upstream, label],
            }
        })
    }
}

impl ModelMetrics {
    /// Tokens that the provider reported.
    pub(crate) fn tokens(&self, kind: TokenKind) -> &IntCounter {
        self.tokens.get(kind)
    }

    /// What a call cost, in 10^-12 USD. The first call makes the series appear, so without prices there is none.
    pub(crate) fn cost(&self, picodollars: u64) {
        self.cost.get_or_init(|| self.cost_family.get(self.labels.clone())).add(picodollars);
    }
}

/// The requests that go to one upstream, or to none.
pub(crate) struct TrafficMetrics {
    /// Held up by a `GaugeGuard` for as long as a stream is open.
    pub(crate) in_flight: IntGauge,
    pub(crate) request_bytes: IntCounter,
    pub(crate) response_bytes: IntCounter,
    /// The longest silence of each stream, once, at its end.
    pub(crate) stall_seconds: LazyHistogram,
    upstream: LabelValue,
    responses: ByLabel<StatusLabel, ByLabel<Source, IntCounter>>,
    requests_family: IntCounterVec,
    requests: ByLabel<Operation, ByLabel<Mode, OnceLock<ByLabel<Outcome, IntCounter>>>>,
    durations: ByLabel<Operation, ByLabel<Streaming, LazyHistogram>>,
}

impl TrafficMetrics {
    fn new(families: &Families, name: Option<&Name>) -> Self {
        let upstream = name.map_or(LabelValue::Static(NONE), LabelValue::from);
        let text = upstream.as_ref();
        let bytes = |direction: Direction| families.body_bytes.with_label_values(&[text, direction.as_str()]);
        Self {
            in_flight: families.requests_in_flight.with_label_values(&[text]),
            request_bytes: bytes(Direction::Request),
            response_bytes: bytes(Direction::Response),
            stall_seconds: LazyHistogram::new(&families.stream_stall, [upstream.clone()]),
            responses: ByLabel::new(|status: StatusLabel| {
                ByLabel::new(|source: Source| {
                    families.responses.with_label_values(&[text, status.as_str(), source.as_str()])
                })
            }),
            requests_family: families.requests.clone(),
            requests: ByLabel::new(|_| ByLabel::new(|_| OnceLock::new())),
            durations: ByLabel::new(|operation: Operation| {
                ByLabel::new(|streaming: Streaming| {
                    LazyHistogram::new(
                        &families.request_duration,
                        [upstream.clone(), operation.into(), streaming.into()],
                    )
                })
            }),
            upstream,
        }
    }

    /// Counts a request once, when its last byte is gone or it broke. All outcomes of its (operation, mode) appear
    /// with the first, so that alerts see zeros.
    pub(crate) fn finished(
        &self,
        operation: Operation,
        mode: Mode,
        streaming: bool,
        outcome: Outcome,
        duration: Duration,
    ) {
        self.requests
            .get(operation)
            .get(mode)
            .get_or_init(|| {
                ByLabel::new(|outcome: Outcome| {
                    self.requests_family.with_label_values(&[
                        self.upstream.as_ref(),
                        operation.as_str(),
                        mode.as_str(),
                        outcome.as_str(),
                    ])
                })
            })
            .get(outcome)
            .inc();
        self.durations.get(operation).get(streaming.into()).observe(duration);
    }

    /// Counts a response head.
    pub(crate) fn response(&self, status: u16, source: Source) {
        self.responses.get(status.into()).get(source).inc();
    }
}

/// Raises a gauge until dropped. Owns its handle, so it may outlive a reload.
#[derive(Debug)]
pub(crate) struct GaugeGuard {
    gauge: IntGauge,
}

impl GaugeGuard {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self { gauge: gauge.clone() }
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// A histogram that is exported from its first observation on.
pub(crate) struct LazyHistogram {
    family: HistogramVec,
    labels: Box<[LabelValue]>,
    child: OnceLock<prometheus::Histogram>,
}

impl LazyHistogram {
    fn new<const N: usize>(family: &HistogramVec, labels: [LabelValue; N]) -> Self {
        Self { family: family.clone(), labels: labels.into(), child: OnceLock::new() }
    }

    pub(crate) fn observe(&self, duration: Duration) {
        self.observe_value(duration.as_secs_f64());
    }

    /// Of a histogram that is not of durations.
    fn observe_value(&self, value: f64) {
        self.child.get_or_init(|| self.family.with_label_values(&self.labels)).observe(value);
    }
}

/// One `T` for each value of a label.
struct ByLabel<L, T> {
    items: Box<[T]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, T> ByLabel<L, T> {
    fn new(item: impl FnMut(L) -> T) -> Self {
        Self { items: L::ALL.iter().copied().map(item).collect(), label: PhantomData }
    }

    fn get(&self, label: L) -> &T {
        // `index` is the place in `ALL`; a test goes through all sets.
        &self.items[label.index()]
    }
}

/// What a label's value is made of: a label enum, a configured name or a label of the model table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LabelValue {
    Model(Arc<str>),
    Name(Name),
    Static(&'static str),
}

impl AsRef<str> for LabelValue {
    fn as_ref(&self) -> &str {
        match self {
            Self::Model(label) => label,
            Self::Name(name) => name.as_str(),
            Self::Static(text) => text,
        }
    }
}

impl From<&Name> for LabelValue {
    fn from(name: &Name) -> Self {
        Self::Name(name.clone())
    }
}

impl<L: Label> From<L> for LabelValue {
    fn from(label: L) -> Self {
        Self::Static(label.as_str())
    }
}

/// Samples how late the runtime's timers are and how many tasks it has, ten times a second, until dropped. Each
/// worker runs its own; the task gauge is their sum. The tasks of a `LocalSet` are not seen, those of a `LocalRuntime`
/// are. tokio's timers tick in milliseconds, so a millisecond of lag is rest, not load.
///
/// `lag` is told by how much all of the latest samples were late at least, for whoever has to decide whether more can be
/// taken on.
pub(crate) async fn sample_lag(handles: Arc<Handles>, lag: Rc<Cell<Duration>>) {
    let process = handles.process().clone();
    // The handles of a configuration must not live on here after the next reload.
    drop(handles);
    let runtime = tokio::runtime::Handle::current().metrics();
    let mut tasks = TaskShare { gauge: process.runtime_tasks.clone(), share: 0 };
    let mut recent = [Duration::ZERO; LAG_SAMPLES];
    loop {
        tasks.set(runtime.num_alive_tasks());
        let due = tokio::time::Instant::now() + LAG_INTERVAL;
        tokio::time::sleep_until(due).await;
        let late = due.elapsed();
        process.runtime_lag.observe(late);
        recent.rotate_left(1);
        recent[recent.len() - 1] = late;
        lag.set(recent.into_iter().min().unwrap_or_default());
    }
}

/// One worker's part of a gauge that all workers share. Takes its part out again when dropped.
struct TaskShare {
    gauge: IntGauge,
    share: i64,
}

impl TaskShare {
    fn set(&mut self, tasks: usize) {
        let share = gauge_value(tasks);
        self.gauge.add(share - self.share);
        self.share = share;
    }
}

impl Drop for TaskShare {
    fn drop(&mut self) {
        self.gauge.sub(self.share);
    }
}

/// The catalogue in code. The help texts are the questions of `docs/metrics.md`; a test compares them.
struct Families {
    build_info: IntGaugeVec,
    ready: IntGauge,
    draining: IntGauge,
    config_reloads: IntCounterVec,
    config_last_reload_successful: IntGauge,
    config_last_reload_success_timestamp: IntGauge,
    config_fingerprint: IntGauge,
    guard_active: IntGaugeVec,
    guards: IntCounterVec,
    runtime_workers: IntGauge,
    runtime_tasks: IntGauge,
    runtime_lag: HistogramVec,

    open_connections: IntGaugeVec,
    connections: IntCounterVec,
    connections_refused: IntCounterVec,
    handshakes: IntCounterVec,
    handshake_duration: HistogramVec,
    certificate_not_after: IntGaugeVec,
    requests: IntCounterVec,
    responses: IntCounterVec,
    requests_in_flight: IntGaugeVec,
    request_duration: HistogramVec,
    overhead: HistogramVec,
    body_bytes: IntCounterVec,
    stream_stall: HistogramVec,

    tokens: IntCounterVec,
    tokens_estimated: IntCounterVec,
    usage_missing: IntCounterVec,
    request_tokens: HistogramVec,
    time_to_first_token: HistogramVec,
    time_per_output_token: HistogramVec,

    upstream_info: IntGaugeVec,
    upstream_up: IntGaugeVec,
    upstream_open_connections: IntGaugeVec,
    upstream_connects: IntCounterVec,
    upstream_connect_duration: HistogramVec,
    upstream_response_head: HistogramVec,
    upstream_failures: IntCounterVec,
    upstream_retries: IntCounterVec,
    rules_relaxed: IntGaugeVec,
    rules_relaxed_by_keys: IntGaugeVec,
    retention_refusals: IntCounterVec,

    authentication_failures: IntCounterVec,
    api_keys: IntGaugeVec,
    keys_reloads: IntCounterVec,
    keys_last_reload_successful: IntGauge,
    keys: KeyFamilies,
    cost: Family<Cost>,
    unpriced: IntCounterVec,
    upstream_limit_remaining: Family<Ratio>,
    upstream_keys: IntGaugeVec,
    limit_decisions: IntCounterVec,
    limit_overrun_tokens: IntCounter,
    usage_events: IntCounterVec,
    usage_event_disk_failures: IntCounter,
}

impl Families {
    fn register(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help).expect(STATIC));
        let gauges = |name: &str, labels: &[&str], help: &str| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels).expect(STATIC))
        };
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help).expect(STATIC));
        let counters = |name: &str, labels: &[&str], help: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels).expect(STATIC))
        };
        let histograms = |name: &str, buckets: &[f64], labels: &[&str], help: &str| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, HistogramVec::new(options, labels).expect(STATIC))
        };
        Self {
            build_info: gauges("nullhop_build_info", &["version", "revision"], "Which build runs here? Constant 1."),
            ready: gauge("nullhop_ready", "Would readiness say yes?"),
            draining: gauge("nullhop_draining", "Is it shutting down?"),
            config_reloads: counters("nullhop_config_reloads_total", &[ReloadResult::NAME], "Do reloads work?"),
            config_last_reload_successful: gauge(
                "nullhop_config_last_reload_successful",
                "Is the running configuration the newest one?",
            ),
            config_last_reload_success_timestamp: gauge(
                "nullhop_config_last_reload_success_timestamp_seconds",
                "Since when?",
            ),
            config_fingerprint: gauge(
                "nullhop_config_fingerprint",
                "Do all PoPs run the same configuration? 48 bits over the configuration without its secrets.",
            ),
            guard_active: gauges("nullhop_guard_active", &[ProcessGuard::NAME], "Is every retention guard in force?"),
            guards: counters(
                "nullhop_guard_total",
                &[Guard::NAME],
                "Which guard against hostile or broken peers acts, and how often?",
            ),
            runtime_workers: gauge("nullhop_runtime_workers", "How many runtime threads?"),
            runtime_tasks: gauge("nullhop_runtime_tasks", "How many live tasks?"),
            runtime_lag: histograms(
                "nullhop_runtime_lag_seconds",
                LAG,
                &[],
                "Is the runtime saturated? A timer's lateness, sampled 10 times a second.",
            ),

            open_connections: gauges(
                "nullhop_open_connections",
                &["listener", Protocol::NAME],
                "How many clients are connected?",
            ),
            connections: counters("nullhop_connections_total", &["listener"], "How fast do they come?"),
            connections_refused: counters(
                "nullhop_connections_refused_total",
                &["listener", RefusedReason::NAME],
                "Who is turned away before a request?",
            ),
            handshakes: counters(
                "nullhop_tls_handshakes_total",
                &["listener", HandshakeResult::NAME],
                "Do handshakes fail?",
            ),
            handshake_duration: histograms(
                "nullhop_tls_handshake_duration_seconds",
                CONNECT,
                &["listener"],
                "Is TLS slow?",
            ),
            certificate_not_after: gauges(
                "nullhop_tls_certificate_not_after_timestamp_seconds",
                &["certificate"],
                "When does it expire?",
            ),
            requests: counters(
                "nullhop_requests_total",
                &["upstream", Operation::NAME, Mode::NAME, Outcome::NAME],
                "The SLI. Bad = outcome internal or unavailable.",
            ),
            responses: counters(
                "nullhop_responses_total",
                &["upstream", StatusLabel::NAME, Source::NAME],
                "Which status codes, and did we or the provider write them?",
            ),
            requests_in_flight: gauges("nullhop_requests_in_flight", &["upstream"], "How many streams are open?"),
            request_duration: histograms(
                "nullhop_request_duration_seconds",
                DURATION,
                &["upstream", Operation::NAME, Streaming::NAME],
                "How long do calls last, head to last byte?",
            ),
            overhead: histograms(
                "nullhop_overhead_seconds",
                OVERHEAD,
                &[Phase::NAME],
                "What does nullhop itself add? Chunks are sampled 1 in 64.",
            ),
            body_bytes: counters("nullhop_body_bytes_total", &["upstream", Direction::NAME], "How much is relayed?"),
            stream_stall: histograms(
                "nullhop_stream_stall_seconds",
                STALL,
                &["upstream"],
                "The longest silence in each stream.",
            ),

            tokens: counters(
                "nullhop_tokens_total",
                &["upstream", "model", TokenDirection::NAME, TokenKind::NAME],
                "Reported (billable) tokens: volume, cache hit share, reasoning share.",
            ),
            tokens_estimated: counters(
                "nullhop_tokens_estimated_total",
                &["upstream", TokenDirection::NAME],
                "Tokens charged to limits without a provider's report.",
            ),
            usage_missing: counters(
                "nullhop_usage_missing_total",
                &["upstream", MissingReason::NAME],
                "Which calls ended with no usage, so that limits run on estimates?",
            ),
            request_tokens: histograms(
                "nullhop_request_tokens",
                TOKENS,
                &["upstream", TokenDirection::NAME],
                "How big are calls? One observation per successful call.",
            ),
            time_to_first_token: histograms(
                "nullhop_time_to_first_token_seconds",
                FIRST_TOKEN,
                &["upstream", "model"],
                "Request head read to first output event relayed; streaming only.",
            ),
            time_per_output_token: histograms(
                "nullhop_time_per_output_token_seconds",
                PER_TOKEN,
                &["upstream", "model"],
                "(last - first output event) / (output tokens - 1), once, at the end; streaming only.",
            ),

            upstream_info: gauges(
                "nullhop_upstream_info",
                &["upstream", Provider::NAME],
                "What is behind a name? Constant 1.",
            ),
            upstream_up: gauges("nullhop_upstream_up", &["upstream"], "Is the circuit closed (1) or open (0)?"),
            upstream_open_connections: gauges(
                "nullhop_upstream_open_connections",
                &["upstream", Protocol::NAME],
                "Does the pool work?",
            ),
            upstream_connects: counters(
                "nullhop_upstream_connects_total",
                &["upstream", ConnectResult::NAME],
                "Can we reach the provider?",
            ),
            upstream_connect_duration: histograms(
                "nullhop_upstream_connect_duration_seconds",
                CONNECT,
                &["upstream"],
                "DNS, TCP and TLS together.",
            ),
            upstream_response_head: histograms(
                "nullhop_upstream_response_head_seconds",
                DURATION,
                &["upstream"],
                "Request sent to response head: the provider's own wait.",
            ),
            upstream_failures: counters(
                "nullhop_upstream_failures_total",
                &["upstream", FailureReason::NAME],
                "How do calls break?",
            ),
            upstream_retries: counters(
                "nullhop_upstream_retries_total",
                &["upstream", RetryReason::NAME],
                "Retries, possible only until the first body byte is sent (nothing is kept to replay).",
            ),
            rules_relaxed: gauges(
                "nullhop_retention_rules_relaxed",
                &["upstream", Rule::NAME],
                "Which retention rules are relaxed (1) by configuration?",
            ),
            rules_relaxed_by_keys: gauges(
                "nullhop_retention_rules_relaxed_by_keys",
                &[Rule::NAME],
                "How many keys relax a retention rule?",
            ),
            retention_refusals: counters(
                "nullhop_retention_refusals_total",
                &["upstream", Rule::NAME],
                "Which retention rules refuse requests, and how often?",
            ),

            authentication_failures: counters(
                "nullhop_authentication_failures_total",
                &[AuthenticationFailure::NAME],
                "Wrong keys, or someone guessing?",
            ),
            api_keys: gauges("nullhop_api_keys", &[KeyState::NAME], "How many keys are loaded?"),
            keys_reloads: counters(
                "nullhop_keys_reloads_total",
                &[ReloadResult::NAME],
                "Is the file of keys taken when it changes?",
            ),
            keys_last_reload_successful: gauge(
                "nullhop_keys_last_reload_successful",
                "Are the keys in force those of the file?",
            ),
            keys: register(registry, KeyFamilies::new()),
            cost: register(
                registry,
                Family::new(
                    "nullhop_cost_usd_total",
                    &["upstream", "model"],
                    "Spend by the configured price table; absent without one.",
                ),
            ),
            unpriced: counters(
                "nullhop_unpriced_requests_total",
                &["upstream"],
                "Calls the price table does not cover.",
            ),
            upstream_limit_remaining: register(
                registry,
                Family::new(
                    "nullhop_upstream_limit_remaining_ratio",
                    &["upstream", Resource::NAME],
                    "Headroom in the provider's own rate limit headers; lowest over the managed keys.",
                ),
            ),
            upstream_keys: gauges(
                "nullhop_upstream_keys",
                &["upstream", ProviderKeyState::NAME],
                "How many of the operator's keys can be used?",
            ),
            limit_decisions: counters(
                "nullhop_limit_decisions_total",
                &[LimitLabel::NAME, Decision::NAME, Basis::NAME],
                "Which limit bites, and on shared or local knowledge?",
            ),
            limit_overrun_tokens: counter(
                "nullhop_limit_overrun_tokens_total",
                "Tokens settled beyond what was reserved: how leaky are limits?",
            ),
            usage_events: counters("nullhop_usage_events_total", &[EventResult::NAME], "Is every usage event written?"),
            usage_event_disk_failures: counter(
                "nullhop_usage_event_disk_failures_total",
                "How often does the disk refuse the journal?",
            ),
        }
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, family: C) -> C {
    registry.register(Box::new(family.clone())).expect(STATIC);
    family
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Names, labels and buckets are constants of this file, and the tests register them all.
const STATIC: &str = "a constant of the metrics module is wrong";

const LAG_INTERVAL: Duration = Duration::from_millis(100);

/// So many samples in a row must be late before it counts: a moment that the machine gave to others is no overload.
const LAG_SAMPLES: usize = 5;

/// Set D. Doubling from 10 ms to 11 minutes, as OpenTelemetry's GenAI conventions start.
const DURATION: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// Set O.
const OVERHEAD: &[f64] = &[0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25];

/// Set C.
const CONNECT: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Set S.
const STALL: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0];

/// Set F. As OpenTelemetry's, where a provider's latency can fall.
const FIRST_TOKEN: &[f64] = &[0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0];

/// Set P.
const PER_TOKEN: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];

/// Set T. Powers of four, as OpenTelemetry's GenAI conventions start.
const TOKENS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// Set L.
const LAG: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5];

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::runtime::Builder;
    use tokio::runtime::LocalOptions;

    use super::*;
    use crate::telemetry::catalogue::Sample;
    use crate::telemetry::catalogue::samples;

    const OPENAI: UpstreamId = UpstreamId(0);
    const MAIN: ListenerId = ListenerId(0);

    fn names(upstreams: &[(&'static str, Provider)]) -> Names {
        Names::new(["main"], ["edge"], upstreams.iter().copied()).unwrap()
    }

    fn two_upstreams() -> Names {
        names(&[("openai", Provider::Openai), ("claude", Provider::Anthropic)])
    }

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let found: Vec<Sample> =
            samples(&metrics.render()).into_iter().filter(|sample| sample.series() == series).collect();
        assert!(found.len() <= 1, "{series} twice");
        found.first().map(|sample| sample.value)
    }

    fn count(metrics: &Metrics, name: &str) -> usize {
        samples(&metrics.render()).iter().filter(|sample| sample.name == name).count()
    }

    #[test]
    fn handles_cross_threads() {
        fn crosses<T: Send + Sync + 'static>() {}
        crosses::<Metrics>();
        crosses::<Handles>();
        crosses::<GaugeGuard>();
    }

    #[test]
    fn what_is_known_starts_at_zero() {
        let metrics = Metrics::new(None);
        let _handles = metrics.bind(&two_upstreams());
        for (name, series) in [
            ("nullhop_ready", 1),
            ("nullhop_draining", 1),
            ("nullhop_config_reloads_total", ReloadResult::ALL.len()),
            ("nullhop_guard_active", ProcessGuard::ALL.len()),
            ("nullhop_guard_total", Guard::ALL.len()),
            ("nullhop_open_connections", Protocol::ALL.len()),
            ("nullhop_connections_total", 1),
            ("nullhop_connections_refused_total", RefusedReason::ALL.len()),
            ("nullhop_tls_handshakes_total", HandshakeResult::ALL.len()),
            // The two upstreams and `none`.
            ("nullhop_requests_in_flight", 3),
            ("nullhop_body_bytes_total", 3 * Direction::ALL.len()),
            ("nullhop_responses_total", 3 * StatusLabel::ALL.len() * Source::ALL.len()),
            // Not `none`.
            ("nullhop_upstream_open_connections", 2 * Protocol::ALL.len()),
            ("nullhop_upstream_connects_total", 2 * ConnectResult::ALL.len()),
            ("nullhop_upstream_failures_total", 2 * FailureReason::ALL.len()),
            ("nullhop_upstream_retries_total", 2 * RetryReason::ALL.len()),
            ("nullhop_tokens_estimated_total", 2 * TokenDirection::ALL.len()),
            ("nullhop_usage_missing_total", 2 * MissingReason::ALL.len()),
            ("nullhop_unpriced_requests_total", 2),
            ("nullhop_upstream_keys", 2 * ProviderKeyState::ALL.len()),
            ("nullhop_authentication_failures_total", AuthenticationFailure::ALL.len()),
            ("nullhop_api_keys", KeyState::ALL.len()),
            ("nullhop_keys_reloads_total", ReloadResult::ALL.len()),
            ("nullhop_limit_decisions_total", LimitLabel::ALL.len() * Decision::ALL.len()),
            ("nullhop_limit_overrun_tokens_total", 1),
            ("nullhop_usage_events_total", EventResult::ALL.len()),
            ("nullhop_usage_event_disk_failures_total", 1),
            // Starts with a price.
            ("nullhop_cost_usd_total", 0),
            // Starts when the provider told it.
            ("nullhop_upstream_limit_remaining_ratio", 0),
            // Start with keys.
            ("nullhop_key_requests_total", 0),
            ("nullhop_key_tokens_total", 0),
            ("nullhop_key_limit_used_ratio", 0),
            // Start when a model is met.
            ("nullhop_tokens_total", 0),
        ] {
            let found: Vec<Sample> =
                samples(&metrics.render()).into_iter().filter(|sample| sample.name == name).collect();
            assert_eq!(found.len(), series, "{name}");
            assert!(found.iter().all(|sample| sample.value == 0.0), "{name}");
        }
        assert_eq!(value(&metrics, "nullhop_upstream_up{upstream=claude}"), Some(1.0));
        // Starts at the first request.
        assert_eq!(count(&metrics, "nullhop_requests_total"), 0);
        // Starts when a certificate was read.
        assert_eq!(count(&metrics, "nullhop_tls_certificate_not_after_timestamp_seconds"), 0);
        // Start at use.
        assert!(!metrics.render().contains(" histogram"));
    }

    #[test]
    fn the_first_request_brings_all_outcomes() {
        let metrics = Metrics::new(None);
        let handles = metrics.bind(&two_upstreams());
        let traffic = handles.traffic(Some(OPENAI));
        let second = Duration::from_secs(1);
        traffic.finished(Operation::Messages, Mode::Byok, true, Outcome::UpstreamCut, second);
        traffic.finished(Operation::Messages, Mode::Byok, false, Outcome::Ok, second);

        assert_eq!(count(&metrics, "nullhop_requests_total"), Outcome::ALL.len());
        let series = "nullhop_requests_total{mode=byok,operation=messages,outcome=upstream_cut,upstream=openai}";
        assert_eq!(value(&metrics, series), Some(1.0));
        assert_eq!(count(&metrics, "nullhop_request_duration_seconds_count"), 2);
        let series = "nullhop_request_duration_seconds_bucket\
                      {le=1.28,operation=messages,streaming=true,upstream=openai}";
        assert_eq!(value(&metrics, series), Some(1.0));

        handles.traffic(None).finished(Operation::Other, Mode::None, false, Outcome::ClientError, second);
        let series = "nullhop_requests_total{mode=none,operation=other,outcome=client_error,upstream=none}";
        assert_eq!(value(&metrics, series), Some(1.0));
    }

    #[test]
    fn a_model_brings_all_kinds_of_tokens() {
        let metrics = Metrics::new(None);
        let handles = metrics.bind(&two_upstreams().with_models(ModelTable::new(["house-*"])));
        let tokens = &handles.upstream(OPENAI).tokens;
        let model = handles.models().find(b"house-7b");
        tokens.model(model).tokens(TokenKind::CacheRead).inc_by(5);
        assert_eq!(count(&metrics, "nullhop_tokens_total"), TokenKind::ALL.len());
        let series = |direction: &str, kind: &str| {
            value(
                &metrics,
                &format!("nullhop_tokens_total{{direction={direction},kind={kind},model=house-*,upstream=openai}}"),
            )
        };
        assert_eq!(series("input", "cache_read"), Some(5.0));
        assert_eq!(series("output", "reasoning"), Some(0.0));
        // A table of another configuration may be longer.
        tokens.model(ModelId(u8::MAX)).tokens(TokenKind::Response).inc();
        let other = "nullhop_tokens_total{direction=output,kind=response,model=other,upstream=openai}";
        assert_eq!(value(&metrics, other), Some(1.0));
        tokens.observe_request(TokenDirection::Input, 300);
        let series = "nullhop_request_tokens_bucket{direction=input,le=1024,upstream=openai}";
        assert_eq!(value(&metrics, series), Some(1.0));
    }

    #[test]
    fn money_appears_with_a_price_and_goes_on_after_a_reload() {
        let metrics = Metrics::new(None);
        let names = two_upstreams().with_models(ModelTable::new(["house-*"]));
        let handles = metrics.bind(&names);
        let model = handles.models().find(b"house-7b");
        handles.upstream(OPENAI).tokens.model(model).tokens(TokenKind::Response).inc();
        assert_eq!(count(&metrics, "nullhop_cost_usd_total"), 0);
        // 0.1 is no float, and ten of them make less than 1 where they are added as such.
        for _ in 0..5 {
            handles.upstream(OPENAI).tokens.model(model).cost(100_000_000_000);
        }
        let series = "nullhop_cost_usd_total{model=house-*,upstream=openai}";
        assert_eq!(value(&metrics, series), Some(0.5));
        let again = metrics.bind(&names);
        for _ in 0..5 {
            again.upstream(OPENAI).tokens.model(model).cost(100_000_000_000);
        }
        assert_eq!(value(&metrics, series), Some(1.0));
        // What ends under the old configuration counts as well.
        handles.upstream(OPENAI).tokens.model(model).cost(1);
        assert_eq!(value(&metrics, series), Some(1.000_000_000_001));
        assert!(metrics.render().contains("# TYPE nullhop_cost_usd_total counter\n"));
    }

    #[test]
    fn what_a_provider_has_left_is_absent_until_told_and_ends_with_its_upstream() {
        let metrics = Metrics::new(None);
        let old = metrics.bind(&two_upstreams());
        old.upstream(UpstreamId(1)).limit_remaining(Resource::InputTokens, 0.25);
        old.upstream(UpstreamId(1)).limit_remaining(Resource::Requests, f64::NAN);
        old.upstream(UpstreamId(1)).set_provider_keys(2, 1);
        let name = "nullhop_upstream_limit_remaining_ratio";
        assert_eq!(value(&metrics, &format!("{name}{{resource=input_tokens,upstream=claude}}")), Some(0.25));
        assert_eq!(count(&metrics, name), 1);
        assert_eq!(value(&metrics, "nullhop_upstream_keys{state=cooling,upstream=claude}"), Some(1.0));

        let _same = metrics.bind(&two_upstreams());
        assert_eq!(value(&metrics, &format!("{name}{{resource=input_tokens,upstream=claude}}")), Some(0.25));
        assert_eq!(value(&metrics, "nullhop_upstream_keys{state=ready,upstream=claude}"), Some(2.0));

        let _openai_only = metrics.bind(&names(&[("openai", Provider::Openai)]));
        // An old exchange ends.
        old.upstream(UpstreamId(1)).limit_remaining(Resource::Tokens, 0.5);
        old.upstream(UpstreamId(1)).set_provider_keys(1, 2);
        assert_eq!(count(&metrics, name), 0);
        assert_eq!(value(&metrics, "nullhop_upstream_keys{state=ready,upstream=claude}"), None);

        let _back = metrics.bind(&two_upstreams());
        assert_eq!(count(&metrics, name), 0);
        assert_eq!(value(&metrics, "nullhop_upstream_keys{state=ready,upstream=claude}"), Some(0.0));
    }

    #[test]
    fn limits_and_keys_are_counted_where_they_belong() {
        let metrics = Metrics::new(None);
        let process = &metrics.process;
        for reason in AuthenticationFailure::ALL {
            for _ in 0..=reason.index() {
                process.authentication_failed(*reason);
            }
        }
        process.limit_decided(LimitLabel::Budget, Decision::Deny);
        process.set_api_keys(100_000, 3);
        process.keys_loaded(false);
        process.usage_events_written.inc_by(7);
        process.usage_events_lost.inc();
        for (series, expected) in [
            ("nullhop_authentication_failures_total{reason=missing}", 1.0),
            ("nullhop_authentication_failures_total{reason=malformed}", 2.0),
            ("nullhop_authentication_failures_total{reason=unknown}", 3.0),
            ("nullhop_authentication_failures_total{reason=revoked}", 4.0),
            ("nullhop_authentication_failures_total{reason=expired}", 5.0),
            ("nullhop_limit_decisions_total{basis=local,decision=deny,limit=budget}", 1.0),
            ("nullhop_limit_decisions_total{basis=local,decision=allow,limit=budget}", 0.0),
            ("nullhop_limit_decisions_total{basis=local,decision=deny,limit=tokens}", 0.0),
            ("nullhop_api_keys{state=active}", 100_000.0),
            ("nullhop_api_keys{state=revoked}", 3.0),
            ("nullhop_keys_reloads_total{result=error}", 1.0),
            ("nullhop_keys_last_reload_successful", 0.0),
            ("nullhop_usage_events_total{result=written}", 7.0),
            ("nullhop_usage_events_total{result=lost}", 1.0),
        ] {
            assert_eq!(value(&metrics, series), Some(expected), "{series}");
        }
        process.keys_loaded(true);
        assert_eq!(value(&metrics, "nullhop_keys_last_reload_successful"), Some(1.0));
    }

    #[test]
    fn provider_keys_have_names() {
        let keys = [vec!["first", "second"], vec![]];
        let metrics = Metrics::new(None);
        let handles = metrics.bind(&two_upstreams().with_provider_keys(keys).unwrap());
        assert_eq!(handles.upstream(OPENAI).provider_key(1).map(Name::as_str), Some("second"));
        assert_eq!(handles.upstream(OPENAI).provider_key(2), None);
        assert_eq!(handles.upstream(UpstreamId(1)).provider_key(0), None);
        assert_eq!(two_upstreams().with_provider_keys([["a b"]]).err(), Some(InvalidName::Letters));
    }

    #[test]
    fn a_reload_continues_what_stays_and_drops_what_is_gone() {
        let metrics = Metrics::new(None);
        let old = metrics.bind(&two_upstreams());
        let in_flight = GaugeGuard::new(&old.upstream(OPENAI).traffic.in_flight);
        old.upstream(OPENAI).set_up(false);
        old.upstream(OPENAI).failures(FailureReason::Reset).inc();
        old.upstream(UpstreamId(1)).retries(RetryReason::Status).inc();
        old.listener(MAIN).connections.inc();
        old.certificate(CertificateId(0)).set_not_after(SystemTime::UNIX_EPOCH + Duration::from_secs(7));

        let openai_only = Names::new(["main"], [], [("openai", Provider::Compatible)]).unwrap();
        let new = metrics.bind(&openai_only);
        new.listener(MAIN).connections.inc();
        assert_eq!(value(&metrics, "nullhop_connections_total{listener=main}"), Some(2.0));
        assert_eq!(value(&metrics, "nullhop_upstream_failures_total{reason=reset,upstream=openai}"), Some(1.0));
        // An open circuit does not close because the file was read again.
        assert_eq!(value(&metrics, "nullhop_upstream_up{upstream=openai}"), Some(0.0));
        assert_eq!(value(&metrics, "nullhop_upstream_info{provider=compatible,upstream=openai}"), Some(1.0));
        assert_eq!(count(&metrics, "nullhop_upstream_info"), 1);
        assert_eq!(count(&metrics, "nullhop_upstream_up"), 1);
        assert_eq!(count(&metrics, "nullhop_tls_certificate_not_after_timestamp_seconds"), 0);
        assert_eq!(value(&metrics, "nullhop_upstream_retries_total{reason=status,upstream=claude}"), Some(1.0));

        // What began under the old configuration ends under the new one.
        assert_eq!(value(&metrics, "nullhop_requests_in_flight{upstream=openai}"), Some(1.0));
        drop(old);
        drop(in_flight);
        assert_eq!(value(&metrics, "nullhop_requests_in_flight{upstream=openai}"), Some(0.0));
    }

    #[test]
    fn the_configuration_tells_its_state() {
        let metrics = Metrics::new(None);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_735_689_600);
        metrics.process.config_loaded(u64::MAX, at);
        assert_eq!(value(&metrics, "nullhop_config_fingerprint"), Some(281_474_976_710_655.0));
        assert_eq!(value(&metrics, "nullhop_config_last_reload_success_timestamp_seconds"), Some(1_735_689_600.0));
        assert_eq!(value(&metrics, "nullhop_config_reloads_total{result=ok}"), Some(0.0));

        metrics.process.config_refused();
        assert_eq!(value(&metrics, "nullhop_config_last_reload_successful"), Some(0.0));
        assert_eq!(value(&metrics, "nullhop_config_reloads_total{result=error}"), Some(1.0));
        assert_eq!(value(&metrics, "nullhop_config_fingerprint"), Some(281_474_976_710_655.0));

        metrics.process.config_reloaded(5, at);
        assert_eq!(value(&metrics, "nullhop_config_last_reload_successful"), Some(1.0));
        assert_eq!(value(&metrics, "nullhop_config_reloads_total{result=ok}"), Some(1.0));
        assert_eq!(value(&metrics, "nullhop_config_fingerprint"), Some(5.0));
    }

    #[test]
    fn pop_is_on_every_series() {
        let metrics = Metrics::new(Some("fra1"));
        let _handles = metrics.bind(&two_upstreams());
        for sample in samples(&metrics.render()) {
            assert_eq!(sample.label("pop"), Some("fra1"), "{}", sample.series());
        }
    }

    #[test]
    fn gauge_guards_settle_when_cancelled() {
        let metrics = Metrics::new(None);
        let handles = metrics.bind(&two_upstreams());
        let open = handles.listener(MAIN).open(Protocol::H2);
        block_on_local(async {
            let guard = GaugeGuard::new(open);
            let task = tokio::task::spawn_local(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            assert_eq!(open.get(), 1);
            task.abort();
            let _ = task.await;
        });
        assert_eq!(open.get(), 0);
    }

    #[test]
    fn the_runtime_is_sampled() {
        let metrics = Metrics::new(None);
        let handles = Arc::new(metrics.bind(&two_upstreams()));
        let tasks = || value(&metrics, "nullhop_runtime_tasks").unwrap();
        block_on_local(async {
            let idle: Vec<_> = (0..5).map(|_| tokio::task::spawn_local(std::future::pending::<()>())).collect();
            let sampler = tokio::task::spawn_local(sample_lag(handles.clone(), Rc::default()));
            tokio::time::sleep(Duration::from_millis(350)).await;
            assert_eq!(tasks(), 6.0);
            sampler.abort();
            let _ = sampler.await;
            assert_eq!(tasks(), 0.0);
            drop(idle);
        });
        // Two even on a machine that does something else in between.
        assert!(value(&metrics, "nullhop_runtime_lag_seconds_count").unwrap() >= 2.0);
    }

    #[test]
    fn whoever_asks_is_told_how_late_timers_are() {
        let metrics = Metrics::new(None);
        let handles = Arc::new(metrics.bind(&two_upstreams()));
        let lag = Rc::new(Cell::new(Duration::ZERO));
        block_on_local(async {
            let sampler = tokio::task::spawn_local(sample_lag(handles, lag.clone()));
            // Late once is no load.
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_millis(600));
            tokio::task::yield_now().await;
            assert!(lag.get() < Duration::from_millis(400));
            // Late again and again is: each sample finds the thread busy.
            while lag.get() < Duration::from_millis(100) {
                std::thread::sleep(Duration::from_millis(250));
                tokio::task::yield_now().await;
            }
            // It is over as soon as one is in time.
            while lag.get() > Duration::from_millis(50) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            sampler.abort();
        });
    }

    fn block_on_local(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(test);
    }
}
