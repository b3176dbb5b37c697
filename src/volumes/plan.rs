//! The plan of a run: every listed volume is either in a node's plan or skipped with a reason.
//!
//! Pure: volumes, claims and nodes in, [`Plan`] out. What becomes of the plan is the controller's business.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::text::one_line;

use super::claims::{Claim, Claims};
use super::collect::{Collect, Collected};
use super::known_paths::KnownPaths;
use super::node_plan::{self, BASES_DIRECTORY, Base, NodePlan, Run};
use super::path::{self, BasePaths, Located};
use super::placement::{NodeIndex, Placement};
use super::pods::PodPlaces;
use super::selection::{ScanNodes, Selection};
use super::volume::{Node, NodeReason, SkipReason, Skipped, SkippedFacts, SourceKind, Volume};

/// The longest detail of a skipped volume: a path can have 4,095 characters.
const DETAIL_MAX_CHARS: usize = 300;

/// What a run is going to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The nodes that are to be looked at, by name: those that hold volumes, and others if they are asked for.
    pub nodes: Vec<PlannedNode>,
    /// The volumes that are left out.
    pub skipped: Vec<Skipped>,
    /// The nodes of volumes that are left out although their node is known.
    pub other_nodes: BTreeSet<String>,
    /// The nodes that a volume may lie on of which nobody knows where it lies.
    pub possible_nodes: BTreeSet<String>,
    /// The nodes that no worker is to look at, by name, and why. One that it cannot look at is among `nodes`.
    pub nodes_not_scanned: BTreeMap<String, NodeReason>,
    /// Thresholds that claims ask for and that make no sense.
    pub invalid_alert_percents: Vec<String>,
    /// Claims whose volume is gone, as `namespace/name`.
    pub claims_lost: Vec<String>,
    /// How many claims could not be read.
    pub claims_unreadable: usize,
    /// The paths that no worker may take for a directory without an owner.
    pub known_paths: KnownPaths,
}

/// A node that is to be looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedNode {
    /// The node's name.
    pub name: String,
    /// Whether only critical pods are let in.
    pub disk_pressure: bool,
    /// Why no worker is sent there, if none is.
    pub unmeasurable: Option<(NodeReason, String)>,
    /// The base paths that its worker looks below: indices into the base paths of the run, in their order. Those of its
    /// volumes are among them.
    pub bases: Vec<usize>,
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
    pub storage_class: Arc<str>,
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
    pub phase: Arc<str>,
    /// What happens to the directory when the claim goes.
    pub reclaim_policy: Arc<str>,
    /// When it was made, in seconds since 1970.
    pub created_unix_seconds: Option<i64>,
    /// Whether several nodes share its file system.
    pub shared: bool,
    /// The threshold that its claim asks for, in percent of the capacity.
    pub alert_percent: Option<u8>,
    /// Whether its claim wants no alerts.
    pub alert_disabled: bool,
    /// The values of the labels of its claim that are told, in their order.
    pub claim_labels: Vec<String>,
}

/// What of the cluster, besides its volumes, a plan depends on.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The claims.
    pub claims: &'a Claims,
    /// The nodes: all of them, Ready or not.
    pub nodes: &'a [Node],
    /// Where the pods of claims run, if they are to be asked.
    pub pods: Option<&'a PodPlaces>,
}

/// Plans a run.
///
/// `volumes` are all that could be read, `skipped` those that could not; the sum of the plan is exactly both together.
pub fn plan(
    volumes: impl IntoIterator<Item = Volume>,
    skipped: Vec<Skipped>,
    surroundings: Surroundings<'_>,
    base_paths: &BasePaths,
    selection: &Selection,
) -> Plan {
    let Surroundings { claims, nodes, pods } = surroundings;
    let mut index = NodeIndex::new(nodes).preferring(&selection.nodes);
    let mut plan = Plan {
        skipped,
        claims_lost: claims.lost(),
        claims_unreadable: claims.unreadable(),
        ..Plan::default()
    };
    let mut by_node: BTreeMap<usize, Vec<PlacedVolume>> = BTreeMap::new();
    let mut bases_in_use = BTreeSet::new();
    let mut may_hold_one = vec![false; nodes.len()];
    let mut marked_last: Option<Rc<[usize]>> = None;
    for one in &plan.skipped {
        let path = one.facts.as_ref().and_then(|facts| facts.path.as_deref());
        plan.known_paths.add_skipped(&one.persistent_volume, one.reason, path);
    }
    for volume in volumes {
        let claim = claims.of(&volume);
        let (path, base) = locate(&volume, base_paths);
        bases_in_use.extend(base.as_ref().ok());
        let placement = place(&volume, claim, &mut index, pods);
        let decided = decide(&volume, claim, base, &placement, nodes, selection);
        let surely_on = index.surely_on(&volume).map(|node| nodes[node].name.as_str());
        plan.known_paths.add(&volume, surely_on, decided.is_ok());
        match decided {
            Ok((node, base)) => {
                let placed = placed(volume, claim, (path.unwrap_or_default(), base), &placement, selection);
                if let Some(Err(why)) = claim.map(Claim::alert_percent) {
                    plan.invalid_alert_percents.push(why);
                }
                by_node.entry(node).or_default().push(placed);
            }
            Err((reason, detail)) => {
                if let Placement::Unplaced { may_be_on, .. } = &placement {
                    // Every node of the cluster as a rule, and for one volume as for the next.
                    if !marked_last.as_ref().is_some_and(|marked| Rc::ptr_eq(marked, may_be_on)) {
                        for node in &may_be_on[..] {
                            may_hold_one[*node] = true;
                        }
                        marked_last = Some(may_be_on.clone());
                    }
                }
                let (name, facts) = facts(volume, claim, &placement, nodes, selection);
                plan.other_nodes.extend(facts.node.clone());
                plan.skipped.push(Skipped {
                    persistent_volume: name,
                    reason,
                    detail: one_line(&detail, DETAIL_MAX_CHARS),
                    facts: Some(Box::new(facts)),
                });
            }
        }
    }
    let may_hold_one = nodes.iter().zip(may_hold_one).filter(|(_, may_hold_one)| *may_hold_one);
    plan.possible_nodes
        .extend(may_hold_one.map(|(node, _)| node.name.clone()));
    for (at, node) in nodes.iter().enumerate() {
        plan_node(&mut plan, node, by_node.remove(&at), &bases_in_use, selection);
    }
    plan.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}

