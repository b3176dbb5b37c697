//! The real worker on directories of this machine: what it pushes of file systems and of directories without an owner,
//! with `df` and `du` as witnesses.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lp_exporter::owner::Owner;
use lp_exporter::summary::WorkerSummary;
use lp_exporter::volumes::collect::{Collect, Collected};
use lp_exporter::volumes::node_plan::{self, Base, NodePlan, PlannedVolume, Run};
use support::pushgateway::Pushgateway;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lp-exporter");
const BASE: &str = "/data";
const DIRECTORIES: &str = "local_volume_orphaned_directories";
const BYTES: &str = "local_volume_orphaned_bytes";
const CAPACITY_BYTES: u64 = 10 << 20;

/// A plan for one base directory, which lies on this machine at `mounted_at`.
fn plan(mounted_at: &Path, volumes: &[&str]) -> NodePlan {
    let volume = |name: &&str| PlannedVolume {
        persistentvolume: (*name).to_owned(),
        namespace: Some("default".to_owned()),
        persistentvolumeclaim: Some((*name).to_owned()),
        storageclass: String::new(),
        path: format!("{BASE}/{name}"),
        base: 0,
        capacity_bytes: CAPACITY_BYTES,
        left_alone: false,
    };
    NodePlan {
        version: node_plan::VERSION,
        run: Run {
            id: "run".to_owned(),
            // The worker's own clock is earlier.
            started_unix_seconds: 4e9,
            owner: Owner {
                cluster_uid: "uid".to_owned(),
                cronjob: "lp-exporter/lp-exporter".to_owned(),
            },
        },
        node: "node-1".to_owned(),
        budget_seconds: 60.0,
        bases: vec![Base {
            path: BASE.to_owned(),
            mounted_at: Some(text(mounted_at)),
        }],
        other_base_paths: vec![format!("{BASE}/inner-base")],
        volumes: volumes.iter().map(volume).collect(),
        known_paths: Vec::new(),
        known_devices: Vec::new(),
        collect: Collect::everything(),
        orphan_age_seconds: 0.0,
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("the test's paths are UTF-8").to_owned()
}

fn plant(base: &Path, files: &[&str]) {
    for file in files {
        let path = base.join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
        fs::write(path, vec![7; 70_000]).expect("it can be written");
    }
}

/// What a worker pushed and told.
struct Told {
    gateway: Pushgateway,
    summary: WorkerSummary,
    log: String,
    _folder: TempDir,
}

impl Told {
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.gateway.value(name, labels)
    }
}

