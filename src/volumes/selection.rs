//! Which volumes and nodes are to be measured, and what is told of them: what people set, ready to be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use thiserror::Error;

use super::affinity::is_label_key;
use super::claims::{ALERT_LABEL, Claim, MEASURE_LABEL};
use super::quantity::excerpt;
use super::selector::Selector;
use super::volume::{SkipReason, Volume};

/// Which volumes and nodes are to be measured. An empty set limits nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Storage classes.
    pub storage_classes: BTreeSet<String>,
    /// Namespaces of the volumes' claims.
    pub namespaces: BTreeSet<String>,
    /// Names of the nodes that the volumes lie on.
    pub nodes: BTreeSet<String>,
    /// Labels of the volumes' claims.
    pub claim_selector: Selector,
    /// The only nodes that this run measures. It limits nothing of what is planned: the others' numbers stay.
    pub only_nodes: BTreeSet<String>,
    /// Which nodes are visited.
    pub scan_nodes: ScanNodes,
    /// Labels of the claims that are told.
    pub claim_labels: ClaimLabels,
}

/// Which nodes are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanNodes {
    /// Those that hold volumes.
    WithVolumes,
    /// Every one that a worker can run on.
    All,
}

impl Selection {
    /// Everything is measured, on the nodes that hold volumes.
    pub fn everything() -> Selection {
        Selection {
            storage_classes: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            nodes: BTreeSet::new(),
            claim_selector: Selector::default(),
            only_nodes: BTreeSet::new(),
            scan_nodes: ScanNodes::WithVolumes,
            claim_labels: ClaimLabels::default(),
        }
    }

    /// Why a volume is left out, if it is: its node aside, which is not known yet. `claim` is the one that it is bound to.
    ///
    /// A volume without a claim is in no namespace and has no labels.
    pub(super) fn leaves_out(&self, volume: &Volume, claim: Option<&Claim>) -> Option<(SkipReason, String)> {
        let is_limited = |set: &BTreeSet<String>, value: &str| !set.is_empty() && !set.contains(value);
        if claim.is_some_and(Claim::is_opted_out) {
            return Some((
                SkipReason::OptedOut,
                format!("its claim has the label {MEASURE_LABEL}: \"false\""),
            ));
        }
        if is_limited(&self.storage_classes, &volume.storage_class) {
            let detail = format!("storage class {:?}", volume.storage_class);
            return Some((SkipReason::FilteredByStorageClass, detail));
        }
        let namespace = volume.claim.as_ref().map_or("", |claim| &*claim.namespace);
        if is_limited(&self.namespaces, namespace) {
            return Some((SkipReason::FilteredByNamespace, format!("namespace {namespace:?}")));
        }
        let no_labels = BTreeMap::new();
        if !self
            .claim_selector
            .matches(claim.map_or(&no_labels, |claim| &claim.labels))
        {
            let detail = match claim {
                Some(_) => "its claim's labels do not match",
                None => "it is bound to no claim that is there and can be read, so it has no labels",
            };
            return Some((SkipReason::FilteredBySelector, detail.to_owned()));
        }
        None
    }

    /// Whether volumes on a node are to be measured.
    pub(super) fn takes_node(&self, node: &str) -> bool {
        self.nodes.is_empty() || self.nodes.contains(node)
    }

    /// Whether this run was asked for a node.
    pub(super) fn asks_for(&self, node: &str) -> bool {
        self.only_nodes.is_empty() || self.only_nodes.contains(node)
    }

    /// Whether this run measures some nodes only, and leaves what is known of the others as it is.
    pub fn is_partial(&self) -> bool {
        !self.only_nodes.is_empty()
    }

    /// The keys of the labels of claims that anything looks at: the others need not be kept.
    pub fn label_keys(&self) -> BTreeSet<String> {
        let own = [MEASURE_LABEL, ALERT_LABEL].into_iter();
        let keys = own.chain(self.claim_selector.keys()).map(str::to_owned);
        keys.chain(self.claim_labels.keys.iter().cloned()).collect()
    }
}

/// The labels of claims that are told with each volume, and the names that they get there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimLabels {
    keys: Vec<String>,
    names: Vec<String>,
}

/// Why labels of claims cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClaimLabelError {
    /// The text is no key of a label.
    #[error("cannot use {key:?} as the key of a label: write it as on the claims, such as team or example.com/team")]
    Key {
        /// The beginning of the text.
        key: String,
    },
    /// Two keys get the same name.
    #[error(
        "cannot tell the labels {first:?} and {second:?} of claims together: both would be named {name}; leave one away"
    )]
    Conflict {
        /// The key that came first.
        first: String,
        /// The other.
        second: String,
        /// The name of both.
        name: String,
    },
}

