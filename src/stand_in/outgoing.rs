//! What departs: frames pass as they are, header blocks with the values that their stand-ins stand for.

use std::io;
use std::io::IoSlice;

use http::HeaderValue;
use http::uri::PathAndQuery;

use super::END_HEADERS;
use super::FRAME_HEAD;
use super::FrameHead;
use super::HEADERS;
use super::Queue;
use super::Waiting;
use super::hpack::Form;
use super::hpack::Reader;
use super::hpack::put_string;
use super::parse;
use super::parse_path;
use super::put_head;
use crate::hygiene::io::Plan;
use crate::hygiene::wipe::wipe;

/// "Never indexed" (RFC 7541 section 6.2.3).
const NEVER_INDEXED: u8 = 0x10;

#[derive(Default)]
pub(super) struct Outgoing {
    /// Bytes of a frame that passes, its head included, that are still to be written.
    pass_left: usize,
    /// A head that goes on in CONTINUATIONs: its stream and flags, and its block so far.
    open: Option<(u32, u8)>,
    block: Vec<u8>,
    /// Heads as they go out, not yet written.
    waiting: Queue,
    text: Vec<u8>,
}

impl Outgoing {
    pub(super) fn waiting(&self) -> &[u8] {
        self.waiting.rest()
    }

    pub(super) fn sent(&mut self, count: usize) {
        self.waiting.advance(count);
    }

    /// What may be done with `slices`, which begin where the last write ended.
    ///
    /// # Errors
    /// When h2 hands in less than a frame's head, which it never does.
    pub(super) fn plan(&self, slices: &[IoSlice<'_>]) -> io::Result<Plan> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut place = self.pass_left;
        while place < total {
            let head = frame_head(slices, place).ok_or(io::ErrorKind::InvalidData)?;
            if head.is_of_a_head() {
                if place > 0 {
                    return Ok(Plan::Pass(place));
                }
                let len = FRAME_HEAD + head.len;
                return if len <= total { Ok(Plan::Absorb(len)) } else { Err(io::ErrorKind::InvalidData.into()) };
            }
            place += FRAME_HEAD + head.len;
        }
        Ok(Plan::Pass(total))
    }

    /// The first `written` bytes of `slices` have passed.
    pub(super) fn passed(&mut self, slices: &[IoSlice<'_>], written: usize) {
        let mut place = self.pass_left;
        while place < written {
            let Some(head) = frame_head(slices, place) else { break };
            place += FRAME_HEAD + head.len;
        }
        self.pass_left = place - written;
    }

    /// Takes over the first `len` bytes of `slices`: a frame of a head. What goes out for it waits.
    ///
    /// # Errors
    /// When it is not what h2 writes: the connection cannot go on.
    pub(super) fn absorb(&mut self, slices: &[IoSlice<'_>], len: usize, departing: &mut Waiting) -> io::Result<()> {
        let head = frame_head(slices, 0).ok_or(io::ErrorKind::InvalidData)?;
        let mut skip = FRAME_HEAD;
        let mut left = len - FRAME_HEAD;
        for slice in slices {
            let from = skip.min(slice.len());
            skip -= from;
            let piece = &slice[from..];
            let piece = &piece[..left.min(piece.len())];
            self.block.extend_from_slice(piece);
            left -= piece.len();
        }
        if head.kind == HEADERS {
            self.open = Some((head.stream, head.flags));
        }
        if head.flags & END_HEADERS == 0 {
            return Ok(());
        }
        let Some((stream, flags)) = self.open.take() else { return Err(io::ErrorKind::InvalidData.into()) };
        let block = std::mem::take(&mut self.block);
        // Neither padding nor priority: h2 sends none.
        let mut out = Vec::with_capacity(4 * block.len());
        let rewritten = self.rewrite(&block, &mut out, departing);
        if rewritten.is_some() {
            put_head(&mut self.waiting.bytes, stream, flags, &[], &out);
        }
        wipe(&mut out);
        self.block = block;
        self.block.clear();
        rewritten.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Copies a block, with values instead of stand-ins.
    fn rewrite(&mut self, block: &[u8], out: &mut Vec<u8>, departing: &mut Waiting) -> Option<()> {
        let mut reader = Reader::new(block);
        let mut used = None;
        loop {
            let start = reader.place();
            let form = match reader.form().ok()? {
                None => break,
                Some(form) => form,
            };
            let Form::Literal { name, indexed } = form else {
                out.extend_from_slice(reader.since(start));
                continue;
            };
            if name == 0 {
                self.text.clear();
                reader.string(&mut self.text).ok()?;
            }
            let named = out.len();
            out.extend_from_slice(reader.since(start));
            let value = reader.place();
            self.text.clear();
            reader.string(&mut self.text).ok()?;
            // One that is not there any more was cancelled before h2 came to sending it; its reset follows.
            let original = if let Some((id, place)) = parse(&self.text) {
                used = Some(id);
                Some(
                    departing.get(id).and_then(|entry| entry.values.get(place)).map_or(&b""[..], HeaderValue::as_bytes),
                )
            } else if let Some(id) = parse_path(&self.text) {
                used = Some(id);
                let path = departing.get(id).and_then(|entry| entry.path.as_ref());
                Some(path.map_or("/", PathAndQuery::as_str).as_bytes())
            } else {
                None
            };
            match original {
                Some(original) if !indexed => {
                    out[named] |= NEVER_INDEXED;
                    put_string(out, original);
                }
                // h2 would keep a stand-in in its table, and use it again for another value.
                Some(_) => return None,
                None => out.extend_from_slice(reader.since(value)),
            }
        }
        if let Some(id) = used {
            departing.take(id);
        }
        Some(())
    }
}

/// The head of the frame at `place`, which may be spread over slices.
fn frame_head(slices: &[IoSlice<'_>], mut place: usize) -> Option<FrameHead> {
    let mut bytes = [0; FRAME_HEAD];
    let mut have = 0;
    for slice in slices {
        let from = place.min(slice.len());
        place -= from;
        let piece = &slice[from..];
        let take = piece.len().min(FRAME_HEAD - have);
        bytes[have..have + take].copy_from_slice(&piece[..take]);
        have += take;
        if have == FRAME_HEAD {
            return Some(FrameHead::parse(&bytes));
        }
    }
    None
}
