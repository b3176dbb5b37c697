//! The controller: one run over the cluster.
//!
//! ```text
//! claim the Lease → list → plan → push capacities → a Job for each node, followed to its end → retire → report → release
//! ```
//!
//! The decisions are made elsewhere ([`crate::volumes::plan`], [`crate::tracker`]); this carries them out, tries everything,
//! and tells what it could not do.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use futures::stream::{self, FuturesUnordered, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tracing::{error, info, warn};

use crate::cli::ControllerArguments;
use crate::deadlines::{Deadlines, JobClock, deadlines};
use crate::exit::Exit;
use crate::exposition::Body;
use crate::kubernetes::client::{ApiCause, ApiError, Cluster};
use crate::kubernetes::convert::{self, OwnJob, OwnPod};
use crate::kubernetes::job;
use crate::kubernetes::lease::{self, Claimed, Holder};
use crate::kubernetes::watch::{self as events, Events};
use crate::metrics::{self, Report};
use crate::owner::Owner;
use crate::planning::{
    Attempt, INSTANCE, Listed, Settings, Unreadable, Workers, check_only_nodes, claims_of_unplaced,
    filters_without_match, no_orphans, plan_listed, worker_environment,
};
use crate::pushgateway::group::{self, NODE_LABEL};
use crate::pushgateway::{
    Cause, Group, GroupingKey, GroupingLabels, Nodes, Ours, PushError, Pushgateway, groups_left_behind,
    groups_of_others, groups_to_retire,
};
use crate::run_log::{is_whole, log_outcomes, log_plan, summarize};
use crate::runtime::block_on;
use crate::summary::peak_memory_bytes;
use crate::text::one_line;
use crate::tracker::{Action, Event, Expected, Outcome, Start, Tracker};
use crate::volumes::claims::Claims;
use crate::volumes::node_plan::Run;
use crate::volumes::plan::{Plan, PlannedNode};
use crate::volumes::pods::PodPlaces;
use crate::volumes::volume::{Node, NodeReason, Volume};
use crate::worker::{pushgateway, unix_seconds};

/// How long the other requests to the Pushgateway may be tried.
const PUSH_BUDGET: Duration = Duration::from_secs(15);
/// How long what is left to do may take after the run was told to end: deleting the Jobs half of it, the report, and
/// releasing the Lease fit into a grace period of 30 s together.
const LAST_STEPS_BUDGET: Duration = Duration::from_secs(6);
/// How long the last Jobs may take to be deleted.
const LAST_DELETIONS_MAX: Duration = Duration::from_secs(30);
/// What part of its Job's time the start of our own pod may take.
const POD_START_SHARE: u32 = 4;
/// What the lists of the watches may take at the beginning.
const FIRST_LISTS_TIMEOUT: Duration = Duration::from_secs(60);
/// So much is shown of what somebody else wrote onto the Pushgateway.
const OWNER_MAX_CHARS: usize = 120;
/// How long a Pushgateway that does not check pushes may take to apply the last of them.
const SETTLING: Duration = Duration::from_secs(1);
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(250);
/// Requests of one kind that are under way at once.
const REQUESTS_AT_ONCE: usize = 10;

/// Everything that a run is told.
struct Config {
    pushgateway: Pushgateway,
    grouping_labels: GroupingLabels,
    planning: Settings,
    parallel_jobs: usize,
    keep_runs: u32,
    worker_environment: Vec<(&'static str, String)>,
    strict: bool,
    pod_name: Option<String>,
}

/// Why a run ended without its report.
#[derive(Debug, Error)]
enum RunError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{0}")]
    BadConfiguration(String),
    #[error(transparent)]
    Push(Box<PushError>),
    #[error("the run was ended early: {0}")]
    Interrupted(String),
}

impl From<PushError> for RunError {
    fn from(error: PushError) -> RunError {
        RunError::Push(Box::new(error))
    }
}

impl RunError {
    fn exit(&self) -> Exit {
        match self {
            RunError::Api(_) => Exit::Kubernetes,
            RunError::BadConfiguration(_) => Exit::BadConfiguration,
            RunError::Push(_) => Exit::Pushgateway,
            RunError::Interrupted(_) => Exit::Interrupted,
        }
    }
}

/// Why a run has to end before it is done.
#[derive(Clone, Debug, PartialEq)]
enum Stop {
    Signal,
    LeaseLost(String),
}

/// Runs the controller.
pub fn main(arguments: ControllerArguments) -> Exit {
    let config = match configure(arguments) {
        Ok(config) => config,
        Err(error) => {
            error!("{error:#}");
            return Exit::BadConfiguration;
        }
    };
    match block_on(run(config)) {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            error!("{error}");
            error.exit()
        }
        Err(error) => {
            error!("could not start: {error}");
            Exit::Unexpected
        }
    }
}

fn configure(arguments: ControllerArguments) -> anyhow::Result<Config> {
    let ControllerArguments {
        push,
        planning,
        parallel_jobs,
        keep_runs,
        strict,
        pod_name,
        log,
    } = arguments;
    let planning = Settings::new(planning)?;
    let push_of_worker = push.clone();
    let (pushgateway, grouping_labels) = pushgateway(push)?;
    let worker_environment =
        worker_environment(Some((&push_of_worker, &pushgateway, &grouping_labels)), &planning, log)?;
    Ok(Config {
        pushgateway,
        grouping_labels,
        planning,
        parallel_jobs: parallel_jobs.get(),
        keep_runs: keep_runs.get(),
        worker_environment,
        strict,
        pod_name,
    })
}

