//! From prepared to committed, and the end of a share. Each function is one decision: it checks everything, then writes, and all that it
//! writes is in one commit with nothing of it left for later.

use super::attempts::{
    attempt_row, attempts_of, destroy, has_room, key_row, put_attempt, put_key, put_material, put_owned, remove_owned,
    replacements_of, unlink,
};
use super::rows::{
    ATTEMPTS, AttemptRow, DISCARDED, GUESSES, KeyRow, OWNED, REPLACEMENTS, attempt_key, replacement_key,
};
use super::writer::Batch;
use super::{Attempt, Fate, KeyState, Quota, StoreError, recoveries, registry, undecided};
use crate::clock::now_ms;
use crate::wire::{ErrorCode, KeyId};
use redb::ReadableTable;
use trefoil_protocol::Party;

/// Attempts of one job that may be prepared at once.
const MAX_PREPARED: usize = 64;

fn refused<T>(code: ErrorCode) -> Result<T, StoreError> {
    Err(StoreError::Refused(code))
}

/// Stages an attempt with its secret bytes.
pub fn stage(
    batch: &mut Batch<'_>,
    attempt: Attempt,
    material: &[u8],
    quota: Option<&Quota>,
    party: Party,
) -> Result<(), StoreError> {
    recoveries::check(batch, &attempt)?;
    let key = attempt_key(attempt.key_id, attempt.transcript);
    let source = attempt.source();
    let new_key = source.is_none_or(|(id, _)| id != attempt.key_id);
    if new_key && key_row(batch, attempt.key_id)?.is_some() {
        return refused(ErrorCode::JobIdReused);
    }
    if batch.tx.open_table(DISCARDED)?.get(&key)?.is_some() {
        return refused(ErrorCode::JobIdReused);
    }
    let known = attempts_of(&batch.tx.open_table(ATTEMPTS)?, attempt.key_id)?;
    if let Some(same) = known.iter().find(|row| row.attempt.transcript == attempt.transcript) {
        return if same.fate == Fate::Superseded { refused(ErrorCode::JobSuperseded) } else { Ok(()) };
    }
    // A new key's id is its job's. The ledger forgets a job in the end, what it has prepared stays.
    if new_key && known.iter().any(|row| row.attempt.job_digest != attempt.job_digest) {
        return refused(ErrorCode::JobIdReused);
    }
    let of_job = |fate: Fate| {
        known.iter().filter(move |row| row.fate == fate && row.attempt.job_digest == attempt.job_digest).count()
    };
    // A job gives a key new shares once, however often it is replayed.
    if of_job(Fate::Committed) > 0 {
        return refused(ErrorCode::JobIdReused);
    }
    if of_job(Fate::Prepared) >= MAX_PREPARED {
        return refused(ErrorCode::Overloaded);
    }
    match source {
        Some((source, from)) => {
            let row = key_row(batch, source)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
            row.state.replaceable().map_err(|code| row.refusal(code))?;
            if row.transcript != from {
                return refused(ErrorCode::JobSuperseded);
            }
            let link = replacement_key(source, attempt.key_id, attempt.transcript);
            batch.tx.open_table(REPLACEMENTS)?.insert(&link, ())?;
        }
        None => {
            if let Some(quota) = quota
                && !has_room(&batch.tx.open_table(OWNED)?, quota, attempt.key_id)?
            {
                return refused(ErrorCode::NotPermitted);
            }
            put_owned(batch, &attempt.initiator, attempt.key_id)?;
        }
    }
    undecided::begin(batch, &key)?;
    put_material(batch, attempt, Fate::Prepared, party, material)
}

/// Makes a prepared attempt the key.
pub fn commit(batch: &mut Batch<'_>, id: KeyId, transcript: [u8; 32], party: Party) -> Result<Attempt, StoreError> {
    let row = attempt_row(batch, &attempt_key(id, transcript))?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    match row.fate {
        Fate::Prepared => {}
        Fate::Committed => return Ok(row.attempt),
        Fate::Superseded => return refused(ErrorCode::JobSuperseded),
    }
    // Node 1 decides. What it has decided node 2 follows, whatever it was told meanwhile; and what was decided stays so.
    if party == Party::Node1 {
        recoveries::check(batch, &row.attempt)?;
    }
    match row.attempt.source() {
        None => begin(batch, &row.attempt)?,
        Some((source, from)) => replace(batch, &row.attempt, source, from)?,
    }
    undecided::end(batch, &attempt_key(id, transcript))?;
    batch.live.add(row.attempt.curve, 1);
    put_attempt(batch, &AttemptRow { fate: Fate::Committed, attempt: row.attempt.clone(), slot: row.slot })?;
    Ok(row.attempt)
}

/// A generated key begins.
fn begin(batch: &mut Batch<'_>, new: &Attempt) -> Result<(), StoreError> {
    let (id, transcript) = (new.key_id, new.transcript);
    if key_row(batch, id)?.is_some() {
        return refused(ErrorCode::UnknownKey);
    }
    put_key(batch, id, &KeyRow { state: KeyState::Active, transcript, frozen: false, successor: None })?;
    let others = attempts_of(&batch.tx.open_table(ATTEMPTS)?, id)?;
    for other in others.into_iter().filter(|other| other.attempt.transcript != transcript) {
        destroy(batch, other, None)?;
    }
    registry::enter(batch, new, &new.initiator, now_ms())
}

