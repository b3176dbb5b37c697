//! Every deadline of a run, derived from the interval in one place.
//!
//! They nest, so that the inner one always has the time to tell the outer one what happened:
//!
//! ```text
//! worker's budget < controller's clock < worker Job's activeDeadlineSeconds < CronJob's activeDeadlineSeconds < interval
//! ```

use std::time::Duration;

use thiserror::Error;

/// The shortest interval: a CronJob cannot start more often than once a minute.
pub const INTERVAL_MIN: Duration = Duration::from_secs(60);
/// The longest interval: beyond a week the numbers tell nothing.
pub const INTERVAL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest run, whatever the interval: an hour reads tens of millions of files from a rotating disk, and a run that
/// takes longer is better ended and reported than waited for until the next day.
const RUN_MAX: Duration = Duration::from_secs(3600);
/// Neighbouring deadlines lie this share of the run apart ...
const STEPS: u32 = 30;
/// ... but at least so far, so that two of them are enough for the last requests of a run ...
const STEP_MIN: Duration = Duration::from_secs(3);
/// ... and at most so far: nothing that happens in between takes longer.
const STEP_MAX: Duration = Duration::from_secs(30);
/// What the process keeps of its last steps to end in.
const END_MARGIN: Duration = Duration::from_secs(1);
/// What a Job needs between its creation and its worker's first instruction, in steps.
const POD_START_STEPS: u32 = 3;

/// The deadlines of one run. See the module for their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// What a worker may take, counted from its own start.
    pub worker_budget: Duration,
    /// When the controller stops waiting, counted from its own start.
    pub controller_clock: Duration,
    /// `activeDeadlineSeconds` of each worker's Job.
    pub worker_job: Duration,
    /// `activeDeadlineSeconds` of the CronJob's Jobs: the largest that fits, or the one that is set there.
    pub cron_job: Duration,
    /// What a worker's pod may take to start.
    pub pod_start: Duration,
    /// The least budget with which a worker is worth starting: with less it would replace good numbers by none.
    pub worker_budget_min: Duration,
    /// When everything has to be done, counted from the controller's own start: its process is killed soon after.
    pub controller_end: Duration,
}

/// The time of the Job that a run is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobClock {
    /// Its activeDeadlineSeconds.
    pub active_deadline: Duration,
    /// What of it had passed when this run's process began: an earlier attempt may have taken its share, and the start of
    /// the pod.
    pub elapsed: Duration,
}

/// Why no deadlines fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeadlineError {
    /// The interval is shorter than [`INTERVAL_MIN`] or longer than [`INTERVAL_MAX`].
    #[error(
        "the interval {0:?} is not between one minute and one week; set --interval to the time between two runs of the CronJob's schedule"
    )]
    Interval(Duration),
    /// The Job of this run may take as long as the interval or longer.
    #[error(
        "the controller's Job has activeDeadlineSeconds {job_seconds}, which is not less than the interval of {interval_seconds} s: \
         runs would overlap; lower activeDeadlineSeconds in the CronJob's jobTemplate, or raise --interval together with the schedule"
    )]
    JobNotWithinInterval {
        /// The Job's activeDeadlineSeconds.
        job_seconds: u64,
        /// The interval, in seconds.
        interval_seconds: u64,
    },
    /// The Job of this run leaves too little time for anything to be measured.
    #[error(
        "the controller's Job has {left_seconds} s left of its activeDeadlineSeconds {job_seconds}; a run needs at least \
         {needed_seconds} s: raise it in the CronJob's jobTemplate, unless this is the second attempt of a run that failed late"
    )]
    JobTooShort {
        /// The Job's activeDeadlineSeconds.
        job_seconds: u64,
        /// What is left of them.
        left_seconds: u64,
        /// The least that works, in seconds.
        needed_seconds: u64,
    },
}

