//! Two-party ECDSA: DKLs23 between client and node 1, node 1 first (docs/protocol.md, section 5).
//!
//! ```text
//! client::Client  --open-->  node1::Node1      (contribution, key id, epoch, ot_id; a service message)
//!                 <--m1---                     8,884 bytes
//! client::Round2  --m2--->   node1::Burn       48,915 bytes; the service burns the session here, durably
//!                 <--m3---   node1::Sent       40,243 bytes
//! Signature
//! ```

pub mod batch;
pub mod client;
mod messages;
pub mod node1;
mod session;
mod share_of_signature;

pub use messages::{M1_LEN, M2_LEN, M3_LEN};
pub use session::{Item, Request};

use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use k256::ecdsa::Signature as K256Signature;
use k256::elliptic_curve::ops::{Invert, MulByGeneratorVartime, Reduce};
use k256::elliptic_curve::scalar::IsHigh;
use k256::{FieldBytes, ProjectivePoint, PublicKey, Scalar};

/// A standard ECDSA signature with low s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// r ‖ s, 32 bytes each, big-endian, left-padded.
    pub bytes: [u8; 64],
    /// Bit 0: the y of R is odd. Bit 1: the x of R was at least q. (Both after the flip to low s.)
    pub recovery_id: u8,
}

impl Signature {
    /// Verifies under a public key (SEC1, compressed or not) over a 32-byte digest: low s, the signature itself, and
    /// that the recovery id recovers this very key.
    ///
    /// # Errors
    /// `InvalidInput` when any of it does not hold.
    pub fn verify(&self, public_key: &[u8], digest: &[u8; 32]) -> Result<()> {
        let key = PublicKey::from_sec1_bytes(public_key).map_err(|_| Abort::InvalidInput("not a public key"))?;
        self.verify_under(&key.to_projective(), digest)
    }

    fn verify_under(&self, key: &ProjectivePoint, digest: &[u8; 32]) -> Result<()> {
        if recovery_id(key, digest, &self.bytes)? == self.recovery_id {
            Ok(())
        } else {
            Err(Abort::InvalidInput("the recovery id is wrong"))
        }
    }
}

/// Verifies r ‖ s with low s and says which recovery id it has: the equation gives the R that the id names. In variable time:
/// signatures are public, and one that fails is made of values, u and w of both parties, which are sent openly in DKLs23.
///
/// # Errors
/// `InvalidInput` if it does not verify.
fn recovery_id(key: &ProjectivePoint, digest: &[u8; 32], signature: &[u8; 64]) -> Result<u8> {
    const REFUSED: Abort = Abort::InvalidInput("the signature does not verify");
    let (r, s) = K256Signature::from_slice(signature).map_err(|_| REFUSED)?.split_scalars();
    if s.is_high().into() {
        return Err(Abort::InvalidInput("the signature has a high s"));
    }
    let inverse = *s.invert_vartime();
    let (u1, u2) = (message_scalar(digest) * inverse, *r * inverse);
    let point = ProjectivePoint::mul_by_generator_and_mul_add_vartime(&u1, &u2, key);
    r_x(&point).filter(|(x, _)| x == r.as_ref()).map(|(_, id)| id).ok_or(REFUSED)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use k256::elliptic_curve::PrimeField;

    /// The order of the group, which is the x of a point (as q + 2 and q + 4 are).
    const Q: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba, 0xae,
        0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
    ];

    fn point_at(sign: u8, above_q: u8) -> ProjectivePoint {
        let mut encoded = [0; 33];
        encoded[0] = sign;
        encoded[1..].copy_from_slice(&Q);
        encoded[32] += above_q;
        Secp256k1::decode_point(&encoded).unwrap()
    }

    #[test]
    fn r_of_an_x_above_the_order() {
        assert!(r_x(&ProjectivePoint::IDENTITY).is_none());
        for sign in [2, 3] {
            assert!(r_x(&point_at(sign, 0)).is_none(), "x = q, so r = 0");
            assert_eq!(r_x(&point_at(sign, 2)), Some((Scalar::from(2u64), (sign & 1) | 2)));
            assert_eq!(r_x(&point_at(sign, 4)), Some((Scalar::from(4u64), (sign & 1) | 2)));
        }
        let (r, id) = r_x(&ProjectivePoint::GENERATOR).unwrap();
        assert_eq!(Secp256k1::encode_scalar(&r).as_slice(), &Secp256k1::encode_point(&ProjectivePoint::GENERATOR)[1..]);
        assert_eq!(id, 0);
    }

    /// For any R, digest and s there is a key that the signature fits; only its low s and its own recovery id pass.
    #[test]
    fn only_the_right_low_s_signature_verifies() {
        let digest = [7; 32];
        for (point, r, right) in [
            (point_at(2, 2), Scalar::from(2u64), 2),
            (point_at(3, 2), Scalar::from(2u64), 3),
            (ProjectivePoint::GENERATOR, r_x(&ProjectivePoint::GENERATOR).unwrap().0, 0),
        ] {
            let s = Scalar::from(5u64);
            // key = (s·R - m·G) / r
            let key = (point * s - ProjectivePoint::mul_by_generator(&message_scalar(&digest))) * r.invert().unwrap();
            let key = Secp256k1::encode_point(&key);
            let signature = |r: &Scalar, s: &Scalar, recovery_id| {
                let mut bytes = [0; 64];
                bytes[..32].copy_from_slice(&r.to_repr());
                bytes[32..].copy_from_slice(&s.to_repr());
                Signature { bytes, recovery_id }
            };
            for id in 0..=255 {
                assert_eq!(signature(&r, &s, id).verify(&key, &digest).is_ok(), id == right, "{id}");
            }
            for id in 0..4 {
                let high = signature(&r, &-s, id).verify(&key, &digest);
                assert_eq!(high, Err(Abort::InvalidInput("the signature has a high s")));
                assert!(signature(&Scalar::ZERO, &s, id).verify(&key, &digest).is_err());
                assert!(signature(&r, &Scalar::ZERO, id).verify(&key, &digest).is_err());
            }
            assert!(signature(&r, &s, right).verify(&key, &[8; 32]).is_err());
            assert!(signature(&r, &s, right).verify(&key[1..], &digest).is_err());
            let other = Secp256k1::encode_point(&ProjectivePoint::GENERATOR);
            assert!(signature(&r, &s, right).verify(&other, &digest).is_err());
        }
    }
}
