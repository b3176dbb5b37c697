//! How fast to go: threads, rate, pressure. Pure: time and readings come in as arguments.

use std::time::Duration;

/// Threads when nothing blocks: a third one gains nothing, on any file system that was tried.
const THREADS_WARM: usize = 2;
/// More threads when they are blocked for more than this share of their time, …
const BLOCKED_MORE: f64 = 0.15;
/// (Twice as many; four times as many when blocked for more than this, so that a cold disk is busy after a few ticks.)
const BLOCKED_MUCH: f64 = 0.6;
/// … and fewer again when for less than this, …
const BLOCKED_LESS: f64 = 0.05;
/// … so many times in a row. On a cold disk with its own cache, threads wait for a processor for some moments and for the
/// disk right after: halved at each such moment, there were six threads on average where sixteen are a fifth faster.
const LESS_IN_A_ROW: u32 = 10;

/// How many threads to begin with.
pub(crate) fn threads_at_first(processors: usize, most: usize) -> usize {
    THREADS_WARM.min(processors).min(most).max(1)
}

/// How many threads to have.
#[derive(Debug)]
pub(crate) struct Threads {
    at_first: usize,
    most: usize,
    wanted: usize,
    less_in_a_row: u32,
}

impl Threads {
    pub(crate) fn new(at_first: usize, most: usize) -> Threads {
        Threads {
            at_first,
            most,
            wanted: at_first,
            less_in_a_row: 0,
        }
    }

    /// How many to have next, from the share of their time for which they were blocked.
    pub(crate) fn next(&mut self, blocked: f64) -> usize {
        self.less_in_a_row = if blocked < BLOCKED_LESS {
            self.less_in_a_row + 1
        } else {
            0
        };
        if blocked > BLOCKED_MUCH {
            self.wanted = (self.wanted * 4).min(self.most);
        } else if blocked > BLOCKED_MORE {
            self.wanted = (self.wanted * 2).min(self.most);
        } else if self.less_in_a_row == LESS_IN_A_ROW {
            self.wanted = (self.wanted / 2).max(self.at_first);
            self.less_in_a_row = 0;
        }
        self.wanted
    }
}

/// Whether a reader is blocked so much that the order of its reads begins to matter; …
pub(crate) fn is_cold(blocked: f64) -> bool {
    blocked > BLOCKED_MORE
}

/// … and so little that it does not any more. Between the two it stays as it is: a slow processor hides some of a slow
/// disk.
pub(crate) fn is_warm(blocked: f64) -> bool {
    blocked < BLOCKED_LESS
}

/// What a thread did since it began, or between two readings of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// On a processor.
    pub(crate) running: Duration,
    /// Waiting for a processor.
    pub(crate) ready: Duration,
    /// Without anything to do, or told to rest.
    pub(crate) resting: Duration,
}

/// What being blocked takes of a thread's own time, which is that and being on a processor; nothing if it hardly wanted
/// to work. Waiting for a processor is neither: on a busy node it would hide how slow the disk is.
pub(crate) fn blocked_share(before: Times, after: Times, wall: Duration) -> Option<f64> {
    let working = wall.checked_sub(after.resting.saturating_sub(before.resting))?;
    if working < wall / 4 {
        return None;
    }
    let own = working.saturating_sub(after.ready.saturating_sub(before.ready));
    let running = after.running.saturating_sub(before.running);
    Some(own.saturating_sub(running).as_secs_f64() / own.as_secs_f64().max(1e-9))
}

/// The time for which a thread waited for a processor: the second number in /proc/…/schedstat.
pub(crate) fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}

/// What being blocked takes of the time of several threads, gathered over a few ticks. The kernel keeps account of the
/// time on a processor, and of what a thread does just now; the time between two ticks is taken for what it did at the
/// second. Its account of waiting for a processor comes too late for this: on a busy node it made waiting look blocked.
#[derive(Debug, Default)]
pub(crate) struct Share {
    running: Duration,
    blocked: Duration,
    samples: u32,
}

impl Share {
    /// Fewer samples say little.
    const SAMPLES: u32 = 6;

    /// Adds what one thread did in one tick.
    pub(crate) fn add(&mut self, running: Duration, tick: Duration, is_blocked: bool) {
        self.running += running;
        if is_blocked {
            self.blocked += tick.saturating_sub(running);
        }
        self.samples += 1;
    }

    /// The share, once there are samples enough; then it begins anew.
    pub(crate) fn judge(&mut self) -> Option<f64> {
        if self.samples < Share::SAMPLES {
            return None;
        }
        let Share { running, blocked, .. } = std::mem::take(self);
        Some(blocked.as_secs_f64() / (running + blocked).as_secs_f64().max(1e-9))
    }
}

/// Whether /proc/…/stat tells of a thread that waits for something else than a processor.
pub(crate) fn parse_is_blocked(stat: &str) -> bool {
    // The name before it stands in parentheses, and may hold some itself.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['D', 'S']))
}

