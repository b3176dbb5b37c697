//! A stand-in for the Kubernetes API server: on loopback, plain http, objects in memory.
//!
//! It serves what a controller of this size uses (get, list in pages, watch, create, update, delete with owner
//! references, proper Status objects), can be told to misbehave ([`Rule`]), checks rights ([`Right`]) and remembers
//! every request. There are no controllers in it: whoever registers a hook for new Jobs plays scheduler, kubelet and
//! Job controller through [`ApiServer::update`] and its like.

mod call;
mod refusal;
mod script;
mod store;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use call::{Call, Filter};
use store::{Change, ChangeKind, Key, Resource, Store};

pub use refusal::Refusal;
pub use script::{Answer, Right, Rule};
pub use store::now;

/// The largest request body of the real server. <https://github.com/kubernetes/apiserver> (MaxRequestBodyBytes)
const REQUEST_BODY_LIMIT_BYTES: usize = 3 * 1024 * 1024;
/// The largest data of a ConfigMap. <https://kubernetes.io/docs/concepts/configuration/configmap/>
const CONFIGMAP_LIMIT_BYTES: usize = 1024 * 1024;
/// How long a watch lasts that names no time of its own.
const WATCH_SECONDS: u64 = 300;

/// A running stand-in; clones speak of the same one. It ends with the runtime that it was started on.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// A request as it came in.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Kubernetes' verb; the HTTP method in lower case where the path was not understood.
    pub verb: String,
    /// Plural; empty where the path was not understood.
    pub resource: String,
    pub namespace: String,
    /// The name in the path, or that in the body of a creation.
    pub name: String,
    /// With the query.
    pub path: String,
    /// `Null` when there was none, or it was no JSON.
    pub body: Value,
}

/// Makes the object of a number, for lists that are too long to be kept.
type Generator = Arc<dyn Fn(usize) -> Value + Send + Sync>;

/// Plays kubelet for a new Job.
type JobHook = Arc<dyn Fn(ApiServer, Value) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

struct Shared {
    state: Mutex<World>,
    /// Carries the resourceVersion of the last change: watches wait for it.
    changed: watch::Sender<u64>,
    /// Counted up to end all watches that are open.
    watches_cut: watch::Sender<u64>,
}

struct World {
    store: Store,
    rules: Vec<Rule>,
    /// Everything is allowed when there are none.
    rights: Option<Vec<Right>>,
    requests: Vec<Recorded>,
    on_job: Option<JobHook>,
    /// Resources whose lists are generated, with the number of their objects.
    generated: BTreeMap<&'static str, (usize, Generator)>,
}

