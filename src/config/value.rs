//! Small strict parsers for the texts that a configuration holds.
//!
//! Each answers with the value or with fixed words that continue the sentence "`key` in [section] ...".
//! The words are `&'static str`, so that no fault can carry a byte of what was written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::HeaderName;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use super::Endpoint;
use crate::limits::{Budget, Kind, Period, Rate};
use crate::retention::PATTERN_BYTES_MAX;

/// The largest integer that TOML itself promises to carry.
pub(super) const INTEGER_MAX: u64 = i64::MAX as u64;

/// `250ms`, `5s`, `15m`, `1h`, `1d`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let factor_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(factor_ms)?))
}

/// The shortest way to write `duration`, which is a whole number of milliseconds.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (factor_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
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

/// `text`, digits with at most `places` of them after a point, in units of 10^-`places`: exact, or nothing.
fn decimal(text: &str, places: usize) -> Option<u64> {
    let (whole, part) = match text.split_once('.') {
        Some((whole, part)) if !part.is_empty() => (whole, part),
        Some(_) => return None,
        None => (text, ""),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || part.len() > places || !digits(whole) || !digits(part) {
        return None;
    }
    // At most 9 places: this and the padded part fit.
    let unit = 10_u64.pow(places as u32);
    let part: u64 = if places == 0 { 0 } else { format!("{part:0<places$}").parse().ok()? };
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(part)
}

/// The shortest text of which [`decimal`] makes `units`.
fn decimal_text(units: u64, places: usize) -> String {
    let unit = 10_u64.pow(places as u32);
    let part = format!("{:0places$}", units % unit);
    match part.trim_end_matches('0') {
        "" => (units / unit).to_string(),
        part => format!("{}.{part}", units / unit),
    }
}

/// 10^15: more than anybody uses, and far from where sums of such amounts end.
const AMOUNT_MAX: u64 = 1_000_000_000_000_000;

/// Places after the point of an amount of money.
const MONEY_PLACES: usize = 6;

/// Picodollars in the smallest amount of money that can be written.
const PICODOLLARS: u64 = 1_000_000;

/// 10 million USD, in picodollars: below what 64 bits hold, with room for what is owed on top.
const MONEY_MAX: u64 = 10_000_000 * 1_000_000 * PICODOLLARS;

/// `600`, `2M`, `1.5k`: with k, M and G for thousands, millions and milliards; a whole number in the end.
fn amount(text: &str) -> Option<u64> {
    let (number, places) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 3),
        b'M' => (&text[..text.len() - 1], 6),
        b'G' => (&text[..text.len() - 1], 9),
        _ => (text, 0),
    };
    decimal(number, places).filter(|amount| (1..=AMOUNT_MAX).contains(amount))
}

/// The shortest way to write `amount` without a point.
fn amount_text(amount: u64) -> String {
    for (factor, unit) in [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")] {
        if amount.is_multiple_of(factor) {
            return format!("{}{unit}", amount / factor);
        }
    }
    amount.to_string()
}

/// What stands before the slash of a rate or a budget: an amount of what. `None`: it cannot be read.
fn counted(text: &str) -> Option<(Kind, u64)> {
    let mut words = text.split_ascii_whitespace();
    let number = words.next()?;
    let kind = match (words.next()?, words.next(), words.next()) {
        ("request" | "requests", None, _) => Kind::Requests,
        ("token" | "tokens", None, _) => Kind::Tokens,
        ("input", Some("token" | "tokens"), None) => Kind::InputTokens,
        ("output", Some("token" | "tokens"), None) => Kind::OutputTokens,
        ("usd" | "USD", None, _) => Kind::Money,
        _ => return None,
    };
    let amount = match kind {
        Kind::Money => decimal(number, MONEY_PLACES)?
            .checked_mul(PICODOLLARS)
            .filter(|picodollars| (1..=MONEY_MAX).contains(picodollars))?,
        _ => amount(number)?,
    };
    Some((kind, amount))
}

