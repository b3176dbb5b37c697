//! Runs that meet, runs that are ended, runs that cannot be.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::World;
use crate::fixtures::text;
use crate::install::{NAMESPACE, patch_cron_job, restore_template, set_env, set_template, set_template_text};
use crate::kubectl::{get, items, kubectl};
use crate::runs::{run, start, start_by_schedule};

/// A run that is started by hand while one of the schedule lasts says who runs and since when, ends well, and disturbs nothing.
pub(crate) fn two_runs_at_once(world: &World) -> Result<()> {
    // The first of the two ends last and is the older one: a history of one would delete it before it is read.
    patch_cron_job(&json!({"spec": {"successfulJobsHistoryLimit": 3}}))?;
    let both = at_once(world);
    patch_cron_job(&json!({"spec": {"successfulJobsHistoryLimit": 1}}))?;
    restore_template()?;
    both?;
    if world.settings.node_exec.words.is_some() {
        world.ensure_true_numbers(&world.claims.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// So long the first of two runs waits for the second one.
const HOLD_SECONDS: u32 = 12;

fn at_once(world: &World) -> Result<()> {
    hold_workers(world, &world.nodes.home, HOLD_SECONDS)?;
    let first = start_by_schedule()?;
    first.wait_for_worker(&world.nodes.home, is_held)?;
    let second = start()?.finish()?.ensure_done()?;
    ensure!(
        second.log.contains(first.job()) && second.log.contains("since"),
        "the second run says not who runs:\n{}",
        second.log
    );
    let jobs = worker_jobs()?;
    ensure!(jobs.len() <= 3, "two workers for one node: {jobs:?}");
    let first = first.finish()?.ensure_done()?;
    for node in world.nodes.all() {
        first.worker_summary(node)?;
    }
    Ok(())
}

/// A controller that is asked to end reports, removes its workers and leaves the lock free for the next run.
pub(crate) fn a_run_that_is_ended_early(world: &World) -> Result<()> {
    hold_workers(world, &world.nodes.home, 3600)?;
    let before = world.report()?.push_time_seconds;
    let ended = start()?;
    ended.wait_for_worker(&world.nodes.home, is_held)?;
    // Deleting the Job ends its pod with a SIGTERM, and nothing is started in its place.
    kubectl(&["delete", "job", ended.job(), "-n", NAMESPACE])?;
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
    ])?;
    restore_template()?;
    let report = world.report()?;
    ensure!(
        report.push_time_seconds > before,
        "a run that was ended has not reported"
    );
    let left = worker_jobs()?;
    ensure!(left.is_empty(), "a run that was ended left the workers {left:?}");
    let next = run()?.ensure_done()?;
    ensure!(
        next.seconds < 30.0,
        "the run after one that was ended took {:.0} s",
        next.seconds
    );
    for node in world.nodes.all() {
        next.worker_summary(node)?;
    }
    Ok(())
}

/// What is wrong is said, with the exit code that is documented for it, and is tried again only if that may help.
pub(crate) fn bad_input(_: &World) -> Result<()> {
    struct Case {
        name: &'static str,
        make: fn() -> Result<()>,
        undo: fn() -> Result<()>,
        exit_code: i64,
        attempts: usize,
        says: &'static str,
    }
    let cases = [
        Case {
            name: "a base path that is not absolute",
            make: || set_env("LP_EXPORTER_BASE_PATHS=relative/path"),
            undo: || set_env(&format!("LP_EXPORTER_BASE_PATHS={}", crate::fixtures::BASES.join(","))),
            exit_code: 2,
            attempts: 1,
            says: "relative/path",
        },
        Case {
            name: "a template with a field that Kubernetes does not know",
            make: || set_template(|template| template["spec"]["template"]["spec"]["tolerance"] = json!([])),
            undo: restore_template,
            exit_code: 2,
            attempts: 1,
            says: "tolerance",
        },
        Case {
            name: "a template that is no YAML",
            make: || set_template_text("kind: Job\n  metadata: ["),
            undo: restore_template,
            exit_code: 2,
            attempts: 1,
            says: "line 2",
        },
        Case {
            name: "a template that sets what the controller owns",
            make: || set_template(|template| template["metadata"]["name"] = json!("mine")),
            undo: restore_template,
            exit_code: 2,
            attempts: 1,
            says: "metadata.name",
        },
        Case {
            name: "a Pushgateway that is not there",
            make: || set_env("LP_EXPORTER_PUSHGATEWAY_URL=http://pushgateway:1"),
            undo: || set_env("LP_EXPORTER_PUSHGATEWAY_URL=http://pushgateway:9091"),
            exit_code: 5,
            attempts: 2,
            says: "http://pushgateway:1",
        },
        Case {
            name: "an interval that does not fit the CronJob's deadline",
            make: || set_env("LP_EXPORTER_INTERVAL=55s"),
            undo: || set_env(&format!("LP_EXPORTER_INTERVAL={}s", crate::install::INTERVAL_SECONDS)),
            exit_code: 2,
            attempts: 1,
            says: "interval",
        },
    ];
    let mut wrong = Vec::new();
    for case in cases {
        (case.make)()?;
        let done = run();
        (case.undo)()?;
        let done = done.with_context(|| case.name)?;
        let is_right =
            done.exit_code == case.exit_code && done.attempts == case.attempts && done.log.contains(case.says);
        if !is_right {
            wrong.push(format!(
                "{}: exit {} in {} attempts, expected {} in {} and {:?} in:\n{}",
                case.name, done.exit_code, done.attempts, case.exit_code, case.attempts, case.says, done.log
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Makes the worker on `node` wait before it measures, by an init container of the template.
pub(crate) fn hold_workers(world: &World, node: &str, seconds: u32) -> Result<()> {
    let script = format!("[ \"$NODE\" != {node} ] || sleep {seconds}");
    let image = world.settings.busybox_image.clone();
    set_template(|template| {
        template["spec"]["template"]["spec"]["initContainers"] = json!([{
            "name": "hold", "image": image, "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-c", script],
            "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        }]);
    })
}

/// Whether the init container of [`hold_workers`] runs.
pub(crate) fn is_held(pod: &Value) -> bool {
    pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
}

/// The names of the workers' Jobs that exist.
fn worker_jobs() -> Result<Vec<String>> {
    let jobs = get(&["jobs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=worker"])?;
    Ok(items(&jobs).iter().map(|job| text(&job["metadata"]["name"])).collect())
}
