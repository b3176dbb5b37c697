//! What the integration tests and the demo share: stand-ins for the servers that lp-exporter talks to,
//! and builders for the objects that it reads.
//!
//! Each test program, and the demo, takes this tree in with `mod` or `#[path]` and uses a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every program that includes this tree uses another part of it"
)]

pub mod api_server;
pub mod fault_proxy;
pub mod kubelet;
pub mod objects;
pub mod pushgateway;
pub mod real_pushgateway;
pub mod tls_server;
pub mod yaml;
