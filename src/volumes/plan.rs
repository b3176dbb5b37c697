//! The plan of a run: every listed volume is either in a node's plan or skipped with a reason.
//!
//! Pure: volumes, claims and nodes in, [`Plan`] out. What becomes of the plan is the controller's business.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::text::one_line;

use super::node_plan::{self, BASES_DIRECTORY, Base, NodePlan, Run};
use super::path::{self, BasePaths, Located};
use super::placement::{NodeIndex, Placement};
use super::volume::{Claim, Node, NodeReason, SkipReason, Skipped, SourceKind, Volume};

/// The longest detail of a skipped volume: a path can have 4,095 characters.
const DETAIL_MAX_CHARS: usize = 300;

/// What a run is going to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The nodes that hold volumes, by name.
    pub nodes: Vec<PlannedNode>,
    /// The volumes that are left out.
    pub skipped: Vec<Skipped>,
    /// The nodes of volumes that are left out although their node is known.
    pub other_nodes: BTreeSet<String>,
}

/// A node that holds volumes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedNode {
    /// The node's name.
    pub name: String,
    /// Whether only critical pods are let in.
    pub disk_pressure: bool,
    /// Why no worker is sent there, if none is.
    pub unmeasurable: Option<(NodeReason, String)>,
    /// Its volumes, by path.
    pub volumes: Vec<PlacedVolume>,
}

/// A volume whose node and directory are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedVolume {
    /// The PersistentVolume's name.
    pub name: String,
    /// Namespace and name of its claim, if it has one.
    pub claim: Option<(String, String)>,
    /// Its storage class; empty when it has none.
    pub storage_class: String,
    /// Its directory on the node, in normal form.
    pub path: String,
    /// The base path that it lies below: an index into the base paths of the run.
    pub base: usize,
    /// Which source names the directory.
    pub source: SourceKind,
    /// Its capacity in bytes.
    pub capacity_bytes: u64,
    /// What its claim requests now, in bytes, where that claim still exists.
    pub requested_bytes: Option<u64>,
    /// The volume's phase.
    pub phase: String,
    /// What happens to the directory when the claim goes.
    pub reclaim_policy: String,
    /// Whether several nodes share its file system.
    pub shared: bool,
}

/// The claims of the cluster, arranged to be found.
#[derive(Default)]
pub struct Claims {
    by_name: HashMap<(String, String), (Option<String>, Option<u64>)>,
}

impl Claims {
    /// Arranges the claims.
    pub fn new(claims: impl IntoIterator<Item = Claim>) -> Claims {
        let mut arranged = Claims::default();
        claims.into_iter().for_each(|claim| arranged.add(claim));
        arranged
    }

    /// Takes one more claim.
    pub fn add(&mut self, claim: Claim) {
        let Claim {
            reference,
            requested_bytes,
        } = claim;
        self.by_name
            .insert((reference.namespace, reference.name), (reference.uid, requested_bytes));
    }

    /// What the volume's claim requests now. A claim that was deleted and made again under the same name is another claim.
    fn requested_bytes(&self, volume: &Volume) -> Option<u64> {
        let claim = volume.claim.as_ref()?;
        let (uid, requested_bytes) = self.by_name.get(&(claim.namespace.clone(), claim.name.clone()))?;
        match (&claim.uid, uid) {
            (Some(bound), Some(live)) if bound != live => None,
            _ => *requested_bytes,
        }
    }
}

/// Plans a run.
///
/// `volumes` are all that could be read, `skipped` those that could not; the sum of the plan is exactly both together.
pub fn plan(
    volumes: impl IntoIterator<Item = Volume>,
    skipped: Vec<Skipped>,
    claims: &Claims,
    nodes: &[Node],
    base_paths: &BasePaths,
) -> Plan {
    let mut index = NodeIndex::new(nodes);
    let mut skipped = skipped;
    let mut by_node: BTreeMap<usize, Vec<PlacedVolume>> = BTreeMap::new();
    let mut other_nodes = BTreeSet::new();
    for volume in volumes {
        match place(&volume, claims, &mut index, base_paths) {
            Ok((node, placed)) => by_node.entry(node).or_default().push(placed),
            Err((reason, detail)) => {
                if let Placement::Node(node) | Placement::Shared(node) = index.place(&volume) {
                    other_nodes.insert(nodes[node].name.clone());
                }
                skipped.push(Skipped {
                    persistent_volume: volume.name,
                    reason,
                    detail: one_line(&detail, DETAIL_MAX_CHARS),
                });
            }
        }
    }
    let mut planned: Vec<PlannedNode> = by_node
        .into_iter()
        .map(|(node, mut volumes)| {
            volumes.sort_by(|a, b| (&a.path, &a.name).cmp(&(&b.path, &b.name)));
            let node = &nodes[node];
            PlannedNode {
                name: node.name.clone(),
                disk_pressure: node.disk_pressure,
                unmeasurable: node.unmeasurable(),
                volumes,
            }
        })
        .collect();
    planned.sort_by(|a, b| a.name.cmp(&b.name));
    Plan {
        nodes: planned,
        skipped,
        other_nodes,
    }
}

