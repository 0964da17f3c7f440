//! What a node keeps: keys and prepared attempts, the job ledger, password attempts, burned sessions.
//!
//! Shares are encrypted under data keys of their own, which live in a slot file outside the database (`slots`), so that
//! overwriting one slot destroys a share for good: a copy-on-write database cannot overwrite. All writes go through one
//! thread, which commits many of them at once (`writer`); each caller waits for its own to be durable.

mod open;
mod redb_store;
mod rekey;
mod rows;
mod seal;
mod slots;
mod stopped;
mod writer;

pub use redb_store::RedbStore;
pub use rekey::rekey;
pub use stopped::{Shares, StoppedStore, Stored};

use super::audit::Head;
use crate::wire::{Curve, ErrorCode, Fixed, InitiatorId, JobId, KeyId, Op};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use zeroize::Zeroizing;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The state of the key or job forbids it; nothing was written.
    #[error("refused: {0}")]
    Refused(ErrorCode),
    /// Too many wrong passwords; nothing was written.
    #[error("too many password attempts")]
    LockedOut {
        /// When the next attempt is let in, unix milliseconds.
        until: u64,
    },
    /// The disk or the database failed; nothing was acknowledged.
    #[error("storage failed: {0}")]
    Failed(String),
    /// A record does not decrypt or parse: altered, or its data key is gone.
    #[error("corrupt: {0}")]
    Corrupt(&'static str),
    /// The files do not belong together, or not to this node or master key.
    #[error("{0}")]
    Mismatch(&'static str),
}

/// The outcome of a write, once it is durable.
pub type Written<T> = BoxFuture<'static, Result<T, StoreError>>;

/// A prepared or committed share's public side: what the node attested, and its attestation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The key's owner.
    pub initiator: InitiatorId,
    /// The job that made it.
    pub job_id: JobId,
    /// SHA-256 of that job's body.
    pub job_digest: [u8; 32],
    /// The key.
    pub key_id: KeyId,
    /// The key that it replaces, if it does.
    pub source_key_id: Option<KeyId>,
    /// Generation of the key's shares.
    pub epoch: u32,
    /// The key's curve.
    pub curve: Curve,
    /// 33 or 32 bytes.
    pub public_key: Vec<u8>,
    /// BIP-32 chain code.
    pub chain_code: [u8; 32],
    /// Transcript hash T, which tells attempts apart.
    pub transcript: [u8; 32],
    /// This node's attestation of all that.
    pub signature: Fixed<64>,
}

/// State of a committed key. A key without a state is at most prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// Signs.
    Active,
    /// Replaced by another; the share is gone.
    Retired,
    /// Stopped by its owner.
    Frozen,
    /// A check failed; the OT state is gone, the share is kept for recovery.
    Locked,
    /// The share is gone.
    Destroyed,
}

/// A committed key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its state.
    pub state: KeyState,
    /// The committed attempt.
    pub attempt: Attempt,
}

impl KeyState {
    /// What a job gets to hear about a key in this state.
    ///
    /// # Errors
    /// The code for every state but `Active`.
    pub const fn usable(self) -> Result<(), ErrorCode> {
        match self {
            Self::Active => Ok(()),
            Self::Retired => Err(ErrorCode::KeyRetired),
            Self::Frozen => Err(ErrorCode::KeyFrozen),
            Self::Locked => Err(ErrorCode::KeyLocked),
            Self::Destroyed => Err(ErrorCode::KeyDestroyed),
        }
    }

    /// May a key go from this state to that one?
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::Active, Self::Retired | Self::Frozen | Self::Locked | Self::Destroyed)
                | (Self::Frozen, Self::Active | Self::Retired | Self::Locked | Self::Destroyed)
                | (Self::Locked, Self::Retired | Self::Destroyed)
        )
    }

    /// Is the share gone in this state?
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Retired | Self::Destroyed)
    }
}

/// A job for the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Who signed it.
    pub initiator: InitiatorId,
    /// Its id.
    pub job_id: JobId,
    /// SHA-256 of its body.
    pub digest: [u8; 32],
    /// What it asks for.
    pub op: Op,
    /// Unix milliseconds; the entry is kept for an hour longer.
    pub expires_at: u64,
}

/// An owner's order about a key.
#[derive(Debug, Clone)]
pub struct Order {
    /// The job.
    pub job: LedgerEntry,
    /// The key.
    pub key_id: KeyId,
    /// The state that it is to be in.
    pub to: KeyState,
    /// When the job was issued, unix milliseconds.
    pub issued_at: u64,
}

/// Bounds of password guessing at one key.
#[derive(Debug, Clone, Copy)]
pub struct GuessLimits {
    /// Consecutive wrong passwords before a lockout. Attempts whose end nobody reported, as after a crash, count against ten
    /// times as many.
    pub attempts: u32,
    /// How long the lockout lasts.
    pub lockout: Duration,
}

