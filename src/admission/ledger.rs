//! Who has used how much: one state for each key, account, upstream and caller, shared by all workers.
//!
//! A request that is admitted holds a [`Reservation`] for as long as its answer's body; its drop settles. Locks are held for
//! a few dozen nanoseconds of arithmetic, never across an await.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use dashmap::DashMap;

use crate::limits::Amount;
use crate::limits::Calendar;
use crate::limits::Class;
use crate::limits::Exceeded;
use crate::limits::Kind;
use crate::limits::Left;
use crate::limits::Limits;
use crate::limits::Settled;
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
    /// `None`: a caller in pass-through.
    name: Option<Arc<str>>,
    /// A key that has been revoked: its open streams may be cut for it.
    closed: AtomicBool,
    /// Which classes of limits it has, a bit for each; so that nobody locks it to ask.
    classes: AtomicU8,
    account: Mutex<Account>,
}

struct Account {
    limits: Arc<Limits>,
    state: State,
}

/// At most one of each scope, in the order of their locks.
pub(crate) type Subjects = [Option<Arc<Subject>>; SCOPES];

/// Everybody who is limited.
#[derive(Default)]
pub(crate) struct Ledger {
    /// By names of the configuration and of the file of keys.
    named: DashMap<(Scope, Arc<str>), Arc<Subject>>,
    /// By a hash of their credential that only this process can make.
    callers: DashMap<(u64, u64), Arc<Subject>>,
}

/// Why a request is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Exhausted {
    pub(crate) scope: Scope,
    pub(crate) exceeded: Exceeded,
}

/// Places and tokens that a request has taken. Dropped without [`Reservation::settle`]: the request counts, and nothing
/// else of it.
pub(crate) struct Reservation {
    subjects: Subjects,
    reserved: Amount,
    /// The latest moment that it knows.
    now: u64,
    calendar: Calendar,
    settled: bool,
}

impl Subject {
    fn new(scope: Scope, name: Option<Arc<str>>, limits: Arc<Limits>) -> Arc<Self> {
        let state = State::new(&limits);
        let classes = AtomicU8::new(classes_of(&limits));
        let account = Mutex::new(Account { limits, state });
        Arc::new(Self { scope, name, closed: AtomicBool::new(false), classes, account })
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
        self.classes.store(classes_of(limits), Relaxed);
    }

    /// What was used before this process began.
    pub(crate) fn restore(&self, day: &Amount, month: &Amount, calendar: &Calendar) {
        let mut account = self.lock();
        let Account { limits, state } = &mut *account;
        state.restore(limits, day, month, calendar);
    }

    /// Whose it is.
    pub(crate) fn scope(&self) -> Scope {
        self.scope
    }

    /// Its name in the configuration or the file of keys.
    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// What is left of some kinds, for an API's own headers.
    pub(crate) fn left<const KINDS: usize>(&self, kinds: [Kind; KINDS], now: u64) -> [Option<Left>; KINDS] {
        let account = self.lock();
        kinds.map(|kind| account.state.left(&account.limits, kind, now))
    }

    /// How much of each class of limits is taken, in the order of [`Class::ALL`].
    pub(crate) fn used_ratios(&self, now: u64) -> [Option<f64>; Class::ALL.len()] {
        let account = self.lock();
        Class::ALL.map(|class| account.state.used_ratio(&account.limits, class, now))
    }

    /// Whether it has limits of a class.
    pub(crate) fn has(&self, class: Class) -> bool {
        self.classes.load(Relaxed) & (1 << class as u8) != 0
    }

    /// Streams that run.
    #[cfg(test)]
    pub(crate) fn open(&self) -> u32 {
        self.lock().state.open()
    }

    /// Whether the key has been revoked.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// The key is revoked, or is not any more.
    pub(crate) fn close(&self, closed: bool) {
        self.closed.store(closed, Relaxed);
    }
}

impl Ledger {
    /// The subject of this name, with these limits from now on. Called when a configuration or a file of keys is loaded.
    pub(crate) fn subject(&self, scope: Scope, name: &Arc<str>, limits: &Arc<Limits>, now: u64) -> Arc<Subject> {
        let entry = self.named.entry((scope, name.clone()));
        let entry = entry.or_insert_with(|| Subject::new(scope, Some(name.clone()), limits.clone()));
        let subject = entry.clone();
        drop(entry);
        subject.limit(limits, now);
        subject
    }

    /// Every subject that has a name.
    pub(crate) fn each_named(&self, mut see: impl FnMut(&Arc<Subject>)) {
        self.named.iter().for_each(|entry| see(entry.value()));
    }

    /// Forgets the names of which nobody speaks any more and who have nothing open.
    pub(crate) fn forget_unused(&self) {
        self.named.retain(|_, subject| Arc::strong_count(subject) > 1);
    }

