//! The key schedule of TLS 1.3 (RFC 8446 section 7.1) in fewer steps of the hash function.
//!
//! aws-lc-rs' HKDF keeps a salt and a secret where RFC 5869 has a pseudorandom key, and extracts anew for each value that
//! is expanded; each expansion begins with the two blocks that HMAC makes of its key. rustls' own HKDF over HMAC
//! ([`HkdfUsingHmac`]) extracts once, and aws-lc-rs' HMAC keys keep the two blocks. Deriving was a
//! fifth of a full handshake with SHA-384, which few CPUs have instructions for. The values are the same: a test compares
//! them.

use std::sync::LazyLock;

use aws_lc_rs::hmac as aws;
use rustls::CipherSuiteCommon;
use rustls::SupportedCipherSuite;
use rustls::Tls13CipherSuite;
use rustls::crypto::hash::HashAlgorithm;
use rustls::crypto::hmac::Hmac;
use rustls::crypto::hmac::Key;
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::HkdfUsingHmac;

/// The cipher suites of rustls' aws-lc provider, in its order, with this key schedule where they are of TLS 1.3.
pub(super) fn suites() -> Vec<SupportedCipherSuite> {
    SUITES.clone()
}

static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
    let theirs = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
    theirs.into_iter().map(|suite| suite.tls13().and_then(ours).unwrap_or(suite)).collect()
});

fn ours(suite: &Tls13CipherSuite) -> Option<SupportedCipherSuite> {
    let common = &suite.common;
    let hkdf_provider = match common.hash_provider.algorithm() {
        HashAlgorithm::SHA256 => &SHA256,
        HashAlgorithm::SHA384 => &SHA384,
        _ => return None,
    };
    // Once in a process, for each of three suites.
    Some(SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: common.suite,
            hash_provider: common.hash_provider,
            confidentiality_limit: common.confidentiality_limit,
        },
        hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    }))))
}

static SHA256: HkdfUsingHmac<'static> = HkdfUsingHmac(&Hash { algorithm: &aws::HMAC_SHA256, len: 32 });
static SHA384: HkdfUsingHmac<'static> = HkdfUsingHmac(&Hash { algorithm: &aws::HMAC_SHA384, len: 48 });

struct Hash {
    algorithm: &'static aws::Algorithm,
    /// Bytes of its output.
    len: usize,
}

struct HashKey {
    key: aws::Key,
    len: usize,
}

impl Hmac for Hash {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(HashKey { key: aws::Key::new(*self.algorithm, key), len: self.len })
    }

    fn hash_output_len(&self) -> usize {
        self.len
    }
}

impl Key for HashKey {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = aws::Context::with_key(&self.key);
        context.update(first);
        middle.iter().for_each(|part| context.update(part));
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::tls13::Hkdf;
    use rustls::crypto::tls13::HkdfExpander;
    use rustls::crypto::tls13::OkmBlock;

    use super::*;

    /// All values that a key can be expanded to, as far as TLS asks.
    fn expanded(expander: &dyn HkdfExpander) -> Vec<Vec<u8>> {
        let infos: [&[&[u8]]; 4] = [&[], &[b"tls13 derived"], &[&[0, 32], b"tls13 key", &[0]], &[&[7; 150]]];
        let mut values = Vec::new();
        for info in infos {
            values.push(expander.expand_block(info).as_ref().to_vec());
            for len in [1, 12, 16, 32, expander.hash_len(), expander.hash_len() + 1, 200] {
                let mut value = vec![0; len];
                expander.expand_slice(info, &mut value).expect("a length that there is");
                values.push(value);
            }
            let mut too_long = vec![0; 255 * expander.hash_len() + 1];
            assert!(expander.expand_slice(info, &mut too_long).is_err());
        }
        values
    }

    fn values(hkdf: &dyn Hkdf) -> Vec<Vec<u8>> {
        let len = hkdf.extract_from_zero_ikm(None).hash_len();
        let mut values = expanded(&*hkdf.extract_from_zero_ikm(None));
        values.extend(expanded(&*hkdf.extract_from_zero_ikm(Some(&[3; 48]))));
        for secret in [&[1; 32][..], &[2; 48], &[3; 64], &[4; 200]] {
            values.extend(expanded(&*hkdf.extract_from_secret(None, secret)));
            values.extend(expanded(&*hkdf.extract_from_secret(Some(&[9; 32]), secret)));
        }
        let key = OkmBlock::new(&vec![5; len]);
        values.extend(expanded(&*hkdf.expander_for_okm(&key)));
        values.extend([&b""[..], &[6; 48], &[7; 300]].map(|message| hkdf.hmac_sign(&key, message).as_ref().to_vec()));
        values
    }

    #[test]
    fn every_value_is_what_the_provider_would_derive() {
        let theirs = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
        let ours = suites();
        assert_eq!(ours, theirs);
        let mut compared = 0;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.tls13().is_some(), theirs.tls13().is_some());
            if let (Some(ours), Some(theirs)) = (ours.tls13(), theirs.tls13()) {
                let (got, wanted) = (values(ours.hkdf_provider), values(theirs.hkdf_provider));
                assert!(got.len() > 200 && got == wanted);
                assert_eq!(ours.common.confidentiality_limit, theirs.common.confidentiality_limit);
                compared += 1;
            }
        }
        assert_eq!(compared, 3);
    }
}
