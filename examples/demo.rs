//! A whole run of lp-exporter on this machine, without a cluster:
//!
//! ```text
//! cargo run --release --example demo [-- --pushgateway-url http://localhost:9091]
//! ```
//!
//! It makes the volumes of three nodes in a temporary directory, serves the objects that describe them through a
//! stand-in for the Kubernetes API, and runs the real controller against it. Each Job that the controller creates is
//! run as a process of its own, as kubelet would. Both programs are this one again: cargo does not build the
//! `lp-exporter` binary for an example, so the example runs itself with the arguments of `lp-exporter`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::{Value, json};
use tokio::process::Command;

use support::api_server::ApiServer;
use support::kubelet::Kubelet;
use support::objects::{self, Volume};
use support::pushgateway::Pushgateway;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// The controller's Job, as the CronJob would name it.
const CONTROLLER_JOB: &str = "lp-exporter-29000000";
/// Longer than the run takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Set on every group that goes to a Pushgateway of the user's, so that it meets no group of a real lp-exporter there.
const CLUSTER: &str = "lp-exporter-demo";
const MIB: usize = 1024 * 1024;

/// A whole run of lp-exporter on this machine, without a cluster
#[derive(Parser)]
struct Options {
    /// Push to this Pushgateway instead of the demo's own stand-in
    #[arg(long, value_name = "URL")]
    pushgateway_url: Option<String>,

    /// Leave what was pushed on the Pushgateway, to look at it there
    #[arg(long, requires = "pushgateway_url")]
    keep: bool,
}

fn main() -> ExitCode {
    if std::env::args()
        .nth(1)
        .is_some_and(|argument| argument == "controller" || argument == "worker")
    {
        return lp_exporter::run(std::env::args_os());
    }
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = demo(&options) => ended,
            // What was made is removed on the way out.
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(options: &Options) -> anyhow::Result<()> {
    println!("lp-exporter: a whole run on this machine, with stand-ins for the cluster\n");
    let folder = tempfile::Builder::new()
        .prefix("lp-exporter-demo-")
        .tempdir()
        .context("a temporary directory")?;
    let examples = examples();
    let root = |node: &str| folder.path().join(node);
    for example in &examples {
        let directory = root(&example.volume.node).join(example.volume.path.trim_start_matches('/'));
        (example.fill)(&directory).with_context(|| format!("could not fill {}", directory.display()))?;
    }
    println!(
        "1. made {} volumes of {} nodes below {}",
        examples.len(),
        NODES.len(),
        folder.path().display()
    );

    let server = ApiServer::start().await;
    serve(&server, &examples);
    let itself = std::env::current_exe().context("the path of this program")?;
    let kubelet = Kubelet::new(&itself, &folder.path().join("workers"));
    NODES
        .iter()
        .fold(kubelet, |kubelet, node| kubelet.node(node, &root(node)))
        .attach(&server);
    println!("2. serving them as a Kubernetes API on {}", server.url());

    let stand_in = Pushgateway::start().await;
    let url = options.pushgateway_url.clone().unwrap_or_else(|| stand_in.url());
    let url = url.trim_end_matches('/').to_owned();
    // Before the controller, which is patient with one that is still starting.
    groups(&url)
        .await
        .with_context(|| format!("no Pushgateway answers at {url}"))?;
    let cluster = options.pushgateway_url.is_some().then_some(CLUSTER);
    let shown = async {
        let (log, seconds) = run_controller(&itself, folder.path(), &server, &url, cluster).await?;
        let jobs = server
            .requests()
            .iter()
            .filter(|request| request.verb == "create" && request.resource == "jobs")
            .count();
        println!("3. ran the controller, which ran {jobs} workers, each a process of its own: {seconds:.1} s");
        println!("4. reading back what they pushed to {url}\n");

        let pushed = Pushed {
            listing: groups(&url).await?,
            cluster,
        };
        print!("{}", usage(&examples, &pushed));
        print!("{}", skipped(&server, &pushed, &log));
        print!("{}", sources(&pushed));
        println!("{}", hint(options.pushgateway_url.is_some(), &url, options.keep));
        Ok(())
    };
    // Whatever becomes of the run, and if somebody is tired of it: a Pushgateway of others is left as it was.
    let shown: anyhow::Result<()> = tokio::select! {
        shown = shown => shown,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("ended by Ctrl-C")),
    };
    if options.pushgateway_url.is_some() && !options.keep {
        let listing = groups(&url).await?;
        delete_groups(&url, &Pushed { listing, cluster }).await?;
    }
    shown
}

