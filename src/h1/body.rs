//! Where a message's body ends, and what of the bytes on the wire is body: RFC 9112 sections 6 and 7.

use http::HeaderMap;

use super::head::parse_trailers;

/// Bytes of chunk extensions in one body, all chunks together, with blanks and zeros around sizes. Nobody sends any; a peer
/// could send nothing else.
const EXTENSION_BYTES: u32 = 16 << 10;

/// One body's trailers.
const TRAILER_BYTES: usize = 16 << 10;

/// How the end of a body is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(u64),
    Chunked,
    /// Whatever comes until the peer ends its side.
    UntilClose,
}

/// A body that cannot be read: chunks that are none, or more around them than is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// What [`Decoder::decode`] has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Decoded {
    /// Bytes of the body, which now stand at the block's beginning.
    pub(crate) content: usize,
    /// Bytes of the block that belong to this message.
    pub(crate) used: usize,
}

/// Reads one body, in pieces of any size.
pub(crate) struct Decoder {
    state: State,
    extension_bytes: u32,
    /// Lines of the trailer section, with the empty one that ends it.
    trailers: Vec<u8>,
}

/// What the next byte is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    /// A chunk's size so far; `any` digit has come.
    Size {
        size: u64,
        any: bool,
    },
    /// White space behind a size.
    Space(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// A line of the trailer section begins here, or its end.
    Trailer,
    InTrailer,
    TrailerLf,
    EndLf,
}

const NEXT_SIZE: State = State::Size { size: 0, any: false };

