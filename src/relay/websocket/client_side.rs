//! The client's side of a WebSocket: an h1 connection that was taken over, or a stream of an h2 connection.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Buf;
use hyper::rt::Read;
use hyper::rt::ReadBufCursor;
use hyper::rt::Write;
use hyper::upgrade::OnUpgrade;
use hyper::upgrade::Upgraded;

use crate::h1::Takeover;
use crate::hygiene::Chunk;
use crate::hygiene::io::HyperIo;
use crate::incoming::Incoming;
use crate::message::Request;
use crate::socket::Transport;

/// What becomes the client's side when the answer's head is out.
pub(super) enum Coming {
    H1(Takeover),
    H2(OnUpgrade),
}

impl Coming {
    /// To be asked for before the answer is given.
    pub(super) fn of(request: &mut Request<Incoming>) -> Self {
        match request.body().take_over() {
            Some(takeover) => Self::H1(takeover),
            None => {
                let mut carrier = http::Request::new(());
                std::mem::swap(carrier.extensions_mut(), request.extensions_mut());
                let coming = hyper::upgrade::on(&mut carrier);
                std::mem::swap(carrier.extensions_mut(), request.extensions_mut());
                Self::H2(coming)
            }
        }
    }

    /// Waits for it. `None`: the client has left, or the answer was another one.
    pub(super) async fn here(self) -> Option<ClientSide> {
        match self {
            Self::H1(takeover) => {
                let (transport, early) = takeover.await.ok()?;
                Some(ClientSide::H1 { io: HyperIo::new(transport), early })
            }
            Self::H2(upgrade) => upgrade.await.ok().map(ClientSide::H2),
        }
    }
}

/// Bytes in both directions.
#[expect(clippy::large_enum_variant, reason = "nearly every client is the large one")]
pub(super) enum ClientSide {
    /// `early`: what came behind the request's head.
    H1 {
        io: HyperIo<Transport>,
        early: Chunk,
    },
    H2(Upgraded),
}

impl Read for ClientSide {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1 { early, .. } if !early.as_slice().is_empty() => {
                let len = early.as_slice().len().min(cursor.remaining());
                cursor.put_slice(&early.as_slice()[..len]);
                early.advance(len);
                Poll::Ready(Ok(()))
            }
            Self::H1 { io, .. } => Pin::new(io).poll_read(cx, cursor),
            Self::H2(stream) => Pin::new(stream).poll_read(cx, cursor),
        }
    }
}

impl Write for ClientSide {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::H1 { io, .. } => Pin::new(io).poll_write(cx, bytes),
            Self::H2(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1 { io, .. } => Pin::new(io).poll_flush(cx),
            Self::H2(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::H1 { io, .. } => Pin::new(io).poll_shutdown(cx),
            Self::H2(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
