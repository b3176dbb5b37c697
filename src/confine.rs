//! The worker's own system call filter.
//!
//! A worker holds CAP_DAC_READ_SEARCH, and with that capability a process of uid 0 can open any file of a mounted file
//! system by a handle, outside of its mounts too, under the container runtimes' default seccomp profile. The filter allows
//! what measuring and pushing need and refuses the rest, that call first of all, with ENOSYS: newer calls are then tried by
//! their older forms, as on an older kernel.

use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use thiserror::Error;

/// What the worker and the libraries in it call.
const ALLOWED: &[libc::c_long] = &[
    // Reading directories and files.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fadvise64,
    // The log and the termination message.
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_ftruncate,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and their priority.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_setpriority,
    libc::SYS_getpriority,
    libc::SYS_ioprio_set,
    libc::SYS_ioprio_get,
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_tgkill,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals and time.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // The runtime's waiting, and the network.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_socketpair,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
];

/// The older forms that the C library still uses where the architecture has them.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_pipe,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLDER: &[libc::c_long] = &[];

/// Why a process could not confine itself.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// There is no filter for this architecture.
    #[error("no system call filter could be made for this architecture: {0}")]
    Build(#[source] seccompiler::BackendError),
    /// The kernel refuses the filter.
    #[error("the kernel did not take the system call filter: {0}")]
    Install(#[source] seccompiler::Error),
}

/// Confines this thread, and every thread that it makes from now on. Call it before any other thread exists.
///
/// # Errors
/// See [`ConfineError`]; the process then goes on unconfined if the caller wants.
pub fn confine() -> Result<(), ConfineError> {
    let rules = ALLOWED
        .iter()
        .chain(ALLOWED_OLDER)
        .map(|call| (*call, Vec::new()))
        .collect();
    let refuse = SeccompAction::Errno(libc::ENOSYS as u32);
    let architecture = std::env::consts::ARCH.try_into().map_err(ConfineError::Build)?;
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture).map_err(ConfineError::Build)?;
    let program: BpfProgram = filter.try_into().map_err(ConfineError::Build)?;
    seccompiler::apply_filter(&program).map_err(ConfineError::Install)
}

/// Whether the filter refuses `open_by_handle_at`, found out by calling it. The kernel itself never answers ENOSYS to that
/// call (it would complain of the arguments), and the runtimes' profiles answer EPERM, so ENOSYS is the filter's.
pub fn refuses_open_by_handle() -> bool {
    // SAFETY: with a null handle the kernel opens nothing: it answers EFAULT where no filter answers before.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::syscall(libc::SYS_open_by_handle_at, -1, std::ptr::null::<u8>(), 0) };
    answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
}
