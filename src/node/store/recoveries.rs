//! Recoveries that wait: a request for each key, with the moment from which a second job may execute it.
//!
//! Every request and every cancellation has the time at which its job was issued, and only a newer one counts. The job that executes a
//! recovery was issued when the wait was over, so none that was signed before it will do. It is *granted*, by its digest, when
//! it opens a session; only what a granted job made is staged, and committed at node 1. So a cancellation reaches a recovery
//! that is under way, up to node 1's decision.

use super::attempts::key_row;
use super::ledger::{self, check_ledger};
use super::rows::{self, JOBS, META};
use super::writer::Batch;
use super::{Asked, Attempt, LedgerEntry, RecoveryRules, StoreError};
use crate::wire::{ErrorCode, InitiatorId, JobId, KeyId};
use redb::{ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

/// Key id -> [`RecoveryRow`].
pub const RECOVERIES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("recoveries");
/// Name in META of the latest time that was noted.
const LATEST: &str = "latest-time";
/// Granted jobs that are remembered.
const MAX_GRANTED: usize = 64;

/// What is known about the recovery of a key.
#[derive(Serialize, Deserialize)]
struct RecoveryRow {
    /// When the job of the last request or cancellation was issued, unix milliseconds.
    issued_at: u64,
    /// The last cancellation, if no request followed it.
    cancelled_by: Option<[u8; 32]>,
    request: Option<Request>,
}

/// A recovery that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The key's owner.
    pub owner: InitiatorId,
    /// The job that asked for it.
    pub job_id: JobId,
    /// SHA-256 of its body.
    pub digest: [u8; 32],
    /// When the node was asked, unix milliseconds.
    pub requested_at: u64,
    /// From when on another job may execute it.
    pub retry_at: u64,
    /// Until when.
    pub until: u64,
    /// Digests of the jobs that may.
    granted: Vec<[u8; 32]>,
}

fn read(batch: &Batch<'_>, key: KeyId) -> Result<Option<RecoveryRow>, StoreError> {
    rows::get(&batch.tx.open_table(RECOVERIES)?, &key.0)
}

fn write(batch: &Batch<'_>, key: KeyId, row: &RecoveryRow) -> Result<(), StoreError> {
    batch.tx.open_table(RECOVERIES)?.insert(&key.0, rows::encode(row)?.as_slice())?;
    Ok(())
}

const fn superseded() -> StoreError {
    StoreError::Refused(ErrorCode::JobSuperseded)
}

/// Asks whether a recover job may go on at `now`; the first one to ask makes the request. `opens`: it begins, and may commit what it makes.
pub fn ask(
    batch: &Batch<'_>,
    job: &LedgerEntry,
    key: KeyId,
    issued_at: u64,
    opens: bool,
    rules: RecoveryRules,
    now: u64,
) -> Result<Asked, StoreError> {
    let known = check_ledger(&batch.tx.open_table(JOBS)?, job)?;
    // It may have ended since the caller looked.
    let state = key_row(batch, key)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    state.state.replaceable().map_err(|code| state.refusal(code))?;
    let row = read(batch, key)?;
    if rules.wait.is_zero() && row.is_none() {
        return Ok(Asked::Granted);
    }
    let asked = row.as_ref().and_then(|row| row.request.as_ref()).filter(|request| request.digest == job.digest);
    if let Some(request) = asked {
        // Its own answer was that it must wait, whatever the time is now: executing takes a second job.
        let granted = request.granted.contains(&job.digest);
        let pending = Asked::Pending { retry_at: request.retry_at, new: false };
        return Ok(if granted { Asked::Granted } else { pending });
    }
    if row.as_ref().is_some_and(|row| issued_at <= row.issued_at) {
        return Err(superseded());
    }
    let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    // A clock that was set back, and will be set right again, must not make the wait shorter.
    let requested_at = now.max(latest(batch)?);
    let retry_at = requested_at.saturating_add(milliseconds(rules.wait));
    match row {
        Some(RecoveryRow { request: Some(request), .. })
            if !rules.wait.is_zero()
                && (now < request.retry_at || issued_at < request.retry_at && now < request.until) =>
        {
            return Ok(Asked::Pending { retry_at: request.retry_at, new: false });
        }
        Some(row) if rules.wait.is_zero() || row.is_open(now) => {
            if opens {
                write(batch, key, &row.granting(job, now))?;
            }
            return Ok(Asked::Granted);
        }
        _ => {}
    }
    let request = Request {
        owner: job.initiator.clone(),
        job_id: job.job_id.clone(),
        digest: job.digest,
        requested_at,
        retry_at,
        until: retry_at.saturating_add(milliseconds(rules.window)),
        // What was granted before the last request ran out may still be committed.
        granted: row.and_then(|row| row.request).map(|request| request.granted).unwrap_or_default(),
    };
    write(batch, key, &RecoveryRow { issued_at, cancelled_by: None, request: Some(request) })?;
    note_time(batch, requested_at)?;
    if !known {
        ledger::enter(batch, job)?;
    }
    Ok(Asked::Pending { retry_at, new: true })
}

