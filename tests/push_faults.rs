//! What is delivered in the end when something is in the way of a push, and what is told of it.
//!
//! The table in docs/pushgateway.md says what is expected: each of its rows is brought about here, with the real program
//! against real Pushgateways of both generations, behind a proxy of our own.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt, stream};
use lp_exporter::owner::Owner;
use lp_exporter::pushgateway::group::{CONTROLLER_JOB, WORKER_JOB};
use lp_exporter::pushgateway::{Group, Pushgateway, PushgatewayConfig};
use lp_exporter::summary::WorkerSummary;
use lp_exporter::volumes::collect::Collect;
use lp_exporter::volumes::node_plan::{self, Base, NodePlan, PlannedVolume, Run};
use serde_json::{Value, json};
use support::api_server::ApiServer;
use support::fault_proxy::{Fault, FaultProxy};
use support::kubelet::Kubelet;
use support::objects::{self, Volume, controller_of_cronjob};
use support::real_pushgateway::{Certificates, Server, free_address, plain_config, pushgateways, skip};
use support::tls_server::TlsServer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lp-exporter");
const DOCUMENT: &str = include_str!("../docs/pushgateway.md");
/// A worker keeps a quarter of its budget for the push.
const PUSH_BUDGET: Duration = Duration::from_secs(4);
/// What a process may take besides, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(8);
/// Longer than any request of a test takes.
const ASKING_BUDGET: Duration = Duration::from_secs(20);
/// How many rows are brought about at once.
const AT_ONCE: usize = 6;
const NAMESPACE: &str = "lp-exporter";
const NODES: [&str; 2] = ["node-1", "node-2"];

/// How a row is brought about.
#[derive(Clone)]
enum Way {
    /// Nobody listens.
    Down,
    /// The server starts a second after the worker.
    Late,
    /// This is done to the first connections, and that to all others; the push has so much time.
    Proxy(Vec<Fault>, Fault, Duration),
    /// A stranger pushed this below that path before, and the server has these flags.
    Stranger(&'static str, &'static str, &'static [&'static str]),
    /// The server has this certificate and wants a password; the worker trusts that CA and has a password.
    Tls(&'static str, &'static str, &'static str),
    /// The server has no TLS, and the URL says https.
    NoTls,
    /// The server has TLS, and the URL says http.
    OnlyTls,
    /// The token is another one when the first try has failed.
    Token,
    /// The disk with the server's own file is full.
    FullDisk,
    /// A whole run, with the server restarted once the capacities are there: with its file or without.
    Restart(bool),
}

fn proxy(first: &[Fault], then: Fault) -> Way {
    Way::Proxy(first.to_vec(), then, PUSH_BUDGET)
}

