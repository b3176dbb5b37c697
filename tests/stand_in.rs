//! The stand-ins behave as the servers whose place they take: the API server towards kube's client, the Pushgateway
//! towards the real one, if there is one to compare with.

mod support;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, PropagationPolicy, WatchParams};
use kube::core::WatchEvent;
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::{Value, json};

use support::api_server::{Answer, ApiServer, Refusal, Right, Rule};
use support::objects::{Volume, node, set_condition};
use support::pushgateway::{Fault, Pushgateway};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn client(server: &ApiServer) -> Client {
    let mut config = Config::new(server.url().parse().expect("the stand-in's address is a URL"));
    // The stand-in is asked once: a retry would hide what it answers.
    config.default_retry = false;
    Client::try_from(config).expect("plain http needs no certificates")
}

fn typed<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("the object is of that type")
}

#[track_caller]
fn refused<T>(result: Result<T, kube::Error>) -> (u16, String, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone(), status.message.clone()),
        Err(other) => panic!("a Status was expected, and it was {other}"),
        Ok(_) => panic!("a refusal was expected"),
    }
}

#[tokio::test]
async fn lists_in_pages() {
    let server = ApiServer::start().await;
    for number in 0..7 {
        server.put(Volume::local_path("node-1", "shop", &format!("data-{number}"), "1Gi").persistent_volume());
    }
    let volumes: Api<PersistentVolume> = Api::all(client(&server));
    let mut parameters = ListParams::default().limit(3);
    let mut pages = Vec::new();
    loop {
        let page = volumes.list(&parameters).await.expect("a page is answered");
        pages.push(page.items.len());
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = ListParams::default().limit(3).continue_token(&token),
            None => break,
        }
    }
    assert_eq!(pages, [3, 3, 1]);
}

#[tokio::test]
async fn selects_by_label_and_field() {
    let server = ApiServer::start().await;
    for (name, tier) in [("node-1", "gold"), ("node-2", "iron")] {
        let mut object = node(name);
        object["metadata"]["labels"]["tier"] = tier.into();
        server.put(object);
    }
    let nodes: Api<Node> = Api::all(client(&server));
    let cases = [
        (ListParams::default().labels("tier=gold"), vec!["node-1"]),
        (ListParams::default().labels("tier!=gold,tier"), vec!["node-2"]),
        (ListParams::default().labels("!tier"), vec![]),
        (ListParams::default().fields("metadata.name=node-2"), vec!["node-2"]),
    ];
    for (parameters, wanted) in cases {
        let found = nodes.list(&parameters).await.expect("the selector is understood");
        let names: Vec<&str> = found
            .items
            .iter()
            .filter_map(|node| node.metadata.name.as_deref())
            .collect();
        assert_eq!(names, wanted, "{parameters:?}");
    }
    let (code, ..) = refused(nodes.list(&ListParams::default().labels("tier in (gold)")).await);
    assert_eq!(code, 400);
}

#[tokio::test]
async fn conflicts_as_the_real_one() {
    let server = ApiServer::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(client(&server), "lp-exporter");
    let map: ConfigMap = typed(json!({"metadata": {"name": "one"}, "data": {"a": "1"}}));
    let first = maps
        .create(&PostParams::default(), &map)
        .await
        .expect("the first is created");
    assert!(first.metadata.uid.is_some() && first.metadata.creation_timestamp.is_some());

    let (code, reason, _) = refused(maps.create(&PostParams::default(), &map).await);
    assert_eq!((code, reason.as_str()), (409, "AlreadyExists"));

    maps.replace("one", &PostParams::default(), &first)
        .await
        .expect("its version is the newest");
    let (code, reason, _) = refused(maps.replace("one", &PostParams::default(), &first).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));

    let (code, reason, message) = refused(maps.get("two").await);
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (404, "NotFound", "configmaps \"two\" not found")
    );
}

#[tokio::test]
async fn watches_from_a_version() {
    let server = ApiServer::start().await;
    server.put(node("node-1"));
    let nodes: Api<Node> = Api::all(client(&server));
    let listed = nodes.list(&ListParams::default()).await.expect("nodes are listed");
    let version = listed.metadata.resource_version.expect("a list has a version");
    server.put(node("node-2"));
    server.update("nodes", "", "node-2", |node| set_condition(node, "Ready", "Unknown"));
    server.delete("nodes", "", "node-1");

    let parameters = WatchParams::default().timeout(1);
    let events: Vec<WatchEvent<Node>> = nodes
        .watch(&parameters, &version)
        .await
        .expect("the watch begins")
        .try_collect()
        .await
        .expect("the watch ends well");
    let words: Vec<String> = events
        .iter()
        .map(|event| match event {
            WatchEvent::Added(node) => format!("added {}", node.metadata.name.as_deref().unwrap_or_default()),
            WatchEvent::Modified(node) => format!("modified {}", node.metadata.name.as_deref().unwrap_or_default()),
            WatchEvent::Deleted(node) => format!("deleted {}", node.metadata.name.as_deref().unwrap_or_default()),
            WatchEvent::Bookmark(_) => "bookmark".to_owned(),
            WatchEvent::Error(status) => format!("error {}", status.code),
        })
        .collect();
    assert_eq!(words, ["added node-2", "modified node-2", "deleted node-1", "bookmark"]);
}

