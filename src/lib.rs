//! nullhop.
pub(crate) mod admin;
pub(crate) mod admission;
pub(crate) mod app;
pub(crate) mod cli;
pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod decode;
pub(crate) mod demo;
pub(crate) mod drain;
pub(crate) mod h1;
pub mod hygiene;
pub(crate) mod incoming;
pub(crate) mod journal;
pub(crate) mod keys;
pub(crate) mod limits;
pub(crate) mod listener;
pub(crate) mod message;
pub mod meter;
pub(crate) mod prove;
pub(crate) mod provider;
pub(crate) mod proxy_protocol;
pub(crate) mod relay;
pub(crate) mod retention;
pub(crate) mod route;
pub(crate) mod scripted;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod stand_in;
pub(crate) mod systemd;
pub(crate) mod telemetry;
pub(crate) mod tls;
pub(crate) mod upstream;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

/// The program, from its command line to its exit code.
pub fn main() -> ExitCode {
    hygiene::crypto_heap::install();
    telemetry::log::install_panic_hook();
    hygiene::measure::read_environment();
    for measure in hygiene::measure::skipped() {
        eprintln!("nullhop: measure {} is left out; this build is for tests", measure.name());
    }
    let hardened = hygiene::process::harden();
    let programs = cli::Programs {
        run: |arguments| run(arguments, hardened),
        demo: |arguments| demo::run(&arguments, hardened),
        prove: |arguments| prove::run(&arguments),
    };
    cli::dispatch(cli::Cli::parse(), programs)
}

