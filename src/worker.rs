//! The worker: reads the plan of its node, measures each volume, and pushes once.
//!
//! Volumes are measured on threads that nobody waits for, because a thread that hangs in the kernel can be neither ended nor
//! joined. This thread alone owns the deadline, the results and the push: whatever has not answered when the time is up gets
//! the state `timeout`, and the others' numbers are pushed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use lp_measure::{Config, Measurement, State, Target};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::cli::{PushArguments, WorkerArguments};
use crate::confine;
use crate::exit::Exit;
use crate::metrics::{self, WorkerTimes};
use crate::pushgateway::{GroupingKey, GroupingLabels, Pushgateway, PushgatewayConfig};
use crate::summary::{Example, WorkerSummary, peak_memory_bytes};
use crate::text::one_line;
use crate::volumes::node_plan::{NodePlan, ReadError};

/// What the push may take at the end of the budget: this share of it ...
const PUSH_SHARE: u32 = 4;
/// ... and not more than this, which is enough for a Pushgateway that is being restarted.
const PUSH_BUDGET_MAX: Duration = Duration::from_secs(60);
/// What the push may take after SIGTERM: it has to end within the pod's grace period.
const PUSH_BUDGET_AFTER_SIGNAL: Duration = Duration::from_secs(8);
/// What one try of the push may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest detail of a volume without a number: names inside of volumes are anybody's.
const DETAIL_MAX_CHARS: usize = 500;
/// How long the measuring threads may take to say that the time is up, before they count as hanging.
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// The random delay at the start takes at most this share of the budget.
const START_DELAY_SHARE: u32 = 10;

/// Runs the worker.
pub fn main(arguments: WorkerArguments) -> Exit {
    let started = Instant::now();
    // Before the first thread: the filter holds for this one and those that it makes.
    let confined = match confine::confine() {
        Ok(()) => confine::refuses_open_by_handle(),
        Err(error) => {
            warn!("{error}; the worker goes on without its own filter");
            false
        }
    };
    let WorkerArguments {
        plan,
        termination_message,
        push,
        start_delay_max,
        pace,
        log: _,
    } = arguments;
    let settings = Settings {
        plan,
        push,
        start_delay_max,
        config: pace.change(Config::gentle()),
    };
    let mut summary = WorkerSummary {
        confined,
        ..WorkerSummary::default()
    };
    let exit = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(work(settings, started, &mut summary));
            // Tasks of the runtime may hang as its threads do.
            runtime.shutdown_background();
            exit
        }
        Err(cause) => fail(&mut summary, Exit::Unexpected, &format!("could not start: {cause}")),
    };
    summary.seconds = started.elapsed().as_secs_f64();
    summary.peak_memory_bytes = peak_memory_bytes();
    let message = summary.to_message();
    info!(target: "lp_exporter::summary", "{message}");
    if let Err(cause) = write_termination_message(&termination_message, &message) {
        warn!(
            "could not write the summary to {}: {cause}",
            termination_message.display()
        );
    }
    exit
}

fn fail(summary: &mut WorkerSummary, exit: Exit, why: &str) -> Exit {
    error!("{why}");
    summary.error = Some(why.to_owned());
    exit
}

/// What a worker is told by its command line.
struct Settings {
    plan: PathBuf,
    push: PushArguments,
    start_delay_max: Duration,
    config: Config,
}

