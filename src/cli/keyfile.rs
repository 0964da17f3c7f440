//! The key file: what a backend keeps of a key. Readable by its owner only, never half written.

use super::output::Failure;
use crate::client::verify::{AttestedKey, NodeIdentities, attested_key};
use crate::client::{NewKey, SigningMaterial};
use crate::vault::LockedShare;
use crate::wire::{Base64, Curve, Fixed, InitiatorId, KdfParams, KeyId, KeyResult, VERSION};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// A key file, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyFile {
    /// Always 1.
    version: u32,
    /// Who owns the key.
    pub initiator: InitiatorId,
    /// What both nodes attest.
    pub key: KeyResult,
    /// Opaque.
    encrypted_share: Base64,
    /// Opaque.
    pub secret_store: Base64,
    /// Earlier versions wrote down that the service had said `KEY_LOCKED`. Nobody signs that word, so it counts for nothing.
    #[serde(default, rename = "locked", skip_serializing)]
    _locked: bool,
}

impl KeyFile {
    pub fn new(initiator: InitiatorId, new: NewKey) -> Self {
        Self {
            version: VERSION,
            initiator,
            key: as_result(&new.key),
            encrypted_share: Base64(new.encrypted_share),
            secret_store: Base64(new.secret_store),
            _locked: false,
        }
    }

    /// Reads a key file and checks its attestations.
    pub fn read(path: &Path, nodes: &NodeIdentities) -> Result<Self, Failure> {
        let file = Self::read_unchecked(path)?;
        file.attested(nodes)?;
        Ok(file)
    }

    /// The key as both nodes attest it.
    pub fn attested(&self, nodes: &NodeIdentities) -> Result<AttestedKey, Failure> {
        let generated_by = self.key.generated_by.map_or([0; 32], |Fixed(digest)| digest);
        Ok(attested_key(nodes, &self.initiator, self.key.key_id, generated_by, &self.key)?)
    }

    /// Reads a key file; for uses that need no trust in it.
    pub fn read_unchecked(path: &Path) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
        let text = std::fs::read(path).map_err(|error| wrong(&error))?;
        let file: Self = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if file.version == VERSION { Ok(file) } else { Err(wrong(&"not a key file of version 1")) }
    }

    pub fn write(&self, path: &Path, existing: Existing) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Failure::usage(error.to_string()))?;
        write(path, &text, existing)
    }

    pub const fn key_id(&self) -> KeyId {
        self.key.key_id
    }

    pub const fn curve(&self) -> Curve {
        self.key.curve
    }

    pub fn public_key(&self) -> Result<Vec<u8>, Failure> {
        let decoded = HEXLOWER.decode(self.key.public_key.as_bytes());
        decoded.map_err(|_| Failure::usage("the key file's public key is not hex"))
    }

    pub fn material(&self) -> Result<SigningMaterial, Failure> {
        Ok(SigningMaterial {
            key_id: self.key.key_id,
            public_key: self.public_key()?,
            chain_code: self.key.chain_code.0,
            encrypted_share: self.encrypted_share.0.clone(),
            secret_store: self.secret_store.0.clone(),
        })
    }

    /// How the key file's password is stretched.
    pub fn kdf(&self) -> Result<KdfParams, Failure> {
        let locked = LockedShare::parse(self.key.key_id, &self.encrypted_share.0, &self.secret_store.0);
        locked.map(|locked| locked.kdf()).map_err(|error| Failure::usage(format!("the key file: {error}")))
    }

    /// Enters the proof that both nodes committed the key.
    pub fn commit(&mut self, key: &AttestedKey) {
        self.key.state = key.state;
        self.key.commits.clone_from(&key.commits);
    }
}

/// An attested key as a result shows it, with the job that made it.
pub fn as_result(key: &AttestedKey) -> KeyResult {
    KeyResult {
        key_id: key.key_id,
        source_key_id: key.source_key_id,
        curve: key.curve,
        epoch: key.epoch,
        public_key: HEXLOWER.encode(&key.public_key),
        chain_code: Fixed(key.chain_code),
        transcript: Fixed(key.transcript),
        generated_by: Some(Fixed(key.generated_by)),
        state: key.state,
        attestations: key.attestations.clone(),
        commits: key.commits.clone(),
    }
}

/// What to do with a file that exists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    Refuse,
    Replace,
}

/// Gives a complete file its name, unless that is taken.
fn place(draft: &Path, path: &Path, link: impl Fn(&Path, &Path) -> std::io::Result<()>) -> std::io::Result<()> {
    // Unlike a rename, a link fails where the name is taken.
    match link(draft, path) {
        Ok(()) => std::fs::remove_file(draft),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        // A file system without hard links: claim the name, then put the file over the claim.
        Err(_) => {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            std::fs::rename(draft, path).inspect_err(|_| {
                let _ = std::fs::remove_file(path);
            })
        }
    }
}

/// Writes a file of mode 0600 in one step: complete and on disk, or not there.
pub fn write(path: &Path, content: &[u8], existing: Existing) -> Result<(), Failure> {
    let wrong = |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display()));
    let name = path.file_name().ok_or_else(|| Failure::usage(format!("{}: not a file name", path.display())))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let draft = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        match existing {
            Existing::Replace => std::fs::rename(&draft, path)?,
            Existing::Refuse => place(&draft, path, |from, to| std::fs::hard_link(from, to))?,
        }
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error: std::io::Error| {
        if error.kind() != ErrorKind::NotFound {
            let _ = std::fs::remove_file(&draft);
        }
        if error.kind() == ErrorKind::AlreadyExists {
            Failure::usage(format!("{} exists; it is not overwritten", path.display()))
        } else {
            wrong(error)
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn without_hard_links_a_file_is_complete_or_not_there_too() {
        let folder = tempfile::TempDir::new().unwrap();
        let (draft, path) = (folder.path().join("draft"), folder.path().join("file"));
        let no_links = |_: &Path, _: &Path| Err(ErrorKind::Unsupported.into());
        std::fs::write(&draft, "new").unwrap();
        place(&draft, &path, no_links).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert!(!draft.exists());
        std::fs::write(&draft, "other").unwrap();
        assert_eq!(place(&draft, &path, no_links).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
