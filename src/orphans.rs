//! Directories below the base paths that no volume owns: what has an owner, and what is told of the others.
//!
//! People delete what is told here, so every doubt spares a directory. A path says where a directory is only as long as no
//! symbolic link and no bind mount leads to it by another one:
//! - Where the worker sees both ends of a bind mount, its own table of mounts says which directories are the same.
//! - A directory with a mount inside is in use, whatever else it holds.
//! - A volume's path that leads through a symbolic link below a base ends the search: where it leads cannot be told.
//! - A volume outside of the base directories that the worker sees may be anywhere below them, by a link or a mount of the
//!   node's: each ending of its path counts as known below each base.
//!
//! [`lp_measure::search`] does the looking.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lp_measure::{Measurement, MountTable, State};

use crate::text::one_line;
use crate::volumes::node_plan::NodePlan;

/// Names that are nobody's volume, and whose.
const NAMES: &[&[u8]] = &[
    // ext2 to ext4 and others keep here what fsck finds.
    b"lost+found",
    // Snapshots: NetApp and other NFS servers, snapper on btrfs, ZFS.
    b".snapshot",
    b".snapshots",
    b".zfs",
    // Waste bins: the freedesktop specification, Windows, Synology.
    b".Trash",
    b"$RECYCLE.BIN",
    b"#recycle",
    // Windows' own, on disks that it formatted.
    b"System Volume Information",
];
/// A waste bin of one user: `.Trash-1000`.
const NAME_PREFIX: &[u8] = b".Trash-";
/// How many components of a known path count: what lies deeper is known with the directory above it. A path may have
/// 2,000, and each of its endings as many.
const KNOWN_COMPONENTS_MAX: usize = 16;
/// How many components may be known below one base, all paths together: some 250 bytes each while it is searched.
const KNOWN_MAX: usize = 400_000;
/// The longest path that is told.
const PATH_MAX_CHARS: usize = 500;

/// Whether a name is known to be no volume's.
pub fn is_ignored(name: &OsStr) -> bool {
    let name = name.as_bytes();
    NAMES.contains(&name) || name.starts_with(NAME_PREFIX)
}

/// What is known below one base, relative to it; an empty path is the base itself.
#[derive(Clone, Debug, Default)]
pub struct Known {
    paths: Vec<PathBuf>,
    components: usize,
}

impl Known {
    fn push(&mut self, relative: &Path) {
        if self.components > KNOWN_MAX {
            return;
        }
        let path: PathBuf = relative.iter().take(KNOWN_COMPONENTS_MAX).collect();
        self.components += path.iter().count();
        self.paths.push(path);
    }

    /// The paths; `None` if they are too many to be kept.
    pub fn into_paths(self) -> Option<Vec<PathBuf>> {
        (self.components <= KNOWN_MAX).then_some(self.paths)
    }
}

/// What is known below each base. Nothing for a base that is not mounted.
pub fn known_below(plan: &NodePlan, mounts: &MountTable) -> Vec<Known> {
    let bases: Vec<SeenBase> = plan.bases.iter().map(|base| SeenBase::new(base, mounts)).collect();
    let mut known = vec![Known::default(); bases.len()];
    let directories = plan.volumes.iter().map(|volume| &volume.path).chain(&plan.known_paths);
    for path in directories.chain(&plan.known_devices) {
        let path = Path::new(path);
        let mut is_seen = false;
        for base in &bases {
            if let Some(place) = base.place(path, mounts) {
                is_seen = true;
                below(&bases, &place, &mut known, true);
            }
        }
        let inside_a_base = bases
            .iter()
            .any(|base| base.is_mounted() && path.starts_with(base.path));
        for (base, known) in bases.iter().zip(&mut known) {
            if base.path.starts_with(path) {
                known.push(Path::new(""));
            } else if let Ok(relative) = path.strip_prefix(base.path) {
                known.push(relative);
            } else if base.is_mounted() && !is_seen && !inside_a_base {
                endings(path).for_each(|ending| known.push(ending));
            }
        }
    }
    for base in &bases {
        if let Some(place) = &base.place {
            below(&bases, place, &mut known, false);
        }
    }
    let base_paths = plan.bases.iter().map(|base| &base.path).chain(&plan.other_base_paths);
    for path in base_paths {
        for (base, known) in bases.iter().zip(&mut known) {
            match Path::new(path).strip_prefix(base.path) {
                Ok(relative) if !relative.as_os_str().is_empty() => known.push(relative),
                _ => {}
            }
        }
    }
    for (base, known) in bases.iter().zip(&mut known) {
        if let Some(mounted_at) = base.mounted_at {
            add_mount_points(known, mounts.points_below(mounted_at), |point| {
                mounts.may_be_shared(&mounted_at.join(point))
            });
        }
    }
    known
}

