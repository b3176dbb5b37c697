//! Node affinity of a volume, answered as the scheduler answers it.
//!
//! The rules are those of k8s.io/component-helpers, scheduling/corev1/nodeaffinity (and of the label and field selectors
//! that it builds on); tests/differential.rs compares with its recorded answers. The main one that surprises: a
//! requirement that is not valid (a value that is no label value, `Gt` without an integer, …) makes its whole term match
//! nothing, also under `NotIn`. A term with an operator that [`Operator`] does not know is such a term for the scheduler too.
//! It cannot be written here: no API server takes such a volume, and who meets one all the same does not know what is meant.

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

use super::quantity::excerpt;

/// The only field of a node that a term can ask for.
const NODE_NAME_FIELD: &str = "metadata.name";

/// The longest label value, and the longest name part of a label key, in bytes.
const LABEL_MAX_BYTES: usize = 63;

/// The longest prefix of a label key, in bytes: that of a DNS name.
const SUBDOMAIN_MAX_BYTES: usize = 253;

/// One of the alternatives of a node selector: it matches a node that meets every requirement.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NodeSelectorTerm {
    /// Requirements on the node's labels.
    pub match_expressions: Vec<Requirement>,
    /// Requirements on the node's fields, of which there is one: `metadata.name`.
    pub match_fields: Vec<Requirement>,
}

/// What a label or a field of a node has to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key, or the field's name.
    pub key: String,
    /// How the value of the node is compared.
    pub operator: Operator,
    /// What it is compared with: at least one for `In` and `NotIn`, none for `Exists` and `DoesNotExist`, one integer for
    /// `Gt` and `Lt`; of a field always exactly one.
    pub values: Vec<String>,
}

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The node has the label, and its value is one of those given.
    In,
    /// The node lacks the label, or its value is none of those given.
    NotIn,
    /// The node has the label.
    Exists,
    /// The node lacks the label.
    DoesNotExist,
    /// The node's label is an integer above the one given.
    Gt,
    /// The node's label is an integer below the one given.
    Lt,
}

/// A text names no operator. The term that it stands in matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot read {text:?} as an operator of a node selector: use In, NotIn, Exists, DoesNotExist, Gt or Lt")]
pub struct UnknownOperator {
    /// The beginning of the text.
    text: String,
}

impl FromStr for Operator {
    type Err = UnknownOperator;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "In" => Ok(Self::In),
            "NotIn" => Ok(Self::NotIn),
            "Exists" => Ok(Self::Exists),
            "DoesNotExist" => Ok(Self::DoesNotExist),
            "Gt" => Ok(Self::Gt),
            "Lt" => Ok(Self::Lt),
            _ => Err(UnknownOperator { text: excerpt(text) }),
        }
    }
}

/// Tells whether one of the terms matches the node of that name and with those labels. Without terms nothing matches.
pub fn matches(terms: &[NodeSelectorTerm], node_name: &str, node_labels: &BTreeMap<String, String>) -> bool {
    terms.iter().any(|term| term.matches(node_name, node_labels))
}

impl NodeSelectorTerm {
    fn matches(&self, node_name: &str, node_labels: &BTreeMap<String, String>) -> bool {
        let is_empty = self.match_expressions.is_empty() && self.match_fields.is_empty();
        // Kubernetes skips the fields of a node without a name, but not their validity.
        let fields_match = |field: &Requirement| {
            field
                .field_value()
                .is_some_and(|value| node_name.is_empty() || field.field_matches(value, node_name))
        };
        // One after the other is the same as all validity first: either way one failure fails the term.
        !is_empty
            && self
                .match_expressions
                .iter()
                .all(|label| label.is_valid_for_label() && label.label_matches(node_labels))
            && self.match_fields.iter().all(fields_match)
    }
}

impl Requirement {
    /// What `labels.NewRequirement` would refuse it for, if it would.
    pub(super) fn why_invalid_for_label(&self) -> Option<String> {
        if self.is_valid_for_label() {
            return None;
        }
        let is_compared = matches!(self.operator, Operator::Gt | Operator::Lt);
        Some(if !is_label_key(&self.key) {
            format!("{:?} is no label key", excerpt(&self.key))
        } else if let Some(value) = self.values.iter().find(|value| !is_label_value(value)) {
            format!("{:?} is no label value", excerpt(value))
        } else if is_compared {
            format!("{:?} is no integer", excerpt(&self.values.concat()))
        } else {
            format!("{:?} has the wrong number of values", excerpt(&self.key))
        })
    }

    /// Tells whether `labels.NewRequirement` would accept it.
    fn is_valid_for_label(&self) -> bool {
        let count_fits = match self.operator {
            Operator::In | Operator::NotIn => !self.values.is_empty(),
            Operator::Exists | Operator::DoesNotExist => self.values.is_empty(),
            Operator::Gt | Operator::Lt => self.integer().is_some(),
        };
        // A negative integer is no label value, so `Gt` and `Lt` never compare with one.
        count_fits && is_label_key(&self.key) && self.values.iter().all(|value| is_label_value(value))
    }

