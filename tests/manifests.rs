//! The manifests agree with the program and with each other.
//!
//! What an overlay makes stands in manifests/rendered/, where it is looked at without any tool. With kubectl on the PATH
//! it is compared with what kustomize makes now, and with a cluster it is tried there: `manifests/server.rs`. What is missing
//! is skipped with a word to stderr; with `LP_EXPORTER_TEST_REQUIRE_ALL=1` that is a failure.

#[path = "manifests/retire.rs"]
mod retire;
#[path = "manifests/server.rs"]
mod server;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::CommandFactory;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolumeClaim, PodSpec, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use lp_exporter::cli::Cli;
use lp_exporter::deadlines::{JobClock, deadlines};
use lp_exporter::kubernetes::job::Template;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

use support::real_pushgateway::{Server, free_address, pushgateways};
use support::yaml::{list, text_of};

const INSTALL: &str = "docs/install.md";
const NAMESPACE: &str = "lp-exporter";
/// The Secrets that people make themselves: docs/install.md says how.
const SECRETS: [&str; 2] = ["pushgateway-server", "pushgateway-client"];
const OPERATOR_GROUP: &str = "monitoring.coreos.com";
/// All annotations of an object together have at most 256 KiB; some is left for others.
const APPLIED_MAX_BYTES: usize = 250 * 1024;
/// The label of everything that is applied.
const PART_OF: &str = "app.kubernetes.io/part-of=lp-exporter";

/// The schedule, the interval that the program is told, and the deadline that ends it stand in three places of one file:
/// they agree, and leave the workers time to measure.
#[test]
fn schedule_interval_and_deadline_agree() {
    let overlay = yaml("manifests/overlays/default/kustomization.yaml");
    let patch = overlay["patches"][0]["patch"]
        .as_str()
        .expect("the patch of the CronJob");
    let cron_job: Value = serde_yaml::from_str(patch).expect("the patch is YAML");
    let job = &cron_job["spec"]["jobTemplate"]["spec"];
    let env = &job["template"]["spec"]["containers"][0]["env"][0];
    assert_eq!(env["name"], "LP_EXPORTER_INTERVAL");

    let interval = humantime::parse_duration(env["value"].as_str().expect("text")).expect("a duration");
    assert_eq!(period(cron_job["spec"]["schedule"].as_str().expect("text")), interval);
    let deadline = Duration::from_secs(job["activeDeadlineSeconds"].as_u64().expect("a number"));
    let nested = deadlines(
        interval,
        Some(JobClock {
            active_deadline: deadline,
            elapsed: Duration::ZERO,
        }),
    )
    .expect("deadlines that nest");
    assert!(
        nested.worker_budget * 2 > interval,
        "{nested:?} leaves less than half of {interval:?} to measure in"
    );
}

