//! The other ways out of the child: its log, its pages, its files, its sockets, and the guards that it says it has.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use super::canary::Search;
use super::child::Child;
use super::child::MEMFD;
use super::report::Line;
use super::report::State;
use crate::config::Config;
use crate::hygiene::measure;
use crate::hygiene::measure::Measure;
use crate::retention::Rule;
use crate::telemetry::labels::Label;
use crate::telemetry::labels::ProcessGuard;

/// Loopback.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Of an HTTP GET: the whole answer.
fn fetch(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// The metrics page, empty if there is none.
pub(super) fn metrics(child: &Child) -> String {
    let page = fetch(child.metrics, "/metrics").unwrap_or_default();
    String::from_utf8_lossy(&page).into_owned()
}

/// A text that must hold no word.
pub(super) fn text(name: &'static str, what: &str, text: &[u8], search: &Search) -> Line {
    match search.in_text(text) {
        0 => Line::new(name, State::Good, format!("{what}: {} bytes read, no word in them", text.len())),
        found => Line::new(name, State::Broken, format!("{what}: {found} bytes of words in it")),
    }
}

/// The metrics page and the admin listener's pages.
pub(super) fn pages(child: &Child, search: &Search) -> Vec<Line> {
    let page = metrics(child);
    let mut lines = vec![match page.contains("nullhop_requests_total") {
        true => text("metrics", "the metrics page", page.as_bytes(), search),
        false => Line::new("metrics", State::Broken, "the metrics page could not be read".to_owned()),
    }];
    let answers: io::Result<Vec<_>> =
        ["/healthz", "/readyz", "/drain", "/"].into_iter().map(|path| fetch(child.admin, path)).collect();
    lines.push(match answers {
        Ok(answers) => text("admin", "the admin pages", &answers.concat(), search),
        Err(_) => Line::new("admin", State::Broken, "the admin pages could not be read".to_owned()),
    });
    lines
}

/// What the process's open files are: number, target, and whether it could write.
fn descriptors(pid: u32) -> io::Result<Vec<(String, bool)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // Closed since then: it is not open.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let number = entry.file_name().to_string_lossy().into_owned();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        // The access mode is in the two lowest bits, 0 for reading only (open(2)).
        let writes = flags.is_none_or(|flags| flags & 3 != 0);
        found.push((target.to_string_lossy().into_owned(), writes));
    }
    Ok(found)
}

/// The kernel counts a page for each file whose access time changes. Far below what is driven through.
const ACCESS_TIMES_MAX: u64 = 64 << 10;

/// No file is open for writing, none has appeared, and nothing went to storage.
pub(super) fn files(child: &Child) -> Vec<Line> {
    let mut lines = Vec::new();
    lines.push(match descriptors(child.pid()) {
        Err(_) => Line::new("open_files", State::Broken, "the list of open files could not be read".to_owned()),
        Ok(open) => {
            let is_file = |target: &str| {
                target.starts_with('/')
                    && !target.starts_with("/dev/")
                    && !target.starts_with(&format!("/memfd:{MEMFD}"))
            };
            let written = open.iter().filter(|(target, writes)| is_file(target) && *writes).count();
            match written {
                0 => Line::new(
                    "open_files",
                    State::Good,
                    format!("{} descriptors, no file open for writing", open.len()),
                ),
                _ => Line::new("open_files", State::Broken, format!("{written} files are open for writing")),
            }
        }
    });
    lines.push(match &child.folder {
        None => Line::new("new_files", State::Attention, "no folder could be made to watch".to_owned()),
        Some(folder) => match folder.entries() {
            0 => Line::new(
                "new_files",
                State::Good,
                "none in its working folder, which is its TMPDIR as well".to_owned(),
            ),
            new => Line::new("new_files", State::Broken, format!("{new} in its working folder")),
        },
    });
    let written = child.stored().zip(child.stored_at_start).map(|(now, before)| now.saturating_sub(before));
    lines.push(match written {
        Some(0) => Line::new("storage", State::Good, "0 bytes sent to storage".to_owned()),
        Some(bytes) if bytes <= ACCESS_TIMES_MAX => Line::new(
            "storage",
            State::Attention,
            format!(
                "{bytes} bytes sent to storage: no more than access times of files that it read (mount with noatime)"
            ),
        ),
        Some(bytes) => Line::new("storage", State::Broken, format!("{bytes} bytes sent to storage")),
        None => Line::new("storage", State::Attention, "this kernel does not count what goes to storage".to_owned()),
    });
    lines
}

