//! Between hyper and the transport, and between TLS and the socket: where buffers that live as long
//! as their connection meet the bytes, and are cleared of those that have gone.
//!
//! hyper and rustls read into the free end of a buffer that they keep. What is behind the read bytes
//! there is what an earlier, longer read has left. When a read finds nothing, so that the connection
//! is about to wait, that part is cleared. [`Spare`] remembers how far it is dirty, so that a wait
//! costs no more clearing than there was reading.
//!
//! h2 copies what it sends into a buffer of its own and never clears it. The writes of an h2
//! connection are cleared where they stand once the transport has taken them.

#![expect(unsafe_code, reason = "hyper's read cursor is over uninitialised memory; written bytes are cleared in place")]

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use hyper::rt::ReadBufCursor;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use super::measure::Measure;
use super::measure::taken;
use super::turnover::Turnover;
use super::wipe::wipe;
use super::wipe::wipe_raw;

/// How far the free end of a reader's buffer is dirty: the highest address that a read has filled
/// since it was last cleared. A buffer that has grown, shrunk or moved since then is taken to be
/// dirty as a whole: what was copied on its way to the new block is not known here.
#[derive(Default)]
pub(crate) struct Spare {
    /// The end of the room that was lent last; the same block has the same one.
    room_end: usize,
    dirty_end: usize,
}

impl Spare {
    /// A read into the `room` bytes from `start` on has filled the first `filled`.
    pub(crate) fn filled(&mut self, start: usize, room: usize, filled: usize) {
        self.same_block(start + room);
        self.dirty_end = self.dirty_end.max(start + filled);
    }

    /// A read into the `room` bytes from `start` on has found nothing: how many of them are dirty. They
    /// count as clean from now on.
    fn take_dirty(&mut self, start: usize, room: usize) -> usize {
        self.same_block(start + room);
        let dirty = self.dirty_end.saturating_sub(start).min(room);
        self.dirty_end = start;
        if taken(Measure::SpareRoom) { dirty } else { 0 }
    }

    fn same_block(&mut self, room_end: usize) {
        if self.room_end != room_end {
            self.room_end = room_end;
            self.dirty_end = room_end;
        }
    }

    /// The same as `take_dirty`, and clears them.
    pub(crate) fn clear(&mut self, room: &mut [u8]) {
        let dirty = self.take_dirty(room.as_ptr().addr(), room.len());
        wipe(&mut room[..dirty]);
    }
}

/// A transport (TLS or plain) as hyper wants it.
pub(crate) struct HyperIo<T> {
    transport: T,
    /// One read, at most. hyper sizes its buffers by what its reads bring.
    read_bytes_max: usize,
    spare: Spare,
    /// Whether what was written is cleared where it stands; only for h2, whose buffers are all on
    /// the heap. h1's are not: the ends of chunks are constants.
    clear_written: bool,
    /// Only for h2: when its read buffer has to be left because of what h2 has thrown away in it.
    turnover: Option<Turnover>,
}

impl<T> HyperIo<T> {
    /// Wraps `transport`; reads go straight into hyper's buffer.
    pub(crate) fn new(transport: T) -> Self {
        Self::reading(transport, usize::MAX)
    }

    /// The same with reads of at most `read_bytes_max`.
    pub(crate) fn reading(transport: T, read_bytes_max: usize) -> Self {
        Self { transport, read_bytes_max, spare: Spare::default(), clear_written: false, turnover: None }
    }

    /// The same for an h2 connection.
    pub(crate) fn h2(transport: T, read_bytes_max: usize) -> Self {
        Self { clear_written: true, turnover: Some(Turnover::default()), ..Self::reading(transport, read_bytes_max) }
    }

    /// The transport, after an upgrade.
    pub(crate) fn into_inner(self) -> T {
        self.transport
    }
}

