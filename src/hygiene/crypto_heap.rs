//! The crypto library's heap: private keys as numbers, the states of handshakes, all that aws-lc
//! (C) would put where `malloc` puts it, put where Rust's blocks are instead: see [`super::heap`].

#![expect(unsafe_code, reason = "the functions that a C library calls for its memory")]

use std::alloc::Layout;
use std::ffi::c_char;
use std::ffi::c_int;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// C asks for as much alignment as its largest number has, and does not say a block's size when it
/// gives one back: it stands before the block.
const HEADER: usize = 16;

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// From now on aws-lc's blocks come from Rust's global allocator, which clears them when they are
/// freed. To be called before anything else of the library is.
pub(crate) fn install() {
    // SAFETY: the three functions fit together and are what the library's header asks for. It keeps
    // them for ever, in variables that only this call writes, while there is one thread.
    let taken = unsafe { aws_lc_sys::CRYPTO_set_mem_functions(Some(allocate), Some(reallocate), Some(free)) };
    INSTALLED.store(taken == 1, Relaxed);
}

/// Whether [`install`] has been called and was in time.
pub(crate) fn installed() -> bool {
    INSTALLED.load(Relaxed)
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEADER)?, HEADER).ok()
}

unsafe extern "C" fn allocate(size: usize, _: *const c_char, _: c_int) -> *mut c_void {
    let Some(layout) = layout(size) else { return null_mut() };
    // SAFETY: the layout has the header's size at least, and so has the block.
    unsafe {
        let start = std::alloc::alloc(layout);
        if start.is_null() {
            return null_mut();
        }
        start.cast::<usize>().write(size);
        start.add(HEADER).cast()
    }
}

/// Only for blocks that are not null: the library allocates by itself then.
unsafe extern "C" fn reallocate(old: *mut c_void, size: usize, file: *const c_char, line: c_int) -> *mut c_void {
    // SAFETY: `old` is a live block of `allocate`, whose size stands before it; the new block is
    // another one, and both hold what is copied.
    unsafe {
        let new = allocate(size, file, line);
        if !new.is_null() {
            let old_size = old.cast::<u8>().sub(HEADER).cast::<usize>().read();
            std::ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast::<u8>(), old_size.min(size));
            free(old, file, line);
        }
        new
    }
}

/// Only for blocks that are not null.
unsafe extern "C" fn free(block: *mut c_void, _: *const c_char, _: c_int) {
    // SAFETY: `block` is a live block of `allocate`, given up with this call; `allocate` made a
    // layout of the same size.
    unsafe {
        let start = block.cast::<u8>().sub(HEADER);
        let size = start.cast::<usize>().read();
        std::alloc::dealloc(start, Layout::from_size_align_unchecked(size + HEADER, HEADER));
    }
}
