//! HTTP messages on their way through: what `http` has for them, but for the fields of their heads.
//!
//! A head's fields are a list here and no map. A proxy looks for some of them, takes some off and writes the rest: going
//! through twenty of them costs less than one hash of a name, and the order in which they came stays.

use std::sync::LazyLock;

use bytes::Bytes;
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
pub(crate) struct Fields(Vec<Field>);

#[derive(Clone)]
struct Field {
    known: Known,
    name: HeaderName,
    value: HeaderValue,
}

/// Whether a name is one of [`KNOWN`], and which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known(u8);

/// What a field is looked for by.
pub(crate) trait Name {
    fn is(&self, name: &HeaderName) -> bool;
}

impl Name for HeaderName {
    fn is(&self, name: &HeaderName) -> bool {
        self == name
    }
}

impl Name for &HeaderName {
    fn is(&self, name: &HeaderName) -> bool {
        *self == name
    }
}

/// In lower case.
impl Name for &str {
    fn is(&self, name: &HeaderName) -> bool {
        name.as_str() == *self
    }
}

impl Fields {
    /// Without any, and with room for so many.
    pub(crate) fn with_capacity(fields: usize) -> Self {
        Self(Vec::with_capacity(fields))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Fields as they were read, with room for some that are put to them. `None`: a name or a value is none (RFC 9110
    /// sections 5.1 and 5.5).
    ///
    /// Values share a block, which is cleared when the last of them goes; credentials have one of their own, since they are
    /// taken off long before the others go.
    pub(crate) fn read<'b>(pairs: impl ExactSizeIterator<Item = (&'b [u8], &'b [u8])> + Clone) -> Option<Self> {
        let mut fields = Self::with_capacity(pairs.len() + ROOM);
        let mut block = Vec::with_capacity(pairs.clone().map(|(_, value)| value.len()).sum());
        for (name, value) in pairs.clone() {
            let known = Known::find(name);
            let name = match known.name() {
                Some(name) => name.clone(),
                None => HeaderName::from_bytes(name).ok()?,
            };
            let value = if known.of(&SHARES).copied().unwrap_or_default() {
                block.extend_from_slice(value);
                HeaderValue::from_static("")
            } else {
                HeaderValue::from_bytes(value).ok()?
            };
            fields.0.push(Field { known, name, value });
        }
        let (block, mut start) = (Bytes::from(block), 0);
        for (field, (_, value)) in fields.0.iter_mut().zip(pairs) {
            if field.known.of(&SHARES).copied().unwrap_or_default() {
                let end = start + value.len();
                field.value = HeaderValue::from_maybe_shared(block.slice(start..end)).ok()?;
                start = end;
            }
        }
        Some(fields)
    }

    /// Adds one behind all others.
    pub(crate) fn append(&mut self, name: impl Into<HeaderName>, value: HeaderValue) {
        let name = name.into();
        self.0.push(Field { known: Known::find(name.as_str().as_bytes()), name, value });
    }

    /// Puts one in the place of the first that has its name, and takes the others off; behind all others if none has.
    pub(crate) fn insert(&mut self, name: impl Into<HeaderName>, value: HeaderValue) {
        let name = name.into();
        let Some(place) = self.0.iter().position(|field| field.name == name) else { return self.append(name, value) };
        self.0[place].value = value;
        let mut index = 0;
        self.0.retain(|field| {
            index += 1;
            index <= place + 1 || field.name != name
        });
    }

    /// Takes off all with a name.
    pub(crate) fn remove(&mut self, name: impl Name) {
        if self.0.iter().any(|field| name.is(&field.name)) {
            self.0.retain(|field| !name.is(&field.name));
        }
    }

    /// Takes off all that `keeps` does not want.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&HeaderName, Known) -> bool) {
        self.0.retain(|field| keeps(&field.name, field.known));
    }

    /// The value of the first with a name.
    pub(crate) fn get(&self, name: impl Name) -> Option<&HeaderValue> {
        self.0.iter().find(|field| name.is(&field.name)).map(|field| &field.value)
    }

    /// The values of all with a name.
    pub(crate) fn get_all(&self, name: impl Name) -> impl Iterator<Item = &HeaderValue> {
        self.0.iter().filter(move |field| name.is(&field.name)).map(|field| &field.value)
    }

    /// Whether one has the name.
    pub(crate) fn contains_key(&self, name: impl Name) -> bool {
        self.0.iter().any(|field| name.is(&field.name))
    }

