//! File systems that fail, hang and lie, by a FUSE server of the test's own. Needs root and /dev/fuse.
//!
//! Whatever one volume's file system does, it has its state, and never a number that is not true; the other volumes, on
//! the same file system and elsewhere, have theirs.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod server;

use std::fs;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use common::{du, inside, skip, whole};
use lp_measure::{Config, Measurement, Rotating, State, start};
use rustix::io::Errno;
use server::{BAD, ILL, INODE_BYTES, ODD, Operation, Server, Trouble, VOLUME_INODES, WELL};

/// Far more than a healthy volume takes on a busy machine; what takes longer never ends.
const BUDGET: Duration = Duration::from_secs(10);
/// What the clock of a busy machine is granted.
const LATE: Duration = Duration::from_secs(2);

/// What is expected of the ill volume.
struct Expected {
    state: State,
    /// The place that is named; none where it is the volume's own path that could not be opened.
    place: Option<String>,
    /// In the place's error, or else in the state's detail.
    says: &'static str,
}

impl Expected {
    fn place(state: State, place: &str, says: &'static str) -> Expected {
        Expected {
            state,
            place: Some(place.to_owned()),
            says,
        }
    }

    fn path(state: State, says: &'static str) -> Expected {
        Expected {
            state,
            place: None,
            says,
        }
    }

    fn complete() -> Expected {
        Expected::path(State::Complete, "")
    }

    fn timeout() -> Expected {
        Expected::path(State::Timeout, "the time for all together was up")
    }
}

/// Whether there can be such a file system here; says so where not.
fn can_serve() -> bool {
    let served = Server::start(Trouble::OneAtATime);
    if let Err(why) = &served {
        skip("broken file systems", why);
    }
    served.is_ok()
}

/// Measures the ill volume, the well one beside it, and one that lies elsewhere.
fn check(trouble: Trouble, expected: &Expected) {
    let healthy = tempfile::tempdir().unwrap();
    fs::write(healthy.path().join("file"), vec![1; 5000]).unwrap();
    for rotating in [Rotating::No, Rotating::Yes] {
        let server = Server::start(trouble).unwrap();
        let what = format!("{trouble:?}, rotating {rotating:?}");
        let config = Config {
            total_budget: Some(BUDGET),
            rotating,
            ..Config::full_speed()
        };
        let targets = vec![
            inside(&server.path, ILL),
            inside(&server.path, WELL),
            whole(healthy.path()),
        ];
        let began = Instant::now();
        let (sender, receiver) = channel();
        let _running = start(targets, config, move |index, found| {
            // The receiver ends with the test.
            let _ = sender.send((index, began.elapsed(), found));
        });
        for _ in 0..3 {
            let (index, after, found) = receiver
                .recv_timeout(BUDGET + LATE)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            match index {
                0 => check_ill(&what, expected, &found),
                1 => check_numbers(&what, &found, VOLUME_INODES * INODE_BYTES),
                _ => check_numbers(&what, &found, du(healthy.path(), &["-B1"])),
            }
            let is_late = index > 0 && after >= BUDGET;
            assert!(!is_late, "{what}: volume {index} was delivered after {after:?}");
        }
    }
}

fn check_numbers(what: &str, found: &Measurement, used_bytes: u64) {
    assert_eq!(
        (found.state, found.used_bytes, found.errors),
        (State::Complete, Some(used_bytes), 0),
        "{what}: {found:?}"
    );
}

fn check_ill(what: &str, expected: &Expected, found: &Measurement) {
    if expected.state == State::Complete {
        check_numbers(what, found, VOLUME_INODES * INODE_BYTES);
        return assert_eq!(found.inodes_used, Some(VOLUME_INODES), "{what}: {found:?}");
    }
    assert_eq!(
        (
            found.state,
            found.used_bytes,
            found.apparent_bytes,
            found.inodes_used,
            found.method
        ),
        (expected.state, None, None, None, None),
        "{what}: {found:?}"
    );
    let detail = found.state_detail.as_ref().unwrap();
    assert!(detail.contains(expected.says), "{what}: {found:?}");
    match &expected.place {
        Some(place) => {
            assert_eq!((found.errors, found.first_errors.len()), (1, 1), "{what}: {found:?}");
            let first = &found.first_errors[0];
            assert_eq!(first.path.to_str(), Some(&place[..]), "{what}: {found:?}");
            assert!(first.error.contains(expected.says), "{what}: {found:?}");
        }
        None => assert_eq!((found.errors, found.first_errors.len()), (0, 0), "{what}: {found:?}"),
    }
}

