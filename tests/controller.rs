//! Runs of the real controller against a scripted API server and Pushgateway: what is in the cluster and what goes wrong,
//! against exit code, words, requests, and what is pushed.
//!
//! Each scenario is a [`Case`]; those that need to act while the run is under way follow as tests of their own.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use support::api_server::{Answer, ApiServer, Refusal, Right, Rule};
use support::kubelet::{Fate, Kubelet, pinned_to};
use support::objects::{self, Volume, controller_of_cronjob, set_condition};
use support::pushgateway::{Fault, Labels, Pushgateway};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lp-exporter");
const NAMESPACE: &str = "lp-exporter";
/// The Job that the controllers here are part of.
const OWN_JOB: &str = "lp-exporter-29000000";
const IMAGE: &str = "registry.example/lp-exporter:1";
/// The base directories of the two storage classes.
const BASES: [&str; 4] = ["--base-path", "/opt/local-path-provisioner", "--base-path", "/data1"];
/// Longer than any run here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// activeDeadlineSeconds of a run whose clock is to run out: the 24 s that the program takes at least, with the shortest
/// interval, and what its start takes on a busy machine.
const SHORT_DEADLINE_SECONDS: u64 = 28;

/// All that the controller may do: what the manifests grant it.
fn rights() -> Vec<Right> {
    rights_in(include_str!("../manifests/base/rbac.yaml"))
}

/// What the component for `--locate-by-pods` grants on top.
fn rights_to_locate() -> Vec<Right> {
    rights_in(include_str!("../manifests/components/locate-by-pods/rbac.yaml"))
}

fn rights_in(manifest: &str) -> Vec<Right> {
    let objects = serde_yaml::Deserializer::from_str(manifest).map(Value::deserialize);
    let objects = objects.map(|object| object.expect("the manifest is YAML"));
    objects.flat_map(|object| Right::of_role(&object, NAMESPACE)).collect()
}

/// A cluster of three nodes, each with one volume, and a Pushgateway.
struct Stage {
    server: ApiServer,
    gateway: Pushgateway,
    kubelet: Option<Kubelet>,
    folder: TempDir,
    /// Given to the controller in the place of the stand-in's.
    pushgateway_url: Option<String>,
    in_cluster: bool,
    /// What the controller may do.
    rights: Vec<Right>,
}

impl Stage {
    async fn new() -> Stage {
        let server = ApiServer::start().await;
        let gateway = Pushgateway::start().await;
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let kubelet = Kubelet::new(Path::new(PROGRAM), &folder.path().join("workers"));
        for object in controller_of_cronjob(OWN_JOB, IMAGE) {
            server.put(object);
        }
        server.restrict_to(rights());
        let mut stage = Stage {
            server,
            gateway,
            kubelet: Some(kubelet),
            folder,
            pushgateway_url: None,
            in_cluster: true,
            rights: rights(),
        };
        for node in ["node-1", "node-2", "node-3"] {
            stage.add_node(node);
        }
        stage.add(&Volume::local_path("node-1", "shop", "data", "1Gi"));
        stage.add(&Volume::local_path_data1("node-2", "shop", "data-1", "5G"));
        stage.add(&Volume::local_path("node-3", "ops", "data", "100M"));
        stage
    }

    /// Adds a node that is Ready.
    fn add_node(&mut self, name: &str) {
        self.server.put(objects::node(name));
        let root = self.folder.path().join(name);
        self.kubelet = self.kubelet.take().map(|kubelet| kubelet.node(name, &root));
    }

    /// Adds a volume with its claim and its directory, in which a file of one block lies.
    fn add(&self, volume: &Volume) {
        let directory = self.directory(volume);
        std::fs::create_dir_all(&directory).expect("the directory can be made");
        std::fs::write(directory.join("file"), [1; 4096]).expect("the file can be written");
        self.server.put(volume.persistent_volume());
        self.server.put(volume.claim());
    }

    fn directory(&self, volume: &Volume) -> PathBuf {
        self.folder
            .path()
            .join(&volume.node)
            .join(volume.path.trim_start_matches('/'))
    }

    /// Lets the controller list the pods of the whole cluster.
    fn let_it_locate(&mut self) {
        self.rights.extend(rights_to_locate());
        self.server.restrict_to(self.rights.clone());
    }

    /// Changes an object of the cluster, which has to be there.
    fn change(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let is_there = self.server.update(resource, namespace, name, change);
        assert!(is_there, "there is no {resource} {namespace}/{name}");
    }

    /// Says what becomes of the node's next Job.
    fn fate(&mut self, node: &str, fate: Fate) {
        self.kubelet = self.kubelet.take().map(|kubelet| kubelet.fate(node, fate));
    }

    /// Gives the controller's own Job so short a deadline that its clock runs out soon.
    fn short_deadline(&mut self) {
        self.server.update("jobs", NAMESPACE, OWN_JOB, |job| {
            job["spec"]["activeDeadlineSeconds"] = SHORT_DEADLINE_SECONDS.into();
        });
    }

    /// Starts a controller as the CronJob would.
    fn start(&mut self, arguments: &[&str]) -> Child {
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.attach(&self.server);
        }
        let kubeconfig = self.folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.server.kubeconfig(NAMESPACE)).expect("the kubeconfig can be written");
        let mut command = Command::new(PROGRAM);
        command
            .arg("controller")
            .args(BASES)
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env(
                "LP_EXPORTER_PUSHGATEWAY_URL",
                self.pushgateway_url.clone().unwrap_or_else(|| self.gateway.url()),
            );
        if self.in_cluster {
            command
                .env("LP_EXPORTER_NAMESPACE", NAMESPACE)
                .env("LP_EXPORTER_POD_NAME", format!("{OWN_JOB}-pod"));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts")
    }

    async fn run(&mut self, arguments: &[&str]) -> Ended {
        let child = self.start(arguments);
        end_of(child).await
    }

    /// Requests of a verb on a resource.
    fn requests(&self, verb: &str, resource: &str) -> usize {
        let requests = self.server.requests();
        requests
            .iter()
            .filter(|request| request.verb == verb && request.resource == resource)
            .count()
    }

    /// The names of the nodes that Jobs were made for, one for each Job.
    fn jobs_made(&self) -> Vec<String> {
        let requests = self.server.requests();
        let made = requests
            .iter()
            .filter(|request| request.verb == "create" && request.resource == "jobs");
        made.map(|request| pinned_to(&request.body)).collect()
    }

    /// The workers' Jobs that are there.
    fn jobs(&self) -> Vec<Value> {
        let is_worker = |job: &Value| job["metadata"]["labels"]["app.kubernetes.io/component"] == "worker";
        self.server.objects("jobs").into_iter().filter(is_worker).collect()
    }

    fn lease(&self) -> Value {
        self.server
            .object("leases", NAMESPACE, "lp-exporter")
            .unwrap_or_default()
    }
}

/// How a controller ended.
struct Ended {
    code: i32,
    /// Everything that it wrote.
    said: String,
    took: Duration,
}

async fn end_of(child: Child) -> Ended {
    let began = Instant::now();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let Output { status, stdout, stderr } = output.expect("the controller ends").expect("its output can be read");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr)
    );
    Ended {
        code: status.code().unwrap_or(-1),
        said,
        took: began.elapsed(),
    }
}

/// A sample: metric, some of its labels, and its value, or `None` where there must be none.
type Expected = (&'static str, &'static [(&'static str, &'static str)], Option<f64>);

/// One run: what is prepared, and what has to come of it.
struct Case {
    prepare: fn(&mut Stage),
    arguments: &'static [&'static str],
    code: i32,
    /// Each has to be in what the controller writes.
    says: &'static [&'static str],
    samples: &'static [Expected],
    /// The nodes that Jobs are made for, in the order of their names, once for each; `None` where chance decides.
    jobs_made: Option<&'static [&'static str]>,
    /// The nodes whose Jobs stay.
    jobs_left: &'static [&'static str],
    /// Whether the groups with the report and with the success are pushed.
    pushes: (bool, bool),
    /// What else has to hold.
    check: fn(&Stage, &Ended),
}

const ALL: &[&str] = &["node-1", "node-2", "node-3"];

/// A run in which all goes well.
const WELL: Case = Case {
    prepare: |_stage| {},
    arguments: &[],
    code: 0,
    says: &[],
    samples: &[],
    jobs_made: Some(ALL),
    jobs_left: &[],
    pushes: (true, true),
    check: |_stage, _ended| {},
};

/// A run that ends before it has pushed anything or made any Job.
const EARLY: Case = Case {
    jobs_made: Some(&[]),
    pushes: (false, false),
    ..WELL
};

