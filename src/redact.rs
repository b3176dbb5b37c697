//! Other names for a plan that is given to others: the structure stays, the names go.
//!
//! The same name has the same substitute wherever it stands in one document, whatever it is the name of. It is the plan that
//! is redacted, not what it was made from: which node measures a shared volume follows from names, and would be another one.
//! What is not known to be harmless is replaced: of a sentence, every word that our own messages do not have.
//!
//! A substitute begins with a capital letter, which no name of an object does: nobody takes one for the other.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::cli::DEFAULT_BASE_PATHS;
use crate::volumes::path::{BasePaths, PathError};
use crate::volumes::plan::{PlacedVolume, Plan, PlannedNode};
use crate::volumes::volume::{NO_NAME, Skipped};

/// The phases of a volume that Kubernetes knows; any other text is somebody's.
const PHASES: [&str; 6] = ["", "Pending", "Available", "Bound", "Released", "Failed"];

/// The kind of name of a node.
const NODE: &str = "Node";
/// The words of our own messages about volumes that are left out: they say what is wrong, and name nothing.
const WORDS: &str = "\
    10Gi a above absolute affinity after all allowed allows an and annotation annotations any are as asks at base be because \
    before begin being below block Block boolean by bytes can cannot capacity character characters claim claimRef \
    class column component count could decimal directories directory does DoesNotExist down duplicate e9 E Ei empty \
    end exist exists Exists expected exponent field file filter follows for form from G Gi given gone greater Gt has have \
    hold holds hostname hostPath in In integer invalid is it its k key Ki kind kubernetes.io/hostname Kubernetes \
    label labels left length less lp-exporter/measure limit line Linux local local.path.provisioner/selected-node longer Lt m M made makes \
    map match matches matchExpressions matchFields measured message metadata Mi missing more most mounts n name named names \
    namespace negative neither no node nodeAffinity nodes nodeSelectorTerms none nor not nothing NotIn NUL null \
    number object of on one only opens operator or other out outside own P path paths phase Pi pod pods point present \
    quantity ran read Ready ready relative required resources root says selector sequence shared shares slash so source \
    spec start starts state status storage storageClassName string such suffix system T than that the there they \
    this Ti to too true type u under unit unknown use value values variant volume volumeMode volumes was what when \
    where which with without word write";

/// Gives substitutes, and remembers them.
pub(crate) struct Redactor {
    /// [`WORDS`], to be found.
    words: HashSet<&'static str>,
    substitutes: HashMap<String, String>,
    /// How many there are of each kind.
    counts: HashMap<&'static str, usize>,
}

impl Redactor {
    pub(crate) fn new() -> Redactor {
        Redactor {
            words: WORDS.split_whitespace().collect(),
            substitutes: HashMap::new(),
            counts: HashMap::new(),
        }
    }

    /// The substitute for a name; what stands for none stays.
    pub(crate) fn name(&mut self, kind: &'static str, name: &str) -> String {
        if ["", NO_NAME].contains(&name) {
            return name.to_owned();
        }
        if let Some(known) = self.substitutes.get(name) {
            return known.clone();
        }
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        let substitute = format!("{kind}-{count}");
        self.substitutes.insert(name.to_owned(), substitute.clone());
        substitute
    }

