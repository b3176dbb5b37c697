//! The steps, and what they share.

pub(crate) mod nodes;
pub(crate) mod numbers;
pub(crate) mod push;
pub(crate) mod rights;
pub(crate) mod runs;
pub(crate) mod shapes;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::fixtures::{self, Claim, Nodes};
use crate::install;
use crate::kubectl::{kubectl, on_node};
use crate::observe::{self, Group};
use crate::settings::Settings;

/// The group that says how a run went.
pub(crate) const REPORT: &str = "lp-exporter-run";
/// The group of a worker, together with its node.
pub(crate) const WORKER: &str = "lp-exporter-job";

/// The installed exporter and thirty filled claims.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) nodes: Nodes,
    pub(crate) claims: Vec<Claim>,
    figures: Mutex<Vec<String>>,
}

impl World {
    /// Installs and fills, or finds what an earlier call kept.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let start = Instant::now();
        let nodes = install::choose_nodes()?;
        bring_back(&settings, &nodes)?;
        install::install(&settings, &nodes)?;
        let claims = fixtures::claims(&nodes);
        fixtures::fill(&settings, &nodes, &claims)?;
        println!(
            "installed, and {} claims filled, in {:.0} s",
            claims.len(),
            start.elapsed().as_secs_f64()
        );
        Ok(Self {
            settings,
            nodes,
            claims,
            figures: Mutex::default(),
        })
    }

    /// Keeps a figure for the end.
    pub(crate) fn figure(&self, line: String) {
        println!("{line}");
        if let Ok(mut figures) = self.figures.lock() {
            figures.push(line);
        }
    }

    /// Prints every figure once more.
    pub(crate) fn print_figures(&self) {
        if let Ok(figures) = self.figures.lock() {
            println!("figures of the run on the cluster:\n  {}\n", figures.join("\n  "));
        }
    }

    /// Removes everything that this test made.
    pub(crate) fn remove(&self) -> Result<()> {
        bring_back(&self.settings, &self.nodes)?;
        fixtures::remove(&self.settings, &self.nodes)?;
        install::uninstall(&self.settings, &self.nodes)?;
        let left = kubectl(&[
            "get",
            "clusterroles,clusterrolebindings,priorityclasses,namespaces",
            "-o",
            "name",
        ])?;
        let left: Vec<_> = left.lines().filter(|name| name.contains("lp-exporter")).collect();
        ensure!(left.is_empty(), "kubectl delete -k left {left:?}");
        install::forget_nodes(&self.nodes)
    }

    /// What Prometheus answers equals what the disks hold, for every claim that exists, on the nodes given.
    pub(crate) fn ensure_true_numbers(&self, claims: &[&Claim]) -> Result<()> {
        let volumes = fixtures::volumes(&self.claims)?;
        let mut used = BTreeMap::new();
        let mut capacity = BTreeMap::new();
        for claim in claims {
            let key = (claim.namespace.to_owned(), claim.name.to_owned());
            let volume = volumes.get(&key).with_context(|| format!("no volume for {key:?}"))?;
            let used_bytes = fixtures::used_bytes(&self.settings.node_exec, &claim.node, &volume.path)?;
            let labels = [&volume.persistentvolume, claim.class, claim.node.as_str()].map(str::to_owned);
            used.insert(
                key.clone(),
                Series {
                    labels: labels.clone(),
                    value: used_bytes as f64,
                },
            );
            capacity.insert(
                key,
                Series {
                    labels,
                    value: claim.capacity_bytes as f64,
                },
            );
        }
        observe::settle()?;
        ensure_found("local_volume_stats_used_bytes", &used)?;
        ensure_found("local_volume_stats_capacity_bytes", &capacity)
    }

    /// When each node's group was last pushed to.
    pub(crate) fn push_times(&self) -> Result<BTreeMap<String, f64>> {
        let groups = observe::groups()?;
        let workers = groups
            .into_iter()
            .filter(|group| group.labels.get("job").is_some_and(|job| job == WORKER));
        Ok(workers
            .filter_map(|group| Some((group.labels.get("node")?.clone(), group.push_time_seconds)))
            .collect())
    }

    /// The report of the last run.
    pub(crate) fn report(&self) -> Result<Group> {
        observe::find_group(REPORT, None)
    }
}

/// What is expected of a claim's series, and what is found.
#[derive(Debug, PartialEq)]
struct Series {
    /// PersistentVolume, class and node.
    labels: [String; 3],
    value: f64,
}

/// Prometheus answers with exactly these series for our claims, by namespace and name.
fn ensure_found(metric: &str, expected: &BTreeMap<(String, String), Series>) -> Result<()> {
    let [a, b] = fixtures::NAMESPACES;
    let mut found = BTreeMap::new();
    for (labels, value) in observe::query(&format!("{metric}{{namespace=~\"{a}|{b}\"}}"))? {
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let key = (label("namespace"), label("persistentvolumeclaim"));
        let series = Series {
            labels: ["persistentvolume", "storageclass", "node"].map(label),
            value,
        };
        let double = found.insert(key, series);
        ensure!(
            double.is_none(),
            "two series of {metric} for one claim: {double:?} and {labels:?}"
        );
    }
    let mut wrong = Vec::new();
    for (claim, series) in expected {
        if found.get(claim) != Some(series) {
            wrong.push(format!("{claim:?}: expected {series:?}, found {:?}", found.get(claim)));
        }
    }
    wrong.extend(
        found
            .keys()
            .filter(|claim| !expected.contains_key(claim))
            .map(|claim| format!("{claim:?}: not expected")),
    );
    ensure!(
        wrong.is_empty(),
        "{metric} is wrong {} times in {}:\n{}",
        wrong.len(),
        expected.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// Takes back what a step that failed may have left on the nodes.
fn bring_back(settings: &Settings, nodes: &Nodes) -> Result<()> {
    for node in nodes.all() {
        kubectl(&["uncordon", node])?;
        for effect in ["NoSchedule", "NoExecute"] {
            // Says "not found" where there is none.
            let _ = kubectl(&["taint", "node", node, &format!("{TAINT}:{effect}-")]);
        }
        if nodes_ready(&[node])? {
            continue;
        }
        on_node(&settings.node_start, node, &[])?;
    }
    nodes::wait_until_ready(&nodes.all())
}

/// The key of the taint of this test.
pub(crate) const TAINT: &str = "lp-e2e";

fn nodes_ready(names: &[&str]) -> Result<bool> {
    for name in names {
        if !crate::runs::has_condition(&crate::kubectl::get(&["node", name])?, "Ready") {
            return Ok(false);
        }
    }
    Ok(true)
}