/// Listening and connected are only what the configuration and the scripted provider account for.
pub(super) fn sockets(child: &Child, upstream_ports: &[u16]) -> Line {
    let mut line = sockets_now(child, upstream_ports);
    // A socket that was closed between two of the reads looks strange once.
    for _ in 0..3 {
        if line.state == State::Good {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        line = sockets_now(child, upstream_ports);
    }
    line
}

fn sockets_now(child: &Child, upstream_ports: &[u16]) -> Line {
    let broken = |says: String| Line::new("sockets", State::Broken, says);
    let Ok(open) = descriptors(child.pid()) else {
        return broken("the list of open files could not be read".to_owned());
    };
    let mut inodes: HashSet<&str> =
        open.iter().filter_map(|(target, _)| target.strip_prefix("socket:[")?.strip_suffix(']')).collect();
    let all = inodes.len();
    let ours: HashSet<u16> =
        child.listeners.iter().chain([&child.metrics, &child.admin]).map(|address| address.port()).collect();
    let table = |name| fs::read_to_string(format!("/proc/{}/net/{name}", child.pid())).unwrap_or_default();
    let (mut listening, mut connected, mut strange) = (0, 0, 0);
    for line in table("tcp").lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, _, _, _, _, _, inode, ..] = fields[..] else { continue };
        if !inodes.remove(inode) {
            continue;
        }
        let ((local_is_near, local), (remote_is_near, remote)) = (address(local), address(remote));
        // 0A: listening (include/net/tcp_states.h).
        match state == "0A" {
            true if local_is_near && ours.contains(&local) => listening += 1,
            false if remote_is_near && (ours.contains(&local) || upstream_ports.contains(&remote)) => connected += 1,
            _ => strange += 1,
        }
    }
    // The runtime wakes itself for signals through a pair that has no name.
    let unix = table("unix");
    let named: HashMap<&str, bool> = unix
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.nth(6)?, fields.next().is_some()))
        })
        .collect();
    let pairs = inodes.iter().filter(|inode| named.get(**inode) == Some(&false)).count();
    strange += inodes.len() - pairs;
    match strange {
        0 => Line::new(
            "sockets",
            State::Good,
            format!("{all}: {listening} listen where configured, {connected} to the scripted peers, {pairs} to itself"),
        ),
        _ => broken(format!("{strange} of {all} lead where neither the configuration nor this run accounts for")),
    }
}

/// Whether an IPv4 address of the kernel's table is loopback, and its port.
fn address(text: &str) -> (bool, u16) {
    let (ip, port) = text.split_once(':').unwrap_or(("", ""));
    // In the machine's byte order, printed as one number.
    let ip = u32::from_str_radix(ip, 16).unwrap_or(0).to_ne_bytes();
    (ip[0] == 127, u16::from_str_radix(port, 16).unwrap_or(0))
}

/// Whether a metrics page says that a guard is active.
pub(super) fn is_active(page: &str, guard: &str) -> bool {
    let wanted = format!("guard=\"{guard}\"");
    let of = |line: &&str| line.starts_with("nullhop_guard_active{") && line.contains(&wanted);
    page.lines().find(of).and_then(|line| line.rsplit_once(' ')).is_some_and(|(_, value)| value == "1")
}

/// What the child says about its guards. One that this kind of machine may lack is worth attention only.
pub(super) fn guards(page: &str) -> Vec<Line> {
    let guard = |guard: ProcessGuard| {
        let (state, says) = match (is_active(page, guard.as_str()), is_promised(guard)) {
            (true, _) => (State::Good, "active"),
            (false, true) => (State::Broken, "not active"),
            (false, false) => (State::Attention, "not active"),
        };
        Line::new(guard.as_str(), state, says.to_owned())
    };
    ProcessGuard::ALL.iter().copied().map(guard).collect()
}

