//! Addresses that come with wrong keys. Each has a few tries a minute; beyond them its wrong keys are told to wait, longer
//! each time. A right key is served all the same: behind one address there may be many, and a key that nobody can guess
//! needs no protection from guessing; what needs it is the machine.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use dashmap::DashMap;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

/// Addresses that are remembered. Beyond it, newcomers share one.
const ADDRESSES_MAX: usize = 65_536;

/// The longest wait that is asked for, in seconds.
const WAIT_MAX: u64 = 60;

/// All addresses with wrong keys in the last minutes.
#[derive(Default)]
pub(crate) struct BackOff {
    addresses: DashMap<IpAddr, Tries>,
}

struct Tries {
    /// Wrong keys since `since`.
    wrong: u32,
    since: u64,
    /// How often it has been told to wait in a row.
    told: u32,
}

impl BackOff {
    /// A wrong key came from `address` (IPv6: its /64). `Some`: its client shall wait for so many seconds.
    pub(crate) fn wrong_key(&self, address: IpAddr, allowed: u32, now: u64) -> Option<u64> {
        let mut address = network_of(address);
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        }
        let mut tries = self.addresses.entry(address).or_insert(Tries { wrong: 0, since: now, told: 0 });
        if now.saturating_sub(tries.since) >= MINUTE {
            let quiet = tries.wrong <= allowed;
            *tries = Tries { wrong: 0, since: now, told: if quiet { 0 } else { tries.told } };
        }
        tries.wrong = tries.wrong.saturating_add(1);
        if tries.wrong <= allowed {
            return None;
        }
        let wait = 1_u64 << tries.told.min(6);
        tries.told = tries.told.saturating_add(1);
        Some(wait.min(WAIT_MAX))
    }

    /// Forgets addresses that have been quiet. Once a minute.
    pub(crate) fn sweep(&self, now: u64) {
        self.addresses.retain(|_, tries| now.saturating_sub(tries.since) < 2 * MINUTE);
    }
}

/// What counts as one address: an IPv4 address, or an IPv6 /64, which is what one customer gets.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_few_wrong_keys_an_address_waits_longer_and_longer() {
        let all = BackOff::default();
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert!((0..10).all(|_| all.wrong_key(one, 10, 0).is_none()));
        let waits: Vec<_> = (0..9).map(|_| all.wrong_key(one, 10, SECOND).unwrap()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(all.wrong_key(other, 10, SECOND), None);
        // Within the minute after, it has its tries again, and waits as long as before beyond them.
        assert!((0..10).all(|_| all.wrong_key(one, 10, 61 * SECOND).is_none()));
        assert_eq!(all.wrong_key(one, 10, 61 * SECOND), Some(60));
        // A quiet minute forgives.
        assert!((0..5).all(|_| all.wrong_key(one, 10, 122 * SECOND).is_none()));
        assert!((0..10).all(|_| all.wrong_key(one, 10, 200 * SECOND).is_none()));
        assert_eq!(all.wrong_key(one, 10, 200 * SECOND), Some(1));
        all.sweep(400 * SECOND);
        assert!(all.addresses.is_empty());
    }

    #[test]
    fn a_64_is_one_address_and_there_are_only_so_many() {
        let all = BackOff::default();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(all.wrong_key(address("2001:db8::1"), 1, 0), None);
        assert_eq!(all.wrong_key(address("2001:db8::2"), 1, 0), Some(1));
        assert_eq!(all.wrong_key(address("::ffff:192.0.2.1"), 1, 0), None);
        assert_eq!(all.wrong_key(address("192.0.2.1"), 1, 0), Some(1));
        for number in 0..ADDRESSES_MAX as u32 + 10 {
            all.wrong_key(IpAddr::V4((number + (10 << 24)).into()), 1, 0);
        }
        assert!(all.addresses.len() <= ADDRESSES_MAX + 1);
    }
}
