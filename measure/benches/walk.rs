//! Us against `du`, diskus, parallel-disk-usage and fs_extra, on trees of five kinds.
//!
//! `cargo bench --bench walk -- [--only mixed,flat] [--runs 7] [--cold] [--no-calls] [--trees DIRECTORY]`
//!
//! Each program is run as a process of its own, all in turn, so that what disturbs the machine disturbs each of them. The
//! ratios are medians of the ratios within a turn. `--cold` (root) empties the caches before each run. The trees stay for
//! the next time. Counting system calls takes longer than all the rest: `--no-calls` leaves it out.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lp_measure::{Config, State, Target, Wanted, measure};

type Tree = (&'static str, fn(&Path));

const TREES: [Tree; 5] = [
    ("mixed", mixed),
    ("flat", flat),
    ("deep", deep),
    ("backup", backup),
    ("database", database),
];

struct Options {
    only: Vec<String>,
    runs: usize,
    cold: bool,
    calls: bool,
    trees: PathBuf,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [child, path] if child == "--child-ours" => ours(Path::new(path)),
        [child, path] if child == "--child-fs-extra" => println!("{}", fs_extra::dir::get_size(path).unwrap()),
        _ => compare(&options(&arguments)),
    }
}

fn options(arguments: &[String]) -> Options {
    let mut options = Options {
        only: Vec::new(),
        runs: 7,
        cold: false,
        calls: true,
        trees: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("walk-trees"),
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--only" => options.only = value().split(',').map(str::to_owned).collect(),
            "--runs" => options.runs = value().parse().unwrap(),
            "--cold" => options.cold = true,
            "--no-calls" => options.calls = false,
            "--trees" => options.trees = value().into(),
            "--bench" => {} // cargo says so
            other => panic!("unknown argument {other}"),
        }
    }
    options
}

fn ours(path: &Path) {
    let target = Target {
        base: path.to_owned(),
        relative: PathBuf::new(),
        wanted: Wanted::Contents,
    };
    let found = measure(
        vec![target],
        Config {
            statfs: false,
            ..Config::full_speed()
        },
    )
    .remove(0);
    assert_eq!(found.state, State::Complete, "{found:?}");
    println!("{} {}", found.used_bytes.unwrap(), found.entries);
}

struct Program {
    name: &'static str,
    command: Vec<String>,
}

fn programs() -> Vec<Program> {
    let own = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let program = |name, command: &[&str]| Program {
        name,
        command: command.iter().map(|word| word.to_string()).collect(),
    };
    let all = [
        program("ours", &[&own, "--child-ours"]),
        program("du", &["du", "-s", "-B1"]),
        program("diskus", &["diskus"]),
        program("pdu", &["pdu", "--max-depth", "1"]),
        program("fs_extra", &[&own, "--child-fs-extra"]),
    ];
    let is_there = |program: &Program| {
        let found = Command::new(&program.command[0])
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let there = program.command[0] == own || found.is_ok();
        if !there {
            println!(
                "{} is not installed: left out (cargo install diskus parallel-disk-usage)",
                program.name
            );
        }
        there
    };
    all.into_iter().filter(is_there).collect()
}

