//! Signing with generated keys: every signature is a standard one by two other implementations' word.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod pair;

use pair::{Pair, request, rng};
use rand_core::RngCore;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, PublicKey, SECP256K1};
use std::sync::Arc;
use trefoil_protocol::derive::derive_public;
use trefoil_protocol::ecdsa::{M1_LEN, M2_LEN, M3_LEN, Signature};

/// libsecp256k1's word: verifies (it refuses high s), and the recovery id recovers the key.
fn check_with_libsecp256k1(public_key: &[u8], digest: &[u8; 32], signature: &Signature) {
    let key = PublicKey::from_slice(public_key).unwrap();
    let message = Message::from_digest(*digest);
    let id = RecoveryId::try_from(i32::from(signature.recovery_id)).unwrap();
    let recoverable = RecoverableSignature::from_compact(&signature.bytes, id).unwrap();
    SECP256K1.verify_ecdsa(message, &recoverable.to_standard(), &key).unwrap();
    assert_eq!(SECP256K1.recover_ecdsa(message, &recoverable).unwrap(), key);
}

/// 100 generated keys, 100 children of each: 10,000 keys that never signed before, on two threads.
#[test]
fn ten_thousand_signatures_of_fresh_keys() {
    let thread = |half: u64| {
        let (mut odd, mut short_r, mut short_s) = (0u32, 0u32, 0u32);
        for key in 0..50 {
            let pair = Pair::new(1_000 * half + key);
            for child in 0..100u64 {
                let seed = (half * 50 + key) * 100 + child;
                let mut digest = [0; 32];
                rng(seed).fill_bytes(&mut digest);
                let request = request(digest, &format!("m/{half}/{child}"));
                let derived =
                    derive_public(&pair.client.public_key(), &pair.client.chain_code(), &request.path).unwrap();
                let signature = pair.sign(&request, seed);
                check_with_libsecp256k1(&derived.public_key, &digest, &signature);
                odd += u32::from(signature.recovery_id & 1);
                short_r += u32::from(signature.bytes[0] == 0);
                short_s += u32::from(signature.bytes[32] == 0);
            }
        }
        (odd, short_r, short_s)
    };
    let (a, b) = std::thread::scope(|scope| {
        let other = scope.spawn(|| thread(1));
        (thread(0), other.join().unwrap())
    });
    // Both parities, and fields with leading zeros (1 in 256), did occur.
    assert!((4_000..6_000).contains(&(a.0 + b.0)), "odd R: {}", a.0 + b.0);
    assert!(a.1 + b.1 > 10 && a.2 + b.2 > 10, "short r {}, short s {}", a.1 + b.1, a.2 + b.2);
}

#[test]
fn digests_at_the_edges_are_signed() {
    let pair = Pair::new(5);
    let order = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xba, 0xae,
        0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
    ];
    let mut one = [0; 32];
    one[31] = 1;
    for (seed, digest) in [[0; 32], one, order, [0xff; 32]].into_iter().enumerate() {
        let request = request(digest, "m");
        check_with_libsecp256k1(&pair.client.public_key(), &digest, &pair.sign(&request, seed as u64));
    }
}

#[test]
fn a_seed_gives_the_same_run_byte_for_byte() {
    let run = |keygen_seed| {
        let pair = Pair::new(keygen_seed);
        let mut messages = Vec::new();
        let request = request([3; 32], "m/1");
        let signature = pair.sign_with(&request, &request, 8, &mut |_, m| messages.push(m.clone())).unwrap();
        (messages, signature.bytes)
    };
    let (messages, signature) = run(70);
    assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [M1_LEN, M2_LEN, M3_LEN]);
    assert_eq!((messages, signature), run(70));
    assert_ne!(signature, run(71).1);
}

#[test]
fn two_sessions_of_one_request_share_nothing() {
    let pair = Pair::new(6);
    let request = request([4; 32], "m");
    let mut all = Vec::new();
    for seed in [1, 2] {
        let mut messages = Vec::new();
        pair.sign_with(&request, &request, seed, &mut |_, m| messages.push(m.clone())).unwrap();
        all.push(messages);
    }
    // R2 and R1, nonces, and every 16-byte block of both U: distinct between the sessions.
    let blocks = |messages: &[Vec<u8>]| {
        let mut seen: Vec<Vec<u8>> = vec![messages[1][16..49].to_vec(), messages[2][16..49].to_vec()];
        seen.push(messages[0][116..132].to_vec());
        seen.push(messages[1][49..65].to_vec());
        seen.extend(messages[0][132..132 + 8_704].chunks(68).map(<[u8]>::to_vec));
        seen.extend(messages[1][65..65 + 8_704].chunks(68).map(<[u8]>::to_vec));
        seen
    };
    for (a, b) in blocks(&all[0]).iter().zip(&blocks(&all[1])) {
        assert_ne!(a, b);
    }
}

#[test]
fn only_the_right_share_opens_a_side() {
    use trefoil_protocol::ecdsa::{client::Client, node1::Node1};
    let pair = Pair::new(7);
    let request = request([1; 32], "m");
    assert!(Client::open(pair.node1.clone(), request.clone(), &mut rng(1)).is_err());
    assert!(Node1::open(pair.client.clone(), request.clone(), &[0; 32], &mut rng(1)).is_err());
    let ed25519 = Arc::new(pair::generate(trefoil_protocol::CurveId::Ed25519, 3).into_iter().next().unwrap());
    assert!(Client::open(ed25519, request, &mut rng(1)).is_err());
}
