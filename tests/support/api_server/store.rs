//! The stand-in's objects, and the history of their changes.
//!
//! Objects are plain JSON: the stand-in keeps what it is given, undecodable or not, and adds what a server adds
//! (uid, resourceVersion, creationTimestamp). No clock but for timestamps, no network, no scripting.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use super::refusal::Refusal;

/// A resource that the stand-in serves.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// As in `apiVersion`: `v1`, `batch/v1`.
    pub api_version: &'static str,
    pub kind: &'static str,
    /// As in paths; no two resources here share one.
    pub plural: &'static str,
    pub namespaced: bool,
}

/// Everything that the stand-in serves; any other path answers 404.
pub const RESOURCES: [Resource; 9] = [
    Resource {
        api_version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        namespaced: true,
    },
    Resource {
        api_version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        namespaced: false,
    },
    Resource {
        api_version: "v1",
        kind: "Node",
        plural: "nodes",
        namespaced: false,
    },
    Resource {
        api_version: "v1",
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        namespaced: false,
    },
    Resource {
        api_version: "v1",
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        namespaced: true,
    },
    Resource {
        api_version: "v1",
        kind: "Pod",
        plural: "pods",
        namespaced: true,
    },
    Resource {
        api_version: "batch/v1",
        kind: "CronJob",
        plural: "cronjobs",
        namespaced: true,
    },
    Resource {
        api_version: "batch/v1",
        kind: "Job",
        plural: "jobs",
        namespaced: true,
    },
    Resource {
        api_version: "coordination.k8s.io/v1",
        kind: "Lease",
        plural: "leases",
        namespaced: true,
    },
];

impl Resource {
    /// The resource with this plural name; panics on one that the stand-in does not serve, a mistake in a test.
    pub fn named(plural: &str) -> &'static Resource {
        RESOURCES
            .iter()
            .find(|resource| resource.plural == plural)
            .unwrap_or_else(|| panic!("the stand-in serves no resource {plural}"))
    }

    /// The part before the slash of `apiVersion`, empty for the core group.
    pub fn group(&self) -> &'static str {
        self.api_version.split_once('/').map_or("", |(group, _version)| group)
    }
}

/// Which object: its namespace is empty for cluster-scoped resources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub resource: &'static str,
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One entry of the history that watches read.
#[derive(Debug, Clone)]
pub struct Change {
    pub resource_version: u64,
    pub kind: ChangeKind,
    pub key: Key,
    pub object: Value,
    /// The object before the change, for watches with a selector that it has left.
    pub previous: Option<Value>,
}

#[derive(Debug)]
pub struct Store {
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    resource_version: u64,
    /// Watches may not begin before this version.
    compacted: u64,
    uids: u64,
}

impl Store {
    pub fn new() -> Store {
        Store {
            objects: BTreeMap::new(),
            history: Vec::new(),
            resource_version: 1000,
            compacted: 0,
            uids: 0,
        }
    }