/// Runs a worker. What was made just before counts as made in time.
async fn run(plan: &NodePlan, more: &[&str]) -> Told {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let gateway = Pushgateway::start().await;
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| text(&folder.path().join(name));
    fs::write(path("plan"), plan.encode().expect("a small plan")).expect("it can be written");
    fs::write(path("message"), "").expect("it can be written");
    let output = tokio::process::Command::new(PROGRAM)
        .args([
            "worker",
            "--plan",
            &path("plan"),
            "--termination-message",
            &path("message"),
        ])
        .args(["--pushgateway-url", &gateway.url(), "--start-delay-max", "0s"])
        .args(more)
        .output()
        .await
        .expect("the program runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    let message = fs::read_to_string(path("message")).expect("it was written");
    Told {
        gateway,
        summary: WorkerSummary::from_message(&message).expect("a summary"),
        log,
        _folder: folder,
    }
}

fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// The first number that a program says of a path.
fn number(program: &str, options: &[&str], path: &Path) -> f64 {
    let output = Command::new(program).args(options).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {options:?} {path:?}: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    numbers.next().expect("a number")
}

fn du(path: &Path) -> f64 {
    number("du", &["-s", "-B1", "-x"], path)
}

/// A file system of its own, and one more in it, unmounted at the end.
struct Disk {
    path: PathBuf,
    _folder: TempDir,
}

impl Disk {
    fn new() -> Option<Disk> {
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let (image, path) = (folder.path().join("image"), folder.path().join("mounted"));
        fs::create_dir(&path).expect("it can be made");
        let file = fs::File::create(&image).expect("it can be made");
        file.set_len(100 << 20).expect("it can grow");
        let made = output("mkfs.ext4", &["-q", "-F", &text(&image)]);
        let mounted = output("mount", &["-o", "loop", &text(&image), &text(&path)]);
        if !(made.status.success() && mounted.status.success()) {
            eprintln!("skipped: a file system of its own: {made:?} {mounted:?}");
            return None;
        }
        Some(Disk { path, _folder: folder })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        output("umount", &["-R", "-l", &text(&self.path)]);
    }
}

#[tokio::test]
async fn file_systems_and_orphans_are_what_df_and_du_say() {
    let Some(disk) = Disk::new() else { return };
    let base = &disk.path;
    plant(
        base,
        &[
            "pvc-1/file",
            "pvc-2/file",
            "team/known/file",
            "team/orphan/file",
            "team/orphan/more/file",
            "inner-base/file",
        ],
    );
    let hostile = base.join(OsStr::from_bytes(b"orphan \x1b[31m\xff\n"));
    plant(&hostile, &["file"]);
    fs::create_dir_all(base.join("left/empty")).expect("it can be made");
    fs::create_dir(base.join("own-disk")).expect("it can be made");
    let mounted = output(
        "mount",
        &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &text(&base.join("own-disk"))],
    );
    assert!(mounted.status.success(), "{mounted:?}");
    plant(base, &["own-disk/claim/file"]);
    output("sync", &["-f", &text(base)]);
    let plan = NodePlan {
        known_paths: vec![format!("{BASE}/team/known"), "/srv/elsewhere".to_owned()],
        ..plan(base, &["pvc-1", "pvc-2", "own-disk/claim", "pvc-missing"])
    };
    let told = run(&plan, &[]).await;

    let labels = [("node", "node-1"), ("path", BASE), ("fstype", "ext4")];
    let sizes = ["size", "avail", "used", "itotal", "iavail"]
        .map(|column| number("df", &["-B1", &format!("--output={column}")], base));
    let found = ["size_bytes", "available_bytes", "used_bytes", "inodes", "inodes_free"].map(|name| {
        let name = format!("local_volume_filesystem_{name}");
        told.value(&name, &labels)
            .unwrap_or_else(|| panic!("no {name}: {}", told.log))
    });
    assert_eq!(found, sizes);
    let tmpfs = [("fstype", "tmpfs")];
    assert_eq!(
        told.value("local_volume_filesystem_size_bytes", &tmpfs),
        Some(f64::from(1 << 20))
    );
    assert_eq!(told.value("local_volume_filesystem_readonly", &labels), Some(0.0));
    // The missing one counts where its directory should be.
    let requested = "local_volume_filesystem_requested_bytes";
    assert_eq!(told.value(requested, &labels), Some(3.0 * CAPACITY_BYTES as f64));
    assert_eq!(told.value(requested, &tmpfs), Some(CAPACITY_BYTES as f64));

    let claim = |name: &'static str| [("persistentvolumeclaim", name)];
    let available = "local_volume_stats_available_bytes";
    let left = CAPACITY_BYTES as f64 - du(&base.join("pvc-1"));
    assert_eq!(told.value(available, &claim("pvc-1")), Some(left));
    let left = number("df", &["-B1", "--output=avail"], &base.join("own-disk"));
    assert_eq!(told.value(available, &claim("own-disk/claim")), Some(left));
    assert_eq!(told.value(available, &claim("pvc-missing")), None);

    let orphans = [base.join("team/orphan"), hostile];
    assert_eq!(
        told.value(DIRECTORIES, &[("node", "node-1"), ("path", BASE)]),
        Some(2.0)
    );
    assert_eq!(
        told.value(BYTES, &[("node", "node-1"), ("path", BASE)]),
        Some(orphans.iter().map(|path| du(path)).sum())
    );
    let largest = &told.summary.orphans;
    assert_eq!(largest.len(), 2, "{largest:?}");
    assert_eq!(largest[0].path, format!("{BASE}/team/orphan"));
    assert_eq!(largest[0].bytes.map(|bytes| bytes as f64), Some(du(&orphans[0])));
    assert_eq!(largest[1].path, format!("{BASE}/orphan \u{fffd}[31m\u{fffd}\u{fffd}"));
    assert!(
        told.log.contains("/data/team/orphan") && !told.log.contains('\u{1b}'),
        "{}",
        told.log
    );
}

