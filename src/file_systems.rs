//! The file systems that the base paths of a node and its volumes lie on, and what was promised of each.
//!
//! Pure: what was measured in, [`BaseFileSystem`] out.

use std::collections::BTreeMap;

use lp_measure::{FileSystem, Measurement};

use crate::volumes::node_plan::NodePlan;

/// A file system below a base path: that of the base itself, or of a volume whose directory is a disk of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFileSystem {
    /// The base path: an index into [`NodePlan::bases`].
    pub base: usize,
    /// The file system, as it was when it was first asked.
    pub file_system: FileSystem,
    /// The capacities of all volumes of the node that lie on it, below other base paths too; 128 bits, because nothing bounds
    /// what is promised.
    pub requested_bytes: u128,
}

/// Each pair of a base path and a file system, in the order of the plan. `bases` has the file system of each base, where it
/// could be asked, and `measurements` those of the volumes.
pub fn file_systems(
    plan: &NodePlan,
    bases: &[Option<FileSystem>],
    measurements: &[Measurement],
) -> Vec<BaseFileSystem> {
    let mut found: Vec<BaseFileSystem> = Vec::new();
    let mut requested: BTreeMap<&str, u128> = BTreeMap::new();
    let mut see = |base: usize, file_system: &FileSystem| {
        let is_known = |one: &BaseFileSystem| one.base == base && one.file_system.device == file_system.device;
        if !found.iter().any(is_known) {
            found.push(BaseFileSystem {
                base,
                file_system: file_system.clone(),
                requested_bytes: 0,
            });
        }
    };
    for (base, file_system) in bases.iter().enumerate() {
        if let Some(file_system) = file_system {
            see(base, file_system);
        }
    }
    for (volume, measurement) in plan.volumes.iter().zip(measurements) {
        if let Some(file_system) = &measurement.file_system {
            see(volume.base, file_system);
        }
        // One that could not be opened counts where its directory should be.
        let own = measurement.file_system.as_ref();
        if let Some(file_system) = own.or(bases[volume.base].as_ref()) {
            *requested.entry(&file_system.device).or_default() += u128::from(volume.capacity_bytes);
        }
    }
    for one in &mut found {
        one.requested_bytes = requested.get(one.file_system.device.as_str()).copied().unwrap_or(0);
    }
    found.sort_by(|a, b| (a.base, &a.file_system.device).cmp(&(b.base, &b.file_system.device)));
    found
}

/// What a volume can still take, as kubelet means it: what is left of its capacity, or less if its file system has less.
pub fn available_bytes(capacity_bytes: u64, measurement: &Measurement) -> Option<u64> {
    let left = capacity_bytes.saturating_sub(measurement.used_bytes?);
    Some(left.min(measurement.file_system.as_ref()?.available_bytes))
}

#[cfg(test)]
mod tests {
    use lp_measure::State;

    use super::*;
    use crate::volumes::collect::Collect;
    use crate::volumes::node_plan::{self, Base, PlannedVolume, Run};

    fn file_system(device: &str) -> FileSystem {
        FileSystem {
            device: device.to_owned(),
            kind: "ext4".to_owned(),
            is_read_only: false,
            size_bytes: 1000,
            available_bytes: 50,
            used_bytes: 900,
            inodes: 10,
            inodes_free: 5,
        }
    }

    fn measured(used_bytes: Option<u64>, device: Option<&str>) -> Measurement {
        Measurement {
            used_bytes,
            file_system: device.map(file_system),
            ..Measurement::without_number(State::Complete, None)
        }
    }

    #[test]
    fn each_pair_once_and_what_is_promised_of_the_whole() {
        let volume = |base, capacity_bytes| PlannedVolume {
            persistentvolume: "pv".to_owned(),
            namespace: None,
            persistentvolumeclaim: None,
            storageclass: String::new(),
            path: String::new(),
            base,
            capacity_bytes,
            left_alone: false,
        };
        let base = |path: &str| Base {
            path: path.to_owned(),
            mounted_at: None,
        };
        let plan = NodePlan {
            version: node_plan::VERSION,
            run: Run {
                id: String::new(),
                started_unix_seconds: 0.0,
                owner: crate::owner::Owner::default(),
            },
            node: "n".to_owned(),
            budget_seconds: 1.0,
            bases: vec![base("/a"), base("/b"), base("/c")],
            other_base_paths: Vec::new(),
            volumes: vec![
                volume(0, 100),
                volume(0, 20),
                volume(1, 3),
                volume(1, u64::MAX),
                volume(2, 7),
            ],
            known_paths: Vec::new(),
            known_devices: Vec::new(),
            collect: Collect::everything(),
            orphan_age_seconds: 0.0,
        };
        // Two bases on one disk, a disk of its own below the first, and a base that did not answer.
        let bases = [Some(file_system("8:1")), Some(file_system("8:1")), None];
        let measurements = [
            measured(Some(1), Some("8:1")),
            measured(None, Some("8:2")),
            measured(None, None),
            measured(Some(1), Some("8:1")),
            measured(None, None),
        ];
        let found = file_systems(&plan, &bases, &measurements);
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.base, one.file_system.device.as_str(), one.requested_bytes))
            .collect();
        let whole = 103 + u128::from(u64::MAX);
        assert_eq!(told, [(0, "8:1", whole), (0, "8:2", 20), (1, "8:1", whole)]);
    }

    #[test]
    fn available_is_the_smaller_of_two() {
        for (capacity, used, device, expected) in [
            (100, Some(60), Some("8:1"), Some(40)),
            (100, Some(40), Some("8:1"), Some(50)),
            (100, Some(160), Some("8:1"), Some(0)),
            (100, None, Some("8:1"), None),
            (100, Some(60), None, None),
        ] {
            assert_eq!(
                available_bytes(capacity, &measured(used, device)),
                expected,
                "{capacity} {used:?}"
            );
        }
    }
}
