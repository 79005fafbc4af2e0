//! Files into checked key pairs: reading with a bound, PEM, the names and the last day of a certificate, the match of
//! key and certificate, and certificates made in memory.

use std::fs;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::io::Read;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use rustls::sign::SigningKey;
use zeroize::Zeroize;
use zeroize::Zeroizing;

use super::fault::Part;
use super::fault::TlsFault;

/// Where a private key comes from. Deliberately without `Debug` and `Clone`.
pub enum KeySource {
    /// A PEM file, read again when it changes.
    File(PathBuf),
    /// PEM text from a credential or the environment. It is wiped when the key has been loaded.
    Pem(Zeroizing<Vec<u8>>),
}

/// The DNS names and IP addresses that certificates are valid for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    /// The DNS names in lower case, wildcards as `*.example.com`, each once.
    pub fn dns(&self) -> &[String] {
        &self.dns
    }

    /// The IP addresses, each once.
    #[cfg(test)]
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Whether a host (a DNS name or an IP address, an IPv6 address with or without brackets, no port) is covered.
    pub fn contains(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return self.ips.contains(&ip.to_canonical());
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        self.dns.iter().any(|name| match name.strip_prefix("*.") {
            // A wildcard stands for exactly one label (RFC 9525, 6.3).
            Some(parent) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(parent))
            }
            None => name.eq_ignore_ascii_case(host),
        })
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for name in &other.dns {
            if !self.dns.contains(name) {
                self.dns.push(name.clone());
            }
        }
        for ip in &other.ips {
            if !self.ips.contains(ip) {
                self.ips.push(*ip);
            }
        }
    }
}

/// A certificate chain with its key, checked.
#[derive(Clone)]
pub(super) struct KeyPair {
    /// The chain and the key as rustls wants them. The key lives inside aws-lc, which wipes it when the last holder, the
    /// resolver or a handshake under way, lets go.
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) names: Names,
    /// The last second of validity, since the Unix epoch.
    pub(super) not_after: u64,
}

impl KeyPair {
    /// Puts a chain and a key together, or says why not. A certificate that is not valid *yet* passes: it may be
    /// installed early, and whether a client accepts it depends on the client's clock.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
        part: &Part,
        now: SystemTime,
    ) -> Result<Self, TlsFault> {
        let leaf = chain.first().ok_or_else(|| TlsFault::NoSection { part: part.clone() })?;
        let facts = facts(leaf).ok_or_else(|| TlsFault::Invalid { part: part.clone() })?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsFault::KeyMismatch { part: part.clone() },
            _ => TlsFault::Invalid { part: part.clone() },
        })?;
        if facts.not_after < epoch_seconds(now) {
            return Err(TlsFault::Expired { part: part.clone() });
        }
        Ok(Self { certified: Arc::new(certified), names: facts.names, not_after: facts.not_after })
    }

    /// Makes a certificate in memory: ECDSA P-256, valid for [`SELF_SIGNED_DAYS`], for `localhost`, the loopback
    /// addresses and `names`. For first steps and tests: no client trusts it unless told to.
    pub(super) fn self_signed(names: &[String], part: &Part, now: SystemTime) -> Result<Self, TlsFault> {
        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
        for name in names {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        let mut params =
            rcgen::CertificateParams::new(all).map_err(|_| TlsFault::SelfSignedName { part: part.clone() })?;
        let issued = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(epoch_seconds(now));
        // An hour back, for clients whose clock is behind.
        params.not_before = issued - Duration::from_secs(3600);
        params.not_after = issued + SELF_SIGNED_DAYS;
        params.distinguished_name.push(rcgen::DnType::CommonName, "nullhop self-signed");
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);

        let mut pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| TlsFault::Crypto)?;
        let chain = params.self_signed(&pair).map(|certificate| vec![certificate.der().clone()]);
        let key = Zeroizing::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der())));
        pair.zeroize();
        let key = any_supported_type(&key).map_err(|_| TlsFault::Crypto)?;
        Self::new(chain.map_err(|_| TlsFault::Crypto)?, key, part, now)
    }

    /// Whether a self-signed certificate is so close to its end that a new one should take its place.
    pub(super) fn wants_renewal(&self, now: SystemTime) -> bool {
        self.not_after < epoch_seconds(now) + SELF_SIGNED_DAYS.as_secs() / 3
    }
}

/// The certificates in a PEM file, in order.
pub(super) fn chain_from_pem(pem: &[u8], part: &Part) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    sections(pem, part)
}

/// The revocation lists in a PEM file.
pub(super) fn crls_from_pem(pem: &[u8], part: &Part) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsFault> {
    sections(pem, part)
}

