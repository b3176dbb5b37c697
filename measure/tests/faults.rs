//! Disks that fail, disks that hang, and slow ones on which others wait. Needs root and the kernel's device mapper; `LP_EXPORTER_TEST_DISK` may name a
//! blank disk, else a loop device is used.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{du, inside, output, run, skip, skip_without};
use lp_measure::{Config, Measurement, Method, Rotating, State, Target, measure, start};

/// What a slow disk takes for each request, as one with a head does.
const DELAY_MILLISECONDS: u64 = 8;

/// A disk whose table can be changed under a mounted file system.
struct Disk {
    name: &'static str,
    device: String,
    sectors: u64,
    is_loop: bool,
    directory: tempfile::TempDir,
}

impl Disk {
    fn new(name: &'static str) -> Option<Disk> {
        if !common::is_root() {
            skip(name, "device mapper needs root");
            return None;
        }
        match std::process::Command::new("dmsetup").arg("version").output() {
            Ok(version) if version.status.success() => {}
            Ok(version) => {
                skip_without(
                    "device-mapper",
                    name,
                    String::from_utf8_lossy(&version.stderr)
                        .lines()
                        .next()
                        .unwrap_or("dmsetup fails"),
                );
                return None;
            }
            Err(error) => {
                skip_without("device-mapper", name, &format!("dmsetup: {error}"));
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let (device, is_loop) = match std::env::var("LP_EXPORTER_TEST_DISK") {
            Ok(device) => (device, false),
            Err(_) => {
                let image = directory.path().join("image");
                fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
                (
                    run("losetup", &["-f", "--show", image.to_str().unwrap()])
                        .trim()
                        .to_owned(),
                    true,
                )
            }
        };
        let short = device.trim_start_matches("/dev/");
        let sectors = fs::read_to_string(format!("/sys/class/block/{short}/size"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let disk = Disk {
            name,
            device,
            sectors,
            is_loop,
            directory,
        };
        run("dmsetup", &["create", name, "--table", &disk.table("linear")]);
        run("dmsetup", &["mknodes"]);
        run("mkfs.ext4", &["-q", "-F", &disk.mapped()]);
        fs::create_dir(disk.path()).unwrap();
        run("mount", &[&disk.mapped(), disk.path().to_str().unwrap()]);
        Some(disk)
    }

    fn mapped(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    fn table(&self, target: &str) -> String {
        match target {
            "error" => format!("0 {} error", self.sectors),
            "delay" => format!("0 {} delay {} 0 {DELAY_MILLISECONDS}", self.sectors, self.device),
            _ => format!("0 {} linear {} 0", self.sectors, self.device),
        }
    }

    /// Unmounts and mounts: what the journal still holds would be in memory else.
    fn forget(&self) {
        run("umount", &[self.path().to_str().unwrap()]);
        run("mount", &[&self.mapped(), self.path().to_str().unwrap()]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }

    fn load(&self, target: &str) {
        run("dmsetup", &["load", self.name, "--table", &self.table(target)]);
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", self.name]);
        run("dmsetup", &["resume", self.name]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // In a test that failed these may fail as well; that must not hide why.
        output("dmsetup", &["resume", self.name]);
        output("umount", &["-l", self.path().to_str().unwrap()]);
        output("dmsetup", &["remove", "--retry", self.name]);
        if self.is_loop {
            output("losetup", &["-d", &self.device]);
        }
    }
}

fn plant(path: &Path) {
    for number in 0..3000 {
        let directory = path.join(format!("{}/{}", number % 3, number % 50));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(number.to_string()), b"x").unwrap();
    }
    run("sync", &[]);
}

fn healthy() -> tempfile::TempDir {
    let healthy = tempfile::tempdir().unwrap();
    plant(healthy.path());
    healthy
}

#[test]
fn a_disk_that_fails_is_a_state_and_no_number() {
    let Some(disk) = Disk::new("lpmeasurefails") else {
        return;
    };
    plant(&disk.path());
    let healthy = healthy();
    for rotating in [Rotating::No, Rotating::Yes] {
        disk.forget();
        // The volume's own directory can be opened; what is below cannot be read.
        let _known = fs::File::open(disk.path().join("1")).unwrap();
        disk.load("error");
        let targets = vec![inside(&disk.path(), "1"), inside(healthy.path(), "1")];
        let found = measure(
            targets,
            Config {
                rotating,
                ..Config::full_speed()
            },
        );
        disk.load("linear");
        println!("{:?}", found[0]);
        assert_eq!(
            (found[0].state, found[0].used_bytes, found[0].method),
            (State::IoError, None, None)
        );
        assert!(
            found[0].state_detail.as_ref().unwrap().contains("os error"),
            "{:?}",
            found[0]
        );
        assert_eq!(found[1].used_bytes, Some(du(&healthy.path().join("1"), &["-B1"])));
    }
}

#[test]
fn a_disk_that_hangs_costs_no_other_volume_its_number() {
    const BUDGET: Duration = Duration::from_secs(12);
    let Some(disk) = Disk::new("lpmeasurehangs") else {
        return;
    };
    plant(&disk.path());
    let healthy = healthy();
    // The hanging ones come first and are more than the threads that there are.
    let mut targets: Vec<Target> = (0..3).map(|number| inside(&disk.path(), number.to_string())).collect();
    targets.extend((0..3).map(|number| inside(healthy.path(), number.to_string())));
    let config = Config {
        total_budget: Some(BUDGET),
        threads_max: 2.try_into().unwrap(),
        ..Config::full_speed()
    };
    disk.forget();
    run("dmsetup", &["suspend", "--noflush", "--nolockfs", disk.name]);
    let began = Instant::now();
    let (sender, receiver) = std::sync::mpsc::channel();
    let _running = start(targets, config, move |index, found| {
        // The receiver ends with the test.
        let _ = sender.send((index, began.elapsed(), found));
    });
    let found: Vec<(usize, Duration, Measurement)> = receiver.iter().take(6).collect();
    run("dmsetup", &["resume", disk.name]);
    assert_eq!(found.len(), 6);
    for (index, after, found) in found {
        println!("{index} after {after:?}: {} {:?}", found.state, found.state_detail);
        if index < 3 {
            assert_eq!((found.state, found.used_bytes), (State::Timeout, None), "{found:?}");
            assert!(after < BUDGET + Duration::from_secs(2), "{after:?}");
        } else {
            let path = healthy.path().join((index - 3).to_string());
            assert_eq!(
                (found.method, found.used_bytes),
                (Some(Method::Walk), Some(du(&path, &["-B1"])))
            );
            assert!(after < BUDGET - Duration::from_secs(2), "{after:?}");
        }
    }
}

/// Directories each of which has to be read from the disk by itself: a slow one takes seconds for them.
const DIRECTORIES: usize = 600;

/// A slow disk with a tree on it, where the kernel tells of pressure.
fn slow(name: &'static str) -> Option<Disk> {
    if let Err(error) = fs::read_to_string(PRESSURE) {
        skip(
            name,
            &format!("the kernel does not tell of pressure: {PRESSURE}: {error}"),
        );
        return None;
    }
    let disk = Disk::new(name)?;
    for number in 0..DIRECTORIES {
        let directory = disk.path().join(format!("{}/{number}", number % 30));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("file"), b"x").unwrap();
    }
    run("sync", &[]);
    disk.load("delay");
    Some(disk)
}

const PRESSURE: &str = "/proc/pressure/io";

/// Measures a slow disk gently, from nothing in memory, and says how long that took.
fn measure_slow(disk: &Disk, pressure_file: Option<PathBuf>) -> Duration {
    let config = Config {
        total_budget: Some(Duration::from_secs(120)),
        entries_per_second: 0,
        rotating: Rotating::No,
        statfs: false,
        pressure_file,
        ..Config::gentle()
    };
    let began = Instant::now();
    let found = measure(vec![inside(&disk.path(), "")], config).remove(0);
    let took = began.elapsed();
    assert_eq!(found.state, State::Complete, "{found:?}");
    assert!(found.inodes_used.unwrap() > 2 * DIRECTORIES as u64, "{found:?}");
    took
}

/// By the kernel's own figures: it tells that somebody waits for the disk, and that is us.
#[test]
fn only_us_on_a_slow_disk_hardly_pauses() {
    let Some(disk) = slow("lpmeasurealone") else { return };
    // What else this machine does may hold up either of the two.
    const TRIES: usize = 3;
    for tries in 1.. {
        disk.forget();
        let without = measure_slow(&disk, None);
        disk.forget();
        let before = stalled();
        let with = measure_slow(&disk, Some(PRESSURE.into()));
        let share = (stalled() - before).as_secs_f64() / with.as_secs_f64();
        println!(
            "\nfigures of the run on a slow disk, alone:\n  {without:.2?} without and {with:.2?} with an eye on pressure; \
             somebody waited {:.0} % of that\n",
            share * 100.0
        );
        assert!(share > 0.2, "the disk was not slow enough to tell: {share}");
        // It stops for 100 ms now and then, to see who it is that waits.
        if with < without.mul_f64(1.2) + Duration::from_millis(500) {
            return;
        }
        assert!(tries < TRIES, "{with:?} for {without:?} of work");
    }
}

#[test]
fn others_on_a_slow_disk_make_us_pause_until_they_are_done() {
    let Some(disk) = slow("lpmeasureothers") else { return };
    disk.forget();
    let alone = measure_slow(&disk, None);
    disk.forget();
    let others_take = alone * 2 + Duration::from_secs(3);
    let path = disk.path().join("somebody's");
    let (sender, receiver) = std::sync::mpsc::channel();
    let others = std::thread::spawn(move || {
        let began = Instant::now();
        let mut syncs = 0;
        while began.elapsed() < others_take {
            fs::write(&path, vec![1; 4096]).unwrap();
            fs::File::open(&path).unwrap().sync_all().unwrap();
            syncs += 1;
            // The test has ended if nobody listens.
            let _ = sender.send(());
        }
        syncs
    });
    receiver.recv().unwrap();
    let took = measure_slow(&disk, Some(PRESSURE.into()));
    let syncs = others.join().unwrap();
    println!(
        "\nfigures of the run on a slow disk, beside others:\n  {took:.2?} beside others that wrote and synced {syncs} times \
         for {others_take:.2?}, {alone:.2?} alone without an eye on pressure\n"
    );
    assert!(
        took > others_take.mul_f64(0.9),
        "{took:?}: it read while others waited for {others_take:?}"
    );
    assert!(
        took < others_take + alone * 2 + Duration::from_secs(5),
        "{took:?}: it went on pausing"
    );
}

/// The time for which somebody waited for a disk, as the kernel tells it.
fn stalled() -> Duration {
    let text = fs::read_to_string(PRESSURE).unwrap();
    let some = text.lines().find_map(|line| line.strip_prefix("some ")).unwrap();
    let total = some.split_once("total=").unwrap().1;
    Duration::from_micros(total.trim().parse().unwrap())
}