/// The rows of the table, by their first cell.
fn rows() -> Vec<(&'static str, Way)> {
    let once = |fault: Fault| proxy(&[fault], Fault::Pass);
    let always = |fault: Fault| proxy(&[], fault);
    let garbage = || Fault::Reply("SSH-2.0-nothing of the kind\r\n".to_owned());
    let status = |status: u16| Fault::status(status, "", "no");
    vec![
        ("nobody listens", Way::Down),
        ("it starts late", Way::Late),
        ("it is slow", always(Fault::Slow(200))),
        ("it is slower than the budget", always(Fault::Slow(20))),
        (
            "a connection on which nobody answers, once",
            Way::Proxy(vec![Fault::Silent], Fault::Pass, PUSH_BUDGET * 3),
        ),
        ("nobody ever answers", always(Fault::Silent)),
        ("a connection is reset, once", once(Fault::Reset)),
        ("a connection is reset in mid-body, once", once(Fault::ResetAfter(900))),
        (
            "a connection is half closed before the reply, once",
            once(Fault::HalfClose),
        ),
        ("the reply is cut off, once", once(Fault::CutReply(8))),
        ("a reply of garbage, once", once(garbage())),
        ("replies of garbage, always", always(garbage())),
        ("a reply of garbage without end", always(Fault::Endless("HTTP/1.1 "))),
        (
            "status 200 with a body without end",
            always(Fault::Endless("HTTP/1.1 200 OK\r\n\r\n")),
        ),
        (
            "status 400 with a message without end",
            always(Fault::Endless("HTTP/1.1 400 No\r\n\r\n")),
        ),
        (
            "a stranger's metric has one of our names and another type",
            Way::Stranger("job/stranger", CONFLICT, &[]),
        ),
        (
            "a stranger's group holds one of our series",
            Way::Stranger(
                "job/lp-exporter-job",
                "# TYPE lp_exporter_worker_duration_seconds gauge\n\
                 lp_exporter_worker_duration_seconds{node=\"node-1\"} 1\n",
                &[],
            ),
        ),
        (
            "the same stranger's type, consistency check off",
            Way::Stranger("job/stranger", CONFLICT, &["--push.disable-consistency-check"]),
        ),
        ("status 401: a wrong password", Way::Tls("server", "ca.pem", "wrong")),
        ("status 403", always(status(403))),
        ("status 404", always(status(404))),
        ("status 413", always(status(413))),
        ("status 408, once", once(status(408))),
        (
            "status 429 with `Retry-After: 1`, once",
            once(Fault::status(429, "Retry-After: 1\r\n", "")),
        ),
        (
            "status 429 with `Retry-After: 3600`",
            always(Fault::status(429, "Retry-After: 3600\r\n", "")),
        ),
        ("status 500, once", once(status(500))),
        ("status 502, once", once(status(502))),
        ("status 503, once", once(status(503))),
        ("status 503, always", always(status(503))),
        ("TLS and a password", Way::Tls("server", "ca.pem", "test")),
        (
            "a certificate of an unknown CA",
            Way::Tls("server", "other.pem", "test"),
        ),
        ("a certificate that has expired", Way::Tls("expired", "ca.pem", "test")),
        ("a certificate for another name", Way::Tls("misnamed", "ca.pem", "test")),
        ("`https` to a server without TLS", Way::NoTls),
        ("`http` to a server with TLS", Way::OnlyTls),
        ("a token that is rotated between two tries", Way::Token),
        ("the disk of its own file is full", Way::FullDisk),
        ("restarted without its file, after the capacities", Way::Restart(false)),
        ("restarted with its file, after the capacities", Way::Restart(true)),
    ]
}

const CONFLICT: &str = "# TYPE lp_exporter_worker_duration_seconds counter\nlp_exporter_worker_duration_seconds 1\n";

/// What came of a row.
struct Seen {
    delivered: bool,
    log: String,
    code: i32,
    took: Duration,
    /// As far as the proxy or the server can tell.
    connections: Option<usize>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_is_true() {
    let documented = documented();
    let names: BTreeSet<&str> = rows().iter().map(|(name, _)| *name).collect();
    let documented_names: BTreeSet<&str> = documented.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, documented_names, "the rows here and in the document");
    let certificates = &Certificates::make();
    for binary in &pushgateways() {
        let looked_at = documented.iter().map(async |row| {
            let (_, way) = rows().into_iter().find(|(name, _)| *name == row[0]).expect("a row");
            let seen = bring_about(binary, &way, certificates.as_ref()).await?;
            check(row, &way, &seen).err()
        });
        let wrong: Vec<String> = stream::iter(looked_at)
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        assert!(wrong.is_empty(), "{}:\n{}", binary.display(), wrong.join("\n"));
    }
}

/// The cells of the table.
fn documented() -> Vec<Vec<String>> {
    let lines = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with("| what happens |"))
        .skip(2);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

