//! [`Store`] on `redb`: exactly one process per data directory.

use super::open::{HeadCell, read_head};
use super::rows::{
    self, ATTEMPTS, AttemptRow, BURNED, CHARGED, DISCARDED, GUESSES, GuessRow, JOBS, JOBS_BY_EXPIRY, JobRow, KEYS,
    KeyRow, ORDERS, OWNED, OrderRow, RECORDS, attempt_key,
};
use super::seal::{self, Binding};
use super::slots::{SlotFile, SlotReader};
use super::writer::{Batch, Writer};
use super::{
    Attempt, BurnedSession, GuessLimits, GuessOutcome, KeyRecord, KeyState, LedgerEntry, Order, Store, StoreError,
    Written,
};
use crate::node::audit::Head;
use crate::wire::{ErrorCode, InitiatorId, KeyId};
use redb::{Database, ReadableDatabase, ReadableTable};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use trefoil_protocol::Party;
use zeroize::Zeroizing;

/// Attempts of one key that may be prepared at once.
const MAX_PREPARED: usize = 64;
/// How long the ledger outlives a job's expiry, milliseconds: more than any clock is set back.
const MARGIN_MS: u64 = 3_600_000;
/// Rows that one pruning removes.
const PRUNE: usize = 10_000;

/// The embedded store.
pub struct RedbStore {
    // The writer is first, so that it has finished before the database closes.
    writer: Watched,
    db: Arc<Database>,
    slots: SlotReader,
    head: HeadCell,
    party: Party,
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
            let outcome = written.await;
            if matches!(outcome, Err(StoreError::Failed(_))) {
                failed.store(true, Ordering::Release);
            }
            outcome
        })
    }
}

impl RedbStore {
    pub(super) fn start(db: Database, slots: SlotFile, party: Party) -> Result<Self, StoreError> {
        let (db, head) = (Arc::new(db), Arc::new(Mutex::new(None)));
        let reader = slots.reader();
        let writer = Writer::start(Arc::clone(&db), slots, Arc::clone(&head))?;
        let writer = Watched { writer, failed: Arc::default() };
        Ok(Self { writer, db, slots: reader, head, party })
    }
}

fn refused<T>(code: ErrorCode) -> Result<T, StoreError> {
    Err(StoreError::Refused(code))
}

pub fn binding(attempt: &Attempt, party: Party) -> Binding {
    Binding { key_id: attempt.key_id, epoch: attempt.epoch, party, transcript: attempt.transcript }
}

fn check_ledger(
    jobs: &impl ReadableTable<&'static [u8], &'static [u8]>,
    job: &LedgerEntry,
) -> Result<bool, StoreError> {
    match rows::get::<&[u8], JobRow>(jobs, &rows::job_key(&job.initiator, &job.job_id))? {
        Some(known) if known.digest != job.digest => refused(ErrorCode::JobIdReused),
        known => Ok(known.is_some()),
    }
}

/// Enters a job; call after every check of the write.
fn enter(batch: &Batch<'_>, job: &LedgerEntry) -> Result<(), StoreError> {
    let key = rows::job_key(&job.initiator, &job.job_id);
    let row = JobRow { digest: job.digest, op: job.op, expires_at: job.expires_at };
    batch.tx.open_table(JOBS)?.insert(key.as_slice(), rows::encode(&row)?.as_slice())?;
    let by_expiry = [job.expires_at.to_be_bytes().as_slice(), &key].concat();
    batch.tx.open_table(JOBS_BY_EXPIRY)?.insert(by_expiry.as_slice(), ())?;
    Ok(())
}

fn key_row(batch: &Batch<'_>, id: KeyId) -> Result<Option<KeyRow>, StoreError> {
    rows::get(&batch.tx.open_table(KEYS)?, &id.0)
}

