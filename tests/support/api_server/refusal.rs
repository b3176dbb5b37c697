//! Answers of the API server that are not a success: HTTP status and Status object.

use serde_json::{Value, json};

use super::store::{Key, Resource};

/// A refusal as the API server words it.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    pub reason: String,
    pub message: String,
    /// Seconds for the header Retry-After.
    pub retry_after_seconds: Option<u64>,
}

impl Refusal {
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            retry_after_seconds: None,
        }
    }

    pub fn not_found(key: &Key) -> Refusal {
        Refusal::new(
            404,
            "NotFound",
            format!("{} {:?} not found", qualified(key.resource), key.name),
        )
    }

    pub fn already_exists(key: &Key) -> Refusal {
        Refusal::new(
            409,
            "AlreadyExists",
            format!("{} {:?} already exists", qualified(key.resource), key.name),
        )
    }

    pub fn conflict(key: &Key) -> Refusal {
        let message = format!(
            "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to \
             the latest version and try again",
            qualified(key.resource),
            key.name
        );
        Refusal::new(409, "Conflict", message)
    }

    pub fn invalid(key: &Key, why: &str) -> Refusal {
        let kind = Resource::named(key.resource).kind;
        Refusal::new(422, "Invalid", format!("{kind} {:?} is invalid: {why}", key.name))
    }

    /// What a service account without the right is told.
    pub fn forbidden(verb: &str, resource: &str, namespace: &str) -> Refusal {
        let group = Resource::named(resource).group();
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {namespace:?}")
        };
        let message = format!(
            "{} is forbidden: User \"system:serviceaccount:lp-exporter:lp-exporter\" cannot {verb} resource \
             {resource:?} in API group {group:?} {scope}",
            qualified(resource)
        );
        Refusal::new(403, "Forbidden", message)
    }

    /// The Status object, as it is sent in a body and in a watch's ERROR event.
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

/// The resource with its group, as messages name it: `jobs.batch`, `nodes`.
fn qualified(resource: &str) -> String {
    match Resource::named(resource).group() {
        "" => resource.to_owned(),
        group => format!("{resource}.{group}"),
    }
}