async fn check(case: Case) {
    let Case {
        prepare,
        arguments,
        code,
        says,
        samples,
        jobs_made,
        jobs_left,
        pushes,
        check,
    } = case;
    let mut stage = Stage::new().await;
    prepare(&mut stage);
    let ended = stage.run(arguments).await;
    let said = &ended.said;
    assert_eq!(ended.code, code, "exit code:\n{said}");
    for words in says {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    for (metric, labels, value) in samples {
        let found = stage.gateway.samples(metric);
        assert_eq!(
            stage.gateway.value(metric, labels),
            *value,
            "{metric} {labels:?} in {found:#?}\n{said}"
        );
    }
    let mut made = stage.jobs_made();
    made.sort();
    if let Some(jobs_made) = jobs_made {
        assert_eq!(made, jobs_made, "Jobs made:\n{said}");
    }
    let left: Vec<String> = stage.jobs().iter().map(pinned_to).collect();
    assert_eq!(left, jobs_left, "Jobs left:\n{said}");
    let is_pushed = |job| stage.gateway.group(&[("job", job)]).is_some();
    assert_eq!(
        (is_pushed("lp-exporter-run"), is_pushed("lp-exporter-success")),
        pushes,
        "pushed:\n{said}"
    );
    check_manners(&stage, said);
    check(&stage, &ended);
}

/// What every run keeps to, however it ends.
fn check_manners(stage: &Stage, said: &str) {
    for group in stage.gateway.group_labels() {
        let pushes = group_of(stage, &group).pushes;
        assert!(pushes <= 1, "{group:?} was pushed {pushes} times:\n{said}");
    }
    for request in stage.server.requests() {
        let (verb, resource) = (&request.verb, &request.resource);
        let allowed = stage
            .rights
            .iter()
            .any(|right| right.allows(verb, resource, &request.namespace, &request.name));
        assert!(
            allowed,
            "{} {} is beyond its rights:\n{said}",
            request.verb, request.path
        );
        if request.verb == "delete" {
            assert_eq!(request.body["propagationPolicy"], "Background", "{}", request.path);
        }
    }
    let maps: BTreeSet<String> = stage.server.objects("configmaps").iter().map(name).collect();
    let jobs: BTreeSet<String> = stage.jobs().iter().map(name).collect();
    assert!(
        maps.is_subset(&jobs),
        "ConfigMaps without their Jobs: {maps:?}, {jobs:?}"
    );
    check_sum(stage, said);
    let holder = stage.lease()["spec"]["holderIdentity"].clone();
    assert_ne!(
        holder,
        format!("uid-of-{OWN_JOB}"),
        "the Lease was not released:\n{said}"
    );
}

/// Every volume that was listed is measured, on a node that was not, or left out for a reason: exactly.
fn check_sum(stage: &Stage, said: &str) {
    if said.contains("/metrics/job/lp-exporter failed") {
        // Nobody says how many there are.
        return;
    }
    let is_pushed = |job| stage.gateway.group(&[("job", job)]).is_some();
    if !is_pushed("lp-exporter-run") {
        return;
    }
    let sum = |metric| -> f64 { stage.gateway.samples(metric).iter().map(|sample| sample.value).sum() };
    let parts = [
        SKIPPED,
        "lp_exporter_volumes_measured",
        "lp_exporter_volumes_node_not_measured",
    ]
    .map(sum);
    assert_eq!(sum(LISTED), parts.iter().sum::<f64>(), "{parts:?}:\n{said}");
    let node_local = sum(LISTED)
        - stage
            .gateway
            .value(SKIPPED, &[("reason", "not_node_local")])
            .unwrap_or(0.0);
    let told = stage.gateway.samples(INFO).len() as f64;
    assert!(
        told == node_local || told == 0.0,
        "{told} of {node_local} have facts:\n{said}"
    );
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn group_of(stage: &Stage, labels: &Labels) -> support::pushgateway::Group {
    let labels: Vec<(&str, &str)> = labels
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    stage.gateway.group(&labels).expect("the group was listed")
}

/// Names a test for each case.
macro_rules! scenarios {
    ($($(#[$about:meta])* $name:ident: $case:expr;)+) => {
        $(
            $(#[$about])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                check($case).await;
            }
        )+
    };
}

/// 253 characters.
const LONGEST_NODE: &str = "a-node-whose-name-is-as-long-as-a-name-can-be.rack-0123456789.row-0123456789.room-0123456789.\
    building-0123456789.site-0123456789.region-0123456789.continent-0123456789.planet-0123456789.system-0123456789.\
    galaxy-0123456789.universe-0123456789.example.com";

const USED: &str = "local_volume_stats_used_bytes";
const INFO: &str = "local_volume_info";
const NOT_SCANNED: &str = "lp_exporter_node_not_scanned";
const NODE_VOLUMES: &str = "lp_exporter_volumes_node_not_measured";
const CAPACITY: &str = "local_volume_stats_capacity_bytes";
const SKIPPED: &str = "lp_exporter_volumes_skipped";
const SCAN_STATE: &str = "local_volume_scan_state";
const NOT_MEASURED: &str = "lp_exporter_node_not_measured";
const MEASURED: &str = "lp_exporter_node_measured";
const LISTED: &str = "lp_exporter_volumes_listed";

// A run in which nothing, or only little, goes wrong.
scenarios! {
    everything_is_measured: Case {
        samples: &[
            // A file of one block and its directory.
            (USED, &[("namespace", "shop"), ("persistentvolumeclaim", "data"), ("node", "node-1")], Some(8192.0)),
            (USED, &[("namespace", "shop"), ("persistentvolumeclaim", "data-1"), ("node", "node-2")], Some(8192.0)),
            (USED, &[("namespace", "ops"), ("persistentvolumeclaim", "data"), ("node", "node-3")], Some(8192.0)),
            (CAPACITY, &[("persistentvolumeclaim", "data-1")], Some(5e9)),
            (CAPACITY, &[("namespace", "ops"), ("storageclass", "local-path")], Some(1e8)),
            (LISTED, &[], Some(3.0)),
            ("lp_exporter_run_complete", &[], Some(1.0)),
            ("lp_exporter_interval_seconds", &[], Some(300.0)),
            (MEASURED, &[("node", "node-2")], Some(1.0)),
        ],
        check: |stage, ended| {
            let groups = stage.gateway.group_labels();
            assert_eq!(groups.len(), 6, "{groups:?}");
            assert!(stage.server.objects("pods").iter().all(|pod| name(pod) == format!("{OWN_JOB}-pod")));
            let starts = stage.gateway.samples("lp_exporter_run_start_timestamp_seconds");
            let times: BTreeSet<u64> = starts.iter().map(|sample| sample.value.to_bits()).collect();
            assert_eq!((starts.len(), times.len()), (6, 1), "one run's start in every group");
            assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
        },
        ..WELL
    };

    /// The two first metrics of the contract divide: their labels are the same but for the job.
    used_and_capacity_carry_the_same_labels: Case {
        check: |stage, ended| {
            let without_job = |name: &str| -> BTreeSet<Vec<(String, String)>> {
                let samples = stage.gateway.samples(name).into_iter();
                samples.map(|sample| sample.labels.into_iter().filter(|(label, _)| label != "job").collect()).collect()
            };
            assert_eq!(without_job(USED), without_job(CAPACITY), "{}", ended.said);
        },
        ..WELL
    };

    no_volumes_at_all: Case {
        prepare: |stage| {
            for volume in stage.server.objects("persistentvolumes") {
                stage.server.update("persistentvolumes", "", &name(&volume), |volume| {
                    volume["metadata"]["finalizers"] = json!([]);
                });
                stage.server.delete("persistentvolumes", "", &name(&volume));
            }
        },
        samples: &[(LISTED, &[], Some(0.0)), ("lp_exporter_run_complete", &[], Some(1.0))],
        jobs_made: Some(&[]),
        ..WELL
    };

    /// One strange object costs itself, not its page.
    an_undecodable_volume_is_lost_alone: Case {
        prepare: |stage| {
            let mut strange = Volume::local_path("node-1", "shop", "strange", "1Gi").persistent_volume();
            strange["spec"]["accessModes"] = 7.into();
            stage.server.put(strange);
        },
        says: &["undecodable", "pvc-"],
        samples: &[
            (SKIPPED, &[("reason", "undecodable")], Some(1.0)),
            (LISTED, &[], Some(4.0)),
            (USED, &[("node", "node-1")], Some(8192.0)),
        ],
        ..WELL
    };

    /// It is there, and so is what lies on it.
    an_undecodable_node_is_not_gone: Case {
        prepare: |stage| {
            stage.server.put(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "node-9", "labels": {"kubernetes.io/hostname": "node-9"}},
                "status": {"conditions": 7},
            }));
            stage.server.put(Volume::local_path("node-9", "shop", "there", "1Gi").persistent_volume());
            push_old_groups(stage, &["node-9", "node-8"]);
        },
        says: &["node-9", "the node cannot be read"],
        samples: &[
            (SKIPPED, &[("reason", "node_gone")], Some(0.0)),
            (NOT_MEASURED, &[("node", "node-9"), ("reason", "not_ready")], Some(1.0)),
        ],
        jobs_made: Some(ALL),
        check: |stage, _ended| {
            for node in ["node-8", "node-9"] {
                let group = stage.gateway.group(&[("job", "lp-exporter-job"), ("node", node)]);
                assert!(group.is_some(), "not everything could be read: {node}");
            }
        },
        ..WELL
    };

    an_undecodable_claim_costs_nothing: Case {
        prepare: |stage| {
            stage.server.update("persistentvolumeclaims", "shop", "data", |claim| claim["spec"]["accessModes"] = 7.into());
        },
        says: &["data"],
        samples: &[
            (CAPACITY, &[("node", "node-1")], Some(1_073_741_824.0)),
            (LISTED, &[], Some(3.0)),
            ("lp_exporter_claims_unreadable", &[], Some(1.0)),
        ],
        ..WELL
    };

    /// As long as Kubernetes allows, with dots: no label and no Job could be named so.
    a_node_with_the_longest_name: Case {
        prepare: |stage| {
            let node = LONGEST_NODE;
            stage.add_node(node);
            stage.add(&Volume::local_path(node, "shop", "far", "1Gi"));
        },
        samples: &[
            (USED, &[("persistentvolumeclaim", "far"), ("node", LONGEST_NODE)], Some(8192.0)),
            (MEASURED, &[("node", LONGEST_NODE)], Some(1.0)),
        ],
        jobs_made: Some(&[LONGEST_NODE, "node-1", "node-2", "node-3"]),
        ..WELL
    };

    volumes_are_skipped_by_reason: Case {
        prepare: |stage| {
            let nfs = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nfs-archive"},
                "spec": {"capacity": {"storage": "1Ti"}, "nfs": {"server": "nfs.example.org", "path": "/archive"}},
            });
            stage.server.put(nfs);
            let outside = Volume { path: "/srv/raw".to_owned(), ..Volume::local_path("node-1", "a", "outside", "1Gi") };
            stage.server.put(outside.persistent_volume());
            let base = Volume { path: "/data1/".to_owned(), ..Volume::local_path("node-1", "a", "base", "1Gi") };
            stage.server.put(base.persistent_volume());
            let escape = "/data1/../etc".to_owned();
            let escapes = Volume { path: escape, ..Volume::local_path("node-1", "a", "escapes", "1Gi") };
            stage.server.put(escapes.persistent_volume());
            stage.server.put(Volume::local_path("node-9", "a", "gone", "1Gi").persistent_volume());
            stage.server.put(Volume::local_path("node-1", "a", "size", "1Gx").persistent_volume());
        },
        says: &["nfs-archive", "not_node_local", "outside_base_paths", "node_gone"],
        samples: &[
            (SKIPPED, &[("reason", "not_node_local")], Some(1.0)),
            (SKIPPED, &[("reason", "outside_base_paths")], Some(1.0)),
            (SKIPPED, &[("reason", "is_base_path")], Some(1.0)),
            (SKIPPED, &[("reason", "invalid_path")], Some(1.0)),
            (SKIPPED, &[("reason", "node_gone")], Some(1.0)),
            (SKIPPED, &[("reason", "invalid_capacity")], Some(1.0)),
            (LISTED, &[], Some(9.0)),
        ],
        ..WELL
    };

    volumes_come_in_pages: Case {
        prepare: |stage| {
            for number in 0..1100 {
                stage.server.put(json!({
                    "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("nfs-{number:04}")},
                    "spec": {"capacity": {"storage": "1Gi"}, "nfs": {"server": "nfs.example.org", "path": "/archive"}},
                }));
            }
            // The second page is refused once: the token has expired, and the list begins anew.
            let expired = Refusal::new(410, "Expired", "The provided continue parameter is too old");
            stage.server.script(Rule::on("list", "persistentvolumes", Answer::Serve).times(1));
            stage.server.script(Rule::on("list", "persistentvolumes", Answer::Refuse(expired)).times(1));
        },
        samples: &[(LISTED, &[], Some(1103.0)), (SKIPPED, &[("reason", "not_node_local")], Some(1100.0))],
        check: |stage, _ended| assert_eq!(stage.requests("list", "persistentvolumes"), 2 + 3),
        ..WELL
    };

    /// Answers that a second try mends.
    passing_faults_are_tried_again: Case {
        prepare: |stage| {
            let busy = Refusal { retry_after_seconds: Some(1), ..Refusal::new(429, "TooManyRequests", "slow down") };
            stage.server.script(Rule::on("list", "persistentvolumes", Answer::Refuse(busy)).times(1));
            stage.server.script(Rule::on("list", "persistentvolumeclaims", Answer::Cut).times(2));
            let broken = Refusal::new(500, "InternalError", "etcdserver: request timed out");
            stage.server.script(Rule::on("list", "nodes", Answer::Refuse(broken.clone())).times(1));
            stage.server.script(Rule::on("create", "jobs", Answer::Refuse(broken.clone())).times(1));
            let quicker = Refusal::new(409, "AlreadyExists", "leases.coordination.k8s.io \"lp-exporter\" already exists");
            stage.server.script(Rule::on("create", "leases", Answer::Refuse(quicker)).times(1));
            stage.server.script(Rule::on("get", "pods", Answer::Refuse(broken)).times(1));
            stage.gateway.script("PUT", "lp-exporter", Fault::Status(503, "not yet".to_owned()), Some(1));
            stage.gateway.script("PUT", "lp-exporter", Fault::Cut, Some(1));
        },
        samples: &[("lp_exporter_run_complete", &[], Some(1.0))],
        jobs_made: None,
        check: |stage, _ended| assert_eq!(stage.jobs_made().len(), 4),
        ..WELL
    };

    /// Created, and the answer lost: the second try finds that there is one already.
    lost_answers_are_no_failures: Case {
        prepare: |stage| {
            stage.server.script(Rule::on("create", "jobs", Answer::CutAfterwards).times(1));
            stage.server.script(Rule::on("create", "configmaps", Answer::CutAfterwards).times(1));
            stage.server.script(Rule::on("create", "leases", Answer::CutAfterwards).times(1));
        },
        samples: &[("lp_exporter_run_complete", &[], Some(1.0))],
        jobs_made: None,
        check: |stage, _ended| assert_eq!(stage.jobs_made().len(), 4),
        ..WELL
    };

    a_node_under_disk_pressure_gets_a_critical_worker: Case {
        prepare: |stage| {
            stage.server.update("nodes", "", "node-2", |node| set_condition(node, "DiskPressure", "True"));
        },
        check: |stage, _ended| {
            for request in stage.server.requests() {
                if request.verb == "create" && request.resource == "jobs" {
                    let class = &request.body["spec"]["template"]["spec"]["priorityClassName"];
                    let critical = pinned_to(&request.body) == "node-2";
                    assert_eq!(*class, if critical { "system-node-critical" } else { "lp-exporter-worker" });
                }
            }
        },
        ..WELL
    };

    /// Only what needs no right on the CronJob, no token, no more than the bases of the node.
    the_jobs_are_as_promised: Case {
        check: |stage, _ended| {
            let requests = stage.server.requests();
            let made = requests.iter().find(|request| {
                request.verb == "create" && request.resource == "jobs" && pinned_to(&request.body) == "node-2"
            });
            let job = &made.expect("node-2 got a Job").body;
            assert_eq!(job["metadata"]["ownerReferences"], json!([{
                "apiVersion": "batch/v1", "kind": "CronJob", "name": "lp-exporter", "uid": "uid-of-the-cronjob",
            }]));
            let pod = &job["spec"]["template"]["spec"];
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(pod["containers"][0]["image"], IMAGE);
            let paths: Vec<&Value> = pod["volumes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|volume| volume["hostPath"].is_object())
                .map(|volume| &volume["hostPath"]["path"])
                .collect();
            assert_eq!(paths, ["/data1"]);
            let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("there are mounts");
            for mount in mounts {
                assert_eq!(mount["readOnly"], true, "{mount}");
            }
        },
        ..WELL
    };
}

