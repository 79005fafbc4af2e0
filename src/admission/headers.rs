//! How much is left of a caller's limits, in the headers of the API that it called (WIRE section 6.4).

use std::fmt::Write;

use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use jiff::Timestamp;

use super::ledger::Subjects;
use crate::limits::Kind;
use crate::limits::Left;
use crate::provider::Dialect;

const SECOND: u64 = 1_000_000_000;

/// What is left of the tightest rate of each kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    requests: Option<Left>,
    tokens: Option<Left>,
    input: Option<Left>,
    output: Option<Left>,
}

impl Standing {
    /// Over all `subjects`.
    pub(super) fn of(subjects: &Subjects, now: u64) -> Self {
        let kinds = [Kind::Requests, Kind::Tokens, Kind::InputTokens, Kind::OutputTokens];
        let mut tightest = [None; 4];
        for subject in subjects.iter().flatten() {
            for (tightest, left) in tightest.iter_mut().zip(subject.left(kinds, now)) {
                *tightest = [*tightest, left].into_iter().flatten().min_by_key(|left: &Left| left.remaining);
            }
        }
        let [requests, tokens, input, output] = tightest;
        Self { requests, tokens, input, output }
    }

    /// Writes what there is into `headers`. Google's API has no such headers.
    pub(crate) fn write(&self, dialect: Dialect, unix: i64, headers: &mut HeaderMap) {
        match dialect {
            Dialect::Openai => {
                // What counts apart is shown as one, by what is closer to its end.
                let tokens = [self.tokens, self.input, self.output].into_iter().flatten();
                openai(headers, "requests", self.requests);
                openai(headers, "tokens", tokens.min_by_key(|left| left.remaining));
            }
            Dialect::Anthropic => {
                anthropic(headers, "requests", self.requests, unix);
                anthropic(headers, "tokens", self.tokens, unix);
                anthropic(headers, "input-tokens", self.input, unix);
                anthropic(headers, "output-tokens", self.output, unix);
            }
            Dialect::Google => {}
        }
    }
}

fn openai(headers: &mut HeaderMap, of: &str, left: Option<Left>) {
    let Some(left) = left else { return };
    put(headers, format_args!("x-ratelimit-limit-{of}"), &left.amount.to_string());
    put(headers, format_args!("x-ratelimit-remaining-{of}"), &left.remaining.to_string());
    put(headers, format_args!("x-ratelimit-reset-{of}"), &duration(left.full_after));
}

fn anthropic(headers: &mut HeaderMap, of: &str, left: Option<Left>, unix: i64) {
    let Some(left) = left else { return };
    let at = unix.saturating_add(i64::try_from(left.full_after.div_ceil(SECOND)).unwrap_or(0));
    let Ok(at) = Timestamp::from_second(at) else { return };
    put(headers, format_args!("anthropic-ratelimit-{of}-limit"), &left.amount.to_string());
    put(headers, format_args!("anthropic-ratelimit-{of}-remaining"), &left.remaining.to_string());
    put(headers, format_args!("anthropic-ratelimit-{of}-reset"), &at.to_string());
}

fn put(headers: &mut HeaderMap, name: std::fmt::Arguments<'_>, value: &str) {
    let name = HeaderName::from_bytes(name.to_string().as_bytes());
    if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}

/// As OpenAI writes durations: `12ms`, `1s`, `6m0s`, `1h0m30s`.
fn duration(nanos: u64) -> String {
    if nanos < SECOND {
        return format!("{}ms", nanos.div_ceil(1_000_000));
    }
    let seconds = nanos.div_ceil(SECOND);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(text, "{minutes}m");
    }
    let _ = write!(text, "{seconds}s");
    text
}

/// Whether a header of an answer speaks of the operator's own account at the provider, which managed callers do not see:
/// its limits and whose it is.
pub(crate) fn tells_of_the_account(name: &str) -> bool {
    matches!(
        name,
        "openai-organization" | "openai-project" | "anthropic-organization-id" | "x-azure-ratelimit" | "azureml-model-session"
    ) || name.starts_with("x-ratelimit-")
        || name.starts_with("anthropic-ratelimit-")
        || name.starts_with("ratelimit-")
        || name == "ratelimit"
        // Codex needs this one of its family.
        || (name.starts_with("x-codex-") && name != "x-codex-turn-state")
}

/// Whether a request header names an account at the provider: with the operator's key it would be another's.
pub(crate) fn names_an_account(name: &str) -> bool {
    matches!(
        name,
        "openai-organization"
            | "openai-project"
            | "anthropic-workspace-id"
            | "anthropic-user-profile-id"
            | "anthropic-organization-id"
            | "x-goog-user-project"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        let left = |amount, remaining, full_after| Some(Left { amount, remaining, full_after });
        Standing {
            requests: left(600, 599, 100_000_000),
            tokens: left(1000, 400, 36 * SECOND),
            input: None,
            output: left(500, 0, 3661 * SECOND),
        }
    }

    #[test]
    fn each_api_gets_its_own_words() {
        let mut headers = HeaderMap::new();
        standing().write(Dialect::Openai, 0, &mut headers);
        let get = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(
            (get("x-ratelimit-limit-requests"), get("x-ratelimit-remaining-requests")),
            ("600".into(), "599".into())
        );
        assert_eq!(get("x-ratelimit-reset-requests"), "100ms");
        assert_eq!((get("x-ratelimit-limit-tokens"), get("x-ratelimit-reset-tokens")), ("500".into(), "1h1m1s".into()));

        let mut headers = HeaderMap::new();
        standing().write(Dialect::Anthropic, 1_000_000_000, &mut headers);
        assert_eq!(headers["anthropic-ratelimit-tokens-remaining"], "400");
        assert_eq!(headers["anthropic-ratelimit-tokens-reset"], "2001-09-09T01:47:16Z");
        assert_eq!(headers["anthropic-ratelimit-output-tokens-limit"], "500");
        assert!(!headers.contains_key("anthropic-ratelimit-input-tokens-limit"));

        let mut headers = HeaderMap::new();
        standing().write(Dialect::Google, 0, &mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn durations_are_as_openai_writes_them() {
        for (nanos, text) in [(0, "0ms"), (1, "1ms"), (12_000_000, "12ms"), (SECOND, "1s"), (360 * SECOND, "6m0s")] {
            assert_eq!(duration(nanos), text);
        }
    }
}
