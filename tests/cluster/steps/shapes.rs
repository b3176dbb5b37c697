//! Volumes of every shape, made by hand beside the provisioned ones: each is measured or told with its reason, every number
//! is what the node's own tools say, and `lp-exporter plan` says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{REPORT, WORKER, World};
use crate::fixtures::{self, BASES, busybox_pod, text};
use crate::install::{set_env, with_pods_located};
use crate::kubectl::{apply, eventually, get, items, kubectl, on_node, output};
use crate::observe::{self, Group, Labels};
use crate::runs::{has_condition, run};

/// The namespace of the claims.
const NAMESPACE: &str = "lp-e2e-shapes";
/// The label of the volumes.
const LABEL: &str = "lp-e2e-shapes";
/// A label of the nodes with a number, which as a text has another order.
const RANK_LABEL: &str = "lp-e2e-rank";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// The directories below each base path that hold everything.
const FOLDERS: [&str; 3] = ["lp-e2e-shapes", "lp-e2e-shapes-2", "lp-e2e-shapes-empty"];
/// Where the images of the disks are.
const IMAGES: &str = "/var/tmp/lp-e2e-shapes";
const CAPACITY: &str = "1Gi";
const CAPACITY_BYTES: f64 = (1_u64 << 30) as f64;
/// What others may write between two looks at a file system that the whole machine uses.
const OTHERS_BYTES: f64 = 2e9;
const OTHERS_INODES: f64 = 100_000.0;

/// What is to become of a volume.
#[derive(Debug, Clone)]
enum Expected {
    /// It has numbers: what `du` says.
    Walked(Place),
    /// It has numbers: what `df` says, because it has a file system to itself.
    Asked(Place),
    /// A worker looked for it, and there is no number.
    Without(&'static str, Place),
    /// No worker looks for it.
    Left(&'static str),
}

/// Where a volume lies.
#[derive(Debug, Clone)]
enum Place {
    On(String),
    /// Counted as shared, on this node, or whichever if it is none of these.
    Shared(Option<String>),
}

/// A volume that was made by hand.
struct Shape {
    name: &'static str,
    path: String,
    object: Value,
    phase: &'static str,
    expected: Expected,
}

impl Shape {
    fn new(name: &'static str, source: Value, terms: Option<Value>, expected: Expected) -> Shape {
        let path = [&source["hostPath"]["path"], &source["local"]["path"]]
            .into_iter()
            .find_map(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let mut spec = json!({
            "capacity": {"storage": CAPACITY}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
        });
        for (key, value) in source.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        if let Some(terms) = terms {
            spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}});
        }
        let object = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": format!("lp-e2e-shape-{name}"), "labels": {LABEL: "yes"}},
            "spec": spec,
        });
        Shape {
            name,
            path,
            object,
            phase: "Available",
            expected,
        }
    }

    fn annotated(mut self, node: &str) -> Shape {
        self.object["metadata"]["annotations"] = json!({"local.path.provisioner/selected-node": node});
        self
    }

    fn phase(mut self, phase: &'static str) -> Shape {
        self.phase = phase;
        self
    }

    fn volume(&self) -> String {
        text(&self.object["metadata"]["name"])
    }

    /// A claim that is bound to this volume.
    fn claim(&self, name: &str, labels: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "storageClassName": "", "volumeName": self.volume(), "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": CAPACITY}},
            },
        })
    }
}

