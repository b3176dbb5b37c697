//! The seam between the two programs: the controller writes exactly the [`NodePlan`] that a worker reads.
//!
//! It is JSON, compressed with gzip, and carries its version, because an upgrade in mid-run can give a worker of one release
//! the plan of another: such a worker says so and ends ([`ReadError::Version`]).

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::collect::{Collect, Collected};
use crate::owner::Owner;

/// The version of [`NodePlan`] that this program writes and reads. It changes with every change of the type that an older
/// or newer worker would take wrongly.
pub const VERSION: u32 = 2;

/// The largest plan, compressed: a ConfigMap holds 1 MiB in all, and its metadata needs some of that. About 20,000 volumes.
pub const COMPRESSED_MAX_BYTES: usize = 1_000_000;

/// The largest plan that a worker unpacks: 64 bytes of memory for each that a ConfigMap can hold, and a bound for a
/// compressed bomb.
const UNCOMPRESSED_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Below this directory the base directories are mounted in a worker.
pub const BASES_DIRECTORY: &str = "/bases";

/// What one worker has to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// The run that the plan belongs to.
    pub run: Run,
    /// The node's name: the worker's grouping key and the label of all that it pushes.
    pub node: String,
    /// What the worker may take, counted from its own start.
    pub budget_seconds: f64,
    /// The base directories that the worker looks at: those of this node's volumes, and others if it is to look for orphans
    /// there.
    pub bases: Vec<Base>,
    /// The run's other base paths: one that lies inside a base is no orphan.
    pub other_base_paths: Vec<String>,
    /// What is to be measured.
    pub volumes: Vec<PlannedVolume>,
    /// The paths of other volumes that may lie on this node, see [`super::known_paths::KnownPaths`].
    pub known_paths: Vec<String>,
    /// The paths of raw block volumes.
    pub known_devices: Vec<String>,
    /// What is to be told, and so what has to be measured.
    pub collect: Collect,
    /// A directory that is younger than this is no orphan.
    pub orphan_age_seconds: f64,
}

/// One run of the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Names the run: the uid of the controller's pod, or a random number outside of a cluster.
    pub id: String,
    /// When the run began, by the controller's clock: pushed with every group, so that anyone can tell which run a number
    /// is from.
    pub started_unix_seconds: f64,
    /// Whose the groups are that it pushes.
    pub owner: Owner,
}

/// A base directory of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its path on the node.
    pub path: String,
    /// Where the worker finds it; `None` when it could not be mounted, because it cannot be had on the node.
    pub mounted_at: Option<String>,
}

/// A volume that is to be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedVolume {
    /// The PersistentVolume's name.
    pub persistentvolume: String,
    /// The namespace of its claim, if it has one.
    pub namespace: Option<String>,
    /// The name of its claim, if it has one.
    pub persistentvolumeclaim: Option<String>,
    /// Its storage class; empty when it has none.
    pub storageclass: String,
    /// Its directory on the node, in normal form.
    pub path: String,
    /// The base directory that it lies below: an index into [`NodePlan::bases`].
    pub base: usize,
    /// Not to be touched, because a worker of an earlier run hangs on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_alone: bool,
    /// What the PersistentVolume says that it holds.
    pub capacity_bytes: u64,
}

impl PlannedVolume {
    /// The values of [`crate::metrics::VOLUME_LABELS`], in that order.
    pub fn label_values<'a>(&'a self, node: &'a str) -> [&'a str; 5] {
        [
            self.namespace.as_deref().unwrap_or_default(),
            self.persistentvolumeclaim.as_deref().unwrap_or_default(),
            &self.persistentvolume,
            &self.storageclass,
            node,
        ]
    }
}

/// Why a plan could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the plan of {volumes} volumes takes {compressed_bytes} bytes ({plain_bytes} unpacked), more than the \
     {COMPRESSED_MAX_BYTES} that a ConfigMap holds, or the {UNCOMPRESSED_MAX_BYTES} that a worker unpacks; \
     fewer volumes on this node would fit"
)]
pub struct TooLarge {
    /// How many volumes the plan has.
    pub volumes: usize,
    /// What they take, compressed.
    pub compressed_bytes: usize,
    /// What they take before that.
    pub plain_bytes: u64,
}

