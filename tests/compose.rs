//! compose.yaml starts what manifests/overlays/whole-stack starts, without the exporter: the same images, arguments and
//! files. No container engine is needed here, so it is not started.

#[path = "support/yaml.rs"]
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_yaml::Value;
use yaml::{list, pairs, text_of};

const COMPOSE: &str = "compose.yaml";
const WHOLE_STACK: &str = "manifests/rendered/whole-stack.yaml";
/// What a service may say: a name that compose does not know would be refused by it.
const FIELDS: [&str; 9] = [
    "image",
    "command",
    "environment",
    "ports",
    "volumes",
    "tmpfs",
    "read_only",
    "cap_drop",
    "security_opt",
];

/// The files that a container finds, by their paths in it.
type Files = BTreeMap<PathBuf, String>;

#[test]
fn the_services_are_those_of_the_whole_stack() {
    let (compose, objects) = (compose(), objects());
    let deployments = objects.iter().filter(|object| object["kind"] == "Deployment");
    let names: BTreeSet<&str> = deployments.map(|object| text_of(&object["metadata"]["name"])).collect();
    assert_eq!(
        services(&compose).keys().copied().collect::<BTreeSet<_>>(),
        names,
        "services and Deployments"
    );
    for (name, service) in services(&compose) {
        let pod = &one(&objects, "Deployment", name)["spec"]["template"]["spec"];
        check_service(name, service, pod, &objects);
    }
}

fn check_service(name: &str, service: &Value, pod: &Value, objects: &[Value]) {
    let container = &pod["containers"][0];
    for field in service.as_mapping().expect("a service").keys() {
        assert!(FIELDS.contains(&text_of(field)), "{name}: {field:?}");
    }
    assert_eq!(service["image"], container["image"], "{name}");
    assert_eq!(list(&service["command"]), list(&container["args"]), "{name}");
    let environment = list(&container["env"]).iter();
    let environment = environment.map(|variable| (text_of(&variable["name"]), &variable["value"]));
    assert_eq!(
        pairs(&service["environment"]),
        environment.collect::<BTreeMap<_, _>>(),
        "{name}"
    );

    // Bound to loopback, under the number that the manifests give it too.
    let port = container["ports"][0]["containerPort"].as_u64().expect("a port");
    let of_service = one(objects, "Service", name)["spec"]["ports"][0]["port"].as_u64();
    let ports: Vec<&str> = list(&service["ports"]).iter().map(text_of).collect();
    let number = of_service.expect("a port");
    assert_eq!(ports, [format!("127.0.0.1:{number}:{port}")], "{name}");

    assert_eq!(
        mounted(service),
        configured(pod, objects),
        "{name}: the files it is given"
    );
    let data: Vec<&str> = list(&service["tmpfs"])
        .iter()
        .map(|mount| text_of(mount).split(':').next().unwrap_or_default())
        .collect();
    let mounts = list(&container["volumeMounts"]).iter();
    let writable = mounts.filter(|mount| mount["readOnly"] != true);
    let expected: Vec<&str> = writable.map(|mount| text_of(&mount["mountPath"])).collect();
    assert_eq!(data, expected, "{name}: where it may write");
    assert_eq!(service["read_only"], true, "{name}");
    assert_eq!(service["cap_drop"][0], "ALL", "{name}");
    assert_eq!(service["security_opt"][0], "no-new-privileges:true", "{name}");
}