fn put_key(batch: &Batch<'_>, id: KeyId, row: &KeyRow) -> Result<(), StoreError> {
    batch.tx.open_table(KEYS)?.insert(&id.0, rows::encode(row)?.as_slice())?;
    Ok(())
}

fn attempt_row(batch: &Batch<'_>, key: &[u8; 48]) -> Result<Option<AttemptRow>, StoreError> {
    rows::get(&batch.tx.open_table(ATTEMPTS)?, key)
}

/// Destroys an attempt's secret bytes, and forgets the attempt itself unless it is to be remembered.
fn destroy(batch: &mut Batch<'_>, key: &[u8; 48], row: AttemptRow, remember: bool) -> Result<(), StoreError> {
    let mut attempts = batch.tx.open_table(ATTEMPTS)?;
    if remember {
        attempts.insert(key, rows::encode(&AttemptRow { slot: 0, ..row })?.as_slice())?;
    } else {
        attempts.remove(key)?;
    }
    batch.tx.open_table(RECORDS)?.remove(key)?;
    if row.slot != 0 {
        batch.wipe.push(row.slot);
    }
    Ok(())
}

/// Encrypts secret bytes under a fresh data key, and stores both.
fn put_material(batch: &mut Batch<'_>, attempt: Attempt, party: Party, plain: &[u8]) -> Result<(), StoreError> {
    let binding = binding(&attempt, party);
    let data_key = seal::fresh_key()?;
    let sealed = seal::seal(data_key.expose(), &binding.record(), plain)?;
    let slot = batch.slots.put(&data_key, &binding)?;
    let key = attempt_key(attempt.key_id, attempt.transcript);
    batch.tx.open_table(RECORDS)?.insert(&key, sealed.as_slice())?;
    batch.tx.open_table(ATTEMPTS)?.insert(&key, rows::encode(&AttemptRow { attempt, slot })?.as_slice())?;
    Ok(())
}

/// Whether the owner may have this key: has it already, or has fewer than so many.
fn has_room(
    owned: &impl ReadableTable<&'static [u8], ()>,
    owner: &InitiatorId,
    id: KeyId,
    max_keys: u64,
) -> Result<bool, StoreError> {
    if owned.get(rows::owned_key(owner, id).as_slice())?.is_some() {
        return Ok(true);
    }
    let (first, last) = (rows::owned_key(owner, KeyId([0; 16])), rows::owned_key(owner, KeyId([0xFF; 16])));
    let count =
        owned.range::<&[u8]>(first.as_slice()..=last.as_slice())?.take(max_keys.min(u64::from(u32::MAX)) as usize);
    Ok((count.count() as u64) < max_keys)
}

/// All attempts of a key.
fn attempts_of(
    table: &impl ReadableTable<&'static [u8; 48], &'static [u8]>,
    id: KeyId,
) -> Result<Vec<AttemptRow>, StoreError> {
    let (first, last) = (attempt_key(id, [0; 32]), attempt_key(id, [0xFF; 32]));
    table.range::<&[u8; 48]>(&first..=&last)?.map(|entry| rows::decode(entry?.1.value())).collect()
}

/// The secret bytes of an attempt, decrypted.
pub fn read_material(
    db: &impl ReadableDatabase,
    slots: &SlotReader,
    party: Party,
    id: KeyId,
    transcript: [u8; 32],
) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    const GONE: StoreError = StoreError::Corrupt("a share without its record");
    let tx = db.begin_read()?;
    let key = attempt_key(id, transcript);
    let row: AttemptRow = rows::get(&tx.open_table(ATTEMPTS)?, &key)?.ok_or(GONE)?;
    let binding = binding(&row.attempt, party);
    let data_key = slots.get(row.slot, &binding)?;
    let record = tx.open_table(RECORDS)?.get(&key)?.ok_or(GONE)?;
    seal::open(data_key.expose(), &binding.record(), record.value())
}

