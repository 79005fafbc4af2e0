//! What time it is for limits: nanoseconds since the process began, and when days and months end.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Instant;

use jiff::SignedDuration;
use jiff::Timestamp;
use jiff::ToSpan;
use jiff::Zoned;
use jiff::tz::TimeZone;

use crate::limits::Calendar;

/// A worker's own; looks at the calendar once a second at most.
pub(crate) struct Clock {
    zone: TimeZone,
    /// When the wall clock was read, what it said, and the day and month that ran.
    read: Cell<(u64, Timestamp, Calendar)>,
}

/// A moment.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    /// Nanoseconds since the process began, plus a day, so that nothing lies before it.
    pub(crate) nanos: u64,
    /// Seconds since 1970, less than a second old.
    pub(crate) unix: i64,
    pub(crate) calendar: Calendar,
}

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds on the clock of all limits, which no setting of the wall clock moves.
pub(crate) fn nanos(at: Instant) -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let since = at.saturating_duration_since(*BEGAN.get_or_init(Instant::now));
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2) + 86_400 * SECOND
}

impl Clock {
    /// With days and months that begin in `zone`.
    pub(crate) fn new(zone: TimeZone) -> Self {
        let now = nanos(Instant::now());
        let wall = Timestamp::now();
        let calendar = calendar(&zone, wall, now);
        Self { zone, read: Cell::new((now, wall, calendar)) }
    }

    /// The moment `at`, which must be about now.
    pub(crate) fn now(&self, at: Instant) -> Now {
        let nanos = nanos(at);
        let (read, _, known) = self.read.get();
        if nanos.saturating_sub(read) >= SECOND / 2 || nanos >= known.day_ends {
            let wall = Timestamp::now();
            self.read.set((nanos, wall, calendar(&self.zone, wall, nanos)));
        }
        let (_, wall, calendar) = self.read.get();
        Now { nanos, unix: wall.as_second(), calendar }
    }

    /// What the wall clock says at `at`, which must be about now; up to half a second late if somebody has just set it. It
    /// is read less often than it is asked for.
    pub(crate) fn wall(&self, at: Instant) -> Timestamp {
        let now = self.now(at).nanos;
        let (read, wall, _) = self.read.get();
        let since = SignedDuration::from_nanos(i64::try_from(now).unwrap_or(0) - i64::try_from(read).unwrap_or(0));
        // Not beyond the end of time.
        wall.checked_add(since).unwrap_or(wall)
    }
}

/// The day and the month that run at `wall`, which is `now` on the clock of limits.
pub(crate) fn calendar(zone: &TimeZone, wall: Timestamp, now: u64) -> Calendar {
    let local = wall.to_zoned(zone.clone());
    let date = local.date();
    let ends = |begins: Result<Zoned, jiff::Error>, otherwise: u64| match begins {
        Ok(begins) => {
            let left = begins.timestamp().as_nanosecond().saturating_sub(wall.as_nanosecond());
            now.saturating_add(u64::try_from(left).unwrap_or(0))
        }
        // Only at the end of time.
        Err(_) => now.saturating_add(otherwise * SECOND),
    };
    let tomorrow = date.tomorrow().and_then(|date| date.to_zoned(zone.clone()));
    let next_month = date.first_of_month().checked_add(1.month()).and_then(|date| date.to_zoned(zone.clone()));
    // Numbers that grow and are never 0: days since 1970, months since the year 0.
    let day = date.since(jiff::civil::Date::constant(1970, 1, 1)).map_or(0, |span| span.get_days());
    let month = i32::from(date.year()) * 12 + i32::from(date.month());
    Calendar {
        day: u32::try_from(day).unwrap_or(0) + 1,
        month: u32::try_from(month).unwrap_or(0) + 1,
        day_ends: ends(tomorrow, 86_400),
        month_ends: ends(next_month, 28 * 86_400),
    }
}

/// When the day and the month began that run at `wall`.
pub(crate) fn began(zone: &TimeZone, wall: Timestamp) -> (Timestamp, Timestamp) {
    let date = wall.to_zoned(zone.clone()).date();
    let at = |date: jiff::civil::Date| date.to_zoned(zone.clone()).map_or(wall, |zoned| zoned.timestamp());
    (at(date), at(date.first_of_month()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(zone: &str, wall: &str) -> Calendar {
        calendar(&TimeZone::get(zone).unwrap(), wall.parse().unwrap(), 1000)
    }

    #[test]
    fn days_and_months_end_where_people_live() {
        let hours = |calendar: &Calendar| (calendar.day_ends - 1000) as f64 / 3.6e12;
        let utc = at("UTC", "2026-11-21T18:00:00Z");
        assert_eq!(hours(&utc), 6.0);
        assert_eq!((utc.month_ends - 1000) / SECOND, 6 * 3600 + 9 * 86_400);
        assert_eq!(hours(&at("Asia/Tokyo", "2026-11-21T14:59:59Z")) * 3600.0, 1.0);
        // The day on which clocks go back has 25 hours, the one on which they go forward 23.
        assert_eq!(hours(&at("Europe/Berlin", "2026-10-24T22:00:00Z")), 25.0);
        assert_eq!(hours(&at("America/New_York", "2026-03-08T05:00:00Z")), 23.0);
    }

    #[test]
    fn numbers_grow() {
        let mut last = (0, 0);
        for wall in ["2026-12-30T12:00:00Z", "2026-12-31T12:00:00Z", "2027-01-01T12:00:00Z", "2027-02-01T00:00:00Z"] {
            let calendar = at("UTC", wall);
            assert!(calendar.day > last.0 && calendar.month >= last.1);
            last = (calendar.day, calendar.month);
        }
        assert_eq!(last.1 - at("UTC", "2026-12-30T12:00:00Z").month, 2);
    }

    #[test]
    fn the_wall_clock_goes_on_between_two_readings() {
        let clock = Clock::new(TimeZone::UTC);
        let (before, at) = (Timestamp::now(), Instant::now());
        let apart = |wall: Timestamp, ahead: i64| {
            let ahead = SignedDuration::from_millis(ahead);
            (wall.duration_since(before) - ahead).abs() < SignedDuration::from_millis(100)
        };
        // Within one reading: a machine that stands still meanwhile stands still for both clocks.
        assert!(apart(clock.wall(at), 0));
        assert!(apart(clock.wall(at + std::time::Duration::from_millis(400)), 400));
        // What is asked of the time before the reading is answered as well.
        assert!(clock.wall(at - std::time::Duration::from_millis(1)) < clock.wall(at));
    }

    #[test]
    fn a_worker_sees_the_day_end_at_once() {
        let clock = Clock::new(TimeZone::UTC);
        let now = clock.now(Instant::now());
        assert!(now.calendar.day_ends > now.nanos && now.calendar.month_ends >= now.calendar.day_ends);
        let (day, month) = began(&TimeZone::UTC, "2026-11-21T18:00:00Z".parse().unwrap());
        assert_eq!(
            (day.to_string(), month.to_string()),
            ("2026-11-21T00:00:00Z".into(), "2026-11-01T00:00:00Z".into())
        );
    }
}
