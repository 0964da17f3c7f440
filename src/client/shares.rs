//! Jobs that make shares: generate, recover, refresh. Their results hold the only copy of the client's share, so a caller can keep
//! what it needs to fetch one after a crash, and nothing takes an old share's place before both nodes have proven the new one.

use super::backend::{Backend, ClientError, SigningMaterial};
use super::job::{SignedRequest, random_job_id};
use super::verify::{self, AttestedKey, Untrusted};
use crate::seal::{self, Binding, Secrets};
use crate::vault::{LockedShare, Password};
use crate::wire::{Curve, JobId, JobResult, KdfParams, KeyId, KeyState, Outcome};
use nkeys::KeyPair;
use std::time::Duration;
use tokio::time::Instant;

/// Between two questions whether a key is committed.
const AGAIN: Duration = Duration::from_millis(50);

/// New shares: what the backend keeps.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The attested public part.
    pub key: AttestedKey,
    /// Opaque.
    pub encrypted_share: Vec<u8>,
    /// Opaque.
    pub secret_store: Vec<u8>,
}

/// A key whose shares are to be replaced, as the backend knows it. What it knows must be the same of the new shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldKey {
    /// The key.
    pub key_id: KeyId,
    /// Its curve.
    pub curve: Curve,
    /// 33 or 32 bytes; `None` where nothing is left but the id, and both nodes' word is taken for the key.
    pub public_key: Option<Vec<u8>>,
    /// Its chain code, 32 bytes.
    pub chain_code: Option<[u8; 32]>,
    /// Its shares' generation when it was last seen.
    pub epoch: Option<u32>,
}

impl From<&AttestedKey> for OldKey {
    fn from(key: &AttestedKey) -> Self {
        Self {
            key_id: key.key_id,
            curve: key.curve,
            public_key: Some(key.public_key.clone()),
            chain_code: Some(key.chain_code),
            epoch: Some(key.epoch),
        }
    }
}

