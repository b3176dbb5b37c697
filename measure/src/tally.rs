//! Entries to totals. Pure: no file system, no clock.
//!
//! A thread gathers what it sees in a directory, or in several of one owner, in a [`Batch`] and adds that to the tally of each volume that owns the
//! directories. Files with several links are decided only there, because each volume counts them by itself.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;

use crate::links::Seen;
use crate::{Measurement, Method, PlaceError, State};

/// So many places are named; the rest is only counted.
const FIRST_ERRORS: usize = 10;

/// What was seen in one directory, or in several of one owner.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) used: u128,
    pub(crate) apparent: u128,
    pub(crate) inodes: u64,
    pub(crate) entries: u64,
    pub(crate) mounts_skipped: u64,
    pub(crate) linked: Vec<Linked>,
}

/// A file with several links.
pub(crate) struct Linked {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) used: u64,
    pub(crate) apparent: u64,
}

impl Batch {
    /// A directory: its blocks and its inode, but not its size.
    pub(crate) fn directory(&mut self, used: u64) {
        self.used += u128::from(used);
        self.inodes += 1;
        self.entries += 1;
    }

    /// Anything that has one name only.
    pub(crate) fn single(&mut self, used: u64, apparent: u64) {
        self.used += u128::from(used);
        self.apparent += u128::from(apparent);
        self.inodes += 1;
        self.entries += 1;
    }

    /// Anything that has more than one.
    pub(crate) fn linked(&mut self, file: Linked) {
        self.entries += 1;
        self.linked.push(file);
    }

    /// A name under which a mount begins.
    pub(crate) fn mount(&mut self) {
        self.entries += 1;
        self.mounts_skipped += 1;
    }

    pub(crate) fn clear(&mut self) {
        let mut linked = std::mem::take(&mut self.linked);
        linked.clear();
        *self = Batch {
            linked,
            ..Batch::default()
        };
    }
}