impl<T: AsyncRead + Unpin> hyper::rt::Read for HyperIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // SAFETY: `ReadBuf` never de-initialises bytes, and only the bytes it reports as filled,
        // which are therefore initialised, are marked as read. Clearing writes zeros into room that
        // hyper has lent for writing.
        let filled = unsafe {
            let room = cursor.as_mut();
            let (start, room_len) = (room.as_ptr().addr(), room.len());
            if let Some(turnover) = &mut this.turnover {
                turnover.lent(start + room_len);
            }
            let mut buffer = ReadBuf::uninit(&mut room[..room_len.min(this.read_bytes_max)]);
            match Pin::new(&mut this.transport).poll_read(cx, &mut buffer) {
                Poll::Ready(read) => {
                    read?;
                    let filled = buffer.filled().len();
                    this.spare.filled(start, room_len, filled);
                    if let Some(turnover) = &mut this.turnover {
                        turnover.read(buffer.filled());
                    }
                    filled
                }
                Poll::Pending => {
                    let dirty = this.spare.take_dirty(start, room_len);
                    wipe_raw(room.as_mut_ptr().cast(), dirty);
                    let Some(turnover) = this.turnover.as_mut().filter(|turnover| turnover.wants_room()) else {
                        return Poll::Pending;
                    };
                    let filled = turnover.fill(ReadBuf::uninit(room).initialize_unfilled());
                    if filled == 0 {
                        return Poll::Pending;
                    }
                    // h2 reads again behind this, and waits then.
                    this.spare.filled(start, room_len, filled);
                    filled
                }
            }
        };
        // SAFETY: see above; `filled` bytes from the cursor's start are initialised.
        unsafe { cursor.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for HyperIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.transport).poll_write(cx, bytes);
        if let (Some(turnover), Poll::Ready(Ok(written))) = (&mut self.turnover, &polled)
            && turnover.written(&bytes[..*written])
        {
            cx.waker().wake_by_ref();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.transport).poll_write_vectored(cx, slices);
        if let (Some(turnover), Poll::Ready(Ok(written))) = (&mut self.turnover, &polled) {
            let mut left = *written;
            for slice in slices {
                let len = slice.len().min(left);
                if turnover.written(&slice[..len]) {
                    // h2 has read before it has written, and waits.
                    cx.waker().wake_by_ref();
                }
                left -= len;
            }
        }
        if self.clear_written
            && taken(Measure::WrittenFrames)
            && let Poll::Ready(Ok(written)) = polled
        {
            clear_written(slices, written);
        }
        polled
    }
}

/// Clears the first `written` bytes of `slices` where they stand.
///
/// Only for the vectored writes of hyper's h2 connections (plain writes carry the constant preface).
/// h2 hands in its encoder's buffer and the payloads queued behind it, and moves past `written`
/// bytes next without looking at them again.
fn clear_written(slices: &[io::IoSlice<'_>], mut written: usize) {
    for slice in slices {
        let len = slice.len().min(written);
        // SAFETY: the slices are the encoder's `BytesMut`, [`super::Chunk`]s split off a `BytesMut`,
        // or texts of ours made of a `String`: blocks of the global allocator, which exposes their
        // provenance, each with one owner, which is blocked in this very call and will drop or
        // overwrite these bytes without reading them. The references in `slices` are not read again
        // here, and nothing tells the compiler that what a slice of slices points to stays as it is.
        unsafe { wipe_raw(std::ptr::with_exposed_provenance_mut(slice.as_ptr().addr()), len) };
        written -= len;
        if written == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_room_is_cleared_as_far_as_it_is_dirty() {
        let mut block = [7_u8; 100];
        let start = block.as_ptr().addr();
        let mut spare = Spare::default();
        // Nothing is known of a block that was not seen before.
        spare.clear(&mut block[..]);
        assert!(block.iter().all(|byte| *byte == 0));

        block.fill(7);
        spare.filled(start, 100, 60);
        spare.filled(start, 100, 10);
        // The reader has kept ten bytes and offers the rest.
        spare.clear(&mut block[10..]);
        assert!(block[..10].iter().all(|byte| *byte == 7));
        assert!(block[10..60].iter().all(|byte| *byte == 0));
        assert!(block[60..].iter().all(|byte| *byte == 7), "never read into");

        block[10..60].fill(9);
        spare.clear(&mut block[10..]);
        assert!(block[10..60].iter().all(|byte| *byte == 9), "cleared once");

        // The reader has shortened its buffer, perhaps into another block.
        spare.clear(&mut block[10..50]);
        assert!(block[10..50].iter().all(|byte| *byte == 0));
    }
}