/// What a worker that went well leaves in its termination message.
const SUMMARY: &str = r#"{"node":"node-1","run":"","states":{"complete":1},"delivered":true,"seconds":0.1,
    "peak_memory_bytes":9000000,"confined":true}"#;

// What goes wrong on a node costs that node.
scenarios! {
    a_node_that_is_not_ready_gets_no_job: Case {
        prepare: |stage| {
            stage.server.update("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
        },
        says: &["node-2", "not_ready"],
        samples: &[
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "not_ready")], Some(1.0)),
            (MEASURED, &[("node", "node-2")], Some(0.0)),
            (MEASURED, &[("node", "node-1")], Some(1.0)),
            (CAPACITY, &[("node", "node-2")], Some(5e9)),
            (USED, &[("node", "node-2")], None),
            ("lp_exporter_volumes_node_not_measured", &[("reason", "not_ready")], Some(1.0)),
            ("lp_exporter_run_complete", &[], Some(0.0)),
        ],
        jobs_made: Some(&["node-1", "node-3"]),
        ..WELL
    };

    a_node_that_is_lost_is_told_at_once: Case {
        prepare: |stage| stage.fate("node-2", Fate::LoseNode),
        samples: &[
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "lost")], Some(1.0)),
            (USED, &[("node", "node-3")], Some(8192.0)),
        ],
        check: |_stage, ended| assert!(ended.took < Duration::from_secs(12), "{:?}", ended.took),
        ..WELL
    };

    /// An eviction is no failure: the Job makes another pod.
    an_evicted_worker_is_followed_to_the_next_pod: Case {
        prepare: |stage| stage.fate("node-2", Fate::Evict),
        samples: &[(USED, &[("node", "node-2")], Some(8192.0)), (MEASURED, &[("node", "node-2")], Some(1.0))],
        ..WELL
    };

    /// On a node that is cut off a Job is failing for ever.
    a_job_that_never_fails_is_not_waited_for: Case {
        prepare: |stage| stage.fate("node-2", Fate::NeverFails),
        says: &["DeadlineExceeded"],
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "worker_failed")], Some(1.0))],
        check: |_stage, ended| assert!(ended.took < Duration::from_secs(12), "{:?}", ended.took),
        ..WELL
    };

    /// The end of the Job may be seen before that of its pod: what the worker said is not lost by that.
    an_end_that_is_seen_late_is_told_with_its_words: Case {
        prepare: |stage| {
            stage.fate("node-1", Fate::JobFirst(0, "Completed", SUMMARY));
            stage.fate("node-2", Fate::JobFirst(137, "OOMKilled", ""));
        },
        samples: &[
            ("lp_exporter_worker_confined", &[("node", "node-1")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "out_of_memory")], Some(1.0)),
        ],
        jobs_left: &["node-2"],
        ..WELL
    };

    a_worker_that_fails_is_told_with_its_words: Case {
        prepare: |stage| {
            let message = json!({
                "node": "node-2", "run": "", "states": {}, "delivered": false, "seconds": 0.1,
                "peak_memory_bytes": 1, "confined": true, "error": "the plan could not be read: expected value",
            });
            stage.fate("node-2", Fate::Exit(2, "Error", message.to_string()));
        },
        says: &["node-2", "worker_failed", "exit code 2", "the plan could not be read: expected value"],
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "worker_failed")], Some(1.0))],
        jobs_left: &["node-2"],
        ..WELL
    };

    a_worker_that_cannot_deliver_is_told_as_such: Case {
        prepare: |stage| stage.fate("node-2", Fate::Exit(5, "Error", String::new())),
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "not_delivered")], Some(1.0))],
        jobs_left: &["node-2"],
        ..WELL
    };

    /// The real worker against a Pushgateway that does not want its numbers.
    numbers_that_the_pushgateway_refuses_are_not_delivered: Case {
        prepare: |stage| {
            let refused = Fault::Status(400, "pushed metrics are invalid: too long a label".to_owned());
            stage.gateway.script("PUT", "/node/node-2", refused, None);
            stage.gateway.script("PUT", "/node/node-3", Fault::Status(503, "not now".to_owned()), Some(1));
        },
        says: &["node-2", "not_delivered", "too long a label"],
        samples: &[
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "not_delivered")], Some(1.0)),
            (USED, &[("node", "node-2")], None),
            (USED, &[("node", "node-3")], Some(8192.0)),
        ],
        jobs_left: &["node-2"],
        ..WELL
    };

    /// As where a push still waited when its worker gave up.
    numbers_that_arrived_after_all_are_delivered: Case {
        prepare: |stage| stage.gateway.script("PUT", "/node/node-2", Fault::Denied(403), None),
        samples: &[
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "not_delivered")], None),
            (USED, &[("node", "node-2")], Some(8192.0)),
        ],
        jobs_left: &["node-2"],
        ..WELL
    };

    a_worker_out_of_memory_is_told_as_such: Case {
        prepare: |stage| stage.fate("node-2", Fate::Exit(137, "OOMKilled", String::new())),
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "out_of_memory")], Some(1.0))],
        jobs_left: &["node-2"],
        ..WELL
    };

    a_worker_that_says_nonsense_is_measured_all_the_same: Case {
        prepare: |stage| stage.fate("node-2", Fate::RunThenSay("thread 'main' panicked")),
        says: &["node-2"],
        samples: &[(MEASURED, &[("node", "node-2")], Some(1.0))],
        ..WELL
    };

    /// As in the middle of an upgrade.
    a_plan_of_another_version_is_refused_by_the_worker: Case {
        prepare: |stage| stage.fate("node-2", Fate::RunWith(|plan| plan["version"] = 99.into())),
        says: &["node-2", "exit code 6", "version 99"],
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "worker_failed")], Some(1.0))],
        jobs_left: &["node-2"],
        ..WELL
    };

    /// Each node has its own trouble, and each is told as soon as it is sure.
    what_keeps_a_worker_from_starting_is_told: Case {
        prepare: |stage| {
            stage.fate("node-1", Fate::Unschedulable("0/3 nodes are available: 1 Insufficient pods."));
            let why = "Container image \"registry.example/lp-exporter:1\" is not present with pull policy of Never";
            stage.fate("node-2", Fate::Waiting("ErrImageNeverPull", why));
            stage.fate("node-3", Fate::NoPod);
            for (node, fate) in [
                ("node-4", Fate::Waiting("CreateContainerError", "failed to create shim task")),
                ("node-5", Fate::LoseNode),
            ] {
                stage.add_node(node);
                stage.add(&Volume::local_path(node, "shop", node, "1Gi"));
                stage.fate(node, fate);
            }
        },
        says: &["Insufficient pods", "pull policy of Never", "made no pod", "shim task", "not Ready any more"],
        samples: &[
            (NOT_MEASURED, &[("node", "node-1"), ("reason", "unschedulable")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "image_unavailable")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-3"), ("reason", "pod_not_created")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-4"), ("reason", "container_not_created")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-5"), ("reason", "lost")], Some(1.0)),
            ("lp_exporter_run_complete", &[], Some(0.0)),
        ],
        jobs_made: Some(&["node-1", "node-2", "node-3", "node-4", "node-5"]),
        check: |_stage, ended| assert!(ended.took < Duration::from_secs(60), "{:?}", ended.took),
        ..WELL
    };

    /// The message names a base directory: a second Job goes without it, and its volumes get a state.
    a_base_that_cannot_be_mounted_costs_its_own_volumes: Case {
        prepare: |stage| {
            stage.add(&Volume::local_path("node-2", "shop", "other", "1Gi"));
            let why = "failed to generate container \"9a7e\" spec: failed to generate spec: failed to mkdir \"/data1\": \
                       mkdir /data1: read-only file system";
            stage.fate("node-2", Fate::Waiting("CreateContainerError", why));
        },
        samples: &[
            (USED, &[("persistentvolumeclaim", "other")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "data-1")], None),
            ("local_volume_scan_state", &[("persistentvolumeclaim", "data-1"), ("state", "base_missing")], Some(1.0)),
            (MEASURED, &[("node", "node-2")], Some(1.0)),
        ],
        jobs_made: Some(&["node-1", "node-2", "node-2", "node-3"]),
        ..WELL
    };

    /// The controller's own clock ends the run, and the worker goes with it.
    a_worker_that_never_ends_is_left_behind: Case {
        prepare: |stage| {
            stage.short_deadline();
            stage.fate("node-2", Fate::Hang);
        },
        arguments: &["--interval=60s"],
        says: &["node-2", "timed_out"],
        samples: &[
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "timed_out")], Some(1.0)),
            (USED, &[("node", "node-1")], Some(8192.0)),
        ],
        check: |_stage, ended| {
            let limit = Duration::from_secs(SHORT_DEADLINE_SECONDS);
            assert!(ended.took < limit, "{:?} is not within the Job's deadline", ended.took);
        },
        ..WELL
    };

    a_volume_without_its_directory_has_a_state_and_no_number: Case {
        prepare: |stage| {
            let volume = Volume::local_path("node-1", "shop", "lost", "1Gi");
            stage.server.put(volume.persistent_volume());
        },
        samples: &[
            (USED, &[("persistentvolumeclaim", "lost")], None),
            ("local_volume_scan_state", &[("persistentvolumeclaim", "lost"), ("state", "missing")], Some(1.0)),
            (USED, &[("persistentvolumeclaim", "data"), ("node", "node-1")], Some(8192.0)),
        ],
        ..WELL
    };

    strict_makes_a_missing_number_a_failure: Case {
        prepare: |stage| {
            stage.server.put(Volume::local_path("node-1", "shop", "lost", "1Gi").persistent_volume());
        },
        arguments: &["--strict"],
        code: 3,
        ..WELL
    };

    strict_makes_a_missing_node_a_failure: Case {
        prepare: |stage| {
            stage.server.update("nodes", "", "node-2", |node| set_condition(node, "Ready", "False"));
        },
        arguments: &["--strict"],
        code: 3,
        jobs_made: Some(&["node-1", "node-3"]),
        ..WELL
    };

    strict_leaves_volumes_of_other_kinds_alone: Case {
        prepare: |stage| {
            stage.server.put(json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nfs-archive"},
                "spec": {"capacity": {"storage": "1Ti"}, "nfs": {"server": "nfs.example.org", "path": "/archive"}},
            }));
        },
        arguments: &["--strict"],
        ..WELL
    };
}

