//! The file that is written to, and when the next one begins.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use jiff::Timestamp;

use super::Settings;

/// The name of the file that is written to.
const CURRENT: &str = "usage.jsonl";

/// `usage.jsonl`, open at its end.
pub(super) struct Segment {
    settings: Settings,
    file: File,
    /// Whole lines that are on disk.
    bytes: u64,
    /// When its first line was written; `None` while it is empty.
    begun: Option<Instant>,
    /// The last write failed half-way: what it left must go before the next.
    torn: bool,
}

impl Segment {
    /// Opens or makes the file. A last line without its end is cut off: its event was not acknowledged by a sync.
    pub(super) fn open(settings: Settings) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(settings.folder.join(CURRENT))?;
        let bytes = whole_lines(&mut file)?;
        let mut segment = Self { settings, file, bytes, begun: (bytes > 0).then(Instant::now), torn: true };
        segment.repair()?;
        segment.sync_folder()?;
        Ok(segment)
    }

    /// Puts whole lines at the end and on disk. Begins another file first if this one is full or old.
    ///
    /// # Errors
    /// If the disk refuses; then none of them counts as written, and the next call begins where this one did.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let old = self.begun.is_some_and(|begun| begun.elapsed() >= self.settings.age_max);
        let full = self.bytes > 0 && self.bytes + lines.len() as u64 > self.settings.bytes_max;
        if old || full {
            self.rotate()?;
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.repair()?;
        self.torn = true;
        self.file.write_all(lines)?;
        self.file.sync_data()?;
        self.torn = false;
        self.bytes += lines.len() as u64;
        self.begun.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn repair(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::Start(self.bytes))?;
            self.torn = false;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.repair()?;
        let folder = &self.settings.folder;
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut number = 0_u32;
        let closed = loop {
            let name = folder.join(format!("usage-{time}-{number:04}.jsonl"));
            // Nobody else writes here; a second file in one second gets the next number.
            if !name.exists() {
                break name;
            }
            number += 1;
        };
        match std::fs::rename(folder.join(CURRENT), closed) {
            // An earlier attempt came no further than this.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(folder.join(CURRENT))?;
        self.bytes = 0;
        self.begun = None;
        self.sync_folder()
    }

    /// Makes names last, as `sync_data` makes bytes.
    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.settings.folder)?.sync_all()
    }
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
