//! HTTP messages on their way through: what `http` has for them, but for the fields of their heads.
//!
//! A head's fields are a list here and no map. A proxy looks for some of them, takes some off and writes the rest: going
//! through twenty of them costs less than one hash of a name, and the order in which they came stays.

use std::sync::LazyLock;

use bytes::BytesMut;
use http::Extensions;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::Version;
use http::header;

/// A request: its head and its body.
pub(crate) struct Request<B> {
    parts: RequestParts,
    body: B,
}

/// A request's head.
pub(crate) struct RequestParts {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: Fields,
    /// What hyper says of an h2 stream.
    pub(crate) extensions: Extensions,
}

/// An answer: its head and its body.
pub(crate) struct Response<B> {
    parts: ResponseParts,
    body: B,
}

/// An answer's head.
pub(crate) struct ResponseParts {
    pub(crate) status: StatusCode,
    pub(crate) headers: Fields,
}

impl<B> Request<B> {
    pub(crate) fn new(parts: RequestParts, body: B) -> Self {
        Self { parts, body }
    }

    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.parts.uri
    }

    pub(crate) fn version(&self) -> Version {
        self.parts.version
    }

    pub(crate) fn headers(&self) -> &Fields {
        &self.parts.headers
    }

    pub(crate) fn headers_mut(&mut self) -> &mut Fields {
        &mut self.parts.headers
    }

    pub(crate) fn extensions(&self) -> &Extensions {
        &self.parts.extensions
    }

    pub(crate) fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.parts.extensions
    }

    pub(crate) fn body(&self) -> &B {
        &self.body
    }

    pub(crate) fn into_body(self) -> B {
        self.body
    }

    pub(crate) fn into_parts(self) -> (RequestParts, B) {
        (self.parts, self.body)
    }
}

/// As hyper gives it.
impl<B> From<http::Request<B>> for Request<B> {
    fn from(request: http::Request<B>) -> Self {
        let (parts, body) = request.into_parts();
        let http::request::Parts { method, uri, version, headers, extensions, .. } = parts;
        Self { parts: RequestParts { method, uri, version, headers: headers.into(), extensions }, body }
    }
}

impl<B> Response<B> {
    /// 200 without a field.
    pub(crate) fn new(body: B) -> Self {
        Self { parts: ResponseParts { status: StatusCode::OK, headers: Fields::default() }, body }
    }

    pub(crate) fn of(status: StatusCode, headers: Fields, body: B) -> Self {
        Self { parts: ResponseParts { status, headers }, body }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.parts.status
    }

    pub(crate) fn status_mut(&mut self) -> &mut StatusCode {
        &mut self.parts.status
    }

    #[cfg(test)]
    pub(crate) fn headers(&self) -> &Fields {
        &self.parts.headers
    }

    pub(crate) fn headers_mut(&mut self) -> &mut Fields {
        &mut self.parts.headers
    }

    pub(crate) fn map<C>(self, change: impl FnOnce(B) -> C) -> Response<C> {
        Response { parts: self.parts, body: change(self.body) }
    }

    pub(crate) fn into_parts(self) -> (ResponseParts, B) {
        (self.parts, self.body)
    }

    /// As hyper wants it.
    pub(crate) fn into_http(self) -> http::Response<B> {
        let mut response = http::Response::new(self.body);
        *response.status_mut() = self.parts.status;
        *response.headers_mut() = self.parts.headers.into();
        response
    }
}

/// The fields of a head, in the order in which they came. Names are in lower case, and one may stand more than once.
#[derive(Clone, Default)]
pub(crate) struct Fields {
    list: Vec<Field>,
    names: Names,
}

#[derive(Clone)]
struct Field {
    name: FieldName,
    value: HeaderValue,
}

/// A field's name.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum FieldName {
    Known(Known),
    /// One that is not among [`KNOWN`].
    Other(HeaderName),
}

/// Whether a name is one of [`KNOWN`], and which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known(u8);

/// The names that may stand in a list: all that do, and perhaps some that were taken off. Most of what is looked for in a
/// head is not there.
#[derive(Clone, Copy, Default)]
struct Names([u64; 4]);

/// What a field is looked for by.
pub(crate) trait Name {
    fn known(&self) -> Known;

    /// Of two names that are both not known.
    fn is(&self, name: &HeaderName) -> bool;
}

impl Name for Known {
    fn known(&self) -> Known {
        *self
    }

    fn is(&self, _name: &HeaderName) -> bool {
        false
    }
}

impl Name for &HeaderName {
    fn known(&self) -> Known {
        Known::find(self.as_str().as_bytes())
    }

