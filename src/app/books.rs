//! The journal's life in this process: its folder is opened before the lock-down, its thread starts behind it, what becomes of
//! events is told once a second, and the end waits for the last of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::StartFault;
use crate::config;
use crate::journal;
use crate::journal::Counts;
use crate::journal::Journal;
use crate::journal::Rotation;
use crate::journal::Writer;
use crate::telemetry::labels::IoFault;
use crate::telemetry::log;
use crate::telemetry::log::Event;
use crate::telemetry::metrics::ProcessMetrics;

/// At the end of the process, how long the disk may take. More than the writer itself gives a disk that refuses.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// While events are being lost, how often a line says so.
const LOSS_TOLD_EVERY: Duration = Duration::from_secs(60);

/// A folder that can be written to, and nobody who writes yet.
pub(super) struct Closed {
    folder: PathBuf,
    rotation: Arc<Rotation>,
    opened: journal::Opened,
}

impl Closed {
    /// Opens the folder of `[journal]`, if there is one.
    pub(super) fn open(wanted: Option<&config::Journal>) -> Result<Option<Self>, StartFault> {
        let Some(wanted) = wanted else { return Ok(None) };
        // Units that never mean to write a file forbid all rights to those that are made. These have to be read again, by
        // the next process too, and the process makes no others.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
        let rotation = Arc::new(Rotation::new(wanted.bytes, wanted.age));
        let opened = journal::open(&wanted.folder, rotation.clone())
            .map_err(|error| StartFault::Journal { folder: wanted.folder.clone(), error: error.kind() })?;
        Ok(Some(Self { folder: wanted.folder.clone(), rotation, opened }))
    }

    /// The one folder that is written to.
    pub(super) fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// Where events are handed over.
    pub(super) fn journal(&self) -> &Journal {
        self.opened.journal()
    }

    /// Starts writing.
    pub(super) fn start(self) -> Result<Books, StartFault> {
        let Self { folder, rotation, opened } = self;
        let journal = opened.journal().clone();
        let writer = opened.start().map_err(|error| StartFault::Runtime(error.kind()))?;
        Ok(Books { folder, rotation, journal, writer, told: Told::default() })
    }
}

/// The journal while the process serves.
pub(super) struct Books {
    folder: PathBuf,
    rotation: Arc<Rotation>,
    journal: Journal,
    writer: Writer,
    told: Told,
}

/// What metrics and log lines have said so far.
#[derive(Default)]
struct Told {
    written: u64,
    lost: u64,
    failures: u64,
    refused: bool,
    lost_in_lines: u64,
    loss_at: Option<Instant>,
}

impl Books {
    /// Where events are handed over.
    pub(super) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Once a second: tells what became of events since.
    pub(super) fn tell(&mut self, metrics: &ProcessMetrics) {
        self.told.tell(self.journal.counts(), metrics);
    }

    /// A reload wants the journal so. Landlock has tied this process to the folder that it began with.
    pub(super) fn reloaded(books: Option<&Self>, wanted: Option<&config::Journal>) {
        match (books, wanted) {
            (Some(books), Some(wanted)) if books.folder == wanted.folder => {
                books.rotation.set(wanted.bytes, wanted.age);
            }
            (None, None) => {}
            _ => log::emit(Event::JournalNeedsRestart),
        }
    }

    /// The end: waits until all that was handed over is on disk, or the disk has had its time.
    pub(super) fn finish(self, metrics: &ProcessMetrics) {
        let Self { journal, writer, mut told, .. } = self;
        if !writer.finish(LAST_WRITES) {
            // It hangs in a call to the disk. What waits for it ends with the process.
            journal.counts().give_up();
        }
        told.loss_at = None;
        told.tell(journal.counts(), metrics);
    }
}

impl Told {
    fn tell(&mut self, counts: &Counts, metrics: &ProcessMetrics) {
        let told = self;
        for (now, before, counter) in [
            (counts.written(), &mut told.written, &metrics.usage_events_written),
            (counts.lost(), &mut told.lost, &metrics.usage_events_lost),
            (counts.failures(), &mut told.failures, &metrics.usage_event_disk_failures),
        ] {
            counter.inc_by(now - *before);
            *before = now;
        }
        let refusal = counts.refusal();
        match &refusal {
            Some(error) if !told.refused => log::emit(Event::JournalRefused { error: IoFault::from(error) }),
            None if told.refused => log::emit(Event::JournalResumed),
            _ => {}
        }
        told.refused = refusal.is_some();
        let events = told.lost - told.lost_in_lines;
        if events > 0 && told.loss_at.is_none_or(|at| at.elapsed() >= LOSS_TOLD_EVERY) {
            told.lost_in_lines = told.lost;
            told.loss_at = Some(Instant::now());
            log::emit(Event::UsageEventsLost { events });
        }
    }
}