    /// A path: what every provisioner's documentation names stays, and so do slashes, `.`, `..` and the underscores that
    /// hold the parts of a directory's name together.
    fn path(&mut self, path: &str) -> String {
        let is_below = |base: &str| {
            path.strip_prefix(base)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let known = DEFAULT_BASE_PATHS
            .into_iter()
            .find(|base| is_below(base))
            .unwrap_or_default();
        let parts = path[known.len()..].split('/').map(|component| match component {
            "" | "." | ".." => component.to_owned(),
            _ => {
                let parts = component.split('_').map(|part| self.name("Directory", part));
                parts.collect::<Vec<_>>().join("_")
            }
        });
        format!("{known}{}", parts.collect::<Vec<_>>().join("/"))
    }

    /// The base paths, in the same order.
    ///
    /// # Errors
    /// Never in practice: a substitute is shorter than a path may be.
    pub(crate) fn base_paths(&mut self, base_paths: &BasePaths) -> Result<BasePaths, PathError> {
        let paths: Vec<String> = base_paths.as_slice().iter().map(|path| self.path(path)).collect();
        BasePaths::new(paths.iter().map(String::as_str))
    }

    /// A plan with other names, in the order of the old ones.
    pub(crate) fn plan(&mut self, plan: Plan) -> Plan {
        let Plan {
            nodes,
            skipped,
            other_nodes,
            possible_nodes,
            nodes_not_scanned,
            invalid_alert_percents: _,
            claims_lost: _,
            claims_unreadable,
            mut known_paths,
        } = plan;
        // Nodes first: their names stand in what is said of volumes.
        for name in nodes.iter().map(|node| &node.name).chain(nodes_not_scanned.keys()) {
            self.name(NODE, name);
        }
        let other_nodes: BTreeSet<String> = other_nodes.iter().map(|name| self.name(NODE, name)).collect();
        let possible_nodes = possible_nodes.iter().map(|name| self.name(NODE, name)).collect();
        let nodes = nodes.into_iter().map(|node| self.planned_node(node)).collect();
        for one in &skipped {
            self.name("Volume", &one.persistent_volume);
        }
        let skipped = skipped.into_iter().map(|one| self.skipped(one)).collect();
        let nodes_not_scanned = nodes_not_scanned.into_iter();
        let nodes_not_scanned = nodes_not_scanned.map(|(node, reason)| (self.name(NODE, &node), reason));
        let nodes_not_scanned = nodes_not_scanned.collect();
        let known_nodes: HashMap<String, String> = self.substitutes.clone();
        known_paths.rename(
            |path| self.path(path),
            |node| known_nodes.get(node).cloned().unwrap_or_default(),
        );
        Plan {
            nodes,
            skipped,
            other_nodes,
            possible_nodes,
            nodes_not_scanned,
            known_paths,
            // Sentences about claims, which are not shown.
            invalid_alert_percents: Vec::new(),
            claims_lost: Vec::new(),
            claims_unreadable,
        }
    }

    fn planned_node(&mut self, node: PlannedNode) -> PlannedNode {
        let PlannedNode {
            name,
            disk_pressure,
            unmeasurable,
            bases,
            volumes,
        } = node;
        PlannedNode {
            name: self.name(NODE, &name),
            disk_pressure,
            unmeasurable: unmeasurable.map(|(reason, detail)| (reason, self.sentence(&detail))),
            bases,
            volumes: volumes.into_iter().map(|volume| self.volume(volume)).collect(),
        }
    }

    fn volume(&mut self, volume: PlacedVolume) -> PlacedVolume {
        let PlacedVolume {
            name,
            claim,
            storage_class,
            path,
            base,
            source,
            capacity_bytes,
            requested_bytes,
            phase,
            reclaim_policy,
            created_unix_seconds,
            shared,
            alert_percent,
            alert_disabled,
            claim_labels: _,
        } = volume;
        PlacedVolume {
            name: self.name("Volume", &name),
            claim: claim.map(|(namespace, claim)| (self.name("Namespace", &namespace), self.name("Claim", &claim))),
            storage_class: self.name("Class", &storage_class).into(),
            path: self.path(&path),
            base,
            source,
            capacity_bytes,
            requested_bytes,
            phase: if PHASES.contains(&&*phase) {
                phase
            } else {
                self.name("Phase", &phase).into()
            },
            reclaim_policy: if ["", "Delete", "Retain", "Recycle"].contains(&&*reclaim_policy) {
                reclaim_policy
            } else {
                self.name("Policy", &reclaim_policy).into()
            },
            created_unix_seconds,
            shared,
            alert_percent,
            alert_disabled,
            claim_labels: Vec::new(),
        }
    }

    fn skipped(&mut self, skipped: Skipped) -> Skipped {
        let Skipped {
            persistent_volume,
            reason,
            detail,
            facts: _,
        } = skipped;
        Skipped {
            persistent_volume: self.name("Volume", &persistent_volume),
            reason,
            detail: self.sentence(&detail),
            // They are for metrics.
            facts: None,
        }
    }

    /// A sentence of ours about names of others. What is quoted is theirs and replaced; of the rest, every word that is not
    /// one of ours.
    fn sentence(&mut self, text: &str) -> String {
        // What separates words in our messages, and stands in no name that Kubernetes accepts.
        let is_separator = |c: char| c.is_whitespace() || "\"'`,;:()[]{}=<>…\u{fffd}".contains(c);
        let mut redacted = String::new();
        let mut is_quoted = false;
        for piece in text.split_inclusive(is_separator) {
            let word = piece.trim_end_matches(is_separator);
            let separator = &piece[word.len()..];
            redacted.push_str(&self.word(word, is_quoted));
            redacted.push_str(separator);
            is_quoted ^= matches!(separator, "\"" | "`");
        }
        redacted
    }

    fn is_ours(&self, word: &str) -> bool {
        word.bytes().all(|byte| byte.is_ascii_digit()) || self.words.contains(word)
    }

    fn word(&mut self, word: &str, is_quoted: bool) -> String {
        let is_kept = (!is_quoted && self.is_ours(word)) || (is_quoted && is_quantity(word));
        // Our sentences name nodes without quotes, and nothing else that could be taken for a word of ours.
        if let Some(substitute) = self.substitutes.get(word)
            && (!is_kept || substitute.starts_with(NODE))
        {
            substitute.clone()
        } else if word.is_empty() || is_kept {
            word.to_owned()
        } else if word.contains('/') || word == ".." {
            self.path(word)
        } else if !is_quoted && word.split('.').any(|part| self.words.contains(part)) {
            // The place of a field: the names of ours in it stay. Numbers do not: they may be those of an address.
            let parts = word.split('.').map(|part| match part {
                part if self.words.contains(part) => part.to_owned(),
                part => self.name("Word", part),
            });
            parts.collect::<Vec<_>>().join(".")
        } else {
            self.name("Word", word)
        }
    }
}

/// A number with a sign, an exponent or a unit: the size that a report may be about. A bare number may be a name.
fn is_quantity(word: &str) -> bool {
    const UNITS: [&str; 14] = [
        "n", "u", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    let number = UNITS.iter().find_map(|unit| word.strip_suffix(unit)).unwrap_or(word);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let is_plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    // An address has more dots.
    is_plain && digits > 0 && word.len() > digits && number.len() - digits <= 3 && number.matches('.').count() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::volume::{NodeReason, SkipReason};

    #[test]
    fn names_keep_their_substitutes() {
        let mut redactor = Redactor::new();
        assert_eq!(redactor.name(NODE, "alpha"), "Node-1");
        assert_eq!(redactor.name("Volume", "beta"), "Volume-1");
        assert_eq!(redactor.name("Claim", "alpha"), "Node-1", "one name, one substitute");
        assert_eq!(redactor.name("Claim", ""), "");
        assert_eq!(
            redactor.path("/opt/local-path-provisioner//alpha/../beta_alpha_gamma/"),
            "/opt/local-path-provisioner//Node-1/../Volume-1_Node-1_Directory-1/"
        );
        assert_eq!(
            redactor.path("/opt/local-path-provisioner-2/x"),
            "/Directory-2/Directory-3/Directory-4"
        );
    }

    /// Nodes are called so where a provider has no better names: each sentence that names one, and nodes that hold nothing.
    #[test]
    fn a_name_that_is_an_address_does_not_stay() {
        let skipped = |name: &str, reason: SkipReason, detail: &str| Skipped {
            persistent_volume: name.to_owned(),
            reason,
            detail: detail.to_owned(),
            facts: None,
        };
        let plan = Plan {
            skipped: vec![
                skipped(
                    "a",
                    SkipReason::NodeGone,
                    "the pods of its claim ran on 10.1.2.3, which is gone",
                ),
                skipped(
                    "b",
                    SkipReason::PodsOnSeveralNodes,
                    "the pods of claim shop/data are on 10.1.2.4, 10.1.2.5",
                ),
                skipped("c", SkipReason::FilteredByNode, "node 10.1.2.4"),
                skipped("d", SkipReason::FilteredByNode, "node 10.1.2.6.local"),
            ],
            nodes_not_scanned: [("10.1.2.4".to_owned(), NodeReason::NoVolumes)].into(),
            ..Plan::default()
        };
        let redacted = Redactor::new().plan(plan);
        let details: Vec<&str> = redacted.skipped.iter().map(|one| one.detail.as_str()).collect();
        assert_eq!(
            details,
            [
                "the pods of its claim ran on Word-1, which is gone",
                "the pods of claim Directory-1/Directory-2 are on Node-1, Word-2",
                "node Node-1",
                "node Word-3.Word-4.Word-5.Word-6.local",
            ]
        );
        assert!(redacted.nodes_not_scanned.contains_key("Node-1"));
    }

    #[test]
    fn sentences_keep_our_words_only() {
        let mut redactor = Redactor::new();
        // Names that are words of ours are names all the same.
        redactor.name(NODE, "local");
        redactor.name(NODE, "4711");
        for (sentence, expected) in [
            (
                "cannot use path \"/srv/path\": it is relative, write an absolute one",
                "cannot use path \"/Directory-1/Directory-2\": it is relative, write an absolute one",
            ),
            (
                "its node affinity matches no node: kubernetes.io/hostname in [\"local\", \"node\"]",
                "its node affinity matches no node: kubernetes.io/hostname in [\"Node-1\", \"Word-1\"]",
            ),
            (
                "metadata.labels.team: invalid type: integer `7`, expected a string at line 1 column 30",
                "metadata.labels.Word-2: invalid type: integer `Word-3`, expected a string at line 1 column 30",
            ),
            ("example.com/zone in [\"\"]", "Directory-3/Directory-4 in [\"\"]"),
            ("its source is hostPath", "its source is hostPath"),
            ("its source is local", "its source is Node-1"),
            ("node 4711 has 12 volumes", "node Node-2 has 12 volumes"),
        ] {
            assert_eq!(redactor.sentence(sentence), expected);
        }
    }
}
