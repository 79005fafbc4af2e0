//! A TCP socket that a guard can watch from beside the stream that uses it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::Interest;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use crate::tls::TlsStream;

/// The reading and writing side, owned by TLS or whoever speaks HTTP.
pub(crate) struct Socket {
    shared: Arc<Shared>,
}

/// The guard's side: what it can see of the socket and do to it.
#[derive(Clone)]
pub(crate) struct SocketWatch(Arc<Shared>);

struct Shared {
    stream: TcpStream,
    opened: Instant,
    /// The last read found nothing, so the reader's waker will fire when the peer closes.
    read_armed: AtomicBool,
    /// Milliseconds after `opened`, plus one, at which a write first found the send buffer full and
    /// none has gone through since; 0: not blocked.
    write_blocked_at: AtomicU64,
    /// Milliseconds after `opened`, plus one, of the first byte since `forget_first_read`.
    first_read_at: AtomicU64,
    /// A write that the peer does not want any more counts as done: what the peer said before it
    /// closed may still wait to be read.
    hear_out: AtomicBool,
    /// What is written now are the last words, which leave with the end that follows.
    ending: AtomicBool,
}

impl Socket {
    /// Takes over a connected stream.
    pub(crate) fn new(stream: TcpStream) -> (Self, SocketWatch) {
        Self::limit_unsent(&socket2::SockRef::from(&stream));
        Self::accepted(stream)
    }

    /// Bounds what the kernel takes beyond what the peer lets it send; on a listening socket, for whoever it accepts.
    pub(crate) fn limit_unsent(socket: &socket2::Socket) {
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    }

    /// Takes over a stream whose options are set: those of `limit_unsent`, too.
    pub(crate) fn accepted(stream: TcpStream) -> (Self, SocketWatch) {
        let shared = Arc::new(Shared {
            stream,
            opened: Instant::now(),
            read_armed: AtomicBool::new(false),
            write_blocked_at: AtomicU64::new(0),
            first_read_at: AtomicU64::new(0),
            hear_out: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        (Self { shared: shared.clone() }, SocketWatch(shared))
    }
}

/// What the kernel takes from us beyond what the peer's window lets it send. Without a limit its
/// buffer grows to megabytes (net.ipv4.tcp_wmem) in front of a reader that stops, and a reader that
/// is slow gets everything that much later.
const UNSENT_BYTES_MAX: u32 = 64 << 10;

impl Shared {
    fn millis(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl SocketWatch {
    /// How long the peer has not taken a byte while some were waiting.
    pub(crate) fn write_blocked_for(&self) -> Option<Duration> {
        match self.0.write_blocked_at.load(Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(self.0.millis().saturating_sub(at))),
        }
    }

    /// How long ago the first byte arrived since the last `forget_first_read`.
    pub(crate) fn first_read_ago(&self) -> Option<Duration> {
        match self.0.first_read_at.load(Relaxed) {
            0 => None,
            at => Some(Duration::from_millis(self.0.millis().saturating_sub(at))),
        }
    }

    /// Starts a new count for `first_read_ago`.
    pub(crate) fn forget_first_read(&self) {
        self.0.first_read_at.store(0, Relaxed);
    }

    /// Whether somebody waits for bytes, so that the peer's closing wakes it without our help.
    pub(crate) fn read_armed(&self) -> bool {
        self.0.read_armed.load(Relaxed)
    }

    /// Whether the peer has closed its side or reset the connection, even if unread bytes wait. One system call.
    pub(crate) fn peer_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.0.stream, PollFlags::RDHUP)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&zero)) {
            Ok(_) => fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR),
            Err(_) => false,
        }
    }

    /// Whether a connection that nobody reads is silent and open: no byte, no end, no error waits.
    pub(crate) fn quiet(&self) -> bool {
        let mut fds = [PollFd::new(&self.0.stream, PollFlags::IN | PollFlags::RDHUP)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut fds, Some(&zero)), Ok(0))
    }

    /// From now on closing resets the connection instead of ending it in order, so that the peer
    /// cannot take what it has for the whole.
    pub(crate) fn reset_on_close(&self) {
        let _ = socket2::SockRef::from(&self.0.stream).set_linger(Some(Duration::ZERO));
    }

    /// From now on a peer that closes or resets its connection while we write is read to its end
    /// first: a provider that refuses an upload answers and closes, and Linux keeps the answer
    /// readable behind the RST. The reader gets the error afterwards.
    pub(crate) fn hear_out(&self) {
        self.0.hear_out.store(true, Relaxed);
    }

    /// Our address, as the client named it.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.0.stream.local_addr().ok()
    }
}

