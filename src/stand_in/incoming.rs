//! What arrives: frames pass as they are, header blocks with stand-ins for their values.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderValue;
use http::uri::PathAndQuery;

use super::CONTINUATION;
use super::DATA;
use super::END_STREAM;
use super::FRAME_BYTES_MAX;
use super::FRAME_HEAD;
use super::FrameHead;
use super::PADDED;
use super::PRIORITY;
use super::Pad;
use super::Queue;
use super::RST_STREAM;
use super::Role;
use super::SETTINGS;
use super::Waiting;
use super::h2_reads;
use super::hpack::Decoder;
use super::hpack::put_field;
use super::pad::Sealer;
use super::path_of;
use super::put_head;
use super::text_of;
use crate::hygiene::wipe::wipe;

/// RFC 9113 section 3.4: what a client says first.
const PREFACE_BYTES: usize = 24;

/// A SETTINGS frame that acknowledges ours.
const ACK: u8 = 0x1;

/// CONTINUATION frames of one head. Full ones hold 16 KiB each.
const CONTINUATIONS_MAX: u32 = 32;

/// Trailers wait until the body before them was read, however slow its reader is.
const TRAILERS_FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// Weight and dependency before a block (RFC 9113 section 6.2).
const PRIORITY_BYTES: usize = 5;

enum State {
    /// Bytes that pass as they are, up to the next frame.
    Pass(usize),
    /// Bytes of the payload of a HEADERS or CONTINUATION frame that are still to come.
    Head(FrameHead, usize),
    /// The payload of a DATA frame of a tunnel.
    Tunnel(Tunnelled),
    /// The peer has broken the protocol, and h2 has been told. Nothing more passes.
    Broken,
}

/// What is still to come of a DATA frame's payload (RFC 9113 section 6.1).
struct Tunnelled {
    pad: Sealer,
    /// The byte that says how much of it is padding.
    padding_len: bool,
    data: usize,
    padding: usize,
}

impl Tunnelled {
    /// Seals what is data, and returns how many of the bytes belong to the frame.
    fn pass(&mut self, bytes: &mut [u8]) -> usize {
        let mut place = 0;
        if self.padding_len
            && let Some(len) = bytes.first()
        {
            self.padding_len = false;
            // h2 refuses more padding than there is payload.
            self.padding = usize::from(*len).min(self.data);
            self.data -= self.padding;
            place = 1;
        }
        let data = self.data.min(bytes.len() - place);
        self.pad.seal(&mut bytes[place..place + data]);
        self.data -= data;
        place += data;
        let padding = if self.data == 0 { self.padding.min(bytes.len() - place) } else { 0 };
        self.padding -= padding;
        place + padding
    }

    fn is_over(&self) -> bool {
        !self.padding_len && self.data == 0 && self.padding == 0
    }
}

/// A HEADERS frame whose block goes on in CONTINUATIONs.
struct Open {
    stream: u32,
    flags: u8,
    priority: [u8; PRIORITY_BYTES],
    continuations: u32,
}

pub(super) struct Incoming {
    role: Role,
    state: State,
    /// The start of a frame head that came in pieces.
    head: [u8; FRAME_HEAD],
    head_len: usize,
    /// The payload of a HEADERS or CONTINUATION frame.
    payload: Vec<u8>,
    block: Vec<u8>,
    open: Option<Open>,
    decoder: Decoder,
    list_bytes_max: usize,
    /// By stream.
    tunnels: HashMap<u32, Sealer>,
    /// What h2 gets before anything else.
    kept: Queue,
}

impl Incoming {
    pub(super) fn new(role: Role, list_bytes_max: usize) -> Self {
        let first = if role == Role::Server { PREFACE_BYTES } else { 0 };
        Self {
            role,
            state: State::Pass(first),
            head: [0; FRAME_HEAD],
            head_len: 0,
            payload: Vec::new(),
            block: Vec::new(),
            open: None,
            decoder: Decoder::new(),
            list_bytes_max,
            tunnels: HashMap::new(),
            kept: Queue::default(),
        }
    }

    pub(super) fn kept(&self) -> &[u8] {
        self.kept.rest()
    }

    pub(super) fn took(&mut self, count: usize) {
        self.kept.advance(count);
    }

