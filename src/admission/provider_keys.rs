//! The operator's keys at one provider: which one goes up, and which ones rest because the provider has refused them.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::config::KeyHeader;
use crate::config::ProviderKey;
use crate::hygiene::Secret;
use crate::message::Known;
use crate::message::name;
use crate::provider::Provider;
use crate::upstream::Tenant;

const SECOND: u64 = 1_000_000_000;

/// A key that its provider does not know rests for so long the first time, twice as long each time after.
const UNKNOWN_REST: u64 = 30;
const UNKNOWN_REST_MAX: u64 = 900;

/// A key at its limit rests for as long as the provider says, within bounds; without a word, for this long.
const LIMITED_REST: u64 = 5;
const LIMITED_REST_MAX: u64 = 300;

/// The keys of one upstream, shared by all workers.
pub(crate) struct ProviderKeys {
    keys: Box<[Key]>,
    /// Requests so far; spreads them by weight.
    turn: AtomicU64,
}

struct Key {
    /// Stands in locked memory, once.
    secret: Arc<Secret>,
    weight: u32,
    tenant: Tenant,
    /// Nanoseconds on the clock of limits; rests until then.
    rests_until: AtomicU64,
    /// How often in a row the provider did not know it.
    unknown: AtomicU32,
}

/// The place of the key that a request goes up with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Picked(usize);

/// A key has been sent to rest.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Rest {
    /// Its place in the configuration.
    pub(crate) key: usize,
    pub(crate) seconds: u64,
}

/// Lines to a provider are kept apart by the key that goes up over them.
fn tenant(upstream: usize, place: usize) -> Tenant {
    let mut text = *b"nullhop's own key 0000000000000000";
    text[18..26].copy_from_slice(&(upstream as u64).to_le_bytes());
    text[26..].copy_from_slice(&(place as u64).to_le_bytes());
    Tenant::of(&text)
}

impl ProviderKeys {
    /// Those of the upstream at a place of the configuration.
    pub(crate) fn new(upstream: usize, keys: &[ProviderKey]) -> Self {
        let key = |(place, key): (usize, &ProviderKey)| Key {
            secret: key.secret.clone(),
            weight: key.weight.max(1),
            tenant: tenant(upstream, place),
            rests_until: AtomicU64::new(0),
            unknown: AtomicU32::new(0),
        };
        Self { keys: keys.iter().enumerate().map(key).collect(), turn: AtomicU64::new(0) }
    }

    /// The key for the next request: by weight among those that do not rest. If all rest, the one that rests the shortest:
    /// the provider knows better than we whether it serves it again. `None` if there are none.
    pub(crate) fn pick(&self, now: u64) -> Option<Picked> {
        let ready = |key: &Key| key.rests_until.load(Relaxed) <= now;
        let total: u64 = self.keys.iter().filter(|key| ready(key)).map(|key| u64::from(key.weight)).sum();
        if total == 0 {
            let soonest = self.keys.iter().enumerate().min_by_key(|(_, key)| key.rests_until.load(Relaxed));
            return soonest.map(|(place, _)| Picked(place));
        }
        // Multiples of the golden ratio fill the circle evenly, so that ten requests are spread as well as ten thousand.
        let turn = self.turn.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut at = ((u128::from(turn) * u128::from(total)) >> 64) as u64;
        for (place, key) in self.keys.iter().enumerate().filter(|(_, key)| ready(key)) {
            let weight = u64::from(key.weight);
            if at < weight {
                return Some(Picked(place));
            }
            at -= weight;
        }
        // Another worker has sent one to rest meanwhile.
        Some(Picked(0))
    }

    /// Whose lines a request goes over with a key.
    pub(crate) fn tenant(&self, picked: Picked) -> Tenant {
        self.keys.get(picked.0).map_or(Tenant::Nobody, |key| key.tenant)
    }

    /// The header that carries a key up.
    pub(crate) fn header(&self, picked: Picked, header: KeyHeader) -> Option<(Known, Vec<u8>)> {
        let key = self.keys.get(picked.0)?;
        let name = match header {
            KeyHeader::Auto | KeyHeader::Authorization => name::AUTHORIZATION,
            KeyHeader::XApiKey => name::X_API_KEY,
            KeyHeader::XGoogApiKey => name::X_GOOG_API_KEY,
            KeyHeader::ApiKey => name::API_KEY,
        };
        let scheme = if name == name::AUTHORIZATION { &b"Bearer "[..] } else { b"" };
        let value = [scheme, key.secret.expose()].concat();
        Some((name, value))
    }

    /// The provider has answered a request that went up with a key. `now` is asked only where it matters.
    pub(crate) fn answered(
        &self,
        picked: Picked,
        status: u16,
        retry_after: Option<u64>,
        now: impl FnOnce() -> u64,
    ) -> Option<Rest> {
        let key = self.keys.get(picked.0)?;
        let seconds = match status {
            401 => {
                let times = key.unknown.fetch_add(1, Relaxed).min(10);
                (UNKNOWN_REST << times).min(UNKNOWN_REST_MAX)
            }
            429 => retry_after.unwrap_or(LIMITED_REST).clamp(1, LIMITED_REST_MAX),
            200..=299 => {
                if key.unknown.load(Relaxed) != 0 {
                    key.unknown.store(0, Relaxed);
                }
                return None;
            }
            _ => return None,
        };
        let now = now();
        let until = now + seconds * SECOND;
        // Many answers at once are one rest.
        let before = key.rests_until.fetch_max(until, Relaxed);
        (before <= now).then_some(Rest { key: picked.0, seconds })
    }

