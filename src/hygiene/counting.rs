//! The program's allocator with a count of the blocks that were asked for: for `benches/request.rs`, in no other build.

#![expect(unsafe_code, reason = "a global allocator cannot be written without it")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::WipingAllocator;

static BLOCKS: AtomicU64 = AtomicU64::new(0);

/// [`WipingAllocator`], counted.
pub struct CountingAllocator;

impl CountingAllocator {
    /// Blocks that were asked for so far, one for each that was made longer.
    pub fn blocks() -> u64 {
        BLOCKS.load(Relaxed)
    }
}

// SAFETY: every call goes on as it came to an allocator that keeps the trait's promises.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BLOCKS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { WipingAllocator.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        BLOCKS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { WipingAllocator.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same; the block is one of that allocator's.
        unsafe { WipingAllocator.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        BLOCKS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are the same; the block is one of that allocator's.
        unsafe { WipingAllocator.realloc(old, layout, new_size) }
    }
}
