//! Measures directories: allocated bytes, apparent bytes and inodes, each file once, or no number at all and the reason.
//!
//! # Layout
//! - `open`: base directory → the volume's directory, directory → child, never leaving.
//! - `walk`: the threads that read directories and look at each entry, and the one that keeps the clock.
//! - `schedule`: who does what next; threads that hang.
//! - `tree`: volumes, directories, and the descriptors that stay open.
//! - `sweep`: the order of reading on a disk whose head moves.
//! - `tally`: pure: entries → totals of each volume that owns them. `links`: pure: which inodes were seen.
//! - `mounts`: which mount something is on, which volumes their file system may answer for, what it tells of itself.
//! - `orphans`: directories that hold nothing known.
//! - `pace`: pure: threads, rate, pressure; time and readings come in as arguments.
//! - `sys`: what rustix lacks; the only file with unsafe code.
//!
//! # What is never done
//! No symbolic link is followed below a base, no mount inside a volume is entered, no process is started, nothing is
//! written, no thread is joined, no lock is held while a file system other than /proc is asked.
//!
//! # System calls
//! For a seccomp filter: what measuring calls beyond `start` itself, which only adds what starting a thread takes. The
//! list is the same on x86_64 and aarch64.
//! - Measuring: `openat2` (or, where it is missing, `openat` alone), `openat`, `newfstatat`, `fstat`, `getdents64`, `close`,
//!   `statx`, `fstatfs`.
//! - From /proc and /sys, and what the standard library does with files: `read`, `lseek`, `readlink` (x86_64 only),
//!   `readlinkat`, `fcntl`.
//! - Threads and time: `clone3` (or `clone`), `set_robust_list`, `rseq`, `sigaltstack`, `rt_sigprocmask`, `prctl` (a
//!   thread's name), `gettid`, `sched_getaffinity`, `futex`, `clock_gettime`, `clock_nanosleep`, `nanosleep`, `exit`, `getrandom`,
//!   `mmap`, `munmap`, `mprotect`, `madvise`, `brk`, `prlimit64`.
//! - With [`Config::low_priority`]: `setpriority`, `ioprio_set`. Refused, they change nothing but the priority.
//!
//! Any of `openat2`, `statx` and those two may be refused with `EPERM` or `ENOSYS`: the numbers are the same.

mod links;
mod mounts;
mod open;
mod orphans;
mod pace;
mod schedule;
mod sweep;
mod sys;
mod tally;
mod tree;
mod walk;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use mounts::MountTable;
pub use orphans::{Orphans, Search, SearchConfig, Searching, search};
pub use walk::{Running, measure, start};

/// What to measure: a directory beneath a base directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The base directory as this process sees it. It is trusted: opened as it is, through symbolic links too.
    pub base: PathBuf,
    /// The way from the base to the directory. It is not trusted: it never leaves the base, and no symbolic link on it
    /// is followed. Empty means the base itself.
    pub relative: PathBuf,
    /// What is wanted of it.
    pub wanted: Wanted,
}

/// What is wanted of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The numbers of all that lies in it, and its file system.
    Contents,
    /// Which directory it is and its file system, and nothing of what lies in it: [`State::Complete`] without numbers.
    FileSystem,
}

/// How to measure. Every limit is here; there is no default for any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most threads that read at once. Fewer run while nothing blocks them.
    pub threads_max: NonZeroUsize,
    /// The time for all targets together; whatever is not finished then is delivered as [`State::Timeout`].
    pub total_budget: Option<Duration>,
    /// The time for one target, from when its first directory is opened.
    pub volume_budget: Option<Duration>,
    /// Entries looked at in a second, by all threads together; 0 means no limit.
    pub entries_per_second: u64,
    /// The memory for remembering files with several links, all targets together; see [`State::TooManyLinks`].
    pub links_bytes_max: usize,
    /// The file to read I/O pressure from (`/proc/pressure/io`); `None` never pauses. Where it cannot be read, nothing
    /// pauses either.
    pub pressure_file: Option<PathBuf>,
    /// Run at the lowest processor priority and in the idle I/O class.
    pub low_priority: bool,
    /// Whether the disk below has a head that moves.
    pub rotating: Rotating,
    /// Let a file system answer for a volume that has it to itself; see [`Method::Statfs`].
    pub statfs: bool,
    /// How many of the largest directories to name in [`Measurement::largest`]; with any, nothing is answered by
    /// [`Method::Statfs`].
    pub top_directories: usize,
}

impl Config {
    /// As fast as the machine can, for a person who waits.
    pub fn full_speed() -> Config {
        Config {
            threads_max: const { NonZeroUsize::new(16).unwrap() },
            total_budget: None,
            volume_budget: None,
            entries_per_second: 0,
            links_bytes_max: 256 << 20,
            pressure_file: None,
            low_priority: false,
            rotating: Rotating::Auto,
            statfs: true,
            top_directories: 0,
        }
    }

    /// For a node that has better things to do. The caller adds its time budgets.
    pub fn gentle() -> Config {
        Config {
            threads_max: const { NonZeroUsize::new(2).unwrap() },
            entries_per_second: 100_000,
            links_bytes_max: 64 << 20,
            pressure_file: Some(PathBuf::from("/proc/pressure/io")),
            low_priority: true,
            ..Config::full_speed()
        }
    }
}

/// What kind of disk lies below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotating {
    /// Ask the kernel, and believe it only of drivers that know.
    Auto,
    /// It has a head that moves: read in the order of the inode numbers.
    Yes,
    /// It has none.
    No,
}

