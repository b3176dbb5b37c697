//! On file systems of our own, on loop devices: what is particular to each, and mounts inside. Needs root.
//!
//! Where `du` is the wrong witness the expected number stands in the test with its reason.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Mounted, assert_like_du, du, inside, mount, output, run, skip, walk, whole};
use lp_measure::{Config, FileSystem, Measurement, Method, Rotating, State, Target, Wanted, measure};
use rustix::fs::{FallocateFlags, fallocate};

const SIZE_BYTES: u64 = 400 << 20;

fn plant(volume: &Path) {
    for directory in ["a/b/c", "a/d", "many"] {
        fs::create_dir_all(volume.join(directory)).unwrap();
    }
    for number in 0..2000 {
        fs::write(volume.join(format!("many/{number}")), vec![1; number * 3]).unwrap();
    }
    for number in 0..100 {
        fs::hard_link(
            volume.join(format!("many/{number}")),
            volume.join(format!("a/d/{number}")),
        )
        .unwrap();
    }
    File::create(volume.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    let preallocated = File::create(volume.join("preallocated")).unwrap();
    // Not every file system can.
    let _ = fallocate(preallocated.as_fd(), FallocateFlags::KEEP_SIZE, 0, 5 << 20);
    let data: Vec<u8> = (0..2_000_000u32).map(|number| (number % 251) as u8).collect();
    fs::write(volume.join("original"), &data).unwrap();
    // Blocks that two files share: reflinks where the file system knows them, a copy elsewhere.
    run(
        "cp",
        &[
            "--reflink=auto",
            volume.join("original").to_str().unwrap(),
            volume.join("copy").to_str().unwrap(),
        ],
    );
    fs::write(volume.join("compressible"), vec![0x41; 3 << 20]).unwrap();
}

#[test]
fn each_file_system() {
    for (kind, options) in [
        ("ext4", "rw"),
        // XFS reserves blocks ahead of a file's end, and gives them back later.
        ("xfs", "allocsize=4k"),
        ("btrfs", "compress=zstd"),
        ("tmpfs", "size=200m"),
    ] {
        let Some(disk) = Mounted::new(kind, SIZE_BYTES, options) else {
            continue;
        };
        let volume = disk.path.join("volume");
        fs::create_dir(&volume).unwrap();
        plant(&volume);
        assert_like_du(&volume, kind);
        assert_like_du(&disk.path, &format!("{kind}, the whole"));
    }
}

#[test]
fn a_subvolume_of_btrfs_inside_is_the_volumes() {
    let Some(disk) = Mounted::new("btrfs", SIZE_BYTES, "rw") else {
        return;
    };
    let volume = disk.path.join("volume");
    let subvolume = volume.join("nested");
    run("btrfs", &["-q", "subvolume", "create", volume.to_str().unwrap()]);
    run("btrfs", &["-q", "subvolume", "create", subvolume.to_str().unwrap()]);
    fs::write(volume.join("outer"), vec![1; 100_000]).unwrap();
    fs::write(subvolume.join("inner"), vec![1; 200_000]).unwrap();
    // The two files have the same inode number, each in its own subvolume; so do the links.
    for directory in [&volume, &subvolume] {
        fs::write(directory.join("linked"), vec![1; 30_000]).unwrap();
        fs::hard_link(directory.join("linked"), directory.join("again")).unwrap();
    }
    // du goes in unless it is told to stay on one device (-x), as it is when it measures a volume: the boundary is a
    // mount, and there is none.
    let found = assert_like_du(&volume, "with a subvolume");
    assert!(
        found.used_bytes.unwrap() > 320_000 && found.mounts_skipped == 0,
        "{found:?}"
    );
}

#[test]
fn overlay_over_two_file_systems() {
    let (Some(lower), Some(upper)) = (
        Mounted::new("ext4", SIZE_BYTES, "rw"),
        Mounted::new("tmpfs", 0, "size=50m"),
    ) else {
        return;
    };
    let Some(merged) = Mounted::new("tmpfs", 0, "size=1m") else {
        return;
    };
    for directory in ["upper", "work"] {
        fs::create_dir(upper.path.join(directory)).unwrap();
    }
    plant(&lower.path);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.path.display(),
        upper.path.join("upper").display(),
        upper.path.join("work").display()
    );
    let target = merged.path.join("merged");
    fs::create_dir(&target).unwrap();
    let mounted = output(
        "mount",
        &["-t", "overlay", "overlay", "-o", &options, target.to_str().unwrap()],
    );
    if !mounted.status.success() {
        return skip("overlay", String::from_utf8_lossy(&mounted.stderr).trim());
    }
    fs::write(target.join("a/new"), vec![1; 70_000]).unwrap();
    fs::remove_dir_all(target.join("many")).unwrap();
    // The device numbers differ inside, so du must not be told to stay on one.
    let found = assert_like_du(&target, "overlay");
    assert_eq!(found.mounts_skipped, 0);
}