fn place(
    volume: &Volume,
    claims: &Claims,
    index: &mut NodeIndex<'_>,
    base_paths: &BasePaths,
) -> Result<(usize, PlacedVolume), (SkipReason, String)> {
    let path = path::normalize(&volume.path).map_err(|error| (SkipReason::InvalidPath, error.to_string()))?;
    let base = match base_paths.find(&path) {
        Located::Beneath { base, .. } => base,
        Located::IsBase { .. } => return Err((SkipReason::IsBasePath, path)),
        Located::Outside => return Err((SkipReason::OutsideBasePaths, path)),
    };
    let (node, shared) = match index.place(volume) {
        Placement::Node(node) => (node, false),
        Placement::Shared(node) => (node, true),
        Placement::Unplaced(reason, detail) => return Err((reason, detail)),
    };
    let placed = PlacedVolume {
        name: volume.name.clone(),
        claim: volume
            .claim
            .as_ref()
            .map(|claim| (claim.namespace.clone(), claim.name.clone())),
        storage_class: volume.storage_class.clone(),
        path,
        base,
        source: volume.source,
        capacity_bytes: volume.capacity_bytes,
        requested_bytes: claims.requested_bytes(volume),
        phase: volume.phase.clone(),
        reclaim_policy: volume.reclaim_policy.clone(),
        shared,
    };
    Ok((node, placed))
}

impl PlannedNode {
    /// Writes the plan of this node's worker. `unavailable` are the base paths that could not be mounted on it.
    pub fn node_plan(
        &self,
        run: &Run,
        budget_seconds: f64,
        base_paths: &BasePaths,
        unavailable: &[String],
    ) -> NodePlan {
        let mut bases: Vec<Base> = Vec::new();
        let mut index_of: HashMap<usize, usize> = HashMap::new();
        let mut volumes = Vec::with_capacity(self.volumes.len());
        for volume in &self.volumes {
            let base = *index_of.entry(volume.base).or_insert_with(|| {
                let path = base_paths.as_slice()[volume.base].clone();
                let mounted_at = (!unavailable.contains(&path)).then(|| mount_path(bases.len()));
                bases.push(Base { path, mounted_at });
                bases.len() - 1
            });
            volumes.push(node_plan::PlannedVolume {
                persistentvolume: volume.name.clone(),
                namespace: volume.claim.as_ref().map(|(namespace, _)| namespace.clone()),
                persistentvolumeclaim: volume.claim.as_ref().map(|(_, name)| name.clone()),
                storageclass: volume.storage_class.clone(),
                path: volume.path.clone(),
                base,
            });
        }
        NodePlan {
            version: node_plan::VERSION,
            run: run.clone(),
            node: self.name.clone(),
            budget_seconds,
            bases,
            volumes,
        }
    }
}

/// Where a base directory is mounted in a worker. The number keeps a base path's own characters out of the mount path,
/// which may not contain everything that a path may (a colon, for one).
fn mount_path(index: usize) -> String {
    format!("{BASES_DIRECTORY}/{index}")
}

impl Plan {
    /// How many volumes were listed: those of the nodes and the skipped ones.
    pub fn volumes_listed(&self) -> usize {
        self.volumes_planned() + self.skipped.len()
    }

    /// The names of the nodes that hold volumes, those of volumes that are skipped included: their groups are not stale.
    pub fn nodes_with_volumes(&self) -> BTreeSet<String> {
        let planned = self.nodes.iter().map(|node| node.name.clone());
        planned.chain(self.other_nodes.iter().cloned()).collect()
    }

    /// How many volumes have a node.
    pub fn volumes_planned(&self) -> usize {
        self.nodes.iter().map(|node| node.volumes.len()).sum()
    }

