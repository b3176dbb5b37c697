//! What a cluster says to the manifests: it judges every object, lets workers in and others out, and runs the whole stack.
//!
//! One test at a time has the namespace, which has to be free: an installation of somebody's own is left alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use serde_yaml::Value;

use super::retire::pipeline;
use super::{
    INSTALL, NAMESPACE, OPERATOR_GROUP, PART_OF, blocks, copy_of_the_manifests, has_kubectl, kubectl, list_mut,
    objects, one, overlays, read, removed_by_label, rendered, run, skip, text_of, variable, yaml, yaml_of,
};

/// A folder with the definitions of the Prometheus operator's objects.
const CRDS_VARIABLE: &str = "LP_EXPORTER_TEST_PROMETHEUS_OPERATOR_CRDS";
const MEASURE: &str = "docs/measure.md";
/// The namespace that this document makes.
const MEASURED_IN: &str = "lp-measure";
const IMAGE_VARIABLE: &str = "LP_EXPORTER_TEST_IMAGE";
/// The namespace with a claim, and with a receiver of alerts.
const OUTSIDE: &str = "lp-stack";
/// From nothing to the first number in Prometheus, on a cluster that has the images.
const FIRST_NUMBER_MAX: Duration = Duration::from_secs(60);

static CLUSTER: Mutex<()> = Mutex::new(());

