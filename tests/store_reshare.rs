//! New shares in the node's store: what is prepared to take a key's place, and the one decision that gives it that place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod stored;

use std::fs;
use std::path::Path;
use stored::{CANARY, KEY, LIMITS, NEW, attempt, element, job, open, order, quota, recovery, refresh, refused, secret};
use trefoil::node::store::{
    Attempt, BurnedSession, GuessOutcome, KeyState, LedgerEntry, RedbStore, StoppedStore, Store, StoreError,
};
use trefoil::wire::{ErrorCode, KeyId, Op};
use zeroize::Zeroizing;

/// [`KEY`], committed with the shares 1.
async fn committed(directory: &Path) -> RedbStore {
    let store = open(directory).unwrap();
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [1; 32]).await.unwrap();
    store
}

fn state(store: &RedbStore, key: KeyId) -> (KeyState, [u8; 32]) {
    let key = store.key(key).unwrap().unwrap();
    (key.state, key.attempt.transcript)
}

/// Slots of the file that hold a data key.
fn slots_in_use(directory: &Path) -> usize {
    let bytes = fs::read(directory.join("slots")).unwrap();
    bytes.chunks_exact(64).skip(1).filter(|slot| **slot != [0; 64]).count()
}

fn burn(transcript: u8) -> BurnedSession {
    BurnedSession { session: [1; 16], key_id: KEY, transcript: [transcript; 32], job_digest: [1; 32], time: 1 }
}

#[tokio::test]
async fn a_recovery_retires_its_source_in_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = committed(folder.path()).await;
    store.stage(recovery(2, 1), secret(b"new"), Some(quota(0))).await.unwrap();
    assert_eq!(state(&store, KEY), (KeyState::Active, [1; 32]), "prepared, it changes nothing");
    assert!(store.key(NEW).unwrap().is_none());
    assert_eq!(store.prepared(NEW).unwrap(), [recovery(2, 1)]);
    assert_eq!(store.replacements(KEY).unwrap(), [recovery(2, 1)]);
    assert!(store.prepared(KEY).unwrap().is_empty());

    assert_eq!(store.commit(NEW, [2; 32]).await.unwrap(), recovery(2, 1));
    assert_eq!(state(&store, NEW), (KeyState::Active, [2; 32]));
    let old = store.key(KEY).unwrap().unwrap();
    assert_eq!((old.state, old.successor), (KeyState::Retired, Some(NEW)));
    assert_eq!(old.usable(), Err(StoreError::Replaced { successor: NEW }));
    assert!(store.material(KEY, [1; 32]).is_err());
    assert_eq!(*store.material(NEW, [2; 32]).unwrap(), b"new");
    assert_eq!(
        slots_in_use(folder.path()),
        1,
        "the old share's data key is overwritten before the commit is acknowledged"
    );
    assert!(store.replacements(KEY).unwrap().is_empty() && store.prepared(NEW).unwrap().is_empty());
    // Nothing more comes of the old key.
    assert_eq!(store.burn(burn(1)).await, Err(StoreError::Replaced { successor: NEW }));
    let charge = store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, 0).await;
    assert_eq!(charge, Err(StoreError::Replaced { successor: NEW }));
    let late = Attempt { key_id: KeyId([9; 16]), ..recovery(3, 1) };
    assert_eq!(store.stage(late, secret(b"late"), None).await, Err(StoreError::Replaced { successor: NEW }));
    assert_eq!(refused(store.stage(refresh(4, 1), secret(b"late"), None).await), ErrorCode::KeyRetired);
    assert_eq!(store.lock(KEY, [1; 32], secret(b"old")).await, Err(StoreError::Replaced { successor: NEW }));
}