/// The namespace and the names that the base gives are those that the program looks for or makes.
#[test]
fn the_base_names_what_the_program_expects() {
    let container =
        yaml("manifests/base/cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0].clone();
    let mounted_at = container["volumeMounts"][0]["mountPath"].as_str().expect("text");
    let template = container["env"]
        .as_sequence()
        .expect("a list")
        .iter()
        .find(|env| env["name"] == "LP_EXPORTER_JOB_TEMPLATE");
    let template = template.expect("the template is given")["value"]
        .as_str()
        .expect("text");
    let files = yaml("jobs/kustomization.yaml")["configMapGenerator"][0]["files"].clone();
    assert_eq!(template, format!("{mounted_at}/{}", files[0].as_str().expect("text")));
}

/// The component grants one right, to the account that the base makes, and sets the flag that needs it.
#[test]
fn the_component_for_pods_grants_one_right() {
    let text = read("manifests/components/locate-by-pods/rbac.yaml");
    let objects = serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML"));
    let [role, binding]: [Value; 2] = objects.collect::<Vec<_>>().try_into().expect("a role and its binding");
    let rule = "[{apiGroups: [''], resources: [pods], verbs: [list]}]";
    assert_eq!(role["rules"], serde_yaml::from_str::<Value>(rule).expect("YAML"));
    assert_eq!(role["kind"], "ClusterRole");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let account = "{kind: ServiceAccount, name: lp-exporter, namespace: lp-exporter}";
    assert_eq!(
        binding["subjects"][0],
        serde_yaml::from_str::<Value>(account).expect("YAML")
    );
    let patch = yaml("manifests/components/locate-by-pods/kustomization.yaml")["patches"][0]["patch"].clone();
    let patch: Value = serde_yaml::from_str(patch.as_str().expect("a patch")).expect("YAML");
    let env = &patch["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["env"][0];
    assert_eq!(
        (&env["name"], &env["value"]),
        (&"LP_EXPORTER_LOCATE_BY_PODS".into(), &"true".into())
    );
}

/// What `kubectl kustomize` makes of each overlay is what stands in manifests/rendered/.
#[test]
fn overlays_are_rendered() {
    if !has_kubectl() {
        return skip("what overlays make", "kubectl is not on the PATH");
    }
    for overlay in overlays() {
        let found = kubectl(&["kustomize", &format!("manifests/overlays/{overlay}")]).expect("the overlay builds");
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{overlay}.yaml"));
        fs::write(&new, &found).expect("the folder for temporary files can be written to");
        let rendered = root().join(rendered(&overlay));
        assert!(
            fs::read_to_string(&rendered).unwrap_or_default() == found,
            "the overlay {overlay} makes something else now: diff {new} {rendered}; if it should: cp {new} {rendered}",
            new = new.display(),
            rendered = rendered.display(),
        );
    }
    let known: Vec<_> = overlays().iter().map(|overlay| format!("{overlay}.yaml")).collect();
    assert_eq!(entries("manifests/rendered"), known, "a rendered form of no overlay");
}

/// Each component changes something, every two of them go together in any order, and all of them do in that of the table.
/// What docs/install.md excepts is as it says there.
#[test]
fn components_build() {
    if !has_kubectl() {
        return skip("what components make", "kubectl is not on the PATH");
    }
    const LAST: &str = "existing-pushgateway";
    let copy = copy_of_the_manifests();
    let build = |components: &[&str]| {
        build_own(copy.path(), "default", components).map(|mut objects| {
            objects.iter().for_each(check_object);
            check_references(&objects);
            objects.iter_mut().for_each(sort_named);
            objects.sort_by_key(name_of);
            objects
        })
    };
    let built = |components: &[&str]| build(components).unwrap_or_else(|error| panic!("{components:?}: {error}"));
    let all = documented("Components");
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    assert_eq!(all.last(), Some(&LAST), "the order of the table");
    let default = built(&[]);
    for component in &all {
        assert_ne!(
            built(&[component]),
            default,
            "the component {component} changes nothing"
        );
    }
    for (index, first) in all.iter().enumerate() {
        for second in &all[index + 1..] {
            let pair = built(&[first, second]);
            match (*first, *second) {
                ("persistence", LAST) => {
                    let error = build(&[LAST, first]).expect_err("there is nothing to keep");
                    assert!(
                        error.contains("components/persistence") && error.contains("pushgateway"),
                        "{error}"
                    );
                }
                ("network-policy" | "prometheus-operator", LAST) => assert_ne!(pair, built(&[LAST, first])),
                ("selinux", "tls-and-authentication") => {
                    let other = built(&[second, first]);
                    assert_eq!(job_template(&pair), read(&template_of(second)));
                    assert_eq!(job_template(&other), read(&template_of(first)));
                }
                _ => assert_eq!(pair, built(&[second, first]), "{first} and {second} in the other order"),
            }
            if *second == LAST {
                assert!(
                    pair.iter().all(|object| object["metadata"]["name"] != "pushgateway" && object["kind"] != "ServiceMonitor"),
                    "{first} leaves something for a Pushgateway that is not there"
                );
            }
        }
    }
    // In the worst order, too.
    let mut reversed: Vec<_> = all.iter().rev().copied().filter(|name| *name != LAST).collect();
    for _ in 0..2 {
        let objects = built(&reversed);
        let policy = one(&objects, "ValidatingAdmissionPolicy", "lp-exporter");
        assert_eq!(variable(policy, "seLinuxTypes"), "['', 'spc_t']", "{reversed:?}");
        check_scraping_with_a_password(&objects);
        reversed.reverse();
    }
    // An overlay that has the password below one that adds the operator's objects.
    let above = build_own(copy.path(), "hardened", &["prometheus-operator"]).expect("it builds");
    check_scraping_with_a_password(&above);
}

/// Variables, volumes and mounts in one order: each is found by its name.
fn sort_named(value: &mut Value) {
    match value {
        Value::Sequence(items) => {
            items.iter_mut().for_each(sort_named);
            if items.iter().all(|item| item["name"].is_string()) {
                items.sort_by_key(|item| text_of(&item["name"]).to_owned());
            }
        }
        Value::Mapping(fields) => fields.values_mut().for_each(sort_named),
        _ => {}
    }
}

/// Prometheus is told of TLS and of the Secret with the password.
fn check_scraping_with_a_password(objects: &[Value]) {
    let monitor = one(objects, "ServiceMonitor", "lp-exporter");
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["scheme"], "https");
    assert_eq!(endpoint["tlsConfig"]["serverName"], "pushgateway");
    let [authority, user, password] = [
        &endpoint["tlsConfig"]["ca"]["secret"],
        &endpoint["basicAuth"]["username"],
        &endpoint["basicAuth"]["password"],
    ];
    for (reference, key) in [(authority, "ca.crt"), (user, "username"), (password, "password")] {
        assert_eq!(reference["name"], "pushgateway-client");
        assert_eq!(reference["key"], key);
    }
}

/// What components make over an overlay, in a copy of the manifests.
fn build_own(copy: &Path, overlay: &str, components: &[&str]) -> Result<Vec<Value>, String> {
    let own = copy.join("own");
    fs::create_dir_all(&own).expect("a folder");
    let components: Vec<_> = components
        .iter()
        .map(|name| format!("../manifests/components/{name}"))
        .collect();
    let kustomization =
        serde_json::json!({"resources": [format!("../manifests/overlays/{overlay}")], "components": components});
    fs::write(own.join("kustomization.yaml"), kustomization.to_string()).expect("it can be written to");
    kubectl(&["kustomize", own.to_str().expect("text")]).map(|text| objects(&text))
}

fn job_template(objects: &[Value]) -> String {
    let map = one(objects, "ConfigMap", "lp-exporter-job-template");
    text_of(&map["data"]["worker.yaml"]).to_owned()
}

fn template_of(component: &str) -> String {
    format!("manifests/components/{component}/worker.yaml")
}

/// The stack to try goes with a password too: its Prometheus has the same configuration with what TLS adds, and the files
/// that this names.
#[tokio::test(flavor = "multi_thread")]
async fn the_stack_to_try_can_have_a_password() {
    if !has_kubectl() {
        return skip("the stack to try with a password", "kubectl is not on the PATH");
    }
    let copy = copy_of_the_manifests();
    let objects = build_own(copy.path(), "whole-stack", &["tls-and-authentication"]).expect("it builds");
    check_references(&objects);
    let pod = &one(&objects, "Deployment", "prometheus")["spec"]["template"]["spec"];
    let map = list(&pod["volumes"])
        .iter()
        .find_map(|volume| Some(volume["configMap"]["name"].as_str()?).filter(|name| name.starts_with("prometheus-")));
    let text = text_of(&one(&objects, "ConfigMap", map.expect("a ConfigMap"))["data"]["prometheus.yml"]).to_owned();
    let mounts = list(&pod["containers"][0]["volumeMounts"]);
    let mount = mounts
        .iter()
        .find(|mount| mount["mountPath"] == "/etc/pushgateway")
        .expect("a mount");
    let volume = list(&pod["volumes"])
        .iter()
        .find(|volume| volume["name"] == mount["name"]);
    assert_eq!(volume.expect("a volume")["secret"]["secretName"], "pushgateway-client");

    let mut with_password = yaml_of(&text);
    let job = with_password["scrape_configs"][0].as_mapping_mut().expect("a job");
    for key in ["scheme", "tls_config", "basic_auth"] {
        assert!(job.remove(key).is_some(), "{key}");
    }
    assert_eq!(with_password, yaml("manifests/overlays/whole-stack/prometheus.yml"));
    let told: Vec<_> = blocks("yaml")
        .into_iter()
        .filter(|block| block.contains("password_file"))
        .collect();
    assert_eq!(told.len(), 1, "{INSTALL} says it once");
    for line in told[0].lines() {
        assert!(
            text.contains(line.trim()),
            "{INSTALL} tells others something else: {line}"
        );
    }

    scrapes_with_a_password(&text).await;
}

/// A real Prometheus with this configuration scrapes a real Pushgateway, with the Secrets that docs/install.md makes, and
/// not with another password.
async fn scrapes_with_a_password(configuration: &str) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(script) = secrets_script() else {
        return;
    };
    let output = Command::new("sh")
        .args(["-euc", &script])
        .current_dir(folder.path())
        .output();
    assert!(output.expect("a shell").status.success());
    let web = format!("--web.config.file={}", folder.path().join("web.yml").display());
    // An error says that another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build();
    let client = client.expect("plain http needs no certificates");
    for (prometheus, program) in servers("prometheus").into_iter().zip(pushgateways()) {
        let gateway = Server::start(&program, &[&web]).await;
        for (password, expected) in [("password", "1"), ("ca.crt", "0")] {
            let here = folder.path().to_str().expect("text");
            let configuration = configuration
                .replace("/etc/pushgateway/password", &format!("{here}/{password}"))
                .replace("/etc/pushgateway", here)
                .replace("pushgateway:9091", &gateway.address.to_string())
                .replace("_interval: 15s", "_interval: 1s")
                .replace("rule_files:\n- /etc/prometheus-rules/*.yaml\n", "");
            let file = folder.path().join("prometheus.yml");
            fs::write(&file, configuration).expect("it can be written to");
            let address = free_address();
            let process = Command::new(&prometheus)
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--web.listen-address={address}"))
                .arg(format!("--storage.tsdb.path={here}/{password}-data"))
                .stderr(Stdio::null())
                .spawn();
            let _process = Ended(process.expect("a Prometheus"));
            let query = format!("http://{address}/api/v1/query?query=up%7Bjob=%22pushgateway%22%7D");
            let began = std::time::Instant::now();
            loop {
                let answer = match client.get(&query).send().await {
                    Ok(answer) => answer.text().await.unwrap_or_default(),
                    Err(error) => error.to_string(),
                };
                if answer.contains(&format!(",\"{expected}\"]")) {
                    break;
                }
                assert!(began.elapsed() < Duration::from_secs(60), "with {password}: {answer}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// docs/install.md names every overlay and every component, and none that is not there.
#[test]
fn the_document_names_overlays_and_components() {
    for (heading, folder) in [
        ("Overlays", "manifests/overlays"),
        ("Components", "manifests/components"),
    ] {
        let mut named = documented(heading);
        named.sort();
        assert_eq!(named, entries(folder), "{heading} of {INSTALL}");
    }
}

/// What docs/install.md tells people to write into their overlay builds, and does something.
#[test]
fn the_document_shows_overlays_that_build() {
    if !has_kubectl() {
        return skip("the overlays that the document shows", "kubectl is not on the PATH");
    }
    let copy = copy_of_the_manifests();
    let own = copy.path().join("own");
    fs::create_dir(&own).expect("a folder");
    // One of the blocks brings a Job template.
    fs::write(
        own.join("worker.yaml"),
        read("jobs/worker.yaml").replace("256Mi", "512Mi"),
    )
    .expect("it can be written to");
    let build = |kustomization: &Value| {
        let text = serde_yaml::to_string(kustomization).expect("YAML");
        fs::write(own.join("kustomization.yaml"), &text).expect("it can be written to");
        let made = kubectl(&["kustomize", own.to_str().expect("text")]);
        objects(&made.unwrap_or_else(|error| panic!("{text}: {error}")))
    };
    let mut tried = 0;
    let mut with_another_image: Vec<String> = Vec::new();
    let mut with_policy = 0;
    let mut with_operator_and_password = 0;
    for block in blocks("yaml") {
        let mut kustomization = yaml_of(&block);
        if ["resources", "components", "patches", "configMapGenerator"]
            .iter()
            .all(|key| kustomization[*key].is_null())
        {
            continue;
        }
        tried += 1;
        let overlay = if block.contains("ValidatingAdmissionPolicy") {
            "hardened"
        } else {
            "default"
        };
        let below = yaml_of(&format!("[../manifests/overlays/{overlay}]"));
        if kustomization["resources"].is_null() {
            kustomization["resources"] = below.clone();
        }
        let mut plain = yaml_of("{}");
        plain["resources"] = below;
        let made = build(&kustomization);
        assert_ne!(made, build(&plain), "changes nothing:\n{block}");
        made.iter().for_each(check_object);
        check_references(&made);
        check_image_of_the_policy(&made);
        if block.contains("images:") {
            with_another_image.push(text_of(image_of_the_controller(&made)).to_owned());
            with_policy += usize::from(made.iter().any(|object| object["kind"] == "ValidatingAdmissionPolicy"));
        }
        if block.contains("overlays/kube-prometheus-stack") && block.contains("tls-and-authentication") {
            with_operator_and_password += 1;
            // As it stands there, comments included.
            fs::write(own.join("kustomization.yaml"), &block).expect("it can be written to");
            let made = objects(&kubectl(&["kustomize", own.to_str().expect("text")]).expect("it builds"));
            check_scraping_with_a_password(&made);
            let monitor = one(&made, "ServiceMonitor", "lp-exporter");
            assert_eq!(monitor["metadata"]["labels"]["release"], "kube-prometheus-stack");
            one(&made, "ValidatingAdmissionPolicy", "lp-exporter");
            one(&made, "NetworkPolicy", "pushgateway");
        }
    }
    assert_eq!(tried, 7, "the overlays that {INSTALL} shows");
    assert_eq!(
        with_another_image, ["registry.example/lp-exporter:0.1.0"; 2],
        "those with an image"
    );
    assert_eq!(with_policy, 1, "of them with the admission policy");
    assert_eq!(
        with_operator_and_password, 1,
        "of them with the operator's objects and a password"
    );
}

/// Without the lines that docs/install.md adds the policy would refuse every worker, and with them it does not where the
/// component and the image are named in one file either.
#[test]
fn the_policy_follows_the_image() {
    if !has_kubectl() {
        return skip("the image of the admission policy", "kubectl is not on the PATH");
    }
    let copy = copy_of_the_manifests();
    let own = copy.path().join("own");
    fs::create_dir(&own).expect("a folder");
    let build = |overlay: &str, rest: &str| {
        let text = format!(
            "resources: [../manifests/overlays/{overlay}]\n\
             images: [{{name: localhost/lp-exporter, newName: registry.example/a, newTag: '2'}}]\n{rest}"
        );
        fs::write(own.join("kustomization.yaml"), text).expect("it can be written to");
        objects(&kubectl(&["kustomize", own.to_str().expect("text")]).expect("it builds"))
    };
    let policy_of = |made: &[Value]| variable(one(made, "ValidatingAdmissionPolicy", "lp-exporter"), "image");
    let lines = "transformers: [../manifests/components/admission-policy/image]\n";
    let component = "components: [../manifests/components/admission-policy]\n";
    assert_eq!(policy_of(&build("hardened", "")), "'localhost/lp-exporter:0.1.0'");
    for (overlay, rest) in [
        ("hardened", lines.to_owned()),
        ("default", format!("{component}{lines}")),
    ] {
        let made = build(overlay, &rest);
        assert_eq!(policy_of(&made), "'registry.example/a:2'", "{overlay}");
        check_image_of_the_policy(&made);
    }
}

/// What docs/install.md says comes of a namespace or a prefix in somebody's own overlay. Once it does not come any more,
/// the document may allow them.
#[test]
fn namespace_and_names_are_fixed() {
    if !has_kubectl() {
        return skip("another namespace", "kubectl is not on the PATH");
    }
    let copy = copy_of_the_manifests();
    let own = copy.path().join("own");
    fs::create_dir(&own).expect("a folder");
    let build = |line: &str| {
        let text = format!("resources: [../manifests/overlays/hardened]\n{line}\n");
        fs::write(own.join("kustomization.yaml"), text).expect("it can be written to");
        objects(&kubectl(&["kustomize", own.to_str().expect("text")]).expect("it builds without a word"))
    };

    let moved = build("namespace: monitoring");
    let account = one(&moved, "ServiceAccount", "lp-exporter");
    assert_eq!(account["metadata"]["namespace"], "monitoring");
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        let subject = &one(&moved, kind, "lp-exporter")["subjects"][0];
        assert_eq!(subject["namespace"], NAMESPACE, "{kind}");
    }
    let level = &one(&moved, "Namespace", "monitoring")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    assert_eq!(level, "privileged");
    let binding = one(&moved, "ValidatingAdmissionPolicyBinding", "lp-exporter");
    let guarded = &binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"];
    assert_eq!(guarded["kubernetes.io/metadata.name"], NAMESPACE);

    let prefixed = build("namePrefix: x-");
    one(&prefixed, "ServiceAccount", "x-lp-exporter-worker");
    let template = one(&prefixed, "ConfigMap", "x-lp-exporter-job-template");
    let template = yaml_of(text_of(&template["data"]["worker.yaml"]));
    let account = &template["spec"]["template"]["spec"]["serviceAccountName"];
    assert_eq!(account, "lp-exporter-worker");
    let role = one(&prefixed, "Role", "x-lp-exporter");
    let names = list(&role["rules"])
        .iter()
        .flat_map(|rule| rule["resourceNames"].as_sequence());
    assert_eq!(
        names.flatten().collect::<Vec<_>>(),
        [&Value::from("lp-exporter")],
        "the Lease"
    );
    one(&prefixed, "Service", "x-pushgateway");
    let containers = &one(&prefixed, "CronJob", "x-lp-exporter")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let urls = list(&containers["containers"][0]["env"]).iter();
    let urls: Vec<_> = urls
        .filter(|one| one["name"] == "LP_EXPORTER_PUSHGATEWAY_URL")
        .collect();
    assert_eq!(urls.len(), 1);
    assert!(text_of(&urls[0]["value"]).contains("//pushgateway"), "{urls:?}");
}

/// Where there is an admission policy, it lets in the image that runs.
fn check_image_of_the_policy(objects: &[Value]) {
    if objects
        .iter()
        .any(|object| object["kind"] == "ValidatingAdmissionPolicy")
    {
        let policy = one(objects, "ValidatingAdmissionPolicy", "lp-exporter");
        let image = text_of(image_of_the_controller(objects));
        assert_eq!(variable(policy, "image"), format!("'{image}'"));
    }
}

fn image_of_the_controller(objects: &[Value]) -> &Value {
    let cron_job = one(objects, "CronJob", "lp-exporter");
    &cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"]
}

/// The commands that make certificates and a password do, and servers of both generations take what they make.
#[test]
fn the_document_makes_secrets() {
    let Some(script) = secrets_script() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary directory");
    let in_folder = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{} {arguments:?}: {said}", program.display());
    };
    in_folder(Path::new("sh"), &["-euc", &script]);
    for name in ["pushgateway", "pushgateway.lp-exporter.svc"] {
        in_folder(
            Path::new("openssl"),
            &["verify", "-CAfile", "ca.crt", "-verify_hostname", name, "tls.crt"],
        );
    }
    let password = fs::read_to_string(folder.path().join("password")).expect("a password");
    assert_eq!(password.len(), 48, "48 digits, and no end of a line");
    for promtool in servers("promtool") {
        in_folder(&promtool, &["check", "web-config", "web.yml"]);
    }
}

/// The commands that make certificates and a password, where the programs for them are.
fn secrets_script() -> Option<String> {
    let has = |program: &str, argument: &str| Command::new(program).arg(argument).output().is_ok();
    if !has("openssl", "version") || !has("htpasswd", "-h") {
        skip(
            "the commands that make Secrets",
            "openssl and htpasswd are not on the PATH",
        );
        return None;
    }
    let script = blocks("sh").into_iter().find(|block| block.contains("htpasswd"));
    Some(script.expect("a block"))
}

/// Every kind of object that stays when the namespace goes is in the commands that remove by label.
#[test]
fn the_document_removes_every_kind() {
    let by_label = removed_by_label();
    let named: BTreeSet<_> = by_label
        .iter()
        .flat_map(|kinds| kinds.split(','))
        .map(str::to_owned)
        .collect();
    let all = overlays()
        .iter()
        .flat_map(|overlay| objects(&read(&rendered(overlay))))
        .collect::<Vec<_>>();
    let stay = all
        .iter()
        .filter(|object| object["metadata"]["namespace"].is_null() && object["kind"] != "Namespace");
    let stay: BTreeSet<_> = stay.map(|object| text_of(&object["kind"]).to_lowercase()).collect();
    assert_eq!(named, stay);
}

/// What is applied has no field that Kubernetes does not know, and is what this project wants of every object.
#[test]
fn rendered_objects_are_sound() {
    for overlay in overlays() {
        let objects = objects(&read(&rendered(&overlay)));
        objects.iter().for_each(check_object);
        check_references(&objects);
        let names: BTreeSet<_> = objects.iter().map(name_of).collect();
        assert_eq!(names.len(), objects.len(), "{overlay} makes an object twice");
    }
}

/// A component that brings a Job template of its own has the shipped one, with some lines more.
#[test]
fn job_templates_add_to_the_shipped_one() {
    let shipped = read("jobs/worker.yaml");
    let mut found = 0;
    for component in entries("manifests/components") {
        let path = format!("manifests/components/{component}/worker.yaml");
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        found += 1;
        Template::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut lines = text.lines();
        for line in shipped.lines() {
            assert!(
                lines.any(|other| other == line),
                "{path} lacks the line of jobs/worker.yaml: {line}"
            );
        }
        assert_ne!(text, shipped, "{path} adds nothing");
    }
    assert_eq!(found, 2, "the components with a Job template");
}

/// Controller, workers and Prometheus find TLS and password where the Secrets are mounted, and kubelet needs neither.
#[test]
fn everyone_is_told_of_tls_and_password() {
    let objects = objects(&read(&rendered("hardened")));
    let cron_job = one(&objects, "CronJob", "lp-exporter");
    let controller = &cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let template = one(&objects, "ConfigMap", "lp-exporter-job-template")["data"]["worker.yaml"].clone();
    let template: Value = serde_yaml::from_str(template.as_str().expect("text")).expect("YAML");
    for pod in [controller, &template["spec"]["template"]["spec"]] {
        let container = &pod["containers"][0];
        let mount = list(&container["volumeMounts"])
            .iter()
            .find(|mount| mount["name"] == "pushgateway");
        let directory = mount.expect("a mount of the Secret")["mountPath"]
            .as_str()
            .expect("text");
        let volume = list(&pod["volumes"])
            .iter()
            .find(|volume| volume["name"] == "pushgateway");
        assert_eq!(volume.expect("a volume")["secret"]["secretName"], "pushgateway-client");
        for (variable, key) in [("CA", "ca.crt"), ("USERNAME", "username"), ("PASSWORD", "password")] {
            let variable = format!("LP_EXPORTER_PUSHGATEWAY_{variable}_FILE");
            let set = list(&container["env"])
                .iter()
                .find(|env| env["name"] == variable.as_str());
            assert_eq!(
                set.map(|env| &env["value"]),
                Some(&format!("{directory}/{key}").into()),
                "{variable}"
            );
        }
    }
    let pushgateway = &one(&objects, "Deployment", "pushgateway")["spec"]["template"]["spec"]["containers"][0];
    let web = "--web.config.file=/etc/pushgateway/web.yml";
    assert!(list(&pushgateway["args"]).iter().any(|argument| argument == web));
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(pushgateway[probe]["tcpSocket"]["port"], "http", "{probe}");
        assert!(pushgateway[probe]["httpGet"].is_null(), "{probe} asks for a password");
    }
}

/// The admission policy speaks of the directories that the program mounts by default, and of the image that runs.
#[test]
fn the_admission_policy_knows_the_program() {
    let objects = objects(&read(&rendered("hardened")));
    let policy = one(&objects, "ValidatingAdmissionPolicy", "lp-exporter");
    let command = Cli::command();
    let controller = command.find_subcommand("controller").expect("a subcommand");
    let argument = controller
        .get_arguments()
        .find(|argument| argument.get_long() == Some("base-path"));
    let defaults = argument.expect("a flag").get_default_values().iter();
    let defaults: BTreeSet<_> = defaults.map(|path| path.to_str().expect("text")).collect();
    let allowed = variable(policy, "basePaths");
    let allowed: BTreeSet<_> = allowed.split('\'').skip(1).step_by(2).collect();
    assert_eq!(allowed, defaults, "the variable basePaths");
    let cron_job = one(&objects, "CronJob", "lp-exporter");
    let image = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    assert_eq!(variable(policy, "image"), format!("'{}'", image.expect("text")));
    let binding = one(&objects, "ValidatingAdmissionPolicyBinding", "lp-exporter");
    let selected = &binding["spec"]["matchResources"]["namespaceSelector"]["matchLabels"];
    assert_eq!(selected["kubernetes.io/metadata.name"], NAMESPACE);
}

/// The values for the chart's Alertmanager: every rule of the chart leaves our alerts alone, ours stand in the place that is
/// named, and a real Alertmanager takes the whole.
#[test]
fn the_charts_alertmanager_leaves_our_alerts_alone() {
    const PLACE: &str = "    # Here those of alertmanager/alertmanager.yaml.\n";
    const OURS: &str = r#"alertname !~ "LocalVolume.*|LpExporter.*""#;
    let values = blocks("yaml")
        .into_iter()
        .find(|block| block.starts_with("alertmanager:\n"));
    let values = values.expect("values for the chart");
    let of_chart = &yaml_of(&values)["alertmanager"]["config"]["inhibit_rules"];
    assert_eq!(list(of_chart).len(), 4, "the rules of the chart");
    for rule in list(of_chart) {
        // InfoInhibitor is no alert of ours, and no source keeps another alert than it away.
        let targets = list(&rule["target_matchers"]);
        let is_of_inhibitor = targets == [Value::from("alertname = InfoInhibitor")];
        assert!(is_of_inhibitor || targets.contains(&OURS.into()), "{rule:?}");
    }
    let example = yaml("alertmanager/alertmanager.yaml");
    let names = text_of(&list(&example["inhibit_rules"])[0]["target_matchers"][0]);
    assert!(names.contains("LocalVolume.*"), "the names of our alerts: {names}");

    let own = serde_yaml::to_string(&example["inhibit_rules"]).expect("YAML");
    let own: String = own.lines().map(|line| format!("    {line}\n")).collect();
    assert!(values.contains(PLACE), "{values}");
    let mut config = yaml_of(&values.replace(PLACE, &own))["alertmanager"]["config"].clone();
    assert_eq!(
        list(&config["inhibit_rules"]).len(),
        list(of_chart).len() + list(&example["inhibit_rules"]).len()
    );
    config["route"] = example["route"].clone();
    config["receivers"] = example["receivers"].clone();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("alertmanager.yaml");
    fs::write(&file, serde_yaml::to_string(&config).expect("YAML")).expect("it can be written to");
    for amtool in servers("amtool") {
        let output = Command::new(&amtool)
            .arg("check-config")
            .arg(&file)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{}: {said}", amtool.display());
    }
}

/// Prometheus takes the objects, and the claims keep their namespace.
#[test]
fn the_operator_takes_its_objects() {
    let objects = objects(&read(&rendered("kube-prometheus-stack")));
    let of_operator: Vec<_> = objects.iter().filter(|object| is_of_operator(object)).collect();
    assert!(!of_operator.is_empty());
    for object in &of_operator {
        assert_eq!(
            object["metadata"]["labels"]["release"],
            "kube-prometheus-stack",
            "{}",
            name_of(object)
        );
    }
    let monitor = one(&objects, "ServiceMonitor", "lp-exporter");
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["honorLabels"], true);
    assert_eq!(
        endpoint["relabelings"][0]["regex"],
        "pod|service|endpoint|namespace|container"
    );
    assert!(
        endpoint["metricRelabelings"].is_null(),
        "it would take the claims' own namespace"
    );
    let service = one(&objects, "Service", "pushgateway");
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_mapping().expect("labels") {
        assert_eq!(
            &service["metadata"]["labels"][label], value,
            "the Service that the ServiceMonitor selects"
        );
    }
    assert_eq!(service["spec"]["ports"][0]["name"], endpoint["port"]);
}

/// The overlay to try brings copies, because kustomize reads no file outside of the folder that it builds.
#[test]
fn the_stack_to_try_has_what_others_are_told() {
    const STACK: &str = "manifests/overlays/whole-stack";
    for (copy, source) in [
        ("datasources.yaml", "grafana/provisioning/datasources/prometheus.yaml"),
        ("dashboards.yaml", "grafana/provisioning/dashboards/lp-exporter.yaml"),
    ] {
        assert_eq!(read(&format!("{STACK}/{copy}")), read(source), "{copy} and {source}");
    }
    let [own, example] = [
        format!("{STACK}/alertmanager.yml"),
        "alertmanager/alertmanager.yaml".to_owned(),
    ];
    assert_eq!(
        yaml(&own)["inhibit_rules"],
        yaml(&example)["inhibit_rules"],
        "{own} and {example}"
    );
}

/// Prometheus and Alertmanager of both generations take the configuration of the overlay to try, the rules included.
#[test]
fn the_stack_to_try_is_configured() {
    let objects = objects(&read(&rendered("whole-stack")));
    let folder = tempfile::tempdir().expect("a temporary directory");
    let here = folder.path().to_str().expect("text");
    // What a pod finds at `mounted`, by the volume of that ConfigMap.
    let unpack = |deployment: &str, mounted: &str| {
        let pod = &one(&objects, "Deployment", deployment)["spec"]["template"]["spec"];
        let mounts = list(&pod["containers"][0]["volumeMounts"]);
        let mount = mounts
            .iter()
            .find(|mount| mount["mountPath"] == mounted)
            .expect("a mount");
        let volume = list(&pod["volumes"])
            .iter()
            .find(|volume| volume["name"] == mount["name"]);
        let map = text_of(&volume.expect("a volume")["configMap"]["name"]);
        let data = one(&objects, "ConfigMap", map)["data"].as_mapping().expect("files");
        for (name, content) in data {
            let content = text_of(content).replace("/etc/prometheus-rules", here);
            fs::write(folder.path().join(text_of(name)), content).expect("it can be written to");
        }
    };
    unpack("prometheus", "/etc/prometheus");
    unpack("prometheus", "/etc/prometheus-rules");
    unpack("alertmanager", "/etc/alertmanager");
    for (tool, arguments, expected) in [
        ("promtool", &["check", "config", "prometheus.yml"][..], "rules found"),
        ("amtool", &["check-config", "alertmanager.yml"], "inhibit rules"),
    ] {
        for program in servers(tool) {
            let output = Command::new(&program)
                .args(arguments)
                .current_dir(folder.path())
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

/// A program of the servers, in both generations.
fn servers(name: &str) -> Vec<PathBuf> {
    let folder = std::env::var_os("LP_EXPORTER_TEST_SERVERS")
        .map(PathBuf::from)
        .unwrap_or_default();
    let programs = ["old", "new"].map(|generation| folder.join(generation).join(name));
    let found: Vec<_> = programs.into_iter().filter(|program| program.is_file()).collect();
    if found.len() < 2 {
        skip(
            name,
            "set LP_EXPORTER_TEST_SERVERS to a directory with it in old/ and new/",
        );
    }
    found
}

/// One object: its fields exist, it says what it belongs to, and its pods are bounded and confined.
fn check_object(object: &Value) {
    let name = name_of(object);
    let unknown = match text_of(&object["kind"]) {
        "ClusterRole" => unknown_fields::<ClusterRole>(object),
        "ClusterRoleBinding" => unknown_fields::<ClusterRoleBinding>(object),
        "ConfigMap" => unknown_fields::<ConfigMap>(object),
        "CronJob" => unknown_fields::<CronJob>(object),
        "Deployment" => unknown_fields::<Deployment>(object),
        "Namespace" => unknown_fields::<Namespace>(object),
        "NetworkPolicy" => unknown_fields::<NetworkPolicy>(object),
        "PersistentVolumeClaim" => unknown_fields::<PersistentVolumeClaim>(object),
        "PriorityClass" => unknown_fields::<PriorityClass>(object),
        "ResourceQuota" => unknown_fields::<ResourceQuota>(object),
        "Role" => unknown_fields::<Role>(object),
        "RoleBinding" => unknown_fields::<RoleBinding>(object),
        "Service" => unknown_fields::<Service>(object),
        "ServiceAccount" => unknown_fields::<ServiceAccount>(object),
        "ValidatingAdmissionPolicy" => unknown_fields::<ValidatingAdmissionPolicy>(object),
        "ValidatingAdmissionPolicyBinding" => unknown_fields::<ValidatingAdmissionPolicyBinding>(object),
        // Only an API server knows these: see above.
        _ if is_of_operator(object) => Vec::new(),
        other => panic!("{name}: this test knows no {other}"),
    };
    assert_eq!(unknown, [""; 0], "{name} has fields that nobody knows");
    let size_bytes = serde_json::to_string(object).expect("JSON").len();
    assert!(
        size_bytes < APPLIED_MAX_BYTES,
        "{name} has {size_bytes} bytes: `kubectl apply` keeps a copy in an annotation, which holds less"
    );
    // Removing by this label is what docs/install.md says.
    assert_eq!(
        object["metadata"]["labels"]["app.kubernetes.io/part-of"], "lp-exporter",
        "{name}"
    );
    let pod = match text_of(&object["kind"]) {
        "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        "Deployment" => &object["spec"]["template"]["spec"],
        _ => return,
    };
    let pod: PodSpec = PodSpec::deserialize(pod).expect("a pod");
    let context = pod.security_context.expect("a security context");
    assert_eq!(context.run_as_non_root, Some(true), "{name}");
    assert!(
        context
            .seccomp_profile
            .is_some_and(|profile| profile.type_ == "RuntimeDefault"),
        "{name}"
    );
    for container in pod.containers {
        let image = container.image.expect("an image");
        let tag = image
            .rsplit_once(':')
            .map(|(_, tag)| tag)
            .filter(|tag| !tag.contains('/'));
        assert!(
            tag.is_some_and(|tag| tag != "latest"),
            "{name}: the image {image} is not pinned"
        );
        let resources = container.resources.expect("resources");
        assert!(
            resources.limits.is_some_and(|limits| limits.contains_key("memory")),
            "{name}"
        );
        assert!(resources.requests.is_some_and(|requests| requests.len() == 2), "{name}");
        let context = container.security_context.expect("a security context");
        assert_eq!(context.allow_privilege_escalation, Some(false), "{name}");
        assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
        let dropped = context.capabilities.and_then(|capabilities| capabilities.drop);
        assert_eq!(dropped, Some(vec!["ALL".to_owned()]), "{name}");
    }
}

/// The ConfigMaps, Secrets, accounts and claims that pods name are there.
fn check_references(objects: &[Value]) {
    let of_kind = |kind: &str| -> BTreeSet<&str> {
        let found = objects.iter().filter(|object| object["kind"] == kind);
        found.map(|object| text_of(&object["metadata"]["name"])).collect()
    };
    let [maps, accounts, claims] = ["ConfigMap", "ServiceAccount", "PersistentVolumeClaim"].map(of_kind);
    for object in objects {
        let pod = match text_of(&object["kind"]) {
            "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"]["spec"],
            "Deployment" => &object["spec"]["template"]["spec"],
            _ => continue,
        };
        let name = name_of(object);
        if let Some(account) = pod["serviceAccountName"].as_str() {
            assert!(accounts.contains(account), "{name}: the account {account}");
        }
        for volume in list(&pod["volumes"]) {
            let named = [
                (volume["configMap"]["name"].as_str(), &maps),
                (volume["secret"]["secretName"].as_str(), &BTreeSet::from(SECRETS)),
                (volume["persistentVolumeClaim"]["claimName"].as_str(), &claims),
            ];
            for (reference, there) in named {
                assert!(
                    reference.is_none_or(|reference| there.contains(reference)),
                    "{name}: {volume:?}"
                );
            }
        }
        let volumes: BTreeMap<_, _> = list(&pod["volumes"])
            .iter()
            .map(|volume| (text_of(&volume["name"]), ()))
            .collect();
        for mount in list(&pod["containers"][0]["volumeMounts"]) {
            assert!(volumes.contains_key(text_of(&mount["name"])), "{name}: {mount:?}");
        }
    }
}

/// The fields of an object that its type does not have.
fn unknown_fields<T: DeserializeOwned>(object: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let read: Result<T, _> = serde_ignored::deserialize(object, |path| unknown.push(path.to_string()));
    if let Err(error) = read {
        panic!("{}: {error}", name_of(object));
    }
    unknown
}

/// The expression of a variable of an admission policy.
fn variable(policy: &Value, name: &str) -> String {
    let variables = list(&policy["spec"]["variables"]);
    let found = variables.iter().find(|variable| variable["name"] == name);
    text_of(&found.expect("a variable")["expression"]).to_owned()
}

fn is_of_operator(object: &Value) -> bool {
    text_of(&object["apiVersion"]).starts_with(OPERATOR_GROUP)
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects
        .iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn name_of(object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("-");
    format!(
        "{} {namespace}/{}",
        text_of(&object["kind"]),
        text_of(&object["metadata"]["name"])
    )
}

/// The kinds that each command of docs/install.md removes by their label.
fn removed_by_label() -> Vec<String> {
    let text = read(INSTALL);
    let (_, removing) = text.split_once("\n## Removing\n").expect("a heading");
    let commands = removing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("kubectl delete "));
    let by_label = commands.filter_map(|command| command.strip_suffix(PART_OF)?.strip_suffix(" -l "));
    by_label.map(str::to_owned).collect()
}

/// The folders that kustomize reads, in a directory where more can be laid beside them.
fn copy_of_the_manifests() -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for folder in ["manifests", "jobs", "alertmanager", "grafana"] {
        let options = fs_extra::dir::CopyOptions::new();
        fs_extra::dir::copy(root().join(folder), copy.path(), &options).expect("a copy");
    }
    copy
}

/// The blocks of a language in docs/install.md.
fn blocks(language: &str) -> Vec<String> {
    let text = read(INSTALL);
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(opening) = lines.find(|line| line.trim() == fence) {
        let indentation = opening.len() - fence.len();
        let block = lines.by_ref().take_while(|line| line.trim() != "```");
        blocks.push(
            block
                .map(|line| format!("{}\n", line.get(indentation..).unwrap_or_default()))
                .collect(),
        );
    }
    blocks
}

/// The names in the first column of the table below a heading of docs/install.md.
fn documented(heading: &str) -> Vec<String> {
    let text = read(INSTALL);
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).expect("a heading");
    let section = section.split("\n## ").next().expect("the first part");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next())
        .map(str::to_owned)
        .collect()
}

