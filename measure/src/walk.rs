//! Reads directories and looks at each entry, on threads that nobody waits for.

use std::collections::HashSet;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, RawDir, fstat, statat};
use rustix::io::Errno;

use crate::{Config, Measurement, Method, PlaceError, Progress, State, Target, open};

const BUFFER_BYTES: usize = 32 << 10;
const FIRST_ERRORS: usize = 10;

/// A measurement under way.
pub struct Running(Arc<Shared>);

struct Shared {
    targets: Vec<Target>,
    config: Config,
    next: AtomicUsize,
    cancelled: AtomicBool,
    entries: AtomicU64,
    bytes: AtomicU64,
    current: Mutex<Option<PathBuf>>,
    deadline: Option<Instant>,
}

impl Running {
    /// How far it is.
    pub fn progress(&self) -> Progress {
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

/// Starts measuring on threads that nobody ever joins. `deliver` is called once for each target, from those threads; a
/// target whose thread hangs in the kernel is never delivered, so the caller needs a deadline of its own.
pub fn start(
    targets: Vec<Target>,
    config: Config,
    deliver: impl Fn(usize, Measurement) + Send + Sync + 'static,
) -> Running {
    let deadline = config.total_budget.map(|budget| Instant::now() + budget);
    let threads = config.threads_max.get().min(targets.len());
    let shared = Arc::new(Shared {
        targets,
        config,
        next: AtomicUsize::new(0),
        cancelled: AtomicBool::new(false),
        entries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        current: Mutex::new(None),
        deadline,
    });
    let deliver = Arc::new(deliver);
    for _ in 0..threads {
        let (shared, deliver) = (shared.clone(), deliver.clone());
        std::thread::spawn(move || {
            loop {
                let index = shared.next.fetch_add(1, Relaxed);
                let Some(target) = shared.targets.get(index) else { break };
                deliver(index, one(&shared, target));
            }
        });
    }
    Running(shared)
}

/// Measures and waits, at most for the total budget and a second; what did not answer then is [`State::Timeout`].
pub fn measure(targets: Vec<Target>, config: Config) -> Vec<Measurement> {
    let wait = config.total_budget.map(|budget| budget + Duration::from_secs(1));
    let deadline = wait.map(|wait| Instant::now() + wait);
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

struct Tally {
    bytes: u64,
    apparent: u128,
    inodes: u64,
    result: Measurement,
    links: HashSet<(u64, u64)>,
    directories: HashSet<(u64, u64)>,
}

/// A directory that is being read: its descriptor, where it is, and the children not yet entered.
struct Level {
    fd: OwnedFd,
    name: Vec<u8>,
    children: Vec<CString>,
}

fn one(shared: &Shared, target: &Target) -> Measurement {
    let began = Instant::now();
    let budget = shared.config.volume_budget.map(|budget| began + budget);
    let mut tally = Tally {
        bytes: 0,
        apparent: 0,
        inodes: 0,
        result: Measurement::without_number(State::Complete, None),
        links: HashSet::new(),
        directories: HashSet::new(),
    };
    match open::target(target) {
        Err((state, detail)) => (tally.result.state, tally.result.state_detail) = (state, Some(detail)),
        Ok(root) => descend(shared, root, &mut tally, budget),
    }
    let mut result = tally.result;
    if result.state == State::Complete {
        result.method = Some(Method::Walk);
        result.used_bytes = Some(tally.bytes);
        result.apparent_bytes = Some(tally.apparent);
        result.inodes_used = Some(tally.inodes);
    }
    result.seconds = began.elapsed().as_secs_f64();
    result
}

fn descend(shared: &Shared, root: OwnedFd, tally: &mut Tally, budget: Option<Instant>) {
    let mut levels: Vec<Level> = Vec::new();
    if let Some(level) = enter(shared, root, Vec::new(), tally, &levels) {
        levels.push(level);
    }
    while let Some(level) = levels.last_mut() {
        let now = Instant::now();
        if shared.cancelled.load(Relaxed) {
            tally.result.state = State::Cancelled;
            return;
        }
        if [budget, shared.deadline].iter().flatten().any(|end| now > *end) {
            tally.result.state = State::Timeout;
            return;
        }
        let Some(name) = level.children.pop() else {
            levels.pop();
            continue;
        };
        match open::child(&level.fd, &name) {
            Ok(fd) => {
                if let Some(level) = enter(shared, fd, name.into_bytes(), tally, &levels) {
                    levels.push(level);
                }
            }
            Err(Errno::XDEV) => tally.result.mounts_skipped += 1,
            Err(Errno::NOENT) => {}
            Err(error) => failed(tally, &levels, name.as_bytes(), error),
        }
    }
}

/// Counts a directory and reads it whole.
fn enter(shared: &Shared, fd: OwnedFd, name: Vec<u8>, tally: &mut Tally, above: &[Level]) -> Option<Level> {
    let mut level = Level {
        fd,
        name,
        children: Vec::new(),
    };
    match fstat(&level.fd) {
        Ok(stat) => {
            if !tally.directories.insert((stat.st_dev, stat.st_ino)) {
                return None;
            }
            count(shared, tally, stat.st_blocks, 0);
        }
        Err(error) => failed(tally, above, &level.name, error),
    }
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let mut entries = RawDir::new(level.fd.as_fd(), &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::NOENT) => break,
            Err(error) => {
                failed(tally, above, &level.name, error);
                break;
            }
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            level.children.push(name.to_owned());
            continue;
        }
        match statat(level.fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                level.children.push(name.to_owned());
            }
            Ok(stat) => {
                if stat.st_nlink < 2 || tally.links.insert((stat.st_dev, stat.st_ino)) {
                    count(shared, tally, stat.st_blocks, stat.st_size);
                } else {
                    tally.result.entries += 1;
                }
            }
            Err(Errno::NOENT) => {}
            Err(error) => failed(tally, above, name.to_bytes(), error),
        }
    }
    Some(level)
}

fn count(shared: &Shared, tally: &mut Tally, blocks: i64, size: i64) {
    let bytes = u64::try_from(blocks).unwrap_or(0).saturating_mul(512);
    tally.bytes = tally.bytes.saturating_add(bytes);
    tally.apparent += u128::try_from(size).unwrap_or(0);
    tally.inodes += 1;
    tally.result.entries += 1;
    shared.entries.fetch_add(1, Relaxed);
    shared.bytes.fetch_add(bytes, Relaxed);
}

fn failed(tally: &mut Tally, above: &[Level], name: &[u8], error: Errno) {
    tally.result.errors += 1;
    if tally.result.state == State::Complete {
        tally.result.state = match open::state_of(error) {
            State::Missing | State::NotADirectory | State::EscapesBase => State::IoError,
            state => state,
        };
    }
    if tally.result.first_errors.len() < FIRST_ERRORS {
        let mut path = PathBuf::new();
        for part in above.iter().map(|level| level.name.clone()).chain([name.to_vec()]) {
            path.push(std::ffi::OsString::from_vec(part));
        }
        tally.result.first_errors.push(PlaceError {
            path,
            error: error.to_string(),
        });
    }
}
