//! The alerts: their rules and tests under promtool, Alertmanager's example under amtool, a chain of real servers from the
//! Pushgateway to a webhook, and a runbook for each.
//!
//! Everything with servers is done with each generation of them that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::get;
use clap::CommandFactory;
use lp_exporter::cli::Cli;
use lp_exporter::metrics::FAMILIES;
use serde::Deserialize;
use serde_json::Value as Json;
use serde_yaml::Value;
use tempfile::TempDir;

const RULES: &str = "alertmanager/rules";
const TESTS: &str = "alertmanager/tests";
const RUNBOOKS: &str = "docs/runbooks";
/// What a runbook says, in this order.
const RUNBOOK_HEADINGS: [&str; 5] = [
    "What it means",
    "How bad it is",
    "How to find the cause",
    "How to mend it",
    "When to ignore it",
];
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn rules_are_valid() {
    for [promtool] in servers(["promtool"]) {
        for file in yaml_files(RULES) {
            succeeds(Command::new(&promtool).args(["check", "rules"]).arg(root().join(&file)));
        }
    }
}

#[test]
fn rules_do_what_their_tests_say() {
    for [promtool] in servers(["promtool"]) {
        for file in yaml_files(TESTS) {
            succeeds(Command::new(&promtool).args(["test", "rules"]).arg(root().join(&file)));
        }
    }
}

/// Each threshold, a tenth higher and a tenth lower, breaks a test: none is there for nothing, or at another place too.
#[test]
fn every_threshold_is_tested() {
    let Some([promtool]) = servers(["promtool"]).pop() else {
        return;
    };
    let mut count = 0;
    for file in yaml_files(RULES) {
        let text = read(&file);
        for (at, found) in text.match_indices(":threshold\n") {
            let Some(rest) = text[at + found.len()..].trim_start().strip_prefix("expr: vector(") else {
                continue;
            };
            let number = rest.split(')').next().expect("vector() is closed");
            let value: f64 = number.parse().expect("a threshold is a number");
            let start = text.len() - rest.len();
            let others = if value == 0.0 {
                vec![1.0]
            } else {
                vec![value * 0.9, value * 1.1]
            };
            for other in others {
                let changed = format!("{}{other}{}", &text[..start], &text[start + number.len()..]);
                let name = text[..at].lines().last().unwrap_or_default();
                assert!(
                    !passes_with(&promtool, &file, &changed, name.contains("prediction")),
                    "no test fails with {other} in place of the {number} in {file}: {name}"
                );
            }
            count += 1;
        }
    }
    assert!(count >= 14, "only {count} thresholds were found");
}

/// Whether every test that loads a rule file passes with another text of it. Those that take long come last, but for what
/// only they can see.
fn passes_with(promtool: &Path, file: &str, text: &str, is_prediction: bool) -> bool {
    let folder = tempfile::tempdir().expect("a temporary directory");
    copy_folder(&root().join(RULES), &folder.path().join("rules"));
    copy_folder(&root().join(TESTS), &folder.path().join("tests"));
    let name = Path::new(file).file_name().expect("a file has a name");
    fs::write(folder.path().join("rules").join(name), text).expect("it can be written");
    let slow = ["predictions.yaml", "daily.yaml"];
    let loads = format!("../rules/{}", name.to_string_lossy());
    let mut tests = yaml_files(TESTS);
    tests.retain(|test| read(test).contains(&loads));
    tests.sort_by_key(|test| slow.iter().rposition(|one| test.ends_with(one)));
    if is_prediction {
        tests.sort_by_key(|test| !test.ends_with(slow[0]));
    }
    tests.iter().all(|test| {
        let name = Path::new(test).file_name().expect("a file has a name");
        let output = Command::new(promtool)
            .args(["test", "rules"])
            .arg(folder.path().join("tests").join(name))
            .output()
            .expect("promtool runs");
        output.status.success()
    })
}

/// A node of one name in two clusters is two nodes. Where something is grouped or joined, the cluster is named; a
/// Pushgateway belongs to none, and neither does a threshold.
#[test]
fn every_join_is_by_cluster_too() {
    let mut count = 0;
    let mut found = BTreeSet::new();
    for (file, rule) in rules() {
        let expression = rule["expr"].as_str().expect("a rule has an expression");
        let expression = WITHOUT_CLUSTER.iter().fold(expression.to_owned(), |text, (part, _)| {
            found.extend(text.contains(part).then_some(*part));
            text.replace(part, "")
        });
        for word in ["by (", "on ("] {
            for (at, _) in expression.match_indices(word) {
                let labels = expression[at + word.len()..].split(')').next().unwrap_or_default();
                assert!(
                    labels.split(',').any(|label| label.trim() == "cluster"),
                    "{file}: `{word}{labels})` leaves the cluster out in {expression}"
                );
                count += 1;
            }
        }
        for word in ["ignoring", "without"] {
            assert!(!expression.contains(word), "{file}: {word} in {expression}");
        }
    }
    assert!(count > 30, "only {count} were looked at");
    assert_eq!(found.len(), WITHOUT_CLUSTER.len(), "an exception of nothing: {found:?}");
}

/// Where the cluster is left out, and why.
const WITHOUT_CLUSTER: [(&str, &str); 4] = [
    (
        "pushgateway:up:down{cluster=\"\"} and on () cluster:push_time_seconds:lost",
        "a Pushgateway may have no cluster, and what is pushed to it one",
    ),
    (
        "pushgateway:up:down unless on () cluster:push_time_seconds:success",
        "it is about nothing at all having come",
    ),
    (
        "unless on (namespace, persistentvolumeclaim)\nkubelet_volume_stats_capacity_bytes{instance!=\"\",cluster=\"\"}",
        "kubelet's series have no cluster, and ours may have one",
    ),
    (
        "max by (namespace, persistentvolumeclaim) (kubelet_volume_stats_capacity_bytes{instance!=\"\",cluster!=\"\"})",
        "kubelet's series have a cluster, and ours may have none",
    ),
];

