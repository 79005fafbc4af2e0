//! The global allocator: that of [`super::heap`] or the system's, with every block cleared before it
//! goes back.
//!
//! `Vec`, `BytesMut`, header maps and rustls' buffers leave their bytes to the block's next owner
//! when they are dropped or grown. Clearing here covers all of them at once, including those inside
//! libraries. `realloc` is allocate, copy, clear, free, because the system's own `realloc` would
//! leave the old block as it was.

#![expect(unsafe_code, reason = "a global allocator cannot be written without it")]

use std::alloc::GlobalAlloc;
use std::alloc::Layout;
use std::alloc::System;

use super::heap;
use super::heap::HEAP;
use super::magazine::LINK_BYTES;
use super::measure::Measure;
use super::measure::taken;
use super::wipe::wipe_raw;

/// An allocator with a clear before each free.
pub struct WipingAllocator;

// SAFETY: every call goes to `HEAP` or `System` with the layout the caller gave, each gets back only
// its own blocks, and a block is touched only between the caller's giving it up and its getting back.
// `realloc` returns null when the new block cannot be had and leaves the old one untouched, as the
// trait asks.
unsafe impl GlobalAlloc for WipingAllocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut block = heap::take_kept(layout);
        if block.is_null() {
            // SAFETY: the caller's layout is passed on as it is.
            block = unsafe { alloc_anew(layout) };
        }
        // `hygiene::chunk` later makes a pointer to parts of this block out of an address.
        let _ = block.expose_provenance();
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let kept = heap::take_kept(layout);
        // SAFETY: as in `alloc`. What was free holds the allocator's links, so it is cleared; what was kept holds one,
        // at its start.
        let block = unsafe {
            if !kept.is_null() {
                let dirty = if taken(Measure::FreedBlocks) { LINK_BYTES } else { layout.size() };
                kept.write_bytes(0, dirty.min(layout.size()));
                let _ = kept.expose_provenance();
                return kept;
            }
            let block = HEAP.alloc(layout);
            if block.is_null() {
                system(System.alloc_zeroed(layout))
            } else {
                block.write_bytes(0, layout.size());
                block
            }
        };
        let _ = block.expose_provenance();
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller owns `layout.size()` bytes at `block` and gives them up with this call.
        unsafe {
            if taken(Measure::FreedBlocks) {
                wipe_raw(block, layout.size());
            }
            if !heap::keep(block, layout) {
                free(block, layout);
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the trait guarantees that `new_size`, rounded up to the alignment, fits in `isize`.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if heap::alike(layout, new_layout) && HEAP.owns(old) {
            if new_size < layout.size() && taken(Measure::FreedBlocks) {
                // SAFETY: the caller owns these bytes and gives them up with this call.
                unsafe { wipe_raw(old.add(new_size), layout.size() - new_size) }
            }
            return old;
        }
        // SAFETY: `new_layout` has a size above zero, as the trait guarantees for `new_size`.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both blocks are live, do not overlap, and hold at least the smaller size.
            unsafe {
                std::ptr::copy_nonoverlapping(old, new, layout.size().min(new_size));
                self.dealloc(old, layout);
            }
        }
        new
    }
}

/// A block of the heap's or the system's, uninitialised.
///
/// # Safety
/// As for [`GlobalAlloc::alloc`].
#[inline(never)]
unsafe fn alloc_anew(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        let block = HEAP.alloc(layout);
        if block.is_null() { system(System.alloc(layout)) } else { block }
    }
}

/// Gives a block back to whom it came from.
///
/// # Safety
/// As for [`GlobalAlloc::dealloc`].
#[inline(never)]
unsafe fn free(block: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe {
        if !HEAP.dealloc(block) {
            System.dealloc(block, layout);
        }
    }
}

/// A block from the system's allocator. If the kernel has put it into the heap's window, which it
/// has no reason to, nobody could tell later whose it is: it is never used nor freed.
#[inline]
fn system(block: *mut u8) -> *mut u8 {
    if HEAP.owns(block) { std::ptr::null_mut() } else { block }
}