/// A claim of the demo, and what is to be seen at it.
struct Example {
    volume: Volume,
    shows: &'static str,
    fill: fn(&Path) -> io::Result<()>,
}

fn examples() -> Vec<Example> {
    let example = |volume: Volume, shows, fill| Example { volume, shows, fill };
    vec![
        example(
            Volume::local_path("node-1", "shop", "orders-db", "24Mi"),
            "nearly full",
            |directory| write(&directory.join("base/16384/orders"), 23 * MIB),
        ),
        example(
            Volume::local_path("node-1", "shop", "uploads", "8Mi"),
            "over its request: nothing enforces it",
            |directory| (0..3).try_for_each(|number| write(&directory.join(format!("photo-{number}.raw")), 4 * MIB)),
        ),
        example(
            Volume::local_path("node-2", "media", "vm-image", "2Gi"),
            "a sparse file, 1 GiB to ls",
            |directory| {
                write(&directory.join("disk.img"), 3 * MIB)?;
                File::options()
                    .write(true)
                    .open(directory.join("disk.img"))?
                    .set_len(1 << 30)
            },
        ),
        example(
            Volume::local_path_data1("node-2", "ops", "backups", "100M"),
            "five days, hard links: counted once",
            |directory| {
                write(&directory.join("monday/dump"), 6 * MIB)?;
                ["tuesday", "wednesday", "thursday", "friday"]
                    .iter()
                    .try_for_each(|day| {
                        fs::create_dir_all(directory.join(day))?;
                        fs::hard_link(directory.join("monday/dump"), directory.join(day).join("dump"))
                    })
            },
        ),
        example(
            Volume::local_path("node-3", "shop", "cache", "50M"),
            "2,000 small files take a block each",
            |directory| {
                (0..2000).try_for_each(|number| write(&directory.join(format!("{:02x}/{number}", number % 32)), 100))
            },
        ),
        example(
            Volume::local_path("node-3", "shop", "cache-1", "1e6"),
            "a name within a name, no mix-up",
            |directory| write(&directory.join("entry"), 200_000),
        ),
        example(
            Volume::local_path("node-3", "ops", "logs", "1Gi"),
            "somebody removed its directory",
            |_directory| Ok(()),
        ),
    ]
}

/// Writes a file that takes its whole size on the disk, and the directories that it lies in.
fn write(path: &Path, size_bytes: usize) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Not the same byte over and over, which a file system may compress.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(MIB);
    while content.len() < size_bytes.min(MIB) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    let mut file = File::create(path)?;
    let mut left = size_bytes;
    while left > 0 {
        let chunk = left.min(content.len());
        file.write_all(&content[..chunk])?;
        left -= chunk;
    }
    Ok(())
}

/// Puts the cluster's objects onto the API server: nodes, volumes and claims, three volumes that cannot be measured,
/// and what a controller finds of itself.
fn serve(server: &ApiServer, examples: &[Example]) {
    for name in NODES {
        server.put(objects::node(name));
    }
    for example in examples {
        server.put(example.volume.persistent_volume());
        server.put(example.volume.claim());
    }
    let elsewhere = Volume {
        path: "/srv/video/raw".to_owned(),
        ..Volume::local_path("node-1", "media", "raw", "1Gi")
    };
    server.put(elsewhere.persistent_volume());
    server.put(Volume::local_path("node-4", "shop", "old-orders", "1Gi").persistent_volume());
    server.put(json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nfs-archive"},
        "spec": {
            "capacity": {"storage": "1Ti"}, "accessModes": ["ReadWriteMany"],
            "nfs": {"server": "nfs.example.org", "path": "/archive"},
        },
        "status": {"phase": "Available"},
    }));
    for object in objects::controller_of_cronjob(CONTROLLER_JOB, "lp-exporter:demo") {
        server.put(object);
    }
}

