//! Who does what next: the work that waits, the threads that do it, and those that hang.
//!
//! Everything here stands under one lock, which is held for moments only and never during a call to a file system, /proc
//! aside. It is taken once or twice for a large directory or for several small ones: once for each small one was felt.
//!
//! Work is taken last in, first out, so that little of it waits at any time. A tree on which a thread hangs is left
//! alone; others on the same device come last and one at a time, because they may cost a thread each.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::fd::OwnedFd;

use crate::tree::{Directory, Event, Key, Resolved, Tree, Volume};

/// Threads that hang, at most; then no more are risked.
const HANGING_MAX: usize = 64;
/// Directories that a thread takes at once from many, so that it need not come back for each; …
const NAMES_AT_ONCE: usize = 16;
/// … and a list so short is taken whole.
const NAMES_AT_ONCE_BYTES: usize = 512;
/// No tree steps back before this: what it has in memory waits meanwhile.
const SHARE_LEAST: Duration = Duration::from_secs(2);
/// Pieces of large directories that may wait for another thread; more only if there are more threads.
const PIECES_MAX: usize = 4;

/// The directories found in one directory, packed: they may be a million.
pub(crate) struct Names {
    pub(crate) parent: Arc<Directory>,
    packed: Packed,
    at: usize,
}

/// Names with their inode numbers, one after the other.
#[derive(Default)]
pub(crate) struct Packed(Vec<u8>);

impl Packed {
    pub(crate) fn push(&mut self, inode: u64, name: &CStr) {
        let name = name.to_bytes_with_nul();
        self.0.extend_from_slice(&inode.to_ne_bytes());
        self.0.extend_from_slice(&(name.len() as u16).to_ne_bytes());
        self.0.extend_from_slice(name);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Where the record that begins here ends.
    fn end_of(&self, at: usize) -> Option<usize> {
        let length = self.0.get(at + 8..)?.first_chunk()?;
        Some(at + 10 + usize::from(u16::from_ne_bytes(*length)))
    }
}

impl Names {
    pub(crate) fn new(parent: Arc<Directory>, packed: Packed) -> Names {
        Names { parent, packed, at: 0 }
    }

    /// Takes some of the names for one thread, and leaves the rest.
    fn some(&mut self, count: usize) -> Names {
        let mut end = self.at;
        for _ in 0..count {
            let Some(next) = self.packed.end_of(end) else { break };
            end = next;
        }
        let some = Packed(self.packed.0[self.at..end].to_vec());
        self.at = end;
        Names::new(self.parent.clone(), some)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.packed.0.len()
    }
}

impl Iterator for Names {
    type Item = (u64, CString);

    fn next(&mut self) -> Option<(u64, CString)> {
        let rest = &self.packed.0[self.at..];
        let (inode, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        self.at += 10 + length;
        Some((
            u64::from_ne_bytes(*inode),
            CStr::from_bytes_until_nul(&rest[..length]).ok()?.to_owned(),
        ))
    }
}

/// Work on a directory that is not begun.
pub(crate) enum Pending {
    /// Enter these.
    Names(Names),
    /// Go on reading this one; it was left because of the directories in it.
    Rest(Arc<Directory>, Arc<OwnedFd>),
}

/// A part of a large directory, as the kernel gave it.
pub(crate) struct Piece {
    pub(crate) directory: Arc<Directory>,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) buffer: Vec<u8>,
    pub(crate) filled: usize,
}

/// One thing to do.
pub(crate) enum Job {
    /// Find out which directory a target is.
    Resolve {
        target: usize,
    },
    Begin {
        tree: usize,
        volume: Arc<Volume>,
        inside: HashMap<(u64, u64), Arc<Volume>>,
    },
    /// Enter some directories that lie in one.
    Enter(Names),
    GoOn(Arc<Directory>, Arc<OwnedFd>),
    Piece(Piece),
    /// Read this tree in the order of the disk, alone.
    Sweep(Arc<Tree>),
}

impl Job {
    /// The directory that it is about, if there is one already.
    pub(crate) fn directory(&self) -> Option<&Arc<Directory>> {
        match self {
            Job::Enter(names) => Some(&names.parent),
            Job::GoOn(directory, _) => Some(directory),
            Job::Piece(piece) => Some(&piece.directory),
            Job::Resolve { .. } | Job::Begin { .. } | Job::Sweep(_) => None,
        }
    }
}

/// What a thread tells of itself without a lock.
#[derive(Default)]
pub(crate) struct Slot {
    /// Grows with each entry.
    pub(crate) beat: AtomicU64,
    /// The time for which it had nothing to do or was told to rest, nanoseconds; …
    pub(crate) rested: AtomicU64,
    /// … and since when it does now, if it does: nanoseconds from the start.
    pub(crate) rests_since: AtomicU64,
    /// The kernel's number of the thread.
    pub(crate) thread: AtomicU64,
}

impl Slot {
    pub(crate) fn rest(&self, now: Duration) {
        self.rests_since.store(nanos(now).max(1), Relaxed);
    }

