//! What is published, and by what: one version everywhere, and the workflows and the Dockerfile as far as they can be
//! judged without a runner or a container engine.

#[path = "support/yaml.rs"]
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_yaml::Value;
use yaml::{list, pairs, text_of};

const WORKFLOWS: [&str; 2] = [CHECK, RELEASE];
const CHECK: &str = ".github/workflows/check.yml";
const RELEASE: &str = ".github/workflows/release.yml";
/// What a job may do beside reading; each is needed there.
const WRITES: [(&str, &str, &[&str]); 2] = [
    (RELEASE, "image", &["packages"]),
    (
        RELEASE,
        "publish",
        &["attestations", "contents", "id-token", "packages"],
    ),
];
/// What stands before the image's version wherever people copy it from, and where the version stands alone.
const IMAGE: &str = "lp-exporter:";
const NEW_TAG: &str = "newTag: ";
/// Their `newTag` is that of our own image.
const NAMED_OURS: [&str; 2] = ["manifests/overlays/default/kustomization.yaml", "docs/install.md"];

#[test]
fn one_version() {
    let version = version();
    let mut named = 0;
    for file in [
        "Makefile",
        "Dockerfile",
        "README.md",
        "docs/install.md",
        "manifests/rendered/default.yaml",
        "manifests/rendered/whole-stack.yaml",
    ] {
        let text = read(file);
        // A name without a version, as in a path, is none of an image.
        for after in text
            .split(IMAGE)
            .skip(1)
            .filter(|after| after.starts_with(|c: char| c.is_ascii_digit()))
        {
            let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || ".-".contains(c)));
            assert_eq!(&after[..end.unwrap_or(after.len())], version, "the image in {file}");
            named += 1;
        }
    }
    assert!(named >= 10, "only {named} images were found");
    for file in NAMED_OURS {
        let text = read(file);
        let tags: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix(NEW_TAG))
            .collect();
        assert!(tags.contains(&version.as_str()), "{file} sets the tags {tags:?}");
    }
    let changes = read("CHANGELOG.md");
    assert!(
        changes
            .lines()
            .any(|line| line.starts_with(&format!("## [{version}] - "))),
        "CHANGELOG.md does not know {version}"
    );
}

/// The compiler is the same for the checks, the image and the binaries, and so are the tools of the checks.
#[test]
fn one_compiler() {
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = "));
    let channel = channel.expect("a channel").trim_matches('"');
    let image = format!("docker.io/library/rust:{channel}-bookworm");
    let dockerfile = read("Dockerfile");
    assert!(
        dockerfile.contains(&format!("FROM {image} AS build\n")),
        "the Dockerfile builds with another"
    );
    assert!(
        dockerfile.contains(&format!("ENV RUSTUP_TOOLCHAIN={channel}\n")),
        "and asks for another"
    );
    let mut built_in_it = 0;
    for (file, name, job) in jobs() {
        if let Some(container) = job["container"].as_str() {
            assert_eq!(container, image, "{file}: {name}");
            assert_eq!(job["env"]["RUSTUP_TOOLCHAIN"], *channel, "{file}: {name}");
            built_in_it += 1;
        }
    }
    assert_eq!(built_in_it, 2, "the binaries, before and at a release");

    let ours = read(".ci/run");
    let installs = jobs().into_iter().flat_map(|(_, _, job)| commands(&job));
    let installs: Vec<String> = installs
        .filter(|command| command.starts_with("cargo install "))
        .collect();
    assert!(!installs.is_empty(), "no tool is installed");
    for command in installs {
        let tool = command.rsplit(' ').next().unwrap_or_default();
        let (name, version) = tool
            .split_once('@')
            .unwrap_or_else(|| panic!("{command}: which version?"));
        assert!(version.split('.').count() == 3, "{command}: which version?");
        let same = !ours.contains(&format!("{name}@")) || ours.contains(&format!("{name}@{version}"));
        assert!(same, "{command}, and another in .ci/run");
    }
}

