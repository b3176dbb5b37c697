//! The numbers are true, and stay no longer than what they are of.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{TAINT, WORKER, World};
use crate::fixtures::{CLASSES, text};
use crate::install::NAMESPACE;
use crate::kubectl::{eventually, kubectl};
use crate::observe;
use crate::runs::{run, start_by_schedule};

/// With one node tainted and one cordoned, every claim's number is what `du` says on its node.
pub(crate) fn every_claim_is_what_du_says(world: &World) -> Result<()> {
    for effect in ["NoSchedule", "NoExecute"] {
        kubectl(&[
            "taint",
            "node",
            &world.nodes.troubled,
            &format!("{TAINT}=full:{effect}"),
        ])?;
    }
    kubectl(&["cordon", &world.nodes.lost])?;
    let done = run()?.ensure_done()?;
    world.ensure_true_numbers(&world.claims.iter().collect::<Vec<_>>())?;
    for effect in ["NoSchedule", "NoExecute"] {
        kubectl(&["taint", "node", &world.nodes.troubled, &format!("{TAINT}:{effect}-")])?;
    }
    kubectl(&["uncordon", &world.nodes.lost])?;

    // The expression of the dashboards that people have.
    let shares =
        observe::query("100 * local_volume_stats_used_bytes / ignoring(job) local_volume_stats_capacity_bytes")?;
    ensure!(
        shares.len() >= world.claims.len(),
        "{} shares for {} claims",
        shares.len(),
        world.claims.len()
    );

    world.figure(format!(
        "wall time of a run over {} volumes on 3 nodes: {:.1} s (goal 12 s)",
        world.claims.len(),
        done.seconds
    ));
    let report = world.report()?;
    let controller = report
        .sample("lp_exporter_controller_peak_memory_bytes", &[])
        .context("the controller's memory")?;
    world.figure(format!(
        "peak memory of the controller: {:.1} MB (goal 40 MB)",
        controller / 1e6
    ));
    for node in world.nodes.all() {
        let worker = report
            .sample("lp_exporter_worker_peak_memory_bytes", &[("node", node)])
            .context("a worker's memory")?;
        world.figure(format!(
            "peak memory of the worker on {node}: {:.1} MB (goal 12 MB)",
            worker / 1e6
        ));
        println!("worker on {node}: {}", done.worker_summary(node)?);
    }
    println!("the controller's summary: {}", done.summary()?);
    Ok(())
}

/// The schedule starts a run, whose report differs from the one before.
pub(crate) fn a_run_by_the_schedule(world: &World) -> Result<()> {
    let before = world.report()?.push_time_seconds;
    start_by_schedule()?.finish()?.ensure_done()?;
    let after = world.report()?.push_time_seconds;
    ensure!(
        after > before,
        "the report was pushed at {before} and, after a run of the schedule, at {after}"
    );
    Ok(())
}

/// Nothing piles up: Jobs, pods, ConfigMaps and groups are as many after ten runs as after one.
pub(crate) fn ten_runs_leave_what_one_leaves(_: &World) -> Result<()> {
    let count = || -> Result<_> {
        // The history of the CronJob is cut a moment after a run.
        std::thread::sleep(Duration::from_secs(3));
        let listed =
            |kinds: &str| kubectl(&["get", kinds, "-n", NAMESPACE, "-o", "name"]).map(|names| names.lines().count());
        Ok([
            listed("pods")?,
            listed("jobs")?,
            listed("configmaps")?,
            listed("leases")?,
            observe::groups()?.len(),
        ])
    };
    run()?.ensure_done()?;
    let after_one = count()?;
    for _ in 0..9 {
        run()?.ensure_done()?;
    }
    let after_ten = count()?;
    ensure!(
        after_one == after_ten,
        "pods, Jobs, ConfigMaps, Leases and groups: {after_one:?} after one run, {after_ten:?} after ten\n{}",
        kubectl(&["get", "pods,jobs,configmaps", "-n", NAMESPACE])?
    );
    Ok(())
}

