//! Reads directories and looks at each entry, on threads that nobody waits for.
//!
//! What makes it fast: names are looked up relative to their directory's descriptor; a second thread; a directory of many
//! entries is split into the pieces in which the kernel gives it; several small directories are taken at once and added up
//! together, so that threads meet at a lock once for all of them (5 % of the time of small directories); fstatat, not
//! statx. What did not: statx with a mask or without synchronising (it may answer with old sizes), larger or smaller buffers
//! than 32 KiB, looking at entries in the order of their inodes when nothing has to be read, three to eight threads when
//! nothing has to be read, changing into each directory in place of naming its descriptor. A descriptor table for each
//! thread would save 3 % and is not worth what it takes to hand directories over.
//!
//! One more thread, the supervisor, touches no file system but /proc: it hands out results, keeps the clock, decides how
//! many threads there are, and replaces those that hang.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Stat, StatxFlags, fstat, major, minor, statat, statx};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setpriority_process};

use crate::mounts::{self, Mount, MountId};
use crate::open::{Opener, cause_at_place, file_type, state_of_place};
use crate::pace::{self, Pressure, Rate, Share, Threads, Times};
use crate::schedule::{Job, Names, Packed, Pending, Piece, Schedule, Slot};
use crate::sweep::{self, Elevator};
use crate::tally::{Batch, Linked};
use crate::tree::{BUG, Descriptors, Directory, Event, Key, Resolved, Tree, Volume};
use crate::{Config, Measurement, PlaceError, Progress, Rotating, State, Target, Wanted};

/// 4 KiB to 1 MiB measure the same; this much holds a thousand names and stays in the processor's cache.
const BUFFER_BYTES: usize = 32 << 10;
/// A buffer this full comes from a directory worth splitting: the next name might not have fitted.
const FULL_BYTES: usize = BUFFER_BYTES - 512;
/// A directory with more names of directories than this is left for a while to go into them: a bound for memory.
const NAMES_BYTES_MAX: usize = 128 << 10;
/// A name that is something else each time we look is not worth more looks than this.
const CHANGES_MAX: usize = 8;
/// Entries between two looks at the rate and the pause.
const STRIDE: u32 = 64;
/// What is seen in small directories is added up for so many entries at most, for the sake of those who watch.
const BATCH_ENTRIES_MAX: u64 = 4096;
/// The supervisor's pulse.
const TICK: Duration = Duration::from_millis(10);
/// For this long one thread walks alone: it is through with most volumes before a second one has started.
const ALONE: Duration = Duration::from_millis(1);
/// A thread without a sign of life for this long is taken for hanging. A slow disk answers within it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a resting thread sleeps before it looks whether all is over.
const NAP: Duration = Duration::from_millis(50);
/// Deep recursion happens nowhere.
pub(crate) const STACK_BYTES: usize = 256 << 10;
/// The least nice.
pub(crate) const NICE: i32 = 19;
/// How much earlier than its change a file system's time may say that something changed: FAT counts in two seconds.
const CLOCK_SLACK: Duration = Duration::from_secs(3);
/// More than any disk holds.
const USED_BYTES_MAX: u64 = 1 << 60;
/// btrfs shows a subvolume that a snapshot left out as an empty directory, all of them with this number.
const PLACEHOLDER_INODE: u64 = 2;
/// What `measure` grants the supervisor after the last deadline.
const GRACE: Duration = Duration::from_secs(1);

/// A measurement under way. Dropping it changes nothing.
pub struct Running(Arc<Shared>);

impl Running {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.0.current_wanted.store(true, Relaxed);
        Progress {
            entries: self.0.entries.load(Relaxed),
            bytes: self.0.bytes.load(Relaxed),
            current: self.0.current.lock().expect("no panic under this lock").clone(),
        }
    }

    /// Ends it early; what is not delivered yet is delivered as [`State::Cancelled`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Relaxed);
    }
}

/// Starts measuring on threads that nobody ever joins. `deliver` is called once for each target, from one of those
/// threads. If a file system hangs and there is no budget, its targets are never delivered: then the caller needs a
/// deadline of its own.
pub fn start(
    targets: Vec<Target>,
    config: Config,
    deliver: impl Fn(usize, Measurement) + Send + Sync + 'static,
) -> Running {
    let (events, inbox) = mpsc::channel();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let at_first = pace::threads_at_first(processors, config.threads_max.get());
    let bases = targets.iter().map(|target| target.base.clone()).collect();
    let opener = Opener::find();
    let shared = Arc::new(Shared {
        schedule: Mutex::new(Schedule::new(bases, 1, events.clone())),
        mounts: mounts::all(),
        descriptors: Arc::new(Descriptors::new(opener, getrlimit(Resource::Nofile).current)),
        rate: Mutex::new(Rate::new(config.entries_per_second)),
        targets,
        config,
        opener,
        at_first,
        began: Instant::now(),
        began_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        wake: Condvar::new(),
        idle: AtomicUsize::new(0),
        paused: AtomicBool::new(false),
        over: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        entries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        remembered_bytes: AtomicI64::new(0),
        current: Mutex::new(None),
        current_wanted: AtomicBool::new(false),
        events,
    });
    let deliver = Arc::new(deliver);
    let supervised = (shared.clone(), deliver.clone());
    let spawned = std::thread::Builder::new()
        .name("measure".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let (shared, deliver) = supervised;
            Supervisor::new(&shared, &inbox, &*deliver).run();
        });
    if let Err(error) = spawned {
        let detail = format!("cannot start a thread: {error}");
        for target in 0..shared.targets.len() {
            deliver(
                target,
                Measurement::without_number(State::OutOfResources, Some(detail.clone())),
            );
        }
    }
    Running(shared)
}

