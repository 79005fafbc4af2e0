//! What nullhop says about itself: counts, durations and sizes under labels from closed sets.
//!
//! - `labels`: the label values, and names from the configuration.
//! - `metrics`: the families of `docs/metrics.md` and the handles through which the rest of the crate moves them.
//! - `keys`: the families of client keys.
//! - `series`: what a family is made of where the crate's own do not fit.
//! - `log`: the log lines, each an event without content.
//! - `models`: from a model's name to a label.
//! - `exporter`: `/metrics`.
//!
//! Higher modules turn their faults into labels. Nothing here learns a fault, a header, a path or an address of a peer.

pub(crate) mod exporter;
pub(crate) mod keys;
pub(crate) mod labels;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod models;
mod series;

#[cfg(test)]
mod catalogue;
