//! How much is left of a caller's limits, in the headers of the API that it called (WIRE section 6.4).

use std::io::Write;
use std::sync::LazyLock;

use jiff::Timestamp;

use super::ledger::Subjects;
use crate::limits::Kind;
use crate::limits::Left;
use crate::message::Fields;
use crate::message::Known;
use crate::message::Value;
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
    pub(crate) fn write(&self, dialect: Dialect, unix: i64, headers: &mut Fields) {
        self.lines(dialect, unix).put(headers);
    }

    /// The same, in the place of what the provider says of the operator's own account.
    pub(super) fn replace(&self, dialect: Dialect, unix: i64, headers: &mut Fields) {
        let lines = self.lines(dialect, unix);
        take_off_account(headers, &lines);
        lines.put(headers);
    }

    fn lines(&self, dialect: Dialect, unix: i64) -> Lines {
        let mut lines = Lines::default();
        match dialect {
            Dialect::Openai => {
                // What counts apart is shown as one, by what is closer to its end.
                let tokens = [self.tokens, self.input, self.output].into_iter().flatten();
                openai(&mut lines, &OPENAI[0], self.requests);
                openai(&mut lines, &OPENAI[1], tokens.min_by_key(|left| left.remaining));
            }
            Dialect::Anthropic => {
                let kinds = [self.requests, self.tokens, self.input, self.output];
                kinds.into_iter().zip(&ANTHROPIC).for_each(|(left, names)| anthropic(&mut lines, names, left, unix));
            }
            Dialect::Google => {}
        }
        lines
    }
}

/// A kind's limit, what remains of it, and when it is whole again.
type Names = [Known; 3];

/// Requests and tokens.
static OPENAI: [Names; 2] = [
    [
        Known::named("x-ratelimit-limit-requests"),
        Known::named("x-ratelimit-remaining-requests"),
        Known::named("x-ratelimit-reset-requests"),
    ],
    [
        Known::named("x-ratelimit-limit-tokens"),
        Known::named("x-ratelimit-remaining-tokens"),
        Known::named("x-ratelimit-reset-tokens"),
    ],
];

/// Requests, all tokens, input, output.
static ANTHROPIC: [Names; 4] = [
    [
        Known::named("anthropic-ratelimit-requests-limit"),
        Known::named("anthropic-ratelimit-requests-remaining"),
        Known::named("anthropic-ratelimit-requests-reset"),
    ],
    [
        Known::named("anthropic-ratelimit-tokens-limit"),
        Known::named("anthropic-ratelimit-tokens-remaining"),
        Known::named("anthropic-ratelimit-tokens-reset"),
    ],
    [
        Known::named("anthropic-ratelimit-input-tokens-limit"),
        Known::named("anthropic-ratelimit-input-tokens-remaining"),
        Known::named("anthropic-ratelimit-input-tokens-reset"),
    ],
    [
        Known::named("anthropic-ratelimit-output-tokens-limit"),
        Known::named("anthropic-ratelimit-output-tokens-remaining"),
        Known::named("anthropic-ratelimit-output-tokens-reset"),
    ],
];

fn openai(lines: &mut Lines, names: &Names, left: Option<Left>) {
    let Some(left) = left else { return };
    lines.push(names[0], |text| number(text, left.amount));
    lines.push(names[1], |text| number(text, left.remaining));
    lines.push(names[2], |text| duration(text, left.full_after));
}

fn anthropic(lines: &mut Lines, names: &Names, left: Option<Left>, unix: i64) {
    let Some(left) = left else { return };
    let at = unix.saturating_add(i64::try_from(left.full_after.div_ceil(SECOND)).unwrap_or(0));
    let Ok(at) = Timestamp::from_second(at) else { return };
    lines.push(names[0], |text| number(text, left.amount));
    lines.push(names[1], |text| number(text, left.remaining));
    // Writing into a vector cannot fail.
    lines.push(names[2], |text| _ = write!(text, "{at}"));
}

