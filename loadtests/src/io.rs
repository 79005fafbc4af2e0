//! The socket below hyper, with a handle to end it in every way a peer can end it.
//!
//! hyper closes connections properly, which is no help when the scene is a provider that dies in mid-sentence. [`Io`]
//! owns the transport and looks into its [`Control`] when it is dropped: plain close, RST, FIN without close_notify, or
//! the full goodbye. The same control can slip bytes in front of hyper's next write; that is how a 1xx gets out.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsStream;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// TCP RST; what was not sent yet is lost.
    Reset = 1,
    /// TCP FIN without a TLS close_notify: to TLS this is a truncation.
    Fin = 2,
    /// TLS close_notify, then FIN. On a plain socket the same as `Fin`.
    Goodbye = 3,
}

/// The handle on a connection that is kept by those who may end it.
#[derive(Debug, Default)]
pub struct Control {
    ending: AtomicU8,
    ended: Notify,
    drain: Notify,
    has_injected: AtomicBool,
    injected: Mutex<Vec<u8>>,
    http10_as_11: AtomicBool,
    watch: AtomicBool,
    /// A second handle on the socket while someone watches it; dropped before the first, which decides how it ends.
    watched: Mutex<Option<OwnedFd>>,
}

impl Control {
    /// Ends the connection; whoever drives it drops it upon [`Control::ended`].
    pub fn end(&self, ending: Ending) {
        self.ending.store(ending as u8, Ordering::SeqCst);
        self.ended.notify_one();
    }

    /// Waits for [`Control::end`]. One task waits, the one that drives the connection.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Asks for GOAWAY (h2) or for no further keep-alive (h1).
    pub fn drain(&self) {
        self.drain.notify_one();
    }

    /// Waits for [`Control::drain`].
    pub async fn drained(&self) {
        self.drain.notified().await;
    }

    /// Whether the connection was ended from this side.
    pub fn ending(&self) -> Option<Ending> {
        match self.ending.load(Ordering::SeqCst) {
            1 => Some(Ending::Reset),
            2 => Some(Ending::Fin),
            3 => Some(Ending::Goodbye),
            _ => None,
        }
    }

    /// Sends `bytes` ahead of the next write or flush of the HTTP stack.
    pub fn inject(&self, bytes: &[u8]) {
        self.injected.lock().expect("no panics under this lock").extend_from_slice(bytes);
        self.has_injected.store(true, Ordering::SeqCst);
    }

    /// Waits until the peer has closed its side or reset the connection, even behind bytes that nobody reads.
    /// A FIN behind bytes for which there was no room in the window has not arrived, so it is not seen.
    pub async fn peer_gone(&self) {
        self.watch.store(true, Ordering::SeqCst);
        loop {
            tokio::time::sleep(WATCH_PERIOD).await;
            let watched = self.watched.lock().expect("no panics under this lock");
            let Some(socket) = &*watched else { continue };
            let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
            // HUP and ERR are reported unasked.
            if rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
                return;
            }
        }
    }

    /// Lets the next `HTTP/1.0` at the start of a write read `HTTP/1.1`: hyper frames by close for 1.0 only.
    pub(crate) fn write_http10_as_11(&self) {
        self.http10_as_11.store(true, Ordering::SeqCst);
    }
}

/// A TCP connection, with TLS or without.
pub enum Transport {
    /// The bare socket.
    Plain(TcpStream),
    /// Client or server side of TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// The socket itself.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The protocol that ALPN settled on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Transport::Plain(_) => None,
            Transport::Tls(tls) => tls.get_ref().1.alpn_protocol(),
        }
    }

    /// Ends the connection now.
    pub fn end(self, ending: Ending) {
        let socket = SockRef::from(self.tcp());
        match ending {
            // A failure means that the peer was faster.
            Ending::Reset => drop(socket.set_linger(Some(Duration::ZERO))),
            Ending::Fin => {
                let _ = socket.shutdown(std::net::Shutdown::Write);
                linger(self, false);
            }
            Ending::Goodbye => linger(self, true),
        }
    }
}

/// Reads on for a moment: closing a socket with unread bytes in it would turn the FIN into a RST.
fn linger(mut transport: Transport, goodbye: bool) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        if goodbye {
            let _ = transport.shutdown().await;
        }
        let mut scratch = vec![0; 16 * 1024];
        let drained = async { while matches!(transport.read(&mut scratch).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(LINGER, drained).await;
    });
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// What hyper reads and writes.
pub struct Io {
    /// Taken in drop only.
    transport: Option<Transport>,
    control: Arc<Control>,
    /// Counts the connection as open for as long as it is there.
    _guard: Option<Box<dyn Any + Send>>,
}

