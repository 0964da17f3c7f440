//! What the service processes have in common around their work: how they end, and when.

use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a process' work with logging: exit code 0, or 1 with the whole reason in the log.
#[must_use]
pub fn run(work: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let _logs = crate::logging::init();
    crate::fault::warn();
    keep_memory();
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps this process' memory, which holds keys and passwords, out of core dumps, and from debuggers of the same user. The limit would do
/// where dumps are files; a handler of dumps gets them whatever the limit is, but not of a process that is not dumpable.
fn keep_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "the limit of core dumps was not set to zero");
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "the process can be dumped");
        }
    }
}

/// Completes at SIGTERM or SIGINT. The signals are caught from this call on.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
