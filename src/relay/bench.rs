//! What heads and accounts cost: the door for `benches/request.rs`, in no other build.

use std::io::IoSlice;
use std::rc::Rc;
use std::time::Instant;

use super::head;
use super::record::Names;
use super::record::Recorder;
use super::tally::Tally;
use super::usage::Call;
use super::usage::Look;
use crate::admission::bench::Admitted;
use crate::admission::bench::Bench;
use crate::config::Privacy;
use crate::h1::bench::Passage;
use crate::journal::bench::Records;
use crate::message::Fields;
use crate::message::Value;
use crate::message::bench::Head;
use crate::meter::Api;
use crate::provider::Operation;
use crate::telemetry::labels::Mode;
use crate::telemetry::labels::Outcome;
use crate::telemetry::labels::Source;
use crate::telemetry::labels::UpstreamId;
use crate::tls::bench::Direction;

/// A request's head for the upstream.
pub fn request_head(Head(headers): Head) -> Head {
    Head(head::request_headers(headers, Privacy::Device, false))
}

/// An answer's head for the client.
pub fn response_head(Head(headers): Head) -> Head {
    Head(head::response_headers(headers))
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
    pub fn whole(&self, admission: &Bench, permit: &Admitted, Head(answer): &Head, body: &[u8]) {
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

/// A stream of events, from the provider's records to the client's.
pub struct Stream {
    incoming: Direction,
    outgoing: Direction,
    passage: Passage,
    tally: Tally,
}

impl Stream {
    /// Of an exchange that `admission` has let in.
    pub fn new(admission: &Bench, permit: &Admitted) -> Self {
        let mut tally = Tally::open(admission.handles().clone(), None, Instant::now());
        tally.routed(UpstreamId(0), Operation::ChatCompletions, Mode::Managed);
        tally.admitted(permit.shared());
        let mut headers = Fields::default();
        headers.insert(http::header::CONTENT_TYPE, Value::of("text/event-stream"));
        tally.look(Look::new(Call { api: Api::OpenaiChat, array: false }, &headers));
        tally.answered(200, Source::Upstream, true, Instant::now());
        Self { incoming: Direction::new(), outgoing: Direction::new(), passage: Passage::new(), tally }
    }

    /// The provider seals a record; that is not nullhop's work.
    pub fn arrive(&mut self, wire: &[u8]) -> usize {
        self.incoming.seal(&[IoSlice::new(wire)])
    }

    /// All that is done with it, but for the system calls: opened, cut out of its chunks, metered, gathered, sealed, cleared.
    pub fn pass(&mut self, len: usize) -> usize {
        let chunk = self.passage.take(self.incoming.open(len));
        self.tally.passed(chunk.as_slice(), Instant::now());
        let mut sealed = 0;
        self.passage.pass(chunk, |slices| sealed = self.outgoing.seal(slices));
        sealed
    }
}
