//! What every job must pass before a node does anything for it. Nothing here changes any state.

use super::Refusal;
use super::store::{Attempt, KeyRecord, LedgerEntry, Store};
use crate::auth::{InitiatorList, TimePolicy};
use crate::wire::{ErrorCode, Job, KeyId, Op, SignedJob, subject};

/// The node's own list and clock rules.
pub struct Gate {
    initiators: InitiatorList,
    times: TimePolicy,
}

/// A key as a job finds it.
pub enum Found {
    /// Committed.
    Committed(Box<KeyRecord>),
    /// Prepared only; the result of its generation, which holds the evidence to commit it, is on this subject.
    Prepared(String),
}

impl Gate {
    pub fn new(initiators: InitiatorList) -> Self {
        Self { initiators, times: TimePolicy::default() }
    }

    /// Reads a job and checks signature, shape, operation, initiator and times, in this order.
    ///
    /// # Errors
    /// The first thing that is wrong. The job is returned beside it where it is authentic, for the audit log.
    pub fn admit(&self, signed: &SignedJob, op: Op, now: u64) -> Result<Job, (Option<Box<Job>>, Refusal)> {
        self.admit_any(signed, &[op], now)
    }

    /// The same for any of some operations.
    ///
    /// # Errors
    /// As [`Gate::admit`].
    pub fn admit_any(&self, signed: &SignedJob, ops: &[Op], now: u64) -> Result<Job, (Option<Box<Job>>, Refusal)> {
        let job = Job::from_signed(signed).map_err(|error| (None, Refusal::new(error.code, error.message)))?;
        let checked = if ops.contains(&job.op()) {
            self.initiators.permit(&job).map(|_| ()).and_then(|()| self.times.check(&job, now))
        } else {
            Err(ErrorCode::MalformedJob)
        };
        match checked {
            Ok(()) => Ok(job),
            Err(code) => Err((Some(Box::new(job)), code.into())),
        }
    }
}

/// The key that a job names, if the job's initiator owns it.
///
/// # Errors
/// `UNKNOWN_KEY`, `NOT_PERMITTED`.
pub fn find_key(store: &dyn Store, job: &Job) -> Result<Found, Refusal> {
    let owned = |attempt: &Attempt| {
        if attempt.initiator == job.initiator {
            Ok(())
        } else {
            Err(Refusal::new(ErrorCode::NotPermitted, "the key belongs to another initiator"))
        }
    };
    if let Some(key) = store.key(job.key_id)? {
        owned(&key.attempt)?;
        return Ok(Found::Committed(Box::new(key)));
    }
    let prepared = store.prepared(job.key_id)?;
    let attempt = prepared.first().ok_or(ErrorCode::UnknownKey)?;
    owned(attempt)?;
    Ok(Found::Prepared(subject::result(&attempt.initiator, &attempt.job_id)))
}

/// A job's entry in the ledger.
pub fn ledger_entry(job: &Job) -> LedgerEntry {
    LedgerEntry {
        initiator: job.initiator.clone(),
        job_id: job.job_id.clone(),
        digest: job.digest,
        op: job.op(),
        expires_at: job.expires_at,
    }
}

/// A key that a worker names outside of any job.
pub fn find_attempt(store: &dyn Store, id: KeyId, transcript: [u8; 32]) -> Result<Option<Attempt>, Refusal> {
    if let Some(key) = store.key(id)? {
        return Ok(Some(key.attempt).filter(|attempt| attempt.transcript == transcript));
    }
    Ok(store.prepared(id)?.into_iter().find(|attempt| attempt.transcript == transcript))
}
