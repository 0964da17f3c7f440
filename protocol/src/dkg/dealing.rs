//! Dealings: a polynomial's commitments with their proof, and the secrets behind our own.

use super::shape;
use crate::codec::Reader;
use crate::curve::{Group, SCALAR_LEN};
use crate::reshare::Known;
use crate::schnorr::{self, Proof};
use crate::transcript::{Tag, hash};
use crate::{Abort, Party, Result, Secret};

/// Bytes of a dealing in a key generation: 227 (secp256k1) or 224 (ed25519).
const fn dealing_len<C: Group>() -> usize {
    3 * C::POINT_LEN + SCALAR_LEN + 3 * 32
}

/// Bytes of a dealing: in a recovery or refresh 97 or 96, and 64 of a client that deals nothing.
pub(super) fn len_of<C: Group>(known: Option<&Known<C>>, dealer: Party) -> usize {
    match known {
        None => dealing_len::<C>(),
        Some(known) if known.deals(dealer) => C::POINT_LEN + 2 * 32,
        Some(_) => 2 * 32,
    }
}

/// The public part of a dealing that passed its checks.
pub(super) struct Dealing<C: Group> {
    pub(super) commitments: [C::Point; 2],
    /// Zero where nobody sends one: in a recovery or refresh.
    pub(super) chain_code_part: [u8; 32],
    pub(super) ephemeral: [u8; 32],
}

impl<C: Group> Dealing<C> {
    /// `A_0 + j·A_1`, which is `f(j)·G`; by additions, as j is at most 3.
    pub(super) fn at(&self, party: Party) -> C::Point {
        let [constant, slope] = self.commitments;
        (0..party.point()).fold(constant, |sum, _| sum + slope)
    }

    /// Reads a dealing whose commitment was opened before: in a key generation
    /// `A_0 ‖ A_1 ‖ K ‖ z ‖ chain-code part ‖ ephemeral ‖ salt`, else `A_1 ‖ ephemeral ‖ salt` of a dealer, and
    /// `ephemeral ‖ salt` of the client that deals nothing.
    pub(super) fn read(bytes: &[u8], known: Option<&Known<C>>, sid: &[u8; 32], dealer: Party) -> Result<Self> {
        match known {
            None => Self::read_fresh(bytes, sid, dealer),
            Some(known) => Self::read_known(bytes, known, dealer),
        }
    }

    fn read_fresh(bytes: &[u8], sid: &[u8; 32], dealer: Party) -> Result<Self> {
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

    /// The constant term is what the dealer has to deal, whatever it would like to: its sub-shares fit this or nothing.
    fn read_known(bytes: &[u8], known: &Known<C>, dealer: Party) -> Result<Self> {
        let constant = known.constant(dealer)?;
        let parse = || {
            let mut reader = Reader::new(bytes, len_of(Some(known), dealer))?;
            let slope = match known.deals(dealer) {
                true => C::decode_point(reader.bytes(C::POINT_LEN)?)?,
                false => C::mul_generator(&C::Scalar::from(0)),
            };
            Some(Self { commitments: [constant, slope], chain_code_part: [0; 32], ephemeral: reader.array()? })
        };
        parse().ok_or(shape(dealer))
    }
}

/// Our polynomial `f(x) = a_0 + a_1·x` (zero if we deal nothing), and our end of the seals.
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
