//! The secret bytes of an attempt: what the store encrypts.

use crate::vault::OprfKey;
use ed25519_dalek::{Signature, VerifyingKey};
use std::sync::Arc;
use trefoil_protocol::KeyShare;
use zeroize::Zeroizing;

/// Version of the encoding.
const VERSION: u8 = 2;

/// One node's secrets of one key.
pub struct Material {
    /// The key share.
    pub share: Arc<KeyShare>,
    /// Node 1 only: what belongs to the client's password.
    pub password: Option<PasswordKeys>,
}

/// What node 1 keeps of a key to harden the client's password.
pub struct PasswordKeys {
    /// The key's OPRF key.
    pub oprf: OprfKey,
    /// Public half of the client's data key's prover, Ed25519.
    pub prover: [u8; 32],
}

impl Material {
    /// Version 1 ‖ has password keys 1 ‖ OPRF key 32 ‖ prover 32 (zeros without) ‖ share.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        self.encode(&self.share.to_bytes())
    }

    /// The same without OT state: what a locked key keeps for its recovery.
    #[must_use]
    pub fn to_bytes_without_ot(&self) -> Zeroizing<Vec<u8>> {
        self.encode(&self.share.to_bytes_without_ot())
    }

    /// Whether the prover of the client's data key signed this statement: whoever asked for that had the key.
    #[must_use]
    pub fn proves(&self, statement: &[u8], proof: &[u8; 64]) -> bool {
        let prover = self.password.as_ref().and_then(|keys| VerifyingKey::from_bytes(&keys.prover).ok());
        prover.is_some_and(|prover| prover.verify_strict(statement, &Signature::from_bytes(proof)).is_ok())
    }

    fn encode(&self, share: &[u8]) -> Zeroizing<Vec<u8>> {
        let oprf = self.password.as_ref().map(|keys| keys.oprf.to_bytes());
        let prover = self.password.as_ref().map_or([0; 32], |keys| keys.prover);
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 + 64 + share.len()));
        bytes.extend_from_slice(&[VERSION, u8::from(oprf.is_some())]);
        bytes.extend_from_slice(oprf.as_deref().unwrap_or(&[0; 32]));
        bytes.extend_from_slice(&prover);
        bytes.extend_from_slice(share);
        bytes
    }

    /// Reads what [`Material::to_bytes`] wrote; the share is checked again.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let ([VERSION, has_keys], rest) = bytes.split_first_chunk::<2>()? else { return None };
        let (oprf, rest) = rest.split_first_chunk::<32>()?;
        let (prover, share) = rest.split_first_chunk::<32>()?;
        let password = match has_keys {
            0 => None,
            1 => Some(PasswordKeys { oprf: OprfKey::from_bytes(oprf)?, prover: *prover }),
            _ => return None,
        };
        Some(Self { share: Arc::new(KeyShare::from_bytes(share).ok()?), password })
    }
}
