//! What docs/install.md says of groups that stay on a Pushgateway, done as it stands there: its pipeline makes a Job, and
//! what that Job would run takes everything of ours away from real Pushgateways, and nothing of others.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_yaml::Value;

use super::support::real_pushgateway::{Server, pushgateways};
use super::{INSTALL, blocks, has_kubectl, list, objects, one, read, rendered, skip, text_of, yaml_of};

const DRY_RUN: &str = "--dry-run";
const SERVER: &str = "http://localhost:9091";
/// The jobs of our groups.
const JOBS: [&str; 4] = [
    "lp-exporter",
    "lp-exporter-job",
    "lp-exporter-run",
    "lp-exporter-success",
];

/// The Job that the pipeline makes, with and without `--dry-run`, on both generations.
#[tokio::test(flavor = "multi_thread")]
async fn the_pipeline_that_retires_takes_everything() {
    if !has_kubectl() {
        return skip("the pipeline that retires", "kubectl is not on the PATH");
    }
    let script = pipeline();
    let [careful, earnest] = [script.clone(), script.replace(&format!(", \"{DRY_RUN}\""), "")].map(|one| made_by(&one));
    for program in pushgateways() {
        let gateway = Server::start(&program, &[]).await;
        fill(&gateway.url()).await;
        let before = groups(&gateway).await;
        let ours: BTreeSet<_> = before
            .iter()
            .filter(|group| group.contains("cluster=\"a\"") && !group.contains("backup"))
            .cloned()
            .collect();
        assert_eq!(ours.len(), JOBS.len() + 1, "with two nodes: {before:?}");

        let said = run_job(&careful, &gateway.url());
        assert_eq!(said.matches("would delete").count(), ours.len(), "{said}");
        assert_eq!(groups(&gateway).await, before, "{DRY_RUN} deletes nothing");
        run_job(&earnest, &gateway.url());
        let others: BTreeSet<_> = before.difference(&ours).cloned().collect();
        assert_eq!(groups(&gateway).await, others);
    }
}

/// The commands for any machine: by the grouping label, and by the owner where there is none. Then nothing is left, by the
/// command that looks.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_that_retire_take_everything() {
    let text = read(INSTALL);
    let by_owner = "--match cluster_uid=UID --match cronjob=lp-exporter/lp-exporter";
    assert!(text.contains(by_owner), "{INSTALL} lacks {by_owner}");
    let documented: Vec<String> = blocks("sh")
        .iter()
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.starts_with("lp-exporter retire") || line.starts_with("curl") && line.contains("grep -c"))
        .collect();
    let [retire, look] = documented.as_slice() else {
        panic!("{INSTALL} has other commands: {documented:?}");
    };
    assert!(retire.contains(DRY_RUN), "{retire}");
    for program in pushgateways() {
        let gateway = Server::start(&program, &[]).await;
        fill(&gateway.url()).await;
        let sh = |command: &str| {
            let output = Command::new("sh")
                .args(["-c", &command.replace(SERVER, &gateway.url())])
                .env("PATH", path_with_the_program())
                .output()
                .expect("a shell");
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            )
        };
        let (_, count) = sh(look);
        assert_ne!(count, "0", "there is something to look for");
        let before = groups(&gateway).await;
        let (is_done, said) = sh(retire);
        assert!(is_done && said.contains("would delete"), "{said}");
        assert_eq!(groups(&gateway).await, before);
        let of_a_cluster = JOBS.len() + 1;
        // As with a name that is mistyped, or a variable that is not set.
        for by in ["--match clustr=", "--match node="] {
            let (is_done, said) = sh(&retire.replace("--match cluster=a", by).replace(DRY_RUN, ""));
            assert!(!is_done && said.is_empty(), "{by}: {said}");
        }
        assert_eq!(groups(&gateway).await, before);
        for by in [by_owner, "--match cluster=a", "--match cluster=b"] {
            let (is_done, said) = sh(&retire.replace("--match cluster=a", by).replace(DRY_RUN, ""));
            assert!(is_done, "{by}: {said}");
            assert_eq!(said.matches("deleted /metrics/").count(), of_a_cluster, "{by}: {said}");
        }
        let left = groups(&gateway).await;
        assert!(
            left.iter().all(|group| group.contains("job=\"backup\"")) && left.len() == 1,
            "{left:?}"
        );
        let (_, count) = sh(look);
        assert_eq!(count, "0", "what {INSTALL} looks for at the end");
    }
}