    /// Looks at what has arrived, changes it in place and returns how much of it h2 gets now; the
    /// rest is kept.
    pub(super) fn received(&mut self, bytes: &mut [u8], arrived: &mut Waiting) -> usize {
        let mut place = 0;
        // Whole heads of frames that pass: nothing to move.
        loop {
            match &mut self.state {
                State::Pass(left) => {
                    let pass = (*left).min(bytes.len() - place);
                    *left -= pass;
                    place += pass;
                }
                State::Tunnel(tunnelled) => {
                    place += tunnelled.pass(&mut bytes[place..]);
                    if tunnelled.is_over() {
                        self.state = State::Pass(0);
                    }
                }
                State::Head(..) | State::Broken => break,
            }
            if place == bytes.len() {
                return place;
            }
            if self.head_len > 0 {
                break;
            }
            let Some(head) = bytes[place..].first_chunk() else { break };
            let head = FrameHead::parse(head);
            if head.is_of_a_head() || self.open.is_some() {
                break;
            }
            place += FRAME_HEAD;
            self.begin_passing(head);
        }
        let rest = &mut bytes[place..];
        let mut moved = rest.to_vec();
        wipe(rest);
        self.process(&mut moved, arrived);
        wipe(&mut moved);
        let count = self.kept.rest().len().min(rest.len());
        rest[..count].copy_from_slice(&self.kept.rest()[..count]);
        self.kept.advance(count);
        place + count
    }

