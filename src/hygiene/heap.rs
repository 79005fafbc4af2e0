//! Where the Rust heap stands: in secret memory, in locked memory, or where the system puts it.
//!
//! Until [`choose`] is called, blocks come from the system's allocator. Afterwards new blocks come
//! from *arenas*: one for each worker (up to fifteen, then they share), one for all other threads.
//! An arena is a pair of `dlmalloc` heaps over [`Segments`], each behind a lock that is nearly always
//! free: one for small blocks and one for buffers. Among small blocks are some that stay for hours,
//! and a segment goes back only when nothing stands in it; apart from them, the buffers of a burst go
//! back whole. All arenas stand in one window of address space, so that a block's address tells its
//! heap, and tells the blocks of before. In front of its arena a worker has a [`Magazine`], which
//! needs no lock.
//!
//! When the system gives no more secret memory, blocks come from its allocator again: a proxy that
//! stops relaying is worse than one whose memory root can read. It is said ([`overflowed`]) and the
//! guard `secret_heap` is off from then on.
//!
//! Nothing in here allocates, panics or logs, because it runs inside the allocator.

#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::Layout;
use std::cell::Cell;
use std::fmt;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use dlmalloc::Dlmalloc;
use rustix::io::Errno;
use rustix::process::Resource;
use rustix::process::Rlimit;

use super::magazine;
use super::magazine::Grade;
use super::magazine::Magazine;
use super::segments;
use super::segments::Backing;
use super::segments::ROOM_BYTES;
use super::segments::Segments;

/// One for each worker of a usual machine and one for the rest.
const ARENAS: usize = 16;

/// A block of this size is a buffer: more than nearly all structures, less than any buffer that a
/// connection has.
const BUFFER_MIN: usize = 2 << 10;

/// Two for each arena.
const ROOMS: usize = 2 * ARENAS;

const WINDOW_BYTES: usize = ROOMS * ROOM_BYTES;

/// Less lockable memory than this is refused: a heap that overflows at the first burst protects
/// nothing. About what 500 streams hold.
const LOCKABLE_MIN: usize = 64 << 20;

/// Unmapped by one call of [`give_back`] for each room: 25 ms of the control thread's time.
const GIVEN_BACK_MAX: usize = 64 << 20;

/// `[memory] heap`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The best that this machine gives, in the order of [`Kind`].
    Auto,
    /// Secret memory or no start.
    Secret,
    /// Locked memory or no start.
    Locked,
    /// The system's allocator.
    Plain,
}

/// What a heap stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `memfd_secret(2)`: not readable from outside the process, not even by root; never on a disk.
    Secret,
    /// Never in swap nor in a core file; root can read it.
    Locked,
    /// The system's allocator.
    Plain,
}

/// Why the heap that the configuration demands cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeapFault {
    /// No free window of addresses: an address space limit, or one of 39 bits.
    AddressSpace,
    /// Less than [`LOCKABLE_MIN`] can be locked.
    LockLimit,
    /// `memfd_secret` does not exist, is off, or is filtered.
    NoSecretMemory,
}

impl fmt::Display for HeapFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddressSpace => {
                "[memory] heap: no address space for it; lift the address space limit (ulimit -v, LimitAS=), \
                 or set heap = \"plain\""
            }
            Self::LockLimit => {
                "[memory] heap: less than 64 MiB of memory can be locked; set LimitMEMLOCK=infinity (ulimit -l), \
                 or give CAP_IPC_LOCK, or set heap = \"auto\""
            }
            Self::NoSecretMemory => {
                "[memory] heap: this machine has no secret memory; it takes Linux 5.14, secretmem.enable=1 on the \
                 kernel's command line before 6.5, and a system call filter that allows memfd_secret; or set \
                 heap = \"locked\" or \"auto\""
            }
        })
    }
}