/// Compares what was seen with what the row says.
fn check(row: &[String], way: &Way, seen: &Seen) -> Result<(), String> {
    let Seen {
        delivered,
        log,
        code,
        took,
        connections,
    } = seen;
    let [what, expected_delivered, expected_log, expected_code, expected_time] = row else {
        return Err(format!("{row:?} has not five cells"));
    };
    let wrong = |part: &str| {
        Err(format!(
            "{what}: {part}: {took:?}, {connections:?} connections, code {code}\n{log}"
        ))
    };
    if *delivered != expected_delivered.starts_with("all") {
        return wrong(&format!("delivered: {delivered}"));
    }
    if *code != expected_code.parse::<i32>().unwrap_or(-1) {
        return wrong("the exit code");
    }
    for phrase in expected_log.split('`').skip(1).step_by(2) {
        if !log.contains(phrase) {
            return wrong(&format!("the log lacks {phrase:?}"));
        }
    }
    let is_silent = match expected_log.as_str() {
        "nothing" => !log.contains(" WARN "),
        "nothing of it" => !log.contains("pushed again") && !log.contains("numbers_lost"),
        _ => true,
    };
    if !is_silent {
        return wrong("the log is not silent");
    }
    let tries = 1 + log.matches("trying again").count();
    let budget = match way {
        Way::Proxy(_, _, budget) => *budget,
        _ => PUSH_BUDGET,
    };
    let in_time = match expected_time.split(',').next().unwrap_or_default() {
        "one try" => tries == 1 && connections.is_none_or(|count| count == 1) && *took < PATIENCE,
        "two tries" => tries == 2 && connections.is_none_or(|count| count == 2) && *took < budget + PATIENCE,
        "until the server listens" => *took >= Duration::from_secs(1) && *took < PATIENCE,
        "the budget" => *took > budget.mul_f64(0.7) && *took < budget + PATIENCE,
        "the run" => true,
        other => return wrong(&format!("{other:?} is not known here")),
    };
    if in_time { Ok(()) } else { wrong("the time") }
}

