//! Small strict parsers for the texts that a configuration holds.
//!
//! Each answers with the value or with fixed words that continue the sentence "`key` in [section] ...".
//! The words are `&'static str`, so that no fault can carry a byte of what was written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Endpoint;
use crate::retention::PATTERN_BYTES_MAX;

/// The largest integer that TOML itself promises to carry.
pub(super) const INTEGER_MAX: u64 = i64::MAX as u64;

/// `250ms`, `5s`, `15m`, `1h`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let factor_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(factor_ms)?))
}

/// The shortest way to write `duration`, which is a whole number of milliseconds.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (factor_ms, unit) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms > 0 && ms.is_multiple_of(factor_ms) {
            return format!("{}{unit}", ms / factor_ms);
        }
    }
    match ms {
        0 => "0s".to_owned(),
        _ => format!("{ms}ms"),
    }
}

/// `1024B`, `64KiB`, `32MiB`, `1GiB`, or a bare number of bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes <= INTEGER_MAX)
}

/// The shortest way to write `bytes`.
pub(super) fn size_text(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// `^[a-z][a-z0-9-]{0,31}$`: what may become a label value.
pub(super) fn name(text: &str) -> Result<(), &'static str> {
    let ok = text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    ok.then_some(()).ok_or("must be a name: 1 to 32 of a-z, 0-9 and `-`, a letter first")
}

/// An address literal with a port.
pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8443 or [::1]:8443")
}

/// Whether only this machine can reach `ip`.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Whether plain HTTP may be spoken to `host`: this machine or a private network.
fn is_near(host: &Host) -> bool {
    match host {
        Host::Name(name) => name == "localhost",
        Host::V4(ip) => ip.is_loopback() || ip.is_private(),
        Host::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.is_loopback() || ip.is_private(),
            None => ip.is_loopback() || ip.is_unique_local(),
        },
    }
}

enum Host {
    Name(String),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// A host name (lowered), an IPv4 literal or an IPv6 literal in brackets.
fn any_host(text: &str) -> Option<Host> {
    if let Some(inside) = text.strip_prefix('[') {
        return Some(Host::V6(inside.strip_suffix(']')?.parse().ok()?));
    }
    if let Ok(ip) = text.parse() {
        return Some(Host::V4(ip));
    }
    let lower = text.to_ascii_lowercase();
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name that ends in a number is an address in disguise (`127.1`, `0x7f.1`) to some resolvers.
    let last = lower.rsplit('.').next().unwrap_or_default();
    let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    let ok = lower.len() <= 253 && lower.split('.').all(label_ok) && !numeric;
    ok.then_some(Host::Name(lower))
}

/// A host as the `Host` header has it, without a port: lower case, IPv6 in brackets.
pub(super) fn host(text: &str) -> Result<String, &'static str> {
    match any_host(text) {
        Some(Host::Name(name)) => Ok(name),
        Some(Host::V4(ip)) => Ok(ip.to_string()),
        Some(Host::V6(ip)) => Ok(format!("[{ip}]")),
        None => Err("must be a host name without scheme, port or path, such as edge.example.com"),
    }
}

/// `scheme://host[:port][/path]`, taken apart; the host of an IPv6 address has no brackets.
fn url(text: &str) -> Result<(bool, Host, u16, String), &'static str> {
    let (tls, rest) = if let Some(rest) = text.strip_prefix("https://") {
        (true, rest)
    } else if let Some(rest) = text.strip_prefix("http://") {
        (false, rest)
    } else {
        return Err("must begin with https:// (or http:// for this machine and private networks)");
    };
    if rest.contains('?') {
        return Err("must not have a query (`?`)");
    }
    if rest.contains('#') {
        return Err("must not have a fragment (`#`)");
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("must not hold a user name or a password (`@`)");
    }
    let port_at = match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => at,
        _ => authority.len(),
    };
    let (host, port) = authority.split_at(port_at);
    let port = match port.strip_prefix(':') {
        None if tls => 443,
        None => 80,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|port: &u16| *port > 0 && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or("must have a port from 1 to 65535 after the `:`")?,
    };
    let host = any_host(host).ok_or("must name a host: a DNS name, an IPv4 address or an IPv6 address in brackets")?;
    Ok((tls, host, port, base_path(path)?))
}

fn base_path(path: &str) -> Result<String, &'static str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let segment_ok = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b))
    };
    let ok = path.is_empty() || path[1..].split('/').all(segment_ok);
    ok.then(|| path.to_owned()).ok_or("must have a plain path: no empty or dot segments, no escapes, no spaces")
}