    fn is(&self, name: &HeaderName) -> bool {
        *self == name
    }
}

/// In lower case.
impl Name for &str {
    fn known(&self) -> Known {
        Known::find(self.as_bytes())
    }

    fn is(&self, name: &HeaderName) -> bool {
        name.as_str() == *self
    }
}

impl FieldName {
    fn known(&self) -> Known {
        match self {
            Self::Known(known) => *known,
            Self::Other(_) => Known::NOT,
        }
    }

    fn header(&self) -> &HeaderName {
        match self {
            Self::Known(known) => &KNOWN[usize::from(known.0)],
            Self::Other(name) => name,
        }
    }
}

impl From<Known> for FieldName {
    fn from(known: Known) -> Self {
        Self::Known(known)
    }
}

impl From<HeaderName> for FieldName {
    fn from(name: HeaderName) -> Self {
        match Known::find(name.as_str().as_bytes()) {
            Known::NOT => Self::Other(name),
            known => Self::Known(known),
        }
    }
}

impl Names {
    fn add(&mut self, known: Known) {
        self.0[usize::from(known.0 / 64)] |= 1 << (known.0 % 64);
    }

    fn have(&self, known: Known) -> bool {
        self.0[usize::from(known.0 / 64)] >> (known.0 % 64) & 1 == 1
    }
}

impl Fields {
    /// Without any, and with room for so many.
    pub(crate) fn with_capacity(fields: usize) -> Self {
        Self { list: Vec::with_capacity(fields), names: Names::default() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Fields as they were read, with room for some that are put to them. `None`: a name or a value is none (RFC 9110
    /// sections 5.1 and 5.5).
    ///
    /// Values share a block, which is cleared when the last of them goes; credentials have one of their own, since they are
    /// taken off long before the others go.
    pub(crate) fn read<'b>(pairs: impl ExactSizeIterator<Item = (&'b [u8], &'b [u8])> + Clone) -> Option<Self> {
        let mut fields = Self::with_capacity(pairs.len() + ROOM);
        let mut block = BytesMut::with_capacity(pairs.clone().map(|(_, value)| value.len()).sum());
        for (name, value) in pairs {
            let (name, shares) = match Known::find(name) {
                Known::NOT => (FieldName::Other(HeaderName::from_bytes(name).ok()?), false),
                known => (FieldName::Known(known), known.of(&SHARES).copied().unwrap_or_default()),
            };
            let value = if shares {
                block.extend_from_slice(value);
                HeaderValue::from_maybe_shared(block.split().freeze()).ok()?
            } else {
                HeaderValue::from_bytes(value).ok()?
            };
            fields.push(name, value);
        }
        Some(fields)
    }

    fn push(&mut self, name: FieldName, value: HeaderValue) {
        self.names.add(name.known());
        self.list.push(Field { name, value });
    }

    /// Adds one behind all others.
    pub(crate) fn append(&mut self, name: impl Into<FieldName>, value: HeaderValue) {
        self.push(name.into(), value);
    }

    /// Puts one in the place of the first that has its name, and takes the others off; behind all others if none has.
    pub(crate) fn insert(&mut self, name: impl Into<FieldName>, value: HeaderValue) {
        let name = name.into();
        if !self.names.have(name.known()) {
            return self.push(name, value);
        }
        let Some(place) = self.list.iter().position(|field| field.name == name) else { return self.push(name, value) };
        self.list[place].value = value;
        if self.list[place + 1..].iter().all(|field| field.name != name) {
            return;
        }
        let mut index = 0;
        self.list.retain(|field| {
            index += 1;
            index <= place + 1 || field.name != name
        });
    }

    /// Takes off all with a name.
    pub(crate) fn remove(&mut self, name: impl Name) {
        let known = name.known();
        if self.names.have(known) {
            self.list.retain(|field| !field.has(known, &name));
        }
    }

    /// Takes off all that `keeps` does not want.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&HeaderName, Known) -> bool) {
        self.list.retain(|field| keeps(field.name.header(), field.name.known()));
    }

    /// The value of the first with a name.
    pub(crate) fn get(&self, name: impl Name) -> Option<&HeaderValue> {
        self.get_all(name).next()
    }

    /// The values of all with a name.
    pub(crate) fn get_all<N: Name>(&self, name: N) -> impl Iterator<Item = &HeaderValue> + use<'_, N> {
        let known = name.known();
        let list = if self.names.have(known) { &self.list[..] } else { &[] };
        list.iter().filter(move |field| field.has(known, &name)).map(|field| &field.value)
    }

    /// Whether one has the name.
    pub(crate) fn contains_key(&self, name: impl Name) -> bool {
        self.get(name).is_some()
    }