/// Of the volumes of the whole cluster, hand-made and provisioned, each is in exactly one of measured or reason; the numbers
/// are those of `du` and `df`; and a plan says the same, from the cluster and from a dump.
pub(crate) fn every_shape_is_measured_or_told(world: &World) -> Result<()> {
    let shapes = shapes(world)?;
    within(world, || {
        make_directories(world, &shapes)?;
        make_objects(&shapes)?;
        refuses_steps_back()?;
        run()?.ensure_done()?;
        let groups = observe::groups()?;
        let mut wrong = Vec::new();
        for shape in &shapes {
            if let Err(error) = check_shape(world, shape, &groups) {
                wrong.push(format!("{} ({:?}): {error:#}", shape.name, shape.expected));
            }
        }
        for check in [check_sum, check_plan, check_file_systems, check_pushes] {
            if let Err(error) = check(world, &groups) {
                wrong.push(format!("{error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "wrong {} times:\n{}", wrong.len(), wrong.join("\n"));
        world.ensure_true_numbers(&world.claims.iter().collect::<Vec<_>>())?;
        world.figure(format!(
            "volumes of every shape: {} made by hand beside {} provisioned ones, each measured or told with its reason",
            shapes.len(),
            world.claims.len()
        ));
        Ok(())
    })
}

/// Directories that no volume owns are counted, with the bytes that `du` says, and nothing else is.
pub(crate) fn orphans_are_what_du_says(world: &World) -> Result<()> {
    let node = &world.nodes.troubled;
    let [o, d] = bases();
    let on = |name: &str| Some(hostname(name));
    let left = || Expected::Left("no_node_named");
    let walked = || Expected::Walked(Place::On(node.clone()));
    let shapes = [
        Shape::new("nested", local(&format!("{d}/nested/volume")), on(node), walked()),
        Shape::new("unplaced", host_path(&format!("{d}/unplaced"), None), None, left()),
        Shape::new(
            "elsewhere",
            local(&format!("{d}/elsewhere")),
            on(&world.nodes.home),
            Expected::Without("missing", Place::On(world.nodes.home.clone())),
        ),
    ];
    let script = format!(
        "{FILL}
        fill {o} 1; fill {o}-2 2; fill {d}/nested/volume 3; fill {d}/nested/left 4; fill {d}/unplaced 5
        fill {d}/elsewhere 6
        mkdir -p {o}-empty/parent/child {d}/empty {d}/disk {IMAGES}
        ln -s {d}/elsewhere {d}/link; echo text > {d}/file
        mkdir -p '{base}/lost+found' {base}/.Trash-4711
        fill '{base}/lost+found/lp-e2e-shapes' 7; fill {base}/.Trash-4711/lp-e2e-shapes 8
        {DISK}
        disk ext4 32M {d}/disk; fill {d}/disk/directory 9
        sync",
        base = BASES[0]
    );
    within(world, || {
        on_node(&world.settings.node_exec, node, &["sh", "-ec", &script])?;
        apply(&shapes.each_ref().map(|shape| shape.object.clone()))?;
        // All of them are too young.
        run()?.ensure_done()?;
        let before = orphans(node)?;
        set_env("LP_EXPORTER_ORPHAN_AGE=0s")?;
        let done = run();
        set_env("LP_EXPORTER_ORPHAN_AGE-")?;
        let done = done?.ensure_done()?;
        let after = orphans(node)?;
        let expected = [
            (BASES[0], [o.clone(), format!("{o}-2")]),
            (BASES[1], [format!("{d}/elsewhere"), format!("{d}/nested/left")]),
        ];
        let summary = done.worker_summary(node)?;
        for (base, paths) in &expected {
            let mut bytes = 0;
            for path in paths {
                bytes += fixtures::used_bytes(&world.settings.node_exec, node, path)?;
                let is_named = summary["orphans"].as_array().into_iter().flatten();
                let is_named = is_named.into_iter().any(|orphan| orphan["path"] == path.as_str());
                ensure!(is_named, "{path} is not named: {summary}");
            }
            let told = (after[*base].0 - before[*base].0, after[*base].1 - before[*base].1);
            ensure!(
                told == (paths.len() as f64, bytes as f64),
                "orphans below {base}: {told:?} more than before, expected {paths:?} with {bytes} bytes\n{summary}"
            );
        }
        Ok(())
    })
}

/// With the component, pods say where a volume lies that does not say so itself; those that say two things say nothing.
pub(crate) fn pods_say_where_volumes_lie(world: &World) -> Result<()> {
    let [o, _] = bases();
    let nodes = &world.nodes;
    let several = || Expected::Left("pods_on_several_nodes");
    let walked = || Expected::Walked(Place::On(nodes.troubled.clone()));
    let unplaced = || Expected::Left("no_node_named");
    let make =
        |name, expected| Shape::new(name, host_path(&format!("{o}/{name}"), None), None, expected).phase("Bound");
    let shapes = [
        make("by-pod", walked()),
        make("by-pods", several()),
        make("by-none", unplaced()),
        make("by-none-unbound", unplaced()).phase("Available"),
    ];
    let pod = |name: &str, node: &str, claim: &str| {
        let mut pod = busybox_pod(&world.settings, NAMESPACE, name, node, "sleep 1000000");
        pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        pod
    };
    let pods = [
        pod("one", &nodes.troubled, "by-pod"),
        pod("two", &nodes.troubled, "by-pods"),
        pod("three", &nodes.home, "by-pods"),
    ];
    within(world, || {
        make_directories(world, &shapes)?;
        apply(&shapes.each_ref().map(|shape| shape.object.clone()))?;
        apply(&shapes.each_ref().map(|shape| shape.claim(shape.name, json!({})))[..3])?;
        wait_for_phases(&shapes)?;
        apply(&pods)?;
        eventually("the pods to run", Duration::from_secs(60), || {
            let pods = get(&["pods", "-n", NAMESPACE])?;
            let ready = items(&pods).iter().filter(|pod| has_condition(pod, "Ready")).count();
            ensure!(ready == 3, "{ready} of 3 pods are ready");
            Ok(())
        })?;
        with_pods_located(&world.settings, &world.nodes, || {
            run()?.ensure_done()?;
            let groups = observe::groups()?;
            for shape in &shapes {
                check_shape(world, shape, &groups).with_context(|| shape.name)?;
            }
            check_sum(world, &groups)?;
            let live = plan(&["--locate-by-pods"], "")?;
            check_same(&live, &groups)?;
            let dump = kubectl(&["get", "pv,pvc,nodes,storageclasses,pods", "-A", "-o", "json"])?;
            let from_dump = plan(&["--locate-by-pods", "--from-file", "-"], &dump)?;
            ensure!(live == from_dump, "of the cluster {live}\nof its dump {from_dump}");
            Ok(())
        })
    })
}

/// The folder of this module below each base path.
fn bases() -> [String; 2] {
    BASES.map(|base| format!("{base}/{}", FOLDERS[0]))
}

fn host_path(path: &str, kind: Option<&str>) -> Value {
    match kind {
        Some(kind) => json!({"hostPath": {"path": path, "type": kind}}),
        None => json!({"hostPath": {"path": path}}),
    }
}

fn local(path: &str) -> Value {
    json!({"local": {"path": path}})
}

/// One requirement of a term.
fn requirement(key: &str, operator: &str, values: &[&str]) -> Value {
    match operator {
        "Exists" | "DoesNotExist" => json!({"key": key, "operator": operator}),
        _ => json!({"key": key, "operator": operator, "values": values}),
    }
}

fn term(requirements: &[Value]) -> Value {
    json!({"matchExpressions": requirements})
}

fn hostname(node: &str) -> Value {
    json!([term(&[requirement(HOSTNAME, "In", &[node])])])
}

/// One volume of each shape.
fn shapes(world: &World) -> Result<Vec<Shape>> {
    let list = get(&["nodes"])?;
    let names: Vec<String> = items(&list)
        .iter()
        .map(|node| text(&node["metadata"]["name"]))
        .collect();
    let node = world.nodes.troubled.clone();
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != node).collect();
    let [o, d] = bases();
    let here = || Some(hostname(&node));
    let walked = || Expected::Walked(Place::On(node.clone()));
    let walked_on = |name: &str| Expected::Walked(Place::On(name.to_owned()));
    let shared = |name: Option<&str>| Expected::Walked(Place::Shared(name.map(str::to_owned)));
    let without = |state| Expected::Without(state, Place::On(node.clone()));
    let left = Expected::Left;
    let mut shapes = Vec::new();

    // Each type of hostPath; what is no directory is told.
    for (name, kind) in [
        ("type-none", None),
        ("type-unset", Some("")),
        ("type-directory-or-create", Some("DirectoryOrCreate")),
        ("type-directory", Some("Directory")),
    ] {
        shapes.push(Shape::new(
            name,
            host_path(&format!("{o}/{name}"), kind),
            here(),
            walked(),
        ));
    }
    for (name, kind) in [
        ("type-file-or-create", "FileOrCreate"),
        ("type-file", "File"),
        ("type-socket", "Socket"),
        ("type-char-device", "CharDevice"),
        ("type-block-device", "BlockDevice"),
    ] {
        let source = host_path(&format!("{o}/{name}"), Some(kind));
        shapes.push(Shape::new(name, source, here(), without("not_a_directory")));
    }

    // Each way to name a node.
    let nobody = || requirement("lp-e2e-nowhere", "In", &["x"]);
    let this = || requirement(HOSTNAME, "In", &[&node]);
    let affinities = [
        ("hostname", hostname(&node), walked()),
        (
            "fields",
            json!([{"matchFields": [requirement("metadata.name", "In", &[&node])]}]),
            walked(),
        ),
        ("several-terms", json!([term(&[nobody()]), term(&[this()])]), walked()),
        ("empty-term", json!([{}, term(&[this()])]), walked()),
        (
            "two-values",
            json!([term(&[requirement(HOSTNAME, "In", &["lp-e2e-gone", &node])])]),
            walked(),
        ),
        (
            "not-in",
            json!([term(&[requirement(HOSTNAME, "NotIn", &others)])]),
            walked(),
        ),
        (
            "exists",
            json!([term(&[requirement(RANK_LABEL, "Exists", &[]), this()])]),
            walked(),
        ),
        (
            "does-not-exist",
            json!([term(&[requirement("lp-e2e-nowhere", "DoesNotExist", &[]), this()])]),
            walked(),
        ),
        (
            "gt",
            json!([term(&[requirement(RANK_LABEL, "Gt", &["9"])])]),
            walked_on(&world.nodes.lost),
        ),
        (
            "lt",
            json!([term(&[requirement(RANK_LABEL, "Lt", &["5"])])]),
            walked_on(&world.nodes.home),
        ),
        (
            "name-as-value",
            json!([term(&[requirement("lp-e2e-nowhere", "In", &[&node])])]),
            walked(),
        ),
        (
            "shared",
            json!([term(&[requirement(HOSTNAME, "Exists", &[])])]),
            shared(None),
        ),
        ("node-gone", hostname("lp-e2e-gone"), left("node_gone")),
        (
            "label-gone",
            json!([term(&[requirement("lp-e2e-nowhere", "In", &["gone"])])]),
            left("no_node_matches"),
        ),
    ];
    for (name, terms, expected) in affinities {
        shapes.push(Shape::new(name, local(&format!("{d}/{name}")), Some(terms), expected));
    }
    let bare = |name, expected| Shape::new(name, host_path(&format!("{o}/{name}"), None), None, expected);
    shapes.push(bare("annotated", shared(Some(&node))).annotated(&node));
    shapes.push(bare("annotated-gone", shared(None)).annotated("lp-e2e-gone"));
    shapes.push(bare("unplaced", left("no_node_named")));

    // Phases; a claim that was made again under its name.
    for (name, phase) in [
        ("available", "Available"),
        ("bound", "Bound"),
        ("released", "Released"),
        ("remade-first", "Released"),
        ("remade-second", "Bound"),
    ] {
        shapes.push(Shape::new(name, host_path(&format!("{o}/{name}"), None), here(), walked()).phase(phase));
    }
    // Nothing in the cluster can delete a hostPath volume outside of /tmp.
    let mut failed = Shape::new("failed", host_path(&format!("{o}/failed"), None), here(), walked()).phase("Failed");
    failed.object["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    shapes.push(failed);
    shapes.push(Shape::new("opted-out", local(&format!("{d}/opted-out")), here(), left("opted_out")).phase("Bound"));

    // Paths.
    let [base_o, base_d] = BASES;
    for (name, path, expected) in [
        ("twin-a", format!("{d}/twin"), walked()),
        ("twin-b", format!("{d}/twin/"), walked()),
        ("outer", format!("{d}/outer"), walked()),
        ("inner", format!("{d}/outer/deep/inner"), walked()),
        ("slashes", format!("{base_o}//{}/.//slashes//", FOLDERS[0]), walked()),
        ("missing", format!("{d}/missing"), without("missing")),
        ("outside", "/srv/lp-e2e-shapes".to_owned(), left("outside_base_paths")),
        ("beside", format!("{base_d}0/lp-e2e-shapes"), left("outside_base_paths")),
        ("base", format!("{base_o}/"), left("is_base_path")),
        ("relative", "lp-e2e-shapes/relative".to_owned(), left("invalid_path")),
        ("root", "//".to_owned(), left("invalid_path")),
    ] {
        shapes.push(Shape::new(name, host_path(&path, None), here(), expected));
    }
    // On another node, because it ends the search for orphans there.
    let lost = &world.nodes.lost;
    shapes.push(Shape::new(
        "link",
        local(&format!("{d}/link/directory")),
        Some(hostname(lost)),
        Expected::Without("escapes_base", Place::On(lost.clone())),
    ));

    // Disks of their own.
    for (name, expected) in [
        ("ext4", Expected::Asked(Place::On(node.clone()))),
        ("ext4/inside", walked()),
        ("xfs", Expected::Asked(Place::On(node.clone()))),
        ("xfs/inside", walked()),
    ] {
        let mut shape = Shape::new(name, local(&format!("{d}/{name}")), here(), expected);
        shape.object["metadata"]["name"] = json!(format!("lp-e2e-shape-disk-{}", name.replace('/', "-")));
        shapes.push(shape);
    }
    let block = json!({"local": {"path": "/dev/lp-e2e-shapes"}, "volumeMode": "Block"});
    shapes.push(Shape::new("block", block, here(), left("block_mode")));
    let nfs = json!({"nfs": {"server": "nfs.invalid", "path": "/"}});
    shapes.push(Shape::new("nfs", nfs, None, left("not_node_local")));
    Ok(shapes)
}

/// `fill DIRECTORY SEED`: what is hard to count.
const FILL: &str = r#"
fill() {
  mkdir -p "$1/private/deep"
  head -c $((100000 + 7001 * $2)) /dev/urandom > "$1/payload"
  ln "$1/payload" "$1/private/again"
  truncate -s 1M "$1/sparse"
  echo text > "$1/private/deep/file"
  ln -s / "$1/root"
  chmod 0700 "$1/private"
}"#;

/// `disk TYPE SIZE DIRECTORY`: a file system of its own.
const DISK: &str = r#"
disk() {
  mkdir -p "$3"
  truncate -s "$2" "$IMAGES/$1"
  "mkfs.$1" -q "$IMAGES/$1"
  mount -o loop "$IMAGES/$1" "$3"
}"#;

/// Makes the disks and the directories, and fills them.
fn make_directories(world: &World, shapes: &[Shape]) -> Result<()> {
    let [o, d] = bases();
    for name in world.nodes.all() {
        let mut script = format!("{FILL}\nIMAGES={IMAGES}\n{DISK}\nmkdir -p {o} {d} {IMAGES}\n");
        let on_it = |place: &Place| match place {
            Place::On(node) => node == name,
            Place::Shared(_) => true,
        };
        if shapes
            .iter()
            .any(|shape| matches!(&shape.expected, Expected::Asked(place) if on_it(place)))
        {
            // XFS cannot be smaller.
            script += &format!("disk ext4 32M {d}/ext4\ndisk xfs 320M {d}/xfs\n");
        }
        for (seed, shape) in shapes.iter().enumerate() {
            match &shape.expected {
                Expected::Walked(place) if on_it(place) => {
                    script += &format!("[ -e {0}/payload ] || fill {0} {seed}\n", shape.path);
                }
                Expected::Without("not_a_directory", place) if on_it(place) => {
                    script += &match shape.name {
                        "type-char-device" => format!("mknod {} c 1 3\n", shape.path),
                        "type-block-device" => format!("mknod {} b 7 0\n", shape.path),
                        "type-socket" => format!("mkfifo {}\n", shape.path),
                        _ => format!("echo text > {}\n", shape.path),
                    };
                }
                Expected::Without("escapes_base", place) if on_it(place) => {
                    script += &format!("mkdir -p {d}/target/directory\nln -s target {d}/link\n");
                }
                Expected::Left("opted_out") => script += &format!("fill {} {seed}\n", shape.path),
                _ => {}
            }
        }
        script += "sync\n";
        on_node(&world.settings.node_exec, name, &["sh", "-ec", &script])?;
        let rank = match name {
            _ if name == world.nodes.home => 1,
            _ if name == world.nodes.troubled => 5,
            _ => 10,
        };
        kubectl(&["label", "node", name, "--overwrite", &format!("{RANK_LABEL}={rank}")])?;
    }
    Ok(())
}

/// Makes the volumes and brings each into its phase.
fn make_objects(shapes: &[Shape]) -> Result<()> {
    let find = |name: &str| {
        let found = shapes.iter().find(|shape| shape.name == name);
        found.with_context(|| format!("no shape {name}"))
    };
    apply(&shapes.iter().map(|shape| shape.object.clone()).collect::<Vec<_>>())?;
    let none = json!({});
    let wish = json!({"lp-exporter/measure": "false"});
    let mut claims = vec![find("opted-out")?.claim("opted-out", wish)];
    for (shape, claim) in [
        ("bound", "bound"),
        ("released", "released"),
        ("failed", "failed"),
        ("remade-first", "remade"),
    ] {
        claims.push(find(shape)?.claim(claim, none.clone()));
    }
    apply(&claims)?;
    kubectl(&[
        "wait",
        "pvc",
        "--all",
        "-n",
        NAMESPACE,
        "--for=jsonpath={.status.phase}=Bound",
        "--timeout=30s",
        "--request-timeout=0",
    ])?;
    kubectl(&["delete", "pvc", "released", "failed", "remade", "-n", NAMESPACE])?;
    apply(&[find("remade-second")?.claim("remade", none)])?;
    wait_for_phases(shapes)
}

fn wait_for_phases(shapes: &[Shape]) -> Result<()> {
    eventually("each volume to reach its phase", Duration::from_secs(60), || {
        let list = get(&["pv", "-l", LABEL])?;
        let wrong: Vec<String> = shapes
            .iter()
            .filter_map(|shape| {
                let found = items(&list)
                    .iter()
                    .find(|object| object["metadata"]["name"] == shape.volume());
                let phase = found.map(|object| text(&object["status"]["phase"]));
                (phase.as_deref() != Some(shape.phase)).then(|| format!("{} is {phase:?}", shape.name))
            })
            .collect();
        ensure!(wrong.is_empty(), "{}", wrong.join(", "));
        Ok(())
    })
}

/// The API server takes no `..`, so such a path can only be in a dump.
fn refuses_steps_back() -> Result<()> {
    for source in [host_path("/data1/../x", None), local("/data1/../x")] {
        let shape = Shape::new("back", source, Some(hostname("x")), Expected::Left("invalid_path"));
        ensure!(apply(&[shape.object]).is_err(), "the API server took a path with ..");
    }
    Ok(())
}

/// Removes what is left of an earlier call, makes the namespace, and removes everything afterwards.
fn within(world: &World, step: impl FnOnce() -> Result<()>) -> Result<()> {
    remove(world)?;
    apply(&[fixtures::namespace(NAMESPACE)])?;
    let done = step();
    let removed = remove(world);
    done.and(removed)
}

fn remove(world: &World) -> Result<()> {
    let wait = ["--ignore-not-found", "--timeout=120s", "--request-timeout=0"];
    kubectl(&[&["delete", "namespace", NAMESPACE][..], &wait].concat())?;
    kubectl(&[&["delete", "pv", "-l", LABEL][..], &wait].concat())?;
    let disks = ["ext4", "xfs", "disk"]
        .map(|name| format!("{}/{name}", bases()[1]))
        .join(" ");
    let folders: Vec<String> = BASES
        .iter()
        .flat_map(|base| FOLDERS.map(|folder| format!("{base}/{folder}")))
        .collect();
    let script = format!(
        "for disk in {disks}; do ! mountpoint -q $disk || umount $disk; done
        rm -rf --one-file-system {} {base}/lost+found/{folder} {base}/.Trash-4711/{folder} {IMAGES}
        for waste in {base}/lost+found {base}/.Trash-4711; do [ ! -d $waste ] || rmdir --ignore-fail-on-non-empty $waste; done",
        folders.join(" "),
        base = BASES[0],
        folder = FOLDERS[0],
    );
    for node in world.nodes.all() {
        on_node(&world.settings.node_exec, node, &["sh", "-ec", &script])?;
        kubectl(&["label", "node", node, &format!("{RANK_LABEL}-")])?;
    }
    Ok(())
}

/// A sample, and the node of its group.
type Sample<'a> = (Option<&'a str>, &'a Labels, f64);

/// The samples of a volume in all groups.
fn samples<'a>(groups: &'a [Group], metric: &str, volume: &str) -> Vec<Sample<'a>> {
    let mut found = Vec::new();
    for group in groups {
        for (labels, value) in group.metrics.get(metric).into_iter().flatten() {
            if labels.get("persistentvolume").is_some_and(|name| name == volume) {
                found.push((group.labels.get("node").map(String::as_str), labels, *value));
            }
        }
    }
    found
}

/// The only sample of a volume.
fn only<'a>(groups: &'a [Group], metric: &str, volume: &str) -> Result<Sample<'a>> {
    match samples(groups, metric, volume)[..] {
        [one] => Ok(one),
        ref several => Err(anyhow::anyhow!("not one sample of {metric}: {several:?}")),
    }
}

