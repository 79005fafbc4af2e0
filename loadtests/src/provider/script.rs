//! The script language: `key=value;key=value`, taken from the `x-script` header or the `script=` query parameter.
//!
//! What is answered
//! - `file=NAME` a vectors file, byte-exact, with its content type and status; or what [`super::Provider::put`] put there
//! - `size=N` N bytes of [`crate::pattern`]
//! - `words=SEED` the same, of [`crate::words`]; `event_bytes=N` in pieces of N bytes, as many as there are in one write
//! - `events=N` an SSE stream of N chat chunks and `[DONE]`; `event_bytes=N` size of each, `period_us=N` time between
//!   starts, `stamp=1` a [`crate::monotonic_ns`] in each, `usage=1` a usage chunk before `[DONE]`
//! - `encoding=gzip|br|zstd|deflate|deflate-raw` any of these but the echo, encoded as a whole
//! - `echo=1` the request body as it arrives, and its trailers
//! - none of them: what the path answers by itself; on an unknown path nothing, if there is a script
//!
//! How the head looks
//! - `status=N`, `header=name:value` (repeatable, `%XX` decoded), `trailer=name:value` (the same; on h1 hyper sends
//!   trailers only to a client that said `te: trailers`), `close=1` (`connection: close`, or GOAWAY)
//! - `header_words=name:SEED`, `trailer_words=name:SEED` (repeatable) values of 48 letters of [`crate::words`], so that
//!   the script itself does not hold them
//! - `len=auto|known|chunked|close` framing; `close` is close-delimited (h1 only)
//! - `info=N` a 1xx first (h1 only; repeatable)
//!
//! When it comes
//! - `head_delay_ms=N`; `cuts=3,17,200` or `cuts=splits` (those of the manifest) separate writes; `every=N` the same at
//!   every N bytes; `delay_ms=N` pause at each cut
//! - `early=1` answer before the request body is read; `early_close=1` the same, and the body is never read
//! - `beside=1` answer at once, and read the request body meanwhile; `hold_at=N` (with it) send N bytes of the answer,
//!   the rest once the request body has ended; `hold_at=N;gate=NAME` the rest once [`super::Provider::open`] was called
//! - `never=1` read the body, never answer
//! - `read_rate=N` request body at N bytes a second; `read_stall=1` never read it
//!
//! How it ends. `N` counts body bytes; `head` means instead of a head
//! - `stall_after=N` send N bytes, then hang
//! - `reset_after=N|head` h1: TCP RST, h2: RST_STREAM with `reset_code=N` (a number, INTERNAL_ERROR if not given)
//! - `fin_after=N|head` FIN without close_notify, also on h2
//! - `goodbye_after=N|head` close_notify and FIN, also on h2
//! - `kill_after=N|head` TCP RST, also on h2
//!
//! WebSocket: `ws=echo` (default), `ws=script` (with `file=NAME.jsonl`: its lines after the client's first message),
//! `ws=closeNNNN` (that close code right away), `ws=ping`, `ws=stall`, `ws=reset`, `ws=fin`, `ws=flood` (`events=N`
//! messages of `event_bytes=N`, `period_us=N` apart; with `words=SEED` made of [`crate::words`]), `ws=refuse` (426).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;

use crate::encoding::Coding;
use crate::io::Ending;

/// One parsed script.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub(crate) file: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) words: Option<u32>,
    pub(crate) events: Option<u64>,
    pub(crate) event_bytes: usize,
    pub(crate) period: Duration,
    pub(crate) stamp: bool,
    pub(crate) usage: bool,
    pub(crate) echo: bool,
    pub(crate) encoding: Option<Coding>,

    pub(crate) status: Option<StatusCode>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) trailers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) close: bool,
    pub(crate) framing: Framing,
    pub(crate) info: Vec<u16>,

    pub(crate) head_delay: Duration,
    pub(crate) cuts: Cuts,
    pub(crate) delay: Duration,
    pub(crate) early: bool,
    pub(crate) early_close: bool,
    pub(crate) beside: bool,
    pub(crate) hold_at: Option<u64>,
    pub(crate) gate: Option<String>,
    pub(crate) never: bool,
    pub(crate) read_rate: Option<u64>,
    pub(crate) read_stall: bool,

    pub(crate) fault: Option<Fault>,
    pub(crate) reset_code: Option<u32>,

    pub(crate) ws: WebSocketScript,
}

