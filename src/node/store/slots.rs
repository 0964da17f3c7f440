//! The slot file: one data key per stored share, overwritten in place when the share ends.
//!
//! ```text
//! slot 0    8 "TREFSLOT" | 4 version | 4 zero | 32 store id | 8 generation | 8 zero
//! slot n    1 in use (1) | 3 zero | 12 nonce | 32 data key, encrypted | 16 tag      (a free slot is zero)
//! ```
//!
//! 64 bytes never cross a disk sector, so a slot is written whole or not at all.
//!
//! The generation counts the commits that touched slots. It is written here before such a commit and in the database by it, so
//! the two differ by at most one, after a crash between them. A database that is further behind is an old copy: opened
//! with today's slot file, it would take the keys of all newer shares for leftovers. It is refused, and nothing is touched.

use super::StoreError;
use super::seal::{self, Binding, OVERHEAD};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use trefoil_protocol::Secret;

/// Bytes of a slot.
pub const SLOT: usize = 64;
const MAGIC: &[u8; 8] = b"TREFSLOT";
const VERSION: u32 = 1;
/// Where the header holds the generation.
const GENERATION_AT: usize = 48;

/// Reads data keys; shared by all readers.
#[derive(Clone)]
pub struct SlotReader {
    file: Arc<File>,
    master: Arc<Secret<[u8; 32]>>,
}

/// The one writer of the slot file.
pub struct SlotFile {
    reader: SlotReader,
    free: BTreeSet<u32>,
    next: u32,
    dirty: bool,
    /// Of the last commit that touched slots.
    generation: u64,
}

fn io(error: std::io::Error) -> StoreError {
    StoreError::Failed(format!("slot file: {error}"))
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * SLOT as u64
}

impl SlotFile {
    /// Makes a new, empty slot file for the store with this id; refuses to touch an existing one.
    pub fn create(path: &Path, store_id: &[u8; 32]) -> Result<(), StoreError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let mut header = Vec::with_capacity(SLOT);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(store_id);
        header.resize(SLOT, 0);
        file.write_all_at(&header, 0).map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// Opens the slot file of the store with this id, whose last commit to touch slots was `committed`, and wipes every slot that
    /// no record of the store uses: what a crash left to be overwritten. After a crash before a commit, whose slots cannot
    /// be told from those of a newer database, they are left for the next start. With `keep_unknown` they are always left: the
    /// database was restored from a backup, and newer shares may come back.
    pub fn open(
        path: &Path,
        store_id: &[u8; 32],
        master: Arc<Secret<[u8; 32]>>,
        used: &BTreeSet<u32>,
        committed: u64,
        keep_unknown: bool,
    ) -> Result<Self, StoreError> {
        let (file, generation) = open_file(path, store_id, committed, OpenOptions::new().read(true).write(true))?;
        file.try_lock().map_err(|_| StoreError::Mismatch("another process has the slot file open"))?;
        let slots = (file.metadata().map_err(io)?.len() / SLOT as u64).max(1);
        let next = u32::try_from(slots).map_err(|_| StoreError::Corrupt("the slot file is too long"))?;
        if used.last().is_some_and(|last| *last >= next) {
            return Err(StoreError::Mismatch("the slot file is older than the store: slots are missing"));
        }
        let mut slot_file = Self {
            reader: SlotReader { file: Arc::new(file), master },
            free: BTreeSet::new(),
            next,
            dirty: false,
            generation,
        };
        for slot in (1..next).filter(|slot| !used.contains(slot)) {
            if generation == committed && !keep_unknown {
                slot_file.wipe(slot)?;
            } else if slot_file.is_free(slot)? {
                slot_file.free.insert(slot);
            } else if !keep_unknown {
                tracing::warn!(
                    slot,
                    "a data key without a share: from a commit that a crash cut off, or of a newer store"
                );
            }
        }
        slot_file.sync()?;
        Ok(slot_file)
    }

