//! Random vector OLE: DKLs23 (ePrint 2023/765), protocol 5.2 with ℓ = 2 inputs and ρ = 1 check
//! (docs/protocol.md, section 4). Alice ends with `c_k`, Bob with `d_k`, and `c_k + d_k = a_k · b`.

use crate::codec::Reader;
use crate::curve::{Group, Secp256k1};
use crate::error::{Abort, Result};
use crate::ot::ROWS;
use crate::ot::extension::{ExtensionId, ReceiverRows, SenderRows};
use crate::secret::Secret;
use crate::transcript::Tag;
use crate::wide::SumOfProducts;
use k256::Scalar;
use rand_core::{CryptoRng, RngCore};
use std::sync::LazyLock;
use subtle::{ConditionallySelectable, ConstantTimeEq};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of τ: 416 rows of three scalars.
pub const TAU_LEN: usize = ROWS * 3 * 32;
/// Bytes of Alice's answer: τ, η, μ.
pub const ANSWER_LEN: usize = TAU_LEN + 64;

/// The public gadget vector g.
static GADGET: LazyLock<Vec<Scalar>> = LazyLock::new(|| {
    (0..ROWS as u16).map(|j| Secp256k1::hash_to_scalar(Tag::RVOLE_GADGET, &[&j.to_be_bytes()])).collect()
});

/// The challenge of the multiplication check: fixed by everything sent so far, τ included.
struct Challenge {
    prefix: [u8; 32],
    theta: [Scalar; 2],
}

impl Challenge {
    fn new(id: &ExtensionId<'_>, transcript: &[u8; 32], prefix: &[u8]) -> Self {
        let prefix = id.hash(Tag::RVOLE_PREFIX, transcript, &[prefix]);
        let theta = [0u8, 1].map(|k| Secp256k1::hash_to_scalar(Tag::RVOLE_THETA, &[&prefix, &[k]]));
        Self { prefix, theta }
    }

    fn mu(&self, id: &ExtensionId<'_>, rows: &[u8]) -> [u8; 32] {
        id.hash(Tag::RVOLE_MU, id.sid, &[&self.prefix, rows])
    }

    fn combine(&self, [w0, w1, check]: &[Scalar; 3]) -> Scalar {
        let [theta0, theta1] = &self.theta;
        check + theta0 * w0 + theta1 * w1
    }
}

/// One party's additive shares of the two products. Zeroised on drop.
pub struct Products(pub(crate) [Scalar; 2]);

impl Drop for Products {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Zeroize::zeroize);
    }
}

/// Alice: multiplies `inputs` with Bob's choice, appends τ ‖ η ‖ μ (40,000 bytes) to `message` and returns `c`.
///
/// `message` must hold all that this message carries before τ: the challenge covers it.
pub fn alice(
    rows: &SenderRows,
    id: &ExtensionId<'_>,
    inputs: [&Scalar; 2],
    transcript: &[u8; 32],
    message: &mut Vec<u8>,
    rng: &mut (impl RngCore + CryptoRng),
) -> Products {
    let [a0, a1] = inputs;
    let check_input = Zeroizing::new(Secp256k1::random_scalar(rng));
    let (zero_pads, one_pads) = rows.pads();
    let mut sums = [SumOfProducts::new(), SumOfProducts::new()];
    let [sum0, sum1] = &mut sums;
    message.reserve(ANSWER_LEN);
    for (([z0, z1, z2], [o0, o1, o2]), gadget) in zero_pads.iter().zip(one_pads.iter()).zip(GADGET.iter()) {
        for tau in [z0 - o0 + a0, z1 - o1 + a1, z2 - o2 + *check_input] {
            message.extend_from_slice(&tau.to_bytes());
        }
        sum0.add(gadget, z0);
        sum1.add(gadget, z1);
    }
    let challenge = Challenge::new(id, transcript, message);
    let eta = challenge.combine(&[*a0, *a1, *check_input]);
    let mut check_rows = Zeroizing::new(Vec::with_capacity(ROWS * 32));
    for zero in zero_pads.iter() {
        check_rows.extend_from_slice(Secp256k1::encode_scalar(&challenge.combine(zero)).as_slice());
    }
    message.extend_from_slice(Secp256k1::encode_scalar(&eta).as_slice());
    message.extend_from_slice(&challenge.mu(id, &check_rows));
    Products(sums.map(|sum| -sum.reduce()))
}

