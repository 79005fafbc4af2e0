//! Limits as arithmetic: rates, places and budgets of one subject (a key, an account, an upstream).
//!
//! Pure: time is an argument, nothing is shared, nothing is rounded. A rate is the generic cell rate algorithm (GCRA,
//! ITU-T I.371 appendix I.2.1) on integers: of a rate of `amount` in `window`, at most `amount` can be had at once, and
//! what was used comes back evenly. A budget is what may be used up to a moment, after which it begins anew.

/// What a limit counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    Requests,
    InputTokens,
    OutputTokens,
    /// Input and output together.
    Tokens,
    /// Picodollars: 10^-12 USD. A price of one micro-dollar for a million tokens is one of these for each.
    Money,
}

/// An amount of everything that limits count. What is reserved on admission, and what was used in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Amount {
    /// 1 for a request; a WebSocket has one for each answer that it asks for.
    pub(crate) requests: u64,
    pub(crate) input: u64,
    pub(crate) output: u64,
    /// Picodollars.
    pub(crate) money: u64,
}

impl Amount {
    /// One request that costs nothing else.
    pub(crate) const REQUEST: Self = Self { requests: 1, input: 0, output: 0, money: 0 };

    /// Adds another one.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.money = self.money.saturating_add(other.money);
    }

    fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Requests => self.requests,
            Kind::InputTokens => self.input,
            Kind::OutputTokens => self.output,
            Kind::Tokens => self.input.saturating_add(self.output),
            Kind::Money => self.money,
        }
    }
}

/// What became of a request's reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Settled {
    /// Tokens beyond those that were reserved.
    pub(crate) overrun: u64,
    /// A budget has passed its soft threshold with this, for the first time in its period.
    pub(crate) soft: bool,
}

/// So much in any stretch of time, coming back evenly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rate {
    pub(crate) kind: Kind,
    /// At least 1.
    pub(crate) amount: u64,
    /// Nanoseconds; at least 1.
    pub(crate) window: u64,
}

/// So much until a moment, then anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Budget {
    pub(crate) kind: Kind,
    pub(crate) amount: u64,
    pub(crate) period: Period,
    /// From this share on, in percent, the budget signals; it refuses nothing for that. 100: never.
    pub(crate) soft_percent: u8,
}

/// How long a budget lasts, in a time zone that whoever makes [`Calendar`] knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Period {
    Day,
    Month,
}

/// When the periods that run now end; nanoseconds on the same clock as every `now`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calendar {
    /// Numbers of the day and of the month that run, which only have to grow.
    pub(crate) day: u32,
    pub(crate) month: u32,
    pub(crate) day_ends: u64,
    pub(crate) month_ends: u64,
}

impl Calendar {
    fn number(&self, period: Period) -> u32 {
        match period {
            Period::Day => self.day,
            Period::Month => self.month,
        }
    }

    fn ends(&self, period: Period) -> u64 {
        match period {
            Period::Day => self.day_ends,
            Period::Month => self.month_ends,
        }
    }
}

/// What one subject may use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Limits {
    /// Streams at once.
    pub(crate) concurrency: Option<u32>,
    pub(crate) rates: Box<[Rate]>,
    pub(crate) budgets: Box<[Budget]>,
}

/// Which limit refuses, and when another try may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Exceeded {
    pub(crate) limit: Limit,
    /// Nanoseconds from now; `None` where only the end of another stream helps, or nothing.
    pub(crate) retry_after: Option<u64>,
    /// The amount asked for is more than the limit ever gives.
    pub(crate) never: bool,
}

/// One limit of a subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Limit {
    Concurrency,
    Rate(Kind),
    Budget(Kind, Period),
}

/// Limits by what an operator asks of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Concurrency,
    Requests,
    /// Of all kinds.
    Tokens,
    /// In tokens, requests or money.
    Budget,
}

impl Class {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Concurrency, Self::Requests, Self::Tokens, Self::Budget];
}

impl Limit {
    /// The class that it is counted in.
    pub(crate) fn class(self) -> Class {
        match self {
            Self::Concurrency => Class::Concurrency,
            Self::Rate(Kind::Requests) => Class::Requests,
            Self::Rate(_) => Class::Tokens,
            Self::Budget(..) => Class::Budget,
        }
    }
}

