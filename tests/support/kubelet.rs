//! Plays scheduler, kubelet and Job controller for the Jobs that are created on the stand-in API server.
//!
//! A worker is run as a process of its own: arguments, environment, plan and base directories are taken from the Job
//! and its ConfigMap, as kubelet takes them; only each node's root directory is a directory of this machine, so the
//! plan's mount paths are rewritten. Or a Job is given another [`Fate`], whose statuses are those that a real cluster
//! showed (Kubernetes 1.36, containerd 1.6).

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::api_server::{ApiServer, now};
use super::objects::set_condition;

/// How long a pod waits for its ConfigMap; kubelet waits for ever.
const CONFIG_MAP_PATIENCE: Duration = Duration::from_secs(20);
/// What a worker gets between SIGTERM and SIGKILL.
const GRACE_PERIOD: Duration = Duration::from_secs(5);
/// Between the end of a pod and that of its Job; on a cluster it was two seconds.
const JOB_CONTROLLER_DELAY: Duration = Duration::from_millis(400);
/// kubelet keeps that much of a termination message.
const TERMINATION_MESSAGE_LIMIT_BYTES: usize = 4096;

/// What becomes of a Job.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Its worker is run.
    Run,
    /// Its worker is run with a plan that is changed first.
    RunWith(fn(&mut Value)),
    /// Its worker is run, and something else stands in its termination message.
    RunThenSay(&'static str),
    /// Its container ends at once: exit code, kubelet's reason, termination message.
    Exit(i32, &'static str, String),
    /// The same, but the end of the Job is seen before that of its pod: nothing orders two watches.
    JobFirst(i32, &'static str, &'static str),
    /// Its pod is evicted, and the Job makes another one, whose worker is run.
    Evict,
    /// Its pod does not go away, as on a node that is cut off: the Job fails and never says that it has failed.
    NeverFails,
    /// Its pod finds no node, with the scheduler's message.
    Unschedulable(&'static str),
    /// Its container does not come to be: kubelet's reason and message.
    Waiting(&'static str, &'static str),
    /// Its container runs and never ends.
    Hang,
    /// Its container runs, and then its node stops to answer.
    LoseNode,
    /// It gets no pod.
    NoPod,
}

/// The nodes of a cluster, as far as Jobs see them. Fill it, then [`Kubelet::attach`] it.
pub struct Kubelet {
    program: PathBuf,
    scratch: PathBuf,
    roots: BTreeMap<String, PathBuf>,
    fates: BTreeMap<String, VecDeque<Fate>>,
    at_once: Arc<AtOnce>,
}

/// How many workers run, and the most that ever ran at once.
#[derive(Default)]
pub struct AtOnce {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl AtOnce {
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn one_more(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn one_less(&self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Kubelet {
    /// `program` is run for workers, with the Job's arguments; `scratch` takes plans, messages and logs.
    pub fn new(program: &Path, scratch: &Path) -> Kubelet {
        Kubelet {
            program: program.to_owned(),
            scratch: scratch.to_owned(),
            roots: BTreeMap::new(),
            fates: BTreeMap::new(),
            at_once: Arc::default(),
        }
    }

    /// Counts the workers that run.
    pub fn at_once(&self) -> Arc<AtOnce> {
        self.at_once.clone()
    }

    /// Adds a node whose root is this directory.
    pub fn node(mut self, name: &str, root: &Path) -> Kubelet {
        self.roots.insert(name.to_owned(), root.to_owned());
        self
    }

    /// Says what becomes of the node's next Job that nothing was said of yet; those after it are run.
    pub fn fate(mut self, node: &str, fate: Fate) -> Kubelet {
        self.fates.entry(node.to_owned()).or_default().push_back(fate);
        self
    }

    /// From now on this server's Jobs are attended to.
    pub fn attach(self, server: &ApiServer) {
        let fates = Arc::new(Mutex::new(self.fates));
        let machine = Arc::new(Machine {
            program: self.program,
            scratch: self.scratch,
            roots: self.roots,
            at_once: self.at_once,
        });
        server.on_job(move |server, job| {
            let node = pinned_to(&job);
            let mut fates = fates.lock().expect("no holder of the lock panics");
            let fate = fates.get_mut(&node).and_then(VecDeque::pop_front).unwrap_or(Fate::Run);
            let work = Work {
                server,
                machine: machine.clone(),
                job,
                node,
                pods: AtomicUsize::new(0),
            };
            async move { work.follow(fate).await }
        });
    }
}

/// What every worker's process is made from.
struct Machine {
    program: PathBuf,
    scratch: PathBuf,
    roots: BTreeMap<String, PathBuf>,
    at_once: Arc<AtOnce>,
}

/// One Job on its way.
struct Work {
    server: ApiServer,
    machine: Arc<Machine>,
    job: Value,
    node: String,
    /// Pods of the Job before the present one.
    pods: AtomicUsize,
}

impl Work {
    async fn follow(self, fate: Fate) {
        if matches!(fate, Fate::NoPod) {
            return;
        }
        self.server.put(self.pod());
        match fate {
            Fate::NoPod => {}
            Fate::Run => self.run(|_plan| {}, None).await,
            Fate::RunWith(change) => self.run(change, None).await,
            Fate::RunThenSay(message) => self.run(|_plan| {}, Some(message)).await,
            Fate::Exit(code, reason, message) => {
                self.running();
                self.end(code, reason, &message).await;
            }
            Fate::JobFirst(code, reason, message) => {
                self.running();
                self.end_job(code);
                tokio::time::sleep(JOB_CONTROLLER_DELAY).await;
                self.end_pod(code, reason, message);
            }
            Fate::Evict => {
                self.running();
                self.change_pod(|pod| {
                    pod["status"]["phase"] = "Failed".into();
                    pod["status"]["reason"] = "Evicted".into();
                    pod["status"]["conditions"] = json!([{
                        "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet",
                        "message": "The node was low on resource: ephemeral-storage.", "lastTransitionTime": now(),
                    }]);
                });
                tokio::time::sleep(JOB_CONTROLLER_DELAY).await;
                self.pods.fetch_add(1, Ordering::SeqCst);
                self.server.put(self.pod());
                self.run(|_plan| {}, None).await;
            }
            Fate::NeverFails => {
                self.running();
                self.change_pod(|pod| {
                    pod["metadata"]["finalizers"] = json!(["stand-in/never-ends"]);
                    pod["metadata"]["deletionTimestamp"] = now().into();
                });
                self.server.update("jobs", self.namespace(), self.name(), |job| {
                    job["status"] = json!({"active": 0, "terminating": 1, "conditions": [{
                        "type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded",
                        "message": "Job was active longer than specified deadline", "lastTransitionTime": now(),
                    }]});
                });
            }
            Fate::Unschedulable(message) => self.status(&json!({"phase": "Pending", "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": now(),
            }]})),
            Fate::Waiting(reason, message) => self.waiting(reason, message),
            Fate::Hang => self.running(),
            Fate::LoseNode => {
                self.running();
                self.server
                    .update("nodes", "", &self.node, |node| set_condition(node, "Ready", "Unknown"));
            }
        }
    }

    /// Runs the worker to its end, or until its pod is deleted.
    async fn run(&self, change: fn(&mut Value), say: Option<&str>) {
        let folder = self.machine.scratch.join(self.name());
        let mut child = match self.start(&folder, change).await {
            Ok(child) => child,
            Err(why) => return self.waiting("CreateContainerError", &why),
        };
        self.running();
        self.machine.at_once.one_more();
        let pod = self.pod_name();
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = self.server.wait_gone("pods", self.namespace(), &pod) => {
                terminate(&mut child).await;
                self.machine.at_once.one_less();
                return;
            }
        };
        self.machine.at_once.one_less();
        let code = ended.ok().and_then(|status| status.code()).unwrap_or(137);
        let message = match say {
            Some(say) => say.as_bytes().to_vec(),
            None => std::fs::read(folder.join("message")).unwrap_or_default(),
        };
        let kept = &message[..message.len().min(TERMINATION_MESSAGE_LIMIT_BYTES)];
        let reason = if code == 0 { "Completed" } else { "Error" };
        self.end(code, reason, &String::from_utf8_lossy(kept)).await;
    }

    async fn start(&self, folder: &Path, change: fn(&mut Value)) -> Result<Child, String> {
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let plan = self.plan(change).await?;
        std::fs::write(folder.join("plan"), plan).map_err(|error| error.to_string())?;
        std::fs::write(folder.join("message"), "").map_err(|error| error.to_string())?;
        let log = std::fs::File::create(folder.join("log")).map_err(|error| error.to_string())?;
        let container = self.container();
        let texts = |values: &Value| -> Vec<String> {
            let values = values.as_array().into_iter().flatten();
            values
                .map(|value| value.as_str().unwrap_or_default().to_owned())
                .collect()
        };
        let mut command = Command::new(&self.machine.program);
        // A pod knows nothing but what its Job says.
        command.env_clear().args(texts(&container["args"]));
        for variable in container["env"].as_array().into_iter().flatten() {
            let text = |field: &str| variable[field].as_str().unwrap_or_default();
            command.env(text("name"), text("value"));
        }
        command
            .env("LP_EXPORTER_PLAN", folder.join("plan"))
            .env("LP_EXPORTER_TERMINATION_MESSAGE", folder.join("message"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())
    }

    /// The plan from the Job's ConfigMap, with the mount paths of its bases rewritten to the node's directories.
    async fn plan(&self, change: fn(&mut Value)) -> Result<Vec<u8>, String> {
        let volumes = self.job["spec"]["template"]["spec"]["volumes"].as_array();
        let volume = volumes
            .into_iter()
            .flatten()
            .find(|volume| volume["configMap"].is_object());
        let name = volume
            .and_then(|volume| volume["configMap"]["name"].as_str())
            .ok_or("the Job mounts no ConfigMap")?;
        let server = &self.server;
        let map = server
            .wait_for("configmaps", self.namespace(), name, CONFIG_MAP_PATIENCE, |_| true)
            .await;
        let map = map.ok_or_else(|| format!("configmap {name:?} not found"))?;
        let data = map["binaryData"]["plan.json.gz"]
            .as_str()
            .ok_or("the ConfigMap holds no plan.json.gz")?;
        let packed = STANDARD.decode(data).map_err(|error| error.to_string())?;
        let mut plan: Value =
            serde_json::from_reader(GzDecoder::new(&packed[..])).map_err(|error| error.to_string())?;
        for base in plan["bases"].as_array_mut().into_iter().flatten() {
            if let Some(mounted_at) = base["mounted_at"].as_str() {
                base["mounted_at"] = self.on_this_machine(mounted_at)?.to_string_lossy().into();
            }
        }
        change(&mut plan);
        let text = plan.to_string();
        let mut packed = Vec::new();
        let mut encoder = GzEncoder::new(text.as_bytes(), Compression::fast());
        encoder.read_to_end(&mut packed).map_err(|error| error.to_string())?;
        Ok(packed)
    }

    /// The directory that the Job mounts at a path. kubelet makes one that is missing.
    fn on_this_machine(&self, mounted_at: &str) -> Result<PathBuf, String> {
        let volumes = self.job["spec"]["template"]["spec"]["volumes"].as_array();
        let mounts = self.container()["volumeMounts"].as_array();
        let mount = mounts
            .into_iter()
            .flatten()
            .find(|mount| mount["mountPath"] == mounted_at);
        let mount = mount.ok_or_else(|| format!("the Job mounts nothing at {mounted_at}"))?;
        let volume = volumes
            .into_iter()
            .flatten()
            .find(|volume| volume["name"] == mount["name"]);
        let path = volume.and_then(|volume| volume["hostPath"]["path"].as_str());
        let path = path.ok_or_else(|| format!("what the Job mounts at {mounted_at} is no hostPath"))?;
        let root = self
            .machine
            .roots
            .get(&self.node)
            .ok_or_else(|| format!("there is no node {}", self.node))?;
        let directory = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        Ok(directory)
    }

    fn container(&self) -> &Value {
        &self.job["spec"]["template"]["spec"]["containers"][0]
    }

    fn name(&self) -> &str {
        self.job["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.job["metadata"]["namespace"].as_str().unwrap_or_default()
    }

    fn pod_name(&self) -> String {
        format!("{}-x7k2{}", self.name(), self.pods.load(Ordering::SeqCst))
    }

    fn pod(&self) -> Value {
        let mut pod = self.job["spec"]["template"].clone();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = self.pod_name().into();
        pod["metadata"]["namespace"] = self.namespace().into();
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "batch/v1", "kind": "Job", "name": self.name(), "uid": self.job["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true,
        }]);
        pod["status"] = json!({"phase": "Pending"});
        pod
    }

    fn change_pod(&self, change: impl FnOnce(&mut Value)) {
        self.server.update("pods", self.namespace(), &self.pod_name(), change);
    }

    fn status(&self, status: &Value) {
        self.change_pod(|pod| pod["status"] = status.clone());
    }

    /// The status of a pod on its node whose container is in the given state.
    fn container_status(&self, phase: &str, state: &Value) {
        self.change_pod(|pod| {
            pod["spec"]["nodeName"] = self.node.as_str().into();
            pod["status"] = json!({
                "phase": phase, "startTime": now(),
                "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}],
                "containerStatuses": [{
                    "name": self.container()["name"], "image": self.container()["image"], "imageID": "",
                    "ready": phase == "Running", "restartCount": 0, "state": state,
                }],
            });
        });
    }

    fn running(&self) {
        self.container_status("Running", &json!({"running": {"startedAt": now()}}));
    }

    fn waiting(&self, reason: &str, message: &str) {
        self.container_status("Pending", &json!({"waiting": {"reason": reason, "message": message}}));
    }

    async fn end(&self, code: i32, reason: &str, message: &str) {
        self.end_pod(code, reason, message);
        tokio::time::sleep(JOB_CONTROLLER_DELAY).await;
        self.end_job(code);
    }

    fn end_pod(&self, code: i32, reason: &str, message: &str) {
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let terminated = json!({
            "exitCode": code, "reason": reason, "message": message, "startedAt": now(), "finishedAt": now(),
        });
        self.container_status(phase, &json!({"terminated": terminated}));
    }

    fn end_job(&self, code: i32) {
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastProbeTime": now(), "lastTransitionTime": now(),
            })
        };
        let conditions = if code == 0 {
            let message = "Reached expected number of succeeded pods";
            ["SuccessCriteriaMet", "Complete"].map(|kind| condition(kind, "CompletionsReached", message))
        } else {
            let message = "Job has reached the specified backoff limit";
            ["FailureTarget", "Failed"].map(|kind| condition(kind, "BackoffLimitExceeded", message))
        };
        self.server.update("jobs", self.namespace(), self.name(), |job| {
            job["status"] = json!({"startTime": now(), "conditions": conditions});
        });
    }
}

/// The node that a Job's pod may run on, by required affinity on the node's name.
pub fn pinned_to(job: &Value) -> String {
    let affinity = &job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
    let terms = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let field = &terms[0]["matchFields"][0];
    assert_eq!(
        field["key"], "metadata.name",
        "the Job is not pinned by its node's name: {job:#}"
    );
    field["values"][0].as_str().unwrap_or_default().to_owned()
}

async fn terminate(child: &mut Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself in between.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(GRACE_PERIOD, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
