//! A dump is read or refused, whatever stands in it, and no object of it is lost without a word.
#![no_main]

use std::sync::LazyLock;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use lp_exporter::cli::{Cli, Command};
use lp_exporter::dump::Dump;
use lp_exporter::planning::Settings;
use lp_exporter::volumes::volume::Node;

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let Command::Plan(arguments) = Cli::parse_from(["lp-exporter", "plan"]).command else {
        unreachable!("it was asked for")
    };
    Settings::new(arguments.planning).expect("the defaults are good")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(dump) = Dump::read(bytes, &SETTINGS) else {
        return;
    };
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    assert!(serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok());
    let volumes = dump.listed.volumes.len() + dump.listed.skipped.len();
    let others: usize = dump.other_kinds.values().sum();
    // A node that cannot be read is among both.
    let is_read = |node: &&Node| node.not_ready_message != Node::UNREADABLE;
    let nodes = dump.listed.nodes.iter().filter(is_read).count();
    let read = volumes + dump.claims + nodes + dump.listed.unreadable.len();
    assert_eq!(read + dump.not_needed + others, dump.objects);
});
