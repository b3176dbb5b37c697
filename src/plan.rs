//! The program `plan`: what a run would do, without doing it.
//!
//! It goes the controller's way ([`crate::planning`]) as far as the Jobs, and shows them in place of making them. Nothing is
//! written anywhere but to standard output and standard error, and of a cluster nothing is asked but lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use k8s_openapi::api::core::v1::{Node as NodeObject, PersistentVolume, PersistentVolumeClaim, Pod};
use serde::Serialize;

use crate::cli::{LogArguments, PlanArguments, PlanFormat, PushArguments, ServerArguments};
use crate::deadlines::deadlines;
use crate::dump::Dump;
use crate::exit::Exit;
use crate::kubernetes::client::{ApiError, Cluster};
use crate::kubernetes::{convert, job};
use crate::planning::{
    Attempt, INSTANCE, Listed, Settings, Unreadable, Workers, check_only_nodes, claims_of_unplaced,
    filters_without_match, no_orphans, plan_listed, worker_environment,
};
use crate::redact::Redactor;
use crate::runtime::block_on;
use crate::text::{one_line, tell};
use crate::volumes::node_plan::{COMPRESSED_MAX_BYTES, Run};
use crate::volumes::path::BasePaths;
use crate::volumes::plan::{PlacedVolume, Plan, PlannedNode};
use crate::volumes::volume::{NodeReason, SkipReason, Skipped, SourceKind};
use crate::worker::pushgateway;

/// The version of the JSON document.
const JSON_VERSION: u32 = 1;
/// The name of the run that is not made. A fixed one, so that two plans of one cluster can be compared.
const RUN_ID: &str = "plan";
/// The namespace that the manifests make, for Jobs from a dump.
const NAMESPACE: &str = "lp-exporter";
/// The image that the manifests name, where none is given.
const IMAGE: &str = concat!("localhost/lp-exporter:", env!("CARGO_PKG_VERSION"));
/// Volumes of one reason that the table shows.
const SKIPPED_SHOWN: usize = 20;
/// The longest name of an object, and the longest detail of a volume that is left out, in a table.
const NAME_MAX_CHARS: usize = 253;
const DETAIL_MAX_CHARS: usize = 300;
/// What a volume takes in a plan besides its own names: the names of the fields, which compress to nothing.
const FIELDS_BYTES: usize = 200;
/// What kubelet publishes of a claim, where Prometheus stores it.
const KUBELET_SERIES: &str =
    "kubelet_volume_stats_(available_bytes|capacity_bytes|used_bytes|inodes|inodes_free|inodes_used)";
/// The labels by which such a series is told.
const KUBELET_LABELS: [&str; 3] = ["__name__", "namespace", "persistentvolumeclaim"];

/// What becomes of a node in a run, as far as it can be told before: a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// A worker is sent there.
    ToMeasure,
    /// No worker is sent there, for a reason.
    NotMeasured,
}

impl NodeState {
    /// Every state.
    pub const ALL: [NodeState; 2] = [NodeState::ToMeasure, NodeState::NotMeasured];

    /// The word in table and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeState::ToMeasure => "to_measure",
            NodeState::NotMeasured => "not_measured",
        }
    }
}