/// Measures and waits, at most for the total budget and a second; what did not answer then is [`State::Timeout`].
/// Without a total budget it waits for as long as it takes.
pub fn measure(targets: Vec<Target>, config: Config) -> Vec<Measurement> {
    let deadline = config.total_budget.map(|budget| Instant::now() + budget + GRACE);
    let count = targets.len();
    let (sender, receiver) = mpsc::channel();
    let _running = start(targets, config, move |index, measurement| {
        // The receiver is gone once the deadline has passed: then nobody wants the number.
        let _ = sender.send((index, measurement));
    });
    let mut results: Vec<Option<Measurement>> = vec![None; count];
    for _ in 0..count {
        let received = match deadline {
            Some(deadline) => receiver
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok(),
            None => receiver.recv().ok(),
        };
        let Some((index, measurement)) = received else { break };
        results[index] = Some(measurement);
    }
    let timeout = || Measurement::without_number(State::Timeout, Some("did not answer in time".to_owned()));
    results
        .into_iter()
        .map(|result| result.unwrap_or_else(timeout))
        .collect()
}

/// What all threads of one measurement share.
struct Shared {
    targets: Vec<Target>,
    config: Config,
    opener: Opener,
    mounts: Vec<Mount>,
    at_first: usize,
    began: Instant,
    /// The same as time since 1970, as file systems tell it.
    began_unix: Duration,
    descriptors: Arc<Descriptors>,
    schedule: Mutex<Schedule>,
    /// There is work, or no more need to rest.
    wake: Condvar,
    /// How many threads wait for work, for those that have some.
    idle: AtomicUsize,
    rate: Mutex<Rate>,
    paused: AtomicBool,
    over: AtomicBool,
    cancelled: AtomicBool,
    entries: AtomicU64,
    bytes: AtomicU64,
    /// Memory for inodes that were seen. Below nothing for moments: what is given back may be counted before it is taken.
    remembered_bytes: AtomicI64,
    current: Mutex<Option<PathBuf>>,
    current_wanted: AtomicBool,
    events: Sender<Event>,
}

/// What one thread has in hand.
struct Hands {
    id: usize,
    slot: Arc<Slot>,
    buffer: Vec<u8>,
    batch: Batch,
    /// Holds what the batch is about, so that nobody takes it for finished: all of one owner.
    batch_of: Option<Arc<Directory>>,
    names: Packed,
    outbox: Vec<Pending>,
    /// Entries until the next look at the rate and the pause.
    stride: u32,
}

/// One record of a directory.
pub(crate) struct Entry<'a> {
    pub(crate) inode: u64,
    pub(crate) kind: u8,
    pub(crate) name: &'a CStr,
}

