//! Every metric family of the program, in one list, and the groups that they are pushed in.
//!
//! All are gauges, for ever: a Pushgateway refuses a name whose type differs from that of any group it holds, so a family
//! that changed its type could not be pushed beside the groups of an older release.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use lp_measure::{FileSystem, Measurement, State};

use crate::exposition::{Body, Exposition, Family};
use crate::file_systems::{BaseFileSystem, available_bytes};
use crate::orphans::{self, Orphan};
use crate::owner::Owner;
use crate::tracker::Outcome;
use crate::volumes::collect::{Collect, Collected};
use crate::volumes::node_plan::{NodePlan, PlannedVolume, Run};
use crate::volumes::plan::{PlacedVolume, Plan};
use crate::volumes::volume::{NO_NAME, SkipReason, Skipped, SkippedFacts, SourceKind};

/// The labels of every metric about a volume.
pub const VOLUME_LABELS: &[&str] = &[
    "namespace",
    "persistentvolumeclaim",
    "persistentvolume",
    "storageclass",
    "node",
];

const CAPACITY: Family = Family {
    name: "local_volume_stats_capacity_bytes",
    help: "Capacity of the PersistentVolume (spec.capacity.storage), in bytes. Nothing enforces it.",
    labels: VOLUME_LABELS,
};
const REQUESTED: Family = Family {
    name: "local_volume_stats_requested_bytes",
    help: "What the volume's claim requests now, in bytes.",
    labels: VOLUME_LABELS,
};
const VOLUME_INFO: Family = Family {
    name: "local_volume_info",
    help: "Facts of a volume, and why it is left out if it is; always 1.",
    labels: &[
        "namespace",
        "persistentvolumeclaim",
        "persistentvolume",
        "storageclass",
        "node",
        "phase",
        "reclaim_policy",
        "type",
        "shared",
        "reason",
    ],
};
const CREATED: Family = Family {
    name: "local_volume_created_timestamp_seconds",
    help: "When the PersistentVolume was made, in seconds since 1970, by the API server's clock.",
    labels: VOLUME_LABELS,
};
const ALERT_PERCENT: Family = Family {
    name: "local_volume_alert_percent",
    help: "The share of its capacity above which the volume's claim wants to be told, in percent.",
    labels: VOLUME_LABELS,
};
const ALERT_DISABLED: Family = Family {
    name: "local_volume_alert_disabled",
    help: "A volume whose claim wants no alerts; always 1.",
    labels: VOLUME_LABELS,
};
const USED: Family = Family {
    name: "local_volume_stats_used_bytes",
    help: "Bytes allocated to the files and directories of the volume, files with several links counted once.",
    labels: VOLUME_LABELS,
};
const APPARENT: Family = Family {
    name: "local_volume_stats_apparent_bytes",
    help: "Sizes of the files and symbolic links of the volume, each inode counted once, holes included.",
    labels: VOLUME_LABELS,
};
const INODES_USED: Family = Family {
    name: "local_volume_stats_inodes_used",
    help: "Inodes of the volume, its own directory included.",
    labels: VOLUME_LABELS,
};
const AVAILABLE: Family = Family {
    name: "local_volume_stats_available_bytes",
    help: "What the volume can still take: the rest of its capacity, or what its file system has left if that is less.",
    labels: VOLUME_LABELS,
};
/// The labels of every metric about a file system.
const FILE_SYSTEM_LABELS: &[&str] = &["node", "path", "device", "fstype"];
const FILE_SYSTEM_SIZE: Family = Family {
    name: "local_volume_filesystem_size_bytes",
    help: "Size of a file system that the base path or a volume below it lies on, in bytes.",
    labels: FILE_SYSTEM_LABELS,
};
const FILE_SYSTEM_AVAILABLE: Family = Family {
    name: "local_volume_filesystem_available_bytes",
    help: "What anybody but root can still write to the file system, in bytes.",
    labels: FILE_SYSTEM_LABELS,
};
const FILE_SYSTEM_USED: Family = Family {
    name: "local_volume_filesystem_used_bytes",
    help: "What is in use on the file system, by anybody, in bytes.",
    labels: FILE_SYSTEM_LABELS,
};
const FILE_SYSTEM_INODES: Family = Family {
    name: "local_volume_filesystem_inodes",
    help: "Inodes of the file system; 0 where it makes them as it needs them.",
    labels: FILE_SYSTEM_LABELS,
};
const FILE_SYSTEM_INODES_FREE: Family = Family {
    name: "local_volume_filesystem_inodes_free",
    help: "Free inodes of the file system.",
    labels: FILE_SYSTEM_LABELS,
};
const FILE_SYSTEM_READONLY: Family = Family {
    name: "local_volume_filesystem_readonly",
    help: "Whether the file system itself is read-only: 1 or 0.",
    labels: FILE_SYSTEM_LABELS,
};
const FILE_SYSTEM_REQUESTED: Family = Family {
    name: "local_volume_filesystem_requested_bytes",
    help: "Capacities of all volumes of the node that are measured and lie on the file system, in bytes.",
    labels: FILE_SYSTEM_LABELS,
};
const ORPHANED_DIRECTORIES: Family = Family {
    name: "local_volume_orphaned_directories",
    help: "Directories below the base path that no PersistentVolume owns.",
    labels: &["node", "path"],
};
const ORPHANED_BYTES: Family = Family {
    name: "local_volume_orphaned_bytes",
    help: "Bytes allocated to the directories below the base path that no PersistentVolume owns.",
    labels: &["node", "path"],
};
const SCAN_STATE: Family = Family {
    name: "local_volume_scan_state",
    help: "How the last measuring of the volume ended, and by which method; always 1. Only complete comes with numbers.",
    labels: &[
        "namespace",
        "persistentvolumeclaim",
        "persistentvolume",
        "storageclass",
        "node",
        "state",
        "method",
    ],
};
const SCAN_ERRORS: Family = Family {
    name: "local_volume_scan_errors",
    help: "Places of the volume that could not be read.",
    labels: VOLUME_LABELS,
};
const SCAN_DURATION: Family = Family {
    name: "local_volume_scan_duration_seconds",
    help: "What measuring the volume took, in seconds.",
    labels: VOLUME_LABELS,
};
const MEASURED_TIMESTAMP: Family = Family {
    name: "lp_exporter_measured_timestamp_seconds",
    help: "When the worker had measured the volumes of its node, in seconds since 1970, by the node's clock.",
    labels: &[],
};
const WORKER_DURATION: Family = Family {
    name: "lp_exporter_worker_duration_seconds",
    help: "What the worker took from its start to its push, in seconds.",
    labels: &[],
};
const BUILD_INFO: Family = Family {
    name: "lp_exporter_build_info",
    help: "The version of the program that pushed this group; always 1.",
    labels: &["version"],
};
const OWNER: Family = Family {
    name: Owner::FAMILY,
    help: "Whose the group is; always 1.",
    labels: Owner::LABELS,
};
const RUN_START: Family = Family {
    name: "lp_exporter_run_start_timestamp_seconds",
    help: "When the run began that this group is from, in seconds since 1970, by the controller's clock.",
    labels: &[],
};
const INTERVAL: Family = Family {
    name: "lp_exporter_interval_seconds",
    help: "The time between two runs, in seconds, as it is configured.",
    labels: &[],
};
const NODE_EXPECTED: Family = Family {
    name: "lp_exporter_node_expected",
    help: "A node that is to be measured in every run, as it holds volumes or every node is visited; always 1.",
    labels: &["node"],
};
const NODE_NOT_SCANNED: Family = Family {
    name: "lp_exporter_node_not_scanned",
    help: "A node that the run does not look at, with the reason; always 1. Nobody knows what lies there.",
    labels: &["node", "reason"],
};
const CLAIMS_LOST: Family = Family {
    name: "lp_exporter_claims_lost",
    help: "PersistentVolumeClaims, of every kind, whose volume is gone.",
    labels: &[],
};
const CLAIMS_UNREADABLE: Family = Family {
    name: "lp_exporter_claims_unreadable",
    help: "PersistentVolumeClaims, of every kind, that cannot be read: what they ask for is not known.",
    labels: &[],
};
const ALERT_PERCENTS_INVALID: Family = Family {
    name: "lp_exporter_alert_percents_invalid",
    help: "Claims whose annotation lp-exporter/alert-percent is no whole number from 1 to 100.",
    labels: &[],
};
const VOLUMES_LISTED: Family = Family {
    name: "lp_exporter_volumes_listed",
    help: "PersistentVolumes that the run found.",
    labels: &[],
};
const VOLUMES_SKIPPED: Family = Family {
    name: "lp_exporter_volumes_skipped",
    help: "PersistentVolumes that the plan leaves out, by reason.",
    labels: &["reason"],
};
const RUN_DURATION: Family = Family {
    name: "lp_exporter_run_duration_seconds",
    help: "What the last run took, in seconds.",
    labels: &[],
};
const RUN_COMPLETE: Family = Family {
    name: "lp_exporter_run_complete",
    help: "Whether the last run measured and delivered every node that it was to measure: 1 or 0.",
    labels: &[],
};
const NODE_MEASURED: Family = Family {
    name: "lp_exporter_node_measured",
    help: "Whether the last run measured and delivered the node: 1 or 0.",
    labels: &["node"],
};
const NODE_NOT_MEASURED: Family = Family {
    name: "lp_exporter_node_not_measured",
    help: "A node that the last run did not measure or deliver, with the reason; always 1.",
    labels: &["node", "reason"],
};
const VOLUMES_MEASURED: Family = Family {
    name: "lp_exporter_volumes_measured",
    help: "Volumes of the nodes that the last run measured, by the state in which their measuring ended.",
    labels: &["state"],
};
const VOLUMES_NODE_NOT_MEASURED: Family = Family {
    name: "lp_exporter_volumes_node_not_measured",
    help: "Volumes without a new number because their node was not measured, by the node's reason.",
    labels: &["reason"],
};
const CONTROLLER_PEAK_MEMORY: Family = Family {
    name: "lp_exporter_controller_peak_memory_bytes",
    help: "The most memory that the controller held in the last run, in bytes.",
    labels: &[],
};
const WORKER_PEAK_MEMORY: Family = Family {
    name: "lp_exporter_worker_peak_memory_bytes",
    help: "The most memory that the node's worker held in the last run, in bytes.",
    labels: &["node"],
};
const WORKER_CONFINED: Family = Family {
    name: "lp_exporter_worker_confined",
    help: "Whether the node's worker saw its own system call filter refuse open_by_handle_at: 1 or 0.",
    labels: &["node"],
};
const JOBS_NOT_DELETED: Family = Family {
    name: "lp_exporter_jobs_not_deleted",
    help: "Jobs of workers that the last run was to delete and could not.",
    labels: &[],
};
const LAST_SUCCESS: Family = Family {
    name: "lp_exporter_last_success_timestamp_seconds",
    help: "When the last run that did its work ended, in seconds since 1970, by the controller's clock.",
    labels: &[],
};