/// What comes of a row; nothing if this machine lacks what it needs.
async fn bring_about(binary: &Path, way: &Way, certificates: Option<&Certificates>) -> Option<Seen> {
    let plain = || Server::start(binary, &[]);
    Some(match way {
        Way::Down => {
            let url = format!("http://{}", free_address());
            work(&url, PUSH_BUDGET, &[]).await.seen(false, None)
        }
        Way::Late => {
            let address = free_address();
            let starting = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Server::start_at(binary, address, &[]).await
            };
            let url = format!("http://{address}");
            let (worked, server) = tokio::join!(work(&url, PUSH_BUDGET, &[]), starting);
            worked.seen(holds_node(&server.url()).await, None)
        }
        Way::Proxy(first, then, budget) => {
            let server = plain().await;
            let proxy = FaultProxy::start(server.address, first, then.clone()).await;
            let worked = work(&proxy.url(), *budget, &[]).await;
            // Whatever says 200 without an end has taken what it was sent, as far as anybody can know.
            let delivered =
                holds_node(&server.url()).await || matches!(then, Fault::Endless(head) if head.contains("200"));
            worked.seen(delivered, Some(proxy.connections()))
        }
        Way::Stranger(path, body, flags) => {
            let server = Server::start(binary, flags).await;
            post(server.address, path, body).await;
            let proxy = FaultProxy::start(server.address, &[], Fault::Pass).await;
            let worked = work(&proxy.url(), PUSH_BUDGET, &[]).await;
            let scrape = server.metrics().await;
            let status = scrape.lines().next().unwrap_or_default();
            let is_unchecked = !flags.is_empty();
            assert_eq!(
                status.contains(" 500 "),
                is_unchecked,
                "only what is not checked breaks scrapes: {status}"
            );
            worked.seen(holds_node(&server.url()).await, Some(proxy.connections()))
        }
        Way::Tls(certificate, ca, password) => {
            let certificates = certificates?;
            let web_config = format!(
                "--web.config.file={}",
                certificates.web_config_with(certificate).display()
            );
            let server = Server::start(binary, &[&web_config]).await;
            let proxy = FaultProxy::start(server.address, &[], Fault::Pass).await;
            let folder = tempfile::tempdir().expect("a temporary directory");
            let file = |name: &str, contents: &str| {
                let path = folder.path().join(name);
                std::fs::write(&path, contents).expect("a file");
                path
            };
            let (user, password) = (file("user", "exporter\n"), file("password", password));
            let (ca, trusted) = (certificates.path(ca), certificates.path("ca.pem"));
            let variables = [
                ("LP_EXPORTER_PUSHGATEWAY_CA_FILE", ca.as_path()),
                ("LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE", &user),
                ("LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE", &password),
            ];
            let url = format!("https://localhost:{}", proxy.address.port());
            let worked = work(&url, PUSH_BUDGET, &variables).await;
            let connections = proxy.connections();
            let asking = PushgatewayConfig {
                ca_file: Some(trusted),
                ..config(&format!("https://exporter:test@localhost:{}", server.address.port()))
            };
            // What is not to be trusted is not asked either.
            let groups = groups(asking).await.unwrap_or_default();
            worked.seen(groups.iter().any(is_of_node), Some(connections))
        }
        Way::NoTls => {
            let certificates = certificates?;
            let server = plain().await;
            let proxy = FaultProxy::start(server.address, &[], Fault::Pass).await;
            let ca = certificates.path("ca.pem");
            let url = proxy.url().replace("http://", "https://");
            let worked = work(&url, PUSH_BUDGET, &[("LP_EXPORTER_PUSHGATEWAY_CA_FILE", &ca)]).await;
            worked.seen(holds_node(&server.url()).await, Some(proxy.connections()))
        }
        Way::OnlyTls => {
            let certificates = certificates?;
            let web_config = format!("--web.config.file={}", certificates.web_config_with("server").display());
            let server = Server::start(binary, &[&web_config]).await;
            let proxy = FaultProxy::start(server.address, &[], Fault::Pass).await;
            let worked = work(&proxy.url(), PUSH_BUDGET, &[]).await;
            // It takes nothing without TLS, so nobody could have pushed.
            worked.seen(false, Some(proxy.connections()))
        }
        Way::Token => {
            let certificates = certificates?;
            let folder = tempfile::tempdir().expect("a temporary directory");
            let token = folder.path().join("token");
            std::fs::write(&token, "first-token\n").expect("a file");
            let rotated = token.clone();
            let server = TlsServer::start(certificates, false, move |head| {
                if head.contains("authorization: Bearer first-token\r\n") {
                    std::fs::write(&rotated, "second-token\n").expect("a file");
                    503
                } else if head.contains("authorization: Bearer second-token\r\n") {
                    200
                } else {
                    401
                }
            });
            let ca = certificates.path("ca.pem");
            let variables = [
                ("LP_EXPORTER_PUSHGATEWAY_CA_FILE", ca.as_path()),
                ("LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE", &token),
            ];
            let worked = work(&server.url(), PUSH_BUDGET, &variables).await;
            let delivered = worked.summary.delivered;
            worked.seen(delivered, Some(server.connections()))
        }
        Way::FullDisk => {
            let disk = FullDisk::new()?;
            let file = format!("--persistence.file={}", disk.folder.path().join("file").display());
            let flags = [file.as_str(), "--persistence.interval=10ms"];
            let server = Server::start(binary, &flags).await;
            let proxy = FaultProxy::start(server.address, &[], Fault::Pass).await;
            let worked = work(&proxy.url(), PUSH_BUDGET, &[]).await;
            let delivered = holds_node(&server.url()).await;
            server.terminate();
            let server = Server::start(binary, &flags).await;
            assert!(!holds_node(&server.url()).await, "the disk was not full");
            worked.seen(delivered, Some(proxy.connections()))
        }
        Way::Restart(with_file) => restart(binary, *with_file).await,
    })
}

/// How a worker ended.
struct Worked {
    output: Output,
    summary: WorkerSummary,
    took: Duration,
}

impl Worked {
    fn seen(self, delivered: bool, connections: Option<usize>) -> Seen {
        let log = String::from_utf8_lossy(&self.output.stderr).into_owned();
        let code = self.output.status.code().unwrap_or(-1);
        // The termination message says it as the exit code does.
        assert_eq!(self.summary.delivered, code == 0, "{log}");
        assert_eq!(self.summary.error.is_none(), code == 0, "{log}");
        assert_eq!(self.summary.states["complete"], 1, "it was measured: {log}");
        Seen {
            delivered,
            log,
            code,
            took: self.took,
            connections,
        }
    }
}

