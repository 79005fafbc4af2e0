//! Between hyper and the transport: where buffers that live as long as their connection meet the bytes,
//! and are cleared of those that have gone.
//!
//! hyper reads into the free end of a buffer that it keeps. What is behind the read bytes
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
use std::task::ready;

use hyper::rt::ReadBufCursor;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use super::measure::Measure;
use super::measure::taken;
use super::turnover::Turnover;
#[cfg(test)]
use super::wipe::wipe;
use super::wipe::wipe_raw;

/// How far the free end of a reader's buffer is dirty: the highest address that a read has filled
/// since it was last cleared. A buffer that has grown, shrunk or moved since then is taken to be
/// dirty as a whole: what was copied on its way to the new block is not known here.
#[derive(Default)]
struct Spare {
    /// The end of the room that was lent last; the same block has the same one.
    room_end: usize,
    dirty_end: usize,
}

impl Spare {
    /// A read into the `room` bytes from `start` on has filled the first `filled`.
    fn filled(&mut self, start: usize, room: usize, filled: usize) {
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
    #[cfg(test)]
    fn clear(&mut self, room: &mut [u8]) {
        let dirty = self.take_dirty(room.as_ptr().addr(), room.len());
        wipe(&mut room[..dirty]);
    }
}

/// What of a write may be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// This many bytes may be written as they are.
    Pass(usize),
    /// This many bytes, at least one, are to be taken over by [`Rewrite::absorb`].
    Absorb(usize),
}

/// Stands between hyper and the transport, and changes what passes. `()` changes nothing.
pub(crate) trait Rewrite {
    /// What hyper gets before anything else is read.
    fn kept(&self) -> &[u8];

    /// hyper has got the first `count` bytes of that.
    fn took(&mut self, count: usize);

    /// These bytes have arrived. Changes them in place, returns how many hyper gets, and keeps the rest.
    fn received(&mut self, bytes: &mut [u8]) -> usize;

