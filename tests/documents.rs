//! The documents say what the program does, and nothing else: tables in the documents against the lists in the code, both
//! ways, and every name, link and help text.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use lp_exporter::cli::Cli;
use lp_exporter::deadlines::deadlines;
use lp_exporter::exit::Exit;
use lp_exporter::exposition::Body;
use lp_exporter::file_systems::file_systems;
use lp_exporter::measure;
use lp_exporter::metrics::{self, FAMILIES, Found, Report, WorkerTimes};
use lp_exporter::orphans::Orphan;
use lp_exporter::plan::NodeState;
use lp_exporter::summary::WorkerSummary;
use lp_exporter::tracker::Outcome;
use lp_exporter::volumes::collect::{Collect, Collected};
use lp_exporter::volumes::node_plan::Run;
use lp_exporter::volumes::path::BasePaths;
use lp_exporter::volumes::plan::{Collecting, PlacedVolume, Plan, PlannedNode};
use lp_exporter::volumes::volume::{NodeReason, SkipReason, SourceKind};
use lp_measure::{FileSystem, Measurement, Method, State};
use serde::Deserialize;
use serde_yaml::Value;

#[path = "documents/commands.rs"]
mod commands;

const METRICS: &str = "docs/metrics.md";
const CONFIGURATION: &str = "docs/configuration.md";
const MEASURE: &str = "docs/measure.md";
const PLAN: &str = "docs/plan.md";
const TROUBLESHOOTING: &str = "docs/troubleshooting.md";

/// What a release has promised: the stable metrics with their labels. Nothing is ever taken out of this list, and nothing in
/// it changes but in a major version.
const PROMISED: [(&str, &[&str]); 2] = [
    (
        "local_volume_stats_capacity_bytes",
        &[
            "namespace",
            "persistentvolumeclaim",
            "persistentvolume",
            "storageclass",
            "node",
        ],
    ),
    (
        "local_volume_stats_used_bytes",
        &[
            "namespace",
            "persistentvolumeclaim",
            "persistentvolume",
            "storageclass",
            "node",
        ],
    ),
];

/// Labels that the program does not give: those of the Pushgateway and of a scrape, of the rules, and what becomes of ours
/// without `honor_labels`. Others' metrics have their own.
const OTHER_LABELS: [&str; 9] = [
    "basis",
    "cluster",
    "exported_job",
    "instance",
    "job",
    "label_team",
    "metrics_path",
    "pod",
    "severity",
];

/// Flags of other programs, which the documents name: of kubelet, k3s, the Prometheus operator, a Pushgateway and cargo.
const OTHER_FLAGS: [&str; 9] = [
    "--bench",
    "--default-local-storage-path",
    "--hostname-override",
    "--namespaces",
    "--persistence.interval",
    "--push.disable-consistency-check",
    "--trees",
    "--help",
    "--version",
];

/// Variables with which a test speaks to a process that it starts: nobody else sets them.
const INTERNAL_VARIABLES: [&str; 1] = ["LP_EXPORTER_TEST_CHILD_SERVER"];

#[test]
fn the_architecture_names_every_module() {
    let table = read("docs/architecture.md");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    for line in read("src/lib.rs").lines() {
        let declared = line.trim_start_matches("pub ").strip_prefix("mod ");
        let Some(module) = declared.and_then(|rest| rest.strip_suffix(';')) else {
            continue;
        };
        let named = format!("`{module}`");
        let is_named = |row: &&str| row.split('|').nth(1).is_some_and(|names| names.contains(&named));
        assert!(rows.iter().any(is_named), "docs/architecture.md does not name {module}");
    }
}

#[test]
fn families() {
    let groups = groups_of_families();
    let expected = FAMILIES.iter().map(|family| {
        let labels: Vec<String> = family.labels.iter().map(|label| code(label)).collect();
        let labels = if labels.is_empty() {
            "none".to_owned()
        } else {
            labels.join(", ")
        };
        vec![
            code(family.name),
            "gauge".to_owned(),
            labels,
            groups[family.name].clone(),
        ]
    });
    let documented = table(METRICS, "Families")
        .into_iter()
        .map(|row| [0, 1, 3, 5].map(|column| row[column].clone()).to_vec());
    check_rows("metric families", documented, expected);
    for row in table(METRICS, "Families") {
        let (name, unit) = (row[0].trim_matches('`'), row[2].as_str());
        assert_eq!(unit == "bytes", name.ends_with("_bytes"), "the unit of {name}");
        assert_eq!(
            unit.starts_with("seconds"),
            name.ends_with("_seconds"),
            "the unit of {name}"
        );
        assert!(
            ["stable", "alpha"].contains(&row[6].as_str()),
            "the stability of {name}"
        );
    }
}