impl Limits {
    /// Whether there is a limit of this class.
    pub(crate) fn has(&self, class: Class) -> bool {
        match class {
            Class::Concurrency => self.concurrency.is_some(),
            Class::Budget => !self.budgets.is_empty(),
            _ => self.rates.iter().any(|rate| Limit::Rate(rate.kind).class() == class),
        }
    }
}

/// What one subject has used. Made for [`Limits`] of the same shape; see [`State::fit`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct State {
    open: u32,
    /// For each rate, the theoretical arrival time times the rate's amount: nanoseconds x units.
    arrival: Box<[u128]>,
    budgets: Box<[Spent]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Spent {
    period: u32,
    used: u64,
    reserved: u64,
    /// The soft threshold has been signalled in this period.
    told: bool,
}

/// What is left of a rate, for an API's own headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Left {
    pub(crate) amount: u64,
    pub(crate) remaining: u64,
    /// Nanoseconds until all of it is there again.
    pub(crate) full_after: u64,
}

impl Rate {
    /// How much of the rate is taken, in nanoseconds x units; all of it is `amount * window`.
    fn taken(&self, arrival: u128, now: u64) -> u128 {
        arrival.saturating_sub(u128::from(now) * u128::from(self.amount))
    }

    fn whole(&self) -> u128 {
        u128::from(self.amount) * u128::from(self.window)
    }

    fn cost(&self, amount: u64) -> u128 {
        u128::from(amount) * u128::from(self.window)
    }
}

