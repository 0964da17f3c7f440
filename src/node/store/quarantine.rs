//! A store that was restored from a backup does not know what became of its keys since. So each of them is in doubt until the
//! other node has signed what it knows of it, for this restore's nonce.

use super::attempts::{attempt_row, attempts_of, destroy, key_row, put_key, remove_owned};
use super::rows::{self, ATTEMPTS, AttemptRow, KeyRow, attempt_key};
use super::writer::Batch;
use super::{Fate, KeyState, StoreError, recoveries, staging};
use crate::node::audit::Head;
use crate::wire::{EpochState, EpochStatement, ErrorCode, KeyId};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::{Deserialize, Serialize};
use trefoil_protocol::Party;

/// Key id -> [`Doubt`]: keys of a restored store that are not confirmed.
pub const DOUBTS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("doubts");
/// Row of META with the [`Quarantine`] of a restored store.
pub const QUARANTINE: &str = "quarantine";

/// That a store was restored, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Random, of this restore: no word that the other node gave before can confirm a key.
    pub nonce: [u8; 32],
    /// When it was restored, unix milliseconds. The ledger may lack jobs that were issued before.
    pub restored_at: u64,
    /// When the backup was taken, unix milliseconds.
    pub taken_at: u64,
    /// The end of the audit log when the backup was taken.
    pub head: Option<Head>,
}

/// What is open about a key of a restored store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doubt {
    /// The other node has not been asked yet.
    Unconfirmed,
    /// The share here is not the key's current one, or is gone; final.
    Outdated,
}

/// Whether the store was restored.
pub fn read(db: &impl ReadableDatabase) -> Result<Option<Quarantine>, StoreError> {
    super::open::read_meta(db, QUARANTINE)?.map(|bytes| rows::decode(&bytes)).transpose()
}

/// What one key's doubt is.
pub fn of(db: &impl ReadableDatabase, id: KeyId) -> Result<Option<Doubt>, StoreError> {
    rows::get(&db.begin_read()?.open_table(DOUBTS)?, &id.0)
}

/// How many keys are in doubt: unconfirmed, and outdated.
pub fn count(db: &impl ReadableDatabase) -> Result<(u64, u64), StoreError> {
    let table = match db.begin_read()?.open_table(DOUBTS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok((0, 0)),
        table => table?,
    };
    let mut count = (0, 0);
    for entry in table.iter()? {
        match rows::decode(entry?.1.value())? {
            Doubt::Unconfirmed => count.0 += 1,
            Doubt::Outdated => count.1 += 1,
        }
    }
    Ok(count)
}

/// What the other node's word about a key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The key was not unconfirmed.
    Known,
    /// The key is what it was.
    Confirmed,
    /// The key has ended.
    Ended,
    /// The share here is not the key's current one, or is gone.
    Outdated,
    /// Shares that are prepared here may be those that took the key's place: they are to be confirmed first.
    First {
        /// Their key.
        key_id: KeyId,
        /// Their transcript hash.
        transcript: [u8; 32],
    },
}

/// Takes the other node's word about a key. `wipe`: what it says has ended is destroyed here, too, and what was prepared to
/// take its place.
pub fn confirm(batch: &mut Batch<'_>, said: &EpochStatement, wipe: bool, party: Party) -> Result<Verdict, StoreError> {
    let id = said.key_id;
    let doubt: Option<Doubt> = rows::get(&batch.tx.open_table(DOUBTS)?, &id.0)?;
    if doubt != Some(Doubt::Unconfirmed) {
        return Ok(Verdict::Known);
    }
    let verdict = match key_row(batch, id)? {
        Some(row) => of_key(batch, said, &row, wipe, party)?,
        None => of_prepared(batch, said, party)?,
    };
    let mut doubts = batch.tx.open_table(DOUBTS)?;
    match verdict {
        Verdict::Outdated => {
            doubts.insert(&id.0, rows::encode(&Doubt::Outdated)?.as_slice())?;
        }
        Verdict::Confirmed | Verdict::Ended => {
            doubts.remove(&id.0)?;
        }
        Verdict::Known | Verdict::First { .. } => {}
    }
    Ok(verdict)
}

/// The shares of this transcript hash, if they are here: not only a memory of them.
fn held(batch: &Batch<'_>, id: KeyId, transcript: [u8; 32]) -> Result<Option<AttemptRow>, StoreError> {
    Ok(attempt_row(batch, &attempt_key(id, transcript))?.filter(|row| row.slot != 0))
}

