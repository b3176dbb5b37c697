//! A cluster whose volumes are in every state that a dashboard shows.

use std::fs::File;

use serde_json::json;

use crate::stage::Stage;
use crate::support::objects::{self, Volume, set_condition};

const MIB: u64 = 1024 * 1024;

/// How many runs differ from each other: the claims grow from one to the next.
pub(crate) const RUNS: usize = 3;

pub(crate) struct Cluster {
    /// The value of the grouping label `cluster`, if it has one.
    name: Option<&'static str>,
    /// Two clusters with the same names differ by this: in their sizes, and where it is 1 a node is not Ready and a volume
    /// is Released, which are well elsewhere.
    scale: u64,
    stage: Stage,
}

impl Cluster {
    pub(crate) async fn new(name: Option<&'static str>, scale: u64) -> Cluster {
        let stage = Stage::new(&["node-1", "node-2", "node-3", "node-4", "node-5"]).await;
        if scale == 1 {
            let mut node = objects::node("node-4");
            set_condition(&mut node, "Ready", "Unknown");
            stage.put(node);
        }
        let cluster = Cluster { name, scale, stage };
        cluster.put_volumes();
        cluster
            .stage
            .write("node-1/opt/local-path-provisioner/left-over/data", 3 * MIB * scale);
        cluster.stage.age().await;
        cluster
    }

    /// One run after the claims have grown, pushed to a Pushgateway.
    pub(crate) async fn run(&self, number: usize, pushgateway_url: &str) {
        self.grow(number as u64);
        self.stage.run(pushgateway_url, self.name).await;
    }

    fn put_volumes(&self) {
        let bound = [
            orders(),
            uploads(),
            queue(),
            vm_image(),
            backups(),
            cache(),
            // Somebody removed its directory.
            Volume::local_path("node-3", "ops", "logs", "1Gi"),
            // Its node may not be Ready.
            Volume::local_path("node-4", "ops", "archive", "1Gi"),
            // Below no base path.
            Volume {
                path: "/srv/video/raw".to_owned(),
                ..Volume::local_path("node-1", "media", "raw", "1Gi")
            },
            // Its node is gone.
            Volume::local_path("node-9", "shop", "old-orders", "1Gi"),
        ];
        for volume in &bound {
            self.stage.put(volume.persistent_volume());
            let mut claim = volume.claim();
            match volume.claim.as_str() {
                "queue" => claim["metadata"]["annotations"]["lp-exporter/alert-percent"] = "2".into(),
                // It is above its threshold, and wants no alert.
                "uploads" => claim["metadata"]["labels"]["lp-exporter/alert"] = "false".into(),
                "cache" => claim["metadata"]["annotations"]["lp-exporter/alert-percent"] = "many".into(),
                _ => {}
            }
            self.stage.put(claim);
        }
        let former = Volume {
            phase: if self.scale == 1 { "Released" } else { "Bound" },
            ..former()
        };
        self.stage.put(former.persistent_volume());
        // Its volume is gone.
        self.stage
            .put(Volume::local_path("node-1", "ops", "lost", "1Gi").claim());
        self.stage.put(json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "nfs-archive"},
            "spec": {
                "capacity": {"storage": "1Ti"}, "accessModes": ["ReadWriteMany"],
                "nfs": {"server": "nfs.example.org", "path": "/archive"},
            },
            "status": {"phase": "Available"},
        }));
    }

    /// No two volumes have the same size or number of files, here or in a cluster of another scale: the largest are told
    /// apart.
    fn grow(&self, number: u64) {
        let scale = self.scale;
        self.fill(&orders(), 6 * MIB + 5 * MIB * number / scale, 1);
        self.fill(&uploads(), 12 * MIB / scale, 2);
        self.fill(&queue(), 2 * MIB * scale + MIB * number, 3);
        self.fill(&backups(), 6 * MIB * scale, 4);
        self.fill(&cache(), 8 * MIB / scale + 70_000 * number, 5);
        self.fill(&former(), 2 * MIB * scale, 6);
        self.fill(&vm_image(), 3 * MIB * scale, 7);
        let image = self.stage.directory(&vm_image()).join("image");
        let sparse = File::options().append(true).create(true).open(image);
        sparse
            .and_then(|image| image.set_len(1 << 30))
            .expect("a hole can be made");
    }

    fn fill(&self, volume: &Volume, size_bytes: u64, files: u64) {
        let directory = self.stage.directory(volume);
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        self.stage
            .write(&path("data"), size_bytes + 4096 * (files + 7 * (self.scale - 1)));
        for number in 0..2 * files + self.scale {
            self.stage.write(&path(&format!("empty-{number}")), 0);
        }
    }
}

fn orders() -> Volume {
    Volume::local_path("node-1", "shop", "orders-db", "24Mi")
}

/// Over its request in the cluster of scale 1.
fn uploads() -> Volume {
    Volume::local_path("node-1", "shop", "uploads", "8Mi")
}

/// It wants to be told above 2 %.
fn queue() -> Volume {
    Volume::local_path("node-2", "shop", "queue", "64Mi")
}

/// Sparse.
fn vm_image() -> Volume {
    Volume::local_path("node-2", "media", "vm-image", "2Gi")
}

fn backups() -> Volume {
    Volume::local_path_data1("node-2", "ops", "backups", "100M")
}

/// Its own threshold is no number.
fn cache() -> Volume {
    Volume::local_path("node-3", "shop", "cache", "50M")
}

/// Its claim is gone, and Retain keeps it.
fn former() -> Volume {
    Volume::local_path_data1("node-2", "ops", "former", "32Mi")
}
