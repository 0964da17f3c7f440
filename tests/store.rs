//! The node's store: durable before it answers, and a destroyed share is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod stored;

use std::fs;
use stored::{
    CANARY, KEY, LIMITS, NEW, attempt, element, initiator, job, open, order, quota, recovery, refused, secret,
};
use trefoil::node::store::{Attempt, BurnedSession, GuessOutcome, KeyState, Quota, RedbStore, Store, StoreError};
use trefoil::wire::{ErrorCode, InitiatorId, KeyId};
use trefoil_protocol::{Party, Secret};

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.stage(attempt(2), secret(b"other attempt"), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    store.admit(job("a", 1)).await.unwrap();
    // What is on disk at this moment, without any closing, is what a killed process leaves.
    let copy = tempfile::tempdir().unwrap();
    for name in ["store.redb", "slots"] {
        fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let reopened = open(copy.path()).unwrap();
    assert_eq!(*reopened.material(KEY, [1; 32]).unwrap(), CANARY);
    assert_eq!(reopened.key(KEY).unwrap().unwrap().state, KeyState::Active);
    assert_eq!(refused(reopened.admit(job("a", 2)).await), ErrorCode::JobIdReused);
    reopened.admit(job("a", 1)).await.unwrap();
}

#[tokio::test]
async fn attempts_are_told_apart_and_one_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    for n in 1..=3 {
        store.stage(attempt(n), secret(&[n; 40]), None).await.unwrap();
    }
    assert_eq!(store.prepared(KEY).unwrap().len(), 3);
    assert_eq!(*store.material(KEY, [2; 32]).unwrap(), [2; 40]);
    store.discard(KEY, [3; 32]).await.unwrap();
    store.discard(KEY, [3; 32]).await.unwrap();
    store.discard(KEY, [4; 32]).await.unwrap();
    assert_eq!(refused(store.stage(attempt(3), secret(b"again"), None).await), ErrorCode::JobIdReused);
    assert_eq!(refused(store.stage(attempt(4), secret(b"too late"), None).await), ErrorCode::JobIdReused);
    assert_eq!(refused(store.commit(KEY, [3; 32]).await), ErrorCode::UnknownKey);
    assert_eq!(store.commit(KEY, [2; 32]).await.unwrap(), attempt(2));
    assert_eq!(store.commit(KEY, [2; 32]).await.unwrap(), attempt(2), "again is fine");
    assert_eq!(refused(store.commit(KEY, [1; 32]).await), ErrorCode::UnknownKey);
    assert_eq!(refused(store.discard(KEY, [2; 32]).await), ErrorCode::JobIdReused);
    assert_eq!(refused(store.stage(attempt(5), secret(b"late"), None).await), ErrorCode::JobIdReused);
    assert!(store.material(KEY, [1; 32]).is_err(), "the other attempts are destroyed");
    assert!(store.prepared(KEY).unwrap().is_empty());
    // The key's id is its job's; what another job prepares is none of it, however long ago the ledger forgot the first.
    let stranger = Attempt { key_id: NEW, ..attempt(1) };
    store.stage(stranger.clone(), secret(b"first"), None).await.unwrap();
    let stranger = Attempt { job_digest: [2; 32], transcript: [2; 32], ..stranger };
    assert_eq!(refused(store.stage(stranger, secret(b"second"), None).await), ErrorCode::JobIdReused);
}

#[tokio::test]
async fn too_many_prepared_attempts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    for n in 0..64 {
        store.stage(attempt(n), secret(&[n]), None).await.unwrap();
    }
    assert_eq!(refused(store.stage(attempt(64), secret(b"x"), None).await), ErrorCode::Overloaded);
    store.stage(attempt(63), secret(b"the same again"), None).await.unwrap();
}

