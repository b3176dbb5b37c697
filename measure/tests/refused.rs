//! What may not be read is no number.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use common::{inside, whole};
use lp_measure::{Config, Measurement, State, Target, measure};
use rustix::process::Uid;

/// Measures as somebody without rights, whoever runs the tests.
fn as_nobody(targets: Vec<Target>) -> Vec<Measurement> {
    let thread = thread::spawn(|| {
        if common::is_root() {
            let nobody = Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        measure(targets, Config::full_speed())
    });
    thread.join().unwrap()
}

#[test]
fn a_directory_without_permission_leaves_its_volume_without_a_number_and_others_with() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path();
    for directory in ["closed/in", "unsearchable/in", "many", "fine/in"] {
        fs::create_dir_all(path.join(directory)).unwrap();
        fs::write(path.join(directory).join("file"), vec![1; 5000]).unwrap();
    }
    for number in 0..30 {
        fs::create_dir(path.join(format!("many/{number}"))).unwrap();
        fs::set_permissions(path.join(format!("many/{number}")), Permissions::from_mode(0o000)).unwrap();
    }
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(path.join("closed/in"), Permissions::from_mode(0o000)).unwrap();
    // Names can be listed there, but not looked at.
    fs::set_permissions(path.join("unsearchable/in"), Permissions::from_mode(0o444)).unwrap();
    let targets = ["closed", "unsearchable", "many", "fine", "closed/in"].map(|relative| inside(path, relative));
    let found = as_nobody(targets.to_vec());
    let places = |found: &Measurement| {
        let paths = found
            .first_errors
            .iter()
            .map(|place| place.path.to_str().unwrap().to_owned());
        paths.collect::<Vec<_>>()
    };
    for refused in [&found[0], &found[1], &found[2], &found[4]] {
        assert_eq!(refused.state, State::PermissionDenied, "{refused:?}");
        assert_eq!(
            (refused.used_bytes, refused.inodes_used, refused.apparent_bytes),
            (None, None, None)
        );
    }
    assert_eq!((found[0].errors, places(&found[0])), (1, vec!["in".to_owned()]));
    assert_eq!((found[1].errors, places(&found[1])), (1, vec!["in/file".to_owned()]));
    assert_eq!((found[2].errors, found[2].first_errors.len()), (30, 10));
    assert_eq!((found[3].state, found[3].errors), (State::Complete, 0));
    for directory in ["closed/in", "unsearchable/in"] {
        fs::set_permissions(path.join(directory), Permissions::from_mode(0o755)).unwrap();
    }
    for number in 0..30 {
        fs::set_permissions(path.join(format!("many/{number}")), Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(
        measure(vec![whole(path)], Config::full_speed())[0].state,
        State::Complete
    );
}