impl Store for RedbStore {
    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let tx = self.db.begin_read()?;
        let Some(row) = rows::get::<&[u8; 16], KeyRow>(&tx.open_table(KEYS)?, &id.0)? else { return Ok(None) };
        let attempt: Option<AttemptRow> = rows::get(&tx.open_table(ATTEMPTS)?, &attempt_key(id, row.transcript))?;
        let AttemptRow { attempt, .. } = attempt.ok_or(StoreError::Corrupt("a key without its attempt"))?;
        Ok(Some(KeyRecord { state: row.state, attempt }))
    }

    fn prepared(&self, id: KeyId) -> Result<Vec<Attempt>, StoreError> {
        let tx = self.db.begin_read()?;
        if tx.open_table(KEYS)?.get(&id.0)?.is_some() {
            return Ok(Vec::new());
        }
        Ok(attempts_of(&tx.open_table(ATTEMPTS)?, id)?.into_iter().map(|row| row.attempt).collect())
    }

    fn material(&self, id: KeyId, transcript: [u8; 32]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        read_material(self.db.as_ref(), &self.slots, self.party, id, transcript)
    }

    fn admit(&self, job: LedgerEntry) -> Written<()> {
        self.writer.submit(move |batch| {
            let known = check_ledger(&batch.tx.open_table(JOBS)?, &job)?;
            if known { Ok(()) } else { enter(batch, &job) }
        })
    }

    fn check_ledger(&self, job: &LedgerEntry) -> Result<(), StoreError> {
        check_ledger(&self.db.begin_read()?.open_table(JOBS)?, job).map(|_| ())
    }

    fn charge(&self, job: LedgerEntry, key: KeyId, blinded: [u8; 32], limits: GuessLimits, now: u64) -> Written<()> {
        self.writer.submit(move |batch| {
            let known = check_ledger(&batch.tx.open_table(JOBS)?, &job)?;
            let state = key_row(batch, key)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?.state;
            state.usable().map_err(StoreError::Refused)?;
            let mut charged = batch.tx.open_table(CHARGED)?;
            let name = rows::job_key(&job.initiator, &job.job_id);
            if known && charged.get(name.as_slice())?.is_some_and(|element| *element.value() == blinded) {
                return Ok(());
            }
            let mut guesses = batch.tx.open_table(GUESSES)?;
            let mut row: GuessRow = rows::get(&guesses, &key.0)?.unwrap_or_default();
            let over = row.wrong >= limits.attempts || row.open >= limits.attempts.saturating_mul(10);
            let until = row.last.saturating_add(limits.lockout.as_millis() as u64);
            if over && now < until {
                return Err(StoreError::LockedOut { until });
            }
            row.open = row.open.saturating_add(1);
            row.last = now;
            charged.insert(name.as_slice(), &blinded)?;
            guesses.insert(&key.0, rows::encode(&row)?.as_slice())?;
            if known { Ok(()) } else { enter(batch, &job) }
        })
    }

    fn settle(&self, key: KeyId, outcome: GuessOutcome, now: u64) -> Written<()> {
        self.writer.submit(move |batch| settle(batch, key, outcome, now))
    }

    fn burn(&self, session: BurnedSession) -> Written<()> {
        self.writer.submit(move |batch| {
            let state = key_row(batch, session.key_id)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?.state;
            state.usable().map_err(StoreError::Refused)?;
            let mut name = [0; 24];
            let (time, id) = name.split_at_mut(8);
            time.copy_from_slice(&session.time.to_be_bytes());
            id.copy_from_slice(&session.session);
            let what = attempt_key(session.key_id, session.job_digest);
            batch.tx.open_table(BURNED)?.insert(&name, &what)?;
            settle(batch, session.key_id, GuessOutcome::Right, session.time)
        })
    }

    fn has_room(&self, owner: &InitiatorId, id: KeyId, max_keys: u64) -> Result<bool, StoreError> {
        has_room(&self.db.begin_read()?.open_table(OWNED)?, owner, id, max_keys)
    }

    fn stage(&self, attempt: Attempt, material: Zeroizing<Vec<u8>>, max_keys: Option<u64>) -> Written<()> {
        let party = self.party;
        self.writer.submit(move |batch| {
            if key_row(batch, attempt.key_id)?.is_some() {
                return refused(ErrorCode::JobIdReused);
            }
            let key = attempt_key(attempt.key_id, attempt.transcript);
            if batch.tx.open_table(DISCARDED)?.get(&key)?.is_some() {
                return refused(ErrorCode::JobIdReused);
            }
            let prepared = attempts_of(&batch.tx.open_table(ATTEMPTS)?, attempt.key_id)?;
            if prepared.iter().any(|row| row.attempt.transcript == attempt.transcript) {
                return Ok(());
            }
            if prepared.len() >= MAX_PREPARED {
                return refused(ErrorCode::Overloaded);
            }
            let (owner, id) = (attempt.initiator.clone(), attempt.key_id);
            let mut owned = batch.tx.open_table(OWNED)?;
            // A key that takes the place of another one does not add to their number.
            if let Some(max_keys) = max_keys.filter(|_| attempt.source_key_id.is_none())
                && !has_room(&owned, &owner, id, max_keys)?
            {
                return refused(ErrorCode::NotPermitted);
            }
            owned.insert(rows::owned_key(&owner, id).as_slice(), ())?;
            drop(owned);
            put_material(batch, attempt, party, &material)
        })
    }

    fn commit(&self, id: KeyId, transcript: [u8; 32]) -> Written<Attempt> {
        self.writer.submit(move |batch| {
            let row = attempt_row(batch, &attempt_key(id, transcript))?;
            let row = row.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
            match key_row(batch, id)? {
                Some(key) if key.transcript == transcript => return Ok(row.attempt),
                Some(_) => return refused(ErrorCode::UnknownKey),
                None => put_key(batch, id, &KeyRow { state: KeyState::Active, transcript })?,
            }
            let others = attempts_of(&batch.tx.open_table(ATTEMPTS)?, id)?;
            for other in others.into_iter().filter(|other| other.attempt.transcript != transcript) {
                destroy(batch, &attempt_key(id, other.attempt.transcript), other, false)?;
            }
            Ok(row.attempt)
        })
    }

    fn discard(&self, id: KeyId, transcript: [u8; 32]) -> Written<()> {
        self.writer.submit(move |batch| {
            if key_row(batch, id)?.is_some_and(|key| key.transcript == transcript) {
                return refused(ErrorCode::JobIdReused);
            }
            let key = attempt_key(id, transcript);
            batch.tx.open_table(DISCARDED)?.insert(&key, ())?;
            let Some(row) = attempt_row(batch, &key)? else { return Ok(()) };
            let owned = rows::owned_key(&row.attempt.initiator, id);
            destroy(batch, &key, row, false)?;
            if key_row(batch, id)?.is_none() && attempts_of(&batch.tx.open_table(ATTEMPTS)?, id)?.is_empty() {
                batch.tx.open_table(OWNED)?.remove(owned.as_slice())?;
            }
            Ok(())
        })
    }

    fn lock(&self, id: KeyId, kept: Zeroizing<Vec<u8>>) -> Written<()> {
        let party = self.party;
        self.writer.submit(move |batch| {
            let row = key_row(batch, id)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
            if row.state == KeyState::Locked {
                return Ok(());
            }
            if !row.state.may_become(KeyState::Locked) {
                return row.state.usable().map_err(StoreError::Refused);
            }
            let key = attempt_key(id, row.transcript);
            let old = attempt_row(batch, &key)?.ok_or(StoreError::Corrupt("a key without its attempt"))?;
            batch.wipe.push(old.slot);
            put_material(batch, old.attempt, party, &kept)?;
            put_key(batch, id, &KeyRow { state: KeyState::Locked, ..row })
        })
    }

    fn transition(&self, id: KeyId, to: KeyState) -> Written<()> {
        self.writer.submit(move |batch| transition(batch, id, to))
    }

    fn order(&self, Order { job, key_id, to, issued_at }: Order) -> Written<()> {
        self.writer.submit(move |batch| {
            let known = check_ledger(&batch.tx.open_table(JOBS)?, &job)?;
            let last: Option<OrderRow> = rows::get(&batch.tx.open_table(ORDERS)?, &key_id.0)?;
            match last {
                Some(last) if last.digest == job.digest => return Ok(()),
                Some(last) if issued_at <= last.issued_at => return refused(ErrorCode::JobSuperseded),
                _ => {}
            }
            transition(batch, key_id, to)?;
            let row = OrderRow { issued_at, digest: job.digest };
            batch.tx.open_table(ORDERS)?.insert(&key_id.0, rows::encode(&row)?.as_slice())?;
            if known { Ok(()) } else { enter(batch, &job) }
        })
    }

    fn prune(&self, now: u64) -> Written<()> {
        let cutoff = now.saturating_sub(MARGIN_MS).to_be_bytes();
        self.writer.submit(move |batch| {
            let mut by_expiry = batch.tx.open_table(JOBS_BY_EXPIRY)?;
            let mut jobs = batch.tx.open_table(JOBS)?;
            let mut charged = batch.tx.open_table(CHARGED)?;
            let over = by_expiry.range(..cutoff.as_slice())?.take(PRUNE);
            let over: Vec<Vec<u8>> =
                over.map(|entry| Ok(entry?.0.value().to_vec())).collect::<Result<_, StoreError>>()?;
            for key in over {
                by_expiry.remove(key.as_slice())?;
                jobs.remove(key.get(8..).unwrap_or_default())?;
                charged.remove(key.get(8..).unwrap_or_default())?;
            }
            let mut burned = batch.tx.open_table(BURNED)?;
            let mut end = [0; 24];
            if let Some(time) = end.first_chunk_mut::<8>() {
                *time = cutoff;
            }
            let over = burned.range::<&[u8; 24]>(..&end)?.take(PRUNE);
            let over: Vec<[u8; 24]> = over.map(|entry| Ok(*entry?.0.value())).collect::<Result<_, StoreError>>()?;
            for key in over {
                burned.remove(&key)?;
            }
            Ok(())
        })
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
        read_head(self.db.as_ref())
    }
}

