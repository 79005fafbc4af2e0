//! Budgets after a start: what the journal says was used in the day and the month that run.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::clock;
use super::ledger::Ledger;
use super::ledger::Scope;
use crate::journal;
use crate::journal::Replay;
use crate::limits::Amount;

/// Puts what the journal in `folder` says into the budgets of `ledger`, whose subjects are made already. To be called once,
/// before anything is admitted. Callers in pass-through without a key have no name there and begin anew.
///
/// # Errors
/// If a file cannot be read; what was read until then counts.
pub(crate) fn restore(
    ledger: &Ledger,
    folder: &Path,
    zone: &TimeZone,
    wall: Timestamp,
    now: u64,
) -> (Replay, io::Result<()>) {
    let (day, month) = clock::began(zone, wall);
    let mut sums: HashMap<(Scope, Arc<str>), [Amount; 2]> = HashMap::new();
    let mut read = Replay::default();
    let done = journal::replay(folder, day.min(month), &mut |event| {
        read.events += 1;
        let amount = Amount { requests: 1, input: event.input, output: event.output, money: event.cost };
        let names = [(Scope::Key, event.key), (Scope::Account, event.account), (Scope::Upstream, Some(event.upstream))];
        for (scope, name) in names {
            let Some(name) = name else { continue };
            let sum = sums.entry((scope, name.into())).or_default();
            if event.time >= day {
                sum[0].add(&amount);
            }
            if event.time >= month {
                sum[1].add(&amount);
            }
        }
    });
    let calendar = clock::calendar(zone, wall, now);
    ledger.each_named(|subject| {
        let Some(name) = subject.name() else { return };
        if let Some([day, month]) = sums.get(&(subject.scope(), name.clone())) {
            subject.restore(day, month, &calendar);
        }
    });
    let read = done.as_ref().copied().unwrap_or(read);
    (read, done.map(drop))
}
