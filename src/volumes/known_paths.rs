//! The paths of volumes that no worker may take for a directory without an owner.
//!
//! People delete what is called an orphan, so a volume's path is left out on a node only if the volume surely lies on
//! another node that lives: everything else may be there, whatever the plan says. What is skipped, filtered, shared or
//! without a node is known everywhere.
//!
//! Two nodes may have one disk without any volume saying so (a directory of the machine mounted into every node of k3d or
//! kind, NFS below the base path), and each volume is then pinned to one of them. So the paths that nobody else can mean,
//! because they hold a name that a provisioner generated, are known on every node, as long as they are few enough to be
//! sent to each.

use std::collections::BTreeMap;

use super::path;
use super::volume::{SkipReason, Volume};

/// What external provisioners begin the names of volumes with; the claim's uid follows, so that no two are alike.
const GENERATED_PREFIX: &str = "pvc-";
/// How many paths of volumes that surely lie on one node are sent to every other: some 200 KB for each node. With more of
/// them a cluster is too large to have one disk under all of its nodes.
const UNMISTAKABLE_MAX: usize = 2000;

/// How many paths that may lie on any node are sent to each: some 1 MB, of which a tenth goes into a ConfigMap.
const ANYWHERE_MAX: usize = 10_000;

/// Which paths are known, and on which nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownPaths {
    anywhere: Vec<String>,
    devices: Vec<String>,
    /// By the node's name, and without those that the node's plan has.
    on_node: BTreeMap<String, Vec<String>>,
    unmistakable: Unmistakable,
    unread: Option<String>,
}

/// The paths that hold their volume's own generated name: all of them, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unmistakable {
    Few(Vec<String>),
    TooMany,
}

impl Default for Unmistakable {
    fn default() -> Unmistakable {
        Unmistakable::Few(Vec::new())
    }
}

impl Unmistakable {
    fn add(&mut self, volume: &Volume, path: &str) {
        match self {
            Unmistakable::Few(_)
                if !(volume.name.starts_with(GENERATED_PREFIX) && path.contains(volume.name.as_str())) => {}
            Unmistakable::Few(paths) if paths.len() < UNMISTAKABLE_MAX => paths.push(path.to_owned()),
            _ => *self = Unmistakable::TooMany,
        }
    }

    fn paths(&self) -> &[String] {
        match self {
            Unmistakable::Few(paths) => paths,
            Unmistakable::TooMany => &[],
        }
    }
}

impl KnownPaths {
    /// Adds a volume. `surely_on` is the node of which [`super::placement::NodeIndex::surely_on`] says so; `is_planned`
    /// is whether that node's plan has the volume, which says its path there.
    pub fn add(&mut self, volume: &Volume, surely_on: Option<&str>, is_planned: bool) {
        let Some(path) = known_path(&volume.path) else { return };
        if surely_on.is_some() {
            self.unmistakable.add(volume, &path);
        }
        match surely_on {
            None => self.anywhere.push(path),
            Some(_) if is_planned => {}
            Some(node) => self.on_node.entry(node.to_owned()).or_default().push(path),
        }
    }

    /// Adds a volume that could not be read or is no directory of a node, by its name, with the path that it names, as far
    /// as that is known. A node may export what a volume of another kind names.
    pub fn add_skipped(&mut self, name: &str, reason: SkipReason, path: Option<&str>) {
        match (reason, path.map(known_path)) {
            (SkipReason::NotNodeLocal, None) | (_, Some(None)) => {}
            (SkipReason::BlockMode, Some(Some(path))) => self.devices.push(path),
            (_, Some(Some(path))) => self.anywhere.push(path),
            (_, None) => {
                self.unread.get_or_insert_with(|| name.to_owned());
            }
        }
    }

    /// Gives paths and nodes other names.
    pub fn rename(&mut self, mut path: impl FnMut(&str) -> String, node: impl Fn(&str) -> String) {
        let KnownPaths {
            anywhere,
            devices,
            on_node,
            unmistakable,
            unread: _,
        } = self;
        let unmistakable = match unmistakable {
            Unmistakable::Few(paths) => &mut paths[..],
            Unmistakable::TooMany => &mut [],
        };
        let everywhere = anywhere.iter_mut().chain(unmistakable).chain(devices);
        for known in everywhere.chain(on_node.values_mut().flatten()) {
            *known = path(known);
        }
        *on_node = std::mem::take(on_node)
            .into_iter()
            .map(|(name, paths)| (node(&name), paths))
            .collect();
    }

    /// A volume that lies nobody knows where: any directory may be its own, so that none can be called an orphan.
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }

    /// Whether more volumes may lie on any node than their paths can be sent to each: without them nothing can be called an
    /// orphan.
    pub fn are_too_many(&self) -> bool {
        self.anywhere.len() + self.devices.len() > ANYWHERE_MAX
    }

    /// The directories of volumes that may lie on this node and that its plan does not have. Some are told twice, and some
    /// that the plan has.
    pub fn directories<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a str> {
        let own = self.on_node.get(node).into_iter().flatten();
        let elsewhere = self.unmistakable.paths();
        self.anywhere.iter().chain(own).chain(elsewhere).map(String::as_str)
    }

    /// The paths of raw block volumes: they are no directories, but what they lie in is no orphan.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }
}

