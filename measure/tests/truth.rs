//! What `du` says is what we say.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use lp_measure::{Config, Measurement, State, Target, measure};

fn du(path: &Path, option: &str) -> u64 {
    let output = Command::new("du").args(["-s", option]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn one(base: &Path, relative: &str) -> Measurement {
    let target = Target {
        base: base.to_owned(),
        relative: relative.into(),
    };
    measure(vec![target], Config::full_speed()).remove(0)
}

#[test]
fn a_small_tree_with_links_and_a_sparse_file_is_what_du_says() {
    let base = tempfile::tempdir().unwrap();
    let volume = base.path().join("v/w");
    fs::create_dir_all(volume.join("a/b/c")).unwrap();
    fs::write(volume.join("a/f"), vec![1; 100_000]).unwrap();
    fs::hard_link(volume.join("a/f"), volume.join("a/b/g")).unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("etc")).unwrap();
    fs::File::create(volume.join("sparse"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let found = one(base.path(), "v/w");
    assert_eq!(found.state, State::Complete, "{found:?}");
    assert_eq!(found.used_bytes, Some(du(&volume, "-B1")));
    assert_eq!(found.inodes_used, Some(du(&volume, "--inodes")));
    assert_eq!(found.apparent_bytes, Some(100_000 + 4 + (1 << 30)));
}

#[test]
fn a_symbolic_link_on_the_way_is_not_followed() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir_all(base.path().join("real/inside")).unwrap();
    std::os::unix::fs::symlink("real", base.path().join("link")).unwrap();
    for (relative, state) in [
        ("link", State::EscapesBase),
        ("link/inside", State::EscapesBase),
        ("../x", State::EscapesBase),
        ("/etc", State::EscapesBase),
        ("real/none", State::Missing),
        ("real/inside", State::Complete),
    ] {
        assert_eq!(one(base.path(), relative).state, state, "{relative}");
    }
    assert_eq!(one(Path::new("/no/such/base"), "x").state, State::BaseMissing);
}
