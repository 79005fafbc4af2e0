//! What admission costs: a look-up among 100,000 keys, admitting and settling one request, a reload, and memory for a key.
//!
//! `cargo bench --bench admission --features skip-measures`; `NULLHOP_KEYS` is another number of keys. Figures are CPU time of this thread, so another's load does not
//! count.

use std::time::Duration;

use nullhop::bench::Admission;
use rustix::time::ClockId;
use rustix::time::clock_gettime;

const KEYS: usize = 100_000;

/// Calls between two looks at the clock, which takes a fraction of a microsecond.
const BATCH: usize = 64;

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
fn measure(rounds: usize, calls: usize, touch: impl Fn(usize), mut call: impl FnMut(usize)) -> f64 {
    let mut figures: Vec<f64> = (0..rounds)
        .map(|round| {
            let mut spent = Duration::ZERO;
            for batch in 0..calls.div_ceil(BATCH) {
                // Far apart, so that nothing of the last one is near but the request's own head, which has just been read.
                let places = (0..BATCH)
                    .map(|number| ((round * calls + batch * BATCH + number) as u64).wrapping_mul(7919) as usize);
                places.clone().for_each(&touch);
                let began = cpu_time();
                places.for_each(&mut call);
                spent += cpu_time() - began;
            }
            spent.as_nanos() as f64 / (calls.div_ceil(BATCH) * BATCH) as f64
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    figures[rounds / 2]
}

fn main() {
    // `cargo test` runs benches as well: then with few keys, to see that it works.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let wanted = std::env::var("NULLHOP_KEYS").ok().and_then(|text| text.parse().ok()).unwrap_or(KEYS);
    let (keys, rounds, calls) = if quick { (100, 1, 10) } else { (wanted, 11, 20_000) };
    let folder = std::env::temp_dir().join(format!("nullhop-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut bench = Admission::new(&folder, keys);
    let before = resident_bytes();
    bench.reload();
    let after = resident_bytes();
    println!("keys                 {keys}");
    println!(
        "look-up              {:.0} ns",
        measure(rounds, calls, |place| bench.touch(place), |place| assert!(bench.look_up(place)))
    );
    println!(
        "admit and settle     {:.0} ns",
        measure(rounds, calls, |place| bench.touch(place), |place| bench.admit_and_settle(place))
    );
    let began = cpu_time();
    bench.reload();
    println!("reload               {:.0} ms", (cpu_time() - began).as_secs_f64() * 1e3);
    println!("memory               {} bytes a key", after.saturating_sub(before) / keys as u64);
    let _ = std::fs::remove_dir_all(&folder);
}
