//! nullhop.
#![allow(missing_docs, dead_code)]
pub(crate) mod admin;
pub(crate) mod admission;
pub(crate) mod app;
pub mod cli;
pub(crate) mod clock;
pub mod config;
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
    cli::dispatch(cli::Cli::parse(), run, |arguments| demo::run(&arguments))
}

/// `nullhop run`.
fn run(arguments: cli::RunArgs) -> ExitCode {
    let loaded = match arguments.load() {
        Ok(loaded) => loaded,
        Err(refused) => {
            eprintln!("{refused}");
            return ExitCode::from(2);
        }
    };
    for warning in &loaded.warnings {
        // Collectors of JSON lines get one here, too.
        match loaded.config.log.format {
            config::LogFormat::Text => eprintln!("{warning}"),
            config::LogFormat::Json => eprintln!("{}", warning.to_json()),
        }
    }
    init_log(&loaded.config);
    let reload = move || match arguments.load() {
        Ok(loaded) => Ok(loaded.config),
        Err(cli::RunRefused::Configuration(report)) => Err(report.problems()),
        Err(_) => Err(1),
    };
    match app::start(loaded.config, Box::new(reload)) {
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
