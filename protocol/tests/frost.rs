//! EdDSA signing between the client and node 1.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod harness;

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use ed25519_dalek::{Signature, VerifyingKey};
use frost_ed25519 as library;
use harness::{rng, run};
use rand_core::RngCore;
use std::collections::BTreeMap;
use trefoil_protocol::curve::{Ed25519, Group, Secp256k1};
use trefoil_protocol::frost::{FrostClient, node_sign};
use trefoil_protocol::{Abort, KeyShare, Party};

fn sign(client: &KeyShare, node1: &KeyShare, message: &[u8], seed: u64) -> [u8; 64] {
    let (session, commitments) = FrostClient::start(&mut rng(seed));
    let (theirs, z1, _) = node_sign(node1, message, &commitments, &mut rng(seed + 1)).unwrap();
    session.finish(client, message, &theirs, &z1).unwrap()
}

/// Every key is fresh, every message different: empty ones, ones that begin with zeros, long ones.
#[test]
fn ten_thousand_fresh_keys_sign_for_anyone_to_verify() {
    let work = |range: std::ops::Range<u64>| {
        for seed in range {
            let [client, node1, _] = run::<Ed25519>(seed);
            let mut message = vec![0u8; (seed % 97) as usize];
            let zeros = message.len().min((seed % 5) as usize);
            rng(seed).fill_bytes(&mut message[zeros..]);
            let signature = sign(&client, &node1, &message, seed);
            let key = VerifyingKey::from_bytes(&client.public_key().try_into().unwrap()).unwrap();
            key.verify_strict(&message, &Signature::from_bytes(&signature)).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(0..5_000));
        scope.spawn(|| work(5_000..10_000));
    });
}

/// The same shares and randomness given to `frost-ed25519`: the same commitments, signature share and signature, byte for byte.
#[test]
fn every_value_is_the_librarys() {
    let identifier = |id: u16| library::Identifier::try_from(id).unwrap();
    for seed in 0..30 {
        let [client, node1, _] = run::<Ed25519>(seed);
        let message = vec![seed as u8; seed as usize * 7];
        let (session, ours) = FrostClient::start(&mut rng(seed));
        let (theirs, z1, _) = node_sign(&node1, &message, &ours, &mut rng(seed + 100)).unwrap();
        let signature = session.finish(&client, &message, &theirs, &z1).unwrap();

        let key = library::VerifyingKey::deserialize(&client.public_key()).unwrap();
        let [one, two] = [&client, &node1].map(|share| {
            let secret = library::keys::SigningShare::deserialize(&share.to_bytes()[87..119]).unwrap();
            let identifier = identifier(share.party().point().into());
            library::keys::KeyPackage::new(identifier, secret, secret.into(), key, 2)
        });
        let mut draw = rng(seed);
        let hedge = library::keys::SigningShare::deserialize(&Ed25519::random_scalar(&mut draw).to_bytes()).unwrap();
        let nonces = [
            library::round1::commit(&hedge, &mut draw),
            library::round1::commit(two.signing_share(), &mut rng(seed + 100)),
        ];
        for ((_, commitments), bytes) in nonces.iter().zip([ours, theirs]) {
            let points = [commitments.hiding(), commitments.binding()].map(|point| point.serialize().unwrap());
            assert_eq!(points.concat(), bytes);
        }
        let commitments = BTreeMap::from([(identifier(1), nonces[0].1), (identifier(2), nonces[1].1)]);
        let package = library::SigningPackage::new(commitments, &message);
        let shares = [(&one, &nonces[0].0), (&two, &nonces[1].0)]
            .map(|(key, nonces)| (*key.identifier(), library::round2::sign(&package, nonces, key).unwrap()));
        assert_eq!(shares[1].1.serialize(), z1);
        let verifying = [&one, &two].map(|key| (*key.identifier(), *key.verifying_share())).into();
        let public = library::keys::PublicKeyPackage::new(verifying, key, Some(2));
        let expected = library::aggregate(&package, &shares.into(), &public).unwrap().serialize().unwrap();
        assert_eq!(signature.as_slice(), expected);
    }
}

#[test]
fn the_same_randomness_gives_the_same_signature() {
    let [client, node1, _] = run::<Ed25519>(1);
    assert_eq!(sign(&client, &node1, b"message", 5), sign(&client, &node1, b"message", 5));
    assert_ne!(sign(&client, &node1, b"message", 5), sign(&client, &node1, b"message", 6));
}

