//! The server's list of groups (`GET /api/v1/metrics`), read as a stream.
//!
//! The reply carries every metric of every group, 120 MB for half a million series. Of all that only the labels and
//! the time of the last push are kept. The server writes them into one object together with the metrics of whoever
//! pushed, by name, so that a metric called `labels` takes their place: such a group is left out, and costs no other.

use std::collections::BTreeMap;
use std::fmt::{self, Formatter};
use std::io::Read;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::owner::Owner;

/// A group that the server holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// The labels of its key, the job among them.
    pub labels: BTreeMap<String, String>,
    /// When it was last pushed, by the server's clock, in seconds since 1970; 0 if no push was ever accepted: the
    /// server then made the group only to say that one failed.
    pub push_time_seconds: f64,
    /// When the run began that pushed it, by the controller's clock, in seconds since 1970, if it says so.
    pub run_start_seconds: Option<f64>,
    /// Whose it is, if it says so: other programs do not.
    pub owner: Option<Owner>,
    /// The PersistentVolumes that a worker said it had no time for: on a disk that hangs, above all.
    pub timed_out_volumes: Vec<String>,
}

/// The groups in a reply.
pub(super) fn read_groups(reply: impl Read) -> Result<Vec<Group>, serde_json::Error> {
    let Reply { status, data } = serde_json::from_reader(reply)?;
    if status != "success" {
        return Err(serde_json::Error::custom("its status is not success"));
    }
    Ok(data
        .unwrap_or_default()
        .into_iter()
        .filter_map(ListedGroup::into_group)
        .collect())
}

#[derive(serde::Deserialize)]
struct Reply {
    status: String,
    data: Option<Vec<ListedGroup>>,
}

#[derive(serde::Deserialize)]
struct ListedGroup {
    labels: Labels,
    #[serde(default)]
    push_time_seconds: Value,
    #[serde(default, rename = "lp_exporter_run_start_timestamp_seconds")]
    run_start: Value,
    #[serde(default, rename = "lp_exporter_owner_info")]
    owner: OwnerInfo,
    #[serde(default, rename = "local_volume_scan_state")]
    scan_states: TimedOut,
}

impl ListedGroup {
    fn into_group(self) -> Option<Group> {
        // The server itself writes the time, 0 for a group of which no push was ever accepted.
        Some(Group {
            labels: self.labels.0?,
            push_time_seconds: self.push_time_seconds.first().unwrap_or(0.0),
            run_start_seconds: self.run_start.first(),
            owner: self.owner.metrics.into_iter().next().map(|sample| sample.labels),
            timed_out_volumes: self.scan_states.metrics.0,
        })
    }
}

/// A family of one sample.
#[derive(Default, serde::Deserialize)]
struct Value {
    metrics: Vec<Sample>,
}

impl Value {
    fn first(&self) -> Option<f64> {
        self.metrics.first()?.value.parse().ok()
    }
}

#[derive(serde::Deserialize)]
struct Sample {
    /// A histogram of somebody else's has none.
    #[serde(default)]
    value: String,
}

#[derive(Default, serde::Deserialize)]
struct OwnerInfo {
    metrics: Vec<OwnerSample>,
}

#[derive(serde::Deserialize)]
struct OwnerSample {
    labels: Owner,
}

/// The family of the states, of which most are complete and not kept.
#[derive(Default, serde::Deserialize)]
struct TimedOut {
    metrics: TimedOutVolumes,
}

#[derive(Default)]
struct TimedOutVolumes(Vec<String>);

#[derive(serde::Deserialize)]
struct StateSample {
    #[serde(default)]
    labels: StateLabels,
}

#[derive(Default, serde::Deserialize)]
struct StateLabels {
    #[serde(default)]
    state: String,
    #[serde(default)]
    persistentvolume: String,
}

impl<'de> Deserialize<'de> for TimedOutVolumes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(TimedOutVisitor)
    }
}

struct TimedOutVisitor;

impl<'de> Visitor<'de> for TimedOutVisitor {
    type Value = TimedOutVolumes;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of samples")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut samples: A) -> Result<TimedOutVolumes, A::Error> {
        let mut volumes = Vec::new();
        while let Some(StateSample { labels }) = samples.next_element()? {
            if labels.state == lp_measure::State::Timeout.as_str() {
                volumes.push(labels.persistentvolume);
            }
        }
        Ok(TimedOutVolumes(volumes))
    }
}

/// Label names and values, or none if something else stands in their place.
struct Labels(Option<BTreeMap<String, String>>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LabelsVisitor)
    }
}

struct LabelsVisitor;

impl<'de> Visitor<'de> for LabelsVisitor {
    type Value = Labels;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Labels, A::Error> {
        let mut labels = Some(BTreeMap::new());
        while let Some((name, Text(value))) = entries.next_entry::<String, Text>()? {
            match (labels.as_mut(), value) {
                (Some(labels), Some(value)) => drop(labels.insert(name, value)),
                _ => labels = None,
            }
        }
        Ok(Labels(labels))
    }
}

