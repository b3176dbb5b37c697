//! What pushing takes: `cargo bench --bench push`, with the Pushgateways of `LP_EXPORTER_TEST_SERVERS`.
//!
//! - many workers: how long 1,000 of them take, 500 series each, from the first to the last, without the consistency check.
//! - the check: as many workers as are given by `--workers` (300) push to a server that checks each push, beside the same
//!   pushes by curl.
//! - the list: the groups of a server with 500,000 series, and the memory for it.
//! - a large node: the memory for the usage of 10,000 volumes.
//!
//! No figure fails it: what it shows is the server's speed as much as ours.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lp_exporter::exposition::{Body, Exposition, Family};
use lp_exporter::metrics::{self, Found, WorkerTimes};
use lp_exporter::owner::Owner;
use lp_exporter::pushgateway::{GroupingKey, GroupingLabels, Pushgateway};
use lp_exporter::summary::peak_memory_bytes;
use lp_exporter::volumes::collect::Collect;
use lp_exporter::volumes::node_plan::{self, Base, NodePlan, PlannedVolume, Run};
use lp_measure::{Measurement, Method, State};
use support::real_pushgateway::{Server, plain_config, pushgateways};
use tokio::sync::Semaphore;

const WORKERS: usize = 1_000;
const WORKERS_CHECKED: usize = 300;
const SERIES: usize = 500;
/// `--parallel-jobs`, unless set.
const AT_ONCE: usize = 50;
const BUDGET: Duration = Duration::from_secs(600);
/// The first argument of a child, which is this program again, with what it is to do and where the server is.
const CHILD: &str = "child";
const VOLUMES: usize = 10_000;