/// Why a volume is left out, and what exactly was found.
type Why = (SkipReason, String);

/// The volume's path in normal form, as far as it has one, and the base path that it lies below.
fn locate(volume: &Volume, base_paths: &BasePaths) -> (Option<String>, Result<usize, Why>) {
    let path = match path::normalize(&volume.path) {
        Ok(path) => path,
        Err(error) => return (None, Err((SkipReason::InvalidPath, error.to_string()))),
    };
    let base = match base_paths.find(&path) {
        Located::Beneath { base, .. } => Ok(base),
        Located::IsBase { .. } => Err((SkipReason::IsBasePath, path.clone())),
        Located::Outside => Err((SkipReason::OutsideBasePaths, path.clone())),
    };
    (Some(path), base)
}

fn place(volume: &Volume, claim: Option<&Claim>, index: &mut NodeIndex<'_>, pods: Option<&PodPlaces>) -> Placement {
    match (index.place(volume), claim, pods) {
        (
            Placement::Unplaced {
                reason: reason @ SkipReason::NoNodeNamed,
                detail,
                ..
            },
            claim,
            Some(pods),
        ) => match claim.map(|claim| &claim.reference) {
            Some(claim) => index.place_by_pods(pods, (&claim.namespace, &claim.name)),
            None => index.place_without_pods(reason, detail),
        },
        (placement, ..) => placement,
    }
}

/// The node and the base path of a volume that is to be measured. What people do not want comes before what is wrong.
fn decide(
    volume: &Volume,
    claim: Option<&Claim>,
    base: Result<usize, Why>,
    placement: &Placement,
    nodes: &[Node],
    selection: &Selection,
) -> Result<(usize, usize), Why> {
    if let Some(why) = selection.leaves_out(volume, claim) {
        return Err(why);
    }
    let base = base?;
    match placement {
        Placement::Unplaced { reason, detail, .. } => Err((*reason, detail.clone())),
        Placement::Node(node) | Placement::Shared(node) if selection.takes_node(&nodes[*node].name) => {
            Ok((*node, base))
        }
        Placement::Node(node) | Placement::Shared(node) => {
            Err((SkipReason::FilteredByNode, format!("node {}", nodes[*node].name)))
        }
    }
}

fn placed(
    volume: Volume,
    claim: Option<&Claim>,
    (path, base): (String, usize),
    placement: &Placement,
    selection: &Selection,
) -> PlacedVolume {
    PlacedVolume {
        name: volume.name,
        claim: volume.claim.map(|claim| (claim.namespace.to_string(), claim.name)),
        storage_class: volume.storage_class,
        path,
        base,
        source: volume.source,
        capacity_bytes: volume.capacity_bytes,
        requested_bytes: claim.and_then(|claim| claim.requested_bytes),
        phase: volume.phase,
        reclaim_policy: volume.reclaim_policy,
        created_unix_seconds: volume.created_unix_seconds,
        shared: matches!(placement, Placement::Shared(_)),
        alert_percent: claim.and_then(|claim| claim.alert_percent().ok().flatten()),
        alert_disabled: claim.is_some_and(Claim::is_alert_disabled),
        claim_labels: selection.claim_labels.values(claim),
    }
}

/// The name of a volume that is left out, and what is told of it.
fn facts(
    volume: Volume,
    claim: Option<&Claim>,
    placement: &Placement,
    nodes: &[Node],
    selection: &Selection,
) -> (String, SkippedFacts) {
    let node = match placement {
        Placement::Node(node) | Placement::Shared(node) => Some(nodes[*node].name.clone()),
        Placement::Unplaced { .. } => None,
    };
    let facts = SkippedFacts {
        claim: volume.claim.map(|claim| (claim.namespace.to_string(), claim.name)),
        storage_class: volume.storage_class,
        node,
        source: Some(volume.source),
        path: Some(volume.path),
        phase: volume.phase,
        reclaim_policy: volume.reclaim_policy,
        created_unix_seconds: volume.created_unix_seconds,
        shared: matches!(placement, Placement::Shared(_)),
        claim_labels: selection.claim_labels.values(claim),
    };
    (volume.name, facts)
}

