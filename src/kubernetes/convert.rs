//! Objects of the API server into what the rest of the program works with. Each object is read by itself: one that cannot be
//! read is told by its reason, and costs no other.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use super::job::{INSTANCE_LABEL, NODE_ANNOTATION, RUN_LABEL};
use crate::text::one_line;
use crate::tracker::{JobEnd, PodEnd, PodPhase, WorkerJob, WorkerPod};
use crate::volumes::affinity::{NodeSelectorTerm, Operator, Requirement};
use crate::volumes::claims::{ALERT_PERCENT_ANNOTATION, Claim};
use crate::volumes::pods::PodOnNode;
use crate::volumes::quantity;
use crate::volumes::volume::{ClaimReference, NO_NAME, Node, SkipReason, Skipped, SkippedFacts, SourceKind, Volume};

/// Written by local-path-provisioner since 0.0.25: the node that the scheduler chose for the first pod of the claim.
const SELECTED_NODE_ANNOTATION: &str = "local.path.provisioner/selected-node";
/// The taint that the Cluster Autoscaler puts on a node before it takes it away.
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// What Virtual Kubelet labels its nodes with.
const VIRTUAL_NODE_LABEL: (&str, &str) = ("type", "virtual-kubelet");
/// The containers of our pods, by the names that jobs/worker.yaml and manifests/base/cronjob.yaml give them. A pod may
/// have others beside them.
const WORKER_CONTAINER: &str = "worker";
const CONTROLLER_CONTAINER: &str = "controller";
/// The longest message of kubelet that is kept: it names a base directory where one is the cause.
const MESSAGE_MAX_CHARS: usize = 5000;
/// The longest text of an object that is repeated in a reason.
const TEXT_MAX_CHARS: usize = 200;

/// Reads a PersistentVolume.
///
/// # Errors
/// The volume as skipped: not node-local, or not readable, with its name as far as it can be told.
pub fn volume(raw: &RawValue) -> Result<Volume, Skipped> {
    let object: core::PersistentVolume = decode(raw).map_err(|(name, detail)| Skipped {
        facts: name.is_some().then(|| {
            Box::new(SkippedFacts {
                path: path_of(raw),
                ..SkippedFacts::default()
            })
        }),
        persistent_volume: name.unwrap_or_else(|| NO_NAME.to_owned()),
        reason: SkipReason::Undecodable,
        detail,
    })?;
    if object.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(Skipped {
            persistent_volume: NO_NAME.to_owned(),
            reason: SkipReason::Undecodable,
            detail: "metadata.name is missing".to_owned(),
            facts: path_of(raw).map(|path| {
                Box::new(SkippedFacts {
                    path: Some(path),
                    ..SkippedFacts::default()
                })
            }),
        });
    }
    volume_of(object)
}

/// The directory of a volume that cannot be read otherwise.
fn path_of(raw: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Object {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        host_path: Option<Source>,
        local: Option<Source>,
    }
    #[derive(Deserialize)]
    struct Source {
        path: String,
    }
    let Object { spec } = serde_json::from_str(raw.get()).ok()?;
    spec.host_path.or(spec.local).map(|source| source.path)
}