/// Runs `plan`.
pub fn main(arguments: PlanArguments) -> Exit {
    let PlanArguments {
        planning,
        from_file,
        output,
        redact,
        pushgateway_url,
        grouping_labels,
        log,
    } = arguments;
    let push = pushgateway_url.map(|pushgateway_url| PushArguments {
        server: ServerArguments {
            pushgateway_url,
            pushgateway_ca_file: None,
            pushgateway_client_certificate_file: None,
            pushgateway_client_key_file: None,
            pushgateway_server_name: None,
            pushgateway_username_file: None,
            pushgateway_password_file: None,
            pushgateway_bearer_token_file: None,
            push_budget: None,
        },
        grouping_labels,
    });
    let prepared = Settings::new(planning).and_then(|settings| {
        let environment = environment_of_workers(push, &settings, log, redact)?;
        Ok((settings, environment))
    });
    let (settings, environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return failed(&error, Exit::BadConfiguration),
    };
    let listed = match &from_file {
        Some(file) => match read_dump(file, &settings, redact) {
            Ok(listed) => (listed, NAMESPACE.to_owned()),
            Err(error) => return failed(&error, Exit::BadConfiguration),
        },
        None => match list(&settings) {
            Ok(listed) => listed,
            Err(ListError::Start(error)) => return failed(&error.into(), Exit::Unexpected),
            Err(ListError::Api(error)) => return failed(&error.into(), Exit::Kubernetes),
        },
    };
    let (listed, namespace) = listed;
    note_unreadable(&listed.unreadable, redact);
    if listed.nodes.is_empty() {
        tell("note: there are no nodes in it, so no volume can be placed");
    }
    if let Err(why) = check_only_nodes(&settings.selection, &listed.nodes) {
        return failed(&anyhow::Error::msg(why), Exit::BadConfiguration);
    }
    let unmatched = filters_without_match(&listed, &settings.selection);
    let plan = plan_listed(listed, &settings);
    note_oddities(&plan, unmatched, redact);
    let shown = Shown::new(plan, settings, namespace, environment, redact);
    let written = shown.and_then(|shown| Ok(shown.write(output)?));
    match written {
        Ok(()) => Exit::Done,
        // A reader that has seen enough is no failure.
        Err(error) if is_broken_pipe(&error) => Exit::Done,
        Err(error) => failed(&error.context("could not write the plan"), Exit::Unexpected),
    }
}

fn failed(error: &anyhow::Error, exit: Exit) -> Exit {
    tell(&format!("error: {error:#}"));
    exit
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .map(io::Error::kind)
            .or_else(|| cause.downcast_ref::<serde_json::Error>()?.io_error_kind())
    });
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}

/// What the workers would be told. Of what is given to others, only that something stands there.
fn environment_of_workers(
    push: Option<PushArguments>,
    settings: &Settings,
    log: LogArguments,
    redact: bool,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let Some(arguments) = push else {
        return worker_environment(None, settings, log);
    };
    let (pushgateway, labels) = pushgateway(arguments.clone())?;
    let environment = worker_environment(Some((&arguments, &pushgateway, &labels)), settings, log)?;
    let redacted = |(name, value): (&'static str, String)| match name {
        "LP_EXPORTER_PUSHGATEWAY_URL" | "LP_EXPORTER_GROUPING_LABELS" if redact => (name, "redacted".to_owned()),
        _ => (name, value),
    };
    Ok(environment.into_iter().map(redacted).collect())
}

fn read_dump(file: &Path, settings: &Settings, redact: bool) -> anyhow::Result<Listed> {
    let place = || format!("the dump {}", file.display());
    let dump = if file == Path::new("-") {
        Dump::read(io::stdin().lock(), settings).context("the dump on standard input")?
    } else {
        let opened = File::open(file).with_context(|| format!("could not open {}", place()))?;
        if opened.metadata().with_context(place)?.is_dir() {
            bail!("{} is a directory; give the file", place());
        }
        Dump::read(opened, settings).with_context(place)?
    };
    let Dump {
        listed,
        objects: _,
        claims: _,
        not_needed: _,
        other_kinds,
    } = dump;
    let count: usize = other_kinds.values().sum();
    if count > 0 {
        let kinds: Vec<String> = other_kinds
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        let kinds = if redact {
            String::new()
        } else {
            format!(": {}", kinds.join(", "))
        };
        tell(&format!("note: passed over {count} objects of other kinds{kinds}"));
    }
    Ok(listed)
}

