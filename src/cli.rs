//! The command line.
//!
//! Everything that only reads the configuration happens here; `run`, `demo` and `prove` are handed in, since
//! the command line stands below the program that it starts.

mod key;
mod usage;

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Loaded, Report, Upstream, describe};
use crate::provider::Provider;

/// It did not work: a port that is taken, a file that cannot be written.
const FAILED: u8 = 1;
/// The command or the configuration is wrong. The same as clap's own.
const WRONG: u8 = 2;

/// nullhop: a streaming edge proxy for LLM APIs that keeps nothing.
#[derive(Parser)]
#[command(name = "nullhop", version, long_about = QUICK_START, after_long_help = EXIT_CODES)]
#[command(about = "A zero-retention streaming edge proxy for LLM APIs")]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const QUICK_START: &str = "\
A zero-retention streaming edge proxy for LLM APIs.

Start it, then point clients at it; they keep their own keys:

  nullhop run                      listens on https://127.0.0.1:8443

  OpenAI SDKs                      OPENAI_BASE_URL=https://localhost:8443/openai/v1
  Codex, in its config.toml        openai_base_url = \"https://localhost:8443/openai/v1\"
  Anthropic SDKs, Claude Code      ANTHROPIC_BASE_URL=https://localhost:8443/anthropic
  Gemini SDKs, Gemini CLI          GOOGLE_GEMINI_BASE_URL=https://localhost:8443/gemini
  DeepSeek, OpenRouter             .../deepseek/v1, .../openrouter/v1 in any OpenAI SDK

OpenAI bases end in /v1, Anthropic and Gemini bases do not: their SDKs add the version.
Without a configuration the certificate is self-signed, so clients must be told to trust it;
`nullhop init` writes a configuration in which you name your own.";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed while running
  2  the command or the configuration is wrong";

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serve traffic until SIGTERM or SIGINT
    #[command(after_help = "\
Examples:
  nullhop run
  nullhop run --listen 127.0.0.1:9443
  nullhop run -c /etc/nullhop/nullhop.toml

SIGHUP reads the file again; SIGTERM and SIGINT let open streams finish first.")]
    Run(RunArgs),
    /// Check a configuration and say what clients should use
    #[command(after_help = "\
Examples:
  nullhop check -c nullhop.toml
  nullhop check -c nullhop.toml --json

Every problem is reported at once. Values of the file are never shown. Exit code 2 if there are problems.")]
    Check(CheckArgs),
    /// Write a configuration to begin with
    #[command(after_help = "\
Examples:
  nullhop init > nullhop.toml
  nullhop init --output /etc/nullhop/nullhop.toml

A file that exists is left alone.")]
    Init(InitArgs),
    /// Explain the configuration
    Config(ConfigArgs),
    /// Try it without keys: a scripted provider behind nullhop, on this machine
    #[command(after_help = "\
Examples:
  nullhop demo
  nullhop demo --port 9443
  nullhop demo --once")]
    Demo(DemoArgs),
    /// Prove on this machine, with your configuration, that nothing is kept
    #[command(after_help = "\
Starts a second nullhop with your configuration on free loopback ports, in front of scripted providers, drives
words that occur nowhere else through it on every path (streams, errors, aborts, stalls, WebSockets, reload,
drain), and looks for them in its memory while it runs, and in its log, metrics, files and sockets. Prints
what it found, which guards are in force, and what no program can clear. Your providers are not contacted,
a nullhop that runs already is not touched, nothing is written to disk, and nothing of your configuration
is printed.

Reading another process's memory takes root, or CAP_SYS_PTRACE.

Examples:
  sudo nullhop prove
  sudo nullhop prove -c /etc/nullhop/nullhop.toml
  sudo nullhop prove -c nullhop.toml --quick
  sudo nullhop prove --only stream
  sudo nullhop prove --json > proof.json

Exit code 0 if everything promised holds, 1 if something does not hold or could not be looked at.")]
    Prove(ProveArgs),
    /// Ask a running nullhop on this machine whether it is ready; for containers without a shell
    #[command(after_help = "\
Examples:
  nullhop probe
  nullhop probe --alive
  nullhop probe --admin 127.0.0.1:9465

Exit code 0 if it is, 1 if it is not or nobody answers.")]
    Probe(ProbeArgs),
    /// Make, list and revoke client keys
    Key(key::KeyArgs),
    /// Add up the usage that journals have
    #[command(after_help = "\