fn volume_of(object: core::PersistentVolume) -> Result<Volume, Skipped> {
    let spec = object.spec.unwrap_or_default();
    let ObjectMeta {
        name,
        annotations,
        creation_timestamp,
        ..
    } = object.metadata;
    let name = name.unwrap_or_default();
    let (source, path) = match (spec.host_path, spec.local) {
        (Some(host_path), _) => (SourceKind::HostPath, host_path.path),
        (None, Some(local)) => (SourceKind::Local, local.path),
        (None, None) => {
            let exported = exported_path(spec.nfs, spec.csi);
            return Err(Skipped {
                persistent_volume: name,
                reason: SkipReason::NotNodeLocal,
                detail: "its source is neither hostPath nor local".to_owned(),
                facts: exported.map(|path| {
                    Box::new(SkippedFacts {
                        path: Some(path),
                        ..SkippedFacts::default()
                    })
                }),
            });
        }
    };
    let capacity = spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let capacity_bytes = match capacity.map(|storage| quantity::parse_bytes(&storage.0)) {
        _ if spec.volume_mode.as_deref() == Some("Block") => {
            Err((SkipReason::BlockMode, "volumeMode is Block".to_owned()))
        }
        Some(Ok(0)) => Err((
            SkipReason::InvalidCapacity,
            "spec.capacity.storage is 0: it has to be more".to_owned(),
        )),
        Some(Ok(bytes)) => Ok(bytes),
        Some(Err(error)) => Err((SkipReason::InvalidCapacity, error.to_string())),
        None => Err((
            SkipReason::InvalidCapacity,
            "spec.capacity.storage is missing".to_owned(),
        )),
    };
    let read = capacity_bytes.and_then(|bytes| Ok((bytes, affinity(spec.node_affinity)?)));
    let claim = spec.claim_ref.and_then(|claim| {
        Some(ClaimReference {
            namespace: claim.namespace?.into(),
            name: claim.name?,
            uid: claim.uid,
        })
    });
    let storage_class = spec.storage_class_name.unwrap_or_default().into();
    let phase = object.status.and_then(|status| status.phase).unwrap_or_default().into();
    let reclaim_policy = spec.persistent_volume_reclaim_policy.unwrap_or_default().into();
    let created_unix_seconds = creation_timestamp.map(|created| created.0.as_second());
    match read {
        Ok((capacity_bytes, affinity)) => Ok(Volume {
            name,
            claim,
            storage_class,
            source,
            path,
            capacity_bytes,
            phase,
            reclaim_policy,
            affinity: affinity.map(Into::into),
            selected_node: annotations
                .unwrap_or_default()
                .remove(SELECTED_NODE_ANNOTATION)
                .map(Into::into),
            created_unix_seconds,
        }),
        Err((reason, detail)) => Err(Skipped {
            persistent_volume: name,
            reason,
            detail: shorten(&detail),
            facts: Some(Box::new(SkippedFacts {
                claim: claim.map(|claim| (claim.namespace.to_string(), claim.name)),
                storage_class,
                source: Some(source),
                path: Some(path),
                phase,
                reclaim_policy,
                created_unix_seconds,
                ..SkippedFacts::default()
            })),
        }),
    }
}

/// The directory of an NFS server that a volume names, by the field for it or by the attributes of csi-driver-nfs: one of
/// our nodes may be that server, and export what lies below a base path.
fn exported_path(nfs: Option<core::NFSVolumeSource>, csi: Option<core::CSIPersistentVolumeSource>) -> Option<String> {
    if let Some(nfs) = nfs {
        return Some(nfs.path);
    }
    let attributes = csi?.volume_attributes?;
    let share = attributes.get("share")?;
    Some(match attributes.get("subdir") {
        Some(subdir) => format!("{share}/{subdir}"),
        None => share.clone(),
    })
}

fn affinity(affinity: Option<core::VolumeNodeAffinity>) -> Result<Option<Vec<NodeSelectorTerm>>, (SkipReason, String)> {
    let Some(required) = affinity.and_then(|affinity| affinity.required) else {
        return Ok(None);
    };
    let requirements = |list: Option<Vec<core::NodeSelectorRequirement>>| {
        let read = list
            .unwrap_or_default()
            .into_iter()
            .map(|requirement| {
                let operator = requirement.operator.parse::<Operator>().map_err(|_| {
                    let detail = format!(
                        "its node affinity has the operator {:?}, which Kubernetes does not",
                        requirement.operator
                    );
                    (SkipReason::Undecodable, detail)
                })?;
                Ok(Requirement {
                    key: requirement.key,
                    operator,
                    values: shrunk(requirement.values.unwrap_or_default()),
                })
            })
            .collect::<Result<Vec<_>, _>>();
        read.map(shrunk)
    };
    let terms = required.node_selector_terms.into_iter().map(|term| {
        Ok(NodeSelectorTerm {
            match_expressions: requirements(term.match_expressions)?,
            match_fields: requirements(term.match_fields)?,
        })
    });
    let terms = terms.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(shrunk(terms)))
}

/// A list that will not grow any more. What is collected piece by piece has room for four, and nearly every volume has one:
/// of 100,000 volumes that would be 40 MB.
fn shrunk<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