/// An API server takes every rendered form, its strict validation included, and refuses what it should.
#[test]
fn an_api_server_takes_the_objects() {
    let Some(definitions) = value(CRDS_VARIABLE).map(PathBuf::from).filter(|_| has_cluster()) else {
        let why = format!("it needs KUBECONFIG, {CRDS_VARIABLE}, and kubectl on the PATH");
        return skip("what an API server says", &why);
    };
    let mut made = Made::in_a_free_namespace();
    made.later(&["namespace", MEASURED_IN]);
    kubectl(&["create", "namespace", NAMESPACE]).expect("a namespace");
    made.define(&definitions);
    for overlay in overlays() {
        let path = rendered(&overlay);
        dry_run(&read(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    // A misspelled field of an object of theirs and of one of the operator's: were they taken, the rest would mean nothing.
    let misspelled = |kind: &str, from: &str, to: &str| {
        let objects = objects(&read(&rendered("kube-prometheus-stack")));
        let object = objects.iter().find(|object| object["kind"] == kind).expect("an object");
        let text = serde_yaml::to_string(object).expect("YAML");
        assert!(text.contains(from));
        let error = dry_run(&text.replace(from, to)).expect_err("a field that is not there");
        assert!(error.contains("unknown field"), "{error}");
    };
    misspelled("CronJob", "concurrencyPolicy", "concurencyPolicy");
    misspelled("ServiceMonitor", "honorLabels", "honourLabels");
    the_admission_policy_is_enforced();
    overlays_come_and_go();
}

/// Our Jobs pass; whatever else would give somebody the node does not.
fn the_admission_policy_is_enforced() {
    let objects = objects(&read(&rendered("hardened")));
    let policy = one(&objects, "ValidatingAdmissionPolicy", "lp-exporter");
    let image = variable(policy, "image").trim_matches('\'').to_owned();
    let worker = worker_job(&image);

    // A pod from before the policy, which it would not let in, and which no node takes.
    let old = yaml_of(
        "{apiVersion: v1, kind: Pod, metadata: {name: from-before, namespace: lp-exporter},
          spec: {nodeSelector: {lp-exporter/no-such-node: 'true'}, volumes: [{name: root, hostPath: {path: /}}],
                 containers: [{name: old, image: old, volumeMounts: [{name: root, mountPath: /root}]}]}}",
    );
    // The namespace is new, and its account `default` is made a moment later.
    eventually("a pod to be taken", 30, || create(&old, &[]));
    for name in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
        create(one(&objects, name, "lp-exporter"), &[]).expect("it can be made");
    }
    let mut elsewhere = worker.clone();
    volume(&mut elsewhere)["hostPath"]["path"] = "/etc".into();
    eventually("the policy to be in force", 30, || {
        match create(&elsewhere, &["--dry-run=server"]) {
            Ok(_) => Err("a Job with another hostPath is taken".to_owned()),
            Err(_) => Ok(()),
        }
    });

    let with = |change: &dyn Fn(&mut Value)| {
        let mut job = worker.clone();
        change(&mut job);
        job
    };
    let in_pod =
        |path: &'static [&'static str], text: &'static str| with(&|job: &mut Value| set(pod(job), path, yaml_of(text)));
    let in_container = |path: &'static [&'static str], text: &'static str| {
        with(&|job: &mut Value| set(container(job), path, yaml_of(text)))
    };
    create(&worker, &["--dry-run=server"]).expect("a worker as the program makes it");
    let plain = with(&|job: &mut Value| {
        *pod(job) = yaml_of("{restartPolicy: Never, containers: [{name: worker, image: any}]}");
    });
    create(&plain, &["--dry-run=server"]).expect("a Job that wants nothing of the node");
    let of_plain = |path: &'static [&'static str], text: &'static str| {
        let mut job = plain.clone();
        set(pod(&mut job), path, yaml_of(text));
        job
    };
    // What the component `tls-and-authentication` adds to the worker, and everything else that a plain pod may mount.
    let template = yaml("manifests/components/tls-and-authentication/worker.yaml");
    let with_password = with(&|job: &mut Value| {
        let mut own = template["spec"]["template"]["spec"].clone();
        for (list, of) in [("env", "containers"), ("volumeMounts", "containers"), ("volumes", "")] {
            let (from, to) = match of {
                "" => (&mut own, pod(job)),
                _ => (&mut own["containers"][0], container(job)),
            };
            list_mut(&mut to[list]).append(list_mut(&mut from[list]));
        }
    });
    create(&with_password, &["--dry-run=server"]).expect("a worker with a password");
    let volumes = "[{name: a, persistentVolumeClaim: {claimName: any}}, {name: b, configMap: {name: any}},
                    {name: c, emptyDir: {}}, {name: d, csi: {driver: secrets-store.csi.k8s.io}}]";
    create(&of_plain(&["volumes"], volumes), &["--dry-run=server"]).expect("volumes that are nobody else's");
    let env = |text: String| with(&|job: &mut Value| list_mut(&mut container(job)["env"]).push(yaml_of(&text)));
    let file = |path: &str| {
        env(format!(
            "{{name: LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE, value: '{path}'}}"
        ))
    };
    let annotated = |name: &'static str| {
        with(&|job: &mut Value| {
            let annotations = &mut job["spec"]["template"]["metadata"]["annotations"];
            annotations[format!("container.apparmor.security.beta.kubernetes.io/{name}")] = "unconfined".into();
        })
    };
    let refused = [
        ("none of them", elsewhere),
        (
            "read-only only",
            in_container(
                &["volumeMounts", "1"],
                "{name: lp-exporter-base-0, mountPath: /bases/0}",
            ),
        ),
        ("may run", in_container(&["image"], "docker.io/library/busybox")),
        (
            "may run",
            in_pod(&["initContainers"], "[{name: other, image: docker.io/library/busybox}]"),
        ),
        (
            "no container may be privileged",
            in_container(&["securityContext"], "{privileged: true}"),
        ),
        (
            "no capability but",
            in_container(
                &["securityContext", "capabilities", "add"],
                "[DAC_READ_SEARCH, SYS_ADMIN]",
            ),
        ),
        (
            "drop ALL",
            in_container(&["securityContext", "capabilities"], "{add: [DAC_READ_SEARCH]}"),
        ),
        (
            "allowPrivilegeEscalation",
            in_container(&["securityContext", "allowPrivilegeEscalation"], "null"),
        ),
        ("runs as the account", in_pod(&["serviceAccountName"], "lp-exporter")),
        ("runs as the account", in_pod(&["automountServiceAccountToken"], "true")),
        ("node's network", in_pod(&["hostPID"], "true")),
        ("node's network", in_pod(&["hostNetwork"], "true")),
        ("node's network", of_plain(&["hostIPC"], "true")),
        (
            "ports and kernel parameters",
            of_plain(&["containers", "0", "ports"], "[{containerPort: 80, hostPort: 80}]"),
        ),
        (
            "ports and kernel parameters",
            of_plain(
                &["securityContext"],
                "{sysctls: [{name: kernel.shm_rmid_forced, value: '1'}]}",
            ),
        ),
        (
            "SELinux",
            in_pod(&["securityContext", "seLinuxOptions"], "{type: spc_t}"),
        ),
        (
            "SELinux",
            of_plain(
                &["containers", "0", "securityContext"],
                "{seLinuxOptions: {type: spc_t}}",
            ),
        ),
        (
            "SELinux",
            of_plain(&["securityContext"], "{seLinuxOptions: {user: unconfined_u}}"),
        ),
        (
            "SELinux",
            of_plain(&["securityContext"], "{seLinuxOptions: {role: unconfined_r}}"),
        ),
        (
            "seccomp profile Unconfined",
            in_pod(&["securityContext", "seccompProfile"], "{type: Unconfined}"),
        ),
        (
            "seccomp profile Unconfined",
            in_container(&["securityContext", "seccompProfile"], "{type: Unconfined}"),
        ),
        (
            "needs a seccomp profile",
            in_pod(&["securityContext", "seccompProfile"], "null"),
        ),
        (
            "another procMount",
            with(&|job: &mut Value| {
                set(pod(job), &["hostUsers"], false.into());
                set(container(job), &["securityContext", "procMount"], "Unmasked".into());
            }),
        ),
        (
            "AppArmor",
            in_pod(&["securityContext", "appArmorProfile"], "{type: Unconfined}"),
        ),
        (
            "AppArmor",
            in_container(&["securityContext", "appArmorProfile"], "{type: Unconfined}"),
        ),
        (
            "AppArmor",
            of_plain(
                &["containers", "0", "securityContext"],
                "{appArmorProfile: {type: Unconfined}}",
            ),
        ),
        ("AppArmor", annotated("worker")),
        (
            "process of a Windows node",
            with(&|job: &mut Value| {
                *pod(job) = yaml_of(
                    "{restartPolicy: Never, hostNetwork: true, os: {name: windows}, containers: [{name: worker, image: any}],
                      securityContext: {windowsOptions: {hostProcess: true, runAsUserName: 'NT AUTHORITY\\SYSTEM'}}}",
                );
            }),
        ),
        // The image runs as the worker only, and reads no volume as if it were a password.
        ("the arguments [worker]", in_container(&["args"], "[measure, /bases/0]")),
        (
            "the arguments [worker]",
            in_container(&["args"], "[worker, --plan=/bases/0/x]"),
        ),
        ("the arguments [worker]", in_container(&["command"], "[/lp-exporter]")),
        (
            "nor probes",
            in_container(
                &["livenessProbe"],
                "{exec: {command: [/lp-exporter, measure, /bases/0]}}",
            ),
        ),
        (
            "nor probes",
            in_container(
                &["lifecycle"],
                "{postStart: {exec: {command: [/lp-exporter, measure, /bases/0]}}}",
            ),
        ),
        (
            "as a whole and below /bases only",
            in_container(&["volumeMounts", "1", "mountPath"], "/etc/pushgateway"),
        ),
        (
            "as a whole and below /bases only",
            in_container(&["volumeMounts", "1", "mountPath"], "/bases/../etc"),
        ),
        (
            "as a whole and below /bases only",
            in_container(&["volumeMounts", "1", "subPath"], "made-by-kubelet"),
        ),
        ("files below /etc only", file("/bases/0/secret")),
        ("files below /etc only", file("bases/0/secret")),
        ("files below /etc only", file("/etc/../bases/0/secret")),
        ("files below /etc only", file("/etc/$(ELSEWHERE)")),
        (
            "files below /etc only",
            env("{name: SSL_CERT_FILE, valueFrom: {configMapKeyRef: {name: any, key: any}}}".to_owned()),
        ),
        (
            "files below /etc only",
            in_container(&["envFrom"], "[{configMapRef: {name: any}}]"),
        ),
        (
            "may mount ConfigMaps, Secrets, projected volumes, emptyDirs, claims",
            of_plain(&["volumes"], "[{name: driver, flexVolume: {driver: any/any}}]"),
        ),
        (
            "may mount ConfigMaps, Secrets, projected volumes, emptyDirs, claims",
            of_plain(
                &["volumes"],
                "[{name: disk, iscsi: {targetPortal: any, iqn: 'iqn.2001-04.com.example:any', lun: 0}}]",
            ),
        ),
        (
            "may mount base directories, ConfigMaps",
            with(&|job: &mut Value| {
                let claim = yaml_of("{name: claim, persistentVolumeClaim: {claimName: any}}");
                pod(job)["volumes"].as_sequence_mut().expect("a list").push(claim);
            }),
        ),
    ];
    for (reason, job) in refused {
        let error = create(&job, &["--dry-run=server"]).expect_err(reason);
        let is_ours = error.contains("ValidatingAdmissionPolicy 'lp-exporter'") && error.contains(reason);
        assert!(is_ours, "{reason}: {error}");
    }

    // Not by a pod without a Job either, nor by a container that is added later.
    let mut direct = old.clone();
    direct["metadata"]["name"] = "direct".into();
    create(&direct, &["--dry-run=server"]).expect_err("a pod with the node's root");
    let mut harmless = old;
    harmless["metadata"]["name"] = "harmless".into();
    harmless["spec"]["volumes"] = Value::Null;
    harmless["spec"]["containers"][0]["volumeMounts"] = Value::Null;
    create(&harmless, &[]).expect("a pod that wants nothing of the node");
    // A worker's own pod, which gets no node.
    let mut own = yaml_of("{apiVersion: v1, kind: Pod, metadata: {name: worker, namespace: lp-exporter}}");
    own["spec"] = pod(&mut worker.clone()).clone();
    own["spec"]["nodeSelector"] = yaml_of("{lp-exporter/no-such-node: 'true'}");
    own["spec"]["priorityClassName"] = Value::Null;
    account_of_workers();
    create(&own, &[]).expect("a worker's pod");
    let in_namespace = |arguments: &[&str]| kubectl(&[&["-n", NAMESPACE], arguments].concat());
    let debugger = [
        "debug",
        "pod/harmless",
        "--image=any",
        "--profile=sysadmin",
        "--",
        "true",
    ];
    let error = in_namespace(&debugger).expect_err("a privileged container");
    assert!(error.contains("no container may be privileged"), "{error}");
    let debugger = [
        "debug",
        "pod/worker",
        "--image=any",
        "--profile=restricted",
        "--",
        "true",
    ];
    let error = in_namespace(&debugger).expect_err("another image beside the directories of the node");
    assert!(error.contains("may run"), "{error}");
    the_pod_that_measures_is_taken_elsewhere(&image);

    // What was let in before can be labelled and ended, and not made to run anything else.
    in_namespace(&["label", "pod", "from-before", "changed=true"]).expect("no change of what runs");
    in_namespace(&["set", "image", "pod/from-before", "old=other"]).expect_err("another image");
    in_namespace(&["delete", "pod", "from-before", "harmless", "worker", "--wait=false"]).expect("they can be ended");
    for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
        kubectl(&["delete", kind, "lp-exporter"]).expect("it goes");
    }
}