fn counted_text(kind: Kind, amount: u64) -> String {
    let what = match kind {
        Kind::Requests => "requests",
        Kind::InputTokens => "input tokens",
        Kind::OutputTokens => "output tokens",
        Kind::Tokens => "tokens",
        Kind::Money => return format!("{} usd", decimal_text(amount / PICODOLLARS, MONEY_PLACES)),
    };
    format!("{} {what}", amount_text(amount))
}

/// `600 requests/1m`, `2M tokens/hour`.
pub(super) fn rate(text: &str) -> Result<Rate, &'static str> {
    const WHY: &str = "holds rates, which are written like 600 requests/1m or 2M tokens/hour: an amount up to 10^15 (k, M, G), \
                       then requests, tokens, input tokens or output tokens";
    let (what, window) = text.split_once('/').ok_or(WHY)?;
    let (kind, amount) = counted(what).ok_or(WHY)?;
    if kind == Kind::Money {
        return Err("holds rates, which count requests and tokens; usd is for budgets");
    }
    let window = match window.trim_ascii() {
        "second" => Duration::from_secs(1),
        "minute" => Duration::from_secs(60),
        "hour" => Duration::from_secs(3_600),
        "day" => Duration::from_secs(86_400),
        other => duration(other).ok_or(WHY)?,
    };
    if !(Duration::from_secs(1)..=Duration::from_secs(31 * 86_400)).contains(&window) {
        return Err("holds rates, whose time is 1s to 31d");
    }
    // Within 64 bits: 31 days are below 2^52 nanoseconds.
    Ok(Rate { kind, amount, window: window.as_nanos() as u64 })
}

pub(super) fn rate_text(rate: &Rate) -> String {
    let window = duration_text(Duration::from_nanos(rate.window));
    format!("{}/{window}", counted_text(rate.kind, rate.amount))
}

/// `50M tokens/day`, `12.50 usd/month`; it does not say when it signals.
pub(super) fn budget(text: &str) -> Result<Budget, &'static str> {
    const WHY: &str = "holds budgets, which are written like 50M tokens/day or 12.50 usd/month: an amount up to 10^15 (k, M, G) \
                       of requests, tokens, input tokens or output tokens, or up to 10000000 usd with at most 6 places";
    let (what, period) = text.split_once('/').ok_or(WHY)?;
    let (kind, amount) = counted(what).ok_or(WHY)?;
    let period = match period.trim_ascii() {
        "day" => Period::Day,
        "month" => Period::Month,
        _ => return Err("holds budgets, which last a day or a month: 50M tokens/day, 500 usd/month"),
    };
    Ok(Budget { kind, amount, period, soft_percent: 100 })
}

pub(super) fn budget_text(budget: &Budget) -> String {
    let period = match budget.period {
        Period::Day => "day",
        Period::Month => "month",
    };
    format!("{}/{period}", counted_text(budget.kind, budget.amount))
}

/// Written as USD for a million tokens; picodollars for one, which is the same number of millionths.
pub(super) fn price(text: &str) -> Result<u64, &'static str> {
    decimal(text, MONEY_PLACES)
        .filter(|price| *price <= 1_000_000_000_000)
        .ok_or("must be USD for a million tokens, such as \"0.25\": 0 to 1000000, at most 6 places after the point")
}

pub(super) fn price_text(price: u64) -> String {
    decimal_text(price, MONEY_PLACES)
}

