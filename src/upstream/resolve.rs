//! Names to addresses, kept for half a minute and refreshed behind the back of whoever asks.

use std::cell::Cell;
use std::cell::RefCell;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

/// How long an answer is used without asking again. The system resolver does not tell the records'
/// own lifetime; providers publish 60 s and more.
const FRESH: Duration = Duration::from_secs(30);

/// How long an answer is used while asking again fails.
const STALE: Duration = Duration::from_secs(600);

/// One name's addresses, for one worker.
pub(super) struct Resolver {
    host: String,
    port: u16,
    known: RefCell<Option<(Instant, Rc<[SocketAddr]>)>>,
    refreshing: Cell<bool>,
}

impl Resolver {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, known: RefCell::new(None), refreshing: Cell::new(false) }
    }

    /// The addresses in the order in which they should be tried: IPv6 and IPv4 by turns. Empty when
    /// the name cannot be resolved.
    pub(super) async fn addresses(self: &Rc<Self>) -> Rc<[SocketAddr]> {
        if let Ok(literal) = self.host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Rc::from([SocketAddr::new(literal, self.port)]);
        }
        let known = self.known.borrow().clone();
        match known {
            Some((at, addresses)) if at.elapsed() < FRESH => addresses,
            Some((at, addresses)) if at.elapsed() < STALE => {
                if !self.refreshing.replace(true) {
                    let this = self.clone();
                    tokio::task::spawn_local(async move {
                        this.look_up().await;
                        this.refreshing.set(false);
                    });
                }
                addresses
            }
            _ => self.look_up().await,
        }
    }

    /// Asks again next time: none of the addresses could be reached.
    pub(super) fn doubt(&self) {
        *self.known.borrow_mut() = None;
    }

    async fn look_up(&self) -> Rc<[SocketAddr]> {
        match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => {
                let addresses: Rc<[SocketAddr]> = interleave(found.collect()).into();
                if !addresses.is_empty() {
                    *self.known.borrow_mut() = Some((Instant::now(), addresses.clone()));
                }
                addresses
            }
            Err(_) => Rc::from([]),
        }
    }
}

/// RFC 8305 section 4: families by turns, the first one found first, each in the resolver's order.
fn interleave(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = found.first() else { return found };
    let first_is_v6 = first.is_ipv6();
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    ours.reverse();
    theirs.reverse();
    let mut ordered = Vec::with_capacity(ours.len() + theirs.len());
    while !ours.is_empty() || !theirs.is_empty() {
        ordered.extend(ours.pop());
        ordered.extend(theirs.pop());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_by_turns() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let found = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(parse).to_vec();
        let wanted = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"].map(parse).to_vec();
        assert_eq!(interleave(found), wanted);
    }
}
