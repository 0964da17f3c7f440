//! The ledger of jobs, and forgetting what is over.

use super::rows::{self, BURNED, CHARGED, JOBS, JOBS_BY_EXPIRY, JobRow};
use super::writer::Batch;
use super::{LedgerEntry, StoreError};
use crate::wire::ErrorCode;
use redb::ReadableTable;

/// How long the ledger outlives a job's expiry, milliseconds: more than any clock is set back.
const MARGIN_MS: u64 = 3_600_000;
/// Rows that one pruning removes.
const PRUNE: usize = 10_000;

/// Whether a job is known; refuses one that was cancelled, or whose id is known with another body.
pub fn check_ledger(
    jobs: &impl ReadableTable<&'static [u8], &'static [u8]>,
    job: &LedgerEntry,
) -> Result<bool, StoreError> {
    match rows::get::<&[u8], JobRow>(jobs, &rows::job_key(&job.initiator, &job.job_id))? {
        Some(known) if known.cancelled => Err(StoreError::Refused(ErrorCode::JobCancelled)),
        Some(known) if known.digest != job.digest => Err(StoreError::Refused(ErrorCode::JobIdReused)),
        known => Ok(known.is_some()),
    }
}

/// Enters a job; call after every check of the write.
pub fn enter(batch: &Batch<'_>, job: &LedgerEntry) -> Result<(), StoreError> {
    let key = rows::job_key(&job.initiator, &job.job_id);
    let row = JobRow { digest: job.digest, op: job.op, expires_at: job.expires_at, cancelled: false };
    batch.tx.open_table(JOBS)?.insert(key.as_slice(), rows::encode(&row)?.as_slice())?;
    let by_expiry = [job.expires_at.to_be_bytes().as_slice(), &key].concat();
    batch.tx.open_table(JOBS_BY_EXPIRY)?.insert(by_expiry.as_slice(), ())?;
    Ok(())
}

/// Forgets jobs and sessions whose time is over.
pub fn prune(batch: &Batch<'_>, now: u64) -> Result<(), StoreError> {
    let cutoff = now.saturating_sub(MARGIN_MS).to_be_bytes();
    let mut by_expiry = batch.tx.open_table(JOBS_BY_EXPIRY)?;
    let mut jobs = batch.tx.open_table(JOBS)?;
    let mut charged = batch.tx.open_table(CHARGED)?;
    let over = by_expiry.range(..cutoff.as_slice())?.take(PRUNE);
    let over: Vec<Vec<u8>> = over.map(|entry| Ok(entry?.0.value().to_vec())).collect::<Result<_, StoreError>>()?;
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
}
