//! The machine's posture: what the kernel does with memory that no program owns. Only reads.

use std::fs;
use std::path::Path;

use super::report::Line;
use super::report::State;

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// All checks, then what is out of any program's reach.
pub(super) fn posture() -> Vec<Line> {
    let mut lines = vec![
        swap(read("/proc/swaps").as_deref()),
        zswap(read("/sys/module/zswap/parameters/enabled").as_deref()),
        hibernation(read("/sys/power/state").as_deref()),
        init_on_free(read("/proc/cmdline").as_deref(), kernel_config().as_deref()),
        core_pattern(read("/proc/sys/kernel/core_pattern").as_deref()),
        suid_dumpable(read("/proc/sys/fs/suid_dumpable").as_deref()),
        ptrace_scope(read("/proc/sys/kernel/yama/ptrace_scope").as_deref()),
        security_modules(read("/sys/kernel/security/lsm").as_deref()),
        lockdown(read("/sys/kernel/security/lockdown").as_deref()),
        key_log(std::env::var_os("SSLKEYLOGFILE").is_some()),
        memory_encryption(read("/proc/cpuinfo").as_deref()),
    ];
    lines.extend(OUTSIDE.map(|(name, says)| Line::new(name, State::Outside, says.to_owned())));
    lines
}

/// No program can clear these; each with what helps.
const OUTSIDE: [(&str, &str); 6] = [
    ("kernel_buffers", "sockets' buffers (encrypted) and pages that the kernel has freed: init_on_free=1"),
    ("registers", "registers and vector state of a thread that does not run: gone with its next turn"),
    ("cpu_caches", "lines that were written over in memory are written over in caches; timing is another matter"),
    ("network_card", "its buffers hold what travels, encrypted"),
    ("administrator", "root on this machine can read this process while it works: who may be root is yours to say"),
    ("hypervisor", "a snapshot taken in mid-stream holds that moment: confidential VMs, or no snapshots"),
];

fn unknown(name: &'static str, what: &str) -> Line {
    Line::new(name, State::Attention, format!("cannot be told: {what}"))
}

fn good_if(name: &'static str, good: bool, yes: &str, no: &str) -> Line {
    if good { Line::new(name, State::Good, yes.to_owned()) } else { Line::new(name, State::Attention, no.to_owned()) }
}

/// proc(5): a line for each area, after a header.
fn swap(swaps: Option<&str>) -> Line {
    let Some(swaps) = swaps else { return unknown("swap", "/proc/swaps cannot be read") };
    let areas: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let compressed = areas.iter().filter(|area| area.contains("zram")).count();
    match (areas.len(), compressed) {
        (0, _) => Line::new("swap", State::Good, "none".to_owned()),
        (all, zram) if all == zram => Line::new(
            "swap",
            State::Attention,
            "zram: memory is copied within memory. Lock memory, or swapoff".to_owned(),
        ),
        (all, _) => Line::new(
            "swap",
            State::Attention,
            format!("{all} areas: memory that is not locked can reach a disk. swapoff -a, or encrypt them"),
        ),
    }
}

fn zswap(enabled: Option<&str>) -> Line {
    let off = enabled.is_none_or(|text| text == "N" || text == "0");
    good_if("zswap", off, "off", "on: memory is copied within memory before it is swapped. zswap.enabled=0")
}

/// "disk" stands in the list if the machine can hibernate (Documentation/admin-guide/pm/sleep-states).
fn hibernation(states: Option<&str>) -> Line {
    let can = states.is_some_and(|states| states.split_whitespace().any(|state| state == "disk"));
    good_if("hibernation", !can, "not possible", "possible: it writes all memory to disk. Mask hibernate.target")
}