/// One read of a plain connection.
const BLOCK_BYTES: usize = 16 << 10;

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &*self.shared;
        loop {
            match shared.stream.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    shared.read_armed.store(true, Relaxed);
                    return Poll::Pending;
                }
            }
            let room = buffer.remaining();
            match shared.stream.try_read_buf(buffer) {
                Ok(read) => {
                    if read > 0 && read < room {
                        // That was all there is, so the next read would only be told to wait (epoll(7), edge-triggered).
                        // What comes, the end too, is reported anew.
                        let _ = shared
                            .stream
                            .try_io(Interest::READABLE, || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock)));
                    }
                    if shared.read_armed.load(Relaxed) {
                        shared.read_armed.store(false, Relaxed);
                    }
                    if read > 0 && shared.first_read_at.load(Relaxed) == 0 {
                        shared.first_read_at.store(shared.millis(), Relaxed);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {}
                Err(fault) => return Poll::Ready(Err(fault)),
            }
        }
    }
}

impl Socket {
    /// What has arrived, as a block of its own; an empty one is the peer's end.
    fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        // Not before something is there, so that a quiet connection holds no block.
        match self.shared.stream.poll_read_ready(cx) {
            Poll::Ready(ready) => ready?,
            Poll::Pending => {
                self.shared.read_armed.store(true, Relaxed);
                return Poll::Pending;
            }
        }
        let mut block = vec![0; BLOCK_BYTES];
        let mut buffer = ReadBuf::new(&mut block);
        ready!(Pin::new(self).poll_read(cx, &mut buffer))?;
        let filled = buffer.filled().len();
        if filled < BLOCK_BYTES / 2 {
            return Poll::Ready(Ok(block[..filled].to_vec()));
        }
        block.truncate(filled);
        Poll::Ready(Ok(block))
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        len: usize,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let shared = &*self.shared;
        loop {
            match shared.stream.poll_write_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    if shared.write_blocked_at.load(Relaxed) == 0 {
                        shared.write_blocked_at.store(shared.millis(), Relaxed);
                    }
                    return Poll::Pending;
                }
            }
            match write(&shared.stream) {
                Ok(written) => {
                    if shared.write_blocked_at.load(Relaxed) != 0 {
                        shared.write_blocked_at.store(0, Relaxed);
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {}
                Err(fault) => {
                    let closed = matches!(fault.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
                    let heard_out = closed && shared.hear_out.load(Relaxed);
                    return Poll::Ready(if heard_out { Ok(len) } else { Err(fault) });
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let ending = self.shared.ending.load(Relaxed);
        self.poll_write_with(
            cx,
            bytes.len(),
            |stream| if ending { write_last(stream, bytes) } else { stream.try_write(bytes) },
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        self.poll_write_with(cx, len, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = socket2::SockRef::from(&self.shared.stream);
        Poll::Ready(match socket.shutdown(std::net::Shutdown::Write) {
            // The peer was faster; nothing is left to shut down.
            Err(fault) if fault.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        })
    }
}

/// Leaves the bytes with the kernel until the end of the connection is said, a moment later; then one packet carries
/// both. It would send them by itself after 200 ms: `MSG_MORE` in send(2).
fn write_last(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = rustix::net::SendFlags::MORE | rustix::net::SendFlags::NOSIGNAL;
    stream.try_io(Interest::WRITABLE, || rustix::net::send(stream, bytes, flags).map_err(io::Error::from))
}

/// What HTTP runs over: TLS on either side, or plain TCP.
#[expect(clippy::large_enum_variant, reason = "nearly every transport is the large one")]
pub(crate) enum Transport {
    Plain(Socket),
    Tls(TlsStream<Socket>),
}

impl Transport {
    /// Whether nothing was reported of the reading side since somebody last found it empty. No system call, and nobody is
    /// woken for it: whoever waits for it has been waiting since then.
    pub(crate) fn is_still(&self) -> bool {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.io(),
        };
        // Asks for the flag only; nothing is read.
        socket.shared.stream.try_io(Interest::READABLE, || Ok(())).is_err()
    }

    /// What has arrived, as a block of its own, of at most two TLS records; an empty one is the peer's orderly end. A
    /// connection on which nothing has arrived holds no buffer.
    ///
    /// # Errors
    /// The connection broke, or TLS was cut off.
    pub(crate) fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        match self {
            Self::Plain(socket) => socket.poll_block(cx),
            Self::Tls(stream) => stream.poll_block(cx),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => {
                stream.io().shared.ending.store(true, Relaxed);
                Pin::new(stream).poll_shutdown(cx)
            }
        }
    }
}
