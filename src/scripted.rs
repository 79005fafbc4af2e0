//! A scripted server on loopback, on a thread of its own, and the body that it and its clients send:
//! what `demo` and `prove` put behind nullhop.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::TcpListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::clock::TokioTimer;
use crate::hygiene::io::HyperIo;

/// One port of a scripted server.
pub(crate) struct Port {
    /// Bound; set to non-blocking here.
    pub(crate) socket: StdListener,
    /// `None`: HTTP/1.1 without TLS. Otherwise ALPN decides.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
}

/// Serves `ports` with `play` on a thread called `name`, which ends with the process.
///
/// # Errors
/// When the thread cannot be started or a socket cannot be made non-blocking.
pub(crate) fn serve<P, F>(name: &str, ports: Vec<Port>, play: P) -> io::Result<()>
where
    P: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Script>> + 'static,
{
    for port in &ports {
        port.socket.set_nonblocking(true)?;
    }
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async move {
            for port in ports {
                tokio::task::spawn_local(accept(port, play.clone()));
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(())
}

async fn accept<P, F>(port: Port, play: P)
where
    P: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Response<Script>> + 'static,
{
    let Ok(socket) = TcpListener::from_std(port.socket) else { return };
    let tls = port.tls.map(TlsAcceptor::from);
    while let Ok((stream, _)) = socket.accept().await {
        let (tls, play) = (tls.clone(), play.clone());
        let _ = stream.set_nodelay(true);
        tokio::task::spawn_local(async move {
            let Some(tls) = tls else { return connection(stream, false, play).await };
            let Ok(stream) = tls.accept(stream).await else { return };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            connection(stream, h2, play).await;
        });
    }
}

async fn connection<T, P, F>(transport: T, h2: bool, play: P)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<Script>> + 'static,
{
    let service = service_fn(move |request| {
        let answer = play(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = HyperIo::new(transport);
    // A connection that breaks is part of the play.
    let _ = match h2 {
        true => {
            http2::Builder::new(LocalSpawner)
                .timer(TokioTimer)
                // A request that is never read must not use up the room of its neighbours.
                .initial_stream_window_size(64 << 10)
                .initial_connection_window_size(4 << 20)
                .serve_connection(io, service)
                .await
        }
        false => http1::Builder::new().timer(TokioTimer).serve_connection(io, service).with_upgrades().await,
    };
}

/// Spawns hyper's own tasks on the thread that they came up on.
#[derive(Clone, Copy)]
struct LocalSpawner;

impl<F> hyper::rt::Executor<F> for LocalSpawner
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Lets a [`Script`] go on, one permit for each [`Step::Await`].
pub(crate) type Gate = Arc<Semaphore>;

/// A gate that is shut.
pub(crate) fn gate() -> Gate {
    Arc::new(Semaphore::new(0))
}

/// One thing that a body does.
pub(crate) enum Step {
    Send(Bytes),
    Pause(Duration),
    Await(Gate),
    /// The body breaks here: a cut connection on h1, a reset stream on h2.
    Break,
}

/// A body that does one step after the other.
pub(crate) struct Script {
    steps: VecDeque<Step>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), waiting: None }
    }

    /// All at once, with its length known.
    pub(crate) fn at_once(bytes: Bytes) -> Self {
        Self::new([Step::Send(bytes)])
    }

    pub(crate) fn empty() -> Self {
        Self::new([])
    }
}

/// A script has come to its [`Step::Break`].
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken off as scripted")
    }
}

impl std::error::Error for Broken {}

impl Body for Script {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            match self.steps.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Send(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Step::Pause(time)) => self.waiting = Some(Box::pin(tokio::time::sleep(time))),
                Some(Step::Await(gate)) => {
                    self.waiting = Some(Box::pin(async move {
                        if let Ok(permit) = gate.acquire().await {
                            permit.forget();
                        }
                    }));
                }
                Some(Step::Break) => return Poll::Ready(Some(Err(Broken))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.steps.is_empty() && self.waiting.is_none()
    }

    /// Known if nothing but sending is left.
    fn size_hint(&self) -> SizeHint {
        let lengths = self.steps.iter().map(|step| match step {
            Step::Send(bytes) => Some(bytes.len() as u64),
            _ => None,
        });
        match lengths.sum::<Option<u64>>() {
            Some(bytes) if self.waiting.is_none() => SizeHint::with_exact(bytes),
            _ => SizeHint::default(),
        }
    }
}

/// The next data of a body; `None` at its end, and `Err` if it breaks.
pub(crate) async fn next_data(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}
