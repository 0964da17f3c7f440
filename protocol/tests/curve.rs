//! The two groups against big-integer arithmetic, and what their parsers refuse.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod harness;

use harness::{TestCurve, bad_ed25519_points, bad_secp256k1_points};
use num_bigint::BigUint;
use proptest::prelude::*;
use trefoil_protocol::curve::{Ed25519, Group, Secp256k1};
use trefoil_protocol::{Abort, Party};

fn decode<C: TestCurve>(integer: &BigUint) -> C::Scalar {
    C::decode_scalar(&C::from_integer(integer)).unwrap()
}

fn encode<C: TestCurve>(scalar: &C::Scalar) -> BigUint {
    C::to_integer(C::encode_scalar(scalar).as_ref())
}

fn scalars_follow_the_oracle<C: TestCurve>(a: &[u8; 64], b: &[u8; 64]) {
    let q = C::order();
    let (x, y) = (C::to_integer(a) % &q, C::to_integer(b) % &q);
    let (s, t) = (C::reduce_wide(a), C::reduce_wide(b));
    assert_eq!((encode::<C>(&s), encode::<C>(&t)), (x.clone(), y.clone()));
    assert_eq!(encode::<C>(&(s + t)), (&x + &y) % &q);
    assert_eq!(encode::<C>(&(s - t)), (&q + &x - &y) % &q);
    assert_eq!(encode::<C>(&(s * t)), (&x * &y) % &q);
    assert_eq!(encode::<C>(&-s), (&q - &x) % &q);
    assert_eq!(C::invert(&s).map(|i| encode::<C>(&i)), (x != BigUint::ZERO).then(|| x.modpow(&(&q - 2u8), &q)));
    // Scalars act on points as integers do.
    let point = C::mul_generator(&s);
    assert!(point * t == C::mul_generator(&(s * t)));
    assert!(point + C::mul_generator(&t) == C::mul_generator(&(s + t)));
    let encoded = C::encode_point(&point);
    assert_eq!(encoded.as_ref().len(), C::POINT_LEN);
    assert!(C::decode_point(encoded.as_ref()).unwrap() == point);
}