/// Derives the deadlines of a run.
///
/// `interval` is the time between two runs. `job` is the time of the Job that this run is part of, if it is part of one and
/// that has a deadline; the other deadlines follow from what is left of it, since it is the one that kills.
///
/// # Errors
/// Whatever cannot nest in the order that the module states.
pub fn deadlines(interval: Duration, job: Option<JobClock>) -> Result<Deadlines, DeadlineError> {
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        return Err(DeadlineError::Interval(interval));
    }
    let step = (interval.min(RUN_MAX) / STEPS).clamp(STEP_MIN, STEP_MAX);
    let longest = interval.min(RUN_MAX) - step;
    let job = job.unwrap_or(JobClock {
        active_deadline: longest,
        elapsed: Duration::ZERO,
    });
    if job.active_deadline >= interval {
        return Err(DeadlineError::JobNotWithinInterval {
            job_seconds: job.active_deadline.as_secs(),
            interval_seconds: interval.as_secs(),
        });
    }
    let cron_job = job.active_deadline.saturating_sub(job.elapsed).min(RUN_MAX);
    // One step for each inner deadline, the start of the pods, and as much again to measure in.
    let needed = step * (2 + 2 * POD_START_STEPS);
    if cron_job < needed {
        return Err(DeadlineError::JobTooShort {
            job_seconds: job.active_deadline.as_secs(),
            left_seconds: cron_job.as_secs(),
            needed_seconds: needed.as_secs(),
        });
    }
    let worker_job = cron_job - step;
    let controller_clock = worker_job - step;
    let pod_start = step * POD_START_STEPS;
    Ok(Deadlines {
        worker_budget: controller_clock - pod_start,
        controller_clock,
        worker_job,
        cron_job,
        pod_start,
        worker_budget_min: step,
        controller_end: cron_job - END_MARGIN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn job(active_deadline_seconds: u64, elapsed_seconds: u64) -> Option<JobClock> {
        Some(JobClock {
            active_deadline: seconds(active_deadline_seconds),
            elapsed: seconds(elapsed_seconds),
        })
    }

    #[test]
    fn deadlines_nest_at_every_interval() {
        for interval_seconds in (60..=7 * 24 * 3600).step_by(37) {
            for job in [
                None,
                job(interval_seconds - 1, 0),
                job(interval_seconds - 5, 2),
                job(interval_seconds - 5, 25),
            ] {
                let interval = seconds(interval_seconds);
                let d =
                    deadlines(interval, job).unwrap_or_else(|error| panic!("{interval_seconds} s, {job:?}: {error}"));
                assert!(d.worker_budget < d.controller_clock, "{d:?}");
                assert!(d.controller_clock < d.worker_job, "{d:?}");
                assert!(d.worker_job < d.cron_job, "{d:?}");
                assert!(d.cron_job < interval, "{d:?}");
                assert!(d.worker_budget + d.pod_start <= d.controller_clock, "{d:?}");
                assert!(
                    d.controller_clock + seconds(4) <= d.controller_end && d.controller_end < d.cron_job,
                    "{d:?}"
                );
                assert!(d.worker_budget_min < d.worker_budget, "{d:?}");
            }
        }
    }

    #[test]
    fn five_minutes() {
        let expected = Deadlines {
            worker_budget: seconds(240),
            controller_clock: seconds(270),
            worker_job: seconds(280),
            cron_job: seconds(290),
            pod_start: seconds(30),
            worker_budget_min: seconds(10),
            controller_end: seconds(289),
        };
        assert_eq!(deadlines(seconds(300), None), Ok(expected));
        assert_eq!(deadlines(seconds(300), job(290, 0)), Ok(expected));
        // A second attempt has what the first one left.
        let second = deadlines(seconds(300), job(290, 75)).map(|d| (d.worker_budget, d.controller_clock, d.worker_job));
        assert_eq!(second, Ok((seconds(165), seconds(195), seconds(205))));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let not_within = |job_seconds, interval_seconds| DeadlineError::JobNotWithinInterval {
            job_seconds,
            interval_seconds,
        };
        let too_short = |job_seconds, left_seconds| DeadlineError::JobTooShort {
            job_seconds,
            left_seconds,
            needed_seconds: 80,
        };
        for (interval, job, expected) in [
            (59, None, DeadlineError::Interval(seconds(59))),
            (0, None, DeadlineError::Interval(seconds(0))),
            (
                7 * 24 * 3600 + 1,
                None,
                DeadlineError::Interval(seconds(7 * 24 * 3600 + 1)),
            ),
            (300, job(300, 0), not_within(300, 300)),
            (60, job(290, 0), not_within(290, 60)),
            (300, job(30, 0), too_short(30, 30)),
            (300, job(290, 250), too_short(290, 40)),
            (300, job(290, 500), too_short(290, 0)),
        ] {
            assert_eq!(deadlines(seconds(interval), job), Err(expected));
        }
    }
}