/// Takes a buffer that getdents filled apart.
pub(crate) fn records(buffer: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    const NAME: usize = 19;
    let mut rest = buffer;
    std::iter::from_fn(move || {
        loop {
            let (inode, _) = rest.split_first_chunk()?;
            let length = u16::from_ne_bytes([*rest.get(16)?, *rest.get(17)?]);
            let (record, next) = rest.split_at_checked(usize::from(length).max(NAME))?;
            rest = next;
            let name = CStr::from_bytes_until_nul(&record[NAME..]).ok()?;
            if name != c"." && name != c".." {
                return Some(Entry {
                    inode: u64::from_ne_bytes(*inode),
                    kind: record[18],
                    name,
                });
            }
        }
    })
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What a file takes; an error where no disk could hold it, as a broken FUSE server tells.
fn used_bytes(stat: &Stat) -> Result<u64, Errno> {
    let blocks = u64::try_from(stat.st_blocks).map_err(|_| Errno::OVERFLOW)?;
    blocks
        .checked_mul(512)
        .filter(|bytes| *bytes <= USED_BYTES_MAX)
        .ok_or(Errno::OVERFLOW)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().expect("no panic under this lock")
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes a lock for a thread that walks. Waiting for another thread of ours, which on a busy node waits for a
    /// processor, is not being blocked by a disk: more threads would only wait more.
    fn lock_of<'a, T>(&self, slot: &Slot, lock: &'a Mutex<T>) -> MutexGuard<'a, T> {
        if let Ok(guard) = lock.try_lock() {
            return guard;
        }
        slot.rest(self.now());
        let guard = lock.lock().expect("no panic under this lock");
        slot.work(self.now());
        guard
    }

    fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// Starts threads until as many run as are wanted.
    fn spawn(self: &Arc<Shared>) -> Result<(), std::io::Error> {
        loop {
            let (id, slot) = {
                let mut schedule = self.lock();
                if schedule.running >= schedule.wanted {
                    return Ok(());
                }
                schedule.add_worker()
            };
            let shared = self.clone();
            let thread = std::thread::Builder::new()
                .name("measure-walk".to_owned())
                .stack_size(STACK_BYTES);
            if let Err(error) = thread.spawn(move || shared.work(id, slot)) {
                self.lock().remove_worker(id);
                return Err(error);
            }
        }
    }

    fn work(&self, id: usize, slot: Arc<Slot>) {
        if self.config.low_priority {
            // Where a seccomp profile refuses, it runs at the priority that it has.
            let _ = setpriority_process(None, NICE);
            let _ = crate::sys::idle_io_class();
        }
        slot.thread
            .store(rustix::thread::gettid().as_raw_nonzero().get() as u64, Relaxed);
        let mut hands = Hands {
            id,
            slot,
            buffer: vec![0; BUFFER_BYTES],
            batch: Batch::default(),
            batch_of: None,
            names: Packed::default(),
            outbox: Vec::new(),
            stride: STRIDE,
        };
        while let Some(job) = self.next(&mut hands) {
            let held = job.directory().cloned();
            let resolved = match &job {
                Job::Resolve { target } => Some(*target),
                _ => None,
            };
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| self.perform(job, &mut hands)));
            if done.is_err() {
                // What it was about is held until here, so nobody took it for finished.
                let batch_of = hands.batch_of.take();
                held.iter()
                    .chain(&batch_of)
                    .for_each(|directory| directory.owner.fail_by_bug());
                if let Some(target) = resolved {
                    let (state, detail) = (State::IoError, BUG.to_owned());
                    let _ = self.events.send(Event::Failed { target, state, detail });
                }
                (hands.batch, hands.names, hands.buffer) = Default::default();
                hands.buffer.resize(BUFFER_BYTES, 0);
            }
        }
    }

    fn perform(&self, job: Job, hands: &mut Hands) {
        match job {
            Job::Resolve { target } => self.resolve(target),
            Job::Begin { tree, volume, inside } => self.begin(tree, volume, inside, hands),
            Job::Enter(names) => self.enter_all(names, hands),
            Job::GoOn(directory, fd) => self.read(&directory, &fd, hands),
            Job::Piece(piece) => self.piece(piece, hands),
            Job::Sweep(tree) => self.sweep(&tree, hands),
        }
    }

    /// Hands in what was found and waits for something to do; nothing when the thread is not needed any more.
    fn next(&self, hands: &mut Hands) -> Option<Job> {
        self.settle(hands);
        let mut schedule = self.lock_of(&hands.slot, &self.schedule);
        schedule.put(&mut hands.outbox);
        schedule.done(hands.id);
        loop {
            if self.is_over() || schedule.running > schedule.wanted {
                schedule.remove_worker(hands.id);
                // What it leaves, or was woken for, is for another one.
                if schedule.idle > 0 && schedule.has_work() {
                    self.wake.notify_one();
                }
                return None;
            }
            if let Some(job) = schedule.take(hands.id, self.now()) {
                // Whoever is woken wakes the next.
                if schedule.idle > 0 && schedule.has_work() {
                    self.wake.notify_one();
                }
                return Some(job);
            }
            hands.slot.rest(self.now());
            schedule.idle += 1;
            self.idle.store(schedule.idle, Relaxed);
            schedule = self.wake.wait(schedule).expect("no panic under this lock");
            schedule.idle -= 1;
            self.idle.store(schedule.idle, Relaxed);
            hands.slot.work(self.now());
        }
    }

    /// Finds out which directory a target is, and which are above it.
    fn resolve(&self, target: usize) {
        let key_of = |fd: BorrowedFd| -> Result<Key, Errno> {
            let stat = fstat(fd)?;
            // Without a mount id two names of one directory are not told apart from one directory on two mounts.
            Ok(Key {
                mount: mounts::id(fd).ok(),
                device: stat.st_dev,
                inode: stat.st_ino,
            })
        };
        let resolve = || -> Result<Resolved, (State, String)> {
            let fd = self.opener.target(&self.targets[target])?;
            let described = |error: Errno| (state_of_place(error), error.to_string());
            let key = key_of(fd.as_fd()).map_err(described)?;
            let file_system = key
                .mount
                .and_then(|mount| mounts::file_system(&self.mounts, mount, &fd));
            let mut above = Vec::new();
            // The largest directories of a volume are its own matter: it is walked by itself for them.
            let may_nest = self.targets.len() > 1 && self.config.top_directories == 0;
            if may_nest && self.targets[target].wanted == Wanted::Contents {
                let mut at = (fd, key);
                while let Ok(fd) = self.opener.above(at.0.as_fd(), key.mount) {
                    let Ok(next) = key_of(fd.as_fd()) else { break };
                    if next == at.1 {
                        break;
                    }
                    above.push(next);
                    at = (fd, next);
                }
            }
            Ok(Resolved {
                target,
                key,
                above,
                file_system,
            })
        };
        match resolve() {
            Ok(resolved) if self.targets[target].wanted == Wanted::Contents => self.lock().resolved(resolved),
            // The supervisor is gone when everything was delivered: then nobody asks.
            Ok(resolved) => drop(self.events.send(Event::Opened(resolved))),
            Err((state, detail)) => drop(self.events.send(Event::Failed { target, state, detail })),
        }
    }

    /// Opens a volume's directory again, and begins to read it or asks its file system.
    fn begin(&self, id: usize, volume: Arc<Volume>, inside: HashMap<(u64, u64), Arc<Volume>>, hands: &mut Hands) {
        if !volume.claim(None) {
            // Its turn came when a thread that walks the tree around it had just met it.
            self.lock().leave(id);
            return;
        }
        let opened = self.opener.target(&self.targets[volume.targets[0]]).and_then(|fd| {
            let described = |error: Errno| (state_of_place(error), error.to_string());
            let stat = fstat(&fd).map_err(described)?;
            let mount = match self.opener {
                Opener::Openat2 => volume.key.mount,
                Opener::StepByStep => Some(mounts::id(fd.as_fd()).map_err(described)?),
            };
            Ok((fd, stat, mount))
        });
        let (fd, stat, mount) = match opened {
            Ok(opened) => opened,
            Err((state, detail)) => {
                volume.tally().end(state, Some(detail));
                return volume.end();
            }
        };
        // Another directory may stand there since it was resolved: of that nothing is known but what a walk finds.
        let is_same = (stat.st_dev, stat.st_ino) == (volume.key.device, volume.key.inode);
        if let Some((used, inodes)) = self.ask_file_system(&fd, mount.filter(|_| is_same)) {
            volume.tally().statfs(used, inodes);
            self.entries.fetch_add(1, Relaxed);
            self.bytes.fetch_add(used, Relaxed);
            return volume.end();
        }
        let rotating = sweep::rotates(
            self.config.rotating,
            (major(stat.st_dev), minor(stat.st_dev)),
            &self.mounts,
        );
        let tree = Arc::new(Tree {
            id,
            mount,
            inside,
            rotating,
            has_lasting_inodes: mounts::has_lasting_inodes(volume.file_system.as_ref()),
            sweep: AtomicBool::new(rotating),
            steps_back: AtomicBool::new(false),
            entered: Mutex::new(crate::links::Seen::default()),
            descriptors: self.descriptors.clone(),
            top: self.config.top_directories,
        });
        let fd = Arc::new(fd);
        self.is_first_visit(&tree, &volume, &stat, hands);
        let directory = Directory::root(tree.clone(), volume, &stat, fd.clone());
        self.lock().begun(tree);
        match used_bytes(&stat) {
            Ok(used) => hands.batch.directory(used),
            Err(error) => self.fail(&directory, c"", error),
        }
        if rotating {
            // What stands in it is looked at in the order of the disk too.
            self.hand_out_later(&directory, hands);
            hands.outbox.push(Pending::Rest(directory, fd));
        } else {
            self.read(&directory, &fd, hands);
        }
    }

    /// The file system's own counters, where they are this volume's.
    fn ask_file_system(&self, fd: &OwnedFd, mount: Option<MountId>) -> Option<(u64, u64)> {
        let mount = mount.filter(|_| self.config.statfs && self.config.top_directories == 0)?;
        let is_mounts_root = self
            .opener
            .above(fd.as_fd(), Some(mount))
            .is_err_and(|error| error == Errno::XDEV);
        if is_mounts_root && mounts::answers_alone(&self.mounts, mount) {
            mounts::counters(fd)
        } else {
            None
        }
    }

    /// Reads directories one by one, until another thread has nothing to do, or another tree comes first.
    fn enter_all(&self, mut names: Names, hands: &mut Hands) {
        while let Some((_, name)) = names.next() {
            if let Some((directory, fd)) = self.enter(&names.parent, name, hands) {
                self.read(&directory, &fd, hands);
            }
            let is_wanted = self.idle.load(Relaxed) > 0 || names.parent.tree.steps_back.load(Relaxed);
            if is_wanted && !names.is_empty() {
                // First, so that what lies deeper is taken before it: little waits then.
                return hands.outbox.insert(0, Pending::Names(names));
            }
        }
    }

    /// Opens a directory and counts it. Nothing if it has gone, is a mount, was here before, or cannot be read.
    fn enter(
        &self,
        parent: &Arc<Directory>,
        name: CString,
        hands: &mut Hands,
    ) -> Option<(Arc<Directory>, Arc<OwnedFd>)> {
        if !parent.owner.is_live() || self.is_over() || !self.keep_pace(&parent.owner, hands) {
            return None;
        }
        self.settle_other(&parent.owner, hands);
        let parent_fd = match self.descriptors.of(parent) {
            Ok(fd) => fd,
            Err(error) => {
                self.fail(parent, &name, error);
                return None;
            }
        };
        let opened = self.open(parent, parent_fd.as_fd(), &name, hands);
        let found = opened.and_then(|fd| {
            let Some(fd) = fd else { return Ok(None) };
            Ok(Some((fstat(&fd)?, fd)))
        });
        match found {
            Ok(None) => None,
            Ok(Some((stat, fd))) => {
                let is_new = self.is_first_visit(&parent.tree, &parent.owner, &stat, hands);
                // Once more by another name: it was moved, and counts where it was met first.
                if !is_new && stat.st_ino != PLACEHOLDER_INODE && self.may_have_changed(&stat) {
                    return None;
                }
                let used = match used_bytes(&stat) {
                    // Some file systems give one number to several directories, and broken ones show one inside itself.
                    _ if !is_new && parent.is_within(stat.st_dev, stat.st_ino) => Err(Errno::LOOP),
                    used => used,
                };
                match used {
                    Ok(used) => {
                        let directory = Directory::inside(parent, name, &stat);
                        self.settle_other(&directory.owner, hands);
                        hands.batch.directory(used);
                        Some((directory, Arc::new(fd)))
                    }
                    Err(error) => {
                        self.fail(parent, &name, error);
                        None
                    }
                }
            }
            Err(error) => {
                self.fail(parent, &name, error);
                None
            }
        }
    }

    /// Opens a directory. If the name is something else by now, that is looked at instead.
    fn open(
        &self,
        parent: &Arc<Directory>,
        parent_fd: BorrowedFd,
        name: &CStr,
        hands: &mut Hands,
    ) -> Result<Option<OwnedFd>, Errno> {
        for _ in 0..CHANGES_MAX {
            match self.descriptors.open_child(parent_fd, name, parent.tree.mount) {
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::NOENT) if self.may_have_vanished(parent_fd) => return Ok(None),
                Err(Errno::XDEV) => {
                    hands.batch.mount();
                    self.hand_out(parent, hands);
                    return Ok(None);
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    // The inode number is unknown, and 0 is nobody's: a mount is looked for.
                    self.look(
                        parent,
                        parent_fd,
                        &Entry {
                            inode: 0,
                            kind: 0,
                            name,
                        },
                        hands,
                    );
                    if hands.names.is_empty() {
                        self.hand_out(parent, hands);
                        return Ok(None);
                    }
                    hands.names = Packed::default();
                }
                Err(error) => return Err(error),
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether something was changed since the measuring began, by its own time. A file system of another machine may have
    /// another clock.
    fn may_have_changed(&self, stat: &Stat) -> bool {
        let since = self.began_unix.saturating_sub(CLOCK_SLACK).as_secs();
        let changed = i128::from(stat.st_ctime).max(stat.st_mtime.into());
        changed >= i128::from(since)
    }

    /// Whether a name that is not there any more may have been taken out of a directory since that was listed. Where nothing
    /// was, the file system shows a name that it does not find.
    fn may_have_vanished(&self, directory: BorrowedFd) -> bool {
        let asked = StatxFlags::MTIME | StatxFlags::CTIME;
        let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_FORCE_SYNC;
        let since = self.began_unix.saturating_sub(CLOCK_SLACK).as_secs();
        match statx(directory, c"", flags, asked) {
            Ok(told) => i128::from(told.stx_mtime.tv_sec.max(told.stx_ctime.tv_sec)) >= i128::from(since),
            Err(_) => fstat(directory).map_or(true, |stat| self.may_have_changed(&stat)),
        }
    }

    /// Whether this directory was not entered before, by another name that it had.
    fn is_first_visit(&self, tree: &Tree, owner: &Volume, stat: &Stat, hands: &Hands) -> bool {
        let mut entered = self.lock_of(&hands.slot, &tree.entered);
        let before = entered.bytes();
        let is_new = entered.insert(stat.st_dev, stat.st_ino);
        let after = entered.bytes();
        drop(entered);
        self.remember(before, after, owner);
        is_new
    }

    /// Accounts for memory, and gives up volumes for which there is none. A set may also shrink, into a better form.
    fn remember(&self, before_bytes: usize, after_bytes: usize, owner: &Volume) {
        if after_bytes == before_bytes {
            return;
        }
        let more_bytes = signed(after_bytes) - signed(before_bytes);
        let bytes = self.remembered_bytes.fetch_add(more_bytes, Relaxed) + more_bytes;
        if more_bytes > 0 && bytes > signed(self.config.links_bytes_max) {
            let detail = format!(
                "the limit is {} bytes for all volumes together",
                self.config.links_bytes_max
            );
            for volume in owner.chain() {
                volume.tally().end(State::TooManyLinks, Some(detail.clone()));
                volume.stopped.store(true, Relaxed);
            }
        }
    }

    /// Reads a directory, on from where its descriptor stands.
    fn read(&self, directory: &Arc<Directory>, fd: &Arc<OwnedFd>, hands: &mut Hands) {
        self.tell_current(directory);
        let mut buffers = 0;
        let mut tries = 0;
        let is_left = loop {
            if !directory.owner.is_live() || self.is_over() {
                break false;
            }
            hands.slot.beat.fetch_add(1, Relaxed);
            let filled = match crate::sys::getdents(fd, &mut hands.buffer) {
                Ok(0) => break false,
                Ok(filled) => filled,
                Err(Errno::INTR) if tries < CHANGES_MAX => {
                    tries += 1;
                    continue;
                }
                Err(error) => {
                    self.fail_unless_removed(directory, fd, error);
                    break false;
                }
            };
            if filled >= FULL_BYTES && self.hand_over(directory, fd, filled, hands) {
                continue;
            }
            let buffer = std::mem::take(&mut hands.buffer);
            self.look_through(directory, fd.as_fd(), &buffer[..filled], hands);
            hands.buffer = buffer;
            if hands.batch.entries > BATCH_ENTRIES_MAX {
                self.hand_out_later(directory, hands);
            }
            buffers += 1;
            // Whatever is left keeps its descriptor: of small directories, one for each level of a deep tree.
            let steps_back = buffers > 1 && directory.tree.steps_back.load(Relaxed);
            if hands.names.bytes() > NAMES_BYTES_MAX || steps_back {
                break true;
            }
        };
        self.hand_out_later(directory, hands);
        if is_left {
            hands.outbox.push(Pending::Rest(directory.clone(), fd.clone()));
        }
        self.queue_names(directory, fd, hands);
    }

    /// Leaves a full buffer to other threads, if they can use it.
    fn hand_over(&self, directory: &Arc<Directory>, fd: &Arc<OwnedFd>, filled: usize, hands: &mut Hands) -> bool {
        let mut schedule = self.lock_of(&hands.slot, &self.schedule);
        let handed = schedule.hand_over(directory, fd, &mut hands.buffer, filled);
        if handed && schedule.idle > 0 {
            self.wake.notify_one();
        }
        handed
    }

    fn piece(&self, piece: Piece, hands: &mut Hands) {
        self.look_through(&piece.directory, piece.fd.as_fd(), &piece.buffer[..piece.filled], hands);
        self.hand_out_later(&piece.directory, hands);
        self.queue_names(&piece.directory, &piece.fd, hands);
        self.lock_of(&hands.slot, &self.schedule).take_back(piece.buffer);
    }

    fn queue_names(&self, directory: &Arc<Directory>, fd: &Arc<OwnedFd>, hands: &mut Hands) {
        if !hands.names.is_empty() {
            self.descriptors.keep(directory, fd);
            let names = Names::new(directory.clone(), std::mem::take(&mut hands.names));
            hands.outbox.push(Pending::Names(names));
        }
    }

    fn look_through(&self, directory: &Arc<Directory>, fd: BorrowedFd, buffer: &[u8], hands: &mut Hands) {
        const DIRECTORY: u8 = libc::DT_DIR;
        for entry in records(buffer) {
            if entry.kind == DIRECTORY {
                hands.names.push(entry.inode, entry.name);
                continue;
            }
            if !self.keep_pace(&directory.owner, hands) {
                return;
            }
            self.look(directory, fd, &entry, hands);
        }
    }

    /// Looks at one entry. A directory is only put down: it is counted when it is entered.
    fn look(&self, directory: &Arc<Directory>, fd: BorrowedFd, entry: &Entry, hands: &mut Hands) {
        let stat = match statat(fd, entry.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if self.may_have_vanished(fd) => return,
            Err(error) => return self.fail(directory, entry.name, error),
        };
        let kind = file_type(&stat);
        if kind == FileType::Directory {
            return hands.names.push(entry.inode, entry.name);
        }
        // A mount over a file shows as an inode that is not the one in the directory. Some file systems number in two
        // ways, so this only raises the question. A file mounted over itself is not noticed, and is itself.
        if stat.st_ino != entry.inode || stat.st_dev != directory.device {
            match self.opener.is_mount_point(fd, entry.name, directory.tree.mount) {
                Ok(false) => {}
                Ok(true) => return hands.batch.mount(),
                Err(Errno::NOENT) => return,
                Err(error) => return self.fail(directory, entry.name, error),
            }
        }
        let has_size = kind == FileType::RegularFile || kind == FileType::Symlink;
        let apparent = if has_size {
            u64::try_from(stat.st_size).unwrap_or(0)
        } else {
            0
        };
        let used = match used_bytes(&stat) {
            Ok(used) => used,
            Err(error) => return self.fail(directory, entry.name, error),
        };
        if stat.st_nlink > 1 {
            hands.batch.linked(Linked {
                device: stat.st_dev,
                inode: stat.st_ino,
                used,
                apparent,
            });
        } else {
            hands.batch.single(used, apparent);
        }
    }

    /// Once for each entry: gives a sign of life, keeps to the rate, rests while paused. False when nobody wants the rest.
    fn keep_pace(&self, owner: &Volume, hands: &mut Hands) -> bool {
        let beat = hands.slot.beat.load(Relaxed);
        hands.slot.beat.store(beat + 1, Relaxed);
        hands.stride -= 1;
        if hands.stride > 0 && !self.paused.load(Relaxed) {
            return true;
        }
        let passed = STRIDE - hands.stride;
        hands.stride = STRIDE;
        let wait = self.lock_of(&hands.slot, &self.rate).announce(self.now(), passed);
        let until = self.now() + wait;
        loop {
            if self.is_over() || !owner.is_live() {
                return false;
            }
            let is_paused = self.paused.load(Relaxed);
            let left = until.saturating_sub(self.now());
            if !is_paused && left.is_zero() {
                return true;
            }
            hands.slot.rest(self.now());
            std::thread::sleep(if is_paused { TICK } else { left.min(NAP) });
            hands.slot.work(self.now());
        }
    }

    /// Adds what was seen in a directory to the volumes that own it, with what is seen in the next ones: small directories
    /// would keep the threads busy with each other's locks.
    fn hand_out_later(&self, directory: &Arc<Directory>, hands: &mut Hands) {
        if directory.tree.top > 0 || hands.batch.entries > BATCH_ENTRIES_MAX {
            hands.batch_of = None;
            self.hand_out(directory, hands);
        } else if hands.batch.entries > 0 && hands.batch_of.is_none() {
            hands.batch_of = Some(directory.clone());
        }
    }

    /// Adds what was put off.
    fn settle(&self, hands: &mut Hands) {
        if let Some(directory) = hands.batch_of.take() {
            self.hand_out(&directory, hands);
        }
    }

    /// Adds what was put off if it is another owner's than what comes next.
    fn settle_other(&self, owner: &Arc<Volume>, hands: &mut Hands) {
        if hands.batch_of.as_ref().is_some_and(|of| !Arc::ptr_eq(&of.owner, owner)) {
            self.settle(hands);
        }
    }

    /// Adds what was seen in a directory to the volumes that own it.
    fn hand_out(&self, directory: &Directory, hands: &mut Hands) {
        let batch = &mut hands.batch;
        if batch.entries == 0 {
            return;
        }
        let mut inner = None;
        for volume in directory.owner.chain() {
            if volume.stopped.load(Relaxed) {
                continue;
            }
            let mut tally = self.lock_of(&hands.slot, &volume.tally);
            let before = tally.links_bytes();
            let used = tally.add(batch);
            let after = tally.links_bytes();
            drop(tally);
            inner.get_or_insert(used);
            self.remember(before, after, volume);
        }
        let bytes = u64::try_from(inner.unwrap_or(0)).unwrap_or(u64::MAX);
        if directory.tree.top > 0 {
            directory.add_bytes(bytes);
        }
        self.entries.fetch_add(batch.entries, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        batch.clear();
    }

    /// A directory cannot be read on: an error, unless it was removed meanwhile.
    fn fail_unless_removed(&self, directory: &Directory, fd: &OwnedFd, error: Errno) {
        if error != Errno::NOENT || fstat(fd).is_ok_and(|stat| stat.st_nlink > 0) {
            self.fail(directory, c"", error);
        }
    }

    fn fail(&self, directory: &Directory, name: &CStr, error: Errno) {
        for volume in directory.owner.chain() {
            let path = directory.path_in(volume, name);
            volume.tally().error(
                state_of_place(error),
                PlaceError {
                    path,
                    error: cause_at_place(error),
                },
            );
        }
    }

    fn tell_current(&self, directory: &Directory) {
        if self.current_wanted.load(Relaxed) && self.current_wanted.swap(false, Relaxed) {
            let owner = &directory.owner;
            let target = &self.targets[owner.targets[0]];
            let path = target.base.join(&target.relative).join(directory.path_in(owner, c""));
            *self.current.lock().expect("no panic under this lock") = Some(path);
        }
    }
}

/// An entry that waits to be looked at in the order of the disk.
struct Seat {
    inode: u64,
    directory: Arc<Directory>,
    name: CString,
}

type Waiting = Elevator<(Arc<Directory>, CString)>;

impl Shared {
    /// Reads a tree in the order of the disk, until it is done or nothing has to be read from the disk.
    fn sweep(&self, tree: &Arc<Tree>, hands: &mut Hands) {
        let mut waiting: Waiting = Elevator::new();
        let mut window: Vec<Seat> = Vec::new();
        let mut left: Vec<(Arc<Directory>, Arc<OwnedFd>)> = Vec::new();
        let mut size = sweep::FIRST_WINDOW;
        loop {
            let (before, began) = (self.times_of_this_thread(hands), self.now());
            let taken = self.lock().take_all(tree);
            for pending in taken {
                match pending {
                    Pending::Names(mut names) => {
                        while let Some((inode, name)) = names.next() {
                            waiting.push(inode, (names.parent.clone(), name));
                        }
                    }
                    Pending::Rest(directory, fd) => left.push((directory, fd)),
                }
            }
            let is_wanted = || !self.is_over() && !tree.steps_back.load(Relaxed);
            while window.len() < size && is_wanted() {
                // What was left comes again once there is room for what is in it.
                let next = match left.pop_if(|_| waiting.has_room()) {
                    Some(left) => Some(left),
                    None => {
                        let Some((parent, name)) = waiting.next() else { break };
                        self.enter(&parent, name, hands)
                    }
                };
                if let Some((directory, fd)) = next
                    && self.gather(&directory, &fd, &mut waiting, &mut window, size, hands)
                {
                    left.push((directory, fd));
                }
            }
            self.look_at_window(&mut window, &mut waiting, hands);
            let is_done = waiting.is_empty() && left.is_empty();
            if is_done || self.is_over() || self.is_warm(before, began, hands) {
                tree.sweep.store(false, Relaxed);
                break;
            }
            // It is swept on when it has its turn again.
            if tree.steps_back.load(Relaxed) {
                break;
            }
            size = sweep::WINDOW;
        }
        hands
            .outbox
            .extend(left.into_iter().map(|(directory, fd)| Pending::Rest(directory, fd)));
        for (inode, (parent, name)) in waiting.into_rest() {
            let mut names = Packed::default();
            names.push(inode, &name);
            hands.outbox.push(Pending::Names(Names::new(parent, names)));
        }
    }

    /// Reads a directory into the window. True if it was left before its end: the window is full, or so many directories
    /// are in it.
    fn gather(
        &self,
        directory: &Arc<Directory>,
        fd: &Arc<OwnedFd>,
        waiting: &mut Waiting,
        window: &mut Vec<Seat>,
        size: usize,
        hands: &mut Hands,
    ) -> bool {
        self.tell_current(directory);
        self.hand_out(directory, hands);
        let mut has_waiting = false;
        let mut names_bytes = 0;
        let mut tries = 0;
        loop {
            hands.slot.beat.fetch_add(1, Relaxed);
            if !directory.owner.is_live() || self.is_over() {
                return false;
            }
            let filled = match crate::sys::getdents(fd, &mut hands.buffer) {
                Ok(0) => return false,
                Ok(filled) => filled,
                Err(Errno::INTR) if tries < CHANGES_MAX => {
                    tries += 1;
                    continue;
                }
                Err(error) => {
                    self.fail_unless_removed(directory, fd, error);
                    return false;
                }
            };
            for entry in records(&hands.buffer[..filled]) {
                if entry.kind == libc::DT_DIR || entry.kind == libc::DT_UNKNOWN {
                    names_bytes += entry.name.count_bytes();
                }
                if entry.kind == libc::DT_DIR {
                    waiting.push(entry.inode, (directory.clone(), entry.name.to_owned()));
                } else {
                    let (inode, name) = (entry.inode, entry.name.to_owned());
                    window.push(Seat {
                        inode,
                        directory: directory.clone(),
                        name,
                    });
                }
                has_waiting = true;
            }
            if std::mem::take(&mut has_waiting) {
                self.descriptors.keep(directory, fd);
            }
            if window.len() >= size || (names_bytes > NAMES_BYTES_MAX && !waiting.has_room()) {
                return true;
            }
        }
    }

    fn look_at_window(&self, window: &mut Vec<Seat>, waiting: &mut Waiting, hands: &mut Hands) {
        window.sort_unstable_by_key(|seat| seat.inode);
        for Seat { inode, directory, name } in window.drain(..) {
            if !self.keep_pace(&directory.owner, hands) {
                continue;
            }
            let fd = match self.descriptors.of(&directory) {
                Ok(fd) => fd,
                Err(error) => {
                    self.fail(&directory, &name, error);
                    continue;
                }
            };
            self.look(
                &directory,
                fd.as_fd(),
                &Entry {
                    inode,
                    kind: 0,
                    name: &name,
                },
                hands,
            );
            self.hand_out(&directory, hands);
            if !hands.names.is_empty() {
                hands.names = Packed::default();
                waiting.push(inode, (directory, name));
            }
        }
    }

    fn times_of_this_thread(&self, hands: &Hands) -> Option<Times> {
        times_of(&hands.slot, self.now())
    }

    /// Whether this thread was hardly blocked since then, so that the order does not matter. Where the kernel does not
    /// tell, a person's word counts.
    fn is_warm(&self, before: Option<Times>, began: Duration, hands: &Hands) -> bool {
        let share = before
            .zip(self.times_of_this_thread(hands))
            .and_then(|(before, after)| pace::blocked_share(before, after, self.now().saturating_sub(began)));
        share.map_or(self.config.rotating != Rotating::Yes, pace::is_warm)
    }
}

/// Whether a thread waits in the kernel just now.
fn is_blocked(thread: u32) -> bool {
    std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).is_ok_and(|text| pace::parse_is_blocked(&text))
}

/// A thread's times, if the kernel tells them.
fn times_of(slot: &Slot, now: Duration) -> Option<Times> {
    let thread = slot.thread.load(Relaxed);
    let schedstat = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    Some(Times {
        running: crate::sys::processor_time(u32::try_from(thread).ok()?)?,
        ready: pace::parse_schedstat(&schedstat)?,
        resting: slot.resting(now),
    })
}

/// The thread that keeps the clock and hands out results. It touches no file system but /proc.
struct Supervisor<'a> {
    shared: &'a Arc<Shared>,
    inbox: &'a Receiver<Event>,
    deliver: &'a dyn Fn(usize, Measurement),
    /// By target.
    delivered: Vec<bool>,
    left: usize,
    last_tick: Duration,
    pressure: Option<Pressure>,
    paused_in_all: Duration,
    /// What the walking threads did since the number of threads was last judged.
    share: Share,
    threads: Threads,
}

