//! With few descriptors, in a process of its own because the limit is the process's.
#![allow(clippy::unwrap_used)]

mod common;

use common::run;
use lp_measure::State;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Siblings wait on each level while the walk goes down: a walker that keeps a descriptor for each loses most of them.
#[test]
fn a_comb_ten_thousand_deep_with_256_descriptors() {
    const DEPTH: usize = 10_000;
    let base = tempfile::tempdir().unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, base.path(), flags, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        for name in ["1 sibling", "2 down", "3 sibling"] {
            mkdirat(&at, name, Mode::from_raw_mode(0o700)).unwrap();
        }
        at = openat(&at, "2 down", flags, Mode::empty()).unwrap();
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(256),
            ..before
        },
    )
    .unwrap();
    let found = common::walk(base.path());
    assert_eq!(
        (found.state, found.inodes_used),
        (State::Complete, Some(3 * DEPTH as u64 + 1)),
        "{found:?}"
    );

    // None left at all: a state, and no wrong number.
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(3),
            ..before
        },
    )
    .unwrap();
    let found = common::walk(base.path());
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(
        (found.state, found.used_bytes),
        (State::OutOfResources, None),
        "{found:?}"
    );
    run("rm", &["-r", base.path().join("2 down").to_str().unwrap()]);
}
