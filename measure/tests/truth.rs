//! What `du` says is what we say, on whatever file system the temporary directory is.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use common::{assert_like_du, du, in_memory, inside, run, walk, whole};
use lp_measure::{Config, Measurement, Rotating, State, Target, measure};
use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

fn one(base: &Path, relative: &str) -> Measurement {
    measure(vec![inside(base, relative)], Config::full_speed()).remove(0)
}

#[test]
fn anything_that_a_directory_can_hold() {
    let base = tempfile::tempdir().unwrap();
    let volume = base.path();
    fs::create_dir_all(volume.join("a/b/c")).unwrap();
    fs::create_dir(volume.join("empty")).unwrap();
    fs::write(volume.join("a/f"), vec![1; 100_000]).unwrap();
    for link in ["a/b/g", "a/b/c/h", "top"] {
        fs::hard_link(volume.join("a/f"), volume.join(link)).unwrap();
    }
    File::create(volume.join("empty file")).unwrap();
    File::create(volume.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    symlink("/etc", volume.join("short link")).unwrap();
    symlink("/x".repeat(1000), volume.join("long link")).unwrap();
    symlink("loop", volume.join("loop")).unwrap();
    mknodat(CWD, volume.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(volume.join("socket")).unwrap();
    fs::write(volume.join("n".repeat(255)), b"x").unwrap();
    for byte in (1..=255).filter(|byte| *byte != b'/') {
        fs::write(volume.join(OsStr::from_bytes(&[b'_', byte, 0xff])), [byte]).unwrap();
    }
    if common::is_root() {
        mknodat(
            CWD,
            volume.join("device"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o600),
            0x103,
        )
        .unwrap();
    }
    let found = assert_like_du(volume, "a bit of everything");
    assert_eq!((found.errors, found.mounts_skipped), (0, 0));
    assert!(
        found.entries > found.inodes_used.unwrap(),
        "links are names too: {found:?}"
    );
}

#[test]
fn files_with_several_links_of_which_some_are_outside() {
    let base = tempfile::tempdir().unwrap();
    let (volume, outside) = (base.path().join("volume"), base.path().join("outside"));
    fs::create_dir(&volume).unwrap();
    fs::create_dir(&outside).unwrap();
    for number in 0..3000 {
        let file = outside.join(number.to_string());
        fs::write(&file, vec![1; 5000]).unwrap();
        for name in ["x", "y"] {
            fs::hard_link(&file, volume.join(format!("{name}{number}"))).unwrap();
        }
    }
    assert_like_du(&volume, "the first link is outside");
}

#[test]
fn sizes_that_overflow_64_bits_when_added() {
    let base = tempfile::tempdir().unwrap();
    // Where the file system takes it: tmpfs and XFS do, ext4 ends at 16 TiB.
    let size = [i64::MAX as u64, 16 << 40, 1 << 40]
        .into_iter()
        .find(|size| File::create(base.path().join("first")).unwrap().set_len(*size).is_ok());
    let size = size.unwrap();
    for number in 0..40 {
        File::create(base.path().join(number.to_string()))
            .unwrap()
            .set_len(size)
            .unwrap();
    }
    let found = walk(base.path());
    assert_eq!(found.apparent_bytes, Some(41 * u128::from(size)));
}

/// Makes a chain of directories that is longer than any path may be.
fn dig(volume: &Path, depth: usize, with_sibling: bool) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, volume, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        for name in if with_sibling {
            &["down", "sibling"][..]
        } else {
            &["down"]
        } {
            mkdirat(&at, *name, Mode::from_raw_mode(0o700)).unwrap();
        }
        at = openat(&at, "down", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn ten_thousand_directories_deep() {
    let base = tempfile::tempdir().unwrap();
    dig(base.path(), 10_000, false);
    assert_like_du(base.path(), "a chain");
    let config = Config {
        top_directories: 3,
        ..Config::full_speed()
    };
    let found = measure(vec![whole(base.path())], config).remove(0);
    assert_eq!((found.inodes_used, found.largest.len()), (Some(10_001), 3));
    run("rm", &["-r", base.path().join("down").to_str().unwrap()]);
}

/// Some seventy buffers of names. A million entries stand in benches/limits.rs: to make and remove them takes longer than
/// all the tests here.
#[test]
fn many_entries_in_one_directory() {
    let base = tempfile::tempdir().unwrap();
    for number in 0..30_000 {
        File::create(base.path().join(format!("file {number}"))).unwrap();
        if number % 3 == 0 {
            fs::create_dir(base.path().join(format!("directory {number} {}", "x".repeat(100)))).unwrap();
        }
    }
    assert_like_du(base.path(), "files and directories, many in one");
}

#[test]
fn a_path_that_leaves_its_base_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path();
    fs::create_dir_all(path.join("real/inside")).unwrap();
    fs::write(path.join("file"), b"x").unwrap();
    symlink("real", path.join("link")).unwrap();
    symlink("real", path.join("real/inside/link")).unwrap();
    symlink("/proc/self/root", path.join("magic")).unwrap();
    symlink(path.join("real"), path.join("base link")).unwrap();
    for (relative, state) in [
        ("link", State::EscapesBase),
        ("link/inside", State::EscapesBase),
        ("real/inside/link", State::EscapesBase),
        ("magic", State::EscapesBase),
        ("magic/etc", State::EscapesBase),
        ("..", State::EscapesBase),
        ("real/../real", State::EscapesBase),
        ("/etc", State::EscapesBase),
        ("none", State::Missing),
        ("none/inside", State::Missing),
        ("real/none", State::Missing),
        ("file", State::NotADirectory),
        ("file/inside", State::NotADirectory),
        ("./real/./inside/", State::Complete),
        ("", State::Complete),
    ] {
        let found = one(path, relative);
        assert_eq!(found.state, state, "{relative}: {found:?}");
        assert_eq!(
            found.used_bytes.is_some(),
            state == State::Complete,
            "{relative}: {found:?}"
        );
        assert_eq!(
            found.state_detail.is_none(),
            state == State::Complete,
            "{relative}: {found:?}"
        );
    }
    assert_eq!(one(&path.join("no base"), "x").state, State::BaseMissing);
    assert_eq!(one(&path.join("file"), "").state, State::NotADirectory);
    assert_eq!(
        one(&path.join("base link"), "inside").state,
        State::Complete,
        "a base is trusted"
    );
    let absurd = "x/".repeat(10_000);
    let found = one(path, &absurd);
    assert_eq!(found.state, State::Missing, "longer than one call takes: {found:?}");
}

#[test]
fn the_same_directory_twice_and_one_inside_another() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path();
    for directory in ["a/b/c", "a/d", "e"] {
        fs::create_dir_all(path.join(directory)).unwrap();
        for number in 0..50 {
            fs::write(path.join(directory).join(number.to_string()), vec![1; 1000 * number]).unwrap();
        }
    }
    // Links between a volume and the one around it count in each.
    for number in 0..20 {
        fs::hard_link(
            path.join(format!("a/d/{number}")),
            path.join(format!("a/b/c/link {number}")),
        )
        .unwrap();
        fs::hard_link(
            path.join(format!("e/{number}")),
            path.join(format!("a/b/link {number}")),
        )
        .unwrap();
    }
    run("sync", &["-f", path.to_str().unwrap()]);
    let relatives = ["a", "a/b", "a/b/c", "a/b", "e", "", "a/../a", "none", "a/d"];
    let mut targets: Vec<Target> = relatives.iter().map(|relative| inside(path, *relative)).collect();
    targets.push(whole(&path.join("a/b")));
    let progress_entries = {
        let (sender, receiver) = std::sync::mpsc::channel();
        let running = lp_measure::start(targets.clone(), Config::full_speed(), move |index, found| {
            sender.send((index, found)).unwrap();
        });
        let count = receiver.iter().take(targets.len()).count();
        assert_eq!(count, targets.len());
        running.progress().entries
    };
    let found = measure(targets.clone(), Config::full_speed());
    for (target, found) in targets.iter().zip(&found) {
        let place = target.base.join(&target.relative);
        if target.relative.to_str() == Some("a/../a") {
            assert_eq!(found.state, State::EscapesBase);
        } else if target.relative.to_str() == Some("none") {
            assert_eq!(found.state, State::Missing);
        } else {
            assert_eq!(found.used_bytes, Some(du(&place, &["-B1"])), "{place:?}");
            assert_eq!(found.inodes_used, Some(du(&place, &["--inodes"])), "{place:?}");
        }
    }
    // Each name was looked at once in all: as often as when the outermost is measured alone.
    assert_eq!(progress_entries, walk(path).entries);
}

#[test]
fn the_largest_directories() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path();
    for (directory, kibibytes) in [("big/one", 400), ("big/two", 300), ("middle", 500), ("small", 8)] {
        fs::create_dir_all(path.join(directory)).unwrap();
        fs::write(path.join(directory).join("data"), vec![1; kibibytes << 10]).unwrap();
    }
    run("sync", &["-f", path.to_str().unwrap()]);
    let config = Config {
        top_directories: 3,
        ..Config::full_speed()
    };
    let found = measure(vec![whole(path)], config).remove(0);
    let expected = ["big", "middle", "big/one"].map(|name| (name.into(), du(&path.join(name), &["-B1"])));
    assert_eq!(found.largest, expected);
}

