//! The bytes of secretStore and encryptedShare, version 1. Frozen: tests/vault.rs opens committed ones.
//!
//! Both begin with the same 87 bytes and end with a 16-byte checksum (the first half of
//! `H("vault/checksum"; kind, everything before it)`), so that damage is found before a password attempt is spent.
//!
//! | offset | bytes | common head |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | curve: 1 secp256k1, 2 ed25519 |
//! | 2 | 1 | party: 1, client |
//! | 3 | 4 | epoch, big-endian |
//! | 7 | 16 | key id |
//! | 23 | 32 | transcript hash T of the run that made the share |
//! | 55 | 32 | `ot_id`; zero for ed25519 |
//!
//! | offset | bytes | secretStore (220 bytes) | | offset | bytes | encryptedShare (131 + n) |
//! |---|---|---|---|---|---|---|
//! | 87 | 1 | KDF: 1 argon2id, 2 hkdf | | 87 | 12 | nonce |
//! | 88 | 4 | memory in KiB, big-endian; 0 for hkdf | | 99 | n + 16 | share under the data key, tag |
//! | 92 | 4 | passes, big-endian; 0 for hkdf | | 115 + n | 16 | checksum |
//! | 96 | 16 | salt | | | | |
//! | 112 | 32 | key commitment | | | | |
//! | 144 | 12 | nonce | | | | |
//! | 156 | 48 | data key under the KEK, tag | | | | |
//! | 204 | 16 | checksum | | | | |
//!
//! Encryption is AES-256-GCM; everything before the nonce is its associated data. `PRK = HKDF-Extract(salt,
//! KDF(password, salt) ‖ OPRF output)`; KEK and commitment are `HKDF-Expand(PRK, tag ‖ key id ‖ epoch ‖ version)`
//! with the tags `vault/kek` and `vault/commitment`, 32 bytes each. AES-GCM does not commit to its key, the
//! commitment does; it is compared in constant time.

use crate::vault::{Stretched, VaultError};
use crate::wire::{KdfParams, KeyId};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use rand_core::{CryptoRng, RngCore};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use trefoil_protocol::transcript::{Tag, hash};
use trefoil_protocol::{CurveId, KeyShare, Party};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
pub(super) const SALT_BYTES: usize = 16;
/// Longest share in bytes.
pub const MAX_SHARE_BYTES: usize = 16 * 1024;

/// What a stored share says about itself in the clear; authenticated once it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyBinding {
    /// The key's curve.
    pub curve: CurveId,
    /// Which generation of the key's shares.
    pub epoch: u32,
    /// The key.
    pub key_id: KeyId,
    /// Transcript hash T of the run that made the share.
    pub transcript: [u8; 32],
    /// Name of the OT state; zero for ed25519.
    pub ot_id: [u8; 32],
}

impl KeyBinding {
    /// What the stored form of this share says about it.
    #[must_use]
    pub fn of(share: &KeyShare) -> Self {
        Self {
            curve: share.curve(),
            epoch: share.epoch(),
            key_id: KeyId(share.key_id()),
            transcript: share.transcript(),
            ot_id: share.ot_id(),
        }
    }

    fn to_bytes(self) -> Vec<u8> {
        let head = [VERSION, self.curve as u8, Party::Client.point()];
        [head.as_slice(), &self.epoch.to_be_bytes(), &self.key_id.0, &self.transcript, &self.ot_id].concat()
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let [version, curve, party] = reader.take()?;
        if version != VERSION || party != Party::Client.point() {
            return None;
        }
        Some(Self {
            curve: CurveId::from_byte(curve)?,
            epoch: u32::from_be_bytes(reader.take()?),
            key_id: KeyId(reader.take()?),
            transcript: reader.take()?,
            ot_id: reader.take()?,
        })
    }

    /// `tag ‖ key id ‖ epoch ‖ version`
    pub(super) fn info(&self, tag: Tag) -> Vec<u8> {
        [tag.as_str().as_bytes(), &self.key_id.0, &self.epoch.to_be_bytes(), &[VERSION]].concat()
    }
}