/// The running kernel's build options, where they are readable.
fn kernel_config() -> Option<String> {
    let release = read("/proc/sys/kernel/osrelease")?;
    [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")].iter().find_map(|path| read(path))
}

/// The boot parameter decides, then the build's default.
fn init_on_free(cmdline: Option<&str>, config: Option<&str>) -> Line {
    let parameter = cmdline.and_then(|cmdline| {
        cmdline.split_whitespace().rev().find_map(|word| word.strip_prefix("init_on_free=")).map(str::to_owned)
    });
    let default = config.map(|config| config.lines().any(|line| line == "CONFIG_INIT_ON_FREE_DEFAULT_ON=y"));
    let advice = "the kernel does not clear freed pages, socket buffers among them. Boot with init_on_free=1";
    match (parameter.as_deref(), default) {
        (Some("1" | "on" | "y"), _) => Line::new("init_on_free", State::Good, "on by boot parameter".to_owned()),
        (None, Some(true)) => Line::new("init_on_free", State::Good, "on by the kernel's default".to_owned()),
        (None, None) => unknown(
            "init_on_free",
            "no boot parameter, and the kernel's options cannot be read. Boot with init_on_free=1",
        ),
        _ => Line::new("init_on_free", State::Attention, advice.to_owned()),
    }
}

/// core(5). nullhop makes no core; its neighbours may.
fn core_pattern(pattern: Option<&str>) -> Line {
    match pattern {
        None => unknown("core_pattern", "/proc/sys/kernel/core_pattern cannot be read"),
        Some("" | "|/bin/false" | "|/bin/true") => {
            Line::new("core_pattern", State::Good, "no cores are kept".to_owned())
        }
        Some(pattern) if pattern.starts_with('|') => Line::new(
            "core_pattern",
            State::Good,
            "cores go to a program; nullhop makes none (core_dumps_off, not_dumpable)".to_owned(),
        ),
        Some(_) => Line::new(
            "core_pattern",
            State::Good,
            "cores go to files; nullhop makes none (core_dumps_off, not_dumpable)".to_owned(),
        ),
    }
}

/// proc(5): 0 is the default; 2 lets root's dumps of such processes happen.
fn suid_dumpable(value: Option<&str>) -> Line {
    match value {
        None => unknown("suid_dumpable", "/proc/sys/fs/suid_dumpable cannot be read"),
        Some(value) => {
            good_if("suid_dumpable", value != "1", value, "1: processes that gave up rights are dumped. Set 0")
        }
    }
}

/// Documentation/admin-guide/LSM/Yama.
fn ptrace_scope(scope: Option<&str>) -> Line {
    match scope {
        None => Line::new(
            "ptrace_scope",
            State::Attention,
            "no Yama: the same user may trace processes that are dumpable; nullhop is not".to_owned(),
        ),
        Some(scope) => good_if(
            "ptrace_scope",
            scope != "0",
            scope,
            "0: the same user may trace. Set kernel.yama.ptrace_scope to 1 or more",
        ),
    }
}

fn security_modules(modules: Option<&str>) -> Line {
    match modules {
        None => unknown("security_modules", "/sys/kernel/security/lsm cannot be read"),
        Some(modules) => good_if(
            "security_modules",
            modules.split(',').any(|module| module == "landlock"),
            modules,
            "no Landlock in this kernel: nullhop cannot shut the file system for itself",
        ),
    }
}

/// The mode in force stands in brackets: kernel_lockdown(7).
fn lockdown(modes: Option<&str>) -> Line {
    match modes {
        None => {
            Line::new("lockdown", State::Attention, "not in force: root can read memory through the kernel".to_owned())
        }
        Some(modes) => good_if(
            "lockdown",
            modes.contains("[confidentiality]"),
            "confidentiality",
            "not at confidentiality: root can read memory through the kernel",
        ),
    }
}

fn key_log(is_set: bool) -> Line {
    good_if(
        "tls_key_log",
        !is_set,
        "SSLKEYLOGFILE is not set",
        "SSLKEYLOGFILE is set here; nullhop does not read it, others do",
    )
}

fn memory_encryption(cpuinfo: Option<&str>) -> Line {
    let Some(cpuinfo) = cpuinfo else { return unknown("memory_encryption", "/proc/cpuinfo cannot be read") };
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    let guest = Path::new("/dev/sev-guest").exists() || Path::new("/dev/tdx_guest").exists() || has("tdx_guest");
    match guest {
        true => Line::new("memory_encryption", State::Good, "this is a confidential VM".to_owned()),
        false if ["sme", "sev", "tme"].into_iter().any(has) => Line::new(
            "memory_encryption",
            State::Attention,
            "the processor can; whether it does cannot be told from here".to_owned(),
        ),
        false => Line::new("memory_encryption", State::Attention, "none that can be seen".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_good_and_what_is_not() {
        let header = "Filename Type Size Used Priority";
        for (line, good) in [
            (swap(Some(header)), true),
            (swap(Some(&format!("{header}\n/dev/sda2 partition 8 0 -2"))), false),
            (swap(Some(&format!("{header}\n/dev/zram0 partition 8 0 -2"))), false),
            (swap(None), false),
            (zswap(None), true),
            (zswap(Some("Y")), false),
            (hibernation(Some("freeze mem disk")), false),
            (hibernation(Some("freeze mem")), true),
            (init_on_free(Some("ro init_on_free=0 init_on_free=1 quiet"), None), true),
            (init_on_free(Some("ro init_on_free=0"), Some("CONFIG_INIT_ON_FREE_DEFAULT_ON=y")), false),
            (init_on_free(Some("ro"), Some("CONFIG_INIT_ON_FREE_DEFAULT_ON=y")), true),
            (init_on_free(Some("ro"), Some("# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set")), false),
            (init_on_free(Some("ro"), None), false),
            (ptrace_scope(Some("0")), false),
            (ptrace_scope(Some("2")), true),
            (suid_dumpable(Some("1")), false),
            (suid_dumpable(Some("0")), true),
            (lockdown(Some("none integrity [confidentiality]")), true),
            (lockdown(Some("[none] integrity confidentiality")), false),
            (key_log(true), false),
            (security_modules(Some("lockdown,capability,landlock")), true),
            (security_modules(Some("capability")), false),
            (memory_encryption(Some("flags : fpu tdx_guest")), true),
            (memory_encryption(Some("flags : fpu sme")), false),
        ] {
            assert_eq!(line.state == State::Good, good, "{}: {}", line.name, line.says);
            assert!(line.state != State::Broken, "posture never fails a run");
        }
    }
}
