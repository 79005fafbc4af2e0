//! What the listener presents: certificates by server name, client authentication, ticket keys. It follows the files on
//! disk without dropping a connection.
//!
//! One generation is immutable ([`Current`]). A reload builds the next one beside it and swaps a pointer; handshakes
//! under way and connections that stand keep the generation they began with. The lock around that pointer is taken once
//! a handshake and held for the copy of one `Arc`.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::time::Duration;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::compress::CompressionCache;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ClientHello;
use rustls::server::NoServerSessionStorage;
use rustls::server::ProducesTickets;
use rustls::server::ResolvesServerCert;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use super::ALPN_H2;
use super::ALPN_HTTP1;
use super::ALPN_HTTP10;
use super::MinVersion;
use super::certificate::FileGroup;
use super::certificate::KeyPair;
use super::certificate::KeySource;
use super::certificate::Names;
use super::certificate::chain_from_pem;
use super::certificate::crls_from_pem;
use super::certificate::key_from_pem;
use super::fault::Part;
use super::fault::TlsFault;
use super::handshake::Sni;

/// What a TLS listener is configured with.
pub struct ServerSettings {
    /// The oldest protocol version to accept.
    pub min_version: MinVersion,
    /// At least one.
    pub certificates: Vec<CertificateSource>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// Revoked client certificates, PEM. Only looked at when clients show certificates.
    pub crl: Option<PathBuf>,
    /// Refuse clients whose server name matches no certificate, or who send none, instead of showing the default.
    pub strict_sni: bool,
}

/// One certificate of a listener.
pub struct CertificateSource {
    /// The name that faults and metrics call it by.
    pub name: String,
    /// Where it comes from.
    pub kind: CertificateKind,
    /// Shown when no name matches. Without a mark the first certificate is the default; of several marks the first counts.
    pub default: bool,
}

/// Where a certificate comes from.
pub enum CertificateKind {
    /// PEM files, followed when they change.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The key.
        key: KeySource,
    },
    /// Made in memory at start, for localhost, the loopback addresses and these names.
    SelfSigned {
        /// More DNS names and IP addresses.
        names: Vec<String>,
    },
}

/// Whether clients show certificates.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    None,
    /// They are asked; one that shows a bad certificate is refused, one that shows none is not.
    Optional {
        /// The authorities, PEM.
        ca_pem_path: PathBuf,
    },
    /// One without a good certificate is refused.
    Required {
        /// The authorities, PEM.
        ca_pem_path: PathBuf,
    },
}

/// The keys that session tickets are sealed with. Made once per process and handed to every listener and to every
/// reload, so that a configuration change does not cost all clients their tickets.
///
/// The keys (AES-256 and HMAC-SHA-256) come from the random source, are never written anywhere and never leave the
/// process, so no two processes share them. New ones are made every six hours. The keys before them still open tickets
/// for six hours more and are then forgotten: a stolen key opens the tickets of twelve hours at most. Tickets hold the
/// resumption secret and the negotiated parameters. 1.3 clients resume with a fresh key exchange, so recorded 1.3
/// sessions stay closed even then; 1.2 resumption has no such protection, which is a reason to prefer
/// [`MinVersion::Tls13`].
#[derive(Clone)]
pub struct SessionKeys(Arc<dyn ProducesTickets>);

impl SessionKeys {
    /// Makes the first keys.
    pub fn new() -> Result<Self, TlsFault> {
        Ticketer::new().map(Self).map_err(|_| TlsFault::Crypto)
    }

    /// Makes new keys if it is time. rustls rotates when a ticket is sealed or opened and not by a clock of its own;
    /// without this call an idle process would keep its old keys.
    pub fn rotate_if_due(&self) {
        // Opening a ticket that is none has the rotation as its only effect.
        let _ = self.0.decrypt(&[]);
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKeys")
    }
}

/// The TLS side of a listener.
pub struct ServerTls {
    provider: Arc<CryptoProvider>,
    min_version: MinVersion,
    strict_sni: bool,
    keys: SessionKeys,
    /// What the next handshake uses.
    current: RwLock<Arc<Current>>,
    /// What the current generation was made from. Held for the length of a reload, so that a signal and the poll cannot
    /// overtake each other; no handshake takes this lock.
    loaded: Mutex<Loaded>,
}

