//! The real binary in front of a scripted provider: started, asked, watched, stopped.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod keys;
pub mod memory;
pub mod socket;

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use nullhop_loadtests::client::Client;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Ca;
use nullhop_loadtests::tls::Trust;

/// The sample streams with their expected totals.
pub fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// A folder of its own below the system's temporary folder; removed on drop.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("nullhop-test-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).expect("temporary folder");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file that only its owner may read and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.0.join(name);
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).expect("file");
        file.write_all(text.as_bytes()).expect("file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The user nobody, who is there on every system and owns nothing.
pub const NOBODY: u32 = 65534;

/// The program as the user nobody, who may lock `lockable` KiB of memory and dump cores of any size, and who owns the files
/// in `scratch`. Needs root.
pub fn as_nobody(scratch: &Scratch, lockable: u64) -> Command {
    use std::os::unix::process::CommandExt;
    // The original may stand in a folder that is not everybody's.
    let program = scratch.path().join("nullhop");
    // By a process of its own: a descriptor of ours, open for writing, would be inherited by whatever another test starts
    // meanwhile, and a file that is open for writing cannot be executed.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_nullhop")).arg(&program).status().expect("cp");
    assert!(copied.success(), "a copy");
    for entry in std::fs::read_dir(scratch.path()).expect("folder") {
        std::os::unix::fs::chown(entry.expect("entry").path(), Some(NOBODY), Some(NOBODY)).expect("root");
    }
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("ulimit -c unlimited; ulimit -l {lockable}; exec \"$0\" \"$@\"")).arg(program);
    command.uid(NOBODY).gid(NOBODY);
    command
}

/// nullhop in front of a provider (or of none).
pub struct Edge {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    pub scratch: Scratch,
    pub ca: Ca,
    pub listeners: Vec<SocketAddr>,
    pub metrics: SocketAddr,
    pub admin: SocketAddr,
}

/// How an edge is set up. `extra` is TOML text put before the upstreams; `upstream` is put into each.
pub struct Setup {
    pub extra: String,
    /// Put into `[metrics]`.
    pub metrics: String,
    pub upstream: String,
    /// Relaxes all retention rules of the default three upstreams, so that bodies need not be what a provider would read.
    pub any_bytes: bool,
    /// Replaces the default three upstreams; may hold `{url}` and `{ca}`.
    pub upstreams: Option<String>,
    pub environment: Vec<(String, String)>,
    /// Files beside the configuration, by name and text.
    pub files: Vec<(String, String)>,
    /// Runs it as the user nobody, who may lock so many KiB of memory. Needs root.
    pub nobody: Option<u64>,
    pub listener: String,
    /// Instead of the build under test.
    pub binary: Option<PathBuf>,
    pub certificate_names: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            extra: String::new(),
            metrics: String::new(),
            upstream: String::new(),
            any_bytes: true,
            upstreams: None,
            environment: Vec::new(),
            files: Vec::new(),
            nobody: None,
            listener: "[[listener]]\naddress = \"127.0.0.1:0\"\n".to_owned(),
            binary: None,
            certificate_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        }
    }
}

impl Edge {
    /// In front of `provider`, with the default setup.
    pub fn before(provider: &Provider) -> Self {
        Self::with(&provider.url(), provider.ca_pem(), Setup::default())
    }