    /// Their names, each as often as it stands there.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|field| &field.name)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|field| (&field.name, &field.value))
    }

    /// All of them, with values that may be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&HeaderName, &mut HeaderValue)> {
        self.0.iter_mut().map(|field| (&field.name, &mut field.value))
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len() + ROOM);
        let mut last = None;
        // A name that stands more than once is said once.
        for (name, value) in map {
            last = name.or(last);
            if let Some(name) = &last {
                fields.append(name.clone(), value);
            }
        }
        fields
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for Field { name, value, .. } in fields.0 {
            map.append(name, value);
        }
        map
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(pairs: I) -> Self {
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
    const NOT: Self = Self(u8::MAX);

    /// Of a name in any case.
    fn find(name: &[u8]) -> Self {
        let mut slot = slot_of(name);
        loop {
            let place = INDEX[slot];
            match KNOWN.get(usize::from(place)) {
                None => return Self::NOT,
                Some(known) if known.as_str().as_bytes().eq_ignore_ascii_case(name) => return Self(place),
                Some(_) => slot = (slot + 1) % SLOTS,
            }
        }
    }

    fn name(self) -> Option<&'static HeaderName> {
        KNOWN.get(usize::from(self.0))
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
static INDEX: LazyLock<[u8; SLOTS]> = LazyLock::new(|| {
    let mut index = [u8::MAX; SLOTS];
    for (place, name) in KNOWN.iter().enumerate() {
        let mut slot = slot_of(name.as_str().as_bytes());
        while index[slot] != u8::MAX {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = place as u8;
    }
    index
});

/// Spreads names by their length and some of their letters, in any case.
fn slot_of(name: &[u8]) -> usize {
    let len = name.len();
    let at = |place: usize| usize::from(name.get(place).copied().unwrap_or_default() | 0x20);
    let mixed = len.wrapping_mul(37)
        ^ at(0).wrapping_mul(3)
        ^ at(len / 2).wrapping_mul(11)
        ^ at(len.wrapping_sub(1)).wrapping_mul(23);
    (mixed ^ at(len.wrapping_sub(4)).wrapping_mul(61)) % SLOTS
}

/// Names that clients, SDKs and providers send, and all that something is done about: they are found without a block of
/// their own.
static KNOWN: [HeaderName; 154] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ALLOW,
    header::ALT_SVC,
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("anthropic-dangerous-direct-browser-access"),
    HeaderName::from_static("anthropic-organization-id"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-input-tokens-reset"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-output-tokens-reset"),
    HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
    HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
    HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
    HeaderName::from_static("anthropic-user-profile-id"),
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-workspace-id"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("apim-request-id"),
    header::AUTHORIZATION,
    HeaderName::from_static("azureml-model-session"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("baggage"),
    header::CACHE_CONTROL,
    HeaderName::from_static("cf-cache-status"),
    HeaderName::from_static("cf-ray"),
    header::CONNECTION,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    HeaderName::from_static("conversation-id"),
    HeaderName::from_static("conversation_id"),
    header::COOKIE,
    header::DATE,
    header::DNT,
    header::ETAG,
    header::EXPECT,
    header::EXPIRES,
    HeaderName::from_static("fastly-client-ip"),
    HeaderName::from_static("fly-client-ip"),
    header::FORWARDED,
    header::HOST,
    HeaderName::from_static("http-referer"),
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("keep-alive"),
    header::LAST_MODIFIED,
    header::LINK,
    header::LOCATION,
    HeaderName::from_static("nel"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("openai-model"),
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-processing-ms"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("openai-version"),
    header::ORIGIN,
    header::PRAGMA,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::REFERER,
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("request-id"),
    header::RETRY_AFTER,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
    header::SERVER,
    HeaderName::from_static("server-timing"),
    HeaderName::from_static("session-id"),
    HeaderName::from_static("session_id"),
    header::SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    header::STRICT_TRANSPORT_SECURITY,
    header::TE,
    HeaderName::from_static("thread-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    header::TRAILER,
    header::TRANSFER_ENCODING,
    HeaderName::from_static("true-client-ip"),
    header::UPGRADE,
    header::USER_AGENT,
    header::VARY,
    header::VIA,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("x-amzn-trace-id"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-app"),
    HeaderName::from_static("x-b3-parentspanid"),
    HeaderName::from_static("x-b3-sampled"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-client-request-id"),
    HeaderName::from_static("x-cloud-trace-context"),
    HeaderName::from_static("x-cluster-client-ip"),
    HeaderName::from_static("x-codex-installation-id"),
    HeaderName::from_static("x-codex-turn-metadata"),
    HeaderName::from_static("x-codex-turn-state"),
    HeaderName::from_static("x-codex-window-id"),
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderName::from_static("x-envoy-upstream-service-time"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-gemini-api-privileged-user-id"),
    HeaderName::from_static("x-goog-api-client"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("x-goog-user-project"),
    HeaderName::from_static("x-ms-client-request-id"),
    HeaderName::from_static("x-ms-region"),
    HeaderName::from_static("x-openrouter-categories"),
    HeaderName::from_static("x-openrouter-title"),
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-request-start"),
    HeaderName::from_static("x-robots-tag"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-stainless-arch"),
    HeaderName::from_static("x-stainless-async"),
    HeaderName::from_static("x-stainless-helper"),
    HeaderName::from_static("x-stainless-helper-method"),
    HeaderName::from_static("x-stainless-lang"),
    HeaderName::from_static("x-stainless-os"),
    HeaderName::from_static("x-stainless-package-version"),
    HeaderName::from_static("x-stainless-read-timeout"),
    HeaderName::from_static("x-stainless-retry-count"),
    HeaderName::from_static("x-stainless-runtime"),
    HeaderName::from_static("x-stainless-runtime-version"),
    HeaderName::from_static("x-stainless-timeout"),
    HeaderName::from_static("x-title"),
];

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
                assert!(Known::find(written.as_bytes()).name() == Some(name), "{written}");
            }
            for other in [format!("{text}x"), format!("x{text}"), text[1..].to_owned()] {
                let found = Known::find(other.as_bytes()).name();
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
