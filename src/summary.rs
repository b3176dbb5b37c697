//! What a worker tells its controller when it ends: one line of JSON in the pod's termination message.
//!
//! Kubernetes cuts that message at 4,096 bytes, so the summary is bounded before it is written: orphans are left out, then
//! examples, from the last one, until it fits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::text::one_line;

/// Where Kubernetes looks for a container's termination message unless told otherwise.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";
/// The longest message that Kubernetes keeps (kubelet, `MaxContainerTerminationMessageLength`).
const MESSAGE_MAX_BYTES: usize = 4096;
/// Volumes without a number that are named as examples.
const EXAMPLES_MAX: usize = 10;
/// Directories without an owner that are named.
const ORPHANS_MAX: usize = 5;
/// The longest text of an example.
const TEXT_MAX_CHARS: usize = 300;
/// The longest error: with 500 bytes of the Pushgateway's own words, and what to do. In four bytes a character it still fits
/// into a termination message.
const ERROR_MAX_CHARS: usize = 850;

/// The summary of a worker's run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerSummary {
    /// The node.
    pub node: String,
    /// The run that the worker belonged to.
    pub run: String,
    /// How many volumes the plan has, by the state in which they ended.
    pub states: BTreeMap<String, u64>,
    /// Whether the Pushgateway took what was measured.
    pub delivered: bool,
    /// What the worker took, from its start to its end.
    pub seconds: f64,
    /// The most memory that the process held: VmHWM.
    pub peak_memory_bytes: u64,
    /// Whether the worker saw its own system call filter refuse `open_by_handle_at`.
    pub confined: bool,
    /// Why the worker did not end well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// Some of the volumes without a number.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub examples: Vec<Example>,
    /// The largest directories that no volume owns.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub orphans: Vec<OrphanExample>,
    /// Why orphans are not told of some base path, or of none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub orphans_not_told: Vec<String>,
}

/// A directory that no volume owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphanExample {
    /// Its path on the node.
    pub path: String,
    /// What it takes on the disk, if all of it could be read.
    pub bytes: Option<u64>,
}

/// A volume without a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The PersistentVolume.
    pub persistentvolume: String,
    /// The state in which it ended.
    pub state: String,
    /// What exactly happened.
    pub detail: String,
}

impl WorkerSummary {
    /// Writes the summary as one line of JSON of at most 4,096 bytes.
    pub fn to_message(&self) -> String {
        let mut summary = self.clone();
        summary.examples.truncate(EXAMPLES_MAX);
        summary.orphans.truncate(ORPHANS_MAX);
        summary.orphans_not_told.truncate(ORPHANS_MAX);
        for why in &mut summary.orphans_not_told {
            *why = shorten(why);
        }
        for orphan in &mut summary.orphans {
            orphan.path = shorten(&orphan.path);
        }
        for example in &mut summary.examples {
            example.detail = shorten(&example.detail);
        }
        summary.error = summary.error.as_deref().map(|error| one_line(error, ERROR_MAX_CHARS));
        loop {
            let text = serde_json::to_string(&summary).expect("a summary has only text keys");
            // Without examples it is bounded by the lengths of its names and of a short text.
            if text.len() <= MESSAGE_MAX_BYTES {
                return text;
            }
            let is_shorter = summary.orphans.pop().is_some()
                || summary.orphans_not_told.pop().is_some()
                || summary.examples.pop().is_some();
            if !is_shorter {
                return text;
            }
        }
    }

    /// Reads a termination message; `None` when it is no summary (the program was killed before it wrote one).
    pub fn from_message(message: &str) -> Option<WorkerSummary> {
        serde_json::from_str(message.trim()).ok()
    }
}

fn shorten(text: &str) -> String {
    one_line(text, TEXT_MAX_CHARS)
}

/// The most memory that this process held so far, in bytes: VmHWM of /proc/self/status, which counts from its own start
/// (`getrusage` begins with the parent's, and a control group's peak includes caches). 0 where /proc does not tell.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next());
    kilobytes.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(examples: usize, detail: &str) -> WorkerSummary {
        let example = |index: usize| Example {
            persistentvolume: format!("pvc-{index}"),
            state: "permission_denied".to_owned(),
            detail: detail.to_owned(),
        };
        WorkerSummary {
            node: "n".repeat(253),
            states: BTreeMap::from([("complete".to_owned(), 3)]),
            delivered: true,
            error: Some(detail.to_owned()),
            examples: (0..examples).map(example).collect(),
            orphans: (0..examples)
                .map(|_| OrphanExample {
                    path: detail.to_owned(),
                    bytes: Some(u64::MAX),
                })
                .collect(),
            ..WorkerSummary::default()
        }
    }

    #[test]
    fn a_message_fits_and_can_be_read_again() {
        // Control characters take six bytes each in JSON.
        for detail in ["", "short", &"x".repeat(5000), &"\u{1}".repeat(5000), &"é".repeat(5000)] {
            for examples in [0, 1, 9, 1000] {
                let message = summary(examples, detail).to_message();
                assert!(message.len() <= MESSAGE_MAX_BYTES, "{} bytes", message.len());
                let read = WorkerSummary::from_message(&message).expect("it is our own message");
                assert_eq!(read.states, summary(0, "").states);
                assert!(read.examples.len() <= examples && read.orphans.len() <= examples.min(ORPHANS_MAX));
            }
        }
    }

    #[test]
    fn other_messages_are_no_summary() {
        for message in ["", "thread 'main' panicked", "{", "{}", "[]"] {
            assert_eq!(WorkerSummary::from_message(message), None, "{message:?}");
        }
    }
}