/// Header lines whose values stand one after the other in one block, which they share.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    /// Names, and where the value of each ends.
    lines: [Option<(Known, usize)>; 3 * ANTHROPIC.len()],
    len: usize,
}

impl Lines {
    fn push(&mut self, name: Known, write: impl FnOnce(&mut Vec<u8>)) {
        if self.text.capacity() == 0 {
            // Longer than nearly all that is ever written.
            self.text.reserve(160);
        }
        let Some(place) = self.lines.get_mut(self.len) else { return };
        write(&mut self.text);
        *place = Some((name, self.text.len()));
        self.len += 1;
    }

    fn has(&self, name: Known) -> bool {
        self.lines[..self.len].iter().flatten().any(|(known, _)| *known == name)
    }

    fn put(&self, headers: &mut Fields) {
        let mut from = 0;
        for (name, end) in self.lines[..self.len].iter().copied().flatten() {
            if let Some(value) = Value::new(&self.text[from..end]) {
                headers.insert(name, value);
            }
            from = end;
        }
    }
}

/// Takes off all that a provider says of the operator's account.
pub(super) fn take_off_all_of_account(headers: &mut Fields) {
    take_off_account(headers, &Lines::default());
}

/// Takes off what a provider says of the operator's account, but for what `lines` write over.
fn take_off_account(headers: &mut Fields, lines: &Lines) {
    headers.retain(|name, known| {
        let tells = known.of(&OF_ACCOUNT).copied().unwrap_or_else(|| tells_of_account(name));
        !tells || lines.has(known)
    });
}

/// Of the names that are known.
static OF_ACCOUNT: LazyLock<Vec<bool>> = LazyLock::new(|| Known::each(tells_of_account));

fn tells_of_account(name: &str) -> bool {
    ACCOUNT.contains(&name) || tells_of_limits(name)
}

