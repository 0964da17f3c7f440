//! [`Store`] on `redb`: exactly one process per data directory.

use super::attempts::{attempts_of, has_room, read_material, replacements_of};
use super::dump::Snapshot;
use super::ledger::{self, check_ledger};
use super::open::{HeadCell, read_head};
use super::quarantine::{self, Doubt, Quarantine, Verdict};
use super::rows::{self, ATTEMPTS, AttemptRow, JOBS, KEYS, KeyRow, ORDERS, OWNED, OrderRow, REPLACEMENTS, attempt_key};
use super::slots::{SlotFile, SlotReader};
use super::undecided::{self, Standing};
use super::writer::{Batch, Writer};
use super::{
    Asked, Attempt, BurnedSession, Fate, GuessLimits, GuessOutcome, KeyRecord, LedgerEntry, Order, Quota,
    RecoveryRules, Registered, Store, StoreError, Written, cancel, guesses, recoveries, registry, staging,
};
use crate::node::audit::Head;
use crate::node::gather::Underway;
use crate::telemetry::metrics::NodeMetrics;
use crate::wire::{EpochStatement, ErrorCode, InitiatorId, JobId, JobState, KeyId};
use redb::{Database, ReadableDatabase};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::Instrument as _;
use trefoil_protocol::Party;
use zeroize::Zeroizing;

/// The embedded store.
pub struct RedbStore {
    // The writer is first, so that it has finished before the database closes.
    writer: Watched,
    db: Arc<Database>,
    slots: SlotReader,
    head: HeadCell,
    party: Party,
    restored: Option<Quarantine>,
    metrics: Arc<NodeMetrics>,
}

/// The writer, and whether one of its writes has failed.
struct Watched {
    writer: Writer,
    failed: Arc<AtomicBool>,
}

impl Watched {
    fn submit<T: Send + 'static>(
        &self,
        write: impl FnOnce(&mut Batch<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Written<T> {
        let (written, failed) = (self.writer.submit(write), Arc::clone(&self.failed));
        Box::pin(async move {
            let outcome = written.instrument(tracing::debug_span!("store")).await;
            if matches!(outcome, Err(StoreError::Failed(_))) {
                failed.store(true, Ordering::Release);
            }
            outcome
        })
    }
}

impl RedbStore {
    pub(super) fn start(
        db: Database,
        slots: SlotFile,
        party: Party,
        restored: Option<Quarantine>,
        underway: Underway,
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, StoreError> {
        let (db, head) = (Arc::new(db), Arc::new(Mutex::new(None)));
        let reader = slots.reader();
        let writer = Writer::start(Arc::clone(&db), slots, Arc::clone(&head), underway, Arc::clone(&metrics))?;
        let writer = Watched { writer, failed: Arc::default() };
        Ok(Self { writer, db, slots: reader, head, party, restored, metrics })
    }

    /// Reads, and counts failures.
    fn read<T>(&self, read: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        read(&self.db).inspect_err(|error| {
            if !error.is_refusal() {
                self.metrics.store_failures.inc();
            }
        })
    }

    /// Are these a live key's shares now?
    fn is_current(&self, id: KeyId, transcript: [u8; 32]) -> bool {
        self.key(id).is_ok_and(|key| key.is_some_and(|key| key.attempt.transcript == transcript && !key.state.is_end()))
    }
}

impl Store for RedbStore {
    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.read(|db| {
            let tx = db.begin_read()?;
            let row = rows::get::<&[u8; 16], KeyRow>(&tx.open_table(KEYS)?, &id.0)?;
            let Some(KeyRow { state, transcript, successor, .. }) = row else { return Ok(None) };
            let attempt: Option<AttemptRow> = rows::get(&tx.open_table(ATTEMPTS)?, &attempt_key(id, transcript))?;
            let AttemptRow { attempt, .. } = attempt.ok_or(StoreError::Corrupt("a key without its attempt"))?;
            Ok(Some(KeyRecord { state, attempt, successor }))
        })
    }

    fn prepared(&self, id: KeyId) -> Result<Vec<Attempt>, StoreError> {
        let attempts = self.read(|db| attempts_of(&db.begin_read()?.open_table(ATTEMPTS)?, id))?;
        Ok(attempts.into_iter().filter(|row| row.fate == Fate::Prepared).map(|row| row.attempt).collect())
    }

