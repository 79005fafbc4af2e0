//! Encoded bodies, decoded piece by piece beside the relay: bounded windows in wiped memory.
//!
//! [`Decoder`] is pushed encoded bytes and shows plain ones, at most [`PIECE_BYTES`] at a time, in a buffer that it clears
//! behind each call. The decoders are written in Rust, so that all they hold stands in the global allocator, which clears
//! what is freed. They are freed at the stream's end, at its first fault, or with the [`Decoder`].
//!
//! What one decoder may hold, beside its piece:
//!
//! | coding | holds at most | when plain bytes are shown |
//! |---|---|---|
//! | gzip, deflate | 32 KiB of window (RFC 1951), 11 KiB of tables | as soon as they are decoded |
//! | br | 16 MiB of window (RFC 7932 section 9.1; larger ones, "large window brotli", are refused), below 1 MiB of tables | as soon as they are decoded |
//! | zstd | 8.25 MiB of window, and half as much again for the moment in which it grows; below 2 MiB of blocks and sequences | when the window has moved past them, or the frame ends |
//!
//! Windows of br and zstd start small and grow with what was decoded; a short body costs little.
//! RFC 9659 says that zstd windows in HTTP are at most 8 MiB; a larger one is refused.
//!
//! Against bombs: a sum of plain bytes, and [`RATIO_MAX`] plain bytes for each encoded one beyond the first
//! [`FREE_BYTES`]. Deflate cannot do more than 1032:1 by its format, and JSON of much repetition makes about 100:1; but a
//! few bytes of br or zstd can say "the same again" for megabytes.

use std::io::Read;

use brotli_decompressor::BrotliDecompressStream;
use brotli_decompressor::BrotliResult;
use brotli_decompressor::BrotliState;
use brotli_decompressor::StandardAlloc;
use flate2::Crc;
use flate2::Decompress;
use flate2::FlushDecompress;
use flate2::Status;
use ruzstd::decoding::BlockDecodingStrategy;
use ruzstd::decoding::FrameDecoder;
use ruzstd::decoding::errors::FrameDecoderError;

use crate::hygiene::wipe::wipe;

/// The most plain bytes shown in one call.
pub(crate) const PIECE_BYTES: usize = 16 << 10;

/// Plain bytes for each encoded one, beyond [`FREE_BYTES`].
const RATIO_MAX: u64 = 1000;

/// Plain bytes that no ratio is asked for.
const FREE_BYTES: u64 = 1 << 20;

/// RFC 9659: "Decoders MUST support window sizes up to 8 MB, encoders MUST NOT use larger ones."
const ZSTD_WINDOW_MAX: u64 = 8 << 20;

/// RFC 8878 section 3.1.1.2.3: `Block_Maximum_Size`.
const ZSTD_BLOCK_MAX: usize = 128 << 10;

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
    /// More plain bytes than allowed, in total or for each encoded one, or a window larger than allowed.
    TooLarge,
}

/// Decodes one body.
pub(crate) struct Decoder {
    coding: Coding,
    /// Cleared behind each call of a sink.
    piece: Box<[u8]>,
    bounds: Bounds,
    begun: bool,
}

/// How much came out, and of how much.
struct Bounds {
    plain_bytes_max: u64,
    plain: u64,
    encoded: u64,
}

enum Coding {
    Brotli(Box<Brotli>),
    Deflate(Deflate),
    Gzip(Gzip),
    Zstd(Zstd),
    /// What was said once is said again.
    Failed(DecodeFault),
}

impl Encoding {
    /// The one coding that a `Content-Encoding` value names; `None` for none (`identity` too), several or an unknown one.
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let names: [(&[u8], Self); 6] = [
            (b"br", Self::Brotli),
            (b"deflate", Self::Deflate),
            (b"gzip", Self::Gzip),
            // RFC 9110 section 8.4.1.3.
            (b"x-gzip", Self::Gzip),
            (b"zstd", Self::Zstd),
            (b"x-zstd", Self::Zstd),
        ];
        let value = value.trim_ascii();
        names.iter().find(|(name, _)| name.eq_ignore_ascii_case(value)).map(|(_, encoding)| *encoding)
    }
}

impl Decoder {
    /// A decoder that gives at most `plain_bytes_max` bytes.
    pub(crate) fn new(encoding: Encoding, plain_bytes_max: u64) -> Self {
        Self {
            coding: match encoding {
                Encoding::Brotli => Coding::Brotli(Box::new(Brotli::new())),
                Encoding::Deflate => Coding::Deflate(Deflate::new()),
                Encoding::Gzip => Coding::Gzip(Gzip::new()),
                Encoding::Zstd => Coding::Zstd(Zstd::new()),
            },
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
            bounds: Bounds { plain_bytes_max, plain: 0, encoded: 0 },
            begun: false,
        }
    }