/// A script that cannot be followed, by its offending part.
#[derive(Debug)]
pub struct ScriptError(pub(crate) String);

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "script: {}", self.0)
    }
}

impl std::error::Error for ScriptError {}

impl FromStr for Script {
    type Err = ScriptError;

    fn from_str(text: &str) -> Result<Script, ScriptError> {
        let mut script = Script::default();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, "1"));
            script.set(key.trim(), value.trim()).ok_or_else(|| ScriptError(part.to_owned()))?;
        }
        Ok(script)
    }
}

impl Script {
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let fault = |what| Some(Fault { at: FaultAt::parse(value)?, what });
        match key {
            "file" if !value.contains(['/', '\\']) => self.file = Some(value.to_owned()),
            "size" => self.size = Some(value.parse().ok()?),
            "words" => self.words = Some(value.parse().ok()?),
            "events" => self.events = Some(value.parse().ok()?),
            "event_bytes" => self.event_bytes = value.parse().ok()?,
            "period_us" => self.period = Duration::from_micros(value.parse().ok()?),
            "stamp" => self.stamp = flag(value)?,
            "usage" => self.usage = flag(value)?,
            "echo" => self.echo = flag(value)?,
            "encoding" => self.encoding = Some(value.parse().ok()?),

            "status" => self.status = Some(StatusCode::from_bytes(value.as_bytes()).ok()?),
            "header" => self.headers.push(field(value)?),
            "trailer" => self.trailers.push(field(value)?),
            "header_words" => self.headers.push(field_of_words(value)?),
            "trailer_words" => self.trailers.push(field_of_words(value)?),
            "close" => self.close = flag(value)?,
            "len" => {
                self.framing = match value {
                    "auto" => Framing::Auto,
                    "known" => Framing::Known,
                    "chunked" => Framing::Chunked,
                    "close" => Framing::Close,
                    _ => return None,
                }
            }
            "info" => self.info.push(value.parse().ok().filter(|status| (100..200).contains(status))?),

            "head_delay_ms" => self.head_delay = Duration::from_millis(value.parse().ok()?),
            "cuts" if value == "splits" => self.cuts = Cuts::Splits,
            "cuts" => {
                let mut cuts: Vec<u64> = value.split(',').map(|cut| cut.trim().parse().ok()).collect::<Option<_>>()?;
                cuts.sort_unstable();
                self.cuts = Cuts::At(cuts);
            }
            "every" => self.cuts = Cuts::Every(value.parse().ok().filter(|every| *every > 0)?),
            "delay_ms" => self.delay = Duration::from_millis(value.parse().ok()?),
            "early" => self.early = flag(value)?,
            "early_close" => self.early_close = flag(value)?,
            "beside" => self.beside = flag(value)?,
            "gate" => self.gate = Some(value.to_owned()),
            "hold_at" => self.hold_at = Some(value.parse().ok()?),
            "never" => self.never = flag(value)?,
            "read_rate" => self.read_rate = Some(value.parse().ok().filter(|rate| *rate > 0)?),
            "read_stall" => self.read_stall = flag(value)?,

            "stall_after" => self.fault = fault(FaultKind::Stall),
            "reset_after" => self.fault = fault(FaultKind::ResetStream),
            "fin_after" => self.fault = fault(FaultKind::Connection(Ending::Fin)),
            "goodbye_after" => self.fault = fault(FaultKind::Connection(Ending::Goodbye)),
            "kill_after" => self.fault = fault(FaultKind::Connection(Ending::Reset)),
            "reset_code" => self.reset_code = Some(value.parse().ok()?),

            "ws" => {
                self.ws = match value {
                    "echo" => WebSocketScript::Echo,
                    "script" => WebSocketScript::File,
                    "ping" => WebSocketScript::Ping,
                    "stall" => WebSocketScript::Stall,
                    "reset" => WebSocketScript::End(Ending::Reset),
                    "fin" => WebSocketScript::End(Ending::Fin),
                    "flood" => WebSocketScript::Flood,
                    "refuse" => WebSocketScript::Refuse,
                    _ => WebSocketScript::Close(value.strip_prefix("close")?.parse().ok()?),
                }
            }
            _ => return None,
        }
        // An unparsable fault position left None behind.
        if key.ends_with("_after") && self.fault.is_none() { None } else { Some(()) }
    }
}

