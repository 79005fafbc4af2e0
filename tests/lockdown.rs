//! What the process has given up, as the kernel and other processes see it (docs/hardening.md). The filters themselves have
//! unit tests in `src/hygiene/`; that everything works behind them is what all other suites show.
//!
//! Some of this takes root: to be another user. Where it is not root, that is said and skipped.

mod support;

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use http::Request;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Ca;
use support::Edge;
use support::NOBODY;
use support::Scratch;
use support::Setup;
use support::as_nobody;
use support::get;
use support::wait_for;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);

/// Every guard of `nullhop_guard_active`.
const GUARDS: [&str; 10] = [
    "capabilities_dropped",
    "core_dumps_off",
    "core_filter_empty",
    "environment_clean",
    "landlock",
    "memory_locked",
    "no_new_privileges",
    "not_dumpable",
    "seccomp",
    "secrets_locked",
];

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this needs root, to become another user");
    }
    root
}

/// Alone, with an upstream that nobody answers at.
fn alone(setup: Setup) -> Edge {
    Edge::with("http://127.0.0.1:9", "", setup)
}

fn guard(edge: &Edge, name: &str) -> bool {
    let label = format!("guard=\"{name}\"");
    assert_eq!(edge.scrape().lines().filter(|line| line.contains(&label) && line.contains("_active")).count(), 1);
    edge.metric("nullhop_guard_active", &[&label]) == 1.0
}

/// The lines `name: value` of a file below `/proc/PID`.
fn fields(path: &Path) -> HashMap<String, String> {
    let text = std::fs::read_to_string(path).expect("the kernel's words on the process");
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn status(edge: &Edge) -> HashMap<String, String> {
    fields(Path::new(&format!("/proc/{}/status", edge.pid())))
}

/// KiB.
fn locked(edge: &Edge) -> u64 {
    let text = status(edge)["VmLck"].clone();
    text.trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn every_thread_is_locked_down() {
    let edge = alone(Setup::default());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", edge.pid())).expect("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    // CAP_IPC_LOCK (14) stays where only it allows the memory to be locked.
    let by_capability = locked(&edge) > 0 && limit("Max locked memory")[0] != "unlimited";
    let kept = if by_capability { "0000000000004000" } else { "0000000000000000" };
    let mut threads = 0;
    for entry in std::fs::read_dir(format!("/proc/{}/task", edge.pid())).expect("threads") {
        let status = fields(&entry.expect("entry").path().join("status"));
        let name = &status["Name"];
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} of {name}");
        }
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status[set], kept, "{set} of {name}");
        }
        if rustix::process::geteuid().is_root() {
            assert_eq!(status["CapBnd"], "0000000000000000", "{name}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        // 2: filtered (proc(5)).
        assert_eq!(status["Seccomp"], "2", "{name}");
        assert_eq!(status["Seccomp_filters"], "3", "{name}");
        threads += 1;
    }
    assert!(threads > 1, "workers among them");
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let filter = std::fs::read_to_string(format!("/proc/{}/coredump_filter", edge.pid())).expect("filter");
    assert_eq!(filter.trim(), "00000000");

    for name in GUARDS {
        let wanted = match name {
            "memory_locked" => locked(&edge) > 0,
            _ => true,
        };
        assert_eq!(guard(&edge, name), wanted, "{name}");
        let told = edge.log().iter().any(|line| line.contains(&format!(" process_guard_missing guard={name}")));
        assert_eq!(told, !wanted, "{name}:\n{}", edge.log().join("\n"));
    }
    if is_root() {
        assert!(locked(&edge) > 1024, "{} KiB", locked(&edge));
    }
}

/// Whether a process of the user nobody can open what lets it look into `pid`. Each of these files asks the kernel whether
/// its reader may trace the process (proc(5), ptrace(2)).
fn nobody_sees(pid: u32, file: &str) -> bool {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("exec 3< /proc/{pid}/{file}")).uid(NOBODY).gid(NOBODY);
    command.stderr(Stdio::null()).status().expect("a shell").success()
}

