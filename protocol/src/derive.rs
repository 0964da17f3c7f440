//! BIP-32 public derivation for secp256k1 keys, non-hardened (docs/protocol.md, section 9).

use crate::curve::{Group, Secp256k1};
use crate::{Abort, Result};
use core::fmt;
use core::str::FromStr;
use hmac::{Hmac, KeyInit, Mac};
use k256::{ProjectivePoint, Scalar};
use sha2::Sha512;

/// The most steps a path may have.
pub const MAX_STEPS: usize = 16;

/// Steps from here on are hardened, which needs the whole secret key: no share holder has it.
const FIRST_HARDENED: u32 = 1 << 31;

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A step is hardened (`0'`, `0h`, `0H`, or at least 2^31): impossible for a key that nobody holds whole.
    #[error("the path has a hardened step")]
    Hardened,
    /// Not of the form `m/0/1`, or more than 16 steps.
    #[error("the path is not of the form m/0/1 with at most 16 steps")]
    Invalid,
}

/// Which child of a key: at most 16 steps below 2^31. `m` is the key itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DerivationPath(Vec<u32>);

impl DerivationPath {
    /// Parses `m`, `m/0`, `m/0/1`, …: decimal, without sign or leading zeros, so that a path has one spelling.
    ///
    /// # Errors
    /// [`PathError::Hardened`] if every step is well-formed and one is hardened, otherwise [`PathError::Invalid`].
    pub fn parse(text: &str) -> core::result::Result<Self, PathError> {
        let mut parts = text.split('/');
        if parts.next() != Some("m") {
            return Err(PathError::Invalid);
        }
        let mut hardened = false;
        let mut steps = Vec::new();
        for part in parts {
            let digits = part.strip_suffix(['\'', 'h', 'H']).unwrap_or(part);
            let canonical = !digits.is_empty() && (digits == "0" || !digits.starts_with('0'));
            if steps.len() == MAX_STEPS || !canonical || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(PathError::Invalid);
            }
            // All digits, so parsing fails only for what is far above 2^31.
            let step = digits.parse().unwrap_or(u32::MAX);
            hardened |= digits.len() != part.len() || step >= FIRST_HARDENED;
            steps.push(step);
        }
        if hardened { Err(PathError::Hardened) } else { Ok(Self(steps)) }
    }

    /// The steps, each below 2^31.
    #[must_use]
    pub fn steps(&self) -> &[u32] {
        &self.0
    }

    /// The steps as bytes, 4 each, big-endian: how a path enters a session id.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|step| step.to_be_bytes()).collect()
    }
}

impl FromStr for DerivationPath {
    type Err = PathError;

    fn from_str(text: &str) -> core::result::Result<Self, PathError> {
        Self::parse(text)
    }
}

impl fmt::Display for DerivationPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("m")?;
        self.0.iter().try_for_each(|step| write!(f, "/{step}"))
    }
}

/// A derived public key. With the parent's chain code all of it follows from the parent's public key, so none is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DerivedKey {
    /// The child's public key, 33 bytes SEC1 compressed.
    pub public_key: [u8; 33],
    /// The child's chain code.
    pub chain_code: [u8; 32],
    /// `δ`: the child's secret key is the parent's plus `δ`, its public key the parent's plus `δ·G`.
    pub tweak: Scalar,
}

/// CKDpub of BIP-32, applied along `path` to a public key of 33 bytes.
///
/// # Errors
/// `InvalidInput` if `public_key` is not a secp256k1 key, or if a step has no child (probability below 2^-127).
pub fn derive_public(public_key: &[u8], chain_code: &[u8; 32], path: &DerivationPath) -> Result<DerivedKey> {
    let point =
        Secp256k1::decode_point(public_key).ok_or(Abort::InvalidInput("not a compressed secp256k1 public key"))?;
    Ok(derive(&point, &Secp256k1::encode_point(&point), chain_code, path)?.1)
}

/// The same for a key that is at hand as a point and encoded; returns the child's point, too.
pub(crate) fn derive(
    point: &ProjectivePoint,
    public_key: &[u8; 33],
    chain_code: &[u8; 32],
    path: &DerivationPath,
) -> Result<(ProjectivePoint, DerivedKey)> {
    let key = DerivedKey { public_key: *public_key, chain_code: *chain_code, tweak: Scalar::ZERO };
    path.steps().iter().try_fold((*point, key), |(point, key), step| child(&point, &key, *step))
}

/// One step: `I = HMAC-SHA-512(chain code, public key ‖ step)`, tweak = left half, chain code = right half.
fn child(point: &ProjectivePoint, parent: &DerivedKey, step: u32) -> Result<(ProjectivePoint, DerivedKey)> {
    const NO_CHILD: Abort = Abort::InvalidInput("this step has no child key: use the next one");
    let mut mac =
        Hmac::<Sha512>::new_from_slice(&parent.chain_code).map_err(|_| Abort::Bug("HMAC takes any key length"))?;
    mac.update(&parent.public_key);
    mac.update(&step.to_be_bytes());
    let output: [u8; 64] = mac.finalize().into_bytes().into();
    let (left, right) = output.split_at(32);
    let tweak = Secp256k1::decode_scalar(left).ok_or(NO_CHILD)?;
    let point = *point + Secp256k1::mul_generator(&tweak);
    if Secp256k1::is_identity(&point) {
        return Err(NO_CHILD);
    }
    let chain_code = right.try_into().map_err(|_| Abort::Bug("half of 64 bytes is 32"))?;
    let public_key = Secp256k1::encode_point(&point);
    Ok((point, DerivedKey { public_key, chain_code, tweak: parent.tweak + tweak }))
}
