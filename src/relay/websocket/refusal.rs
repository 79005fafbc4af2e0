//! What a client is told of a message that does not go on: an event in its dialect, where there is one, and a close frame.
//! Texts name the rule and nothing of the message.

use super::frames::opcode;
use super::frames::server_frame;
use super::judged::Stop;
use crate::limits::Kind;
use crate::limits::Limit;
use crate::limits::Period;
use crate::provider::Operation;
use crate::provider::Provider;
use crate::retention::Denied;

/// "Protocol error" (RFC 6455 section 7.4.1).
pub(super) const CLOSE_PROTOCOL: u16 = 1002;

/// "A message that violates its policy" (RFC 6455 section 7.4.1).
pub(super) const CLOSE_POLICY: u16 = 1008;

/// Whose error events a socket's client understands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Events {
    /// OpenAI's Responses over WebSocket.
    Responses,
    /// OpenAI's Realtime and what imitates it.
    Realtime,
    /// Gemini Live has none; its SDKs show the close frame's code and reason.
    None,
}

impl Events {
    pub(super) fn of(provider: Provider, operation: Operation) -> Self {
        match (provider, operation) {
            (Provider::Gemini | Provider::Vertex, _) => Self::None,
            (_, Operation::Responses) => Self::Responses,
            _ => Self::Realtime,
        }
    }

    /// The event, as a whole frame.
    pub(super) fn error(self, why: Stop) -> Option<Vec<u8>> {
        let (status, kind, code, message) = match why {
            Stop::Denied(denied) => (403, "invalid_request_error", code(denied), message(denied)),
            Stop::Limited(limit) => {
                let spent = matches!(limit, Limit::Budget(..));
                let code = if spent { "insufficient_quota" } else { "rate_limit_exceeded" };
                (429, if spent { code } else { "rate_limit_error" }, code, limit_message(limit))
            }
            Stop::Protocol => return None,
        };
        let error = format!(r#""error":{{"type":"{kind}","code":"{code}","message":"{message}""#);
        let event = match self {
            // WIRE: `{"type":"error","status","error":{code,message,param,type}}`.
            Self::Responses => format!(r#"{{"type":"error","status":{status},{error},"param":null}}}}"#),
            Self::Realtime => format!(r#"{{"type":"error",{error}}}}}"#),
            Self::None => return None,
        };
        Some(server_frame(opcode::TEXT, event.as_bytes()))
    }
}

/// The close frame to the client.
pub(super) fn close(why: Stop) -> Vec<u8> {
    let (status, reason) = match why {
        Stop::Denied(denied) => (CLOSE_POLICY, message(denied)),
        Stop::Limited(limit) => (CLOSE_POLICY, limit_message(limit)),
        Stop::Protocol => (CLOSE_PROTOCOL, "The frames are not those of RFC 6455.".to_owned()),
    };
    let mut payload = status.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    server_frame(opcode::CLOSE, &payload)
}

/// Of at most 123 bytes, so that it fits a close frame, and without a character that JSON escapes.
fn message(denied: Denied) -> String {
    match denied {
        Denied::Rule(rule) => {
            format!("The retention policy does not allow {} ({}).", rule.says(), rule.as_str())
        }
        Denied::Model => "Not sent on: this model is not on the list.".to_owned(),
        Denied::Unreadable => "Not sent on: the message is not JSON that can be read.".to_owned(),
        Denied::Encoding => "Not sent on: the message's encoding is not known.".to_owned(),
        Denied::TooLarge => "Not sent on: the message is too large.".to_owned(),
        Denied::Thread => "Not sent on: message threads are not allowed; send the whole history.".to_owned(),
    }
}

/// The same of a limit.
fn limit_message(limit: Limit) -> String {
    let of = |kind| match kind {
        Kind::Requests => "requests",
        Kind::InputTokens => "input tokens",
        Kind::OutputTokens => "output tokens",
        Kind::Tokens => "tokens",
        Kind::Money => "money",
    };
    match limit {
        Limit::Concurrency => "Not sent on: the limit of open streams is reached.".to_owned(),
        Limit::Rate(kind) => format!("Not sent on: the limit of {} is reached. Try again later.", of(kind)),
        Limit::Budget(kind, Period::Day) => format!("Not sent on: the day's budget of {} is used up.", of(kind)),
        Limit::Budget(kind, Period::Month) => format!("Not sent on: the month's budget of {} is used up.", of(kind)),
    }
}

fn code(denied: Denied) -> &'static str {
    match denied {
        Denied::Model => "model_not_allowed",
        Denied::Unreadable | Denied::Encoding => "invalid_json",
        Denied::TooLarge => "request_too_large",
        Denied::Rule(_) | Denied::Thread => "policy_refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::Rule;

    fn all() -> impl Iterator<Item = Denied> {
        let others = [Denied::Model, Denied::Unreadable, Denied::Encoding, Denied::TooLarge, Denied::Thread];
        Rule::ALL.iter().map(|rule| Denied::Rule(*rule)).chain(others)
    }

    #[test]
    fn events_are_json_and_closes_fit() {
        for denied in all() {
            for events in [Events::Responses, Events::Realtime] {
                let frame = events.error(Stop::Denied(denied)).expect("an event");
                let start = frame.iter().position(|byte| *byte == b'{').expect("JSON");
                let event: serde_json::Value = serde_json::from_slice(&frame[start..]).expect("JSON");
                assert_eq!(event["type"], "error");
                assert_eq!(event["error"]["type"], "invalid_request_error");
                assert_eq!(event["status"].as_u64(), (events == Events::Responses).then_some(403));
            }
            assert_eq!(Events::None.error(Stop::Denied(denied)), None);
            let close = close(Stop::Denied(denied));
            assert!(close.len() <= 127 && close[..1] == [0x88] && close[2..4] == [0x03, 0xf0], "{denied:?}");
        }
        let close = close(Stop::Protocol);
        assert!(close.len() <= 127 && close[2..4] == [0x03, 0xea]);
    }

    #[test]
    fn a_rule_is_named() {
        let frame = Events::Responses.error(Stop::Denied(Denied::Rule(Rule::Store))).expect("an event");
        let text = String::from_utf8(frame[4..].to_vec()).expect("text");
        assert_eq!(
            text,
            r#"{"type":"error","status":403,"error":{"type":"invalid_request_error","code":"policy_refused","message":"The retention policy does not allow storing the answer at the provider (store).","param":null}}"#
        );
    }
}