/// A key that is committed here.
fn of_key(
    batch: &mut Batch<'_>,
    said: &EpochStatement,
    row: &KeyRow,
    wipe: bool,
    party: Party,
) -> Result<Verdict, StoreError> {
    let id = said.key_id;
    let to = match said.state {
        EpochState::Retired => KeyState::Retired,
        EpochState::Destroyed => KeyState::Destroyed,
        EpochState::Frozen => KeyState::Frozen,
        EpochState::Prepared | EpochState::Active | EpochState::Locked => row.state,
    };
    if to.is_end() {
        if let Some(successor) = said.successor
            && let Some(prepared) = prepared_of(batch, successor)?
        {
            return Ok(Verdict::First { key_id: successor, transcript: prepared });
        }
        end(batch, id, row, to, said.successor, wipe)?;
        return Ok(Verdict::Ended);
    }
    if said.transcript != row.transcript {
        // It may be prepared here: then this node was on its way, and goes on.
        return match held(batch, id, said.transcript)? {
            Some(next) if next.fate == Fate::Prepared => catch_up(batch, id, said.transcript, party),
            _ if said.epoch > epoch(batch, id, row)? => Ok(Verdict::Outdated),
            // The other node is behind: it cannot know.
            _ => Err(StoreError::Refused(ErrorCode::KeyUnconfirmed)),
        };
    }
    if held(batch, id, row.transcript)?.is_none() {
        return Ok(Verdict::Outdated);
    }
    // What its owner stopped stays so, whichever node has heard of it.
    if to == KeyState::Frozen {
        let state = if row.state == KeyState::Active { to } else { row.state };
        put_key(batch, id, &KeyRow { state, frozen: row.state == KeyState::Locked, ..*row })?;
    }
    Ok(Verdict::Confirmed)
}

/// A key that is only prepared here.
fn of_prepared(batch: &mut Batch<'_>, said: &EpochStatement, party: Party) -> Result<Verdict, StoreError> {
    if held(batch, said.key_id, said.transcript)?.is_none() {
        return Ok(Verdict::Outdated);
    }
    match said.state {
        // Nobody has decided. Whoever has the evidence may commit it now.
        EpochState::Prepared => Ok(Verdict::Confirmed),
        EpochState::Active | EpochState::Frozen | EpochState::Locked => {
            let verdict = catch_up(batch, said.key_id, said.transcript, party)?;
            if verdict == Verdict::Confirmed
                && said.state == EpochState::Frozen
                && let Some(row) = key_row(batch, said.key_id)?
            {
                put_key(batch, said.key_id, &KeyRow { state: KeyState::Frozen, ..row })?;
            }
            Ok(verdict)
        }
        EpochState::Retired | EpochState::Destroyed => Ok(Verdict::Outdated),
    }
}

/// Commits what is prepared here and committed at the other node. The key whose place it takes is in doubt no more, either.
fn catch_up(batch: &mut Batch<'_>, id: KeyId, transcript: [u8; 32], party: Party) -> Result<Verdict, StoreError> {
    match staging::commit(batch, id, transcript, party) {
        Ok(attempt) => {
            if let Some((source, _)) = attempt.source() {
                batch.tx.open_table(DOUBTS)?.remove(&source.0)?;
            }
            Ok(Verdict::Confirmed)
        }
        Err(StoreError::Refused(ErrorCode::JobSuperseded)) => Ok(Verdict::Outdated),
        Err(error) => Err(error),
    }
}

fn epoch(batch: &Batch<'_>, id: KeyId, row: &KeyRow) -> Result<u32, StoreError> {
    let attempt = attempt_row(batch, &attempt_key(id, row.transcript))?;
    Ok(attempt.ok_or(StoreError::Corrupt("a key without its attempt"))?.attempt.epoch)
}

/// The first attempt of a key that is prepared here, in doubt again: since nobody had decided, it may have become the key.
fn prepared_of(batch: &Batch<'_>, id: KeyId) -> Result<Option<[u8; 32]>, StoreError> {
    let mut doubts = batch.tx.open_table(DOUBTS)?;
    if rows::get(&doubts, &id.0)? == Some(Doubt::Outdated) {
        return Ok(None);
    }
    let attempts = attempts_of(&batch.tx.open_table(ATTEMPTS)?, id)?;
    let prepared = attempts.into_iter().find(|row| row.fate == Fate::Prepared && row.slot != 0);
    if prepared.is_some() {
        doubts.insert(&id.0, rows::encode(&Doubt::Unconfirmed)?.as_slice())?;
    }
    Ok(prepared.map(|row| row.attempt.transcript))
}

/// Ends a key.
fn end(
    batch: &mut Batch<'_>,
    id: KeyId,
    row: &KeyRow,
    to: KeyState,
    successor: Option<KeyId>,
    wipe: bool,
) -> Result<(), StoreError> {
    let attempt = attempt_row(batch, &attempt_key(id, row.transcript))?;
    let attempt = attempt.ok_or(StoreError::Corrupt("a key without its attempt"))?;
    remove_owned(batch, &attempt.attempt.initiator, id)?;
    recoveries::forget(batch, id)?;
    if wipe {
        staging::supersede(batch, id)?;
        destroy(batch, attempt, Some(Fate::Committed))?;
    } else if attempt.holds_key() {
        batch.live.add(attempt.attempt.curve, -1);
    }
    put_key(batch, id, &KeyRow { state: to, successor, ..*row })
}