/// Each family is since a release that the changelog has, and what was promised once is there with all its labels.
#[test]
fn releases_keep_what_they_promise() {
    let number = |version: &str| -> Vec<u64> {
        let parts = version.split('.').map(|part| part.parse().expect("a version"));
        parts.collect()
    };
    let changelog = read("CHANGELOG.md");
    let headings = changelog.lines().filter_map(|line| line.strip_prefix("## ["));
    let releases: BTreeSet<&str> = headings.filter_map(|rest| rest.split(']').next()).collect();
    let mut stable = BTreeSet::new();
    for row in table(METRICS, "Families") {
        let [name, since] = [0, 7].map(|column| row[column].trim_matches('`'));
        assert!(
            releases.contains(since),
            "{name} is since {since}, which {releases:?} lacks"
        );
        assert!(
            number(since) <= number(env!("CARGO_PKG_VERSION")),
            "{name} is since a release to come"
        );
        if row[6] == "stable" {
            stable.insert(name.to_owned());
        }
    }
    let promised: BTreeSet<String> = PROMISED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(stable, promised, "the stable metrics");
    for (name, labels) in PROMISED {
        let family = FAMILIES.iter().find(|family| family.name == name);
        assert_eq!(family.map(|family| family.labels), Some(labels), "the labels of {name}");
    }
}

#[test]
fn closed_sets() {
    let words = |heading: &'static str| table(METRICS, heading).into_iter().map(|row| vec![row[0].clone()]);
    let expected = |words: Vec<&'static str>| words.into_iter().map(|word| vec![code(word)]);
    check_rows(
        "states",
        words("States of a volume").filter(|row| !Method::ALL.iter().any(|method| row[0] == code(method.as_str()))),
        expected(State::ALL.iter().map(|state| state.as_str()).collect()),
    );
    check_rows(
        "methods",
        words("States of a volume").filter(|row| !State::ALL.iter().any(|state| row[0] == code(state.as_str()))),
        expected(Method::ALL.iter().map(|method| method.as_str()).collect()),
    );
    check_rows(
        "reasons to leave a volume out",
        words("Why a volume is left out"),
        expected(SkipReason::ALL.iter().map(|reason| reason.as_str()).collect()),
    );
    check_rows(
        "reasons why a node was not measured",
        words("Why a node was not measured"),
        expected(NodeReason::ALL.iter().map(|reason| reason.as_str()).collect()),
    );
}

#[test]
fn flags() {
    let command = Cli::command();
    let headings = [
        (
            "controller",
            &[
                "Where to push",
                "Grouping keys",
                "How to log",
                "Planning",
                "Controller",
                "What is measured",
                "What is told",
            ][..],
        ),
        (
            "worker",
            &[
                "Where to push",
                "Grouping keys",
                "How to log",
                "Worker",
                "How fast to measure",
            ],
        ),
        ("measure", &["How to log", "How fast to measure", "Measure"]),
        (
            "plan",
            &["How to log", "Planning", "What is measured", "What is told", "Plan"],
        ),
        ("retire", &["Where to push", "How to log", "Retire"]),
    ];
    for (subcommand, headings) in headings {
        let command = command.find_subcommand(subcommand).expect("a subcommand");
        let documented = headings
            .iter()
            .flat_map(|heading| table(CONFIGURATION, heading))
            .filter(|row| row.len() == 4)
            .map(|row| row[..3].to_vec());
        check_rows(subcommand, documented, command.get_arguments().map(flag_row));
    }
    let named = headings.map(|(subcommand, _)| subcommand);
    let commands: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(commands, named, "a new subcommand needs a table of its own");
}

/// What `--collect` takes is documented with what it costs.
#[test]
fn what_is_collected() {
    let rows = table(CONFIGURATION, "What is told");
    let documented = rows.into_iter().filter(|row| row.len() == 3);
    let expected = Collected::ALL.into_iter().map(|one| vec![code(one.as_str())]);
    check_rows("families to collect", documented.map(|row| row[..1].to_vec()), expected);
}

#[test]
fn exit_codes() {
    let documented = table(CONFIGURATION, "Exit codes")
        .into_iter()
        .map(|row| vec![row[0].clone()]);
    let expected = Exit::ALL.into_iter().map(|exit| vec![code(&exit.code().to_string())]);
    check_rows("exit codes", documented, expected);
}

