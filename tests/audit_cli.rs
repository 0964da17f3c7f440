//! `trefoil audit`: reads a log as an operator does, names what is wrong with it, and by exit code too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use trefoil::node::AUDIT_LOG;
use trefoil::node::audit::{AuditLog, Event};
use trefoil::node::store::{RedbStore, Store};
use trefoil_protocol::{Party, Secret};

/// 2026-01-01T00:00:00Z.
const NEW_YEAR: u64 = 1_767_225_600_000;

fn event(n: u64) -> Event {
    Event {
        time: NEW_YEAR + n * 1_000,
        op: if n.is_multiple_of(2) { "sign".into() } else { "generate".into() },
        initiator: Some("U".repeat(56)),
        job_id: Some(format!("job-{n}")),
        key_id: Some(format!("{:032x}", n / 2)),
        digest: Some("11".repeat(32)),
        decision: if n == 5 { "refused".into() } else { "released".into() },
        reason: (n == 5).then(|| "NOT_PERMITTED".into()),
        signed: Vec::new(),
    }
}

fn open(directory: &Path) -> Arc<RedbStore> {
    Arc::new(RedbStore::open(directory, Party::Node1, Secret::new([7; 32])).unwrap())
}

/// A data directory whose store has anchored a log of this many entries.
async fn data(entries: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(AUDIT_LOG);
    let store = open(folder.path());
    let anchor = Arc::clone(&store);
    let log = AuditLog::open(&path, None, move |head| anchor.anchor(head)).unwrap();
    for n in 0..entries {
        log.append(event(n)).await.unwrap();
    }
    drop(log);
    store.prune(0).await.unwrap();
    (folder, path)
}

fn audit(command: &str, path: &Path, more: &[&str]) -> Output {
    let trefoil = env!("CARGO_BIN_EXE_trefoil");
    Command::new(trefoil).args(["audit", command]).arg(path).args(more).output().unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Exit code, and the entry that is named as broken.
fn verdict(path: &Path, more: &[&str]) -> (i32, Option<u64>) {
    let done = audit("verify", path, &[more, &["--json"]].concat());
    (done.status.code().unwrap(), objects(&done)[0]["error"]["entry"].as_u64())
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut lines: Vec<String> = fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[tokio::test]
async fn a_broken_log_is_located_and_exits_with_4() {
    let (folder, path) = data(8).await;
    let directory = folder.path().to_str().unwrap();
    let stored = ["--data-dir", directory];
    let whole = audit("verify", &path, &["--json", stored[0], stored[1]]);
    assert!(whole.status.success(), "{whole:?}");
    let end = objects(&whole)[0]["end"].as_str().unwrap().to_owned();
    assert_eq!(objects(&whole)[0]["anchor"], end, "the store has seen all of it");
    let anchor = ["--anchor", end.as_str()];
    let good = fs::read(&path).unwrap();

    rewrite(&path, |lines| lines[3] = lines[3].replace("job-3", "job-9"));
    assert_eq!(verdict(&path, &[]), (4, Some(3)), "edited");
    fs::write(&path, &good).unwrap();
    rewrite(&path, |lines| lines.swap(5, 6));
    assert_eq!(verdict(&path, &[]), (4, Some(5)), "reordered");
    fs::write(&path, &good).unwrap();
    rewrite(&path, |lines| drop(lines.remove(2)));
    assert_eq!(verdict(&path, &[]), (4, Some(2)), "removed");
    fs::write(&path, &good[..good.len() - 7]).unwrap();
    assert_eq!(verdict(&path, &[]), (4, Some(7)), "incomplete");
    fs::write(&path, &good).unwrap();
    rewrite(&path, |lines| lines.truncate(6));
    assert_eq!(verdict(&path, &[]), (0, None), "the chain alone cannot tell");
    assert_eq!(verdict(&path, &anchor), (4, Some(6)), "truncated, by an earlier end");
    assert_eq!(verdict(&path, &stored), (4, Some(6)), "truncated, by the store");
    let told = audit("verify", &path, &stored);
    assert!(String::from_utf8_lossy(&told.stderr).contains("ends at 6 entries"), "{told:?}");

    assert_eq!(verdict(&folder.path().join("missing"), &[]).0, 2);
    fs::write(&path, &good).unwrap();
    let running = open(folder.path());
    let told = audit("verify", &path, &stored);
    assert_eq!(told.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&told.stderr).contains("stop it to read its store"), "{told:?}");
    drop(running);
    assert_eq!(verdict(&path, &stored), (0, None));
}

#[tokio::test]
async fn a_running_log_is_read_up_to_its_last_whole_line() {
    let (folder, path) = data(3).await;
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() - 7]).unwrap();
    let rest = good[good.len() - 7..].to_vec();
    let writer = path.clone();
    let finish = std::thread::spawn(move || {
        use std::io::Write;
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::OpenOptions::new().append(true).open(writer).unwrap().write_all(&rest).unwrap();
    });
    assert_eq!(trefoil::node::audit::verify(&path, None).unwrap().entries, 3);
    finish.join().unwrap();
    drop(folder);
}

