//! What heads and accounts cost: the door for `benches/request.rs`, in no other build.

use std::rc::Rc;
use std::time::Instant;

use http::HeaderMap;

use super::head;
use super::record::Names;
use super::record::Recorder;
use super::tally::Tally;
use super::usage::Call;
use super::usage::Look;
use crate::admission::bench::Admitted;
use crate::admission::bench::Bench;
use crate::config::Privacy;
use crate::journal::bench::Records;
use crate::meter::Api;
use crate::provider::Operation;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Source;
use crate::telemetry::labels::UpstreamId;

/// A request's head for the upstream.
pub fn request_head(headers: HeaderMap) -> HeaderMap {
    head::request_headers(headers, Privacy::Device, false)
}

/// An answer's head for the client.
pub fn response_head(headers: HeaderMap) -> HeaderMap {
    head::response_headers(headers)
}

/// Accounts that end in a journal.
pub struct Accounts {
    recorder: Rc<Recorder>,
}

impl Accounts {
    /// With the names that `admission` has.
    pub fn new(admission: &Bench, records: &Records) -> Self {
        let models = admission.handles().models().clone();
        let names = Names { pop: Some("fra-1".into()), upstreams: ["openai".into()].into(), models };
        Self { recorder: Rc::new(Recorder::new(records.journal(), names)) }
    }

    /// One account from its opening to its record, with an answer of one piece.
    pub fn whole(&self, admission: &Bench, permit: &Admitted, answer: &HeaderMap, body: &[u8]) {
        let handles = admission.handles().clone();
        let mut tally = Tally::open(handles, Some(self.recorder.clone()), Instant::now());
        tally.routed(UpstreamId(0), Operation::ChatCompletions, Mode::None);
        tally.routed(UpstreamId(0), Operation::ChatCompletions, Mode::Managed);
        tally.admitted(permit.shared());
        tally.look(Look::new(Call { api: Api::OpenaiChat, array: false }, answer));
        tally.answered(200, Source::Upstream, false, Instant::now());
        tally.passed(body, Instant::now());
        tally.ended(Outcome::Ok);
    }
}
