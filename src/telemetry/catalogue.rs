//! Holds `docs/metrics.md` and what is exported against each other, both ways.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::SystemTime;

use crate::provider::Operation;
use crate::provider::Provider;
use crate::telemetry::labels::CertificateId;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::LimitLabel;
use crate::telemetry::labels::ListenerId;
use crate::telemetry::labels::ListenerKind;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Phase;
use crate::telemetry::labels::Resource;
use crate::telemetry::labels::Source;
use crate::telemetry::labels::TokenDirection;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::log;
use crate::telemetry::log::Event;
use crate::telemetry::metrics::Handles;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::metrics::Names;
use crate::telemetry::models::ModelTable;

const CATALOGUE: &str = include_str!("../../docs/metrics.md");

/// A line of the exposition.
pub(super) struct Sample {
    pub(super) name: String,
    labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

impl Sample {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    /// Without quotes, labels in the order of their names.
    pub(super) fn series(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        match labels.is_empty() {
            true => self.name.clone(),
            false => format!("{}{{{}}}", self.name, labels.join(",")),
        }
    }

    /// The name of the family it belongs to, given the names of all histograms.
    fn family(&self, histograms: &BTreeSet<String>) -> String {
        ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| self.name.strip_suffix(suffix))
            .find(|name| histograms.contains(*name))
            .unwrap_or(&self.name)
            .to_owned()
    }
}

/// Label values hold neither quotes nor commas: a name or a label of ours cannot.
pub(super) fn samples(exposition: &str) -> Vec<Sample> {
    let lines = exposition.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.strip_suffix('}').unwrap();
            let labels = labels.split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (label, value) = label.split_once('=').unwrap();
                (label.to_owned(), value.trim_matches('"').to_owned())
            });
            Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
        })
        .collect()
}

/// A family, as documented or as exported. Label values and buckets are those documented, and those seen.
#[derive(Debug, Default, PartialEq)]
struct Family {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
    buckets: Vec<String>,
}

fn exported(exposition: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in exposition.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        }
    }
    let histograms =
        families.iter().filter(|(_, family)| family.kind == "histogram").map(|(name, _)| name.clone()).collect();
    for sample in samples(exposition) {
        let family = families.get_mut(&sample.family(&histograms)).unwrap();
        for (label, value) in sample.labels {
            if label == "le" {
                if value != "+Inf" && !family.buckets.contains(&value) {
                    family.buckets.push(value);
                }
            } else {
                family.labels.entry(label).or_default().insert(value);
            }
        }
    }
    families
}

/// The rows of all tables whose first header cell is this, without the header.
fn rows(first_header: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in CATALOGUE.lines() {
        let Some(line) = line.strip_prefix("| ") else {
            inside = false;
            continue;
        };
        let cells: Vec<String> = line.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        if cells[0] == first_header {
            inside = true;
        } else if inside && !cells[0].starts_with("---") {
            rows.push(cells);
        }
    }
    rows
}

fn documented() -> BTreeMap<String, Family> {
    let values: BTreeMap<String, BTreeSet<String>> =
        rows("label").into_iter().map(|row| (row[0].clone(), row[1].split(' ').map(str::to_owned).collect())).collect();
    let buckets: BTreeMap<String, Vec<String>> = rows("set")
        .into_iter()
        .map(|row| (row[0][..1].to_owned(), row[1].split(' ').map(str::to_owned).collect()))
        .collect();
    let mut families = BTreeMap::new();
    for row in rows("metric") {
        let [name, kind, labels, help] = row.try_into().unwrap();
        let (kind, set) = kind.split_once(' ').unwrap_or((&kind, ""));
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(|label| match label.split_once('=') {
            Some((label, values)) => (label.to_owned(), values.split('/').map(str::to_owned).collect()),
            None => (label.to_owned(), values.get(label).cloned().unwrap_or_default()),
        });
        let family = Family {
            kind: kind.to_owned(),
            help,
            labels: labels.collect(),
            buckets: buckets.get(set).cloned().unwrap_or_default(),
        };
        assert_eq!(family.kind == "histogram", !family.buckets.is_empty(), "{name}");
        assert!(families.insert(name.clone(), family).is_none(), "{name} twice");
    }
    families
}