// The API server refuses, or is not there.
scenarios! {
    forbidden_to_get_pods: forbidden("get", "pods");
    forbidden_to_get_jobs: forbidden("get", "jobs");
    forbidden_to_list_jobs: forbidden("list", "jobs");
    forbidden_to_list_pods: forbidden("list", "pods");
    forbidden_to_list_nodes: forbidden("list", "nodes");
    forbidden_to_list_volumes: forbidden("list", "persistentvolumes");
    forbidden_to_list_claims: forbidden("list", "persistentvolumeclaims");
    forbidden_to_get_leases: forbidden("get", "leases");
    forbidden_to_create_leases: forbidden("create", "leases");
    forbidden_to_watch_nodes: Case { jobs_made: None, pushes: (true, false), ..forbidden("watch", "nodes") };
    forbidden_to_watch_jobs: Case { jobs_made: None, pushes: (true, false), ..forbidden("watch", "jobs") };
    forbidden_to_watch_pods: Case { jobs_made: None, pushes: (true, false), ..forbidden("watch", "pods") };

    forbidden_to_create_jobs: Case {
        prepare: |stage| stage.server.script(Rule::on("create", "jobs", Answer::Forbid)),
        says: &["could not create jobs", "cannot create resource \"jobs\"", "ClusterRole or Role"],
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "create_refused")], Some(1.0))],
        ..WELL
    };

    forbidden_to_create_configmaps: Case {
        prepare: |stage| stage.server.script(Rule::on("create", "configmaps", Answer::Forbid)),
        says: &["could not create configmaps", "cannot create resource \"configmaps\""],
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "create_refused")], Some(1.0))],
        ..WELL
    };

    /// Nothing is lost by it but order: the Jobs stay for the next run.
    forbidden_to_delete_jobs: Case {
        prepare: |stage| stage.server.script(Rule::on("delete", "jobs", Answer::Forbid)),
        says: &["could not delete jobs", "cannot delete resource \"jobs\""],
        jobs_left: ALL,
        ..WELL
    };

    an_api_server_out_of_reach: Case {
        prepare: |stage| stage.server.script(Rule::any(Answer::Cut)),
        code: 4,
        says: &["could not get pods", "check that the API server is reachable"],
        check: |_stage, ended| assert!(ended.took < Duration::from_secs(40), "{:?}", ended.took),
        ..EARLY
    };
}

/// A run without one of its rights: it says which, and ends with 4 and without a success. What a watch is for shows
/// only after the plan.
fn forbidden(verb: &'static str, resource: &'static str) -> Case {
    // A function pointer holds no values: the arguments of each are found again by their names.
    macro_rules! rights {
        ($(($verb:literal, $resource:literal)),+) => {
            match (verb, resource) {
                $(($verb, $resource) => (
                    (|stage| stage.server.script(Rule::on($verb, $resource, Answer::Forbid))) as fn(&mut Stage),
                    &[concat!("could not ", $verb, " ", $resource),
                      concat!("cannot ", $verb, " resource \"", $resource, "\""),
                      "ClusterRole or Role"][..],
                ),)+
                _ => panic!("no case for {verb} {resource}"),
            }
        };
    }
    let (prepare, says) = rights![
        ("get", "pods"),
        ("get", "jobs"),
        ("list", "jobs"),
        ("list", "pods"),
        ("list", "nodes"),
        ("list", "persistentvolumes"),
        ("list", "persistentvolumeclaims"),
        ("get", "leases"),
        ("create", "leases"),
        ("watch", "nodes"),
        ("watch", "jobs"),
        ("watch", "pods")
    ];
    Case {
        prepare,
        code: 4,
        says,
        ..EARLY
    }
}