/// A secretStore whose form and checksum are right.
#[derive(Debug, Clone)]
pub(super) struct SecretStore {
    /// Which share its data key opens.
    pub(super) binding: KeyBinding,
    /// How the password was stretched; within the limits.
    pub(super) params: KdfParams,
    pub(super) salt: [u8; SALT_BYTES],
    commitment: [u8; 32],
    nonce: [u8; NONCE_BYTES],
    wrapped: [u8; 32 + TAG_BYTES],
}

impl SecretStore {
    /// Reads the bytes that generation returned.
    ///
    /// # Errors
    /// `CORRUPT_SECRET_STORE`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, VaultError> {
        let body = verify_checksum(Kind::SecretStore, bytes).ok_or(VaultError::CorruptSecretStore)?;
        Self::read(body).ok_or(VaultError::CorruptSecretStore)
    }

    fn read(body: &[u8]) -> Option<Self> {
        let reader = &mut Reader(body);
        let binding = KeyBinding::read(reader)?;
        let [kdf] = reader.take()?;
        let (memory_kib, passes) = (u32::from_be_bytes(reader.take()?), u32::from_be_bytes(reader.take()?));
        let params = match (kdf, memory_kib, passes) {
            (1, memory_kib, passes) => KdfParams::Argon2id { memory_kib, passes },
            (2, 0, 0) => KdfParams::Hkdf,
            _ => return None,
        };
        let salt = reader.take()?;
        let (commitment, nonce, wrapped) = (reader.take()?, reader.take()?, reader.take()?);
        let whole = reader.0.is_empty() && params.is_allowed();
        whole.then_some(Self { binding, params, salt, commitment, nonce, wrapped })
    }

    pub(super) fn unwrap_key(
        &self,
        stretched: &Stretched,
        oprf_output: &[u8; 64],
    ) -> Result<Zeroizing<[u8; 32]>, VaultError> {
        let keys = WrappingKeys::derive(&self.binding, &self.salt, stretched, oprf_output)?;
        if !bool::from(keys.commitment.ct_eq(&self.commitment)) {
            return Err(VaultError::WrongPassword);
        }
        let head = store_head(&self.binding, self.params, &self.salt, &self.commitment);
        let data_key = decrypt(&keys.kek, &self.nonce, &head, &self.wrapped).ok_or(VaultError::CorruptSecretStore)?;
        let data_key = data_key.as_slice().try_into().map_err(|_| VaultError::CorruptSecretStore)?;
        Ok(Zeroizing::new(data_key))
    }
}

/// An encryptedShare whose form and checksum are right.
#[derive(Debug, Clone)]
pub(super) struct EncryptedShare {
    /// Which share it is.
    pub(super) binding: KeyBinding,
    nonce: [u8; NONCE_BYTES],
    ciphertext: Vec<u8>,
}

impl EncryptedShare {
    /// Reads the bytes that generation returned.
    ///
    /// # Errors
    /// `CORRUPT_SHARE`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, VaultError> {
        let body = verify_checksum(Kind::EncryptedShare, bytes).ok_or(VaultError::CorruptShare)?;
        Self::read(body).ok_or(VaultError::CorruptShare)
    }

    fn read(body: &[u8]) -> Option<Self> {
        let reader = &mut Reader(body);
        let (binding, nonce) = (KeyBinding::read(reader)?, reader.take()?);
        let allowed = (TAG_BYTES..=MAX_SHARE_BYTES + TAG_BYTES).contains(&reader.0.len());
        allowed.then(|| Self { binding, nonce, ciphertext: reader.0.to_vec() })
    }

    pub(super) fn decrypt(&self, data_key: &[u8; 32]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        decrypt(data_key, &self.nonce, &self.binding.to_bytes(), &self.ciphertext).ok_or(VaultError::CorruptShare)
    }
}

/// What password and OPRF together give.
pub(super) struct WrappingKeys {
    kek: Zeroizing<[u8; 32]>,
    commitment: [u8; 32],
}

