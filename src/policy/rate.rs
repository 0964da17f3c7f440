//! Rates: a token bucket for each initiator and operation, in memory.
//!
//! A bucket holds at most a minute's jobs, and is full at first. Each job takes one, or as many as the batch has items, once,
//! however often it is tried or replayed: so whoever copies signed jobs cannot use up a rate. After a restart of the node all buckets are full.

use super::Policy;
use crate::wire::{Job, Op};
use std::collections::{BTreeSet, HashMap};

/// What a job takes. A rate of n a minute then puts n back each millisecond.
const JOB: u64 = 60_000;

/// Why a job must wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// Jobs a minute.
    pub rate: u64,
    /// When there is room for the job, milliseconds from now.
    pub wait_ms: u64,
    /// The first to be refused since a job was let through.
    pub first: bool,
}

#[derive(Debug)]
struct Bucket {
    level: u64,
    /// When the level was right, unix milliseconds.
    at: u64,
    refusing: bool,
    /// Expiry and digest of the jobs that took theirs.
    counted: BTreeSet<(u64, [u8; 32])>,
}

/// The buckets of a node, by the initiator's name in the policy: all its keys have one rate.
#[derive(Debug, Default)]
pub struct Rates(HashMap<(String, Op), Bucket>);

impl Rates {
    /// Counts an authentic job that has not expired, where the policy limits its operation.
    ///
    /// # Errors
    /// [`Limited`]: the rate is used up.
    pub fn take(&mut self, policy: &Policy, job: &Job, now: u64) -> Result<(), Limited> {
        let op = job.op();
        let Some(grant) = policy.get(&job.initiator) else { return Ok(()) };
        let Some(&rate) = grant.jobs_per_minute.get(&op) else { return Ok(()) };
        let full = rate.saturating_mul(JOB);
        let fresh = || Bucket { level: full, at: now, refusing: false, counted: BTreeSet::new() };
        let bucket = self.0.entry((grant.name.clone(), op)).or_insert_with(fresh);
        // A clock that was set back puts nothing into the bucket, and takes nothing out.
        let earned = now.saturating_sub(bucket.at).saturating_mul(rate);
        bucket.level = bucket.level.saturating_add(earned).min(full);
        bucket.at = now;
        while bucket.counted.first().is_some_and(|(expiry, _)| *expiry <= now) {
            bucket.counted.pop_first();
        }
        let name = (job.expires_at, job.digest);
        if bucket.counted.contains(&name) {
            return Ok(());
        }
        let taken = job.weight().saturating_mul(JOB);
        match bucket.level.checked_sub(taken) {
            Some(level) => {
                bucket.level = level;
                bucket.refusing = false;
                bucket.counted.insert(name);
                Ok(())
            }
            None => {
                let first = !std::mem::replace(&mut bucket.refusing, true);
                Err(Limited { rate, wait_ms: taken.saturating_sub(bucket.level).div_ceil(rate.max(1)), first })
            }
        }
    }

    /// Forgets the buckets that this policy has no rate for.
    pub fn retain(&mut self, policy: &Policy) {
        let grants: HashMap<_, _> = policy.grants().into_iter().map(|grant| (grant.name.as_str(), grant)).collect();
        self.0.retain(|(name, op), _| {
            grants.get(name.as_str()).is_some_and(|grant| grant.jobs_per_minute.contains_key(op))
        });
    }
}