    /// Decodes `bytes` and shows each plain piece to `sink`, which must not keep it: its memory is cleared behind the call.
    /// However a body is cut into calls, the plain bytes are the same.
    ///
    /// # Errors
    /// When this is the end: what was shown so far stands, nothing more comes.
    pub(crate) fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeFault> {
        self.begun |= !bytes.is_empty();
        let mut out = Out { piece: &mut self.piece, bounds: &mut self.bounds, sink };
        let pushed = match &mut self.coding {
            Coding::Brotli(brotli) => brotli.push(bytes, &mut out),
            Coding::Deflate(deflate) => deflate.push(bytes, &mut out),
            Coding::Gzip(gzip) => gzip.push(bytes, &mut out),
            Coding::Zstd(zstd) => zstd.push(bytes, &mut out),
            Coding::Failed(fault) => Err(*fault),
        };
        pushed.inspect_err(|fault| self.coding = Coding::Failed(*fault))
    }

    /// The encoded body ended here. A body of no bytes at all is complete: senders name a coding for those, too.
    ///
    /// # Errors
    /// If it is not complete.
    pub(crate) fn finish(&mut self, _sink: &mut dyn FnMut(&[u8])) -> Result<(), DecodeFault> {
        // All that can be shown has been: none of the four holds bytes back when its stream is complete.
        let complete = match &self.coding {
            Coding::Brotli(brotli) => brotli.done,
            Coding::Deflate(deflate) => matches!(deflate.state, DeflateState::Done),
            Coding::Gzip(gzip) => gzip.between_members(),
            Coding::Zstd(zstd) => zstd.between_frames(),
            Coding::Failed(fault) => return Err(*fault),
        };
        if complete || !self.begun {
            return Ok(());
        }
        self.coding = Coding::Failed(DecodeFault::Malformed);
        Err(DecodeFault::Malformed)
    }
}

/// Where plain bytes go: through the piece to the sink, if the bounds allow it.
struct Out<'a> {
    piece: &'a mut [u8],
    bounds: &'a mut Bounds,
    sink: &'a mut dyn FnMut(&[u8]),
}

impl Out<'_> {
    /// Shows the first `plain` bytes of the piece and clears it.
    fn show(&mut self, plain: usize) -> Result<(), DecodeFault> {
        if plain == 0 {
            return Ok(());
        }
        self.bounds.plain = self.bounds.plain.saturating_add(plain as u64);
        let by_ratio = self.bounds.encoded.saturating_mul(RATIO_MAX).saturating_add(FREE_BYTES);
        let allowed = self.bounds.plain <= self.bounds.plain_bytes_max.min(by_ratio);
        if allowed {
            (self.sink)(&self.piece[..plain]);
        }
        wipe(&mut self.piece[..plain]);
        if allowed { Ok(()) } else { Err(DecodeFault::TooLarge) }
    }

    /// `encoded` more bytes were taken in.
    fn took(&mut self, encoded: usize) {
        self.bounds.encoded = self.bounds.encoded.saturating_add(encoded as u64);
    }
}

/// RFC 7932.
struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    done: bool,
}

impl Brotli {
    fn new() -> Self {
        // Strict: what RFC 7932 defines, no large windows.
        let state =
            BrotliState::new_strict(StandardAlloc::default(), StandardAlloc::default(), StandardAlloc::default());
        Self { state, done: false }
    }

    fn push(&mut self, bytes: &[u8], out: &mut Out<'_>) -> Result<(), DecodeFault> {
        let mut place = 0;
        loop {
            if self.done {
                return if place == bytes.len() { Ok(()) } else { Err(DecodeFault::Malformed) };
            }
            let before = place;
            let mut left = bytes.len() - place;
            let mut room = out.piece.len();
            let mut plain = 0;
            let mut total = 0;
            let result = BrotliDecompressStream(
                &mut left,
                &mut place,
                bytes,
                &mut room,
                &mut plain,
                out.piece,
                &mut total,
                &mut self.state,
            );
            out.took(place - before);
            out.show(plain)?;
            match result {
                BrotliResult::ResultSuccess => {
                    self.done = true;
                    // Its window goes now.
                    self.state = BrotliState::new_strict(
                        StandardAlloc::default(),
                        StandardAlloc::default(),
                        StandardAlloc::default(),
                    );
                }
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::NeedsMoreInput if place == bytes.len() => return Ok(()),
                BrotliResult::NeedsMoreInput | BrotliResult::ResultFailure => return Err(DecodeFault::Malformed),
            }
        }
    }
}

