//! The claims of the cluster, and what each says of the volume that is bound to it.
//!
//! A volume names its claim, and that claim may be gone, or another one of the same name: only the claim that the volume is
//! really bound to speaks for it ([`Claims::of`]). Labels and annotations are written by whoever owns the claim, so nothing
//! here is believed unread.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::quantity::excerpt;
use super::volume::{ClaimReference, Volume};

/// A claim with this label and the value `false` is not measured.
pub const MEASURE_LABEL: &str = "lp-exporter/measure";
/// A claim with this label and the value `false` wants no alerts.
pub const ALERT_LABEL: &str = "lp-exporter/alert";
/// The annotation with a claim's own threshold, in percent of its capacity.
pub const ALERT_PERCENT_ANNOTATION: &str = "lp-exporter/alert-percent";

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its namespace, name and uid.
    pub reference: ClaimReference,
    /// `spec.volumeName`: the volume that it is bound to, or asks for.
    pub volume: Option<String>,
    /// Whether it is Lost: the volume that it was bound to is gone.
    pub is_lost: bool,
    /// `spec.resources.requests.storage` in bytes, as it stands now; `None` where it is missing or makes no sense.
    pub requested_bytes: Option<u64>,
    /// Those of its labels that anything looks at.
    pub labels: BTreeMap<String, String>,
    /// The annotation [`ALERT_PERCENT_ANNOTATION`], as it is written.
    pub alert_percent: Option<String>,
}

impl Claim {
    /// Whether its owner wants it left out.
    pub fn is_opted_out(&self) -> bool {
        self.says_false(MEASURE_LABEL)
    }

    /// Whether its owner wants no alerts.
    pub fn is_alert_disabled(&self) -> bool {
        self.says_false(ALERT_LABEL)
    }

    fn says_false(&self, label: &str) -> bool {
        self.labels.get(label).is_some_and(|value| value == "false")
    }

    /// Its own threshold, if it has one.
    ///
    /// # Errors
    /// What is wrong with the annotation.
    pub fn alert_percent(&self) -> Result<Option<u8>, String> {
        let Some(text) = self.alert_percent.as_deref() else {
            return Ok(None);
        };
        // `+5` and `0080` are nothing that anyone means.
        let is_plain = text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u8>() {
            Ok(percent) if is_plain && (1..=100).contains(&percent) => Ok(Some(percent)),
            _ => Err(format!(
                "the annotation {ALERT_PERCENT_ANNOTATION} of claim {}/{} is {:?}: write a whole number from 1 to 100",
                self.reference.namespace,
                self.reference.name,
                excerpt(text)
            )),
        }
    }
}

/// The claims of the cluster, arranged to be found.
#[derive(Debug, Default)]
pub struct Claims {
    by_namespace: HashMap<Arc<str>, HashSet<ByName>>,
    /// How many there are that could not be read.
    unreadable: usize,
}

impl Claims {
    /// Arranges the claims.
    pub fn new(claims: impl IntoIterator<Item = Claim>) -> Claims {
        let mut arranged = Claims::default();
        claims.into_iter().for_each(|claim| arranged.add(claim));
        arranged
    }

    /// Takes one more claim.
    pub fn add(&mut self, claim: Claim) {
        self.by_namespace
            .entry(claim.reference.namespace.clone())
            .or_default()
            .replace(ByName(Box::new(claim)));
    }

    /// Counts a claim that cannot be read: what it wants is not known, and its volume is treated as one without a claim.
    pub fn add_unreadable(&mut self) {
        self.unreadable += 1;
    }

    /// How many claims could not be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    /// The claim that a volume is bound to, as long as it is there. A claim that was deleted and made again under the same
    /// name is another claim, and so is one that is bound to another volume.
    pub fn of(&self, volume: &Volume) -> Option<&Claim> {
        let named = volume.claim.as_ref()?;
        let ByName(claim) = self.by_namespace.get(&named.namespace)?.get(named.name.as_str())?;
        let is_another = match (&named.uid, &claim.reference.uid) {
            (Some(bound), Some(live)) => bound != live,
            _ => false,
        };
        let is_elsewhere = claim.volume.as_ref().is_some_and(|bound| *bound != volume.name);
        (!is_another && !is_elsewhere).then_some(claim)
    }

