//! What a request may ask of a provider: rules by path and by field, and the edits that they need, in one pass over the
//! body.

use http::HeaderMap;
use http::Method;

use crate::hygiene::Chunk;
use crate::provider::Provider;

/// One rule of the retention policy. Its name is a configuration value, a label and part of the refusal.
/// The list is made in this module; see `docs/retention.md`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// Keeping the answer for later retrieval.
    Store,
}

/// What is in force for one upstream, or one key of it. Built when the configuration is loaded.
#[derive(Clone)]
pub(crate) struct Policy {
    _todo: (),
}

/// Why a request must not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Denied {
    /// A retention rule.
    Rule(Rule),
    /// The model is not on the list.
    Model,
    /// A body that policy must read is not JSON that can be read, or has more to hold than is held.
    Unreadable,
    /// A body that policy must read comes in an encoding that is not known.
    Encoding,
    /// Encoded, and too large when decoded.
    TooLarge,
    /// Continues a message thread at Anthropic: its client sends the whole history when told so.
    Thread,
}

/// What a request's body said, so far. No text of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) stream: bool,
    /// Usage was asked for on behalf of nullhop: its event must not reach the client.
    pub(crate) usage_added: bool,
    /// `max_tokens` and its like, for the reservation.
    pub(crate) output_tokens_max: Option<u64>,
}

/// Reads and edits one request's body on its way up.
pub(crate) struct Editor {
    _todo: (),
}

impl Policy {
    /// Looks at a request's head: method, upstream's own path and query. `Ok(None)`: the body needs no reading.
    /// Takes off `headers` what must not go on, and what no longer describes the body.
    ///
    /// # Errors
    /// When the head alone breaks a rule.
    pub(crate) fn read_head(
        &self,
        _provider: Provider,
        _host: &str,
        _method: &Method,
        _path: &str,
        _query: Option<&str>,
        _headers: &mut HeaderMap,
    ) -> Result<Option<Editor>, Denied> {
        todo!()
    }
}

impl Editor {
    /// How many bytes longer an announced length becomes. `None`: the new length cannot be known, because the body comes
    /// encoded and goes on plain.
    pub(crate) fn slot(&self) -> Option<u64> {
        todo!()
    }

    /// Takes one piece in and puts what goes on into `out`.
    ///
    /// # Errors
    /// When the request must not be completed. `out` is not to be sent.
    pub(crate) fn feed(&mut self, _chunk: Chunk, _out: &mut Vec<Chunk>) -> Result<(), Denied> {
        todo!()
    }

    /// The body has ended.
    ///
    /// # Errors
    /// As [`Editor::feed`].
    pub(crate) fn finish(&mut self, _out: &mut Vec<Chunk>) -> Result<(), Denied> {
        todo!()
    }

    /// What the body said so far.
    pub(crate) fn facts(&self) -> Facts {
        todo!()
    }
}