/// Inflates; `Ok(Some(rest))` when the stream ended before `rest`.
fn inflate<'b>(
    inflater: &mut Decompress,
    mut bytes: &'b [u8],
    out: &mut Out<'_>,
    mut seen: impl FnMut(&[u8]),
) -> Result<Option<&'b [u8]>, DecodeFault> {
    loop {
        let (in_before, out_before) = (inflater.total_in(), inflater.total_out());
        let status = inflater.decompress(bytes, out.piece, FlushDecompress::None);
        let consumed = usize::try_from(inflater.total_in() - in_before).unwrap_or(usize::MAX);
        let plain = usize::try_from(inflater.total_out() - out_before).unwrap_or(usize::MAX);
        let (Some(rest), true) = (bytes.get(consumed..), plain <= out.piece.len()) else {
            return Err(DecodeFault::Malformed);
        };
        bytes = rest;
        out.took(consumed);
        seen(&out.piece[..plain]);
        out.show(plain)?;
        match status {
            Ok(Status::StreamEnd) => return Ok(Some(bytes)),
            Ok(Status::Ok | Status::BufError) if consumed == 0 && plain == 0 => {
                return if bytes.is_empty() { Ok(None) } else { Err(DecodeFault::Malformed) };
            }
            Ok(Status::Ok | Status::BufError) => {}
            Err(_) => return Err(DecodeFault::Malformed),
        }
    }
}

/// The coding that HTTP calls deflate: RFC 1950 around RFC 1951, or the latter alone.
struct Deflate {
    state: DeflateState,
}

enum DeflateState {
    /// The first byte, if it came: two tell which of both forms it is.
    Start(Option<u8>),
    Body(Decompress),
    Done,
}

impl Deflate {
    fn new() -> Self {
        Self { state: DeflateState::Start(None) }
    }

    fn push(&mut self, mut bytes: &[u8], out: &mut Out<'_>) -> Result<(), DecodeFault> {
        while !bytes.is_empty() {
            match &mut self.state {
                DeflateState::Start(None) => {
                    self.state = DeflateState::Start(Some(bytes[0]));
                    bytes = &bytes[1..];
                }
                DeflateState::Start(Some(first)) => {
                    let first = *first;
                    // RFC 1950 section 2.2: method 8, a window up to 32 KiB, divisible by 31.
                    let zlib = first & 0x0f == 8
                        && first >> 4 <= 7
                        && (u16::from(first) << 8 | u16::from(bytes[0])).is_multiple_of(31);
                    let mut inflater = Decompress::new(zlib);
                    let ended = inflate(&mut inflater, &[first], out, |_| ())?.is_some();
                    // No stream of either form ends with its first byte.
                    self.state = if ended { DeflateState::Done } else { DeflateState::Body(inflater) };
                }
                DeflateState::Body(inflater) => {
                    let Some(rest) = inflate(inflater, bytes, out, |_| ())? else { return Ok(()) };
                    bytes = rest;
                    self.state = DeflateState::Done;
                }
                DeflateState::Done => return Err(DecodeFault::Malformed),
            }
        }
        Ok(())
    }
}

/// RFC 1952, one member after another.
struct Gzip {
    state: GzipState,
    members: u64,
}

enum GzipState {
    Header(GzipHeader),
    Body {
        inflater: Decompress,
        crc: Crc,
    },
    /// CRC-32 and length, little-endian, and what they must be.
    Trailer {
        have: usize,
        expected: [u8; 8],
    },
}

/// Where a member's header stands (RFC 1952 section 2.3).
struct GzipHeader {
    /// Bytes of the fixed part so far.
    fixed: usize,
    flags: u8,
    /// `FEXTRA`'s length, then what is left of it.
    extra_length: [u8; 2],
    extra_length_bytes: usize,
    extra_left: u16,
    crc_left: u8,
}

impl Gzip {
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const HEADER_CRC: u8 = 2;

    fn new() -> Self {
        Self { state: GzipState::Header(GzipHeader::new()), members: 0 }
    }

    fn between_members(&self) -> bool {
        self.members > 0 && matches!(&self.state, GzipState::Header(header) if header.fixed == 0)
    }

