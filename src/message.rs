//! HTTP messages on their way through: what `http` has for them, but for the fields of their heads.
//!
//! A head's fields are a list here and no map. A proxy looks for some of them, takes some off and writes the rest: going
//! through twenty of them costs less than one hash of a name, and the order in which they came stays.

use bytes::BytesMut;
use http::Extensions;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Uri;
use http::Version;

use crate::hygiene::wipe::wipe;

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
///
/// All texts stand in one block, which is cleared when the head goes; what shows who somebody is is cleared as soon as it is
/// taken off.
#[derive(Clone, Default)]
pub(crate) struct Fields {
    list: Vec<Field>,
    names: Names,
    texts: Vec<u8>,
}

/// Where a field's texts stand in [`Fields::texts`].
#[derive(Clone, Copy)]
struct Field {
    known: Known,
    /// HPACK must not index it.
    sensitive: bool,
    /// Of a name that is not known.
    name: Span,
    value: Span,
}

/// A part of a block. Heads are far shorter than 4 GiB.
#[derive(Clone, Copy, Default)]
struct Span {
    at: u32,
    len: u32,
}

/// A field's value: no control characters but tabs (RFC 9110 section 5.5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Value<'f>(&'f [u8]);

/// Whether a name is one of [`KNOWN`], and which.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known(u8);

/// The names that may stand in a list: all that do, and perhaps some that were taken off. Most of what is looked for in a
/// head is not there.
#[derive(Clone, Copy, Default)]
pub(crate) struct Names([u64; 4]);

/// What a field is looked for by; text in lower case.
pub(crate) trait Name {
    fn known(&self) -> Known;

    fn text(&self) -> &str;
}

/// What a field can be named: a token (RFC 9110 section 5.6.2) in lower case.
pub(crate) trait FieldName: Name {}

impl Name for Known {
    fn known(&self) -> Known {
        *self
    }

    fn text(&self) -> &str {
        TEXTS.get(usize::from(self.0)).copied().unwrap_or_default()
    }
}

impl FieldName for Known {}

impl Name for HeaderName {
    fn known(&self) -> Known {
        Known::find(self.as_str().as_bytes())
    }

    fn text(&self) -> &str {
        self.as_str()
    }
}

impl FieldName for HeaderName {}

impl Name for &HeaderName {
    fn known(&self) -> Known {
        (*self).known()
    }

    fn text(&self) -> &str {
        self.as_str()
    }
}

impl FieldName for &HeaderName {}

impl Name for &str {
    fn known(&self) -> Known {
        Known::find(self.as_bytes())
    }

    fn text(&self) -> &str {
        self
    }
}

impl Names {
    /// With these in it.
    pub(crate) const fn of(known: &[Known]) -> Self {
        let (mut names, mut place) = (Self([0; 4]), 0);
        while place < known.len() {
            let known = known[place].0;
            names.0[(known / 64) as usize] |= 1 << (known % 64);
            place += 1;
        }
        names
    }

    fn add(&mut self, known: Known) {
        self.0[usize::from(known.0 / 64)] |= 1 << (known.0 % 64);
    }

    fn have(&self, known: Known) -> bool {
        self.0[usize::from(known.0 / 64)] >> (known.0 % 64) & 1 == 1
    }
}

impl<'f> Value<'f> {
    /// Written here. Where it makes a constant, anything else does not compile.
    pub(crate) const fn of(text: &'static str) -> Value<'static> {
        let mut place = 0;
        while place < text.len() {
            assert!(may_stand(text.as_bytes()[place]), "a control character");
            place += 1;
        }
        Value(text.as_bytes())
    }

    /// `None`: it has a control character.
    pub(crate) fn new(bytes: &'f [u8]) -> Option<Self> {
        bytes.iter().all(|byte| may_stand(*byte)).then_some(Self(bytes))
    }

    pub(crate) fn as_bytes(self) -> &'f [u8] {
        self.0
    }

    /// `None`: there is more in it than ASCII.
    pub(crate) fn text(self) -> Option<&'f str> {
        std::str::from_utf8(self.0).ok().filter(|text| text.is_ascii())
    }

    /// For longer than its head lives.
    pub(crate) fn kept(self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.0).ok()
    }
}

