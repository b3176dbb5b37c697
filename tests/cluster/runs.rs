//! Runs of the exporter, and everything that was seen of them while they lasted.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fixtures::text;
use crate::install::{INTERVAL_SECONDS, NAMESPACE, patch_cron_job};
use crate::kubectl::{eventually, get, items, kubectl};

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Run {
    /// The Job's name.
    pub(crate) job: String,
    /// What the controller exited with, the last attempt's if there were two.
    pub(crate) exit_code: i64,
    /// How many pods the Job started.
    pub(crate) attempts: usize,
    /// The controller's log.
    pub(crate) log: String,
    /// From the Job's creation to its end.
    pub(crate) seconds: f64,
    /// The last that was seen of each worker's pod, by node.
    pub(crate) workers: BTreeMap<String, Value>,
}

impl Run {
    /// The run did what it could.
    pub(crate) fn ensure_done(self) -> Result<Self> {
        ensure!(
            self.exit_code == 0,
            "{} exited with {}:\n{}",
            self.job,
            self.exit_code,
            self.log
        );
        Ok(self)
    }

    /// The JSON summary that the worker on `node` left as its termination message.
    pub(crate) fn worker_summary(&self, node: &str) -> Result<Value> {
        let pod = self
            .workers
            .get(node)
            .with_context(|| format!("no worker was seen on {node}\n{}", self.log))?;
        let message = text(&pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]);
        serde_json::from_str(&message).with_context(|| format!("the worker on {node} left the message {message:?}"))
    }

    /// The last line of the log, which is the controller's summary.
    pub(crate) fn summary(&self) -> Result<Value> {
        let lines = self
            .log
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .into_iter()
            .next()
            .with_context(|| format!("no JSON in the log:\n{}", self.log))
    }
}

/// A run that was started.
pub(crate) struct Started {
    job: String,
    since: Instant,
    workers: Watch,
}

/// Starts a run by hand and waits for its end.
pub(crate) fn run() -> Result<Run> {
    start()?.finish()
}

/// Starts a run by hand.
pub(crate) fn start() -> Result<Started> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let job = format!(
        "manual-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let workers = Watch::start()?;
    let since = Instant::now();
    kubectl(&["create", "job", &job, "--from=cronjob/lp-exporter", "-n", NAMESPACE])?;
    Ok(Started { job, since, workers })
}

/// Lets the schedule start a run.
pub(crate) fn start_by_schedule() -> Result<Started> {
    let workers = Watch::start()?;
    patch_cron_job(&json!({"spec": {"suspend": false}}))?;
    let job = eventually("the schedule to start a run", Duration::from_secs(90), || {
        let jobs = get(&["jobs", "-n", NAMESPACE])?;
        let is_scheduled = |job: &&Value| {
            job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].is_string()
                && job["status"]["active"] == 1
        };
        items(&jobs)
            .iter()
            .find(is_scheduled)
            .map(|job| text(&job["metadata"]["name"]))
            .context("no Job of the schedule")
    });
    let since = Instant::now();
    patch_cron_job(&json!({"spec": {"suspend": true}}))?;
    Ok(Started {
        job: job?,
        since,
        workers,
    })
}

impl Started {
    /// The Job's name.
    pub(crate) fn job(&self) -> &str {
        &self.job
    }

    /// Waits until a worker's pod on `node` satisfies `condition`.
    pub(crate) fn wait_for_worker(&self, node: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually("a worker's pod", Duration::from_secs(30), || {
            let pods = self.workers.seen();
            pods.get(node)
                .filter(|pod| condition(pod))
                .cloned()
                .with_context(|| format!("not so on {node}: {:?}", pods.get(node)))
        })
    }

    /// Waits for the end: within the CronJob's deadline for two attempts.
    pub(crate) fn finish(self) -> Result<Run> {
        let limit = Duration::from_secs(INTERVAL_SECONDS + 30);
        let job = eventually("the end of a run", limit, || {
            let job = get(&["job", &self.job, "-n", NAMESPACE])?;
            let ended = ["Complete", "Failed"].iter().any(|end| has_condition(&job, end));
            ensure!(
                ended,
                "{} has not ended: {}\n{}",
                self.job,
                job["status"],
                logs(&self.job)
            );
            Ok(job)
        })?;
        let seconds = self.since.elapsed().as_secs_f64();
        let pods = get(&["pods", "-n", NAMESPACE, "-l", &format!("job-name={}", self.job)])?;
        let mut pods = items(&pods).to_vec();
        pods.sort_by_key(|pod| text(&pod["metadata"]["creationTimestamp"]));
        let last = pods
            .last()
            .with_context(|| format!("no pod of {}: {}", self.job, job["status"]))?;
        let terminated = &last["status"]["containerStatuses"][0]["state"]["terminated"];
        let exit_code = terminated["exitCode"]
            .as_i64()
            .with_context(|| format!("{} has no exit code: {}", self.job, last["status"]))?;
        let log = kubectl(&["logs", "-n", NAMESPACE, &text(&last["metadata"]["name"])])?;
        Ok(Run {
            job: self.job,
            exit_code,
            attempts: pods.len(),
            log,
            seconds,
            workers: self.workers.seen(),
        })
    }
}

/// Whether a Job, node or pod has a condition that is true.
pub(crate) fn has_condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn logs(job: &str) -> String {
    kubectl(&["logs", "-n", NAMESPACE, &format!("job/{job}")]).unwrap_or_else(|error| error.to_string())
}

/// Every state of the workers' pods, as long as it lives: at the end of a run they are gone.
struct Watch {
    child: Child,
    reader: Option<JoinHandle<()>>,
    seen: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Watch {
    fn start() -> Result<Self> {
        let selector = "app.kubernetes.io/name=lp-exporter,app.kubernetes.io/component=worker";
        // Failed ones of earlier runs are kept for an hour.
        let earlier = get(&["pods", "-n", NAMESPACE, "-l", selector])?;
        let earlier: Vec<_> = items(&earlier)
            .iter()
            .map(|pod| pod["metadata"]["uid"].clone())
            .collect();
        let mut child = Command::new("kubectl")
            .args(["get", "pods", "-n", NAMESPACE, "-l", selector, "--watch", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().context("a piped child has an output")?;
        let seen = Arc::<Mutex<BTreeMap<String, Value>>>::default();
        let writes = Arc::clone(&seen);
        let reader = thread::spawn(move || {
            for pod in serde_json::Deserializer::from_reader(BufReader::new(output))
                .into_iter::<Value>()
                .flatten()
            {
                if earlier.contains(&pod["metadata"]["uid"]) {
                    continue;
                }
                if let (Some(node), Ok(mut seen)) = (pod["spec"]["nodeName"].as_str(), writes.lock()) {
                    seen.insert(node.to_owned(), pod.clone());
                }
            }
        });
        Ok(Self {
            child,
            reader: Some(reader),
            seen,
        })
    }

    fn seen(&self) -> BTreeMap<String, Value> {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The child is ours and only reads: an error here means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
