//! Who has used how much: one state for each key, account, upstream and caller, shared by all workers.
//!
//! A request that is admitted holds a [`Reservation`] for as long as its answer's body; its drop settles. Locks are held for
//! a few dozen nanoseconds of arithmetic, never across an await.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use dashmap::DashMap;

use crate::limits::Amount;
use crate::limits::Calendar;
use crate::limits::Exceeded;
use crate::limits::Kind;
use crate::limits::Left;
use crate::limits::Limits;
use crate::limits::State;

/// Whose limits. A request is counted against at most one of each, and they are locked in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Scope {
    /// A client key, or in pass-through a credential.
    Key,
    Account,
    Upstream,
}

/// How many scopes there are.
const SCOPES: usize = 3;

/// Callers in pass-through that are remembered at once. Beyond it, newcomers share one state: they are limited together,
/// and nobody gets rid of a limit by coming with many credentials.
const CALLERS_MAX: usize = 100_000;

/// One of whom there are limits for.
pub(crate) struct Subject {
    scope: Scope,
    account: Mutex<Account>,
}

struct Account {
    limits: Arc<Limits>,
    state: State,
}

/// Everybody who is limited.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By names of the configuration and of the file of keys.
    named: DashMap<(Scope, Box<str>), Arc<Subject>>,
    /// By a hash of their credential that only this process can make.
    callers: DashMap<(u64, u64), Arc<Subject>>,
}

/// Why a request is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused {
    pub(crate) scope: Scope,
    pub(crate) exceeded: Exceeded,
}

/// Places and tokens that a request has taken. Dropped without [`Reservation::settle`]: nothing was used.
pub(crate) struct Reservation {
    subjects: [Option<Arc<Subject>>; SCOPES],
    reserved: Amount,
    used: Amount,
    calendar: Calendar,
}

impl Subject {
    fn new(scope: Scope, limits: Arc<Limits>) -> Arc<Self> {
        let state = State::new(&limits);
        Arc::new(Self { scope, account: Mutex::new(Account { limits, state }) })
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        // Arithmetic does not panic half-way; a state is whole even then.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits from now on; what was used stays used.
    fn limit(&self, limits: &Arc<Limits>, now: u64) {
        let mut account = self.lock();
        if account.limits != *limits {
            account.state = account.state.fit(&account.limits, limits, now);
        }
        account.limits = limits.clone();
    }

    /// What is left of a kind, for an API's own headers.
    pub(crate) fn left(&self, kind: Kind, now: u64) -> Option<Left> {
        let account = self.lock();
        account.state.left(&account.limits, kind, now)
    }

    /// Streams that run.
    pub(crate) fn open(&self) -> u32 {
        self.lock().state.open()
    }
}

impl Ledger {
    /// The subject of this name, with these limits from now on. Called when a configuration is loaded.
    pub(crate) fn subject(&self, scope: Scope, name: &str, limits: &Arc<Limits>, now: u64) -> Arc<Subject> {
        let entry = self.named.entry((scope, name.into())).or_insert_with(|| Subject::new(scope, limits.clone()));
        let subject = entry.clone();
        drop(entry);
        subject.limit(limits, now);
        subject
    }

    /// The caller whose credential has this hash.
    pub(crate) fn caller(&self, hash: (u64, u64), limits: &Arc<Limits>) -> Arc<Subject> {
        if let Some(known) = self.callers.get(&hash) {
            return known.clone();
        }
        let hash = if self.callers.len() >= CALLERS_MAX { (0, 0) } else { hash };
        self.callers.entry(hash).or_insert_with(|| Subject::new(Scope::Key, limits.clone())).clone()
    }

    /// Forgets callers who have nothing open and nothing taken. Once a minute.
    pub(crate) fn sweep(&self, now: u64) {
        self.callers.retain(|_, subject| {
            let account = subject.lock();
            // Whoever holds it elsewhere is about to use it.
            Arc::strong_count(subject) > 1 || !account.state.is_at_rest(&account.limits, now)
        });
    }