const USED: Family = Family {
    name: "local_volume_stats_used_bytes",
    help: "Used.",
    labels: metrics::VOLUME_LABELS,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let done = match &arguments[..] {
        [child, what, url] if child == CHILD => runtime.block_on(child_main(what, url)),
        _ => runtime.block_on(figures(&arguments)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn figures(arguments: &[String]) -> anyhow::Result<()> {
    let mut workers = WORKERS_CHECKED;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--workers" => workers = arguments.next().context("--workers COUNT")?.parse()?,
            "--bench" => {} // cargo says so
            other => bail!("unknown argument {other}"),
        }
    }
    let Some(binary) = pushgateways().pop() else {
        println!("no Pushgateway: nothing is shown");
        return Ok(());
    };
    let unchecked = Server::start(&binary, &["--push.disable-consistency-check"]).await;
    let took = push_all(&unchecked.url(), WORKERS).await?;
    println!(
        "{WORKERS} workers, {SERIES} series each, no consistency check: {:.1} s from the first to the last (at most 20)",
        took.as_secs_f64()
    );
    // Such a server answers before it has applied a push.
    let pushgateway = client(&unchecked.url())?;
    let deadline = Instant::now() + BUDGET;
    while pushgateway.groups(BUDGET).await?.len() < WORKERS {
        ensure!(Instant::now() < deadline, "not every push was applied");
    }
    for (what, about) in [
        ("list", "the list of 500,000 series (at most 30)"),
        ("usage", "the usage of 10,000 volumes (at most 16)"),
    ] {
        let grown = peak_of_child(what, &unchecked.url())?;
        println!("memory for {about}: {:.1} MB", grown as f64 / 1e6);
    }
    drop(unchecked);
    with_the_check(&binary, workers).await
}

async fn with_the_check(binary: &Path, workers: usize) -> anyhow::Result<()> {
    let server = Server::start(binary, &[]).await;
    let ours = push_all(&server.url(), workers).await?;
    drop(server);
    let server = Server::start(binary, &[]).await;
    let Some(curl) = curl_all(&server.url(), workers)? else {
        println!(
            "{workers} workers with the check: {:.1} s; curl is not installed",
            ours.as_secs_f64()
        );
        return Ok(());
    };
    println!(
        "{workers} workers with the check: {:.1} s, by curl {:.1} s: {:.2} of it (at most 1.1)",
        ours.as_secs_f64(),
        curl.as_secs_f64(),
        ours.as_secs_f64() / curl.as_secs_f64()
    );
    Ok(())
}

fn client(url: &str) -> anyhow::Result<Pushgateway> {
    Ok(Pushgateway::new(plain_config(url, BUDGET))?)
}

fn node(number: usize) -> String {
    format!("node-{number:04}")
}

fn body(node: &str) -> Body {
    let mut exposition = Exposition::new();
    let claims: Vec<String> = (0..SERIES).map(|number| format!("data-database-{number}")).collect();
    let volumes: Vec<String> = (0..SERIES)
        .map(|number| format!("pvc-6f1a3c52-0000-4000-8000-{number:012x}"))
        .collect();
    let samples = claims
        .iter()
        .zip(&volumes)
        .map(|(claim, volume)| (["team", claim.as_str(), volume.as_str(), "local-path", node], 1e9));
    exposition.family(&USED, samples);
    exposition.finish()
}

/// Each worker is a process of its own in a cluster, so each has a client of its own here.
async fn push_all(url: &str, workers: usize) -> anyhow::Result<Duration> {
    let labels = GroupingLabels::default();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let bodies: Vec<(GroupingKey, Body)> = (0..workers)
        .map(|number| (GroupingKey::for_node(&node(number), &labels), body(&node(number))))
        .collect();
    let began = Instant::now();
    let mut pushes = tokio::task::JoinSet::new();
    for (key, body) in bodies {
        let (permits, pushgateway) = (permits.clone(), client(url)?);
        pushes.spawn(async move {
            let _permit = permits.acquire_owned().await?;
            pushgateway.put(&key, &body, BUDGET).await?;
            anyhow::Ok(())
        });
    }
    while let Some(pushed) = pushes.join_next().await {
        pushed??;
    }
    Ok(began.elapsed())
}

/// The same pushes by curl, as many at once.
fn curl_all(url: &str, workers: usize) -> anyhow::Result<Option<Duration>> {
    let folder = tempfile::tempdir()?;
    let mut config = String::new();
    for number in 0..workers {
        let node = node(number);
        let file = folder.path().join(&node);
        fs::write(&file, body(&node).text())?;
        config.push_str(&format!(
            "url = \"{url}/metrics/job/lp-exporter-job/node/{node}\"\nupload-file = \"{}\"\noutput = \"/dev/null\"\n",
            file.display()
        ));
    }
    let config_file = folder.path().join("config");
    fs::write(&config_file, config)?;
    let began = Instant::now();
    let curl = Command::new("curl")
        .args([
            "--silent",
            "--fail",
            "--parallel",
            "--parallel-max",
            &AT_ONCE.to_string(),
            "--config",
        ])
        .arg(&config_file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let Ok(status) = curl else { return Ok(None) };
    ensure!(status.success(), "curl ended with {status}");
    Ok(Some(began.elapsed()))
}

fn peak_of_child(what: &str, url: &str) -> anyhow::Result<u64> {
    let output = Command::new(std::env::current_exe()?)
        .args([CHILD, what, url])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.trim().parse().with_context(|| format!("{what} says {text:?}"))
}

/// Prints by how much the peak grew.
async fn child_main(what: &str, url: &str) -> anyhow::Result<()> {
    let pushgateway = client(url)?;
    let grown = match what {
        "list" => {
            let before = peak_memory_bytes();
            let groups = pushgateway.groups(BUDGET).await?;
            ensure!(groups.len() == WORKERS, "{} groups", groups.len());
            peak_memory_bytes() - before
        }
        _ => {
            let (plan, found) = large_node();
            let before = peak_memory_bytes();
            let times = WorkerTimes {
                measured_unix_seconds: 1.0,
                duration_seconds: 1.0,
            };
            let body = metrics::usage_group(&plan, &found, times);
            let key = GroupingKey::for_node("large", &GroupingLabels::default());
            pushgateway.put(&key, &body, BUDGET).await?;
            peak_memory_bytes() - before
        }
    };
    println!("{grown}");
    Ok(())
}

fn large_node() -> (NodePlan, Found) {
    let volume = |number: usize| PlannedVolume {
        persistentvolume: format!("pvc-6f1a3c52-0000-4000-8000-{number:012x}"),
        namespace: Some("team".to_owned()),
        persistentvolumeclaim: Some(format!("data-database-{number}")),
        storageclass: "local-path".to_owned(),
        path: format!("/data/{number}"),
        base: 0,
        left_alone: false,
        capacity_bytes: 1 << 30,
    };
    let plan = NodePlan {
        version: node_plan::VERSION,
        run: Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.0,
            owner: Owner::default(),
        },
        node: "large".to_owned(),
        budget_seconds: 60.0,
        bases: vec![Base {
            path: "/data".to_owned(),
            mounted_at: Some("/bases/0".to_owned()),
        }],
        volumes: (0..VOLUMES).map(volume).collect(),
        other_base_paths: Vec::new(),
        known_paths: Vec::new(),
        known_devices: Vec::new(),
        collect: Collect::everything(),
        orphan_age_seconds: 600.0,
    };
    let measurement = Measurement {
        method: Some(Method::Walk),
        used_bytes: Some(1 << 29),
        apparent_bytes: Some(1 << 29),
        inodes_used: Some(1000),
        ..Measurement::without_number(State::Complete, None)
    };
    let found = Found {
        volumes: vec![measurement; VOLUMES],
        file_systems: Vec::new(),
        orphans: vec![None],
        orphans_not_told: Vec::new(),
    };
    (plan, found)
}