async fn work(settings: Settings, started: Instant, summary: &mut WorkerSummary) -> Exit {
    let Settings {
        plan,
        push,
        start_delay_max,
        config,
    } = settings;
    let plan = match read_plan(&plan) {
        Ok(plan) => plan,
        Err(error) => {
            let is_version = matches!(error.downcast_ref(), Some(ReadError::Version { .. }));
            let exit = if is_version {
                Exit::PlanVersion
            } else {
                Exit::BadConfiguration
            };
            return fail(summary, exit, &format!("{error:#}"));
        }
    };
    summary.node.clone_from(&plan.node);
    summary.run.clone_from(&plan.run.id);
    let (pushgateway, grouping_labels) = match pushgateway(push) {
        Ok(pushgateway) => pushgateway,
        Err(error) => return fail(summary, Exit::BadConfiguration, &format!("{error:#}")),
    };
    let mut terminated = match signal(SignalKind::terminate()) {
        Ok(terminated) => terminated,
        Err(error) => {
            return fail(
                summary,
                Exit::Unexpected,
                &format!("could not wait for SIGTERM: {error}"),
            );
        }
    };
    // A plan is compressed JSON: what a budget cannot be is cut to what it can.
    let budget = Duration::try_from_secs_f64(plan.budget_seconds).unwrap_or(Duration::ZERO);
    let push_budget = (budget / PUSH_SHARE).min(PUSH_BUDGET_MAX);
    let deadline = started + (budget - push_budget);
    let delay = random_up_to(start_delay_max.min(budget / START_DELAY_SHARE));
    let (measurements, was_terminated) = measure(&plan, config, delay, deadline, &mut terminated).await;
    log_failures(&plan, &measurements);
    tell(summary, &plan, &measurements);
    let times = WorkerTimes {
        measured_unix_seconds: unix_seconds(),
        duration_seconds: started.elapsed().as_secs_f64(),
    };
    let body = metrics::usage_group(&plan, &measurements, times);
    let key = GroupingKey::for_node(&plan.node, &grouping_labels);
    let push_budget = if was_terminated {
        PUSH_BUDGET_AFTER_SIGNAL
    } else {
        push_budget
    };
    let pushed = pushgateway.put(&key, &body, push_budget);
    tokio::pin!(pushed);
    let pushed = tokio::select! {
        pushed = &mut pushed => Some(pushed),
        // The grace period has begun: the rest of it is all that is left.
        _ = terminated.recv() => tokio::time::timeout(PUSH_BUDGET_AFTER_SIGNAL, pushed).await.ok(),
    };
    match pushed {
        Some(Ok(())) => {
            summary.delivered = true;
            info!("measured and delivered {} volumes of {}", plan.volumes.len(), plan.node);
            if was_terminated { Exit::Interrupted } else { Exit::Done }
        }
        Some(Err(error)) => fail(summary, Exit::Pushgateway, &error.to_string()),
        None => fail(
            summary,
            Exit::Pushgateway,
            "told to end before the Pushgateway had taken the numbers",
        ),
    }
}

fn read_plan(path: &Path) -> anyhow::Result<NodePlan> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read the plan {}", path.display()))?;
    NodePlan::decode(&bytes).with_context(|| format!("could not use the plan {}", path.display()))
}

/// The client for the Pushgateway, and the labels of its grouping keys.
pub(crate) fn pushgateway(push: PushArguments) -> anyhow::Result<(Pushgateway, GroupingLabels)> {
    let PushArguments {
        pushgateway_url,
        pushgateway_ca_file,
        grouping_labels,
    } = push;
    let grouping_labels = GroupingLabels::new(grouping_labels, metrics::label_names())?;
    let config = PushgatewayConfig {
        url: pushgateway_url,
        ca_file: pushgateway_ca_file,
        request_timeout: REQUEST_TIMEOUT,
    };
    Ok((Pushgateway::new(config)?, grouping_labels))
}