#[test]
fn shares_of_others_and_of_other_curves_are_refused() {
    let [client, node1, node2] = run::<Ed25519>(1);
    let [ecdsa_client, ecdsa_node1, _] = run::<Secp256k1>(1);
    let (_, commitments) = FrostClient::start(&mut rng(1));
    let (theirs, z1, _) = node_sign(&node1, b"", &commitments, &mut rng(1)).unwrap();
    for share in [&node1, &node2, &ecdsa_client] {
        let (session, _) = FrostClient::start(&mut rng(1));
        assert!(matches!(session.finish(share, b"", &theirs, &z1), Err(Abort::InvalidInput(_))));
    }
    for share in [&client, &node2, &ecdsa_node1] {
        assert!(matches!(node_sign(share, b"", &commitments, &mut rng(1)), Err(Abort::InvalidInput(_))));
    }
}

#[test]
fn what_node1_cannot_have_sent_is_refused_and_named() {
    let [client, node1, _] = run::<Ed25519>(1);
    let attempt = |tamper: &dyn Fn(&mut [u8; 64], &mut [u8; 32])| {
        let (session, commitments) = FrostClient::start(&mut rng(2));
        let (mut theirs, mut z1, _) = node_sign(&node1, b"message", &commitments, &mut rng(3)).unwrap();
        tamper(&mut theirs, &mut z1);
        session.finish(&client, b"message", &theirs, &z1)
    };
    let refused = |check| Err(Abort::Peer { culprit: Party::Node1, ban: false, check });
    assert!(attempt(&|_, _| {}).is_ok());
    assert_eq!(attempt(&|_, z| z[0] ^= 1), refused("frost_share"));
    assert_eq!(attempt(&|_, z| *z = [0xff; 32]), refused("frost_share"));
    assert_eq!(attempt(&|c, _| c.rotate_left(32)), refused("frost_share"));
    // The identity, small order, other encodings and what is off the curve, as either commitment. Points with a part of small order are
    // excluded by the signature's equation; src/frost.rs tests which.
    for bad in harness::bad_ed25519_points() {
        let canonical = |point: &EdwardsPoint| point.compress().to_bytes() == bad && !point.is_small_order();
        let point = CompressedEdwardsY(bad).decompress().filter(canonical);
        let check = if point.is_some() { "frost_share" } else { "frost_commitments" };
        assert_eq!(attempt(&|c, _| c[..32].copy_from_slice(&bad)), refused(check));
        assert_eq!(attempt(&|c, _| c[32..].copy_from_slice(&bad)), refused(check));
    }
}

#[test]
fn node1_refuses_the_clients_bad_commitments() {
    let [_, node1, _] = run::<Ed25519>(1);
    let (_, good) = FrostClient::start(&mut rng(2));
    for bad in harness::bad_ed25519_points() {
        for half in [0..32, 32..64] {
            let mut commitments = good;
            commitments[half].copy_from_slice(&bad);
            let refused = Abort::Peer { culprit: Party::Client, ban: false, check: "frost_commitments" };
            assert_eq!(node_sign(&node1, b"m", &commitments, &mut rng(3)).err(), Some(refused));
        }
    }
}

#[test]
fn node1_signs_only_the_message_it_was_given() {
    let [client, node1, _] = run::<Ed25519>(1);
    let (session, commitments) = FrostClient::start(&mut rng(2));
    let (theirs, z1, _) = node_sign(&node1, b"one", &commitments, &mut rng(3)).unwrap();
    assert_eq!(session.finish(&client, b"another", &theirs, &z1).unwrap_err().check(), "frost_share");
}

/// What node 1 keeps tells the session's own signature from every other one that verifies.
#[test]
fn node_1_believes_only_the_sessions_own_signature() {
    let [client, node1, _] = run::<Ed25519>(1);
    let session = |seed| {
        let (session, ours) = FrostClient::start(&mut rng(seed));
        let (theirs, z1, sent) = node_sign(&node1, b"message", &ours, &mut rng(seed + 1)).unwrap();
        (sent, session.finish(&client, b"message", &theirs, &z1).unwrap())
    };
    let ((sent, own), (_, other)) = (session(5), session(50));
    assert!(sent.accepts(&own));
    assert!(!sent.accepts(&other), "a valid signature of the same message from another session");
    for at in 0..64 {
        let mut altered = own;
        altered[at] ^= 1;
        assert!(!sent.accepts(&altered), "byte {at}");
    }
    let mixed: [u8; 64] = [&other[..32], &own[32..]].concat().try_into().unwrap();
    assert!(!sent.accepts(&mixed));
    assert!(!sent.accepts(&[0xff; 64]), "not canonical");
}
