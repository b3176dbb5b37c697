//! What becomes of each node in a run: from the events of the cluster and the clock to what is to be done next.
//!
//! Pure: events and the time since the run began come in as arguments, [`Action`]s go out, and nothing here waits. A node is
//! measured by one worker at a time. It is told as not measured as soon as that is sure, instead of when the time is up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::exit::Exit;
use crate::summary::WorkerSummary;
use crate::volumes::volume::{Node, NodeReason};

/// How long workers of earlier runs may take to end after their Jobs were deleted: their grace period and a little more.
const EARLIER_WORKER_PATIENCE: Duration = Duration::from_secs(25);

/// Something that was seen in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A node, as it is now.
    Node(Node),
    /// A node that is no more.
    NodeGone(String),
    /// Every node that there was at the beginning has been told.
    NodesListed,
    /// A worker's Job, as it is now.
    Job(WorkerJob),
    /// A worker's Job that is no more.
    JobGone(String),
    /// Every Job that there was at the beginning has been told.
    JobsListed,
    /// A worker's pod, as it is now.
    Pod(WorkerPod),
    /// A worker's pod that is no more.
    PodGone(String),
    /// Every pod that there was at the beginning has been told.
    PodsListed,
}

/// A worker's Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerJob {
    /// Its name.
    pub name: String,
    /// The run that made it.
    pub run: String,
    /// The node that it measures.
    pub node: String,
    /// How it ended, if it did.
    pub end: Option<JobEnd>,
    /// When it was made, by the API server's clock.
    pub created_unix_seconds: i64,
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// Well.
    Complete,
    /// Not well, with the condition's reason and message.
    Failed(String),
    /// It is failing, and its pod is not gone yet: for good, where the node is cut off.
    Failing(String),
}

/// A worker's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerPod {
    /// Its name.
    pub name: String,
    /// The run that made it.
    pub run: String,
    /// The Job that it belongs to.
    pub job: String,
    /// The node that it was bound to.
    pub node: Option<String>,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Whether it was evicted, preempted or drained, which is no failure of its own.
    pub disrupted: bool,
    /// What the scheduler says when it finds no place.
    pub unschedulable: Option<String>,
    /// What its container waits for: kubelet's reason and message.
    pub waiting: Option<(String, String)>,
    /// How its container ended.
    pub end: Option<PodEnd>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Not running yet.
    Pending,
    /// Running.
    Running,
    /// Ended with code 0.
    Succeeded,
    /// Ended otherwise.
    Failed,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// The exit code.
    pub exit_code: i32,
    /// kubelet's reason: Completed, Error, OOMKilled, ...
    pub reason: String,
    /// The termination message.
    pub message: String,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Its volumes were looked at, and the Pushgateway has what came of it.
    Measured(Option<WorkerSummary>),
    /// It has no new numbers.
    NotMeasured {
        /// Why.
        reason: NodeReason,
        /// What exactly happened.
        detail: String,
        /// What the worker said, if it ended by itself.
        summary: Option<WorkerSummary>,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a Job for the node.
    Start {
        /// The node.
        node: String,
        /// Counts the Jobs of this run for the node.
        attempt: u32,
        /// Whether only critical pods are let in there.
        disk_pressure: bool,
        /// Base directories that cannot be mounted there.
        unavailable_bases: Vec<String>,
    },
    /// Delete a Job.
    Delete {
        /// Its name.
        job: String,
    },
}

/// A node that is to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The node's name.
    pub node: String,
    /// Whether only critical pods are let in there.
    pub disk_pressure: bool,
    /// Why no worker can be sent there, if none can.
    pub unmeasurable: Option<(NodeReason, String)>,
    /// The base directories of its volumes.
    pub bases: Vec<String>,
}

/// Follows the nodes of one run. See the module.
pub struct Tracker {
    run_id: String,
    parallel_jobs: usize,
    nodes: BTreeMap<String, Track>,
    jobs: BTreeMap<String, WorkerJob>,
    pods: BTreeMap<String, WorkerPod>,
    deleted: BTreeSet<String>,
}

struct Track {
    state: State,
    attempt: u32,
    disk_pressure: bool,
    bases: Vec<String>,
    unavailable_bases: Vec<String>,
    /// The live node, as it was last seen; `None` when it is gone.
    live: Option<Result<(), String>>,
    /// What stands in the way, and since when.
    problem: Option<(Problem, Duration)>,
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Waiting,
    Starting,
    Running { job: String, since: Duration },
    Ended(Outcome),
}

/// Something that may pass, or end the node's turn when it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    reason: NodeReason,
    detail: String,
}

impl Problem {
    fn new(reason: NodeReason, detail: impl Into<String>) -> Problem {
        Problem {
            reason,
            detail: detail.into(),
        }
    }

