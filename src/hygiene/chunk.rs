//! A piece of a body in motion, cleared when the last of it was handed over.

#![expect(unsafe_code, reason = "clears memory behind a `Bytes` that is known to be exclusive")]

use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;

use bytes::Buf;
use bytes::Bytes;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;

use super::measure::Measure;
use super::measure::taken;
use super::wipe::wipe_raw;

/// A piece of a body. Has no `Debug`, no `Clone`, no `Serialize`: it can be written to a socket or
/// dropped, and dropping it clears it.
///
/// ```
/// # use nullhop::hygiene::Chunk;
/// assert_eq!(Chunk::own("pong".to_owned()).as_slice().len(), 4);
/// ```
///
/// None of these compiles:
///
/// ```compile_fail,E0277
/// # use nullhop::hygiene::Chunk;
/// println!("{:?}", Chunk::own("pong".to_owned()));
/// ```
/// ```compile_fail,E0277
/// # use nullhop::hygiene::Chunk;
/// println!("{}", Chunk::own("pong".to_owned()));
/// ```
/// ```compile_fail,E0599
/// # use nullhop::hygiene::Chunk;
/// let twice = Chunk::own("pong".to_owned()).clone();
/// ```
pub struct Chunk {
    /// Shrinks as it is written.
    bytes: Bytes,
    /// The whole region as it arrived, split off a connection's read buffer by hyper; what the drop clears. Of nullhop's own
    /// text, which is no content, both are 0. No enum: the fields that a variant has not would keep whatever the stack held.
    address: usize,
    len: usize,
}

impl Chunk {
    /// Text that nullhop wrote itself. A `String` and not `Bytes`, so that it is certain to stand on
    /// the heap: h2's writes are cleared where they stand, and a constant cannot be.
    pub fn own(text: String) -> Self {
        Self::unregioned(text.into())
    }

    /// A copy of content, for what was decoded or held back, cleared like what it was copied from.
    pub(crate) fn copied(bytes: &[u8]) -> Self {
        Self::taken(bytes.to_vec())
    }

    /// Content that was put together, cleared like any other.
    pub(crate) fn taken(bytes: Vec<u8>) -> Self {
        if bytes.is_empty() {
            return Self::unregioned(Bytes::new());
        }
        // `relayed` will clear it by its address. The allocator of this crate exposes what it hands out; under another
        // one, in tests, this does.
        let _ = bytes.as_ptr().expose_provenance();
        // SAFETY: a block of its own from the global allocator, and the only view of it.
        unsafe { Self::relayed(Bytes::from(bytes)) }
    }

    /// The bytes not yet written, for the meter to look at.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Cuts the first `at` bytes off, which become a piece of their own. Each part clears what is its own.
    ///
    /// # Panics
    /// If there are fewer than `at` bytes.
    pub(crate) fn split_to(&mut self, at: usize) -> Self {
        if at == 0 {
            // An empty `Bytes` keeps no block alive, so it must not answer for any part of one.
            return Self::unregioned(Bytes::new());
        }
        let bytes = self.bytes.split_to(at);
        if self.len == 0 {
            return Self::unregioned(bytes);
        }
        // What was handed over already, in front of the head, is cleared with it.
        let border = self.bytes.as_ptr().addr();
        let head = Self { bytes, address: self.address, len: border - self.address };
        self.address = border;
        self.len -= head.len;
        head
    }

    /// Overwrites a part of a relayed piece with spaces, which JSON allows between any two tokens. Text of nullhop's own
    /// stays as it is.
    ///
    /// # Panics
    /// If `range` is not within the bytes.
    pub(crate) fn blank(&mut self, range: std::ops::Range<usize>) {
        let part = &self.bytes[range];
        if self.len > 0 {
            let (address, len) = (part.as_ptr().addr(), part.len());
            // SAFETY: as in `drop`: the region is exclusively ours and its block is alive. `part` is not used after this,
            // and later reads go through `bytes`, which is loaded anew.
            unsafe { std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(address), b' ', len) }
        }
    }

    fn unregioned(bytes: Bytes) -> Self {
        Self { bytes, address: 0, len: 0 }
    }

    /// # Safety
    /// `bytes` must be the only view of its region, which must be a part of a block from the global
    /// allocator (so not `Bytes::from_static`, and no clone or sibling slice of it may exist).
    unsafe fn relayed(bytes: Bytes) -> Self {
        let address = bytes.as_ptr().addr();
        let len = bytes.len();
        Self { bytes, address, len }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let Self { address, len, .. } = *self;
        if len > 0 && taken(Measure::Chunks) {
            // SAFETY: `relayed`'s contract makes the region exclusively ours, and `bytes`, still
            // alive here, keeps its block from being freed. The allocator exposed the block's
            // provenance, so the address may be turned back into a pointer for writing; `bytes` is
            // not read after this.
            unsafe { wipe_raw(std::ptr::with_exposed_provenance_mut(address), len) }
        }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.as_slice().len()
    }

    fn chunk(&self) -> &[u8] {
        self.as_slice()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// A body that hyper receives on h2, its frames handed out as [`Chunk`]s.
pub struct WipedIncoming(Incoming);

impl WipedIncoming {
    /// Takes over a body that hyper receives.
    pub fn new(incoming: Incoming) -> Self {
        Self(incoming)
    }
}

impl Drop for WipedIncoming {
    fn drop(&mut self) {
        // What has arrived and waits in a queue of hyper's or h2's would be dropped there without a clear, and its
        // block lives on as the connection's read buffer. Taken as chunks, the pieces are cleared; more of them than
        // the stream's window do not come, because nothing is read from the connection here.
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut *self).poll_frame(&mut cx) {}
    }
}

impl Body for WipedIncoming {
    type Data = Chunk;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|bytes| {
                    // SAFETY: `Incoming` of an h2 stream hands out each region once. h2 (`FramedRead`, `frame::Data`)
                    // splits it off a heap-allocated `BytesMut`, freezes it and keeps no other view; it makes no static
                    // bytes.
                    unsafe { Chunk::relayed(bytes) }
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relayed(text: &str) -> Chunk {
        let address = text.to_owned().into_bytes();
        // The allocator of this crate exposes what it hands out; tests run on it, too.
        let _ = address.as_ptr().expose_provenance();
        // SAFETY: a block of its own, and the only view of it.
        unsafe { Chunk::relayed(Bytes::from(address)) }
    }

    #[test]
    fn a_piece_comes_apart_and_each_part_is_its_own() {
        let mut chunk = relayed("0123456789");
        chunk.advance(2);
        let mut head = chunk.split_to(3);
        assert_eq!((head.as_slice(), chunk.as_slice()), (&b"234"[..], &b"56789"[..]));
        let nothing = chunk.split_to(0);
        assert!(nothing.as_slice().is_empty());
        head.blank(1..2);
        assert_eq!((head.as_slice(), chunk.as_slice()), (&b"2 4"[..], &b"56789"[..]));
        drop(head);
        assert_eq!(chunk.as_slice(), b"56789");
        chunk.blank(0..5);
        assert_eq!(chunk.as_slice(), b"     ");
    }
}
