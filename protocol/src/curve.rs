//! The two curves behind one trait: what key generation and shares need of a prime-order group.
//!
//! Encodings are those of docs/protocol.md, section 1, and no other: canonical, of exact length, points never the
//! identity and (ed25519) in the prime-order subgroup. All arithmetic is constant-time, but for the question whether a point
//! that was read is of that subgroup: such a point is public.

use crate::transcript::{Tag, hash_wide};
use crate::{Abort, CurveId, Party, Result};
use core::ops::{Add, Mul, Neg, Sub};
use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::traits::IsIdentity;
use curve25519_dalek::{EdwardsPoint, Scalar as EdwardsScalar};
use k256::elliptic_curve::PrimeField;
use k256::elliptic_curve::ff::FromUniformBytes;
use k256::elliptic_curve::group::{Group as _, GroupEncoding};
use k256::{FieldBytes, ProjectivePoint, PublicKey, Scalar as Secp256k1Scalar};
use rand_core::{CryptoRng, RngCore};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Secp256k1 {}
    impl Sealed for super::Ed25519 {}
}

/// Bytes of an encoded scalar on both curves.
pub const SCALAR_LEN: usize = 32;

/// A group of prime order `q` with generator `G`. Sealed: [`Secp256k1`] and [`Ed25519`].
pub trait Group: sealed::Sealed + Sized + 'static {
    /// Which curve this is.
    const CURVE: CurveId;
    /// Bytes of an encoded point: 33 (SEC1 compressed) or 32 (RFC 8032).
    const POINT_LEN: usize = Self::CURVE.public_key_len();

    /// An integer mod `q`.
    type Scalar: Copy
        + ConstantTimeEq
        + Zeroize
        + From<u64>
        + Add<Output = Self::Scalar>
        + Sub<Output = Self::Scalar>
        + Mul<Output = Self::Scalar>
        + Neg<Output = Self::Scalar>;

    /// A group element.
    type Point: Copy
        + PartialEq
        + Add<Output = Self::Point>
        + Sub<Output = Self::Point>
        + Mul<Self::Scalar, Output = Self::Point>;

    /// An encoded point, `POINT_LEN` bytes.
    type PointBytes: Copy + AsRef<[u8]>;

    /// `scalar·G`, constant-time.
    fn mul_generator(scalar: &Self::Scalar) -> Self::Point;

    /// Is this the neutral element?
    fn is_identity(point: &Self::Point) -> bool;

    /// 64 uniform bytes reduced mod `q`, read big-endian (secp256k1) or little-endian (ed25519); bias below 2^-250.
    fn reduce_wide(bytes: &[u8; 64]) -> Self::Scalar;

    /// `1/scalar`; `None` for zero.
    fn invert(scalar: &Self::Scalar) -> Option<Self::Scalar>;

    /// Parses 32 bytes, big-endian (secp256k1) or little-endian (ed25519). `None` unless the length is exact and the
    /// value below `q`. Zero is accepted: where it matters the caller refuses it.
    fn decode_scalar(bytes: &[u8]) -> Option<Self::Scalar>;

    /// The 32 bytes that [`Group::decode_scalar`] reads.
    fn encode_scalar(scalar: &Self::Scalar) -> Zeroizing<[u8; SCALAR_LEN]>;

    /// Parses a point. `None` unless the length is exact, the encoding canonical, the point on the curve, in the
    /// prime-order subgroup and not the identity.
    fn decode_point(bytes: &[u8]) -> Option<Self::Point>;

    /// Parses a point of the curve that is not the identity, without asking whether it is of the prime-order subgroup and its
    /// encoding canonical: for bytes of which that is known, or follows once the point has passed another check.
    fn decode_curve_point(bytes: &[u8]) -> Option<Self::Point> {
        Self::decode_point(bytes)
    }

    /// The bytes that [`Group::decode_point`] reads. The identity's encoding is one that it refuses.
    fn encode_point(point: &Self::Point) -> Self::PointBytes;

    /// A uniform scalar, from 64 bytes of `rng`.
    fn random_scalar(rng: &mut (impl RngCore + CryptoRng)) -> Self::Scalar {
        let mut wide = Zeroizing::new([0u8; 64]);
        rng.fill_bytes(wide.as_mut());
        Self::reduce_wide(&wide)
    }

    /// `Hq(tag; fields…)` of docs/protocol.md, section 1.
    fn hash_to_scalar(tag: Tag, fields: &[&[u8]]) -> Self::Scalar {
        Self::reduce_wide(&hash_wide(tag, fields))
    }

    /// The party's Shamir point 1, 2 or 3 as a scalar.
    fn party_scalar(party: Party) -> Self::Scalar {
        Self::Scalar::from(u64::from(party.point()))
    }

    /// `λ` such that `λ_own·f(own) + λ_other·f(other) = f(0)` for every line `f`.
    ///
    /// # Errors
    /// `InvalidInput` when the two are the same party.
    fn lagrange(own: Party, other: Party) -> Result<Self::Scalar> {
        let (distance, other) = (i16::from(other.point()) - i16::from(own.point()), Self::party_scalar(other));
        match distance {
            1 => Ok(other),
            -1 => Ok(-other),
            _ => {
                let inverse = Self::invert(&(other - Self::party_scalar(own)));
                Ok(other * inverse.ok_or(Abort::InvalidInput("interpolation needs two different parties"))?)
            }
        }
    }
}

