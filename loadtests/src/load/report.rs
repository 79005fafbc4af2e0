//! What came out, as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;
use serde_json::json;

use crate::load::Options;
use crate::load::proxies::Kind;
use crate::load::rows::Measure;
use crate::load::rows::Row;

/// All figures of a run.
pub struct Report {
    /// What it ran on.
    machine: String,
    versions: BTreeMap<Kind, String>,
    rounds: usize,
    rows: Vec<(Row, String)>,
    settings: Value,
    /// By row and figure; of each proxy one value a round.
    figures: Vec<Figure>,
    /// What went wrong. None of it may be ignored.
    pub faults: Vec<String>,
}

struct Figure {
    row: Row,
    name: &'static str,
    unit: &'static str,
    judged: bool,
    values: BTreeMap<Kind, BTreeMap<usize, f64>>,
}

impl Figure {
    fn median(&self, kind: Kind) -> Option<f64> {
        median(self.values.get(&kind)?.values().copied().collect())
    }

    /// The median of the rounds' ratios: what the machine did to a round is in both sides of each.
    fn ratio(&self, kind: Kind) -> Option<f64> {
        let (own, base) = (self.values.get(&kind)?, self.values.get(&Kind::Nginx)?);
        median(own.iter().filter_map(|(round, value)| Some(value / base.get(round)?)).collect())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

impl Report {
    pub(crate) fn new(machine: String, versions: BTreeMap<Kind, String>, options: &Options) -> Report {
        Report {
            machine,
            versions,
            rounds: options.rounds,
            rows: options.rows.iter().map(|row| (*row, row.title(&options.scale))).collect(),
            settings: json!({
                "upstream": if options.upstream_h2 { "h2 for nullhop, h1 for others" } else { "h1" },
                "full": options.full,
                "workers": options.workers,
                "pinned": options.pin,
            }),
            figures: Vec::new(),
            faults: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, round: usize, row: Row, kind: Kind, measures: Vec<Measure>) {
        for Measure { name, unit, value, judged } in measures {
            let known = self.figures.iter().position(|figure| figure.row == row && figure.name == name);
            let at = known.unwrap_or_else(|| {
                self.figures.push(Figure { row, name, unit, judged, values: BTreeMap::new() });
                self.figures.len() - 1
            });
            self.figures[at].values.entry(kind).or_default().insert(round, value);
        }
    }

    /// The median of a figure, for tests: the row's own if `name` is empty.
    pub fn figure(&self, row: Row, name: &str, kind: Kind) -> Option<f64> {
        self.figures.iter().find(|figure| figure.row == row && figure.name == name)?.median(kind)
    }

    /// For people: medians, and the medians of the ratios to nginx.
    pub fn table(&self) -> String {
        let mut out = format!("{}, {} rounds\n", self.machine, self.rounds);
        for (kind, version) in &self.versions {
            let _ = writeln!(out, "{kind}: {version}");
        }
        let kinds: Vec<Kind> = self.versions.keys().copied().collect();
        let compared: Vec<Kind> = kinds.iter().copied().filter(|kind| *kind != Kind::Nginx).collect();
        let compare = kinds.contains(&Kind::Nginx);
        let _ = write!(out, "\n{:<62} {:<12}", "", "");
        for kind in &kinds {
            let _ = write!(out, " {:>9}", kind.name());
        }
        for kind in compared.iter().filter(|_| compare) {
            let _ = write!(out, " {:>14}", format!("{kind}/nginx"));
        }
        out.push('\n');
        for (row, title) in &self.rows {
            for figure in self.figures.iter().filter(|figure| figure.row == *row && figure.judged) {
                let name = if figure.name.is_empty() { title.clone() } else { format!("{title}: {}", figure.name) };
                let _ = write!(out, "{name:<62} {:<12}", figure.unit);
                for kind in &kinds {
                    let _ = write!(out, " {:>9}", figure.median(*kind).map_or("-".into(), number));
                }
                for kind in compared.iter().filter(|_| compare) {
                    let _ =
                        write!(out, " {:>14}", figure.ratio(*kind).map_or("-".into(), |ratio| format!("{ratio:.2}")));
                }
                out.push('\n');
            }
        }
        for fault in &self.faults {
            let _ = writeln!(out, "FAULT {fault}");
        }
        out
    }

    /// For machines: every value of every round.
    pub fn json(&self) -> Value {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|figure| {
                let proxies: serde_json::Map<String, Value> = figure
                    .values
                    .iter()
                    .map(|(kind, values)| {
                        let value = json!({
                            "median": figure.median(*kind),
                            "ratio_to_nginx": figure.ratio(*kind),
                            "rounds": values.values().collect::<Vec<_>>(),
                        });
                        (kind.name().to_owned(), value)
                    })
                    .collect();
                let title = self.rows.iter().find(|(row, _)| *row == figure.row).map(|(_, title)| title);
                json!({
                    "row": figure.row.name(),
                    "title": title,
                    "figure": figure.name,
                    "unit": figure.unit,
                    "judged": figure.judged,
                    "proxies": proxies,
                })
            })
            .collect();
        let versions: BTreeMap<_, _> = self.versions.iter().map(|(kind, version)| (kind.name(), version)).collect();
        json!({
            "machine": self.machine,
            "versions": versions,
            "rounds": self.rounds,
            "settings": self.settings,
            "figures": figures,
            "faults": self.faults,
        })
    }
}

/// The figures of one measurement in a line.
pub fn brief(measures: &[Measure]) -> String {
    let told = measures.iter().map(|Measure { name, unit, value, .. }| {
        let words = [*name, &number(*value), *unit];
        words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ")
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let mut figure = Figure { row: Row::Unary, name: "", unit: "us", judged: true, values: BTreeMap::new() };
        for (round, (nginx, nullhop)) in [(10.0, 8.0), (100.0, 90.0), (20.0, 10.0)].into_iter().enumerate() {
            figure.values.entry(Kind::Nginx).or_default().insert(round, nginx);
            figure.values.entry(Kind::Nullhop).or_default().insert(round, nullhop);
        }
        assert_eq!(figure.median(Kind::Nginx), Some(20.0));
        assert_eq!(figure.ratio(Kind::Nullhop), Some(0.8));
        assert_eq!(figure.ratio(Kind::Haproxy), None);
        assert_eq!(median(vec![1.0, 2.0]), Some(1.5));
    }
}
