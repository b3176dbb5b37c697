//! Directories that hold nothing known: what is named, and what never is.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use common::{Mounted, in_memory, mount};
use lp_measure::{DirectoryId, Orphans, Search, SearchConfig, search};
use proptest::prelude::*;

fn config() -> SearchConfig {
    SearchConfig {
        known_directories: HashSet::new(),
        is_ignored: |name| name == "lost+found",
        made_before: SystemTime::now() + Duration::from_secs(3600),
        entries_per_second: 0,
        low_priority: false,
    }
}

fn find_with(base: &Path, known: &[&str], config: SearchConfig) -> Orphans {
    let (sender, receiver) = mpsc::channel();
    let one = Search {
        base: base.to_owned(),
        known: known.iter().map(PathBuf::from).collect(),
    };
    let _searching = search(vec![one], config, move |index, orphans| {
        sender.send((index, orphans)).unwrap();
    });
    let (index, orphans) = receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("it answers in time");
    assert_eq!(index, 0);
    orphans
}

fn find(base: &Path, known: &[&str]) -> Vec<String> {
    let found = find_with(base, known, config()).expect("everything can be read");
    found.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

fn plant(base: &Path, files: &[&str]) {
    for file in files {
        let path = base.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
}

#[test]
fn the_topmost_directory_that_holds_nothing_known_is_an_orphan() {
    let base = tempfile::tempdir().unwrap();
    plant(
        base.path(),
        &[
            "pvc-1/file",
            "pvc-1/inner/file",
            "pvc-2/deep/file",
            "team/claim/file",
            "team/gone/file",
            "team/gone/inner/file",
            "other/gone/file",
            "lost+found/file",
            "team/lost+found/file",
            "a file",
        ],
    );
    fs::create_dir_all(base.path().join("left/by/teardown")).unwrap();
    symlink("pvc-2", base.path().join("a link")).unwrap();
    for (known, expected) in [
        (&["pvc-1", "team/claim"][..], &["other", "pvc-2", "team/gone"][..]),
        (&["pvc-1", "pvc-2", "team", "other/gone"], &[]),
        (
            &["pvc-1/inner", "pvc-2/deep/none", "team/claim", "other"],
            &["team/gone"],
        ),
        (&["nothing"], &["other", "pvc-1", "pvc-2", "team"]),
        (&[""], &[]),
    ] {
        assert_eq!(find(base.path(), known), expected, "{known:?}");
    }
}

#[test]
fn what_is_young_is_none_and_what_holds_something_young_waits() {
    let base = tempfile::tempdir().unwrap();
    plant(
        base.path(),
        &["old/file", "old/inner/file", "deep/1/2/3/4/file", "deep/file"],
    );
    std::thread::sleep(Duration::from_millis(2100));
    let between = SystemTime::now() - Duration::from_millis(1000);
    let settled = || SearchConfig {
        made_before: between,
        ..config()
    };
    plant(base.path(), &["young/file"]);
    assert_eq!(
        find_with(base.path(), &[], settled()),
        Ok(vec!["deep".into(), "old".into()])
    );
    // The directory of a claim that is just being made, below one that an earlier claim left.
    plant(base.path(), &["old/inner/claim/file"]);
    assert_eq!(find_with(base.path(), &[], settled()), Ok(vec!["deep".into()]));
    plant(base.path(), &["deep/1/2/3/4/5/file"]);
    assert_eq!(find_with(base.path(), &[], settled()), Ok(vec!["deep".into()]));
}

#[test]
fn of_many_directories_each_is_looked_at_or_none_is_told() {
    let base = in_memory();
    plant(base.path(), &["some/file", "many/file"]);
    let make = |name: &str, numbers: std::ops::Range<u32>| {
        numbers.for_each(|number| fs::create_dir(base.path().join(name).join(number.to_string())).unwrap());
    };
    make("some", 0..12_000);
    make("many", 0..100_001);
    std::thread::sleep(Duration::from_millis(2100));
    let between = SystemTime::now() - Duration::from_millis(1000);
    let settled = || SearchConfig {
        made_before: between,
        ..config()
    };
    assert_eq!(find_with(base.path(), &[], settled()), Ok(vec!["some".into()]));
    make("some", 12_000..12_001);
    assert_eq!(find_with(base.path(), &[], settled()), Ok(vec![]));
}

#[test]
fn names_are_anybodys() {
    let base = tempfile::tempdir().unwrap();
    let names: [&[u8]; 6] = [
        b"\xff\xfe",
        b"line\nbreak",
        b"..data",
        b"-rf",
        b"\x1b[31m",
        &[b'n'; 255],
    ];
    for name in names {
        let directory = base.path().join(OsStr::from_bytes(name));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), "x").unwrap();
    }
    let found: BTreeSet<PathBuf> = find_with(base.path(), &["-r", "..", "."], config())
        .unwrap()
        .into_iter()
        .collect();
    let expected: BTreeSet<PathBuf> = names
        .iter()
        .map(|name| PathBuf::from(OsStr::from_bytes(name)))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn no_link_leads_out_and_no_doubt_is_left() {
    let base = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    plant(elsewhere.path(), &["team/claim/file", "team/gone/file"]);
    plant(base.path(), &["orphan/file"]);
    symlink(elsewhere.path().join("team"), base.path().join("team")).unwrap();
    assert_eq!(find(base.path(), &[]), ["orphan"]);
    // Something known lies behind a link: where, nobody looks, so nothing can be told.
    let error = find_with(base.path(), &["team/claim"], config()).unwrap_err();
    assert!(error.contains("cannot open team"), "{error}");
    let error = find_with(&base.path().join("missing"), &[], config()).unwrap_err();
    assert!(error.contains("cannot open the base directory"), "{error}");
}

#[test]
fn what_may_not_be_read_leaves_no_answer() {
    let base = tempfile::tempdir().unwrap();
    plant(base.path(), &["orphan/file", "closed/inner/file"]);
    fs::set_permissions(base.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(base.path().join("closed"), Permissions::from_mode(0o000)).unwrap();
    let path = base.path().to_owned();
    let as_nobody = std::thread::spawn(move || {
        if common::is_root() {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        (find_with(&path, &[], config()), find_with(&path, &["closed"], config()))
    });
    let (closed, known) = as_nobody.join().unwrap();
    let error = closed.unwrap_err();
    assert!(error.contains("closed") && error.contains("denied"), "{error}");
    // What is known is not entered.
    assert_eq!(known, Ok(vec!["orphan".into()]));
    fs::set_permissions(base.path().join("closed"), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_directory_that_is_known_by_another_path_is_none() {
    let base = tempfile::tempdir().unwrap();
    plant(base.path(), &["same/file", "around/same/file", "orphan/file"]);
    let id = |path: &str| {
        let metadata = fs::metadata(base.path().join(path)).unwrap();
        DirectoryId {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    };
    let config = SearchConfig {
        known_directories: HashSet::from([id("same"), id("around/same")]),
        ..config()
    };
    assert_eq!(find_with(base.path(), &[], config), Ok(vec!["orphan".into()]));
}

#[test]
fn mounts_are_none_and_are_not_entered() {
    let Some(disk) = Mounted::new("ext4", 50 << 20, "rw") else {
        return;
    };
    let base = disk.path.join("base");
    plant(
        &base,
        &[
            "orphan/file",
            "holder/other/file",
            "claims/known/file",
            "claims/gone/file",
            "group/file",
        ],
    );
    for name in ["disk", "bind", "only-mounts/disk", "group/disk"] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    let text = |name: &str| base.join(name).to_str().unwrap().to_owned();
    mount(&["-t", "tmpfs", "tmpfs", &text("disk")]);
    mount(&["-t", "tmpfs", "tmpfs", &text("only-mounts/disk")]);
    // Whoever deletes what a mount lies in deletes what is mounted.
    mount(&["-t", "tmpfs", "tmpfs", &text("group/disk")]);
    mount(&["--bind", &text("holder"), &text("bind")]);
    plant(
        &base,
        &["disk/team/claim/file", "disk/team/gone/file", "only-mounts/disk/file"],
    );
    assert_eq!(find(&base, &["claims/known"]), ["claims/gone", "holder", "orphan"]);
    // A mount on the way to something known is entered.
    assert_eq!(
        find(&base, &["claims/known", "disk/team/claim"]),
        ["claims/gone", "disk/team/gone", "holder", "orphan"]
    );
}

#[test]
fn what_was_cancelled_is_not_delivered() {
    let base = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        fs::create_dir(base.path().join(number.to_string())).unwrap();
    }
    let slow = SearchConfig {
        entries_per_second: 100,
        ..config()
    };
    let (sender, receiver) = mpsc::channel();
    let one = Search {
        base: base.path().to_owned(),
        known: Vec::new(),
    };
    let searching = search(vec![one], slow, move |_, orphans| sender.send(orphans).unwrap());
    assert!(receiver.recv_timeout(Duration::from_millis(300)).is_err());
    searching.cancel();
    // Its thread ends and lets go of what it would answer with.
    let ended = receiver.recv_timeout(Duration::from_secs(5));
    assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected));
}

/// Paths of a few names, so that they meet.
fn paths(most: usize) -> impl Strategy<Value = BTreeSet<String>> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..5).prop_map(|names| names.join("/"));
    prop::collection::btree_set(path, 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Nothing known is in an orphan or around it, and every file outside of what is known, and not beside something
    /// known, is in exactly one.
    #[test]
    fn orphans_and_known_paths_never_touch(directories in paths(12), with_files in paths(12), known in paths(5)) {
        let base = tempfile::tempdir().unwrap();
        for directory in directories.iter().chain(&with_files) {
            fs::create_dir_all(base.path().join(directory)).unwrap();
        }
        for directory in &with_files {
            fs::write(base.path().join(directory).join("file"), "x").unwrap();
        }
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let found = find(base.path(), &known);
        let within = |inner: &str, outer: &str| inner == outer || inner.starts_with(&format!("{outer}/"));
        for orphan in &found {
            for known in &known {
                prop_assert!(!within(orphan, known) && !within(known, orphan), "{orphan} and {known}");
            }
        }
        for directory in &with_files {
            let is_free = known.iter().all(|known| !within(directory, known) && !within(known, directory));
            let holders = found.iter().filter(|orphan| within(directory, orphan)).count();
            prop_assert_eq!(holders, usize::from(is_free), "{}", directory);
        }
    }
}
