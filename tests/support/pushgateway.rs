//! A stand-in for the Prometheus Pushgateway: on loopback, plain http, groups in memory.
//!
//! It keeps groups as the real one does (read at v1.11, and compared with it in `tests/stand_in.rs`): PUT replaces a
//! group, POST replaces families, DELETE removes exactly one group; labels of the URL overwrite those of the body;
//! an inconsistent push is refused and leaves a stub. It can be told to misbehave and remembers every request.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::read::GzDecoder;
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// More than any test pushes; it only keeps a mistake from filling the memory.
const BODY_LIMIT_BYTES: usize = 512 * 1024 * 1024;

pub type Labels = BTreeMap<String, String>;
/// A sample of a family: its labels and its value.
pub type Point = (Labels, f64);

/// One sample with all of its labels, those of the group among them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

/// The samples of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    pub help: String,
    /// As in `# TYPE`: gauge, counter, untyped, …
    pub kind: String,
    pub samples: Vec<Point>,
    /// A sample came with a timestamp: never in what is kept.
    has_timestamp: bool,
}

/// What lies under one grouping key.
#[derive(Debug, Clone, Default)]
pub struct Group {
    pub families: BTreeMap<String, Family>,
    pub push_time_seconds: f64,
    pub push_failure_time_seconds: f64,
    /// How often this group was pushed since it was made or deleted, [`Pushgateway::push`] aside.
    pub pushes: u32,
}

/// What a request is answered with instead.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Status and body.
    Status(u16, String),
    /// The connection breaks and nothing is done.
    Cut,
    /// The request is carried out after this time.
    Slow(Duration),
    /// The request is carried out, and this status says otherwise.
    Denied(u16),
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: String,
    pub path: String,
    /// Unpacked.
    pub body: String,
    pub was_gzip: bool,
}

/// A running stand-in; clones speak of the same one. It ends with the runtime that it was started on.
#[derive(Clone)]
pub struct Pushgateway {
    state: Arc<Mutex<World>>,
    address: SocketAddr,
}

#[derive(Default)]
struct World {
    groups: BTreeMap<Labels, Group>,
    faults: Vec<Scripted>,
    requests: Vec<Recorded>,
}

struct Scripted {
    method: String,
    /// What the path contains.
    part: String,
    fault: Fault,
    /// `None` is for ever.
    left: Option<u32>,
}

impl Pushgateway {
    /// Starts an empty stand-in on a free port of the loopback.
    pub async fn start() -> Pushgateway {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("the loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let gateway = Pushgateway {
            state: Arc::default(),
            address,
        };
        let router = Router::new().fallback(serve).with_state(gateway.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        gateway
    }

    /// `http://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers requests of a method whose path contains `part` with a fault: so many times, or for ever.
    pub fn script(&self, method: &str, part: &str, fault: Fault, times: Option<u32>) {
        let scripted = Scripted {
            method: method.to_owned(),
            part: part.to_owned(),
            fault,
            left: times,
        };
        self.world().faults.push(scripted);
    }

    /// Pushes into the group of a grouping key (`job/<job>/<label>/<value>`), as somebody did earlier.
    pub fn push(&self, key: &str, body: &str) {
        let key = grouping_key(key).expect("the key is well-formed");
        let families = parse(body).expect("the body is well-formed");
        let mut world = self.world();
        world.push(key.clone(), families, true).expect("it is consistent");
        if let Some(group) = world.groups.get_mut(&key) {
            group.pushes = 0;
        }
    }

    /// Makes the empty group that a refused first push leaves behind.
    pub fn push_stub(&self, key: &str) {
        let key = grouping_key(key).expect("the key is well-formed");
        self.world().groups.insert(key, Group::default());
    }

    /// Loses every group, as a server without persistence does that is replaced.
    pub fn forget(&self) {
        self.world().groups.clear();
    }

    /// Every request so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.world().requests.clone()
    }

