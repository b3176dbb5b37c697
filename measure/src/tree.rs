//! What is being walked: volumes, the trees that hold them, directories, and which of their descriptors stay open.
//!
//! A [`Tree`] is walked as one. Mostly it holds one volume; volumes inside another are part of its tree, so that each
//! directory is read once, and what is read there counts for each volume that owns it.
//!
//! A [`Directory`] lives as long as anything below it is unfinished, because whoever works there holds it. When the last
//! one lets go, all inside it has been seen: that is how a volume's end is noticed, with no counting.
//!
//! No lock of this crate is held during a call that can hang.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Stat, fstat};
use rustix::io::Errno;

use crate::links::Seen;
use crate::mounts::MountId;
use crate::open::Opener;
use crate::tally::Tally;
use crate::{DirectoryId, FileSystem, State};

/// What is said of whatever a thread of ours panicked over.
pub(crate) const BUG: &str = "a thread panicked: this is a mistake in the program, please report it";

/// What the supervisor is told.
pub(crate) enum Event {
    /// A target could not be opened.
    Failed {
        target: usize,
        state: State,
        detail: String,
    },
    /// A target of which no more is wanted could be opened.
    Opened(Resolved),
    /// A volume was read to its end, whatever came of it.
    Ended { volume: usize },
}

/// One directory on one mount, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) mount: Option<MountId>,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Key {
    pub(crate) fn directory(self) -> DirectoryId {
        DirectoryId {
            device: self.device,
            inode: self.inode,
        }
    }
}

/// A target whose directory is known.
pub(crate) struct Resolved {
    pub(crate) target: usize,
    pub(crate) key: Key,
    /// The directories above it on its mount, the nearest first.
    pub(crate) above: Vec<Key>,
    pub(crate) file_system: Option<FileSystem>,
}

/// A directory to be measured, for one target or for several that are the same.
pub(crate) struct Volume {
    pub(crate) index: usize,
    pub(crate) targets: Vec<usize>,
    pub(crate) key: Key,
    /// The directories above it on its mount, the nearest first.
    pub(crate) above: Vec<Key>,
    pub(crate) file_system: Option<FileSystem>,
    /// Given up: nothing more is read for it.
    pub(crate) stopped: AtomicBool,
    /// Somebody reads it, or did.
    claimed: AtomicBool,
    /// The volume around it, if it is read as a part of that one.
    within: OnceLock<Arc<Volume>>,
    pub(crate) began: OnceLock<Instant>,
    pub(crate) ended: OnceLock<Instant>,
    pub(crate) tally: Mutex<Tally>,
    events: Sender<Event>,
}

impl Volume {
    pub(crate) fn new(index: usize, resolved: Resolved, events: Sender<Event>) -> Volume {
        let Resolved {
            target,
            key,
            above,
            file_system,
        } = resolved;
        Volume {
            index,
            targets: vec![target],
            key,
            above,
            file_system,
            stopped: AtomicBool::new(false),
            claimed: AtomicBool::new(false),
            within: OnceLock::new(),
            began: OnceLock::new(),
            ended: OnceLock::new(),
            tally: Mutex::new(Tally::new()),
            events,
        }
    }

    /// Whether nobody reads it yet.
    pub(crate) fn is_unclaimed(&self) -> bool {
        !self.claimed.load(Relaxed) && !self.stopped.load(Relaxed)
    }

    /// Begins it, unless somebody did.
    pub(crate) fn claim(&self, within: Option<&Arc<Volume>>) -> bool {
        if self.claimed.swap(true, Relaxed) {
            return false;
        }
        self.began.get_or_init(Instant::now);
        if let Some(outer) = within {
            self.within.get_or_init(|| outer.clone());
        }
        true
    }

    /// It, and each volume around it.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Volume> {
        std::iter::successors(Some(self), |volume| volume.within.get().map(|outer| &**outer))
    }

    /// Whether anybody still wants what is in it.
    pub(crate) fn is_live(&self) -> bool {
        self.chain().any(|volume| !volume.stopped.load(Relaxed))
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no panic under this lock")
    }

    /// A thread of ours panicked over something in it: that is a mistake of this crate, and no number.
    pub(crate) fn fail_by_bug(&self) {
        for volume in self.chain() {
            volume.tally().end(State::IoError, Some(BUG.to_owned()));
        }
    }

    pub(crate) fn end(&self) {
        self.ended.get_or_init(Instant::now);
        // The supervisor is gone when everything was delivered: then nobody asks.
        let _ = self.events.send(Event::Ended { volume: self.index });
    }
}