fn label<'a>(labels: &'a Labels, name: &str) -> &'a str {
    labels.get(name).map_or("", String::as_str)
}

/// The metrics that a worker pushes of each volume that has numbers, besides the apparent size.
const NUMBERS: [&str; 3] = [
    "local_volume_stats_used_bytes",
    "local_volume_stats_inodes_used",
    "local_volume_stats_available_bytes",
];
const APPARENT: &str = "local_volume_stats_apparent_bytes";
const SCAN_STATE: &str = "local_volume_scan_state";
const INFO: &str = "local_volume_info";

fn check_shape(world: &World, shape: &Shape, groups: &[Group]) -> Result<()> {
    let volume = shape.volume();
    let reason = match shape.expected {
        Expected::Left(reason) => reason,
        _ => "",
    };
    if reason == "not_node_local" {
        let found = samples(groups, INFO, &volume);
        ensure!(found.is_empty(), "it is told: {found:?}");
        return Ok(());
    }
    let (_, info, _) = only(groups, INFO, &volume)?;
    let kind = if shape.object["spec"]["local"].is_object() {
        "local"
    } else {
        "hostPath"
    };
    for (name, expected) in [("reason", reason), ("type", kind), ("phase", shape.phase)] {
        let found = label(info, name);
        ensure!(found == expected, "{name} is {found:?}, not {expected:?}: {info:?}");
    }
    let (place, expected_state, method) = match &shape.expected {
        Expected::Left(_) => {
            for metric in NUMBERS.into_iter().chain([APPARENT, SCAN_STATE]) {
                let found = samples(groups, metric, &volume);
                ensure!(found.is_empty(), "left out, and {metric} is {found:?}");
            }
            return Ok(());
        }
        Expected::Walked(place) => (place, "complete", "walk"),
        Expected::Asked(place) => (place, "complete", "statfs"),
        Expected::Without(state, place) => (place, *state, ""),
    };
    let (node, state, _) = only(groups, SCAN_STATE, &volume)?;
    let node = node.context("a group without node")?;
    ensure!(
        label(state, "state") == expected_state && label(state, "method") == method,
        "expected {expected_state} {method:?}: {state:?}"
    );
    ensure!(label(info, "node") == node, "of {node}, told as {info:?}");
    let (expected_node, shared) = match place {
        Place::On(node) => (Some(node), "false"),
        Place::Shared(node) => (node.as_ref(), "true"),
    };
    ensure!(
        expected_node.is_none_or(|expected| expected == node) && label(info, "shared") == shared,
        "expected on {expected_node:?}, shared {shared}: {info:?}"
    );
    let capacity = only(groups, "local_volume_stats_capacity_bytes", &volume)?.2;
    ensure!(capacity == CAPACITY_BYTES, "capacity {capacity}");
    let requested = samples(groups, "local_volume_stats_requested_bytes", &volume);
    let is_requested = requested.first().is_some_and(|sample| sample.2 == CAPACITY_BYTES);
    ensure!(
        is_requested == (shape.phase == "Bound"),
        "{}, and requested {requested:?}",
        shape.phase
    );
    if expected_state != "complete" {
        for metric in NUMBERS.into_iter().chain([APPARENT]) {
            let found = samples(groups, metric, &volume);
            ensure!(found.is_empty(), "not measured, and {metric} is {found:?}");
        }
        return Ok(());
    }
    let [used, inodes, available] = [
        only(groups, NUMBERS[0], &volume)?.2,
        only(groups, NUMBERS[1], &volume)?.2,
        only(groups, NUMBERS[2], &volume)?.2,
    ];
    let file_system = df(world, node, &shape.path)?;
    if method == "walk" {
        let apparent = only(groups, APPARENT, &volume)?.2;
        let expected = du(world, node, &shape.path)?;
        let found = [used, inodes, apparent];
        ensure!(
            found == expected,
            "used, inodes, apparent: {found:?}, du says {expected:?}"
        );
    } else {
        let apparent = samples(groups, APPARENT, &volume);
        let expected = [file_system.used, file_system.inodes - file_system.inodes_free];
        ensure!(
            [used, inodes] == expected && apparent.is_empty(),
            "used, inodes: {used}, {inodes}, df says {expected:?}; apparent: {apparent:?}"
        );
    }
    let expected = (CAPACITY_BYTES - used).min(file_system.available);
    ensure!(available == expected, "available {available}, expected {expected}");
    Ok(())
}

