//! The load test as a command. `docs/performance.md` tells what it does.

use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;

use nullhop_loadtests::BoxError;
use nullhop_loadtests::load::Options;
use nullhop_loadtests::load::proxies::Kind;
use nullhop_loadtests::load::proxies::Programs;
use nullhop_loadtests::load::rows::Row;
use nullhop_loadtests::load::rows::Scale;
use nullhop_loadtests::load::run;

fn main() -> ExitCode {
    let outcome = Arguments::parse(std::env::args().skip(1)).and_then(|arguments| {
        let report = run(&arguments.options()?, &|line| eprintln!("{line}"))?;
        println!("{}", report.table());
        if let Some(path) = &arguments.json {
            std::fs::write(path, format!("{:#}\n", report.json()))?;
        }
        Ok(report.faults.is_empty())
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    proxies: Vec<Kind>,
    rows: Vec<Row>,
    rounds: usize,
    tiny: bool,
    pin: bool,
    upstream_h2: bool,
    full: bool,
    workers: usize,
    nullhop: Option<PathBuf>,
    json: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, BoxError> {
        let mut parsed = Arguments {
            proxies: Kind::ALL.to_vec(),
            rows: Row::ALL.to_vec(),
            rounds: 5,
            tiny: false,
            pin: true,
            upstream_h2: false,
            full: true,
            workers: 1,
            nullhop: None,
            json: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--proxies" => parsed.proxies = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--only" => parsed.rows = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--rounds" => parsed.rounds = value()?.parse()?,
                "--tiny" => parsed.tiny = true,
                "--no-pin" => parsed.pin = false,
                "--upstream" => parsed.upstream_h2 = value()? == "h2",
                "--no-admission" => parsed.full = false,
                "--workers" => parsed.workers = value()?.parse()?,
                "--nullhop" => parsed.nullhop = Some(value()?.into()),
                "--json" => parsed.json = Some(value()?.into()),
                _ => return Err(format!("unknown argument {argument}").into()),
            }
        }
        Ok(parsed)
    }

    fn options(&self) -> Result<Options, BoxError> {
        let nullhop = match &self.nullhop {
            Some(path) => path.clone(),
            None => build()?,
        };
        Ok(Options {
            proxies: self.proxies.clone(),
            rows: self.rows.clone(),
            rounds: self.rounds,
            scale: if self.tiny { Scale::tiny() } else { Scale::full() },
            programs: Programs { nullhop },
            pin: self.pin,
            upstream_h2: self.upstream_h2,
            full: self.full,
            workers: self.workers,
        })
    }
}

/// Builds nullhop as this tool was built, so that what is measured is what is there, and says where it is.
fn build() -> Result<PathBuf, BoxError> {
    let here = std::env::current_exe()?.with_file_name("nullhop");
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(here) };
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--locked", "--package", "nullhop", "--bin", "nullhop"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    if !command.status()?.success() {
        return Err("nullhop does not build".into());
    }
    Ok(here)
}

const USAGE: &str = "usage: load [--rounds N] [--only ROW,...] [--proxies nginx,haproxy,nullhop] [--json FILE]
            [--upstream h1|h2] [--no-admission] [--nullhop PROGRAM] [--tiny] [--no-pin] [--workers N]
rows: sse-paced sse-grouped sse-unpaced unary down up handshake-full handshake-resumed h2-sse-paced
      h2-sse-unpaced h2-unary memory-h1 memory-h2 slow-readers latency-few latency-many";
