//! Requests to the API server, each with a bound on its time and its tries.
//!
//! kube's own retries are off: they try fifteen times whatever the verb and follow a Retry-After of any length. Ours have a
//! budget, and say what they do.

use std::fmt;
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy};
use kube::core::Request;
use kube::{Api, Client, Config, Resource};
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tracing::warn;

use crate::text::one_line;

/// What the connection to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence of a watch, which is longer than the API server's own end of one (290 s, kube's default).
const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// What one try of a request may take, its whole answer included.
const TRY_TIMEOUT: Duration = Duration::from_secs(30);
/// What a request may take with all its tries; a try that has begun is not cut by it.
const RETRY_BUDGET: Duration = Duration::from_secs(20);
/// The first pause between two tries, and the longest.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// Objects a page: what kubectl asks for, about 1 MB of PersistentVolumes.
const PAGE_OBJECTS: u32 = 500;
/// How often a list is begun anew because the API server forgot where it was (410 Gone).
const LIST_RESTARTS_MAX: usize = 3;
/// The longest message of the API server that is passed on.
const MESSAGE_MAX_CHARS: usize = 500;

/// A connection to a cluster.
#[derive(Clone)]
pub struct Cluster {
    /// kube's client.
    pub(super) client: Client,
    /// The namespace that the Jobs, their ConfigMaps and the Lease are in.
    pub(super) namespace: String,
}

/// A request that failed: what was tried, on what, and why it failed.
#[derive(Debug, Error)]
#[error("could not {verb} {resource}: {cause}")]
pub struct ApiError {
    /// The verb, as RBAC names it.
    pub verb: &'static str,
    /// The resource, as RBAC names it, and the object's name where there is one.
    pub resource: String,
    /// Why.
    pub cause: ApiCause,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiCause {
    /// The API server does not take our credentials.
    Unauthorized(String),
    /// The API server does not allow it: by RBAC, a quota, or an admission policy.
    Forbidden(String),
    /// There is no such object.
    NotFound,
    /// An object of that name exists, or the object was changed by somebody else.
    Conflict(String),
    /// The API server refuses the request for another reason, with its HTTP status.
    Refused(u16, String),
    /// The API server was not reached, or its answer made no sense.
    Unreachable(String),
    /// The API server answers, and not with what is needed, or not in the time that there is.
    Unusable(String),
    /// Nothing says where the API server is.
    NotConfigured(String),
}

impl fmt::Display for ApiCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiCause::Forbidden(message) if message.contains("is being terminated") => {
                write!(f, "{message}; the namespace is going away, and everything in it")
            }
            ApiCause::Unauthorized(message) => {
                write!(
                    f,
                    "the API server refuses the credentials: {message}; the token has expired or is of another cluster: see \
                     KUBECONFIG, or the pod's service account"
                )
            }
            ApiCause::Forbidden(message) if is_of_rbac(message) => {
                write!(
                    f,
                    "forbidden: {message}; grant it in the ClusterRole or Role of the controller's ServiceAccount"
                )
            }
            // A quota, or an admission policy: the message says which.
            ApiCause::Forbidden(message) => write!(f, "forbidden: {message}"),
            ApiCause::NotConfigured(message) => {
                write!(
                    f,
                    "{message}; set KUBECONFIG, or run it in a pod with a service account"
                )
            }
            ApiCause::Unusable(message) => write!(f, "{message}"),
            ApiCause::NotFound => write!(f, "it does not exist"),
            ApiCause::Conflict(message) => write!(f, "conflict: {message}"),
            ApiCause::Refused(status, message) => write!(f, "the API server refuses it with {status}: {message}"),
            ApiCause::Unreachable(message) => {
                write!(
                    f,
                    "{message}; check that the API server is reachable from here (kubectl get --raw /readyz)"
                )
            }
        }
    }
}

