//! lp-exporter: usage metrics for node-local Kubernetes volumes, pushed to a Prometheus Pushgateway.
//!
//! Data flows one way, and the folders show it:
//!
//! ```text
//! PersistentVolume ──────┐
//! PersistentVolumeClaim ─┼─ kubernetes::convert ── volumes (placement, plan) ── kubernetes::job ── Job
//! Node ──────────────────┘                              │
//!                                                       └─ metrics ── pushgateway
//! NodePlan ── worker (lp-measure) ── metrics ── pushgateway
//! ```
//!
//! - [`volumes`] is pure: quantities, paths, node affinity, placement and the plan. It knows no Kubernetes type.
//! - [`kubernetes`] is the border to the API server: objects in, Jobs out.
//! - [`exposition`] writes metrics as compressed text.
//! - [`pushgateway`] owns the life of what is pushed: grouping keys, requests, and what is retired.

pub mod exposition;
pub mod kubernetes;
pub mod pushgateway;
pub mod volumes;