/// The pod of docs/measure.md is let into the namespace that the document makes, by its commands, and not into ours.
fn the_pod_that_measures_is_taken_elsewhere(image: &str) {
    let text = read(MEASURE);
    let (_, section) = text.split_once("\n## On a node of a cluster\n").expect("a heading");
    let first = |language: &str| {
        let block = section.split(&format!("```{language}\n")).nth(1);
        block.and_then(|rest| rest.split("```").next()).expect("a block")
    };
    let output = Command::new("sh")
        .args(["-euc", first("sh")])
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut pod = yaml_of(first("yaml"));
    pod["spec"]["nodeName"] = "no-such-node".into();
    pod["spec"]["containers"][0]["image"] = image.into();
    create(&pod, &["--dry-run=server"]).expect("the pod of the document");
    assert_eq!(text_of(&pod["metadata"]["namespace"]), MEASURED_IN);
    let removal = format!("kubectl delete namespace {MEASURED_IN}");
    assert!(text.contains(&removal), "{MEASURE} lacks {removal}");

    // The account does not help it either.
    pod["metadata"]["namespace"] = NAMESPACE.into();
    pod["spec"]["serviceAccountName"] = "lp-exporter-worker".into();
    let error = create(&pod, &["--dry-run=server"]).expect_err("it is no worker");
    let is_ours = error.contains("ValidatingAdmissionPolicy 'lp-exporter'");
    assert!(is_ours && error.contains("the arguments [worker]"), "{error}");
}

