//! The registry: every key that was committed, by owner, with what its owner calls it.

use super::attempts::{attempt_row, key_row};
use super::ledger::{self, check_ledger};
use super::rows::{self, ATTEMPTS, AttemptRow, JOBS, KEYS, KeyRow, attempt_key, owned_key};
use super::writer::Batch;
use super::{Attempt, KeyRecord, LedgerEntry, Registered, StoreError};
use crate::wire::{ErrorCode, InitiatorId, KeyId};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::ops::Bound;

/// Owner ‖ key id -> [`RegistryRow`].
pub const REGISTRY: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("registry");

#[derive(Serialize, Deserialize)]
struct RegistryRow {
    /// When the key was committed, unix milliseconds.
    created_at: u64,
    label: Option<String>,
    /// When the job was issued that gave the label; zero for the job that made the key.
    labelled_at: u64,
}

/// Registers a key that was just committed, which `before` owned if it was there. A key that takes another one's place keeps its label, one
/// that is registered already keeps everything, also where its owner has another name now.
pub fn enter(batch: &Batch<'_>, new: &Attempt, before: &InitiatorId, now: u64) -> Result<(), StoreError> {
    let mut registry = batch.tx.open_table(REGISTRY)?;
    let name = owned_key(&new.initiator, new.key_id);
    if registry.get(name.as_slice())?.is_some() {
        return Ok(());
    }
    let renamed = registry.remove(owned_key(before, new.key_id).as_slice())?.map(|row| row.value().to_vec());
    if let Some(row) = renamed {
        registry.insert(name.as_slice(), row.as_slice())?;
        return Ok(());
    }
    let label = match new.source_key_id {
        Some(source) => {
            let source: Option<RegistryRow> = rows::get::<&[u8], _>(&registry, owned_key(before, source).as_slice())?;
            source.and_then(|row| row.label)
        }
        None => new.label.clone(),
    };
    let row = RegistryRow { created_at: now, label, labelled_at: 0 };
    registry.insert(name.as_slice(), rows::encode(&row)?.as_slice())?;
    Ok(())
}

/// Enters the job into the ledger and labels the key; an empty label takes it away, none leaves it. The same job again changes nothing.
pub fn label(
    batch: &Batch<'_>,
    job: &LedgerEntry,
    key: KeyId,
    label: Option<String>,
    issued_at: u64,
) -> Result<(), StoreError> {
    if check_ledger(&batch.tx.open_table(JOBS)?, job)? {
        return Ok(());
    }
    if let Some(label) = label {
        let unknown = StoreError::Refused(ErrorCode::UnknownKey);
        let known = key_row(batch, key)?.ok_or(unknown.clone())?;
        let attempt = attempt_row(batch, &attempt_key(key, known.transcript))?.ok_or(unknown.clone())?.attempt;
        let mut registry = batch.tx.open_table(REGISTRY)?;
        let name = owned_key(&attempt.initiator, key);
        let row: Option<RegistryRow> = rows::get::<&[u8], _>(&registry, name.as_slice())?;
        let row = row.ok_or(unknown)?;
        if known.state.is_end() {
            return known.state.usable().map_err(|code| known.refusal(code));
        }
        if issued_at <= row.labelled_at {
            return Err(StoreError::Refused(ErrorCode::JobSuperseded));
        }
        let row = RegistryRow { label: Some(label).filter(|label| !label.is_empty()), labelled_at: issued_at, ..row };
        registry.insert(name.as_slice(), rows::encode(&row)?.as_slice())?;
    }
    ledger::enter(batch, job)
}

/// The registered keys of an owner from `from` on, at most `limit`, and whether there are more.
pub fn list(
    db: &impl ReadableDatabase,
    owner: &InitiatorId,
    from: Bound<KeyId>,
    limit: usize,
) -> Result<(Vec<Registered>, bool), StoreError> {
    let tx = db.begin_read()?;
    let (registry, keys, attempts) = (tx.open_table(REGISTRY)?, tx.open_table(KEYS)?, tx.open_table(ATTEMPTS)?);
    let last = owned_key(owner, KeyId([0xFF; 16]));
    let first = match from {
        Bound::Unbounded => Bound::Included(owned_key(owner, KeyId([0; 16]))),
        from => from.map(|id| owned_key(owner, id)),
    };
    let range = (first.as_ref().map(Vec::as_slice), Bound::Included(last.as_slice()));
    let mut entries = registry.range::<&[u8]>(range)?;
    let mut list = Vec::new();
    while list.len() < limit
        && let Some(entry) = entries.next().transpose()?
    {
        const GONE: StoreError = StoreError::Corrupt("a registered key without its record");
        let (name, row) = (entry.0.value(), rows::decode::<RegistryRow>(entry.1.value())?);
        let id = KeyId(*name.last_chunk::<16>().ok_or(GONE)?);
        let KeyRow { state, transcript, successor, .. } = rows::get(&keys, &id.0)?.ok_or(GONE)?;
        let AttemptRow { attempt, .. } = rows::get(&attempts, &attempt_key(id, transcript))?.ok_or(GONE)?;
        let record = KeyRecord { state, attempt, successor };
        list.push(Registered { record, label: row.label, created_at: row.created_at });
    }
    Ok((list, entries.next().is_some()))
}
