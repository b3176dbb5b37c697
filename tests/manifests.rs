//! The manifests agree with the program and with each other.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lp_exporter::deadlines::{JobClock, deadlines};
use serde::Deserialize;
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

/// The component grants one right, to the account that the base makes, and sets the flag that needs it.
#[test]
fn the_component_for_pods_grants_one_right() {
    let text = read("manifests/components/locate-by-pods/rbac.yaml");
    let objects = serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML"));
    let [role, binding]: [Value; 2] = objects.collect::<Vec<_>>().try_into().expect("a role and its binding");
    let rule = "[{apiGroups: [''], resources: [pods], verbs: [list]}]";
    assert_eq!(role["rules"], serde_yaml::from_str::<Value>(rule).expect("YAML"));
    assert_eq!(role["kind"], "ClusterRole");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let account = "{kind: ServiceAccount, name: lp-exporter, namespace: lp-exporter}";
    assert_eq!(
        binding["subjects"][0],
        serde_yaml::from_str::<Value>(account).expect("YAML")
    );
    let patch = yaml("manifests/components/locate-by-pods/kustomization.yaml")["patches"][0]["patch"].clone();
    let patch: Value = serde_yaml::from_str(patch.as_str().expect("a patch")).expect("YAML");
    let env = &patch["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["env"][0];
    assert_eq!(
        (&env["name"], &env["value"]),
        (&"LP_EXPORTER_LOCATE_BY_PODS".into(), &"true".into())
    );
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
    serde_yaml::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