impl ClaimLabels {
    /// Tells these labels, each once.
    ///
    /// # Errors
    /// [`ClaimLabelError`] for a text that is no key, and for two keys that would get one name.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Result<ClaimLabels, ClaimLabelError> {
        let mut labels = ClaimLabels::default();
        for key in keys {
            if labels.keys.contains(&key) {
                continue;
            }
            if !is_label_key(&key) {
                return Err(ClaimLabelError::Key { key: excerpt(&key) });
            }
            let name = metric_label(&key);
            if let Some(at) = labels.names.iter().position(|known| *known == name) {
                let first = labels.keys[at].clone();
                return Err(ClaimLabelError::Conflict {
                    first,
                    second: key,
                    name,
                });
            }
            labels.keys.push(key);
            labels.names.push(name);
        }
        Ok(labels)
    }

    /// The names that the labels get in the metrics.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Their values on a claim; empty where it lacks one, or where there is no claim.
    pub(super) fn values(&self, claim: Option<&Claim>) -> Vec<String> {
        let value = |key: &String| claim.and_then(|claim| claim.labels.get(key)).cloned();
        self.keys.iter().map(|key| value(key).unwrap_or_default()).collect()
    }
}

/// The name of a label of Kubernetes in a metric, as kube-state-metrics makes it: `appName` and `app.name` become
/// `label_app_name`.
fn metric_label(key: &str) -> String {
    let mut name = "label_".to_owned();
    let mut before = ' ';
    for c in key.chars() {
        if c.is_ascii_uppercase() && (before.is_ascii_lowercase() || before.is_ascii_digit()) {
            name.push('_');
        }
        name.push(if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        });
        before = c;
    }
    name
}

/// A text that names no set of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("write with-volumes or all")]
pub struct UnknownScanNodes;

impl FromStr for ScanNodes {
    type Err = UnknownScanNodes;

    fn from_str(text: &str) -> Result<ScanNodes, UnknownScanNodes> {
        match text {
            "with-volumes" => Ok(ScanNodes::WithVolumes),
            "all" => Ok(ScanNodes::All),
            _ => Err(UnknownScanNodes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::{claim_of, volume};

    fn set(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn what_is_left_out() {
        let mut volume = volume("pv");
        let claim = |labels: &[(&str, &str)]| {
            let mut claim = claim_of(&volume);
            let owned = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            claim.labels = owned.collect();
            claim
        };
        let (plain, of_team_a) = (claim(&[]), claim(&[("team", "a")]));
        let out = claim(&[(MEASURE_LABEL, "false"), ("team", "a")]);
        let select = |text: &str| Selection {
            claim_selector: text.parse().expect("a selector"),
            ..Selection::everything()
        };
        let classes = |values: &[&str]| Selection {
            storage_classes: set(values),
            ..Selection::everything()
        };
        let namespaces = |values: &[&str]| Selection {
            namespaces: set(values),
            ..Selection::everything()
        };
        let told = |selection: &Selection, volume: &Volume, claim| {
            selection.leaves_out(volume, claim).map(|(reason, _)| reason)
        };
        for (selection, claim, expected) in [
            (Selection::everything(), Some(&plain), None),
            (Selection::everything(), None, None),
            (Selection::everything(), Some(&out), Some(SkipReason::OptedOut)),
            (classes(&["other", "local-path"]), Some(&plain), None),
            (
                classes(&["other"]),
                Some(&plain),
                Some(SkipReason::FilteredByStorageClass),
            ),
            (namespaces(&["default"]), None, None),
            (
                namespaces(&["ops"]),
                Some(&plain),
                Some(SkipReason::FilteredByNamespace),
            ),
            (select("team=a"), Some(&of_team_a), None),
            (select("team=a"), Some(&plain), Some(SkipReason::FilteredBySelector)),
            (select("team=a"), None, Some(SkipReason::FilteredBySelector)),
            (select("!team"), None, None),
            // What the owner wants comes first.
            (select("team=b"), Some(&out), Some(SkipReason::OptedOut)),
        ] {
            assert_eq!(told(&selection, &volume, claim), expected, "{selection:?} {claim:?}");
        }
        volume.claim = None;
        let reason = told(&namespaces(&["default"]), &volume, None);
        assert_eq!(reason, Some(SkipReason::FilteredByNamespace));
    }

    #[test]
    fn names_of_labels() {
        for (key, name) in [
            ("team", "label_team"),
            ("appName", "label_app_name"),
            ("app.kubernetes.io/name", "label_app_kubernetes_io_name"),
            ("cost-centre", "label_cost_centre"),
            ("HTTPPort", "label_httpport"),
            ("v2Team", "label_v2_team"),
        ] {
            let labels = ClaimLabels::new([key.to_owned(), key.to_owned()]).expect("one label");
            assert_eq!(labels.names(), [name], "{key}");
        }
    }

    #[test]
    fn labels_that_cannot_be_told() {
        for (keys, part) in [
            (&["app.name", "app-name"][..], "both would be named label_app_name"),
            (&["team", "-bad"], "\"-bad\" as the key of a label"),
            (&[""], "the key of a label"),
            (&["a b\n"], "\"a b\\n\""),
        ] {
            let error = ClaimLabels::new(keys.iter().map(|key| (*key).to_owned())).expect_err(part);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn only_the_labels_that_are_looked_at_are_kept() {
        let selection = Selection {
            claim_selector: "tier!=test".parse().expect("a selector"),
            claim_labels: ClaimLabels::new(["team".to_owned()]).expect("a label"),
            ..Selection::everything()
        };
        let keys = set(&[MEASURE_LABEL, ALERT_LABEL, "tier", "team"]);
        assert_eq!(selection.label_keys(), keys);
    }
}
