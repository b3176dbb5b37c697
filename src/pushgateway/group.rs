//! Grouping keys: under which job and labels a group of metrics lies on a Pushgateway, and how a URL says so.
//!
//! Pure. A key holds exactly the labels that the server holds for the group, so that keys and the server's list can be
//! compared; the order of the labels means nothing to either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter, Write as _};
use std::str::FromStr;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// The job of the controller's group: capacity and facts of the volumes.
pub const CONTROLLER_JOB: &str = "lp-exporter";
/// The job of the workers' groups, one for each node: usage of the volumes.
pub const WORKER_JOB: &str = "lp-exporter-job";
/// The job of the group with the report of a run, pushed at its end.
pub const REPORT_JOB: &str = "lp-exporter-run";
/// The job of the group that is pushed only by a run that was not ended early: it did what it could.
pub const SUCCESS_JOB: &str = "lp-exporter-success";

/// The label that tells the workers' groups apart.
pub const NODE_LABEL: &str = "node";

/// One label of the user that is added to the key of each of our groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupingLabel {
    name: String,
    value: String,
}

impl FromStr for GroupingLabel {
    type Err = GroupingLabelError;

    /// Reads `name=value`. The value may be empty; it has no comma, which separates labels from each other.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(GroupingLabelError::Form { text: text.to_owned() });
        };
        if value.contains(',') {
            return Err(GroupingLabelError::Comma { name: name.to_owned() });
        }
        if !is_label_name(name) {
            return Err(GroupingLabelError::Name { name: name.to_owned() });
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// The labels of the user in the key of each of our groups: what lets several clusters share a Pushgateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupingLabels(BTreeMap<String, String>);

impl GroupingLabels {
    /// Takes `labels`, unless one has a name that is given twice or that a key or a series uses already: the labels of
    /// a key overwrite those of the series. `series_labels` are the label names of all our metrics.
    pub fn new<'a>(
        labels: impl IntoIterator<Item = GroupingLabel>,
        series_labels: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, GroupingLabelError> {
        let taken: BTreeSet<&str> = series_labels.into_iter().chain(KEY_LABELS).collect();
        let mut accepted = BTreeMap::new();
        for GroupingLabel { name, value } in labels {
            if taken.contains(name.as_str()) {
                return Err(GroupingLabelError::Taken { name });
            }
            if accepted.insert(name.clone(), value).is_some() {
                return Err(GroupingLabelError::Repeated { name });
            }
        }
        Ok(Self(accepted))
    }

    /// The names of the labels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Display for GroupingLabels {
    /// Writes `name=value,name=value`, the form in which they are given to us.
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for (position, (name, value)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(formatter, "{comma}{name}={value}")?;
        }
        Ok(())
    }
}

/// Why an extra grouping label is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupingLabelError {
    /// There is no `=`.
    #[error("the grouping label {text:?} is not of the form name=value")]
    Form {
        /// What was given.
        text: String,
    },
    /// The value holds a comma.
    #[error("the value of the grouping label {name:?} holds a comma, which separates labels: choose a value without")]
    Comma {
        /// The label's name.
        name: String,
    },
    /// A Pushgateway or Prometheus would refuse the name or read it as another one.
    #[error(
        "{name:?} cannot be the name of a grouping label: use letters, digits and underscores, beginning with a letter \
         or a single underscore, and not with U__"
    )]
    Name {
        /// The label's name.
        name: String,
    },
    /// The metrics or their keys use the name.
    #[error("the grouping label {name:?} would overwrite the label {name:?} of the metrics: choose another name")]
    Taken {
        /// The label's name.
        name: String,
    },
    /// The name is given twice.
    #[error("the grouping label {name:?} is given twice")]
    Repeated {
        /// The label's name.
        name: String,
    },
}

/// Where a group of metrics lies: a job, which is not empty, and further labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupingKey {
    job: String,
    labels: BTreeMap<String, String>,
}

impl GroupingKey {
    /// The key of the one group of `job`, which is one of the constants of this module.
    #[must_use]
    pub fn new(job: &'static str, grouping_labels: &GroupingLabels) -> Self {
        Self {
            job: job.to_owned(),
            labels: grouping_labels.0.clone(),
        }
    }

