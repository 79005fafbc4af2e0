//! System calls: those a serving nullhop makes, and no other (seccomp(2)).
//!
//! Three filters, and the kernel takes the strictest answer:
//! - [`ALLOWED`] and [`conditions`] may; everything else fails with EPERM. Not fatally: glibc's
//!   malloc, for one, asks for files that it can do without.
//! - [`ABSENT`] look as if the kernel did not have them: libc then takes the older call, whose
//!   arguments the filter can see.
//! - [`FATAL`] end the process: no part of nullhop, and none of its libraries, makes them, so
//!   whoever does has taken the process over.

#![cfg_attr(test, expect(unsafe_code, reason = "the tests fork, and make calls that no library would make"))]

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::BpfProgram;
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpArgLen;
use seccompiler::SeccompCmpOp;
use seccompiler::SeccompCondition;
use seccompiler::SeccompFilter;
use seccompiler::SeccompRule;
use seccompiler::TargetArch;

/// Whatever the arguments are.
const ALLOWED: &[c_long] = &[
    // Sockets: accepting, connecting, relaying.
    libc::SYS_accept,      // std
    libc::SYS_accept4,     // mio
    libc::SYS_bind,        // a reload's new addresses; the resolver's netlink socket
    libc::SYS_connect,     // upstreams, the resolver
    libc::SYS_getpeername, // the client's address
    libc::SYS_getsockname, // which listener it came to
    libc::SYS_getsockopt,  // whether a connect succeeded, what is left to send
    libc::SYS_listen,      // a reload's new addresses
    libc::SYS_read,        // sockets, event descriptors, files
    libc::SYS_readv,       // the same
    libc::SYS_recvfrom,    // sockets
    libc::SYS_recvmsg,     // the resolver
    libc::SYS_sendmmsg,    // glibc's resolver asks for both families at once
    libc::SYS_sendmsg,     // the resolver
    libc::SYS_sendto,      // sockets
    libc::SYS_setsockopt,  // TCP_NODELAY, SO_LINGER, TCP_USER_TIMEOUT, SO_REUSEPORT
    libc::SYS_shutdown,    // the end of a connection
    libc::SYS_socketpair,  // tokio's signals
    libc::SYS_write,       // sockets, event descriptors, log lines on standard error
    libc::SYS_writev,      // the same
    // Waiting: epoll in the workers, poll in the resolver.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2, // mio's waker
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Descriptors and files that are open, or are opened for reading below.
    libc::SYS_close,
    libc::SYS_dup,        // tokio's signals, in each new runtime
    libc::SYS_faccessat,  // libc, before it opens its files
    libc::SYS_fstat,      // sizes before reading
    libc::SYS_getcwd,     // relative paths at a reload
    libc::SYS_getdents64, // the process metrics count descriptors
    libc::SYS_lseek,      // how much is left to read
    libc::SYS_newfstatat, // whether a certificate has changed
    libc::SYS_pread64,    // the loader, for the resolver's modules
    libc::SYS_readlinkat, // paths with links at a reload
    libc::SYS_statx,      // whether a certificate has changed
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    // Memory: the heap, stacks, the secret heap as it grows.
    libc::SYS_brk,
    libc::SYS_ftruncate,    // sets the size of a secret heap's new part
    libc::SYS_memfd_secret, // a secret heap's new part
    libc::SYS_mlock,        // secrets of a reload
    libc::SYS_mlock2,       // the secret heap
    libc::SYS_mremap,       // C's realloc of large blocks
    libc::SYS_munlock,
    libc::SYS_munmap,
    // Threads: the resolver's helpers come and go.
    libc::SYS_exit,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,        // musl, when it loads thread-local data
    libc::SYS_rseq,              // glibc, in each new thread
    libc::SYS_sched_getaffinity, // how many cores; where a thread's stack ends
    libc::SYS_sched_yield,       // contended locks
    libc::SYS_set_robust_list,   // glibc, in each new thread
    libc::SYS_sigaltstack,       // std, in each new thread
    // Signals and the end.
    libc::SYS_exit_group,
    libc::SYS_restart_syscall, // the kernel's own, after a stop
    libc::SYS_rt_sigaction,    // tokio, abort(3)
    libc::SYS_rt_sigprocmask,  // libc, around new threads
    libc::SYS_rt_sigreturn,    // the end of each signal handler
    // Clocks. Most machines answer without a call; some virtual ones do not.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getcpu,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    // What the process asks about itself and the machine.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom, // TLS
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo, // libc: how much memory there is
    libc::SYS_uname,   // the resolver's search domain
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
];

