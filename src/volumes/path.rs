//! Paths of volumes in normal form, and the base directory that each lies below.
//!
//! A path comes from a PersistentVolume and is hostile. The normal form is absolute, has no empty, `.` or `..` component and
//! no trailing slash, so that two volumes on one directory compare equal and a base is found by its components. Nothing
//! here looks at a file system: symbolic links are the worker's matter.

use thiserror::Error;

use super::quantity::excerpt;

/// The longest path that Linux opens, in bytes: `PATH_MAX` (4096) less the terminating NUL.
const PATH_MAX_BYTES: usize = 4095;

/// The longest name of a directory entry on Linux, in bytes: `NAME_MAX`.
const COMPONENT_MAX_BYTES: usize = 255;

/// Why a path has no normal form. Each names the path, cut to a bounded length.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathError {
    /// There is no path at all.
    #[error("cannot use an empty path: write an absolute one, such as /opt/local-path-provisioner")]
    Empty,
    /// The path does not start with a slash.
    #[error("cannot use path {path:?}: it is relative, write an absolute one")]
    Relative {
        /// The beginning of the path.
        path: String,
    },
    /// The path is `/` or another spelling of it.
    #[error("cannot use path {path:?}: it is the root directory, name a directory below it")]
    Root {
        /// The beginning of the path.
        path: String,
    },
    /// A component is `..`, whose meaning depends on symbolic links.
    #[error("cannot use path {path:?}: it has a component \"..\", write it without")]
    ParentComponent {
        /// The beginning of the path.
        path: String,
    },
    /// There is a NUL, which no file name holds.
    #[error("cannot use path {path:?}: it holds a NUL character")]
    Nul {
        /// The beginning of the path.
        path: String,
    },
    /// The normal form is longer than Linux opens.
    #[error("cannot use path {path:?}: it is longer than {PATH_MAX_BYTES} bytes, the most that Linux opens")]
    TooLong {
        /// The beginning of the path.
        path: String,
    },
    /// A component is longer than a file name may be on Linux.
    #[error(
        "cannot use path {path:?}: a component is longer than {COMPONENT_MAX_BYTES} bytes, the most that Linux allows"
    )]
    ComponentTooLong {
        /// The beginning of the path.
        path: String,
    },
}

/// Returns the normal form of an absolute path: `/data//x/./y/` becomes `/data/x/y`.
///
/// # Errors
/// [`PathError`] if the path is empty, relative, the root, too long, or holds `..` or a NUL.
pub fn normalize(path: &str) -> Result<String, PathError> {
    let name = || excerpt(path);
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.contains('\0') {
        return Err(PathError::Nul { path: name() });
    }
    if !path.starts_with('/') {
        return Err(PathError::Relative { path: name() });
    }
    let mut normal = String::new();
    for component in path.split('/') {
        match component {
            "" | "." => continue,
            ".." => return Err(PathError::ParentComponent { path: name() }),
            _ if component.len() > COMPONENT_MAX_BYTES => {
                return Err(PathError::ComponentTooLong { path: name() });
            }
            _ => {}
        }
        normal.push('/');
        normal.push_str(component);
    }
    match normal.len() {
        0 => Err(PathError::Root { path: name() }),
        1..=PATH_MAX_BYTES => Ok(normal),
        _ => Err(PathError::TooLong { path: name() }),
    }
}

/// The directories below which volumes are looked for, each in normal form and named once. One may lie inside another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasePaths {
    /// In the order in which they were given: the index of a base is its place here.
    paths: Vec<String>,
}

/// Where a volume's path lies, seen from the base paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located<'path> {
    /// Strictly below a base: the longest one, if several contain it.
    Beneath {
        /// The base's index in [`BasePaths::as_slice`].
        base: usize,
        /// The path from the base on, without a leading slash, never empty.
        relative: &'path str,
    },
    /// It is a base itself, and below no other: measuring it would count every volume of that base.
    IsBase {
        /// The base's index in [`BasePaths::as_slice`].
        base: usize,
    },
    /// It is neither a base nor below one.
    Outside,
}