#[test]
fn mounts_inside_are_neither_entered_nor_counted() {
    let Some(disk) = Mounted::new("ext4", SIZE_BYTES, "rw") else {
        return;
    };
    let path = &disk.path;
    for directory in ["volume/a/bind", "volume/a/loop", "volume/tmpfs", "elsewhere/deep"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    fs::write(path.join("elsewhere/deep/data"), vec![1; 500_000]).unwrap();
    fs::write(path.join("volume/a/own"), vec![1; 50_000]).unwrap();
    for file in ["volume/covered", "volume/linked", "elsewhere/single"] {
        fs::write(path.join(file), vec![1; 20_000]).unwrap();
    }
    fs::hard_link(path.join("volume/linked"), path.join("volume/a/link")).unwrap();
    run("sync", &["-f", path.to_str().unwrap()]);
    let volume = path.join("volume");
    // du is no witness here: -x enters bind mounts of the same file system. What is covered cannot be read, so the
    // number is what it was before, less three empty directories and one file.
    let covered = ["a/bind", "a/loop", "tmpfs", "covered"].map(|place| du(&volume.join(place), &["-B1"]));
    let used = du(&volume, &["-B1"]) - covered.iter().sum::<u64>();
    let inodes = du(&volume, &["--inodes"]) - 4;
    let name = |relative: &str| path.join(relative).to_str().unwrap().to_owned();
    mount(&["--bind", &name("elsewhere"), &name("volume/a/bind")]);
    mount(&["--rbind", &name("volume"), &name("volume/a/loop")]);
    mount(&["-t", "tmpfs", "tmpfs", &name("volume/tmpfs")]);
    fs::write(volume.join("tmpfs/data"), vec![1; 100_000]).unwrap();
    mount(&["--bind", &name("elsewhere/single"), &name("volume/covered")]);
    let found = walk(&volume);
    let numbers = |found: &Measurement| (found.state, found.used_bytes, found.inodes_used, found.mounts_skipped);
    assert_eq!(
        numbers(&found),
        (State::Complete, Some(used), Some(inodes), 4),
        "{found:?}"
    );
    // Reached across a mount, a volume is measured all the same.
    let found = measure(vec![inside(path, "volume/a/bind")], Config::full_speed()).remove(0);
    assert_eq!(
        found.used_bytes,
        Some(du(&path.join("elsewhere"), &["-B1"])),
        "{found:?}"
    );
    // A volume inside another one, with a mount between them, is none of the outer one's.
    let found = measure(
        vec![inside(path, "volume"), inside(path, "volume/tmpfs")],
        Config::full_speed(),
    );
    assert_eq!(
        numbers(&found[0]),
        (State::Complete, Some(used), Some(inodes), 4),
        "{found:?}"
    );
    assert_eq!(found[1].method, Some(Method::Statfs), "{found:?}");
}

#[test]
fn a_file_system_answers_for_a_volume_that_has_it_to_itself() {
    for (kind, method) in [
        ("ext4", Method::Statfs),
        ("xfs", Method::Statfs),
        ("tmpfs", Method::Statfs),
        ("btrfs", Method::Walk),
    ] {
        let options = if kind == "tmpfs" { "size=50m" } else { "rw" };
        let Some(disk) = Mounted::new(kind, SIZE_BYTES, options) else {
            continue;
        };
        fs::write(disk.path.join("data"), vec![1; 10_000_000]).unwrap();
        fs::create_dir(disk.path.join("volume")).unwrap();
        run("sync", &["-f", disk.path.to_str().unwrap()]);
        let one = |config: Config, target| measure(vec![target], config).remove(0);
        let found = one(Config::full_speed(), whole(&disk.path));
        assert_eq!(
            (found.state, found.method),
            (State::Complete, Some(method)),
            "{kind}: {found:?}"
        );
        let walked = walk(&disk.path);
        if method == Method::Statfs {
            let df = run("df", &["-B1", "--output=used,iused", disk.path.to_str().unwrap()]);
            let df: Vec<u64> = df.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            assert_eq!(
                vec![found.used_bytes.unwrap(), found.inodes_used.unwrap()],
                df,
                "{kind}"
            );
            assert_eq!(found.apparent_bytes, None, "{kind}");
            assert!(found.used_bytes >= walked.used_bytes, "{kind}: metadata counts too");
        }
        assert_eq!(walked.method, Some(Method::Walk));
        // A directory on it has it not to itself, and the largest directories cannot be had without a walk.
        assert_eq!(
            one(Config::full_speed(), inside(&disk.path, "volume")).method,
            Some(Method::Walk),
            "{kind}"
        );
        let top = Config {
            top_directories: 1,
            ..Config::full_speed()
        };
        assert_eq!(one(top, whole(&disk.path)).method, Some(Method::Walk), "{kind}");
        // Once it is mounted a second time, that may be another volume.
        let Some(other) = Mounted::new("tmpfs", 0, "size=1m") else {
            return;
        };
        let second = other.path.join("second");
        fs::create_dir(&second).unwrap();
        mount(&[
            "--bind",
            disk.path.join("volume").to_str().unwrap(),
            second.to_str().unwrap(),
        ]);
        assert_eq!(
            one(Config::full_speed(), whole(&disk.path)).method,
            Some(Method::Walk),
            "{kind}"
        );
    }
}

/// Read in the order of the disk, everything is counted just the same.
#[test]
fn a_sweep_counts_the_same() {
    let Some(disk) = Mounted::new("ext4", SIZE_BYTES, "rw") else {
        return;
    };
    plant(&disk.path);
    for number in 0..20_000 {
        let directory = disk.path.join(format!("wide/{}/{}", number % 40, number % 7));
        fs::create_dir_all(&directory).unwrap();
        File::create(directory.join(number.to_string())).unwrap();
    }
    run("sync", &["-f", disk.path.to_str().unwrap()]);
    for warm in [false, true] {
        if !warm {
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        }
        let config = Config {
            rotating: Rotating::Yes,
            statfs: false,
            ..Config::full_speed()
        };
        let found = measure(vec![whole(&disk.path)], config).remove(0);
        assert_eq!(found.used_bytes, Some(du(&disk.path, &["-B1"])), "{found:?}");
        assert_eq!(found.inodes_used, Some(du(&disk.path, &["--inodes"])), "{found:?}");
    }
}

/// Spoils every place of an image that holds these bytes, a sector or two each.
fn spoil(image: &Path, holding: &str, is_directory_block: impl Fn(&[u8]) -> bool) {
    const BLOCK_BYTES: u64 = 4096;
    const SPOILED_BYTES: u64 = 1024;
    let places = run("grep", &["-obUaF", holding, image.to_str().unwrap()]);
    let places = places.lines().map(|line| line.split_once(':').unwrap().0);
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut count = 0;
    for place in places.map(|place| place.parse::<u64>().unwrap()) {
        let mut block = [0; BLOCK_BYTES as usize];
        file.read_exact_at(&mut block, place / BLOCK_BYTES * BLOCK_BYTES)
            .unwrap();
        if is_directory_block(&block) {
            let garbage = [0x55; SPOILED_BYTES as usize];
            file.write_all_at(&garbage, place / SPOILED_BYTES * SPOILED_BYTES)
                .unwrap();
            count += 1;
        }
    }
    assert!(count > 0, "no place in the image holds {holding}");
}

/// A file system, how much is in each directory, what is done to its image, and the place that cannot be read then.
struct Corruption<'a> {
    kind: &'a str,
    what: &'a str,
    files: usize,
    spoil: &'a dyn Fn(&Path),
    place: &'a str,
}