/// A slot file from before the retirement is the only thing that still opens the share; the one in place does not.
#[tokio::test]
async fn a_retired_shares_data_key_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (database, slots) = (folder.path().join("store.redb"), folder.path().join("slots"));
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    store.stage(recovery(2, 1), secret(b"the new share"), None).await.unwrap();
    let old_database = fs::read(&database).unwrap();
    let old_slots = fs::read(&slots).unwrap();
    store.commit(NEW, [2; 32]).await.unwrap();
    assert!(store.material(KEY, [1; 32]).is_err());
    assert_eq!(*store.material(NEW, [2; 32]).unwrap(), b"the new share");
    assert_eq!(store.key(KEY).unwrap().unwrap().state, KeyState::Retired);
    assert_eq!(store.order(order(KEY, KeyState::Active, 1)).await, Err(StoreError::Replaced { successor: NEW }));
    drop(store);
    let new_slots = fs::read(&slots).unwrap();
    assert_ne!(old_slots[64..128], [0; 64]);
    assert_eq!(new_slots[64..128], [0; 64], "the slot was overwritten in place");

    // The whole database of before, restored beside today's slot file: the share does not come back.
    fs::write(&database, &old_database).unwrap();
    let store = open(folder.path()).unwrap();
    assert!(matches!(store.material(KEY, [1; 32]), Err(StoreError::Corrupt(_))));
    drop(store);
    // With the old slot file it would: so it is the data key that was missing.
    fs::write(&slots, &old_slots).unwrap();
    assert_eq!(*open(folder.path()).unwrap().material(KEY, [1; 32]).unwrap(), CANARY);
}

#[tokio::test]
async fn a_lock_replaces_the_secret_bytes_and_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    let before = fs::read(folder.path().join("slots")).unwrap();
    store.lock(KEY, [1; 32], secret(b"without ot")).await.unwrap();
    store.lock(KEY, [1; 32], secret(b"a second lock changes nothing")).await.unwrap();
    let after = fs::read(folder.path().join("slots")).unwrap();
    assert_eq!(after[64..128], [0; 64]);
    assert_ne!(before[64..128], [0; 64]);
    drop(store);
    let store = open(folder.path()).unwrap();
    assert_eq!(store.key(KEY).unwrap().unwrap().state, KeyState::Locked);
    assert_eq!(*store.material(KEY, [1; 32]).unwrap(), b"without ot");
    let charge = store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, 0).await;
    assert_eq!(refused(charge), ErrorCode::KeyLocked);
    let burn = BurnedSession { session: [1; 16], key_id: KEY, transcript: [1; 32], job_digest: [1; 32], time: 1 };
    assert_eq!(refused(store.burn(burn).await), ErrorCode::KeyLocked, "a session cannot outlive the lock");
}

#[tokio::test]
async fn files_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (database, slots) = (folder.path().join("store.redb"), folder.path().join("slots"));
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    let second = open(folder.path()).err().unwrap();
    assert_eq!(second, StoreError::Mismatch("another process has the store open"));
    drop(store);
    for file in [&database, &slots] {
        let bytes = fs::read(file).unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|window| window == CANARY), "a share in the clear");
    }

    let wrong_key = RedbStore::open(folder.path(), Party::Node1, Secret::new([8; 32])).err();
    assert_eq!(wrong_key, Some(StoreError::Mismatch("the master key does not fit the store")));
    let wrong_node = RedbStore::open(folder.path(), Party::Node2, Secret::new([9; 32])).err();
    assert_eq!(wrong_node, Some(StoreError::Mismatch("the store belongs to the other node")));

    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()).unwrap());
    let saved = fs::read(&slots).unwrap();
    fs::copy(other.path().join("slots"), &slots).unwrap();
    assert_eq!(open(folder.path()).err(), Some(StoreError::Mismatch("the slot file belongs to another store")));
    fs::write(&slots, &saved[..64]).unwrap();
    let older = StoreError::Mismatch("the slot file is older than the store: slots are missing");
    assert_eq!(open(folder.path()).err(), Some(older));
    // A copy of the database alone is useless.
    fs::remove_file(&slots).unwrap();
    let missing = "the slot file is missing: without it no share of this store can be read";
    assert_eq!(open(folder.path()).err(), Some(StoreError::Mismatch(missing)));
    // And a slot file without its database is not overwritten by a new store.
    fs::write(&slots, &saved).unwrap();
    fs::remove_file(&database).unwrap();
    let orphan = StoreError::Mismatch("there is a slot file with data keys but no store");
    assert_eq!(open(folder.path()).err(), Some(orphan));
}