impl ServerTls {
    /// Reads everything and builds the first generation. Blocks on file reads; any fault refuses the whole, for there is
    /// nothing older to stay with.
    pub fn load(settings: ServerSettings, keys: SessionKeys, now: SystemTime) -> Result<Self, TlsFault> {
        let provider = super::provider();
        let default = settings.certificates.iter().position(|source| source.default).unwrap_or(0);
        let certificates = settings
            .certificates
            .into_iter()
            .map(|source| LoadedCertificate::load(source, now))
            .collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            return Err(TlsFault::NoCertificates);
        }
        let client_auth = LoadedClientAuth::load(settings.client_auth, settings.crl, &provider, now)?;
        let loaded = Loaded { certificates, default, client_auth };
        let current = build(&loaded, settings.min_version, settings.strict_sni, &keys, &provider)?;
        Ok(Self {
            provider,
            min_version: settings.min_version,
            strict_sni: settings.strict_sni,
            keys,
            current: RwLock::new(Arc::new(current)),
            loaded: Mutex::new(loaded),
        })
    }

    /// The generation that new handshakes use.
    pub fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All names and addresses of the certificates in force.
    pub fn names(&self) -> Names {
        self.current().certificates.names.clone()
    }

    /// The last second of validity of a certificate, since the Unix epoch.
    pub fn not_after(&self, certificate: &str) -> Option<u64> {
        self.expiries().into_iter().find_map(|(name, not_after)| (name == certificate).then_some(not_after))
    }

    /// The first certificate in force, for clients that must be told to trust it, as PEM.
    pub fn first_pem(&self) -> Option<String> {
        let current = self.current();
        let leaf = current.certificates.entries.first()?.pair.certified.cert.first()?;
        Some(pem::encode(&pem::Pem::new("CERTIFICATE", leaf.to_vec())))
    }

    /// Every certificate in force with its last second of validity, in the order of the settings.
    pub fn expiries(&self) -> Vec<(String, u64)> {
        let current = self.current();
        current.certificates.entries.iter().map(|entry| (entry.name.clone(), entry.pair.not_after)).collect()
    }

    /// Looks at the files again and takes over what changed. Each certificate stands for itself: a broken pair is refused
    /// and the one before it stays in force, whatever happens to the others. Nothing changed: nothing returned. What is
    /// refused is reported once and looked at again when its files change again.
    ///
    /// Certificate and key are two files, so a look between the two writes sees a pair that does not match, refuses it
    /// and takes it at the next look.
    ///
    /// Blocks on file reads: not for a runtime thread, see [`watch`].
    pub fn reload_changed(&self, now: SystemTime) -> Vec<ReloadOutcome> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcomes = Vec::new();
        for certificate in &mut loaded.certificates {
            let part = Part::Certificate(certificate.name.clone());
            outcomes.extend(certificate.refresh(now).map(|result| ReloadOutcome { part, result }));
        }
        if let Some(client_auth) = &mut loaded.client_auth {
            let refreshed = client_auth.refresh(&self.provider, now);
            outcomes.extend(refreshed.map(|result| ReloadOutcome { part: Part::ClientCa, result }));
        }
        if outcomes.iter().any(|outcome| outcome.result.is_ok()) {
            match build(&loaded, self.min_version, self.strict_sni, &self.keys, &self.provider) {
                Ok(next) => *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next),
                // Every part was checked on its own, so only the provider is left to fail.
                Err(fault) => outcomes.iter_mut().for_each(|outcome| outcome.result = Err(fault.clone())),
            }
        }
        outcomes
    }
}

/// What a look at the files led to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReloadOutcome {
    /// What changed: a certificate (with its key), or the client authorities (with their revocation list).
    pub part: Part,
    /// In force from now on, or refused.
    pub result: Result<(), TlsFault>,
}

/// Follows the files until dropped: looks every `every`, tells `report` what changed, and keeps the ticket keys turning.
///
/// Polling, not inotify: it works on every file system and through every way an orchestrator swaps files, needs no
/// descriptor and no further system call in the sandbox, and costs one `stat` a file.
pub async fn watch(tls: Arc<ServerTls>, every: Duration, mut report: impl FnMut(ReloadOutcome)) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is immediate, and everything was read a moment ago.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let tls = tls.clone();
        let look = tokio::task::spawn_blocking(move || {
            tls.keys.rotate_if_due();
            tls.reload_changed(SystemTime::now())
        });
        // A look that panicked is one look lost; the generation in force is untouched.
        look.await.unwrap_or_default().into_iter().for_each(&mut report);
    }
}