/// Puts a node into the plan, or says why no worker is to look at it.
fn plan_node(
    plan: &mut Plan,
    node: &Node,
    volumes: Option<Vec<PlacedVolume>>,
    bases_in_use: &BTreeSet<usize>,
    selection: &Selection,
) {
    let scans_all = selection.scan_nodes == ScanNodes::All;
    let mut unmeasurable = node.unmeasurable();
    if volumes.is_none() {
        let never = unmeasurable.as_ref().map(|(reason, _)| *reason);
        let why_not = match never {
            Some(reason @ (NodeReason::NotLinux | NodeReason::VirtualNode)) => Some(reason),
            _ if !selection.takes_node(&node.name) => Some(NodeReason::Filtered),
            _ if !scans_all || bases_in_use.is_empty() => Some(NodeReason::NoVolumes),
            _ => None,
        };
        if let Some(reason) = why_not {
            plan.nodes_not_scanned.insert(node.name.clone(), reason);
            return;
        }
    }
    if !selection.asks_for(&node.name) {
        unmeasurable = Some((NodeReason::NotAsked, "this run is for other nodes only".to_owned()));
    }
    let mut volumes = volumes.unwrap_or_default();
    volumes.sort_by(|a, b| (&a.path, &a.name).cmp(&(&b.path, &b.name)));
    let bases = if scans_all {
        bases_in_use.clone()
    } else {
        volumes.iter().map(|volume| volume.base).collect()
    };
    plan.nodes.push(PlannedNode {
        name: node.name.clone(),
        disk_pressure: node.disk_pressure,
        unmeasurable,
        bases: bases.into_iter().collect(),
        volumes,
    });
}

/// What the workers of a run are to collect.
#[derive(Clone, Copy)]
pub struct Collecting<'a> {
    /// The families.
    pub collect: &'a Collect,
    /// How old a directory without an owner has to be.
    pub orphan_age: Duration,
    /// What has an owner: [`Plan::known_paths`].
    pub known_paths: &'a KnownPaths,
}