#[tokio::test]
async fn a_refresh_takes_the_place_of_the_shares_that_it_was_made_from() {
    let folder = tempfile::tempdir().unwrap();
    let store = committed(folder.path()).await;
    store.stage(refresh(2, 1), secret(b"new"), Some(quota(0))).await.unwrap();
    assert_eq!(store.prepared(KEY).unwrap(), [refresh(2, 1)]);
    assert_eq!(store.replacements(KEY).unwrap(), [refresh(2, 1)]);
    // Guesses at the old password are none at the new one.
    for _ in 0..3 {
        store.charge(job("a", 1), (KEY, [1; 32]), element(), LIMITS, 1).await.unwrap();
        store.settle((KEY, [1; 32]), GuessOutcome::Wrong, 1).await.unwrap();
    }
    let charge = |transcript: u8| store.charge(job("b", 1), (KEY, [transcript; 32]), element(), LIMITS, 2);
    assert_eq!(refused(charge(1).await), ErrorCode::TooManyAttempts);
    assert_eq!(refused(charge(2).await), ErrorCode::StaleShare, "not yet");
    store.commit(KEY, [2; 32]).await.unwrap();
    charge(2).await.unwrap();
    assert_eq!(refused(charge(1).await), ErrorCode::StaleShare);
    assert_eq!(state(&store, KEY), (KeyState::Active, [2; 32]));
    assert!(store.material(KEY, [1; 32]).is_err());
    assert_eq!((&**store.material(KEY, [2; 32]).unwrap(), slots_in_use(folder.path())), (b"new".as_slice(), 1));
    // What was begun with the old share ends; above all it does not lock the new one, or put old bytes in its place.
    assert_eq!(refused(store.burn(burn(1)).await), ErrorCode::StaleShare);
    assert_eq!(refused(store.lock(KEY, [1; 32], secret(b"old")).await), ErrorCode::StaleShare);
    assert_eq!(refused(store.stage(refresh(3, 1), secret(b"late"), None).await), ErrorCode::JobSuperseded);
    store.burn(burn(2)).await.unwrap();
    // Nor does the old password give back guesses at the new one.
    for _ in 0..3 {
        charge(2).await.unwrap();
        store.settle((KEY, [2; 32]), GuessOutcome::Wrong, 2).await.unwrap();
    }
    store.settle((KEY, [1; 32]), GuessOutcome::Right, 2).await.unwrap();
    assert_eq!(refused(charge(2).await), ErrorCode::TooManyAttempts);
}

#[tokio::test]
async fn of_many_replacements_one_is_committed_and_the_others_are_gone() {
    for winner in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let mut store = committed(folder.path()).await;
        let other = KeyId([9; 16]);
        let attempts = [
            refresh(2, 1),
            refresh(3, 1),
            recovery(4, 1),
            Attempt { key_id: other, job_digest: [9; 32], ..recovery(5, 1) },
        ];
        for attempt in &attempts {
            store.stage(attempt.clone(), secret(&attempt.transcript), None).await.unwrap();
            store.stage(attempt.clone(), secret(b"again"), None).await.unwrap();
        }
        assert_eq!(store.replacements(KEY).unwrap().len(), 4);
        let mut fates = Vec::new();
        for attempt in [&attempts[winner]].into_iter().chain(&attempts) {
            fates.push(
                store.commit(attempt.key_id, attempt.transcript).await.map_err(|error| refused(Err::<(), _>(error))),
            );
            drop(store);
            store = open(folder.path()).unwrap();
        }
        assert_eq!(slots_in_use(folder.path()), 1);
        for (n, attempt) in attempts.iter().enumerate() {
            let expected = if n == winner { Ok(attempt.clone()) } else { Err(ErrorCode::JobSuperseded) };
            assert_eq!(fates[n + 1], expected, "{n} of {winner}");
            let material = store.material(attempt.key_id, attempt.transcript);
            assert_eq!(material.is_ok(), n == winner);
            assert_eq!(store.attempt(attempt.key_id, attempt.transcript).unwrap().as_ref(), Some(attempt));
            // Staging it again does not bring it back.
            if n != winner {
                assert!(store.stage(attempt.clone(), secret(b"back"), None).await.is_err());
                store.discard(attempt.key_id, attempt.transcript).await.unwrap();
            }
        }
        let live: Vec<_> = [KEY, NEW, other]
            .into_iter()
            .filter(|key| store.key(*key).unwrap().is_some_and(|key| key.state == KeyState::Active))
            .collect();
        assert_eq!(live, [attempts[winner].key_id]);
        assert!([KEY, NEW, other].iter().all(|key| store.prepared(*key).unwrap().is_empty()));
    }
}

