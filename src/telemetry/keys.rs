//! Series by client key: `nullhop_key_*`.
//!
//! Keys come and go while the process runs, and there may be a hundred thousand. So few have series of their own, as
//! many as the configuration allows, and the rest share those of `other`. Who does is decided when the file of keys is
//! read; a request has a [`KeyId`] and looks nothing up.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use prometheus::core::Collector;
use prometheus::core::Desc;
use prometheus::proto;

use crate::telemetry::labels::KeyId;
use crate::telemetry::labels::KeyLabel;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::LimitLabel;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::TokenDirection;
use crate::telemetry::models::OTHER;
use crate::telemetry::series::About;
use crate::telemetry::series::Count;
use crate::telemetry::series::Ratio;
use crate::telemetry::series::Reading;

/// The series of the keys of one reading of their file. Ids are its own: whoever keeps one keeps this as well, and
/// another's counts where it happens to point.
pub(crate) struct KeySeries {
    ids: HashMap<KeyLabel, KeyId>,
    /// By `KeyId`. Empty where no key has series.
    series: Box<[Arc<KeyMetrics>]>,
}

impl KeySeries {
    /// `OTHER` for a label without series of its own, and for `other` itself.
    pub(crate) fn id(&self, label: &str) -> KeyId {
        self.ids.get(label).copied().unwrap_or(KeyId::OTHER)
    }

    /// `None` where no key has series.
    pub(crate) fn get(&self, id: KeyId) -> Option<&KeyMetrics> {
        self.series.get(usize::from(id.0)).or_else(|| self.series.first()).map(|key| &**key)
    }
}

/// The series of one key, or of `other`.
pub(crate) struct KeyMetrics {
    label: KeyLabel,
    requests: [Count; Outcome::ALL.len()],
    has_requests: AtomicBool,
    tokens: [Count; TokenDirection::ALL.len()],
    has_tokens: AtomicBool,
    used: [Ratio; LimitLabel::ALL.len()],
    /// Has limits of its own: is not `other`, and is in the file.
    limited: AtomicBool,
}

impl KeyMetrics {
    fn new(label: KeyLabel) -> Self {
        Self {
            label,
            requests: Default::default(),
            has_requests: AtomicBool::new(false),
            tokens: Default::default(),
            has_tokens: AtomicBool::new(false),
            used: Default::default(),
            limited: AtomicBool::new(false),
        }
    }

    /// The first call makes all outcomes appear, so that alerts see zeros.
    pub(crate) fn requests(&self, outcome: Outcome) -> &Count {
        self.has_requests.store(true, Ordering::Relaxed);
        &self.requests[outcome.index()]
    }

    /// The first call makes both directions appear.
    pub(crate) fn tokens(&self, direction: TokenDirection) -> &Count {
        self.has_tokens.store(true, Ordering::Relaxed);
        &self.tokens[direction.index()]
    }

    /// How much of a limit is used: 1 is all of it, more is owed. Not exported of keys that are gone, of `other`, which has
    /// no limits, and of `global`, which is no key's.
    pub(crate) fn used_ratio(&self, limit: LimitLabel, ratio: f64) {
        if limit != LimitLabel::Global {
            self.used[limit.index()].set(ratio);
        }
    }
}

/// The three families, over all readings of the file of keys.
#[derive(Clone)]
pub(super) struct KeyFamilies {
    shared: Arc<Shared>,
}

struct Shared {
    requests: About,
    tokens: About,
    used: About,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// All that are exported.
    series: BTreeMap<KeyLabel, Arc<KeyMetrics>>,
    /// Those among them that are in the file no more; the first one left first.
    gone: VecDeque<KeyLabel>,
}