#[test]
fn a_corrupted_directory_is_a_state_and_no_number() {
    const LAST: &str = "the last one of all";
    let spoil_any = |image: &Path| spoil(image, LAST, |_| true);
    let spoil_xfs = |image: &Path| spoil(image, LAST, |block| block.starts_with(b"XDB3"));
    let clear_inode = |image: &Path| {
        let command = format!("clri \"/ill/odd/{LAST}\"");
        run("debugfs", &["-w", "-R", &command, image.to_str().unwrap()]);
    };
    let own = format!("odd/{LAST}");
    let case = |kind, what, files, spoil, place| Corruption {
        kind,
        what,
        files,
        spoil,
        place,
    };
    let cases = [
        case("ext4", "a directory of one block", 10, &spoil_any, "odd"),
        case("ext4", "a leaf of a directory's tree", 3000, &spoil_any, "odd"),
        case("ext4", "an inode", 10, &clear_inode, &own),
        case("xfs", "a directory of one block", 50, &spoil_xfs, "odd"),
    ];
    let healthy = tempfile::tempdir().unwrap();
    fs::write(healthy.path().join("file"), vec![1; 5000]).unwrap();
    for case in cases {
        let Corruption {
            kind,
            what,
            files,
            spoil,
            place,
        } = case;
        let Some(disk) = Mounted::new(kind, SIZE_BYTES, "rw") else {
            continue;
        };
        for volume in ["ill", "well"] {
            for directory in ["odd", "sound"] {
                let directory = disk.path.join(volume).join(directory);
                fs::create_dir_all(&directory).unwrap();
                for number in 0..files {
                    fs::write(directory.join(format!("file {number}")), b"x").unwrap();
                }
            }
        }
        fs::write(disk.path.join("ill/odd").join(LAST), b"x").unwrap();
        disk.change_image(spoil);
        for rotating in [Rotating::No, Rotating::Yes] {
            fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
            let config = Config {
                rotating,
                ..Config::full_speed()
            };
            let targets = vec![
                inside(&disk.path, "ill"),
                inside(&disk.path, "well"),
                whole(healthy.path()),
            ];
            let found = measure(targets, config);
            let (ill, first) = (&found[0], &found[0].first_errors);
            assert_eq!(
                (ill.state, ill.used_bytes, ill.apparent_bytes, ill.inodes_used),
                (State::IoError, None, None, None),
                "{kind}, {what}: {ill:?}"
            );
            assert_eq!((ill.errors, first.len()), (1, 1), "{kind}, {what}: {ill:?}");
            assert_eq!(first[0].path, Path::new(place), "{kind}, {what}");
            let told = ["Bad message", "Structure needs cleaning"];
            assert!(
                told.iter().any(|told| first[0].error.contains(told)),
                "{kind}, {what}: {ill:?}"
            );
            for (found, path) in found[1..].iter().zip([&disk.path.join("well"), healthy.path()]) {
                assert_eq!(found.used_bytes, Some(du(path, &["-B1"])), "{kind}, {what}: {found:?}");
            }
        }
    }
}