    /// Every claim whose volume is gone, as `namespace/name`, in order.
    pub fn lost(&self) -> Vec<String> {
        let claims = self.by_namespace.values().flatten().map(|ByName(claim)| claim);
        let mut lost: Vec<String> = claims
            .filter(|claim| claim.is_lost)
            .map(|claim| format!("{}/{}", claim.reference.namespace, claim.reference.name))
            .collect();
        lost.sort();
        lost
    }
}

/// A claim that is found by its name. A map would hold the name twice, and room for twice as many claims as there are.
#[derive(Debug)]
struct ByName(Box<Claim>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.reference.name
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &ByName) -> bool {
        Borrow::<str>::borrow(self) == Borrow::<str>::borrow(other)
    }
}

impl Eq for ByName {}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::{claim_of, volume};

    #[test]
    fn only_the_claim_that_is_bound_speaks_for_a_volume() {
        let volume = |uid: Option<&str>| {
            let mut volume = volume("pv");
            volume.claim.as_mut().expect("it has one").uid = uid.map(str::to_owned);
            volume
        };
        for (bound, live, claims_volume, expected) in [
            (Some("1"), Some("1"), Some("pv"), true),
            // Deleted and made again.
            (Some("1"), Some("2"), Some("pv"), false),
            (Some("1"), Some("2"), None, false),
            // Reserved by hand for a claim that went elsewhere, or came.
            (None, Some("2"), Some("other"), false),
            (None, Some("2"), Some("pv"), true),
            (None, Some("2"), None, true),
            (Some("1"), None, None, true),
        ] {
            let mut claim = claim_of(&volume(bound));
            claim.reference.uid = live.map(str::to_owned);
            claim.volume = claims_volume.map(str::to_owned);
            let claims = Claims::new([claim]);
            let found = claims.of(&volume(bound)).is_some();
            assert_eq!(found, expected, "{bound:?} {live:?} {claims_volume:?}");
        }
        assert_eq!(Claims::default().of(&volume(None)), None, "deleted");
    }

    #[test]
    fn lost_claims_are_told() {
        let lost = |name: &str| {
            let mut claim = claim_of(&volume(name));
            claim.is_lost = true;
            claim
        };
        let claims = Claims::new([lost("b"), claim_of(&volume("c")), lost("a")]);
        assert_eq!(claims.lost(), ["default/claim-of-a", "default/claim-of-b"]);
    }

    #[test]
    fn thresholds_are_checked() {
        for (text, expected) in [
            (None, Some(None)),
            (Some("1"), Some(Some(1))),
            (Some("85"), Some(Some(85))),
            (Some("100"), Some(Some(100))),
            (Some("0"), None),
            (Some("101"), None),
            (Some("256"), None),
            (Some("-5"), None),
            (Some("+5"), None),
            (Some("0080"), None),
            (Some("80%"), None),
            (Some(" 80"), None),
            (Some("8e1"), None),
            (Some(""), None),
            (Some("80.5"), None),
        ] {
            let mut claim = claim_of(&volume("pv"));
            claim.alert_percent = text.map(str::to_owned);
            assert_eq!(claim.alert_percent().ok(), expected, "{text:?}");
        }
        let mut claim = claim_of(&volume("pv"));
        claim.alert_percent = Some("\n\u{1b}[31m".repeat(10_000));
        let why = claim.alert_percent().expect_err("it is no number");
        assert!(why.len() < 500 && !why.contains(['\n', '\u{1b}']), "{why}");
    }

    #[test]
    fn only_false_is_a_wish() {
        for (value, expected) in [
            (Some("false"), true),
            (Some("true"), false),
            (Some("no"), false),
            (Some(""), false),
            (None, false),
        ] {
            let mut claim = claim_of(&volume("pv"));
            for label in [MEASURE_LABEL, ALERT_LABEL] {
                let value = value.map(str::to_owned);
                claim.labels.extend(value.map(|value| (label.to_owned(), value)));
            }
            assert_eq!(
                (claim.is_opted_out(), claim.is_alert_disabled()),
                (expected, expected),
                "{value:?}"
            );
        }
    }
}
