//! Nodes in trouble: each costs its own numbers at most, and the report says which and why.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::World;
use super::runs::{hold_workers, is_held};
use crate::fixtures::{self, BASES, NAMESPACES, busybox_pod, text};
use crate::install::{INTERVAL_SECONDS, NAMESPACE, restore_template, set_env};
use crate::kubectl::{apply, eventually, get, items, kubectl, on_node};
use crate::observe;
use crate::runs::{Run, has_condition, run, start};

/// A base directory that cannot be made on the node costs its own volumes, and no other.
pub(crate) fn a_base_that_cannot_be_mounted(world: &World) -> Result<()> {
    let base = "/proc/lp-e2e-none";
    let node = &world.nodes.troubled;
    apply(&[json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "lp-e2e-base-missing"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
            "hostPath": {"path": format!("{base}/volume")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]},
            ]}},
        },
    })])?;
    set_env(&format!("LP_EXPORTER_BASE_PATHS={},{base}", BASES.join(",")))?;
    let done = run();
    set_env(&format!("LP_EXPORTER_BASE_PATHS={}", BASES.join(",")))?;
    kubectl(&["delete", "pv", "lp-e2e-base-missing"])?;
    done?.ensure_done()?;
    let group = observe::find_group(super::WORKER, Some(node))?;
    let missing = [("persistentvolume", "lp-e2e-base-missing"), ("state", "base_missing")];
    ensure!(
        group.sample(SCAN_STATE, &missing) == Some(1.0),
        "no state base_missing: {:?}",
        group.metrics.get(SCAN_STATE)
    );
    let number = group.sample("local_volume_stats_used_bytes", &missing[..1]);
    ensure!(
        number.is_none(),
        "a volume that was not measured has the number {number:?}"
    );
    ensure_measured(world, &world.nodes.all())
}

/// On a node whose processors are all requested the worker runs, and nobody's pod has to go.
pub(crate) fn a_node_whose_processors_are_taken(world: &World) -> Result<()> {
    let node = &world.nodes.troubled;
    let allocatable = millicpu(&get(&["node", node])?["status"]["allocatable"]["cpu"])?;
    let on_it = get(&["pods", "-A", "--field-selector", &format!("spec.nodeName={node}")])?;
    let mut taken = 0;
    for pod in items(&on_it) {
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            taken += millicpu(&container["resources"]["requests"]["cpu"]).unwrap_or(0);
        }
    }
    let mut pod = busybox_pod(&world.settings, NAMESPACES[0], "takes-all", node, "sleep 1000000");
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": format!("{}m", allocatable - taken)}});
    apply(&[pod])?;
    kubectl(&[
        "wait",
        "pod/takes-all",
        "-n",
        NAMESPACES[0],
        "--for=condition=Ready",
        "--timeout=60s",
        "--request-timeout=0",
    ])?;
    let before = running_pods(world)?;
    let done = run()?.ensure_done()?;
    let after = running_pods(world)?;
    kubectl(&["delete", "pod", "takes-all", "-n", NAMESPACES[0]])?;
    ensure!(before == after, "pods before {before:?}, after {after:?}");
    ensure!(done.workers.len() == 3, "workers ran on {:?}", done.workers.keys());
    ensure_measured(world, &world.nodes.all())
}

/// A node under disk pressure, where nobody else gets in, is measured.
pub(crate) fn a_node_under_disk_pressure(world: &World) -> Result<()> {
    let node = &world.nodes.troubled;
    // Kubelet removes images that no container uses: this pod uses ours, and is too critical to be evicted.
    let mut keeper = busybox_pod(&world.settings, NAMESPACE, "keeps-the-image", node, "sleep 1000000");
    keeper["spec"]["priorityClassName"] = json!("system-node-critical");
    let image =
        json!({"name": "image", "image": world.settings.image, "imagePullPolicy": "IfNotPresent", "args": ["--help"]});
    keeper["spec"]["containers"]
        .as_array_mut()
        .context("containers")?
        .push(image);
    apply(&[keeper])?;
    eventually("the pod that keeps the image", Duration::from_secs(30), || {
        let pod = get(&["pod", "keeps-the-image", "-n", NAMESPACE])?;
        let statuses = pod["status"]["containerStatuses"].as_array().context("statuses")?;
        ensure!(
            statuses.iter().any(|status| status["state"]["terminated"].is_object()),
            "{statuses:?}"
        );
        Ok(())
    })?;
    on_node(&world.settings.disk_pressure, node, &["on"])?;
    let measured = under_disk_pressure(world, node);
    on_node(&world.settings.disk_pressure, node, &["off"])?;
    wait_for_condition(node, "DiskPressure", false)?;
    eventually("the taint to go", Duration::from_secs(60), || {
        ensure!(get(&["node", node])?["spec"]["taints"].is_null(), "still tainted");
        Ok(())
    })?;
    kubectl(&["delete", "pod", "keeps-the-image", "-n", NAMESPACE])?;
    measured?;
    // The writers were evicted.
    fixtures::fill(&world.settings, &world.nodes, &world.claims)?;
    let next = run()?.ensure_done()?;
    let class = text(&next.workers.get(node).context("a worker was seen")?["spec"]["priorityClassName"]);
    ensure!(
        class == "lp-exporter-worker",
        "without disk pressure the worker has the class {class}"
    );
    Ok(())
}