/// One immutable generation.
pub struct Current {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Current {
    /// The configuration for rustls.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

struct Loaded {
    certificates: Vec<LoadedCertificate>,
    /// Index of the default certificate.
    default: usize,
    client_auth: Option<LoadedClientAuth>,
}

struct LoadedCertificate {
    name: String,
    origin: Origin,
    pair: KeyPair,
}

enum Origin {
    /// The chain, then the key, both followed.
    Files(FileGroup),
    /// The chain is followed; the key came as text and is held inside aws-lc.
    ChainFile(FileGroup, Arc<dyn SigningKey>),
    SelfSigned(Vec<String>),
}

impl LoadedCertificate {
    fn load(source: CertificateSource, now: SystemTime) -> Result<Self, TlsFault> {
        let name = source.name;
        let chain_part = Part::Certificate(name.clone());
        let key_part = Part::Key(name.clone());
        let mut origin = match source.kind {
            CertificateKind::Files { cert, key: KeySource::File(key) } => {
                Origin::Files(FileGroup::new(vec![(cert, chain_part), (key, key_part)]))
            }
            CertificateKind::Files { cert, key: KeySource::Pem(pem) } => {
                let key = key_from_pem(&pem, &key_part)?;
                Origin::ChainFile(FileGroup::new(vec![(cert, chain_part)]), key)
            }
            CertificateKind::SelfSigned { names } => Origin::SelfSigned(names),
        };
        // Unseen files count as changed, and there is no older self-signed pair.
        let pair = origin.next(&name, None, now)?.ok_or(TlsFault::NoCertificates)?;
        Ok(Self { name, origin, pair })
    }

    fn refresh(&mut self, now: SystemTime) -> Option<Result<(), TlsFault>> {
        match self.origin.next(&self.name, Some(&self.pair), now).transpose()? {
            Ok(pair) => {
                self.pair = pair;
                Some(Ok(()))
            }
            Err(fault) => Some(Err(fault)),
        }
    }
}

impl Origin {
    /// The pair to take over, if there is a new one.
    fn next(&mut self, name: &str, held: Option<&KeyPair>, now: SystemTime) -> Result<Option<KeyPair>, TlsFault> {
        let part = Part::Certificate(name.to_owned());
        let files = match self {
            Self::Files(files) | Self::ChainFile(files, _) => files,
            Self::SelfSigned(_) if held.is_some_and(|pair| !pair.wants_renewal(now)) => return Ok(None),
            Self::SelfSigned(names) => return KeyPair::self_signed(names, &part, now).map(Some),
        };
        let Some(contents) = files.changed(now)? else {
            return Ok(None);
        };
        let chain = chain_from_pem(&contents[0], &part)?;
        let key = match self {
            Self::ChainFile(_, key) => key.clone(),
            _ => key_from_pem(&contents[1], &Part::Key(name.to_owned()))?,
        };
        KeyPair::new(chain, key, &part, now).map(Some)
    }
}

struct LoadedClientAuth {
    /// The authorities, then the revocation list if there is one.
    files: FileGroup,
    required: bool,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl LoadedClientAuth {
    fn load(
        settings: ClientAuth,
        crl: Option<PathBuf>,
        provider: &Arc<CryptoProvider>,
        now: SystemTime,
    ) -> Result<Option<Self>, TlsFault> {
        let (ca, required) = match settings {
            ClientAuth::None => return Ok(None),
            ClientAuth::Optional { ca_pem_path } => (ca_pem_path, false),
            ClientAuth::Required { ca_pem_path } => (ca_pem_path, true),
        };
        let files = [(ca, Part::ClientCa)].into_iter().chain(crl.map(|path| (path, Part::Crl)));
        let mut files = FileGroup::new(files.collect());
        let contents = files.changed(now)?.ok_or(TlsFault::NoSection { part: Part::ClientCa })?;
        let verifier = verifier(&contents, required, provider)?;
        Ok(Some(Self { files, required, verifier }))
    }

    fn refresh(&mut self, provider: &Arc<CryptoProvider>, now: SystemTime) -> Option<Result<(), TlsFault>> {
        let contents = self.files.changed(now).transpose()?;
        Some(
            contents.and_then(|contents| verifier(&contents, self.required, provider)).map(|next| self.verifier = next),
        )
    }
}

/// With a revocation list, a client certificate whose issuer (or whose issuer's issuer) is not covered by the list is
/// refused. That a list is past its next update is not held against it: a late list still revokes what it names, and
/// turning all clients away because one job did not run helps nobody.
fn verifier(
    contents: &[Zeroizing<Vec<u8>>],
    required: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsFault> {
    let mut roots = RootCertStore::empty();
    for authority in chain_from_pem(&contents[0], &Part::ClientCa)? {
        roots.add(authority).map_err(|_| TlsFault::Invalid { part: Part::ClientCa })?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if let Some(pem) = contents.get(1) {
        builder = builder.with_crls(crls_from_pem(pem, &Part::Crl)?);
    }
    if !required {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|_| TlsFault::Invalid { part: Part::Crl })
}

fn build(
    loaded: &Loaded,
    min_version: MinVersion,
    strict_sni: bool,
    keys: &SessionKeys,
    provider: &Arc<CryptoProvider>,
) -> Result<Current, TlsFault> {
    let certificates = Arc::new(Certificates::new(loaded, strict_sni));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(min_version.versions())
        .map_err(|_| TlsFault::Crypto)?;
    let builder = match &loaded.client_auth {
        Some(client_auth) => builder.with_client_cert_verifier(client_auth.verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates.clone());
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec(), ALPN_HTTP10.to_vec()];

    // Sessions live with the clients, sealed; none are kept here, where they would be secrets in memory and a table that
    // clients can fill.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match &loaded.client_auth {
        None => {
            config.ticketer = keys.0.clone();
            // Each 1.3 ticket serves once, and each connection brings one, whether it was resumed or not: a client never
            // has fewer than it has had connections. Making a second one would cost every handshake what few of them
            // give back.
            config.send_tls13_tickets = 1;
        }
        // A ticket would carry a client's certificate past its expiry and its revocation, and a ticket from a listener
        // that asks for none would open this one: rustls checks neither. Such clients are few and stay connected, so
        // they shake hands in full each time. (rustls' default ticketer makes and opens none.)
        Some(_) => config.send_tls13_tickets = 0,
    }
    // Early data can be replayed, and each replay costs its sender's account money.
    config.max_early_data_size = 0;
    // Records are sealed and opened by `TlsStream`.
    config.enable_secret_extraction = true;
    // Nothing before the client has proved that it holds the keys.
    config.send_half_rtt_data = false;
    // TLS 1.2 without the extended master secret (RFC 7627) lets sessions be synchronised between servers.
    config.require_ems = true;
    // Compression saves a packet in some handshakes and costs tables of memory in each.
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    config.cert_compression_cache = Arc::new(CompressionCache::Disabled);

    Ok(Current { config: Arc::new(config), certificates })
}

/// The certificates of one generation, by name.
struct Certificates {
    entries: Vec<Entry>,
    /// Names in lower case to indices of `entries`, in the order of the settings.
    exact: HashMap<String, Vec<usize>>,
    /// The same for wildcards, without their `*.`.
    wildcard: HashMap<String, Vec<usize>>,
    /// Shown when nothing matches; `None` is strict.
    default: Option<usize>,
    names: Names,
}

struct Entry {
    name: String,
    pair: KeyPair,
}

impl Certificates {
    fn new(loaded: &Loaded, strict_sni: bool) -> Self {
        let mut this = Self {
            entries: Vec::new(),
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            default: (!strict_sni).then_some(loaded.default),
            names: Names::default(),
        };
        for (index, certificate) in loaded.certificates.iter().enumerate() {
            for name in certificate.pair.names.dns() {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut this.wildcard, parent),
                    None => (&mut this.exact, name.as_str()),
                };
                map.entry(name.to_owned()).or_default().push(index);
            }
            this.names.merge(&certificate.pair.names);
            this.entries.push(Entry { name: certificate.name.clone(), pair: certificate.pair.clone() });
        }
        this
    }

