//! The command line. Flags are parsed here into the plain configuration of each program, and nowhere else.
//!
//! Every flag has an environment variable `LP_EXPORTER_*`, which is how the manifests set it; the flag wins.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::pushgateway::GroupingLabel;
use crate::summary::TERMINATION_MESSAGE_PATH;

/// The base directories that the makers of node-local volumes use, if nothing else is given: local-path-provisioner; k3s;
/// kind, Talos and Docker Desktop; OpenEBS LocalPV hostpath; MicroK8s; minikube; the static provisioner. A long list costs
/// nothing: a worker mounts only those that the volumes of its node lie below.
pub const DEFAULT_BASE_PATHS: [&str; 7] = [
    "/opt/local-path-provisioner",
    "/var/lib/rancher/k3s/storage",
    "/var/local-path-provisioner",
    "/var/openebs/local",
    "/var/snap/microk8s/common/default-storage",
    "/tmp/hostpath-provisioner",
    "/mnt/disks",
];

/// How full node-local Kubernetes volumes are, pushed to a Prometheus Pushgateway.
///
/// `controller` is one run over a cluster: it lists the volumes, pushes their capacities, and makes a Job on each node that
/// holds some. The Jobs run `worker`, which measures the volumes' directories and pushes what they use.
#[derive(Parser)]
#[command(name = "lp-exporter", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The programs.
#[derive(Subcommand)]
pub enum Command {
    /// One run over the cluster: plan, measure every node, report
    Controller(ControllerArguments),
    /// Measure the volumes of one node: what the controller's Jobs run
    Worker(WorkerArguments),
}

/// What both programs need to push.
#[derive(Args, Clone)]
pub struct PushArguments {
    /// The Pushgateway's URL; may have a path prefix, and user and password
    #[arg(
        long,
        env = "LP_EXPORTER_PUSHGATEWAY_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub pushgateway_url: String,

    /// A PEM file with the certificates that vouch for the Pushgateway, instead of the system's
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_CA_FILE", value_name = "FILE")]
    pub pushgateway_ca_file: Option<PathBuf>,

    /// A label for every grouping key, so that clusters can share a Pushgateway; repeatable
    #[arg(
        long = "grouping-label",
        env = "LP_EXPORTER_GROUPING_LABELS",
        value_name = "NAME=VALUE",
        value_delimiter = ','
    )]
    pub grouping_labels: Vec<GroupingLabel>,
}

/// How both programs log.
#[derive(Args, Clone, Copy)]
pub struct LogArguments {
    /// The least important messages to show
    #[arg(long, env = "LP_EXPORTER_LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// Lines for people, or JSON for machines; both go to standard error
    #[arg(long, env = "LP_EXPORTER_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How important a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What kept the program from its work
    Error,
    /// What it left out
    Warn,
    /// What it did
    Info,
    /// Every step
    Debug,
}

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// The controller's flags.
#[derive(Args)]
pub struct ControllerArguments {
    #[command(flatten)]
    /// Where to push.
    pub push: PushArguments,

    /// A directory on the nodes below which volumes lie; repeatable
    #[arg(
        long = "base-path",
        env = "LP_EXPORTER_BASE_PATHS",
        value_name = "DIRECTORY",
        value_delimiter = ',',
        default_values = DEFAULT_BASE_PATHS
    )]
    pub base_paths: Vec<String>,

    /// The time between two runs, as the CronJob's schedule has it; every deadline follows from it
    #[arg(long, env = "LP_EXPORTER_INTERVAL", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// How many workers may run at once
    #[arg(long, env = "LP_EXPORTER_PARALLEL_JOBS", value_name = "COUNT", default_value = "50")]
    pub parallel_jobs: NonZeroUsize,

    /// A YAML file with the template of the workers' Jobs, instead of the one that is compiled in
    #[arg(long, env = "LP_EXPORTER_JOB_TEMPLATE", value_name = "FILE")]
    pub job_template: Option<PathBuf>,

    /// The image of the workers; that of the controller's own pod, unless given
    #[arg(long, env = "LP_EXPORTER_WORKER_IMAGE", value_name = "IMAGE")]
    pub worker_image: Option<String>,

    /// End with code 3 when a node or a node-local volume was left without a number
    #[arg(long, env = "LP_EXPORTER_STRICT", value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true", default_value = "false", require_equals = true)]
    pub strict: bool,

    /// The namespace of the workers' Jobs; the pod's or the kubeconfig's own, unless given
    #[arg(long, env = "LP_EXPORTER_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// The name of the pod that this runs in (the downward API tells it); without one, it runs outside of the cluster
    #[arg(long, env = "LP_EXPORTER_POD_NAME", value_name = "POD")]
    pub pod_name: Option<String>,

    #[command(flatten)]
    /// How to log.
    pub log: LogArguments,
}

/// The worker's flags.
#[derive(Args)]
pub struct WorkerArguments {
    /// The plan of this node, as the controller wrote it
    #[arg(long, env = "LP_EXPORTER_PLAN", value_name = "FILE")]
    pub plan: PathBuf,

    /// Where the summary for the controller goes, if that file exists
    #[arg(long, env = "LP_EXPORTER_TERMINATION_MESSAGE", value_name = "FILE", default_value = TERMINATION_MESSAGE_PATH)]
    pub termination_message: PathBuf,

    #[command(flatten)]
    /// Where to push.
    pub push: PushArguments,

    #[command(flatten)]
    /// How to log.
    pub log: LogArguments,
}
