//! Dealings: a polynomial's commitments with their proof, and the secrets behind our own.

use super::shape;
use crate::codec::Reader;
use crate::curve::{Group, SCALAR_LEN};
use crate::schnorr::{self, Proof};
use crate::transcript::{Tag, hash};
use crate::{Abort, Party, Result, Secret};

/// Bytes of a dealing: 227 (secp256k1) or 224 (ed25519).
#[must_use]
pub const fn dealing_len<C: Group>() -> usize {
    3 * C::POINT_LEN + SCALAR_LEN + 3 * 32
}

/// The public part of a dealing that passed its checks.
pub(super) struct Dealing<C: Group> {
    pub(super) commitments: [C::Point; 2],
    pub(super) chain_code_part: [u8; 32],
    pub(super) ephemeral: [u8; 32],
}

impl<C: Group> Dealing<C> {
    /// `A_0 + j·A_1`, which is `f(j)·G`; by additions, as j is at most 3.
    pub(super) fn at(&self, party: Party) -> C::Point {
        let [constant, slope] = self.commitments;
        (0..party.point()).fold(constant, |sum, _| sum + slope)
    }

    /// Reads `A_0 ‖ A_1 ‖ K ‖ z ‖ chain-code part ‖ ephemeral ‖ salt`, whose commitment was opened before.
    pub(super) fn read(bytes: &[u8], sid: &[u8; 32], dealer: Party) -> Result<Self> {
        let parse = || {
            let mut reader = Reader::new(bytes, dealing_len::<C>())?;
            let mut point = || C::decode_point(reader.bytes(C::POINT_LEN)?);
            let (commitments, nonce_point) = ([point()?, point()?], point()?);
            let response = C::decode_scalar(reader.bytes(SCALAR_LEN)?)?;
            let dealing = Self { commitments, chain_code_part: reader.array()?, ephemeral: reader.array()? };
            Some((dealing, Proof { nonce_point, response }))
        };
        let (dealing, proof): (_, Proof<C>) = parse().ok_or(shape(dealer))?;
        let [constant, _] = &dealing.commitments;
        if !schnorr::verify::<C>(sid, dealer, constant, &proof) {
            return Err(Abort::peer(dealer, "dkg_proof"));
        }
        Ok(dealing)
    }
}

/// Our polynomial `f(x) = a_0 + a_1·x`, and all else that we drew.
pub(super) struct Own<C: Group> {
    pub(super) coefficients: [Secret<C::Scalar>; 2],
    pub(super) ephemeral: Secret<[u8; 32]>,
}

impl<C: Group> Own<C> {
    pub(super) fn at(&self, party: Party) -> C::Scalar {
        let [constant, slope] = &self.coefficients;
        *constant.expose() + *slope.expose() * C::party_scalar(party)
    }
}

/// `C_i`.
pub(super) fn commit_to(sid: &[u8; 32], dealer: Party, message: &[u8]) -> [u8; 32] {
    hash(Tag::DKG_COMMITMENT, &[sid, &[dealer.point()], message])
}
