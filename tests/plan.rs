//! `lp-exporter plan`: dumps in tests/dumps/ against whole documents in tests/expected/, dumps that are none, other names for
//! a bug report, and the live cluster.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::Parser;
use lp_exporter::cli::{self, Cli};
use lp_exporter::dump::Dump;
use lp_exporter::planning::{Settings, plan_listed};
use lp_exporter::volumes::node_plan::NodePlan;
use lp_exporter::volumes::volume::Node;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use support::api_server::{ApiServer, Right};
use support::objects::{self, Volume};

const DUMPS: [&str; 7] = ["local-path", "makers", "affinity", "nodes", "bad", "empty", "one-line"];

#[test]
fn dumps_as_json() {
    for name in DUMPS {
        check(
            &format!("plan-{name}.json"),
            &["--from-file", &dump(name), "--output", "json"],
        );
    }
}

#[test]
fn dumps_as_tables() {
    for name in ["local-path", "nodes", "bad", "empty"] {
        check(&format!("plan-{name}.txt"), &["--from-file", &dump(name)]);
    }
}

#[test]
fn dumps_with_other_names() {
    for name in ["local-path", "affinity", "bad"] {
        check(
            &format!("plan-{name}-redacted.json"),
            &["--from-file", &dump(name), "--output", "json", "--redact"],
        );
    }
}

#[test]
fn every_volume_of_a_dump_is_in_its_plan() {
    for name in DUMPS {
        let text = fs::read_to_string(root().join(dump(name))).expect("a dump of ours");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let is_volume = |object: &&Value| {
            object["kind"] == "PersistentVolume" && (object["apiVersion"] == "v1" || object["apiVersion"].is_null())
        };
        let listed = document["items"].as_array().into_iter().flatten().filter(is_volume);
        let plan = json_of(&run(&["--from-file", &dump(name), "--output", "json"], None));
        let nodes = plan["nodes"].as_array().into_iter().flatten();
        let planned: usize = nodes.map(|node| node["volumes"].as_array().map_or(0, Vec::len)).sum();
        let skipped = plan["skipped"].as_array().map_or(0, Vec::len);
        assert_eq!(planned + skipped, listed.count(), "{name}: {plan:#}");
    }
}

#[test]
fn standard_input_is_a_dump_too() {
    let text = fs::read(root().join(dump("local-path"))).expect("a dump of ours");
    let from_file = run(&["--from-file", &dump("local-path")], None);
    for text in [text.clone(), [b"\xef\xbb\xbf".as_slice(), &text].concat()] {
        let output = run(&["--from-file", "-"], Some(&text));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, from_file.stdout);
    }
}

