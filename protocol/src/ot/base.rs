//! Base OT: ePrint 2021/682, figure 3, with the Masny-Rindal POPF on ristretto255 (docs/protocol.md, section 2).

use super::{BASE_OTS, Direction, ReceiverSeeds, SEED_LEN, SenderSeeds, bits};
use crate::error::{Abort, Result};
use crate::transcript::{Tag, hash, hash_wide};
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoBasepointTable, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use rand_core::{CryptoRng, RngCore};
use subtle::{Choice, ConditionallySelectable};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of the base-OT receiver's message: 128 pairs of points.
pub const POINTS_LEN: usize = BASE_OTS * 64;
/// Bytes of the base-OT sender's message.
pub const POINT_LEN: usize = 32;

/// `P_ot`: binds session and direction into every hash of one base OT.
fn prefix(sid: &[u8; 32], direction: Direction) -> [u8; 32] {
    hash(Tag::OT_BASE, &[sid, &[direction.byte()]])
}

/// F(i, x, S): the POPF's random oracle into the group.
fn popf(prefix: &[u8; 32], index: u16, branch: u8, point: &[u8; 32]) -> RistrettoPoint {
    RistrettoPoint::from_uniform_bytes(&hash_wide(Tag::OT_POPF, &[prefix, &index.to_be_bytes(), &[branch], point]))
}

struct KeyInputs<'a> {
    prefix: &'a [u8; 32],
    index: u16,
    big_a: &'a [u8; 32],
    pair: &'a [[u8; 32]; 2],
}

impl KeyInputs<'_> {
    fn key(&self, branch: u8, shared: &RistrettoPoint) -> [u8; SEED_LEN] {
        let shared = Zeroizing::new(shared.compress().to_bytes());
        let [s0, s1] = self.pair;
        let index = self.index.to_be_bytes();
        let digest =
            Zeroizing::new(hash(Tag::OT_KEY, &[self.prefix, &index, &[branch], self.big_a, s0, s1, shared.as_slice()]));
        let mut key = [0; SEED_LEN];
        key.copy_from_slice(digest.first_chunk::<SEED_LEN>().unwrap_or(&[0; SEED_LEN]));
        key
    }
}

fn read_point(bytes: &[u8; 32], culprit: crate::Party) -> Result<RistrettoPoint> {
    CompressedRistretto(*bytes)
        .decompress()
        .filter(|point| !point.is_identity())
        .ok_or(Abort::peer(culprit, "ot_base_point"))
}

/// The base OT's sender, which becomes the extension's receiver.
pub struct BaseSender {
    direction: Direction,
    prefix: [u8; 32],
    a: Zeroizing<Scalar>,
    big_a: [u8; 32],
}

impl BaseSender {
    /// Makes the one sender key of this direction; the message is A, 32 bytes.
    pub fn new(sid: &[u8; 32], direction: Direction, rng: &mut (impl RngCore + CryptoRng)) -> (Self, [u8; POINT_LEN]) {
        let a = Zeroizing::new(Scalar::random(rng));
        let big_a = RistrettoPoint::mul_base(&a).compress().to_bytes();
        (Self { direction, prefix: prefix(sid, direction), a, big_a }, big_a)
    }

    /// Both seeds of each of the 128 OTs, from the receiver's 8,192 bytes.
    ///
    /// # Errors
    /// `ot_base_length`, `ot_base_point`: the peer's message is not 256 canonical points other than the identity.
    pub fn finish(self, points: &[u8]) -> Result<ReceiverSeeds> {
        let culprit = self.direction.sender();
        let (pairs, rest) = points.as_chunks::<64>();
        if pairs.len() != BASE_OTS || !rest.is_empty() {
            return Err(Abort::peer(culprit, "ot_base_length"));
        }
        let mut seeds = ReceiverSeeds { keys: Box::new([[[0; SEED_LEN]; 2]; BASE_OTS]) };
        for ((index, pair), keys) in (0u16..).zip(pairs).zip(seeds.keys.iter_mut()) {
            let pair = split(pair);
            let [s0, s1] = pair;
            let inputs = KeyInputs { prefix: &self.prefix, index, big_a: &self.big_a, pair: &pair };
            let (p0, p1) = (read_point(&s0, culprit)?, read_point(&s1, culprit)?);
            let y0 = p0 + popf(&self.prefix, index, 0, &s1);
            let y1 = p1 + popf(&self.prefix, index, 1, &s0);
            if y0.is_identity() || y1.is_identity() {
                return Err(Abort::peer(culprit, "ot_base_point"));
            }
            *keys = [inputs.key(0, &(*self.a * y0)), inputs.key(1, &(*self.a * y1))];
        }
        Ok(seeds)
    }
}

/// The base OT's receiver, which becomes the extension's sender with Δ as its choice bits.
pub struct BaseReceiver {
    direction: Direction,
    prefix: [u8; 32],
    seeds: SenderSeeds,
    b: Zeroizing<Vec<Scalar>>,
    points: Vec<[[u8; 32]; 2]>,
}