/// Why a plan could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The bytes are not gzip, or end too early.
    #[error("the plan could not be unpacked")]
    Unpack(#[source] std::io::Error),
    /// The plan unpacks to more than any plan has.
    #[error("the plan unpacks to more than {UNCOMPRESSED_MAX_BYTES} bytes")]
    TooLarge,
    /// It is not JSON, or not the JSON of a plan.
    #[error("the plan could not be read")]
    Parse(#[source] serde_json::Error),
    /// It was written by a program of another version.
    #[error(
        "the plan has version {found}, this program reads version {VERSION}: controller and worker are of different releases, \
         which is normal once during an upgrade; if it stays, the worker's image differs from the controller's"
    )]
    Version {
        /// The version that the plan names.
        found: u32,
    },
    /// A volume names a base directory that the plan does not have.
    #[error("the plan's volume {0} lies below a base directory that the plan does not name")]
    Base(String),
}

/// Compresses what is written, and counts it.
struct Counted {
    encoder: GzEncoder<Vec<u8>>,
    plain_bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.encoder.write(bytes)?;
        self.plain_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

impl NodePlan {
    /// The same plan for a worker that does not look for orphans, and so need not know of other volumes, nor open their
    /// directories: one of them may hang.
    #[must_use]
    pub fn without_orphans(self) -> NodePlan {
        let collect = Collected::ALL
            .into_iter()
            .filter(|one| *one != Collected::Orphans && self.collect.contains(*one));
        NodePlan {
            collect: Collect::new(collect),
            known_paths: Vec::new(),
            known_devices: Vec::new(),
            ..self
        }
    }

    /// Writes the plan as compressed JSON.
    ///
    /// # Errors
    /// [`TooLarge`], when it would not fit into a ConfigMap. Nothing is ever cut.
    pub fn encode(&self) -> Result<Vec<u8>, TooLarge> {
        let mut counted = Counted {
            encoder: GzEncoder::new(Vec::new(), Compression::default()),
            plain_bytes: 0,
        };
        serde_json::to_writer(&mut counted, self).expect("a plan has only text keys and goes into memory");
        let Counted { encoder, plain_bytes } = counted;
        let bytes = encoder.finish().expect("compressing into memory does not fail");
        if bytes.len() > COMPRESSED_MAX_BYTES || plain_bytes > UNCOMPRESSED_MAX_BYTES {
            return Err(TooLarge {
                volumes: self.volumes.len(),
                compressed_bytes: bytes.len(),
                plain_bytes,
            });
        }
        Ok(bytes)
    }

    /// Lets the worker leave these PersistentVolumes alone.
    pub fn leave_alone(&mut self, persistent_volumes: &BTreeSet<String>) {
        for volume in &mut self.volumes {
            volume.left_alone = persistent_volumes.contains(&volume.persistentvolume);
        }
    }