/// The sum of a metric over all groups.
fn sum(groups: &[Group], metric: &str) -> f64 {
    let samples = groups.iter().filter_map(|group| group.metrics.get(metric)).flatten();
    samples.map(|sample| sample.1).sum()
}

/// Every volume of the cluster is in exactly one of measured or reason.
fn check_sum(_: &World, groups: &[Group]) -> Result<()> {
    let list = get(&["pv"])?;
    let listed = sum(groups, "lp_exporter_volumes_listed");
    let parts = [
        "lp_exporter_volumes_skipped",
        "lp_exporter_volumes_measured",
        "lp_exporter_volumes_node_not_measured",
    ]
    .map(|metric| sum(groups, metric));
    ensure!(
        listed == items(&list).len() as f64 && listed == parts.iter().sum::<f64>(),
        "{} volumes, listed {listed}, skipped, measured and on nodes that were not {parts:?}",
        items(&list).len()
    );
    for object in items(&list) {
        let volume = text(&object["metadata"]["name"]);
        let states = samples(groups, SCAN_STATE, &volume).len();
        let infos = samples(groups, INFO, &volume);
        let reasons = infos.iter().filter(|info| !label(info.1, "reason").is_empty()).count();
        let is_local = object["spec"]["hostPath"].is_object() || object["spec"]["local"].is_object();
        ensure!(
            states + reasons == usize::from(is_local) && infos.len() == usize::from(is_local),
            "{volume}: {states} states, {infos:?}"
        );
    }
    Ok(())
}