impl ApiServer {
    /// Starts a stand-in without any object on a free port of the loopback.
    pub async fn start() -> ApiServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("the loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let world = World {
            store: Store::new(),
            rules: Vec::new(),
            rights: None,
            requests: Vec::new(),
            on_job: None,
            generated: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(world),
            changed: watch::Sender::new(0),
            watches_cut: watch::Sender::new(0),
        });
        let server = ApiServer { shared, address };
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        // As every cluster has it; each has a uid of its own.
        server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}));
        server
    }

    /// `http://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for this server, with the given default namespace.
    pub fn kubeconfig(&self, namespace: &str) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url()}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [
                {"name": "stand-in", "context": {"cluster": "stand-in", "user": "nobody", "namespace": namespace}}
            ],
        });
        // JSON is YAML.
        format!("{config:#}\n")
    }

    /// Adds a rule; the first that matches a request decides.
    pub fn script(&self, rule: Rule) {
        self.world().rules.push(rule);
    }

    /// From now on only what these rights allow is answered, the rest gets 403.
    pub fn restrict_to(&self, rights: Vec<Right>) {
        self.world().rights = Some(rights);
    }

    /// Calls this with each Job that is created through the API, in a task of its own.
    pub fn on_job<F, R>(&self, hook: F)
    where
        F: Fn(ApiServer, Value) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.world().on_job = Some(Arc::new(move |server, job| Box::pin(hook(server, job))));
    }

    /// From now on lists of this resource, of the whole cluster, have so many objects, each made when its page is asked
    /// for. They can be listed only, without selectors.
    pub fn generate<F>(&self, resource: &'static str, count: usize, make: F)
    where
        F: Fn(usize) -> Value + Send + Sync + 'static,
    {
        let generator: Generator = Arc::new(make);
        self.world().generated.insert(resource, (count, generator));
    }

    /// Every request so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.world().requests.clone()
    }

    /// Ends every open watch, as a restart of the server would.
    pub fn cut_watches(&self) {
        self.shared.watches_cut.send_modify(|times| *times += 1);
    }

    /// Forgets the history: whoever watches from an earlier version is told 410 Gone.
    pub fn compact(&self) {
        self.world().store.compact();
        self.announce();
    }

    /// Stores an object given with apiVersion, kind and metadata, whether or not it was there, and returns it as
    /// stored. Panics on a kind that the stand-in does not serve.
    pub fn put(&self, mut object: Value) -> Value {
        let resource = store::RESOURCES
            .iter()
            .find(|resource| object["kind"] == resource.kind && object["apiVersion"] == resource.api_version)
            .unwrap_or_else(|| panic!("the stand-in serves no {} {}", object["apiVersion"], object["kind"]));
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key {
            resource: resource.plural,
            namespace: text("namespace"),
            name: text("name"),
        };
        store::metadata_of(&mut object).remove("resourceVersion");
        let stored = {
            let mut world = self.world();
            if world.store.get(&key).is_some() {
                world.store.replace(&key, object)
            } else {
                world.store.create(&key, object)
            }
        };
        self.announce();
        stored.expect("without a resourceVersion nothing can conflict")
    }

    /// The object, if it is there; the namespace is empty for cluster-scoped ones.
    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.world().store.get(&key(resource, namespace, name)).cloned()
    }

    /// Every object of a resource, of all namespaces.
    pub fn objects(&self, resource: &str) -> Vec<Value> {
        let world = self.world();
        world
            .store
            .list(Resource::named(resource).plural, "")
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Changes an object in place and returns whether it was there.
    pub fn update(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> bool {
        let key = key(resource, namespace, name);
        let done = {
            let mut world = self.world();
            match world.store.get(&key).cloned() {
                None => false,
                Some(mut object) => {
                    change(&mut object);
                    store::metadata_of(&mut object).remove("resourceVersion");
                    world.store.replace(&key, object).is_ok()
                }
            }
        };
        self.announce();
        done
    }

    /// Deletes an object with its dependents and returns whether it was there.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
        let deleted = self
            .world()
            .store
            .delete(&key(resource, namespace, name), Some("Background"))
            .is_ok();
        self.announce();
        deleted
    }

    /// The object as soon as it is there and the condition holds, or `None` when the time is over.
    pub async fn wait_for(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        timeout: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Option<Value> {
        let mut changed = self.shared.changed.subscribe();
        let found = async {
            loop {
                if let Some(object) = self.object(resource, namespace, name).filter(&condition) {
                    return object;
                }
                changed
                    .changed()
                    .await
                    .expect("the sender lives as long as this handle");
            }
        };
        tokio::time::timeout(timeout, found).await.ok()
    }

    /// Waits until there is no such object.
    pub async fn wait_gone(&self, resource: &str, namespace: &str, name: &str) {
        let mut changed = self.shared.changed.subscribe();
        while self.object(resource, namespace, name).is_some() {
            changed
                .changed()
                .await
                .expect("the sender lives as long as this handle");
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.state.lock().expect("no holder of the lock panics")
    }

    fn announce(&self) {
        let version = self.world().store.resource_version();
        self.shared.changed.send_replace(version);
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> Key {
    Key {
        resource: Resource::named(resource).plural,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// Answers one request: record it, ask the script, then do it.
async fn serve(State(server): State<ApiServer>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, REQUEST_BODY_LIMIT_BYTES).await else {
        return refuse(&Refusal::new(
            413,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        ));
    };
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    if parts.uri.path() == "/version" {
        return answer(200, &json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"}));
    }
    let call = match Call::parse(&parts.method, &parts.uri) {
        Ok(call) => call,
        Err(refusal) => {
            let verb = parts.method.as_str().to_lowercase();
            let path = parts.uri.to_string();
            let nothing = String::new;
            server.world().requests.push(Recorded {
                verb,
                resource: nothing(),
                namespace: nothing(),
                name: nothing(),
                path,
                body,
            });
            return refuse(&refusal);
        }
    };
    let (scripted, delay) = {
        let mut world = server.world();
        let name = if call.name.is_empty() {
            name_in(&body)
        } else {
            call.name.clone()
        };
        world.requests.push(Recorded {
            verb: call.verb.to_owned(),
            resource: call.resource.plural.to_owned(),
            namespace: call.namespace.clone(),
            name: name.clone(),
            path: parts.uri.to_string(),
            body: body.clone(),
        });
        if let Some(rights) = &world.rights
            && !rights
                .iter()
                .any(|right| right.allows(call.verb, call.resource.plural, &call.namespace, &call.name))
        {
            return refuse(&Refusal::forbidden(call.verb, call.resource.plural, &call.namespace));
        }
        script::take(&mut world.rules, &Call { name, ..call.clone() })
    };
    tokio::time::sleep(delay).await;
    match scripted {
        Answer::Refuse(refusal) => refuse(&refusal),
        Answer::Raw(code, text) => respond(code, Body::from(text)),
        Answer::Cut => cut(),
        Answer::CutAfterwards => {
            perform(&server, &call, body);
            cut()
        }
        Answer::Serve => perform(&server, &call, body),
        Answer::Forbid => unreachable!("the script words it for the request"),
    }
}

fn name_in(body: &Value) -> String {
    body["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn perform(server: &ApiServer, call: &Call, body: Value) -> Response {
    let done = match call.verb {
        "watch" => return watch(server, call).unwrap_or_else(|refusal| refuse(&refusal)),
        "list" => list(server, call),
        "get" => {
            let key = call.key(&call.name);
            server
                .world()
                .store
                .get(&key)
                .cloned()
                .ok_or_else(|| Refusal::not_found(&key))
        }
        "create" => create(server, call, body),
        "update" => server.world().store.replace(&call.key(&call.name), body),
        "delete" => delete(server, call, &body),
        verb => unreachable!("no call is read with the verb {verb}"),
    };
    server.announce();
    match done {
        Ok(object) => answer(if call.verb == "create" { 201 } else { 200 }, &object),
        Err(refusal) => refuse(&refusal),
    }
}

fn create(server: &ApiServer, call: &Call, mut object: Value) -> Result<Value, Refusal> {
    let key = call.key(&name_in(&object));
    check(&key, &object)?;
    // A status is not the creator's to give.
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    let (stored, hook) = {
        let mut world = server.world();
        let stored = world.store.create(&key, object)?;
        (stored, world.on_job.clone().filter(|_| key.resource == "jobs"))
    };
    if let Some(hook) = hook {
        tokio::spawn(hook(server.clone(), stored.clone()));
    }
    Ok(stored)
}

/// The checks of the real server that a program of this kind can stumble over.
fn check(key: &Key, object: &Value) -> Result<(), Refusal> {
    let longest = if key.resource == "jobs" { 63 } else { 253 };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if key.name.is_empty() || key.name.len() > longest || !key.name.chars().all(plain) {
        return Err(Refusal::invalid(key, "metadata.name: Invalid value"));
    }
    for labels in [
        &object["metadata"]["labels"],
        &object["spec"]["template"]["metadata"]["labels"],
    ] {
        for (label, value) in labels.as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let edges = [value.chars().next(), value.chars().next_back()];
            if value.len() > 63
                || !value.chars().all(known)
                || edges.iter().flatten().any(|c| !c.is_ascii_alphanumeric())
            {
                return Err(Refusal::invalid(
                    key,
                    &format!("metadata.labels: Invalid value: {label:?}: {value:?}"),
                ));
            }
        }
    }
    if key.resource == "configmaps" && object.to_string().len() > CONFIGMAP_LIMIT_BYTES * 4 / 3 {
        return Err(Refusal::invalid(key, "[]: Too long: must have at most 1048576 bytes"));
    }
    Ok(())
}

fn delete(server: &ApiServer, call: &Call, options: &Value) -> Result<Value, Refusal> {
    let key = call.key(&call.name);
    let mut world = server.world();
    let stored = world.store.get(&key).ok_or_else(|| Refusal::not_found(&key))?;
    for field in ["uid", "resourceVersion"] {
        let wanted = &options["preconditions"][field];
        if wanted.is_string() && *wanted != stored["metadata"][field] {
            return Err(Refusal::conflict(&key));
        }
    }
    let policy = options["propagationPolicy"]
        .as_str()
        .or(call.query.get("propagationPolicy").map(String::as_str));
    world.store.delete(&key, policy)
}

fn list(server: &ApiServer, call: &Call) -> Result<Value, Refusal> {
    let generated = server.world().generated.get(call.resource.plural).cloned();
    if let Some((count, make)) = generated {
        return list_generated(call, count, &make);
    }
    let filter = call.filter()?;
    let limit: usize = call.parameter("limit").parse().unwrap_or(0);
    let after = decode_continue(call.parameter("continue"))?;
    let world = server.world();
    let matching: Vec<(&Key, &Value)> = world
        .store
        .list(call.resource.plural, &call.namespace)
        .filter(|(key, object)| filter.matches(key, object))
        .filter(|(key, _)| {
            after
                .as_ref()
                .is_none_or(|after| (&key.namespace, &key.name) > (&after.0, &after.1))
        })
        .collect();
    let page = if limit == 0 {
        &matching[..]
    } else {
        &matching[..limit.min(matching.len())]
    };
    let mut metadata = json!({"resourceVersion": world.store.resource_version().to_string()});
    if let Some((key, _)) = page.last().filter(|_| page.len() < matching.len()) {
        metadata["continue"] = encode_continue(key).into();
        metadata["remainingItemCount"] = (matching.len() - page.len()).into();
    }
    let items: Vec<&Value> = page.iter().map(|(_, object)| *object).collect();
    let kind = format!("{}List", call.resource.kind);
    Ok(json!({"kind": kind, "apiVersion": call.resource.api_version, "metadata": metadata, "items": items}))
}

fn list_generated(call: &Call, count: usize, make: &Generator) -> Result<Value, Refusal> {
    let limit: usize = call.parameter("limit").parse().unwrap_or(0);
    let begin = match decode_continue(call.parameter("continue"))? {
        Some((_, number)) => number.parse().unwrap_or(count),
        None => 0,
    };
    let end = if limit == 0 { count } else { count.min(begin + limit) };
    let mut metadata = json!({"resourceVersion": "1000"});
    if end < count {
        let key = Key {
            resource: call.resource.plural,
            namespace: String::new(),
            name: end.to_string(),
        };
        metadata["continue"] = encode_continue(&key).into();
        metadata["remainingItemCount"] = (count - end).into();
    }
    let items: Vec<Value> = (begin..end).map(|number| make(number)).collect();
    let kind = format!("{}List", call.resource.kind);
    Ok(json!({"kind": kind, "apiVersion": call.resource.api_version, "metadata": metadata, "items": items}))
}

fn encode_continue(last: &Key) -> String {
    URL_SAFE_NO_PAD.encode(json!([last.namespace, last.name]).to_string())
}

fn decode_continue(token: &str) -> Result<Option<(String, String)>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let decoded = URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    decoded
        .map(Some)
        .ok_or_else(|| Refusal::new(400, "BadRequest", "continue key is not valid"))
}

/// Where a watch is, and how long it may go on.
struct Watch {
    server: ApiServer,
    filter: Filter,
    resource: &'static Resource,
    bookmarks: bool,
    position: u64,
    /// Sent before anything else: what is there already, for a watch that begins nowhere.
    first: Vec<Value>,
    changed: watch::Receiver<u64>,
    cut: watch::Receiver<u64>,
    deadline: Instant,
    ended: bool,
}

fn watch(server: &ApiServer, call: &Call) -> Result<Response, Refusal> {
    if call.query.contains_key("sendInitialEvents") {
        // What servers without the WatchList feature say.
        let why = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList \
                   feature gate is enabled";
        return Err(Refusal::new(
            422,
            "Invalid",
            format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"),
        ));
    }
    let filter = call.filter()?;
    let seconds: u64 = call.parameter("timeoutSeconds").parse().unwrap_or(WATCH_SECONDS);
    let world = server.world();
    let (position, first) = match call.parameter("resourceVersion").parse().unwrap_or(0) {
        0 => {
            let present = world.store.list(call.resource.plural, &call.namespace);
            let first = present.filter(|(key, object)| filter.matches(key, object));
            let first = first
                .map(|(_, object)| json!({"type": "ADDED", "object": object}))
                .collect();
            (world.store.resource_version(), first)
        }
        position => (position, Vec::new()),
    };
    let state = Watch {
        server: server.clone(),
        filter,
        resource: call.resource,
        bookmarks: call.parameter("allowWatchBookmarks") == "true",
        position,
        first,
        changed: server.shared.changed.subscribe(),
        cut: server.shared.watches_cut.subscribe(),
        deadline: Instant::now() + Duration::from_secs(seconds),
        ended: false,
    };
    drop(world);
    let events = stream::unfold(state, |mut state| async move {
        let lines = state.next_lines().await?;
        Some((Ok::<Bytes, Infallible>(lines), state))
    });
    Ok(respond(200, Body::from_stream(events)))
}

impl Watch {
    /// The next events as JSON lines, or `None` at the watch's end.
    async fn next_lines(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            let mut events = std::mem::take(&mut self.first);
            events.extend(self.new_events());
            if !events.is_empty() {
                let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
                return Some(Bytes::from(lines));
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                cut = self.cut.changed() => { cut.ok()?; return None; }
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    if self.bookmarks {
                        return Some(Bytes::from(format!("{}\n", self.bookmark())));
                    }
                }
            }
        }
    }

    fn new_events(&mut self) -> Vec<Value> {
        let server = self.server.clone();
        let world = server.world();
        let Some(changes) = world.store.changes_since(self.position) else {
            self.ended = true;
            let refusal = Refusal::new(410, "Expired", format!("too old resource version: {}", self.position));
            return vec![json!({"type": "ERROR", "object": refusal.status()})];
        };
        self.position = self.position.max(world.store.resource_version());
        changes.iter().filter_map(|change| self.event(change)).collect()
    }

    /// What a change is to this watch: an object that enters or leaves its selector is added or deleted.
    fn event(&self, change: &Change) -> Option<Value> {
        let was = change
            .previous
            .as_ref()
            .is_some_and(|previous| self.filter.matches(&change.key, previous));
        let is = change.kind != ChangeKind::Deleted && self.filter.matches(&change.key, &change.object);
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        Some(json!({"type": kind, "object": change.object}))
    }

    fn bookmark(&self) -> Value {
        json!({"type": "BOOKMARK", "object": {
            "kind": self.resource.kind, "apiVersion": self.resource.api_version,
            "metadata": {"resourceVersion": self.position.to_string()},
        }})
    }
}

fn answer(code: u16, object: &Value) -> Response {
    respond(code, Body::from(object.to_string()))
}

fn refuse(refusal: &Refusal) -> Response {
    let mut response = answer(refusal.code, &refusal.status());
    if let Some(seconds) = refusal.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn respond(code: u16, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a rule's status is one of HTTP");
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

/// An answer that breaks off before its first byte of content: the connection is closed.
fn cut() -> Response {
    let broken = stream::once(async { Err::<Bytes, std::io::Error>(std::io::ErrorKind::ConnectionReset.into()) });
    respond(200, Body::from_stream(broken))
}