#[tokio::test]
async fn entries_are_filtered() {
    let (_folder, path) = data(8).await;
    let numbers = |more: &[&str]| -> Vec<u64> {
        let done = audit("show", &path, &[more, &["--json"]].concat());
        assert!(done.status.success(), "{done:?}");
        objects(&done).iter().map(|object| object["entry"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&[]), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(numbers(&["--op", "generate"]), [1, 3, 5, 7]);
    assert_eq!(numbers(&["--op", "generate", "--op", "sign"]).len(), 8);
    assert_eq!(numbers(&["--decision", "refused"]), [5]);
    assert_eq!(numbers(&["--key", &format!("{:032x}", 1)]), [2, 3]);
    assert_eq!(numbers(&["--job", "job-6"]), [6]);
    assert_eq!(numbers(&["--initiator", &"U".repeat(56)]).len(), 8);
    assert_eq!(numbers(&["--initiator", &"V".repeat(56)]).len(), 0);
    assert_eq!(numbers(&["--since", "2026-01-01T00:00:06Z"]), [6, 7]);
    assert_eq!(numbers(&["--since", "2026-01-01T01:00:02+01:00", "--until", &(NEW_YEAR + 4_000).to_string()]), [2, 3]);
    assert_eq!(audit("show", &path, &["--since", "yesterday"]).status.code(), Some(2));

    let text = audit("show", &path, &["--decision", "refused"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["     5  2026-01-01T00:00:05Z  generate", "refused", "reason=NOT_PERMITTED", "job=job-5"] {
        assert!(text.contains(part), "{part} missing in {text}");
    }
}

#[tokio::test]
async fn what_is_behind_a_break_is_not_shown() {
    let (_folder, path) = data(8).await;
    rewrite(&path, |lines| lines[4] = lines[4].replace("released", "refused!"));
    let done = audit("show", &path, &["--json"]);
    assert_eq!(done.status.code(), Some(4));
    let objects = objects(&done);
    assert_eq!(objects.len(), 5);
    assert_eq!((&objects[3]["entry"], &objects[4]["error"]["entry"]), (&3.into(), &4.into()));
}

/// A forged entry with a good hash must not write to the reader's terminal.
#[tokio::test]
async fn control_characters_are_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(AUDIT_LOG);
    let log = AuditLog::open(&path, None, |_| ()).unwrap();
    log.append(Event { job_id: Some("\u{1b}[2Jgone\n".into()), ..event(0) }).await.unwrap();
    drop(log);
    let done = audit("show", &path, &[]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains(r"job=\u{1b}[2Jgone\n"), "{text}");
    assert_eq!(text.lines().count(), 1);
}
