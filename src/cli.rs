//! The command line. Flags are parsed here into the plain configuration of each program, and nowhere else.
//!
//! Every flag has an environment variable `LP_EXPORTER_*`, which is how the manifests set it; the flag wins.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lp_measure::{Config, Rotating};

use crate::pushgateway::GroupingLabel;
use crate::summary::TERMINATION_MESSAGE_PATH;
use crate::volumes::collect::Collected;
use crate::volumes::selection::ScanNodes;
use crate::volumes::selector::Selector;

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

/// What stands below the list of commands.
const AFTER_HELP: &str = "\
Every flag of controller and worker has a variable LP_EXPORTER_*, which is how the manifests set it; that of a repeatable flag takes \
values with commas between.

Exit codes: 0 done, 1 unexpected, 2 bad arguments, settings, Job template or dump, 3 something has no number (measure, and the \
controller with --strict), 4 Kubernetes API, 5 Pushgateway, 6 plan of another version, 7 ended early.";

/// How full node-local Kubernetes volumes are, pushed to a Prometheus Pushgateway.
///
/// `controller` is one run over a cluster: it lists the volumes, pushes their capacities, and makes a Job on each node that
/// holds some. The Jobs run `worker`, which measures the volumes' directories and pushes what they use. `measure` does the
/// same for directories of this machine and shows the result. `plan` shows what `controller` would do. `retire` deletes what no run deletes.
#[derive(Parser)]
#[command(name = "lp-exporter", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The programs.
#[derive(Subcommand)]
pub enum Command {
    /// One run over the cluster: plan, measure every node, report
    Controller(Box<ControllerArguments>),
    /// Measure the volumes of one node: what the controller's Jobs run
    Worker(WorkerArguments),
    /// Measure directories of this machine, without a cluster
    Measure(MeasureArguments),
    /// Show what a run would do, without doing it; needs no cluster where there is a dump of one
    Plan(PlanArguments),
    /// Delete groups from the Pushgateway that no run deletes by itself: after an uninstall or a changed label
    Retire(RetireArguments),
}

/// What both programs need to push.
#[derive(Args, Clone)]
pub struct PushArguments {
    #[command(flatten)]
    /// The server.
    pub server: ServerArguments,

    /// A label for every grouping key, so that clusters can share a Pushgateway; repeatable
    #[arg(
        long = "grouping-label",
        env = "LP_EXPORTER_GROUPING_LABELS",
        value_name = "NAME=VALUE",
        value_delimiter = ','
    )]
    pub grouping_labels: Vec<GroupingLabel>,
}

/// How the Pushgateway is reached.
#[derive(Args, Clone)]
pub struct ServerArguments {
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

    /// A PEM file with a certificate of our own, for a Pushgateway that asks for one; read again for each connection
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_CLIENT_CERTIFICATE_FILE", value_name = "FILE")]
    pub pushgateway_client_certificate_file: Option<PathBuf>,

    /// A PEM file with the key of that certificate
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_CLIENT_KEY_FILE", value_name = "FILE")]
    pub pushgateway_client_key_file: Option<PathBuf>,

    /// The name that the Pushgateway's certificate has to be for, instead of the URL's host
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_SERVER_NAME", value_name = "NAME")]
    pub pushgateway_server_name: Option<String>,

    /// A file with the user for the Pushgateway's basic authentication; read again for each try
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE", value_name = "FILE")]
    pub pushgateway_username_file: Option<PathBuf>,

    /// A file with that user's password; read again for each try
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE", value_name = "FILE")]
    pub pushgateway_password_file: Option<PathBuf>,

    /// A file with a bearer token for the Pushgateway, instead of user and password; read again for each try
    #[arg(long, env = "LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE", value_name = "FILE")]
    pub pushgateway_bearer_token_file: Option<PathBuf>,

    /// How long a request to the Pushgateway is tried at most, within the deadlines of the run [default: 60s]
    #[arg(long, env = "LP_EXPORTER_PUSH_BUDGET", value_name = "DURATION", value_parser = parse_push_budget)]
    pub push_budget: Option<Duration>,
}

/// The flags of `retire`.
#[derive(Args)]
pub struct RetireArguments {
    #[command(flatten)]
    /// Where the groups are.
    pub server: ServerArguments,

