//! On which node a volume lies.
//!
//! The volume itself says so, never its directory's name. What pins a volume is its node affinity, evaluated against the
//! live nodes as the scheduler does; local-path-provisioner's annotation decides only where that leaves a choice:
//!
//! | node affinity matches | the volume lies on |
//! |---|---|
//! | one node | that node |
//! | several | the annotated one, if it is among them and Ready; else it counts as shared by them |
//! | none | the node whose name is the affinity's value (written before 0.0.20, or where the node lacks the label), then the annotated one; else its node is gone, if it names one at all, and otherwise any node may have lost a label |
//! | there is none | the annotated one if it is Ready; else, if the annotation is there at all, it counts as shared by all |
//! | there is none, nor an annotation | nothing says where: unplaced |
//!
//! A shared volume is measured on one Ready node. Which one changes as rarely as it can: every node draws a number from its
//! name and the storage class, and the highest one wins (rendezvous hashing), so that a node that comes or goes moves only
//! what it wins. Where only some nodes are to be measured, those come before the others.
//!
//! Where nothing says where a volume lies, its pods may be asked ([`NodeIndex::place_by_pods`]).

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::text::one_line;

use super::affinity::{self, NodeSelectorTerm, Operator, Requirement};
use super::pods::PodPlaces;
use super::volume::{Node, SkipReason, Volume};

/// The only field that a node selector may name.
const FIELD_NAME: &str = "metadata.name";

/// The label by which local-path-provisioner pins a volume unless it is told otherwise.
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// How many affinities are remembered together with what they match: those of zones, disks and the like, of which a cluster
/// has few. With more of them each further one is worked out again for each volume.
const REMEMBERED_MAX: usize = 1000;

/// Where a volume lies. Nodes are told by their index in the slice that [`NodeIndex::new`] was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On this node alone.
    Node(usize),
    /// On a file system that several nodes share; this one is to measure it.
    Shared(usize),
    /// Nowhere that can be told.
    Unplaced {
        /// Why.
        reason: SkipReason,
        /// What exactly was found.
        detail: String,
        /// The nodes that it may lie on, as far as that is known: whatever their groups say of it is to stay.
        may_be_on: Rc<[usize]>,
    },
}

/// The live nodes, arranged so that placing a volume does not look at each of them.
pub struct NodeIndex<'a> {
    nodes: &'a [Node],
    /// Each of them.
    all: Rc<[usize]>,
    by_name: HashMap<&'a str, usize>,
    by_label: HashMap<(&'a str, &'a str), Vec<usize>>,
    shared_by_class: HashMap<Arc<str>, Option<usize>>,
    /// What matches affinities that take a look at several nodes to say so: thousands of volumes may have the same one.
    remembered: HashMap<Vec<NodeSelectorTerm>, Rc<Matching>>,
    /// Whether each node is among those that measure what is shared, as long as one of them can.
    preferred: Vec<bool>,
}

/// The nodes that an affinity matches.
struct Matching {
    /// In the order of the nodes.
    nodes: Rc<[usize]>,
    /// Which of them measures the shared volumes of a storage class.
    elected: RefCell<HashMap<String, Option<usize>>>,
}

