//! The stored form of key shares.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod harness;

use curve25519_dalek::constants::EIGHT_TORSION;
use harness::{SECRET, TestCurve, run};
use num_bigint::BigUint;
use proptest::prelude::*;
use trefoil_protocol::curve::{Ed25519, Group, Secp256k1};
use trefoil_protocol::{Abort, KeyShare, Party};

fn refused(bytes: &[u8]) -> bool {
    matches!(KeyShare::from_bytes(bytes), Err(Abort::InvalidInput(_)))
}

#[test]
fn stored_shares_come_back_whole() {
    fn check<C: TestCurve>(lengths: [usize; 3]) {
        for (share, len) in run::<C>(4).iter().zip(lengths) {
            let bytes = share.to_bytes();
            assert_eq!(bytes.len(), len);
            let back = KeyShare::from_bytes(&bytes).unwrap();
            assert_eq!(back.to_bytes(), bytes);
            assert_eq!((back.curve(), back.party(), back.epoch()), (C::CURVE, share.party(), share.epoch()));
            assert_eq!((back.key_id(), back.transcript()), (share.key_id(), share.transcript()));
            assert_eq!((back.chain_code(), back.ot_id()), (share.chain_code(), share.ot_id()));
            assert_eq!(back.public_key(), share.public_key());
            for party in Party::ALL {
                assert_eq!(back.verifying_share(party), share.verifying_share(party));
            }
        }
    }
    check::<Secp256k1>([6_443, 6_443, 251]);
    check::<Ed25519>([247, 247, 247]);
}

#[test]
fn every_other_length_is_refused() {
    for bytes in [run::<Ed25519>(1), run::<Secp256k1>(1)].into_iter().flatten().map(|s| s.to_bytes().to_vec()) {
        for len in (0..300).chain([bytes.len() - 1]).filter(|len| *len < bytes.len()) {
            // 251 bytes of a secp256k1 share are the share without its OT state.
            assert_eq!(refused(&bytes[..len]), (len, bytes.len()) != (251, 6_443));
        }
        for extra in [1, 32, 6_193, 1 << 20] {
            let mut long = bytes.clone();
            long.resize(bytes.len() + extra, 0);
            assert!(refused(&long));
        }
    }
}

#[test]
fn a_share_contradicting_itself_is_refused() {
    fn check<C: TestCurve>() {
        let shares = run::<C>(1);
        for (index, share) in shares.iter().enumerate() {
            let bytes = share.to_bytes().to_vec();
            let change = |range: core::ops::Range<usize>, with: &[u8]| {
                let mut changed = bytes.clone();
                changed[range].copy_from_slice(with);
                changed
            };
            // Another version, curve, party (each of the others, none, too many).
            for (at, values) in [(0, [0u8, 2, 255]), (1, [0, 3, 255]), (2, [0, 4, 255])] {
                assert!(values.iter().all(|value| refused(&change(at..at + 1, &[*value]))));
            }
            for other in share.party().others() {
                assert!(refused(&change(2..3, &[other.point()])));
            }
            // Another party's secret, secret + 1, zero, the same secret in another encoding.
            let secret = C::to_integer(&bytes[SECRET]);
            let next = (&secret + 1u8) % C::order();
            for x in [harness::secret::<C>(&shares[(index + 1) % 3]), next, BigUint::ZERO] {
                assert!(refused(&change(SECRET, &C::from_integer(&x))));
            }
            assert!(refused(&change(SECRET, &[0xff; 32])));
            // Any of the four points exchanged for another good one: the generator, or its neighbour.
            let points = SECRET.end;
            let generator = C::encode_point(&C::mul_generator(&C::party_scalar(Party::Client)));
            for slot in 0..4 {
                let range = points + slot * C::POINT_LEN..points + (slot + 1) * C::POINT_LEN;
                assert!(refused(&change(range.clone(), generator.as_ref())), "slot {slot}");
                let neighbour = points + (slot + 1) % 4 * C::POINT_LEN;
                let neighbour = bytes[neighbour..neighbour + C::POINT_LEN].to_vec();
                assert!(refused(&change(range, &neighbour)), "slot {slot}");
            }
        }
    }
    check::<Secp256k1>();
    check::<Ed25519>();
}