/// Every family.
pub const FAMILIES: &[&Family] = &[
    &CAPACITY,
    &REQUESTED,
    &VOLUME_INFO,
    &CREATED,
    &ALERT_PERCENT,
    &ALERT_DISABLED,
    &USED,
    &APPARENT,
    &AVAILABLE,
    &INODES_USED,
    &FILE_SYSTEM_SIZE,
    &FILE_SYSTEM_AVAILABLE,
    &FILE_SYSTEM_USED,
    &FILE_SYSTEM_INODES,
    &FILE_SYSTEM_INODES_FREE,
    &FILE_SYSTEM_READONLY,
    &FILE_SYSTEM_REQUESTED,
    &ORPHANED_DIRECTORIES,
    &ORPHANED_BYTES,
    &SCAN_STATE,
    &SCAN_ERRORS,
    &SCAN_DURATION,
    &MEASURED_TIMESTAMP,
    &WORKER_DURATION,
    &BUILD_INFO,
    &OWNER,
    &RUN_START,
    &INTERVAL,
    &NODE_EXPECTED,
    &NODE_NOT_SCANNED,
    &CLAIMS_LOST,
    &CLAIMS_UNREADABLE,
    &ALERT_PERCENTS_INVALID,
    &VOLUMES_LISTED,
    &VOLUMES_SKIPPED,
    &RUN_DURATION,
    &RUN_COMPLETE,
    &NODE_MEASURED,
    &NODE_NOT_MEASURED,
    &VOLUMES_MEASURED,
    &VOLUMES_NODE_NOT_MEASURED,
    &CONTROLLER_PEAK_MEMORY,
    &WORKER_PEAK_MEMORY,
    &WORKER_CONFINED,
    &JOBS_NOT_DELETED,
    &LAST_SUCCESS,
];

