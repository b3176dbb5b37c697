//! Terms of a node affinity are or-ed and their requirements and-ed, whatever they say.
//!
//! The text is a node's name and labels on its first line, then a requirement a line; an empty line begins the next term.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use lp_exporter::volumes::affinity::{NodeSelectorTerm, Operator, Requirement, matches};

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let node_name = words.next().unwrap_or_default();
    let labels: BTreeMap<String, String> = words
        .map(|word| word.split_once('=').unwrap_or((word, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let mut terms = vec![NodeSelectorTerm::default()];
    for line in lines {
        let Some(term) = terms.last_mut() else {
            unreachable!("there is one from the beginning");
        };
        match requirement(line) {
            None => terms.push(NodeSelectorTerm::default()),
            Some((true, field)) => term.match_fields.push(field),
            Some((false, label)) => term.match_expressions.push(label),
        }
    }
    let one_matches = |term: &NodeSelectorTerm| matches(std::slice::from_ref(term), node_name, &labels);
    assert_eq!(matches(&terms, node_name, &labels), terms.iter().any(one_matches));
    for term in terms.iter().filter(|term| one_matches(term)) {
        for expression in &term.match_expressions {
            let alone = NodeSelectorTerm {
                match_expressions: vec![expression.clone()],
                match_fields: Vec::new(),
            };
            assert!(one_matches(&alone), "{alone:?} does not match alone");
        }
    }
    assert!(!matches(&[], node_name, &labels) && !one_matches(&NodeSelectorTerm::default()));
});

/// `[@]key operator [value…]`: whether it is one on a field, and the requirement; an empty line is none.
fn requirement(line: &str) -> Option<(bool, Requirement)> {
    let mut words = line.split(' ');
    let key = words.next().filter(|key| !key.is_empty())?;
    let operators = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    let word = words.next().unwrap_or_default();
    // A number is an operator as well, so that the fuzzer need not find the words first.
    let operator = word.parse::<Operator>().ok().or_else(|| {
        let number = usize::from(word.bytes().next().unwrap_or_default());
        operators[number % operators.len()].parse().ok()
    })?;
    let is_field = key.starts_with('@');
    let requirement = Requirement {
        key: key.trim_start_matches('@').to_owned(),
        operator,
        values: words.map(str::to_owned).collect(),
    };
    Some((is_field, requirement))
}
