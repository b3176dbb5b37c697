//! Where pods say that a volume lies, of which nothing else says it.
//!
//! A hostPath volume without node affinity and without local-path-provisioner's annotation is a directory of whatever node
//! its pod runs on. Pods that run, or are bound to a node, say where it is now. Only where there are none, those that ended
//! say where it was last. Where they do not agree, each node may have a directory of its own: none of them is the volume.

use std::collections::{BTreeSet, HashMap};

use super::volume::{SkipReason, Volume};

/// A pod that is bound to a node and mounts claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOnNode {
    /// The namespace of the pod and its claims.
    pub namespace: String,
    /// The names of the claims that it mounts.
    pub claims: Vec<String>,
    /// The node that it was bound to.
    pub node: String,
    /// Whether it ended.
    pub has_ended: bool,
}

/// The nodes of one claim's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Nodes {
    live: BTreeSet<String>,
    ended: BTreeSet<String>,
}

/// Where the pods of some claims run. Others are not kept, so that a cluster's many pods take no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlaces {
    by_claim: HashMap<(String, String), Nodes>,
}

impl PodPlaces {
    /// Looks for the pods of these claims (namespace and name).
    pub fn of_claims(claims: impl IntoIterator<Item = (String, String)>) -> PodPlaces {
        PodPlaces {
            by_claim: claims.into_iter().map(|claim| (claim, Nodes::default())).collect(),
        }
    }

    /// Whether there is no claim to look for.
    pub fn is_empty(&self) -> bool {
        self.by_claim.is_empty()
    }

    /// Takes note of a pod.
    pub fn see(&mut self, pod: PodOnNode) {
        let PodOnNode {
            namespace,
            claims,
            node,
            has_ended,
        } = pod;
        for claim in claims {
            if let Some(nodes) = self.by_claim.get_mut(&(namespace.clone(), claim)) {
                let known = if has_ended { &mut nodes.ended } else { &mut nodes.live };
                known.insert(node.clone());
            }
        }
    }

    /// The names of the nodes that the pods of a claim run on, or ran on last.
    pub(super) fn nodes_of(&self, claim: (&str, &str)) -> impl Iterator<Item = &str> {
        let (namespace, name) = claim;
        let nodes = self.by_claim.get(&(namespace.to_owned(), name.to_owned()));
        let nodes = nodes.map(|nodes| {
            if nodes.live.is_empty() {
                &nodes.ended
            } else {
                &nodes.live
            }
        });
        nodes.into_iter().flatten().map(String::as_str)
    }

    /// The name of the node that the pods of the volume's claim agree on.
    ///
    /// # Errors
    /// Why they say none.
    pub(super) fn node_of(&self, claim: (&str, &str)) -> Result<&str, (SkipReason, String)> {
        let (namespace, name) = claim;
        let mut names = self.nodes_of(claim);
        match (names.next(), names.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => {
                let why = format!(
                    "the volume has neither a node affinity nor the annotation local.path.provisioner/selected-node, and \
                     no pod mounts its claim {namespace}/{name}"
                );
                Err((SkipReason::NoNodeNamed, why))
            }
            (Some(first), Some(second)) => {
                let names: Vec<&str> = [first, second].into_iter().chain(names).collect();
                let why = format!("the pods of claim {namespace}/{name} are on {}", names.join(", "));
                Err((SkipReason::PodsOnSeveralNodes, why))
            }
        }
    }
}

/// Whether only pods can say where a volume lies.
pub fn needs_pods(volume: &Volume) -> bool {
    volume.affinity.is_none() && volume.selected_node.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pods: &[(&str, bool)], expected: Result<&str, SkipReason>) {
        let mut places = PodPlaces::of_claims([("shop".to_owned(), "data".to_owned())]);
        for (node, has_ended) in pods {
            places.see(PodOnNode {
                namespace: "shop".to_owned(),
                claims: vec!["other".to_owned(), "data".to_owned()],
                node: (*node).to_owned(),
                has_ended: *has_ended,
            });
        }
        let found = places.node_of(("shop", "data")).map_err(|(reason, _)| reason);
        assert_eq!(found, expected, "{pods:?}");
        assert!(places.node_of(("shop", "other")).is_err(), "nobody asked for it");
        assert!(places.node_of(("ops", "data")).is_err());
    }

    #[test]
    fn what_pods_say() {
        check(&[], Err(SkipReason::NoNodeNamed));
        check(&[("a", false)], Ok("a"));
        check(&[("a", false), ("a", false)], Ok("a"));
        check(&[("a", false), ("b", false)], Err(SkipReason::PodsOnSeveralNodes));
        // A pod that ended says where it was last, unless another says where it is now.
        check(&[("a", true)], Ok("a"));
        check(&[("a", true), ("b", false)], Ok("b"));
        check(&[("a", true), ("b", true)], Err(SkipReason::PodsOnSeveralNodes));
    }
}