/// The block of the document with the pipeline.
pub(super) fn pipeline() -> String {
    let mut found = blocks("sh")
        .into_iter()
        .filter(|block| block.contains("kubectl patch --local"));
    found.next().expect("the document has a pipeline")
}

/// Runs a script with a kubectl that answers for a cluster with the overlay `default`, and leaves to the real one what
/// needs no cluster. Returns the Job that would be created.
fn made_by(script: &str) -> Value {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let objects = objects(&read(&rendered("default")));
    let mut job = yaml_of("{apiVersion: batch/v1, kind: Job, metadata: {name: retire, namespace: lp-exporter}}");
    job["spec"] = one(&objects, "CronJob", "lp-exporter")["spec"]["jobTemplate"]["spec"].clone();
    fs::write(at("job.yaml"), serde_yaml::to_string(&job).expect("YAML")).expect("it can be written to");
    let path = std::env::var("PATH").expect("a PATH");
    let stand_in = format!(
        "#!/bin/sh\ncase \"$*\" in\n  'patch --local '*) PATH='{path}' exec kubectl \"$@\" ;;\n  \
         'create job -n lp-exporter retire --from=cronjob/lp-exporter --dry-run=client -o yaml') exec cat '{}' ;;\n  \
         'create -f -') exec cat > '{}' ;;\n  'patch cronjob -n lp-exporter lp-exporter -p {{\"spec\": {{\"suspend\": true}}}}') ;;\n  \
         'logs -n lp-exporter -f job/retire') echo the log ;;\n  *) echo \"$*\" >&2; exit 1 ;;\nesac\n",
        at("job.yaml"),
        at("made.yaml"),
    );
    fs::write(at("kubectl"), stand_in).expect("it can be written to");
    fs::set_permissions(at("kubectl"), fs::Permissions::from_mode(0o755)).expect("it can be run");
    let output = Command::new("sh")
        .args(["-euc", script])
        .env("PATH", format!("{}:{path}", folder.path().display()))
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    yaml_of(&fs::read_to_string(at("made.yaml")).expect("a Job was made"))
}

/// Runs what the Job's container would, with its settings but for the address. Returns what it says.
fn run_job(job: &Value, url: &str) -> String {
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let mut command = Command::new(env!("CARGO_BIN_EXE_lp-exporter"));
    command.env_clear().args(list(&container["args"]).iter().map(text_of));
    for variable in list(&container["env"]) {
        if let Some(value) = variable["value"].as_str() {
            command.env(text_of(&variable["name"]), value);
        }
    }
    let output = command
        .env("LP_EXPORTER_PUSHGATEWAY_URL", url)
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Groups of ours in two clusters and in one without a label, and of somebody else.
async fn fill(url: &str) {
    // An error says that another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build();
    let client = client.expect("plain http needs no certificates");
    for cluster in ["/cluster/a", "/cluster/b", ""] {
        let nodes = ["node-1", "node-2"].map(|node| format!("lp-exporter-job/node/{node}"));
        let jobs = JOBS
            .iter()
            .filter(|job| **job != "lp-exporter-job")
            .map(|job| (*job).to_owned());
        for key in jobs.chain(nodes) {
            // That of the group without a label is the one that the document calls so.
            let uid = format!("UID{cluster}");
            let body = format!(
                "# TYPE local_volume_stats_used_bytes gauge\nlocal_volume_stats_used_bytes 1\n\
                 # TYPE lp_exporter_owner_info gauge\n\
                 lp_exporter_owner_info{{cluster_uid=\"{uid}\",cronjob=\"lp-exporter/lp-exporter\"}} 1\n"
            );
            put(&client, &format!("{url}/metrics/job/{key}{cluster}"), body).await;
        }
    }
    let other = "# TYPE backup_seconds gauge\nbackup_seconds 1\n";
    put(
        &client,
        &format!("{url}/metrics/job/backup/cluster/a"),
        other.to_owned(),
    )
    .await;
}

async fn put(client: &reqwest::Client, url: &str, body: String) {
    let status = client.put(url).body(body).send().await.expect("an answer").status();
    assert!(status.is_success(), "{url}: {status}");
}

/// The grouping keys on a Pushgateway that are ours, or a backup's.
async fn groups(gateway: &Server) -> BTreeSet<String> {
    let metrics = gateway.metrics().await;
    let lines = metrics.lines().filter(|line| line.starts_with("push_time_seconds{"));
    lines
        .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
        .collect()
}

fn path_with_the_program() -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_lp-exporter")).parent().expect("a folder");
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}