    fn replacements(&self, source: KeyId) -> Result<Vec<Attempt>, StoreError> {
        let attempts = self.read(|db| {
            let tx = db.begin_read()?;
            replacements_of(&tx.open_table(REPLACEMENTS)?, &tx.open_table(ATTEMPTS)?, source)
        })?;
        Ok(attempts.into_iter().map(|row| row.attempt).collect())
    }

    fn attempt(&self, id: KeyId, transcript: [u8; 32]) -> Result<Option<Attempt>, StoreError> {
        let row: Option<AttemptRow> =
            self.read(|db| rows::get(&db.begin_read()?.open_table(ATTEMPTS)?, &attempt_key(id, transcript)))?;
        Ok(row.map(|row| row.attempt))
    }

    fn material(&self, id: KeyId, transcript: [u8; 32]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let read = read_material(self.db.as_ref(), &self.slots, self.party, id, transcript);
        read.inspect_err(|error| {
            // Shares that were replaced at this moment are gone, as they should be.
            if !matches!(error, StoreError::Corrupt(_)) || self.is_current(id, transcript) {
                self.metrics.store_failures.inc();
            }
        })
    }

    fn admit(&self, job: LedgerEntry) -> Written<()> {
        self.writer.submit(move |batch| {
            let known = check_ledger(&batch.tx.open_table(JOBS)?, &job)?;
            if known { Ok(()) } else { ledger::enter(batch, &job) }
        })
    }

    fn check_ledger(&self, job: &LedgerEntry) -> Result<bool, StoreError> {
        self.read(|db| check_ledger(&db.begin_read()?.open_table(JOBS)?, job))
    }

    fn charge(
        &self,
        job: LedgerEntry,
        key: (KeyId, [u8; 32]),
        blinded: [u8; 32],
        limits: GuessLimits,
        now: u64,
    ) -> Written<()> {
        self.writer.submit(move |batch| guesses::charge(batch, &job, key, &blinded, limits, now))
    }

    fn settle(&self, key: (KeyId, [u8; 32]), outcome: GuessOutcome, now: u64) -> Written<()> {
        self.writer.submit(move |batch| guesses::settle(batch, key, outcome, now))
    }

    fn burn(&self, session: BurnedSession) -> Written<()> {
        self.burn_items(session, vec![session.session])
    }

    fn burn_items(&self, session: BurnedSession, items: Vec<[u8; 16]>) -> Written<()> {
        self.writer.submit(move |batch| guesses::burn(batch, session, &items))
    }

    fn has_room(&self, quota: &Quota, id: KeyId) -> Result<bool, StoreError> {
        self.read(|db| has_room(&db.begin_read()?.open_table(OWNED)?, quota, id))
    }

    fn stage(&self, attempt: Attempt, material: Zeroizing<Vec<u8>>, quota: Option<Quota>) -> Written<()> {
        let party = self.party;
        self.writer.submit(move |batch| staging::stage(batch, attempt, &material, quota.as_ref(), party))
    }

    fn commit(&self, id: KeyId, transcript: [u8; 32]) -> Written<Attempt> {
        let party = self.party;
        self.writer.submit(move |batch| staging::commit(batch, id, transcript, party))
    }

    fn discard(&self, id: KeyId, transcript: [u8; 32]) -> Written<()> {
        self.writer.submit(move |batch| staging::discard(batch, id, transcript))
    }

    fn lock(&self, id: KeyId, transcript: [u8; 32], kept: Zeroizing<Vec<u8>>) -> Written<()> {
        let party = self.party;
        self.writer.submit(move |batch| staging::lock(batch, id, transcript, &kept, party))
    }

    fn order(&self, Order { job, key_id, to, issued_at }: Order) -> Written<()> {
        self.writer.submit(move |batch| {
            let known = check_ledger(&batch.tx.open_table(JOBS)?, &job)?;
            let last: Option<OrderRow> = rows::get(&batch.tx.open_table(ORDERS)?, &key_id.0)?;
            match last {
                Some(last) if last.digest == job.digest => return Ok(()),
                Some(last) if issued_at <= last.issued_at => {
                    return Err(StoreError::Refused(ErrorCode::JobSuperseded));
                }
                _ => {}
            }
            staging::transition(batch, key_id, to)?;
            let row = OrderRow { issued_at, digest: job.digest };
            batch.tx.open_table(ORDERS)?.insert(&key_id.0, rows::encode(&row)?.as_slice())?;
            if known { Ok(()) } else { ledger::enter(batch, &job) }
        })
    }

