//! `lp-exporter measure` as a user runs it: what it prints, says and returns, whatever it is given.
#![allow(clippy::unwrap_used)]

// The tests of the measuring itself have more use for it.
#[allow(dead_code)]
#[path = "../measure/tests/broken/server.rs"]
mod server;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::{ILL, Operation, Server, Trouble};

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

/// Names are anybody's: none of them drives a terminal, and no two of them become one series.
#[test]
fn hostile_names() {
    let place = tempfile::tempdir().unwrap();
    let escape = OsString::from_vec(b"d\x1b[31m\x1b]0;pwned\x07\n".to_vec());
    fs::create_dir_all(place.path().join(&escape).join("sub")).unwrap();
    symlink(&escape, place.path().join("link")).unwrap();
    fs::write(place.path().join(&escape).join("file"), b"x").unwrap();
    let file_below = Path::new(&escape).join("file/below").into_os_string();
    for arguments in [
        vec!["link".into()],
        vec![escape.clone(), file_below],
        vec!["link/".into()],
    ] {
        let ended = measure(place.path(), &arguments);
        let told = ended.out + &ended.errors;
        let odd = told.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(odd, None, "{told:?}");
        assert!(!told.contains("pwned\n"), "{told:?}");
    }
    let names = [&b"a\xff"[..], b"a\xfe", br"a\xff"].map(|name| OsString::from_vec(name.to_vec()));
    for name in &names {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    let ended = measure(
        place.path(),
        &[words("--output prometheus").as_slice(), &names].concat(),
    );
    let mut lines: Vec<&str> = ended.out.lines().filter(|line| !line.starts_with('#')).collect();
    let count = lines.len();
    lines.dedup_by_key(|line| line.split(' ').next());
    assert_eq!((lines.len(), count), (12, 12), "{}", ended.out);
}

#[test]
fn the_total_counts_what_has_a_number_once() {
    let place = place();
    fs::write(place.path().join("good/inside/file"), [1; 50_000]).unwrap();
    let last_line = |arguments: &str| {
        let ended = measure(place.path(), &words(arguments));
        let lines: Vec<String> = ended.out.lines().map(str::to_owned).collect();
        lines
            .into_iter()
            .find(|line| line.contains("total"))
            .unwrap_or_default()
    };
    let of = |arguments: &str| {
        last_line(arguments)
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let human = bytesize::ByteSize(du(&place.path().join("good"), "-B1"))
        .display()
        .iec()
        .to_string();
    assert_eq!(of("good good/inside"), human);
    assert_eq!(of("good absent"), human);
    assert!(last_line("good absent").contains("total of 1 of 2 paths"));
    assert!(last_line("absent nowhere").trim_start().starts_with('-'));
}

#[test]
fn nobody_to_tell_is_no_failure() {
    let place = place();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .args(["measure", "good", "--output", "json"])
        .current_dir(place.path())
        .stderr(full)
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stdout.starts_with(b"{"));
}

/// Where the path itself hangs, not even the words of it may wait: the others are measured, and all is told in time.
#[test]
fn a_path_that_does_not_answer() {
    const BUDGET: Duration = Duration::from_secs(4);
    /// What the clock of a busy machine is granted.
    const LATE: Duration = Duration::from_secs(4);
    let server = match Server::start(Trouble::Hangs(Operation::Attributes, ILL)) {
        Ok(server) => server,
        Err(why) => {
            let all = std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL");
            assert!(all.is_none_or(|all| all != "1"), "a path that does not answer: {why}");
            return eprintln!("skipped a path that does not answer: {why}");
        }
    };
    let place = place();
    let ill = server.path.join(ILL);
    let [out, errors] = ["out", "errors"].map(|name| place.path().join(name));
    let mut running = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .args(["measure", "--output", "json", "--time-budget"])
        .arg(format!("{}s", BUDGET.as_secs()))
        .arg(&ill)
        .args(["good", "absent"])
        .current_dir(place.path())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let told = || fs::read_to_string(&errors).unwrap();
    while began.elapsed() < BUDGET + LATE && !told().contains("this process ends when it does") {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (document, told) = (fs::read_to_string(&out).unwrap(), told());
    let has_ended = running.try_wait().unwrap().is_some();
    // Now it ends, whatever it waits for.
    drop(server);
    let ended = running.wait().unwrap();
    assert!(!has_ended, "nothing hung: {document} {told}");
    let found: Value = serde_json::from_str(&document).expect("the result in time");
    let of = |index: usize, field: &str| found["measurements"][index][field].clone();
    assert_eq!(
        [0, 1, 2].map(|index| of(index, "state")),
        ["timeout", "complete", "missing"],
        "{document}"
    );
    assert_eq!(of(0, "state_detail"), "the path itself does not answer");
    assert_eq!(of(1, "used_bytes"), du(&place.path().join("good"), "-B1"));
    let ill = ill.display();
    for expected in [
        format!("no answer yet from {ill}"),
        format!("below {ill} does not answer"),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in {told}");
    }
    // The kernel may end what was killed in its midst in its own way.
    assert!([Some(3), None].contains(&ended.code()), "{ended:?}");
}