    /// The key of the worker's group of the node of this name.
    #[must_use]
    pub fn for_node(node: &str, grouping_labels: &GroupingLabels) -> Self {
        let mut key = Self::new(WORKER_JOB, grouping_labels);
        key.labels.insert(NODE_LABEL.to_owned(), node.to_owned());
        key
    }

    /// The key of a group that the server lists with these labels; none if they name no job, which no server allows.
    #[must_use]
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        let mut labels = labels.clone();
        let job = labels.remove(JOB_LABEL).filter(|job| !job.is_empty())?;
        Some(Self { job, labels })
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The node whose worker pushes this group: if it is a worker's group, with exactly these extra labels.
    #[must_use]
    pub fn worker_node(&self, grouping_labels: &GroupingLabels) -> Option<&str> {
        let node = self.labels.get(NODE_LABEL)?;
        (*self == Self::for_node(node, grouping_labels)).then_some(node)
    }

    /// Its extra labels: all but the job and the node.
    pub fn extra_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.labels.iter().filter(|(name, _)| *name != NODE_LABEL);
        labels.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether the group lies where one of this job and these extra labels does, on whatever node: for Prometheus, for which
    /// an empty label is none.
    #[must_use]
    pub fn is_in_place_of(&self, job: &'static str, grouping_labels: &GroupingLabels) -> bool {
        fn told(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&String, &String)> {
            labels.iter().filter(|(_, value)| !value.is_empty())
        }
        let is_of_node = job == WORKER_JOB;
        let has_node = self.labels.get(NODE_LABEL).is_some_and(|node| !node.is_empty());
        let others = told(&self.labels).filter(|(name, _)| *name != NODE_LABEL);
        self.job == job && has_node == is_of_node && others.eq(told(&grouping_labels.0))
    }

    /// The path of the group below the Pushgateway's URL: `/metrics/job/<job>/<name>/<value>…`, the node first.
    #[must_use]
    pub fn path(&self) -> String {
        let mut path = String::from("/metrics");
        push_pair(&mut path, JOB_LABEL, &self.job);
        let (node, others): (Vec<_>, Vec<_>) = self.labels.iter().partition(|(name, _)| *name == NODE_LABEL);
        for (name, value) in node.into_iter().chain(others) {
            push_pair(&mut path, name, value);
        }
        path
    }
}

impl Display for GroupingKey {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.path())
    }
}

const JOB_LABEL: &str = "job";

/// What keys use themselves, and `instance`, which the server adds to each series that has none.
const KEY_LABELS: [&str; 3] = [JOB_LABEL, "instance", NODE_LABEL];

/// Whether a Pushgateway takes the name as it stands: names with `__` at the front are reserved, and one with `U__` is
/// decoded into another name by a server that allows UTF-8 names.
fn is_label_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
        && !name.starts_with("__")
        && !name.starts_with("U__")
}

