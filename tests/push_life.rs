//! The life of what is pushed: two clusters and a stranger on one real Pushgateway, and random runs in which nodes and
//! volumes come and go. After each run the groups are exactly those that they should be.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use lp_exporter::pushgateway::{Pushgateway, PushgatewayConfig};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;
use support::api_server::ApiServer;
use support::kubelet::Kubelet;
use support::objects::{self, Volume, controller_of_cronjob, set_condition};
use support::real_pushgateway::{Server, pushgateways};
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

type Labels = BTreeMap<String, String>;

/// What happens in a cluster before its next run.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    /// A volume comes, or goes, on the node of this number.
    Volume(usize),
    /// The node comes or goes; its volumes stay.
    Node(usize),
    /// The node stops to be Ready, or is again.
    Ready(usize),
    /// The Pushgateway forgets everything.
    Forget,
}

fn changes() -> impl Strategy<Value = (usize, Change)> {
    let node = 0..NODES.len();
    let change = prop_oneof![
        1 => Just(Change::Nothing),
        6 => node.clone().prop_map(Change::Volume),
        3 => node.clone().prop_map(Change::Node),
        3 => node.prop_map(Change::Ready),
        1 => Just(Change::Forget),
    ];
    (0..CLUSTERS.len(), change)
}

/// A cluster, and what has to be on the Pushgateway of it.
struct Cluster {
    label: &'static str,
    server: ApiServer,
    folder: TempDir,
    volumes: [bool; NODES.len()],
    is_there: [bool; NODES.len()],
    is_ready: [bool; NODES.len()],
    expected: BTreeSet<Labels>,
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
        Cluster {
            label,
            server,
            folder,
            volumes: [false; NODES.len()],
            is_there: [false; NODES.len()],
            is_ready: [true; NODES.len()],
            expected: BTreeSet::new(),
        }
    }

    fn change(&mut self, change: &Change) {
        match *change {
            Change::Nothing | Change::Forget => {}
            Change::Volume(number) => {
                let volume = Volume::local_path(NODES[number], "shop", &format!("data-{number}"), "1Gi");
                self.volumes[number] = !self.volumes[number];
                if self.volumes[number] {
                    // Without those whose controllers would let them go.
                    for mut object in [volume.persistent_volume(), volume.claim()] {
                        object["metadata"]["finalizers"] = json!([]);
                        self.server.put(object);
                    }
                } else {
                    let name = volume.persistent_volume()["metadata"]["name"]
                        .as_str()
                        .map(str::to_owned);
                    let name = name.expect("a volume has a name");
                    assert!(self.server.delete("persistentvolumes", "", &name));
                    assert!(
                        self.server
                            .delete("persistentvolumeclaims", "shop", &format!("data-{number}"))
                    );
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
        }
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
        for job in ["lp-exporter", "lp-exporter-run", "lp-exporter-success"] {
            self.expected.insert(self.key(job, None));
        }
        for (number, node) in NODES.into_iter().enumerate() {
            let key = self.key("lp-exporter-job", Some(node));
            if !self.volumes[number] || !self.is_there[number] {
                self.expected.remove(&key);
            } else if self.is_ready[number] {
                self.expected.insert(key);
            }
        }
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

async fn push_strangers(server: &Server) -> BTreeSet<Labels> {
    for path in STRANGERS {
        let body = "strangers_value 1\n";
        let request = format!("PUT {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(server.address).await.expect("a connection");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("a reply");
        assert!(reply.starts_with("HTTP/1.0 200"), "{path}: {reply}");
    }
    BTreeSet::from([
        labels(&[("job", Some("backup")), ("node", Some("node-1"))]),
        labels(&[("job", Some("lp-exporter-job")), ("node", Some("node-1"))]),
        labels(&[
            ("job", Some("lp-exporter-job")),
            ("node", Some("node-9")),
            ("cluster", Some("north")),
        ]),
        labels(&[("job", Some("node-1_usage_metrics"))]),
    ])
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
        for (number, (at, change)) in runs.iter().enumerate() {
            clusters[*at].change(change);
            if matches!(change, Change::Forget) {
                let address = server.address;
                drop(server);
                server = Server::start_at(binary, address, &[]).await;
                strangers = push_strangers(&server).await;
                clusters.iter_mut().for_each(|cluster| cluster.expected.clear());
            }
            let ended = clusters[*at].run(&server.url()).await;
            let said = String::from_utf8_lossy(&ended.stderr);
            let state = &clusters[*at];
            let place = format!(
                "run {number} of {binary:?} in {}, after {change:?}, volumes {:?}, nodes {:?}, ready {:?}:\n{said}",
                state.label, state.volumes, state.is_there, state.is_ready
            );
            assert_eq!(ended.status.code(), Some(0), "{place}");
            let expected: BTreeSet<Labels> = clusters
                .iter()
                .flat_map(|cluster| cluster.expected.clone())
                .chain(strangers.clone())
                .collect();
            assert_eq!(groups(&server).await, expected, "{place}");
        }
    }
}

async fn groups(server: &Server) -> BTreeSet<Labels> {
    let config = PushgatewayConfig {
        url: server.url(),
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        server_name: None,
        username_file: None,
        password_file: None,
        bearer_token_file: None,
        request_timeout: BUDGET,
        budget_max: BUDGET,
    };
    let pushgateway = Pushgateway::new(config).expect("a client");
    let groups = pushgateway.groups(BUDGET).await.expect("a list");
    groups
        .into_iter()
        .map(|group| {
            group
                .labels
                .into_iter()
                .filter(|(name, _)| name != "instance")
                .collect()
        })
        .collect()
}
