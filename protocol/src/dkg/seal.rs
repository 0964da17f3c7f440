//! Sealing of sub-shares: X25519 between the session's ephemerals, HKDF-SHA-256, AES-256-GCM.

use crate::transcript::Tag;
use crate::{Abort, Party, Result, Secret};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::KeyInit;
use curve25519_dalek::MontgomeryPoint;
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// X25519; `None` for the all-zero result that a point of small order gives.
pub(super) fn shared_secret(own: &Secret<[u8; 32]>, theirs: &[u8; 32]) -> Option<Secret<[u8; 32]>> {
    let mut point = MontgomeryPoint(*theirs).mul_clamped(*own.expose());
    let shared = Secret::new(point.to_bytes());
    point.zeroize();
    (!bool::from(shared.expose().ct_eq(&[0; 32]))).then_some(shared)
}

/// AES-256-GCM for one sub-share from `from` to `to`. The key is used once, so the nonce is zero.
pub(super) fn cipher(shared: &Secret<[u8; 32]>, transcript: &[u8; 32], from: Party, to: Party) -> Result<Aes256Gcm> {
    let info = [Tag::DKG_SEAL.as_str().as_bytes(), &[from.point(), to.point()]].concat();
    let mut key = Zeroizing::new([0u8; 32]);
    Hkdf::<Sha256>::new(Some(transcript), shared.expose())
        .expand(&info, key.as_mut())
        .map_err(|_| Abort::Bug("HKDF gives 32 bytes"))?;
    Aes256Gcm::new_from_slice(key.as_ref()).map_err(|_| Abort::Bug("an AES-256 key has 32 bytes"))
}