impl From<&kube::Error> for ApiCause {
    fn from(error: &kube::Error) -> ApiCause {
        match error {
            kube::Error::Api(status) => ApiCause::from(status.as_ref()),
            other => ApiCause::Unreachable(shorten(&chain(other))),
        }
    }
}

impl From<&kube::core::Status> for ApiCause {
    fn from(status: &kube::core::Status) -> ApiCause {
        let message = shorten(&status.message);
        match status.code {
            401 => ApiCause::Unauthorized(message),
            403 => ApiCause::Forbidden(message),
            404 => ApiCause::NotFound,
            409 => ApiCause::Conflict(message),
            code => ApiCause::Refused(code, message),
        }
    }
}

impl ApiCause {
    /// Whether another try may end otherwise.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            ApiCause::Unreachable(_) | ApiCause::Refused(408 | 429 | 500..=599, _)
        )
    }
}

/// Whether a right is missing: `User "x" cannot list resource "pods" in API group "" at the cluster scope`, as RBAC says.
fn is_of_rbac(message: &str) -> bool {
    let after = message.split_once(" cannot ").map(|(_, after)| after);
    after
        .and_then(|after| after.split_once(' '))
        .is_some_and(|(_, what)| what.starts_with("resource \""))
}

/// An error and its causes in one line, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn shorten(text: &str) -> String {
    one_line(text, MESSAGE_MAX_CHARS)
}

/// A page of a list whose objects are not decoded yet, so that a strange one costs only itself.
#[derive(Deserialize)]
struct RawPage {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

impl Cluster {
    /// Connects by the kubeconfig (KUBECONFIG, ~/.kube/config), else by the pod's service account.
    ///
    /// `namespace` is where the Jobs go; without it, the kubeconfig's or the pod's own.
    ///
    /// # Errors
    /// [`ApiCause::Unreachable`] when there is no usable configuration. Nothing is asked of the API server yet.
    pub async fn connect(namespace: Option<String>) -> Result<Cluster, ApiError> {
        let failed = |error: &dyn std::error::Error| ApiError {
            verb: "find",
            resource: "a kubeconfig or a service account".to_owned(),
            cause: ApiCause::NotConfigured(shorten(&chain(error))),
        };
        let mut config = Config::infer().await.map_err(|error| failed(&error))?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        // Else the time that a pooled connection lay idle counts as silence of the next answer.
        config.reset_reader_on_write = true;
        config.default_retry = false;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| failed(&error))?;
        Ok(Cluster { client, namespace })
    }

    /// The namespace that the Jobs are in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Lists every object of a resource of the whole cluster, in pages; `decode` turns each into what is kept, and the
    /// list is gathered as it comes, because memory for it twice is much.
    ///
    /// # Errors
    /// Whatever keeps the list from being complete: a part of a list is never returned.
    pub async fn list<K, T, L>(&self, decode: impl FnMut(&RawValue) -> T) -> Result<L, ApiError>
    where
        K: Resource<DynamicType = ()>,
        L: Default + Extend<T>,
    {
        self.list_below::<K, T, L>(None, decode).await
    }

