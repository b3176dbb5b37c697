//! What becomes of each node in a run: from the events of the cluster and the clock to what is to be done next.
//!
//! Pure: events and the time since the run began come in as arguments, [`Action`]s go out, and nothing here waits. A node is
//! measured by one worker at a time. It is told as not measured as soon as that is sure, instead of when the time is up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::exit::Exit;
use crate::summary::WorkerSummary;
use crate::text::one_line;
use crate::volumes::volume::{Node, NodeReason};

/// How long workers of earlier runs may take to end after their Jobs were deleted: their grace period and a little more.
const EARLIER_WORKER_PATIENCE: Duration = Duration::from_secs(25);

/// So many workers that do not end are left on a node; no further one is sent there.
const HANGING_WORKERS_MAX: usize = 2;

/// How long the end of a pod may come after that of its Job.
const POD_END_PATIENCE: Duration = Duration::from_secs(2);
/// So much is shown of what a worker said that left no summary.
const WORDS_MAX_CHARS: usize = 800;

/// Something that was seen in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A node, as it is now.
    Node(Node),
    /// A node that is no more.
    NodeGone(String),
    /// Every node that there was at the beginning has been told.
    NodesListed,
    /// An object that could not be read: what is known is not all there is.
    Unreadable,
    /// A Node was seen that could not be read, with what is known of it all the same.
    UnreadableNode(Node),
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
    /// What kubelet says of the pod as a whole, which is all there is when it never let the container start.
    pub message: String,
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

impl Outcome {
    /// Whether the run was asked for other nodes only, which is no failure.
    pub fn is_not_asked(&self) -> bool {
        let not_asked = NodeReason::NotAsked;
        matches!(self, Outcome::NotMeasured { reason, .. } if *reason == not_asked)
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a Job for a node.
    Start(Start),
    /// Delete a Job.
    Delete {
        /// Its name.
        job: String,
    },
}

/// A Job that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The node.
    pub node: String,
    /// Counts the Jobs of this run for the node.
    pub attempt: u32,
    /// Whether only critical pods are let in there.
    pub disk_pressure: bool,
    /// Base directories that cannot be mounted there.
    pub unavailable_bases: Vec<String>,
    /// The pod of an earlier run that does not end, because a disk hangs: what it did not measure is to be left alone.
    pub beside: Option<String>,
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
    /// The Jobs that this run made, whether the watch has shown them yet or not.
    made: BTreeSet<String>,
    /// The Jobs that are gone, or told to be deleted.
    deleted: BTreeSet<String>,
    /// When what earlier runs left was told to be deleted.
    cleaned_up: Duration,
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
    /// When the end of its Job was seen first.
    job_ended: Option<Duration>,
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
                    job_ended: None,
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
            made: BTreeSet::new(),
            deleted: BTreeSet::new(),
            cleaned_up: Duration::ZERO,
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
            // A node that cannot be read is no reason to give its worker up.
            Event::NodesListed
            | Event::JobsListed
            | Event::PodsListed
            | Event::Unreadable
            | Event::UnreadableNode(_) => {}
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

