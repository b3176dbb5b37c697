//! Which groups on the Pushgateway have outlived what they tell of, and which are somebody else's.
//!
//! Pure. A Pushgateway never forgets, so whoever pushes must delete; and it may be shared, so only what is certainly
//! ours is deleted.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};

use super::group::{CONTROLLER_JOB, GroupingKey, GroupingLabels, REPORT_JOB, SUCCESS_JOB, WORKER_JOB};
use super::list::Group;
use crate::owner::Owner;

/// What makes a group ours: one of our jobs, exactly these extra labels with these values, and us as its owner.
#[derive(Debug, Clone, Copy)]
pub struct Ours<'a> {
    /// The labels of the user.
    pub grouping_labels: &'a GroupingLabels,
    /// Us.
    pub owner: &'a Owner,
}

impl Ours<'_> {
    /// Whether a group lies where ours do, whoever pushed it.
    fn is_our_key(&self, key: &GroupingKey) -> bool {
        let jobs = [WORKER_JOB, CONTROLLER_JOB, REPORT_JOB, SUCCESS_JOB];
        jobs.iter().any(|job| key.is_in_place_of(job, self.grouping_labels))
    }

    /// Whether we pushed the group. The empty group that the server makes to tell of a refused push says nothing.
    fn is_ours(&self, group: &Group) -> bool {
        group.push_time_seconds <= 0.0 || group.owner.as_ref() == Some(self.owner)
    }
}

/// Those among `groups` that lie where ours do and that another one pushed. If there is one, nothing may be pushed: it would
/// take the place of theirs, and theirs of ours, for ever.
#[must_use]
pub fn groups_of_others<'g>(groups: &'g [Group], ours: Ours<'_>) -> Vec<(GroupingKey, &'g Owner)> {
    groups
        .iter()
        .filter_map(|group| Some((GroupingKey::from_labels(&group.labels)?, group)))
        .filter(|(key, group)| ours.is_our_key(key) && !ours.is_ours(group))
        // One that does not say whose it is, is nobody's: at our place it is taken over, and it is never deleted.
        .filter_map(|(key, group)| Some((key, group.owner.as_ref()?)))
        .collect()
}

/// The keys of those among `groups` that we pushed when our extra labels were others. No run deletes them, because nothing
/// says that they are of the past: two runs with two labels may be meant so.
#[must_use]
pub fn groups_left_behind(groups: &[Group], ours: Ours<'_>) -> Vec<GroupingKey> {
    let was_pushed = groups
        .iter()
        .filter(|group| group.push_time_seconds > 0.0 && group.owner.as_ref() == Some(ours.owner));
    was_pushed
        .filter_map(|group| GroupingKey::from_labels(&group.labels))
        .filter(|key| is_own_job(key.job()) && !ours.is_our_key(key))
        .collect()
}

/// Why a group goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlived {
    /// Its node holds no volumes any more, or is gone.
    NoVolumes,
    /// The server made it to tell of a refused push, and nothing was ever pushed into it.
    NeverPushed,
    /// Its node was not measured for so long that its numbers say nothing any more.
    TooOld,
}

impl Display for Outlived {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outlived::NoVolumes => "its node is gone, or holds no volumes any more",
            Outlived::NeverPushed => "it is the empty trace of a refused push",
            Outlived::TooOld => "its node has not been measured for too long",
        })
    }
}

/// What a run knows of the nodes whose groups may go.
#[derive(Debug, Clone, Copy)]
pub struct Nodes<'a> {
    /// Names of the nodes that volumes lie on or may lie on, measured or not.
    pub with_volumes: &'a BTreeSet<String>,
    /// Names of the nodes that this run wanted to measure: some of those above.
    pub wanted: &'a BTreeSet<String>,
    /// What of these was pushed by a run that began before this, in seconds since 1970, is too old.
    pub kept_since_unix_seconds: f64,
}

/// The keys of those among `groups` that our workers pushed and that are to go, and why.
///
/// Call it only with the nodes of a complete list of volumes: what is missing there is deleted here.
#[must_use]
pub fn groups_to_retire(groups: &[Group], ours: Ours<'_>, nodes: Nodes<'_>) -> Vec<(GroupingKey, Outlived)> {
    let outlived = |group: &Group| {
        let key = GroupingKey::from_labels(&group.labels)?;
        let node = key.worker_node(ours.grouping_labels).filter(|_| ours.is_ours(group))?;
        // Without it the server knows when the group was pushed; nor did a run begin after that, whatever its clock said.
        let pushed = group.push_time_seconds;
        let began = group.run_start_seconds.map_or(pushed, |began| began.min(pushed));
        let why = if group.push_time_seconds <= 0.0 {
            Outlived::NeverPushed
        } else if !nodes.with_volumes.contains(node) {
            Outlived::NoVolumes
        } else if nodes.wanted.contains(node) && began < nodes.kept_since_unix_seconds {
            Outlived::TooOld
        } else {
            return None;
        };
        Some((key, why))
    };
    groups.iter().filter_map(outlived).collect()
}

