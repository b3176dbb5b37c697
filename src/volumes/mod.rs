//! Which volumes there are, where they lie and what is to be measured: pure, without any Kubernetes type.

pub mod affinity;
pub mod path;
pub mod quantity;
