//! What the process gives up before it reads its first byte of input.

use rustix::process::DumpableBehavior;
use rustix::process::Resource;
use rustix::process::Rlimit;

/// What holds after [`harden`].
#[derive(Clone, Copy)]
pub(crate) struct Hardened {
    /// No core file, whatever the limit was.
    pub(crate) core_dumps_off: bool,
    /// No ptrace by the same user, no core, `/proc/PID/mem` only for root.
    pub(crate) not_dumpable: bool,
    /// No way to more rights by executing something.
    pub(crate) no_new_privileges: bool,
}

/// Closes what a running proxy never needs. Each step that the system refuses is reported, not fatal.
pub(crate) fn harden() -> Hardened {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    Hardened {
        core_dumps_off: rustix::process::setrlimit(Resource::Core, none).is_ok(),
        not_dumpable: rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok(),
        no_new_privileges: rustix::thread::set_no_new_privs(true).is_ok(),
    }
}
