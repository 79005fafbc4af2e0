//! One-time pads for tunnels: what keeps a WebSocket's bytes unreadable inside h2.
//!
//! The bytes of an h2 stream that became a tunnel (RFC 8441) are handed out by hyper as copies, and the
//! originals stay in the connection's read buffer. So they are sealed before h2 gets them, with random
//! bytes that are used once: the tunnel opens its copy with them, and then they are gone.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;

use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;

use super::Queue;
use crate::hygiene::wipe::wipe;

/// The pad of one tunnel's way in, as long as what is under way: at most the stream's window. Both ends
/// are on one thread, but this one travels in a request's extensions, which must be `Send`.
#[derive(Clone)]
pub(crate) struct Pad(Arc<Mutex<Queue>>);

/// The connection's end of a [`Pad`].
#[derive(Clone)]
pub(super) struct Sealer(Weak<Mutex<Queue>>);

impl Pad {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Queue::default())))
    }

    pub(super) fn sealer(&self) -> Sealer {
        Sealer(Arc::downgrade(&self.0))
    }

    /// Opens what comes next, in the order in which it was sealed.
    pub(crate) fn open(&self, bytes: &mut [u8]) {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = bytes.len().min(queue.rest().len());
        bytes.iter_mut().zip(queue.rest()).for_each(|(byte, pad)| *byte ^= pad);
        queue.advance(count);
    }
}

impl Sealer {
    /// Seals what comes next. If nobody is there any more to open it, it is cleared.
    pub(super) fn seal(&self, bytes: &mut [u8]) {
        // Fuzzing compares what comes out; nothing opens it.
        let open = if cfg!(fuzzing) { None } else { self.0.upgrade() };
        let Some(queue) = open else { return wipe(bytes) };
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        let start = queue.bytes.len();
        queue.bytes.resize(start + bytes.len(), 0);
        // Without random bytes these would pass as they are; the operating system has them.
        let _ = SystemRandom::new().fill(&mut queue.bytes[start..]);
        bytes.iter_mut().zip(&queue.bytes[start..]).for_each(|(byte, pad)| *byte ^= pad);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_can_be_opened_once_and_in_order() {
        let pad = Pad::new();
        let sealer = pad.sealer();
        let plain: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let mut bytes = plain.clone();
        bytes.chunks_mut(700).for_each(|piece| sealer.seal(piece));
        assert!(!bytes.windows(8).zip(plain.windows(8)).any(|(sealed, plain)| sealed == plain));
        bytes.chunks_mut(333).for_each(|piece| pad.open(piece));
        assert_eq!(bytes, plain);
        assert!(pad.0.lock().expect("one thread").rest().is_empty());
        drop(pad);
        sealer.seal(&mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0), "nobody is there");
    }
}