/// What a run would warn of.
fn note_oddities(plan: &Plan, unmatched: Vec<String>, redact: bool) {
    if !redact {
        unmatched.iter().for_each(|why| tell(&format!("note: {why}")));
    }
    match no_orphans(plan) {
        Some(_) if redact => tell("note: no orphans would be looked for"),
        Some(why) => tell(&format!("note: {why}")),
        None => {}
    }
    let lost = plan.claims_lost.len();
    if lost > 0 {
        tell(&format!("note: the volumes of {lost} claims are gone (Lost)"));
    }
}

fn note_unreadable(unreadable: &[Unreadable], redact: bool) {
    let mut by_kind: BTreeMap<&str, Vec<&Unreadable>> = BTreeMap::new();
    for one in unreadable {
        by_kind.entry(one.kind).or_default().push(one);
    }
    for (kind, all) in by_kind {
        tell(&format!(
            "note: passed over {} objects of the kind {kind} that cannot be read",
            all.len()
        ));
        for Unreadable { kind: _, name, why } in all.into_iter().take(SKIPPED_SHOWN).filter(|_| !redact) {
            tell(&format!("note:   {}: {why}", one_line(name, NAME_MAX_CHARS)));
        }
    }
}

enum ListError {
    Start(io::Error),
    Api(ApiError),
}

/// Lists what the controller lists, and tells the namespace that its Jobs would be in.
fn list(settings: &Settings) -> Result<(Listed, String), ListError> {
    let all = block_on(async {
        let cluster = Cluster::connect(settings.namespace.clone()).await?;
        let label_keys = settings.selection.label_keys();
        let volumes: Listed = cluster.list::<PersistentVolume, _, _>(convert::volume).await?;
        let claims: Listed = cluster
            .list::<PersistentVolumeClaim, _, _>(|raw| convert::claim(raw, &label_keys))
            .await?;
        let mut listed = Listed::of(volumes, claims, Vec::new());
        let nodes = cluster.list::<NodeObject, _, Vec<_>>(convert::undecoded_node).await?;
        nodes.into_iter().for_each(|node| listed.add_node(node));
        if settings.locate_by_pods {
            let mut places = claims_of_unplaced(&listed.volumes, &listed.claims);
            if !places.is_empty() {
                let pods = cluster.list::<Pod, _, Vec<_>>(convert::pod_on_node).await?;
                pods.into_iter().flatten().for_each(|pod| places.see(pod));
            }
            listed.pods = Some(places);
        }
        Ok((listed, cluster.namespace().to_owned()))
    });
    all.map_err(ListError::Start)?.map_err(ListError::Api)
}

/// A plan with all that is needed to show it.
struct Shown {
    plan: Plan,
    base_paths: BasePaths,
    settings: Settings,
    namespace: String,
    image: String,
    environment: Vec<(&'static str, String)>,
    run: Run,
    /// Whether the Jobs lack something that was not given.
    is_image_known: bool,
}

impl Shown {
    fn new(
        plan: Plan,
        settings: Settings,
        namespace: String,
        environment: Vec<(&'static str, String)>,
        redact: bool,
    ) -> anyhow::Result<Shown> {
        let is_image_known = settings.worker_image.is_some();
        let image = settings.worker_image.clone().unwrap_or_else(|| IMAGE.to_owned());
        let namespace = settings.namespace.clone().unwrap_or(namespace);
        let run = Run {
            id: RUN_ID.to_owned(),
            started_unix_seconds: 0.0,
            owner: crate::owner::Owner::default(),
        };
        let mut shown = Shown {
            plan,
            base_paths: settings.base_paths.clone(),
            settings,
            namespace,
            image,
            environment,
            run,
            is_image_known,
        };
        if redact {
            let mut redactor = Redactor::new();
            shown.plan = redactor.plan(shown.plan);
            shown.base_paths = redactor.base_paths(&shown.base_paths)?;
            if is_image_known {
                shown.image = redactor.name("Image", &shown.image);
            }
            if shown.namespace != NAMESPACE {
                shown.namespace = redactor.name("Namespace", &shown.namespace);
            }
        }
        shown.find_plans_too_large();
        Ok(shown)
    }

    fn write(&self, output: PlanFormat) -> io::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        match output {
            PlanFormat::Table => write_table(&mut out, &self.plan)?,
            PlanFormat::Json => write_json(&mut out, &self.plan)?,
            PlanFormat::Yaml => self.write_yaml(&mut out)?,
            PlanFormat::KubeletRelabeling => write_relabeling(&mut out, &self.plan)?,
        }
        out.flush()
    }