/// How a charged password attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuessOutcome {
    /// The client proved that it opened its share: all counts start anew.
    Right,
    /// The worker reported a wrong password.
    Wrong,
}

/// A session that can never be used again.
#[derive(Debug, Clone, Copy)]
pub struct BurnedSession {
    /// The session.
    pub session: [u8; 16],
    /// Its key.
    pub key_id: KeyId,
    /// Its job.
    pub job_digest: [u8; 32],
    /// Unix milliseconds.
    pub time: u64,
}

/// A node's durable state. Reads see what is committed; writes complete when they are durable.
pub trait Store: Send + Sync + 'static {
    /// A committed key.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// The prepared attempts of a key that is not committed.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn prepared(&self, id: KeyId) -> Result<Vec<Attempt>, StoreError>;

    /// The secret bytes of an attempt, decrypted.
    ///
    /// # Errors
    /// `Corrupt` if they were altered or their data key is gone; `Failed`.
    fn material(&self, id: KeyId, transcript: [u8; 32]) -> Result<Zeroizing<Vec<u8>>, StoreError>;

    /// Enters a job into the ledger; the same job again is fine.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`.
    fn admit(&self, job: LedgerEntry) -> Written<()>;

    /// Does the ledger hold this job id with another body?
    ///
    /// # Errors
    /// `JOB_ID_REUSED`; `Failed`.
    fn check_ledger(&self, job: &LedgerEntry) -> Result<(), StoreError>;

    /// Enters a job into the ledger and charges a password attempt at `now` (unix milliseconds), in one commit. The same job with
    /// the same `blinded` password is charged once: its answer tells nothing new, so whoever asks again guesses nothing.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`, the code of the key's state, `LockedOut`.
    fn charge(&self, job: LedgerEntry, key: KeyId, blinded: [u8; 32], limits: GuessLimits, now: u64) -> Written<()>;

    /// Ends a charged attempt.
    fn settle(&self, key: KeyId, outcome: GuessOutcome, now: u64) -> Written<()>;

    /// Burns a session, and settles its password attempt as right.
    ///
    /// # Errors
    /// The code of the key's state, where it changed since the session was opened.
    fn burn(&self, session: BurnedSession) -> Written<()>;

    /// Whether an owner may have this key: has it already, or has fewer than so many. Keys that are only prepared count, keys
    /// that have ended do not.
    ///
    /// # Errors
    /// `Failed`.
    fn has_room(&self, owner: &InitiatorId, id: KeyId, max_keys: u64) -> Result<bool, StoreError>;

    /// Stages an attempt with its secret bytes, if its owner then has no more than `max_keys`.
    ///
    /// # Errors
    /// `JOB_ID_REUSED` if the key is committed already or the attempt was discarded; `OVERLOADED` with 64 attempts prepared;
    /// `NOT_PERMITTED` for a key too many.
    fn stage(&self, attempt: Attempt, material: Zeroizing<Vec<u8>>, max_keys: Option<u64>) -> Written<()>;

    /// Makes a prepared attempt the key, and destroys the key's other attempts. Again for the same attempt is fine.
    ///
    /// # Errors
    /// `UNKNOWN_KEY` if there is no such attempt.
    fn commit(&self, id: KeyId, transcript: [u8; 32]) -> Written<Attempt>;

    /// Destroys a prepared attempt, or keeps one that is not there from being prepared later.
    ///
    /// # Errors
    /// `JOB_ID_REUSED` if it is committed.
    fn discard(&self, id: KeyId, transcript: [u8; 32]) -> Written<()>;

    /// Locks a key for good. `kept` replaces its secret bytes (the share without OT state) under a new data key, and the old
    /// data key is destroyed.
    ///
    /// # Errors
    /// The code of a state that cannot be locked; a key that is locked already is fine.
    fn lock(&self, id: KeyId, kept: Zeroizing<Vec<u8>>) -> Written<()>;

    /// Moves a key to another state; its data key is destroyed where the share ends.
    ///
    /// # Errors
    /// The code of a state that may not become `to`.
    fn transition(&self, id: KeyId, to: KeyState) -> Written<()>;

    /// Enters the job into the ledger and carries out its order, in one commit; the key's last order again is fine, and changes
    /// nothing.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`; `JOB_SUPERSEDED` unless it was issued after the key's last order; `UNKNOWN_KEY`; the code of a state that
    /// may not become `to`.
    fn order(&self, order: Order) -> Written<()>;

    /// Forgets jobs and sessions whose time is over, at most 10,000 of each.
    fn prune(&self, now: u64) -> Written<()>;

    /// Can it still be written? Looks only after a write has failed.
    ///
    /// # Errors
    /// `Failed` if it cannot, until it is opened anew.
    fn check(&self) -> Written<()>;

    /// Tells the store the end of the audit log, to be anchored with its next commit.
    fn anchor(&self, head: Head);

    /// The anchored end of the audit log.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn anchored(&self) -> Result<Option<Head>, StoreError>;
}
