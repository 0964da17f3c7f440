//! The store of a node that does not run, or a whole copy of one: read without changing a byte, so that looking at a backup
//! cannot spoil it.

use super::attempts::read_material;
use super::dump::Snapshot;
use super::open::{DATABASE, SLOTS, check_store, read_head, slots_generation};
use super::recoveries::{RECOVERIES, requests};
use super::rekey::is_unfinished;
use super::rows::{self, ATTEMPTS, AttemptRow, KEYS, KeyRow};
use super::slots::SlotReader;
use super::{Attempt, Fate, KeyState, Quarantine, Request, StoreError, quarantine, undecided};
use crate::node::audit::Head;
use crate::wire::KeyId;
use redb::{DatabaseError, ReadOnlyDatabase, ReadableDatabase, ReadableTable};
use std::path::{Path, PathBuf};
use trefoil_protocol::{Party, Secret};
use zeroize::Zeroizing;

/// A data directory that no node has open.
pub struct StoppedStore {
    db: ReadOnlyDatabase,
    directory: PathBuf,
}

/// An attempt as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its public side.
    pub attempt: Attempt,
    /// What became of it.
    pub fate: Fate,
    /// Since when it is prepared, unix milliseconds.
    pub since: Option<u64>,
    /// The key's state if this attempt is the key.
    pub state: Option<KeyState>,
    /// Whether the share is there; of ended keys and replaced attempts it is not.
    pub held: bool,
}

/// Reads the shares of a [`StoppedStore`].
pub struct Shares<'a> {
    store: &'a StoppedStore,
    slots: SlotReader,
    party: Party,
}

impl StoppedStore {
    /// Opens the store in this directory; needs no master key.
    ///
    /// # Errors
    /// `Mismatch` while a node has the store open, or before it has recovered from a crash; `Failed`; `Corrupt`.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let db = ReadOnlyDatabase::open(directory.join(DATABASE)).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => {
                StoreError::Mismatch("the node is running: stop it to read its store")
            }
            DatabaseError::RepairAborted => {
                StoreError::Mismatch("the node did not end in good order: it repairs its store when it is started")
            }
            error => error.into(),
        })?;
        Ok(Self { db, directory: directory.to_owned() })
    }

    /// The anchored end of the audit log.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    pub fn anchored(&self) -> Result<Option<Head>, StoreError> {
        read_head(&self.db)
    }

    /// Whether the store was restored from a backup, and when.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    pub fn quarantine(&self) -> Result<Option<Quarantine>, StoreError> {
        quarantine::read(&self.db)
    }

    /// All of it, for a backup.
    ///
    /// # Errors
    /// `Mismatch` after a change of the master key that was cut off; `Failed`; `Corrupt`.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Snapshot::of(&self.db)
    }

    /// Every attempt, in the order of key ids.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    pub fn for_each(&self, mut see: impl FnMut(Stored)) -> Result<(), StoreError> {
        let tx = self.db.begin_read()?;
        let keys = tx.open_table(KEYS)?;
        for entry in tx.open_table(ATTEMPTS)?.iter()? {
            let AttemptRow { attempt, fate, slot } = rows::decode(entry?.1.value())?;
            let key: Option<KeyRow> = rows::get(&keys, &attempt.key_id.0)?;
            let state = key.filter(|key| key.transcript == attempt.transcript).map(|key| key.state);
            let since = if fate == Fate::Prepared { undecided::since(&self.db, &attempt)? } else { None };
            see(Stored { attempt, fate, since, state, held: slot != 0 });
        }
        Ok(())
    }

    /// Every key with a requested recovery, in the order of their ids; those whose time to be executed is over, too.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    pub fn recoveries(&self) -> Result<Vec<(KeyId, Request)>, StoreError> {
        requests(&self.db.begin_read()?.open_table(RECOVERIES)?)
    }

    /// The way to the shares of this store, which must be `party`'s, and this master key's.
    ///
    /// # Errors
    /// `Mismatch`, also where the slot file is missing, older, newer or another store's; `Failed`.
    pub fn shares(&self, party: Party, master: Secret<[u8; 32]>) -> Result<Shares<'_>, StoreError> {
        let store_id = check_store(&self.db, party, &master)?;
        if is_unfinished(&self.db)? {
            return Err(StoreError::Mismatch(
                "a change of the master key was cut off: the node finishes it when it starts",
            ));
        }
        let slots = SlotReader::open(&self.directory.join(SLOTS), &store_id, master, slots_generation(&self.db)?)?;
        Ok(Shares { store: self, slots, party })
    }
}

impl Shares<'_> {
    /// Brings a copy of the slot file up to date, in place.
    ///
    /// # Errors
    /// `Mismatch` if what is there is no copy of this store's, or a newer one; `Failed`.
    pub fn copy_slots(&self, to: &Path) -> Result<(), StoreError> {
        self.slots.copy_to(to)
    }

    /// The secret bytes of an attempt, decrypted.
    ///
    /// # Errors
    /// `Corrupt` if they were altered or their data key is gone; `Failed`.
    pub fn read(&self, attempt: &Attempt) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        read_material(&self.store.db, &self.slots, self.party, attempt.key_id, attempt.transcript)
    }
}
