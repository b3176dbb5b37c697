//! The life of what is pushed to a Pushgateway: under which key it lies, how it gets there, and what is taken away.
//!
//! - [`group`]: grouping keys and the extra labels of the user. Pure.
//! - [`retire`]: which groups have outlived what they tell of, and which are of others. Pure.
//! - `list`: what the server tells of its groups, read as a stream.
//! - [`client`]: the requests, their retries and their errors. `credentials` and `tls` are what it is known by, and whom it
//!   trusts.
//!
//! What is pushed is none of its business: it takes an [`crate::exposition::Body`].

pub mod client;
mod credentials;
pub mod group;
mod list;
pub mod retire;
mod tls;

pub use client::{Cause, PushError, Pushgateway, PushgatewayConfig, PushgatewayError};
pub use credentials::CredentialsError;
pub use group::{GroupingKey, GroupingLabel, GroupingLabelError, GroupingLabels};
pub use list::Group;
pub use retire::{Nodes, Ours, groups_left_behind, groups_of_others, groups_to_retire};
pub use tls::TlsError;