/// Every label name that a series uses, some more than once: a grouping label of that name would overwrite it.
pub fn label_names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.labels.iter().copied())
}

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The group of the controller: what is known before anything is measured. `claim_labels` are the names of the labels of
/// claims that are told with the facts.
pub fn capacity_group(plan: &Plan, run: &Run, interval: Duration, collect: &Collect, claim_labels: &[String]) -> Body {
    let mut exposition = Exposition::new();
    if collect.contains(Collected::Volumes) {
        let capacities = volumes(plan).map(|(node, volume)| (labels(volume, node), volume.capacity_bytes as f64));
        exposition.family(&CAPACITY, capacities);
        let requested =
            volumes(plan).filter_map(|(node, volume)| Some((labels(volume, node), volume.requested_bytes? as f64)));
        exposition.family(&REQUESTED, requested);
    }
    if collect.contains(Collected::Facts) {
        facts(&mut exposition, plan, claim_labels);
    }
    exposition.family(
        &NODE_EXPECTED,
        plan.nodes.iter().map(|node| ([node.name.as_str()], 1.0)),
    );
    let not_scanned = plan.nodes_not_scanned.iter();
    exposition.family(
        &NODE_NOT_SCANNED,
        not_scanned.map(|(node, reason)| ([node.as_str(), reason.as_str()], 1.0)),
    );
    exposition.value(&VOLUMES_LISTED, plan.volumes_listed() as f64);
    let skipped = plan.skipped_by_reason();
    exposition.family(
        &VOLUMES_SKIPPED,
        skipped.iter().map(|(reason, count)| ([reason.as_str()], *count as f64)),
    );
    exposition.value(&CLAIMS_LOST, plan.claims_lost.len() as f64);
    exposition.value(&CLAIMS_UNREADABLE, plan.claims_unreadable as f64);
    exposition.value(&ALERT_PERCENTS_INVALID, plan.invalid_alert_percents.len() as f64);
    exposition.value(&INTERVAL, interval.as_secs_f64());
    finish(exposition, run)
}

