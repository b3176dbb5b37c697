//! Kernels and profiles that lack or refuse a call: the same answers, by other calls.
//!
//! A seccomp filter on one thread and those that it starts stands for them.
#![allow(clippy::unwrap_used)]
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::thread;

use common::{Mounted, du, find_apparent, inside, walk};
use lp_measure::{Config, Measurement, State, measure};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const REFUSALS: [(&str, u32); 2] = [("missing", libc::ENOSYS as u32), ("refused", libc::EPERM as u32)];

/// Runs something where these calls end with that error.
fn without<T: Send + 'static>(calls: &[i64], error: u32, run: impl FnOnce() -> T + Send + 'static) -> T {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(error), machine).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let thread = thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        run()
    });
    thread.join().unwrap()
}

/// Each call that may be missing, and all together.
fn cases() -> Vec<(String, Vec<i64>, u32)> {
    let calls = [
        ("openat2", vec![libc::SYS_openat2]),
        ("statx", vec![libc::SYS_statx]),
        ("priorities", vec![libc::SYS_ioprio_set, libc::SYS_setpriority]),
        (
            "all",
            vec![
                libc::SYS_openat2,
                libc::SYS_statx,
                libc::SYS_ioprio_set,
                libc::SYS_setpriority,
            ],
        ),
    ];
    let each = calls
        .iter()
        .flat_map(|(name, calls)| REFUSALS.map(|(why, error)| (format!("{name} {why}"), calls.clone(), error)));
    each.collect()
}

#[test]
fn the_same_numbers() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().to_owned();
    for number in 0..200 {
        let directory = path.join(format!("{}/{}", number % 7, number % 5));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(number.to_string()), vec![1; 100 * number]).unwrap();
        fs::hard_link(directory.join(number.to_string()), path.join(format!("link {number}"))).unwrap();
    }
    common::run("sync", &["-f", path.to_str().unwrap()]);
    let expected = (
        Some(du(&path, &["-B1"])),
        Some(du(&path, &["--inodes"])),
        Some(find_apparent(&path)),
    );
    for (what, calls, error) in cases() {
        let targets = vec![common::whole(&path), inside(&path, "3"), inside(&path, "3/1")];
        let found = without(&calls, error, move || {
            measure(
                targets,
                Config {
                    threads_max: 2.try_into().unwrap(),
                    ..Config::gentle()
                },
            )
        });
        let all = &found[0];
        assert_eq!(
            (all.used_bytes, all.inodes_used, all.apparent_bytes),
            expected,
            "{what}: {all:?}"
        );
        for (found, relative) in found[1..].iter().zip(["3", "3/1"]) {
            assert_eq!(
                found.used_bytes,
                Some(du(&path.join(relative), &["-B1"])),
                "{what}: {relative}"
            );
        }
    }
}

#[test]
fn no_way_out_of_the_base() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().to_owned();
    fs::create_dir_all(path.join("real/inside")).unwrap();
    fs::write(path.join("file"), b"x").unwrap();
    symlink("real", path.join("link")).unwrap();
    symlink("/proc/self/root", path.join("magic")).unwrap();
    const LINK: &str = "a symbolic link stands on the way, which is not followed";
    let name_too_long = "n".repeat(256);
    // Longer than the kernel takes in one call, and yet a way to a directory that is there.
    let path_too_long = format!("real{}inside", "/".repeat(5000));
    for (what, calls, error) in cases() {
        for (relative, state, says) in [
            ("link", State::EscapesBase, LINK),
            ("link/inside", State::EscapesBase, LINK),
            ("magic/etc", State::EscapesBase, LINK),
            ("real/../..", State::EscapesBase, "not a plain path"),
            ("file", State::NotADirectory, "Not a directory"),
            ("file/inside", State::NotADirectory, "Not a directory"),
            ("none", State::Missing, "No such file"),
            (&name_too_long, State::Missing, "File name too long"),
            ("real/inside", State::Complete, ""),
            (&path_too_long, State::Complete, ""),
        ] {
            let target = inside(&path, relative);
            let found = without(&calls, error, move || {
                measure(vec![target], Config::full_speed()).remove(0)
            });
            assert_eq!(found.state, state, "{what}: {relative}: {found:?}");
            let told = found.state_detail.unwrap_or_default();
            assert!(told.contains(says), "{what}: {relative}: {told}");
        }
    }
}

/// A base is trusted and links on its way are followed, so what the kernel says of too many links is true there.
#[test]
fn links_that_go_round_in_a_circle_are_no_base() {
    let directory = tempfile::tempdir().unwrap();
    symlink("circle", directory.path().join("circle")).unwrap();
    let found = walk(&directory.path().join("circle"));
    assert_eq!(found.state, State::NotADirectory, "{found:?}");
    assert!(found.state_detail.unwrap().contains("Too many"));
}

#[test]
fn mounts_are_seen() {
    let Some(outer) = Mounted::new("tmpfs", 0, "size=10m") else {
        return;
    };
    let path = outer.path.clone();
    fs::create_dir_all(path.join("volume/directory")).unwrap();
    fs::create_dir(path.join("elsewhere")).unwrap();
    fs::write(path.join("elsewhere/data"), vec![1; 100_000]).unwrap();
    fs::write(path.join("volume/file"), vec![1; 10_000]).unwrap();
    let volume = path.join("volume");
    let before = walk(&volume);
    common::mount(&[
        "--bind",
        path.join("elsewhere").to_str().unwrap(),
        volume.join("directory").to_str().unwrap(),
    ]);
    common::mount(&[
        "--bind",
        path.join("elsewhere/data").to_str().unwrap(),
        volume.join("file").to_str().unwrap(),
    ]);
    let numbers = |found: &Measurement| (found.state, found.used_bytes, found.inodes_used, found.mounts_skipped);
    for (what, calls, error) in cases() {
        let target = inside(&path, "volume");
        let found = without(&calls, error, move || {
            measure(vec![target], Config::full_speed()).remove(0)
        });
        // What is covered cannot be read: the file's 12 KiB (in pages) and the empty directory are missing.
        let expected = (State::Complete, before.used_bytes.map(|used| used - 12_288), Some(1), 2);
        assert_eq!(numbers(&found), expected, "{what}: {found:?}");
    }
}
