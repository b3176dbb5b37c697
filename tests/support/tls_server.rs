//! A server with TLS that asks for what a Pushgateway itself cannot ask for: a bearer token, or a client's certificate.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, Stream};

use super::real_pushgateway::Certificates;

/// Nobody in a test is silent so long.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// A server on loopback, on a thread that ends with the process.
pub struct TlsServer {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl TlsServer {
    /// Answers each request with the status that `answer` makes of its head (in lower case but for values); wants a
    /// certificate from the CA if `of_clients`.
    pub fn start(
        certificates: &Certificates,
        of_clients: bool,
        mut answer: impl FnMut(&str) -> u16 + Send + 'static,
    ) -> TlsServer {
        let config = Arc::new(config(certificates, of_clients));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let stream = stream.expect("a connection");
                // A client that is refused, or that refuses, breaks off.
                let _ = serve(stream, &config, &mut answer);
            }
        });
        TlsServer { address, connections }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// How many there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn config(certificates: &Certificates, of_clients: bool) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().expect("default versions");
    let builder = if of_clients {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&certificates.path("ca.pem"))).expect("a CA");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.expect("a CA"))
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::from_pem_file(certificates.path("server.key")).expect("a key");
    builder
        .with_single_cert(vec![certificate(&certificates.path("server.pem"))], key)
        .expect("they belong together")
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

fn serve(mut stream: TcpStream, config: &Arc<ServerConfig>, answer: &mut impl FnMut(&str) -> u16) -> io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
    let mut connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut tls = Stream::new(&mut connection, &mut stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    tls.read_exact(&mut vec![0; length])?;
    let status = answer(&head);
    let body = match status {
        // It keeps nothing.
        200 => r#"{"status":"success","data":[]}"#.to_owned(),
        // What a thoughtless proxy says of a request that it does not like: all of it.
        _ => format!("no good: {head}"),
    };
    let length = body.len();
    write!(
        tls,
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    tls.conn.send_close_notify();
    tls.flush()
}
