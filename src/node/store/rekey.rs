//! Another master key for a store: every data key is wrapped anew. A crash at any moment leaves the store to the old key or to
//! the new one, whole.
//!
//! 1. `slots.rekey` is written: the slot file as it will be.
//! 2. One commit makes the new master key the store's, and says that the slot file is not yet its own: the decision.
//! 3. The slot file is overwritten in place, and a commit says so.
//! 4. `slots.rekey` is overwritten and removed.
//!
//! Whoever opens the store next finishes 3 and 4, or only 4 where 2 was not reached.

use super::StoreError;
use super::attempts::binding;
use super::open::{self, SLOTS, check_store, slots_generation};
use super::rows::{self, ATTEMPTS, AttemptRow, META};
use super::seal;
use super::slots::{SLOT, SlotReader};
use redb::{Database, ReadableDatabase, ReadableTable};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use trefoil_protocol::{Party, Secret};

/// Name of the slot file to be.
const DRAFT: &str = "slots.rekey";
/// Row of the database that is there between the decision and the end.
pub const UNFINISHED: &str = "rekey";

fn io(path: &Path) -> impl Fn(std::io::Error) -> StoreError + '_ {
    move |error| StoreError::Failed(format!("{}: {error}", path.display()))
}

/// Wraps every data key of the store in this directory, which no node has open, under the new master key. Returns how many.
///
/// # Errors
/// As for opening a store; `Corrupt` if a data key does not open. Then nothing has changed.
pub fn rekey(directory: &Path, party: Party, old: Secret<[u8; 32]>, new: &Secret<[u8; 32]>) -> Result<u64, StoreError> {
    let db = open::existing(directory)?;
    let store_id = check_store(&db, party, &old)?;
    finish(&db, directory)?;
    let slots_path = directory.join(SLOTS);
    let reader = SlotReader::open(&slots_path, &store_id, old, slots_generation(&db)?)?;
    let mut slots = std::fs::read(&slots_path).map_err(io(&slots_path))?;
    let mut wrapped = 0;
    for entry in db.begin_read()?.open_table(ATTEMPTS)?.iter()? {
        let AttemptRow { attempt, slot, .. } = rows::decode(entry?.1.value())?;
        if slot == 0 {
            continue;
        }
        let binding = binding(&attempt, party);
        let sealed = seal::seal(new.expose(), &binding.slot(slot), reader.get(slot, &binding)?.expose())?;
        let place = slots.chunks_exact_mut(SLOT).nth(slot as usize).and_then(|slot| slot.get_mut(4..));
        let place = place.filter(|place| place.len() == sealed.len());
        place.ok_or(StoreError::Corrupt("the slot file is too short"))?.copy_from_slice(&sealed);
        wrapped += 1;
    }
    let draft = directory.join(DRAFT);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
        file.write_all(&slots)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    });
    written.map_err(io(&draft))?;
    let tx = db.begin_write()?;
    {
        let mut meta = tx.open_table(META)?;
        meta.insert("master-check", seal::seal(new.expose(), &store_id, open::CHECK)?.as_slice())?;
        meta.insert(UNFINISHED, [1].as_slice())?;
    }
    tx.commit()?;
    finish(&db, directory)?;
    Ok(wrapped)
}

/// Whether a change of the master key was decided and not finished.
pub fn is_unfinished(db: &impl ReadableDatabase) -> Result<bool, StoreError> {
    Ok(open::read_meta(db, UNFINISHED)?.is_some())
}

/// Finishes a change of the master key that was cut off, if there was one.
pub fn finish(db: &Database, directory: &Path) -> Result<(), StoreError> {
    let draft = directory.join(DRAFT);
    if is_unfinished(db)? {
        overwrite(&draft, &directory.join(SLOTS))?;
        let tx = db.begin_write()?;
        tx.open_table(META)?.remove(UNFINISHED)?;
        tx.commit()?;
        tracing::info!("the change of the master key is finished");
    }
    erase(&draft).map_err(io(&draft))
}

/// Puts every slot of the draft, but not its header, into the slot file.
fn overwrite(draft: &PathBuf, slots: &PathBuf) -> Result<(), StoreError> {
    let content = std::fs::read(draft).map_err(io(draft))?;
    let file = OpenOptions::new().write(true).open(slots).map_err(io(slots))?;
    let length = file.metadata().map_err(io(slots))?.len();
    if length != content.len() as u64 {
        return Err(StoreError::Mismatch("slots.rekey does not belong to this slot file"));
    }
    file.write_all_at(content.get(SLOT..).unwrap_or_default(), SLOT as u64).map_err(io(slots))?;
    file.sync_data().map_err(io(slots))
}

/// Overwrites and removes a file, if it is there.
fn erase(path: &Path) -> std::io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let length = file.metadata()?.len() as usize;
    file.write_all_at(&vec![0; length], 0)?;
    file.sync_data()?;
    std::fs::remove_file(path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
