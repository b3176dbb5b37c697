//! What the program knows of a volume, a claim and a node: the few fields that placement, plan and metrics need.
//!
//! The Kubernetes objects are converted into these once, at the border (`kubernetes::convert`).

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::affinity::NodeSelectorTerm;

/// A PersistentVolume whose data lies in a directory of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// `metadata.name`.
    pub name: String,
    /// `spec.claimRef`: the claim that the volume is, or was, bound to.
    pub claim: Option<ClaimReference>,
    /// `spec.storageClassName`; empty when the volume has none.
    pub storage_class: Arc<str>,
    /// Which of the two sources names the directory.
    pub source: SourceKind,
    /// The directory as the source spells it; not yet in normal form.
    pub path: String,
    /// `spec.capacity.storage` in bytes.
    pub capacity_bytes: u64,
    /// `status.phase`; empty when the API server has not set one yet.
    pub phase: Arc<str>,
    /// `spec.persistentVolumeReclaimPolicy`.
    pub reclaim_policy: Arc<str>,
    /// The terms of `spec.nodeAffinity.required`; `None` when the volume has no node affinity.
    pub affinity: Option<Arc<[NodeSelectorTerm]>>,
    /// The annotation `local.path.provisioner/selected-node`, which local-path-provisioner writes since 0.0.25; it may be
    /// empty (on volumes of a shared file system).
    pub selected_node: Option<Arc<str>>,
    /// `metadata.creationTimestamp` in seconds since 1970.
    pub created_unix_seconds: Option<i64>,
}

/// What many volumes have alike, each held once: of 100,000 volumes that is a quarter of their memory.
#[derive(Debug, Default)]
pub struct Alike {
    texts: HashSet<Arc<str>>,
    affinities: HashSet<Arc<[NodeSelectorTerm]>>,
}

impl Alike {
    /// The same volume, with what it has in common with those before it.
    pub fn hold(&mut self, volume: Volume) -> Volume {
        Volume {
            claim: volume.claim.map(|claim| self.hold_claim(claim)),
            storage_class: held(&mut self.texts, volume.storage_class),
            phase: held(&mut self.texts, volume.phase),
            reclaim_policy: held(&mut self.texts, volume.reclaim_policy),
            affinity: volume.affinity.map(|terms| held(&mut self.affinities, terms)),
            selected_node: volume.selected_node.map(|node| held(&mut self.texts, node)),
            ..volume
        }
    }

    /// The same for a claim, by which a volume is found or which a volume names.
    pub fn hold_claim(&mut self, claim: ClaimReference) -> ClaimReference {
        ClaimReference {
            namespace: held(&mut self.texts, claim.namespace),
            ..claim
        }
    }
}

fn held<T: ?Sized + Eq + Hash>(all: &mut HashSet<Arc<T>>, one: Arc<T>) -> Arc<T> {
    if let Some(held) = all.get(&one) {
        return held.clone();
    }
    all.insert(one.clone());
    one
}

/// The claim that a volume names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimReference {
    /// The claim's namespace.
    pub namespace: Arc<str>,
    /// The claim's name.
    pub name: String,
    /// The uid of the claim that was bound; a claim re-made under the same name has another.
    pub uid: Option<String>,
}

/// Which source of a PersistentVolume names its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// `spec.hostPath`
    HostPath,
    /// `spec.local`
    Local,
}

impl SourceKind {
    /// The name of the field, which is what the metrics and the plan show.
    pub const fn as_str(self) -> &'static str {
        match self {
            SourceKind::HostPath => "hostPath",
            SourceKind::Local => "local",
        }
    }
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Whether the condition Ready is True. False and Unknown are the same here: no Job would run.
    pub ready: bool,
    /// What the condition Ready says when it is not True.
    pub not_ready_message: String,
    /// Whether the condition DiskPressure is True: only critical pods are let in then.
    pub disk_pressure: bool,
    /// Whether the node is on its way out: it has a deletionTimestamp, or the Cluster Autoscaler's taint
    /// `ToBeDeletedByClusterAutoscaler`.
    pub being_removed: bool,
    /// `status.nodeInfo.operatingSystem`; empty when the node has not told.
    pub operating_system: String,
    /// Whether no kubelet stands behind the node (label `type=virtual-kubelet`): there is no disk to measure.
    pub is_virtual: bool,
    /// `metadata.creationTimestamp` in seconds since 1970: when a machine first came under this name, or again.
    pub created_unix_seconds: Option<i64>,
}

impl Node {
    /// What a node that cannot be read says instead of why it is not Ready.
    pub const UNREADABLE: &str = "the node cannot be read";

