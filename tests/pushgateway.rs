//! The Pushgateway's client against real Pushgateways of both generations, and against a server of our own for the
//! faults that a real one cannot be asked for.
//!
//! Real servers are found in the directory `LP_EXPORTER_TEST_SERVERS` (its subdirectories `old` and `new`) or on the
//! PATH. What is missing is skipped with a word to stderr; with `LP_EXPORTER_TEST_REQUIRE_ALL=1` that is a failure.

mod support;

use std::fmt::Debug;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lp_exporter::exposition::{Body, Exposition, Family};
use lp_exporter::owner::Owner;
use lp_exporter::pushgateway::group::{CONTROLLER_JOB, SUCCESS_JOB};
use lp_exporter::pushgateway::{
    Cause, GroupingKey, GroupingLabels, Nodes, Ours, Pushgateway, PushgatewayConfig, groups_to_retire,
};
use lp_exporter::volumes::collect::Collect;
use lp_exporter::volumes::node_plan::{self, Base, NodePlan, PlannedVolume, Run};
use support::real_pushgateway::{Certificates, Server, free_address, plain_config, pushgateways, skip};
use support::tls_server::TlsServer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const USED: Family = Family {
    name: "test_used_bytes",
    help: "Used.",
    labels: &["claim"],
};
const STARTED: Family = Family {
    name: "test_started_seconds",
    help: "Started.",
    labels: &[],
};

const OWNER: Family = Family {
    name: Owner::FAMILY,
    help: "Owner.",
    labels: Owner::LABELS,
};

/// Ample for any server of a test that is to answer.
const BUDGET: Duration = Duration::from_secs(20);

