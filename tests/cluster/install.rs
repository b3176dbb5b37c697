//! The manifests under test, installed as a user does, and a Prometheus that scrapes what they bring.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fixtures::{BASES, Nodes, text};
use crate::kubectl::{apply, eventually, get, items, kubectl, kubectl_with_input};
use crate::settings::Settings;

/// The namespace that the manifests make.
pub(crate) const NAMESPACE: &str = "lp-exporter";
/// The namespace of this test's Prometheus.
pub(crate) const MONITORING: &str = "lp-e2e-monitoring";
/// The shortest interval there is, so that a run that waits for its own clock does not take long.
pub(crate) const INTERVAL_SECONDS: u64 = 60;

const TEMPLATE_CONFIG_MAP: &str = "lp-exporter-job-template";
pub(crate) const NODE_ROLE_LABEL: &str = "lp-e2e-role";

/// Chooses the three nodes, and remembers the choice as labels, so that one step can be run again by itself.
pub(crate) fn choose_nodes() -> Result<Nodes> {
    let nodes = get(&["nodes"])?;
    let by_role = |role: &str| {
        let chosen = items(&nodes)
            .iter()
            .find(|node| node["metadata"]["labels"][NODE_ROLE_LABEL] == role);
        chosen.map(|node| text(&node["metadata"]["name"]))
    };
    if let (Some(home), Some(troubled), Some(lost)) = (by_role("home"), by_role("troubled"), by_role("lost")) {
        return Ok(Nodes { home, troubled, lost });
    }
    let pods = get(&["pods", "-A"])?;
    let on = |node: &str, is_meant: fn(&Value) -> bool| {
        items(&pods)
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == node && is_meant(pod))
            .count()
    };
    let is_dns = |pod: &Value| pod["metadata"]["labels"]["k8s-app"] == "kube-dns";
    let is_tied = |pod: &Value| pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet";
    let free = items(&nodes).iter().filter(|node| node["spec"]["taints"].is_null());
    let mut names: Vec<_> = free.map(|node| text(&node["metadata"]["name"])).collect();
    ensure!(
        names.len() >= 3,
        "this test needs three nodes without taints, there are {}",
        names.len()
    );
    // What the cluster itself needs, names first, stays on the node that nothing happens to.
    names.sort_by_key(|name| (on(name, is_dns), on(name, is_tied)));
    let [lost, troubled] = [names[0].clone(), names[1].clone()];
    let home = names.last().context("three names")?.clone();
    for (role, name) in [("home", &home), ("troubled", &troubled), ("lost", &lost)] {
        kubectl(&[
            "label",
            "node",
            name,
            "--overwrite",
            &format!("{NODE_ROLE_LABEL}={role}"),
        ])?;
    }
    Ok(Nodes { home, troubled, lost })
}

/// Undoes what [`choose_nodes`] wrote down.
pub(crate) fn forget_nodes(nodes: &Nodes) -> Result<()> {
    for node in nodes.all() {
        kubectl(&["label", "node", node, &format!("{NODE_ROLE_LABEL}-")])?;
    }
    Ok(())
}

/// `kubectl apply -k` of an overlay for this cluster, and the Prometheus.
pub(crate) fn install(settings: &Settings, nodes: &Nodes) -> Result<()> {
    let folder = write_overlay(settings, nodes)?;
    let overlay = folder.path().join("test");
    let overlay = overlay.to_str().context("a temporary directory whose path is text")?;
    eventually("an earlier installation to be gone", Duration::from_secs(120), || {
        let phase = kubectl(&[
            "get",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "-o",
            "jsonpath={.status.phase}",
        ])?;
        ensure!(phase != "Terminating", "the namespace {NAMESPACE} is terminating");
        Ok(())
    })?;
    kubectl(&["apply", "--validate=strict", "-k", overlay])?;
    let again = kubectl(&["apply", "--validate=strict", "-k", overlay])?;
    ensure!(
        again.lines().all(|line| line.ends_with(" unchanged")),
        "a second apply changes something:\n{again}"
    );
    apply(&prometheus(settings, nodes))?;
    for (namespace, deployment) in [
        (NAMESPACE, "deployment/pushgateway"),
        (MONITORING, "deployment/prometheus"),
    ] {
        kubectl(&[
            "rollout",
            "status",
            deployment,
            "-n",
            namespace,
            "--timeout=90s",
            "--request-timeout=0",
        ])?;
    }
    Ok(())
}

