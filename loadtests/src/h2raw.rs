//! HTTP/2 by hand: frames as bytes, for peers that break the rules. Reading is as simple as writing.

use std::io;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types, for [`frame`] and [`RawFrame::kind`].
#[expect(missing_docs, reason = "the names are those of the RFC")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// END_STREAM, and ACK of SETTINGS and PING.
pub const END_STREAM: u8 = 1;
/// END_HEADERS.
pub const END_HEADERS: u8 = 4;

/// Any frame, sensible or not.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(9 + payload.len());
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
    out.freeze()
}

/// A header block without compression: every field a literal that is not to be indexed.
pub fn header_block(fields: &[(&str, &str)]) -> Bytes {
    let mut out = BytesMut::new();
    for (name, value) in fields {
        out.put_u8(0);
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, value.as_bytes());
    }
    out.freeze()
}

fn put_string(out: &mut BytesMut, text: &[u8]) {
    // RFC 7541 5.1: an integer with a prefix of seven bits.
    match text.len() {
        len @ 0..127 => out.put_u8(len as u8),
        len => {
            out.put_u8(127);
            let mut rest = len - 127;
            while rest >= 128 {
                out.put_u8(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.put_u8(rest as u8);
        }
    }
    out.put_slice(text);
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// See [`kind`].
    pub kind: u8,
    /// As sent.
    pub flags: u8,
    /// 0 for the connection.
    pub stream: u32,
    /// Not decoded.
    pub payload: Bytes,
}

/// Reads one frame; None at the end of the stream.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<RawFrame>> {
    let mut head = [0; 9];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let [a, b, c, kind, flags, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok(Some(RawFrame { kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]), payload: payload.into() }))
}