#[test]
fn rules_name_metrics_that_exist() {
    let known: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    let mut used = BTreeSet::new();
    for (file, rule) in rules() {
        let mut texts = vec![rule["expr"].as_str().expect("a rule has an expression")];
        texts.extend(rule["annotations"]["description"].as_str());
        for word in texts.iter().flat_map(|text| words(text)) {
            if ["local_volume_", "lp_exporter_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
            {
                assert!(known.contains(word), "{file} asks for {word}, which nothing pushes");
                used.insert(word.to_owned());
            }
        }
    }
    assert!(used.len() > 15, "{used:?}");
}

#[test]
fn every_alert_says_what_people_need() {
    let texts = read("alertmanager/tests/texts.yaml");
    let mut summaries: BTreeMap<String, String> = BTreeMap::new();
    for (file, rule) in alerts() {
        let name = rule["alert"].as_str().expect("an alert has a name");
        let annotation = |which: &str| {
            let text = rule["annotations"][which].as_str();
            text.unwrap_or_else(|| panic!("{file}: {name} has no {which}"))
        };
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(
            ["info", "warning", "critical"].contains(&severity),
            "{name}: {severity:?}"
        );
        let summary = annotation("summary");
        assert!(!summary.contains("{{"), "the summary of {name} is not always the same");
        let other = summaries.insert(name.to_owned(), summary.to_owned());
        assert!(other.is_none_or(|other| other == summary), "{name} has two summaries");
        assert!(
            annotation("description").contains("{{"),
            "{name} does not name what it is about"
        );
        let runbook = format!("{RUNBOOKS}/{name}.md");
        assert_eq!(
            annotation("runbook_url"),
            format!("https://lp-exporter.example/{runbook}")
        );
        assert!(annotation("dashboard_url").starts_with("https://grafana.example/d/lp-exporter"));
        assert!(
            texts.contains(&format!("- alertname: {name}\n")),
            "no test shows how {name} arrives"
        );
    }
}

/// A runbook for each alert and for nothing else, each with the same sections, none of them empty, and each in the list.
#[test]
fn every_alert_has_a_runbook() {
    let alerts: BTreeSet<String> = alerts().iter().map(|(_, rule)| name_of(rule)).collect();
    let runbooks: BTreeSet<String> = files(RUNBOOKS, "md")
        .iter()
        .filter_map(|file| Some(Path::new(file).file_stem()?.to_string_lossy().into_owned()))
        .collect();
    assert_eq!(runbooks, alerts);
    let list = read("docs/alerts.md");
    for name in &alerts {
        let text = read(&format!("{RUNBOOKS}/{name}.md"));
        assert_eq!(text.lines().next(), Some(format!("# {name}").as_str()));
        let mut sections = text.split("\n## ").skip(1);
        for heading in RUNBOOK_HEADINGS {
            let section = sections.next().unwrap_or_else(|| panic!("{name} lacks {heading:?}"));
            let (title, rest) = section.split_once('\n').unwrap_or((section, ""));
            assert_eq!(title, heading, "in the runbook of {name}");
            assert!(rest.trim().len() > 20, "{name} says nothing under {heading:?}");
        }
        assert_eq!(sections.next(), None, "in the runbook of {name}");
        assert!(
            list.contains(&format!("| [`{name}`](runbooks/{name}.md) |")),
            "docs/alerts.md does not list {name}"
        );
    }
}

/// The thresholds and severities that the list names are those of the rules.
#[test]
fn the_list_of_alerts_agrees_with_the_rules() {
    let list = read("docs/alerts.md");
    let mut severities: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, rule) in alerts() {
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default().to_owned();
        severities.entry(name_of(&rule)).or_default().insert(severity);
    }
    for (name, found) in severities {
        let row = list.lines().find(|line| line.starts_with(&format!("| [`{name}`]")));
        let cell = row.and_then(|row| row.split('|').nth(2)).unwrap_or_default();
        let named: BTreeSet<String> = cell.split(',').map(|word| word.trim().to_owned()).collect();
        assert_eq!(named, found, "the severity of {name} in docs/alerts.md");
    }
    for (_, rule) in rules() {
        if let Some(threshold) = rule["record"].as_str().and_then(|name| name.strip_suffix(":threshold")) {
            let value = rule["expr"].as_str().unwrap_or_default();
            let value = value.trim_start_matches("vector(").trim_end_matches(')');
            let name = threshold.trim_start_matches("lp_exporter:");
            let row = format!("| `{name}` | {value} |");
            assert!(list.contains(&row), "docs/alerts.md lacks the row {row}");
        }
    }
}

