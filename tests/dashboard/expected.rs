//! What every query of every panel has to answer, worked out from the samples that were pushed, without PromQL.

use std::collections::BTreeMap;

use crate::board::Selection;
use crate::history::{Labels, Sample, Scrape};

const VOLUME: &[&str] = &[
    "cluster",
    "namespace",
    "persistentvolumeclaim",
    "persistentvolume",
    "storageclass",
    "node",
];
const NODE: &[&str] = &["cluster", "node"];
const NODE_REASON: &[&str] = &["cluster", "node", "reason"];
const BASE: &[&str] = &["cluster", "node", "path"];
const DISK: &[&str] = &["cluster", "node", "device"];
const DISK_AND_PATH: &[&str] = &["cluster", "node", "path", "device", "fstype"];
const CLUSTER: &[&str] = &["cluster"];

/// Values by the labels that tell them apart.
pub(crate) type Table = BTreeMap<Labels, f64>;

/// What is known at a moment, by one who chose some values of the variables.
pub(crate) struct Moment<'a> {
    pub(crate) time: f64,
    /// The last scrape.
    pub(crate) samples: &'a [Sample],
    /// The scrapes in the time range that is shown, the last one among them.
    pub(crate) range: &'a [&'a Scrape],
    pub(crate) selection: &'a Selection,
}

