//! What admission costs: the door for `benches/admission.rs` and `benches/request.rs`, in no other build.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use http::HeaderValue;

use super::Admission;
use super::Asked;
use super::Charged;
use super::Clock;
use super::Keys;
use super::Permit;
use super::Shared;
use super::Used;
use super::Worker;
use super::clock;
use crate::config::Config;
use crate::keys;
use crate::keys::Record;
use crate::keys::Track;
use crate::message::Fields;
use crate::message::bench::Head;
use crate::message::name;
use crate::provider::Dialect;
use crate::provider::Operation;
use crate::provider::Provider;
use crate::retention::Facts;
use crate::telemetry::labels::Outcome;
use crate::telemetry::metrics::Handles;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::Names;
use crate::telemetry::models::ModelId;
use crate::upstream::Approve;

/// An admission with many keys, each with limits of its own, of its account and of the upstream.
pub struct Bench {
    config: Arc<Config>,
    registry: Metrics,
    shared: Arc<Shared>,
    admission: Arc<Admission>,
    /// `None` before the first [`Bench::reload`].
    keys: Option<Arc<Keys>>,
    worker: Worker,
    heads: Vec<Fields>,
}

impl Bench {
    /// With so many keys, whose file stands in `folder`.
    pub fn new(folder: &Path, count: usize) -> Self {
        let secret = "0123456789abcdef0123456789abcdef";
        std::fs::write(folder.join("keys.secret"), secret).expect("written");
        std::fs::write(folder.join("provider.key"), "sk-operator").expect("written");
        let hash_key =
            keys::HashKey::new(&crate::hygiene::Secret::new(secret.as_bytes().to_vec())).expect("long enough");
        let _ = std::fs::remove_file(folder.join("keys.jsonl"));
        let mut heads = Vec::new();
        keys::change(&folder.join("keys.jsonl"), |records| {
            for number in 0..count {
                let text = keys::generate().expect("random");
                records.push(Record {
                    id: format!("k{number:010}"),
                    hash: hash_key.hash(text.as_bytes()),
                    label: format!("label-{number}"),
                    account: Some(format!("account-{}", number % 100)),
                    plan: Some("plan".to_owned()),
                    track: Track::Managed,
                    upstreams: Vec::new(),
                    models: Vec::new(),
                    allow: Vec::new(),
                    usage: None,
                    created: None,
                    expires: None,
                    revoked: None,
                });
                let mut head = Fields::default();
                let value = HeaderValue::from_str(&format!("Bearer {}", &**text)).expect("a value");
                head.insert(name::AUTHORIZATION, &value);
                heads.push(head);
            }
        })
        .expect("written");
        let text = "[keys]\nfile = \"keys.jsonl\"\nsecret = { file = \"keys.secret\" }\naccount_plan = \"plan\"\n\
                    [[plan]]\nname = \"plan\"\nconcurrency = 1000000\nrates = [\"1G requests/1m\", \"1G tokens/1m\"]\n\
                    budgets = [\"1G tokens/day\", \"1000000 usd/month\"]\n\
                    [[price]]\nmodels = [\"gpt-5*\"]\ninput = \"1.25\"\noutput = \"10\"\n\
                    [journal]\nenabled = false\n\
                    [[upstream]]\nname = \"openai\"\nprovider = \"openai\"\nbare = true\nplan = \"plan\"\n\
                    [[upstream.key]]\nsecret = { file = \"provider.key\" }\n";
        let Ok(loaded) = Config::from_toml(text, folder, "bench") else { panic!("the configuration is right") };
        let config = loaded.config;
        let registry = Metrics::new(None);
        let names = Names::new(["main"], [], [("openai", Provider::Openai)]).expect("names");
        let handles = Arc::new(registry.bind(&names));
        let shared = Arc::new(Shared::default());
        let now = clock::nanos(Instant::now());
        let admission = Arc::new(Admission::new(&config, &shared, &handles, now));
        let clock = Rc::new(Clock::new(jiff::tz::TimeZone::UTC));
        let worker = Worker { clock, lag: Rc::new(Cell::new(Duration::ZERO)) };
        Self { config, registry, shared, admission, keys: None, worker, heads }
    }

    /// Brings the head of a place near, as a request's is that has just been read.
    pub fn touch(&self, place: usize) {
        let value = self.heads[place % self.heads.len()].get(name::AUTHORIZATION);
        std::hint::black_box(
            value.map(|value| value.as_bytes().iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))),
        );
    }

    /// Looks the key of a place up.
    pub fn look_up(&self, place: usize) -> bool {
        let value = self.heads[place % self.heads.len()].get(name::AUTHORIZATION);
        let found = self.keys.as_ref().zip(value).map(|(keys, value)| keys.find(&value.as_bytes()[7..], 0).is_ok());
        found.unwrap_or_default()
    }

    /// Admits a request of the key of a place, lets its body through, and settles.
    pub fn admit_and_settle(&self, place: usize) {
        let permit = self.admit(place);
        permit.approve();
        permit.settle();
    }

    /// Admits a request of the key of a place.
    pub fn admit(&self, place: usize) -> Admitted {
        let asked = Asked {
            headers: &self.heads[place % self.heads.len()],
            query: None,
            upstream: 0,
            billed: true,
            operation: Operation::ChatCompletions,
            body_bytes: Some(4096),
            upgrade: false,
            address: None,
            came: Instant::now(),
        };
        let Ok(permit) = self.admission.admit(self.keys.as_ref(), &self.worker, &asked) else { panic!("admitted") };
        Admitted(Rc::new(permit))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn handles(&self) -> &Arc<Handles> {
        &self.admission.handles
    }

    /// Reads the file of keys again.
    pub fn reload(&mut self) {
        let now = clock::nanos(Instant::now());
        let keys = Keys::load(&self.config, &self.shared.ledger, &self.registry, now, 0).ok().flatten().expect("keys");
        self.keys = Some(Arc::new(keys));
        self.shared.close_absent(self.keys.as_ref());
    }
}

/// A request that is admitted.
pub struct Admitted(Rc<Permit>);

impl Admitted {
    pub(crate) fn shared(&self) -> Rc<Permit> {
        self.0.clone()
    }

    /// Lets its body through.
    pub fn approve(&self) {
        let facts = Facts { stream: true, usage_added: false, output_tokens_max: Some(500) };
        assert!(self.0.approve(&facts, None, 4096));
    }

    /// Puts the operator's key into its head.
    pub fn present(&self, Head(headers): &mut Head) {
        self.0.present(Provider::Openai, "/v1/chat/completions", headers);
    }

    /// Looks at the provider's answer, and puts the caller's own limits into its head.
    pub fn rewrite_answer(&self, Head(headers): &mut Head) {
        assert!(!self.0.answered(200, headers));
        self.0.rewrite_answer(Dialect::Openai, Instant::now(), headers);
    }

    /// Writes down what was used.
    pub fn settle(&self) {
        let tokens = Charged { uncached: 900, cache_read: 100, response: 200, ..Charged::default() };
        self.0.settle(&Used {
            tokens,
            side: 0,
            model: ModelId::OTHER,
            outcome: Outcome::Ok,
            requests: 1,
            at: Instant::now(),
        });
    }
}
