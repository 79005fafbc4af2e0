//! Every value a label can have, and the two kinds of text that come from outside: names of the configuration and labels
//! of keys.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::provider::Operation;
use crate::provider::Provider;
use crate::retention::Rule;

/// A closed set of label values.
pub(crate) trait Label: Copy + Send + Sync + 'static {
    /// The label's name in the exposition.
    const NAME: &'static str;
    /// In the order of `index`.
    const ALL: &'static [Self];

    fn as_str(self) -> &'static str;
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$about:meta])* $name:ident, $label:literal { $($(#[$why:meta])* $variant:ident => $text:literal,)+ })+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum $name { $($(#[$why])* $variant,)+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}
pub(super) use labels;

labels! {
    /// Whose provider key pays.
    Mode, "mode" {
        Managed => "managed",
        Byok => "byok",
        /// Before a key is known, and on listeners without admission.
        None => "none",
    }

    /// How a request ended.
    Outcome, "outcome" {
        Ok => "ok",
        ClientError => "client_error",
        Limited => "limited",
        ClientAbort => "client_abort",
        /// 4xx.
        UpstreamRejected => "upstream_rejected",
        /// 429 and 529.
        UpstreamLimited => "upstream_limited",
        /// 5xx, or no connection.
        UpstreamError => "upstream_error",
        UpstreamTimeout => "upstream_timeout",
        /// Ended after the head, before the end.
        UpstreamCut => "upstream_cut",
        /// nullhop shed or refused it.
        Unavailable => "unavailable",
        Internal => "internal",
    }

    /// Who wrote the response.
    Source, "source" {
        Nullhop => "nullhop",
        Upstream => "upstream",
    }

    /// Which body.
    Direction, "direction" {
        Request => "request",
        Response => "response",
    }

    /// Which side of a call tokens belong to.
    TokenDirection, "direction" {
        Input => "input",
        Output => "output",
    }

    /// What became of tokens. Within a direction no token is of two kinds.
    TokenKind, "kind" {
        /// Input that was read in full.
        Uncached => "uncached",
        CacheRead => "cache_read",
        CacheWrite => "cache_write",
        Response => "response",
        Reasoning => "reasoning",
    }

    /// Why a call that is billed ended without figures.
    MissingReason, "reason" {
        /// It ended before its end, by whomever.
        Aborted => "aborted",
        /// The answer is whole and has none.
        Absent => "absent",
        /// The answer could not be read.
        Unparsed => "unparsed",
    }

    /// HTTP version, as far as it matters for connections.
    Protocol, "protocol" {
        H1 => "h1",
        H2 => "h2",
    }

    /// Whether the client asked for a stream.
    Streaming, "streaming" {
        True => "true",
        False => "false",
    }

    /// Why a connection was turned away before its first request.
    RefusedReason, "reason" {
        Limit => "limit",
        ProxyHeader => "proxy_header",
        NotAllowed => "not_allowed",
        SlowHead => "slow_head",
        Draining => "draining",
    }

    /// How a client's TLS handshake ended.
    HandshakeResult, "result" {
        Ok => "ok",
        NoSharedCipher => "no_shared_cipher",
        BadClient => "bad_client",
        Timeout => "timeout",
        Other => "other",
    }

    /// Why nobody's key was shown.
    AuthenticationFailure, "reason" {
        /// No key was shown where one is needed.
        Missing => "missing",
        /// What was shown cannot be a key.
        Malformed => "malformed",
        Unknown => "unknown",
        Revoked => "revoked",
        Expired => "expired",
    }

    /// Which limit decided on a request.
    LimitLabel, "limit" {
        /// Open streams of a key, an account, a caller or an upstream.
        Concurrency => "concurrency",
        Requests => "requests",
        Tokens => "tokens",
        Budget => "budget",
        /// Of the whole process: it sheds. No key's.
        Global => "global",
    }

    /// What a limit said.
    Decision, "decision" {
        Allow => "allow",
        Deny => "deny",
    }

    /// What a limit's decision rests on.
    Basis, "basis" {
        /// What this process has counted.
        Local => "local",
    }

    /// What a provider's own rate limits count.
    Resource, "resource" {
        Requests => "requests",
        Tokens => "tokens",
        InputTokens => "input_tokens",
        OutputTokens => "output_tokens",
    }

    /// Whether a client's key may be used.
    KeyState, "state" {
        Active => "active",
        Revoked => "revoked",
    }

    /// Whether a provider key may be used now.
    ProviderKeyState, "state" {
        Ready => "ready",
        /// Left alone for a while: its provider refused it, or said that it had enough.
        Cooling => "cooling",
    }

    /// What became of a usage event.
    EventResult, "result" {
        Written => "written",
        Lost => "lost",
    }

    /// How an attempt to connect to an upstream ended.
    ConnectResult, "result" {
        Ok => "ok",
        Dns => "dns",
        Refused => "refused",
        Timeout => "timeout",
        Tls => "tls",
        Other => "other",
    }

    /// How a call to an upstream broke.
    FailureReason, "reason" {
        Connect => "connect",
        HeadTimeout => "head_timeout",
        IdleTimeout => "idle_timeout",
        Reset => "reset",
        Truncated => "truncated",
        Protocol => "protocol",
    }

    /// Why a call was sent again.
    RetryReason, "reason" {
        Connect => "connect",
        Reset => "reset",
        Status => "status",
    }

    /// Where nullhop's own time is spent.
    Phase, "phase" {
        Request => "request",
        ResponseHead => "response_head",
        /// Sampled, 1 in 64.
        Chunk => "chunk",
    }

    /// A guard against hostile or broken peers; each time one acts it is counted.
    Guard, "guard" {
        HandshakeTimeout => "handshake_timeout",
        HeadTimeout => "head_timeout",
        FirstRequestTimeout => "first_request_timeout",
        IdleTimeout => "idle_timeout",
        BodyTooSlow => "body_too_slow",
        BodyTooLarge => "body_too_large",
        WriteStall => "write_stall",
        RequestsPerConnection => "requests_per_connection",
        ConnectionAge => "connection_age",
        CancelsPerConnection => "cancels_per_connection",
        ConnectionsPerAddress => "connections_per_address",
        HandshakesInFlight => "handshakes_in_flight",
        ConnectionsTotal => "connections_total",
        BadTarget => "bad_target",
        BadHost => "bad_host",
        BadMethod => "bad_method",
        BadFraming => "bad_framing",
        HeadTooLarge => "head_too_large",
        /// Resets, CONTINUATIONs, empty frames and the like, beyond what h2 takes.
        H2Abuse => "h2_abuse",
        /// Of a WebSocket's client, by a policy.
        MessageRefused => "message_refused",
        UpstreamInformational => "upstream_informational",
        UpstreamBadAnswer => "upstream_bad_answer",
        UpstreamLateBytes => "upstream_late_bytes",
    }

    /// A guard that keeps what is in the process inside it.
    ProcessGuard, "guard" {
        CapabilitiesDropped => "capabilities_dropped",
        CoreDumpsOff => "core_dumps_off",
        CoreFilterEmpty => "core_filter_empty",
        EnvironmentClean => "environment_clean",
        Landlock => "landlock",
        MemoryLocked => "memory_locked",
        NoNewPrivileges => "no_new_privileges",
        NotDumpable => "not_dumpable",
        Seccomp => "seccomp",
        SecretHeap => "secret_heap",
        SecretsLocked => "secrets_locked",
    }

    /// The order is that of severity; `log` relies on it.
    LogLevel, "level" {
        Error => "error",
        Warn => "warn",
        Info => "info",
    }

    /// How a reload of the configuration, or of the file of keys, ended.
    ReloadResult, "result" {
        Ok => "ok",
        Error => "error",
    }

    /// Whose budget it is. Not a metric label; log lines use it.
    BudgetScope, "scope" {
        Key => "key",
        Account => "account",
        Upstream => "upstream",
    }

    /// What a listener is for. Not a metric label; log lines use it.
    ListenerKind, "kind" {
        Traffic => "traffic",
        Metrics => "metrics",
        Admin => "admin",
    }

    /// What the heap stands in. Not a metric label; log lines use it.
    HeapKind, "heap" {
        Secret => "secret",
        Locked => "locked",
        Plain => "plain",
    }

    /// What is left of an I/O error once its text is gone. Not a metric label; log lines use it.
    IoFault, "error" {
        AddressInUse => "address_in_use",
        AddressUnavailable => "address_unavailable",
        Aborted => "aborted",
        /// The storage itself.
        Disk => "disk",
        DiskFull => "disk_full",
        FileTooLarge => "file_too_large",
        Interrupted => "interrupted",
        NotFound => "not_found",
        OutOfMemory => "out_of_memory",
        PermissionDenied => "permission_denied",
        ReadOnly => "read_only",
        Reset => "reset",
        TimedOut => "timed_out",
        TooManyFiles => "too_many_files",
        Other => "other",
    }
}

impl From<bool> for Streaming {
    fn from(streaming: bool) -> Self {
        if streaming { Self::True } else { Self::False }
    }
}

impl TokenKind {
    /// The side it belongs to.
    pub(crate) fn direction(self) -> TokenDirection {
        match self {
            Self::Uncached | Self::CacheRead | Self::CacheWrite => TokenDirection::Input,
            Self::Response | Self::Reasoning => TokenDirection::Output,
        }
    }
}

impl From<&io::Error> for IoFault {
    fn from(error: &io::Error) -> Self {
        // std has no stable kind for these four. EIO, ENFILE, EMFILE and ENOBUFS have had these numbers on Linux for ever,
        // on every architecture nullhop is built for.
        match error.raw_os_error() {
            Some(5) => return Self::Disk,
            Some(23 | 24) => return Self::TooManyFiles,
            Some(105) => return Self::OutOfMemory,
            _ => {}
        }
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse,
            io::ErrorKind::AddrNotAvailable => Self::AddressUnavailable,
            io::ErrorKind::ConnectionAborted => Self::Aborted,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            io::ErrorKind::FileTooLarge => Self::FileTooLarge,
            io::ErrorKind::Interrupted => Self::Interrupted,
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::OutOfMemory => Self::OutOfMemory,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            io::ErrorKind::ConnectionReset => Self::Reset,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other,
        }
    }
}

macro_rules! status_labels {
    ($($variant:ident = $code:literal,)+) => {
        /// A status code, reduced to those worth a series each and the class for the rest.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum StatusLabel { $($variant,)+ Class1, Class2, Class3, Class4, Class5 }

        impl From<u16> for StatusLabel {
            /// Codes outside 100 to 599 are legal on the wire; they count with the nearest class.
            fn from(status: u16) -> Self {
                match status {
                    $($code => Self::$variant,)+
                    0..=199 => Self::Class1,
                    200..=299 => Self::Class2,
                    300..=399 => Self::Class3,
                    400..=499 => Self::Class4,
                    500.. => Self::Class5,
                }
            }
        }

        impl Label for StatusLabel {
            const NAME: &'static str = "status";
            const ALL: &'static [Self] =
                &[$(Self::$variant,)+ Self::Class1, Self::Class2, Self::Class3, Self::Class4, Self::Class5];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($code),)+
                    Self::Class1 => "1xx",
                    Self::Class2 => "2xx",
                    Self::Class3 => "3xx",
                    Self::Class4 => "4xx",
                    Self::Class5 => "5xx",
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

status_labels! {
    S200 = 200, S201 = 201, S202 = 202, S204 = 204, S206 = 206, S304 = 304,
    S400 = 400, S401 = 401, S402 = 402, S403 = 403, S404 = 404, S405 = 405, S408 = 408, S409 = 409, S411 = 411,
    S413 = 413, S415 = 415, S421 = 421, S422 = 422, S426 = 426, S429 = 429, S431 = 431, S499 = 499,
    S500 = 500, S501 = 501, S502 = 502, S503 = 503, S504 = 504, S529 = 529,
}

impl Label for Rule {
    const NAME: &'static str = "rule";
    const ALL: &'static [Self] = Rule::ALL;

    fn as_str(self) -> &'static str {
        Rule::as_str(self)
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Provider {
    const NAME: &'static str = "provider";
    const ALL: &'static [Self] = Provider::ALL;

    fn as_str(self) -> &'static str {
        Provider::as_str(self)
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Operation {
    const NAME: &'static str = "operation";
    const ALL: &'static [Self] = Operation::ALL;

    fn as_str(self) -> &'static str {
        Operation::as_str(self)
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// The place of an upstream in `Names::upstreams` of the configuration that handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct UpstreamId(pub(crate) u16);

/// The place of a listener in `Names::listeners` of the configuration that handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ListenerId(pub(crate) u16);

/// The place of a certificate in `Names::certificates` of the configuration that handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CertificateId(pub(crate) u16);

/// A name that an operator gave to a part of the configuration. The only text in metrics and log lines that is not
/// compiled in, so there is one door to it: `Names::new`, at the load of a configuration. Everybody else gets names
/// from the `Handles`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name(Arc<str>);

impl Name {
    /// Takes `^[a-z][a-z0-9_-]{0,63}$` except `none`, which stands for the upstream not chosen yet.
    pub(super) fn new(text: &str) -> Result<Self, InvalidName> {
        let (Some(first), true) = (text.bytes().next(), text.len() <= NAME_BYTES_MAX) else {
            return Err(InvalidName::Length);
        };
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if !first.is_ascii_lowercase() || !text.bytes().all(is_plain) {
            return Err(InvalidName::Letters);
        }
        if text == NONE {
            return Err(InvalidName::Reserved);
        }
        Ok(Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The place of a client key's series in the `KeySeries` that handed it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyId(pub(crate) u16);

impl KeyId {
    /// The series that all keys without their own share, of every `KeySeries`.
    pub(crate) const OTHER: Self = Self(0);
}

/// What an operator calls a client's key or an account. Looser than a [`Name`], because such labels come from the systems
/// that manage accounts; as fit to be printed. Never the key, nor a hash of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyLabel(Arc<str>);

impl KeyLabel {
    /// Takes 1 to 64 of `A-Za-z0-9._-`. To be called with what the configuration or the file of keys says and nothing
    /// else: these texts are printed as they are.
    pub(crate) fn new(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(InvalidName::Length);
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return Err(InvalidName::Letters);
        }
        Ok(Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for KeyLabel {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Every name is a label.
impl From<&Name> for KeyLabel {
    fn from(name: &Name) -> Self {
        Self(name.0.clone())
    }
}

/// Why a text is no name. Says nothing of the text itself; the configuration shows that, masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidName {
    /// Empty, or over 64 bytes.
    Length,
    /// A character that it may not have, or not there: see [`Name`] and [`KeyLabel`].
    Letters,
    /// `none` is taken.
    Reserved,
}

/// The value of `upstream` before one is chosen.
pub(super) const NONE: &str = "none";

const NAME_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn is_closed_and_ordered<L: Label>() {
        let mut texts = HashSet::new();
        for (place, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), place, "{}", label.as_str());
            assert!(texts.insert(label.as_str()), "{} twice", label.as_str());
            assert!(
                label.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{}",
                label.as_str()
            );
        }
        assert!(!L::ALL.is_empty());
    }

    #[test]
    fn sets_are_closed_and_ordered() {
        is_closed_and_ordered::<Mode>();
        is_closed_and_ordered::<Outcome>();
        is_closed_and_ordered::<Source>();
        is_closed_and_ordered::<Direction>();
        is_closed_and_ordered::<TokenDirection>();
        is_closed_and_ordered::<TokenKind>();
        is_closed_and_ordered::<MissingReason>();
        is_closed_and_ordered::<Protocol>();
        is_closed_and_ordered::<Streaming>();
        is_closed_and_ordered::<RefusedReason>();
        is_closed_and_ordered::<HandshakeResult>();
        is_closed_and_ordered::<AuthenticationFailure>();
        is_closed_and_ordered::<LimitLabel>();
        is_closed_and_ordered::<Decision>();
        is_closed_and_ordered::<Basis>();
        is_closed_and_ordered::<Resource>();
        is_closed_and_ordered::<KeyState>();
        is_closed_and_ordered::<ProviderKeyState>();
        is_closed_and_ordered::<EventResult>();
        is_closed_and_ordered::<BudgetScope>();
        is_closed_and_ordered::<ConnectResult>();
        is_closed_and_ordered::<FailureReason>();
        is_closed_and_ordered::<RetryReason>();
        is_closed_and_ordered::<Phase>();
        is_closed_and_ordered::<Guard>();
        is_closed_and_ordered::<ProcessGuard>();
        is_closed_and_ordered::<LogLevel>();
        is_closed_and_ordered::<ReloadResult>();
        is_closed_and_ordered::<ListenerKind>();
        is_closed_and_ordered::<IoFault>();
        is_closed_and_ordered::<StatusLabel>();
        is_closed_and_ordered::<Provider>();
        is_closed_and_ordered::<Operation>();
    }

    #[test]
    fn every_status_has_a_label() {
        let own: HashSet<&str> = StatusLabel::ALL.iter().map(|label| label.as_str()).collect();
        for status in 0..=u16::MAX {
            let label = StatusLabel::from(status).as_str();
            let code = status.to_string();
            if own.contains(code.as_str()) {
                assert_eq!(label, code);
            } else {
                let class = (status / 100).clamp(1, 5);
                assert_eq!(label, format!("{class}xx"), "{status}");
            }
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "openai", "eu-west_1", &"x".repeat(64)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", InvalidName::Length),
            (&*"x".repeat(65), InvalidName::Length),
            ("1a", InvalidName::Letters),
            ("-a", InvalidName::Letters),
            ("A", InvalidName::Letters),
            ("a b", InvalidName::Letters),
            ("a\n", InvalidName::Letters),
            ("a\"", InvalidName::Letters),
            ("ä", InvalidName::Letters),
            ("none", InvalidName::Reserved),
        ] {
            assert_eq!(Name::new(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn labels_of_keys_are_checked() {
        for good in ["a", "Team.7_eu-west", "0", "-", "none", &"x".repeat(64)] {
            assert_eq!(KeyLabel::new(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", InvalidName::Length),
            (&*"x".repeat(65), InvalidName::Length),
            ("a b", InvalidName::Letters),
            ("a\n", InvalidName::Letters),
            ("a\"", InvalidName::Letters),
            ("a/b", InvalidName::Letters),
            ("a,b", InvalidName::Letters),
            ("ä", InvalidName::Letters),
        ] {
            assert_eq!(KeyLabel::new(bad), Err(why), "{bad:?}");
        }
        assert_eq!(KeyLabel::from(&Name::new("openai").unwrap()), KeyLabel::new("openai").unwrap());
    }

    #[test]
    fn io_errors_lose_their_text() {
        assert_eq!(IoFault::from(&io::Error::from_raw_os_error(24)), IoFault::TooManyFiles);
        assert_eq!(IoFault::from(&io::Error::from_raw_os_error(98)), IoFault::AddressInUse);
        assert_eq!(IoFault::from(&io::Error::other("a prompt")), IoFault::Other);
    }
}