/// A string, or none for the list of samples that a metric in the place of the labels holds.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or a list")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(Some(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Text, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reply: &str, expected: Result<&[(&str, f64)], &str>) {
        let groups = read_groups(reply.as_bytes()).map_err(|error| error.to_string());
        let groups = groups.map(|groups| {
            let shown = |group: Group| (format!("{:?}", group.labels), group.push_time_seconds);
            groups.into_iter().map(shown).collect::<Vec<_>>()
        });
        match (groups, expected) {
            (Ok(groups), Ok(expected)) => {
                let groups: Vec<_> = groups.iter().map(|(labels, time)| (labels.as_str(), *time)).collect();
                assert_eq!(groups, expected, "{reply}");
            }
            (Err(error), Err(part)) => assert!(error.contains(part), "{reply}: {error}"),
            (groups, _) => panic!("{reply}: {groups:?}, not {expected:?}"),
        }
    }

    #[test]
    fn reads_replies() {
        let whole = r#"{"status":"success","data":[
            {"labels":{"instance":"","job":"a","node":"ü\"/"},"last_push_successful":true,
             "used":{"time_stamp":"t","type":"GAUGE","metrics":[{"labels":{"x":"y"},"value":"1"}]},
             "push_time_seconds":{"time_stamp":"t","type":"GAUGE","metrics":[{"labels":{},"value":"1.795e+09"}]}},
            {"labels":{"job":"stub"},
             "push_time_seconds":{"time_stamp":"t","type":"GAUGE","metrics":[{"labels":{},"value":"0"}]}},
            {"labels":{"job":"timeless"}}]}"#;
        check(
            whole,
            Ok(&[
                (r#"{"instance": "", "job": "a", "node": "ü\"/"}"#, 1.795e9),
                (r#"{"job": "stub"}"#, 0.0),
                (r#"{"job": "timeless"}"#, 0.0),
            ]),
        );
        check(r#"{"status":"success","data":[]}"#, Ok(&[]));
        check(r#"{"status":"success"}"#, Ok(&[]));
        check(r#"{"status":"success","data":null}"#, Ok(&[]));
    }

    #[test]
    fn keeps_the_volumes_that_timed_out() {
        let sample = |state: &str, volume: &str| {
            format!(r#"{{"labels":{{"node":"n","state":"{state}","persistentvolume":"{volume}"}},"value":"1"}}"#)
        };
        let reply = format!(
            r#"{{"status":"success","data":[{{"labels":{{"job":"a"}},"local_volume_scan_state":
               {{"type":"GAUGE","metrics":[{},{},{},{{"value":"1"}}]}}}}]}}"#,
            sample("complete", "well"),
            sample("timeout", "hangs"),
            sample("io_error", "broken")
        );
        let groups = read_groups(reply.as_bytes()).expect("it is a list");
        assert_eq!(groups[0].timed_out_volumes, ["hangs"]);
    }

    #[test]
    fn reads_whose_a_group_is_and_of_which_run() {
        let family = |labels: &str, value: &str| {
            format!(r#"{{"type":"GAUGE","metrics":[{{"labels":{{{labels}}},"value":"{value}"}}]}}"#)
        };
        for (metrics, owner, run_start) in [
            (String::new(), None, None),
            (
                format!(
                    r#","lp_exporter_owner_info":{},"lp_exporter_run_start_timestamp_seconds":{}"#,
                    family(r#""cluster_uid":"u","cronjob":"ns/n","job":"a","instance":"""#, "1"),
                    family(r#""job":"a""#, "1.795123456789e+09")
                ),
                Some(("u", "ns/n")),
                Some(1_795_123_456.789),
            ),
            (
                format!(r#","lp_exporter_owner_info":{}"#, family(r#""job":"a""#, "1")),
                Some(("", "")),
                None,
            ),
            (
                r#","lp_exporter_owner_info":{"metrics":[]},"lp_exporter_run_start_timestamp_seconds":{"metrics":[]}"#
                    .to_owned(),
                None,
                None,
            ),
        ] {
            let reply = format!(r#"{{"status":"success","data":[{{"labels":{{"job":"a"}}{metrics}}}]}}"#);
            let groups = read_groups(reply.as_bytes()).expect("it is a list");
            let read = groups[0].owner.as_ref();
            assert_eq!(
                read.map(|owner| (&*owner.cluster_uid, &*owner.cronjob)),
                owner,
                "{reply}"
            );
            assert_eq!(groups[0].run_start_seconds, run_start, "{reply}");
        }
    }

    #[test]
    fn leaves_out_a_group_with_a_metric_called_labels() {
        let metric = r#"{"time_stamp":"t","type":"GAUGE","metrics":[{"labels":{"a":"b"},"value":"1"}]}"#;
        check(
            &format!(r#"{{"status":"success","data":[{{"labels":{metric}}},{{"labels":{{"job":"a"}}}}]}}"#),
            Ok(&[(r#"{"job": "a"}"#, 0.0)]),
        );
    }

    #[test]
    fn refuses_what_is_no_list() {
        check("", Err("EOF"));
        check("<html>", Err("expected value"));
        check(r#"{"status":"success","data":[{"labels":{"job":"#, Err("EOF"));
        check(r#"{"status":"error","error":"x"}"#, Err("status is not success"));
        check(
            r#"{"status":"success","data":{"resultType":"vector"}}"#,
            Err("invalid type"),
        );
        check("[]", Err("invalid"));
    }
}