/// Runs a worker of one volume.
async fn work(url: &str, push_budget: Duration, variables: &[(&str, &Path)]) -> Worked {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("base/pvc-1")).expect("a directory");
    std::fs::write(path("base/pvc-1/file"), [1; 5000]).expect("a file");
    let plan = NodePlan {
        version: node_plan::VERSION,
        run: Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.0,
            owner: Owner::default(),
        },
        node: NODES[0].to_owned(),
        budget_seconds: push_budget.as_secs_f64() * 4.0,
        bases: vec![Base {
            path: "/data".to_owned(),
            mounted_at: Some(path("base").to_str().expect("a path in UTF-8").to_owned()),
        }],
        volumes: vec![PlannedVolume {
            persistentvolume: "pvc-1".to_owned(),
            namespace: Some("shop".to_owned()),
            persistentvolumeclaim: Some("data".to_owned()),
            storageclass: String::new(),
            path: "/data/pvc-1".to_owned(),
            base: 0,
            left_alone: false,
            capacity_bytes: 1 << 30,
        }],
        other_base_paths: Vec::new(),
        known_paths: Vec::new(),
        known_devices: Vec::new(),
        collect: Collect::everything(),
        orphan_age_seconds: 600.0,
    };
    std::fs::write(path("plan"), plan.encode().expect("a small plan")).expect("a file");
    std::fs::write(path("message"), "").expect("a file");
    let begin = Instant::now();
    let output = Command::new(PROGRAM)
        .args(["worker", "--start-delay-max=0s"])
        .env_clear()
        .env("LP_EXPORTER_PLAN", path("plan"))
        .env("LP_EXPORTER_TERMINATION_MESSAGE", path("message"))
        .env("LP_EXPORTER_PUSHGATEWAY_URL", url)
        .envs(variables.iter().copied())
        .output()
        .await
        .expect("the program runs");
    let took = begin.elapsed();
    let message = std::fs::read_to_string(path("message")).expect("a message");
    let summary = WorkerSummary::from_message(&message);
    let summary = summary.unwrap_or_else(|| panic!("no summary: {}", String::from_utf8_lossy(&output.stderr)));
    Worked { output, summary, took }
}

fn config(url: &str) -> PushgatewayConfig {
    plain_config(url, ASKING_BUDGET)
}

async fn groups(config: PushgatewayConfig) -> Option<Vec<Group>> {
    let pushgateway = Pushgateway::new(config).expect("a client");
    pushgateway.groups(ASKING_BUDGET).await.ok()
}

/// A group in which a push of the worker was taken.
fn is_of_node(group: &Group) -> bool {
    group.labels.get("job").is_some_and(|job| job == WORKER_JOB)
        && group
            .labels
            .get("node")
            .is_some_and(|node| NODES.contains(&node.as_str()))
        && group.push_time_seconds > 0.0
}

async fn holds_node(url: &str) -> bool {
    let groups = groups(config(url)).await.expect("a list");
    groups.iter().any(is_of_node)
}

