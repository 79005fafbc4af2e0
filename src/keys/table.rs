//! The table that a request's key is looked up in: made once for each version of the file, never changed.

use std::sync::Arc;

use aws_lc_rs::constant_time;

use super::file::Record;
use super::text::Hash;
use super::text::HashKey;
use super::text::is_key;

/// Why a key is refused. A caller is told no more than that it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeyFault {
    Expired,
    /// Not a key's form, or its checksum is wrong: a slip, or another service's key.
    Malformed,
    Revoked,
    Unknown,
}

/// All keys of a file. About 40 bytes a key beside what the caller keeps for each.
pub(crate) struct Keyring<E> {
    hash_key: Arc<HashKey>,
    /// Open addressing: places in `entries`, plus one; 0 is free. A power of two, at most half full.
    slots: Box<[u32]>,
    entries: Box<[Entry<E>]>,
}

/// One key.
struct Entry<E> {
    hash: Hash,
    /// Seconds since 1970; `i64::MAX`: never.
    expires: i64,
    revoked: bool,
    /// What the key may do.
    grant: E,
}

impl<E> Keyring<E> {
    /// A table of `records`; `grant` makes of each what a request with it shall get.
    ///
    /// # Errors
    /// The first fault of `grant`.
    pub(crate) fn new<F>(
        hash_key: Arc<HashKey>,
        records: Vec<Record>,
        mut grant: impl FnMut(&Record) -> Result<E, F>,
    ) -> Result<Self, F> {
        let mut entries = Vec::with_capacity(records.len());
        for record in &records {
            entries.push(Entry {
                hash: record.hash,
                expires: record.expires.map_or(i64::MAX, |time| time.as_second()),
                revoked: record.revoked.is_some(),
                grant: grant(record)?,
            });
        }
        let mut slots = vec![0_u32; (2 * entries.len()).next_power_of_two().max(2)].into_boxed_slice();
        for (place, entry) in entries.iter().enumerate() {
            let mut slot = first_slot(&entry.hash, slots.len());
            while slots[slot] != 0 {
                slot = (slot + 1) & (slots.len() - 1);
            }
            // A file of 512 MiB has fewer lines than this holds.
            slots[slot] = u32::try_from(place + 1).unwrap_or(0);
        }
        Ok(Self { hash_key, slots, entries: entries.into_boxed_slice() })
    }

    /// What the key `text` grants at `now`, seconds since 1970.
    ///
    /// The same work for any text of a key's length: what is not a key is hashed and looked for as well. Where it would
    /// stand depends on its keyed hash, which tells nobody anything; the hash found there is compared in constant time.
    ///
    /// # Errors
    /// If it grants nothing.
    pub(crate) fn find(&self, text: &[u8], now: i64) -> Result<&E, KeyFault> {
        let hash = self.hash_key.hash(text);
        let mut slot = first_slot(&hash, self.slots.len());
        let mut found = None;
        while self.slots[slot] != 0 {
            let entry = &self.entries[self.slots[slot] as usize - 1];
            if constant_time::verify_slices_are_equal(&entry.hash, &hash).is_ok() {
                found = Some(entry);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        let Some(entry) = found else {
            return Err(if is_key(text) { KeyFault::Unknown } else { KeyFault::Malformed });
        };
        if entry.revoked {
            return Err(KeyFault::Revoked);
        }
        if entry.expires <= now {
            return Err(KeyFault::Expired);
        }
        Ok(&entry.grant)
    }

    /// What each key grants, also those that are revoked.
    pub(crate) fn grants(&self) -> impl Iterator<Item = &E> {
        self.entries.iter().map(|entry| &entry.grant)
    }

    /// Keys that could be used at `now`, and all others.
    pub(crate) fn count(&self, now: i64) -> (usize, usize) {
        let active = self.entries.iter().filter(|entry| !entry.revoked && entry.expires > now).count();
        (active, self.entries.len() - active)
    }
}

fn first_slot(hash: &Hash, slots: usize) -> usize {
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(first) as usize & (slots - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hygiene::Secret;
    use crate::keys::file::Track;
    use crate::keys::text::generate;

    fn hash_key() -> Arc<HashKey> {
        Arc::new(HashKey::new(&Secret::new(vec![b'x'; 32])).unwrap())
    }

    fn record(text: &str, expires: Option<i64>, revoked: bool) -> Record {
        let time = |seconds| jiff::Timestamp::from_second(seconds).unwrap();
        Record {
            id: "k".to_owned(),
            hash: hash_key().hash(text.as_bytes()),
            label: "l".to_owned(),
            account: None,
            plan: None,
            track: Track::Managed,
            upstreams: Vec::new(),
            models: Vec::new(),
            allow: Vec::new(),
            usage: None,
            created: None,
            expires: expires.map(time),
            revoked: revoked.then(|| time(5)),
        }
    }

    #[test]
    fn keys_are_found_and_nothing_else() {
        let texts: Vec<_> = (0..1000).map(|_| generate().unwrap()).collect();
        let records = texts.iter().map(|text| record(text, None, false)).collect();
        let mut next = 0;
        let grant = |_: &Record| {
            next += 1;
            Ok::<_, ()>(next - 1)
        };
        let ring = Keyring::new(hash_key(), records, grant).unwrap();
        for (place, text) in texts.iter().enumerate() {
            assert_eq!(ring.find(text.as_bytes(), 0), Ok(&place));
        }
        assert_eq!(ring.count(0), (1000, 0));
        assert_eq!(ring.find(generate().unwrap().as_bytes(), 0), Err(KeyFault::Unknown));
        assert_eq!(ring.find(b"sk-other", 0), Err(KeyFault::Malformed));
        assert_eq!(ring.find(b"", 0), Err(KeyFault::Malformed));
    }

    #[test]
    fn expired_and_revoked_keys_grant_nothing() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        let records = vec![record(&one, Some(100), false), record(&other, None, true)];
        let ring = Keyring::new(hash_key(), records, |_| Ok::<_, ()>(())).unwrap();
        assert_eq!(ring.find(one.as_bytes(), 99), Ok(&()));
        assert_eq!(ring.find(one.as_bytes(), 100), Err(KeyFault::Expired));
        assert_eq!(ring.find(other.as_bytes(), 0), Err(KeyFault::Revoked));
        assert_eq!(ring.count(100), (0, 2));
        let none = Keyring::new(hash_key(), Vec::new(), |_| Ok::<(), ()>(())).unwrap();
        assert_eq!(none.find(one.as_bytes(), 0), Err(KeyFault::Unknown));
    }
}
