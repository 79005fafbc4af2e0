//! One exchange's record. Enums, numbers and configured names only: it cannot hold content.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;
use jiff::Timestamp;

/// Tokens by kind; no token is in two of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) input_uncached: u64,
    pub(crate) input_cache_read: u64,
    pub(crate) input_cache_write: u64,
    pub(crate) output_response: u64,
    pub(crate) output_reasoning: u64,
    /// For another model or pass; billed as well.
    pub(crate) side_input: u64,
    pub(crate) side_output: u64,
}

/// What is billed, and what an operator wants to see of one exchange.
pub(crate) struct Event {
    pub(crate) ended: Timestamp,
    pub(crate) pop: Option<Arc<str>>,
    /// Id and label of the client key; `None` in pass-through.
    pub(crate) key: Option<(Arc<str>, Arc<str>)>,
    pub(crate) account: Option<Arc<str>>,
    pub(crate) upstream: Arc<str>,
    /// Whose credential went up: `byok`, `managed` or `none`.
    pub(crate) mode: &'static str,
    pub(crate) operation: &'static str,
    /// A label of the model table.
    pub(crate) model: Arc<str>,
    /// As the provider reported them.
    pub(crate) tokens: Tokens,
    /// Input that is charged without a report.
    pub(crate) estimated_input: u64,
    /// The same for output.
    pub(crate) estimated_output: u64,
    /// Audio that is billed by its length, in milliseconds.
    pub(crate) audio_ms: Option<u64>,
    /// `provider`, `partial`, `estimate` or `none`.
    pub(crate) source: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) duration: Duration,
    pub(crate) first_token: Option<Duration>,
    /// Picodollars; `None` without a price.
    pub(crate) cost: Option<u64>,
}

/// A number that no other process has. Nobody has to be unable to guess it.
pub(super) fn process() -> u64 {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    *PROCESS.get_or_init(|| {
        let mut bytes = [0_u8; 8];
        if SystemRandom::new().fill(&mut bytes).is_err() {
            // Time and process are as good to tell events apart.
            return Timestamp::now().as_nanosecond() as u64 ^ u64::from(std::process::id()) << 48;
        }
        u64::from_le_bytes(bytes)
    })
}

/// The number of the next event.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Makes lines of events; keeps what the last one had in common with the next.
#[derive(Default)]
pub(super) struct Lines {
    /// A second since 1970 and how it is written, without its fraction.
    second: i64,
    written: String,
}

impl Lines {
    /// Puts `event` at the end of `out` as one line of JSON. Its id is one that no other event has: 16 hexadecimal digits of
    /// this process, and a number.
    pub(super) fn put(&mut self, event: &Event, out: &mut String) {
        let number = NEXT.fetch_add(1, Relaxed);
        let _ = write!(out, "{{\"id\":\"{:016x}-", process());
        decimal(out, number);
        out.push_str("\",\"time\":\"");
        self.time(event.ended, out);
        out.push('"');
        event.rest(out);
    }

    /// As `{:.3}` of [`Timestamp`] has it; most events share their second with the one before.
    fn time(&mut self, time: Timestamp, out: &mut String) {
        let (second, nanos) = (time.as_second(), time.subsec_nanosecond());
        if nanos < 0 {
            // Before 1970.
            let _ = write!(out, "{time:.3}");
            return;
        }
        if self.written.is_empty() || second != self.second {
            self.written.clear();
            let whole = Timestamp::from_second(second).unwrap_or(time);
            let _ = write!(self.written, "{whole:.0}");
            self.second = second;
        }
        out.push_str(self.written.trim_end_matches('Z'));
        let millis = nanos.unsigned_abs() / 1_000_000;
        let digit = |unit: u32| char::from(b'0' + (millis / unit % 10) as u8);
        out.extend(['.', digit(100), digit(10), digit(1), 'Z']);
    }
}

impl Event {
    /// All behind the time.
    fn rest(&self, out: &mut String) {
        text(out, ",\"pop\":\"", self.pop.as_deref());
        text(out, ",\"key\":\"", self.key.as_ref().map(|(id, _)| &**id));
        text(out, ",\"label\":\"", self.key.as_ref().map(|(_, label)| &**label));
        text(out, ",\"account\":\"", self.account.as_deref());
        text(out, ",\"upstream\":\"", Some(&self.upstream));
        text(out, ",\"mode\":\"", Some(self.mode));
        text(out, ",\"operation\":\"", Some(self.operation));
        text(out, ",\"model\":\"", Some(&self.model));
        let tokens = &self.tokens;
        let mut figure = |begin: &str, value: u64| {
            out.push_str(begin);
            decimal(out, value);
        };
        figure(",\"input_uncached\":", tokens.input_uncached);
        figure(",\"input_cache_read\":", tokens.input_cache_read);
        figure(",\"input_cache_write\":", tokens.input_cache_write);
        figure(",\"output_response\":", tokens.output_response);
        figure(",\"output_reasoning\":", tokens.output_reasoning);
        figure(",\"estimated_input\":", self.estimated_input);
        figure(",\"estimated_output\":", self.estimated_output);
        figure(",\"side_input\":", tokens.side_input);
        figure(",\"side_output\":", tokens.side_output);
        if let Some(audio) = self.audio_ms {
            figure(",\"audio_ms\":", audio);
        }
        text(out, ",\"source\":\"", Some(self.source));
        text(out, ",\"outcome\":\"", Some(self.outcome));
        let mut millis = |begin: &str, value: Duration| {
            out.push_str(begin);
            decimal(out, u64::try_from(value.as_millis()).unwrap_or(u64::MAX));
        };
        millis(",\"duration_ms\":", self.duration);
        if let Some(first) = self.first_token {
            millis(",\"first_token_ms\":", first);
        }
        if let Some(cost) = self.cost {
            out.push_str(",\"cost_usd\":\"");
            put_dollars(out, cost.into());
            out.push('"');
        }
        out.push_str("}\n");
    }
}