/// The account of the base, which pods name; the overlays that are applied later find it there.
fn account_of_workers() {
    let objects = objects(&read(&rendered("default")));
    create(one(&objects, "ServiceAccount", "lp-exporter-worker"), &[]).expect("an account");
}

/// One overlay after another is applied over the one before, and the same twice changes nothing. Deleting the one that
/// was applied leaves nothing of it. What others brought outside of the namespace is left, as docs/install.md says, and
/// goes by its commands.
fn overlays_come_and_go() {
    let overlays = overlays();
    for overlay in &overlays {
        apply_twice(&["-f", &rendered(overlay)]);
    }
    the_job_that_retires_is_taken();
    let [others @ .., last] = overlays.as_slice() else {
        panic!("there are no overlays");
    };
    let mut expected: BTreeSet<_> = others
        .iter()
        .flat_map(|overlay| outside_of_the_namespace(overlay))
        .collect();
    expected.retain(|object| !outside_of_the_namespace(last).contains(object));
    assert!(!expected.is_empty(), "{last} has everything that the others have");
    kubectl(&["delete", "-f", &rendered(last), "--timeout=120s"]).expect("it goes");
    assert_eq!(left(), expected, "after {last} is deleted");
    for kinds in removed_by_label() {
        kubectl(&["delete", &kinds, "-l", PART_OF]).expect("they go");
    }
    nothing_is_left();

    // The one with the most kinds, by itself: the label is not needed.
    let alone = overlays
        .iter()
        .max_by_key(|overlay| outside_of_the_namespace(overlay).len());
    let alone = rendered(alone.expect("an overlay"));
    kubectl(&["apply", "-f", &alone]).expect("it is taken");
    assert!(!left().is_empty());
    kubectl(&["delete", "-f", &alone, "--timeout=120s"]).expect("it goes");
    nothing_is_left();
}