/// Whoever looks for a state, a reason or an exit code finds where to look.
#[test]
fn troubleshooting_names_every_outcome() {
    let first_cells = |heading: &str| -> BTreeSet<String> {
        let rows = table(TROUBLESHOOTING, heading);
        let cells = rows.iter().map(|row| row[0].as_str()).collect::<Vec<_>>().join(" ");
        code_spans(&cells).map(str::to_owned).collect()
    };
    let codes = Exit::ALL.map(|exit| exit.code().to_string());
    let skipped = SkipReason::ALL.iter().map(|reason| reason.as_str());
    let states = State::ALL.iter().map(|state| state.as_str());
    for (heading, expected) in [
        ("A run ends with a code", codes.to_vec()),
        (
            "A node is missing",
            NodeReason::ALL
                .iter()
                .map(|reason| reason.as_str().to_owned())
                .collect(),
        ),
        (
            "A volume has no number",
            skipped.chain(states).map(str::to_owned).collect::<Vec<_>>(),
        ),
    ] {
        let expected: BTreeSet<String> = expected.into_iter().collect();
        assert_eq!(first_cells(heading), expected, "{TROUBLESHOOTING}: {heading}");
    }
}

/// What the log is said to say, somebody says: the program, or what it is told, which `tests/push_faults.rs` compares with
/// docs/pushgateway.md.
#[test]
fn messages_of_the_log_exist() {
    let sources = files("rs").into_iter().filter(|path| path.starts_with("src/"));
    let sources: String = sources.map(|path| read(&path)).collect();
    // A text that goes on in the next line of the source.
    let lines: Vec<&str> = sources.split("\\\n").map(str::trim_start).collect();
    let said = format!("{}{}", lines.concat(), read("docs/pushgateway.md"));
    let mut count = 0;
    for (heading, column) in [
        ("Nothing is in the Pushgateway", 0),
        ("A run ends with a code", 1),
        ("401, 403 and TLS", 0),
    ] {
        for row in table(TROUBLESHOOTING, heading) {
            for message in code_spans(&row[column]).filter(|span| span.contains(' ') || heading.starts_with("401")) {
                assert!(said.contains(message), "{TROUBLESHOOTING}: nobody says {message:?}");
                count += 1;
            }
        }
    }
    assert!(count >= 15, "only {count} messages were found");
}

/// A pod that measures by hand may do what a worker may, and no more.
#[test]
fn the_pod_that_measures_may_do_what_a_worker_may() {
    let text = read(MEASURE);
    let block = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let pod: Value = serde_yaml::from_str(block.expect("a block of YAML")).expect("YAML");
    let typed: Result<k8s_openapi::api::core::v1::Pod, _> = serde_yaml::from_value(pod.clone());
    typed.expect("a pod");
    let worker: Value = serde_yaml::from_str(&read("jobs/worker.yaml")).expect("YAML");
    let (pod, worker) = (&pod["spec"], &worker["spec"]["template"]["spec"]);
    for field in [
        "restartPolicy",
        "automountServiceAccountToken",
        "tolerations",
        "securityContext",
    ] {
        assert!(!worker[field].is_null(), "the template has no {field}");
        assert_eq!(pod[field], worker[field], "{field}");
    }
    let (pod, worker) = (&pod["containers"][0], &worker["containers"][0]);
    assert_eq!(pod["securityContext"], worker["securityContext"]);
    assert_eq!(pod["volumeMounts"][0]["readOnly"], Value::Bool(true));
    let arguments = pod["args"].as_sequence().into_iter().flatten();
    let arguments = arguments.map(|one| one.as_str().expect("text"));
    let parsed = Cli::try_parse_from(["lp-exporter"].into_iter().chain(arguments));
    assert!(parsed.is_ok(), "{:?}", parsed.err());
}

#[test]
fn deadlines_of_intervals() {
    let rows = table(CONFIGURATION, "Deadlines");
    assert!(rows.len() >= 3, "{rows:?}");
    for row in rows {
        let interval = humantime::parse_duration(row[0].trim_matches('`')).expect("an interval");
        let found = deadlines(interval, None).expect("deadlines that nest");
        // What src/worker.rs keeps for the push: a quarter of the budget, one minute at most.
        let push = (found.worker_budget / 4).min(Duration::from_secs(60));
        let expected = [
            found.worker_budget,
            push,
            found.controller_clock,
            found.worker_job,
            found.cron_job,
            found.pod_start,
        ];
        let expected: Vec<String> = expected.iter().map(|one| format!("{} s", one.as_secs_f64())).collect();
        assert_eq!(row[1..], expected, "the deadlines of {interval:?}");
    }
}

