//! Real servers of both generations: where they are found, how they are started, what they answer. Each listens on
//! loopback and ends with its value.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::Value;
use tempfile::TempDir;

use crate::history::{Labels, Sample};

/// Longer than any server here takes to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs of one generation.
pub(crate) struct Generation {
    pub(crate) pushgateway: PathBuf,
    pub(crate) prometheus: PathBuf,
    pub(crate) promtool: PathBuf,
}

/// The generation in a subdirectory, `old` or `new`, of `LP_EXPORTER_TEST_SERVERS`, or the one on the PATH in the place of
/// the new one. What is missing is said on standard error, and fails the test where everything must be tested.
pub(crate) fn generation(name: &str) -> Option<Generation> {
    let folders: Vec<PathBuf> = match std::env::var_os("LP_EXPORTER_TEST_SERVERS") {
        Some(servers) => vec![Path::new(&servers).join(name)],
        None if name == "new" => std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect(),
        None => Vec::new(),
    };
    let find = |programs: &[&str]| {
        let paths = folders
            .iter()
            .flat_map(|folder| programs.iter().map(move |program| folder.join(program)));
        paths.into_iter().find(|path| path.is_file())
    };
    let found = find(&["prometheus-pushgateway", "pushgateway"])
        .zip(find(&["prometheus"]))
        .zip(find(&["promtool"]));
    if found.is_none() {
        skip(
            &format!("the dashboards on the {name} generation of Prometheus"),
            "set LP_EXPORTER_TEST_SERVERS to a directory with prometheus-pushgateway, prometheus and promtool in old/ and new/",
        );
    }
    found.map(|((pushgateway, prometheus), promtool)| Generation {
        pushgateway,
        prometheus,
        promtool,
    })
}

/// Says what is not tested, and fails where everything must be.
pub(crate) fn skip(what: &str, why: &str) {
    assert!(
        std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
        "{what} is missing: {why}"
    );
    eprintln!("skipped {what}: {why}");
}