impl State {
    /// A state for `limits` in which nothing is used.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            open: 0,
            arrival: vec![0; limits.rates.len()].into_boxed_slice(),
            budgets: vec![Spent::default(); limits.budgets.len()].into_boxed_slice(),
        }
    }

    /// Carries what was used under `old` limits over to `new` ones: streams and budgets as they are, rates by the share
    /// that is taken.
    pub(crate) fn fit(&self, old: &Limits, new: &Limits, now: u64) -> Self {
        let mut fitted = Self::new(new);
        fitted.open = self.open;
        for (place, rate) in new.rates.iter().enumerate() {
            let known = old.rates.iter().position(|known| known.kind == rate.kind && known.window == rate.window);
            if let Some(known) = known {
                let units = old.rates[known].taken(self.arrival[known], now).div_ceil(u128::from(rate.window));
                fitted.arrival[place] = u128::from(now) * u128::from(rate.amount) + units * u128::from(rate.window);
            }
        }
        for (place, budget) in new.budgets.iter().enumerate() {
            let known = old.budgets.iter().position(|known| known.kind == budget.kind && known.period == budget.period);
            if let Some(known) = known {
                fitted.budgets[place] = self.budgets[known];
            }
        }
        fitted
    }

    /// Whether one more request that may use `amount` fits into every limit. Changes nothing but periods that have ended.
    ///
    /// # Errors
    /// The limit that holds longest, so that a client told to wait for it finds the others open as well.
    pub(crate) fn check(
        &mut self,
        limits: &Limits,
        amount: &Amount,
        now: u64,
        calendar: &Calendar,
    ) -> Result<(), Exceeded> {
        if limits.concurrency.is_some_and(|places| self.open >= places) {
            let full = Exceeded { limit: Limit::Concurrency, retry_after: None, never: false };
            // A rate or a budget holds longer than that.
            return Err(self.fits(limits, |kind| (0, amount.of(kind)), now, calendar).err().unwrap_or(full));
        }
        self.fits(limits, |kind| (0, amount.of(kind)), now, calendar)
    }

    /// Whether it fits into rates and budgets for a request that has so much already and wants so much: `of`. What does not grow is not
    /// looked at; nor is what costs nothing.
    fn fits(
        &mut self,
        limits: &Limits,
        of: impl Fn(Kind) -> (u64, u64),
        now: u64,
        calendar: &Calendar,
    ) -> Result<(), Exceeded> {
        let mut worst: Option<Exceeded> = None;
        let mut note = |found: Exceeded| {
            let rank = |exceeded: &Exceeded| (exceeded.never, exceeded.retry_after.unwrap_or(0));
            if worst.as_ref().is_none_or(|known| rank(&found) > rank(known)) {
                worst = Some(found);
            }
        };
        for (rate, arrival) in limits.rates.iter().zip(&self.arrival) {
            let (has, wants) = of(rate.kind);
            if wants <= has {
                continue;
            }
            let cost = rate.cost(wants);
            let taken = rate.taken(*arrival, now).saturating_sub(rate.cost(has));
            if taken + cost > rate.whole() {
                // More than there ever is passes when nothing else is taken: it is owed afterwards.
                let too_large = cost > rate.whole();
                let surplus = if too_large { taken } else { taken + cost - rate.whole() };
                if surplus > 0 {
                    let wait = u64::try_from(surplus.div_ceil(u128::from(rate.amount))).unwrap_or(u64::MAX);
                    note(Exceeded { limit: Limit::Rate(rate.kind), retry_after: Some(wait), never: false });
                }
            }
        }
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            spent.roll(budget, calendar);
            let (has, wants) = of(budget.kind);
            if wants <= has {
                continue;
            }
            let others = spent.used.saturating_add(spent.reserved.saturating_sub(has));
            if others.saturating_add(wants) > budget.amount {
                let wait = calendar.ends(budget.period).saturating_sub(now);
                note(Exceeded {
                    limit: Limit::Budget(budget.kind, budget.period),
                    retry_after: Some(wait),
                    never: wants > budget.amount,
                });
            }
        }
        worst.map_or(Ok(()), Err)
    }

    /// Takes a place and reserves `amount`. The caller has checked, under the same lock.
    pub(crate) fn reserve(&mut self, limits: &Limits, amount: &Amount, now: u64) {
        self.open += 1;
        for (rate, arrival) in limits.rates.iter().zip(&mut self.arrival) {
            let floor = u128::from(now) * u128::from(rate.amount);
            *arrival = (*arrival).max(floor) + rate.cost(amount.of(rate.kind));
        }
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            spent.reserved = spent.reserved.saturating_add(amount.of(budget.kind));
        }
    }

    /// Whether what a request has reserved may become `new` instead of `old`. Its place is no matter any more.
    ///
    /// # Errors
    /// The limit that holds longest, if it wants more than there is.
    pub(crate) fn check_resize(
        &mut self,
        limits: &Limits,
        old: &Amount,
        new: &Amount,
        now: u64,
        calendar: &Calendar,
    ) -> Result<(), Exceeded> {
        self.fits(limits, |kind| (old.of(kind), new.of(kind)), now, calendar)
    }

    /// The same for one that asks for more and more, as a WebSocket does for each of its answers: only what is new counts,
    /// as if another request asked for it. What it has had before is used, long ago perhaps.
    ///
    /// # Errors
    /// The limit that holds longest, if it wants more than there is.
    pub(crate) fn check_more(
        &mut self,
        limits: &Limits,
        old: &Amount,
        new: &Amount,
        now: u64,
        calendar: &Calendar,
    ) -> Result<(), Exceeded> {
        self.fits(limits, |kind| (0, new.of(kind).saturating_sub(old.of(kind))), now, calendar)
    }

    /// What a request has reserved becomes `new` instead of `old`. The caller has checked, under the same lock.
    pub(crate) fn resize(&mut self, limits: &Limits, old: &Amount, new: &Amount, now: u64) {
        for (rate, arrival) in limits.rates.iter().zip(&mut self.arrival) {
            let floor = u128::from(now) * u128::from(rate.amount);
            let (was, is) = (rate.cost(old.of(rate.kind)), rate.cost(new.of(rate.kind)));
            *arrival = if is > was { (*arrival).max(floor) + (is - was) } else { arrival.saturating_sub(was - is) };
        }
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            let without = spent.reserved.saturating_sub(old.of(budget.kind));
            spent.reserved = without.saturating_add(new.of(budget.kind));
        }
    }

    /// Gives the place back and puts what was `used` where `reserved` stood.
    pub(crate) fn settle(
        &mut self,
        limits: &Limits,
        reserved: &Amount,
        used: &Amount,
        now: u64,
        calendar: &Calendar,
    ) -> Settled {
        self.open = self.open.saturating_sub(1);
        for (rate, arrival) in limits.rates.iter().zip(&mut self.arrival) {
            let (was, is) = (rate.cost(reserved.of(rate.kind)), rate.cost(used.of(rate.kind)));
            if is > was {
                let floor = u128::from(now) * u128::from(rate.amount);
                *arrival = (*arrival).max(floor) + (is - was);
            } else {
                *arrival = arrival.saturating_sub(was - is);
            }
        }
        let mut soft = false;
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            spent.roll(budget, calendar);
            spent.reserved = spent.reserved.saturating_sub(reserved.of(budget.kind));
            spent.used = spent.used.saturating_add(used.of(budget.kind));
            soft |= spent.crosses(budget);
        }
        Settled { overrun: used.of(Kind::Tokens).saturating_sub(reserved.of(Kind::Tokens)), soft }
    }

    /// Puts in what was used before this process began, in the periods that run.
    pub(crate) fn restore(&mut self, limits: &Limits, day: &Amount, month: &Amount, calendar: &Calendar) {
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            spent.roll(budget, calendar);
            let used = match budget.period {
                Period::Day => day,
                Period::Month => month,
            };
            spent.used = spent.used.saturating_add(used.of(budget.kind));
            // What was signalled before is not signalled again.
            spent.crosses(budget);
        }
    }

    /// How much of the tightest limit of a class is taken, 0 to 1 and more; `None` where there is none.
    pub(crate) fn used_ratio(&self, limits: &Limits, class: Class, now: u64) -> Option<f64> {
        let ratio = |part: u128, whole: u128| part as f64 / (whole as f64).max(1.0);
        match class {
            Class::Concurrency => limits.concurrency.map(|places| ratio(self.open.into(), places.into())),
            Class::Requests | Class::Tokens => limits
                .rates
                .iter()
                .zip(&self.arrival)
                .filter(|(rate, _)| Limit::Rate(rate.kind).class() == class)
                .map(|(rate, arrival)| ratio(rate.taken(*arrival, now), rate.whole()))
                .reduce(f64::max),
            Class::Budget => limits
                .budgets
                .iter()
                .zip(&self.budgets)
                .map(|(budget, spent)| ratio(u128::from(spent.used) + u128::from(spent.reserved), budget.amount.into()))
                .reduce(f64::max),
        }
    }

    /// Streams that run.
    #[cfg(test)]
    pub(crate) fn open(&self) -> u32 {
        self.open
    }

    /// Whether nothing is open, taken or spent: a new state would be the same.
    pub(crate) fn is_at_rest(&self, limits: &Limits, now: u64) -> bool {
        self.open == 0
            && limits.rates.iter().zip(&self.arrival).all(|(rate, arrival)| rate.taken(*arrival, now) == 0)
            && self.budgets.iter().all(|spent| spent.used == 0)
    }

    /// What is left of the tightest rate of a kind.
    pub(crate) fn left(&self, limits: &Limits, kind: Kind, now: u64) -> Option<Left> {
        let rates = limits.rates.iter().zip(&self.arrival).filter(|(rate, _)| rate.kind == kind);
        rates
            .map(|(rate, arrival)| {
                let taken = rate.taken(*arrival, now);
                let remaining = rate.whole().saturating_sub(taken) / u128::from(rate.window);
                Left {
                    amount: rate.amount,
                    remaining: u64::try_from(remaining).unwrap_or(u64::MAX),
                    full_after: u64::try_from(taken.div_ceil(u128::from(rate.amount))).unwrap_or(u64::MAX),
                }
            })
            .min_by_key(|left| left.remaining)
    }

    /// Whether a budget is used up; a stream that still runs may be cut for it.
    pub(crate) fn spent(&mut self, limits: &Limits, more: &Amount, calendar: &Calendar) -> bool {
        limits.budgets.iter().zip(&mut self.budgets).any(|(budget, spent)| {
            spent.roll(budget, calendar);
            spent.used.saturating_add(more.of(budget.kind)) > budget.amount
        })
    }
}