/// Decides where new blocks come from. To be called once, before threads are started and before
/// memory is locked as a whole (`mlockall`).
///
/// # Errors
/// What `wanted` names cannot be had; blocks then come from the system's allocator as before.
/// `Auto` and `Plain` always succeed.
pub(crate) fn choose(wanted: Wanted) -> Result<Kind, HeapFault> {
    if wanted != Wanted::Plain {
        raise_lock_limit();
    }
    match wanted {
        Wanted::Auto => Ok(HEAP
            .open(Backing::Secret)
            .map(|()| Kind::Secret)
            .or_else(|_| HEAP.open(Backing::Locked).map(|()| Kind::Locked))
            .unwrap_or(Kind::Plain)),
        Wanted::Secret => HEAP.open(Backing::Secret).map(|()| Kind::Secret),
        Wanted::Locked => HEAP.open(Backing::Locked).map(|()| Kind::Locked),
        Wanted::Plain => Ok(Kind::Plain),
    }
}

/// Whether a block has had to come from the system's allocator since [`choose`].
pub(crate) fn overflowed() -> bool {
    HEAP.overflowed.load(Relaxed)
}

/// Gives memory that has been free for ten calls back to the system. To be called once a second.
pub(crate) fn give_back() {
    HEAP.give_back(GIVEN_BACK_MAX);
}

/// The calling thread's blocks come from the arena of worker `number` (from 0) from now on. To be
/// called after [`choose`], once a thread, with [`leave_worker`] at its end.
pub(crate) fn enter_worker(number: usize) {
    let arena = 1 + number % (ARENAS - 1);
    ARENA.set(arena);
    if let Some(start) = HEAP.arena_start(arena) {
        MAGAZINE.with(|magazine| magazine.open(start));
    }
}

/// The calling worker ends: what it kept at hand goes back to its arena.
pub(crate) fn leave_worker() {
    MAGAZINE.with(|magazine| {
        HEAP.empty(magazine, HEAP.round.load(Relaxed).wrapping_add(1));
        magazine.close();
    });
}

/// The calling worker has nothing to do: once after each [`give_back`], what it keeps at hand goes
/// back to its arena. To be called whenever it parks; a worker parks at least once a second, for the
/// timer that tells how late timers are.
pub(crate) fn settle() {
    MAGAZINE.with(|magazine| HEAP.empty(magazine, HEAP.round.load(Relaxed)));
}

/// A block that the calling thread keeps at hand; null: it has none for this layout. Its first
/// [`magazine::LINK_BYTES`] are anything, the others clear (if the measure `FreedBlocks` is taken).
#[inline]
pub(super) fn take_kept(layout: Layout) -> *mut u8 {
    MAGAZINE.with(|magazine| magazine.take(layout))
}

/// Keeps a block of [`Heap::alloc`] at hand. `false`: it was left alone.
///
/// # Safety
/// The block is live, made for `layout`, cleared, and not used after this.
#[inline]
pub(super) unsafe fn keep(block: *mut u8, layout: Layout) -> bool {
    // SAFETY: the caller's promise; `alloc` makes its blocks as the magazine needs them, and the
    // address tells whether it is one of those.
    MAGAZINE.with(|magazine| unsafe { magazine.put(block, layout) })
}

/// Whether a block of [`Heap::alloc`] for one of the layouts is good for the other as well.
#[inline]
pub(super) fn alike(one: Layout, other: Layout) -> bool {
    Grade::of(one).is_some_and(|grade| Grade::of(other) == Some(grade))
}

thread_local! {
    /// The thread's arena. A constant without a destructor: reading it allocates nothing, and works
    /// while the thread ends.
    static ARENA: Cell<usize> = const { Cell::new(0) };

    /// The worker's blocks at hand; other threads have none. Likewise a constant.
    static MAGAZINE: Magazine = const { Magazine::new() };
}

/// The heap of the process.
pub(super) static HEAP: Heap = Heap::new();

/// No address stands within a window that begins here.
const CLOSED: usize = 1 << (usize::BITS - 1);

pub(super) struct Heap {
    /// Where the window begins; [`CLOSED`] until a heap is chosen, and never changed after that.
    base: AtomicUsize,
    overflowed: AtomicBool,
    /// Counts calls of `give_back`.
    round: AtomicU32,
    /// An arena's room for small blocks, then its room for buffers.
    rooms: [Room; ROOMS],
}

/// Two cache lines (they are fetched in pairs), so that one worker's lock does not slow another's.
#[repr(align(128))]
struct Room(Mutex<Dlmalloc<Segments>>);

