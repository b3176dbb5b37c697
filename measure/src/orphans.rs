//! Finds the directories below a base directory that hold nothing known: the topmost ones, so that none lies in another.
//!
//! Whoever reads the answer may delete what it names, so every doubt is decided the other way: what is young, what holds
//! something young near its top, what is a mount or holds one near its top, what holds more directories there than can be
//! looked at, and what consists of directories alone is not named; and a base of which any part could not be read has no
//! answer at all.
//!
//! Each base has a thread of its own, which nobody waits for. What is a directory's name here is anybody's: it is opened
//! beneath the one above it, through no symbolic link and across no mount.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, StatxFlags, fstat, statx};
use rustix::io::Errno;
use rustix::process::setpriority_process;

use crate::mounts::{self, MountId};
use crate::open::Opener;
use crate::pace::Rate;
use crate::walk::{NICE, STACK_BYTES, records};
use crate::{DirectoryId, State, Target, Wanted};

/// A thousand names; see `walk`.
const BUFFER_BYTES: usize = 32 << 10;
/// Names for one base, at most: with more of them nobody deletes by a list, and each is measured by itself.
const FOUND_BYTES_MAX: usize = 8 << 20;
const FOUND_MAX: usize = 50_000;
/// So many levels of a directory are looked through for something young: a claim's directory may lie as deep below one
/// that an earlier claim left.
const YOUNG_LEVELS: usize = 3;
/// Deeper than this, or with more directories, is not what a deleted volume leaves empty: it counts as content.
const EMPTY_LEVELS_MAX: usize = 32;
const EMPTY_DIRECTORIES_MAX: usize = 10_000;
/// So many names that may be directories' are looked at in one directory: past it, nobody knows what the others hold.
const LOOKED_AT_MAX: usize = 100_000;
/// How long a thread that keeps to the rate sleeps before it looks whether all is over.
const NAP: Duration = Duration::from_millis(50);

/// A base directory, and what is known below it.
#[derive(Clone, Debug)]
pub struct Search {
    /// The base directory as this process sees it; trusted like that of a [`Target`].
    pub base: PathBuf,
    /// Paths relative to it that are known: neither they nor what lies in them is an orphan, nor what they lie in.
    pub known: Vec<PathBuf>,
}

/// How to search.
#[derive(Clone, Debug)]
pub struct SearchConfig {
    /// Directories that are known by whatever path they are met.
    pub known_directories: HashSet<DirectoryId>,
    /// Names that are never an orphan's, such as `lost+found`.
    pub is_ignored: fn(&OsStr) -> bool,
    /// A directory that was made later is too young to tell.
    pub made_before: SystemTime,
    /// Entries looked at in a second, by all threads together; 0 means no limit.
    pub entries_per_second: u64,
    /// Run at the lowest processor priority and in the idle I/O class.
    pub low_priority: bool,
}

/// A search under way. Dropping it changes nothing.
pub struct Searching(Arc<AtomicBool>);

impl Searching {
    /// Ends it early; what is not delivered yet never is.
    pub fn cancel(&self) {
        self.0.store(true, Relaxed);
    }
}

/// The orphans below a base, relative to it, or why they cannot be told.
pub type Orphans = Result<Vec<PathBuf>, String>;

/// Starts searching, on threads that nobody ever joins. `deliver` is called at most once for each search: never where a
/// file system hangs, so the caller needs a deadline.
pub fn search(
    searches: Vec<Search>,
    config: SearchConfig,
    deliver: impl Fn(usize, Orphans) + Send + Sync + 'static,
) -> Searching {
    let cancelled = Arc::new(AtomicBool::new(false));
    let shared = Arc::new(Shared {
        opener: Opener::find(),
        rate: Mutex::new(Rate::new(config.entries_per_second)),
        config,
        began: Instant::now(),
        cancelled: cancelled.clone(),
    });
    let deliver = Arc::new(deliver);
    for (index, search) in searches.into_iter().enumerate() {
        let (shared, answer) = (shared.clone(), deliver.clone());
        let thread = std::thread::Builder::new()
            .name("measure-orphans".to_owned())
            .stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            let orphans = shared.orphans(&search);
            if !shared.cancelled.load(Relaxed) {
                answer(index, orphans);
            }
        });
        if let Err(error) = spawned {
            deliver(index, Err(format!("cannot start a thread: {error}")));
        }
    }
    Searching(cancelled)
}

/// The known paths as a tree, by the bytes of their names.
struct Known {
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    children: HashMap<Vec<u8>, usize>,
    is_known: bool,
}

/// What a directory is, by its path alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is known, and with it all that lies in it.
    Known,
    /// Something known lies in it: this node of the tree.
    Above(usize),
    /// Nothing known lies in it.
    Unknown,
}

impl Known {
    const ROOT: usize = 0;

    fn new(paths: &[PathBuf]) -> Known {
        let mut known = Known {
            nodes: vec![Node::default()],
        };
        for path in paths {
            let mut at = Known::ROOT;
            for part in path.components() {
                let next = known.nodes.len();
                let name = part.as_os_str().as_bytes().to_vec();
                let child = *known.nodes[at].children.entry(name).or_insert(next);
                if child == next {
                    known.nodes.push(Node::default());
                }
                at = child;
            }
            known.nodes[at].is_known = true;
        }
        known
    }

