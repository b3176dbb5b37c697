//! What the documents tell people to type. Every command is one that is listed here, with how it is known to work: those of
//! this program are read by its own parser, kubectl's flags are looked up in kubectl, and the rest is run by another test or
//! said not to be run at all. That is about commands; a block as a whole that no test runs has a mark in its document.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use clap::Parser;
use clap::error::ErrorKind;
use lp_exporter::cli::Cli;

use super::{blocks, code_spans, documents, read, root};

/// How it is known that a command does what its document says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// Its arguments are read here, by the parser of the program itself.
    Parsed,
    /// The test in this file runs such a command, if not with these arguments; the second is what shows it there.
    RunBy(&'static str, &'static str),
    /// No test runs it, and why.
    NotRun(&'static str),
}

const PLAIN: How = How::NotRun("a tool of every system, around another command");
const ON_A_NODE: How = How::NotRun("for people on a node, as root");
const NEEDS_A_CLUSTER: How = How::NotRun("needs a cluster, and changes nothing there");
const CONTAINER_ENGINE: How = How::NotRun("needs a container engine");

/// Every command of the documents. One that is not here fails the test, and one that no document has any more, too.
const COMMANDS: [(&str, How); 59] = [
    ("amtool", How::RunBy("tests/alerts.rs", "\"check-config\"")),
    ("base64", PLAIN),
    ("buildah build", CONTAINER_ENGINE),
    ("cd", PLAIN),
    ("cargo bench", How::RunBy(".ci/run", "cargo bench")),
    ("cargo install", How::RunBy(".ci/run", "cargo install")),
    (
        "cargo run",
        How::RunBy("Makefile", "cargo run --release --example demo"),
    ),
    ("cargo test", How::RunBy(".ci/run", "cargo test")),
    ("crictl images", ON_A_NODE),
    (
        "curl",
        How::NotRun("asks a Pushgateway; tests/pushgateway.rs asks it in the same way"),
    ),
    ("dmesg", ON_A_NODE),
    ("docker build", CONTAINER_ENGINE),
    ("docker compose", CONTAINER_ENGINE),
    ("docker push", CONTAINER_ENGINE),
    ("docker save", CONTAINER_ENGINE),
    ("docker tag", CONTAINER_ENGINE),
    ("du", ON_A_NODE),
    ("echo", PLAIN),
    ("findmnt", ON_A_NODE),
    (
        "go",
        How::NotRun("asks for modules of another release; .ci/run does the same with those of this one"),
    ),
    ("grep", PLAIN),
    ("gunzip", PLAIN),
    ("head", PLAIN),
    ("htpasswd", How::RunBy("tests/manifests.rs", "\"htpasswd\"")),
    ("kind load", CONTAINER_ENGINE),
    (
        "kubectl annotate",
        How::NotRun("tests/dashboard sets such annotations without kubectl"),
    ),
    ("kubectl apply", How::RunBy("tests/cluster/install.rs", "\"apply\"")),
    ("kubectl create", How::RunBy("tests/cluster/runs.rs", "\"create\"")),
    ("kubectl debug", How::NotRun("needs a node, and the image there")),
    ("kubectl delete", How::RunBy("tests/cluster/install.rs", "\"delete\"")),
    ("kubectl describe", NEEDS_A_CLUSTER),
    ("kubectl diff", NEEDS_A_CLUSTER),
    ("kubectl get", How::RunBy("tests/cluster/kubectl.rs", "\"get\"")),
    ("kubectl kustomize", How::RunBy("tests/manifests.rs", "\"kustomize\"")),
    (
        "kubectl label",
        How::NotRun("tests/controller.rs sets such labels without kubectl"),
    ),
    ("kubectl logs", How::RunBy("tests/cluster/runs.rs", "\"logs\"")),
    ("kubectl patch", How::RunBy("tests/cluster/install.rs", "\"patch\"")),
    ("kubectl port-forward", NEEDS_A_CLUSTER),
    ("kubectl run", How::NotRun("needs a cluster with the image")),
    ("kubectl set", How::RunBy("tests/cluster/install.rs", "\"set\"")),
    ("kubectl wait", How::RunBy("tests/cluster/steps/runs.rs", "\"wait\"")),
    ("lp-exporter measure", How::Parsed),
    ("lp-exporter plan", How::Parsed),
    ("lp-exporter retire", How::Parsed),
    ("make rules", How::RunBy("tests/alerts.rs", "alertmanager/generate")),
    ("openssl rand", How::RunBy("tests/manifests.rs", "\"openssl\"")),
    ("openssl req", How::RunBy("tests/manifests.rs", "\"openssl\"")),
    ("openssl s_client", How::NotRun("asks a Pushgateway")),
    ("openssl x509", How::RunBy("tests/manifests.rs", "\"openssl\"")),
    ("podman build", CONTAINER_ENGINE),
    ("printf", PLAIN),
    ("promtool check", How::RunBy("tests/alerts.rs", "\"check\"")),
    ("promtool test", How::RunBy("tests/alerts.rs", "\"test\"")),
    ("sed", PLAIN),
    ("sleep", PLAIN),
    ("sort", PLAIN),
    ("sudo k3s", CONTAINER_ENGINE),
    ("tail", PLAIN),
    ("tr", PLAIN),
];