#[tokio::test]
async fn what_was_committed_once_stays_so_whatever_followed() {
    let folder = tempfile::tempdir().unwrap();
    let store = committed(folder.path()).await;
    for n in 2..=4 {
        store.stage(refresh(n, n - 1), secret(&[n]), None).await.unwrap();
        store.commit(KEY, [n; 32]).await.unwrap();
    }
    store.stage(recovery(5, 4), secret(&[5]), None).await.unwrap();
    store.commit(NEW, [5; 32]).await.unwrap();
    drop(store);
    let store = open(folder.path()).unwrap();
    for n in 1..=5 {
        let key = if n == 5 { NEW } else { KEY };
        assert_eq!(store.commit(key, [n; 32]).await.unwrap().transcript, [n; 32], "again is fine, and changes nothing");
        assert_eq!(refused(store.discard(key, [n; 32]).await), ErrorCode::JobIdReused);
        assert_eq!(store.material(key, [n; 32]).is_ok(), n == 5);
    }
    assert_eq!((state(&store, KEY).0, state(&store, NEW).0), (KeyState::Retired, KeyState::Active));
    // Only the one that is prepared is listed as such by what reads a stopped store.
    store.stage(Attempt { key_id: NEW, source_key_id: None, ..refresh(6, 5) }, secret(&[6]), None).await.unwrap();
    drop(store);
    let mut prepared = Vec::new();
    let mut held = 0;
    StoppedStore::open(folder.path())
        .unwrap()
        .for_each(|stored| {
            held += usize::from(stored.held);
            if stored.fate == trefoil::node::store::Fate::Prepared {
                prepared.push(stored.attempt.transcript);
            }
        })
        .unwrap();
    assert_eq!((prepared, held), (vec![[6; 32]], 2));
}

#[tokio::test]
async fn new_shares_mend_a_lock_and_no_freeze() {
    for (ordered, locked, after) in [
        (KeyState::Active, true, KeyState::Active),
        (KeyState::Frozen, false, KeyState::Frozen),
        (KeyState::Frozen, true, KeyState::Frozen),
    ] {
        for new in [recovery(2, 1), refresh(2, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let store = committed(folder.path()).await;
            store.stage(new.clone(), secret(b"new"), None).await.unwrap();
            if ordered == KeyState::Frozen {
                store.order(order(KEY, KeyState::Frozen, 1)).await.unwrap();
                let late = Attempt { transcript: [3; 32], ..new.clone() };
                assert_eq!(refused(store.stage(late, secret(b"x"), None).await), ErrorCode::KeyFrozen);
            }
            if locked {
                store.lock(KEY, [1; 32], secret(b"without ot")).await.unwrap();
                let late = Attempt { transcript: [3; 32], ..new.clone() };
                store.stage(late, secret(b"made from a locked share"), None).await.unwrap();
                // A password may be proven for a refresh of a locked key, and for nothing else.
                let refresh_job = LedgerEntry { op: Op::Refresh, ..job("r", 1) };
                store.charge(refresh_job, (KEY, [1; 32]), element(), LIMITS, 0).await.unwrap();
                let charge = store.charge(job("s", 1), (KEY, [1; 32]), element(), LIMITS, 0).await;
                assert_eq!(refused(charge), ErrorCode::KeyLocked);
            }
            store.commit(new.key_id, [2; 32]).await.unwrap();
            assert_eq!(state(&store, new.key_id), (after, [2; 32]));
            assert_eq!(slots_in_use(folder.path()), 1);
        }
    }
}

#[tokio::test]
async fn destroying_a_key_destroys_what_was_to_replace_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = committed(folder.path()).await;
    store.stage(recovery(2, 1), secret(b"new"), None).await.unwrap();
    store.stage(refresh(3, 1), secret(b"newer"), None).await.unwrap();
    store.order(order(KEY, KeyState::Destroyed, 1)).await.unwrap();
    assert_eq!(slots_in_use(folder.path()), 0);
    assert_eq!(refused(store.commit(NEW, [2; 32]).await), ErrorCode::JobSuperseded);
    assert_eq!(refused(store.commit(KEY, [3; 32]).await), ErrorCode::JobSuperseded);
    assert_eq!(refused(store.stage(refresh(4, 1), secret(b"late"), None).await), ErrorCode::KeyDestroyed);
    assert!(store.key(NEW).unwrap().is_none());
    assert!(store.has_room(&quota(1), NEW).unwrap());
}