impl KeyFamilies {
    pub(super) fn new() -> Self {
        let counter = proto::MetricType::COUNTER;
        let shared = Shared {
            requests: About::new("nullhop_key_requests_total", counter, &["key", Outcome::NAME], "Who gets errors?"),
            tokens: About::new("nullhop_key_tokens_total", counter, &["key", TokenDirection::NAME], "Who uses what?"),
            used: About::new(
                "nullhop_key_limit_used_ratio",
                proto::MetricType::GAUGE,
                &["key", LimitLabel::NAME],
                "Who is close to a limit?",
            ),
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// See `Metrics::bind_keys`.
    pub(super) fn bind<'a>(&self, labels: impl IntoIterator<Item = &'a str>, keys_max: usize) -> KeySeries {
        let keys_max = keys_max.min(usize::from(u16::MAX));
        let mut state = self.lock();
        let mut ids = HashMap::new();
        let mut series = Vec::new();
        let other = KeyLabel::new(OTHER).ok().filter(|_| keys_max > 0);
        if let Some(other) = &other {
            series.push(state.key(other));
        }
        for label in labels {
            // The rest is a hundred thousand lookups that find nothing out.
            if ids.len() == keys_max {
                break;
            }
            if label == OTHER || ids.contains_key(label) {
                continue;
            }
            let (Ok(label), Ok(place)) = (KeyLabel::new(label), u16::try_from(series.len())) else { continue };
            series.push(state.key(&label));
            ids.insert(label, KeyId(place));
        }
        let is_bound = |label: &KeyLabel| ids.contains_key(label) || other.as_ref() == Some(label);
        state.part_with(is_bound, keys_max);
        for (label, key) in &state.series {
            let limited = ids.contains_key(label);
            if key.limited.swap(limited, Ordering::Relaxed) != limited {
                key.used.iter().for_each(Ratio::clear);
            }
        }
        KeySeries { ids, series: series.into() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// As it is, or new.
    fn key(&mut self, label: &KeyLabel) -> Arc<KeyMetrics> {
        let new = || Arc::new(KeyMetrics::new(label.clone()));
        self.series.entry(label.clone()).or_insert_with(new).clone()
    }

    /// Notes who is gone and keeps `gone_max` of those, the last ones: where keys come and go all the time, their series
    /// must not become more and more.
    fn part_with(&mut self, is_bound: impl Fn(&KeyLabel) -> bool, gone_max: usize) {
        self.gone.retain(|label| !is_bound(label));
        let known: BTreeSet<&KeyLabel> = self.gone.iter().collect();
        let left = |label: &&KeyLabel| !is_bound(label) && !known.contains(label);
        let left: Vec<KeyLabel> = self.series.keys().filter(left).cloned().collect();
        self.gone.extend(left);
        while self.gone.len() > gone_max {
            if let Some(label) = self.gone.pop_front() {
                self.series.remove(&label);
            }
        }
    }
}

impl Collector for KeyFamilies {
    fn desc(&self) -> Vec<&Desc> {
        [&self.shared.requests, &self.shared.tokens, &self.shared.used].map(|about| &about.desc).into()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let Shared { requests, tokens, used, .. } = &*self.shared;
        let (mut requests_of, mut tokens_of, mut used_of) = (Vec::new(), Vec::new(), Vec::new());
        for key in self.lock().series.values() {
            let label = key.label.as_str();
            if key.has_requests.load(Ordering::Relaxed) {
                let counts = Outcome::ALL.iter().zip(&key.requests);
                requests_of.extend(
                    counts.map(|(outcome, count)| requests.sample(&[label, outcome.as_str()], count.get() as f64)),
                );
            }
            if key.has_tokens.load(Ordering::Relaxed) {
                let counts = TokenDirection::ALL.iter().zip(&key.tokens);
                tokens_of.extend(
                    counts.map(|(direction, count)| tokens.sample(&[label, direction.as_str()], count.get() as f64)),
                );
            }
            if key.limited.load(Ordering::Relaxed) {
                let ratios = LimitLabel::ALL.iter().zip(&key.used);
                used_of.extend(
                    ratios.filter_map(|(limit, ratio)| Some(used.sample(&[label, limit.as_str()], ratio.read()?))),
                );
            }
        }
        vec![requests.family(requests_of), tokens.family(tokens_of), used.family(used_of)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::catalogue::samples;
    use crate::telemetry::metrics::Metrics;

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        samples(&metrics.render()).iter().find(|sample| sample.series() == series).map(|sample| sample.value)
    }

    /// The keys that have series of this family.
    fn keys(metrics: &Metrics, family: &str) -> Vec<String> {
        let samples = samples(&metrics.render());
        let of_family = samples.iter().filter(|sample| sample.name == family);
        let mut keys: Vec<String> = of_family.map(|sample| sample.label("key").unwrap().to_owned()).collect();
        keys.dedup();
        keys
    }

    fn asked(series: &KeySeries, label: &str) {
        series.get(series.id(label)).unwrap().requests(Outcome::Ok).inc();
    }

    const REQUESTS: &str = "nullhop_key_requests_total";
    const USED: &str = "nullhop_key_limit_used_ratio";

    #[test]
    fn the_first_keys_have_series_and_the_rest_share_other() {
        let metrics = Metrics::new(None);
        let series = metrics.bind_keys(["b", "a", "b", "bad label", "other", "c"], 2);
        assert_eq!((series.id("b"), series.id("a")), (KeyId(1), KeyId(2)));
        for label in ["c", "bad label", "other", "never seen", ""] {
            assert_eq!(series.id(label), KeyId::OTHER, "{label}");
        }
        assert_eq!(keys(&metrics, REQUESTS), [""; 0]);
        for label in ["a", "c", "bad label"] {
            asked(&series, label);
        }
        assert_eq!(keys(&metrics, REQUESTS), ["a", "other"]);
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=a,outcome=ok}"), Some(1.0));
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=a,outcome=internal}"), Some(0.0));
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=other,outcome=ok}"), Some(2.0));
        assert_eq!(keys(&metrics, "nullhop_key_tokens_total"), [""; 0]);
        series.get(KeyId(1)).unwrap().tokens(TokenDirection::Output).inc_by(5);
        assert_eq!(value(&metrics, "nullhop_key_tokens_total{direction=output,key=b}"), Some(5.0));
        assert_eq!(value(&metrics, "nullhop_key_tokens_total{direction=input,key=b}"), Some(0.0));
        // An id of a longer file.
        series.get(KeyId(9)).unwrap().requests(Outcome::Limited).inc();
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=other,outcome=limited}"), Some(1.0));
    }

