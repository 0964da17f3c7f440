//! Opening a data directory: database and slot file belong together, to this node, and to this master key.

use super::live::LiveKeys;
use super::recoveries::RECOVERIES;
use super::registry::REGISTRY;
use super::rows::{
    self, ATTEMPTS, BURNED, CHARGED, DISCARDED, GUESSES, JOBS, JOBS_BY_EXPIRY, KEYS, KeyRow, META, ORDERS, OWNED,
    RECORDS, REPLACEMENTS,
};
use super::seal;
use super::slots::SlotFile;
use super::{RedbStore, StoreError, quarantine, rekey, undecided};
use crate::node::audit::Head;
use crate::node::gather::Underway;
use crate::telemetry::metrics::NodeMetrics;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableError};
use std::collections::BTreeSet;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use trefoil_protocol::{Party, Secret};

/// Name of the database in the data directory.
pub const DATABASE: &str = "store.redb";
/// Name of the slot file.
pub const SLOTS: &str = "slots";
/// Memory for the database's pages, bytes; redb's own default is 1 GiB.
const CACHE: usize = 128 << 20;
/// Version of tables and rows.
const FORMAT: u8 = 3;
/// What the master key seals, to be recognised.
pub const CHECK: &[u8] = b"trefoil master key check";

impl RedbStore {
    /// Opens the store of `party` in this directory, or makes a new one where the directory holds none.
    ///
    /// # Errors
    /// `Mismatch` if the files do not belong together, to this party or to this master key, or another process has them
    /// open; `Failed`; `Corrupt`.
    pub fn open(directory: &Path, party: Party, master: Secret<[u8; 32]>) -> Result<Self, StoreError> {
        let metrics = NodeMetrics::new().map_err(|error| StoreError::Failed(error.to_string()))?;
        Self::open_for(directory, party, master, Underway::default(), Arc::new(metrics))
    }

    /// The same for a node that counts its calls, so that the writes of many share a commit, and shows how its store does.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub(in crate::node) fn open_for(
        directory: &Path,
        party: Party,
        master: Secret<[u8; 32]>,
        underway: Underway,
        metrics: Arc<NodeMetrics>,
    ) -> Result<Self, StoreError> {
        let fail = |error: std::io::Error| StoreError::Failed(format!("{}: {error}", directory.display()));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(fail)?;
        close_to_others(directory, 0o700).map_err(fail)?;
        let path = directory.join(DATABASE);
        // redb would make it readable for all: owners, job ids and public keys are nobody's business.
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(fail)?;
        close_to_others(&path, 0o600).map_err(fail)?;
        let master = Arc::new(master);
        let db = builder().create(path).map_err(busy)?;
        let slots_path = directory.join(SLOTS);
        if read_meta(&db, "store-id")?.is_none() {
            initialise(&db, &slots_path, party, &master)?;
        }
        let store_id = check_store(&db, party, &master)?;
        rekey::finish(&db, directory)?;
        let restored = quarantine::read(&db)?;
        let (used, live) = used_slots(&db)?;
        let committed = slots_generation(&db)?;
        let slots = SlotFile::open(&slots_path, &store_id, master, &used, committed, restored.is_some())?;
        live.show(&metrics);
        Self::start(db, slots, party, restored, underway, metrics)
    }
}

pub fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn busy(error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Mismatch("another process has the store open"),
        error => error.into(),
    }
}

/// The database in this directory, where there is one.
pub fn existing(directory: &Path) -> Result<Database, StoreError> {
    builder().open(directory.join(DATABASE)).map_err(busy)
}

/// Takes a file's or directory's permissions for group and others away, where it has any.
fn close_to_others(path: &Path, mode: u32) -> std::io::Result<()> {
    let permissions = std::fs::metadata(path)?.permissions();
    if permissions.mode() & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), "was accessible to others; is so no longer");
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Whether a store is of this format, party and master key; its id.
pub fn check_store(
    db: &impl ReadableDatabase,
    party: Party,
    master: &Secret<[u8; 32]>,
) -> Result<[u8; 32], StoreError> {
    let store_id = read_meta(db, "store-id")?.and_then(|id| <[u8; 32]>::try_from(id).ok());
    let store_id = store_id.ok_or(StoreError::Corrupt("the store's id"))?;
    match read_meta(db, "format")?.as_deref() {
        Some(&[FORMAT]) => {}
        Some(&[older]) if older < FORMAT => {
            return Err(StoreError::Mismatch(
                "the store was made by an older version of trefoil, whose format is no longer read",
            ));
        }
        _ => {
            return Err(StoreError::Mismatch(
                "the store was made by a newer version of trefoil: it has another format",
            ));
        }
    }
    if read_meta(db, "party")?.as_deref() != Some(&[party.point()]) {
        return Err(StoreError::Mismatch("the store belongs to the other node"));
    }
    let check = read_meta(db, "master-check")?.unwrap_or_default();
    if seal::open(master.expose(), &store_id, &check).is_err() {
        return Err(StoreError::Mismatch("the master key does not fit the store"));
    }
    Ok(store_id)
}