/// On a node where the worker of an earlier run cannot end, one more is started. Every volume had answered before, so it
/// leaves none alone, and looks for no orphans.
pub(crate) fn an_earlier_worker_that_hangs(world: &World) -> Result<()> {
    run()?.ensure_done()?;
    let node = &world.nodes.troubled;
    hold_workers(world, node, 3600)?;
    let ended = start()?;
    let pod = ended.wait_for_worker(node, is_held)?;
    let container = text(&pod["status"]["initContainerStatuses"][0]["containerID"]);
    let id = container.rsplit('/').next().unwrap_or_default();
    let runtime = on_node(&world.settings.node_exec, node, &["sh", "-c", FIND_RUNTIME, "sh", id])?;
    let runtime = runtime.trim();
    ensure!(!runtime.is_empty(), "no process of the container {id} on {node}");
    // Who runs the container is stopped, so nothing can end it: for the cluster it is as if it hung in the kernel.
    on_node(&world.settings.node_exec, node, &["kill", "-STOP", runtime])?;
    let next = kubectl(&["delete", "job", ended.job(), "-n", NAMESPACE]).and_then(|_| {
        let selector = format!("job-name={}", ended.job());
        kubectl(&[
            "wait",
            "pod",
            "-l",
            &selector,
            "-n",
            NAMESPACE,
            "--for=delete",
            "--timeout=45s",
            "--request-timeout=0",
        ])
    });
    restore_template()?;
    let next = next.and_then(|_| run());
    on_node(&world.settings.node_exec, node, &["kill", "-CONT", runtime])?;
    let next = next?.ensure_done()?;
    ensure!(next.log.contains("does not end; one more worker"), "{}", next.log);
    ensure_measured(world, &world.nodes.all())?;
    eventually(
        "the node whose worker hung to be measured",
        Duration::from_secs(120),
        || {
            run()?.ensure_done()?;
            ensure_measured(world, &world.nodes.all())
        },
    )
}

/// A node that is away before the run: the others are measured, its numbers stay, and the report says why.
pub(crate) fn cut_off_before_a_run(world: &World) -> Result<()> {
    run()?.ensure_done()?;
    let before = world.push_times()?;
    on_node(&world.settings.node_stop, &world.nodes.lost, &[])?;
    let done = wait_for_condition(&world.nodes.lost, "Ready", false).and_then(|()| run());
    let checked = done.and_then(|done| ensure_reported(world, &before, &done, &world.nodes.lost, "not_ready"));
    come_back(world)?;
    checked
}

/// A node that goes away while its worker is at work: the same.
pub(crate) fn cut_off_during_a_run(world: &World) -> Result<()> {
    run()?.ensure_done()?;
    let before = world.push_times()?;
    hold_workers(world, &world.nodes.lost, 3600)?;
    let started = start()?;
    let held = started.wait_for_worker(&world.nodes.lost, is_held);
    on_node(&world.settings.node_stop, &world.nodes.lost, &[])?;
    let done = held.and_then(|_| started.finish());
    restore_template()?;
    let checked = done.and_then(|done| ensure_reported(world, &before, &done, &world.nodes.lost, "lost"));
    come_back(world)?;
    checked
}

/// Waits until nodes are Ready and nothing of their trouble keeps pods away.
pub(crate) fn wait_until_ready(nodes: &[&str]) -> Result<()> {
    for node in nodes {
        wait_for_condition(node, "Ready", true)?;
        eventually("a node without taints", Duration::from_secs(60), || {
            let taints = &get(&["node", node])?["spec"]["taints"];
            ensure!(taints.is_null(), "{node} has the taints {taints}");
            Ok(())
        })?;
    }
    Ok(())
}

/// The metric that says what became of each volume.
const SCAN_STATE: &str = "local_volume_scan_state";
/// The metric of the report that says which nodes were not measured and why.
const NOT_MEASURED: &str = "lp_exporter_node_not_measured";