/// `nullhop run`.
fn run(arguments: cli::RunArgs, hardened: hygiene::process::Hardened) -> ExitCode {
    let mut loaded = match arguments.load() {
        Ok(loaded) => loaded,
        Err(refused) => {
            eprintln!("{refused}");
            return ExitCode::from(2);
        }
    };
    let heap = match hygiene::heap::choose(loaded.config.memory.heap) {
        Ok(heap) => heap,
        Err(fault) => {
            eprintln!("nullhop: {fault}");
            return ExitCode::FAILURE;
        }
    };
    // Once more, so that its secrets stand in the heap that it asks for; the first reading is wiped, here and now.
    // What can be read only once, a pipe, stays where it is.
    if let Ok(again) = arguments.load()
        && again.config.fingerprint == loaded.config.fingerprint
    {
        loaded = again;
    }
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
    match app::start(loaded.config, hardened, heap, Box::new(reload)) {
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

/// Doors for the benches, one a module that has one; in no release build.
#[cfg(feature = "skip-measures")]
pub mod bench {
    pub use crate::admission::bench::Admitted;
    pub use crate::admission::bench::Bench as Admission;
    pub use crate::hygiene::counting::CountingAllocator;
    pub use crate::hygiene::wipe::wipe;
    pub use crate::journal::bench::Records;
    pub use crate::message::bench::Head;
    pub use crate::relay::bench::Accounts;
    pub use crate::relay::bench::Stream;
    pub use crate::relay::bench::request_head;
    pub use crate::relay::bench::response_head;
    pub use crate::retention::bench::Reader;
    pub use crate::server::bench::Asked;
    pub use crate::server::bench::Gate;

    /// Blocks come from locked memory from now on, by the code that serves secret memory as well. `false`: there is none.
    pub fn open_heap() -> bool {
        use crate::hygiene::heap;
        static OPEN: std::sync::LazyLock<bool> =
            std::sync::LazyLock::new(|| heap::choose(heap::Wanted::Locked).is_ok());
        *OPEN
    }
}

/// Doors for the fuzz targets; not in any other build.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Reads `text` as a configuration and shows what is wrong with it.
    pub fn configuration(text: &str) {
        if let Err(report) = crate::config::Config::from_toml(text, std::path::Path::new("/nonexistent"), "fuzz") {
            assert!(report.problems() > 0 && !report.to_string().is_empty());
        }
    }

    /// A header whole, and at each cut.
    pub fn proxy_header(bytes: &[u8]) {
        use crate::proxy_protocol::Parsed;
        use crate::proxy_protocol::parse;
        if let Parsed::Done { consumed, .. } = parse(bytes) {
            assert!(consumed <= bytes.len());
            for cut in 0..consumed {
                assert!(matches!(parse(&bytes[..cut]), Parsed::Incomplete { .. }), "cut at {cut}");
            }
        }
    }

    /// Frames whole, and cut in two at each place.
    pub fn websocket_frames(bytes: &[u8]) {
        let whole = crate::relay::walked(&[bytes]);
        for cut in 0..bytes.len().min(300) {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(crate::relay::walked(&[first, second]), whole, "cut at {cut}");
        }
    }

    /// What a client sends on h2, whole and cut in two at each place: h2 gets the same.
    pub fn h2_bytes(bytes: &[u8]) {
        let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes].concat();
        let whole = crate::stand_in::received(&[&bytes]);
        for cut in 0..bytes.len().min(400) {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(crate::stand_in::received(&[first, second]), whole, "cut at {cut}");
        }
    }

    /// What arrives on h1, at once, cut in two at each place, and byte by byte: the same is understood. The first byte chooses
    /// whose messages they are.
    pub fn h1_bytes(bytes: &[u8]) {
        if let [side, bytes @ ..] = bytes {
            crate::h1::same_at_each_cut(crate::h1::Side::of(*side), bytes);
        }
    }

    /// An answer whole, cut in two, and read by the meter's twin. The first two bytes choose the dialect and the framing.
    pub fn meter(bytes: &[u8]) {
        if let [api, framing, bytes @ ..] = bytes {
            crate::meter::twin::check(usize::from(*api), usize::from(*framing), bytes);
        }
    }

    /// A request body, edited whole and in two.
    pub fn edit(bytes: &[u8]) {
        crate::retention::edited_as_the_twin_says(bytes);
    }

    /// A path that passes has nothing in it that a server behind could read as another path.
    pub fn target(text: &str) {
        if text.starts_with('/') && crate::server::path_is_plain(text) {
            let lower = text.to_ascii_lowercase();
            assert!(!lower.contains("//"), "empty segment");
            assert!(!lower.split('/').any(|segment| segment == "." || segment == ".."), "dot segment");
            assert!(!["%2e", "%5c", "%00", "%0a", "%0d", "\\", "#"].iter().any(|bad| lower.contains(bad)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::fmt::Display;

    use crate::hygiene::assert_lacks;

    #[test]
    fn what_holds_content_or_secrets_has_no_text() {
        // Compiling is the test. (`Serialize` cannot be implemented: serde is no dependency, see tests/structure.rs.)
        assert_lacks!(crate::hygiene::Chunk: Clone, Debug, Display, std::error::Error);
        assert_lacks!(crate::hygiene::Secret: Clone, Debug, Display, std::error::Error);
        assert_lacks!(crate::hygiene::WipedIncoming: Clone, Debug, Display);
        assert_lacks!(crate::admission::Permit: Clone, Debug, Display);
        assert_lacks!(crate::upstream::Tenant: Debug, Display, std::hash::Hash);
        assert_lacks!(crate::upstream::RequestHead: Clone, Debug, Display);
        assert_lacks!(crate::upstream::Answer: Clone, Debug, Display);
        assert_lacks!(crate::upstream::Upload: Clone, Debug, Display);
        assert_lacks!(crate::upstream::RequestBody: Clone, Debug, Display);
        assert_lacks!(crate::upstream::Switched: Clone, Debug, Display);
        assert_lacks!(crate::relay::AnswerBody: Clone, Debug, Display);
        assert_lacks!(crate::relay::Way: Clone, Debug, Display);
        assert_lacks!(crate::relay::Refused: Clone, Debug, Display, std::error::Error);
        assert_lacks!(crate::relay::Peer: Clone, Debug, Display);
        assert_lacks!(crate::relay::Tally: Clone, Debug, Display);
        assert_lacks!(crate::retention::Editor: Clone, Debug, Display);
    }

    #[test]
    fn faults_of_the_request_path_hold_no_text_of_peers() {
        // What is `Copy` owns no string, and what lives forever borrows none that came over a socket.
        fn holds_no_text<Fault: Copy + 'static>() {}
        holds_no_text::<crate::upstream::SendFault>();
        holds_no_text::<crate::upstream::UploadFault>();
        holds_no_text::<crate::relay::BodyFault>();
    }

    #[test]
    fn dependencies_trace_nothing() {
        assert!(tracing::level_filters::STATIC_MAX_LEVEL == tracing::level_filters::LevelFilter::OFF);
    }
}
