//! Keeping nothing: what clears memory, and what cannot be printed. All unsafe code lives here.

pub(crate) mod alloc;
pub(crate) mod chunk;
pub(crate) mod io;
pub mod measure;
pub(crate) mod process;
pub(crate) mod stack;
mod turnover;
pub(crate) mod wipe;

use zeroize::Zeroizing;

pub use alloc::WipingAllocator;
pub use chunk::Chunk;
pub(crate) use chunk::WipedIncoming;
pub(crate) use chunk::switched;

/// A secret text: no `Clone`, no `Debug`, no `Display`; wiped on drop.
///
/// ```
/// # use nullhop::hygiene::Secret;
/// assert_eq!(Secret::new(b"key".to_vec()).expose(), b"key");
/// ```
///
/// None of these compiles:
///
/// ```compile_fail,E0277
/// # use nullhop::hygiene::Secret;
/// println!("{:?}", Secret::new(b"key".to_vec()));
/// ```
/// ```compile_fail,E0277
/// # use nullhop::hygiene::Secret;
/// println!("{}", Secret::new(b"key".to_vec()));
/// ```
/// ```compile_fail,E0599
/// # use nullhop::hygiene::Secret;
/// let twice = Secret::new(b"key".to_vec()).clone();
/// ```
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