/// What the image holds, and as whom it runs. Its binary is built as `make dist` builds it.
#[test]
fn the_dockerfile() {
    let dockerfile = read("Dockerfile");
    let lines: Vec<&str> = dockerfile.lines().collect();
    let (_, last) = dockerfile.rsplit_once("\nFROM ").expect("two stages");
    assert!(last.starts_with("scratch\n"), "the image holds more than it copies");
    for line in [
        "COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt",
        "COPY --from=build /lp-exporter /lp-exporter",
        "ENTRYPOINT [\"/lp-exporter\"]",
    ] {
        assert!(last.contains(line), "the Dockerfile lacks {line}");
    }
    let cronjob = yaml("manifests/base/cronjob.yaml");
    let pod = &cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let user = lines.iter().find_map(|line| line.strip_prefix("USER "));
    let expected = ["runAsUser", "runAsGroup"].map(|field| {
        let number = pod["securityContext"][field].as_u64();
        number.expect("the controller's user").to_string()
    });
    assert_eq!(user, Some(expected.join(":").as_str()), "the controller's user");

    let makefile = read("Makefile");
    for part in [
        "RUSTFLAGS=\"-C target-feature=+crt-static\" cargo rustc --locked --profile dist --target ",
        "-C link-arg=-Wl,-z,pack-relative-relocs",
        "uname -m)-unknown-linux-gnu",
    ] {
        assert!(dockerfile.contains(part) && makefile.contains(part), "{part}");
    }
    let ignored = read(".dockerignore");
    for folder in [".git", "target"] {
        assert!(
            ignored.lines().any(|line| line == folder),
            "{folder} is sent to the engine"
        );
    }
}

/// Actions are pinned to commits, with the version beside them; one action has one version.
#[test]
fn actions_are_pinned() {
    let mut pinned: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in WORKFLOWS {
        let text = read(file);
        let uses = text
            .lines()
            .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: "));
        for line in uses {
            let (action, version) = line
                .split_once(" # v")
                .unwrap_or_else(|| panic!("{file}: {line}: which version?"));
            let (name, commit) = action.split_once('@').expect("a commit");
            let is_commit = commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit());
            assert!(is_commit, "{file}: {line} is not pinned to a commit");
            let numbers = version.split('.').filter(|part| part.parse::<u32>().is_ok());
            assert_eq!(numbers.count(), 3, "{file}: {line}");
            pinned.entry(name.to_owned()).or_default().insert(line.to_owned());
        }
    }
    assert!(pinned.len() > 5, "{pinned:?}");
    for (name, versions) in pinned {
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

/// A job may read the source and no more, but for those that publish. Each ends in time.
#[test]
fn jobs_may_do_little() {
    for (file, name, job) in jobs() {
        let of_file = yaml(file)["permissions"].clone();
        let permissions = if job["permissions"].is_null() {
            &of_file
        } else {
            &job["permissions"]
        };
        let of_all = pairs(permissions);
        let writes: Vec<&str> = of_all
            .iter()
            .filter(|(_, access)| text_of(access) != "read")
            .map(|(scope, _)| *scope)
            .collect();
        let expected = WRITES.iter().find(|(of, job, _)| (*of, *job) == (file, name.as_str()));
        assert_eq!(
            writes,
            expected.map_or(&[][..], |(_, _, scopes)| scopes),
            "{file}: {name}"
        );
        assert!(
            job["timeout-minutes"].as_u64().is_some(),
            "{file}: {name} may go on for hours"
        );
        for step in list(&job["steps"]) {
            if step["uses"]
                .as_str()
                .is_some_and(|action| action.starts_with("actions/checkout@"))
            {
                assert_eq!(step["with"]["persist-credentials"], false, "{file}: {name}");
            }
        }
    }
}

/// The recipes and variables that are given to make are there, and CI's checks are among them.
#[test]
fn recipes_exist() {
    let makefile = read("Makefile");
    let recipes: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| Some(line.split_once(": ##")?.0))
        .collect();
    let mut made = BTreeSet::new();
    for (file, name, job) in jobs() {
        for command in commands(&job).iter().filter(|command| command.starts_with("make ")) {
            let recipe = command.split(' ').nth(1).unwrap_or_default();
            assert!(recipes.contains(recipe), "{file}: {name}: {command}");
            for (variable, _) in command.split(' ').filter_map(|word| word.split_once('=')) {
                assert!(
                    makefile.contains(&format!("$({variable})")),
                    "{file}: {name}: {command}"
                );
            }
            made.insert((file, recipe.to_owned()));
        }
    }
    for (file, recipe) in [
        (CHECK, "lint"),
        (CHECK, "test"),
        (CHECK, "deny"),
        (CHECK, "fuzz"),
        (CHECK, "dist"),
        (RELEASE, "dist"),
        (RELEASE, "sbom"),
    ] {
        assert!(
            made.contains(&(file, recipe.to_owned())),
            "{file} does not `make {recipe}`"
        );
    }
}

