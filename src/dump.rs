//! Reads what `kubectl get pv,pvc,nodes,storageclasses -A -o json` wrote, in place of the lists of a live cluster.
//!
//! A dump of a large cluster takes hundreds of megabytes, so it is never held as a whole: each object is read as it comes,
//! and only what a plan needs is kept. Each object is read by itself. One that cannot be read is told by its reason and
//! costs no other; what is wrong with the List around them ends the reading, with line and column.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::panic::resume_unwind;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::kubernetes::convert;
use crate::planning::{Listed, Settings, claims_of_unplaced};
use crate::text::one_line;
use crate::volumes::pods::PodOnNode;

use cut::{Cut, OBJECT_BYTES_MAX, Object};

mod cut;

/// How much is read at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// Objects are handed to the decoder when they are this large together; so many such batches may wait for it.
const BATCH_BYTES: usize = 128 * 1024;
const BATCHES_WAITING: usize = 8;
/// The longest kind that is told, with its version.
const KIND_MAX_CHARS: usize = 100;
/// The kind of what says none.
const NO_KIND: &str = "(no kind)";
/// Kinds that are told by their name: a dump of a whole cluster may have hundreds.
const KINDS_TOLD: usize = 20;
/// What Windows puts before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a dump holds.
#[derive(Default)]
pub struct Dump {
    /// Volumes, claims and nodes.
    pub listed: Listed,
    /// How many objects there are in all.
    pub objects: usize,
    /// How many claims could be read.
    pub claims: usize,
    /// How many objects are of a kind that belongs into a dump and is not needed for a plan.
    pub not_needed: usize,
    /// How many objects are of any other kind, by kind.
    pub other_kinds: BTreeMap<String, usize>,
}

/// Why a dump could not be read.
#[derive(Debug, Error)]
pub enum DumpError {
    /// The file could not be read.
    #[error("{0}")]
    Read(io::Error),
    /// It is empty.
    #[error("it is empty; {HOW_TO_MAKE_ONE}")]
    Empty,
    /// It is JSON, but not the JSON of a List.
    #[error("{0}; {HOW_TO_MAKE_ONE}")]
    NoList(Problem),
    /// It ends too early.
    #[error("it is cut off: {0}")]
    Truncated(Problem),
    /// It is not JSON.
    #[error("it is not JSON: {0}; {HOW_TO_MAKE_ONE}")]
    Syntax(Problem),
}

/// What is wrong with a text, and where.
#[derive(Debug, Error)]
#[error("{what} at line {line} column {column}")]
pub struct Problem {
    what: String,
    line: usize,
    column: usize,
}

/// What every message ends with where the wrong thing was given.
const HOW_TO_MAKE_ONE: &str = "make it with: kubectl get pv,pvc,nodes,storageclasses -A -o json";

/// What is wanted of a dump.
struct Reading {
    /// The labels of claims that are kept.
    label_keys: BTreeSet<String>,
    /// The pods, where they are asked; which of them matter is known only when all claims are.
    pods: Option<Vec<PodOnNode>>,
}