/// Every volume that is to be measured, with its node.
fn volumes(plan: &Plan) -> impl Iterator<Item = (&str, &PlacedVolume)> {
    plan.nodes
        .iter()
        .flat_map(|node| node.volumes.iter().map(|volume| (node.name.as_str(), volume)))
}

/// Every volume that is left out and of which something can be told. What is not node-local is not ours to tell of, and two
/// without a name would be one series twice, for which the Pushgateway refuses the whole group.
fn left_out(plan: &Plan) -> impl Iterator<Item = (&Skipped, &SkippedFacts)> {
    plan.skipped
        .iter()
        .filter(|skipped| skipped.reason != SkipReason::NotNodeLocal && skipped.persistent_volume != NO_NAME)
        .filter_map(|skipped| Some((skipped, skipped.facts.as_deref()?)))
}

fn facts(exposition: &mut Exposition, plan: &Plan, claim_labels: &[String]) {
    let no_labels = vec![String::new(); claim_labels.len()];
    let planned = volumes(plan).map(|(node, volume)| (info_labels(volume, node), &volume.claim_labels[..], 1.0));
    let skipped = left_out(plan).map(|(skipped, facts)| {
        // An object that could not be read has no claim that could be asked.
        let more = if facts.claim_labels.len() == claim_labels.len() {
            &facts.claim_labels
        } else {
            &no_labels
        };
        (skipped_info_labels(skipped, facts), &more[..], 1.0)
    });
    exposition.family_with(&VOLUME_INFO, claim_labels, planned.chain(skipped));
    let planned =
        volumes(plan).filter_map(|(node, volume)| Some((labels(volume, node), volume.created_unix_seconds? as f64)));
    let skipped = left_out(plan)
        .filter_map(|(skipped, facts)| Some((skipped_labels(skipped, facts), facts.created_unix_seconds? as f64)));
    exposition.family(&CREATED, planned.chain(skipped));
    let percents =
        volumes(plan).filter_map(|(node, volume)| Some((labels(volume, node), f64::from(volume.alert_percent?))));
    exposition.family(&ALERT_PERCENT, percents);
    let disabled = volumes(plan).filter(|(_, volume)| volume.alert_disabled);
    exposition.family(
        &ALERT_DISABLED,
        disabled.map(|(node, volume)| (labels(volume, node), 1.0)),
    );
}