#[test]
fn what_is_no_dump_is_told() {
    let whole = fs::read(root().join(dump("local-path"))).expect("a dump of ours");
    let cut = &whole[..whole.len() / 2];
    let lines = cut.iter().filter(|byte| **byte == b'\n').count() + 1;
    for (name, text, expected) in [
        ("empty", &b""[..], "it is empty; make it with: kubectl get"),
        (
            "blank",
            b" \n",
            "it is cut off: EOF while parsing a value at line 2 column 0",
        ),
        (
            "cut off",
            cut,
            &format!("it is cut off: EOF while parsing a string at line {lines} column"),
        ),
        (
            "names",
            b"persistentvolume/pvc-a1\n",
            "it is not JSON: expected value at line 1 column 1; make it with: kubectl get",
        ),
        (
            "HTML",
            b"<!DOCTYPE html>\n<html>",
            "it is not JSON: expected value at line 1 column 1",
        ),
        (
            "YAML",
            b"apiVersion: v1\nitems: []\n",
            "it is not JSON: expected value at line 1 column 1",
        ),
        (
            "an object",
            b"{\"apiVersion\": \"v1\",\n\"kind\": \"PersistentVolume\"}",
            "it is of the kind \"PersistentVolume\", not a List at line 2 column",
        ),
        (
            "a list of one kind",
            b"{\"items\": [], \"kind\": \"PersistentVolumeList\"}",
            "it is of the kind \"PersistentVolumeList\", not a List",
        ),
        (
            "an array",
            b"[{\"kind\": \"PersistentVolume\"}]",
            "invalid type: sequence, expected a List of objects at line 1",
        ),
        (
            "a number",
            b"7",
            "invalid type: integer `7`, expected a List of objects at line 1 column 1",
        ),
        (
            "a List in a List",
            b"{\"items\": [{},\n {\"kind\": \"List\", \"items\": [{}]}], \"kind\": \"List\"}",
            "one of its objects is a List itself, whose objects would be left out at line 2 column 2; make it with: kubectl",
        ),
        (
            "a list of one kind in a List",
            b"{\"items\": [{\"items\": [], \"kind\": \"PersistentVolumeList\"}], \"kind\": \"List\"}",
            "one of its objects is a List itself, whose objects would be left out at line 1 column 12",
        ),
        (
            "no kind",
            b"{\"items\": []}",
            "missing field `kind` at line 1 column 13",
        ),
        (
            "no items",
            b"{\"kind\": \"List\"}",
            "missing field `items` at line 1 column 16",
        ),
        (
            "items twice",
            b"{\"items\": [],\n\"items\": [], \"kind\": \"List\"}",
            "duplicate field `items` at line 2 column 8",
        ),
        (
            "items of another type",
            b"{\"items\": {}, \"kind\": \"List\"}",
            "invalid type: map, expected the objects of a List at line 1 column 11",
        ),
        (
            "two",
            b"{\"items\": [], \"kind\": \"List\"}{}",
            "it is not JSON: trailing characters at line 1 column 30",
        ),
        (
            "not UTF-8",
            b"{\"items\": [{\"kind\": \"\xff\"}], \"kind\": \"List\"}",
            "it is not JSON: invalid unicode code point at line 1",
        ),
        ("deep", "[".repeat(100_000).as_bytes(), "invalid type: sequence"),
        (
            "broken in an object",
            b"{\"items\": [{},\n  {\"a\": tru}], \"kind\": \"List\"}",
            "it is not JSON: expected ident at line 2 column 12",
        ),
        (
            "another bracket",
            b"{\"items\": [{\"a\": [}], \"kind\": \"List\"}\n",
            "it is not JSON: expected value at line 1 column 19",
        ),
        (
            "an escape",
            b"{\"it\\u0065ms\": [{\"a\": 1}], \"kind\": \"List\"}",
            "the name of the field \"items\" has an escape in it at line 1 column 25",
        ),
        (
            "a comma too many",
            b"{\"items\": [\n{},\n], \"kind\": \"List\"}",
            "it is not JSON: trailing comma at line 3 column 1",
        ),
    ] {
        let output = run(&["--from-file", "-"], Some(text));
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {told}");
        assert!(
            told.contains("error: the dump on standard input: ") && told.contains(expected),
            "{name}: {told:?} should say {expected:?}"
        );
        assert!(
            output.stdout.is_empty(),
            "{name}: nothing is planned from a part of a dump"
        );
    }
}