    /// A label that a group has, in its key or as its owner (cluster_uid, cronjob); an empty value also matches its
    /// absence, and is taken only for a label that another group has, never for job, node or instance; repeatable: all have to match. Only groups of lp-exporter's own jobs ever match, and those of the Python
    /// exporter where its job is named
    #[arg(long = "match", value_name = "NAME=VALUE", required = true)]
    pub matches: Vec<GroupMatch>,

    /// Only tell what would be deleted
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    /// How to log.
    pub log: LogArguments,
}

/// A label that groups have to have.
#[derive(Clone, Debug)]
pub struct GroupMatch {
    /// Its name.
    pub name: String,
    /// Its value; empty also where there is none.
    pub value: String,
}

impl FromStr for GroupMatch {
    type Err = String;

    fn from_str(text: &str) -> Result<GroupMatch, String> {
        // Groups of every cluster lack one of these: what is meant is mostly a variable that is not set.
        const NEVER_EMPTY: [&str; 3] = ["job", "node", "instance"];
        match text.split_once('=') {
            Some((name, "")) if NEVER_EMPTY.contains(&name) => Err(format!(
                "{name} needs a value: without one it would match groups of every cluster"
            )),
            Some((name, value)) if !name.is_empty() => Ok(GroupMatch {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("write NAME=VALUE, as in cluster=west".to_owned()),
        }
    }
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

/// Which volumes and nodes are measured. Left out, every one that can be.
#[derive(Args, Clone)]
pub struct SelectionArguments {
    /// Measure volumes of this storage class only; repeatable
    #[arg(
        long = "storage-class",
        env = "LP_EXPORTER_STORAGE_CLASSES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub storage_classes: Vec<String>,

    /// Measure volumes of claims in this namespace only; repeatable
    #[arg(
        long = "claim-namespace",
        env = "LP_EXPORTER_CLAIM_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    pub claim_namespaces: Vec<String>,

    /// Measure volumes of claims with these labels only, written as for kubectl -l; given several times, all have to hold
    #[arg(long = "claim-selector", env = "LP_EXPORTER_CLAIM_SELECTOR", value_name = "SELECTOR")]
    pub claim_selectors: Vec<Selector>,

    /// Measure volumes on this node only; repeatable
    #[arg(long = "node", env = "LP_EXPORTER_NODES", value_name = "NODE", value_delimiter = ',')]
    pub nodes: Vec<String>,

    /// Measure this node only in this run, and leave what is known of the others as it is; repeatable
    #[arg(
        long = "only-node",
        env = "LP_EXPORTER_ONLY_NODES",
        value_name = "NODE",
        value_delimiter = ','
    )]
    pub only_nodes: Vec<String>,

    /// The nodes to visit: with-volumes, or all, which finds directories that no volume owns on the other nodes too
    #[arg(
        long,
        env = "LP_EXPORTER_SCAN_NODES",
        value_name = "WHICH",
        default_value = "with-volumes"
    )]
    pub scan_nodes: ScanNodes,

    /// Find the node of a volume that does not name one by the pods that mount its claim; needs the right to list pods of
    /// the whole cluster
    #[arg(long, env = "LP_EXPORTER_LOCATE_BY_PODS", value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true", default_value = "false", require_equals = true)]
    pub locate_by_pods: bool,
}

/// What is told of volumes and nodes.
#[derive(Args, Clone)]
pub struct TellingArguments {
    /// The families to collect: volumes, inodes, apparent, filesystems, orphans, facts; repeatable
    #[arg(
        long,
        env = "LP_EXPORTER_COLLECT",
        value_name = "FAMILIES",
        value_delimiter = ',',
        default_values = Collected::ALL.map(Collected::as_str)
    )]
    pub collect: Vec<Collected>,

    /// How old a directory has to be to count as one that no volume owns
    #[arg(long, env = "LP_EXPORTER_ORPHAN_AGE", value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub orphan_age: Duration,

    /// A label of the claims that is told with each volume's facts; repeatable
    #[arg(
        long = "claim-label",
        env = "LP_EXPORTER_CLAIM_LABELS",
        value_name = "KEY",
        value_delimiter = ','
    )]
    pub claim_labels: Vec<String>,
}

