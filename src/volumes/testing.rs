//! Builders for tests: an ordinary volume and an ordinary node, from which a test changes what it is about.

use std::collections::BTreeMap;

use super::claims::Claim;
use super::volume::{ClaimReference, Node, SourceKind, Volume};

/// A Bound volume of local-path-provisioner, without any hint at its node.
pub(crate) fn volume(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        claim: Some(ClaimReference {
            namespace: "default".into(),
            name: format!("claim-of-{name}"),
            uid: None,
        }),
        storage_class: "local-path".into(),
        source: SourceKind::HostPath,
        path: format!("/opt/local-path-provisioner/{name}"),
        capacity_bytes: 1 << 30,
        phase: "Bound".into(),
        reclaim_policy: "Delete".into(),
        affinity: None,
        selected_node: None,
        created_unix_seconds: None,
    }
}

/// The claim that a volume is bound to.
pub(crate) fn claim_of(volume: &Volume) -> Claim {
    Claim {
        reference: volume.claim.clone().expect("the volume has a claim"),
        volume: Some(volume.name.clone()),
        is_lost: false,
        requested_bytes: Some(volume.capacity_bytes),
        labels: BTreeMap::new(),
        alert_percent: None,
    }
}

/// A Ready Linux node.
pub(crate) fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
        ready: true,
        not_ready_message: String::new(),
        disk_pressure: false,
        being_removed: false,
        operating_system: "linux".to_owned(),
        is_virtual: false,
        created_unix_seconds: None,
    }
}

impl Node {
    pub(crate) fn labels(mut self, labels: &[(&str, &str)]) -> Node {
        self.labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        self
    }

    pub(crate) fn not_ready(mut self) -> Node {
        self.ready = false;
        self.not_ready_message = "Kubelet stopped posting node status.".to_owned();
        self
    }
}
