//! What h2 throws away: pieces of streams that were reset.
//!
//! Behind a RST_STREAM of ours the peer's DATA goes on arriving for a while. h2 cuts it out of its read buffer and drops
//! it. Nobody clears it there: it is no [`super::Chunk`] yet, and the buffer's block lives on with the connection.
//!
//! The way out is to make h2 leave that block. Its read buffer goes on to another one, or to the front of the same one,
//! once it is full; so it is filled, with frames of a type that does not exist, which have to be ignored (RFC 9113
//! section 5.5). When nothing refers to the old block any more, it is freed, and cleared by the allocator. If reading
//! goes on at its front instead, [`super::io::Spare`] clears what is dirty there.
//!
//! To know when, [`Turnover`] follows the heads of frames in both directions. It looks at no payload.

use std::collections::VecDeque;

/// Frame types (RFC 9113 section 6) that matter here, and one that does not exist.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;
const NOTHING: u8 = 0xff;

const END_HEADERS: u8 = 0x4;

/// A frame's head: length (3), type, flags, stream (4).
const HEAD: usize = 9;

/// The longest payload before any SETTINGS (RFC 9113 section 4.2).
const PAYLOAD_MAX: usize = 16 << 10;

/// What a client sends before its first frame (RFC 9113 section 3.4): 24 bytes, of which the first is no frame's.
const PREFACE: usize = 24;

/// Resets that are remembered. DATA that comes behind more resets than that is older than any round trip.
const RESETS: usize = 256;

/// Blocks that may be left with pieces of live streams in them before one is used up as it should be; such a block stays
/// until those are read, and is of 8 KiB. More would let a peer make us hold a block for each of its small frames.
const PINNED_MAX: u32 = 16;

/// Follows one h2 connection and says when its read buffer has to be turned over.
#[derive(Default)]
pub(super) struct Turnover {
    received: Walker,
    sent: Walker,
    resets: VecDeque<u32>,
    /// Something was thrown away since the buffer was last turned over.
    due: bool,
    /// The end of the room that was lent last; the same block has the same one.
    room_end: usize,
    /// That room was filled up.
    filled: bool,
    /// DATA of a stream that was not reset stands in the block.
    live: bool,
    pinned: u32,
    /// Bytes of an empty frame's head that found no room.
    owed: usize,
}

impl Turnover {
    /// `bytes` were read.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let (resets, due, live) = (&self.resets, &mut self.due, &mut self.live);
        self.received.walk(bytes, |kind, stream| {
            if kind == DATA {
                *(if resets.contains(&stream) { &mut *due } else { &mut *live }) = true;
            }
        });
    }

    /// `bytes` were written. True: something is due from now on, and h2 has to read once more before it waits.
    #[must_use]
    pub(super) fn written(&mut self, bytes: &[u8]) -> bool {
        let was_due = self.due;
        let (resets, due) = (&mut self.resets, &mut self.due);
        self.sent.walk(bytes, |kind, stream| {
            if kind == RST_STREAM {
                if resets.len() == RESETS {
                    resets.pop_front();
                }
                resets.push_back(stream);
                // Its last pieces may have come while this was on its way.
                *due = true;
            }
        });
        self.due && !was_due
    }

    /// h2 lends room for reading that ends at `room_end`.
    pub(super) fn lent(&mut self, room_end: usize) {
        let moved = std::mem::replace(&mut self.room_end, room_end) != room_end;
        if std::mem::take(&mut self.filled) {
            self.pinned += u32::from(std::mem::take(&mut self.live));
        } else if moved {
            // h2 has used up a block by itself: that much has come, and the next one is paid for.
            self.pinned = 0;
            self.live = false;
        }
    }

    /// The connection is about to wait: whether its room has to be filled before that.
    pub(super) fn wants_room(&self) -> bool {
        self.owed > 0 || (self.due && self.received.between_frames() && self.pinned < PINNED_MAX)
    }

    /// Fills `room`, lent for reading, if that has to be: how much of it was filled.
    pub(super) fn fill(&mut self, room: &mut [u8]) -> usize {
        if self.owed > 0 {
            let len = self.owed.min(room.len());
            room[..len].copy_from_slice(&EMPTY[HEAD - self.owed..][..len]);
            self.owed -= len;
            return len;
        }
        if !self.wants_room() || room.is_empty() {
            return 0;
        }
        self.due = false;
        self.filled = true;
        if room.len() < HEAD {
            self.owed = HEAD - room.len();
            room.copy_from_slice(&EMPTY[..room.len()]);
            return room.len();
        }
        room.fill(0);
        let mut at = 0;
        while at < room.len() {
            let left = room.len() - at - HEAD;
            // What is left for the next frame is none, or enough for its head.
            let payload = if left <= PAYLOAD_MAX { left } else { PAYLOAD_MAX.min(left - HEAD) };
            let length = u32::try_from(payload).unwrap_or(0).to_be_bytes();
            room[at..at + 3].copy_from_slice(&length[1..]);
            room[at + 3] = NOTHING;
            at += HEAD + payload;
        }
        room.len()
    }
}