    /// Keys that can be used, and those that rest.
    pub(crate) fn count(&self, now: u64) -> (usize, usize) {
        let ready = self.keys.iter().filter(|key| key.rests_until.load(Relaxed) <= now).count();
        (ready, self.keys.len() - ready)
    }
}

/// Where a provider's own SDK puts its key, for a request to `path`.
pub(crate) fn header_of(provider: Provider, path: &str, configured: KeyHeader) -> KeyHeader {
    if configured != KeyHeader::Auto {
        return configured;
    }
    match provider {
        Provider::Anthropic => KeyHeader::XApiKey,
        Provider::Gemini => KeyHeader::XGoogApiKey,
        Provider::Azure => KeyHeader::ApiKey,
        // DeepSeek and others serve Anthropic's API below this.
        Provider::Compatible if path.starts_with("/anthropic/") => KeyHeader::XApiKey,
        Provider::Openai | Provider::Vertex | Provider::Bedrock | Provider::Compatible => KeyHeader::Authorization,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(weights: &[u32]) -> ProviderKeys {
        let key = |(place, weight): (usize, &u32)| ProviderKey {
            name: format!("key-{place}"),
            secret: Arc::new(Secret::new(format!("sk-{place}").into_bytes())),
            weight: *weight,
        };
        ProviderKeys::new(0, &weights.iter().enumerate().map(key).collect::<Vec<_>>())
    }

    #[test]
    fn requests_are_spread_by_weight() {
        let keys = keys(&[1, 3, 6]);
        for rounds in [10, 100, 10_000] {
            let mut counts = [0_i64; 3];
            for _ in 0..rounds {
                counts[keys.pick(0).unwrap().0] += 1;
            }
            for (count, share) in counts.iter().zip([1, 3, 6]) {
                assert!((count - rounds * share / 10).abs() <= 2 + rounds / 200, "{counts:?}");
            }
        }
        assert!(ProviderKeys::new(0, &[]).pick(0).is_none());
    }

    #[test]
    fn a_refused_key_rests_and_comes_back() {
        let keys = keys(&[1, 1]);
        assert_eq!(keys.answered(Picked(0), 429, Some(7), || 0).unwrap().seconds, 7);
        assert!(keys.answered(Picked(0), 429, Some(7), || 1).is_none(), "one rest for many answers");
        assert_eq!(keys.count(0), (1, 1));
        assert!((0..20).all(|_| keys.pick(6 * SECOND) == Some(Picked(1))));
        assert!((0..20).any(|_| keys.pick(8 * SECOND) == Some(Picked(0))));
        assert!(keys.answered(Picked(0), 500, None, || 0).is_none());
        // A provider that does not know a key is asked less and less often.
        let mut now = 100 * SECOND;
        for seconds in [30, 60, 120, 240, 480, 900, 900] {
            let rest = keys.answered(Picked(1), 401, None, || now).unwrap();
            assert_eq!((rest.key, rest.seconds), (1, seconds));
            now += 901 * SECOND;
        }
        assert!(keys.answered(Picked(1), 200, None, || now).is_none());
        assert_eq!(keys.answered(Picked(1), 401, None, || now).unwrap().seconds, 30);
        // All rest: the one whose rest ends first is tried.
        keys.answered(Picked(0), 429, Some(10_000), || now);
        assert_eq!(keys.pick(now), Some(Picked(1)));
        assert_eq!(keys.count(now + LIMITED_REST_MAX * SECOND), (2, 0), "not for longer than five minutes");
    }

    #[test]
    fn each_provider_gets_its_header() {
        let keys = keys(&[1]);
        for (provider, path, name, value) in [
            (Provider::Openai, "/v1/responses", "authorization", "Bearer sk-0"),
            (Provider::Anthropic, "/v1/messages", "x-api-key", "sk-0"),
            (Provider::Gemini, "/v1beta/models/m:generateContent", "x-goog-api-key", "sk-0"),
            (Provider::Azure, "/openai/v1/responses", "api-key", "sk-0"),
            (Provider::Compatible, "/v1/chat/completions", "authorization", "Bearer sk-0"),
            (Provider::Compatible, "/anthropic/v1/messages", "x-api-key", "sk-0"),
        ] {
            let header = header_of(provider, path, KeyHeader::Auto);
            let (found, text) = keys.header(Picked(0), header).unwrap();
            assert_eq!((crate::message::Name::text(&found), &*text), (name, value.as_bytes()));
        }
        assert_eq!(header_of(Provider::Openai, "/", KeyHeader::ApiKey), KeyHeader::ApiKey);
    }
}