    /// How long the problem may last: what a busy but healthy cluster needs to get over it.
    fn patience(&self) -> Duration {
        Duration::from_secs(match self.reason {
            NodeReason::Lost => 3,
            NodeReason::Unschedulable | NodeReason::ContainerNotCreated => 10,
            NodeReason::PodNotCreated => 15,
            NodeReason::ImageUnavailable => 30,
            _ => 0,
        })
    }
}

impl Tracker {
    /// Begins to follow the nodes of a run. At most `parallel_jobs` workers are to run at once.
    pub fn new(run_id: &str, parallel_jobs: usize, expected: Vec<Expected>) -> Tracker {
        let nodes = expected.into_iter().map(
            |Expected {
                 node,
                 disk_pressure,
                 unmeasurable,
                 bases,
             }| {
                let state = match unmeasurable {
                    Some((reason, detail)) => State::Ended(Outcome::NotMeasured {
                        reason,
                        detail,
                        summary: None,
                    }),
                    None => State::Waiting,
                };
                let track = Track {
                    state,
                    attempt: 0,
                    disk_pressure,
                    bases,
                    unavailable_bases: Vec::new(),
                    live: Some(Ok(())),
                    problem: None,
                };
                (node, track)
            },
        );
        Tracker {
            run_id: run_id.to_owned(),
            parallel_jobs,
            nodes: nodes.collect(),
            jobs: BTreeMap::new(),
            pods: BTreeMap::new(),
            deleted: BTreeSet::new(),
        }
    }

    /// Takes note of something that was seen.
    pub fn see(&mut self, event: Event) {
        match event {
            Event::Job(job) => {
                self.jobs.insert(job.name.clone(), job);
            }
            Event::JobGone(name) => {
                self.jobs.remove(&name);
                self.deleted.insert(name);
            }
            Event::Pod(pod) => {
                self.pods.insert(pod.name.clone(), pod);
            }
            Event::PodGone(name) => {
                self.pods.remove(&name);
            }
            Event::Node(node) => self.see_node(&node),
            Event::NodeGone(name) => {
                if let Some(track) = self.nodes.get_mut(&name) {
                    track.live = None;
                }
            }
            Event::NodesListed | Event::JobsListed | Event::PodsListed => {}
        }
    }

    fn see_node(&mut self, node: &Node) {
        if let Some(track) = self.nodes.get_mut(&node.name) {
            track.live = Some(if node.ready {
                Ok(())
            } else {
                Err(node.not_ready_message.clone())
            });
            track.disk_pressure = node.disk_pressure;
        }
    }

    /// Takes note that a node's Job was made.
    pub fn started(&mut self, node: &str, job: &str, elapsed: Duration) {
        if let Some(track) = self.nodes.get_mut(node).filter(|track| track.state == State::Starting) {
            track.state = State::Running {
                job: job.to_owned(),
                since: elapsed,
            };
        }
    }

    /// Takes note that a node's Job could not be made.
    pub fn not_started(&mut self, node: &str, reason: NodeReason, detail: String) {
        if let Some(track) = self.nodes.get_mut(node) {
            track.state = State::Ended(Outcome::NotMeasured {
                reason,
                detail,
                summary: None,
            });
        }
    }