impl<'a> NodeIndex<'a> {
    /// Arranges the nodes of the cluster: all of them, Ready or not.
    pub fn new(nodes: &'a [Node]) -> NodeIndex<'a> {
        let by_name = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (node.name.as_str(), index))
            .collect();
        let mut by_label: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for (key, value) in &node.labels {
                by_label.entry((key, value)).or_default().push(index);
            }
        }
        NodeIndex {
            nodes,
            all: (0..nodes.len()).collect(),
            by_name,
            by_label,
            shared_by_class: HashMap::new(),
            remembered: HashMap::new(),
            preferred: vec![true; nodes.len()],
        }
    }

    /// Lets these nodes measure what is shared, as long as one of them can. An empty set is any node.
    #[must_use]
    pub fn preferring(mut self, names: &BTreeSet<String>) -> NodeIndex<'a> {
        for (preferred, node) in self.preferred.iter_mut().zip(self.nodes) {
            *preferred = names.is_empty() || names.contains(&node.name);
        }
        self
    }

    /// Says where a volume lies by the pods that mount its claim (namespace and name).
    pub fn place_by_pods(&self, pods: &PodPlaces, claim: (&str, &str)) -> Placement {
        match pods.node_of(claim) {
            Ok(name) => match self.by_name.get(name) {
                Some(node) => Placement::Node(*node),
                None => unplaced_anywhere(
                    SkipReason::NodeGone,
                    format!("the pods of its claim ran on {name}, which is gone"),
                ),
            },
            Err((reason, detail)) => {
                let named = pods.nodes_of(claim).filter_map(|name| self.by_name.get(name).copied());
                let named: Rc<[usize]> = named.collect();
                Placement::Unplaced {
                    reason,
                    detail,
                    // Pods that are gone may have run anywhere.
                    may_be_on: if named.is_empty() { self.all.clone() } else { named },
                }
            }
        }
    }

    /// The same for a volume without a claim: no pod mounts it now, but one may have, and shown where it lies.
    pub fn place_without_pods(&self, reason: SkipReason, detail: String) -> Placement {
        Placement::Unplaced {
            reason,
            detail,
            may_be_on: self.all.clone(),
        }
    }

    /// Says where a volume lies.
    pub fn place(&mut self, volume: &Volume) -> Placement {
        let annotated = volume
            .selected_node
            .as_deref()
            .and_then(|name| self.by_name.get(name).copied());
        let Some(terms) = volume.affinity.as_deref() else {
            return self.place_without_affinity(volume, annotated);
        };
        let matching = self.matching(terms);
        match &matching.nodes[..] {
            [only] => Placement::Node(*only),
            [] => match named_by(terms)
                .find_map(|name| self.by_name.get(name).copied())
                .or(annotated)
            {
                Some(node) => Placement::Node(node),
                None => self.without_match(volume, terms),
            },
            several => match annotated.filter(|node| several.binary_search(node).is_ok() && self.measurable(*node)) {
                Some(node) => Placement::Node(node),
                None => self.shared(&volume.storage_class, &matching),
            },
        }
    }

    /// For a volume whose affinity no node matches, and which names no live one. Where it names none at all, a label may
    /// have been taken from the node that holds it, whose pods run on.
    fn without_match(&self, volume: &Volume, terms: &[NodeSelectorTerm]) -> Placement {
        let is_annotated = volume.selected_node.as_deref().is_some_and(|name| !name.is_empty());
        if is_annotated || name_nodes(terms) {
            return unplaced_anywhere(SkipReason::NodeGone, describe(terms));
        }
        Placement::Unplaced {
            reason: SkipReason::NoNodeMatches,
            detail: describe(terms),
            may_be_on: self.all.clone(),
        }
    }

    fn place_without_affinity(&mut self, volume: &Volume, annotated: Option<usize>) -> Placement {
        if volume.selected_node.is_none() {
            let detail =
                "the volume has neither a node affinity nor the annotation local.path.provisioner/selected-node";
            return Placement::Unplaced {
                reason: SkipReason::NoNodeNamed,
                detail: detail.to_owned(),
                // An earlier run may have asked the pods, and measured it.
                may_be_on: self.all.clone(),
            };
        }
        if let Some(node) = annotated.filter(|node| self.measurable(*node) && self.preferred[*node]) {
            return Placement::Shared(node);
        }
        let chosen = match self.shared_by_class.get(&volume.storage_class) {
            Some(chosen) => *chosen,
            None => {
                let chosen = self.elect(&volume.storage_class, 0..self.nodes.len());
                self.shared_by_class.insert(volume.storage_class.clone(), chosen);
                chosen
            }
        };
        shared_on(chosen, &self.all)
    }

    fn shared(&self, storage_class: &str, among: &Matching) -> Placement {
        let mut elected = among.elected.borrow_mut();
        let chosen = match elected.get(storage_class) {
            Some(chosen) => *chosen,
            None => {
                let chosen = self.elect(storage_class, among.nodes.iter().copied());
                elected.insert(storage_class.to_owned(), chosen);
                chosen
            }
        };
        shared_on(chosen, &among.nodes)
    }

    /// The measurable node among these, a preferred one if there is any, that draws the highest number.
    fn elect(&self, storage_class: &str, among: impl Iterator<Item = usize>) -> Option<usize> {
        among.filter(|node| self.measurable(*node)).max_by_key(|node| {
            let mut digest = Sha256::new();
            digest.update(storage_class.as_bytes());
            digest.update([0]);
            digest.update(self.nodes[*node].name.as_bytes());
            (self.preferred[*node], <[u8; 32]>::from(digest.finalize()))
        })
    }

    fn measurable(&self, node: usize) -> bool {
        self.nodes[node].unmeasurable().is_none()
    }

    /// The node that a volume surely lies on: a Ready one that its affinity names by the node's own name and nothing else,
    /// with nothing in the volume that says otherwise. A label that is not the node's name may have been another node's when
    /// the volume was made, and a node that is not Ready may live on under another name; so may the one that had this name
    /// before, if the volume is older than the Node.
    pub fn surely_on(&mut self, volume: &Volume) -> Option<usize> {
        let terms = volume.affinity.as_deref()?;
        let only = self.matching(terms);
        let [node] = only.nodes[..] else { return None };
        let Node {
            name,
            created_unix_seconds,
            ..
        } = &self.nodes[node];
        let had_the_name_before = volume
            .created_unix_seconds
            .zip(*created_unix_seconds)
            .is_some_and(|(volume, node)| volume < node);
        if had_the_name_before {
            return None;
        }
        let name = name.as_str();
        let annotated = volume.selected_node.as_deref().filter(|name| !name.is_empty());
        let names_it = |requirement: &Requirement| {
            matches!(requirement.operator, Operator::In)
                && requirement.values.len() == 1
                && requirement.values[0] == name
        };
        let names_only_it =
            |term: &NodeSelectorTerm| term.match_fields.iter().chain(&term.match_expressions).any(names_it);
        let is_named =
            terms.iter().all(names_only_it) || annotated == Some(name) && self.have_its_hostname(terms, node);
        (is_named && annotated.is_none_or(|annotated| annotated == name) && self.measurable(node)).then_some(node)
    }

    /// Whether each term asks for the hostname label that, of all nodes, only this one has. Another label may be that of a
    /// zone, whose other nodes have the same directory.
    fn have_its_hostname(&self, terms: &[NodeSelectorTerm], node: usize) -> bool {
        let asks = |expression: &Requirement| match &expression.values[..] {
            [value] if expression.key == HOSTNAME_LABEL && matches!(expression.operator, Operator::In) => self
                .by_label
                .get(&(HOSTNAME_LABEL, value.as_str()))
                .is_some_and(|nodes| nodes[..] == [node]),
            _ => false,
        };
        terms.iter().all(|term| term.match_expressions.iter().any(asks))
    }

    /// Every node that the terms match. What takes more than a look at one node is remembered.
    fn matching(&mut self, terms: &[NodeSelectorTerm]) -> Rc<Matching> {
        if let Some(matching) = self.remembered.get(terms) {
            return matching.clone();
        }
        let is_cheap = |term: &NodeSelectorTerm| {
            self.candidates(term)
                .is_some_and(|mut candidates| candidates.nth(1).is_none())
        };
        let is_remembered = self.remembered.len() < REMEMBERED_MAX && !terms.iter().all(is_cheap);
        let matching = Rc::new(Matching {
            nodes: self.find_matching(terms).into(),
            elected: RefCell::default(),
        });
        if is_remembered {
            self.remembered.insert(terms.to_vec(), matching.clone());
        }
        matching
    }

    /// Every node that the terms match, in the order of the nodes.
    fn find_matching(&self, terms: &[NodeSelectorTerm]) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        for term in terms {
            let matches = |index: &usize| {
                let node = &self.nodes[*index];
                affinity::matches(std::slice::from_ref(term), &node.name, &node.labels)
            };
            match self.candidates(term) {
                Some(candidates) => found.extend(candidates.filter(matches)),
                None => found.extend((0..self.nodes.len()).filter(matches)),
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The nodes to which an `In` of the term limits it, or `None` where it has none and every node has to be looked at.
    fn candidates<'s>(&'s self, term: &'s NodeSelectorTerm) -> Option<impl Iterator<Item = usize> + use<'s, 'a>> {
        let is_in = |requirement: &&Requirement| matches!(requirement.operator, Operator::In);
        let mut fields = term.match_fields.iter().filter(is_in);
        let field = fields.find(|field| field.key == FIELD_NAME);
        let expression = match field {
            Some(_) => None,
            None => Some(term.match_expressions.iter().find(is_in)?),
        };
        let names = field.into_iter().flat_map(|field| &field.values);
        let named = names.filter_map(|name| self.by_name.get(name.as_str()).copied());
        let labelled = expression.into_iter().flat_map(|expression| {
            let labels = expression.values.iter();
            let labels = labels.map(|value| (expression.key.as_str(), value.as_str()));
            labels.filter_map(|label| self.by_label.get(&label)).flatten().copied()
        });
        Some(named.chain(labelled))
    }
}