/// Reads a PersistentVolumeClaim, and of its labels those with these keys.
///
/// # Errors
/// Its name, as far as it can be told, and what is wrong with it.
pub fn claim(raw: &RawValue, label_keys: &BTreeSet<String>) -> Result<Claim, (String, String)> {
    let object: core::PersistentVolumeClaim =
        decode(raw).map_err(|(name, why)| (name.unwrap_or_else(|| NO_NAME.to_owned()), why))?;
    let spec = object.spec.unwrap_or_default();
    let requests = spec.resources.and_then(|resources| resources.requests);
    let requested = requests.as_ref().and_then(|requests| requests.get("storage"));
    let ObjectMeta {
        namespace,
        name,
        uid,
        labels,
        annotations,
        ..
    } = object.metadata;
    let mut labels = labels.unwrap_or_default();
    labels.retain(|key, _| label_keys.contains(key));
    Ok(Claim {
        reference: ClaimReference {
            namespace: namespace.unwrap_or_default().into(),
            name: name.unwrap_or_default(),
            uid,
        },
        volume: spec.volume_name.filter(|name| !name.is_empty()),
        is_lost: object.status.and_then(|status| status.phase).as_deref() == Some("Lost"),
        requested_bytes: requested.and_then(|storage| quantity::parse_bytes(&storage.0).ok()),
        labels,
        // Whoever owns the claim may write 256 KiB here.
        alert_percent: annotations
            .unwrap_or_default()
            .get(ALERT_PERCENT_ANNOTATION)
            .map(|text| text.chars().take(TEXT_MAX_CHARS).collect()),
    })
}

/// Reads which claims a pod mounts, and where; `None` for a pod that mounts none or is bound to no node. Every pod of the
/// cluster may come here, so no more of it is decoded than is needed.
pub fn pod_on_node(raw: &RawValue) -> Option<PodOnNode> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Object {
        metadata: Metadata,
        spec: Spec,
        #[serde(default)]
        status: Status,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
        namespace: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        node_name: Option<String>,
        #[serde(default)]
        volumes: Vec<PodVolume>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct PodVolume {
        name: String,
        persistent_volume_claim: Option<ClaimSource>,
        ephemeral: Option<IgnoredAny>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ClaimSource {
        claim_name: String,
    }
    #[derive(Default, Deserialize)]
    struct Status {
        phase: Option<String>,
    }
    let Object {
        metadata: Metadata { name, namespace },
        spec: Spec { node_name, volumes },
        status,
    } = serde_json::from_str(raw.get()).ok()?;
    let claims: Vec<String> = volumes
        .into_iter()
        .filter_map(|volume| match (volume.persistent_volume_claim, volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name),
            // Kubernetes makes the claim of a generic ephemeral volume, and names it so.
            (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
            (None, None) => None,
        })
        .collect();
    let node = node_name.filter(|node| !node.is_empty())?;
    (!claims.is_empty()).then_some(PodOnNode {
        namespace,
        claims,
        node,
        has_ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
    })
}

/// A Node that cannot be read.
#[derive(Debug)]
pub struct UnreadableNode {
    /// Its name, as far as it can be told.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
    /// What can be read of it all the same: it is there, and so are its volumes. `None` if it has no name.
    pub node: Option<Box<Node>>,
}

/// Reads a Node that is not decoded yet.
///
/// # Errors
/// What can be told of it.
pub fn undecoded_node(raw: &RawValue) -> Result<Node, UnreadableNode> {
    decode(raw).map(node).map_err(|(name, why)| {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            labels: BTreeMap<String, String>,
        }
        let labels = serde_json::from_str::<Object>(raw.get()).map(|object| object.metadata.labels);
        UnreadableNode {
            node: name
                .clone()
                .filter(|name| !name.is_empty())
                .map(|name| Box::new(unreadable_node(name, labels.unwrap_or_default()))),
            name: name.unwrap_or_else(|| NO_NAME.to_owned()),
            why,
        }
    })
}