    /// Why no worker can run on this node, if none can.
    pub fn unmeasurable(&self) -> Option<(NodeReason, String)> {
        if self.is_virtual {
            Some((NodeReason::VirtualNode, "the node has no kubelet of its own".to_owned()))
        } else if !matches!(self.operating_system.as_str(), "" | "linux") {
            Some((
                NodeReason::NotLinux,
                format!("operating system {}", self.operating_system),
            ))
        } else if self.being_removed {
            Some((
                NodeReason::BeingRemoved,
                "the node is being removed from the cluster".to_owned(),
            ))
        } else if !self.ready {
            Some((NodeReason::NotReady, self.not_ready_message.clone()))
        } else {
            None
        }
    }
}

/// Why a node was not measured: the values of the label `reason`, a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeReason {
    /// The node is not Ready when the run begins.
    NotReady,
    /// The node stopped being Ready, or went away, while its worker ran.
    Lost,
    /// The node is being removed.
    BeingRemoved,
    /// The node does not run Linux.
    NotLinux,
    /// No kubelet stands behind the node.
    VirtualNode,
    /// The scheduler found no place for the worker's pod.
    Unschedulable,
    /// The API server refused the Job or its ConfigMap, or did not answer.
    CreateRefused,
    /// The Job made no pod: an admission policy or a quota refuses it.
    PodNotCreated,
    /// The worker's image is not to be had on the node.
    ImageUnavailable,
    /// The container could not be created or started.
    ContainerNotCreated,
    /// The node's volumes do not fit into one plan.
    PlanTooLarge,
    /// The worker was killed for using more memory than its limit.
    OutOfMemory,
    /// The worker ended with an error.
    WorkerFailed,
    /// The worker measured and could not deliver.
    NotDelivered,
    /// The worker delivered, and the Pushgateway has lost the numbers since.
    NumbersLost,
    /// The worker was still running when the controller's time was up.
    TimedOut,
    /// A worker of an earlier run is still on the node and does not end: a disk hangs.
    EarlierWorkerHangs,
    /// The run, or the node's worker, was told to end before it was done.
    RunInterrupted,
    /// The run was asked for other nodes only.
    NotAsked,
    /// The node holds no volumes, and only nodes with volumes are looked at.
    NoVolumes,
    /// The node is not among those that are to be measured.
    Filtered,
}

impl NodeReason {
    /// Every reason.
    pub const ALL: [NodeReason; 21] = [
        NodeReason::NotReady,
        NodeReason::Lost,
        NodeReason::BeingRemoved,
        NodeReason::NotLinux,
        NodeReason::VirtualNode,
        NodeReason::Unschedulable,
        NodeReason::CreateRefused,
        NodeReason::PodNotCreated,
        NodeReason::ImageUnavailable,
        NodeReason::ContainerNotCreated,
        NodeReason::PlanTooLarge,
        NodeReason::OutOfMemory,
        NodeReason::WorkerFailed,
        NodeReason::NotDelivered,
        NodeReason::NumbersLost,
        NodeReason::TimedOut,
        NodeReason::EarlierWorkerHangs,
        NodeReason::RunInterrupted,
        NodeReason::NotAsked,
        NodeReason::NoVolumes,
        NodeReason::Filtered,
    ];

    /// The value of the label `reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeReason::NotReady => "not_ready",
            NodeReason::Lost => "lost",
            NodeReason::BeingRemoved => "being_removed",
            NodeReason::NotLinux => "not_linux",
            NodeReason::VirtualNode => "virtual_node",
            NodeReason::Unschedulable => "unschedulable",
            NodeReason::CreateRefused => "create_refused",
            NodeReason::PodNotCreated => "pod_not_created",
            NodeReason::ImageUnavailable => "image_unavailable",
            NodeReason::ContainerNotCreated => "container_not_created",
            NodeReason::PlanTooLarge => "plan_too_large",
            NodeReason::OutOfMemory => "out_of_memory",
            NodeReason::WorkerFailed => "worker_failed",
            NodeReason::NotDelivered => "not_delivered",
            NodeReason::NumbersLost => "numbers_lost",
            NodeReason::TimedOut => "timed_out",
            NodeReason::EarlierWorkerHangs => "earlier_worker_hangs",
            NodeReason::RunInterrupted => "run_interrupted",
            NodeReason::NotAsked => "not_asked",
            NodeReason::NoVolumes => "no_volumes",
            NodeReason::Filtered => "filtered",
        }
    }
}

/// Why a PersistentVolume is not measured at all: the values of the label `reason`, a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipReason {
    /// The object could not be read.
    Undecodable,
    /// Its source is neither hostPath nor local: it is not node-local.
    NotNodeLocal,
    /// It is a raw block device.
    BlockMode,
    /// Its capacity is missing or makes no sense.
    InvalidCapacity,
    /// Its path is empty, relative, contains `..` or cannot be a path.
    InvalidPath,
    /// Its path lies below none of the base paths.
    OutsideBasePaths,
    /// Its path is a base path itself, which holds other volumes too.
    IsBasePath,
    /// Nothing in the volume says on which node it lies.
    NoNodeNamed,
    /// The node that the volume names does not exist (any more).
    NodeGone,
    /// No node has the labels that it asks for, and it names none.
    NoNodeMatches,
    /// Its file system is shared by nodes, and none of them is Ready.
    NoReadyNode,
    /// Only its pods could say where it lies, and they run on several nodes.
    PodsOnSeveralNodes,
    /// Its claim has the label `lp-exporter/measure: "false"`.
    OptedOut,
    /// Its storage class is not among those that are to be measured.
    FilteredByStorageClass,
    /// Its claim's namespace is not among those that are to be measured.
    FilteredByNamespace,
    /// Its claim does not match the label selector.
    FilteredBySelector,
    /// Its node is not among those that are to be measured.
    FilteredByNode,
}