// The Pushgateway refuses, or is not there.
scenarios! {
    no_pushgateway: Case {
        prepare: |stage| {
            stage.short_deadline();
            stage.pushgateway_url = Some("http://127.0.0.1:9".to_owned());
        },
        arguments: &["--interval=60s"],
        code: 5,
        says: &["127.0.0.1:9"],
        ..EARLY
    };

    a_pushgateway_that_refuses: Case {
        prepare: |stage| {
            let why = "pushed metrics are invalid or inconsistent with existing metrics: a COUNTER";
            stage.gateway.script("PUT", "/metrics/job/", Fault::Status(400, why.to_owned()), None);
        },
        code: 5,
        says: &["400", "inconsistent with existing metrics: a COUNTER"],
        jobs_left: ALL,
        pushes: (false, false),
        ..WELL
    };

    /// A refused group costs no other.
    capacities_that_are_refused: Case {
        prepare: |stage| {
            push_old_groups(stage, &["node-9"]);
            stage.gateway.push(
                "job/stranger",
                "# TYPE local_volume_stats_capacity_bytes counter\nlocal_volume_stats_capacity_bytes 1\n",
            );
        },
        code: 5,
        says: &["/metrics/job/lp-exporter failed", "400"],
        samples: &[
            (USED, &[("node", "node-2")], Some(8192.0)),
            ("lp_exporter_run_complete", &[], Some(1.0)),
        ],
        pushes: (true, false),
        check: |stage, ended| {
            assert!(!ended.said.contains("pushed again"), "{}", ended.said);
            assert!(stage.gateway.group(&[("job", "lp-exporter-job"), ("node", "node-9")]).is_none());
        },
        ..WELL
    };

    a_report_that_cannot_be_pushed: Case {
        prepare: |stage| {
            push_old_groups(stage, &["node-9"]);
            stage.gateway.script("PUT", "/metrics/job/lp-exporter-run", Fault::Status(400, "no".to_owned()), None);
        },
        code: 5,
        says: &["lp-exporter-run"],
        pushes: (false, false),
        check: |stage, _ended| {
            assert!(stage.gateway.group(&[("job", "lp-exporter-job"), ("node", "node-9")]).is_none());
        },
        ..WELL
    };

    groups_of_nodes_without_volumes_are_retired: Case {
        prepare: |stage| push_old_groups(stage, &["node-9"]),
        check: |stage, _ended| {
            let retired = [("job", "lp-exporter-job"), ("node", "node-9")];
            assert!(stage.gateway.group(&retired).is_none());
            let foreign = [("cluster", "other"), ("job", "lp-exporter-job"), ("node", "node-9")];
            assert!(stage.gateway.group(&foreign).is_some(), "another cluster's group is not ours to delete");
        },
        ..WELL
    };

    numbers_of_a_node_that_is_away_stay: Case {
        prepare: |stage| {
            stage.change("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
            // Of the run before the last twelve, less a minute.
            push_of_run(stage, "node-2", OWN, 12.0 * 300.0 - 60.0);
        },
        samples: &[(USED, &[("node", "node-2")], Some(1.0))],
        ..WELL_WITHOUT_NODE_2
    };

    numbers_of_a_node_that_is_away_go_after_twelve_runs: Case {
        prepare: |stage| {
            stage.change("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
            push_of_run(stage, "node-2", OWN, 12.0 * 300.0 + 60.0);
        },
        says: &["its node has not been measured for too long"],
        samples: &[
            (USED, &[("node", "node-2")], None),
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "not_ready")], Some(1.0)),
        ],
        ..WELL_WITHOUT_NODE_2
    };

    numbers_of_a_node_that_is_away_go_after_as_many_runs_as_wanted: Case {
        prepare: |stage| {
            stage.change("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
            push_of_run(stage, "node-2", OWN, 360.0);
        },
        arguments: &["--keep-runs=1"],
        samples: &[(USED, &[("node", "node-2")], None)],
        ..WELL_WITHOUT_NODE_2
    };

    /// One that nobody can find may lie on any node, but no number stays for ever because of it.
    numbers_of_a_node_that_may_hold_a_volume_go_with_age: Case {
        prepare: |stage| {
            stage.let_it_locate();
            lone_volumes(stage);
            for (node, age_seconds) in [("node-4", 60.0), ("node-5", 12.0 * 300.0 + 60.0)] {
                stage.add_node(node);
                push_of_run(stage, node, OWN, age_seconds);
            }
        },
        arguments: &["--locate-by-pods"],
        samples: &[(USED, &[("node", "node-4")], Some(1.0)), (USED, &[("node", "node-5")], None)],
        ..WELL
    };

    /// Nor does a number go at once because pods are no longer asked.
    what_pods_located_stays_when_they_are_not_asked: Case {
        prepare: |stage| {
            lone_volumes(stage);
            for (node, age_seconds) in [("node-4", 60.0), ("node-5", 12.0 * 300.0 + 60.0)] {
                stage.add_node(node);
                push_of_run(stage, node, OWN, age_seconds);
            }
        },
        samples: &[(USED, &[("node", "node-4")], Some(1.0)), (USED, &[("node", "node-5")], None)],
        ..WELL
    };

    the_trace_of_a_refused_push_is_retired: Case {
        prepare: |stage| {
            stage.change("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
            stage.gateway.push_stub("job/lp-exporter-job/node/node-2");
        },
        says: &["the empty trace of a refused push"],
        check: |stage, _ended| {
            assert!(stage.gateway.group(&[("job", "lp-exporter-job"), ("node", "node-2")]).is_none());
        },
        ..WELL_WITHOUT_NODE_2
    };

    groups_of_ours_under_other_labels_are_told: Case {
        prepare: |stage| {
            let body = format!("# TYPE lp_exporter_owner_info gauge\nlp_exporter_owner_info{OWN} 1\n");
            stage.gateway.push("job/lp-exporter-job/node/node-9/cluster/old", &body);
        },
        says: &[
            "this CronJob has pushed under other grouping labels before",
            "--match cronjob=lp-exporter/lp-exporter --match cluster=old (with --dry-run",
        ],
        check: |stage, _ended| {
            assert!(stage.gateway.group(&[("job", "lp-exporter-job"), ("node", "node-9"), ("cluster", "old")]).is_some());
        },
        ..WELL
    };

    groups_of_another_cluster_in_our_place: Case {
        prepare: |stage| push_of_run(stage, "node-2", OTHER_CLUSTER, 0.0),
        code: 2,
        says: &[
            "/metrics/job/lp-exporter-job/node/node-2 is of the CronJob lp-exporter/lp-exporter of the cluster other-uid",
            "--grouping-label",
            "lp-exporter retire --pushgateway-url http://127.0.0.1:",
            "--match cluster_uid=other-uid --match cronjob=lp-exporter/lp-exporter (with --dry-run",
        ],
        samples: &[(USED, &[("node", "node-2")], Some(1.0))],
        ..EARLY
    };

    /// It may be anybody's.
    groups_of_nobody_in_our_place: Case {
        prepare: |stage| {
            for node in ["node-2", "node-9"] {
                let body = "# TYPE local_volume_stats_used_bytes gauge\nlocal_volume_stats_used_bytes 1\n";
                stage.gateway.push(&format!("job/lp-exporter-job/node/{node}"), body);
            }
        },
        samples: &[(USED, &[("node", "node-2")], Some(8192.0)), (USED, &[("node", "node-9")], Some(1.0))],
        ..WELL
    };

    groups_of_a_hostile_owner_in_our_place: Case {
        prepare: |stage| push_of_run(stage, "node-2", r#"{cluster_uid="$(reboot)",cronjob="a b"}"#, 0.0),
        code: 2,
        says: &["look at that group by hand"],
        samples: &[(USED, &[("node", "node-2")], Some(1.0))],
        check: |_stage, ended| assert!(!ended.said.contains("--match"), "{}", ended.said),
        ..EARLY
    };

    groups_of_another_instance_in_our_place: Case {
        prepare: |stage| push_of_run(stage, "node-9", OTHER_INSTANCE, 1e6),
        code: 2,
        says: &["is of the CronJob lp-exporter/second of the cluster"],
        samples: &[(USED, &[("node", "node-9")], Some(1.0))],
        ..EARLY
    };

    groups_of_another_cluster_beside_ours: Case {
        prepare: |stage| push_of_run(stage, "node-2", OTHER_CLUSTER, 1e6),
        arguments: &["--grouping-label=cluster=ours"],
        samples: &[(USED, &[("cluster", "ours"), ("node", "node-2")], Some(8192.0))],
        pushes: (false, false),
        check: |stage, _ended| {
            assert!(stage.gateway.group(&[("job", "lp-exporter-job"), ("node", "node-2")]).is_some());
        },
        ..WELL
    };

    nothing_is_retired_when_not_everything_could_be_read: Case {
        prepare: |stage| {
            push_old_groups(stage, &["node-9"]);
            let mut strange = Volume::local_path("node-9", "shop", "strange", "1Gi").persistent_volume();
            strange["spec"]["accessModes"] = 7.into();
            stage.server.put(strange);
        },
        check: |stage, _ended| {
            assert!(stage.gateway.group(&[("job", "lp-exporter-job"), ("node", "node-9")]).is_some());
        },
        ..WELL
    };
}

// What is measured is chosen; what is not is counted, and nothing of it is taken away.
scenarios! {
    a_filter_by_storage_class: Case {
        prepare: |stage| push_old_groups(stage, &["node-2", "node-9"]),
        arguments: &["--storage-class=local-path,other"],
        says: &["filtered_by_storage_class", "local-path-data1"],
        samples: &[
            (SKIPPED, &[("reason", "filtered_by_storage_class")], Some(1.0)),
            (INFO, &[("node", "node-2"), ("reason", "filtered_by_storage_class"), ("type", "local")], Some(1.0)),
            (INFO, &[("node", "node-1"), ("reason", ""), ("type", "hostPath")], Some(1.0)),
            (CAPACITY, &[("node", "node-2")], None),
            (NOT_SCANNED, &[("node", "node-2"), ("reason", "no_volumes")], Some(1.0)),
            ("lp_exporter_run_complete", &[], Some(1.0)),
        ],
        jobs_made: Some(&["node-1", "node-3"]),
        check: |stage, _ended| {
            let of_node = |node| stage.gateway.group(&[("job", "lp-exporter-job"), ("node", node)]);
            assert!(of_node("node-2").is_some(), "its volume is still there");
            assert!(of_node("node-9").is_none(), "it holds none");
        },
        ..WELL
    };

    a_filter_by_namespace: Case {
        arguments: &["--claim-namespace=shop", "--strict"],
        samples: &[(SKIPPED, &[("reason", "filtered_by_namespace")], Some(1.0)), (CAPACITY, &[("namespace", "ops")], None)],
        jobs_made: Some(&["node-1", "node-2"]),
        ..WELL
    };

    a_filter_by_node: Case {
        prepare: |stage| {
            // It is shared: wherever it would be measured else, it is measured on the node that is left.
            let mut shared = Volume::local_path("node-2", "shop", "shared", "1Gi").persistent_volume();
            shared["spec"].as_object_mut().expect("a spec").remove("nodeAffinity");
            stage.server.put(shared);
        },
        arguments: &["--node=node-1", "--node", "node-9"],
        samples: &[
            (SKIPPED, &[("reason", "filtered_by_node")], Some(2.0)),
            (INFO, &[("persistentvolumeclaim", "shared"), ("node", "node-1"), ("shared", "true")], Some(1.0)),
            (NOT_SCANNED, &[("node", "node-2"), ("reason", "filtered")], Some(1.0)),
        ],
        jobs_made: Some(&["node-1"]),
        ..WELL
    };

    a_filter_by_labels_of_claims: Case {
        prepare: |stage| {
            stage.change("persistentvolumeclaims", "shop", "data", |claim| {
                claim["metadata"]["labels"] = json!({"team": "a", "tier": "db"});
            });
            stage.change("persistentvolumeclaims", "ops", "data", |claim| {
                claim["metadata"]["labels"] = json!({"team": "b", "tier": "test"});
            });
        },
        arguments: &["--claim-selector=team in (a, b)", "--claim-selector", "tier!=test"],
        samples: &[(SKIPPED, &[("reason", "filtered_by_selector")], Some(2.0))],
        jobs_made: Some(&["node-1"]),
        ..WELL
    };

    a_claim_that_is_not_to_be_measured: Case {
        prepare: |stage| {
            stage.change("persistentvolumeclaims", "shop", "data", |claim| {
                claim["metadata"]["labels"] = json!({"lp-exporter/measure": "false"});
            });
            stage.change("persistentvolumeclaims", "ops", "data", |claim| {
                claim["metadata"]["labels"] = json!({"lp-exporter/measure": "true"});
            });
        },
        arguments: &["--strict"],
        samples: &[
            (SKIPPED, &[("reason", "opted_out")], Some(1.0)),
            (INFO, &[("node", "node-1"), ("reason", "opted_out"), ("phase", "Bound")], Some(1.0)),
        ],
        jobs_made: Some(&["node-2", "node-3"]),
        ..WELL
    };

    /// The others' numbers stay, and are neither measured nor failed.
    a_run_for_one_node: Case {
        prepare: |stage| {
            push_old_groups(stage, &["node-2", "node-9"]);
            stage.change("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
        },
        arguments: &["--only-node=node-1", "--strict"],
        says: &["1 of 1 volumes on 1 of 1 nodes", "nodes_not_asked=2"],
        samples: &[
            (USED, &[("persistentvolumeclaim", "data"), ("node", "node-1")], Some(8192.0)),
            (CAPACITY, &[("node", "node-2")], Some(5e9)),
            (NOT_SCANNED, &[("node", "node-2")], None),
            ("lp_exporter_node_expected", &[("node", "node-3")], Some(1.0)),
        ],
        jobs_made: Some(&["node-1"]),
        pushes: (false, false),
        check: |stage, _ended| {
            for node in ["node-2", "node-9"] {
                let group = stage.gateway.group(&[("job", "lp-exporter-job"), ("node", node)]);
                assert!(group.is_some(), "nothing of {node} is taken away");
            }
        },
        ..WELL
    };

    a_run_for_a_node_without_volumes: Case {
        prepare: |stage| stage.add_node("node-4"),
        arguments: &["--only-node=node-4"],
        says: &["asked for a node to which no worker is sent", "node-4", "no_volumes"],
        samples: &[(NOT_SCANNED, &[("node", "node-4"), ("reason", "no_volumes")], Some(1.0))],
        jobs_made: Some(&[]),
        pushes: (false, false),
        ..WELL
    };

    a_run_for_a_node_that_is_not_there: Case {
        arguments: &["--only-node=node-1", "--only-node=nod-2"],
        code: 2,
        says: &["--only-node", "nod-2", "kubectl get nodes"],
        ..EARLY
    };

    nodes_without_volumes_are_told: Case {
        prepare: |stage| stage.add_node("node-4"),
        samples: &[
            (NOT_SCANNED, &[("node", "node-4"), ("reason", "no_volumes")], Some(1.0)),
            (NOT_SCANNED, &[("node", "node-1")], None),
        ],
        ..WELL
    };

    nodes_without_volumes_are_visited: Case {
        prepare: |stage| {
            stage.add_node("node-4");
            stage.add_node("node-5");
            stage.change("nodes", "", "node-5", |node| node["status"]["nodeInfo"] = json!({"operatingSystem": "windows"}));
        },
        arguments: &["--scan-nodes=all"],
        samples: &[
            (MEASURED, &[("node", "node-4")], Some(1.0)),
            ("lp_exporter_node_expected", &[("node", "node-4")], Some(1.0)),
            (NOT_SCANNED, &[("node", "node-4")], None),
            (NOT_SCANNED, &[("node", "node-5"), ("reason", "not_linux")], Some(1.0)),
            ("lp_exporter_run_complete", &[], Some(1.0)),
        ],
        jobs_made: Some(&["node-1", "node-2", "node-3", "node-4"]),
        check: |stage, _ended| {
            let requests = stage.server.requests();
            let made = requests.iter().find(|request| {
                request.verb == "create" && request.resource == "jobs" && pinned_to(&request.body) == "node-4"
            });
            let volumes = made.expect("node-4 got a Job").body["spec"]["template"]["spec"]["volumes"].clone();
            let mut paths: Vec<String> = volumes
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|volume| Some(volume["hostPath"]["path"].as_str()?.to_owned()))
                .collect();
            paths.sort();
            assert_eq!(paths, ["/data1", "/opt/local-path-provisioner"], "what any volume uses");
        },
        ..WELL
    };

    /// The base directories that are in use only elsewhere, and cannot be made here, cost nothing.
    a_base_that_a_visited_node_cannot_have: Case {
        prepare: |stage| {
            stage.add_node("node-4");
            let why = "failed to generate container \"9a7e\" spec: failed to generate spec: failed to mkdir \"/data1\": \
                       mkdir /data1: read-only file system";
            stage.fate("node-4", Fate::Waiting("CreateContainerError", why));
        },
        arguments: &["--scan-nodes=all"],
        samples: &[(MEASURED, &[("node", "node-4")], Some(1.0))],
        jobs_made: Some(&["node-1", "node-2", "node-3", "node-4", "node-4"]),
        ..WELL
    };

    a_volume_that_names_no_node_is_told: Case {
        prepare: |stage| lone_volumes(stage),
        samples: &[
            (SKIPPED, &[("reason", "no_node_named")], Some(3.0)),
            (INFO, &[("persistentvolumeclaim", "lone"), ("node", ""), ("reason", "no_node_named")], Some(1.0)),
        ],
        check: |stage, _ended| assert_eq!(lists_of_pods(stage), 0, "nobody asked for pods"),
        ..WELL
    };

    /// Somebody took a label from node-4, whose pods keep their volume: what is known of it stays.
    a_node_whose_label_is_gone_keeps_its_group: Case {
        prepare: |stage| {
            stage.add_node("node-4");
            let volume = Volume::local_path("node-4", "shop", "pinned", "1Gi");
            stage.add(&volume);
            stage.change("persistentvolumes", "", &volume.persistentvolume, |volume| {
                let rack = json!({"key": "example.com/rack", "operator": "In", "values": ["r4"]});
                volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [rack]}]}});
                volume["metadata"]["annotations"] = Value::Null;
            });
            push_old_groups(stage, &["node-4", "node-9"]);
        },
        says: &["no_node_matches", "example.com/rack in"],
        samples: &[
            (SKIPPED, &[("reason", "no_node_matches")], Some(1.0)),
            (SKIPPED, &[("reason", "node_gone")], Some(0.0)),
            (INFO, &[("persistentvolumeclaim", "pinned"), ("node", ""), ("reason", "no_node_matches")], Some(1.0)),
        ],
        check: |stage, _ended| {
            let is_there = |node| stage.gateway.group(&[("job", "lp-exporter-job"), ("node", node)]).is_some();
            assert!(is_there("node-4"), "the node is there, and may hold the volume");
            assert!(!is_there("node-9"), "no such node is there");
        },
        ..WELL
    };

    a_volume_is_located_by_its_pods: Case {
        prepare: |stage| {
            lone_volumes(stage);
            stage.let_it_locate();
        },
        arguments: &["--locate-by-pods"],
        says: &["pods_on_several_nodes", "node-1, node-2"],
        samples: &[
            (USED, &[("persistentvolumeclaim", "lone"), ("node", "node-3")], Some(8192.0)),
            (SKIPPED, &[("reason", "pods_on_several_nodes")], Some(1.0)),
            (SKIPPED, &[("reason", "no_node_named")], Some(1.0)),
        ],
        // Two pages: 600 pods, and those of the volumes.
        check: |stage, _ended| assert_eq!(lists_of_pods(stage), 2),
        ..WELL
    };

    pods_are_listed_only_if_they_are_needed: Case {
        arguments: &["--locate-by-pods"],
        check: |stage, _ended| assert_eq!(lists_of_pods(stage), 0),
        ..WELL
    };

    /// Each maker writes volumes of its own shape; all lie on node-3.
    volumes_of_every_shape_are_measured: Case {
        prepare: |stage| {
            stage.change("nodes", "", "node-3", |node| {
                node["metadata"]["labels"]["kubernetes.io/hostname"] = "host-3".into();
                node["metadata"]["labels"]["example.com/rack"] = "r3".into();
            });
            let affinity = |terms: Value| json!({"required": {"nodeSelectorTerms": terms}});
            let by = |key: &str, operator: &str, values: Value| {
                json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}])
            };
            let hostname = "kubernetes.io/hostname";
            let fields = json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-3"]}]}]);
            let shapes = [
                ("label", Some(affinity(by(hostname, "In", json!(["host-3"]))))),
                ("old", Some(affinity(by(hostname, "In", json!(["node-3"]))))),
                ("v0-0-29", Some(affinity(fields))),
                ("other-key", Some(affinity(by("example.com/rack", "In", json!(["r3"]))))),
                ("not-in", Some(affinity(by(hostname, "NotIn", json!(["node-1", "node-2"]))))),
                ("shared", None),
            ];
            for (shape, affinity) in shapes {
                let volume = Volume::local_path("node-3", "shape", shape, "1Gi");
                stage.add(&volume);
                stage.change("persistentvolumes", "", &volume.persistentvolume, |volume| {
                    volume["spec"]["nodeAffinity"] = affinity.unwrap_or(Value::Null);
                    // Made by hand, but for the shared one, which says where its first pod ran.
                    if shape != "shared" {
                        volume["metadata"]["annotations"] = Value::Null;
                    }
                });
            }
            for (claim, phase) in [("available", "Available"), ("released", "Released"), ("failed", "Failed")] {
                let volume = Volume { phase, ..Volume::local_path("node-3", "phase", claim, "1Gi") };
                stage.add(&volume);
                let affinity = affinity(by(hostname, "In", json!(["host-3"])));
                stage.change("persistentvolumes", "", &volume.persistentvolume, |volume| {
                    volume["spec"]["nodeAffinity"] = affinity;
                    if phase == "Available" {
                        volume["spec"].as_object_mut().expect("a spec").remove("claimRef");
                    }
                });
            }
            // One directory, and one inside of it.
            let outer = Volume::local_path("node-3", "shape", "label", "1Gi");
            for (claim, path) in [("same", outer.path.clone()), ("inner", format!("{}//./inner/", outer.path))] {
                stage.add(&Volume { path, ..Volume::local_path("node-3", "nested", claim, "1Gi") });
            }
        },
        arguments: &["--strict"],
        samples: &[
            (USED, &[("persistentvolumeclaim", "label"), ("node", "node-3")], Some(16384.0)),
            (USED, &[("persistentvolumeclaim", "old"), ("node", "node-3")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "v0-0-29"), ("node", "node-3")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "other-key"), ("node", "node-3")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "not-in"), ("node", "node-3")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "shared"), ("node", "node-3")], Some(8192.0)),
            (INFO, &[("persistentvolumeclaim", "shared"), ("shared", "true")], Some(1.0)),
            (USED, &[("persistentvolumeclaim", "released"), ("node", "node-3")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "failed"), ("node", "node-3")], Some(8192.0)),
            (INFO, &[("persistentvolumeclaim", ""), ("phase", "Available"), ("node", "node-3")], Some(1.0)),
            (USED, &[("persistentvolumeclaim", "same"), ("node", "node-3")], Some(16384.0)),
            (USED, &[("persistentvolumeclaim", "inner"), ("node", "node-3")], Some(8192.0)),
            ("lp_exporter_volumes_measured", &[("state", "complete")], Some(14.0)),
        ],
        ..WELL
    };

    what_claims_want: Case {
        prepare: |stage| {
            stage.change("persistentvolumeclaims", "shop", "data", |claim| {
                claim["metadata"]["labels"] = json!({"team": "a\"b", "lp-exporter/alert": "false"});
                claim["metadata"]["annotations"] = json!({"lp-exporter/alert-percent": "70"});
                // Edited later than it was granted.
                claim["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
            });
            stage.change("persistentvolumeclaims", "ops", "data", |claim| {
                claim["metadata"]["annotations"] = json!({"lp-exporter/alert-percent": "0.9\n"});
            });
        },
        arguments: &["--claim-label=team", "--claim-label", "app.kubernetes.io/name"],
        says: &["ops/data is \"0.9\\n\"", "a whole number from 1 to 100"],
        samples: &[
            ("local_volume_alert_percent", &[("node", "node-1")], Some(70.0)),
            ("local_volume_alert_percent", &[("node", "node-3")], None),
            ("local_volume_alert_disabled", &[("node", "node-1")], Some(1.0)),
            ("local_volume_alert_disabled", &[("node", "node-2")], None),
            ("lp_exporter_alert_percents_invalid", &[], Some(1.0)),
            (INFO, &[("node", "node-1"), ("label_team", "a\"b"), ("label_app_kubernetes_io_name", "")], Some(1.0)),
            (INFO, &[("node", "node-2"), ("label_team", "")], Some(1.0)),
            (CAPACITY, &[("node", "node-1")], Some(1_073_741_824.0)),
            ("local_volume_stats_requested_bytes", &[("node", "node-1")], Some(2_147_483_648.0)),
        ],
        ..WELL
    };

    /// What a claim of the same name says is not said of the volume that it is not bound to.
    claims_that_are_deleted_made_again_or_lost: Case {
        prepare: |stage| {
            for claim in ["data", "data-1"] {
                stage.change("persistentvolumeclaims", "shop", claim, |claim| {
                    claim["metadata"]["finalizers"] = json!([]);
                });
                stage.server.delete("persistentvolumeclaims", "shop", claim);
            }
            let mut again = Volume::local_path("node-1", "shop", "data", "1Gi").claim();
            again["metadata"]["uid"] = "made-again".into();
            again["metadata"]["labels"] = json!({"lp-exporter/measure": "false"});
            again["spec"].as_object_mut().expect("a spec").remove("volumeName");
            again["status"] = json!({"phase": "Pending"});
            stage.server.put(again);
            stage.change("persistentvolumes", "", &volume_of("shop", "data"), |volume| {
                volume["status"]["phase"] = "Released".into();
            });
            let mut lost = Volume::local_path("node-1", "shop", "lost", "1Gi").claim();
            lost["status"] = json!({"phase": "Lost"});
            stage.server.put(lost);
        },
        says: &["shop/lost"],
        samples: &[
            (USED, &[("node", "node-1")], Some(8192.0)),
            (INFO, &[("node", "node-1"), ("phase", "Released"), ("reason", "")], Some(1.0)),
            ("local_volume_stats_requested_bytes", &[("node", "node-1")], None),
            ("local_volume_stats_requested_bytes", &[("node", "node-2")], None),
            (USED, &[("node", "node-2")], Some(8192.0)),
            ("lp_exporter_claims_lost", &[], Some(1.0)),
        ],
        ..WELL
    };

    only_what_is_collected_is_told: Case {
        arguments: &["--collect=volumes"],
        samples: &[
            (INFO, &[], None),
            ("local_volume_created_timestamp_seconds", &[], None),
            (CAPACITY, &[("node", "node-2")], Some(5e9)),
            (LISTED, &[], Some(3.0)),
        ],
        ..WELL
    };

    facts_alone: Case {
        arguments: &["--collect=facts"],
        samples: &[(CAPACITY, &[("node", "node-2")], None), (INFO, &[("node", "node-2")], Some(1.0))],
        ..WELL
    };
}

