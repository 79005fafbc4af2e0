//! RFC 6455 frames for both sides, and the two handshakes.

use std::io;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

/// Frame types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the RFC")]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn of(nibble: u8) -> Option<Opcode> {
        Some(match nibble {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }
}

/// One frame, unmasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Last fragment of its message.
    pub fin: bool,
    /// The type.
    pub opcode: Opcode,
    /// The payload.
    pub payload: Bytes,
}

impl Frame {
    /// A whole message in one frame, or a control frame.
    pub fn new(opcode: Opcode, payload: impl Into<Bytes>) -> Frame {
        Frame { fin: true, opcode, payload: payload.into() }
    }

    /// A fragment.
    pub fn fragment(opcode: Opcode, payload: impl Into<Bytes>, fin: bool) -> Frame {
        Frame { fin, opcode, payload: payload.into() }
    }

    /// A close frame.
    pub fn close(code: u16, reason: &str) -> Frame {
        let mut payload = BytesMut::from(&code.to_be_bytes()[..]);
        payload.extend_from_slice(reason.as_bytes());
        Frame::new(Opcode::Close, payload)
    }

    /// The code of a close frame: 1005 if it names none.
    pub fn close_code(&self) -> u16 {
        self.payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]))
    }

    /// The wire form; clients mask, servers do not.
    pub fn encode(&self, mask: Option<[u8; 4]>) -> Bytes {
        let len = self.payload.len();
        let mut out = BytesMut::with_capacity(len + 14);
        let mask_bit = if mask.is_some() { 0x80 } else { 0 };
        out.extend_from_slice(&[(self.fin as u8) << 7 | self.opcode as u8]);
        match len {
            0..126 => out.extend_from_slice(&[mask_bit | len as u8]),
            126..65_536 => {
                out.extend_from_slice(&[mask_bit | 126]);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            _ => {
                out.extend_from_slice(&[mask_bit | 127]);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        if let Some(key) = mask {
            out.extend_from_slice(&key);
        }
        let start = out.len();
        out.extend_from_slice(&self.payload);
        if let Some(key) = mask {
            apply_mask(&mut out[start..], key);
        }
        out.freeze()
    }

    /// Takes one frame from the front of `buffer`, or nothing while it is incomplete.
    pub fn decode(buffer: &mut BytesMut, role: Role) -> Result<Option<Frame>, FrameError> {
        let [first, second, ..] = buffer[..] else { return Ok(None) };
        let (masked, short) = (second & 0x80 != 0, second & 0x7f);
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBits);
        }
        let opcode = Opcode::of(first & 0x0f).ok_or(FrameError::Opcode)?;
        if masked != (role == Role::Server) {
            return Err(FrameError::Masking);
        }
        let fin = first & 0x80 != 0;
        if opcode as u8 >= 8 && (!fin || short > 125) {
            return Err(FrameError::Control);
        }
        let (head, len) = match short {
            126 => match buffer.get(2..4) {
                Some(len) => (4, u64::from(u16::from_be_bytes([len[0], len[1]]))),
                None => return Ok(None),
            },
            127 => match buffer.get(2..10) {
                Some(len) => (10, u64::from_be_bytes(len.try_into().expect("eight bytes"))),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        if len > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        let start = head + if masked { 4 } else { 0 };
        if buffer.len() < start + len as usize {
            return Ok(None);
        }
        let key = masked.then(|| [buffer[head], buffer[head + 1], buffer[head + 2], buffer[head + 3]]);
        buffer.advance(start);
        let mut payload = buffer.split_to(len as usize);
        if let Some(key) = key {
            apply_mask(&mut payload, key);
        }
        Ok(Some(Frame { fin, opcode, payload: payload.freeze() }))
    }
}

/// Why a peer's bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A control frame that is long or fragmented.
    Control,
    /// A mask where none belongs, or none where one does.
    Masking,
    /// An unknown type.
    Opcode,
    /// An extension nobody agreed to.
    ReservedBits,
    /// Longer than this codec wants to hold.
    TooLong,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "websocket frame: {self:?}")
    }
}

impl std::error::Error for FrameError {}

/// Which side one is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Masks what it sends.
    Client,
    /// Does not.
    Server,
}

/// A WebSocket over any stream, behind the handshake.
pub struct WebSocket<S> {
    stream: S,
    role: Role,
    received: BytesMut,
    /// Of the message whose fragments are arriving.
    partial: Option<(Opcode, BytesMut)>,
    mask: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Takes over a stream; `received` is what came behind the peer's head.
    pub fn new(stream: S, role: Role, received: &[u8]) -> WebSocket<S> {
        WebSocket { stream, role, received: BytesMut::from(received), partial: None, mask: 0x5eed_5eed }
    }