impl Supervisor<'_> {
    fn new<'a>(
        shared: &'a Arc<Shared>,
        inbox: &'a Receiver<Event>,
        deliver: &'a dyn Fn(usize, Measurement),
    ) -> Supervisor<'a> {
        let left = shared.targets.len();
        Supervisor {
            shared,
            inbox,
            deliver,
            delivered: vec![false; left],
            left,
            last_tick: shared.now(),
            pressure: None,
            paused_in_all: Duration::ZERO,
            share: Share::default(),
            threads: Threads::new(shared.at_first, shared.config.threads_max.get()),
        }
    }

    fn run(mut self) {
        if let Err(error) = self.shared.spawn()
            && self.shared.lock().running == 0
        {
            self.end_all(State::OutOfResources, &format!("cannot start a thread: {error}"));
        }
        let mut pulse = ALONE;
        while self.left > 0 {
            let rest_of_tick = (self.last_tick + pulse).saturating_sub(self.shared.now());
            match self.inbox.recv_timeout(rest_of_tick) {
                Ok(Event::Failed { target, state, detail }) => {
                    self.hand_out(target, Measurement::without_number(state, Some(detail)));
                }
                Ok(Event::Opened(resolved)) => {
                    let measurement = Measurement {
                        directory: Some(resolved.key.directory()),
                        file_system: resolved.file_system,
                        ..Measurement::without_number(State::Complete, None)
                    };
                    self.hand_out(resolved.target, measurement);
                }
                Ok(Event::Ended { volume }) => {
                    let volume = self.shared.lock().volumes[volume].clone();
                    self.finish(&volume);
                    let tree = self.shared.lock().read(volume.index);
                    if let Some(tree) = tree {
                        let bytes = tree.entered.lock().expect("no panic under this lock").bytes();
                        self.shared.remembered_bytes.fetch_sub(signed(bytes), Relaxed);
                    }
                }
                Err(RecvTimeoutError::Timeout) if pulse == ALONE => {
                    pulse = TICK;
                    self.shared.lock().wanted = self.shared.at_first;
                    // As at each tick.
                    let _ = self.shared.spawn();
                }
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Err(RecvTimeoutError::Disconnected) => unreachable!("`shared` holds a sender"),
            }
        }
        self.shared.over.store(true, Relaxed);
        self.shared.paused.store(false, Relaxed);
        // Under the lock, so that no thread goes to sleep between looking and being woken.
        let _schedule = self.shared.lock();
        self.shared.wake.notify_all();
    }

    fn hand_out(&mut self, target: usize, measurement: Measurement) {
        if !std::mem::replace(&mut self.delivered[target], true) {
            self.left -= 1;
            (self.deliver)(target, measurement);
        }
    }

    /// Delivers a volume, whatever is known of it.
    fn finish(&mut self, volume: &Volume) {
        volume.stopped.store(true, Relaxed);
        if self.delivered[volume.targets[0]] {
            return;
        }
        let measurement = {
            let mut tally = volume.tally();
            let bytes = tally.links_bytes();
            self.shared.remembered_bytes.fetch_sub(signed(bytes), Relaxed);
            tally.forget_links();
            let ended = volume.ended.get().copied().unwrap_or_else(Instant::now);
            let began = volume.began.get().copied().unwrap_or(ended);
            Measurement {
                directory: Some(volume.key.directory()),
                file_system: volume.file_system.clone(),
                ..tally.measurement(ended.saturating_duration_since(began).as_secs_f64())
            }
        };
        {
            let mut schedule = self.shared.lock();
            schedule.ended(volume.index);
            self.shared.wake.notify_all();
        }
        for target in &volume.targets {
            self.hand_out(*target, measurement.clone());
        }
    }

    fn end_all(&mut self, state: State, detail: &str) {
        let (volumes, unresolved) = {
            let schedule = self.shared.lock();
            (schedule.volumes.clone(), schedule.unresolved())
        };
        for volume in volumes {
            volume.tally().end(state, Some(detail.to_owned()));
            self.finish(&volume);
        }
        for target in unresolved {
            self.hand_out(target, Measurement::without_number(state, Some(detail.to_owned())));
        }
    }

    fn tick(&mut self) {
        let now = self.shared.now();
        let elapsed = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        let config = &self.shared.config;
        if self.shared.cancelled.load(Relaxed) {
            return self.end_all(State::Cancelled, "the measuring was ended early");
        }
        if config.total_budget.is_some_and(|budget| now >= budget) {
            return self.end_all(State::Timeout, "the time for all together was up");
        }
        if let Some(budget) = config.volume_budget {
            self.end_late_volumes(budget);
        }
        self.heed_pressure(now, elapsed);
        {
            let mut schedule = self.shared.lock();
            let has_changed = schedule.watch(now, PATIENCE);
            let left = config
                .total_budget
                .map_or(Duration::MAX, |budget| budget.saturating_sub(now));
            let rests = self.shared.paused.load(Relaxed);
            schedule.share(left, if rests { Duration::ZERO } else { elapsed });
            self.adapt(&mut schedule, elapsed);
            if has_changed || schedule.running > schedule.wanted {
                self.shared.wake.notify_all();
            }
        }
        // Fewer threads than wanted are still some; the next tick tries again.
        let _ = self.shared.spawn();
    }

    /// What counts is the time for which a volume was read: waiting for others is not its fault.
    fn end_late_volumes(&mut self, budget: Duration) {
        let late: Vec<Arc<Volume>> = {
            let schedule = self.shared.lock();
            let served = schedule.served();
            let is_late = |volume: &&Arc<Volume>| {
                let of_tree = served.get(&volume.index).copied();
                !self.delivered[volume.targets[0]]
                    && of_tree.or_else(|| volume.began.get().map(Instant::elapsed)) >= Some(budget)
            };
            schedule.volumes.iter().filter(is_late).cloned().collect()
        };
        for volume in late {
            volume
                .tally()
                .end(State::Timeout, Some("the time for each one was up".to_owned()));
            self.finish(&volume);
        }
    }

    /// Pauses while others wait for the disk, for at most half of the time that there is.
    fn heed_pressure(&mut self, now: Duration, elapsed: Duration) {
        let Shared { config, paused, .. } = &**self.shared;
        let Some(file) = &config.pressure_file else { return };
        if paused.load(Relaxed) {
            self.paused_in_all += elapsed;
        }
        let Some(stalled) = std::fs::read_to_string(file)
            .ok()
            .and_then(|text| pace::parse_pressure(&text))
        else {
            return paused.store(false, Relaxed);
        };
        let budget = config.total_budget.into_iter().chain(config.volume_budget).min();
        // Without a budget, half of the time that it takes.
        let may_pause = self.paused_in_all < budget.unwrap_or(now) / 2;
        let pressure = self.pressure.get_or_insert_with(|| Pressure::new(now, stalled));
        paused.store(pressure.step(now, stalled, may_pause), Relaxed);
    }

    /// As many threads as being blocked asks for; on a disk with a head, one that keeps to the order.
    fn adapt(&mut self, schedule: &mut Schedule, elapsed: Duration) {
        for worker in schedule.workers.values_mut() {
            let Ok(thread) = u32::try_from(worker.slot.thread.load(Relaxed)) else {
                continue;
            };
            let ran = crate::sys::processor_time(thread);
            let before = std::mem::replace(&mut worker.ran, ran);
            if worker.is_walking()
                && let Some((before, ran)) = before.zip(ran)
            {
                let is_blocked = !worker.slot.is_resting() && is_blocked(thread);
                self.share.add(ran.saturating_sub(before), elapsed, is_blocked);
            }
        }
        let Some(blocked) = self.share.judge() else { return };
        let mut all_rotate = true;
        for tree in schedule.active_trees() {
            all_rotate &= tree.rotating;
            if tree.rotating && pace::is_cold(blocked) {
                tree.sweep.store(true, Relaxed);
            }
        }
        if !all_rotate {
            schedule.wanted = self.threads.next(blocked);
        }
    }
}
