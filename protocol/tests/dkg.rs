//! Key generation between three honest parties, against an independent big-integer computation.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod harness;

use harness::{Round, TestCurve, interpolate, run, run_with, secret};
use num_bigint::BigUint;
use proptest::prelude::*;
use trefoil_protocol::curve::{Ed25519, Secp256k1};
use trefoil_protocol::{CurveId, KeyShare, Party};

const PAIRS: [(Party, Party); 3] =
    [(Party::Client, Party::Node1), (Party::Client, Party::Node2), (Party::Node1, Party::Node2)];

fn check<C: TestCurve>(shares: &[KeyShare; 3]) {
    let q = C::order();
    let secrets = shares.each_ref().map(secret::<C>);
    let of = |party: Party| (party, &secrets[usize::from(party.point()) - 1]);
    let key = interpolate(&q, of(Party::Client), of(Party::Node1));
    for (a, b) in PAIRS {
        assert_eq!(interpolate(&q, of(a), of(b)), key);
        // The library's coefficients against the oracle's.
        let scalar = |x: &BigUint| C::decode_scalar(&C::from_integer(x)).unwrap();
        let sum = C::lagrange(a, b).unwrap() * scalar(of(a).1) + C::lagrange(b, a).unwrap() * scalar(of(b).1);
        assert_eq!(C::to_integer(C::encode_scalar(&sum).as_ref()), key);
    }
    let times_g = |x: &BigUint| {
        let point = C::mul_generator(&C::decode_scalar(&C::from_integer(x)).unwrap());
        C::encode_point(&point).as_ref().to_vec()
    };
    for (share, party) in shares.iter().zip(Party::ALL) {
        assert_eq!((share.party(), share.curve(), share.epoch()), (party, C::CURVE, 0));
        assert_eq!(share.key_id(), [7; 16]);
        assert_eq!(share.public_key(), times_g(&key));
        assert_eq!(share.transcript(), shares[0].transcript());
        assert_eq!(share.chain_code(), shares[0].chain_code());
        for of_party in Party::ALL {
            assert_eq!(share.verifying_share(of_party), times_g(of(of_party).1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_two_shares_give_the_key(seed in any::<u32>()) {
        check::<Secp256k1>(&run::<Secp256k1>(seed.into()));
        check::<Ed25519>(&run::<Ed25519>(seed.into()));
    }
}

#[test]
fn the_same_randomness_gives_the_same_run() {
    fn record<C: TestCurve>(seed: u64) -> (Vec<Vec<u8>>, [Vec<u8>; 3]) {
        let mut messages = Vec::new();
        let shares = run_with::<C>(seed, &mut |_, _, _, m| messages.push(m.clone())).unwrap();
        (messages, shares.map(|s| s.to_bytes().to_vec()))
    }
    assert_eq!(record::<Secp256k1>(1), record::<Secp256k1>(1));
    assert_eq!(record::<Ed25519>(1), record::<Ed25519>(1));
    assert_ne!(record::<Ed25519>(1), record::<Ed25519>(2));
}

#[test]
fn messages_have_the_specified_lengths() {
    fn lengths<C: TestCurve>() -> Vec<(Round, Party, usize)> {
        let mut seen = Vec::new();
        run_with::<C>(3, &mut |round, from, _, m| seen.push((round, from, m.len()))).unwrap();
        seen
    }
    for (curve, seen) in [(CurveId::Secp256k1, lengths::<Secp256k1>()), (CurveId::Ed25519, lengths::<Ed25519>())] {
        assert_eq!(seen.len(), 5 * 6);
        for (round, from, len) in seen {
            let expected = match round {
                Round::Open | Round::Commit => 32,
                Round::Reveal if curve == CurveId::Secp256k1 => 227,
                Round::Reveal => 224,
                Round::Echo if from == Party::Client => 32,
                Round::Echo => 96,
                Round::Deal => 48,
            };
            assert_eq!(len, expected, "{curve} {round:?}");
        }
    }
}