    /// Reads a plan that [`NodePlan::encode`] wrote.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being a plan of this version, see [`ReadError`].
    pub fn decode(compressed: &[u8]) -> Result<NodePlan, ReadError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let mut text = Vec::new();
        GzDecoder::new(compressed)
            .take(UNCOMPRESSED_MAX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(ReadError::Unpack)?;
        if text.len() as u64 > UNCOMPRESSED_MAX_BYTES {
            return Err(ReadError::TooLarge);
        }
        // The version first: the rest of another version need not make sense to us.
        let Versioned { version } = serde_json::from_slice(&text).map_err(ReadError::Parse)?;
        if version != VERSION {
            return Err(ReadError::Version { found: version });
        }
        let plan: NodePlan = serde_json::from_slice(&text).map_err(ReadError::Parse)?;
        match plan.volumes.iter().find(|volume| volume.base >= plan.bases.len()) {
            Some(volume) => Err(ReadError::Base(volume.persistentvolume.clone())),
            None => Ok(plan),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn node_plan(volumes: usize) -> NodePlan {
        let volume = |index: usize| {
            // A hash in place of a claim's random uid: nothing that gzip could guess.
            let uid = format!(
                "{:016x}-{:x}",
                (index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
                index
            );
            PlannedVolume {
                persistentvolume: format!("pvc-{uid}"),
                namespace: Some(format!("team-{}", index % 100)),
                persistentvolumeclaim: Some(format!("data-database-{index}")),
                storageclass: "local-path".to_owned(),
                path: format!(
                    "/opt/local-path-provisioner/pvc-{uid}_team-{}_data-database-{index}",
                    index % 100
                ),
                base: 0,
                left_alone: false,
                capacity_bytes: 1 << 30,
            }
        };
        NodePlan {
            version: VERSION,
            run: Run {
                id: "6b1f".to_owned(),
                started_unix_seconds: 1_700_000_000.25,
                owner: crate::owner::Owner::default(),
            },
            node: "node-1".to_owned(),
            budget_seconds: 240.0,
            bases: vec![Base {
                path: "/opt/local-path-provisioner".to_owned(),
                mounted_at: Some("/bases/0".to_owned()),
            }],
            volumes: (0..volumes).map(volume).collect(),
            other_base_paths: vec!["/data".to_owned()],
            known_paths: vec!["/data/shared".to_owned()],
            known_devices: Vec::new(),
            collect: Collect::everything(),
            orphan_age_seconds: 600.0,
        }
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).expect("into memory");
        encoder.finish().expect("into memory")
    }

    #[test]
    fn ten_thousand_volumes_fit_and_come_back() {
        for volumes in [0, 1, 10_000] {
            let plan = node_plan(volumes);
            let bytes = plan.encode().expect("it fits");
            assert_eq!(NodePlan::decode(&bytes).expect("we wrote it"), plan);
        }
    }

    #[test]
    fn more_than_fits_is_refused() {
        let error = node_plan(60_000).encode().expect_err("a ConfigMap is smaller");
        assert_eq!(error.volumes, 60_000);
        assert!(error.compressed_bytes > COMPRESSED_MAX_BYTES);
        // Long paths that are alike compress to little, and still are more than a worker unpacks.
        let mut alike = node_plan(17_000);
        for volume in &mut alike.volumes {
            volume.path = format!("/opt/local-path-provisioner/{}", "x/".repeat(2000));
        }
        let error = alike.encode().expect_err("no worker would read it");
        assert!(error.compressed_bytes < COMPRESSED_MAX_BYTES && error.plain_bytes > UNCOMPRESSED_MAX_BYTES);
    }

    #[test]
    fn what_is_no_plan_is_told() {
        let text = serde_json::to_value(node_plan(1)).expect("it is plain");
        let with = |key: &str, value: serde_json::Value| {
            let mut text = text.clone();
            text[key] = value;
            gzip(text.to_string().as_bytes())
        };
        let whole = node_plan(1).encode().expect("it fits");
        for (bytes, expected) in [
            (b"no gzip".to_vec(), "could not be unpacked"),
            (whole[..whole.len() - 10].to_vec(), "could not be unpacked"),
            (gzip(b"{"), "could not be read"),
            (gzip(b"{}"), "missing field `version`"),
            (
                gzip(br#"{"version": 3, "other": true}"#),
                "the plan has version 3, this program reads version 2",
            ),
            (with("volumes", serde_json::json!(3)), "could not be read"),
            (
                with("bases", serde_json::json!([])),
                "below a base directory that the plan does not name",
            ),
            (
                gzip(&vec![b' '; UNCOMPRESSED_MAX_BYTES as usize + 1]),
                "unpacks to more than",
            ),
        ] {
            let error = anyhow::Error::new(NodePlan::decode(&bytes).expect_err(expected));
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{error:?} should say {expected:?}");
        }
    }

    proptest! {
        /// Who compares the groups of a run compares this number.
        #[test]
        fn the_start_of_a_run_comes_back_to_the_bit(started_unix_seconds in 1.6e9..2.6e9_f64) {
            let mut plan = node_plan(0);
            plan.run.started_unix_seconds = started_unix_seconds;
            let read = NodePlan::decode(&plan.encode().expect("it fits")).expect("we wrote it");
            prop_assert_eq!(read.run.started_unix_seconds.to_bits(), started_unix_seconds.to_bits());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = NodePlan::decode(&bytes);
            let _ = NodePlan::decode(&gzip(&bytes));
        }
    }
}