impl WrappingKeys {
    pub(super) fn derive(
        binding: &KeyBinding,
        salt: &[u8; SALT_BYTES],
        stretched: &Stretched,
        oprf_output: &[u8; 64],
    ) -> Result<Self, VaultError> {
        let mut input = Zeroizing::new([0; 96]);
        let (password_part, oprf_part) = input.split_at_mut(32);
        password_part.copy_from_slice(stretched.expose());
        oprf_part.copy_from_slice(oprf_output);
        let hkdf = Hkdf::<Sha256>::new(Some(salt), input.as_ref());
        let mut keys = Self { kek: Zeroizing::new([0; 32]), commitment: [0; 32] };
        hkdf.expand(&binding.info(Tag::VAULT_KEK), keys.kek.as_mut())
            .and_then(|()| hkdf.expand(&binding.info(Tag::VAULT_COMMITMENT), &mut keys.commitment))
            .map_err(|_| VaultError::Bug("HKDF output length"))?;
        Ok(keys)
    }
}

fn store_head(binding: &KeyBinding, params: KdfParams, salt: &[u8; SALT_BYTES], commitment: &[u8; 32]) -> Vec<u8> {
    let (kdf, memory_kib, passes) = match params {
        KdfParams::Argon2id { memory_kib, passes } => (1, memory_kib, passes),
        KdfParams::Hkdf => (2, 0, 0),
    };
    let numbers = [memory_kib.to_be_bytes(), passes.to_be_bytes()].concat();
    [binding.to_bytes().as_slice(), &[kdf], &numbers, salt, commitment].concat()
}

pub(super) fn wrap_key(
    binding: &KeyBinding,
    params: KdfParams,
    salt: &[u8; SALT_BYTES],
    keys: &WrappingKeys,
    data_key: &[u8; 32],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Vec<u8>, VaultError> {
    let head = store_head(binding, params, salt, &keys.commitment);
    let sealed = encrypt(&keys.kek, &head, data_key, rng)?;
    Ok(with_checksum(Kind::SecretStore, [head, sealed].concat()))
}

pub(super) fn encrypt_share(
    binding: &KeyBinding,
    data_key: &[u8; 32],
    share: &[u8],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Vec<u8>, VaultError> {
    if share.len() > MAX_SHARE_BYTES {
        return Err(VaultError::Bug("the share is too long"));
    }
    let head = binding.to_bytes();
    let sealed = encrypt(data_key, &head, share, rng)?;
    Ok(with_checksum(Kind::EncryptedShare, [head, sealed].concat()))
}

/// Nonce and ciphertext. Each key encrypts once, so random nonces cannot repeat under one.
fn encrypt(
    key: &[u8; 32],
    aad: &[u8],
    plaintext: &[u8],
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<Vec<u8>, VaultError> {
    let mut nonce = [0; NONCE_BYTES];
    rng.fill_bytes(&mut nonce);
    let ciphertext = Aes256Gcm::new(&(*key).into())
        .encrypt(&Nonce::from(nonce), Payload { msg: plaintext, aad })
        .map_err(|_| VaultError::Bug("AES-GCM input length"))?;
    Ok([nonce.as_slice(), &ciphertext].concat())
}

fn decrypt(key: &[u8; 32], nonce: &[u8; NONCE_BYTES], aad: &[u8], ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let plaintext = Aes256Gcm::new(&(*key).into()).decrypt(&Nonce::from(*nonce), Payload { msg: ciphertext, aad });
    plaintext.ok().map(Zeroizing::new)
}

/// Keeps the checksums of the two formats apart, so that one cannot be taken for the other.
#[derive(Clone, Copy)]
enum Kind {
    SecretStore,
    EncryptedShare,
}

fn checksum(kind: Kind, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let kind: &[u8] = match kind {
        Kind::SecretStore => b"secretStore",
        Kind::EncryptedShare => b"encryptedShare",
    };
    let mut half = [0; CHECKSUM_BYTES];
    half.iter_mut().zip(hash(Tag::VAULT_CHECKSUM, &[kind, bytes])).for_each(|(to, from)| *to = from);
    half
}

fn with_checksum(kind: Kind, mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = checksum(kind, &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn verify_checksum(kind: Kind, bytes: &[u8]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    (checksum(kind, body) == *sum).then_some(body)
}

/// Takes fixed-size fields off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}