/// A plan of the cluster, and one of its dump, are what the run did.
fn check_plan(_: &World, groups: &[Group]) -> Result<()> {
    let live = plan(&[], "")?;
    check_same(&live, groups)?;
    let dump = kubectl(&["get", "pv,pvc,nodes,storageclasses", "-A", "-o", "json"])?;
    let from_dump = plan(&["--from-file", "-"], &dump)?;
    ensure!(live == from_dump, "of the cluster {live}\nof its dump {from_dump}");
    Ok(())
}

/// `lp-exporter plan` as JSON.
fn plan(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lp-exporter"));
    command.args(["plan", "--output", "json", "--base-path", &BASES.join(",")]);
    command.args(arguments);
    output(command, input)
}

/// The plan has each volume on the node, or with the reason, that the run's metrics tell.
fn check_same(plan: &str, groups: &[Group]) -> Result<()> {
    let plan: Value = serde_json::from_str(plan)?;
    let mut planned = BTreeSet::new();
    let mut reasons: BTreeMap<String, f64> = BTreeMap::new();
    for node in plan["nodes"].as_array().context("nodes")? {
        for volume in node["volumes"].as_array().context("volumes")? {
            planned.insert((text(&volume["persistentvolume"]), text(&node["node"]), String::new()));
        }
    }
    for skipped in plan["skipped"].as_array().context("skipped")? {
        let reason = text(&skipped["reason"]);
        *reasons.entry(reason.clone()).or_default() += 1.0;
        if reason != "not_node_local" {
            planned.insert((text(&skipped["persistentvolume"]), String::new(), reason));
        }
    }
    let all = |metric: &str| -> Vec<(Labels, f64)> {
        let samples = groups.iter().filter_map(|group| group.metrics.get(metric));
        samples.flatten().cloned().collect()
    };
    let mut done = BTreeSet::new();
    for (info, _) in all(INFO) {
        let reason = label(&info, "reason").to_owned();
        let node = if reason.is_empty() { label(&info, "node") } else { "" };
        done.insert((label(&info, "persistentvolume").to_owned(), node.to_owned(), reason));
    }
    let differ: Vec<_> = planned.symmetric_difference(&done).collect();
    ensure!(differ.is_empty(), "in the plan or in the run only: {differ:?}");
    for (skipped, count) in all("lp_exporter_volumes_skipped") {
        let expected = reasons.get(label(&skipped, "reason")).copied().unwrap_or(0.0);
        ensure!(count == expected, "{skipped:?} {count}, in the plan {expected}");
    }
    Ok(())
}