Examples:
  nullhop usage /var/lib/nullhop/usage
  nullhop usage /var/lib/nullhop/usage --by account,key,model,day --time-zone Europe/Berlin
  nullhop usage /srv/usage/fra-1 /srv/usage/iad-1 --since 2026-11-01 --until 2026-11-30 --format csv
  zcat usage-*.jsonl.gz | nullhop usage - --by day --format json

Days are those on which exchanges ended; both ends of --since and --until count. An event that is there more than
once counts once, over all paths. Journals may be written to meanwhile.

Exit code 0 if all lines could be read, 1 if some could not: then the sums are there, without these, 2 if the
command is wrong.")]
    Usage(usage::UsageArgs),
}

/// `nullhop run`
#[derive(Args)]
pub struct RunArgs {
    /// Configuration file; without it, five providers in pass-through on 127.0.0.1:8443
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen here instead of where the configuration says (if it has one listener)
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
}

/// `nullhop check`
#[derive(Args)]
pub struct CheckArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Say it in JSON, on standard output
    #[arg(long)]
    pub json: bool,
}

/// `nullhop init`
#[derive(Args)]
pub struct InitArgs {
    /// Where to write; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `nullhop config`
#[derive(Args)]
pub struct ConfigArgs {
    /// What to explain.
    #[command(subcommand)]
    pub topic: ConfigTopic,
}

/// What to explain.
#[derive(Subcommand)]
pub enum ConfigTopic {
    /// Print a JSON Schema of the file, for editors
    #[command(after_help = "Example:\n  nullhop config schema > nullhop.schema.json")]
    Schema,
    /// Print a checked configuration with all defaults filled in and secrets masked
    #[command(after_help = "\
Examples:
  nullhop config show
  nullhop config show -c nullhop.toml")]
    Show {
        /// Configuration file; the built-in configuration if not given
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the reference of all sections and keys, in Markdown
    #[command(after_help = "Example:\n  nullhop config reference | less")]
    Reference,
}

/// `nullhop demo`
#[derive(Args)]
pub struct DemoArgs {
    /// Port on 127.0.0.1; any free one if not given
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Relay one stream, show what was kept of it, and leave
    #[arg(long)]
    pub once: bool,
}

/// `nullhop prove`
#[derive(Args)]
pub struct ProveArgs {
    /// Configuration file; the built-in configuration if not given
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say it in JSON, on standard output, for auditors and scripts
    #[arg(long)]
    pub json: bool,
    /// Half of the paths, TLS 1.3 only, smaller bodies; a quarter of a minute instead of half a one
    #[arg(long)]
    pub quick: bool,
    /// Only this path: a name of the report's first column; may be given several times
    #[arg(long, value_name = "PATH")]
    pub only: Vec<String>,
}

/// `nullhop probe`
#[derive(Args)]
pub struct ProbeArgs {
    /// Address of its admin listener
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9465")]
    pub admin: SocketAddr,
    /// Whether it is alive, also while it drains
    #[arg(long)]
    pub alive: bool,
}

impl RunArgs {
    /// The configuration that these arguments name. Also what a reload calls.
    pub fn load(&self) -> Result<Loaded, RunRefused> {
        let mut loaded = match &self.config {
            Some(path) => Config::load(path).map_err(RunRefused::Configuration)?,
            None => Config::load_built_in(),
        };
        if let Some(address) = self.listen {
            let config = Arc::get_mut(&mut loaded.config).expect("it was made a line ago");
            let [listener] = config.listeners.as_mut_slice() else {
                return Err(RunRefused::ListenNeedsOneListener);
            };
            // A listener that is open to the network already has said `plaintext = "i-know"`.
            let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
            if !listener.tls && is_loopback(listener.address) && !is_loopback(address) {
                return Err(RunRefused::ListenNeedsTls);
            }
            listener.address = address;
        }
        Ok(loaded)
    }
}

/// Why [`RunArgs::load`] gives nothing. `Display` is for terminals, without a newline at the end.
#[derive(Debug)]
pub enum RunRefused {
    /// The file has problems.
    Configuration(Report),
    /// `--listen` beside several listeners, or none.
    ListenNeedsOneListener,
    /// `--listen` would open a listener without TLS to the network.
    ListenNeedsTls,
}

impl std::fmt::Display for RunRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Configuration(report) => f.write_str(report.to_string().trim_end()),
            Self::ListenNeedsOneListener => {
                f.write_str("error: --listen needs a configuration with exactly one [[listener]]")
            }
            Self::ListenNeedsTls => f.write_str("error: --listen beyond loopback needs a [[listener]] with TLS"),
        }
    }
}

