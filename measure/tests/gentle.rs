//! Pausing for others, by a pressure file that the test writes in the kernel's form.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use common::{in_memory, whole};
use lp_measure::{Config, Measurement, Running, State, start};

const ENTRIES: u64 = 2000;
const PER_SECOND: u64 = 2000;

fn planted() -> tempfile::TempDir {
    let base = in_memory();
    for number in 1..ENTRIES {
        File::create(base.path().join(number.to_string())).unwrap();
    }
    base
}

/// The kernel's file, changed at one stroke as the kernel does.
fn tell(file: &Path, stalled: Duration) {
    let next = file.with_extension("next");
    let zero = "avg10=0.00 avg60=0.00 avg300=0.00 total=";
    fs::write(&next, format!("some {zero}{}\nfull {zero}0\n", stalled.as_micros())).unwrap();
    fs::rename(next, file).unwrap();
}

/// Measures while a simulated disk adds to its pressure every 5 ms: `waits` says whether somebody waits.
fn measure_under(total_budget: Duration, waits: impl Fn(&Running, Duration) -> bool) -> (Measurement, Duration) {
    let base = planted();
    let directory = in_memory();
    let file: PathBuf = directory.path().join("io");
    let mut stalled = Duration::ZERO;
    tell(&file, stalled);
    let config = Config {
        entries_per_second: PER_SECOND,
        total_budget: Some(total_budget),
        pressure_file: Some(file.clone()),
        statfs: false,
        ..Config::gentle()
    };
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    let running = start(vec![whole(base.path())], config, move |_, found| {
        sender.send(found).unwrap()
    });
    let mut before = Instant::now();
    loop {
        match receiver.recv_timeout(Duration::from_millis(5)) {
            Ok(found) => return (found, began.elapsed()),
            Err(RecvTimeoutError::Timeout) => {
                let elapsed = before.elapsed();
                before = Instant::now();
                if waits(&running, began.elapsed()) {
                    stalled += elapsed;
                    tell(&file, stalled);
                }
            }
            Err(RecvTimeoutError::Disconnected) => panic!("nothing was delivered"),
        }
    }
}

#[test]
fn only_us_on_the_disk_hardly_pauses() {
    let entries = std::cell::Cell::new(0);
    let (found, took) = measure_under(Duration::from_secs(20), |running, _| {
        // Somebody waits exactly while we get on: that is us.
        let now = running.progress().entries;
        entries.replace(now) != now
    });
    assert_eq!((found.state, found.entries), (State::Complete, ENTRIES));
    // It would have paused for ten seconds more, half of what it has.
    assert!(took < Duration::from_secs(4), "{took:?} for a second's work");
}

#[test]
fn others_on_the_disk_make_us_pause_until_they_are_done() {
    let (found, took) = measure_under(Duration::from_secs(20), |_, elapsed| elapsed < Duration::from_secs(3));
    assert_eq!((found.state, found.entries), (State::Complete, ENTRIES));
    assert!(
        took > Duration::from_millis(3500),
        "{took:?}: it read while others waited"
    );
    assert!(took < Duration::from_secs(9), "{took:?}: it went on pausing");
}

#[test]
fn pausing_leaves_half_of_the_time() {
    // A second's work, somebody else all along, and six seconds in all: it is done in time.
    let (found, took) = measure_under(Duration::from_secs(6), |_, _| true);
    assert_eq!((found.state, found.entries), (State::Complete, ENTRIES), "{took:?}");
    assert!(took > Duration::from_millis(1500), "{took:?}: it did not pause");
}

#[test]
fn a_kernel_that_does_not_tell_makes_nobody_pause() {
    let base = planted();
    let config = Config {
        pressure_file: Some("/no/such/file".into()),
        statfs: false,
        ..Config::gentle()
    };
    let found = lp_measure::measure(vec![whole(base.path())], config).remove(0);
    assert_eq!((found.state, found.entries), (State::Complete, ENTRIES));
}
