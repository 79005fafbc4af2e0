//! Stage one: what the process gives up before it reads its first byte of input. Stage two is
//! [`super::lockdown`].

#![expect(unsafe_code, reason = "no safe crate of ours ignores a signal")]

use rustix::process::DumpableBehavior;
use rustix::process::Resource;
use rustix::process::Rlimit;

use super::environment;
use super::environment::Environment;
use super::memory;

/// What holds after [`harden`].
#[derive(Clone, Copy)]
pub(crate) struct Hardened {
    /// No core file: its greatest size is 0, and cannot be raised again without a capability.
    pub(crate) core_dumps_off: bool,
    /// No kind of mapping would go into a core, also where a pipe takes cores and the size does not count (core(5)).
    pub(crate) core_filter_empty: bool,
    /// What the environment asks for; `run` refuses [`Environment::Refused`].
    pub(crate) environment: Environment,
    /// No way to more rights by executing something.
    pub(crate) no_new_privileges: bool,
    /// No ptrace by the same user, no core, `/proc/PID/mem` only for root.
    pub(crate) not_dumpable: bool,
}

/// Closes what a running proxy never needs. Each step that the system refuses is reported, not fatal.
pub(crate) fn harden() -> Hardened {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    memory::raise_limit();
    outlive_file_limits();
    Hardened {
        core_dumps_off: rustix::process::setrlimit(Resource::Core, none).is_ok(),
        // Before the process is not dumpable: afterwards the file belongs to root (proc(5)).
        core_filter_empty: std::fs::write("/proc/self/coredump_filter", "0").is_ok(),
        environment: environment::look(),
        no_new_privileges: rustix::thread::set_no_new_privs(true).is_ok(),
        not_dumpable: rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok(),
    }
}

/// A file that has reached its limit (RLIMIT_FSIZE) is a fault of one write, not the end of the process: the journal tries
/// again, and relays go on.
fn outlive_file_limits() {
    // SAFETY: ignoring a signal runs no code of ours; no other thread is there yet, and nobody else minds this signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