impl Dump {
    /// Reads a dump to its end.
    ///
    /// # Errors
    /// [`DumpError`]; nothing of a dump that is not whole is kept.
    pub fn read(reader: impl Read, settings: &Settings) -> Result<Dump, DumpError> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        let mut start = Vec::with_capacity(BYTE_ORDER_MARK.len());
        reader
            .by_ref()
            .take(BYTE_ORDER_MARK.len() as u64)
            .read_to_end(&mut start)
            .map_err(DumpError::Read)?;
        if start.is_empty() {
            return Err(DumpError::Empty);
        }
        if start == BYTE_ORDER_MARK {
            start.clear();
        }
        let (hand_over, taken) = mpsc::sync_channel::<Vec<Box<RawValue>>>(BATCHES_WAITING);
        // Looking for the objects and their errors takes as long as decoding them.
        thread::scope(|scope| {
            let decoder = scope.spawn(move || {
                let mut dump = Dump::default();
                let mut reading = Reading {
                    label_keys: settings.selection.label_keys(),
                    pods: settings.locate_by_pods.then(Vec::new),
                };
                taken.iter().flatten().for_each(|raw| dump.add(&raw, &mut reading));
                dump.listed.pods = reading.pods.map(|pods| {
                    let mut places = claims_of_unplaced(&dump.listed.volumes, &dump.listed.claims);
                    pods.into_iter().for_each(|pod| places.see(pod));
                    places
                });
                dump
            });
            let read = read_list(start.as_slice().chain(reader), hand_over);
            let mut dump = decoder.join().unwrap_or_else(|panic| resume_unwind(panic));
            dump.add_others(read?);
            Ok(dump)
        })
    }

    /// Counts items that are no objects.
    fn add_others(&mut self, others: usize) {
        self.objects += others;
        if others > 0 {
            *self.other_kinds.entry(NO_KIND.to_owned()).or_default() += others;
        }
    }

    fn add(&mut self, raw: &RawValue, reading: &mut Reading) {
        self.objects += 1;
        let TypeMeta { api_version, kind } = TypeMeta::of(raw);
        // An object of ours is known without its version too: better read than lost.
        let version = api_version.as_deref().unwrap_or("v1");
        match (version, kind.as_deref().unwrap_or_default()) {
            ("v1", "PersistentVolume") => self.listed.add_volume(convert::volume(raw)),
            ("v1", "PersistentVolumeClaim") => {
                let claim = convert::claim(raw, &reading.label_keys);
                self.claims += usize::from(claim.is_ok());
                self.listed.add_claim(claim);
            }
            ("v1", "Node") => self.listed.add_node(convert::undecoded_node(raw)),
            ("v1", "Pod") => {
                self.not_needed += usize::from(reading.pods.is_none());
                if let Some(pods) = &mut reading.pods {
                    pods.extend(convert::pod_on_node(raw));
                }
            }
            ("storage.k8s.io/v1", "StorageClass") => self.not_needed += 1,
            (version, kind) => {
                let kind = match (version, kind) {
                    (_, "") => NO_KIND.to_owned(),
                    ("v1", kind) => one_line(kind, KIND_MAX_CHARS),
                    (version, kind) => one_line(&format!("{version} {kind}"), KIND_MAX_CHARS),
                };
                let is_known = self.other_kinds.contains_key(&kind);
                let kind = if is_known || self.other_kinds.len() < KINDS_TOLD {
                    kind
                } else {
                    "(more)".to_owned()
                };
                *self.other_kinds.entry(kind).or_default() += 1;
            }
        }
    }
}

/// Reads a List, and hands its objects over, some at a time. Returns how many items are no objects.
fn read_list(reader: impl BufRead, hand_over: SyncSender<Vec<Box<RawValue>>>) -> Result<usize, DumpError> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    let mut refused = None;
    let list = Cut::new(reader, |object| {
        batch_bytes += object.text.len();
        match checked(object) {
            Ok(raw) => batch.push(raw),
            Err(error) => refused = Some(error),
        }
        if batch_bytes > BATCH_BYTES {
            batch_bytes = 0;
            // Nobody takes it only where the decoder panicked, which is told when it is joined.
            let _ = hand_over.send(mem::take(&mut batch));
        }
        match refused {
            Some(_) => Err(io::Error::other("an object that is none")),
            None => Ok(()),
        }
    });
    let mut deserializer = serde_json::Deserializer::from_reader(BufReader::new(list));
    let read = List::deserialize(&mut deserializer).and_then(|list| deserializer.end().map(|()| list.others));
    drop(deserializer);
    if let Some(error) = refused {
        return Err(error);
    }
    let others = read.map_err(|error| DumpError::from_json(error, 1, 1))?;
    let _ = hand_over.send(batch);
    Ok(others)
}

/// What was taken for an object, if it is well-formed.
fn checked(object: Object) -> Result<Box<RawValue>, DumpError> {
    let Object { text, line, column } = object;
    let is_too_large = text.len() > OBJECT_BYTES_MAX;
    let problem = |what: String| Problem { what, line, column };
    let checked = match String::from_utf8(text) {
        Ok(text) => RawValue::from_string(text),
        // What is wrong before that, or this.
        Err(error) => serde_json::from_slice::<&RawValue>(error.as_bytes()).map(ToOwned::to_owned),
    };
    let raw = checked.map_err(|error| match error.classify() {
        Category::Eof if is_too_large => DumpError::Syntax(problem(format!(
            "an object of more than {} MiB",
            OBJECT_BYTES_MAX >> 20
        ))),
        _ => DumpError::from_json(error, line, column),
    })?;
    if is_list(&raw) {
        let what = "one of its objects is a List itself, whose objects would be left out".to_owned();
        return Err(DumpError::NoList(problem(what)));
    }
    Ok(raw)
}

