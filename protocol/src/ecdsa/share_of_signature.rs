//! What both signers compute alike: their nonce and inversion mask, the two multiplications, and their share of s.

use super::messages::Gammas;
use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use crate::ot::extension::{ExtensionId, ReceiverExtension, ReceiverRows, SenderRows};
use crate::ot::{Direction, ReceiverSeeds};
use crate::rvole::{self, Answer, Products};
use crate::secret::Secret;
use k256::elliptic_curve::BatchNormalize;
use k256::elliptic_curve::group::GroupEncoding;
use k256::{ProjectivePoint, Scalar};
use rand_core::{CryptoRng, RngCore};
use zeroize::Zeroizing;

/// The secrets of one signing: nonce share r, inversion mask φ. Fresh per session, consumed by it, zeroised.
pub(super) struct Nonce {
    r: Secret<Scalar>,
    phi: Secret<Scalar>,
    pub(super) point: ProjectivePoint,
    /// The point, SEC1 compressed.
    pub(super) encoded: [u8; 33],
}

impl Nonce {
    pub(super) fn new(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let (r, phi) = (Secret::new(Secp256k1::random_scalar(rng)), Secret::new(Secp256k1::random_scalar(rng)));
        let point = ProjectivePoint::mul_by_generator(r.expose());
        Self { r, phi, point, encoded: Secp256k1::encode_point(&point) }
    }
}

/// The party as Bob: it opened an extension and holds χ = ⟨g, β⟩.
pub(super) struct Bob {
    nonce: [u8; 16],
    rows: ReceiverRows,
    chi: Secret<Scalar>,
    direction: Direction,
    item: u16,
}

impl Bob {
    /// Appends nonce, U, x and t to the message so far.
    pub(super) fn open(
        seeds: &ReceiverSeeds,
        (sid, direction, item): (&[u8; 32], Direction, u16),
        transcript: &[u8; 32],
        message: &mut Vec<u8>,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Self {
        let (nonce, rows) = ReceiverExtension::append(seeds, (sid, direction, item), transcript, message, rng);
        let chi = rvole::bob_input(&rows);
        Self { nonce, rows, chi, direction, item }
    }

    /// ψ = φ - χ, which gives the peer our mask without giving it away.
    pub(super) fn psi(&self, nonce: &Nonce) -> [u8; 32] {
        *Secp256k1::encode_scalar(&(*nonce.phi.expose() - *self.chi.expose()))
    }

    /// Checks μ (**lock**), then that the peer multiplied its R and its share of the key (abort), in this order.
    pub(super) fn receive(
        &self,
        sid: &[u8; 32],
        transcript: &[u8; 32],
        answer: &Answer<'_>,
        gammas: &Gammas,
        peer_point: &ProjectivePoint,
        peer_key: &ProjectivePoint,
    ) -> Result<Products> {
        let id = ExtensionId { sid, direction: self.direction, item: self.item, nonce: self.nonce };
        let products = rvole::bob(&self.rows, &id, transcript, answer)?;
        let culprit = self.direction.sender();
        let ([gamma_u, gamma_v], [d_u, d_v]) = (gammas, &products.0);
        for (input, gamma, d, check) in [(peer_point, gamma_u, d_u, "gamma_u"), (peer_key, gamma_v, d_v, "gamma_v")] {
            if input * self.chi.expose() != ProjectivePoint::mul_by_generator(d) + gamma {
                return Err(Abort::peer(culprit, check));
            }
        }
        Ok(products)
    }
}

/// The party as Alice: multiplies (r, sk) with the peer's χ and appends τ, η, μ, Γu, Γv.
pub(super) fn multiply(
    rows: &SenderRows,
    id: &ExtensionId<'_>,
    nonce: &Nonce,
    key: &Scalar,
    transcript: &[u8; 32],
    message: &mut Vec<u8>,
    rng: &mut (impl RngCore + CryptoRng),
) -> Products {
    let products = rvole::alice(rows, id, [nonce.r.expose(), key], transcript, message, rng);
    let gammas = products.0.map(|c| ProjectivePoint::mul_by_generator(&c));
    for gamma in ProjectivePoint::batch_normalize(&gammas) {
        message.extend_from_slice(&gamma.to_bytes());
    }
    products
}

/// One signer's share of numerator and denominator of s.
pub(super) struct PartialSignature {
    pub(super) u: Scalar,
    pub(super) w: Scalar,
}

/// `u = r(φ + ψ) + c_u + d_u`, `v = sk(φ + ψ) + c_v + d_v`, `w = m·φ + r_x·v`. Consumes the nonce: it is used once.
pub(super) fn partial(
    nonce: Nonce,
    key: &Scalar,
    psi: &Scalar,
    c: &Products,
    d: &Products,
    message: &Scalar,
    r_x: &Scalar,
) -> PartialSignature {
    let ([c_u, c_v], [d_u, d_v]) = (&c.0, &d.0);
    let mask = Zeroizing::new(*nonce.phi.expose() + psi);
    let v = Zeroizing::new(*key * *mask + c_v + d_v);
    PartialSignature { u: *nonce.r.expose() * *mask + c_u + d_u, w: *message * *nonce.phi.expose() + *r_x * *v }
}

#[cfg(test)]
#[path = "extraction.rs"]
mod extraction;