/// Bob's random factor: `b = ⟨g, β⟩`.
#[must_use]
pub fn bob_input(rows: &ReceiverRows) -> Secret<Scalar> {
    let mut b = Secret::new(Scalar::ZERO);
    for (choice, gadget) in rows.choices().zip(GADGET.iter()) {
        *b.expose_mut() += Scalar::conditional_select(&Scalar::ZERO, gadget, choice);
    }
    b
}

/// A parsed answer of Alice: shape and canonical form are checked before anything that can lock.
pub struct Answer<'a> {
    prefix: &'a [u8],
    tau: Vec<[Scalar; 3]>,
    eta: Scalar,
    mu: [u8; 32],
}

impl<'a> Answer<'a> {
    /// Reads τ, η, μ off a message; what was read before, τ included, becomes the challenge's prefix.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let (rows, _) = reader.bytes(TAU_LEN)?.as_chunks::<32>();
        let prefix = reader.prefix();
        let mut tau = Vec::with_capacity(ROWS);
        for row in rows.as_chunks::<3>().0 {
            let [t0, t1, t2] = row;
            tau.push([Secp256k1::decode_scalar(t0)?, Secp256k1::decode_scalar(t1)?, Secp256k1::decode_scalar(t2)?]);
        }
        Some(Self { prefix, tau, eta: reader.scalar()?, mu: reader.array()? })
    }
}