    /// The same through the queue.
    fn process(&mut self, mut bytes: &mut [u8], arrived: &mut Waiting) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Broken => return,
                State::Pass(left) if *left > 0 => {
                    let pass = (*left).min(bytes.len());
                    *left -= pass;
                    self.kept.bytes.extend_from_slice(&bytes[..pass]);
                    bytes = &mut bytes[pass..];
                }
                State::Tunnel(tunnelled) => {
                    let pass = tunnelled.pass(bytes);
                    if tunnelled.is_over() {
                        self.state = State::Pass(0);
                    }
                    self.kept.bytes.extend_from_slice(&bytes[..pass]);
                    bytes = &mut bytes[pass..];
                }
                State::Pass(_) => {
                    let take = (FRAME_HEAD - self.head_len).min(bytes.len());
                    self.head[self.head_len..self.head_len + take].copy_from_slice(&bytes[..take]);
                    self.head_len += take;
                    bytes = &mut bytes[take..];
                    if self.head_len == FRAME_HEAD {
                        self.head_len = 0;
                        self.frame(FrameHead::parse(&self.head), arrived);
                    }
                }
                State::Head(head, left) => {
                    let take = (*left).min(bytes.len());
                    *left -= take;
                    self.payload.extend_from_slice(&bytes[..take]);
                    bytes = &mut bytes[take..];
                    if *left == 0 {
                        let head = *head;
                        self.head_frame(head, arrived);
                    }
                }
            }
        }
    }

    /// A frame begins that passes; its head has.
    fn begin_passing(&mut self, head: FrameHead) {
        self.state = State::Pass(head.len);
        match head.kind {
            SETTINGS if head.flags & ACK != 0 => self.decoder.no_table(),
            DATA if !self.tunnels.is_empty() => {
                let ends = head.flags & END_STREAM != 0;
                let pad =
                    if ends { self.tunnels.remove(&head.stream) } else { self.tunnels.get(&head.stream).cloned() };
                if let Some(pad) = pad
                    && head.len > 0
                {
                    let padded = head.flags & PADDED != 0;
                    let data = head.len - usize::from(padded);
                    self.state = State::Tunnel(Tunnelled { pad, padding_len: padded, data, padding: 0 });
                }
            }
            RST_STREAM => {
                self.tunnels.remove(&head.stream);
            }
            _ => {}
        }
    }

    fn frame(&mut self, head: FrameHead, arrived: &mut Waiting) {
        let expected = match &self.open {
            Some(open) => head.kind == CONTINUATION && head.stream == open.stream,
            None => head.kind != CONTINUATION,
        };
        if !expected {
            // A CONTINUATION where none belongs, or another frame where one does (RFC 9113 section 6.10).
            self.break_with(FrameHead { kind: CONTINUATION, len: 0, ..head });
        } else if !head.is_of_a_head() {
            // As it came, with the bit that is reserved.
            self.kept.bytes.extend_from_slice(&self.head);
            self.begin_passing(head);
        } else if head.len > FRAME_BYTES_MAX {
            // h2 refuses it for its length.
            self.break_with(head);
        } else if head.len == 0 {
            self.head_frame(head, arrived);
        } else {
            self.state = State::Head(head, head.len);
        }
    }

    /// Hands h2 the head of a frame that it ends the connection for.
    fn break_with(&mut self, head: FrameHead) {
        head.put(&mut self.kept.bytes);
        self.state = State::Broken;
        wipe(&mut self.block);
        self.block.clear();
    }

    /// A HEADERS or CONTINUATION frame is complete.
    fn head_frame(&mut self, head: FrameHead, arrived: &mut Waiting) {
        self.state = State::Pass(0);
        let mut payload = std::mem::take(&mut self.payload);
        let taken = match &mut self.open {
            Some(open) => {
                open.continuations += 1;
                self.block.extend_from_slice(&payload);
                open.continuations <= CONTINUATIONS_MAX
            }
            None => self.begin(head, &payload),
        };
        wipe(&mut payload);
        payload.clear();
        self.payload = payload;
        if !taken {
            return self.break_with(FrameHead { kind: CONTINUATION, len: 0, ..head });
        }
        // A block may be longer than what it stands for: rare bytes take up to 30 bits.
        if self.block.len() > 2 * self.list_bytes_max + FRAME_BYTES_MAX {
            return self.break_with(FrameHead { kind: CONTINUATION, len: 0, ..head });
        }
        if head.flags & super::END_HEADERS != 0
            && let Some(open) = self.open.take()
        {
            let mut block = std::mem::take(&mut self.block);
            self.finish(&open, &block, arrived);
            wipe(&mut block);
            block.clear();
            self.block = block;
        }
    }

    /// Takes padding and priority off a HEADERS frame (RFC 9113 section 6.2). `false` if that cannot be done.
    fn begin(&mut self, head: FrameHead, payload: &[u8]) -> bool {
        let mut rest = payload;
        if head.flags & PADDED != 0 {
            let Some((padding, behind)) = rest.split_first() else { return false };
            let Some(len) = behind.len().checked_sub(usize::from(*padding)) else { return false };
            rest = &behind[..len];
        }
        let mut priority = [0; PRIORITY_BYTES];
        if head.flags & PRIORITY != 0 {
            let Some((found, behind)) = rest.split_first_chunk() else { return false };
            (priority, rest) = (*found, behind);
        }
        self.block.extend_from_slice(rest);
        self.open = Some(Open { stream: head.stream, flags: head.flags, priority, continuations: 0 });
        true
    }

    /// A head is complete: its values are put away, its names and stand-ins go on.
    fn finish(&mut self, open: &Open, block: &[u8], arrived: &mut Waiting) {
        let mut entry = arrived.open();
        let mut out = Vec::with_capacity(block.len().min(FRAME_BYTES_MAX));
        let (mut list_bytes, mut pseudo, mut interim, mut tunnel) = (0, false, false, false);
        let role = self.role;
        let list_bytes_max = self.list_bytes_max;
        let decoded = self.decoder.decode(block, |name, value| {
            list_bytes += name.len() + value.len() + 32;
            if list_bytes > list_bytes_max {
                return;
            }
            match name {
                b":path" => {
                    pseudo = true;
                    match PathAndQuery::try_from(value) {
                        Ok(path) if !value.is_empty() => {
                            entry.path = Some(path);
                            put_field(&mut out, name, path_of(entry.id).as_bytes());
                        }
                        // What h2 refuses as well, without its content.
                        _ => put_field(&mut out, name, b" "),
                    }
                }
                [b':', ..] => {
                    pseudo = true;
                    tunnel |= name == b":protocol";
                    interim |= role == Role::Client && name == b":status" && value.first() == Some(&b'1');
                    put_field(&mut out, name, value);
                }
                _ if h2_reads(name) => put_field(&mut out, name, value),
                _ => match HeaderValue::from_bytes(value) {
                    Ok(value) => {
                        put_field(&mut out, name, text_of(entry.id, entry.values.len()).as_bytes());
                        entry.values.push(value);
                    }
                    Err(_) => put_field(&mut out, name, b"\0"),
                },
            }
        });
        if decoded.is_err() {
            out.clear();
            // Number 0, which nothing has (RFC 7541 section 6.1): h2 ends the connection.
            out.push(0x80);
        } else if list_bytes > list_bytes_max {
            if role == Role::Server {
                // A bomb: far more than any head that gets an answer.
                let head = FrameHead { len: 0, kind: CONTINUATION, flags: 0, stream: open.stream };
                return self.break_with(head);
            }
            // One provider's long answer is no reason to lose the others' streams.
            out.clear();
            // h2 resets the stream: no such field may be there (RFC 9113 section 8.2.2).
            put_field(&mut out, b"connection", b"x");
        } else if match role {
            // A request's trailers go nowhere.
            Role::Server => pseudo,
            // Interim answers neither.
            Role::Client => !interim,
        } {
            if tunnel && role == Role::Server {
                let pad = Pad::new();
                let sealer = pad.sealer();
                entry.pad = Some(pad);
                self.tunnels.insert(open.stream, sealer);
            }
            if !pseudo {
                entry.keep_for = TRAILERS_FORGOTTEN_AFTER;
            }
            arrived.put(entry);
        }
        let flags = open.flags & (END_STREAM | PRIORITY);
        let priority = if flags & PRIORITY != 0 { &open.priority[..] } else { &[] };
        put_head(&mut self.kept.bytes, open.stream, flags, priority, &out);
    }
}
