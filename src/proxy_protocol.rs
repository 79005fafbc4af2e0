//! The PROXY protocol, versions 1 and 2 (haproxy.org/download/3.0/doc/proxy-protocol.txt): a load balancer in front of
//! us says in a few bytes before TLS who the client is.
//!
//! Only peers in [`TrustedNetworks`] are believed: the listener reads a header from those, and from nobody else. A
//! trusted peer that sends none is a fault, for otherwise anybody behind it could write the header himself.
//!
//! The bytes after the header belong to TLS. [`read`] peeks, then takes exactly the header from the socket, so no
//! buffer has to be carried into the TLS stream and given back.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// What a header says. `Debug` exists for tests alone: addresses of clients are not for logs.
#[derive(Clone, Copy, Eq, PartialEq)]
#[cfg_attr(test, derive(Debug))]
pub struct Header {
    /// The client, or `None` if the peer speaks for itself (a health check) or cannot say.
    pub source: Option<SocketAddr>,
    /// The address the client connected to, `None` likewise.
    pub destination: Option<SocketAddr>,
}

/// How far [`parse`] came.
#[derive(Clone, Copy, Eq, PartialEq)]
#[cfg_attr(test, derive(Debug))]
pub enum Parsed {
    /// Cannot be a header, whatever follows.
    Bad(ProxyFault),
    /// A whole header.
    Done {
        /// Its length. What follows belongs to the next protocol.
        consumed: usize,
        /// What it says.
        header: Header,
    },
    /// A header's beginning. All bytes given belong to the header.
    Incomplete {
        /// The header is at least this long; more than was given.
        need: usize,
    },
}

/// Reads a header from the beginning of `bytes`. Pure: call it again with more bytes as they come.
pub fn parse(bytes: &[u8]) -> Parsed {
    let parsed = if bytes.is_empty() {
        Ok(Progress::Need(V1_BYTES_MIN))
    } else if starts_like(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else if starts_like(bytes, V1_SIGNATURE) {
        parse_v1(bytes)
    } else {
        Err(ProxyFault::NoHeader)
    };
    match parsed {
        Ok(Progress::Done(consumed, header)) => Parsed::Done { consumed, header },
        Ok(Progress::Need(need)) => Parsed::Incomplete { need },
        Err(fault) => Parsed::Bad(fault),
    }
}

/// Takes a header off a fresh connection, and nothing after it. The deadline covers the whole.
pub async fn read(stream: &TcpStream, deadline: Duration) -> Result<Header, ProxyFault> {
    tokio::time::timeout(deadline, read_header(stream)).await.map_err(|_| ProxyFault::TimedOut)?
}

/// While the header is incomplete, everything peeked belongs to it, so it is taken off at once. The next peek then finds
/// an empty socket and waits for the peer; a peek at bytes left in place would return at once, again and again. A whole
/// header that arrives in one piece, the rule, costs one peek and one read.
async fn read_header(stream: &TcpStream) -> Result<Header, ProxyFault> {
    // The peek may reach into what follows the header. On a listener without TLS that is content, hence wiped.
    let mut bytes = Zeroizing::new(vec![0; HEADER_BYTES_MAX]);
    let mut taken = 0;
    loop {
        // Never empty: a header that fills the buffer is not incomplete.
        let peeked = stream.peek(&mut bytes[taken..]).await.map_err(|error| ProxyFault::Io(error.kind()))?;
        if peeked == 0 {
            return Err(ProxyFault::Closed);
        }
        match parse(&bytes[..taken + peeked]) {
            Parsed::Bad(fault) => return Err(fault),
            Parsed::Done { consumed, header } => {
                take(stream, &mut bytes[taken..consumed]).await?;
                return Ok(header);
            }
            Parsed::Incomplete { .. } => {
                take(stream, &mut bytes[taken..taken + peeked]).await?;
                taken += peeked;
            }
        }
    }
}

/// Takes bytes off the socket that were peeked before, hence are there.
async fn take(stream: &TcpStream, mut bytes: &mut [u8]) -> Result<(), ProxyFault> {
    while !bytes.is_empty() {
        match stream.try_read(bytes) {
            Ok(0) => return Err(ProxyFault::Closed),
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.readable().await.map_err(|error| ProxyFault::Io(error.kind()))?;
            }
            Err(error) => return Err(ProxyFault::Io(error.kind())),
        }
    }
    Ok(())
}