/// Runs the controller as a process and returns its log, one JSON object a line, and the seconds that it took.
async fn run_controller(
    program: &Path,
    folder: &Path,
    server: &ApiServer,
    pushgateway_url: &str,
    cluster: Option<&str>,
) -> anyhow::Result<(Vec<Value>, f64)> {
    let kubeconfig: PathBuf = folder.join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig("lp-exporter")).context("could not write a kubeconfig")?;
    let began = Instant::now();
    let controller = Command::new(program)
        .args([
            "controller",
            "--log-format",
            "json",
            "--pushgateway-url",
            pushgateway_url,
        ])
        .args(["--base-path", "/opt/local-path-provisioner", "--base-path", "/data1"])
        .args(cluster.map(|cluster| format!("--grouping-label=cluster={cluster}")))
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .env("LP_EXPORTER_NAMESPACE", "lp-exporter")
        .env("LP_EXPORTER_POD_NAME", format!("{CONTROLLER_JOB}-pod"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(PATIENCE, controller)
        .await
        .context("the controller does not end")??;
    let text = String::from_utf8_lossy(&ended.stderr);
    let log: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    if !ended.status.success() {
        let last = log.last().and_then(|line| line["message"].as_str()).unwrap_or(&text);
        bail!("the controller ended with {}: {last}", ended.status);
    }
    Ok((log, began.elapsed().as_secs_f64()))
}

fn http(url: &str) -> anyhow::Result<reqwest::Client> {
    // An error says that it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
    // For http no certificates are needed, and a machine may have none.
    let builder = if url.starts_with("https") {
        builder
    } else {
        builder.tls_certs_only([])
    };
    Ok(builder.build()?)
}

/// Everything that a Pushgateway holds.
async fn groups(url: &str) -> anyhow::Result<Value> {
    let answer = http(url)?
        .get(format!("{url}/api/v1/metrics"))
        .send()
        .await?
        .error_for_status()?;
    serde_json::from_str(&answer.text().await?).context("the answer is not that of a Pushgateway")
}

/// What the Pushgateway holds: the answer of `GET /api/v1/metrics`.
struct Pushed {
    listing: Value,
    /// The grouping label `cluster` of the demo's groups, if they have one.
    cluster: Option<&'static str>,
}

/// A number, and the group that it was pushed into.
struct Sample {
    /// The group's path, as in `/metrics/job/lp-exporter`.
    group: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Pushed {
    /// The groups of the demo's run.
    fn groups(&self) -> impl Iterator<Item = &Value> {
        let ours = |group: &&Value| {
            let job = group["labels"]["job"].as_str().unwrap_or_default();
            job.starts_with("lp-exporter") && group["labels"]["cluster"].as_str() == self.cluster
        };
        self.listing["data"].as_array().into_iter().flatten().filter(ours)
    }

    fn samples(&self, metric: &str) -> Vec<Sample> {
        let of_group = |group: &Value| -> Vec<Sample> {
            let metrics = group[metric]["metrics"].as_array().into_iter().flatten();
            metrics
                .map(|sample| Sample {
                    group: path(group),
                    labels: serde_json::from_value(sample["labels"].clone()).unwrap_or_default(),
                    value: sample["value"]
                        .as_str()
                        .and_then(|value| value.parse().ok())
                        .unwrap_or(f64::NAN),
                })
                .collect()
        };
        self.groups().flat_map(of_group).collect()
    }

    fn of_volume(&self, metric: &str, persistentvolume: &str) -> Option<Sample> {
        let mut samples = self.samples(metric).into_iter();
        samples.find(|sample| {
            sample
                .labels
                .get("persistentvolume")
                .is_some_and(|name| name == persistentvolume)
        })
    }
}

/// The path that a group was pushed to.
fn path(group: &Value) -> String {
    let labels: BTreeMap<String, String> = serde_json::from_value(group["labels"].clone()).unwrap_or_default();
    let mut path = format!("/metrics/job/{}", labels["job"]);
    for (label, value) in labels.iter().filter(|(label, _)| *label != "job") {
        let _ = write!(path, "/{label}/{value}");
    }
    path
}

/// The claims with what they requested and what they use.
fn usage(examples: &[Example], pushed: &Pushed) -> String {
    let mut rows = vec![["NAMESPACE", "CLAIM", "NODE", "REQUESTED", "USED", "SHARE", "", ""].map(str::to_owned)];
    for example in examples {
        let volume = &example.volume;
        let name = &volume.persistentvolume;
        let requested = pushed
            .of_volume("local_volume_stats_capacity_bytes", name)
            .map(|sample| sample.value);
        let used = pushed
            .of_volume("local_volume_stats_used_bytes", name)
            .map(|sample| sample.value);
        let share = used.zip(requested).map(|(used, requested)| 100.0 * used / requested);
        let state = pushed.of_volume("local_volume_scan_state", name);
        let state = state
            .and_then(|sample| sample.labels.get("state").cloned())
            .unwrap_or_default();
        let remark = match used {
            Some(_) => example.shows.to_owned(),
            None => format!("{}, state: {state}", example.shows),
        };
        rows.push([
            volume.namespace.clone(),
            volume.claim.clone(),
            volume.node.clone(),
            requested.map_or_else(|| "-".to_owned(), human),
            used.map_or_else(|| "-".to_owned(), human),
            share.map_or_else(|| "-".to_owned(), |share| format!("{share:.0} %")),
            share.map_or_else(String::new, bar),
            remark,
        ]);
    }
    table("How full the claims are", &rows, &[3, 4, 5])
}

/// The volumes that no node has in its plan, by what the controller said of them.
fn skipped(server: &ApiServer, pushed: &Pushed, log: &[Value]) -> String {
    let mut rows = vec![["VOLUME", "CLAIM", "REASON", ""].map(str::to_owned)];
    for volume in server.objects("persistentvolumes") {
        let name = volume["metadata"]["name"].as_str().unwrap_or_default();
        if pushed.of_volume("local_volume_stats_capacity_bytes", name).is_some() {
            continue;
        }
        let claim = &volume["spec"]["claimRef"];
        let claim = claim["namespace"].as_str().zip(claim["name"].as_str());
        let claim = claim.map_or_else(|| "-".to_owned(), |(namespace, claim)| format!("{namespace}/{claim}"));
        // A line of the log names all volumes of one reason: "volumes left out: <name> (<detail>), <name> (<detail>)".
        let told = log.iter().find_map(|line| {
            let (_, detail) = line["message"].as_str()?.split_once(&format!("{name} ("))?;
            let detail = detail.split_once(')').map_or(detail, |(detail, _)| detail);
            Some((line["reason"].as_str()?.to_owned(), detail.to_owned()))
        });
        let (reason, detail) = told.unwrap_or_default();
        rows.push([name.to_owned(), claim, reason, detail]);
    }
    table(
        "Left out, and why (the log names them, lp_exporter_volumes_skipped counts them)",
        &rows,
        &[],
    )
}

/// Which group each number came from.
fn sources(pushed: &Pushed) -> String {
    let mut rows = vec![["COLUMN", "METRIC", "PUSHED INTO THE GROUP", ""].map(str::to_owned)];
    for (column, metric) in [
        ("REQUESTED", "local_volume_stats_capacity_bytes"),
        ("USED", "local_volume_stats_used_bytes"),
    ] {
        let mut by_group: BTreeMap<String, usize> = BTreeMap::new();
        for sample in pushed.samples(metric) {
            *by_group.entry(sample.group).or_default() += 1;
        }
        for (group, count) in by_group {
            rows.push([column.to_owned(), metric.to_owned(), group, format!("{count} claims")]);
        }
    }
    table("Where the numbers came from", &rows, &[])
}

/// Rows under a heading, the columns as wide as they need to be, those named by index aligned to the right.
fn table<const COLUMNS: usize>(heading: &str, rows: &[[String; COLUMNS]], right: &[usize]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = format!("{heading}\n");
    for row in rows {
        let mut line = String::from(" ");
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = if right.contains(&index) {
                write!(line, " {cell:>width$} ")
            } else {
                write!(line, " {cell:<width$} ")
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text.push('\n');
    text
}

/// Bytes as people read them: three digits and a binary unit.
fn human(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// A bar of ten cells for a share in percent.
fn bar(share: f64) -> String {
    let full = ((share / 10.0).floor().clamp(0.0, 10.0)) as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(10 - full))
}

fn hint(is_real: bool, url: &str, keeps: bool) -> String {
    let more = match (is_real, keeps) {
        (true, true) => format!("The groups stay at {url}: look at them there, or let Prometheus scrape them."),
        (true, false) => "The groups are deleted again; --keep leaves them there to be looked at.".to_owned(),
        (false, _) => "With a Pushgateway of your own: cargo run --release --example demo -- --pushgateway-url \
                       http://localhost:9091 --keep"
            .to_owned(),
    };
    format!(
        "{more}\nOn a real cluster: kubectl apply -k manifests/overlays/default (README.md, \"Install\"); the share is then\n  \
         100 * local_volume_stats_used_bytes / ignoring(job) local_volume_stats_capacity_bytes"
    )
}

/// Takes back what this run pushed to a Pushgateway that is not the demo's own.
async fn delete_groups(url: &str, pushed: &Pushed) -> anyhow::Result<()> {
    for group in pushed.groups() {
        http(url)?
            .delete(format!("{url}{}", path(group)))
            .send()
            .await?
            .error_for_status()?;
    }
    Ok(())
}
