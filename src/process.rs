//! What the service processes have in common around their work: how they end, and when.

use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a process' work with logging: exit code 0, or 1 with the whole reason in the log.
#[must_use]
pub fn run(work: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    crate::logging::init();
    crate::fault::warn();
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
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
