//! What measuring takes: memory, the room of a small container, and the time of whoever else uses the disk.
//!
//! `cargo bench --bench limits -- [--only memory,crowd,container,neighbour] [--large] [--runs 2] [--trees DIRECTORY]`
//!
//! - memory: the peak of measuring files with one link and files with two; and of remembering inode numbers in each
//!   pattern that is known.
//! - crowd: a million entries in one directory, against `du`.
//! - container: 64 MiB and a fifth of a processor, two million files (root).
//! - neighbour: how long reads and writes of another program take beside us, and beside `du` (root).
//!
//! Bars are printed beside the figures and not enforced; that the numbers are those of `du` is. The peak is that of a
//! process of its own, as the kernel kept it for that process (VmHWM). The trees stay for the next time; `--large` makes
//! them of the size that the bars are for, which takes minutes and 6 GB. `--trees` on a file system of another kind shows
//! what its inode numbers take.
#![allow(clippy::unwrap_used)]

/// The module itself: a file system with five million files at every 64th inode would need 80 GB of inodes.
#[allow(dead_code, unused_imports)]
#[path = "../src/links.rs"]
mod links;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lp_measure::{Config, State, Target, Wanted, start};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, linkat, mknodat, openat};

type Part = (&'static str, fn(&Options));

const PARTS: [Part; 4] = [
    ("memory", memory),
    ("crowd", crowd),
    ("container", container),
    ("neighbour", neighbour),
];

/// Directories on each of the two upper levels, and files in each of the lowest.
const FAN: usize = 100;
/// A tree has so many times 10,000 files: two million, because that is what the container measures.
const FILES: usize = 200;
const FILES_LARGE: usize = 1000;
const LINKED: usize = 50;
const LINKED_LARGE: usize = 500;
const INODES_REMEMBERED: u64 = 5_000_000;
const CROWD: usize = 1_000_000;

const MEMORY_BYTES: u64 = 64 << 20;
const PROCESSOR_SHARE: f64 = 0.2;
/// What a worker has at an interval of five minutes.
const BUDGET: Duration = Duration::from_secs(240);

struct Options {
    only: Vec<String>,
    large: bool,
    runs: usize,
    trees: PathBuf,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [child, pace, seconds, path, groups @ ..] if child == "--child-measure" => {
            child_measures(pace, seconds.parse().unwrap(), Path::new(path), groups);
        }
        [child, pattern] if child == "--child-remember" => child_remembers(pattern),
        _ => {
            let options = options(&arguments);
            for (name, show) in PARTS {
                if options.only.is_empty() || options.only.iter().any(|only| only == name) {
                    show(&options);
                }
            }
        }
    }
}