#[test]
fn what_fails_is_a_state_and_a_place() {
    if !can_serve() {
        return;
    }
    use Operation::{Attributes, Lookup, Open, Read};
    const STALE: &str = "Stale file handle";
    const IO: &str = "Input/output error";
    let (bad, odd) = (format!("{ODD}/{BAD}"), ODD);
    for (operation, name, error, expected) in [
        (Lookup, BAD, Errno::STALE, Expected::place(State::IoError, &bad, STALE)),
        (Lookup, ODD, Errno::STALE, Expected::place(State::IoError, odd, STALE)),
        (
            Attributes,
            ODD,
            Errno::STALE,
            Expected::place(State::IoError, odd, STALE),
        ),
        (Open, ODD, Errno::STALE, Expected::place(State::IoError, odd, STALE)),
        (Read, ODD, Errno::STALE, Expected::place(State::IoError, odd, STALE)),
        (Lookup, ILL, Errno::STALE, Expected::path(State::IoError, STALE)),
        (Attributes, ILL, Errno::STALE, Expected::path(State::IoError, STALE)),
        (Lookup, BAD, Errno::IO, Expected::place(State::IoError, &bad, IO)),
        (Attributes, BAD, Errno::IO, Expected::place(State::IoError, &bad, IO)),
        (Read, ODD, Errno::IO, Expected::place(State::IoError, odd, IO)),
        (Read, ILL, Errno::IO, Expected::place(State::IoError, "", IO)),
        (
            Read,
            ODD,
            Errno::UCLEAN,
            Expected::place(State::IoError, odd, "needs cleaning"),
        ),
        (
            Read,
            ODD,
            Errno::BADMSG,
            Expected::place(State::IoError, odd, "Bad message"),
        ),
        (
            Lookup,
            BAD,
            Errno::NAMETOOLONG,
            Expected::place(State::IoError, &bad, "name too long"),
        ),
        (
            Lookup,
            ODD,
            Errno::NAMETOOLONG,
            Expected::place(State::IoError, odd, "name too long"),
        ),
        (
            Lookup,
            ILL,
            Errno::NAMETOOLONG,
            Expected::path(State::Missing, "name too long"),
        ),
        (
            Lookup,
            BAD,
            Errno::LOOP,
            Expected::place(State::IoError, &bad, "inside itself"),
        ),
        (
            Lookup,
            ODD,
            Errno::LOOP,
            Expected::place(State::IoError, odd, "inside itself"),
        ),
        (
            Lookup,
            ILL,
            Errno::LOOP,
            Expected::path(State::EscapesBase, "not followed"),
        ),
        (
            Lookup,
            ODD,
            Errno::ACCESS,
            Expected::place(State::PermissionDenied, odd, "Permission denied"),
        ),
        (
            Read,
            ODD,
            Errno::ACCESS,
            Expected::place(State::PermissionDenied, odd, "Permission denied"),
        ),
        (
            Lookup,
            ILL,
            Errno::ACCESS,
            Expected::path(State::PermissionDenied, "Permission denied"),
        ),
        (
            Lookup,
            BAD,
            Errno::NOMEM,
            Expected::place(State::OutOfResources, &bad, "Cannot allocate memory"),
        ),
        (
            Read,
            ODD,
            Errno::NFILE,
            Expected::place(State::OutOfResources, odd, "Too many open files"),
        ),
        // The server behind it is gone.
        (
            Lookup,
            ODD,
            Errno::NOTCONN,
            Expected::place(State::IoError, odd, "not connected"),
        ),
        // Nobody may take this for a name that is gone.
        (
            Lookup,
            ODD,
            Errno::TIMEDOUT,
            Expected::place(State::IoError, odd, "timed out"),
        ),
    ] {
        check(Trouble::Fails(operation, name, error), &expected);
    }
}

/// All at once: each takes as long as its budget.
#[test]
fn what_hangs_is_a_timeout_and_costs_no_other_volume_its_number() {
    if !can_serve() {
        return;
    }
    use Operation::{Attributes, Lookup, Open, Read};
    thread::scope(|scope| {
        for (operation, name) in [
            (Lookup, ILL),
            (Attributes, ILL),
            (Read, ILL),
            (Lookup, ODD),
            (Attributes, ODD),
            (Open, ODD),
            (Read, ODD),
            (Lookup, BAD),
            (Attributes, BAD),
        ] {
            scope.spawn(move || check(Trouble::Hangs(operation, name), &Expected::timeout()));
        }
    });
}

#[test]
fn what_is_told_in_other_forms_is_counted_all_the_same() {
    if !can_serve() {
        return;
    }
    for trouble in [Trouble::UnknownKinds, Trouble::OneAtATime, Trouble::WithoutDots] {
        check(trouble, &Expected::complete());
    }
}

#[test]
fn a_directory_inside_itself_counts_once_or_is_an_error() {
    if !can_serve() {
        return;
    }
    // The kernel knows that it is the same one, and refuses to go there.
    let place = format!("{ODD}/extra 42");
    let refused = Expected::place(State::IoError, &place, "shows a directory inside itself");
    check(Trouble::ItselfInside, &refused);
    // To us another one with the same number looks the same.
    check(Trouble::SameInodeInside, &refused);
}

#[test]
fn a_directory_without_an_end_is_a_timeout_in_bounded_memory() {
    if !can_serve() {
        return;
    }
    const GROWTH_BYTES_MAX: u64 = 64 << 20;
    let before = resident_bytes();
    thread::scope(|scope| {
        for trouble in [
            Trouble::EndlessFiles,
            Trouble::EndlessDirectories,
            Trouble::EndlessUnknownKinds,
        ] {
            scope.spawn(move || check(trouble, &Expected::timeout()));
        }
    });
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{growth} bytes more");
}

/// The most that this process ever held.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}