    /// The client's handshake. `headers` are whole lines (`name: value\r\n`). Without a 101 the error holds the head.
    pub async fn connect(mut stream: S, host: &str, path: &str, headers: &str) -> io::Result<WebSocket<S>> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {CLIENT_KEY}\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut received = BytesMut::new();
        let end = loop {
            if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = String::from_utf8_lossy(&received.split_to(end)).into_owned();
        let accepted = head.lines().any(|line| {
            line.split_once(':').is_some_and(|(name, value)| {
                name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == accept_key(CLIENT_KEY)
            })
        });
        if !head.starts_with("HTTP/1.1 101 ") || !accepted {
            return Err(io::Error::other(head));
        }
        Ok(WebSocket { received, ..WebSocket::new(stream, Role::Client, &[]) })
    }

    /// Sends one frame.
    pub async fn send(&mut self, frame: Frame) -> io::Result<()> {
        let mask = (self.role == Role::Client).then(|| {
            // The mask keeps caches from being fooled; a test needs it to vary, not to be unguessable.
            self.mask = self.mask.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
            self.mask.to_be_bytes()
        });
        self.stream.write_all(&frame.encode(mask)).await?;
        self.stream.flush().await
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: &str) -> io::Result<()> {
        self.send(Frame::new(Opcode::Text, text.as_bytes().to_vec())).await
    }

    /// Sends bytes that need not be a frame.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next frame as it came; None when the stream ended between frames.
    pub async fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let decoded = Frame::decode(&mut self.received, self.role);
            if let Some(frame) = decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                let clean = self.received.is_empty();
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next message, put together from its fragments, or a control frame. Pings are answered on the way.
    pub async fn next_message(&mut self) -> io::Result<Option<Frame>> {
        while let Some(frame) = self.next_frame().await? {
            match (frame.opcode, self.partial.take()) {
                (Opcode::Ping, partial) => {
                    self.partial = partial;
                    self.send(Frame::new(Opcode::Pong, frame.payload.clone())).await?;
                    return Ok(Some(frame));
                }
                (Opcode::Pong | Opcode::Close, partial) => {
                    self.partial = partial;
                    return Ok(Some(frame));
                }
                (Opcode::Continuation, Some((opcode, mut message))) => {
                    message.extend_from_slice(&frame.payload);
                    if frame.fin {
                        return Ok(Some(Frame::new(opcode, message)));
                    }
                    self.partial = Some((opcode, message));
                }
                (Opcode::Text | Opcode::Binary, None) if frame.fin => return Ok(Some(frame)),
                (opcode @ (Opcode::Text | Opcode::Binary), None) => {
                    self.partial = Some((opcode, BytesMut::from(&frame.payload[..])));
                }
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "fragments out of order")),
            }
        }
        Ok(None)
    }

    /// The stream below.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

/// The `sec-websocket-accept` that belongs to a key.
pub fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref())
}

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
            out.push(if at <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    // Words first: the compiler turns them into vectors.
    let word = u32::from_ne_bytes(key);
    let mut words = payload.chunks_exact_mut(4);
    for bytes in &mut words {
        let masked = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) ^ word;
        bytes.copy_from_slice(&masked.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// The key of the RFC's example; nothing depends on its being random.
const CLIENT_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// More than any test sends in one frame.
const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rfcs_examples_hold() {
        assert_eq!(accept_key(CLIENT_KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(base64(b"f") + &base64(b"fo") + &base64(b"foo"), "Zg==Zm8=Zm9v");
        let hello = Frame::new(Opcode::Text, "Hello");
        assert_eq!(hello.encode(None)[..], *b"\x81\x05Hello");
        assert_eq!(hello.encode(Some([0x37, 0xfa, 0x21, 0x3d]))[..], *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    }

    #[test]
    fn frames_of_every_length_form_survive_every_cut() {
        for len in [0, 1, 125, 126, 300] {
            let frame = Frame::new(Opcode::Binary, vec![7; len]);
            let wire = frame.encode(Some([1, 2, 3, 4]));
            for cut in 0..wire.len() {
                let mut buffer = BytesMut::from(&wire[..cut]);
                assert_eq!(Frame::decode(&mut buffer, Role::Server), Ok(None));
                buffer.extend_from_slice(&wire[cut..]);
                assert_eq!(Frame::decode(&mut buffer, Role::Server), Ok(Some(frame.clone())));
            }
        }
        let long = Frame::new(Opcode::Binary, vec![9; 70_000]);
        assert_eq!(Frame::decode(&mut BytesMut::from(&long.encode(None)[..]), Role::Client), Ok(Some(long)));
        let unmasked = Frame::new(Opcode::Text, "x").encode(None);
        assert_eq!(Frame::decode(&mut BytesMut::from(&unmasked[..]), Role::Server), Err(FrameError::Masking));
    }
}