impl Io {
    /// Wraps a transport; `guard` is dropped together with it.
    pub fn new(transport: Transport, control: Arc<Control>, guard: Option<Box<dyn Any + Send>>) -> Io {
        Io { transport: Some(transport), control, _guard: guard }
    }

    fn transport(&mut self) -> Pin<&mut Transport> {
        Pin::new(self.transport.as_mut().expect("only drop takes the transport"))
    }

    /// Thousands of connections should not cost two descriptors each, so the second one is made when it is asked for.
    fn watch(&mut self) {
        if self.control.watch.load(Ordering::Relaxed) {
            let mut watched = self.control.watched.lock().expect("no panics under this lock");
            if let (None, Some(transport)) = (&*watched, &self.transport) {
                *watched = transport.tcp().as_fd().try_clone_to_owned().ok();
            }
        }
    }

    fn poll_injected(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let control = self.control.clone();
        if !control.has_injected.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        let mut injected = control.injected.lock().expect("no panics under this lock");
        while !injected.is_empty() {
            let written = ready!(self.transport().poll_write(cx, &injected))?;
            injected.drain(..written);
        }
        control.has_injected.store(false, Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.control.watched.lock().expect("no panics under this lock").take();
        if let (Some(transport), Some(ending)) = (self.transport.take(), self.control.ending()) {
            transport.end(ending);
        }
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper's cursor advances by an unsafe call or by a copy. The copy costs less than the TLS above it,
        // and one buffer a thread is enough because nothing waits while it is filled.
        SCRATCH.with_borrow_mut(|scratch| {
            let len = scratch.len().min(buf.remaining());
            let mut read = ReadBuf::new(&mut scratch[..len]);
            ready!(self.get_mut().transport().poll_read(cx, &mut read))?;
            buf.put_slice(read.filled());
            Poll::Ready(Ok(()))
        })
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_injected(cx))?;
        if this.control.http10_as_11.load(Ordering::Relaxed)
            && bufs.first().is_some_and(|buf| buf.starts_with(b"HTTP/1.0"))
        {
            this.control.http10_as_11.store(false, Ordering::SeqCst);
            this.control.inject(b"HTTP/1.1");
            return Poll::Ready(Ok(b"HTTP/1.0".len()));
        }
        this.transport().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.as_ref().is_some_and(|transport| transport.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch();
        ready!(this.poll_injected(cx))?;
        this.transport().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().transport().poll_shutdown(cx)
    }
}

/// The way back: an upgraded hyper stream as a tokio one.
pub struct FromHyper<T>(pub T);

impl<T: hyper::rt::Read + Unpin> AsyncRead for FromHyper<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut read = hyper::rt::ReadBuf::new(buf.initialize_unfilled());
        ready!(Pin::new(&mut self.get_mut().0).poll_read(cx, read.unfilled()))?;
        let len = read.filled().len();
        buf.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl<T: hyper::rt::Write + Unpin> AsyncWrite for FromHyper<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

/// hyper's h2 side spawns through this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spawner;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// Runs an accept loop on its own threads until dropped. Tests without a runtime can hold one.
pub(crate) struct Background {
    stop: Option<tokio::sync::watch::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Background {
    /// Each worker has its own single-threaded runtime and its own handle on the listening socket.
    pub(crate) fn accept<F, C>(
        listener: &std::net::TcpListener,
        workers: usize,
        connection: F,
    ) -> io::Result<Background>
    where
        F: Fn(TcpStream) -> C + Clone + Send + 'static,
        C: Future<Output = ()> + Send + 'static,
    {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = tokio::sync::watch::channel(());
        let mut threads = Vec::new();
        for _ in 0..workers.max(1) {
            let listener = listener.try_clone()?;
            let connection = connection.clone();
            let mut stopped = stopped.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            threads.push(std::thread::Builder::new().name("loadtests".into()).spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                    loop {
                        let accepted = tokio::select! {
                            _ = stopped.changed() => return,
                            accepted = listener.accept() => accepted,
                        };
                        match accepted {
                            Ok((tcp, _)) => {
                                let _ = tcp.set_nodelay(true);
                                tokio::spawn(connection(tcp));
                            }
                            // Out of descriptors, most likely: the pause lets others close theirs.
                            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                        }
                    }
                });
            })?);
        }
        Ok(Background { stop: Some(stop), threads })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.take();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A listening socket with a backlog for thousands of connections at once; std would take 128.
pub(crate) fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// How often a watched socket is looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(5);

thread_local! {
    /// Filled and copied out within one poll.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 * 1024]);
}

/// Long enough for a peer on loopback to see the FIN and close, short enough not to hold sockets.
const LINGER: Duration = Duration::from_secs(1);