impl Moment<'_> {
    /// What a target has to answer.
    pub(crate) fn expected(&self, title: &str, reference: &str) -> Table {
        match (title, reference) {
            ("Fullest claim", "A") => largest(1, self.share()),
            ("Claims above their threshold", "A") => {
                let own = self.volumes("local_volume_alert_percent");
                let quiet = self.volumes("local_volume_alert_disabled");
                let is_above = |labels: &Labels, share: f64| {
                    share > own.get(labels).copied().unwrap_or(80.0) && !quiet.contains_key(labels)
                };
                count(self.share().iter().filter(|(labels, share)| is_above(labels, **share)))
            }
            ("Next one full", "A") => smallest(1, self.full_in()),
            ("Fullest disk", "A") => largest(1, self.full(DISK)),
            ("Nodes without fresh numbers", "A") => {
                let (ages, intervals) = (self.ages(), self.of_clusters("lp_exporter_interval_seconds"));
                let is_fresh = |node: &Labels| {
                    let age = ages.get(node).copied().unwrap_or(f64::INFINITY);
                    age < late(intervals[&narrow(node, CLUSTER)])
                };
                count(
                    self.of_nodes("lp_exporter_node_expected")
                        .keys()
                        .filter(|node| !is_fresh(node)),
                )
            }
            ("Oldest numbers", "A") => total(largest(1, self.ages_of_expected())),
            ("Orphaned", "A") => total(self.on_nodes("local_volume_orphaned_bytes", BASE)),
            ("Volumes without a number", "A") => {
                let used = self.volumes("local_volume_stats_used_bytes");
                let capacities = self.volumes("local_volume_stats_capacity_bytes");
                count(capacities.keys().filter(|volume| !used.contains_key(*volume)))
            }
            ("Claims", "A") => self.bound("local_volume_stats_capacity_bytes"),
            ("Claims", "B") => self.bound("local_volume_stats_used_bytes"),
            ("Claims", "C") => self.bound("local_volume_stats_available_bytes"),
            ("Claims", "D") => self.share(),
            ("Claims", "E") => {
                let mut growth = self.growth();
                growth.retain(|labels, _| self.is_bound(labels));
                map(growth, |per_second| 86_400.0 * per_second)
            }
            ("Claims", "F") => self.full_in(),
            ("Claims", "G") => {
                let ages = self.ages();
                let claims = self.bound("local_volume_stats_capacity_bytes");
                let age = |labels: &Labels| Some((labels.clone(), *ages.get(&narrow(labels, NODE))?));
                claims.keys().filter_map(age).collect()
            }
            ("Share of the request", "A") => largest(10, self.share()),
            ("Full next", "A") => smallest(10, self.full_in()),
            ("Bytes", "A") => self.five_largest(),
            ("Bytes", "B") => self.of_the_five_largest("local_volume_stats_capacity_bytes"),
            ("Bytes", "C") => self.of_the_five_largest("local_volume_stats_apparent_bytes"),
            ("Inodes", "A") => largest(5, self.volumes("local_volume_stats_inodes_used")),
            ("Disks", "A") => self.on_nodes("local_volume_filesystem_size_bytes", DISK_AND_PATH),
            ("Disks", "B") => self.on_nodes("local_volume_filesystem_used_bytes", DISK_AND_PATH),
            ("Disks", "C") => self.on_nodes("local_volume_filesystem_available_bytes", DISK_AND_PATH),
            ("Disks", "D") => self.full(DISK_AND_PATH),
            ("Disks", "E") => self.promised(DISK_AND_PATH),
            ("Disks", "F") => {
                let inodes = self.on_nodes("local_volume_filesystem_inodes", DISK_AND_PATH);
                let free = self.on_nodes("local_volume_filesystem_inodes_free", DISK_AND_PATH);
                let mut used = zip(&free, &inodes, |free, inodes| 100.0 * (inodes - free) / inodes);
                used.retain(|_, share| share.is_finite());
                used
            }
            ("Disks", "G") => self.on_nodes("local_volume_filesystem_readonly", DISK_AND_PATH),
            ("Disks", "H") => {
                let ages = self.ages();
                let disks = self.on_nodes("local_volume_filesystem_size_bytes", DISK_AND_PATH);
                let age = |labels: &Labels| Some((labels.clone(), *ages.get(&narrow(labels, NODE))?));
                disks.keys().filter_map(age).collect()
            }
            ("Disks", "I") => {
                let available = self.on_nodes("local_volume_filesystem_available_bytes", DISK_AND_PATH);
                let metric = "local_volume_filesystem_available_bytes";
                let mut slopes = self.slopes(available.clone(), metric, DISK_AND_PATH);
                slopes.retain(|_, per_second| *per_second < 0.0);
                zip(&available, &slopes, |available, per_second| available / -per_second)
            }
            ("Space left", "A") => map(self.full(DISK), |full| 100.0 - full),
            ("What fills the disks", "A") => total(self.used_on_nodes()),
            ("What fills the disks", "B") => total(self.on_nodes("local_volume_orphaned_bytes", BASE)),
            ("What fills the disks", "C") => {
                let sum = |table: Table| table.values().sum::<f64>();
                let used = sum(self.on_nodes("local_volume_filesystem_used_bytes", DISK));
                let orphans = sum(self.on_nodes("local_volume_orphaned_bytes", BASE));
                one((used - sum(self.used_on_nodes()) - orphans).max(0.0))
            }
            ("What fills the disks", "D") => total(self.on_nodes("local_volume_filesystem_available_bytes", DISK)),
            ("Promised", "A") => self.promised(DISK),
            ("Directories that no volume owns", "A") => {
                let mut directories = self.on_nodes("local_volume_orphaned_directories", BASE);
                directories.retain(|_, count| *count > 0.0);
                directories
            }
            ("Directories that no volume owns", "B") => {
                let directories = self.on_nodes("local_volume_orphaned_directories", BASE);
                let mut bytes = self.on_nodes("local_volume_orphaned_bytes", BASE);
                bytes.retain(|base, _| directories[base] > 0.0);
                bytes
            }
            ("Volumes that no claim is bound to", "A") => {
                let keys = [VOLUME, &["phase", "reclaim_policy"]].concat();
                table(self.unbound(), &keys)
            }
            ("Volumes that no claim is bound to", "B") => self.of_the_unbound("local_volume_stats_used_bytes"),
            ("Volumes that no claim is bound to", "C") => self.of_the_unbound("local_volume_stats_capacity_bytes"),
            ("Volumes that could not be measured", "A") => {
                let errors = self.volumes("local_volume_scan_errors");
                let states = self.chosen_volumes("local_volume_scan_state");
                let states = states.filter(|sample| sample.label("state") != "complete");
                let keys = [VOLUME, &["state"]].concat();
                let row = |sample: &Sample| (narrow(&sample.labels, &keys), errors[&narrow(&sample.labels, VOLUME)]);
                states.map(row).collect()
            }
            ("Nodes that were not measured", "A") => self.on_nodes("lp_exporter_node_not_measured", NODE_REASON),
            ("Volumes that are left out", "A") => {
                let info = self.chosen_volumes("local_volume_info");
                let keys = [VOLUME, &["reason"]].concat();
                let left_out = info.filter(|sample| !sample.label("reason").is_empty());
                left_out
                    .map(|sample| (narrow(&sample.labels, &keys), sample.value))
                    .collect()
            }

            ("Complete", "A") => total(smallest(1, self.of_clusters("lp_exporter_run_complete"))),
            ("Last success", "A") => {
                let ages = map(self.pushed("lp-exporter-success", CLUSTER), |time| self.time - time);
                total(largest(1, ages))
            }
            ("Nodes measured", "A") => {
                let measured = self.of_nodes("lp_exporter_node_measured");
                let share = 100.0 * measured.values().sum::<f64>() / measured.len() as f64;
                if measured.is_empty() { Table::new() } else { one(share) }
            }
            ("Time taken", "A") => {
                let durations = self.of_clusters("lp_exporter_run_duration_seconds");
                let intervals = self.of_clusters("lp_exporter_interval_seconds");
                total(largest(
                    1,
                    zip(&durations, &intervals, |took, interval| {
                        100.0 * took / interval.min(3600.0)
                    }),
                ))
            }
            ("Pushes refused" | "Workers without a filter", "A") => one(0.0),
            ("Version", "A") => {
                let groups = self.chosen("lp_exporter_build_info", CLUSTER).count();
                let version = ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
                Table::from([(Labels::from([version]), groups as f64)])
            }
            ("Age of the numbers", "A") => largest(10, self.ages_of_expected()),
            ("Age of the numbers", "B") => map(self.of_clusters("lp_exporter_interval_seconds"), late),
            ("Duration", "A") => self.of_clusters("lp_exporter_run_duration_seconds"),
            ("Duration", "B") => largest(10, self.of_nodes("lp_exporter_worker_duration_seconds")),
            ("Duration", "C") => self.of_clusters("lp_exporter_interval_seconds"),
            // Fewer than twenty.
            ("Slowest volumes", "A") => self.on_nodes("local_volume_scan_duration_seconds", VOLUME),
            ("Slowest volumes", "B") => self.on_nodes("local_volume_stats_inodes_used", VOLUME),
            ("Volumes by outcome", "A") => self.sums_above_zero("lp_exporter_volumes_measured", "state"),
            ("Volumes by outcome", "B") => self.sums_above_zero("lp_exporter_volumes_node_not_measured", "reason"),
            ("Volumes by outcome", "C") => self.sums_above_zero("lp_exporter_volumes_skipped", "reason"),
            ("Volumes by outcome", "D") => total(self.of_clusters("lp_exporter_volumes_listed")),
            ("Nodes that are not looked at", "A") => {
                let nodes = self.chosen("lp_exporter_node_not_scanned", CLUSTER);
                nodes
                    .map(|sample| (narrow(&sample.labels, NODE_REASON), sample.value))
                    .collect()
            }
            ("Claims that lost their volume", "A") => total(self.of_clusters("lp_exporter_claims_lost")),
            ("Claims that cannot be read", "A") => total(self.of_clusters("lp_exporter_claims_unreadable")),
            ("Thresholds that cannot be read", "A") => total(self.of_clusters("lp_exporter_alert_percents_invalid")),
            ("Jobs that could not be deleted", "A") => total(self.of_clusters("lp_exporter_jobs_not_deleted")),
            ("Peak memory", "A") => self.of_clusters("lp_exporter_controller_peak_memory_bytes"),
            ("Peak memory", "B") => largest(10, self.of_nodes("lp_exporter_worker_peak_memory_bytes")),
            _ => panic!("nothing is said here of what {title} {reference} answers"),
        }
    }

    /// The samples of a metric whose labels are among the chosen ones, as far as the given variables go.
    fn chosen<'a>(&'a self, metric: &'a str, variables: &'a [&str]) -> impl Iterator<Item = &'a Sample> {
        let is_chosen = |sample: &Sample| {
            let mut chosen = self.selection.iter().filter(|(name, _)| variables.contains(name));
            chosen.all(|(name, values)| values.contains(&sample.label(name)))
        };
        let samples = self.samples.iter().filter(move |sample| sample.name == metric);
        let ours = samples.filter(|sample| sample.label("job").starts_with("lp-exporter"));
        ours.filter(move |sample| is_chosen(sample))
    }

    fn chosen_volumes<'a>(&'a self, metric: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.chosen(metric, VOLUME)
    }

    /// A metric with one value for each volume.
    fn volumes(&self, metric: &str) -> Table {
        table(self.chosen_volumes(metric), VOLUME)
    }

    /// A metric whose panels follow the choice of clusters and nodes only.
    fn on_nodes(&self, metric: &str, keys: &[&str]) -> Table {
        table(self.chosen(metric, NODE), keys)
    }

    fn of_nodes(&self, metric: &str) -> Table {
        self.on_nodes(metric, NODE)
    }

    fn of_clusters(&self, metric: &str) -> Table {
        table(self.chosen(metric, CLUSTER), CLUSTER)
    }

    fn is_bound(&self, volume: &Labels) -> bool {
        let is_it = |sample: &&Sample| narrow(&sample.labels, VOLUME) == *volume;
        let mut info = self.samples.iter().filter(|sample| sample.name == "local_volume_info");
        info.find(is_it).is_some_and(|info| info.label("phase") == "Bound")
    }

    /// The facts of volumes in another phase than Bound.
    fn unbound(&self) -> impl Iterator<Item = &Sample> {
        let info = self.chosen_volumes("local_volume_info");
        info.filter(|sample| sample.label("phase") != "Bound")
    }

    /// A metric of each of those that have it, with what their facts say.
    fn of_the_unbound(&self, metric: &str) -> Table {
        let values = self.volumes(metric);
        let keys = [VOLUME, &["phase", "reclaim_policy"]].concat();
        let row = |sample: &Sample| {
            let value = values.get(&narrow(&sample.labels, VOLUME))?;
            Some((narrow(&sample.labels, &keys), *value))
        };
        self.unbound().filter_map(row).collect()
    }

    /// Of bound claims only.
    fn bound(&self, metric: &str) -> Table {
        let mut values = self.volumes(metric);
        values.retain(|volume, _| self.is_bound(volume));
        values
    }

    fn share(&self) -> Table {
        let used = self.bound("local_volume_stats_used_bytes");
        let capacities = self.bound("local_volume_stats_capacity_bytes");
        zip(&used, &capacities, |used, capacity| 100.0 * used / capacity)
    }

    /// Bytes a second.
    fn growth(&self) -> Table {
        self.slopes(
            self.volumes("local_volume_stats_used_bytes"),
            "local_volume_stats_used_bytes",
            VOLUME,
        )
    }

    /// How each of the values changed in a second: the slope of the straight line with the least squares, over the time
    /// range that is shown.
    fn slopes(&self, mut values: Table, metric: &str, keys: &[&str]) -> Table {
        for (labels, value) in &mut values {
            let of_scrape = |scrape: &&Scrape| {
                let is_it = |sample: &&Sample| sample.name == metric && narrow(&sample.labels, keys) == *labels;
                Some((scrape.time - self.time, scrape.samples.iter().find(is_it)?.value))
            };
            let points: Vec<(f64, f64)> = self.range.iter().filter_map(of_scrape).collect();
            let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
            let (mean_time, mean_value) = (mean(|point| point.0), mean(|point| point.1));
            let along = |point: &(f64, f64)| (point.0 - mean_time) * (point.1 - mean_value);
            let square = |point: &(f64, f64)| (point.0 - mean_time).powi(2);
            *value = points.iter().map(along).sum::<f64>() / points.iter().map(square).sum::<f64>();
        }
        values
    }

    /// Seconds until a claim that grows is full.
    fn full_in(&self) -> Table {
        let used = self.bound("local_volume_stats_used_bytes");
        let capacities = self.bound("local_volume_stats_capacity_bytes");
        let left = zip(&capacities, &used, |capacity, used| (capacity - used).max(0.0));
        let mut growth = self.growth();
        growth.retain(|_, per_second| *per_second > 0.0);
        zip(&left, &growth, |left, per_second| left / per_second)
    }

    /// When each group of a job was last pushed, if ever.
    fn pushed(&self, job: &str, keys: &[&str]) -> Table {
        let times = self.chosen("push_time_seconds", keys);
        table(
            times.filter(|sample| sample.label("job") == job && sample.value > 0.0),
            keys,
        )
    }

    fn ages(&self) -> Table {
        map(self.pushed("lp-exporter-job", NODE), |time| self.time - time)
    }

    fn ages_of_expected(&self) -> Table {
        let expected = self.of_nodes("lp_exporter_node_expected");
        let mut ages = self.ages();
        ages.retain(|node, _| expected.contains_key(node));
        ages
    }

    fn five_largest(&self) -> Table {
        largest(5, self.volumes("local_volume_stats_used_bytes"))
    }

    fn of_the_five_largest(&self, metric: &str) -> Table {
        let five = self.five_largest();
        let mut values = self.volumes(metric);
        values.retain(|volume, _| five.contains_key(volume));
        values
    }

    fn full(&self, keys: &[&str]) -> Table {
        let sizes = self.on_nodes("local_volume_filesystem_size_bytes", keys);
        let available = self.on_nodes("local_volume_filesystem_available_bytes", keys);
        zip(&sizes, &available, |size, available| 100.0 * (size - available) / size)
    }

    fn promised(&self, keys: &[&str]) -> Table {
        let sizes = self.on_nodes("local_volume_filesystem_size_bytes", keys);
        let requested = self.on_nodes("local_volume_filesystem_requested_bytes", keys);
        zip(&sizes, &requested, |size, requested| 100.0 * requested / size)
    }

    fn used_on_nodes(&self) -> Table {
        self.on_nodes("local_volume_stats_used_bytes", VOLUME)
    }

    fn sums_above_zero(&self, metric: &str, label: &str) -> Table {
        let mut sums = Table::new();
        for sample in self.chosen(metric, CLUSTER) {
            *sums.entry(narrow(&sample.labels, &[label])).or_default() += sample.value;
        }
        sums.retain(|_, sum| *sum > 0.0);
        sums
    }
}