/// The programs behind the commands that do more than read the configuration.
pub struct Programs<R, D, P> {
    /// `nullhop run`
    pub run: R,
    /// `nullhop demo`
    pub demo: D,
    /// `nullhop prove`
    pub prove: P,
}

/// Does what the command line says.
pub fn dispatch<R, D, P>(cli: Cli, programs: Programs<R, D, P>) -> ExitCode
where
    R: FnOnce(RunArgs) -> ExitCode,
    D: FnOnce(DemoArgs) -> ExitCode,
    P: FnOnce(ProveArgs) -> ExitCode,
{
    let mut out = io::stdout().lock();
    let mut err = io::stderr();
    let done = match cli.command {
        Command::Run(args) => {
            drop(out);
            return (programs.run)(args);
        }
        Command::Demo(args) => {
            drop(out);
            return (programs.demo)(args);
        }
        Command::Prove(args) => {
            drop(out);
            return (programs.prove)(args);
        }
        Command::Check(args) => check(&args, &mut out, &mut err),
        Command::Init(args) => init(&args, &mut out, &mut err),
        Command::Config(args) => config(&args, &mut out, &mut err),
        Command::Probe(args) => probe(&args, &mut out, &mut err),
        Command::Key(args) => key::key(&args, &mut out, &mut err),
        Command::Usage(args) => usage::usage(&args, &mut out, &mut err),
    };
    let code = match done.and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => code,
        // `nullhop config reference | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(_) => FAILED,
    };
    ExitCode::from(code)
}

fn check(args: &CheckArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let loaded = match Config::load(&args.config) {
        Ok(loaded) => loaded,
        Err(report) if args.json => {
            writeln!(out, "{:#}", report.to_json())?;
            return Ok(WRONG);
        }
        Err(report) => {
            write!(err, "{report}")?;
            return Ok(WRONG);
        }
    };
    let config = &loaded.config;
    let bases = |upstream| (upstream, base_urls(config, upstream));
    let upstreams: Vec<_> = config.upstreams.iter().map(bases).collect();
    if args.json {
        let warnings: Vec<_> = loaded.warnings.iter().map(|warning| warning.to_json()).collect();
        let upstreams: Vec<_> = upstreams
            .iter()
            .map(|(upstream, urls)| serde_json::json!({ "name": upstream.name, "base_urls": urls }))
            .collect();
        let said = serde_json::json!({
            "file": args.config.display().to_string(),
            "valid": true,
            "warnings": warnings,
            "listeners": config.listeners.len(),
            "upstreams": upstreams,
            "plans": config.plans.len(),
            "accounts": config.accounts.len(),
            "prices": config.prices.len(),
            "keys": loaded.keys,
            "journal": config.journal.as_ref().map(|journal| journal.folder.display().to_string()),
        });
        writeln!(out, "{said:#}")?;
        return Ok(0);
    }
    for warning in &loaded.warnings {
        writeln!(err, "{warning}")?;
    }
    let parts = [(config.plans.len(), "plan"), (config.accounts.len(), "account"), (config.prices.len(), "price")];
    let mut said =
        format!("{}, {}", counted(config.listeners.len(), "listener"), counted(config.upstreams.len(), "upstream"),);
    for (count, noun) in parts.into_iter().filter(|(count, _)| *count > 0) {
        said.push_str(&format!(", {}", counted(count, noun)));
    }
    writeln!(out, "{} is valid: {said}", args.config.display())?;
    let width = config.upstreams.iter().map(|u| u.name.len()).max().unwrap_or(0);
    for (upstream, urls) in &upstreams {
        for url in urls {
            writeln!(out, "  {:width$}  {url}", upstream.name)?;
        }
    }
    if let (Some(keys), Some(count)) = (&config.keys, loaded.keys) {
        writeln!(out, "{} in {}", counted(count, "key"), keys.file.display())?;
    }
    if let Some(journal) = &config.journal {
        writeln!(out, "usage events go to {}", journal.folder.display())?;
    }
    Ok(0)
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// What clients of this upstream take as their base URL.
pub fn base_urls(config: &Config, upstream: &Upstream) -> Vec<String> {
    // OpenAI's SDKs want the version in the base, the others add it themselves. It may also be part
    // of the upstream's own address.
    let wants_version = matches!(upstream.provider, Provider::Openai | Provider::Compatible);
    let has_version = upstream.endpoints.iter().any(|e| e.base_path.ends_with("/v1"));
    let version = if wants_version && !has_version { "/v1" } else { "" };
    let listener = config.listeners.first();
    let scheme = if listener.is_none_or(|l| l.tls) { "https" } else { "http" };
    let port = listener.map_or(443, |l| l.address.port());
    let node = match (&config.public_url, listener) {
        (Some(url), _) => url.clone(),
        (None, Some(l)) if !l.address.ip().is_unspecified() => format!("{scheme}://{}", l.address),
        (None, _) => format!("{scheme}://HOST:{port}"),
    };
    let mut urls = Vec::new();
    if let Some(prefix) = &upstream.prefix {
        urls.push(format!("{node}{prefix}{version}"));
    }
    // The public URL tells the port that clients see.
    let port = match &config.public_url {
        Some(_) => String::new(),
        None if (scheme == "https" && port == 443) || (scheme == "http" && port == 80) => String::new(),
        None => format!(":{port}"),
    };
    urls.extend(upstream.hosts.iter().map(|host| format!("{scheme}://{host}{port}{version}")));
    if upstream.prefix.is_none() && upstream.hosts.is_empty() {
        urls.push(format!("{node}{version}"));
    }
    urls
}

fn init(args: &InitArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let text = describe::init();
    let Some(path) = &args.output else {
        out.write_all(text.as_bytes())?;
        return Ok(0);
    };
    let written =
        OpenOptions::new().write(true).create_new(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => {
            let path = path.display();
            writeln!(out, "wrote {path}; next: nullhop check -c {path}")?;
            Ok(0)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            writeln!(err, "error: {} exists and is left alone", path.display())?;
            Ok(WRONG)
        }
        Err(error) => {
            writeln!(err, "error: cannot write {}: {}", path.display(), error.kind())?;
            Ok(FAILED)
        }
    }
}

/// Longer than a healthy process takes to answer on loopback, shorter than a probe's own timeout.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

fn probe(args: &ProbeArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let path = if args.alive { "/healthz" } else { "/readyz" };
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&args.admin, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) => {
            let word = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim_end());
            let well = answer.starts_with("HTTP/1.1 200 ");
            writeln!(out, "{}", if well || word == "draining" { word } else { "not nullhop" })?;
            Ok(if well { 0 } else { FAILED })
        }
        Err(error) => {
            writeln!(err, "error: no answer at {}: {}", args.admin, error.kind())?;
            Ok(FAILED)
        }
    }
}

