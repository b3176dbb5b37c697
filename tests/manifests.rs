//! The manifests agree with the program and with each other.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lp_exporter::deadlines::{JobClock, deadlines};
use serde_yaml::Value;

/// The schedule, the interval that the program is told, and the deadline that ends it stand in three places of one file:
/// they agree, and leave the workers time to measure.
#[test]
fn schedule_interval_and_deadline_agree() {
    let overlay = yaml("manifests/overlays/default/kustomization.yaml");
    let patch = overlay["patches"][0]["patch"]
        .as_str()
        .expect("the patch of the CronJob");
    let cron_job: Value = serde_yaml::from_str(patch).expect("the patch is YAML");
    let job = &cron_job["spec"]["jobTemplate"]["spec"];
    let env = &job["template"]["spec"]["containers"][0]["env"][0];
    assert_eq!(env["name"], "LP_EXPORTER_INTERVAL");

    let interval = humantime::parse_duration(env["value"].as_str().expect("text")).expect("a duration");
    assert_eq!(period(cron_job["spec"]["schedule"].as_str().expect("text")), interval);
    let deadline = Duration::from_secs(job["activeDeadlineSeconds"].as_u64().expect("a number"));
    let nested = deadlines(
        interval,
        Some(JobClock {
            active_deadline: deadline,
            elapsed: Duration::ZERO,
        }),
    )
    .expect("deadlines that nest");
    assert!(
        nested.worker_budget * 2 > interval,
        "{nested:?} leaves less than half of {interval:?} to measure in"
    );
}

/// The namespace and the names that the base gives are those that the program looks for or makes.
#[test]
fn the_base_names_what_the_program_expects() {
    let container =
        yaml("manifests/base/cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0].clone();
    let mounted_at = container["volumeMounts"][0]["mountPath"].as_str().expect("text");
    let template = container["env"]
        .as_sequence()
        .expect("a list")
        .iter()
        .find(|env| env["name"] == "LP_EXPORTER_JOB_TEMPLATE");
    let template = template.expect("the template is given")["value"]
        .as_str()
        .expect("text");
    let files = yaml("jobs/kustomization.yaml")["configMapGenerator"][0]["files"].clone();
    assert_eq!(template, format!("{mounted_at}/{}", files[0].as_str().expect("text")));
}

/// The time between two starts of a schedule of the form `*/N * * * *`.
fn period(schedule: &str) -> Duration {
    let minutes = schedule
        .strip_prefix("*/")
        .and_then(|rest| rest.strip_suffix(" * * * *"))
        .expect("a schedule `*/N * * * *`");
    let minutes: u64 = minutes.parse().expect("a number of minutes");
    assert_eq!(
        60 % minutes,
        0,
        "with */{minutes} the last run of an hour is followed sooner than the others"
    );
    Duration::from_secs(60 * minutes)
}

fn yaml(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