fn compare(options: &Options) {
    let programs = programs();
    let empty = tempfile::tempdir().unwrap();
    println!("{} processors", std::thread::available_parallelism().unwrap());
    for (name, make) in TREES {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == name) {
            continue;
        }
        let tree = options.trees.join(name);
        make_once(&tree, make);
        let entries = verify(&programs, &tree);
        let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); programs.len()];
        for _ in 0..options.runs {
            for (program, seconds) in programs.iter().zip(&mut seconds) {
                if options.cold {
                    drop_caches();
                    // The program itself is not what is measured.
                    time(program, empty.path());
                }
                seconds.push(time(program, &tree).as_secs_f64());
            }
        }
        println!(
            "\n{name}: {entries} entries, {}, {} runs",
            if options.cold { "cold" } else { "warm" },
            options.runs
        );
        println!(
            "{:>10} {:>10} {:>8} {:>12} {:>14}",
            "", "median ms", "ours/it", "peak kB", "calls/entry"
        );
        for (program, taken) in programs.iter().zip(&seconds) {
            let ratios = seconds[0].iter().zip(taken).map(|(ours, its)| ours / its).collect();
            println!(
                "{:>10} {:>10.1} {:>8.3} {:>12} {:>14}",
                program.name,
                1000.0 * median(taken.clone()),
                median(ratios),
                peak_memory(program, &tree),
                if options.calls {
                    calls(program, &tree).map_or("no strace".to_owned(), |calls| format!("{:.2}", calls / entries))
                } else {
                    "-".to_owned()
                },
            );
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn command(program: &Program, tree: &Path) -> Command {
    let mut command = Command::new(&program.command[0]);
    command
        .args(&program.command[1..])
        .arg(tree)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn time(program: &Program, tree: &Path) -> Duration {
    let began = Instant::now();
    let status = command(program, tree).status().unwrap();
    let taken = began.elapsed();
    assert!(status.success(), "{}", program.name);
    taken
}

/// A fast wrong answer is none: ours is what `du` says. Returns the number of entries. It warms the caches, too.
fn verify(programs: &[Program], tree: &Path) -> f64 {
    let output = |program: &Program| command(program, tree).stdout(Stdio::piped()).output().unwrap().stdout;
    let numbers = |program| -> Vec<f64> {
        String::from_utf8(output(program))
            .unwrap()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    let du = programs
        .iter()
        .find(|program| program.name == "du")
        .expect("every system has it");
    let (ours, du) = (numbers(&programs[0]), numbers(du));
    assert_eq!(ours[0], du[0], "used bytes of {}", tree.display());
    ours[1]
}

/// The process's own peak, read while it runs: what the parent reads at its end begins with the parent's.
fn peak_memory(program: &Program, tree: &Path) -> String {
    let mut child = command(program, tree).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = String::new();
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        if let Some(line) = text.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            peak = line.trim_end_matches("kB").trim().to_owned();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    peak
}

/// All system calls, as strace counts them.
fn calls(program: &Program, tree: &Path) -> Option<f64> {
    let file = std::env::temp_dir().join(format!("lp-measure-bench-{}", std::process::id()));
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-c", "-e", "trace=!futex", "-o"])
        .arg(&file)
        .args(&program.command)
        .arg(tree);
    let status = strace.stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    let text = fs::read_to_string(&file).ok()?;
    fs::remove_file(&file).unwrap();
    let total = text.lines().rfind(|line| line.ends_with("total"))?;
    status
        .success()
        .then(|| total.split_whitespace().nth(3)?.parse().ok())?
}

fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("--cold needs root");
}

fn make_once(tree: &Path, make: fn(&Path)) {
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

/// What an application leaves: 40,000 directories of 16 files, some with a little in them.
fn mixed(tree: &Path) {
    for outer in 0..200 {
        for inner in 0..200 {
            let directory = tree.join(format!("{outer}/{inner}"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..16 {
                fs::write(
                    directory.join(format!("file-{file}")),
                    vec![b'x'; if file % 8 == 0 { 500 } else { 0 }],
                )
                .unwrap();
            }
        }
    }
}

/// A spool: 200,000 files in one directory.
fn flat(tree: &Path) {
    for file in 0..200_000 {
        File::create(tree.join(format!("message-{file}.eml"))).unwrap();
    }
}

/// Sources: small directories, twelve levels.
fn deep(tree: &Path) {
    fn dig(directory: &Path, level: usize) {
        for file in 0..2 {
            File::create(directory.join(format!("file-{file}"))).unwrap();
        }
        // 2 and 3 by turns: 28,000 directories on 12 levels.
        let children = if level == 12 {
            0
        } else {
            2 + usize::from(level.is_multiple_of(2))
        };
        for child in 0..children {
            let child = directory.join(format!("directory-{child}"));
            fs::create_dir(&child).unwrap();
            dig(&child, level + 1);
        }
    }
    dig(tree, 1);
}

/// Snapshots by hard links: five generations of 60,000 files.
fn backup(tree: &Path) {
    for generation in 0..5 {
        for directory in 0..500 {
            fs::create_dir_all(tree.join(format!("{generation}/{directory}"))).unwrap();
        }
        for file in 0..60_000 {
            let place = |generation| tree.join(format!("{generation}/{}/{file}", file % 500));
            if generation == 0 {
                File::create(place(0)).unwrap();
            } else {
                fs::hard_link(place(0), place(generation)).unwrap();
            }
        }
    }
}

/// A few large sparse files.
fn database(tree: &Path) {
    for file in 0..20 {
        let file = File::create(tree.join(format!("table-{file}"))).unwrap();
        file.set_len(1 << 30).unwrap();
        for block in 0..200 {
            file.write_all_at(&[1; 4096], block * (5 << 20)).unwrap();
        }
    }
}
