//! Keeping nothing: what clears memory, and what cannot be printed. All unsafe code lives here.

pub(crate) mod alloc;
mod capabilities;
pub(crate) mod chunk;
pub(crate) mod environment;
pub(crate) mod head;
pub(crate) mod io;
mod landlock;
pub(crate) mod lockdown;
pub mod measure;
pub(crate) mod memory;
pub(crate) mod process;
mod seccomp;
mod secret;
pub(crate) mod stack;
pub(crate) mod wipe;

pub use alloc::WipingAllocator;
pub(crate) use chunk::Chunk;
pub(crate) use chunk::WipedIncoming;
pub use memory::MemoryLock;
pub use secret::Secret;