/// Declares a closed set of words: one list for the type, its texts and the way back.
macro_rules! words {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order in which they are documented.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// The word for it, in snake case: a label's value, a field in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text { $($text => Ok($name::$variant),)+ _ => Err(UnknownWord(text.to_owned())) }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// How the measuring of a target ended. Only [`State::Complete`] comes with numbers.
    State {
        /// Everything was read: the numbers are true.
        Complete => "complete",
        /// The directory is not there, or went away while it was read. What to do: nothing, if the volume was deleted;
        /// else look for a wrong path.
        Missing => "missing",
        /// The base directory is not there. What to do: see whether its disk is mounted on this node.
        BaseMissing => "base_missing",
        /// The path ends at, or leads through, something that is not a directory. What to do: correct the path.
        NotADirectory => "not_a_directory",
        /// The path is not inside its base: `..` or a symbolic link stands on the way. Links are not followed, because
        /// whoever can write to the base could point them anywhere. What to do: find out who put it there.
        EscapesBase => "escapes_base",
        /// Something inside may not be read. What to do: give the process CAP_DAC_READ_SEARCH; under SELinux the type
        /// spc_t.
        PermissionDenied => "permission_denied",
        /// The file system failed to answer for something inside. What to do: look at the kernel's log; the disk or
        /// the file system may be damaged.
        IoError => "io_error",
        /// The process ran out of descriptors or memory. What to do: raise its limits.
        OutOfResources => "out_of_resources",
        /// More files with several links than the memory for them holds. What to do: raise that limit.
        TooManyLinks => "too_many_links",
        /// Time was up first; what was read until then is no number. What to do: raise the budget or the rate; if it
        /// says so at once on every run, the disk may hang.
        Timeout => "timeout",
        /// The caller ended the measuring early.
        Cancelled => "cancelled",
    }
}

words! {
    /// Where a number comes from.
    Method {
        /// Every entry was looked at.
        Walk => "walk",
        /// The file system's own counters: it holds this volume and nothing else. They include its metadata and files
        /// that are deleted but still open, so they are somewhat more than a walk finds; there is no apparent size.
        Statfs => "statfs",
    }
}

/// A word that is none of a closed set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownWord(pub String);

impl std::fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown word {:?}", self.0)
    }
}

impl std::error::Error for UnknownWord {}

/// What became of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// How it ended.
    pub state: State,
    /// The cause, for people, where the state alone does not say it.
    pub state_detail: Option<String>,
    /// Where the numbers come from; none without numbers.
    pub method: Option<Method>,
    /// Allocated bytes, directories included, each inode once: what `du -s -B1` says.
    pub used_bytes: Option<u64>,
    /// The sizes of files and symbolic links, each inode once, without directories. Sparse files make it larger than
    /// any disk, so 64 bits do not hold it.
    pub apparent_bytes: Option<u128>,
    /// Inodes, each once: what `du -s --inodes` says.
    pub inodes_used: Option<u64>,
    /// Names looked at, the directory itself included.
    pub entries: u64,
    /// Places that could not be read.
    pub errors: u64,
    /// The first few of them.
    pub first_errors: Vec<PlaceError>,
    /// Mount points inside, which were neither entered nor counted.
    pub mounts_skipped: u64,
    /// The largest directories inside with all that they hold, largest first; as many as were asked for.
    pub largest: Vec<(PathBuf, u64)>,
    /// From its first directory to the end.
    pub seconds: f64,
    /// Which directory the target is, whatever paths lead to it; none if it could not be opened.
    pub directory: Option<DirectoryId>,
    /// The file system that the directory lies on. It is there without numbers too, if the directory could be opened.
    pub file_system: Option<FileSystem>,
}

/// A directory's own numbers: two paths with the same lead to one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectoryId {
    /// The device, as `stat` tells it.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

/// A file system, as it was when the directory on it was first opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Major and minor number of the mounted device, `8:1`: the same for all that shares its space, subvolumes too.
    pub device: String,
    /// Its type as the kernel names it: `ext4`, `xfs`.
    pub kind: String,
    /// Whether it can be written to at all. That a mount of it is read-only says nothing here.
    pub is_read_only: bool,
    /// Its size, as `df` tells it.
    pub size_bytes: u64,
    /// What anybody but root can still write. With what is used it makes less than the size: some is kept for root.
    pub available_bytes: u64,
    /// What is in use.
    pub used_bytes: u64,
    /// Its inodes; 0 where it makes them as it needs them.
    pub inodes: u64,
    /// Of those, how many are free.
    pub inodes_free: u64,
}

impl Measurement {
    /// A target of which nothing but its state is known.
    pub fn without_number(state: State, detail: Option<String>) -> Measurement {
        Measurement {
            state,
            state_detail: detail,
            method: None,
            used_bytes: None,
            apparent_bytes: None,
            inodes_used: None,
            entries: 0,
            errors: 0,
            first_errors: Vec::new(),
            mounts_skipped: 0,
            largest: Vec::new(),
            seconds: 0.0,
            directory: None,
            file_system: None,
        }
    }
}

/// A place inside a target that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceError {
    /// Relative to the target's directory; empty for that directory itself.
    pub path: PathBuf,
    /// What the kernel said.
    pub error: String,
}

/// How far a running measurement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Names looked at so far, all targets together.
    pub entries: u64,
    /// Allocated bytes seen so far.
    pub bytes: u64,
    /// A directory that was read lately.
    pub current: Option<PathBuf>,
}
