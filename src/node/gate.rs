//! What every job must pass before a node does anything for it. Nothing here changes what is stored.

use super::Refusal;
use super::noted::{Entry, Noted};
use super::store::{Attempt, Doubt, KeyRecord, LedgerEntry, Quarantine, Store};
use crate::auth::TimePolicy;
use crate::policy::{Policy, Rates};
use crate::wire::node::NodeReply;
use crate::wire::{ErrorCode, Job, KeyId, Op, SignedJob, subject};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// The node's policy, its rates, and its clock rules.
pub struct Gate {
    policy: RwLock<Arc<Policy>>,
    rates: Mutex<Rates>,
    noted: Mutex<Noted>,
    /// Jobs that were issued before are refused, unix milliseconds.
    not_before: u64,
}

/// A key as a job finds it.
pub enum Found {
    /// Committed.
    Committed(Box<KeyRecord>),
    /// Something comes first, as this answer says: it is only prepared, and to be committed; or it was restored from a backup,
    /// and the other node is to be asked.
    First(Box<NodeReply>),
}

impl Gate {
    /// A node that was restored from a backup does not know which jobs it was given since that was taken: it takes none that was
    /// issued before the restore.
    pub fn new(policy: Policy, restored_at: Option<u64>) -> Self {
        let not_before = restored_at.unwrap_or(0);
        Self { policy: RwLock::new(Arc::new(policy)), rates: Mutex::default(), noted: Mutex::default(), not_before }
    }

    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another policy in force for every job from now on. Rates that it keeps go on where they are.
    pub fn replace(&self, policy: Policy) {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).retain(&policy);
        let policy = Arc::new(policy);
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&policy);
        let names: HashSet<_> = policy.grants().into_iter().map(|grant| grant.name.as_str()).collect();
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| names.contains(name));
    }

    /// Reads a job and checks signature, shape, operation (one of `ops`), initiator, times and rate, in this order.
    ///
    /// # Errors
    /// The first thing that is wrong. The job is returned beside it where the audit log should tell: where it is authentic,
    /// but of the jobs that a rate refuses in a row only the first.
    pub fn admit(&self, signed: &SignedJob, ops: &[Op], now: u64) -> Result<Job, (Option<Box<Job>>, Refusal)> {
        let job = Job::from_signed(signed).map_err(|error| (None, Refusal::new(error.code, error.message)))?;
        let policy = self.policy();
        if let Err(refusal) = check(&policy, &job, ops, now).and_then(|()| self.is_new(&job)) {
            return Err((Some(Box::new(job)), refusal));
        }
        let counted = self.rates.lock().unwrap_or_else(PoisonError::into_inner).take(&policy, &job, now);
        let Err(limited) = counted else { return Ok(job) };
        let message = format!("more than {} {} jobs a minute; room in {} ms", limited.rate, job.op(), limited.wait_ms);
        let retry_at = Some(now.saturating_add(limited.wait_ms));
        let refusal = Refusal { retry_at, ..Refusal::new(ErrorCode::RateLimited, message) };
        Err((limited.first.then(|| Box::new(job)), refusal))
    }

    /// Counts the refusal of an authentic job, and says what the audit log says of it, if anything.
    pub fn noted(&self, job: &Job, code: ErrorCode, now: u64) -> Option<Entry> {
        let name = self.policy().get(&job.initiator).map(|grant| grant.name.clone());
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).count((name, job.op(), code), now)
    }

    fn is_new(&self, job: &Job) -> Result<(), Refusal> {
        if job.issued_at >= self.not_before {
            return Ok(());
        }
        let message = "issued before the node was restored from a backup, which does not know the jobs of that time";
        Err(Refusal::new(ErrorCode::JobExpired, message))
    }
}

/// Everything but the rate.
fn check(policy: &Policy, job: &Job, ops: &[Op], now: u64) -> Result<(), Refusal> {
    if !ops.contains(&job.op()) {
        return Err(ErrorCode::MalformedJob.into());
    }
    let grant = policy.permit(job).map_err(|denial| Refusal::new(denial.code, denial.message))?;
    let times = TimePolicy { max_lifetime_ms: grant.max_lifetime.as_millis() as u64, ..TimePolicy::default() };
    times.check(job, now).map_err(|code| match code {
        ErrorCode::JobLifetimeTooLong => {
            Refusal::new(code, format!("this initiator's jobs may live for {} s", grant.max_lifetime.as_secs()))
        }
        code => code.into(),
    })
}

/// The key that a job names, if the job's initiator owns it: that is a key which was made for it, or for another of its names in this
/// node's policy.
///
/// # Errors
/// `UNKNOWN_KEY`, `NOT_PERMITTED`.
pub fn find_key(store: &dyn Store, policy: &Policy, job: &Job) -> Result<Found, Refusal> {
    let owned = |attempt: &Attempt| {
        if policy.owns(&job.initiator, &attempt.initiator) {
            Ok(())
        } else {
            Err(Refusal::new(ErrorCode::NotPermitted, "the key belongs to another initiator"))
        }
    };
    if let Some(key) = store.key(job.key_id)? {
        owned(&key.attempt)?;
        // An end is an end, whatever is in doubt besides.
        if key.state.is_end() {
            return Ok(Found::Committed(Box::new(key)));
        }
        return Ok(match doubtful(store, job.key_id, key.attempt.transcript)? {
            Some(first) => Found::First(Box::new(first)),
            None => Found::Committed(Box::new(key)),
        });
    }
    let prepared = store.prepared(job.key_id)?;
    let attempt = prepared.first().ok_or(ErrorCode::UnknownKey)?;
    owned(attempt)?;
    Ok(Found::First(Box::new(NodeReply::NotCommitted { result_subject: result_of(attempt) })))
}

/// The same where the client's share with this transcript hash is to be used: it may be prepared to take the place of the
/// committed one.
///
/// # Errors
/// As [`find_key`].
pub fn find_share(store: &dyn Store, policy: &Policy, job: &Job, transcript: [u8; 32]) -> Result<Found, Refusal> {
    let found = find_key(store, policy, job)?;
    if matches!(&found, Found::Committed(key) if key.attempt.transcript != transcript) {
        let prepared = store.prepared(job.key_id)?;
        if let Some(attempt) = prepared.iter().find(|attempt| attempt.transcript == transcript) {
            return Ok(Found::First(Box::new(NodeReply::NotCommitted { result_subject: result_of(attempt) })));
        }
    }
    Ok(found)
}

/// What a worker hears of a key that was restored from a backup, and that the other node has not confirmed yet.
///
/// # Errors
/// `SHARE_OUTDATED`; the store's.
pub fn doubtful(store: &dyn Store, key_id: KeyId, transcript: [u8; 32]) -> Result<Option<NodeReply>, Refusal> {
    let Some(Quarantine { nonce, .. }) = store.quarantine() else { return Ok(None) };
    match store.doubt(key_id)? {
        None => Ok(None),
        Some(Doubt::Unconfirmed) => Ok(Some(NodeReply::Unconfirmed { key_id, transcript, nonce })),
        Some(Doubt::Outdated) => Err(ErrorCode::ShareOutdated.into()),
    }
}

/// Where the result is, or will be, of the job that made an attempt.
pub fn result_of(attempt: &Attempt) -> String {
    subject::result(&attempt.initiator, &attempt.job_id)
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