/// Moves everything there is, with every label value there is.
fn move_everything(metrics: &Metrics, handles: &Handles) {
    let second = Duration::from_secs(1);
    let process = handles.process();
    let keys = metrics.bind_keys(["Team.1", "team-2"], 1);
    for key in ["Team.1", "team-2"].map(|label| keys.get(keys.id(label)).unwrap()) {
        key.requests(Outcome::Ok).inc();
        key.tokens(TokenDirection::Input).inc();
        for limit in LimitLabel::ALL {
            key.used_ratio(*limit, 0.5);
        }
    }
    process.config_reloaded(1, SystemTime::UNIX_EPOCH + second);
    process.runtime_lag.observe(second);
    for phase in Phase::ALL {
        handles.overhead(*phase).observe(second);
    }
    handles.listener(ListenerId(0)).handshake_seconds.observe(second);
    handles.certificate(CertificateId(0)).set_not_after(SystemTime::UNIX_EPOCH + second);
    for place in 0..Provider::ALL.len() {
        let upstream = handles.upstream(UpstreamId(place as u16));
        upstream.connect_seconds.observe(second);
        upstream.response_head_seconds.observe(second);
        for (model, _) in handles.models().labels() {
            upstream.tokens.model(model).first_token_seconds.observe(second);
            upstream.tokens.model(model).per_token_seconds.observe(second);
            upstream.tokens.model(model).cost(1);
        }
        for resource in Resource::ALL {
            upstream.limit_remaining(*resource, 0.5);
        }
        for direction in TokenDirection::ALL {
            upstream.tokens.observe_request(*direction, 1);
        }
    }
    let traffics = (0..Provider::ALL.len()).map(|place| Some(UpstreamId(place as u16))).chain([None]);
    for traffic in traffics.map(|upstream| handles.traffic(upstream)) {
        traffic.stall_seconds.observe(second);
        for status in 0..=1000 {
            traffic.response(status, Source::Upstream);
            traffic.response(status, Source::Nullhop);
        }
        for operation in Operation::ALL {
            for mode in Mode::ALL {
                for streaming in [true, false] {
                    traffic.finished(*operation, *mode, streaming, Outcome::Ok, second);
                }
            }
        }
    }
    let address = SocketAddr::from(([127, 0, 0, 1], 8443));
    log::emit(Event::Listening { kind: ListenerKind::Traffic, address });
    assert!(!metrics.render().is_empty());
}

fn everything() -> (Metrics, Handles) {
    let metrics = Metrics::new(None);
    let upstreams = Provider::ALL.iter().map(|provider| (provider.as_str(), *provider));
    let handles = metrics.bind(&Names::new(["main"], ["edge"], upstreams).unwrap());
    move_everything(&metrics, &handles);
    (metrics, handles)
}

#[test]
fn what_is_exported_is_documented_and_the_reverse() {
    let (metrics, _handles) = everything();
    let exported = exported(&metrics.render());
    let documented = documented();
    assert_eq!(exported.keys().collect::<Vec<_>>(), documented.keys().collect::<Vec<_>>());

    // Values that are not ours to list.
    let models = ModelTable::default();
    let configured = BTreeMap::from([
        ("listener", BTreeSet::from(["main"])),
        ("certificate", BTreeSet::from(["edge"])),
        ("key", BTreeSet::from(["Team.1", "other"])),
        ("model", models.labels().map(|(_, label)| label).collect()),
        ("upstream", Provider::ALL.iter().map(|provider| provider.as_str()).chain(["none"]).collect()),
    ]);
    for (name, family) in &exported {
        let page = &documented[name];
        assert_eq!(family.kind, page.kind, "{name}");
        assert_eq!(family.help, page.help, "{name}");
        assert_eq!(family.buckets, page.buckets, "{name}");
        assert_eq!(family.labels.keys().collect::<Vec<_>>(), page.labels.keys().collect::<Vec<_>>(), "{name}");
        for (label, values) in &family.labels {
            match configured.get(label.as_str()) {
                Some(names) => assert!(values.iter().all(|value| names.contains(value.as_str())), "{name} {label}"),
                None if name == "nullhop_build_info" => assert_eq!(values.len(), 1),
                None => assert_eq!(values, &page.labels[label], "{name} {label}"),
            }
        }
    }
}

#[test]
fn series_do_not_grow_with_traffic() {
    let (metrics, handles) = everything();
    let count = || metrics.render().lines().count();
    let before = count();
    for _ in 0..3 {
        move_everything(&metrics, &handles);
    }
    assert_eq!(count(), before);
}

#[test]
fn no_series_is_exported_twice_and_none_has_a_time() {
    let (metrics, _handles) = everything();
    let text = metrics.render();
    let mut seen = BTreeSet::new();
    for sample in samples(&text) {
        assert!(seen.insert(sample.series()), "{}", sample.series());
        assert!(!sample.name.ends_with("_created"), "{}", sample.name);
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        // A series has no space inside, so a second one would be a time or an exemplar.
        assert_eq!(line.matches(' ').count(), 1, "{line}");
    }
}
