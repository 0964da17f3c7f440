//! How the client's share is kept by the backend: encrypted under a data key, which is wrapped under the password and
//! node 1's OPRF. Whoever steals the backend's database cannot guess the password without asking node 1 each time.
//!
//! Two steps, because node 1's evaluation arrives with its first protocol message: [`Vault::begin`] stretches and blinds
//! the password, then [`Begun::open`] or [`Begun::seal`] goes on with the evaluation.

mod cache;
mod error;
mod format;
mod kdf;
mod oprf;
mod pool;
mod proof;

pub use cache::{Kept, Spot, UnlockCache};
pub use error::VaultError;
pub use format::{KeyBinding, MAX_SHARE_BYTES};
pub use kdf::{Password, Stretched, stretch};
pub use oprf::{Blinded, OprfKey};
pub use pool::KdfPool;
pub use proof::{DataKey, opened_statement, refresh_statement};

use crate::wire::{KdfParams, KeyId, Lane};
use format::{EncryptedShare, SecretStore};
use prometheus::Histogram;
use rand_core::{CryptoRng, RngCore};
use std::time::Instant;
use zeroize::Zeroizing;

/// What generation returns for the backend to keep, both opaque to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The client's share under the data key.
    pub encrypted_share: Vec<u8>,
    /// The data key under the password and the OPRF.
    pub secret_store: Vec<u8>,
}

/// A secretStore that is undamaged, not yet opened.
#[derive(Debug, Clone)]
pub struct LockedStore(SecretStore);

impl LockedStore {
    /// Reads what generation of the key `key_id`, or a change of its password, returned. Costs nothing and no password attempt.
    ///
    /// # Errors
    /// `CORRUPT_SECRET_STORE`, or `SHARE_MISMATCH` if it is of another key.
    pub fn parse(key_id: KeyId, secret_store: &[u8]) -> Result<Self, VaultError> {
        let store = SecretStore::parse(secret_store)?;
        if store.binding.key_id == key_id { Ok(Self(store)) } else { Err(VaultError::ShareMismatch) }
    }

    /// Which share its data key opens, in the clear.
    #[must_use]
    pub const fn binding(&self) -> &KeyBinding {
        &self.0.binding
    }

    /// How the password is stretched.
    #[must_use]
    pub const fn kdf(&self) -> KdfParams {
        self.0.params
    }
}

/// An encryptedShare and a secretStore that are undamaged and belong together, not yet opened.
#[derive(Debug, Clone)]
pub struct LockedShare {
    share: EncryptedShare,
    store: LockedStore,
}

impl LockedShare {
    /// Reads what generation of the key `key_id` returned. Costs nothing and no password attempt.
    ///
    /// # Errors
    /// `CORRUPT_SHARE`, `CORRUPT_SECRET_STORE`, or `SHARE_MISMATCH` if they are not both of this key and of one epoch and
    /// attempt.
    pub fn parse(key_id: KeyId, encrypted_share: &[u8], secret_store: &[u8]) -> Result<Self, VaultError> {
        let share = EncryptedShare::parse(encrypted_share)?;
        let store = LockedStore::parse(key_id, secret_store)?;
        if share.binding == *store.binding() { Ok(Self { share, store }) } else { Err(VaultError::ShareMismatch) }
    }

    /// Which share it is, in the clear: what the client tells node 1 before it can open the share.
    #[must_use]
    pub const fn binding(&self) -> &KeyBinding {
        &self.share.binding
    }

    /// The part that the password opens.
    #[must_use]
    pub const fn store(&self) -> &LockedStore {
        &self.store
    }

    /// How the password is stretched.
    #[must_use]
    pub const fn kdf(&self) -> KdfParams {
        self.store.kdf()
    }
}

/// The vault: password stretching with bounded memory, and the formats.
#[derive(Debug, Clone)]
pub struct Vault {
    pool: KdfPool,
    /// How long derivations take, with their wait.
    times: Option<Histogram>,
}

impl Vault {
    /// A vault whose key derivations together use at most the pool's memory.
    #[must_use]
    pub const fn new(pool: KdfPool) -> Self {
        Self { pool, times: None }
    }

    /// The same, with its key derivations measured.
    #[must_use]
    pub fn measured(self, times: Histogram) -> Self {
        Self { times: Some(times), ..self }
    }

    /// The same for jobs of this lane; interactive unless it is said.
    #[must_use]
    pub fn of(&self, lane: Lane) -> Self {
        Self { pool: self.pool.of(lane), times: self.times.clone() }
    }

    /// Whether so many large derivations wait that another with these parameters should not be started now.
    #[must_use]
    pub fn is_full(&self, params: KdfParams) -> bool {
        self.pool.is_full(params)
    }