/// What `df` says of a path: size, available, used, inodes, inodes free.
fn df(path: &Path) -> [u64; 5] {
    let text = run(
        "df",
        &["-B1", "--output=size,avail,used,itotal,iavail", path.to_str().unwrap()],
    );
    let numbers = text.lines().nth(1).unwrap().split_whitespace();
    let numbers: Vec<u64> = numbers.map(|number| number.parse().unwrap_or(0)).collect();
    numbers.try_into().unwrap()
}

fn numbers(file_system: &FileSystem) -> [u64; 5] {
    let FileSystem {
        size_bytes,
        available_bytes,
        used_bytes,
        inodes,
        inodes_free,
        ..
    } = file_system;
    [*size_bytes, *available_bytes, *used_bytes, *inodes, *inodes_free]
}

/// A base directory's file system, without what lies in it.
fn probe(base: &Path) -> Measurement {
    let target = Target {
        wanted: Wanted::FileSystem,
        ..whole(base)
    };
    measure(vec![target], Config::full_speed()).remove(0)
}

#[test]
fn file_systems_tell_what_df_tells() {
    for (kind, options) in [("ext4", "rw"), ("xfs", "rw"), ("btrfs", "rw"), ("tmpfs", "size=20m")] {
        let Some(disk) = Mounted::new(kind, SIZE_BYTES, options) else {
            continue;
        };
        fs::create_dir(disk.path.join("volume")).unwrap();
        fs::write(disk.path.join("volume/file"), vec![1; 3_000_000]).unwrap();
        run("sync", &["-f", disk.path.to_str().unwrap()]);
        let targets = vec![inside(&disk.path, "volume"), inside(&disk.path, "missing")];
        let found = measure(targets, Config::full_speed());
        let file_system = found[0].file_system.clone().expect("it was opened");
        assert_eq!(numbers(&file_system), df(&disk.path), "{kind}");
        assert_eq!((file_system.kind.as_str(), file_system.is_read_only), (kind, false));
        let device = run("findmnt", &["-no", "MAJ:MIN", "-T", disk.path.to_str().unwrap()]);
        assert_eq!(file_system.device, device.trim(), "{kind}");
        assert_eq!((found[1].state, &found[1].file_system), (State::Missing, &None));

        let probed = probe(&disk.path);
        assert_eq!(
            (probed.state, probed.used_bytes, probed.method),
            (State::Complete, None, None)
        );
        assert_eq!(probed.file_system, Some(file_system), "{kind}");
        assert!(
            probed.directory.is_some() && probed.directory != found[0].directory,
            "{kind}"
        );
    }
    let missing = probe(Path::new("/there is/no such directory"));
    assert_eq!((missing.state, missing.file_system), (State::BaseMissing, None));
}

