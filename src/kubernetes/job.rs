//! The Job of a worker: the template, which is the user's, and the fields that are the controller's.
//!
//! A template is read strictly: a key given twice, a wrong type, a field that Kubernetes does not know and a field that the
//! controller owns are errors that name the place.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMap, ConfigMapVolumeSource, Container, EnvVar, HostPathVolumeSource, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::volumes::node_plan::{BASES_DIRECTORY, Base};
use crate::volumes::quantity;

/// The label that names the instance (the CronJob) a worker belongs to.
pub const INSTANCE_LABEL: &str = "lp-exporter/instance";
/// The label that names the run a worker belongs to.
pub const RUN_LABEL: &str = "lp-exporter/run";
/// The annotation with the full name of the node; a label could not hold it, a name has up to 253 characters.
pub const NODE_ANNOTATION: &str = "lp-exporter/node";
/// The label that tells workers from the controller.
const COMPONENT_LABEL: (&str, &str) = ("app.kubernetes.io/component", "worker");

/// The template that is compiled in: jobs/worker.yaml.
pub const DEFAULT_TEMPLATE: &str = include_str!("../../jobs/worker.yaml");

/// The container of the template that the worker runs in.
const CONTAINER: &str = "worker";
/// The volume with the plan, and where it is mounted.
const PLAN_VOLUME: &str = "lp-exporter-plan";
const PLAN_DIRECTORY: &str = "/etc/lp-exporter/plan";
/// The plan's file in its ConfigMap.
const PLAN_KEY: &str = "plan.json.gz";
/// The volumes with the base directories.
const BASE_VOLUME_PREFIX: &str = "lp-exporter-base-";
/// The variable that tells the worker where its plan is.
const PLAN_VARIABLE: &str = "LP_EXPORTER_PLAN";
/// The class of a worker's pod unless the template names one. It never preempts.
const PRIORITY_CLASS: &str = "lp-exporter-worker";
/// The class under DiskPressure: kubelet admits only critical pods then.
const CRITICAL_PRIORITY_CLASS: &str = "system-node-critical";

/// The longest Job name: that of a label's value, which the pods carry it in.
const NAME_MAX_CHARS: usize = 63;
/// Characters of the hash that makes a name unique, and of the instance's name that are kept before it.
const NAME_HASH_CHARS: usize = 10;
const NAME_INSTANCE_MAX_CHARS: usize = 20;

/// A checked template.
#[derive(Clone, Debug)]
pub struct Template {
    job: Job,
}

/// What is wrong with a template.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// It is not YAML, has a key twice, or a value of a wrong type.
    #[error("{0}")]
    Syntax(String),
    /// It has a field that a Job does not have.
    #[error("{0}: a Job has no such field; check its spelling and where it stands")]
    UnknownField(String),
    /// It sets a field that the controller sets.
    #[error("{field}: {why}; remove it from the template")]
    Owned {
        /// The field.
        field: String,
        /// Why it is not the template's.
        why: &'static str,
    },
    /// It lacks what a worker cannot do without.
    #[error("{field}: {needed}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What has to stand there.
        needed: &'static str,
    },
}

/// What a worker's Job is made of, besides the template.
#[derive(Clone, Debug)]
pub struct WorkerSpec<'a> {
    /// The namespace of the Job.
    pub namespace: &'a str,
    /// The instance's name.
    pub instance: &'a str,
    /// The run's name.
    pub run_id: &'a str,
    /// The node.
    pub node: &'a str,
    /// Counts the Jobs that this run makes for the node.
    pub attempt: u32,
    /// Whether only critical pods are let in on the node.
    pub disk_pressure: bool,
    /// Name and uid of the CronJob that is to own the Job.
    pub cron_job: Option<(&'a str, &'a str)>,
    /// The worker's image.
    pub image: &'a str,
    /// `LP_EXPORTER_*` variables; one that the template sets itself is left to it.
    pub environment: &'a [(&'static str, String)],
    /// The base directories.
    pub bases: &'a [Base],
    /// `activeDeadlineSeconds`.
    pub active_deadline_seconds: u64,
}

