//! Builders for the objects that a cluster holds, as JSON in the shape that the real writers give them.

use serde_json::{Value, json};

use super::api_server::now;

/// A PersistentVolume as local-path-provisioner v0.0.30 writes it (seen on a cluster), bound to its claim.
///
/// Start with [`Volume::local_path`] or [`Volume::local_path_data1`], change what the test is about, and finish with
/// [`Volume::persistent_volume`] and [`Volume::claim`].
#[derive(Debug, Clone)]
pub struct Volume {
    pub persistentvolume: String,
    pub namespace: String,
    pub claim: String,
    pub class: String,
    /// As in the claim, `1.5Gi`; the API server keeps the canonical form, `1536Mi`.
    pub request: String,
    pub node: String,
    /// The directory on the node.
    pub path: String,
    /// `hostPath` or `local`.
    pub source: &'static str,
    pub phase: &'static str,
    pub reclaim_policy: &'static str,
}

impl Volume {
    /// Of the class `local-path`: a hostPath volume below /opt/local-path-provisioner.
    pub fn local_path(node: &str, namespace: &str, claim: &str, request: &str) -> Volume {
        let name = volume_name(namespace, claim);
        Volume {
            path: format!("/opt/local-path-provisioner/{name}_{namespace}_{claim}"),
            persistentvolume: name,
            namespace: namespace.to_owned(),
            claim: claim.to_owned(),
            class: "local-path".to_owned(),
            request: request.to_owned(),
            node: node.to_owned(),
            source: "hostPath",
            phase: "Bound",
            reclaim_policy: "Delete",
        }
    }

    /// Of the class `local-path-data1`: a volume of type local, in nested directories below /data1, retained.
    pub fn local_path_data1(node: &str, namespace: &str, claim: &str, request: &str) -> Volume {
        let name = volume_name(namespace, claim);
        Volume {
            path: format!("/data1/{namespace}/{claim}/{name}"),
            class: "local-path-data1".to_owned(),
            source: "local",
            reclaim_policy: "Retain",
            ..Volume::local_path(node, namespace, claim, request)
        }
    }

    pub fn persistent_volume(&self) -> Value {
        let mut source = json!({"path": self.path});
        if self.source == "hostPath" {
            source["type"] = "DirectoryOrCreate".into();
        }
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {
                "name": self.persistentvolume,
                "annotations": {
                    "local.path.provisioner/selected-node": self.node,
                    "pv.kubernetes.io/provisioned-by": "rancher.io/local-path",
                },
                "finalizers": ["kubernetes.io/pv-protection"],
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": self.request},
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": self.namespace, "name": self.claim, "uid": &self.persistentvolume["pvc-".len()..],
                },
                self.source: source,
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.node]},
                ]}]}},
                "persistentVolumeReclaimPolicy": self.reclaim_policy,
                "storageClassName": self.class,
                "volumeMode": "Filesystem",
            },
            "status": {"phase": self.phase},
        })
    }

    pub fn claim(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": self.claim, "namespace": self.namespace, "uid": &self.persistentvolume["pvc-".len()..],
                "annotations": {
                    "pv.kubernetes.io/bind-completed": "yes",
                    "volume.kubernetes.io/selected-node": self.node,
                    "volume.kubernetes.io/storage-provisioner": "rancher.io/local-path",
                },
                "finalizers": ["kubernetes.io/pvc-protection"],
            },
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": self.request}},
                "storageClassName": self.class, "volumeMode": "Filesystem", "volumeName": self.persistentvolume,
            },
            "status": {
                "accessModes": ["ReadWriteOnce"], "capacity": {"storage": self.request}, "phase": self.phase,
            },
        })
    }
}

/// The provisioner names a volume by its claim's uid. This one follows from the claim, so that tests can repeat it.
fn volume_name(namespace: &str, claim: &str) -> String {
    let sum = format!("{namespace}/{claim}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    let hex = format!("{sum:016x}");
    format!(
        "pvc-{}-{}-4000-8000-{}",
        &hex[..8],
        &hex[8..12],
        &format!("{hex}{hex}")[4..16]
    )
}

/// A node that is Ready, without taints, whose hostname label is its name.
pub fn node(name: &str) -> Value {
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason,
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        },
        "spec": {},
        "status": {"conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            condition("Ready", "True", "KubeletReady"),
        ]},
    })
}

/// Sets a condition of a node, or of a Job or pod that has it: `Ready` to `Unknown` is what a node gets that is cut
/// off.
pub fn set_condition(object: &mut Value, kind: &str, status: &str) {
    let conditions = object["status"]["conditions"].as_array_mut();
    for condition in conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition["type"] == kind)
    {
        condition["status"] = status.into();
        condition["lastTransitionTime"] = now().into();
    }
}

/// Adds a taint without a value to a node.
pub fn taint(mut node: Value, key: &str, effect: &str) -> Value {
    let taint = json!({"key": key, "effect": effect});
    match node["spec"]["taints"].as_array_mut() {
        Some(taints) => taints.push(taint),
        None => node["spec"]["taints"] = json!([taint]),
    }
    node
}

/// The CronJob, its Job and the Job's pod in which a controller runs, named as the manifests name them.
///
/// The pod is `<job>-pod`; its one container runs `image`.
pub fn controller_of_cronjob(job: &str, image: &str) -> [Value; 3] {
    let owner = |api_version: &str, kind: &str, name: &str, uid: &str| {
        json!([{
            "apiVersion": api_version, "kind": kind, "name": name, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        }])
    };
    let labels =
        json!({"app.kubernetes.io/name": "lp-exporter", "app.kubernetes.io/component": "controller", "job-name": job});
    let job_uid = format!("uid-of-{job}");
    let pod_spec = json!({"restartPolicy": "Never", "containers": [{"name": "controller", "image": image}]});
    [
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "lp-exporter", "namespace": "lp-exporter", "uid": "uid-of-the-cronjob"},
            "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {"spec": pod_spec}}}},
        }),
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": job, "namespace": "lp-exporter", "uid": job_uid,
                "ownerReferences": owner("batch/v1", "CronJob", "lp-exporter", "uid-of-the-cronjob"),
            },
            "spec": {"template": {"metadata": {"labels": labels}, "spec": pod_spec}},
            "status": {"active": 1},
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("{job}-pod"), "namespace": "lp-exporter", "labels": labels,
                "ownerReferences": owner("batch/v1", "Job", job, &job_uid),
            },
            "spec": pod_spec,
            "status": {"phase": "Running"},
        }),
    ]
}
