//! Reading another process's memory: every readable mapping, through `/proc/PID/maps` and
//! `/proc/PID/mem` (proc(5)).

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::canary::Found;
use super::canary::Search;

/// The memory of a running process.
pub(super) struct Memory {
    pid: u32,
    file: File,
}

/// One look at all of it.
pub(super) struct Look {
    pub(super) found: Found,
    pub(super) bytes_read: u64,
    /// Mappings that are there, that the process itself can read, and that could not be read from here.
    pub(super) refused: Vec<Mapping>,
}

/// A mapping of a process.
pub(super) struct Mapping {
    start: u64,
    end: u64,
    /// A file's path, a name in brackets, or nothing.
    name: String,
}

impl Mapping {
    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Memory of memfd_secret(2): the kernel takes it out of its own map, so that not even root can read it.
    pub(super) fn is_secret(&self) -> bool {
        self.name.starts_with("/secretmem")
    }

    /// The kernel's own data for the clock. It cannot be read through `mem`, and nobody can write to it.
    fn is_kernels(&self) -> bool {
        self.name.starts_with("[vvar") || self.name == "[vsyscall]"
    }
}

/// One read. A page table's worth.
const READ_BYTES: usize = 2 << 20;

/// How much two reads overlap, so that no piece is cut in two.
const OVERLAP: usize = 7;

impl Memory {
    /// # Errors
    /// The system does not allow it (ptrace(2), "Ptrace access mode checking"), or the process is gone.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let memory = Self { pid, file: File::open(format!("/proc/{pid}/mem"))? };
        memory.mappings()?;
        Ok(memory)
    }

    fn mappings(&self) -> io::Result<Vec<Mapping>> {
        let text = fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        Ok(text.lines().filter_map(mapping).filter(|mapping| !mapping.is_kernels()).collect())
    }

    /// # Errors
    /// The list of mappings cannot be read: the process is gone.
    pub(super) fn search(&self, search: &Search) -> io::Result<Look> {
        let mut look = Look { found: search.nothing(), bytes_read: 0, refused: Vec::new() };
        let mut buffer = vec![0_u8; OVERLAP + READ_BYTES];
        let mut refused = Vec::new();
        for mapping in self.mappings()? {
            let mut at = mapping.start;
            // What was read last, for the overlap.
            buffer[..OVERLAP].fill(0);
            while at < mapping.end {
                let wanted = usize::try_from(mapping.end - at).unwrap_or(usize::MAX).min(READ_BYTES);
                match self.file.read_at(&mut buffer[OVERLAP..OVERLAP + wanted], at) {
                    Ok(read) if read > 0 => {
                        search.count(&buffer[..OVERLAP + read], at - OVERLAP as u64, &mut look.found);
                        buffer.copy_within(read..read + OVERLAP, 0);
                        look.bytes_read += read as u64;
                        at += read as u64;
                    }
                    _ => {
                        refused.push(mapping);
                        break;
                    }
                }
            }
        }
        if !refused.is_empty() {
            // The process runs on: some may be gone by now.
            let still = self.mappings()?;
            refused
                .retain(|mapping| still.iter().any(|other| other.start == mapping.start && other.end == mapping.end));
        }
        look.refused = refused;
        Ok(look)
    }

    /// Bytes of it that stand in the machine's memory (`VmRSS`): a search must have read at least these.
    pub(super) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kilobytes.map_or(u64::MAX, |kilobytes| kilobytes << 10)
    }
}

/// A line of `/proc/PID/maps`, if the process can read the mapping.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    if !fields.next()?.starts_with('r') {
        return None;
    }
    // Offset, device, inode; then blanks and the name.
    let name = fields.nth(3).unwrap_or("").trim().to_owned();
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping { start: address(start)?, end: address(end)?, name })
}

#[cfg(test)]
mod tests {
    use super::super::canary::Dictionary;
    use super::super::canary::Kind;
    use super::*;

    #[test]
    fn a_process_finds_its_own_words() {
        let dictionary = Dictionary::new(1, 1);
        let held = dictionary.word(0, 0, Kind::ResponseBody).content(100_000);
        let search = dictionary.search_for(0);
        let memory = Memory::open(std::process::id()).expect("one's own memory can be read");
        let look = memory.search(&search).expect("it can be searched");
        let found = look.found.total()[Kind::ResponseBody as usize];
        // The search's own buffer may hold a second copy.
        assert!(found >= held.len() as u64, "{found}");
        assert!(look.bytes_read >= memory.resident(), "{} of {}", look.bytes_read, memory.resident());
        // Tests of the secret heap run in this process too.
        assert!(look.refused.iter().all(Mapping::is_secret));
    }

    #[test]
    fn lines_of_maps() {
        let read = |line| mapping(line).map(|mapping| (mapping.start, mapping.end, mapping.name));
        assert_eq!(
            read("55e0-56f0 rw-p 00000000 00:00 0                          [heap]"),
            Some((0x55e0, 0x56f0, "[heap]".to_owned()))
        );
        assert_eq!(read("7f00-7f01 rw-p 00000000 00:00 0 "), Some((0x7f00, 0x7f01, String::new())));
        assert_eq!(read("7f00-7f01 ---p 00000000 00:00 0 "), None);
        let secret = mapping("7f00-7f01 rw-s 00000000 00:0f 1      /secretmem (deleted)").unwrap();
        assert!(secret.is_secret() && secret.bytes() == 1);
    }
}