fn labels<'a>(volume: &'a PlacedVolume, node: &'a str) -> [&'a str; 5] {
    let (namespace, claim) = volume
        .claim
        .as_ref()
        .map_or(("", ""), |(namespace, name)| (namespace, name));
    [namespace, claim, &volume.name, &volume.storage_class, node]
}

fn info_labels<'a>(volume: &'a PlacedVolume, node: &'a str) -> [&'a str; 10] {
    let [namespace, claim, name, storage_class, node] = labels(volume, node);
    [
        namespace,
        claim,
        name,
        storage_class,
        node,
        &volume.phase,
        &volume.reclaim_policy,
        volume.source.as_str(),
        true_or_false(volume.shared),
        "",
    ]
}

fn skipped_labels<'a>(skipped: &'a Skipped, facts: &'a SkippedFacts) -> [&'a str; 5] {
    let (namespace, claim) = facts
        .claim
        .as_ref()
        .map_or(("", ""), |(namespace, name)| (namespace, name));
    let node = facts.node.as_deref().unwrap_or_default();
    [namespace, claim, &skipped.persistent_volume, &facts.storage_class, node]
}

fn skipped_info_labels<'a>(skipped: &'a Skipped, facts: &'a SkippedFacts) -> [&'a str; 10] {
    let [namespace, claim, name, storage_class, node] = skipped_labels(skipped, facts);
    [
        namespace,
        claim,
        name,
        storage_class,
        node,
        &facts.phase,
        &facts.reclaim_policy,
        facts.source.map_or("", SourceKind::as_str),
        true_or_false(facts.shared),
        skipped.reason.as_str(),
    ]
}

const fn true_or_false(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// What a worker found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// One measurement for each volume of the plan, in the plan's order.
    pub volumes: Vec<Measurement>,
    /// The file systems that they and the base paths lie on.
    pub file_systems: Vec<BaseFileSystem>,
    /// For each base of the plan, in the plan's order, the directories without an owner below it; `None` where that cannot be
    /// told.
    pub orphans: Vec<Option<Vec<Orphan>>>,
    /// Why not, one text for each cause.
    pub orphans_not_told: Vec<String>,
}

impl Found {
    /// The orphans of the node, the largest first.
    pub fn largest_orphans(&self) -> Vec<&Orphan> {
        let mut orphans: Vec<&Orphan> = self.orphans.iter().flatten().flatten().collect();
        orphans.sort_by_key(|orphan| Reverse(orphan.used_bytes));
        orphans
    }
}

/// The group of a worker.
pub fn usage_group(plan: &NodePlan, found: &Found, times: WorkerTimes) -> Body {
    let Found {
        volumes,
        file_systems,
        orphans,
        orphans_not_told: _,
    } = found;
    let collects = |one| plan.collect.contains(one);
    let mut exposition = Exposition::new();
    usage(&mut exposition, plan, volumes);
    if collects(Collected::Filesystems) {
        tell_file_systems(&mut exposition, plan, file_systems);
    }
    if collects(Collected::Orphans) {
        let counts = plan.bases.iter().zip(orphans).filter_map(|(base, orphans)| {
            let labels = [plan.node.as_str(), base.path.as_str()];
            Some((labels, orphans::count(orphans.as_ref()?)))
        });
        let counts: Vec<_> = counts.collect();
        exposition.family(
            &ORPHANED_DIRECTORIES,
            counts.iter().map(|(labels, count)| (*labels, count.directories as f64)),
        );
        exposition.family(
            &ORPHANED_BYTES,
            counts
                .iter()
                .filter_map(|(labels, count)| Some((*labels, count.bytes? as f64))),
        );
    }
    exposition.value(&MEASURED_TIMESTAMP, times.measured_unix_seconds);
    exposition.value(&WORKER_DURATION, times.duration_seconds);
    finish(exposition, &plan.run)
}

