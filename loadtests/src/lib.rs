//! What nullhop's tests and demos stand between: a scripted LLM provider on one side, clients on the other.
//!
//! - [`provider`] is an HTTP server (h1, h2, WebSocket) that answers like the vendors do, or as a script in the request
//!   says: cut here, stall there, break now. It keeps a journal for assertions.
//! - [`raw`] is a server without an HTTP stack, for the lies hyper refuses to tell.
//! - [`client`] is the other side: h1 and h2 over TLS, streaming bodies, hashes, and bare TLS streams.
//! - [`websocket`] is a frame codec for both sides; [`h2raw`] builds handwritten HTTP/2 frames.
//! - [`pattern`] is the endless deterministic byte sequence behind `size=`, and its checker.
//! - [`streams`] makes answers of random words with an account of their figures.
//! - [`encoding`] is the sender's side of gzip, deflate, brotli and zstd.
//! - [`words`] is content that a search of a process's memory finds again; [`hpack`] writes header blocks by hand.
//! - [`load`] is the load test: a client and a provider that cost little, and the proxies between them.
//! - [`tls`] mints certificates; [`io`] is the socket that both sides hand to hyper.
//!
//! Everything listens on loopback and on free ports.

pub mod provider;
pub mod raw;

pub mod client;
pub mod h2raw;
pub mod websocket;

pub mod encoding;
pub mod hpack;
pub mod pattern;
pub mod streams;
pub mod words;

pub mod io;
pub mod tls;

pub mod load;

/// The error that crosses crate borders here: tests only print it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// CLOCK_MONOTONIC in nanoseconds: the clock of `stamp=1`, the same in every process of the machine.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