/// The one place that reads YAML.
///
/// The text is read twice: into a plain value, which finds keys given twice and resolves `<<`, and from there into the Job.
fn parse(text: &str) -> Result<Job, TemplateError> {
    let mut value: serde_yaml::Value =
        serde_yaml::from_str(text).map_err(|error| TemplateError::Syntax(error.to_string()))?;
    let plain = value.clone();
    value
        .apply_merge()
        .map_err(|error| TemplateError::Syntax(error.to_string()))?;
    let mut unknown = Vec::new();
    let job = if value == plain {
        // From the text, because then an error knows its line.
        typed(serde_yaml::Deserializer::from_str(text), &mut unknown)?
    } else {
        typed(value, &mut unknown)?
    };
    match unknown.into_iter().next() {
        Some(field) => {
            let line = line_of(text, &field)
                .map(|line| format!(" (line {line})"))
                .unwrap_or_default();
            Err(TemplateError::UnknownField(format!("{field}{line}")))
        }
        None => Ok(job),
    }
}

fn typed<'de, D>(deserializer: D, unknown: &mut Vec<String>) -> Result<Job, TemplateError>
where
    D: serde::Deserializer<'de, Error = serde_yaml::Error>,
{
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    let read = Job::deserialize(serde_ignored::Deserializer::new(tracked, &mut |path| {
        // `?` stands for an optional value.
        unknown.push(path.to_string().replace(".?", ""))
    }));
    read.map_err(|error: serde_yaml::Error| {
        let path = track.path().to_string();
        // kubectl reads 0444 as octal, YAML 1.2 does not.
        let is_mode = path.ends_with("defaultMode") || path.ends_with(".mode");
        let hint = if is_mode {
            "; write a file mode as a decimal number (0444 is 292)"
        } else {
            ""
        };
        let error = error.to_string();
        // The library names the path itself in some of its errors, and "." is the whole.
        let place = if path == "." || error.starts_with(&path) {
            String::new()
        } else {
            format!("{path}: ")
        };
        TemplateError::Syntax(format!("{place}{error}{hint}"))
    })
}

/// The line on which the last key of a path stands, if that key stands on one line only.
fn line_of(text: &str, path: &str) -> Option<usize> {
    let key = format!("{}:", path.rsplit('.').next()?);
    let is_key = |line: &str| line.trim_start().trim_start_matches("- ").starts_with(&key);
    let mut lines = text.lines().enumerate().filter(|(_, line)| is_key(line));
    match (lines.next(), lines.next()) {
        (Some((index, _)), None) => Some(index + 1),
        _ => None,
    }
}

