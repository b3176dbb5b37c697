//! What happens to the nodes, the workers' Jobs and their pods, as one stream of plain events.
//!
//! Objects are watched undecoded and read one by one, so that a strange one is passed over with a warning instead of ending
//! the watch. An object that a renewed list does not show any more is told as gone.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{ApiResource, DynamicObject, ObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::client::{ApiCause, ApiError, Cluster};
use super::convert;
use crate::tracker::Event;

/// The events of the cluster; an error is one that no waiting mends.
pub type Events = BoxStream<'static, Result<Event, ApiError>>;

/// The nodes of the cluster.
pub fn nodes(cluster: &Cluster) -> Events {
    let api = Api::all_with(cluster.client.clone(), &ApiResource::erase::<NodeObject>(&()));
    let kind = Kind {
        resource: "nodes",
        seen: |object: NodeObject| Event::Node(convert::node(object)),
        unreadable: |metadata: ObjectMeta| {
            let (name, labels) = (metadata.name.unwrap_or_default(), metadata.labels.unwrap_or_default());
            Event::UnreadableNode(convert::unreadable_node(name, labels))
        },
        gone: Event::NodeGone,
        listed: Event::NodesListed,
    };
    events(api, watcher::Config::default(), kind)
}

/// The Jobs of an instance's workers, of this run and of earlier ones.
pub fn jobs(cluster: &Cluster, instance: &str) -> Events {
    let kind = Kind {
        resource: "jobs",
        seen: |object: Job| Event::Job(convert::worker_job(&object)),
        unreadable: |_| Event::Unreadable,
        gone: Event::JobGone,
        listed: Event::JobsListed,
    };
    events(workers::<Job>(cluster), of_instance(instance), kind)
}

/// The pods of an instance's workers, of this run and of earlier ones.
pub fn pods(cluster: &Cluster, instance: &str) -> Events {
    let kind = Kind {
        resource: "pods",
        seen: |object: Pod| Event::Pod(convert::worker_pod(&object)),
        unreadable: |_| Event::Unreadable,
        gone: Event::PodGone,
        listed: Event::PodsListed,
    };
    events(workers::<Pod>(cluster), of_instance(instance), kind)
}

fn workers<K: Resource<DynamicType = ()>>(cluster: &Cluster) -> Api<DynamicObject> {
    Api::namespaced_with(
        cluster.client.clone(),
        &cluster.namespace,
        &ApiResource::erase::<K>(&()),
    )
}

fn of_instance(instance: &str) -> watcher::Config {
    watcher::Config::default().labels(&convert::worker_selector(instance))
}

/// How the objects of one resource become events.
#[derive(Clone)]
struct Kind<K> {
    resource: &'static str,
    seen: fn(K) -> Event,
    unreadable: fn(ObjectMeta) -> Event,
    gone: fn(String) -> Event,
    listed: Event,
}

fn events<K>(api: Api<DynamicObject>, config: watcher::Config, kind: Kind<K>) -> Events
where
    K: DeserializeOwned + Debug + Send + 'static,
{
    let known = (BTreeSet::new(), BTreeSet::new());
    watcher(api, config)
        .default_backoff()
        .scan(known, move |(known, listed), event| {
            let out = translate(&kind, known, listed, event);
            async move { Some(stream::iter(out)) }
        })
        .flatten()
        .boxed()
}

/// One event of the library into ours. `known` are the names that have been told, `listed` those of a list under way.
fn translate<K: DeserializeOwned>(
    kind: &Kind<K>,
    known: &mut BTreeSet<String>,
    listed: &mut BTreeSet<String>,
    event: Result<watcher::Event<DynamicObject>, watcher::Error>,
) -> Vec<Result<Event, ApiError>> {
    match event {
        Ok(watcher::Event::Apply(object)) => {
            known.insert(object.metadata.name.clone().unwrap_or_default());
            vec![Ok(read(kind, object))]
        }
        Ok(watcher::Event::Delete(object)) => {
            let name = object.metadata.name.unwrap_or_default();
            known.remove(&name);
            vec![Ok((kind.gone)(name))]
        }
        Ok(watcher::Event::Init) => {
            listed.clear();
            Vec::new()
        }
        Ok(watcher::Event::InitApply(object)) => {
            listed.insert(object.metadata.name.clone().unwrap_or_default());
            vec![Ok(read(kind, object))]
        }
        Ok(watcher::Event::InitDone) => {
            let gone = known.difference(listed).cloned().map(|name| Ok((kind.gone)(name)));
            let events = gone.chain([Ok(kind.listed.clone())]).collect();
            *known = std::mem::take(listed);
            events
        }
        Err(error) => failure(kind.resource, &error).map(Err).into_iter().collect(),
    }
}

fn read<K: DeserializeOwned>(kind: &Kind<K>, object: DynamicObject) -> Event {
    let metadata = object.metadata.clone();
    let decoded = serde_json::to_value(object).and_then(serde_json::from_value);
    match decoded {
        Ok(object) => (kind.seen)(object),
        Err(error) => {
            warn!(
                resource = kind.resource,
                name = metadata.name,
                "passed over an object that cannot be read: {error}"
            );
            (kind.unreadable)(metadata)
        }
    }
}

/// The error, if no waiting mends it. The library tries the others again by itself, with growing pauses.
fn failure(resource: &'static str, error: &watcher::Error) -> Option<ApiError> {
    let (verb, cause) = match error {
        watcher::Error::InitialListFailed(cause) => ("list", ApiCause::from(cause)),
        watcher::Error::WatchStartFailed(cause) | watcher::Error::WatchFailed(cause) => {
            ("watch", ApiCause::from(cause))
        }
        watcher::Error::WatchError(status) => ("watch", ApiCause::from(status.as_ref())),
        watcher::Error::NoResourceVersion => ("watch", ApiCause::Unusable(error.to_string())),
    };
    let error = ApiError {
        verb,
        resource: resource.to_owned(),
        cause,
    };
    if matches!(error.cause, ApiCause::Forbidden(_) | ApiCause::Unauthorized(_)) {
        return Some(error);
    }
    warn!("{error}; trying again");
    None
}
