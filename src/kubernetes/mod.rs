//! The border to Kubernetes: the only modules that name its types.
//!
//! Objects come in through [`convert`], Jobs go out through [`job`], and [`client`] is the one place that talks to the API
//! server. [`lease`] keeps two runs from disturbing each other.

pub mod client;
pub mod convert;
pub mod job;
pub mod lease;
pub mod watch;
