//! Trees that change while they are read, and somebody who wants us to read what we must not.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::{du, inside, walk};
use lp_measure::{Config, Rotating, State, measure};
use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};

const FILE_BYTES: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    Make(u8, u8),
    Remove(u8, u8),
    RenameFile(u8, u8, u8),
    MoveDirectory(u8, u8),
    ReplaceByFile(u8),
    ReplaceByLink(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12u8, any::<u8>()).prop_map(|(directory, file)| Step::Make(directory, file)),
        (0..12u8, any::<u8>()).prop_map(|(directory, file)| Step::Remove(directory, file)),
        (0..12u8, any::<u8>(), 0..12u8).prop_map(|(from, file, to)| Step::RenameFile(from, file, to)),
        (0..12u8, 0..12u8).prop_map(|(from, to)| Step::MoveDirectory(from, to)),
        (0..12u8).prop_map(Step::ReplaceByFile),
        (0..12u8).prop_map(Step::ReplaceByLink),
    ]
}

fn moving(volume: &Path, number: u8) -> PathBuf {
    volume.join(format!("moving {number}"))
}

/// Does one thing to the part of the tree that moves, and says how many files that made or moved. What cannot be done
/// is left undone: that is what a busy tree looks like.
fn apply(volume: &Path, step: &Step, count: u64) -> u64 {
    match step {
        Step::Make(directory, file) => {
            let path = moving(volume, *directory).join(format!("new {file} {count}"));
            u64::from(fs::write(path, vec![1; FILE_BYTES as usize]).is_ok())
        }
        Step::Remove(directory, file) => {
            let _ = fs::remove_file(moving(volume, *directory).join(format!("file {}", file % 40)));
            0
        }
        Step::RenameFile(from, file, to) => {
            let name = format!("file {}", file % 40);
            let target = moving(volume, *to).join(format!("{name} from {from} {count}"));
            u64::from(fs::rename(moving(volume, *from).join(name), target).is_ok())
        }
        Step::MoveDirectory(from, to) => {
            let _ = fs::rename(
                moving(volume, *from),
                moving(volume, *to).join(format!("moved {count}")),
            );
            0
        }
        Step::ReplaceByFile(directory) => {
            let path = moving(volume, *directory);
            let is_done =
                fs::rename(&path, volume.join(format!("aside {count}"))).is_ok() && File::create(&path).is_ok();
            u64::from(is_done)
        }
        Step::ReplaceByLink(directory) => {
            let path = moving(volume, *directory);
            let _ = fs::rename(&path, volume.join(format!("aside {count}")));
            let _ = symlink("/usr", &path);
            1
        }
    }
}

