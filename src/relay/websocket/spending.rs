//! What the answers of one socket may use: each `response.create` reserves for itself, and what the provider reports takes
//! the place of that.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::asked::Create;
use super::judged::Gate;
use super::judged::Stop;
use crate::admission::Charged;
use crate::admission::Permit;
use crate::meter::Meter;
use crate::telemetry::metrics::Handles;
use crate::telemetry::models::ModelId;

/// Bytes of a message for one token of its input.
const BYTES_PER_TOKEN: u64 = 4;

/// The account of a socket with limits, shared by the side that asks and the side that hears what it cost.
pub(super) struct Spending {
    permit: Rc<Permit>,
    handles: Arc<Handles>,
    /// Answers that were asked for.
    asked: Cell<u64>,
    /// As the provider has reported so far.
    used: Cell<Charged>,
    /// Reserved for answers that have not been reported yet.
    running: Cell<Charged>,
    model: Cell<Option<ModelId>>,
}

impl Spending {
    /// `None`: nobody is limited.
    pub(super) fn of(permit: &Rc<Permit>, handles: &Arc<Handles>, model: Option<ModelId>) -> Option<Rc<Self>> {
        permit.is_limited().then(|| {
            Rc::new(Self {
                permit: permit.clone(),
                handles: handles.clone(),
                asked: Cell::new(0),
                used: Cell::default(),
                running: Cell::default(),
                model: Cell::new(model),
            })
        })
    }

    /// Looks at what the provider has reported.
    pub(super) fn look(&self, meter: &Meter) {
        let report = meter.so_far();
        let cached = report.cached.unwrap_or(0);
        let input = report.input.unwrap_or(0);
        let used = Charged {
            uncached: input.saturating_sub(cached),
            cache_read: cached.min(input),
            response: report.output.unwrap_or(0),
            ..Charged::default()
        };
        if used == self.used.get() {
            return;
        }
        self.used.set(used);
        if meter.answers_open() == 0 {
            self.running.set(Charged::default());
        }
        self.permit.spent_so_far(&used, &self.running.get(), self.asked.get(), self.model.get());
    }

    /// Answers that were asked for.
    pub(super) fn asked(&self) -> u64 {
        self.asked.get()
    }

    /// Whether a budget is used up or the key is revoked.
    pub(super) fn must_be_cut(&self) -> bool {
        self.permit.may_be_cut()
            && self.permit.must_be_cut(&self.used.get(), self.model.get().unwrap_or(ModelId::OTHER))
    }
}

/// The client's side of a [`Spending`].
pub(super) struct Purse(pub(super) Rc<Spending>);

impl Gate for Purse {
    fn create(&mut self, create: &Create<'_>) -> Result<(), Stop> {
        let Self(spending) = self;
        if let Some(name) = create.model {
            spending.model.set(Some(spending.handles.models().find(name)));
        }
        let before = spending.running.get();
        let running = Charged {
            uncached: before.uncached.saturating_add(create.bytes / BYTES_PER_TOKEN),
            response: before
                .response
                .saturating_add(create.output_tokens_max.unwrap_or(spending.permit.output_estimate())),
            ..Charged::default()
        };
        let asked = spending.asked.get() + 1;
        let asked_again = spending.permit.ask_again(&spending.used.get(), &running, asked, spending.model.get());
        asked_again.map_err(|limited| Stop::Limited(limited.limit))?;
        spending.running.set(running);
        spending.asked.set(asked);
        Ok(())
    }
}