/// The pipeline by which docs/install.md takes groups away makes a Job of the CronJob. Nobody waits for its log: a pod needs
/// the image.
fn the_job_that_retires_is_taken() {
    let pipeline = pipeline();
    let lines = pipeline.lines().filter(|line| !line.contains("kubectl logs "));
    let script: Vec<_> = lines.collect();
    let output = Command::new("sh")
        .args(["-euc", &script.join("\n")])
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let arguments = "-o=jsonpath={.spec.template.spec.containers[0].args}";
    let made = kubectl(&["get", "job", "-n", NAMESPACE, "retire", arguments]).expect("the Job");
    assert_eq!(made, r#"["retire","--match","cluster=a","--dry-run"]"#);
}

/// What an overlay makes that stays when the namespace goes, as `kind/name`.
fn outside_of_the_namespace(overlay: &str) -> BTreeSet<String> {
    let objects = objects(&read(&rendered(overlay)));
    let outside = objects
        .iter()
        .filter(|object| object["metadata"]["namespace"].is_null() && object["kind"] != "Namespace");
    outside
        .map(|object| {
            let kind = text_of(&object["kind"]).to_lowercase();
            format!("{kind}/{}", text_of(&object["metadata"]["name"]))
        })
        .collect()
}

fn apply_twice(what: &[&str]) {
    let apply = || {
        kubectl(&[&["apply", "--validate=strict"], what].concat()).unwrap_or_else(|error| panic!("{what:?}: {error}"))
    };
    apply();
    let again = apply();
    let changed: Vec<_> = again.lines().filter(|line| !line.ends_with(" unchanged")).collect();
    assert_eq!(changed, [""; 0], "{what:?}: the same again changes something");
}

fn nothing_is_left() {
    assert_eq!(left(), BTreeSet::new(), "what {INSTALL} removes");
    let command = looked_for_at_the_end();
    let output = Command::new("sh").args(["-euc", &command]).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command}");
}

