//! The load test in small: each row once, against this build, for correctness alone. Times are not judged here;
//! `docs/performance.md` says how that is done.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nullhop_loadtests::load::Options;
use nullhop_loadtests::load::proxies::Kind;
use nullhop_loadtests::load::proxies::Programs;
use nullhop_loadtests::load::rows::Row;
use nullhop_loadtests::load::rows::Scale;
use nullhop_loadtests::load::run;

fn options(rows: Vec<Row>, upstream_h2: bool) -> Options {
    Options {
        proxies: vec![Kind::Nullhop],
        rows,
        rounds: 1,
        scale: Scale::tiny(),
        programs: Programs { nullhop: PathBuf::from(env!("CARGO_BIN_EXE_nullhop")) },
        pin: false,
        upstream_h2,
        full: true,
        workers: 1,
    }
}

/// Every row ends, every byte is as sent, and every figure is there.
#[test]
fn every_row_delivers_every_byte() {
    let report = run(&options(Row::ALL.to_vec(), false), &|_| ()).expect("the load test runs");
    assert_eq!(report.faults, [""; 0]);
    for row in Row::ALL {
        let name = match row {
            Row::MemoryH1 | Row::MemoryH2 | Row::SlowReaders => "PSS",
            Row::LatencyFew | Row::LatencyMany | Row::LatencyHalf => "event p99",
            _ => "",
        };
        let figure = report.figure(row, name, Kind::Nullhop).unwrap_or_else(|| panic!("{} is missing", row.name()));
        assert!(figure > 0.0, "{}: {figure}", row.name());
    }
    assert!(report.table().contains("handshake, resumed"));
    assert_eq!(report.json()["figures"][0]["row"], "sse-paced");
}

/// The same over h2 to the provider, where bodies take another way.
#[test]
fn rows_deliver_over_h2_to_the_provider() {
    let rows = vec![Row::SsePaced, Row::SseGrouped, Row::SseUnpaced, Row::Unary, Row::Down, Row::Up, Row::H2SseUnpaced];
    let report = run(&options(rows, true), &|_| ()).expect("the load test runs");
    assert_eq!(report.faults, [""; 0]);
}

/// What is not installed is left out, and a proxy that is not what it should be shows.
#[test]
fn a_proxy_that_does_not_listen_is_a_fault() {
    let mut options = options(vec![Row::Unary], false);
    options.programs.nullhop = PathBuf::from("/nonexistent/nullhop");
    let said = std::cell::RefCell::new(Vec::new());
    let report = run(&options, &|line| said.borrow_mut().push(line.to_owned())).expect("the load test runs");
    assert!(report.faults.is_empty());
    assert!(said.borrow().iter().any(|line| line.starts_with("nullhop is left out")));

    options.programs.nullhop = PathBuf::from("/bin/true");
    let report = run(&options, &|_| ()).expect("the load test runs");
    assert!(report.faults[0].contains("does not listen"), "{:?}", report.faults);
}

/// `deploy/pgo/refresh.sh` is a script that a shell can read, and the rows that it runs are there.
#[test]
fn the_counts_are_made_of_rows_that_exist() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/pgo/refresh.sh");
    let read = Command::new("sh").arg("-n").arg(&script).status().expect("a shell");
    assert!(read.success());
    let text = std::fs::read_to_string(script).expect("the script");
    let rows = text.lines().filter_map(|line| line.strip_prefix("rows=").or(line.strip_prefix("bulk_rows=")));
    let rows: Vec<_> = rows.flat_map(|rows| rows.split(',')).collect();
    assert!(rows.len() > 8);
    for row in rows {
        assert!(row.parse::<Row>().is_ok(), "{row}");
    }
}

/// `deploy/pgo/rustc` adds the counts to what is built for release by the compiler that they belong to, and changes nothing
/// else of any call.
#[test]
fn counts_are_for_release_builds_of_their_compiler() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/pgo");
    let counts = std::fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path());
    let counts = counts.filter(|path| path.extension().is_some_and(|extension| extension == "profdata"));
    let counts: Vec<_> = counts.collect();
    let [counts] = &counts[..] else { panic!("the counts of one compiler: {counts:?}") };
    let name = counts.file_stem().and_then(|stem| stem.to_str()).expect("its name");
    let release = name.strip_prefix("counts-").expect("the compiler that they belong to");

    let compiler = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/compiler.sh");
    let call = |release: &str, off: bool, arguments: &[&str]| {
        let mut call = Command::new(folder.join("rustc"));
        call.arg(&compiler).args(arguments).env_remove("NULLHOP_PGO").env("SAID_RELEASE", release);
        if off {
            call.env("NULLHOP_PGO", "off");
        }
        let output = call.output().expect("the script runs");
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).expect("text");
        let told: Vec<_> = said.lines().map(str::to_owned).collect();
        let (as_told, added) = told.split_at(arguments.len());
        assert_eq!(as_told, arguments);
        (added.to_vec(), String::from_utf8(output.stderr).expect("text"))
    };
    let optimised = ["--crate-name", "nullhop", "a b", "-C", "opt-level=3", "--check-cfg", "cfg(fuzzing)"];
    let (added, said) = call(release, false, &optimised);
    assert_eq!(added[0], format!("-Cprofile-use={}", counts.display()));
    assert!(said.is_empty(), "{said}");
    assert!(call(release, true, &optimised).0.is_empty());
    assert!(call(release, false, &["--crate-name", "nullhop", "-C", "opt-level=1"]).0.is_empty());
    assert!(call(release, false, &["-C", "opt-level=3", "-Cprofile-generate=x"]).0.is_empty());
    assert!(call(release, false, &["-C", "opt-level=3", "--cfg", "fuzzing"]).0.is_empty());
    let (added, said) = call("1.0.0", false, &optimised);
    assert!(added.is_empty() && said.contains("no counts of rustc 1.0.0"), "{said}");
}
