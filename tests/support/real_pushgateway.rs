//! Real Pushgateways, and certificates for them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lp_exporter::pushgateway::PushgatewayConfig;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Ample for a server that starts.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// The Pushgateways that can be found: of both generations, or one on the PATH.
pub fn pushgateways() -> Vec<PathBuf> {
    let names = ["prometheus-pushgateway", "pushgateway"];
    let program = |directory: &Path| {
        names
            .iter()
            .map(|name| directory.join(name))
            .find(|path| path.is_file())
    };
    if let Some(servers) = std::env::var_os("LP_EXPORTER_TEST_SERVERS") {
        let found: Vec<_> = ["old", "new"]
            .iter()
            .filter_map(|part| program(&Path::new(&servers).join(part)))
            .collect();
        if found.len() < 2 {
            skip(
                "a generation of Pushgateways",
                "it is not in LP_EXPORTER_TEST_SERVERS (old/ and new/)",
            );
        }
        return found;
    }
    let found =
        std::env::var_os("PATH").and_then(|paths| std::env::split_paths(&paths).find_map(|path| program(&path)));
    skip(
        if found.is_some() {
            "one of two generations of Pushgateways"
        } else {
            "a test against real Pushgateways"
        },
        "set LP_EXPORTER_TEST_SERVERS to a directory with prometheus-pushgateway in old/ and new/",
    );
    found.into_iter().collect()
}

/// Says what is not tested, and fails where everything must be.
pub fn skip(what: &str, why: &str) {
    assert!(
        std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
        "{what} is missing: {why}"
    );
    eprintln!("skipped {what}: {why}");
}

pub fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound address")
}

/// How a server is reached that wants nothing but its URL. A try may take as long as all of them.
pub fn plain_config(url: &str, budget: Duration) -> PushgatewayConfig {
    PushgatewayConfig {
        url: url.to_owned(),
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        server_name: None,
        username_file: None,
        password_file: None,
        bearer_token_file: None,
        request_timeout: budget,
        budget_max: budget,
    }
}

/// A real Pushgateway, which ends with the test.
pub struct Server {
    process: Child,
    pub address: SocketAddr,
    _directory: TempDir,
}

impl Server {
    pub async fn start(binary: &Path, arguments: &[&str]) -> Self {
        Self::start_at(binary, free_address(), arguments).await
    }

    pub async fn start_at(binary: &Path, address: SocketAddr, arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let process = Command::new(binary)
            .arg(format!("--web.listen-address={address}"))
            .args(arguments)
            .current_dir(directory.path())
            .stderr(Stdio::null())
            .spawn()
            .expect("a Pushgateway that starts");
        let server = Self {
            process,
            address,
            _directory: directory,
        };
        let deadline = Instant::now() + START_PATIENCE;
        while TcpStream::connect(address).await.is_err() {
            assert!(
                Instant::now() < deadline,
                "{} does not listen on {address}",
                binary.display()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// Ends it as Kubernetes does, and waits until it has written what it keeps.
    pub fn terminate(mut self) {
        let id = Pid::from_child(&self.process);
        kill_process(id, Signal::TERM).expect("it runs");
        self.process.wait().expect("it ends");
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What Prometheus would scrape.
    pub async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await
            .expect("a request");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("a reply");
        reply
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let killed = self.process.kill().and_then(|()| self.process.wait());
        assert!(killed.is_ok() || std::thread::panicking(), "{killed:?}");
    }
}

/// A CA, a certificate of a server on loopback, and a CA that has nothing to do with it.
pub struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// None if there is no openssl program to make them with.
    pub fn make() -> Option<Self> {
        let directory = TempDir::new().expect("a temporary directory");
        let names = directory.path().join("names");
        std::fs::write(&names, "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("a file");
        let other_names = directory.path().join("other-names");
        std::fs::write(&other_names, "subjectAltName=DNS:pushgateway.example\n").expect("a file");
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let ca = |name: &str| format!("req -x509 -days 2 -subj /CN=test-{name} -keyout {name}.key -out {name}.pem");
        // One request and one key for all of them.
        let signed = |names: &str, name: &str, days: i32| {
            format!(
                "x509 -req -days {days} -CA ca.pem -CAkey ca.key -CAcreateserial -extfile {names} -in server.csr -out {name}.pem"
            )
        };
        let commands = [
            ca("ca"),
            ca("other"),
            "req -subj /CN=server -keyout server.key -out server.csr".to_owned(),
            signed("names", "server", 2),
            signed("names", "expired", -1),
            signed("other-names", "misnamed", 2),
            signed("names", "client", 2),
        ];
        for command in &commands {
            let is_request = command.starts_with("req");
            let output = Command::new("openssl")
                .args(command.split(' '))
                .args(new_key.iter().filter(|_| is_request))
                .current_dir(directory.path())
                .output();
            let Ok(output) = output else {
                skip("a test of TLS", "there is no openssl program");
                return None;
            };
            assert!(
                output.status.success(),
                "{command}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Some(Self { directory })
    }

    /// A configuration of a server with TLS, and with basic authentication: the user exporter with the password test.
    pub fn web_config(&self) -> PathBuf {
        self.web_config_with("server")
    }

    /// The same with another certificate: `expired`, or `misnamed`, which is for pushgateway.example.
    pub fn web_config_with(&self, certificate: &str) -> PathBuf {
        let path = |name: &str| self.path(name);
        let text = format!(
            "tls_server_config:\n  cert_file: {}\n  key_file: {}\nbasic_auth_users:\n  exporter: {}\n",
            path(&format!("{certificate}.pem")).display(),
            path("server.key").display(),
            "$2b$12$hNf2lSsxfm0.i4a.1kVpSOVyBCfIB51VRjgBUyv6kdnyTlgWj81Ay",
        );
        let file = path(&format!("{certificate}.yaml"));
        std::fs::write(&file, text).expect("a file");
        file
    }

    /// `ca.pem`, `other.pem`, `server.pem`, `server.key` ...
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
