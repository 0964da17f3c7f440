//! Schnorr proof of knowledge of a dealing's constant term (docs/protocol.md, section 6).
//!
//! `K = k·G`, `e = Hq("dkg/proof"; sid, curve, i, A, K)`, `z = k + e·a`; accepted if `z·G = K + e·A`. The session id and
//! the prover's point are hashed, so a proof is of no use to another party or in another session.

use crate::Party;
use crate::curve::Group;
use crate::transcript::Tag;

/// `(K, z)`: a point and a scalar.
#[derive(Debug, Clone, Copy)]
pub struct Proof<C: Group> {
    pub(crate) nonce_point: C::Point,
    pub(crate) response: C::Scalar,
}

fn challenge<C: Group>(sid: &[u8; 32], prover: Party, statement: &C::Point, nonce_point: &C::Point) -> C::Scalar {
    let (statement, nonce_point) = (C::encode_point(statement), C::encode_point(nonce_point));
    let curve = C::CURVE.name().as_bytes();
    C::hash_to_scalar(Tag::DKG_PROOF, &[sid, curve, &[prover.point()], statement.as_ref(), nonce_point.as_ref()])
}

/// Proves knowledge of `witness`, where `statement = witness·G`. The nonce must be fresh, uniform and used once.
pub(crate) fn prove<C: Group>(
    sid: &[u8; 32],
    prover: Party,
    witness: &C::Scalar,
    statement: &C::Point,
    nonce: &C::Scalar,
) -> Proof<C> {
    let nonce_point = C::mul_generator(nonce);
    let response = *nonce + challenge::<C>(sid, prover, statement, &nonce_point) * *witness;
    Proof { nonce_point, response }
}

/// Does the proof hold for `statement`, by this party in this session?
pub(crate) fn verify<C: Group>(sid: &[u8; 32], prover: Party, statement: &C::Point, proof: &Proof<C>) -> bool {
    let e = challenge::<C>(sid, prover, statement, &proof.nonce_point);
    C::mul_generator(&proof.response) == proof.nonce_point + *statement * e
}