    /// How many volumes are skipped, by reason; every reason has a number.
    pub fn skipped_by_reason(&self) -> BTreeMap<SkipReason, usize> {
        let mut count: BTreeMap<SkipReason, usize> = SkipReason::ALL.into_iter().map(|reason| (reason, 0)).collect();
        for skipped in &self.skipped {
            *count.entry(skipped.reason).or_default() += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::{node, volume};
    use crate::volumes::volume::ClaimReference;

    fn bases() -> BasePaths {
        BasePaths::new(["/opt/local-path-provisioner", "/data1"]).expect("they are absolute")
    }

    fn on(mut volume: Volume, node: &str) -> Volume {
        use crate::volumes::affinity::{NodeSelectorTerm, Operator, Requirement};
        let requirement = Requirement {
            key: "kubernetes.io/hostname".to_owned(),
            operator: Operator::In,
            values: vec![node.to_owned()],
        };
        volume.affinity = Some(vec![NodeSelectorTerm {
            match_expressions: vec![requirement],
            match_fields: Vec::new(),
        }]);
        volume
    }

    fn at(mut volume: Volume, path: &str) -> Volume {
        volume.path = path.to_owned();
        volume
    }

    /// `node: volume, volume; …| volume reason; …`
    fn told(plan: &Plan) -> String {
        let nodes: Vec<String> = plan
            .nodes
            .iter()
            .map(|node| {
                let volumes: Vec<&str> = node.volumes.iter().map(|volume| volume.name.as_str()).collect();
                format!("{}: {}", node.name, volumes.join(", "))
            })
            .collect();
        let skipped: Vec<String> = plan
            .skipped
            .iter()
            .map(|one| format!("{} {}", one.persistent_volume, one.reason.as_str()))
            .collect();
        format!("{} | {}", nodes.join("; "), skipped.join("; "))
    }

    fn check(volumes: Vec<Volume>, expected: &str) -> Plan {
        let listed = volumes.len();
        let nodes = [node("a"), node("b").not_ready()];
        let plan = plan(volumes, Vec::new(), &Claims::default(), &nodes, &bases());
        assert_eq!(told(&plan), expected);
        assert_eq!(plan.volumes_listed(), listed, "every volume is planned or skipped");
        plan
    }

    #[test]
    fn every_volume_has_its_place() {
        check(Vec::new(), " | ");
        let plan = check(
            vec![
                on(volume("z"), "a"),
                on(volume("y"), "b"),
                on(at(volume("x"), "/data1//team/./claim/"), "a"),
                on(at(volume("outside"), "/srv/data"), "b"),
                on(at(volume("base"), "/data1/"), "a"),
                on(at(volume("tricky"), "/data1/../etc"), "a"),
                on(volume("lost"), "gone"),
                volume("nowhere"),
            ],
            "a: x, z; b: y | outside outside_base_paths; base is_base_path; tricky invalid_path; lost node_gone; \
             nowhere no_node_named",
        );
        assert_eq!(plan.nodes[0].volumes[0].path, "/data1/team/claim");
        assert_eq!(plan.nodes[0].unmeasurable, None);
        assert_eq!(
            plan.nodes[1].unmeasurable.as_ref().map(|(reason, _)| *reason),
            Some(NodeReason::NotReady)
        );
        assert_eq!(plan.skipped_by_reason()[&SkipReason::NodeGone], 1);
        assert_eq!(plan.skipped_by_reason()[&SkipReason::Undecodable], 0);
    }

    #[test]
    fn a_node_whose_volumes_are_all_skipped_still_has_volumes() {
        let plan = check(
            vec![on(at(volume("outside"), "/srv/data"), "b")],
            " | outside outside_base_paths",
        );
        assert_eq!(plan.nodes_with_volumes(), BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn a_claim_of_the_same_name_is_another_claim() {
        let reference = |uid: Option<&str>| ClaimReference {
            namespace: "default".to_owned(),
            name: "data".to_owned(),
            uid: uid.map(str::to_owned),
        };
        for (bound, live, expected) in [
            (Some("1"), Some("1"), Some(5)),
            (Some("1"), Some("2"), None),
            (None, Some("2"), Some(5)),
            (Some("1"), None, Some(5)),
        ] {
            let claims = Claims::new([Claim {
                reference: reference(live),
                requested_bytes: Some(5),
            }]);
            let mut volume = on(volume("pv"), "a");
            volume.claim = Some(reference(bound));
            let plan = plan([volume], Vec::new(), &claims, &[node("a")], &bases());
            assert_eq!(plan.nodes[0].volumes[0].requested_bytes, expected, "{bound:?} {live:?}");
        }
    }

    #[test]
    fn a_node_plan_names_the_bases_that_it_needs() {
        let plan = check(
            vec![on(at(volume("x"), "/data1/x"), "a"), on(volume("z"), "a")],
            "a: x, z | ",
        );
        let run = Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.5,
        };
        let node_plan = plan.nodes[0].node_plan(&run, 10.0, &bases(), &["/opt/local-path-provisioner".to_owned()]);
        let told: Vec<_> = node_plan
            .bases
            .iter()
            .map(|base| (base.path.as_str(), base.mounted_at.as_deref()))
            .collect();
        assert_eq!(
            told,
            [("/data1", Some("/bases/0")), ("/opt/local-path-provisioner", None)]
        );
        let bases: Vec<_> = node_plan
            .volumes
            .iter()
            .map(|volume| (volume.persistentvolume.as_str(), volume.base))
            .collect();
        assert_eq!(bases, [("x", 0), ("z", 1)]);
    }
}
