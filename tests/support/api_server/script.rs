//! Faults on demand: rules that answer in the server's place.

use std::time::Duration;

use serde_json::Value;

use super::call::Call;
use super::refusal::Refusal;
use super::store::Resource;

/// What a request that a rule matches is answered with.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A Status object with its code.
    Refuse(Refusal),
    /// The right's absence, worded for the request at hand.
    Forbid,
    /// Any status and body.
    Raw(u16, String),
    /// The connection breaks and nothing is done.
    Cut,
    /// The request is carried out, then the connection breaks: the client cannot know.
    CutAfterwards,
    /// The request is carried out as always; for rules that only delay.
    Serve,
}

/// Which requests get which answer, and how often. Later rules do not replace earlier ones: the first that matches
/// and is not used up decides.
#[derive(Debug, Clone)]
pub struct Rule {
    verb: Option<String>,
    resource: Option<String>,
    name: Option<String>,
    answer: Answer,
    delay: Duration,
    /// How many more requests it answers; `None` is for ever.
    left: Option<u32>,
}

impl Rule {
    /// A rule for every request.
    pub fn any(answer: Answer) -> Rule {
        Rule {
            verb: None,
            resource: None,
            name: None,
            answer,
            delay: Duration::ZERO,
            left: None,
        }
    }

    /// A rule for a Kubernetes verb (get, list, watch, create, update, delete) on a resource (plural).
    pub fn on(verb: &str, resource: &str, answer: Answer) -> Rule {
        Rule {
            verb: Some(verb.to_owned()),
            resource: Some(resource.to_owned()),
            ..Rule::any(answer)
        }
    }

    /// Only for objects of this name.
    pub fn named(self, name: &str) -> Rule {
        Rule {
            name: Some(name.to_owned()),
            ..self
        }
    }

    /// Waits before it answers.
    pub fn delayed(self, delay: Duration) -> Rule {
        Rule { delay, ..self }
    }

    /// Answers that many requests, then no more.
    pub fn times(self, times: u32) -> Rule {
        Rule {
            left: Some(times),
            ..self
        }
    }

    fn matches(&self, call: &Call) -> bool {
        let same = |wanted: &Option<String>, given: &str| wanted.as_deref().is_none_or(|wanted| wanted == given);
        self.left != Some(0)
            && same(&self.verb, call.verb)
            && same(&self.resource, call.resource.plural)
            && same(&self.name, &call.name)
    }
}

/// The answer and the delay of the first rule that matches, which is then used once more.
pub fn take(rules: &mut [Rule], call: &Call) -> (Answer, Duration) {
    let Some(rule) = rules.iter_mut().find(|rule| rule.matches(call)) else {
        return (Answer::Serve, Duration::ZERO);
    };
    rule.left = rule.left.map(|left| left - 1);
    let answer = match &rule.answer {
        Answer::Forbid => Answer::Refuse(Refusal::forbidden(call.verb, call.resource.plural, &call.namespace)),
        answer => answer.clone(),
    };
    (answer, rule.delay)
}

/// A right as a Role or ClusterRole grants it.
#[derive(Debug, Clone)]
pub struct Right {
    /// Plural.
    pub resource: String,
    pub verbs: Vec<String>,
    /// The Role's namespace; `None` is a ClusterRole, good for every namespace.
    pub namespace: Option<String>,
    /// The only objects that it is good for; empty for all.
    pub names: Vec<String>,
}

impl Right {
    /// The rights that the rules of a Role or ClusterRole grant.
    ///
    /// `namespace` is that of the Role. A rule for a resource of another API group than that of the resource here grants
    /// nothing.
    pub fn of_role(role: &Value, namespace: &str) -> Vec<Right> {
        let namespace = (role["kind"] == "Role").then(|| namespace.to_owned());
        let texts = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
        let mut rights = Vec::new();
        for rule in role["rules"].as_array().into_iter().flatten() {
            for resource in texts(&rule["resources"]) {
                if texts(&rule["apiGroups"])
                    .iter()
                    .any(|group| group == Resource::named(&resource).group())
                {
                    rights.push(Right {
                        resource,
                        verbs: texts(&rule["verbs"]),
                        namespace: namespace.clone(),
                        names: texts(&rule["resourceNames"]),
                    });
                }
            }
        }
        rights
    }

    /// Whether it allows a verb on a resource; `namespace` is empty for the whole cluster, `name` for no single object.
    pub fn allows(&self, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        self.resource == resource
            && self.verbs.iter().any(|allowed| allowed == verb)
            && self.namespace.as_ref().is_none_or(|allowed| allowed == namespace)
            && (self.names.is_empty() || self.names.iter().any(|allowed| allowed == name))
    }
}
