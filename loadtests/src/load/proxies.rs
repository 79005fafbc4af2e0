//! The proxies under load: each as a process of its own on a core of its own, with the configuration that stands in
//! `loadtests/`, between a client and a provider that speak the same to all of them.

use std::fmt;
use std::fs;
use std::fs::File;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;

use crate::BoxError;
use crate::load::machine;
use crate::load::machine::Cores;
use crate::tls::Ca;

/// Who is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nobody: the client asks the provider. What latencies are added to.
    Direct,
    /// The one that others are compared with.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// nullhop.
    Nullhop,
}

impl Kind {
    /// All proxies, in the order of a round.
    pub const ALL: [Kind; 3] = [Kind::Nginx, Kind::Haproxy, Kind::Nullhop];

    /// As the command line and the report call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Nullhop => "nullhop",
        }
    }

    /// What it says about its version; an error: it is not here.
    pub fn version(self, programs: &Programs) -> Result<String, BoxError> {
        let argument = if self == Kind::Nullhop { "--version" } else { "-v" };
        let output = Command::new(programs.path(self)).arg(argument).stdin(Stdio::null()).output()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Kind, BoxError> {
        Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| format!("no proxy {text}").into())
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// nullhop's binary.
    pub nullhop: PathBuf,
}

impl Programs {
    fn path(&self, kind: Kind) -> PathBuf {
        match kind {
            // Debian keeps them where the path of an ordinary user does not look.
            Kind::Nginx => found("nginx"),
            Kind::Haproxy => found("haproxy"),
            Kind::Nullhop | Kind::Direct => self.nullhop.clone(),
        }
    }
}

fn found(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { name.into() }
}

/// What they all need: certificates in files, and a place for what they write. Removed when dropped.
pub struct Site {
    folder: PathBuf,
    programs: Programs,
    cores: Option<Cores>,
    /// h2 towards the provider, for who can.
    upstream_h2: bool,
    full: bool,
    workers: usize,
}

