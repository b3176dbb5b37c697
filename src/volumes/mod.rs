//! Which volumes there are, where they lie and what is to be measured: pure, without any Kubernetes type.

pub mod affinity;
pub mod claims;
pub mod collect;
pub mod known_paths;
pub mod node_plan;
pub mod path;
pub mod placement;
pub mod plan;
pub mod pods;
pub mod quantity;
pub mod selection;
pub mod selector;
#[cfg(test)]
pub(crate) mod testing;
pub mod volume;
