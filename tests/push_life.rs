//! The life of what is pushed: two clusters and a stranger on one real Pushgateway, and random runs in which nodes and
//! volumes come and go, a list cannot be read as a whole, pushes are refused and numbers get old. After each run the groups
//! are exactly those that they should be, and hold the numbers that they should hold.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lp_exporter::pushgateway::Pushgateway;
use lp_exporter::pushgateway::retire::Outlived;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;
use support::api_server::ApiServer;
use support::kubelet::Kubelet;
use support::objects::{self, Volume, controller_of_cronjob, set_condition};
use support::real_pushgateway::{Server, plain_config, pushgateways};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lp-exporter");
const NAMESPACE: &str = "lp-exporter";
const OWN_JOB: &str = "lp-exporter-29000000";
const BASE: &str = "/opt/local-path-provisioner";
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const CLUSTERS: [&str; 2] = ["east", "west"];
/// Of both clusters, on each server.
const RUNS: usize = 100;
const BUDGET: Duration = Duration::from_secs(20);

/// On each node.
const VOLUMES: usize = 2;
const REQUEST: &str = "1Gi";
const REQUEST_BYTES: u64 = 1 << 30;
/// Longer than numbers of nodes that are not measured are kept: an hour.
const OLD: Duration = Duration::from_secs(3601);
/// The series by which the age of a group's numbers is told.
const STARTED: &str = "lp_exporter_run_start_timestamp_seconds";

type Labels = BTreeMap<String, String>;
/// The groups, and in each the bytes of volumes, by their names: capacities in one, what is used in the others.
type Groups = BTreeMap<Labels, BTreeMap<String, u64>>;

/// What happens in a cluster before its next run.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    /// This volume comes, or goes, on the node of that number.
    Volume(usize, usize),
    /// What is in the volume grows.
    Grow(usize, usize),
    /// The node comes or goes; its volumes stay.
    Node(usize),
    /// The node stops to be Ready, or is again.
    Ready(usize),
    /// A volume that cannot be read is listed, or is not any more.
    Unreadable,
    /// A push for the node is refused.
    Refused(usize),
    /// The node stops to be Ready, and what its group holds was pushed by a run long ago.
    Old(usize),
    /// The Pushgateway forgets everything.
    Forget,
}

fn changes() -> impl Strategy<Value = (usize, Change)> {
    let node = 0..NODES.len();
    let volume = || (0..NODES.len(), 0..VOLUMES);
    let change = prop_oneof![
        1 => Just(Change::Nothing),
        6 => volume().prop_map(|(node, volume)| Change::Volume(node, volume)),
        3 => volume().prop_map(|(node, volume)| Change::Grow(node, volume)),
        2 => node.clone().prop_map(Change::Node),
        4 => node.clone().prop_map(Change::Ready),
        2 => Just(Change::Unreadable),
        2 => node.clone().prop_map(Change::Refused),
        4 => node.prop_map(Change::Old),
        1 => Just(Change::Forget),
    ];
    (0..CLUSTERS.len(), change)
}

/// A cluster, and what has to be on the Pushgateway of it.
struct Cluster {
    label: &'static str,
    server: ApiServer,
    folder: TempDir,
    volumes: [[bool; VOLUMES]; NODES.len()],
    is_there: [bool; NODES.len()],
    is_ready: [bool; NODES.len()],
    is_readable: bool,
    expected: Groups,
    /// Those of them that hold old numbers.
    old: BTreeSet<Labels>,
}

