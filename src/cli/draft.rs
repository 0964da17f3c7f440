//! The draft of a key file: on disk before the job is published, so that whatever happens afterwards, the job's result can
//! still be fetched. Nobody else holds the client's share.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output};
use crate::client::{ClientConfig, ClientError, SignedRequest};
use crate::wire::{Fixed, InitiatorId, JobId, KeyId, SealKey, VERSION};
use nkeys::XKey;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use zeroize::{Zeroize, Zeroizing};

/// A draft, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Draft {
    /// Always 1.
    version: u32,
    /// The job that generates the key.
    pub job_id: JobId,
    /// SHA-256 of its body.
    pub job_digest: Fixed<32>,
    /// Who signed it, and will own the key.
    initiator: InitiatorId,
    /// Unix milliseconds.
    pub expires_at: u64,
    /// Opens the result.
    reply_key: SealKey,
    /// The seed of `reply_key` where it was made for this job; a configured one stays where it is. It opens no more than the
    /// key file holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_seed: Option<String>,
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.reply_seed.zeroize();
    }
}

/// The settings' reply key, or one of this job's own. Returns the latter's seed.
pub fn own_reply_key(config: &mut ClientConfig) -> Result<Option<Zeroizing<String>>, Failure> {
    if config.reply.is_some() {
        return Ok(None);
    }
    let key = XKey::new();
    let seed = key.seed().map_err(|error| Failure::usage(error.to_string()))?;
    config.reply = Some(key);
    Ok(Some(Zeroizing::new(seed)))
}

impl Draft {
    /// A draft for the key file `out`, on disk when this returns. There is one at a time.
    pub fn create(
        out: &Path,
        initiator: &InitiatorId,
        request: &SignedRequest,
        reply_key: SealKey,
        reply_seed: Option<Zeroizing<String>>,
    ) -> Result<Kept, Failure> {
        let mut path = out.as_os_str().to_owned();
        path.push(".draft");
        let path = PathBuf::from(path);
        if path.exists() {
            let there = path.display();
            return Err(Failure::usage(format!(
                "{there} is left from an earlier run: finish it with --resume {there}, or delete it to give that key up"
            )));
        }
        let draft = Self {
            version: VERSION,
            job_id: request.job_id.clone(),
            job_digest: Fixed(request.digest),
            initiator: initiator.clone(),
            expires_at: request.expires_at,
            reply_key,
            reply_seed: reply_seed.map(|seed| seed.as_str().to_owned()),
        };
        let text = serde_json::to_vec_pretty(&draft).map_err(|error| Failure::usage(error.to_string()))?;
        write(&path, &Zeroizing::new(text), Existing::Refuse)?;
        Ok(Kept { path })
    }

    /// Reads a draft, and makes these settings those of its job.
    pub fn read(path: &Path, config: &mut ClientConfig) -> Result<(Self, Kept), Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
        let text = Zeroizing::new(std::fs::read(path).map_err(|error| wrong(&error))?);
        let draft: Self = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if draft.version != VERSION {
            return Err(wrong(&"not a draft of version 1"));
        }
        if config.initiator.public_key() != draft.initiator.to_string() {
            return Err(wrong(&format_args!(
                "its job is signed by {}; configure that initiator_seed",
                draft.initiator
            )));
        }
        if let Some(seed) = &draft.reply_seed {
            config.reply = Some(XKey::from_seed(seed).map_err(|error| wrong(&error))?);
        }
        let fits = config.reply.as_ref().is_some_and(|key| key.public_key() == draft.reply_key.to_string());
        if !fits {
            return Err(wrong(&format_args!("its result opens with {}; configure that reply_seed", draft.reply_key)));
        }
        Ok((draft, Kept { path: path.to_owned() }))
    }

    /// The key that the job generates.
    pub fn key_id(&self) -> KeyId {
        KeyId::derive(&self.initiator, &self.job_id)
    }
}

/// A draft on disk. It stays until [`Kept::remove`].
pub struct Kept {
    path: PathBuf,
}

impl Kept {
    /// The key file that it is a draft of, by its name.
    pub fn target(&self) -> Option<PathBuf> {
        (self.path.extension()? == "draft").then(|| self.path.with_extension(""))
    }

    /// The key file is on disk, or there will be no key.
    pub fn remove(&self, output: &Output) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            output.remark(&format!("{}: {error}", self.path.display()));
        }
    }

    /// After a failure: keeps the draft and says where, unless the job was not accepted, or ended without a key.
    pub fn after(&self, failure: &Failure, output: &Output) {
        if let Failure::Client(ClientError::Busy | ClientError::Job(_)) = failure {
            return self.remove(output);
        }
        let path = self.path.display();
        output.remark(&format!(
            "the key may exist; its result is kept for a while: trefoil generate --resume {path} fetches it"
        ));
    }
}
