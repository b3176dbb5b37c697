//! Mounts: which one a descriptor is on, and whether a volume that is a mount of its own may be answered by its file
//! system; what a file system tells of itself.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, StatxFlags, fstatvfs, statx};
use rustix::io::Errno;

use crate::FileSystem;

/// The kernel's number of a mount, as in mountinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MountId(pub(crate) u64);

/// The mount that a descriptor was opened on: by statx (Linux 5.8), else from /proc.
pub(crate) fn id(fd: BorrowedFd) -> Result<MountId, Errno> {
    match statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID) {
        Ok(found) if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(MountId(found.stx_mnt_id)),
        Ok(_) | Err(Errno::NOSYS | Errno::PERM) => id_from_proc(fd),
        Err(error) => Err(error),
    }
}

fn id_from_proc(fd: BorrowedFd) -> Result<MountId, Errno> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let number = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.map(MountId).ok_or(Errno::NOSYS)
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: MountId,
    /// The mount that it stands on.
    pub(crate) parent: MountId,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// The directory of the file system that is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Whether the file system itself is read-only; the mount may be so by itself.
    pub(crate) is_read_only: bool,
    /// Whether quotas of projects are on: a directory's limit may then stand for the whole file system.
    pub(crate) has_project_quotas: bool,
}

/// The mounts that this process sees; none where /proc does not tell.
pub(crate) fn all() -> Vec<Mount> {
    std::fs::read_to_string("/proc/self/mountinfo")
        .map(|text| parse(&text))
        .unwrap_or_default()
}

fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &str) -> Option<Mount> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ');
    let id = MountId(place.next()?.parse().ok()?);
    let parent = MountId(place.next()?.parse().ok()?);
    let (major, minor) = place.next()?.split_once(':')?;
    let (root, point) = (unescape(place.next()?), unescape(place.next()?));
    let mut file_system = file_system.split(' ');
    let (kind, source) = (file_system.next()?.to_owned(), file_system.next()?.to_owned());
    let options: Vec<&str> = file_system.next()?.split(',').collect();
    Some(Mount {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        point,
        kind,
        source,
        is_read_only: options.contains(&"ro"),
        has_project_quotas: options.iter().any(|option| PROJECT_QUOTAS.contains(option)),
    })
}

/// The mount that a path lies on by its name alone, without asking any file system: the innermost, and of several on one
/// another the last.
pub(crate) fn of_path<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let around = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    around.max_by_key(|mount| mount.point.components().count())
}

/// The mount that a path ends on, found as the kernel finds it: from the root over one mount to the next. One that stands
/// below a later one is not on the way.
fn at_the_end<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    // Of two at one place the later one covers the other.
    let next = |is_next: &dyn Fn(&Mount) -> bool| {
        let next = mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.point) && is_next(mount));
        next.rev().min_by_key(|mount| mount.point.components().count())
    };
    // The root stands on itself, or on what this process does not see.
    let mut at = next(&|mount| {
        mounts
            .iter()
            .all(|other| other.id != mount.parent || other.id == mount.id)
    })?;
    // A text that is not the kernel's may lead in a circle.
    for _ in mounts {
        match next(&|mount| mount.parent == at.id && mount.id != at.id) {
            Some(mount) => at = mount,
            None => break,
        }
    }
    Some(at)
}

/// Blank, tab, line end and backslash stand there in octal.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The mounts that this process sees, to tell which directories are the same by two paths.
#[derive(Clone, Debug, Default)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads it from /proc; nothing can be placed where /proc does not tell.
    pub fn read() -> MountTable {
        MountTable(all())
    }

    /// Takes the text of a mountinfo.
    pub fn parse(mountinfo: &str) -> MountTable {
        MountTable(parse(mountinfo))
    }

    /// Where a path lies on its file system: the device, and the way from the root of that file system. Two paths that
    /// are placed alike are one directory, through bind mounts too. No file system is asked, and no symbolic link known.
    pub fn place(&self, path: &Path) -> Option<(String, PathBuf)> {
        let mount = at_the_end(&self.0, path)?;
        let inside = path.strip_prefix(&mount.point).ok()?;
        let device = format!("{}:{}", mount.device.0, mount.device.1);
        let place: PathBuf = mount.root.components().chain(inside.components()).collect();
        Some((device, place))
    }

    /// What is mounted below a directory, relative to it; no symbolic link is known.
    pub fn points_below<'a>(&'a self, directory: &'a Path) -> impl Iterator<Item = &'a Path> {
        let points = self
            .0
            .iter()
            .filter_map(move |mount| mount.point.strip_prefix(directory).ok());
        points.filter(|point| !point.as_os_str().is_empty())
    }

    /// Whether another machine may have the directory at this path too, by the kind of its file system; no file system is
    /// asked. What is not known to belong to one machine may be shared.
    pub fn may_be_shared(&self, path: &Path) -> bool {
        of_path(&self.0, path).is_none_or(|mount| !OF_ONE_MACHINE.contains(&mount.kind.as_str()))
    }
}

