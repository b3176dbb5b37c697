//! The cluster of the picture in the README: what a small shop keeps on three nodes, and how it grows in a day.

use std::fs::{self, File};
use std::path::Path;

use crate::stage::Stage;
use crate::support::objects::Volume;

/// Each stands for two hours of the day.
pub(crate) const RUNS: usize = 12;
/// The claim whose history is shown: its namespace and name.
pub(crate) const SHOWN_CLAIM: (&str, &str) = ("shop", "orders-db");

const MIB: u64 = 1024 * 1024;
/// Written now and then into a file of this apparent size, which therefore has holes.
const LOG_BYTES: u64 = 48 * MIB;
const IMAGE_BYTES: u64 = 3072 * MIB;

/// A claim, and how many MiB it uses at a run.
struct Kept {
    volume: Volume,
    used_mib: fn(u64) -> u64,
}

pub(crate) struct Shop {
    stage: Stage,
    kept: Vec<Kept>,
}

impl Shop {
    pub(crate) async fn new() -> Shop {
        let stage = Stage::new(&["node-1", "node-2", "node-3"]).await;
        let kept = kept();
        // Somebody removed its directory.
        let logs = Volume::local_path("node-2", "ops", "logs", "512Mi");
        for volume in kept.iter().map(|kept| &kept.volume).chain([&logs]) {
            stage.put(volume.persistent_volume());
            stage.put(volume.claim());
        }
        stage.write("node-2/opt/local-path-provisioner/left-over/data", 90 * MIB);
        for (namespace, claim, file, apparent_bytes) in [
            (SHOWN_CLAIM.0, SHOWN_CLAIM.1, "log", LOG_BYTES),
            ("media", "vm-image", "disk", IMAGE_BYTES),
        ] {
            let is_it =
                |kept: &&Kept| (kept.volume.namespace.as_str(), kept.volume.claim.as_str()) == (namespace, claim);
            let directory = stage.directory(&kept.iter().find(is_it).expect("one of them").volume);
            fs::create_dir_all(&directory).expect("the directory can be made");
            let sparse = File::create(directory.join(file)).and_then(|file| file.set_len(apparent_bytes));
            sparse.expect("a hole can be made");
        }
        stage.age().await;
        Shop { stage, kept }
    }

    /// A run, pushed to a Pushgateway.
    pub(crate) async fn run(&self, number: usize, pushgateway_url: &str) {
        for Kept { volume, used_mib } in &self.kept {
            let directory = self.stage.directory(volume);
            fs::create_dir_all(&directory).expect("the directory can be made");
            occupy(&directory.join("data"), used_mib(number as u64) * MIB);
        }
        self.stage.run(pushgateway_url, None).await;
    }
}

fn kept() -> Vec<Kept> {
    let kept = |volume, used_mib| Kept { volume, used_mib };
    vec![
        // A database that grows, and tidies up now and then.
        kept(
            Volume::local_path("node-1", SHOWN_CLAIM.0, SHOWN_CLAIM.1, "640Mi"),
            |run| 320 + 16 * run + 24 * (run % 4),
        ),
        kept(Volume::local_path("node-1", "shop", "uploads", "512Mi"), |run| {
            240 + 2 * run
        }),
        kept(Volume::local_path("node-2", "shop", "queue", "128Mi"), |run| {
            12 + 14 * ((run + 2) % 5)
        }),
        kept(
            Volume::local_path("node-2", "monitoring", "prometheus-db", "1Gi"),
            |run| 300 + 4 * run + 50 * (run % 3),
        ),
        // Over its request, which nothing enforces.
        kept(Volume::local_path("node-2", "dev", "ci-cache", "256Mi"), |_| 286),
        // A step at each backup.
        kept(Volume::local_path_data1("node-3", "ops", "backups", "640Mi"), |run| {
            190 + 110 * (run / 3)
        }),
        kept(Volume::local_path_data1("node-3", "media", "vm-image", "4Gi"), |_| 180),
    ]
}

/// Makes a file that takes so much of the disk, without writing it where the file system can.
fn occupy(path: &Path, size_bytes: u64) {
    let open = File::options().create(true).truncate(false).write(true).open(path);
    let file = open.expect("the file can be made");
    let length = file.metadata().expect("an open file has a length").len();
    if size_bytes < length {
        file.set_len(size_bytes).expect("it can be made shorter");
    } else if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size_bytes).is_err() {
        fs::write(path, vec![7; size_bytes as usize]).expect("it can be written");
    }
}
