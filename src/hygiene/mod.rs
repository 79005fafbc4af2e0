//! Keeping nothing: what wipes, and what must not be printed.

use zeroize::Zeroizing;

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