/// The command by which docs/install.md sees that nothing is left in the cluster. tests/manifests/retire.rs runs the one
/// below it, for the Pushgateway.
fn looked_for_at_the_end() -> String {
    let blocks = blocks("sh");
    let mut lines = blocks.iter().flat_map(|block| block.lines());
    let found = lines.find(|line| line.starts_with("kubectl get namespace,"));
    found.expect("a command that looks").to_owned()
}

/// The namespace and what is outside of it, by the label, as `kind/name`.
fn left() -> BTreeSet<String> {
    let kinds = format!("namespace,{}", removed_by_label().join(","));
    let left = kubectl(&["get", &kinds, "-l", PART_OF, "-o", "name"]).expect("an answer");
    let names = left.lines().filter_map(|line| line.split_once('/'));
    names
        .map(|(kind, name)| format!("{}/{name}", kind.split('.').next().unwrap_or_default()))
        .collect()
}

/// The overlay to try, on a cluster with the images: the first number is there within a minute of two commands, a claim
/// that holds more than it requested ends as an alert at a webhook, and everything goes again. Grafana's image is not
/// needed: it gets no pod.
#[test]
fn the_stack_to_try_alerts() {
    let Some(image) = value(IMAGE_VARIABLE).filter(|_| has_cluster()) else {
        let why = format!("it needs KUBECONFIG, {IMAGE_VARIABLE}, and kubectl on the PATH");
        return skip("the stack to try", &why);
    };
    let mut made = Made::in_a_free_namespace();
    made.later(&["namespace", OUTSIDE]);
    run(&["apply", "-f", "-"], &outside().to_string()).expect("a claim and a receiver");
    for pod in ["pod/writer", "pod/receiver"] {
        kubectl(&["wait", "-n", OUTSIDE, pod, "--for=condition=Ready", "--timeout=120s"]).expect("it is ready");
    }
    let copy = copy_of_the_manifests();
    let own = stack_overlay(copy.path(), &image);
    let own = own.to_str().expect("text");

    let began = Instant::now();
    kubectl(&["apply", "-k", own]).expect("it is taken");
    kubectl(&[
        "create",
        "job",
        "-n",
        NAMESPACE,
        "--from=cronjob/lp-exporter",
        "first-run",
    ])
    .expect("a run");
    let service = format!("/api/v1/namespaces/{NAMESPACE}/services/prometheus:9090/proxy");
    let query = format!("{service}/api/v1/query?query=local_volume_stats_used_bytes");
    eventually("the first number in Prometheus", 120, || {
        let answer = kubectl(&["get", "--raw", &query])?;
        answer
            .contains(r#""persistentvolumeclaim":"filled""#)
            .then_some(())
            .ok_or(answer)
    });
    let took = began.elapsed();
    // Not by println!, which a test that succeeds keeps to itself.
    let seconds = took.as_secs_f64();
    let figure =
        format!("\nfigures of the run of the whole stack:\n  first number after {seconds:.1} s (at most 60)\n\n");
    std::io::stdout()
        .write_all(figure.as_bytes())
        .expect("somebody listens");
    assert!(took < FIRST_NUMBER_MAX, "the first number took {took:?}");
    apply_twice(&["-k", own]);

    eventually("the alert at the webhook", 180, || {
        let log = kubectl(&["logs", "-n", OUTSIDE, "receiver"])?;
        let is_there = log.contains("LocalVolumeOverRequest") && log.contains(r#""persistentvolumeclaim":"filled""#);
        is_there.then_some(()).ok_or(log)
    });
    let log = kubectl(&["logs", "-n", OUTSIDE, "receiver"]).expect("a log");
    for other in ["LocalVolumeUsageHigh", "LocalVolumeFillingUp"] {
        assert!(
            !log.contains(other),
            "a claim over its request has one alert, not {other} too: {log}"
        );
    }

    kubectl(&["delete", "-k", own, "--timeout=120s"]).expect("it goes");
    nothing_is_left();
}

/// An overlay over the one to try: images that the nodes have, runs only when asked for, alerts that do not wait.
fn stack_overlay(copy: &Path, image: &str) -> PathBuf {
    let rules = copy.join("alertmanager/rules/volumes.yaml");
    let patient = fs::read_to_string(&rules).expect("the rules");
    // Those on how full claims are. What says that numbers are late has to wait: it would inhibit these at the beginning.
    let hasty = patient.replace("\n    for: 10m\n", "\n    for: 0s\n");
    assert_ne!(hasty, patient, "no alert waits for ten minutes");
    fs::write(&rules, hasty).expect("it can be written to");

    let own = copy.join("own");
    fs::create_dir(&own).expect("a folder");
    let receiver =
        format!("- name: nobody\n  webhook_configs:\n  - url: http://receiver.{OUTSIDE}:8080/cgi-bin/alerts\n");
    let configuration = read("manifests/overlays/whole-stack/alertmanager.yml")
        .replace("- name: nobody\n", &receiver)
        .replace("  receiver: nobody\n", "  receiver: nobody\n  group_wait: 1s\n");
    assert!(configuration.contains("webhook_configs:\n  - url") && configuration.contains("group_wait"));
    fs::write(own.join("alertmanager.yml"), configuration).expect("it can be written to");

    let images = [
        ("localhost/lp-exporter", Some(image.to_owned())),
        (
            "docker.io/prom/pushgateway",
            value("LP_EXPORTER_TEST_PUSHGATEWAY_IMAGE"),
        ),
        ("docker.io/prom/prometheus", value("LP_EXPORTER_TEST_PROMETHEUS_IMAGE")),
        (
            "docker.io/prom/alertmanager",
            value("LP_EXPORTER_TEST_ALERTMANAGER_IMAGE"),
        ),
    ];
    let images = images.into_iter().filter_map(|(name, reference)| {
        let reference = reference?;
        let (new_name, tag) = reference.rsplit_once(':')?;
        Some(json!({"name": name, "newName": new_name, "newTag": tag}))
    });
    let suspended = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "lp-exporter"}, "spec": {"suspend": true},
    });
    let kustomization = json!({
        "resources": ["../manifests/overlays/whole-stack"],
        "images": images.collect::<Vec<_>>(),
        "replicas": [{"name": "grafana", "count": 0}],
        "configMapGenerator": [
            {"name": "alertmanager", "namespace": NAMESPACE, "behavior": "replace", "files": ["alertmanager.yml"]},
        ],
        "patches": [{"patch": suspended.to_string()}],
    });
    fs::write(own.join("kustomization.yaml"), kustomization.to_string()).expect("it can be written to");
    own
}