fn shared_on(chosen: Option<usize>, among: &Rc<[usize]>) -> Placement {
    match chosen {
        Some(node) => Placement::Shared(node),
        None => Placement::Unplaced {
            reason: SkipReason::NoReadyNode,
            detail: "no node that shares it is Ready".to_owned(),
            may_be_on: among.clone(),
        },
    }
}

/// No live node is known to hold the volume.
fn unplaced_anywhere(reason: SkipReason, detail: String) -> Placement {
    Placement::Unplaced {
        reason,
        detail,
        may_be_on: Rc::default(),
    }
}

/// The values that may be a node's name: those of an `In`, whatever its key.
fn named_by(terms: &[NodeSelectorTerm]) -> impl Iterator<Item = &str> {
    terms
        .iter()
        .flat_map(requirements)
        .filter(|requirement| matches!(requirement.operator, Operator::In))
        .flat_map(|requirement| requirement.values.iter().map(String::as_str))
}

/// Whether the terms limit the volume to nodes by their names, each of those that can match anything: they are or-ed. A
/// label that is not the hostname tells nothing of whether the node exists that had it.
fn name_nodes(terms: &[NodeSelectorTerm]) -> bool {
    let names = |requirement: &Requirement| {
        matches!(requirement.operator, Operator::In)
            && matches!(requirement.key.as_str(), FIELD_NAME | HOSTNAME_LABEL)
            && !requirement.values.is_empty()
    };
    let asking = || terms.iter().filter(|term| requirements(term).next().is_some());
    asking().next().is_some() && asking().all(|term| requirements(term).any(names))
}