#[tokio::test]
async fn puts_replaces_lists_and_deletes() {
    for binary in pushgateways() {
        let server = Server::start(&binary, &[]).await;
        let pushgateway = client(&server.url());
        let labels = grouping_labels(&["cluster=eu/1 ü", "empty="]);
        let nodes = [
            "n1.example",
            "a/b",
            "",
            "Zürich ☃",
            ".",
            "..",
            "50%2Fx",
            "a+b c",
            "x=y?z#",
            "\"\\\n",
        ];
        let keys: Vec<_> = nodes.iter().map(|node| GroupingKey::for_node(node, &labels)).collect();
        for key in &keys {
            pushgateway
                .put(key, &body(&[("old", 1.0)], Some(5.0)), BUDGET)
                .await
                .expect("a first push");
            pushgateway
                .put(key, &body(&[("a\"b\\c\nd/ü", 0.5)], None), BUDGET)
                .await
                .expect("a second push");
        }

        let groups = pushgateway.groups(BUDGET).await.expect("a list");
        let mut listed: Vec<_> = groups
            .iter()
            .filter_map(|group| GroupingKey::from_labels(&group.labels))
            .collect();
        let mut expected = keys.clone();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        assert!(groups.iter().all(|group| group.push_time_seconds > 1.7e9), "{groups:?}");
        let text = server.metrics().await;
        assert_eq!(text.matches("\ntest_used_bytes{").count(), nodes.len(), "{text}");
        assert_eq!(text.matches(r#"claim="a\"b\\c\nd/ü""#).count(), nodes.len(), "{text}");
        assert_eq!(
            text.matches("test_started_seconds").count(),
            0,
            "what a PUT no longer holds is gone: {text}"
        );
        assert!(text.contains(r#"node="Zürich ☃""#), "{text}");

        let kept = ["a/b".to_owned()].into();
        let ours = Ours {
            grouping_labels: &labels,
            owner: &Owner::default(),
        };
        let nodes = Nodes {
            with_volumes: &kept,
            wanted: &kept,
            kept_since_unix_seconds: 0.0,
        };
        for (key, _) in groups_to_retire(&groups, ours, nodes) {
            pushgateway.delete(&key, BUDGET).await.expect("a deletion");
            pushgateway
                .delete(&key, BUDGET)
                .await
                .expect("a deletion of what is gone");
        }
        let left = pushgateway.groups(BUDGET).await.expect("a list");
        let left: Vec<_> = left
            .iter()
            .filter_map(|group| GroupingKey::from_labels(&group.labels))
            .collect();
        assert_eq!(left, [GroupingKey::for_node("a/b", &labels)]);
    }
}

#[tokio::test]
async fn takes_the_body_of_a_large_node() {
    for binary in pushgateways() {
        let server = Server::start(&binary, &["--push.disable-consistency-check"]).await;
        let mut exposition = Exposition::new();
        exposition.family(
            &USED,
            (0..10_000).map(|number| ([format!("claim-{number}")], f64::from(number))),
        );
        let body = exposition.finish();
        let key = GroupingKey::for_node("n1", &grouping_labels(&[]));
        client(&server.url())
            .put(&key, &body, BUDGET)
            .await
            .expect("a push without check");
        // Without the check the server only queues what is pushed.
        let deadline = Instant::now() + BUDGET;
        while server.metrics().await.matches("test_used_bytes{").count() != 10_000 {
            assert!(Instant::now() < deadline, "10,000 samples never appeared");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn shows_why_a_server_refuses() {
    // A summary of the server's own: the same name as a gauge is inconsistent.
    const TAKEN: Family = Family {
        name: "go_gc_duration_seconds",
        help: "Taken.",
        labels: &[],
    };
    for binary in pushgateways() {
        let server = Server::start(&binary, &[]).await;
        let pushgateway = client(&server.url());
        let mut exposition = Exposition::new();
        exposition.value(&TAKEN, 1.0);
        let key = GroupingKey::for_node("n1", &grouping_labels(&[]));
        let error = pushgateway
            .put(&key, &exposition.finish(), BUDGET)
            .await
            .expect_err("an inconsistent push");
        assert_eq!(error.tries, 1);
        assert!(matches!(error.cause, Cause::Refused { status: 400, .. }), "{error:?}");
        for part in [
            "PUT http://127.0.0.1:",
            "/metrics/job/lp-exporter-job/node/n1 failed after 1 try",
            "inconsistent",
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let groups = pushgateway.groups(BUDGET).await.expect("a list");
        let times: Vec<f64> = groups.iter().map(|group| group.push_time_seconds).collect();
        assert_eq!(times, [0.0], "a refused first push leaves a group without a push");
    }
}

#[tokio::test]
async fn reaches_a_server_with_a_prefix_and_by_ipv6() {
    for binary in pushgateways() {
        let prefixed = Server::start(&binary, &["--web.route-prefix=/push/gw"]).await;
        for path in ["/push/gw", "/push/gw/"] {
            check_reaches(&format!("http://{}{path}", prefixed.address)).await;
        }
        let error = client(&prefixed.url())
            .groups(BUDGET)
            .await
            .expect_err("without the prefix");
        assert!(matches!(error.cause, Cause::Refused { status: 404, .. }), "{error}");
        assert!(error.to_string().contains("with its route prefix"), "{error}");

        let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
            skip("a test of IPv6", "this machine has no IPv6 loopback");
            continue;
        };
        let address = listener.local_addr().expect("a bound address");
        drop(listener);
        let server = Server::start_at(&binary, address, &[]).await;
        check_reaches(&server.url()).await;
    }
}

async fn check_reaches(url: &str) {
    let pushgateway = client(url);
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    pushgateway
        .put(&key, &body(&[("a", 1.0)], None), BUDGET)
        .await
        .expect("a push");
    assert_eq!(pushgateway.groups(BUDGET).await.expect("a list").len(), 1, "{url}");
    pushgateway.delete(&key, BUDGET).await.expect("a deletion");
    assert_eq!(pushgateway.groups(BUDGET).await.expect("a list").len(), 0, "{url}");
}

#[tokio::test]
async fn speaks_tls_with_a_ca_of_our_own() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    for binary in pushgateways() {
        let config = certificates.web_config();
        let server = Server::start(&binary, &[&format!("--web.config.file={}", config.display())]).await;
        let port = server.address.port();
        check_tls(&certificates, port, "ca.pem", "https://exporter:test@localhost", Ok(())).await;
        check_tls(&certificates, port, "ca.pem", "https://exporter:test@127.0.0.1", Ok(())).await;
        check_tls(
            &certificates,
            port,
            "other.pem",
            "https://exporter:test@localhost",
            Err("UnknownIssuer"),
        )
        .await;
        check_tls(
            &certificates,
            port,
            "ca.pem",
            "https://exporter:test@[::ffff:127.0.0.1]",
            Err("not valid for name"),
        )
        .await;
        check_tls(
            &certificates,
            port,
            "ca.pem",
            "https://exporter:wrong@localhost",
            Err("status 401"),
        )
        .await;
        check_tls(
            &certificates,
            port,
            "ca.pem",
            "https://localhost",
            Err("check the user and the password"),
        )
        .await;
        check_tls(
            &certificates,
            port,
            "ca.pem",
            "http://localhost",
            Err("HTTP request to an HTTPS server"),
        )
        .await;
    }
}

/// In an image that holds nothing but the program: no CA certificates, no /etc, no /proc.
#[tokio::test]
async fn the_static_program_pushes_from_an_empty_root() {
    let Some(program) = std::env::var_os("LP_EXPORTER_TEST_STATIC_BINARY") else {
        skip(
            "the static program",
            "LP_EXPORTER_TEST_STATIC_BINARY names none; `make dist` makes it",
        );
        return;
    };
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let Some(binary) = pushgateways().pop() else {
        return;
    };
    let root = TempDir::new().expect("a temporary directory");
    let put = |from: &Path, name: &str| std::fs::copy(from, root.path().join(name)).expect("a copy");
    put(Path::new(&program), "lp-exporter");
    put(&certificates.path("ca.pem"), "ca.pem");
    std::fs::create_dir_all(root.path().join("base/volume")).expect("a directory");
    std::fs::write(root.path().join("base/volume/file"), [1; 5000]).expect("a file");
    let plan = NodePlan {
        version: node_plan::VERSION,
        run: Run {
            id: "run".to_owned(),
            started_unix_seconds: 1.0,
            owner: lp_exporter::owner::Owner::default(),
        },
        node: "node-1".to_owned(),
        budget_seconds: 20.0,
        bases: vec![Base {
            path: "/data".to_owned(),
            mounted_at: Some("/base".to_owned()),
        }],
        volumes: vec![PlannedVolume {
            persistentvolume: "pv".to_owned(),
            namespace: None,
            persistentvolumeclaim: None,
            storageclass: String::new(),
            path: "/data/volume".to_owned(),
            base: 0,
            left_alone: false,
            capacity_bytes: 1,
        }],
        other_base_paths: Vec::new(),
        known_paths: Vec::new(),
        known_devices: Vec::new(),
        collect: Collect::everything(),
        orphan_age_seconds: 600.0,
    };
    std::fs::write(root.path().join("plan"), plan.encode().expect("a small plan")).expect("a file");

    let plain = Server::start(&binary, &[]).await;
    let config = certificates.web_config();
    let tls = Server::start(&binary, &[&format!("--web.config.file={}", config.display())]).await;
    check_empty_root(
        root.path(),
        &format!("http://127.0.0.1:{}", plain.address.port()),
        &[],
        0,
        "",
    );
    let https = format!("https://exporter:test@127.0.0.1:{}", tls.address.port());
    check_empty_root(root.path(), &https, &["--pushgateway-ca-file=/ca.pem"], 0, "");
    check_empty_root(
        root.path(),
        &https,
        &[],
        2,
        "there are no CA certificates on this system",
    );
}

fn check_empty_root(root: &Path, url: &str, more: &[&str], exit_code: i32, expected: &str) {
    let is_root = rustix::process::geteuid().is_root();
    let mut command = Command::new(if is_root { "chroot" } else { "unshare" });
    if !is_root {
        command.args(["--map-root-user", "chroot"]);
    }
    let arguments = [
        "worker",
        "--plan=/plan",
        "--start-delay-max=0s",
        "--pushgateway-url",
        url,
    ];
    let output = command
        .arg(root)
        .arg("/lp-exporter")
        .args(arguments)
        .args(more)
        .env_clear();
    let output = output
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("chroot is a program of every system");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{url} {more:?}: {said}");
    assert!(said.contains(expected), "{url} {more:?}: {said}");
    assert_eq!(
        said.contains("\"delivered\":true"),
        exit_code == 0,
        "{url} {more:?}: {said}"
    );
}

async fn check_tls(certificates: &Certificates, port: u16, ca: &str, url: &str, expected: Result<(), &str>) {
    let url = format!("{url}:{port}");
    let ca_file = Some(certificates.path(ca));
    let config = PushgatewayConfig {
        ca_file,
        ..config(&url)
    };
    let pushgateway = Pushgateway::new(config).expect("a client");
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    let pushed = pushgateway.put(&key, &body(&[("a", 1.0)], None), BUDGET).await;
    if let Err(error) = &pushed {
        assert_eq!(error.tries, 1, "{url}: {error}");
    }
    check_outcome(&format!("{url} with {ca}"), pushed, expected);
}

/// User and password from files, on a real server; the URL is the same for whoever has none.
#[tokio::test]
async fn says_who_it_is_by_files() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let path = |name: &str, contents: &str| {
        std::fs::write(certificates.path(name), contents).expect("a file");
        Some(certificates.path(name))
    };
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    for binary in pushgateways() {
        let web_config = format!("--web.config.file={}", certificates.web_config().display());
        let server = Server::start(&binary, &[&web_config]).await;
        let url = format!("https://localhost:{}", server.address.port());
        let with = |password: &str| PushgatewayConfig {
            ca_file: Some(certificates.path("ca.pem")),
            username_file: path("user", "exporter\n"),
            password_file: path("password", password),
            ..config(&url)
        };
        let pushgateway = Pushgateway::new(with("test\n")).expect("a client");
        let pushed = pushgateway.put(&key, &body(&[], Some(1.0)), BUDGET).await;
        check_outcome("the right password", pushed, Ok(()));
        assert_eq!(pushgateway.groups(BUDGET).await.expect("a list").len(), 1);

        // The same client, after the Secret was changed: at first to what is wrong, then back.
        path("password", "wrong");
        let refused = pushgateway.groups(BUDGET).await.map(|_| ());
        check_outcome("a wrong password", refused, Err("status 401"));
        let mended = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            path("password", "test");
        };
        path("password", "");
        let (listed, ()) = tokio::join!(pushgateway.groups(BUDGET), mended);
        check_outcome("a file that is just being written", listed.map(|_| ()), Ok(()));
        path("password", "");
        let unknown = pushgateway.groups(Duration::from_millis(500)).await.map(|_| ());
        check_outcome("an empty file", unknown, Err("password\": it is empty"));
        let refused = Pushgateway::new(with("")).map(|_| ());
        check_outcome("an empty file at the start", refused, Err("PASSWORD_FILE"));
    }
}

/// A token that is rotated between two tries.
#[tokio::test]
async fn bears_the_token_of_the_moment() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let file = certificates.path("token");
    std::fs::write(&file, "old-marker\n").expect("a file");
    let rotated = file.clone();
    let mut seen = 0;
    let server = TlsServer::start(&certificates, false, move |head| {
        seen += 1;
        match (seen, head.contains("authorization: Bearer old-marker\r\n")) {
            (1, true) => {
                std::fs::write(&rotated, "new-marker\n").expect("a file");
                503
            }
            _ if head.contains("authorization: Bearer new-marker\r\n") => 200,
            _ => 401,
        }
    });
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    let config = PushgatewayConfig {
        ca_file: Some(certificates.path("ca.pem")),
        bearer_token_file: Some(file.clone()),
        ..config(&server.url())
    };
    let pushgateway = Pushgateway::new(config).expect("a client");
    let pushed = pushgateway.put(&key, &body(&[], Some(1.0)), BUDGET).await;
    check_outcome("a token that was rotated", pushed, Ok(()));
    assert_eq!(server.connections(), 2);

    // The server's reply repeats the request, and with it the token.
    std::fs::write(&file, "wrong-marker").expect("a file");
    let error = pushgateway.put(&key, &body(&[], Some(1.0)), BUDGET).await;
    let error = error.expect_err("a wrong token");
    assert_eq!(error.tries, 1);
    assert!(!format!("{error}{error:?}").contains("marker"), "{error}");
    assert!(
        error
            .to_string()
            .contains("status 401: what it says holds our own password or token"),
        "{error}"
    );
}

#[tokio::test]
async fn shows_a_certificate_of_its_own() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let server = TlsServer::start(&certificates, true, |_| 200);
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    let with = |certificate: Option<&str>, private_key: Option<&str>| PushgatewayConfig {
        ca_file: Some(certificates.path("ca.pem")),
        client_certificate_file: certificate.map(|name| certificates.path(name)),
        client_key_file: private_key.map(|name| certificates.path(name)),
        ..config(&server.url())
    };
    for (certificate, private_key, expected) in [
        (Some("client.pem"), Some("server.key"), Ok(())),
        (
            None,
            None,
            Err("does not trust us: it answers with the alert CertificateRequired"),
        ),
        (
            Some("expired.pem"),
            Some("server.key"),
            Err("does not trust us: it answers with the alert CertificateExpired"),
        ),
        (
            Some("other.pem"),
            Some("other.key"),
            Err("does not trust us: it answers with the alert CertificateUnknown"),
        ),
    ] {
        let pushgateway = Pushgateway::new(with(certificate, private_key)).expect("a client");
        let pushed = pushgateway.put(&key, &body(&[], Some(1.0)), BUDGET).await;
        check_outcome(&format!("{certificate:?}"), pushed, expected);
    }
    std::fs::write(certificates.path("no.key"), "marker").expect("a file");
    for (certificate, private_key, expected) in [
        (Some("client.pem"), None, "CLIENT_CERTIFICATE_FILE is set without"),
        (None, Some("server.key"), "CLIENT_KEY_FILE is set without"),
        (Some("client.pem"), Some("ca.key"), "is not the key of the certificate"),
        (Some("server.key"), Some("server.key"), "holds no certificate in PEM"),
        (Some("client.pem"), Some("no.key"), "no.key\" holds no key in PEM"),
        (
            Some("nowhere.pem"),
            Some("server.key"),
            "nowhere.pem\" cannot be read: No such file",
        ),
    ] {
        let made = Pushgateway::new(with(certificate, private_key)).map(|_| ());
        let case = format!("{certificate:?} {private_key:?}");
        check_outcome(&case, made, Err(expected));
    }
    let plain = PushgatewayConfig {
        url: "http://localhost".to_owned(),
        ..with(Some("client.pem"), Some("server.key"))
    };
    check_outcome("no TLS", Pushgateway::new(plain).map(|_| ()), Err("is no https URL"));
}

/// The certificate may be replaced while the client lives.
#[tokio::test]
async fn shows_the_certificate_of_the_moment() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let server = TlsServer::start(&certificates, true, |_| 200);
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    let file = certificates.path("rotated.pem");
    let use_certificate = |name: &str| std::fs::copy(certificates.path(name), &file).expect("a copy");
    use_certificate("expired.pem");
    let config = PushgatewayConfig {
        ca_file: Some(certificates.path("ca.pem")),
        client_certificate_file: Some(file.clone()),
        client_key_file: Some(certificates.path("server.key")),
        ..config(&server.url())
    };
    let pushgateway = Pushgateway::new(config).expect("a client");
    let push = async || pushgateway.put(&key, &body(&[], Some(1.0)), BUDGET).await;
    check_outcome("expired", push().await, Err("CertificateExpired"));
    use_certificate("client.pem");
    check_outcome("renewed", push().await, Ok(()));
    // Not the key's: the one from before is shown.
    use_certificate("other.pem");
    check_outcome("half replaced", push().await, Ok(()));
}

#[tokio::test]
async fn checks_the_name_that_it_is_given() {
    let Some(certificates) = Certificates::make() else {
        return;
    };
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    for binary in pushgateways() {
        for (certificate, name, expected) in [
            ("misnamed", Some("pushgateway.example"), Ok(())),
            ("misnamed", None, Err("not valid for name \"localhost\"")),
            (
                "server",
                Some("pushgateway.example"),
                Err("not valid for name \"pushgateway.example\""),
            ),
            ("expired", None, Err("invalid peer certificate: Expired; renew it")),
        ] {
            let web_config = format!(
                "--web.config.file={}",
                certificates.web_config_with(certificate).display()
            );
            let server = Server::start(&binary, &[&web_config]).await;
            let url = format!("https://exporter:test@localhost:{}", server.address.port());
            let config = PushgatewayConfig {
                ca_file: Some(certificates.path("ca.pem")),
                server_name: name.map(str::to_owned),
                ..config(&url)
            };
            let pushgateway = Pushgateway::new(config).expect("a client");
            let pushed = pushgateway.put(&key, &body(&[], Some(1.0)), BUDGET).await;
            check_outcome(&format!("{certificate} for {name:?}"), pushed, expected);
        }
    }
    for (url, name, expected) in [
        ("https://localhost", "no name", "neither a host's name nor an address"),
        ("http://localhost", "localhost", "is no https URL"),
    ] {
        let config = PushgatewayConfig {
            ca_file: Some(certificates.path("ca.pem")),
            server_name: Some(name.to_owned()),
            ..config(url)
        };
        check_outcome(name, Pushgateway::new(config).map(|_| ()), Err(expected));
    }
}

#[test]
fn refuses_what_it_cannot_use() {
    let directory = TempDir::new().expect("a temporary directory");
    let not_pem = directory.path().join("not.pem");
    let broken = directory.path().join("broken.pem");
    std::fs::write(&not_pem, "marker").expect("a file");
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\nbWFya2Vy\n-----END CERTIFICATE-----\n",
    )
    .expect("a file");

    check_config("", None, Err("set LP_EXPORTER_PUSHGATEWAY_URL"));
    check_config("pushgateway:9091", None, Err("neither http:// nor https://"));
    check_config("ftp://marker:marker@host", None, Err("neither http:// nor https://"));
    check_config("http://marker:marker@host:99999", None, Err("invalid port number"));
    check_config("http://marker:marker@", None, Err("empty host"));
    check_config("http://host/?token=marker", None, Err("query"));
    // It would be taken for a host, a port and a path, and shown.
    check_config("http://user:12/marker@host:9091", None, Err("percent-encoded"));
    check_config("http://user:12\\marker@host:9091", None, Err("percent-encoded"));
    check_config("http://user:marker/x@host:9091", None, Err("percent-encoded"));
    check_config("http://host/#marker", None, Err("fragment"));
    check_config("http://marker:marker@host/prefix", None, Ok(()));
    check_config("https://host", Some(Path::new("/nowhere/ca.pem")), Err("No such file"));
    check_config("https://host", Some(&not_pem), Err("it holds no certificate"));
    check_config("https://host", Some(&broken), Err("BadEncoding"));
    check_config("http://host", Some(&not_pem), Err("it holds no certificate"));
}

