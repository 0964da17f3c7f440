//! Steps that a test arms.
//!
//! An armed step is a file in the directory that `TREFOIL_FAULTS` names, of any name, with five words: the step, the operation, the
//! key ids, the number of the hit, and what happens then, `kill` (SIGKILL) or `stop` (SIGSTOP, until somebody sends SIGCONT).
//! `*` stands for any; several alternatives are separated by `|`.
//!
//! ```text
//! decided recover 5f17a1506031d005aacaa9363cbbfb27|0c0d… 1 kill
//! ```
//!
//! It happens once: the process takes the file away first, and of several processes that share a directory only the one that
//! succeeds in that obeys it. Files that come while a process runs count from then on. To be complete when it is seen, a file should be
//! renamed into the directory, or have been written elsewhere on the same disk.

use rustix::process::{Signal, getpid, kill_process};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

/// How often each armed step, by the name of its file, was reached in this process.
type Reached = Mutex<HashMap<OsString, u32>>;

/// The directory, where there is one.
static ARMED: LazyLock<Option<(PathBuf, Reached)>> =
    LazyLock::new(|| Some((PathBuf::from(std::env::var_os("TREFOIL_FAULTS")?), Reached::default())));

/// This process reaches a step, and fails if it is armed.
pub(super) fn reach(name: &str, op: &str, key_id: &str) {
    let Some((directory, reached)) = &*ARMED else { return };
    let Some(signal) = armed(directory, reached, [name, op, key_id]) else { return };
    tracing::warn!(step = name, op, key = key_id, ?signal, "fault");
    if let Err(error) = kill_process(getpid(), signal) {
        tracing::error!(%error, "the fault did not happen");
    }
}

/// The signal of an armed step that is reached for the right time, and is taken away with that.
fn armed(directory: &Path, reached: &Reached, step: [&str; 3]) -> Option<Signal> {
    let mut reached = reached.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = None;
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        let words: Vec<&str> = text.split_whitespace().collect();
        let [name, op, key, nth, what] = words.as_slice() else { continue };
        let matches = |(pattern, word): (&str, &str)| pattern.split('|').any(|one| one == "*" || one == word);
        if ![*name, *op, *key].into_iter().zip(step).all(matches) {
            continue;
        }
        let hits = reached.entry(entry.file_name()).or_default();
        *hits = hits.saturating_add(1);
        if nth.parse() == Ok(*hits) && found.is_none() && std::fs::remove_file(entry.path()).is_ok() {
            found = Some(if *what == "stop" { Signal::STOP } else { Signal::KILL });
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_step_fires_once_and_at_its_hit() {
        let directory = tempfile::tempdir().unwrap();
        let reached = Reached::default();
        let reach = |step: [&str; 3]| armed(directory.path(), &reached, step);
        assert_eq!(reach(["decided", "recover", "aa"]), None);
        std::fs::write(directory.path().join("1"), "decided recover aa|bb 2 kill").unwrap();
        std::fs::write(directory.path().join("2"), "session * * 1 stop").unwrap();
        for other in [["decided", "recover", "cc"], ["decided", "sign", "aa"], ["followed", "recover", "aa"]] {
            assert_eq!(reach(other), None);
        }
        assert_eq!(reach(["decided", "recover", "aa"]), None);
        assert_eq!(reach(["decided", "recover", "bb"]), Some(Signal::KILL));
        assert_eq!(reach(["decided", "recover", "bb"]), None);
        assert_eq!(reach(["session", "sign", "aa"]), Some(Signal::STOP));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