/// What is walked as one: a volume and those inside it.
pub(crate) struct Tree {
    pub(crate) id: usize,
    /// Known where openat2 is missing: it tells mounts by itself.
    pub(crate) mount: Option<MountId>,
    /// The volumes inside, by device and inode.
    pub(crate) inside: HashMap<(u64, u64), Arc<Volume>>,
    pub(crate) rotating: bool,
    /// Whether a directory keeps its inode number: without, one that is opened again is known by its place alone.
    pub(crate) has_lasting_inodes: bool,
    /// Read it in the order of the disk.
    pub(crate) sweep: AtomicBool,
    /// It had its share of the time: those that had less of theirs come first.
    pub(crate) steps_back: AtomicBool,
    /// The directories that were entered: a directory that is moved while we read is met twice.
    pub(crate) entered: Mutex<Seen>,
    pub(crate) descriptors: Arc<Descriptors>,
    /// How many of the largest directories to keep.
    pub(crate) top: usize,
}

/// A directory that is being read, or below which something is.
pub(crate) struct Directory {
    parent: Option<Arc<Directory>>,
    name: CString,
    pub(crate) device: u64,
    inode: u64,
    pub(crate) owner: Arc<Volume>,
    pub(crate) tree: Arc<Tree>,
    /// Its owner begins here.
    is_top: bool,
    /// Some FUSE servers tell of no links, of any file.
    tells_links: bool,
    /// The tree's root keeps its descriptor; any other may lose it, and gets it back by [`Descriptors::of`].
    descriptor: Mutex<Option<Arc<OwnedFd>>>,
    bytes_inside: AtomicU64,
    is_finished: bool,
}

impl Directory {
    pub(crate) fn root(tree: Arc<Tree>, owner: Arc<Volume>, stat: &Stat, fd: Arc<OwnedFd>) -> Arc<Directory> {
        let directory = Directory::unopened(None, CString::default(), tree, owner, stat, true);
        *directory.slot() = Some(fd);
        Arc::new(directory)
    }

    /// A directory inside another one. If a volume begins there, it is claimed.
    pub(crate) fn inside(parent: &Arc<Directory>, name: CString, stat: &Stat) -> Arc<Directory> {
        let tree = &parent.tree;
        let begins = if tree.inside.is_empty() {
            None
        } else {
            tree.inside.get(&(stat.st_dev, stat.st_ino))
        };
        let begins = begins.filter(|volume| volume.claim(Some(&parent.owner)));
        let owner = begins.unwrap_or(&parent.owner).clone();
        Arc::new(Directory::unopened(
            Some(parent.clone()),
            name,
            tree.clone(),
            owner,
            stat,
            begins.is_some(),
        ))
    }

    fn unopened(
        parent: Option<Arc<Directory>>,
        name: CString,
        tree: Arc<Tree>,
        owner: Arc<Volume>,
        stat: &Stat,
        is_top: bool,
    ) -> Directory {
        Directory {
            parent,
            name,
            device: stat.st_dev,
            inode: stat.st_ino,
            owner,
            tree,
            is_top,
            tells_links: stat.st_nlink > 0,
            descriptor: Mutex::new(None),
            bytes_inside: AtomicU64::new(0),
            is_finished: false,
        }
    }

    /// Its path inside a volume of its chain, and a name in it. Longer ones than any program opens lose their head.
    pub(crate) fn path_in(&self, volume: &Volume, name: &CStr) -> PathBuf {
        const BYTES_MAX: usize = 4096;
        let mut names = vec![name];
        let mut bytes = name.count_bytes();
        let mut at = self;
        while !(at.is_top && at.owner.index == volume.index) {
            bytes += at.name.count_bytes() + 1;
            names.push(if bytes > BYTES_MAX { c"…" } else { &at.name });
            match &at.parent {
                Some(parent) if bytes <= BYTES_MAX => at = parent,
                _ => break,
            }
        }
        names
            .iter()
            .rev()
            .filter(|name| !name.is_empty())
            .map(|name| OsStr::from_bytes(name.to_bytes()))
            .collect()
    }

