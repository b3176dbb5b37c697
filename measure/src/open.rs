//! From a base directory to the volume's directory, never leaving it.

use std::path::{Component, Path};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat};
use rustix::io::Errno;

use crate::{State, Target};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a target's directory, or says why not.
pub(crate) fn target(target: &Target) -> Result<OwnedFd, (State, String)> {
    let base = openat(
        CWD,
        &target.base,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| {
        let state = if error == Errno::NOENT {
            State::BaseMissing
        } else {
            state_of(error)
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
        return Err((
            State::EscapesBase,
            format!("{} is not a plain path inside its base", target.relative.display()),
        ));
    }
    if target.relative.as_os_str().is_empty() {
        return Ok(base);
    }
    let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = match openat2(&base, &target.relative, DIRECTORY, Mode::empty(), flags) {
        Err(Errno::NOSYS | Errno::PERM) => component_wise(base, &target.relative),
        other => other,
    };
    opened.map_err(|error| {
        (
            state_of(error),
            format!("cannot open {}: {error}", target.relative.display()),
        )
    })
}

/// Opens a directory's child as a directory; [`Errno::XDEV`] where a mount begins.
pub(crate) fn child(parent: impl AsFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(parent, name, DIRECTORY, Mode::empty(), flags)
}

fn component_wise(base: OwnedFd, relative: &Path) -> Result<OwnedFd, Errno> {
    let mut directory = base;
    for part in relative.components() {
        let name = part.as_os_str();
        directory = openat(&directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(|error| {
            // O_DIRECTORY with O_NOFOLLOW says the same of a link as of a file.
            match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Errno::LOOP,
                _ => error,
            }
        })?;
    }
    Ok(directory)
}

/// The state that an error leaves a target in.
pub(crate) fn state_of(error: Errno) -> State {
    match error {
        Errno::NOENT => State::Missing,
        Errno::NOTDIR => State::NotADirectory,
        Errno::LOOP | Errno::XDEV => State::EscapesBase,
        Errno::ACCESS | Errno::PERM => State::PermissionDenied,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => State::OutOfResources,
        _ => State::IoError,
    }
}