/// kube-runtime's watcher lists, watches, and comes back after a broken watch and a compaction.
#[tokio::test]
async fn feeds_the_watcher() {
    let server = ApiServer::start().await;
    server.put(node("node-1"));
    let nodes: Api<Node> = Api::all(client(&server));
    let mut events = Box::pin(watcher::watcher(nodes, watcher::Config::default()));
    let mut names = Vec::new();
    let follow = async {
        while names.len() < 3 {
            let event = events.next().await.expect("a watcher has no end");
            if let Ok(watcher::Event::InitApply(node) | watcher::Event::Apply(node)) = event {
                let name = node.metadata.name.expect("every node has a name");
                match name.as_str() {
                    "node-1" => server.cut_watches(),
                    "node-2" => {
                        server.cut_watches();
                        server.compact();
                    }
                    _ => {}
                }
                if !names.contains(&name) {
                    names.push(name);
                    server.put(node_after(names.len()));
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, follow)
        .await
        .expect("three nodes are seen");
    assert_eq!(names, ["node-1", "node-2", "node-3"]);
}

fn node_after(number: usize) -> Value {
    node(&format!("node-{}", number + 1))
}

#[tokio::test]
async fn deletes_dependents_by_policy() {
    for (policy, pods_left) in [
        (Some(PropagationPolicy::Background), 0),
        (Some(PropagationPolicy::Orphan), 1),
        // What the server does with a Job of which nothing is said.
        (None, 1),
    ] {
        let server = ApiServer::start().await;
        let jobs: Api<Job> = Api::namespaced(client(&server), "lp-exporter");
        let job: Job = typed(json!({"metadata": {"name": "one"}, "spec": {"template": {}}}));
        let job = jobs
            .create(&PostParams::default(), &job)
            .await
            .expect("the Job is created");
        server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "one-x", "namespace": "lp-exporter", "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": "one", "uid": job.metadata.uid, "controller": true},
            ]},
        }));
        let parameters = DeleteParams {
            propagation_policy: policy.clone(),
            ..DeleteParams::default()
        };
        jobs.delete("one", &parameters).await.expect("the Job is deleted");
        assert_eq!(server.objects("pods").len(), pods_left, "{policy:?}");
        let request = server.requests().pop().expect("the deletion was recorded");
        assert_eq!(request.verb, "delete");
        let recorded = request.body["propagationPolicy"].as_str().map(str::to_owned);
        assert_eq!(recorded, policy.map(|policy| format!("{policy:?}")));
    }
}