#[tokio::test]
async fn a_corrupted_data_key_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let slots = folder.path().join("slots");
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.stage(attempt(2), secret(CANARY), None).await.unwrap();
    let bytes = fs::read(&slots).unwrap();
    let mut swapped = bytes.clone();
    swapped[64..128].copy_from_slice(&bytes[128..192]);
    let mut flipped = bytes.clone();
    flipped[100] ^= 1;
    for broken in [swapped, flipped] {
        fs::write(&slots, &broken).unwrap();
        assert!(matches!(store.material(KEY, [1; 32]), Err(StoreError::Corrupt(_))));
    }
    fs::write(&slots, &bytes).unwrap();
    assert_eq!(*store.material(KEY, [1; 32]).unwrap(), CANARY);
}

#[tokio::test]
async fn a_crash_between_the_files_leaves_no_orphaned_key() {
    let folder = tempfile::tempdir().unwrap();
    let (database, slots) = (folder.path().join("store.redb"), folder.path().join("slots"));
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    drop(store);
    let before = fs::read(&database).unwrap();
    let store = open(folder.path()).unwrap();
    store.stage(attempt(2), secret(CANARY), None).await.unwrap();
    drop(store);
    // The slot reached the disk, the commit did not.
    fs::write(&database, before).unwrap();
    let store = open(folder.path()).unwrap();
    assert_eq!(*store.material(KEY, [1; 32]).unwrap(), CANARY);
    // It could be the key of a newer store, so it is neither wiped nor reused yet ...
    store.stage(attempt(3), secret(b"another slot"), None).await.unwrap();
    assert_ne!(fs::read(&slots).unwrap()[128..192], [0; 64]);
    drop(store);
    // ... but at the next start, when the two files agree again.
    let store = open(folder.path()).unwrap();
    assert_eq!(*store.material(KEY, [3; 32]).unwrap(), b"another slot");
    assert_eq!(fs::read(&slots).unwrap()[128..192], [0; 64]);
    store.stage(attempt(4), secret(b"reuses the slot"), None).await.unwrap();
    assert_eq!(fs::metadata(&slots).unwrap().len(), 4 * 64);
}

/// An old copy of the database beside today's slot file: the keys of newer shares are not taken for leftovers.
#[tokio::test]
async fn an_old_store_is_refused_and_newer_shares_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (database, slots) = (folder.path().join("store.redb"), folder.path().join("slots"));
    let store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    drop(store);
    let (old_database, old_slots) = (fs::read(&database).unwrap(), fs::read(&slots).unwrap());
    let store = open(folder.path()).unwrap();
    store.stage(attempt(2), secret(b"newer"), None).await.unwrap();
    store.stage(attempt(3), secret(b"newest"), None).await.unwrap();
    drop(store);
    let (new_database, new_slots) = (fs::read(&database).unwrap(), fs::read(&slots).unwrap());
    fs::write(&database, &old_database).unwrap();
    let refused = open(folder.path()).err().unwrap().to_string();
    assert!(refused.contains("the store is older than the slot file"), "{refused}");
    assert_eq!(fs::read(&slots).unwrap(), new_slots, "nothing was touched");
    // The other way round, too.
    fs::write(&database, &new_database).unwrap();
    fs::write(&slots, [&old_slots[..], &new_slots[old_slots.len()..]].concat()).unwrap();
    let refused = open(folder.path()).err().unwrap().to_string();
    assert!(refused.contains("the slot file is older than the store"), "{refused}");
    fs::write(&slots, &new_slots).unwrap();
    let store = open(folder.path()).unwrap();
    assert_eq!(*store.material(KEY, [2; 32]).unwrap(), b"newer");
    assert_eq!(*store.material(KEY, [3; 32]).unwrap(), b"newest");
}