/// What a node says of a file system.
struct Df {
    size: f64,
    available: f64,
    used: f64,
    inodes: f64,
    inodes_free: f64,
    kind: String,
    device: String,
}

fn df(world: &World, node: &str, path: &str) -> Result<Df> {
    let script = r#"df -B1 --output=size,avail,used,itotal,iavail,fstype "$1" | tail -n 1; findmnt -n -o MAJ:MIN -T "$1" | tail -n 1"#;
    let line = on_node(&world.settings.node_exec, node, &["sh", "-ec", script, "sh", path])?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [size, available, used, inodes, inodes_free, kind, device] = words[..] else {
        anyhow::bail!("df and findmnt say {line:?}");
    };
    Ok(Df {
        size: size.parse()?,
        available: available.parse()?,
        used: used.parse()?,
        inodes: inodes.parse()?,
        inodes_free: inodes_free.parse()?,
        kind: kind.to_owned(),
        device: device.to_owned(),
    })
}

/// Used bytes, inodes and apparent bytes of a directory, as the node's tools say.
fn du(world: &World, node: &str, path: &str) -> Result<[f64; 3]> {
    let script = r#"du -s -B1 "$1" | cut -f1; du -s --inodes "$1" | cut -f1
        find "$1" ! -type d -printf '%D:%i %s\n' | sort -u | awk '{ sum += $2 } END { print sum + 0 }'"#;
    let lines = on_node(&world.settings.node_exec, node, &["sh", "-ec", script, "sh", path])?;
    let numbers: Vec<f64> = lines.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    numbers
        .try_into()
        .map_err(|numbers| anyhow::anyhow!("du and find say {numbers:?}"))
}

