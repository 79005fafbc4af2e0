//! Families that the `prometheus` crate's own do not fit: sums that must not drift, ratios that are absent until known,
//! and series by client key, of which there are many.
//!
//! Each is a collector that reads plain atomics when it is scraped. The crate's counters keep a description of over half
//! a kilobyte each, and its vectors find a child by a hash of its label values put together, where (`ab`, `c`) and (`a`,
//! `bc`) are one: labels of keys are free enough for that to matter.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use prometheus::core::Collector;
use prometheus::core::Desc;
use prometheus::proto;

use crate::telemetry::metrics::LabelValue;

/// What a series holds.
pub(super) trait Reading: Default + Send + Sync + 'static {
    const KIND: proto::MetricType;

    /// `None`: nothing to export yet.
    fn read(&self) -> Option<f64>;
}

/// A sum of money. Integers are added, so nothing is rounded but the quotient at a scrape, once. It begins anew at 18.4
/// million USD, as a counter does after a restart; whoever reads counters is ready for that.
#[derive(Default)]
pub(super) struct Cost {
    picodollars: AtomicU64,
}

impl Cost {
    pub(super) fn add(&self, picodollars: u64) {
        self.picodollars.fetch_add(picodollars, Ordering::Relaxed);
    }
}

impl Reading for Cost {
    const KIND: proto::MetricType = proto::MetricType::COUNTER;

    fn read(&self) -> Option<f64> {
        Some(self.picodollars.load(Ordering::Relaxed) as f64 / PICODOLLARS)
    }
}

/// A share of something, absent until it is known.
pub(super) struct Ratio {
    /// Of a float; a NaN: absent.
    bits: AtomicU64,
}

impl Ratio {
    /// What is no number changes nothing; what is negative is 0.
    pub(super) fn set(&self, ratio: f64) {
        if ratio.is_finite() {
            self.bits.store(ratio.max(0.0).to_bits(), Ordering::Relaxed);
        }
    }

    /// Absent again.
    pub(super) fn clear(&self) {
        self.bits.store(f64::NAN.to_bits(), Ordering::Relaxed);
    }
}

impl Default for Ratio {
    fn default() -> Self {
        Self { bits: AtomicU64::new(f64::NAN.to_bits()) }
    }
}

impl Reading for Ratio {
    const KIND: proto::MetricType = proto::MetricType::GAUGE;

    fn read(&self) -> Option<f64> {
        Some(f64::from_bits(self.bits.load(Ordering::Relaxed))).filter(|ratio| !ratio.is_nan())
    }
}

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count {
    value: AtomicU64,
}

impl Count {
    pub(crate) fn inc(&self) {
        self.inc_by(1);
    }

    pub(crate) fn inc_by(&self, by: u64) {
        self.value.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// One family, its series made as they are asked for.
pub(super) struct Family<C> {
    about: Arc<About>,
    series: Arc<Mutex<Series<C>>>,
}

/// By the values of the labels.
type Series<C> = BTreeMap<Box<[LabelValue]>, Arc<C>>;

impl<C: Reading> Family<C> {
    pub(super) fn new(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { about: Arc::new(About::new(name, C::KIND, labels, help)), series: Arc::default() }
    }

    /// The series with these values of its labels, as it is or new.
    pub(super) fn get<const N: usize>(&self, values: [LabelValue; N]) -> Arc<C> {
        self.lock().entry(Box::new(values)).or_default().clone()
    }

    /// Whoever still holds the series moves something that nobody sees.
    pub(super) fn remove<const N: usize>(&self, values: [LabelValue; N]) {
        self.lock().remove(&values[..]);
    }

    fn lock(&self) -> MutexGuard<'_, Series<C>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Clone for Family<C> {
    fn clone(&self) -> Self {
        Self { about: self.about.clone(), series: self.series.clone() }
    }
}

impl<C: Reading> Collector for Family<C> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.about.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let series = self.lock();
        let values = series.iter().filter_map(|(labels, cell)| Some((labels, cell.read()?)));
        let samples = values.map(|(labels, value)| {
            let labels: Vec<&str> = labels.iter().map(AsRef::as_ref).collect();
            self.about.sample(&labels, value)
        });
        vec![self.about.family(samples.collect())]
    }
}

/// What the exposition says of a family.
pub(super) struct About {
    name: &'static str,
    kind: proto::MetricType,
    labels: &'static [&'static str],
    help: &'static str,
    pub(super) desc: Desc,
}

impl About {
    pub(super) fn new(
        name: &'static str,
        kind: proto::MetricType,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        let names = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, HashMap::new())
            .expect("name and labels are constants, and the tests register them all");
        Self { name, kind, labels, help, desc }
    }

    /// The values in the order of the labels.
    pub(super) fn sample(&self, values: &[&str], value: f64) -> proto::Metric {
        let pairs = self.labels.iter().zip(values).map(|(label, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*label).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        let mut pairs: Vec<_> = pairs.collect();
        // As in the other families.
        pairs.sort();
        let mut sample = proto::Metric::from_label(pairs);
        if self.kind == proto::MetricType::COUNTER {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        }
        sample
    }

    pub(super) fn family(&self, samples: Vec<proto::Metric>) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind);
        family.set_metric(samples);
        family
    }
}

const PICODOLLARS: f64 = 1e12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_does_not_drift() {
        let cost = Cost::default();
        let mut floats = 0.0;
        for _ in 0..1_000_000 {
            cost.add(100_000);
            floats += 1e-7;
        }
        assert_eq!(cost.read(), Some(0.1));
        // What would have been said otherwise.
        assert_ne!(floats, 0.1);
        // One part in 10^12 is not lost beside a thousand dollars.
        let cost = Cost::default();
        cost.add(1_000 * 1_000_000_000_000);
        cost.add(1);
        assert_eq!(cost.read(), Some(1_000.000_000_000_001));
    }

    #[test]
    fn a_ratio_is_absent_until_it_is_known() {
        let ratio = Ratio::default();
        assert_eq!(ratio.read(), None);
        ratio.set(f64::NAN);
        ratio.set(f64::INFINITY);
        assert_eq!(ratio.read(), None);
        for (set, read) in [(0.25, 0.25), (-1.0, 0.0), (1.5, 1.5), (f64::NAN, 1.5)] {
            ratio.set(set);
            assert_eq!(ratio.read(), Some(read));
        }
        ratio.clear();
        assert_eq!(ratio.read(), None);
    }

    #[test]
    fn values_of_labels_do_not_run_together() {
        let family: Family<Cost> = Family::new("nullhop_test_total", &["a", "b"], "Test?");
        family.get([LabelValue::Static("x"), LabelValue::Static("yz")]).add(1);
        family.get([LabelValue::Static("xy"), LabelValue::Static("z")]).add(2);
        assert_eq!(family.collect()[0].get_metric().len(), 2);
        family.remove([LabelValue::Static("x"), LabelValue::Static("yz")]);
        assert_eq!(family.collect()[0].get_metric().len(), 1);
    }
}