    fn prune(&self, now: u64) -> Written<()> {
        self.writer.submit(move |batch| {
            recoveries::note_time(batch, now)?;
            ledger::prune(batch, now)
        })
    }

    fn registered(
        &self,
        owner: &InitiatorId,
        from: Bound<KeyId>,
        limit: u32,
    ) -> Result<(Vec<Registered>, bool), StoreError> {
        self.read(|db| registry::list(db, owner, from, limit as usize))
    }

    fn label(&self, job: LedgerEntry, key: KeyId, label: Option<String>, issued_at: u64) -> Written<()> {
        self.writer.submit(move |batch| registry::label(batch, &job, key, label, issued_at))
    }

    fn cancel(&self, job: LedgerEntry, other: JobId, now: u64) -> Written<()> {
        self.writer.submit(move |batch| cancel::cancel(batch, &job, &other, now))
    }

    fn job_state(&self, initiator: &InitiatorId, job: &JobId) -> Result<JobState, StoreError> {
        self.read(|db| cancel::state(&db.begin_read()?.open_table(JOBS)?, initiator, job))
    }

    fn ask_recovery(
        &self,
        job: LedgerEntry,
        key: KeyId,
        issued_at: u64,
        opens: bool,
        rules: RecoveryRules,
        now: u64,
    ) -> Written<Asked> {
        self.writer.submit(move |batch| recoveries::ask(batch, &job, key, issued_at, opens, rules, now))
    }

    fn cancel_recovery(&self, job: LedgerEntry, key: KeyId, issued_at: u64) -> Written<bool> {
        self.writer.submit(move |batch| recoveries::cancel(batch, &job, key, issued_at))
    }

    fn check(&self) -> Written<()> {
        let (db, failed) = (Arc::clone(&self.db), Arc::clone(&self.writer.failed));
        Box::pin(async move {
            if !failed.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            // A corrupt row fails the writes beside it and nothing else. After the disk has failed, redb writes no more.
            let empty = tokio::task::spawn_blocking(move || Ok(db.begin_write()?.commit()?)).await;
            let outcome = empty.unwrap_or_else(|_| Err(StoreError::Failed("the check ended unexpectedly".into())));
            if outcome.is_err() {
                failed.store(true, Ordering::Release);
            }
            outcome
        })
    }

    fn anchor(&self, head: Head) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }

    fn anchored(&self) -> Result<Option<Head>, StoreError> {
        self.read(read_head)
    }

    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.read(Snapshot::of)
    }

    fn copy_slots(&self, to: PathBuf) -> Written<()> {
        let slots = self.slots.clone();
        // On the writer's thread, so that no slot is written meanwhile. A failure concerns the copy, not the store.
        let copied = self.writer.writer.submit(move |_| Ok(slots.copy_to(&to)));
        Box::pin(async move { copied.await? })
    }

    fn undecided(&self, before: u64, limit: usize) -> Result<Vec<Attempt>, StoreError> {
        self.read(|db| undecided::list(db, before, limit))
    }

    fn standing(&self, id: KeyId, transcript: [u8; 32], generated: bool) -> Written<Standing> {
        self.writer.submit(move |batch| undecided::standing(batch, id, transcript, generated))
    }

    fn quarantine(&self) -> Option<Quarantine> {
        self.restored
    }

    fn doubt(&self, id: KeyId) -> Result<Option<Doubt>, StoreError> {
        self.read(|db| quarantine::of(db, id))
    }

    fn doubts(&self) -> Result<(u64, u64), StoreError> {
        self.read(quarantine::count)
    }

    fn confirm(&self, said: EpochStatement, wipe: bool) -> Written<Verdict> {
        let party = self.party;
        self.writer.submit(move |batch| quarantine::confirm(batch, &said, wipe, party))
    }
}