    async fn list_below<K, T, L>(
        &self,
        namespace: Option<&str>,
        mut decode: impl FnMut(&RawValue) -> T,
    ) -> Result<L, ApiError>
    where
        K: Resource<DynamicType = ()>,
        L: Default + Extend<T>,
    {
        let request = Request::new(K::url_path(&(), namespace));
        let mut restarts = 0;
        let mut token: Option<String> = None;
        let mut found = L::default();
        loop {
            let mut parameters = ListParams::default().limit(PAGE_OBJECTS);
            parameters.continue_token = token.take();
            let page = self
                .retrying("list", &K::plural(&()), || async {
                    let request = request.list(&parameters).map_err(kube::Error::BuildRequest)?;
                    self.client.request::<RawPage>(request).await
                })
                .await;
            match page {
                Ok(page) => {
                    found.extend(page.items.iter().map(|item| decode(item)));
                    token = page.metadata.continue_token.filter(|token| !token.is_empty());
                    if token.is_none() {
                        return Ok(found);
                    }
                }
                Err(ApiError {
                    cause: ApiCause::Refused(410, _),
                    ..
                }) if restarts < LIST_RESTARTS_MAX => {
                    restarts += 1;
                    found = L::default();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The uid of the namespace kube-system, which tells clusters apart: it lives as long as its cluster.
    ///
    /// # Errors
    /// As any request.
    pub async fn uid(&self) -> Result<String, ApiError> {
        const SYSTEM: &str = "kube-system";
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let resource = format!("namespaces {SYSTEM}");
        let namespace = self.retrying("get", &resource, || namespaces.get(SYSTEM)).await?;
        let uid = namespace.metadata.uid.filter(|uid| !uid.is_empty());
        uid.ok_or_else(|| ApiError {
            verb: "get",
            resource,
            cause: ApiCause::Unusable("it has no uid".to_owned()),
        })
    }

    /// Reads a pod of the namespace.
    ///
    /// # Errors
    /// As any request.
    pub async fn pod(&self, name: &str) -> Result<Pod, ApiError> {
        let pods: Api<Pod> = self.api();
        self.retrying("get", &format!("pods {name}"), || pods.get(name)).await
    }

    /// Reads a Job of the namespace.
    ///
    /// # Errors
    /// As any request.
    pub async fn job(&self, name: &str) -> Result<Job, ApiError> {
        let jobs: Api<Job> = self.api();
        self.retrying("get", &format!("jobs {name}"), || jobs.get(name)).await
    }

    /// Lists every Job of the namespace, whoever made it, as [`Cluster::list`] does.
    ///
    /// # Errors
    /// As any request.
    pub async fn jobs<T>(&self, decode: impl FnMut(&RawValue) -> T) -> Result<Vec<T>, ApiError> {
        self.list_below::<Job, T, Vec<T>>(Some(&self.namespace), decode).await
    }

    /// Creates a Job. If an earlier try got through although its answer did not, that Job is returned.
    ///
    /// # Errors
    /// As any request.
    pub async fn create_job(&self, job: &Job) -> Result<Job, ApiError> {
        let jobs: Api<Job> = self.api();
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let parameters = PostParams::default();
        let created = self
            .retrying("create", &format!("jobs {name}"), || jobs.create(&parameters, job))
            .await;
        match created {
            // The name holds a hash of the run: it is our own Job.
            Err(ApiError {
                cause: ApiCause::Conflict(_),
                ..
            }) => self.job(name).await,
            other => other,
        }
    }

    /// Creates a ConfigMap; one that an earlier try made is as good.
    ///
    /// # Errors
    /// As any request.
    pub async fn create_config_map(&self, config_map: &ConfigMap) -> Result<(), ApiError> {
        let config_maps: Api<ConfigMap> = self.api();
        let name = config_map.metadata.name.as_deref().unwrap_or_default();
        let resource = format!("configmaps {name}");
        let parameters = PostParams::default();
        let created = self
            .retrying("create", &resource, || config_maps.create(&parameters, config_map))
            .await;
        match created {
            Ok(_)
            | Err(ApiError {
                cause: ApiCause::Conflict(_),
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a Job together with its pods and its ConfigMap. One that is gone already is as good.
    ///
    /// # Errors
    /// As any request.
    pub async fn delete_job(&self, name: &str) -> Result<(), ApiError> {
        let jobs: Api<Job> = self.api();
        // Without a policy the API server's default for Jobs leaves the pods behind for ever.
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..Default::default()
        };
        let deleted = self
            .retrying("delete", &format!("jobs {name}"), || jobs.delete(name, &parameters))
            .await;
        match deleted {
            Ok(_)
            | Err(ApiError {
                cause: ApiCause::NotFound,
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Tries a request until it is answered, is refused for good, or [`RETRY_BUDGET`] is used up.
    pub(super) async fn retrying<T, F, R>(
        &self,
        verb: &'static str,
        resource: &str,
        mut request: R,
    ) -> Result<T, ApiError>
    where
        R: FnMut() -> F,
        F: Future<Output = Result<T, kube::Error>>,
    {
        let began = Instant::now();
        let failed = |cause: ApiCause| ApiError {
            verb,
            resource: resource.to_owned(),
            cause,
        };
        let attempt = || {
            let answer = request();
            async {
                match tokio::time::timeout(TRY_TIMEOUT, answer).await {
                    Ok(answered) => answered.map_err(|error| failed(ApiCause::from(&error))),
                    Err(_) => Err(failed(ApiCause::Unreachable(format!(
                        "no answer within {} s",
                        TRY_TIMEOUT.as_secs()
                    )))),
                }
            }
        };
        let pauses = ExponentialBuilder::new()
            .with_min_delay(RETRY_PAUSE.0)
            .with_max_delay(RETRY_PAUSE.1)
            .with_jitter()
            .with_total_delay(Some(RETRY_BUDGET))
            .without_max_times();
        attempt
            .retry(pauses)
            // The backoff's own limit counts the pauses only, and a try may take longer than all of them.
            .when(|error: &ApiError| error.cause.is_transient() && began.elapsed() < RETRY_BUDGET)
            .notify(|error, pause| warn!(pause_seconds = pause.as_secs_f64(), "{error}; trying again"))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is advised follows from what the API server says.
    #[test]
    fn each_refusal_has_its_own_advice() {
        const GRANT: &str = "; grant it in the ClusterRole or Role of the controller's ServiceAccount";
        const ACCOUNT: &str = "system:serviceaccount:lp-exporter:lp-exporter";
        let listing = format!(
            "pods is forbidden: User \"{ACCOUNT}\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
        );
        let getting = format!(
            "namespaces \"kube-system\" is forbidden: User \"{ACCOUNT}\" cannot get resource \"namespaces\" in API group \
             \"\" in the namespace \"kube-system\""
        );
        let quota = "configmaps \"x\" is forbidden: exceeded quota: q, requested: count/configmaps=1, used: \
                     count/configmaps=4, limited: count/configmaps=0";
        let policy = "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: a pod \
                      cannot run resource hogs";
        let terminating = "configmaps \"x\" is forbidden: unable to create new content in namespace lp-exporter because \
                           it is being terminated";
        for (code, message, expected) in [
            (403, listing.as_str(), format!("forbidden: {listing}{GRANT}")),
            (403, &getting, format!("forbidden: {getting}{GRANT}")),
            (403, quota, format!("forbidden: {quota}")),
            (403, policy, format!("forbidden: {policy}")),
            (403, "the webhook \"w\" denied the request: no", "forbidden: the webhook \"w\" denied the request: no".to_owned()),
            (403, "it cannot be done", "forbidden: it cannot be done".to_owned()),
            (
                403,
                terminating,
                format!("{terminating}; the namespace is going away, and everything in it"),
            ),
            (
                401,
                "Unauthorized",
                "the API server refuses the credentials: Unauthorized; the token has expired or is of another cluster: see \
                 KUBECONFIG, or the pod's service account"
                    .to_owned(),
            ),
            (404, "nodes \"x\" not found", "it does not exist".to_owned()),
            (422, "it is invalid", "the API server refuses it with 422: it is invalid".to_owned()),
        ] {
            let status = kube::core::Status {
                code,
                message: message.to_owned(),
                ..kube::core::Status::default()
            };
            let cause = ApiCause::from(&status);
            assert_eq!(cause.to_string(), expected);
            assert!(!cause.is_transient(), "{cause}");
        }
        let unusable = ApiCause::Unusable("it has no uid".to_owned());
        assert_eq!(
            (unusable.to_string().as_str(), unusable.is_transient()),
            ("it has no uid", false)
        );
    }
}