impl<'f> From<&'f HeaderValue> for Value<'f> {
    fn from(value: &'f HeaderValue) -> Self {
        Self(value.as_bytes())
    }
}

impl PartialEq<&str> for Value<'_> {
    fn eq(&self, text: &&str) -> bool {
        self.0 == text.as_bytes()
    }
}

/// RFC 9110 section 5.5, and what is beyond ASCII.
const fn may_stand(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}

/// A token (RFC 9110 section 5.6.2) that `http` takes as a name.
fn is_name(name: &[u8]) -> bool {
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(of_token)
}

impl Span {
    fn of(self, texts: &[u8]) -> &[u8] {
        &texts[self.at as usize..][..self.len as usize]
    }
}

impl Field {
    fn name(self, texts: &[u8]) -> &str {
        match TEXTS.get(usize::from(self.known.0)) {
            Some(name) => name,
            // Names are ASCII.
            None => std::str::from_utf8(self.name.of(texts)).unwrap_or_default(),
        }
    }

    fn value(self, texts: &[u8]) -> Value<'_> {
        Value(self.value.of(texts))
    }

    /// Whether it has `name`, which is `known`.
    fn has(self, known: Known, name: &impl Name, texts: &[u8]) -> bool {
        self.known == known && (known != Known::NOT || self.name.of(texts) == name.text().as_bytes())
    }

    /// Clears what shows who somebody is; it is taken off long before the others go.
    fn leave(self, texts: &mut [u8]) {
        if self.sensitive || SECRET.have(self.known) {
            wipe(&mut texts[self.value.at as usize..][..self.value.len as usize]);
        }
    }
}

impl Fields {
    /// Without any, and with room for so many of so many bytes, and for some that are put to them.
    fn room_for(fields: usize, bytes: usize) -> Self {
        debug_assert!(u32::try_from(bytes).is_ok(), "a head is shorter");
        let (list, texts) = (Vec::with_capacity(fields + ROOM), Vec::with_capacity(bytes + ROOM_BYTES));
        Self { list, texts, names: Names::default() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Fields as a parser found them in a head: it has looked at the bytes of their values (RFC 9110 section 5.5). `None`: a
    /// name is none (section 5.1).
    pub(crate) fn read<'b>(pairs: impl ExactSizeIterator<Item = (&'b [u8], &'b [u8])> + Clone) -> Option<Self> {
        let bytes = pairs.clone().map(|(name, value)| name.len() + value.len()).sum();
        let mut fields = Self::room_for(pairs.len(), bytes);
        for (name, value) in pairs {
            debug_assert!(Value::new(value).is_some(), "a value");
            let known = Known::find(name);
            if known == Known::NOT && !is_name(name) {
                return None;
            }
            fields.push(known, name, Value(value), false);
        }
        Some(fields)
    }

    fn push(&mut self, known: Known, name: &[u8], value: Value<'_>, sensitive: bool) {
        let name = if known == Known::NOT {
            let span = self.put(name);
            self.texts[span.at as usize..].make_ascii_lowercase();
            span
        } else {
            Span::default()
        };
        let value = self.put(value.0);
        self.names.add(known);
        self.list.push(Field { known, sensitive, name, value });
    }

    fn put(&mut self, text: &[u8]) -> Span {
        let span = Span { at: self.texts.len() as u32, len: text.len() as u32 };
        self.texts.extend_from_slice(text);
        span
    }

    /// Adds one behind all others.
    pub(crate) fn append<'v>(&mut self, name: impl FieldName, value: impl Into<Value<'v>>) {
        self.push(name.known(), name.text().as_bytes(), value.into(), false);
    }