    /// The group under exactly these labels.
    pub fn group(&self, labels: &[(&str, &str)]) -> Option<Group> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.world().groups.get(&labels).cloned()
    }

    /// The labels of every group, in their order.
    pub fn group_labels(&self) -> Vec<Labels> {
        self.world().groups.keys().cloned().collect()
    }

    /// Every sample of a name, of all groups, as a scrape with honor_labels sees them.
    pub fn samples(&self, name: &str) -> Vec<Sample> {
        let world = self.world();
        world
            .groups
            .values()
            .filter_map(|group| group.families.get(name))
            .flat_map(|family| &family.samples)
            .map(|(labels, value)| Sample {
                name: name.to_owned(),
                labels: labels.clone(),
                value: *value,
            })
            .collect()
    }

    /// The value of the one sample of a name that carries these labels among others; `None` without one, and when
    /// there are several.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let carries = |sample: &Sample| {
            labels
                .iter()
                .all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
        };
        let mut found = self.samples(name).into_iter().filter(carries);
        found
            .next()
            .filter(|_| found.next().is_none())
            .map(|sample| sample.value)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

async fn serve(State(gateway): State<Pushgateway>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let method = parts.method.as_str().to_owned();
    let path = parts.uri.path().to_owned();
    let Ok(body) = to_bytes(body, BODY_LIMIT_BYTES).await else {
        return respond(413, "too large".to_owned());
    };
    let unpacked = unpack(&parts.headers, &body);
    let fault = {
        let mut world = gateway.world();
        let was_gzip = parts.headers.contains_key(header::CONTENT_ENCODING);
        let text = unpacked.clone().unwrap_or_default();
        world.requests.push(Recorded {
            method: method.clone(),
            path: path.clone(),
            body: text,
            was_gzip,
        });
        world.take_fault(&method, &path)
    };
    match fault {
        Some(Fault::Status(code, text)) => return respond(code, text),
        Some(Fault::Cut) => return cut(),
        Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
        Some(Fault::Denied(_)) | None => {}
    }
    let mut world = gateway.world();
    let done = match (method.as_str(), path.as_str()) {
        ("GET", "/metrics") => respond(200, world.exposition()),
        ("GET", "/api/v1/metrics") => respond(200, world.listing().to_string()),
        ("GET", "/-/ready" | "/-/healthy") => respond(200, "OK".to_owned()),
        ("PUT" | "POST" | "DELETE", _) => match path.strip_prefix("/metrics/").map(grouping_key) {
            None => respond(404, "404 page not found".to_owned()),
            Some(Err(why)) => respond(400, why),
            Some(Ok(key)) if method == "DELETE" => {
                world.groups.remove(&key);
                respond(202, String::new())
            }
            Some(Ok(key)) => match unpacked.and_then(|text| parse(&text)) {
                Err(why) => respond(400, why),
                Ok(families) => match world.push(key, families, method == "PUT") {
                    Ok(()) => respond(200, String::new()),
                    Err(why) => respond(
                        400,
                        format!("pushed metrics are invalid or inconsistent with existing metrics: {why}"),
                    ),
                },
            },
        },
        _ => respond(404, "404 page not found".to_owned()),
    };
    match fault {
        Some(Fault::Denied(code)) => respond(code, "nothing was done".to_owned()),
        _ => done,
    }
}

impl World {
    fn take_fault(&mut self, method: &str, path: &str) -> Option<Fault> {
        let matches = |scripted: &&mut Scripted| {
            scripted.left != Some(0) && scripted.method == method && path.contains(&scripted.part)
        };
        let scripted = self.faults.iter_mut().find(matches)?;
        scripted.left = scripted.left.map(|left| left - 1);
        Some(scripted.fault.clone())
    }