    /// What a name in the directory of this node is.
    fn place(&self, node: usize, name: &[u8]) -> Place {
        match self.nodes[node].children.get(name) {
            None => Place::Unknown,
            Some(child) if self.nodes[*child].is_known => Place::Known,
            Some(child) => Place::Above(*child),
        }
    }
}

struct Shared {
    opener: Opener,
    config: SearchConfig,
    rate: Mutex<Rate>,
    began: Instant,
    cancelled: Arc<AtomicBool>,
}

/// What is found out about a directory that nothing known lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Orphan,
    /// It, or something near its top, was made lately.
    Young,
    /// Nothing but directories.
    Empty,
    /// It is known by another path, a mount or above one, no directory, or gone.
    NoMatter,
}

/// A directory whose entries are being looked through, below one that may be an orphan.
struct Level {
    fd: OwnedFd,
    names: Vec<CString>,
}

impl Shared {
    fn orphans(&self, search: &Search) -> Orphans {
        if self.config.low_priority {
            // Where a seccomp profile refuses, it runs at the priority that it has.
            let _ = setpriority_process(None, NICE);
            let _ = crate::sys::idle_io_class();
        }
        let known = Known::new(&search.known);
        if known.nodes[Known::ROOT].is_known {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut found_bytes = 0;
        let mut waiting = vec![(PathBuf::new(), Known::ROOT)];
        while let Some((path, node)) = waiting.pop() {
            let is_base = path.as_os_str().is_empty();
            let target = Target {
                base: search.base.clone(),
                relative: path.clone(),
                wanted: Wanted::Contents,
            };
            let directory = match self.opener.target(&target) {
                Ok(directory) => directory,
                Err((State::Missing | State::NotADirectory, _)) if !is_base => continue,
                Err((_, detail)) => return Err(detail),
            };
            let told = |error: Errno| format!("cannot read {}: {error}", shown(&path));
            let mount = self.mount(directory.as_fd()).map_err(told)?;
            let mut candidates = Vec::new();
            self.entries(&directory, |name, may_be_directory| {
                match known.place(node, name.to_bytes()) {
                    Place::Known => {}
                    // Where a link stands in the way, opening it says so.
                    Place::Above(child) => waiting.push((path.join(os(name)), child)),
                    Place::Unknown if may_be_directory && !(self.config.is_ignored)(os(name)) => {
                        candidates.push(name.to_owned());
                    }
                    Place::Unknown => {}
                }
                candidates.len() <= FOUND_MAX * 2
            })
            .map_err(told)?;
            if candidates.len() > FOUND_MAX * 2 {
                return Err(too_many());
            }
            for name in candidates {
                let place = path.join(os(&name));
                let verdict = self
                    .verdict(directory.as_fd(), &name, mount)
                    .map_err(|error| format!("cannot look into {}: {error}", shown(&place)))?;
                if verdict == Verdict::Orphan {
                    found_bytes += place.as_os_str().len();
                    found.push(place);
                }
                if found.len() > FOUND_MAX || found_bytes > FOUND_BYTES_MAX {
                    return Err(too_many());
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Looks into a directory until it is clear what it is.
    fn verdict(&self, parent: BorrowedFd, name: &CStr, mount: Option<MountId>) -> Result<Verdict, Errno> {
        let fd = match self.opener.child(parent, name, mount) {
            Ok(fd) => fd,
            Err(Errno::XDEV | Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(Verdict::NoMatter),
            Err(error) => return Err(error),
        };
        if self.is_known_directory(fd.as_fd())? {
            return Ok(Verdict::NoMatter);
        }
        if self.is_young(fd.as_fd())? {
            return Ok(Verdict::Young);
        }
        let mut has_content = false;
        let mut directories = 1;
        let mut left = LOOKED_AT_MAX;
        let Some(top) = self.level(fd, &mut has_content, &mut left)? else {
            return Ok(Verdict::NoMatter);
        };
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let fd = match self.opener.child(level.fd.as_fd(), &name, mount) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => continue,
                // What is mounted there is in use, and deleting the one above would empty it.
                Err(Errno::XDEV) => return Ok(Verdict::NoMatter),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    has_content = true;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Deleting the one above would delete it.
            if self.is_known_directory(fd.as_fd())? {
                return Ok(Verdict::NoMatter);
            }
            let depth = levels.len();
            if depth <= YOUNG_LEVELS && self.is_young(fd.as_fd())? {
                return Ok(Verdict::Young);
            }
            directories += 1;
            has_content |= depth >= EMPTY_LEVELS_MAX || directories >= EMPTY_DIRECTORIES_MAX;
            if depth < YOUNG_LEVELS || !has_content {
                let Some(level) = self.level(fd, &mut has_content, &mut left)? else {
                    return Ok(Verdict::NoMatter);
                };
                levels.push(level);
            }
        }
        Ok(if has_content { Verdict::Orphan } else { Verdict::Empty })
    }

    /// The directories in a directory, and whether it holds anything else. Nothing if they are more than are `left`.
    fn level(&self, fd: OwnedFd, has_content: &mut bool, left: &mut usize) -> Result<Option<Level>, Errno> {
        let mut names = Vec::new();
        self.entries(&fd, |name, may_be_directory| {
            if may_be_directory {
                names.push(name.to_owned());
            } else {
                *has_content = true;
            }
            names.len() <= *left
        })?;
        let Some(rest) = left.checked_sub(names.len()) else {
            return Ok(None);
        };
        *left = rest;
        Ok(Some(Level { fd, names }))
    }

    /// Calls for each name in a directory, and whether it may be a directory's, for as long as it is answered yes.
    fn entries(&self, directory: &OwnedFd, mut on_entry: impl FnMut(&CStr, bool) -> bool) -> Result<(), Errno> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let filled = match crate::sys::getdents(directory, &mut buffer) {
                // Removed while we read it.
                Ok(0) | Err(Errno::NOENT) => return Ok(()),
                Ok(filled) => filled,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            let mut passed = 0;
            for entry in records(&buffer[..filled]) {
                passed += 1;
                let may_be_directory = matches!(entry.kind, libc::DT_DIR | libc::DT_UNKNOWN);
                if !on_entry(entry.name, may_be_directory) {
                    return Ok(());
                }
            }
            self.keep_pace(passed)?;
        }
    }

    /// Keeps to the rate. An error when nobody wants the rest.
    fn keep_pace(&self, entries: u32) -> Result<(), Errno> {
        let now = self.began.elapsed();
        let wait = self
            .rate
            .lock()
            .expect("no panic under this lock")
            .announce(now, entries);
        loop {
            if self.cancelled.load(Relaxed) {
                return Err(Errno::CANCELED);
            }
            let left = (now + wait).saturating_sub(self.began.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    fn is_known_directory(&self, fd: BorrowedFd) -> Result<bool, Errno> {
        let stat = fstat(fd)?;
        let own = DirectoryId {
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        self.keep_pace(1)?;
        Ok(self.config.known_directories.contains(&own))
    }

    fn is_young(&self, fd: BorrowedFd) -> Result<bool, Errno> {
        let Ok(limit) = self.config.made_before.duration_since(UNIX_EPOCH) else {
            return Ok(true);
        };
        Ok(made_at(fd)? >= i128::from(limit.as_secs()))
    }

    /// The mount of a directory, where the opener needs it.
    fn mount(&self, fd: BorrowedFd) -> Result<Option<MountId>, Errno> {
        match self.opener {
            Opener::Openat2 => Ok(None),
            Opener::StepByStep => mounts::id(fd).map(Some),
        }
    }
}

/// When a directory was made, in seconds since 1970: its birth where the file system keeps it, else when it was last
/// changed, which is never earlier.
fn made_at(fd: BorrowedFd) -> Result<i128, Errno> {
    let asked = StatxFlags::BTIME | StatxFlags::CTIME | StatxFlags::MTIME;
    match statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, asked) {
        Ok(told) if told.stx_mask & StatxFlags::BTIME.bits() != 0 && told.stx_btime.tv_sec > 0 => {
            Ok(told.stx_btime.tv_sec.into())
        }
        Ok(told) => Ok(told.stx_ctime.tv_sec.max(told.stx_mtime.tv_sec).into()),
        Err(Errno::NOSYS | Errno::PERM) => {
            let stat = fstat(fd)?;
            Ok(i128::from(stat.st_ctime).max(stat.st_mtime.into()))
        }
        Err(error) => Err(error),
    }
}

fn too_many() -> String {
    format!("there are more than {FOUND_MAX} directories that hold no volume, or their names are too long to list")
}

fn os(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}

/// A path below the base, or the base itself.
fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        "the base directory".to_owned()
    } else {
        path.display().to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_or_above_something_known_or_neither() {
        let known = Known::new(&["a", "team/b", "team/deep/er/c", "a/inner"].map(PathBuf::from));
        let place = |path: &str| {
            let mut at = Place::Above(Known::ROOT);
            for name in path.split('/') {
                let Place::Above(node) = at else { break };
                at = known.place(node, name.as_bytes());
            }
            match at {
                Place::Above(_) => "above",
                Place::Known => "known",
                Place::Unknown => "unknown",
            }
        };
        for (path, expected) in [
            ("a", "known"),
            ("a/inner", "known"),
            ("a/anything/in/it", "known"),
            ("team", "above"),
            ("team/b", "known"),
            ("team/c", "unknown"),
            ("team/deep", "above"),
            ("team/deep/er", "above"),
            ("team/deep/c", "unknown"),
            ("team/deep/er/c/x", "known"),
            ("ab", "unknown"),
            ("tea", "unknown"),
            ("A", "unknown"),
        ] {
            assert_eq!(place(path), expected, "{path}");
        }
        assert!(Known::new(&[PathBuf::new()]).nodes[Known::ROOT].is_known);
    }
}
