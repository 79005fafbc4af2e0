//! The scripted provider as a process, for demos and for load tests that want it out of their own.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use nullhop_loadtests::BoxError;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("provider: {error}\n\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), BoxError> {
    let mut options = ProviderOptions { journal_max: 1000, ..ProviderOptions::default() };
    let mut plain = false;
    let mut alpn = "h2,http/1.1".to_owned();
    let mut ca_out = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--port" => options.port = value()?.parse()?,
            "--tls" => plain = false,
            "--plain" => plain = true,
            "--alpn" => alpn = value()?,
            "--vectors" => options.vectors = Some(PathBuf::from(value()?)),
            "--ca-out" => ca_out = Some(PathBuf::from(value()?)),
            "--name" => options.names.push(value()?),
            "--workers" => options.workers = value()?.parse()?,
            "--no-hash" => options.hash_bodies = false,
            _ => return Err(format!("unknown argument {argument}").into()),
        }
    }
    options.alpn = match (plain, alpn.as_str()) {
        (false, "h2,http/1.1") => Alpn::Both,
        (false, "http/1.1") => Alpn::H1,
        (false, "h2") => Alpn::H2,
        (true, "h2") => Alpn::PlainH2,
        (true, "h2,http/1.1" | "http/1.1") => Alpn::Plain,
        _ => return Err(format!("unknown protocols {alpn}").into()),
    };
    let provider = Provider::spawn(options)?;
    if let Some(path) = ca_out {
        std::fs::write(path, provider.ca_pem())?;
    }
    println!("listening {}", provider.url());
    wait_for_the_end()
}

/// Until stdin closes, or a signal asks.
fn wait_for_the_end() -> Result<(), BoxError> {
    let (closed, stdin_closed) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = closed.send(());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            _ = stdin_closed => {}
            _ = terminated.recv() => {}
            result = tokio::signal::ctrl_c() => result?,
        }
        Ok(())
    })
}

const USAGE: &str = "usage: provider [--port N] [--tls | --plain] [--alpn h2,http/1.1] [--vectors DIR] [--ca-out FILE]
                [--name NAME]... [--workers N] [--no-hash]";
