//! What a client shows: every place where SDKs put a key (WIRE section 1.1), and how it is taken off again.

use std::borrow::Cow;

use zeroize::Zeroize;

use crate::message::Fields;
use crate::message::Known;
use crate::message::Value;
use crate::message::name;

/// The headers in which SDKs send keys, the place where `?key=` counts behind them.
const PLACES: [Known; 4] = [name::AUTHORIZATION, name::X_API_KEY, name::X_GOOG_API_KEY, name::API_KEY];

/// Browsers cannot set headers on a WebSocket; OpenAI's SDK puts the key among its subprotocols.
const SUBPROTOCOL: &str = "openai-insecure-api-key.";

/// More credentials than there are places for them, in one request.
const SHOWN_MAX: usize = 8;

/// The credentials of one request, in the order in which they count. Borrowed from its head; none is printed.
pub(super) struct Shown<'h> {
    texts: [Option<Text<'h>>; SHOWN_MAX],
    len: usize,
}

/// One credential; cleared if it had to be copied to be read.
struct Text<'h>(Cow<'h, [u8]>);

impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(text) = &mut self.0 {
            text.zeroize();
        }
    }
}

impl<'h> Shown<'h> {
    /// The credentials in a request's headers and query.
    pub(super) fn of(headers: &'h Fields, query: Option<&'h str>) -> Self {
        let mut shown = Self { texts: [const { None }; SHOWN_MAX], len: 0 };
        for name in PLACES {
            for value in headers.get_all(name) {
                let value = value.as_bytes();
                let text = if name == name::AUTHORIZATION { without_scheme(value) } else { value.trim_ascii() };
                shown.push(Cow::Borrowed(text));
            }
        }
        for value in headers.get_all(name::SEC_WEBSOCKET_PROTOCOL) {
            for key in tokens(value).filter_map(|token| token.strip_prefix(SUBPROTOCOL.as_bytes())) {
                shown.push(Cow::Borrowed(key));
            }
        }
        for pair in query.unwrap_or("").split('&') {
            if let Some(value) = key_in_query(pair) {
                shown.push(value);
            }
        }
        shown
    }

    fn push(&mut self, text: Cow<'h, [u8]>) {
        if text.is_empty() {
            return;
        }
        if let Some(place) = self.texts.get_mut(self.len) {
            *place = Some(Text(text));
            self.len += 1;
        } else {
            // Too many to be honest: the last place no longer equals the others.
            self.texts[SHOWN_MAX - 1] = Some(Text(Cow::Borrowed(b"\0")));
        }
    }

    fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.texts[..self.len].iter().flatten().map(|text| &*text.0)
    }

    /// The first one.
    pub(super) fn first(&self) -> Option<&[u8]> {
        self.texts().next()
    }

    /// Whether one of them begins with `prefix`.
    pub(super) fn any_begins_with(&self, prefix: &str) -> bool {
        self.texts().any(|text| text.starts_with(prefix.as_bytes()))
    }

    /// Whether two of them differ.
    pub(super) fn differ(&self) -> bool {
        let mut texts = self.texts();
        texts.next().is_some_and(|first| texts.any(|other| other != first))
    }
}

/// `value` of `Authorization` without its scheme. Basic credentials are none of ours and stay as they are.
fn without_scheme(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    match value.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"bearer ") => rest.trim_ascii(),
        // Nothing behind it.
        None if value.eq_ignore_ascii_case(b"bearer") => b"",
        _ => value,
    }
}

/// The value of a query's pair if its name is `key`, however the two are written.
fn key_in_query(pair: &str) -> Option<Cow<'_, [u8]>> {
    let (name, value) = pair.split_once('=')?;
    (*decoded(name) == *b"key").then(|| decoded(value))
}

/// Without percent signs (RFC 3986 section 2.1). What is no such sequence stays.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// Takes every credential off `headers`.
pub(crate) fn take_off(headers: &mut Fields) {
    for name in PLACES {
        headers.remove(name);
    }
    let name = name::SEC_WEBSOCKET_PROTOCOL;
    // By bytes, as they are looked for: a value need not be text.
    let shows = |token: &[u8]| token.starts_with(SUBPROTOCOL.as_bytes());
    if !headers.get_all(name).any(|value| tokens(value).any(shows)) {
        return;
    }
    let values: Vec<_> = headers.get_all(name).filter_map(Value::kept).collect();
    headers.remove(name);
    for value in values {
        let kept: Vec<&[u8]> = tokens((&value).into()).filter(|token| !shows(token)).collect();
        if let Some(value) = Value::new(&kept.join(&b", "[..]))
            && !kept.is_empty()
        {
            headers.append(name, value);
        }
    }
}