impl Template {
    /// Reads and checks a template.
    ///
    /// # Errors
    /// See [`TemplateError`]; each names the field.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let job = parse(text)?;
        check_metadata(&job.metadata)?;
        let Some(spec) = &job.spec else {
            return Err(TemplateError::Missing {
                field: "spec",
                needed: "a Job needs one",
            });
        };
        let owned = |is_set: bool, field: &str, why: &'static str| {
            if is_set {
                Err(TemplateError::Owned {
                    field: field.to_owned(),
                    why,
                })
            } else {
                Ok(())
            }
        };
        owned(
            spec.active_deadline_seconds.is_some(),
            "spec.activeDeadlineSeconds",
            "it follows from the interval",
        )?;
        owned(
            spec.backoff_limit.is_some(),
            "spec.backoffLimit",
            "the next run is the second try",
        )?;
        owned(spec.completions.is_some(), "spec.completions", "a node has one worker")?;
        owned(spec.parallelism.is_some(), "spec.parallelism", "a node has one worker")?;
        owned(
            spec.completion_mode.is_some(),
            "spec.completionMode",
            "a node has one worker",
        )?;
        owned(
            spec.suspend.is_some(),
            "spec.suspend",
            "a suspended worker would never measure",
        )?;
        owned(spec.selector.is_some(), "spec.selector", "Kubernetes makes it")?;
        owned(
            spec.manual_selector.is_some(),
            "spec.manualSelector",
            "Kubernetes makes the selector",
        )?;
        let Some(pod) = &spec.template.spec else {
            return Err(TemplateError::Missing {
                field: "spec.template.spec",
                needed: "a pod needs one",
            });
        };
        check_pod(pod)?;
        check_quantities(pod)?;
        if let Some(metadata) = &spec.template.metadata {
            check_labels(metadata, "spec.template.metadata")?;
        }
        Ok(Template { job })
    }

    /// Whether it sets a variable of the worker.
    pub fn sets_variable(&self, name: &str) -> bool {
        self.variable(name).is_some()
    }

    /// What it sets a variable of the worker to, if it does. Of a name that stands there twice, the last one counts.
    pub fn variable(&self, name: &str) -> Option<&EnvVar> {
        let variables = self.worker().and_then(|worker| worker.env.as_ref());
        variables.into_iter().flatten().rfind(|variable| variable.name == name)
    }

    /// Whether the worker has variables that only a Secret or ConfigMap names.
    pub fn takes_variables_from_elsewhere(&self) -> bool {
        let sources = self.worker().and_then(|worker| worker.env_from.as_ref());
        sources.is_some_and(|sources| !sources.is_empty())
    }

    fn worker(&self) -> Option<&Container> {
        let pod = self.job.spec.as_ref()?.template.spec.as_ref()?;
        pod.containers.iter().find(|container| container.name == CONTAINER)
    }

    /// Makes the Job of a worker.
    pub fn job(&self, worker: &WorkerSpec<'_>) -> Job {
        let mut job = self.job.clone();
        let labels = labels(worker);
        let annotations = BTreeMap::from([(NODE_ANNOTATION.to_owned(), worker.node.to_owned())]);
        job.metadata.name = Some(job_name(worker));
        job.metadata.namespace = Some(worker.namespace.to_owned());
        // A plain reference: a controller reference would make the CronJob count the worker as a run of its own, and
        // blockOwnerDeletion needs a right on the CronJob's finalizers where that is enforced.
        job.metadata.owner_references = worker
            .cron_job
            .map(|(name, uid)| vec![owner("batch/v1", "CronJob", name, uid)]);
        job.metadata.labels.get_or_insert_default().extend(labels.clone());
        job.metadata
            .annotations
            .get_or_insert_default()
            .extend(annotations.clone());
        let spec = job.spec.get_or_insert_default();
        spec.active_deadline_seconds = i64::try_from(worker.active_deadline_seconds).ok();
        spec.backoff_limit = Some(0);
        let metadata = spec.template.metadata.get_or_insert_default();
        metadata.labels.get_or_insert_default().extend(labels);
        metadata.annotations.get_or_insert_default().extend(annotations);
        let pod = spec.template.spec.get_or_insert_default();
        let affinity = pod.affinity.get_or_insert_default();
        pin(affinity, worker.node);
        if pod.priority_class_name.is_none() {
            let class = if worker.disk_pressure {
                CRITICAL_PRIORITY_CLASS
            } else {
                PRIORITY_CLASS
            };
            pod.priority_class_name = Some(class.to_owned());
        }
        pod.volumes
            .get_or_insert_default()
            .extend(volumes(&job_name(worker), worker.bases));
        if let Some(container) = pod.containers.iter_mut().find(|container| container.name == CONTAINER) {
            complete(container, worker);
        }
        job
    }
}

