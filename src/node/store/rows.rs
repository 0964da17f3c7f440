//! The tables and their rows (postcard).

use super::{Attempt, Fate, KeyState, StoreError};
use crate::node::audit::Head;
use crate::wire::{ErrorCode, InitiatorId, JobId, KeyId};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Key id -> [`KeyRow`].
pub const KEYS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("keys");
/// Key id ‖ transcript -> [`AttemptRow`].
pub const ATTEMPTS: TableDefinition<'_, &[u8; 48], &[u8]> = TableDefinition::new("attempts");
/// Owner ‖ key id of every key that has an attempt and has not ended; one that is to take another's place only once it has.
pub const OWNED: TableDefinition<'_, &[u8], ()> = TableDefinition::new("keys-by-owner");
/// Key id ‖ transcript -> nonce ‖ encrypted share ‖ tag.
pub const RECORDS: TableDefinition<'_, &[u8; 48], &[u8]> = TableDefinition::new("records");
/// Source key id ‖ key id ‖ transcript of every attempt that is prepared from a key's committed shares.
pub const REPLACEMENTS: TableDefinition<'_, &[u8; 64], ()> = TableDefinition::new("replacements");
/// Key id ‖ transcript of attempts that are void.
pub const DISCARDED: TableDefinition<'_, &[u8; 48], ()> = TableDefinition::new("discarded");
/// Initiator ‖ job id -> [`JobRow`].
pub const JOBS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("jobs");
/// Initiator ‖ job id -> the blinded password that the job was last charged for.
pub const CHARGED: TableDefinition<'_, &[u8], &[u8; 32]> = TableDefinition::new("charged-passwords");
/// Expiry in milliseconds ‖ key of the job: what to forget first.
pub const JOBS_BY_EXPIRY: TableDefinition<'_, &[u8], ()> = TableDefinition::new("jobs-by-expiry");
/// Key id -> [`GuessRow`].
pub const GUESSES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("password-attempts");
/// Key id -> [`OrderRow`].
pub const ORDERS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("orders");
/// Time in milliseconds ‖ session -> key id ‖ job digest.
pub const BURNED: TableDefinition<'_, &[u8; 24], &[u8; 48]> = TableDefinition::new("burned-sessions");
/// Name -> bytes.
pub const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// State and committed attempt of a key.
#[derive(Serialize, Deserialize)]
pub struct KeyRow {
    pub state: KeyState,
    pub transcript: [u8; 32],
    /// Locked: its owner had frozen it.
    pub frozen: bool,
    /// Retired: the key that took this one's place.
    pub successor: Option<KeyId>,
}

impl KeyRow {
    /// Whether the key signs with the share of this transcript; whoever began with another one has to stop.
    ///
    /// # Errors
    /// The state's refusal; `STALE_SHARE`.
    pub fn usable(&self, transcript: [u8; 32]) -> Result<(), StoreError> {
        self.state.usable().map_err(|code| self.refusal(code))?;
        self.is_of(transcript)
    }

    /// Whether the share of this transcript is the key's, and can be replaced.
    ///
    /// # Errors
    /// As [`KeyRow::usable`].
    pub fn replaceable(&self, transcript: [u8; 32]) -> Result<(), StoreError> {
        self.state.replaceable().map_err(|code| self.refusal(code))?;
        self.is_of(transcript)
    }

    /// Why a state forbids something.
    pub const fn refusal(&self, code: ErrorCode) -> StoreError {
        StoreError::by_state(code, self.successor)
    }

    fn is_of(&self, transcript: [u8; 32]) -> Result<(), StoreError> {
        if self.transcript == transcript { Ok(()) } else { Err(StoreError::Refused(ErrorCode::StaleShare)) }
    }
}

/// An attempt, what became of it, and where its data key is. Slot 0, the file's header, stands for "destroyed".
#[derive(Serialize, Deserialize)]
pub struct AttemptRow {
    pub attempt: Attempt,
    pub fate: Fate,
    pub slot: u32,
}

impl AttemptRow {
    /// Are these a key's shares, and still here?
    pub const fn holds_key(&self) -> bool {
        matches!(self.fate, Fate::Committed) && self.slot != 0
    }
}

/// A job of the ledger.
#[derive(Serialize, Deserialize)]
pub struct JobRow {
    pub digest: [u8; 32],
    pub op: crate::wire::Op,
    pub expires_at: u64,
    /// Nothing entered: a job of this id was cancelled before it was, by the job with this digest.
    pub cancelled: bool,
}

/// The last order about a key that was carried out.
#[derive(Serialize, Deserialize)]
pub struct OrderRow {
    pub issued_at: u64,
    pub digest: [u8; 32],
}

/// Password attempts of a key.
#[derive(Default, Serialize, Deserialize)]
pub struct GuessRow {
    /// Consecutive wrong passwords.
    pub wrong: u32,
    /// Consecutive attempts whose end nobody reported.
    pub open: u32,
    /// When the last one was charged or failed, unix milliseconds.
    pub last: u64,
}

pub fn encode(row: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    postcard::to_allocvec(row).map_err(|_| StoreError::Failed("a row does not serialise".into()))
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|_| StoreError::Corrupt("a row does not parse"))
}

/// Key id ‖ transcript.
pub fn attempt_key(id: KeyId, transcript: [u8; 32]) -> [u8; 48] {
    let mut key = [0; 48];
    let (left, right) = key.split_at_mut(16);
    left.copy_from_slice(&id.0);
    right.copy_from_slice(&transcript);
    key
}

/// Source key id ‖ key id ‖ transcript.
pub fn replacement_key(source: KeyId, id: KeyId, transcript: [u8; 32]) -> [u8; 64] {
    let mut key = [0; 64];
    let (left, right) = key.split_at_mut(16);
    left.copy_from_slice(&source.0);
    right.copy_from_slice(&attempt_key(id, transcript));
    key
}

/// Initiators have 56 characters, so the two parts cannot be confused.
pub fn job_key(initiator: &InitiatorId, job: &JobId) -> Vec<u8> {
    [initiator.as_str().as_bytes(), job.as_str().as_bytes()].concat()
}

/// Owner ‖ key id: 56 and 16 bytes.
pub fn owned_key(owner: &InitiatorId, id: KeyId) -> Vec<u8> {
    [owner.as_str().as_bytes(), &id.0].concat()
}

/// Reads and parses one row of any table whose values are bytes.
pub fn get<'k, K, T>(
    table: &impl ReadableTable<K, &'static [u8]>,
    key: K::SelfType<'k>,
) -> Result<Option<T>, StoreError>
where
    K: redb::Key + 'static,
    T: DeserializeOwned,
{
    table.get(key)?.map(|value| decode(value.value())).transpose()
}

/// Anchors the end of the audit log.
pub fn put_head(tx: &WriteTransaction, head: Option<Head>) -> Result<(), StoreError> {
    if let Some(head) = head {
        tx.open_table(META)?.insert("audit-head", encode(&head)?.as_slice())?;
    }
    Ok(())
}

/// Names the commit for the slot file, if it touches slots.
pub fn put_generation(tx: &WriteTransaction, generation: u64) -> Result<(), StoreError> {
    tx.open_table(META)?.insert("slots-generation", generation.to_be_bytes().as_slice())?;
    Ok(())
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Failed(error.to_string())
            }
        }
    )*};
}
from_redb!(StorageError, TableError, TransactionError, CommitError, DatabaseError);