/// What each volume uses, as far as it is collected.
fn usage(exposition: &mut Exposition, plan: &NodePlan, measurements: &[Measurement]) {
    let pairs = || {
        plan.volumes
            .iter()
            .zip(measurements)
            .map(|(volume, one)| (volume.label_values(&plan.node), one))
    };
    let [volumes, inodes, apparent] =
        [Collected::Volumes, Collected::Inodes, Collected::Apparent].map(|one| plan.collect.contains(one));
    if volumes {
        exposition.family(
            &USED,
            pairs().filter_map(|(labels, one)| Some((labels, one.used_bytes? as f64))),
        );
        let available = plan.volumes.iter().zip(measurements).filter_map(|(volume, one)| {
            let available = available_bytes(volume.capacity_bytes, one)?;
            Some((volume.label_values(&plan.node), available as f64))
        });
        exposition.family(&AVAILABLE, available);
    }
    if apparent {
        exposition.family(
            &APPARENT,
            pairs().filter_map(|(labels, one)| Some((labels, one.apparent_bytes? as f64))),
        );
    }
    if inodes {
        exposition.family(
            &INODES_USED,
            pairs().filter_map(|(labels, one)| Some((labels, one.inodes_used? as f64))),
        );
    }
    if volumes || inodes || apparent {
        exposition.family(
            &SCAN_STATE,
            plan.volumes
                .iter()
                .zip(measurements)
                .map(|(v, one)| (state_labels(v, &plan.node, one), 1.0)),
        );
        exposition.family(&SCAN_ERRORS, pairs().map(|(labels, one)| (labels, one.errors as f64)));
        exposition.family(&SCAN_DURATION, pairs().map(|(labels, one)| (labels, one.seconds)));
    }
}

fn tell_file_systems(exposition: &mut Exposition, plan: &NodePlan, file_systems: &[BaseFileSystem]) {
    let mut tell = |family: &Family, value: fn(&BaseFileSystem) -> f64| {
        let samples = file_systems.iter().map(|one| {
            let FileSystem { device, kind, .. } = &one.file_system;
            let path = &plan.bases[one.base].path;
            ([plan.node.as_str(), path, device, kind], value(one))
        });
        exposition.family(family, samples);
    };
    tell(&FILE_SYSTEM_SIZE, |one| one.file_system.size_bytes as f64);
    tell(&FILE_SYSTEM_AVAILABLE, |one| one.file_system.available_bytes as f64);
    tell(&FILE_SYSTEM_USED, |one| one.file_system.used_bytes as f64);
    tell(&FILE_SYSTEM_INODES, |one| one.file_system.inodes as f64);
    tell(&FILE_SYSTEM_INODES_FREE, |one| one.file_system.inodes_free as f64);
    tell(&FILE_SYSTEM_READONLY, |one| {
        f64::from(u8::from(one.file_system.is_read_only))
    });
    tell(&FILE_SYSTEM_REQUESTED, |one| one.requested_bytes as f64);
}

/// When and how long a worker measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerTimes {
    /// When it was done measuring, by its own clock.
    pub measured_unix_seconds: f64,
    /// What it took from its start.
    pub duration_seconds: f64,
}

fn state_labels<'a>(volume: &'a PlannedVolume, node: &'a str, measurement: &Measurement) -> [&'a str; 7] {
    let [namespace, claim, name, storage_class, node] = volume.label_values(node);
    let method = measurement.method.map_or("", |method| method.as_str());
    [
        namespace,
        claim,
        name,
        storage_class,
        node,
        measurement.state.as_str(),
        method,
    ]
}

