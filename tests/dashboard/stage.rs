//! Nodes with directories, the API server that knows them, and real runs of the controller over both.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::api_server::ApiServer;
use crate::support::kubelet::Kubelet;
use crate::support::objects::{self, Volume};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lp-exporter");
const OWN_JOB: &str = "lp-exporter-29000000";
/// Longer than a run takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Stage {
    server: ApiServer,
    folder: TempDir,
}

impl Stage {
    pub(crate) async fn new(nodes: &[&str]) -> Stage {
        let stage = Stage {
            server: ApiServer::start().await,
            folder: tempfile::tempdir().expect("a temporary directory"),
        };
        for object in objects::controller_of_cronjob(OWN_JOB, "registry.example/lp-exporter:1") {
            stage.put(object);
        }
        let path = |name: &str| stage.folder.path().join(name);
        let kubelet = Kubelet::new(Path::new(PROGRAM), &path("workers"));
        let kubelet = nodes
            .iter()
            .fold(kubelet, |kubelet, node| kubelet.node(node, &path(node)));
        kubelet.attach(&stage.server);
        for name in nodes {
            stage.put(objects::node(name));
        }
        stage
    }

    pub(crate) fn put(&self, object: Value) {
        self.server.put(object);
    }

    /// Waits until what was written is old enough to be an orphan: the second that runs here ask for, and one more, because
    /// times of files may be told in whole seconds.
    pub(crate) async fn age(&self) {
        tokio::time::sleep(Duration::from_millis(2200)).await;
    }

    /// One run, pushed to a Pushgateway with the grouping label `cluster`, if it has a value.
    pub(crate) async fn run(&self, pushgateway_url: &str, cluster: Option<&str>) {
        let kubeconfig = self.folder.path().join("kubeconfig");
        fs::write(&kubeconfig, self.server.kubeconfig("lp-exporter")).expect("the kubeconfig can be written");
        let run = Command::new(PROGRAM)
            .args(["controller", "--pushgateway-url", pushgateway_url, "--orphan-age", "1s"])
            .args(["--base-path", "/opt/local-path-provisioner", "--base-path", "/data1"])
            .args(cluster.map(|name| format!("--grouping-label=cluster={name}")))
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("LP_EXPORTER_NAMESPACE", "lp-exporter")
            .env("LP_EXPORTER_POD_NAME", format!("{OWN_JOB}-pod"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let ended = tokio::time::timeout(PATIENCE, run).await;
        let ended = ended.expect("the controller ends").expect("it can be started");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Writes a file, at a path below the folder of all nodes or a whole one.
    pub(crate) fn write(&self, path: &str, size_bytes: u64) {
        let path = self.folder.path().join(path);
        let parent = path.parent().expect("a file lies in a directory");
        fs::create_dir_all(parent).expect("the directory can be made");
        fs::write(path, vec![7; size_bytes as usize]).expect("the file can be written");
    }

    /// Where a volume's directory lies on its node.
    pub(crate) fn directory(&self, volume: &Volume) -> PathBuf {
        let root = self.folder.path().join(&volume.node);
        root.join(volume.path.trim_start_matches('/'))
    }
}