    /// A node whose plan does not fit into a ConfigMap gets no worker, which only making the plan tells; nearly every node
    /// has so few volumes that it fits however little it compresses.
    fn find_plans_too_large(&mut self) {
        let mut nodes = std::mem::take(&mut self.plan.nodes);
        let workers = self.workers(Duration::ZERO);
        for node in nodes.iter_mut().filter(|node| node.unmeasurable.is_none()) {
            if node.volumes.iter().map(plain_bytes).sum::<usize>() < COMPRESSED_MAX_BYTES {
                continue;
            }
            if let Err(error) = workers.make(node, &attempt(node, Duration::ZERO)) {
                node.unmeasurable = Some((NodeReason::PlanTooLarge, error.to_string()));
            }
        }
        self.plan.nodes = nodes;
    }

    /// What the Jobs have in common.
    fn workers(&self, active_deadline: Duration) -> Workers<'_> {
        Workers {
            run: &self.run,
            base_paths: &self.base_paths,
            collect: &self.settings.collect,
            orphan_age: self.settings.orphan_age,
            known_paths: &self.plan.known_paths,
            template: &self.settings.template,
            namespace: &self.namespace,
            instance: INSTANCE,
            cron_job: None,
            image: &self.image,
            environment: &self.environment,
            active_deadline,
        }
    }

    fn write_yaml(&self, out: &mut impl Write) -> io::Result<()> {
        let Ok(deadlines) = deadlines(self.settings.interval, None) else {
            unreachable!("an interval without deadlines was refused with the flags")
        };
        if !self.is_image_known {
            tell("note: no --worker-image was given; the Jobs have the one that the manifests name");
        }
        if !self
            .environment
            .iter()
            .any(|(name, _)| *name == "LP_EXPORTER_PUSHGATEWAY_URL")
        {
            tell("note: no --pushgateway-url was given; the Jobs do not say where to push");
        }
        let workers = self.workers(deadlines.worker_job);
        for node in &self.plan.nodes {
            self.write_worker(out, node, &workers, deadlines.worker_budget)?;
        }
        Ok(())
    }

    fn write_worker(
        &self,
        out: &mut impl Write,
        node: &PlannedNode,
        workers: &Workers<'_>,
        budget: Duration,
    ) -> io::Result<()> {
        let name = one_line(&node.name, NAME_MAX_CHARS);
        let made = match &node.unmeasurable {
            Some((reason, _)) => Err(*reason),
            None => workers
                .make(node, &attempt(node, budget))
                .map_err(|_| NodeReason::PlanTooLarge),
        };
        match made {
            Ok((job, compressed)) => {
                let config_map = job::plan_config_map(&job, compressed);
                write!(out, "---\n{}---\n{}", job::yaml(&job), job::yaml(&config_map))
            }
            Err(reason) => writeln!(out, "---\n# No Job for {name}: {}", reason.as_str()),
        }
    }
}

/// The first Job of a node.
fn attempt(node: &PlannedNode, budget: Duration) -> Attempt<'static> {
    Attempt {
        number: 0,
        budget,
        disk_pressure: node.disk_pressure,
        unavailable_bases: &[],
        left_alone: None,
    }
}