/// Prometheus and Alertmanager of both generations take the files that they are given, the rules included.
#[test]
fn the_configurations_are_taken() {
    let compose = compose();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let place = |path: &Path| folder.path().join(path.strip_prefix("/").expect("a whole path"));
    for (service, file, tool, arguments, expected) in [
        (
            "prometheus",
            "/etc/prometheus/prometheus.yml",
            "promtool",
            &["check", "config"][..],
            "2 rule files found",
        ),
        (
            "alertmanager",
            "/etc/alertmanager/alertmanager.yml",
            "amtool",
            &["check-config"],
            "inhibit rules",
        ),
    ] {
        for (path, content) in mounted(services(&compose)[service]) {
            let rules = place(Path::new("/etc/prometheus-rules"));
            let content = content.replace("/etc/prometheus-rules", rules.to_str().expect("text"));
            let path = place(&path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            fs::write(path, content).expect("it can be written");
        }
        for program in servers(tool) {
            let output = Command::new(&program)
                .args(arguments)
                .arg(place(Path::new(file)))
                .output();
            let output = output.expect("it runs");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(
                output.status.success() && said.contains(expected),
                "{}: {said}",
                program.display()
            );
        }
    }
}

/// The services reach each other under the names by which their configurations call them.
#[test]
fn the_names_are_those_of_services() {
    let compose = compose();
    let services = services(&compose);
    let files: Vec<Files> = services.values().map(|service| mounted(service)).collect();
    let yaml = files
        .iter()
        .flatten()
        .filter(|(path, _)| path.extension() != Some("json".as_ref()));
    let mut called = BTreeSet::new();
    for (path, content) in yaml {
        // Ours are asked by name and port, without a domain.
        let words = content.split(|c: char| !(c.is_ascii_alphanumeric() || ":-.".contains(c)));
        for (name, port) in words.filter_map(|word| word.trim_start_matches("http:").split_once(':')) {
            let is_port = port.len() == 4 && port.chars().all(|c| c.is_ascii_digit());
            if !is_port || name == "localhost" {
                continue;
            }
            let service = services
                .get(name)
                .unwrap_or_else(|| panic!("{}: no service {name}", path.display()));
            let published = text_of(&service["ports"][0]);
            assert!(
                published.ends_with(&format!(":{port}")),
                "{}: {name}:{port}",
                path.display()
            );
            called.insert(name.to_owned());
        }
    }
    let expected = ["alertmanager", "prometheus", "pushgateway"].map(str::to_owned);
    assert_eq!(called, BTreeSet::from(expected));
}

/// What compose.yaml mounts into a service, every file of a folder by itself.
fn mounted(service: &Value) -> Files {
    let mut files = Files::new();
    for volume in list(&service["volumes"]) {
        let parts: Vec<&str> = text_of(volume).split(':').collect();
        let [source, target, options] = parts[..] else {
            panic!("{volume:?} is no source, target and options");
        };
        assert!(
            options.split(',').any(|option| option == "ro"),
            "{volume:?} may be written to"
        );
        let source = source.strip_prefix("./").expect("a path of the project");
        put(&root().join(source), Path::new(target), &mut files);
    }
    files
}

fn put(source: &Path, target: &Path, files: &mut Files) {
    if source.is_dir() {
        for entry in fs::read_dir(source).expect("a folder of the project") {
            let entry = entry.expect("an entry of it");
            put(&entry.path(), &target.join(entry.file_name()), files);
        }
    } else {
        let text = fs::read_to_string(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        files.insert(target.to_owned(), text);
    }
}

/// What a pod of the overlay finds, by its ConfigMaps.
fn configured(pod: &Value, objects: &[Value]) -> Files {
    let mut files = Files::new();
    for mount in list(&pod["containers"][0]["volumeMounts"]) {
        let volumes = list(&pod["volumes"]);
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
        let map = &volume.expect("a volume")["configMap"];
        let Some(name) = map["name"].as_str() else {
            continue;
        };
        let data = pairs(&one(objects, "ConfigMap", name)["data"]);
        let mut paths: BTreeMap<&str, &str> = data.keys().map(|key| (*key, *key)).collect();
        let items = list(&map["items"]).iter();
        let items: BTreeMap<_, _> = items
            .map(|item| (text_of(&item["key"]), text_of(&item["path"])))
            .collect();
        if !items.is_empty() {
            paths = items;
        }
        for (key, path) in paths {
            let target = Path::new(text_of(&mount["mountPath"])).join(path);
            files.insert(target, text_of(data[key]).to_owned());
        }
    }
    files
}

fn compose() -> Value {
    let text = fs::read_to_string(root().join(COMPOSE)).expect("a file of the project");
    serde_yaml::from_str(&text).expect("YAML")
}

fn services(compose: &Value) -> BTreeMap<&str, &Value> {
    pairs(&compose["services"])
}

fn objects() -> Vec<Value> {
    let text = fs::read_to_string(root().join(WHOLE_STACK)).expect("a file of the project");
    let objects = serde_yaml::Deserializer::from_str(&text).map(Value::deserialize);
    objects.map(|object| object.expect("YAML")).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// A program of the servers, in both generations.
fn servers(name: &str) -> Vec<PathBuf> {
    let folder = std::env::var_os("LP_EXPORTER_TEST_SERVERS").map(PathBuf::from);
    let folder = folder.unwrap_or_default();
    let programs = ["old", "new"].map(|generation| folder.join(generation).join(name));
    let found: Vec<_> = programs.into_iter().filter(|program| program.is_file()).collect();
    if found.len() < 2 {
        assert!(
            std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
            "{name} of both generations is missing"
        );
        eprintln!("skipped {name}: set LP_EXPORTER_TEST_SERVERS to a directory with it in old/ and new/");
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