/// Why no header could be read. All are the trusted peer's doing, or its network's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProxyFault {
    /// An address or port is malformed.
    BadAddress,
    /// The command or the address family is none that the specification knows.
    BadCommand,
    /// The first line has the wrong shape.
    BadLine,
    /// The extensions do not add up to the header's length.
    BadTlv,
    /// The peer left before the header was complete.
    Closed,
    /// The connection broke.
    Io(io::ErrorKind),
    /// The connection begins with something else. Is the PROXY protocol switched on at the load balancer?
    NoHeader,
    /// The deadline passed.
    TimedOut,
    /// Longer than we accept.
    TooLong,
    /// Too short for the addresses it announces.
    TooShort,
}

/// The networks whose peers are believed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TrustedNetworks(Vec<Network>);

impl TrustedNetworks {
    /// Reads networks like `10.0.0.0/8`, `fd00::/8` or single addresses. An IPv4-mapped IPv6 network (`::ffff:a.b.c.d/n`)
    /// is taken for the IPv4 network it means; no other IPv6 network covers IPv4 peers, not even `::/0`.
    pub fn parse<S: AsRef<str>>(networks: &[S]) -> Result<Self, NetworkFault> {
        let parsed = networks
            .iter()
            .enumerate()
            .map(|(index, text)| Network::parse(text.as_ref()).map_err(|cause| NetworkFault { index, cause }));
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a peer is believed. On a dual-stack socket IPv4 peers appear as `::ffff:a.b.c.d`; they count as IPv4.
    pub fn contains(&self, peer: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(peer))
    }

    /// Whether nobody is believed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Which network of a list is wrong, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetworkFault {
    /// Its place in the list, from 0.
    pub index: usize,
    /// What is wrong.
    pub cause: NetworkCause,
}

/// What is wrong with a network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NetworkCause {
    /// Bits are set behind the prefix: `10.1.2.3/8` may mean one host or a whole network. This is the network.
    HostBits(IpAddr),
    /// No IP address before the slash.
    NotAnAddress,
    /// The prefix is no number or too long for the address.
    NotAPrefix,
}

impl fmt::Display for NetworkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            NetworkCause::HostBits(network) => {
                write!(
                    f,
                    "the address has bits behind its prefix; write {network} before the slash, or leave the prefix out"
                )
            }
            NetworkCause::NotAnAddress => {
                f.write_str("not an IP address or network; write it like 10.0.0.0/8 or fd00::/8")
            }
            NetworkCause::NotAPrefix => f.write_str("the prefix is a number up to 32 for IPv4 and 128 for IPv6"),
        }
    }
}

impl std::error::Error for NetworkFault {}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    fn parse(text: &str) -> Result<Self, NetworkCause> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkCause::NotAnAddress)?;
        let prefix_max = bits_of(address).1;
        let prefix = match prefix {
            None => prefix_max,
            // `u32::from_str` would accept a sign.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|&prefix| prefix <= prefix_max).ok_or(NetworkCause::NotAPrefix)?
            }
            Some(_) => return Err(NetworkCause::NotAPrefix),
        };
        let (address, prefix) = match address.to_canonical() {
            mapped @ IpAddr::V4(_) if address.is_ipv6() && prefix >= V4_MAPPED_PREFIX => {
                (mapped, prefix - V4_MAPPED_PREFIX)
            }
            _ => (address, prefix),
        };
        let network = masked(address, prefix);
        match network == address {
            true => Ok(Self { address, prefix }),
            false => Err(NetworkCause::HostBits(network)),
        }
    }

    fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_ipv4() == self.address.is_ipv4() && masked(peer, self.prefix) == self.address
    }
}

/// The address as a number, and how many bits it has.
fn bits_of(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (v4.to_bits().into(), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn masked(address: IpAddr, prefix: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - prefix).unwrap_or(0)).into(),
    }
}

enum Progress {
    Done(usize, Header),
    Need(usize),
}

