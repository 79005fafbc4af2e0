//! Keeping nothing: what clears memory, and what cannot be printed. All unsafe code lives here.

pub(crate) mod alloc;
pub(crate) mod chunk;
pub(crate) mod head;
pub(crate) mod io;
pub mod measure;
pub(crate) mod process;
pub(crate) mod stack;
pub(crate) mod wipe;

use zeroize::Zeroizing;

pub use alloc::WipingAllocator;
pub(crate) use chunk::Chunk;
pub(crate) use chunk::WipedIncoming;

/// A secret text: no `Clone`, no `Debug`, no `Display`; wiped on drop.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over `bytes`, which are wiped when the secret is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The only door to the bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}