/// Lets so many entries pass in a second, all threads together.
pub(crate) struct Rate {
    per_second: u64,
    /// When the next entry may pass, counted from the start.
    free_at: Duration,
}

impl Rate {
    /// What was not used is kept for this long: a directory's few entries need not wait one by one.
    const BURST: Duration = Duration::from_millis(10);

    /// 0 lets everything pass.
    pub(crate) fn new(per_second: u64) -> Rate {
        Rate {
            per_second,
            free_at: Duration::ZERO,
        }
    }

    /// Announces entries, and returns how long to wait before looking at them.
    pub(crate) fn announce(&mut self, now: Duration, entries: u32) -> Duration {
        if self.per_second == 0 {
            return Duration::ZERO;
        }
        let begin = self.free_at.max(now.saturating_sub(Rate::BURST));
        self.free_at = begin + Duration::from_secs(1) * entries / u32::try_from(self.per_second).unwrap_or(u32::MAX);
        begin.saturating_sub(now)
    }
}

/// Judges whether others wait for the disk, by the kernel's I/O pressure.
///
/// Our own reading raises that figure too (by a fifth to a third when cold), so the figure alone says nothing while we
/// read. When it is high we stop for a moment and see whether it goes on growing: then others wait, and we stay away until
/// it does not. When it was us, we ask again less and less often, so that asking costs little.
#[derive(Debug)]
pub(crate) struct Pressure {
    phase: Phase,
    /// The reading that the present phase began with.
    since: Duration,
    stalled: Duration,
    ask_again: Duration,
    ask_pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reading,
    /// What is in flight comes back.
    Settling,
    /// Nothing of ours is in flight: what grows now is others'.
    Listening,
}

impl Pressure {
    /// Somebody waits for this share of the time: then it matters.
    const SHARE: f64 = 0.1;
    const READING: Duration = Duration::from_millis(100);
    const SETTLING: Duration = Duration::from_millis(20);
    const LISTENING: Duration = Duration::from_millis(80);
    const ASK_PAUSE_LEAST: Duration = Duration::from_secs(1);
    const ASK_PAUSE_MOST: Duration = Duration::from_secs(8);

    pub(crate) fn new(now: Duration, stalled: Duration) -> Pressure {
        Pressure {
            phase: Phase::Reading,
            since: now,
            stalled,
            ask_again: Duration::ZERO,
            ask_pause: Pressure::ASK_PAUSE_LEAST,
        }
    }

    /// Takes a reading, and says whether to pause. `may_pause` is false when the time budget leaves no room for it.
    pub(crate) fn step(&mut self, now: Duration, stalled: Duration, may_pause: bool) -> bool {
        if !may_pause {
            self.enter(Phase::Reading, now, stalled);
            return false;
        }
        let elapsed = now.saturating_sub(self.since);
        let share = stalled.saturating_sub(self.stalled).as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        match self.phase {
            Phase::Reading if elapsed >= Pressure::READING => {
                let ask = share >= Pressure::SHARE && now >= self.ask_again;
                self.enter(if ask { Phase::Settling } else { Phase::Reading }, now, stalled);
            }
            Phase::Settling if elapsed >= Pressure::SETTLING => self.enter(Phase::Listening, now, stalled),
            Phase::Listening if elapsed >= Pressure::LISTENING => {
                if share >= Pressure::SHARE {
                    self.ask_pause = Pressure::ASK_PAUSE_LEAST;
                    self.enter(Phase::Listening, now, stalled);
                } else {
                    self.ask_again = now + self.ask_pause;
                    self.ask_pause = (self.ask_pause * 2).min(Pressure::ASK_PAUSE_MOST);
                    self.enter(Phase::Reading, now, stalled);
                }
            }
            _ => {}
        }
        self.phase != Phase::Reading
    }

    fn enter(&mut self, phase: Phase, now: Duration, stalled: Duration) {
        (self.phase, self.since, self.stalled) = (phase, now, stalled);
    }
}

