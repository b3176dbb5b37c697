//! One run at a time: a Lease that the run's Job holds.
//!
//! A Job's uid is the holder, so that a retried pod of the same Job finds the Lease of its dead twin to be its own. A holder
//! whose Job has ended, or is gone, is dead. Otherwise the holder is alive if it renews: that is judged by whether the Lease
//! changes while we look, by our own clock, since those of two nodes differ.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::client::{ApiCause, ApiError, Cluster};
use super::convert;

/// How long a Lease counts after it was last renewed.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews it, and how long one request may take: three tries begin before it would count as dead.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);
const RENEW_TIMEOUT: Duration = Duration::from_secs(2);
/// How often somebody who waits looks at it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What begins the holder's name where no Job holds it: a run outside of the cluster.
const PROCESS_PREFIX: &str = "process-";

/// Who wants to hold the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The Job of this uid.
    Job(String),
    /// A process outside of the cluster, by a random number.
    Process(String),
}

impl Holder {
    fn identity(&self) -> String {
        match self {
            Holder::Job(uid) => uid.clone(),
            Holder::Process(id) => format!("{PROCESS_PREFIX}{id}"),
        }
    }
}

/// What came of asking for the Lease.
pub enum Claimed {
    /// It is ours.
    Held(Box<HeldLease>),
    /// Another run holds it and is alive.
    Busy {
        /// Who: the name of its Job, or what it calls itself.
        holder: String,
        /// Since when, in RFC 3339.
        since: String,
    },
}

/// A Lease that is ours.
pub struct HeldLease {
    leases: Api<Lease>,
    cluster: Cluster,
    lease: Lease,
    identity: String,
    /// When the last request that renewed it was sent: whoever waits cannot have seen it any earlier.
    renewed: Instant,
}

/// Asks for the Lease of an instance.
///
/// Waits at most [`LEASE_DURATION`] to see whether a holder that may be dead renews it.
///
/// # Errors
/// As any request to the API server.
pub async fn claim(cluster: &Cluster, name: &str, holder: &Holder) -> Result<Claimed, ApiError> {
    let leases: Api<Lease> = cluster.api();
    let identity = holder.identity();
    let resource = format!("leases {name}");
    let mut looked_since: Option<(String, Instant)> = None;
    loop {
        let existing = cluster.retrying("get", &resource, || leases.get_opt(name)).await?;
        let wanted = match &existing {
            None => new_lease(name, &identity),
            Some(lease) => {
                let spec = lease.spec.clone().unwrap_or_default();
                let current = spec.holder_identity.clone().unwrap_or_default();
                if !current.is_empty() && current != identity {
                    let alive = match job_of(cluster, &current).await? {
                        JobState::Ended => None,
                        JobState::Active(job_name) => Some(job_name),
                        JobState::NoJob => Some(current.clone()),
                    };
                    if let Some(holder_name) = alive {
                        match look(&mut looked_since, lease) {
                            Look::Again => {
                                sleep(LOOK_INTERVAL).await;
                                continue;
                            }
                            Look::Renewed => {
                                let since = spec.acquire_time.map(|time| time.0.to_string()).unwrap_or_default();
                                return Ok(Claimed::Busy {
                                    holder: holder_name,
                                    since,
                                });
                            }
                            Look::Dead => warn!(holder = holder_name, "the Lease's holder does not renew it any more"),
                        }
                    }
                    info!(holder = current, "taking over the Lease of a run that is dead");
                }
                taken(lease, &identity)
            }
        };
        let exists = existing.is_some();
        let renewed = Instant::now();
        let written = cluster
            .retrying(if exists { "update" } else { "create" }, &resource, || async {
                match exists {
                    true => leases.replace(name, &PostParams::default(), &wanted).await,
                    false => leases.create(&PostParams::default(), &wanted).await,
                }
            })
            .await;
        match written {
            Ok(lease) => {
                return Ok(Claimed::Held(Box::new(HeldLease {
                    leases,
                    cluster: cluster.clone(),
                    lease,
                    identity,
                    renewed,
                })));
            }
            // Somebody was quicker: look who.
            Err(ApiError {
                cause: ApiCause::Conflict(_),
                ..
            }) => sleep(LOOK_INTERVAL).await,
            Err(error) => return Err(error),
        }
    }
}

enum Look {
    Again,
    Renewed,
    Dead,
}

/// Compares the Lease with how it was when it was first looked at.
fn look(looked_since: &mut Option<(String, Instant)>, lease: &Lease) -> Look {
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    match looked_since {
        None => {
            *looked_since = Some((version, Instant::now()));
            Look::Again
        }
        Some((seen, _)) if *seen != version => Look::Renewed,
        Some((_, since)) if since.elapsed() > LEASE_DURATION => Look::Dead,
        Some(_) => Look::Again,
    }
}

