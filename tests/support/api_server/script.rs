//! Faults on demand: rules that answer in the server's place.

use std::time::Duration;

use super::call::Call;
use super::refusal::Refusal;

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
}

impl Right {
    pub fn new(namespace: Option<&str>, resource: &str, verbs: &[&str]) -> Right {
        Right {
            resource: resource.to_owned(),
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
            namespace: namespace.map(str::to_owned),
        }
    }

    pub fn allows(&self, call: &Call) -> bool {
        self.resource == call.resource.plural
            && self.verbs.iter().any(|verb| verb == call.verb)
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == call.namespace)
    }
}