/// What this process is part of.
struct Identity {
    /// The run's name.
    run_id: String,
    /// The name of the CronJob, and of the Lease.
    instance: String,
    holder: Holder,
    cron_job: Option<(String, String)>,
    job: Option<JobClock>,
    image: Option<String>,
}

async fn identify(
    cluster: &Cluster,
    pod_name: Option<&str>,
    process_started_unix_seconds: f64,
) -> Result<Identity, ApiError> {
    let Some(pod_name) = pod_name else {
        let id = random_id();
        return Ok(Identity {
            run_id: id.clone(),
            instance: INSTANCE.to_owned(),
            holder: Holder::Process(id),
            cron_job: None,
            job: None,
            image: None,
        });
    };
    let OwnPod {
        uid,
        image,
        job_name,
        created_unix_seconds,
    } = convert::own_pod(cluster.pod(pod_name).await?);
    let Some(job_name) = job_name else {
        return Ok(Identity {
            run_id: uid.clone(),
            instance: INSTANCE.to_owned(),
            holder: Holder::Process(uid),
            cron_job: None,
            job: None,
            image,
        });
    };
    let OwnJob {
        uid: job_uid,
        active_deadline_seconds,
        started_unix_seconds,
        cron_job,
    } = convert::own_job(&cluster.job(&job_name).await?);
    let elapsed = |active_deadline: Duration| {
        let before_pod = created_unix_seconds
            .zip(started_unix_seconds)
            .map_or(0, |(pod, job)| pod - job);
        // The times before are the control plane's, and our own clock may differ: a pod's start takes no longer.
        let longest = active_deadline / POD_START_SHARE;
        let start_of_pod = created_unix_seconds.map_or(0.0, |pod| process_started_unix_seconds - pod as f64);
        let start_of_pod = Duration::try_from_secs_f64(start_of_pod)
            .unwrap_or_default()
            .min(longest);
        Duration::from_secs(u64::try_from(before_pod).unwrap_or(0)) + start_of_pod
    };
    Ok(Identity {
        run_id: uid,
        instance: cron_job
            .as_ref()
            .map_or_else(|| INSTANCE.to_owned(), |(name, _)| name.clone()),
        holder: Holder::Job(job_uid),
        cron_job,
        job: active_deadline_seconds
            .map(Duration::from_secs)
            .map(|active_deadline| JobClock {
                active_deadline,
                elapsed: elapsed(active_deadline),
            }),
        image,
    })
}

/// A name that no other run has.
fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    // The kernel gives so few bytes whole, or none where there is no such call; the time makes do then.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        bytes = unix_seconds()
            .to_bits()
            .to_be_bytes()
            .repeat(2)
            .try_into()
            .unwrap_or(bytes);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn run(config: Config) -> Result<Exit, RunError> {
    let began = Instant::now();
    let started_unix_seconds = unix_seconds();
    let mut terminated = signal(SignalKind::terminate())
        .map_err(|error| RunError::BadConfiguration(format!("could not wait for SIGTERM: {error}")))?;
    let cluster = Cluster::connect(config.planning.namespace.clone()).await?;
    let before_lease = async {
        let identity = identify(&cluster, config.pod_name.as_deref(), started_unix_seconds).await?;
        let cluster_uid = cluster.uid().await?;
        let claimed = lease::claim(&cluster, &identity.instance, &identity.holder).await?;
        Ok::<_, ApiError>((identity, claimed, cluster_uid))
    };
    let (identity, claimed, cluster_uid) = tokio::select! {
        done = before_lease => done?,
        _ = terminated.recv() => return Err(RunError::Interrupted("SIGTERM".to_owned())),
    };
    let mut lease = match claimed {
        Claimed::Held(lease) => lease,
        Claimed::Busy { holder, since } => {
            info!("another run is at work: {holder}, since {since}; nothing to do");
            return Ok(Exit::Done);
        }
    };
    let (stop, stopped) = watch::channel(None);
    let guard = async {
        let keep = lease.keep();
        tokio::pin!(keep);
        loop {
            tokio::select! {
                reason = &mut keep => {
                    let _ = stop.send(Some(Stop::LeaseLost(reason)));
                    // The run ends by itself; this waits for it.
                    return std::future::pending::<()>().await;
                }
                _ = terminated.recv() => {
                    let _ = stop.send(Some(Stop::Signal));
                }
            }
        }
    };
    let run = Run {
        id: identity.run_id.clone(),
        started_unix_seconds,
        owner: Owner {
            cluster_uid,
            cronjob: format!("{}/{}", cluster.namespace(), identity.instance),
        },
    };
    let session = Session {
        config: &config,
        cluster: &cluster,
        identity: &identity,
        run,
        began,
        stopped,
        jobs_not_deleted: Cell::new(0),
        deletions: Semaphore::new(REQUESTS_AT_ONCE),
    };
    let result = tokio::select! {
        result = session.run() => result,
        () = guard => unreachable!("the guard waits for the run"),
    };
    match tokio::time::timeout(LAST_STEPS_BUDGET, lease.release()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("{error}; the next run takes the Lease over when this one's Job has ended"),
        Err(_) => warn!("the Lease was not released in time; the next run takes it over when this one's Job has ended"),
    }
    result
}

