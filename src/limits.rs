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
    pub(crate) input: u64,
    pub(crate) output: u64,
    /// Picodollars.
    pub(crate) money: u64,
}

impl Amount {
    fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Requests => 1,
            Kind::InputTokens => self.input,
            Kind::OutputTokens => self.output,
            Kind::Tokens => self.input.saturating_add(self.output),
            Kind::Money => self.money,
        }
    }
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
        let mut worst: Option<Exceeded> = None;
        let mut note = |found: Exceeded| {
            let rank = |exceeded: &Exceeded| (exceeded.never, exceeded.retry_after.unwrap_or(0));
            if worst.as_ref().is_none_or(|known| rank(&found) > rank(known)) {
                worst = Some(found);
            }
        };
        if limits.concurrency.is_some_and(|places| self.open >= places) {
            note(Exceeded { limit: Limit::Concurrency, retry_after: None, never: false });
        }
        for (rate, arrival) in limits.rates.iter().zip(&self.arrival) {
            let cost = rate.cost(amount.of(rate.kind));
            let after = rate.taken(*arrival, now) + cost;
            if after > rate.whole() {
                // More than there ever is passes when nothing else is taken: it is owed afterwards.
                let too_large = cost > rate.whole();
                let surplus = if too_large { rate.taken(*arrival, now) } else { after - rate.whole() };
                if surplus > 0 {
                    let wait = u64::try_from(surplus.div_ceil(u128::from(rate.amount))).unwrap_or(u64::MAX);
                    note(Exceeded { limit: Limit::Rate(rate.kind), retry_after: Some(wait), never: false });
                }
            }
        }
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            spent.roll(budget, calendar);
            let wanted = spent.used.saturating_add(spent.reserved).saturating_add(amount.of(budget.kind));
            if wanted > budget.amount {
                let wait = calendar.ends(budget.period).saturating_sub(now);
                note(Exceeded {
                    limit: Limit::Budget(budget.kind, budget.period),
                    retry_after: Some(wait),
                    never: amount.of(budget.kind) > budget.amount,
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

    /// Gives the place back and puts what was `used` where `reserved` stood. Returns by how much the use went over it, in
    /// tokens.
    pub(crate) fn settle(&mut self, limits: &Limits, reserved: &Amount, used: &Amount, calendar: &Calendar) -> u64 {
        self.open = self.open.saturating_sub(1);
        for (rate, arrival) in limits.rates.iter().zip(&mut self.arrival) {
            let (was, is) = (rate.cost(reserved.of(rate.kind)), rate.cost(used.of(rate.kind)));
            *arrival = (*arrival + is).saturating_sub(was);
        }
        for (budget, spent) in limits.budgets.iter().zip(&mut self.budgets) {
            spent.roll(budget, calendar);
            spent.reserved = spent.reserved.saturating_sub(reserved.of(budget.kind));
            spent.used = spent.used.saturating_add(used.of(budget.kind));
        }
        used.of(Kind::Tokens).saturating_sub(reserved.of(Kind::Tokens))
    }

    /// Streams that run.
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

    /// Whether a budget of the subject has passed its soft threshold.
    pub(crate) fn soft(&mut self, limits: &Limits, calendar: &Calendar) -> bool {
        limits.budgets.iter().zip(&mut self.budgets).any(|(budget, spent)| {
            spent.roll(budget, calendar);
            budget.soft_percent < 100
                && u128::from(spent.used) * 100 >= u128::from(budget.amount) * u128::from(budget.soft_percent)
        })
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
        if self.period != number {
            self.used = if self.period == 0 { 0 } else { self.used.saturating_sub(budget.amount) };
            self.period = number;
        }
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
                (0..amount.min(2000) + 10).filter(|_| admit(&mut state, &limits, &Amount::default(), now).is_ok());
            let passed = burst.count() as u64;
            assert_eq!(passed, amount.min(2010), "{amount} in {window}");
            if amount > 2000 {
                continue;
            }
            let refused = state.check(&limits, &Amount::default(), now, &CALENDAR).unwrap_err();
            let wait = refused.retry_after.unwrap();
            assert!(state.check(&limits, &Amount::default(), now + wait, &CALENDAR).is_ok());
            assert!(state.check(&limits, &Amount::default(), now + wait - 1, &CALENDAR).is_err());
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
                let want = Amount { input: numbers.next(1000), output: numbers.next(1000), money: 0 };
                let used = Amount { input: numbers.next(2000), output: numbers.next(2000), money: 0 };
                reserved.reserve(&limits, &want, now);
                let over = reserved.settle(&limits, &want, &used, &CALENDAR);
                assert_eq!(over, (used.input + used.output).saturating_sub(want.input + want.output));
                exact.reserve(&limits, &used, now);
                assert_eq!(reserved.arrival, exact.arrival);
            }
        }
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
        let ten = Amount { input: 4, output: 6, money: 0 };
        assert!(admit(&mut state, &limits, &ten, 0).is_ok());
        assert!(admit(&mut state, &limits, &ten, 0).is_ok());
        let full = state.check(&limits, &ten, 0, &CALENDAR).unwrap_err();
        assert_eq!((full.limit, full.retry_after), (Limit::Concurrency, None));
        state.settle(&limits, &ten, &Amount { input: 50, output: 25, money: 0 }, &CALENDAR);
        assert_eq!(state.open(), 1);
        assert!(!state.soft(&limits, &CALENDAR));
        // 75 used, 10 reserved.
        let refused = state.check(&limits, &Amount { input: 16, output: 0, money: 0 }, 0, &CALENDAR).unwrap_err();
        assert_eq!(refused.retry_after, Some(CALENDAR.day_ends));
        assert!(state.check(&limits, &Amount { input: 15, output: 0, money: 0 }, 0, &CALENDAR).is_ok());
        state.settle(&limits, &ten, &Amount { input: 50, output: 0, money: 0 }, &CALENDAR);
        assert!(state.soft(&limits, &CALENDAR));
        assert!(state.spent(&limits, &Amount::default(), &CALENDAR));
        // 125 of 100: 25 are owed the next day.
        let tomorrow = Calendar { day: 2, day_ends: 2 * CALENDAR.day_ends, ..CALENDAR };
        assert!(state.check(&limits, &Amount { input: 76, output: 0, money: 0 }, 0, &tomorrow).is_err());
        assert!(state.check(&limits, &Amount { input: 75, output: 0, money: 0 }, 0, &tomorrow).is_ok());
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
}