    fn is_free(&self, slot: u32) -> Result<bool, StoreError> {
        let mut bytes = [0u8; SLOT];
        self.reader.file.read_exact_at(&mut bytes, offset(slot)).map_err(io)?;
        Ok(bytes == [0; SLOT])
    }

    /// Were slots written since the last [`SlotFile::sync`]?
    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Writes the generation of a commit that touches slots, which the database stores in that commit. The same again until
    /// [`SlotFile::committed`], so that failing commits do not run ahead of the database.
    pub fn announce(&mut self) -> Result<u64, StoreError> {
        let next = self.generation + 1;
        self.dirty = true;
        self.reader.file.write_all_at(&next.to_be_bytes(), GENERATION_AT as u64).map_err(io)?;
        Ok(next)
    }

    /// The announced commit is durable.
    pub const fn committed(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// The reading side.
    pub fn reader(&self) -> SlotReader {
        self.reader.clone()
    }

    /// Puts a data key into a free slot; durable after [`SlotFile::sync`].
    pub fn put(&mut self, key: &Secret<[u8; 32]>, binding: &Binding) -> Result<u32, StoreError> {
        let slot = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        let sealed = seal::seal(self.reader.master.expose(), &binding.slot(slot), key.expose())?;
        let bytes = [&[1, 0, 0, 0], sealed.as_slice()].concat();
        self.dirty = true;
        self.reader.file.write_all_at(&bytes, offset(slot)).map_err(io)?;
        Ok(slot)
    }

    /// Overwrites a slot with zeros and frees it; durable after [`SlotFile::sync`].
    pub fn wipe(&mut self, slot: u32) -> Result<(), StoreError> {
        self.dirty = true;
        self.reader.file.write_all_at(&[0u8; SLOT], offset(slot)).map_err(io)?;
        self.free.insert(slot);
        Ok(())
    }

    /// Makes what was written durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if self.dirty {
            self.reader.file.sync_data().map_err(io)?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// Brings the copy of a slot file up to date, or makes it. It is overwritten in place, so that a data key which is gone here is
/// gone there too; the header comes last, so that a copy which was cut off does not pass for a newer one.
fn copy(from: &File, to: &Path) -> Result<(), StoreError> {
    let named = |error: std::io::Error| StoreError::Failed(format!("{}: {error}", to.display()));
    let mut header = [0u8; SLOT];
    from.read_exact_at(&mut header, 0).map_err(io)?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(to);
    let file = file.map_err(named)?;
    let length = from.metadata().map_err(io)?.len();
    let mut there = [0u8; SLOT];
    if file.metadata().map_err(named)?.len() > 0 {
        file.read_exact_at(&mut there, 0).map_err(named)?;
        // A copy that was never finished has a header of zeros.
        if there != [0; SLOT] && there.get(..GENERATION_AT) != header.get(..GENERATION_AT) {
            return Err(StoreError::Mismatch(
                "the copy to overwrite is no slot file of this store: nothing was written",
            ));
        }
        let newer = there.get(GENERATION_AT..) > header.get(GENERATION_AT..);
        if newer || file.metadata().map_err(named)?.len() > length {
            return Err(StoreError::Mismatch("the copy to overwrite is newer than the slot file: nothing was written"));
        }
    }
    let mut buffer = vec![0u8; 1024 * SLOT];
    let mut at = SLOT as u64;
    while at < length {
        let part = buffer.len().min((length - at) as usize);
        let (part, _) = buffer.split_at_mut(part);
        from.read_exact_at(part, at).map_err(io)?;
        file.write_all_at(part, at).map_err(named)?;
        at += part.len() as u64;
    }
    file.sync_data().map_err(named)?;
    file.write_all_at(&header, 0).map_err(named)?;
    file.sync_all().map_err(named)?;
    to.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()).map_err(named)
}

/// Opens a slot file if it belongs to the store with this id, whose last commit to touch slots was `committed`; and its generation.
fn open_file(
    path: &Path,
    store_id: &[u8; 32],
    committed: u64,
    options: &OpenOptions,
) -> Result<(File, u64), StoreError> {
    let (file, generation) = open_header(path, store_id, options)?;
    if generation < committed {
        return Err(StoreError::Mismatch("the slot file is older than the store: put the newer one back"));
    }
    if generation - committed > 1 {
        return Err(StoreError::Mismatch(
            "the store is older than the slot file: an old copy was put in its place, nothing was touched",
        ));
    }
    Ok((file, generation))
}

/// Opens a slot file if it belongs to the store with this id; and its generation.
fn open_header(path: &Path, store_id: &[u8; 32], options: &OpenOptions) -> Result<(File, u64), StoreError> {
    let file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            StoreError::Mismatch("the slot file is missing: without it no share of this store can be read")
        }
        _ => io(error),
    })?;
    let mut header = [0u8; SLOT];
    file.read_exact_at(&mut header, 0).map_err(io)?;
    let expected = [MAGIC.as_slice(), &VERSION.to_be_bytes(), &[0; 4], store_id].concat();
    if !header.starts_with(&expected) {
        return Err(StoreError::Mismatch("the slot file belongs to another store"));
    }
    let (_, generation) = header.split_at(GENERATION_AT);
    let generation = u64::from_be_bytes(*generation.first_chunk().ok_or(StoreError::Corrupt("slot header"))?);
    Ok((file, generation))
}