    fn candidates(&self, server_name: &str) -> Option<&Vec<usize>> {
        let server_name = server_name.to_ascii_lowercase();
        let server_name = server_name.strip_suffix('.').unwrap_or(&server_name);
        self.exact
            .get(server_name)
            .or_else(|| server_name.split_once('.').and_then(|(_label, parent)| self.wildcard.get(parent)))
    }
}

thread_local! {
    /// How the hello's server name met the certificates, between rustls' asking for one and the end of that call.
    static ASKED_SNI: Cell<Option<Sni>> = const { Cell::new(None) };
}

/// How a server name met the certificates in the call of rustls that has just ended, if it asked. rustls tells the name
/// to the resolver alone where connections are unbuffered.
pub(super) fn asked_sni() -> Option<Sni> {
    ASKED_SNI.take()
}

impl ResolvesServerCert for Certificates {
    /// An exact name goes before a wildcard, and among certificates with the same name the first whose key the client can
    /// verify, so that an ECDSA and an RSA certificate can stand side by side.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED_SNI.set(Some(match hello.server_name() {
            None => Sni::Absent,
            Some(name) if self.candidates(name).is_some() => Sni::Matched,
            Some(_) => Sni::Unmatched,
        }));
        let found = hello.server_name().and_then(|name| self.candidates(name)).map(|candidates| {
            let schemes = hello.signature_schemes();
            let usable = |&&index: &&usize| self.entries[index].pair.certified.key.choose_scheme(schemes).is_some();
            // If the client can verify none of them, rustls will say so better than we can.
            *candidates.iter().find(usable).unwrap_or(&candidates[0])
        });
        found.or(self.default).map(|index| self.entries[index].pair.certified.clone())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}