/// Every query of a runbook finds something, where every family is there with all of its labels: so its metrics and labels
/// exist, and those that it asks for belong together.
#[test]
fn queries_of_runbooks_find_something() {
    let queries: Vec<(String, String)> = pages()
        .into_iter()
        .flat_map(|page| {
            let text = read(&page);
            let blocks = code_blocks(&text).into_iter();
            let queries = blocks.filter(|(language, _)| *language == "promql");
            queries.map(|(_, query)| (page.clone(), query)).collect::<Vec<_>>()
        })
        .collect();
    assert!(queries.len() >= 10, "only {} queries were found", queries.len());
    for (page, query) in &queries {
        // What is grouped by is not missed where it is not there.
        for (at, word) in query.match_indices("by (") {
            let labels = query[at + word.len()..].split(')').next().unwrap_or_default();
            for label in labels.split(',').map(str::trim) {
                let is_known = FAMILIES.iter().any(|family| family.labels.contains(&label));
                assert!(is_known || label == "cluster", "{page} groups by {label}: {query}");
            }
        }
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let test = |queries: &[(String, String)]| {
        let rules: Vec<String> = yaml_files(RULES)
            .iter()
            .map(|file| root().join(file).display().to_string())
            .collect();
        let expected: Vec<Json> = queries
            .iter()
            .map(|(_, query)| {
                serde_json::json!({
                    "expr": format!("count({query}) > bool 0"), "eval_time": "30m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                })
            })
            .collect();
        // The thresholds and what the alerts have in common come before what asks for them.
        let groups = [
            "lp-exporter-thresholds",
            "lp-exporter-node-thresholds",
            "lp-exporter-records",
        ];
        let text = serde_json::json!({
            "rule_files": rules, "evaluation_interval": "1m", "group_eval_order": groups,
            "tests": [{"interval": "1m", "input_series": everything(), "promql_expr_test": expected}],
        });
        write(&folder, "queries.yaml", &text.to_string())
    };
    let file = test(&queries);
    for [promtool] in servers(["promtool"]) {
        succeeds(Command::new(&promtool).args(["test", "rules"]).arg(&file));
    }
    // A label that its metric has not is noticed.
    let wrong = (
        "a test".to_owned(),
        "local_volume_scan_state{claim=\"CLAIM\"}".to_owned(),
    );
    let file = test(&[wrong]);
    for [promtool] in servers(["promtool"]) {
        let output = Command::new(&promtool).args(["test", "rules"]).arg(&file).output();
        assert!(!output.expect("promtool runs").status.success());
    }
}

/// A series of each family in each of our jobs, with the words that runbooks have in the places of names. What keeps
/// alerts away is not there.
fn everything() -> Vec<Json> {
    let families = FAMILIES
        .iter()
        .filter(|family| family.name != "local_volume_alert_disabled");
    let ours = families.flat_map(|family| {
        let labels: String = family
            .labels
            .iter()
            .map(|label| {
                let value = match (*label, family.name) {
                    ("namespace", _) => "NAMESPACE",
                    ("persistentvolumeclaim", _) => "CLAIM",
                    ("persistentvolume", _) => "PV",
                    ("node", _) => "NODE",
                    ("phase", _) => "Bound",
                    ("state", _) => "complete",
                    ("reason", "local_volume_info") => "",
                    ("reason", _) => "not_delivered",
                    _ => "any",
                };
                format!(",{label}=\"{value}\"")
            })
            .collect();
        let value = match family.name {
            "lp_exporter_interval_seconds" => "300x60",
            name if name.contains("timestamp") => "1+60x60",
            _ => "1x60",
        };
        [
            "lp-exporter",
            "lp-exporter-job",
            "lp-exporter-run",
            "lp-exporter-success",
        ]
        .map(|job| {
            let series = format!("{}{{job=\"{job}\",cluster=\"CLUSTER\"{labels}}}", family.name);
            serde_json::json!({"series": series, "values": value})
        })
    });
    let pushed = "push_time_seconds{job=\"lp-exporter-job\",cluster=\"CLUSTER\",node=\"NODE\"}";
    ours.chain([serde_json::json!({"series": pushed, "values": "1+60x60"})])
        .collect()
}

/// What runbooks and the page on alerts tell people to run: lp-exporter takes its commands as they stand, and the flags of
/// kubectl and of others are in their own help.
#[test]
fn commands_of_runbooks_exist() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut helps = BTreeMap::new();
    let has_kubectl = help_of(&mut helps, "kubectl", "options").is_some();
    if !has_kubectl {
        let word = "skipped the flags of kubectl in runbooks: kubectl is not on the PATH";
        assert!(!is_all_required(), "{word}");
        eprintln!("{word}");
    }
    for page in pages() {
        for call in calls_of(&page) {
            let program = call[0].as_str();
            *counts.entry(program.to_owned()).or_default() += 1;
            match program {
                "lp-exporter" => {
                    let parsed = Cli::command().try_get_matches_from(&call);
                    assert!(parsed.is_ok(), "{page}: {call:?}: {}", parsed.expect_err("it is none"));
                }
                "kubectl" if has_kubectl => check_kubectl(&page, &call, &mut helps),
                "kubectl" | "make" => {}
                _ => {
                    let (_, flags) = OTHERS
                        .iter()
                        .find(|(other, _)| *other == program)
                        .unwrap_or_else(|| panic!("{page} runs {program}, which nobody knows: {call:?}"));
                    for flag in long_flags(&call) {
                        assert!(flags.contains(&flag.as_str()), "{page}: does {program} know {flag}?");
                        let help = help_of(&mut helps, program, "");
                        assert!(
                            help.is_none_or(|help| help.contains(&flag)),
                            "{page}: {program} has no {flag}"
                        );
                    }
                }
            }
        }
    }
    assert!(counts["lp-exporter"] >= 5 && counts["kubectl"] >= 25, "{counts:?}");
    // What is looked for can fail.
    assert!(
        Cli::command()
            .try_get_matches_from(["lp-exporter", "measure", "--no-such", "/"])
            .is_err()
    );
    if has_kubectl {
        let help = help_of(&mut helps, "kubectl", "logs").expect("a help");
        assert!(has_flag(&help, "--tail") && !has_flag(&help, "--tai") && !has_flag(&help, "--no-such"));
    }
}

/// Other programs that runbooks run, with the long flags that they may have. Those that are on the PATH are asked, too.
const OTHERS: [(&str, &[&str]); 17] = [
    ("amtool", &[]),
    ("crictl", &["--prune"]),
    ("curl", &[]),
    ("dmesg", &[]),
    ("du", &["--inodes", "--max-depth"]),
    ("e2fsck", &[]),
    ("findmnt", &["--target"]),
    ("grep", &[]),
    ("iostat", &[]),
    ("journalctl", &["--vacuum-size"]),
    ("promtool", &[]),
    ("sed", &[]),
    ("sleep", &[]),
    ("smartctl", &[]),
    ("sort", &[]),
    ("tail", &[]),
    ("xfs_repair", &[]),
];

/// The subcommand exists, and it or all of kubectl has the flags.
fn check_kubectl(page: &str, call: &[String], helps: &mut BTreeMap<String, Option<String>>) {
    let name = call.get(1).map(String::as_str).unwrap_or_default();
    let name = match (name, call.get(2).map(String::as_str)) {
        ("create", Some("job")) => "create job",
        _ => name,
    };
    let general = help_of(helps, "kubectl", "options").unwrap_or_default();
    let help = help_of(helps, "kubectl", name);
    let help = help.unwrap_or_else(|| panic!("{page}: kubectl has no {name:?}"));
    let short = call
        .iter()
        .filter(|word| word.len() == 2 && word.starts_with('-') && *word != "--");
    for flag in long_flags(call).iter().chain(short) {
        assert!(
            has_flag(&help, flag) || has_flag(&general, flag),
            "{page}: kubectl {name} has no {flag}: {call:?}"
        );
    }
}

/// Whether a help of kubectl lists a flag: `    -n, --namespace='':`.
fn has_flag(help: &str, flag: &str) -> bool {
    let mut lines = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    lines.any(|line| {
        let mut names = line
            .split(", ")
            .map(|name| name.split(['=', ':']).next().unwrap_or_default());
        names.any(|name| name == flag)
    })
}

/// What a program says of itself or of a subcommand, asked once. None where there is no such program or subcommand.
fn help_of(known: &mut BTreeMap<String, Option<String>>, program: &str, subcommand: &str) -> Option<String> {
    let ask = || {
        // kubectl lists the flags of all subcommands as one that takes no flag.
        let help = (subcommand != "options").then_some("--help");
        let words = subcommand.split_whitespace().chain(help);
        let output = Command::new(program).args(words).output().ok()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // One that it does not know is answered with its general help.
        let is_known = output.status.success() && (program != "kubectl" || !text.starts_with("kubectl controls"));
        is_known.then_some(text)
    };
    let entry = known.entry(format!("{program} {subcommand}"));
    entry.or_insert_with(ask).clone()
}

fn long_flags(call: &[String]) -> Vec<String> {
    let flags = call.iter().filter(|word| word.starts_with("--") && word.len() > 2);
    flags
        .map(|word| word.split('=').next().unwrap_or_default().to_owned())
        .collect()
}

/// The runbooks, and the page on alerts.
fn pages() -> Vec<String> {
    let mut pages = files(RUNBOOKS, "md");
    pages.push("docs/alerts.md".to_owned());
    pages
}

/// The programs that a page tells people to run, with their arguments: in blocks of shell, and in the running text where a
/// span of code begins with a program and goes on.
fn calls_of(page: &str) -> Vec<Vec<String>> {
    let text = read(page);
    let mut calls = Vec::new();
    for (language, block) in code_blocks(&text) {
        match language {
            "sh" => calls.extend(calls_in(&block)),
            "promql" | "yaml" | "text" => {}
            other => panic!("{page} has a block of {other:?}"),
        }
    }
    let mut is_code = false;
    let prose: Vec<&str> = text
        .lines()
        .filter(|line| {
            is_code ^= line.starts_with("```");
            !is_code
        })
        .collect();
    let programs = OTHERS.map(|(program, _)| program);
    for span in prose.join("\n").split('`').skip(1).step_by(2) {
        let is_call = span
            .split_once(' ')
            .is_some_and(|(first, _)| programs.contains(&first) || ["kubectl", "lp-exporter"].contains(&first));
        if is_call {
            calls.extend(calls_in(&span.replace('\n', " ")));
        }
    }
    calls
}

/// The words of each command of a script: quotes are taken away, and what `$(…)` would give stays as it is.
fn calls_in(script: &str) -> Vec<Vec<String>> {
    let mut calls = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut depth = 0;
    for c in script.replace("\\\n", " ").chars() {
        match c {
            _ if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '(' | ')' if quote.is_none() => {
                depth += if c == '(' { 1 } else { -1 };
                word.get_or_insert_default().push(c);
            }
            _ if quote.is_some() || depth > 0 => word.get_or_insert_default().push(c),
            ' ' | '\n' | '|' | ';' | '&' => {
                let call = calls.last_mut().expect("there is always one");
                call.extend(word.take());
                if c != ' ' {
                    calls.push(Vec::new());
                }
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(
        quote.is_none() && depth == 0,
        "what is opened is not closed in: {script}"
    );
    calls.last_mut().expect("there is always one").extend(word);
    calls.retain(|call| !call.is_empty());
    calls
}

/// The changes that the page on alerts describes do what it says, to the files as they are.
#[test]
fn changes_that_the_page_describes_work() {
    let page = read("docs/alerts.md");
    let scripts: Vec<String> = code_blocks(&page)
        .into_iter()
        .filter(|(language, block)| *language == "sh" && block.contains("sed -i"))
        .map(|(_, block)| block)
        .collect();
    let changed = |script: &str| -> BTreeMap<String, String> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        copy_folder(&root().join("alertmanager"), &folder.path().join("alertmanager"));
        fs::copy(root().join("Makefile"), folder.path().join("Makefile")).expect("it can be copied");
        succeeds(Command::new("sh").args(["-euc", script]).current_dir(folder.path()));
        let rules = yaml_files(RULES).into_iter();
        let objects = rules.clone().map(|file| {
            let name = Path::new(&file).file_stem().expect("a name").to_string_lossy();
            format!("alertmanager/prometheus-operator/{name}/rule.yaml")
        });
        let files: Vec<String> = rules.chain(objects).collect();
        let text = |file: &String| fs::read_to_string(folder.path().join(file)).expect("it is there");
        files.iter().map(|file| (file.clone(), text(file))).collect()
    };
    let [addresses, threshold] = scripts.as_slice() else {
        panic!("the page describes other changes: {scripts:?}");
    };
    for (file, text) in changed(addresses) {
        assert!(
            !text.contains("lp-exporter.example") && !text.contains("grafana.example/"),
            "{file}"
        );
        let links = text
            .matches("https://git.example.com/lp-exporter/blob/main/docs/runbooks/")
            .count();
        assert_eq!(links, read(&file).matches("runbook_url").count(), "{file}");
    }
    for (file, text) in changed(threshold) {
        let before = read(&file);
        let pairs = before.lines().zip(text.lines());
        let differences: Vec<_> = pairs.filter(|(before, after)| before != after).collect();
        let expected: &[(&str, &str)] = match file.contains("volumes") {
            true => &[("expr: vector(0.80)", "expr: vector(0.75)")],
            false => &[],
        };
        let differences: Vec<_> = differences
            .iter()
            .map(|(before, after)| (before.trim(), after.trim()))
            .collect();
        assert_eq!(differences, expected, "{file}");
    }
    // For each threshold of the table the same command would do: its value stands in the line below its name.
    for (file, rule) in rules() {
        let Some(name) = rule["record"].as_str().filter(|name| name.ends_with(":threshold")) else {
            continue;
        };
        let text = read(&file);
        let mut lines = text.lines().skip_while(|line| !line.ends_with(name));
        let value = lines.nth(1).unwrap_or_default().trim();
        assert!(
            value.starts_with("expr: vector(") && value.ends_with(')'),
            "{name}: {value}"
        );
    }
}

/// Every threshold stands in a group of thresholds, and no alert compares with a number of its own, but for what is no
/// matter of taste.
#[test]
fn thresholds_stand_in_one_place() {
    // Something or nothing, a flag, and all of a capacity.
    const NUMBERS: [&str; 2] = ["0", "1"];
    for file in yaml_files(RULES) {
        let text: Value = serde_yaml::from_str(&read(&file)).expect("YAML");
        let groups = text["groups"].as_sequence().expect("groups");
        for (index, group) in groups.iter().enumerate() {
            for rule in group["rules"].as_sequence().expect("rules") {
                let name = rule["record"].as_str().unwrap_or_default();
                assert!(
                    index == 0 || !name.ends_with(":threshold"),
                    "{file}: {name} is not in the first group"
                );
                let expression = rule["expr"].as_str().expect("an expression");
                for (at, sign) in expression.match_indices(['<', '>', '=']) {
                    let rest = expression[at + sign.len()..].trim_start_matches(['=', ' ']);
                    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
                    let number = &rest[..end.unwrap_or(rest.len())];
                    assert!(
                        number.is_empty() || NUMBERS.contains(&number),
                        "{file}: {number} is a threshold of its own in {expression}"
                    );
                }
            }
        }
    }
}

/// What the page on alerts has Prometheus drop of a namespace are the series that `plan` would drop of its claims.
#[test]
fn dropping_by_namespace_is_dropping_by_claim() {
    let page = read("docs/alerts.md");
    let blocks = code_blocks(&page).into_iter();
    let mut blocks = blocks.filter(|(language, block)| *language == "yaml" && block.contains("metric_relabel_configs"));
    let (_, block) = blocks.next().expect("the page shows how");
    let of_namespace: Value = serde_yaml::from_str(&block).expect("YAML");
    let printed = relabeling(&["--claim-namespace", "shop"]);
    let printed = printed.split("---\n").next().unwrap_or_default();
    let of_claims: Value = serde_yaml::from_str(printed).expect("YAML");
    let regex = |rules: &Value| text_of(&rules["metric_relabel_configs"][0]["regex"]);
    let (of_claims, claims) = regex(&of_claims)
        .rsplit_once(';')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("two");
    assert_eq!(regex(&of_namespace), of_claims, "without {claims}");
}

#[test]
fn generated_objects_are_those_of_the_rules() {
    let made = tempfile::tempdir().expect("a temporary directory");
    succeeds(Command::new(root().join("alertmanager/generate")).arg(made.path()));
    let mut names = BTreeSet::new();
    for file in yaml_files(RULES) {
        let name = Path::new(&file)
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let committed = read(&format!("alertmanager/prometheus-operator/{name}/rule.yaml"));
        let fresh = fs::read_to_string(made.path().join(&name).join("rule.yaml")).expect("it was made");
        assert_eq!(
            committed, fresh,
            "alertmanager/prometheus-operator/{name} is not up to date: make rules"
        );
        let object: Value = serde_yaml::from_str(&committed).expect("YAML");
        let plain: Value = serde_yaml::from_str(&read(&file)).expect("YAML");
        assert_eq!(object["spec"]["groups"], plain["groups"], "{name}");
        assert_eq!(object["kind"], "PrometheusRule");
        names.insert(name);
    }
    let folders = fs::read_dir(root().join("alertmanager/prometheus-operator")).expect("a folder");
    let folders: BTreeSet<String> = folders
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(folders, names, "an object whose rules are gone");
}

#[test]
fn alertmanager_routes_by_severity() {
    for [amtool] in servers(["amtool"]) {
        let config = root().join("alertmanager/alertmanager.yaml");
        succeeds(Command::new(&amtool).arg("check-config").arg(&config));
        for (_, rule) in alerts() {
            let name = name_of(&rule);
            let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
            let receiver = match severity {
                "critical" => "pager",
                "warning" => "team",
                _ => "chores",
            };
            succeeds(
                Command::new(&amtool)
                    .args(["config", "routes", "test"])
                    .arg(format!("--config.file={}", config.display()))
                    .arg(format!("--verify.receivers={receiver}"))
                    .arg(format!("alertname={name}"))
                    .arg(format!("severity={severity}")),
            );
        }
        // Alerts of others are not ours to send to the pager.
        succeeds(
            Command::new(&amtool)
                .args(["config", "routes", "test"])
                .arg(format!("--config.file={}", config.display()))
                .args(["--verify.receivers=team", "alertname=Other", "severity=critical"]),
        );
    }
}

/// Prometheus scrapes, and fires; Alertmanager tells the webhook, and keeps to itself what its inhibition rules say.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_arrive_at_a_webhook() {
    for [pushgateway, prometheus, alertmanager] in
        servers(["prometheus-pushgateway", "prometheus", "prometheus-alertmanager"])
    {
        let gateway = start_pushgateway(&pushgateway).await;
        push_a_full_disk(&gateway).await;
        let webhook = Webhook::start().await;
        let folder = tempfile::tempdir().expect("a temporary directory");

        // The example, with the webhook as every receiver and without the long waits.
        let config = read("alertmanager/alertmanager.yaml")
            .replace("http://alerts.example", &webhook.url)
            .replace("group_wait: 30s", "group_wait: 3s")
            .replace("group_interval: 5m", "group_interval: 5s");
        assert!(config.contains("group_wait: 3s") && config.contains(&webhook.url));
        let config_file = write(&folder, "alertmanager.yaml", &config);
        let alertmanager = start_alertmanager(&alertmanager, &folder, &config_file).await;
        let rules = ["volumes.yaml", "node-filesystems.yaml"].map(|file| {
            let text = read(&format!("{RULES}/{file}"));
            write(&folder, file, &without_waiting(&text))
        });
        let prometheus = start_prometheus(&prometheus, &folder, &rules, &alertmanager, &scrape(&gateway)).await;

        let expected = BTreeSet::from([
            // To whom, which alert, and of which claim or device.
            ("/pager", "LocalVolumeNodeFilesystemFillingUp", "8:1"),
            ("/team", "LocalVolumeOverRequest", "orders"),
            ("/team", "LocalVolumeNodeFilesystemFillingUp", "8:2"),
            ("/team", "LocalVolumeNodeNotMeasured", "node-2"),
            (
                "/chores",
                "LocalVolumeOrphanedDirectories",
                "/opt/local-path-provisioner",
            ),
        ])
        .into_iter()
        .map(|(path, name, what)| (path.to_owned(), name.to_owned(), what.to_owned()))
        .collect::<BTreeSet<_>>();
        until("the expected alerts are at the webhook", || {
            let seen = webhook.seen();
            let is_there = expected.is_subset(&seen);
            async move { is_there.then_some(()).ok_or(format!("{seen:?}")) }
        })
        .await;

        // The warning on the same disk is there, and silenced, and so is the claim on the node that is not measured.
        let silenced = |alerts: Json| -> BTreeSet<(String, String)> {
            let alerts = alerts.as_array().cloned().unwrap_or_default().into_iter();
            alerts
                .filter(|alert| !alert["status"]["inhibitedBy"].as_array().is_none_or(Vec::is_empty))
                .map(|alert| (text(&alert["labels"]["alertname"]), text(&alert["labels"]["severity"])))
                .collect()
        };
        let url = format!("{}/api/v2/alerts", alertmanager.url);
        let found = silenced(get_json(&url).await.expect("Alertmanager answers"));
        let warning = |name: &str| (name.to_owned(), "warning".to_owned());
        let inhibited = BTreeSet::from([
            warning("LocalVolumeNodeFilesystemFillingUp"),
            (("LocalVolumeReleased").to_owned(), "info".to_owned()),
        ]);
        assert_eq!(found, inhibited);
        // Long enough for another round of messages.
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(webhook.seen(), expected, "something else arrived");
        let described = webhook.description("LocalVolumeOverRequest");
        assert_eq!(
            described.as_deref(),
            Some("Claim shop/orders on node node-1 uses 150% of its capacity. Nothing keeps it from filling the disk.")
        );
        drop(prometheus);
    }
}

/// One disk that is nearly full and one that fills up, a claim that is over its request, and a node that was never measured
/// with a released volume on it.
async fn push_a_full_disk(gateway: &Server) {
    let claim = "namespace=\"shop\",persistentvolumeclaim=\"orders\",persistentvolume=\"pv-1\",storageclass=\"local-path\",\
                 node=\"node-1\"";
    let released = "namespace=\"shop\",persistentvolumeclaim=\"old\",persistentvolume=\"pv-2\",\
                    storageclass=\"local-path\",node=\"node-2\",phase=\"Released\",reclaim_policy=\"Retain\",\
                    type=\"hostPath\",shared=\"false\",reason=\"\"";
    push(
        gateway,
        "job/lp-exporter",
        &exposition(&[
            ("lp_exporter_interval_seconds", "", "300"),
            ("lp_exporter_node_expected", "node=\"node-1\"", "1"),
            ("lp_exporter_node_expected", "node=\"node-2\"", "1"),
            ("local_volume_stats_capacity_bytes", claim, "1000"),
            ("local_volume_info", released, "1"),
        ]),
    )
    .await;
    push(
        gateway,
        "job/lp-exporter-success",
        &exposition(&[("lp_exporter_last_success_timestamp_seconds", "", "1")]),
    )
    .await;
    let first = "node=\"node-1\",path=\"/opt/local-path-provisioner\",device=\"8:1\",fstype=\"ext4\"";
    let second = "node=\"node-1\",path=\"/mnt/disks\",device=\"8:2\",fstype=\"xfs\"";
    push(
        gateway,
        "job/lp-exporter-job/node/node-1",
        &exposition(&[
            ("local_volume_stats_used_bytes", claim, "1500"),
            (
                "local_volume_scan_state",
                &format!("{claim},state=\"complete\",method=\"walk\""),
                "1",
            ),
            ("local_volume_filesystem_size_bytes", first, "1000"),
            ("local_volume_filesystem_size_bytes", second, "1000"),
            ("local_volume_filesystem_available_bytes", first, "100"),
            ("local_volume_filesystem_available_bytes", second, "190"),
            (
                "local_volume_orphaned_directories",
                "node=\"node-1\",path=\"/opt/local-path-provisioner\"",
                "3",
            ),
        ]),
    )
    .await;
}

/// Which alert keeps which other one away: one of each rule, and the same of another disk, node or cluster.
#[tokio::test(flavor = "multi_thread")]
async fn alertmanager_keeps_away_what_is_needless() {
    let disk = "alertname=LocalVolumeNodeFilesystemFillingUp,cluster=a,node=n1,device=8:1";
    let cases = [
        (
            format!("{disk},severity=critical"),
            "LocalVolumeNodeFilesystemFillingUp,node=n1,device=8:1,severity=warning",
            true,
        ),
        (
            format!("{disk},severity=critical"),
            "LocalVolumeNodeFilesystemFillingUp,node=n1,device=8:2,severity=warning",
            false,
        ),
        (
            format!("{disk},severity=critical"),
            "LocalVolumeNodeInodesFillingUp,node=n1,device=8:1,severity=warning",
            false,
        ),
        (
            format!("{disk},severity=warning"),
            "LocalVolumeNodeFilesystemFillingUp,node=n1,device=8:1,severity=critical",
            false,
        ),
        (
            "alertname=KubeNodeNotReady,cluster=a,node=n1".to_owned(),
            "LocalVolumeUsageHigh,node=n1",
            true,
        ),
        (
            "alertname=KubeNodeUnreachable,cluster=a,node=n1".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            true,
        ),
        (
            "alertname=KubeNodeNotReady,cluster=a,node=n1".to_owned(),
            "LocalVolumeUsageHigh,node=n2",
            false,
        ),
        (
            "alertname=KubeNodeNotReady,cluster=b,node=n1".to_owned(),
            "LocalVolumeUsageHigh,node=n1",
            false,
        ),
        (
            "alertname=LocalVolumeNodeNotMeasured,cluster=a,node=n1".to_owned(),
            "LocalVolumeReleased,node=n1",
            true,
        ),
        (
            "alertname=LocalVolumeNodeNotMeasured,cluster=a,node=n2".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            false,
        ),
        (
            "alertname=LpExporterPushFailing,cluster=a,node=n1".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            true,
        ),
        (
            "alertname=LpExporterPushRejected,cluster=a,node=n1,job=lp-exporter-job".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            true,
        ),
        (
            "alertname=LpExporterPushRejected,cluster=a,job=lp-exporter".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            false,
        ),
        (
            "alertname=LpExporterPushFailing,cluster=a,node=n1".to_owned(),
            "LocalVolumeUsageHigh,node=n1",
            false,
        ),
        (
            "alertname=LpExporterStale,cluster=a".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            true,
        ),
        (
            "alertname=LpExporterStale,cluster=b".to_owned(),
            "LocalVolumeNodeNotMeasured,node=n1",
            false,
        ),
        (
            "alertname=LpExporterPushgatewayDown,instance=p,cluster=a".to_owned(),
            "LpExporterStale",
            true,
        ),
        (
            "alertname=LpExporterPushgatewayDown,instance=p,cluster=b".to_owned(),
            "LpExporterStale",
            false,
        ),
        (
            "alertname=LpExporterPushgatewayDown,instance=p,cluster=a".to_owned(),
            "LocalVolumeUsageHigh,node=n1",
            false,
        ),
    ];
    let labels = |text: &str| -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    for [alertmanager] in servers(["prometheus-alertmanager"]) {
        for (source, target, is_kept_away) in &cases {
            let folder = tempfile::tempdir().expect("a temporary directory");
            // Nobody listens there, and nothing is sent before the test is over.
            let config = read("alertmanager/alertmanager.yaml").replace("http://alerts.example", "http://127.0.0.1:9");
            let config = write(&folder, "alertmanager.yaml", &config);
            let alertmanager = start_alertmanager(&alertmanager, &folder, &config).await;
            let url = format!("{}/api/v2/alerts", alertmanager.url);
            let target = format!("alertname={target},cluster=a");
            let alerts = [source, &target].map(|text| serde_json::json!({"labels": labels(text)}));
            let body = serde_json::to_vec(&alerts).expect("JSON");
            let request = http().post(&url).header("content-type", "application/json").body(body);
            assert!(request.send().await.expect("an answer").status().is_success());
            // An alert is processed a moment after it came; both have a state then.
            until(&format!("{source} beside {target}"), || {
                let url = url.clone();
                let wanted = labels(&target);
                async move {
                    let found = get_json(&url).await?;
                    let found = found.as_array().cloned().unwrap_or_default();
                    let states: Vec<&Json> = found.iter().map(|alert| &alert["status"]["state"]).collect();
                    let target = found.iter().find(|alert| serde_json::json!(wanted) == alert["labels"]);
                    let state = text(&target.ok_or("it is not there")?["status"]["state"]);
                    let expected = if *is_kept_away { "suppressed" } else { "active" };
                    let is_processed = states.len() == 2 && states.iter().all(|state| **state != "unprocessed");
                    (is_processed && state == expected)
                        .then_some(())
                        .ok_or(format!("{states:?}"))
                }
            })
            .await;
        }
    }
}

async fn start_alertmanager(program: &Path, folder: &TempDir, config: &Path) -> Server {
    Server::start(program, |address| {
        vec![
            format!("--config.file={}", config.display()),
            format!("--storage.path={}", folder.path().join("alertmanager").display()),
            format!("--web.listen-address={address}"),
            "--cluster.listen-address=".to_owned(),
        ]
    })
    .await
}

/// kubelet's numbers of a `local` volume are dropped by what `plan` prints, and ours are there under the same name; those of
/// other claims stay.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_local_claims_take_the_place_of_those_of_the_disk() {
    for [pushgateway, prometheus] in servers(["prometheus-pushgateway", "prometheus"]) {
        let gateway = start_pushgateway(&pushgateway).await;
        push_two_claims(&gateway).await;
        let kubelet = start_kubelet().await;
        let folder = tempfile::tempdir().expect("a temporary directory");
        let rules = ["volumes.yaml", "optional-kubelet-names.yaml"].map(|file| {
            let text = read(&format!("{RULES}/{file}"));
            write(&folder, file, &text)
        });
        let relabeling = relabeling(&["--claim-namespace", "shop"]);
        let (plain, _) = relabeling.split_once("---\n").expect("two documents");
        let plain: String = plain.lines().map(|line| format!("  {line}\n")).collect();
        let jobs = format!(
            "{}- job_name: kubelet\n  relabel_configs:\n  - {{source_labels: [__metrics_path__], target_label: \
             metrics_path}}\n{plain}  static_configs:\n  - targets: ['{kubelet}']\n",
            scrape(&gateway)
        );
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let prometheus = start_prometheus_with(&prometheus, &folder, &rules, &nobody.to_string(), &jobs).await;
        let url = format!("{}/api/v1/query", prometheus.url);
        let expected: BTreeSet<(String, String, String)> = [
            // Of kubelet, which knows them better: a claim on a disk that is attached.
            ("attached", "kubelet_volume_stats_capacity_bytes", "7000"),
            ("attached", "kubelet_volume_stats_used_bytes", "70"),
            // Ours: a local volume of which kubelet's are dropped, and a hostPath volume of which it has none.
            ("uploads", "kubelet_volume_stats_capacity_bytes", "1000"),
            ("uploads", "kubelet_volume_stats_used_bytes", "250"),
            ("orders", "kubelet_volume_stats_capacity_bytes", "1000"),
            ("orders", "kubelet_volume_stats_used_bytes", "500"),
        ]
        .map(|(claim, name, value)| (claim.to_owned(), name.to_owned(), value.to_owned()))
        .into();
        until("the series are those of each claim's own publisher", || {
            let url = url.clone();
            let expected = expected.clone();
            async move {
                let query = "{__name__=~\"kubelet_volume_stats_(capacity|used)_bytes\",job=\"kubelet\",\
                             metrics_path=\"/metrics\"}";
                let answer = query_json(&url, query).await?;
                let series = answer["data"]["result"].as_array().cloned().unwrap_or_default();
                let found: Vec<_> = series
                    .iter()
                    .map(|one| {
                        let metric = &one["metric"];
                        (
                            text(&metric["persistentvolumeclaim"]),
                            text(&metric["__name__"]),
                            text(&one["value"][1]),
                        )
                    })
                    .collect();
                let is_right = found.len() == expected.len() && found.iter().all(|one| expected.contains(one));
                is_right.then_some(()).ok_or(format!("{found:?}"))
            }
        })
        .await;
    }
}

async fn push_two_claims(gateway: &Server) {
    let labels = |claim: &str| {
        format!(
            "namespace=\"shop\",persistentvolumeclaim=\"{claim}\",persistentvolume=\"pv-{claim}\",\
             storageclass=\"local-path\",node=\"node-1\""
        )
    };
    let facts = |claim: &str, source: &str| {
        let labels = labels(claim);
        format!("{labels},phase=\"Bound\",reclaim_policy=\"Delete\",type=\"{source}\",shared=\"false\",reason=\"\"")
    };
    push(
        gateway,
        "job/lp-exporter",
        &exposition(&[
            ("lp_exporter_interval_seconds", "", "300"),
            ("local_volume_stats_capacity_bytes", &labels("uploads"), "1000"),
            ("local_volume_stats_capacity_bytes", &labels("orders"), "1000"),
            ("local_volume_info", &facts("uploads", "local"), "1"),
            ("local_volume_info", &facts("orders", "hostPath"), "1"),
        ]),
    )
    .await;
    push(
        gateway,
        "job/lp-exporter-job/node/node-1",
        &exposition(&[
            ("local_volume_stats_used_bytes", &labels("uploads"), "250"),
            ("local_volume_stats_used_bytes", &labels("orders"), "500"),
        ]),
    )
    .await;
}

/// A kubelet that publishes a claim on an attached disk, and the whole disk's numbers for a local volume.
async fn start_kubelet() -> SocketAddr {
    let series = |claim: &str, value: &str| {
        [("capacity", value), ("used", &value[..value.len() - 2])].map(|(which, value)| {
            let name = format!("kubelet_volume_stats_{which}_bytes");
            format!("{name}{{namespace=\"shop\",persistentvolumeclaim=\"{claim}\"}} {value}\n")
        })
    };
    let text = [series("attached", "7000"), series("uploads", "270000000000")]
        .concat()
        .concat();
    serve(Router::new().route("/metrics", get(move || async move { text }))).await
}

#[test]
fn the_plan_prints_what_drops_kubelets_numbers() {
    let expected = "tests/expected/plan-local-path-kubelet-relabeling.yaml";
    let found = relabeling(&[]);
    assert_eq!(
        found,
        read(expected),
        "it changed; if it should, write it to {expected}"
    );
    for document in serde_yaml::Deserializer::from_str(&found) {
        let document = Value::deserialize(document).expect("YAML");
        let rules = ["metric_relabel_configs", "metricRelabelings"].map(|field| document[field].as_sequence());
        assert!(rules.iter().flatten().all(|rules| !rules.is_empty()), "{document:?}");
    }
    // Nothing to drop is told, and is valid too.
    assert!(relabeling(&["--claim-namespace", "nobody"]).contains("metric_relabel_configs: []\n"));
}

fn relabeling(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lp-exporter"))
        .args([
            "plan",
            "--output",
            "kubelet-relabeling",
            "--from-file",
            "tests/dumps/local-path.json",
        ])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The job that scrapes the Pushgateway, as the README has it.
fn scrape(gateway: &Server) -> String {
    let address = gateway.url.replace("http://", "");
    format!("- job_name: pushgateway\n  honor_labels: true\n  static_configs:\n  - targets: ['{address}']\n")
}

/// The rules with nothing to wait for: an alert fires at its second evaluation, and a node is new for a second.
fn without_waiting(rules: &str) -> String {
    let lines = rules.lines().map(|line| match line.trim_start().split_once(": ") {
        Some(("for", _)) => "    for: 1s\n".to_owned(),
        _ => format!("{}\n", line.replace("offset 1h", "offset 1s")),
    });
    lines.collect()
}

fn exposition(samples: &[(&str, &str, &str)]) -> String {
    let mut by_name: BTreeMap<&str, String> = BTreeMap::new();
    for (name, labels, value) in samples {
        *by_name.entry(name).or_default() += &format!("{name}{{{labels}}} {value}\n");
    }
    by_name
        .iter()
        .map(|(name, samples)| format!("# TYPE {name} gauge\n{samples}"))
        .collect()
}

async fn start_prometheus(
    program: &Path,
    folder: &TempDir,
    rules: &[PathBuf],
    alertmanager: &Server,
    jobs: &str,
) -> Server {
    let address = alertmanager.url.replace("http://", "");
    start_prometheus_with(program, folder, rules, &address, jobs).await
}

/// Starts a Prometheus that scrapes and evaluates every second.
async fn start_prometheus_with(
    program: &Path,
    folder: &TempDir,
    rules: &[PathBuf],
    alertmanager: &str,
    jobs: &str,
) -> Server {
    let rules: String = rules.iter().map(|file| format!("- {}\n", file.display())).collect();
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files:\n{rules}alerting:\n  \
         alertmanagers:\n  - static_configs:\n    - targets: ['{alertmanager}']\nscrape_configs:\n{jobs}"
    );
    let config = write(folder, "prometheus.yml", &config);
    Server::start(program, |address| {
        vec![
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.path().join("prometheus").display()),
            format!("--web.listen-address={address}"),
        ]
    })
    .await
}

async fn start_pushgateway(program: &Path) -> Server {
    Server::start(program, |address| vec![format!("--web.listen-address={address}")]).await
}

async fn push(gateway: &Server, key: &str, body: &str) {
    let url = format!("{}/metrics/{key}", gateway.url);
    let answer = http().put(url).body(body.to_owned()).send().await;
    let status = answer.expect("the Pushgateway answers").status();
    assert!(status.is_success(), "the Pushgateway says {status}");
}

/// A server on a port of its own, ended when it is dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    async fn start(program: &Path, arguments: impl Fn(SocketAddr) -> Vec<String>) -> Server {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("the loopback has a free port");
        let process = command(program)
            .args(arguments(address))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Server {
            process,
            url: format!("http://{address}"),
        };
        let ready = format!("{}/-/ready", server.url);
        until("the server is ready", || {
            let ready = ready.clone();
            async move {
                let answer = http().get(&ready).send().await.map_err(|error| error.to_string())?;
                answer
                    .status()
                    .is_success()
                    .then_some(())
                    .ok_or(answer.status().to_string())
            }
        })
        .await;
        server
    }
}

