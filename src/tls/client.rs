//! What the upstream pools present and trust, and one handshake with an upstream under a deadline.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::client::ResolvesClientCert;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use super::ALPN_H2;
use super::ALPN_HTTP1;
use super::MinVersion;
use super::Protocol;
use super::TlsStream;
use super::certificate::KeyPair;
use super::certificate::KeySource;
use super::certificate::chain_from_pem;
use super::certificate::key_from_pem;
use super::certificate::read;
use super::fault::Part;
use super::fault::TlsFault;
use super::shake;

/// How an upstream is spoken to.
pub struct ClientSettings {
    /// Who may vouch for the upstream.
    pub roots: Roots,
    /// The oldest protocol version to accept.
    pub min_version: MinVersion,
    /// Which HTTP versions to offer.
    pub alpn: ClientAlpn,
    /// The certificate chain (PEM) and its key, for upstreams that ask for one.
    pub client_cert: Option<(PathBuf, KeySource)>,
    /// Send and verify this name instead of the host that is connected to.
    pub server_name: Option<ServerName<'static>>,
}

/// Who may vouch for an upstream.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Roots {
    /// The public authorities, as compiled in. The system's store is not read: it differs from machine to machine.
    #[default]
    WebPki,
    /// Only the authorities in this PEM file.
    File(PathBuf),
}

/// Which HTTP versions to offer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClientAlpn {
    /// HTTP/2, and HTTP/1.1 if the upstream prefers it.
    #[default]
    Auto,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
}

/// The TLS side of an upstream.
///
/// Sessions to resume are kept in memory, for 64 server names at most; they die with this value. One value per upstream
/// and worker: sessions are then never shared between upstreams with different client certificates.
pub struct ClientTls {
    config: Arc<ClientConfig>,
    alpn: ClientAlpn,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Reads the files and builds the configuration. Blocks on file reads.
    pub fn load(settings: ClientSettings, now: SystemTime) -> Result<Self, TlsFault> {
        let provider = super::provider();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(settings.min_version.versions())
            .map_err(|_| TlsFault::Crypto)?
            .with_root_certificates(roots(&settings.roots)?);
        let mut config = match settings.client_cert {
            Some(sources) => builder.with_client_cert_resolver(client_certificate(sources, now)?),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = match settings.alpn {
            ClientAlpn::Auto => vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()],
            ClientAlpn::Http1 => vec![ALPN_HTTP1.to_vec()],
            ClientAlpn::Http2 => vec![ALPN_H2.to_vec()],
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        // Early data can be replayed, and each replay is a billable request.
        config.enable_early_data = false;
        config.require_ems = true;
        // Records are sealed and opened by `TlsStream`.
        config.enable_secret_extraction = true;
        config.cert_compressors = Vec::new();
        config.cert_decompressors = Vec::new();
        Ok(Self { config: Arc::new(config), alpn: settings.alpn, server_name: settings.server_name })
    }

    /// The configuration for rustls.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// Shakes hands over `io`, which is connected to `host`. The deadline covers the whole handshake.
    pub async fn connect<IO>(
        &self,
        io: IO,
        host: &ServerName<'static>,
        deadline: Duration,
    ) -> Result<(TlsStream<IO>, Protocol), ConnectFault>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.server_name.as_ref().unwrap_or(host).clone();
        let (stream, protocol) = tokio::time::timeout(
            deadline,
            shake::connect(self.config(), name, io, |state| Protocol::from_alpn(state.alpn_protocol())),
        )
        .await
        .map_err(|_| ConnectFault::TimedOut)?
        .map_err(|error| ConnectFault::of(&error))?;
        if self.alpn == ClientAlpn::Http2 && protocol != Protocol::Http2 {
            return Err(ConnectFault::NoSharedProtocol);
        }
        Ok((stream, protocol))
    }
}

/// Why a handshake with an upstream failed. All are the upstream's, or lie between the two configurations; nothing of a
/// request has been sent, so each may be tried again elsewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConnectFault {
    /// The upstream broke the protocol, or is not speaking TLS.
    BadMessage,
    /// The certificate has expired or is not valid yet; or our clock is wrong.
    CertificateExpired,
    /// The certificate is for other names.
    CertificateNotForName,
    /// The certificate is unsound, revoked, or not for servers.
    CertificateRefused,
    /// No configured authority vouches for the certificate.
    CertificateUntrusted,
    /// The upstream left in the middle.
    Closed,
    /// We failed: no random bytes, no clock.
    Internal,
    /// No cipher suite, key exchange, signature scheme or version in common.
    NoSharedCipher,
    /// The upstream does not speak the HTTP version that is configured.
    NoSharedProtocol,
    /// The upstream refused us with an alert; with client certificates, most often for ours.
    ServerAlert,
    /// The deadline passed.
    TimedOut,
}

impl ConnectFault {
    fn of(error: &io::Error) -> Self {
        let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Closed;
        };
        match error {
            rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol => Self::NoSharedProtocol,
            rustls::Error::AlertReceived(
                rustls::AlertDescription::HandshakeFailure
                | rustls::AlertDescription::InsufficientSecurity
                | rustls::AlertDescription::ProtocolVersion,
            )
            | rustls::Error::PeerIncompatible(_) => Self::NoSharedCipher,
            rustls::Error::AlertReceived(_) => Self::ServerAlert,
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::CertificateExpired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::CertificateNotForName
                }
                CertificateError::UnknownIssuer => Self::CertificateUntrusted,
                _ => Self::CertificateRefused,
            },
            rustls::Error::DecryptError
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::PeerMisbehaved(_)
            | rustls::Error::PeerSentOversizedRecord => Self::BadMessage,
            _ => Self::Internal,
        }
    }
}

fn roots(roots: &Roots) -> Result<RootCertStore, TlsFault> {
    let (public, file) = match roots {
        Roots::WebPki => (true, None),
        Roots::File(path) => (false, Some(path)),
    };
    let mut store = RootCertStore::empty();
    if public {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = file {
        let part = Part::UpstreamRoots;
        let (_, pem) = read(path, &part)?;
        // System bundles carry the odd certificate that webpki cannot use; one that is usable is enough.
        let (added, _) = store.add_parsable_certificates(chain_from_pem(&pem, &part)?);
        if added == 0 {
            return Err(TlsFault::Invalid { part });
        }
    }
    Ok(store)
}

fn client_certificate(
    (cert, key): (PathBuf, KeySource),
    now: SystemTime,
) -> Result<Arc<dyn ResolvesClientCert>, TlsFault> {
    let part = Part::UpstreamCertificate;
    let key = match key {
        KeySource::File(path) => key_from_pem(&read(&path, &Part::UpstreamKey)?.1, &Part::UpstreamKey)?,
        KeySource::Pem(pem) => key_from_pem(&pem, &Part::UpstreamKey)?,
    };
    let pair = KeyPair::new(chain_from_pem(&read(&cert, &part)?.1, &part)?, key, &part, now)?;
    Ok(Arc::new(SingleCertAndKey::from((*pair.certified).clone())))
}

/// rustls' own default is 256; an upstream has one server name, rarely a few.
const SESSIONS_MAX: usize = 64;
