//! Recoveries that wait, in the node's store: which job executes one, and what a cancellation reaches.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod stored;

use std::path::Path;
use std::time::Duration;
use stored::{CANARY, KEY, NEW, attempt, initiator, recovery, refresh, secret};
use trefoil::node::store::{Asked, Attempt, LedgerEntry, RecoveryRules, RedbStore, StoppedStore, Store, StoreError};
use trefoil::wire::{ErrorCode, KeyId, Op};
use trefoil_protocol::{Party, Secret};

const WAIT: RecoveryRules = RecoveryRules { wait: Duration::from_secs(100), window: Duration::from_secs(50) };
const NONE: RecoveryRules = RecoveryRules { wait: Duration::ZERO, window: Duration::from_secs(50) };

fn open(directory: &Path, party: Party) -> RedbStore {
    RedbStore::open(directory, party, Secret::new([9; 32])).unwrap()
}

/// What the job with this digest made.
fn recovered(digest: u8) -> Attempt {
    Attempt { key_id: KeyId([digest; 16]), ..recovery(digest, 1) }
}

fn job(op: Op, digest: u8) -> LedgerEntry {
    let job_id = format!("job-{digest}").parse().unwrap();
    LedgerEntry { initiator: initiator(), job_id, digest: [digest; 32], op, expires_at: u64::MAX / 2 }
}

async fn with_key(directory: &Path, party: Party) -> RedbStore {
    let store = open(directory, party);
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    store
}

/// Asks by a job that was issued at the time that the node sees.
async fn ask(store: &RedbStore, digest: u8, now: u64) -> Result<Asked, StoreError> {
    store.ask_recovery(job(Op::Recover, digest), KEY, now, true, WAIT, now).await
}

async fn cancel(store: &RedbStore, digest: u8, issued_at: u64) -> Result<bool, StoreError> {
    store.cancel_recovery(job(Op::CancelRecovery, digest), KEY, issued_at).await
}

const fn pending(retry_at: u64, new: bool) -> Result<Asked, StoreError> {
    Ok(Asked::Pending { retry_at, new })
}

const SUPERSEDED: StoreError = StoreError::Refused(ErrorCode::JobSuperseded);

#[tokio::test]
async fn a_second_job_executes_after_the_wait_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = with_key(folder.path(), Party::Node1).await;
    assert_eq!(ask(&store, 20, 1_000).await, pending(101_000, true));
    assert_eq!(ask(&store, 20, 1_000).await, pending(101_000, false), "the same job again asks for nothing new");
    assert_eq!(ask(&store, 21, 60_000).await, pending(101_000, false), "the clock does not start anew");
    drop(store);
    store = open(folder.path(), Party::Node1);
    assert_eq!(ask(&store, 22, 100_999).await, pending(101_000, false), "also after a restart");
    // Jobs that were signed before the wait was over: none of them executes, however late it is sent.
    for early in [20, 21, 22] {
        let late = store.ask_recovery(job(Op::Recover, early), KEY, 60_000, true, WAIT, 120_000).await;
        assert_eq!(late, pending(101_000, false));
    }
    let older = store.ask_recovery(job(Op::Recover, 23), KEY, 999, true, WAIT, 120_000).await;
    assert_eq!(older, Err(SUPERSEDED));
    assert_eq!(ask(&store, 24, 101_000).await, Ok(Asked::Granted));
    assert_eq!(ask(&store, 24, 101_000).await, Ok(Asked::Granted));
    // After the window it is a new request.
    assert_eq!(ask(&store, 25, 151_000).await, pending(251_000, true));
    assert_eq!(ask(&store, 24, 151_001).await, pending(251_000, false));
}