#[test]
fn rights() {
    let granted = [
        granted_by("manifests/base/rbac.yaml"),
        granted_by("manifests/components/locate-by-pods/rbac.yaml"),
    ];
    let documented = table("docs/security.md", "Rights of the controller");
    check_rows(
        "rights",
        documented.into_iter().map(|row| row[..3].to_vec()),
        granted.concat().into_iter(),
    );
}

/// The rights in a manifest: scope, resource and verbs.
fn granted_by(manifest: &str) -> Vec<Vec<String>> {
    let text = read(manifest);
    let objects = serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML"));
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_sequence().into_iter().flatten();
        list.map(|one| one.as_str().expect("text").to_owned()).collect()
    };
    let mut expected = Vec::new();
    for object in objects {
        let scope = match object["kind"].as_str() {
            Some("ClusterRole") => "cluster",
            Some("Role") => "namespace",
            _ => continue,
        };
        for rule in object["rules"].as_sequence().into_iter().flatten() {
            let verbs: Vec<String> = strings(&rule["verbs"]).iter().map(|verb| code(verb)).collect();
            let named: Vec<String> = strings(&rule["resourceNames"])
                .iter()
                .map(|name| format!(" named {}", code(name)))
                .collect();
            for resource in strings(&rule["resources"]) {
                let resource = format!("{}{}", code(&resource), named.concat());
                expected.push(vec![scope.to_owned(), resource, verbs.join(", ")]);
            }
        }
    }
    expected
}

#[test]
fn dependencies() {
    let documented = table("README.md", "Dependencies")
        .into_iter()
        .map(|row| vec![row[0].clone()]);
    let mut expected = crates("Cargo.toml", "[dependencies]");
    expected.extend(crates("measure/Cargo.toml", "[dependencies]"));
    let named = expected.iter().map(|name| vec![code(name)]);
    check_rows("dependencies", documented, named);

    let text = read("README.md");
    for manifest in ["Cargo.toml", "measure/Cargo.toml"] {
        for name in crates(manifest, "[dev-dependencies]") {
            assert!(
                text.contains(&code(&name)),
                "README.md does not name {name} of {manifest}"
            );
        }
    }
}

#[test]
fn output_of_measure() {
    let documented = table(MEASURE, "Prometheus").into_iter().map(|row| row[..2].to_vec());
    let expected = measure::FAMILIES.iter().map(|family| {
        let labels: Vec<String> = family.labels.iter().map(|label| code(label)).collect();
        vec![code(family.name), labels.join(", ")]
    });
    check_rows("families of measure", documented, expected);

    // A path that is not UTF-8 has every field.
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join(OsStr::from_bytes(b"volume-\xff"));
    fs::create_dir_all(path.join("inner")).expect("a directory in it");
    let output = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .args(["measure", "--output", "json", "--top", "1"])
        .arg(&path)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let fields = document["measurements"][0].as_object().expect("an object");
    let documented = table(MEASURE, "JSON").into_iter().map(|row| vec![row[0].clone()]);
    check_rows(
        "fields of measure",
        documented,
        fields.keys().map(|field| vec![code(field)]),
    );
}

#[test]
fn output_of_plan() {
    let states = table(PLAN, "States").into_iter().map(|row| vec![row[0].clone()]);
    let expected = NodeState::ALL.iter().map(|state| vec![code(state.as_str())]);
    check_rows("states of a node in a plan", states, expected);

    let output = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .args(["plan", "--output", "json", "--from-file", "tests/dumps/local-path.json"])
        .current_dir(root())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for (heading, object) in [
        ("Nodes", &document["nodes"][0]),
        ("Volumes", &document["nodes"][0]["volumes"][0]),
        ("Skipped", &document["skipped"][0]),
    ] {
        let fields = object.as_object().expect("the dump has one of each");
        let documented = table(PLAN, heading).into_iter().map(|row| vec![row[0].clone()]);
        check_rows(heading, documented, fields.keys().map(|field| vec![code(field)]));
    }
}

#[test]
fn metrics_that_are_named_exist() {
    let families = FAMILIES.iter().chain(measure::FAMILIES);
    let known: BTreeSet<&str> = families.map(|family| family.name).collect();
    for (document, text) in documents() {
        for word in words(&text) {
            let prefixes = ["local_volume_", "local_directory_", "lp_exporter_"];
            let is_metric = prefixes.iter().any(|prefix| word.starts_with(prefix));
            let is_known =
                known.contains(word) || (word.ends_with('_') && known.iter().any(|name| name.starts_with(word)));
            assert!(
                !is_metric || is_known,
                "{document} names the metric {word}, which the program does not have"
            );
        }
    }
}

