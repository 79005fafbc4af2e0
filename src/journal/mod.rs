//! Usage events for billing: one record for each exchange, without content, in a folder of JSON Lines files.
//!
//! At least once: an event is on disk at most [`SYNC_EVERY`] and one write after its exchange ended, and carries an id by
//! which a reader drops what it has seen before. A relay never waits for the disk: events go through a bounded queue, and
//! one that finds it full is counted and lost.
//!
//! Each process writes files of its own ([`file`]), so that two of them can share a folder while one takes over from the
//! other.

#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
mod event;
mod file;
mod read;
mod replay;
mod sum;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TryRecvError;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::thread::Thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) use event::Event;
pub(crate) use event::Tokens;
use file::Segment;
pub(crate) use replay::Replay;
pub(crate) use replay::replay;
pub(crate) use sum::By;
pub(crate) use sum::Span;
pub(crate) use sum::Sums;

/// Events that wait for the disk: about 6 MB. At 10,000 exchanges a second, a second and a half.
const QUEUE_MAX: usize = 16_384;

/// So many events that wait wake the writer early: a burst, such as a drain that cuts all streams at once.
const QUEUE_BURST: usize = QUEUE_MAX / 4;

/// The longest time between an event and the write that brings it to disk, as long as the disk keeps up. Nobody wakes
/// the writer meanwhile: that would be a system call in the worker for each exchange.
const SYNC_EVERY: Duration = Duration::from_millis(250);

/// One write, some 2,000 events; less where files are smaller.
const BATCH_BYTES: u64 = 1 << 20;

/// How long a disk that refuses is left alone, at first and at most.
const PATIENCE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// When the process ends, how long a disk that refuses is asked again.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// When a file is full. Changes while it is written to.
#[derive(Debug)]
pub(crate) struct Rotation {
    bytes_max: AtomicU64,
    age_ms_max: AtomicU64,
}

impl Rotation {
    /// A file that has `bytes_max` bytes is closed; so is one of `age_max`, if it has any events.
    pub(crate) fn new(bytes_max: u64, age_max: Duration) -> Self {
        let rotation = Self { bytes_max: AtomicU64::new(0), age_ms_max: AtomicU64::new(0) };
        rotation.set(bytes_max, age_max);
        rotation
    }

    /// From the next write on.
    pub(crate) fn set(&self, bytes_max: u64, age_max: Duration) {
        self.bytes_max.store(bytes_max, Relaxed);
        self.age_ms_max.store(u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Relaxed)
    }

    fn age_max(&self) -> Duration {
        Duration::from_millis(self.age_ms_max.load(Relaxed))
    }
}

/// What became of events. Read by the metrics.
#[derive(Default)]
pub(crate) struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
    /// Writes and syncs that the disk refused; the events are tried again.
    failures: AtomicU64,
    /// The number of the latest refusal's fault; 0 while all is well.
    refusal: AtomicI32,
    /// In the queue now.
    waiting: AtomicUsize,
}

impl Counts {
    /// Events that are on disk.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Events that found the queue full, or the disk refusing when the process ended. Must stay 0.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// How often the disk refused.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Counts what still waits as lost: the process ends.
    pub(crate) fn give_up(&self) {
        self.lost.fetch_add(self.waiting.swap(0, Relaxed) as u64, Relaxed);
    }

    /// What the disk said last, if that was no.
    pub(crate) fn refusal(&self) -> Option<io::Error> {
        Some(self.refusal.load(Relaxed)).filter(|number| *number != 0).map(io::Error::from_raw_os_error)
    }
}

/// The door for events; one for each worker.
#[derive(Clone)]
pub(crate) struct Journal {
    queue: SyncSender<Event>,
    counts: Arc<Counts>,
    writer: Arc<OnceThread>,
}

/// The writer's thread, once there is one.
type OnceThread = std::sync::OnceLock<Thread>;