#[tokio::test]
async fn only_a_granted_job_makes_the_key() {
    for party in [Party::Node1, Party::Node2] {
        let folder = tempfile::tempdir().unwrap();
        let store = with_key(folder.path(), party).await;
        ask(&store, 20, 1_000).await.unwrap();
        assert_eq!(store.stage(recovered(20), secret(CANARY), None).await, Err(SUPERSEDED));
        // A question grants nothing, an opening does.
        let question = store.ask_recovery(job(Op::Recover, 21), KEY, 101_000, false, WAIT, 101_000).await;
        assert_eq!(question, Ok(Asked::Granted));
        assert_eq!(store.stage(recovered(21), secret(CANARY), None).await, Err(SUPERSEDED));
        ask(&store, 21, 101_000).await.unwrap();
        store.stage(recovered(21), secret(CANARY), None).await.unwrap();
        // It may be committed also after somebody has asked anew.
        assert_eq!(ask(&store, 22, 151_000).await, pending(251_000, true));
        store.commit(recovered(21).key_id, [21; 32]).await.unwrap();
        // The request is used up with the key.
        assert_eq!(StoppedStore::open(folder.path()).err().map(|_| ()), Some(()), "it is in use");
        drop(store);
        assert!(StoppedStore::open(folder.path()).unwrap().recoveries().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_cancellation_ends_what_is_older_and_nothing_newer() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = with_key(folder.path(), Party::Node1).await;
    ask(&store, 20, 1_000).await.unwrap();
    assert_eq!(cancel(&store, 30, 1_000).await, Err(SUPERSEDED), "not issued after it");
    assert_eq!(cancel(&store, 31, 2_000).await, Ok(true));
    assert_eq!(cancel(&store, 31, 2_000).await, Ok(false), "the same again is fine");
    drop(store);
    store = open(folder.path(), Party::Node1);
    for older in [20, 21] {
        let asked = store.ask_recovery(job(Op::Recover, older), KEY, 1_500, true, WAIT, 3_000).await;
        assert_eq!(asked, Err(SUPERSEDED), "nothing older brings it back");
    }
    assert_eq!(ask(&store, 22, 4_000).await, pending(104_000, true), "its wait begins anew");
    assert_eq!(cancel(&store, 31, 2_000).await, Err(SUPERSEDED), "a replay ends no newer request");
    assert_eq!(ask(&store, 23, 104_000).await, Ok(Asked::Granted));
    // An id that was used for another body.
    let reused = LedgerEntry { digest: [99; 32], ..job(Op::CancelRecovery, 31) };
    let refused = store.cancel_recovery(reused, KEY, 200_000).await;
    assert_eq!(refused, Err(StoreError::Refused(ErrorCode::JobIdReused)));
    let unknown = store.cancel_recovery(job(Op::CancelRecovery, 33), NEW, 1).await;
    assert_eq!(unknown, Err(StoreError::Refused(ErrorCode::UnknownKey)));
}

#[tokio::test]
async fn a_cancellation_reaches_a_recovery_up_to_node_1s_decision() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let node1 = with_key(folders[0].path(), Party::Node1).await;
    let node2 = with_key(folders[1].path(), Party::Node2).await;
    for store in [&node1, &node2] {
        ask(store, 20, 1_000).await.unwrap();
        ask(store, 21, 101_000).await.unwrap();
        ask(store, 22, 101_000).await.unwrap();
        store.stage(recovered(21), secret(CANARY), None).await.unwrap();
        assert_eq!(cancel(store, 30, 102_000).await, Ok(true));
        // Neither what is prepared, nor what is about to be, also not under the next request.
        assert_eq!(ask(store, 23, 103_000).await, pending(203_000, true));
        assert_eq!(store.stage(recovered(22), secret(CANARY), None).await, Err(SUPERSEDED));
    }
    let new = recovered(21).key_id;
    assert_eq!(node1.commit(new, [21; 32]).await.err(), Some(SUPERSEDED));
    assert!(node1.key(new).unwrap().is_none());
    // Node 2 is never asked to follow a decision that node 1 did not take; one that it did take it follows.
    node2.commit(new, [21; 32]).await.unwrap();
}

#[tokio::test]
async fn without_a_wait_nothing_waits_but_a_cancellation_counts() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_key(folder.path(), Party::Node1).await;
    let ask = async |digest, issued_at| {
        store.ask_recovery(job(Op::Recover, digest), KEY, issued_at, true, NONE, issued_at).await
    };
    assert_eq!(ask(20, 1_000).await, Ok(Asked::Granted));
    store.stage(recovered(20), secret(CANARY), None).await.unwrap();
    assert_eq!(cancel(&store, 30, 2_000).await, Ok(false));
    assert_eq!(store.commit(recovered(20).key_id, [20; 32]).await.err(), Some(SUPERSEDED));
    assert_eq!(ask(21, 1_500).await, Err(SUPERSEDED));
    assert_eq!(ask(22, 3_000).await, Ok(Asked::Granted));
    store.stage(recovered(22), secret(CANARY), None).await.unwrap();
    store.commit(recovered(22).key_id, [22; 32]).await.unwrap();
    let retired = store.cancel_recovery(job(Op::CancelRecovery, 31), KEY, 9_000).await;
    assert_eq!(retired, Err(StoreError::Replaced { successor: recovered(22).key_id }));
}