#[test]
fn alerts_that_are_named_exist() {
    let rules: String = files("yaml")
        .into_iter()
        .filter(|path| path.starts_with("alertmanager/rules/"))
        .map(|path| read(&path))
        .collect();
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let known: BTreeSet<String> = alerts.map(str::to_owned).collect();
    let mut named = BTreeSet::new();
    for (document, text) in documents() {
        for word in words(&text) {
            let rest = ["LocalVolume", "LpExporter"]
                .iter()
                .find_map(|prefix| word.strip_prefix(prefix));
            if rest.is_some_and(|rest| !rest.is_empty()) {
                assert!(
                    known.contains(word),
                    "{document} names the alert {word}, which no rule has"
                );
                named.insert(word.to_owned());
            }
        }
    }
    assert_eq!(named, known, "each alert is named in a document");
}

/// Labels that queries ask for are labels of a metric, or of whoever scrapes it.
#[test]
fn labels_that_are_named_exist() {
    let families = FAMILIES.iter().chain(measure::FAMILIES);
    let mut known: BTreeSet<&str> = families.flat_map(|family| family.labels.iter().copied()).collect();
    known.extend(OTHER_LABELS);
    let mut count = 0;
    for (document, text) in documents() {
        for query in text
            .split("```promql\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
        {
            for label in labels_in(query) {
                assert!(
                    known.contains(label),
                    "{document} asks for the label {label}, which nothing has"
                );
                count += 1;
            }
        }
    }
    assert!(count >= 50, "only {count} labels were found");
}

/// promtool reads every query of the documents, every rule and every scrape configuration; `tests/alerts.rs` reads those of
/// the runbooks too.
#[test]
fn prometheus_takes_queries_rules_and_configurations() {
    let mut rules = Vec::new();
    for (document, text) in documents() {
        for query in blocks(&text, "promql").iter().flat_map(|block| queries(block)) {
            rules.push(
                serde_json::json!({"record": format!("query:{}", rules.len()), "expr": query,
                "labels": {"document": document}}),
            );
        }
    }
    assert!(rules.len() >= 45, "only {} queries were found", rules.len());
    let mut inputs = vec![(
        "rules",
        serde_json::json!({"groups": [{"name": "queries", "rules": rules}]}).to_string(),
    )];
    for (document, text) in documents() {
        for block in blocks(&text, "yaml") {
            let yaml: Value = serde_yaml::from_str(&block).unwrap_or_else(|error| panic!("{document}: {error}"));
            if !yaml["groups"].is_null() {
                inputs.push(("rules", block));
            } else if !yaml["scrape_configs"].is_null() {
                inputs.push(("config", block));
            }
        }
    }
    assert!(
        inputs.len() >= 4,
        "only {} blocks for Prometheus were found",
        inputs.len()
    );
    let folders = std::env::var("LP_EXPORTER_TEST_SERVERS").map_or(Vec::new(), |folder| {
        ["old", "new"]
            .map(|generation| PathBuf::from(&folder).join(generation))
            .into()
    });
    let mut programs: Vec<PathBuf> = folders.into_iter().map(|folder| folder.join("promtool")).collect();
    if programs.is_empty() {
        programs.push("promtool".into());
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    for (promtool, (kind, text)) in programs
        .iter()
        .flat_map(|one| inputs.iter().map(move |input| (one, input)))
    {
        fs::write(file.path(), text).expect("it can be written");
        let Ok(output) = Command::new(promtool).args(["check", kind]).arg(file.path()).output() else {
            assert!(
                std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
                "queries are not tested: there is no {promtool:?}"
            );
            eprintln!("skipped the queries of the documents: there is no {promtool:?}");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{promtool:?} check {kind}: {said}\n{text}");
    }
}

/// The queries of a block: one begins with each line that is not indented and stands in no brackets.
fn queries(block: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut depth = 0;
    for line in block.lines() {
        let is_new = depth == 0 && !line.starts_with(' ');
        match found.last_mut().filter(|_| !is_new) {
            Some(query) => *query = format!("{query}\n{line}"),
            None => found.push(line.to_owned()),
        }
        depth += line.matches('(').count();
        depth -= line.matches(')').count();
    }
    found
}

#[test]
fn blocks_of_yaml_are_yaml() {
    let mut count = 0;
    for (document, text) in documents() {
        for block in blocks(&text, "yaml") {
            let read = serde_yaml::from_str::<Value>(&block);
            assert!(read.is_ok(), "{document}: {}:\n{block}", read.expect_err("it is none"));
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} blocks were found");
}

/// Every field of the Job template that the controller keeps for itself is in the table.
#[test]
fn fields_that_are_the_controllers() {
    let rows = table(CONFIGURATION, "The Job template");
    let cells: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let cells = cells.concat();
    let mut count = 0;
    for literal in read("src/kubernetes/job.rs").split('"').skip(1).step_by(2) {
        let is_field = ["spec.", "metadata."].iter().any(|start| literal.starts_with(start))
            && literal.chars().all(|c| c.is_ascii_alphabetic() || c == '.');
        if is_field && literal != "metadata.name" && !literal.starts_with("spec.template") {
            assert!(
                cells.contains(&code(literal)),
                "{CONFIGURATION} does not name {literal}"
            );
            count += 1;
        }
    }
    assert!(count >= 6, "only {count} fields were found");
}

/// The labels that a query names: before `=` and `!` in braces, and in the brackets after `by`, `on` and the like.
fn labels_in(query: &str) -> Vec<&str> {
    let mut labels = Vec::new();
    for inner in query.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        // Values stand between quotes.
        for outside in inner.split('"').step_by(2) {
            labels.extend(words(outside).filter(|word| !word.is_empty()));
        }
    }
    for keyword in ["by", "on", "ignoring", "without", "group_left", "group_right"] {
        for (at, _) in query.match_indices(keyword) {
            let before = query[..at].chars().next_back();
            let Some(list) = query[at + keyword.len()..].trim_start().strip_prefix('(') else {
                continue;
            };
            if before.is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '_')) {
                let list = list.split(')').next().unwrap_or_default();
                labels.extend(words(list).filter(|word| !word.is_empty()));
            }
        }
    }
    labels
}

#[test]
fn flags_that_are_named_exist() {
    let command = Cli::command();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let ours: BTreeSet<String> = arguments
        .filter_map(|one| Some(format!("--{}", one.get_long()?)))
        .collect();
    let mut others = BTreeSet::new();
    for (document, text) in documents() {
        for span in code_spans(&text).filter(|span| span.starts_with("--")) {
            let flag = span.split(['=', ' ', '…']).next().unwrap_or(span);
            if !ours.contains(flag) {
                assert!(
                    OTHER_FLAGS.contains(&flag),
                    "{document} names {flag}, which nobody knows"
                );
                others.insert(flag.to_owned());
            }
        }
    }
    let listed: BTreeSet<String> = OTHER_FLAGS.map(str::to_owned).into();
    assert_eq!(others, listed, "no document names some of these any more");
}

#[test]
fn variables_that_are_named_exist() {
    let command = Cli::command();
    let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let mut known: BTreeSet<String> = arguments
        .filter_map(|argument| Some(argument.get_env()?.to_string_lossy().into_owned()))
        .collect();
    let of_tests = variables_of_tests();
    known.extend(of_tests.iter().cloned());
    let mut named = BTreeSet::new();
    for (document, text) in documents() {
        for word in words(&text).filter(|word| word.starts_with("LP_EXPORTER_") && *word != "LP_EXPORTER_TEST_") {
            assert!(
                known.contains(word),
                "{document} names the variable {word}, which nothing reads"
            );
            named.insert(word.to_owned());
        }
    }
    for variable in of_tests {
        let is_named = named.contains(&variable) || INTERNAL_VARIABLES.contains(&variable.as_str());
        assert!(is_named, "no document explains {variable}, which a test reads");
    }
}

#[test]
fn links_resolve() {
    let documents = documents();
    for (document, text) in &documents {
        for link in links(text) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(document).parent().unwrap_or(Path::new(""));
            let target = if file.is_empty() {
                PathBuf::from(document)
            } else {
                normal(&folder.join(file))
            };
            assert!(
                root().join(&target).exists(),
                "{document} links to {link}, which is not there"
            );
            if !anchor.is_empty() {
                let there = anchors(&read(&target.to_string_lossy()));
                assert!(
                    there.contains(anchor),
                    "{document} links to {link}: no such heading among {there:?}"
                );
            }
        }
    }
}

