//! The draft of a key file: on disk before the job is published, so that whatever happens afterwards, the job's result can
//! still be fetched. Nobody else holds the client's share.

use super::keyfile::{Existing, write};
use super::output::{Failure, Output};
use crate::client::{Backend, ClientConfig, ClientError, Making, OldKey, SignedRequest};
use crate::wire::{Base64, Curve, Fixed, InitiatorId, JobId, KeyId, Op, SealKey, VERSION};
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
    /// What the job does: generate, recover or refresh.
    #[serde(default = "generate")]
    op: Op,
    /// The job that makes the shares.
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
    /// recover, refresh: the key whose shares are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaces: Option<Replaced>,
}

const fn generate() -> Op {
    Op::Generate
}

/// A key whose shares are to be replaced, as JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Replaced {
    key_id: KeyId,
    curve: Curve,
    /// 33 or 32 bytes, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<Base64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain_code: Option<Fixed<32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
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
        backend: &Backend,
        request: &SignedRequest,
        replaces: Option<&OldKey>,
        reply_seed: Option<Zeroizing<String>>,
    ) -> Result<Kept, Failure> {
        let path = draft_of(out);
        if path.exists() {
            let there = path.display();
            return Err(Failure::usage(format!(
                "{there} is left from an earlier run: finish it with --resume {there}, or delete it to give that key up"
            )));
        }
        let draft = Self {
            version: VERSION,
            op: request.op,
            job_id: request.job_id.clone(),
            job_digest: Fixed(request.digest),
            initiator: backend.jobs().initiator().clone(),
            expires_at: request.expires_at,
            reply_key: backend.reply_key()?,
            reply_seed: reply_seed.map(|seed| seed.as_str().to_owned()),
            replaces: replaces.map(|key| Replaced {
                key_id: key.key_id,
                curve: key.curve,
                public_key: key.public_key.clone().map(Base64),
                chain_code: key.chain_code.map(Fixed),
                epoch: key.epoch,
            }),
        };
        let text = serde_json::to_vec_pretty(&draft).map_err(|error| Failure::usage(error.to_string()))?;
        write(&path, &Zeroizing::new(text), Existing::Refuse)?;
        Ok(Kept { path, op: request.op })
    }

    /// Reads a draft of this operation, and makes these settings those of its job.
    pub fn read(path: &Path, op: Op, config: &mut ClientConfig) -> Result<(Self, Kept), Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
        let text = Zeroizing::new(std::fs::read(path).map_err(|error| wrong(&error))?);
        let draft: Self = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
        if draft.version != VERSION {
            return Err(wrong(&"not a draft of version 1"));
        }
        if draft.op != op {
            return Err(wrong(&format_args!("`trefoil {}` finishes it", draft.op)));
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
        Ok((draft, Kept { path: path.to_owned(), op }))
    }

    /// The key whose shares the job replaces.
    pub fn replaces(&self) -> Option<OldKey> {
        let Replaced { key_id, curve, public_key, chain_code, epoch } = self.replaces.as_ref()?;
        Some(OldKey {
            key_id: *key_id,
            curve: *curve,
            public_key: public_key.as_ref().map(|Base64(bytes)| bytes.clone()),
            chain_code: chain_code.map(|Fixed(bytes)| bytes),
            epoch: *epoch,
        })
    }

    /// What the job makes.
    pub fn making<'a>(&self, replaces: Option<&'a OldKey>) -> Result<Making<'a>, Failure> {
        match (self.op, replaces) {
            (Op::Recover, Some(old)) => Ok(Making::Recovery(old)),
            (Op::Refresh, Some(old)) => Ok(Making::Refresh(old)),
            (Op::Generate, None) => Ok(Making::Generation),
            _ => Err(Failure::usage("the draft does not say what its job replaces")),
        }
    }
}

/// What is added to the name of a draft whose job ended in an error, and a number.
const REFUSED: &str = ".refused";
/// How many of them one key file may have before the next draft stays where it is.
const MAX_REFUSED: u32 = 100;

/// Where the draft of a key file is.
pub fn draft_of(out: &Path) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(".draft");
    PathBuf::from(path)
}

/// A draft on disk. It stays until [`Kept::remove`].
pub struct Kept {
    path: PathBuf,
    op: Op,
}

impl Kept {
    /// The key file that it is a draft of, by its name.
    pub fn target(&self) -> Option<PathBuf> {
        let (target, rest) = self.parts()?;
        (rest.is_empty() || rest.starts_with(REFUSED)).then(|| self.path.with_file_name(target))
    }

    /// The key file's name, and what follows `.draft`.
    fn parts(&self) -> Option<(&str, &str)> {
        self.path.file_name()?.to_str()?.rsplit_once(".draft")
    }

    /// The key file is on disk, or there will be no key.
    pub fn remove(&self, output: &Output) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            output.remark(&format!("{}: {error}", self.path.display()));
        }
    }

    /// Puts the draft out of the way of a new one, under the first name that is free; where it is then.
    fn put_aside(&self) -> PathBuf {
        if self.parts().is_some_and(|(_, rest)| rest.starts_with(REFUSED)) {
            return self.path.clone();
        }
        for number in 1..=MAX_REFUSED {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(format!("{REFUSED}.{number}"));
            let aside = PathBuf::from(aside);
            if std::fs::hard_link(&self.path, &aside).is_ok() {
                // Should this name not go, both lead to it.
                let _ = std::fs::remove_file(&self.path);
                return aside;
            }
        }
        self.path.clone()
    }

    /// After a failure: keeps the draft and says where, unless the job was not accepted. Nobody signs an error, so even one that
    /// says that there is no key removes nothing: the job may go on, and the draft alone opens what it makes.
    pub fn after(&self, failure: &Failure, output: &Output) {
        let (op, path) = (self.op, self.path.display());
        match failure {
            Failure::Client(ClientError::Busy) => return self.remove(output),
            Failure::Client(ClientError::Job(_)) => {
                let aside = self.put_aside();
                let path = aside.display();
                return output.remark(&format!(
                    "nobody signs an error, so the draft is kept as {path}: trefoil {op} --resume {path} looks for a result \
                     again; delete it if you believe the error"
                ));
            }
            _ => {}
        }
        let may =
            if op == Op::Generate { "the key may exist" } else { "the new share may exist, and replace the old one" };
        output.remark(&format!("{may}; its result is kept for a while: trefoil {op} --resume {path} fetches it"));
    }
}