/// More than a volume takes in a plan.
fn plain_bytes(volume: &PlacedVolume) -> usize {
    let claim = volume
        .claim
        .as_ref()
        .map_or(0, |(namespace, name)| namespace.len() + name.len());
    FIELDS_BYTES + volume.name.len() + claim + volume.storage_class.len() + volume.path.len()
}

fn state_of(node: &PlannedNode) -> (NodeState, Option<NodeReason>) {
    match &node.unmeasurable {
        None => (NodeState::ToMeasure, None),
        Some((reason, _)) => (NodeState::NotMeasured, Some(*reason)),
    }
}

/// The JSON document: a contract, described in docs/plan.md.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    nodes: Vec<NodeEntry<'a>>,
    skipped: Vec<SkippedEntry<'a>>,
}

#[derive(Serialize)]
struct NodeEntry<'a> {
    node: &'a str,
    state: &'static str,
    reason: Option<&'static str>,
    volumes: Vec<VolumeEntry<'a>>,
}

#[derive(Serialize)]
struct VolumeEntry<'a> {
    persistentvolume: &'a str,
    namespace: Option<&'a str>,
    persistentvolumeclaim: Option<&'a str>,
    storageclass: &'a str,
    path: &'a str,
    #[serde(rename = "type")]
    source: &'static str,
    shared: bool,
    phase: &'a str,
    capacity_bytes: u64,
}

#[derive(Serialize)]
struct SkippedEntry<'a> {
    persistentvolume: &'a str,
    reason: &'static str,
    detail: &'a str,
}

fn write_json(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let document = Document {
        version: JSON_VERSION,
        nodes: plan.nodes.iter().map(node_entry).collect(),
        skipped: plan.skipped.iter().map(skipped_entry).collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

fn node_entry(node: &PlannedNode) -> NodeEntry<'_> {
    let (state, reason) = state_of(node);
    let volumes = node.volumes.iter().map(|volume| VolumeEntry {
        persistentvolume: &volume.name,
        namespace: volume.claim.as_ref().map(|(namespace, _)| namespace.as_str()),
        persistentvolumeclaim: volume.claim.as_ref().map(|(_, name)| name.as_str()),
        storageclass: &volume.storage_class,
        path: &volume.path,
        source: volume.source.as_str(),
        shared: volume.shared,
        phase: &volume.phase,
        capacity_bytes: volume.capacity_bytes,
    });
    NodeEntry {
        node: &node.name,
        state: state.as_str(),
        reason: reason.map(NodeReason::as_str),
        volumes: volumes.collect(),
    }
}

fn skipped_entry(skipped: &Skipped) -> SkippedEntry<'_> {
    SkippedEntry {
        persistentvolume: &skipped.persistent_volume,
        reason: skipped.reason.as_str(),
        detail: &skipped.detail,
    }
}

fn write_table(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    if !plan.nodes.is_empty() {
        writeln!(out, "{}\n", nodes_table(plan).trim_fmt())?;
    }
    let mut by_reason: BTreeMap<SkipReason, Vec<&Skipped>> = BTreeMap::new();
    for skipped in &plan.skipped {
        by_reason.entry(skipped.reason).or_default().push(skipped);
    }
    if !by_reason.is_empty() {
        writeln!(out, "{}\n", skipped_table(&by_reason).trim_fmt())?;
    }
    for (reason, skipped) in by_reason.iter().filter(|(_, skipped)| skipped.len() > SKIPPED_SHOWN) {
        let more = skipped.len() - SKIPPED_SHOWN;
        writeln!(
            out,
            "and {more} more of the reason {}; --output json names them",
            reason.as_str()
        )?;
    }
    let to_measure = plan.nodes.iter().filter(|node| node.unmeasurable.is_none());
    writeln!(
        out,
        "{} volumes listed: {} on {} nodes, {} of which are to be measured; {} volumes left out",
        plan.volumes_listed(),
        plan.volumes_planned(),
        plan.nodes.len(),
        to_measure.count(),
        plan.skipped.len()
    )
}