/// Whether `bytes` begins with the signature, as far as either reaches.
fn starts_like(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

/// One line: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`.
fn parse_v1(bytes: &[u8]) -> Result<Progress, ProxyFault> {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return match window.len() {
            V1_BYTES_MAX => Err(ProxyFault::TooLong),
            // A line feed is missing at least, and a carriage return before it.
            length => Ok(Progress::Need((length + if window.ends_with(b"\r") { 1 } else { 2 }).max(V1_BYTES_MIN))),
        };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(ProxyFault::BadLine)?;
    let line = line.strip_prefix(V1_SIGNATURE).ok_or(ProxyFault::BadLine)?;
    // Printable ASCII is what the format consists of; nothing else gets further.
    let line = std::str::from_utf8(line).map_err(|_| ProxyFault::BadLine)?;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        // Whatever else the line says is to be ignored.
        return Ok(Progress::Done(end + 1, NOBODY));
    }
    let [Some(source), Some(destination), Some(source_port), Some(destination_port), None] =
        [words.next(), words.next(), words.next(), words.next(), words.next()]
    else {
        return Err(ProxyFault::BadLine);
    };
    let address = |text: &str| -> Result<IpAddr, ProxyFault> {
        match family {
            Some("TCP4") => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| ProxyFault::BadAddress),
            Some("TCP6") => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| ProxyFault::BadAddress),
            _ => Err(ProxyFault::BadLine),
        }
    };
    let source = socket_address(address(source)?, port(source_port)?);
    let destination = socket_address(address(destination)?, port(destination_port)?);
    Ok(Progress::Done(end + 1, Header { source: Some(source), destination: Some(destination) }))
}

/// Decimal without sign and leading zeros, as the specification has it.
fn port(text: &str) -> Result<u16, ProxyFault> {
    match text.as_bytes() {
        [b'0'] => Ok(0),
        [b'1'..=b'9', ..] => text.parse().map_err(|_| ProxyFault::BadAddress),
        _ => Err(ProxyFault::BadAddress),
    }
}

/// Signature (12), version and command (1), family and transport (1), length of the rest (2), addresses, extensions.
fn parse_v2(bytes: &[u8]) -> Result<Progress, ProxyFault> {
    // Each field is judged as soon as it is there: a peer that speaks something else should not keep us waiting.
    let local = match bytes.get(12) {
        None => return Ok(Progress::Need(V2_HEAD_BYTES)),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(ProxyFault::BadCommand),
    };
    let Some(&family) = bytes.get(13) else {
        return Ok(Progress::Need(V2_HEAD_BYTES));
    };
    // Unspecified, IPv4, IPv6, Unix; unspecified, stream, datagram. The specification wants all others dropped.
    if family >> 4 > 3 || family & 0x0f > 2 {
        return Err(ProxyFault::BadCommand);
    }
    let Some((head, rest)) = bytes.split_first_chunk::<V2_HEAD_BYTES>() else {
        return Ok(Progress::Need(V2_HEAD_BYTES));
    };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > V2_REST_BYTES_MAX {
        return Err(ProxyFault::TooLong);
    }
    let address_bytes = match family {
        V2_TCP4 => 12,
        V2_TCP6 => 36,
        _ => 0,
    };
    if !local && length < address_bytes {
        return Err(ProxyFault::TooShort);
    }
    let Some((rest, _)) = rest.split_at_checked(length) else {
        return Ok(Progress::Need(V2_HEAD_BYTES + length));
    };
    let consumed = V2_HEAD_BYTES + length;
    // LOCAL: the balancer speaks for itself, and the rest is to be skipped unseen. The same goes for families that have no
    // meaning for a TCP listener.
    if local || address_bytes == 0 {
        return Ok(Progress::Done(consumed, NOBODY));
    }
    let (addresses, extensions) = rest.split_at(address_bytes);
    check_extensions(extensions)?;
    let (source, destination) = match family {
        V2_TCP4 => (ipv4(&addresses[..4]), ipv4(&addresses[4..8])),
        _ => (ipv6(&addresses[..16]), ipv6(&addresses[16..32])),
    };
    let ports = &addresses[address_bytes - 4..];
    let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    Ok(Progress::Done(
        consumed,
        Header {
            source: Some(socket_address(source, port(&ports[..2]))),
            destination: Some(socket_address(destination, port(&ports[2..]))),
        },
    ))
}

/// Extensions (type, two bytes of length, value) are stepped over and none is used: server names and client certificates
/// reach us through TLS, and a checksum (CRC32c) guards against what TCP's already does. A sender who miscounts them may
/// have miscounted more, so that is a fault.
fn check_extensions(mut bytes: &[u8]) -> Result<(), ProxyFault> {
    while !bytes.is_empty() {
        let (&[_type, high, low], rest) = bytes.split_first_chunk::<3>().ok_or(ProxyFault::BadTlv)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        bytes = rest.split_at_checked(length).ok_or(ProxyFault::BadTlv)?.1;
    }
    Ok(())
}