/// A command for a server. Debian's Alertmanager reads templates from a folder of its package; where only the program is
/// there, it gets empty ones in a view of the file system of its own. Messages to webhooks are made without them.
fn command(program: &Path) -> Command {
    let templates = "/usr/share/prometheus/alertmanager";
    let bytes = fs::read(program).expect("a program can be read");
    let wants_templates = memchr::memmem::find(&bytes, templates.as_bytes()).is_some();
    if !wants_templates || Path::new(templates).is_dir() {
        return Command::new(program);
    }
    let script = format!(
        "mount -t tmpfs none /usr/share && mkdir -p {templates} && touch {templates}/default.tmpl {templates}/email.tmpl \
         && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"])
        .arg(program);
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What Alertmanager sent: to which path, and the message.
#[derive(Clone)]
struct Webhook {
    url: String,
    messages: Arc<Mutex<Vec<(String, Json)>>>,
}

impl Webhook {
    async fn start() -> Webhook {
        let messages: Arc<Mutex<Vec<(String, Json)>>> = Arc::default();
        let taken = Arc::clone(&messages);
        let router = Router::new().fallback(move |request: Request| {
            let taken = Arc::clone(&taken);
            async move {
                let path = request.uri().path().to_owned();
                let body = axum::body::to_bytes(request.into_body(), usize::MAX).await;
                let message = serde_json::from_slice(&body.expect("a body")).expect("JSON");
                taken.lock().expect("no holder panics").push((path, message));
            }
        });
        let address = serve(router).await;
        Webhook {
            url: format!("http://{address}"),
            messages,
        }
    }