    /// Whether it is this directory, or lies in it.
    pub(crate) fn is_within(&self, device: u64, inode: u64) -> bool {
        let mut above = std::iter::successors(Some(self), |directory| directory.parent.as_deref());
        above.any(|directory| (directory.device, directory.inode) == (device, inode))
    }

    /// Adds bytes that were found in it.
    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes_inside.fetch_add(bytes, Relaxed);
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.descriptor.lock().expect("no panic under this lock")
    }

    /// All inside has been seen.
    fn finish(&mut self) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        if std::thread::panicking() {
            self.owner.fail_by_bug();
        }
        let descriptor = self.slot().take();
        if descriptor.is_some() && self.parent.is_some() {
            self.tree.descriptors.open.fetch_sub(1, Relaxed);
        }
        if self.tree.top > 0 {
            self.offer();
        }
        if self.is_top {
            let is_gone = |fd: &Arc<OwnedFd>| fstat(fd).is_ok_and(|stat| stat.st_nlink == 0);
            if self.tells_links && !self.owner.stopped.load(Relaxed) && descriptor.as_ref().is_some_and(is_gone) {
                self.owner
                    .tally()
                    .end(State::Missing, Some("it was removed while it was read".to_owned()));
            }
            self.owner.end();
        }
    }

    /// Offers it for the list of the largest. Where a file has links in two volumes of a chain, the inner one decides.
    fn offer(&self) {
        let bytes = self.bytes_inside.load(Relaxed);
        if let Some(parent) = &self.parent {
            parent.add_bytes(bytes);
        }
        for volume in self.owner.chain().skip(usize::from(self.is_top)) {
            volume.tally().offer(self.tree.top, bytes, || self.path_in(volume, c""));
        }
    }
}

impl Drop for Directory {
    /// Lets go of the directories above in a loop: ten thousand nested calls would not fit on a stack.
    fn drop(&mut self) {
        self.finish();
        let mut above = self.parent.take();
        while let Some(mut directory) = above.and_then(Arc::into_inner) {
            directory.finish();
            above = directory.parent.take();
        }
    }
}

/// The descriptors of directories below which something waits. Past a limit the oldest is closed, and opened again from
/// the nearest directory above that is still open when it is needed.
pub(crate) struct Descriptors {
    pub(crate) opener: Opener,
    limit: usize,
    open: AtomicUsize,
    /// Oldest first; some have gone.
    order: Mutex<VecDeque<Weak<Directory>>>,
}

impl Descriptors {
    /// Left for everything else in the process.
    const RESERVE: u64 = 96;
    const LEAST: u64 = 16;
    /// Each holds a kilobyte of the kernel's memory. What waits below a directory without one cannot be found again when
    /// that directory is moved: then there is no number.
    const MOST: u64 = 8192;
    /// When the process has none left it may be somebody else who holds them: wait, but not for ever.
    const TRIES: usize = 100;
    const TRY_AGAIN: Duration = Duration::from_millis(10);
    /// Less than the kernel takes in one path.
    const PATH_BYTES: usize = 4000;

    /// `descriptors_max` is the process's limit.
    pub(crate) fn new(opener: Opener, descriptors_max: Option<u64>) -> Descriptors {
        let limit = descriptors_max
            .unwrap_or(Descriptors::MOST)
            .saturating_sub(Descriptors::RESERVE);
        Descriptors {
            opener,
            limit: limit.clamp(Descriptors::LEAST, Descriptors::MOST) as usize,
            open: AtomicUsize::new(0),
            order: Mutex::new(VecDeque::new()),
        }
    }

    /// Keeps a directory's descriptor open.
    pub(crate) fn keep(&self, directory: &Arc<Directory>, fd: &Arc<OwnedFd>) {
        {
            let mut slot = directory.slot();
            if slot.is_some() {
                return;
            }
            *slot = Some(fd.clone());
        }
        let open = self.open.fetch_add(1, Relaxed) + 1;
        let mut order = self.order();
        order.push_back(Arc::downgrade(directory));
        if order.len() > 2 * self.limit {
            order.retain(|directory| directory.strong_count() > 0);
        }
        drop(order);
        if open > self.limit {
            self.close_oldest(open - self.limit);
        }
    }

