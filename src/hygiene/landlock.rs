//! Files: what may still be read, and that nothing may be written or executed (landlock(7)).

use std::path::Path;
use std::path::PathBuf;

use landlock::ABI;
use landlock::Access;
use landlock::AccessFs;
use landlock::BitFlags;
use landlock::PathBeneath;
use landlock::PathFd;
use landlock::Ruleset;
use landlock::RulesetAttr;
use landlock::RulesetCreatedAttr;
use landlock::RulesetError;
use landlock::RulesetStatus;
use landlock::Scope;

/// What the process reads while it serves, besides the configuration's files. What a machine lacks is left out.
const SYSTEM: [&str; 9] = [
    // The resolver's files, and the configuration's usual place.
    "/etc",
    // glibc loads the resolver's modules (nsswitch.conf(5)) when a name is first asked for.
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    // The process metrics.
    "/proc/self",
    // When the machine came up: the start time among the process metrics counts from there.
    "/proc/stat",
    // How many cores there are, asked again at each reload.
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];

/// glibc's malloc asks this when it gives memory back.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";

/// Often links to a folder that changes with the network: the resolver then reads there.
const RESOLVER: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Reads of a folder and all below it, or of one file.
const READ: BitFlags<AccessFs> = landlock::make_bitflags!(AccessFs::{ReadFile | ReadDir});

/// Files that come, grow, get another name and go.
const WRITE: BitFlags<AccessFs> =
    landlock::make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | MakeReg | RemoveFile | Truncate | Refer});

/// Confines this thread, and so the threads that it will start. `false`: this kernel has no Landlock, or none for us.
///
/// Rights that an older kernel does not know are left out: since the first version those that count
/// are there, and opening with truncation is refused by the seccomp filter, too. Connecting and
/// binding stay free, because a reload may name other ports; so do abstract sockets, by which some
/// supervisors hear from us.
pub(super) fn confine(readable: &[PathBuf], writable: &[PathBuf]) -> bool {
    restrict(readable, writable).is_ok_and(|status| status != RulesetStatus::NotEnforced)
}

fn restrict(readable: &[PathBuf], writable: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    let mut rules = Ruleset::default()
        // All that the fifth version knows: reading, writing, executing, making and removing, device control.
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::Signal)?
        .create()?;
    let system = SYSTEM.iter().chain([&OVERCOMMIT]).map(PathBuf::from);
    let resolver = RESOLVER.iter().filter_map(|link| Some(std::fs::canonicalize(link).ok()?.parent()?.to_owned()));
    let resolver = resolver.filter(|folder| folder != Path::new("/"));
    for path in system.chain(resolver).chain(readable.iter().cloned()) {
        rules = allow(rules, &path, READ)?;
    }
    for path in writable {
        rules = allow(rules, path, WRITE)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn allow(
    rules: landlock::RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, RulesetError> {
    let Ok(place) = PathFd::new(path) else { return Ok(rules) };
    // Rights of folders mean nothing for a file, and are refused for one.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V5) };
    let rules = rules.add_rule(PathBeneath::new(&place, access))?;
    if path.starts_with("/proc") {
        // A rule is tied to an inode, and procfs makes new ones when the kernel wants memory back. Not while the place
        // is held open.
        std::mem::forget(place);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_what_is_named_can_be_read_and_nothing_be_written() {
        let folder = std::env::temp_dir().join(format!("nullhop-landlock-{}", std::process::id()));
        let (inside, outside) = (folder.join("inside"), folder.join("outside"));
        let journal = folder.join("journal");
        for made in [&inside, &outside, &journal] {
            std::fs::create_dir_all(made).expect("folder");
            std::fs::write(made.join("file"), "text").expect("file");
        }
        // Only this thread is confined.
        let (readable, writable) = (vec![inside.clone()], vec![journal.clone()]);
        let (place, other, third) = (inside.clone(), outside.clone(), journal.clone());
        let confined = std::thread::spawn(move || {
            if !confine(&readable, &writable) {
                return false;
            }
            let denied = |result: std::io::Result<File>| {
                result.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
            };
            assert!(File::open(place.join("file")).is_ok());
            assert!(std::fs::read_dir(&place).is_ok());
            assert!(denied(File::create(place.join("file"))), "overwriting");
            assert!(denied(File::create(place.join("new"))), "a new file");
            assert!(denied(File::open(other.join("file"))), "outside");
            assert!(std::fs::read_dir(&other).is_err());
            assert!(denied(File::open("/proc/1/status")), "another process");
            assert!(File::open("/proc/self/status").is_ok());
            assert!(File::open("/etc/hosts").is_ok());
            let new = third.join("new");
            assert!(File::create(&new).is_ok() && std::fs::remove_file(&new).is_ok(), "the writable folder");
            let error = std::process::Command::new("/bin/true").spawn().expect_err("executing");
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
            true
        })
        .join()
        .expect("as asserted");
        let _ = std::fs::remove_dir_all(&folder);
        // CI's kernel has it; elsewhere this says why nothing was shown.
        assert!(confined, "this kernel has no Landlock");
    }
}
