//! What admission costs: a look-up among 100,000 keys, admitting and settling one request, a reload, and memory for a key.
//!
//! `cargo bench --bench admission --features skip-measures`. Figures are CPU time of this thread, so another's load does not
//! count.

use std::time::Duration;

use nullhop::admission_bench::Bench;
use rustix::time::ClockId;
use rustix::time::clock_gettime;

const KEYS: usize = 100_000;

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("less than a second"))
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
}

/// The median of nanoseconds for one call, over rounds.
fn measure(rounds: usize, calls: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut figures: Vec<f64> = (0..rounds)
        .map(|round| {
            let began = cpu_time();
            // Far apart, so that nothing of the last one is near.
            (0..calls).for_each(|number| call((round * calls + number).wrapping_mul(7919)));
            (cpu_time() - began).as_nanos() as f64 / calls as f64
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    figures[rounds / 2]
}

fn main() {
    // `cargo test` runs benches as well: then with few keys, to see that it works.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let (keys, rounds, calls) = if quick { (100, 1, 10) } else { (KEYS, 11, 20_000) };
    let folder = std::env::temp_dir().join(format!("nullhop-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut bench = Bench::new(&folder, keys);
    let before = resident_bytes();
    bench.reload();
    let after = resident_bytes();
    println!("keys                 {keys}");
    println!("look-up              {:.0} ns", measure(rounds, calls, |place| assert!(bench.look_up(place))));
    println!("admit and settle     {:.0} ns", measure(rounds, calls, |place| bench.admit_and_settle(place)));
    println!("reload               {:.0} ms", measure(if quick { 1 } else { 3 }, 1, |_| bench.reload()) / 1e6);
    println!("memory               {} bytes a key", after.saturating_sub(before) / keys as u64);
    let _ = std::fs::remove_dir_all(&folder);
}