    /// Takes a push in, or marks the group's failure: a new group then stays as a stub, as in the real one.
    fn push(&mut self, key: Labels, pushed: BTreeMap<String, Family>, replace: bool) -> Result<(), String> {
        let now_seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |time| time.as_secs_f64());
        let labelled = pushed
            .into_iter()
            .map(|(name, family)| (name, label(family, &key)))
            .collect();
        let old = self.groups.remove(&key).unwrap_or_default();
        let families: BTreeMap<String, Family> = if replace {
            labelled
        } else {
            old.families.clone().into_iter().chain(labelled).collect()
        };
        let consistent = self.check(&families);
        let group = match consistent {
            Ok(()) => Group {
                families,
                push_time_seconds: now_seconds,
                pushes: old.pushes + 1,
                ..old
            },
            Err(_) => Group {
                push_failure_time_seconds: now_seconds,
                ..old
            },
        };
        self.groups.insert(key, group);
        consistent
    }

    /// One type for a name everywhere, and no series twice.
    fn check(&self, families: &BTreeMap<String, Family>) -> Result<(), String> {
        for (name, family) in families {
            if family.has_timestamp {
                return Err("pushed metrics must not have timestamps".to_owned());
            }
            let others: Vec<&Family> = self
                .groups
                .values()
                .filter_map(|group| group.families.get(name))
                .collect();
            if let Some(other) = others.iter().find(|other| other.kind != family.kind) {
                return Err(format!(
                    "collected metric {name:?} is not a {}",
                    other.kind.to_uppercase()
                ));
            }
            let mut series: BTreeSet<&Labels> = others
                .iter()
                .flat_map(|other| &other.samples)
                .map(|(labels, _)| labels)
                .collect();
            for (labels, _) in &family.samples {
                if !series.insert(labels) {
                    return Err(format!(
                        "collected metric {name:?} {{ {labels:?}}} was collected before with the same name and label \
                         values"
                    ));
                }
            }
        }
        Ok(())
    }

    /// `GET /metrics`: every family once, with the samples of all groups.
    fn exposition(&self) -> String {
        let mut merged: BTreeMap<&str, (&Family, Vec<&Point>)> = BTreeMap::new();
        let own: Vec<BTreeMap<String, Family>> = self
            .groups
            .iter()
            .map(|(key, group)| times(key, group).into_iter().collect())
            .collect();
        for (name, family) in self
            .groups
            .values()
            .flat_map(|group| &group.families)
            .chain(own.iter().flatten())
        {
            merged
                .entry(name)
                .or_insert((family, Vec::new()))
                .1
                .extend(&family.samples);
        }
        let mut text = String::new();
        for (name, (family, mut samples)) in merged {
            if !family.help.is_empty() {
                text += &format!(
                    "# HELP {name} {}\n",
                    family.help.replace('\\', "\\\\").replace('\n', "\\n")
                );
            }
            text += &format!("# TYPE {name} {}\n", family.kind);
            samples.sort_by(|one, other| one.0.cmp(&other.0));
            for (labels, value) in samples {
                let labels: Vec<String> = labels
                    .iter()
                    .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                    .collect();
                text += &format!("{name}{{{}}} {value}\n", labels.join(","));
            }
        }
        text
    }

    /// `GET /api/v1/metrics`: every group with its labels, times and families.
    fn listing(&self) -> Value {
        let groups: Vec<Value> = self
            .groups
            .iter()
            .map(|(key, group)| {
                let succeeded = group.push_time_seconds >= group.push_failure_time_seconds;
                let mut listed = json!({"labels": key, "last_push_successful": succeeded});
                for (name, family) in times(key, group).iter().chain(&group.families) {
                    let samples: Vec<Value> = family
                        .samples
                        .iter()
                        .map(|(labels, value)| json!({"labels": labels, "value": value.to_string()}))
                        .collect();
                    let kind = family.kind.to_uppercase();
                    listed[name] = json!({"type": kind, "help": family.help, "metrics": samples});
                }
                listed
            })
            .collect();
        json!({"status": "success", "data": groups})
    }
}

/// The two families that the Pushgateway adds to each group.
fn times(key: &Labels, group: &Group) -> BTreeMap<String, Family> {
    let family = |what: &str, seconds: f64| {
        let help = format!("Last Unix time when changing this group in the Pushgateway {what}.");
        label(
            Family {
                help,
                kind: "gauge".to_owned(),
                samples: vec![(Labels::new(), seconds)],
                has_timestamp: false,
            },
            key,
        )
    };
    BTreeMap::from([
        (
            "push_time_seconds".to_owned(),
            family("succeeded", group.push_time_seconds),
        ),
        (
            "push_failure_time_seconds".to_owned(),
            family("failed", group.push_failure_time_seconds),
        ),
    ])
}

/// The grouping key's labels over those of the body, and an empty `instance` where there is none.
fn label(family: Family, key: &Labels) -> Family {
    let samples = family.samples.into_iter().map(|(mut labels, value)| {
        labels.extend(key.clone());
        labels.entry("instance".to_owned()).or_default();
        (labels, value)
    });
    Family {
        samples: samples.collect(),
        ..family
    }
}

