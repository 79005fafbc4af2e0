//! Between hyper and the transport: the place where hyper's read buffers meet the bytes.

#![expect(unsafe_code, reason = "hyper's read cursor is over uninitialised memory")]

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use hyper::rt::ReadBufCursor;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

/// A transport (TLS or plain) as hyper wants it.
pub(crate) struct HyperIo<T> {
    transport: T,
    /// One read, at most. hyper sizes its buffers by what its reads bring.
    read_bytes_max: usize,
}

impl<T> HyperIo<T> {
    /// Wraps `transport`; reads go straight into hyper's buffer.
    pub(crate) fn new(transport: T) -> Self {
        Self { transport, read_bytes_max: usize::MAX }
    }

    /// The same with reads of at most `read_bytes_max`.
    pub(crate) fn reading(transport: T, read_bytes_max: usize) -> Self {
        Self { transport, read_bytes_max }
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
        // SAFETY: `ReadBuf` never de-initialises bytes, and only the bytes it reports as filled,
        // which are therefore initialised, are marked as read.
        let filled = unsafe {
            let read_bytes_max = self.read_bytes_max;
            let room = cursor.as_mut();
            let room_len = room.len().min(read_bytes_max);
            let mut buffer = ReadBuf::uninit(&mut room[..room_len]);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut buffer))?;
            buffer.filled().len()
        };
        // SAFETY: see above; `filled` bytes from the cursor's start are initialised.
        unsafe { cursor.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for HyperIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
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
        Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
    }
}
