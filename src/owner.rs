//! Whose the groups on a Pushgateway are.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

/// Who pushes a group: written into each, so that nobody takes or overwrites what another one pushed under the same key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The uid of the namespace kube-system: it is there as long as its cluster is, and no two clusters have the same.
    #[serde(default)]
    pub cluster_uid: String,
    /// Namespace and name of the CronJob, with a slash between them.
    #[serde(default)]
    pub cronjob: String,
}

impl Owner {
    /// The family whose one series says whose a group is.
    pub const FAMILY: &str = "lp_exporter_owner_info";
    /// The labels of that series.
    pub const LABELS: &[&str] = &["cluster_uid", "cronjob"];
}

impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Owner { cluster_uid, cronjob } = self;
        write!(f, "the CronJob {cronjob} of the cluster {cluster_uid}")
    }
}