/// What a run tells at its end.
pub struct Report<'a> {
    /// The run.
    pub run: &'a Run,
    /// Its plan.
    pub plan: &'a Plan,
    /// What became of each node.
    pub outcomes: &'a BTreeMap<String, Outcome>,
    /// What the run took.
    pub duration: Duration,
    /// The controller's peak memory.
    pub peak_memory_bytes: u64,
    /// Jobs of workers that were to be deleted and are still there.
    pub jobs_not_deleted: u64,
}

/// How many volumes ended how: the sum over all is the number of volumes planned, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Volumes of measured nodes, by state.
    pub by_state: BTreeMap<String, u64>,
    /// Volumes of nodes that were not measured, by the node's reason.
    pub by_node_reason: BTreeMap<&'static str, u64>,
}

impl Report<'_> {
    /// Counts the volumes of the plan by what became of them.
    pub fn coverage(&self) -> Coverage {
        let mut coverage = Coverage::default();
        for state in State::ALL {
            coverage.by_state.insert(state.as_str().to_owned(), 0);
        }
        for node in &self.plan.nodes {
            match self.outcomes.get(&node.name) {
                // A summary that does not count what the worker was given is not believed: the sum is exact.
                Some(Outcome::Measured(Some(summary)))
                    if summary
                        .states
                        .values()
                        .fold(0, |sum: u64, count| sum.saturating_add(*count))
                        == node.volumes.len() as u64 =>
                {
                    for (state, count) in &summary.states {
                        *coverage.by_state.entry(state.clone()).or_default() += count;
                    }
                }
                // The worker ended well, and its message was lost: it delivered all that it was given.
                Some(Outcome::Measured(_)) if node.volumes.is_empty() => {}
                Some(Outcome::Measured(_)) => {
                    *coverage.by_state.entry(UNKNOWN_STATE.to_owned()).or_default() += node.volumes.len() as u64;
                }
                Some(Outcome::NotMeasured { reason, .. }) => {
                    *coverage.by_node_reason.entry(reason.as_str()).or_default() += node.volumes.len() as u64;
                }
                None => {}
            }
        }
        coverage
    }

    /// What became of the nodes that the run was asked for.
    pub fn asked(&self) -> impl Iterator<Item = (&str, &Outcome)> {
        self.outcomes
            .iter()
            .filter(|(_, outcome)| !outcome.is_not_asked())
            .map(|(node, outcome)| (node.as_str(), outcome))
    }

    /// Whether every node that the run was asked for was measured and delivered.
    pub fn is_complete(&self) -> bool {
        self.asked().all(|(_, outcome)| matches!(outcome, Outcome::Measured(_)))
    }

    /// The group of the report. A run for some nodes pushes none.
    pub fn group(&self) -> Body {
        let mut exposition = Exposition::new();
        exposition.value(&RUN_DURATION, self.duration.as_secs_f64());
        exposition.value(&RUN_COMPLETE, f64::from(u8::from(self.is_complete())));
        let is_measured = |outcome: &Outcome| f64::from(u8::from(matches!(outcome, Outcome::Measured(_))));
        exposition.family(
            &NODE_MEASURED,
            self.outcomes
                .iter()
                .map(|(node, outcome)| ([node.as_str()], is_measured(outcome))),
        );
        let reasons = self.outcomes.iter().filter_map(|(node, outcome)| match outcome {
            Outcome::NotMeasured { reason, .. } => Some(([node.as_str(), reason.as_str()], 1.0)),
            Outcome::Measured(_) => None,
        });
        exposition.family(&NODE_NOT_MEASURED, reasons);
        let coverage = self.coverage();
        let by_state = coverage
            .by_state
            .iter()
            .map(|(state, count)| ([state.as_str()], *count as f64));
        exposition.family(&VOLUMES_MEASURED, by_state);
        let by_reason = coverage
            .by_node_reason
            .iter()
            .map(|(reason, count)| ([*reason], *count as f64));
        exposition.family(&VOLUMES_NODE_NOT_MEASURED, by_reason);
        exposition.value(&CONTROLLER_PEAK_MEMORY, self.peak_memory_bytes as f64);
        let summaries = || {
            self.outcomes.iter().filter_map(|(node, outcome)| match outcome {
                Outcome::Measured(summary) | Outcome::NotMeasured { summary, .. } => {
                    Some((node.as_str(), summary.as_ref()?))
                }
            })
        };
        let memory = summaries().map(|(node, summary)| ([node], summary.peak_memory_bytes as f64));
        exposition.family(&WORKER_PEAK_MEMORY, memory);
        let confined = summaries().map(|(node, summary)| ([node], f64::from(u8::from(summary.confined))));
        exposition.family(&WORKER_CONFINED, confined);
        exposition.value(&JOBS_NOT_DELETED, self.jobs_not_deleted as f64);
        finish(exposition, self.run)
    }
}