fn under_disk_pressure(world: &World, node: &str) -> Result<()> {
    wait_for_condition(node, "DiskPressure", true)?;
    let done = run()?.ensure_done()?;
    let worker = done
        .workers
        .get(node)
        .with_context(|| format!("no worker on {node}:\n{}", done.log))?;
    let class = text(&worker["spec"]["priorityClassName"]);
    ensure!(
        class == "system-node-critical",
        "under disk pressure the worker has the class {class}"
    );
    ensure!(
        has_condition(&get(&["node", node])?, "DiskPressure"),
        "the pressure went away too early to tell anything"
    );
    ensure_measured(world, &[node])
}

/// Prints the parent of the first process of the container `$1`: what runs it.
const FIND_RUNTIME: &str = r#"
for process in /proc/[0-9]*; do
  grep -qs "$1" "$process/cgroup" || continue
  parent=$(sed -n 's/^PPid:[[:space:]]*//p' "$process/status")
  grep -qs "$1" "/proc/$parent/cgroup" || { echo "$parent"; exit; }
done"#;

/// Everything but one node's numbers is of this run, which kept to its clock and says which node was left out and why.
fn ensure_reported(
    world: &World,
    before: &BTreeMap<String, f64>,
    done: &Run,
    left_out: &str,
    reason: &str,
) -> Result<()> {
    ensure!(done.exit_code == 0, "exit {}:\n{}", done.exit_code, done.log);
    ensure!(
        done.seconds < INTERVAL_SECONDS as f64,
        "the run took {:.0} s",
        done.seconds
    );
    let after = world.push_times()?;
    for node in world.nodes.all() {
        let (then, now) = (before.get(node), after.get(node));
        ensure!(
            (now > then) == (node != left_out),
            "{node} was pushed at {now:?}, before at {then:?}:\n{}",
            done.log
        );
    }
    let report = world.report()?;
    let said = report
        .metrics
        .get(NOT_MEASURED)
        .into_iter()
        .flatten()
        .filter(|(_, value)| *value == 1.0);
    let said: Vec<_> = said
        .map(|(labels, _)| ["node", "reason"].map(|name| labels.get(name).map(String::as_str)))
        .collect();
    ensure!(said == [[Some(left_out), Some(reason)]], "not measured are {said:?}");
    world.figure(format!(
        "wall time of a run that reports a node as {reason}: {:.1} s",
        done.seconds
    ));
    Ok(())
}

/// Brings the lost node back and waits until a run measures it again.
pub(crate) fn come_back(world: &World) -> Result<()> {
    on_node(&world.settings.node_start, &world.nodes.lost, &[])?;
    wait_until_ready(&[&world.nodes.lost])?;
    fixtures::fill(&world.settings, &world.nodes, &world.claims)?;
    eventually(
        "the node that came back to be measured",
        Duration::from_secs(120),
        || {
            let before = world.push_times()?;
            run()?.ensure_done()?;
            let after = world.push_times()?;
            ensure!(
                after.get(&world.nodes.lost) > before.get(&world.nodes.lost),
                "{} is not measured yet",
                world.nodes.lost
            );
            Ok(())
        },
    )
}

/// The last run measured these nodes: their groups are not older than it.
pub(crate) fn ensure_measured(world: &World, nodes: &[&str]) -> Result<()> {
    let report = world.report()?;
    let start = report
        .sample("lp_exporter_run_start_timestamp_seconds", &[])
        .context("the report names its run")?;
    for node in nodes {
        let group = observe::find_group(super::WORKER, Some(node))?;
        let of_run = group.sample("lp_exporter_run_start_timestamp_seconds", &[]);
        ensure!(
            of_run == Some(start),
            "{node} was last measured by the run of {of_run:?}, not by that of {start}"
        );
    }
    Ok(())
}

pub(crate) fn wait_for_condition(node: &str, condition: &str, expected: bool) -> Result<()> {
    eventually(
        &format!("{condition} of {node} to be {expected}"),
        Duration::from_secs(90),
        || {
            let found = has_condition(&get(&["node", node])?, condition);
            ensure!(found == expected, "it is {found}");
            Ok(())
        },
    )
}

/// The pods of everybody but the exporter that run, by their identity.
fn running_pods(world: &World) -> Result<Vec<String>> {
    let pods = get(&["pods", "-A", "--field-selector", "status.phase=Running"])?;
    let ours = |pod: &&Value| pod["metadata"]["namespace"] != NAMESPACE;
    let mut names: Vec<_> = items(&pods)
        .iter()
        .filter(ours)
        .filter(|pod| world.nodes.all().contains(&text(&pod["spec"]["nodeName"]).as_str()))
        .map(|pod| format!("{} {}", text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"])))
        .collect();
    names.sort();
    Ok(names)
}

fn millicpu(quantity: &Value) -> Result<i64> {
    let quantity = quantity.as_str().context("no quantity")?;
    match quantity.strip_suffix('m') {
        Some(thousandths) => Ok(thousandths.parse()?),
        None => Ok(quantity.parse::<i64>()? * 1000),
    }
}
