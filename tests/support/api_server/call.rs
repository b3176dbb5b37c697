//! A request as the API server reads it: verb, resource, object, and the selectors of lists and watches.

use std::collections::BTreeMap;

use axum::http::{Method, Uri};
use serde_json::Value;
use url::form_urlencoded;

use super::refusal::Refusal;
use super::store::{Key, RESOURCES, Resource};

/// A request that was understood.
#[derive(Debug, Clone)]
pub struct Call {
    /// Kubernetes' verb: get, list, watch, create, update, delete.
    pub verb: &'static str,
    pub resource: &'static Resource,
    /// Empty for cluster-scoped resources and for lists over all namespaces.
    pub namespace: String,
    /// Empty for lists, watches and creations.
    pub name: String,
    pub query: BTreeMap<String, String>,
}

impl Call {
    /// Reads `/api/v1/…` and `/apis/<group>/<version>/…`. A path that the stand-in does not serve is 404, a method
    /// that it does not know is 405.
    pub fn parse(method: &Method, uri: &Uri) -> Result<Call, Refusal> {
        let unknown = || Refusal::new(404, "NotFound", "the server could not find the requested resource");
        let query: BTreeMap<String, String> = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
        let parts: Vec<&str> = uri.path().split('/').skip(1).collect();
        let (api_version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return Err(unknown()),
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural, name] => (*namespace, *plural, *name),
            ["namespaces", namespace, plural] => (*namespace, *plural, ""),
            [plural, name] => ("", *plural, *name),
            [plural] => ("", *plural, ""),
            _ => return Err(unknown()),
        };
        let resource = RESOURCES
            .iter()
            .find(|resource| resource.plural == plural && resource.api_version == api_version)
            .filter(|resource| resource.namespaced || namespace.is_empty())
            .ok_or_else(unknown)?;
        let watching = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        let verb = match (method.as_str(), name.is_empty()) {
            ("GET", false) => "get",
            ("GET", true) if watching => "watch",
            ("GET", true) => "list",
            ("POST", true) => "create",
            ("PUT", false) => "update",
            ("DELETE", false) => "delete",
            _ => {
                return Err(Refusal::new(
                    405,
                    "MethodNotAllowed",
                    "the stand-in does not serve this method",
                ));
            }
        };
        Ok(Call {
            verb,
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            query,
        })
    }

    /// The object that the call is about; for creations the name is in the body.
    pub fn key(&self, name: &str) -> Key {
        Key {
            resource: self.resource.plural,
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }

    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub fn filter(&self) -> Result<Filter, Refusal> {
        Filter::parse(self)
    }
}

/// Namespace and selectors of a list or a watch.
#[derive(Debug, Clone)]
pub struct Filter {
    resource: &'static str,
    namespace: String,
    requirements: Vec<Requirement>,
}

/// One part of a selector: a place in the object and what must stand there.
#[derive(Debug, Clone)]
struct Requirement {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Equals(String),
    Differs(String),
    Exists,
    Missing,
}

/// The fields that a real server can select by, of those that objects here have.
const SELECTABLE_FIELDS: [(&str, &str); 4] = [
    ("", "metadata.name"),
    ("", "metadata.namespace"),
    ("pods", "spec.nodeName"),
    ("pods", "status.phase"),
];

impl Filter {
    fn parse(call: &Call) -> Result<Filter, Refusal> {
        let mut requirements = Vec::new();
        for part in call
            .parameter("labelSelector")
            .split(',')
            .filter(|part| !part.is_empty())
        {
            let (label, test) = parse_requirement(part)?;
            let path = ["metadata", "labels", &label].map(str::to_owned).to_vec();
            requirements.push(Requirement { path, test });
        }
        for part in call
            .parameter("fieldSelector")
            .split(',')
            .filter(|part| !part.is_empty())
        {
            let (field, test) = parse_requirement(part)?;
            let known = |(resource, path): &(&str, &str)| {
                *path == field && (resource.is_empty() || *resource == call.resource.plural)
            };
            if !SELECTABLE_FIELDS.iter().any(known) || matches!(test, Test::Exists | Test::Missing) {
                return Err(Refusal::new(
                    400,
                    "BadRequest",
                    format!("field label not supported: {field}"),
                ));
            }
            requirements.push(Requirement {
                path: field.split('.').map(str::to_owned).collect(),
                test,
            });
        }
        Ok(Filter {
            resource: call.resource.plural,
            namespace: call.namespace.clone(),
            requirements,
        })
    }

    pub fn matches(&self, key: &Key, object: &Value) -> bool {
        key.resource == self.resource
            && (self.namespace.is_empty() || self.namespace == key.namespace)
            && self.requirements.iter().all(|requirement| requirement.holds(object))
    }
}

impl Requirement {
    fn holds(&self, object: &Value) -> bool {
        let found = self
            .path
            .iter()
            .try_fold(object, |value, part| value.get(part))
            .and_then(Value::as_str);
        match &self.test {
            Test::Equals(wanted) => found.unwrap_or_default() == wanted && (found.is_some() || wanted.is_empty()),
            Test::Differs(unwanted) => found != Some(unwanted),
            Test::Exists => found.is_some(),
            Test::Missing => found.is_none(),
        }
    }
}

/// `a=b`, `a==b`, `a!=b`, `a` and `!a`; sets are refused, so that no test passes by a selector that was not looked at.
fn parse_requirement(part: &str) -> Result<(String, Test), Refusal> {
    if part.contains(['(', ')', ' ']) {
        return Err(Refusal::new(
            400,
            "BadRequest",
            format!("the stand-in knows no selector like {part:?}"),
        ));
    }
    let own = str::to_owned;
    Ok(if let Some((left, right)) = part.split_once("!=") {
        (own(left), Test::Differs(own(right)))
    } else if let Some((left, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (own(left), Test::Equals(own(right)))
    } else if let Some(label) = part.strip_prefix('!') {
        (own(label), Test::Missing)
    } else {
        (own(part), Test::Exists)
    })
}