fn requirements(term: &NodeSelectorTerm) -> impl Iterator<Item = &Requirement> {
    term.match_expressions.iter().chain(&term.match_fields)
}

/// The longest description of an affinity that is worth a line of a log.
const DESCRIPTION_MAX_CHARS: usize = 200;

fn describe(terms: &[NodeSelectorTerm]) -> String {
    let words: Vec<String> = terms.iter().flat_map(requirements).map(in_words).collect();
    let text = if words.is_empty() {
        "its node affinity matches no node: it asks for nothing, and that matches nothing".to_owned()
    } else {
        format!("its node affinity matches no node: {}", words.join(", "))
    };
    one_line(&text, DESCRIPTION_MAX_CHARS)
}

fn in_words(requirement: &Requirement) -> String {
    let Requirement { key, operator, values } = requirement;
    match operator {
        Operator::In => format!("{key} in {values:?}"),
        Operator::NotIn => format!("{key} not in {values:?}"),
        Operator::Exists => format!("{key} exists"),
        Operator::DoesNotExist => format!("{key} does not exist"),
        Operator::Gt => format!("{key} greater than {values:?}"),
        Operator::Lt => format!("{key} less than {values:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::affinity::Requirement;
    use crate::volumes::testing::{node, volume};
    use crate::volumes::volume::Node;

    /// Three nodes: the label of `b` differs from its name, and `c` is not Ready.
    fn nodes() -> Vec<Node> {
        let zoned = |name: &str, hostname: &str, zone: &str| {
            let labels = [("kubernetes.io/hostname", hostname), ("zone", zone)];
            node(name).labels(&labels)
        };
        vec![
            zoned("a", "a", "east"),
            zoned("b", "host-b", "east"),
            zoned("c", "c", "west").not_ready(),
        ]
    }

    fn term(key: &str, values: &[&str]) -> NodeSelectorTerm {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let requirement = Requirement {
            key: key.to_owned(),
            operator: Operator::In,
            values,
        };
        if key == FIELD_NAME {
            NodeSelectorTerm {
                match_fields: vec![requirement],
                match_expressions: Vec::new(),
            }
        } else {
            NodeSelectorTerm {
                match_expressions: vec![requirement],
                match_fields: Vec::new(),
            }
        }
    }

    /// How a placement reads in the tables below.
    fn told(placement: Placement) -> String {
        match placement {
            Placement::Node(node) => nodes()[node].name.clone(),
            Placement::Shared(node) => format!("shared {}", nodes()[node].name),
            Placement::Unplaced { reason, .. } => reason.as_str().to_owned(),
        }
    }

    fn check(terms: Option<Vec<NodeSelectorTerm>>, selected_node: Option<&str>, expected: &str) {
        let mut volume = volume("pv");
        volume.affinity = terms.clone().map(Into::into);
        volume.selected_node = selected_node.map(Into::into);
        let nodes = nodes();
        let placement = NodeIndex::new(&nodes).place(&volume);
        assert_eq!(
            told(placement),
            expected,
            "affinity {terms:?}, annotation {selected_node:?}"
        );
    }

    #[test]
    fn affinity_decides() {
        const HOSTNAME: &str = "kubernetes.io/hostname";
        check(Some(vec![term(HOSTNAME, &["a"])]), Some("a"), "a");
        check(Some(vec![term(HOSTNAME, &["host-b"])]), None, "b");
        // Not Ready is no reason to look elsewhere.
        check(Some(vec![term(HOSTNAME, &["c"])]), None, "c");
        // The annotation is not asked where the affinity is clear.
        check(Some(vec![term(HOSTNAME, &["a"])]), Some("b"), "a");
        // 0.0.29 wrote matchFields.
        check(Some(vec![term(FIELD_NAME, &["b"])]), None, "b");
        // Before 0.0.20 the value was the node's name, which may differ from its label.
        check(Some(vec![term(HOSTNAME, &["b"])]), None, "b");
        // Terms are or-ed.
        check(Some(vec![term(HOSTNAME, &["gone"]), term(HOSTNAME, &["c"])]), None, "c");
        // The label is gone, the annotation is not.
        check(Some(vec![term(HOSTNAME, &["renamed"])]), Some("a"), "a");
        check(Some(vec![term(HOSTNAME, &["gone"])]), Some("gone"), "node_gone");
    }

    /// Whose label is gone nobody knows: the node may be there, with pods that use the volume.
    #[test]
    fn a_node_is_gone_only_if_it_was_named() {
        const HOSTNAME: &str = "kubernetes.io/hostname";
        let asking = |key: &str, operator: Operator, values: &[&str]| {
            let mut term = term(key, values);
            term.match_expressions[0].operator = operator;
            term
        };
        let both = |first: NodeSelectorTerm, second: NodeSelectorTerm| NodeSelectorTerm {
            match_expressions: [first.match_expressions, second.match_expressions].concat(),
            match_fields: [first.match_fields, second.match_fields].concat(),
        };
        let empty = NodeSelectorTerm::default;
        for (terms, selected_node, expected) in [
            (vec![term(HOSTNAME, &["gone"])], None, "node_gone"),
            (vec![term(FIELD_NAME, &["gone"])], None, "node_gone"),
            (vec![term(HOSTNAME, &["gone"]), empty()], None, "node_gone"),
            (
                vec![both(term("disk", &["ssd"]), term(HOSTNAME, &["gone"]))],
                None,
                "node_gone",
            ),
            (vec![term("disk", &["ssd"])], Some("gone"), "node_gone"),
            (vec![term("disk", &["ssd"])], None, "no_node_matches"),
            (vec![term("disk", &["ssd"])], Some(""), "no_node_matches"),
            (vec![term("openebs.io/nodeid", &["gone"])], None, "no_node_matches"),
            // Terms are or-ed: the second is of a node that may be there.
            (
                vec![term(HOSTNAME, &["gone"]), term("disk", &["ssd"])],
                None,
                "no_node_matches",
            ),
            (vec![term(HOSTNAME, &[])], None, "no_node_matches"),
            (
                vec![asking("zone", Operator::DoesNotExist, &[])],
                None,
                "no_node_matches",
            ),
            (vec![asking("rank", Operator::Gt, &["3"])], None, "no_node_matches"),
            (
                vec![asking(HOSTNAME, Operator::NotIn, &["a", "host-b", "c"])],
                None,
                "no_node_matches",
            ),
            (vec![empty()], None, "no_node_matches"),
            (Vec::new(), None, "no_node_matches"),
            (Vec::new(), Some("gone"), "node_gone"),
            // A name of a live node is found, whatever the key and the annotation.
            (vec![term("openebs.io/nodeid", &["b"])], None, "b"),
            (vec![empty()], Some("a"), "a"),
        ] {
            check(Some(terms.clone()), selected_node, expected);
            let mut volume = volume("pv");
            volume.affinity = Some(terms.clone().into());
            volume.selected_node = selected_node.map(Into::into);
            if let Placement::Unplaced { may_be_on, .. } = NodeIndex::new(&nodes()).place(&volume) {
                let expected: &[usize] = if expected == "node_gone" { &[] } else { &[0, 1, 2] };
                assert_eq!(*may_be_on, *expected, "{terms:?}");
            }
        }
    }

    #[test]
    fn several_nodes_share() {
        check(Some(vec![term("zone", &["east"])]), Some("b"), "b");
        // The annotated node is not among them, or is not Ready: b draws the higher number for this class.
        check(Some(vec![term("zone", &["east", "west"])]), Some("c"), "shared b");
        check(Some(vec![term("zone", &["east"])]), Some("c"), "shared b");
        check(Some(vec![term("zone", &["west"])]), Some("a"), "c");
    }

    /// Thousands of volumes may have the affinity of a zone with hundreds of nodes.
    #[test]
    fn what_many_nodes_match_is_worked_out_once() {
        let nodes = nodes();
        let mut index = NodeIndex::new(&nodes);
        let with = |terms: Vec<NodeSelectorTerm>, class: &str| {
            let mut volume = volume("pv");
            volume.affinity = Some(terms.into());
            volume.storage_class = class.into();
            volume
        };
        let exists = |key: &str| {
            let mut term = term(key, &[]);
            term.match_expressions[0].operator = Operator::Exists;
            term
        };
        for class in ["local-path", "other", "local-path"] {
            for terms in [vec![term("zone", &["east"])], vec![exists("zone")]] {
                let volume = with(terms, class);
                let afresh = NodeIndex::new(&nodes).place(&volume);
                assert_eq!(index.place(&volume), afresh, "{class}");
                assert_eq!(index.surely_on(&volume), None);
            }
        }
        assert_eq!(index.remembered.len(), 2);
        for pinned in [term("kubernetes.io/hostname", &["a"]), term(FIELD_NAME, &["a"])] {
            index.place(&with(vec![pinned], "local-path"));
        }
        assert_eq!(
            index.remembered.len(),
            2,
            "nearly every volume has one of its own, which costs nothing"
        );
        for number in 0..REMEMBERED_MAX {
            let volume = with(
                vec![exists(&format!("key-{number}")), term("zone", &["east"])],
                "local-path",
            );
            let afresh = NodeIndex::new(&nodes).place(&volume);
            assert_eq!(index.place(&volume), afresh);
        }
        assert_eq!(index.remembered.len(), REMEMBERED_MAX);
    }

    #[test]
    fn without_affinity() {
        check(None, None, "no_node_named");
        check(None, Some("a"), "shared a");
        check(None, Some(""), "shared b");
        check(None, Some("c"), "shared b");
    }

    #[test]
    fn what_is_shared_is_measured_by_the_nodes_that_are_to_be_measured() {
        let place = |terms: Option<Vec<NodeSelectorTerm>>, selected_node: &str, preferred: &[&str]| {
            let mut volume = volume("pv");
            volume.affinity = terms.map(Into::into);
            volume.selected_node = Some(selected_node.into());
            let preferred = preferred.iter().map(|name| (*name).to_owned()).collect();
            told(NodeIndex::new(&nodes()).preferring(&preferred).place(&volume))
        };
        let east = || Some(vec![term("zone", &["east"])]);
        assert_eq!(place(None, "b", &["a"]), "shared a");
        assert_eq!(place(None, "", &["a"]), "shared a");
        assert_eq!(place(east(), "", &["a"]), "shared a");
        // Where the annotation pins, nobody else has it.
        assert_eq!(place(east(), "b", &["a"]), "b");
        // c is not Ready, so another has to do.
        assert_eq!(place(east(), "", &["c"]), "shared b");
        assert_eq!(place(None, "", &["c"]), "shared b");
    }

    #[test]
    fn a_shared_volume_moves_only_with_its_node() {
        let all: Vec<Node> = (0..20).map(|index| node(&format!("node-{index}"))).collect();
        let place = |nodes: &[Node], class: &str| {
            let mut volume = volume("pv");
            volume.selected_node = Some(Arc::default());
            volume.storage_class = class.into();
            match NodeIndex::new(nodes).place(&volume) {
                Placement::Shared(node) => nodes[node].name.clone(),
                other => panic!("{other:?}"),
            }
        };
        let mut chosen = std::collections::BTreeSet::new();
        for class in 0..50 {
            let class = format!("class-{class}");
            let before = place(&all, &class);
            for gone in 0..all.len() {
                let mut fewer = all.clone();
                let name = fewer.remove(gone).name;
                if name != before {
                    assert_eq!(place(&fewer, &class), before, "without {name}");
                }
            }
            chosen.insert(before);
        }
        assert!(chosen.len() > 10, "the classes spread over the nodes: {chosen:?}");
    }
}