/// The totals of one volume.
pub(crate) struct Tally {
    used: u128,
    apparent: u128,
    inodes: u64,
    entries: u64,
    mounts_skipped: u64,
    links: Seen,
    state: State,
    detail: Option<String>,
    errors: u64,
    first_errors: Vec<PlaceError>,
    /// The least of them first: of equal ones, the last by name.
    largest: BinaryHeap<Reverse<(u64, Reverse<PathBuf>)>>,
    statfs: Option<(u64, u64)>,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            used: 0,
            apparent: 0,
            inodes: 0,
            entries: 0,
            mounts_skipped: 0,
            links: Seen::default(),
            state: State::Complete,
            detail: None,
            errors: 0,
            first_errors: Vec::new(),
            largest: BinaryHeap::new(),
            statfs: None,
        }
    }

    /// Adds what was seen, and returns the bytes that are new in this volume.
    pub(crate) fn add(&mut self, batch: &Batch) -> u128 {
        let mut used = batch.used;
        self.apparent += batch.apparent;
        self.inodes += batch.inodes;
        self.entries += batch.entries;
        self.mounts_skipped += batch.mounts_skipped;
        for file in &batch.linked {
            if self.links.insert(file.device, file.inode) {
                used += u128::from(file.used);
                self.apparent += u128::from(file.apparent);
                self.inodes += 1;
            }
        }
        self.used += used;
        used
    }

    /// The file system's own answer, instead of a walk.
    pub(crate) fn statfs(&mut self, used_bytes: u64, inodes_used: u64) {
        self.entries = 1;
        self.statfs = Some((used_bytes, inodes_used));
    }

    /// A place that cannot be read: the first one decides the state.
    pub(crate) fn error(&mut self, state: State, place: PlaceError) {
        self.errors += 1;
        self.entries += 1;
        if self.state == State::Complete {
            self.state = state;
            // An empty path is the volume's own directory.
            let is_own = place.path.as_os_str().is_empty();
            let detail = format!("{}: {}", place.path.display(), place.error);
            self.detail = Some(if is_own { place.error.clone() } else { detail });
        }
        if self.first_errors.len() < FIRST_ERRORS {
            self.first_errors.push(place);
        }
    }

    /// Ends it without a number, for a reason that is no place's. A volume that has gone explains any place's error.
    pub(crate) fn end(&mut self, state: State, detail: Option<String>) {
        if self.state == State::Complete || state == State::Missing {
            self.state = state;
            self.detail = detail;
        }
    }

    /// Offers a directory with all inside it for the list of the largest.
    pub(crate) fn offer(&mut self, count: usize, bytes: u64, path: impl FnOnce() -> PathBuf) {
        let is_full = self.largest.len() >= count;
        let least = self.largest.peek().filter(|_| is_full);
        if least.is_some_and(|Reverse((least, _))| bytes < *least) || count == 0 {
            return;
        }
        self.largest.push(Reverse((bytes, Reverse(path()))));
        if is_full {
            self.largest.pop();
        }
    }

    /// The memory that its files with several links take.
    pub(crate) fn links_bytes(&self) -> usize {
        self.links.bytes()
    }

    /// Forgets them.
    pub(crate) fn forget_links(&mut self) {
        self.links = Seen::default();
    }

    /// The result. Numbers only if everything was read.
    pub(crate) fn measurement(&mut self, seconds: f64) -> Measurement {
        let mut largest: Vec<(PathBuf, u64)> = std::mem::take(&mut self.largest)
            .into_iter()
            .map(|Reverse((bytes, Reverse(path)))| (path, bytes))
            .collect();
        largest.sort_by(|(path, bytes), (other_path, other)| other.cmp(bytes).then_with(|| path.cmp(other_path)));
        let mut result = Measurement {
            entries: self.entries,
            errors: self.errors,
            first_errors: std::mem::take(&mut self.first_errors),
            mounts_skipped: self.mounts_skipped,
            largest,
            seconds,
            ..Measurement::without_number(self.state, self.detail.take())
        };
        match (self.state, self.statfs) {
            (State::Complete, Some((used, inodes))) => {
                result.method = Some(Method::Statfs);
                result.used_bytes = Some(used);
                result.inodes_used = Some(inodes);
            }
            (State::Complete, None) => {
                result.method = Some(Method::Walk);
                // No disk holds 2^64 bytes; a file system that says so is not worth a wrong number.
                result.used_bytes = Some(u64::try_from(self.used).unwrap_or(u64::MAX));
                result.apparent_bytes = Some(self.apparent);
                result.inodes_used = Some(self.inodes);
            }
            _ => result.largest.clear(),
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> Linked {
        Linked {
            device: 1,
            inode,
            used: 4096,
            apparent: 100,
        }
    }

    #[test]
    fn a_file_with_several_links_counts_once_in_each_volume() {
        let (mut outer, mut inner) = (Tally::new(), Tally::new());
        let mut batch = Batch::default();
        batch.linked(file(7));
        batch.linked(file(7));
        batch.linked(file(8));
        assert_eq!(inner.add(&batch), 8192);
        assert_eq!(outer.add(&batch), 8192);
        assert_eq!(outer.add(&batch), 0);
        let result = inner.measurement(0.0);
        assert_eq!((result.used_bytes, result.apparent_bytes), (Some(8192), Some(200)));
        assert_eq!((result.inodes_used, result.entries), (Some(2), 3));
    }

    #[test]
    fn sizes_that_overflow_64_bits_are_added_whole() {
        let mut tally = Tally::new();
        let mut batch = Batch::default();
        for _ in 0..4 {
            batch.single(0, i64::MAX as u64);
        }
        tally.add(&batch);
        assert_eq!(
            tally.measurement(0.0).apparent_bytes,
            Some(4 * u128::from(i64::MAX as u64))
        );
    }

    #[test]
    fn an_error_leaves_no_number_and_the_first_one_names_the_state() {
        let mut tally = Tally::new();
        for (index, state) in [State::PermissionDenied, State::IoError]
            .into_iter()
            .cycle()
            .take(15)
            .enumerate()
        {
            tally.error(
                state,
                PlaceError {
                    path: format!("p{index}").into(),
                    error: "why".to_owned(),
                },
            );
        }
        let result = tally.measurement(0.0);
        assert_eq!(
            (result.state, result.errors, result.first_errors.len()),
            (State::PermissionDenied, 15, 10)
        );
        assert_eq!(result.state_detail.as_deref(), Some("p0: why"));
        assert_eq!(
            (
                result.used_bytes,
                result.apparent_bytes,
                result.inodes_used,
                result.method
            ),
            (None, None, None, None)
        );
    }

    #[test]
    fn the_largest_are_kept_and_sorted() {
        let mut tally = Tally::new();
        for bytes in [5, 9, 1, 7, 3] {
            tally.offer(3, bytes, || PathBuf::from(bytes.to_string()));
        }
        let names: Vec<_> = tally
            .measurement(0.0)
            .largest
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect();
        assert_eq!(names, [9, 7, 5]);
    }
}