/// The file systems below the base paths, disks of volumes among them, are what `df` says.
fn check_file_systems(world: &World, groups: &[Group]) -> Result<()> {
    let [_, d] = bases();
    let mut places: Vec<(&str, &str, String, bool)> = Vec::new();
    for node in world.nodes.all() {
        places.extend(BASES.map(|base| (node, base, base.to_owned(), false)));
    }
    for disk in ["ext4", "xfs"] {
        places.push((&world.nodes.troubled, BASES[1], format!("{d}/{disk}"), true));
    }
    for (node, base, path, is_own) in places {
        let df = df(world, node, &path)?;
        let labels = [("path", base), ("device", &df.device), ("fstype", &df.kind)];
        let group = groups.iter().find(|group| {
            label(&group.labels, "job") == WORKER && group.labels.get("node").is_some_and(|name| name == node)
        });
        let group = group.with_context(|| format!("no group of {node}"))?;
        let found = |metric: &str| {
            let name = format!("local_volume_filesystem_{metric}");
            let found = group.sample(&name, &labels);
            found.with_context(|| format!("no {name} {labels:?} of {node}: {:?}", group.metrics.get(&name)))
        };
        let [bytes, inodes] = if is_own {
            [0.0, 0.0]
        } else {
            [OTHERS_BYTES, OTHERS_INODES]
        };
        for (metric, expected, tolerance) in [
            ("size_bytes", df.size, 0.0),
            ("available_bytes", df.available, bytes),
            ("used_bytes", df.used, bytes),
            ("inodes", df.inodes, 0.0),
            ("inodes_free", df.inodes_free, inodes),
            ("readonly", 0.0, 0.0),
        ] {
            let found = found(metric)?;
            ensure!(
                (found - expected).abs() <= tolerance,
                "{metric} of {path} on {node}: {found}, df says {expected}"
            );
        }
        if is_own {
            // The disk's own volume and the one inside it.
            let requested = found("requested_bytes")?;
            ensure!(requested == 2.0 * CAPACITY_BYTES, "requested of {path}: {requested}");
        }
    }
    Ok(())
}