/// New shares take the place of those of `source`.
fn replace(batch: &mut Batch<'_>, new: &Attempt, source: KeyId, from: [u8; 32]) -> Result<(), StoreError> {
    let unknown = StoreError::Refused(ErrorCode::UnknownKey);
    let old = key_row(batch, source)?.ok_or(unknown)?;
    if old.transcript != from || old.state.is_end() {
        return refused(ErrorCode::JobSuperseded);
    }
    let replaced = attempt_row(batch, &attempt_key(source, from))?;
    let replaced = replaced.ok_or(StoreError::Corrupt("a key without its attempt"))?;
    // New shares mend a failed check. What the owner has stopped stays so.
    let frozen = old.frozen || old.state == KeyState::Frozen;
    let state = if frozen { KeyState::Frozen } else { KeyState::Active };
    unlink(batch, new)?;
    supersede(batch, source)?;
    let owner = replaced.attempt.initiator.clone();
    destroy(batch, replaced, Some(Fate::Committed))?;
    put_key(batch, new.key_id, &KeyRow { state, transcript: new.transcript, frozen: false, successor: None })?;
    if new.key_id == source {
        // They were guesses at a password of shares that are gone.
        batch.tx.open_table(GUESSES)?.remove(&source.0)?;
        recoveries::end_request(batch, source)?;
    } else {
        recoveries::forget(batch, source)?;
        put_key(batch, source, &KeyRow { state: KeyState::Retired, successor: Some(new.key_id), ..old })?;
    }
    // Its owner may have another name by now.
    remove_owned(batch, &owner, source)?;
    put_owned(batch, &new.initiator, new.key_id)?;
    registry::enter(batch, new, &owner, now_ms())
}

/// Destroys what is prepared to take the place of a key's shares. It is remembered: its worker asks for its commit, perhaps.
pub fn supersede(batch: &mut Batch<'_>, source: KeyId) -> Result<(), StoreError> {
    let prepared = replacements_of(&batch.tx.open_table(REPLACEMENTS)?, &batch.tx.open_table(ATTEMPTS)?, source)?;
    prepared.into_iter().try_for_each(|row| destroy(batch, row, Some(Fate::Superseded)))
}

/// Destroys a prepared attempt, or keeps one that is not there from being prepared later.
pub fn discard(batch: &mut Batch<'_>, id: KeyId, transcript: [u8; 32]) -> Result<(), StoreError> {
    let key = attempt_key(id, transcript);
    let row = attempt_row(batch, &key)?;
    match row.as_ref().map(|row| row.fate) {
        Some(Fate::Committed) => return refused(ErrorCode::JobIdReused),
        Some(Fate::Superseded) => return Ok(()),
        Some(Fate::Prepared) | None => {}
    }
    batch.tx.open_table(DISCARDED)?.insert(&key, ())?;
    let Some(row) = row else { return Ok(()) };
    let (owner, generated) = (row.attempt.initiator.clone(), row.attempt.source().is_none());
    destroy(batch, row, None)?;
    if generated && key_row(batch, id)?.is_none() && attempts_of(&batch.tx.open_table(ATTEMPTS)?, id)?.is_empty() {
        remove_owned(batch, &owner, id)?;
    }
    Ok(())
}

/// Locks a key: its share stays without OT state.
pub fn lock(
    batch: &mut Batch<'_>,
    id: KeyId,
    transcript: [u8; 32],
    kept: &[u8],
    party: Party,
) -> Result<(), StoreError> {
    let row = key_row(batch, id)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    if row.transcript != transcript {
        return refused(ErrorCode::StaleShare);
    }
    if row.state == KeyState::Locked {
        return Ok(());
    }
    if !row.state.may_become(KeyState::Locked) {
        return row.state.usable().map_err(|code| row.refusal(code));
    }
    let old = attempt_row(batch, &attempt_key(id, transcript))?;
    let old = old.ok_or(StoreError::Corrupt("a key without its attempt"))?;
    batch.wipe.push(old.slot);
    put_material(batch, old.attempt, old.fate, party, kept)?;
    put_key(batch, id, &KeyRow { state: KeyState::Locked, frozen: row.state == KeyState::Frozen, ..row })
}

/// Brings a key into the state that its owner orders.
pub fn transition(batch: &mut Batch<'_>, id: KeyId, to: KeyState) -> Result<(), StoreError> {
    let row = key_row(batch, id)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    if row.state == to {
        return Ok(());
    }
    if !row.state.may_become(to) {
        return Err(row.refusal(row.state.usable().err().unwrap_or(ErrorCode::Internal)));
    }
    if to.is_end() {
        let attempt = attempt_row(batch, &attempt_key(id, row.transcript))?;
        let attempt = attempt.ok_or(StoreError::Corrupt("a key without its attempt"))?;
        remove_owned(batch, &attempt.attempt.initiator, id)?;
        supersede(batch, id)?;
        recoveries::forget(batch, id)?;
        destroy(batch, attempt, Some(Fate::Committed))?;
    }
    put_key(batch, id, &KeyRow { state: to, ..row })
}