/// A Node of which nothing but this can be read. Its volumes are where they were, and nobody is to take them for those of a
/// node that is gone.
pub fn unreadable_node(name: String, labels: BTreeMap<String, String>) -> Node {
    let metadata = ObjectMeta {
        name: Some(name),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    Node {
        not_ready_message: Node::UNREADABLE.to_owned(),
        ..node(core::Node {
            metadata,
            ..core::Node::default()
        })
    }
}

/// Reads a Node.
pub fn node(object: core::Node) -> Node {
    let ObjectMeta {
        name,
        labels,
        creation_timestamp,
        deletion_timestamp,
        ..
    } = object.metadata;
    let labels: BTreeMap<String, String> = labels.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let ready_condition = condition("Ready");
    let ready = ready_condition.is_some_and(|ready| ready.status == "True");
    let not_ready_message = match ready_condition {
        _ if ready => String::new(),
        Some(condition) => shorten(
            condition
                .message
                .as_deref()
                .or(condition.reason.as_deref())
                .unwrap_or_default(),
        ),
        None => "the node has no condition Ready yet".to_owned(),
    };
    let taints = object.spec.and_then(|spec| spec.taints).unwrap_or_default();
    Node {
        name: name.unwrap_or_default(),
        ready,
        not_ready_message,
        disk_pressure: condition("DiskPressure").is_some_and(|pressure| pressure.status == "True"),
        being_removed: deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == TO_BE_DELETED_TAINT),
        operating_system: status.node_info.map(|info| info.operating_system).unwrap_or_default(),
        is_virtual: labels
            .get(VIRTUAL_NODE_LABEL.0)
            .is_some_and(|value| value == VIRTUAL_NODE_LABEL.1),
        created_unix_seconds: creation_timestamp.map(|created| created.0.as_second()),
        labels,
    }
}

/// Reads a worker's Job.
pub fn worker_job(object: &batch::Job) -> WorkerJob {
    let (name, run) = name_and_run(&object.metadata);
    let node = annotation(&object.metadata, NODE_ANNOTATION);
    let status = object.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let is_true = |kind: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == "True")
    };
    let message = |condition: &batch::JobCondition| {
        let reason = condition.reason.clone().unwrap_or_default();
        shorten(&format!("{reason}: {}", condition.message.clone().unwrap_or_default()))
    };
    let end = if is_true("Complete").is_some() || is_true("SuccessCriteriaMet").is_some() {
        Some(JobEnd::Complete)
    } else if let Some(failed) = is_true("Failed") {
        Some(JobEnd::Failed(message(failed)))
    } else {
        // FailureTarget comes first; on a node that is cut off it is all that ever comes.
        is_true("FailureTarget").map(|failing| JobEnd::Failing(message(failing)))
    };
    let created_unix_seconds = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |created| created.0.as_second());
    WorkerJob {
        name,
        run,
        node,
        end,
        created_unix_seconds,
    }
}

/// Reads a worker's pod.
pub fn worker_pod(object: &core::Pod) -> WorkerPod {
    let (name, run) = name_and_run(&object.metadata);
    let status = object.status.clone().unwrap_or_default();
    let spec = object.spec.as_ref();
    let conditions = status.conditions.unwrap_or_default();
    let unschedulable = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        .map(|condition| shorten(condition.message.as_deref().unwrap_or("Unschedulable")));
    let state = status
        .container_statuses
        .unwrap_or_default()
        .into_iter()
        .find(|container| container.name == WORKER_CONTAINER)
        .and_then(|container| container.state);
    let (waiting, terminated) = state.map(|state| (state.waiting, state.terminated)).unwrap_or_default();
    WorkerPod {
        name,
        run,
        job: object
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.kind == "Job")
            .map(|owner| owner.name.clone())
            .unwrap_or_default(),
        node: spec.and_then(|spec| spec.node_name.clone()),
        phase: match status.phase.as_deref() {
            Some("Running") => PodPhase::Running,
            Some("Succeeded") => PodPhase::Succeeded,
            Some("Failed") => PodPhase::Failed,
            _ => PodPhase::Pending,
        },
        disrupted: conditions
            .iter()
            .any(|one| one.type_ == "DisruptionTarget" && one.status == "True"),
        unschedulable,
        waiting: waiting.map(|waiting| {
            (
                waiting.reason.unwrap_or_default(),
                one_line(&waiting.message.unwrap_or_default(), MESSAGE_MAX_CHARS),
            )
        }),
        end: terminated.map(|terminated| PodEnd {
            exit_code: terminated.exit_code,
            reason: terminated.reason.unwrap_or_default(),
            message: terminated.message.unwrap_or_default(),
        }),
        message: [status.reason, status.message]
            .into_iter()
            .flatten()
            .map(|text| shorten(&text))
            .collect::<Vec<_>>()
            .join(": "),
    }
}

