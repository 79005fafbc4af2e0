//! What tokens cost, by upstream and model. Picodollars on integers: nothing is rounded.

use crate::config::Config;
use crate::config::TokenPrices;
use crate::telemetry::models::ModelId;
use crate::telemetry::models::ModelTable;

/// The price table of one configuration.
pub(crate) struct Prices {
    /// By upstream, then by model.
    of: Box<[Box<[Option<TokenPrices>]>]>,
    /// For a model that is not known yet: by upstream, the highest of each kind.
    highest: Box<[Option<TokenPrices>]>,
    /// Whether there is any price.
    any: bool,
}

/// Tokens that are charged, by kind; no token is in two of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Charged {
    pub(crate) uncached: u64,
    pub(crate) cache_read: u64,
    pub(crate) cache_write: u64,
    pub(crate) response: u64,
    pub(crate) reasoning: u64,
}

impl Charged {
    /// All input.
    pub(crate) fn input(&self) -> u64 {
        self.uncached.saturating_add(self.cache_read).saturating_add(self.cache_write)
    }

    /// All output.
    pub(crate) fn output(&self) -> u64 {
        self.response.saturating_add(self.reasoning)
    }
}

impl TokenPrices {
    fn cost(&self, tokens: &Charged) -> u64 {
        [
            (self.input, tokens.uncached),
            (self.cache_read, tokens.cache_read),
            (self.cache_write, tokens.cache_write),
            (self.output, tokens.response),
            (self.reasoning, tokens.reasoning),
        ]
        .into_iter()
        .fold(0, |sum: u64, (price, count)| sum.saturating_add(price.saturating_mul(count)))
    }

    fn highest(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            cache_read: self.cache_read.max(other.cache_read),
            cache_write: self.cache_write.max(other.cache_write),
            output: self.output.max(other.output),
            reasoning: self.reasoning.max(other.reasoning),
        }
    }
}

impl Prices {
    /// The table of `config`, whose patterns are labels of `models`.
    pub(crate) fn new(config: &Config, models: &ModelTable) -> Self {
        let mut of: Vec<Vec<Option<TokenPrices>>> = vec![vec![None; models.len()]; config.upstreams.len()];
        for price in &config.prices {
            for (place, table) in of.iter_mut().enumerate() {
                if !price.upstreams.is_empty() && !price.upstreams.contains(&place) {
                    continue;
                }
                for model in price.models.iter().filter_map(|pattern| models.id(pattern)) {
                    table[model.place()].get_or_insert(price.per_token);
                }
            }
        }
        let highest = |table: &Vec<Option<TokenPrices>>| table.iter().flatten().copied().reduce(TokenPrices::highest);
        Self {
            highest: of.iter().map(highest).collect(),
            of: of.into_iter().map(Vec::into_boxed_slice).collect(),
            any: !config.prices.is_empty(),
        }
    }

    /// Whether there is any price at all.
    pub(crate) fn any(&self) -> bool {
        self.any
    }

    /// What tokens of a model cost at an upstream, in picodollars. `None`: the table does not cover it.
    pub(crate) fn cost(&self, upstream: usize, model: ModelId, tokens: &Charged) -> Option<u64> {
        let prices = self.of.get(upstream)?.get(model.place())?.as_ref()?;
        Some(prices.cost(tokens))
    }

    /// What tokens may cost at most, whatever the model turns out to be: for reservations.
    pub(crate) fn cost_at_most(&self, upstream: usize, model: Option<ModelId>, tokens: &Charged) -> u64 {
        let known = model.filter(|model| *model != ModelId::OTHER);
        match known {
            Some(model) => self.cost(upstream, model, tokens).unwrap_or(0),
            None => self.highest.get(upstream).and_then(Option::as_ref).map_or(0, |prices| prices.cost(tokens)),
        }
    }
}