/// Stands right above a block that no test runs.
const BLOCK_MARK: &str = "<!-- No test runs this block as it stands. -->";
/// Stands alone in a document of which no test runs any block.
const PAGE_MARK: &str = "<!-- No test runs the blocks of commands on this page as they stand. -->";

/// The blocks that are run as they stand: the document, how the block begins, who runs it, and what shows it there. Those
/// that plan from a dump are not listed: they are run here.
const RUN: [(&str, &str, &str, &str); 9] = [
    (
        "README.md",
        "cargo run --release --example demo\ncargo test\n",
        ".ci/run",
        "make demo",
    ),
    (
        "docs/alerts.md",
        "sed -i 's|https://lp-exporter.example",
        "tests/alerts.rs",
        "let [addresses, threshold] = scripts",
    ),
    (
        "docs/alerts.md",
        "sed -i '/:claim_usage_high_ratio",
        "tests/alerts.rs",
        "let [addresses, threshold] = scripts",
    ),
    (
        "docs/install.md",
        "openssl req ",
        "tests/manifests.rs",
        "fn secrets_script(",
    ),
    (
        "docs/install.md",
        "kubectl delete clusterrole,",
        "tests/manifests/server.rs",
        "in removed_by_label()",
    ),
    (
        "docs/install.md",
        "kubectl patch cronjob ",
        "tests/manifests/retire.rs",
        "fn pipeline(",
    ),
    (
        "docs/install.md",
        "lp-exporter retire ",
        "tests/manifests/retire.rs",
        "let [retire, look] = documented",
    ),
    (
        "docs/install.md",
        "kubectl get namespace,clusterrole",
        "tests/manifests/server.rs",
        "fn looked_for_at_the_end(",
    ),
    (
        "docs/measure.md",
        "kubectl create namespace ",
        "tests/manifests/server.rs",
        "first(\"sh\")",
    ),
];

/// Programs whose second word says what they do.
const WITH_SUBCOMMANDS: [&str; 12] = [
    "buildah",
    "cargo",
    "crictl",
    "docker",
    "kind",
    "kubectl",
    "lp-exporter",
    "make",
    "openssl",
    "podman",
    "promtool",
    "sudo",
];

#[test]
fn every_command_is_one_that_is_known_to_work() {
    let known: BTreeMap<&str, How> = COMMANDS.into_iter().collect();
    assert_eq!(known.len(), COMMANDS.len(), "a command stands there twice");
    let mut named = BTreeSet::new();
    for (document, block) in shell_blocks() {
        assert_is_shell(&document, &block);
        for words in commands(&block) {
            let name = name_of(&words);
            if known.get(name.as_str()) == Some(&How::Parsed) {
                check_own(&document, &words, false);
            }
            // The program may also stand behind another one.
            let inner = match words[0].as_str() {
                "cargo" | "kubectl" => words.iter().position(|word| word == "--"),
                _ => None,
            };
            if let Some(at) = inner.filter(|_| !words.iter().any(|word| word == "--example" || word == "--bench")) {
                let rest = words[at + 1..].iter().map(String::as_str);
                match words[0].as_str() {
                    "cargo" => check_own(&document, &own(rest), false),
                    _ if words[at + 1] == "/lp-exporter" => check_own(&document, &own(rest.skip(1)), false),
                    _ => {}
                }
            }
            named.insert(name);
        }
    }
    let listed: BTreeSet<String> = known.keys().map(|name| (*name).to_owned()).collect();
    let [new, gone] = [named.difference(&listed), listed.difference(&named)].map(Vec::from_iter);
    assert!(
        new.is_empty() && gone.is_empty(),
        "the documents have commands that are not listed, {new:?}, and lack {gone:?}"
    );
    for (name, how) in COMMANDS {
        if let How::RunBy(test, shown) = how {
            assert!(
                read(test).contains(shown),
                "{test} does not run {name}: it lacks {shown}"
            );
        }
    }
}