impl Cluster {
    async fn new(label: &'static str) -> Cluster {
        let server = ApiServer::start().await;
        let folder = tempfile::tempdir().expect("a temporary directory");
        assert!(server.delete("namespaces", "", "kube-system"));
        server.put(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "kube-system", "uid": format!("uid-of-{label}")},
        }));
        for object in controller_of_cronjob(OWN_JOB, "registry.example/lp-exporter:1") {
            server.put(object);
        }
        let mut kubelet = Kubelet::new(Path::new(PROGRAM), &folder.path().join("workers"));
        for node in NODES {
            let root = folder.path().join(node);
            std::fs::create_dir_all(root.join(BASE.trim_start_matches('/'))).expect("a directory");
            kubelet = kubelet.node(node, &root);
        }
        kubelet.attach(&server);
        let cluster = Cluster {
            label,
            server,
            folder,
            volumes: [[false; VOLUMES]; NODES.len()],
            is_there: [true; NODES.len()],
            is_ready: [true; NODES.len()],
            is_readable: true,
            expected: Groups::new(),
            old: BTreeSet::new(),
        };
        (0..NODES.len()).for_each(|number| cluster.put_node(number));
        cluster
    }

    async fn change(&mut self, change: &Change, pushgateway: &Server) {
        match *change {
            Change::Nothing | Change::Forget => {}
            Change::Volume(number, slot) => {
                let volume = volume(number, slot);
                let directory = self.directory(&volume);
                self.volumes[number][slot] = !self.volumes[number][slot];
                if self.volumes[number][slot] {
                    // Without those whose controllers would let them go.
                    for mut object in [volume.persistent_volume(), volume.claim()] {
                        object["metadata"]["finalizers"] = json!([]);
                        self.server.put(object);
                    }
                    std::fs::create_dir(&directory).expect("a directory");
                    grow(&directory);
                } else {
                    let deleted = self.server.delete("persistentvolumes", "", &volume.persistentvolume);
                    assert!(
                        deleted
                            && self
                                .server
                                .delete("persistentvolumeclaims", &volume.namespace, &volume.claim)
                    );
                    std::fs::remove_dir_all(&directory).expect("a directory");
                }
            }
            Change::Grow(number, slot) => {
                if self.volumes[number][slot] {
                    grow(&self.directory(&volume(number, slot)));
                }
            }
            Change::Node(number) => {
                self.is_there[number] = !self.is_there[number];
                if self.is_there[number] {
                    self.put_node(number);
                } else {
                    assert!(self.server.delete("nodes", "", NODES[number]));
                }
            }
            Change::Ready(number) => {
                self.is_ready[number] = !self.is_ready[number];
                if self.is_there[number] {
                    self.put_node(number);
                }
            }
            Change::Unreadable => {
                let mut volume = Volume::local_path("node-9", "shop", "strange", REQUEST).persistent_volume();
                volume["metadata"]["finalizers"] = json!([]);
                volume["spec"]["accessModes"] = 7.into();
                let name = volume["metadata"]["name"].as_str().map(str::to_owned).expect("a name");
                self.is_readable = !self.is_readable;
                if self.is_readable {
                    assert!(self.server.delete("persistentvolumes", "", &name));
                } else {
                    self.server.put(volume);
                }
            }
            Change::Refused(number) => {
                let path = format!(
                    "/metrics/job/lp-exporter-job/node/{}/cluster/{}",
                    NODES[number], self.label
                );
                // It has no type where strangers have it.
                let reply = put(
                    pushgateway,
                    &path,
                    "# TYPE strangers_value counter\nstrangers_value 1\n",
                )
                .await;
                assert!(reply.starts_with("HTTP/1.0 400"), "{reply}");
                let key = self.key("lp-exporter-job", Some(NODES[number]));
                self.expected.entry(key).or_default();
            }
            Change::Old(number) => {
                let key = self.key("lp-exporter-job", Some(NODES[number]));
                if self.expected.get(&key).is_some_and(|bytes| !bytes.is_empty()) {
                    let body = aged(&metrics(pushgateway).await, &key);
                    let path = format!(
                        "/metrics/job/lp-exporter-job/node/{}/cluster/{}",
                        NODES[number], self.label
                    );
                    let reply = put(pushgateway, &path, &body).await;
                    assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
                    self.old.insert(key);
                }
                self.is_ready[number] = false;
                if self.is_there[number] {
                    self.put_node(number);
                }
            }
        }
    }

    fn directory(&self, volume: &Volume) -> PathBuf {
        self.folder
            .path()
            .join(&volume.node)
            .join(volume.path.trim_start_matches('/'))
    }

    fn put_node(&self, number: usize) {
        let mut node = objects::node(NODES[number]);
        if !self.is_ready[number] {
            set_condition(&mut node, "Ready", "Unknown");
        }
        self.server.put(node);
    }

    async fn run(&mut self, pushgateway: &str) -> Output {
        let kubeconfig = self.folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.server.kubeconfig(NAMESPACE)).expect("a file");
        let ended = Command::new(PROGRAM)
            .args(["controller", "--grouping-label", &format!("cluster={}", self.label)])
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("LP_EXPORTER_PUSHGATEWAY_URL", pushgateway)
            .env("LP_EXPORTER_NAMESPACE", NAMESPACE)
            .env("LP_EXPORTER_POD_NAME", format!("{OWN_JOB}-pod"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("the program starts");
        self.expect_after_a_run();
        ended
    }

    fn expect_after_a_run(&mut self) {
        let there = |number: &usize| self.is_there[*number];
        let capacities = (0..NODES.len())
            .filter(there)
            .flat_map(|number| self.volumes_of(number));
        let capacities = capacities
            .map(|volume| (volume.persistentvolume, REQUEST_BYTES))
            .collect();
        self.expected.insert(self.key("lp-exporter", None), capacities);
        for job in ["lp-exporter-run", "lp-exporter-success"] {
            self.expected.insert(self.key(job, None), BTreeMap::new());
        }
        for (number, node) in NODES.into_iter().enumerate() {
            let key = self.key("lp-exporter-job", Some(node));
            let volumes = self.volumes_of(number);
            let is_wanted = !volumes.is_empty() && self.is_there[number];
            let is_outlived =
                !is_wanted || self.old.contains(&key) || self.expected.get(&key).is_some_and(BTreeMap::is_empty);
            if is_wanted && self.is_ready[number] {
                let used = volumes.into_iter().map(|volume| {
                    let used = used_bytes(&self.directory(&volume));
                    (volume.persistentvolume, used)
                });
                self.expected.insert(key.clone(), used.collect());
                self.old.remove(&key);
            } else if is_outlived && self.is_readable {
                self.expected.remove(&key);
                self.old.remove(&key);
            }
        }
    }

    fn volumes_of(&self, number: usize) -> Vec<Volume> {
        let slots = (0..VOLUMES).filter(|slot| self.volumes[number][*slot]);
        slots.map(|slot| volume(number, slot)).collect()
    }

    fn key(&self, job: &str, node: Option<&str>) -> Labels {
        labels(&[("job", Some(job)), ("node", node), ("cluster", Some(self.label))])
    }
}

