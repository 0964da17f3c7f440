//! The audit log: every way of changing it is noticed and located.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use trefoil::node::audit::{AuditError, AuditLog, Event, Head, verify};

fn event(n: u64) -> Event {
    Event {
        time: n,
        op: "sign".into(),
        initiator: Some("U".repeat(56)),
        job_id: Some(format!("job-{n}")),
        key_id: Some("00".repeat(16)),
        digest: Some("11".repeat(32)),
        decision: "released".into(),
        reason: None,
        signed: Vec::new(),
    }
}

async fn log(folder: &Path, entries: u64) -> (PathBuf, Head) {
    let path = folder.join("audit.log");
    let head = Arc::new(Mutex::new(Head::EMPTY));
    let cell = head.clone();
    let log = AuditLog::open(&path, None, move |head| *cell.lock().unwrap() = head).unwrap();
    for n in 0..entries {
        log.append(event(n)).await.unwrap();
    }
    drop(log);
    let head = *head.lock().unwrap();
    (path, head)
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut lines: Vec<String> = fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[tokio::test]
async fn a_good_log_and_one_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (path, head) = log(folder.path(), 5).await;
    assert_eq!(head.entries, 5);
    assert_eq!(verify(&path, Some(head)), Ok(head));
    let log = AuditLog::open(&path, Some(head), |_| ()).unwrap();
    assert!(matches!(AuditLog::open(&path, None, |_| ()), Err(AuditError::Io(_))), "one process only");
    log.note(event(5));
    log.append(event(6)).await.unwrap();
    let new = verify(&path, Some(head)).unwrap();
    assert_eq!(new.entries, 7);
}

/// While the disk hangs, what nobody waits for takes half the queue at most: what a signature or a new policy waits for finds room.
#[tokio::test]
async fn entries_that_nobody_waits_for_leave_room_for_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let (told, syncs) = channel();
    let (go_on, hung) = channel::<()>();
    go_on.send(()).unwrap();
    let log = AuditLog::open(&path, None, move |head| {
        told.send(head.entries).unwrap();
        let _ = hung.recv();
    })
    .unwrap();
    // Let go of before the log is, whatever fails.
    let go_on = go_on;
    let first = log.begin(event(0));
    assert_eq!([syncs.recv().unwrap(), syncs.recv().unwrap()], [0, 1], "opened, and the first is synced, and hangs");
    (1..20_000).for_each(|n| log.note(event(n)));
    let second = log.begin(event(20_000));
    drop(go_on);
    first.await.unwrap();
    second.await.unwrap();
    // Then there is room again.
    log.note(event(20_001));
    drop(log);
    assert_eq!(verify(&path, None).unwrap().entries, 1 + 8_192 + 1 + 1);
}

#[tokio::test]
async fn an_edit_is_located() {
    let folder = tempfile::tempdir().unwrap();
    let (path, head) = log(folder.path(), 6).await;
    rewrite(&path, |lines| lines[3] = lines[3].replace("job-3", "job-9"));
    assert_eq!(verify(&path, Some(head)), Err(AuditError::Altered(3)));
    assert!(AuditLog::open(&path, Some(head), |_| ()).is_err(), "a node does not go on with it");
}

#[tokio::test]
async fn an_edit_with_a_recomputed_hash_is_located_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, head) = log(folder.path(), 6).await;
    rewrite(&path, |lines| {
        use trefoil_protocol::transcript::{Tag, hash};
        let json = lines[3][65..].replace("job-3", "job-9");
        lines[3] = format!("{} {json}", data_encoding::HEXLOWER.encode(&hash(Tag::NODE_AUDIT, &[json.as_bytes()])));
    });
    assert_eq!(verify(&path, Some(head)), Err(AuditError::OutOfOrder(4)));
}

#[tokio::test]
async fn reordering_removal_and_insertion_are_located() {
    let folder = tempfile::tempdir().unwrap();
    let (path, head) = log(folder.path(), 6).await;
    let good = fs::read(&path).unwrap();
    rewrite(&path, |lines| lines.swap(2, 3));
    assert_eq!(verify(&path, Some(head)), Err(AuditError::OutOfOrder(2)));
    fs::write(&path, &good).unwrap();
    rewrite(&path, |lines| drop(lines.remove(0)));
    assert_eq!(verify(&path, Some(head)), Err(AuditError::OutOfOrder(0)));
    fs::write(&path, &good).unwrap();
    rewrite(&path, |lines| lines.insert(4, lines[3].clone()));
    assert_eq!(verify(&path, Some(head)), Err(AuditError::OutOfOrder(4)));
}

#[tokio::test]
async fn truncation_and_replacement_are_noticed_by_the_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let (path, head) = log(folder.path(), 6).await;
    rewrite(&path, |lines| lines.truncate(4));
    assert!(verify(&path, None).is_ok(), "the chain alone cannot tell");
    assert_eq!(verify(&path, Some(head)), Err(AuditError::Truncated { found: 4, expected: 6 }));
    fs::remove_file(&path).unwrap();
    let log = AuditLog::open(&path, None, |_| ()).unwrap();
    for n in 10..20 {
        log.append(event(n)).await.unwrap();
    }
    assert_eq!(verify(&path, Some(head)), Err(AuditError::Replaced(5)));
}

#[tokio::test]
async fn an_unacknowledged_half_line_is_cut_off_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let (path, head) = log(folder.path(), 3).await;
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"0123456789abcdef half an entr");
    fs::write(&path, &bytes).unwrap();
    assert_eq!(verify(&path, Some(head)), Err(AuditError::Incomplete(3)));
    let log = AuditLog::open(&path, Some(head), |_| ()).unwrap();
    log.append(event(3)).await.unwrap();
    assert_eq!(verify(&path, Some(head)).unwrap().entries, 4);
}
