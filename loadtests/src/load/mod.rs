//! The load test: what it costs to stand between clients and a provider, for nullhop beside nginx and HAProxy.
//!
//! `cargo run --release -p nullhop-loadtests --bin load` runs it; `docs/performance.md` tells how it measures and how to
//! read it. One process holds the clients and the provider ([`provider`]), on one thread if the machine has two cores; the
//! proxies ([`proxies`]) take turns on the other core. Every byte of every body is compared ([`content`]); what a proxy
//! costs is read from the kernel ([`machine`]).

pub mod content;
pub mod wire;

pub mod client;
pub mod provider;
pub mod suite;

pub mod machine;
pub mod proxies;

pub mod report;
pub mod rows;

use std::collections::BTreeMap;

use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::BoxError;
use crate::load::machine::Cores;
use crate::load::machine::First;
use crate::load::proxies::Kind;
use crate::load::proxies::Programs;
use crate::load::proxies::Site;
use crate::load::report::Report;
use crate::load::rows::Bench;
use crate::load::rows::Row;
use crate::load::rows::Scale;
use crate::tls::Ca;

/// What is to be run.
pub struct Options {
    /// Who; those that are not installed are left out and named.
    pub proxies: Vec<Kind>,
    /// What.
    pub rows: Vec<Row>,
    /// How often.
    pub rounds: usize,
    /// How big.
    pub scale: Scale,
    /// Where nullhop's binary is.
    pub programs: Programs,
    /// Everyone on a core of his own. Without it, times mean nothing.
    pub pin: bool,
    /// h2 towards the provider, for nullhop; the others stay on h1.
    pub upstream_h2: bool,
    /// nullhop with keys, limits and the usage journal.
    pub full: bool,
    /// Threads or processes of each proxy; more than one needs `pin` to be off.
    pub workers: usize,
}

/// Runs it all: in each round each row, in each row each proxy, so that what a noisy machine does to one hits its
/// neighbours, too. `progress` gets a line for each step.
pub fn run(options: &Options, progress: &dyn Fn(&str)) -> Result<Report, BoxError> {
    let machine = machine::describe();
    machine::raise_descriptors(40_000);
    let cores = if options.pin { Some(Cores::of_machine()?) } else { None };
    if let Some(cores) = cores {
        machine::pin(cores.load)?;
    }
    let first = options.pin.then(First::ask);
    if first.as_ref().is_some_and(|first| !first.granted) {
        progress("no right to go before others: on a machine that is not idle events are relayed in heaps");
    }
    let mut versions = BTreeMap::new();
    for kind in &options.proxies {
        match kind.version(&options.programs) {
            Ok(version) => drop(versions.insert(*kind, version)),
            Err(error) => progress(&format!("{kind} is left out: {error}")),
        }
    }
    let proxies: Vec<Kind> = options.proxies.iter().copied().filter(|kind| versions.contains_key(kind)).collect();
    let mut report = Report::new(machine, versions, options);
    let ca = Ca::new("Load Test CA");
    let site = Site::new(&ca, options.programs.clone(), cores, options.upstream_h2, options.full, options.workers)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let rounds = async {
        let bench = Bench::new(&ca, &site, &options.scale, cores, options.upstream_h2)?;
        for round in 0..options.rounds {
            for row in &options.rows {
                let mut base = None;
                let direct = row.needs_direct().then_some(Kind::Direct);
                for kind in direct.into_iter().chain(proxies.iter().copied()) {
                    match bench.measure(*row, kind, base.as_deref()).await {
                        Ok(measures) => {
                            progress(&format!(
                                "round {} {:<18} {kind:<8} {}",
                                round + 1,
                                row.name(),
                                report::brief(&measures)
                            ));
                            if kind == Kind::Direct {
                                base = Some(measures.clone());
                            }
                            report.add(round, *row, kind, measures);
                        }
                        Err(error) => {
                            let fault = format!("round {} {} {kind}: {error}", round + 1, row.name());
                            progress(&fault);
                            report.faults.push(fault);
                        }
                    }
                }
            }
        }
        Ok::<(), BoxError>(())
    };
    local.block_on(&runtime, async {
        // Told to end, the tool takes the proxies with it.
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            done = rounds => done,
            _ = terminated.recv() => Err("told to end".into()),
            _ = tokio::signal::ctrl_c() => Err("told to end".into()),
        }
    })?;
    Ok(report)
}