/// Whether an object is a List of objects, of one kind or of any: two dumps that were put into one by hand.
fn is_list(raw: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Kind<'a> {
        #[serde(borrow)]
        kind: Cow<'a, str>,
        #[serde(rename = "items")]
        _items: Vec<IgnoredAny>,
    }
    // Decoding each object once more would take long.
    let may_be = raw.get().contains("List\"");
    may_be && serde_json::from_str::<Kind<'_>>(raw.get()).is_ok_and(|object| object.kind.ends_with("List"))
}

impl DumpError {
    /// An error in a text that begins at this place of the dump.
    fn from_json(error: serde_json::Error, line: usize, column: usize) -> DumpError {
        let position = format!(" at line {} column {}", error.line(), error.column());
        let what = error.to_string();
        let problem = Problem {
            what: what.strip_suffix(&position).unwrap_or(&what).to_owned(),
            line: line + error.line().saturating_sub(1),
            column: error.column() + if error.line() <= 1 { column - 1 } else { 0 },
        };
        match error.classify() {
            Category::Io => DumpError::Read(error.into()),
            Category::Eof => DumpError::Truncated(problem),
            Category::Data => DumpError::NoList(problem),
            Category::Syntax => DumpError::Syntax(problem),
        }
    }
}

/// A List whose objects were taken out of it.
struct List {
    /// How many items are no objects.
    others: usize,
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List, D::Error> {
        deserializer.deserialize_any(ListVisitor)
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = List;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a List of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<List, A::Error> {
        let (mut kind, mut items) = (None, None);
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "items" if items.is_some() => return Err(de::Error::duplicate_field("items")),
                "items" => items = Some(fields.next_value::<Items>()?),
                "kind" => kind = Some(fields.next_value::<String>()?),
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        match (kind.as_deref(), items) {
            (Some("List"), Some(Items { others })) => Ok(List { others }),
            (Some("List"), None) => Err(de::Error::missing_field("items")),
            (Some(kind), _) => {
                let kind = one_line(kind, KIND_MAX_CHARS);
                Err(de::Error::custom(format_args!(
                    "it is of the kind {kind:?}, not a List"
                )))
            }
            (None, _) => Err(de::Error::missing_field("kind")),
        }
    }
}

/// What is left of the items of a List.
struct Items {
    others: usize,
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Items, D::Error> {
        deserializer.deserialize_seq(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the objects of a List")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items, A::Error> {
        let mut others = 0;
        while let Some(item) = items.next_element::<Value>()? {
            match item {
                Value::Object(fields) if fields.is_empty() => {}
                Value::Object(_) => {
                    return Err(de::Error::custom("the name of the field \"items\" has an escape in it"));
                }
                _ => others += 1,
            }
        }
        Ok(Items { others })
    }
}

/// What says of which type an object is.
#[derive(Default)]
struct TypeMeta<'a> {
    api_version: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
}

impl<'a> TypeMeta<'a> {
    /// Looks at an object no further than it has to: kubectl writes the fields in the order of their names, and these two
    /// are the first.
    fn of(raw: &'a RawValue) -> TypeMeta<'a> {
        let mut found = TypeMeta::default();
        // An error is how the visitor stops; one of another cause leaves what was found before it.
        let _ = serde_json::Deserializer::from_str(raw.get()).deserialize_map(TypeMetaVisitor(&mut found));
        found
    }
}

struct TypeMetaVisitor<'t, 'a>(&'t mut TypeMeta<'a>);

impl<'a> Visitor<'a> for TypeMetaVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(field) = fields.next_key::<Text<'a>>()? {
            match field.0.as_ref() {
                "apiVersion" => self.0.api_version = Some(fields.next_value::<Text<'a>>()?.0),
                "kind" => self.0.kind = Some(fields.next_value::<Text<'a>>()?.0),
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
            if self.0.api_version.is_some() && self.0.kind.is_some() {
                return Err(de::Error::custom("that is enough"));
            }
        }
        Ok(())
    }
}

/// A text that is borrowed unless it has escapes in it.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