scenarios! {
    no_right_to_locate_by_pods: Case {
        prepare: |stage| {
            lone_volumes(stage);
            // It may ask, and is refused.
            stage.rights.extend(rights_to_locate());
        },
        arguments: &["--locate-by-pods"],
        code: 4,
        says: &["could not list pods", "manifests/components/locate-by-pods"],
        ..EARLY
    };

    a_selector_that_is_none: Case {
        arguments: &["--claim-selector=team in a"],
        code: 2,
        says: &["--claim-selector", "team in a", "kubectl -l"],
        check: |stage, _ended| assert!(stage.server.requests().is_empty()),
        ..EARLY
    };

    a_family_that_cannot_be_collected: Case {
        arguments: &["--collect=volumes,everything"],
        code: 2,
        says: &["everything", "volumes, inodes, apparent, filesystems, orphans and facts"],
        check: |stage, _ended| assert!(stage.server.requests().is_empty()),
        ..EARLY
    };

    two_labels_of_one_name: Case {
        arguments: &["--claim-label=app.name,app-name"],
        code: 2,
        says: &["--claim-label", "app.name", "app-name", "label_app_name"],
        check: |stage, _ended| assert!(stage.server.requests().is_empty()),
        ..EARLY
    };

    a_label_that_a_grouping_label_would_overwrite: Case {
        arguments: &["--claim-label=team", "--grouping-label=label_team=x"],
        code: 2,
        says: &["label_team", "--claim-label"],
        check: |stage, _ended| assert!(stage.server.requests().is_empty()),
        ..EARLY
    };
}

// What becomes of nodes by what they are, before any Job is made.
scenarios! {
    nodes_that_no_worker_is_sent_to: Case {
        prepare: |stage| {
            for node in ["node-4", "node-5", "node-6", "node-7"] {
                stage.add_node(node);
                stage.add(&Volume::local_path(node, "shop", node, "1Gi"));
            }
            let node = stage.server.object("nodes", "", "node-1").expect("it is there");
            stage.server.put(objects::taint(node, "ToBeDeletedByClusterAutoscaler", "NoSchedule"));
            stage.change("nodes", "", "node-2", |node| {
                node["metadata"]["finalizers"] = json!(["example.com/wait"]);
                node["metadata"]["deletionTimestamp"] = "2024-01-01T00:00:00Z".into();
            });
            stage.change("nodes", "", "node-3", |node| set_condition(node, "Ready", "False"));
            stage.change("nodes", "", "node-4", |node| node["status"]["nodeInfo"] = json!({"operatingSystem": "windows"}));
            stage.change("nodes", "", "node-5", |node| node["metadata"]["labels"]["type"] = "virtual-kubelet".into());
            // Cordoned, drained and tainted is no reason.
            stage.change("nodes", "", "node-6", |node| node["spec"]["unschedulable"] = true.into());
            for (node, key, effect) in [
                ("node-6", "node.kubernetes.io/unschedulable", "NoSchedule"),
                ("node-7", "dedicated", "NoExecute"),
            ] {
                let object = stage.server.object("nodes", "", node).expect("it is there");
                stage.server.put(objects::taint(object, key, effect));
            }
        },
        samples: &[
            (NOT_MEASURED, &[("node", "node-1"), ("reason", "being_removed")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "being_removed")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-3"), ("reason", "not_ready")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-4"), ("reason", "not_linux")], Some(1.0)),
            (NOT_MEASURED, &[("node", "node-5"), ("reason", "virtual_node")], Some(1.0)),
            (USED, &[("node", "node-6")], Some(8192.0)),
            (USED, &[("node", "node-7")], Some(8192.0)),
            (NODE_VOLUMES, &[("reason", "being_removed")], Some(2.0)),
            (CAPACITY, &[("node", "node-5")], Some(1_073_741_824.0)),
        ],
        jobs_made: Some(&["node-6", "node-7"]),
        check: |stage, ended| {
            assert!(ended.took < Duration::from_secs(12), "{:?}: it is told at once", ended.took);
            for request in stage.server.requests() {
                if request.verb == "create" && request.resource == "jobs" {
                    let tolerations = &request.body["spec"]["template"]["spec"]["tolerations"];
                    assert_eq!(*tolerations, json!([{"operator": "Exists"}]), "every taint is tolerated");
                }
            }
        },
        ..WELL
    };
}

/// The name of the PersistentVolume of a claim.
fn volume_of(namespace: &str, claim: &str) -> String {
    Volume::local_path("", namespace, claim, "1Gi").persistentvolume
}

/// Volumes that say nothing of their node: the pod of one runs on node-3, those of another on two nodes, and nothing mounts
/// the third. Six hundred pods of others run beside them.
fn lone_volumes(stage: &mut Stage) {
    for (claim, nodes) in [
        ("lone", &["node-3"][..]),
        ("spread", &["node-1", "node-2"]),
        ("unused", &[]),
    ] {
        let volume = Volume::local_path("node-3", "shop", claim, "1Gi");
        stage.add(&volume);
        stage.change("persistentvolumes", "", &volume.persistentvolume, |volume| {
            volume["metadata"]["annotations"] = json!({});
            volume["spec"].as_object_mut().expect("a spec").remove("nodeAffinity");
        });
        for node in nodes {
            stage
                .server
                .put(pod("shop", &format!("{claim}-on-{node}"), node, claim));
        }
    }
    for number in 0..600 {
        stage
            .server
            .put(pod("crowd", &format!("pod-{number:03}"), "node-1", "lone"));
    }
}

fn pod(namespace: &str, name: &str, node: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node, "containers": [{"name": "main", "image": "busybox"}],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "scratch", "emptyDir": {}},
            ],
        },
        "status": {"phase": "Running"},
    })
}

/// How often the pods of the whole cluster were listed, by pages.
fn lists_of_pods(stage: &Stage) -> usize {
    let requests = stage.server.requests();
    let lists = requests
        .iter()
        .filter(|request| request.verb == "list" && request.resource == "pods" && request.namespace.is_empty());
    lists.count()
}

/// A node that comes back is measured in the next run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_is_measured_again() {
    let mut stage = Stage::new().await;
    for (ready, used) in [("Unknown", None), ("True", Some(8192.0)), ("False", Some(8192.0))] {
        stage.change("nodes", "", "node-2", |node| set_condition(node, "Ready", ready));
        let ended = stage.run(&[]).await;
        assert_eq!(ended.code, 0, "{}", ended.said);
        assert_eq!(
            stage.gateway.value(USED, &[("node", "node-2")]),
            used,
            "{ready}: {}",
            ended.said
        );
        let measured = f64::from(u8::from(ready == "True"));
        assert_eq!(stage.gateway.value(MEASURED, &[("node", "node-2")]), Some(measured));
        check_sum(&stage, &ended.said);
    }
}

/// The run of another day.
const WELL_WITHOUT_NODE_2: Case = Case {
    jobs_made: Some(&["node-1", "node-3"]),
    ..WELL
};