/// One run that holds the Lease.
struct Session<'a> {
    config: &'a Config,
    cluster: &'a Cluster,
    identity: &'a Identity,
    run: Run,
    began: Instant,
    stopped: watch::Receiver<Option<Stop>>,
    /// The workers' Jobs that were to be deleted, less those that were.
    jobs_not_deleted: Cell<u64>,
    /// Bounds the deletions that are under way at once.
    deletions: Semaphore,
}

/// The name of a node's Job, or why there is none.
type Started = Result<String, (NodeReason, String)>;

/// The requests to the API server that are under way.
struct Requests<'a> {
    starting: FuturesUnordered<LocalBoxFuture<'a, (String, Started)>>,
    deleting: FuturesUnordered<LocalBoxFuture<'a, ()>>,
}

/// A worker that is to be made.
struct NewWorker {
    node: String,
    /// Of its Job.
    name: String,
    job: Job,
    /// The plan.
    compressed: Vec<u8>,
}

/// What a run found in the cluster.
struct Found {
    plan: Plan,
    /// Whether every object could be read: only then is what is not there known to be gone.
    is_complete: bool,
    events: Events,
    seen: Vec<Event>,
}

impl Session<'_> {
    async fn run(self) -> Result<Exit, RunError> {
        let Settings {
            interval, worker_image, ..
        } = &self.config.planning;
        let deadlines =
            deadlines(*interval, self.identity.job).map_err(|error| RunError::BadConfiguration(error.to_string()))?;
        let Some(image) = worker_image.clone().or_else(|| self.identity.image.clone()) else {
            let why = "the workers' image is not known: outside of a pod, set --worker-image";
            return Err(RunError::BadConfiguration(why.to_owned()));
        };
        let mut stopped = self.stopped.clone();
        let found = tokio::time::timeout(deadlines.controller_clock / 2, self.find());
        let found = until_stopped(&mut stopped, found).await?;
        let found = found.unwrap_or_else(|_| Err(too_slow(deadlines.controller_clock / 2).into()))?;
        log_plan(&found.plan, &self.config.planning.selection);
        if let Some(why) = no_orphans(&found.plan) {
            warn!("{why}");
        }
        // A Pushgateway that is installed together with us has to be pulled and started: all the time that is set, then.
        let first_push_budget = (deadlines.controller_clock / 4).min(self.config.pushgateway.budget_max());
        let groups = self.config.pushgateway.groups(first_push_budget);
        let groups = until_stopped(&mut stopped, groups).await??;
        self.refuse_to_share(&groups)?;
        self.tell_what_is_left_behind(&groups);
        let names = self.config.planning.selection.claim_labels.names();
        let capacities =
            metrics::capacity_group(&found.plan, &self.run, *interval, &self.config.planning.collect, names);
        let key = self.key(group::CONTROLLER_JOB);
        let pushed = self.config.pushgateway.put(&key, &capacities, first_push_budget);
        // A group that is refused costs no other: the nodes' are smaller, and others may be in the way of this one alone.
        let refused = match until_stopped(&mut stopped, pushed).await? {
            Ok(()) => None,
            Err(error) if matches!(error.cause, Cause::Refused { .. }) => {
                error!("{error}");
                Some(error)
            }
            Err(error) => return Err(error.into()),
        };
        let capacities = refused.is_none().then_some(capacities);

        let Found {
            plan,
            is_complete,
            events,
            seen,
        } = found;
        let (mut outcomes, ended) = self.measure(&plan, &image, &deadlines, events, seen, groups).await;
        let is_early = ended.is_some() || self.stop().is_some();
        let groups = if is_early {
            None
        } else {
            tokio::select! {
                groups = self.groups_in_the_end(&mut outcomes, capacities.is_some(), &deadlines) => groups,
                _ = stopped.wait_for(Option::is_some) => None,
            }
        };
        let report = Report {
            run: &self.run,
            plan: &plan,
            outcomes: &outcomes,
            duration: self.began.elapsed(),
            peak_memory_bytes: peak_memory_bytes(),
            jobs_not_deleted: self.jobs_not_deleted.get(),
        };
        log_outcomes(&report);
        let is_early = is_early || self.stop().is_some();
        let tidy = groups.as_deref().map(|groups| Tidy {
            groups,
            capacities: capacities.as_ref(),
            is_complete,
        });
        let is_success = !is_early && refused.is_none();
        let pushed = self.push_report(&report, tidy, is_success, &deadlines).await;
        summarize(&report);
        if let Some(error) = ended {
            if let Err(error) = pushed {
                error!("{error}");
            }
            return Err(error.into());
        }
        pushed?;
        if let Some(error) = refused {
            return Err(error.into());
        }
        Ok(if self.config.strict && !is_whole(&report) {
            Exit::Incomplete
        } else {
            Exit::Done
        })
    }

    fn stop(&self) -> Option<Stop> {
        self.stopped.borrow().clone()
    }

    fn key(&self, job: &'static str) -> GroupingKey {
        GroupingKey::new(job, &self.config.grouping_labels)
    }

    /// Lists everything and plans. The watches begin here, so that nothing that happens from now on is missed.
    async fn find(&self) -> Result<Found, RunError> {
        let Settings { selection, .. } = &self.config.planning;
        let label_keys = selection.label_keys();
        let instance = &self.identity.instance;
        let mut events = stream::select_all([
            events::nodes(self.cluster),
            events::jobs(self.cluster, instance),
            events::pods(self.cluster, instance),
        ])
        .boxed();
        let (volumes, claims, first) = tokio::try_join!(
            self.cluster.list::<PersistentVolume, _, Listed>(convert::volume),
            self.cluster
                .list::<PersistentVolumeClaim, _, Listed>(|raw| convert::claim(raw, &label_keys)),
            first_lists(&mut events),
        )?;
        let FirstLists {
            nodes,
            seen,
            is_complete,
            failed,
        } = first;
        // It is told when the run comes to follow what happens.
        let events = stream::iter(failed.map(Err)).chain(events).boxed();
        let mut listed = Listed::of(volumes, claims, nodes);
        for Unreadable { kind, name, why } in &listed.unreadable {
            warn!(kind, name, "passed over a {kind} that cannot be read: {why}");
        }
        check_only_nodes(selection, &listed.nodes).map_err(RunError::BadConfiguration)?;
        for why in filters_without_match(&listed, selection) {
            warn!("{why}");
        }
        listed.pods = self.pods(&listed.volumes, &listed.claims).await?;
        let is_complete = is_complete && listed.is_complete();
        let plan = plan_listed(listed, &self.config.planning);
        Ok(Found {
            plan,
            is_complete,
            events,
            seen,
        })
    }

    /// Where the pods run of those claims whose volumes say nothing of their node, if pods are to be asked.
    async fn pods(&self, volumes: &[Volume], claims: &Claims) -> Result<Option<PodPlaces>, ApiError> {
        if !self.config.planning.locate_by_pods {
            return Ok(None);
        }
        let mut places = claims_of_unplaced(volumes, claims);
        // Nobody is asked for what nothing needs.
        if !places.is_empty() {
            let listed = self.cluster.list::<Pod, (), Vec<()>>(|raw| {
                if let Some(pod) = convert::pod_on_node(raw) {
                    places.see(pod);
                }
            });
            listed.await.map_err(name_the_component)?;
        }
        Ok(Some(places))
    }

    /// Sends a worker to each node and follows them to their end. Returns what became of each node, and the error that
    /// ended it early, if one did.
    async fn measure(
        &self,
        plan: &Plan,
        image: &str,
        deadlines: &Deadlines,
        events: Events,
        seen: Vec<Event>,
        groups: Vec<Group>,
    ) -> (BTreeMap<String, Outcome>, Option<ApiError>) {
        let mut tracker = Tracker::new(&self.run.id, self.config.parallel_jobs, self.expected(plan));
        for event in seen {
            tracker.see(event);
        }
        let deleting: FuturesUnordered<_> = tracker
            .clean_up(self.began.elapsed())
            .into_iter()
            .map(|job| self.delete(job).boxed_local())
            .collect();
        let mut requests = Requests {
            starting: FuturesUnordered::new(),
            deleting,
        };
        let timed_out = self.timed_out_volumes(&tracker, groups);
        let new_worker = |start: Start| self.new_worker(plan, image, deadlines, &timed_out, start);
        let ended = self
            .follow(&mut tracker, events, &mut requests, deadlines, new_worker)
            .await;
        let Requests { starting, deleting } = requests;
        // Requests that are under way at an early end are given up; the Jobs that they may have made go with the others.
        drop(starting);
        let last: FuturesUnordered<_> = tracker
            .finish()
            .into_iter()
            .map(|job| self.delete(job).boxed_local())
            .collect();
        let deleted = futures::future::join(deleting.collect::<Vec<()>>(), last.collect::<Vec<()>>());
        // The report is worth more than a tidy end: it gets the other half of what is left.
        let time_is_up = tokio::time::sleep((self.left(deadlines) / 2).min(LAST_DELETIONS_MAX));
        let mut stopped = self.stopped.clone();
        let stopped = async {
            // It is never dropped before us.
            let _ = stopped.wait_for(Option::is_some).await;
            tokio::time::sleep(LAST_STEPS_BUDGET / 2).await;
        };
        let is_tidy = tokio::select! {
            _ = deleted => true,
            () = time_is_up => false,
            () = stopped => false,
        };
        if !is_tidy {
            warn!("not every Job could be deleted in time; the next run deletes what is left");
        }
        (tracker.outcomes(), ended)
    }

    /// The volumes that had no number for want of time, by node; looked for only where a worker of an earlier run is still
    /// there: most likely one of them holds it. Where every volume had its answer, what only the search for orphans opens
    /// may hold it, and that is looked at no more then either.
    fn timed_out_volumes(&self, tracker: &Tracker, groups: Vec<Group>) -> BTreeMap<String, BTreeSet<String>> {
        if tracker.earlier_workers().next().is_none() {
            return BTreeMap::new();
        }
        let of_node = |group: Group| {
            let node = group.labels.get(NODE_LABEL)?.clone();
            let is_ours =
                GroupingKey::from_labels(&group.labels)? == GroupingKey::for_node(&node, &self.config.grouping_labels);
            let volumes: BTreeSet<String> = group.timed_out_volumes.into_iter().collect();
            (is_ours && group.push_time_seconds > 0.0).then_some((node, volumes))
        };
        groups.into_iter().filter_map(of_node).collect()
    }

    /// Carries out what the tracker wants, and tells it what is seen, until each node's turn has ended.
    async fn follow<'s, S>(
        &'s self,
        tracker: &mut Tracker,
        mut events: Events,
        requests: &mut Requests<'s>,
        deadlines: &Deadlines,
        new_worker: S,
    ) -> Option<ApiError>
    where
        S: Fn(Start) -> Result<NewWorker, (String, NodeReason, String)>,
    {
        let mut stopped = self.stopped.clone();
        let mut ticks = tokio::time::interval(TICK);
        let clock = tokio::time::sleep_until((self.began + deadlines.controller_clock).into());
        tokio::pin!(clock);
        let mut ended = None;
        while !tracker.is_done() {
            for action in tracker.step(self.began.elapsed()) {
                match action {
                    Action::Start(start) => match new_worker(start) {
                        Ok(worker) => {
                            tracker.starting(&worker.name);
                            requests.starting.push(self.start(worker).boxed_local());
                        }
                        Err((node, reason, detail)) => tracker.not_started(&node, reason, detail),
                    },
                    Action::Delete { job } => requests.deleting.push(self.delete(job).boxed_local()),
                }
            }
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => tracker.see(event),
                    Some(Err(error)) => {
                        tracker.give_up(NodeReason::RunInterrupted, &error.to_string());
                        ended = Some(error);
                    }
                    None => tracker.give_up(NodeReason::RunInterrupted, "the watch of the cluster ended"),
                },
                Some((node, started)) = requests.starting.next() => match started {
                    Ok(job) => tracker.started(&node, &job, self.began.elapsed()),
                    Err((reason, detail)) => tracker.not_started(&node, reason, detail),
                },
                Some(()) = requests.deleting.next() => {}
                _ = ticks.tick() => {}
                () = &mut clock => {
                    let time = deadlines.controller_clock.as_secs();
                    tracker.give_up(NodeReason::TimedOut, &format!("not done when the {time} s of the run were up"));
                }
                _ = stopped.wait_for(Option::is_some) => {
                    tracker.give_up(NodeReason::RunInterrupted, "the run was told to end");
                }
            }
        }
        ended
    }

    /// What is left until everything has to be done: little after SIGTERM, for the pod's grace period has begun.
    fn left(&self, deadlines: &Deadlines) -> Duration {
        let left = deadlines.controller_end.saturating_sub(self.began.elapsed());
        match self.stop() {
            Some(_) => left.min(LAST_STEPS_BUDGET),
            None => left,
        }
    }

    /// What of that the Pushgateway may take for one thing.
    fn left_to_push(&self, deadlines: &Deadlines) -> Duration {
        self.left(deadlines).min(self.config.pushgateway.budget_max())
    }

    fn expected(&self, plan: &Plan) -> Vec<Expected> {
        let bases_of = |bases: &[usize]| {
            let paths = self.config.planning.base_paths.as_slice();
            bases.iter().map(|base| paths[*base].clone()).collect()
        };
        plan.nodes
            .iter()
            .map(|node| Expected {
                node: node.name.clone(),
                disk_pressure: node.disk_pressure,
                unmeasurable: node.unmeasurable.clone(),
                bases: bases_of(&node.bases),
            })
            .collect()
    }

    async fn delete(&self, job: String) {
        let _permit = self.deletions.acquire().await;
        self.jobs_not_deleted.set(self.jobs_not_deleted.get() + 1);
        match self.cluster.delete_job(&job).await {
            Ok(()) => self.jobs_not_deleted.set(self.jobs_not_deleted.get() - 1),
            Err(error) => warn!("{error}"),
        }
    }

    /// Works out the Job of a node and the plan for it, or why the node is not worth one.
    fn new_worker(
        &self,
        plan: &Plan,
        image: &str,
        deadlines: &Deadlines,
        timed_out: &BTreeMap<String, BTreeSet<String>>,
        start: Start,
    ) -> Result<NewWorker, (String, NodeReason, String)> {
        let Start {
            node,
            attempt,
            disk_pressure,
            unavailable_bases,
            beside,
        } = start;
        let Some(planned) = plan.nodes.iter().find(|planned| planned.name == node) else {
            unreachable!("the tracker knows the nodes of the plan only")
        };
        // A worker that starts late has less time: its numbers have to be there before this run ends.
        let remaining = deadlines
            .controller_clock
            .saturating_sub(self.began.elapsed() + deadlines.pod_start);
        if remaining < deadlines.worker_budget_min {
            let detail = "too little of the run's time was left when its turn came".to_owned();
            return Err((node, NodeReason::TimedOut, detail));
        }
        let left_alone = match &beside {
            None => None,
            Some(pod) => match timed_out.get(&node) {
                Some(volumes) => {
                    warn!(
                        node,
                        "the pod {pod} of an earlier run does not end; one more worker looks for no orphans, and leaves \
                         alone what had no number for want of time: volumes {}",
                        volumes.len()
                    );
                    Some(volumes)
                }
                None => {
                    let detail = format!(
                        "the pod {pod} of an earlier run does not end, and the Pushgateway does not tell which volume it \
                         waits for; a disk of the node may hang"
                    );
                    return Err((node, NodeReason::EarlierWorkerHangs, detail));
                }
            },
        };
        let Settings {
            base_paths,
            collect,
            orphan_age,
            template,
            ..
        } = &self.config.planning;
        let workers = Workers {
            run: &self.run,
            base_paths,
            collect,
            orphan_age: *orphan_age,
            known_paths: &plan.known_paths,
            template,
            namespace: self.cluster.namespace(),
            instance: &self.identity.instance,
            cron_job: self
                .identity
                .cron_job
                .as_ref()
                .map(|(name, uid)| (name.as_str(), uid.as_str())),
            image,
            environment: &self.config.worker_environment,
            active_deadline: deadlines.worker_job,
        };
        let attempt = Attempt {
            number: attempt,
            budget: deadlines.worker_budget.min(remaining),
            disk_pressure,
            unavailable_bases: &unavailable_bases,
            left_alone,
        };
        let (job, compressed) = match workers.make(planned, &attempt) {
            Ok(made) => made,
            Err(error) => return Err((node, NodeReason::PlanTooLarge, error.to_string())),
        };
        let name = job.metadata.name.clone().unwrap_or_default();
        Ok(NewWorker {
            node,
            name,
            job,
            compressed,
        })
    }

    /// Makes a node's Job, then the ConfigMap that it waits for, which the Job owns.
    async fn start(&self, worker: NewWorker) -> (String, Started) {
        let NewWorker {
            node,
            name,
            job,
            compressed,
        } = worker;
        let created = async {
            let created = self.cluster.create_job(&job).await?;
            if let Err(error) = self
                .cluster
                .create_config_map(&job::plan_config_map(&created, compressed))
                .await
            {
                self.delete(name).await;
                return Err(error);
            }
            Ok(name)
        };
        let created = created
            .await
            .map_err(|error: ApiError| (NodeReason::CreateRefused, error.to_string()));
        (node, created)
    }

    /// Tells how the run went, then retires what is gone. A run that was ended early tells only that, and one that lost its
    /// Lease tells nothing: the groups are another run's now.
    async fn push_report(
        &self,
        report: &Report<'_>,
        tidy: Option<Tidy<'_>>,
        is_success: bool,
        deadlines: &Deadlines,
    ) -> Result<(), RunError> {
        let whole = async {
            let Config {
                pushgateway, planning, ..
            } = self.config;
            let selection = &planning.selection;
            let mut refused = None;
            // A run for some nodes would take away what the last whole run tells of the others, and is no success of one.
            if !selection.is_partial() {
                let key = self.key(group::REPORT_JOB);
                match pushgateway
                    .put(&key, &report.group(), self.left_to_push(deadlines))
                    .await
                {
                    Err(error) if matches!(error.cause, Cause::Refused { .. }) => refused = Some(error),
                    pushed => pushed?,
                }
            }
            // Without a list nobody knows what the Pushgateway still has.
            let Some(tidy) = tidy else {
                return refused.map_or(Ok(()), |error| Err(error.into()));
            };
            if is_success && refused.is_none() && !selection.is_partial() {
                let (key, success) = (
                    self.key(group::SUCCESS_JOB),
                    metrics::success_group(&self.run, unix_seconds()),
                );
                pushgateway.put(&key, &success, self.left_to_push(deadlines)).await?;
            }
            let tidied = self.tidy(report, tidy);
            if tokio::time::timeout(self.left_to_push(deadlines), tidied)
                .await
                .is_err()
            {
                warn!("not everything could be retired in time; the next run retires what is left");
            }
            refused.map_or(Ok(()), |error| Err(error.into()))
        };
        tokio::pin!(whole);
        let mut stopped = self.stopped.clone();
        let stop = tokio::select! {
            biased;
            stop = stopped.wait_for(Option::is_some) => stop.ok().and_then(|stop| stop.clone()),
            pushed = &mut whole => return pushed,
        };
        match stop {
            Some(Stop::LeaseLost(reason)) => Err(RunError::Interrupted(reason)),
            Some(Stop::Signal) | None => {
                // What goes wrong in this short time is logged by nobody else.
                match tokio::time::timeout(LAST_STEPS_BUDGET, whole).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!("{error}"),
                    Err(_) => warn!("the report could not be pushed in time"),
                }
                Err(RunError::Interrupted("SIGTERM".to_owned()))
            }
        }
    }

    /// Puts the capacities again if the Pushgateway lost them in mid-run (it was replaced by one without memory), and, where
    /// everything could be read, deletes what has outlived its node. What fails is tried again by the next run.
    async fn tidy(&self, report: &Report<'_>, tidy: Tidy<'_>) {
        let plan = report.plan;
        let Tidy {
            groups,
            capacities,
            is_complete,
        } = tidy;
        let Config {
            pushgateway,
            planning,
            keep_runs,
            ..
        } = self.config;
        let key = self.key(group::CONTROLLER_JOB);
        if let Some(capacities) = capacities
            && !self.held(groups).contains(&key)
        {
            warn!("the Pushgateway lost what this run had pushed; the capacities are pushed again");
            if let Err(error) = pushgateway.put(&key, capacities, PUSH_BUDGET).await {
                warn!("{error}");
            }
        }
        if !is_complete || planning.selection.is_partial() {
            return;
        }
        // What was measured is not too old, whatever the server has applied of it by now.
        let was_not_measured = |node: &&PlannedNode| {
            let outcome = report.outcomes.get(&node.name);
            matches!(outcome, Some(Outcome::NotMeasured { reason, .. }) if *reason != NodeReason::NumbersLost)
        };
        let planned = plan.nodes.iter().filter(was_not_measured).map(|node| &node.name);
        // Whether they hold anything nobody knows, so age decides.
        let is_only_possible =
            |node: &&String| !plan.other_nodes.contains(*node) && !report.outcomes.contains_key(*node);
        let possible = plan.possible_nodes.iter().filter(is_only_possible);
        let nodes = Nodes {
            with_volumes: &plan.nodes_with_volumes(),
            wanted: &planned.chain(possible).cloned().collect(),
            kept_since_unix_seconds: self.run.started_unix_seconds
                - planning.interval.as_secs_f64() * f64::from(*keep_runs),
        };
        for (key, why) in groups_to_retire(groups, self.ours(), nodes) {
            match pushgateway.delete(&key, PUSH_BUDGET).await {
                Ok(()) => info!("retired {}: {why}", key.path()),
                Err(error) => warn!("{error}"),
            }
        }
    }

    /// The groups that the Pushgateway holds when all workers are done, if it tells. What it holds is what counts: a node
    /// whose numbers it lost meanwhile was measured for nothing, and one whose worker gave up before its push was taken was
    /// not.
    async fn groups_in_the_end(
        &self,
        outcomes: &mut BTreeMap<String, Outcome>,
        has_capacities: bool,
        deadlines: &Deadlines,
    ) -> Option<Vec<Group>> {
        // The report has to fit behind it.
        let end = Instant::now() + self.left(deadlines) / 2;
        let mut seen = None;
        // A server that does not check pushes answers before it has applied them.
        for pause in [Duration::ZERO, SETTLING, 3 * SETTLING] {
            let left = end.saturating_duration_since(Instant::now()).saturating_sub(pause);
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(pause).await;
            let budget = PUSH_BUDGET.min(self.left_to_push(deadlines)).min(left);
            match self.config.pushgateway.groups(budget).await {
                Ok(groups) => {
                    let held = self.held(&groups);
                    let is_there = |node: &str| held.contains(&self.key_of_node(node));
                    let mut outcomes = outcomes.iter();
                    let has_all =
                        outcomes.all(|(node, outcome)| !matches!(outcome, Outcome::Measured(_)) || is_there(node));
                    let is_whole = has_all && (!has_capacities || held.contains(&self.key(group::CONTROLLER_JOB)));
                    seen = Some(groups);
                    if is_whole {
                        break;
                    }
                }
                Err(error) => {
                    warn!("{error}; whether the Pushgateway still has this run's numbers is not known");
                    break;
                }
            }
        }
        let groups = seen?;
        let held = self.held(&groups);
        for (node, outcome) in outcomes {
            match (held.contains(&self.key_of_node(node)), &mut *outcome) {
                (false, Outcome::Measured(summary)) => {
                    let detail = "the Pushgateway took what the worker pushed, and no longer has it: it was restarted during \
                                  the run, and what it keeps on a disk (--persistence.file) was written before \
                                  (--persistence.interval); or the worker pushed to another one";
                    *outcome = Outcome::NotMeasured {
                        reason: NodeReason::NumbersLost,
                        detail: detail.to_owned(),
                        summary: summary.take(),
                    };
                }
                (
                    true,
                    Outcome::NotMeasured {
                        reason: NodeReason::NotDelivered,
                        summary,
                        ..
                    },
                ) => *outcome = Outcome::Measured(summary.take()),
                _ => {}
            }
        }
        Some(groups)
    }

    /// The keys of the groups that this run pushed.
    fn held(&self, groups: &[Group]) -> BTreeSet<GroupingKey> {
        let of_this_run = groups.iter().filter(|group| self.is_of_this_run(group));
        of_this_run
            .filter_map(|group| GroupingKey::from_labels(&group.labels))
            .collect()
    }

    fn key_of_node(&self, node: &str) -> GroupingKey {
        GroupingKey::for_node(node, &self.config.grouping_labels)
    }

    fn is_of_this_run(&self, group: &Group) -> bool {
        group.run_start_seconds == Some(self.run.started_unix_seconds)
    }

    fn ours(&self) -> Ours<'_> {
        Ours {
            grouping_labels: &self.config.grouping_labels,
            owner: &self.run.owner,
        }
    }

    /// Nothing is pushed where another cluster or another instance pushes.
    fn refuse_to_share(&self, groups: &[Group]) -> Result<(), RunError> {
        let others = groups_of_others(groups, self.ours());
        let Some((key, owner)) = others.first() else {
            return Ok(());
        };
        let what_to_do = match self.retire_command(owner, &[]) {
            Some(command) => format!("If the other one is gone, take its groups away: {command}"),
            None => "Nothing of lp-exporter has such an owner: look at that group by hand".to_owned(),
        };
        Err(RunError::BadConfiguration(format!(
            "groups on the Pushgateway lie where this run would push, {} of them, and are of another one: {} is of {}, \
             and this is {}. Give each its own label (--grouping-label, as in cluster=west), in all places. {what_to_do}",
            others.len(),
            key.path(),
            one_line(&owner.to_string(), 3 * OWNER_MAX_CHARS),
            self.run.owner,
        )))
    }

    /// Says which groups of ours lie under other labels than ours are now: they would be told for ever.
    fn tell_what_is_left_behind(&self, groups: &[Group]) {
        let left = groups_left_behind(groups, self.ours());
        let Some(key) = left.first() else { return };
        let missing = self.config.grouping_labels.names().map(|name| (name, ""));
        let missing = missing.filter(|(name, _)| key.extra_labels().all(|(other, _)| other != *name));
        let labels: Vec<(&str, &str)> = key.extra_labels().chain(missing).collect();
        let what_to_do = match self.retire_command(&self.run.owner, &labels) {
            Some(command) => format!("if nobody needs them, take them away: {command}"),
            None => "if nobody needs them, take them away by lp-exporter retire".to_owned(),
        };
        warn!(
            "this CronJob has pushed under other grouping labels before, and no run deletes that: {} of its groups are on the \
             Pushgateway, as {}; {what_to_do}",
            left.len(),
            one_line(&key.path(), 3 * OWNER_MAX_CHARS),
        );
    }

    /// The command that deletes the groups of this owner with these labels. Whoever pushed them chose the words: only plain
    /// ones become part of a command.
    fn retire_command(&self, owner: &Owner, labels: &[(&str, &str)]) -> Option<String> {
        let is_plain = |text: &str| {
            let mut bytes = text.bytes();
            text.len() <= OWNER_MAX_CHARS && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte))
        };
        let owner = [("cluster_uid", owner.cluster_uid.as_str()), ("cronjob", &owner.cronjob)];
        let is_owned = owner.iter().all(|(_, value)| !value.is_empty());
        let matches = owner.iter().chain(labels);
        let is_usable = is_owned && matches.clone().all(|(name, value)| is_plain(name) && is_plain(value));
        is_usable.then(|| {
            let matches: String = matches
                .map(|(name, value)| format!(" --match {name}={value}"))
                .collect();
            let url = self.config.pushgateway.url();
            format!("lp-exporter retire --pushgateway-url {url}{matches} (with --dry-run it only says which)")
        })
    }
}

