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
/// ... but at least so far, which is what a request to the API server or the Pushgateway may take ...
const STEP_MIN: Duration = Duration::from_secs(2);
/// ... and at most so far: nothing that happens in between takes longer.
const STEP_MAX: Duration = Duration::from_secs(30);
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
        "the controller's Job has activeDeadlineSeconds {job_seconds}; a run needs at least {needed_seconds} s: raise it in the CronJob's jobTemplate"
    )]
    JobTooShort {
        /// The Job's activeDeadlineSeconds.
        job_seconds: u64,
        /// The least that works, in seconds.
        needed_seconds: u64,
    },
}

/// Derives the deadlines of a run.
///
/// `interval` is the time between two runs. `job_active_deadline` is `activeDeadlineSeconds` of the Job that this run is part
/// of, if it is part of one and has a deadline; the other deadlines follow from it, since it is the one that kills.
///
/// # Errors
/// Whatever cannot nest in the order that the module states.
pub fn deadlines(interval: Duration, job_active_deadline: Option<Duration>) -> Result<Deadlines, DeadlineError> {
    if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval) {
        return Err(DeadlineError::Interval(interval));
    }
    let step = (interval.min(RUN_MAX) / STEPS).clamp(STEP_MIN, STEP_MAX);
    let cron_job = match job_active_deadline {
        None => interval.min(RUN_MAX) - step,
        Some(job) if job >= interval => {
            return Err(DeadlineError::JobNotWithinInterval {
                job_seconds: job.as_secs(),
                interval_seconds: interval.as_secs(),
            });
        }
        Some(job) => job,
    };
    // Below the CronJob's deadline: one step for each inner deadline, the start of the pods, and as much again to measure in.
    let needed = step * (2 + 2 * POD_START_STEPS);
    if cron_job < needed {
        return Err(DeadlineError::JobTooShort {
            job_seconds: cron_job.as_secs(),
            needed_seconds: needed.as_secs(),
        });
    }
    let worker_job = cron_job.min(RUN_MAX) - step;
    let controller_clock = worker_job - step;
    let pod_start = step * POD_START_STEPS;
    Ok(Deadlines {
        worker_budget: controller_clock - pod_start,
        controller_clock,
        worker_job,
        cron_job,
        pod_start,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn deadlines_nest_at_every_interval() {
        for interval_seconds in (60..=7 * 24 * 3600).step_by(37) {
            for job in [
                None,
                Some(seconds(interval_seconds - 10)),
                Some(seconds(interval_seconds - 1)),
            ] {
                let interval = seconds(interval_seconds);
                let d =
                    deadlines(interval, job).unwrap_or_else(|error| panic!("{interval_seconds} s, {job:?}: {error}"));
                assert!(d.worker_budget < d.controller_clock, "{d:?}");
                assert!(d.controller_clock < d.worker_job, "{d:?}");
                assert!(d.worker_job < d.cron_job, "{d:?}");
                assert!(d.cron_job < interval, "{d:?}");
                assert!(d.worker_budget + d.pod_start <= d.controller_clock, "{d:?}");
                assert!(d.worker_budget >= seconds(20), "{d:?}");
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
        };
        assert_eq!(deadlines(seconds(300), None), Ok(expected));
        assert_eq!(deadlines(seconds(300), Some(seconds(290))), Ok(expected));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (interval, job, expected) in [
            (59, None, DeadlineError::Interval(seconds(59))),
            (0, None, DeadlineError::Interval(seconds(0))),
            (
                7 * 24 * 3600 + 1,
                None,
                DeadlineError::Interval(seconds(7 * 24 * 3600 + 1)),
            ),
            (
                300,
                Some(300),
                DeadlineError::JobNotWithinInterval {
                    job_seconds: 300,
                    interval_seconds: 300,
                },
            ),
            (
                60,
                Some(290),
                DeadlineError::JobNotWithinInterval {
                    job_seconds: 290,
                    interval_seconds: 60,
                },
            ),
            (
                300,
                Some(30),
                DeadlineError::JobTooShort {
                    job_seconds: 30,
                    needed_seconds: 80,
                },
            ),
        ] {
            assert_eq!(deadlines(seconds(interval), job.map(seconds)), Err(expected));
        }
    }
}
