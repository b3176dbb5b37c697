//! What is measured: claims of both classes on every node, and pods that fill them with all that is hard to count.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kubectl::{apply, eventually, get, items, kubectl, on_node};
use crate::runs::has_condition;
use crate::settings::{NodeCommand, Settings};

/// Two namespaces with claims of the same names.
pub(crate) const NAMESPACES: [&str; 2] = ["lp-e2e-a", "lp-e2e-b"];
/// Volumes of type hostPath that vanish with their claim, and volumes of type local that are retained.
pub(crate) const CLASSES: [&str; 2] = ["local-path", "local-path-data1"];
/// The base directories of [`CLASSES`].
pub(crate) const BASES: [&str; 2] = ["/opt/local-path-provisioner", "/data1"];

/// Names that contain each other.
const NAMES: [&str; 15] = [
    "data",
    "data-1",
    "data-10",
    "data-100",
    "data-11",
    "data-1-0",
    "a-data",
    "data-a",
    "dat",
    "1-data",
    "data-data",
    "data1",
    "x-data-1",
    "x",
    "ata",
];
/// Requests as people write them, and their bytes.
const REQUESTS: [(&str, u64); 6] = [
    ("1Gi", 1 << 30),
    ("5G", 5_000_000_000),
    ("1000", 1000),
    ("1.5Gi", 3 << 29),
    ("100M", 100_000_000),
    ("1e8", 100_000_000),
];

/// The three nodes that this test uses, by what happens to them.
#[derive(Debug, Clone)]
pub(crate) struct Nodes {
    /// Runs the controller, the Pushgateway and Prometheus, and stays as it is.
    pub(crate) home: String,
    /// Is tainted, full, or under disk pressure.
    pub(crate) troubled: String,
    /// Is cordoned and cut off. It hosts nothing that the cluster needs.
    pub(crate) lost: String,
}

impl Nodes {
    /// All of them.
    pub(crate) fn all(&self) -> [&str; 3] {
        [&self.home, &self.troubled, &self.lost]
    }
}

/// One claim of this test.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) class: &'static str,
    pub(crate) node: String,
    pub(crate) request: &'static str,
    pub(crate) capacity_bytes: u64,
}

/// A claim's volume, as the cluster knows it.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) persistentvolume: String,
    pub(crate) path: String,
}

/// The thirty claims: ten on each node, of both classes.
pub(crate) fn claims(nodes: &Nodes) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (shift, namespace) in NAMESPACES.into_iter().enumerate() {
        for (index, name) in NAMES.into_iter().enumerate() {
            let (request, capacity_bytes) = REQUESTS[(index / 2 + shift) % REQUESTS.len()];
            claims.push(Claim {
                namespace,
                name,
                class: CLASSES[(index / 3 + shift) % CLASSES.len()],
                node: nodes.all()[(index + shift) % 3].to_owned(),
                request,
                capacity_bytes,
            });
        }
    }
    claims
}

/// Makes the claims and the pods that fill them, and waits until every byte is on its disk.
pub(crate) fn fill(settings: &Settings, nodes: &Nodes, claims: &[Claim]) -> Result<()> {
    let mut objects: Vec<Value> = NAMESPACES.iter().map(|name| namespace(name)).collect();
    objects.extend(claims.iter().map(claim_object));
    for namespace in NAMESPACES {
        for node in nodes.all() {
            let mine: Vec<_> = claims
                .iter()
                .filter(|claim| claim.namespace == namespace && claim.node == node)
                .collect();
            objects.push(writer(settings, namespace, node, &mine));
        }
    }
    apply(&objects)?;
    eventually(
        "every writer to have filled its volumes",
        Duration::from_secs(240),
        || {
            for namespace in NAMESPACES {
                let pods = get(&["pods", "-n", namespace, "-l", "app=writer"])?;
                if items(&pods).iter().any(|pod| pod["status"]["phase"] == "Failed") {
                    // An evicted pod stays evicted.
                    let failed = "--field-selector=status.phase=Failed";
                    kubectl(&["delete", "pods", "-n", namespace, "-l", "app=writer", failed])?;
                    apply(&objects)?;
                }
                let ready = items(&pods).iter().filter(|pod| has_condition(pod, "Ready")).count();
                ensure!(ready == 3, "{ready} of 3 writers are ready in {namespace}");
            }
            Ok(())
        },
    )
}

/// A namespace.
pub(crate) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"lp-exporter-test": "yes"}}})
}

/// A pod of busybox that is pinned to a node, tolerates everything and runs `script`.
pub(crate) fn busybox_pod(settings: &Settings, namespace: &str, name: &str, node: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": settings.busybox_image, "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-ec", script],
            }],
        },
    })
}