enum JobState {
    /// It is gone, or has come to its end.
    Ended,
    /// It is at work, as far as the API server knows.
    Active(String),
    /// The holder is no Job.
    NoJob,
}

async fn job_of(cluster: &Cluster, identity: &str) -> Result<JobState, ApiError> {
    if identity.starts_with(PROCESS_PREFIX) {
        return Ok(JobState::NoJob);
    }
    let jobs = cluster.jobs(convert::job_of_holder).await?;
    Ok(match jobs.into_iter().flatten().find(|job| job.uid == identity) {
        Some(job) if !job.has_ended => JobState::Active(job.name),
        _ => JobState::Ended,
    })
}

fn new_lease(name: &str, identity: &str) -> Lease {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    taken(&Lease { metadata, spec: None }, identity)
}

fn taken(lease: &Lease, identity: &str) -> Lease {
    let mut lease = lease.clone();
    let now = MicroTime(Timestamp::now());
    let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: Some(transitions.saturating_add(1)),
        ..LeaseSpec::default()
    });
    lease
}

impl HeldLease {
    /// Renews the Lease until it is lost, and returns why. Cancel it by dropping the future.
    pub async fn keep(&mut self) -> String {
        loop {
            let renewed = self.renewed;
            let round = async {
                sleep(RENEW_INTERVAL).await;
                self.renew().await
            };
            // A moment before somebody who waits may take it.
            match tokio::time::timeout_at(renewed + LEASE_DURATION - LOOK_INTERVAL, round).await {
                Ok(true) => {}
                Ok(false) => return "another run took the Lease".to_owned(),
                Err(_) => return format!("the Lease could not be renewed for {} s", renewed.elapsed().as_secs()),
            }
        }
    }

    /// Tries once to renew the Lease; whether it may still be ours.
    async fn renew(&mut self) -> bool {
        let renew = |spec: &mut LeaseSpec| spec.renew_time = Some(MicroTime(Timestamp::now()));
        let renewed = Instant::now();
        let written = match self.write(renew).await {
            Err(ApiError {
                cause: ApiCause::Conflict(_) | ApiCause::NotFound,
                ..
            }) => match tokio::time::timeout(RENEW_TIMEOUT, self.reread()).await {
                // An earlier try got through, although its answer did not.
                Ok(Ok(true)) => self.write(renew).await,
                Ok(Ok(false)) => return false,
                Ok(error) => error.map(drop),
                Err(_) => {
                    warn!("the Lease could not be read within {} s", RENEW_TIMEOUT.as_secs());
                    return true;
                }
            },
            written => written,
        };
        match written {
            Ok(()) => self.renewed = renewed,
            Err(error) => warn!("{error}; the Lease is not renewed"),
        }
        true
    }

    /// Gives the Lease back, so that the next run need not find out that this one is over.
    ///
    /// # Errors
    /// As any request; the next run then finds the holder's Job ended.
    pub async fn release(&mut self) -> Result<(), ApiError> {
        if !self.is_ours() {
            // Another run took it, and needs it.
            return Ok(());
        }
        let release = |spec: &mut LeaseSpec| spec.holder_identity = Some(String::new());
        match self.write(release).await {
            Err(ApiError {
                cause: ApiCause::Conflict(_),
                ..
            }) => match self.reread().await? {
                true => self.write(release).await,
                false => Ok(()),
            },
            other => other,
        }
    }

    async fn write(&mut self, change: impl Fn(&mut LeaseSpec)) -> Result<(), ApiError> {
        let name = self.name();
        let mut lease = self.lease.clone();
        change(lease.spec.get_or_insert_default());
        let parameters = PostParams::default();
        let written = self.leases.replace(&name, &parameters, &lease);
        let failed = |cause| ApiError {
            verb: "update",
            resource: format!("leases {name}"),
            cause,
        };
        match tokio::time::timeout(RENEW_TIMEOUT, written).await {
            Ok(Ok(lease)) => {
                self.lease = lease;
                Ok(())
            }
            Ok(Err(error)) => Err(failed(ApiCause::from(&error))),
            Err(_) => Err(failed(ApiCause::Unreachable(format!(
                "no answer within {} s",
                RENEW_TIMEOUT.as_secs()
            )))),
        }
    }

    /// Reads the Lease anew; whether it is still ours.
    async fn reread(&mut self) -> Result<bool, ApiError> {
        let name = self.name();
        let lease = self
            .cluster
            .retrying("get", &format!("leases {name}"), || self.leases.get(&name))
            .await?;
        self.lease = lease;
        Ok(self.is_ours())
    }

    /// Whether the Lease is ours, as it was last seen.
    fn is_ours(&self) -> bool {
        let holder = self
            .lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        holder == Some(self.identity.as_str())
    }

    fn name(&self) -> String {
        self.lease.metadata.name.clone().unwrap_or_default()
    }
}