impl BasePaths {
    /// Brings each path to its normal form and leaves out the ones named before.
    ///
    /// # Errors
    /// [`PathError`] of the first path that has no normal form, as the root and relative ones have none.
    pub fn new<'path>(paths: impl IntoIterator<Item = &'path str>) -> Result<Self, PathError> {
        let mut unique = Vec::new();
        for path in paths {
            let path = normalize(path)?;
            if !unique.contains(&path) {
                unique.push(path);
            }
        }
        Ok(Self { paths: unique })
    }

    /// The bases in normal form, in the order in which they were given; indices of [`Located`] point into it.
    pub fn as_slice(&self) -> &[String] {
        &self.paths
    }

    /// Finds the longest base that contains a path strictly, by whole components: `/data1` does not contain `/data10/x`.
    /// The path must come from [`normalize`].
    pub fn find<'path>(&self, normalized_path: &'path str) -> Located<'path> {
        let longest = self
            .paths
            .iter()
            .enumerate()
            .filter_map(|(base, base_path)| {
                let relative = normalized_path.strip_prefix(base_path.as_str())?.strip_prefix('/')?;
                Some((base, relative))
            })
            .min_by_key(|(_, relative)| relative.len());
        if let Some((base, relative)) = longest {
            return Located::Beneath { base, relative };
        }
        match self.paths.iter().position(|base_path| base_path == normalized_path) {
            Some(base) => Located::IsBase { base },
            None => Located::Outside,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check_normal(path: &str, expected: Result<&str, PathError>) {
        assert_eq!(normalize(path), expected.map(str::to_owned), "{path:?}");
    }

    #[test]
    fn normal_forms() {
        for (path, normal) in [
            ("/data", "/data"),
            ("/data/", "/data"),
            ("//data///x//", "/data/x"),
            ("/./data/./x/.", "/data/x"),
            ("/data/...", "/data/..."),
            ("/data/..x", "/data/..x"),
            ("/data/.x", "/data/.x"),
            ("/data/x y\n", "/data/x y\n"),
            ("/dätä", "/dätä"),
        ] {
            check_normal(path, Ok(normal));
        }
        let long = format!("/{}", ["x"; 2047].join("/"));
        assert_eq!(long.len(), 4094);
        check_normal(&long, Ok(&long));
        check_normal(&format!("{}{long}", "/".repeat(10_000)), Ok(&long));
        let name = format!("/{}", "x".repeat(COMPONENT_MAX_BYTES));
        check_normal(&name, Ok(&name));
    }

    #[test]
    fn refusals() {
        check_normal("", Err(PathError::Empty));
        for path in ["data", "./data", "../data", ".", " /data", "C:\\data"] {
            check_normal(path, Err(PathError::Relative { path: path.to_owned() }));
        }
        for path in ["/", "//", "/.", "/./", "/././/"] {
            check_normal(path, Err(PathError::Root { path: path.to_owned() }));
        }
        for path in ["/..", "/data/..", "/data/../x", "/../data"] {
            check_normal(path, Err(PathError::ParentComponent { path: path.to_owned() }));
        }
        for path in ["/data\0", "\0", "/\0/x"] {
            check_normal(path, Err(PathError::Nul { path: path.to_owned() }));
        }
        let name = format!("/{}", "x".repeat(COMPONENT_MAX_BYTES + 1));
        check_normal(&name, Err(PathError::ComponentTooLong { path: excerpt(&name) }));
        let long = "/xxx".repeat(1024);
        check_normal(&long, Err(PathError::TooLong { path: excerpt(&long) }));
        check_normal(
            &"/xxx".repeat(1_000_000),
            Err(PathError::TooLong { path: excerpt(&long) }),
        );
    }

    #[test]
    fn messages_are_bounded_and_on_one_line() {
        for path in [
            format!("/{}", "\n".repeat(10_000)),
            "\0".repeat(10_000),
            "x".repeat(10_000),
        ] {
            let message = normalize(&path).expect_err("no such path").to_string();
            assert!(message.len() < 500 && !message.contains(['\n', '\0']), "{message}");
        }
    }

    fn bases(paths: &[&str]) -> BasePaths {
        BasePaths::new(paths.iter().copied()).expect("the base paths are good")
    }

    #[test]
    fn bases_are_normal_and_unique() {
        assert_eq!(bases(&["/b/", "/a", "//b", "/a/x"]).as_slice(), ["/b", "/a", "/a/x"]);
        assert_eq!(bases(&[]).find("/a"), Located::Outside);
        for (path, part) in [
            ("/", "root directory"),
            ("data", "relative"),
            ("", "empty"),
            ("/a/../b", "\"..\""),
        ] {
            let message = BasePaths::new(["/good", path]).expect_err("a bad base").to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    fn check_found(base_paths: &[&str], path: &str, expected: Located) {
        assert_eq!(bases(base_paths).find(path), expected, "{path} in {base_paths:?}");
    }

    #[test]
    fn the_longest_base_is_found_by_components() {
        let nested = ["/data", "/data/fast/ssd", "/data/fast"];
        check_found(&nested, "/data/x", Located::Beneath { base: 0, relative: "x" });
        check_found(
            &nested,
            "/data/x/y",
            Located::Beneath {
                base: 0,
                relative: "x/y",
            },
        );
        check_found(&nested, "/data/fast/x", Located::Beneath { base: 2, relative: "x" });
        check_found(&nested, "/data/fast/ssd/x", Located::Beneath { base: 1, relative: "x" });
        check_found(
            &nested,
            "/data/fast/ssd",
            Located::Beneath {
                base: 2,
                relative: "ssd",
            },
        );
        check_found(
            &nested,
            "/data/faster/x",
            Located::Beneath {
                base: 0,
                relative: "faster/x",
            },
        );
        check_found(&nested, "/data", Located::IsBase { base: 0 });
        check_found(&nested, "/dat", Located::Outside);
        check_found(&nested, "/data1", Located::Outside);
        check_found(&["/data1"], "/data10/x", Located::Outside);
        check_found(
            &["/data10", "/data1"],
            "/data1/x",
            Located::Beneath { base: 1, relative: "x" },
        );
        check_found(&["/other", "/data1"], "/data1", Located::IsBase { base: 1 });
    }

    proptest! {
        #[test]
        fn the_normal_form_is_idempotent(path in "\\PC{0,40}", near in "[/.a\\x00]{0,20}", absolute in "(/|/\\.|/a|/b\\.){0,9}") {
            for path in [path, near, absolute] {
                if let Ok(normal) = normalize(&path) {
                    prop_assert_eq!(normalize(&normal), Ok(normal.clone()));
                    prop_assert!(normal[1..].split('/').all(|component| !["", ".", ".."].contains(&component)));
                }
            }
        }

        #[test]
        fn base_and_relative_make_the_path(
            base_paths in prop::collection::vec("(/[ab]{1,2}){1,3}", 0..6),
            path in "(/[ab]{1,2}){1,5}",
        ) {
            let bases = BasePaths::new(base_paths.iter().map(String::as_str)).expect("the base paths are good");
            match bases.find(&path) {
                Located::Beneath { base, relative } => {
                    let base_path = &bases.as_slice()[base];
                    prop_assert_eq!(format!("{base_path}/{relative}"), path.clone());
                    for other in bases.as_slice() {
                        let is_longer_base = other.len() > base_path.len() && path.starts_with(&format!("{other}/"));
                        prop_assert!(!is_longer_base);
                    }
                }
                Located::IsBase { base } => prop_assert_eq!(&bases.as_slice()[base], &path),
                Located::Outside => {
                    for base_path in bases.as_slice() {
                        let is_within = format!("{path}/").starts_with(&format!("{base_path}/"));
                        prop_assert!(!is_within);
                    }
                }
            }
        }
    }
}