/// All that a verifying share proves at once: shares of two keys do not mix, even where each fits its own.
#[test]
fn verifying_shares_of_another_key_are_refused() {
    let (a, b) = (run::<Ed25519>(1), run::<Ed25519>(2));
    let mut mixed = a[0].to_bytes().to_vec();
    mixed[SECRET.end..].copy_from_slice(&b[0].to_bytes()[SECRET.end..]);
    assert!(refused(&mixed));
    // Own verifying share kept, so that only the line is wrong.
    mixed[SECRET.end..SECRET.end + 32].copy_from_slice(&a[0].verifying_share(Party::Client));
    assert!(refused(&mixed));
}

/// A line through the own point whose other points are off the prime-order subgroup fits the secret, and every sum that is checked.
#[test]
fn a_line_outside_the_subgroup_is_refused() {
    for share in run::<Ed25519>(1) {
        let bytes = share.to_bytes();
        for torsion in &EIGHT_TORSION[1..] {
            let mut changed = bytes.to_vec();
            // The verifying shares are at 1, 2 and 3, the public key at 0.
            for (slot, at) in [1u64, 2, 3, 0].into_iter().enumerate() {
                let range = SECRET.end + 32 * slot..SECRET.end + 32 * (slot + 1);
                let point = Ed25519::decode_point(&bytes[range.clone()]).unwrap();
                let steps = (at + 8 - u64::from(share.party().point())) % 8;
                let moved = (0..steps).fold(point, |point, _| point + torsion);
                changed[range].copy_from_slice(&Ed25519::encode_point(&moved));
            }
            assert!(refused(&changed), "{:?}", share.party());
        }
    }
}

#[test]
fn points_that_are_not_canonical_are_refused() {
    let bytes = run::<Ed25519>(1)[2].to_bytes().to_vec();
    for bad in harness::bad_ed25519_points() {
        for slot in 0..4 {
            let mut changed = bytes.clone();
            changed[SECRET.end + slot * 32..][..32].copy_from_slice(&bad);
            assert!(refused(&changed));
        }
    }
}

#[test]
fn debug_tells_no_secret() {
    let share = &run::<Ed25519>(1)[0];
    let text = format!("{share:?}");
    let secret = &share.to_bytes()[SECRET];
    assert!(text.contains("Ed25519") && text.len() < 100);
    assert!(!text.contains(&format!("{:02x}{:02x}{:02x}", secret[0], secret[1], secret[2])));
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(refused(&bytes));
    }

    #[test]
    fn flipping_a_bit_of_keys_or_points_is_noticed(bit in 0usize..(247 - SECRET.start) * 8) {
        let mut bytes = run::<Ed25519>(1)[1].to_bytes().to_vec();
        bytes[SECRET.start + bit / 8] ^= 1 << (bit % 8);
        prop_assert!(refused(&bytes));
    }
}

/// Shares written by version 1 must be readable for ever, whatever becomes of the key generation that made these.
#[test]
fn version_1_is_frozen() {
    fn check<C: TestCurve>(fixture: &str, party: Party) {
        let fixture = fixture.trim_end();
        let bytes: Vec<u8> =
            (0..fixture.len() / 2).map(|i| u8::from_str_radix(&fixture[2 * i..2 * i + 2], 16).unwrap()).collect();
        let share = KeyShare::from_bytes(&bytes).unwrap();
        assert_eq!((share.curve(), share.party()), (C::CURVE, party));
        assert_eq!(share.to_bytes().to_vec(), bytes);
    }
    check::<Ed25519>(include_str!("fixtures/share-v1-ed25519-client.hex"), Party::Client);
    check::<Secp256k1>(include_str!("fixtures/share-v1-secp256k1-node2.hex"), Party::Node2);
}
