//! Free blocks that a worker keeps at hand, so that most of its allocations take no lock and cut no
//! chunk: what one request frees is what the next one wants.
//!
//! A kept block is clear but for its first word, which links it to the next. It is still an allocated
//! block to the heap behind it, so its segment cannot go back to the system: what is kept is bounded
//! (a mebibyte of small blocks, if a worker used every size there is, and 256 KiB of buffers) and goes
//! back about once a second, with [`Magazine::empty`].

#![expect(unsafe_code, reason = "part of an allocator: lists in blocks that are free")]

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::null_mut;

use super::segments::ROOM_BYTES;

/// Bytes of a kept block that are not clear.
pub(super) const LINK_BYTES: usize = size_of::<Link>();

/// What blocks of `dlmalloc` hold: 24 bytes at least, and 16 more for each step.
const LEAST: usize = 24;
const STEP: usize = 16;

/// Alignment that every block has.
const ALIGN: usize = 16;

/// Alignment of the others that are kept: two cache lines, as tokio has its tasks and sockets.
const ALIGN_WIDE: usize = 128;

/// Sizes of small blocks: up to 2,040 bytes.
const SIZES: usize = 127;

/// Kept of one size: as many as are in [`SHELF_BYTES`], but some and not many.
const SHELF_BYTES: usize = 8 << 10;
const SHELF_MAX: usize = 128;

/// Sizes of buffers that are kept at the same time: those that were freed first after the last time
/// that the magazine was emptied.
const RACKS: usize = 16;
/// Buffers kept of one size.
const RACK_MAX: usize = 16;
/// A larger buffer is not kept: a record's, with room for its head and an allocation's own overhead, is.
const BUFFER_MAX: usize = 40 << 10;
/// All buffers together.
const BUFFERS_MAX: usize = 256 << 10;

/// Stands at the start of a kept block.
struct Link {
    next: *mut Link,
}

/// Small blocks of one size.
struct Shelf {
    first: Cell<*mut Link>,
    room: Cell<usize>,
}

/// Buffers, or blocks with a wide alignment.
struct Rack {
    /// Of which kind: see [`Grade`]. Its size is 0 as long as it is of none.
    grade: Cell<Grade>,
    shelf: Shelf,
}

/// One thread's kept blocks. It has room for none until [`Magazine::open`].
pub(super) struct Magazine {
    /// Where the thread's arena begins.
    arena: Cell<usize>,
    shelves: [Shelf; SIZES],
    racks: [Rack; RACKS],
    /// For how many more bytes of buffers there is room.
    buffers_room: Cell<usize>,
    /// When it was emptied: a count of the caller's.
    emptied: Cell<u32>,
}

/// What blocks that are kept have in common: one that was made for one layout of a grade is good for
/// all others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Grade {
    size: usize,
    wide: bool,
}

impl Grade {
    /// `None`: blocks for `layout` are not kept. Nothing is wasted by a grade's size, because `dlmalloc`
    /// rounds in the same way.
    #[inline]
    pub(super) fn of(layout: Layout) -> Option<Self> {
        (layout.size() <= BUFFER_MAX && layout.align() <= ALIGN_WIDE)
            .then(|| Self { size: LEAST + step(layout.size()) * STEP, wide: layout.align() > ALIGN })
    }

    /// How large the heap must make a block.
    pub(super) fn size(self) -> usize {
        self.size
    }

    /// How the heap must align a block.
    pub(super) fn align(self) -> usize {
        if self.wide { ALIGN_WIDE } else { ALIGN }
    }
}

#[inline]
fn step(size: usize) -> usize {
    (size.max(LEAST) - LEAST).div_ceil(STEP)
}

/// Clears the end of a new block, beyond what its owner may write. What is kept is
/// clear to its end, because an owner clears what it owned and the rest has been clear from here on.
///
/// # Safety
/// The block is of the grade, and the caller's, who needs nothing of what stands in it.
#[inline]
pub(super) unsafe fn clear_end(block: *mut u8, grade: Grade) {
    // SAFETY: a block has `LEAST` bytes at least.
    unsafe { block.add(grade.size - LEAST).cast::<[u64; 3]>().write_unaligned([0; 3]) }
}

impl Shelf {
    const fn new() -> Self {
        Self { first: Cell::new(null_mut()), room: Cell::new(0) }
    }

    #[inline]
    fn take(&self) -> *mut u8 {
        let first = self.first.get();
        if !first.is_null() {
            // SAFETY: a kept block is mapped, nobody else's, and begins with its link.
            self.first.set(unsafe { (*first).next });
            self.room.set(self.room.get() + 1);
        }
        first.cast()
    }