impl RecoveryRow {
    fn is_open(&self, now: u64) -> bool {
        self.request.as_ref().is_some_and(|request| now < request.until)
    }

    fn grants(&self, digest: &[u8; 32]) -> bool {
        self.request.as_ref().is_some_and(|request| request.granted.contains(digest))
    }

    /// With this job among the granted ones. Where there is no request, because it was cancelled and there is no wait any more,
    /// the job makes one that is over at once.
    fn granting(mut self, job: &LedgerEntry, now: u64) -> Self {
        let request = self.request.get_or_insert_with(|| Request {
            owner: job.initiator.clone(),
            job_id: job.job_id.clone(),
            digest: job.digest,
            requested_at: now,
            retry_at: now,
            until: now,
            granted: Vec::new(),
        });
        if !request.granted.contains(&job.digest) {
            if request.granted.len() >= MAX_GRANTED {
                request.granted.remove(0);
            }
            request.granted.push(job.digest);
        }
        self
    }
}

/// Enters the job into the ledger and ends the key's request, if there is one; recover jobs that were issued before it ask in vain.
/// Says whether there was one. The same job again changes nothing.
pub fn cancel(batch: &Batch<'_>, job: &LedgerEntry, key: KeyId, issued_at: u64) -> Result<bool, StoreError> {
    let known = check_ledger(&batch.tx.open_table(JOBS)?, job)?;
    let state = key_row(batch, key)?.ok_or(StoreError::Refused(ErrorCode::UnknownKey))?;
    if state.state.is_end() {
        return Err(state.refusal(state.state.usable().err().unwrap_or(ErrorCode::Internal)));
    }
    let row = read(batch, key)?;
    match &row {
        Some(row) if row.cancelled_by == Some(job.digest) => return Ok(false),
        Some(row) if issued_at <= row.issued_at => return Err(superseded()),
        _ => {}
    }
    write(batch, key, &RecoveryRow { issued_at, cancelled_by: Some(job.digest), request: None })?;
    if !known {
        ledger::enter(batch, job)?;
    }
    Ok(row.is_some_and(|row| row.request.is_some()))
}

/// Whether what a recovery made may be kept, or become the key: unless the recovery was cancelled since it began.
///
/// # Errors
/// `JOB_SUPERSEDED`.
pub fn check(batch: &Batch<'_>, attempt: &Attempt) -> Result<(), StoreError> {
    let Some(source) = attempt.source_key_id else { return Ok(()) };
    match read(batch, source)? {
        Some(row) if !row.grants(&attempt.job_digest) => Err(superseded()),
        _ => Ok(()),
    }
}

/// The key ends: what was asked about it is used up.
pub fn forget(batch: &Batch<'_>, key: KeyId) -> Result<(), StoreError> {
    batch.tx.open_table(RECOVERIES)?.remove(&key.0)?;
    Ok(())
}

/// The key has new shares: what was asked about the old ones waits no more, and opens no window. What was issued before counts
/// no more than it did.
pub fn end_request(batch: &Batch<'_>, key: KeyId) -> Result<(), StoreError> {
    match read(batch, key)? {
        Some(row) if row.request.is_some() => write(batch, key, &RecoveryRow { request: None, ..row }),
        _ => Ok(()),
    }
}

/// Notes that it is at least so late, unix milliseconds.
pub fn note_time(batch: &Batch<'_>, now: u64) -> Result<(), StoreError> {
    if now > latest(batch)? {
        batch.tx.open_table(META)?.insert(LATEST, now.to_be_bytes().as_slice())?;
    }
    Ok(())
}

fn latest(batch: &Batch<'_>) -> Result<u64, StoreError> {
    let meta = batch.tx.open_table(META)?;
    let noted = meta.get(LATEST)?.and_then(|value| value.value().try_into().ok());
    Ok(noted.map_or(0, u64::from_be_bytes))
}

/// Every key with a request, in the order of their ids.
pub fn requests(
    table: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
) -> Result<Vec<(KeyId, Request)>, StoreError> {
    let mut requests = Vec::new();
    for entry in table.iter()? {
        let (key, row) = entry?;
        let row: RecoveryRow = rows::decode(row.value())?;
        requests.extend(row.request.map(|request| (KeyId(*key.value()), request)));
    }
    Ok(requests)
}
