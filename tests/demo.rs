//! The demo runs to its end, shows what it promises, and leaves nothing behind.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the README promises.
const PROMISED: Duration = Duration::from_secs(10);

#[test]
fn the_demo_shows_a_whole_run() {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let began = Instant::now();
    let output = Command::new(demo())
        .env("TMPDIR", folder.path())
        .output()
        .expect("the demo starts");
    let took = began.elapsed();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    for words in [
        "ran 3 workers",
        // Nearly full, over its request, sparse, and without a directory.
        "23.0 MiB   96 %",
        "12.0 MiB  150 %",
        "3.0 MiB    0 %",
        "state: missing",
        "not_node_local",
        "node_gone",
        "outside_base_paths",
        "/metrics/job/lp-exporter-job/node/node-3",
        "--pushgateway-url",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    assert!(took < PROMISED, "{took:?}");
    let left = std::fs::read_dir(folder.path())
        .expect("the directory can be read")
        .count();
    assert_eq!(left, 0, "something is left in the temporary directory");
}

/// Cargo builds the examples together with the tests, beside the directory that those are in.
fn demo() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let demo = test.ancestors().nth(2).map(|folder| folder.join("examples/demo"));
    demo.filter(|demo| demo.is_file())
        .expect("the demo is built: `cargo build --example demo`, or `cargo test` without --test")
}
