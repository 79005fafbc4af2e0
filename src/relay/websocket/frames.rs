//! RFC 6455 frames: where one direction stands between them, what is in them, and how one is made.

use crate::hygiene::wipe::wipe;

/// The longest payload of a control frame (RFC 6455 section 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// The longest head: two bytes, eight of length, four of mask.
const HEAD_BYTES_MAX: usize = 14;

/// A masked payload is opened in steps of this size where it may only be looked at. A multiple of the mask's four bytes.
const LOOK_BYTES: usize = 512;

/// The first byte's bit for the last frame of a message.
const FIN: u8 = 0x80;

/// The second byte's bit for a masked payload.
const MASKED: u8 = 0x80;

/// Frame types (RFC 6455 section 5.2).
pub(super) mod opcode {
    /// More of the message that has begun.
    pub(in super::super) const CONTINUATION: u8 = 0;
    pub(in super::super) const TEXT: u8 = 1;
    pub(in super::super) const BINARY: u8 = 2;
    pub(in super::super) const CLOSE: u8 = 8;
    pub(in super::super) const PING: u8 = 9;
    pub(in super::super) const PONG: u8 = 10;
}

/// Looks at messages as they pass. Keeps none of them.
pub(super) trait Look {
    /// More of a message, unmasked.
    fn data(&mut self, bytes: &[u8]);
    /// A message has ended.
    fn message_end(&mut self);
}

impl<L: Look> Look for Option<L> {
    fn data(&mut self, bytes: &[u8]) {
        if let Some(look) = self {
            look.data(bytes);
        }
    }

    fn message_end(&mut self) {
        if let Some(look) = self {
            look.message_end();
        }
    }
}

/// What came next.
pub(super) enum Step {
    /// A part of a frame's head; more of it follows.
    Begun,
    /// The end of a frame's head. A frame without payload is over with it.
    Head,
    /// Payload. `place` is its first byte's place within the frame, as far as the mask minds.
    Payload { place: usize },
}

/// Where one direction stands between its frames. Knows lengths and kinds, keeps no payload.
#[derive(Default)]
pub(super) struct FrameWalker {
    /// The head that came last, or as much of it as did.
    head: [u8; HEAD_BYTES_MAX],
    /// Of a head that is not whole yet; 0 otherwise.
    head_len: usize,
    payload_len: u64,
    payload_left: u64,
    key: Option<[u8; 4]>,
    /// Inside a message of several frames.
    fragmented: bool,
    /// A close frame has begun.
    closed: bool,
}

impl FrameWalker {
    /// Goes over `bytes` and shows data messages to `look`. Returns the last place between two messages, if there is one.
    pub(super) fn walk(&mut self, bytes: &[u8], look: &mut impl Look) -> Option<usize> {
        let mut boundary = self.at_boundary().then_some(0);
        let mut from = 0;
        while from < bytes.len() {
            let (count, step) = self.step(&bytes[from..]);
            let part = &bytes[from..from + count];
            from += count;
            if let Step::Payload { place } = step
                && self.is_data()
            {
                match self.key {
                    None => look.data(part),
                    Some(key) => look_below(part, key, place, look),
                }
            }
            if self.frame_over() && self.is_data() && self.is_last() {
                look.message_end();
            }
            if self.at_boundary() {
                boundary = Some(from);
            }
        }
        boundary
    }

