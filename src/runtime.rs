//! The asynchronous runtime that a command runs on.

use std::io;

/// Runs `future` to its end, on a runtime of this thread, and returns what it returns. Blocking work that is not done by then
/// is left behind: a look-up of a name, or a disk, may hang on one of the runtime's threads.
///
/// # Errors
/// The runtime could not be made: the process has too few file descriptors, mostly.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    Ok(output)
}