fn options(arguments: &[String]) -> Options {
    let mut options = Options {
        only: Vec::new(),
        large: false,
        runs: 2,
        trees: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("limits-trees"),
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--only" => options.only = value().split(',').map(str::to_owned).collect(),
            "--large" => options.large = true,
            "--runs" => options.runs = value().parse().unwrap(),
            "--trees" => options.trees = value().into(),
            "--bench" => {} // cargo says so
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

// --- What is shown

fn memory(options: &Options) {
    println!("\nmemory: peak of a process of its own");
    println!(
        "{:>34} {:>12} {:>9} {:>8} {:>7}",
        "", "entries", "seconds", "peak MB", "bar MB"
    );
    for (tree, what, bar) in [
        (files_tree(options), "files without links", 12),
        (links_tree(options), "files with two links", 32),
    ] {
        let report = measured(&tree, "full-speed", &[]);
        println!(
            "{what:>34} {:>12} {:>9.2} {:>8.1} {bar:>7}",
            report.entries, report.seconds, report.peak_megabytes
        );
        assert_eq!(report.used_bytes, du(&tree, "-B1"), "{what}");
    }
    for (pattern, _) in PATTERNS {
        let began = Instant::now();
        let peak = finish(own(&["--child-remember", pattern]).spawn().unwrap());
        println!(
            "{:>34} {INODES_REMEMBERED:>12} {:>9.2} {:>8.1} {:>7}",
            format!("remembering, {pattern}"),
            began.elapsed().as_secs_f64(),
            peak[0],
            32
        );
    }
}

fn crowd(options: &Options) {
    let tree = options.trees.join("crowd");
    make_once(&tree, |tree| {
        let directory = open(tree);
        for number in 0..CROWD {
            make_file(&directory, &format!("message-{number}.eml"));
        }
    });
    println!("\ncrowd: one directory");
    println!(
        "{:>12} {:>14} {:>9} {:>8} {:>7}",
        "entries", "used bytes", "seconds", "peak MB", "bar MB"
    );
    let report = measured(&tree, "full-speed", &[]);
    assert_eq!(report.used_bytes, du(&tree, "-B1"));
    assert_eq!(report.inodes, du(&tree, "--inodes"));
    println!(
        "{:>12} {:>14} {:>9.2} {:>8.1} {:>7}   the numbers are du's",
        report.entries, report.used_bytes, report.seconds, report.peak_megabytes, 12
    );
}

fn container(options: &Options) {
    println!("\ncontainer: 64 MiB of memory, a fifth of a processor, the worker's pace, cold");
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: making a control group needs root");
    }
    let tree = options.trees.join("files");
    make_once(&tree, |tree| files(tree, FILES));
    let group = match Group::make() {
        Ok(group) => group,
        Err(why) => return println!("skipped: {why}"),
    };
    drop_caches();
    let report = measured(&tree, "gentle", &group.procs());
    let out_of_memory_kills = group.out_of_memory_kills();
    drop(group);
    assert_eq!(report.used_bytes, du(&tree, "-B1"));
    println!(
        "{:>12} {:>9} {:>19} {:>8} {:>20}",
        "entries", "seconds", "processor seconds", "peak MB", "out of memory kills"
    );
    println!(
        "{:>12} {:>9.1} {:>19.1} {:>8.1} {out_of_memory_kills:>20}",
        report.entries, report.seconds, report.processor_seconds, report.peak_megabytes
    );
}

/// Who is beside the program that reads and writes.
const COMPANIES: [(&str, Option<&str>); 5] = [
    ("nobody", None),
    ("du", Some("du")),
    ("us, the worker's pace", Some("gentle")),
    ("the same, never pausing", Some("gentle-unpaused")),
    ("us, full speed", Some("full-speed")),
];

fn neighbour(options: &Options) {
    println!("\nneighbour: 4 KiB read at random places, and written with fdatasync, every millisecond; milliseconds");
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: emptying the caches needs root");
    }
    let tree = files_tree(options);
    let data = options.trees.join("neighbour");
    make_once(&data, make_data);
    let mut found: Vec<Latencies> = COMPANIES.iter().map(|_| Latencies::default()).collect();
    for _ in 0..options.runs {
        for ((_, company), latencies) in COMPANIES.iter().zip(&mut found) {
            drop_caches();
            beside(*company, &tree, &data, latencies);
        }
    }
    println!(
        "{:>26} {:>8} {:>12} {:>9} {:>8} {:>13} {:>10} {:>17}",
        "beside", "reads", "read median", "read p99", "writes", "write median", "write p99", "entries a second"
    );
    for ((name, _), latencies) in COMPANIES.iter().zip(found) {
        let Latencies {
            mut reads,
            mut writes,
            entries,
            seconds,
        } = latencies;
        reads.sort_by(f64::total_cmp);
        writes.sort_by(f64::total_cmp);
        let at = |sorted: &[f64], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
        println!(
            "{name:>26} {:>8} {:>12.2} {:>9.2} {:>8} {:>13.2} {:>10.2} {:>17}",
            reads.len(),
            at(&reads, 0.5),
            at(&reads, 0.99),
            writes.len(),
            at(&writes, 0.5),
            at(&writes, 0.99),
            if entries == 0.0 {
                "-".to_owned()
            } else {
                format!("{:.0}", entries / seconds)
            },
        );
    }
}

// --- Processes of their own

/// Measures for so many seconds at most, and tells how that went; `groups` are the lists of processes to enter first.
fn child_measures(pace: &str, seconds_max: f64, path: &Path, groups: &[String]) {
    for group in groups {
        fs::write(group, "0").unwrap();
    }
    let gentle = Config {
        total_budget: Some(BUDGET),
        ..Config::gentle()
    };
    let pace = match pace {
        "full-speed" => Config::full_speed(),
        "gentle" => gentle,
        "gentle-unpaused" => Config {
            pressure_file: None,
            ..gentle
        },
        other => panic!("unknown pace {other}"),
    };
    let config = Config { statfs: false, ..pace };
    let target = Target {
        base: path.to_owned(),
        relative: PathBuf::new(),
        wanted: Wanted::Contents,
    };
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    let running = start(vec![target], config, move |_, found| sender.send(found).unwrap());
    let found = receiver.recv_timeout(Duration::from_secs_f64(seconds_max)).ok();
    let seconds = began.elapsed().as_secs_f64();
    let entries = running.progress().entries;
    let (used_bytes, inodes) = found.map_or((0, 0), |found| {
        assert_eq!(found.state, State::Complete, "{found:?}");
        (found.used_bytes.unwrap(), found.inodes_used.unwrap())
    });
    println!(
        "{used_bytes} {inodes} {entries} {seconds} {} {}",
        processor_seconds(),
        peak_megabytes()
    );
}

type Numbers = fn(u64) -> u64;