    /// Takes what comes next off the front of `bytes`, which must not be empty: how many bytes, and what they are.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, Step) {
        if self.payload_left > 0 {
            let count = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            // The place's remainder by four is all that counts, so the wrap on 32 bits does no harm.
            let place = (self.payload_len - self.payload_left) as usize;
            self.payload_left -= count as u64;
            return (count, Step::Payload { place });
        }
        for (index, byte) in bytes.iter().enumerate() {
            self.head[self.head_len] = *byte;
            self.head_len += 1;
            if self.head_len >= 2 && self.head_len == self.head_bytes() {
                self.begin_payload();
                return (index + 1, Step::Head);
            }
        }
        (bytes.len(), Step::Begun)
    }

    /// RFC 6455 section 5.2: two bytes, then the longer length, then the mask.
    fn head_bytes(&self) -> usize {
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & MASKED != 0 { 4 } else { 0 };
        2 + length + mask
    }

    fn begin_payload(&mut self) {
        let (length, mask_at) = match self.head[1] & 0x7f {
            126 => (u64::from(u16::from_be_bytes([self.head[2], self.head[3]])), 4),
            127 => {
                let mut length = [0; 8];
                length.copy_from_slice(&self.head[2..10]);
                (u64::from_be_bytes(length), 10)
            }
            short => (u64::from(short), 2),
        };
        self.payload_len = length;
        self.payload_left = length;
        let masked = self.head[1] & MASKED != 0;
        self.key = if masked { self.head[mask_at..].first_chunk().copied() } else { None };
        match self.opcode() {
            0..=2 => self.fragmented = !self.is_last(),
            opcode::CLOSE => self.closed = true,
            _ => {}
        }
        self.head_len = 0;
    }

    /// The type of the frame that came last.
    pub(super) fn opcode(&self) -> u8 {
        self.head[0] & 0x0f
    }

    /// Whether any of the bits is set that only extensions use.
    pub(super) fn is_extended(&self) -> bool {
        self.head[0] & 0x70 != 0
    }

    /// Whether the frame that came last ends its message.
    pub(super) fn is_last(&self) -> bool {
        self.head[0] & FIN != 0
    }

    /// Whether the frame that came last is part of a message.
    pub(super) fn is_data(&self) -> bool {
        self.opcode() <= opcode::BINARY
    }

    /// The mask of the frame that came last.
    pub(super) fn key(&self) -> Option<[u8; 4]> {
        self.key
    }

    /// The whole length of the frame that came last, without its head.
    pub(super) fn payload_len(&self) -> u64 {
        self.payload_len
    }

    /// Between two frames.
    pub(super) fn frame_over(&self) -> bool {
        self.payload_left == 0 && self.head_len == 0
    }

    /// Between two messages.
    pub(super) fn at_boundary(&self) -> bool {
        self.frame_over() && !self.fragmented
    }

    /// Whether a close frame has begun. What follows it means nothing.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// A close frame was put behind what was walked.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }
}

/// Shows a masked payload in small opened pieces.
fn look_below(masked: &[u8], key: [u8; 4], place: usize, look: &mut impl Look) {
    let mut open = [0; LOOK_BYTES];
    for (index, piece) in masked.chunks(LOOK_BYTES).enumerate() {
        let open = &mut open[..piece.len()];
        open.copy_from_slice(piece);
        apply_mask(open, key, place.wrapping_add(index * LOOK_BYTES));
        look.data(open);
    }
    wipe(&mut open);
}

