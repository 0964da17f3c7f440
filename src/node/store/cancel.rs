//! Jobs that are cancelled before they are begun: an entry of the ledger that no job fits.

use super::ledger::{self, check_ledger};
use super::rows::{self, JOBS, JOBS_BY_EXPIRY, JobRow};
use super::writer::Batch;
use super::{LedgerEntry, StoreError};
use crate::policy::LONGEST_LIFETIME;
use crate::wire::{ErrorCode, InitiatorId, JobId, JobState, Op};
use redb::ReadableTable;

/// How far a job may be ahead of the node's clock, milliseconds, and some more.
const AHEAD_MS: u64 = 60_000;

/// Enters the cancelling job into the ledger, and keeps the other one from entering it for as long as it could be valid.
pub fn cancel(batch: &Batch<'_>, job: &LedgerEntry, other: &JobId, now: u64) -> Result<(), StoreError> {
    let known = check_ledger(&batch.tx.open_table(JOBS)?, job)?;
    let name = rows::job_key(&job.initiator, other);
    let row: Option<JobRow> = rows::get::<&[u8], _>(&batch.tx.open_table(JOBS)?, &name)?;
    match row {
        Some(row) if row.cancelled => {}
        Some(_) => return Err(StoreError::Refused(ErrorCode::JobStarted)),
        None => {
            let expires_at = now.saturating_add(LONGEST_LIFETIME.as_millis() as u64 + AHEAD_MS);
            let row = JobRow { digest: job.digest, op: Op::Cancel, expires_at, cancelled: true };
            batch.tx.open_table(JOBS)?.insert(name.as_slice(), rows::encode(&row)?.as_slice())?;
            let by_expiry = [expires_at.to_be_bytes().as_slice(), &name].concat();
            batch.tx.open_table(JOBS_BY_EXPIRY)?.insert(by_expiry.as_slice(), ())?;
        }
    }
    if known { Ok(()) } else { ledger::enter(batch, job) }
}

/// How far the ledger has a job: `Cancelled`, `Started` or `Unknown`.
pub fn state(
    jobs: &impl ReadableTable<&'static [u8], &'static [u8]>,
    initiator: &InitiatorId,
    job: &JobId,
) -> Result<JobState, StoreError> {
    let row: Option<JobRow> = rows::get::<&[u8], _>(jobs, &rows::job_key(initiator, job))?;
    Ok(match row {
        Some(row) if row.cancelled => JobState::Cancelled,
        Some(_) => JobState::Started,
        None => JobState::Unknown,
    })
}