/// Owners of groups: the labels of the series that tells them. The uid is that of the stand-in's kube-system.
const OWN: &str = r#"{cluster_uid="00000000-0000-4000-8000-000000000001",cronjob="lp-exporter/lp-exporter"}"#;
const OTHER_CLUSTER: &str = r#"{cluster_uid="other-uid",cronjob="lp-exporter/lp-exporter"}"#;
const OTHER_INSTANCE: &str = r#"{cluster_uid="00000000-0000-4000-8000-000000000001",cronjob="lp-exporter/second"}"#;

/// The group of a node that a run of this owner pushed which began so many seconds ago.
fn push_of_run(stage: &Stage, node: &str, owner: &str, age_seconds: f64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    let start = now.as_secs_f64() - age_seconds;
    let body = format!(
        "# TYPE local_volume_stats_used_bytes gauge\nlocal_volume_stats_used_bytes 1\n\
         # TYPE lp_exporter_owner_info gauge\nlp_exporter_owner_info{owner} 1\n\
         # TYPE lp_exporter_run_start_timestamp_seconds gauge\nlp_exporter_run_start_timestamp_seconds {start}\n"
    );
    stage.gateway.push(&format!("job/lp-exporter-job/node/{node}"), &body);
}

/// What is pushed, made or logged has no secret in it: a URL with a password, in a run in which all goes well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_pushed() {
    let mut stage = Stage::new().await;
    let url = stage
        .gateway
        .url()
        .replace("http://", "http://marker-user:marker-password@");
    stage.pushgateway_url = Some(url);
    let ended = stage.run(&[]).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
    let pushed = stage.gateway.requests();
    assert!(
        pushed.iter().any(|request| request.body.contains(USED)),
        "nothing was pushed"
    );
    let texts = pushed
        .iter()
        .map(|request| format!("{} {}", request.path, request.body));
    let objects = stage.server.requests();
    let objects = objects.iter().map(|request| request.body.to_string());
    for text in texts.chain(objects).chain([ended.said.clone()]) {
        assert!(!text.contains("marker"), "{text}");
    }
}

/// How many requests a run makes that finds everything as the one before left it: so many, and three more to the API server
/// and one to the Pushgateway for each node. docs/architecture.md has the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_makes_few_requests() {
    for nodes in [3, 100] {
        let mut stage = Stage::new().await;
        for number in 4..=nodes {
            let node = format!("node-{number}");
            stage.add_node(&node);
            stage.add(&Volume::local_path(&node, "shop", &format!("data-{number}"), "1Gi"));
        }
        let first = stage.run(&[]).await;
        assert_eq!(first.code, 0, "{}", first.said);
        let (api_before, gateway_before) = (stage.server.requests().len(), stage.gateway.requests().len());
        let ended = stage.run(&[]).await;
        assert_eq!(ended.code, 0, "{}", ended.said);
        assert_eq!(
            stage.gateway.value("lp_exporter_run_complete", &[]),
            Some(1.0),
            "{}",
            ended.said
        );
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for request in &stage.server.requests()[api_before..] {
            let (verb, resource) = (&request.verb, &request.resource);
            // The Lease is renewed as time goes by.
            if (verb.as_str(), resource.as_str()) != ("update", "leases") {
                *counts.entry(format!("{verb} {resource}")).or_default() += 1;
            }
        }
        for request in &stage.gateway.requests()[gateway_before..] {
            *counts.entry(format!("{} Pushgateway", request.method)).or_default() += 1;
        }
        let expected = [
            ("GET Pushgateway", 2),
            ("PUT Pushgateway", 3 + nodes),
            ("create configmaps", nodes),
            ("create jobs", nodes),
            ("delete jobs", nodes),
            ("get jobs", 1),
            ("get leases", 1),
            ("get namespaces", 1),
            ("get pods", 1),
            ("list jobs", 1),
            ("list nodes", 1),
            ("list persistentvolumeclaims", 1),
            ("list persistentvolumes", 1),
            ("list pods", 1),
            ("watch jobs", 1),
            ("watch nodes", 1),
            ("watch pods", 1),
        ];
        let expected = expected.map(|(name, count)| (name.to_owned(), count)).into();
        assert_eq!(counts, expected, "{nodes} nodes:\n{}", ended.said);
    }
}

/// Groups of nodes, of this cluster and of another.
fn push_old_groups(stage: &Stage, nodes: &[&str]) {
    for node in nodes {
        for key in [
            format!("job/lp-exporter-job/node/{node}"),
            format!("job/lp-exporter-job/node/{node}/cluster/other"),
        ] {
            let body = format!(
                "# TYPE local_volume_stats_used_bytes gauge\nlocal_volume_stats_used_bytes 1\n\
                 # TYPE lp_exporter_owner_info gauge\nlp_exporter_owner_info{OWN} 1\n"
            );
            stage.gateway.push(&key, &body);
        }
    }
}

// What is wrong before anything is asked of anybody.
scenarios! {
    a_template_with_an_unknown_field: Case {
        prepare: |stage| template(stage, "apiVersion: batch/v1\nkind: Job\nspec:\n  backofLimit: 1\n"),
        arguments: &["--job-template=template.yaml"],
        code: 2,
        says: &["template.yaml", "backofLimit", "line 4"],
        ..EARLY
    };

    a_template_with_a_wrong_type: Case {
        prepare: |stage| template(stage, "apiVersion: batch/v1\nkind: Job\nspec:\n  backoffLimit: many\n"),
        arguments: &["--job-template=template.yaml"],
        code: 2,
        says: &["template.yaml", "spec.backoffLimit", "line 4"],
        ..EARLY
    };

    a_template_with_a_key_twice: Case {
        prepare: |stage| template(stage, "apiVersion: batch/v1\nspec:\n  backoffLimit: 1\n  backoffLimit: 2\n"),
        arguments: &["--job-template=template.yaml"],
        code: 2,
        says: &["template.yaml", "backoffLimit", "line"],
        ..EARLY
    };

    a_template_with_a_field_of_ours: Case {
        prepare: |stage| template(stage, "apiVersion: batch/v1\nspec:\n  activeDeadlineSeconds: 1\n  template: {}\n"),
        arguments: &["--job-template=template.yaml"],
        code: 2,
        says: &["template.yaml", "spec.activeDeadlineSeconds", "remove it"],
        ..EARLY
    };

    a_template_that_is_not_there: Case {
        arguments: &["--job-template=template.yaml"],
        code: 2,
        says: &["template.yaml"],
        ..EARLY
    };

    a_url_that_is_none: Case {
        arguments: &["--pushgateway-url=pushgateway:9091"],
        code: 2,
        says: &["pushgateway:9091"],
        ..EARLY
    };

    a_base_path_that_is_not_absolute: Case {
        arguments: &["--base-path=data"],
        code: 2,
        says: &["--base-path", "data", "absolute"],
        ..EARLY
    };

    a_base_path_that_is_everything: Case {
        arguments: &["--base-path=/"],
        code: 2,
        says: &["--base-path", "/"],
        ..EARLY
    };

    an_interval_that_is_too_short: Case {
        arguments: &["--interval=10s"],
        code: 2,
        says: &["--interval", "one minute"],
        ..EARLY
    };

    a_job_deadline_that_does_not_fit: Case {
        prepare: |stage| {
            stage.server.update("jobs", NAMESPACE, OWN_JOB, |job| job["spec"]["activeDeadlineSeconds"] = 600.into());
        },
        code: 2,
        says: &["activeDeadlineSeconds 600", "jobTemplate"],
        ..EARLY
    };

    a_grouping_label_that_a_series_uses: Case {
        arguments: &["--grouping-label=namespace=a"],
        code: 2,
        says: &["namespace"],
        ..EARLY
    };

    no_image_outside_of_a_pod: Case {
        prepare: |stage| stage.in_cluster = false,
        code: 2,
        says: &["--worker-image"],
        ..EARLY
    };

    a_run_outside_of_the_cluster: Case {
        prepare: |stage| stage.in_cluster = false,
        arguments: &["--worker-image=registry.example/other:2", "--grouping-label=cluster=one"],
        samples: &[(USED, &[("cluster", "one"), ("node", "node-1")], Some(8192.0))],
        // Its groups carry the label as well.
        pushes: (false, false),
        check: |stage, _ended| {
            assert!(stage.gateway.group(&[("cluster", "one"), ("job", "lp-exporter-success")]).is_some());
        },
        ..WELL
    };
}

/// The controllers here run in the stage's folder.
fn template(stage: &Stage, text: &str) {
    std::fs::write(stage.folder.path().join("template.yaml"), text).expect("the template can be written");
}

// Runs that are over, or under way.
scenarios! {
    /// Its Job is gone: nobody has to be waited for.
    the_lease_of_a_dead_run_is_taken_over: Case {
        prepare: |stage| hold_lease(stage, "uid-of-a-job-that-is-gone"),
        check: |_stage, ended| assert!(ended.took < Duration::from_secs(12), "{:?}", ended.took),
        ..WELL
    };

    /// An earlier pod of the same Job held it.
    the_lease_of_a_dead_twin_is_our_own: Case {
        prepare: |stage| hold_lease(stage, &format!("uid-of-{OWN_JOB}")),
        check: |_stage, ended| assert!(ended.took < Duration::from_secs(12), "{:?}", ended.took),
        ..WELL
    };

    /// Its Job is there, but nobody renews: that shows after the Lease's duration.
    the_lease_of_a_silent_run_is_taken_over: Case {
        prepare: |stage| {
            put_other_run(stage);
            hold_lease(stage, "uid-of-lp-exporter-manual");
        },
        says: &["lp-exporter-manual"],
        ..WELL
    };

    leftovers_of_dead_runs_are_deleted: Case {
        prepare: |stage| {
            leave_job(stage, "left-complete", "node-1", Some("Complete"), "2026-01-01T00:00:00Z");
            leave_job(stage, "left-running", "node-1", None, "2026-01-01T00:00:00Z");
            leave_job(stage, "left-failed-old", "node-2", Some("Failed"), "2026-01-01T00:00:00Z");
            leave_job(stage, "left-failed-new", "node-2", Some("Failed"), "2026-01-01T00:05:00Z");
        },
        jobs_left: &["node-2"],
        check: |stage, _ended| {
            let names: Vec<String> = stage.jobs().iter().map(name).collect();
            assert_eq!(names, ["left-failed-new"]);
        },
        ..WELL
    };

    /// A pod of an earlier run does not end, and nobody knows what it waits for: no second one is started beside it.
    a_node_whose_earlier_worker_hangs_is_told: Case {
        prepare: |stage| leave_hanging(stage, "left-hanging"),
        says: &["node-2", "earlier_worker_hangs", "left-hanging-pod"],
        samples: &[
            (NOT_MEASURED, &[("node", "node-2"), ("reason", "earlier_worker_hangs")], Some(1.0)),
            (USED, &[("node", "node-1")], Some(8192.0)),
        ],
        jobs_made: Some(&["node-1", "node-3"]),
        ..WELL
    };

    /// What it waits for stands on the Pushgateway: one more worker leaves that alone.
    one_more_worker_leaves_alone_what_hangs: Case {
        prepare: |stage| {
            leave_hanging(stage, "left-hanging");
            tell_timed_out(stage);
        },
        says: &["node-2", "left-hanging-pod", "not touched"],
        samples: &[
            (USED, &[("persistentvolumeclaim", "other"), ("node", "node-2")], Some(8192.0)),
            (USED, &[("persistentvolumeclaim", "data-1")], None),
            (SCAN_STATE, &[("persistentvolumeclaim", "data-1"), ("state", "timeout")], Some(1.0)),
            (MEASURED, &[("node", "node-2")], Some(1.0)),
        ],
        jobs_made: Some(ALL),
        ..WELL
    };

    /// Every volume had its answer, so it waits for what only the search for orphans opens: one more worker does not search.
    one_more_worker_leaves_alone_what_only_orphans_need: Case {
        prepare: |stage| {
            leave_hanging(stage, "left-hanging");
            stage.gateway.push(
                "job/lp-exporter-job/node/node-2",
                "# TYPE local_volume_scan_state gauge\n\
                 local_volume_scan_state{persistentvolume=\"another\",state=\"complete\",method=\"walk\"} 1\n",
            );
        },
        says: &["node-2", "left-hanging-pod", "looks for no orphans"],
        samples: &[
            (USED, &[("node", "node-2")], Some(8192.0)),
            (MEASURED, &[("node", "node-2")], Some(1.0)),
        ],
        jobs_made: Some(ALL),
        ..WELL
    };

    /// But never a third.
    two_workers_that_hang_are_enough: Case {
        prepare: |stage| {
            leave_hanging(stage, "left-hanging");
            leave_hanging(stage, "left-hanging-too");
            tell_timed_out(stage);
        },
        says: &["earlier_worker_hangs", "left-hanging-pod and left-hanging-too-pod"],
        samples: &[(NOT_MEASURED, &[("node", "node-2"), ("reason", "earlier_worker_hangs")], Some(1.0))],
        jobs_made: Some(&["node-1", "node-3"]),
        ..WELL
    };
}

