//! What limits have to know again after a start: the events of a span that still counts.

use std::io;
use std::path::Path;

use jiff::Timestamp;

use super::read;
use super::read::Record;
use super::read::Seen;

/// What one event took from its key's and account's limits.
pub(crate) struct Replayed<'l> {
    /// When its exchange ended.
    pub(crate) time: Timestamp,
    /// Id of the client key; `None` in pass-through.
    pub(crate) key: Option<&'l str>,
    pub(crate) account: Option<&'l str>,
    pub(crate) upstream: &'l str,
    /// Reported and estimated, of all kinds; without side tokens.
    pub(crate) input: u64,
    /// The same for output.
    pub(crate) output: u64,
    /// Picodollars; 0 without a price.
    pub(crate) cost: u64,
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Replay {
    /// Events that were shown.
    pub(crate) events: u64,
    /// Lines that are none of ours, or not whole.
    pub(crate) unread: u64,
}

/// Shows each event since `since` in a journal's folder once, also those of other processes that share it; not in the order
/// of time. A folder that is not there has none. Files that were written to for the last time before `since` are not read.
///
/// # Errors
/// If a file cannot be read; what was shown until then counts.
pub(crate) fn replay(folder: &Path, since: Timestamp, each: &mut dyn FnMut(Replayed<'_>)) -> io::Result<Replay> {
    let stems = match read::stems(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Replay::default()),
        stems => stems?,
    };
    let (mut seen, mut done) = (Seen::default(), Replay::default());
    for stem in stems {
        let Some(file) = read::open(folder, &stem)? else { continue };
        let modified = file.metadata()?.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        if modified.is_some_and(|modified| modified < since) {
            continue;
        }
        read::lines(file, &mut |line| {
            let Some(record) = line.and_then(Record::read) else {
                done.unread += 1;
                return;
            };
            if record.time < since || !seen.insert(record.id) {
                return;
            }
            done.events += 1;
            // In the order of `read::FIGURES`.
            let [uncached, cache_read, cache_write, response, reasoning, estimated_in, estimated_out, ..] =
                record.figures;
            let sum = |figures: &[u64]| figures.iter().fold(0_u64, |sum, figure| sum.saturating_add(*figure));
            each(Replayed {
                time: record.time,
                key: record.key.as_deref(),
                account: record.account.as_deref(),
                upstream: &record.upstream,
                input: sum(&[uncached, cache_read, cache_write, estimated_in]),
                output: sum(&[response, reasoning, estimated_out]),
                cost: u64::try_from(record.cost).unwrap_or(u64::MAX),
            });
        })?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;
    use std::time::SystemTime;

    use super::super::event;
    use super::super::event::Event;
    use super::*;

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("nullhop-{}-replay-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn lines(times: &[&str]) -> String {
        let mut text = String::new();
        for time in times {
            let event = Event { ended: time.parse().unwrap(), ..event::tests::event() };
            event::Lines::default().put(&event, &mut text);
        }
        text
    }

    #[test]
    fn each_event_of_the_span_is_shown_once() {
        let folder = folder("once");
        let since: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        let first = lines(&["2026-10-31T23:59:59.999Z", "2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"]);
        let second = lines(&["2026-11-03T00:00:00Z"]);
        std::fs::write(folder.join("usage-a-00.jsonl"), &first).unwrap();
        // A copy of the first, half a line, and something else.
        std::fs::write(folder.join("usage-b-00.open.jsonl"), format!("{first}{second}no\n{}", &second[..20])).unwrap();
        std::fs::write(folder.join("other.jsonl"), lines(&["2026-11-03T00:00:00Z"])).unwrap();
        let mut shown = Vec::new();
        let done = replay(&folder, since, &mut |event| {
            assert_eq!((event.key, event.account), (Some("k1"), Some("acme")));
            assert_eq!(event.upstream, "openai");
            assert_eq!((event.input, event.output, event.cost), (13, 9, 1_500_000));
            shown.push(event.time.to_string());
        });
        assert_eq!(done.unwrap(), Replay { events: 3, unread: 1 });
        assert_eq!(shown, ["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", "2026-11-03T00:00:00Z"]);

        // What was written to for the last time before the span is not opened for reading.
        let old = std::fs::File::options().write(true).open(folder.join("usage-b-00.open.jsonl")).unwrap();
        let before = SystemTime::from(since) - Duration::from_secs(1);
        old.set_times(std::fs::FileTimes::new().set_modified(before)).unwrap();
        assert_eq!(replay(&folder, since, &mut |_| {}).unwrap(), Replay { events: 2, unread: 0 });
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(replay(&folder, since, &mut |_| {}).unwrap(), Replay::default());
    }

    /// How fast it is: `cargo test --release --lib replay_is_fast -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, of 500 MB"]
    fn replay_is_fast() {
        let folder = folder("fast");
        for file in 0..10 {
            let text = lines(&["2026-11-02T00:00:00Z"; 100_000]);
            std::fs::write(folder.join(format!("usage-{file}.jsonl")), text).unwrap();
        }
        // Of this thread, so that a busy machine does not count.
        let cpu = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        let began = cpu();
        let mut tokens = 0;
        let since = "2026-11-01T00:00:00Z".parse().unwrap();
        let done = replay(&folder, since, &mut |event| tokens += event.input).unwrap();
        let took = cpu() - began;
        assert_eq!((done.events, tokens), (1_000_000, 13_000_000));
        println!("{:.0} events a second", done.events as f64 / took.as_secs_f64());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
