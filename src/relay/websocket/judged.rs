//! A client's messages where a policy reads them: opened, read, edited, and put into frames of nullhop's own.
//!
//! RFC 6455 section 5.4 lets an intermediary change the fragmentation of a message where no extension is negotiated, and
//! none is: the offer is not passed on. So each message goes on in frames of at most [`FRAME_BYTES`] of payload, masked with
//! keys of nullhop's own, and its length need not be known before its end. Control frames pass between them.
//!
//! The first frame of a message leaves when it is full or when the message is over. Hence a message of up to
//! [`FRAME_BYTES`] that is refused never reached the provider: it is dropped alone, its client is told by an error event,
//! and the socket goes on. A longer one may have begun there. Nothing takes back a begun message, and nothing of nullhop's
//! could complete it, so both sides are closed. Holding more to refuse more messages alone would hold content longer.
//!
//! A client whose frames are none is closed as well, with 1002: what two readers read differently cannot be judged.

use std::collections::VecDeque;

use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;

use super::asked::Asked;
use super::asked::Create;
use super::frames::CONTROL_BYTES_MAX;
use super::frames::FrameWalker;
use super::frames::Step;
use super::frames::apply_mask;
use super::frames::opcode;
use super::frames::put_head;
use crate::hygiene::Chunk;
use crate::hygiene::wipe::wipe;
use crate::limits::Limit;
use crate::retention::Denied;
use crate::retention::Editor;

/// The longest payload of a frame of ours, and so what is held back of a message that has not begun to leave.
pub(super) const FRAME_BYTES: usize = 16 << 10;

/// Room for a frame's head before its payload.
const HEAD_ROOM: usize = 14;

/// Opens messages: one editor for each. `None` for a message that needs no reading.
pub(super) trait Desk {
    /// A message begins.
    fn open(&mut self) -> Option<Box<dyn Edit>>;
}

/// Reads and edits one message; [`Editor`] outside of tests.
pub(super) trait Edit {
    /// See [`Editor::feed`].
    fn feed(&mut self, chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied>;
    /// See [`Editor::finish`].
    fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied>;
}

impl Edit for Editor {
    fn feed(&mut self, chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        self.feed(chunk, out)
    }

    fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        self.finish(out)
    }
}

/// Asked for each `response.create` when its message has been read to the end and before it is completed towards the
/// provider: the place where limits apply to each answer of a socket and not to the socket. A message that is not let pass
/// is treated like one that breaks a rule.
pub(super) trait Gate {
    /// Whether the answer may be asked for.
    fn create(&mut self, create: &Create<'_>) -> Result<(), Stop>;
}

/// Why a client's message does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// By the policy.
    Denied(Denied),
    /// By a limit of the caller's.
    Limited(Limit),
    /// The client's bytes are no frames (RFC 6455 section 5), or frames in no order.
    Protocol,
}

/// A message that does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stopped {
    pub(super) why: Stop,
    /// The provider has not seen any of it: the rest is skipped, what follows goes on.
    pub(super) alone: bool,
}

/// One client's messages on their way up. Holds one frame of ours, one control frame, and what an editor has let go and
/// does not fit yet: at most what it gives for one piece.
pub(super) struct Judge {
    desk: Box<dyn Desk>,
    gate: Option<Box<dyn Gate>>,
    walker: FrameWalker,
    asked: Asked,
    message: Option<Message>,
    /// Let go by the editor, not in a frame yet.
    edited: VecDeque<Chunk>,
    /// Between calls empty; kept for its capacity.
    fed: Vec<Chunk>,
    data: Outgoing<{ HEAD_ROOM + FRAME_BYTES }>,
    control: Outgoing<{ HEAD_ROOM + CONTROL_BYTES_MAX }>,
    /// The frame that has been written in part, which must be completed before another.
    writing: Option<Lane>,
    /// The last frame has been made, or waits for the control frame that is being written; nothing more is read.
    last: bool,
    farewell: Option<u16>,
}

