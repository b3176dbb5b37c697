//! kubectl and the commands for nodes, as child processes.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::settings::NodeCommand;

/// Runs kubectl and returns what it prints.
pub(crate) fn kubectl(arguments: &[&str]) -> Result<String> {
    kubectl_with_input(arguments, "")
}

/// Runs kubectl with `input` as its standard input.
pub(crate) fn kubectl_with_input(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("kubectl");
    command.arg("--request-timeout=30s").args(arguments);
    output(command, input)
}

/// `kubectl get … -o json`, parsed.
pub(crate) fn get(arguments: &[&str]) -> Result<Value> {
    let text = kubectl(&[&["get", "-o", "json"], arguments].concat())?;
    serde_json::from_str(&text).with_context(|| format!("kubectl get {arguments:?} printed no JSON"))
}

/// The objects of a list.
pub(crate) fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// `kubectl apply` of these objects, strictly validated.
pub(crate) fn apply(objects: &[Value]) -> Result<()> {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl_with_input(
        &[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--validate=strict",
            "-f",
            "-",
        ],
        &list.to_string(),
    )?;
    Ok(())
}

/// Runs a command of the environment for `node` and returns what it prints.
pub(crate) fn on_node(command: &NodeCommand, node: &str, arguments: &[&str]) -> Result<String> {
    let Some((program, rest)) = command.words.as_deref().and_then(<[String]>::split_first) else {
        bail!("{} is not set", command.variable);
    };
    let mut child = Command::new(program);
    child.args(rest).arg(node).args(arguments);
    output(child, "")
}

/// Tries until it succeeds.
///
/// # Errors
/// The last error, once `limit` is over.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("waited {} s for: {what}", limit.as_secs())));
            }
            Err(_) => sleep(Duration::from_millis(300)),
        }
    }
}

/// So much of what a failed command says is enough.
const ERROR_MAX_CHARS: usize = 2000;

/// Runs a command with `input` as its standard input and returns what it prints.
pub(crate) fn output(mut command: Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut stdin = child.stdin.take().context("a piped child has an input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let done = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said: String = said.chars().chain(text.chars()).take(ERROR_MAX_CHARS).collect();
        bail!("{command:?}: {}: {said}", done.status);
    }
    Ok(text)
}