/// Makes the ConfigMap that carries a plan to the worker whose Job is given: it lives as long as that Job.
///
/// `job` is the Job as the API server returned it, and `plan` the compressed plan.
pub fn plan_config_map(job: &Job, plan: Vec<u8>) -> ConfigMap {
    let name = job.metadata.name.clone().unwrap_or_default();
    let uid = job.metadata.uid.clone().unwrap_or_default();
    ConfigMap {
        metadata: ObjectMeta {
            owner_references: Some(vec![owner("batch/v1", "Job", &name, &uid)]),
            namespace: job.metadata.namespace.clone(),
            labels: job.metadata.labels.clone(),
            name: Some(name),
            ..ObjectMeta::default()
        },
        binary_data: Some(BTreeMap::from([(PLAN_KEY.to_owned(), ByteString(plan))])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// Writes a Job or a ConfigMap of ours as YAML.
pub fn yaml(object: &impl Serialize) -> String {
    serde_yaml::to_string(object).expect("a typed object has only text keys and goes into memory")
}

fn check_metadata(metadata: &ObjectMeta) -> Result<(), TemplateError> {
    let owned = |is_set: bool, field: &str| {
        let why = "the controller names its Jobs, puts them into its namespace and makes the CronJob their owner";
        if is_set {
            Err(TemplateError::Owned {
                field: format!("metadata.{field}"),
                why,
            })
        } else {
            Ok(())
        }
    };
    owned(metadata.name.is_some(), "name")?;
    owned(metadata.generate_name.is_some(), "generateName")?;
    owned(metadata.namespace.is_some(), "namespace")?;
    owned(metadata.owner_references.is_some(), "ownerReferences")?;
    check_labels(metadata, "metadata")
}

fn check_labels(metadata: &ObjectMeta, place: &str) -> Result<(), TemplateError> {
    let labels = metadata.labels.iter().flatten();
    let ours = |key: &str| [INSTANCE_LABEL, RUN_LABEL, NODE_ANNOTATION].contains(&key);
    let is_taken =
        |(key, value): &(&String, &String)| ours(key) || (*key == COMPONENT_LABEL.0 && *value != COMPONENT_LABEL.1);
    if let Some((key, _)) = labels.into_iter().find(is_taken) {
        let why = "the controller finds its workers by it";
        return Err(TemplateError::Owned {
            field: format!("{place}.labels.{key}"),
            why,
        });
    }
    if metadata
        .annotations
        .iter()
        .flatten()
        .any(|(key, _)| key == NODE_ANNOTATION)
    {
        let why = "the controller finds a worker's node by it";
        return Err(TemplateError::Owned {
            field: format!("{place}.annotations.{NODE_ANNOTATION}"),
            why,
        });
    }
    Ok(())
}

fn check_pod(pod: &PodSpec) -> Result<(), TemplateError> {
    let owned = |is_set: bool, field: String, why: &'static str| {
        if is_set {
            Err(TemplateError::Owned {
                field: format!("spec.template.spec.{field}"),
                why,
            })
        } else {
            Ok(())
        }
    };
    let pinned = "the controller pins the pod to its node by node affinity";
    owned(pod.node_name.is_some(), "nodeName".to_owned(), pinned)?;
    owned(pod.node_selector.is_some(), "nodeSelector".to_owned(), pinned)?;
    let node_affinity = pod
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    owned(node_affinity.is_some(), "affinity.nodeAffinity".to_owned(), pinned)?;
    if pod.restart_policy.as_deref() != Some("Never") {
        let needed = "it has to be Never: the controller reads the end of the one pod";
        return Err(TemplateError::Missing {
            field: "spec.template.spec.restartPolicy",
            needed,
        });
    }
    for (index, volume) in pod.volumes.iter().flatten().enumerate() {
        let taken = volume.name == PLAN_VOLUME || volume.name.starts_with(BASE_VOLUME_PREFIX);
        owned(
            taken,
            format!("volumes[{index}].name"),
            "volumes of that name are the controller's",
        )?;
    }
    let Some(worker) = pod.containers.iter().find(|container| container.name == CONTAINER) else {
        let needed = "one of them has to be named worker: that is where the controller puts the program";
        return Err(TemplateError::Missing {
            field: "spec.template.spec.containers",
            needed,
        });
    };
    check_container(worker)
}

/// Checks what the API server would refuse in each Job of every run: amounts that are no quantities.
fn check_quantities(pod: &PodSpec) -> Result<(), TemplateError> {
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        let Some(resources) = &container.resources else {
            continue;
        };
        for (kind, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
            for (resource, amount) in amounts.iter().flatten() {
                quantity::parse_bytes(&amount.0).map_err(|error| {
                    let name = &container.name;
                    TemplateError::Syntax(format!(
                        "spec.template.spec.containers[name={name}].resources.{kind}.{resource}: {error}"
                    ))
                })?;
            }
        }
    }
    Ok(())
}

fn check_container(worker: &Container) -> Result<(), TemplateError> {
    let owned = |is_set: bool, field: &str, why: &'static str| {
        let field = format!("spec.template.spec.containers[name=worker].{field}");
        if is_set {
            Err(TemplateError::Owned { field, why })
        } else {
            Ok(())
        }
    };
    owned(
        worker.image.is_some(),
        "image",
        "it is that of the controller's own pod, or --worker-image",
    )?;
    owned(
        worker.command.is_some(),
        "command",
        "the image's entry point is the program",
    )?;
    owned(
        worker.args.is_some(),
        "args",
        "the controller gives the worker its arguments",
    )?;
    owned(
        worker.restart_policy.is_some(),
        "restartPolicy",
        "the controller reads the end of the one container",
    )?;
    let message_path = worker.termination_message_path.is_some();
    owned(
        message_path,
        "terminationMessagePath",
        "the controller reads the worker's summary there",
    )?;
    let plan = worker
        .env
        .iter()
        .flatten()
        .any(|variable| variable.name == PLAN_VARIABLE);
    owned(
        plan,
        &format!("env[name={PLAN_VARIABLE}]"),
        "the controller says where the plan is",
    )?;
    for mount in worker.volume_mounts.iter().flatten() {
        let taken = [PLAN_DIRECTORY, BASES_DIRECTORY].iter().any(|directory| {
            mount
                .mount_path
                .strip_prefix(directory)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let field = format!("volumeMounts[mountPath={}]", mount.mount_path);
        owned(
            taken,
            &field,
            "the controller mounts the plan and the base directories there",
        )?;
    }
    Ok(())
}

/// The name of a worker's Job: readable, at most 63 characters, and unique by a hash of node, run and attempt.
fn job_name(worker: &WorkerSpec<'_>) -> String {
    let mut digest = Sha256::new();
    for part in [worker.instance, worker.run_id, worker.node, &worker.attempt.to_string()] {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let mut hash: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hash.truncate(NAME_HASH_CHARS);
    let instance = label_of(worker.instance, NAME_INSTANCE_MAX_CHARS);
    let node = label_of(worker.node, NAME_MAX_CHARS - NAME_HASH_CHARS - instance.len() - 2);
    format!("{instance}-{node}-{hash}")
}

/// As much of a name as may stand in a DNS label.
fn label_of(name: &str, max_chars: usize) -> String {
    let plain = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            c
        } else {
            '-'
        }
    };
    let label: String = name.chars().take(max_chars).map(plain).collect();
    label.trim_matches('-').to_owned()
}

fn labels(worker: &WorkerSpec<'_>) -> BTreeMap<String, String> {
    BTreeMap::from(
        [
            (COMPONENT_LABEL.0, COMPONENT_LABEL.1),
            (INSTANCE_LABEL, worker.instance),
            (RUN_LABEL, worker.run_id),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    )
}

fn owner(api_version: &str, kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }
}

/// Pins a pod as DaemonSets do, by the node's name and through the scheduler: `nodeName` would go around it, and the label
/// `kubernetes.io/hostname` may differ from the name.
fn pin(affinity: &mut Affinity, node: &str) {
    let name_is = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    affinity.node_affinity = Some(NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![NodeSelectorTerm {
                match_fields: Some(vec![name_is]),
                match_expressions: None,
            }],
        }),
        preferred_during_scheduling_ignored_during_execution: None,
    });
}

