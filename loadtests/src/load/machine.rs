//! What the kernel tells about processes, and where they may run. All of it is read from outside: nobody is asked to count
//! for himself.

use std::fs;
use std::io;

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::thread::CpuSet;
use rustix::thread::sched_getaffinity;
use rustix::thread::sched_setaffinity;

/// Which core does what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The client's side; and the provider's, if there is no third core.
    pub load: usize,
    /// The provider's, if it has one for itself.
    pub provider: Option<usize>,
    /// The proxy's.
    pub proxy: usize,
}

impl Cores {
    /// The machine's, among those that this process may use.
    pub fn of_machine() -> io::Result<Cores> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let load = cores.next().unwrap_or(0);
        let proxy = cores.next().unwrap_or(load);
        Ok(Cores { load, proxy, provider: cores.next() })
    }
}

/// Keeps this thread, and what it starts from now on, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// This process and what it starts from now on go before everyone else's work, as far as the kernel lets us; until it is
/// dropped.
pub struct First {
    /// Whether the kernel did.
    pub granted: bool,
    /// The priority that our session had among others.
    session: Option<String>,
}

impl First {
    /// Asks for it.
    pub fn ask() -> First {
        let granted = rustix::process::setpriority_process(None, FIRST).is_ok();
        // With autogroups a priority counts only within its session, and this one counts among sessions:
        // "/autogroup-273 nice 0".
        let session = fs::read_to_string(AUTOGROUP).ok();
        let session = session.and_then(|text| Some(text.trim().rsplit_once(" nice ")?.1.to_owned()));
        let _ = fs::write(AUTOGROUP, FIRST.to_string());
        First { granted, session }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            let _ = fs::write(AUTOGROUP, session);
        }
        let _ = rustix::process::setpriority_process(None, 0);
    }
}

const AUTOGROUP: &str = "/proc/self/autogroup";
const FIRST: i32 = -20;

/// Raises the limit on descriptors for this process and its children; returns what it is now.
pub fn raise_descriptors(wanted: u64) -> u64 {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(wanted);
    // Root may raise the hard limit, too.
    for maximum in [wanted.max(hard), hard] {
        let new = Rlimit { current: Some(wanted.min(maximum)), maximum: Some(maximum) };
        if rustix::process::setrlimit(Resource::Nofile, new).is_ok() {
            break;
        }
    }
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(wanted)
}

/// A process and its children: a server with its workers.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything: state, then the parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent == Some(pid) {
            family.push(other);
        }
    }
    family
}

/// CPU time of all threads of the processes, in nanoseconds, as the scheduler counts it: no sampling by ticks.
pub fn cpu_ns(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end in between; it takes its time with it, and nobody here ends threads under load.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let first = text.split(' ').next().and_then(|first| first.parse::<u64>().ok());
            sum += first.ok_or_else(|| io::Error::other("no time in schedstat"))?;
        }
    }
    Ok(sum)
}

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident: pages that processes share count for each.
    pub rss: u64,
    /// Proportional: pages that processes share count once.
    pub pss: u64,
}

/// The memory of all these processes together.
pub fn memory(pids: &[u32]) -> io::Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        for line in text.lines() {
            let kib = |rest: &str| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024;
            if let Some(rest) = line.strip_prefix("Rss:") {
                sum.rss += kib(rest);
            } else if let Some(rest) = line.strip_prefix("Pss:") {
                sum.pss += kib(rest);
            }
        }
    }
    Ok(sum)
}

/// What the machine is, in a line.
pub fn describe() -> String {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = text("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = text("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}
