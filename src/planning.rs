//! From what was listed to the plan of a run, and from the plan to the Jobs of its workers: the one way, which the controller
//! goes and `lp-exporter plan` shows.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::batch::v1::Job;
use tracing::warn;
use url::Url;

use crate::cli::{
    LogArguments, LogFormat, LogLevel, PlanningArguments, PushArguments, SelectionArguments, TellingArguments,
};
use crate::deadlines::deadlines;
use crate::kubernetes::convert::UnreadableNode;
use crate::kubernetes::job::{DEFAULT_TEMPLATE, Template, WorkerSpec};
use crate::pushgateway::{GroupingLabels, Pushgateway};
use crate::text::one_line;
use crate::volumes::claims::{Claim, Claims};
use crate::volumes::collect::Collect;
use crate::volumes::known_paths::KnownPaths;
use crate::volumes::node_plan::{NodePlan, Run, TooLarge};
use crate::volumes::path::BasePaths;
use crate::volumes::plan::{self, Collecting, Plan, PlannedNode, Surroundings};
use crate::volumes::pods::{PodPlaces, needs_pods};
use crate::volumes::selection::{ClaimLabels, Selection};
use crate::volumes::selector::Selector;
use crate::volumes::volume::{Alike, Node, SkipReason, Skipped, Volume};

/// The name of the instance where no CronJob gives one.
pub const INSTANCE: &str = "lp-exporter";

/// The longest message about flags.
const MESSAGE_MAX_CHARS: usize = 1000;
/// How many volumes are planned before the memory of their list is given back: about 1 MB.
const VOLUMES_A_SHRINK: usize = 4096;

/// The variable with the URL.
const URL: &str = "LP_EXPORTER_PUSHGATEWAY_URL";
/// The variable with the labels that are added to each group.
const GROUPING_LABELS: &str = "LP_EXPORTER_GROUPING_LABELS";
/// Those that say who we are.
const CREDENTIALS: [&str; 3] = [
    "LP_EXPORTER_PUSHGATEWAY_USERNAME_FILE",
    "LP_EXPORTER_PUSHGATEWAY_PASSWORD_FILE",
    "LP_EXPORTER_PUSHGATEWAY_BEARER_TOKEN_FILE",
];
/// Those that name certificates.
const CERTIFICATES: [&str; 3] = [
    "LP_EXPORTER_PUSHGATEWAY_CA_FILE",
    "LP_EXPORTER_PUSHGATEWAY_CLIENT_CERTIFICATE_FILE",
    "LP_EXPORTER_PUSHGATEWAY_CLIENT_KEY_FILE",
];
/// Those that name a proxy, each in small letters too.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// What decides which Jobs a run makes.
pub struct Settings {
    /// The directories below which volumes lie.
    pub base_paths: BasePaths,
    /// Which volumes and nodes are measured.
    pub selection: Selection,
    /// Whether pods are asked where volumes lie that do not say so.
    pub locate_by_pods: bool,
    /// What is told of volumes and nodes.
    pub collect: Collect,
    /// How old a directory has to be to count as one that no volume owns.
    pub orphan_age: Duration,
    /// The time between two runs.
    pub interval: Duration,
    /// The template of the workers' Jobs.
    pub template: Template,
    /// The image of the workers, if it was given.
    pub worker_image: Option<String>,
    /// The namespace of the workers' Jobs, if it was given.
    pub namespace: Option<String>,
}