fn transition(batch: &mut Batch<'_>, id: KeyId, to: KeyState) -> Result<(), StoreError> {
    let row = key_row(batch, id)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    if row.state == to {
        return Ok(());
    }
    if !row.state.may_become(to) {
        return Err(StoreError::Refused(row.state.usable().err().unwrap_or(ErrorCode::Internal)));
    }
    if to.is_end() {
        let key = attempt_key(id, row.transcript);
        let attempt = attempt_row(batch, &key)?.ok_or(StoreError::Corrupt("a key without its attempt"))?;
        let owned = rows::owned_key(&attempt.attempt.initiator, id);
        destroy(batch, &key, attempt, true)?;
        batch.tx.open_table(OWNED)?.remove(owned.as_slice())?;
    }
    put_key(batch, id, &KeyRow { state: to, ..row })
}

fn settle(batch: &Batch<'_>, key: KeyId, outcome: GuessOutcome, now: u64) -> Result<(), StoreError> {
    let mut guesses = batch.tx.open_table(GUESSES)?;
    let row = match outcome {
        GuessOutcome::Right => GuessRow::default(),
        GuessOutcome::Wrong => {
            let row: GuessRow = rows::get(&guesses, &key.0)?.unwrap_or_default();
            GuessRow { wrong: row.wrong.saturating_add(1), open: row.open.saturating_sub(1), last: now }
        }
    };
    guesses.insert(&key.0, rows::encode(&row)?.as_slice())?;
    Ok(())
}