/// Adds mount points to what is known below a base. Where something known lies beneath one it is spared anyway, and what
/// else lies on that mount is looked at; not on one that other machines may have too, with volumes of theirs.
fn add_mount_points<'a>(
    known: &mut Known,
    points: impl Iterator<Item = &'a Path>,
    may_be_shared: impl Fn(&Path) -> bool,
) {
    let paths: BTreeSet<&Path> = known.paths.iter().map(PathBuf::as_path).collect();
    let is_told = |point: &Path| {
        let next = paths.range(point..).next();
        point.ancestors().any(|above| paths.contains(above)) || next.is_some_and(|next| next.starts_with(point))
    };
    let more = points.filter(|point| may_be_shared(point) || !is_told(point));
    let more: Vec<PathBuf> = more.map(Path::to_owned).collect();
    more.iter().for_each(|point| known.push(point));
}

/// A base directory, and where it lies on its file system as far as the worker sees it.
struct SeenBase<'a> {
    path: &'a Path,
    mounted_at: Option<&'a Path>,
    place: Option<Place>,
}

/// A directory on a file system: its device, and the way from the root.
type Place = (String, PathBuf);

impl SeenBase<'_> {
    fn new<'a>(base: &'a crate::volumes::node_plan::Base, mounts: &MountTable) -> SeenBase<'a> {
        let mounted_at = base.mounted_at.as_deref().map(Path::new);
        SeenBase {
            path: Path::new(&base.path),
            mounted_at,
            place: mounted_at.and_then(|path| mounts.place(path)),
        }
    }

    fn is_mounted(&self) -> bool {
        self.mounted_at.is_some()
    }

    /// Where a path below this base lies.
    fn place(&self, path: &Path, mounts: &MountTable) -> Option<Place> {
        let relative = path.strip_prefix(self.path).ok()?;
        mounts.place(&self.mounted_at?.join(relative))
    }
}

/// Adds a directory of a file system to what is known below each base that it lies in, or that lies in it.
fn below(bases: &[SeenBase<'_>], place: &Place, known: &mut [Known], covers_bases: bool) {
    for (base, known) in bases.iter().zip(known) {
        let Some((device, at)) = &base.place else { continue };
        if *device != place.0 {
            continue;
        }
        match place.1.strip_prefix(at) {
            Ok(relative) if !relative.as_os_str().is_empty() => known.push(relative),
            _ if covers_bases && at.starts_with(&place.1) => known.push(Path::new("")),
            _ => {}
        }
    }
}

/// `/srv/data/x` may be `data/x` or `x` below anything.
fn endings(path: &Path) -> impl Iterator<Item = &Path> {
    let mut names = path.iter();
    std::iter::from_fn(move || {
        names.next()?;
        Some(names.as_path()).filter(|ending| !ending.as_os_str().is_empty())
    })
}

/// Why nothing can be called an orphan after the directory of a volume was looked for, if so.
pub fn doubt(path: &str, measurement: &Measurement) -> Option<String> {
    let is_certain = match measurement.state {
        _ if measurement.directory.is_some() => true,
        State::Missing | State::NotADirectory | State::BaseMissing => true,
        State::Complete
        | State::EscapesBase
        | State::PermissionDenied
        | State::IoError
        | State::OutOfResources
        | State::TooManyLinks
        | State::Timeout
        | State::Cancelled => false,
    };
    (!is_certain).then(|| {
        let state = measurement.state;
        let path = one_line(path, PATH_MAX_CHARS);
        format!("which directory the volume's path {path} leads to cannot be told ({state})")
    })
}

/// A directory that no volume owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its path on the node, fit to be shown.
    pub path: String,
    /// What it takes on the disk, if all of it could be read.
    pub used_bytes: Option<u64>,
}

impl Orphan {
    /// An orphan below a base path.
    pub fn new(base: &str, relative: &Path, measurement: &Measurement) -> Orphan {
        let path = Path::new(base).join(relative);
        Orphan {
            path: one_line(&path.to_string_lossy(), PATH_MAX_CHARS),
            used_bytes: measurement.used_bytes,
        }
    }
}

/// The orphans below one base path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrphanCount {
    /// How many there are.
    pub directories: u64,
    /// What they take together, each measured by itself; only if every one was measured to its end.
    pub bytes: Option<u64>,
}