/// The group of ECDSA keys.
#[derive(Debug, Clone, Copy)]
pub enum Secp256k1 {}

impl Group for Secp256k1 {
    const CURVE: CurveId = CurveId::Secp256k1;

    type Scalar = Secp256k1Scalar;
    type Point = ProjectivePoint;
    type PointBytes = [u8; 33];

    fn mul_generator(scalar: &Self::Scalar) -> Self::Point {
        ProjectivePoint::mul_by_generator(scalar)
    }

    fn is_identity(point: &Self::Point) -> bool {
        point.is_identity().into()
    }

    fn reduce_wide(bytes: &[u8; 64]) -> Self::Scalar {
        Secp256k1Scalar::from_uniform_bytes(bytes)
    }

    fn invert(scalar: &Self::Scalar) -> Option<Self::Scalar> {
        scalar.invert().into()
    }

    fn decode_scalar(bytes: &[u8]) -> Option<Self::Scalar> {
        let bytes: Zeroizing<[u8; SCALAR_LEN]> = Zeroizing::new(bytes.try_into().ok()?);
        Secp256k1Scalar::from_repr(FieldBytes::from(*bytes)).into()
    }

    fn encode_scalar(scalar: &Self::Scalar) -> Zeroizing<[u8; SCALAR_LEN]> {
        Zeroizing::new(scalar.to_bytes().into())
    }

    fn decode_point(bytes: &[u8]) -> Option<Self::Point> {
        // SEC1 has a 33-byte "compact" form too (tag 5), which is another encoding of the same point.
        if bytes.len() != Self::POINT_LEN || !matches!(bytes.first(), Some(2 | 3)) {
            return None;
        }
        Some(PublicKey::from_sec1_bytes(bytes).ok()?.to_projective())
    }

    fn encode_point(point: &Self::Point) -> Self::PointBytes {
        point.to_bytes().into()
    }
}

/// The prime-order subgroup of edwards25519: EdDSA keys.
#[derive(Debug, Clone, Copy)]
pub enum Ed25519 {}

impl Group for Ed25519 {
    const CURVE: CurveId = CurveId::Ed25519;

    type Scalar = EdwardsScalar;
    type Point = EdwardsPoint;
    type PointBytes = [u8; 32];

    fn mul_generator(scalar: &Self::Scalar) -> Self::Point {
        EdwardsPoint::mul_base(scalar)
    }

    fn is_identity(point: &Self::Point) -> bool {
        IsIdentity::is_identity(point)
    }

    fn reduce_wide(bytes: &[u8; 64]) -> Self::Scalar {
        EdwardsScalar::from_bytes_mod_order_wide(bytes)
    }

    fn invert(scalar: &Self::Scalar) -> Option<Self::Scalar> {
        (*scalar != EdwardsScalar::ZERO).then(|| scalar.invert())
    }

    fn decode_scalar(bytes: &[u8]) -> Option<Self::Scalar> {
        let bytes: Zeroizing<[u8; SCALAR_LEN]> = Zeroizing::new(bytes.try_into().ok()?);
        EdwardsScalar::from_canonical_bytes(*bytes).into()
    }

    fn encode_scalar(scalar: &Self::Scalar) -> Zeroizing<[u8; SCALAR_LEN]> {
        Zeroizing::new(scalar.to_bytes())
    }

    fn decode_curve_point(bytes: &[u8]) -> Option<Self::Point> {
        let point = CompressedEdwardsY::from_slice(bytes).ok()?.decompress()?;
        (!Self::is_identity(&point)).then_some(point)
    }

    fn decode_point(bytes: &[u8]) -> Option<Self::Point> {
        // Decompression alone takes 40 other encodings, y at least p or x = 0 with a sign. Not one is of a point that passes
        // here (a test tries them all), so what passes is canonical.
        Self::decode_curve_point(bytes).filter(is_of_prime_order)
    }

    fn encode_point(point: &Self::Point) -> Self::PointBytes {
        point.compress().to_bytes()
    }
}

/// Is `q·P` the identity? Asked as `(q - 1)·P = -P`, as `q` is no scalar; in variable time, so of public points only.
fn is_of_prime_order(point: &EdwardsPoint) -> bool {
    let (minus_one, zero) = (-EdwardsScalar::ONE, EdwardsScalar::ZERO);
    EdwardsPoint::vartime_double_scalar_mul_basepoint(&minus_one, point, &zero) == -point
}
