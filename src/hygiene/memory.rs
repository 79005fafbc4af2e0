//! Memory that never goes to swap (mlockall(2)).

use rustix::mm::MlockAllFlags;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::thread::CapabilitySet;

/// `memory.lock`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLock {
    /// Default: locked where the limit allows it, else a warning and the metric.
    Auto,
    /// Locked, or nullhop does not start.
    Required,
    /// Not locked, and the metric says so.
    Off,
}

/// Lifts RLIMIT_MEMLOCK: away, with CAP_SYS_RESOURCE; else to the hard limit.
pub(super) fn raise_limit() {
    if rustix::process::setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
        let mut limit = rustix::process::getrlimit(Resource::Memlock);
        limit.current = limit.maximum;
        let _ = rustix::process::setrlimit(Resource::Memlock, limit);
    }
}

/// Locks what is mapped and what will be, page by page as they are touched.
///
/// Not under a limit: `MCL_FUTURE` counts whole mappings, so that with the usual 8 MiB the next
/// thread's stack cannot be mapped, and the process that wanted to be safe does not run.
pub(super) fn lock_all() -> bool {
    (limit().is_none() || held_by_capability())
        && rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).is_ok()
}

/// Bytes that may be locked; `None`: any number.
pub(crate) fn limit() -> Option<u64> {
    rustix::process::getrlimit(Resource::Memlock).current
}

/// Whether locking depends on CAP_IPC_LOCK, which then has to stay: without it the limit counts again.
pub(super) fn held_by_capability() -> bool {
    limit().is_some()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}