#[tokio::test]
async fn calls_the_hook_with_a_new_job() {
    let server = ApiServer::start().await;
    server.on_job(|server, job| async move {
        let name = job["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        server.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "lp-exporter"}}));
    });
    let jobs: Api<Job> = Api::namespaced(client(&server), "lp-exporter");
    let job: Job = typed(json!({"metadata": {"name": "one"}, "spec": {"template": {}}}));
    jobs.create(&PostParams::default(), &job)
        .await
        .expect("the Job is created");
    let pod = server.wait_for("pods", "lp-exporter", "one", PATIENCE, |_| true).await;
    assert!(pod.is_some(), "the hook made a pod");
}

#[tokio::test]
async fn answers_as_scripted() {
    let server = ApiServer::start().await;
    server.put(node("node-1"));
    let nodes: Api<Node> = Api::all(client(&server));
    let pods: Api<Pod> = Api::namespaced(client(&server), "lp-exporter");

    server.script(Rule::on("get", "nodes", Answer::Forbid).named("node-1").times(1));
    let (code, _, message) = refused(nodes.get("node-1").await);
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "nodes is forbidden: User \"system:serviceaccount:lp-exporter:lp-exporter\" cannot get resource \"nodes\" in \
         API group \"\" at the cluster scope"
    );
    nodes.get("node-1").await.expect("the rule is used up");

    server.script(Rule::on("get", "nodes", Answer::Cut).times(1));
    let cut = nodes.get("node-1").await.expect_err("the connection breaks");
    assert!(!matches!(cut, kube::Error::Api(_)), "{cut}");

    let busy = Refusal {
        retry_after_seconds: Some(1),
        ..Refusal::new(429, "TooManyRequests", "slow down")
    };
    server.script(
        Rule::on("list", "nodes", Answer::Refuse(busy))
            .delayed(Duration::from_millis(1))
            .times(1),
    );
    let (code, ..) = refused(nodes.list(&ListParams::default()).await);
    assert_eq!(code, 429);

    server.script(Rule::on("list", "nodes", Answer::Raw(200, "no JSON".to_owned())).times(1));
    nodes
        .list(&ListParams::default())
        .await
        .expect_err("the body is not JSON");

    server.script(Rule::on("create", "pods", Answer::CutAfterwards).times(1));
    let pod: Pod = typed(json!({"metadata": {"name": "one"}}));
    pods.create(&PostParams::default(), &pod)
        .await
        .expect_err("the connection breaks");
    assert!(
        server.object("pods", "lp-exporter", "one").is_some(),
        "and yet it was created"
    );

    let role = json!({
        "kind": "Role",
        "rules": [{"apiGroups": [""], "resources": ["pods"], "resourceNames": ["one"], "verbs": ["get"]}],
    });
    server.restrict_to(Right::of_role(&role, "lp-exporter"));
    pods.get("one").await.expect("the right is there");
    let (code, ..) = refused(pods.list(&ListParams::default()).await);
    assert_eq!(code, 403);
}

/// Pushes and what each must be answered with; afterwards everything that can be read.
const PUSHES: [(&str, &str, &str, u16); 13] = [
    (
        "PUT",
        "job/lp/region@base64/ZXUvMQ==",
        "# HELP a_bytes of \"a\" \\\\ and\\nb\n# TYPE a_bytes gauge\na_bytes{node=\"n\",x=\"q\\\"\\\\\\n\"} 3\na_bytes{node=\"m\"} 1.5\n",
        200,
    ),
    (
        "PUT",
        "job/second/node/a%20b",
        "# HELP a_bytes of \"a\" \\\\ and\\nb\n# TYPE a_bytes gauge\na_bytes{node=\"overwritten\"} 7\n",
        200,
    ),
    ("PUT", "job/other", "# TYPE a_bytes counter\na_bytes 1\n", 400),
    ("PUT", "job/unended", "a_bytes 1", 400),
    ("PUT", "job/timestamp", "b 1 12345\n", 400),
    ("PUT", "job/twice", "b 1\nb 2\n", 400),
    ("PUT", "job/untyped", "c 1\n", 200),
    ("POST", "job/untyped", "d{} 2\n", 200),
    ("PUT", "job/empty/node@base64/=", "", 200),
    ("PUT", "job/x/__a/b", "e 1\n", 400),
    ("PUT", "job/x/a", "e 1\n", 400),
    ("PUT", "job/gone", "f 1\n", 200),
    ("DELETE", "job/gone", "", 202),
];

#[tokio::test]
async fn pushgateway_keeps_groups() {
    let stand_in = Pushgateway::start().await;
    let seen = push_all(&stand_in.url()).await;
    for (path, part) in [
        (
            "/metrics",
            "a_bytes{instance=\"\",job=\"lp\",node=\"n\",region=\"eu/1\",x=\"q\\\"\\\\\\n\"} 3\n",
        ),
        ("/metrics", "a_bytes{instance=\"\",job=\"second\",node=\"a b\"} 7\n"),
    ] {
        assert!(
            seen.exposition.contains(part),
            "{path} lacks {part}:\n{}",
            seen.exposition
        );
    }
    assert_eq!(stand_in.value("a_bytes", &[("node", "m")]), Some(1.5));
    assert_eq!(stand_in.group(&[("job", "untyped")]).map(|group| group.pushes), Some(2));
    assert!(stand_in.group(&[("job", "gone")]).is_none());

    stand_in.script("PUT", "job/lp", Fault::Status(503, "not now".to_owned()), Some(1));
    stand_in.script("PUT", "job/lp", Fault::Cut, Some(1));
    let http = reqwest_client();
    let url = format!("{}/metrics/job/lp", stand_in.url());
    let put = async || http.put(&url).send().await?.text().await;
    assert_eq!(put().await.expect("it is answered"), "not now");
    put().await.expect_err("the connection breaks");
    put().await.expect("both faults are used up");
}

