//! Heads on h1: where their values stand, and how they are cleared there.
//!
//! hyper parses a head in its read buffer. The target and the values are slices of that buffer, and
//! dropping them clears nothing while the connection lives. So a head is lifted out as soon as it is
//! there: every value is copied to a block of its own, which is cleared when it is freed, and the
//! original is cleared where it stands. Names, the method and the version are left.
//!
//! A written head stands in a buffer that hyper keeps; [`HeadMark`] says when the next write begins
//! with one, and `io` clears it.

#![expect(unsafe_code, reason = "clears slices of hyper's read buffer that nobody else looks at")]

use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use http::HeaderMap;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::Uri;
use http::uri::Authority;
use http::uri::PathAndQuery;

use super::measure::Measure;
use super::measure::taken;
use super::wipe::wipe_raw;

/// Lifts the head of a request that hyper's **h1** server has just parsed out of its read buffer.
pub(crate) fn lift_request<B>(request: &mut Request<B>) {
    lift_values(request.headers_mut());
    lift_target(request.uri_mut());
}

/// The same for an answer that hyper's **h1** client has just parsed.
pub(crate) fn lift_response<B>(response: &mut Response<B>) {
    lift_values(response.headers_mut());
}

fn lift_values(headers: &mut HeaderMap) {
    for value in headers.values_mut() {
        // Cannot fail: the bytes are those of a value.
        let copy = HeaderValue::from_bytes(value.as_bytes()).unwrap_or(HeaderValue::from_static(""));
        let original = std::mem::replace(value, copy);
        // SAFETY: hyper 1.12 (`proto::h1::role`) makes each value a slice of the head that it has
        // split off its read buffer, keeps none of them, and no two overlap; none is a constant.
        // `original` keeps the block alive and is not read again.
        unsafe { clear(place_of(original.as_bytes())) };
    }
}

fn lift_target(target: &mut Uri) {
    let original = std::mem::take(target);
    let mut parts = http::uri::Parts::default();
    // What cannot be copied is left out, and the request is refused for it.
    parts.scheme = original.scheme().cloned();
    parts.authority = original.authority().and_then(|authority| Authority::try_from(authority.as_str()).ok());
    parts.path_and_query = original.path_and_query().and_then(|target| PathAndQuery::try_from(target.as_str()).ok());
    *target = Uri::from_parts(parts).unwrap_or_default();
    if let Some(authority) = original.authority() {
        // SAFETY: as in `lift_values`; `http::Uri` slices the request line, which is not a constant.
        unsafe { clear(place_of(authority.as_str().as_bytes())) };
    }
    if let Some(target) = original.path_and_query()
        && target.as_str().len() > 1
    {
        // SAFETY: the same. `/` and `*` are constants in `http::Uri`, and were left out.
        unsafe { clear(place_of(target.as_str().as_bytes())) };
    }
}

/// Where a text stands. Not a reference: the compiler may take what one points to for constant.
fn place_of(text: &[u8]) -> (usize, usize) {
    (text.as_ptr().addr(), text.len())
}

/// # Safety
/// The `len` bytes at `address` must stand in a live block of the global allocator, no reference to
/// them may be live, and nobody may read them again.
unsafe fn clear((address, len): (usize, usize)) {
    if !taken(Measure::Heads) {
        return;
    }
    // SAFETY: the caller's promise; the allocator exposed the block's provenance.
    unsafe { wipe_raw(std::ptr::with_exposed_provenance_mut(address), len) }
}

/// Says that the next write of an h1 connection begins with a head. Shared by the connection's
/// transport and by whoever hands hyper the head.
#[derive(Clone, Default)]
pub(crate) struct HeadMark(Arc<AtomicU8>);

/// What a [`HeadMark`] knows.
const NONE: u8 = 0;
const ANNOUNCED: u8 = 1;
const BEGUN: u8 = 2;

impl HeadMark {
    /// hyper is about to write a head.
    pub(crate) fn announce(&self) {
        self.0.store(ANNOUNCED, Relaxed);
    }

    /// Whether a head is to come or still on its way.
    pub(super) fn is_announced(&self) -> bool {
        self.0.load(Relaxed) != NONE
    }

    /// Whether a write's first slice is the head, or the rest of it. `long` says that the slice is
    /// longer than any constant that hyper writes.
    pub(super) fn begins(&self, long: bool) -> bool {
        if long {
            self.0.store(BEGUN, Relaxed);
        }
        long || self.0.load(Relaxed) == BEGUN
    }

    /// The head is out.
    pub(super) fn is_out(&self) {
        self.0.store(NONE, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifted_head_is_the_same_and_its_original_is_gone() {
        let block = bytes::Bytes::from(b"/v1/x?key=secret|Bearer secret|".to_vec());
        // The program's allocator does this.
        let _ = block.as_ptr().expose_provenance();
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_maybe_shared(block.slice(..16)).expect("target");
        let value = HeaderValue::from_maybe_shared(block.slice(17..30)).expect("value");
        request.headers_mut().insert("authorization", value);
        lift_request(&mut request);
        assert_eq!(request.uri(), "/v1/x?key=secret");
        assert_eq!(request.headers()["authorization"], "Bearer secret");
        assert_eq!(block, [vec![0; 16], vec![b'|'], vec![0; 13], vec![b'|']].concat());
    }

    #[test]
    fn every_form_of_target_survives() {
        for target in ["/", "*", "/v1?a=b", "https://host:1/v1?a", "host:443", "https://host"] {
            let mut request = Request::new(());
            *request.uri_mut() = Uri::from_maybe_shared(bytes::Bytes::from(target.to_owned())).expect("target");
            let before = request.uri().to_string();
            lift_request(&mut request);
            assert_eq!(request.uri().to_string(), before);
        }
    }
}
