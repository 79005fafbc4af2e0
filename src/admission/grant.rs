//! What keys grant: the file of keys, read against a configuration.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::ledger::Ledger;
use super::ledger::Scope;
use super::ledger::Subject;
use crate::config::Config;
use crate::config::OnBudget;
use crate::config::Plan;
use crate::config::Priority;
use crate::keys;
use crate::keys::FileFault;
use crate::keys::Keyring;
use crate::keys::Record;
use crate::keys::Track;
use crate::limits::Limits;
use crate::retention::EVERY_RULE;
use crate::retention::Models;
use crate::retention::Rule;
use crate::retention::Usage;
use crate::telemetry::labels::KeyId;
use crate::telemetry::metrics::KeySeries;
use crate::telemetry::metrics::Metrics;

/// What a key may do. One for each key of the file; shared by all workers.
pub(crate) struct Grant {
    /// Names the key in events.
    pub(crate) id: Arc<str>,
    pub(crate) label: Arc<str>,
    pub(crate) account_name: Option<Arc<str>>,
    pub(super) track: Track,
    /// Places of upstreams; `None`: all of its track.
    upstreams: Option<Box<[u16]>>,
    pub(super) models: Models,
    /// Retention rules that are relaxed for it.
    pub(super) relaxed: Box<[Rule]>,
    pub(super) usage: Option<Usage>,
    pub(super) subject: Arc<Subject>,
    pub(super) account: Option<Arc<Subject>>,
    pub(super) on_budget: OnBudget,
    pub(super) priority: Priority,
    pub(super) series: KeyId,
}

/// All keys of a file for one configuration.
pub(crate) struct Keys {
    ring: Keyring<Arc<Grant>>,
    /// How many keys that can be used relax each retention rule.
    pub(super) relaxing: Vec<(Rule, usize)>,
    pub(crate) series: Arc<KeySeries>,
}

/// Why a file of keys is not taken.
#[derive(Debug)]
pub(crate) enum KeysFault {
    File(FileFault),
    /// The key of this id names a plan that the configuration does not have.
    Plan {
        id: String,
    },
    /// The key of this id relaxes a rule that there is not.
    Rule {
        id: String,
    },
    /// The key of this id names an upstream that the configuration does not have.
    Upstream {
        id: String,
    },
}

impl KeysFault {
    /// The line that is wrong, from 1, if it is one line.
    pub(crate) fn line(&self) -> Option<usize> {
        match self {
            Self::File(FileFault::Line(line, _)) => Some(*line),
            _ => None,
        }
    }
}

impl fmt::Display for KeysFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(fault) => write!(f, "{fault}"),
            Self::Plan { id } => write!(f, "the key {id} names a plan that is not configured"),
            Self::Rule { id } => write!(f, "the key {id} relaxes a retention rule that does not exist"),
            Self::Upstream { id } => write!(f, "the key {id} names an upstream that is not configured"),
        }
    }
}

impl Grant {
    /// Whether it may use the upstream at a place of the configuration.
    pub(super) fn may_use(&self, upstream: usize) -> bool {
        self.upstreams.as_ref().is_none_or(|places| places.iter().any(|place| usize::from(*place) == upstream))
    }
}

impl Keys {
    /// Reads the file of keys that `config` names. `Ok(None)`: it names none. Subjects of `ledger` get the limits of their
    /// plans, those of keys that are gone or revoked are closed.
    ///
    /// # Errors
    /// If the file cannot be read, or a key asks for what is not configured. Nothing has changed then.
    pub(crate) fn load(
        config: &Config,
        ledger: &Ledger,
        registry: &Metrics,
        now: u64,
        unix: i64,
    ) -> Result<Option<Self>, KeysFault> {
        let Some(settings) = &config.keys else { return Ok(None) };
        let records = keys::read(&settings.file).map_err(KeysFault::File)?;
        // What a revoked key names is nobody's concern.
        for record in records.iter().filter(|record| record.revoked.is_none()) {
            let known = |plan: &String| config.plans.iter().any(|known| known.name == *plan);
            if !record.plan.as_ref().is_none_or(known) {
                return Err(KeysFault::Plan { id: record.id.clone() });
            }
            if !record.upstreams.iter().all(|name| config.upstreams.iter().any(|upstream| upstream.name == *name)) {
                return Err(KeysFault::Upstream { id: record.id.clone() });
            }
            if !record.allow.iter().all(|word| word == EVERY_RULE || Rule::ALL.iter().any(|rule| rule.as_str() == word))
            {
                return Err(KeysFault::Rule { id: record.id.clone() });
            }
        }
        let relaxing = relaxing(&records, unix);
        let per_key = config.metrics.as_ref().map_or(0, |metrics| metrics.keys_max);
        let active = |record: &&Record| record.is_active(unix);
        let labels = records.iter().filter(active).map(|record| record.label.as_str());
        let series = registry.bind_keys(labels, per_key);
        let unlimited = Arc::new(Limits::default());
        let mut maker = Maker {
            config,
            ledger,
            now,
            series: &series,
            unlimited: &unlimited,
            names: HashMap::new(),
            lists: HashMap::new(),
        };
        let ring = Keyring::new(settings.hash_key.clone(), records, |record| {
            let grant = maker.grant(record);
            grant.subject.close(record.revoked.is_some());
            Ok::<_, std::convert::Infallible>(Arc::new(grant))
        });
        let Ok(ring) = ring;
        Ok(Some(Self { ring, series, relaxing }))
    }

