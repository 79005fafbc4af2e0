//! Content codings, the sender's side: bodies of tests are encoded here, and decoded by nullhop or a client.

use std::io::Write;
use std::str::FromStr;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use flate2::write::GzEncoder;
use flate2::write::ZlibEncoder;
use ruzstd::encoding::CompressionLevel;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `br`
    Brotli,
    /// `deflate`, as RFC 9110 has it: with zlib's head and checksum.
    Deflate,
    /// `deflate`, as some senders have it: without.
    DeflateRaw,
    /// `gzip`
    Gzip,
    /// `zstd`
    Zstd,
}

impl Coding {
    /// Every one, both kinds of deflate included.
    pub const ALL: [Coding; 5] = [Coding::Brotli, Coding::Deflate, Coding::DeflateRaw, Coding::Gzip, Coding::Zstd];

    /// The value of `content-encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Deflate | Coding::DeflateRaw => "deflate",
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }

    /// `plain`, encoded as one stream.
    pub fn encode(self, plain: &[u8]) -> Vec<u8> {
        self.encode_repeated(plain, 1)
    }

    /// `plain` again and again, encoded as one stream: a bomb, if it compresses well.
    pub fn encode_repeated(self, plain: &[u8], times: usize) -> Vec<u8> {
        let fill = |out: &mut dyn Write| (0..times).try_for_each(|_| out.write_all(plain));
        let done = "a Vec takes everything";
        match self {
            Coding::Brotli => {
                let mut out = Vec::new();
                let mut writer = brotli::CompressorWriter::new(&mut out, 4096, 5, 20);
                fill(&mut writer).and_then(|()| writer.flush()).expect(done);
                drop(writer);
                out
            }
            Coding::Deflate => {
                let mut writer = ZlibEncoder::new(Vec::new(), Compression::default());
                fill(&mut writer).expect(done);
                writer.finish().expect(done)
            }
            Coding::DeflateRaw => {
                let mut writer = DeflateEncoder::new(Vec::new(), Compression::default());
                fill(&mut writer).expect(done);
                writer.finish().expect(done)
            }
            Coding::Gzip => {
                let mut writer = GzEncoder::new(Vec::new(), Compression::default());
                fill(&mut writer).expect(done);
                writer.finish().expect(done)
            }
            Coding::Zstd => {
                let source = Repeated { plain, at: 0, left: times };
                ruzstd::encoding::compress_to_vec(source, CompressionLevel::Fastest)
            }
        }
    }
}

impl FromStr for Coding {
    type Err = ();

    fn from_str(text: &str) -> Result<Coding, ()> {
        match text {
            "br" => Ok(Coding::Brotli),
            "deflate" => Ok(Coding::Deflate),
            "deflate-raw" => Ok(Coding::DeflateRaw),
            "gzip" => Ok(Coding::Gzip),
            "zstd" => Ok(Coding::Zstd),
            _ => Err(()),
        }
    }
}

/// Reads the same bytes again and again.
struct Repeated<'a> {
    plain: &'a [u8],
    at: usize,
    left: usize,
}

impl std::io::Read for Repeated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.plain.len() {
            self.left = self.left.saturating_sub(1);
            self.at = 0;
        }
        if self.left == 0 {
            return Ok(0);
        }
        let take = buffer.len().min(self.plain.len() - self.at);
        buffer[..take].copy_from_slice(&self.plain[self.at..self.at + take]);
        self.at += take;
        Ok(take)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        let plain: Vec<u8> =
            (0..50_000u32).flat_map(|n| format!("{} ", n.wrapping_mul(2654435761)).into_bytes()).collect();
        for plain in [&plain[..], b"", b"x"] {
            for coding in Coding::ALL {
                let encoded = coding.encode_repeated(plain, 2);
                let mut out = Vec::new();
                let input = &encoded[..];
                let read = match coding {
                    Coding::Brotli => brotli::Decompressor::new(input, 4096).read_to_end(&mut out),
                    Coding::Deflate => flate2::read::ZlibDecoder::new(input).read_to_end(&mut out),
                    Coding::DeflateRaw => flate2::read::DeflateDecoder::new(input).read_to_end(&mut out),
                    Coding::Gzip => flate2::read::GzDecoder::new(input).read_to_end(&mut out),
                    Coding::Zstd => ruzstd::decoding::StreamingDecoder::new(input).unwrap().read_to_end(&mut out),
                };
                read.unwrap();
                assert!(out == plain.repeat(2), "{coding:?}");
            }
        }
    }
}