    /// Callers that are remembered.
    pub(crate) fn callers(&self) -> usize {
        self.callers.len()
    }
}

/// Takes what a request may use from all of `subjects`, or nothing from any.
///
/// # Errors
/// The limit that holds longest.
pub(crate) fn admit(
    subjects: [Option<Arc<Subject>>; SCOPES],
    wanted: Amount,
    now: u64,
    calendar: Calendar,
) -> Result<Reservation, Refused> {
    debug_assert!(subjects.iter().flatten().is_sorted_by(|one, other| one.scope < other.scope), "one order of locks");
    {
        let mut accounts: [Option<MutexGuard<'_, Account>>; SCOPES] =
            std::array::from_fn(|place| subjects[place].as_ref().map(|subject| subject.lock()));
        let mut worst: Option<Refused> = None;
        for (subject, account) in subjects.iter().zip(&mut accounts) {
            let (Some(subject), Some(account)) = (subject, account) else { continue };
            let Account { limits, state } = &mut **account;
            if let Err(exceeded) = state.check(limits, &wanted, now, &calendar) {
                let rank = |exceeded: &Exceeded| (exceeded.never, exceeded.retry_after.unwrap_or(0));
                if worst.as_ref().is_none_or(|known| rank(&exceeded) > rank(&known.exceeded)) {
                    worst = Some(Refused { scope: subject.scope, exceeded });
                }
            }
        }
        if let Some(refused) = worst {
            return Err(refused);
        }
        for account in accounts.iter_mut().flatten() {
            let Account { limits, state } = &mut **account;
            state.reserve(limits, &wanted, now);
        }
    }
    Ok(Reservation { subjects, reserved: wanted, used: Amount::default(), calendar })
}

impl Reservation {
    /// What was reserved.
    pub(crate) fn reserved(&self) -> Amount {
        self.reserved
    }

    /// Says what was used. The last word counts; the drop writes it down.
    pub(crate) fn settle(&mut self, used: Amount) {
        self.used = used;
    }

    /// Whether a budget does not reach for what a stream has used so far.
    pub(crate) fn is_spent(&self, so_far: &Amount) -> bool {
        self.subjects.iter().flatten().any(|subject| {
            let mut account = subject.lock();
            let Account { limits, state } = &mut *account;
            state.spent(limits, so_far, &self.calendar)
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for subject in self.subjects.iter().flatten() {
            let mut account = subject.lock();
            let Account { limits, state } = &mut *account;
            state.settle(limits, &self.reserved, &self.used, &self.calendar);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limit;
    use crate::limits::Rate;

    const SECOND: u64 = 1_000_000_000;
    const CALENDAR: Calendar = Calendar { day: 1, month: 1, day_ends: u64::MAX, month_ends: u64::MAX };

    fn limits(concurrency: u32, tokens: u64) -> Arc<Limits> {
        let rate = Rate { kind: Kind::Tokens, amount: tokens, window: 60 * SECOND };
        Arc::new(Limits { concurrency: Some(concurrency), rates: [rate].into(), budgets: [].into() })
    }

    fn tokens(input: u64) -> Amount {
        Amount { input, ..Amount::default() }
    }

    #[test]
    fn a_burst_never_passes_a_limit_below_it() {
        let ledger = Ledger::default();
        for (places, budget, passing) in [(7, 1_000_000, 7), (1000, 550, 5), (1000, 1_000_000, 64)] {
            let key = ledger.subject(Scope::Key, "k", &limits(1000, 1_000_000), 0);
            let account = ledger.subject(Scope::Account, &format!("{places} {budget}"), &limits(places, budget), 0);
            let passed: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..64)
                    .map(|_| {
                        let subjects = [Some(key.clone()), Some(account.clone()), None];
                        scope.spawn(move || admit(subjects, tokens(100), SECOND, CALENDAR).ok())
                    })
                    .collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(passed.len(), passing);
            assert_eq!((key.open(), account.open()), (passing as u32, passing as u32));
            drop(passed);
            assert_eq!((key.open(), account.open()), (0, 0));
            // Nothing was used, so all of it is there again.
            assert_eq!(account.left(Kind::Tokens, SECOND).unwrap().remaining, budget);
        }
    }

    #[test]
    fn what_one_scope_refuses_no_other_counts() {
        let ledger = Ledger::default();
        let key = ledger.subject(Scope::Key, "k", &limits(10, 1000), 0);
        let upstream = ledger.subject(Scope::Upstream, "u", &limits(10, 50), 0);
        let refused = admit([Some(key.clone()), None, Some(upstream)], tokens(40), 0, CALENDAR).ok().map(|first| {
            let subjects = [Some(key.clone()), None, first.subjects[2].clone()];
            admit(subjects, tokens(40), 0, CALENDAR).err().expect("80 of 50")
        });
        let refused = refused.expect("40 of 50");
        assert_eq!((refused.scope, refused.exceeded.limit), (Scope::Upstream, Limit::Rate(Kind::Tokens)));
        assert_eq!(key.open(), 0);
        assert_eq!(key.left(Kind::Tokens, 0).unwrap().remaining, 1000);
    }

    #[test]
    fn what_was_used_is_written_down_once_and_may_be_more() {
        let ledger = Ledger::default();
        let key = ledger.subject(Scope::Key, "k", &limits(10, 1000), 0);
        let mut reservation = admit([Some(key.clone()), None, None], tokens(100), 0, CALENDAR).ok().unwrap();
        reservation.settle(tokens(5));
        reservation.settle(tokens(1500));
        drop(reservation);
        assert_eq!(key.left(Kind::Tokens, 0).unwrap().remaining, 0);
        assert!(admit([Some(key.clone()), None, None], tokens(1), 30 * SECOND, CALENDAR).is_err());
        assert!(admit([Some(key.clone()), None, None], tokens(1), 31 * SECOND, CALENDAR).is_ok());
    }

    #[test]
    fn a_reload_keeps_what_was_used() {
        let ledger = Ledger::default();
        let key = ledger.subject(Scope::Key, "k", &limits(10, 1000), 0);
        let mut reservation = admit([Some(key), None, None], tokens(0), 0, CALENDAR).ok().unwrap();
        reservation.settle(tokens(900));
        let again = ledger.subject(Scope::Key, "k", &limits(1, 1000), 0);
        assert_eq!(again.open(), 1);
        assert!(admit([Some(again.clone()), None, None], tokens(0), 0, CALENDAR).is_err());
        drop(reservation);
        assert_eq!(again.left(Kind::Tokens, 0).unwrap().remaining, 100);
    }

    #[test]
    fn callers_are_bounded_and_forgotten() {
        let ledger = Ledger::default();
        let limits = limits(1, 100);
        for number in 0..CALLERS_MAX as u64 + 100 {
            ledger.caller((number, 1), &limits);
        }
        assert_eq!(ledger.callers(), CALLERS_MAX + 1);
        let busy = ledger.caller((5, 1), &limits);
        let mut reservation = admit([Some(busy), None, None], tokens(1), 0, CALENDAR).ok().unwrap();
        ledger.sweep(0);
        assert_eq!(ledger.callers(), 1);
        reservation.settle(tokens(50));
        drop(reservation);
        // Half of the minute's tokens are taken: they come back within 30 s.
        ledger.sweep(29 * SECOND);
        assert_eq!(ledger.callers(), 1);
        ledger.sweep(30 * SECOND);
        assert_eq!(ledger.callers(), 0);
    }
}