#[test]
fn help_texts() {
    for (name, arguments) in [
        ("help-program.txt", &["--help"][..]),
        ("help-controller.txt", &["controller", "--help"]),
        ("help-worker.txt", &["worker", "--help"]),
        ("help-measure.txt", &["measure", "--help"]),
        ("help-plan.txt", &["plan", "--help"]),
        ("help-retire.txt", &["retire", "--help"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
            .args(arguments)
            // Without a terminal the width is fixed, and without variables no value of theirs is shown.
            .env_clear()
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let expected = root().join("tests/expected").join(name);
        let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&found, &output.stdout).expect("the folder for temporary files can be written to");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            fs::read_to_string(&expected).unwrap_or_default(),
            "the help text of {arguments:?} changed; if it should: cp {} tests/expected/{name}",
            found.display()
        );
    }
}

/// A flag as it is documented: its name, its variable and its default. A default that depends on the program stands in the
/// help text.
fn flag_row(argument: &clap::Arg) -> Vec<String> {
    let name = match (argument.get_long(), argument.get_value_names()) {
        (Some(flag), _) => format!("--{flag}"),
        (None, Some([name])) => name.to_string(),
        (None, _) => panic!("{argument:?} has no name"),
    };
    let variable = argument.get_env().map(|variable| code(&variable.to_string_lossy()));
    let defaults: Vec<String> = argument
        .get_default_values()
        .iter()
        .map(|value| code(&value.to_string_lossy()))
        .collect();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let told = help
        .split_once("[default: ")
        .and_then(|(_, rest)| rest.split(']').next());
    let default = match (defaults.is_empty(), told, argument.is_required_set()) {
        (false, ..) => defaults.join(", "),
        (true, Some(told), _) => told.to_owned(),
        (true, None, true) => "required".to_owned(),
        (true, None, false) => "none".to_owned(),
    };
    vec![code(&name), variable.unwrap_or("none".to_owned()), default]
}