/// Puts a member's beginning, its value and a quote at the end of `out`.
fn text(out: &mut String, begin: &str, value: Option<&str>) {
    let Some(value) = value else { return };
    out.push_str(begin);
    // All of them are configured names and fixed words, which need no escape. What would need one cannot break the line
    // all the same.
    if value.bytes().all(|byte| is_plain(char::from(byte))) {
        out.push_str(value);
    } else {
        out.extend(value.chars().map(|letter| if is_plain(letter) { letter } else { '_' }));
    }
    out.push('"');
}

/// Puts a number at the end of `out`. A line has a dozen of them, and most are short.
fn decimal(out: &mut String, number: u64) {
    if number < 10 {
        out.push(char::from(b'0' + number as u8));
    } else {
        let _ = write!(out, "{number}");
    }
}

/// What JSON writes as it is, and CSV without quotes.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_graphic() && !matches!(letter, '"' | '\\' | ',')
}

/// Picodollars as a decimal number of dollars, exact, without zeros at its end.
pub(super) fn dollars(pico: u128) -> String {
    let mut text = String::new();
    put_dollars(&mut text, pico);
    text
}

/// The same at the end of `out`.
fn put_dollars(out: &mut String, pico: u128) {
    let _ = write!(out, "{}.{:012}", pico / 1_000_000_000_000, pico % 1_000_000_000_000);
    out.truncate(out.trim_end_matches('0').trim_end_matches('.').len());
}

/// A decimal number of dollars in picodollars. `None` if it is none, or finer than that.
pub(super) fn pico(text: &str) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() > 18 || fraction.len() > 12 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction_unit = 10_u128.pow(12 - fraction.len() as u32);
    Some(whole.parse::<u128>().ok()? * 1_000_000_000_000 + fraction.parse::<u128>().ok()? * fraction_unit)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::journal) fn event() -> Event {
        Event {
            ended: "2026-11-21T14:00:00.1234567Z".parse().unwrap(),
            pop: Some("fra-1".into()),
            key: Some(("k1".into(), "ci-bot".into())),
            account: Some("acme".into()),
            upstream: "openai".into(),
            mode: "managed",
            operation: "chat_completions",
            model: "gpt-5".into(),
            tokens: Tokens { input_uncached: 10, output_response: 5, ..Tokens::default() },
            estimated_input: 3,
            estimated_output: 4,
            audio_ms: None,
            source: "provider",
            outcome: "ok",
            duration: Duration::from_millis(1234),
            first_token: Some(Duration::from_millis(99)),
            cost: Some(1_500_000),
        }
    }

    #[test]
    fn a_line_is_json_with_all_that_was_given() {
        let mut line = String::new();
        Lines::default().put(&event(), &mut line);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["time"], "2026-11-21T14:00:00.123Z");
        assert_eq!(value["label"], "ci-bot");
        assert_eq!(value["input_uncached"], 10);
        assert_eq!(value["cost_usd"], "0.0000015");
        assert_eq!(value["first_token_ms"], 99);
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn times_are_written_as_they_are_whatever_came_before() {
        let mut lines = Lines::default();
        for time in [
            "2026-11-21T14:00:00.1234567Z",
            "2026-11-21T14:00:00.999999999Z",
            "2026-11-21T14:00:00Z",
            "2026-11-21T14:00:01Z",
            "2026-11-21T14:00:00.005Z",
            "1970-01-01T00:00:00Z",
            "1969-12-31T23:59:59.25Z",
            "9999-12-30T22:00:00.9999Z",
        ] {
            let ended: Timestamp = time.parse().unwrap();
            let (mut line, wanted) = (String::new(), format!("\"time\":\"{ended:.3}\""));
            lines.put(&Event { ended, ..event() }, &mut line);
            assert!(line.contains(&wanted), "{line} has no {wanted}");
        }
    }

    #[test]
    fn dollars_are_exact() {
        for (pico, text) in [
            (0, "0"),
            (1, "0.000000000001"),
            (1_000_000_000_000, "1"),
            (12_340_000_000_000, "12.34"),
            (u128::from(u64::MAX), "18446744.073709551615"),
        ] {
            assert_eq!(dollars(pico), text);
            assert_eq!(super::pico(text), Some(pico));
        }
        assert_eq!(pico("2.50"), Some(2_500_000_000_000));
        for wrong in ["", ".5", "1.", "-1", "1e3", "+1", "1.+5", "0.0000000000001", "1000000000000000000"] {
            assert_eq!(pico(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_name_breaks_a_line() {
        let mut line = String::new();
        let name: String = (0..=255_u8).map(char::from).collect();
        let event = Event { upstream: name.as_str().into(), model: "*vendor/a:b@c.d_e-f".into(), ..event() };
        Lines::default().put(&event, &mut line);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["model"], "*vendor/a:b@c.d_e-f", "all that a label can hold");
        assert_eq!(value["upstream"].as_str().unwrap().len(), 256);
    }
}