/// What decides which Jobs a run makes: `controller` makes them, `plan` shows them.
#[derive(Args)]
pub struct PlanningArguments {
    /// A directory on the nodes below which volumes lie; repeatable
    #[arg(
        long = "base-path",
        env = "LP_EXPORTER_BASE_PATHS",
        value_name = "DIRECTORY",
        value_delimiter = ',',
        default_values = DEFAULT_BASE_PATHS
    )]
    pub base_paths: Vec<String>,

    #[command(flatten)]
    /// What to measure.
    pub selection: SelectionArguments,

    #[command(flatten)]
    /// What to tell.
    pub telling: TellingArguments,

    /// The time between two runs, as the CronJob's schedule has it; every deadline follows from it
    #[arg(long, env = "LP_EXPORTER_INTERVAL", value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// A YAML file with the template of the workers' Jobs, instead of the one that is compiled in
    #[arg(long, env = "LP_EXPORTER_JOB_TEMPLATE", value_name = "FILE")]
    pub job_template: Option<PathBuf>,

    /// The image of the workers; that of the controller's own pod, unless given
    #[arg(long, env = "LP_EXPORTER_WORKER_IMAGE", value_name = "IMAGE")]
    pub worker_image: Option<String>,

    /// The namespace of the workers' Jobs; the pod's or the kubeconfig's own, unless given
    #[arg(long, env = "LP_EXPORTER_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// The controller's flags.
#[derive(Args)]
pub struct ControllerArguments {
    #[command(flatten)]
    /// Where to push.
    pub push: PushArguments,

    #[command(flatten)]
    /// What to plan from, and what the workers are to be.
    pub planning: PlanningArguments,

    /// How many workers may run at once
    #[arg(long, env = "LP_EXPORTER_PARALLEL_JOBS", value_name = "COUNT", default_value = "50", value_parser = parse_jobs)]
    pub parallel_jobs: NonZeroUsize,

    /// How many runs a node's last numbers stay when it cannot be measured
    #[arg(long, env = "LP_EXPORTER_KEEP_RUNS", value_name = "COUNT", default_value = "12")]
    pub keep_runs: NonZeroU32,

    /// End with code 3 when a node or a node-local volume was left without a number
    #[arg(long, env = "LP_EXPORTER_STRICT", value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true", default_value = "false", require_equals = true)]
    pub strict: bool,

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

    /// The longest time that the worker waits before it begins, chosen at random, so that nodes with shared storage do not
    /// begin together
    #[arg(long, env = "LP_EXPORTER_START_DELAY_MAX", value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    pub start_delay_max: Duration,

    #[command(flatten)]
    /// How fast to measure.
    pub pace: PaceArguments,

    #[command(flatten)]
    /// How to log.
    pub log: LogArguments,
}

/// The flags of `measure`.
#[derive(Args)]
pub struct MeasureArguments {
    /// The directories to measure
    // An empty path is told like any other that cannot be measured, instead of keeping the others from it.
    #[arg(required = true, value_name = "PATH", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub paths: Vec<PathBuf>,

    /// A table for people, one JSON document, or Prometheus' text format
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,

    /// Name the N largest directories inside each path
    #[arg(long, value_name = "N", default_value = "0")]
    pub top: usize,

    /// The time for all paths together; what is not done then has no number
    #[arg(long, value_name = "DURATION", value_parser = parse_budget)]
    pub time_budget: Option<Duration>,

    #[command(flatten)]
    /// How fast to measure.
    pub pace: PaceArguments,

    #[command(flatten)]
    /// How to log.
    pub log: LogArguments,
}

/// How the result of `measure` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people
    Table,
    /// One JSON document
    Json,
    /// Prometheus' text format
    Prometheus,
}

/// The flags of `plan`.
#[derive(Args)]
pub struct PlanArguments {
    #[command(flatten)]
    /// What to plan from, and what the workers are to be.
    pub planning: PlanningArguments,

    /// Plan from what `kubectl get pv,pvc,nodes,storageclasses -A -o json` wrote, instead of the live cluster; - is
    /// standard input
    #[arg(long, value_name = "DUMP")]
    pub from_file: Option<PathBuf>,

    /// A table for people, one JSON document, the Jobs and ConfigMaps as YAML, or a part of Prometheus' configuration
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub output: PlanFormat,

    /// Replace each name by another, the same one wherever it stands, so that the output can be given to others
    #[arg(long)]
    pub redact: bool,

    /// The Pushgateway's URL, as the Jobs are to have it; nothing is asked of it
    #[arg(
        long,
        env = "LP_EXPORTER_PUSHGATEWAY_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub pushgateway_url: Option<String>,