#[tokio::test]
async fn guesses_are_counted_over_restarts_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    let mut now = 1_000;
    for _ in 0..20 {
        store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await.unwrap();
        let burn = BurnedSession { session: [1; 16], key_id: KEY, transcript: [1; 32], job_digest: [1; 32], time: now };
        store.burn(burn).await.unwrap();
        now += 1;
    }
    for _ in 0..3 {
        store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await.unwrap();
        store.settle((KEY, [1; 32]), GuessOutcome::Wrong, now).await.unwrap();
        drop(store);
        store = open(folder.path()).unwrap();
    }
    assert_eq!(
        refused(store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await),
        ErrorCode::TooManyAttempts
    );
    now += 60_000;
    store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await.unwrap();
    store.settle((KEY, [1; 32]), GuessOutcome::Wrong, now).await.unwrap();
    assert_eq!(
        refused(store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await),
        ErrorCode::TooManyAttempts
    );
    now += 60_000;
    store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await.unwrap();
    store.settle((KEY, [1; 32]), GuessOutcome::Right, now).await.unwrap();
    // Attempts that nobody reports on, as a compromised worker would leave them, have a bound of their own.
    for _ in 0..30 {
        store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await.unwrap();
    }
    assert_eq!(
        refused(store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, now).await),
        ErrorCode::TooManyAttempts
    );
    // Another body under the same job id is not charged at all.
    assert_eq!(
        refused(store.charge(job("a", 2), (KEY, [1; 32]), element(), LIMITS, now).await),
        ErrorCode::JobIdReused
    );
}

#[tokio::test]
async fn the_same_question_is_charged_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    // Lost answers: the same job with the same blinded password, again and again, over a restart.
    for round in 0..100 {
        store.charge(job("a", 1), (KEY, [1; 32]), [1; 32], LIMITS, 1_000 + round).await.unwrap();
        if round == 50 {
            drop(store);
            store = open(folder.path()).unwrap();
        }
    }
    // Another password of the same job, and the same one of another job, are guesses of their own.
    for other in 1..15 {
        store.charge(job("a", 1), (KEY, [1; 32]), [100 + other; 32], LIMITS, 2_000).await.unwrap();
        store.charge(job(&format!("b{other}"), 1), (KEY, [1; 32]), [1; 32], LIMITS, 2_000).await.unwrap();
    }
    store.charge(job("c", 1), (KEY, [1; 32]), [2; 32], LIMITS, 2_000).await.unwrap();
    assert_eq!(
        refused(store.charge(job("d", 1), (KEY, [1; 32]), [2; 32], LIMITS, 2_000).await),
        ErrorCode::TooManyAttempts
    );
    // What was charged before the lockout may still be asked again.
    store.charge(job("c", 1), (KEY, [1; 32]), [2; 32], LIMITS, 2_000).await.unwrap();
    assert_eq!(
        refused(store.charge(job("c", 1), (KEY, [1; 32]), [3; 32], LIMITS, 2_000).await),
        ErrorCode::TooManyAttempts
    );
    // And it is forgotten with the job.
    store.prune(10_000 + 3_600_001).await.unwrap();
    assert_eq!(
        refused(store.charge(job("c", 1), (KEY, [1; 32]), [2; 32], LIMITS, 2_000).await),
        ErrorCode::TooManyAttempts
    );
}

#[tokio::test]
async fn nobody_else_reads_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("new").join("data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(open(&data).unwrap());
    let modes = || (mode(&data), mode(&data.join("store.redb")), mode(&data.join("slots")));
    assert_eq!(modes(), (0o700, 0o600, 0o600));
    // Files of before are closed.
    for (path, loose) in [(data.join("store.redb"), 0o644), (data.clone(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(loose)).unwrap();
    }
    drop(open(&data).unwrap());
    assert_eq!(modes(), (0o700, 0o600, 0o600));
}

#[tokio::test]
async fn the_ledger_forgets_only_what_is_long_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    store.admit(job("a", 1)).await.unwrap();
    store.prune(10_000 + 3_599_999).await.unwrap();
    assert_eq!(store.check_ledger(&job("a", 2)), Err(StoreError::Refused(ErrorCode::JobIdReused)));
    store.prune(10_000 + 3_600_001).await.unwrap();
    assert_eq!(store.check_ledger(&job("a", 2)), Ok(false));
}

