//! The few calls that rustix does not have. The only file with unsafe code: each function is a plain system call whose
//! pointers come from slices of the caller's.
#![allow(unsafe_code)]

use std::time::Duration;

use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;

/// Fills the buffer with `linux_dirent64` records and says how many bytes it holds now; 0 at the directory's end.
pub(crate) fn getdents(directory: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the descriptor is borrowed for the call, and the kernel writes at most `len` bytes into a buffer that is
    // borrowed mutably for as long.
    let filled = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_fd().as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(filled).map_err(|_| last_error())
}

/// Puts the calling thread into the idle I/O class, which is served when nobody else asks. Disks without an I/O
/// scheduler take no notice of it.
pub(crate) fn idle_io_class() -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1; // means a thread, despite its name
    const THIS_THREAD: libc::c_int = 0;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    // SAFETY: three integers, no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, THIS_THREAD, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// The time that a thread of this process spent on a processor. Unlike /proc it is exact for one that runs just now, and
/// not as old as the scheduler's last tick.
pub(crate) fn processor_time(thread: u32) -> Option<Duration> {
    const OF_A_THREAD: libc::clockid_t = 4;
    const SCHEDULER: libc::clockid_t = 2;
    let thread = libc::clockid_t::try_from(thread).ok()?;
    let clock = (!thread << 3) | OF_A_THREAD | SCHEDULER;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec into a variable that outlives the call.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    let is_told = result == 0;
    is_told.then(|| {
        Some(Duration::new(
            u64::try_from(time.tv_sec).ok()?,
            u32::try_from(time.tv_nsec).ok()?,
        ))
    })?
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
