//! `lp-exporter measure` as a user runs it: what it prints, says and returns, whatever it is given.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

struct Ended {
    code: Option<i32>,
    out: String,
    errors: String,
}

fn measure(place: &Path, arguments: &[OsString]) -> Ended {
    let ended = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .arg("measure")
        .args(arguments)
        .current_dir(place)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ended {
        code: ended.status.code(),
        out: String::from_utf8_lossy(&ended.stdout).into_owned(),
        errors: String::from_utf8_lossy(&ended.stderr).into_owned(),
    }
}

fn words(text: &str) -> Vec<OsString> {
    text.split(' ')
        .map(|word| OsString::from(word.replace("<empty>", "")))
        .collect()
}

/// A directory with something of each kind in it.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("good/inside")).unwrap();
    fs::write(place.path().join("good/file"), [1; 10_000]).unwrap();
    fs::write(place.path().join("plain file"), b"x").unwrap();
    symlink("good", place.path().join("link")).unwrap();
    symlink("nowhere", place.path().join("dangling")).unwrap();
    symlink("round", place.path().join("round")).unwrap();
    place
}

#[test]
fn bad_input_is_told_and_costs_nothing_else() {
    // (arguments, exit code, states in order of the paths, what standard error or the details say)
    let table: &[(&str, i32, &[&str], &[&str])] = &[
        ("good", 0, &["complete"], &[]),
        ("good absent", 3, &["complete", "missing"], &["absent", "No such file"]),
        ("absent good", 3, &["missing", "complete"], &["absent"]),
        ("good/file good", 3, &["not_a_directory", "complete"], &["file"]),
        ("<empty> good", 3, &["missing", "complete"], &["empty"]),
        ("./good/../good", 0, &["complete"], &[]),
        ("link", 0, &["complete"], &["link", "good"]),
        ("dangling good", 3, &["missing", "complete"], &["dangling"]),
        ("round good", 3, &["not_a_directory", "complete"], &["lead in a circle"]),
        ("good good", 0, &["complete"], &["good is given 2 times"]),
        ("--threads 0 good", 2, &[], &["--threads", "1 to 64"]),
        ("--threads 65 good", 2, &[], &["--threads", "64"]),
        ("--threads -1 good", 2, &[], &["-1"]),
        ("--threads many good", 2, &[], &["--threads", "many"]),
        (
            "--time-budget 0s good",
            2,
            &[],
            &["--time-budget", "nothing can be measured"],
        ),
        ("--volume-budget 0 good", 2, &[], &["--volume-budget"]),
        ("--entries-per-second -5 good", 2, &[], &["-5"]),
        (
            "--top 1 --threads 64 --entries-per-second 0 good",
            0,
            &["complete"],
            &[],
        ),
        ("--output xml good", 2, &[], &["xml", "table, json, prometheus"]),
        ("--nonsense good", 2, &[], &["--nonsense"]),
    ];
    let place = place();
    for (arguments, code, states, said) in table {
        let mut all = words("--output json");
        if arguments.contains("--output") {
            all.clear();
        }
        all.extend(words(arguments));
        let ended = measure(place.path(), &all);
        assert_eq!(ended.code, Some(*code), "{arguments}: {}", ended.errors);
        let found: Value = serde_json::from_str(&ended.out).unwrap_or(json!({"measurements": []}));
        let found = found["measurements"].as_array().unwrap();
        let found_states: Vec<&str> = found.iter().map(|one| one["state"].as_str().unwrap()).collect();
        assert_eq!(found_states, *states, "{arguments}");
        for word in *said {
            let told = format!("{}{}", ended.errors, ended.out);
            assert!(told.contains(word), "{arguments}: {word:?} is not in {told}");
        }
        for one in found {
            let is_complete = one["state"] == "complete";
            for number in ["used_bytes", "apparent_bytes", "inodes_used"] {
                assert_eq!(one[number].is_u64(), is_complete, "{arguments}: {number} of {one}");
            }
        }
    }
}

#[test]
fn the_json_is_the_contract() {
    let place = place();
    let name = OsString::from_vec(b"not \xff text".to_vec());
    fs::create_dir(place.path().join(&name)).unwrap();
    let ended = measure(
        place.path(),
        &[words("--output json good").as_slice(), &[name]].concat(),
    );
    let mut found: Value = serde_json::from_str(&ended.out).unwrap();
    let used = du(&place.path().join("good"), "-B1");
    for one in found["measurements"].as_array_mut().unwrap() {
        assert!(one["seconds"].as_f64().unwrap() < 60.0);
        one["seconds"] = json!(0);
    }
    let expected = json!({
        "path": "good", "state": "complete", "state_detail": null, "method": "walk", "used_bytes": used,
        "apparent_bytes": 10_000, "inodes_used": 3, "entries": 3, "errors": 0, "first_errors": [], "mounts_skipped": 0,
        "followed_symlink_to": null, "seconds": 0
    });
    assert_eq!((&found["version"], &found["measurements"][0]), (&json!(1), &expected));
    assert_eq!(found["measurements"][1]["path_base64"], json!("bm90IP8gdGV4dA=="));
    assert_eq!(found["measurements"][1]["path"], json!("not \u{fffd} text"));
}

fn du(path: &Path, unit: &str) -> u64 {
    let said = Command::new("du").args(["-s", unit]).arg(path).output().unwrap().stdout;
    let said = String::from_utf8(said).unwrap();
    said.split_whitespace().next().unwrap().parse().unwrap()
}