/// What is left to do on the Pushgateway at the end of a run.
struct Tidy<'a> {
    /// What it holds.
    groups: &'a [Group],
    /// What the controller pushed, unless it was refused.
    capacities: Option<&'a Body>,
    /// Whether every object could be read.
    is_complete: bool,
}

/// Says where the right to list pods is to be had: only `--locate-by-pods` needs it.
fn name_the_component(error: ApiError) -> ApiError {
    let cause = match error.cause {
        ApiCause::Forbidden(message) => ApiCause::Forbidden(format!(
            "{message}; --locate-by-pods needs it: add the component manifests/components/locate-by-pods, or leave the flag \
             away"
        )),
        other => other,
    };
    ApiError { cause, ..error }
}

fn too_slow(time: Duration) -> ApiError {
    ApiError {
        verb: "list",
        resource: "volumes, claims and nodes".to_owned(),
        cause: ApiCause::Unusable(format!(
            "not done within {} s, half of the run's time: the API server is slow, or the interval is too short for so many \
             objects",
            time.as_secs()
        )),
    }
}

/// Waits for something, unless the run is told to end first.
async fn until_stopped<T>(
    stopped: &mut watch::Receiver<Option<Stop>>,
    work: impl Future<Output = T>,
) -> Result<T, RunError> {
    tokio::select! {
        done = work => Ok(done),
        stop = stopped.wait_for(Option::is_some) => {
            let reason = match stop.ok().and_then(|stop| stop.clone()) {
                Some(Stop::LeaseLost(reason)) => reason,
                Some(Stop::Signal) | None => "SIGTERM".to_owned(),
            };
            Err(RunError::Interrupted(reason))
        }
    }
}

