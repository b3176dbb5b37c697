//! The order of reading on a disk whose head moves.
//!
//! An inode's number tells its place on the disk, and getdents gives it for nothing. Entries are looked at by rising
//! number, a window of some thousands across directories at a time, and the next directory to read is the one with the
//! next higher number, wrapping round like an elevator. Sorting within each directory alone moved the head as much as du
//! does; both together need a hundredth of its seeks. A larger window gains no more. On other disks, and when nothing
//! has to be read, all this gains nothing: `walk` uses it only where it does.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Rotating;
use crate::mounts::{self, Mount};

/// Entries that are sorted together.
pub(crate) const WINDOW: usize = 5_000;
/// Entries of the first window, which only finds out whether anything has to be read from the disk.
pub(crate) const FIRST_WINDOW: usize = 500;
/// Directories that wait at most; those above are read at once, last found first. A bound for memory: each takes 100
/// bytes and more.
const WAITING_MAX: usize = 50_000;

/// Directories that wait to be read.
pub(crate) struct Elevator<T> {
    waiting: BTreeMap<(u64, usize), T>,
    too_many: Vec<(u64, T)>,
    /// Two may have one inode number, on two btrfs subvolumes: the count keeps them apart.
    count: usize,
    position: u64,
}

impl<T> Elevator<T> {
    pub(crate) fn new() -> Elevator<T> {
        Elevator {
            waiting: BTreeMap::new(),
            too_many: Vec::new(),
            count: 0,
            position: 0,
        }
    }

    pub(crate) fn push(&mut self, inode: u64, directory: T) {
        if self.has_room() {
            self.count += 1;
            self.waiting.insert((inode, self.count), directory);
        } else {
            self.too_many.push((inode, directory));
        }
    }

    /// Whether one more could wait for its turn.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.too_many.is_empty()
    }

    /// The next one upwards, or the lowest.
    pub(crate) fn next(&mut self) -> Option<T> {
        if let Some((_, directory)) = self.too_many.pop() {
            return Some(directory);
        }
        let next = self
            .waiting
            .range((self.position, 0)..)
            .next()
            .or_else(|| self.waiting.iter().next());
        let key = *next?.0;
        self.position = key.0;
        self.waiting.remove(&key)
    }

    /// All that still wait, with their inode numbers.
    pub(crate) fn into_rest(self) -> impl Iterator<Item = (u64, T)> {
        self.waiting
            .into_iter()
            .map(|((inode, _), directory)| (inode, directory))
            .chain(self.too_many)
    }
}

/// Whether a file system's disk has a head that moves. `device` is its major and minor number.
pub(crate) fn rotates(setting: Rotating, device: (u32, u32), mounts: &[Mount]) -> bool {
    match setting {
        Rotating::Yes => true,
        Rotating::No => false,
        Rotating::Auto => kernel_says(Path::new("/sys"), device, mounts, 0),
    }
}

/// Disks below disks: a volume group on a RAID on a partition is three.
const LAYERS_MAX: usize = 8;

fn kernel_says(sys: &Path, device: (u32, u32), mounts: &[Mount], layer: usize) -> bool {
    if layer == LAYERS_MAX {
        return false;
    }
    let (major, minor) = device;
    // Resolved by hand: of a small volume's time, asking for each step of the way would be a tenth.
    let link = std::fs::read_link(sys.join(format!("dev/block/{major}:{minor}")));
    let Some(mut disk) = link
        .ok()
        .and_then(|link| Some(sys.join(link.strip_prefix("../..").ok()?)))
    else {
        // btrfs and ZFS have device numbers of their own; the mount's source may name a disk.
        let source = mounts.iter().find(|mount| mount.device == device);
        let below = source.and_then(|mount| number_of_source(sys, &mount.source));
        return below.is_some_and(|below| below != device && kernel_says(sys, below, mounts, layer + 1));
    };
    if disk.join("partition").exists() {
        disk.pop();
    }
    let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with("dm-") || name.starts_with("md") {
        let below = std::fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten();
        return below
            .filter_map(|slave| number_of(&slave.path()))
            .any(|below| kernel_says(sys, below, mounts, layer + 1));
    }
    if let Ok(file) = std::fs::read_to_string(disk.join("loop/backing_file")) {
        // By its name: to ask the file system that it lies on could hang.
        let below = mounts::of_path(mounts, Path::new(file.trim_end_matches('\n')));
        return below.is_some_and(|below| below.device != device && kernel_says(sys, below.device, mounts, layer + 1));
    }
    has_real_driver(&disk, &name)
        && std::fs::read_to_string(disk.join("queue/rotational")).is_ok_and(|text| text.trim() == "1")
}

