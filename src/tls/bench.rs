//! Records between two sides: the door for `relay::bench`, in no release build.

use std::io::IoSlice;

use rustls::ConnectionTrafficSecrets;
use rustls::ProtocolVersion;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
use rustls::crypto::cipher::AeadKey;
use rustls::crypto::cipher::Iv;

use super::record::Kind;
use super::record::Opener;
use super::record::SEALED_MAX;
use super::record::Sealer;
use super::record::Slices;
use crate::hygiene::stack::scrub_crypto;

/// One direction of a connection, both its ends.
pub(crate) struct Direction {
    sealer: Sealer,
    opener: Opener,
    sealed: Vec<u8>,
}

impl Direction {
    pub(crate) fn new() -> Self {
        let secrets = || {
            let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: Iv::new([7; 12]) };
            (0, secrets)
        };
        Self {
            sealer: Sealer::new(TLS13_AES_256_GCM_SHA384, secrets()).unwrap_or_else(|_| unreachable!()),
            opener: Opener::new(ProtocolVersion::TLSv1_3, secrets()).unwrap_or_else(|_| unreachable!()),
            sealed: vec![0; SEALED_MAX],
        }
    }

    /// Seals one record as a write does. Its length.
    pub(crate) fn seal(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let len = slices.iter().map(|slice| slice.len()).sum();
        let sealed = self.sealer.seal(Kind::Data, &mut Slices::new(slices), len, &mut self.sealed);
        scrub_crypto();
        sealed.unwrap_or_default()
    }

    /// Opens the record that was sealed last as a read does.
    pub(crate) fn open(&mut self, len: usize) -> Vec<u8> {
        let record = &self.sealed[..len];
        let mut block = vec![0; self.opener.room_for(record).unwrap_or_default()];
        let (_, content) = self.opener.open(record, &mut block).unwrap_or((Kind::Data, 0));
        scrub_crypto();
        block.truncate(content);
        block
    }
}
