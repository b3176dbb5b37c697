//! Hours of scrapes, made from what a few real runs pushed: each run is taken to be repeated at every interval of its part
//! of the time, its timestamps moved to where they would be then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

pub(crate) type Labels = BTreeMap<String, String>;

/// What a scrape tells of one series.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) name: String,
    /// Without those that are empty.
    pub(crate) labels: Labels,
    pub(crate) value: f64,
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// All samples at one time.
pub(crate) struct Scrape {
    pub(crate) time: f64,
    pub(crate) samples: Vec<Sample>,
}

/// The interval of the runs, as the program has it by default.
const RUN_SECONDS: f64 = 300.0;
/// Below the five minutes that Prometheus looks back.
pub(crate) const SCRAPE_SECONDS: f64 = 120.0;
/// How long each real run is repeated.
pub(crate) const PART_SECONDS: f64 = 7200.0;
/// The metrics that something is foretold by.
const HAVE_SLOPES: [&str; 2] = ["local_volume_stats_used_bytes", AVAILABLE];
const AVAILABLE: &str = "local_volume_filesystem_available_bytes";
/// Much more than other programs write meanwhile.
const FILLS_UP_BYTES_PER_SECOND: f64 = 1e6;
/// From its start to this, a run pushes.
const RUN_TAKES_SECONDS: f64 = 60.0;
/// In the last hour of the second part this node is cut off in one cluster, and its numbers stay as they are.
const CUT_OFF_NODE: &str = "node-2";
const CUT_OFF_CLUSTER: &str = "east";
const CUT_OFF_SECONDS: f64 = 2.0 * PART_SECONDS - 3600.0;
/// Numbers of the cut off node that are so old after its last run are not late yet: two runs have not been missed.
pub(crate) const NOT_LATE_YET: usize = ((CUT_OFF_SECONDS + 480.0) / SCRAPE_SECONDS) as usize;
/// Here they are.
pub(crate) const LATE: usize = ((CUT_OFF_SECONDS + 720.0) / SCRAPE_SECONDS) as usize;

/// The scrapes from `start` on, a part of the time for each run. Meanwhile a node is cut off, and the disks fill up.
pub(crate) fn history(runs: &[Vec<Sample>], start: f64) -> Vec<Scrape> {
    let mut scrapes = repeated(runs, start, PART_SECONDS, |sample, elapsed| {
        let is_cut_off = (CUT_OFF_SECONDS..2.0 * PART_SECONDS).contains(&elapsed);
        let is_node = sample.label("job") == "lp-exporter-job" && sample.label("node") == CUT_OFF_NODE;
        let is_there = ["", CUT_OFF_CLUSTER].contains(&sample.label("cluster"));
        if is_cut_off && is_node && is_there {
            CUT_OFF_SECONDS
        } else {
            elapsed
        }
    });
    let end = start + runs.len() as f64 * PART_SECONDS;
    for scrape in &mut scrapes {
        for sample in &mut scrape.samples {
            emptier(sample, end - scrape.time);
        }
    }
    scrapes
}

/// The scrapes from `start` on, a part of the time for each run. `told` says of which time after the start a sample tells
/// that is scraped so long after it.
pub(crate) fn repeated(
    runs: &[Vec<Sample>],
    start: f64,
    part_seconds: f64,
    told: impl Fn(&Sample, f64) -> f64,
) -> Vec<Scrape> {
    let each_part = (part_seconds / SCRAPE_SECONDS) as usize;
    let scrapes = (0..runs.len() * each_part).map(|number| {
        let elapsed = number as f64 * SCRAPE_SECONDS;
        Scrape {
            time: start + elapsed,
            samples: at(&runs[number / each_part], start, |sample| told(sample, elapsed)),
        }
    });
    scrapes.collect()
}

fn at(run: &[Sample], start: f64, told: impl Fn(&Sample) -> f64) -> Vec<Sample> {
    let began = run
        .iter()
        .filter(|sample| sample.name == "lp_exporter_run_start_timestamp_seconds")
        .map(|sample| sample.value)
        .fold(f64::INFINITY, f64::min);
    let last_run = |elapsed: f64| ((elapsed - RUN_TAKES_SECONDS) / RUN_SECONDS).floor() * RUN_SECONDS;
    let moved = |sample: &Sample| {
        let value = if is_time(sample) {
            sample.value - began + start + last_run(told(sample))
        } else {
            sample.value
        };
        Sample {
            value,
            ..sample.clone()
        }
    };
    run.iter().map(moved).collect()
}

/// Makes a sample what it was so long before the end: the disk of a test does not fill up by itself, so it was emptier.
fn emptier(sample: &mut Sample, before_seconds: f64) {
    if sample.name == AVAILABLE {
        sample.value += FILLS_UP_BYTES_PER_SECOND * before_seconds;
    }
}

/// Whether the value tells when something of the run happened. Zero is never.
fn is_time(sample: &Sample) -> bool {
    let name = sample.name.as_str();
    let is_time = name.starts_with("push_") || name.ends_with("_timestamp_seconds");
    is_time && name != "local_volume_created_timestamp_seconds" && sample.value > 0.0
}

/// The scrapes as promtool reads them. What is scraped twice differs in the label `pod`, as when there are two pods of the
/// Pushgateway during an update; but for what has a slope, of which a second series would have its own.
pub(crate) fn open_metrics(scrapes: &[Scrape], is_scraped_twice: bool) -> String {
    let all = scrapes.iter().flat_map(|scrape| &scrape.samples);
    let names: BTreeSet<&str> = all.map(|sample| sample.name.as_str()).collect();
    let mut text = String::new();
    for name in names {
        let _ = writeln!(text, "# TYPE {name} gauge");
        let is_twice = is_scraped_twice && !HAVE_SLOPES.contains(&name);
        let pods: &[&str] = if is_twice { &["", "pod=\"two\","] } else { &[""] };
        for scrape in scrapes {
            for sample in scrape.samples.iter().filter(|sample| sample.name == name) {
                let labels: Vec<String> = sample
                    .labels
                    .iter()
                    .map(|(label, value)| format!("{label}={value:?}"))
                    .collect();
                let (labels, value, time) = (labels.join(","), sample.value, scrape.time);
                for pod in pods {
                    let _ = writeln!(text, "{name}{{{pod}{labels}}} {value} {time:.3}");
                }
            }
        }
    }
    text + "# EOF\n"
}