impl Settings {
    /// Reads and checks what the flags say.
    ///
    /// # Errors
    /// What makes no sense, with the flag or the file that it comes from.
    pub fn new(arguments: PlanningArguments) -> anyhow::Result<Settings> {
        let PlanningArguments {
            base_paths,
            selection,
            telling,
            interval,
            job_template,
            worker_image,
            namespace,
        } = arguments;
        let template = match job_template {
            None => Template::parse(DEFAULT_TEMPLATE).context("the compiled-in Job template")?,
            Some(path) => {
                let place = || format!("the Job template {}", path.display());
                let text = std::fs::read_to_string(&path).with_context(|| format!("could not read {}", place()))?;
                Template::parse(&text).with_context(place)?
            }
        };
        let base_paths = BasePaths::new(base_paths.iter().map(String::as_str)).context("--base-path")?;
        let TellingArguments {
            collect,
            orphan_age,
            claim_labels,
        } = telling;
        let claim_labels = ClaimLabels::new(set(claim_labels)).context("--claim-label")?;
        // An unset variable in somebody's script would make it a run for all nodes.
        if selection.only_nodes.iter().any(|name| name.trim().is_empty()) {
            anyhow::bail!("--only-node: an empty name; name a node, or leave the flag away");
        }
        let (selection, locate_by_pods) = select(selection, claim_labels);
        // Refuses what cannot be before anything is asked of anybody.
        deadlines(interval, None)?;
        Ok(Settings {
            base_paths,
            selection,
            locate_by_pods,
            collect: Collect::new(collect),
            orphan_age,
            interval,
            template,
            worker_image,
            namespace,
        })
    }
}

