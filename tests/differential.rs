//! Compares quantities and node affinity with the recorded answers of Kubernetes' own code.
//! tests/differential/README.md tells how they are made.

use std::collections::BTreeMap;
use std::path::Path;

use lp_exporter::volumes::affinity::{NodeSelectorTerm, Requirement, UnknownOperator, matches};
use lp_exporter::volumes::quantity::{QuantityError, parse_bytes};
use serde::Deserialize;

/// Reads a checked-in file, a case a line.
fn recorded_lines(file: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/differential")
        .join(file);
    let text = std::fs::read_to_string(&path).expect("the recorded answers are checked in");
    text.lines().map(str::to_owned).collect()
}

/// What Kubernetes answers to a quantity, told in the words of our errors.
fn quantity_answer(text: &str) -> String {
    match parse_bytes(text) {
        Ok(bytes) => bytes.to_string(),
        Err(QuantityError::Negative { .. }) => "negative".to_owned(),
        Err(QuantityError::TooLarge { .. }) => "too large".to_owned(),
        Err(QuantityError::Empty | QuantityError::Malformed { .. } | QuantityError::UnknownSuffix { .. }) => {
            "invalid".to_owned()
        }
    }
}

/// Kubernetes reads some texts without a digit (`+`, `.Ki`) as 0; here they are invalid on purpose.
fn is_without_number(text: &str) -> bool {
    let number = text.trim_start_matches(['+', '-', '.']);
    !number.starts_with(|digit: char| digit.is_ascii_digit())
}

#[test]
fn quantities_are_those_of_kubernetes() {
    let mut differences = Vec::new();
    let mut case_count = 0;
    let mut without_number_count = 0;
    for line in recorded_lines("quantity.txt") {
        let (quoted, recorded) = line.rsplit_once('\t').expect("a text, a tab, an answer");
        let text: String = serde_json::from_str(quoted).expect("the text is a JSON string");
        let expected = match recorded {
            "0" if is_without_number(&text) => {
                without_number_count += 1;
                "invalid"
            }
            other => other,
        };
        let answer = quantity_answer(&text);
        if answer != expected {
            differences.push(format!("{text:?}: {answer}, but Kubernetes says {recorded}"));
        }
        case_count += 1;
    }
    assert!(case_count > 10_000, "only {case_count} cases");
    assert!(without_number_count < 100, "{without_number_count} cases are left out");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A line of affinity.jsonl.
#[derive(Deserialize)]
#[serde(untagged)]
enum Recorded {
    Node {
        node: String,
        labels: Option<BTreeMap<String, String>>,
    },
    Selector {
        terms: Vec<RecordedTerm>,
        matches: String,
    },
}

/// A term as the API writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RecordedTerm {
    #[serde(default)]
    match_expressions: Vec<RecordedRequirement>,
    #[serde(default)]
    match_fields: Vec<RecordedRequirement>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedRequirement {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl RecordedRequirement {
    fn read(self) -> Result<Requirement, UnknownOperator> {
        Ok(Requirement {
            key: self.key,
            operator: self.operator.parse()?,
            values: self.values,
        })
    }
}

impl RecordedTerm {
    /// Fails with an operator that there is none of: such a term is to be left out.
    fn read(self) -> Result<NodeSelectorTerm, UnknownOperator> {
        let read_all = |requirements: Vec<RecordedRequirement>| {
            requirements
                .into_iter()
                .map(RecordedRequirement::read)
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(NodeSelectorTerm {
            match_expressions: read_all(self.match_expressions)?,
            match_fields: read_all(self.match_fields)?,
        })
    }
}

#[test]
fn affinity_is_that_of_the_scheduler() {
    let mut nodes = Vec::new();
    let mut differences = Vec::new();
    let mut case_count = 0;
    for line in recorded_lines("affinity.jsonl") {
        match serde_json::from_str(&line).expect("a node or a selector") {
            Recorded::Node { node, labels } => nodes.push((node, labels.unwrap_or_default())),
            Recorded::Selector {
                terms,
                matches: expected,
            } => {
                let terms: Vec<_> = terms.into_iter().filter_map(|term| term.read().ok()).collect();
                let answer: String = nodes
                    .iter()
                    .map(|(name, labels)| if matches(&terms, name, labels) { '1' } else { '0' })
                    .collect();
                if answer != expected {
                    differences.push(format!("{answer}: {line}"));
                }
                case_count += nodes.len();
            }
        }
    }
    assert!(case_count > 20_000, "only {case_count} cases");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