fn plant(volume: &Path) {
    for number in 0..12 {
        for directory in [moving(volume, number), volume.join(format!("still {number}/a/b"))] {
            fs::create_dir_all(&directory).unwrap();
            for file in 0..40 {
                fs::write(directory.join(format!("file {file}")), vec![1; FILE_BYTES as usize]).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing that stays where it is is missed, no directory's content counts twice, and the sum stays below all that
    /// ever existed and the files that were moved.
    #[test]
    fn a_tree_that_changes(steps in prop::collection::vec(step(), 50..200), sweeps in any::<bool>()) {
        let base = tempfile::tempdir().unwrap();
        let volume = base.path().to_owned();
        plant(&volume);
        let before = walk(&volume);
        let stays: u64 = 12 * (40 + 3) + 1;
        let is_over = Arc::new(AtomicBool::new(false));
        let mutator = thread::spawn({
            let (volume, is_over) = (volume.clone(), is_over.clone());
            move || {
                let mut extra = 0;
                for (count, step) in steps.iter().cycle().enumerate() {
                    if is_over.load(Relaxed) && count > steps.len() {
                        break;
                    }
                    extra += apply(&volume, step, count as u64);
                }
                extra
            }
        });
        let rotating = if sweeps { Rotating::Yes } else { Rotating::No };
        let results: Vec<_> = (0..10).map(|_| {
            let config = Config { rotating, statfs: false, ..Config::full_speed() };
            measure(vec![inside(&volume, "")], config).remove(0)
        }).collect();
        is_over.store(true, Relaxed);
        let extra = mutator.join().unwrap();
        for found in results {
            prop_assert_eq!(found.state, State::Complete, "{:?}", found);
            prop_assert!(found.inodes_used.unwrap() >= stays, "{:?}", found);
            prop_assert!(found.apparent_bytes.unwrap() >= u128::from(12 * 40 * FILE_BYTES), "{:?}", found);
            let most = before.inodes_used.unwrap() + extra;
            prop_assert!(found.inodes_used.unwrap() <= most, "{} of at most {}", found.inodes_used.unwrap(), most);
        }
        common::run("sync", &["-f", volume.to_str().unwrap()]);
        prop_assert_eq!(walk(&volume).used_bytes, Some(du(&volume, &["-B1"])));
    }
}

/// Directories that move about while they are read are met twice, and counted once: nothing else changes here.
#[test]
fn directories_that_move_count_once() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().to_owned();
    for side in ["left", "right", "left/moving"] {
        fs::create_dir(path.join(side)).unwrap();
    }
    for directory in 0..300 {
        for side in ["left", "right"] {
            fs::create_dir(path.join(format!("{side}/{directory}"))).unwrap();
        }
    }
    for file in 0..50 {
        File::create(path.join(format!("left/moving/{file}"))).unwrap();
    }
    let most = walk(&path).inodes_used.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let mover = thread::spawn({
        let (path, is_over) = (path.clone(), is_over.clone());
        move || {
            while !is_over.load(Relaxed) {
                for (from, to) in [("left", "right"), ("right", "left")] {
                    fs::rename(path.join(from).join("moving"), path.join(to).join("moving")).unwrap();
                    thread::sleep(Duration::from_micros(300));
                }
            }
        }
    });
    let found: Vec<_> = (0..300).map(|_| walk(&path)).collect();
    is_over.store(true, Relaxed);
    mover.join().unwrap();
    for found in found {
        assert_eq!(found.state, State::Complete, "{found:?}");
        let inodes = found.inodes_used.unwrap();
        assert!(inodes <= most && inodes >= most - 51, "{inodes} of {most}");
    }
}

/// What waits in a directory that is moved is found all the same, in the order of the disk too.
#[test]
fn a_directory_that_is_renamed_keeps_what_waits_in_it() {
    for rotating in [Rotating::No, Rotating::Yes] {
        let base = common::in_memory();
        let volume = base.path().join("volume");
        for number in 0..1000 {
            let directory = volume.join(format!("top/{}/{number}", number / 10));
            fs::create_dir_all(&directory).unwrap();
            File::create(directory.join("file")).unwrap();
        }
        let config = Config {
            rotating,
            entries_per_second: 2000,
            statfs: false,
            ..Config::full_speed()
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        let _running = lp_measure::start(vec![inside(&volume, "")], config, move |_, found| {
            sender.send(found).unwrap()
        });
        thread::sleep(Duration::from_millis(400));
        fs::rename(volume.join("top"), volume.join("renamed")).unwrap();
        let found = receiver.recv().unwrap();
        assert_eq!(
            (found.state, found.inodes_used),
            (State::Complete, Some(2 + 100 + 2 * 1000)),
            "{rotating:?}: {found:?}"
        );
    }
}

/// For two seconds somebody swaps the volume's directory, one on the way and one inside for symbolic links to a place
/// that must not be read. Not one entry of it is ever counted.
#[test]
fn swapping_directories_for_links_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    for number in 0..2000 {
        File::create(outside.path().join(number.to_string())).unwrap();
    }
    let base = tempfile::tempdir().unwrap();
    let path = base.path().to_owned();
    for directory in ["way/volume/a/b", "way/volume/c"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    let places = ["way", "way/volume", "way/volume/a", "way/volume/a/b", "way/volume/c"];
    let is_over = Arc::new(AtomicBool::new(false));
    let swappers: Vec<_> = places
        .iter()
        .enumerate()
        .map(|(number, place)| {
            let (place, link, is_over) = (path.join(place), path.join(format!("link {number}")), is_over.clone());
            symlink(outside.path(), &link).unwrap();
            thread::spawn(move || {
                let mut swaps = 0;
                while !is_over.load(Relaxed) {
                    // The other one of the two may be moved away by another swapper just now.
                    let done = renameat_with(CWD, &place, CWD, &link, RenameFlags::EXCHANGE);
                    swaps += u32::from(done.is_ok());
                }
                swaps
            })
        })
        .collect();
    let began = Instant::now();
    let (mut complete, mut escaped, mut other) = (0, 0, 0);
    while began.elapsed() < Duration::from_secs(2) {
        for found in measure(
            vec![inside(&path, "way/volume"), inside(&path, "way")],
            Config::full_speed(),
        ) {
            // Whichever of its few directories and links were there: never one of the two thousand.
            assert!(found.entries < 20, "{found:?}");
            match found.state {
                State::Complete => complete += 1,
                State::EscapesBase => escaped += 1,
                _ => other += 1,
            }
        }
    }
    is_over.store(true, Relaxed);
    let swaps: u32 = swappers.into_iter().map(|swapper| swapper.join().unwrap()).sum();
    println!("{swaps} swaps, {complete} complete, {escaped} escaping, {other} other");
    assert!(
        swaps > 100 && escaped > 10 && complete > 10,
        "{swaps} swaps, {complete} complete, {escaped} escaping"
    );
}

/// A volume that is removed while it is read is missing; it is not an empty volume.
#[test]
fn a_volume_that_is_removed_meanwhile_is_missing() {
    let base = tempfile::tempdir().unwrap();
    let volume = base.path().join("volume");
    fs::create_dir(&volume).unwrap();
    for number in 0..1000 {
        File::create(volume.join(number.to_string())).unwrap();
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    // Far slower than a busy machine removes them.
    let slow = Config {
        entries_per_second: 60,
        statfs: false,
        ..Config::full_speed()
    };
    let _running = lp_measure::start(vec![inside(base.path(), "volume")], slow, move |_, found| {
        sender.send(found).unwrap()
    });
    // Progress tells of a directory only if it was asked for before that was begun.
    let is_open = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().flatten();
        descriptors
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|path| path == volume)
    };
    while !is_open() {
        thread::sleep(Duration::from_millis(5));
    }
    fs::remove_dir_all(&volume).unwrap();
    let found = receiver.recv().unwrap();
    assert_eq!((found.state, found.used_bytes), (State::Missing, None), "{found:?}");
}