fn nodes_table(plan: &Plan) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["NODE", "VOLUMES", "CAPACITY", "STATE", "REASON"]);
    for column in 1..3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for node in &plan.nodes {
        // Capacities are anybody's to write: their sum may be more than 64 bits hold.
        let capacity_bytes = node
            .volumes
            .iter()
            .fold(0_u64, |sum, volume| sum.saturating_add(volume.capacity_bytes));
        let (state, reason) = state_of(node);
        table.add_row([
            one_line(&node.name, NAME_MAX_CHARS),
            node.volumes.len().to_string(),
            ByteSize(capacity_bytes).display().iec().to_string(),
            state.as_str().to_owned(),
            reason.map_or("-", NodeReason::as_str).to_owned(),
        ]);
    }
    table
}

fn skipped_table(by_reason: &BTreeMap<SkipReason, Vec<&Skipped>>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["LEFT OUT", "REASON", "DETAIL"]);
    for (reason, skipped) in by_reason {
        for one in skipped.iter().take(SKIPPED_SHOWN) {
            table.add_row([
                one_line(&one.persistent_volume, NAME_MAX_CHARS),
                reason.as_str().to_owned(),
                one_line(&one.detail, DETAIL_MAX_CHARS),
            ]);
        }
    }
    table
}

/// A rule of Prometheus that drops what it finds in a scrape.
#[derive(Serialize)]
struct DropRule<'a> {
    source_labels: [&'static str; 3],
    regex: &'a str,
    action: &'static str,
}

/// The same rule in the words of the Prometheus Operator.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OperatorDropRule<'a> {
    source_labels: [&'static str; 3],
    regex: &'a str,
    action: &'static str,
}

fn write_relabeling(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let regexes = kubelet_regexes(plan);
    if regexes.is_empty() {
        tell("note: no bound claim has a volume of the type local, so there is nothing to drop");
    }
    let rules = regexes.iter().map(|regex| DropRule {
        source_labels: KUBELET_LABELS,
        regex,
        action: "drop",
    });
    let operator_rules = regexes.iter().map(|regex| OperatorDropRule {
        source_labels: KUBELET_LABELS,
        regex,
        action: "drop",
    });
    writeln!(out, "# In prometheus.yml, for the job that scrapes kubelet:")?;
    write_list(out, "metric_relabel_configs", rules.collect::<Vec<_>>())?;
    writeln!(out, "---\n# The same in a ServiceMonitor, for the endpoint of kubelet:")?;
    write_list(out, "metricRelabelings", operator_rules.collect::<Vec<_>>())
}

fn write_list(out: &mut impl Write, field: &str, rules: impl Serialize) -> io::Result<()> {
    let text = serde_yaml::to_string(&BTreeMap::from([(field, rules)])).map_err(io::Error::other)?;
    write!(out, "{text}")
}

/// What matches kubelet's series of bound claims of `local` volumes that are planned, one text for each namespace.
fn kubelet_regexes(plan: &Plan) -> Vec<String> {
    let mut by_namespace: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let volumes = plan.nodes.iter().flat_map(|node| &node.volumes);
    for volume in volumes.filter(|volume| volume.source == SourceKind::Local && &*volume.phase == "Bound") {
        if let Some((namespace, claim)) = &volume.claim {
            by_namespace.entry(namespace).or_default().insert(claim);
        }
    }
    let regex = |(namespace, claims): (&str, BTreeSet<&str>)| {
        let claims: Vec<String> = claims.into_iter().map(literal).collect();
        format!("{KUBELET_SERIES};{};({})", literal(namespace), claims.join("|"))
    };
    by_namespace.into_iter().map(regex).collect()
}

/// A regular expression that matches this text only. Of what names hold, the dot alone means something else; a dump may
/// hold anything.
fn literal(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || !c.is_ascii() || "-_".contains(c);
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if !is_plain(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