/// The message that is passing.
struct Message {
    opcode: u8,
    editor: Option<Box<dyn Edit>>,
    /// A frame of it was made.
    begun: bool,
    /// All of it was read.
    over: bool,
    /// Stopped: what still comes of it is skipped.
    skipped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    Control,
    Data,
}

/// A frame being filled, then written. The payload stands behind [`HEAD_ROOM`].
struct Outgoing<const BYTES: usize> {
    buffer: Box<[u8]>,
    payload_len: usize,
    /// What is left to be written of a complete frame.
    start: usize,
    end: usize,
}

impl<const BYTES: usize> Outgoing<BYTES> {
    fn new() -> Self {
        Self { buffer: vec![0; BYTES].into_boxed_slice(), payload_len: 0, start: 0, end: 0 }
    }

    fn is_sealed(&self) -> bool {
        self.start < self.end
    }

    fn room(&self) -> usize {
        BYTES - HEAD_ROOM - self.payload_len
    }

    /// Adds what fits; the caller looked at `room`.
    fn add(&mut self, bytes: &[u8]) {
        let start = HEAD_ROOM + self.payload_len;
        self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
        self.payload_len += bytes.len();
    }

    /// Makes a frame of the payload, masked with a new key (RFC 6455 section 5.3: unpredictable, for each frame).
    fn seal(&mut self, opcode: u8, last: bool) {
        let mut key = [0; 4];
        // The random source that TLS uses as well. Without it the connection could not have been made.
        let _ = SystemRandom::new().fill(&mut key);
        let end = HEAD_ROOM + self.payload_len;
        let head = put_head(&mut self.buffer[..HEAD_ROOM], opcode, last, self.payload_len, Some(key));
        apply_mask(&mut self.buffer[HEAD_ROOM..end], key, 0);
        self.start = HEAD_ROOM - head;
        self.end = end;
    }

    /// Clears what was written; true when the frame is out.
    fn wrote(&mut self, count: usize) -> bool {
        wipe(&mut self.buffer[self.start..self.start + count]);
        self.start += count;
        if self.start == self.end {
            (self.start, self.end, self.payload_len) = (0, 0, 0);
            return true;
        }
        false
    }

    fn clear(&mut self) {
        let used = self.end.max(HEAD_ROOM + self.payload_len);
        wipe(&mut self.buffer[..used]);
        (self.start, self.end, self.payload_len) = (0, 0, 0);
    }
}

impl<const BYTES: usize> Drop for Outgoing<BYTES> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Judge {
    pub(super) fn new(desk: Box<dyn Desk>, gate: Option<Box<dyn Gate>>) -> Self {
        Self {
            desk,
            gate,
            walker: FrameWalker::default(),
            asked: Asked::new(),
            message: None,
            edited: VecDeque::new(),
            fed: Vec::new(),
            data: Outgoing::new(),
            control: Outgoing::new(),
            writing: None,
            last: false,
            farewell: None,
        }
    }

