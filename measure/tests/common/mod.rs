//! What the tests share: witnesses, places, and one way to say that something was skipped.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lp_measure::{Config, Measurement, Method, State, Target, Wanted, measure};

/// A target that is a base itself.
pub fn whole(path: &Path) -> Target {
    Target {
        base: path.to_owned(),
        relative: PathBuf::new(),
        wanted: Wanted::Contents,
    }
}

pub fn inside(base: &Path, relative: impl Into<PathBuf>) -> Target {
    Target {
        base: base.to_owned(),
        relative: relative.into(),
        wanted: Wanted::Contents,
    }
}

/// A directory in memory where there is one, for tests of times: a disk that is busy with other tests stalls for seconds.
pub fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Measures one directory by walking. A walk that never ends is to fail here and not to hang.
pub fn walk(path: &Path) -> Measurement {
    let config = Config {
        statfs: false,
        total_budget: Some(Duration::from_secs(120)),
        ..Config::full_speed()
    };
    measure(vec![whole(path)], config).remove(0)
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// The first number that `du` prints.
pub fn du(path: &Path, options: &[&str]) -> u64 {
    let mut arguments = vec!["-s"];
    arguments.extend(options);
    arguments.push(path.to_str().unwrap());
    run("du", &arguments)
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// The sizes of files and symbolic links on one mount's devices, each inode once.
pub fn find_apparent(path: &Path) -> u128 {
    let listed = run(
        "find",
        &[
            path.to_str().unwrap(),
            "(",
            "-type",
            "f",
            "-o",
            "-type",
            "l",
            ")",
            "-printf",
            "%D %i %s\\n",
        ],
    );
    let mut seen = std::collections::HashSet::new();
    let lines = listed.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter(|line| seen.insert((line[0], line[1])))
        .map(|line| line[2].parse::<u128>().unwrap())
        .sum()
}

/// What `du` and `find` say is what we say.
pub fn assert_like_du(path: &Path, what: &str) -> Measurement {
    run("sync", &["-f", path.to_str().unwrap()]);
    let found = walk(path);
    assert_eq!(found.state, State::Complete, "{what}: {found:?}");
    assert_eq!(found.method, Some(Method::Walk), "{what}");
    assert_eq!(found.used_bytes, Some(du(path, &["-B1"])), "{what}: used bytes");
    assert_eq!(found.inodes_used, Some(du(path, &["--inodes"])), "{what}: inodes");
    assert_eq!(
        found.apparent_bytes,
        Some(find_apparent(path)),
        "{what}: apparent bytes"
    );
    found
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says what is not tested here and why; where everything is required, that is a failure.
pub fn skip(what: &str, why: &str) {
    let line = format!("skipped: {what}: {why}\n");
    // Past the capture of the test harness: nobody reads the output of a test that passed.
    std::io::Write::write_all(&mut std::io::stderr().lock(), line.as_bytes()).unwrap();
    assert!(
        std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
        "{line}"
    );
}

/// As [`skip`], for what no test on this kernel can have: where `LP_EXPORTER_TEST_ELSEWHERE` names the feature, somebody
/// runs the same tests on another kernel, and missing it here is no failure.
pub fn skip_without(feature: &str, what: &str, why: &str) {
    let elsewhere = std::env::var("LP_EXPORTER_TEST_ELSEWHERE").unwrap_or_default();
    if elsewhere.split(',').any(|name| name == feature) {
        let line = format!("skipped: {what}: {why} ({feature} is tested elsewhere)\n");
        std::io::Write::write_all(&mut std::io::stderr().lock(), line.as_bytes()).unwrap();
        return;
    }
    skip(what, why);
}

/// A file system of its own, unmounted at the end.
pub struct Mounted {
    pub path: PathBuf,
    directory: tempfile::TempDir,
}

impl Mounted {
    /// Unmounts, lets something be done to the image, and mounts it again.
    pub fn change_image(&self, change: impl FnOnce(&Path)) {
        let image = self.directory.path().join("image");
        run("umount", &[self.path.to_str().unwrap()]);
        change(&image);
        run(
            "mount",
            &["-o", "loop", image.to_str().unwrap(), self.path.to_str().unwrap()],
        );
    }

    /// Makes a file system on a loop device; says so and returns nothing where that cannot be.
    pub fn new(kind: &str, size_bytes: u64, options: &str) -> Option<Mounted> {
        let what = format!("the file system {kind}");
        if !is_root() {
            skip(&what, "mounting needs root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mounted");
        std::fs::create_dir(&path).unwrap();
        let target = path.to_str().unwrap();
        let mounted = if kind == "tmpfs" {
            output("mount", &["-t", "tmpfs", "-o", options, "tmpfs", target])
        } else {
            let image = directory.path().join("image");
            std::fs::File::create(&image).unwrap().set_len(size_bytes).unwrap();
            let image = image.to_str().unwrap();
            let (program, quiet): (_, &[&str]) = match kind {
                "ext4" => ("mkfs.ext4", &["-q", "-F"]),
                "xfs" => ("mkfs.xfs", &["-q", "-f"]),
                "btrfs" => ("mkfs.btrfs", &["-q", "-f"]),
                other => panic!("no recipe for {other}"),
            };
            match Command::new(program).args(quiet).arg(image).output() {
                Ok(made) if made.status.success() => {}
                Ok(made) => panic!("{program}: {}", String::from_utf8_lossy(&made.stderr)),
                Err(error) => {
                    skip(&what, &format!("{program}: {error}"));
                    return None;
                }
            }
            output("mount", &["-o", &format!("loop,{options}"), image, target])
        };
        if !mounted.status.success() {
            skip(&what, String::from_utf8_lossy(&mounted.stderr).trim());
            return None;
        }
        Some(Mounted { path, directory })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whatever a test left mounted inside goes first, and a test that failed must not fail again here.
        let _ = Command::new("umount").args(["-R", "-l"]).arg(&self.path).output();
    }
}

/// Mounts one thing more, which goes with the file system that it is mounted in.
pub fn mount(arguments: &[&str]) {
    run("mount", arguments);
}
