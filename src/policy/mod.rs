//! What each initiator may do at a node: the policy file, read strictly, and the rates that it sets.
//!
//! Whoever is not listed may do nothing, and whoever is listed may do what is listed. docs/policy.md has the file's format.

mod file;
mod rate;

pub use file::{PolicyError, Problem};
pub use rate::{Limited, Rates};

use crate::wire::{Curve, ErrorCode, InitiatorId, Job, Op};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Longest file, bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
/// Longest `max_lifetime_seconds`, and the lifetime where the file says nothing: what the streams and ledgers are made for.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(3_600);
/// Highest `jobs_per_minute`: a rate's memory is about 100 bytes for each job that has not expired.
pub const HIGHEST_RATE: u64 = 60_000;

/// What one initiator may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// For people and logs.
    pub name: String,
    /// Its job-signing NKEYs, `U…`: one, and while it changes it the other.
    pub keys: Vec<InitiatorId>,
    /// Keys that it signed with before. They sign nothing any more; what they owned is its own.
    pub former: Vec<InitiatorId>,
    /// What it may ask for.
    pub operations: BTreeSet<Op>,
    /// On which curves, for the operations that name one.
    pub curves: BTreeSet<Curve>,
    /// Whether it may have digests signed of which the node knows nothing: all that is signed on secp256k1.
    pub raw_digests: bool,
    /// Longest time from a job's issue to its expiry.
    pub max_lifetime: Duration,
    /// How many keys it may have, those included that are only prepared. `None`: any number.
    pub max_keys: Option<u64>,
    /// Jobs a minute, where they are limited.
    pub jobs_per_minute: BTreeMap<Op, u64>,
}

impl Grant {
    /// Every key under which keys of this initiator may have been made.
    pub fn owners(&self) -> impl Iterator<Item = &InitiatorId> {
        self.keys.iter().chain(&self.former)
    }
}

/// A why-not, for people too. Repeats nothing that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// `UNKNOWN_INITIATOR` or `NOT_PERMITTED`.
    pub code: ErrorCode,
    /// What exactly is not granted.
    pub message: String,
}

/// All initiators that a node serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// By each key that may sign.
    grants: HashMap<InitiatorId, Arc<Grant>>,
    digest: [u8; 32],
}

impl Policy {
    /// The grant of an initiator.
    #[must_use]
    pub fn get(&self, initiator: &InitiatorId) -> Option<&Grant> {
        self.grants.get(initiator).map(Arc::as_ref)
    }

    /// Whether a key that was made for `owner` is this initiator's: its own, or made under another of its names.
    #[must_use]
    pub fn owns(&self, initiator: &InitiatorId, owner: &InitiatorId) -> bool {
        initiator == owner || self.get(initiator).is_some_and(|grant| grant.owners().any(|key| key == owner))
    }

    /// All names under which keys of this initiator may have been made, its own first.
    #[must_use]
    pub fn owners(&self, initiator: &InitiatorId) -> Vec<InitiatorId> {
        let others = self.get(initiator).into_iter().flat_map(Grant::owners).filter(|key| *key != initiator);
        std::iter::once(initiator).chain(others).cloned().collect()
    }

    /// All grants, by name.
    #[must_use]
    pub fn grants(&self) -> Vec<&Grant> {
        let mut grants: Vec<_> = self.grants.values().map(Arc::as_ref).collect();
        grants.sort_by(|a, b| a.name.cmp(&b.name));
        grants.dedup_by(|a, b| a.name == b.name);
        grants
    }

    /// SHA-256 of the file, 32 bytes.
    #[must_use]
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether the policy grants what this job asks for. Times, rate, number of keys and their owner are checked elsewhere.
    ///
    /// # Errors
    /// What is not granted.
    pub fn permit(&self, job: &Job) -> Result<&Grant, Denial> {
        let op = job.op();
        let grant = self.permits(&job.initiator, op, job.curve())?;
        // A rate lets through what it has a minute's room for, so this would wait for ever.
        if let Some(rate) = grant.jobs_per_minute.get(&op).filter(|rate| job.weight() > **rate) {
            return Err(denied(format_args!("have {} items signed in one job: it has {rate} a minute", job.weight())));
        }
        Ok(grant)
    }

    /// Whether the policy grants an operation to this initiator, on this curve where the job names one: what is asked again of a job that
    /// has begun, when another policy may be in force.
    ///
    /// # Errors
    /// What is not granted.
    pub fn permits(&self, initiator: &InitiatorId, op: Op, curve: Option<Curve>) -> Result<&Grant, Denial> {
        let code = ErrorCode::UnknownInitiator;
        let grant = self.get(initiator).ok_or_else(|| Denial { code, message: code.action().to_owned() })?;
        if !grant.operations.contains(&op) {
            return Err(denied(format_args!("ask for {op}")));
        }
        if let Some(curve) = curve.filter(|curve| !grant.curves.contains(curve)) {
            return Err(denied(format_args!("use {curve}")));
        }
        // All that is signed on secp256k1 is a digest.
        if op == Op::Sign && curve == Some(Curve::Secp256k1) && !grant.raw_digests {
            return Err(denied("have raw digests signed"));
        }
        Ok(grant)
    }
}

fn denied(what: impl std::fmt::Display) -> Denial {
    Denial { code: ErrorCode::NotPermitted, message: format!("this initiator may not {what}") }
}
