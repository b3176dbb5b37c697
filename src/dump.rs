//! Reads what `kubectl get pv,pvc,nodes,storageclasses -A -o json` wrote, in place of the lists of a live cluster.
//!
//! A dump of a large cluster takes hundreds of megabytes, so it is never held as a whole: each object is read as it comes,
//! and only what a plan needs is kept. Each object is read by itself. One that cannot be read is told by its reason and
//! costs no other; what is wrong with the List around them ends the reading, with line and column.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, BufReader, Read};
use std::mem;
use std::panic::resume_unwind;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::kubernetes::convert;
use crate::planning::{Listed, Settings, claims_of_unplaced};
use crate::text::one_line;
use crate::volumes::pods::PodOnNode;

/// How much is read at once: the reader below takes single bytes from it.
const BUFFER_BYTES: usize = 256 * 1024;
/// Objects that are handed to the decoder at once, and how many such batches may wait for it: some megabytes in all.
const BATCH_OBJECTS: usize = 64;
const BATCHES_WAITING: usize = 8;
/// The longest kind that is told, with its version.
const KIND_MAX_CHARS: usize = 100;
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
    NoList(serde_json::Error),
    /// It ends too early.
    #[error("it is cut off: {0}")]
    Truncated(serde_json::Error),
    /// It is not JSON.
    #[error("it is not JSON: {0}; {HOW_TO_MAKE_ONE}")]
    Syntax(serde_json::Error),
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
        let mut deserializer = serde_json::Deserializer::from_reader(start.as_slice().chain(reader));
        let (hand_over, taken) = mpsc::sync_channel::<Vec<Box<RawValue>>>(BATCHES_WAITING);
        // Finding where an object ends takes as long as decoding it, and there are hundreds of megabytes of them.
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
            let read = ListSeed(hand_over)
                .deserialize(&mut deserializer)
                .and_then(|()| deserializer.end());
            let dump = decoder.join().unwrap_or_else(|panic| resume_unwind(panic));
            read.map_err(DumpError::from_json)?;
            Ok(dump)
        })
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
                    (_, "") => "(no kind)".to_owned(),
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

impl DumpError {
    fn from_json(error: serde_json::Error) -> DumpError {
        match error.classify() {
            serde_json::error::Category::Io => DumpError::Read(error.into()),
            serde_json::error::Category::Eof => DumpError::Truncated(error),
            serde_json::error::Category::Data => DumpError::NoList(error),
            serde_json::error::Category::Syntax => DumpError::Syntax(error),
        }
    }
}

/// Reads the List and hands its objects over, some at a time.
struct ListSeed(SyncSender<Vec<Box<RawValue>>>);

impl<'de> DeserializeSeed<'de> for ListSeed {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ListSeed {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a List of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let (mut kind, mut has_items) = (None, false);
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "items" if has_items => return Err(de::Error::duplicate_field("items")),
                "items" => {
                    has_items = true;
                    fields.next_value_seed(ItemsSeed(&self.0))?;
                }
                "kind" => kind = Some(fields.next_value::<String>()?),
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        match (kind.as_deref(), has_items) {
            (Some("List"), true) => Ok(()),
            (Some(kind), _) if kind != "List" => {
                let kind = one_line(kind, KIND_MAX_CHARS);
                Err(de::Error::custom(format_args!(
                    "it is of the kind {kind:?}, not a List"
                )))
            }
            (None, _) => Err(de::Error::missing_field("kind")),
            (_, false) => Err(de::Error::missing_field("items")),
            (Some(_), true) => unreachable!("the two arms above divide the kinds"),
        }
    }
}

/// Reads the objects of a List.
struct ItemsSeed<'s>(&'s SyncSender<Vec<Box<RawValue>>>);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the objects of a List")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut batch = Vec::with_capacity(BATCH_OBJECTS);
        while let Some(raw) = items.next_element::<Box<RawValue>>()? {
            batch.push(raw);
            if batch.len() == BATCH_OBJECTS {
                self.hand_over(mem::replace(&mut batch, Vec::with_capacity(BATCH_OBJECTS)))?;
            }
        }
        self.hand_over(batch)
    }
}

impl ItemsSeed<'_> {
    fn hand_over<E: de::Error>(&self, batch: Vec<Box<RawValue>>) -> Result<(), E> {
        // Nobody takes it only where the decoder panicked, which is told when it is joined.
        self.0
            .send(batch)
            .map_err(|_| de::Error::custom("decoding ended early"))
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