/// An upstream's address. Plain HTTP is for this machine and private networks.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, &'static str> {
    let (tls, host, port, base_path) = url(text)?;
    if !tls && !is_near(&host) {
        return Err("must use https://: plain http:// is for `localhost`, loopback and private addresses");
    }
    let host = match host {
        Host::Name(name) => name,
        Host::V4(ip) => ip.to_string(),
        Host::V6(ip) => ip.to_string(),
    };
    Ok(Endpoint { tls, host, port, base_path, weight: 1 })
}

/// As a URL, without the default port.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]", self.host)?,
            false => write!(f, "{scheme}://{}", self.host)?,
        }
        if self.port != if self.tls { 443 } else { 80 } {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.base_path)
    }
}

/// The URL at which clients reach this node, written the one way: no trailing slash, no default port.
pub(super) fn public_url(text: &str) -> Result<String, &'static str> {
    let (tls, host, port, path) = url(text)?;
    let scheme = if tls { "https" } else { "http" };
    let host = match host {
        Host::Name(name) => name,
        Host::V4(ip) => ip.to_string(),
        Host::V6(ip) => format!("[{ip}]"),
    };
    let port = match (tls, port) {
        (true, 443) | (false, 80) => String::new(),
        _ => format!(":{port}"),
    };
    Ok(format!("{scheme}://{host}{port}{path}"))
}

/// A model's name, with stars.
pub(super) fn pattern(text: &str) -> Result<(), &'static str> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    match plain && !text.is_empty() && text.len() <= PATTERN_BYTES_MAX {
        true => Ok(()),
        false => Err("must be the name of a model, 1 to 96 letters without spaces; `*` stands for any letters"),
    }
}

/// `/openai`, `/team/openai`; empty for "no prefix".
pub(super) fn prefix(text: &str) -> Result<(), &'static str> {
    let segment_ok = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    let ok = text.is_empty() || (text.len() <= 128 && text.starts_with('/') && text[1..].split('/').all(segment_ok));
    ok.then_some(()).ok_or("must be a path such as /openai: letters, digits and -._~ between slashes, none at the end")
}

/// A network such as 10.0.0.0/8 in its one spelling; a bare address is a network of one.
pub(super) fn cidr(text: &str) -> Result<String, &'static str> {
    const WHY: &str = "must hold networks such as 10.0.0.0/8 or fd00::/8";
    let (ip, length) = match text.split_once('/') {
        Some((ip, length)) => (ip, Some(length)),
        None => (text, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| WHY)?;
    let length_max = if ip.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => length_max,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|length: &u32| *length <= length_max && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or(WHY)?,
    };
    let network = match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    };
    if network != ip {
        return Err("must hold networks whose address bits after the `/` length are zero");
    }
    Ok(format!("{network}/{length}"))
}

