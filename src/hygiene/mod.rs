//! Keeping nothing: what clears memory, and what cannot be printed. All unsafe code lives here.

pub(crate) mod alloc;
pub(crate) mod block;
mod capabilities;
pub(crate) mod chunk;
#[cfg(feature = "skip-measures")]
pub(crate) mod counting;
pub(crate) mod crypto_heap;
pub(crate) mod environment;
pub mod heap;
pub(crate) mod io;
mod landlock;
pub(crate) mod lockdown;
mod magazine;
pub mod measure;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod registers;
mod seccomp;
mod secret;
mod segments;
pub(crate) mod stack;
mod turnover;
pub(crate) mod wipe;

pub use alloc::WipingAllocator;
pub use chunk::Chunk;
pub(crate) use chunk::WipedIncoming;
pub use memory::MemoryLock;
pub use secret::Secret;

/// Does not compile if a type implements one of the traits.
///
/// `check` is then a method of two implementations of `Ambiguous`, and which one is meant cannot be told.
#[cfg(test)]
macro_rules! assert_lacks {
    ($type:ty: $($trait:path),+) => {
        $({
            trait Ambiguous<Which> {
                fn check() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Implements;
            impl<T: ?Sized + $trait> Ambiguous<Implements> for T {}
            <$type as Ambiguous<_>>::check();
        })+
    };
}

#[cfg(test)]
pub(crate) use assert_lacks;