    /// What is to be done with the Jobs that earlier runs left behind, once they have all been seen: all go, but for the
    /// newest failed one of each node, which is kept to be read.
    pub fn clean_up(&mut self) -> Vec<Action> {
        let mut kept: BTreeMap<&str, &WorkerJob> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| job.run != self.run_id) {
            if matches!(job.end, Some(JobEnd::Failed(_))) {
                let newest = kept.entry(&job.node).or_insert(job);
                if job.created_unix_seconds > newest.created_unix_seconds {
                    *newest = job;
                }
            }
        }
        let kept: BTreeSet<&str> = kept.values().map(|job| job.name.as_str()).collect();
        let foreign = self
            .jobs
            .values()
            .filter(|job| job.run != self.run_id && !kept.contains(job.name.as_str()));
        let names: Vec<String> = foreign.map(|job| job.name.clone()).collect();
        names.into_iter().filter_map(|job| self.delete(job)).collect()
    }

    /// What is to be done now.
    pub fn step(&mut self, elapsed: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in &names {
            actions.extend(self.follow(name, elapsed));
        }
        let mut running = self.nodes.values().filter(|track| track.is_running()).count();
        for name in &names {
            if running >= self.parallel_jobs {
                break;
            }
            if let Some(start) = self.start(name, elapsed) {
                running += 1;
                actions.push(start);
            }
        }
        actions
    }

    /// Whether every node's turn has ended.
    pub fn is_done(&self) -> bool {
        self.nodes.values().all(|track| matches!(track.state, State::Ended(_)))
    }

    /// Ends the turn of every node that is still to be measured.
    pub fn give_up(&mut self, reason: NodeReason, detail: &str) {
        for track in self.nodes.values_mut() {
            if !matches!(track.state, State::Ended(_)) {
                let detail = match &track.state {
                    State::Running { job, .. } => format!("{detail}; its Job was {job}"),
                    _ => format!("{detail} before its turn came"),
                };
                track.state = State::Ended(Outcome::NotMeasured {
                    reason,
                    detail,
                    summary: None,
                });
            }
        }
    }

    /// The Jobs that are to go when the run ends: those that ended well, those that have not ended, and failed ones of
    /// earlier runs on the nodes where one of this run failed too.
    pub fn finish(&mut self) -> Vec<Action> {
        let failed = |job: &WorkerJob| matches!(job.end, Some(JobEnd::Failed(_))) || self.pod_failed(&job.name);
        let own_failed: BTreeSet<&str> = self
            .jobs
            .values()
            .filter(|job| job.run == self.run_id && failed(job))
            .map(|job| job.node.as_str())
            .collect();
        let goes = |job: &&WorkerJob| {
            if job.run == self.run_id {
                !failed(job)
            } else {
                own_failed.contains(job.node.as_str())
            }
        };
        let names: Vec<String> = self.jobs.values().filter(goes).map(|job| job.name.clone()).collect();
        names.into_iter().filter_map(|job| self.delete(job)).collect()
    }

    /// What became of each node.
    pub fn outcomes(self) -> BTreeMap<String, Outcome> {
        let ended = self.nodes.into_iter().filter_map(|(node, track)| match track.state {
            State::Ended(outcome) => Some((node, outcome)),
            _ => None,
        });
        ended.collect()
    }

    fn delete(&mut self, job: String) -> Option<Action> {
        self.deleted.insert(job.clone()).then_some(Action::Delete { job })
    }

    fn pod_failed(&self, job: &str) -> bool {
        self.pods
            .values()
            .any(|pod| pod.job == job && pod.phase == PodPhase::Failed && !pod.disrupted)
    }

    fn start(&mut self, name: &str, elapsed: Duration) -> Option<Action> {
        let earlier = self.earlier_worker_on(name).map(|pod| pod.name.clone());
        let track = self.nodes.get_mut(name).filter(|track| track.state == State::Waiting)?;
        if let Some(pod) = earlier {
            // Two at once could overwrite newer numbers with older ones, and would read the same disk.
            if elapsed > EARLIER_WORKER_PATIENCE {
                let detail = format!("the pod {pod} of an earlier run does not end; a disk of the node may hang");
                let reason = NodeReason::EarlierWorkerHangs;
                track.state = State::Ended(Outcome::NotMeasured {
                    reason,
                    detail,
                    summary: None,
                });
            }
            return None;
        }
        track.state = State::Starting;
        track.attempt += 1;
        track.problem = None;
        Some(Action::Start {
            node: name.to_owned(),
            attempt: track.attempt,
            disk_pressure: track.disk_pressure,
            unavailable_bases: track.unavailable_bases.clone(),
        })
    }

    /// A pod of an earlier run that may still be at work on the node.
    fn earlier_worker_on(&self, node: &str) -> Option<&WorkerPod> {
        self.pods.values().find(|pod| {
            pod.run != self.run_id
                && pod.node.as_deref() == Some(node)
                && matches!(pod.phase, PodPhase::Pending | PodPhase::Running)
        })
    }

    /// Brings a node's state up to date; deletes its Job if its turn ends while that is still at work.
    fn follow(&mut self, name: &str, elapsed: Duration) -> Option<Action> {
        let track = self.nodes.get(name)?;
        let finding = match &track.state {
            State::Ended(_) | State::Starting => return None,
            State::Waiting => match track.node_problem() {
                Some(problem) => Finding::Problem(problem),
                None => Finding::Nothing,
            },
            State::Running { job, since } => self.examine(track, job, elapsed.saturating_sub(*since)),
        };
        let track = self.nodes.get_mut(name)?;
        let job = match &track.state {
            State::Running { job, .. } => Some(job.clone()),
            _ => None,
        };
        match finding {
            Finding::Nothing => track.problem = None,
            Finding::Ended(outcome) => track.state = State::Ended(outcome),
            Finding::BaseUnavailable(base) => {
                track.unavailable_bases.push(base);
                track.state = State::Waiting;
                return job.and_then(|job| self.delete(job));
            }
            Finding::Problem(problem) => {
                let since = match &track.problem {
                    Some((known, since)) if known.reason == problem.reason => *since,
                    _ => elapsed,
                };
                if elapsed.saturating_sub(since) >= problem.patience() {
                    let Problem { reason, detail } = problem;
                    track.state = State::Ended(Outcome::NotMeasured {
                        reason,
                        detail,
                        summary: None,
                    });
                    return job.and_then(|job| self.delete(job));
                }
                track.problem = Some((problem, since));
            }
        }
        None
    }

    fn examine(&self, track: &Track, job_name: &str, age: Duration) -> Finding {
        let pods = || self.pods.values().filter(|pod| pod.job == job_name && !pod.disrupted);
        if let Some(end) = pods().find(|pod| pod.phase == PodPhase::Succeeded) {
            let summary = end
                .end
                .as_ref()
                .and_then(|end| WorkerSummary::from_message(&end.message));
            return Finding::Ended(Outcome::Measured(summary));
        }
        if let Some(failed) = pods().find(|pod| pod.phase == PodPhase::Failed) {
            return Finding::Ended(failure(failed.end.as_ref()));
        }
        let job = self.jobs.get(job_name);
        match job.and_then(|job| job.end.as_ref()) {
            Some(JobEnd::Complete) => return Finding::Ended(Outcome::Measured(None)),
            Some(JobEnd::Failed(message) | JobEnd::Failing(message)) => {
                return Finding::Ended(not_measured(
                    NodeReason::WorkerFailed,
                    format!("its Job failed: {message}"),
                ));
            }
            None => {}
        }
        if job.is_none() && self.deleted.contains(job_name) {
            return Finding::Ended(not_measured(
                NodeReason::WorkerFailed,
                "its Job was deleted by somebody else",
            ));
        }
        if let Some(problem) = track.node_problem() {
            return Finding::Problem(problem);
        }
        match pods().next() {
            Some(pod) => track.pod_finding(pod),
            None if age > Duration::from_secs(1) => {
                let detail = format!("the Job {job_name} made no pod; `kubectl describe job {job_name}` tells why");
                Finding::Problem(Problem::new(NodeReason::PodNotCreated, detail))
            }
            None => Finding::Nothing,
        }
    }
}