fn name_and_run(metadata: &ObjectMeta) -> (String, String) {
    let run = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(RUN_LABEL))
        .cloned()
        .unwrap_or_default();
    (metadata.name.clone().unwrap_or_default(), run)
}

fn annotation(metadata: &ObjectMeta, key: &str) -> String {
    metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(key))
        .cloned()
        .unwrap_or_default()
}

/// The label selector that finds the Jobs and pods of an instance's workers.
pub fn worker_selector(instance: &str) -> String {
    format!("{INSTANCE_LABEL}={instance},app.kubernetes.io/component=worker")
}

/// What this process is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// The pod's uid.
    pub uid: String,
    /// The image of its container.
    pub image: Option<String>,
    /// The Job that made it.
    pub job_name: Option<String>,
    /// When it was made, in seconds since 1970, by the control plane's clock.
    pub created_unix_seconds: Option<i64>,
}

/// Reads the pod that this process runs in.
pub fn own_pod(object: core::Pod) -> OwnPod {
    let job_name = controller_of(&object.metadata, "Job").map(|owner| owner.name.clone());
    let containers = object.spec.map(|spec| spec.containers).unwrap_or_default();
    let own = containers
        .iter()
        .find(|container| container.name == CONTROLLER_CONTAINER)
        .or(containers.first());
    OwnPod {
        uid: object.metadata.uid.unwrap_or_default(),
        image: own.and_then(|container| container.image.clone()),
        job_name,
        created_unix_seconds: object.metadata.creation_timestamp.map(|created| created.0.as_second()),
    }
}

/// The Job that this process is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnJob {
    /// Its uid, which holds the Lease.
    pub uid: String,
    /// `spec.activeDeadlineSeconds`, which counts from `status.startTime`.
    pub active_deadline_seconds: Option<u64>,
    /// `status.startTime` in seconds since 1970, by the control plane's clock.
    pub started_unix_seconds: Option<i64>,
    /// Name and uid of the CronJob that made it.
    pub cron_job: Option<(String, String)>,
}

/// Reads the Job that this process is part of.
pub fn own_job(object: &batch::Job) -> OwnJob {
    OwnJob {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        active_deadline_seconds: object
            .spec
            .as_ref()
            .and_then(|spec| spec.active_deadline_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok()),
        started_unix_seconds: object
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref())
            .map(|start| start.0.as_second()),
        cron_job: controller_of(&object.metadata, "CronJob").map(|owner| (owner.name.clone(), owner.uid.clone())),
    }
}

/// A Job that may hold the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderJob {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Whether it has come to its end: nothing of it runs any more.
    pub has_ended: bool,
}

/// Reads what of a Job tells whether it still holds the Lease; `None` for an object that is no Job at all. Any Job of the
/// namespace is looked at here, so no more of it is decoded than is needed.
pub fn job_of_holder(raw: &RawValue) -> Option<HolderJob> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
        #[serde(default)]
        status: Status,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
        uid: String,
    }
    #[derive(Default, Deserialize)]
    struct Status {
        #[serde(default)]
        conditions: Vec<Condition>,
    }
    #[derive(Deserialize)]
    struct Condition {
        #[serde(rename = "type")]
        kind: String,
        status: String,
    }
    let Object {
        metadata: Metadata { name, uid },
        status,
    } = serde_json::from_str(raw.get()).ok()?;
    let is_end = |one: &Condition| matches!(one.kind.as_str(), "Complete" | "Failed") && one.status == "True";
    Some(HolderJob {
        uid,
        name,
        has_ended: status.conditions.iter().any(is_end),
    })
}

fn controller_of<'a>(metadata: &'a ObjectMeta, kind: &str) -> Option<&'a OwnerReference> {
    metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.kind == kind && owner.controller == Some(true))
}

