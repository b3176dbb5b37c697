//! A network that is not to be relied on: passes connections on to a server, or does to them what a fault would.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Requests and replies of the tests are smaller.
const PIECE_MAX_BYTES: usize = 1 << 20;
/// Between the pieces of [`Fault::Slow`].
const SLOW_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of one connection.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is passed on.
    Pass,
    /// It is reset at once.
    Reset,
    /// It is reset on both sides when the server has so many bytes of the request.
    ResetAfter(usize),
    /// The server gets the request, and the client the end of the stream in the place of the reply.
    HalfClose,
    /// The client gets so many bytes of the reply.
    CutReply(usize),
    /// It is passed on in pieces of so many bytes, ten in a second.
    Slow(usize),
    /// Nobody reads, nobody answers.
    Silent,
    /// The server gets nothing, and the client this.
    Reply(String),
    /// The same, and then the letter x until it goes away.
    Endless(&'static str),
}

impl Fault {
    /// A whole reply with this status.
    pub fn status(status: u16, headers: &str, body: &str) -> Fault {
        let length = body.len();
        Fault::Reply(format!(
            "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
    }
}

/// A proxy on loopback, until it is dropped.
pub struct FaultProxy {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl FaultProxy {
    /// Does `first` to the first connections, one each, and `then` to all others.
    pub async fn start(server: SocketAddr, first: &[Fault], then: Fault) -> FaultProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let faults = Mutex::new(VecDeque::from(first.to_vec()));
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                counted.fetch_add(1, Ordering::SeqCst);
                let fault = faults.lock().expect("no poison").pop_front();
                // How a connection ends is nobody's matter but the client's.
                tokio::spawn(suffer(client, server, fault.unwrap_or_else(|| then.clone())));
            }
        });
        FaultProxy {
            address,
            connections,
            task,
        }
    }

    /// How many there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn suffer(mut client: TcpStream, server: SocketAddr, fault: Fault) -> io::Result<()> {
    match fault {
        Fault::Pass => {
            let mut server = TcpStream::connect(server).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        }
        Fault::Reset => client.set_zero_linger()?,
        Fault::ResetAfter(bytes) => {
            let mut server = TcpStream::connect(server).await?;
            let mut part = vec![0; bytes];
            client.read_exact(&mut part).await?;
            server.write_all(&part).await?;
            server.flush().await?;
            client.set_zero_linger()?;
            server.set_zero_linger()?;
        }
        Fault::HalfClose => {
            let mut server = TcpStream::connect(server).await?;
            server.write_all(&request(&mut client).await?).await?;
            server.read_u8().await?;
            client.shutdown().await?;
            // The client may go on to send until it sees that nobody answers.
            tokio::io::copy(&mut client, &mut tokio::io::sink()).await?;
        }
        Fault::CutReply(bytes) => {
            let mut server = TcpStream::connect(server).await?;
            server.write_all(&request(&mut client).await?).await?;
            let mut part = vec![0; bytes];
            server.read_exact(&mut part).await?;
            client.write_all(&part).await?;
        }
        Fault::Slow(bytes) => {
            let mut server = TcpStream::connect(server).await?;
            for piece in request(&mut client).await?.chunks(bytes) {
                server.write_all(piece).await?;
                tokio::time::sleep(SLOW_PAUSE).await;
            }
            tokio::io::copy_bidirectional(&mut client, &mut server).await?;
        }
        Fault::Silent => std::future::pending::<()>().await,
        Fault::Reply(text) => {
            request(&mut client).await?;
            client.write_all(text.as_bytes()).await?;
        }
        Fault::Endless(head) => {
            request(&mut client).await?;
            client.write_all(head.as_bytes()).await?;
            loop {
                client.write_all(&[b'x'; 4096]).await?;
            }
        }
    }
    Ok(())
}

/// One whole request.
async fn request(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&bytes).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    assert!(length < PIECE_MAX_BYTES, "a request of {length} bytes");
    let begin = bytes.len();
    bytes.resize(begin + length, 0);
    client.read_exact(&mut bytes[begin..]).await?;
    Ok(bytes)
}
