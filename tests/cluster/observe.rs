//! What Prometheus and the Pushgateway say, asked through the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::install::{MONITORING, NAMESPACE};
use crate::kubectl::{eventually, kubectl};

/// The names and values of a series' labels, or of a group's.
pub(crate) type Labels = BTreeMap<String, String>;

/// A group on the Pushgateway.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) labels: Labels,
    /// When it was last pushed to.
    pub(crate) push_time_seconds: f64,
    /// The samples of each metric.
    pub(crate) metrics: BTreeMap<String, Vec<(Labels, f64)>>,
}

impl Group {
    /// The one sample of a metric that carries at least `labels`.
    pub(crate) fn sample(&self, metric: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has_all = |sample: &Labels| {
            labels
                .iter()
                .all(|(name, value)| sample.get(*name).is_some_and(|found| found == value))
        };
        self.metrics
            .get(metric)?
            .iter()
            .find(|(sample, _)| has_all(sample))
            .map(|(_, value)| *value)
    }
}

/// What Prometheus answers to a query now: the labels and the value of each series.
pub(crate) fn query(expression: &str) -> Result<Vec<(Labels, f64)>> {
    let encoded: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
    let path = format!("/api/v1/namespaces/{MONITORING}/services/prometheus:9090/proxy/api/v1/query?query={encoded}");
    let answer: Value = serde_json::from_str(&kubectl(&["get", "--raw", &path])?)?;
    ensure!(answer["status"] == "success", "{expression}: {answer}");
    let series = answer["data"]["result"]
        .as_array()
        .with_context(|| format!("{expression}: {answer}"))?;
    series
        .iter()
        .map(|one| Ok((labels(&one["metric"]), number(&one["value"][1])?)))
        .collect()
}

/// Every group on the Pushgateway.
pub(crate) fn groups() -> Result<Vec<Group>> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/services/pushgateway:9091/proxy/api/v1/metrics");
    let answer: Value = serde_json::from_str(&kubectl(&["get", "--raw", &path])?)?;
    let data = answer["data"]
        .as_array()
        .with_context(|| format!("the Pushgateway says {answer}"))?;
    data.iter().map(group).collect()
}

/// The group with this job and, for a worker's, this node.
pub(crate) fn find_group(job: &str, node: Option<&str>) -> Result<Group> {
    let is_it = |group: &Group| {
        group.labels.get("job").map(String::as_str) == Some(job) && group.labels.get("node").map(String::as_str) == node
    };
    groups()?
        .into_iter()
        .find(is_it)
        .with_context(|| format!("no group {job} {}", node.unwrap_or_default()))
}

/// Waits until Prometheus has scraped what the Pushgateway holds now.
pub(crate) fn settle() -> Result<()> {
    let pushed = groups()?
        .iter()
        .map(|group| group.push_time_seconds)
        .fold(0.0, f64::max);
    eventually("Prometheus to scrape the last push", Duration::from_secs(20), || {
        let seen = query("max(push_time_seconds)")?;
        let seen = seen.first().map_or(0.0, |(_, value)| *value);
        ensure!(
            seen >= pushed,
            "Prometheus has seen pushes up to {seen}, the Pushgateway up to {pushed}"
        );
        Ok(())
    })
}

fn group(value: &Value) -> Result<Group> {
    let mut metrics = BTreeMap::new();
    for (name, family) in value.as_object().context("a group is an object")? {
        let Some(samples) = family["metrics"].as_array() else {
            continue;
        };
        let samples = samples
            .iter()
            .map(|sample| Ok((labels(&sample["labels"]), number(&sample["value"])?)));
        metrics.insert(name.clone(), samples.collect::<Result<Vec<_>>>()?);
    }
    let pushed = metrics.get("push_time_seconds").and_then(|samples| samples.first());
    let push_time_seconds = pushed.context("a group without push_time_seconds")?.1;
    Ok(Group {
        labels: labels(&value["labels"]),
        push_time_seconds,
        metrics,
    })
}

fn labels(value: &Value) -> Labels {
    let object = value.as_object().into_iter().flatten();
    object
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// Prometheus and the Pushgateway write numbers as text.
fn number(value: &Value) -> Result<f64> {
    match value.as_str() {
        Some(text) => text.parse().with_context(|| format!("no number: {text}")),
        None => bail!("no number: {value}"),
    }
}