/// A worker of an earlier run on node-2 that does not end.
fn leave_hanging(stage: &mut Stage, job: &str) {
    leave_job(stage, job, "node-2", None, "2026-01-01T00:00:00Z");
    stage.server.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{job}-pod"), "namespace": NAMESPACE, "labels": worker_labels(),
            "finalizers": ["stand-in/never-ends"],
            "ownerReferences": [{
                "apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": format!("uid-of-{job}"),
                "controller": true,
            }],
        },
        "spec": {"nodeName": "node-2", "containers": []},
        "status": {"phase": "Running"},
    }));
}

/// What an earlier worker of node-2 pushed before it could not end, and a volume that it had measured.
fn tell_timed_out(stage: &mut Stage) {
    let hangs = Volume::local_path_data1("node-2", "shop", "data-1", "5G").persistentvolume;
    stage.add(&Volume::local_path_data1("node-2", "shop", "other", "1G"));
    stage.gateway.push(
        "job/lp-exporter-job/node/node-2",
        &format!(
            "# TYPE local_volume_scan_state gauge\n\
             local_volume_scan_state{{persistentvolume=\"{hangs}\",state=\"timeout\",method=\"\"}} 1\n\
             local_volume_scan_state{{persistentvolume=\"another\",state=\"complete\",method=\"walk\"}} 1\n"
        ),
    );
}

fn hold_lease(stage: &Stage, holder: &str) {
    stage.server.put(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "lp-exporter", "namespace": NAMESPACE},
        "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3,
            "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z",
        },
    }));
}

/// A controller's Job that was made by hand and is active.
fn put_other_run(stage: &Stage) {
    for object in controller_of_cronjob("lp-exporter-manual", IMAGE) {
        stage.server.put(object);
    }
    stage.server.delete("pods", NAMESPACE, "lp-exporter-manual-pod");
}

fn worker_labels() -> Value {
    json!({
        "app.kubernetes.io/name": "lp-exporter", "app.kubernetes.io/component": "worker",
        "lp-exporter/instance": "lp-exporter", "lp-exporter/run": "a-run-that-is-over",
    })
}

/// A worker's Job of a run that is over.
fn leave_job(stage: &Stage, name: &str, node: &str, condition: Option<&str>, created: &str) {
    let condition = condition.map(|kind| json!({"type": kind, "status": "True"}));
    stage.server.put(json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"), "creationTimestamp": created,
            "labels": worker_labels(), "annotations": {"lp-exporter/node": node},
        },
        "spec": {"template": {"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": [node]},
            ]}]},
        }}, "containers": []}}},
        "status": {"conditions": condition.into_iter().collect::<Vec<_>>()},
    }));
}

/// The second run says who runs and since when, and ends well without touching anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_beside_another_does_nothing() {
    let mut stage = Stage::new().await;
    put_other_run(&stage);
    hold_lease(&stage, "uid-of-lp-exporter-manual");
    let server = stage.server.clone();
    let renewing = tokio::spawn(async move {
        for second in 0.. {
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.update("leases", NAMESPACE, "lp-exporter", |lease| {
                lease["spec"]["renewTime"] = format!("2026-01-01T00:00:{:02}.000000Z", second % 60).into();
            });
        }
    });
    let ended = stage.run(&[]).await;
    renewing.abort();
    assert_eq!(ended.code, 0, "{}", ended.said);
    for words in ["another run is at work", "lp-exporter-manual", "2026-01-01T00:00:00"] {
        assert!(ended.said.contains(words), "{words:?} is not in:\n{}", ended.said);
    }
    assert!(stage.gateway.requests().is_empty(), "something was pushed");
    assert!(stage.jobs_made().is_empty(), "a Job was made");
    assert_eq!(stage.lease()["spec"]["holderIdentity"], "uid-of-lp-exporter-manual");
}

/// Two runs that start together: one does the work, the other ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_at_once_are_one() {
    let mut stage = Stage::new().await;
    stage.in_cluster = false;
    let arguments = ["--worker-image=registry.example/lp-exporter:1"];
    let (first, second) = (stage.start(&arguments), stage.start(&arguments));
    let (first, second) = tokio::join!(end_of(first), end_of(second));
    let said = format!("{}\n{}", first.said, second.said);
    assert_eq!((first.code, second.code), (0, 0), "{said}");
    // Whoever comes last waits for the other, or finds it done and does its own run after it.
    assert!(stage.jobs().is_empty(), "{said}");
    // The Jobs of one run are gone before the first of another is made.
    let mut alive: BTreeMap<String, String> = BTreeMap::new();
    for request in stage
        .server
        .requests()
        .iter()
        .filter(|request| request.resource == "jobs")
    {
        match request.verb.as_str() {
            "create" => {
                let run = request.body["metadata"]["labels"]["lp-exporter/run"]
                    .as_str()
                    .expect("a run")
                    .to_owned();
                assert!(
                    alive.values().all(|other| *other == run),
                    "two runs at work: {alive:?}, {run}: {said}"
                );
                alive.insert(request.name.clone(), run);
            }
            "delete" => {
                alive.remove(&request.name);
            }
            _ => {}
        }
    }
    assert!(alive.is_empty(), "{alive:?}: {said}");
}

/// SIGTERM in the middle: the report says so, the workers are gone, the Lease is free, all within the grace period.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_told_to_end_reports_first() {
    let mut stage = Stage::new().await;
    stage.fate("node-2", Fate::Hang);
    let child = stage.start(&[]);
    let measured = |stage: &Stage| stage.gateway.value(USED, &[("node", "node-1")]).is_some();
    wait_until(&stage, |stage| measured(stage) && stage.jobs_made().len() == 3).await;
    let ended = terminate(child).await;
    assert_eq!(ended.code, 7, "{}", ended.said);
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    let interrupted = stage
        .gateway
        .value(NOT_MEASURED, &[("node", "node-2"), ("reason", "run_interrupted")]);
    assert_eq!(interrupted, Some(1.0), "{}", ended.said);
    assert!(
        stage.gateway.group(&[("job", "lp-exporter-success")]).is_none(),
        "that was no success"
    );
    assert!(stage.jobs().is_empty(), "workers are left: {}", ended.said);
    check_manners(&stage, &ended.said);
}

/// SIGTERM while the API server does not answer: the grace period holds all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_in_time_although_a_request_hangs() {
    let mut stage = Stage::new().await;
    let hanging = Rule::on("create", "jobs", Answer::Serve).delayed(Duration::from_secs(60));
    stage.server.script(hanging);
    let child = stage.start(&[]);
    wait_until(&stage, |stage| !stage.jobs_made().is_empty()).await;
    let ended = terminate(child).await;
    assert_eq!(ended.code, 7, "{}", ended.said);
    assert!(
        ended.took < Duration::from_secs(25),
        "{:?} is too near to the grace period of 30 s",
        ended.took
    );
    check_manners(&stage, &ended.said);
}

/// A Pushgateway without persistence is replaced while workers run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacities_that_the_pushgateway_lost_in_mid_run_are_pushed_again() {
    let mut stage = Stage::new().await;
    // One at a time, so that the first has delivered while others have not.
    let child = stage.start(&["--parallel-jobs=1"]);
    wait_until(&stage, |stage| {
        stage
            .gateway
            .group(&[("job", "lp-exporter-job"), ("node", "node-1")])
            .is_some()
    })
    .await;
    stage.gateway.forget();
    let ended = end_of(child).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert!(ended.said.contains("the capacities are pushed again"), "{}", ended.said);
    let lost = [("node", "node-1"), ("reason", "numbers_lost")];
    assert_eq!(stage.gateway.value(NOT_MEASURED, &lost), Some(1.0), "{}", ended.said);
    check_sum(&stage, &ended.said);
    assert!(
        !stage.gateway.samples("local_volume_stats_capacity_bytes").is_empty(),
        "{}",
        ended.said
    );
    assert_eq!(
        stage.gateway.samples("lp_exporter_node_expected").len(),
        3,
        "{}",
        ended.said
    );
}

/// Another run takes the Lease: this one ends, and pushes nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_loses_its_lease_ends() {
    let mut stage = Stage::new().await;
    stage.fate("node-2", Fate::Hang);
    let child = stage.start(&[]);
    wait_until(&stage, |stage| stage.jobs_made().len() == 3).await;
    stage.server.update("leases", NAMESPACE, "lp-exporter", |lease| {
        lease["spec"]["holderIdentity"] = "uid-of-another-job".into();
    });
    let ended = end_of(child).await;
    assert_eq!(ended.code, 7, "{}", ended.said);
    assert!(ended.said.contains("another run took the Lease"), "{}", ended.said);
    assert!(
        stage.gateway.group(&[("job", "lp-exporter-run")]).is_none(),
        "the report is the other run's to push"
    );
    assert_eq!(stage.lease()["spec"]["holderIdentity"], "uid-of-another-job");
    assert!(stage.jobs().is_empty(), "workers are left: {}", ended.said);
}

/// Watches that break and versions that are too old are taken up again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_survives_broken_watches() {
    let mut stage = Stage::new().await;
    stage.fate("node-2", Fate::Hang);
    let child = stage.start(&[]);
    let hanging_pod = |stage: &Stage| {
        let pods = stage.server.objects("pods").into_iter();
        let hangs = |pod: &Value| {
            pod["spec"]["nodeName"] == "node-2" && pod["status"]["containerStatuses"][0]["state"].is_object()
        };
        pods.filter(hangs).map(|pod| name(&pod)).next()
    };
    wait_until(&stage, |stage| {
        stage.jobs_made().len() == 3 && hanging_pod(stage).is_some()
    })
    .await;
    stage.server.cut_watches();
    stage.server.compact();
    let pod = hanging_pod(&stage).expect("it was there");
    stage.server.update("pods", NAMESPACE, &pod, |pod| {
        pod["status"]["phase"] = "Succeeded".into();
        pod["status"]["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
    });
    let ended = end_of(child).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
    // The worker was seen to end well; that it pushed nothing is seen too.
    let lost = [("node", "node-2"), ("reason", "numbers_lost")];
    assert_eq!(stage.gateway.value(NOT_MEASURED, &lost), Some(1.0), "{}", ended.said);
}

/// No more workers at once than are allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_run_as_many_at_once_as_allowed() {
    let mut stage = Stage::new().await;
    for node in ["node-4", "node-5", "node-6"] {
        stage.add_node(node);
        stage.add(&Volume::local_path(node, "shop", node, "1Gi"));
    }
    let at_once = stage.kubelet.as_ref().expect("it is not attached yet").at_once();
    let ended = stage.run(&["--parallel-jobs=2"]).await;
    assert_eq!(ended.code, 0, "{}", ended.said);
    assert_eq!(stage.gateway.samples(USED).len(), 6, "{}", ended.said);
    assert!((1..=2).contains(&at_once.most()), "{} at once", at_once.most());
}

/// Pods after ten good runs are as many as after one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_leave_nothing_behind() {
    let mut stage = Stage::new().await;
    for run in 1..=3 {
        let ended = stage.run(&[]).await;
        assert_eq!(ended.code, 0, "{}", ended.said);
        assert_eq!(stage.jobs().len(), 0, "after run {run}: {}", ended.said);
        assert_eq!(stage.server.objects("pods").len(), 1, "after run {run}: {}", ended.said);
        assert_eq!(
            stage.server.objects("configmaps").len(),
            0,
            "after run {run}: {}",
            ended.said
        );
    }
}

/// Polls what other processes do; fails when it takes too long.
async fn wait_until(stage: &Stage, condition: impl Fn(&Stage) -> bool) {
    let waiting = async {
        while !condition(stage) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("it happens in time");
}

async fn terminate(child: Child) -> Ended {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    kill_process(pid.expect("the controller runs"), Signal::TERM).expect("it is our own process");
    end_of(child).await
}