#[test]
fn other_processes_of_its_user_see_nothing() {
    if !is_root() {
        return;
    }
    let edge = alone(Setup { nobody: Some(64), ..Setup::default() });
    let status = status(&edge);
    assert_eq!(status["CapEff"], "0000000000000000");
    assert_eq!(status["Uid"].split_whitespace().next(), Some("65534"));
    let mut open = Command::new("/bin/sleep").arg("60").uid(NOBODY).gid(NOBODY).spawn().expect("another process");
    for file in ["mem", "maps", "environ", "io"] {
        assert!(nobody_sees(open.id(), file), "{file} of a process that is not hardened, or this test is blind");
        assert!(!nobody_sees(edge.pid(), file), "{file}");
    }
    let _ = open.kill();
    let _ = open.wait();
    assert!(guard(&edge, "not_dumpable") && guard(&edge, "core_dumps_off") && guard(&edge, "core_filter_empty"));
    // Nobody needs to be root for the rest, either.
    for name in ["capabilities_dropped", "landlock", "no_new_privileges", "seccomp"] {
        assert!(guard(&edge, name), "{name}");
    }
}

/// A setup with a private key that comes as a variable, and so stands as a secret in memory.
fn with_a_secret(folder: &Scratch) -> Setup {
    let leaf = Ca::new("another test authority").leaf(&["other.example"]);
    let path = folder.file("other.pem", &leaf.cert_pem);
    std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).expect("root");
    let extra = format!(
        "[[certificate]]\nname = \"other\"\ncert_file = \"{}\"\nkey = {{ env = \"OTHER_KEY\" }}\n",
        path.display()
    );
    let environment = vec![("OTHER_KEY".to_owned(), leaf.key_pem.clone())];
    Setup { extra, environment, ..Setup::default() }
}

#[test]
fn memory_that_cannot_be_locked_is_told() {
    if !is_root() {
        return;
    }
    let folder = Scratch::new();
    // 64 KiB are enough for a secret, not for a heap; 0 for neither.
    for (lockable, secrets) in [(64, true), (0, false)] {
        let edge = alone(Setup { nobody: Some(lockable), ..with_a_secret(&folder) });
        let told =
            |name| edge.log().iter().any(|line| line.contains(&format!(" warn process_guard_missing guard={name}")));
        assert!(!guard(&edge, "memory_locked") && told("memory_locked"), "{lockable} KiB");
        assert_eq!(guard(&edge, "secrets_locked"), secrets, "{lockable} KiB");
        assert_eq!(told("secrets_locked"), !secrets, "{lockable} KiB");
        assert_eq!(locked(&edge) > 0, secrets, "{lockable} KiB");
    }
}

#[test]
fn locking_can_be_required_and_left_out() {
    let lock =
        |how: &str| Setup { extra: format!("[memory]\nheap = \"plain\"\nlock = \"{how}\"\n"), ..Setup::default() };
    let edge = alone(lock("off"));
    assert_eq!(locked(&edge), 0);
    assert!(!guard(&edge, "memory_locked"));
    assert!(edge.log().iter().any(|line| line.contains(" warn process_guard_missing guard=memory_locked")));
    drop(edge);
    if !is_root() {
        return;
    }
    let edge = alone(lock("required"));
    assert!(locked(&edge) > 1024 && guard(&edge, "memory_locked"));
    drop(edge);

    let scratch = Scratch::new();
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[metrics]\nenabled = false\n[admin]\nenabled = false\n\
                [memory]\nlock = \"required\"\n[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n";
    let path = scratch.file("nullhop.toml", text);
    let output = as_nobody(&scratch, 64).arg("run").arg("-c").arg(path).output().expect("runs");
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{says}");
    for words in ["[memory] lock is \"required\"", "65536 bytes", "LimitMEMLOCK=infinity", "CAP_IPC_LOCK"] {
        assert!(says.contains(words), "{words}: {says}");
    }
    assert!(!says.contains(" started "), "{says}");
}

#[test]
fn variables_that_bring_in_code_are_refused() {
    let run = |variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
        // What the loader is asked for does not exist, so that it only complains.
        command.args(["demo", "--once"]).env(variable, "/nonexistent/valuable-name").stdin(Stdio::null());
        command.output().expect("runs")
    };
    for variable in ["LD_PRELOAD", "LD_AUDIT", "MALLOC_TRACE"] {
        let output = run(variable);
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{variable}: {says}");
        let ours: Vec<&str> = says.lines().filter(|line| line.starts_with("nullhop")).collect();
        assert!(ours.len() == 1 && ours[0].contains(variable), "{says}");
        assert!(!ours[0].contains("valuable-name"), "{says}");
    }
    // What weakens less is told.
    let environment = vec![("MALLOC_ARENA_MAX".to_owned(), "2".to_owned())];
    let edge = alone(Setup { environment, ..Setup::default() });
    assert!(!guard(&edge, "environment_clean"));
    assert!(edge.log().iter().any(|line| line.contains(" warn process_guard_missing guard=environment_clean")));
    // The rest of the program does without: a check is no run.
    let check = Command::new(env!("CARGO_BIN_EXE_nullhop")).arg("check").env("MALLOC_TRACE", "/nonexistent").output();
    assert_ne!(check.expect("runs").status.code(), Some(1));
}

