//! Looking into YAML that a test has read.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every program that includes this file uses another part of it"
)]

use std::collections::BTreeMap;

use serde_yaml::Value;

/// The pairs of a mapping; none of anything else.
pub fn pairs(mapping: &Value) -> BTreeMap<&str, &Value> {
    let pairs = mapping.as_mapping().into_iter().flatten();
    pairs.map(|(key, value)| (text_of(key), value)).collect()
}

/// The items of a list; none of anything else.
pub fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

/// The text that it has to be.
pub fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value:?} is no text"))
}
