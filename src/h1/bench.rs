//! A body's piece from one connection to the other: the door for `relay::bench`, in no release build.

use std::io::IoSlice;

use super::Decoder;
use super::Framing;
use super::Out;
use super::PIECES_MAX;
use crate::hygiene::Chunk;

/// An answer in chunks on both sides.
pub(crate) struct Passage {
    decoder: Decoder,
    out: Out,
}

impl Passage {
    pub(crate) fn new() -> Self {
        Self { decoder: Decoder::new(Framing::Chunked), out: Out::default() }
    }

    /// What of a block is body.
    pub(crate) fn take(&mut self, mut block: Vec<u8>) -> Chunk {
        let content = self.decoder.decode(&mut block).map_or(0, |decoded| decoded.content);
        block.truncate(content);
        Chunk::taken(block)
    }

    /// Gathers it and hands it to whoever writes.
    pub(crate) fn pass(&mut self, chunk: Chunk, write: impl FnOnce(&[IoSlice<'_>])) {
        self.out.push_chunk(chunk);
        let mut slices = [IoSlice::new(&[]); 3 * PIECES_MAX + 1];
        let count = self.out.slices(&mut slices);
        write(&slices[..count]);
        let written = slices[..count].iter().map(|slice| slice.len()).sum();
        self.out.advance(written);
    }
}
