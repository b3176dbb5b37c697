//! What planning takes, for 1,000, 10,000 and 100,000 volumes, 100 on each node: `cargo bench --bench plan`.
//!
//! - from memory: the pure plan.
//! - by zones: the pure plan of volumes that a third of the nodes share each.
//! - from a dump: `lp-exporter plan --from-file`, the whole process, and the most memory that it had.
//! - controller: a whole run of it, which lists them in pages from a stand-in for the API server, plans, and pushes. Its
//!   nodes are not Ready, so that it makes no Jobs.
//!
//! It fails only where the time grows far beyond the number of volumes: how long something takes is the machine's affair.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::Router;
use lp_exporter::cli::DEFAULT_BASE_PATHS;
use lp_exporter::summary::peak_memory_bytes;
use lp_exporter::volumes::affinity::{NodeSelectorTerm, Operator, Requirement};
use lp_exporter::volumes::claims::{Claim, Claims};
use lp_exporter::volumes::path::BasePaths;
use lp_exporter::volumes::plan::{Surroundings, plan};
use lp_exporter::volumes::selection::Selection;
use lp_exporter::volumes::volume::{ClaimReference, Node, SourceKind, Volume};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use support::api_server::ApiServer;
use support::objects;

const COUNTS: [usize; 3] = [1_000, 10_000, 100_000];
const VOLUMES_A_NODE: usize = 100;
const ZONES: usize = 3;
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The best of so many runs counts: others use the machine too.
const RUNS: usize = 3;
/// How much more than ten times the time ten times the volumes may take.
const GROWTH_MAX: f64 = 3.0;
/// What a process takes before it has looked at anything; less than this is not compared.
const TIME_MIN: Duration = Duration::from_millis(50);
/// The first argument of a child, which is this program again.
const CHILD: &str = "lp-exporter";
const PEAK: &str = "peak memory in bytes: ";

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == CHILD) {
        let exit = lp_exporter::run(std::env::args_os().skip(1));
        eprintln!("{PEAK}{}", peak_memory_bytes());
        return exit;
    }
    match figures() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Time and, of a process, the most memory.
type Figure = (Duration, Option<u64>);

fn figures() -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("a temporary directory")?;
    println!("volumes  nodes  from memory    by zones       from a dump            controller");
    let mut figures: Vec<[Figure; 4]> = Vec::new();
    for count in COUNTS {
        let all = [
            from_memory(count, volume)?,
            from_memory(count, volume_of_zone)?,
            from_dump(count, folder.path())?,
            controller(count, folder.path())?,
        ];
        let cells = all.map(|(time, peak_bytes)| {
            let peak = peak_bytes.map_or(String::new(), |bytes| format!(", {:.1} MB", bytes as f64 / 1e6));
            format!("{:.3} s{peak}", time.as_secs_f64())
        });
        let nodes = nodes_of(count);
        println!(
            "{count:>7}  {nodes:>5}  {:<13}  {:<13}  {:<21}  {}",
            cells[0], cells[1], cells[2], cells[3]
        );
        figures.push(all);
    }
    for (smaller, larger) in figures.iter().zip(&figures[1..]) {
        for ((before, _), (after, _)) in smaller.iter().zip(larger) {
            let growth = after.as_secs_f64() / before.max(&TIME_MIN).as_secs_f64();
            if growth > 10.0 * GROWTH_MAX {
                bail!("ten times the volumes took {growth:.1} times as long");
            }
        }
    }
    Ok(())
}

fn nodes_of(count: usize) -> usize {
    count.div_ceil(VOLUMES_A_NODE)
}

fn node_name(number: usize) -> String {
    format!("worker-{number:04}.example.internal")
}

fn zone_name(number: usize) -> String {
    format!("zone-{}", number % ZONES)
}

fn from_memory(count: usize, volume: fn(usize, &[Node]) -> Volume) -> anyhow::Result<Figure> {
    let node = |number: usize| Node {
        name: node_name(number),
        labels: BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), node_name(number)),
            (ZONE_LABEL.to_owned(), zone_name(number)),
        ]),
        ready: true,
        not_ready_message: String::new(),
        disk_pressure: false,
        being_removed: false,
        operating_system: "linux".to_owned(),
        is_virtual: false,
        created_unix_seconds: None,
    };
    let nodes: Vec<Node> = (0..nodes_of(count)).map(node).collect();
    let volumes: Vec<Volume> = (0..count).map(|number| volume(number, &nodes)).collect();
    let claims = Claims::new(volumes.iter().filter_map(|volume| {
        Some(Claim {
            reference: volume.claim.clone()?,
            volume: Some(volume.name.clone()),
            is_lost: false,
            requested_bytes: Some(volume.capacity_bytes),
            labels: BTreeMap::new(),
            alert_percent: None,
        })
    }));
    let base_paths = BasePaths::new(DEFAULT_BASE_PATHS)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let volumes = volumes.clone();
        let began = Instant::now();
        let surroundings = Surroundings {
            claims: &claims,
            nodes: &nodes,
            pods: None,
        };
        let planned = plan(volumes, Vec::new(), surroundings, &base_paths, &Selection::everything());
        best = best.min(began.elapsed());
        if planned.volumes_planned() != count {
            bail!("{} of {count} volumes were planned", planned.volumes_planned());
        }
    }
    Ok((best, None))
}

