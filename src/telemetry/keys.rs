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