fn labels(pairs: &[(&str, Option<&str>)]) -> Labels {
    pairs
        .iter()
        .filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.to_owned())))
        .collect()
}

/// What others have there: another program, one that uses our job's name, an older release without a label, and the Python
/// exporter.
const STRANGERS: [&str; 4] = [
    "/metrics/job/backup/node/node-1",
    "/metrics/job/lp-exporter-job/node/node-1",
    "/metrics/job/lp-exporter-job/node/node-9/cluster/north",
    "/metrics/job/node-1_usage_metrics",
];

fn volume(number: usize, slot: usize) -> Volume {
    Volume::local_path(NODES[number], "shop", &format!("data-{number}-{slot}"), REQUEST)
}

/// One more file, larger than all before it.
fn grow(directory: &Path) {
    let count = std::fs::read_dir(directory).expect("a directory").count();
    std::fs::write(directory.join(count.to_string()), vec![1; 5000 << count.min(8)]).expect("a file");
}

/// The directory and the files in it.
fn used_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).expect("a directory");
    let files = files.map(|file| file.expect("a file").path());
    let blocks = files
        .chain([directory.to_owned()])
        .map(|path| path.metadata().expect("a file").blocks());
    blocks.sum::<u64>() * 512
}

/// What a group holds, but of a run that began long ago.
fn aged(metrics: &[Sample], key: &Labels) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    let of_group = metrics
        .iter()
        .filter(|sample| sample.is_of(key) && !sample.name.starts_with("push_"));
    let mut body = String::new();
    let mut last = "";
    for sample in of_group {
        if sample.name != last {
            body += &format!("# TYPE {} gauge\n", sample.name);
            last = &sample.name;
        }
        body += &match sample.name.as_str() {
            STARTED => format!("{STARTED} {}\n", (now - OLD).as_secs_f64()),
            _ => sample.line.clone() + "\n",
        };
    }
    body
}

/// A line of what the server shows.
struct Sample {
    line: String,
    name: String,
    labels: Labels,
    value: f64,
}

impl Sample {
    /// Labels of these tests hold neither quotation marks nor commas.
    fn parse(line: &str) -> Option<Sample> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.trim_end_matches('}').split_once('{')?;
        let labels = labels.split(',').filter_map(|pair| pair.split_once('='));
        let labels = labels.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()));
        Some(Sample {
            line: line.to_owned(),
            name: name.to_owned(),
            labels: labels.collect(),
            value: value.parse().ok()?,
        })
    }

    fn is_of(&self, key: &Labels) -> bool {
        GROUPING.iter().all(|name| self.labels.get(*name) == key.get(*name)) || {
            // The capacities are of all nodes.
            key["job"] == "lp-exporter"
                && ["job", "cluster"]
                    .iter()
                    .all(|name| self.labels.get(*name) == key.get(*name))
        }
    }
}