    /// Puts one in the place of the first that has its name, and takes the others off; behind all others if none has.
    pub(crate) fn insert<'v>(&mut self, name: impl FieldName, value: impl Into<Value<'v>>) {
        self.set(&name, value.into(), false);
    }

    /// The same for a value that HPACK must not index.
    pub(crate) fn insert_sensitive<'v>(&mut self, name: impl FieldName, value: impl Into<Value<'v>>) {
        self.set(&name, value.into(), true);
    }

    fn set(&mut self, name: &impl FieldName, value: Value<'_>, sensitive: bool) {
        let known = name.known();
        let mut places = 0..self.list.len();
        let first = places.find(|place| self.names.have(known) && self.list[*place].has(known, name, &self.texts));
        let Some(first) = first else { return self.push(known, name.text().as_bytes(), value, sensitive) };
        self.list[first].leave(&mut self.texts);
        self.list[first].value = self.put(value.0);
        self.list[first].sensitive = sensitive;
        if places.any(|place| self.list[place].has(known, name, &self.texts)) {
            let mut place = 0;
            self.take_off(|field, texts| {
                place += 1;
                place > first + 1 && field.has(known, name, texts)
            });
        }
    }

    fn take_off(&mut self, mut goes: impl FnMut(Field, &[u8]) -> bool) {
        let texts = &mut self.texts;
        self.list.retain(|field| {
            let goes = goes(*field, texts);
            if goes {
                field.leave(texts);
            }
            !goes
        });
    }

    /// Takes off all with a name.
    pub(crate) fn remove(&mut self, name: impl Name) {
        let known = name.known();
        if self.names.have(known) {
            self.take_off(|field, texts| field.has(known, &name, texts));
        }
    }

    /// Takes off all that `keeps` does not want.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&str, Known) -> bool) {
        self.take_off(|field, texts| !keeps(field.name(texts), field.known));
    }

    /// Marks all with one of `names`, and with `apart`: HPACK must not index their values.
    pub(crate) fn protect(&mut self, names: &Names, apart: Option<&HeaderName>) {
        let apart = apart.map(|name| (name, name.known()));
        for field in &mut self.list {
            field.sensitive |=
                names.have(field.known) || apart.is_some_and(|(name, known)| field.has(known, &name, &self.texts));
        }
    }

    /// The value of the first with a name.
    pub(crate) fn get(&self, name: impl Name) -> Option<Value<'_>> {
        self.get_all(name).next()
    }

    /// The values of all with a name.
    pub(crate) fn get_all<N: Name>(&self, name: N) -> impl Iterator<Item = Value<'_>> + use<'_, N> {
        let known = name.known();
        let list = if self.names.have(known) { &self.list[..] } else { &[] };
        let has = move |field: &&Field| field.has(known, &name, &self.texts);
        list.iter().filter(has).map(|field| field.value(&self.texts))
    }

    /// Whether one has the name.
    pub(crate) fn contains_key(&self, name: impl Name) -> bool {
        self.get(name).is_some()
    }

    /// Their names, each as often as it stands there.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, Known)> {
        self.list.iter().map(|field| (field.name(&self.texts), field.known))
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.list.iter().map(|field| (field.name(&self.texts), field.value(&self.texts)))
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let bytes = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let mut fields = Self::room_for(map.len(), bytes);
        for (name, value) in &map {
            fields.push(name.known(), name.as_str().as_bytes(), value.into(), value.is_sensitive());
        }
        fields
    }
}

/// Values share a block; what shows who somebody is has one of its own.
impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        let mut block = BytesMut::with_capacity(fields.texts.len());
        for field in &fields.list {
            let Value(bytes) = field.value(&fields.texts);
            let value = if field.sensitive || SECRET.have(field.known) {
                HeaderValue::from_bytes(bytes)
            } else {
                block.extend_from_slice(bytes);
                HeaderValue::from_maybe_shared(block.split().freeze())
            };
            let name = match KNOWN.get(usize::from(field.known.0)) {
                Some(name) => name.clone(),
                None => match HeaderName::from_bytes(field.name.of(&fields.texts)) {
                    Ok(name) => name,
                    Err(_) => continue,
                },
            };
            let Ok(mut value) = value else { continue };
            value.set_sensitive(field.sensitive);
            map.append(name, value);
        }
        map
    }
}

#[cfg(test)]
impl<N: FieldName> FromIterator<(N, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, HeaderValue)>>(pairs: I) -> Self {
        let mut fields = Self::default();
        pairs.into_iter().for_each(|(name, value)| fields.append(name, &value));
        fields
    }
}

#[cfg(test)]
impl std::ops::Index<&str> for Fields {
    type Output = str;

    fn index(&self, name: &str) -> &str {
        self.get(name).and_then(Value::text).expect("a field")
    }
}

/// As many are put to a head on its way, and so many bytes of them.
const ROOM: usize = 8;
const ROOM_BYTES: usize = 128;