/// File systems that one machine has for itself. Not the clusters' (OCFS2, GFS2, Ceph), nor NFS, SMB, FUSE, 9p or virtiofs.
const OF_ONE_MACHINE: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "bcachefs", "vfat", "exfat", "tmpfs",
    "overlay",
];

/// What XFS and ext4 say of them among their options.
const PROJECT_QUOTAS: &[&str] = &["prjquota", "pquota", "pqnoenforce"];

/// File systems whose counters are those of one disk, and of all that is on it. Not btrfs (subvolumes, and it shares
/// blocks), not overlay (it tells of the layer below), not NFS, FUSE, 9p or virtiofs (they tell of somebody else's disk).
const COUNTING: &[&str] = &["ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "tmpfs", "zfs"];

/// File systems on which a directory's inode number lasts as long as the directory. Elsewhere (FAT, overlay, FUSE and
/// what else is not known) the kernel may number it anew when memory is short.
const LASTING: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "jfs", "nfs", "nfs4", "reiserfs", "bcachefs",
    "squashfs", "erofs", "iso9660",
];

/// Whether inode numbers last there.
pub(crate) fn has_lasting_inodes(file_system: Option<&FileSystem>) -> bool {
    file_system.is_some_and(|file_system| LASTING.contains(&file_system.kind.as_str()))
}

/// Whether the file system's counters are this volume's own: it is the root of a mount, the whole file system is mounted
/// there, no other mount of that device stands anywhere, which could be another volume's, and nothing is mounted inside,
/// which may hide some of it.
pub(crate) fn answers_alone(mounts: &[Mount], volume: MountId) -> bool {
    let Some(own) = mounts.iter().find(|mount| mount.id == volume) else {
        return false;
    };
    own.root.as_os_str() == "/"
        && COUNTING.contains(&own.kind.as_str())
        && !own.has_project_quotas
        && mounts
            .iter()
            .all(|other| other.id == own.id || (other.device != own.device && !other.point.starts_with(&own.point)))
}

/// Used bytes and inodes by the file system's own counters; nothing where it does not tell or does not count, as a tmpfs
/// without a limit.
pub(crate) fn counters(fd: impl AsFd) -> Option<(u64, u64)> {
    // statvfs has the fragment size on every architecture; statfs has it too, but not under one name.
    let told = fstatvfs(&fd)
        .ok()
        .filter(|told| told.f_blocks > 0 && told.f_files > 0)?;
    let used = told.f_blocks.saturating_sub(told.f_bfree).saturating_mul(told.f_frsize);
    Some((used, told.f_files.saturating_sub(told.f_ffree)))
}