    /// What may be done with what hyper writes next.
    ///
    /// # Errors
    /// When it is not what was expected: the connection cannot go on.
    fn plan(&self, slices: &[io::IoSlice<'_>]) -> io::Result<Plan>;

    /// The transport has taken the first `written` bytes of `slices` as they were.
    fn passed(&mut self, slices: &[io::IoSlice<'_>], written: usize);

    /// Takes over the first `len` bytes of `slices`; what is to go out instead is added to `waiting`.
    ///
    /// # Errors
    /// As for `plan`.
    fn absorb(&mut self, slices: &[io::IoSlice<'_>], len: usize) -> io::Result<()>;

    /// What is to be written before anything else.
    fn waiting(&self) -> &[u8];

    /// The transport has taken the first `count` bytes of that.
    fn sent(&mut self, count: usize);
}

impl Rewrite for () {
    fn kept(&self) -> &[u8] {
        &[]
    }

    fn took(&mut self, _count: usize) {}

    fn received(&mut self, bytes: &mut [u8]) -> usize {
        bytes.len()
    }

    fn plan(&self, slices: &[io::IoSlice<'_>]) -> io::Result<Plan> {
        Ok(Plan::Pass(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn passed(&mut self, _slices: &[io::IoSlice<'_>], _written: usize) {}

    fn absorb(&mut self, _slices: &[io::IoSlice<'_>], _len: usize) -> io::Result<()> {
        Ok(())
    }

    fn waiting(&self) -> &[u8] {
        &[]
    }

    fn sent(&mut self, _count: usize) {}
}

/// A transport (TLS or plain) as hyper wants it.
pub(crate) struct HyperIo<T, R = ()> {
    transport: T,
    rewrite: R,
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
        Self { transport, rewrite: (), read_bytes_max, spare: Spare::default(), clear_written: false, turnover: None }
    }
}

impl<T, R: Rewrite> HyperIo<T, R> {
    /// For an h2 connection, whose heads `rewrite` changes; reads are of at most `read_bytes_max`.
    pub(crate) fn h2(transport: T, read_bytes_max: usize, rewrite: R) -> Self {
        Self {
            transport,
            rewrite,
            read_bytes_max,
            spare: Spare::default(),
            clear_written: true,
            turnover: Some(Turnover::default()),
        }
    }
}

impl<T: AsyncRead + Unpin, R: Rewrite + Unpin> hyper::rt::Read for HyperIo<T, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // SAFETY: `ReadBuf` never de-initialises bytes, and only the bytes it reports as filled,
        // which are therefore initialised, are marked as read, or fewer. Clearing and copying write
        // into room that hyper has lent for writing.
        let filled = unsafe {
            let room = cursor.as_mut();
            let (start, room_len) = (room.as_ptr().addr(), room.len());
            if let Some(turnover) = &mut this.turnover {
                turnover.lent(start + room_len);
            }
            loop {
                let kept = this.rewrite.kept();
                if !kept.is_empty() {
                    let count = kept.len().min(room_len);
                    if let Some(turnover) = &mut this.turnover {
                        turnover.read(&kept[..count]);
                    }
                    std::ptr::copy_nonoverlapping(kept.as_ptr(), room.as_mut_ptr().cast(), count);
                    this.rewrite.took(count);
                    this.spare.filled(start, room_len, count);
                    break count;
                }
                let mut buffer = ReadBuf::uninit(&mut room[..room_len.min(this.read_bytes_max)]);
                match Pin::new(&mut this.transport).poll_read(cx, &mut buffer) {
                    Poll::Ready(read) => {
                        read?;
                        let filled = buffer.filled_mut();
                        this.spare.filled(start, room_len, filled.len());
                        let count = this.rewrite.received(filled);
                        if count > 0 || filled.is_empty() {
                            if let Some(turnover) = &mut this.turnover {
                                turnover.read(&filled[..count]);
                            }
                            break count;
                        }
                        // All of it was kept back: zero would say that the peer has closed.
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
                        break filled;
                    }
                }
            }
        };
        // SAFETY: see above; `filled` bytes from the cursor's start are initialised.
        unsafe { cursor.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

/// Slices in one write; h2 hands in its buffer and one frame's payload.
const SLICES_MAX: usize = 64;

impl<T: AsyncWrite + Unpin, R: Rewrite> HyperIo<T, R> {
    /// Writes what goes out before hyper's own bytes.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rewrite.waiting().is_empty() {
            let written = ready!(Pin::new(&mut self.transport).poll_write(cx, self.rewrite.waiting()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rewrite.sent(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what waits and up to `len` bytes of `slices`. How many of the latter were taken.
    fn poll_write_passing(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
        len: usize,
    ) -> Poll<io::Result<usize>> {
        let mut whole = [io::IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut left = len;
        let waiting = self.rewrite.waiting();
        if !waiting.is_empty() {
            whole[0] = io::IoSlice::new(waiting);
            count = 1;
        }
        for slice in slices {
            if left == 0 || count == SLICES_MAX {
                break;
            }
            let take = slice.len().min(left);
            whole[count] = io::IoSlice::new(&slice[..take]);
            count += 1;
            left -= take;
        }
        let before = waiting.len();
        let written = ready!(Pin::new(&mut self.transport).poll_write_vectored(cx, &whole[..count]))?;
        self.rewrite.sent(written.min(before));
        Poll::Ready(Ok(written.saturating_sub(before)))
    }

    /// The h2 way: heads are taken over, everything else passes.
    fn poll_write_rewritten(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match self.rewrite.plan(slices)? {
                Plan::Absorb(len) => {
                    self.rewrite.absorb(slices, len)?;
                    return Poll::Ready(Ok(len));
                }
                Plan::Pass(len) => {
                    let taken = ready!(self.poll_write_passing(cx, slices, len))?;
                    if taken > 0 || len == 0 {
                        self.rewrite.passed(slices, taken);
                        return Poll::Ready(Ok(taken));
                    }
                    // Only of what waited; zero would say that the peer takes nothing.
                }
            }
        }
    }
}

impl<T: AsyncWrite + Unpin, R: Rewrite + Unpin> hyper::rt::Write for HyperIo<T, R> {
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
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(cx))?;
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
        if self.clear_written {
            let written = ready!(self.poll_write_rewritten(cx, slices))?;
            if let Some(turnover) = &mut self.turnover {
                let mut left = written;
                for slice in slices {
                    let len = slice.len().min(left);
                    if turnover.written(&slice[..len]) {
                        // h2 has read before it has written, and waits.
                        cx.waker().wake_by_ref();
                    }
                    left -= len;
                }
            }
            if taken(Measure::WrittenFrames) {
                clear_written(slices, written);
            }
            return Poll::Ready(Ok(written));
        }
        Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
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
