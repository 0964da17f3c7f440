//! Reads what node 1 wrote of its sessions (`src/fault/witness.rs`), and finds two of one kind on one key at a time.
//!
//! A session has its key's turn from `begin` until `free`, when nothing more is to be released in it, or `gone`; one that is preempted has
//! ended before the next begins. `start` ends all, since sessions are in memory only. It overlaps another if it begins while that has the
//! turn, and if a signature is about to leave in it while it does not have the turn itself.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Sessions that took a key's turn, and those of them that sign.
    pub sessions: u64,
    pub signing: u64,
    /// Keys of the sessions.
    pub keys: usize,
    /// Signatures and parts of batches that were about to leave.
    pub released: u64,
    /// Starts of the process.
    pub starts: u64,
    /// What overlapped, with key and jobs.
    pub overlaps: Vec<String>,
}

/// Reads a witness' file.
pub fn read(path: &Path) -> Seen {
    seen(&std::fs::read_to_string(path).unwrap_or_default())
}

fn seen(text: &str) -> Seen {
    let mut seen = Seen::default();
    // The session that has the turn, by kind and key, with its job; and the other way round.
    let mut turns: HashMap<(&str, &str), (&str, &str)> = HashMap::new();
    let mut sessions: HashMap<&str, (&str, &str)> = HashMap::new();
    let mut keys = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["start", _] => {
                seen.starts += 1;
                turns.clear();
                sessions.clear();
            }
            ["begin", session, kind, key, job] => {
                seen.sessions += 1;
                seen.signing += u64::from(*kind == "signing");
                keys.insert(*key);
                if let Some((other, its_job)) = turns.insert((kind, key), (session, job)) {
                    seen.overlaps.push(format!(
                        "line {}: session {session} (job {job}) began on key {key} ({kind}) while session {other} (job {its_job}) \
                         had its turn",
                        number + 1
                    ));
                }
                sessions.insert(session, (kind, key));
            }
            ["free" | "gone", session] => {
                if let Some(turn) = sessions.remove(session)
                    && turns.get(&turn).is_some_and(|(holder, _)| holder == session)
                {
                    turns.remove(&turn);
                }
            }
            ["signs", session] => {
                seen.released += 1;
                let turn = sessions.get(session).and_then(|turn| turns.get(turn));
                if turn.is_none_or(|(holder, _)| holder != session) {
                    seen.overlaps.push(format!("line {}: session {session} signs without its key's turn", number + 1));
                }
            }
            _ => seen.overlaps.push(format!("line {}: unreadable: {line}", number + 1)),
        }
    }
    seen.keys = keys.len();
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_one_after_the_other_do_not_overlap() {
        let text = "start 1\nbegin a signing k 1\nbegin b signing l 2\nbegin c resharing k 3\nsigns a\nfree a\nbegin d signing k 4\n\
                    gone a\nsigns d\ngone d\nbegin e signing k 5\nstart 2\nbegin f signing k 5\ngone f\n";
        let seen = seen(text);
        assert_eq!((seen.sessions, seen.signing, seen.keys, seen.released, seen.starts), (6, 5, 2, 2, 2));
        assert!(seen.overlaps.is_empty(), "{:?}", seen.overlaps);
    }

    #[test]
    fn two_at_a_time_are_seen() {
        let overlaps = |text: &str| seen(text).overlaps.len();
        assert_eq!(overlaps("begin a signing k 1\nbegin b signing k 2\n"), 1);
        // Preempted while it worked, and it signs all the same.
        assert_eq!(overlaps("begin a signing k 1\ngone a\nbegin b signing k 1\nsigns a\nsigns b\n"), 1);
        assert_eq!(overlaps("begin a signing k 1\nfree a\nsigns a\n"), 1);
        assert_eq!(overlaps("signs a\n"), 1);
        assert_eq!(overlaps("begin a signing k\n"), 1);
    }
}