/// Measures the volumes of the plan until all are done, `deadline` is there, or SIGTERM comes, and whether it came.
async fn measure(
    plan: &NodePlan,
    config: Config,
    delay: Duration,
    deadline: Instant,
    terminated: &mut Signal,
) -> (Vec<Measurement>, bool) {
    let mut unanswered = State::Timeout;
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        _ = terminated.recv() => unanswered = State::Cancelled,
    }
    let (deliver, mut delivered) = mpsc::unbounded_channel();
    let mut results: Vec<Option<Measurement>> = Vec::with_capacity(plan.volumes.len());
    let mut targets = Vec::new();
    let mut volume_of_target = Vec::new();
    for (index, volume) in plan.volumes.iter().enumerate() {
        let base = &plan.bases[volume.base];
        if volume.left_alone {
            let detail = "not touched: an earlier worker had no answer for it in time, and does not end";
            results.push(Some(Measurement::without_number(
                State::Timeout,
                Some(detail.to_owned()),
            )));
            continue;
        }
        match (&base.mounted_at, beneath(&base.path, &volume.path)) {
            (Some(mounted_at), Some(relative)) => {
                targets.push(Target {
                    base: PathBuf::from(mounted_at),
                    relative,
                });
                volume_of_target.push(index);
                results.push(None);
            }
            (None, _) => {
                let detail = format!("{} cannot be mounted on this node", base.path);
                results.push(Some(Measurement::without_number(State::BaseMissing, Some(detail))));
            }
            (_, None) => {
                let detail = format!("{} does not lie below {}", volume.path, base.path);
                results.push(Some(Measurement::without_number(State::EscapesBase, Some(detail))));
            }
        }
    }
    let mut missing = targets.len();
    let config = Config {
        total_budget: Some(deadline.saturating_duration_since(Instant::now())),
        ..config
    };
    let running = lp_measure::start(targets, config, move |target, measurement| {
        // The other end is gone only when the time is up.
        let _ = deliver.send((target, measurement));
    });
    while missing > 0 && unanswered == State::Timeout {
        tokio::select! {
            Some((target, measurement)) = delivered.recv() => {
                if results[volume_of_target[target]].replace(measurement).is_none() {
                    missing -= 1;
                }
            }
            () = tokio::time::sleep_until((deadline + ANSWER_PATIENCE).into()) => break,
            _ = terminated.recv() => {
                unanswered = State::Cancelled;
            }
        }
    }
    running.cancel();
    let detail = |state| match state {
        State::Cancelled => "the worker was told to end first",
        _ => "the time of the worker was up first",
    };
    let results = results.into_iter().map(|result| {
        result.unwrap_or_else(|| Measurement::without_number(unanswered, Some(detail(unanswered).to_owned())))
    });
    (results.collect(), unanswered == State::Cancelled)
}

/// A random time, evenly from nothing to `longest`; no time at all where the kernel gives no random bytes.
fn random_up_to(longest: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => longest.mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => Duration::ZERO,
    }
}

/// The way from a base directory to a path beneath it.
fn beneath(base: &str, path: &str) -> Option<PathBuf> {
    let relative = path.strip_prefix(base)?.strip_prefix('/')?;
    (!relative.is_empty()).then(|| PathBuf::from(relative))
}

fn log_failures(plan: &NodePlan, measurements: &[Measurement]) {
    for (volume, measurement) in plan.volumes.iter().zip(measurements) {
        if measurement.state != State::Complete {
            warn!(
                persistentvolume = volume.persistentvolume,
                path = volume.path,
                state = measurement.state.as_str(),
                "no number: {}",
                detail(measurement)
            );
        }
    }
}

fn tell(summary: &mut WorkerSummary, plan: &NodePlan, measurements: &[Measurement]) {
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for (volume, measurement) in plan.volumes.iter().zip(measurements) {
        *states.entry(measurement.state.as_str().to_owned()).or_default() += 1;
        if measurement.state != State::Complete {
            summary.examples.push(Example {
                persistentvolume: volume.persistentvolume.clone(),
                state: measurement.state.as_str().to_owned(),
                detail: format!("{}: {}", volume.path, detail(measurement)),
            });
        }
    }
    summary.states = states;
}

/// What is known of a measurement without a number: its own words, and the first place that could not be read.
fn detail(measurement: &Measurement) -> String {
    let place = measurement
        .first_errors
        .first()
        .map(|place| format!("{}: {}", place.path.display(), place.error));
    let details: Vec<String> = [measurement.state_detail.clone(), place]
        .into_iter()
        .flatten()
        .collect();
    one_line(&details.join("; "), DETAIL_MAX_CHARS)
}

/// Writes the summary where Kubernetes put a file for it. Elsewhere nothing is made: /dev is no place for files.
fn write_termination_message(path: &Path, message: &str) -> io::Result<()> {
    match std::fs::OpenOptions::new().write(true).truncate(true).open(path) {
        Ok(mut file) => io::Write::write_all(&mut file, message.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Now, in seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