fn number(text: &mut Vec<u8>, number: u64) {
    let (mut digits, mut at, mut rest) = ([b'0'; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

/// As OpenAI writes durations: `12ms`, `1s`, `6m0s`, `1h0m30s`.
fn duration(text: &mut Vec<u8>, nanos: u64) {
    if nanos < SECOND {
        number(text, nanos.div_ceil(1_000_000));
        text.extend_from_slice(b"ms");
        return;
    }
    let seconds = nanos.div_ceil(SECOND);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    for (amount, unit, written) in
        [(hours, b'h', hours > 0), (minutes, b'm', hours > 0 || minutes > 0), (seconds, b's', true)]
    {
        if written {
            number(text, amount);
            text.push(unit);
        }
    }
}

/// Headers of an answer that speak of the operator's own account at the provider, which managed callers do not see: whose
/// it is. [`tells_of_limits`] knows the others.
static ACCOUNT: [&str; 5] = [
    "openai-organization",
    "openai-project",
    "anthropic-organization-id",
    "x-azure-ratelimit",
    "azureml-model-session",
];

/// Whether a header of an answer speaks of the operator's own limits at the provider.
fn tells_of_limits(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-ratelimit-")
                // Codex needs this one of its family.
                || (name.starts_with("x-codex-") && name != "x-codex-turn-state")
        }
        Some(b'a') => name.starts_with("anthropic-ratelimit-"),
        Some(b'r') => name == "ratelimit" || name.starts_with("ratelimit-"),
        _ => false,
    }
}

/// Takes off `headers` of a request what names an account at the provider: with the operator's key it would be another's.
pub(super) fn take_off_account_names(headers: &mut Fields) {
    headers.retain(|name, known| !known.of(&IS_ACCOUNT_NAME).copied().unwrap_or_else(|| ACCOUNT_NAMES.contains(&name)));
}

/// Of the names that are known.
static IS_ACCOUNT_NAME: LazyLock<Vec<bool>> = LazyLock::new(|| Known::each(|name| ACCOUNT_NAMES.contains(&name)));

/// See [`take_off_account_names`].
static ACCOUNT_NAMES: [&str; 6] = [
    "openai-organization",
    "openai-project",
    "anthropic-workspace-id",
    "anthropic-user-profile-id",
    "anthropic-organization-id",
    "x-goog-user-project",
];

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
        let mut headers = Fields::default();
        standing().write(Dialect::Openai, 0, &mut headers);
        let get = |name: &str| headers[name].to_owned();
        assert_eq!(
            (get("x-ratelimit-limit-requests"), get("x-ratelimit-remaining-requests")),
            ("600".into(), "599".into())
        );
        assert_eq!(get("x-ratelimit-reset-requests"), "100ms");
        assert_eq!((get("x-ratelimit-limit-tokens"), get("x-ratelimit-reset-tokens")), ("500".into(), "1h1m1s".into()));

        let mut headers = Fields::default();
        standing().write(Dialect::Anthropic, 1_000_000_000, &mut headers);
        assert_eq!(headers["anthropic-ratelimit-tokens-remaining"], *"400");
        assert_eq!(headers["anthropic-ratelimit-tokens-reset"], *"2001-09-09T01:47:16Z");
        assert_eq!(headers["anthropic-ratelimit-output-tokens-limit"], *"500");
        assert!(!headers.contains_key("anthropic-ratelimit-input-tokens-limit"));

        let mut headers = Fields::default();
        standing().write(Dialect::Google, 0, &mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn durations_are_as_openai_writes_them() {
        for (nanos, wanted) in [
            (0, "0ms"),
            (1, "1ms"),
            (12_000_000, "12ms"),
            (SECOND, "1s"),
            (360 * SECOND, "6m0s"),
            (3600 * SECOND, "1h0m0s"),
            (u64::MAX, "5124095h34m34s"),
        ] {
            let mut text = Vec::new();
            duration(&mut text, nanos);
            assert_eq!(String::from_utf8(text).unwrap(), wanted);
        }
    }

    #[test]
    fn numbers_are_written_as_they_are() {
        for wanted in [0, 7, 10, 99, 100, 1_234_567_890, u64::MAX] {
            let mut text = Vec::new();
            number(&mut text, wanted);
            assert_eq!(String::from_utf8(text).unwrap(), wanted.to_string());
        }
    }

    #[test]
    fn what_tells_of_the_operators_account_goes_and_the_rest_stays() {
        let told = [
            "openai-organization",
            "openai-project",
            "anthropic-organization-id",
            "x-azure-ratelimit",
            "azureml-model-session",
            "x-ratelimit-limit-images",
            "anthropic-ratelimit-unified-reset",
            "ratelimit",
            "ratelimit-policy",
            "x-codex-primary-used-percent",
        ];
        let kept =
            ["x-codex-turn-state", "x-request-id", "request-id", "ratelimits", "anthropic-version", "retry-after"];
        let theirs = "x-ratelimit-remaining-requests";
        for dialect in [Dialect::Openai, Dialect::Anthropic, Dialect::Google] {
            let mut headers = Fields::default();
            for name in told.iter().chain(&kept).chain([&theirs]) {
                headers.append(http::HeaderName::from_static(name), Value::of("theirs"));
                headers.append(http::HeaderName::from_static(name), Value::of("theirs as well"));
            }
            standing().replace(dialect, 0, &mut headers);
            assert!(told.iter().all(|name| !headers.contains_key(*name)));
            assert!(kept.iter().all(|name| headers.get_all(*name).count() == 2));
            // Of two values none is left beside ours.
            let ours: Vec<_> = headers.get_all(theirs).filter_map(Value::text).collect();
            assert_eq!(ours, if dialect == Dialect::Openai { vec!["599"] } else { vec![] });
            let families = [
                ("x-ratelimit-", if dialect == Dialect::Openai { 6 } else { 0 }),
                ("anthropic-ratelimit-", if dialect == Dialect::Anthropic { 9 } else { 0 }),
            ];
            for (family, count) in families {
                assert_eq!(headers.names().filter(|(name, _)| name.starts_with(family)).count(), count);
            }
        }
    }
}
