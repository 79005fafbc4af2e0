//! nullhop.
pub(crate) mod admin;
pub(crate) mod admission;
pub(crate) mod app;
pub(crate) mod cli;
pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod drain;
pub mod hygiene;
pub(crate) mod listener;
pub(crate) mod provider;
pub(crate) mod proxy_protocol;
pub(crate) mod relay;
pub(crate) mod route;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod systemd;
pub(crate) mod telemetry;
pub(crate) mod tls;
pub(crate) mod upstream;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

/// The program, from its command line to its exit code.
pub fn main() -> ExitCode {
    telemetry::log::install_panic_hook();
    let hardened = hygiene::process::harden();
    cli::dispatch(cli::Cli::parse(), |arguments| run(arguments, hardened), |arguments| demo::run(&arguments, hardened))
}

/// `nullhop run`.
fn run(arguments: cli::RunArgs, hardened: hygiene::process::Hardened) -> ExitCode {
    let loaded = match arguments.load() {
        Ok(loaded) => loaded,
        Err(refused) => {
            eprintln!("{refused}");
            return ExitCode::from(2);
        }
    };
    for warning in &loaded.warnings {
        eprintln!("{warning}");
    }
    init_log(&loaded.config);
    let reload = move || match arguments.load() {
        Ok(loaded) => Ok(loaded.config),
        Err(cli::RunRefused::Configuration(report)) => Err(report.problems()),
        Err(_) => Err(1),
    };
    match app::start(loaded.config, hardened, Box::new(reload)) {
        Ok(bound) => {
            bound.run();
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("nullhop: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// Sets how log lines are written.
fn init_log(config: &Arc<config::Config>) {
    use telemetry::labels::LogLevel;
    use telemetry::log::Format;
    let format = match config.log.format {
        config::LogFormat::Text => Format::Text,
        config::LogFormat::Json => Format::Json,
    };
    let level = match config.log.level {
        config::LogLevel::Error => LogLevel::Error,
        config::LogLevel::Warn => LogLevel::Warn,
        config::LogLevel::Info => LogLevel::Info,
    };
    telemetry::log::init(format, level);
}