    /// What the key `text` grants at `unix`, seconds since 1970.
    ///
    /// # Errors
    /// If it grants nothing.
    pub(super) fn find(&self, text: &[u8], unix: i64) -> Result<&Arc<Grant>, keys::KeyFault> {
        self.ring.find(text, unix)
    }

    /// Keys that can be used, and all others.
    pub(crate) fn count(&self, unix: i64) -> (usize, usize) {
        self.ring.count(unix)
    }

    /// What every key of the file grants, also those that are revoked.
    pub(crate) fn grants(&self) -> impl Iterator<Item = &Arc<Grant>> {
        self.ring.grants()
    }
}

fn relaxing(records: &[Record], unix: i64) -> Vec<(Rule, usize)> {
    let mut counts: Vec<_> = Rule::ALL.iter().map(|rule| (*rule, 0)).collect();
    for record in records.iter().filter(|record| !record.allow.is_empty() && record.is_active(unix)) {
        for (rule, count) in &mut counts {
            *count += usize::from(record.allow.iter().any(|word| word == EVERY_RULE || word == rule.as_str()));
        }
    }
    counts
}

/// Makes grants, and shares between them what many have in common.
struct Maker<'c> {
    config: &'c Config,
    ledger: &'c Ledger,
    now: u64,
    series: &'c KeySeries,
    unlimited: &'c Arc<Limits>,
    names: HashMap<String, Arc<str>>,
    lists: HashMap<Vec<String>, Models>,
}

impl<'c> Maker<'c> {
    fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(text.to_owned(), name.clone());
        name
    }

    fn plan(&self, name: Option<&String>, otherwise: Option<usize>) -> Option<&'c Plan> {
        match name {
            Some(name) => self.config.plans.iter().find(|plan| plan.name == *name),
            None => otherwise.map(|place| &self.config.plans[place]),
        }
    }

    fn grant(&mut self, record: &Record) -> Grant {
        let settings = self.config.keys.as_ref();
        let plan = self.plan(record.plan.as_ref(), settings.and_then(|keys| keys.key_plan));
        let id: Arc<str> = record.id.as_str().into();
        let limits = plan.map_or(self.unlimited, |plan| &plan.limits);
        let subject = self.ledger.subject(Scope::Key, &id, limits, self.now);
        let id = subject.name().cloned().unwrap_or(id);
        let account_name = record.account.as_ref().map(|name| self.name(name));
        let account = account_name.as_ref().map(|name| {
            let listed = self.config.accounts.iter().find(|account| account.name == **name);
            let place = listed.map(|account| account.plan).or(settings.and_then(|keys| keys.account_plan));
            let limits = place.map_or(self.unlimited, |place| &self.config.plans[place].limits);
            self.ledger.subject(Scope::Account, name, limits, self.now)
        });
        let places = record.upstreams.iter().filter_map(|name| {
            let place = self.config.upstreams.iter().position(|upstream| upstream.name == *name)?;
            u16::try_from(place).ok()
        });
        let upstreams = (!record.upstreams.is_empty()).then(|| places.collect());
        let models =
            self.lists.entry(record.models.clone()).or_insert_with(|| Models::matching(&record.models)).clone();
        let every = record.allow.iter().any(|word| word == EVERY_RULE);
        let relaxed =
            Rule::ALL.iter().copied().filter(|rule| every || record.allow.iter().any(|word| word == rule.as_str()));
        Grant {
            id,
            label: self.name(&record.label),
            account_name,
            track: record.track,
            upstreams,
            models,
            relaxed: relaxed.collect(),
            usage: match record.usage.as_deref() {
                Some("ask") => Some(Usage::Ask),
                Some(_) => Some(Usage::Leave),
                None => None,
            },
            subject,
            account,
            on_budget: plan.map_or(OnBudget::Finish, |plan| plan.on_budget),
            priority: plan.map_or(Priority::Normal, |plan| plan.priority),
            series: self.series.id(&record.label),
        }
    }
}