/// Counts the orphans of one base.
pub fn count(orphans: &[Orphan]) -> OrphanCount {
    let bytes = orphans
        .iter()
        .try_fold(0_u64, |sum, orphan| Some(sum.saturating_add(orphan.used_bytes?)));
    OrphanCount {
        directories: orphans.len() as u64,
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::collect::Collect;
    use crate::volumes::node_plan::{self, Base, PlannedVolume, Run};

    /// As in a worker's pod: `/bases/0` is the node's /opt/lpp, `/bases/1` its /mnt/disks, into which the node has mounted a
    /// disk and, once more, a directory of /opt/lpp.
    const MOUNTS: &str = "\
22 1 0:99 / / rw - overlay overlay rw
30 22 8:1 /opt/lpp /bases/0 ro - ext4 /dev/sda1 rw
31 22 8:1 /mnt/disks /bases/1 ro - ext4 /dev/sda1 rw
32 31 8:16 / /bases/1/ssd ro - ext4 /dev/sdb rw
33 31 8:1 /opt/lpp/x/bound /bases/1/bound ro - ext4 /dev/sda1 rw
";

    fn plan(volumes: &[&str], known_paths: &[&str]) -> NodePlan {
        let base = |path: &str, mounted_at: Option<&str>| Base {
            path: path.to_owned(),
            mounted_at: mounted_at.map(str::to_owned),
        };
        let strings = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let volume = |path: &&str| PlannedVolume {
            persistentvolume: "pv".to_owned(),
            namespace: None,
            persistentvolumeclaim: None,
            storageclass: String::new(),
            path: (*path).to_owned(),
            base: 0,
            capacity_bytes: 1,
            left_alone: false,
        };
        NodePlan {
            version: node_plan::VERSION,
            run: Run {
                id: String::new(),
                started_unix_seconds: 0.0,
                owner: crate::owner::Owner::default(),
            },
            node: "n".to_owned(),
            budget_seconds: 1.0,
            bases: vec![
                base("/opt/lpp", Some("/bases/0")),
                base("/mnt/disks", Some("/bases/1")),
                base("/gone", None),
            ],
            other_base_paths: strings(&["/opt/lpp/inner", "/var/openebs/local", "/opt"]),
            volumes: volumes.iter().map(volume).collect(),
            known_paths: strings(known_paths),
            known_devices: Vec::new(),
            collect: Collect::everything(),
            orphan_age_seconds: 0.0,
        }
    }

    fn paths_below(plan: &NodePlan, mounts: &MountTable) -> Vec<Vec<PathBuf>> {
        let known = known_below(plan, mounts).into_iter();
        known.map(|known| known.into_paths().expect("few paths")).collect()
    }

    fn check(volumes: &[&str], known_paths: &[&str], first: &[&str], second: &[&str], why: &str) {
        let known = paths_below(&plan(volumes, known_paths), &MountTable::parse(MOUNTS));
        // The base inside the first one is always known there.
        let first: Vec<&str> = first.iter().copied().chain(["inner"]).collect();
        // So are the mounts in the second one, except those that are, hold or lie in something known.
        let touches = |point: &Path| {
            let mut paths = second.iter().map(Path::new);
            paths.any(|path| path.starts_with(point) || point.starts_with(path))
        };
        let mounted = ["ssd", "bound"].into_iter().filter(|point| !touches(Path::new(point)));
        let second: Vec<&str> = second.iter().copied().chain(mounted).collect();
        for (found, expected) in [(&known[0], &first[..]), (&known[1], &second[..])] {
            let found: BTreeSet<&Path> = found.iter().map(PathBuf::as_path).collect();
            let expected: BTreeSet<&Path> = expected.iter().map(Path::new).collect();
            assert_eq!(found, expected, "{why}");
        }
        assert_eq!(known.len(), 3);
    }

    #[test]
    fn what_has_an_owner() {
        check(&[], &[], &[], &[], "only the base in a base");
        check(
            &["/opt/lpp/a"],
            &["/opt/lpp/team/b"],
            &["a", "team/b"],
            &[],
            "by its path",
        );
        check(&["/mnt/disks/ssd/a"], &[], &[], &["ssd/a"], "on a disk of its own");
        check(
            &["/mnt/disks/bound"],
            &[],
            &["x/bound"],
            &["bound"],
            "a bind mount is both",
        );
        check(
            &["/mnt/disks/bound/claim"],
            &[],
            &["x/bound/claim"],
            &["bound/claim"],
            "a directory in a bind mount too",
        );
        check(
            &[],
            &["/opt"],
            &[""],
            &["opt"],
            "a parent of a base owns all that is in it",
        );
        check(&["/"], &[], &[""], &[""], "the root owns everything");
        check(&["/mnt/disks"], &[], &[], &[""], "a base that is a volume");
        check(
            &["/srv/team/data"],
            &[],
            &["srv/team/data", "team/data", "data"],
            &["srv/team/data", "team/data", "data"],
            "by a link of the node it may lie below any base",
        );
        check(
            &["/gone/pv"],
            &[],
            &["gone/pv", "pv"],
            &["gone/pv", "pv"],
            "below a base that could not be mounted",
        );
        check(
            &["/opt/lpp10/a"],
            &[],
            &["opt/lpp10/a", "lpp10/a", "a"],
            &["opt/lpp10/a", "lpp10/a", "a"],
            "by components",
        );
    }

    #[test]
    fn a_deep_path_is_cut_and_too_many_are_told() {
        let deep = format!("/srv{}", "/x".repeat(2000));
        let known = paths_below(&plan(&[], &[&deep]), &MountTable::parse(MOUNTS));
        let longest = |paths: &[PathBuf]| paths.iter().map(|path| path.iter().count()).max();
        assert_eq!((known[0].len(), longest(&known[0])), (2002, Some(KNOWN_COMPONENTS_MAX)));
        assert!(known[0].contains(&PathBuf::from(["x"; KNOWN_COMPONENTS_MAX].join("/"))));
        assert_eq!(known[2].len(), 0, "what is not mounted is not searched");
        let below = format!("/opt/lpp{}", "/y".repeat(2000));
        let known = paths_below(&plan(&[&below], &[]), &MountTable::parse(MOUNTS));
        assert_eq!(longest(&known[0]), Some(KNOWN_COMPONENTS_MAX));
        let many = vec![deep.as_str(); KNOWN_MAX / 2000 / KNOWN_COMPONENTS_MAX + 1];
        let known = known_below(&plan(&[], &many), &MountTable::parse(MOUNTS));
        assert_eq!(
            known
                .into_iter()
                .map(|known| known.into_paths().is_some())
                .collect::<Vec<_>>(),
            [false, false, true]
        );
    }

    #[test]
    fn what_is_mounted_below_a_base_is_in_use() {
        let second = |known: &[&str]| {
            let known = paths_below(&plan(&[], known), &MountTable::parse(MOUNTS)).remove(1);
            known.into_iter().collect::<BTreeSet<PathBuf>>()
        };
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<BTreeSet<PathBuf>>();
        assert_eq!(second(&[]), paths(&["bound", "ssd"]));
        assert_eq!(second(&["/mnt/disks/ssd"]), paths(&["bound", "ssd"]));
        // What else lies beside the volume on that disk is looked at.
        assert_eq!(second(&["/mnt/disks/ssd/a/b"]), paths(&["bound", "ssd/a/b"]));
        assert_eq!(second(&["/mnt/disks/ss"]), paths(&["bound", "ss", "ssd"]));
        assert_eq!(second(&["/mnt/disks/ssd-2"]), paths(&["bound", "ssd", "ssd-2"]));
        let nfs = format!("{MOUNTS}34 31 0:60 / /bases/1/nfs rw - nfs4 server:/x rw\n");
        let known = paths_below(&plan(&["/mnt/disks/nfs/a"], &[]), &MountTable::parse(&nfs)).remove(1);
        assert!(
            known.contains(&PathBuf::from("nfs")),
            "others may have volumes there: {known:?}"
        );
    }

    #[test]
    fn without_a_table_of_mounts_paths_are_all_there_is() {
        let known = paths_below(&plan(&["/mnt/disks/bound"], &[]), &MountTable::default());
        assert_eq!(known[0], ["inner"].map(PathBuf::from));
        assert_eq!(known[1], ["bound"].map(PathBuf::from));
    }

    #[test]
    fn names_that_are_no_volumes() {
        for name in ["lost+found", ".Trash-1000", ".Trash", ".snapshot", ".snapshots", ".zfs"] {
            assert!(is_ignored(OsStr::new(name)), "{name}");
        }
        for name in ["pvc-1", "lost", ".trash-1", "snapshot", ".hidden", ".Tras"] {
            assert!(!is_ignored(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn a_directory_of_a_volume_that_cannot_be_told_is_a_doubt() {
        for state in State::ALL {
            let measurement = Measurement::without_number(*state, None);
            let is_certain = matches!(state, State::Missing | State::NotADirectory | State::BaseMissing);
            assert_eq!(doubt("/data/x", &measurement).is_none(), is_certain, "{state}");
        }
    }

    #[test]
    fn a_part_is_no_sum() {
        let orphan = |used_bytes| Orphan {
            path: String::new(),
            used_bytes,
        };
        for (orphans, directories, bytes) in [
            (vec![], 0, Some(0)),
            (vec![orphan(Some(3)), orphan(Some(4))], 2, Some(7)),
            (vec![orphan(Some(3)), orphan(None)], 2, None),
        ] {
            assert_eq!(count(&orphans), OrphanCount { directories, bytes });
        }
    }
}