/// A block that no test runs says so in its document, and no other one does.
#[test]
fn blocks_that_are_not_run_are_marked() {
    let mut used = [0; RUN.len()];
    let mut wrong = Vec::new();
    for (document, text) in documents() {
        let of_page = text.matches(PAGE_MARK).count();
        let marks = of_page + text.matches(BLOCK_MARK).count();
        let lines: Vec<&str> = text.lines().collect();
        let openings = lines.iter().enumerate().filter(|(_, line)| line.trim() == "```sh");
        let mut marked = 0;
        for ((at, _), block) in openings.zip(blocks(&text, "sh")) {
            let listed = RUN
                .iter()
                .position(|(of, start, ..)| *of == document && block.starts_with(start));
            if let Some(index) = listed {
                used[index] += 1;
            }
            let is_run = listed.is_some() || plans_from_a_dump(&block);
            let has_mark = of_page > 0 || at > 0 && lines[at - 1].trim() == BLOCK_MARK;
            marked += usize::from(has_mark);
            if is_run == has_mark {
                let should = if is_run { "is run, and marked" } else { "is not run" };
                wrong.push(format!("{document}:{}: {should}", at + 1));
            }
        }
        if marks != if of_page > 0 { 1 } else { marked } {
            wrong.push(format!("{document} has marks above something else"));
        }
    }
    assert!(
        wrong.is_empty(),
        "put or remove \"{BLOCK_MARK}\" above:\n{}",
        wrong.join("\n")
    );
    for ((document, start, test, shown), count) in RUN.into_iter().zip(used) {
        assert_eq!(count, 1, "blocks of {document} that begin with {start}");
        assert!(
            read(test).contains(shown),
            "{test} does not run {start}: it lacks {shown}"
        );
    }
}

/// Whether a block needs nothing but the program and a dump.
fn plans_from_a_dump(block: &str) -> bool {
    let commands = commands(block);
    let needs_the_dump_only = |words: &Vec<String>| match words[0].as_str() {
        "lp-exporter" => words[1] == "plan" && words.contains(&"dump.json".to_owned()),
        filter => ["sed", "head", "base64", "gunzip"].contains(&filter),
    };
    commands.iter().all(needs_the_dump_only) && commands[0][0] == "lp-exporter"
}

/// Blocks that need nothing but the program and a dump are run.
#[test]
fn blocks_that_plan_from_a_dump_run() {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_lp-exporter"));
    let folder = tempfile::tempdir().expect("a temporary directory");
    fs::copy(
        root().join("tests/dumps/local-path.json"),
        folder.path().join("dump.json"),
    )
    .expect("a dump");
    let others = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{others}", program.parent().expect("its folder").display());
    let mut count = 0;
    for (document, block) in shell_blocks() {
        if !plans_from_a_dump(&block) {
            continue;
        }
        let mut shell = Command::new("sh");
        let shell = shell
            .args(["-e", "-c", &block])
            .current_dir(folder.path())
            .env("PATH", &path);
        let output = shell.output().expect("every system has a shell");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{document}:\n{block}\n{said}"
        );
        count += 1;
    }
    assert!(count >= 2, "only {count} blocks were run");
}