/// The longest name that a [`HeaderName`] can be.
const NAME_BYTES_MAX: usize = (1 << 16) - 1;

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
    pub(crate) fn each<T>(make: impl Fn(&str) -> T) -> Vec<T> {
        TEXTS.iter().map(|name| make(name)).collect()
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

/// What shows who somebody is.
const SECRET: Names = Names::of(&[
    name::AUTHORIZATION,
    Known::named("cookie"),
    Known::named("proxy-authorization"),
    name::SEC_WEBSOCKET_PROTOCOL,
    Known::named("set-cookie"),
    name::API_KEY,
    Known::named("set-cookie2"),
    name::X_API_KEY,
    name::X_GOOG_API_KEY,
]);

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
        fields.iter().map(|(name, value)| (name, value.text().expect("text"))).collect()
    }

    #[test]
    fn fields_keep_their_order_and_their_twins() {
        let mut list = fields(&[("b", "1"), ("a", "2"), ("b", "3"), ("c", "4")]);
        assert_eq!(list.get("b").map(Value::as_bytes), Some(&b"1"[..]));
        assert_eq!(list.get_all("b").count(), 2);
        list.insert(HeaderName::from_static("b"), Value::of("5"));
        list.append(HeaderName::from_static("a"), Value::of("6"));
        assert_eq!(pairs(&list), [("b", "5"), ("a", "2"), ("c", "4"), ("a", "6")]);
        list.insert(HeaderName::from_static("d"), Value::of("7"));
        list.remove("a");
        list.remove("not-there");
        assert_eq!(pairs(&list), [("b", "5"), ("c", "4"), ("d", "7")]);
        list.retain(|name, _| name != "c");
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
        let written: Vec<_> = fields.iter().map(|(name, value)| (name, value.as_bytes())).collect();
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
        for wrong in ["a b", "", "a:", "\u{e9}", "a\n"] {
            assert!(read(&[("host", "a"), (wrong, "c")]).is_none(), "{wrong:?}");
        }
        for byte in 0..=u8::MAX {
            assert_eq!(is_name(&[byte]), HeaderName::from_bytes(&[byte]).is_ok(), "{byte:#x}");
        }
        for len in [NAME_BYTES_MAX, NAME_BYTES_MAX + 1] {
            let name = vec![b'a'; len];
            assert_eq!(is_name(&name), HeaderName::from_bytes(&name).is_ok(), "{len}");
        }
    }

    #[test]
    fn the_parser_takes_what_is_a_value_and_nothing_else() {
        for byte in 0..=u8::MAX {
            let line = [&b"a: x"[..], &[byte], b"x\r\n\r\n"].concat();
            let mut room = [httparse::EMPTY_HEADER; 2];
            let parsed = matches!(
                httparse::parse_headers(&line, &mut room),
                Ok(httparse::Status::Complete((_, [field]))) if field.value == [b'x', byte, b'x']
            );
            assert_eq!(parsed, Value::new(&[byte]).is_some(), "{byte:#x}");
            assert_eq!(HeaderValue::from_bytes(&[byte]).is_ok(), Value::new(&[byte]).is_some(), "{byte:#x}");
        }
    }

    #[test]
    fn what_shows_who_somebody_is_is_cleared_when_it_goes() {
        let left = |fields: &Fields, text: &[u8]| fields.texts.windows(text.len()).any(|part| part == text);
        let mut list =
            fields(&[("authorization", "Bearer one"), ("x-own", "two"), ("accept", "three"), ("cookie", "four")]);
        list.protect(&Names::default(), Some(&HeaderName::from_static("x-own")));
        list.remove("authorization");
        list.retain(|name, _| name == "accept" || name == "cookie");
        list.insert(HeaderName::from_static("cookie"), Value::of("five"));
        assert!(!left(&list, b"one") && !left(&list, b"two") && !left(&list, b"four"));
        assert_eq!(pairs(&list), [("accept", "three"), ("cookie", "five")]);
        list.insert_sensitive(HeaderName::from_static("x-new"), Value::of("six"));
        let map = HeaderMap::from(list);
        assert!(map["x-new"].is_sensitive() && !map["accept"].is_sensitive());
    }
}
