//! The rights of the controller are the least: each of them is missed when it is gone.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::World;
use crate::fixtures::text;
use crate::install::{NAMESPACE, patch_cron_job, wait_for_right};
use crate::kubectl::{apply, get, kubectl};
use crate::observe::Labels;
use crate::runs::run;

/// Takes away one verb on one resource at a time; the exit code or a metric of the report must tell.
pub(crate) fn every_right_is_needed(world: &World) -> Result<()> {
    // One attempt of each run tells.
    patch_cron_job(&json!({"spec": {"jobTemplate": {"spec": {"backoffLimit": 0}}}}))?;
    run()?.ensure_done()?;
    let baseline = outcome(world, 0)?;
    let mut table = Vec::new();
    let mut unnoticed = Vec::new();
    for role in ["clusterrole", "role"] {
        let whole = get(&[role, "lp-exporter", "-n", NAMESPACE])?;
        for (index, rule) in whole["rules"].as_array().into_iter().flatten().enumerate() {
            for (resource, verb) in pairs(rule) {
                let name = format!("{verb} {resource}");
                // The first run makes the Lease, every other one updates it.
                match name.as_str() {
                    "create leases" => drop(kubectl(&["delete", "lease", "lp-exporter", "-n", NAMESPACE])?),
                    _ if resource == "leases" => drop(run()?.ensure_done()?),
                    _ => {}
                }
                apply(&[without(&whole, index, &resource, &verb)])?;
                wait_for_right(&verb, &right_of(rule, &resource), "no")?;
                let done = run();
                apply(&[bare(&whole)])?;
                wait_for_right(&verb, &right_of(rule, &resource), "yes")?;
                let done = done?;
                let found = outcome(world, done.exit_code)?;
                let changes = differences(&baseline, &found);
                table.push(format!(
                    "{name:32} exit {} in {:4.1} s  {}",
                    done.exit_code,
                    done.seconds,
                    changes.join(", ")
                ));
                println!("  without {}", table.last().map_or("", String::as_str));
                if done.exit_code == 0 && changes.is_empty() {
                    unnoticed.push(name);
                }
            }
        }
    }
    patch_cron_job(&json!({"spec": {"jobTemplate": {"spec": {"backoffLimit": 1}}}}))?;
    // What was left behind without the right to delete it is gone after one good run.
    run()?.ensure_done()?;
    ensure!(
        unnoticed.is_empty(),
        "nothing tells that these are missing: {unnoticed:?}"
    );
    world.figure(format!(
        "rights of the controller, each of them needed: {}",
        table.len()
    ));
    Ok(())
}

/// The exit code, and the samples of the report that do not change from run to run by themselves.
fn outcome(world: &World, exit_code: i64) -> Result<Vec<(String, Labels, f64)>> {
    // The report is pushed before the controller ends, if it is pushed at all.
    std::thread::sleep(Duration::from_millis(200));
    let mut samples = vec![("exit".to_owned(), Labels::new(), exit_code as f64)];
    for (metric, family) in world.report()?.metrics {
        let is_steady = !metric.ends_with("_seconds") && !metric.ends_with("_bytes");
        samples.extend(
            family
                .into_iter()
                .filter(|_| is_steady)
                .map(|(labels, value)| (metric.clone(), labels, value)),
        );
    }
    Ok(samples)
}

/// The metrics that are in one outcome only.
fn differences(one: &[(String, Labels, f64)], other: &[(String, Labels, f64)]) -> Vec<String> {
    let missing = one.iter().filter(|sample| !other.contains(sample));
    let added = other.iter().filter(|sample| !one.contains(sample));
    let mut names: Vec<_> = missing
        .chain(added)
        .filter(|sample| sample.0 != "exit")
        .map(|sample| sample.0.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Every resource of a rule with every verb.
fn pairs(rule: &Value) -> Vec<(String, String)> {
    let list = |key: &str| rule[key].as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let verbs = list("verbs");
    list("resources")
        .into_iter()
        .flat_map(|resource| verbs.iter().map(move |verb| (resource.clone(), verb.clone())))
        .collect()
}

/// How `kubectl auth can-i` names what a rule is about.
fn right_of(rule: &Value, resource: &str) -> String {
    let group = text(&rule["apiGroups"][0]);
    let full = if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    };
    match rule["resourceNames"][0].as_str() {
        Some(name) => format!("{full}/{name}"),
        None => full,
    }
}

/// The role without `verb` on `resource` in the rule `index`, and with everything else.
fn without(role: &Value, index: usize, resource: &str, verb: &str) -> Value {
    let mut narrowed = bare(role);
    let Some(rules) = narrowed["rules"].as_array_mut() else {
        return narrowed;
    };
    let mut alone = rules[index].clone();
    alone["resources"] = json!([resource]);
    alone["verbs"] = json!(
        pairs(&alone)
            .into_iter()
            .map(|pair| pair.1)
            .filter(|other| other != verb)
            .collect::<Vec<_>>()
    );
    let others: Vec<_> = pairs(&rules[index])
        .into_iter()
        .map(|pair| pair.0)
        .filter(|other| other != resource)
        .collect();
    rules[index]["resources"] = json!(others);
    // A rule without resources or without verbs is refused.
    if others.is_empty() {
        rules.remove(index);
    }
    if alone["verbs"].as_array().is_some_and(|verbs| !verbs.is_empty()) {
        rules.push(alone);
    }
    narrowed
}

/// A role as it is applied: without what the server added.
fn bare(role: &Value) -> Value {
    json!({
        "apiVersion": role["apiVersion"], "kind": role["kind"],
        "metadata": {"name": role["metadata"]["name"], "namespace": role["metadata"]["namespace"], "labels": role["metadata"]["labels"]},
        "rules": role["rules"],
    })
}
