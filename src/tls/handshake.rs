//! One handshake with a client, under a deadline.

use std::io;
use std::time::Duration;

use rustls::HandshakeKind;
use rustls::InvalidMessage;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use super::Protocol;
use super::TlsStream;
use super::server::ServerTls;
use super::server::asked_sni;
use super::shake;
use crate::telemetry::labels::HandshakeResult;

/// What a handshake settled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Negotiated {
    /// The HTTP version to speak.
    pub protocol: Protocol,
    /// How the client's server name met the certificates.
    pub sni: Sni,
    /// Whether the client came back with a ticket.
    pub resumed: bool,
}

/// How the client's server name met the certificates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sni {
    /// The client named no server. It got the default certificate.
    Absent,
    /// A certificate carries the name.
    Matched,
    /// No certificate carries the name. The client got the default one and may well leave.
    Unmatched,
}

/// Shakes hands. The deadline covers the whole of it, from the first byte of the hello to the client's last flight:
/// neither rustls nor tokio-rustls has a clock, and a client that sends half a hello would stay for ever.
///
/// What a stalled client makes us hold is bounded by rustls: a hello of at most 64 KiB. How many handshakes run at once
/// is the listener's to cap. On a fault `io` is dropped, which closes the connection; the alert has been written by then.
pub async fn accept<IO>(
    tls: &ServerTls,
    io: IO,
    deadline: Duration,
) -> Result<(TlsStream<IO>, Negotiated), HandshakeFault>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // Taken once: a reload in mid-handshake does not mix two generations.
    let current = tls.current();
    let mut sni = Sni::Absent;
    let (stream, (protocol, resumed)) = tokio::time::timeout(
        deadline,
        shake::accept(
            current.config(),
            io,
            || {
                if let Some(asked) = asked_sni() {
                    sni = asked;
                }
            },
            |state| {
                (Protocol::from_alpn(state.alpn_protocol()), state.handshake_kind() == Some(HandshakeKind::Resumed))
            },
        ),
    )
    .await
    .map_err(|_| HandshakeFault::TimedOut)?
    .map_err(|error| HandshakeFault::of(&error))?;
    let negotiated = Negotiated { protocol, sni, resumed };
    Ok((stream, negotiated))
}

/// Why a handshake with a client failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HandshakeFault {
    /// The client's certificate is missing, or did not convince.
    BadClientCertificate,
    /// The client broke the protocol.
    BadMessage,
    /// The client refused us with an alert; most often it does not trust the certificate.
    ClientAlert,
    /// The client left in the middle. Port scans and health checks that only connect end here, too.
    Closed,
    /// We failed: no random bytes, no clock.
    Internal,
    /// No cipher suite, key exchange, signature scheme or version in common.
    NoSharedCipher,
    /// The client offers application protocols, and neither `h2` nor `http/1.1` is among them.
    NoSharedProtocol,
    /// Not TLS at all; most often plain HTTP.
    NotTls,
    /// The deadline passed.
    TimedOut,
    /// Strict server names are on and the client's matches no certificate.
    UnknownServerName,
}

impl HandshakeFault {
    /// The value of the label `result` on `nullhop_tls_handshakes_total`; success is `ok`.
    pub fn result(self) -> HandshakeResult {
        match self {
            Self::NoSharedCipher => HandshakeResult::NoSharedCipher,
            Self::BadClientCertificate
            | Self::BadMessage
            | Self::ClientAlert
            | Self::NoSharedProtocol
            | Self::NotTls
            | Self::UnknownServerName => HandshakeResult::BadClient,
            Self::TimedOut => HandshakeResult::Timeout,
            // A client that just leaves is not "bad": load balancers probe a port like this all day.
            Self::Closed | Self::Internal => HandshakeResult::Other,
        }
    }

    fn of(error: &io::Error) -> Self {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Closed;
        };
        match error {
            rustls::Error::AlertReceived(_) => Self::ClientAlert,
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Self::BadClientCertificate,
            // The first byte of a record is its type, 20 to 23; a letter is none of them.
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::NotTls,
            rustls::Error::DecryptError
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::PeerMisbehaved(_)
            | rustls::Error::PeerSentOversizedRecord => Self::BadMessage,
            rustls::Error::NoApplicationProtocol => Self::NoSharedProtocol,
            rustls::Error::PeerIncompatible(_) => Self::NoSharedCipher,
            // rustls has no variant for a resolver that finds nothing; a test holds this text.
            rustls::Error::General(text) if text == "no server certificate chain resolved" => Self::UnknownServerName,
            _ => Self::Internal,
        }
    }
}
