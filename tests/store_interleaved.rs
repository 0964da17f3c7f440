//! Both nodes' stores under random steps of recoveries, refreshes, locks, freezes, signatures and restarts, with decisions that reach node 2
//! late, twice, or only in the end: there is one living share at any time, and none is lost.
//!
//! `TREFOIL_SEEDS=<n>` runs more than the usual number of seeds. A seed's steps are always the same.
#![allow(clippy::print_stderr, reason = "the seed of a failure")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod stored;

use sha2::{Digest, Sha256};
use std::fs;
use stored::{KEY, attempt, order, refused, secret};
use tempfile::TempDir;
use trefoil::node::store::{Attempt, BurnedSession, KeyState, RedbStore, Store, StoreError};
use trefoil::wire::{ErrorCode, KeyId};
use trefoil_protocol::{Party, Secret};

const STEPS: u32 = 40;

fn open(folder: &TempDir, node: usize) -> RedbStore {
    let party = [Party::Node1, Party::Node2][node];
    RedbStore::open(folder.path(), party, Secret::new([9; 32])).unwrap()
}

struct World {
    folders: [TempDir; 2],
    stores: [Option<RedbStore>; 2],
    seed: u64,
    drawn: u64,
    /// Every attempt that was ever staged, and whether it is staged at both nodes.
    attempts: Vec<(Attempt, bool)>,
    /// What node 1 has committed, in this order.
    decided: Vec<Attempt>,
    clock: u64,
}

impl World {
    async fn new(seed: u64) -> Self {
        let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let stores = [0, 1].map(|node| Some(open(&folders[node], node)));
        let first = attempt(0);
        for store in stores.iter().flatten() {
            store.stage(first.clone(), secret(&first.transcript), None).await.unwrap();
            store.commit(KEY, first.transcript).await.unwrap();
        }
        Self { folders, stores, seed, drawn: 0, attempts: vec![(first.clone(), true)], decided: vec![first], clock: 0 }
    }

    fn store(&self, node: usize) -> &RedbStore {
        self.stores[node].as_ref().unwrap()
    }

    fn below(&mut self, bound: usize) -> usize {
        self.drawn += 1;
        let hash = Sha256::digest([self.seed.to_be_bytes(), self.drawn.to_be_bytes()].concat());
        usize::from(hash[0]) % bound
    }

    fn some_attempt(&mut self) -> (Attempt, bool) {
        let index = self.below(self.attempts.len());
        self.attempts[index].clone()
    }

    /// The key that lives at a node, by its own word.
    fn living(&self, node: usize) -> (KeyState, Attempt) {
        let store = self.store(node);
        let mut ids: Vec<KeyId> = self.attempts.iter().map(|(attempt, _)| attempt.key_id).collect();
        ids.sort();
        ids.dedup();
        let keys = ids.into_iter().filter_map(|id| store.key(id).unwrap());
        let mut living: Vec<_> = keys.filter(|key| !key.state.is_end()).collect();
        assert_eq!(living.len(), 1, "node {}", node + 1);
        let key = living.remove(0);
        (key.state, key.attempt)
    }

    fn holds(&self, node: usize, attempt: &Attempt) -> bool {
        self.store(node).material(attempt.key_id, attempt.transcript).is_ok_and(|bytes| *bytes == attempt.transcript)
    }

    async fn step(&mut self) {
        self.clock += 1;
        match self.below(10) {
            0..=2 => self.prepare().await,
            3 | 4 => self.decide().await,
            5 => self.follow().await,
            6 => self.drop_one().await,
            7 => self.order_or_lock().await,
            8 => self.sign().await,
            _ => {
                let node = self.below(2);
                self.stores[node] = None;
                self.stores[node] = Some(open(&self.folders[node], node));
            }
        }
    }

