//! The TLS step of the walk: what the listener accepted becomes a [`TlsStream`] whose peer,
//! protocol and deadline are known, or a counted fault.
//!
//! - [`handshake`] shakes hands with a client under a deadline.
//! - [`server`] holds what the listener presents: certificates by server name, client authentication, ticket keys; it
//!   follows the files on disk.
//! - [`client`] holds what the upstream pools present and trust.
//! - `shake` drives rustls through a handshake on either side; `stream` seals and opens what comes afterwards, `record`
//!   by record.
//! - `schedule` derives the keys of 1.3.
//! - [`certificate`] turns files into checked key pairs.
//!
//! What is held here: certificates (public), private keys (inside aws-lc, never as PEM after loading), ticket keys and
//! the client side's session secrets. No content: that passes through the streams this module returns.
//!
//! Key logging does not exist: both configurations keep rustls' `NoKeyLog`, `KeyLogFile` is never named, and a test
//! runs handshakes with `SSLKEYLOGFILE` set.

#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
pub mod handshake;
pub mod server;

pub mod client;

pub mod certificate;
mod fault;
mod record;
mod schedule;
mod shake;
mod stream;

pub use stream::TlsStream;

pub use fault::Part;
pub use fault::TlsFault;

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;

/// The oldest protocol version a side accepts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 alone.
    Tls13,
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => rustls::ALL_VERSIONS,
            Self::Tls13 => TLS13_ALONE,
        }
    }
}

/// The HTTP version that ALPN settled on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1, also what a peer without ALPN speaks.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Protocol {
    fn from_alpn(alpn: Option<&[u8]>) -> Self {
        match alpn {
            Some(ALPN_H2) => Self::Http2,
            _ => Self::Http1,
        }
    }
}

/// The provider is named here and not taken from a process-wide default: no dependency can install another one first.
/// Its key exchange list begins with X25519MLKEM768 (the feature `prefer-post-quantum`; a test holds it).
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: schedule::suites(), ..rustls::crypto::aws_lc_rs::default_provider() })
}

static TLS13_ALONE: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// What old clients, and curl with `--http1.0`, offer; the h1 server speaks it too.
const ALPN_HTTP10: &[u8] = b"http/1.0";

#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