    /// In front of whatever answers at `url` with a certificate of `provider_ca`.
    pub fn with(url: &str, provider_ca: &str, setup: Setup) -> Self {
        let scratch = Scratch::new();
        let ca = Ca::new("nullhop test edge");
        let names: Vec<&str> = setup.certificate_names.iter().map(String::as_str).collect();
        let leaf = ca.leaf(&names);
        scratch.file("edge.pem", &leaf.cert_pem);
        scratch.file("edge.key", &leaf.key_pem);
        scratch.file("provider-ca.pem", provider_ca);
        scratch.file("edge-ca.pem", &ca.pem());
        for (name, text) in &setup.files {
            scratch.file(name, text);
        }
        let config = Self::config(url, &setup);
        let path = scratch.file("nullhop.toml", &config);
        let mut command = match setup.nobody {
            Some(lockable) => as_nobody(&scratch, lockable),
            None => match &setup.binary {
                Some(binary) => Command::new(binary),
                None => Command::new(env!("CARGO_BIN_EXE_nullhop")),
            },
        };
        command.arg("run").arg("-c").arg(&path);
        command.envs(setup.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (child, log, [listeners, metrics, admin]) = Self::start(&mut command);
        Self { child, log, scratch, ca, listeners, metrics: metrics[0], admin: admin[0] }
    }

    /// Ends it in order and starts it again with the same files, at other ports.
    pub fn restart(&mut self) {
        self.signal("TERM");
        self.wait_exit(Duration::from_secs(20)).expect("it ends");
        let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
        command.arg("run").arg("-c").arg(self.scratch.path().join("nullhop.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (child, log, [listeners, metrics, admin]) = Self::start(&mut command);
        (self.child, self.log, self.listeners) = (child, log, listeners);
        (self.metrics, self.admin) = (metrics[0], admin[0]);
    }

    /// Starts it and waits until it says so; its addresses: of traffic, metrics and admin.
    #[expect(clippy::type_complexity, reason = "the parts of an edge")]
    fn start(command: &mut Command) -> (Child, Arc<Mutex<Vec<String>>>, [Vec<SocketAddr>; 3]) {
        let mut child = command.spawn().expect("nullhop starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take().expect("piped");
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("log").push(line);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = log.lock().expect("log").clone();
            if seen.iter().any(|line| line.contains(" started ")) {
                let of = |kind: &str| -> Vec<SocketAddr> {
                    let wanted = format!("kind={kind} ");
                    let lines = seen.iter().filter(|line| line.contains(" listening ") && line.contains(&wanted));
                    lines
                        .map(|line| line.rsplit_once("address=").expect("address").1.parse().expect("address"))
                        .collect()
                };
                return (child, log, [of("traffic"), of("metrics"), of("admin")]);
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("nullhop ended with {status}:\n{}", seen.join("\n"));
            }
            assert!(Instant::now() < deadline, "nullhop did not start:\n{}", seen.join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The configuration text of `setup`, as written to `nullhop.toml` in the scratch folder.
    pub fn config(url: &str, setup: &Setup) -> String {
        let rules = if setup.any_bytes { "retention = { allow = [\"all\"] }\n" } else { "" };
        let upstreams = setup.upstreams.clone().unwrap_or_else(|| {
            ["openai", "anthropic", "gemini"]
                .map(|name| {
                    format!(
                        "[[upstream]]\nname = \"{name}\"\nprovider = \"{name}\"\nurl = \"{{url}}\"\n{{ca}}\nbare = true\n\
                         {rules}{}\n",
                        setup.upstream
                    )
                })
                .concat()
        });
        // A machine that does much else is late, and no test is about that unless it says so.
        let shedding = if setup.extra.contains("[admission]") { "" } else { "[admission]\nlag_max = \"0s\"\n" };
        let ca = if url.starts_with("https") { "ca_file = \"provider-ca.pem\"" } else { "" };
        let upstreams = upstreams.replace("{url}", url).replace("{ca}", ca);
        format!(
            "{}[[certificate]]\nname = \"edge\"\ncert_file = \"edge.pem\"\nkey = {{ file = \"edge.key\" }}\n\
             {shedding}[metrics]\naddress = \"127.0.0.1:0\"\n{}\n[admin]\naddress = \"127.0.0.1:0\"\n{}\n{upstreams}",
            setup.listener, setup.metrics, setup.extra
        )
    }

    pub fn address(&self) -> SocketAddr {
        self.listeners[0]
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn trust(&self) -> Trust {
        Trust::Root(self.ca.pem())
    }

    /// A client connection.
    pub async fn connect(&self, alpn: Alpn) -> Client {
        Client::connect(self.address(), "localhost", alpn, &self.trust()).await.expect("connects")
    }

    /// All log lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("log").clone()
    }

    /// Waits for a log line that contains `text`.
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> bool {
        wait_for(timeout, || self.log().iter().any(|line| line.contains(text)))
    }

    /// Sends a signal to the process that this test started.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Waits for the process's end and returns its exit code.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<i32> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kilobytes: u64 = line.split_whitespace().nth(1).expect("number").parse().expect("number");
        kilobytes * 1024
    }

    /// The metrics page.
    pub fn scrape(&self) -> String {
        get(self.metrics, "/metrics").1
    }

    /// The sum of all series of `name` whose labels contain each of `labels` (as `key="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.scrape();
        let of_name = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' ')));
        of_name
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit_once(' ').expect("value").1.parse::<f64>().expect("value"))
            .sum()
    }

    /// Waits until a metric satisfies `condition`.
    pub fn wait_for_metric(
        &self,
        name: &str,
        labels: &[&str],
        condition: impl Fn(f64) -> bool,
        timeout: Duration,
    ) -> bool {
        wait_for(timeout, || condition(self.metric(name, labels)))
    }

    /// `GET` or another method on the admin listener: status and body.
    pub fn admin(&self, method: &str, path: &str) -> (u16, String) {
        plain(self.admin, method, path)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Polls `condition` until it holds or `timeout` is over.
pub fn wait_for(timeout: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A plain HTTP GET on loopback: status and body.
pub fn get(address: SocketAddr, path: &str) -> (u16, String) {
    plain(address, "GET", path)
}

fn plain(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("status");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

/// Bytes that wait in the kernel at the end `local` of the connections from `local` to `remote`
/// (0: any port): received and not read, sent and not acknowledged.
pub fn queues(local: u16, remote: u16) -> (u64, u64) {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let port = |field: &str| u16::from_str_radix(field.rsplit_once(':').expect("port").1, 16).expect("port");
    let mut sum = (0, 0);
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 0A: listening; there the queue counts connections.
        let ours = (local == 0 || port(fields[1]) == local) && (remote == 0 || port(fields[2]) == remote);
        if ours && fields[3] != "0A" {
            let (sent, received) = fields[4].split_once(':').expect("queues");
            sum.0 += u64::from_str_radix(received, 16).expect("bytes");
            sum.1 += u64::from_str_radix(sent, 16).expect("bytes");
        }
    }
    sum
}

/// A runtime for tests that speak HTTP.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}
