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
pub(crate) struct HyperIo<T>(T);

impl<T> HyperIo<T> {
    /// Wraps `transport`; reads go straight into hyper's buffer.
    pub(crate) fn new(transport: T) -> Self {
        Self(transport)
    }

    /// The transport, after an upgrade.
    pub(crate) fn into_inner(self) -> T {
        self.0
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
            let mut buffer = ReadBuf::uninit(cursor.as_mut());
            ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
            buffer.filled().len()
        };
        // SAFETY: see above; `filled` bytes from the cursor's start are initialised.
        unsafe { cursor.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for HyperIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
}
