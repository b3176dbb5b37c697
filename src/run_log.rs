//! What a run tells people: its plan, what was left without a number, and one line that sums it up.

use std::collections::BTreeMap;

use lp_measure::State;
use tracing::{debug, info, warn};

use crate::metrics::Report;
use crate::text::one_line;
use crate::tracker::Outcome;
use crate::volumes::plan::Plan;
use crate::volumes::selection::Selection;
use crate::volumes::volume::{SkipReason, Skipped};

/// The longest text of a worker that is logged.
const TEXT_MAX_CHARS: usize = 400;
/// Names that a line of the log shows.
const NAMES_SHOWN: usize = 20;

/// Logs the plan: how much there is to do, and what is left out, by reason.
pub(crate) fn log_plan(plan: &Plan, selection: &Selection) {
    info!(
        volumes_listed = plan.volumes_listed(),
        volumes_planned = plan.volumes_planned(),
        nodes = plan.nodes.len(),
        nodes_not_scanned = plan.nodes_not_scanned.len(),
        "planned"
    );
    log_oddities(plan);
    for node in &selection.only_nodes {
        if let Some(reason) = plan.nodes_not_scanned.get(node) {
            let reason = reason.as_str();
            warn!(node, reason, "this run was asked for a node to which no worker is sent");
        }
    }
    let mut by_reason: BTreeMap<SkipReason, Vec<&Skipped>> = BTreeMap::new();
    for skipped in &plan.skipped {
        by_reason.entry(skipped.reason).or_default().push(skipped);
    }
    for (reason, skipped) in by_reason {
        let shown: Vec<String> = skipped
            .iter()
            .take(NAMES_SHOWN)
            .map(|one| format!("{} ({})", one.persistent_volume, one.detail))
            .collect();
        for rest in skipped.chunks(NAMES_SHOWN).skip(1) {
            let names: Vec<&str> = rest.iter().map(|one| one.persistent_volume.as_str()).collect();
            debug!(
                reason = reason.as_str(),
                "volumes left out, more of them: {}",
                names.join(", ")
            );
        }
        let more = skipped.len().saturating_sub(NAMES_SHOWN);
        let more = if more > 0 {
            format!(", and {more} more")
        } else {
            String::new()
        };
        let (count, is_wanted, reason) = (skipped.len(), reason.is_wanted(), reason.as_str());
        if is_wanted {
            info!(count, reason, "volumes left out: {}{more}", shown.join(", "));
        } else {
            warn!(count, reason, "volumes left out: {}{more}", shown.join(", "));
        }
    }
}

/// Logs what somebody should correct although it leaves nothing out.
fn log_oddities(plan: &Plan) {
    let more = |count: usize| match count.saturating_sub(NAMES_SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let lost = &plan.claims_lost;
    if !lost.is_empty() {
        let shown: Vec<&str> = lost.iter().take(NAMES_SHOWN).map(String::as_str).collect();
        let (count, shown, more) = (lost.len(), shown.join(", "), more(lost.len()));
        warn!(count, "claims whose volume is gone: {shown}{more}");
    }
    for why in plan.invalid_alert_percents.iter().take(NAMES_SHOWN) {
        warn!("a claim's own threshold is not published: {why}");
    }
    let left = plan.invalid_alert_percents.len().saturating_sub(NAMES_SHOWN);
    if left > 0 {
        warn!("the thresholds of {left} more claims are not published");
    }
}

/// Logs each node that was not measured, and each volume without a number that its worker named.
pub(crate) fn log_outcomes(report: &Report<'_>) {
    for (node, outcome) in report.asked() {
        match outcome {
            Outcome::NotMeasured { reason, detail, .. } => {
                warn!(node, reason = reason.as_str(), "node not measured: {detail}");
            }
            Outcome::Measured(Some(summary)) => {
                for example in &summary.examples {
                    let (volume, state) = (&example.persistentvolume, &example.state);
                    warn!(node, persistentvolume = volume, state, "no number: {}", example.detail);
                }
                // The worker's own log goes with it.
                for why in &summary.orphans_not_told {
                    warn!(node, "{}", one_line(why, TEXT_MAX_CHARS));
                }
                for orphan in &summary.orphans {
                    let path = one_line(&orphan.path, TEXT_MAX_CHARS);
                    info!(node, path, bytes = orphan.bytes, "holds no volume");
                }
            }
            Outcome::Measured(None) => warn!(node, "the worker ended well, but what it said of its volumes was lost"),
        }
    }
}

/// Logs the line that sums the run up.
pub(crate) fn summarize(report: &Report<'_>) {
    let coverage = report.coverage();
    let volumes_measured = coverage.by_state.get(State::Complete.as_str()).copied().unwrap_or(0);
    let nodes_measured = report
        .asked()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Measured(_)))
        .count();
    let (nodes, volumes_planned) = (report.asked().count(), volumes_asked(report));
    let nodes_not_asked = report.outcomes.len() - nodes;
    let seconds = report.duration.as_secs_f64();
    let text = format!(
        "run ended: {volumes_measured} of {volumes_planned} volumes on {nodes_measured} of {nodes} nodes measured in {seconds:.1} s"
    );
    // Who looks at warnings only is to see that nodes are missing.
    macro_rules! summary {
        ($level:ident) => {
            $level!(
                run = report.run.id,
                nodes_expected = nodes,
                nodes_measured,
                nodes_not_asked,
                volumes_listed = report.plan.volumes_listed(),
                volumes_planned,
                volumes_measured,
                volumes_skipped = report.plan.skipped.len(),
                seconds,
                peak_memory_bytes = report.peak_memory_bytes,
                "{text}"
            )
        };
    }
    if nodes_measured == nodes {
        summary!(info);
    } else {
        summary!(warn);
    }
}

/// The volumes of the nodes that the run was asked for.
fn volumes_asked(report: &Report<'_>) -> usize {
    let nodes = report.plan.nodes.iter();
    let asked = nodes.filter(|node| !report.outcomes.get(&node.name).is_some_and(Outcome::is_not_asked));
    asked.map(|node| node.volumes.len()).sum()
}

/// Whether every node-local volume that is wanted has a number.
pub(crate) fn is_whole(report: &Report<'_>) -> bool {
    let coverage = report.coverage();
    let complete = coverage.by_state.get(State::Complete.as_str()).copied().unwrap_or(0);
    let none_skipped = report.plan.skipped.iter().all(|one| one.reason.is_wanted());
    report.is_complete() && none_skipped && complete == volumes_asked(report) as u64
}