/// Every object of what users apply passes the API server's strict validation: the overlay, and the components.
pub(crate) fn validate(settings: &Settings, nodes: &Nodes) -> Result<()> {
    let folder = write_overlay(settings, nodes)?;
    let with_components = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["../manifests/overlays/default"],
        "components": ["../manifests/components/persistence"],
    });
    fs::create_dir(folder.path().join("components"))?;
    fs::write(
        folder.path().join("components/kustomization.yaml"),
        with_components.to_string(),
    )?;
    for overlay in ["manifests/overlays/default", "components"] {
        let overlay = folder.path().join(overlay);
        let objects = kubectl(&["kustomize", overlay.to_str().context("a path that is text")?])?;
        let check = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        kubectl_with_input(&check, &objects)?;
    }
    Ok(())
}

/// Runs `step` with the component that lets pods say where volumes lie.
pub(crate) fn with_pods_located(settings: &Settings, nodes: &Nodes, step: impl FnOnce() -> Result<()>) -> Result<()> {
    let folder = write_overlay(settings, nodes)?;
    let component = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["../test"],
        "components": ["../manifests/components/locate-by-pods"],
    });
    fs::create_dir(folder.path().join("located"))?;
    fs::write(folder.path().join("located/kustomization.yaml"), component.to_string())?;
    let [located, plain] = ["located", "test"].map(|overlay| folder.path().join(overlay));
    let apply = |overlay: &Path| kubectl(&["apply", "-k", overlay.to_str().context("a path that is text")?]);
    apply(&located)?;
    let done = step();
    apply(&plain)?;
    let name = "lp-exporter-locate-by-pods";
    kubectl(&["delete", "clusterrole,clusterrolebinding", name])?;
    done
}

/// `kubectl delete -k`, after which nothing is left.
pub(crate) fn uninstall(settings: &Settings, nodes: &Nodes) -> Result<()> {
    let folder = write_overlay(settings, nodes)?;
    let overlay = folder.path().join("test");
    let overlay = overlay.to_str().context("a temporary directory whose path is text")?;
    kubectl(&[
        "delete",
        "-k",
        overlay,
        "--ignore-not-found",
        "--timeout=120s",
        "--request-timeout=0",
    ])?;
    kubectl(&[
        "delete",
        "namespace",
        MONITORING,
        "--ignore-not-found",
        "--timeout=120s",
        "--request-timeout=0",
    ])?;
    Ok(())
}

/// Replaces the Job template by the shipped one with `change` applied to it.
pub(crate) fn set_template(change: impl FnOnce(&mut Value)) -> Result<()> {
    let source = fs::read_to_string(repository("jobs/worker.yaml"))?;
    let mut template: Value = serde_yaml::from_str(&source)?;
    change(&mut template);
    set_template_text(&template.to_string())
}

/// Replaces the Job template by `source`.
pub(crate) fn set_template_text(source: &str) -> Result<()> {
    let patch = json!({"data": {"worker.yaml": source}}).to_string();
    kubectl(&[
        "patch",
        "configmap",
        TEMPLATE_CONFIG_MAP,
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        &patch,
    ])?;
    Ok(())
}

/// Puts the shipped Job template back, comments and all.
pub(crate) fn restore_template() -> Result<()> {
    set_template_text(&fs::read_to_string(repository("jobs/worker.yaml"))?)
}

/// Sets (`NAME=value`) or removes (`NAME-`) a variable of the controller.
pub(crate) fn set_env(change: &str) -> Result<()> {
    kubectl(&["set", "env", "cronjob/lp-exporter", "-n", NAMESPACE, change])?;
    Ok(())
}