fn overlays() -> Vec<String> {
    entries("manifests/overlays")
}

fn rendered(overlay: &str) -> String {
    format!("manifests/rendered/{overlay}.yaml")
}

/// The names in a folder of the project, sorted.
fn entries(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn objects(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    documents
        .map(|document| Value::deserialize(document).expect("YAML"))
        .collect()
}

fn list_mut(value: &mut Value) -> &mut Vec<Value> {
    value.as_sequence_mut().expect("a list")
}

fn yaml_of(text: &str) -> Value {
    serde_yaml::from_str(text).expect("YAML")
}

fn has_kubectl() -> bool {
    run(&["version", "--client"], "").is_ok()
}

fn kubectl(arguments: &[&str]) -> Result<String, String> {
    run(arguments, "")
}

/// What kubectl prints, or what it complains of.
fn run(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let input = input.to_owned();
    // One that has read enough closes it.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let _ = writer.join().expect("writing does not panic");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Says what is not tested, and fails where everything must be.
fn skip(what: &str, why: &str) {
    assert!(
        std::env::var_os("LP_EXPORTER_TEST_REQUIRE_ALL").is_none_or(|all| all != "1"),
        "{what} is not tested: {why}"
    );
    eprintln!("skipped {what}: {why}");
}

/// The time between two starts of a schedule of the form `*/N * * * *`.
fn period(schedule: &str) -> Duration {
    let minutes = schedule
        .strip_prefix("*/")
        .and_then(|rest| rest.strip_suffix(" * * * *"))
        .expect("a schedule `*/N * * * *`");
    let minutes: u64 = minutes.parse().expect("a number of minutes");
    assert_eq!(
        60 % minutes,
        0,
        "with */{minutes} the last run of an hour is followed sooner than the others"
    );
    Duration::from_secs(60 * minutes)
}

fn yaml(path: &str) -> Value {
    serde_yaml::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
