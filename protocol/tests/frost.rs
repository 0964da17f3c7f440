//! EdDSA signing between the client and node 1.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod harness;

use ed25519_dalek::{Signature, VerifyingKey};
use harness::{rng, run};
use rand_core::RngCore;
use trefoil_protocol::curve::{Ed25519, Secp256k1};
use trefoil_protocol::frost::{FrostClient, Sent, node_sign};
use trefoil_protocol::{Abort, KeyShare, Party};

fn sign(client: &KeyShare, node1: &KeyShare, message: &[u8], seed: u64) -> [u8; 64] {
    let (session, commitments) = FrostClient::start(&mut rng(seed)).unwrap();
    let (theirs, z1) = node_sign(node1, message, &commitments, &mut rng(seed + 1)).unwrap();
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
    let (_, commitments) = FrostClient::start(&mut rng(1)).unwrap();
    let (theirs, z1) = node_sign(&node1, b"", &commitments, &mut rng(1)).unwrap();
    for share in [&node1, &node2, &ecdsa_client] {
        let (session, _) = FrostClient::start(&mut rng(1)).unwrap();
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
        let (session, commitments) = FrostClient::start(&mut rng(2)).unwrap();
        let (mut theirs, mut z1) = node_sign(&node1, b"message", &commitments, &mut rng(3)).unwrap();
        tamper(&mut theirs, &mut z1);
        session.finish(&client, b"message", &theirs, &z1)
    };
    let refused = |check| Err(Abort::Peer { culprit: Party::Node1, ban: false, check });
    assert!(attempt(&|_, _| {}).is_ok());
    assert_eq!(attempt(&|_, z| z[0] ^= 1), refused("frost_share"));
    assert_eq!(attempt(&|_, z| *z = [0xff; 32]), refused("frost_share"));
    assert_eq!(attempt(&|c, _| c.rotate_left(32)), refused("frost_share"));
    // The identity, a point of order 8 and one outside of the prime-order subgroup, as either commitment.
    for bad in harness::bad_ed25519_points() {
        assert_eq!(attempt(&|c, _| c[..32].copy_from_slice(&bad)), refused("frost_commitments"));
        assert_eq!(attempt(&|c, _| c[32..].copy_from_slice(&bad)), refused("frost_commitments"));
    }
}

#[test]
fn node1_refuses_the_clients_bad_commitments() {
    let [_, node1, _] = run::<Ed25519>(1);
    let (_, good) = FrostClient::start(&mut rng(2)).unwrap();
    for bad in harness::bad_ed25519_points() {
        for half in [0..32, 32..64] {
            let mut commitments = good;
            commitments[half].copy_from_slice(&bad);
            let refused = Abort::Peer { culprit: Party::Client, ban: false, check: "frost_commitments" };
            assert_eq!(node_sign(&node1, b"m", &commitments, &mut rng(3)), Err(refused));
        }
    }
}

#[test]
fn node1_signs_only_the_message_it_was_given() {
    let [client, node1, _] = run::<Ed25519>(1);
    let (session, commitments) = FrostClient::start(&mut rng(2)).unwrap();
    let (theirs, z1) = node_sign(&node1, b"one", &commitments, &mut rng(3)).unwrap();
    assert_eq!(session.finish(&client, b"another", &theirs, &z1).unwrap_err().check(), "frost_share");
}

/// What node 1 keeps tells the session's own signature from every other one that verifies.
#[test]
fn node_1_believes_only_the_sessions_own_signature() {
    let [client, node1, _] = run::<Ed25519>(1);
    let session = |seed| {
        let (session, ours) = FrostClient::start(&mut rng(seed)).unwrap();
        let (theirs, z1) = node_sign(&node1, b"message", &ours, &mut rng(seed + 1)).unwrap();
        let sent = Sent::new(&node1, b"message", &ours, &theirs, z1).unwrap();
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