    #[test]
    fn without_a_number_no_key_has_series() {
        let metrics = Metrics::new(None);
        let series = metrics.bind_keys(["a"], 0);
        assert_eq!(series.id("a"), KeyId::OTHER);
        assert!(series.get(KeyId::OTHER).is_none());
        assert!(!metrics.render().contains("nullhop_key_"));
        // Nor after they were switched off.
        let series = metrics.bind_keys(["a"], 1);
        asked(&series, "a");
        asked(&series, "b");
        assert!(metrics.render().contains("nullhop_key_"));
        metrics.bind_keys(["a"], 0);
        assert!(!metrics.render().contains("nullhop_key_"));
    }

    #[test]
    fn gauges_of_keys_that_are_gone_end_and_counters_stay() {
        let metrics = Metrics::new(None);
        let old = metrics.bind_keys(["a", "b"], 2);
        for label in ["a", "b"] {
            asked(&old, label);
            old.get(old.id(label)).unwrap().used_ratio(LimitLabel::Tokens, 0.5);
        }
        assert_eq!(keys(&metrics, USED), ["a", "b"]);
        let new = metrics.bind_keys(["b"], 2);
        assert_eq!(keys(&metrics, USED), ["b"]);
        asked(&new, "b");
        // What began before ends.
        asked(&old, "a");
        old.get(old.id("a")).unwrap().used_ratio(LimitLabel::Tokens, 0.9);
        assert_eq!(keys(&metrics, USED), ["b"]);
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=a,outcome=ok}"), Some(2.0));
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=b,outcome=ok}"), Some(2.0));
        // It comes back, with another place.
        let back = metrics.bind_keys(["b", "a"], 2);
        asked(&back, "a");
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=a,outcome=ok}"), Some(3.0));
        assert_eq!(keys(&metrics, USED), ["b"]);
    }

    #[test]
    fn ratios_belong_to_limits_of_keys() {
        let metrics = Metrics::new(None);
        let series = metrics.bind_keys(["a"], 1);
        let key = series.get(series.id("a")).unwrap();
        key.used_ratio(LimitLabel::Global, 0.5);
        key.used_ratio(LimitLabel::Budget, f64::NAN);
        series.get(KeyId::OTHER).unwrap().used_ratio(LimitLabel::Budget, 0.5);
        assert_eq!(keys(&metrics, USED), [""; 0]);
        key.used_ratio(LimitLabel::Budget, 1.25);
        assert_eq!(value(&metrics, "nullhop_key_limit_used_ratio{key=a,limit=budget}"), Some(1.25));
    }

    /// Keys that live for a moment must not fill the memory, whoever makes them.
    #[test]
    fn series_have_an_end_however_many_keys_come_and_go() {
        let metrics = Metrics::new(None);
        for round in 0..50 {
            let labels: Vec<String> = (0..10).map(|place| format!("key-{round}-{place}")).collect();
            let series = metrics.bind_keys(labels.iter().map(String::as_str), 10);
            labels.iter().for_each(|label| asked(&series, label));
            asked(&series, "one more");
        }
        let exported = keys(&metrics, REQUESTS);
        // Those of the file, as many that are gone, and `other`.
        assert_eq!(exported.len(), 21);
        assert!(exported.iter().all(|key| key == "other" || key.starts_with("key-48-") || key.starts_with("key-49-")));
    }

    /// `upstream_limited` ends in `limited`: a family that puts its values together takes these two for one.
    #[test]
    fn labels_do_not_run_into_outcomes() {
        let metrics = Metrics::new(None);
        let series = metrics.bind_keys(["a", "aupstream_"], 2);
        series.get(series.id("a")).unwrap().requests(Outcome::UpstreamLimited).inc();
        series.get(series.id("aupstream_")).unwrap().requests(Outcome::Limited).inc_by(10);
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=a,outcome=upstream_limited}"), Some(1.0));
        assert_eq!(value(&metrics, "nullhop_key_requests_total{key=aupstream_,outcome=limited}"), Some(10.0));
    }

    #[test]
    fn a_hundred_thousand_keys_cost_what_those_with_series_cost() {
        let labels: Vec<String> = (0..100_000).map(|key| format!("key-{key}")).collect();
        let families = KeyFamilies::new();
        let series = families.bind(labels.iter().map(String::as_str), 500);
        assert_eq!((series.ids.len(), series.series.len(), families.lock().series.len()), (500, 501, 501));
        assert_eq!(series.id("key-499"), KeyId(500));
        assert_eq!(series.id("key-500"), KeyId::OTHER);
        // More than ids can say.
        let series = families.bind(labels.iter().map(String::as_str), usize::MAX);
        assert_eq!(series.id("key-65534"), KeyId(65_535));
        assert_eq!(series.id("key-65535"), KeyId::OTHER);
        assert!(size_of::<KeyMetrics>() <= 256, "{}", size_of::<KeyMetrics>());
    }
}