fn volume(number: usize, nodes: &[Node]) -> Volume {
    let object = object(number, nodes.len());
    let selector = Requirement {
        key: "kubernetes.io/hostname".to_owned(),
        operator: Operator::In,
        values: vec![object.node.clone()],
    };
    Volume {
        claim: Some(ClaimReference {
            namespace: object.namespace.into(),
            name: object.claim,
            uid: Some(object.persistentvolume["pvc-".len()..].to_owned()),
        }),
        name: object.persistentvolume,
        storage_class: object.class.into(),
        source: SourceKind::HostPath,
        path: object.path,
        capacity_bytes: 10 << 30,
        phase: "Bound".into(),
        reclaim_policy: "Delete".into(),
        created_unix_seconds: Some(1_767_322_985),
        affinity: Some(
            [NodeSelectorTerm {
                match_expressions: vec![selector],
                match_fields: Vec::new(),
            }]
            .into(),
        ),
        selected_node: Some(object.node.into()),
    }
}

/// The same, shared by the nodes of a zone.
fn volume_of_zone(number: usize, nodes: &[Node]) -> Volume {
    let selector = Requirement {
        key: ZONE_LABEL.to_owned(),
        operator: Operator::In,
        values: vec![zone_name(number)],
    };
    Volume {
        affinity: Some(
            [NodeSelectorTerm {
                match_expressions: vec![selector],
                match_fields: Vec::new(),
            }]
            .into(),
        ),
        selected_node: None,
        ..volume(number, nodes)
    }
}

/// The volume of a number, as JSON builders know it.
fn object(number: usize, nodes: usize) -> objects::Volume {
    let namespace = format!("team-{}", number % 200);
    let claim = format!("data-database-{number}");
    objects::Volume::local_path(&node_name(number % nodes), &namespace, &claim, "10Gi")
}

/// With what the API server adds, which is read and thrown away.
fn as_served(mut object: Value, number: usize) -> Value {
    object["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
    object["metadata"]["resourceVersion"] = (number + 1_000).to_string().into();
    if object["metadata"]["uid"].is_null() {
        object["metadata"]["uid"] = format!("6f1a3c52-0000-4000-8000-{number:012x}").into();
    }
    object
}

fn from_dump(count: usize, folder: &Path) -> anyhow::Result<Figure> {
    let file = folder.join("dump.json");
    write_dump(&file, count).context("could not write the dump")?;
    let file_text = file.to_string_lossy().into_owned();
    let mut best = (Duration::MAX, None);
    for _ in 0..RUNS {
        let run = child(&["plan", "--from-file", &file_text, "--output", "json"], &[])?;
        best = best.min(run);
    }
    fs::remove_file(file)?;
    Ok(best)
}

/// Writes what kubectl would, object by object.
fn write_dump(file: &Path, count: usize) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    write!(out, "{{\n    \"apiVersion\": \"v1\",\n    \"items\": [\n        ")?;
    let nodes = nodes_of(count);
    let volumes = (0..count).map(|number| as_served(object(number, nodes).persistent_volume(), number));
    let claims = (0..count).map(|number| as_served(object(number, nodes).claim(), number));
    let nodes = (0..nodes).map(|number| as_served(objects::node(&node_name(number)), number));
    for (index, object) in volumes.chain(claims).chain(nodes).enumerate() {
        if index > 0 {
            write!(out, ",\n        ")?;
        }
        let mut text = Vec::new();
        object.serialize(&mut Serializer::with_formatter(
            &mut text,
            PrettyFormatter::with_indent(b"    "),
        ))?;
        out.write_all(String::from_utf8_lossy(&text).replace('\n', "\n        ").as_bytes())?;
    }
    write!(
        out,
        "\n    ],\n    \"kind\": \"List\",\n    \"metadata\": {{\n        \"resourceVersion\": \"\"\n    }}\n}}\n"
    )?;
    out.flush()
}

fn controller(count: usize, folder: &Path) -> anyhow::Result<Figure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (server, pushgateway_url) = runtime.block_on(serve(count))?;
    let kubeconfig = folder.join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig("lp-exporter"))?;
    let arguments = [
        "controller",
        "--pushgateway-url",
        &pushgateway_url,
        "--worker-image",
        "none",
        "--log-level",
        "error",
    ];
    let kubeconfig = kubeconfig.to_string_lossy().into_owned();
    // The server is in this process, and of its time one run shows enough.
    let run = child(&arguments, &[("KUBECONFIG", &kubeconfig)])?;
    runtime.shutdown_background();
    Ok(run)
}

/// A cluster with so many volumes on nodes that are not Ready, and a Pushgateway that takes everything and keeps nothing.
async fn serve(count: usize) -> anyhow::Result<(ApiServer, String)> {
    let server = ApiServer::start().await;
    let nodes = nodes_of(count);
    for number in 0..nodes {
        let mut node = objects::node(&node_name(number));
        objects::set_condition(&mut node, "Ready", "Unknown");
        server.put(node);
    }
    server.generate("persistentvolumes", count, move |number| {
        as_served(object(number, nodes).persistent_volume(), number)
    });
    server.generate("persistentvolumeclaims", count, move |number| {
        as_served(object(number, nodes).claim(), number)
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = Router::new()
        .fallback(|| async { json!({"status": "success", "data": []}).to_string() })
        .layer(axum::extract::DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((server, url))
}

/// Runs this program again as lp-exporter. Its own peak is asked of itself, because what its parent could ask for begins
/// with the parent's.
fn child(arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Figure> {
    let began = Instant::now();
    let output = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    let time = began.elapsed();
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{arguments:?} ended with {}: {text}", output.status);
    }
    let peak_bytes = text
        .lines()
        .find_map(|line| line.strip_prefix(PEAK))
        .context("the child's peak")?;
    Ok((time, Some(peak_bytes.parse()?)))
}