fn config(args: &ConfigArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    match &args.topic {
        ConfigTopic::Schema => writeln!(out, "{:#}", describe::schema())?,
        ConfigTopic::Reference => out.write_all(describe::reference().as_bytes())?,
        ConfigTopic::Show { config } => match config.as_deref().map(Config::load) {
            None => out.write_all(Config::load_built_in().shown.as_bytes())?,
            Some(Ok(loaded)) => out.write_all(loaded.shown.as_bytes())?,
            Some(Err(report)) => {
                write!(err, "{report}")?;
                return Ok(WRONG);
            }
        },
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::CommandFactory;

    use super::*;

    /// Exit code, standard output, standard error.
    fn said(args: &[&str]) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let cli = Cli::try_parse_from([&["nullhop"], args].concat()).unwrap_or_else(|e| panic!("{e}"));
        let code = match cli.command {
            Command::Check(args) => check(&args, &mut out, &mut err),
            Command::Init(args) => init(&args, &mut out, &mut err),
            Command::Config(args) => config(&args, &mut out, &mut err),
            Command::Probe(args) => probe(&args, &mut out, &mut err),
            Command::Run(_) | Command::Demo(_) | Command::Prove(_) | Command::Key(_) | Command::Usage(_) => {
                panic!("not ours")
            }
        };
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (code.unwrap(), text(out), text(err))
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        for part in
            ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "openai_base_url", "Exit codes:"]
        {
            assert!(help.contains(part), "{part}");
        }
        assert!(Cli::try_parse_from(["nullhop", "check"]).is_err());
        let Ok(Cli { command: Command::Run(args) }) = Cli::try_parse_from(["nullhop", "run", "--listen", "[::1]:1"])
        else {
            panic!("it is valid");
        };
        let loaded = args.load().unwrap();
        assert_eq!(loaded.config.listeners[0].address.to_string(), "[::1]:1");
    }

    #[test]
    fn init_then_check_then_show() {
        let folder = std::env::temp_dir().join(format!("nullhop-{}-cli", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("nullhop.toml");
        let path = file.to_str().unwrap();

        let (code, out, _) = said(&["init", "--output", path]);
        assert_eq!((code, out), (0, format!("wrote {path}; next: nullhop check -c {path}\n")));
        assert_eq!(fs::read_to_string(&file).unwrap(), said(&["init"]).1);
        let (code, _, err) = said(&["init", "-o", path]);
        assert_eq!((code, err), (2, format!("error: {path} exists and is left alone\n")));
        assert_eq!(said(&["init", "-o", folder.join("no/x").to_str().unwrap()]).0, 1);

        let (code, out, err) = said(&["check", "-c", path]);
        assert_eq!((code, err.as_str()), (0, ""));
        let expected = format!(
            "{path} is valid: 1 listener, 5 upstreams\n\
             \x20 openai      https://127.0.0.1:8443/openai/v1\n\
             \x20 anthropic   https://127.0.0.1:8443/anthropic\n\
             \x20 gemini      https://127.0.0.1:8443/gemini\n\
             \x20 deepseek    https://127.0.0.1:8443/deepseek/v1\n\
             \x20 openrouter  https://127.0.0.1:8443/openrouter/v1\n"
        );
        assert_eq!(out, expected);
        let (code, out, _) = said(&["check", "-c", path, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &json["valid"]), (0, &serde_json::json!(true)));
        assert_eq!(json["upstreams"][0]["base_urls"][0], "https://127.0.0.1:8443/openai/v1");
        assert_eq!(said(&["config", "show", "-c", path]), said(&["config", "show"]));

        fs::write(&file, "[metrics]\naddress = \"0.0.0.0:1\"\n[server]\npublic_url = \"https://e.example\"\n[[upstream]]\nname = \"t\"\nprovider = \"compatible\"\nurl = \"https://api.together.ai/v1\"\nhosts = [\"t.example\"]").unwrap();
        let (code, out, err) = said(&["check", "-c", path]);
        assert_eq!(code, 0);
        assert!(err.starts_with("warning: [metrics] is open"));
        assert!(out.ends_with("1 upstream\n  t  https://e.example/t\n  t  https://t.example\n"), "{out}");

        let keys = folder.join("keys.jsonl");
        fs::write(&keys, format!("{{\"id\":\"k1\",\"hash\":\"{}\",\"label\":\"l\"}}\n", "ab".repeat(32))).unwrap();
        fs::write(folder.join("secret"), "x".repeat(32)).unwrap();
        let text = "[keys]\nfile = \"keys.jsonl\"\nsecret = { file = \"secret\" }\n[[plan]]\nname = \"p\"\n\
                    [[upstream]]\nname = \"o\"\nprovider = \"openai\"\n[[upstream.key]]\nsecret = { file = \"secret\" }\n\
                    [journal]\nfolder = \"j\"\n";
        fs::write(&file, text).unwrap();
        let (code, out, _) = said(&["check", "-c", path]);
        let expected = format!(
            "{path} is valid: 1 listener, 1 upstream, 1 plan\n  o  https://127.0.0.1:8443/o/v1\n1 key in {}\nusage events go to {}\n",
            keys.display(),
            folder.join("j").display(),
        );
        assert_eq!((code, out), (0, expected));
        let json: serde_json::Value = serde_json::from_str(&said(&["check", "-c", path, "--json"]).1).unwrap();
        assert_eq!((&json["keys"], &json["plans"], &json["accounts"]), (&1.into(), &1.into(), &0.into()));
        assert_eq!(json["journal"], folder.join("j").display().to_string());

        fs::write(&file, "[metrics]\ntoken = \"sesame\"").unwrap();
        let (code, out, err) = said(&["check", "-c", path]);
        assert_eq!((code, out.as_str()), (2, ""));
        assert!(err.starts_with(&format!("{path}: 2 problems\n")) && !err.contains("sesame"));
        let (code, out, _) = said(&["check", "-c", path, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &json["valid"]), (2, &serde_json::json!(false)));
        assert_eq!(said(&["config", "show", "-c", path]).0, 2);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn schema_and_reference_are_printed() {
        let schema: serde_json::Value = serde_json::from_str(&said(&["config", "schema"]).1).unwrap();
        assert_eq!(schema["additionalProperties"], false);
        assert!(said(&["config", "reference"]).1.starts_with("# Configuration\n"));
    }
}