    /// Tells whether labels meet a requirement that is valid for them.
    pub(super) fn label_matches(&self, node_labels: &BTreeMap<String, String>) -> bool {
        let on_node = node_labels.get(&self.key);
        let integer_on_node = || on_node?.parse::<i64>().ok();
        match self.operator {
            Operator::In => on_node.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => on_node.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => on_node.is_some(),
            Operator::DoesNotExist => on_node.is_none(),
            Operator::Gt => integer_on_node()
                .zip(self.integer())
                .is_some_and(|(on_node, limit)| on_node > limit),
            Operator::Lt => integer_on_node()
                .zip(self.integer())
                .is_some_and(|(on_node, limit)| on_node < limit),
        }
    }

    /// The single value of `Gt` and `Lt`; nothing if there are several or it is no 64-bit integer.
    fn integer(&self) -> Option<i64> {
        match self.values.as_slice() {
            [value] => value.parse().ok(),
            _ => None,
        }
    }

    /// The single value of a valid requirement on a field; nothing if the requirement is not valid.
    fn field_value(&self) -> Option<&str> {
        match (self.operator, self.values.as_slice()) {
            (Operator::In | Operator::NotIn, [value]) => Some(value),
            _ => None,
        }
    }

    fn field_matches(&self, value: &str, node_name: &str) -> bool {
        // To Kubernetes a field that a node does not have is empty; the API server refuses any but the name.
        let on_node = if self.key == NODE_NAME_FIELD { node_name } else { "" };
        (on_node == value) == (self.operator == Operator::In)
    }
}

/// Tells whether a text is a label key: a name, before it at most one DNS name as a prefix and a slash.
pub(super) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_subdomain)
}

