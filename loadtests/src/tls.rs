//! Certificates for tests, and the rustls configurations made of them.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use rcgen::CertificateParams;
use rcgen::CertifiedIssuer;
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::SupportedProtocolVersion;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;

use crate::BoxError;

/// What a listener offers, or a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alpn {
    /// TLS with h2 preferred over http/1.1.
    #[default]
    Both,
    /// TLS with http/1.1 only.
    H1,
    /// TLS with h2 only.
    H2,
    /// No TLS, HTTP/1.1.
    Plain,
    /// No TLS, HTTP/2 with prior knowledge.
    PlainH2,
}

impl Alpn {
    /// Whether there is TLS at all.
    pub fn is_tls(self) -> bool {
        !matches!(self, Alpn::Plain | Alpn::PlainH2)
    }

    /// The protocol list of the handshake.
    pub fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Alpn::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Alpn::H1 => vec![b"http/1.1".to_vec()],
            Alpn::H2 => vec![b"h2".to_vec()],
            Alpn::Plain | Alpn::PlainH2 => Vec::new(),
        }
    }

    /// Whether the connection speaks h2, given what was negotiated.
    pub(crate) fn speaks_h2(self, negotiated: Option<&[u8]>) -> bool {
        match self {
            Alpn::PlainH2 | Alpn::H2 => true,
            Alpn::Both => negotiated == Some(b"h2"),
            Alpn::H1 | Alpn::Plain => false,
        }
    }
}

/// Which versions of TLS a side speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versions {
    /// 1.3 and 1.2.
    #[default]
    Both,
    /// 1.2 alone.
    Tls12,
    /// 1.3 alone.
    Tls13,
}

impl Versions {
    fn supported(self) -> &'static [&'static SupportedProtocolVersion] {
        static TLS12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
        static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
        match self {
            Versions::Both => rustls::DEFAULT_VERSIONS,
            Versions::Tls12 => &TLS12,
            Versions::Tls13 => &TLS13,
        }
    }
}

/// A certificate authority of one test run.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    /// A fresh authority; `name` shows in the issuer field only.
    pub fn new(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("the system gives randomness");
        Ca { issuer: CertifiedIssuer::self_signed(params, key).expect("fixed parameters sign") }
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for names and addresses, valid from yesterday for a year.
    pub fn leaf(&self, names: &[&str]) -> Leaf {
        let day = Duration::from_secs(86_400);
        let now = SystemTime::now();
        self.leaf_valid(names, now - day, now + day * 365)
    }

    /// A certificate with chosen validity: long expired, not yet valid, or about to expire.
    pub fn leaf_valid(&self, names: &[&str], not_before: SystemTime, not_after: SystemTime) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("the names are DNS names or addresses");
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let since_epoch = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        params.not_before = epoch + since_epoch(not_before);
        params.not_after = epoch + since_epoch(not_after);
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("the system gives randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("fixed parameters sign");
        Leaf { cert_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

/// A certificate and its key, as the files would hold them.
#[derive(Clone)]
pub struct Leaf {
    /// The certificate chain, leaf first.
    pub cert_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

impl Leaf {
    /// A certificate that signed itself: nobody trusts it without being told.
    pub fn self_signed(names: &[&str]) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("the names are DNS names or addresses");
        Leaf { cert_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    /// A server that shows this certificate.
    pub fn server_config(&self, alpn: Alpn) -> Result<Arc<ServerConfig>, BoxError> {
        self.server_config_of(alpn, Versions::Both)
    }

    /// The same with chosen versions.
    pub fn server_config_of(&self, alpn: Alpn, versions: Versions) -> Result<Arc<ServerConfig>, BoxError> {
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(versions.supported())?
            .with_no_client_auth()
            .with_single_cert(certificates(&self.cert_pem)?, PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?)?;
        config.alpn_protocols = alpn.protocols();
        Ok(Arc::new(config))
    }
}

/// Whom a client believes.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The certificates of this PEM text.
    Root(String),
    /// Everyone. The handshake is still checked for being a handshake.
    AcceptAny,
}

impl Trust {
    /// A client that trusts accordingly.
    pub fn client_config(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, BoxError> {
        self.client_config_of(alpn, Versions::Both)
    }

    /// The same with chosen versions.
    pub fn client_config_of(&self, alpn: Alpn, versions: Versions) -> Result<Arc<ClientConfig>, BoxError> {
        let builder = ClientConfig::builder_with_provider(crypto()).with_protocol_versions(versions.supported())?;
        let builder = match self {
            Trust::Root(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem)? {
                    roots.add(certificate)?;
                }
                builder.with_root_certificates(roots)
            }
            Trust::AcceptAny => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnyVerifier { crypto: crypto() }))
            }
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = alpn.protocols();
        Ok(Arc::new(config))
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Debug)]
struct AcceptAnyVerifier {
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAnyVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}