/// Decodes an object, or tells its name, as far as it has one, and what is wrong with it.
fn decode<T: DeserializeOwned>(raw: &RawValue) -> Result<T, (Option<String>, String)> {
    #[derive(Deserialize)]
    struct Named {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    // Keeping account of the way to each field takes as long as reading it.
    if let Ok(object) = serde_json::from_str(raw.get()) {
        return Ok(object);
    }
    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let name = serde_json::from_str::<Named>(raw.get()).map(|named| named.metadata.name);
        (name.ok(), shorten(&error.to_string()))
    })
}

fn shorten(text: &str) -> String {
    one_line(text, TEXT_MAX_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::volume::NodeReason;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("the test's JSON is well-formed")
    }

    /// A PersistentVolume with these fields of its spec.
    fn volume_with(spec: &str) -> Result<Volume, Skipped> {
        volume(&raw(&format!(r#"{{"metadata":{{"name":"pv"}},"spec":{{{spec}}}}}"#)))
    }

    fn check(spec: &str, expected: &str) {
        let told = match volume_with(spec) {
            Ok(volume) => format!("{} {} {}", volume.source.as_str(), volume.path, volume.capacity_bytes),
            Err(skipped) => {
                assert_eq!(skipped.persistent_volume, "pv");
                format!("{}: {}", skipped.reason.as_str(), skipped.detail)
            }
        };
        assert!(told.starts_with(expected), "{spec}\ntold {told:?}, not {expected:?}");
    }

    #[test]
    fn volumes_are_read_or_skipped_with_a_reason() {
        const CAPACITY: &str = r#""capacity":{"storage":"1.5Gi"}"#;
        check(
            &format!(r#"{CAPACITY},"hostPath":{{"path":"/a"}}"#),
            "hostPath /a 1610612736",
        );
        check(&format!(r#"{CAPACITY},"local":{{"path":"/b"}}"#), "local /b 1610612736");
        check(
            &format!(r#"{CAPACITY},"nfs":{{"path":"/b","server":"s"}}"#),
            "not_node_local: ",
        );
        check(
            &format!(r#"{CAPACITY},"local":{{"path":"/b"}},"volumeMode":"Block""#),
            "block_mode: ",
        );
        check(
            r#""local":{"path":"/b"}"#,
            "invalid_capacity: spec.capacity.storage is missing",
        );
        check(
            r#""capacity":{"storage":"much"},"local":{"path":"/b"}"#,
            "invalid_capacity: ",
        );
        check(
            r#""capacity":{"storage":"-1"},"local":{"path":"/b"}"#,
            "invalid_capacity: ",
        );
        check(
            r#""capacity":5,"local":{"path":"/b"}"#,
            "undecodable: spec.capacity: invalid type",
        );
        check(
            r#""local":{"path":"/b"},"capacity":{"storage":"1"},"claimRef":"x""#,
            "undecodable: spec.claimRef",
        );
        let odd_operator = r#""nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"k","operator":"Like"}]}]}}"#;
        check(
            &format!(r#"{CAPACITY},"local":{{"path":"/b"}},{odd_operator}"#),
            "undecodable: its node affinity",
        );
    }

    #[test]
    fn what_is_known_of_a_volume_that_is_left_out() {
        let facts = |spec: &str| {
            let skipped = volume_with(spec).expect_err("it is left out");
            skipped.facts.map(|facts| *facts)
        };
        let strange = facts(r#""capacity":5,"hostPath":{"path":"/a/../b"}"#).expect("it has a name");
        assert_eq!(strange.path.as_deref(), Some("/a/../b"));
        assert_eq!(facts(r#""capacity":5,"hostPath":5"#).expect("it has a name").path, None);
        let block = facts(
            r#""capacity":{"storage":"1"},"local":{"path":"/dev/sdb"},"volumeMode":"Block","storageClassName":"c",
               "persistentVolumeReclaimPolicy":"Retain","claimRef":{"namespace":"ns","name":"claim"}"#,
        );
        let expected = SkippedFacts {
            claim: Some(("ns".to_owned(), "claim".to_owned())),
            storage_class: "c".into(),
            source: Some(SourceKind::Local),
            path: Some("/dev/sdb".to_owned()),
            reclaim_policy: "Retain".into(),
            ..SkippedFacts::default()
        };
        assert_eq!(block, Some(expected));
        // It is not ours to tell of; but one of our nodes may be the server.
        for (source, expected) in [
            (r#""nfs":{"path":"/b","server":"s"}"#, Some("/b")),
            (
                r#""csi":{"driver":"nfs.csi.k8s.io","volumeHandle":"h","volumeAttributes":{"share":"/b","subdir":"pvc-1"}}"#,
                Some("/b/pvc-1"),
            ),
            (
                r#""csi":{"driver":"nfs.csi.k8s.io","volumeHandle":"h","volumeAttributes":{"share":"/b"}}"#,
                Some("/b"),
            ),
            (r#""csi":{"driver":"ebs.csi.aws.com","volumeHandle":"h"}"#, None),
        ] {
            let expected = expected.map(|path| SkippedFacts {
                path: Some(path.to_owned()),
                ..SkippedFacts::default()
            });
            let spec = format!(r#""capacity":{{"storage":"1"}},{source}"#);
            assert_eq!(facts(&spec), expected, "{source}");
        }
    }

    #[test]
    fn what_a_claim_says() {
        let keys = BTreeSet::from(["team".to_owned()]);
        let read = |json: &str| claim(&raw(json), &keys);
        let bound = read(
            r#"{"metadata":{"name":"c","namespace":"ns","uid":"u","labels":{"team":"a","other":"b"},
                "annotations":{"lp-exporter/alert-percent":"80","other":"x"}},
                "spec":{"volumeName":"pv","resources":{"requests":{"storage":"1Ki"}}},"status":{"phase":"Bound"}}"#,
        )
        .expect("it is a claim");
        assert_eq!((bound.volume.as_deref(), bound.is_lost), (Some("pv"), false));
        assert_eq!(
            (bound.requested_bytes, bound.alert_percent()),
            (Some(1024), Ok(Some(80)))
        );
        assert_eq!(
            bound.labels,
            BTreeMap::from([("team".to_owned(), "a".to_owned())]),
            "no more is kept than is looked at"
        );
        let lost =
            read(r#"{"metadata":{"name":"c","namespace":"ns"},"spec":{"volumeName":""},"status":{"phase":"Lost"}}"#);
        let lost = lost.expect("it is a claim");
        assert_eq!((lost.volume, lost.is_lost, lost.requested_bytes), (None, true, None));
        assert_eq!(
            read(r#"{"metadata":{"name":"c"},"spec":7}"#).expect_err("it is none").0,
            "c"
        );
    }

    #[test]
    fn when_a_node_was_made() {
        let node = undecoded_node(&raw(
            r#"{"metadata":{"name":"n","creationTimestamp":"1970-01-01T00:01:00Z"}}"#,
        ));
        assert_eq!(node.expect("it is a node").created_unix_seconds, Some(60));
    }

    #[test]
    fn a_node_that_cannot_be_read_is_there() {
        let read = |metadata: &str| {
            let json = format!(r#"{{"metadata":{{{metadata}}},"status":7}}"#);
            undecoded_node(&raw(&json)).expect_err("it is none").node
        };
        let node = read(r#""name":"n","labels":{"zone":"a"}"#).expect("it has a name");
        assert_eq!((node.name.as_str(), node.labels["zone"].as_str()), ("n", "a"));
        let why = (NodeReason::NotReady, "the node cannot be read".to_owned());
        assert_eq!(node.unmeasurable(), Some(why));
        assert!(read(r#""name":"n","labels":7"#).is_some_and(|node| node.labels.is_empty()));
        assert_eq!(read(r#""name":7"#), None);
        assert_eq!(read(r#""name":"""#), None);
    }

    #[test]
    fn where_a_pod_runs_and_what_it_mounts() {
        let check = |spec: &str, phase: &str, expected: Option<(&[&str], bool)>| {
            let pod = pod_on_node(&raw(&format!(
                r#"{{"metadata":{{"name":"p","namespace":"ns"}},"spec":{{{spec}}},"status":{{"phase":{phase:?}}}}}"#
            )));
            let told = pod.map(|pod| {
                assert_eq!((pod.namespace.as_str(), pod.node.as_str()), ("ns", "n"));
                (pod.claims, pod.has_ended)
            });
            let expected =
                expected.map(|(claims, ended)| (claims.iter().map(|one| (*one).to_owned()).collect(), ended));
            assert_eq!(told, expected, "{spec} {phase}");
        };
        let mounts = r#""nodeName":"n","volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"c"}},
            {"name":"e","ephemeral":{"volumeClaimTemplate":{"spec":{}}}},{"name":"x","emptyDir":{}}]"#;
        check(mounts, "Running", Some((&["c", "p-e"], false)));
        check(mounts, "Pending", Some((&["c", "p-e"], false)));
        check(mounts, "Succeeded", Some((&["c", "p-e"], true)));
        check(mounts, "Failed", Some((&["c", "p-e"], true)));
        check(r#""nodeName":"n""#, "Running", None);
        check(
            r#""nodeName":"n","volumes":[{"name":"x","emptyDir":{}}]"#,
            "Running",
            None,
        );
        check(&mounts.replace(r#""n""#, r#""""#), "Pending", None);
        check(&mounts.replace(r#""nodeName":"n","#, ""), "Pending", None);
        assert_eq!(pod_on_node(&raw(r#"{"metadata":7}"#)), None);
    }

    #[test]
    fn an_object_without_a_name_is_told_too() {
        let skipped = volume(&raw(r#"{"metadata":7}"#)).expect_err("it is no volume");
        assert_eq!(skipped.persistent_volume, "(no readable name)");
        assert_eq!(skipped.reason, SkipReason::Undecodable);
        assert_eq!(skipped.facts, None, "two of them would be one series");
    }

    #[test]
    fn what_a_volume_says_of_its_claim_and_node() {
        let volume = volume(&raw(
            r#"{"metadata":{"name":"pv","annotations":{"local.path.provisioner/selected-node":"n"}},
                "spec":{"capacity":{"storage":"1"},"hostPath":{"path":"/a"},"storageClassName":"c",
                        "persistentVolumeReclaimPolicy":"Retain",
                        "claimRef":{"namespace":"ns","name":"claim","uid":"u"},
                        "nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchFields":
                            [{"key":"metadata.name","operator":"In","values":["n"]}]}]}}},
                "status":{"phase":"Released"}}"#,
        ))
        .expect("it is a volume");
        let claim = volume.claim.expect("it names a claim");
        assert_eq!(
            (&*claim.namespace, claim.name.as_str(), claim.uid.as_deref()),
            ("ns", "claim", Some("u"))
        );
        assert_eq!(volume.selected_node.as_deref(), Some("n"));
        assert_eq!((&*volume.phase, &*volume.reclaim_policy), ("Released", "Retain"));
        let terms = volume.affinity.expect("it has an affinity");
        assert_eq!(terms[0].match_fields[0].values, ["n"]);
    }

    #[test]
    fn the_end_of_a_job() {
        for (conditions, expected) in [
            ("", None),
            (r#"{"type":"Complete","status":"False"}"#, None),
            (r#"{"type":"Complete","status":"True"}"#, Some(JobEnd::Complete)),
            (
                r#"{"type":"SuccessCriteriaMet","status":"True"}"#,
                Some(JobEnd::Complete),
            ),
            (
                r#"{"type":"FailureTarget","status":"True","reason":"R","message":"M"}"#,
                Some(JobEnd::Failing("R: M".to_owned())),
            ),
            (
                r#"{"type":"FailureTarget","status":"True"},{"type":"Failed","status":"True","reason":"R","message":"M"}"#,
                Some(JobEnd::Failed("R: M".to_owned())),
            ),
        ] {
            let object = format!(r#"{{"metadata":{{"name":"j","uid":"u"}},"status":{{"conditions":[{conditions}]}}}}"#);
            let job: batch::Job = serde_json::from_str(&object).expect("the test's JSON is a Job");
            assert_eq!(worker_job(&job).end, expected, "{conditions}");
            let holder = job_of_holder(&raw(&object)).expect("it has a name and a uid");
            let has_ended = matches!(expected, Some(JobEnd::Failed(_)))
                || conditions.starts_with(r#"{"type":"Complete","status":"True"#);
            assert_eq!(holder.has_ended, has_ended, "{conditions}");
        }
    }
}