/// A path as a directory on a node may have it; `None` if Linux can have no such path. What has no normal form for a plan
/// (the root, `..`) is a directory all the same.
fn known_path(path: &str) -> Option<String> {
    if let Ok(path) = path::normalize(path) {
        return Some(path);
    }
    if path.is_empty() || path.contains('\0') {
        return None;
    }
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    let path = format!("/{}", components.join("/"));
    // Too long for Linux, it names nothing.
    (path == "/" || path::normalize(&path).is_ok()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::affinity::{NodeSelectorTerm, Operator, Requirement};
    use crate::volumes::placement::NodeIndex;
    use crate::volumes::testing::{node, volume};
    use crate::volumes::volume::Node;

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        }
    }

    fn term(key: &str, values: &[&str]) -> NodeSelectorTerm {
        NodeSelectorTerm {
            match_expressions: vec![requirement(key, Operator::In, values)],
            match_fields: Vec::new(),
        }
    }

    fn field(name: &str) -> NodeSelectorTerm {
        NodeSelectorTerm {
            match_expressions: Vec::new(),
            match_fields: vec![requirement("metadata.name", Operator::In, &[name])],
        }
    }

    /// `a` is as most nodes are; the label of `b` is not its name; `old` is a node that was given the new name `a-new`;
    /// two nodes are in the zone `a`.
    fn nodes() -> Vec<Node> {
        let labels =
            |hostname: &'static str, zone: &'static str| [("kubernetes.io/hostname", hostname), ("zone", zone)];
        vec![
            node("a").labels(&labels("a", "a")),
            node("b").labels(&labels("b-host", "a")),
            node("old").labels(&labels("old", "c")).not_ready(),
            node("a-new").labels(&labels("a-new", "c")),
        ]
    }

    const HOSTNAME: &str = "kubernetes.io/hostname";

    fn check(affinity: Option<Vec<NodeSelectorTerm>>, selected_node: Option<&str>, expected: Option<&str>, why: &str) {
        let nodes = nodes();
        let mut volume = volume("pv");
        volume.affinity = affinity.map(Into::into);
        volume.selected_node = selected_node.map(Into::into);
        let mut index = NodeIndex::new(&nodes);
        let found = index.surely_on(&volume).map(|node| nodes[node].name.as_str());
        assert_eq!(found, expected, "{why}");
    }

    /// A machine that was given another name is still there, and so is what lies on it.
    #[test]
    fn a_volume_older_than_its_node_may_lie_on_another_one() {
        for (volume_seconds, node_seconds, expected) in [
            (Some(10), Some(20), None),
            (Some(20), Some(20), Some(0)),
            (Some(30), Some(20), Some(0)),
            (None, Some(20), Some(0)),
        ] {
            let mut one = node("a");
            one.created_unix_seconds = node_seconds;
            let mut volume = volume("pv");
            volume.created_unix_seconds = volume_seconds;
            volume.selected_node = Some("a".into());
            volume.affinity = Some([term(HOSTNAME, &["a"])].into());
            let found = NodeIndex::new(&[one]).surely_on(&volume);
            assert_eq!(found, expected, "{volume_seconds:?} {node_seconds:?}");
        }
    }

    #[test]
    fn where_a_volume_surely_lies() {
        let on = |name: &str| Some(vec![term(HOSTNAME, &[name])]);
        check(on("a"), Some("a"), Some("a"), "both say so");
        check(on("a"), None, Some("a"), "the affinity says so by the node's name");
        check(on("a"), Some(""), Some("a"), "the annotation says nothing");
        check(
            Some(vec![field("b")]),
            None,
            Some("b"),
            "by its name, written by 0.0.29",
        );
        check(
            on("b-host"),
            Some("b"),
            Some("b"),
            "a label that only b has, and made there",
        );
        check(on("b-host"), None, None, "who had that label when it was made?");
        check(
            on("a"),
            Some("b"),
            None,
            "the node that it was made on has another label now",
        );
        check(
            on("old"),
            Some("old"),
            None,
            "that node is not Ready: it may live on under another name",
        );
        check(on("gone"), Some("gone"), None, "a node that is gone");
        check(on("gone"), Some("a"), None, "the label is gone, the node is there");
        check(
            Some(vec![term("zone", &["a"])]),
            Some("a"),
            None,
            "two nodes are in that zone",
        );
        check(
            Some(vec![term("zone", &["c"])]),
            Some("a-new"),
            None,
            "two nodes are in that zone, one of them down",
        );
        check(
            Some(vec![term(HOSTNAME, &["a", "gone"])]),
            None,
            None,
            "one of two, and the other is gone",
        );
        check(
            Some(vec![term(HOSTNAME, &["a"]), term(HOSTNAME, &["gone"])]),
            None,
            None,
            "the same, as two terms",
        );
        check(
            Some(vec![field("a"), term(HOSTNAME, &["a"])]),
            None,
            Some("a"),
            "two ways to say a",
        );
        check(Some(Vec::new()), Some("a"), None, "no term matches anything");
        check(
            Some(vec![NodeSelectorTerm::default()]),
            None,
            None,
            "an empty term matches nothing",
        );
        let mut negative = term(HOSTNAME, &["b-host", "old", "a-new"]);
        negative.match_expressions[0].operator = Operator::NotIn;
        check(
            Some(vec![negative]),
            None,
            None,
            "what is left over today may have been another",
        );
        check(None, Some("a"), None, "shared");
        check(None, None, None, "nothing says where");
    }

    /// Nodes may have one disk, and no volume says so.
    #[test]
    fn a_path_that_nobody_else_can_mean_is_known_on_every_node() {
        let at = |name: &str, path: &str| {
            let mut volume = volume(name);
            volume.path = path.to_owned();
            volume
        };
        let mut known = KnownPaths::default();
        known.add(&at("pvc-1", "/data/pvc-1_shop_data"), Some("a"), true);
        known.add(&at("pvc-2", "/data/shop/data"), Some("a"), true);
        known.add(&at("hand-made", "/data/hand-made"), Some("a"), true);
        assert_eq!(known.directories("b").collect::<Vec<_>>(), ["/data/pvc-1_shop_data"]);
        known.rename(|path| format!("{path}-renamed"), str::to_owned);
        let renamed = ["/data/pvc-1_shop_data-renamed"];
        assert_eq!(known.directories("b").collect::<Vec<_>>(), renamed);
        for number in 3..=UNMISTAKABLE_MAX + 1 {
            let name = format!("pvc-{number}");
            known.add(&at(&name, &format!("/data/{name}")), Some("a"), true);
        }
        assert_eq!(known.directories("b").count(), UNMISTAKABLE_MAX);
        for name in ["pvc-one-more", "pvc-two-more"] {
            known.add(&at(name, &format!("/data/{name}")), Some("a"), false);
            assert_eq!(
                known.directories("b").count(),
                0,
                "a part of them would protect nobody knows what"
            );
        }
        let on_a = ["/data/pvc-one-more", "/data/pvc-two-more"];
        assert_eq!(known.directories("a").collect::<Vec<_>>(), on_a);
    }

    #[test]
    fn no_more_is_sent_to_each_node_than_fits() {
        let mut known = KnownPaths::default();
        known.add_skipped("raw", SkipReason::BlockMode, Some("/dev/sdb"));
        for number in 1..ANYWHERE_MAX {
            known.add(&volume(&format!("pv-{number}")), None, false);
            known.add(&volume(&format!("elsewhere-{number}")), Some("a"), false);
        }
        assert!(!known.are_too_many());
        known.add(&volume("one-more"), None, true);
        assert!(known.are_too_many());
    }

    #[test]
    fn what_is_known_where() {
        let named = |name: &str, path: &str| {
            let mut volume = volume(name);
            volume.path = path.to_owned();
            volume
        };
        let mut known = KnownPaths::default();
        known.add(&named("planned", "/data/planned"), Some("a"), true);
        known.add(&named("filtered", "/data/filtered"), Some("a"), false);
        known.add(&named("elsewhere", "/data/elsewhere/"), Some("b"), false);
        known.add(&named("shared", "/data//shared"), None, true);
        known.add(&named("unplaced", "/data/unplaced"), None, false);
        known.add(&named("outside", "/srv/data"), None, false);
        known.add(&named("parent", "/data"), None, false);
        known.add(&named("everything", "/"), None, false);
        known.add(&named("tricky", "/data/x/../y"), None, false);
        known.add(&named("relative", "data/z"), None, false);
        known.add(&named("impossible", "/nul\0"), None, false);
        known.add(&named("endless", &"/x".repeat(10_000)), None, false);
        known.add_skipped("unread", SkipReason::Undecodable, Some("/data/unread"));
        known.add_skipped("vague", SkipReason::InvalidCapacity, Some("/data/vague"));
        known.add_skipped("raw", SkipReason::BlockMode, Some("/dev/sdb"));
        known.add_skipped("cloud", SkipReason::NotNodeLocal, None);
        known.add_skipped("nfs", SkipReason::NotNodeLocal, Some("/export/nfs"));
        assert_eq!(known.unread(), None);
        let anywhere = [
            "/data/shared",
            "/data/unplaced",
            "/srv/data",
            "/data",
            "/",
            "/data/y",
            "/data/z",
            "/data/unread",
            "/data/vague",
            "/export/nfs",
        ];
        for (node, own) in [("a", &["/data/filtered"][..]), ("b", &["/data/elsewhere"]), ("c", &[])] {
            let expected: Vec<&str> = anywhere.iter().chain(own).copied().collect();
            assert_eq!(known.directories(node).collect::<Vec<_>>(), expected, "{node}");
        }
        assert_eq!(known.devices(), ["/dev/sdb"]);
        known.add_skipped("opaque", SkipReason::Undecodable, None);
        assert_eq!(known.unread(), Some("opaque"));
    }
}