struct FirstLists {
    nodes: Vec<Node>,
    seen: Vec<Event>,
    /// Whether every object could be read.
    is_complete: bool,
    /// Why a watch ended already.
    failed: Option<ApiError>,
}

/// Takes events until each of the three watches has told everything that there was.
async fn first_lists(events: &mut Events) -> Result<FirstLists, ApiError> {
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut seen = Vec::new();
    let (mut nodes_listed, mut jobs_listed, mut pods_listed) = (false, false, false);
    let mut is_complete = true;
    let mut failed = None;
    let take = async {
        while !(nodes_listed && jobs_listed && pods_listed) {
            match events.next().await {
                Some(Ok(Event::NodesListed)) => nodes_listed = true,
                Some(Ok(Event::JobsListed)) => jobs_listed = true,
                Some(Ok(Event::PodsListed)) => pods_listed = true,
                Some(Ok(Event::Unreadable)) => is_complete = false,
                Some(Ok(Event::UnreadableNode(node))) => {
                    is_complete = false;
                    nodes.insert(node.name.clone(), node);
                }
                Some(Ok(Event::Node(node))) => {
                    nodes.insert(node.name.clone(), node);
                }
                Some(Ok(Event::NodeGone(name))) => {
                    nodes.remove(&name);
                }
                Some(Ok(event)) => seen.push(event),
                // The list before that watch is whole, so the run can still tell what it found, and why it ends.
                Some(Err(error)) if error.verb == "watch" => failed = Some(error),
                Some(Err(error)) => return Err(error),
                None => break,
            }
        }
        Ok(())
    };
    let unanswered = || {
        let cause = ApiCause::Unreachable(format!("no answer within {} s", FIRST_LISTS_TIMEOUT.as_secs()));
        ApiError {
            verb: "list",
            resource: "nodes, jobs and pods".to_owned(),
            cause,
        }
    };
    tokio::time::timeout(FIRST_LISTS_TIMEOUT, take)
        .await
        .unwrap_or_else(|_| Err(unanswered()))?;
    Ok(FirstLists {
        nodes: nodes.into_values().collect(),
        seen,
        is_complete,
        failed,
    })
}