/// `kubectl logs -f` does not wait for a container: of a pod without a node it shows nothing and succeeds, and while the
/// container is made it fails. The loop of the documents goes on until there is a log.
#[test]
fn the_loop_that_waits_for_a_log_ends_with_it() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("kubectl");
    let stand_in = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho >> asked\n\
                    case $(wc -l < asked) in\n1) ;;\n2) echo ContainerCreating >&2; exit 1 ;;\n*) echo first; echo last ;;\nesac\n";
    fs::write(&path, stand_in).expect("it can be written to");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
    let loops: BTreeSet<String> = shell_blocks()
        .iter()
        .flat_map(|(_, block)| block.lines())
        .filter(|line| line.starts_with("until ") && line.contains("first-run"))
        .map(str::to_owned)
        .collect();
    let [one]: [String; 1] = Vec::from_iter(loops).try_into().expect("the same loop everywhere");
    let others = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-euc", &one])
        .env("PATH", format!("{}:{others}", folder.path().display()))
        .output()
        .expect("every system has a shell");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "first\nlast\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "ContainerCreating\n");
}

/// Commands in the midst of a text may leave away what goes without saying, and no more.
#[test]
fn commands_in_texts_are_known_too() {
    let mut count = 0;
    for (document, text) in documents() {
        for span in code_spans(&text) {
            let words: Vec<String> = span.split_whitespace().map(str::to_owned).collect();
            if words.len() > 1 && words[0] == "lp-exporter" {
                check_own(&document, &words, true);
                count += 1;
            }
        }
    }
    assert!(count >= 10, "only {count} commands were found");
}

/// The flags that the documents give to kubectl are kubectl's.
#[test]
fn flags_of_kubectl_exist() {
    let help = |arguments: &[&str]| {
        let output = Command::new("kubectl").args(arguments).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(options) = help(&["options"]) else {
        assert!(
            std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
            "the flags of kubectl are not tested: it is not on the PATH"
        );
        eprintln!("skipped the flags of kubectl: it is not on the PATH");
        return;
    };
    let in_texts = documents().into_iter().flat_map(|(document, text)| {
        let spans = code_spans(&text).filter(|span| span.starts_with("kubectl "));
        let spans: Vec<(String, String)> = spans.map(|span| (document.clone(), span.to_owned())).collect();
        spans
    });
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut checked = 0;
    for (document, text) in shell_blocks().into_iter().chain(in_texts) {
        for words in commands(&text) {
            let [program, subcommand, ..] = &words[..] else {
                continue;
            };
            if program != "kubectl" || subcommand.starts_with('-') {
                continue;
            }
            // `kubectl create job` and `kubectl set env` have flags of their own, and `kubectl create secret generic` too.
            let mut path = vec![subcommand.as_str()];
            if ["create", "set"].contains(&subcommand.as_str()) {
                let length = if words.get(2).is_some_and(|word| word == "secret") {
                    2
                } else {
                    1
                };
                let deeper = words[2..].iter().take(length).filter(|word| !word.starts_with('-'));
                path.extend(deeper.map(String::as_str));
            }
            let known = helps.entry(path.join(" ")).or_insert_with(|| {
                let arguments: Vec<&str> = path.iter().copied().chain(["--help"]).collect();
                help(&arguments).unwrap_or_else(|| panic!("{document}: kubectl has no {path:?}"))
            });
            for flag in words.iter().take_while(|word| *word != "--").skip(2) {
                let has = |flag: &str| known.contains(flag) || options.contains(flag);
                let is_there = match flag.strip_prefix("--") {
                    Some(long) => has(&format!("--{}=", long.split('=').next().unwrap_or(long))),
                    None => match flag.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                        Some(short) => short.chars().all(|one| has(&format!("-{one}, --"))),
                        None => continue,
                    },
                };
                assert!(is_there, "{document}: kubectl {} has no {flag}", path.join(" "));
                checked += 1;
            }
        }
    }
    assert!(checked >= 100, "only {checked} flags were found");
}

/// The command as the program's own.
fn own<'w>(arguments: impl Iterator<Item = &'w str>) -> Vec<String> {
    ["lp-exporter"]
        .into_iter()
        .chain(arguments)
        .map(str::to_owned)
        .collect()
}