/// The names in a list that people write: a variable that is set to nothing holds none.
fn set(names: Vec<String>) -> BTreeSet<String> {
    let names = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// What is to be measured, and whether pods are asked where volumes lie.
fn select(arguments: SelectionArguments, claim_labels: ClaimLabels) -> (Selection, bool) {
    let SelectionArguments {
        storage_classes,
        claim_namespaces,
        claim_selectors,
        nodes,
        only_nodes,
        scan_nodes,
        locate_by_pods,
    } = arguments;
    let selection = Selection {
        storage_classes: set(storage_classes),
        namespaces: set(claim_namespaces),
        nodes: set(nodes),
        claim_selector: Selector::all(claim_selectors),
        only_nodes: set(only_nodes),
        scan_nodes,
        claim_labels,
    };
    (selection, locate_by_pods)
}

/// What was listed, each object by itself.
#[derive(Default)]
pub struct Listed {
    /// The volumes that could be read.
    pub volumes: Vec<Volume>,
    /// The volumes that could not, and those that are not node-local.
    pub skipped: Vec<Skipped>,
    /// The claims that could be read.
    pub claims: Claims,
    /// The nodes. One that could not be read is not Ready.
    pub nodes: Vec<Node>,
    /// Where the pods of claims run, if they were asked.
    pub pods: Option<PodPlaces>,
    /// Claims and nodes that could not be read.
    pub unreadable: Vec<Unreadable>,
    alike: Alike,
}

impl Listed {
    /// The volumes of one list with the claims of another, and these nodes.
    pub fn of(volumes: Listed, claims: Listed, nodes: Vec<Node>) -> Listed {
        Listed {
            claims: claims.claims,
            unreadable: claims.unreadable,
            nodes,
            ..volumes
        }
    }

    /// Takes a volume as it was read.
    pub fn add_volume(&mut self, volume: Result<Volume, Skipped>) {
        match volume {
            Ok(volume) => self.volumes.push(self.alike.hold(volume)),
            Err(skipped) => self.skipped.push(skipped),
        }
    }

    /// Takes a claim as it was read.
    pub fn add_claim(&mut self, claim: Result<Claim, (String, String)>) {
        match claim {
            Ok(claim) => self.claims.add(Claim {
                reference: self.alike.hold_claim(claim.reference),
                ..claim
            }),
            Err((name, why)) => {
                self.claims.add_unreadable();
                self.unreadable.push(Unreadable {
                    kind: "PersistentVolumeClaim",
                    name,
                    why,
                });
            }
        }
    }

    /// Takes a node as it was read.
    pub fn add_node(&mut self, node: Result<Node, UnreadableNode>) {
        match node {
            Ok(node) => self.nodes.push(node),
            Err(UnreadableNode { name, why, node }) => {
                self.nodes.extend(node.map(|node| *node));
                self.unreadable.push(Unreadable {
                    kind: "Node",
                    name,
                    why,
                });
            }
        }
    }

    /// Whether every volume could be read: only then is what is not there known to be gone.
    pub fn is_complete(&self) -> bool {
        let is_read = |one: &Skipped| !matches!(one.reason, SkipReason::Undecodable | SkipReason::InvalidCapacity);
        self.skipped.iter().all(is_read)
    }
}

impl Extend<Result<Volume, Skipped>> for Listed {
    fn extend<I: IntoIterator<Item = Result<Volume, Skipped>>>(&mut self, volumes: I) {
        volumes.into_iter().for_each(|volume| self.add_volume(volume));
    }
}

impl Extend<Result<Claim, (String, String)>> for Listed {
    fn extend<I: IntoIterator<Item = Result<Claim, (String, String)>>>(&mut self, claims: I) {
        claims.into_iter().for_each(|claim| self.add_claim(claim));
    }
}

/// A claim or a node that could not be read.
pub struct Unreadable {
    /// `PersistentVolumeClaim` or `Node`.
    pub kind: &'static str,
    /// Its name, as far as it can be told.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

/// Plans a run: every volume that was listed is in the plan, on a node or with a reason.
pub fn plan_listed(listed: Listed, settings: &Settings) -> Plan {
    let Listed {
        volumes,
        skipped,
        claims,
        nodes,
        pods,
        unreadable: _,
        alike: _,
    } = listed;
    let surroundings = Surroundings {
        claims: &claims,
        nodes: &nodes,
        pods: pods.as_ref(),
    };
    plan::plan(
        handed_over(volumes),
        skipped,
        surroundings,
        &settings.base_paths,
        &settings.selection,
    )
}

/// The volumes one after the other, in their order. What is left of the list shrinks with them: else the whole of it would
/// stay until the plan is made, which grows meanwhile.
fn handed_over(mut volumes: Vec<Volume>) -> impl Iterator<Item = Volume> {
    volumes.reverse();
    std::iter::from_fn(move || {
        let volume = volumes.pop()?;
        if volumes.len().is_multiple_of(VOLUMES_A_SHRINK) {
            volumes.shrink_to_fit();
        }
        Some(volume)
    })
}

/// What the workers are told by their environment. What is secret stays here, for a Job can be read by many, and so do the
/// names of files, which a worker has only where the template mounts them: there the variables are to be set. Whoever has
/// forgotten that is told.
///
/// # Errors
/// The template gives the workers other grouping labels, or one of them has the name of a label that is told of claims.
pub fn worker_environment(
    push: Option<(&PushArguments, &Pushgateway, &GroupingLabels)>,
    settings: &Settings,
    log: LogArguments,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let level = match log.log_level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    let format = match log.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let mut environment = Vec::new();
    if let Some((arguments, pushgateway, labels)) = push {
        let template = &settings.template;
        check_claim_labels(labels, &settings.selection.claim_labels)?;
        check_grouping_labels(labels, template)?;
        if let Some(other) = other_url(pushgateway.url(), template) {
            warn!(
                "the Job template lets the workers push to {other}, and the controller pushes to {}: both have to lead to one \
                 Pushgateway, or the workers' numbers are told as lost and never deleted",
                pushgateway.url()
            );
        }
        let forgotten = secrets_forgotten(arguments, template);
        if !forgotten.is_empty() {
            warn!(
                "the workers are not given {}: set in the Job template what the controller has, from a mounted Secret",
                forgotten.join(", ")
            );
        }
        if is_proxy_forgotten(pushgateway.is_proxied(), template) {
            warn!(
                "the workers are not given the proxy by which the controller reaches the Pushgateway, for it may have a \
                 password: set one of {} in the Job template, or NO_PROXY in the CronJob if no proxy is needed",
                PROXIES.join(", ")
            );
        }
        environment.push((URL, pushgateway.url().to_owned()));
        // Another URL has another name.
        let server_name = arguments.server.pushgateway_server_name.as_ref();
        if let Some(name) = server_name.filter(|_| !template.sets_variable(URL)) {
            environment.push(("LP_EXPORTER_PUSHGATEWAY_SERVER_NAME", name.clone()));
        }
        if let Some(budget) = arguments.server.push_budget {
            let budget = humantime::format_duration(budget).to_string();
            environment.push(("LP_EXPORTER_PUSH_BUDGET", budget));
        }
    }
    environment.push(("LP_EXPORTER_LOG_LEVEL", level.to_owned()));
    environment.push(("LP_EXPORTER_LOG_FORMAT", format.to_owned()));
    let labels = push.map(|(.., labels)| labels.to_string()).unwrap_or_default();
    if !labels.is_empty() {
        environment.push((GROUPING_LABELS, labels));
    }
    Ok(environment)
}

/// A grouping label takes the place of a label of its name in every series.
fn check_claim_labels(labels: &GroupingLabels, told: &ClaimLabels) -> anyhow::Result<()> {
    let told = told.names();
    let overwriting = labels.names().find(|name| told.iter().any(|told| told == name));
    match overwriting {
        Some(name) => Err(anyhow::anyhow!(
            "the grouping label {name} has the name of a label that --claim-label tells, and would overwrite it: choose \
             another name, or leave one of them away"
        )),
        None => Ok(()),
    }
}

/// With other labels the workers would push groups that the controller neither finds nor deletes.
fn check_grouping_labels(labels: &GroupingLabels, template: &Template) -> anyhow::Result<()> {
    let Some(variable) = template.variable(GROUPING_LABELS) else {
        return Ok(());
    };
    // Workers refuse an empty one: a variable that was meant to hold something would make two clusters one.
    let value = variable.value.as_deref().unwrap_or_default();
    let is_alike = variable.value_from.is_none() && !value.is_empty() && value == labels.to_string();
    anyhow::ensure!(
        is_alike,
        "the Job template sets {GROUPING_LABELS} of the workers to something else than the controller has ({labels}), which \
         could then neither find nor delete what they push: remove it there, for the controller tells its workers"
    );
    Ok(())
}

/// Where the template lets the workers push, as far as it says so in the open, if it is not where the controller does.
fn other_url(own: &str, template: &Template) -> Option<String> {
    let mut url = Url::parse(template.variable(URL)?.value.as_deref()?).ok()?;
    // No secret is to be told.
    let is_bare = url.set_username("").is_ok() && url.set_password(None).is_ok();
    let url = is_bare.then(|| url.to_string())?;
    (url.trim_end_matches('/') != own.trim_end_matches('/')).then_some(url)
}

/// What the controller has, and nothing in the template gives to the workers.
fn secrets_forgotten(arguments: &PushArguments, template: &Template) -> Vec<&'static str> {
    // Whoever takes variables from a Secret as a whole does not name them.
    if template.takes_variables_from_elsewhere() {
        return Vec::new();
    }
    let url = Url::parse(&arguments.server.pushgateway_url).ok();
    let is_in_url = url.is_some_and(|url| !url.username().is_empty() || url.password().is_some());
    let credentials = [
        arguments.server.pushgateway_username_file.is_some(),
        arguments.server.pushgateway_password_file.is_some(),
        arguments.server.pushgateway_bearer_token_file.is_some(),
    ];
    let credentials = CREDENTIALS.into_iter().zip(credentials);
    let credentials = credentials.chain([("user and password of LP_EXPORTER_PUSHGATEWAY_URL", is_in_url)]);
    // The workers may say who they are in another way than the controller.
    let say_who_they_are = CREDENTIALS
        .iter()
        .chain([&URL])
        .any(|name| template.sets_variable(name));
    let certificates = [
        arguments.server.pushgateway_ca_file.is_some(),
        arguments.server.pushgateway_client_certificate_file.is_some(),
        arguments.server.pushgateway_client_key_file.is_some(),
    ];
    let certificates = CERTIFICATES.into_iter().zip(certificates);
    let forgotten_credentials = credentials.filter(|(_, is_set)| *is_set && !say_who_they_are);
    let forgotten_certificates = certificates.filter(|(name, is_set)| *is_set && !template.sets_variable(name));
    forgotten_credentials
        .chain(forgotten_certificates)
        .map(|(name, _)| name)
        .collect()
}

/// Whether the controller goes through a proxy, and nothing in the template says anything of proxies to the workers.
fn is_proxy_forgotten(is_proxied: bool, template: &Template) -> bool {
    let is_told = PROXIES
        .iter()
        .chain(&["NO_PROXY"])
        .any(|name| template.sets_variable(name) || template.sets_variable(&name.to_lowercase()));
    is_proxied && !is_told && !template.takes_variables_from_elsewhere()
}

/// What the Jobs of a run have in common.
#[derive(Clone, Copy)]
pub struct Workers<'a> {
    /// The run.
    pub run: &'a Run,
    /// The base paths of the plan.
    pub base_paths: &'a BasePaths,
    /// What is collected.
    pub collect: &'a Collect,
    /// How old a directory has to be to count as one that no volume owns.
    pub orphan_age: Duration,
    /// What has an owner.
    pub known_paths: &'a KnownPaths,
    /// The template of the Jobs.
    pub template: &'a Template,
    /// The namespace of the Jobs.
    pub namespace: &'a str,
    /// The instance's name.
    pub instance: &'a str,
    /// Name and uid of the CronJob that is to own the Jobs.
    pub cron_job: Option<(&'a str, &'a str)>,
    /// The workers' image.
    pub image: &'a str,
    /// See [`worker_environment`].
    pub environment: &'a [(&'static str, String)],
    /// `activeDeadlineSeconds` of the Jobs.
    pub active_deadline: Duration,
}