/// The first private key in a PEM file, loaded. The decoded copy is wiped.
pub(super) fn key_from_pem(pem: &[u8], part: &Part) -> Result<Arc<dyn SigningKey>, TlsFault> {
    // PKCS#8 encryption has a label of its own. The older kind keeps the plain label, says so in a header and would look
    // like broken base64.
    if find(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || find(pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsFault::KeyEncrypted { part: part.clone() });
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsFault::NoSection { part: part.clone() },
        _ => TlsFault::NotPem { part: part.clone() },
    })?;
    // By reference; `KeyProvider::load_private_key` would take, and not wipe, a copy.
    any_supported_type(&Zeroizing::new(key)).map_err(|_| TlsFault::KeyUnsupported { part: part.clone() })
}

/// Reads a file whole, in a buffer that is wiped on drop.
pub(super) fn read(path: &PathBuf, part: &Part) -> Result<(Stat, Zeroizing<Vec<u8>>), TlsFault> {
    let unreadable = |error: io::Error| TlsFault::Unreadable { part: part.clone(), kind: error.kind() };
    // Asked before opening: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(TlsFault::Unreadable { part: part.clone(), kind: io::ErrorKind::InvalidInput });
    }
    let mut file = fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(TlsFault::TooLarge { part: part.clone() });
    }
    // One byte more than the file holds, so that reading to its end does not move the buffer and leave a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
    Read::by_ref(&mut file).take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok((Stat::of(&metadata), bytes))
}

/// Files that only make sense together, and what was last seen of them.
pub(super) struct FileGroup {
    files: Vec<(PathBuf, Part)>,
    /// What the files looked like when they were last read, whether or not what they held was accepted: a refusal is
    /// reported once, not at every poll.
    seen: Vec<Seen>,
    /// The fault of the last poll, for the same reason.
    unread: Option<TlsFault>,
    /// Keyed per process, so the digest says nothing about a key to anybody who reads it. 64 bits suffice to tell
    /// yesterday's file from today's.
    digests: RandomState,
}

#[derive(Clone, Copy)]
struct Seen {
    stat: Stat,
    digest: u64,
    /// The file had been changed so shortly before it was read that a second change could hide behind the same
    /// timestamp; look at the contents again. (Git calls such entries "racily clean".)
    racy: bool,
}

impl FileGroup {
    pub(super) fn new(files: Vec<(PathBuf, Part)>) -> Self {
        Self { files, seen: Vec::new(), unread: None, digests: RandomState::new() }
    }

    /// The contents of all files in their order if any of them differs from what was last seen, else `None`.
    ///
    /// File times alone would not do: an orchestrator swaps a symbolic link to a directory of files that may carry any
    /// time, and a copy can preserve times. Contents alone would read keys into memory at every poll.
    pub(super) fn changed(&mut self, now: SystemTime) -> Result<Option<Vec<Zeroizing<Vec<u8>>>>, TlsFault> {
        match self.look(now) {
            Ok(contents) => {
                self.unread = None;
                Ok(contents)
            }
            Err(fault) if self.unread.as_ref() == Some(&fault) => Ok(None),
            Err(fault) => {
                self.unread = Some(fault.clone());
                Err(fault)
            }
        }
    }

    fn look(&mut self, now: SystemTime) -> Result<Option<Vec<Zeroizing<Vec<u8>>>>, TlsFault> {
        if self.unread.is_none() && self.looks_same() {
            return Ok(None);
        }
        let mut seen = Vec::with_capacity(self.files.len());
        let mut contents = Vec::with_capacity(self.files.len());
        for (path, part) in &self.files {
            let (stat, bytes) = read(path, part)?;
            let racy = stat.changed_s.saturating_add(RACY_S) >= epoch_seconds(now) as i64;
            seen.push(Seen { stat, digest: self.digests.hash_one(bytes.as_slice()), racy });
            contents.push(bytes);
        }
        let same =
            seen.len() == self.seen.len() && seen.iter().zip(&self.seen).all(|(new, old)| new.digest == old.digest);
        self.seen = seen;
        Ok((!same).then_some(contents))
    }

    fn looks_same(&self) -> bool {
        self.seen.len() == self.files.len()
            && self.files.iter().zip(&self.seen).all(|((path, _), seen)| {
                !seen.racy && fs::metadata(path).is_ok_and(|metadata| Stat::of(&metadata) == seen.stat)
            })
    }
}

/// What the file system says about a file without reading it.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// The change time catches what a preserved modification time hides.
    changed_s: i64,
    changed_ns: i64,
}

impl Stat {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        }
    }
}