fn ipv4(bytes: &[u8]) -> IpAddr {
    let mut octets = [0; 4];
    octets.copy_from_slice(bytes);
    octets.into()
}

fn ipv6(bytes: &[u8]) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    octets.into()
}

/// Mapped addresses become what they mean, so that one client is one client for limits by address.
fn socket_address(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

const NOBODY: Header = Header { source: None, destination: None };

const V1_SIGNATURE: &[u8] = b"PROXY ";

/// `PROXY UNKNOWN\r\n`
const V1_BYTES_MIN: usize = 15;

/// The specification's worst case, `PROXY UNKNOWN` with two full IPv6 addresses and the line's end.
const V1_BYTES_MAX: usize = 107;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

const V2_HEAD_BYTES: usize = 16;

const V2_TCP4: u8 = 0x11;

const V2_TCP6: u8 = 0x21;

/// The specification allows 64 KiB. Balancers send below 100 bytes, and a few KiB when they pass a client certificate on;
/// 64 KiB for each of many connections before the first handshake is what a flood would use.
const V2_REST_BYTES_MAX: usize = 4096;

const HEADER_BYTES_MAX: usize = V2_HEAD_BYTES + V2_REST_BYTES_MAX;

/// `::ffff:0:0/96` holds the IPv4 addresses.
const V4_MAPPED_PREFIX: u32 = 96;

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Poll;

    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn well_formed_headers_at_every_cut_and_with_every_tail() {
        for (bytes, expected) in well_formed() {
            for cut in 0..bytes.len() {
                match parse(&bytes[..cut]) {
                    Parsed::Incomplete { need } => assert!(cut < need && need <= bytes.len(), "{cut} {need}"),
                    other => panic!("{other:?} after {cut} of {}", bytes.len()),
                }
            }
            let done = Parsed::Done { consumed: bytes.len(), header: expected };
            for tail in [&b""[..], b"\n", b"\r\n", b"\x16\x03\x01\x02\x00", &bytes, &[0xff; 5000]] {
                assert_eq!(parse(&[&bytes, tail].concat()), done);
            }
        }
    }

    #[test]
    fn malformed_headers_are_refused_for_their_cause() {
        let v1 = |text: &str| text.as_bytes().to_vec();
        let short = [v2(0x21, 0x11, &[0; 11]), v2(0x21, 0x21, &[0; 35]), v2(0x21, 0x11, b"")];
        let tcp4_with = |tlv: &[u8]| v2(0x21, 0x11, &[&[192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2], tlv].concat());
        let mut cases = vec![
            (v1("GET / HTTP/1.1\r\n"), ProxyFault::NoHeader),
            (v1("\x16\x03\x01\x02\x00"), ProxyFault::NoHeader),
            (v1("PROXX"), ProxyFault::NoHeader),
            (v1("proxy TCP4 "), ProxyFault::NoHeader),
            (v1(" PROXY TCP4"), ProxyFault::NoHeader),
            (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), ProxyFault::NoHeader),
            (v1("PROXY \n"), ProxyFault::BadLine),
            (v1("PROXY \r\n"), ProxyFault::BadLine),
            (v1("PROXY UNKNOWN\n"), ProxyFault::BadLine),
            (v1("PROXY UNKNOWNX\r\n"), ProxyFault::BadLine),
            (v1("PROXY TCP4\r\n"), ProxyFault::BadLine),
            (v1("PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n"), ProxyFault::BadLine),
            (v1("PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n"), ProxyFault::BadLine),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n"), ProxyFault::BadLine),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n"), ProxyFault::BadLine),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n"), ProxyFault::BadLine),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \xff\r\n".to_vec(), ProxyFault::BadLine),
            (v1("PROXY TCP4  192.0.2.1 192.0.2.2 1\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1\t192.0.2.2 1 2 3\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.256 192.0.2.2 1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.02.1 192.0.2.2 1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\0\r\n"), ProxyFault::BadAddress),
            (v1("PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n"), ProxyFault::BadAddress),
            // 107 bytes and no line end among them; and a line end just behind.
            (v1(&format!("PROXY {:101}", "UNKNOWN")), ProxyFault::TooLong),
            (v1(&format!("PROXY {:100}\r\n", "UNKNOWN")), ProxyFault::TooLong),
            // Version 1, version 3, commands that do not exist, families and transports that do not exist.
            (v2(0x11, 0x11, &[0; 12]), ProxyFault::BadCommand),
            (v2(0x31, 0x11, &[0; 12]), ProxyFault::BadCommand),
            (v2(0x22, 0x11, &[0; 12]), ProxyFault::BadCommand),
            (v2(0x21, 0x41, &[0; 12]), ProxyFault::BadCommand),
            (v2(0x21, 0x13, &[0; 12]), ProxyFault::BadCommand),
            (v2(0x21, 0x11, &[0; 4097]), ProxyFault::TooLong),
            (v2(0x20, 0x00, &[0; 65535]), ProxyFault::TooLong),
            (tcp4_with(&[4]), ProxyFault::BadTlv),
            (tcp4_with(&[4, 0]), ProxyFault::BadTlv),
            (tcp4_with(&[4, 0, 1]), ProxyFault::BadTlv),
            (tcp4_with(&[4, 0, 0, 4, 0xff, 0xff]), ProxyFault::BadTlv),
        ];
        cases.extend(short.map(|bytes| (bytes, ProxyFault::TooShort)));
        for (bytes, fault) in cases {
            assert_eq!(parse(&bytes), Parsed::Bad(fault), "{}", bytes.escape_ascii());
        }
        // Refused from the head alone: nobody waits for 64 KiB, or for the rest of what is no header.
        assert_eq!(parse(&v2(0x20, 0, &[0; 65535])[..16]), Parsed::Bad(ProxyFault::TooLong));
        assert_eq!(parse(&v2(0x21, 0x11, &[0; 4])[..16]), Parsed::Bad(ProxyFault::TooShort));
        assert_eq!(parse(&v2(0x99, 0, b"")[..13]), Parsed::Bad(ProxyFault::BadCommand));
        assert_eq!(parse(b"G"), Parsed::Bad(ProxyFault::NoHeader));
    }

    /// Whatever the bytes: more of them never change a verdict, a header never reaches past what is there, and an
    /// incomplete one always asks for more, within the bound.
    #[test]
    fn damaged_headers_keep_the_rules() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize
        };
        for (bytes, _) in well_formed().into_iter().filter(|(bytes, _)| bytes.len() < 400) {
            for _ in 0..2_000 {
                let mut damaged = [bytes.as_slice(), b"tail"].concat();
                for _ in 0..=next() % 3 {
                    let at = next() % damaged.len();
                    match next() % 4 {
                        0 => damaged[at] ^= 1 << (next() % 8),
                        1 => damaged[at] = b" \r\n\0.:0PQ\xff"[next() % 10],
                        2 => drop(damaged.remove(at)),
                        _ => damaged.insert(at, next() as u8),
                    }
                }
                let mut verdict = None;
                for cut in 0..=damaged.len() {
                    let parsed = parse(&damaged[..cut]);
                    match (parsed, verdict) {
                        (_, Some(verdict)) => assert_eq!(parsed, verdict, "{}", damaged.escape_ascii()),
                        (Parsed::Incomplete { need }, None) => assert!(cut < need && need <= HEADER_BYTES_MAX),
                        (Parsed::Done { consumed, .. }, None) => {
                            assert_eq!(consumed, cut, "{}", damaged.escape_ascii());
                            verdict = Some(parsed);
                        }
                        (Parsed::Bad(_), None) => verdict = Some(parsed),
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn exactly_the_header_is_taken_off_the_socket() {
        for (bytes, expected) in well_formed() {
            let (mut client, mut server) = connected().await;
            client.write_all(&[&bytes, &b"\x16\x03\x01 and more"[..]].concat()).await.unwrap();
            assert_eq!(read(&server, LONG).await, Ok(expected));
            client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"\x16\x03\x01 and more");
        }
    }

    #[tokio::test]
    async fn a_header_in_single_bytes_is_read_and_costs_a_wake_up_each() {
        for (bytes, expected) in well_formed().into_iter().filter(|(bytes, _)| bytes.len() < 120) {
            let (mut client, mut server) = connected().await;
            client.set_nodelay(true).unwrap();
            let writing = tokio::spawn(async move {
                for (index, byte) in [&bytes, &b"tail"[..]].concat().into_iter().enumerate() {
                    client.write_all(&[byte]).await.unwrap();
                    // Longer pauses now and then, in which a spinning reader would show.
                    tokio::time::sleep(Duration::from_millis(if index % 16 == 7 { 20 } else { 0 })).await;
                }
            });
            let (header, polls) = counting_polls(read(&server, LONG)).await;
            assert_eq!(header, Ok(expected));
            assert!(polls < 300, "{polls}");
            let mut rest = Vec::new();
            server.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"tail");
            writing.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_stalled_peer_meets_the_deadline_and_does_not_keep_us_busy() {
        for sent in [
            &b""[..],
            b"P",
            b"PROXY TCP4 192.0.2.1 ",
            &v2(0x21, 0x11, &[0; 12])[..15],
            &v2(0x20, 0, &[0; 4096])[..4000],
        ] {
            let (mut client, server) = connected().await;
            client.write_all(sent).await.unwrap();
            let (header, polls) = counting_polls(read(&server, Duration::from_millis(60))).await;
            assert_eq!(header, Err(ProxyFault::TimedOut));
            assert!(polls < 10, "{polls}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_leaves_or_speaks_something_else_is_told_apart() {
        for (sent, fault) in [
            (&b""[..], ProxyFault::Closed),
            (b"PROXY TC", ProxyFault::Closed),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11", ProxyFault::Closed),
            (b"\x16\x03\x01\x02\x00", ProxyFault::NoHeader),
            (b"GET / HTTP/1.1\r\n\r\n", ProxyFault::NoHeader),
        ] {
            let (mut client, server) = connected().await;
            client.write_all(sent).await.unwrap();
            client.shutdown().await.unwrap();
            assert_eq!(read(&server, LONG).await, Err(fault));
        }
    }

    #[test]
    fn networks_cover_what_they_say() {
        let trusted =
            TrustedNetworks::parse(&["10.0.0.0/8", "192.0.2.7", "fd00::/8", "2001:db8::1", "::ffff:172.16.0.0/108"]);
        let trusted = trusted.unwrap();
        let covers = |text: &str| trusted.contains(text.parse().unwrap());
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "::ffff:10.1.2.3",
            "192.0.2.7",
            "172.16.0.1",
            "172.31.255.255",
            "::ffff:172.20.0.1",
            "fd00::1",
            "fdff:ffff::",
            "2001:db8::1",
        ] {
            assert!(covers(inside), "{inside}");
        }
        for outside in
            ["9.255.255.255", "11.0.0.0", "192.0.2.8", "172.32.0.0", "fe00::", "2001:db8::2", "::10.1.2.3", "::"]
        {
            assert!(!covers(outside), "{outside}");
        }
        let all = |text: &str| TrustedNetworks::parse(&[text]).unwrap();
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert!(all("0.0.0.0/0").contains(v4) && !all("0.0.0.0/0").contains(v6));
        assert!(all("::/0").contains(v6) && !all("::/0").contains(v4));
        assert!(!all("::/0").contains("::ffff:192.0.2.1".parse().unwrap()));
        assert!(TrustedNetworks::default().is_empty() && !TrustedNetworks::default().contains(v4));

        for (text, cause) in [
            ("", NetworkCause::NotAnAddress),
            ("localhost", NetworkCause::NotAnAddress),
            ("10.0.0/8", NetworkCause::NotAnAddress),
            ("[::1]", NetworkCause::NotAnAddress),
            (" 10.0.0.0/8", NetworkCause::NotAnAddress),
            ("10.0.0.0/33", NetworkCause::NotAPrefix),
            ("10.0.0.0/", NetworkCause::NotAPrefix),
            ("10.0.0.0/+8", NetworkCause::NotAPrefix),
            ("10.0.0.0/8/8", NetworkCause::NotAPrefix),
            ("10.0.0.0/255.0.0.0", NetworkCause::NotAPrefix),
            ("::/129", NetworkCause::NotAPrefix),
            ("10.1.2.3/8", NetworkCause::HostBits("10.0.0.0".parse().unwrap())),
            ("0.0.0.1/0", NetworkCause::HostBits("0.0.0.0".parse().unwrap())),
            ("2001:db8::1/32", NetworkCause::HostBits("2001:db8::".parse().unwrap())),
        ] {
            let fault = NetworkFault { index: 1, cause };
            assert_eq!(TrustedNetworks::parse(&["10.0.0.0/8", text]), Err(fault), "{text}");
        }
    }

    /// Headers as the specification shows them and as balancers send them, with what they say.
    fn well_formed() -> Vec<(Vec<u8>, Header)> {
        let says = |source: &str, destination: &str| Header {
            source: Some(source.parse().unwrap()),
            destination: Some(destination.parse().unwrap()),
        };
        let full_v6 = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        let full_v6_text = "ffff:f...f:ffff".replace("f...f", "ffff:ffff:ffff:ffff:ffff:ffff");
        let (v6_source, v6_destination) =
            ("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets(), "2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        let mapped = "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets();
        let tcp4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];
        let tcp6 = [&v6_source[..], &v6_destination, &[0xdc, 0x04, 0x01, 0xbb]].concat();
        // ALPN, authority, a checksum that is wrong and a cloud provider's own.
        let extensions = b"\x01\x00\x02h2\x02\x00\x0bapi.example\x03\x00\x04\0\0\0\0\xea\x00\x05\x01vpce";
        let padding = [&[4, 0x0f, 0xf1][..], &[0; 0x0ff1]].concat();
        let v1 = |text: &str| format!("{text}\r\n").into_bytes();
        vec![
            (
                v1("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535"),
                says("255.255.255.255:65535", "255.255.255.255:65535"),
            ),
            (v1(&format!("PROXY TCP6 {full_v6_text} {full_v6_text} 65535 65535")), says(full_v6, full_v6)),
            (v1("PROXY UNKNOWN"), NOBODY),
            (v1(&format!("PROXY UNKNOWN {full_v6_text} {full_v6_text} 65535 65535")), NOBODY),
            (v1("PROXY UNKNOWN whatever\rthis is"), NOBODY),
            (v1("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443"), says("192.168.0.1:56324", "192.168.0.11:443")),
            (v1("PROXY TCP4 0.0.0.0 0.0.0.0 0 0"), says("0.0.0.0:0", "0.0.0.0:0")),
            (v1("PROXY TCP6 ::1 ::ffff:192.0.2.1 1 2"), says("[::1]:1", "192.0.2.1:2")),
            (v2(0x21, 0x11, &tcp4), says("192.0.2.1:56324", "198.51.100.2:443")),
            (v2(0x21, 0x11, &[&tcp4, &extensions[..]].concat()), says("192.0.2.1:56324", "198.51.100.2:443")),
            (v2(0x21, 0x11, &[&tcp4, &[4, 0, 0][..]].concat()), says("192.0.2.1:56324", "198.51.100.2:443")),
            (v2(0x21, 0x11, &[&tcp4[..], &padding].concat()), says("192.0.2.1:56324", "198.51.100.2:443")),
            (v2(0x21, 0x21, &tcp6), says("[2001:db8::1]:56324", "[2001:db8::2]:443")),
            (v2(0x21, 0x21, &[&tcp6, &extensions[..]].concat()), says("[2001:db8::1]:56324", "[2001:db8::2]:443")),
            (v2(0x21, 0x21, &[&mapped[..], &mapped, &[0, 1, 0, 2]].concat()), says("192.0.2.1:1", "192.0.2.1:2")),
            // A health check of the balancer itself, with and without something to skip.
            (v2(0x20, 0x00, b""), NOBODY),
            (v2(0x20, 0x11, &tcp4), NOBODY),
            (v2(0x20, 0x11, b"\x01"), NOBODY),
            // Unspecified, Unix, datagrams.
            (v2(0x21, 0x00, b"anything"), NOBODY),
            (v2(0x21, 0x31, &[0; 216]), NOBODY),
            (v2(0x21, 0x12, &tcp4), NOBODY),
            (v2(0x21, 0x00, &[0; V2_REST_BYTES_MAX]), NOBODY),
        ]
    }

    fn v2(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [V2_SIGNATURE, &[version_and_command, family], &length, rest].concat()
    }

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    async fn counting_polls<F: Future>(future: F) -> (F::Output, usize) {
        let mut future = pin!(future);
        let mut polls = 0;
        let output = std::future::poll_fn(|context| {
            polls += 1;
            match future.as_mut().poll(context) {
                Poll::Ready(output) => Poll::Ready(output),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        (output, polls)
    }

    const LONG: Duration = Duration::from_secs(30);
}