#[test]
fn subvolumes_are_one_device() {
    let Some(disk) = Mounted::new("btrfs", SIZE_BYTES, "rw") else {
        return;
    };
    let subvolume = disk.path.join("subvolume");
    run("btrfs", &["-q", "subvolume", "create", subvolume.to_str().unwrap()]);
    let (whole, part) = (probe(&disk.path).file_system, probe(&subvolume).file_system);
    assert_eq!(whole.map(|one| one.device), part.map(|one| one.device));
}

#[test]
fn a_read_only_mount_of_a_writable_file_system_is_writable() {
    let Some(disk) = Mounted::new("ext4", SIZE_BYTES, "rw") else {
        return;
    };
    let is_read_only = |path: &Path| probe(path).file_system.unwrap().is_read_only;
    for name in ["volume", "bound"] {
        fs::create_dir(disk.path.join(name)).unwrap();
    }
    let text = |name: &str| disk.path.join(name).to_str().unwrap().to_owned();
    mount(&["--bind", &text("volume"), &text("bound")]);
    mount(&["-o", "remount,bind,ro", &text("bound")]);
    assert!(fs::write(disk.path.join("bound/file"), "x").is_err());
    assert!(!is_read_only(&disk.path.join("bound")));
    run("umount", &[&text("bound")]);
    mount(&["-o", "remount,ro", disk.path.to_str().unwrap()]);
    assert!(is_read_only(&disk.path));
}

/// Where the kernel numbers directories anew when memory is short, what waits in them is found again by its place.
#[test]
fn directories_that_are_numbered_anew_are_not_lost() {
    let (Some(lower), Some(upper)) = (
        Mounted::new("ext4", SIZE_BYTES, "rw"),
        Mounted::new("ext4", SIZE_BYTES, "rw"),
    ) else {
        return;
    };
    for number in 0..150 * 4 {
        let directory = lower.path.join(format!("tree/d{}/s{}/u", number / 4, number % 4));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("f"), "x").unwrap();
    }
    let merged = upper.path.join("merged");
    for directory in ["upper", "work", "merged"] {
        fs::create_dir(upper.path.join(directory)).unwrap();
    }
    let options = format!(
        "xino=off,lowerdir={},upperdir={},workdir={}",
        lower.path.display(),
        upper.path.join("upper").display(),
        upper.path.join("work").display()
    );
    let arguments = ["-t", "overlay", "overlay", "-o", &options, merged.to_str().unwrap()];
    let mounted = output("mount", &arguments);
    if !mounted.status.success() {
        return skip("overlay", String::from_utf8_lossy(&mounted.stderr).trim());
    }
    let expected = (State::Complete, Some(1 + 150 + 150 * 4 * 3));
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                // As when memory is short.
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            }
        });
        let found = [Rotating::No, Rotating::Yes].map(|rotating| {
            let config = Config {
                rotating,
                statfs: false,
                ..Config::full_speed()
            };
            measure(vec![inside(&merged, "tree")], config).remove(0)
        });
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        for found in found {
            assert_eq!((found.state, found.inodes_used), expected, "{found:?}");
        }
    });
}

/// In a snapshot the subvolumes that it leaves out are empty directories, all of them with one inode number.
#[test]
fn what_a_snapshot_leaves_out_are_directories_all_the_same() {
    let Some(disk) = Mounted::new("btrfs", SIZE_BYTES, "rw") else {
        return;
    };
    let text = |name: &str| disk.path.join(name).to_str().unwrap().to_owned();
    run("btrfs", &["-q", "subvolume", "create", &text("volume")]);
    for number in 0..4 {
        run(
            "btrfs",
            &["-q", "subvolume", "create", &text(&format!("volume/{number}"))],
        );
    }
    run(
        "btrfs",
        &["-q", "subvolume", "snapshot", &text("volume"), &text("snapshot")],
    );
    let found = assert_like_du(&disk.path.join("snapshot"), "a snapshot of subvolumes");
    assert_eq!(found.inodes_used, Some(5));
}

/// A file system that does not count cannot answer for a volume.
#[test]
fn a_tmpfs_without_limits_is_walked() {
    for options in ["size=0", "nr_inodes=0"] {
        let Some(disk) = Mounted::new("tmpfs", 0, options) else {
            return;
        };
        fs::write(disk.path.join("data"), vec![1; 1_000_000]).unwrap();
        let found = measure(vec![whole(&disk.path)], Config::full_speed()).remove(0);
        assert_eq!(found.method, Some(Method::Walk), "{options}: {found:?}");
        assert_eq!(found.used_bytes, Some(du(&disk.path, &["-B1"])), "{options}");
        assert_eq!(found.inodes_used, Some(2), "{options}");
    }
}