impl PlannedNode {
    /// Writes the plan of this node's worker. `unavailable` are the base paths that could not be mounted on it.
    pub fn node_plan(
        &self,
        run: &Run,
        budget_seconds: f64,
        base_paths: &BasePaths,
        unavailable: &[String],
        collecting: Collecting<'_>,
    ) -> NodePlan {
        let Collecting {
            collect,
            orphan_age,
            known_paths,
        } = collecting;
        let bases = self.bases.iter().enumerate().map(|(at, base)| {
            let path = base_paths.as_slice()[*base].clone();
            let mounted_at = (!unavailable.contains(&path)).then(|| mount_path(at));
            Base { path, mounted_at }
        });
        let bases: Vec<Base> = bases.collect();
        let base_of = |volume: &PlacedVolume| {
            let at = self.bases.binary_search(&volume.base);
            at.expect("the bases of a node's volumes are among its bases")
        };
        let volumes = self.volumes.iter().map(|volume| node_plan::PlannedVolume {
            persistentvolume: volume.name.clone(),
            namespace: volume.claim.as_ref().map(|(namespace, _)| namespace.clone()),
            persistentvolumeclaim: volume.claim.as_ref().map(|(_, name)| name.clone()),
            storageclass: volume.storage_class.to_string(),
            path: volume.path.clone(),
            base: base_of(volume),
            left_alone: false,
            capacity_bytes: volume.capacity_bytes,
        });
        let other_base_paths = base_paths
            .as_slice()
            .iter()
            .filter(|path| bases.iter().all(|base| base.path != **path));
        // A volume that lies nobody knows where may be any directory.
        let looks_for_orphans =
            collect.contains(Collected::Orphans) && known_paths.unread().is_none() && !known_paths.are_too_many();
        let own: HashSet<&str> = self.volumes.iter().map(|volume| volume.path.as_str()).collect();
        let others = known_paths.directories(&self.name).filter(|path| !own.contains(path));
        let others: BTreeSet<&str> = others.take_while(|_| looks_for_orphans).collect();
        let node_plan = NodePlan {
            version: node_plan::VERSION,
            run: run.clone(),
            node: self.name.clone(),
            budget_seconds,
            other_base_paths: other_base_paths.cloned().collect(),
            known_paths: others.into_iter().map(str::to_owned).collect(),
            known_devices: known_paths.devices().to_vec(),
            collect: collect.clone(),
            orphan_age_seconds: orphan_age.as_secs_f64(),
            bases,
            volumes: volumes.collect(),
        };
        if looks_for_orphans {
            node_plan
        } else {
            node_plan.without_orphans()
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

    /// The names of the nodes whose groups are not stale: those of the plan, and those that volumes which are
    /// skipped lie on or may lie on.
    pub fn nodes_with_volumes(&self) -> BTreeSet<String> {
        let planned = self.nodes.iter().map(|node| node.name.clone());
        let others = self.other_nodes.iter().chain(&self.possible_nodes).cloned();
        planned.chain(others).collect()
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
    use crate::volumes::affinity::NodeSelectorTerm;
    use crate::volumes::claims::MEASURE_LABEL;
    use crate::volumes::selection::ClaimLabels;
    use crate::volumes::testing::{claim_of, node, volume};
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
        volume.affinity = Some(
            [NodeSelectorTerm {
                match_expressions: vec![requirement],
                match_fields: Vec::new(),
            }]
            .into(),
        );
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

    fn plan_of(volumes: Vec<Volume>, claims: &Claims, nodes: &[Node], selection: &Selection) -> Plan {
        let surroundings = Surroundings {
            claims,
            nodes,
            pods: None,
        };
        plan(volumes, Vec::new(), surroundings, &bases(), selection)
    }

    fn check(volumes: Vec<Volume>, expected: &str) -> Plan {
        let listed = volumes.len();
        let nodes = [node("a"), node("b").not_ready()];
        let plan = plan_of(volumes, &Claims::default(), &nodes, &Selection::everything());
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
            namespace: "default".into(),
            name: "data".to_owned(),
            uid: uid.map(str::to_owned),
        };
        for (bound, live, expected) in [
            (Some("1"), Some("1"), Some(5)),
            (Some("1"), Some("2"), None),
            (None, Some("2"), Some(5)),
            (Some("1"), None, Some(5)),
        ] {
            let mut volume = on(volume("pv"), "a");
            volume.claim = Some(reference(bound));
            let claims = Claims::new([Claim {
                reference: reference(live),
                requested_bytes: Some(5),
                ..claim_of(&volume)
            }]);
            let plan = plan_of(vec![volume], &claims, &[node("a")], &Selection::everything());
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
            owner: crate::owner::Owner::default(),
        };
        let collect = Collect::everything();
        let collecting = Collecting {
            collect: &collect,
            orphan_age: Duration::from_secs(600),
            known_paths: &plan.known_paths,
        };
        let unavailable = ["/opt/local-path-provisioner".to_owned()];
        let node_plan = plan.nodes[0].node_plan(&run, 10.0, &bases(), &unavailable, collecting);
        let told: Vec<_> = node_plan
            .bases
            .iter()
            .map(|base| (base.path.as_str(), base.mounted_at.as_deref()))
            .collect();
        assert_eq!(
            told,
            [("/opt/local-path-provisioner", None), ("/data1", Some("/bases/1"))]
        );
        let bases: Vec<_> = node_plan
            .volumes
            .iter()
            .map(|volume| (volume.persistentvolume.as_str(), volume.base))
            .collect();
        assert_eq!(bases, [("x", 1), ("z", 0)]);
    }

    fn set(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    /// `pv` lies on a, `other` of another class on b, `shared` on both.
    fn cluster() -> (Vec<Volume>, [Node; 2]) {
        let mut other = on(volume("other"), "b");
        other.storage_class = "fast".into();
        let mut shared = volume("shared");
        shared.selected_node = Some(Arc::default());
        (vec![on(volume("pv"), "a"), other, shared], [node("a"), node("b")])
    }

    #[test]
    fn filters_leave_out_with_a_reason() {
        let (volumes, nodes) = cluster();
        let everything = Selection::everything;
        let by_class = Selection {
            storage_classes: set(&["local-path"]),
            ..everything()
        };
        let by_node = Selection {
            nodes: set(&["a"]),
            ..everything()
        };
        let by_namespace = Selection {
            namespaces: set(&["ops"]),
            ..everything()
        };
        let by_selector = Selection {
            claim_selector: "team=a".parse().expect("a selector"),
            ..everything()
        };
        let mut team_a = claim_of(&volumes[0]);
        team_a.labels.insert("team".to_owned(), "a".to_owned());
        let mut out = claim_of(&volumes[1]);
        out.labels.insert(MEASURE_LABEL.to_owned(), "false".to_owned());
        let claims = Claims::new([team_a, out]);
        for (selection, expected) in [
            (everything(), "a: pv; b: shared | other opted_out"),
            (by_class, "a: pv; b: shared | other opted_out"),
            // What is shared is measured where anything is.
            (by_node.clone(), "a: pv, shared | other opted_out"),
            (
                by_namespace,
                " | pv filtered_by_namespace; other opted_out; shared filtered_by_namespace",
            ),
            (by_selector, "a: pv | other opted_out; shared filtered_by_selector"),
        ] {
            let plan = plan_of(volumes.clone(), &claims, &nodes, &selection);
            assert_eq!(told(&plan), expected, "{selection:?}");
            assert_eq!(plan.volumes_listed(), 3);
            assert_eq!(
                plan.nodes_with_volumes(),
                set(&["a", "b"]),
                "nothing is retired by a filter"
            );
            let facts = plan.skipped.iter().map(|one| one.facts.as_ref().expect("facts"));
            assert!(facts.clone().all(|facts| facts.node.is_some() && facts.path.is_some()));
        }
        let plan = plan_of(volumes, &Claims::default(), &nodes, &by_node);
        assert_eq!(told(&plan), "a: pv, shared | other filtered_by_node");
        assert_eq!(
            plan.nodes_not_scanned,
            BTreeMap::from([("b".to_owned(), NodeReason::Filtered)])
        );
    }

    #[test]
    fn a_run_for_some_nodes_plans_all_of_them() {
        let (volumes, nodes) = cluster();
        let everything = Selection::everything();
        let only_a = Selection {
            only_nodes: set(&["a"]),
            ..Selection::everything()
        };
        let claims = Claims::default();
        let whole = plan_of(volumes.clone(), &claims, &nodes, &everything);
        let partial = plan_of(volumes, &claims, &nodes, &only_a);
        assert_eq!(told(&partial), told(&whole), "a shared volume stays where it is");
        let reasons = |plan: &Plan| -> Vec<Option<NodeReason>> {
            let nodes = plan.nodes.iter();
            nodes
                .map(|node| node.unmeasurable.as_ref().map(|(reason, _)| *reason))
                .collect()
        };
        assert_eq!(reasons(&whole), [None, None]);
        assert_eq!(reasons(&partial), [None, Some(NodeReason::NotAsked)]);
        assert_eq!(partial.nodes_not_scanned, whole.nodes_not_scanned);
    }

    #[test]
    fn nodes_without_volumes_are_visited_if_all_are() {
        let mut windows = node("w");
        windows.operating_system = "windows".to_owned();
        let mut virtual_node = node("v");
        virtual_node.is_virtual = true;
        let nodes = [node("a"), node("b"), node("n").not_ready(), windows, virtual_node];
        let visited = |volumes: Vec<Volume>, selection: &Selection| {
            let plan = plan_of(volumes, &Claims::default(), &nodes, selection);
            let visited: Vec<String> = plan
                .nodes
                .iter()
                .map(|node| {
                    let reason = node.unmeasurable.as_ref().map_or("", |(reason, _)| reason.as_str());
                    format!("{} {:?} {reason}", node.name, node.bases)
                })
                .collect();
            let not_scanned = plan.nodes_not_scanned.iter();
            let not_scanned: Vec<String> = not_scanned
                .map(|(node, reason)| format!("{node} {}", reason.as_str()))
                .collect();
            format!("{} | {}", visited.join("; "), not_scanned.join("; "))
        };
        let volumes = || vec![on(volume("pv"), "a"), on(at(volume("pv2"), "/data1/x"), "gone")];
        let all = Selection {
            scan_nodes: ScanNodes::All,
            ..Selection::everything()
        };
        assert_eq!(
            visited(volumes(), &Selection::everything()),
            "a [0]  | b no_volumes; n no_volumes; v virtual_node; w not_linux"
        );
        // The base of a volume that is left out is looked at too.
        assert_eq!(
            visited(volumes(), &all),
            "a [0, 1] ; b [0, 1] ; n [0, 1] not_ready | v virtual_node; w not_linux"
        );
        let some = Selection {
            nodes: set(&["a"]),
            ..all.clone()
        };
        assert_eq!(
            visited(volumes(), &some),
            "a [0, 1]  | b filtered; n filtered; v virtual_node; w not_linux"
        );
        // Nothing says where to look.
        assert_eq!(
            visited(Vec::new(), &all),
            " | a no_volumes; b no_volumes; n no_volumes; v virtual_node; w not_linux"
        );
    }

    #[test]
    fn pods_say_where_a_volume_lies_that_does_not() {
        use crate::volumes::pods::PodOnNode;
        let volumes = || {
            vec![
                volume("lone"),
                volume("spread"),
                volume("unused"),
                on(volume("pv"), "b"),
            ]
        };
        let claims = Claims::new(volumes().iter().map(claim_of));
        let wanted = volumes().into_iter().filter_map(|volume| volume.claim);
        let mut pods = PodPlaces::of_claims(wanted.map(|claim| (claim.namespace.to_string(), claim.name)));
        for (claim, node) in [
            ("claim-of-lone", "a"),
            ("claim-of-spread", "a"),
            ("claim-of-spread", "b"),
            // The affinity is not overruled.
            ("claim-of-pv", "a"),
        ] {
            pods.see(PodOnNode {
                namespace: "default".to_owned(),
                claims: vec![claim.to_owned()],
                node: node.to_owned(),
                has_ended: false,
            });
        }
        let nodes = [node("a"), node("b")];
        let of = |nodes: &[Node], claims: &Claims| {
            let surroundings = Surroundings {
                claims,
                nodes,
                pods: Some(&pods),
            };
            told(&plan(
                volumes(),
                Vec::new(),
                surroundings,
                &bases(),
                &Selection::everything(),
            ))
        };
        assert_eq!(
            of(&nodes, &claims),
            "a: lone; b: pv | spread pods_on_several_nodes; unused no_node_named"
        );
        assert_eq!(
            of(&nodes[1..], &claims),
            "b: pv | lone node_gone; spread pods_on_several_nodes; unused no_node_named"
        );
        // Pods mount the claim that is there, which is not that of these volumes.
        assert_eq!(
            of(&nodes, &Claims::default()),
            "b: pv | lone no_node_named; spread no_node_named; unused no_node_named"
        );
    }

    /// What a node's group says of a volume is to stay for as long as the volume may lie there.
    #[test]
    fn a_node_that_may_hold_a_volume_has_volumes() {
        use crate::volumes::pods::PodOnNode;
        let shared = |name: &str| {
            let mut volume = volume(name);
            volume.selected_node = Some(Arc::default());
            volume
        };
        let in_zone = |zone: &str| {
            let mut volume = on(volume("pv"), zone);
            let terms = volume
                .affinity
                .as_mut()
                .and_then(Arc::get_mut)
                .expect("nobody else holds it");
            terms[0].match_expressions[0].key = "zone".to_owned();
            volume
        };
        let spread = volume("spread");
        let mut pods = PodPlaces::of_claims([("default".to_owned(), "claim-of-spread".to_owned())]);
        for node in ["a", "b", "gone"] {
            pods.see(PodOnNode {
                namespace: "default".to_owned(),
                claims: vec!["claim-of-spread".to_owned()],
                node: node.to_owned(),
                has_ended: false,
            });
        }
        let mut unclaimed = volume("unclaimed");
        unclaimed.claim = None;
        let no_pods = PodPlaces::default();
        for (volume, pods, expected, why) in [
            (
                volume("scaled-to-zero"),
                Some(&no_pods),
                &["a", "b", "c"][..],
                "its pods may have run anywhere",
            ),
            (
                unclaimed,
                Some(&no_pods),
                &["a", "b", "c"],
                "so may those of a claim that is gone",
            ),
            (
                volume("unasked"),
                None,
                &["a", "b", "c"],
                "no pods are asked, but an earlier run may have asked them",
            ),
            (spread, Some(&pods), &["a", "b"], "on one of these"),
            (
                shared("shared"),
                None,
                &["a", "b", "c"],
                "shared by all, and none is Ready",
            ),
            (in_zone("east"), None, &["a", "b"], "shared by a zone"),
            (on(volume("gone"), "gone"), None, &[], "its node is gone"),
        ] {
            let claims = Claims::new(volume.claim.is_some().then(|| claim_of(&volume)));
            let zoned = |name: &str, zone: &str| node(name).labels(&[("zone", zone)]).not_ready();
            let nodes = [zoned("a", "east"), zoned("b", "east"), zoned("c", "west")];
            let surroundings = Surroundings {
                claims: &claims,
                nodes: &nodes,
                pods,
            };
            let plan = plan([volume], Vec::new(), surroundings, &bases(), &Selection::everything());
            assert_eq!(plan.skipped.len(), 1, "{why}");
            let kept = plan.nodes_with_volumes();
            assert_eq!(kept.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{why}");
        }
    }

    #[test]
    fn what_claims_want_of_alerts_and_labels() {
        use crate::volumes::claims::ALERT_LABEL;
        let volumes = vec![on(volume("good"), "a"), on(volume("bad"), "a"), on(volume("gone"), "a")];
        let claim = |at: usize, percent: &str| Claim {
            alert_percent: Some(percent.to_owned()),
            labels: [(ALERT_LABEL, "false"), ("team", "a")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..claim_of(&volumes[at])
        };
        let claims = Claims::new([claim(0, "70"), claim(1, "lots")]);
        let selection = Selection {
            claim_labels: ClaimLabels::new(["team".to_owned(), "tier".to_owned()]).expect("labels"),
            ..Selection::everything()
        };
        let plan = plan_of(volumes.clone(), &claims, &[node("a")], &selection);
        let told: Vec<_> = plan.nodes[0]
            .volumes
            .iter()
            .map(|one| {
                (
                    one.name.as_str(),
                    one.alert_percent,
                    one.alert_disabled,
                    one.claim_labels.join(","),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("bad", None, true, "a,".to_owned()),
                ("gone", None, false, ",".to_owned()),
                ("good", Some(70), true, "a,".to_owned()),
            ]
        );
        let why = plan.invalid_alert_percents.concat();
        assert!(why.contains("default/claim-of-bad is \"lots\""), "{why}");
    }

    mod everything_is_counted {
        use proptest::prelude::*;

        use super::*;
        use crate::metrics::Report;
        use crate::summary::WorkerSummary;
        use crate::tracker::Outcome;
        use crate::volumes::pods::PodOnNode;

        const NODES: [&str; 4] = ["n0", "n1", "n2", "n3"];

        fn pick(of: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
            proptest::sample::select(of)
        }

        fn some_of(of: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
            // Mostly no filter at all.
            let names = proptest::collection::btree_set(pick(of).prop_map(str::to_owned), 1..3);
            prop_oneof![3 => Just(BTreeSet::new()), 1 => names]
        }

        fn any_volume() -> impl Strategy<Value = Volume> {
            const PATHS: [&str; 7] = [
                "/data1/x",
                "/opt/local-path-provisioner/y",
                "/data1",
                "/srv",
                "",
                "/data1/../x",
                "/data1/deep/er",
            ];
            let node = pick(&["n0", "n1", "n2", "n3", "gone", ""]);
            let (path, class, namespace) = (pick(&PATHS), pick(&["", "fast", "slow"]), pick(&["", "shop", "ops"]));
            (path, class, namespace, proptest::option::of(node), 0..4_u8).prop_map(
                |(path, class, namespace, node, affinity)| {
                    let mut volume = at(volume("pv"), path);
                    volume.storage_class = class.into();
                    volume.claim = (!namespace.is_empty()).then(|| ClaimReference {
                        namespace: namespace.into(),
                        name: String::new(),
                        uid: Some("1".to_owned()),
                    });
                    volume.selected_node = node.map(Into::into);
                    match affinity {
                        0 => volume,
                        1 => on(volume, node.unwrap_or("gone")),
                        2 => on(volume, "n1"),
                        _ => {
                            volume.affinity = Some([].into());
                            volume
                        }
                    }
                },
            )
        }

        fn any_claim(of: &Volume, (uid, label, elsewhere): (bool, u8, bool)) -> Option<Claim> {
            of.claim.as_ref()?;
            let mut claim = claim_of(of);
            claim.reference.uid = Some(if uid { "1" } else { "2" }.to_owned());
            claim.volume = (!elsewhere).then(|| of.name.clone());
            let label = match label {
                0 => Some((MEASURE_LABEL, "false")),
                1 => Some(("team", "a")),
                _ => None,
            };
            claim
                .labels
                .extend(label.map(|(key, value)| (key.to_owned(), value.to_owned())));
            Some(claim)
        }

        fn any_node(name: &str, state: u8) -> Node {
            let mut node = node(name);
            match state {
                0 => node.ready = false,
                1 => node.being_removed = true,
                2 => node.operating_system = "windows".to_owned(),
                3 => node.is_virtual = true,
                _ => {}
            }
            node
        }

        fn any_selection() -> impl Strategy<Value = Selection> {
            (
                (
                    some_of(&["", "fast"]),
                    some_of(&["", "shop"]),
                    some_of(&NODES),
                    some_of(&NODES),
                ),
                pick(&["", "", "team=a", "!team"]),
                any::<bool>(),
            )
                .prop_map(
                    |((storage_classes, namespaces, nodes, only_nodes), selector, all)| Selection {
                        storage_classes,
                        namespaces,
                        nodes,
                        claim_selector: selector.parse().expect("a selector"),
                        only_nodes,
                        scan_nodes: if all { ScanNodes::All } else { ScanNodes::WithVolumes },
                        ..Selection::everything()
                    },
                )
        }

        /// What a worker that does its work says, and what else can become of a node.
        fn outcome(node: &PlannedNode, fate: u8) -> Outcome {
            let volumes = node.volumes.len() as u64;
            let told = |states: &[(&str, u64)]| {
                Outcome::Measured(Some(WorkerSummary {
                    states: states
                        .iter()
                        .map(|(state, count)| ((*state).to_owned(), *count))
                        .collect(),
                    ..WorkerSummary::default()
                }))
            };
            match (&node.unmeasurable, fate) {
                (Some((reason, detail)), _) => Outcome::NotMeasured {
                    reason: *reason,
                    detail: detail.clone(),
                    summary: None,
                },
                (None, 0) => Outcome::NotMeasured {
                    reason: NodeReason::Lost,
                    detail: String::new(),
                    summary: None,
                },
                (None, 1) => Outcome::Measured(None),
                // It counts what it was not given.
                (None, 2) => told(&[("complete", volumes + 7)]),
                (None, _) => told(&[("complete", volumes / 2), ("timeout", volumes - volumes / 2)]),
            }
        }

        proptest! {
            #[test]
            fn each_volume_is_measured_or_has_one_reason(
                volumes in proptest::collection::vec(any_volume(), 0..30),
                claims in proptest::collection::vec((any::<bool>(), 0..6_u8, any::<bool>()), 30),
                pods in proptest::collection::vec((0..30_usize, pick(&["n0", "n1", "gone"]), any::<bool>()), 0..20),
                states in proptest::collection::vec(0..10_u8, 4),
                fates in proptest::collection::vec(0..8_u8, 4),
                selection in any_selection(),
                ask_pods in any::<bool>(),
            ) {
                let mut volumes = volumes;
                for (at, volume) in volumes.iter_mut().enumerate() {
                    volume.name = format!("pv-{at}");
                    if let Some(claim) = &mut volume.claim {
                        claim.name = format!("claim-{at}");
                    }
                }
                let claims = Claims::new(volumes.iter().zip(claims).filter_map(|(volume, how)| any_claim(volume, how)));
                let wanted = volumes.iter().filter_map(|volume| volume.claim.clone());
                let mut places = PodPlaces::of_claims(wanted.map(|claim| (claim.namespace.to_string(), claim.name)));
                for (claim, node, has_ended) in pods {
                    for namespace in ["shop", "ops"] {
                        places.see(PodOnNode {
                            namespace: namespace.to_owned(),
                            claims: vec![format!("claim-{claim}")],
                            node: node.to_owned(),
                            has_ended,
                        });
                    }
                }
                let nodes: Vec<Node> = NODES.iter().zip(&states).map(|(name, state)| any_node(name, *state)).collect();
                let surroundings = Surroundings { claims: &claims, nodes: &nodes, pods: ask_pods.then_some(&places) };
                let unreadable = Skipped {
                    persistent_volume: "strange".to_owned(),
                    reason: SkipReason::Undecodable,
                    detail: String::new(),
                    facts: None,
                };
                let plan = plan(volumes.clone(), vec![unreadable], surroundings, &bases(), &selection);

                // Each volume once, planned or left out.
                let planned = plan.nodes.iter().flat_map(|node| node.volumes.iter().map(|volume| &volume.name));
                let mut told: Vec<&String> = planned.chain(plan.skipped.iter().map(|one| &one.persistent_volume)).collect();
                told.sort();
                let strange = "strange".to_owned();
                let mut listed: Vec<&String> = volumes.iter().map(|volume| &volume.name).chain([&strange]).collect();
                listed.sort();
                prop_assert_eq!(told, listed);
                prop_assert_eq!(plan.volumes_listed(), volumes.len() + 1);
                prop_assert_eq!(plan.skipped_by_reason().values().sum::<usize>(), plan.skipped.len());

                // Each node is looked at, or it is said why not.
                for node in &nodes {
                    let planned = plan.nodes.iter().find(|planned| planned.name == node.name);
                    let not_scanned = plan.nodes_not_scanned.get(&node.name);
                    prop_assert_eq!(planned.is_some(), not_scanned.is_none(), "{}", node.name);
                }
                for node in &plan.nodes {
                    prop_assert!(node.volumes.iter().all(|volume| node.bases.contains(&volume.base)));
                    let run = Run { id: String::new(), started_unix_seconds: 1.0, owner: crate::owner::Owner::default() };
                    let collecting = Collecting {
                        collect: &Collect::everything(),
                        orphan_age: Duration::ZERO,
                        known_paths: &plan.known_paths,
                    };
                    let written = node.node_plan(&run, 1.0, &bases(), &[], collecting).encode().expect("it is small");
                    prop_assert_eq!(NodePlan::decode(&written).expect("we wrote it").volumes.len(), node.volumes.len());
                }
                // No group of a node that holds a volume is taken for stale.
                for facts in plan.skipped.iter().filter_map(|one| one.facts.as_ref()) {
                    let kept = plan.nodes_with_volumes();
                    prop_assert!(facts.node.as_ref().is_none_or(|node| kept.contains(node)));
                }

                // Whatever becomes of the nodes, the sum is exact.
                let outcomes: BTreeMap<String, Outcome> = plan
                    .nodes
                    .iter()
                    .zip(&fates)
                    .map(|(node, fate)| (node.name.clone(), outcome(node, *fate)))
                    .collect();
                let run = Run { id: String::new(), started_unix_seconds: 1.0, owner: crate::owner::Owner::default() };
                let report = Report {
                    run: &run,
                    plan: &plan,
                    outcomes: &outcomes,
                    duration: std::time::Duration::ZERO,
                    peak_memory_bytes: 0,
                    jobs_not_deleted: 0,
                };
                let coverage = report.coverage();
                let counted = coverage.by_state.values().sum::<u64>() + coverage.by_node_reason.values().sum::<u64>();
                prop_assert_eq!(counted as usize + plan.skipped.len(), plan.volumes_listed());
            }
        }
    }

    #[test]
    fn a_node_plan_knows_every_path_that_may_lie_there() {
        let mut shared = at(volume("shared"), "/data1/shared");
        shared.selected_node = Some("a".into());
        let mut unmatched = at(volume("unmatched"), "/data1/unmatched");
        unmatched.affinity = Some([NodeSelectorTerm::default()].into());
        let plan = check(
            vec![
                on(at(volume("own"), "/data1/own"), "a"),
                // b is not Ready: it may be the same machine under its old name.
                on(at(volume("b"), "/data1/b"), "b"),
                on(at(volume("outside"), "/srv/outside"), "a"),
                on(at(volume("base"), "/data1"), "a"),
                shared,
                at(volume("unplaced"), "/data1/unplaced"),
                on(at(volume("gone"), "/data1/gone"), "gone"),
                unmatched,
            ],
            "a: own, shared; b: b | outside outside_base_paths; base is_base_path; unplaced no_node_named; gone node_gone; \
             unmatched no_node_matches",
        );
        let run = Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.5,
            owner: crate::owner::Owner::default(),
        };
        let told = |collect: &Collect| {
            let collecting = Collecting {
                collect,
                orphan_age: Duration::from_secs(600),
                known_paths: &plan.known_paths,
            };
            plan.nodes[0].node_plan(&run, 10.0, &bases(), &[], collecting)
        };
        let node_plan = told(&Collect::everything());
        // What the plan has as its own volume is known anyway.
        let expected = [
            "/data1",
            "/data1/b",
            "/data1/gone",
            "/data1/unmatched",
            "/data1/unplaced",
            "/srv/outside",
        ];
        assert_eq!(node_plan.known_paths, expected);
        assert_eq!(plan.possible_nodes, ["a".to_owned(), "b".to_owned()].into());
        assert_eq!(node_plan.other_base_paths, ["/opt/local-path-provisioner"]);
        assert_eq!(node_plan.volumes[0].capacity_bytes, volume("own").capacity_bytes);
        // Who does not look for orphans need not know of others.
        assert_eq!(told(&Collect::new([Collected::Volumes])).known_paths, [""; 0]);
    }

    #[test]
    fn nothing_is_an_orphan_where_too_many_volumes_may_lie_anywhere() {
        let own = on(volume("own"), "a");
        let unplaced = (0..10_001).map(|number| volume(&format!("unplaced-{number}")));
        let volumes: Vec<Volume> = unplaced.chain([own]).collect();
        let plan = plan_of(volumes, &Claims::default(), &[node("a")], &Selection::everything());
        let run = Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.5,
            owner: crate::owner::Owner::default(),
        };
        let collecting = Collecting {
            collect: &Collect::everything(),
            orphan_age: Duration::from_secs(600),
            known_paths: &plan.known_paths,
        };
        let node_plan = plan.nodes[0].node_plan(&run, 10.0, &bases(), &[], collecting);
        assert!(!node_plan.collect.contains(Collected::Orphans) && node_plan.collect.contains(Collected::Volumes));
        assert_eq!(node_plan.known_paths, [""; 0]);
    }

    #[test]
    fn nothing_is_an_orphan_while_a_volume_cannot_be_read() {
        let skipped = Skipped {
            persistent_volume: "odd".to_owned(),
            reason: SkipReason::Undecodable,
            detail: String::new(),
            facts: None,
        };
        let own = on(volume("own"), "a");
        let surroundings = Surroundings {
            claims: &Claims::default(),
            nodes: &[node("a")],
            pods: None,
        };
        let plan = plan([own], vec![skipped], surroundings, &bases(), &Selection::everything());
        let run = Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.5,
            owner: crate::owner::Owner::default(),
        };
        let collecting = Collecting {
            collect: &Collect::everything(),
            orphan_age: Duration::from_secs(600),
            known_paths: &plan.known_paths,
        };
        let node_plan = plan.nodes[0].node_plan(&run, 10.0, &bases(), &[], collecting);
        assert!(!node_plan.collect.contains(Collected::Orphans) && node_plan.collect.contains(Collected::Volumes));
    }
}
