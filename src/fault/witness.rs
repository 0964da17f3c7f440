//! What node 1 sees of its sessions, for a test that looks for two at a time on one key.
//!
//! `TREFOIL_WITNESS` names a file to which the process adds a line for each thing that happens, at the moment it happens:
//!
//! | line | meaning |
//! |---|---|
//! | `start <process id>` | the process begins; whatever sessions another one had are gone |
//! | `begin <session> <kind> <key> <job>` | a session takes its key's turn: `signing` or `resharing` |
//! | `free <session>` | it hands the turn on, since nothing more is to be released in it |
//! | `gone <session>` | it ended: closed, timed out, preempted, or replaced |
//! | `signs <session>` | a signature, or a part of a batch, is about to leave |
//!
//! The lines are about sessions and not about the table of turns, and are not what anything is decided by: were the table wrong, they would
//! show it. They have no secrets in them.

use std::fmt::Arguments;
use std::fs::File;
use std::io::Write;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The file, where there is one.
static SEEN: LazyLock<Option<Mutex<File>>> = LazyLock::new(|| {
    let path = std::env::var_os("TREFOIL_WITNESS")?;
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let mut file = opened.inspect_err(|error| tracing::error!(%error, "nothing is witnessed")).ok()?;
    let written = writeln!(file, "start {}", std::process::id());
    written.inspect_err(|error| tracing::error!(%error, "nothing is witnessed")).ok()?;
    Some(Mutex::new(file))
});

/// Adds a line, in one write: whoever kills the process cannot cut it.
pub(super) fn write(line: Arguments<'_>) {
    let Some(file) = &*SEEN else { return };
    let line = format!("{line}\n");
    if let Err(error) = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes()) {
        tracing::error!(%error, "not witnessed");
    }
}
