//! What the store keeps and is told.

use crate::wire::{Curve, ErrorCode, Fixed, InitiatorId, JobId, KeyId, Op};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The state of the key or job forbids it; nothing was written.
    #[error("refused: {0}")]
    Refused(ErrorCode),
    /// `KEY_RETIRED`: another key has taken this one's place; nothing was written.
    #[error("replaced by {successor}")]
    Replaced {
        /// The other key.
        successor: KeyId,
    },
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

impl StoreError {
    /// Is it a "no" that says nothing about the store's own health?
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Replaced { .. } | Self::LockedOut { .. })
    }

    /// A refusal by a key's state, with the key that took its place if there is one.
    pub(super) const fn by_state(code: ErrorCode, successor: Option<KeyId>) -> Self {
        match (code, successor) {
            (ErrorCode::KeyRetired, Some(successor)) => Self::Replaced { successor },
            (code, _) => Self::Refused(code),
        }
    }
}

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
    /// recover: the key that it replaces.
    pub source_key_id: Option<KeyId>,
    /// recover, refresh: the transcript hash of the shares that it was made from.
    pub source_transcript: Option<[u8; 32]>,
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
    /// generate: what the owner calls the key; only node 1 is told.
    pub label: Option<String>,
}

impl Attempt {
    /// The key, and the transcript hash of its shares, that a recovery or refresh made this from.
    #[must_use]
    pub fn source(&self) -> Option<(KeyId, [u8; 32])> {
        Some((self.source_key_id.unwrap_or(self.key_id), self.source_transcript?))
    }
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Nothing yet.
    Prepared,
    /// It is the key, or was until other shares took its place or the key ended.
    Committed,
    /// The shares that it was made from were replaced by others, or destroyed. Its own are gone.
    Superseded,
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
    /// The key that took this one's place.
    pub successor: Option<KeyId>,
}

impl KeyRecord {
    /// Whether the key signs.
    ///
    /// # Errors
    /// The code of its state.
    pub fn usable(&self) -> Result<(), StoreError> {
        self.state.usable().map_err(|code| StoreError::by_state(code, self.successor))
    }

    /// Whether its shares can be replaced, by a recovery or a refresh.
    ///
    /// # Errors
    /// The code of its state.
    pub fn replaceable(&self) -> Result<(), StoreError> {
        self.state.replaceable().map_err(|code| StoreError::by_state(code, self.successor))
    }
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

    /// What a recover or refresh job gets to hear about a key in this state: a failed check, too, is mended by new shares.
    ///
    /// # Errors
    /// The code for every state but `Active` and `Locked`.
    pub const fn replaceable(self) -> Result<(), ErrorCode> {
        match self {
            Self::Locked => Ok(()),
            state => state.usable(),
        }
    }

    /// May a key be ordered from this state into that one?
    #[must_use]
    pub const fn may_become(self, to: Self) -> bool {
        matches!(
            (self, to),
            (Self::Active, Self::Frozen | Self::Locked | Self::Destroyed)
                | (Self::Frozen, Self::Active | Self::Locked | Self::Destroyed)
                | (Self::Locked, Self::Destroyed)
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

/// How many keys an owner may have, under all its names together.
#[derive(Debug, Clone)]
pub struct Quota {
    /// The initiators under which its keys were or are made.
    pub owners: Vec<InitiatorId>,
    /// Keys that are prepared count, keys that have ended do not.
    pub max_keys: u64,
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
    /// The transcript hash of the share that it signs with.
    pub transcript: [u8; 32],
    /// Its job.
    pub job_digest: [u8; 32],
    /// Unix milliseconds.
    pub time: u64,
}

/// A committed key, as its owner finds it in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The key.
    pub record: KeyRecord,
    /// What its owner calls it.
    pub label: Option<String>,
    /// When it was committed, unix milliseconds.
    pub created_at: u64,
}

/// How long recoveries wait.
#[derive(Debug, Clone, Copy)]
pub struct RecoveryRules {
    /// From the request to the moment from which another job may execute it; zero: none needs to.
    pub wait: Duration,
    /// How long after that moment another job may.
    pub window: Duration,
}

/// What a recover job hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It may go on.
    Granted,
    /// A recovery was requested, and it does not execute it.
    Pending {
        /// The moment from which a new job does, unix milliseconds.
        retry_at: u64,
        /// Whether it is this job's request, and was not there before.
        new: bool,
    },
}