    /// A label for every grouping key, as the Jobs are to have it; repeatable
    #[arg(
        long = "grouping-label",
        env = "LP_EXPORTER_GROUPING_LABELS",
        value_name = "NAME=VALUE",
        value_delimiter = ',',
        requires = "pushgateway_url"
    )]
    pub grouping_labels: Vec<GroupingLabel>,

    #[command(flatten)]
    /// How to log.
    pub log: LogArguments,
}

/// How a plan is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// A table for people
    Table,
    /// One JSON document
    Json,
    /// The Jobs and ConfigMaps that a run would make
    Yaml,
    /// What makes Prometheus drop kubelet's numbers of claims of local volumes, which are those of the whole disk
    KubeletRelabeling,
}

/// How fast and how gently to measure. Left out, `measure` runs at full speed, and the worker as gently as it can.
#[derive(Args, Clone)]
pub struct PaceArguments {
    /// The most threads that read at once, 1 to 64; fewer run while nothing blocks them [default: measure 16, worker 2]
    #[arg(long, env = "LP_EXPORTER_THREADS", value_name = "COUNT", value_parser = parse_threads)]
    pub threads: Option<NonZeroUsize>,

    /// The most entries to look at in a second, 0 for no limit [default: measure 0, worker 100000]
    #[arg(long, env = "LP_EXPORTER_ENTRIES_PER_SECOND", value_name = "COUNT")]
    pub entries_per_second: Option<u64>,

    /// The time for each volume; one that is not done then has no number [default: none]
    #[arg(long, env = "LP_EXPORTER_VOLUME_BUDGET", value_name = "DURATION", value_parser = parse_budget)]
    pub volume_budget: Option<Duration>,

    /// Run in the idle I/O class and at the lowest processor priority [default: measure false, worker true]
    #[arg(long, env = "LP_EXPORTER_LOW_PRIORITY", value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub low_priority: Option<bool>,

    /// Pause while others wait for the disk, where the kernel tells [default: measure false, worker true]
    #[arg(long, env = "LP_EXPORTER_PAUSE_UNDER_PRESSURE", value_name = "BOOLEAN", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub pause_under_pressure: Option<bool>,

    /// Whether the disk has a head that moves, which is then spared; auto asks the kernel [default: auto]
    #[arg(long, env = "LP_EXPORTER_ROTATING", value_name = "WHETHER")]
    pub rotating: Option<RotatingDisk>,
}

/// Whether a disk has a head that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RotatingDisk {
    /// Ask the kernel
    Auto,
    /// It has one
    Yes,
    /// It has none
    No,
}

/// More threads than this only wait for each other.
const THREADS_MAX: usize = 64;

fn parse_jobs(text: &str) -> Result<NonZeroUsize, String> {
    text.parse::<NonZeroUsize>()
        .map_err(|_| "it has to be a whole number of at least 1".to_owned())
}

fn parse_budget(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("in no time nothing can be measured".to_owned()),
        Ok(budget) => Ok(budget),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_push_budget(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("in no time nothing can be pushed".to_owned()),
        Ok(budget) => Ok(budget),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text
        .parse::<NonZeroUsize>()
        .map_err(|_| format!("it has to be a whole number from 1 to {THREADS_MAX}"))?;
    if threads.get() > THREADS_MAX {
        return Err(format!("more than {THREADS_MAX} threads only wait for each other"));
    }
    Ok(threads)
}

impl PaceArguments {
    /// The given configuration, with what these flags say.
    pub fn change(&self, config: Config) -> Config {
        let PaceArguments {
            threads,
            entries_per_second,
            volume_budget,
            low_priority,
            pause_under_pressure,
            rotating,
        } = self;
        let pressure_file = match pause_under_pressure {
            Some(true) => Config::gentle().pressure_file,
            Some(false) => None,
            None => config.pressure_file.clone(),
        };
        let rotating = match rotating {
            Some(RotatingDisk::Auto) => Rotating::Auto,
            Some(RotatingDisk::Yes) => Rotating::Yes,
            Some(RotatingDisk::No) => Rotating::No,
            None => config.rotating,
        };
        Config {
            threads_max: threads.unwrap_or(config.threads_max),
            entries_per_second: entries_per_second.unwrap_or(config.entries_per_second),
            volume_budget: volume_budget.or(config.volume_budget),
            low_priority: low_priority.unwrap_or(config.low_priority),
            pressure_file,
            rotating,
            ..config
        }
    }
}