/// What is known of the file system below a descriptor; nothing where the mount is unknown or does not answer. It may hang.
pub(crate) fn file_system(mounts: &[Mount], mount: MountId, fd: impl AsFd) -> Option<FileSystem> {
    let mount = mounts.iter().find(|one| one.id == mount)?;
    let told = fstatvfs(&fd).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
    Some(FileSystem {
        device: format!("{}:{}", mount.device.0, mount.device.1),
        kind: mount.kind.clone(),
        is_read_only: mount.is_read_only,
        size_bytes: bytes(told.f_blocks),
        available_bytes: bytes(told.f_bavail),
        used_bytes: bytes(told.f_blocks.saturating_sub(told.f_bfree)),
        inodes: told.f_files,
        inodes_free: told.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:17 / /mnt/disks/a rw shared:2 - xfs /dev/sdb1 rw
31 22 8:33 / /mnt/disks/b rw - ext4 /dev/sdc1 rw
32 22 8:33 /sub /mnt/disks/c rw - ext4 /dev/sdc1 rw
33 22 0:44 / /mnt/disks/d rw - btrfs /dev/sdd rw
34 22 8:49 /one /mnt/disks/e rw - ext4 /dev/sde1 rw
35 22 0:50 / /mnt/disks/f\\040g rw - tmpfs tmpfs rw
36 22 0:51 / /mnt/disks/o rw - overlay overlay rw
37 22 8:65 / /mnt/disks/p ro - ext4 /dev/sdf rw
38 22 8:81 / /mnt/disks/q rw - ext4 /dev/sdg ro,errors=remount-ro
39 22 8:97 / /mnt/quotas rw - xfs /dev/sdh rw,prjquota
40 22 8:113 / /mnt/outer rw - ext4 /dev/sdi rw
41 40 0:52 / /mnt/outer/inner rw - tmpfs tmpfs rw
a line that is none
";

    #[test]
    fn a_file_system_answers_only_for_a_volume_that_has_it_to_itself() {
        let mounts = parse(NODE);
        assert_eq!(mounts.len(), 13);
        for (id, expected, why) in [
            (30, true, "a whole disk, mounted once"),
            (31, false, "the disk is mounted a second time"),
            (32, false, "only a directory of the disk"),
            (33, false, "btrfs"),
            (34, false, "only a directory, though mounted once"),
            (35, true, "tmpfs of its own"),
            (36, false, "overlay"),
            (39, false, "its root may have a quota"),
            (40, false, "something is mounted inside"),
            (41, true, "inside another one"),
            (99, false, "unknown"),
        ] {
            assert_eq!(answers_alone(&mounts, MountId(id)), expected, "{why}");
        }
    }

    #[test]
    fn a_path_lies_on_the_innermost_mount() {
        let mounts = parse(&NODE.replace("/mnt/disks/o", "/mnt/disks/a"));
        for (path, id) in [
            ("/mnt/disks", 22),
            ("/mnt/disks/b/x", 31),
            ("/mnt/disks/bx", 22),
            ("/mnt/disks/f g/x", 35),
            ("/mnt/disks/a/x", 36),
        ] {
            assert_eq!(
                of_path(&mounts, Path::new(path)).map(|mount| mount.id),
                Some(MountId(id)),
                "{path}"
            );
        }
    }

    #[test]
    fn read_only_is_what_the_file_system_is_and_not_its_mount() {
        let read_only = parse(NODE).into_iter().filter(|mount| mount.is_read_only);
        assert_eq!(read_only.map(|mount| mount.id).collect::<Vec<_>>(), [MountId(38)]);
    }

    #[test]
    fn a_path_is_placed_on_its_file_system() {
        let table = MountTable::parse(&format!(
            "{NODE}40 22 8:33 /later /mnt/disks/b rw - ext4 /dev/sdc1 rw\n"
        ));
        for (path, device, place) in [
            ("/opt/x", "8:1", "/opt/x"),
            ("/mnt/disks/a", "8:17", "/"),
            ("/mnt/disks/a/x/y", "8:17", "/x/y"),
            ("/mnt/disks/ab", "8:1", "/mnt/disks/ab"),
            ("/mnt/disks/c/x", "8:33", "/sub/x"),
            ("/mnt/disks/b/x", "8:33", "/later/x"),
        ] {
            let expected = Some((device.to_owned(), PathBuf::from(place)));
            assert_eq!(table.place(Path::new(path)), expected, "{path}");
        }
        assert_eq!(MountTable::default().place(Path::new("/x")), None);
    }

    #[test]
    fn a_mount_hides_those_that_stood_below_it() {
        let table = MountTable::parse(
            "\
1 1 0:2 / / rw - rootfs rootfs rw
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:50 / /a/b rw - tmpfs tmpfs rw
31 22 0:51 / /a rw - tmpfs tmpfs rw
32 31 0:52 / /a/c rw - tmpfs tmpfs rw
33 32 0:53 / /a/c rw - tmpfs tmpfs rw
",
        );
        for (path, device, place) in [
            ("/x", "8:1", "/x"),
            ("/a/b/x", "0:51", "/b/x"),
            ("/a/c/x", "0:53", "/x"),
        ] {
            let expected = Some((device.to_owned(), PathBuf::from(place)));
            assert_eq!(table.place(Path::new(path)), expected, "{path}");
        }
        let circle = "40 22 8:1 / / rw - ext4 a rw\n41 42 8:2 / /a rw - ext4 b rw\n42 41 8:3 / /a rw - ext4 c rw\n";
        let place = MountTable::parse(circle).place(Path::new("/a"));
        assert_eq!(
            place,
            Some(("8:1".to_owned(), PathBuf::from("/a"))),
            "no way leads there"
        );
    }

    #[test]
    fn what_is_mounted_below_a_directory() {
        let table = MountTable::parse(NODE);
        let below = |directory: &str| -> Vec<PathBuf> {
            let points = table.points_below(Path::new(directory));
            points.map(Path::to_owned).collect()
        };
        let expected = ["a", "b", "c", "d", "e", "f g", "o", "p", "q"].map(PathBuf::from);
        assert_eq!(below("/mnt/disks"), expected);
        assert_eq!(below("/mnt/disks/a"), Vec::<PathBuf>::new());
        assert_eq!(below("/mnt/dis"), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_another_machine_may_have_too() {
        let table = MountTable::parse(&format!(
            "{NODE}\
             40 22 0:60 / /srv/nfs rw - nfs4 server:/data rw\n\
             41 22 0:61 / /srv/fuse rw - fuse.glusterfs gluster:/data rw\n\
             42 22 0:62 / /srv/new rw - something-new none rw\n"
        ));
        for (path, expected) in [
            ("/opt/x", false),
            ("/mnt/disks/a/x", false),
            ("/mnt/disks/d", false),
            ("/mnt/disks/o", false),
            ("/srv", false),
            ("/srv/nfs/x", true),
            ("/srv/fuse", true),
            ("/srv/new", true),
        ] {
            assert_eq!(table.may_be_shared(Path::new(path)), expected, "{path}");
        }
        assert!(
            MountTable::default().may_be_shared(Path::new("/opt")),
            "nothing is known of it"
        );
    }

    #[test]
    fn octal_is_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c\9"), PathBuf::from(r"/a b\c\9"));
    }

    #[test]
    fn the_kernel_and_proc_agree_about_a_mount() {
        for place in ["/proc", "/", "/sys"] {
            let directory = std::fs::File::open(place).expect("every Linux has it");
            assert_eq!(id(directory.as_fd()), id_from_proc(directory.as_fd()), "{place}");
        }
    }
}
