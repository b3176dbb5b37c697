//! lp-exporter: usage metrics for node-local Kubernetes volumes, pushed to a Prometheus Pushgateway.
//!
//! Data flows one way, and the folders show it:
//!
//! ```text
//! PersistentVolume ──────┐
//! PersistentVolumeClaim ─┼─ kubernetes::convert ─ volumes (placement, plan) ─ kubernetes::job ─ Job
//! Node ──────────────────┘                              │
//!                                                       └─ metrics ─ exposition ─ pushgateway
//! NodePlan ─ worker (lp-measure) ─ metrics ─ exposition ─ pushgateway
//! ```
//!
//! The programs: [`controller`] is one run over a cluster, [`worker`] measures one node, [`measure`] directories of this
//! machine, and [`plan`] shows what the controller would do. [`cli`] is their command line, [`exit`] how they end.
//!
//! What decides is pure, without clock, network or disk:
//! - [`volumes`]: quantities, paths, node affinity, claims, filters, placement, and the plan. No Kubernetes type.
//!   [`volumes::node_plan`] is the seam between the two programs.
//! - [`deadlines`]: every deadline of a run, from its interval.
//! - [`tracker`]: what becomes of each node, from the events of the cluster.
//! - [`file_systems`]: the file systems below the base paths, and what was promised of each.
//! - [`orphans`]: which directories have an owner, and what is told of the others.
//! - [`planning`]: from what was listed to the plan, and from the plan to the Jobs, for controller and plan alike.
//! - `redact`: other names for a plan that is given to others.
//! - [`metrics`]: every family in one list, and what each group holds.
//!
//! What acts:
//! - [`kubernetes`] is the border to the API server: objects in, Jobs out.
//! - [`pushgateway`] owns the life of what is pushed: grouping keys, requests, and what is retired.
//! - [`dump`] reads what `kubectl get -o json` wrote in place of a live cluster.
//! - `run_log` tells people what a run found and did.
//! - [`confine`] takes from a worker every system call that it does not need.

pub mod cli;
pub mod confine;
pub mod controller;
pub mod deadlines;
pub mod dump;
pub mod exit;
pub mod exposition;
pub mod file_systems;
pub mod kubernetes;
pub mod measure;
pub mod metrics;
pub mod orphans;
pub mod owner;
pub mod plan;
pub mod planning;
pub mod pushgateway;
mod redact;
pub mod retire;
mod run_log;
pub mod runtime;
pub mod summary;
pub mod text;
pub mod tracker;
pub mod volumes;
pub mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use cli::{Cli, Command, LogArguments, LogFormat, LogLevel};
use exit::Exit;

/// Runs the program with the given arguments, the first of which is its own name, and tells how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed standard output.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::BadConfiguration.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    match cli.command {
        Command::Controller(arguments) => {
            log_to_stderr(arguments.log);
            controller::main(*arguments).into()
        }
        Command::Worker(arguments) => {
            log_to_stderr(arguments.log);
            worker::main(arguments).into()
        }
        Command::Measure(arguments) => {
            log_to_stderr(arguments.log);
            measure::main(arguments).into()
        }
        Command::Retire(arguments) => {
            log_to_stderr(arguments.log);
            retire::main(arguments).into()
        }
        Command::Plan(arguments) => {
            log_to_stderr(arguments.log);
            plan::main(arguments).into()
        }
    }
}

fn log_to_stderr(LogArguments { log_level, log_format }: LogArguments) {
    let level = match log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    // The libraries' own messages are for those who debug them.
    let targets = Targets::new()
        .with_target("lp_exporter", level)
        // It tells each failed try as an error, without saying of what; we tell them ourselves.
        .with_target("kube_client", LevelFilter::OFF)
        .with_default(LevelFilter::ERROR.min(level));
    let registry = tracing_subscriber::registry().with(targets);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second subscriber in one process, as tests have it, keeps the first.
    let _ = match log_format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
}