impl Room {
    const fn new() -> Self {
        let mut heap = Dlmalloc::new_with_allocator(Segments::new());
        // Free segments are looked for once a second, in `give_back`, and not while a block is freed.
        heap.set_max_release_check_rate(0);
        Self(Mutex::new(heap))
    }

    fn lock(&self) -> MutexGuard<'_, Dlmalloc<Segments>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heap {
    pub(super) const fn new() -> Self {
        Self {
            base: AtomicUsize::new(CLOSED),
            overflowed: AtomicBool::new(false),
            round: AtomicU32::new(0),
            rooms: [const { Room::new() }; ROOMS],
        }
    }

    /// New blocks come from `backing` from now on.
    pub(super) fn open(&self, backing: Backing) -> Result<(), HeapFault> {
        let base = segments::find_window(WINDOW_BYTES).ok_or(HeapFault::AddressSpace)?;
        segments::probe(base, LOCKABLE_MIN, backing).map_err(|error| match error {
            // What `mmap` and `mlock2` say about the limit.
            Errno::AGAIN | Errno::NOMEM => HeapFault::LockLimit,
            Errno::PERM if backing == Backing::Locked => HeapFault::LockLimit,
            _ => HeapFault::NoSecretMemory,
        })?;
        for (place, room) in self.rooms.iter().enumerate() {
            room.lock().allocator().open(base + place * ROOM_BYTES, backing);
        }
        self.base.store(base, Relaxed);
        Ok(())
    }

    /// The room that a block belongs to; `None`: the system's allocator.
    #[inline]
    fn owner(&self, block: *mut u8) -> Option<&Room> {
        let offset = block.addr().wrapping_sub(self.base.load(Relaxed));
        (offset < WINDOW_BYTES).then(|| &self.rooms[offset / ROOM_BYTES])
    }

    /// Whether the block came from [`Heap::alloc`].
    #[inline]
    pub(super) fn owns(&self, block: *mut u8) -> bool {
        self.owner(block).is_some()
    }

    /// Where an arena's rooms begin; `None`: there are none yet.
    fn arena_start(&self, arena: usize) -> Option<usize> {
        let base = self.base.load(Relaxed);
        (base != CLOSED).then(|| base + 2 * arena * ROOM_BYTES)
    }

    fn empty(&self, magazine: &Magazine, now: u32) {
        // SAFETY: a magazine's blocks are live ones of this heap's, and it hands each out once.
        magazine.empty(now, |block| unsafe {
            self.dealloc(block);
        });
    }

    /// A block, uninitialised, its provenance exposed by the caller; null if blocks come from the
    /// system's allocator.
    ///
    /// # Safety
    /// `layout` has a size above zero.
    #[inline]
    pub(super) unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.base.load(Relaxed) == CLOSED {
            return null_mut();
        }
        let room = &self.rooms[2 * ARENA.get() + usize::from(layout.size() >= BUFFER_MIN)];
        let grade = Grade::of(layout);
        let (size, align) = grade.map_or((layout.size(), layout.align()), |grade| (grade.size(), grade.align()));
        // SAFETY: a `Layout`'s size and alignment, or a little more.
        let block = unsafe { room.lock().malloc(size, align) };
        if block.is_null() {
            self.overflowed.store(true, Relaxed);
        } else if let Some(grade) = grade {
            // SAFETY: the block is new, and of this grade.
            unsafe { magazine::clear_end(block, grade) }
        }
        block
    }

    /// Takes a block back. `false`: it is not from here and was left alone.
    ///
    /// # Safety
    /// If the block is from [`Heap::alloc`], it is live and not used after this.
    #[inline]
    pub(super) unsafe fn dealloc(&self, block: *mut u8) -> bool {
        let Some(room) = self.owner(block) else { return false };
        // SAFETY: the caller's promise; the address tells that this heap made it.
        unsafe { room.lock().c_free(block) }
        true
    }

    fn give_back(&self, bytes_max: usize) {
        if self.base.load(Relaxed) == CLOSED {
            return;
        }
        self.round.fetch_add(1, Relaxed);
        for room in &self.rooms {
            let mut old = {
                let mut heap = room.lock();
                // SAFETY: only moves segments without a live block to the list of the kept ones.
                unsafe { heap.trim(0) };
                heap.allocator().tick(bytes_max)
            };
            while let Some(unmapped) = old.unmap() {
                room.lock().allocator().forget(unmapped);
            }
        }
    }
}