/// Which rules of the retention policy the configuration relaxes. That is an operator's right, and an auditor's to know.
pub(super) fn retention(config: &Config) -> Vec<Line> {
    let relaxed = Rule::ALL.iter().filter_map(|rule| {
        let upstreams: Vec<&str> = config
            .upstreams
            .iter()
            .filter(|upstream| upstream.relaxed().any(|relaxed| relaxed == *rule))
            .map(|upstream| upstream.name.as_str())
            .collect();
        let keys = config.keys.iter().flat_map(|keys| &keys.relaxing).find(|(relaxed, _)| relaxed == rule);
        let mut whose = upstreams.join(", ");
        if let Some((_, keys)) = keys {
            let plural = if *keys == 1 { "" } else { "s" };
            whose.push_str(&format!("{}{keys} key{plural}", if whose.is_empty() { "" } else { " and " }));
        }
        let says = format!("retention rule relaxed for {whose}");
        (!whose.is_empty()).then(|| Line::new(rule.as_str(), State::Attention, says))
    });
    let mut lines: Vec<Line> = relaxed.collect();
    if lines.is_empty() {
        lines.push(Line::new("retention", State::Good, "all rules in force".to_owned()));
    }
    lines
}

/// Whether every machine that nullhop runs on has it. For others a limit, a container's policy or an older
/// kernel can stand in the way.
fn is_promised(guard: ProcessGuard) -> bool {
    matches!(
        guard,
        ProcessGuard::CapabilitiesDropped
            | ProcessGuard::CoreDumpsOff
            | ProcessGuard::CoreFilterEmpty
            | ProcessGuard::EnvironmentClean
            | ProcessGuard::NoNewPrivileges
            | ProcessGuard::NotDumpable
    )
}

/// The measures that keep memory free of content. The child is this same program with this same environment.
pub(super) fn measures() -> Vec<Line> {
    let left_out: Vec<&str> = measure::skipped().map(Measure::name).collect();
    let line = |measure: Measure| match left_out.contains(&measure.name()) {
        false => Line::new(measure.name(), State::Good, "taken".to_owned()),
        true => Line::new(measure.name(), State::Broken, "left out by NULLHOP_SKIP_MEASURES".to_owned()),
    };
    Measure::ALL.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::canary::Dictionary;
    use super::super::canary::Kind;
    use super::*;

    #[test]
    fn addresses_of_the_kernels_table() {
        assert_eq!(address("0100007F:1F90"), (true, 8080));
        assert_eq!(address("0100A8C0:0050"), (false, 80));
        assert_eq!(address(""), (false, 0));
    }

    #[test]
    fn a_word_in_a_log_line_is_found() {
        let dictionary = Dictionary::new(1, 1);
        let word = dictionary.word(0, 0, Kind::Credential).text();
        let search = dictionary.search_for_all();
        for (log, state) in [
            (format!("info started key=sk-{word}\n"), State::Broken),
            (format!("info started key={}\n", &word[3..11]), State::Broken),
            ("info started workers=2\n".to_owned(), State::Good),
        ] {
            let line = text("log", "the log", log.as_bytes(), &search);
            assert!(line.state == state && !line.says.contains(&word[3..11]), "{}", line.says);
        }
    }

    #[test]
    fn guards_are_read_from_the_page() {
        let page = "nullhop_guard_active{guard=\"core_dumps_off\"} 1\nnullhop_guard_active{guard=\"not_dumpable\"} 0\n";
        let states: HashMap<_, _> = guards(page).into_iter().map(|line| (line.name, line.state)).collect();
        assert!(states["core_dumps_off"] == State::Good);
        assert!(states["not_dumpable"] == State::Broken && states["no_new_privileges"] == State::Broken);
        assert!(states["landlock"] == State::Attention);
    }
}
