//! Text forms of keys: NKEYs as NATS writes them, or 32 bytes as hex or base64.

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{SigningKey, VerifyingKey};
use trefoil_protocol::Secret;
use zeroize::Zeroizing;

/// Prefix byte of an xkey (curve) NKEY: the letter X.
const CURVE_PREFIX: u8 = 23 << 3;

/// An X25519 public key, 32 bytes.
pub type NoisePublic = [u8; 32];

fn bytes32(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let decoded = Zeroizing::new(match text.len() {
        64 => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?,
        44 => BASE64.decode(text.as_bytes()).ok()?,
        _ => return None,
    });
    decoded.as_slice().try_into().ok().map(Zeroizing::new)
}

/// 32 secret bytes: 64 hex digits or 44 base64 characters.
#[must_use]
pub fn secret32(text: &str) -> Option<Secret<[u8; 32]>> {
    bytes32(text).map(|bytes| Secret::new(*bytes))
}

/// An X25519 private key: an xkey seed (`SX…`), or 32 bytes as hex or base64.
#[must_use]
pub fn noise_private(text: &str) -> Option<Secret<[u8; 32]>> {
    if let Ok((prefix, seed)) = nkeys::decode_seed(text) {
        return (prefix == CURVE_PREFIX).then(|| Secret::new(seed));
    }
    secret32(text)
}

/// An X25519 public key: an xkey (`X…`), or 32 bytes as hex or base64.
///
/// # Errors
/// A sentence saying what is expected.
pub fn noise_public(text: &str) -> Result<NoisePublic, &'static str> {
    if let Ok((prefix, key)) = nkeys::from_public_key(text) {
        return if prefix == CURVE_PREFIX { Ok(key) } else { Err("must be a curve key (X…)") };
    }
    bytes32(text).map(|key| *key).ok_or("must be an xkey (X…) or 32 bytes as hex or base64")
}

/// An Ed25519 identity from an NKEY seed (`SN…`, `SU…`), or 32 bytes as hex or base64.
#[must_use]
pub fn identity_private(text: &str) -> Option<SigningKey> {
    if let Ok((prefix, seed)) = nkeys::decode_seed(text) {
        let seed = Zeroizing::new(seed);
        return (prefix != CURVE_PREFIX).then(|| SigningKey::from_bytes(&seed));
    }
    bytes32(text).map(|seed| SigningKey::from_bytes(&seed))
}

/// An Ed25519 identity's public key: an NKEY (`N…`, `U…`), or 32 bytes as hex or base64.
///
/// # Errors
/// A sentence saying what is expected.
pub fn identity_public(text: &str) -> Result<VerifyingKey, &'static str> {
    const EXPECTED: &str = "must be an Ed25519 NKEY (N…) or 32 bytes as hex or base64";
    let bytes = match nkeys::from_public_key(text) {
        Ok((CURVE_PREFIX, _)) => return Err(EXPECTED),
        Ok((_, key)) => key,
        Err(_) => *bytes32(text).ok_or(EXPECTED)?,
    };
    // A weak key would verify signatures that nobody made.
    VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak()).ok_or("not a usable Ed25519 public key")
}