/// What a look at a node brings.
enum Finding {
    Nothing,
    Problem(Problem),
    BaseUnavailable(String),
    Ended(Outcome),
}

impl Track {
    fn is_running(&self) -> bool {
        matches!(self.state, State::Starting | State::Running { .. })
    }

    fn node_problem(&self) -> Option<Problem> {
        match &self.live {
            Some(Ok(())) => None,
            Some(Err(message)) => Some(Problem::new(
                NodeReason::Lost,
                format!("the node is not Ready any more: {message}"),
            )),
            None => Some(Problem::new(NodeReason::Lost, "the node was removed from the cluster")),
        }
    }

    fn pod_finding(&self, pod: &WorkerPod) -> Finding {
        if let Some(message) = &pod.unschedulable {
            return Finding::Problem(Problem::new(NodeReason::Unschedulable, message.clone()));
        }
        let Some((reason, message)) = &pod.waiting else {
            return Finding::Nothing;
        };
        let problem = |kind| Finding::Problem(Problem::new(kind, format!("{reason}: {message}")));
        match reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => {
                problem(NodeReason::ImageUnavailable)
            }
            "CreateContainerError" | "RunContainerError" => match self.base_named_in(message) {
                Some(base) => Finding::BaseUnavailable(base),
                None => problem(NodeReason::ContainerNotCreated),
            },
            "CreateContainerConfigError" => problem(NodeReason::ContainerNotCreated),
            _ => Finding::Nothing,
        }
    }

    /// The base directory that kubelet's message is about: the longest of those that it names.
    fn base_named_in(&self, message: &str) -> Option<String> {
        let mounted = self.bases.iter().filter(|base| !self.unavailable_bases.contains(base));
        mounted
            .filter(|base| message.contains(base.as_str()))
            .max_by_key(|base| base.len())
            .cloned()
    }
}

fn not_measured(reason: NodeReason, detail: impl Into<String>) -> Outcome {
    Outcome::NotMeasured {
        reason,
        detail: detail.into(),
        summary: None,
    }
}

fn failure(end: Option<&PodEnd>) -> Outcome {
    let Some(PodEnd {
        exit_code,
        reason,
        message,
    }) = end
    else {
        return not_measured(NodeReason::WorkerFailed, "its pod failed without saying why");
    };
    let summary = WorkerSummary::from_message(message);
    let said = summary.as_ref().and_then(|summary| summary.error.clone());
    let detail = format!(
        "exit code {exit_code} ({reason}){}",
        said.map(|said| format!(": {said}")).unwrap_or_default()
    );
    let reason = match Exit::from_code(*exit_code) {
        _ if reason == "OOMKilled" => NodeReason::OutOfMemory,
        Some(Exit::Pushgateway) => NodeReason::NotDelivered,
        _ => NodeReason::WorkerFailed,
    };
    Outcome::NotMeasured {
        reason,
        detail,
        summary,
    }
}