/// From a file's place in the order of the walk to its inode number.
const PATTERNS: [(&str, Numbers); 4] = [
    ("fresh ext4", |file| file),
    ("ext4, every 5th", |file| file * 5),
    ("ext4, every 64th", |file| file * 64),
    // Runs of 64 with other blocks between them, in four allocation groups.
    ("XFS", |file| {
        (file / 64) * 64 * 9 + file % 64 + ((file / 1_250_000) << 32)
    }),
];

fn child_remembers(pattern: &str) {
    let (_, inode) = PATTERNS.into_iter().find(|(name, _)| *name == pattern).unwrap();
    let mut seen = links::Seen::default();
    for file in 0..INODES_REMEMBERED {
        // A directory holds a thousand, in an order of its own: 7 has no factor in common with 1,000.
        assert!(seen.insert(1, inode(file / 1000 * 1000 + file * 7 % 1000)));
    }
    println!("{}", peak_megabytes());
}

fn peak_megabytes() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// Of the kernel's figures for people, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// Of all threads, in user and kernel mode.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The name before it stands in parentheses; the 14th and 15th field of all are the 12th and 13th after it.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>().unwrap())
        .sum();
    ticks / TICKS_PER_SECOND
}

fn own(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The numbers that a process printed.
fn finish(child: Child) -> Vec<f64> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

struct Report {
    used_bytes: u64,
    inodes: u64,
    entries: u64,
    seconds: f64,
    processor_seconds: f64,
    peak_megabytes: f64,
}

fn measured(tree: &Path, pace: &str, groups: &[PathBuf]) -> Report {
    let mut command = own(&["--child-measure", pace, "3600"]);
    let [used_bytes, inodes, entries, seconds, processor_seconds, peak_megabytes] =
        finish(command.arg(tree).args(groups).spawn().unwrap())[..]
    else {
        panic!("six numbers were promised");
    };
    Report {
        used_bytes: used_bytes as u64,
        inodes: inodes as u64,
        entries: entries as u64,
        seconds,
        processor_seconds,
        peak_megabytes,
    }
}

/// A number of the tree, as the witness has it.
fn du(tree: &Path, what: &str) -> u64 {
    let mut command = Command::new("du");
    command.args(["-s", what]).arg(tree).stdout(Stdio::piped());
    finish(command.spawn().unwrap())[0] as u64
}

// --- A container

/// A control group with the container's limits: in one tree, or, where the kernel's first version rules, in two.
struct Group {
    memory: PathBuf,
    processor: PathBuf,
}

impl Group {
    fn make() -> Result<Group, String> {
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("lp-measure-limits-{}", std::process::id());
        let is_second_version = root.join("cgroup.controllers").exists();
        let group = if is_second_version {
            // Where they are handed down already, this changes nothing.
            fs::write(root.join("cgroup.subtree_control"), "+memory +cpu").map_err(|error| error.to_string())?;
            Group {
                memory: root.join(&name),
                processor: root.join(&name),
            }
        } else {
            Group {
                memory: root.join("memory").join(&name),
                processor: root.join("cpu").join(&name),
            }
        };
        let quota_microseconds = (PROCESSOR_SHARE * 100_000.0) as u64;
        let limits = if is_second_version {
            [
                (&group.memory, "memory.max", MEMORY_BYTES.to_string()),
                (&group.processor, "cpu.max", format!("{quota_microseconds} 100000")),
            ]
        } else {
            [
                (&group.memory, "memory.limit_in_bytes", MEMORY_BYTES.to_string()),
                (&group.processor, "cpu.cfs_quota_us", quota_microseconds.to_string()),
            ]
        };
        for (directory, file, value) in limits {
            fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
            fs::write(directory.join(file), value).map_err(|error| format!("{file}: {error}"))?;
        }
        Ok(group)
    }

    /// The lists of processes to write oneself into.
    fn procs(&self) -> [PathBuf; 2] {
        [&self.memory, &self.processor].map(|directory| directory.join("cgroup.procs"))
    }

    fn out_of_memory_kills(&self) -> u64 {
        let text = ["memory.events", "memory.oom_control"]
            .iter()
            .find_map(|file| fs::read_to_string(self.memory.join(file)).ok())
            .unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The processes in it have ended; a group that was not made is no trouble.
        let _ = fs::remove_dir(&self.memory);
        let _ = fs::remove_dir(&self.processor);
    }
}

// --- A neighbour

const BLOCK: usize = 4096;
const DATA_BLOCKS: u64 = 128 << 10;
const SAMPLE: Duration = Duration::from_secs(5);
const THINKING: Duration = Duration::from_millis(1);
/// One operation of so many writes.
const WRITES_EVERY: u64 = 4;

#[derive(Default)]
struct Latencies {
    reads: Vec<f64>,
    writes: Vec<f64>,
    /// What the company looked at, and in which time.
    entries: f64,
    seconds: f64,
}

/// Reads and writes until the sample is taken or the company is done.
fn beside(company: Option<&str>, tree: &Path, data: &Path, latencies: &mut Latencies) {
    let seconds = SAMPLE.as_secs_f64().to_string();
    let mut child = company.map(|company| {
        let mut command = if company == "du" {
            let mut command = Command::new("du");
            command.arg("-s").stdout(Stdio::null());
            command
        } else {
            own(&["--child-measure", company, &seconds])
        };
        command.arg(tree).spawn().unwrap()
    });
    // Past the caches: what it reads comes from the disk each time.
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(data.join("data"))
        .unwrap();
    let mut buffer = vec![1; 2 * BLOCK];
    let aligned = buffer.as_ptr().align_offset(BLOCK);
    let block = &mut buffer[aligned..aligned + BLOCK];
    let (began, mut random) = (Instant::now(), 88_172_645_463_325_252_u64);
    for operation in 1.. {
        let is_over = began.elapsed() >= SAMPLE;
        if is_over || child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
            break;
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let place = random % DATA_BLOCKS * BLOCK as u64;
        let asked = Instant::now();
        let kind = if operation % WRITES_EVERY == 0 {
            file.write_all_at(block, place).unwrap();
            file.sync_data().unwrap();
            &mut latencies.writes
        } else {
            file.read_exact_at(block, place).unwrap();
            &mut latencies.reads
        };
        kind.push(asked.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(THINKING);
    }
    match child {
        Some(mut child) if company == Some("du") => {
            // It may be done already.
            let _ = child.kill();
            child.wait().unwrap();
        }
        Some(child) => {
            let numbers = finish(child);
            latencies.entries += numbers[2];
            latencies.seconds += numbers[3];
        }
        None => {}
    }
}

fn make_data(directory: &Path) {
    let mut file = File::create(directory.join("data")).unwrap();
    for block in 0..DATA_BLOCKS {
        file.write_all(&[block as u8 | 1; BLOCK]).unwrap();
    }
}

fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("the caller is root");
}

// --- Trees

fn files_tree(options: &Options) -> PathBuf {
    let (name, size) = if options.large {
        ("files-large", FILES_LARGE)
    } else {
        ("files", FILES)
    };
    let tree = options.trees.join(name);
    make_once(&tree, |tree| files(tree, size));
    tree
}

fn links_tree(options: &Options) -> PathBuf {
    let (name, size) = if options.large {
        ("links-large", LINKED_LARGE)
    } else {
        ("links", LINKED)
    };
    let tree = options.trees.join(name);
    make_once(&tree, |tree| {
        let (first, second) = (tree.join("first"), tree.join("second"));
        files(&first, size);
        for_each_directory(size, |directory| {
            fs::create_dir_all(second.join(directory)).unwrap();
            let (old, new) = (open(&first.join(directory)), open(&second.join(directory)));
            for name in (0..FAN).map(file_name) {
                linkat(&old, &name, &new, &name, AtFlags::empty()).unwrap();
            }
        });
    });
    tree
}

/// So many times 10,000 files, 100 in each directory.
fn files(tree: &Path, size: usize) {
    for_each_directory(size, |directory| {
        fs::create_dir_all(tree.join(directory)).unwrap();
        let directory = open(&tree.join(directory));
        for name in (0..FAN).map(file_name) {
            make_file(&directory, &name);
        }
    });
}

/// The lowest directories of a tree, on all processors.
fn for_each_directory(size: usize, work: impl Fn(&Path) + Sync) {
    let threads = std::thread::available_parallelism().unwrap().get();
    let work = &work;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for outer in (thread..size).step_by(threads) {
                    for inner in 0..FAN {
                        work(Path::new(&format!("{outer}/{inner}")));
                    }
                }
            });
        }
    });
}

fn file_name(number: usize) -> String {
    format!("file-{number}")
}

fn open(directory: &Path) -> rustix::fd::OwnedFd {
    openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// One call, where `File::create` needs two.
fn make_file(directory: &rustix::fd::OwnedFd, name: &str) {
    mknodat(directory, name, FileType::RegularFile, Mode::from_raw_mode(0o600), 0).unwrap();
}

fn make_once(tree: &Path, make: impl Fn(&Path)) {
    if tree.exists() {
        return;
    }
    println!("making {} …", tree.display());
    std::io::stdout().flush().unwrap();
    let unfinished = tree.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).unwrap();
    }
    fs::create_dir_all(&unfinished).unwrap();
    make(&unfinished);
    rustix::fs::sync();
    fs::rename(&unfinished, tree).unwrap();
}