impl SkipReason {
    /// Every reason.
    pub const ALL: [SkipReason; 17] = [
        SkipReason::Undecodable,
        SkipReason::NotNodeLocal,
        SkipReason::BlockMode,
        SkipReason::InvalidCapacity,
        SkipReason::InvalidPath,
        SkipReason::OutsideBasePaths,
        SkipReason::IsBasePath,
        SkipReason::NoNodeNamed,
        SkipReason::NodeGone,
        SkipReason::NoNodeMatches,
        SkipReason::NoReadyNode,
        SkipReason::PodsOnSeveralNodes,
        SkipReason::OptedOut,
        SkipReason::FilteredByStorageClass,
        SkipReason::FilteredByNamespace,
        SkipReason::FilteredBySelector,
        SkipReason::FilteredByNode,
    ];

    /// Whether the volume is left out because that is what somebody wants, or because it is not ours: nothing to worry
    /// about.
    pub const fn is_wanted(self) -> bool {
        match self {
            SkipReason::NotNodeLocal
            | SkipReason::OptedOut
            | SkipReason::FilteredByStorageClass
            | SkipReason::FilteredByNamespace
            | SkipReason::FilteredBySelector
            | SkipReason::FilteredByNode => true,
            SkipReason::Undecodable
            | SkipReason::BlockMode
            | SkipReason::InvalidCapacity
            | SkipReason::InvalidPath
            | SkipReason::OutsideBasePaths
            | SkipReason::IsBasePath
            | SkipReason::NoNodeNamed
            | SkipReason::NodeGone
            | SkipReason::NoNodeMatches
            | SkipReason::NoReadyNode
            | SkipReason::PodsOnSeveralNodes => false,
        }
    }

    /// The value of the label `reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            SkipReason::Undecodable => "undecodable",
            SkipReason::NotNodeLocal => "not_node_local",
            SkipReason::BlockMode => "block_mode",
            SkipReason::InvalidCapacity => "invalid_capacity",
            SkipReason::InvalidPath => "invalid_path",
            SkipReason::OutsideBasePaths => "outside_base_paths",
            SkipReason::IsBasePath => "is_base_path",
            SkipReason::NoNodeNamed => "no_node_named",
            SkipReason::NodeGone => "node_gone",
            SkipReason::NoNodeMatches => "no_node_matches",
            SkipReason::NoReadyNode => "no_ready_node",
            SkipReason::PodsOnSeveralNodes => "pods_on_several_nodes",
            SkipReason::OptedOut => "opted_out",
            SkipReason::FilteredByStorageClass => "filtered_by_storage_class",
            SkipReason::FilteredByNamespace => "filtered_by_namespace",
            SkipReason::FilteredBySelector => "filtered_by_selector",
            SkipReason::FilteredByNode => "filtered_by_node",
        }
    }
}

/// Stands for the name of an object that has none, or none that can be read.
pub(crate) const NO_NAME: &str = "(no readable name)";

/// A PersistentVolume that is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The volume's name; where it has none that can be read, this says so.
    pub persistent_volume: String,
    /// Why.
    pub reason: SkipReason,
    /// What exactly was found.
    pub detail: String,
    /// What is known of it all the same, as far as anything is; of a volume that is not node-local no more than a path.
    pub facts: Option<Box<SkippedFacts>>,
}

/// What is told of a volume that is left out. What could not be read is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkippedFacts {
    /// Namespace and name of its claim, if it names one.
    pub claim: Option<(String, String)>,
    /// Its storage class.
    pub storage_class: Arc<str>,
    /// The node that it lies on, where that is known.
    pub node: Option<String>,
    /// Which source names the directory.
    pub source: Option<SourceKind>,
    /// The directory as the source spells it, also of a volume that cannot be read otherwise or that an NFS server has:
    /// nobody is to take it for one that no volume owns.
    pub path: Option<String>,
    /// The volume's phase.
    pub phase: Arc<str>,
    /// What happens to the directory when the claim goes.
    pub reclaim_policy: Arc<str>,
    /// When it was made, in seconds since 1970.
    pub created_unix_seconds: Option<i64>,
    /// Whether several nodes share its file system.
    pub shared: bool,
    /// The values of the labels of claims that are told, in their order; empty where there are none.
    pub claim_labels: Vec<String>,
}
