//! `lp-exporter retire`: takes groups away that no run takes away by itself.
//!
//! A run deletes only what is certainly its own. What an uninstall, a changed grouping label, a cluster that was made anew,
//! or the Python exporter that came before left behind, a person has to name.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use thiserror::Error;
use tracing::{error, info, warn};

use crate::cli::{GroupMatch, RetireArguments};
use crate::exit::Exit;
use crate::owner::Owner;
use crate::pushgateway::retire::{is_job_of_the_python_exporter, is_own_job};
use crate::pushgateway::{Cause, Group, GroupingKey, PushError, Pushgateway};
use crate::runtime::block_on;
use crate::text::one_line;
use crate::worker::{pushgateway_at, unix_seconds};

/// So much of a label that somebody else wrote is shown.
const TEXT_MAX_CHARS: usize = 200;

/// Deletes the groups that match, or only tells them.
pub fn main(arguments: RetireArguments) -> Exit {
    let RetireArguments {
        server,
        matches,
        dry_run,
        log: _,
    } = arguments;
    let pushgateway = match pushgateway_at(server) {
        Ok(pushgateway) => pushgateway,
        Err(error) => {
            error!("{error:#}");
            return Exit::BadConfiguration;
        }
    };
    match block_on(retire(&pushgateway, &matches, dry_run)) {
        Ok(Ok(true)) => Exit::Done,
        Ok(Ok(false)) => Exit::Pushgateway,
        Ok(Err(error)) => {
            error!("{error}");
            match error {
                RetireError::Push(_) => Exit::Pushgateway,
                RetireError::MatchesAll(_) => Exit::BadConfiguration,
            }
        }
        Err(error) => {
            error!("could not start: {error}");
            Exit::Unexpected
        }
    }
}

/// Why nothing was deleted.
#[derive(Debug, Error)]
enum RetireError {
    /// The Pushgateway did not tell what it holds.
    #[error(transparent)]
    Push(#[from] PushError),
    /// A label that is to be missing is missing everywhere: its name is mistyped, or some variable is empty.
    #[error(
        "--match {0}= would match every group of lp-exporter, for none has the label {0}; nothing is deleted: name a label \
         that some of them have, or a value"
    )]
    MatchesAll(String),
}

/// Returns whether everything that matches is gone.
async fn retire(pushgateway: &Pushgateway, matches: &[GroupMatch], dry_run: bool) -> Result<bool, RetireError> {
    // For each request, with all its tries.
    let budget = pushgateway.budget_max();
    let groups = pushgateway.groups(budget).await?;
    if let Some(name) = matching_all(&groups, matches) {
        return Err(RetireError::MatchesAll(one_line(name, TEXT_MAX_CHARS)));
    }
    let found = matching(&groups, matches);
    let mut deleted = 0;
    for (key, group) in &found {
        let told = describe(key, group);
        if dry_run {
            show(&format!("would delete {told}"));
            continue;
        }
        match pushgateway.delete(key, budget).await {
            Ok(()) => {
                deleted += 1;
                show(&format!("deleted {told}"));
            }
            Err(error) => {
                error!("{error}");
                // A server that does not answer for so long does not do so for the next group either.
                if !matches!(error.cause, Cause::Refused { .. }) {
                    break;
                }
            }
        }
    }
    let left = if dry_run { 0 } else { found.len() - deleted };
    if found.is_empty() {
        let is_own = |group: &&Group| GroupingKey::from_labels(&group.labels).is_some_and(|key| is_own_job(key.job()));
        let own = groups.iter().filter(is_own).count();
        warn!(
            "no group matches: of {} groups on the Pushgateway, {own} are of lp-exporter",
            groups.len()
        );
    } else if dry_run {
        info!("groups that match: {}; nothing was deleted", found.len());
    } else {
        info!("groups that were deleted: {deleted}, that are left: {left}");
    }
    Ok(left == 0)
}

/// On standard output. Where nobody reads it any more, the rest is done all the same.
fn show(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// The groups of our jobs, and of the Python exporter's where one is named, which have all these labels, in their key or as
/// their owner.
fn matching<'g>(groups: &'g [Group], matches: &[GroupMatch]) -> Vec<(GroupingKey, &'g Group)> {
    let has_all = |group: &Group| {
        let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
        if let Some(owner) = &group.owner {
            labels.insert("cluster_uid", &owner.cluster_uid);
            labels.insert("cronjob", &owner.cronjob);
        }
        labels.extend(group.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        matches
            .iter()
            .all(|wanted| labels.get(wanted.name.as_str()).copied().unwrap_or_default() == wanted.value)
    };
    known(groups, matches).filter(|(_, group)| has_all(group)).collect()
}

/// The groups that may be deleted at all.
fn known<'g>(groups: &'g [Group], matches: &[GroupMatch]) -> impl Iterator<Item = (GroupingKey, &'g Group)> {
    let names_job = matches.iter().any(|wanted| wanted.name == "job");
    let is_known = move |job: &str| is_own_job(job) || (names_job && is_job_of_the_python_exporter(job));
    groups
        .iter()
        .filter_map(|group| Some((GroupingKey::from_labels(&group.labels)?, group)))
        .filter(move |(key, _)| is_known(key.job()))
}