/// Pushes as a stranger would.
async fn post(server: SocketAddr, path: &str, body: &str) {
    let mut stream = TcpStream::connect(server).await.expect("a connection");
    let length = body.len();
    let request = format!("POST /metrics/{path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.expect("a reply");
    assert!(reply.contains(" 200 ") || reply.contains(" 202 "), "{reply}");
}

/// A file system of one page, with nothing left on it.
struct FullDisk {
    folder: TempDir,
}

impl FullDisk {
    fn new() -> Option<FullDisk> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4k", "tmpfs"])
            .arg(folder.path())
            .output()
            .expect("mount is a program of every system");
        if !mounted.status.success() {
            skip("a full disk", &String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        std::fs::write(folder.path().join("filler"), [1; 4096]).expect("one page");
        Some(FullDisk { folder })
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.folder.path())
            .status();
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// A cluster with a volume on each node, and a folder for all that is written.
struct Stage {
    server: ApiServer,
    folder: TempDir,
}

impl Stage {
    async fn new() -> Stage {
        let server = ApiServer::start().await;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut kubelet = Kubelet::new(Path::new(PROGRAM), &folder.path().join("workers"));
        for object in controller_of_cronjob("lp-exporter-29000000", "registry.example/lp-exporter:1") {
            server.put(object);
        }
        for node in NODES {
            server.put(objects::node(node));
            let root = folder.path().join(node);
            let volume = Volume::local_path(node, "shop", &format!("data-{node}"), "1Gi");
            let directory = root.join(volume.path.trim_start_matches('/'));
            std::fs::create_dir_all(&directory).expect("a directory");
            std::fs::write(directory.join("file"), [1; 4096]).expect("a file");
            server.put(volume.persistent_volume());
            server.put(volume.claim());
            kubelet = kubelet.node(node, &root);
        }
        kubelet.attach(&server);
        let kubeconfig = server.kubeconfig(NAMESPACE);
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig).expect("a file");
        Stage { server, folder }
    }

    fn file(&self, name: &str, contents: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, contents).expect("a file");
        path_text(&path)
    }

    /// Runs a controller that logs all it can, with a Job template that sets variables of the workers.
    async fn run_with(
        &self,
        url: &str,
        variables: &[(&str, String)],
        of_workers: &[(&str, String)],
        grouping_labels: Option<&str>,
    ) -> Output {
        let mut template: Value =
            serde_yaml::from_str(include_str!("../jobs/worker.yaml")).expect("the template is YAML");
        let set = |(name, value): &(&str, String)| json!({"name": name, "value": value});
        template["spec"]["template"]["spec"]["containers"][0]["env"] = of_workers.iter().map(set).collect();
        let template = self.file("template.yaml", &template.to_string());
        let mut command = self.controller(url);
        command
            .args(["--log-level=debug", "--job-template", &template])
            .args(grouping_labels.map(|labels| format!("--grouping-label={labels}")))
            .envs(variables.iter().map(|(name, value)| (name, value)));
        command.output().await.expect("the program runs")
    }

    /// The files of the workers: plan, log, termination message.
    fn worker_files(&self) -> Vec<PathBuf> {
        let folders = std::fs::read_dir(self.folder.path().join("workers"));
        let files = folders.into_iter().flatten().flat_map(|folder| {
            let files = std::fs::read_dir(folder.expect("a worker").path()).expect("its folder");
            files.map(|file| file.expect("a file").path())
        });
        files.collect()
    }

    fn termination_messages(&self) -> Vec<String> {
        let files = self.worker_files().into_iter();
        let messages = files.filter(|path| path.ends_with("message"));
        messages
            .map(|path| std::fs::read_to_string(path).expect("a message"))
            .collect()
    }

    /// Looks at every object, every request, and every file of a worker.
    fn check_all(&self, case: &str, markers: &Markers) {
        for resource in ["jobs", "pods", "configmaps", "leases", "cronjobs"] {
            for object in self.server.objects(resource) {
                markers.check(&format!("{case}: an object of {resource}"), &object.to_string());
            }
        }
        let requests = self.server.requests();
        assert!(requests.len() > 5, "{case}: {} requests", requests.len());
        for request in requests {
            markers.check(&format!("{case}: {}", request.path), &request.body.to_string());
            markers.check(&format!("{case}: a path"), &request.path);
        }
        for path in self.worker_files() {
            let contents = std::fs::read(&path).expect("it can be read");
            markers.check(
                &format!("{case}: {}", path.display()),
                &String::from_utf8_lossy(&contents),
            );
        }
    }

    /// A controller as the CronJob would start it.
    fn controller(&self, url: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(["controller", "--base-path=/opt/local-path-provisioner"])
            .env_clear()
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("LP_EXPORTER_PUSHGATEWAY_URL", url)
            .env("LP_EXPORTER_NAMESPACE", NAMESPACE)
            .env("LP_EXPORTER_POD_NAME", "lp-exporter-29000000-pod")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A run in which the server is restarted as soon as it has the capacities.
async fn restart(binary: &Path, with_file: bool) -> Seen {
    let stage = Stage::new().await;
    let file = format!("--persistence.file={}", stage.folder.path().join("pushed").display());
    let flags: &[&str] = if with_file { &[&file] } else { &[] };
    let server = Server::start(binary, flags).await;
    let (address, url) = (server.address, server.url());
    let begin = Instant::now();
    let child = stage.controller(&url).spawn().expect("the program starts");
    let is_pushed = async || {
        let groups = groups(config(&url)).await.expect("a list");
        groups.iter().any(|group| group.labels["job"] == CONTROLLER_JOB)
    };
    while !is_pushed().await {
        assert!(begin.elapsed() < ASKING_BUDGET, "no capacities were pushed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.terminate();
    let server = Server::start_at(binary, address, flags).await;
    let output = child.wait_with_output().await.expect("the controller ends");
    let took = begin.elapsed();
    let groups = groups(config(&server.url())).await.expect("a list");
    let has_capacities = server.metrics().await.contains("\nlocal_volume_stats_capacity_bytes{");
    Seen {
        delivered: has_capacities && groups.iter().filter(|group| is_of_node(group)).count() == NODES.len(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code().unwrap_or(-1),
        took,
        connections: None,
    }
}

/// Half a minute would be the share of the worker's budget.
#[tokio::test]
async fn a_push_takes_no_longer_than_is_set() {
    let url = format!("http://{}", free_address());
    let variables = [("LP_EXPORTER_PUSH_BUDGET", Path::new("1s"))];
    let seen = work(&url, Duration::from_secs(30), &variables).await.seen(false, None);
    assert_eq!(seen.code, 5, "{}", seen.log);
    assert!(seen.took < PATIENCE, "{:?}: {}", seen.took, seen.log);
    assert!(seen.log.contains("trying again"), "{}", seen.log);
}

/// What no text may hold: parts of secrets, as they are and as they are sent.
struct Markers {
    hidden: Vec<String>,
}

impl Markers {
    fn check(&self, place: &str, text: &str) {
        for hidden in &self.hidden {
            assert!(!text.contains(hidden.as_str()), "{place} holds {hidden}: {text}");
        }
    }
}

/// How controller and workers are told who they are.
#[derive(Clone, Copy, Debug)]
enum Secret {
    /// In the URL.
    Url,
    /// User and password in files.
    Basic,
    /// A token in a file.
    Bearer,
    /// A client certificate.
    Certificate,
}

/// Runs the whole with secrets, well and badly, and looks for them wherever something is written: logs, the objects on
/// the API server and every request to it, arguments, termination messages, what is pushed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_told_to_nobody() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    for secret in [Secret::Url, Secret::Basic, Secret::Bearer, Secret::Certificate] {
        // The report at the end, what the workers push, everything.
        for (refused, code, not_delivered) in [
            ("PUT /metrics/job/lp-exporter-run ", 5, Some(0)),
            ("PUT /metrics/job/lp-exporter-job/", 0, Some(NODES.len())),
            ("", 5, None),
        ] {
            let refusal = Refusal {
                refused,
                code,
                not_delivered,
            };
            check_secret(&certificates, secret, refusal).await;
        }
    }
    for binary in pushgateways() {
        check_secret_of_a_real_server(&binary, &certificates).await;
    }
}

const USER: &str = "markeruser";
const PASSWORD: &str = "markerpassword";

/// What a server does not take, and what comes of it.
struct Refusal {
    /// The beginning of these requests.
    refused: &'static str,
    code: i32,
    /// How many workers say so; none if none are made.
    not_delivered: Option<usize>,
}

async fn check_secret(certificates: &Certificates, secret: Secret, refusal: Refusal) {
    let Refusal {
        refused,
        code,
        not_delivered,
    } = refusal;
    // This server repeats in its reply every request that it refuses, headers and all.
    let of_clients = matches!(secret, Secret::Certificate);
    let must_say = matches!(secret, Secret::Basic | Secret::Bearer);
    let server = TlsServer::start(certificates, of_clients, move |head| {
        let is_known = !must_say || head.contains("\r\nauthorization: ");
        if is_known && !head.starts_with(refused) {
            200
        } else {
            403
        }
    });
    let stage = Stage::new().await;
    let file = |name: &str, contents: &str| stage.file(name, contents);
    let encoded = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let key = std::fs::read_to_string(certificates.path("server.key")).expect("a key");
    let mut hidden = vec![PASSWORD.to_owned(), encoded, "markertoken".to_owned()];
    hidden.extend(key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
    let plain = server.url();
    let in_url = plain.replace("https://", &format!("https://{USER}:{PASSWORD}@"));
    let mut variables = vec![(
        "LP_EXPORTER_PUSHGATEWAY_CA_FILE",
        path_text(&certificates.path("ca.pem")),
    )];
    variables.extend(match secret {
        Secret::Url => vec![("LP_EXPORTER_PUSHGATEWAY_URL", in_url)],
        Secret::Basic => vec![
            ("LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE", file("user", USER)),
            ("LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE", file("password", PASSWORD)),
        ],
        Secret::Bearer => vec![(
            "LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE",
            file("token", "markertoken"),
        )],
        Secret::Certificate => vec![
            (
                "LP_EXPORTER_PUSHGATEWAY_CLIENT_CERTIFICATE_FILE",
                path_text(&certificates.path("client.pem")),
            ),
            (
                "LP_EXPORTER_PUSHGATEWAY_CLIENT_KEY_FILE",
                path_text(&certificates.path("server.key")),
            ),
        ],
    });
    // A Job names the Secret that a URL with a password comes from, and no more; the kubelet here has none, and this server
    // takes what the workers push all the same.
    let of_workers: Vec<_> = variables
        .iter()
        .filter(|(name, _)| !name.ends_with("_URL"))
        .cloned()
        .collect();
    let case = format!("{secret:?}, {refused:?} is refused");
    let output = stage.run_with(&plain, &variables, &of_workers, None).await;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{case}: {log}");
    assert!(log.contains("status 403"), "{case}: {log}");
    if let Some(not_delivered) = not_delivered {
        let messages = stage.termination_messages();
        let failed = messages.iter().filter(|message| message.contains("status 403")).count();
        assert_eq!((messages.len(), failed), (NODES.len(), not_delivered), "{case}: {log}");
    }
    let markers = Markers { hidden };
    markers.check(&format!("{case}: the output"), &String::from_utf8_lossy(&output.stdout));
    markers.check(&format!("{case}: the log"), &log);
    stage.check_all(&case, &markers);
}

/// What is pushed, and what a real server logs and shows of it.
async fn check_secret_of_a_real_server(binary: &Path, certificates: &Certificates) {
    let web_config = format!("--web.config.file={}", certificates.web_config().display());
    let server = Server::start(binary, &[&web_config]).await;
    let stage = Stage::new().await;
    // The password of the test's own web configuration: short, so that it is looked for as it is sent.
    let variables = [
        (
            "LP_EXPORTER_PUSHGATEWAY_CA_FILE",
            path_text(&certificates.path("ca.pem")),
        ),
        (
            "LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE",
            stage.file("user", "exporter\n"),
        ),
        (
            "LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE",
            stage.file("password", "test\n"),
        ),
    ];
    let url = format!("https://localhost:{}", server.address.port());
    let output = stage.run_with(&url, &variables, &variables, Some("cluster=eu")).await;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{log}");
    let encoded = STANDARD.encode("exporter:test");
    let markers = Markers { hidden: vec![encoded] };
    markers.check("the log", &log);
    // The Job template sets what the controller has.
    assert!(!log.contains("the workers are not given"), "{log}");
    stage.check_all("a real server", &markers);
    let asking = PushgatewayConfig {
        ca_file: Some(certificates.path("ca.pem")),
        ..config(&url.replace("https://", "https://exporter:test@"))
    };
    let groups = groups(asking).await.expect("a list");
    assert_eq!(
        groups.iter().filter(|group| is_of_node(group)).count(),
        NODES.len(),
        "{groups:?}"
    );
}
