//! No capabilities: root without them is a user who owns many files.

use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;

/// Gives up every capability of this thread, and so of the threads that it will start, but `keep`.
/// Whether the process is rid of them: of those in force and those that could be put in force.
///
/// The bounding set can only be emptied by who may (CAP_SETPCAP). Elsewhere it stays and means
/// nothing: it counts when something is executed, and nothing is, and that without new privileges.
pub(super) fn drop_all_but(keep: CapabilitySet) -> bool {
    for capability in 0..u64::BITS {
        // Fails for numbers that this kernel does not know.
        let _ = rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << capability));
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    let Ok(held) = rustix::thread::capabilities(None) else { return false };
    let keep = held.permitted & keep;
    let wanted = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, wanted).is_ok()
}
