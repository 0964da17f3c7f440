//! AES-256-GCM, twice: data keys under the master key, records under their data key.

use super::StoreError;
use crate::wire::KeyId;
use aes_gcm::aead::{AeadInOut, Buffer};
use aes_gcm::{Aes256Gcm, KeyInit};
use trefoil_protocol::transcript::{Tag, hash};
use trefoil_protocol::{Party, Secret};
use zeroize::Zeroizing;

/// Bytes that sealing adds: a nonce of 12 before, a tag of 16 behind.
pub const OVERHEAD: usize = 12 + 16;

/// What a share record is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    /// The key.
    pub key_id: KeyId,
    /// Generation of its shares.
    pub epoch: u32,
    /// Whose share.
    pub party: Party,
    /// Transcript hash of the attempt.
    pub transcript: [u8; 32],
}

impl Binding {
    /// 32 bytes of associated data for `purpose`.
    fn aad(&self, purpose: &[u8]) -> [u8; 32] {
        let party = [self.party.point()];
        hash(Tag::NODE_RECORD, &[purpose, &self.key_id.0, &self.epoch.to_be_bytes(), &party, &self.transcript])
    }

    /// Associated data of the secret bytes.
    pub fn record(&self) -> [u8; 32] {
        self.aad(b"record")
    }

    /// Associated data of the data key in this slot.
    pub fn slot(&self, slot: u32) -> [u8; 32] {
        self.aad(&[b"slot".as_slice(), &slot.to_be_bytes()].concat())
    }
}

/// 32 random bytes.
pub fn fresh_key() -> Result<Secret<[u8; 32]>, StoreError> {
    let mut key = Secret::new([0u8; 32]);
    getrandom::fill(key.expose_mut()).map_err(|error| StoreError::Failed(error.to_string()))?;
    Ok(key)
}

/// `nonce ‖ ciphertext ‖ tag`. The nonce is random: every key seals few messages (a data key one, the master key one a
/// share), far from where 96 random bits could repeat.
pub fn seal(key: &[u8; 32], aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, StoreError> {
    let mut nonce = [0u8; 12];
    getrandom::fill(&mut nonce).map_err(|error| StoreError::Failed(error.to_string()))?;
    // Reserved at once: a vector that grows would leave plaintext behind.
    let mut sealed = Tail { bytes: Vec::with_capacity(OVERHEAD + plain.len()) };
    sealed.bytes.extend_from_slice(&nonce);
    sealed.bytes.extend_from_slice(plain);
    Aes256Gcm::new(key.into())
        .encrypt_in_place(&nonce.into(), aad, &mut sealed)
        .map_err(|_| StoreError::Failed("encryption".into()))?;
    Ok(sealed.bytes)
}

/// Opens what [`seal`] made.
pub fn open(key: &[u8; 32], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
    const BROKEN: StoreError = StoreError::Corrupt("a sealed record does not open");
    let (nonce, rest) = sealed.split_first_chunk::<12>().ok_or(BROKEN)?;
    let mut plain = Zeroizing::new(rest.to_vec());
    Aes256Gcm::new(key.into()).decrypt_in_place(&(*nonce).into(), aad, &mut *plain).map_err(|_| BROKEN)?;
    Ok(plain)
}

/// A buffer whose first 12 bytes, the nonce, are not encrypted.
struct Tail {
    bytes: Vec<u8>,
}

impl AsRef<[u8]> for Tail {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(12..).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Tail {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(12..).unwrap_or_default()
    }
}

impl Buffer for Tail {
    fn extend_from_slice(&mut self, other: &[u8]) -> aes_gcm::aead::Result<()> {
        self.bytes.extend_from_slice(other);
        Ok(())
    }
    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(12 + len);
    }
}