    /// Takes frames off the front of `bytes`, which it unmasks in place, until a frame of ours is complete: how many bytes
    /// were taken, for the caller to clear. To be called again when [`Judge::outgoing`] has been written.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> (usize, Result<(), Stopped>) {
        let mut taken = 0;
        loop {
            self.fill();
            if taken == bytes.len() || self.data.is_sealed() || self.control.is_sealed() {
                return (taken, Ok(()));
            }
            if self.last || self.walker.is_closed() && self.walker.frame_over() {
                // Behind a close nothing is read.
                return (bytes.len(), Ok(()));
            }
            let (count, step) = self.walker.step(&bytes[taken..]);
            let part = &mut bytes[taken..taken + count];
            taken += count;
            let done = match step {
                Step::Begun => Ok(()),
                Step::Head => self.head(),
                Step::Payload { place } => {
                    apply_mask(part, self.walker.key().unwrap_or_default(), place);
                    self.payload(part)
                }
            };
            let done = done.and_then(|()| if self.walker.frame_over() { self.frame_over() } else { Ok(()) });
            if let Err(why) = done {
                return (taken, Err(self.stop(why)));
            }
        }
    }

    /// Checks a frame's head.
    fn head(&mut self) -> Result<(), Stop> {
        let walker = &self.walker;
        let control = matches!(walker.opcode(), opcode::CLOSE | opcode::PING | opcode::PONG);
        let sound = !walker.is_extended()
            && walker.key().is_some()
            && walker.payload_len() >> 63 == 0
            && (walker.is_data() || control && walker.is_last() && walker.payload_len() <= CONTROL_BYTES_MAX as u64);
        // A continuation continues something, and nothing else stands inside a message.
        let in_order = control || (walker.opcode() == opcode::CONTINUATION) == self.message.is_some();
        if !sound || !in_order {
            return Err(Stop::Protocol);
        }
        if !control && self.message.is_none() {
            self.asked.clear();
            let editor = self.desk.open();
            let opcode = self.walker.opcode();
            self.message = Some(Message { opcode, editor, begun: false, over: false, skipped: false });
        }
        Ok(())
    }

    fn payload(&mut self, plain: &[u8]) -> Result<(), Stop> {
        if !self.walker.is_data() {
            self.control.add(plain);
            return Ok(());
        }
        let Some(message) = &mut self.message else { return Ok(()) };
        if message.skipped {
            return Ok(());
        }
        if self.gate.is_some() {
            self.asked.read(plain);
        }
        let chunk = Chunk::copied(plain);
        match &mut message.editor {
            Some(editor) => {
                let fed = editor.feed(chunk, &mut self.fed);
                self.edited.extend(self.fed.drain(..));
                fed.map_err(Stop::Denied)
            }
            None => {
                self.edited.push_back(chunk);
                Ok(())
            }
        }
    }

    fn frame_over(&mut self) -> Result<(), Stop> {
        if !self.walker.is_data() {
            self.control.seal(self.walker.opcode(), true);
            if self.walker.is_closed() {
                // A message that it cuts off will not be completed.
                self.drop_message();
            }
            return Ok(());
        }
        if !self.walker.is_last() {
            return Ok(());
        }
        let Some(message) = &mut self.message else { return Ok(()) };
        if message.skipped {
            self.message = None;
            return Ok(());
        }
        if let Some(editor) = &mut message.editor {
            let finished = editor.finish(&mut self.fed);
            self.edited.extend(self.fed.drain(..));
            finished.map_err(Stop::Denied)?;
        }
        if let Some(gate) = &mut self.gate
            && let Some(create) = self.asked.create()
        {
            gate.create(&create)?;
        }
        self.asked.clear();
        message.over = true;
        Ok(())
    }

    /// Moves what was let go into the frame, which is sealed when more comes than it holds or the message is over.
    fn fill(&mut self) {
        let Some(message) = &mut self.message else { return };
        while !self.data.is_sealed() {
            let Some(chunk) = self.edited.front_mut() else {
                if message.over {
                    let opcode = if message.begun { opcode::CONTINUATION } else { message.opcode };
                    self.data.seal(opcode, true);
                    self.message = None;
                }
                return;
            };
            let count = chunk.as_slice().len().min(self.data.room());
            if count > 0 {
                let part = chunk.split_to(count);
                self.data.add(part.as_slice());
            }
            if chunk.as_slice().is_empty() {
                self.edited.pop_front();
            } else {
                let opcode = if message.begun { opcode::CONTINUATION } else { message.opcode };
                message.begun = true;
                self.data.seal(opcode, false);
            }
        }
    }

    fn stop(&mut self, why: Stop) -> Stopped {
        let alone = why != Stop::Protocol && self.message.as_ref().is_some_and(|message| !message.begun);
        // Of bytes that are no frames nothing more is read.
        self.last |= why == Stop::Protocol;
        self.asked.clear();
        self.edited.clear();
        self.fed.clear();
        if !self.data.is_sealed() {
            self.data.clear();
        }
        match &mut self.message {
            Some(message) if !self.walker.at_boundary() => {
                message.skipped = true;
                message.editor = None;
            }
            message => *message = None,
        }
        Stopped { why, alone }
    }

    fn drop_message(&mut self) {
        self.message = None;
        self.asked.clear();
        self.edited.clear();
        if !self.data.is_sealed() {
            self.data.clear();
        }
    }

    /// Makes a close frame the last one. A frame that has been written in part comes before it.
    pub(super) fn close(&mut self, code: u16) {
        self.drop_message();
        self.last = true;
        if self.writing != Some(Lane::Data) {
            self.data.clear();
        }
        if self.walker.is_closed() && self.control.is_sealed() {
            // The client's own close is on its way.
            return;
        }
        self.walker.close();
        if self.writing == Some(Lane::Control) {
            self.farewell = Some(code);
        } else {
            self.seal_close(code);
        }
    }

    fn seal_close(&mut self, code: u16) {
        self.control.clear();
        self.control.add(&code.to_be_bytes());
        self.control.seal(opcode::CLOSE, true);
    }

    /// What is to be written next.
    pub(super) fn outgoing(&self) -> &[u8] {
        match self.next_lane() {
            Some(Lane::Control) => &self.control.buffer[self.control.start..self.control.end],
            Some(Lane::Data) => &self.data.buffer[self.data.start..self.data.end],
            None => &[],
        }
    }

    /// So much of [`Judge::outgoing`] was written; it is cleared.
    pub(super) fn wrote(&mut self, count: usize) {
        let lane = self.next_lane();
        let out = match lane {
            Some(Lane::Control) => self.control.wrote(count),
            Some(Lane::Data) => self.data.wrote(count),
            None => return,
        };
        self.writing = if out { None } else { lane };
        if out
            && lane == Some(Lane::Control)
            && let Some(code) = self.farewell.take()
        {
            self.seal_close(code);
        }
    }

    /// Control frames go first: they may stand inside a message.
    fn next_lane(&self) -> Option<Lane> {
        self.writing
            .or_else(|| self.control.is_sealed().then_some(Lane::Control))
            .or_else(|| self.data.is_sealed().then_some(Lane::Data))
    }

    /// Nothing is written any more.
    pub(super) fn is_last(&self) -> bool {
        self.last
    }

    /// Whether a close frame has begun.
    pub(super) fn is_closed(&self) -> bool {
        self.walker.is_closed()
    }

    /// Between two messages, with nothing left to write.
    pub(super) fn at_boundary(&self) -> bool {
        self.walker.at_boundary() && self.message.is_none() && self.next_lane().is_none()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::io::Cursor;
    use std::rc::Rc;

    use tungstenite::Message as Heard;
    use tungstenite::protocol::Role;
    use tungstenite::protocol::WebSocket;
    use tungstenite::protocol::frame::Frame;
    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::Control;
    use tungstenite::protocol::frame::coding::Data;
    use tungstenite::protocol::frame::coding::OpCode;

    use super::*;
    use crate::retention::Rule;

    /// Xorshift, seeded: a failure can be repeated.
    pub(in super::super) struct Random(pub(in super::super) u64);

    impl Random {
        pub(in super::super) fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    /// What an independent codec writes.
    pub(in super::super) fn encode(opcode: OpCode, payload: &[u8], last: bool, key: Option<[u8; 4]>) -> Vec<u8> {
        let header = FrameHeader { is_final: last, opcode, mask: key, ..FrameHeader::default() };
        let frame = Frame::from_payload(header, payload.to_vec().into());
        let mut bytes = Vec::new();
        frame.format(&mut bytes).expect("memory");
        bytes
    }

    /// What an independent codec reads. An error at the end: the bytes are over.
    pub(in super::super) fn decode(bytes: &[u8], role: Role) -> Vec<Heard> {
        let stream = Cursor::new(bytes.to_vec());
        // Writes of the codec, pongs and closes, go behind what is read.
        struct Half(Cursor<Vec<u8>>);
        impl std::io::Read for Half {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                match self.0.read(into)? {
                    0 => Err(std::io::ErrorKind::WouldBlock.into()),
                    read => Ok(read),
                }
            }
        }
        impl std::io::Write for Half {
            fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
                Ok(from.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut socket = WebSocket::from_raw_socket(Half(stream), role, None);
        let mut heard = Vec::new();
        loop {
            match socket.read() {
                Ok(message) => heard.push(message),
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(tungstenite::Error::ConnectionClosed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(socket.get_ref().0.position(), bytes.len() as u64, "read to the end");
        heard
    }

    /// Puts `<` before and `>` behind each message, and denies what has a `!` in it; keeps the last byte back for a while.
    struct Brackets {
        begun: bool,
        kept: Vec<Chunk>,
    }

    impl Edit for Brackets {
        fn feed(&mut self, mut chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
            if chunk.as_slice().contains(&b'!') {
                return Err(Denied::Rule(Rule::Store));
            }
            if !std::mem::replace(&mut self.begun, true) {
                out.push(Chunk::own("<".to_owned()));
            }
            out.append(&mut self.kept);
            let all = chunk.as_slice().len();
            out.push(chunk.split_to(all - 1));
            self.kept.push(chunk);
            Ok(())
        }

        fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied> {
            out.append(&mut self.kept);
            out.push(Chunk::own(">".to_owned()));
            Ok(())
        }
    }

    /// An editor for each message, or for none.
    struct Brackets1(bool);

    impl Desk for Brackets1 {
        fn open(&mut self) -> Option<Box<dyn Edit>> {
            self.0.then(|| Box::new(Brackets { begun: false, kept: Vec::new() }) as Box<dyn Edit>)
        }
    }

    fn judge(edits: bool) -> Judge {
        Judge::new(Box::new(Brackets1(edits)), None)
    }

    /// All that comes out for these pieces, written in steps of `step` bytes, and what was stopped.
    fn run(judge: &mut Judge, pieces: &[&[u8]], step: usize) -> (Vec<u8>, Vec<Stopped>) {
        let (mut written, mut stopped) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            let mut from = 0;
            loop {
                let (taken, judged) = judge.take(&mut piece[from..]);
                from += taken;
                stopped.extend(judged.err());
                let mut idle = taken == 0;
                while !judge.outgoing().is_empty() {
                    let outgoing = judge.outgoing();
                    let count = outgoing.len().min(step);
                    written.extend_from_slice(&outgoing[..count]);
                    judge.wrote(count);
                    idle = false;
                }
                if idle && from == piece.len() {
                    break;
                }
            }
        }
        (written, stopped)
    }

    fn data(index: usize, binary: bool) -> OpCode {
        OpCode::Data(match (index, binary) {
            (0, false) => Data::Text,
            (0, true) => Data::Binary,
            _ => Data::Continue,
        })
    }

    #[test]
    fn messages_are_the_same_plus_the_edit() {
        let mut random = Random(0x005e_ed0f_0123_4567);
        for round in 0..150 {
            let edits = round % 3 != 0;
            let (mut stream, mut expected) = (Vec::new(), Vec::new());
            for _ in 0..1 + random.below(5) {
                let sizes = [0, 1, 20, 125, 126, 1000, 16_383, 16_384, 16_385, 40_000, 70_000];
                let size = sizes[random.below(if round % 10 == 0 { sizes.len() } else { 6 })];
                let plain: Vec<u8> = (0..size).map(|_| b'a' + random.below(20) as u8).collect();
                let binary = random.below(2) == 0;
                let cuts = 1 + random.below(4);
                let mut rest = &plain[..];
                for index in 0..cuts {
                    let take = if index + 1 == cuts { rest.len() } else { random.below(rest.len() + 1) };
                    let key = random.below(1 << 32) as u32;
                    let last = index + 1 == cuts;
                    stream.extend(encode(data(index, binary), &rest[..take], last, Some(key.to_le_bytes())));
                    rest = &rest[take..];
                    if !last && random.below(3) == 0 {
                        let word = vec![b'p'; random.below(126)];
                        stream.extend(encode(OpCode::Control(Control::Ping), &word, true, Some([9, 8, 7, 6])));
                        expected.push(Heard::Ping(word.into()));
                    }
                }
                let edited = match (edits, plain.is_empty()) {
                    (false, _) => plain,
                    (true, true) => b">".to_vec(),
                    (true, false) => [b"<", &plain[..], b">"].concat(),
                };
                let text = String::from_utf8(edited.clone()).expect("letters");
                expected.push(if binary { Heard::Binary(edited.into()) } else { Heard::text(text) });
            }
            let mut pieces = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let most = if round % 2 == 0 { 16 << 10 } else { 50 };
                let (piece, more) = rest.split_at((1 + random.below(most)).min(rest.len()));
                pieces.push(piece);
                rest = more;
            }
            let mut judge = judge(edits);
            let (written, stopped) = run(&mut judge, &pieces, 1 + random.below(20_000));
            assert!(stopped.is_empty() && judge.at_boundary(), "round {round}");
            assert_eq!(decode(&written, Role::Server), expected, "round {round}");
            let clear = |buffer: &[u8]| buffer.iter().all(|byte| *byte == 0);
            assert!(clear(&judge.data.buffer) && clear(&judge.control.buffer), "round {round}: cleared");
        }
    }

    #[test]
    fn any_cut_gives_the_same_messages() {
        let mut stream = encode(data(0, false), b"one ", false, Some([1, 2, 3, 4]));
        stream.extend(encode(OpCode::Control(Control::Ping), b"ping", true, Some([5, 6, 7, 8])));
        stream.extend(encode(data(1, false), b"two", true, Some([0, 0, 0, 0])));
        stream.extend(encode(data(0, true), &[b'x'; 300], true, Some([9, 9, 9, 9])));
        stream.extend(encode(data(0, false), b"not! this", true, Some([9, 9, 9, 9])));
        stream.extend(encode(data(0, false), b"three", true, Some([9, 9, 9, 9])));
        stream.extend(encode(OpCode::Control(Control::Close), &1000_u16.to_be_bytes(), true, Some([1, 1, 1, 1])));
        stream.extend(b"behind the close nothing means anything");
        let mut binary = vec![b'<'];
        binary.extend([b'x'; 300]);
        binary.push(b'>');
        for cut in 0..stream.len() {
            let mut judge = judge(true);
            let (written, stopped) = run(&mut judge, &[&stream[..cut], &stream[cut..]], usize::MAX);
            let heard = decode(&written, Role::Server);
            assert_eq!(heard[0], Heard::Ping(b"ping".to_vec().into()), "{cut}");
            assert_eq!(heard[1], Heard::text("<one two>"), "{cut}");
            assert_eq!(heard[2], Heard::Binary(binary.clone().into()), "{cut}");
            assert_eq!(heard[3], Heard::text("<three>"), "{cut}");
            assert!(matches!(&heard[4], Heard::Close(_)) && heard.len() == 5, "{cut}");
            assert_eq!(stopped, [Stopped { why: Stop::Denied(Denied::Rule(Rule::Store)), alone: true }], "{cut}");
            assert!(judge.is_closed());
        }
    }

    #[test]
    fn a_long_message_that_is_stopped_has_begun() {
        for fragmented in [false, true] {
            let mut plain = vec![b'a'; FRAME_BYTES + 2000];
            plain.push(b'!');
            plain.extend([b'b'; 50]);
            let mut stream = encode(data(0, false), &plain, !fragmented, Some([1, 2, 3, 4]));
            if fragmented {
                stream.extend(encode(data(1, false), b"more", true, Some([1, 2, 3, 4])));
            }
            let mut judge = judge(true);
            let pieces: Vec<&[u8]> = stream.chunks(1000).collect();
            let (mut written, stopped) = run(&mut judge, &pieces, usize::MAX);
            assert_eq!(stopped, [Stopped { why: Stop::Denied(Denied::Rule(Rule::Store)), alone: false }]);
            assert!(judge.data.buffer.iter().all(|byte| *byte == 0), "what was not sent is cleared");
            judge.close(1008);
            written.extend(run(&mut judge, &[], 1).0);
            while !judge.outgoing().is_empty() {
                written.push(judge.outgoing()[0]);
                judge.wrote(1);
            }
            assert!(judge.is_last());
            // A close frame may stand inside a message.
            let heard = decode(&written, Role::Server);
            assert!(matches!(&heard[..], [Heard::Close(Some(close))] if u16::from(close.code) == 1008));
        }
    }

    #[test]
    fn a_close_waits_for_frames_that_are_half_written() {
        for (opcode, payload) in [(OpCode::Control(Control::Ping), &b"ping"[..]), (data(0, false), b"text")] {
            for written_before in 0..10 {
                let mut judge = judge(false);
                let mut frame = encode(opcode, payload, true, Some([1, 2, 3, 4]));
                assert_eq!(judge.take(&mut frame).1, Ok(()));
                let mut written = judge.outgoing()[..written_before].to_vec();
                if written_before > 0 {
                    judge.wrote(written_before);
                }
                judge.close(1001);
                while !judge.outgoing().is_empty() {
                    written.push(judge.outgoing()[0]);
                    judge.wrote(1);
                }
                let heard = decode(&written, Role::Server);
                let close = heard.last().expect("a close");
                assert!(matches!(close, Heard::Close(Some(close)) if u16::from(close.code) == 1001));
                assert_eq!(heard.len(), if written_before > 0 { 2 } else { 1 });
            }
        }
    }

    #[test]
    fn frames_that_two_would_read_differently_stop_everything() {
        let key = Some([1, 2, 3, 4]);
        let mut extended = encode(data(0, false), b"x", true, key);
        extended[0] |= 0x40;
        let mut reserved = encode(data(0, false), b"x", true, key);
        reserved[0] = 0x83;
        let mut huge = vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0];
        huge.extend([1, 2, 3, 4]);
        let long_ping = encode(OpCode::Control(Control::Ping), &[b'p'; 126], true, key);
        let mut split_ping = encode(OpCode::Control(Control::Ping), b"p", true, key);
        split_ping[0] &= 0x7f;
        let begun = encode(data(0, false), b"one", false, key);
        for (bytes, what) in [
            (encode(data(0, false), b"x", true, None), "no mask"),
            (extended, "an extension's bit"),
            (reserved, "a reserved type"),
            (huge, "a length beyond 63 bits"),
            (long_ping, "a long ping"),
            (split_ping, "a ping in fragments"),
            (encode(data(1, false), b"x", true, key), "a continuation of nothing"),
            ([begun.clone(), begun].concat(), "a message inside a message"),
        ] {
            let mut judge = judge(false);
            let (written, stopped) = run(&mut judge, &[&bytes], usize::MAX);
            assert_eq!(stopped.first(), Some(&Stopped { why: Stop::Protocol, alone: false }), "{what}");
            assert!(written.is_empty(), "{what}");
        }
    }

    #[test]
    fn a_gate_sees_each_response_create_before_it_is_complete() {
        type Seen = Rc<RefCell<Vec<(Option<Vec<u8>>, Option<u64>)>>>;
        struct Second(Seen);
        impl Gate for Second {
            fn create(&mut self, create: &Create<'_>) -> Result<(), Stop> {
                self.0.borrow_mut().push((create.model.map(<[u8]>::to_vec), create.output_tokens_max));
                if self.0.borrow().len() == 2 { Err(Stop::Denied(Denied::Model)) } else { Ok(()) }
            }
        }
        let seen = Seen::default();
        let mut judge = Judge::new(Box::new(Brackets1(false)), Some(Box::new(Second(seen.clone()))));
        let messages = [
            r#"{"type":"session.update","model":"no"}"#,
            r#"{"type":"response.create","model":"one","max_output_tokens":7}"#,
            r#"{"type":"response.create","model":"two"}"#,
            r#"{"model":"three","type":"response.create"}"#,
        ];
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|message| encode(data(0, false), message.as_bytes(), true, Some([1, 2, 3, 4])))
            .collect();
        let (written, stopped) = run(&mut judge, &[&stream], usize::MAX);
        assert_eq!(stopped, [Stopped { why: Stop::Denied(Denied::Model), alone: true }]);
        let heard = decode(&written, Role::Server);
        assert_eq!(heard, [messages[0], messages[1], messages[3]].map(Heard::text));
        let models: Vec<_> = seen.borrow().iter().map(|(model, _)| model.clone().expect("a model")).collect();
        assert_eq!(models, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        assert_eq!(seen.borrow()[0].1, Some(7));
    }
}