impl Site {
    /// Writes the certificates into a fresh folder for temporary files.
    pub fn new(
        ca: &Ca,
        programs: Programs,
        cores: Option<Cores>,
        upstream_h2: bool,
        full: bool,
        workers: usize,
    ) -> Result<Site, BoxError> {
        // Tests run several at once in one process.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let folder = std::env::temp_dir().join(format!("nullhop-load-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let site = Site { folder, programs, cores, upstream_h2, full, workers };
        let leaf = ca.leaf(&["localhost", "127.0.0.1"]);
        site.write("ca.crt", &ca.pem())?;
        site.write("edge.crt", &leaf.cert_pem)?;
        site.write("edge.key", &leaf.key_pem)?;
        site.write("provider.key", "sk-load-0123456789abcdef0123456789abcdef")?;
        site.write("keys.secret", KEYS_SECRET)?;
        site.write("keys.jsonl", KEYS)?;
        site.write("edge.pem", &format!("{}{}", leaf.cert_pem, leaf.key_pem))?;
        Ok(site)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, BoxError> {
        let path = self.folder.join(name);
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(path)
    }

    /// Starts one before the provider and waits until it accepts.
    pub fn start(&self, kind: Kind, provider: SocketAddr) -> Result<Proxy, BoxError> {
        if kind == Kind::Direct {
            return Ok(Proxy { kind, address: provider, child: None });
        }
        // Held until all three are known, so that they differ.
        let held = [free()?, free()?, free()?];
        let [port, metrics, admin] = [0, 1, 2].map(|at: usize| held[at].1);
        drop(held);
        let (name, template) = match kind {
            Kind::Nginx => ("nginx.conf", NGINX),
            Kind::Haproxy => ("haproxy.cfg", HAPROXY),
            Kind::Nullhop | Kind::Direct => ("nullhop.toml", NULLHOP),
        };
        let limit = machine::raise_descriptors(DESCRIPTORS);
        let mut text = template.to_owned();
        for (place, value) in [
            ("@PORT@", port.to_string()),
            ("@METRICS@", metrics.to_string()),
            ("@WORKERS@", self.workers.to_string()),
            ("@ADMIN@", admin.to_string()),
            ("@UPSTREAM@", provider.port().to_string()),
            ("@FOLDER@", self.folder.display().to_string()),
            ("@DESCRIPTORS@", limit.to_string()),
            // Each stream takes a connection on both sides.
            ("@CONNECTIONS@", (limit / 2 - 100).min(CONNECTIONS).to_string()),
            ("@PROTOCOL@", if self.upstream_h2 { "h2" } else { "h1" }.to_owned()),
            (
                "# @FULL@",
                if self.full { FULL.replace("@FOLDER@", &self.folder.display().to_string()) } else { String::new() },
            ),
        ] {
            text = text.replace(place, &value);
        }
        let config = self.write(name, &text)?;
        let log = self.folder.join(format!("{kind}.out"));
        let mut command = Command::new(self.programs.path(kind));
        match kind {
            Kind::Nginx => command.arg("-p").arg(&self.folder).arg("-c").arg(&config),
            Kind::Haproxy => command.arg("-db").arg("-f").arg(&config),
            Kind::Nullhop | Kind::Direct => command.arg("run").arg("-c").arg(&config),
        };
        command.stdin(Stdio::null()).stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        // A child begins where its parent's thread may run, so that no thread of it was ever elsewhere.
        let child = match self.cores {
            Some(cores) => {
                machine::pin(cores.proxy)?;
                let child = command.spawn();
                machine::pin(cores.load)?;
                child
            }
            None => command.spawn(),
        };
        let child = child.map_err(|error| format!("{kind} does not start: {error}"))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut proxy = Proxy { kind, address, child: Some(child) };
        let begun = Instant::now();
        // nginx listens before it has its worker.
        let whole = if kind == Kind::Nginx { 2 } else { 1 };
        while TcpStream::connect(address).is_err() || proxy.processes().len() < whole {
            let gone = proxy.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_some()));
            if gone || begun.elapsed() > START_TIMEOUT {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{kind} does not listen: {}", said.trim()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(proxy)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free() -> Result<(TcpListener, u16), BoxError> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// A proxy that runs. Dropped, it is ended with all its processes.
pub struct Proxy {
    kind: Kind,
    address: SocketAddr,
    child: Option<Child>,
}

impl Proxy {
    /// Who it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its processes: none for [`Kind::Direct`].
    pub fn processes(&self) -> Vec<u32> {
        self.child.as_ref().map_or_else(Vec::new, |child| machine::family(child.id()))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let processes = self.processes();
        let Some(child) = &mut self.child else { return };
        // The children first: nginx' master would start new workers, so it is stopped before.
        for (signal, which) in [(Signal::STOP, 0..1), (Signal::KILL, 1..processes.len()), (Signal::KILL, 0..1)] {
            for pid in processes.get(which).into_iter().flatten() {
                if let Some(pid) = Pid::from_raw(*pid as i32) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        }
        let _ = child.wait();
    }
}

const NGINX: &str = include_str!("../../nginx.conf");
const HAPROXY: &str = include_str!("../../haproxy.cfg");
const NULLHOP: &str = include_str!("../../nullhop.toml");

/// Behind the upstream of nullhop's configuration, unless `--no-admission`: the caller's key is looked up, limits and budgets
/// of key, account and upstream are reserved and settled, tokens are priced, each exchange leaves a usage event.
///
/// Usage is not asked for: the client does that itself where it streams, and what is announced for it would be spaces in
/// documents that are compared.
const FULL: &str = r#"plan = "load"
usage = "leave"
[[upstream.key]]
secret = { file = "@FOLDER@/provider.key" }

[keys]
file = "@FOLDER@/keys.jsonl"
secret = { file = "@FOLDER@/keys.secret" }
account_plan = "load"

[[plan]]
name = "load"
concurrency = 1000000
rates = ["1G requests/1m", "1G tokens/1m", "1G output tokens/1m"]
budgets = ["1000G tokens/day", "1000000 usd/month"]

[[price]]
models = ["m-1"]
input = "2.5"
output = "10"

[journal]
folder = "@FOLDER@/usage"
"#;

/// What keys are hashed with, and what is known of the key that the client shows.
const KEYS_SECRET: &str = "0123456789abcdef0123456789abcdef";
const KEYS: &str = r#"{"id":"load","hash":"c06efba89549d2d68402a4018511f79b7047813391b1d33100232291708fb1a3","label":"load","account":"load","plan":"load"}
"#;

/// For 5,000 streams, each with a connection on both sides of both ends, in this process.
const DESCRIPTORS: u64 = 40_000;
/// More than any row opens.
const CONNECTIONS: u64 = 12_000;
/// A debug build starts slowly on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(20);