    /// Every alert that arrived firing: to whom, its name, and what it is about.
    fn seen(&self) -> BTreeSet<(String, String, String)> {
        let mut seen = BTreeSet::new();
        for (path, alert) in self.alerts() {
            let labels = &alert["labels"];
            let what = ["device", "persistentvolumeclaim", "path", "node"];
            let what = what.iter().find_map(|label| labels[label].as_str()).unwrap_or_default();
            seen.insert((path, text(&labels["alertname"]), what.to_owned()));
        }
        seen
    }

    fn description(&self, name: &str) -> Option<String> {
        let mut alerts = self.alerts().into_iter();
        let (_, alert) = alerts.find(|(_, alert)| alert["labels"]["alertname"] == name)?;
        Some(text(&alert["annotations"]["description"]))
    }

    fn alerts(&self) -> Vec<(String, Json)> {
        let messages = self.messages.lock().expect("no holder panics");
        let mut found = Vec::new();
        for (path, message) in messages.iter() {
            for alert in message["alerts"].as_array().into_iter().flatten() {
                if alert["status"] == "firing" {
                    found.push((path.clone(), alert.clone()));
                }
            }
        }
        found
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let listener = listener.expect("the loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Waits until something is so; says at last how it is instead.
async fn until<F: Future<Output = Result<(), String>>>(what: &str, look: impl Fn() -> F) {
    let began = tokio::time::Instant::now();
    loop {
        match look().await {
            Ok(()) => return,
            Err(instead) => assert!(began.elapsed() < PATIENCE, "{what}: {instead}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn get_json(url: &str) -> Result<Json, String> {
    let answer = http().get(url).send().await.map_err(|error| error.to_string())?;
    let body = answer.bytes().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

async fn query_json(url: &str, query: &str) -> Result<Json, String> {
    let mut url = url::Url::parse(url).map_err(|error| error.to_string())?;
    url.query_pairs_mut().append_pair("query", query);
    get_json(url.as_str()).await
}

fn http() -> reqwest::Client {
    // An error says that another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .expect("plain http needs no certificates")
}

/// These programs of each generation in LP_EXPORTER_TEST_SERVERS, or else those on the PATH. All of them or none.
fn servers<const N: usize>(names: [&str; N]) -> Vec<[PathBuf; N]> {
    let mut found = Vec::new();
    if let Some(servers) = std::env::var_os("LP_EXPORTER_TEST_SERVERS") {
        let servers = PathBuf::from(servers);
        found.extend(["old", "new"].map(|generation| names.map(|name| servers.join(generation).join(name))));
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        found.push(names.map(|name| {
            let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(name));
            candidates.find(|program| program.is_file()).unwrap_or_default()
        }));
    }
    let wanted = found.len();
    found.retain(|programs| programs.iter().all(|program| program.is_file()));
    if found.len() < wanted {
        let word = format!(
            "skipped a test of the alerts: put {} into old/ and new/ of $LP_EXPORTER_TEST_SERVERS or on the PATH",
            names.join(" and ")
        );
        assert!(!is_all_required(), "{word}");
        eprintln!("{word}");
    }
    found
}

fn is_all_required() -> bool {
    std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_some_and(|value| value == "1")
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Every rule with its file.
fn rules() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for file in yaml_files(RULES) {
        let text: Value = serde_yaml::from_str(&read(&file)).expect("YAML");
        for group in text["groups"].as_sequence().into_iter().flatten() {
            for rule in group["rules"].as_sequence().into_iter().flatten() {
                found.push((file.clone(), rule.clone()));
            }
        }
    }
    assert!(!found.is_empty(), "no rules were found");
    found
}

/// Every rule that is an alert.
fn alerts() -> Vec<(String, Value)> {
    let mut found = rules();
    found.retain(|(_, rule)| rule["alert"].is_string());
    found
}

fn name_of(rule: &Value) -> String {
    rule["alert"].as_str().expect("an alert has a name").to_owned()
}

fn yaml_files(folder: &str) -> Vec<String> {
    files(folder, "yaml")
}

/// The files of a kind in a folder, not below it.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut found: Vec<String> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file() && path.extension().is_some_and(|own| own == extension))
        .filter_map(|path| Some(format!("{folder}/{}", path.file_name()?.to_string_lossy())))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{folder} is empty");
    found
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

/// The blocks of code of a page: their language and their text.
fn code_blocks(text: &str) -> Vec<(&str, String)> {
    let mut found: Vec<(&str, String)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                inside = true;
                found.push((language, String::new()));
            }
            None if inside => {
                if let Some((_, block)) = found.last_mut() {
                    *block += line;
                    *block += "\n";
                }
            }
            None => {}
        }
    }
    assert!(!inside, "a block is not closed");
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("it can be written");
    path
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