/// The state of volumes whose worker ended well and whose summary was lost.
const UNKNOWN_STATE: &str = "unknown";

/// The group that tells of success.
pub fn success_group(run: &Run, ended_unix_seconds: f64) -> Body {
    let mut exposition = Exposition::new();
    exposition.value(&LAST_SUCCESS, ended_unix_seconds);
    finish(exposition, run)
}

/// What every group says.
fn finish(mut exposition: Exposition, run: &Run) -> Body {
    exposition.family(&OWNER, [([&*run.owner.cluster_uid, &*run.owner.cronjob], 1.0)]);
    exposition.value(&RUN_START, run.started_unix_seconds);
    exposition.family(&BUILD_INFO, [([VERSION], 1.0)]);
    exposition.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of volumes that are left out: as much as is known, with the same labels as the others.
    #[test]
    fn facts_of_volumes_that_are_left_out() {
        let skipped = |name: &str, reason: SkipReason, facts: Option<SkippedFacts>| Skipped {
            persistent_volume: name.to_owned(),
            reason,
            detail: String::new(),
            facts: facts.map(Box::new),
        };
        let known = SkippedFacts {
            claim: Some(("shop".to_owned(), "data".to_owned())),
            storage_class: "fast".into(),
            node: Some("n1".to_owned()),
            source: Some(SourceKind::Local),
            phase: "Bound".into(),
            reclaim_policy: "Retain".into(),
            created_unix_seconds: Some(1_700_000_000),
            shared: true,
            claim_labels: vec!["a".to_owned()],
            ..SkippedFacts::default()
        };
        let plan = Plan {
            skipped: vec![
                skipped("known", SkipReason::FilteredByNode, Some(known)),
                skipped("strange", SkipReason::Undecodable, Some(SkippedFacts::default())),
                skipped(NO_NAME, SkipReason::Undecodable, Some(SkippedFacts::default())),
                skipped(NO_NAME, SkipReason::Undecodable, Some(SkippedFacts::default())),
                skipped("cloud", SkipReason::NotNodeLocal, None),
                skipped("nfs", SkipReason::NotNodeLocal, Some(SkippedFacts::default())),
            ],
            ..Plan::default()
        };
        let mut exposition = Exposition::new();
        facts(&mut exposition, &plan, &["label_team".to_owned()]);
        let text = exposition.finish().text();
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                "local_volume_info{namespace=\"shop\",persistentvolumeclaim=\"data\",persistentvolume=\"known\",\
                 storageclass=\"fast\",node=\"n1\",phase=\"Bound\",reclaim_policy=\"Retain\",type=\"local\",\
                 shared=\"true\",reason=\"filtered_by_node\",label_team=\"a\"} 1",
                "local_volume_info{namespace=\"\",persistentvolumeclaim=\"\",persistentvolume=\"strange\",\
                 storageclass=\"\",node=\"\",phase=\"\",reclaim_policy=\"\",type=\"\",shared=\"false\",\
                 reason=\"undecodable\",label_team=\"\"} 1",
                "local_volume_created_timestamp_seconds{namespace=\"shop\",persistentvolumeclaim=\"data\",\
                 persistentvolume=\"known\",storageclass=\"fast\",node=\"n1\"} 1700000000",
            ]
        );
    }
}