    /// Their names, each as often as it stands there.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&HeaderName, Known)> {
        self.list.iter().map(|field| (field.name.header(), field.name.known()))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.list.iter().map(|field| (field.name.header(), &field.value))
    }

    /// All of them, with values that may be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&HeaderName, &mut HeaderValue)> {
        self.list.iter_mut().map(|field| (field.name.header(), &mut field.value))
    }
}

impl Field {
    /// Whether it has `name`, which is `known`.
    fn has(&self, known: Known, name: &impl Name) -> bool {
        match &self.name {
            FieldName::Known(own) => *own == known,
            FieldName::Other(own) => known == Known::NOT && name.is(own),
        }
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len() + ROOM);
        let mut last = None;
        // A name that stands more than once is said once.
        for (name, value) in map {
            last = name.map(FieldName::from).or(last);
            if let Some(name) = &last {
                fields.push(name.clone(), value);
            }
        }
        fields
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for Field { name, value } in fields.list {
            map.append(name.header(), value);
        }
        map
    }
}

impl<N: Into<FieldName>> FromIterator<(N, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, HeaderValue)>>(pairs: I) -> Self {
        let mut fields = Self::default();
        pairs.into_iter().for_each(|(name, value)| fields.append(name, value));
        fields
    }
}

#[cfg(test)]
impl std::ops::Index<&str> for Fields {
    type Output = HeaderValue;

    fn index(&self, name: &str) -> &HeaderValue {
        self.get(name).expect("a field")
    }
}

/// As many are put to a head on its way.
const ROOM: usize = 8;

impl Known {
    /// Not one of them.
    pub(crate) const NOT: Self = Self(u8::MAX);

    /// Of a name in any case.
    fn find(name: &[u8]) -> Self {
        let mut slot = slot_of(name);
        loop {
            let place = INDEX[slot];
            match TEXTS.get(usize::from(place)) {
                None => return Self::NOT,
                // Most are written in lower case already, which is seen sooner.
                Some(known) if known.as_bytes() == name || known.as_bytes().eq_ignore_ascii_case(name) => {
                    return Self(place);
                }
                Some(_) => slot = (slot + 1) % SLOTS,
            }
        }
    }

    /// Of a name in lower case that is one of [`KNOWN`]; anything else does not compile where this makes a constant.
    pub(crate) const fn named(name: &str) -> Self {
        let mut place = 0;
        loop {
            if same(TEXTS[place].as_bytes(), name.as_bytes()) {
                return Self(place as u8);
            }
            place += 1;
        }
    }

    /// Its place in what [`Known::each`] made. `None`: the name has to be looked at.
    pub(crate) fn of<T>(self, made: &[T]) -> Option<&T> {
        made.get(usize::from(self.0))
    }

    /// What `make` says of each known name.
    pub(crate) fn each<T>(make: impl Fn(&HeaderName) -> T) -> Vec<T> {
        KNOWN.iter().map(make).collect()
    }
}

/// Names that are looked for on the way of each request, found when this is compiled.
pub(crate) mod name {
    use super::Known;

    pub(crate) const ACCEPT_ENCODING: Known = Known::named("accept-encoding");
    pub(crate) const ANTHROPIC_BETA: Known = Known::named("anthropic-beta");
    pub(crate) const ANTHROPIC_VERSION: Known = Known::named("anthropic-version");
    pub(crate) const API_KEY: Known = Known::named("api-key");
    pub(crate) const AUTHORIZATION: Known = Known::named("authorization");
    pub(crate) const CONNECTION: Known = Known::named("connection");
    pub(crate) const CONTENT_ENCODING: Known = Known::named("content-encoding");
    pub(crate) const CONTENT_LENGTH: Known = Known::named("content-length");
    pub(crate) const CONTENT_TYPE: Known = Known::named("content-type");
    pub(crate) const DATE: Known = Known::named("date");
    pub(crate) const EXPECT: Known = Known::named("expect");
    pub(crate) const HOST: Known = Known::named("host");
    pub(crate) const RETRY_AFTER: Known = Known::named("retry-after");
    pub(crate) const SEC_WEBSOCKET_ACCEPT: Known = Known::named("sec-websocket-accept");
    pub(crate) const SEC_WEBSOCKET_EXTENSIONS: Known = Known::named("sec-websocket-extensions");
    pub(crate) const SEC_WEBSOCKET_KEY: Known = Known::named("sec-websocket-key");
    pub(crate) const SEC_WEBSOCKET_PROTOCOL: Known = Known::named("sec-websocket-protocol");
    pub(crate) const SEC_WEBSOCKET_VERSION: Known = Known::named("sec-websocket-version");
    pub(crate) const TE: Known = Known::named("te");
    pub(crate) const TRANSFER_ENCODING: Known = Known::named("transfer-encoding");
    pub(crate) const UPGRADE: Known = Known::named("upgrade");
    pub(crate) const USER_AGENT: Known = Known::named("user-agent");
    pub(crate) const X_API_KEY: Known = Known::named("x-api-key");
    pub(crate) const X_GOOG_API_CLIENT: Known = Known::named("x-goog-api-client");
    pub(crate) const X_GOOG_API_KEY: Known = Known::named("x-goog-api-key");
}