/// How the body's length is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Known if it is known.
    #[default]
    Auto,
    Known,
    Chunked,
    Close,
}

/// Where the body is cut into separate writes.
#[derive(Clone, Debug, Default)]
pub(crate) enum Cuts {
    #[default]
    None,
    /// Sorted offsets.
    At(Vec<u64>),
    Every(u64),
    /// The manifest's, resolved when the file is known.
    Splits,
}

impl Cuts {
    /// The first cut behind `offset`.
    pub(crate) fn next(&self, offset: u64) -> Option<u64> {
        match self {
            Cuts::None | Cuts::Splits => None,
            Cuts::At(cuts) => cuts.get(cuts.partition_point(|cut| *cut <= offset)).copied(),
            Cuts::Every(every) => Some((offset / every + 1) * every),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) at: FaultAt,
    pub(crate) what: FaultKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultAt {
    Head,
    BodyByte(u64),
}

impl FaultAt {
    fn parse(value: &str) -> Option<FaultAt> {
        if value == "head" { Some(FaultAt::Head) } else { value.parse().ok().map(FaultAt::BodyByte) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    Stall,
    /// On h1 a stream is a connection.
    ResetStream,
    Connection(Ending),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum WebSocketScript {
    #[default]
    Echo,
    File,
    Ping,
    Stall,
    End(Ending),
    Flood,
    Refuse,
    Close(u16),
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

fn field(value: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = value.split_once(':')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let value = percent_decode(value.trim(), false);
    Some((name, HeaderValue::from_bytes(&value).ok()?))
}

fn field_of_words(value: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, seed) = value.split_once(':')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    let text = crate::words::text(seed.trim().parse().ok()?, HEAD_WORDS_BYTES);
    Some((name, HeaderValue::from_str(&text).ok()?))
}

/// The length of a value made by `header_words` or `trailer_words`: three words.
pub const HEAD_WORDS_BYTES: usize = 48;

/// The script of a query string, if it has one.
pub(crate) fn script_of_query(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("script="))?;
    String::from_utf8(percent_decode(value, true)).ok()
}

fn percent_decode(text: &str, plus_is_space: bool) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_parse_and_nonsense_is_named() {
        let script: Script = "file=a.sse; cuts=17,3;delay_ms=5;header=x-a:b%3Bc;reset_after=9".parse().unwrap();
        assert_eq!(script.file.as_deref(), Some("a.sse"));
        assert_eq!(script.cuts.next(0), Some(3));
        assert_eq!(script.cuts.next(3), Some(17));
        assert_eq!(script.cuts.next(17), None);
        assert_eq!(script.headers[0].1, "b;c");
        assert_eq!(script.fault.unwrap().at, FaultAt::BodyByte(9));
        for nonsense in ["sise=3", "size=x", "reset_after=tail", "len=5", "file=../x", "ws=shut", "echo=2", "info=200"]
        {
            assert!(nonsense.parse::<Script>().is_err(), "{nonsense}");
        }
        assert_eq!(script_of_query("a=1&script=size%3D5%3Bclose=1").unwrap(), "size=5;close=1");
    }
}