/// The subprotocols of a value.
fn tokens(value: Value<'_>) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// A target's path and query without `key`. The rest of it stays as it was written.
pub(crate) fn without_key(target: String) -> String {
    let Some((path, query)) = target.split_once('?') else { return target };
    if !query.split('&').any(|pair| key_in_query(pair).is_some()) {
        return target;
    }
    let mut kept = String::with_capacity(target.len());
    kept.push_str(path);
    for (place, pair) in query.split('&').filter(|pair| key_in_query(pair).is_none()).enumerate() {
        kept.push(if place == 0 { '?' } else { '&' });
        kept.push_str(pair);
    }
    let mut target = target;
    target.zeroize();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> Fields {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_key_is_found_wherever_sdks_put_it() {
        for (headers, query) in [
            (vec![("authorization", "Bearer nhk_a")], None),
            (vec![("authorization", "bearer  nhk_a ")], None),
            (vec![("authorization", "nhk_a")], None),
            (vec![("x-api-key", "nhk_a")], None),
            (vec![("x-goog-api-key", "nhk_a")], None),
            (vec![("api-key", "nhk_a")], None),
            (vec![("sec-websocket-protocol", "realtime, openai-insecure-api-key.nhk_a, x.v1")], None),
            (vec![], Some("alt=sse&key=nhk_a")),
            (vec![], Some("k%65y=nhk%5Fa")),
            (vec![("x-api-key", "nhk_a"), ("authorization", "Bearer nhk_a")], Some("key=nhk_a")),
        ] {
            let headers = map(&headers);
            let shown = Shown::of(&headers, query);
            assert_eq!(shown.first(), Some(&b"nhk_a"[..]), "{query:?}");
            assert!(shown.any_begins_with("nhk_") && !shown.differ());
        }
        let empty = map(&[("authorization", "Bearer "), ("x-api-key", "")]);
        assert!(Shown::of(&empty, Some("key=&keys=1&k")).first().is_none());
    }

    #[test]
    fn two_keys_differ_also_behind_many() {
        let headers = map(&[("authorization", "Bearer nhk_a"), ("x-api-key", "sk-b")]);
        assert!(Shown::of(&headers, None).differ());
        assert!(Shown::of(&map(&[("authorization", "Bearer nhk_a")]), Some("key=nhk_b")).differ());
        assert!(Shown::of(&Fields::default(), Some(&"key=nhk_a&".repeat(20))).differ());
    }

    #[test]
    fn nothing_of_a_key_is_left_behind() {
        let mut headers = map(&[
            ("authorization", "Bearer nhk_a"),
            ("x-api-key", "nhk_a"),
            ("x-goog-api-key", "nhk_a"),
            ("api-key", "nhk_a"),
            ("sec-websocket-protocol", "realtime, openai-insecure-api-key.nhk_a, openai-beta.realtime-v1"),
            ("accept", "*/*"),
        ]);
        take_off(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["sec-websocket-protocol"], *"realtime, openai-beta.realtime-v1");
        // What is no text is searched like what is one.
        let name = name::SEC_WEBSOCKET_PROTOCOL;
        let value = http::HeaderValue::from_bytes(b"\xff, openai-insecure-api-key.nhk_a,realtime").unwrap();
        let mut headers = Fields::from_iter([(name, value)]);
        assert_eq!(Shown::of(&headers, None).first(), Some(&b"nhk_a"[..]));
        take_off(&mut headers);
        assert_eq!(headers.get(name).map(Value::as_bytes), Some(&b"\xff, realtime"[..]));
        for (target, kept) in [
            (
                "/v1beta/models/m:streamGenerateContent?alt=sse&key=nhk_a",
                "/v1beta/models/m:streamGenerateContent?alt=sse",
            ),
            ("/v1?key=a", "/v1"),
            ("/v1?k%65y=a&x=%20", "/v1?x=%20"),
            ("/v1?a=1&&key=2&b", "/v1?a=1&&b"),
            ("/v1?keys=1", "/v1?keys=1"),
            ("/v1", "/v1"),
        ] {
            assert_eq!(without_key(target.to_owned()), kept);
        }
    }
}