/// The Pushgateway, which refuses what conflicts with another group, refused nothing, and Prometheus reads all it holds.
fn check_pushes(_: &World, groups: &[Group]) -> Result<()> {
    let report = groups.iter().find(|group| label(&group.labels, "job") == REPORT);
    let report = report.context("no report")?;
    let start = report.sample("lp_exporter_run_start_timestamp_seconds", &[]);
    let start = start.context("the report names its run")?;
    for group in groups {
        let failed = group.sample("push_failure_time_seconds", &[]).unwrap_or(0.0);
        ensure!(failed < start, "a push to {:?} was refused", group.labels);
    }
    observe::settle()?;
    let up = observe::query("up")?;
    ensure!(up.iter().all(|(_, value)| *value == 1.0), "not scraped: {up:?}");
    Ok(())
}

/// Count and bytes of the orphans of a node, by base path.
fn orphans(node: &str) -> Result<BTreeMap<&'static str, (f64, f64)>> {
    let group = observe::find_group(WORKER, Some(node))?;
    let told = BASES.map(|base| {
        let [count, bytes] = ["directories", "bytes"].map(|what| {
            let metric = format!("local_volume_orphaned_{what}");
            let found = group.sample(&metric, &[("path", base)]);
            found.with_context(|| format!("no {metric} of {base}: {:?}", group.metrics.get(&metric)))
        });
        Ok((base, (count?, bytes?)))
    });
    told.into_iter().collect()
}