/// A process that listens on loopback, in a directory of its own.
struct Server {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Server {
    async fn start(program: &Path, folder: TempDir, arguments: &[&str]) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        drop(listener);
        let process = Command::new(program)
            .arg(format!("--web.listen-address={address}"))
            .args(arguments)
            .current_dir(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Server {
            process,
            address,
            _folder: folder,
        };
        let deadline = Instant::now() + PATIENCE;
        let is_ready = async || {
            let answer = http().get(server.url("/-/ready")).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        while !is_ready().await {
            assert!(Instant::now() < deadline, "{} is not ready", program.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query: String = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish();
        let url = self.url(&format!("{path}?{query}"));
        let answer = http().get(url).send().await.expect("the server answers");
        let text = answer.text().await.expect("its answer can be read");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(answer["status"], "success", "{path} {parameters:?}: {answer:#}");
        assert!(answer["warnings"].is_null(), "{path} {parameters:?}: {answer:#}");
        answer["data"].clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
    }
}

/// A client for plain http, which needs no certificates.
fn http() -> Client {
    // An error says that another test did it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([]);
    builder.build().expect("a client")
}

pub(crate) struct Pushgateway(Server);

impl Pushgateway {
    pub(crate) async fn start(generation: &Generation) -> Pushgateway {
        let folder = tempfile::tempdir().expect("a temporary directory");
        Pushgateway(Server::start(&generation.pushgateway, folder, &["--persistence.file="]).await)
    }

    pub(crate) fn url(&self) -> String {
        self.0.url("")
    }

    /// Pushes as another program does.
    pub(crate) async fn push(&self, job: &str, body: &'static str) {
        let url = self.0.url(&format!("/metrics/job/{job}"));
        let answer = http().put(url).body(body).send().await.expect("the server answers");
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// Every sample of every group.
    pub(crate) async fn samples(&self) -> Vec<Sample> {
        let groups = self.0.get("/api/v1/metrics", &[]).await;
        let groups = groups.as_array().expect("a list of groups");
        let families = groups
            .iter()
            .flat_map(|group| group.as_object().expect("an object"))
            .filter(|(_, family)| family["metrics"].is_array());
        let of_family = |(name, family): (&String, &Value)| -> Vec<Sample> {
            let metrics = family["metrics"].as_array().into_iter().flatten();
            let sample = |metric: &Value| Sample {
                name: name.clone(),
                labels: labels(&metric["labels"]),
                value: number(&metric["value"]),
            };
            metrics.map(sample).collect()
        };
        families.flat_map(of_family).collect()
    }
}

pub(crate) struct Prometheus(Server);

/// A series that a query answers with: its labels, and its points as time and value.
pub(crate) type Series = (Labels, Vec<(f64, f64)>);

impl Prometheus {
    /// Starts with what an OpenMetrics file tells, and scrapes the Pushgateway.
    pub(crate) async fn start(generation: &Generation, open_metrics: &str, pushgateway: &Pushgateway) -> Prometheus {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        fs::write(path("history"), open_metrics).expect("the history can be written");
        let made = Command::new(&generation.promtool)
            .args([
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                &path("history"),
                &path("data"),
            ])
            .output()
            .expect("promtool starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let target = pushgateway.0.address;
        let config = format!(
            "scrape_configs:\n- job_name: pushgateway\n  honor_labels: true\n  scrape_interval: 5s\n  static_configs:\n  - \
             targets: ['{target}']\n"
        );
        fs::write(path("prometheus.yml"), config).expect("the configuration can be written");
        let arguments = [
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
        ];
        let arguments = arguments.each_ref().map(String::as_str);
        Prometheus(Server::start(&generation.prometheus, folder, &arguments).await)
    }

    /// The time of the first live scrape, once there was one.
    pub(crate) async fn first_scrape(&self) -> f64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Only live: the history knows nothing of the scrape itself.
            let scraped = self.query("up[10m]", None).await;
            if let Some((_, points)) = scraped.first() {
                let (time, value) = points[0];
                assert!(value > 0.0, "the Pushgateway could not be scraped");
                return time;
            }
            assert!(Instant::now() < deadline, "Prometheus does not scrape");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) async fn query(&self, expression: &str, time: Option<f64>) -> Vec<Series> {
        let time = time.map(|time| format!("{time:.3}"));
        let mut parameters = vec![("query", expression)];
        parameters.extend(time.iter().map(|time| ("time", time.as_str())));
        series(&self.0.get("/api/v1/query", &parameters).await)
    }

    pub(crate) async fn query_range(&self, expression: &str, start: f64, end: f64, step: f64) -> Vec<Series> {
        let [start, end, step] = [start, end, step].map(|number| format!("{number:.3}"));
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
        series(&self.0.get("/api/v1/query_range", &parameters).await)
    }

    /// The values of a label among the series that a selector matches.
    pub(crate) async fn label_values(&self, label: &str, selector: &str) -> Vec<String> {
        let path = format!("/api/v1/label/{label}/values");
        let values = self.0.get(&path, &[("match[]", selector)]).await;
        serde_json::from_value(values).expect("a list of texts")
    }
}

fn series(data: &Value) -> Vec<Series> {
    let one = |series: &Value| {
        let points = match series["values"].as_array() {
            Some(points) => points.clone(),
            None => vec![series["value"].clone()],
        };
        let points = points
            .iter()
            .map(|point| (point[0].as_f64().expect("a time"), number(&point[1])));
        (labels(&series["metric"]), points.collect())
    };
    data["result"]
        .as_array()
        .expect("a list of series")
        .iter()
        .map(one)
        .collect()
}

/// Labels without a value are none, and the name of the metric is no label.
fn labels(object: &Value) -> Labels {
    let mut labels: Labels = serde_json::from_value(object.clone()).expect("an object of texts");
    labels.retain(|name, value| !value.is_empty() && name != "__name__");
    labels
}

fn number(text: &Value) -> f64 {
    let text = text.as_str().expect("a number as a text");
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}