/// A header that callers may show a key in: nothing that APIs, proxies or HTTP itself have a use for.
pub(super) fn header(text: &str) -> Result<HeaderName, &'static str> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "must be the name of a header")?;
    let word = name.as_str();
    const NAMES: &[&str] = &[
        "age",
        "allow",
        "api-key",
        "authorization",
        "baggage",
        "cache-control",
        "connection",
        "cookie",
        "cookie2",
        "date",
        "dnt",
        "etag",
        "expect",
        "forwarded",
        "from",
        "host",
        "http2-settings",
        "idempotency-key",
        "keep-alive",
        "location",
        "origin",
        "pragma",
        "priority",
        "range",
        "referer",
        "retry-after",
        "server",
        "set-cookie",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
        "x-api-key",
        "x-goog-api-key",
    ];
    const BEGINNINGS: &[&str] = &[
        "accept",
        "access-control-",
        "anthropic-",
        "content-",
        "if-",
        "openai-",
        "proxy-",
        "sec-",
        "x-amz-",
        "x-amzn-",
        "x-forwarded-",
        "x-goog-",
        "x-stainless-",
    ];
    let taken = NAMES.contains(&word) || BEGINNINGS.iter().any(|beginning| word.starts_with(beginning));
    match taken || word.len() > 64 {
        true => Err("must be the name of a header that nothing else uses, at most 64 bytes, such as x-nullhop-key"),
        false => Ok(name),
    }
}