    /// Closes some; false if there was none.
    fn close_oldest(&self, count: usize) -> bool {
        // What is taken out here is let go after the lock: it may be the last hold, and closing may take its time.
        let mut taken = Vec::new();
        let mut closed = 0;
        let mut order = self.order();
        while closed < count {
            let Some(oldest) = order.pop_front() else { break };
            if let Some(directory) = oldest.upgrade() {
                let fd = directory.slot().take();
                closed += usize::from(fd.is_some());
                taken.push((directory, fd));
            }
        }
        drop(order);
        self.open.fetch_sub(closed, Relaxed);
        closed > 0
    }

    /// A directory's descriptor, opened again if need be. [`Errno::STALE`] if it is no longer where it was.
    pub(crate) fn of(&self, directory: &Arc<Directory>) -> Result<Arc<OwnedFd>, Errno> {
        let mut way = Vec::new();
        let mut at = directory;
        let mut fd = loop {
            if let Some(fd) = &*at.slot() {
                break fd.clone();
            }
            way.push(at);
            at = at.parent.as_ref().ok_or(Errno::STALE)?;
        };
        // What is near will be wanted next; what is far is only passed, many names at once.
        let near = self.limit / 4;
        while let Some(mut directory) = way.pop() {
            let mut path = directory.name.to_bytes().to_vec();
            while self.opener == Opener::Openat2
                && way.len() > near
                && let Some(next) = way.pop_if(|next| path.len() + next.name.count_bytes() < Descriptors::PATH_BYTES)
            {
                path.push(b'/');
                path.extend_from_slice(next.name.to_bytes());
                directory = next;
            }
            let path = CString::new(path).map_err(|_| Errno::INVAL)?;
            let opened = self.open_child(fd.as_fd(), &path, directory.tree.mount);
            let opened = opened.map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
                other => other,
            })?;
            let stat = fstat(&opened)?;
            let is_same = (stat.st_dev, stat.st_ino) == (directory.device, directory.inode);
            if directory.tree.has_lasting_inodes && !is_same {
                return Err(Errno::STALE);
            }
            fd = Arc::new(opened);
            if way.len() <= near {
                self.keep(directory, &fd);
            }
        }
        Ok(fd)
    }

    pub(crate) fn open_child(&self, parent: BorrowedFd, name: &CStr, mount: Option<MountId>) -> Result<OwnedFd, Errno> {
        self.with_room(|| self.opener.child(parent, name, mount))
    }

    /// Opens something, closing others or waiting while the process has no descriptors left.
    fn with_room<T>(&self, open: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        for _ in 0..Descriptors::TRIES {
            match open() {
                Err(Errno::MFILE | Errno::NFILE) => {
                    if !self.close_oldest((self.open.load(Relaxed) / 2).max(1)) {
                        std::thread::sleep(Descriptors::TRY_AGAIN);
                    }
                }
                other => return other,
            }
        }
        open()
    }

    fn order(&self) -> MutexGuard<'_, VecDeque<Weak<Directory>>> {
        self.order.lock().expect("no panic under this lock")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A thread that panics lets go of its directories like one that has read them.
    #[test]
    fn a_panic_leaves_no_number() {
        for panics in [false, true] {
            let (events, inbox) = mpsc::channel();
            let key = Key {
                mount: None,
                device: 1,
                inode: 1,
            };
            let resolved = Resolved {
                target: 0,
                key,
                above: Vec::new(),
                file_system: None,
            };
            let volume = Arc::new(Volume::new(0, resolved, events));
            let tree = Arc::new(Tree {
                id: 0,
                mount: None,
                inside: HashMap::new(),
                rotating: false,
                has_lasting_inodes: true,
                sweep: AtomicBool::new(false),
                steps_back: AtomicBool::new(false),
                entered: Mutex::new(Seen::default()),
                descriptors: Arc::new(Descriptors::new(Opener::find(), None)),
                top: 0,
            });
            let fd = std::fs::File::open("/").unwrap();
            let stat = fstat(&fd).unwrap();
            let directory = Directory::root(tree, volume.clone(), &stat, Arc::new(fd.into()));
            let thread = std::thread::spawn(move || {
                let _held = directory;
                assert!(!panics, "the test panics on purpose");
            });
            assert_eq!(thread.join().is_err(), panics);
            assert!(matches!(inbox.recv().unwrap(), Event::Ended { volume: 0 }));
            let state = volume.tally().measurement(0.0).state;
            assert_eq!(state, if panics { State::IoError } else { State::Complete });
        }
    }
}
