//! A body as a peer sends it, over either version of HTTP.

use std::fmt;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use http_body::Body;
use http_body::Frame;
use http_body::SizeHint;

use crate::h1::Inbound;
use crate::h1::InboundFault;
use crate::h1::Takeover;
use crate::hygiene::Chunk;
use crate::hygiene::WipedIncoming;

/// Why a body ended before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// What came is no body: chunks that are none.
    Malformed,
    /// The peer has reset the stream.
    Reset,
    /// The connection is gone.
    Cut,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "the body is malformed",
            Self::Reset => "the stream was reset",
            Self::Cut => "the connection broke off",
        })
    }
}

impl std::error::Error for Broken {}

/// A body on its way in.
pub(crate) enum Incoming {
    H1(Inbound),
    H2(WipedIncoming),
}

impl Incoming {
    /// A body of an h2 stream.
    pub(crate) fn h2(body: hyper::body::Incoming) -> Self {
        Self::H2(WipedIncoming::new(body))
    }

    /// The connection below an h1 request, which comes after a 101. `None` on h2.
    pub(crate) fn take_over(&self) -> Option<Takeover> {
        match self {
            Self::H1(body) => Some(body.take_over()),
            Self::H2(_) => None,
        }
    }
}

impl Body for Incoming {
    type Data = Chunk;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Broken>>> {
        match self.get_mut() {
            Self::H1(body) => body.poll_frame(cx).map_err(|fault| match fault {
                InboundFault::Malformed => Broken::Malformed,
                InboundFault::Gone => Broken::Cut,
            }),
            Self::H2(body) => Pin::new(body).poll_frame(cx).map_err(|error| match h2_error(&error) {
                Some(h2) if h2.is_reset() => Broken::Reset,
                _ => Broken::Cut,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(body) => body.is_end_stream(),
            Self::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(body) => body.size_hint(),
            Self::H2(body) => body.size_hint(),
        }
    }
}

/// The h2 error inside hyper's.
pub(crate) fn h2_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a h2::Error> {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return Some(h2);
        }
        source = error.source();
    }
    None
}