/// Whether a job is one of ours.
#[must_use]
pub fn is_own_job(job: &str) -> bool {
    [CONTROLLER_JOB, WORKER_JOB, REPORT_JOB, SUCCESS_JOB].contains(&job)
}

/// Whether a job has a name that the Python exporter used, which came before: `capacity_metrics`, which was `projectbeta` at
/// first, and `<node>_usage_metrics` for each node. Others may use such names, too.
#[must_use]
pub fn is_job_of_the_python_exporter(job: &str) -> bool {
    ["capacity_metrics", "projectbeta"].contains(&job) || job.ends_with("_usage_metrics")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `label=value,…`, then `owner`, `start` and `pushed` where they are not those of a good push of ours.
    fn group(text: &str) -> Group {
        let mut group = Group {
            push_time_seconds: 1000.0,
            run_start_seconds: Some(1000.0),
            owner: Some(owner("us")),
            ..Group::default()
        };
        for (name, value) in text.split(',').filter_map(|pair| pair.split_once('=')) {
            match name {
                "owner" => group.owner = (value != "none").then(|| owner(value)),
                "start" => group.run_start_seconds = value.parse().ok(),
                "pushed" => group.push_time_seconds = value.parse().expect("a number of the test"),
                _ => drop(group.labels.insert(name.to_owned(), value.to_owned())),
            }
        }
        group
    }

    fn owner(name: &str) -> Owner {
        Owner {
            cluster_uid: name.to_owned(),
            cronjob: "lp-exporter/lp-exporter".to_owned(),
        }
    }

    fn labels(cluster: Option<&str>) -> GroupingLabels {
        let cluster = cluster.map(|value| format!("cluster={value}").parse().expect("a label of the test"));
        GroupingLabels::new(cluster, []).expect("labels of the test")
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// `wanted` nodes are measured or kept since 500; `skipped` ones hold volumes that nobody measures.
    fn check(groups: &[&str], cluster: Option<&str>, wanted: &[&str], skipped: &[&str], expected: &[&str]) {
        let groups: Vec<Group> = groups.iter().map(|text| group(text)).collect();
        let ours = Ours {
            grouping_labels: &labels(cluster),
            owner: &owner("us"),
        };
        let wanted = set(wanted);
        let with_volumes = wanted.union(&set(skipped)).cloned().collect();
        let nodes = Nodes {
            with_volumes: &with_volumes,
            wanted: &wanted,
            kept_since_unix_seconds: 500.0,
        };
        let retired = groups_to_retire(&groups, ours, nodes);
        let told: Vec<String> = retired
            .iter()
            .map(|(key, why)| format!("{} {why:?}", key.path()))
            .collect();
        assert_eq!(told, expected, "{groups:?}");
    }

    #[test]
    fn retires_only_what_is_ours_and_gone() {
        let shared = [
            "job=lp-exporter-job,node=n1",
            "job=lp-exporter-job,node=n2",
            "job=lp-exporter-job,node=n3,owner=them",
            "job=lp-exporter-job,node=n1,cluster=a",
            "job=lp-exporter-job,node=n2,cluster=a",
            "job=lp-exporter-job,node=n2,cluster=b",
            "job=lp-exporter-job,node=n2,cluster=a,zone=z",
            "job=lp-exporter-job",
            "job=lp-exporter",
            "job=lp-exporter-run",
            "job=lp-exporter-success",
            "job=backup,node=n2",
            "job=lp-exporter,node=n2",
            "node=n2",
        ];
        let [node_1, node_2] = [
            "/metrics/job/lp-exporter-job/node/n1 NoVolumes",
            "/metrics/job/lp-exporter-job/node/n2 NoVolumes",
        ];
        check(&shared, None, &["n1", "n2"], &[], &[]);
        check(&shared, None, &["n1"], &[], &[node_2]);
        check(&shared, None, &["n1"], &["n2"], &[]);
        check(&shared, None, &[], &[], &[node_1, node_2]);
        check(
            &shared,
            Some("a"),
            &["n1"],
            &[],
            &["/metrics/job/lp-exporter-job/node/n2/cluster/a NoVolumes"],
        );
        check(&shared, Some("c"), &[], &[], &[]);
        check(&shared, Some(""), &[], &[], &[]);
        check(&[], None, &["n1"], &[], &[]);
        check(
            &["job=lp-exporter-job,node="],
            None,
            &["n1"],
            &[],
            &["/metrics/job/lp-exporter-job/node@base64/= NoVolumes"],
        );
        check(
            &["job=lp-exporter-job,node=n1/x"],
            None,
            &["n1"],
            &[],
            &["/metrics/job/lp-exporter-job/node@base64/bjEveA NoVolumes"],
        );
    }

    #[test]
    fn what_was_not_measured_for_long_goes() {
        let key = "/metrics/job/lp-exporter-job/node/n1";
        for (state, expected) in [
            ("start=500", None),
            ("start=499", Some("TooOld")),
            ("start=499,owner=them", None),
            // An older release says neither whose it is nor of which run.
            ("start=none,owner=none,pushed=499", None),
            ("start=none,pushed=499", Some("TooOld")),
            ("start=none,pushed=500", None),
            ("start=none,owner=none,pushed=0", Some("NeverPushed")),
            ("start=499,pushed=1000", Some("TooOld")),
            // By a clock that was wrong.
            ("start=9000,pushed=499", Some("TooOld")),
        ] {
            let expected: Vec<String> = expected.iter().map(|why| format!("{key} {why}")).collect();
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            check(
                &[&format!("job=lp-exporter-job,node=n1,{state}")],
                None,
                &["n1"],
                &[],
                &expected,
            );
        }
        // Nobody wants to measure it: a filter or a base path may be wrong, and age says nothing of it.
        check(&["job=lp-exporter-job,node=n1,start=1"], None, &[], &["n1"], &[]);
    }

    #[test]
    fn groups_of_others_where_ours_lie_are_found() {
        for (text, cluster, expected) in [
            ("job=lp-exporter", None, false),
            ("job=lp-exporter,owner=them", None, true),
            ("job=lp-exporter-run,owner=them", None, true),
            ("job=lp-exporter-success,owner=them", None, true),
            ("job=lp-exporter-job,node=n1,owner=them", None, true),
            ("job=lp-exporter-job,node=n1,owner=none", None, false),
            ("job=lp-exporter-job,node=n1,owner=none,pushed=0", None, false),
            ("job=lp-exporter,owner=them", Some("a"), false),
            ("job=lp-exporter,cluster=b,owner=them", Some("a"), false),
            ("job=lp-exporter,cluster=a,owner=them", Some("a"), true),
            ("job=lp-exporter,cluster=a,owner=them", None, false),
            ("job=backup,owner=them", None, false),
            // For Prometheus, an empty label is none.
            ("job=lp-exporter,cluster=,owner=them", None, true),
            ("job=lp-exporter-job,node=n1,owner=them", Some(""), true),
            ("job=lp-exporter-job,owner=them", None, false),
        ] {
            let groups = [group(text)];
            let ours = Ours {
                grouping_labels: &labels(cluster),
                owner: &owner("us"),
            };
            assert_eq!(
                !groups_of_others(&groups, ours).is_empty(),
                expected,
                "{text} for {cluster:?}"
            );
        }
    }

    #[test]
    fn groups_under_other_labels_are_found() {
        for (text, cluster, expected) in [
            ("job=lp-exporter", None, false),
            ("job=lp-exporter,cluster=a", None, true),
            ("job=lp-exporter-job,node=n1,cluster=a", None, true),
            ("job=lp-exporter-job,node=n1", Some("a"), true),
            ("job=lp-exporter-job,node=n1,cluster=a", Some("a"), false),
            ("job=lp-exporter-job,node=n1,cluster=a", Some("b"), true),
            ("job=lp-exporter-job,node=n1,cluster=a,owner=them", Some("b"), false),
            ("job=lp-exporter-job,node=n1,cluster=a,owner=none", Some("b"), false),
            ("job=lp-exporter-job,node=n1,cluster=a,pushed=0", Some("b"), false),
            ("job=backup,cluster=a", None, false),
        ] {
            let groups = [group(text)];
            let ours = Ours {
                grouping_labels: &labels(cluster),
                owner: &owner("us"),
            };
            let found = groups_left_behind(&groups, ours);
            assert_eq!(!found.is_empty(), expected, "{text} for {cluster:?}");
        }
    }

    #[test]
    fn jobs_that_are_known() {
        for (job, own, python) in [
            ("lp-exporter", true, false),
            ("lp-exporter-job", true, false),
            ("capacity_metrics", false, true),
            ("projectbeta", false, true),
            ("node-1_usage_metrics", false, true),
            ("backup", false, false),
            ("lp-exporter-job-2", false, false),
        ] {
            assert_eq!(
                (is_own_job(job), is_job_of_the_python_exporter(job)),
                (own, python),
                "{job}"
            );
        }
    }
}
