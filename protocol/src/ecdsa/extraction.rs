//! What batches must never do, done: two items that share node 1's choices give its key share to the client. Tests only.

#![allow(clippy::unwrap_used, clippy::many_single_char_names)]
use super::*;
use crate::codec::Reader;
use crate::ecdsa::{message_scalar, r_x};
use crate::ot::SenderSeeds;
use crate::ot::extension::tests::seeds;
use crate::ot::extension::{EXTENSION_LEN, ExtensionMessage};
use crate::rvole::ANSWER_LEN;
use k256::elliptic_curve::Field;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// Both parties of a key.
struct Pair {
    client: (SenderSeeds, ReceiverSeeds),
    node1: (SenderSeeds, ReceiverSeeds),
    client_key: Scalar,
    node1_key: Scalar,
}

/// What the client has of an item when m3 has come: `a·χ1 + b·sk1 + c·sk1·χ1 = w`, from its own secrets and m3's ψ1 and w1.
struct View {
    a: Scalar,
    b: Scalar,
    c: Scalar,
    w: Scalar,
}

fn extension<'a>(message: &'a [u8], seeds: &SenderSeeds, sid: &'a [u8; 32], d: Direction, item: u16) -> Rows<'a> {
    let message = ExtensionMessage::read(&mut Reader::new(message, EXTENSION_LEN).unwrap()).unwrap();
    let id = ExtensionId { sid, direction: d, item, nonce: message.nonce };
    (message.check(seeds, &id, sid).unwrap(), id)
}

type Rows<'a> = (SenderRows, ExtensionId<'a>);

impl Pair {
    fn new(rng: &mut ChaCha20Rng) -> Self {
        let ((c_send, n_receive), (n_send, c_receive)) = (seeds(rng), seeds(rng));
        Self {
            client: (c_send, c_receive),
            node1: (n_send, n_receive),
            client_key: Secp256k1::random_scalar(rng),
            node1_key: Secp256k1::random_scalar(rng),
        }
    }

    /// One item, with the steps of `client.rs` and `node1.rs`. Node 1 draws its choices from `choices`, all else is fresh.
    fn item(&self, item: u16, choices: &mut ChaCha20Rng, rng: &mut ChaCha20Rng) -> View {
        let sid = &[item as u8; 32];
        let point = |key: &Scalar| ProjectivePoint::mul_by_generator(key);
        let receive = |bob: &Bob, message: &[u8], input: &ProjectivePoint, key: &Scalar| {
            let mut reader = Reader::new(message, ANSWER_LEN + 66).unwrap();
            let answer = Answer::read(&mut reader).unwrap();
            let gammas = [reader.point().unwrap(), reader.point().unwrap()];
            bob.receive(sid, sid, &answer, &gammas, input, &point(key)).unwrap()
        };
        // m1
        let (nonce1, mut m1) = (Nonce::new(rng), Vec::new());
        let bob1 = Bob::open(&self.node1.1, (sid, Direction::Node1Receives, item), sid, &mut m1, choices);
        // m2
        let (rows, id) = extension(&m1, &self.client.0, sid, Direction::Node1Receives, item);
        let (nonce2, mut m2, mut answer2) = (Nonce::new(rng), Vec::new(), Vec::new());
        let bob2 = Bob::open(&self.client.1, (sid, Direction::ClientReceives, item), sid, &mut m2, rng);
        let c2 = multiply(&rows, &id, &nonce2, &self.client_key, sid, &mut answer2, rng);
        let psi2 = Secp256k1::decode_scalar(&bob2.psi(&nonce2)).unwrap();
        // m3
        let d1 = receive(&bob1, &answer2, &nonce2.point, &self.client_key);
        let (rows, id) = extension(&m2, &self.node1.0, sid, Direction::ClientReceives, item);
        let (point1, mut answer1) = (nonce1.point, Vec::new());
        let c1 = multiply(&rows, &id, &nonce1, &self.node1_key, sid, &mut answer1, rng);
        let psi1 = Secp256k1::decode_scalar(&bob1.psi(&nonce1)).unwrap();
        let (m, r_x) = (message_scalar(&[item as u8 + 1; 32]), r_x(&(point1 + nonce2.point)).unwrap().0);
        let w1 = partial(nonce1, &self.node1_key, &psi2, &c1, &d1, &m, &r_x).w;
        // The client's equations.
        let d2 = receive(&bob2, &answer1, &point1, &self.node1_key);
        let ([_, c_v], [_, d_v]) = (c2.0, d2.0);
        View {
            a: m + r_x * self.client_key,
            b: r_x * (psi1 + nonce2.phi.expose()),
            c: r_x,
            w: w1 - m * psi1 + r_x * (c_v + d_v),
        }
    }

    /// Whether the attack on two items, as if χ1 were the same in both, finds node 1's key share.
    fn is_extracted(&self, one: &View, two: &View) -> bool {
        // Without the product: q·χ1 + s·sk1 = p. That into the first equation: a quadratic one in χ1.
        let p = one.w * two.c - two.w * one.c;
        let q = one.a * two.c - two.a * one.c;
        let s = one.b * two.c - two.b * one.c;
        let (a, b, c) = (-one.c * q, one.a * s - one.b * q + one.c * p, one.b * p - one.w * s);
        let Some(root): Option<Scalar> = (b.square() - Scalar::from(4u64) * a * c).sqrt().into() else { return false };
        let half = (a + a).invert().unwrap();
        let public = ProjectivePoint::mul_by_generator(&self.node1_key);
        [root, -root].into_iter().any(|root| {
            let key = (p - q * ((root - b) * half)) * s.invert().unwrap();
            ProjectivePoint::mul_by_generator(&key) == public
        })
    }
}

#[test]
fn two_items_with_the_same_choices_would_give_the_key_away() {
    let rng = &mut ChaCha20Rng::from_seed([1; 32]);
    let pair = Pair::new(rng);
    let same = || ChaCha20Rng::from_seed([2; 32]);
    let (one, two) = (pair.item(0, &mut same(), rng), pair.item(1, &mut same(), rng));
    assert!(pair.is_extracted(&one, &two));
}

#[test]
fn items_as_they_are_do_not() {
    let rng = &mut ChaCha20Rng::from_seed([1; 32]);
    let pair = Pair::new(rng);
    let mut own = ChaCha20Rng::from_seed([2; 32]);
    let items: Vec<_> = (0..8).map(|item| pair.item(item, &mut own, rng)).collect();
    for (at, one) in items.iter().enumerate() {
        assert!(items.iter().skip(at + 1).all(|two| !pair.is_extracted(one, two)));
    }
}