impl BaseReceiver {
    /// Chooses Δ and makes the 8,192-byte message.
    pub fn new(sid: &[u8; 32], direction: Direction, rng: &mut (impl RngCore + CryptoRng)) -> (Self, Vec<u8>) {
        let prefix = prefix(sid, direction);
        let mut seeds = SenderSeeds { delta: [0; SEED_LEN], keys: Box::new([[0; SEED_LEN]; BASE_OTS]) };
        rng.fill_bytes(&mut seeds.delta);
        let mut b = Zeroizing::new(Vec::with_capacity(BASE_OTS));
        let mut points = Vec::with_capacity(BASE_OTS);
        for (index, choice) in (0u16..).zip(bits(&seeds.delta)) {
            let secret = Scalar::random(rng);
            let mut uniform = [0; 64];
            rng.fill_bytes(&mut uniform);
            let other = RistrettoPoint::from_uniform_bytes(&uniform).compress().to_bytes();
            // Which of the two oracles is subtracted depends on the secret choice: compute with the choice as data.
            let mask = popf(&prefix, index, choice.unwrap_u8(), &other);
            let chosen = (RistrettoPoint::mul_base(&secret) - mask).compress().to_bytes();
            uniform.zeroize();
            b.push(secret);
            points.push([select(&chosen, &other, choice), select(&other, &chosen, choice)]);
        }
        let message = points.as_flattened().as_flattened().to_vec();
        (Self { direction, prefix, seeds, b, points }, message)
    }

    /// The chosen seed of each OT, from the sender's A.
    ///
    /// # Errors
    /// `ot_base_point`: A is not a canonical point other than the identity.
    pub fn finish(mut self, big_a: &[u8; POINT_LEN]) -> Result<SenderSeeds> {
        let point = read_point(big_a, self.direction.receiver())?;
        let table = RistrettoBasepointTable::create(&point);
        let SenderSeeds { delta, keys } = &mut self.seeds;
        let each = (0u16..).zip(bits(delta.as_slice())).zip(self.b.iter()).zip(&self.points).zip(keys.iter_mut());
        for ((((index, choice), b), pair), key) in each {
            let inputs = KeyInputs { prefix: &self.prefix, index, big_a, pair };
            *key = inputs.key(choice.unwrap_u8(), &(b * &table));
        }
        Ok(self.seeds)
    }
}

/// `if_zero` or `if_one`, without a branch.
fn select(if_zero: &[u8; 32], if_one: &[u8; 32], choice: Choice) -> [u8; 32] {
    let mut out = [0; 32];
    for ((out, a), b) in out.iter_mut().zip(if_zero).zip(if_one) {
        *out = u8::conditional_select(a, b, choice);
    }
    out
}

fn split(pair: &[u8; 64]) -> [[u8; 32]; 2] {
    let (mut first, mut second) = ([0; 32], [0; 32]);
    let (a, b) = pair.split_at(32);
    first.copy_from_slice(a);
    second.copy_from_slice(b);
    [first, second]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    /// S_x = -F(i, x, S_{1-x}) makes the shared point the identity: a key that everybody knows.
    #[test]
    fn a_pair_that_cancels_the_oracle_is_refused() {
        for branch in [0usize, 1] {
            let mut rng = ChaCha20Rng::from_seed([1; 32]);
            let sid = [3; 32];
            let (sender, _) = BaseSender::new(&sid, Direction::ClientReceives, &mut rng);
            let (_, mut points) = BaseReceiver::new(&sid, Direction::ClientReceives, &mut rng);
            let pair = &mut points[5 * 64..6 * 64];
            let other: [u8; 32] = pair[(1 - branch) * 32..][..32].try_into().unwrap();
            let oracle = popf(&prefix(&sid, Direction::ClientReceives), 5, branch as u8, &other);
            pair[branch * 32..][..32].copy_from_slice(&(-oracle).compress().to_bytes());
            let refused = sender.finish(&points).err().unwrap();
            assert_eq!(refused, Abort::peer(crate::Party::Node1, "ot_base_point"));
        }
    }

    #[test]
    fn keys_are_bound_to_all_that_was_exchanged() {
        let point = RistrettoPoint::mul_base(&Scalar::from(9u64));
        let mut keys = std::collections::HashSet::new();
        let mut oracles = std::collections::HashSet::new();
        for sid in [[1; 32], [2; 32]] {
            for direction in [Direction::ClientReceives, Direction::Node1Receives] {
                let prefix = prefix(&sid, direction);
                for index in [0, 1] {
                    oracles.extend([0, 1].map(|branch| popf(&prefix, index, branch, &[4; 32]).compress().to_bytes()));
                    for pair in [[[4; 32], [5; 32]], [[5; 32], [4; 32]], [[4; 32], [6; 32]]] {
                        for big_a in [[7; 32], [8; 32]] {
                            let inputs = KeyInputs { prefix: &prefix, index, big_a: &big_a, pair: &pair };
                            keys.extend([inputs.key(0, &point), inputs.key(1, &point), inputs.key(0, &-point)]);
                        }
                    }
                }
            }
        }
        assert_eq!(keys.len(), 2 * 2 * 2 * 3 * 2 * 3);
        assert_eq!(oracles.len(), 2 * 2 * 2 * 2);
    }
}