#[tokio::test]
async fn what_is_young_or_in_doubt_is_no_orphan() {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    plant(folder.path(), &["pvc-1/file", "left/file"]);
    let young = NodePlan {
        orphan_age_seconds: 600.0,
        ..plan(folder.path(), &["pvc-1"])
    };
    let told = run(&young, &[]).await;
    assert_eq!(
        (told.value(DIRECTORIES, &[]), told.value(BYTES, &[])),
        (Some(0.0), Some(0.0))
    );

    // `left` may be what the link leads to.
    symlink("left", folder.path().join("pvc-2")).expect("it can be made");
    let doubtful = NodePlan {
        known_paths: vec![format!("{BASE}/pvc-2")],
        ..plan(folder.path(), &["pvc-1"])
    };
    let told = run(&doubtful, &[]).await;
    assert_eq!((told.value(DIRECTORIES, &[]), told.value(BYTES, &[])), (None, None));
    assert!(
        told.log.contains("/data/pvc-2") && told.log.contains("escapes_base"),
        "{}",
        told.log
    );

    let missing = plan(&folder.path().join("missing"), &["pvc-1"]);
    let told = run(&missing, &[]).await;
    assert_eq!((told.value(DIRECTORIES, &[]), told.value(BYTES, &[])), (None, None));
}

/// Other nodes may have the file system too, and with it volumes of which this plan knows nothing.
#[tokio::test]
async fn nothing_is_an_orphan_on_a_file_system_that_may_be_shared() {
    let Some(disk) = Disk::new() else { return };
    let mounted_at = disk.path.join("base");
    fs::create_dir(&mounted_at).expect("it can be made");
    // A kind that is not known to be one machine's own, as those of networks are.
    let mounted = output("mount", &["-t", "ramfs", "ramfs", &text(&mounted_at)]);
    assert!(mounted.status.success(), "{mounted:?}");
    plant(&mounted_at, &["pvc-1/file", "of-another-node/file"]);
    let told = run(&plan(&mounted_at, &["pvc-1"]), &[]).await;
    assert_eq!(told.summary.states["complete"], 1, "{}", told.log);
    assert_eq!((told.value(DIRECTORIES, &[]), told.value(BYTES, &[])), (None, None));
    assert!(
        told.log.contains("orphans below /data are not told") && told.log.contains("other machines"),
        "{}",
        told.log
    );
}

#[tokio::test]
async fn a_part_is_not_told_as_the_whole() {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    plant(folder.path(), &["pvc-1/file", "small/file"]);
    fs::create_dir(folder.path().join("large")).expect("it can be made");
    for number in 0..3000 {
        fs::write(folder.path().join(format!("large/{number}")), "").expect("it can be written");
    }
    let short = NodePlan {
        budget_seconds: 16.0,
        ..plan(folder.path(), &["pvc-1"])
    };
    // Listing goes through the names, and measuring through each again: the time is enough for one of the two.
    let told = run(&short, &["--entries-per-second", "400"]).await;
    assert_eq!(told.summary.states["complete"], 1, "{}", told.log);
    assert_eq!(
        (told.value(DIRECTORIES, &[]), told.value(BYTES, &[])),
        (Some(2.0), None),
        "{}",
        told.log
    );
}

#[tokio::test]
async fn what_is_not_collected_is_not_pushed() {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    plant(folder.path(), &["pvc-1/file", "left/file"]);
    let families = |told: &Told| -> Vec<bool> {
        [
            "local_volume_stats_used_bytes",
            "local_volume_stats_inodes_used",
            "local_volume_stats_apparent_bytes",
            "local_volume_filesystem_size_bytes",
            DIRECTORIES,
            "local_volume_scan_state",
        ]
        .iter()
        .map(|name| !told.gateway.samples(name).is_empty())
        .collect()
    };
    for (collected, expected) in [
        (Collected::Volumes, [true, false, false, false, false, true]),
        (Collected::Inodes, [false, true, false, false, false, true]),
        (Collected::Filesystems, [false, false, false, true, false, false]),
        (Collected::Orphans, [false, false, false, false, true, false]),
        (Collected::Facts, [false, false, false, false, false, false]),
    ] {
        let plan = NodePlan {
            collect: Collect::new([collected]),
            ..plan(folder.path(), &["pvc-1"])
        };
        let told = run(&plan, &[]).await;
        assert_eq!(families(&told), expected, "{collected:?}");
    }
}
