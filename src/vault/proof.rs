//! The data key of a share, and the proof to node 1 that it was unwrapped: only who has it knows that the password was right, and
//! only with that proof does node 1 give a password attempt back where no signature shows it, or let others take the share's place.
//!
//! The proof is a signature by an Ed25519 key that is derived from the data key. Node 1 learns the public half when the share is
//! made. That is enough to check proofs and useless for anything else: not to make them, and not to guess passwords.

use super::format::KeyBinding;
use super::{LockedShare, VaultError};
use crate::wire::KeyId;
use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use rand_core::{CryptoRng, RngCore};
use sha2::Sha256;
use trefoil_protocol::transcript::{Tag, hash};
use zeroize::Zeroizing;

/// The 32 random bytes under which a share is encrypted. Erased when dropped.
pub struct DataKey(pub(super) Zeroizing<[u8; 32]>);

impl DataKey {
    /// A fresh one.
    #[must_use]
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rng.fill_bytes(key.as_mut());
        Self(key)
    }

    /// Decrypts the share.
    ///
    /// # Errors
    /// `CORRUPT_SHARE`.
    pub fn open(&self, locked: &LockedShare) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        locked.share.decrypt(&self.0)
    }

    /// The key that proves possession of this data key: Ed25519, its seed `HKDF(data key; "vault/prover" ‖ key id ‖ epoch ‖
    /// version)`.
    ///
    /// # Errors
    /// `INTERNAL`: none that an input can cause.
    pub fn prover(&self, binding: &KeyBinding) -> Result<SigningKey, VaultError> {
        let mut seed = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, self.0.as_ref())
            .expand(&binding.info(Tag::VAULT_PROVER), seed.as_mut())
            .map_err(|_| VaultError::Bug("HKDF output length"))?;
        Ok(SigningKey::from_bytes(&seed))
    }
}

/// What the prover signs: that it has the data key, in this session on this channel for this job, and which new password (blinded)
/// node 1 is to evaluate next, if any.
#[must_use]
pub fn opened_statement(
    channel: &[u8; 32],
    job_digest: &[u8; 32],
    session: &[u8; 16],
    next: Option<&[u8; 32]>,
) -> Vec<u8> {
    let next: &[u8] = next.map_or(&[], |next| next);
    crate::wire::signing_bytes("trefoil-opened-v1", &hash(Tag::VAULT_OPENED, &[channel, job_digest, session, next]))
}

/// What the prover of the old share signs before a refresh: that the share was opened for this job, and for the run that begins on
/// this channel with this contribution and this password (blinded).
#[must_use]
pub fn refresh_statement(
    channel: &[u8; 32],
    job_digest: &[u8; 32],
    (key_id, epoch, transcript): (KeyId, u32, [u8; 32]),
    contribution: &[u8; 32],
    blinded_password: &[u8; 32],
) -> Vec<u8> {
    let epoch = epoch.to_be_bytes();
    let parts: [&[u8]; 7] = [channel, job_digest, &key_id.0, &epoch, &transcript, contribution, blinded_password];
    crate::wire::signing_bytes("trefoil-refresh-v1", &hash(Tag::VAULT_REFRESH, &parts))
}
