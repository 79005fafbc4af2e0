//! Encoded bodies, decoded piece by piece beside the relay: bounded windows in wiped memory.

/// A content coding (RFC 9110 section 8.4.1; zstd: RFC 8878).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    Brotli,
    /// zlib-wrapped, or raw as some senders have it.
    Deflate,
    Gzip,
    Zstd,
}

/// Why decoding ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DecodeFault {
    /// The bytes are none of this encoding.
    Malformed,
    /// More plain bytes than allowed, in total or for each encoded one.
    TooLarge,
}

/// Decodes one body.
pub(crate) struct Decoder {
    _todo: (),
}

impl Encoding {
    /// The one coding that a `Content-Encoding` value names; `None` for none, several or an unknown one.
    pub(crate) fn of(_value: &[u8]) -> Option<Self> {
        todo!()
    }
}

impl Decoder {
    /// A decoder that gives at most `plain_bytes_max` bytes.
    pub(crate) fn new(_encoding: Encoding, _plain_bytes_max: u64) -> Self {
        todo!()
    }

    /// Decodes `bytes` and shows each plain piece to `sink`, which must not keep it: its memory is cleared behind the call.
    ///
    /// # Errors
    /// When this is the end: what was shown so far stands, nothing more comes.
    pub(crate) fn push(&mut self, _bytes: &[u8], _sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeFault> {
        todo!()
    }

    /// The encoded body ended here.
    ///
    /// # Errors
    /// If it is not complete.
    pub(crate) fn finish(&mut self, _sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeFault> {
        todo!()
    }
}