/// By its IANA name, from the rules that are compiled in: the same on every machine.
pub(super) fn time_zone(text: &str) -> Result<TimeZone, &'static str> {
    TimeZoneDatabase::bundled()
        .get(text)
        .ok()
        .filter(|zone| !zone.is_unknown())
        .ok_or("must be the IANA name of a time zone, such as UTC, Europe/Berlin or America/New_York")
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
            ("1d", Some(86_400_000)),
            ("1w", None),
            ("5s ", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(duration(text), ms.map(Duration::from_millis), "{text}");
        }
        for text in ["250ms", "5s", "15m", "1h", "0s", "90s", "36h", "31d"] {
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

    #[test]
    fn money_is_exact() {
        for (text, picodollars) in [
            ("2.50", Some(2_500_000)),
            ("0", Some(0)),
            ("0.000001", Some(1)),
            ("0.0000010", None),
            ("0.1", Some(100_000)),
            ("0.3", Some(300_000)),
            ("1000000", Some(1_000_000_000_000)),
            ("1000000.000001", None),
            ("007", Some(7_000_000)),
            ("", None),
            (".5", None),
            ("5.", None),
            (".", None),
            ("1.2.3", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("1,5", None),
            ("1_000", None),
            (" 1", None),
            ("0.\u{661}", None),
            ("99999999999999999999", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(price(text).ok(), picodollars, "{text}");
        }
        // Every number of millionths survives, at both ends and around carries.
        for price_is in (0..2_000).chain(999_990..1_000_010).chain(999_999_999_990..=1_000_000_000_000) {
            assert_eq!(price(&price_text(price_is)), Ok(price_is));
        }
        assert_eq!(price_text(2_500_000), "2.5");
        assert_eq!(price_text(250_000), "0.25");
    }

    #[test]
    fn rates_and_budgets() {
        const SECOND: u64 = 1_000_000_000;
        for (text, expected) in [
            ("600 requests/1m", Some((Kind::Requests, 600, 60 * SECOND, "600 requests/1m"))),
            ("600 requests / minute", Some((Kind::Requests, 600, 60 * SECOND, "600 requests/1m"))),
            ("1 request/second", Some((Kind::Requests, 1, SECOND, "1 requests/1s"))),
            ("2M tokens/1m", Some((Kind::Tokens, 2_000_000, 60 * SECOND, "2M tokens/1m"))),
            ("1.5k tokens/hour", Some((Kind::Tokens, 1_500, 3_600 * SECOND, "1500 tokens/1h"))),
            ("400k input tokens/1m", Some((Kind::InputTokens, 400_000, 60 * SECOND, "400k input tokens/1m"))),
            ("80k  output  tokens/90s", Some((Kind::OutputTokens, 80_000, 90 * SECOND, "80k output tokens/90s"))),
            ("10k requests/day", Some((Kind::Requests, 10_000, 86_400 * SECOND, "10k requests/1d"))),
            ("10k requests/24h", Some((Kind::Requests, 10_000, 86_400 * SECOND, "10k requests/1d"))),
            ("1000000G tokens/31d", Some((Kind::Tokens, AMOUNT_MAX, 31 * 86_400 * SECOND, "1000000G tokens/31d"))),
            ("1000001G tokens/31d", None),
            ("0 requests/1m", None),
            ("1.5 requests/1m", None),
            ("1.0001k requests/1m", None),
            ("-5 requests/1m", None),
            ("600 requests", None),
            ("600/1m", None),
            ("requests/1m", None),
            ("k requests/1m", None),
            ("600requests/1m", None),
            ("600 requests tokens/1m", None),
            ("600 input/1m", None),
            ("600 input output tokens/1m", None),
            ("600 requests/", None),
            ("600 requests/0s", None),
            ("600 requests/999ms", None),
            ("600 requests/32d", None),
            ("600 requests/month", None),
            ("600 requests/1m/1m", None),
            ("5K requests/1m", None),
            ("5 usd/1m", None),
            ("", None),
            ("/", None),
        ] {
            let got = rate(text);
            let shown = got.as_ref().map(rate_text).unwrap_or_default();
            let got = got.ok().map(|rate| (rate.kind, rate.amount, rate.window, shown.as_str()));
            assert_eq!(got, expected, "{text}");
            assert!(shown.is_empty() || rate(&shown) == rate(text), "{text}");
        }
        for (text, expected) in [
            ("50M tokens/day", Some((Kind::Tokens, 50_000_000, Period::Day, "50M tokens/day"))),
            (
                "20M output tokens/month",
                Some((Kind::OutputTokens, 20_000_000, Period::Month, "20M output tokens/month")),
            ),
            ("5 input tokens / day", Some((Kind::InputTokens, 5, Period::Day, "5 input tokens/day"))),
            ("1G requests/month", Some((Kind::Requests, 1_000_000_000, Period::Month, "1G requests/month"))),
            ("500 usd/month", Some((Kind::Money, 500_000_000_000_000, Period::Month, "500 usd/month"))),
            ("12.50 usd/day", Some((Kind::Money, 12_500_000_000_000, Period::Day, "12.5 usd/day"))),
            ("0.000001 USD/day", Some((Kind::Money, 1_000_000, Period::Day, "0.000001 usd/day"))),
            ("10000000 usd/day", Some((Kind::Money, MONEY_MAX, Period::Day, "10000000 usd/day"))),
            ("10000000.000001 usd/day", None),
            ("18446744073710 usd/day", None),
            ("0 usd/day", None),
            ("0.0000001 usd/day", None),
            ("5k usd/day", None),
            ("5 eur/day", None),
            ("5 tokens/1d", None),
            ("5 tokens/year", None),
            ("5 tokens", None),
        ] {
            let got = budget(text);
            let shown = got.as_ref().map(budget_text).unwrap_or_default();
            let got = got.ok().map(|budget| (budget.kind, budget.amount, budget.period, shown.as_str()));
            assert_eq!(got, expected, "{text}");
            assert!(shown.is_empty() || budget(&shown) == budget(text), "{text}");
        }
    }

    #[test]
    fn headers_and_time_zones() {
        for (text, expected) in [
            ("X-Nullhop-Key", Some("x-nullhop-key")),
            ("x-team", Some("x-team")),
            ("Authorization", None),
            ("X-Api-Key", None),
            ("x-goog-api-key", None),
            ("api-key", None),
            ("cookie", None),
            ("host", None),
            ("Content-Type", None),
            ("accept-encoding", None),
            ("sec-websocket-key", None),
            ("transfer-encoding", None),
            ("x key", None),
            (":path", None),
            ("", None),
        ] {
            assert_eq!(header(text).ok().as_ref().map(HeaderName::as_str), expected, "{text}");
        }
        for (text, expected) in [
            ("UTC", Some("UTC")),
            ("Europe/Berlin", Some("Europe/Berlin")),
            ("america/new_york", Some("America/New_York")),
            ("Europe/Atlantis", None),
            ("Etc/Unknown", None),
            ("../etc/passwd", None),
            ("", None),
        ] {
            assert_eq!(time_zone(text).ok().as_ref().and_then(TimeZone::iana_name), expected, "{text}");
        }
    }
}