    /// The caller whose credential has this hash.
    pub(crate) fn caller(&self, hash: (u64, u64), limits: &Arc<Limits>, now: u64) -> Arc<Subject> {
        if let Some(known) = self.callers.get(&hash) {
            let subject = known.clone();
            drop(known);
            if !Arc::ptr_eq(&subject.lock().limits, limits) {
                subject.limit(limits, now);
            }
            return subject;
        }
        let hash = if self.callers.len() >= CALLERS_MAX { (0, 0) } else { hash };
        self.callers.entry(hash).or_insert_with(|| Subject::new(Scope::Key, None, limits.clone())).clone()
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
    #[cfg(test)]
    pub(crate) fn callers(&self) -> usize {
        self.callers.len()
    }
}

fn classes_of(limits: &Limits) -> u8 {
    Class::ALL.into_iter().filter(|class| limits.has(*class)).fold(0, |bits, class| bits | 1 << class as u8)
}

/// Locks all of `subjects`, in their order.
fn lock_all(subjects: &Subjects) -> [Option<MutexGuard<'_, Account>>; SCOPES] {
    std::array::from_fn(|place| subjects[place].as_ref().map(|subject| subject.lock()))
}

/// The refusal that holds longest, if anybody refuses.
fn worst(
    subjects: &Subjects,
    accounts: &mut [Option<MutexGuard<'_, Account>>; SCOPES],
    mut check: impl FnMut(&Limits, &mut State) -> Result<(), Exceeded>,
) -> Result<(), Exhausted> {
    let mut worst: Option<Exhausted> = None;
    for (subject, account) in subjects.iter().zip(accounts) {
        let (Some(subject), Some(account)) = (subject, account) else { continue };
        let Account { limits, state } = &mut **account;
        if let Err(exceeded) = check(limits, state) {
            let rank = |exceeded: &Exceeded| (exceeded.never, exceeded.retry_after.unwrap_or(0));
            if worst.as_ref().is_none_or(|known| rank(&exceeded) > rank(&known.exceeded)) {
                worst = Some(Exhausted { scope: subject.scope, exceeded });
            }
        }
    }
    worst.map_or(Ok(()), Err)
}

/// Takes what a request may use from all of `subjects`, or nothing from any. On an error they are given back.
///
/// # Errors
/// The limit that holds longest.
pub(crate) fn admit(
    subjects: Subjects,
    wanted: Amount,
    now: u64,
    calendar: Calendar,
) -> Result<Reservation, (Exhausted, Subjects)> {
    debug_assert!(subjects.iter().flatten().is_sorted_by(|one, other| one.scope < other.scope), "one order of locks");
    let checked = {
        let mut accounts = lock_all(&subjects);
        let checked = worst(&subjects, &mut accounts, |limits, state| state.check(limits, &wanted, now, &calendar));
        if checked.is_ok() {
            for account in accounts.iter_mut().flatten() {
                let Account { limits, state } = &mut **account;
                state.reserve(limits, &wanted, now);
            }
        }
        checked
    };
    match checked {
        Ok(()) => Ok(Reservation { subjects, reserved: wanted, now, calendar, settled: false }),
        Err(exhausted) => Err((exhausted, subjects)),
    }
}

impl Reservation {
    /// What is reserved.
    pub(crate) fn reserved(&self) -> Amount {
        self.reserved
    }

    /// Who is limited.
    pub(crate) fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    /// Reserves `wanted` instead of what is reserved, or changes nothing.
    ///
    /// # Errors
    /// The limit that holds longest.
    pub(crate) fn resize(&mut self, wanted: Amount, now: u64) -> Result<(), Exhausted> {
        let calendar = self.calendar;
        self.change(wanted, now, |limits, state, old| state.check_resize(limits, old, &wanted, now, &calendar))
    }

    /// The same for one that asks for more and more: only what is new has to fit.
    ///
    /// # Errors
    /// The limit that does not have it. Nothing has changed then.
    pub(crate) fn extend(&mut self, wanted: Amount, now: u64) -> Result<(), Exhausted> {
        let calendar = self.calendar;
        self.change(wanted, now, |limits, state, old| state.check_more(limits, old, &wanted, now, &calendar))
    }

    fn change(
        &mut self,
        wanted: Amount,
        now: u64,
        check: impl Fn(&Limits, &mut State, &Amount) -> Result<(), Exceeded>,
    ) -> Result<(), Exhausted> {
        let old = self.reserved;
        let mut accounts = lock_all(&self.subjects);
        worst(&self.subjects, &mut accounts, |limits, state| check(limits, state, &old))?;
        for account in accounts.iter_mut().flatten() {
            let Account { limits, state } = &mut **account;
            state.resize(limits, &old, &wanted, now);
        }
        drop(accounts);
        self.reserved = wanted;
        self.now = now;
        Ok(())
    }

    /// Whether a budget does not reach for what a stream has used so far.
    pub(crate) fn is_spent(&self, so_far: &Amount) -> bool {
        self.subjects.iter().flatten().any(|subject| {
            let mut account = subject.lock();
            let Account { limits, state } = &mut *account;
            state.spent(limits, so_far, &self.calendar)
        })
    }

    /// Whether the key has been revoked.
    pub(crate) fn is_closed(&self) -> bool {
        self.subjects[0].as_ref().is_some_and(|subject| subject.is_closed())
    }

    /// Writes down what was used and gives the places back. `told` hears of each subject what became of it. Once.
    pub(crate) fn settle(&mut self, used: Amount, now: u64, mut told: impl FnMut(&Subject, Settled)) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        for subject in self.subjects.iter().flatten() {
            let settled = {
                let mut account = subject.lock();
                let Account { limits, state } = &mut *account;
                state.settle(limits, &self.reserved, &used, now, &self.calendar)
            };
            told(subject, settled);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let used = Amount { requests: self.reserved.requests, ..Amount::default() };
        self.settle(used, self.now, |_, _| {});
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
            let key = ledger.subject(Scope::Key, &"k".into(), &limits(1000, 1_000_000), 0);
            let account =
                ledger.subject(Scope::Account, &format!("{places} {budget}").into(), &limits(places, budget), 0);
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
            assert_eq!(account.left([Kind::Tokens], SECOND)[0].unwrap().remaining, budget);
        }
    }

    #[test]
    fn what_one_scope_refuses_no_other_counts() {
        let ledger = Ledger::default();
        let key = ledger.subject(Scope::Key, &"k".into(), &limits(10, 1000), 0);
        let upstream = ledger.subject(Scope::Upstream, &"u".into(), &limits(10, 50), 0);
        let refused = admit([Some(key.clone()), None, Some(upstream)], tokens(40), 0, CALENDAR).ok().map(|first| {
            let subjects = [Some(key.clone()), None, first.subjects[2].clone()];
            admit(subjects, tokens(40), 0, CALENDAR).err().expect("80 of 50").0
        });
        let refused = refused.expect("40 of 50");
        assert_eq!((refused.scope, refused.exceeded.limit), (Scope::Upstream, Limit::Rate(Kind::Tokens)));
        assert_eq!(key.open(), 0);
        assert_eq!(key.left([Kind::Tokens], 0)[0].unwrap().remaining, 1000);
    }

    #[test]
    fn what_was_used_is_written_down_once_and_may_be_more() {
        let ledger = Ledger::default();
        let key = ledger.subject(Scope::Key, &"k".into(), &limits(10, 1000), 0);
        let mut reservation = admit([Some(key.clone()), None, None], tokens(100), 0, CALENDAR).ok().unwrap();
        reservation.settle(tokens(1500), 0, |_, settled| assert_eq!(settled.overrun, 1400));
        reservation.settle(tokens(5), 0, |_, _| panic!("settled twice"));
        drop(reservation);
        assert_eq!(key.left([Kind::Tokens], 0)[0].unwrap().remaining, 0);
        assert!(admit([Some(key.clone()), None, None], tokens(1), 30 * SECOND, CALENDAR).is_err());
        assert!(admit([Some(key.clone()), None, None], tokens(1), 31 * SECOND, CALENDAR).is_ok());
    }

    #[test]
    fn a_reload_keeps_what_was_used() {
        let ledger = Ledger::default();
        let key = ledger.subject(Scope::Key, &"k".into(), &limits(10, 1000), 0);
        let mut reservation = admit([Some(key), None, None], tokens(0), 0, CALENDAR).ok().unwrap();
        let again = ledger.subject(Scope::Key, &"k".into(), &limits(1, 1000), 0);
        assert_eq!(again.open(), 1);
        assert!(admit([Some(again.clone()), None, None], tokens(0), 0, CALENDAR).is_err());
        reservation.settle(tokens(900), 0, |_, _| {});
        drop(reservation);
        assert_eq!(again.left([Kind::Tokens], 0)[0].unwrap().remaining, 100);
    }

    #[test]
    fn callers_are_bounded_and_forgotten() {
        let ledger = Ledger::default();
        let limits = limits(1, 100);
        for number in 0..CALLERS_MAX as u64 + 100 {
            ledger.caller((number, 1), &limits, 0);
        }
        assert_eq!(ledger.callers(), CALLERS_MAX + 1);
        let busy = ledger.caller((5, 1), &limits, 0);
        let mut reservation = admit([Some(busy), None, None], tokens(1), 0, CALENDAR).ok().unwrap();
        ledger.sweep(0);
        assert_eq!(ledger.callers(), 1);
        reservation.settle(tokens(50), 0, |_, _| {});
        drop(reservation);
        // Half of the minute's tokens are taken: they come back within 30 s.
        ledger.sweep(29 * SECOND);
        assert_eq!(ledger.callers(), 1);
        ledger.sweep(30 * SECOND);
        assert_eq!(ledger.callers(), 0);
    }
}