/// Lifts the limit of locked memory as far as it goes, while there may still be a right to do so.
fn raise_lock_limit() {
    let unlimited = Rlimit { current: None, maximum: None };
    if rustix::process::setrlimit(Resource::Memlock, unlimited).is_err() {
        let mut limit = rustix::process::getrlimit(Resource::Memlock);
        limit.current = limit.maximum;
        let _ = rustix::process::setrlimit(Resource::Memlock, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A heap of its own, for ever: nothing unmaps a window.
    fn heap(backing: Backing) -> &'static Heap {
        static HEAPS: [Heap; 12] = [const { Heap::new() }; 12];
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let heap = &HEAPS[NEXT.fetch_add(1, Relaxed)];
        heap.open(backing).expect("this machine gives 64 MiB; run as root or with ulimit -l unlimited");
        heap
    }

    fn mapped(heap: &Heap) -> usize {
        heap.rooms.iter().map(|room| room.lock().allocator().bytes()).sum()
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("layout")
    }

    /// Steps of a xorshift generator.
    fn random(state: &mut u64) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as usize
    }

    struct Live {
        block: usize,
        layout: Layout,
        mark: u8,
    }

    /// What blocks come from, and go back to.
    trait Source {
        /// # Safety
        /// The layout has a size above zero.
        unsafe fn get(&self, layout: Layout) -> *mut u8;

        /// # Safety
        /// The block came from `get`, for this layout, and is not used after this.
        unsafe fn give(&self, block: *mut u8, layout: Layout);
    }

    impl Source for Heap {
        unsafe fn get(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise.
            let block = unsafe { self.alloc(layout) };
            assert!(!block.is_null() && self.owns(block));
            block
        }

        unsafe fn give(&self, block: *mut u8, _: Layout) {
            // SAFETY: the caller's promise.
            assert!(unsafe { self.dealloc(block) });
        }
    }

    /// A worker's way to its arena.
    struct Desk {
        heap: &'static Heap,
        magazine: Magazine,
        kept: Cell<usize>,
    }

    impl Desk {
        fn new(heap: &'static Heap, number: usize) -> Self {
            enter_worker(number);
            let magazine = Magazine::new();
            magazine.open(heap.arena_start(1 + number).expect("open"));
            Self { heap, magazine, kept: Cell::new(0) }
        }
    }

    impl Source for Desk {
        unsafe fn get(&self, layout: Layout) -> *mut u8 {
            let block = self.magazine.take(layout);
            if block.is_null() {
                // SAFETY: the caller's promise.
                return unsafe { self.heap.get(layout) };
            }
            self.kept.set(self.kept.get() + 1);
            let grade = Grade::of(layout).expect("a layout that is kept");
            assert!(grade.size() >= layout.size() && grade.align() >= layout.align());
            // SAFETY: the block is nobody else's and of this grade.
            let bytes = unsafe { std::slice::from_raw_parts(block, grade.size()) };
            assert!(bytes[magazine::LINK_BYTES..].iter().all(|byte| *byte == 0), "what is kept is not clear");
            block
        }

        unsafe fn give(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise.
            unsafe {
                block.write_bytes(0, layout.size());
                if !self.magazine.put(block, layout) {
                    self.heap.give(block, layout);
                }
            }
        }
    }

    impl Live {
        fn new(source: &impl Source, layout: Layout, mark: u8) -> Self {
            // SAFETY: the size is not zero, and the block is filled to its size.
            let block = unsafe {
                let block = source.get(layout);
                assert_eq!(block.addr() % layout.align(), 0);
                block.write_bytes(mark, layout.size());
                block.expose_provenance()
            };
            Self { block, layout, mark }
        }

        fn free(self, source: &impl Source) {
            // SAFETY: live since `new`, of this size; freed once, because `self` is gone then.
            unsafe {
                let block: *mut u8 = std::ptr::with_exposed_provenance_mut(self.block);
                let bytes = std::slice::from_raw_parts(block, self.layout.size());
                assert!(bytes.iter().all(|byte| *byte == self.mark), "somebody wrote into a live block");
                source.give(block, self.layout);
            }
        }
    }

    fn churn(desk: &Desk, seed: u64, steps: usize, exchange: &Mutex<Vec<Live>>) {
        let mut state = seed;
        let mut live: Vec<Live> = Vec::new();
        for step in 0..steps {
            let size = match random(&mut state) % 20 {
                0 => 1 + random(&mut state) % (3 << 20),
                1..=4 => 1 + random(&mut state) % (64 << 10),
                _ => 1 + random(&mut state) % 700,
            };
            let align = 1 << (random(&mut state) % 13);
            live.push(Live::new(desk, layout(size, align), step as u8));
            if step % 1_000 == 999 {
                desk.heap.empty(&desk.magazine, step as u32);
            }
            while live.len() > 100 || (!live.is_empty() && random(&mut state).is_multiple_of(2)) {
                let gone = live.swap_remove(random(&mut state) % live.len());
                // Some are freed by whoever comes next, on another thread.
                let gone = if random(&mut state).is_multiple_of(4) {
                    let mut shelf = exchange.lock().expect("shelf");
                    shelf.push(gone);
                    if shelf.len() < 50 {
                        continue;
                    }
                    shelf.swap_remove(0)
                } else {
                    gone
                };
                gone.free(desk);
            }
        }
        live.into_iter().for_each(|live| live.free(desk));
        assert!(desk.kept.get() > steps / 20, "{} of {steps} blocks had been kept", desk.kept.get());
        desk.heap.empty(&desk.magazine, u32::MAX);
    }

    fn blocks_stay_apart(backing: Backing) {
        let heap = heap(backing);
        let exchange = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for number in 0..4 {
                let exchange = &exchange;
                scope.spawn(move || {
                    // Two threads share an arena.
                    let desk = Desk::new(heap, number / 2);
                    churn(&desk, 88_172_645_463_325_252 + number as u64, 8_000, exchange);
                });
            }
            scope.spawn(|| {
                for _ in 0..50 {
                    heap.give_back(1 << 20);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
        });
        exchange.into_inner().expect("shelf").into_iter().for_each(|live| live.free(heap));
        assert!(!heap.overflowed.load(Relaxed));
        for _ in 0..40 {
            heap.give_back(usize::MAX);
        }
        // Each room that was used keeps its newest segment, which may have been made for a big block.
        assert!(mapped(heap) <= 6 * (4 << 20), "{} bytes stay mapped", mapped(heap));
    }

    #[test]
    fn blocks_of_secret_memory_stay_apart() {
        blocks_stay_apart(Backing::Secret);
    }

    #[test]
    fn blocks_of_locked_memory_stay_apart() {
        blocks_stay_apart(Backing::Locked);
    }

    #[test]
    fn memory_goes_back_after_a_burst_but_not_at_once() {
        let heap = heap(Backing::Secret);
        let keeper = Live::new(heap, layout(1000, 8), 1);
        heap.give_back(usize::MAX);
        let before = mapped(heap);
        let burst: Vec<Live> = (0..2_200).map(|mark| Live::new(heap, layout(16 << 10, 16), mark as u8)).collect();
        let high = mapped(heap);
        assert!(high > 32 << 20);
        burst.into_iter().for_each(|live| live.free(heap));
        heap.give_back(usize::MAX);
        assert_eq!(mapped(heap), high, "given back at once");
        // What is kept is used again.
        let again: Vec<Live> = (0..1_000).map(|mark| Live::new(heap, layout(16 << 10, 16), mark as u8)).collect();
        assert_eq!(mapped(heap), high);
        again.into_iter().for_each(|live| live.free(heap));
        for _ in 0..12 {
            heap.give_back(4 << 20);
        }
        assert!(mapped(heap) < high && mapped(heap) > before + (2 << 20), "some at a time");
        for _ in 0..20 {
            heap.give_back(usize::MAX);
        }
        assert!(mapped(heap) <= before + (2 << 20), "{} of {high} bytes stay mapped", mapped(heap));
        keeper.free(heap);
    }

    #[test]
    fn a_worker_keeps_some_blocks_of_its_own_arena_until_it_is_told() {
        let heap = heap(Backing::Secret);
        let desk = Desk::new(heap, 4);
        let addresses = |size: usize, count: usize| {
            let live: Vec<Live> = (0..count).map(|mark| Live::new(&desk, layout(size, 8), mark as u8)).collect();
            let addresses: Vec<usize> = live.iter().map(|live| live.block).collect();
            live.into_iter().for_each(|live| live.free(&desk));
            addresses
        };
        for (size, kept) in
            [(1, 128), (24, 128), (100, 78), (1_000, 8), (2_040, 4), (2_041, 16), (40_000, 6), (41_000, 0)]
        {
            let first = addresses(size, 150);
            let before = desk.kept.get();
            let second = addresses(size, 150);
            assert_eq!(desk.kept.get() - before, kept, "{size} bytes");
            assert!(second[..kept].iter().all(|block| first.contains(block)));
            // Alike sizes share what is kept, others do not.
            let before = desk.kept.get();
            addresses(size + 400, 1);
            assert_eq!(desk.kept.get(), before);
            heap.empty(&desk.magazine, 2 * size as u32);
            addresses(size, 1);
            assert_eq!(desk.kept.get(), before, "{size} bytes are kept for too long");
            heap.empty(&desk.magazine, 2 * size as u32 + 1);
        }
        // A block of another arena's, and one with an alignment of its own.
        let before = desk.kept.get();
        enter_worker(5);
        let foreign = Live::new(heap, layout(100, 8), 1);
        enter_worker(4);
        foreign.free(&desk);
        Live::new(&desk, layout(100, 8), 3).free(&desk);
        Live::new(&desk, layout(128, 256), 2).free(&desk);
        Live::new(&desk, layout(128, 256), 2).free(&desk);
        assert_eq!(desk.kept.get(), before);
        Live::new(&desk, layout(128, 64), 4).free(&desk);
        Live::new(&desk, layout(128, 128), 5).free(&desk);
        assert_eq!(desk.kept.get(), before + 1);
        let before = before + 1;
        // Whoever keeps nothing any more gives all back at once.
        heap.empty(&desk.magazine, 1);
        desk.magazine.close();
        addresses(100, 3);
        addresses(100, 3);
        assert_eq!(desk.kept.get(), before);
    }

    #[test]
    fn a_heap_that_cannot_grow_says_so() {
        let heap = heap(Backing::Secret);
        let keeper = Live::new(heap, layout(100, 8), 3);
        // More than its address space: as if the system refused.
        // SAFETY: the size is not zero.
        assert!(unsafe { heap.alloc(layout(ROOM_BYTES + 1, 8)) }.is_null());
        assert!(heap.overflowed.load(Relaxed));
        Live::new(heap, layout(1 << 20, 8), 4).free(heap);
        keeper.free(heap);
    }

    #[test]
    fn blocks_from_elsewhere_are_left_alone() {
        let heap = heap(Backing::Secret);
        let mut foreign = Box::new(7_u8);
        // SAFETY: not from this heap, so it is left alone.
        assert!(!unsafe { heap.dealloc(&raw mut *foreign) });
        static NOT_CHOSEN: Heap = Heap::new();
        assert!(!NOT_CHOSEN.owns(&raw mut *foreign));
        assert_eq!(*foreign, 7);
    }

    #[test]
    fn secret_memory_cannot_be_read_from_outside() {
        use std::os::unix::fs::FileExt;
        let memory = std::fs::File::open("/proc/self/mem").expect("mem");
        let read = |live: &Live| {
            let mut bytes = [0_u8; 64];
            memory.read_at(&mut bytes, live.block as u64).map(|_| bytes[0]).map_err(|error| error.raw_os_error())
        };
        let (secret, locked) = (heap(Backing::Secret), heap(Backing::Locked));
        let hidden = Live::new(secret, layout(64, 8), 9);
        assert_eq!(read(&hidden), Err(Some(libc::EIO)));
        hidden.free(secret);
        // The reading itself works.
        let seen = Live::new(locked, layout(64, 8), 9);
        assert_eq!(read(&seen), Ok(9));
        seen.free(locked);
    }
}