    fn push(&mut self, mut bytes: &[u8], out: &mut Out<'_>) -> Result<(), DecodeFault> {
        while let Some(&byte) = bytes.first() {
            match &mut self.state {
                GzipState::Header(header) => {
                    bytes = &bytes[1..];
                    out.took(1);
                    if header.take(byte)? {
                        self.state = GzipState::Body { inflater: Decompress::new(false), crc: Crc::new() };
                    }
                }
                GzipState::Body { inflater, crc } => {
                    let Some(rest) = inflate(inflater, bytes, out, |plain| crc.update(plain))? else { return Ok(()) };
                    bytes = rest;
                    let mut expected = [0; 8];
                    expected[..4].copy_from_slice(&crc.sum().to_le_bytes());
                    expected[4..].copy_from_slice(&crc.amount().to_le_bytes());
                    self.state = GzipState::Trailer { have: 0, expected };
                }
                GzipState::Trailer { have, expected } => {
                    if byte != expected[*have] {
                        return Err(DecodeFault::Malformed);
                    }
                    bytes = &bytes[1..];
                    out.took(1);
                    *have += 1;
                    if *have == expected.len() {
                        self.members += 1;
                        self.state = GzipState::Header(GzipHeader::new());
                    }
                }
            }
        }
        Ok(())
    }
}

impl GzipHeader {
    fn new() -> Self {
        Self { fixed: 0, flags: 0, extra_length: [0; 2], extra_length_bytes: 0, extra_left: 0, crc_left: 0 }
    }

    /// Takes one byte; true when it was the last. Names and comments are not kept.
    fn take(&mut self, byte: u8) -> Result<bool, DecodeFault> {
        if self.fixed < 10 {
            let fits = match self.fixed {
                0 => byte == 0x1f,
                1 => byte == 0x8b,
                // Deflate, the only method there is.
                2 => byte == 8,
                // Reserved bits must be zero.
                3 => byte & 0xe0 == 0,
                _ => true,
            };
            if !fits {
                return Err(DecodeFault::Malformed);
            }
            if self.fixed == 3 {
                self.flags = byte;
                self.crc_left = if byte & Gzip::HEADER_CRC != 0 { 2 } else { 0 };
            }
            self.fixed += 1;
        } else if self.flags & Gzip::EXTRA != 0 {
            if self.extra_length_bytes < 2 {
                self.extra_length[self.extra_length_bytes] = byte;
                self.extra_length_bytes += 1;
                self.extra_left = u16::from_le_bytes(self.extra_length);
            } else {
                self.extra_left -= 1;
            }
            if self.extra_length_bytes == 2 && self.extra_left == 0 {
                self.flags &= !Gzip::EXTRA;
            }
        } else if self.flags & Gzip::NAME != 0 {
            if byte == 0 {
                self.flags &= !Gzip::NAME;
            }
        } else if self.flags & Gzip::COMMENT != 0 {
            if byte == 0 {
                self.flags &= !Gzip::COMMENT;
            }
        } else {
            self.crc_left = self.crc_left.saturating_sub(1);
        }
        let open = self.flags & (Gzip::EXTRA | Gzip::NAME | Gzip::COMMENT) != 0;
        Ok(self.fixed == 10 && !open && self.crc_left == 0)
    }
}

/// RFC 8878, one frame after another. The frames' parts are told apart here, because the decoder behind takes whole ones:
/// a header, then a block at a time. The checksum is passed over: what it guards against, TLS does.
struct Zstd {
    /// What the part that comes needs to be whole. Cleared when it is.
    part: Vec<u8>,
    state: ZstdState,
    frames: u64,
}

enum ZstdState {
    FrameHeader,
    /// This many bytes that say nothing.
    Skip(u32),
    Frame(Box<ZstdFrame>),
}

struct ZstdFrame {
    decoder: FrameDecoder,
    checksum: bool,
    /// What the header says the frame holds.
    content: Option<u64>,
    plain: u64,
}

impl Drop for Zstd {
    fn drop(&mut self) {
        wipe(&mut self.part);
    }
}

impl Zstd {
    fn new() -> Self {
        Self { part: Vec::new(), state: ZstdState::FrameHeader, frames: 0 }
    }

    fn between_frames(&self) -> bool {
        self.frames > 0 && self.part.is_empty() && matches!(self.state, ZstdState::FrameHeader)
    }

    fn push(&mut self, mut bytes: &[u8], out: &mut Out<'_>) -> Result<(), DecodeFault> {
        loop {
            if let ZstdState::Skip(left) = &mut self.state {
                let skip = (*left as usize).min(bytes.len());
                bytes = &bytes[skip..];
                out.took(skip);
                *left -= u32::try_from(skip).unwrap_or(u32::MAX);
                if *left > 0 {
                    return Ok(());
                }
                self.frames += 1;
                self.state = ZstdState::FrameHeader;
            }
            let needed = match &self.state {
                ZstdState::FrameHeader => frame_header_bytes(&self.part)?,
                ZstdState::Frame(frame) => frame.block_bytes(&self.part)?,
                ZstdState::Skip(_) => 0,
            };
            if self.part.len() < needed {
                if bytes.is_empty() {
                    return Ok(());
                }
                let take = (needed - self.part.len()).min(bytes.len());
                self.part.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
                out.took(take);
                continue;
            }
            let next = match &mut self.state {
                ZstdState::FrameHeader => Some(start_frame(&self.part)?),
                ZstdState::Frame(frame) => frame.block(&self.part, out)?.then_some(ZstdState::FrameHeader),
                ZstdState::Skip(_) => None,
            };
            wipe(&mut self.part);
            self.part.clear();
            if let Some(next) = next {
                self.frames += u64::from(matches!(next, ZstdState::FrameHeader));
                self.state = next;
            }
        }
    }
}