impl Journal {
    /// Hands an event over. Never waits.
    pub(crate) fn record(&self, event: Event) {
        // Before the event is there: the writer takes it off again.
        let waiting = self.counts.waiting.fetch_add(1, Relaxed);
        if self.queue.try_send(event).is_err() {
            self.counts.waiting.fetch_sub(1, Relaxed);
            self.counts.lost.fetch_add(1, Relaxed);
        } else if waiting == QUEUE_BURST
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// What became of events so far.
    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }
}

/// A folder that can be written to. Events are taken, and wait for [`Opened::start`].
pub(crate) struct Opened {
    segment: Segment,
    events: Receiver<Event>,
    journal: Journal,
}

/// The thread that writes.
pub(crate) struct Writer {
    thread: JoinHandle<()>,
    closing: Arc<AtomicBool>,
}

impl Writer {
    /// Waits until all that was handed over before is on disk, for `patience` at most. What is handed over afterwards is
    /// lost. `false`: the disk has not come to an end.
    pub(crate) fn finish(self, patience: Duration) -> bool {
        self.closing.store(true, Release);
        self.thread.thread().unpark();
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.thread.is_finished()
    }
}

/// Opens the folder, closes what a crash has left in it, and begins a file.
///
/// # Errors
/// If the folder cannot be written to.
pub(crate) fn open(folder: &Path, rotation: Arc<Rotation>) -> io::Result<Opened> {
    let segment = Segment::open(folder, rotation)?;
    let (queue, events) = sync_channel(QUEUE_MAX);
    let journal = Journal { queue, counts: Arc::default(), writer: Arc::default() };
    Ok(Opened { segment, events, journal })
}

impl Opened {
    /// Where events are handed over.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Starts the thread that writes, with what this thread may do.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(crate) fn start(self) -> io::Result<Writer> {
        let Self { segment, events, journal } = self;
        let closing = Arc::new(AtomicBool::new(false));
        let thread = {
            let (closing, counts) = (closing.clone(), journal.counts.clone());
            std::thread::Builder::new()
                .name("journal".to_owned())
                .spawn(move || write(&events, segment, &counts, &closing))?
        };
        let _ = journal.writer.set(thread.thread().clone());
        Ok(Writer { thread, closing })
    }
}