    pub fn resource_version(&self) -> u64 {
        self.resource_version
    }

    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// The objects of a resource in the order of their names, of one namespace or (when it is empty) of all.
    pub fn list<'store>(
        &'store self,
        resource: &'static str,
        namespace: &'store str,
    ) -> impl Iterator<Item = (&'store Key, &'store Value)> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.resource == resource && (namespace.is_empty() || key.namespace == namespace))
    }

    /// The changes after a version, or `None` when that version was compacted away.
    pub fn changes_since(&self, resource_version: u64) -> Option<&[Change]> {
        if resource_version < self.compacted {
            return None;
        }
        let first = self
            .history
            .partition_point(|change| change.resource_version <= resource_version);
        Some(&self.history[first..])
    }

    /// Forgets the history, as etcd does every few minutes: a watch that is not up to date gets 410 Gone.
    pub fn compact(&mut self) {
        self.resource_version += 1;
        self.compacted = self.resource_version;
        self.history.clear();
    }

    /// Stores a new object and returns it as stored; 409 AlreadyExists when there is one of that name.
    pub fn create(&mut self, key: &Key, mut object: Value) -> Result<Value, Refusal> {
        if self.objects.contains_key(key) {
            return Err(Refusal::already_exists(key));
        }
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
        let metadata = metadata_of(&mut object);
        // A given uid is kept: tests name owners by it.
        metadata.entry("uid").or_insert(uid.into());
        metadata.entry("creationTimestamp").or_insert(now().into());
        metadata.insert("name".to_owned(), key.name.clone().into());
        if !key.namespace.is_empty() {
            metadata.insert("namespace".to_owned(), key.namespace.clone().into());
        }
        if key.resource == "jobs" {
            complete_job(&mut object);
        }
        Ok(self.store(ChangeKind::Added, key, object))
    }

    /// Replaces an object and returns it as stored; 404 when there is none, 409 Conflict when the given
    /// resourceVersion or uid is not the stored one.
    pub fn replace(&mut self, key: &Key, mut object: Value) -> Result<Value, Refusal> {
        let stored = self.objects.get(key).ok_or_else(|| Refusal::not_found(key))?;
        let given = metadata_of(&mut object).clone();
        for field in ["resourceVersion", "uid"] {
            let given = given.get(field).and_then(Value::as_str).unwrap_or_default();
            if !given.is_empty() && Some(given) != stored["metadata"][field].as_str() {
                return Err(Refusal::conflict(key));
            }
        }
        let metadata = metadata_of(&mut object);
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "name", "namespace"] {
            if let Some(value) = stored["metadata"].get(field) {
                metadata.insert(field.to_owned(), value.clone());
            }
        }
        let goes = stored["metadata"]["deletionTimestamp"].is_string() && finalizers(&object).is_empty();
        Ok(if goes {
            self.remove(key, object)
        } else {
            self.store(ChangeKind::Modified, key, object)
        })
    }

    /// Deletes an object, or marks it when it has finalizers, and does with its dependents what the policy says.
    ///
    /// `Orphan` leaves them without their owner; it is the server's default for Jobs. Everything else removes them.
    pub fn delete(&mut self, key: &Key, policy: Option<&str>) -> Result<Value, Refusal> {
        let mut object = self.objects.get(key).cloned().ok_or_else(|| Refusal::not_found(key))?;
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let gone = if finalizers(&object).is_empty() {
            self.remove(key, object)
        } else {
            metadata_of(&mut object)
                .entry("deletionTimestamp")
                .or_insert(now().into());
            self.store(ChangeKind::Modified, key, object)
        };
        let orphan = policy.map_or(key.resource == "jobs", |policy| policy == "Orphan");
        self.settle_dependents(&uid, orphan);
        Ok(gone)
    }

    /// Removes what names the uid as its owner and no other owner that exists, or takes the reference away.
    fn settle_dependents(&mut self, owner: &str, orphan: bool) {
        let dependents: Vec<(Key, Value)> = self
            .objects
            .iter()
            .filter(|(_, object)| owners(object).any(|uid| uid == owner))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        let alive: HashSet<String> = self
            .objects
            .values()
            .filter_map(|object| object["metadata"]["uid"].as_str())
            .filter(|uid| *uid != owner)
            .map(str::to_owned)
            .collect();
        for (key, mut object) in dependents {
            if !orphan && !owners(&object).any(|uid| alive.contains(uid)) {
                // It may be gone already, with another dependent that owns it as well.
                let _ = self.delete(&key, Some("Background"));
                continue;
            }
            if let Some(references) = object["metadata"]["ownerReferences"].as_array_mut() {
                references.retain(|reference| reference["uid"] != owner);
            }
            self.store(ChangeKind::Modified, &key, object);
        }
    }

    fn store(&mut self, kind: ChangeKind, key: &Key, mut object: Value) -> Value {
        self.stamp(key, &mut object);
        let previous = self.objects.insert(key.clone(), object.clone());
        self.history.push(Change {
            resource_version: self.resource_version,
            kind,
            key: key.clone(),
            object: object.clone(),
            previous,
        });
        object
    }

    fn remove(&mut self, key: &Key, mut object: Value) -> Value {
        self.stamp(key, &mut object);
        let previous = self.objects.remove(key);
        self.history.push(Change {
            resource_version: self.resource_version,
            kind: ChangeKind::Deleted,
            key: key.clone(),
            object: object.clone(),
            previous,
        });
        object
    }

    fn stamp(&mut self, key: &Key, object: &mut Value) {
        self.resource_version += 1;
        let resource = Resource::named(key.resource);
        object["apiVersion"] = resource.api_version.into();
        object["kind"] = resource.kind.into();
        metadata_of(object).insert("resourceVersion".to_owned(), self.resource_version.to_string().into());
    }
}

/// The time in the form of Kubernetes' timestamps: UTC, whole seconds.
pub fn now() -> String {
    k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// The object's metadata, made when it has none.
pub fn metadata_of(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]
        .as_object_mut()
        .expect("metadata was made an object just now")
}

/// What the server adds to a new Job: labels and a selector that tie it to its pods.
/// <https://kubernetes.io/docs/concepts/workloads/controllers/job/>
fn complete_job(job: &mut Value) {
    let uid = job["metadata"]["uid"].clone();
    let name = job["metadata"]["name"].clone();
    job["spec"]["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    let labels = json!({
        "batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name,
        "controller-uid": uid, "job-name": name,
    });
    for (label, value) in labels.as_object().expect("it is written as an object above") {
        job["spec"]["template"]["metadata"]["labels"][label] = value.clone();
    }
}

fn finalizers(object: &Value) -> &[Value] {
    object["metadata"]["finalizers"].as_array().map_or(&[], Vec::as_slice)
}

fn owners(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|reference| reference["uid"].as_str())
}