/// What an expression of a workflow names is there: a step before it, a job that it needs, an entry of the matrix.
#[test]
fn expressions_name_what_is_there() {
    let mut known = 0;
    for file in WORKFLOWS {
        let workflow = yaml(file);
        let jobs = pairs(&workflow["jobs"]);
        for (name, job) in &jobs {
            let needed = match &job["needs"] {
                Value::String(one) => vec![one.as_str()],
                several => list(several).iter().map(text_of).collect(),
            };
            let steps: BTreeSet<&str> = list(&job["steps"])
                .iter()
                .filter_map(|step| step["id"].as_str())
                .collect();
            let text = serde_yaml::to_string(job).expect("YAML");
            for expression in expressions(&text) {
                let parts: Vec<&str> = expression.split('.').collect();
                let is_there = match parts[..] {
                    ["github" | "secrets", _] => true,
                    ["env", variable] => !job["env"][variable].is_null(),
                    ["matrix", key] => matrix(job).contains(key),
                    ["steps", step, "outputs", _] => steps.contains(step),
                    ["needs", other, "outputs", output] => {
                        needed.contains(&other) && !jobs[other]["outputs"][output].is_null()
                    }
                    _ => false,
                };
                assert!(is_there, "{file}: {name}: {expression} is nothing");
                known += 1;
            }
            for other in needed {
                assert!(jobs.contains_key(other), "{file}: {name} needs {other}");
            }
        }
    }
    assert!(known > 15, "only {known} expressions were found");
}

/// Everything that is built is published: for two architectures, as `make dist` names them.
#[test]
fn both_architectures_are_published() {
    let workflow = yaml(RELEASE);
    let architectures = |job: &str| -> Vec<String> {
        let include = list(&workflow["jobs"][job]["strategy"]["matrix"]["include"]).iter();
        include.map(|one| text_of(&one["architecture"]).to_owned()).collect()
    };
    assert_eq!(architectures("binaries"), ["x86_64", "aarch64"]);
    assert_eq!(architectures("image"), ["amd64", "arm64"]);
    // cargo-deny judges the dependencies of both.
    for architecture in architectures("binaries") {
        assert!(
            read("deny.toml").contains(&format!("\"{architecture}-unknown-linux-gnu\"")),
            "{architecture}"
        );
    }
    let steps = |action: &str| -> Vec<Value> {
        let jobs = pairs(&workflow["jobs"]);
        let steps = jobs.values().flat_map(|job| list(&job["steps"]));
        let of_action = steps.filter(|step| step["uses"].as_str().is_some_and(|uses| uses.starts_with(action)));
        of_action.map(|step| step["with"].clone()).collect()
    };
    let uploaded = steps("actions/upload-artifact@");
    let uploaded: BTreeSet<String> = uploaded
        .iter()
        .map(|with| text_of(&with["name"]).replace("${{ matrix.architecture }}", "*"))
        .collect();
    let downloaded = steps("actions/download-artifact@");
    let downloaded: BTreeSet<String> = downloaded
        .iter()
        .map(|with| text_of(&with["pattern"]).to_owned())
        .collect();
    assert_eq!(uploaded, downloaded, "what is kept, and what is published");
    let attested = steps("actions/attest@");
    assert_eq!(attested.len(), 2, "the files, and the image");
}

/// The jobs of all workflows, with their file and name.
fn jobs() -> Vec<(&'static str, String, Value)> {
    let of_file = |file: &'static str| {
        let workflow = yaml(file);
        let jobs = pairs(&workflow["jobs"]).into_iter();
        jobs.map(|(name, job)| (file, name.to_owned(), job.clone()))
            .collect::<Vec<_>>()
    };
    WORKFLOWS.into_iter().flat_map(of_file).collect()
}

/// The lines of a job's commands.
fn commands(job: &Value) -> Vec<String> {
    let runs = list(&job["steps"]).iter().filter_map(|step| step["run"].as_str());
    runs.flat_map(|run| run.lines().map(|line| line.trim().to_owned()))
        .collect()
}

/// What stands between `${{` and `}}`.
fn expressions(text: &str) -> impl Iterator<Item = &str> {
    let parts = text.split("${{").skip(1);
    parts.filter_map(|part| Some(part.split_once("}}")?.0.trim()))
}

/// The keys of a job's matrix.
fn matrix(job: &Value) -> BTreeSet<&str> {
    let matrix = &job["strategy"]["matrix"];
    let included = list(&matrix["include"]).iter().flat_map(|one| pairs(one).into_keys());
    pairs(matrix).into_keys().chain(included).collect()
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn yaml(path: &str) -> Value {
    serde_yaml::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