    /// Takes note that a Job of this name is about to be made. Whatever becomes of the request: it is deleted at the end.
    pub fn starting(&mut self, job: &str) {
        self.made.insert(job.to_owned());
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
    pub fn clean_up(&mut self, elapsed: Duration) -> Vec<String> {
        self.cleaned_up = elapsed;
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
        names
            .into_iter()
            .filter(|job| self.deleted.insert(job.clone()))
            .collect()
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
                    State::Running { job, .. } => {
                        let pending = self
                            .pods
                            .values()
                            .find(|pod| pod.job == *job && pod.phase == PodPhase::Pending);
                        match pending {
                            Some(pod) => format!(
                                "{detail}; its Job was {job}, whose pod {} had no container yet: kubectl describe pod tells why",
                                pod.name
                            ),
                            None => format!("{detail}; its Job was {job}"),
                        }
                    }
                    State::Starting => format!("{detail}; its Job was being made"),
                    State::Waiting | State::Ended(_) => format!("{detail}; its turn had not come"),
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
    pub fn finish(&mut self) -> Vec<String> {
        let is_failed = |job: &WorkerJob| matches!(job.end, Some(JobEnd::Failed(_)));
        let failed = |job: &WorkerJob| self.worker_failed(&job.name).unwrap_or_else(|| is_failed(job));
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
                is_failed(job) && own_failed.contains(job.node.as_str())
            }
        };
        let seen = self.jobs.values().filter(goes).map(|job| job.name.clone());
        let unseen = self.made.iter().filter(|name| !self.jobs.contains_key(*name)).cloned();
        let names: Vec<String> = seen.chain(unseen).collect();
        names
            .into_iter()
            .filter(|job| self.deleted.insert(job.clone()))
            .collect()
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

    /// Whether the worker of a Job failed, if its pods say so. Its own end counts: the pod may have other containers, which
    /// may go on or fail.
    fn worker_failed(&self, job: &str) -> Option<bool> {
        let pods = || self.pods.values().filter(|pod| pod.job == job && !pod.disrupted);
        let mut ends = pods().filter_map(|pod| pod.end.as_ref()).peekable();
        if ends.peek().is_some() {
            return Some(ends.all(|end| end.exit_code != 0));
        }
        pods().any(|pod| pod.phase == PodPhase::Failed).then_some(true)
    }

    fn start(&mut self, name: &str, elapsed: Duration) -> Option<Action> {
        self.nodes.get(name).filter(|track| track.state == State::Waiting)?;
        let earlier: Vec<String> = self.earlier_workers_on(name).map(|pod| pod.name.clone()).collect();
        let was_given_time = elapsed.saturating_sub(self.cleaned_up) > EARLIER_WORKER_PATIENCE;
        let track = self.nodes.get_mut(name)?;
        // A worker that was killed and does not end is held by the kernel, and pushes no more. Any other one could overwrite
        // newer numbers with older ones, and would read the same disk.
        if !earlier.is_empty() && !was_given_time {
            return None;
        }
        if earlier.len() >= HANGING_WORKERS_MAX {
            let detail = format!(
                "the pods {} of earlier runs do not end; disks of the node may hang",
                earlier.join(" and ")
            );
            track.state = State::Ended(not_measured(NodeReason::EarlierWorkerHangs, detail));
            return None;
        }
        track.state = State::Starting;
        track.attempt += 1;
        track.problem = None;
        track.job_ended = None;
        Some(Action::Start(Start {
            node: name.to_owned(),
            attempt: track.attempt,
            disk_pressure: track.disk_pressure,
            unavailable_bases: track.unavailable_bases.clone(),
            beside: earlier.into_iter().next(),
        }))
    }

    /// The pods of earlier runs that may still be at work on a node.
    fn earlier_workers_on(&self, node: &str) -> impl Iterator<Item = &WorkerPod> {
        self.earlier_workers()
            .filter(move |pod| pod.node.as_deref() == Some(node))
    }

    /// The pods of earlier runs that may still be at work.
    pub fn earlier_workers(&self) -> impl Iterator<Item = &WorkerPod> {
        self.pods
            .values()
            .filter(|pod| pod.run != self.run_id && matches!(pod.phase, PodPhase::Pending | PodPhase::Running))
    }

    /// Brings a node's state up to date; deletes its Job if its turn ends while that is still at work.
    fn follow(&mut self, name: &str, elapsed: Duration) -> Option<Action> {
        let track = self.nodes.get_mut(name)?;
        if let State::Running { job, .. } = &track.state
            && self.jobs.get(job).is_some_and(|job| job.end.is_some())
        {
            track.job_ended.get_or_insert(elapsed);
        }
        let track = self.nodes.get(name)?;
        let finding = match &track.state {
            State::Ended(_) | State::Starting => return None,
            State::Waiting => match track.node_problem() {
                Some(problem) => Finding::Problem(problem),
                None => Finding::Nothing,
            },
            State::Running { job, since } => self.examine(track, job, *since, elapsed),
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

    fn examine(&self, track: &Track, job_name: &str, since: Duration, elapsed: Duration) -> Finding {
        let age = elapsed.saturating_sub(since);
        let pods = || self.pods.values().filter(|pod| pod.job == job_name);
        let is_over = |pod: &WorkerPod| pod.disrupted && pod.phase == PodPhase::Failed;
        // The worker's own end counts: the pod may have other containers, which may go on or fail.
        if let Some(end) = pods().filter_map(|pod| pod.end.as_ref()).find(|end| end.exit_code == 0) {
            return Finding::Ended(Outcome::Measured(WorkerSummary::from_message(&end.message)));
        }
        if let Some(failed) = pods().find(|pod| !pod.disrupted && (pod.end.is_some() || pod.phase == PodPhase::Failed))
        {
            return Finding::Ended(failure(failed));
        }
        if pods().any(|pod| pod.phase == PodPhase::Succeeded) {
            return Finding::Ended(Outcome::Measured(None));
        }
        if track
            .job_ended
            .is_some_and(|ended| elapsed.saturating_sub(ended) < POD_END_PATIENCE)
        {
            // Nothing orders two watches: what the pod has to say may still come.
            return Finding::Nothing;
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
                NodeReason::RunInterrupted,
                "its Job was deleted by somebody else",
            ));
        }
        if let Some(problem) = track.node_problem() {
            return Finding::Problem(problem);
        }
        match pods().find(|pod| !is_over(pod)) {
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
            .filter(|base| names_path(message, base))
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

/// Whether a message names a path or something below it: as a whole, not as a part of another path.
fn names_path(message: &str, path: &str) -> bool {
    let is_in_path = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
    message.match_indices(path).any(|(start, _)| {
        let before = message[..start].chars().next_back();
        let after = message[start + path.len()..].chars().next();
        before.is_none_or(|c| !is_in_path(c)) && after.is_none_or(|c| c == '/' || !is_in_path(c))
    })
}

fn failure(pod: &WorkerPod) -> Outcome {
    let Some(PodEnd {
        exit_code,
        reason,
        message,
    }) = &pod.end
    else {
        let detail = match pod.message.as_str() {
            "" => "its pod failed without saying why",
            message => message,
        };
        return not_measured(NodeReason::WorkerFailed, detail);
    };
    let summary = WorkerSummary::from_message(message);
    let said = match &summary {
        Some(summary) => summary.error.clone(),
        // The end of its log, where the Job template lets kubelet take that.
        None => Some(one_line(message.trim(), WORDS_MAX_CHARS)).filter(|words| !words.is_empty()),
    };
    let detail = format!(
        "exit code {exit_code} ({reason}){}; its Job {} is kept for an hour",
        said.map(|said| format!(": {said}")).unwrap_or_default(),
        pod.job
    );
    let reason = match Exit::from_code(*exit_code) {
        _ if reason == "OOMKilled" => NodeReason::OutOfMemory,
        Some(Exit::Pushgateway) => NodeReason::NotDelivered,
        Some(Exit::Interrupted) => NodeReason::RunInterrupted,
        _ => NodeReason::WorkerFailed,
    };
    Outcome::NotMeasured {
        reason,
        detail,
        summary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::node;

    const RUN: &str = "this-run";

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn expected(name: &str) -> Expected {
        Expected {
            node: name.to_owned(),
            disk_pressure: false,
            unmeasurable: None,
            bases: vec!["/data".to_owned(), "/data/inner".to_owned()],
        }
    }

    fn tracker(parallel_jobs: usize, nodes: &[&str]) -> Tracker {
        Tracker::new(RUN, parallel_jobs, nodes.iter().map(|name| expected(name)).collect())
    }

    fn job(name: &str, run: &str, node: &str, end: Option<JobEnd>) -> WorkerJob {
        WorkerJob {
            name: name.to_owned(),
            run: run.to_owned(),
            node: node.to_owned(),
            end,
            created_unix_seconds: 0,
        }
    }

    fn pod(job: &str, run: &str, node: &str) -> WorkerPod {
        WorkerPod {
            name: format!("{job}-pod"),
            run: run.to_owned(),
            job: job.to_owned(),
            node: Some(node.to_owned()),
            phase: PodPhase::Running,
            disrupted: false,
            unschedulable: None,
            waiting: None,
            end: None,
            message: String::new(),
        }
    }

    /// A pod of the running job of node `a`, changed by `change`.
    fn own_pod(change: impl FnOnce(&mut WorkerPod)) -> Event {
        let mut pod = pod("job-a", RUN, "a");
        change(&mut pod);
        Event::Pod(pod)
    }

    fn ended(phase: PodPhase, exit_code: i32, reason: &str, message: &str) -> Event {
        own_pod(|pod| {
            pod.phase = phase;
            let (reason, message) = (reason.to_owned(), message.to_owned());
            pod.end = Some(PodEnd {
                exit_code,
                reason,
                message,
            });
        })
    }

    fn waiting(reason: &str, message: &str) -> Event {
        own_pod(|pod| {
            pod.phase = PodPhase::Pending;
            pod.waiting = Some((reason.to_owned(), message.to_owned()));
        })
    }

    fn starts(actions: &[Action]) -> Vec<&str> {
        let started = actions.iter().filter_map(|action| match action {
            Action::Start(start) => Some(start.node.as_str()),
            Action::Delete { .. } => None,
        });
        started.collect()
    }

    fn deletes(actions: &[Action]) -> Vec<&str> {
        let deleted = actions.iter().filter_map(|action| match action {
            Action::Delete { job } => Some(job.as_str()),
            Action::Start(_) => None,
        });
        deleted.collect()
    }

    /// Node `a` with a Job that was made at second 1.
    fn running() -> Tracker {
        let mut tracker = tracker(50, &["a"]);
        assert_eq!(starts(&tracker.step(seconds(1))), ["a"]);
        tracker.started("a", "job-a", seconds(1));
        tracker.see(Event::Job(job("job-a", RUN, "a", None)));
        tracker
    }

    fn told(tracker: Tracker) -> String {
        let outcomes = tracker.outcomes();
        let words: Vec<String> = outcomes
            .values()
            .map(|outcome| match outcome {
                Outcome::Measured(summary) => format!("measured, summary {}", summary.is_some()),
                Outcome::NotMeasured { reason, detail, .. } => format!("{}: {detail}", reason.as_str()),
            })
            .collect();
        words.join("; ")
    }

    /// Checks what comes of one event on a running worker, when it is looked at after `at` seconds, and again at 200.
    fn check(event: Event, expected_at_once: bool, expected: &str) {
        let mut tracker = running();
        tracker.see(event.clone());
        tracker.step(seconds(3));
        assert_eq!(tracker.is_done(), expected_at_once, "at once: {event:?}");
        tracker.step(seconds(200));
        assert!(tracker.finish().len() <= 1);
        let told = told(tracker);
        assert!(
            told.starts_with(expected),
            "{event:?}: {told:?} should begin with {expected:?}"
        );
        assert_eq!(told.is_empty(), expected.is_empty(), "{event:?}: {told:?}");
    }

    #[test]
    fn ends_of_a_worker() {
        let summary = r#"{"node":"a","run":"this-run","states":{},"delivered":true,"seconds":1,"peak_memory_bytes":1,
            "confined":true,"error":"the disk is gone"}"#;
        check(
            ended(PodPhase::Succeeded, 0, "Completed", summary),
            true,
            "measured, summary true",
        );
        check(
            ended(PodPhase::Succeeded, 0, "Completed", "cut {"),
            true,
            "measured, summary false",
        );
        check(
            ended(PodPhase::Failed, 5, "Error", summary),
            true,
            "not_delivered: exit code 5 (Error): the disk is gone",
        );
        check(
            ended(PodPhase::Failed, 2, "Error", ""),
            true,
            "worker_failed: exit code 2 (Error);",
        );
        check(
            ended(PodPhase::Failed, 2, "Error", "error: no such flag\n\nfor more see\n"),
            true,
            "worker_failed: exit code 2 (Error): error: no such flag",
        );
        check(
            ended(PodPhase::Failed, 137, "OOMKilled", ""),
            true,
            "out_of_memory: exit code 137",
        );
        check(
            ended(PodPhase::Failed, 7, "Error", summary),
            true,
            "run_interrupted: exit code 7",
        );
        check(
            own_pod(|pod| pod.phase = PodPhase::Failed),
            true,
            "worker_failed: its pod failed without saying why",
        );
        // Another container of the pod goes on, or fails: the worker's own end counts.
        check(
            ended(PodPhase::Running, 0, "Completed", summary),
            true,
            "measured, summary true",
        );
        check(
            ended(PodPhase::Failed, 0, "Completed", summary),
            true,
            "measured, summary true",
        );
        check(
            ended(PodPhase::Running, 1, "Error", ""),
            true,
            "worker_failed: exit code 1",
        );
        // A drained pod whose worker was done all the same.
        let drained = own_pod(|pod| {
            (pod.phase, pod.disrupted) = (PodPhase::Failed, true);
            let (reason, message) = ("Completed".to_owned(), summary.to_owned());
            pod.end = Some(PodEnd {
                exit_code: 0,
                reason,
                message,
            });
        });
        check(drained, true, "measured, summary true");
        let refused = own_pod(|pod| {
            pod.phase = PodPhase::Failed;
            pod.message = "OutOfpods: Node didn't have enough resource: pods".to_owned();
        });
        check(refused, true, "worker_failed: OutOfpods: Node didn't have enough");
        let end = |end| Event::Job(job("job-a", RUN, "a", Some(end)));
        // What the pod says may come later.
        check(end(JobEnd::Complete), false, "measured, summary false");
        check(
            end(JobEnd::Failed("DeadlineExceeded: late".into())),
            false,
            "worker_failed: its Job failed: DeadlineExceeded",
        );
        check(
            end(JobEnd::Failing("PodFailurePolicy: x".into())),
            false,
            "worker_failed: its Job failed: PodFailurePolicy",
        );
        check(
            Event::JobGone("job-a".into()),
            true,
            "run_interrupted: its Job was deleted by somebody else",
        );
    }

    #[test]
    fn what_passes_is_waited_for_and_what_stays_is_told() {
        check(own_pod(|_| {}), false, "");
        check(waiting("ContainerCreating", ""), false, "");
        check(
            waiting("ErrImagePull", "no such host"),
            false,
            "image_unavailable: ErrImagePull: no such host",
        );
        check(
            waiting("CreateContainerConfigError", "no secret"),
            false,
            "container_not_created: CreateContainerConfigError",
        );
        check(
            waiting("CreateContainerError", "no space left"),
            false,
            "container_not_created: CreateContainerError",
        );
        let unschedulable = own_pod(|pod| pod.unschedulable = Some("Too many pods".to_owned()));
        check(unschedulable, false, "unschedulable: Too many pods");
        check(
            Event::Node(node("a").not_ready()),
            false,
            "lost: the node is not Ready any more: Kubelet stopped",
        );
        check(Event::NodeGone("a".into()), false, "lost: the node was removed");
        // A drained pod is replaced by the Job, which makes none here.
        let disrupted = own_pod(|pod| {
            pod.phase = PodPhase::Failed;
            pod.disrupted = true;
        });
        check(disrupted, false, "pod_not_created: the Job job-a made no pod");
        check(Event::Node(node("a")), false, "pod_not_created: ");
    }

    #[test]
    fn a_problem_that_passes_is_forgotten() {
        let mut tracker = running();
        for at in (2..100).step_by(6) {
            tracker.see(Event::Node(node("a").not_ready()));
            tracker.step(seconds(at));
            tracker.see(Event::Node(node("a")));
            tracker.see(own_pod(|_| {}));
            tracker.step(seconds(at + 1));
        }
        assert!(!tracker.is_done());
    }

    #[test]
    fn a_base_that_cannot_be_mounted_is_left_out() {
        let mut tracker = running();
        let message = "failed to mkdir \"/data/inner\": read-only file system";
        tracker.see(waiting("CreateContainerError", message));
        let mut actions = tracker.step(seconds(2));
        actions.extend(tracker.step(seconds(2)));
        assert_eq!(deletes(&actions), ["job-a"]);
        let expected = Action::Start(Start {
            node: "a".to_owned(),
            attempt: 2,
            disk_pressure: false,
            unavailable_bases: vec!["/data/inner".to_owned()],
            beside: None,
        });
        assert!(actions.contains(&expected), "{actions:?}");
        // The next one fails for the other base, and then nothing is left to leave out.
        for (attempt, message) in [(3, "mkdir /data: not permitted"), (3, "mkdir /data: not permitted")] {
            let name = format!("job-{attempt}");
            tracker.started("a", &name, seconds(3));
            tracker.see(Event::Job(job(&name, RUN, "a", None)));
            let Event::Pod(mut pod) = waiting("CreateContainerError", message) else {
                unreachable!()
            };
            pod.job.clone_from(&name);
            pod.name = format!("{name}-pod");
            tracker.see(Event::Pod(pod));
            tracker.step(seconds(4));
        }
        tracker.step(seconds(30));
        assert!(told(tracker).starts_with("container_not_created: CreateContainerError"));
    }

    #[test]
    fn a_base_is_found_as_a_whole_path_only() {
        for (message, expected) in [
            ("failed to mkdir \"/data\": not permitted", true),
            ("mkdir /data: read-only file system", true),
            ("/data", true),
            ("cannot stat /data/volume", true),
            (
                "failed to create snapshot: /var/lib/containerd/data/7: no space left on device",
                false,
            ),
            ("mkdir /data1: not permitted", false),
            ("mkdir /data.old: not permitted", false),
            ("mkdir /mnt/data: not permitted", false),
            ("", false),
        ] {
            assert_eq!(names_path(message, "/data"), expected, "{message:?}");
        }
    }

    #[test]
    fn no_more_workers_at_once_than_allowed() {
        let names = ["a", "b", "c", "d", "e"];
        let mut tracker = tracker(2, &names);
        let mut finished = 0;
        while !tracker.is_done() {
            let actions = tracker.step(seconds(1));
            let started = starts(&actions);
            assert!(started.len() <= 2);
            for node in started.into_iter().map(str::to_owned).collect::<Vec<_>>() {
                tracker.started(&node, &format!("job-{node}"), seconds(1));
                let mut pod = pod(&format!("job-{node}"), RUN, &node);
                pod.phase = PodPhase::Succeeded;
                tracker.see(Event::Pod(pod));
                finished += 1;
            }
        }
        assert_eq!(finished, names.len());
    }

    #[test]
    fn a_node_where_no_worker_can_run_is_told_at_once() {
        let mut a = expected("a");
        a.unmeasurable = Some((NodeReason::NotReady, "Kubelet stopped posting node status.".to_owned()));
        let mut tracker = Tracker::new(RUN, 50, vec![a]);
        assert!(tracker.is_done());
        assert!(tracker.step(seconds(1)).is_empty());
        assert_eq!(told(tracker), "not_ready: Kubelet stopped posting node status.");
    }

    #[test]
    fn what_earlier_runs_left_is_deleted() {
        let mut tracker = tracker(50, &["a", "b"]);
        let failed = |name: &str, node: &str, created_unix_seconds| {
            let end = Some(JobEnd::Failed(String::new()));
            Event::Job(WorkerJob {
                created_unix_seconds,
                ..job(name, "earlier", node, end)
            })
        };
        tracker.see(failed("failed-1", "a", 1));
        tracker.see(failed("failed-3", "a", 3));
        tracker.see(failed("failed-2", "a", 2));
        tracker.see(failed("failed-b", "b", 1));
        tracker.see(Event::Job(job("done", "earlier", "a", Some(JobEnd::Complete))));
        tracker.see(Event::Job(job(
            "failing",
            "earlier",
            "a",
            Some(JobEnd::Failing(String::new())),
        )));
        tracker.see(Event::Job(job("active", "earlier", "b", None)));
        assert_eq!(
            tracker.clean_up(seconds(1)),
            ["active", "done", "failed-1", "failed-2", "failing"]
        );
        assert!(tracker.clean_up(seconds(1)).is_empty(), "each is deleted once");
    }

    #[test]
    fn one_more_worker_beside_one_that_hangs_and_never_a_third() {
        let mut tracker = tracker(50, &["a", "b"]);
        tracker.see(Event::Pod(pod("earlier", "earlier-run", "a")));
        assert_eq!(starts(&tracker.step(seconds(1))), ["b"]);
        assert!(starts(&tracker.step(seconds(20))).is_empty());
        let mut gone = tracker;
        gone.see(Event::PodGone("earlier-pod".to_owned()));
        assert_eq!(starts(&gone.step(seconds(20))), ["a"]);

        let mut hangs = self::tracker(50, &["a"]);
        hangs.see(Event::Pod(pod("earlier", "earlier-run", "a")));
        // Its time to end counts from when its Job was deleted.
        hangs.clean_up(seconds(60));
        hangs.step(seconds(84));
        assert!(!hangs.is_done());
        let Some(Action::Start(start)) = hangs.step(seconds(86)).pop() else {
            panic!("one more worker is started")
        };
        assert_eq!(start.beside.as_deref(), Some("earlier-pod"));

        let mut hangs = self::tracker(50, &["a"]);
        for earlier in ["earlier", "later"] {
            hangs.see(Event::Pod(pod(earlier, "earlier-run", "a")));
        }
        hangs.clean_up(seconds(60));
        assert!(hangs.step(seconds(86)).is_empty());
        assert!(told(hangs).starts_with("earlier_worker_hangs: the pods earlier-pod and later-pod"));
    }

    #[test]
    fn the_end_of_a_run() {
        let mut tracker = tracker(50, &["a", "b", "c", "d"]);
        tracker.see(Event::Job(job(
            "old-failed-b",
            "earlier",
            "b",
            Some(JobEnd::Failed(String::new())),
        )));
        tracker.see(Event::Job(job(
            "old-failed-a",
            "earlier",
            "a",
            Some(JobEnd::Failed(String::new())),
        )));
        tracker.step(seconds(1));
        for name in ["a", "b", "c"] {
            tracker.starting(&format!("job-{name}"));
            tracker.started(name, &format!("job-{name}"), seconds(1));
            tracker.see(Event::Job(job(&format!("job-{name}"), RUN, name, None)));
        }
        tracker.see(ended(PodPhase::Succeeded, 0, "Completed", ""));
        let mut failed = pod("job-b", RUN, "b");
        failed.phase = PodPhase::Failed;
        tracker.see(Event::Pod(failed));
        let mut pending = pod("job-c", RUN, "c");
        pending.phase = PodPhase::Pending;
        tracker.see(Event::Pod(pending));
        tracker.step(seconds(2));
        tracker.give_up(NodeReason::TimedOut, "the time was up");
        // A Job that was on its way to the API server when time was up is deleted too.
        tracker.starting("job-d");
        assert_eq!(tracker.finish(), ["job-a", "job-c", "old-failed-b", "job-d"]);
        assert_eq!(
            told(tracker),
            "measured, summary false; worker_failed: its pod failed without saying why; \
             timed_out: the time was up; its Job was job-c, whose pod job-c-pod had no container yet: \
             kubectl describe pod tells why; timed_out: the time was up; its Job was being made"
        );
    }
}
