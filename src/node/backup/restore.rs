//! A store made from a backup: whole, or not at all.
//!
//! The backup is read to its end first, so that nothing is written of one that is not whole. Then the database is made under
//! another name; it takes its own last, and only then is there a store for a node to open.

use super::{BackupError, Header, read};
use crate::clock::now_ms;
use crate::node::AUDIT_LOG;
use crate::node::audit::{self, Head};
use crate::node::store::{DATABASE, Draft, Quarantine, Restored, SLOTS, skim};
use ed25519_dalek::VerifyingKey;
use nkeys::XKey;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use trefoil_protocol::{Party, Secret};

/// End of the names under which files are made.
const DRAFT: &str = "restoring";

/// What is restored from, and where to.
pub struct Paths {
    /// The backup.
    pub backup: PathBuf,
    /// The data directory, without a store.
    pub data_dir: PathBuf,
    /// A copy of the slot file; not needed where the data directory has it.
    pub slots: Option<PathBuf>,
    /// A copy of the audit log; not needed where the data directory has it, or where a new one is to begin.
    pub audit_log: Option<PathBuf>,
}

/// Restores the store of the node with these keys, and puts it into quarantine. Returns what the backup says of itself, what it
/// brought back, and whether the audit log goes on.
///
/// # Errors
/// Nothing of the data directory was changed, but for copies that the next try finds as they must be.
pub fn restore(
    paths: &Paths,
    role: Party,
    master: Secret<[u8; 32]>,
    identities: &[VerifyingKey],
    recipient: &XKey,
) -> Result<(Header, Restored, Quarantine, bool), BackupError> {
    let database = paths.data_dir.join(DATABASE);
    if exists(&database)? {
        return Err(BackupError::InTheWay(format!("{}: there is a store already", database.display())));
    }
    let slots = source(&paths.data_dir.join(SLOTS), paths.slots.as_deref())?.ok_or_else(|| {
        BackupError::InTheWay(format!(
            "{}: there is no slot file, and none was given: without the data keys in it no share can be read",
            paths.data_dir.display()
        ))
    })?;
    let log = source(&paths.data_dir.join(AUDIT_LOG), paths.audit_log.as_deref())?;
    let mut backup = BufReader::new(File::open(&paths.backup).map_err(named(&paths.backup))?);
    let (header, ()) = read(&mut backup, recipient, identities, |_, rows| skim(rows))?;
    if header.party != role.to_string() {
        return Err(BackupError::InTheWay(format!("this is a backup of {}, not of {role}", header.party)));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&paths.data_dir).map_err(named(&paths.data_dir))?;
    backup.seek(SeekFrom::Start(0)).map_err(named(&paths.backup))?;
    let draft = Drafts::new(&paths.data_dir, DATABASE)?;
    let (_, loaded) = read(&mut backup, recipient, identities, |_, rows| Ok(Draft::load(&draft.path, rows)))?;
    let loaded = loaded?;
    let head = loaded.anchored()?;
    check_log(log.as_deref(), head)?;
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| BackupError::Io(error.to_string()))?;
    let quarantine = Quarantine { nonce, restored_at: now_ms(), taken_at: header.taken_at, head };
    let restored = loaded.quarantine(&slots, role, master, quarantine, log.is_some())?;
    put(&slots, &paths.data_dir, SLOTS)?;
    if let Some(log) = &log {
        put(log, &paths.data_dir, AUDIT_LOG)?;
    }
    draft.finish()?;
    Ok((header, restored, quarantine, log.is_some()))
}

fn named(path: &Path) -> impl Fn(std::io::Error) -> BackupError + '_ {
    move |error| BackupError::Io(format!("{}: {error}", path.display()))
}

fn exists(path: &Path) -> Result<bool, BackupError> {
    path.try_exists().map_err(named(path))
}

/// The file to use: the one that is there, or the one that is given; both only if they are the same.
fn source(there: &Path, given: Option<&Path>) -> Result<Option<PathBuf>, BackupError> {
    match (exists(there)?, given) {
        (false, None) => Ok(None),
        (false, Some(given)) => Ok(Some(given.to_owned())),
        (true, None) => Ok(Some(there.to_owned())),
        (true, Some(given)) => {
            let same = std::fs::read(there).map_err(named(there))? == std::fs::read(given).map_err(named(given))?;
            same.then(|| Some(there.to_owned())).ok_or_else(|| {
                BackupError::InTheWay(format!("{}: there is another one than was given", there.display()))
            })
        }
    }
}

/// Whether the log goes on from where it was when the backup was taken.
fn check_log(log: Option<&Path>, head: Option<Head>) -> Result<(), BackupError> {
    let Some(log) = log else { return Ok(()) };
    match audit::verify(log, head) {
        // A crash while writing, which the node cuts off.
        Ok(_) | Err(audit::AuditError::Incomplete(_)) => Ok(()),
        Err(error) => Err(BackupError::InTheWay(format!(
            "{}: {error}; keep it elsewhere to have the node begin a new log",
            log.display()
        ))),
    }
}

/// Copies a file into the data directory, unless it is there already.
fn put(from: &Path, data_dir: &Path, name: &str) -> Result<(), BackupError> {
    if from == data_dir.join(name) {
        return Ok(());
    }
    let draft = Drafts::new(data_dir, name)?;
    let mut to = OpenOptions::new().write(true).open(&draft.path).map_err(named(&draft.path))?;
    let mut source = File::open(from).map_err(named(from))?;
    std::io::copy(&mut source, &mut to).map_err(named(&draft.path))?;
    draft.finish()
}

/// A file of the data directory in the making; removed when dropped before it is finished.
struct Drafts {
    path: PathBuf,
    place: PathBuf,
    done: bool,
}

impl Drafts {
    /// An empty file, in place of one that a killed process left.
    fn new(data_dir: &Path, name: &str) -> Result<Self, BackupError> {
        let (path, place) = (data_dir.join(format!("{name}.{DRAFT}")), data_dir.join(name));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(named(&path)(error)),
            _ => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(named(&path))?;
        Ok(Self { path, place, done: false })
    }

    /// Makes it durable and gives it its name, which must be free.
    fn finish(mut self) -> Result<(), BackupError> {
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(named(&self.path))?;
        if exists(&self.place)? {
            return Err(BackupError::InTheWay(format!("{}: has come into being", self.place.display())));
        }
        std::fs::rename(&self.path, &self.place).map_err(named(&self.place))?;
        self.done = true;
        let folder = self.place.parent().unwrap_or_else(|| Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(named(folder))
    }
}

impl Drop for Drafts {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
