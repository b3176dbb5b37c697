//! The Pushgateway in trouble, and what has to go from it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::World;
use super::nodes::{come_back, ensure_measured, wait_for_condition};
use super::runs::{hold_workers, is_held};
use crate::install::{NAMESPACE, NODE_ROLE_LABEL, restore_template};
use crate::kubectl::{eventually, get, items, kubectl, on_node};
use crate::observe;
use crate::runs::{Run, run, start};

/// So long the last worker waits while the Pushgateway is replaced.
const HOLD_SECONDS: u32 = 25;
const SELECTOR: &str = "app.kubernetes.io/component=pushgateway";
const NOT_MEASURED: &str = "lp_exporter_node_not_measured";

/// A Pushgateway without memory is replaced when two nodes have delivered and the third has not: its numbers arrive, the
/// capacities are put again, the two are told, and the next run brings them back.
pub(crate) fn the_pushgateway_is_replaced_in_mid_run(world: &World) -> Result<()> {
    let done = disturb(world, || {
        kubectl(&[
            "delete",
            "pod",
            "-n",
            NAMESPACE,
            "-l",
            SELECTOR,
            "--grace-period=0",
            "--force",
        ])?;
        Ok(())
    })?;
    let capacities = observe::find_group("lp-exporter", None)?;
    let series = capacities.metrics.get("local_volume_stats_capacity_bytes");
    ensure!(
        series.is_some_and(|series| !series.is_empty()),
        "no capacities:\n{}",
        done.log
    );
    ensure_measured(world, &[&world.nodes.home])?;
    for node in [&world.nodes.troubled, &world.nodes.lost] {
        let lost = [("node", node.as_str()), ("reason", "numbers_lost")];
        ensure!(
            world.report()?.sample(NOT_MEASURED, &lost) == Some(1.0),
            "that the numbers of {node} were lost is not told:\n{}",
            done.log
        );
    }
    run()?.ensure_done()?;
    ensure_measured(world, &world.nodes.all())?;
    world.figure(format!(
        "a run during which the Pushgateway was replaced by an empty one: {:.1} s",
        done.seconds
    ));
    Ok(())
}

/// The same, with a Pushgateway that is ended properly and remembers: nothing is lost.
pub(crate) fn the_pushgateway_is_restarted_in_mid_run(world: &World) -> Result<()> {
    let done = disturb(world, || {
        let pods = get(&["pods", "-n", NAMESPACE, "-l", SELECTOR])?;
        let pod = items(&pods).first().context("a Pushgateway")?;
        let field = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let node = field(&pod["spec"]["nodeName"]);
        let container = field(&pod["status"]["containerStatuses"][0]["containerID"]);
        let id = container.rsplit('/').next().unwrap_or_default();
        let ended = on_node(&world.settings.node_exec, &node, &["sh", "-c", END_PROCESS, "sh", id])?;
        ensure!(!ended.trim().is_empty(), "no process of the container {id} on {node}");
        Ok(())
    })?;
    ensure_measured(world, &world.nodes.all())?;
    ensure!(
        !done.log.contains("numbers_lost") && !done.log.contains("pushed again"),
        "something was lost:\n{}",
        done.log
    );
    Ok(())
}

/// A node that is deleted for good is gone from Prometheus after the next run, and the volumes that it leaves behind are
/// told.
pub(crate) fn a_node_that_is_deleted_for_good(world: &World) -> Result<()> {
    let node = &world.nodes.lost;
    run()?.ensure_done()?;
    observe::settle()?;
    let used = format!("local_volume_stats_used_bytes{{node=\"{node}\"}}");
    ensure!(
        !observe::query(&used)?.is_empty(),
        "{node} has no numbers to begin with"
    );
    on_node(&world.settings.node_stop, node, &[])?;
    let checked = wait_for_condition(node, "Ready", false).and_then(|()| {
        kubectl(&["delete", "node", node])?;
        let done = run()?.ensure_done()?;
        observe::settle()?;
        let left = observe::query(&used)?;
        ensure!(left.is_empty(), "numbers of {node} are left: {left:?}\n{}", done.log);
        let skipped = "local_volume_info{reason=\"node_gone\"}";
        let volumes = world.claims.iter().filter(|claim| claim.node == *node).count();
        let told = observe::query(skipped)?.len();
        ensure!(
            told == volumes,
            "{told} of {volumes} volumes of {node} are told:\n{}",
            done.log
        );
        Ok(())
    });
    // It registers anew, without the label.
    come_back(world)?;
    kubectl(&["label", "node", node, "--overwrite", &format!("{NODE_ROLE_LABEL}=lost")])?;
    checked
}

/// Ends every process of the container `$1` that is the Pushgateway's, and prints it.
const END_PROCESS: &str = r#"
for process in /proc/[0-9]*; do
  grep -qs "$1" "$process/cgroup" && grep -qs push "$process/comm" && kill -TERM "${process#/proc/}" && echo "$process"
done
true"#;

/// Holds one worker back until two nodes have delivered and the Pushgateway has been disturbed.
fn disturb(world: &World, disturbance: impl Fn() -> Result<()>) -> Result<Run> {
    run()?.ensure_done()?;
    let before = world.push_times()?;
    hold_workers(world, &world.nodes.home, HOLD_SECONDS)?;
    let started = start()?;
    let disturbed = started.wait_for_worker(&world.nodes.home, is_held).and_then(|_| {
        eventually("two nodes to have delivered", Duration::from_secs(20), || {
            let now = world.push_times()?;
            for node in [&world.nodes.troubled, &world.nodes.lost] {
                ensure!(now.get(node) > before.get(node), "{node} has not");
            }
            Ok(())
        })?;
        disturbance()?;
        eventually(
            "the Pushgateway to serve again",
            Duration::from_secs(60),
            observe::groups,
        )
    });
    let done = disturbed.and_then(|_| started.finish());
    restore_template()?;
    done?.ensure_done()
}