/// Bob: checks Alice's answer and returns `d`.
///
/// # Errors
/// `rvole_mu` (**lock**): Alice used different inputs in different rows.
pub fn bob(rows: &ReceiverRows, id: &ExtensionId<'_>, transcript: &[u8; 32], answer: &Answer<'_>) -> Result<Products> {
    if answer.tau.len() != ROWS {
        return Err(Abort::Bug("τ of a wrong length"));
    }
    let challenge = Challenge::new(id, transcript, answer.prefix);
    let mut sums = [SumOfProducts::new(), SumOfProducts::new()];
    let [sum0, sum1] = &mut sums;
    let mut check_rows = Zeroizing::new(Vec::with_capacity(ROWS * 32));
    let pads = rows.pads();
    for (((choice, pads), tau), gadget) in rows.choices().zip(pads.iter()).zip(&answer.tau).zip(GADGET.iter()) {
        let chosen = |value: &Scalar| Scalar::conditional_select(&Scalar::ZERO, value, choice);
        let [g0, g1, g2] = pads;
        let [t0, t1, t2] = tau;
        let delta = [g0 + chosen(t0), g1 + chosen(t1), g2 + chosen(t2)];
        let check = challenge.combine(&delta) - chosen(&answer.eta);
        check_rows.extend_from_slice(Secp256k1::encode_scalar(&check).as_slice());
        let [x0, x1, _] = &delta;
        sum0.add(gadget, x0);
        sum1.add(gadget, x1);
    }
    if bool::from(challenge.mu(id, &check_rows).ct_eq(&answer.mu)) {
        Ok(Products(sums.map(|sum| sum.reduce())))
    } else {
        Err(Abort::lock(id.direction.sender(), "rvole_mu"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use crate::Party;
    use crate::ot::Direction;
    use crate::ot::extension::ReceiverExtension;
    use crate::ot::extension::tests::seeds;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    const SID: [u8; 32] = [3; 32];
    const ID: ExtensionId<'_> = ExtensionId { sid: &SID, direction: Direction::Node1Receives, item: 0, nonce: [4; 16] };

    fn rows(rng: &mut ChaCha20Rng) -> (SenderRows, ReceiverRows) {
        let (sender, receiver) = seeds(rng);
        let (extension, u) = ReceiverExtension::new(&receiver, &ID, rng);
        let proof = extension.prove(&ID, &SID, &u);
        (SenderRows::check(&sender, &ID, &u, &proof, &SID, &u).unwrap(), extension.into_rows())
    }

    fn finish(bob_rows: &ReceiverRows, message: &[u8]) -> Result<Products> {
        let mut reader = Reader::new(message, ANSWER_LEN + 4).unwrap();
        reader.bytes(4).unwrap();
        bob(bob_rows, &ID, &SID, &Answer::read(&mut reader).unwrap())
    }

    #[test]
    fn shares_sum_to_the_product() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        for _ in 0..4 {
            let (alice_rows, bob_rows) = rows(&mut rng);
            let inputs = [Secp256k1::random_scalar(&mut rng), Secp256k1::random_scalar(&mut rng)];
            let mut message = b"head".to_vec();
            let c = alice(&alice_rows, &ID, [&inputs[0], &inputs[1]], &SID, &mut message, &mut rng);
            let d = finish(&bob_rows, &message).unwrap();
            let b = bob_input(&bob_rows);
            for ((c, d), a) in c.0.iter().zip(&d.0).zip(inputs) {
                assert_eq!(c + d, a * *b.expose());
            }
        }
    }

    /// Alice uses another input in row 0, column `word`, and makes the challenge, η and μ for it as if β_0 were 0: accepted
    /// exactly when β_0 is 0, so a failure tells her the bit, and one failure must lock the key.
    #[test]
    fn a_cheat_in_one_row_is_caught_exactly_when_it_learns_a_bit() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let (mut caught, mut passed) = (0, 0);
        for round in 0..24 {
            let (alice_rows, bob_rows) = rows(&mut rng);
            let a: [Scalar; 3] = core::array::from_fn(|_| Secp256k1::random_scalar(&mut rng));
            let mut message = b"head".to_vec();
            let (zeros, ones) = alice_rows.pads();
            for (row, (zero, one)) in zeros.iter().zip(ones.iter()).enumerate() {
                for word in 0..3 {
                    let cheat = if row == 0 && word == round % 3 { Scalar::ONE } else { Scalar::ZERO };
                    let tau = zero[word] - one[word] + a[word] + cheat;
                    message.extend_from_slice(Secp256k1::encode_scalar(&tau).as_slice());
                }
            }
            let challenge = Challenge::new(&ID, &SID, &message);
            let mut check_rows = Vec::new();
            for zero in zeros.iter() {
                check_rows.extend_from_slice(Secp256k1::encode_scalar(&challenge.combine(zero)).as_slice());
            }
            message.extend_from_slice(Secp256k1::encode_scalar(&challenge.combine(&a)).as_slice());
            message.extend_from_slice(&challenge.mu(&ID, &check_rows));
            let first: bool = bob_rows.choices().next().unwrap().into();
            match finish(&bob_rows, &message) {
                Ok(_) => {
                    assert!(!first);
                    passed += 1;
                }
                Err(abort) => {
                    assert!(first);
                    assert_eq!(abort, Abort::lock(Party::Client, "rvole_mu"));
                    caught += 1;
                }
            }
        }
        assert!(caught > 3 && passed > 3);
    }

    /// The challenge follows τ and all before it: a byte changed after the fact no longer fits.
    #[test]
    fn every_byte_before_mu_is_under_the_check() {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let (alice_rows, bob_rows) = rows(&mut rng);
        let inputs = [Secp256k1::random_scalar(&mut rng), Secp256k1::random_scalar(&mut rng)];
        let mut message = b"head".to_vec();
        alice(&alice_rows, &ID, [&inputs[0], &inputs[1]], &SID, &mut message, &mut rng);
        for at in [0, 3, 4 + 31, 4 + TAU_LEN - 1, 4 + TAU_LEN + 31, 4 + TAU_LEN + 32, 4 + TAU_LEN + 63] {
            let mut tampered = message.clone();
            tampered[at] ^= 1;
            assert_eq!(finish(&bob_rows, &tampered).err().unwrap().check(), "rvole_mu", "byte {at}");
        }
        assert!(finish(&bob_rows, &message).is_ok());
    }

    /// θ and μ depend on each input: none can be known before τ is fixed.
    #[test]
    fn the_challenge_follows_all_that_was_sent() {
        let of = |id: ExtensionId<'_>, transcript: [u8; 32], prefix: &[u8]| {
            let challenge = Challenge::new(&id, &transcript, prefix);
            let [theta0, theta1] = challenge.theta.map(|theta| *Secp256k1::encode_scalar(&theta));
            assert_ne!(theta0, theta1);
            (theta0, theta1, challenge.mu(&id, b"rows"))
        };
        let base = of(ID, SID, b"prefix");
        let others = [
            of(ID, SID, b"prefiy"),
            of(ID, [4; 32], b"prefix"),
            of(ExtensionId { item: 1, ..ID }, SID, b"prefix"),
            of(ExtensionId { direction: Direction::ClientReceives, ..ID }, SID, b"prefix"),
        ];
        for other in others {
            assert!(base.0 != other.0 && base.1 != other.1 && base.2 != other.2);
        }
        let other = of(ExtensionId { sid: &[4; 32], ..ID }, SID, b"prefix");
        assert_ne!(base.2, other.2);
    }
}