/// How long the frame header is of which `part` has come, as far as can be told (RFC 8878 section 3.1.1.1).
fn frame_header_bytes(part: &[u8]) -> Result<usize, DecodeFault> {
    let Some(magic) = part.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic)) else { return Ok(4) };
    if magic & 0xffff_fff0 == 0x184d_2a50 {
        return Ok(8);
    }
    if magic != 0xfd2f_b528 {
        return Err(DecodeFault::Malformed);
    }
    let Some(&descriptor) = part.get(4) else { return Ok(5) };
    // A reserved bit that must be zero.
    if descriptor & 0x08 != 0 {
        return Err(DecodeFault::Malformed);
    }
    let single_segment = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    Ok(5 + usize::from(!single_segment) + dictionary + content_size_bytes(descriptor))
}

fn content_size_bytes(descriptor: u8) -> usize {
    let single_segment = descriptor & 0x20 != 0;
    match descriptor >> 6 {
        0 => usize::from(single_segment),
        1 => 2,
        2 => 4,
        _ => 8,
    }
}

/// What follows the whole frame header `part`.
fn start_frame(part: &[u8]) -> Result<ZstdState, DecodeFault> {
    if part[0] != 0x28 {
        let length = part.last_chunk::<4>().copied().ok_or(DecodeFault::Malformed)?;
        return Ok(ZstdState::Skip(u32::from_le_bytes(length)));
    }
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW_MAX);
    match decoder.reset(part) {
        Ok(()) => {}
        Err(FrameDecoderError::WindowSizeTooBig { .. }) => return Err(DecodeFault::TooLarge),
        // A dictionary, too: none is agreed on.
        Err(_) => return Err(DecodeFault::Malformed),
    }
    let content = (content_size_bytes(part[4]) > 0).then(|| decoder.content_size());
    Ok(ZstdState::Frame(Box::new(ZstdFrame { decoder, checksum: part[4] & 0x04 != 0, content, plain: 0 })))
}

impl ZstdFrame {
    /// How long the block is of which `part` has come, as far as can be told, with the checksum behind the last one.
    fn block_bytes(&self, part: &[u8]) -> Result<usize, DecodeFault> {
        let Some(header) = part.first_chunk::<3>() else { return Ok(3) };
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let size = (header >> 3) as usize;
        if size > ZSTD_BLOCK_MAX {
            return Err(DecodeFault::Malformed);
        }
        let content = match header >> 1 & 3 {
            0 | 2 => size,
            1 => 1,
            _ => return Err(DecodeFault::Malformed),
        };
        let checksum = if header & 1 != 0 && self.checksum { 4 } else { 0 };
        Ok(3 + content + checksum)
    }

    /// Decodes a whole block; true when it was the frame's last.
    fn block(&mut self, part: &[u8], out: &mut Out<'_>) -> Result<bool, DecodeFault> {
        let compressed = part[0] >> 1 & 3 == 2;
        if compressed && literals_bytes(&part[3..]) > ZSTD_BLOCK_MAX {
            return Err(DecodeFault::Malformed);
        }
        self.decoder.decode_blocks(part, BlockDecodingStrategy::UptoBlocks(1)).map_err(|_| DecodeFault::Malformed)?;
        let last = self.decoder.is_finished();
        loop {
            let plain = self.decoder.read(out.piece).map_err(|_| DecodeFault::Malformed)?;
            if plain == 0 {
                break;
            }
            self.plain += plain as u64;
            out.show(plain)?;
        }
        if last && self.content.is_some_and(|content| content != self.plain) {
            return Err(DecodeFault::Malformed);
        }
        Ok(last)
    }
}