/// Which group each family is pushed in, by making one of each group.
fn groups_of_families() -> BTreeMap<String, String> {
    let run = Run {
        id: "run".to_owned(),
        started_unix_seconds: 1.0,
        owner: lp_exporter::owner::Owner::default(),
    };
    let node = |name: &str| PlannedNode {
        name: name.to_owned(),
        disk_pressure: false,
        unmeasurable: None,
        bases: vec![0],
        volumes: vec![PlacedVolume {
            name: "pv".to_owned(),
            claim: Some(("namespace".to_owned(), "claim".to_owned())),
            storage_class: "class".into(),
            path: "/data/pv".to_owned(),
            base: 0,
            source: SourceKind::HostPath,
            capacity_bytes: 1,
            requested_bytes: Some(1),
            phase: "Bound".into(),
            reclaim_policy: "Delete".into(),
            created_unix_seconds: Some(1),
            shared: false,
            alert_percent: Some(80),
            alert_disabled: true,
            claim_labels: Vec::new(),
        }],
    };
    let plan = Plan {
        nodes: vec![node("a"), node("b")],
        nodes_not_scanned: BTreeMap::from([("c".to_owned(), NodeReason::NoVolumes)]),
        ..Plan::default()
    };
    let failed = Outcome::NotMeasured {
        reason: NodeReason::Lost,
        detail: String::new(),
        summary: None,
    };
    let outcomes = BTreeMap::from([
        ("a".to_owned(), Outcome::Measured(Some(WorkerSummary::default()))),
        ("b".to_owned(), failed),
    ]);
    let report = Report {
        run: &run,
        plan: &plan,
        outcomes: &outcomes,
        duration: Duration::from_secs(1),
        peak_memory_bytes: 1,
        jobs_not_deleted: 0,
    };
    let bases = BasePaths::new(["/data"]).expect("a base path");
    let file_system = FileSystem {
        device: "8:1".to_owned(),
        kind: "ext4".to_owned(),
        is_read_only: false,
        size_bytes: 1,
        available_bytes: 1,
        used_bytes: 1,
        inodes: 1,
        inodes_free: 1,
    };
    let measurement = Measurement {
        method: Some(Method::Walk),
        used_bytes: Some(1),
        apparent_bytes: Some(1),
        inodes_used: Some(1),
        file_system: Some(file_system.clone()),
        ..Measurement::without_number(State::Complete, None)
    };
    let times = WorkerTimes {
        measured_unix_seconds: 1.0,
        duration_seconds: 1.0,
    };
    let collecting = Collecting {
        collect: &Collect::everything(),
        orphan_age: Duration::ZERO,
        known_paths: &plan.known_paths,
    };
    let node_plan = plan.nodes[0].node_plan(&run, 1.0, &bases, &[], collecting);
    let volumes = vec![measurement];
    let orphan = Orphan {
        path: "/data/orphan".to_owned(),
        used_bytes: Some(1),
    };
    let found = Found {
        file_systems: file_systems(&node_plan, &[Some(file_system)], &volumes),
        volumes,
        orphans: vec![Some(vec![orphan])],
        orphans_not_told: Vec::new(),
    };
    let usage = metrics::usage_group(&node_plan, &found, times);
    let bodies = [
        (
            "lp-exporter",
            metrics::capacity_group(&plan, &run, Duration::from_secs(300), &Collect::everything(), &[]),
        ),
        ("lp-exporter-job", usage),
        ("lp-exporter-run", report.group()),
        ("lp-exporter-success", metrics::success_group(&run, 1.0)),
    ];
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (group, body) in &bodies {
        for family in families_in(body) {
            groups.entry(family).or_default().push(code(group));
        }
    }
    let named = groups.into_iter().map(|(family, groups)| {
        let groups = if groups.len() == bodies.len() {
            "every group".to_owned()
        } else {
            groups.join(", ")
        };
        (family, groups)
    });
    named.collect()
}