    pub(crate) fn work(&self, now: Duration) {
        let since = self.rests_since.swap(0, Relaxed);
        if since != 0 {
            self.rested.fetch_add(nanos(now).saturating_sub(since), Relaxed);
        }
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.rests_since.load(Relaxed) != 0
    }

    pub(crate) fn resting(&self, now: Duration) -> Duration {
        let since = self.rests_since.load(Relaxed);
        let still = if since == 0 {
            0
        } else {
            nanos(now).saturating_sub(since)
        };
        Duration::from_nanos(self.rested.load(Relaxed) + still)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A thread, as the schedule sees it.
pub(crate) struct Worker {
    pub(crate) slot: Arc<Slot>,
    doing: Doing,
    hangs: bool,
    last_beat: u64,
    beat_at: Duration,
    /// The time that it had spent on a processor when it was last asked.
    pub(crate) ran: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Resolving(usize),
    Walking { tree: usize, sweeping: bool },
}

impl Worker {
    /// Whether its being blocked says that more threads would help.
    pub(crate) fn is_walking(&self) -> bool {
        !self.hangs && matches!(self.doing, Doing::Walking { sweeping: false, .. })
    }
}

/// A tree, as the schedule sees it.
struct Plan {
    volume: usize,
    nested: Vec<usize>,
    pending: Vec<Pending>,
    tree: Option<Arc<Tree>>,
    hanging: usize,
    is_swept: bool,
    /// The time for which somebody read it.
    served: Duration,
}

pub(crate) struct Schedule {
    bases: Vec<PathBuf>,
    to_resolve: VecDeque<usize>,
    /// Targets on a base on which a thread hangs.
    to_resolve_late: VecDeque<usize>,
    resolving: usize,
    resolved: Vec<Resolved>,
    is_planned: bool,

    pub(crate) volumes: Vec<Arc<Volume>>,
    trees: Vec<Plan>,
    waiting: VecDeque<usize>,
    active: Vec<usize>,
    pieces: VecDeque<Piece>,
    spare_buffers: Vec<Vec<u8>>,
    /// Devices on which a thread hangs, and how many.
    hanging_devices: HashMap<u64, usize>,

    pub(crate) workers: HashMap<usize, Worker>,
    next_worker: usize,
    /// Threads that do not hang.
    pub(crate) running: usize,
    pub(crate) wanted: usize,
    /// Of those, how many wait for work.
    pub(crate) idle: usize,
    events: Sender<Event>,
}

impl Schedule {
    /// `bases` has the base directory of each target.
    pub(crate) fn new(bases: Vec<PathBuf>, wanted: usize, events: Sender<Event>) -> Schedule {
        Schedule {
            to_resolve: (0..bases.len()).collect(),
            bases,
            to_resolve_late: VecDeque::new(),
            resolving: 0,
            resolved: Vec::new(),
            is_planned: false,
            volumes: Vec::new(),
            trees: Vec::new(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            pieces: VecDeque::new(),
            spare_buffers: Vec::new(),
            hanging_devices: HashMap::new(),
            workers: HashMap::new(),
            next_worker: 0,
            running: 0,
            wanted,
            idle: 0,
            events,
        }
    }

    pub(crate) fn add_worker(&mut self) -> (usize, Arc<Slot>) {
        let id = self.next_worker;
        self.next_worker += 1;
        self.running += 1;
        let slot = Arc::new(Slot::default());
        let worker = Worker {
            slot: slot.clone(),
            doing: Doing::Nothing,
            hangs: false,
            last_beat: 0,
            beat_at: Duration::ZERO,
            ran: None,
        };
        self.workers.insert(id, worker);
        (id, slot)
    }

    pub(crate) fn remove_worker(&mut self, id: usize) {
        if self.workers.remove(&id).is_some_and(|worker| !worker.hangs) {
            self.running -= 1;
        }
    }

    /// Adds work. The last one is taken first.
    pub(crate) fn put(&mut self, work: &mut Vec<Pending>) {
        for pending in work.drain(..) {
            let directory = match &pending {
                Pending::Names(names) => &names.parent,
                Pending::Rest(directory, _) => directory,
            };
            let tree = directory.tree.id;
            self.trees[tree].pending.push(pending);
        }
    }

    /// Leaves a piece of a large directory to others, if they want it; the buffer that was filled is exchanged for an
    /// empty one.
    pub(crate) fn hand_over(
        &mut self,
        directory: &Arc<Directory>,
        fd: &Arc<OwnedFd>,
        buffer: &mut Vec<u8>,
        filled: usize,
    ) -> bool {
        let steps_back = directory.tree.steps_back.load(Relaxed);
        if steps_back || self.running < 2 || self.pieces.len() >= PIECES_MAX.max(self.running) {
            return false;
        }
        let empty = self.spare_buffers.pop().unwrap_or_else(|| vec![0; buffer.len()]);
        let buffer = std::mem::replace(buffer, empty);
        self.pieces.push_back(Piece {
            directory: directory.clone(),
            fd: fd.clone(),
            buffer,
            filled,
        });
        true
    }

    pub(crate) fn take_back(&mut self, buffer: Vec<u8>) {
        self.spare_buffers.push(buffer);
    }

    /// The work of a tree that is being swept.
    pub(crate) fn take_all(&mut self, tree: &Tree) -> Vec<Pending> {
        std::mem::take(&mut self.trees[tree.id].pending)
    }

    /// A thread has done what it was given.
    pub(crate) fn done(&mut self, id: usize) {
        self.wakes_up(id);
        let worker = self.workers.get_mut(&id).expect("it is still there");
        match std::mem::replace(&mut worker.doing, Doing::Nothing) {
            Doing::Nothing => {}
            Doing::Resolving(_) => self.resolving -= 1,
            Doing::Walking { tree, sweeping } => {
                if sweeping {
                    self.trees[tree].is_swept = false;
                }
            }
        }
        self.plan_when_resolved();
    }

    /// Something for a thread to do, if there is anything.
    pub(crate) fn take(&mut self, id: usize, now: Duration) -> Option<Job> {
        let (job, doing) = self.choose()?;
        let worker = self.workers.get_mut(&id).expect("it is still there");
        worker.doing = doing;
        worker.last_beat = worker.slot.beat.load(Relaxed);
        worker.beat_at = now;
        Some(job)
    }

    fn choose(&mut self) -> Option<(Job, Doing)> {
        if let Some(found) = self.choose_piece(false) {
            return Some(found);
        }
        if let Some(target) = self.to_resolve.pop_front() {
            self.resolving += 1;
            return Some((Job::Resolve { target }, Doing::Resolving(target)));
        }
        if let Some(found) = self.choose_tree(false).or_else(|| self.choose_piece(true)) {
            return Some(found);
        }
        let is_at_risk = |worker: &Worker| match worker.doing {
            _ if worker.hangs => false,
            Doing::Nothing => false,
            Doing::Resolving(_) => true,
            Doing::Walking { tree, .. } => self.is_risky(tree),
        };
        let hanging = self.workers.len() - self.running;
        if hanging >= HANGING_MAX || self.workers.values().any(is_at_risk) {
            return None;
        }
        if let Some(found) = self.choose_tree(true) {
            return Some(found);
        }
        let target = self.to_resolve_late.pop_front()?;
        self.resolving += 1;
        Some((Job::Resolve { target }, Doing::Resolving(target)))
    }

    /// A part of a large directory that another thread left.
    fn choose_piece(&mut self, steps_back: bool) -> Option<(Job, Doing)> {
        let trees = &self.trees;
        let is_ready = |piece: &Piece| {
            let plan = &trees[piece.directory.tree.id];
            plan.hanging == 0 && plan.steps_back() == steps_back
        };
        let place = self.pieces.iter().position(is_ready)?;
        let piece = self.pieces.remove(place)?;
        let tree = piece.directory.tree.id;
        Some((Job::Piece(piece), Doing::Walking { tree, sweeping: false }))
    }

    fn choose_tree(&mut self, risky: bool) -> Option<(Job, Doing)> {
        self.go_on(risky, false)
            .or_else(|| self.begin_tree(risky))
            .or_else(|| self.go_on(risky, true))
    }

    /// More of a tree that was begun.
    fn go_on(&mut self, risky: bool, steps_back: bool) -> Option<(Job, Doing)> {
        for place in 0..self.active.len() {
            let id = self.active[place];
            if self.is_risky(id) != risky || self.trees[id].steps_back() != steps_back || self.is_head_taken(id) {
                continue;
            }
            if let Some((job, sweeping)) = self.trees[id].take() {
                return Some((job, Doing::Walking { tree: id, sweeping }));
            }
        }
        None
    }

    /// Whether another tree is being read in the order of the disk, on the disk on which this one is to be.
    fn is_head_taken(&self, tree: usize) -> bool {
        let takes = |other: &usize| {
            let plan = &self.trees[*other];
            *other != tree && plan.is_swept && plan.hanging == 0 && self.device_of(*other) == self.device_of(tree)
        };
        self.trees[tree].is_to_be_swept() && self.active.iter().any(takes)
    }

    /// Shares the time that is left among the trees that are left: one that had its share steps back until each of the
    /// others had a turn. Nothing of it is lost, and it goes on when there is time.
    pub(crate) fn share(&mut self, left: Duration, elapsed: Duration) {
        let walking = |worker: &Worker| match worker.doing {
            Doing::Walking { tree, .. } => Some(tree),
            _ => None,
        };
        let served: HashSet<usize> = self.workers.values().filter_map(walking).collect();
        for tree in served {
            self.trees[tree].served += elapsed;
        }
        let count = u32::try_from(self.active.len() + self.waiting.len()).unwrap_or(u32::MAX);
        let share = (left / count.max(1)).max(SHARE_LEAST);
        let had_its_share = |id: &usize| self.trees[*id].served > share;
        let others_come_first = !self.waiting.is_empty() || !self.active.iter().all(had_its_share);
        for tree in self.active_trees() {
            tree.steps_back
                .store(others_come_first && had_its_share(&tree.id), Relaxed);
        }
    }

    /// The time for which somebody read each volume; none of one that is not the outermost of a tree.
    pub(crate) fn served(&self) -> HashMap<usize, Duration> {
        let mut served = HashMap::new();
        for plan in &self.trees {
            let of_volume: &mut Duration = served.entry(plan.volume).or_default();
            *of_volume = plan.served.max(*of_volume);
        }
        served
    }

    fn begin_tree(&mut self, risky: bool) -> Option<(Job, Doing)> {
        let place = self.waiting.iter().position(|id| self.is_risky(*id) == risky)?;
        let id = self.waiting.remove(place)?;
        self.active.push(id);
        let plan = &self.trees[id];
        let nested = plan.nested.iter().map(|volume| &self.volumes[*volume]);
        let job = Job::Begin {
            tree: id,
            volume: self.volumes[plan.volume].clone(),
            inside: nested
                .map(|volume| ((volume.key.device, volume.key.inode), volume.clone()))
                .collect(),
        };
        Some((
            job,
            Doing::Walking {
                tree: id,
                sweeping: false,
            },
        ))
    }

    fn is_risky(&self, tree: usize) -> bool {
        !self.hanging_devices.is_empty() && self.hanging_devices.contains_key(&self.device_of(tree))
    }

    fn device_of(&self, tree: usize) -> u64 {
        self.volumes[self.trees[tree].volume].key.device
    }

    /// A tree's directories may be entered from now on.
    pub(crate) fn begun(&mut self, tree: Arc<Tree>) {
        let id = tree.id;
        self.trees[id].tree = Some(tree);
    }

    /// Trees that are being walked.
    pub(crate) fn active_trees(&self) -> impl Iterator<Item = &Arc<Tree>> {
        self.active.iter().filter_map(|id| self.trees[*id].tree.as_ref())
    }

    pub(crate) fn resolved(&mut self, resolved: Resolved) {
        self.resolved.push(resolved);
    }

    /// Once it is known which directory each target is, the same ones become one volume, and those inside others part
    /// of their trees. Nobody waits for a thread that hangs: what it finds later is walked by itself.
    pub(crate) fn plan_when_resolved(&mut self) {
        if !self.is_planned && (self.resolving > 0 || !self.to_resolve.is_empty()) {
            return;
        }
        self.is_planned = true;
        if self.resolved.is_empty() {
            return;
        }
        let first = self.volumes.len();
        let mut known: HashMap<Key, usize> = HashMap::new();
        for resolved in std::mem::take(&mut self.resolved) {
            let index = *known.entry(resolved.key).or_insert(self.volumes.len());
            match self.volumes.get_mut(index) {
                Some(volume) => Arc::get_mut(volume)
                    .expect("nobody has it yet")
                    .targets
                    .push(resolved.target),
                None => self
                    .volumes
                    .push(Arc::new(Volume::new(index, resolved, self.events.clone()))),
            }
        }
        self.plant((first..self.volumes.len()).collect());
    }

    /// Makes trees of volumes, each with those inside it.
    fn plant(&mut self, volumes: Vec<usize>) {
        let known: HashMap<Key, usize> = volumes.iter().map(|index| (self.volumes[*index].key, *index)).collect();
        let mut nested: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut roots = Vec::new();
        for index in volumes {
            let outermost = self.volumes[index].above.iter().rev().find_map(|key| known.get(key));
            match outermost {
                Some(outer) => nested.entry(*outer).or_default().push(index),
                None => roots.push(index),
            }
        }
        for volume in roots {
            self.waiting.push_back(self.trees.len());
            self.trees.push(Plan {
                volume,
                nested: nested.remove(&volume).unwrap_or_default(),
                pending: Vec::new(),
                tree: None,
                hanging: 0,
                is_swept: false,
                served: Duration::ZERO,
            });
        }
    }

    /// A volume has its result. If it was a tree's, the volumes inside that were not met are walked by themselves.
    pub(crate) fn ended(&mut self, volume: usize) {
        let of_volume = |id: &usize| self.trees[*id].volume == volume;
        let Some(id) = self.active.iter().copied().find(of_volume) else {
            return;
        };
        self.release(id);
    }

    /// A volume was read to its end: its tree, if it was one, is no more.
    pub(crate) fn read(&mut self, volume: usize) -> Option<Arc<Tree>> {
        let id = self
            .active
            .iter()
            .copied()
            .find(|id| self.trees[*id].volume == volume)?;
        self.leave(id)
    }

    /// Nothing is to be done for this tree any more.
    pub(crate) fn leave(&mut self, tree: usize) -> Option<Arc<Tree>> {
        self.active.retain(|id| *id != tree);
        self.trees[tree].tree.take()
    }

    fn release(&mut self, tree: usize) {
        let nested = std::mem::take(&mut self.trees[tree].nested);
        let unclaimed: Vec<usize> = nested
            .into_iter()
            .filter(|index| self.volumes[*index].is_unclaimed())
            .collect();
        self.plant(unclaimed);
    }

    /// Whether there is more to do than one thread is doing.
    pub(crate) fn has_work(&self) -> bool {
        let is_ready = |id: &usize| {
            let plan = &self.trees[*id];
            plan.hanging == 0 && !plan.is_swept && !plan.pending.is_empty()
        };
        !self.pieces.is_empty()
            || !self.to_resolve.is_empty()
            || !self.waiting.is_empty()
            || self.active.iter().any(is_ready)
    }

    /// Notices threads that hang and those that come back; true if there were any.
    pub(crate) fn watch(&mut self, now: Duration, patience: Duration) -> bool {
        let running = self.running;
        let ids: Vec<usize> = self.workers.keys().copied().collect();
        for id in ids {
            let worker = self.workers.get_mut(&id).expect("it was there a moment ago");
            let beat = worker.slot.beat.load(Relaxed);
            if beat != worker.last_beat || worker.doing == Doing::Nothing || worker.slot.is_resting() {
                (worker.last_beat, worker.beat_at) = (beat, now);
                self.wakes_up(id);
            } else if !worker.hangs && now.saturating_sub(worker.beat_at) > patience {
                self.hangs(id);
            }
        }
        self.running != running
    }

    fn hangs(&mut self, id: usize) {
        let worker = self.workers.get_mut(&id).expect("it was there a moment ago");
        worker.hangs = true;
        self.running -= 1;
        match worker.doing {
            Doing::Nothing => {}
            Doing::Resolving(target) => {
                self.resolving -= 1;
                let bases = &self.bases;
                let (late, now): (Vec<_>, Vec<_>) = self
                    .to_resolve
                    .drain(..)
                    .partition(|other| bases[*other] == bases[target]);
                self.to_resolve.extend(now);
                self.to_resolve_late.extend(late);
                self.plan_when_resolved();
            }
            Doing::Walking { tree, .. } => {
                self.trees[tree].hanging += 1;
                let device = self.device_of(tree);
                *self.hanging_devices.entry(device).or_default() += 1;
                self.release(tree);
            }
        }
    }

    fn wakes_up(&mut self, id: usize) {
        let worker = self.workers.get_mut(&id).expect("it was there a moment ago");
        if !std::mem::take(&mut worker.hangs) {
            return;
        }
        self.running += 1;
        match worker.doing {
            Doing::Nothing => {}
            Doing::Resolving(_) => self.resolving += 1,
            Doing::Walking { tree, .. } => {
                self.trees[tree].hanging -= 1;
                let device = self.device_of(tree);
                if let Some(count) = self.hanging_devices.get_mut(&device) {
                    *count -= 1;
                    if *count == 0 {
                        self.hanging_devices.remove(&device);
                    }
                }
            }
        }
    }

    /// Targets of which nothing is known yet.
    pub(crate) fn unresolved(&self) -> HashSet<usize> {
        let known = self.volumes.iter().flat_map(|volume| &volume.targets);
        let known: HashSet<&usize> = known.collect();
        (0..self.bases.len()).filter(|target| !known.contains(target)).collect()
    }
}

impl Plan {
    fn steps_back(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.steps_back.load(Relaxed))
    }

    fn is_to_be_swept(&self) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.sweep.load(Relaxed))
    }

    fn take(&mut self) -> Option<(Job, bool)> {
        if self.hanging > 0 || self.is_swept {
            return None;
        }
        if !self.pending.is_empty() && self.is_to_be_swept() {
            self.is_swept = true;
            return self.tree.clone().map(|tree| (Job::Sweep(tree), true));
        }
        match self.pending.pop()? {
            Pending::Rest(directory, fd) => Some((Job::GoOn(directory, fd), false)),
            Pending::Names(mut names) => {
                if names.packed.bytes() - names.at <= NAMES_AT_ONCE_BYTES {
                    return Some((Job::Enter(names), false));
                }
                let some = names.some(NAMES_AT_ONCE);
                self.pending.push(Pending::Names(names));
                Some((Job::Enter(some), false))
            }
        }
    }
}