fn volumes(config_map: &str, bases: &[Base]) -> Vec<Volume> {
    let plan = Volume {
        name: PLAN_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mounted = bases.iter().enumerate().filter(|(_, base)| base.mounted_at.is_some());
    let bases = mounted.map(|(index, base)| Volume {
        name: format!("{BASE_VOLUME_PREFIX}{index}"),
        // No type: with one, a missing directory would keep the whole pod from starting.
        host_path: Some(HostPathVolumeSource {
            path: base.path.clone(),
            type_: None,
        }),
        ..Volume::default()
    });
    [plan].into_iter().chain(bases).collect()
}

fn complete(container: &mut Container, worker: &WorkerSpec<'_>) {
    container.image = Some(worker.image.to_owned());
    container.args = Some(vec!["worker".to_owned()]);
    let variables = container.env.get_or_insert_default();
    for (name, value) in worker.environment {
        if variables.iter().all(|variable| variable.name != *name) {
            let value = Some(value.clone());
            variables.push(EnvVar {
                name: (*name).to_owned(),
                value,
                value_from: None,
            });
        }
    }
    let plan = Some(format!("{PLAN_DIRECTORY}/{PLAN_KEY}"));
    variables.push(EnvVar {
        name: PLAN_VARIABLE.to_owned(),
        value: plan,
        value_from: None,
    });
    let plan_mount = VolumeMount {
        name: PLAN_VOLUME.to_owned(),
        mount_path: PLAN_DIRECTORY.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let base_mounts = worker.bases.iter().enumerate().filter_map(|(index, base)| {
        Some(VolumeMount {
            name: format!("{BASE_VOLUME_PREFIX}{index}"),
            mount_path: base.mounted_at.clone()?,
            read_only: Some(true),
            // Submounts too, where kubelet and runtime can; older API servers drop the field.
            recursive_read_only: Some("IfPossible".to_owned()),
            ..VolumeMount::default()
        })
    });
    container
        .volume_mounts
        .get_or_insert_default()
        .extend([plan_mount].into_iter().chain(base_mounts));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases() -> Vec<Base> {
        let base = |path: &str, mounted_at: Option<&str>| Base {
            path: path.to_owned(),
            mounted_at: mounted_at.map(str::to_owned),
        };
        vec![
            base("/opt/local-path-provisioner", Some("/bases/0")),
            base("/gone", None),
            base("/a:b", Some("/bases/2")),
        ]
    }

    fn spec<'a>(node: &'a str, bases: &'a [Base], environment: &'a [(&'static str, String)]) -> WorkerSpec<'a> {
        WorkerSpec {
            namespace: "lp-exporter",
            instance: "lp-exporter",
            run_id: "0b5e1a7e-0000-4000-8000-000000000000",
            node,
            attempt: 1,
            disk_pressure: false,
            cron_job: Some(("lp-exporter", "11111111-0000-4000-8000-000000000000")),
            image: "localhost/lp-exporter:0.1.0",
            environment,
            bases,
            active_deadline_seconds: 280,
        }
    }

    /// The least template that is allowed, with more lines for the Job's spec, the pod and the container.
    fn template(of_spec: &str, of_pod: &str, of_container: &str) -> String {
        format!(
            "spec:\n{of_spec}\n  template:\n    spec:\n      restartPolicy: Never\n{of_pod}\n      containers:\n      \
             - name: worker\n{of_container}\n"
        )
    }

    #[test]
    fn the_default_template_makes_the_documented_job() {
        let template = Template::parse(DEFAULT_TEMPLATE).expect("it is ours");
        let (bases, environment) = (bases(), [("LP_EXPORTER_LOG_LEVEL", "info".to_owned())]);
        let job = template.job(&spec("node-1", &bases, &environment));
        let rendered = serde_yaml::to_string(&job).expect("it is plain");
        let expected = include_str!("../../tests/expected/worker-job.yaml");
        assert_eq!(
            rendered, expected,
            "tests/expected/worker-job.yaml is not what the template makes now:\n{rendered}"
        );
    }

    fn check(text: &str, expected: &str) {
        let error = match Template::parse(text) {
            Ok(_) => String::from("no error"),
            Err(error) => error.to_string(),
        };
        assert!(
            error.contains(expected),
            "{text}\nsays {error:?}\nand should say {expected:?}"
        );
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        check(&template("", "", ""), "no error");
        check(
            &template("", "", "        resources: {limits: {memory: 256Mib}}"),
            "spec.template.spec.containers[name=worker].resources.limits.memory: cannot read \"256Mib\"",
        );
        check(
            &template("", "", "        resources: {limits: {cpu: 100m, memory: 256Mi}}"),
            "no error",
        );
        check("{", "line 2 column 1");
        check("apiVersion: batch/v1\nkind: CronJob", "expected Job");
        check("", "spec: a Job needs one");
        check("spec: {}", "spec");
        check("spec: 5", "spec: invalid type: integer `5`");
        check(
            &template("  backoffLimit: 1\n  backoffLimit: 2", "", ""),
            "duplicate entry with key \"backoffLimit\"",
        );
        check(
            &template("  backoffLimit: many", "", ""),
            "spec.backoffLimit: invalid type: string \"many\"",
        );
        check(&template("  backoffLimit: many", "", ""), "line 2");
        check(
            &template("  backofLimit: 1", "", ""),
            "spec.backofLimit (line 2): a Job has no such field",
        );
        check(&template("", "      nodename: x", ""), "spec.template.spec.nodename");
        check(
            &template(
                "",
                "      volumes:\n      - name: x\n        secret: {secretName: s, defaultMode: 0444}",
                "",
            ),
            "spec.template.spec.volumes[0].secret.defaultMode",
        );
        check(
            &template(
                "",
                "      volumes:\n      - name: x\n        secret: {secretName: s, defaultMode: 0444}",
                "",
            ),
            "write a file mode as a decimal number (0444 is 292)",
        );
        check(
            "spec: {template: {spec: {restartPolicy: Never, containers: [{name: other}]}}}",
            "named worker",
        );
        check(
            "spec: {template: {spec: {containers: [{name: worker}]}}}",
            "it has to be Never",
        );
    }

    #[test]
    fn fields_of_the_controller_are_refused() {
        let metadata = |lines: &str| format!("metadata:\n{lines}\n{}", template("", "", ""));
        check(
            &metadata("  name: mine"),
            "metadata.name: the controller names its Jobs",
        );
        check(&metadata("  namespace: mine"), "metadata.namespace");
        check(&metadata("  generateName: mine"), "metadata.generateName");
        check(
            &metadata("  labels: {lp-exporter/run: mine}"),
            "metadata.labels.lp-exporter/run",
        );
        check(
            &metadata("  labels: {app.kubernetes.io/component: x}"),
            "metadata.labels.app.kubernetes.io/component",
        );
        check(
            &metadata("  labels: {app.kubernetes.io/component: worker, team: x}"),
            "no error",
        );
        check(
            &metadata("  annotations: {lp-exporter/node: x}"),
            "metadata.annotations.lp-exporter/node",
        );
        check(
            &template("  activeDeadlineSeconds: 5", "", ""),
            "spec.activeDeadlineSeconds: it follows from the interval",
        );
        check(&template("  parallelism: 2", "", ""), "spec.parallelism");
        check(&template("  completions: 2", "", ""), "spec.completions");
        check(&template("  suspend: true", "", ""), "spec.suspend");
        check(&template("", "      nodeName: x", ""), "spec.template.spec.nodeName");
        check(
            &template("", "      nodeSelector: {a: b}", ""),
            "spec.template.spec.nodeSelector",
        );
        let affinity =
            "      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}";
        check(&template("", affinity, ""), "spec.template.spec.affinity.nodeAffinity");
        check(
            &template("", "      volumes: [{name: lp-exporter-base-3, emptyDir: {}}]", ""),
            "volumes[0].name",
        );
        check(
            &template("", "", "        image: other"),
            "containers[name=worker].image",
        );
        check(&template("", "", "        args: [x]"), "containers[name=worker].args");
        check(
            &template("", "", "        command: [x]"),
            "containers[name=worker].command",
        );
        check(
            &template("", "", "        env: [{name: LP_EXPORTER_PLAN, value: x}]"),
            "env[name=LP_EXPORTER_PLAN]",
        );
        check(
            &template("", "", "        volumeMounts: [{name: x, mountPath: /bases/0}]"),
            "volumeMounts[mountPath=/bases/0]",
        );
        check(
            &template("", "", "        volumeMounts: [{name: x, mountPath: /bases-of-mine}]"),
            "no error",
        );
    }

    #[test]
    fn anchors_and_merges_are_resolved() {
        let text = "x: &labels {team: storage}\n";
        check(
            &format!("{text}{}", template("", "", "")),
            "x (line 1): a Job has no such field",
        );
        let merged = "metadata:\n  labels: &labels {team: storage}\nspec:\n  template:\n    metadata:\n      labels:\n        \
                      <<: *labels\n        more: x\n    spec:\n      restartPolicy: Never\n      containers: [{name: worker}]\n";
        let job = Template::parse(merged)
            .expect("merges are YAML")
            .job(&spec("n", &[], &[]));
        let labels = job
            .spec
            .and_then(|spec| spec.template.metadata)
            .and_then(|metadata| metadata.labels);
        let labels = labels.expect("it has labels");
        assert_eq!((labels["team"].as_str(), labels["more"].as_str()), ("storage", "x"));
    }

    #[test]
    fn a_variable_of_the_template_wins() {
        let text = template(
            "",
            "",
            "        env: [{name: LP_EXPORTER_PUSHGATEWAY_URL, value: mine}]",
        );
        let environment = [("LP_EXPORTER_PUSHGATEWAY_URL", "ours".to_owned())];
        let job = Template::parse(&text)
            .expect("allowed")
            .job(&spec("n", &[], &environment));
        let pod = job.spec.and_then(|spec| spec.template.spec).expect("it has a pod");
        let values: Vec<_> = pod.containers[0]
            .env
            .iter()
            .flatten()
            .filter_map(|one| one.value.as_deref())
            .collect();
        assert_eq!(values, ["mine", "/etc/lp-exporter/plan/plan.json.gz"]);
    }

    #[test]
    fn names_are_dns_labels_whatever_the_node() {
        let long = format!("{}.example", "node.".repeat(49));
        let mut names = std::collections::BTreeSet::new();
        for node in [
            "a",
            "node-1",
            "node.1",
            "ip-10-0-0-1.eu-west-1.compute.internal",
            ".",
            "-",
            "Ünïcode",
            &long,
        ] {
            for attempt in [1, 2] {
                for instance in ["lp-exporter", "x", &"i".repeat(52)] {
                    let mut spec = spec(node, &[], &[]);
                    (spec.attempt, spec.instance) = (attempt, instance);
                    let name = job_name(&spec);
                    assert!(name.len() <= NAME_MAX_CHARS, "{name}");
                    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                    assert!(
                        name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-'),
                        "{name}"
                    );
                    assert!(names.insert(name.clone()), "{name} twice");
                }
            }
        }
    }

    #[test]
    fn only_under_disk_pressure_the_critical_class() {
        let class = |text: &str, disk_pressure: bool| {
            let mut spec = spec("n", &[], &[]);
            spec.disk_pressure = disk_pressure;
            let job = Template::parse(text).expect("allowed").job(&spec);
            job.spec
                .and_then(|spec| spec.template.spec)
                .and_then(|pod| pod.priority_class_name)
        };
        let (plain, named) = (template("", "", ""), template("", "      priorityClassName: mine", ""));
        assert_eq!(class(&plain, false).as_deref(), Some("lp-exporter-worker"));
        assert_eq!(class(&plain, true).as_deref(), Some("system-node-critical"));
        assert_eq!(class(&named, true).as_deref(), Some("mine"));
    }
}