/// Appends `/name/value`. Whatever a server or a proxy on the way might read as more than plain text goes as base64,
/// with which the server knows `=` as the empty value: it splits the path after percent-decoding and cleans away empty
/// and dot segments, so that percent-encoding cannot save those.
fn push_pair(path: &mut String, name: &str, value: &str) {
    let is_plain = !matches!(value, "" | "." | "..")
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let written = if is_plain {
        write!(path, "/{name}/{value}")
    } else if value.is_empty() {
        write!(path, "/{name}@base64/=")
    } else {
        write!(path, "/{name}@base64/{}", URL_SAFE_NO_PAD.encode(value))
    };
    written.expect("a string takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[&str]) -> GroupingLabels {
        let parsed = pairs.iter().map(|pair| pair.parse().expect("a label of the test"));
        GroupingLabels::new(parsed, ["namespace", "storageclass"]).expect("labels of the test")
    }

    fn check_path(node: &str, extra: &[&str], expected: &str) {
        let key = GroupingKey::for_node(node, &labels(extra));
        assert_eq!(key.path(), format!("/metrics/job/lp-exporter-job{expected}"));
    }

    #[test]
    fn writes_paths() {
        check_path("n1.example", &[], "/node/n1.example");
        check_path(
            "n1",
            &["cluster=eu-1", "zone=A_b~c.d"],
            "/node/n1/cluster/eu-1/zone/A_b~c.d",
        );
        check_path("", &["cluster="], "/node@base64/=/cluster@base64/=");
        check_path("n1", &["path=/var/tmp"], "/node/n1/path@base64/L3Zhci90bXA");
        check_path(
            "n1",
            &["name=Προμηθεύς"],
            "/node/n1/name@base64/zqDPgc6_zrzOt864zrXPjc-C",
        );
        check_path(".", &["a=..", "b=..."], "/node@base64/Lg/a@base64/Li4/b/...");
        check_path("n1", &["a=x=y", "b=50%"], "/node/n1/a@base64/eD15/b@base64/NTAl");
        let key = GroupingKey::new(CONTROLLER_JOB, &labels(&["cluster=eu"]));
        assert_eq!(key.to_string(), "/metrics/job/lp-exporter/cluster/eu");
    }

    fn check_labels(pairs: &[&str], expected: Result<&str, &str>) {
        let parsed: Result<Vec<GroupingLabel>, _> = pairs.iter().map(|pair| pair.parse()).collect();
        let accepted = parsed.and_then(|labels| GroupingLabels::new(labels, ["namespace", "storageclass"]));
        match (accepted, expected) {
            (Ok(labels), Ok(text)) => assert_eq!(labels.to_string(), text),
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{pairs:?}: {error}")
            }
            (accepted, _) => panic!("{pairs:?}: {accepted:?}, not {expected:?}"),
        }
    }

    #[test]
    fn accepts_and_refuses_labels() {
        check_labels(&[], Ok(""));
        check_labels(&["zone=b", "cluster=a"], Ok("cluster=a,zone=b"));
        check_labels(&["cluster="], Ok("cluster="));
        check_labels(&["_a1=x=y/ü"], Ok("_a1=x=y/ü"));
        check_labels(&["cluster"], Err("\"cluster\" is not of the form name=value"));
        check_labels(&["cluster=a,b"], Err("\"cluster\" holds a comma"));
        for name in ["", "1a", "a-b", "ü", "__a", "U__a", "a b", "a@base64", "a/b"] {
            check_labels(&[&format!("{name}=x")], Err("cannot be the name of a grouping label"));
        }
        for name in ["job", "instance", "node", "namespace", "storageclass"] {
            check_labels(&[&format!("{name}=x")], Err("would overwrite"));
        }
        check_labels(&["a=1", "a=1"], Err("\"a\" is given twice"));
    }

    fn check_key(listed: &[(&str, &str)], extra: &[&str], expected_node: Option<&str>) {
        let listed = listed
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let node = GroupingKey::from_labels(&listed).and_then(|key| key.worker_node(&labels(extra)).map(str::to_owned));
        assert_eq!(node.as_deref(), expected_node, "{listed:?} with {extra:?}");
    }

    #[test]
    fn knows_the_groups_of_our_workers() {
        let ours = ("job", "lp-exporter-job");
        check_key(&[ours, ("node", "n1")], &[], Some("n1"));
        check_key(&[("cluster", "a"), ("node", "n1"), ours], &["cluster=a"], Some("n1"));
        check_key(&[ours, ("node", "n1")], &["cluster=a"], None);
        check_key(&[ours, ("node", "n1"), ("cluster", "b")], &["cluster=a"], None);
        check_key(
            &[ours, ("node", "n1"), ("cluster", "a"), ("zone", "z")],
            &["cluster=a"],
            None,
        );
        check_key(&[ours, ("node", "n1"), ("cluster", "a")], &[], None);
        check_key(&[ours], &[], None);
        check_key(&[("job", "lp-exporter"), ("node", "n1")], &[], None);
        check_key(&[("job", ""), ("node", "n1")], &[], None);
        check_key(&[("node", "n1")], &[], None);
    }
}