/// The worker's own filter refuses the way out of its mounts, and its pod is as narrow as the template says.
pub(crate) fn the_worker_is_confined(world: &World) -> Result<()> {
    let done = run()?.ensure_done()?;
    for node in world.nodes.all() {
        let summary = done.worker_summary(node)?;
        ensure!(summary["confined"] == true, "on {node}: {summary}");
        let pod = done.workers.get(node).context("a worker was seen")?;
        let container = &pod["spec"]["containers"][0];
        ensure!(
            container["securityContext"]["capabilities"] == json!({"add": ["DAC_READ_SEARCH"], "drop": ["ALL"]}),
            "{container}"
        );
        ensure!(
            container["securityContext"]["readOnlyRootFilesystem"] == true,
            "{container}"
        );
        let mounts = container["volumeMounts"].as_array().context("mounts")?;
        ensure!(mounts.iter().all(|mount| mount["readOnly"] == true), "{mounts:?}");
        ensure!(
            !mounts
                .iter()
                .any(|mount| text(&mount["mountPath"]).contains("serviceaccount")),
            "a token: {mounts:?}"
        );
    }
    Ok(())
}

/// A claim that is deleted between two runs is on no group of the Pushgateway; a node whose last volume goes loses its
/// group.
pub(crate) fn a_deleted_claim_leaves_nothing(world: &World) -> Result<()> {
    run()?.ensure_done()?;
    let claim = world
        .claims
        .iter()
        .find(|claim| claim.class == CLASSES[0] && claim.name == "data-1")
        .context("a claim")?;
    ensure!(mentions(claim.namespace, claim.name)? > 0, "nothing to delete");
    delete_volumes(world, |other| {
        other.node == claim.node && other.namespace == claim.namespace && other.name == claim.name
    })?;
    run()?.ensure_done()?;
    ensure!(
        mentions(claim.namespace, claim.name)? == 0,
        "{}/{} is still on the Pushgateway",
        claim.namespace,
        claim.name
    );
    let rest: Vec<_> = world
        .claims
        .iter()
        .filter(|other| other.namespace != claim.namespace || other.name != claim.name)
        .collect();
    if world.settings.node_exec.words.is_some() {
        world.ensure_true_numbers(&rest)?;
    }

    delete_volumes(world, |other| other.node == world.nodes.lost)?;
    run()?.ensure_done()?;
    let left = observe::find_group(WORKER, Some(&world.nodes.lost));
    ensure!(
        left.is_err(),
        "{} has no volume any more, but its group is there: {left:?}",
        world.nodes.lost
    );
    Ok(())
}

/// How many samples on the Pushgateway are of a claim.
fn mentions(namespace: &str, claim: &str) -> Result<usize> {
    let groups = observe::groups()?;
    let samples = groups.iter().flat_map(|group| group.metrics.values().flatten());
    let is_of = |labels: &observe::Labels| {
        labels.get("namespace").is_some_and(|value| value == namespace)
            && labels.get("persistentvolumeclaim").is_some_and(|value| value == claim)
    };
    Ok(samples.filter(|(labels, _)| is_of(labels)).count())
}

/// Deletes claims, with the pods that hold them and the volumes that are retained, and waits until they are gone.
fn delete_volumes(world: &World, is_meant: impl Fn(&crate::fixtures::Claim) -> bool) -> Result<()> {
    let volumes = crate::fixtures::volumes(&world.claims)?;
    for claim in world.claims.iter().filter(|claim| is_meant(claim)) {
        let Some(volume) = volumes.get(&(claim.namespace.to_owned(), claim.name.to_owned())) else {
            continue;
        };
        let writer = format!("writer-{}", claim.node);
        kubectl(&["delete", "pod", &writer, "-n", claim.namespace, "--ignore-not-found"])?;
        kubectl(&["delete", "pvc", claim.name, "-n", claim.namespace])?;
        if claim.class == CLASSES[1] {
            kubectl(&["delete", "pv", &volume.persistentvolume])?;
        }
        eventually("a volume to be deleted", Duration::from_secs(60), || {
            let left = kubectl(&[
                "get",
                "pv",
                &volume.persistentvolume,
                "--ignore-not-found",
                "-o",
                "name",
            ])?;
            ensure!(left.is_empty(), "{left} is still there");
            Ok(())
        })?;
    }
    Ok(())
}
