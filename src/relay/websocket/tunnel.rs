//! Two directions of frames behind an upgrade, and who watches over them.

use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use hyper::rt::Read;
use hyper::rt::ReadBuf;
use hyper::rt::Write;

use super::Peer;
use super::Unread;
use super::Watched;
use super::client_side::ClientSide;
use super::frames::FrameWalker;
use super::frames::Look;
use super::frames::opcode;
use super::frames::server_frame;
use super::judged::Desk;
use super::judged::Gate;
use super::judged::Judge;
use super::judged::Stop;
use super::judged::Stopped;
use super::refusal;
use super::refusal::Events;
use super::spending::Purse;
use super::spending::Spending;
use crate::drain::Phase;
use crate::hygiene::io::HyperIo;
use crate::hygiene::stack::scrub_look;
use crate::hygiene::wipe::wipe;
use crate::meter::Meter;
use crate::relay::Tally;
use crate::retention::Denied;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::stand_in::Pad;
use crate::telemetry::labels::FailureReason;
use crate::telemetry::labels::Guard;
use crate::telemetry::labels::Outcome;
use crate::upstream::Switched;

/// One direction's buffer: all that a WebSocket holds of a message.
const BUFFER_BYTES: usize = 16 << 10;

/// While draining, a socket is closed between two messages once it has been quiet for this long.
const QUIET: Duration = Duration::from_secs(1);

/// How long the client gets to answer our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long both sides may take to accept the end.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// "Service restart" (IANA WebSocket close code registry), to the client.
const CLOSE_RESTART: u16 = 1012;

/// "Going away" (RFC 6455 section 7.4.1), to the upstream.
const CLOSE_AWAY: u16 = 1001;

/// So many stopped messages are dealt with before others get their turn.
const STOPS_PER_TURN: u32 = 16;

/// One direction.
struct Half {
    walker: FrameWalker,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last place between two messages in the buffer, if there is one.
    boundary: Option<usize>,
    read_ended: bool,
    finished: bool,
    bytes: u64,
    /// What its reader has sealed.
    pad: Option<Pad>,
    /// Counts along; for what the upstream says.
    meter: Option<Meter>,
    /// Reads and changes; for what a client says where a policy asks for it. Then what is written is what it gives out.
    judge: Option<Box<Judge>>,
    /// Frames of ours, to be put between two messages.
    aside: Option<Aside>,
    /// Nothing more is read until what its messages led to has been said in the other direction.
    held: bool,
}

/// Whole frames of nullhop's own.
struct Aside {
    frames: Vec<u8>,
    written: usize,
    /// Nothing follows them.
    last: bool,
}

impl Half {
    fn new(first: &[u8], meter: Option<Meter>, judge: Option<Box<Judge>>) -> Self {
        let mut this = Self {
            walker: FrameWalker::default(),
            buffer: vec![0; BUFFER_BYTES.max(first.len())].into_boxed_slice(),
            start: 0,
            end: first.len(),
            boundary: None,
            read_ended: false,
            finished: false,
            bytes: first.len() as u64,
            pad: None,
            meter,
            judge,
            aside: None,
            held: false,
        };
        this.buffer[..first.len()].copy_from_slice(first);
        this.look();
        this
    }

    /// Looks at what was read. A judge does when it takes it.
    fn look(&mut self) {
        if self.judge.is_none() {
            self.boundary = self.walker.walk(&self.buffer[self.start..self.end], &mut self.meter);
            scrub_look();
        }
    }

