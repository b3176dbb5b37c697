//! From a base directory to the volume's directory, and from a directory to its children, never leaving.
//!
//! One call does it, openat2: beneath this directory, through no symbolic link, across no mount. Where it is missing
//! (before Linux 5.6) or refused (some seccomp profiles), each component is opened by itself without following links,
//! and a mount is told by its id. Both give the same guarantee: whatever is swapped meanwhile, what is opened was
//! reached from the base by names alone.

use std::ffi::CStr;
use std::path::{Component, Path};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, statat};
use rustix::io::Errno;

use crate::mounts::{self, MountId};
use crate::{State, Target};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
/// openat2 asks to be called again when a rename happened on the way; a few times are plenty for one component.
const RETRIES: usize = 100;

/// How this kernel lets us open things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    Openat2,
    StepByStep,
}

impl Opener {
    /// Tries it once.
    pub(crate) fn find() -> Opener {
        match openat2(CWD, c".", PLACE, Mode::empty(), BENEATH) {
            Err(Errno::NOSYS | Errno::PERM) => Opener::StepByStep,
            _ => Opener::Openat2,
        }
    }

    /// Opens a target's directory, or says why not.
    pub(crate) fn target(self, target: &Target) -> Result<OwnedFd, (State, String)> {
        let base = openat(CWD, &target.base, DIRECTORY, Mode::empty()).map_err(|error| {
            let state = match error {
                Errno::NOENT | Errno::NAMETOOLONG => State::BaseMissing,
                // Links are followed here, so it is the links' own fault: they go round in a circle.
                Errno::LOOP => State::NotADirectory,
                other => state_of_path(other),
            };
            (
                state,
                format!("cannot open the base directory {}: {error}", target.base.display()),
            )
        })?;
        if target
            .relative
            .components()
            .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
        {
            let detail = format!("{} is not a plain path inside its base", target.relative.display());
            return Err((State::EscapesBase, detail));
        }
        if target.relative.as_os_str().is_empty() {
            return Ok(base);
        }
        let opened = match self {
            Opener::Openat2 => match again(|| openat2(&base, &target.relative, DIRECTORY, Mode::empty(), BENEATH)) {
                // It may be the path that is too long for one call, and not a name in it.
                Err(Errno::NAMETOOLONG) => step_by_step(base, &target.relative),
                other => other,
            },
            Opener::StepByStep => step_by_step(base, &target.relative),
        };
        opened.map_err(|error| {
            let cause = match error {
                // The kernel's words for it speak of too many links, and there is but one.
                Errno::LOOP => "a symbolic link stands on the way, which is not followed".to_owned(),
                other => other.to_string(),
            };
            let detail = format!("cannot open {}: {cause}", target.relative.display());
            (state_of_path(error), detail)
        })
    }

    /// Opens a directory's child as a directory. [`Errno::XDEV`] where a mount begins; [`Errno::NOTDIR`] or
    /// [`Errno::LOOP`] if it is something else by now. `mount` is the parent's; without openat2 only.
    pub(crate) fn child(self, parent: BorrowedFd, name: &CStr, mount: Option<MountId>) -> Result<OwnedFd, Errno> {
        match self {
            Opener::Openat2 => {
                again(|| openat2(parent, name, DIRECTORY, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV))
            }
            Opener::StepByStep => {
                let child = openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
                same_mount(child, mount)
            }
        }
    }

    /// Opens the directory above. [`Errno::XDEV`] where its mount begins.
    pub(crate) fn above(self, directory: BorrowedFd, mount: Option<MountId>) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self {
            Opener::Openat2 => again(|| openat2(directory, c"..", flags, Mode::empty(), ResolveFlags::NO_XDEV)),
            Opener::StepByStep => same_mount(openat(directory, c"..", flags, Mode::empty())?, mount),
        }
    }

    /// Whether a mount covers this name.
    pub(crate) fn is_mount_point(self, parent: BorrowedFd, name: &CStr, mount: Option<MountId>) -> Result<bool, Errno> {
        let opened = match self {
            Opener::Openat2 => again(|| openat2(parent, name, PLACE, Mode::empty(), BENEATH | ResolveFlags::NO_XDEV)),
            Opener::StepByStep => same_mount(openat(parent, name, PLACE, Mode::empty())?, mount),
        };
        match opened {
            Ok(_) => Ok(false),
            Err(Errno::XDEV) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn again(mut open: impl FnMut() -> Result<OwnedFd, Errno>) -> Result<OwnedFd, Errno> {
    for _ in 0..RETRIES {
        match open() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    open()
}

fn same_mount(opened: OwnedFd, mount: Option<MountId>) -> Result<OwnedFd, Errno> {
    if Some(mounts::id(opened.as_fd())?) == mount {
        Ok(opened)
    } else {
        Err(Errno::XDEV)
    }
}

fn step_by_step(base: OwnedFd, relative: &Path) -> Result<OwnedFd, Errno> {
    let mut directory = base;
    for part in relative.components() {
        let name = part.as_os_str();
        directory = openat(&directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(|error| {
            // O_DIRECTORY with O_NOFOLLOW says the same of a link as of a file.
            match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if file_type(&stat) == FileType::Symlink => Errno::LOOP,
                _ => error,
            }
        })?;
    }
    Ok(directory)
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The state of a target whose path could not be opened.
pub(crate) fn state_of_path(error: Errno) -> State {
    match error {
        // No file system holds a name that is too long for it.
        Errno::NOENT | Errno::NAMETOOLONG => State::Missing,
        Errno::NOTDIR => State::NotADirectory,
        Errno::LOOP | Errno::XDEV => State::EscapesBase,
        other => state_of_place(other),
    }
}

/// The state of a target inside which something could not be read.
pub(crate) fn state_of_place(error: Errno) -> State {
    match error {
        Errno::ACCESS | Errno::PERM => State::PermissionDenied,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => State::OutOfResources,
        _ => State::IoError,
    }
}

/// What is told of a place inside a target that could not be read.
pub(crate) fn cause_at_place(error: Errno) -> String {
    match error {
        // No link is followed there, so it is not about those.
        Errno::LOOP => "the file system shows a directory inside itself (os error 40)".to_owned(),
        Errno::STALE => format!("{error}: it was moved, replaced or removed meanwhile"),
        other => other.to_string(),
    }
}