/// Writes batch after batch. What the disk refuses is tried again; meanwhile the queue fills up.
fn write(events: &Receiver<Event>, mut segment: Segment, counts: &Counts, closing: &AtomicBool) {
    let (mut batch, mut lines) = (String::new(), event::Lines::default());
    loop {
        // Before the queue is looked at: what was handed over before is in it then.
        let last = closing.load(Acquire);
        let mut in_batch = 0;
        let empty = loop {
            match events.try_recv() {
                Ok(event) => {
                    counts.waiting.fetch_sub(1, Relaxed);
                    lines.put(&event, &mut batch);
                    in_batch += 1;
                    if batch.len() as u64 >= segment.batch_bytes() {
                        break false;
                    }
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break true,
            }
        };
        if put(&mut segment, batch.as_bytes(), counts, closing) {
            counts.written.fetch_add(in_batch, Relaxed);
        } else {
            counts.lost.fetch_add(in_batch, Relaxed);
        }
        batch.clear();
        if empty && last {
            return;
        }
        if empty {
            std::thread::park_timeout(SYNC_EVERY);
        }
    }
}

/// Brings a batch to disk, however long that takes, unless the process ends.
fn put(segment: &mut Segment, batch: &[u8], counts: &Counts, closing: &AtomicBool) -> bool {
    let [mut patience, longest] = PATIENCE;
    let mut closing_since = None;
    while let Err(refused) = segment.append(batch) {
        counts.failures.fetch_add(1, Relaxed);
        counts.refusal.store(refused.raw_os_error().unwrap_or(NO_NUMBER), Relaxed);
        if closing.load(Acquire) && closing_since.get_or_insert_with(Instant::now).elapsed() >= LAST_PATIENCE {
            return false;
        }
        if batch.is_empty() {
            // Only the next file is refused. The one that is there goes on.
            return true;
        }
        std::thread::park_timeout(if closing_since.is_some() { PATIENCE[0] } else { patience });
        patience = (patience * 2).min(longest);
    }
    counts.refusal.store(0, Relaxed);
    true
}

/// EIO, for a refusal without a number of its own.
const NO_NUMBER: i32 = 5;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nullhop-{}-journal-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// A journal with files of so many bytes.
    fn journal(folder: &Path, bytes_max: u64) -> (Journal, Writer) {
        let rotation = Arc::new(Rotation::new(bytes_max, Duration::from_secs(3600)));
        let opened = open(folder, rotation).unwrap();
        (opened.journal().clone(), opened.start().unwrap())
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn open_files(folder: &Path) -> Vec<PathBuf> {
        files(folder).into_iter().filter(|path| path.to_str().unwrap().ends_with(file::OPEN)).collect()
    }

    fn written(journal: &Journal, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while journal.counts().written() < count {
            assert!(Instant::now() < deadline, "{} of {count}", journal.counts().written());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn every_event_is_written_once_in_files_of_the_size_allowed() {
        let folder = folder("all");
        let (journal, writer) = journal(&folder, 2 << 20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let journal = journal.clone();
                scope.spawn(move || {
                    for number in 0..4000 {
                        journal.record(event::tests::event());
                        if number % 500 == 0 {
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                });
            }
        });
        assert!(writer.finish(Duration::from_secs(20)));
        let counts = journal.counts();
        assert_eq!((counts.written(), counts.lost(), counts.failures()), (16_000, 0, 0));
        assert_eq!(counts.waiting.load(Relaxed), 0);
        let files = files(&folder);
        assert!(files.len() > 2, "{files:?}");
        let mut ids = std::collections::BTreeSet::new();
        for file in &files {
            assert!(!file.to_str().unwrap().ends_with(file::OPEN));
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.len() as u64 <= 2 << 20);
            for line in text.lines() {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(ids.insert(value["id"].as_str().unwrap().to_owned()));
            }
        }
        assert_eq!(ids.len(), 16_000);
        journal.record(event::tests::event());
        assert_eq!(counts.lost(), 1, "nobody writes any more");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_queue_that_nobody_empties_loses_and_never_waits() {
        let folder = folder("full");
        // As with a disk that does not come back: nobody takes events.
        let opened = open(&folder, Arc::new(Rotation::new(1 << 20, Duration::MAX))).unwrap();
        let journal = opened.journal().clone();
        for _ in 0..QUEUE_MAX + 100 {
            journal.record(event::tests::event());
        }
        assert_eq!((journal.counts().lost(), journal.counts().written()), (100, 0));
        // It comes back: what waited is written, and there is room again.
        let writer = opened.start().unwrap();
        written(&journal, QUEUE_MAX as u64);
        journal.record(event::tests::event());
        assert!(writer.finish(Duration::from_secs(20)));
        assert_eq!((journal.counts().lost(), journal.counts().written()), (100, QUEUE_MAX as u64 + 1));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_line_that_was_cut_is_taken_off_and_the_rest_stays() {
        let folder = folder("cut");
        let line = |number: u32| format!("{{\"id\":\"{number}\"}}\n");
        for (number, (text, left)) in [
            (String::new(), 0),
            ("{\"id\":".to_owned(), 0),
            (line(1), 1),
            (line(1) + &line(2)[..5], 1),
            (line(1) + &line(2) + &"x".repeat(10_000), 2),
            (line(1).repeat(2000) + "\0\0\0", 2000),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("usage-20261121T140000Z-{number:016x}-00");
            std::fs::write(folder.join(format!("{name}.open.jsonl")), &text).unwrap();
            let (_journal, writer) = journal(&folder, 1 << 20);
            let closed = folder.join(format!("{name}.jsonl"));
            assert!(!folder.join(format!("{name}.open.jsonl")).exists());
            assert_eq!(closed.exists(), left > 0, "{text:.50}");
            if left > 0 {
                assert_eq!(std::fs::read_to_string(&closed).unwrap(), text[..text.rfind('\n').unwrap() + 1]);
                assert_eq!(std::fs::read_to_string(&closed).unwrap().lines().count(), left);
            }
            assert!(writer.finish(Duration::from_secs(20)));
        }
        assert_eq!(open_files(&folder), [] as [PathBuf; 0], "empty files of ours go");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn two_writers_share_a_folder() {
        let folder = folder("two");
        let (first, first_writer) = journal(&folder, 1 << 20);
        first.record(event::tests::event());
        written(&first, 1);
        let (second, second_writer) = journal(&folder, 1 << 20);
        assert_eq!(open_files(&folder).len(), 2, "the first one's file is left alone");
        for journal in [&first, &second] {
            journal.record(event::tests::event());
        }
        assert!(first_writer.finish(Duration::from_secs(20)));
        assert_eq!(open_files(&folder).len(), 1);
        assert!(second_writer.finish(Duration::from_secs(20)));
        let lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(files(&folder).iter().map(lines).sum::<usize>(), 3);
        assert_eq!(first.counts().written() + second.counts().written(), 3);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn files_that_others_remove_or_empty_are_no_loss_of_what_comes() {
        let folder = folder("others");
        let (journal, writer) = journal(&folder, 1 << 20);
        let record = |count: u64| {
            journal.record(event::tests::event());
            written(&journal, count);
            std::fs::read_to_string(&open_files(&folder)[0]).unwrap()
        };
        assert_eq!(record(1).lines().count(), 1);
        std::fs::remove_file(&open_files(&folder)[0]).unwrap();
        assert_eq!(record(2).lines().count(), 1, "in a new file");
        std::fs::write(&open_files(&folder)[0], "").unwrap();
        let text = record(3);
        assert!(text.starts_with("{\"id\"") && text.lines().count() == 1, "at its beginning");
        assert_eq!(journal.counts().failures(), 0);

        // All of the folder: it refuses, and takes up again what it has kept.
        std::fs::remove_dir_all(&folder).unwrap();
        journal.record(event::tests::event());
        let deadline = Instant::now() + Duration::from_secs(20);
        while journal.counts().refusal().is_none() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::create_dir_all(&folder).unwrap();
        written(&journal, 4);
        assert!(journal.counts().refusal().is_none() && journal.counts().failures() > 0);
        assert!(writer.finish(Duration::from_secs(20)));
        assert_eq!(std::fs::read_to_string(&files(&folder)[0]).unwrap().lines().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn old_files_are_closed_though_nothing_comes() {
        let folder = folder("old");
        let rotation = Arc::new(Rotation::new(1 << 20, Duration::from_secs(3600)));
        let opened = open(&folder, rotation.clone()).unwrap();
        let journal = opened.journal().clone();
        let writer = opened.start().unwrap();
        journal.record(event::tests::event());
        written(&journal, 1);
        rotation.set(1 << 20, Duration::from_millis(1));
        let deadline = Instant::now() + Duration::from_secs(20);
        while files(&folder).len() < 2 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(SYNC_EVERY * 3);
        assert_eq!(files(&folder).len(), 2, "an empty one is never old");
        assert!(writer.finish(Duration::from_secs(20)));
        assert_eq!(files(&folder).len(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_disk_that_refuses_is_no_reason_not_to_end() {
        let folder = folder("end");
        let (journal, writer) = journal(&folder, 1 << 20);
        std::fs::remove_dir_all(&folder).unwrap();
        journal.record(event::tests::event());
        assert!(writer.finish(Duration::from_secs(20)));
        assert_eq!((journal.counts().written(), journal.counts().lost()), (0, 1));
    }
}