/// The stand-in says what the real Pushgateway says, of each generation that is there.
#[tokio::test]
async fn pushgateway_is_like_the_real_one() {
    let stand_in = push_all(&Pushgateway::start().await.url()).await;
    for program in real_pushgateways() {
        let real = RealPushgateway::start(&program).await;
        let seen = push_all(&real.url).await;
        assert_eq!(seen.exposition, stand_in.exposition, "{}", program.display());
        assert_eq!(seen.listing, stand_in.listing, "{}", program.display());
    }
}

/// What can be read of a Pushgateway, without what differs from run to run.
struct Seen {
    exposition: String,
    /// As text, which is easier to compare by eye.
    listing: String,
}

async fn push_all(url: &str) -> Seen {
    let http = reqwest_client();
    for (method, path, body, status) in PUSHES {
        let method = method.parse().expect("it is a method");
        let response = http
            .request(method, format!("{url}/metrics/{path}"))
            .body(body)
            .send()
            .await;
        let response = response.expect("the push is answered");
        let code = response.status().as_u16();
        assert_eq!(code, status, "{path}: {}", response.text().await.unwrap_or_default());
    }
    let read = async |path: &str| {
        let response = http.get(format!("{url}{path}")).send().await.expect("it is answered");
        response.text().await.expect("the body comes")
    };
    let ours = |line: &&str| {
        let of_the_server = ["go_", "process_", "pushgateway_", "promhttp_", "push_"];
        let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        !of_the_server.iter().any(|prefix| name.starts_with(prefix))
    };
    let mut lines: Vec<String> = read("/metrics")
        .await
        .lines()
        .filter(ours)
        .map(|line| format!("{line}\n"))
        .collect();
    lines.sort();
    let mut listing: Value = serde_json::from_str(&read("/api/v1/metrics").await).expect("the listing is JSON");
    let mut groups = listing["data"].take();
    for group in groups.as_array_mut().expect("data is a list") {
        normalize(group);
    }
    groups
        .as_array_mut()
        .expect("data is a list")
        .sort_by_key(|group| group["labels"].to_string());
    Seen {
        exposition: lines.concat(),
        listing: format!("{groups:#}"),
    }
}

/// Times become "some" or "never"; samples are put in order.
fn normalize(group: &mut Value) {
    for (name, family) in group.as_object_mut().expect("a group is an object") {
        let Some(metrics) = family.get_mut("metrics").and_then(Value::as_array_mut) else {
            continue;
        };
        metrics.sort_by_key(Value::to_string);
        if name.starts_with("push_") {
            let value = if metrics[0]["value"] == "0" { "never" } else { "some" };
            metrics[0]["value"] = value.into();
        }
        let fields = family.as_object_mut().expect("a family is an object");
        fields.remove("time_stamp");
        // Left out by the real one when it is empty.
        if fields.get("help").is_some_and(|help| help == "") {
            fields.remove("help");
        }
    }
}

fn reqwest_client() -> reqwest::Client {
    // An error says that another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .build()
        .expect("plain http needs no certificates")
}

/// Every Pushgateway in LP_EXPORTER_TEST_SERVERS, old and new, or else the one on the PATH.
fn real_pushgateways() -> Vec<PathBuf> {
    let name = "prometheus-pushgateway";
    let mut found = Vec::new();
    if let Some(servers) = std::env::var_os("LP_EXPORTER_TEST_SERVERS") {
        let servers = PathBuf::from(servers);
        found.extend(["old", "new"].map(|generation| servers.join(generation).join(name)));
    }
    if found.is_empty() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        found.extend(std::env::split_paths(&path).map(|folder| folder.join(name)));
    }
    found.retain(|program| program.is_file());
    if found.is_empty() {
        let word = "skipped the comparison with a real Pushgateway: put one at \
                    $LP_EXPORTER_TEST_SERVERS/new/prometheus-pushgateway or on the PATH";
        let required = std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
        assert!(!required, "{word}");
        eprintln!("{word}");
    }
    found
}

/// A real Pushgateway on a port of its own, ended when it is dropped.
struct RealPushgateway {
    process: Child,
    url: String,
}

impl RealPushgateway {
    async fn start(program: &PathBuf) -> RealPushgateway {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("the loopback has a free port");
        let process = Command::new(program)
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the Pushgateway starts");
        let real = RealPushgateway {
            process,
            url: format!("http://{address}"),
        };
        let http = reqwest_client();
        for _ in 0..200 {
            if http.get(format!("{}/-/ready", real.url)).send().await.is_ok() {
                return real;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} does not answer on {}", program.display(), real.url);
    }
}

impl Drop for RealPushgateway {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