#[test]
fn tls_keys_are_not_written_down() {
    let provider = Provider::spawn(ProviderOptions::default()).expect("provider");
    let folder = Scratch::new();
    let keys = folder.path().join("keys");
    let environment = vec![("SSLKEYLOGFILE".to_owned(), keys.display().to_string())];
    let edge = Edge::with(&provider.url(), provider.ca_pem(), Setup { environment, ..Setup::default() });
    relay(&edge, "/openai");
    assert!(!keys.exists());
}

/// One exchange through the upstream at `prefix`.
fn relay(edge: &Edge, prefix: &str) {
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H1).await;
        let request = Request::post(format!("{prefix}/v1/chat/completions")).header("host", "localhost");
        let request = request.header("authorization", "Bearer k").header("x-script", "size=100");
        let answer = client.fetch(request.body(FullBody::new("{}")).expect("request")).await.expect("answer");
        assert_eq!(answer.status(), 200, "{prefix}");
    });
}

#[test]
fn what_serving_needs_is_left() {
    let provider = Provider::spawn(ProviderOptions::default()).expect("provider");
    // By name: the resolver reads its files, on threads that begin after the filters.
    let url = provider.url().replace("127.0.0.1", "localhost");
    let setup = Setup::default();
    let edge = Edge::with(&url, provider.ca_pem(), setup);
    relay(&edge, "/openai");
    assert_eq!(edge.metric("nullhop_upstream_connects_total", &["result=\"ok\""]), 1.0, "{}", edge.scrape());
    assert_eq!(edge.admin("GET", "/readyz").0, 200);
    for family in [
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    ] {
        let page = edge.scrape();
        assert!(page.lines().any(|line| line.starts_with(&format!("{family} "))), "{family}:\n{page}");
    }
    assert!(edge.metric("process_open_fds", &[]) > 5.0 && edge.metric("process_threads", &[]) > 1.0);

    // A reload brings an upstream, a file beside the others, and a door.
    let config = Edge::config(&url, &Setup::default());
    edge.scratch.file("second-ca.pem", provider.ca_pem());
    let second = format!(
        "{config}\n[[upstream]]\nname = \"second\"\nprovider = \"compatible\"\nurl = \"{url}\"\nca_file = \"second-ca.pem\"\n\
         [[listener]]\nname = \"more\"\naddress = \"127.0.0.1:0\"\n"
    );
    reload(&edge, &second, " config_reloaded");
    relay(&edge, "/second");
    assert!(edge.wait_for_log("kind=traffic address=127.0.0.1:", SOON));

    // A file elsewhere was not asked for at the start, so it cannot be read now. What runs goes on.
    let elsewhere = Scratch::new();
    let path = elsewhere.file("third-ca.pem", provider.ca_pem());
    let third = second.replace("\"second-ca.pem\"", &format!("\"{}\"", path.display()));
    assert_ne!(second, third);
    if guard(&edge, "landlock") {
        reload(&edge, &third, " config_refused problems=1");
        relay(&edge, "/second");
    }
    // A new start takes it.
    edge.scratch.file("nullhop.toml", &third);
    let check = Command::new(env!("CARGO_BIN_EXE_nullhop"))
        .args(["check", "-c"])
        .arg(edge.scratch.path().join("nullhop.toml"))
        .output()
        .expect("runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    assert!(get(edge.metrics, "/metrics").0 == 200);
}

/// Writes the edge's configuration anew, has it read, and waits for the line.
fn reload(edge: &Edge, config: &str, line: &str) {
    let count = || edge.log().iter().filter(|found| found.contains(line)).count();
    let before = count();
    edge.scratch.file("nullhop.toml", config);
    edge.signal("HUP");
    assert!(wait_for(SOON, || count() > before), "no {line}:\n{}", edge.log().join("\n"));
    // The workers hear of it a moment later.
    std::thread::sleep(Duration::from_millis(50));
}