    /// Stretches and blinds a password to encrypt a new share.
    ///
    /// # Errors
    /// `INVALID_KDF` for parameters out of range, or `hkdf` with a password of other than 32 bytes.
    pub async fn begin(
        &self,
        key_id: KeyId,
        password: Password,
        params: KdfParams,
        rng: &mut (impl RngCore + CryptoRng + Send),
    ) -> Result<Begun, VaultError> {
        let mut salt = [0; format::SALT_BYTES];
        rng.fill_bytes(&mut salt);
        self.prepare(key_id, password, params, salt, rng).await
    }

    /// Stretches and blinds a password to open a secretStore, and with it a share.
    ///
    /// # Errors
    /// `INVALID_KDF` if the password does not suit the stored KDF.
    pub async fn begin_open(
        &self,
        password: Password,
        LockedStore(store): &LockedStore,
        rng: &mut (impl RngCore + CryptoRng + Send),
    ) -> Result<Begun, VaultError> {
        self.prepare(store.binding.key_id, password, store.params, store.salt, rng).await
    }

    async fn prepare(
        &self,
        key_id: KeyId,
        password: Password,
        params: KdfParams,
        salt: [u8; format::SALT_BYTES],
        rng: &mut (impl RngCore + CryptoRng + Send),
    ) -> Result<Begun, VaultError> {
        let blinded = Blinded::new(key_id, &password, rng)?;
        let began = Instant::now();
        let stretched = self.pool.stretch(password, params, salt).await?;
        if let Some(times) = &self.times {
            times.observe(began.elapsed().as_secs_f64());
        }
        Ok(Begun { params, salt, blinded, stretched })
    }
}

/// A stretched, blinded password that waits for node 1's evaluation.
pub struct Begun {
    params: KdfParams,
    salt: [u8; format::SALT_BYTES],
    blinded: Blinded,
    stretched: Stretched,
}

impl Begun {
    /// The OPRF input for node 1, 32 bytes, independent of the password.
    #[must_use]
    pub const fn blinded_password(&self) -> [u8; 32] {
        self.blinded.element()
    }

    /// Unwraps the data key of the secretStore that [`Vault::begin_open`] began with, given node 1's evaluation.
    ///
    /// # Errors
    /// `WRONG_PASSWORD` if the key commitment differs, `CORRUPT_SECRET_STORE`, `PROTOCOL_ABORT` if the evaluation is not a group
    /// element.
    pub fn unwrap_key(&self, store: &LockedStore, evaluation: &[u8; 32]) -> Result<DataKey, VaultError> {
        let output = self.blinded.finalize(evaluation)?;
        store.0.unwrap_key(&self.stretched, &output).map(DataKey)
    }

    /// The OPRF's output for the password, given node 1's evaluation.
    ///
    /// # Errors
    /// `PROTOCOL_ABORT` if the evaluation is not a group element.
    pub fn output(&self, evaluation: &[u8; 32]) -> Result<Zeroizing<[u8; 64]>, VaultError> {
        self.blinded.finalize(evaluation)
    }

    /// Opens the share that [`Vault::begin_open`] began with, given node 1's evaluation.
    ///
    /// # Errors
    /// Those of [`Begun::unwrap_key`]; `CORRUPT_SHARE`.
    pub fn open(self, locked: &LockedShare, evaluation: &[u8; 32]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.unwrap_key(&locked.store, evaluation)?.open(locked)
    }

    /// Wraps a data key under the password that [`Vault::begin`] began with: a new secretStore for the share that it opens.
    ///
    /// # Errors
    /// `PROTOCOL_ABORT` if the evaluation is not a group element.
    pub fn wrap(
        &self,
        binding: &KeyBinding,
        data_key: &DataKey,
        evaluation: &[u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Vec<u8>, VaultError> {
        let output = self.blinded.finalize(evaluation)?;
        let keys = format::WrappingKeys::derive(binding, &self.salt, &self.stretched, &output)?;
        format::wrap_key(binding, self.params, &self.salt, &keys, &data_key.0, rng)
    }

    /// Encrypts a new share (at most [`MAX_SHARE_BYTES`] bytes) under a fresh data key, and wraps that with node 1's evaluation.
    ///
    /// # Errors
    /// `PROTOCOL_ABORT` if the evaluation is not a group element, `INTERNAL` if the share is too long.
    pub fn seal(
        self,
        binding: KeyBinding,
        share: &[u8],
        data_key: &DataKey,
        evaluation: &[u8; 32],
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Result<Stored, VaultError> {
        let secret_store = self.wrap(&binding, data_key, evaluation, rng)?;
        let encrypted_share = format::encrypt_share(&binding, &data_key.0, share, rng)?;
        Ok(Stored { encrypted_share, secret_store })
    }
}