/// Whether a known name's value may stand in a block with others.
static SHARES: LazyLock<Vec<bool>> = LazyLock::new(|| Known::each(|name| !OWN_BLOCK.contains(name)));

/// What shows who somebody is.
static OWN_BLOCK: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SET_COOKIE,
    HeaderName::from_static("api-key"),
    HeaderName::from_static("set-cookie2"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

const SLOTS: usize = 512;

/// Where names stand in [`KNOWN`], by [`slot_of`] and what follows.
static INDEX: [u8; SLOTS] = {
    let mut index = [u8::MAX; SLOTS];
    let mut place = 0;
    while place < TEXTS.len() {
        let mut slot = slot_of(TEXTS[place].as_bytes());
        while index[slot] != u8::MAX {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = place as u8;
        place += 1;
    }
    index
};

const fn same(one: &[u8], other: &[u8]) -> bool {
    let mut place = 0;
    while place < one.len() && place < other.len() && one[place] == other[place] {
        place += 1;
    }
    place == one.len() && place == other.len()
}

/// Spreads names by their length and some of their letters, in any case.
const fn slot_of(name: &[u8]) -> usize {
    let len = name.len();
    if len == 0 {
        return 0;
    }
    let fourth = if len < 4 { 0 } else { name[len - 4] };
    let letters = [name[0], name[len / 2], name[len - 1], fourth];
    let mixed = len.wrapping_mul(37)
        ^ ((letters[0] | 0x20) as usize).wrapping_mul(3)
        ^ ((letters[1] | 0x20) as usize).wrapping_mul(11)
        ^ ((letters[2] | 0x20) as usize).wrapping_mul(23);
    (mixed ^ ((letters[3] | 0x20) as usize).wrapping_mul(61)) % SLOTS
}

macro_rules! known {
    ($($name:literal,)*) => {
        const TEXTS: &[&str] = &[$($name,)*];

        /// Names that clients, SDKs and providers send, and all that something is done about: they are found without a block of
        /// their own.
        static KNOWN: [HeaderName; TEXTS.len()] = [$(HeaderName::from_static($name),)*];
    };
}

known! {
    "accept",
    "accept-encoding",
    "accept-language",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "allow",
    "alt-svc",
    "anthropic-beta",
    "anthropic-dangerous-direct-browser-access",
    "anthropic-organization-id",
    "anthropic-ratelimit-input-tokens-limit",
    "anthropic-ratelimit-input-tokens-remaining",
    "anthropic-ratelimit-input-tokens-reset",
    "anthropic-ratelimit-output-tokens-limit",
    "anthropic-ratelimit-output-tokens-remaining",
    "anthropic-ratelimit-output-tokens-reset",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-tokens-limit",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-tokens-reset",
    "anthropic-user-profile-id",
    "anthropic-version",
    "anthropic-workspace-id",
    "api-key",
    "apim-request-id",
    "authorization",
    "azureml-model-session",
    "b3",
    "baggage",
    "cache-control",
    "cf-cache-status",
    "cf-ray",
    "connection",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "conversation-id",
    "conversation_id",
    "cookie",
    "date",
    "digest",
    "dnt",
    "etag",
    "expect",
    "expires",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "host",
    "http-referer",
    "http2-settings",
    "idempotency-key",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "nel",
    "openai-beta",
    "openai-model",
    "openai-organization",
    "openai-processing-ms",
    "openai-project",
    "openai-version",
    "origin",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "referer",
    "report-to",
    "reporting-endpoints",
    "repr-digest",
    "request-id",
    "retry-after",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "server",
    "server-timing",
    "session-id",
    "session_id",
    "set-cookie",
    "set-cookie2",
    "strict-transport-security",
    "te",
    "thread-id",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "true-client-ip",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
    "x-amzn-trace-id",
    "x-api-key",
    "x-app",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-client-ip",
    "x-client-request-id",
    "x-cloud-trace-context",
    "x-cluster-client-ip",
    "x-codex-installation-id",
    "x-codex-turn-metadata",
    "x-codex-turn-state",
    "x-codex-window-id",
    "x-content-type-options",
    "x-envoy-upstream-service-time",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-gemini-api-privileged-user-id",
    "x-goog-api-client",
    "x-goog-api-key",
    "x-goog-user-project",
    "x-ms-client-request-id",
    "x-ms-region",
    "x-openrouter-categories",
    "x-openrouter-title",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-real-ip",
    "x-request-id",
    "x-request-start",
    "x-robots-tag",
    "x-should-retry",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-helper",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-read-timeout",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
    "x-title",
}

/// The door for `benches/request.rs`, in no other build.
#[cfg(feature = "skip-measures")]
pub mod bench {
    use super::Fields;

    /// A head's fields.
    pub struct Head(pub(crate) Fields);

    impl Head {
        /// As they are read from a connection.
        pub fn read(fields: &[(&str, &str)]) -> Self {
            let pairs = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            Self(Fields::read(pairs).expect("fields"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> Fields {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn pairs(fields: &Fields) -> Vec<(&str, &str)> {
        fields.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect()
    }

    #[test]
    fn fields_keep_their_order_and_their_twins() {
        let mut list = fields(&[("b", "1"), ("a", "2"), ("b", "3"), ("c", "4")]);
        assert_eq!(list.get("b").map(HeaderValue::as_bytes), Some(&b"1"[..]));
        assert_eq!(list.get_all("b").count(), 2);
        list.insert(HeaderName::from_static("b"), HeaderValue::from_static("5"));
        list.append(HeaderName::from_static("a"), HeaderValue::from_static("6"));
        assert_eq!(pairs(&list), [("b", "5"), ("a", "2"), ("c", "4"), ("a", "6")]);
        list.insert(HeaderName::from_static("d"), HeaderValue::from_static("7"));
        list.remove("a");
        list.remove("not-there");
        assert_eq!(pairs(&list), [("b", "5"), ("c", "4"), ("d", "7")]);
        list.retain(|name, _| name.as_str() != "c");
        assert_eq!(pairs(&list), [("b", "5"), ("d", "7")]);
    }

    #[test]
    fn there_and_back_through_a_map() {
        let list = fields(&[("b", "1"), ("a", "2"), ("b", "3"), ("content-type", "4")]);
        let map = HeaderMap::from(list.clone());
        assert_eq!(map.get_all("b").iter().collect::<Vec<_>>(), ["1", "3"]);
        let back = Fields::from(map);
        let mut sorted = pairs(&back);
        sorted.sort_unstable();
        assert_eq!(sorted, [("a", "2"), ("b", "1"), ("b", "3"), ("content-type", "4")]);
    }

    #[test]
    fn known_names_are_found_in_any_case_and_others_are_not() {
        for (place, name) in KNOWN.iter().enumerate() {
            let text = name.as_str();
            assert!(KNOWN[place + 1..].iter().all(|other| other != name), "{text} stands twice");
            for written in [text.to_owned(), text.to_ascii_uppercase()] {
                assert!(Known::find(written.as_bytes()) == Known(place as u8), "{written}");
            }
            for other in [format!("{text}x"), format!("x{text}"), text[1..].to_owned()] {
                let found = KNOWN.get(usize::from(Known::find(other.as_bytes()).0));
                assert!(found.is_none_or(|found| found.as_str() == other), "{other}");
            }
        }
        assert!(KNOWN.len() < 200, "there is room between them");
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let read = |pairs: &[(&'static str, &'static str)]| {
            let bytes: Vec<_> = pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            Fields::read(bytes.into_iter())
        };
        let fields = read(&[
            ("Content-Type", "a"),
            ("X-Anything", "b"),
            ("Authorization", "Bearer c"),
            ("Date", ""),
            ("Host", "d\t\u{e9}"),
            ("x-anything", "e"),
        ]);
        let fields = fields.expect("fields");
        let written: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(
            written,
            [
                ("content-type", &b"a"[..]),
                ("x-anything", b"b"),
                ("authorization", b"Bearer c"),
                ("date", b""),
                ("host", "d\t\u{e9}".as_bytes()),
                ("x-anything", b"e"),
            ]
        );
        for wrong in [("a b", "c"), ("", "c"), ("a", "\n"), ("host", "a\r\nb: c"), ("host", "\0"), ("accept", "\u{7f}")]
        {
            assert!(read(&[("host", "a"), wrong]).is_none(), "{wrong:?}");
        }
        assert_eq!(OWN_BLOCK.iter().filter(|name| Known::find(name.as_str().as_bytes()) == Known::NOT).count(), 0);
    }
}