#[tokio::test]
async fn new_shares_end_a_request_and_an_ended_key_takes_none() {
    for party in [Party::Node1, Party::Node2] {
        let folder = tempfile::tempdir().unwrap();
        let store = with_key(folder.path(), party).await;
        ask(&store, 20, 1_000).await.unwrap();
        store.stage(refresh(2, 1), secret(CANARY), None).await.unwrap();
        store.commit(KEY, [2; 32]).await.unwrap();
        // The window of the old shares' request is open, and is not theirs: the wait begins anew.
        assert_eq!(ask(&store, 21, 101_000).await, pending(201_000, true));
        // What was issued before the old request asks for nothing, as ever.
        assert_eq!(cancel(&store, 30, 102_000).await, Ok(true));
        let older = store.ask_recovery(job(Op::Recover, 22), KEY, 101_500, true, NONE, 103_000).await;
        assert_eq!(older, Err(SUPERSEDED));
        store.stage(refresh(3, 2), secret(CANARY), None).await.unwrap();
        store.commit(KEY, [3; 32]).await.unwrap();
        let older = store.ask_recovery(job(Op::Recover, 22), KEY, 101_500, true, NONE, 103_000).await;
        assert_eq!(older, Err(SUPERSEDED), "a refresh brings no cancelled recovery back");

        ask(&store, 23, 104_000).await.unwrap();
        ask(&store, 24, 204_000).await.unwrap();
        let recovered = Attempt { key_id: NEW, ..recovery(24, 3) };
        store.stage(recovered, secret(CANARY), None).await.unwrap();
        store.commit(NEW, [24; 32]).await.unwrap();
        // A job that looked at the key before it was retired.
        assert_eq!(ask(&store, 25, 205_000).await, Err(StoreError::Replaced { successor: NEW }));
        store.commit(NEW, [24; 32]).await.unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_shortens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_key(folder.path(), Party::Node1).await;
    // The node has seen this time; then its clock is set back, and the request comes, and the clock is set right again.
    store.prune(1_000_000).await.unwrap();
    store.prune(400_000).await.unwrap();
    assert_eq!(ask(&store, 20, 500_000).await, pending(1_100_000, true));
    assert_eq!(ask(&store, 21, 1_000_500).await, pending(1_100_000, false));
    // Set back after the request, it waits the longer.
    assert_eq!(ask(&store, 22, 600_000).await, pending(1_100_000, false));
    assert_eq!(ask(&store, 23, 1_100_000).await, Ok(Asked::Granted));
}

#[tokio::test]
async fn a_stopped_node_shows_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_key(folder.path(), Party::Node2).await;
    ask(&store, 20, 1_000).await.unwrap();
    drop(store);
    let waiting = StoppedStore::open(folder.path()).unwrap().recoveries().unwrap();
    let (key, request) = &waiting[0];
    assert_eq!((waiting.len(), *key, &request.owner, request.digest), (1, KEY, &initiator(), [20; 32]));
    assert_eq!((request.requested_at, request.retry_at, request.until), (1_000, 101_000, 151_000));
    let store = open(folder.path(), Party::Node2);
    cancel(&store, 30, 2_000).await.unwrap();
    drop(store);
    assert!(StoppedStore::open(folder.path()).unwrap().recoveries().unwrap().is_empty());
}