/// An empty frame of a type that does not exist.
const EMPTY: [u8; HEAD] = [0, 0, 0, NOTHING, 0, 0, 0, 0, 0];

/// Where one direction stands between its frames.
#[derive(Default)]
struct Walker {
    head: [u8; HEAD],
    head_len: usize,
    payload_left: usize,
    /// A block of headers is under way: nothing but its CONTINUATION may follow (RFC 9113 section 6.10).
    in_block: bool,
    /// At least one frame has ended: before that, a preface may be read by itself.
    begun: bool,
}

impl Walker {
    fn walk(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, u32)) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skip = self.payload_left.min(bytes.len());
                self.payload_left -= skip;
                bytes = &bytes[skip..];
                continue;
            }
            if !self.begun && self.head_len == 0 && bytes[0] == b'P' {
                self.payload_left = PREFACE;
                continue;
            }
            let len = (HEAD - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + len].copy_from_slice(&bytes[..len]);
            self.head_len += len;
            bytes = &bytes[len..];
            if self.head_len == HEAD {
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head_len = 0;
                self.begun = true;
                if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                    self.in_block = flags & END_HEADERS == 0;
                }
                frame(kind, u32::from_be_bytes(stream) & 0x7fff_ffff);
            }
        }
    }

    fn between_frames(&self) -> bool {
        self.begun && self.head_len == 0 && self.payload_left == 0 && !self.in_block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, stream];
        [&head[..], &vec![7; payload]].concat()
    }

    /// The frames that a room was filled with, as kinds and lengths.
    fn frames_in(bytes: &[u8]) -> Vec<(u8, usize)> {
        let mut frames = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let length = u32::from_be_bytes([0, bytes[at], bytes[at + 1], bytes[at + 2]]) as usize;
            frames.push((bytes[at + 3], length));
            at += HEAD + length;
        }
        assert_eq!(at, bytes.len(), "whole frames");
        frames
    }

    #[test]
    fn a_reset_and_what_comes_behind_it_are_due() {
        let mut turnover = Turnover::default();
        let mut room = [1_u8; 100];
        let _ = turnover.written(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let _ = turnover.written(&frame(4, 0, 0, 12));
        turnover.read(&[frame(4, 0, 0, 6), frame(DATA, 0, 1, 50)].concat());
        assert_eq!(turnover.fill(&mut room), 0);
        // Cut at every byte.
        for byte in frame(RST_STREAM, 0, 1, 4) {
            let _ = turnover.written(&[byte]);
        }
        assert_eq!(turnover.fill(&mut room), 100);
        assert_eq!(frames_in(&room), [(NOTHING, 91)]);
        assert_eq!(turnover.fill(&mut room), 0, "once");
        turnover.read(&frame(DATA, 0, 3, 50));
        assert_eq!(turnover.fill(&mut room), 0, "another stream");
        let late = frame(DATA, 0, 1, 50);
        turnover.read(&late[..20]);
        assert_eq!(turnover.fill(&mut room), 0, "inside a frame");
        turnover.read(&late[20..]);
        assert_eq!(turnover.fill(&mut room), 100);
        assert!(turnover.written(&frame(RST_STREAM, 0, 5, 4)));
        turnover.read(&frame(HEADERS, 0, 7, 5));
        assert_eq!(turnover.fill(&mut room), 0, "inside a block of headers");
        turnover.read(&frame(CONTINUATION, END_HEADERS, 7, 5));
        assert_eq!(turnover.fill(&mut room), 100);
    }

    #[test]
    fn rooms_of_every_size_are_filled_with_whole_frames() {
        for len in (1..200).chain(16_300..16_500).chain([40_000, 65_536]) {
            let mut turnover = Turnover::default();
            turnover.read(&frame(4, 0, 0, 0));
            assert!(turnover.written(&frame(RST_STREAM, 0, 1, 4)));
            let mut room = vec![1_u8; len];
            assert_eq!(turnover.fill(&mut room), len);
            if len < HEAD {
                let mut rest = vec![1_u8; 50];
                let more = turnover.fill(&mut rest);
                room.extend_from_slice(&rest[..more]);
            }
            assert!(frames_in(&room).iter().all(|(kind, length)| *kind == NOTHING && *length <= PAYLOAD_MAX), "{len}");
            assert_eq!(turnover.fill(&mut room), 0);
        }
    }

    #[test]
    fn blocks_that_stay_behind_are_few() {
        let mut turnover = Turnover::default();
        turnover.read(&frame(4, 0, 0, 0));
        let mut fills = 0;
        for block in 1..100 {
            let _ = turnover.written(&frame(RST_STREAM, 0, 1, 4));
            turnover.read(&frame(DATA, 0, 3, 1));
            let filled = turnover.fill(&mut [0; 50]) > 0;
            fills += usize::from(filled);
            // Another block each time that it can be one.
            turnover.lent(if filled { block } else { turnover.room_end });
        }
        assert_eq!(fills, PINNED_MAX as usize);
        turnover.lent(1000);
        assert!(turnover.fill(&mut [0; 50]) > 0, "a block was used up");
    }
}