    /// A worker begins where both nodes hold the same, and dies between them now and then.
    async fn prepare(&mut self) {
        let ((_, source), (_, other)) = (self.living(0), self.living(1));
        if source.transcript != other.transcript {
            return;
        }
        let n = self.attempts.len() as u8;
        let recovery = self.below(2) == 0;
        let new = Attempt {
            job_digest: [100 + n; 32],
            key_id: if recovery { KeyId([100 + n; 16]) } else { source.key_id },
            source_key_id: recovery.then_some(source.key_id),
            source_transcript: Some(source.transcript),
            epoch: source.epoch + 1,
            transcript: [n; 32],
            ..source
        };
        let dies = self.below(4) == 0;
        let mut both = true;
        for node in [1, 0] {
            if node == 0 && dies {
                both = false;
                break;
            }
            match self.store(node).stage(new.clone(), secret(&new.transcript), None).await {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(refused(Err::<(), _>(error)), ErrorCode::KeyFrozen);
                    both = false;
                    break;
                }
            }
        }
        self.attempts.push((new, both));
    }

    async fn decide(&mut self) {
        let (attempt, both) = self.some_attempt();
        // Without node 2's attestation node 1 is not asked.
        if !both {
            return;
        }
        let (_, before) = self.living(0);
        let again = self.decided.contains(&attempt);
        match self.store(0).commit(attempt.key_id, attempt.transcript).await {
            Ok(_) if again => assert_eq!(self.living(0).1, before, "said again, it changes nothing"),
            Ok(_) => {
                assert_eq!(attempt.source(), Some((before.key_id, before.transcript)));
                self.decided.push(attempt);
            }
            Err(StoreError::Refused(ErrorCode::JobSuperseded | ErrorCode::UnknownKey)) => assert!(!again),
            Err(error) => panic!("{error}"),
        }
    }

    /// Any decision of before, and the last one sooner or later.
    async fn follow(&mut self) {
        let index = self.below(self.decided.len());
        let decided = self.decided[index].clone();
        assert_eq!(self.store(1).commit(decided.key_id, decided.transcript).await, Ok(decided));
    }

    async fn drop_one(&mut self) {
        let (attempt, _) = self.some_attempt();
        let was_decided = self.decided.contains(&attempt);
        match self.store(0).discard(attempt.key_id, attempt.transcript).await {
            Ok(()) => {
                assert!(!was_decided);
                self.store(1).discard(attempt.key_id, attempt.transcript).await.unwrap();
            }
            Err(error) => assert!(was_decided && error == StoreError::Refused(ErrorCode::JobIdReused), "{error}"),
        }
    }

    async fn order_or_lock(&mut self) {
        let (state, key) = self.living(0);
        if self.below(3) == 0 {
            self.store(0).lock(key.key_id, key.transcript, secret(&key.transcript)).await.unwrap();
            // A session of any share of before may come too late to lock.
            let (late, _) = self.some_attempt();
            if late.transcript != key.transcript {
                assert!(self.store(0).lock(late.key_id, late.transcript, secret(b"late")).await.is_err());
            }
            return;
        }
        let to = if state == KeyState::Frozen { KeyState::Active } else { KeyState::Frozen };
        let ordered = self.store(0).order(order(key.key_id, to, self.clock)).await;
        assert_eq!(ordered.is_ok(), state != KeyState::Locked);
        if ordered.is_ok() && self.living(1).1.key_id == key.key_id {
            self.store(1).order(order(key.key_id, to, self.clock)).await.unwrap();
        }
    }

    async fn sign(&mut self) {
        let ((share, _), (state, key)) = (self.some_attempt(), self.living(0));
        let session = [self.clock as u8; 16];
        let (key_id, transcript) = (share.key_id, share.transcript);
        let burned = BurnedSession { session, key_id, transcript, job_digest: [0; 32], time: self.clock };
        let signs = self.store(0).burn(burned).await.is_ok();
        assert_eq!(signs, share.transcript == key.transcript && state == KeyState::Active);
    }

    fn check(&self) {
        let (_, key) = self.living(0);
        assert_eq!(self.decided.last(), Some(&key), "what lives is what was decided last");
        // Not lost: node 1 holds it, and node 2 does, committed or ready to be.
        assert!(self.holds(0, &key) && self.holds(1, &key));
        let (_, behind) = self.living(1);
        assert!(self.holds(1, &behind));
        for node in [0, 1] {
            let held = self.attempts.iter().filter(|(attempt, _)| self.holds(node, attempt)).count();
            let slots = fs::read(self.folders[node].path().join("slots")).unwrap();
            let keys = slots.chunks_exact(64).skip(1).filter(|slot| **slot != [0; 64]).count();
            assert_eq!(held, keys, "a data key for each share that is held, and no other");
            // What is held is the living share and what may take its place.
            let (_, living) = self.living(node);
            let replacements = self.store(node).replacements(living.key_id).unwrap();
            assert_eq!(held, 1 + replacements.len());
            assert!(replacements.iter().all(|new| new.source() == Some((living.key_id, living.transcript))));
        }
    }
}

#[tokio::test]
async fn one_share_lives_and_none_is_lost() {
    let seeds: u64 = std::env::var("TREFOIL_SEEDS").ok().map_or(16, |seeds| seeds.parse().unwrap());
    let mut decided = 0;
    for seed in 0..seeds {
        eprintln!("seed {seed}");
        let mut world = World::new(seed).await;
        for _ in 0..STEPS {
            world.step().await;
            world.check();
        }
        // In the end node 2 hears of everything.
        for attempt in world.decided.clone() {
            world.store(1).commit(attempt.key_id, attempt.transcript).await.unwrap();
        }
        world.check();
        assert_eq!(world.living(0).1, world.living(1).1);
        decided += world.decided.len() - 1;
    }
    assert!(decided as u64 > seeds, "too little was decided to show anything: {decided}");
}