/// The labels in `job/<job>{/<label>/<value>}`; the values may be percent-encoded, or base64 when the label says so.
fn grouping_key(path: &str) -> Result<Labels, String> {
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() % 2 == 1 {
        return Err(format!("odd number of components in label string {path:?}"));
    }
    let mut labels = Labels::new();
    for pair in parts.chunks(2) {
        let (name, value) = match pair[0].strip_suffix("@base64") {
            // An empty value is written as one `=`.
            Some(name) => (name, decode_base64(pair[1].trim_end_matches('='))?),
            None => (pair[0], decode_percent(pair[1])?),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) || name.starts_with("__") || name.starts_with(char::is_numeric) {
            return Err(format!("improper label name {name:?}"));
        }
        labels.insert(name.to_owned(), value);
    }
    if !parts[0].starts_with("job") || labels.get("job").is_none_or(String::is_empty) {
        return Err("job name is required".to_owned());
    }
    Ok(labels)
}

fn decode_base64(text: &str) -> Result<String, String> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| format!("invalid base64 encoding of {text:?}: {error}"))?;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

fn decode_percent(text: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

fn unpack(headers: &HeaderMap, body: &Bytes) -> Result<String, String> {
    let mut text = String::new();
    match headers
        .get(header::CONTENT_ENCODING)
        .map(|encoding| encoding.to_str().unwrap_or_default())
    {
        None | Some("" | "identity") => Ok(String::from_utf8_lossy(body).into_owned()),
        Some("gzip") => match GzDecoder::new(&body[..]).read_to_string(&mut text) {
            Ok(_bytes) => Ok(text),
            Err(error) => Err(format!("gzip: {error}")),
        },
        Some(other) => Err(format!("unknown content encoding {other:?}")),
    }
}

/// Reads the text exposition format as far as gauges, counters and untyped metrics go.
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let new = || Family {
        help: String::new(),
        kind: "untyped".to_owned(),
        samples: Vec::new(),
        has_timestamp: false,
    };
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let failed = |why: &str| format!("text format parsing error in line {}: {why}", index + 1);
        let line = line
            .strip_suffix('\n')
            .ok_or_else(|| failed("unexpected end of input stream"))?;
        if let Some(comment) = line.strip_prefix('#') {
            let mut words = comment.trim_start().splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("HELP"), Some(name), help) => {
                    families.entry(name.to_owned()).or_insert_with(new).help = unescape(help.unwrap_or_default());
                }
                (Some("TYPE"), Some(name), Some(kind)) => {
                    let family = families.entry(name.to_owned()).or_insert_with(new);
                    if !family.samples.is_empty() {
                        return Err(failed("a TYPE line after samples of the same name"));
                    }
                    kind.clone_into(&mut family.kind);
                }
                _ => {}
            }
        } else if !line.trim().is_empty() {
            let (sample, has_timestamp) = parse_sample(line).map_err(|why| failed(&why))?;
            let family = families.entry(sample.name).or_insert_with(new);
            family.samples.push((sample.labels, sample.value));
            family.has_timestamp |= has_timestamp;
        }
    }
    families.retain(|_, family| !family.samples.is_empty());
    Ok(families)
}

/// `name{label="value",…} value`, and whether a timestamp follows.
fn parse_sample(line: &str) -> Result<(Sample, bool), String> {
    let name_end = line.find(['{', ' ']).ok_or("a sample without a value")?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Labels::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        while !inner.starts_with('}') {
            let (label, after) = inner.split_once("=\"").ok_or("a label without a quoted value")?;
            let end = closing_quote(after).ok_or("a label value without an end")?;
            if labels
                .insert(label.trim().to_owned(), unescape(&after[..end]))
                .is_some()
            {
                return Err(format!("duplicate label {label:?}"));
            }
            inner = after[end + 1..].trim_start_matches(',');
        }
        rest = &inner[1..];
    }
    let mut words = rest.split_whitespace();
    let value = words.next().ok_or("a sample without a value")?;
    let value = value
        .parse()
        .map_err(|_| format!("expected float as value, got {value:?}"))?;
    let sample = Sample {
        name: name.to_owned(),
        labels,
        value,
    };
    Ok((sample, words.next().is_some()))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(index)
    })
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, c == '\\') {
            (_, true) => match characters.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            },
            (c, false) => plain.push(c),
        }
    }
    plain
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn respond(code: u16, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(code).expect("a fault's status is one of HTTP");
    response
}

fn cut() -> Response {
    let broken = stream::once(async { Err::<Bytes, std::io::Error>(std::io::ErrorKind::ConnectionReset.into()) });
    Response::new(Body::from_stream(broken))
}