/// What is one Job's own.
pub struct Attempt<'a> {
    /// Counts the Jobs that the run makes for the node.
    pub number: u32,
    /// What the worker may take.
    pub budget: Duration,
    /// Whether only critical pods are let in on the node.
    pub disk_pressure: bool,
    /// The base paths that could not be mounted on the node.
    pub unavailable_bases: &'a [String],
    /// PersistentVolumes that are not to be touched, where an earlier worker hangs.
    pub left_alone: Option<&'a BTreeSet<String>>,
}

impl Workers<'_> {
    /// Makes the Job of a node's worker, and the compressed plan for it.
    ///
    /// # Errors
    /// [`TooLarge`] when the plan does not fit into a ConfigMap.
    pub fn make(&self, planned: &PlannedNode, attempt: &Attempt<'_>) -> Result<(Job, Vec<u8>), TooLarge> {
        let Attempt {
            number,
            budget,
            disk_pressure,
            unavailable_bases,
            left_alone,
        } = *attempt;
        let collecting = Collecting {
            collect: self.collect,
            orphan_age: self.orphan_age,
            known_paths: self.known_paths,
        };
        let mut node_plan = planned.node_plan(
            self.run,
            budget.as_secs_f64(),
            self.base_paths,
            unavailable_bases,
            collecting,
        );
        if let Some(volumes) = left_alone {
            // Whoever looks for orphans looks at every directory, and would hang as the first one does.
            node_plan = node_plan.without_orphans();
            node_plan.leave_alone(volumes);
        }
        let (node_plan, compressed) = encode(node_plan)?;
        let spec = WorkerSpec {
            namespace: self.namespace,
            instance: self.instance,
            run_id: &self.run.id,
            node: &planned.name,
            attempt: number,
            disk_pressure,
            cron_job: self.cron_job,
            image: self.image,
            environment: self.environment,
            bases: &node_plan.bases,
            active_deadline_seconds: self.active_deadline.as_secs(),
        };
        Ok((self.template.job(&spec), compressed))
    }
}