/// What a job's new shares are of.
#[derive(Debug, Clone, Copy)]
pub enum Making<'a> {
    /// A new key.
    Generation,
    /// This key, under a new id.
    Recovery(&'a OldKey),
    /// This key, under its own id.
    Refresh(&'a OldKey),
}

impl Backend {
    /// Generates a key and verifies both nodes' attestations. The key is prepared; [`Backend::committed`] waits for the rest.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn generate(&self, curve: Curve, kdf: KdfParams, password: Password) -> Result<NewKey, ClientError> {
        let request = self.generation(curve, kdf, password, None)?;
        let result = self.run(&request).await?;
        self.made(&request, Making::Generation, result)
    }

    /// The job of [`Backend::generate`], for callers that keep its id and digest before they [`run`](Backend::run) it, so that
    /// no crash can lose its result.
    ///
    /// # Errors
    /// [`ClientError::Build`].
    pub fn generation(
        &self,
        curve: Curve,
        kdf: KdfParams,
        password: Password,
        label: Option<String>,
    ) -> Result<SignedRequest, ClientError> {
        let secrets = Secrets { password: Some(password), ..Secrets::default() };
        let (reply, lifetime) = (self.reply_key()?, self.lifetime);
        Ok(self.jobs.generate_labelled(random_job_id(), label, (curve, kdf), &secrets, &reply, lifetime)?)
    }

    /// Has the nodes deal new shares of a key, under a new id and a new password, without the client's old share; `authoriser` must
    /// be one that both nodes list. Keep what there is of the old share until [`Backend::committed`] has said yes to the new key:
    /// until then the old one may be the one that works.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn recover(
        &self,
        old: &OldKey,
        kdf: KdfParams,
        password: Password,
        authoriser: &KeyPair,
    ) -> Result<NewKey, ClientError> {
        let mut request = self.recovery(old, kdf, password, self.lifetime)?;
        request.authorise(authoriser)?;
        let result = self.run(&request).await?;
        self.made(&request, Making::Recovery(old), result)
    }

    /// The job of [`Backend::recover`], yet to be [authorised](SignedRequest::authorise), perhaps elsewhere.
    ///
    /// # Errors
    /// [`ClientError::Build`].
    pub fn recovery(
        &self,
        old: &OldKey,
        kdf: KdfParams,
        password: Password,
        lifetime: Duration,
    ) -> Result<SignedRequest, ClientError> {
        let secrets = Secrets { password: Some(password), ..Secrets::default() };
        Ok(self.jobs.recover(old.key_id, old.curve, kdf, &secrets, &self.reply_key()?, lifetime)?)
    }

    /// Makes new shares of a key under its own id, and with them every copy of the old ones worthless. Without `new` the password
    /// stays. Keep the old share beside the new until [`Backend::committed`] has said yes.
    ///
    /// # Errors
    /// [`ClientError`], with the codes of [`Backend::validate`].
    pub async fn refresh(
        &self,
        old: &OldKey,
        share: &SigningMaterial,
        password: Password,
        new: Option<Password>,
        kdf: KdfParams,
    ) -> Result<NewKey, ClientError> {
        let request = self.refreshment(old, share, password, new, kdf)?;
        let result = self.run(&request).await?;
        self.made(&request, Making::Refresh(old), result)
    }

    /// The job of [`Backend::refresh`].
    ///
    /// # Errors
    /// [`ClientError::Build`].
    pub fn refreshment(
        &self,
        old: &OldKey,
        share: &SigningMaterial,
        password: Password,
        new: Option<Password>,
        kdf: KdfParams,
    ) -> Result<SignedRequest, ClientError> {
        let secrets = Secrets {
            password: Some(password),
            new_password: new,
            encrypted_share: Some(share.encrypted_share.clone()),
            secret_store: Some(share.secret_store.clone()),
        };
        Ok(self.jobs.refresh(old.key_id, old.curve, kdf, &secrets, &self.reply_key()?, self.lifetime)?)
    }

    /// Verifies the result of a job that makes shares, and opens its secrets.
    ///
    /// # Errors
    /// [`ClientError`]; [`Untrusted::AnotherKey`] if the new shares are not of the key that was to be replaced.
    pub fn made(&self, request: &SignedRequest, making: Making<'_>, result: JobResult) -> Result<NewKey, ClientError> {
        self.made_by(&request.job_id, request.digest, making, result)
    }

    /// [`Backend::made`] for a job of which only the id and the digest were kept. The reply key must be the job's.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn made_by(
        &self,
        job_id: &JobId,
        digest: [u8; 32],
        making: Making<'_>,
        result: JobResult,
    ) -> Result<NewKey, ClientError> {
        let (key, sealed) = match result.outcome {
            Outcome::Ok { key: Some(key), secrets: Some(sealed), .. } => (key, sealed),
            Outcome::Ok { .. } => return Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => return Err(ClientError::Job(error)),
        };
        let initiator = self.jobs.initiator();
        let derived = KeyId::derive(initiator, job_id);
        let (key_id, named) = match making {
            Making::Generation => (derived, derived),
            Making::Recovery(old) => (derived, old.key_id),
            Making::Refresh(old) => (old.key_id, old.key_id),
        };
        let key = verify::attested_key(&self.nodes, initiator, key_id, digest, &key)?;
        if key.generated_by != digest {
            return Err(Untrusted::OtherKey.into());
        }
        verify::replaces(making, &key)?;
        let binding = Binding { job_id: job_id.clone(), key_id: named, initiator: initiator.clone() };
        let broken = |error: String| Untrusted::SealBroken(error);
        let secrets = seal::open(&self.reply, &binding, &sealed).map_err(|error| broken(error.to_string()))?;
        let (Some(encrypted_share), Some(secret_store)) = (secrets.encrypted_share, secrets.secret_store) else {
            return Err(broken("encryptedShare or secretStore is missing".to_owned()).into());
        };
        let locked = LockedShare::parse(key.key_id, &encrypted_share, &secret_store)
            .map_err(|error| broken(error.to_string()))?;
        let share = locked.binding();
        if share.epoch != key.epoch || share.transcript != key.transcript || Curve::from(share.curve) != key.curve {
            return Err(broken("the share is not of the attested key".to_owned()).into());
        }
        Ok(NewKey { key, encrypted_share, secret_store })
    }

    /// Waits until both nodes say that these very shares are committed. Then, and not before, the shares that they replace are of
    /// no use to anybody and may be dropped.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] after `patience`; [`ClientError::Untrusted`] if the nodes committed others.
    pub async fn committed(&self, key: &AttestedKey, patience: Duration) -> Result<AttestedKey, ClientError> {
        let until = Instant::now() + patience;
        loop {
            match self.public_key(key.key_id).await {
                Ok(found) if found.public_key != key.public_key => return Err(Untrusted::OtherKey.into()),
                Ok(found) if found.state == KeyState::Active && found.transcript == key.transcript => return Ok(found),
                // Before a refresh is committed, the nodes answer for the shares that it replaces.
                Ok(found) if found.epoch >= key.epoch => return Err(Untrusted::OtherKey.into()),
                Err(untrusted @ ClientError::Untrusted(_)) => return Err(untrusted),
                _ if Instant::now() >= until => return Err(ClientError::Timeout),
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}
