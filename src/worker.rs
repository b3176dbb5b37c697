//! The worker: reads the plan of its node, measures each volume, and pushes once.
//!
//! Volumes are measured on threads that nobody waits for, because a thread that hangs in the kernel can be neither ended nor
//! joined. This thread alone owns the deadline, the results and the push: whatever has not answered when the time is up gets
//! the state `timeout`, and the others' numbers are pushed.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use lp_measure::{
    Config, DirectoryId, FileSystem, Measurement, MountTable, Orphans, Search, SearchConfig, State, Target, Wanted,
};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::cli::{PushArguments, ServerArguments, WorkerArguments};
use crate::confine;
use crate::deadlines::INTERVAL_MAX;
use crate::exit::Exit;
use crate::file_systems::file_systems;
use crate::metrics::{self, Found, WorkerTimes};
use crate::orphans::{self, Orphan, OrphanCount};
use crate::pushgateway::{GroupingKey, GroupingLabels, Pushgateway, PushgatewayConfig};
use crate::runtime::block_on;
use crate::summary::{Example, OrphanExample, WorkerSummary, peak_memory_bytes};
use crate::text::one_line;
use crate::volumes::collect::Collected;
use crate::volumes::node_plan::{Base, NodePlan, ReadError};

/// What the push may take at the end of the budget: this share of it ...
const PUSH_SHARE: u32 = 4;
/// ... and not more than this, unless something else is set: enough for a Pushgateway that is being restarted.
const PUSH_BUDGET_MAX: Duration = Duration::from_secs(60);
/// What the push may take after SIGTERM: it has to end within the pod's grace period.
const PUSH_BUDGET_AFTER_SIGNAL: Duration = Duration::from_secs(8);
/// What one try of the push may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest detail of a volume without a number: names inside of volumes are anybody's.
const DETAIL_MAX_CHARS: usize = 500;
/// So many orphans of a node are named in the log, the largest first.
const ORPHANS_LOGGED_MAX: usize = 10;
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
    let exit = match block_on(work(settings, started, &mut summary)) {
        Ok(exit) => exit,
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
    let budget = Duration::try_from_secs_f64(plan.budget_seconds)
        .unwrap_or_default()
        .min(INTERVAL_MAX);
    let push_budget = (budget / PUSH_SHARE).min(pushgateway.budget_max());
    let deadline = started + (budget - push_budget);
    let delay = random_up_to(start_delay_max.min(budget / START_DELAY_SHARE));
    let mut end = End {
        deadline,
        terminated: &mut terminated,
        was_terminated: false,
    };
    end.rest(delay).await;
    let found = measure(&plan, config, &mut end).await;
    let was_terminated = end.was_terminated;
    log_failures(&plan, &found.volumes);
    log_orphans(&plan, &found);
    tell(summary, &plan, &found);
    let times = WorkerTimes {
        measured_unix_seconds: unix_seconds(),
        duration_seconds: started.elapsed().as_secs_f64(),
    };
    let body = metrics::usage_group(&plan, &found, times);
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
        server,
        grouping_labels,
    } = push;
    let grouping_labels = GroupingLabels::new(grouping_labels, metrics::label_names())?;
    Ok((pushgateway_at(server)?, grouping_labels))
}

/// The client of a Pushgateway.
pub(crate) fn pushgateway_at(server: ServerArguments) -> anyhow::Result<Pushgateway> {
    let ServerArguments {
        pushgateway_url,
        pushgateway_ca_file,
        pushgateway_client_certificate_file,
        pushgateway_client_key_file,
        pushgateway_server_name,
        pushgateway_username_file,
        pushgateway_password_file,
        pushgateway_bearer_token_file,
        push_budget,
    } = server;
    let config = PushgatewayConfig {
        url: pushgateway_url,
        ca_file: pushgateway_ca_file,
        client_certificate_file: pushgateway_client_certificate_file,
        client_key_file: pushgateway_client_key_file,
        server_name: pushgateway_server_name,
        username_file: pushgateway_username_file,
        password_file: pushgateway_password_file,
        bearer_token_file: pushgateway_bearer_token_file,
        request_timeout: REQUEST_TIMEOUT,
        budget_max: push_budget.unwrap_or(PUSH_BUDGET_MAX),
    };
    Ok(Pushgateway::new(config)?)
}