/// How many literals a compressed block says it has (RFC 8878 section 3.1.1.3.1.1). The decoder behind sees for itself that
/// sequences stay within a block's size, but it takes a block of literals alone whatever its size, up to 1 MiB.
fn literals_bytes(block: &[u8]) -> usize {
    let mut header = [0; 4];
    let have = block.len().min(4);
    header[..have].copy_from_slice(&block[..have]);
    let header = u32::from_le_bytes(header);
    let size_format = header >> 2 & 3;
    let literals = match (header & 3, size_format) {
        (0 | 1, 0 | 2) => header >> 3 & 0x1f,
        (0 | 1, 1) => header >> 4 & 0xfff,
        (0 | 1, _) => header >> 4 & 0xf_ffff,
        (_, 0 | 1) => header >> 4 & 0x3ff,
        (_, 2) => header >> 4 & 0x3fff,
        _ => header >> 4 & 0x3_ffff,
    };
    literals as usize
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::GzBuilder;
    use flate2::write::DeflateEncoder;
    use flate2::write::GzEncoder;
    use flate2::write::ZlibEncoder;

    use super::*;

    const ALL: [Encoding; 4] = [Encoding::Brotli, Encoding::Deflate, Encoding::Gzip, Encoding::Zstd];

    /// Made by Node's zlib and the zstd tool from [`text`]: of 160,000 bytes, or the first 1000.
    const TEXT_BR: &[u8] = include_bytes!("../tests/encoded/text.br");
    const TEXT_ZST: &[u8] = include_bytes!("../tests/encoded/text.zst");
    /// A window of 64 KiB.
    const NARROW_ZST: &[u8] = include_bytes!("../tests/encoded/narrow.zst");
    const SHORT_BR: &[u8] = include_bytes!("../tests/encoded/short.br");
    const SHORT_ZST: &[u8] = include_bytes!("../tests/encoded/short.zst");
    /// 64 MiB of one letter.
    const BOMB_BR: &[u8] = include_bytes!("../tests/encoded/bomb.br");
    const BOMB_ZST: &[u8] = include_bytes!("../tests/encoded/bomb.zst");
    /// The beginning of a frame with a window of 128 MiB.
    const WIDE_ZST: &[u8] = include_bytes!("../tests/encoded/wide.zst");
    const LARGE_WINDOW_BR: &[u8] = include_bytes!("../tests/encoded/large_window.br");

    fn text(bytes: usize) -> Vec<u8> {
        let words =
            ["alpha", "bravo", "{\"role\":\"user\"}", "delta ", "echo", "  ", "\n", "\"content\":\"", "7", "golf"];
        let mut seed = 7_u32;
        let mut text = Vec::new();
        while text.len() < bytes {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.extend_from_slice(words[(seed >> 24) as usize % 10].as_bytes());
        }
        text.truncate(bytes);
        text
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).expect("memory");
        encoder.finish().expect("memory")
    }

    fn raw(plain: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).expect("memory");
        encoder.finish().expect("memory")
    }

    /// What comes of these pieces, and what was shown up to there.
    fn decode(encoding: Encoding, max: u64, pieces: &[&[u8]]) -> (Result<(), DecodeFault>, Vec<u8>) {
        let mut decoder = Decoder::new(encoding, max);
        let mut plain = Vec::new();
        let mut sink = |piece: &[u8]| {
            assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
            plain.extend_from_slice(piece);
        };
        let mut result = Ok(());
        for piece in pieces {
            result = result.and_then(|()| decoder.push(piece, &mut sink));
        }
        let result = result.and_then(|()| decoder.finish(&mut sink));
        if result.is_err() {
            assert_eq!(decoder.push(b"x", &mut sink), result, "a fault stands");
        }
        assert!(decoder.piece.iter().all(|byte| *byte == 0), "the piece is cleared");
        (result, plain)
    }

    fn whole(encoding: Encoding, bytes: &[u8]) -> (Result<(), DecodeFault>, Vec<u8>) {
        decode(encoding, u64::MAX, &[bytes])
    }

    fn samples(plain: &[u8]) -> Vec<(Encoding, Vec<u8>)> {
        let long = plain.len() > 1000;
        vec![
            (Encoding::Gzip, gzip(plain)),
            (Encoding::Deflate, zlib(plain)),
            (Encoding::Deflate, raw(plain)),
            (Encoding::Brotli, if long { TEXT_BR } else { SHORT_BR }.to_vec()),
            (Encoding::Zstd, if long { TEXT_ZST } else { SHORT_ZST }.to_vec()),
            (Encoding::Zstd, if long { NARROW_ZST } else { SHORT_ZST }.to_vec()),
        ]
    }

    #[test]
    fn names() {
        assert_eq!(Encoding::of(b"gzip"), Some(Encoding::Gzip));
        assert_eq!(Encoding::of(b" X-GZip\t"), Some(Encoding::Gzip));
        assert_eq!(Encoding::of(b"br"), Some(Encoding::Brotli));
        assert_eq!(Encoding::of(b"zstd"), Some(Encoding::Zstd));
        assert_eq!(Encoding::of(b"Deflate"), Some(Encoding::Deflate));
        for other in ["", "identity", "gzip, br", "gzip;q=1", "compress", "gzipp"] {
            assert_eq!(Encoding::of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_others_encode_comes_out_whatever_the_cut() {
        for bytes in [1000, 160_000] {
            let plain = text(bytes);
            for (encoding, encoded) in samples(&plain) {
                let (result, out) = whole(encoding, &encoded);
                assert!(result == Ok(()) && out == plain, "{encoding:?} of {bytes}: {result:?}");
                let single: Vec<&[u8]> = encoded.chunks(1).collect();
                let (result, out) = decode(encoding, bytes as u64, &single);
                assert!(result == Ok(()) && out == plain, "{encoding:?} of {bytes}, byte by byte: {result:?}");
                let uneven: Vec<&[u8]> = encoded.chunks(977).collect();
                let (result, out) = decode(encoding, bytes as u64, &uneven);
                assert!(result == Ok(()) && out == plain, "{encoding:?} of {bytes}, in pieces: {result:?}");
                if bytes == 1000 {
                    for cut in 0..encoded.len() {
                        let (first, second) = encoded.split_at(cut);
                        let (result, out) = decode(encoding, u64::MAX, &[first, &[], second]);
                        assert!(result == Ok(()) && out == plain, "{encoding:?} cut at {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_flushed_is_shown_at_once() {
        // Streams of events come encoded, too; br and deflate must not hold them back.
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"data: one\n\n").expect("memory");
        encoder.flush().expect("memory");
        let mut decoder = Decoder::new(Encoding::Gzip, 1000);
        let mut plain = Vec::new();
        decoder.push(encoder.get_ref(), &mut |piece| plain.extend_from_slice(piece)).expect("well-formed");
        assert_eq!(plain, b"data: one\n\n");
    }

    #[test]
    fn gzip_headers_with_everything() {
        let mut encoder = GzBuilder::new()
            .filename("name")
            .comment("comment")
            .extra(vec![7; 300])
            .write(Vec::new(), Compression::default());
        encoder.write_all(b"plain").expect("memory");
        let encoded = encoder.finish().expect("memory");
        let bytes: Vec<&[u8]> = encoded.chunks(1).collect();
        assert_eq!(decode(Encoding::Gzip, 5, &bytes), (Ok(()), b"plain".to_vec()));
        // No extra bytes, and a checksum over the header, which flate2 does not write.
        let deflated = raw(b"plain");
        let trailer = &encoded[encoded.len() - 8..];
        let header = [0x1f, 0x8b, 8, Gzip::EXTRA | Gzip::HEADER_CRC, 0, 0, 0, 0, 0, 3, 0, 0, 0xaa, 0xbb];
        let encoded = [&header[..], &deflated[..], trailer].concat();
        assert_eq!(whole(Encoding::Gzip, &encoded), (Ok(()), b"plain".to_vec()));
        let mut reserved = encoded.clone();
        reserved[3] |= 0x80;
        assert_eq!(whole(Encoding::Gzip, &reserved).0, Err(DecodeFault::Malformed));
        let mut other_sum = encoded;
        let last = other_sum.len() - 5;
        other_sum[last] ^= 1;
        assert_eq!(whole(Encoding::Gzip, &other_sum).0, Err(DecodeFault::Malformed));
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let two = [gzip(b"one"), gzip(b"two")].concat();
        assert_eq!(whole(Encoding::Gzip, &two), (Ok(()), b"onetwo".to_vec()));
        let skippable = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let two = [SHORT_ZST, &skippable, SHORT_ZST].concat();
        let plain = [text(1000), text(1000)].concat();
        assert_eq!(whole(Encoding::Zstd, &two), (Ok(()), plain.clone()));
        let bytes: Vec<&[u8]> = two.chunks(1).collect();
        assert_eq!(decode(Encoding::Zstd, 2000, &bytes), (Ok(()), plain));
        assert_eq!(whole(Encoding::Zstd, &skippable), (Ok(()), Vec::new()));
        assert_eq!(whole(Encoding::Zstd, &skippable[..10]).0, Err(DecodeFault::Malformed));
    }

    #[test]
    fn truncated_or_followed_by_garbage_is_malformed() {
        for (encoding, encoded) in samples(&text(1000)) {
            for cut in 1..encoded.len() {
                assert_eq!(
                    whole(encoding, &encoded[..cut]).0,
                    Err(DecodeFault::Malformed),
                    "{encoding:?} cut at {cut}"
                );
            }
            for garbage in [&b"\0"[..], b"garbage", b"\x1f"] {
                let more = [&encoded[..], garbage].concat();
                assert_eq!(whole(encoding, &more).0, Err(DecodeFault::Malformed), "{encoding:?}");
                let apart = decode(encoding, u64::MAX, &[&encoded, garbage]).0;
                assert_eq!(apart, Err(DecodeFault::Malformed), "{encoding:?}");
            }
        }
        for encoding in ALL {
            assert_eq!(whole(encoding, b""), (Ok(()), Vec::new()), "{encoding:?} of nothing");
            assert_eq!(whole(encoding, b"{\"model\":1}").0, Err(DecodeFault::Malformed), "{encoding:?} of plain text");
        }
    }

    #[test]
    fn a_sum_bounds_the_plain_bytes() {
        let plain = text(160_000);
        for (encoding, encoded) in samples(&plain) {
            assert_eq!(decode(encoding, 160_000, &[&encoded]).0, Ok(()), "{encoding:?}");
            let (result, out) = decode(encoding, 159_999, &[&encoded]);
            assert_eq!(result, Err(DecodeFault::TooLarge), "{encoding:?}");
            assert!(out.len() <= 159_999 && plain.starts_with(&out), "{encoding:?}");
        }
    }

    #[test]
    fn a_ratio_bounds_bombs() {
        for (encoding, bomb) in [(Encoding::Brotli, BOMB_BR), (Encoding::Zstd, BOMB_ZST)] {
            let (result, out) = whole(encoding, bomb);
            assert_eq!(result, Err(DecodeFault::TooLarge), "{encoding:?}");
            let most = FREE_BYTES + bomb.len() as u64 * RATIO_MAX;
            assert!(out.len() as u64 <= most, "{encoding:?}: {}", out.len());
        }
        // What a program may well send: a megabyte of spaces.
        assert_eq!(whole(Encoding::Gzip, &gzip(&vec![b' '; 1 << 20])).0, Ok(()));
        let runs = vec![0; 32 << 20];
        assert_eq!(decode(Encoding::Gzip, 8 << 20, &[&gzip(&runs)]).0, Err(DecodeFault::TooLarge));
    }

    #[test]
    fn windows_are_bounded() {
        assert_eq!(whole(Encoding::Zstd, WIDE_ZST).0, Err(DecodeFault::TooLarge));
        // One segment of 9 MiB: its window is all of it.
        let segment = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0x90, 0];
        assert_eq!(whole(Encoding::Zstd, &segment).0, Err(DecodeFault::TooLarge));
        assert_eq!(whole(Encoding::Brotli, LARGE_WINDOW_BR).0, Err(DecodeFault::Malformed));
    }

    #[test]
    fn zstd_frames_that_lie() {
        // One raw block of three bytes; the header says three, then four.
        let frame = |content: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x20, content, 0x19, 0, 0, b'a', b'b', b'c'];
        assert_eq!(whole(Encoding::Zstd, &frame(3)), (Ok(()), b"abc".to_vec()));
        assert_eq!(whole(Encoding::Zstd, &frame(4)).0, Err(DecodeFault::Malformed));
        // A dictionary that nobody has.
        let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 9, 3, 0x19, 0, 0, b'a', b'b', b'c'];
        assert_eq!(whole(Encoding::Zstd, &dictionary).0, Err(DecodeFault::Malformed));
        // A block of literals alone, 256 KiB of one letter by its own header.
        let literals = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x2d, 0, 0, 0x0d, 0, 0x40, b'a', 0];
        assert_eq!(literals_bytes(&literals[9..]), 256 << 10);
        assert_eq!(whole(Encoding::Zstd, &literals).0, Err(DecodeFault::Malformed));
    }

    #[test]
    fn random_and_damaged_bytes_do_no_harm() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let plain = text(1000);
        for round in 0..4000 {
            let noise: Vec<u8> = (0..random() % 200).map(|_| random() as u8).collect();
            for encoding in ALL {
                let _ = decode(encoding, 1 << 20, &[&noise]);
            }
            // Behind what each coding begins with, noise is read further.
            let _ = decode(Encoding::Gzip, 1 << 20, &[&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], &noise]);
            let _ = decode(Encoding::Deflate, 1 << 20, &[&[0x78, 0x9c], &noise]);
            let size = [0x05, (noise.len() >> 5) as u8, 0];
            let size = [size[0] | (noise.len() << 3) as u8, size[1], size[2]];
            let _ = decode(Encoding::Zstd, 1 << 20, &[&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x58], &size, &noise]);
            if round % 4 == 0 {
                for (encoding, mut encoded) in samples(&plain) {
                    for _ in 0..=random() % 4 {
                        let place = random() as usize % encoded.len();
                        encoded[place] ^= 1 << (random() % 8);
                    }
                    let (result, out) = decode(encoding, 1 << 20, &[&encoded]);
                    assert!(result.is_ok() || out.len() <= 1 << 20);
                }
            }
        }
    }
}
