//! The file that is written to, and when the next one begins.
//!
//! `usage-TIME-PROCESS-NUMBER.open.jsonl` is written to by one process, which holds a lock on it (flock(2)). Full, old or
//! at the end of its process it loses `.open`, and is never touched again. Who finds one that is open and not locked
//! finds what a crash has left: the line that the crash has cut is taken off, and the file is closed.

use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::BATCH_BYTES;
use super::Rotation;
use super::event;

/// How the name of a file ends that is written to.
pub(super) const OPEN: &str = ".open.jsonl";

/// How the name of one ends that is not.
pub(super) const CLOSED: &str = ".jsonl";

/// How all of them begin.
pub(super) const PREFIX: &str = "usage-";

/// Names that are tried for a new file. Only a process that clears up after another, at the very same moment, can have one.
const ATTEMPTS: u32 = 100;

/// The open file of this process.
pub(super) struct Segment {
    folder: PathBuf,
    rotation: Arc<Rotation>,
    file: File,
    /// Its path without [`OPEN`].
    stem: PathBuf,
    /// Whole lines that are on disk.
    bytes: u64,
    /// When its first line was written; `None` while it is empty.
    begun: Option<Instant>,
    /// The last write failed half-way: what it left must go before the next.
    torn: bool,
}

impl Segment {
    /// Makes the folder if it is not there, closes what a crash has left in it, and begins a file.
    pub(super) fn open(folder: &Path, rotation: Arc<Rotation>) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
        close_orphans(folder)?;
        let (file, stem) = begin(folder)?;
        Ok(Self { folder: folder.to_owned(), rotation, file, stem, bytes: 0, begun: None, torn: false })
    }

    /// A batch that has this many bytes is enough for one write. One more event is what a file may be too long by.
    pub(super) fn batch_bytes(&self) -> u64 {
        self.rotation.bytes_max().min(BATCH_BYTES)
    }

    /// Puts whole lines at the end and on disk. Begins another file first if this one is full, old or gone.
    ///
    /// # Errors
    /// If the disk refuses; then none of them counts as written, and the next call begins where this one did.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.rotate_if_old()?;
        if lines.is_empty() {
            return Ok(());
        }
        if self.bytes > 0 && self.bytes.saturating_add(lines.len() as u64) > self.rotation.bytes_max() {
            self.rotate()?;
        }
        let there = self.file.metadata()?;
        if there.nlink() == 0 {
            // Somebody has removed it. What goes on being written into it would be gone with it.
            (self.file, self.stem) = begin(&self.folder)?;
            (self.bytes, self.begun, self.torn) = (0, None, false);
        } else if self.torn || there.len() != self.bytes {
            // Of ours, or of somebody who empties files in place.
            self.bytes = self.bytes.min(whole_lines(&mut self.file)?);
            self.file.set_len(self.bytes)?;
            self.torn = false;
        }
        self.torn = true;
        self.file.write_all(lines)?;
        self.file.sync_data()?;
        self.torn = false;
        self.bytes += lines.len() as u64;
        self.begun.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Begins another file if this one is old.
    pub(super) fn rotate_if_old(&mut self) -> io::Result<()> {
        match self.begun.is_some_and(|begun| begun.elapsed() >= self.rotation.age_max()) {
            true => self.rotate(),
            false => Ok(()),
        }
    }

    /// The next file is there before this one is closed: if the disk refuses, this one stays.
    fn rotate(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.bytes)?;
            self.torn = false;
        }
        let (file, stem) = begin(&self.folder)?;
        let _ = close(&self.stem, self.bytes == 0);
        (self.file, self.stem, self.bytes, self.begun) = (file, stem, 0, None);
        sync_folder(&self.folder)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.torn && self.file.set_len(self.bytes).is_err() {
            // The next start takes off what stands behind the last whole line.
            return;
        }
        let _ = close(&self.stem, self.bytes == 0);
        let _ = sync_folder(&self.folder);
    }
}

/// A new file with a name of its own, locked, and its path without [`OPEN`].
fn begin(folder: &Path) -> io::Result<(File, PathBuf)> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let mut refused = io::Error::from(io::ErrorKind::AlreadyExists);
    for number in 0..ATTEMPTS {
        let stem = folder.join(format!("{PREFIX}{time}-{:016x}-{number:02}", event::process()));
        if with(&stem, CLOSED).exists() {
            continue;
        }
        let path = with(&stem, OPEN);
        // Lines go to the end wherever that is: also after somebody has emptied the file in place.
        match OpenOptions::new().read(true).append(true).create_new(true).mode(0o640).open(&path) {
            // A process that clears up may have seen it before it was locked.
            Ok(file) if locked(&file) && is_at(&file, &path) => match sync_folder(folder) {
                Ok(()) => return Ok((file, stem)),
                Err(error) => {
                    let _ = std::fs::remove_file(&path);
                    return Err(error);
                }
            },
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Takes the lock. Where files cannot be locked, nobody can take one for left behind either.
fn locked(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

fn with(stem: &Path, end: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(end);
    path.into()
}

fn close(stem: &Path, empty: bool) -> io::Result<()> {
    let path = with(stem, OPEN);
    if empty { std::fs::remove_file(path) } else { std::fs::rename(path, with(stem, CLOSED)) }
}

/// Closes open files whose processes are gone.
fn close_orphans(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(stem) = name.strip_suffix(OPEN).filter(|stem| stem.starts_with(PREFIX)) else { continue };
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            // Closed meanwhile by its process or by another that clears up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if file.try_lock().is_err() || !is_at(&file, &path) {
            continue;
        }
        let bytes = whole_lines(&mut file)?;
        if bytes < file.metadata()?.len() {
            file.set_len(bytes)?;
        }
        file.sync_data()?;
        close(&folder.join(stem), bytes == 0)?;
    }
    sync_folder(folder)
}

/// Makes names last, as `sync_data` makes bytes.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// How many bytes of a file are whole lines.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut buffer = [0_u8; 4096];
    while end > 0 {
        let part = end.min(buffer.len() as u64);
        file.seek(SeekFrom::Start(end - part))?;
        let part = &mut buffer[..part as usize];
        file.read_exact(part)?;
        if let Some(place) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(end - part.len() as u64 + place as u64 + 1);
        }
        end -= part.len() as u64;
    }
    Ok(0)
}
