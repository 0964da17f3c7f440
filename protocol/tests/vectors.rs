//! Vectors made by others: RFC 9591 appendix E.1, and Wycheproof on the verification that every signature passes before it
//! is released.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, missing_docs)]

use frost_ed25519 as frost;
use rand_core::{CryptoRng, Error, RngCore, SeedableRng};
use std::collections::BTreeMap;
use trefoil_protocol::curve::{Ed25519, Group};
use trefoil_protocol::ecdsa::Signature;
use trefoil_protocol::frost::{FrostClient, node_sign, verify};
use trefoil_protocol::{KeyShare, Party};
use wycheproof::TestResult;

fn hex<const N: usize>(text: &str) -> [u8; N] {
    let bytes: Vec<u8> =
        (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Yields exactly these bytes.
struct Fixed(Vec<u8>);

impl RngCore for Fixed {
    fn next_u32(&mut self) -> u32 {
        panic!("only bytes are drawn")
    }
    fn next_u64(&mut self) -> u64 {
        panic!("only bytes are drawn")
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.copy_from_slice(&self.0.drain(..dest.len()).collect::<Vec<_>>());
    }
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for Fixed {}

// RFC 9591, appendix E.1: FROST(Ed25519, SHA-512), 2 of 3.
const SECRET: &str = "7b1c33d3f5291d85de664833beb1ad469f7fb6025a0ec78b3a790c6e13a98304";
const PUBLIC: &str = "15d21ccd7ee42959562fc8aa63224c8851fb3ec85a3faf66040d380fb9738673";
const MESSAGE: &[u8] = b"test";
const SHARES: [&str; 3] = [
    "929dcc590407aae7d388761cddb0c0db6f5627aea8e217f4a033f2ec83d93509",
    "a91e66e012e4364ac9aaa405fcafd370402d9859f7b6685c07eed76bf409e80d",
    "d3cb090a075eb154e82fdb4b3cb507f110040905468bb9c46da8bdea643a9a02",
];
/// Of signers 1 and 3: randomness of both nonces, both commitments, signature share.
const SIGNERS: [(u16, [&str; 2], [&str; 2], &str); 2] = [
    (
        1,
        [
            "06894e04ee4aceec8619d5f6a0a180e2f47194d2ac306cba586b555e7c48d765",
            "40d6f879ff22e22409f7d808fed81f37118e7d3e4af71c0f44c60207553bcbce",
        ],
        [
            "9b116f12589591a7e23fe8048059ab10ab48e67739e7a2fb3890f61a7999478c",
            "c39b66b7dfccb122da24f13587f9a08c4347cae70046ca15169adf90ba65854d",
        ],
        "60997f0142e43e8005027fe5ab7447dac00d22c2d7ddd9571a02613ba7d81c08",
    ),
    (
        3,
        [
            "fa5d950626782aade9e33fa781376d4888c2d1de7c37518bc248eb818ed0cdde",
            "7459a4d14ded0e365b085271be8dc6600d5b88f3978a2174297ffa32001a5afc",
        ],
        [
            "e679a2a971748ccfaabead4dbe8ac1def61275c186c79d471e1e45091ad1e687",
            "b2a942478453fabb6bd3181c56ba657413447b4136e1daea2484d396d1a516b3",
        ],
        "79390e78bc59699c7af831f8f5fb478ec871a85f561a8641b5670ac4443f720f",
    ),
];
const SIGNATURE: &str = "154fb694ee7fcb37bf2381d94488c2a84b03b3352ad085feca81ad26d45852b7\
                         ecfe971ce4da95c4a95db93ac376b053897fca212ef85f99cf696bffeb178f07";

fn randomness(of: usize) -> Fixed {
    Fixed(SIGNERS[of].1.iter().flat_map(|text| hex::<32>(text)).collect())
}

/// The RFC's shares as ours: signer 1 is the client, 2 node 1, 3 node 2.
fn rfc_share(party: Party) -> KeyShare {
    let times_g =
        |text: &str| Ed25519::encode_point(&Ed25519::mul_generator(&Ed25519::decode_scalar(&hex::<32>(text)).unwrap()));
    assert_eq!(times_g(SECRET), hex::<32>(PUBLIC));
    let mut stored = vec![1, 2, party.point()];
    stored.extend([0; 16 + 4 + 32 + 32]);
    stored.extend(hex::<32>(SHARES[usize::from(party.point()) - 1]));
    for share in SHARES {
        stored.extend(times_g(share));
    }
    stored.extend(hex::<32>(PUBLIC));
    KeyShare::from_bytes(&stored).unwrap()
}

/// The RFC's key in our shares signs like any other. (The RFC signs with 1 and 3, we with 1 and 2.)
#[test]
fn rfc9591_key_in_our_shares() {
    let (client, node1) = (rfc_share(Party::Client), rfc_share(Party::Node1));
    let (session, commitments) = FrostClient::start(&mut rand_chacha::ChaCha20Rng::seed_from_u64(1));
    let (theirs, z1, _) = node_sign(&node1, MESSAGE, &commitments, &mut randomness(1)).unwrap();
    let signature = session.finish(&client, MESSAGE, &theirs, &z1).unwrap();
    verify(&hex(PUBLIC), MESSAGE, &signature).unwrap();
}

/// The whole vector (signers 1 and 3) through the library as we depend on it.
#[test]
fn rfc9591_vector() {
    let identifier = |id: u16| frost::Identifier::try_from(id).unwrap();
    let key = frost::VerifyingKey::deserialize(&hex::<32>(PUBLIC)).unwrap();
    let packages = SIGNERS.map(|(id, ..)| {
        let share = frost::keys::SigningShare::deserialize(&hex::<32>(SHARES[usize::from(id) - 1])).unwrap();
        frost::keys::KeyPackage::new(identifier(id), share, share.into(), key, 2)
    });
    let nonces = [0, 1].map(|i| frost::round1::commit(packages[i].signing_share(), &mut randomness(i)));
    for ((_, commitments), (_, _, expected, _)) in nonces.iter().zip(SIGNERS) {
        assert_eq!(commitments.hiding().serialize().unwrap(), hex::<32>(expected[0]));
        assert_eq!(commitments.binding().serialize().unwrap(), hex::<32>(expected[1]));
    }
    let commitments = BTreeMap::from([(identifier(1), nonces[0].1), (identifier(3), nonces[1].1)]);
    let package = frost::SigningPackage::new(commitments, MESSAGE);
    let shares: BTreeMap<_, _> = [0, 1]
        .map(|i| {
            let share = frost::round2::sign(&package, &nonces[i].0, &packages[i]).unwrap();
            assert_eq!(share.serialize(), hex::<32>(SIGNERS[i].3));
            (identifier(SIGNERS[i].0), share)
        })
        .into();
    let verifying = packages.iter().map(|p| (*p.identifier(), *p.verifying_share())).collect();
    let public = frost::keys::PublicKeyPackage::new(verifying, key, Some(2));
    let signature = frost::aggregate(&package, &shares, &public).unwrap().serialize().unwrap();
    assert_eq!(signature, hex::<64>(SIGNATURE));
    verify(&hex(PUBLIC), MESSAGE, &hex(SIGNATURE)).unwrap();
}

#[test]
fn wycheproof_ed25519() {
    use wycheproof::eddsa::{TestName, TestSet};
    let mut seen = [0, 0];
    for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
        let key: [u8; 32] = group.key.pk.as_slice().try_into().unwrap();
        for test in group.tests {
            let verified = <&[u8; 64]>::try_from(test.sig.as_slice()).is_ok_and(|s| verify(&key, &test.msg, s).is_ok());
            assert_eq!(verified, test.result == TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            seen[usize::from(verified)] += 1;
        }
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
}

/// Verified if some recovery id makes it so: the vectors have none.
fn verified(key: &[u8], digest: &[u8; 32], signature: &[u8]) -> bool {
    <[u8; 64]>::try_from(signature)
        .is_ok_and(|bytes| (0..4).any(|recovery_id| Signature { bytes, recovery_id }.verify(key, digest).is_ok()))
}

#[test]
fn wycheproof_ecdsa_secp256k1() {
    use sha2::{Digest, Sha256};
    use wycheproof::ecdsa::{TestName, TestSet};
    let half = {
        let order =
            num_bigint::BigUint::parse_bytes(b"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16);
        order.unwrap() / 2u8
    };
    let mut seen = [0, 0];
    // Fixed-length signatures (r ‖ s), as ours are.
    for group in TestSet::load(TestName::EcdsaSecp256k1Sha256P1363).unwrap().test_groups {
        for test in group.tests {
            let digest = Sha256::digest(&test.msg).into();
            let low = test.sig.len() == 64 && num_bigint::BigUint::from_bytes_be(&test.sig[32..]) <= half;
            let expected = test.result == TestResult::Valid && low;
            assert_eq!(verified(&group.key.key, &digest, &test.sig), expected, "{}: {}", test.tc_id, test.comment);
            seen[usize::from(expected)] += 1;
        }
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
    // The set with Bitcoin's rule of low s comes in DER.
    let mut seen = [0, 0];
    for group in TestSet::load(TestName::EcdsaSecp256k1Sha256Bitcoin).unwrap().test_groups {
        for test in group.tests {
            let digest = Sha256::digest(&test.msg).into();
            let fixed = k256::ecdsa::Signature::from_der(&test.sig).map(|s| s.to_bytes().to_vec()).unwrap_or_default();
            let expected = test.result == TestResult::Valid;
            assert_eq!(verified(&group.key.key, &digest, &fixed), expected, "{}: {}", test.tc_id, test.comment);
            seen[usize::from(expected)] += 1;
        }
    }
    assert!(seen[0] > 50 && seen[1] > 50, "{seen:?}");
}
