//! The stack below a thread that is about to wait.
//!
//! AES-GCM works on the last, incomplete block of a record in a corner of the stack, and copies of
//! small pieces pass through frames that are long left when the thread parks: up to fifteen bytes of
//! content at a time, found by searching the memory of a waiting process (tests/zero_retention.rs).
//! The vector registers are cleared with it: what stands in them comes onto the stack later
//! ([`super::registers`]).

#![expect(unsafe_code, reason = "clears a stack frame that is never initialised")]

use std::mem::MaybeUninit;

use super::measure::Measure;
use super::measure::taken;
use super::registers;
use super::wipe::wipe_raw;

/// How deep a worker's turn reaches below the place where it parks: TLS inside hyper inside the
/// relay. Measured in a release build on x86-64, by looking for the deepest byte that is not zero: 10 KiB
/// down to a TLS call, and what that takes. A debug build takes more room.
const TURN: usize = if cfg!(debug_assertions) { 192 << 10 } else { 32 << 10 };

/// How deep rustls and aws-lc reach below the call that enters them: 4 KiB, measured in the same way
/// over 190,000 calls of streams, bulk bodies and WebSockets.
const CRYPTO: usize = if cfg!(debug_assertions) { 48 << 10 } else { 8 << 10 };

/// How deep looking at a piece of a body reaches: the meter and the decoders before it. Copies of vector registers with up to
/// 32 bytes of content were found there in debug builds, and later in the unused part of an enum on the heap.
const LOOK: usize = if cfg!(debug_assertions) { 16 << 10 } else { 1 << 10 };

/// How deep a handshake reaches: 68 KiB, measured likewise. Its last flight may bring the first request.
const HANDSHAKE: usize = if cfg!(debug_assertions) { 256 << 10 } else { 96 << 10 };

/// Clears what a handshake has left below the caller's frame.
#[inline(never)]
pub(crate) fn scrub_handshake() {
    scrub::<HANDSHAKE>();
}

/// Clears what a whole turn has left below the caller's frame. Meant for the moment before a thread
/// parks.
#[inline(never)]
pub(crate) fn scrub_turn() {
    scrub::<TURN>();
}

/// Clears what encrypting and decrypting has left below the caller's frame. At once, because the
/// next frames lay their values over it, and what they do not fill of those (padding, unused
/// variants) travels on with them, into the heap too.
#[inline(never)]
pub(crate) fn scrub_crypto() {
    scrub::<CRYPTO>();
}

/// Clears what looking at a piece of a body has left below the caller's frame. At once, for the same reason.
#[inline(never)]
pub(crate) fn scrub_look() {
    scrub::<LOOK>();
}

#[inline(always)]
fn scrub<const DEPTH: usize>() {
    if !taken(Measure::Stack) {
        return;
    }
    let mut room = MaybeUninit::<[u8; DEPTH]>::uninit();
    // SAFETY: `room` is this frame's own and valid for writes of its size; no reference to it exists.
    unsafe { wipe_raw(room.as_mut_ptr().cast(), DEPTH) }
    registers::clear();
}

/// For tests: what stands below.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod testing {
    use std::arch::naked_asm;

    #[unsafe(naked)]
    unsafe extern "sysv64" fn copy_below(into: *mut u8, len: usize) {
        naked_asm!("mov rcx, rsi", "mov rsi, rsp", "sub rsi, rcx", "cld", "rep movsb", "ret")
    }

    /// Fills `into` with what stands below the caller's frame.
    #[inline(always)]
    pub(crate) fn below(into: &mut [u8]) {
        // SAFETY: there is room for so many bytes, and a test's stack has more than tests ask for.
        unsafe { copy_below(into.as_mut_ptr(), into.len()) }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::registers::testing::fill;
    use super::super::registers::testing::held;
    use super::*;

    const CONTENT: [u8; 64] = *b"sixty-four bytes that were in a message, which has been left now";

    fn holds(memory: &[u8]) -> bool {
        memory.windows(8).any(|window| CONTENT.windows(8).any(|piece| piece == window))
    }

    #[inline(never)]
    fn deep() {
        let content = std::hint::black_box([CONTENT; 32]);
        std::hint::black_box(&content);
    }

    #[test]
    fn neither_stack_nor_registers_keep_what_was_in_them() {
        // Less than the least of them clears.
        let mut below = [0; 512];
        for scrub in [scrub_handshake, scrub_turn, scrub_crypto, scrub_look] {
            deep();
            fill(&CONTENT);
            let registers = held();
            testing::below(&mut below);
            assert!(holds(&registers) && holds(&below), "the test sees what is there");
            deep();
            fill(&CONTENT);
            scrub();
            let registers = held();
            testing::below(&mut below);
            assert!(!holds(&registers), "registers");
            assert!(!holds(&below), "stack");
        }
    }
}