/// Numbers of this age miss two runs: a run takes an hour at most, and no longer than the interval.
fn late(interval: f64) -> f64 {
    2.0 * interval + interval.min(3600.0)
}

fn narrow(labels: &Labels, names: &[&str]) -> Labels {
    let kept = labels.iter().filter(|(name, _)| names.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Where two samples have the same labels, the larger counts.
fn table<'a>(samples: impl Iterator<Item = &'a Sample>, keys: &[&str]) -> Table {
    let mut table = Table::new();
    for sample in samples {
        let value = table.entry(narrow(&sample.labels, keys)).or_insert(sample.value);
        *value = value.max(sample.value);
    }
    table
}

/// What both have.
fn zip(one: &Table, other: &Table, value: impl Fn(f64, f64) -> f64) -> Table {
    let both = one
        .iter()
        .filter_map(|(labels, left)| Some((labels, left, other.get(labels)?)));
    both.map(|(labels, left, right)| (labels.clone(), value(*left, *right)))
        .collect()
}

fn map(table: Table, value: impl Fn(f64) -> f64) -> Table {
    table.into_iter().map(|(labels, old)| (labels, value(old))).collect()
}

fn largest(count: usize, table: Table) -> Table {
    let mut rows: Vec<(Labels, f64)> = table.into_iter().collect();
    rows.sort_by(|one, other| other.1.total_cmp(&one.1));
    rows.into_iter().take(count).collect()
}

fn smallest(count: usize, table: Table) -> Table {
    map(largest(count, map(table, |value| -value)), |value| -value)
}

/// The sum as the one value without labels; nothing of nothing.
fn total(table: Table) -> Table {
    let values: Vec<f64> = table.into_values().collect();
    if values.is_empty() {
        Table::new()
    } else {
        one(values.iter().sum())
    }
}

fn count(rows: impl Iterator) -> Table {
    one(rows.count() as f64)
}

fn one(value: f64) -> Table {
    Table::from([(Labels::new(), value)])
}
