//! One exchange's account as a usage event: what is handed to the journal when the exchange is over.

use std::sync::Arc;

use jiff::Timestamp;

use super::usage::Account;
use super::usage::UsageSource;
use crate::admission::Permit;
use crate::journal::Event;
use crate::journal::Journal;
use crate::journal::Tokens;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::UpstreamId;
use crate::telemetry::models::ModelTable;

/// The way from one worker's exchanges to the journal, with the names of one configuration.
pub(crate) struct Recorder {
    journal: Journal,
    names: Names,
}

/// What the ids in an account stand for. All of them are checked names or labels.
pub(crate) struct Names {
    pub(crate) pop: Option<Arc<str>>,
    /// By [`UpstreamId`].
    pub(crate) upstreams: Box<[Arc<str>]>,
    pub(crate) models: ModelTable,
}

/// Who an exchange is charged to, and what.
#[derive(Default)]
pub(crate) struct Owner {
    /// Id and label of the client key; `None` in pass-through.
    pub(crate) key: Option<(Arc<str>, Arc<str>)>,
    pub(crate) account: Option<Arc<str>>,
    /// Picodollars; `None` without a price.
    pub(crate) cost: Option<u64>,
}

impl Owner {
    /// Whose permit it is, and what its exchange costs.
    pub(super) fn of(permit: &Permit, cost: Option<u64>) -> Self {
        Self { key: permit.key(), account: permit.account(), cost }
    }
}

impl Recorder {
    pub(crate) fn new(journal: Journal, names: Names) -> Self {
        Self { journal, names }
    }

    /// Hands the record of an exchange over that ended at `ended`. One that no upstream was chosen for has none. Neither
    /// waits nor copies a text.
    pub(crate) fn record(&self, account: &Account, owner: Owner, ended: Timestamp) {
        if let Some(upstream) = account.upstream
            && let Some(event) = event(account, upstream, &self.names, owner, ended)
        {
            self.journal.record(event);
        }
    }
}

/// The record of an exchange with `upstream` that ended at `ended`. `None`: the names are another configuration's.
fn event(account: &Account, upstream: UpstreamId, names: &Names, owner: Owner, ended: Timestamp) -> Option<Event> {
    Some(Event {
        ended,
        pop: names.pop.clone(),
        key: owner.key,
        account: owner.account,
        upstream: names.upstreams.get(usize::from(upstream.0))?.clone(),
        mode: account.mode.as_str(),
        operation: Label::as_str(account.operation),
        model: names.models.text(account.model).clone(),
        tokens: Tokens {
            input_uncached: account.tokens.uncached,
            input_cache_read: account.tokens.cache_read,
            input_cache_write: account.tokens.cache_write,
            output_response: account.tokens.response,
            output_reasoning: account.tokens.reasoning,
            side_input: account.side_input,
            side_output: account.side_output,
        },
        estimated_input: account.estimated_input,
        estimated_output: account.estimated_output,
        // The cast saturates.
        audio_ms: account.seconds.map(|seconds| (seconds * 1000.0).round() as u64),
        source: match account.source {
            UsageSource::Provider => "provider",
            UsageSource::Partial => "partial",
            UsageSource::Estimate => "estimate",
            UsageSource::None => "none",
        },
        outcome: account.outcome.as_str(),
        duration: account.duration,
        first_token: account.first_token,
        cost: owner.cost,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::usage;
    use super::*;
    use crate::provider::Operation;
    use crate::telemetry::labels::Mode;
    use crate::telemetry::labels::Outcome;

    #[test]
    fn an_event_says_what_the_account_says() {
        let models = ModelTable::new(["house/*:fast"]);
        let names = Names { pop: Some("fra-1".into()), upstreams: ["openai".into(), "azure".into()].into(), models };
        let account = Account {
            upstream: Some(UpstreamId(1)),
            operation: Operation::Responses,
            mode: Mode::Managed,
            model: names.models.find(b"house/m:fast"),
            outcome: Outcome::UpstreamCut,
            source: UsageSource::Partial,
            tokens: usage::Tokens { uncached: 1, cache_read: 2, cache_write: 3, response: 4, reasoning: 5 },
            estimated_input: 6,
            estimated_output: 7,
            side_input: 8,
            side_output: 9,
            seconds: Some(1.5),
            missing: None,
            streaming: true,
            duration: Duration::from_millis(100),
            first_byte: None,
            first_token: Some(Duration::from_millis(50)),
            per_token: None,
        };
        let charged = Owner { key: Some(("k1".into(), "ci".into())), account: Some("acme".into()), cost: Some(10) };
        let now = Timestamp::UNIX_EPOCH;
        assert!(event(&account, UpstreamId(2), &names, Owner::default(), now).is_none());
        let event = event(&account, UpstreamId(1), &names, charged, now).unwrap();
        assert_eq!((event.ended, event.pop.as_deref()), (now, Some("fra-1")));
        assert_eq!((&*event.upstream, event.mode, event.operation), ("azure", "managed", "responses"));
        assert_eq!((&*event.model, event.source, event.outcome), ("house/*:fast", "partial", "upstream_cut"));
        let tokens = Tokens {
            input_uncached: 1,
            input_cache_read: 2,
            input_cache_write: 3,
            output_response: 4,
            output_reasoning: 5,
            side_input: 8,
            side_output: 9,
        };
        assert_eq!(event.tokens, tokens);
        assert_eq!((event.estimated_input, event.estimated_output, event.audio_ms), (6, 7, Some(1500)));
        assert_eq!((event.duration.as_millis(), event.first_token.unwrap().as_millis()), (100, 50));
        assert_eq!(event.key.unwrap().1.as_ref(), "ci");
        assert_eq!((event.account.as_deref(), event.cost), (Some("acme"), Some(10)));
    }
}
