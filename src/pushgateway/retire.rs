//! Which groups on the Pushgateway have outlived their node.
//!
//! Pure. A Pushgateway never forgets, so whoever pushes must delete; and it may be shared, so only what is certainly
//! ours is deleted.

use std::collections::BTreeSet;

use super::group::{GroupingKey, GroupingLabels};
use super::list::Group;

/// The keys of those among `groups` that our workers pushed for nodes which are not in `nodes_with_volumes` (names of
/// nodes). Ours are the groups of our workers' job with a node and exactly our extra labels with our values, so that
/// groups of other programs and of other clusters are never among them.
///
/// Call it only with the nodes of a complete list of volumes: what is missing there is deleted here.
#[must_use]
pub fn groups_to_retire(
    groups: &[Group],
    grouping_labels: &GroupingLabels,
    nodes_with_volumes: &BTreeSet<String>,
) -> Vec<GroupingKey> {
    let outlived = |key: &GroupingKey| {
        key.worker_node(grouping_labels)
            .is_some_and(|node| !nodes_with_volumes.contains(node))
    };
    groups
        .iter()
        .filter_map(|group| GroupingKey::from_labels(&group.labels))
        .filter(outlived)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(labels: &str) -> Group {
        let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
        let labels = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Group {
            labels,
            push_time_seconds: 1.0,
            timed_out_volumes: Vec::new(),
        }
    }

    fn check(groups: &[&str], cluster: Option<&str>, nodes: &[&str], expected: &[&str]) {
        let groups: Vec<Group> = groups.iter().map(|labels| group(labels)).collect();
        let cluster = cluster.map(|value| format!("cluster={value}").parse().expect("a label of the test"));
        let grouping_labels = GroupingLabels::new(cluster, []).expect("labels of the test");
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        let retired = groups_to_retire(&groups, &grouping_labels, &nodes);
        let paths: Vec<String> = retired.iter().map(GroupingKey::path).collect();
        assert_eq!(paths, expected, "{groups:?}");
    }

    #[test]
    fn retires_only_what_is_ours_and_gone() {
        let shared = [
            "job=lp-exporter-job,node=n1",
            "job=lp-exporter-job,node=n2",
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
            "/metrics/job/lp-exporter-job/node/n1",
            "/metrics/job/lp-exporter-job/node/n2",
        ];
        check(&shared, None, &["n1", "n2"], &[]);
        check(&shared, None, &["n1"], &[node_2]);
        check(&shared, None, &[], &[node_1, node_2]);
        check(
            &shared,
            Some("a"),
            &["n1"],
            &["/metrics/job/lp-exporter-job/node/n2/cluster/a"],
        );
        check(&shared, Some("c"), &[], &[]);
        check(&shared, Some(""), &[], &[]);
        check(&[], None, &["n1"], &[]);
        check(
            &["job=lp-exporter-job,node="],
            None,
            &["n1"],
            &["/metrics/job/lp-exporter-job/node@base64/="],
        );
        check(
            &["job=lp-exporter-job,node=n1/x"],
            None,
            &["n1"],
            &["/metrics/job/lp-exporter-job/node@base64/bjEveA"],
        );
    }
}