impl Decoder {
    /// At the beginning of a body.
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty | Framing::Length(0) => State::Done,
            Framing::Length(bytes) => State::Length(bytes),
            Framing::Chunked => NEXT_SIZE,
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extension_bytes: 0, trailers: Vec::new() }
    }

    /// Whether the body has come to its end.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The same, and nothing is left to be taken.
    pub(crate) fn is_over(&self) -> bool {
        self.is_done() && self.trailers.is_empty()
    }

    /// Bytes that are still to come, if that is known.
    pub(crate) fn left(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Length(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The peer has ended its side: whether that ends the body, too.
    pub(crate) fn close(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// The fields behind a chunked body that has ended. Once.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn take_trailers(&mut self) -> Result<Option<HeaderMap>, Malformed> {
        if !self.is_done() || self.trailers.is_empty() {
            return Ok(None);
        }
        // Cleared as it is freed.
        parse_trailers(&std::mem::take(&mut self.trailers)).map(Some)
    }

    /// Takes from `block` what belongs to this body and moves its content to the beginning, several chunks' together.
    /// What stands behind the content afterwards is of no use. Ends early only at the body's end.
    ///
    /// # Errors
    /// The body cannot be read.
    pub(crate) fn decode(&mut self, block: &mut [u8]) -> Result<Decoded, Malformed> {
        match self.state {
            State::Done => Ok(Decoded { content: 0, used: 0 }),
            State::UntilClose => Ok(Decoded { content: block.len(), used: block.len() }),
            State::Length(left) => {
                let taken = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
                let left = left - taken as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                Ok(Decoded { content: taken, used: taken })
            }
            _ => self.decode_chunks(block),
        }
    }

    fn decode_chunks(&mut self, block: &mut [u8]) -> Result<Decoded, Malformed> {
        let (mut content, mut at) = (0, 0);
        while at < block.len() && self.state != State::Done {
            if let State::Data(left) = self.state {
                let rest = block.len() - at;
                let taken = usize::try_from(left).map_or(rest, |left| left.min(rest));
                if content < at {
                    block.copy_within(at..at + taken, content);
                }
                content += taken;
                at += taken;
                let left = left - taken as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                continue;
            }
            let byte = block[at];
            at += 1;
            self.state = self.step(byte)?;
        }
        Ok(Decoded { content, used: at })
    }

    /// One byte around the chunks.
    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        let next = match (self.state, byte) {
            (State::Size { size, any }, byte) => match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) => {
                    if any && size == 0 {
                        // Zeros before a size are as many as a peer likes.
                        self.count_extension()?;
                    }
                    let size = size.checked_mul(16).ok_or(Malformed)? + u64::from(digit);
                    State::Size { size, any: true }
                }
                (None, b' ' | b'\t') if any => State::Space(size),
                (None, b';') if any => State::Extension(size),
                (None, b'\r') if any => State::SizeLf(size),
                _ => return Err(Malformed),
            },
            (State::Space(size), b' ' | b'\t') => {
                self.count_extension()?;
                State::Space(size)
            }
            (State::Space(size), b';') => State::Extension(size),
            (State::Space(size) | State::Extension(size), b'\r') => State::SizeLf(size),
            // Whoever takes a bare line feed for an end would see another chunk here.
            (State::Extension(_), b'\n') => return Err(Malformed),
            (State::Extension(size), _) => {
                self.count_extension()?;
                State::Extension(size)
            }
            (State::SizeLf(0), b'\n') => State::Trailer,
            (State::SizeLf(size), b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => NEXT_SIZE,
            (State::Trailer, b'\r') => State::EndLf,
            (State::Trailer | State::InTrailer, b'\n') => return Err(Malformed),
            (State::Trailer, byte) => {
                self.keep_trailer(byte)?;
                State::InTrailer
            }
            (State::InTrailer, byte) => {
                self.keep_trailer(byte)?;
                if byte == b'\r' { State::TrailerLf } else { State::InTrailer }
            }
            (State::TrailerLf, b'\n') => {
                self.keep_trailer(byte)?;
                State::Trailer
            }
            (State::EndLf, b'\n') => {
                if !self.trailers.is_empty() {
                    self.trailers.extend_from_slice(b"\r\n");
                }
                State::Done
            }
            _ => return Err(Malformed),
        };
        Ok(next)
    }

    fn count_extension(&mut self) -> Result<(), Malformed> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES { Err(Malformed) } else { Ok(()) }
    }

    fn keep_trailer(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.trailers.len() >= TRAILER_BYTES {
            return Err(Malformed);
        }
        self.trailers.push(byte);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `wire` in pieces cut at `cuts`. The content, what is left behind the body, and its trailers.
    fn read(framing: Framing, wire: &[u8], piece: usize) -> Result<(Vec<u8>, usize, Option<HeaderMap>), Malformed> {
        let mut decoder = Decoder::new(framing);
        let mut content = Vec::new();
        let mut used = 0;
        for part in wire.chunks(piece) {
            let mut block = part.to_vec();
            let decoded = decoder.decode(&mut block)?;
            content.extend_from_slice(&block[..decoded.content]);
            used += decoded.used;
            if decoder.is_done() {
                let trailers = decoder.take_trailers()?;
                assert!(decoder.take_trailers()?.is_none(), "once");
                return Ok((content, wire.len() - used, trailers));
            }
            assert_eq!(decoded.used, part.len(), "all of a piece, unless the body ends in it");
        }
        Err(Malformed)
    }

    #[test]
    fn chunks_of_any_cut_give_the_same_body() {
        let wire = b"5\r\nhello\r\n1;name=\"v\"\r\n \r\n0000a \t\r\n0123456789\r\n0\r\n\r\nGET / HTTP/1.1";
        for piece in 1..=wire.len() {
            let (content, rest, trailers) = read(Framing::Chunked, wire, piece).expect("readable");
            assert_eq!(content, b"hello 0123456789", "pieces of {piece}");
            // What stands behind the end in the last piece was not taken.
            assert!(wire[wire.len() - rest..].starts_with(&b"GET / HTTP/1.1"[..14.min(rest)]));
            assert!(trailers.is_none());
        }
    }

    #[test]
    fn trailers_come_once_and_whole() {
        let wire = b"2\r\nab\r\n0\r\nX-Sum: 7\r\nx-sum: 8\r\n\r\n";
        for piece in 1..=wire.len() {
            let (content, rest, trailers) = read(Framing::Chunked, wire, piece).expect("readable");
            let trailers = trailers.expect("trailers");
            assert_eq!((&content[..], rest), (&b"ab"[..], 0));
            assert_eq!(trailers.get_all("x-sum").iter().collect::<Vec<_>>(), ["7", "8"]);
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused_wherever_it_is_cut() {
        for wire in [
            "0x2\r\nab\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nab\r\n0\r\n\r\n",
            "-2\r\nab\r\n0\r\n\r\n",
            "+2\r\nab\r\n0\r\n\r\n",
            "\r\nab\r\n0\r\n\r\n",
            ";x\r\nab\r\n0\r\n\r\n",
            " 2\r\nab\r\n0\r\n\r\n",
            "2\r\nabc\r\n0\r\n\r\n",
            "2\r\nab0\r\n\r\n",
            "2\nab\n0\n\n",
            "2\rab\r\n0\r\n\r\n",
            "2;a\nb\r\nab\r\n0\r\n\r\n",
            "2 3\r\nab\r\n0\r\n\r\n",
            "2\r\nab\r\n0\r\nx y: z\r\n\r\n",
            "2\r\nab\r\n0\r\nx: z\n\r\n",
            "2\r\nab\r\n0\r\n\n",
            "2\r\nab\r\n0\r\n: z\r\n\r\n",
            "2\r\nab\r\n0\r\n x: z\r\n\r\n",
        ] {
            for piece in 1..=wire.len() {
                assert_eq!(
                    read(Framing::Chunked, wire.as_bytes(), piece).err(),
                    Some(Malformed),
                    "{wire:?} by {piece}"
                );
            }
        }
    }

    #[test]
    fn what_surrounds_chunks_has_a_maximum() {
        let extension = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(EXTENSION_BYTES as usize + 1));
        assert!(read(Framing::Chunked, extension.as_bytes(), 4096).is_err());
        let many = "1;xxxxxxxx\r\na\r\n".repeat(EXTENSION_BYTES as usize / 8 + 1);
        assert!(read(Framing::Chunked, many.as_bytes(), 4096).is_err(), "of all chunks together");
        let spaces = format!("1{}\r\na\r\n0\r\n\r\n", " ".repeat(EXTENSION_BYTES as usize + 2));
        assert!(read(Framing::Chunked, spaces.as_bytes(), 4096).is_err());
        let zeros = |count: usize| format!("{}1\r\na\r\n0\r\n\r\n", "0".repeat(count));
        assert!(read(Framing::Chunked, zeros(1000).as_bytes(), 4096).is_ok());
        assert!(read(Framing::Chunked, zeros(EXTENSION_BYTES as usize + 2).as_bytes(), 4096).is_err());
        let trailers = format!("0\r\nx: {}\r\n\r\n", "y".repeat(TRAILER_BYTES));
        assert!(read(Framing::Chunked, trailers.as_bytes(), 4096).is_err());
    }

    #[test]
    fn lengths_are_kept() {
        assert_eq!(read(Framing::Length(5), b"hellomore", 3).map(|(content, ..)| content), Ok(b"hello".to_vec()));
        let mut decoder = Decoder::new(Framing::Length(u64::MAX));
        assert_eq!(decoder.decode(&mut [1; 9]), Ok(Decoded { content: 9, used: 9 }));
        assert_eq!(decoder.left(), Some(u64::MAX - 9));
        assert!(!decoder.close());
        let mut decoder = Decoder::new(Framing::UntilClose);
        assert_eq!(decoder.decode(&mut [1; 9]), Ok(Decoded { content: 9, used: 9 }));
        assert_eq!(decoder.left(), None);
        assert!(decoder.close() && decoder.is_done());
        assert!(Decoder::new(Framing::Length(0)).is_done() && Decoder::new(Framing::Empty).is_done());
    }
}