    /// # Safety
    /// The block is free from now on, and holds a link at least.
    #[inline]
    unsafe fn put(&self, block: *mut u8) -> bool {
        let Some(room) = self.room.get().checked_sub(1) else { return false };
        self.room.set(room);
        let link: *mut Link = block.cast();
        // SAFETY: the caller's promise; blocks are aligned for it.
        unsafe { link.write(Link { next: self.first.get() }) }
        self.first.set(link);
        true
    }
}

const NO_GRADE: Grade = Grade { size: 0, wide: false };

impl Magazine {
    pub(super) const fn new() -> Self {
        Self {
            arena: Cell::new(0),
            shelves: [const { Shelf::new() }; SIZES],
            racks: [const { Rack { grade: Cell::new(NO_GRADE), shelf: Shelf::new() } }; RACKS],
            buffers_room: Cell::new(0),
            emptied: Cell::new(0),
        }
    }

    /// From now on it keeps blocks of the two rooms that begin at `arena`. To be called while it is empty.
    pub(super) fn open(&self, arena: usize) {
        self.arena.set(arena);
        for (step, shelf) in self.shelves.iter().enumerate() {
            shelf.room.set((SHELF_BYTES / (LEAST + step * STEP)).min(SHELF_MAX));
        }
        for rack in &self.racks {
            rack.shelf.room.set(RACK_MAX);
        }
        self.buffers_room.set(BUFFERS_MAX);
    }

    /// A block of the grade of `layout` that is clear after its first [`LINK_BYTES`] (if the measure
    /// `FreedBlocks` is taken); null: none is at hand.
    #[inline]
    pub(super) fn take(&self, layout: Layout) -> *mut u8 {
        match self.shelves.get(step(layout.size())) {
            Some(shelf) if layout.align() <= ALIGN => shelf.take(),
            _ => self.take_other(layout),
        }
    }

    #[inline(never)]
    fn take_other(&self, layout: Layout) -> *mut u8 {
        let Some(grade) = Grade::of(layout) else { return null_mut() };
        let Some(rack) = self.racks.iter().find(|rack| rack.grade.get() == grade) else { return null_mut() };
        let block = rack.shelf.take();
        if !block.is_null() {
            self.buffers_room.set(self.buffers_room.get() + grade.size);
        }
        block
    }

    /// Keeps a block. `false`: it is left alone.
    ///
    /// # Safety
    /// The block was made for `layout`, which has a size above zero, is cleared, and is free from now
    /// on. If it is from a room of this magazine's arena and `layout` has a grade, it is of that grade,
    /// and [`clear_end`] has seen it.
    #[inline]
    pub(super) unsafe fn put(&self, block: *mut u8, layout: Layout) -> bool {
        if block.addr().wrapping_sub(self.arena.get()) >= 2 * ROOM_BYTES {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe {
            match self.shelves.get(step(layout.size())) {
                Some(shelf) if layout.align() <= ALIGN => shelf.put(block),
                _ => self.put_other(block, layout),
            }
        }
    }

    /// # Safety
    /// As for [`Magazine::put`].
    #[inline(never)]
    unsafe fn put_other(&self, block: *mut u8, layout: Layout) -> bool {
        let Some(grade) = Grade::of(layout) else { return false };
        let Some(room) = self.buffers_room.get().checked_sub(grade.size) else { return false };
        let fitting = |rack: &&Rack| [grade, NO_GRADE].contains(&rack.grade.get());
        let Some(rack) = self.racks.iter().find(fitting) else { return false };
        rack.grade.set(grade);
        // SAFETY: the caller's promise.
        let kept = unsafe { rack.shelf.put(block) };
        if kept {
            self.buffers_room.set(room);
        }
        kept
    }

    /// Hands all blocks to `free`, unless that was done at `now` already.
    pub(super) fn empty(&self, now: u32, mut free: impl FnMut(*mut u8)) {
        if self.emptied.replace(now) == now {
            return;
        }
        let mut drain = |shelf: &Shelf| {
            loop {
                let block = shelf.take();
                if block.is_null() {
                    return;
                }
                free(block);
            }
        };
        self.shelves.iter().for_each(&mut drain);
        for rack in &self.racks {
            drain(&rack.shelf);
            rack.grade.set(NO_GRADE);
        }
        if self.arena.get() != 0 {
            self.buffers_room.set(BUFFERS_MAX);
        }
    }

    /// Keeps nothing any more. To be called while it is empty.
    pub(super) fn close(&self) {
        self.arena.set(0);
        self.shelves.iter().chain(self.racks.iter().map(|rack| &rack.shelf)).for_each(|shelf| shelf.room.set(0));
        self.buffers_room.set(0);
    }
}
