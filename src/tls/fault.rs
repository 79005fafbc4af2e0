use std::fmt;
use std::io;

/// Which configured piece a [`TlsFault`] is about. Names come from the configuration, never from a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Part {
    /// The certificate chain of the named server certificate.
    Certificate(String),
    /// The authorities that client certificates must come from.
    ClientCa,
    /// The list of revoked client certificates.
    Crl,
    /// The private key of the named server certificate.
    Key(String),
    /// The certificate chain shown to an upstream.
    UpstreamCertificate,
    /// The private key of the certificate shown to an upstream.
    UpstreamKey,
    /// The authorities that an upstream's certificate must come from.
    UpstreamRoots,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(name) => write!(f, "certificate `{name}`"),
            Self::ClientCa => f.write_str("client CA file"),
            Self::Crl => f.write_str("certificate revocation list"),
            Self::Key(name) => write!(f, "key of certificate `{name}`"),
            Self::UpstreamCertificate => f.write_str("upstream client certificate"),
            Self::UpstreamKey => f.write_str("key of the upstream client certificate"),
            Self::UpstreamRoots => f.write_str("upstream root file"),
        }
    }
}

/// Why TLS material was refused, at start or at a reload. All are ours or the operator's; none is a peer's doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TlsFault {
    /// The cryptographic library failed, for example to get random bytes.
    Crypto,
    /// The certificate's last day has passed.
    Expired {
        /// The certificate.
        part: Part,
    },
    /// The PEM sections hold something that cannot be used as what they claim to be.
    Invalid {
        /// The file.
        part: Part,
    },
    /// The private key is protected with a passphrase.
    KeyEncrypted {
        /// The key.
        part: Part,
    },
    /// The private key belongs to another certificate.
    KeyMismatch {
        /// The certificate.
        part: Part,
    },
    /// The private key's kind is not supported.
    KeyUnsupported {
        /// The key.
        part: Part,
    },
    /// A server needs at least one certificate.
    NoCertificates,
    /// The file is PEM or empty, but holds no section of the needed kind.
    NoSection {
        /// The file.
        part: Part,
    },
    /// The file is not well-formed PEM.
    NotPem {
        /// The file.
        part: Part,
    },
    /// A name for the self-signed certificate is neither a DNS name nor an IP address.
    SelfSignedName {
        /// The certificate.
        part: Part,
    },
    /// The file is larger than any honest one.
    TooLarge {
        /// The file.
        part: Part,
    },
    /// The operating system did not let us read the file.
    Unreadable {
        /// The file.
        part: Part,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crypto => f.write_str("the cryptographic library failed; check the system's random source"),
            Self::Expired { part } => write!(f, "{part} has expired; renew it"),
            Self::Invalid { part } => write!(f, "{part} is PEM but cannot be used; export it again"),
            Self::KeyEncrypted { part } => {
                write!(f, "{part} has a passphrase; store it without (`openssl pkey -in KEY -out PLAIN`)")
            }
            Self::KeyMismatch { part } => {
                write!(f, "{part} and its key do not belong together; install the pair from one issuance")
            }
            Self::KeyUnsupported { part } => {
                write!(
                    f,
                    "{part} is of an unsupported kind; use ECDSA P-256 or P-384, RSA of 2048 bits or more, or Ed25519"
                )
            }
            Self::NoCertificates => f.write_str("no certificate is configured; name one, or ask for a self-signed one"),
            Self::NoSection { part } => {
                write!(f, "{part} holds no PEM section of the right kind; are two paths swapped?")
            }
            Self::NotPem { part } => {
                write!(f, "{part} is not well-formed PEM; convert it (`openssl x509 -inform der`)")
            }
            Self::SelfSignedName { part } => {
                write!(f, "{part} lists a name that is neither a DNS name nor an IP address")
            }
            Self::TooLarge { part } => write!(f, "{part} is larger than 4 MiB; is it the right file?"),
            Self::Unreadable { part, kind } => {
                write!(f, "{part} cannot be read ({kind}); check its path and the permissions of the service user")
            }
        }
    }
}

impl std::error::Error for TlsFault {}

/// Why a TLS stream cannot go on after its handshake. All but the last two are the peer's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StreamFault {
    /// A record is malformed, or was not sealed with the key that is in force.
    BadRecord,
    /// A message is malformed.
    BadMessage,
    /// A record is longer than any may be.
    RecordOverflow,
    /// A message has no place where it came.
    UnexpectedMessage,
    /// More messages that carry nothing than any peer has a reason to send.
    TooMany,
    /// The peer gave the connection up with an alert.
    Alert,
    /// The key has sealed all that it may, and this version of TLS has no way to the next one.
    KeyExhausted,
    /// We failed.
    Internal,
}

impl StreamFault {
    /// The alert that tells the peer (RFC 8446 section 6.2); `None`: it knows.
    pub(super) fn alert(self) -> Option<u8> {
        match self {
            Self::BadRecord => Some(20),
            Self::BadMessage => Some(50),
            Self::RecordOverflow => Some(22),
            Self::UnexpectedMessage | Self::TooMany => Some(10),
            Self::Internal => Some(80),
            Self::Alert | Self::KeyExhausted => None,
        }
    }
}

impl fmt::Display for StreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRecord => "a TLS record that cannot be opened",
            Self::BadMessage => "a malformed TLS message",
            Self::RecordOverflow => "a TLS record that is too long",
            Self::UnexpectedMessage => "a TLS message out of place",
            Self::TooMany => "too many TLS messages that carry nothing",
            Self::Alert => "the peer sent a TLS alert",
            Self::KeyExhausted => "a TLS key is used up",
            Self::Internal => "TLS failed",
        })
    }
}

impl std::error::Error for StreamFault {}

impl From<StreamFault> for io::Error {
    fn from(fault: StreamFault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}
