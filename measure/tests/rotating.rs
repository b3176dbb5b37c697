//! The way of a disk's head, from the kernel's own trace of its requests: no more of them than `du`, and a tenth of its
//! seeks. Needs root, blktrace, and a blank disk in `LP_EXPORTER_TEST_DISK`.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{du, run, skip, skip_without, whole};
use lp_measure::{Config, Rotating, State, measure};

/// Requests that begin further than this from the last one's end move the head: 1 MiB in sectors.
const SEEK_SECTORS: u64 = 2048;

/// How often it may be tried.
const TRIES: usize = 3;

struct Way {
    requests: u64,
    seeks: u64,
    sectors_moved: u64,
}

fn blank_disk() -> Option<String> {
    const WHAT: &str = "the way of a disk's head";
    let Ok(disk) = std::env::var("LP_EXPORTER_TEST_DISK") else {
        skip_without("blank-disk", WHAT, "LP_EXPORTER_TEST_DISK names no blank disk");
        return None;
    };
    for program in ["blktrace", "blkparse"] {
        if let Err(error) = Command::new(program).arg("-V").output() {
            skip(WHAT, &format!("{program}: {error}"));
            return None;
        }
    }
    Some(disk)
}

/// Mounts afresh, runs something, and returns the way of the head meanwhile.
fn traced(disk: &str, mounted: &Path, traces: &Path, measure: impl FnOnce()) -> Way {
    run("umount", &[mounted.to_str().unwrap()]);
    run("mount", &["-o", "noatime", disk, mounted.to_str().unwrap()]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let directory = traces.to_str().unwrap();
    let arguments = ["-d", disk, "-D", directory, "-o", "trace", "-a", "issue"];
    let mut tracer = Command::new("blktrace")
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // It has no way to say that it has begun.
    thread::sleep(Duration::from_secs(3));
    measure();
    run("kill", &["-INT", &tracer.id().to_string()]);
    tracer.wait().unwrap();
    let parsed = run(
        "blkparse",
        &["-q", "-D", directory, "-i", "trace", "-f", "%a %d %S %n\\n"],
    );
    let mut way = Way {
        requests: 0,
        seeks: 0,
        sectors_moved: 0,
    };
    let mut head = None;
    for line in parsed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &["D", kind, sector, count] = &words[..] else {
            continue;
        };
        let (Ok(sector), Ok(count)) = (sector.parse::<u64>(), count.parse::<u64>()) else {
            continue;
        };
        if !kind.contains('R') || count == 0 {
            continue;
        }
        let distance = sector.abs_diff(head.unwrap_or(sector));
        way.requests += 1;
        way.seeks += u64::from(distance > SEEK_SECTORS);
        way.sectors_moved += distance;
        head = Some(sector + count);
    }
    way
}

#[test]
fn the_head_goes_its_way_once() {
    let Some(disk) = blank_disk() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (mounted, traces) = (directory.path().join("mounted"), directory.path().join("traces"));
    fs::create_dir(&mounted).unwrap();
    fs::create_dir(&traces).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-i", "8192", &disk]);
    run("mount", &[&disk, mounted.to_str().unwrap()]);
    // As it gets with the years: directories and files made in turn all over the disk.
    const DIRECTORIES: usize = 1500;
    for directory in 0..DIRECTORIES {
        fs::create_dir_all(mounted.join(format!("{}/{directory}", directory % 40))).unwrap();
    }
    for file in 0..20_000 {
        let directory = file * 7919 % DIRECTORIES;
        File::create(mounted.join(format!("{}/{directory}/{file}", directory % 40))).unwrap();
    }
    let by_du = traced(&disk, &mounted, &traces, || {
        du(&mounted, &["-B1"]);
    });
    let ours = || {
        let config = Config {
            rotating: Rotating::Yes,
            statfs: false,
            ..Config::full_speed()
        };
        let found = measure(vec![whole(&mounted)], config).remove(0);
        assert_eq!(
            (found.state, found.used_bytes),
            (State::Complete, Some(du(&mounted, &["-B1"])))
        );
    };
    let keeps_to_the_bar = |way: &Way| way.requests <= by_du.requests && way.seeks * 10 <= by_du.seeks;
    let mut by_us = traced(&disk, &mounted, &traces, ours);
    // On a busy machine the emulated processor is at times slower than its disk, and the disk seems warm.
    for _ in 1..TRIES {
        if !keeps_to_the_bar(&by_us) {
            by_us = traced(&disk, &mounted, &traces, ours);
        }
    }
    run("umount", &[mounted.to_str().unwrap()]);
    println!("\nfigures of the run on a disk with a head:");
    for (who, way) in [("du", &by_du), ("ours", &by_us)] {
        println!(
            "  {who}: {} requests, {} seeks, {} sectors moved",
            way.requests, way.seeks, way.sectors_moved
        );
    }
    println!();
    assert!(keeps_to_the_bar(&by_us));
}