/// The label that is to be missing, if there is one, and that no group has. That of an owner may be missing everywhere:
/// groups that do not say whose they are have to be named somehow.
fn matching_all<'m>(groups: &[Group], matches: &'m [GroupMatch]) -> Option<&'m str> {
    let mut missing = matches
        .iter()
        .filter(|wanted| wanted.value.is_empty())
        .map(|wanted| wanted.name.as_str())
        .filter(|name| !Owner::LABELS.contains(name));
    let is_nowhere = |name: &&str| {
        let mut known = known(groups, matches).peekable();
        known.peek().is_some() && !known.any(|(_, group)| group.labels.contains_key(*name))
    };
    missing.find(is_nowhere)
}

fn describe(key: &GroupingKey, group: &Group) -> String {
    let age = if group.push_time_seconds > 0.0 {
        let seconds = (unix_seconds() - group.push_time_seconds).max(0.0).round();
        format!(
            "pushed {} ago",
            humantime::format_duration(Duration::from_secs_f64(seconds))
        )
    } else {
        "never pushed".to_owned()
    };
    let owner = match &group.owner {
        Some(owner) => format!(", of {owner}"),
        None => String::new(),
    };
    one_line(&format!("{}: {age}{owner}", key.path()), 3 * TEXT_MAX_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::Owner;

    fn groups() -> [Group; 6] {
        let group = |labels: &str, owner: Option<&str>| Group {
            labels: labels
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            owner: owner.map(|uid| Owner {
                cluster_uid: uid.to_owned(),
                cronjob: "ns/name".to_owned(),
            }),
            ..Group::default()
        };
        [
            group("job=lp-exporter,cluster=a", Some("1")),
            group("job=lp-exporter-job,node=n,cluster=a", Some("1")),
            group("job=lp-exporter-job,node=n", None),
            group("job=projectbeta", None),
            group("job=n_usage_metrics,cluster_uid=1", None),
            group("job=backup,cluster=a,region=west", Some("1")),
        ]
    }

    fn parsed(matches: &[&str]) -> Vec<GroupMatch> {
        matches
            .iter()
            .map(|text| text.parse().expect("a match of the test"))
            .collect()
    }

    fn check(matches: &[&str], expected: &[&str]) {
        let (groups, matches) = (groups(), parsed(matches));
        let found = matching(&groups, &matches);
        let paths: Vec<String> = found.iter().map(|(key, _)| key.path()).collect();
        assert_eq!(paths, expected, "{matches:?}");
    }

    #[test]
    fn only_known_jobs_with_every_label_match() {
        let [controller, worker] = [
            "/metrics/job/lp-exporter/cluster/a",
            "/metrics/job/lp-exporter-job/node/n/cluster/a",
        ];
        let [bare, python] = ["/metrics/job/lp-exporter-job/node/n", "/metrics/job/projectbeta"];
        check(&["cluster=a"], &[controller, worker]);
        check(&["cluster=a", "node=n"], &[worker]);
        check(&["cluster="], &[bare]);
        check(&["cluster_uid=1"], &[controller, worker]);
        check(&["cluster_uid=1", "cronjob=ns/name"], &[controller, worker]);
        check(&["job=projectbeta"], &[python]);
        check(
            &["job=n_usage_metrics"],
            &["/metrics/job/n_usage_metrics/cluster_uid/1"],
        );
        check(&["job=backup"], &[]);
        check(&["cluster=b"], &[]);
    }

    /// A mistyped name and a variable that is not set are missing everywhere.
    #[test]
    fn a_label_that_no_group_has_cannot_be_missing() {
        let check = |groups: &[Group], matches: &[&str], expected: Option<&str>| {
            assert_eq!(matching_all(groups, &parsed(matches)), expected, "{matches:?}");
        };
        let groups = groups();
        check(&groups, &["clustr="], Some("clustr"));
        check(&groups, &["cluster=a", "clustr="], Some("clustr"));
        check(&groups, &["cluster="], None);
        check(&groups, &["clustr=a"], None);
        // A stranger's group has it, and is not asked.
        check(&groups, &["region="], Some("region"));
        // Some groups of ours do not say whose they are, or none does.
        check(&groups, &["cluster_uid="], None);
        check(&groups[2..3], &["cluster_uid=", "cronjob="], None);
        check(&groups[2..3], &["cluster="], Some("cluster"));
        // Where there is nothing of ours, that is what is said.
        check(&groups[5..], &["clustr="], None);
        check(&[], &["clustr="], None);
        // With a job of the Python exporter its groups count too.
        check(&groups[3..4], &["job=projectbeta", "cluster="], Some("cluster"));
    }

    #[test]
    fn what_every_cluster_has_needs_a_value() {
        for (text, is_taken) in [
            ("job=", false),
            ("node=", false),
            ("instance=", false),
            ("=x", false),
            ("x", false),
            ("node=n", true),
            ("cluster=", true),
            ("cluster=a=b", true),
        ] {
            assert_eq!(text.parse::<GroupMatch>().is_ok(), is_taken, "{text}");
        }
    }
}