/// A claim of 1 MiB that holds 3 MB, and a web server that writes what it is sent into its log.
fn outside() -> serde_json::Value {
    let image = value("LP_EXPORTER_TEST_BUSYBOX_IMAGE").unwrap_or("docker.io/library/busybox:latest".into());
    let pod = |name: &str, script: &str, is_ready: &[&str], volumes: serde_json::Value, mounts: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": OUTSIDE, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": ["/bin/sh", "-ec", script], "volumeMounts": mounts,
                    "readinessProbe": {"exec": {"command": is_ready}, "periodSeconds": 1},
                }],
                "volumes": volumes,
            },
        })
    };
    let fill = "head -c 3000000 /dev/zero > /data/fill; sync; touch /filled; exec sleep 3600";
    let listen = r"mkdir -p /www/cgi-bin
printf '#!/bin/sh\ncat >&2\necho >&2\nprintf \047Content-Type: text/plain\\r\\n\\r\\n\047\n' > /www/cgi-bin/alerts
chmod +x /www/cgi-bin/alerts
exec httpd -f -p 8080 -h /www";
    let metadata = |name: &str| json!({"name": name, "namespace": OUTSIDE});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OUTSIDE}},
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata("filled"),
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
                "resources": {"requests": {"storage": "1Mi"}},
            },
        },
        pod(
            "writer", fill, &["test", "-f", "/filled"],
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "filled"}}]),
            json!([{"name": "data", "mountPath": "/data"}]),
        ),
        pod("receiver", listen, &["test", "-x", "/www/cgi-bin/alerts"], json!([]), json!([])),
        {
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("receiver"),
            "spec": {"selector": {"app": "receiver"}, "ports": [{"port": 8080}]},
        },
    ]})
}