/// The volumes of the claims that still exist, by namespace and name.
pub(crate) fn volumes(claims: &[Claim]) -> Result<BTreeMap<(String, String), Volume>> {
    let list = get(&["persistentvolumes"])?;
    let mut volumes = BTreeMap::new();
    for object in items(&list) {
        let claim = &object["spec"]["claimRef"];
        let key = (text(&claim["namespace"]), text(&claim["name"]));
        if !claims
            .iter()
            .any(|claim| claim.namespace == key.0 && claim.name == key.1)
        {
            continue;
        }
        let path = [&object["spec"]["hostPath"]["path"], &object["spec"]["local"]["path"]]
            .into_iter()
            .find_map(Value::as_str);
        let volume = Volume {
            persistentvolume: text(&object["metadata"]["name"]),
            path: path.context("a volume without path")?.to_owned(),
        };
        if let Some(other) = volumes.insert(key, volume) {
            bail!("two volumes for one claim, one of them {other:?}: left over from an earlier test?");
        }
    }
    Ok(volumes)
}

/// What lies in a directory on a node, as `du` says.
pub(crate) fn used_bytes(node_exec: &NodeCommand, node: &str, path: &str) -> Result<u64> {
    let line = on_node(node_exec, node, &["du", "-s", "-B1", path])?;
    let number = line.split_whitespace().next().context("du printed nothing")?;
    number.parse().with_context(|| format!("du printed {line:?}"))
}

/// Removes every trace of [`fill`], retained volumes and their directories included.
pub(crate) fn remove(settings: &Settings, nodes: &Nodes) -> Result<()> {
    for namespace in NAMESPACES {
        kubectl(&[
            "delete",
            "namespace",
            namespace,
            "--ignore-not-found",
            "--wait=true",
            "--timeout=120s",
            "--request-timeout=0",
        ])?;
    }
    for object in items(&get(&["persistentvolumes"])?) {
        let namespace = text(&object["spec"]["claimRef"]["namespace"]);
        if NAMESPACES.contains(&namespace.as_str()) && object["spec"]["persistentVolumeReclaimPolicy"] == "Retain" {
            kubectl(&["delete", "persistentvolume", &text(&object["metadata"]["name"])])?;
        }
    }
    if settings.node_exec.words.is_some() {
        for node in nodes.all() {
            let directories = NAMESPACES.map(|namespace| format!("{}/{namespace}", BASES[1]));
            on_node(
                &settings.node_exec,
                node,
                &["rm", "-rf", &directories[0], &directories[1]],
            )?;
        }
    }
    Ok(())
}

/// The text of a JSON value, empty if it is none.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn claim_object(claim: &Claim) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim.name, "namespace": claim.namespace},
        "spec": {
            "storageClassName": claim.class,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": claim.request}},
        },
    })
}

fn writer(settings: &Settings, namespace: &str, node: &str, claims: &[&Claim]) -> Value {
    let mut script = String::new();
    for (index, claim) in claims.iter().enumerate() {
        let seed = index + 5 * claim.name.len();
        // A file that is deleted while it is open stays so as long as the shell that holds it.
        let held = index + 3;
        script += &format!(
            "fill /volumes/{} {seed}\nexec {held}>/volumes/{}/held\n",
            claim.name, claim.name
        );
        script += &format!("head -c 1000000 /dev/zero >&{held}\nrm /volumes/{}/held\n", claim.name);
    }
    script = format!("{FILL}\n{script}\nsync\ntouch /tmp/filled\nsleep 1000000");
    let mut pod = busybox_pod(settings, namespace, &format!("writer-{node}"), node, &script);
    pod["metadata"]["labels"] = json!({"app": "writer"});
    // A node that was cut off starts it again.
    pod["spec"]["restartPolicy"] = json!("Always");
    let volumes: Vec<_> = claims
        .iter()
        .map(|claim| json!({"name": claim.name, "persistentVolumeClaim": {"claimName": claim.name}}))
        .collect();
    let mounts: Vec<_> = claims
        .iter()
        .map(|claim| json!({"name": claim.name, "mountPath": format!("/volumes/{}", claim.name)}))
        .collect();
    pod["spec"]["volumes"] = json!(volumes);
    pod["spec"]["containers"][0]["volumeMounts"] = json!(mounts);
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["/bin/cat", "/tmp/filled"]}, "periodSeconds": 1});
    pod
}

/// `fill DIRECTORY SEED`: small files, a larger one, a sparse one, hard links, a directory that only its owner may read,
/// symbolic links out of the volume and round in a circle, and a name that breaks lines.
const FILL: &str = r#"
fill() {
  cd "$1"
  rm -rf ./*
  mkdir -p small/deeper/still "line
break" private
  n=0
  while [ $n -lt $((20 + $2)) ]; do head -c $((n * 397)) /dev/zero > "small/$n"; n=$((n + 1)); done
  head -c $((100000 + 70001 * $2)) /dev/urandom > payload
  truncate -s 1G sparse
  dd if=/dev/urandom of=sparse bs=4096 count=5 seek=1000 conv=notrunc 2>/dev/null
  head -c 300000 /dev/urandom > linked
  ln linked linked-again
  ln linked small/deeper/linked
  head -c 123456 /dev/urandom > private/secret
  chown -R 4711:4711 private
  chmod 0600 private/secret
  chmod 0700 private
  ln -s / root
  ln -s .. small/up
  echo text > "line
break/and
more"
  cd /
}"#;
