//! Attempts that are prepared, and since when: what a node 2 asks about, and an operator is shown.

use super::attempts::{attempt_row, key_row};
use super::rows::{self, ATTEMPTS, AttemptRow, DISCARDED, attempt_key};
use super::writer::Batch;
use super::{Attempt, Fate, StoreError};
use crate::clock::now_ms;
use crate::wire::KeyId;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};

/// Key id ‖ transcript of every attempt that is prepared -> since when, unix milliseconds.
pub const UNDECIDED: TableDefinition<'_, &[u8; 48], u64> = TableDefinition::new("undecided");

/// How an attempt stands at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Undecided.
    Prepared(Box<Attempt>),
    /// It is the key, or was.
    Committed,
    /// It never will be the key.
    Void,
    /// Nothing is known of it.
    Unknown,
}

/// An attempt is prepared.
pub fn begin(batch: &Batch<'_>, key: &[u8; 48]) -> Result<(), StoreError> {
    batch.tx.open_table(UNDECIDED)?.insert(key, now_ms())?;
    Ok(())
}

/// An attempt is decided.
pub fn end(batch: &Batch<'_>, key: &[u8; 48]) -> Result<(), StoreError> {
    batch.tx.open_table(UNDECIDED)?.remove(key)?;
    Ok(())
}

/// At most so many attempts that were prepared before a time, from a random place on: where some are never decided, the others
/// have their turn all the same.
pub fn list(db: &impl ReadableDatabase, before: u64, limit: usize) -> Result<Vec<Attempt>, StoreError> {
    let tx = db.begin_read()?;
    let (undecided, attempts) = (tx.open_table(UNDECIDED)?, tx.open_table(ATTEMPTS)?);
    let mut start = [0; 48];
    getrandom::fill(&mut start).map_err(|error| StoreError::Failed(error.to_string()))?;
    let (behind, ahead) = (undecided.range::<&[u8; 48]>(&start..)?, undecided.range::<&[u8; 48]>(..&start)?);
    let mut found = Vec::new();
    for entry in behind.chain(ahead) {
        let (key, since) = entry?;
        if since.value() < before && found.len() < limit {
            let row: Option<AttemptRow> = rows::get(&attempts, key.value())?;
            found.extend(row.map(|row| row.attempt));
        }
    }
    Ok(found)
}

/// Since when an attempt is prepared.
pub fn since(db: &impl ReadableDatabase, attempt: &Attempt) -> Result<Option<u64>, StoreError> {
    match db.begin_read()?.open_table(UNDECIDED) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(table?.get(&attempt_key(attempt.key_id, attempt.transcript))?.map(|since| since.value())),
    }
}

/// How an attempt stands. `generated`: it was not made from another key's shares, so that its key has no other attempt once it
/// is committed.
pub fn standing(batch: &Batch<'_>, id: KeyId, transcript: [u8; 32], generated: bool) -> Result<Standing, StoreError> {
    let key = attempt_key(id, transcript);
    if let Some(row) = attempt_row(batch, &key)? {
        return Ok(match row.fate {
            Fate::Prepared => Standing::Prepared(Box::new(row.attempt)),
            Fate::Committed => Standing::Committed,
            Fate::Superseded => Standing::Void,
        });
    }
    let discarded = batch.tx.open_table(DISCARDED)?.get(&key)?.is_some();
    let void = discarded || (generated && key_row(batch, id)?.is_some());
    Ok(if void { Standing::Void } else { Standing::Unknown })
}
