//! Usage events for billing: one record for each exchange, without content, in a folder of JSON Lines files.
//!
//! At least once: an event is on disk at most [`SYNC_EVERY`] after its exchange ended, and carries an id by which a reader
//! drops what it has seen before. A relay never waits for the disk: events go through a bounded queue, and one that finds
//! it full is counted and lost.
//!
//! `usage.jsonl` is written to; full or old, it becomes `usage-TIME-NUMBER.jsonl` and is never touched again. A line that
//! a crash has cut is taken off when the folder is opened again.

mod event;
mod file;
mod sum;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TrySendError;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

pub(crate) use event::Event;
use file::Segment;
pub(crate) use sum::By;
pub(crate) use sum::Sums;

/// Events that wait for the disk. At 300 bytes each a few megabytes; at 10,000 exchanges a second, a second and a half.
const QUEUE_MAX: usize = 16_384;

/// The longest time between an event and the disk, as long as the disk keeps up.
const SYNC_EVERY: Duration = Duration::from_millis(250);

/// Where events go and when a file is full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    pub(crate) folder: PathBuf,
    /// A file that has this many bytes is closed.
    pub(crate) bytes_max: u64,
    /// So is one of this age, if it has any events.
    pub(crate) age_max: Duration,
}

/// What became of events. Read by the metrics.
#[derive(Default)]
pub(crate) struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
    /// Writes and syncs that the disk refused; the events are tried again.
    failures: AtomicU64,
}

impl Counts {
    /// Events that are on disk.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Events that found the queue full. Must stay 0.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// How often the disk refused.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }
}

/// The door for events; one for each worker.
#[derive(Clone)]
pub(crate) struct Journal {
    queue: SyncSender<Event>,
    counts: Arc<Counts>,
}

impl Journal {
    /// Hands an event over. Never waits.
    pub(crate) fn record(&self, event: Event) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(event) {
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }
}

/// The thread that writes. Ends when every [`Journal`] is gone and what they handed over is on disk.
pub(crate) struct Writer {
    thread: JoinHandle<()>,
    counts: Arc<Counts>,
}

impl Writer {
    /// What became of events so far.
    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Waits for the last event. Every [`Journal`] must be dropped first.
    pub(crate) fn join(self) {
        let _ = self.thread.join();
    }
}

/// Opens the folder, repairs what a crash left, and starts writing.
///
/// # Errors
/// If the folder cannot be written to.
pub(crate) fn open(settings: Settings) -> std::io::Result<(Journal, Writer)> {
    let segment = Segment::open(settings)?;
    let (queue, events) = sync_channel(QUEUE_MAX);
    let counts = Arc::new(Counts::default());
    let thread = {
        let counts = counts.clone();
        std::thread::Builder::new().name("journal".to_owned()).spawn(move || write(&events, segment, &counts))?
    };
    Ok((Journal { queue, counts: counts.clone() }, Writer { thread, counts }))
}

/// Writes batch after batch. What the disk refuses is tried again; meanwhile the queue fills up.
fn write(events: &Receiver<Event>, mut segment: Segment, counts: &Counts) {
    let mut batch = String::new();
    let mut open = true;
    while open {
        let mut in_batch = 0;
        let deadline = Instant::now() + SYNC_EVERY;
        loop {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    event.line(&mut batch);
                    in_batch += 1;
                    if batch.len() >= BATCH_BYTES {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        let mut patience = Duration::from_millis(100);
        while let Err(_refused) = segment.append(batch.as_bytes()) {
            counts.failures.fetch_add(1, Relaxed);
            if !open && patience > LAST_PATIENCE {
                counts.lost.fetch_add(in_batch, Relaxed);
                in_batch = 0;
                break;
            }
            std::thread::sleep(patience);
            patience = (patience * 2).min(Duration::from_secs(5));
        }
        counts.written.fetch_add(in_batch, Relaxed);
        batch.clear();
    }
}

/// One write.
const BATCH_BYTES: usize = 256 << 10;

/// When the process ends, a disk that refuses is not waited for much longer than this.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nullhop-{}-journal-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn settings(folder: &std::path::Path, bytes_max: u64) -> Settings {
        Settings { folder: folder.to_owned(), bytes_max, age_max: Duration::from_secs(3600) }
    }

    fn files(folder: &std::path::Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn every_event_is_written_once_in_files_of_the_size_allowed() {
        let folder = folder("all");
        let (journal, writer) = open(settings(&folder, 100_000)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let journal = journal.clone();
                scope.spawn(move || {
                    for _ in 0..500 {
                        journal.record(event::tests::event());
                    }
                });
            }
        });
        drop(journal);
        let counts = writer.counts().clone();
        writer.join();
        assert_eq!((counts.written(), counts.lost(), counts.failures()), (2000, 0, 0));
        let files = files(&folder);
        assert!(files.len() > 3);
        let mut ids = std::collections::BTreeSet::new();
        for file in &files {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(text.len() as u64 <= 100_000 + BATCH_BYTES as u64);
            for line in text.lines() {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(ids.insert(value["id"].as_str().unwrap().to_owned()));
            }
        }
        assert_eq!(ids.len(), 2000);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_line_that_was_cut_is_taken_off_and_the_rest_goes_on() {
        let folder = folder("cut");
        let (journal, writer) = open(settings(&folder, 1 << 20)).unwrap();
        journal.record(event::tests::event());
        journal.record(event::tests::event());
        drop(journal);
        writer.join();
        let path = folder.join("usage.jsonl");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
        let (journal, writer) = open(settings(&folder, 1 << 20)).unwrap();
        journal.record(event::tests::event());
        drop(journal);
        writer.join();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