fn families_in(body: &Body) -> Vec<String> {
    let text = body.text();
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" gauge"));
    names.map(str::to_owned).collect()
}

/// Compares what is documented with what there is, as sets, so that the message names what is missing and what is too much.
fn check_rows(what: &str, documented: impl Iterator<Item = Vec<String>>, expected: impl Iterator<Item = Vec<String>>) {
    let documented: Vec<Vec<String>> = documented.collect();
    let unique: BTreeSet<&Vec<String>> = documented.iter().collect();
    assert_eq!(unique.len(), documented.len(), "{what}: a row stands there twice");
    let expected: Vec<Vec<String>> = expected.collect();
    let expected: BTreeSet<&Vec<String>> = expected.iter().collect();
    let missing: Vec<_> = expected.difference(&unique).collect();
    let wrong: Vec<_> = unique.difference(&expected).collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "{what}: the document lacks {missing:#?} and has instead {wrong:#?}"
    );
    assert!(!expected.is_empty(), "{what}: nothing was compared");
}

/// The cells of every table below a heading, up to the next heading, without the tables' own heads.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(document);
    let section = text
        .lines()
        .skip_while(|line| !(line.starts_with('#') && line.trim_start_matches('#').trim() == heading))
        .skip(1)
        .take_while(|line| !line.starts_with('#'));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for line in section.filter(|line| line.starts_with('|')) {
        if line.starts_with("|---") {
            rows.pop();
            continue;
        }
        let cells = line.trim_matches('|').split('|');
        rows.push(cells.map(|cell| cell.trim().to_owned()).collect());
    }
    assert!(!rows.is_empty(), "{document} has no table below {heading:?}");
    rows
}

/// The names in a section of a Cargo.toml.
fn crates(manifest: &str, section: &str) -> BTreeSet<String> {
    let text = read(manifest);
    let lines = text.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let names = lines.filter(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()));
    names
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .map(str::to_owned)
        .collect()
}

/// The variables that a test reads: those in quotes in the sources of tests.
fn variables_of_tests() -> BTreeSet<String> {
    let files = files("rs").into_iter().filter(|path| path.contains("tests/"));
    let mut found = BTreeSet::new();
    for file in files {
        let text = read(&file);
        let quoted = text.split('"').filter(|part| part.starts_with("LP_EXPORTER_TEST_"));
        found.extend(
            quoted
                .filter(|part| words(part).next() == Some(part))
                .map(str::to_owned),
        );
    }
    found.remove("LP_EXPORTER_TEST_");
    found
}

/// Every document of the project with its text.
fn documents() -> Vec<(String, String)> {
    let found: Vec<(String, String)> = files("md")
        .into_iter()
        .map(|path| (path.clone(), read(&path)))
        .collect();
    assert!(found.len() >= 6, "the documents were not found");
    found
}

/// The files of a kind below the root, relative to it, without what is built.
fn files(extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder of the project") {
            let entry = entry.expect("an entry of it");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            let kind = entry.file_type().expect("its type");
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if kind.is_file() && Path::new(&name).extension().is_some_and(|own| own == extension) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// The targets of the links in a document.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let starts = text.match_indices("](").map(|(at, found)| at + found.len());
    starts.filter_map(|start| text[start..].split([')', '\n']).next())
}

/// The blocks of a language in a text, those in lists without their indentation.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(opening) = lines.find(|line| line.trim() == fence) {
        let indentation = opening.len() - fence.len();
        let block = lines.by_ref().take_while(|line| line.trim() != "```");
        found.push(
            block
                .map(|line| format!("{}\n", line.get(indentation..).unwrap_or_default()))
                .collect(),
        );
    }
    found
}

/// What stands between backquotes in a text, outside of blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    let outside = text.split("```").step_by(2);
    // A line break does not end one, an empty line does.
    let paragraphs = outside.flat_map(|part| part.split("\n\n"));
    paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2))
}

/// The anchors that headings get: lower case, blanks as hyphens, nothing but letters, digits, hyphens and underscores.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            std::path::Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// The words of a text: letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