/// Writes a plan; without what only the search for orphans needs, if it is too large with that.
fn encode(node_plan: NodePlan) -> Result<(NodePlan, Vec<u8>), TooLarge> {
    match node_plan.encode() {
        Ok(compressed) => Ok((node_plan, compressed)),
        Err(error) if !node_plan.known_paths.is_empty() => {
            warn!(
                node = node_plan.node,
                "no orphans are looked for, because the paths of other volumes do not fit: {error}"
            );
            let node_plan = node_plan.without_orphans();
            let compressed = node_plan.encode()?;
            Ok((node_plan, compressed))
        }
        Err(error) => Err(error),
    }
}

/// Refuses to run for nodes that are not there.
///
/// # Errors
/// What to write instead.
pub fn check_only_nodes(selection: &Selection, nodes: &[Node]) -> Result<(), String> {
    let is_there = |name: &&String| nodes.iter().any(|node| node.name == **name);
    let missing: Vec<&str> = selection
        .only_nodes
        .iter()
        .filter(|name| !is_there(name))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "could not find the nodes of --only-node in the cluster: {}; write them as kubectl get nodes does",
        missing.join(", ")
    );
    Err(one_line(&message, MESSAGE_MAX_CHARS))
}

/// Filters that name what is not there: mostly a typing error, which would leave everything out without a word. Names only
/// fit to be shown.
pub fn filters_without_match(listed: &Listed, selection: &Selection) -> Vec<String> {
    let nodes: BTreeSet<&str> = listed.nodes.iter().map(|node| node.name.as_str()).collect();
    let classes: BTreeSet<&str> = listed.volumes.iter().map(|volume| &*volume.storage_class).collect();
    let claims = listed.volumes.iter().filter_map(|volume| volume.claim.as_ref());
    let namespaces: BTreeSet<&str> = claims.map(|claim| &*claim.namespace).collect();
    let wanted = [
        ("--node", &selection.nodes, nodes, "node of the cluster"),
        (
            "--storage-class",
            &selection.storage_classes,
            classes,
            "storage class of a node-local volume",
        ),
        (
            "--claim-namespace",
            &selection.namespaces,
            namespaces,
            "namespace with a claim of a node-local volume",
        ),
    ];
    let mut told = Vec::new();
    for (flag, wanted, there, what) in wanted {
        let missing: Vec<&str> = wanted
            .iter()
            .map(String::as_str)
            .filter(|name| !there.contains(name))
            .collect();
        if !missing.is_empty() {
            let message = format!("{flag} names what is no {what}: {}", missing.join(", "));
            told.push(one_line(&message, MESSAGE_MAX_CHARS));
        }
    }
    told
}