/// The time for which somebody waited for a disk, in /proc/pressure/io: `some avg10=0.00 … total=12345`, microseconds.
pub(crate) fn parse_pressure(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some
        .split_ascii_whitespace()
        .find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn threads_follow_how_much_they_are_blocked() {
        let few_times = LESS_IN_A_ROW as usize - 1;
        for (shares, expected) in [
            (vec![0.9], 8),
            (vec![0.9, 0.9], 16),
            (vec![0.3], 4),
            (vec![0.3, 0.3], 8),
            (vec![0.9, 0.9, 0.9], 16),
            (vec![0.9, 0.9, 0.1], 16),
            ([vec![0.9, 0.9], vec![0.01; few_times]].concat(), 16),
            ([vec![0.9, 0.9], vec![0.01; few_times], vec![0.1, 0.0]].concat(), 16),
            ([vec![0.9, 0.9], vec![0.01; few_times + 1]].concat(), 8),
            ([vec![0.9, 0.9], vec![0.01; 2 * few_times + 2]].concat(), 4),
            (vec![0.0; 100], 2),
        ] {
            let mut threads = Threads::new(2, 16);
            let last = shares.iter().map(|share| threads.next(*share)).last();
            assert_eq!(last, Some(expected), "after shares {shares:?}");
        }
        assert_eq!(
            [(1, 16), (2, 16), (64, 16), (64, 1)].map(|(cpus, most)| threads_at_first(cpus, most)),
            [1, 2, 2, 1]
        );
    }

    #[test]
    fn resting_is_not_being_blocked() {
        let times = |running, resting| Times {
            running: ms(running),
            ready: ms(0),
            resting: ms(resting),
        };
        assert_eq!(blocked_share(times(0, 0), times(20, 0), ms(20)), Some(0.0));
        assert_eq!(blocked_share(times(5, 0), times(10, 0), ms(20)), Some(0.75));
        assert_eq!(blocked_share(times(0, 0), times(10, 10), ms(20)), Some(0.0));
        assert_eq!(blocked_share(times(0, 0), times(0, 16), ms(20)), None);
        assert_eq!(blocked_share(times(0, 0), times(0, 30), ms(20)), None);
        let starved = Times {
            ready: ms(16),
            ..times(2, 0)
        };
        assert_eq!(blocked_share(times(0, 0), starved, ms(20)), Some(0.5));
    }

    #[test]
    fn waiting_for_a_processor_is_not_being_blocked() {
        let mut share = Share::default();
        // (running ms, blocked at the tick's end): on a busy node, then on a slow disk.
        for (samples, expected) in [
            (
                [(2, false), (0, false), (5, false), (0, false), (1, false), (3, false)],
                0.0,
            ),
            (
                [(2, true), (0, true), (2, true), (0, true), (2, true), (0, false)],
                0.88,
            ),
        ] {
            for (number, (running, is_blocked)) in samples.into_iter().enumerate() {
                assert_eq!(share.judge(), None, "after {number} samples");
                share.add(ms(running), ms(10), is_blocked);
            }
            let judged = share.judge().expect("that was the last one needed");
            assert!((judged - expected).abs() < 1e-9, "{judged} for {expected}");
        }
        assert!(parse_is_blocked("12 (a ) R) D 1 2") && !parse_is_blocked("12 (a) D) R 1 2") && !parse_is_blocked(""));
    }

    #[test]
    fn the_rate_is_kept_by_all_together() {
        let mut rate = Rate::new(1000);
        assert_eq!(rate.announce(ms(1000), 64), Duration::ZERO);
        // 64 entries take 64 ms, of which 10 were saved up.
        assert_eq!(rate.announce(ms(1000), 64), ms(54));
        assert_eq!(rate.announce(ms(1000), 64), ms(118));
        assert_eq!(Rate::new(0).announce(ms(0), 1_000_000), Duration::ZERO);
    }

    /// Plays ten seconds in steps of 20 ms; `stall` says what share of a step somebody waits, by whether we pause.
    fn paused_share(stall: impl Fn(Duration, bool) -> f64, may_pause: bool) -> f64 {
        let mut pressure = Pressure::new(ms(0), ms(0));
        let (mut stalled, mut paused, mut steps_paused) = (ms(0), false, 0);
        for step in 1..=500 {
            let now = ms(step * 20);
            stalled += ms(20).mul_f64(stall(now, paused));
            paused = pressure.step(now, stalled, may_pause);
            steps_paused += u64::from(paused);
        }
        f64::from(u32::try_from(steps_paused).expect("at most 500")) / 500.0
    }

    #[test]
    fn only_us_on_the_disk_hardly_ever_pauses() {
        let share = paused_share(|_, paused| if paused { 0.0 } else { 0.3 }, true);
        assert!(share > 0.0 && share <= 0.05, "{share}");
    }

    #[test]
    fn others_on_the_disk_make_us_pause_until_they_are_done() {
        let all_along = paused_share(|_, _| 0.5, true);
        assert!(all_along > 0.95, "{all_along}");
        let half = paused_share(
            |now, paused| {
                if now < ms(5000) {
                    0.5
                } else if paused {
                    0.0
                } else {
                    0.3
                }
            },
            true,
        );
        assert!((0.45..0.6).contains(&half), "{half}");
        assert_eq!(paused_share(|_, _| 0.5, false), 0.0);
        assert_eq!(paused_share(|_, _| 0.01, true), 0.0);
    }

    #[test]
    fn the_kernels_figures_are_read() {
        let text =
            "some avg10=1.00 avg60=0.00 avg300=0.00 total=2500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(parse_pressure(text), Some(Duration::from_micros(2500)));
        assert_eq!(parse_pressure("full total=7"), None);
        assert_eq!(parse_schedstat("1000 500 3\n"), Some(Duration::from_nanos(500)));
        assert_eq!(parse_schedstat(""), None);
    }
}
