//! The nullhop under examination: this same program, with the derived configuration.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::MemfdFlags;
use rustix::process::Pid;
use rustix::process::Signal;

/// A debug build on a busy machine needs a few seconds.
const START: Duration = Duration::from_secs(20);

/// How its memory files are called in `/proc/PID/fd`.
pub(super) const MEMFD: &str = "nullhop-prove";

/// A text handed to the child without a file: memory that it inherits, opened by its number.
pub(super) struct Handed(File);

impl Handed {
    /// # Errors
    /// The kernel has no memory files, or no memory.
    pub(super) fn new(text: &str) -> io::Result<Self> {
        // Inherited on purpose: no close-on-exec.
        let mut file = File::from(rustix::fs::memfd_create(MEMFD, MemfdFlags::empty())?);
        file.write_all(text.as_bytes())?;
        Ok(Self(file))
    }

    /// Where both of us find it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// A folder that only this user can enter, to see whether anything is written; removed on drop.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// `None` where nothing can be written anyway.
    pub(super) fn new() -> Option<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("nullhop-prove-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).ok()?;
        Some(Self(path))
    }

    /// How many entries there are.
    pub(super) fn entries(&self) -> usize {
        std::fs::read_dir(&self.0).map_or(usize::MAX, Iterator::count)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running child; killed on drop.
pub(super) struct Child {
    process: std::process::Child,
    log: Arc<Mutex<Vec<u8>>>,
    pub(super) listeners: Vec<SocketAddr>,
    pub(super) metrics: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Its working folder and its `TMPDIR`.
    pub(super) folder: Option<Folder>,
    /// [`Child::stored`] when it began to serve.
    pub(super) stored_at_start: Option<u64>,
}

/// Why there is no child.
pub(super) enum NotStarted {
    /// The program could not be started.
    Spawn(io::ErrorKind),
    /// It ended, or did not say that it runs. Its own words are on record.
    Silent(Vec<u8>),
}

impl Child {
    pub(super) fn start(config: &Handed) -> Result<Self, NotStarted> {
        let folder = Folder::new();
        let mut command = Command::new("/proc/self/exe");
        command.arg("run").arg("-c").arg(config.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The supervisor's messages are for us, and so are its sockets.
        for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        match &folder {
            Some(folder) => command.current_dir(&folder.0).env("TMPDIR", &folder.0),
            None => command.current_dir("/"),
        };
        let mut process = command.spawn().map_err(|error| NotStarted::Spawn(error.kind()))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        if let Some(out) = process.stdout.take() {
            collect(out, log.clone());
        }
        if let Some(err) = process.stderr.take() {
            collect(err, log.clone());
        }
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut child = Self {
            process,
            log,
            listeners: Vec::new(),
            metrics: unknown,
            admin: unknown,
            folder,
            stored_at_start: None,
        };
        if !child.wait_for_log("started", START) {
            return Err(NotStarted::Silent(child.log()));
        }
        for (kind, address) in listening(&child.log()) {
            match kind.as_str() {
                "traffic" => child.listeners.push(address),
                "metrics" => child.metrics = address,
                "admin" => child.admin = address,
                _ => {}
            }
        }
        if child.listeners.is_empty() || child.metrics == unknown || child.admin == unknown {
            return Err(NotStarted::Silent(child.log()));
        }
        child.stored_at_start = child.stored();
        Ok(child)
    }

    /// Bytes that it has made the kernel send to storage so far (`write_bytes`, proc(5)).
    pub(super) fn stored(&self) -> Option<u64> {
        let counted = std::fs::read_to_string(format!("/proc/{}/io", self.pid())).ok()?;
        counted.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// All that it has written to standard output and standard error.
    pub(super) fn log(&self) -> Vec<u8> {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }

    /// Waits for a line of this event; false if none comes or the process ends.
    pub(super) fn wait_for_log(&mut self, event: &str, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let has =
            |log: &[u8]| String::from_utf8_lossy(log).lines().any(|line| event_of(line).as_deref() == Some(event));
        while Instant::now() < deadline {
            if has(&self.log()) {
                return true;
            }
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                // Its last words may still be on their way.
                std::thread::sleep(Duration::from_millis(50));
                return has(&self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, log: Arc<Mutex<Vec<u8>>>) {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read) = from.read(&mut piece) {
            if read == 0 {
                return;
            }
            if let Ok(mut log) = log.lock() {
                log.extend_from_slice(&piece[..read]);
            }
        }
    });
}

/// A field of a log line, in either of the log's formats.
fn field(line: &str, name: &str) -> Option<String> {
    if line.starts_with('{') {
        let json: serde_json::Value = serde_json::from_str(line).ok()?;
        return json[name].as_str().map(str::to_owned);
    }
    // Time, level, event; then `name=value`.
    if name == "event" {
        return line.split(' ').nth(2).map(str::to_owned);
    }
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

fn event_of(line: &str) -> Option<String> {
    field(line, "event")
}

/// The listeners that a log tells of, in its order.
fn listening(log: &[u8]) -> Vec<(String, SocketAddr)> {
    let log = String::from_utf8_lossy(log);
    let lines = log.lines().filter(|line| event_of(line).as_deref() == Some("listening"));
    lines.filter_map(|line| Some((field(line, "kind")?, field(line, "address")?.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read_from_both_formats() {
        let text = b"2026-01-01T00:00:00.000Z info listening kind=metrics address=127.0.0.1:5\n\
            {\"time\":\"x\",\"level\":\"info\",\"event\":\"listening\",\"kind\":\"traffic\",\"address\":\"127.0.0.1:6\"}\n";
        let read = listening(text);
        assert_eq!(read[0], ("metrics".to_owned(), "127.0.0.1:5".parse().unwrap()));
        assert_eq!(read[1], ("traffic".to_owned(), "127.0.0.1:6".parse().unwrap()));
    }

    #[test]
    fn what_is_handed_over_can_be_read_again_and_again() {
        let handed = Handed::new("[log]\n").unwrap();
        for _ in 0..2 {
            assert_eq!(std::fs::read_to_string(handed.path()).unwrap(), "[log]\n");
        }
        assert!(std::fs::metadata(handed.path()).unwrap().is_file());
    }
}