/// What a journal needs beyond [`ALLOWED`], in folders that Landlock leaves writable: its thread, with each batch of events
/// and each new file. It writes with write(2) and cuts with ftruncate(2), which others need as well.
const JOURNAL: &[c_long] = &[
    libc::SYS_fdatasync, // a batch survives
    libc::SYS_flock,     // a file of its own, also beside another process
    libc::SYS_fsync,     // a name survives
    libc::SYS_openat,    // with any flags: a new file
    libc::SYS_renameat,  // a full file is closed
    libc::SYS_renameat2, // the same, on machines without the one before
    libc::SYS_unlinkat,  // an empty file goes with its process
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open, // the same as above, by their older calls
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// As if the kernel did not have them.
const ABSENT: &[c_long] = &[
    libc::SYS_clone3,     // its flags stand in memory; libc falls back to clone
    libc::SYS_faccessat2, // libc falls back to faccessat
    libc::SYS_openat2,    // its flags stand in memory
];

/// The process ends with SIGSYS.
const FATAL: &[c_long] = &[
    // Other programs in this process's place, or beside it.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes' memory, and this one's from a child that got away.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_userfaultfd,
    // Watching, and the kernel's own machinery.
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_perf_event_open,
    libc::SYS_reboot,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    // System calls that go past this filter.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    // Other views of the machine.
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // Keys of the kernel's keyrings.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
];

/// The flags of open(2) by which a file is written, made or emptied.
const WRITING: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;

/// Namespaces of its own, which a thread does not have. They are the same in clone(2) and unshare(2).
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// Advice that gives memory back or keeps it out of dumps and children; not MADV_DODUMP and MADV_KEEPONFORK, which undo that.
const ADVICE: [i32; 8] = [
    libc::MADV_DONTDUMP,
    libc::MADV_DONTFORK,
    libc::MADV_DONTNEED,
    libc::MADV_FREE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_WIPEONFORK,
    // MADV_GUARD_INSTALL: glibc 2.42 makes the guards of stacks so. Linux 6.13, mman-common.h.
    102,
];

/// Non-blocking mode, close on exec, how much can be read; and what stdio asks of a terminal.
const IOCTLS: [libc::Ioctl; 6] =
    [libc::FIONBIO, libc::FIOCLEX, libc::FIONCLEX, libc::FIONREAD, libc::TCGETS, libc::TIOCGWINSZ];

const FCNTLS: [i32; 5] = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_GETFL, libc::F_SETFD, libc::F_SETFL];

/// Names of threads, and of mappings (glibc names its own when asked to).
const PRCTLS: [i32; 3] = [libc::PR_GET_NAME, libc::PR_SET_NAME, libc::PR_SET_VMA];

/// TCP over both families; AF_UNIX for the supervisor and glibc's name cache; AF_NETLINK, by which
/// getaddrinfo asks for the machine's addresses. Not AF_PACKET, AF_VSOCK, AF_ALG and the many that
/// only bring new kernel code within reach.
const FAMILIES: [i32; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_UNIX];

/// What may be called with some arguments only: a call is allowed if all conditions of one of its rules hold.
#[allow(clippy::unnecessary_cast, reason = "the type of an ioctl's number differs between glibc and musl")]
fn conditions() -> Result<Vec<(c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    let mut rules = vec![
        // The resolver's files, certificates, the configuration, process metrics: to read.
        (libc::SYS_openat, vec![when([masked(2, WRITING, libc::O_RDONLY as u64)])?]),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, vec![when([masked(1, WRITING, libc::O_RDONLY as u64)])?]),
        // Threads, no processes.
        (
            libc::SYS_clone,
            vec![when([masked(
                0,
                NAMESPACES | (libc::CLONE_THREAD | libc::CLONE_VM) as u64,
                (libc::CLONE_THREAD | libc::CLONE_VM) as u64,
            )])?],
        ),
        // Memory is written or executed. What is executed comes from a file, privately: the resolver's modules. A
        // secret heap's memory is always shared, so it cannot be that.
        (
            libc::SYS_mmap,
            vec![
                when([masked(2, libc::PROT_EXEC as u64, 0)])?,
                when([
                    masked(2, (libc::PROT_EXEC | libc::PROT_WRITE) as u64, libc::PROT_EXEC as u64),
                    masked(3, (libc::MAP_ANONYMOUS | libc::MAP_TYPE) as u64, libc::MAP_PRIVATE as u64),
                ])?,
            ],
        ),
        (libc::SYS_mprotect, vec![when([masked(2, libc::PROT_EXEC as u64, 0)])?]),
        // abort(3): a signal to itself.
        (libc::SYS_tgkill, vec![when([equal(0, u64::from(std::process::id()))])?]),
        // Reading a limit, the process's own; not setting one.
        (
            libc::SYS_prlimit64,
            vec![when([equal(0, 0), SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)])?],
        ),
    ];
    for (call, argument, values) in [
        (libc::SYS_fcntl, 1, FCNTLS.map(|value| value as u64).to_vec()),
        (libc::SYS_ioctl, 1, IOCTLS.map(|value| value as u64).to_vec()),
        (libc::SYS_madvise, 2, ADVICE.map(|value| value as u64).to_vec()),
        (libc::SYS_prctl, 0, PRCTLS.map(|value| value as u64).to_vec()),
        (libc::SYS_socket, 0, FAMILIES.map(|value| value as u64).to_vec()),
    ] {
        let each: Result<Vec<_>, _> = values.into_iter().map(|value| when([equal(argument, value)])).collect();
        rules.push((call, each?));
    }
    Ok(rules)
}

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