    /// Moves what can be moved. `Err` when a side broke; `Ready` when the end was passed on or a message stopped.
    fn poll_pump(
        &mut self,
        cx: &mut Context<'_>,
        from: Pin<&mut (impl Read + ?Sized)>,
        to: Pin<&mut (impl Write + ?Sized)>,
        last_byte: &mut Instant,
    ) -> Poll<Result<Pumped, Side>> {
        let mut from = from;
        let mut to = to;
        // Enough for a full socket buffer; then others get their turn.
        for _ in 0..16 {
            if self.finished {
                return Poll::Ready(Ok(Pumped::End));
            }
            let outgoing = self.outgoing();
            if !outgoing.is_empty() {
                match to.as_mut().poll_write(cx, outgoing) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        self.wrote(written);
                        continue;
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(Side::Writer)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.held {
                let _ = to.as_mut().poll_flush(cx);
                return Poll::Pending;
            }
            if let Some(judge) = &mut self.judge {
                let (taken, judged) = judge.take(&mut self.buffer[self.start..self.end]);
                scrub_look();
                wipe(&mut self.buffer[self.start..self.start + taken]);
                self.start += taken;
                if let Err(stopped) = judged {
                    return Poll::Ready(Ok(Pumped::Stopped(stopped)));
                }
                if !judge.outgoing().is_empty() || self.start < self.end {
                    continue;
                }
                self.read_ended |= judge.is_last();
            }
            self.start = 0;
            self.end = 0;
            if to.as_mut().poll_flush(cx).is_pending() {
                // Goes on by itself; reading on is harmless.
            }
            if self.read_ended {
                let _ = to.as_mut().poll_shutdown(cx);
                self.aside = None;
                self.finished = true;
                return Poll::Ready(Ok(Pumped::End));
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match from.as_mut().poll_read(cx, buffer.unfilled()) {
                Poll::Ready(Ok(())) => {
                    let read = buffer.filled().len();
                    if let Some(pad) = &self.pad {
                        pad.open(&mut self.buffer[..read]);
                    }
                    self.end = read;
                    self.look();
                    self.bytes += read as u64;
                    self.read_ended = read == 0;
                    *last_byte = Instant::now();
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Side::Reader)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What is to be written next.
    fn outgoing(&self) -> &[u8] {
        if let Some(aside) = &self.aside
            && (aside.written > 0 || self.at_gap())
        {
            return &aside.frames[aside.written..];
        }
        if let Some(judge) = &self.judge {
            return judge.outgoing();
        }
        // Up to where something else is to stand.
        let end = match self.boundary {
            Some(boundary) if self.aside.is_some() && self.start < boundary => boundary,
            _ => self.end,
        };
        &self.buffer[self.start..end]
    }

    /// So much of [`Half::outgoing`] was written. It is cleared.
    fn wrote(&mut self, count: usize) {
        let at_gap = self.at_gap();
        if let Some(aside) = &mut self.aside
            && (aside.written > 0 || at_gap)
        {
            aside.written += count;
            if aside.written == aside.frames.len() {
                if aside.last {
                    wipe(&mut self.buffer[self.start..self.end]);
                    (self.start, self.end) = (0, 0);
                    self.read_ended = true;
                    self.walker.close();
                }
                self.aside = None;
            }
        } else if let Some(judge) = &mut self.judge {
            judge.wrote(count);
        } else {
            wipe(&mut self.buffer[self.start..self.start + count]);
            self.start += count;
        }
    }

    /// Whether what was written so far ends between two messages.
    fn at_gap(&self) -> bool {
        if self.start < self.end { self.boundary == Some(self.start) } else { self.walker.at_boundary() }
    }

    /// Puts frames of ours between two messages, as soon as there is a place. Behind a close frame there is none.
    fn put_aside(&mut self, frames: Vec<u8>, last: bool) {
        if !self.walker.is_closed() && !self.read_ended {
            self.aside = Some(Aside { frames, written: 0, last });
        }
    }

    /// Closes a direction between two messages and reads no more. A judge closes at once: its own frames are whole, and a
    /// message that cannot be completed must not keep it.
    fn close(&mut self, code: u16) {
        match &mut self.judge {
            Some(judge) => judge.close(code),
            None => {
                // Masked with zeros: this is a client's frame without content.
                let [high, low] = code.to_be_bytes();
                self.put_aside(vec![0x88, 0x82, 0, 0, 0, 0, high, low], true);
            }
        }
    }

    /// Whether a close frame has begun.
    fn is_closed(&self) -> bool {
        self.walker.is_closed() || self.judge.as_ref().is_some_and(|judge| judge.is_closed())
    }

    fn quiet(&self) -> bool {
        let between = self.judge.as_ref().map_or(self.walker.at_boundary(), |judge| judge.at_boundary());
        between && self.start == self.end && self.aside.is_none()
    }
}

impl Look for Meter {
    fn data(&mut self, bytes: &[u8]) {
        self.feed(bytes);
    }

    fn message_end(&mut self) {
        Meter::message_end(self);
    }
}

/// How far a direction came.
enum Pumped {
    /// Its end was passed on.
    End,
    /// A message of the client does not go on.
    Stopped(Stopped),
}

/// Which end of a direction broke.
enum Side {
    Reader,
    Writer,
}

pub(super) struct Tunnel {
    client: ClientSide,
    upstream: HyperIo<Transport>,
    upstream_watch: SocketWatch,
    up: Half,
    down: Half,
    tally: Tally,
    peer: Peer,
    silence_max: Duration,
    last_byte: Instant,
    /// Since when nullhop itself closes.
    closing_since: Option<Instant>,
    /// What it is, then.
    closing_outcome: Outcome,
    events: Events,
    /// `None`: nobody is limited.
    spending: Option<Rc<Spending>>,
    _open: crate::upstream::OpenLine,
}

impl Tunnel {
    pub(super) fn new(
        client: ClientSide,
        pad: Option<Pad>,
        switched: Switched,
        tally: Tally,
        peer: Peer,
        silence_max: Duration,
        watched: Watched,
    ) -> Self {
        let spending = watched.spending;
        let desk = watched.desk.or_else(|| spending.is_some().then(|| Box::new(Unread) as Box<dyn Desk>));
        let gate = spending.clone().map(|spending| Box::new(Purse(spending)) as Box<dyn Gate>);
        let judge = desk.map(|desk| Box::new(Judge::new(desk, gate)));
        Self {
            client,
            upstream: HyperIo::new(switched.transport),
            upstream_watch: switched.watch,
            up: Half { pad, ..Half::new(&[], None, judge) },
            down: Half::new(switched.read_ahead.as_slice(), watched.meter, None),
            tally,
            peer,
            silence_max,
            last_byte: Instant::now(),
            closing_since: None,
            closing_outcome: Outcome::Ok,
            events: watched.events,
            spending,
            _open: switched.open,
        }
    }

    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let outcome = std::future::poll_fn(|cx| {
            let moved = self.poll_directions(cx);
            self.name_model();
            self.look_at_spending();
            if let Poll::Ready(outcome) = moved {
                return Poll::Ready(outcome);
            }
            while tick.poll_tick(cx).is_ready() {
                if let Some(outcome) = self.guard() {
                    return Poll::Ready(outcome);
                }
                // The guard may have put a frame into a buffer.
                if let Poll::Ready(outcome) = self.poll_directions(cx) {
                    return Poll::Ready(outcome);
                }
            }
            Poll::Pending
        })
        .await;
        if matches!(outcome, Outcome::Ok | Outcome::ClientError) {
            // Without TLS's own goodbye the closing handshake would look cut off.
            let _ = tokio::time::timeout(
                GOODBYE_TIMEOUT,
                std::future::poll_fn(|cx| {
                    let upstream = Pin::new(&mut self.upstream).poll_shutdown(cx);
                    let client = Pin::new(&mut self.client).poll_shutdown(cx);
                    if upstream.is_ready() && client.is_ready() { Poll::Ready(()) } else { Poll::Pending }
                }),
            )
            .await;
        } else {
            if let Some(watch) = &self.peer.watch {
                watch.reset_on_close();
            }
            self.peer.cut.0.set(true);
            self.upstream_watch.reset_on_close();
        }
        if matches!(outcome, Outcome::UpstreamCut | Outcome::UpstreamTimeout)
            && let Some(upstream) = self.tally.upstream()
        {
            let reason =
                if outcome == Outcome::UpstreamCut { FailureReason::Reset } else { FailureReason::IdleTimeout };
            self.tally.handles().upstream(upstream).failures(reason).inc();
        }
        if let Some(spending) = self.spending.as_ref().filter(|spending| spending.asked() > 0) {
            self.tally.asked(spending.asked());
        }
        if let Some(meter) = &mut self.down.meter {
            let report = meter.finish();
            self.tally.metered(&report);
            self.name_model();
        }
        self.tally.websocket_bytes(self.up.bytes, self.down.bytes);
        self.tally.settle(outcome);
    }

    fn look_at_spending(&self) {
        if let (Some(spending), Some(meter)) = (&self.spending, &self.down.meter) {
            spending.look(meter);
        }
    }

    /// Looks the model up as soon as it has a name, so that nobody keeps the name.
    fn name_model(&mut self) {
        if let Some(meter) = &mut self.down.meter
            && let Some(model) = meter.model()
        {
            self.tally.answered_by(model);
            meter.forget_model();
        }
    }

    fn poll_directions(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        for _ in 0..STOPS_PER_TURN {
            let up =
                self.up.poll_pump(cx, Pin::new(&mut self.client), Pin::new(&mut self.upstream), &mut self.last_byte);
            let stopped = match up {
                Poll::Ready(Err(side)) => return Poll::Ready(self.broken(matches!(side, Side::Reader))),
                Poll::Ready(Ok(Pumped::Stopped(stopped))) => {
                    self.stop(stopped);
                    true
                }
                Poll::Ready(Ok(Pumped::End)) | Poll::Pending => false,
            };
            let down =
                self.down.poll_pump(cx, Pin::new(&mut self.upstream), Pin::new(&mut self.client), &mut self.last_byte);
            if let Poll::Ready(Err(side)) = down {
                return Poll::Ready(self.broken(matches!(side, Side::Writer)));
            }
            if stopped || (self.up.held && self.down.aside.is_none()) {
                // What was to be said has been said, or there is no place for it any more.
                self.up.held &= self.down.aside.is_some();
                continue;
            }
            return self.poll_end(cx, up.is_ready(), down.is_ready());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, up_over: bool, down_over: bool) -> Poll<Outcome> {
        if down_over && !self.down.is_closed() {
            // The provider's end without a close frame: the client must not take it for one.
            return Poll::Ready(Outcome::UpstreamCut);
        }
        if up_over && !self.up.is_closed() && !self.down.is_closed() {
            return Poll::Ready(Outcome::ClientAbort);
        }
        if self.closing_since.is_some() && up_over && down_over {
            // Our close is out. What the client still sends is read and cleared, so that closing
            // does not reset the connection before it has seen the frame.
            return self.poll_client_end(cx);
        }
        if (up_over && down_over) || (down_over && self.closing_since.is_none() && self.up.is_closed()) {
            return Poll::Ready(Outcome::Ok);
        }
        Poll::Pending
    }

    /// A message of the client does not go on. If the provider saw nothing of it and the client has a word for it, the
    /// socket goes on without; else both sides are closed in order.
    fn stop(&mut self, stopped: Stopped) {
        let guard = match stopped.why {
            Stop::Denied(_) | Stop::Limited(_) => Guard::MessageRefused,
            Stop::Protocol => Guard::BadFraming,
        };
        self.tally.handles().guard(guard).inc();
        if let (Stop::Denied(Denied::Rule(rule)), Some(upstream)) = (stopped.why, self.tally.upstream()) {
            self.tally.handles().upstream(upstream).retention_refused(rule);
        }
        let event = self.events.error(stopped.why);
        match event {
            Some(event) if stopped.alone => {
                self.down.put_aside(event, false);
                self.up.held = true;
            }
            event => {
                let frames = [event.unwrap_or_default(), refusal::close(stopped.why)].concat();
                self.down.put_aside(frames, true);
                self.up.close(match stopped.why {
                    Stop::Denied(_) | Stop::Limited(_) => refusal::CLOSE_POLICY,
                    Stop::Protocol => refusal::CLOSE_PROTOCOL,
                });
                self.closing_since = Some(Instant::now());
                self.closing_outcome = Outcome::ClientError;
            }
        }
    }

    fn poll_client_end(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.up.buffer);
            let polled = Pin::new(&mut self.client).poll_read(cx, buffer.unfilled());
            let read = buffer.filled().len();
            wipe(&mut self.up.buffer[..read]);
            match polled {
                Poll::Ready(Ok(())) if read > 0 => {}
                Poll::Ready(_) => return Poll::Ready(self.closing_outcome),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn broken(&self, by_client: bool) -> Outcome {
        if self.up.is_closed() && (self.down.is_closed() || by_client) {
            Outcome::Ok
        } else if by_client {
            Outcome::ClientAbort
        } else {
            Outcome::UpstreamCut
        }
    }

    /// Twice a second: silence, stalled writers, peers that left while nobody reads, the drain.
    fn guard(&mut self) -> Option<Outcome> {
        let now = Instant::now();
        if let Some(watch) = &self.peer.watch {
            if watch.write_blocked_for().is_some_and(|blocked| blocked >= self.peer.write_stall) {
                self.tally.handles().guard(Guard::WriteStall).inc();
                return Some(Outcome::ClientAbort);
            }
            let unread = self.up.start < self.up.end || !watch.read_armed();
            if unread && watch.peer_gone() {
                return Some(Outcome::ClientAbort);
            }
        }
        if self.upstream_watch.write_blocked_for().is_some_and(|blocked| blocked >= self.silence_max)
            || now.saturating_duration_since(self.last_byte) >= self.silence_max
        {
            return Some(Outcome::UpstreamTimeout);
        }
        if self.spending.as_ref().is_some_and(|spending| spending.must_be_cut()) {
            return Some(Outcome::Limited);
        }
        if let Some(since) = self.closing_since {
            return (now.saturating_duration_since(since) >= CLOSE_TIMEOUT).then_some(self.closing_outcome);
        }
        match self.peer.drain.phase() {
            Phase::Cut => Some(Outcome::Unavailable),
            Phase::Closing
                if self.up.quiet() && self.down.quiet() && now.saturating_duration_since(self.last_byte) >= QUIET =>
            {
                self.down.put_aside(server_frame(opcode::CLOSE, &CLOSE_RESTART.to_be_bytes()), true);
                self.up.close(CLOSE_AWAY);
                self.closing_since = Some(now);
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use tungstenite::Message;
    use tungstenite::protocol::Role;
    use tungstenite::protocol::frame::coding::Control;
    use tungstenite::protocol::frame::coding::Data;
    use tungstenite::protocol::frame::coding::OpCode;

    use super::super::judged::tests::Random;
    use super::super::judged::tests::decode;
    use super::super::judged::tests::encode;
    use super::*;

    /// Gives one piece a read, then waits.
    struct From(VecDeque<Vec<u8>>);

    impl Read for From {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            mut into: hyper::rt::ReadBufCursor<'_>,
        ) -> Poll<std::io::Result<()>> {
            let Some(piece) = self.0.pop_front() else { return Poll::Pending };
            into.put_slice(&piece);
            Poll::Ready(Ok(()))
        }
    }

    /// Takes so many bytes a write, and nothing each second time.
    struct To(Vec<u8>, usize, bool);

    impl Write for To {
        fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
            self.2 = !self.2;
            if self.2 {
                return Poll::Pending;
            }
            let count = from.len().min(self.1);
            self.0.extend_from_slice(&from[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_frame_of_ours_stands_between_messages_whatever_the_cut() {
        let mut random = Random(0xa51d_e000_0000_0001);
        for round in 0..400 {
            let (mut stream, mut messages) = (Vec::new(), Vec::new());
            for number in 0..1 + random.below(5) {
                let text = format!("{number}").repeat(random.below(400));
                let cut = random.below(text.len() + 1);
                if random.below(2) == 0 {
                    stream.extend(encode(OpCode::Data(Data::Text), &text.as_bytes()[..cut], false, None));
                    stream.extend(encode(OpCode::Control(Control::Pong), b"p", true, None));
                    stream.extend(encode(OpCode::Data(Data::Continue), &text.as_bytes()[cut..], true, None));
                } else {
                    stream.extend(encode(OpCode::Data(Data::Text), text.as_bytes(), true, None));
                }
                messages.push(text);
            }
            let mut pieces = VecDeque::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (piece, more) = rest.split_at((1 + random.below(500)).min(rest.len()));
                pieces.push_back(piece.to_vec());
                rest = more;
            }
            let (mut from, mut to) = (From(pieces), To(Vec::new(), 1 + random.below(200), false));
            let mut half = Half::new(&[], None, None);
            let mut cx = Context::from_waker(Waker::noop());
            let last = random.below(2) == 0;
            let turn_of_ours = random.below(20);
            let mut ended = false;
            for turn in 0..4000 {
                if turn == turn_of_ours {
                    let mut frames = server_frame(opcode::TEXT, b"ours");
                    if last {
                        frames.extend(server_frame(opcode::CLOSE, &1008_u16.to_be_bytes()));
                    }
                    half.put_aside(frames, last);
                }
                let polled = half.poll_pump(&mut cx, Pin::new(&mut from), Pin::new(&mut to), &mut Instant::now());
                ended |= matches!(polled, Poll::Ready(Ok(Pumped::End)));
                if ended || from.0.is_empty() && half.start == half.end && half.aside.is_none() && turn > turn_of_ours {
                    break;
                }
            }
            assert_eq!(ended, last, "round {round}");
            let heard = decode(&to.0, Role::Client);
            let texts: Vec<&str> = heard
                .iter()
                .filter_map(|message| if let Message::Text(text) = message { Some(text.as_str()) } else { None })
                .collect();
            let place = texts.iter().position(|text| *text == "ours").expect("said");
            let before: Vec<&str> = messages.iter().map(String::as_str).take(place).collect();
            assert_eq!(texts[..place], before, "round {round}");
            if last {
                assert_eq!(place + 1, texts.len(), "round {round}");
                assert!(matches!(heard.last(), Some(Message::Close(Some(close))) if u16::from(close.code) == 1008));
                assert!(half.is_closed());
            } else {
                let behind: Vec<&str> = messages.iter().map(String::as_str).skip(place).collect();
                assert_eq!(texts[place + 1..], behind, "round {round}");
            }
            assert!(half.buffer.iter().all(|byte| *byte == 0), "round {round}: cleared");
        }
    }

    #[test]
    fn behind_a_close_nothing_of_ours_is_said() {
        let mut half = Half::new(&server_frame(opcode::CLOSE, &1000_u16.to_be_bytes()), None, None);
        half.put_aside(server_frame(opcode::TEXT, b"ours"), false);
        assert!(half.aside.is_none());
    }

    /// On h2 the client's side seals in another task, so that nothing else clears what looking has left.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn looking_at_a_message_leaves_none_of_it_on_the_stack() {
        use crate::hygiene::registers::testing::fill;
        use crate::hygiene::registers::testing::held;
        use crate::hygiene::stack::scrub_turn;
        use crate::hygiene::stack::testing::below;
        use crate::meter::Api;
        use crate::meter::Framing;

        const WORDS: &[u8; 64] = b"sixty-four bytes that were in a message, which has been left now";
        let held_by = |memory: &[u8]| memory.windows(8).any(|window| WORDS.windows(8).any(|piece| piece == window));
        let text = std::str::from_utf8(WORDS).unwrap();
        let messages = [
            text[..9].to_owned(),
            text.repeat(40),
            format!(r#"{{"type":"response.output_text.delta","delta":"{}"}}"#, text.repeat(3)),
            format!(r#"{{"type":"response.done","{}":["{text}",{{"model":"{text}"}}],"#, &text[..40]),
        ];
        let mut stack = vec![0; 8 << 10];
        for message in messages {
            let frame = server_frame(opcode::TEXT, message.as_bytes());
            let mut half = Half::new(&[], Some(Meter::new(Api::OpenaiResponses, Framing::Messages)), None);
            half.buffer[..frame.len()].copy_from_slice(&frame);
            half.end = frame.len();
            scrub_turn();
            // As what has opened the record left them.
            fill(WORDS);
            half.look();
            let registers = held();
            below(&mut stack);
            assert!(!held_by(&registers), "{} bytes: registers", message.len());
            assert!(!held_by(&stack), "{} bytes: stack", message.len());
        }
    }
}
