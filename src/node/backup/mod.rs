//! Backups of a node's database, encrypted, and taken while it serves; and a store made from one.
//!
//! A backup holds every row, as of one moment, and no data key: those are in the slot file, which has a backup of its own, a
//! copy that is overwritten in place. So a share that ended after a backup was taken is dead in it. See docs/backup.md.

pub mod control;
mod format;
mod restore;
mod service;

pub use format::Header;
pub use restore::{Paths, restore};
pub use service::{Backups, Made};

use super::store::StoreError;
use crate::wire::signing_bytes;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use format::{Opener, Sealer};
use nkeys::XKey;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use trefoil_protocol::transcript::{Tag, hash};

/// Why there is no backup, or why one was not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(String),
    /// Not a file that `trefoil node backup` made.
    #[error("this is no backup of a node")]
    NotABackup,
    /// Made by another version of this program.
    #[error("the backup has another format version")]
    Version,
    /// Sealed to other keys than the one given.
    #[error("the backup is sealed to other keys: {}", .0.join(", "))]
    NotForThisKey(Vec<String>),
    /// Cut off, changed, or put together from several.
    #[error("the backup was altered, or is not whole")]
    Altered,
    /// Whole, but not made by the node whose identity is configured.
    #[error("the backup was not made by this node: its signature is another's")]
    NotSigned,
    /// Something is in the way of the restored files.
    #[error("{0}")]
    InTheWay(String),
    /// The store cannot be read, or the files do not belong together.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<io::Error> for BackupError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Altered,
            _ => Self::Io(error.to_string()),
        }
    }
}

/// The bytes under a node's signature at the end of a backup: `0xFF ‖ "trefoil-backup-v1" ‖ 0x00 ‖ H("node/backup"; hash of the
/// header, SHA-256 of the rows)`. A recipient's public key is no secret, so encryption alone would let anybody make a backup.
fn statement(header: &[u8; 32], rows: &[u8; 32]) -> Vec<u8> {
    signing_bytes("trefoil-backup-v1", &hash(Tag::NODE_BACKUP, &[header, rows]))
}

/// Hashes what passes.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.hash.update(out.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// Writes a backup: `rows` writes the content.
///
/// # Errors
/// `Io`, `Store`.
fn write<W: Write>(
    out: W,
    header: Header,
    recipients: &[String],
    identity: &SigningKey,
    rows: impl FnOnce(&mut dyn Write) -> Result<(), StoreError>,
) -> Result<W, BackupError> {
    let mut content = Hashing::new(Sealer::begin(out, header, recipients)?);
    rows(&mut content)?;
    let Hashing { inner: mut sealer, hash } = content;
    let signature = identity.sign(&statement(sealer.bound(), &hash.finalize().into()));
    sealer.write_all(&signature.to_bytes())?;
    sealer.finish()
}

/// Reads a backup to its end: `rows` reads the content. Whatever it does must be undone if this fails: only the end shows that
/// the backup is whole, and this node's.
///
/// # Errors
/// All but `InTheWay`.
fn read<R: Read, T>(
    input: R,
    recipient: &XKey,
    identities: &[VerifyingKey],
    rows: impl FnOnce(&Header, &mut dyn Read) -> Result<T, StoreError>,
) -> Result<(Header, T), BackupError> {
    let (header, opener) = Opener::begin(input, recipient)?;
    let bound = *opener.bound();
    let mut content = Hashing::new(opener);
    let done = rows(&header, &mut content).map_err(|error| match error {
        // A node wrote the rows: what does not parse was cut off or altered.
        StoreError::Corrupt(_) => BackupError::Altered,
        error => error.into(),
    })?;
    let Hashing { inner: mut opener, hash } = content;
    let mut signature = [0; 64];
    opener.read_exact(&mut signature)?;
    if opener.read(&mut [0])? > 0 {
        return Err(BackupError::Altered);
    }
    let statement = statement(&bound, &hash.finalize().into());
    let signature = Signature::from_bytes(&signature);
    if identities.iter().any(|identity| identity.verify_strict(&statement, &signature).is_ok()) {
        Ok((header, done))
    } else {
        Err(BackupError::NotSigned)
    }
}