/// Masks or unmasks `bytes`, the first of which is at `place` in its frame (RFC 6455 section 5.3).
pub(super) fn apply_mask(bytes: &mut [u8], key: [u8; 4], place: usize) {
    let mut turned = key;
    turned.rotate_left(place % 4);
    // Words first: the compiler makes vectors of them.
    let word = u32::from_ne_bytes(turned);
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for bytes in words {
        *bytes = (u32::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(turned) {
        *byte ^= key;
    }
}

/// Writes a frame's head so that it ends at the end of `room`, which must hold 14 bytes; returns its length.
pub(super) fn put_head(room: &mut [u8], opcode: u8, last: bool, payload_len: usize, key: Option<[u8; 4]>) -> usize {
    let mut head = [0; HEAD_BYTES_MAX];
    head[0] = opcode | if last { FIN } else { 0 };
    let mut len = match payload_len {
        0..126 => {
            head[1] = payload_len as u8;
            2
        }
        126..65_536 => {
            head[1] = 126;
            head[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
            10
        }
    };
    if let Some(key) = key {
        head[1] |= MASKED;
        head[len..len + 4].copy_from_slice(&key);
        len += 4;
    }
    let start = room.len() - len;
    room[start..].copy_from_slice(&head[..len]);
    len
}

/// A whole frame of a server, with text of nullhop's own.
pub(super) fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEAD_BYTES_MAX];
    let head = put_head(&mut frame, opcode, true, payload.len(), None);
    frame.drain(..HEAD_BYTES_MAX - head);
    frame.extend_from_slice(payload);
    frame
}

/// Where a walker stands after these pieces (payload left, head bytes so far, in a message, closed), and what it showed:
/// each message, the last one as far as it came.
#[cfg(any(fuzzing, test))]
pub(crate) fn walked(pieces: &[&[u8]]) -> (u64, usize, bool, bool, Vec<Vec<u8>>) {
    struct Messages(Vec<Vec<u8>>);
    impl Look for Messages {
        fn data(&mut self, bytes: &[u8]) {
            if let Some(last) = self.0.last_mut() {
                last.extend_from_slice(bytes);
            }
        }

        fn message_end(&mut self) {
            self.0.push(Vec::new());
        }
    }
    let mut walker = FrameWalker::default();
    let mut messages = Messages(vec![Vec::new()]);
    for piece in pieces {
        walker.walk(piece, &mut messages);
    }
    (walker.payload_left, walker.head_len, walker.fragmented, walker.closed, messages.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl FrameWalker {
        fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
            struct Nobody;
            impl Look for Nobody {
                fn data(&mut self, _bytes: &[u8]) {}
                fn message_end(&mut self) {}
            }
            self.walk(bytes, &mut Nobody)
        }
    }

    #[test]
    fn walks_any_cut() {
        let mut stream = Vec::new();
        stream.extend([0x01, 0x03, 1, 2, 3]); // first fragment
        stream.extend([0x89, 0x00]); // ping in between
        stream.extend([0x80, 0x80, 0, 0, 0, 0]); // last fragment, masked, empty
        stream.extend([0x82, 126, 0x01, 0x00]);
        stream.extend([7; 256]);
        stream.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        stream.extend([9; 65536]);
        stream.extend([0x88, 0x02, 0x03, 0xe8]);
        for cut in 0..300 {
            let mut walker = FrameWalker::default();
            walker.pass(&stream[..cut]);
            walker.pass(&stream[cut..stream.len() - 4]);
            assert!(walker.at_boundary() && !walker.closed, "{cut}");
            walker.pass(&stream[stream.len() - 4..]);
            assert!(walker.at_boundary() && walker.closed, "{cut}");
        }
        let mut walker = FrameWalker::default();
        assert_eq!(walker.pass(&stream[..7]), Some(0), "between fragments");
        assert!(!walker.at_boundary());
        assert_eq!(walker.pass(&stream[7..20]), Some(6), "behind the last fragment");
        assert_eq!(walker.pass(&stream[20..25]), None, "inside a frame");
    }

    #[test]
    fn messages_are_seen_unmasked_whatever_the_cut() {
        let mut stream = vec![0x01, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3];
        stream.extend([0x89, 0x82, 9, 9, 9, 9, 1, 2]); // a ping, masked
        stream.extend([0x80, 0x02, b'd', b'e']); // not masked
        stream.extend([0x81, 0x00]);
        let long: Vec<u8> = (0..1500_u32).map(|number| (number % 251) as u8).collect();
        let mut masked = long.clone();
        apply_mask(&mut masked, [5, 6, 7, 8], 0);
        stream.extend([0x82, 0x80 | 126, 0x05, 0xdc, 5, 6, 7, 8]);
        stream.extend(&masked);
        let whole = walked(&[&stream]);
        assert_eq!(whole.4, [b"abcde".to_vec(), Vec::new(), long, Vec::new()]);
        for cut in 0..stream.len() {
            assert_eq!(walked(&[&stream[..cut], &stream[cut..]]), whole, "{cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(walked(&bytes), whole);
    }

    #[test]
    fn heads_of_every_length_form() {
        for (payload_len, key, head) in [
            (0, None, vec![0x81, 0]),
            (125, Some([1, 2, 3, 4]), vec![0x81, 0x80 | 125, 1, 2, 3, 4]),
            (126, None, vec![0x81, 126, 0, 126]),
            (65_535, Some([1, 2, 3, 4]), vec![0x81, 0x80 | 126, 0xff, 0xff, 1, 2, 3, 4]),
            (65_536, None, vec![0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut room = [0; HEAD_BYTES_MAX];
            let len = put_head(&mut room, opcode::TEXT, true, payload_len, key);
            assert_eq!(room[HEAD_BYTES_MAX - len..], head, "{payload_len}");
        }
        assert_eq!(server_frame(opcode::TEXT, b"Hello"), b"\x81\x05Hello");
    }

    #[test]
    fn masks_turn_with_the_place() {
        let key = [1, 2, 4, 8];
        for place in 0..9 {
            for len in 0..20 {
                let mut bytes = vec![0; len];
                apply_mask(&mut bytes, key, place);
                let expected: Vec<u8> = (0..len).map(|index| key[(place + index) % 4]).collect();
                assert_eq!(bytes, expected);
            }
        }
    }
}