pub(super) fn epoch_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn sections<T: PemObject>(pem: &[u8], part: &Part) -> Result<Vec<T>, TlsFault> {
    let items: Vec<T> =
        T::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| TlsFault::NotPem { part: part.clone() })?;
    match items.is_empty() {
        true => Err(TlsFault::NoSection { part: part.clone() }),
        false => Ok(items),
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// What this module wants to know of a certificate. webpki tells neither the last day nor the IP addresses.
struct Facts {
    names: Names,
    not_after: u64,
}

/// Walks a DER certificate (RFC 5280, 4.1) to its validity and its subject alternative names. It only skips and reads
/// lengths; that the certificate is sound is webpki's judgement, in `keys_match`. `None` if the walk gets lost.
fn facts(certificate: &[u8]) -> Option<Facts> {
    let (certificate, _) = Der(certificate).take(SEQUENCE)?;
    let (mut tbs, _) = certificate.take(SEQUENCE)?;
    if let Some((_version, rest)) = tbs.take(CONTEXT_0) {
        tbs = rest;
    }
    let (_serial, tbs) = tbs.take(INTEGER)?;
    let (_signature, tbs) = tbs.take(SEQUENCE)?;
    let (_issuer, tbs) = tbs.take(SEQUENCE)?;
    let (validity, tbs) = tbs.take(SEQUENCE)?;
    let (_subject, tbs) = tbs.take(SEQUENCE)?;
    let (_public_key, mut tbs) = tbs.take(SEQUENCE)?;

    let (_not_before, validity) = validity.any()?;
    let (not_after, _) = validity.any()?;
    let mut facts = Facts { names: Names::default(), not_after: time(not_after)? };

    let mut extensions = Der(&[]);
    while let Some((tag_and_value, rest)) = tbs.any() {
        if tag_and_value.0 == CONTEXT_3 {
            extensions = tag_and_value.1.take(SEQUENCE)?.0;
        }
        tbs = rest;
    }
    while let Some((extension, rest)) = extensions.take(SEQUENCE) {
        extensions = rest;
        let (oid, value) = extension.take(OID)?;
        if oid.0 != SUBJECT_ALT_NAME {
            continue;
        }
        let value = value.take(BOOLEAN).map_or(value, |(_critical, rest)| rest);
        let (value, _) = value.take(OCTET_STRING)?;
        let (mut names, _) = value.take(SEQUENCE)?;
        while let Some(((tag, name), rest)) = names.any() {
            names = rest;
            match (tag, name.0) {
                (SAN_DNS, name) => facts.names.dns.push(std::str::from_utf8(name).ok()?.to_ascii_lowercase()),
                (SAN_IP, &[a, b, c, d]) => facts.names.ips.push(Ipv4Addr::new(a, b, c, d).into()),
                (SAN_IP, name) => {
                    let bytes: [u8; 16] = name.try_into().ok()?;
                    facts.names.ips.push(IpAddr::from(Ipv6Addr::from(bytes)).to_canonical());
                }
                _ => {}
            }
        }
    }
    Some(facts)
}

/// A run of DER values.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The contents of the next value if it has this tag, and what follows it.
    fn take(self, tag: u8) -> Option<(Der<'a>, Der<'a>)> {
        self.any().and_then(|((found, value), rest)| (found == tag).then_some((value, rest)))
    }

    /// The next value's tag and contents, and what follows it.
    fn any(self) -> Option<((u8, Der<'a>), Der<'a>)> {
        let (&[tag, length], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match length {
            0..=0x7f => (usize::from(length), rest),
            // Three bytes of length reach 16 MiB, more than a file may have.
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                (bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        Some(((tag, Der(value)), Der(rest)))
    }
}

/// `UTCTime` (YYMMDDHHMMSSZ, the years 1950 to 2049) or `GeneralizedTime` (YYYYMMDDHHMMSSZ), to seconds since the epoch.
fn time((tag, Der(text)): (u8, Der<'_>)) -> Option<u64> {
    let text = text.strip_suffix(b"Z")?;
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0u64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
    };
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => match number(&text[..2])? {
            year @ 50.. => (1900 + year, &text[2..]),
            year => (2000 + year, &text[2..]),
        },
        (GENERALIZED_TIME, 14) => (number(&text[..4])?, &text[4..]),
        _ => return None,
    };
    let (month, day) = (number(&rest[..2])?, number(&rest[2..4])?);
    let (hour, minute, second) = (number(&rest[4..6])?, number(&rest[6..8])?, number(&rest[8..10])?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if year < 1970 {
        return Some(0);
    }
    // Days from civil, counted in years that begin in March so that the leap day comes last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (months * 153 + 2) / 5 + day - 1;
    Some((days - DAYS_TO_EPOCH) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// How long a self-signed certificate is valid. It is renewed in its last third while the process runs.
const SELF_SIGNED_DAYS: Duration = Duration::from_secs(30 * 86_400);

/// A bundle of all public authorities is about 250 KiB and a large revocation list a few MiB; picked by feel.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Coarse file systems count time in steps of up to two seconds.
const RACY_S: i64 = 2;

/// From 1 March of year 0 to 1 January 1970 in the proleptic Gregorian calendar.
const DAYS_TO_EPOCH: u64 = 719_468;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_3: u8 = 0xa3;
const SAN_DNS: u8 = 0x82;
const SAN_IP: u8 = 0x87;
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
