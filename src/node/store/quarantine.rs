//! A store that was restored from a backup does not know what became of its keys since. So each of them is in doubt until the
//! other node has signed what it knows of it, for this restore's nonce.

use super::StoreError;
use super::rows;
use crate::node::audit::Head;
use redb::{ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};

/// Key id -> [`Doubt`]: keys of a restored store that are not confirmed.
pub const DOUBTS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("doubts");
/// Row of META with the [`Quarantine`] of a restored store.
pub const QUARANTINE: &str = "quarantine";

/// That a store was restored, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Random, of this restore: no word that the other node gave before can confirm a key.
    pub nonce: [u8; 32],
    /// When it was restored, unix milliseconds. The ledger may lack jobs that were issued before.
    pub restored_at: u64,
    /// When the backup was taken, unix milliseconds.
    pub taken_at: u64,
    /// The end of the audit log when the backup was taken.
    pub head: Option<Head>,
}

/// What is open about a key of a restored store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doubt {
    /// The other node has not been asked yet.
    Unconfirmed,
    /// The share here is not the key's current one, or is gone; final.
    Outdated,
}

/// Whether the store was restored.
pub fn read(db: &impl ReadableDatabase) -> Result<Option<Quarantine>, StoreError> {
    super::open::read_meta(db, QUARANTINE)?.map(|bytes| rows::decode(&bytes)).transpose()
}
