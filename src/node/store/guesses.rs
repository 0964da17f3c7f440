//! Password attempts: charged before an evaluation leaves, settled by its outcome.

use super::attempts::key_row;
use super::ledger::{self, check_ledger};
use super::rows::{self, BURNED, CHARGED, GUESSES, GuessRow, JOBS, attempt_key};
use super::writer::Batch;
use super::{BurnedSession, GuessLimits, GuessOutcome, LedgerEntry, StoreError};
use crate::wire::{ErrorCode, KeyId, Op};
use redb::ReadableTable;

/// Charges an attempt, and enters its job into the ledger.
pub fn charge(
    batch: &Batch<'_>,
    job: &LedgerEntry,
    (key, transcript): (KeyId, [u8; 32]),
    blinded: &[u8; 32],
    limits: GuessLimits,
    now: u64,
) -> Result<(), StoreError> {
    let known = check_ledger(&batch.tx.open_table(JOBS)?, job)?;
    let row = key_row(batch, key)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    // A password is proven before a refresh, which a locked key waits for.
    if job.op == Op::Refresh { row.replaceable(transcript) } else { row.usable(transcript) }?;
    let mut charged = batch.tx.open_table(CHARGED)?;
    let name = rows::job_key(&job.initiator, &job.job_id);
    if known && charged.get(name.as_slice())?.is_some_and(|element| element.value() == blinded) {
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
    charged.insert(name.as_slice(), blinded)?;
    guesses.insert(&key.0, rows::encode(&row)?.as_slice())?;
    if known { Ok(()) } else { ledger::enter(batch, job) }
}

/// Ends an attempt that was charged at this key's share, if the key still has it.
pub fn settle(
    batch: &Batch<'_>,
    (key, transcript): (KeyId, [u8; 32]),
    outcome: GuessOutcome,
    now: u64,
) -> Result<(), StoreError> {
    if key_row(batch, key)?.is_none_or(|row| row.transcript != transcript) {
        return Ok(());
    }
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

/// Burns a session, or items of a batch, under these names; its password attempt was right.
pub fn burn(batch: &Batch<'_>, session: BurnedSession, names: &[[u8; 16]]) -> Result<(), StoreError> {
    let row = key_row(batch, session.key_id)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    row.usable(session.transcript)?;
    let what = attempt_key(session.key_id, session.job_digest);
    let mut burned = batch.tx.open_table(BURNED)?;
    for id in names {
        let mut name = [0; 24];
        let (time, rest) = name.split_at_mut(8);
        time.copy_from_slice(&session.time.to_be_bytes());
        rest.copy_from_slice(id);
        burned.insert(&name, &what)?;
    }
    settle(batch, (session.key_id, session.transcript), GuessOutcome::Right, session.time)
}