/// A worker's Job as the program makes it, with an image and with directories that are base paths by default.
fn worker_job(image: &str) -> Value {
    let mut job = yaml("tests/expected/worker-job.yaml");
    // Its CronJob is not there.
    job["metadata"]["ownerReferences"] = Value::Null;
    container(&mut job)["image"] = image.into();
    for part in list_mut(&mut pod(&mut job)["volumes"]) {
        if part["hostPath"]["path"] == "/a:b" {
            part["hostPath"]["path"] = "/mnt/disks".into();
        }
    }
    job
}

fn pod(job: &mut Value) -> &mut Value {
    &mut job["spec"]["template"]["spec"]
}

fn container(job: &mut Value) -> &mut Value {
    &mut pod(job)["containers"][0]
}

/// The first volume with a directory of the node.
fn volume(job: &mut Value) -> &mut Value {
    let volumes = list_mut(&mut pod(job)["volumes"]);
    let found = volumes.iter_mut().find(|volume| !volume["hostPath"].is_null());
    found.expect("a directory of the node")
}

fn set(within: &mut Value, path: &[&str], value: Value) {
    let mut place = within;
    for key in path {
        place = match key.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[*key],
        };
    }
    *place = value;
}

/// What a test made in the cluster, which goes at its end, and its right to be the only one there.
struct Made {
    /// What `kubectl delete` is told, the first last.
    deletions: Vec<Vec<String>>,
    _alone: MutexGuard<'static, ()>,
}

impl Made {
    fn in_a_free_namespace() -> Self {
        let alone = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
        eventually("an earlier installation to be gone", 60, || {
            let phase = [
                "get",
                "namespace",
                NAMESPACE,
                "--ignore-not-found",
                "-o",
                "jsonpath={.status.phase}",
            ];
            match kubectl(&phase)?.as_str() {
                "" => Ok(()),
                "Terminating" => Err("it is terminating".to_owned()),
                _ => Err("lp-exporter is installed there, and a test must not take it away".to_owned()),
            }
        });
        let mut made = Self {
            deletions: Vec::new(),
            _alone: alone,
        };
        for kinds in removed_by_label() {
            made.later(&[&kinds, "-l", PART_OF]);
        }
        made.later(&["namespace", NAMESPACE]);
        made
    }

    /// The definitions of the objects that the manifests have, unless the cluster has them.
    fn define(&mut self, definitions: &Path) {
        for name in ["servicemonitors", "prometheusrules"] {
            let definition = format!("customresourcedefinition/{name}.{OPERATOR_GROUP}");
            let there = kubectl(&["get", &definition, "--ignore-not-found", "-o", "name"]).expect("an answer");
            if there.is_empty() {
                let file = definitions.join(format!("{OPERATOR_GROUP}_{name}.yaml"));
                kubectl(&["create", "-f", file.to_str().expect("text")]).expect("the definition");
                self.later(&[&definition]);
            }
            kubectl(&["wait", "--for=condition=Established", &definition, "--timeout=30s"]).expect("it is served");
        }
    }

    fn later(&mut self, deletion: &[&str]) {
        self.deletions
            .push(deletion.iter().map(|&word| word.to_owned()).collect());
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for deletion in self.deletions.iter().rev() {
            let words: Vec<_> = deletion.iter().map(String::as_str).collect();
            if let Err(error) = kubectl(&[&["delete", "--ignore-not-found", "--timeout=120s"], &words[..]].concat()) {
                eprintln!("{deletion:?} may be left in the cluster: {error}");
            }
        }
    }
}

fn has_cluster() -> bool {
    value("KUBECONFIG").is_some() && has_kubectl()
}

fn value(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn dry_run(text: &str) -> Result<String, String> {
    run(&["apply", "--dry-run=server", "--validate=strict", "-f", "-"], text)
}

fn create(object: &Value, flags: &[&str]) -> Result<String, String> {
    let text = serde_yaml::to_string(object).expect("YAML");
    run(&[&["create", "--validate=strict", "-f", "-"], flags].concat(), &text)
}

/// Tries until it succeeds, for so many seconds.
fn eventually<T>(what: &str, seconds: u64, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(
                start.elapsed() < Duration::from_secs(seconds),
                "waited for {what}: {error}"
            ),
        }
        sleep(Duration::from_millis(300));
    }
}