impl Spent {
    /// Begins anew when the period has ended. What was used beyond the budget is owed to the next one; what is reserved
    /// stays so.
    fn roll(&mut self, budget: &Budget, calendar: &Calendar) {
        let number = calendar.number(budget.period);
        // A stream that began before midnight settles with the calendar that it began with.
        if self.period < number {
            self.used = if self.period == 0 { self.used } else { self.used.saturating_sub(budget.amount) };
            self.period = number;
            self.told = false;
        }
    }

    /// Whether the soft threshold is passed and nobody was told yet in this period.
    fn crosses(&mut self, budget: &Budget) -> bool {
        let passed = budget.soft_percent < 100
            && u128::from(self.used) * 100 >= u128::from(budget.amount) * u128::from(budget.soft_percent);
        passed && !std::mem::replace(&mut self.told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const CALENDAR: Calendar =
        Calendar { day: 1, month: 1, day_ends: 86_400 * SECOND, month_ends: 30 * 86_400 * SECOND };

    /// xorshift64*: numbers without a pattern, the same in each run.
    struct Numbers(u64);
    impl Numbers {
        fn next(&mut self, below: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
        }
    }

    fn rates(rates: &[Rate]) -> Limits {
        Limits { rates: rates.into(), ..Limits::default() }
    }

    fn admit(state: &mut State, limits: &Limits, amount: &Amount, now: u64) -> Result<(), Exceeded> {
        state.check(limits, amount, now, &CALENDAR)?;
        state.reserve(limits, amount, now);
        Ok(())
    }

    #[test]
    fn a_burst_gets_just_the_amount_and_retry_after_is_exact() {
        for (amount, window) in [(1, SECOND), (3, SECOND), (7, 60 * SECOND), (1000, 17), (9_999_999, 60 * SECOND)] {
            let limits = rates(&[Rate { kind: Kind::Requests, amount, window }]);
            let mut state = State::new(&limits);
            let now = 123_456_789;
            let burst =
                (0..amount.min(2000) + 10).filter(|_| admit(&mut state, &limits, &Amount::REQUEST, now).is_ok());
            let passed = burst.count() as u64;
            assert_eq!(passed, amount.min(2010), "{amount} in {window}");
            if amount > 2000 {
                continue;
            }
            let refused = state.check(&limits, &Amount::REQUEST, now, &CALENDAR).unwrap_err();
            let wait = refused.retry_after.unwrap();
            assert!(state.check(&limits, &Amount::REQUEST, now + wait, &CALENDAR).is_ok());
            assert!(state.check(&limits, &Amount::REQUEST, now + wait - 1, &CALENDAR).is_err());
            assert_eq!(wait, window.div_ceil(amount), "evenly");
        }
    }

    #[test]
    fn what_passes_between_two_moments_is_bounded() {
        // In any stretch of time: the amount at once, and what came back meanwhile.
        let mut numbers = Numbers(7);
        for round in 0..200 {
            let rate = Rate { kind: Kind::Tokens, amount: 1 + numbers.next(500), window: 1 + numbers.next(10_000) };
            let limits = rates(&[rate]);
            let mut state = State::new(&limits);
            let mut now = numbers.next(1000);
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for _ in 0..300 {
                now += numbers.next(rate.window / 4 + 2);
                let amount = Amount { input: numbers.next(rate.amount + 1), ..Amount::default() };
                if admit(&mut state, &limits, &amount, now).is_ok() {
                    passed.push((now, amount.input));
                }
            }
            for first in 0..passed.len() {
                let mut sum = 0_u128;
                for (at, amount) in &passed[first..] {
                    sum += u128::from(*amount);
                    let span = u128::from(at - passed[first].0);
                    let most = u128::from(rate.amount) * u128::from(rate.window) + span * u128::from(rate.amount);
                    assert!(sum * u128::from(rate.window) <= most, "round {round}");
                }
            }
        }
    }

    #[test]
    fn settling_is_as_if_the_right_amount_had_been_asked_for() {
        // As long as the bucket never ran full in between, the order of reserving and settling does not matter.
        let mut numbers = Numbers(11);
        for _ in 0..200 {
            let rate = Rate { kind: Kind::Tokens, amount: 1_000_000, window: 3600 * SECOND };
            let limits = rates(&[rate]);
            let (mut reserved, mut exact) = (State::new(&limits), State::new(&limits));
            let now = 5 * SECOND;
            // Something is owed from the start, so that nothing runs full.
            let debt = Amount { input: 900_000, ..Amount::default() };
            reserved.reserve(&limits, &debt, now);
            exact.reserve(&limits, &debt, now);
            for step in 0..20 {
                let now = now + step * SECOND;
                let want = Amount { input: numbers.next(1000), output: numbers.next(1000), money: 0, requests: 1 };
                let used = Amount { input: numbers.next(2000), output: numbers.next(2000), money: 0, requests: 1 };
                reserved.reserve(&limits, &want, now);
                let over = reserved.settle(&limits, &want, &used, now, &CALENDAR).overrun;
                assert_eq!(over, (used.input + used.output).saturating_sub(want.input + want.output));
                exact.reserve(&limits, &used, now);
                assert_eq!(reserved.arrival, exact.arrival);
            }
        }
    }

    #[test]
    fn who_asks_again_and_again_is_judged_by_what_is_new() {
        let limits = rates(&[Rate { kind: Kind::Requests, amount: 3, window: 3 * SECOND }]);
        let mut state = State::new(&limits);
        state.reserve(&limits, &Amount::default(), 0);
        let mut held = Amount::default();
        let mut more = |state: &mut State, now: u64| {
            let wanted = Amount { requests: held.requests + 1, ..held };
            let checked = state.check_more(&limits, &held, &wanted, now, &CALENDAR);
            if checked.is_ok() {
                state.resize(&limits, &held, &wanted, now);
                held = wanted;
            }
            checked.map_err(|exceeded| exceeded.retry_after)
        };
        for _ in 0..3 {
            assert_eq!(more(&mut state, 0), Ok(()));
        }
        assert_eq!(more(&mut state, 0), Err(Some(SECOND)), "the fourth, though four are more than there ever are");
        // A minute of it: one each second, whatever the sum.
        for second in 1..60 {
            assert_eq!(more(&mut state, second * SECOND), Ok(()), "{second}");
            assert_eq!(more(&mut state, second * SECOND), Err(Some(SECOND)), "{second}");
        }
        // After a pause as much as anybody gets.
        for _ in 0..3 {
            assert_eq!(more(&mut state, 100 * SECOND), Ok(()));
        }
        assert!(more(&mut state, 100 * SECOND).is_err());
    }

    #[test]
    fn more_than_the_limit_ever_gives_passes_alone_and_is_owed() {
        let limits = rates(&[Rate { kind: Kind::InputTokens, amount: 100, window: 10 * SECOND }]);
        let mut state = State::new(&limits);
        let large = Amount { input: 250, ..Amount::default() };
        assert!(admit(&mut state, &limits, &large, 0).is_ok());
        let small = Amount { input: 1, ..Amount::default() };
        let refused = state.check(&limits, &small, 0, &CALENDAR).unwrap_err();
        // 151 of 250 must have come back.
        assert_eq!(refused.retry_after, Some(151 * SECOND / 10));
    }

    #[test]
    fn places_are_given_back_and_budgets_begin_anew() {
        let budget = Budget { kind: Kind::Tokens, amount: 100, period: Period::Day, soft_percent: 80 };
        let limits = Limits { concurrency: Some(2), rates: [].into(), budgets: [budget].into() };
        let mut state = State::new(&limits);
        let ten = Amount { input: 4, output: 6, money: 0, requests: 1 };
        assert!(admit(&mut state, &limits, &ten, 0).is_ok());
        assert!(admit(&mut state, &limits, &ten, 0).is_ok());
        let full = state.check(&limits, &ten, 0, &CALENDAR).unwrap_err();
        assert_eq!((full.limit, full.retry_after), (Limit::Concurrency, None));
        let used = Amount { input: 50, output: 25, money: 0, requests: 1 };
        assert!(!state.settle(&limits, &ten, &used, 0, &CALENDAR).soft);
        assert_eq!(state.open(), 1);
        // 75 used, 10 reserved.
        let refused =
            state.check(&limits, &Amount { input: 16, output: 0, money: 0, requests: 1 }, 0, &CALENDAR).unwrap_err();
        assert_eq!(refused.retry_after, Some(CALENDAR.day_ends));
        assert!(state.check(&limits, &Amount { input: 15, output: 0, money: 0, requests: 1 }, 0, &CALENDAR).is_ok());
        let used = Amount { input: 50, output: 0, money: 0, requests: 1 };
        assert!(state.settle(&limits, &ten, &used, 0, &CALENDAR).soft);
        state.reserve(&limits, &Amount::default(), 0);
        assert!(!state.settle(&limits, &Amount::default(), &Amount::default(), 0, &CALENDAR).soft, "told once");
        assert!(state.spent(&limits, &Amount::default(), &CALENDAR));
        // 125 of 100: 25 are owed the next day.
        let tomorrow = Calendar { day: 2, day_ends: 2 * CALENDAR.day_ends, ..CALENDAR };
        assert!(state.check(&limits, &Amount { input: 76, output: 0, money: 0, requests: 1 }, 0, &tomorrow).is_err());
        assert!(state.check(&limits, &Amount { input: 75, output: 0, money: 0, requests: 1 }, 0, &tomorrow).is_ok());
    }

    #[test]
    fn the_limit_that_holds_longest_is_named() {
        let limits = Limits {
            concurrency: None,
            rates: [
                Rate { kind: Kind::Requests, amount: 1, window: SECOND },
                Rate { kind: Kind::Tokens, amount: 10, window: 60 * SECOND },
            ]
            .into(),
            budgets: [].into(),
        };
        let mut state = State::new(&limits);
        let ten = Amount { input: 10, ..Amount::default() };
        assert!(admit(&mut state, &limits, &ten, 0).is_ok());
        let refused = state.check(&limits, &ten, 0, &CALENDAR).unwrap_err();
        assert_eq!((refused.limit, refused.retry_after), (Limit::Rate(Kind::Tokens), Some(60 * SECOND)));
        assert_eq!(
            state.left(&limits, Kind::Tokens, 30 * SECOND),
            Some(Left { amount: 10, remaining: 5, full_after: 30 * SECOND })
        );
    }

    #[test]
    fn other_limits_take_over_what_was_used() {
        let old = rates(&[Rate { kind: Kind::Tokens, amount: 100, window: 60 * SECOND }]);
        let new = rates(&[
            Rate { kind: Kind::Requests, amount: 5, window: SECOND },
            Rate { kind: Kind::Tokens, amount: 200, window: 60 * SECOND },
        ]);
        let mut state = State::new(&old);
        state.reserve(&old, &Amount { input: 100, ..Amount::default() }, 0);
        let mut state = state.fit(&old, &new, 0);
        assert_eq!(state.left(&new, Kind::Tokens, 0).unwrap().remaining, 100);
        assert_eq!(state.open(), 1);
        assert!(state.check(&new, &Amount { input: 101, ..Amount::default() }, 0, &CALENDAR).is_err());
    }

    #[test]
    fn a_reservation_grows_only_into_what_is_there() {
        let budget = Budget { kind: Kind::OutputTokens, amount: 100, period: Period::Day, soft_percent: 100 };
        let rate = Rate { kind: Kind::Tokens, amount: 1000, window: 1000 };
        let limits = Limits { concurrency: Some(1), rates: [rate].into(), budgets: [budget].into() };
        let mut state = State::new(&limits);
        let (first, more) = (Amount { output: 1, ..Amount::REQUEST }, Amount { output: 100, ..Amount::REQUEST });
        assert!(admit(&mut state, &limits, &first, 0).is_ok());
        assert_eq!(state.check_resize(&limits, &first, &more, 0, &CALENDAR), Ok(()), "its own place is no hindrance");
        state.resize(&limits, &first, &more, 0);
        let too_much = Amount { output: 101, ..more };
        let refused = state.check_resize(&limits, &more, &too_much, 0, &CALENDAR).unwrap_err();
        assert_eq!(refused.limit, Limit::Budget(Kind::OutputTokens, Period::Day));
        assert_eq!(state.check_resize(&limits, &more, &first, 0, &CALENDAR), Ok(()));
        state.resize(&limits, &more, &first, 0);
        // More than the rate ever gives: its own part does not stand in its way.
        let huge = Amount { input: 5000, ..first };
        assert_eq!(state.check_resize(&limits, &first, &huge, 0, &CALENDAR), Ok(()));
        assert_eq!(state.left(&limits, Kind::Tokens, 0).unwrap().remaining, 999);
        state.settle(&limits, &first, &Amount::REQUEST, 0, &CALENDAR);
        assert_eq!(state.left(&limits, Kind::Tokens, 0).unwrap().remaining, 1000);
        assert_eq!(state.used_ratio(&limits, Class::Budget, 0), Some(0.0));
    }

    #[test]
    fn reservations_never_drift_whatever_is_done_with_them() {
        // Open streams, reserved tokens and budgets are back at the sum of what was used when all have ended.
        let mut numbers = Numbers(23);
        for _ in 0..100 {
            let budget = Budget { kind: Kind::Tokens, amount: u64::MAX, period: Period::Month, soft_percent: 100 };
            let rate = Rate { kind: Kind::InputTokens, amount: 1_000_000, window: 60 * SECOND };
            let limits = Limits { concurrency: Some(64), rates: [rate].into(), budgets: [budget].into() };
            let mut state = State::new(&limits);
            let (mut open, mut used, mut now): (Vec<Amount>, u64, u64) = (Vec::new(), 0, 0);
            for _ in 0..300 {
                now += numbers.next(SECOND);
                let amount = Amount { input: numbers.next(50_000), output: numbers.next(9000), ..Amount::REQUEST };
                match numbers.next(3) {
                    0 if admit(&mut state, &limits, &amount, now).is_ok() => open.push(amount),
                    1 if !open.is_empty() => {
                        let place = numbers.next(open.len() as u64) as usize;
                        if state.check_resize(&limits, &open[place], &amount, now, &CALENDAR).is_ok() {
                            state.resize(&limits, &open[place], &amount, now);
                            open[place] = amount;
                        }
                    }
                    2 if !open.is_empty() => {
                        let reserved = open.swap_remove(numbers.next(open.len() as u64) as usize);
                        state.settle(&limits, &reserved, &amount, now, &CALENDAR);
                        used += amount.input + amount.output;
                    }
                    _ => {}
                }
                assert_eq!(state.open() as usize, open.len());
                let held: u64 = open.iter().map(|amount| amount.input + amount.output).sum();
                assert_eq!((state.budgets[0].used, state.budgets[0].reserved), (used, held));
            }
        }
    }

    #[test]
    fn a_stream_over_midnight_settles_into_the_new_day() {
        let budget = Budget { kind: Kind::Tokens, amount: 100, period: Period::Day, soft_percent: 100 };
        let limits = Limits { budgets: [budget].into(), ..Limits::default() };
        let mut state = State::new(&limits);
        let amount = Amount { input: 60, ..Amount::REQUEST };
        let tomorrow = Calendar { day: 2, day_ends: 2 * CALENDAR.day_ends, ..CALENDAR };
        for calendar in [CALENDAR, tomorrow] {
            state.check(&limits, &Amount::REQUEST, 0, &calendar).unwrap();
            state.reserve(&limits, &amount, 0);
        }
        // The one that began yesterday brings yesterday's calendar.
        state.settle(&limits, &amount, &amount, 0, &CALENDAR);
        assert_eq!(state.budgets[0].period, 2);
        state.settle(&limits, &amount, &amount, 0, &tomorrow);
        assert!(state.check(&limits, &Amount { input: 1, ..Amount::REQUEST }, 0, &tomorrow).is_err(), "120 of 100");
        assert!(state.check(&limits, &Amount::REQUEST, 0, &tomorrow).is_ok(), "what costs no tokens needs none");
    }

    #[test]
    fn what_was_used_before_a_restart_is_used() {
        let budget = |period| Budget { kind: Kind::Money, amount: 100, period, soft_percent: 50 };
        let limits = Limits { budgets: [budget(Period::Day), budget(Period::Month)].into(), ..Limits::default() };
        let mut state = State::new(&limits);
        let money = |money| Amount { money, ..Amount::default() };
        state.restore(&limits, &money(10), &money(95), &CALENDAR);
        assert!(state.check(&limits, &money(5), 0, &CALENDAR).is_ok());
        let refused = state.check(&limits, &money(6), 0, &CALENDAR).unwrap_err();
        assert_eq!(refused.limit, Limit::Budget(Kind::Money, Period::Month));
        state.reserve(&limits, &money(0), 0);
        assert!(!state.settle(&limits, &money(0), &money(1), 0, &CALENDAR).soft, "that of the month was told before");
    }
}