/// The program's parser takes a command. In a text what it needs may go without saying.
fn check_own(document: &str, words: &[String], is_in_text: bool) {
    let Err(error) = Cli::try_parse_from(words) else {
        return;
    };
    let goes_without_saying = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::DisplayHelp,
        ErrorKind::DisplayVersion,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
    ];
    assert!(
        is_in_text && goes_without_saying.contains(&error.kind()),
        "{document}: {}: {error}",
        words.join(" ")
    );
}

/// The program, and what it is told to do.
fn name_of(words: &[String]) -> String {
    let second = words.get(1).filter(|_| WITH_SUBCOMMANDS.contains(&words[0].as_str()));
    let name = words.iter().take(1).chain(second);
    name.map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// A shell understands a block.
fn assert_is_shell(document: &str, block: &str) {
    let mut shell = Command::new("sh")
        .arg("-n")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(root())
        .spawn()
        .expect("every system has a shell");
    let mut input = shell.stdin.take().expect("it was asked for");
    input.write_all(block.as_bytes()).expect("it reads a block");
    drop(input);
    let output = shell.wait_with_output().expect("it ends");
    assert!(
        output.status.success(),
        "{document}: {}:\n{block}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The blocks of shell in all documents.
fn shell_blocks() -> Vec<(String, String)> {
    let of_document = |(document, text): (String, String)| {
        let blocks = blocks(&text, "sh").into_iter();
        blocks.map(move |block| (document.clone(), block))
    };
    let found: Vec<(String, String)> = documents().into_iter().flat_map(of_document).collect();
    assert!(found.len() >= 80, "only {} blocks of shell were found", found.len());
    found
}

/// The commands of a piece of shell, word by word: enough of a shell's grammar for what documents have.
fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut is_target = false;
    let mut characters = text.chars().peekable();
    let end_word = |word: &mut Option<String>, is_target: &mut bool, found: &mut Vec<Vec<String>>| {
        if let Some(done) = word.take()
            && !std::mem::take(is_target)
            && let Some(last) = found.last_mut()
        {
            last.push(done);
        }
    };
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('\n') | None => {}
                Some(other) => word.get_or_insert_default().push(other),
            },
            '\'' | '"' => {
                let quoted = characters.by_ref().take_while(|other| *other != character);
                word.get_or_insert_default().extend(quoted);
            }
            '#' if word.is_none() => while characters.next_if(|other| *other != '\n').is_some() {},
            // What is substituted is a word like any other.
            '$' if characters.peek() == Some(&'(') => {
                word.get_or_insert_default()
                    .extend(characters.by_ref().take_while(|other| *other != ')'));
            }
            '<' | '>' => {
                end_word(&mut word, &mut is_target, &mut found);
                is_target = true;
            }
            '\n' | ';' | '|' | '&' => {
                end_word(&mut word, &mut is_target, &mut found);
                is_target = false;
                found.push(Vec::new());
            }
            ' ' | '\t' => end_word(&mut word, &mut is_target, &mut found),
            '{' | '}' if word.is_none() => {}
            other => word.get_or_insert_default().push(other),
        }
    }
    end_word(&mut word, &mut is_target, &mut found);
    // What a loop tries and does are commands.
    for words in &mut found {
        let is_of_the_shell = |word: &String| ["until", "do", "done"].contains(&word.as_str());
        words.drain(..words.iter().take_while(|word| is_of_the_shell(word)).count());
    }
    found.retain(|words| !words.is_empty());
    found
}

#[test]
fn commands_are_told_apart() {
    for (text, expected) in [
        (
            "a -b 'c | d' | e\nf # g",
            vec![vec!["a", "-b", "c | d"], vec!["e"], vec!["f"]],
        ),
        ("a \\\n  b > c &\nd", vec![vec!["a", "b"], vec!["d"]]),
        ("a x-$(date +%s) < /dev/null", vec![vec!["a", "x-(date +%s"]]),
        ("{\n  a 'b\nc'\n} > d", vec![vec!["a", "b\nc"]]),
        (
            "until a -f b | c .; do d 1; done",
            vec![vec!["a", "-f", "b"], vec!["c", "."], vec!["d", "1"]],
        ),
    ] {
        assert_eq!(commands(text), expected, "{text}");
    }
}