/// Tells whether a text is a label value: empty, or letters, digits and `-_.` inside, at most 63 bytes.
fn is_label_value(value: &str) -> bool {
    value.is_empty()
        || value.len() <= LABEL_MAX_BYTES
            && is_framed(value, |byte| byte.is_ascii_alphanumeric())
            && value
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Tells whether a text is a DNS subdomain of RFC 1123: lower-case labels between dots, at most 253 bytes.
fn is_dns_subdomain(name: &str) -> bool {
    let is_lower_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_dns_label = |label: &str| {
        is_framed(label, is_lower_alphanumeric) && label.bytes().all(|byte| is_lower_alphanumeric(byte) || byte == b'-')
    };
    name.len() <= SUBDOMAIN_MAX_BYTES && name.split('.').all(is_dns_label)
}

/// Tells whether the first and the last byte satisfy a condition, which those of an empty text do not.
fn is_framed(text: &str, condition: impl Fn(u8) -> bool) -> bool {
    text.bytes().next().is_some_and(&condition) && text.bytes().next_back().is_some_and(&condition)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE: &str = "node-1.example";
    const LABELS: &[(&str, &str)] = &[
        ("kubernetes.io/hostname", "host-1"),
        ("zone", "a"),
        ("disks", "12"),
        ("empty", ""),
        ("below", "-3"),
    ];

    fn labels() -> BTreeMap<String, String> {
        LABELS
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn requirement(key: &str, operator: &str, values: &[&str]) -> Requirement {
        Requirement {
            key: key.to_owned(),
            operator: operator.parse().expect("a known operator"),
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        }
    }

    fn expressions(requirements: &[(&str, &str, &[&str])]) -> NodeSelectorTerm {
        let match_expressions = requirements
            .iter()
            .map(|(key, operator, values)| requirement(key, operator, values));
        NodeSelectorTerm {
            match_expressions: match_expressions.collect(),
            match_fields: Vec::new(),
        }
    }

    fn fields(requirements: &[(&str, &str, &[&str])]) -> NodeSelectorTerm {
        NodeSelectorTerm {
            match_fields: expressions(requirements).match_expressions,
            match_expressions: Vec::new(),
        }
    }

    fn check(terms: &[NodeSelectorTerm], expected: bool) {
        assert_eq!(matches(terms, NODE, &labels()), expected, "{terms:?}");
    }

    #[test]
    fn one_expression() {
        let long = "x".repeat(64);
        for (key, operator, values, expected) in [
            ("kubernetes.io/hostname", "In", &["host-1"][..], true),
            ("kubernetes.io/hostname", "In", &["host-2", "host-1"], true),
            ("kubernetes.io/hostname", "In", &[NODE], false),
            ("absent", "In", &[""], false),
            ("empty", "In", &[""], true),
            ("zone", "In", &[], false),
            ("zone", "NotIn", &["b"], true),
            ("zone", "NotIn", &["b", "a"], false),
            ("absent", "NotIn", &["a"], true),
            ("zone", "NotIn", &[], false),
            // Not valid, and so no match, although the node's value is another.
            ("zone", "NotIn", &["no/label"], false),
            ("zone", "NotIn", &[&long], false),
            ("zone", "Exists", &[], true),
            ("absent", "Exists", &[], false),
            ("zone", "Exists", &["a"], false),
            ("absent", "DoesNotExist", &[], true),
            ("zone", "DoesNotExist", &[], false),
            ("absent", "DoesNotExist", &["a"], false),
            ("disks", "Gt", &["11"], true),
            ("disks", "Gt", &["12"], false),
            ("disks", "Lt", &["100"], true),
            ("disks", "Lt", &["12"], false),
            ("below", "Lt", &["0"], true),
            // A negative integer is no label value.
            ("disks", "Gt", &["-1"], false),
            ("disks", "Gt", &["+1"], false),
            ("disks", "Gt", &["1", "2"], false),
            ("disks", "Gt", &[], false),
            ("disks", "Gt", &["1.5"], false),
            ("disks", "Lt", &["9223372036854775807"], true),
            ("disks", "Lt", &["9223372036854775808"], false),
            ("zone", "Gt", &["1"], false),
            ("absent", "Lt", &["1"], false),
            ("", "DoesNotExist", &[], false),
            ("a/b/c", "DoesNotExist", &[], false),
            ("/b", "DoesNotExist", &[], false),
            ("A.example/b", "DoesNotExist", &[], false),
            ("a..example/b", "DoesNotExist", &[], false),
            ("a.example/b", "DoesNotExist", &[], true),
            ("-b", "DoesNotExist", &[], false),
            (&long, "DoesNotExist", &[], false),
        ] {
            check(&[expressions(&[(key, operator, values)])], expected);
        }
    }

    #[test]
    fn one_field() {
        for (key, operator, values, expected) in [
            ("metadata.name", "In", &[NODE][..], true),
            ("metadata.name", "In", &["node-2"], false),
            ("metadata.name", "In", &[NODE, "node-2"], false),
            ("metadata.name", "In", &[], false),
            ("metadata.name", "NotIn", &["node-2"], true),
            ("metadata.name", "NotIn", &[NODE], false),
            ("metadata.name", "NotIn", &[], false),
            ("metadata.name", "Exists", &[], false),
            ("metadata.name", "Gt", &["1"], false),
            ("metadata.namespace", "In", &["x"], false),
            ("metadata.namespace", "In", &[""], true),
            ("metadata.namespace", "NotIn", &["x"], true),
        ] {
            check(&[fields(&[(key, operator, values)])], expected);
        }
    }

    #[test]
    fn terms_are_alternatives_and_expressions_are_conditions() {
        let yes = ("zone", "Exists", &[][..]);
        let no = ("zone", "DoesNotExist", &[][..]);
        let invalid = ("zone", "In", &[][..]);
        let empty = NodeSelectorTerm::default();
        check(&[], false);
        check(std::slice::from_ref(&empty), false);
        check(&[empty, expressions(&[yes])], true);
        check(&[expressions(&[yes, yes])], true);
        check(&[expressions(&[yes, no])], false);
        check(&[expressions(&[yes, invalid])], false);
        check(
            &[expressions(&[invalid]), expressions(&[no]), expressions(&[yes])],
            true,
        );
        check(&[expressions(&[no]), expressions(&[invalid])], false);
        let both = |name| NodeSelectorTerm {
            match_fields: fields(&[("metadata.name", "In", &[name])]).match_fields,
            ..expressions(&[yes])
        };
        check(&[both(NODE)], true);
        check(&[both("node-2")], false);
    }

    #[test]
    fn an_unknown_operator_is_named() {
        for text in ["", "in", "Equals", " In"] {
            let message = text.parse::<Operator>().expect_err("no operator").to_string();
            assert!(message.contains(&format!("{text:?}")), "{message}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(key in "\\PC{0,8}", value in "\\PC{0,8}", name in "\\PC{0,8}", count in 0_usize..3) {
            for operator in ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] {
                let values = vec![value.as_str(); count];
                let requirement: &[(&str, &str, &[&str])] = &[(&key, operator, &values)];
                let labels = BTreeMap::from([(key.clone(), value.clone())]);
                matches(&[expressions(requirement), fields(requirement)], &name, &labels);
            }
        }

        #[test]
        fn in_and_not_in_are_opposites_when_valid(key in "[a-z]{1,3}", values in prop::collection::vec("[a-c]", 1..3)) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let labels = BTreeMap::from([("a".to_owned(), "a".to_owned()), ("b".to_owned(), "c".to_owned())]);
            let is_in = matches(&[expressions(&[(&key, "In", &values)])], NODE, &labels);
            let is_not_in = matches(&[expressions(&[(&key, "NotIn", &values)])], NODE, &labels);
            prop_assert_ne!(is_in, is_not_in);
        }
    }
}