fn check_config(url: &str, ca_file: Option<&Path>, expected: Result<(), &str>) {
    let ca_file = ca_file.map(Path::to_owned);
    let config = PushgatewayConfig { ca_file, ..config(url) };
    let made = Pushgateway::new(config);
    assert!(!format!("{made:?}").contains("marker"), "{url}: {made:?}");
    check_outcome(url, made.map(|_| ()), expected);
}

/// What a faulty server does with one connection.
#[derive(Debug, Clone)]
enum Act {
    /// Answers with this, and closes.
    Reply(String),
    /// Closes after the request.
    Close,
    /// Keeps the connection and is silent.
    Hang,
    /// Answers with this, and then with the letter x for ever.
    Endless(&'static str),
}

fn reply(status: u16, headers: &str, body: &str) -> Act {
    let length = body.len();
    Act::Reply(format!(
        "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    ))
}

/// Which of the client's requests is made.
#[derive(Debug, Clone, Copy)]
enum Call {
    Put,
    Delete,
    List,
}

impl Call {
    fn method(self) -> &'static str {
        match self {
            Call::Put => "PUT ",
            Call::Delete => "DELETE ",
            Call::List => "GET ",
        }
    }
}

#[tokio::test]
async fn tries_again_what_may_pass() {
    let ok = reply(200, "", "");
    let list = reply(200, "", r#"{"status":"success","data":[]}"#);
    let cut = Act::Reply("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"status\":\"succ".to_owned());
    for status in [408, 429, 500, 502, 503, 504] {
        check_calls(Call::Put, &[reply(status, "", "wait"), ok.clone()], Ok(()), 2).await;
    }
    check_calls(Call::Put, &[Act::Close, ok.clone()], Ok(()), 2).await;
    check_calls(Call::Put, &[Act::Hang, ok.clone()], Ok(()), 2).await;
    check_calls(
        Call::Put,
        &[Act::Close, Act::Hang, reply(503, "", ""), reply(202, "", "")],
        Ok(()),
        4,
    )
    .await;
    check_calls(Call::Delete, &[Act::Close, reply(202, "", "")], Ok(()), 2).await;
    check_calls(Call::List, &[cut, list.clone()], Ok(()), 2).await;
    let half = reply(200, "", r#"{"status":"success","data":[{"labels":{"#);
    check_calls(Call::List, &[half, list], Ok(()), 2).await;
    check_calls(Call::Put, &vec![Act::Close; 20], Err("cannot be reached"), 0).await;
    check_calls(Call::Put, &vec![Act::Hang; 20], Err("no reply within"), 0).await;
    check_calls(
        Call::Put,
        &vec![reply(503, "", "no disk"); 20],
        Err("status 503: no disk"),
        0,
    )
    .await;
}

#[tokio::test]
async fn gives_up_at_once_on_what_will_not_pass() {
    for (status, hint) in [
        (400, "LP_EXPORTER_GROUPING_LABELS"),
        (401, "check the user and the password"),
        (403, "check the user and the password"),
        (404, "with its route prefix"),
        (405, "with its route prefix"),
        (413, "raise the limit on bodies"),
        (204, "with its route prefix"),
    ] {
        for call in [Call::Put, Call::Delete, Call::List] {
            check_calls(call, &[reply(status, "", "")], Err(hint), 1).await;
        }
    }
    check_calls(
        Call::Put,
        &[reply(400, "", "no\n\u{1b}[31m such\tthing ")],
        Err("400: no [31m such thing;"),
        1,
    )
    .await;
    check_calls(Call::Put, &[reply(400, "", &"ü".repeat(5_000))], Err("ü..."), 1).await;
    check_calls(Call::Put, &[Act::Endless("HTTP/1.1 400 Bad\r\n\r\n")], Err("xx..."), 1).await;
    check_calls(
        Call::List,
        &[reply(200, "", "<html>")],
        Err("not one of a Pushgateway"),
        1,
    )
    .await;
    check_calls(
        Call::List,
        &[Act::Endless("HTTP/1.1 200 OK\r\n\r\n")],
        Err("not one of a Pushgateway"),
        1,
    )
    .await;
}

#[tokio::test]
async fn follows_redirects_only_within_the_server() {
    // Whatever it says, the method and the body stay: a GET in the place of a PUT would look like a push that was taken.
    for status in [301, 302, 307, 308] {
        for call in [Call::Put, Call::Delete] {
            let acts = [reply(status, "Location: /else\r\n", ""), reply(200, "", "")];
            check_calls(call, &acts, Ok(()), 2).await;
        }
    }
    let elsewhere = reply(307, "Location: http://marker:marker@127.0.0.2:9/x?marker\r\n", "");
    check_calls(Call::Put, &[elsewhere], Err("points to http://127.0.0.2:9/x,"), 1).await;
    let upgraded = reply(301, "Location: https://127.0.0.1/x\r\n", "");
    check_calls(Call::Put, &[upgraded], Err("points to https://127.0.0.1/x,"), 1).await;
    check_calls(
        Call::Put,
        &[reply(303, "Location: /else\r\n", "")],
        Err("status 303"),
        1,
    )
    .await;
    check_calls(
        Call::Put,
        &vec![reply(307, "Location: /else\r\n", ""); 20],
        Err("status 307"),
        4,
    )
    .await;
}

#[tokio::test]
async fn waits_as_long_as_it_is_told_to_within_bounds() {
    let begin = Instant::now();
    check_calls(
        Call::Put,
        &[reply(429, "Retry-After: 1\r\n", ""), reply(200, "", "")],
        Ok(()),
        2,
    )
    .await;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let begin = Instant::now();
    check_calls(
        Call::Put,
        &[reply(429, "Retry-After: 86400\r\n", "")],
        Err("status 429"),
        1,
    )
    .await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "no use in waiting longer than the budget"
    );
    check_calls(
        Call::Put,
        &[reply(503, "Retry-After: soon\r\n", ""), reply(200, "", "")],
        Ok(()),
        2,
    )
    .await;
}

/// Makes `call` to a server that acts like `acts`, one for each connection, and expects so many connections (0: more
/// than one) and this outcome, in time. User and password must arrive, and must not be told.
async fn check_calls(call: Call, acts: &[Act], expected: Result<(), &str>, connections: usize) {
    const CALL_BUDGET: Duration = Duration::from_secs(3);
    let case = format!("{call:?} against {acts:?}");
    let server = FaultyServer::start(acts).await;
    let url = format!("http://marker%2Fuser:marker%40word@{}", server.address);
    let config = PushgatewayConfig {
        request_timeout: Duration::from_millis(300),
        ..config(&url)
    };
    let pushgateway = Pushgateway::new(config).expect("a client");
    let key = GroupingKey::new(SUCCESS_JOB, &grouping_labels(&[]));
    let begin = Instant::now();
    let outcome = match call {
        Call::Put => pushgateway.put(&key, &body(&[], Some(1.0)), CALL_BUDGET).await,
        Call::Delete => pushgateway.delete(&key, CALL_BUDGET).await,
        Call::List => pushgateway.groups(CALL_BUDGET).await.map(|_| ()),
    };
    assert!(
        begin.elapsed() < CALL_BUDGET + Duration::from_secs(1),
        "{case}: {:?}",
        begin.elapsed()
    );
    let requests = server.requests();
    match connections {
        0 => assert!(requests.len() > 1, "{case}: {}", requests.len()),
        _ => assert_eq!(requests.len(), connections, "{case}"),
    }
    let length = |request: &str| {
        request
            .lines()
            .find(|line| line.starts_with("content-length: "))
            .map(str::to_owned)
    };
    let sent = requests.first().map(|request| length(request));
    for request in requests {
        assert!(request.starts_with(call.method()), "{case}: {request}");
        assert_eq!(Some(length(&request)), sent, "{case}: {request}");
        assert!(
            request.contains("authorization: Basic bWFya2VyL3VzZXI6bWFya2VyQHdvcmQ="),
            "{case}: {request}"
        );
    }
    if let Err(error) = &outcome {
        assert!(error.to_string().len() < 1_500, "{case}: {error}");
        assert!(!format!("{error}{error:?}").contains("marker"), "{case}: {error}");
    }
    check_outcome(&case, outcome, expected);
}

#[tokio::test]
async fn uses_its_budget_when_nobody_listens() {
    let address = free_address();
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    let pushgateway = client(&format!("http://{address}"));
    let begin = Instant::now();
    let error = pushgateway
        .put(&key, &body(&[], None), Duration::from_secs(1))
        .await
        .expect_err("nobody listens");
    assert!(
        matches!(&error.cause, Cause::Unreachable { why } if why.contains("refused")),
        "{error:?}"
    );
    assert!(error.tries >= 2 && begin.elapsed() <= Duration::from_secs(2), "{error}");
    let error = pushgateway.groups(Duration::ZERO).await.expect_err("no time at all");
    assert_eq!(error.tries, 1);

    let error = client("http://pushgateway.invalid:9091")
        .groups(Duration::ZERO)
        .await
        .expect_err("no such host");
    assert!(matches!(error.cause, Cause::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn reaches_a_server_that_starts_late() {
    let address = free_address();
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        FaultyServer::start_at(address, &[reply(200, "", "")]).await
    });
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    let pushgateway = client(&format!("http://{address}"));
    // In a task of its own, which may move between threads.
    let push = tokio::spawn(async move { pushgateway.put(&key, &body(&[], None), BUDGET).await });
    push.await.expect("a task that ends").expect("a push in the end");
    assert_eq!(late.await.expect("a server").requests().len(), 1);
}

#[tokio::test]
async fn keeps_secrets_out_of_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let server = FaultyServer::start(&[Act::Close, reply(500, "", ""), reply(401, "", "who are you")]).await;
    let pushgateway = client(&format!("http://marker:secretmarker@{}", server.address));
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    pushgateway
        .put(&key, &body(&[], None), BUDGET)
        .await
        .expect_err("401 in the end");
    drop(guard);
    let text = log.text();
    assert_eq!(text.matches("trying again").count(), 2, "{text}");
    assert!(
        text.contains(&format!("url=http://{}/metrics/job/lp-exporter", server.address)),
        "{text}"
    );
    // bWFya2Vy is marker in base64.
    assert!(!text.contains("marker") && !text.contains("bWFya2Vy"), "{text}");
}

/// Set for the process of a test that runs once more, by itself: to where its server listens.
const CHILD_SERVER: &str = "LP_EXPORTER_TEST_CHILD_SERVER";

#[tokio::test]
async fn goes_through_a_proxy() {
    if std::env::var_os(CHILD_SERVER).is_some() {
        let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
        let pushgateway = client("http://user:word@pushgateway.invalid:9091/prefix");
        return pushgateway
            .put(&key, &body(&[], Some(1.0)), BUDGET)
            .await
            .expect("a push through the proxy");
    }
    let proxy = FaultyServer::start(&[reply(200, "", "")]).await;
    let url = format!("http://proxyuser:proxyword@{}", proxy.address);
    run_alone(
        "goes_through_a_proxy",
        proxy.address,
        &[("HTTP_PROXY", &url), ("NO_PROXY", "")],
    )
    .await;
    let requests = proxy.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].starts_with("PUT http://pushgateway.invalid:9091/prefix/metrics/job/lp-exporter HTTP/1.1\r\n"));
    assert!(
        requests[0].contains("proxy-authorization: Basic cHJveHl1c2VyOnByb3h5d29yZA=="),
        "{}",
        requests[0]
    );
}

/// A proxy that asks for another password, and none at all.
#[tokio::test]
async fn keeps_the_password_of_a_proxy() {
    if std::env::var_os(CHILD_SERVER).is_some() {
        let certificates = Certificates::make().expect("the parent has made some");
        for (url, expected) in [
            ("http://pushgateway.invalid:9091", "password of the proxy"),
            ("https://pushgateway.invalid:9091", "cannot be reached"),
        ] {
            let config = PushgatewayConfig {
                ca_file: Some(certificates.path("ca.pem")),
                ..config(url)
            };
            let pushgateway = Pushgateway::new(config).expect("a client");
            let error = pushgateway.groups(Duration::from_secs(1)).await.map(|_| ());
            let told = format!("{error:?} {}", error.as_ref().expect_err("no password is right"));
            assert!(!told.contains("marker") && !told.contains("bWFya2Vy"), "{told}");
            assert!(told.contains("through the proxy http://127.0.0.1"), "{told}");
            check_outcome(url, error, Err(expected));
        }
        return;
    }
    if Certificates::make().is_none() {
        return;
    }
    // It repeats what it was sent.
    let refused = reply(407, "", "not by Basic bWFya2VyOm1hcmtlcg==");
    let proxy = FaultyServer::start(&vec![refused; 20]).await;
    let url = format!("http://marker:marker@{}", proxy.address);
    let variables = [("HTTP_PROXY", url.as_str()), ("HTTPS_PROXY", &url), ("NO_PROXY", "")];
    run_alone("keeps_the_password_of_a_proxy", proxy.address, &variables).await;
    let requests = proxy.requests();
    assert!(
        requests[0].starts_with("GET ") && requests[1].starts_with("CONNECT "),
        "{requests:?}"
    );
}

#[tokio::test]
async fn lists_the_groups_of_a_full_server_in_little_memory() {
    const GROUPS: usize = 200;
    if let Some(address) = std::env::var_os(CHILD_SERVER) {
        let pushgateway = client(&format!("http://{}", address.to_string_lossy()));
        let before_kib = peak_memory_kib();
        assert_eq!(pushgateway.groups(BUDGET).await.expect("a list").len(), GROUPS);
        let grown_kib = peak_memory_kib() - before_kib;
        assert!(grown_kib < 8 << 10, "{grown_kib} KiB for a list of 20 MB");
        return;
    }
    let sample = r#"{"labels":{"persistentvolume":"pvc-0123456789","namespace":"data"},"value":"1"},"#.repeat(1_250);
    let groups: Vec<String> = (0..GROUPS)
        .map(|number| {
            let metric = format!(r#"{{"type":"GAUGE","metrics":[{}]}}"#, sample.trim_end_matches(','));
            format!(r#"{{"labels":{{"job":"j","node":"{number}"}},"last_push_successful":true,"used":{metric}}}"#)
        })
        .collect();
    let list = format!(r#"{{"status":"success","data":[{}]}}"#, groups.join(","));
    assert!(list.len() > 20_000_000);
    let server = FaultyServer::start(&[reply(200, "", &list)]).await;
    run_alone(
        "lists_the_groups_of_a_full_server_in_little_memory",
        server.address,
        &[],
    )
    .await;
}

#[tokio::test]
async fn needs_certificates_only_for_tls() {
    if let Some(address) = std::env::var_os(CHILD_SERVER) {
        check_config("https://host", None, Err("there are no CA certificates on this system"));
        return check_reaches_once(&format!("http://{}", address.to_string_lossy())).await;
    }
    let server = FaultyServer::start(&[reply(200, "", "")]).await;
    let variables = [("SSL_CERT_FILE", "/nowhere/ca.pem"), ("SSL_CERT_DIR", "/nowhere")];
    run_alone("needs_certificates_only_for_tls", server.address, &variables).await;
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn trusts_the_certificates_of_the_system() {
    if let Some(address) = std::env::var_os(CHILD_SERVER) {
        return check_reaches_once(&format!("https://exporter:test@{}", address.to_string_lossy())).await;
    }
    let Some(certificates) = Certificates::make() else {
        return;
    };
    for binary in pushgateways() {
        let config = certificates.web_config();
        let server = Server::start(&binary, &[&format!("--web.config.file={}", config.display())]).await;
        let ca = certificates.path("ca.pem");
        let variables = [("SSL_CERT_FILE", ca.to_str().expect("a path in UTF-8"))];
        run_alone("trusts_the_certificates_of_the_system", server.address, &variables).await;
    }
}

async fn check_reaches_once(url: &str) {
    let key = GroupingKey::new(CONTROLLER_JOB, &grouping_labels(&[]));
    client(url)
        .put(&key, &body(&[], Some(1.0)), BUDGET)
        .await
        .expect("a push");
}

/// Runs one test of this file in a process of its own, with these variables.
async fn run_alone(test: &str, server: SocketAddr, variables: &[(&str, &str)]) {
    let output = tokio::process::Command::new(std::env::current_exe().expect("our own path"))
        .args(["--exact", test])
        .env(CHILD_SERVER, server.to_string())
        .envs(variables.iter().copied())
        .output()
        .await
        .expect("a process of our own program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// The most memory that this process ever had resident.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn check_outcome<Failure: std::fmt::Display + Debug>(
    case: &str,
    outcome: Result<(), Failure>,
    expected: Result<(), &str>,
) {
    match (outcome, expected) {
        (Ok(()), Ok(())) => {}
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{case}: {error}, not {part}"),
        (outcome, expected) => panic!("{case}: {outcome:?}, not {expected:?}"),
    }
}

fn client(url: &str) -> Pushgateway {
    Pushgateway::new(config(url)).expect("a client")
}

/// How a server is reached that wants nothing but its URL.
fn config(url: &str) -> PushgatewayConfig {
    PushgatewayConfig {
        request_timeout: Duration::from_secs(10),
        ..plain_config(url, BUDGET)
    }
}

fn grouping_labels(pairs: &[&str]) -> GroupingLabels {
    let labels = pairs.iter().map(|pair| pair.parse().expect("a label of the test"));
    GroupingLabels::new(labels, []).expect("labels of the test")
}

fn body(used: &[(&str, f64)], started_seconds: Option<f64>) -> Body {
    let mut exposition = Exposition::new();
    exposition.family(&USED, used.iter().map(|(claim, bytes)| ([*claim], *bytes)));
    if let Some(started_seconds) = started_seconds {
        exposition.value(&STARTED, started_seconds);
    }
    // Nobody in particular's.
    exposition.family(&OWNER, [(["", ""], 1.0)]);
    exposition.finish()
}

/// A server that reads requests and acts by a script.
struct FaultyServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl FaultyServer {
    async fn start(acts: &[Act]) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), acts).await
    }

    async fn start_at(address: SocketAddr, acts: &[Act]) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("a bound address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(serve(listener, acts.to_vec(), Arc::clone(&requests)));
        Self {
            address,
            requests,
            task,
        }
    }

    /// The heads of the requests so far.
    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no poison").clone()
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acts: Vec<Act>, requests: Arc<Mutex<Vec<String>>>) {
    let mut hanging = Vec::new();
    for act in acts {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let head = read_request(&mut stream).await.expect("a request");
        requests.lock().expect("no poison").push(head);
        match act {
            Act::Reply(text) => stream.write_all(text.as_bytes()).await.expect("a client that reads"),
            Act::Close => {}
            Act::Hang => hanging.push(stream),
            Act::Endless(head) => {
                stream.write_all(head.as_bytes()).await.expect("a client that reads");
                // Until the client has enough.
                while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
            }
        }
    }
}

/// Reads a request to its end, and returns its head.
async fn read_request(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(head)
}

/// A log in memory.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no poison")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no poison").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