fn when<const COUNT: usize>(conditions: [Condition; COUNT]) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// For arguments of C's type int, which the kernel takes from the lower half of a register.
fn equal(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Of the bits in `mask`, those in `value` are set and no other.
fn masked(argument: u8, mask: u64, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

/// The filters in the order in which they are put in force. The last one decides which calls may put filters in force:
/// none.
pub(super) struct Filters([BpfProgram; 3]);

impl Filters {
    /// With a `journal`, files may be written as far as Landlock lets them. `None`: not for this machine's architecture.
    pub(super) fn new(journal: bool) -> Option<Self> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).ok()?;
        let compile = |rules, otherwise, matched| -> Result<BpfProgram, seccompiler::BackendError> {
            SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()
        };
        let always = |calls: &[c_long]| calls.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<i64, Vec<_>>>();
        let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = conditions().ok()?.into_iter().collect();
        allowed.extend(always(ALLOWED));
        // Past this filter, into the one that answers ENOSYS.
        allowed.extend(always(ABSENT));
        if journal {
            allowed.extend(always(JOURNAL));
        }
        let (pass, refuse, absent) =
            (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Errno(libc::ENOSYS as u32));
        Some(Self([
            compile(always(FATAL), pass.clone(), SeccompAction::KillProcess).ok()?,
            compile(always(ABSENT), pass.clone(), absent).ok()?,
            compile(allowed, refuse, pass).ok()?,
        ]))
    }

    /// Puts them in force, for every thread there is and will be. `false`: the kernel has no seccomp, or not for us.
    pub(super) fn apply(&self) -> bool {
        self.0.iter().all(|program| seccompiler::apply_filter_all_threads(program).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    /// How a forked child behind the filters ended: its exit code, or the signal that ended it as a negative number.
    /// Only calls that are safe after fork(2) may stand in `child`; its result is the exit code.
    fn behind(filters: &Filters, child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child applies filters that were made before the fork, makes the plain system calls of `child`,
        // and ends without unwinding; it neither allocates nor takes a lock.
        unsafe {
            match libc::fork() {
                -1 => panic!("no fork"),
                0 => {
                    let code = if filters.apply() { child() } else { 111 };
                    libc::_exit(code)
                }
                pid => {
                    let mut status = 0;
                    assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
                    if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
                }
            }
        }
    }

    /// 0, or the number of the fault.
    fn errno(result: c_long) -> i32 {
        if result >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) }
    }

    fn open(path: &CString, flags: i32) -> i32 {
        // SAFETY: the path ends with a zero and outlives the call.
        errno(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) })
    }

    #[test]
    fn the_lists_are_disjoint() {
        let mut seen = std::collections::HashSet::new();
        let conditional: Vec<c_long> = conditions().expect("valid").iter().map(|(call, _)| *call).collect();
        for call in ALLOWED.iter().chain(ABSENT).chain(FATAL).chain(&conditional) {
            assert!(seen.insert(*call), "call {call} twice");
        }
    }

    #[test]
    fn files_are_opened_for_reading_only() {
        let path = std::env::temp_dir().join(format!("nullhop-seccomp-{}", std::process::id()));
        std::fs::write(&path, "text").expect("file");
        let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("path");
        let (plain, journal) = (Filters::new(false).expect("filters"), Filters::new(true).expect("filters"));
        assert_eq!(behind(&plain, || open(&name, libc::O_RDONLY | libc::O_CLOEXEC)), 0);
        for flags in [
            libc::O_WRONLY,
            libc::O_RDWR,
            libc::O_RDONLY | libc::O_CREAT,
            libc::O_RDONLY | libc::O_TRUNC,
            libc::O_WRONLY | libc::O_APPEND,
            libc::O_RDWR | libc::O_TMPFILE,
        ] {
            assert_eq!(behind(&plain, || open(&name, flags)), libc::EPERM, "{flags:o}");
        }
        assert_eq!(behind(&journal, || open(&name, libc::O_RDWR)), 0);
        assert_eq!(std::fs::read(&path).expect("file"), b"text");
        let _ = std::fs::remove_file(&path);
        for (call, wanted) in [
            (libc::SYS_openat2, libc::ENOSYS),
            (libc::SYS_clone3, libc::ENOSYS),
            (libc::SYS_truncate, libc::EPERM),
            (libc::SYS_unlinkat, libc::EPERM),
            (libc::SYS_memfd_create, libc::EPERM),
            (libc::SYS_kill, libc::EPERM),
            (libc::SYS_seccomp, libc::EPERM),
            (libc::SYS_setuid, libc::EPERM),
        ] {
            // SAFETY: null pointers and zeros, to calls that are refused before they are looked at.
            let result = behind(&plain, || errno(unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) }));
            assert_eq!(result, wanted, "call {call}");
        }
    }

    #[test]
    fn what_nothing_calls_is_fatal() {
        let filters = Filters::new(false).expect("filters");
        for call in FATAL {
            // SAFETY: the call does not return; were it let through, null pointers and zeros would be refused.
            let ended = behind(&filters, || errno(unsafe { libc::syscall(*call, 0, 0, 0, 0, 0, 0) }));
            assert_eq!(ended, -libc::SIGSYS, "call {call}");
        }
    }

    #[test]
    fn a_secret_heap_can_grow() {
        let grow = || {
            // SAFETY: a new descriptor, and a mapping of it at an address of the kernel's choice, both of this child only.
            unsafe {
                let descriptor = libc::syscall(libc::SYS_memfd_secret, 0);
                if descriptor < 0 {
                    return errno(descriptor);
                }
                let descriptor = descriptor as i32;
                if libc::ftruncate(descriptor, 4096) != 0 {
                    return 201;
                }
                let rights = libc::PROT_READ | libc::PROT_WRITE;
                let place = libc::mmap(std::ptr::null_mut(), 4096, rights, libc::MAP_SHARED, descriptor, 0);
                if place == libc::MAP_FAILED {
                    return 202;
                }
                place.cast::<u8>().write_volatile(1);
                let guarded = libc::mprotect(place, 4096, libc::PROT_NONE);
                let executable = libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_SHARED,
                    descriptor,
                    0,
                );
                if executable != libc::MAP_FAILED {
                    return 203;
                }
                guarded + libc::munmap(place, 4096)
            }
        };
        let ended = behind(&Filters::new(false).expect("filters"), grow);
        // ENOSYS: this kernel has none (secretmem.enable).
        assert!([0, libc::ENOSYS].contains(&ended), "{ended}");
    }

    #[test]
    fn arguments_count() {
        let filters = Filters::new(false).expect("filters");
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let map = |rights: i32, flags: i32| {
            // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
            behind(
                &filters,
                || errno(unsafe { libc::mmap(std::ptr::null_mut(), 4096, rights, flags, -1, 0) } as c_long),
            )
        };
        assert_eq!(map(libc::PROT_READ | libc::PROT_WRITE, anonymous), 0);
        assert_eq!(map(libc::PROT_READ | libc::PROT_EXEC, anonymous), libc::EPERM);
        assert_eq!(map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, anonymous), libc::EPERM);
        assert_eq!(map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED), libc::EPERM);
        // Of a file, privately, passes; -1 is none.
        assert_eq!(map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE), libc::EBADF);
        let socket = |family: i32| {
            // SAFETY: no pointer.
            behind(&filters, || errno(unsafe { libc::syscall(libc::SYS_socket, family, libc::SOCK_DGRAM, 0) }))
        };
        for family in FAMILIES {
            assert_eq!(socket(family), 0, "family {family}");
        }
        assert_eq!(socket(libc::AF_PACKET), libc::EPERM);
        assert_eq!(socket(libc::AF_ALG), libc::EPERM);
        // SAFETY: no pointer; a child of the child would end at once.
        let forked = behind(&filters, || errno(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }));
        assert_eq!(forked, libc::EPERM);
        // SAFETY: no pointer.
        let dumpable = behind(&filters, || errno(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1) }));
        assert_eq!(dumpable, libc::EPERM);
        // SAFETY: `limit` is large enough for what the kernel reads.
        let core = behind(&filters, || unsafe {
            let limit = [1_u64; 2];
            errno(libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, limit.as_ptr(), 0))
        });
        assert_eq!(core, libc::EPERM);
    }
}