/// What a POSIX shell lets a variable be called.
pub(super) fn is_variable(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// One file name, as systemd wants credentials to be called.
pub(super) fn is_credential(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        for (text, ms) in [
            ("250ms", Some(250)),
            ("0s", Some(0)),
            ("5s", Some(5_000)),
            ("15m", Some(900_000)),
            ("1h", Some(3_600_000)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-5s", None),
            ("+5s", None),
            ("5 s", None),
            ("5S", None),
            ("1.5s", None),
            ("1d", None),
            ("5s ", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(duration(text), ms.map(Duration::from_millis), "{text}");
        }
        for text in ["250ms", "5s", "15m", "1h", "0s", "90s"] {
            assert_eq!(duration_text(duration(text).unwrap()), text);
        }
        for (text, bytes) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("1024B", Some(1024)),
            ("64KiB", Some(65_536)),
            ("32MiB", Some(33_554_432)),
            ("2GiB", Some(2_147_483_648)),
            ("", None),
            ("KiB", None),
            ("64KB", None),
            ("64kib", None),
            ("64 KiB", None),
            ("-1", None),
            ("1.5MiB", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(size(text), bytes.filter(|_| !text.is_empty()), "{text}");
        }
        for text in ["64KiB", "32MiB", "2GiB", "1025B", "0B"] {
            assert_eq!(size_text(size(text).unwrap()), text);
        }
    }

    #[test]
    fn urls() {
        for (text, expected) in [
            ("https://api.openai.com", Some((true, "api.openai.com", 443, ""))),
            ("https://API.openai.com/", Some((true, "api.openai.com", 443, ""))),
            ("https://openrouter.ai/api", Some((true, "openrouter.ai", 443, "/api"))),
            ("https://openrouter.ai:8443/api/v1/", Some((true, "openrouter.ai", 8443, "/api/v1"))),
            ("https://[2001:db8::1]:444/x", Some((true, "2001:db8::1", 444, "/x"))),
            ("https://[::1]", Some((true, "::1", 443, ""))),
            ("http://localhost:9000", Some((false, "localhost", 9000, ""))),
            ("http://127.0.0.1", Some((false, "127.0.0.1", 80, ""))),
            ("http://10.1.2.3:80/v1", Some((false, "10.1.2.3", 80, "/v1"))),
            ("http://192.168.1.1", Some((false, "192.168.1.1", 80, ""))),
            ("http://[::1]:8080", Some((false, "::1", 8080, ""))),
            ("http://[fd00::1]", Some((false, "fd00::1", 80, ""))),
            ("http://[::ffff:127.0.0.1]", Some((false, "::ffff:127.0.0.1", 80, ""))),
            ("http://api.openai.com", None),
            ("http://8.8.8.8", None),
            ("http://169.254.169.254", None),
            ("http://[2001:db8::1]", None),
            ("http://localhost.example.com", None),
            ("http://127.1", None),
            ("https://127.1", None),
            ("https://0x7f000001", None),
            ("HTTPS://api.openai.com", None),
            ("ftp://api.openai.com", None),
            ("api.openai.com", None),
            ("https://", None),
            ("https:///x", None),
            ("https://:443", None),
            ("https://a.example:", None),
            ("https://a.example:0", None),
            ("https://a.example:+1", None),
            ("https://a.example:65536", None),
            ("https://u@a.example", None),
            ("https://u:p@a.example", None),
            ("https://a.example?x=1", None),
            ("https://a.example/#x", None),
            ("https://a.example//x", None),
            ("https://a.example/x//", None),
            ("https://a.example/../x", None),
            ("https://a.example/%2e", None),
            ("https://a.example/a b", None),
            ("https://a..example", None),
            ("https://a.example.", None),
            ("https://-a.example", None),
            ("https://a.exämple", None),
            ("https://[::1", None),
            ("https://::1", None),
            ("https://a\\b.example", None),
            (" https://a.example", None),
        ] {
            let got = endpoint(text).ok();
            let got = got.as_ref().map(|e| (e.tls, e.host.as_str(), e.port, e.base_path.as_str()));
            assert_eq!(got, expected, "{text}");
        }
        assert_eq!(public_url("https://Edge.example.com:443/"), Ok("https://edge.example.com".to_owned()));
        assert_eq!(public_url("http://[::1]:8080/x/"), Ok("http://[::1]:8080/x".to_owned()));
    }

    #[test]
    fn networks_hosts_prefixes_names() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::/0", Some("::/0")),
            ("192.0.2.7", Some("192.0.2.7/32")),
            ("fd00::/8", Some("fd00::/8")),
            ("::1", Some("::1/128")),
            ("10.0.0.1/8", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("fd00::/129", None),
            ("example.com/8", None),
        ] {
            assert_eq!(cidr(text).ok().as_deref(), expected, "{text}");
        }
        for (text, expected) in [
            ("Edge.Example.com", Some("edge.example.com")),
            ("localhost", Some("localhost")),
            ("10.0.0.5", Some("10.0.0.5")),
            ("[::1]", Some("[::1]")),
            ("edge.example.com:443", None),
            ("https://edge.example.com", None),
            ("*.example.com", None),
            ("", None),
        ] {
            assert_eq!(host(text).ok().as_deref(), expected, "{text}");
        }
        for (text, ok) in [
            ("", true),
            ("/openai", true),
            ("/a/b.c", true),
            ("/", false),
            ("openai", false),
            ("/a/", false),
            ("/a//b", false),
            ("/a/../b", false),
            ("/a%20b", false),
        ] {
            assert_eq!(prefix(text).is_ok(), ok, "{text}");
        }
        for (text, ok) in [
            ("a", true),
            ("a-1", true),
            ("", false),
            ("1a", false),
            ("A", false),
            ("a_b", false),
            ("abcdefghijklmnopqrstuvwxyz-01234", true),
            ("abcdefghijklmnopqrstuvwxyz-012345", false),
        ] {
            assert_eq!(name(text).is_ok(), ok, "{text}");
        }
    }
}