/// When to stop measuring: at the deadline, or when SIGTERM comes.
struct End<'a> {
    deadline: Instant,
    terminated: &'a mut Signal,
    was_terminated: bool,
}

impl End<'_> {
    /// Sleeps, unless SIGTERM comes.
    async fn rest(&mut self, delay: Duration) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = self.terminated.recv() => self.was_terminated = true,
        }
    }

    /// Takes what comes until so much is there or it is time to stop.
    async fn take<T>(&mut self, mut missing: usize, inbox: &mut mpsc::UnboundedReceiver<T>, mut on: impl FnMut(T)) {
        while missing > 0 && !self.was_terminated {
            tokio::select! {
                Some(one) = inbox.recv() => {
                    on(one);
                    missing -= 1;
                }
                () = tokio::time::sleep_until((self.deadline + ANSWER_PATIENCE).into()) => break,
                _ = self.terminated.recv() => self.was_terminated = true,
            }
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// What has not answered now, and never will.
    fn unanswered(&self) -> Measurement {
        let (state, detail) = if self.was_terminated {
            (State::Cancelled, "the worker was told to end first")
        } else {
            (State::Timeout, "the time of the worker was up first")
        };
        Measurement::without_number(state, Some(detail.to_owned()))
    }
}

/// Measures targets until it is time to stop, each once.
async fn measure_targets(targets: Vec<Target>, config: &Config, end: &mut End<'_>) -> Vec<Measurement> {
    let (deliver, mut delivered) = mpsc::unbounded_channel();
    let mut results: Vec<Option<Measurement>> = vec![None; targets.len()];
    let config = Config {
        total_budget: Some(end.left()),
        ..config.clone()
    };
    let running = lp_measure::start(targets, config, move |target, measurement| {
        // The other end is gone only when the time is up.
        let _ = deliver.send((target, measurement));
    });
    end.take(results.len(), &mut delivered, |(target, measurement)| {
        results[target] = Some(measurement);
    })
    .await;
    running.cancel();
    let unanswered = || end.unanswered();
    results
        .into_iter()
        .map(|result| result.unwrap_or_else(unanswered))
        .collect()
}

/// Measures what the plan asks for: the volumes first, and what no volume owns in the time that is left.
async fn measure(plan: &NodePlan, config: Config, end: &mut End<'_>) -> Found {
    let collects_orphans = plan.collect.contains(Collected::Orphans);
    // Before anything takes its time.
    let made_before = made_before(plan, SystemTime::now());
    let of_contents = [Collected::Volumes, Collected::Inodes, Collected::Apparent];
    let volume_wanted = if of_contents.iter().any(|one| plan.collect.contains(*one)) {
        Wanted::Contents
    } else {
        Wanted::FileSystem
    };
    let mut targets = Vec::new();
    let mut volumes: Vec<(usize, Result<usize, NoTarget>)> = Vec::with_capacity(plan.volumes.len());
    for index in turns(plan) {
        let volume = &plan.volumes[index];
        let target = if volume.left_alone {
            let detail = "not touched: an earlier worker had no answer for it in time, and does not end";
            Err((State::Timeout, detail.to_owned()))
        } else {
            target(&plan.bases[volume.base], &volume.path, volume_wanted)
        };
        volumes.push((
            index,
            target.map(|target| {
                targets.push(target);
                targets.len() - 1
            }),
        ));
    }
    volumes.sort_unstable_by_key(|(index, _)| *index);
    let asks_bases = collects_orphans || plan.collect.contains(Collected::Filesystems);
    let bases: Vec<Option<usize>> = plan
        .bases
        .iter()
        .map(|base| {
            let mounted_at = base.mounted_at.as_ref().filter(|_| asks_bases)?;
            targets.push(Target {
                base: PathBuf::from(mounted_at),
                relative: PathBuf::new(),
                wanted: Wanted::FileSystem,
            });
            Some(targets.len() - 1)
        })
        .collect();
    // Where other volumes lie below these bases is to be known before anything there is called an orphan.
    let others: Vec<(&String, usize)> = plan
        .known_paths
        .iter()
        .filter_map(|path| {
            let base = plan.bases.iter().filter(|base| beneath(&base.path, path).is_some());
            let base = base.max_by_key(|base| base.path.len())?;
            targets.push(target(base, path, Wanted::FileSystem).ok()?);
            Some((path, targets.len() - 1))
        })
        .collect();
    let measured = measure_targets(targets, &config, end).await;
    let mut doubts = others
        .iter()
        .filter_map(|(path, index)| orphans::doubt(path, &measured[*index]));
    let volumes: Vec<Measurement> = volumes
        .into_iter()
        .map(|(_, volume)| match volume {
            Ok(index) => measured[index].clone(),
            Err((state, detail)) => Measurement::without_number(state, Some(detail)),
        })
        .collect();
    let mut doubts_of_volumes = plan
        .volumes
        .iter()
        .zip(&volumes)
        .filter_map(|(volume, measurement)| orphans::doubt(&volume.path, measurement));
    let base_file_systems: Vec<Option<FileSystem>> = bases
        .iter()
        .map(|index| measured[(*index)?].file_system.clone())
        .collect();
    let file_systems = file_systems(plan, &base_file_systems, &volumes);
    let none = vec![None; plan.bases.len()];
    let (orphans, orphans_not_told) = if !collects_orphans {
        (none, Vec::new())
    } else if let Some(doubt) = doubts_of_volumes.next().or_else(|| doubts.next()) {
        (none, vec![format!("no directory can be called an orphan: {doubt}")])
    } else {
        let directories = measured.iter().filter_map(|one| one.directory).collect();
        find_orphans(plan, directories, made_before, &config, end).await
    };
    Found {
        volumes,
        file_systems,
        orphans,
        orphans_not_told,
    }
}

/// The volumes in another order in each run: when the time does not do for all, not always the same ones lose.
fn turns(plan: &NodePlan) -> Vec<usize> {
    let mut turns: Vec<usize> = (0..plan.volumes.len()).collect();
    turns.sort_by_cached_key(|index| {
        let mut digest = Sha256::new();
        digest.update(&plan.run.id);
        digest.update([0]);
        digest.update(&plan.volumes[*index].persistentvolume);
        <[u8; 32]>::from(digest.finalize())
    });
    turns
}

/// Why a volume is not even tried.
type NoTarget = (State, String);

/// A path below a base as a target, or why it cannot be one.
fn target(base: &Base, path: &str, wanted: Wanted) -> Result<Target, NoTarget> {
    match (&base.mounted_at, beneath(&base.path, path)) {
        (Some(mounted_at), Some(relative)) => Ok(Target {
            base: PathBuf::from(mounted_at),
            relative,
            wanted,
        }),
        (None, _) => {
            let detail = format!("{} cannot be mounted on this node", base.path);
            Err((State::BaseMissing, detail))
        }
        (_, None) => {
            let detail = format!("{path} does not lie below {}", base.path);
            Err((State::EscapesBase, detail))
        }
    }
}

/// Looks for the directories below each base that no volume owns, and measures them. Nothing for a base of which any part
/// could not be read, or for which the time was too short; then it says why.
async fn find_orphans(
    plan: &NodePlan,
    known_directories: HashSet<DirectoryId>,
    made_before: SystemTime,
    config: &Config,
    end: &mut End<'_>,
) -> (Vec<Option<Vec<Orphan>>>, Vec<String>) {
    let mut found: Vec<Option<Vec<Orphan>>> = vec![None; plan.bases.len()];
    let mut not_told = Vec::new();
    let mut searches = Vec::new();
    let mut base_of_search = Vec::new();
    let mounts = MountTable::read();
    let known = orphans::known_below(plan, &mounts);
    for (index, (base, known)) in plan.bases.iter().zip(known).enumerate() {
        if let Some(mounted_at) = &base.mounted_at {
            // The volumes of the other nodes lie there too, and this plan does not have them all.
            if mounts.may_be_shared(Path::new(mounted_at)) {
                not_told.push(format!(
                    "orphans below {} are not told: it lies on a file system that other machines may have too",
                    base.path
                ));
                continue;
            }
            let Some(known) = known.into_paths() else {
                not_told.push(format!(
                    "orphans below {} are not told: the paths of volumes that may lie there are too many or too long",
                    base.path
                ));
                continue;
            };
            // Whatever lies there is a volume's.
            if known.iter().any(|path| path.as_os_str().is_empty()) {
                not_told.push(format!(
                    "orphans below {} are not told: a volume has all of it, because its path is this directory or one above \
                     it",
                    base.path
                ));
                continue;
            }
            searches.push(Search {
                base: PathBuf::from(mounted_at),
                known,
            });
            base_of_search.push(index);
        }
    }
    let search_config = SearchConfig {
        known_directories,
        is_ignored: orphans::is_ignored,
        made_before,
        entries_per_second: config.entries_per_second,
        low_priority: config.low_priority,
    };
    let mut listed: Vec<Option<Orphans>> = vec![None; searches.len()];
    let (deliver, mut delivered) = mpsc::unbounded_channel();
    let searching = lp_measure::search(searches, search_config, move |search, orphans| {
        // The other end is gone only when the time is up.
        let _ = deliver.send((search, orphans));
    });
    end.take(listed.len(), &mut delivered, |(search, orphans)| {
        listed[search] = Some(orphans);
    })
    .await;
    searching.cancel();
    let mut targets = Vec::new();
    for (search, listed) in listed.into_iter().enumerate() {
        let base = base_of_search[search];
        let path = &plan.bases[base].path;
        match listed {
            Some(Ok(directories)) => {
                found[base] = Some(Vec::new());
                targets.extend(directories.into_iter().map(|directory| (base, directory)));
            }
            Some(Err(why)) => not_told.push(format!(
                "orphans below {path} cannot be told: {}",
                one_line(&why, DETAIL_MAX_CHARS)
            )),
            None => not_told.push(format!(
                "orphans below {path} cannot be told: the time of the worker was up first"
            )),
        }
    }
    let to_measure = targets.iter().filter_map(|(base, directory)| {
        Some(Target {
            base: PathBuf::from(plan.bases[*base].mounted_at.as_ref()?),
            relative: directory.clone(),
            wanted: Wanted::Contents,
        })
    });
    let measured = measure_targets(to_measure.collect(), config, end).await;
    // Two base paths may lead to one directory.
    let mut told: HashSet<DirectoryId> = HashSet::new();
    for ((base, directory), measurement) in targets.iter().zip(&measured) {
        // One that was deleted meanwhile is none any more.
        if measurement.state != State::Missing
            && measurement.directory.is_none_or(|directory| told.insert(directory))
            && let Some(found) = &mut found[*base]
        {
            found.push(Orphan::new(&plan.bases[*base].path, directory, measurement));
        }
    }
    (found, not_told)
}

/// What is younger may be a volume's that the run's plan does not know yet. The plan is as old as the run; `began` is when the
/// worker did, and the clocks of node and controller may differ: the earlier one counts.
fn made_before(plan: &NodePlan, began: SystemTime) -> SystemTime {
    let started = Duration::try_from_secs_f64(plan.run.started_unix_seconds).unwrap_or(Duration::ZERO);
    let age = Duration::try_from_secs_f64(plan.orphan_age_seconds).unwrap_or(Duration::MAX);
    let planned = UNIX_EPOCH.checked_add(started).unwrap_or(began);
    began
        .min(planned)
        .checked_sub(age)
        .unwrap_or(UNIX_EPOCH)
        .max(UNIX_EPOCH)
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

/// Names the largest orphans, for whoever is to decide about them.
fn log_orphans(plan: &NodePlan, found: &Found) {
    for why in &found.orphans_not_told {
        warn!("{why}");
    }
    for (base, orphans) in plan.bases.iter().zip(&found.orphans) {
        match orphans {
            Some(orphans) if !orphans.is_empty() => {
                let OrphanCount { directories, bytes } = orphans::count(orphans);
                info!(
                    path = base.path,
                    directories, bytes, "directories below this base path hold no volume"
                );
            }
            _ => {}
        }
    }
    for orphan in found.largest_orphans().into_iter().take(ORPHANS_LOGGED_MAX) {
        info!(path = orphan.path, bytes = orphan.used_bytes, "holds no volume");
    }
}

fn tell(summary: &mut WorkerSummary, plan: &NodePlan, found: &Found) {
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for (volume, measurement) in plan.volumes.iter().zip(&found.volumes) {
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
    let largest = found.largest_orphans().into_iter();
    summary.orphans = largest
        .map(|orphan| OrphanExample {
            path: orphan.path.clone(),
            bytes: orphan.used_bytes,
        })
        .collect();
    summary.orphans_not_told = found.orphans_not_told.clone();
}

/// What is known of a measurement without a number: its own words, and the first place that could not be read.
fn detail(measurement: &Measurement) -> String {
    let said = measurement.state_detail.as_deref().unwrap_or_default();
    let place = measurement
        .first_errors
        .first()
        .map(|place| format!("{}: {}", place.path.display(), place.error))
        .filter(|place| !said.contains(place.as_str()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::collect::Collect;
    use crate::volumes::node_plan::{self, Run};

    fn plan(run: &str, volumes: &[&str]) -> NodePlan {
        let volumes = volumes.iter().map(|name| node_plan::PlannedVolume {
            persistentvolume: (*name).to_owned(),
            namespace: None,
            persistentvolumeclaim: None,
            storageclass: String::new(),
            path: String::new(),
            base: 0,
            left_alone: false,
            capacity_bytes: 1,
        });
        NodePlan {
            version: node_plan::VERSION,
            run: Run {
                id: run.to_owned(),
                started_unix_seconds: 0.0,
                owner: crate::owner::Owner::default(),
            },
            node: String::new(),
            budget_seconds: 1.0,
            bases: Vec::new(),
            other_base_paths: Vec::new(),
            volumes: volumes.collect(),
            known_paths: Vec::new(),
            known_devices: Vec::new(),
            collect: Collect::everything(),
            orphan_age_seconds: 0.0,
        }
    }

    #[test]
    fn each_volume_comes_first_in_some_runs() {
        let mut first = BTreeMap::new();
        for run in 0..400 {
            let turns = turns(&plan(&run.to_string(), &["a", "b", "c", "d"]));
            *first.entry(turns[0]).or_insert(0) += 1;
            let mut sorted = turns.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3], "each has its turn");
        }
        assert!(first.len() == 4 && first.values().all(|count| *count > 50), "{first:?}");
    }

    #[test]
    fn the_earlier_of_two_clocks_says_what_is_old() {
        for (began_seconds, started_unix_seconds, orphan_age_seconds, expected_seconds) in [
            (10_000, 9_000.0, 600.0, 8_400),
            (8_000, 9_000.0, 600.0, 7_400),
            (8_000, 9_000.0, 0.0, 8_000),
            (8_000, 9_000.0, 1e6, 0),
            (8_000, 9_000.0, f64::INFINITY, 0),
            (8_000, f64::NAN, 600.0, 0),
            (8_000, -1.0, 600.0, 0),
            (8_000, 1e300, 600.0, 0),
        ] {
            let mut plan = plan("run", &[]);
            plan.run.started_unix_seconds = started_unix_seconds;
            plan.orphan_age_seconds = orphan_age_seconds;
            let began = UNIX_EPOCH + Duration::from_secs(began_seconds);
            let expected = UNIX_EPOCH + Duration::from_secs(expected_seconds);
            assert_eq!(
                made_before(&plan, began),
                expected,
                "{began_seconds} {started_unix_seconds}"
            );
        }
    }
}