/// Why no worker looks for directories that no volume owns, if none does.
pub fn no_orphans(plan: &Plan) -> Option<String> {
    if let Some(volume) = plan.known_paths.unread() {
        let volume = one_line(volume, MESSAGE_MAX_CHARS);
        Some(format!(
            "no orphans are looked for: nobody knows which directory is the volume {volume}'s, as it cannot be read"
        ))
    } else if plan.known_paths.are_too_many() {
        Some(
            "no orphans are looked for: more volumes may lie on any node than their paths can be sent to each worker"
                .to_owned(),
        )
    } else {
        None
    }
}

/// The claims whose pods are to be asked where their volumes lie, because nothing else says so.
pub fn claims_of_unplaced(volumes: &[Volume], claims: &Claims) -> PodPlaces {
    let claims = volumes
        .iter()
        .filter(|volume| needs_pods(volume))
        .filter_map(|volume| claims.of(volume))
        .map(|claim| (claim.reference.namespace.to_string(), claim.reference.name.clone()));
    PodPlaces::of_claims(claims)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn arguments(flags: &[&str]) -> PushArguments {
        let given = ["lp-exporter", "worker", "--plan=x"].iter().chain(flags);
        match Cli::try_parse_from(given).map(|cli| cli.command) {
            Ok(Command::Worker(arguments)) => arguments.push,
            Ok(_) => panic!("{flags:?} is another program"),
            Err(error) => panic!("{flags:?}: {error}"),
        }
    }

    #[test]
    fn what_the_workers_are_not_given_is_told() {
        const IN_URL: &str = "--pushgateway-url=https://user:word@host";
        const PLAIN: &str = "--pushgateway-url=https://host/a@b";
        const BASIC: [&str; 3] = [PLAIN, "--pushgateway-username-file=u", "--pushgateway-password-file=p"];
        const CERTIFICATES: [&str; 4] = [
            PLAIN,
            "--pushgateway-ca-file=a",
            "--pushgateway-client-certificate-file=c",
            "--pushgateway-client-key-file=k",
        ];
        let env = |name: &str| format!("        env: [{{name: LP_EXPORTER_PUSHGATEWAY_{name}, value: x}}]");
        for (flags, of_container, expected) in [
            (&[PLAIN][..], String::new(), &[][..]),
            (
                &[IN_URL],
                String::new(),
                &["user and password of LP_EXPORTER_PUSHGATEWAY_URL"],
            ),
            (&[IN_URL], env("URL"), &[]),
            (&[IN_URL], env("BEARER_TOKEN_FILE"), &[]),
            (&BASIC, String::new(), &CREDENTIALS[..2]),
            (&BASIC, env("USERNAME_FILE"), &[]),
            (&BASIC, env("CA_FILE"), &CREDENTIALS[..2]),
            (
                &[PLAIN, "--pushgateway-bearer-token-file=t"],
                String::new(),
                &CREDENTIALS[2..],
            ),
            (&CERTIFICATES, String::new(), &super::CERTIFICATES),
            (&CERTIFICATES, env("CA_FILE"), &super::CERTIFICATES[1..]),
            (
                &CERTIFICATES,
                "        envFrom: [{secretRef: {name: x}}]".to_owned(),
                &[],
            ),
        ] {
            let template = format!(
                "spec:\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      - name: worker\n{of_container}"
            );
            let template = Template::parse(&template).expect("a template");
            let found = secrets_forgotten(&arguments(flags), &template);
            assert_eq!(found, expected, "{flags:?} {of_container}");
        }
    }

    #[test]
    fn a_proxy_that_workers_are_not_given_is_told() {
        let template = |of_container: &str| {
            let template = format!(
                "spec:\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      - name: worker\n        {of_container}"
            );
            Template::parse(&template).expect("a template")
        };
        for (is_proxied, of_container, expected) in [
            (true, "tty: false", true),
            (false, "tty: false", false),
            (true, "env: [{name: HTTP_PROXY, value: x}]", false),
            (true, "env: [{name: https_proxy, value: x}]", false),
            (true, "env: [{name: NO_PROXY, value: x}]", false),
            (true, "env: [{name: LP_EXPORTER_LOG_LEVEL, value: info}]", true),
            (true, "envFrom: [{secretRef: {name: x}}]", false),
        ] {
            let found = is_proxy_forgotten(is_proxied, &template(of_container));
            assert_eq!(found, expected, "{is_proxied} {of_container}");
        }
    }

    #[test]
    fn workers_push_where_the_controller_looks() {
        let template = |variable: &str| {
            let template = format!(
                "spec:\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      - name: worker\n        env: [{variable}]"
            );
            Template::parse(&template).expect("a template")
        };
        let labels = |text: &str| {
            let labels = text.split_terminator(',').map(|label| label.parse().expect("a label"));
            GroupingLabels::new(labels, []).expect("labels")
        };
        for (own, variable, is_taken) in [
            ("cluster=a", "", true),
            (
                "cluster=a",
                "{name: LP_EXPORTER_GROUPING_LABELS, value: cluster=a}",
                true,
            ),
            ("", "{name: LP_EXPORTER_GROUPING_LABELS, value: ''}", false),
            ("", "{name: LP_EXPORTER_GROUPING_LABELS, value: cluster=a}", false),
            (
                "cluster=a",
                "{name: LP_EXPORTER_GROUPING_LABELS, value: cluster=b}",
                false,
            ),
            (
                "cluster=a",
                "{name: LP_EXPORTER_GROUPING_LABELS, valueFrom: {configMapKeyRef: {name: x, key: y}}}",
                false,
            ),
        ] {
            let checked = check_grouping_labels(&labels(own), &template(variable));
            assert_eq!(checked.is_ok(), is_taken, "{own} {variable}: {checked:?}");
        }
        for (variable, expected) in [
            ("", None),
            (
                "{name: LP_EXPORTER_PUSHGATEWAY_URL, value: 'http://pushgateway:9091'}",
                None,
            ),
            (
                "{name: LP_EXPORTER_PUSHGATEWAY_URL, value: 'http://user:marker@pushgateway:9091/'}",
                None,
            ),
            (
                "{name: LP_EXPORTER_PUSHGATEWAY_URL, value: 'http://user:marker@other:9091'}",
                Some("http://other:9091/"),
            ),
            (
                "{name: LP_EXPORTER_PUSHGATEWAY_URL, value: 'http://pushgateway:9091/x'}",
                Some("http://pushgateway:9091/x"),
            ),
        ] {
            let found = other_url("http://pushgateway:9091/", &template(variable));
            assert_eq!(found.as_deref(), expected, "{variable}");
        }
    }
}
