//! What the environment says about the cluster. Everything comes from there, so that any cluster will do.

use std::env;

/// The settings of this test.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The image under test, present on every node.
    pub(crate) image: String,
    /// An image with busybox's shell, present on every node.
    pub(crate) busybox_image: String,
    /// The Pushgateway's image; what the manifests name if it is not set.
    pub(crate) pushgateway_image: Option<String>,
    /// Prometheus' image, whose entry point is the server.
    pub(crate) prometheus_image: String,
    /// A command that runs what follows the node's name as root on that node.
    pub(crate) node_exec: NodeCommand,
    /// A command that cuts a node off from the cluster.
    pub(crate) node_stop: NodeCommand,
    /// A command that brings a node back.
    pub(crate) node_start: NodeCommand,
    /// A command that makes a node believe that its disk is full (`on`), and lets it recover (`off`).
    pub(crate) disk_pressure: NodeCommand,
    /// Leave everything as it is at the end, to look at it or to run one step again.
    pub(crate) keep: bool,
    /// What cannot be tested here is a failure.
    pub(crate) require_all: bool,
}

/// A command of the environment to which a node's name, and more, is appended.
#[derive(Debug, Clone)]
pub(crate) struct NodeCommand {
    /// The environment variable that gives it.
    pub(crate) variable: &'static str,
    /// Its words, if it is set.
    pub(crate) words: Option<Vec<String>>,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// Says what is missing without which nothing can be tested.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let missing: Vec<_> = ["KUBECONFIG", "LP_EXPORTER_TEST_IMAGE"]
            .into_iter()
            .filter(|name| value(name).is_none())
            .collect();
        if !missing.is_empty() {
            return Err(format!(
                "{} not set: they name a cluster and an image of this program that its nodes have",
                missing.join(" and ")
            ));
        }
        Ok(Self {
            image: value("LP_EXPORTER_TEST_IMAGE").unwrap_or_default(),
            busybox_image: value("LP_EXPORTER_TEST_BUSYBOX_IMAGE").unwrap_or("docker.io/library/busybox:latest".into()),
            pushgateway_image: value("LP_EXPORTER_TEST_PUSHGATEWAY_IMAGE"),
            prometheus_image: value("LP_EXPORTER_TEST_PROMETHEUS_IMAGE")
                .unwrap_or("docker.io/prom/prometheus:v3.5.3".into()),
            node_exec: NodeCommand::from_environment("LP_EXPORTER_TEST_NODE_EXEC"),
            node_stop: NodeCommand::from_environment("LP_EXPORTER_TEST_NODE_STOP"),
            node_start: NodeCommand::from_environment("LP_EXPORTER_TEST_NODE_START"),
            disk_pressure: NodeCommand::from_environment("LP_EXPORTER_TEST_DISK_PRESSURE"),
            keep: is_set("LP_EXPORTER_TEST_KEEP"),
            require_all: require_all(),
        })
    }
}

/// Whether what cannot be tested here is a failure.
pub(crate) fn require_all() -> bool {
    is_set("LP_EXPORTER_TEST_REQUIRE_ALL")
}

impl NodeCommand {
    fn from_environment(variable: &'static str) -> Self {
        Self {
            variable,
            words: value(variable).map(|words| words.split_whitespace().map(str::to_owned).collect()),
        }
    }
}

fn is_set(name: &str) -> bool {
    value(name).is_some_and(|value| value == "1")
}

fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