#[tokio::test]
async fn only_what_follows_on_the_committed_shares_is_staged() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    assert_eq!(refused(store.stage(refresh(2, 1), secret(b"x"), None).await), ErrorCode::UnknownKey);
    store.stage(attempt(1), secret(CANARY), None).await.unwrap();
    assert_eq!(refused(store.stage(recovery(2, 1), secret(b"x"), None).await), ErrorCode::UnknownKey, "prepared only");
    store.commit(KEY, [1; 32]).await.unwrap();
    assert_eq!(refused(store.stage(recovery(2, 7), secret(b"x"), None).await), ErrorCode::JobSuperseded);
    assert_eq!(slots_in_use(folder.path()), 1);
    // A dropped one never comes back, and takes nothing with it.
    store.stage(recovery(2, 1), secret(b"x"), None).await.unwrap();
    store.discard(NEW, [2; 32]).await.unwrap();
    assert_eq!(refused(store.stage(recovery(2, 1), secret(b"x"), None).await), ErrorCode::JobIdReused);
    assert!(store.replacements(KEY).unwrap().is_empty());
    assert!(!store.has_room(&quota(1), NEW).unwrap(), "the source still counts");
    assert_eq!(slots_in_use(folder.path()), 1);
    // Each job has room of its own: one that never ends keeps no other out.
    for n in 0..64 {
        store.stage(Attempt { job_digest: [77; 32], ..refresh(100 + n, 1) }, secret(b"x"), None).await.unwrap();
    }
    let one_more = Attempt { job_digest: [77; 32], ..refresh(200, 1) };
    assert_eq!(refused(store.stage(one_more, secret(b"x"), None).await), ErrorCode::Overloaded);
    store.stage(refresh(201, 1), secret(b"x"), None).await.unwrap();
    store.commit(KEY, [201; 32]).await.unwrap();
    assert_eq!(slots_in_use(folder.path()), 1);
    // And each job gives new shares once: whoever replays it cannot make the client's share stale.
    let replayed = Attempt { job_digest: [201; 32], ..refresh(202, 201) };
    assert_eq!(refused(store.stage(replayed, secret(b"x"), None).await), ErrorCode::JobIdReused);
    for n in 0..64 {
        store.stage(Attempt { job_digest: [2; 32], ..refresh(n, 201) }, secret(b"x"), None).await.unwrap();
    }
}

/// The decision is one commit of the database: cut off before it, everything is as it was; after it, nothing is left to do but the
/// overwriting of slots, which the next start does.
#[tokio::test]
async fn a_decision_that_is_cut_off_is_made_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let (database, slots) = (folder.path().join("store.redb"), folder.path().join("slots"));
    let store = committed(folder.path()).await;
    store.stage(recovery(2, 1), secret(b"new"), None).await.unwrap();
    store.stage(refresh(3, 1), secret(b"newer"), None).await.unwrap();
    drop(store);
    let (database_before, slots_before) = (fs::read(&database).unwrap(), fs::read(&slots).unwrap());
    let store = open(folder.path()).unwrap();
    store.commit(NEW, [2; 32]).await.unwrap();
    drop(store);
    let (database_after, slots_after) = (fs::read(&database).unwrap(), fs::read(&slots).unwrap());
    // The slot file's generation is written before the commit, the slots are overwritten after it.
    let announced = [&slots_after[..64], &slots_before[64..]].concat();

    fs::write(&database, &database_before).unwrap();
    fs::write(&slots, &announced).unwrap();
    let store = open(folder.path()).unwrap();
    assert_eq!(state(&store, KEY), (KeyState::Active, [1; 32]));
    assert_eq!(store.replacements(KEY).unwrap().len(), 2);
    let read = |store: &RedbStore, key, n: u8| -> Option<Zeroizing<Vec<u8>>> { store.material(key, [n; 32]).ok() };
    assert!(read(&store, KEY, 1).is_some() && read(&store, NEW, 2).is_some() && read(&store, KEY, 3).is_some());
    drop(store);

    fs::write(&database, &database_after).unwrap();
    fs::write(&slots, &announced).unwrap();
    assert_eq!(slots_in_use(folder.path()), 3);
    let store = open(folder.path()).unwrap();
    assert_eq!(state(&store, NEW), (KeyState::Active, [2; 32]));
    assert!(read(&store, KEY, 1).is_none() && read(&store, NEW, 2).is_some() && read(&store, KEY, 3).is_none());
    assert_eq!(slots_in_use(folder.path()), 1);
}

#[tokio::test]
async fn a_store_of_another_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(committed(folder.path()).await);
    for (format, says) in [(1, "an older version"), (2, "an older version"), (4, "a newer version")] {
        let db = redb::Database::open(folder.path().join("store.redb")).unwrap();
        let tx = db.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
        tx.open_table(meta).unwrap().insert("format", [format].as_slice()).unwrap();
        tx.commit().unwrap();
        drop(db);
        let error = open(folder.path()).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}