/// The number of a disk that mountinfo names as a mount's source.
fn number_of_source(sys: &Path, source: &str) -> Option<(u32, u32)> {
    let disks = sys.join("class/block");
    let name = source.strip_prefix("/dev/")?;
    let Some(mapped) = name.strip_prefix("mapper/") else {
        return number_of(&disks.join(name));
    };
    // Device mapper's names are not those of /sys.
    let mut disks = std::fs::read_dir(disks).into_iter().flatten().flatten();
    let disk = disks.find(|disk| {
        std::fs::read_to_string(disk.path().join("dm/name")).is_ok_and(|name| name.trim_end() == mapped)
    })?;
    number_of(&disk.path())
}

/// Drivers of virtual disks say "rotational" of anything. A loop device that gets here has no file.
fn has_real_driver(disk: &Path, name: &str) -> bool {
    let virtual_name = ["vd", "xvd", "nbd", "zram", "loop", "ram", "rbd"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    let way = disk.to_string_lossy();
    let virtual_bus = ["/virtio", "/vbd-", "/VMBUS", "/vmbus"]
        .iter()
        .any(|bus| way.contains(bus));
    !virtual_name && !virtual_bus
}

fn number_of(disk: &Path) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string(disk.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mounts::MountId;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_elevator_goes_up_and_wraps_round() {
        let mut elevator = Elevator::new();
        for inode in [50, 10, 30] {
            elevator.push(inode, inode);
        }
        assert_eq!(elevator.next(), Some(10));
        assert_eq!(elevator.next(), Some(30));
        elevator.push(20, 20);
        elevator.push(40, 40);
        elevator.push(40, 41);
        let rest: Vec<_> = std::iter::from_fn(|| elevator.next()).collect();
        assert_eq!(rest, [40, 41, 50, 20]);
    }

    #[test]
    fn too_many_directories_are_read_last_found_first() {
        let mut elevator = Elevator::new();
        for inode in 0..WAITING_MAX + 2 {
            elevator.push(inode as u64, inode);
        }
        assert_eq!(elevator.next(), Some(WAITING_MAX + 1));
        assert_eq!(elevator.next(), Some(WAITING_MAX));
        assert_eq!(elevator.next(), Some(0));
        assert_eq!(elevator.into_rest().count(), WAITING_MAX - 1);
    }

    /// A tree like /sys with one disk for each driver.
    #[test]
    fn the_kernel_is_believed_only_of_real_drivers() {
        let sys = tempfile::tempdir().unwrap();
        let disk = |way: &str, number: &str, rotational: &str| {
            let directory = sys.path().join("devices").join(way);
            fs::create_dir_all(directory.join("queue")).unwrap();
            fs::create_dir_all(sys.path().join("dev/block")).unwrap();
            fs::create_dir_all(sys.path().join("class/block")).unwrap();
            fs::write(directory.join("queue/rotational"), rotational).unwrap();
            fs::write(directory.join("dev"), number).unwrap();
            let link = Path::new("../../devices").join(way);
            symlink(link, sys.path().join("dev/block").join(number)).unwrap();
            symlink(
                &directory,
                sys.path().join("class/block").join(directory.file_name().unwrap()),
            )
            .unwrap();
            directory
        };
        disk("pci0/ata1/block/sda", "8:0", "1\n");
        disk("pci0/ata2/block/sdb", "8:16", "0\n");
        disk("pci0/virtio2/host0/block/sdc", "8:32", "1\n");
        disk("pci0/virtio3/block/vda", "254:0", "1\n");
        disk("virtual/block/loop9", "7:9", "1\n");
        for (number, file) in [
            (0, "/mnt/turning/image\n"),
            (1, "/image\n"),
            (2, "/mnt/turning/image 2 (deleted)\n"),
        ] {
            let directory = disk(&format!("virtual/block/loop{number}"), &format!("7:{number}"), "0\n");
            fs::create_dir(directory.join("loop")).unwrap();
            fs::write(directory.join("loop/backing_file"), file).unwrap();
        }
        let partition = disk("pci0/ata1/block/sda/sda1", "8:1", "");
        fs::write(partition.join("partition"), "1\n").unwrap();
        let virtio = sys.path().join("devices/pci0/virtio3/block/vda");
        let over_loop = sys.path().join("devices/virtual/block/loop0");
        for (number, below) in [(0, &partition), (1, &virtio), (2, &over_loop)] {
            let mapped = disk(&format!("virtual/block/dm-{number}"), &format!("253:{number}"), "1\n");
            for directory in ["slaves", "dm"] {
                fs::create_dir(mapped.join(directory)).unwrap();
            }
            fs::write(mapped.join("dm/name"), format!("group-{number}\n")).unwrap();
            symlink(below, mapped.join("slaves").join(below.file_name().unwrap())).unwrap();
        }
        // In a circle, which no kernel would say.
        let circle = disk("virtual/block/dm-7", "253:7", "1\n");
        fs::create_dir(circle.join("slaves")).unwrap();
        symlink(&circle, circle.join("slaves/dm-7")).unwrap();
        let mount = |device, point: &str, source: &str| Mount {
            id: MountId(1),
            parent: MountId(0),
            device,
            root: "/".into(),
            point: point.into(),
            is_read_only: false,
            has_project_quotas: false,
            kind: "any".to_owned(),
            source: source.to_owned(),
        };
        let mounts = [
            mount((8, 16), "/", "/dev/sdb"),
            mount((0, 44), "/mnt/turning", "/dev/sda1"),
            mount((0, 46), "/mnt/mapped", "/dev/mapper/group-0"),
            mount((0, 47), "/mnt/virtual", "/dev/mapper/group-1"),
        ];
        for (device, expected, why) in [
            ((8, 0), true, "a real disk with a head"),
            ((8, 16), false, "a real disk without"),
            ((8, 1), true, "a partition: its disk's"),
            ((8, 32), false, "SCSI over virtio"),
            ((254, 0), false, "virtio"),
            ((7, 0), true, "a loop device: the disk that its file lies on"),
            ((7, 1), false, "a loop device on a disk without a head"),
            ((7, 2), true, "a loop device whose file was removed"),
            ((7, 9), false, "a loop device without a file"),
            ((253, 0), true, "device mapper over a partition of a disk with a head"),
            ((253, 1), false, "device mapper over virtio"),
            ((253, 2), true, "device mapper over a loop device on a disk with a head"),
            ((253, 7), false, "device mapper over itself"),
            ((0, 44), true, "btrfs: the mount's source"),
            ((0, 46), true, "btrfs on device mapper"),
            ((0, 47), false, "btrfs on device mapper over virtio"),
            ((0, 45), false, "unknown"),
        ] {
            assert_eq!(kernel_says(sys.path(), device, &mounts, 0), expected, "{why}");
        }
        assert!(rotates(Rotating::Yes, (0, 0), &[]) && !rotates(Rotating::No, (8, 0), &[]));
    }
}
