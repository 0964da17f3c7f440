//! A database made from the rows of a backup, beside a slot file that may be newer. Nothing is written to the slot file: a
//! data key that these rows do not know is that of a newer share.

use super::StoreError;
use super::attempts::binding;
use super::open::{builder, check_store, read_head, slots_generation};
use super::quarantine::{DOUBTS, Doubt, QUARANTINE, Quarantine};
use super::rows::{
    self, ATTEMPTS, AttemptRow, KEYS, KeyRow, META, RECORDS, REPLACEMENTS, attempt_key, replacement_key,
};
use super::slots::SlotReader;
use super::undecided::UNDECIDED;
use super::{Fate, dump, rekey};
use crate::node::audit::Head;
use redb::{Database, ReadableTable, WriteTransaction};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use trefoil_protocol::{Party, Secret};

/// What a restore brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restored {
    /// Committed keys that had not ended when the backup was taken; each is unconfirmed now.
    pub keys: u64,
    /// Keys that had ended.
    pub ended: u64,
    /// Attempts that were prepared and are still there.
    pub prepared: u64,
    /// Of all these shares, those whose data key is gone: they ended after the backup was taken, and stay dead.
    pub dead: u64,
    /// Data keys in the slot file that the backup does not know: of shares made since. They are not touched.
    pub newer: u64,
}

/// A database that is not in its place yet.
pub struct Draft {
    db: Database,
}

impl Draft {
    /// Makes the database at `path`, an empty file, from the rows of a backup.
    ///
    /// # Errors
    /// `Corrupt` if they do not parse; `Mismatch` for tables of another version; `Failed`.
    pub fn load(path: &Path, rows: &mut dyn Read) -> Result<Self, StoreError> {
        let db = builder().create(path)?;
        let tx = db.begin_write()?;
        dump::load(&tx, rows)?;
        tx.commit()?;
        Ok(Self { db })
    }

    /// The end of the audit log when the backup was taken.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    pub fn anchored(&self) -> Result<Option<Head>, StoreError> {
        read_head(&self.db)
    }

    /// Fits the database to a slot file, and puts it into quarantine.
    ///
    /// # Errors
    /// `Mismatch` if it is not `party`'s, not this master key's, or newer than the slot file; `Failed`; `Corrupt`.
    pub fn quarantine(
        self,
        slots: &Path,
        party: Party,
        master: Secret<[u8; 32]>,
        quarantine: Quarantine,
        keep_anchor: bool,
    ) -> Result<Restored, StoreError> {
        let store_id = check_store(&self.db, party, &master)?;
        if rekey::is_unfinished(&self.db)? {
            return Err(StoreError::Mismatch("the backup is of a store whose master key was being changed"));
        }
        let (reader, generation) = SlotReader::open_any(slots, &store_id, Arc::new(master))?;
        if generation < slots_generation(&self.db)? {
            return Err(StoreError::Mismatch(
                "the slot file is older than the backup, whose newer shares it does not know: use a newer copy of the \
                 slot file, or an older backup",
            ));
        }
        let tx = self.db.begin_write()?;
        let restored = fit(&tx, &reader, party)?;
        {
            let mut meta = tx.open_table(META)?;
            meta.insert("slots-generation", generation.to_be_bytes().as_slice())?;
            meta.insert(QUARANTINE, rows::encode(&quarantine)?.as_slice())?;
            if !keep_anchor {
                meta.remove("audit-head")?;
            }
        }
        tx.commit()?;
        Ok(restored)
    }
}

/// Takes the slots out of the rows whose data keys are gone, and doubts every key that has not ended.
fn fit(tx: &WriteTransaction, slots: &SlotReader, party: Party) -> Result<Restored, StoreError> {
    let (keys, mut attempts) = (tx.open_table(KEYS)?, tx.open_table(ATTEMPTS)?);
    let (mut records, mut links) = (tx.open_table(RECORDS)?, tx.open_table(REPLACEMENTS)?);
    let mut doubts = tx.open_table(DOUBTS)?;
    let (mut restored, mut used, mut dead, mut doubted) = (Restored::default(), BTreeSet::new(), vec![], vec![]);
    for entry in attempts.iter()? {
        let row: AttemptRow = rows::decode(entry?.1.value())?;
        let id = row.attempt.key_id;
        let key: Option<KeyRow> = rows::get(&keys, &id.0)?;
        let key = key.filter(|key| key.transcript == row.attempt.transcript);
        let held = row.slot != 0 && slots.get(row.slot, &binding(&row.attempt, party)).is_ok();
        match key.map(|key| key.state.is_end()) {
            Some(true) => restored.ended += 1,
            Some(false) => {
                restored.keys += 1;
                doubted.push(id);
            }
            None if held => {
                restored.prepared += 1;
                doubted.push(id);
            }
            None => {}
        }
        if held {
            used.insert(row.slot);
        } else if row.slot != 0 {
            restored.dead += 1;
            dead.push(row);
        }
    }
    for row in dead {
        let key = attempt_key(row.attempt.key_id, row.attempt.transcript);
        if let Some((source, _)) = row.attempt.source() {
            links.remove(&replacement_key(source, row.attempt.key_id, row.attempt.transcript))?;
        }
        records.remove(&key)?;
        tx.open_table(UNDECIDED)?.remove(&key)?;
        let fate = if row.fate == Fate::Prepared { Fate::Superseded } else { row.fate };
        attempts.insert(&key, rows::encode(&AttemptRow { slot: 0, fate, ..row })?.as_slice())?;
    }
    doubts.retain(|_, _| false)?;
    let unconfirmed = rows::encode(&Doubt::Unconfirmed)?;
    for id in doubted {
        doubts.insert(&id.0, unconfirmed.as_slice())?;
    }
    restored.newer = slots.in_use()?.iter().filter(|slot| !used.contains(slot)).count() as u64;
    Ok(restored)
}