impl SlotReader {
    /// Opens the slot file of the store with this id, whose last commit to touch slots was `committed`, for reading only.
    pub fn open(
        path: &Path,
        store_id: &[u8; 32],
        master: Secret<[u8; 32]>,
        committed: u64,
    ) -> Result<Self, StoreError> {
        let (file, _) = open_file(path, store_id, committed, OpenOptions::new().read(true))?;
        Ok(Self { file: Arc::new(file), master: Arc::new(master) })
    }

    /// Opens the slot file of the store with this id for reading only, of whatever generation; and its generation.
    pub fn open_any(
        path: &Path,
        store_id: &[u8; 32],
        master: Arc<Secret<[u8; 32]>>,
    ) -> Result<(Self, u64), StoreError> {
        let (file, generation) = open_header(path, store_id, OpenOptions::new().read(true))?;
        Ok((Self { file: Arc::new(file), master }, generation))
    }

    /// Brings a copy up to date, which is overwritten in place: see [`copy`].
    pub fn copy_to(&self, to: &Path) -> Result<(), StoreError> {
        copy(&self.file, to)
    }

    /// The slots that hold a data key, whosever it is.
    pub fn in_use(&self) -> Result<Vec<u32>, StoreError> {
        let slots = self.file.metadata().map_err(io)?.len() / SLOT as u64;
        let slots = u32::try_from(slots).map_err(|_| StoreError::Corrupt("the slot file is too long"))?;
        let mut used = Vec::new();
        for slot in 1..slots {
            let mut bytes = [0u8; SLOT];
            self.file.read_exact_at(&mut bytes, offset(slot)).map_err(io)?;
            if bytes != [0; SLOT] {
                used.push(slot);
            }
        }
        Ok(used)
    }

    /// The data key in a slot.
    pub fn get(&self, slot: u32, binding: &Binding) -> Result<Secret<[u8; 32]>, StoreError> {
        const GONE: StoreError = StoreError::Corrupt("the data key of a share is gone or altered");
        let mut bytes = [0u8; SLOT];
        self.file.read_exact_at(&mut bytes, offset(slot)).map_err(|_| GONE)?;
        let ([1, 0, 0, 0], sealed) = bytes.split_at(4) else { return Err(GONE) };
        debug_assert_eq!(sealed.len(), 32 + OVERHEAD);
        let key = seal::open(self.master.expose(), &binding.slot(slot), sealed).map_err(|_| GONE)?;
        key.first_chunk::<32>().map(|key| Secret::new(*key)).ok_or(GONE)
    }
}
