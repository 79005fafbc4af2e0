//! A client key as a text: how it looks, how one is made, how it becomes a hash.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;
use zeroize::Zeroizing;

use crate::hygiene::Secret;
use crate::hygiene::stack::scrub_crypto;

/// What every key begins with, so that people and scanners of leaked secrets know it for one.
pub(crate) const PREFIX: &str = "nhk_";

/// Random digits: 62^40 is more than 2^238.
const RANDOM_DIGITS: usize = 40;

/// Digits of the checksum: 62^6 is more than 2^32.
const CHECK_DIGITS: usize = 6;

/// Bytes of a key's text.
pub(crate) const KEY_BYTES: usize = PREFIX.len() + RANDOM_DIGITS + CHECK_DIGITS;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What is stored of a key: HMAC-SHA-256 of its text.
pub(crate) type Hash = [u8; 32];

/// The secret that hashes are keyed with. Without it, a stolen list of hashes cannot even be searched for a key that is
/// known. 32 bytes or more; the same on all nodes. Held is what HMAC makes of it, not its text, which cannot be had back from
/// that; made once, because it is half of what a hash costs.
pub(crate) struct HashKey(hmac::Key);

/// Why there is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RandomFault {
    /// The system gives no random bytes.
    NoRandom,
}

impl HashKey {
    /// Fewer bytes than this would be a guessable secret.
    pub(crate) const BYTES_MIN: usize = 32;

    /// Takes the secret's text over as it is, without white space around it. `None` if it is too short.
    pub(crate) fn new(secret: &Secret) -> Option<Self> {
        let text = secret.expose().trim_ascii();
        (text.len() >= Self::BYTES_MIN).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, text)))
    }

    /// The hash that stands for `key`. Takes as long for any text of the same length.
    pub(crate) fn hash(&self, key: &[u8]) -> Hash {
        let hash = self.keyed(key);
        // The library moves its state about, with the key's text in it.
        scrub_crypto();
        hash
    }

    #[inline(never)]
    fn keyed(&self, key: &[u8]) -> Hash {
        let mut hash = [0; 32];
        hash.copy_from_slice(hmac::sign(&self.0, key).as_ref());
        hash
    }
}

/// A new key's text.
///
/// # Errors
/// If the system has no random bytes.
pub(crate) fn generate() -> Result<Zeroizing<String>, RandomFault> {
    let random = SystemRandom::new();
    let mut text = Zeroizing::new(String::with_capacity(KEY_BYTES));
    text.push_str(PREFIX);
    let mut bytes = Zeroizing::new([0_u8; 64]);
    while text.len() < PREFIX.len() + RANDOM_DIGITS {
        random.fill(&mut *bytes).map_err(|_| RandomFault::NoRandom)?;
        // 248 is a multiple of 62: no digit is likelier than another.
        let digits = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(DIGITS[usize::from(byte % 62)]));
        for digit in digits.take(PREFIX.len() + RANDOM_DIGITS - text.len()) {
            text.push(digit);
        }
    }
    let check = check_digits(text.as_bytes());
    text.extend(check.map(char::from));
    Ok(text)
}

/// Whether `text` has a key's form and its checksum is right: then it is one of ours, or was.
pub(crate) fn is_key(text: &[u8]) -> bool {
    text.len() == KEY_BYTES
        && text.starts_with(PREFIX.as_bytes())
        && text[PREFIX.len()..].iter().all(u8::is_ascii_alphanumeric)
        && text[KEY_BYTES - CHECK_DIGITS..] == check_digits(&text[..KEY_BYTES - CHECK_DIGITS])
}

/// CRC-32 (IEEE 802.3) of all before, in base 62 with leading zeros; as the tokens of large code hosts have it.
fn check_digits(text: &[u8]) -> [u8; CHECK_DIGITS] {
    let mut crc = flate2::Crc::new();
    crc.update(text);
    let mut rest = crc.sum();
    let mut digits = [b'0'; CHECK_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// `N` random digits, for names that need no secrecy.
///
/// # Errors
/// If the system has no random bytes.
pub(crate) fn random_name(digits: usize) -> Result<String, RandomFault> {
    let mut bytes = vec![0_u8; digits];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RandomFault::NoRandom)?;
    Ok(bytes.iter().map(|byte| char::from(DIGITS[usize::from(byte % 62)]).to_ascii_lowercase()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_key(text: &str) -> HashKey {
        HashKey::new(&Secret::new(text.as_bytes().to_vec())).expect("long enough")
    }

    #[test]
    fn keys_are_known_by_their_form_and_differ() {
        let keys: Vec<_> = (0..1000).map(|_| generate().unwrap()).collect();
        let mut seen = std::collections::BTreeSet::new();
        let mut digits = std::collections::BTreeSet::new();
        for key in &keys {
            assert!(is_key(key.as_bytes()), "{}", &key[..4]);
            assert!(seen.insert(key.as_str()));
            digits.extend(key[PREFIX.len()..PREFIX.len() + RANDOM_DIGITS].bytes());
        }
        assert_eq!(digits.len(), 62, "every digit occurs");
    }

    #[test]
    fn a_slip_of_one_letter_is_seen() {
        let key = generate().unwrap();
        for place in 0..key.len() {
            let mut other = key.as_bytes().to_vec();
            other[place] = if other[place] == b'a' { b'b' } else { b'a' };
            assert!(!is_key(&other), "{place}");
        }
        for wrong in ["", "nhk_", "sk-abc", &key[1..], &format!("{}0", &*key)] {
            assert!(!is_key(wrong.as_bytes()));
        }
    }

    #[test]
    fn a_hash_depends_on_the_secret_and_is_hmac() {
        // RFC 4231, test case 2, would need a key of 4 bytes; case 6 has one of 131.
        let long = HashKey::new(&Secret::new(vec![0xaa; 131])).unwrap();
        let hash = long.hash(b"Test Using Larger Than Block-Size Key - Hash Key First");
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
        let (one, other) = (hash_key(&"a".repeat(32)), hash_key(&"b".repeat(32)));
        assert_ne!(one.hash(b"key"), other.hash(b"key"));
        assert_eq!(one.hash(b"key"), hash_key(&format!(" {}\n", "a".repeat(32))).hash(b"key"));
        assert!(HashKey::new(&Secret::new(vec![b'a'; 31])).is_none());
    }
}
