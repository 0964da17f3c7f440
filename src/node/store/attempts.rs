//! Rows of keys and attempts, and the secret bytes that belong to them.

use super::rows::{
    self, ATTEMPTS, AttemptRow, KEYS, KeyRow, OWNED, RECORDS, REPLACEMENTS, attempt_key, replacement_key,
};
use super::seal::{self, Binding};
use super::slots::SlotReader;
use super::undecided;
use super::writer::Batch;
use super::{Attempt, Fate, Quota, StoreError};
use crate::wire::{InitiatorId, KeyId};
use redb::{ReadableDatabase, ReadableTable};
use trefoil_protocol::Party;
use zeroize::Zeroizing;

pub fn binding(attempt: &Attempt, party: Party) -> Binding {
    Binding { key_id: attempt.key_id, epoch: attempt.epoch, party, transcript: attempt.transcript }
}

pub fn key_row(batch: &Batch<'_>, id: KeyId) -> Result<Option<KeyRow>, StoreError> {
    rows::get(&batch.tx.open_table(KEYS)?, &id.0)
}

pub fn put_key(batch: &Batch<'_>, id: KeyId, row: &KeyRow) -> Result<(), StoreError> {
    batch.tx.open_table(KEYS)?.insert(&id.0, rows::encode(row)?.as_slice())?;
    Ok(())
}

pub fn attempt_row(batch: &Batch<'_>, key: &[u8; 48]) -> Result<Option<AttemptRow>, StoreError> {
    rows::get(&batch.tx.open_table(ATTEMPTS)?, key)
}

pub fn put_attempt(batch: &Batch<'_>, row: &AttemptRow) -> Result<(), StoreError> {
    let key = attempt_key(row.attempt.key_id, row.attempt.transcript);
    batch.tx.open_table(ATTEMPTS)?.insert(&key, rows::encode(row)?.as_slice())?;
    Ok(())
}

/// Destroys an attempt's secret bytes, and forgets the attempt itself unless it is to be remembered with this fate.
pub fn destroy(batch: &mut Batch<'_>, row: AttemptRow, remember: Option<Fate>) -> Result<(), StoreError> {
    let key = attempt_key(row.attempt.key_id, row.attempt.transcript);
    batch.tx.open_table(RECORDS)?.remove(&key)?;
    if row.slot != 0 {
        batch.wipe.push(row.slot);
    }
    if row.holds_key() {
        batch.live.add(row.attempt.curve, -1);
    }
    unlink(batch, &row.attempt)?;
    undecided::end(batch, &key)?;
    match remember {
        Some(fate) => put_attempt(batch, &AttemptRow { fate, slot: 0, ..row }),
        None => batch.tx.open_table(ATTEMPTS)?.remove(&key).map(|_| ()).map_err(StoreError::from),
    }
}

/// Takes an attempt from the list of those that may take its source's place.
pub fn unlink(batch: &Batch<'_>, attempt: &Attempt) -> Result<(), StoreError> {
    if let Some((source, _)) = attempt.source() {
        let link = replacement_key(source, attempt.key_id, attempt.transcript);
        batch.tx.open_table(REPLACEMENTS)?.remove(&link)?;
    }
    Ok(())
}

/// Encrypts secret bytes under a fresh data key, and stores both.
pub fn put_material(
    batch: &mut Batch<'_>,
    attempt: Attempt,
    fate: Fate,
    party: Party,
    plain: &[u8],
) -> Result<(), StoreError> {
    let binding = binding(&attempt, party);
    let data_key = seal::fresh_key()?;
    let sealed = seal::seal(data_key.expose(), &binding.record(), plain)?;
    let slot = batch.slots.put(&data_key, &binding)?;
    let key = attempt_key(attempt.key_id, attempt.transcript);
    batch.tx.open_table(RECORDS)?.insert(&key, sealed.as_slice())?;
    put_attempt(batch, &AttemptRow { attempt, fate, slot })
}

/// Whether the owner may have this key: has it already, under whichever name, or has fewer than so many under all of them.
pub fn has_room(table: &impl ReadableTable<&'static [u8], ()>, quota: &Quota, id: KeyId) -> Result<bool, StoreError> {
    let mut room = quota.max_keys.min(u64::from(u32::MAX)) as usize;
    for owner in &quota.owners {
        if table.get(rows::owned_key(owner, id).as_slice())?.is_some() {
            return Ok(true);
        }
        let (first, last) = (rows::owned_key(owner, KeyId([0; 16])), rows::owned_key(owner, KeyId([0xFF; 16])));
        let keys = table.range::<&[u8]>(first.as_slice()..=last.as_slice())?;
        room = room.saturating_sub(keys.take(room).count());
    }
    Ok(room > 0)
}

pub fn put_owned(batch: &Batch<'_>, owner: &InitiatorId, id: KeyId) -> Result<(), StoreError> {
    batch.tx.open_table(OWNED)?.insert(rows::owned_key(owner, id).as_slice(), ())?;
    Ok(())
}

pub fn remove_owned(batch: &Batch<'_>, owner: &InitiatorId, id: KeyId) -> Result<(), StoreError> {
    batch.tx.open_table(OWNED)?.remove(rows::owned_key(owner, id).as_slice())?;
    Ok(())
}

/// All attempts of a key, whatever became of them.
pub fn attempts_of(
    table: &impl ReadableTable<&'static [u8; 48], &'static [u8]>,
    id: KeyId,
) -> Result<Vec<AttemptRow>, StoreError> {
    let (first, last) = (attempt_key(id, [0; 32]), attempt_key(id, [0xFF; 32]));
    table.range::<&[u8; 48]>(&first..=&last)?.map(|entry| rows::decode(entry?.1.value())).collect()
}

/// All attempts that are prepared to take the place of a key's shares.
pub fn replacements_of(
    links: &impl ReadableTable<&'static [u8; 64], ()>,
    attempts: &impl ReadableTable<&'static [u8; 48], &'static [u8]>,
    source: KeyId,
) -> Result<Vec<AttemptRow>, StoreError> {
    let first = replacement_key(source, KeyId([0; 16]), [0; 32]);
    let last = replacement_key(source, KeyId([0xFF; 16]), [0xFF; 32]);
    let read = |link: Result<(redb::AccessGuard<'_, &'static [u8; 64]>, _), redb::StorageError>| {
        let link = link?.0;
        let key = link.value().last_chunk::<48>();
        let row = key.map(|key| rows::get(attempts, key)).transpose()?.flatten();
        row.ok_or(StoreError::Corrupt("a replacement without its attempt"))
    };
    links.range::<&[u8; 64]>(&first..=&last)?.map(read).collect()
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