/// What keys are made of.
const GROUPING: [&str; 3] = ["job", "node", "cluster"];

async fn metrics(server: &Server) -> Vec<Sample> {
    let reply = server.metrics().await;
    let lines = reply.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(Sample::parse).collect()
}

async fn put(server: &Server, path: &str, body: &str) -> String {
    let request = format!("PUT {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(server.address).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("a reply");
    reply
}

async fn push_strangers(server: &Server) -> Groups {
    for path in STRANGERS {
        let reply = put(server, path, "strangers_value 1\n").await;
        assert!(reply.starts_with("HTTP/1.0 200"), "{path}: {reply}");
    }
    [
        labels(&[("job", Some("backup")), ("node", Some("node-1"))]),
        labels(&[("job", Some("lp-exporter-job")), ("node", Some("node-1"))]),
        labels(&[
            ("job", Some("lp-exporter-job")),
            ("node", Some("node-9")),
            ("cluster", Some("north")),
        ]),
        labels(&[("job", Some("node-1_usage_metrics"))]),
    ]
    .map(|key| (key, BTreeMap::new()))
    .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_exactly_those_that_they_should_be() {
    let binaries = pushgateways();
    for binary in &binaries {
        let mut runner = TestRunner::deterministic();
        let runs = prop::collection::vec(changes(), RUNS);
        let runs = runs.new_tree(&mut runner).expect("a value").current();
        let mut server = Server::start(binary, &[]).await;
        let mut strangers = push_strangers(&server).await;
        let mut clusters = [Cluster::new(CLUSTERS[0]).await, Cluster::new(CLUSTERS[1]).await];
        let mut all_said = String::new();
        for (number, (at, change)) in runs.iter().enumerate() {
            clusters[*at].change(change, &server).await;
            if matches!(change, Change::Forget) {
                let address = server.address;
                drop(server);
                server = Server::start_at(binary, address, &[]).await;
                strangers = push_strangers(&server).await;
                for cluster in &mut clusters {
                    cluster.expected.clear();
                    cluster.old.clear();
                }
            }
            let ended = clusters[*at].run(&server.url()).await;
            let said = String::from_utf8_lossy(&ended.stderr);
            let state = &clusters[*at];
            let place = format!(
                "run {number} of {binary:?} in {}, after {change:?}, volumes {:?}, nodes {:?}, ready {:?}, readable {}:\n{said}",
                state.label, state.volumes, state.is_there, state.is_ready, state.is_readable
            );
            assert_eq!(ended.status.code(), Some(0), "{place}");
            let expected: Groups = clusters
                .iter()
                .flat_map(|cluster| cluster.expected.clone())
                .chain(strangers.clone())
                .collect();
            assert_eq!(groups(&server).await, expected, "{place}");
            all_said += &said;
        }
        for why in [Outlived::NoVolumes, Outlived::NeverPushed, Outlived::TooOld] {
            assert!(
                all_said.contains(&why.to_string()),
                "no run retired a group because {why}"
            );
        }
    }
}

async fn groups(server: &Server) -> Groups {
    let config = plain_config(&server.url(), BUDGET);
    let pushgateway = Pushgateway::new(config).expect("a client");
    let groups = pushgateway.groups(BUDGET).await.expect("a list");
    let metrics = metrics(server).await;
    let keys = groups.into_iter().map(|group| {
        let labels = group.labels.into_iter();
        labels.filter(|(name, _)| name != "instance").collect::<Labels>()
    });
    keys.map(|key| {
        let of_group = metrics.iter().filter(|sample| sample.is_of(&key));
        let bytes = of_group.filter(|sample| BYTES.contains(&sample.name.as_str()));
        let bytes = bytes.map(|sample| (sample.labels["persistentvolume"].clone(), sample.value as u64));
        let bytes = bytes.collect();
        (key, bytes)
    })
    .collect()
}

/// What is compared of a group.
const BYTES: [&str; 2] = ["local_volume_stats_capacity_bytes", "local_volume_stats_used_bytes"];
