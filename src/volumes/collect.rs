//! Which families of metrics a run collects: the control over how many series there are.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A group of families that is collected together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Collected {
    /// What each volume has, was asked for and uses, and how its measuring ended.
    Volumes,
    /// The inodes of each volume.
    Inodes,
    /// The apparent size of each volume.
    Apparent,
    /// The file systems below the base paths.
    Filesystems,
    /// Directories that no volume owns.
    Orphans,
    /// Facts of each volume, measured or not, and what its claim wants of the alerts.
    Facts,
}

impl Collected {
    /// Every one.
    pub const ALL: [Collected; 6] = [
        Collected::Volumes,
        Collected::Inodes,
        Collected::Apparent,
        Collected::Filesystems,
        Collected::Orphans,
        Collected::Facts,
    ];

    /// Its name, as it is given to `--collect`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Collected::Volumes => "volumes",
            Collected::Inodes => "inodes",
            Collected::Apparent => "apparent",
            Collected::Filesystems => "filesystems",
            Collected::Orphans => "orphans",
            Collected::Facts => "facts",
        }
    }
}

/// A text that names nothing that can be collected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("write one or more of volumes, inodes, apparent, filesystems, orphans and facts")]
pub struct UnknownCollected;

impl FromStr for Collected {
    type Err = UnknownCollected;

    fn from_str(text: &str) -> Result<Collected, UnknownCollected> {
        let found = Collected::ALL.into_iter().find(|one| one.as_str() == text.trim());
        found.ok_or(UnknownCollected)
    }
}

/// What a run collects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect(BTreeSet<Collected>);

impl Collect {
    /// Collects these.
    pub fn new(collected: impl IntoIterator<Item = Collected>) -> Collect {
        Collect(collected.into_iter().collect())
    }

    /// Collects everything.
    pub fn everything() -> Collect {
        Collect::new(Collected::ALL)
    }

    /// Whether something is collected.
    pub fn contains(&self, collected: Collected) -> bool {
        self.0.contains(&collected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for one in Collected::ALL {
            assert_eq!(one.as_str().parse(), Ok(one));
            let json = serde_json::to_string(&one).expect("a name");
            assert_eq!(json, format!("{:?}", one.as_str()), "the plan has the same name");
        }
        for text in ["", "Volumes", "volume", "volumes,inodes"] {
            assert_eq!(text.parse::<Collected>(), Err(UnknownCollected), "{text:?}");
        }
        let some = Collect::new([" facts".parse().expect("a name"), Collected::Volumes]);
        assert!(some.contains(Collected::Facts) && !some.contains(Collected::Orphans));
        assert!(
            Collected::ALL
                .into_iter()
                .all(|one| Collect::everything().contains(one))
        );
    }
}
