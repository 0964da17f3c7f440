//! Two-party ECDSA: DKLs23 between client and node 1, node 1 first (docs/protocol.md, section 5).
//!
//! ```text
//! client::Client  --open-->  node1::Node1      (contribution, key id, epoch, ot_id; a service message)
//!                 <--m1---                     8,884 bytes
//! client::Round2  --m2--->   node1::Burn       48,915 bytes; the service burns the session here, durably
//!                 <--m3---   node1::Sent       40,243 bytes
//! Signature
//! ```

pub mod client;
mod messages;
pub mod node1;
mod session;
mod share_of_signature;

pub use messages::{M1_LEN, M2_LEN, M3_LEN};
pub use session::Request;

use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use k256::ecdsa::{RecoveryId, Signature as K256Signature, VerifyingKey};
use k256::elliptic_curve::ops::Reduce;
use k256::{FieldBytes, ProjectivePoint, Scalar};

/// A standard ECDSA signature with low s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// r ‖ s, 32 bytes each, big-endian, left-padded.
    pub bytes: [u8; 64],
    /// Bit 0: the y of R is odd. Bit 1: the x of R was at least q. (Both after the flip to low s.)
    pub recovery_id: u8,
}

impl Signature {
    /// Verifies under a public key (33 bytes SEC1 compressed) over a 32-byte digest: low s, the signature itself, and
    /// that the recovery id recovers this very key.
    ///
    /// # Errors
    /// `InvalidInput` when any of it does not hold.
    pub fn verify(&self, public_key: &[u8], digest: &[u8; 32]) -> Result<()> {
        const REFUSED: Abort = Abort::InvalidInput("the signature does not verify");
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| Abort::InvalidInput("not a public key"))?;
        let signature = K256Signature::from_slice(&self.bytes).map_err(|_| REFUSED)?;
        let recovery_id = RecoveryId::from_byte(self.recovery_id).ok_or(REFUSED)?;
        if signature.normalize_s() != signature {
            return Err(Abort::InvalidInput("the signature has a high s"));
        }
        // Recovery solves s·R = m·G + r·Q for Q with the R that r and the recovery id name: that it gives this key is the
        // verification equation itself, and says of the id what the equation alone cannot.
        match VerifyingKey::recover_from_prehash(digest, &signature, recovery_id) {
            Ok(recovered) if recovered == key => Ok(()),
            _ => Err(Abort::InvalidInput("the signature does not verify, or the recovery id is wrong")),
        }
    }
}

/// The digest as an integer mod q.
fn message_scalar(digest: &[u8; 32]) -> Scalar {
    Scalar::reduce(&FieldBytes::from(*digest))
}

/// `x(R) mod q` with the recovery id's two bits; `None` for the identity or `r_x = 0`.
fn r_x(point: &ProjectivePoint) -> Option<(Scalar, u8)> {
    if Secp256k1::is_identity(point) {
        return None;
    }
    let encoded = Secp256k1::encode_point(point);
    let (sign, x) = encoded.split_first()?;
    let x: [u8; 32] = x.try_into().ok()?;
    let overflow = Secp256k1::decode_scalar(&x).is_none();
    let r = Scalar::reduce(&FieldBytes::from(x));
    let zero: bool = r.is_zero().into();
    (!zero).then_some((r, (sign & 1) | (u8::from(overflow) << 1)))
}