/// Many writers at once share commits; a refused write among them changes nothing for the others.
#[tokio::test(flavor = "multi_thread")]
async fn many_writes_share_commits() {
    let folder = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(folder.path()).unwrap());
    store.admit(job("0", 1)).await.unwrap();
    let tasks: Vec<_> = (0..1_000)
        .map(|n: u32| {
            let store = store.clone();
            tokio::spawn(async move { store.admit(job(&(n % 500).to_string(), 1 + u8::from(n == 500))).await })
        })
        .collect();
    let mut failed = 0;
    for task in tasks {
        failed += usize::from(task.await.unwrap().is_err());
    }
    assert_eq!(failed, 1, "only the changed body of job 0");
    for n in 1..500 {
        assert_eq!(refused(store.admit(job(&n.to_string(), 9)).await), ErrorCode::JobIdReused);
    }
}

#[tokio::test]
async fn keys_are_counted_by_owner_until_they_end() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let of = |key: u8, transcript: u8| Attempt { key_id: KeyId([key; 16]), ..attempt(transcript) };
    let room = |key: u8, max| store.has_room(&quota(max), KeyId([key; 16])).unwrap();
    assert!(room(1, 1) && !room(1, 0));
    store.stage(of(1, 1), secret(CANARY), Some(quota(2))).await.unwrap();
    store.stage(of(1, 2), secret(CANARY), Some(quota(2))).await.unwrap();
    store.stage(of(2, 1), secret(CANARY), Some(quota(2))).await.unwrap();
    assert_eq!(refused(store.stage(of(3, 1), secret(CANARY), Some(quota(2))).await), ErrorCode::NotPermitted);
    assert!(room(2, 0), "what is there already adds nothing");
    // Another owner is not counted, but another name of the same one is, when a key is stored: it may have come meanwhile.
    let other: InitiatorId = nkeys::KeyPair::new_user().public_key().parse().unwrap();
    assert!(store.has_room(&Quota { owners: vec![other.clone()], max_keys: 1 }, KeyId([3; 16])).unwrap());
    let both = |max_keys| Some(Quota { owners: vec![other.clone(), initiator()], max_keys });
    let renamed = Attempt { initiator: other.clone(), ..of(6, 1) };
    assert_eq!(refused(store.stage(renamed.clone(), secret(CANARY), both(2)).await), ErrorCode::NotPermitted);
    store.stage(renamed, secret(CANARY), both(3)).await.unwrap();
    assert!(store.has_room(&both(0).unwrap(), KeyId([2; 16])).unwrap(), "what is there under any name");
    store.discard(KeyId([6; 16]), [1; 32]).await.unwrap();
    // Discarding one of two attempts keeps the key, the last one ends it; and so does its destruction, but no lock.
    store.discard(KeyId([1; 16]), [1; 32]).await.unwrap();
    assert!(!room(3, 2));
    store.discard(KeyId([1; 16]), [2; 32]).await.unwrap();
    assert!(room(3, 2) && !room(3, 1));
    store.commit(KeyId([2; 16]), [1; 32]).await.unwrap();
    store.lock(KeyId([2; 16]), [1; 32], secret(b"kept")).await.unwrap();
    assert!(!room(3, 1));
    // A key that takes the place of another one is not held back, and counts once it has that place, instead of the other.
    let replacement = |key: u8, transcript: u8| Attempt {
        source_key_id: Some(KeyId([2; 16])),
        source_transcript: Some([1; 32]),
        ..of(key, transcript)
    };
    store.stage(replacement(4, 1), secret(CANARY), Some(quota(1))).await.unwrap();
    store.stage(replacement(5, 1), secret(CANARY), Some(quota(0))).await.unwrap();
    assert!(room(3, 2) && !room(3, 1) && !room(4, 1));
    store.discard(KeyId([5; 16]), [1; 32]).await.unwrap();
    store.commit(KeyId([4; 16]), [1; 32]).await.unwrap();
    assert!(room(3, 2) && !room(3, 1) && room(4, 1) && !room(2, 1));
    drop(store);
    let store = open(folder.path()).unwrap();
    assert!(!store.has_room(&quota(1), KeyId([3; 16])).unwrap(), "also after a restart");
    store.order(order(KeyId([4; 16]), KeyState::Destroyed, 1)).await.unwrap();
    assert!(store.has_room(&quota(1), KeyId([3; 16])).unwrap());
}