/// Patches the CronJob.
pub(crate) fn patch_cron_job(patch: &Value) -> Result<()> {
    kubectl(&[
        "patch",
        "cronjob",
        "lp-exporter",
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        &patch.to_string(),
    ])?;
    Ok(())
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A copy of the manifests with an overlay beside them: kustomize takes relative paths only.
fn write_overlay(settings: &Settings, nodes: &Nodes) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let options = fs_extra::dir::CopyOptions::new();
    for part in ["manifests", "jobs"] {
        fs_extra::dir::copy(repository(part), folder.path(), &options)?;
    }
    let (image, tag) = split_reference(&settings.image);
    let mut images = vec![json!({"name": "localhost/lp-exporter", "newName": image, "newTag": tag})];
    if let Some(reference) = &settings.pushgateway_image {
        let (image, tag) = split_reference(reference);
        images.push(json!({"name": "docker.io/prom/pushgateway", "newName": image, "newTag": tag}));
    }
    let at_home = json!({"kubernetes.io/hostname": nodes.home});
    let cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "lp-exporter"},
        "spec": {
            // The steps start their runs themselves; one of them turns the schedule on.
            "suspend": true,
            "schedule": "* * * * *",
            "jobTemplate": {"spec": {
                "activeDeadlineSeconds": INTERVAL_SECONDS - 4,
                "template": {"spec": {
                    "nodeSelector": at_home,
                    "containers": [{"name": "controller", "env": [
                        {"name": "LP_EXPORTER_INTERVAL", "value": format!("{INTERVAL_SECONDS}s")},
                        {"name": "LP_EXPORTER_BASE_PATHS", "value": BASES.join(",")},
                        {"name": "LP_EXPORTER_LOG_FORMAT", "value": "json"},
                    ]}],
                }},
            }},
        },
    });
    let pushgateway = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "pushgateway"},
        "spec": {"template": {"spec": {"nodeSelector": at_home}}},
    });
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["../manifests/overlays/default"],
        "images": images,
        "patches": [{"patch": cron_job.to_string()}, {"patch": pushgateway.to_string()}],
    });
    fs::create_dir(folder.path().join("test"))?;
    fs::write(folder.path().join("test/kustomization.yaml"), kustomization.to_string())?;
    Ok(folder)
}

/// Name and tag of an image; a port in the name is no tag.
fn split_reference(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

fn prometheus(settings: &Settings, nodes: &Nodes) -> Vec<Value> {
    let configuration = "\
global: {scrape_interval: 1s}
scrape_configs:
- job_name: pushgateway
  honor_labels: true
  static_configs: [{targets: ['pushgateway.lp-exporter.svc:9091']}]
";
    let labels = json!({"app": "prometheus"});
    let metadata = json!({"name": "prometheus", "namespace": MONITORING});
    vec![
        crate::fixtures::namespace(MONITORING),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"prometheus.yml": configuration}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
               "spec": {"selector": labels, "ports": [{"port": 9090}]}}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "nodeSelector": {"kubernetes.io/hostname": nodes.home},
                        "securityContext": {"runAsUser": 65534, "fsGroup": 65534},
                        "containers": [{
                            "name": "prometheus", "image": settings.prometheus_image, "imagePullPolicy": "IfNotPresent",
                            "args": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data"],
                            "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
                            "volumeMounts": [{"name": "configuration", "mountPath": "/etc/prometheus"}, {"name": "data", "mountPath": "/data"}],
                        }],
                        "volumes": [{"name": "configuration", "configMap": {"name": "prometheus"}}, {"name": "data", "emptyDir": {}}],
                    },
                },
            },
        }),
    ]
}

/// Waits until a Kubernetes client of the controller's account may (`yes`) or may not (`no`) do something.
pub(crate) fn wait_for_right(verb: &str, resource: &str, expected: &str) -> Result<()> {
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:lp-exporter");
    eventually(
        "the authorizer to notice a change of rights",
        Duration::from_secs(20),
        || {
            // `can-i` exits with 1 for no.
            let script = ["auth", "can-i", verb, resource, "-n", NAMESPACE, &account];
            let answer = kubectl_with_input(&script, "").map_or("no", |_| "yes");
            ensure!(answer == expected, "{verb} {resource}: {answer}");
            Ok(())
        },
    )
}