/// A line through two of the parties' points meets zero where the oracle says.
fn lagrange_follows_the_oracle<C: TestCurve>(a: &[u8; 64], b: &[u8; 64]) {
    let q = C::order();
    let (constant, slope) = (C::to_integer(a) % &q, C::to_integer(b) % &q);
    let f = |p: Party| (&constant + &slope * p.point()) % &q;
    for i in Party::ALL {
        for j in i.others() {
            let (li, lj) = (C::lagrange(i, j).unwrap(), C::lagrange(j, i).unwrap());
            let zero = encode::<C>(&(li * decode::<C>(&f(i)) + lj * decode::<C>(&f(j))));
            assert_eq!(zero, constant);
            assert_eq!(harness::interpolate(&q, (i, &f(i)), (j, &f(j))), constant);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn arithmetic(a in prop::array::uniform32(any::<[u8; 2]>()), b in prop::array::uniform32(any::<[u8; 2]>())) {
        let (a, b): ([u8; 64], [u8; 64]) =
            (a.as_flattened().try_into().unwrap(), b.as_flattened().try_into().unwrap());
        scalars_follow_the_oracle::<Secp256k1>(&a, &b);
        scalars_follow_the_oracle::<Ed25519>(&a, &b);
        lagrange_follows_the_oracle::<Secp256k1>(&a, &b);
        lagrange_follows_the_oracle::<Ed25519>(&a, &b);
    }
}

#[test]
fn edges_of_the_wide_reduction() {
    fn edges<C: TestCurve>() {
        let q = C::order();
        let wide = |integer: BigUint| {
            let mut bytes = C::from_integer(&(&integer % (BigUint::from(1u8) << 256))).to_vec();
            let high = C::from_integer(&(integer >> 256));
            let little = C::to_integer(&[1, 0]) == BigUint::from(1u8);
            if little {
                bytes.extend(high)
            } else {
                bytes.splice(0..0, high);
            }
            bytes.try_into().unwrap()
        };
        let most = (BigUint::from(1u8) << 512) - 1u8;
        for value in [BigUint::ZERO, BigUint::from(1u8), &q - 1u8, q.clone(), &q + 1u8, &q * &q - 1u8, most] {
            assert_eq!(encode::<C>(&C::reduce_wide(&wide(value.clone()))), value % &q);
        }
    }
    edges::<Secp256k1>();
    edges::<Ed25519>();
}

#[test]
fn lagrange_coefficients_of_the_signing_pair() {
    fn check<C: TestCurve>() {
        let q = C::order();
        let lambda = |i, j| encode::<C>(&C::lagrange(i, j).unwrap());
        assert_eq!(lambda(Party::Client, Party::Node1), BigUint::from(2u8));
        assert_eq!(lambda(Party::Node1, Party::Client), &q - 1u8);
        assert_eq!(lambda(Party::Node1, Party::Node2), BigUint::from(3u8));
        assert_eq!(lambda(Party::Node2, Party::Node1), &q - 2u8);
        for party in Party::ALL {
            assert_eq!(encode::<C>(&C::party_scalar(party)), BigUint::from(party.point()));
            assert!(matches!(C::lagrange(party, party), Err(Abort::InvalidInput(_))));
        }
    }
    check::<Secp256k1>();
    check::<Ed25519>();
}

#[test]
fn parties_and_points_correspond_one_to_one() {
    assert_eq!(Party::from_point(0), None);
    assert!((4..=255).all(|point| Party::from_point(point).is_none()));
    for (party, point) in Party::ALL.into_iter().zip(1..) {
        assert_eq!((party.point(), Party::from_point(point)), (point, Some(party)));
        assert!(!party.others().contains(&party) && party.others()[0] < party.others()[1]);
    }
}

#[test]
fn scalars_have_one_encoding() {
    fn check<C: TestCurve>() {
        let q = C::order();
        for refused in [q.clone(), &q + 1u8, (BigUint::from(1u8) << 256) - 1u8] {
            assert!(C::decode_scalar(&C::from_integer(&refused)).is_none());
        }
        assert_eq!(encode::<C>(&decode::<C>(&(&q - 1u8))), q - 1u8);
        assert_eq!(encode::<C>(&decode::<C>(&BigUint::ZERO)), BigUint::ZERO);
        for len in (0..100).filter(|len| *len != 32) {
            assert!(C::decode_scalar(&vec![0; len]).is_none());
        }
    }
    check::<Secp256k1>();
    check::<Ed25519>();
}

#[test]
fn points_have_one_encoding() {
    fn check<C: TestCurve>(bad: Vec<Vec<u8>>) {
        for encoding in bad {
            assert!(C::decode_point(&encoding).is_none(), "{encoding:02x?}");
        }
        let good = C::encode_point(&C::mul_generator(&decode::<C>(&BigUint::from(5u8))));
        assert!(C::decode_point(good.as_ref()).is_some());
        let mut long = good.as_ref().to_vec();
        long.extend([0; 100]);
        for len in (0..long.len()).filter(|len| *len != C::POINT_LEN) {
            assert!(C::decode_point(&long[..len]).is_none());
        }
        let zero = decode::<C>(&BigUint::ZERO);
        assert!(C::is_identity(&C::mul_generator(&zero)));
        assert!(C::decode_point(C::encode_point(&C::mul_generator(&zero)).as_ref()).is_none());
    }
    check::<Secp256k1>(bad_secp256k1_points());
    check::<Ed25519>(bad_ed25519_points().into_iter().map(Vec::from).collect());
    // The uncompressed form of a good point.
    let point = Secp256k1::mul_generator(&5u64.into());
    let uncompressed = k256::PublicKey::from_affine(point.to_affine()).unwrap();
    use k256::elliptic_curve::sec1::ToSec1Point;
    assert!(Secp256k1::decode_point(uncompressed.to_sec1_point(false).as_bytes()).is_none());
}