/// The generation of the last commit that touched slots.
pub fn slots_generation(db: &impl ReadableDatabase) -> Result<u64, StoreError> {
    match read_meta(db, "slots-generation")? {
        Some(bytes) => Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| StoreError::Corrupt("the generation"))?)),
        None => Ok(0),
    }
}

/// A new store: first the slot file, then, in one commit, everything by which an existing store is recognised. A crash in
/// between leaves a slot file without a store, which is empty and may be replaced.
fn initialise(db: &Database, slots_path: &Path, party: Party, master: &Secret<[u8; 32]>) -> Result<(), StoreError> {
    let store_id = *seal::fresh_key()?.expose();
    if std::fs::metadata(slots_path).is_ok_and(|slots| slots.len() > 64) {
        return Err(StoreError::Mismatch("there is a slot file with data keys but no store"));
    }
    match std::fs::remove_file(slots_path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::Failed(error.to_string()));
        }
        _ => SlotFile::create(slots_path, &store_id)?,
    }
    let tx = db.begin_write()?;
    {
        tx.open_table(KEYS)?;
        tx.open_table(ATTEMPTS)?;
        tx.open_table(RECORDS)?;
        tx.open_table(OWNED)?;
        tx.open_table(REPLACEMENTS)?;
        tx.open_table(DISCARDED)?;
        tx.open_table(JOBS)?;
        tx.open_table(JOBS_BY_EXPIRY)?;
        tx.open_table(CHARGED)?;
        tx.open_table(GUESSES)?;
        tx.open_table(BURNED)?;
        tx.open_table(ORDERS)?;
        tx.open_table(quarantine::DOUBTS)?;
        tx.open_table(undecided::UNDECIDED)?;
        tx.open_table(REGISTRY)?;
        tx.open_table(RECOVERIES)?;
        let mut meta = tx.open_table(META)?;
        meta.insert("store-id", store_id.as_slice())?;
        meta.insert("format", [FORMAT].as_slice())?;
        meta.insert("party", [party.point()].as_slice())?;
        meta.insert("master-check", seal::seal(master.expose(), &store_id, CHECK)?.as_slice())?;
    }
    Ok(tx.commit()?)
}

pub fn read_meta(db: &impl ReadableDatabase, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match db.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(name)?.map(|value| value.value().to_vec())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The anchored end of the audit log.
pub fn read_head(db: &impl ReadableDatabase) -> Result<Option<Head>, StoreError> {
    read_meta(db, "audit-head")?.map(|bytes| rows::decode(&bytes)).transpose()
}

/// The slots that attempts use, and the live keys among those.
fn used_slots(db: &Database) -> Result<(BTreeSet<u32>, LiveKeys), StoreError> {
    let tx = db.begin_read()?;
    let (table, keys) = (tx.open_table(ATTEMPTS)?, tx.open_table(KEYS)?);
    let (mut used, mut live) = (BTreeSet::new(), LiveKeys::default());
    for entry in table.iter()? {
        let row: rows::AttemptRow = rows::decode(entry?.1.value())?;
        if row.slot != 0 && !used.insert(row.slot) {
            return Err(StoreError::Corrupt("two shares use one slot"));
        }
        if row.holds_key() {
            let key: Option<KeyRow> = rows::get(&keys, &row.attempt.key_id.0)?;
            live.add(row.attempt.curve, i64::from(key.is_some_and(|key| !key.state.is_end())));
        }
    }
    Ok((used, live))
}

/// The cell through which the audit log tells its end to the writer.
pub type HeadCell = Arc<Mutex<Option<Head>>>;