#[test]
fn too_many_links_are_a_state_and_no_number() {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("other")).unwrap();
    for number in 0..2000 {
        let file = base.path().join(number.to_string());
        File::create(&file).unwrap();
        fs::hard_link(&file, base.path().join(format!("{number} again"))).unwrap();
    }
    let config = Config {
        links_bytes_max: 100,
        ..Config::full_speed()
    };
    let found = measure(vec![whole(base.path())], config).remove(0);
    assert_eq!(
        (found.state, found.used_bytes),
        (State::TooManyLinks, None),
        "{found:?}"
    );
}

#[test]
fn budgets_and_cancelling_leave_states_and_never_a_part() {
    let base = in_memory();
    for number in 0..500 {
        File::create(base.path().join(number.to_string())).unwrap();
    }
    let slow = Config {
        entries_per_second: 100,
        ..Config::full_speed()
    };
    let tenth = std::time::Duration::from_millis(100);
    for config in [
        Config {
            total_budget: Some(tenth),
            ..slow.clone()
        },
        Config {
            volume_budget: Some(tenth),
            ..slow.clone()
        },
    ] {
        let began = std::time::Instant::now();
        let found = measure(vec![whole(base.path()), whole(&base.path().join("none"))], config);
        // The whole takes five seconds.
        assert!(began.elapsed() < 30 * tenth, "{:?}", began.elapsed());
        assert_eq!(
            found.iter().map(|found| found.state).collect::<Vec<_>>(),
            [State::Timeout, State::BaseMissing]
        );
        assert_eq!((found[0].used_bytes, found[0].method), (None, None));
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let running = lp_measure::start(vec![whole(base.path())], slow, move |_, found| {
        sender.send(found).unwrap()
    });
    running.cancel();
    assert_eq!(receiver.recv().unwrap().state, State::Cancelled);
}

/// The largest comes first, and its time alone is more than half of what there is: in one directory, or in many.
#[test]
fn one_large_volume_leaves_the_others_their_time() {
    for (directories, rotating, threads) in [(1, Rotating::No, 2), (40, Rotating::No, 2), (40, Rotating::Yes, 1)] {
        let base = in_memory();
        for number in 0..20_000 {
            let directory = base.path().join(format!("0 large/{}", number % directories));
            if number < directories {
                fs::create_dir_all(&directory).unwrap();
            }
            File::create(directory.join(number.to_string())).unwrap();
        }
        for volume in 1..=10 {
            let directory = base.path().join(volume.to_string());
            fs::create_dir(&directory).unwrap();
            (0..99).for_each(|file| drop(File::create(directory.join(file.to_string())).unwrap()));
        }
        let mut names = vec!["0 large".to_owned()];
        names.extend((1..=10).map(|volume| volume.to_string()));
        for (seconds, large) in [(4, State::Timeout), (60, State::Complete)] {
            let config = Config {
                entries_per_second: 4000,
                total_budget: Some(Duration::from_secs(seconds)),
                threads_max: NonZeroUsize::new(threads).unwrap(),
                rotating,
                ..Config::full_speed()
            };
            let targets = names.iter().map(|name| inside(base.path(), name)).collect();
            let states: Vec<State> = measure(targets, config).iter().map(|found| found.state).collect();
            let mut expected = vec![State::Complete; 11];
            expected[0] = large;
            assert_eq!(states, expected, "{directories} directories, {rotating:?}, {seconds} s");
        }
    }
}

#[test]
fn the_rate_is_kept() {
    let base = in_memory();
    for number in 0..1000 {
        File::create(base.path().join(number.to_string())).unwrap();
    }
    let config = Config {
        entries_per_second: 2000,
        ..Config::full_speed()
    };
    let found = measure(vec![whole(base.path())], config).remove(0);
    assert!((0.4..2.0).contains(&found.seconds), "{found:?}");
}

#[test]
fn no_targets_are_no_measurements() {
    assert_eq!(measure(Vec::new(), Config::gentle()), []);
}