#[test]
fn files_that_cannot_be_read_are_told() {
    for (file, expected) in [
        (
            "nowhere/dump.json",
            "could not open the dump nowhere/dump.json: No such file",
        ),
        ("tests", "the dump tests is a directory; give the file"),
    ] {
        let output = run(&["--from-file", file], None);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let file = dump("empty");
    for arguments in [
        &["--base-path", "relative"][..],
        &["--interval", "1s"],
        &["--job-template", "tests/dumps/empty.json"],
        &["--pushgateway-url", "nonsense"],
        &["--grouping-label", "cluster=a"],
        // What the controller refuses, too.
        &[
            "--pushgateway-url",
            "http://gateway.example",
            "--claim-label",
            "team",
            "--grouping-label",
            "label_team=x",
        ],
        &["--output", "xml"],
    ] {
        let output = run(&[&["--from-file", &file], arguments].concat(), None);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
}

/// `lp-exporter plan | head`: who has seen enough closes the pipe.
#[test]
fn a_reader_may_go_before_the_end() {
    // The table has a line for each node.
    let nodes: Vec<String> = (0..2500).map(|number| format!("node-{number}")).collect();
    let volumes = nodes
        .iter()
        .map(|node| Volume::local_path(node, "shop", node, "1Gi").persistent_volume());
    let objects: Vec<Value> = nodes.iter().map(|node| objects::node(node)).chain(volumes).collect();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("dump.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    fs::write(&file, list).expect("the dump can be written");
    for output in ["table", "json", "yaml"] {
        let arguments = ["--from-file", &file.display().to_string(), "--output", output];
        // More than a pipe holds, so that writing goes on when the reader has gone.
        let whole = run(&arguments, None).stdout.len();
        assert!(whole > 80 * 1024, "{output}: {whole} bytes");
        let mut child = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
            .arg("plan")
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let mut stdout = child.stdout.take().expect("it was asked for");
        stdout.read_exact(&mut [0; 10]).expect("a plan has more than 10 bytes");
        drop(stdout);
        let ended = child.wait_with_output().expect("the program ends");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{output}: {told}");
        assert!(!told.to_lowercase().contains("error"), "{output}: {told}");
    }
}

#[test]
fn what_is_passed_over_is_counted() {
    let output = run(&["--from-file", &dump("bad")], None);
    let told = String::from_utf8_lossy(&output.stderr);
    for expected in [
        "note: passed over 7 objects of other kinds: (no kind) 5, apps/v1 Deployment 1, example.com/v1 PersistentVolume 1\n",
        "note: passed over 1 objects of the kind Node that cannot be read\nnote:   broken-node: metadata.labels",
        "note: passed over 1 objects of the kind PersistentVolumeClaim that cannot be read\nnote:   broken: spec.resources",
    ] {
        assert!(told.contains(expected), "{told}");
    }
    let output = run(&["--from-file", &dump("bad"), "--redact"], None);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !told.contains("broken") && told.contains("passed over 7 objects of other kinds\n"),
        "{told}"
    );
}

#[test]
fn no_terminal_sequence_comes_through() {
    for output in ["table", "yaml"] {
        let output = run(&["--from-file", &dump("bad"), "--output", output], None);
        for stream in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(stream);
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
    }
}

/// Every name of this dump holds a marker, and no output may.
#[test]
fn no_name_is_left_when_redacted() {
    let marked = |text: &str| format!("{text}-mark3r");
    let mut objects = Vec::new();
    let node = marked("node");
    let volume = |claim: &str| {
        let mut volume = Volume::local_path(&node, &marked("namespace"), &marked(claim), "1Gi");
        volume.class = marked("class");
        volume.persistentvolume = marked(claim);
        volume.persistent_volume()
    };
    let name = |number: usize| format!("claim-{number}");
    // One volume for each thing that a detail can repeat.
    let changes: [(&str, Value); 14] = [
        ("/spec/hostPath/path", json!("/mark3r/outside")),
        (
            "/spec/hostPath/path",
            json!("/opt/local-path-provisioner/mark3r/../mark3r"),
        ),
        ("/spec/hostPath/path", json!("mark3r/relative")),
        (
            "/spec/hostPath/path",
            json!(format!("/mark3r-base/{}", "mark3r".repeat(50))),
        ),
        ("/spec/hostPath/path", json!("/mark3r-base")),
        (
            "/spec/hostPath/path",
            json!("/mark3r-base/mark3r/x_mark3r y,mark3r\u{1b}mark3r"),
        ),
        ("/spec/capacity/storage", json!("mark3r")),
        ("/spec/capacity", json!("mark3r")),
        ("/spec/capacity", json!({"mark3r": "1Gi"})),
        ("/status/phase", json!("mark3r")),
        (
            "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/operator",
            json!("mark3r"),
        ),
        (
            "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/key",
            json!("mark3r.io/mark3r"),
        ),
        (
            "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values",
            json!(["mark3r", "a-mark3r"]),
        ),
        ("/metadata/annotations", json!({"mark3r": 7})),
    ];
    for (number, (pointer, value)) in changes.into_iter().enumerate() {
        let mut object = volume(&name(number));
        *object.pointer_mut(pointer).expect("a field of every volume") = value;
        if pointer.contains("nodeAffinity") {
            object["metadata"]["annotations"] = json!({});
        }
        objects.push(object);
    }
    objects.push(volume("whole"));
    objects.push(objects::node(&node));
    objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mark3r", "labels": 7}}));
    objects
        .push(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "mark3r"}, "spec": 7}));
    objects.push(json!({"apiVersion": "mark3r/v1", "kind": "Mark3r"}));
    let listed = objects.len() - 4;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    for output in ["table", "json", "yaml"] {
        let arguments = [
            "--from-file",
            "-",
            "--output",
            output,
            "--base-path",
            "/mark3r-base,/opt/local-path-provisioner",
            "--namespace",
            "mark3r",
            "--worker-image",
            "mark3r/image",
            "--pushgateway-url",
            "http://mark3r:mark3r@mark3r.example",
            "--grouping-label",
            "cluster=mark3r",
        ];
        let open = run(&arguments, Some(list.as_bytes()));
        let redacted = run(&[&arguments[..], &["--redact"]].concat(), Some(list.as_bytes()));
        assert!(open.status.success() && redacted.status.success(), "{redacted:?}");
        assert!(
            String::from_utf8_lossy(&open.stdout).contains("mark3r"),
            "the test marks nothing"
        );
        for stream in [&redacted.stdout, &redacted.stderr] {
            let text = String::from_utf8_lossy(stream);
            assert!(!text.to_lowercase().contains("mark3r"), "{text}");
        }
        match output {
            "json" => {
                let (open, redacted) = (json_of(&open), json_of(&redacted));
                let reasons = |plan: &Value| -> Vec<Value> {
                    let all = plan["skipped"].as_array().into_iter().flatten();
                    all.map(|one| one["reason"].clone()).collect()
                };
                assert_eq!(reasons(&open), reasons(&redacted));
                let nodes = redacted["nodes"].as_array().into_iter().flatten();
                let volumes: usize = nodes.filter_map(|node| node["volumes"].as_array()).map(Vec::len).sum();
                assert_eq!(volumes + reasons(&redacted).len(), listed, "{redacted:#}");
            }
            "yaml" => {
                for plan in plans_of(&redacted).values() {
                    let text = format!("{plan:?}").to_lowercase();
                    assert!(!text.contains("mark3r"), "{text}");
                }
            }
            _ => {}
        }
    }
}

#[test]
fn yaml_holds_the_jobs_of_the_nodes_and_their_plans() {
    let output = run(
        &[
            "--from-file",
            &dump("local-path"),
            "--output",
            "yaml",
            "--worker-image",
            "example/lp-exporter:1",
            "--pushgateway-url",
            "http://user:secret@gateway.example:9091",
            "--grouping-label",
            "cluster=north",
            "--interval",
            "15m",
        ],
        None,
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(!text.contains("secret"), "the password is in the Jobs");
    let documents = yaml_of(&output);
    let jobs: Vec<&Value> = documents.iter().filter(|one| one["kind"] == "Job").collect();
    assert_eq!(jobs.len(), 3, "{text}");
    let plans = plans_of(&output);
    let document = json_of(&run(&["--from-file", &dump("local-path"), "--output", "json"], None));
    for (index, job) in jobs.into_iter().enumerate() {
        let node = &document["nodes"][index];
        assert_eq!(job["metadata"]["annotations"]["lp-exporter/node"], node["node"]);
        assert_eq!(job["metadata"]["namespace"], "lp-exporter");
        // That of 15 minutes in docs/configuration.md.
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 840);
        let container = &job["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "example/lp-exporter:1");
        let variables = container["env"].as_array().expect("variables");
        for (name, value) in [
            ("LP_EXPORTER_PUSHGATEWAY_URL", "http://gateway.example:9091"),
            ("LP_EXPORTER_GROUPING_LABELS", "cluster=north"),
        ] {
            let found = variables.iter().find(|variable| variable["name"] == name);
            let value_found = found
                .and_then(|variable| variable["value"].as_str())
                .unwrap_or_default();
            assert_eq!(value_found.trim_end_matches('/'), value, "{name}");
        }
        let plan = &plans[job["metadata"]["name"].as_str().expect("a name")];
        assert_eq!(plan.node, node["node"]);
        assert_eq!(plan.budget_seconds, 720.0);
        let paths: Vec<&str> = plan.volumes.iter().map(|volume| volume.path.as_str()).collect();
        let of_json = node["volumes"].as_array().into_iter().flatten();
        let expected: Vec<&str> = of_json.filter_map(|volume| volume["path"].as_str()).collect();
        assert_eq!(paths, expected);
    }
    let output = run(&["--from-file", &dump("nodes"), "--output", "yaml"], None);
    let text = String::from_utf8_lossy(&output.stdout);
    for expected in [
        "# No Job for not-ready: not_ready\n",
        "# No Job for windows: not_linux\n",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("no --worker-image") && told.contains("no --pushgateway-url"),
        "{told}"
    );
}

#[test]
fn a_plan_that_fits_into_no_config_map_is_told() {
    let mut objects = vec![objects::node("node-1")];
    for number in 0..6_000_u64 {
        // Hashes, which do not compress.
        let noise: String = (0..20)
            .map(|part| format!("{:016x}", (number * 20 + part + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
            .collect();
        let mut volume = Volume::local_path("node-1", "many", &format!("claim-{number}"), "1Gi");
        volume.path = format!("/opt/local-path-provisioner/{}/{}", &noise[..160], &noise[160..]);
        objects.push(volume.persistent_volume());
    }
    let list = json!({"kind": "List", "items": objects}).to_string();
    let plan = json_of(&run(&["--from-file", "-", "--output", "json"], Some(list.as_bytes())));
    assert_eq!(plan["nodes"][0]["state"], "not_measured");
    assert_eq!(plan["nodes"][0]["reason"], "plan_too_large");
    let yaml = run(&["--from-file", "-", "--output", "yaml"], Some(list.as_bytes()));
    assert!(String::from_utf8_lossy(&yaml.stdout).contains("# No Job for node-1: plan_too_large"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_cluster_is_only_read() {
    let server = ApiServer::start().await;
    for node in ["node-1", "node-2"] {
        server.put(objects::node(node));
    }
    for (node, claim) in [("node-1", "a"), ("node-2", "b"), ("node-3", "c")] {
        let volume = Volume::local_path(node, "shop", claim, "1Gi");
        server.put(volume.persistent_volume());
        server.put(volume.claim());
    }
    let list = |resource| Right {
        resource: str::to_owned(resource),
        verbs: vec!["list".to_owned()],
        namespace: None,
        names: Vec::new(),
    };
    server.restrict_to(vec![
        list("persistentvolumes"),
        list("persistentvolumeclaims"),
        list("nodes"),
    ]);
    let output = with_cluster(&server, &["--output", "json"]).await;
    assert!(output.status.success(), "{output:?}");
    let plan = json_of(&output);
    assert_eq!(plan["nodes"][1]["node"], "node-2");
    assert_eq!(plan["skipped"][0]["reason"], "node_gone");
    let verbs: Vec<String> = server.requests().into_iter().map(|request| request.verb).collect();
    assert_eq!(verbs, ["list", "list", "list"]);

    // The Jobs are those of the kubeconfig's namespace.
    let output = with_cluster(&server, &["--output", "yaml"]).await;
    assert_eq!(yaml_of(&output)[0]["metadata"]["namespace"], "of-the-kubeconfig");

    server.restrict_to(vec![list("persistentvolumes")]);
    let output = with_cluster(&server, &[]).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(
        told.contains("could not list persistentvolumeclaims: forbidden"),
        "{told}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever becomes of a dump's bytes: it is refused, or each of its objects is accounted for.
    #[test]
    fn no_object_of_a_broken_dump_is_lost(
        which in 0..DUMPS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), change()), 1..12),
    ) {
        let mut text = fs::read(root().join(dump(DUMPS[which]))).expect("a dump of ours");
        for (place, change) in changes {
            let at = place.index(text.len());
            match change {
                Change::Put(byte) => text[at] = byte,
                Change::Insert(byte) => text.insert(at, byte),
                Change::Remove(count) => { text.drain(at..(at + count).min(text.len())); }
            }
            if text.is_empty() {
                break;
            }
        }
        if let Ok(dump) = Dump::read(text.as_slice(), &settings()) {
            let volumes = dump.listed.volumes.len() + dump.listed.skipped.len();
            let others: usize = dump.other_kinds.values().sum();
            // A node that cannot be read is among both.
            let is_read = |node: &&Node| node.not_ready_message != Node::UNREADABLE;
            let nodes = dump.listed.nodes.iter().filter(is_read).count();
            let read = dump.claims + nodes + dump.listed.unreadable.len() + dump.not_needed;
            prop_assert_eq!(volumes + read + others, dump.objects);
            if let Ok(document) = serde_json::from_slice::<Value>(&text) {
                prop_assert_eq!(dump.objects, document["items"].as_array().map_or(0, Vec::len));
            }
            let plan = plan_listed(dump.listed, &settings());
            prop_assert_eq!(plan.volumes_listed(), volumes);
        }
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(u8),
    Insert(u8),
    Remove(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(b"{}[]\",:0-.eE/\\n ".to_vec()),
        b'a'..=b'z'
    ];
    let other = byte.clone();
    prop_oneof![
        4 => byte.prop_map(Change::Put),
        2 => other.prop_map(Change::Insert),
        1 => (1..40_usize).prop_map(Change::Remove),
    ]
}

fn settings() -> Settings {
    let cli::Command::Plan(arguments) = Cli::parse_from(["lp-exporter", "plan"]).command else {
        unreachable!("it was asked for")
    };
    Settings::new(arguments.planning).expect("the defaults are good")
}

/// Compares what the program writes with a checked-in file.
fn check(name: &str, arguments: &[&str]) {
    let output = run(arguments, None);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let expected = root().join("tests/expected").join(name);
    let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&found, &output.stdout).expect("the folder for temporary files can be written to");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        fs::read_to_string(&expected).unwrap_or_default(),
        "the output of {arguments:?} changed; if it should: cp {} tests/expected/{name}",
        found.display()
    );
}

fn run(arguments: &[&str], input: Option<&[u8]>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .arg("plan")
        .args(arguments)
        .current_dir(root())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut stdin = child.stdin.take().expect("it was asked for");
    let input = input.unwrap_or_default().to_vec();
    // One that has read enough closes it.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("the program ends");
    let _ = writer.join().expect("writing does not panic");
    output
}

async fn with_cluster(server: &ApiServer, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig("of-the-kubeconfig")).expect("it can be written to");
    tokio::process::Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .arg("plan")
        .args(arguments)
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .output()
        .await
        .expect("the program runs")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn yaml_of(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let documents = serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML"));
    documents.filter(|one| !one.is_null()).collect()
}

/// The plans in the ConfigMaps, by their names.
fn plans_of(output: &Output) -> BTreeMap<String, NodePlan> {
    use base64::Engine;
    let documents = yaml_of(output);
    let config_maps = documents.iter().filter(|one| one["kind"] == "ConfigMap");
    let plan = |one: &Value| {
        let text = one["binaryData"]["plan.json.gz"].as_str().expect("a plan");
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        let name = one["metadata"]["name"].as_str().expect("a name");
        (name.to_owned(), NodePlan::decode(&bytes).expect("a plan"))
    };
    config_maps.map(plan).collect()
}

fn dump(name: &str) -> String {
    format!("tests/dumps/{name}.json")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
