//! Batches: items are sessions of their own, whatever they have in common.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod pair;

use pair::{Pair, Rng, request, rng};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, PublicKey, SECP256K1};
use std::collections::HashSet;
use trefoil_protocol::Abort;
use trefoil_protocol::Party::Node1 as Node1Party;
use trefoil_protocol::derive::derive_public;
use trefoil_protocol::ecdsa::client::Client;
use trefoil_protocol::ecdsa::node1::Node1;
use trefoil_protocol::ecdsa::{Item, Request, Signature};

/// One item, with its three messages.
fn sign(pair: &Pair, request: &Request, item: Item, (c, n): (&mut Rng, &mut Rng)) -> (Signature, [Vec<u8>; 3]) {
    let (node1, m1) = Node1::open_of_batch(pair.node1.clone(), request.clone(), item, &[9; 32], n).unwrap();
    let client = Client::of_batch(pair.client.clone(), request.clone(), item, [9; 32]).unwrap();
    let (client, m2) = client.advance(&m1, c).unwrap();
    let (m3, sent) = node1.advance(&m2, n).unwrap().release().unwrap();
    let signature = client.finish(&m3).unwrap();
    assert!(sent.accepts(&signature.bytes));
    (signature, [m1, m2, m3])
}

fn item(index: u16, count: u16) -> Item {
    Item::new(index, count).unwrap()
}

/// All items of one batch have the same digest and path, and both parties' random number generators repeat themselves: what is
/// left to tell the items apart is their index, and it is enough. Nothing that must be used once is in two items.
#[test]
fn items_share_nothing_even_if_randomness_repeats() {
    let pair = Pair::new(60);
    let request = request([4; 32], "m/7");
    let mut seen: [HashSet<Vec<u8>>; 3] = Default::default();
    let mut signatures = HashSet::new();
    for index in 0..8 {
        let (signature, [m1, m2, m3]) = sign(&pair, &request, item(index, 8), (&mut rng(1), &mut rng(2)));
        assert!(signatures.insert(signature.bytes));
        // sid tag and commitment, nonce, columns of U, x, t; R2, τ, η, μ, Γ, ψ2; R1, salt, τ, η, μ, Γ, ψ1, u1, w1.
        let u = 8_704;
        let fields = |message: &[u8], ends: &[usize]| {
            let mut from = ends[0];
            let mut fields = Vec::new();
            for to in &ends[1..] {
                fields.push(message[from..*to].to_vec());
                from = *to;
            }
            fields
        };
        let columns = |matrix: &[u8]| matrix.chunks(68).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let scalars = |tau: &[u8]| tau.chunks(32).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let of_m1 = [fields(&m1, &[68, 84, 116, 132]), columns(&m1[132..132 + u]), fields(&m1, &[8_836, 8_852, 8_884])];
        let of_m2 = [
            fields(&m2, &[0, 16, 49, 65]),
            columns(&m2[65..65 + u]),
            scalars(&m2[8_817..8_817 + 39_936]),
            fields(&m2, &[8_769, 8_785, 8_817]),
            fields(&m2, &[48_753, 48_785, 48_817, 48_850, 48_883, 48_915]),
        ];
        let of_m3 = [
            fields(&m3, &[0, 16, 49, 81]),
            scalars(&m3[81..81 + 39_936]),
            fields(&m3, &[40_017, 40_049, 40_081, 40_114, 40_147, 40_179, 40_211, 40_243]),
        ];
        for field in of_m1.concat() {
            assert!(seen[0].insert(field), "m1 of item {index}");
        }
        for field in of_m2.concat() {
            assert!(seen[1].insert(field), "m2 of item {index}");
        }
        for field in of_m3.concat() {
            assert!(seen[2].insert(field), "m3 of item {index}");
        }
    }
}

#[test]
fn mixed_items_are_standard_signatures() {
    let pair = Pair::new(61);
    let (mut c, mut n) = (rng(3), rng(4));
    for (index, path) in ["m", "m/0", "m/0/1", "m", "m/2147483647"].into_iter().enumerate() {
        let request = request([index as u8; 32], path);
        let (signature, _) = sign(&pair, &request, item(index as u16, 5), (&mut c, &mut n));
        let key = derive_public(&pair.client.public_key(), &pair.client.chain_code(), &request.path).unwrap();
        let id = RecoveryId::try_from(i32::from(signature.recovery_id)).unwrap();
        let recoverable = RecoverableSignature::from_compact(&signature.bytes, id).unwrap();
        let (key, message) = (PublicKey::from_slice(&key.public_key).unwrap(), Message::from_digest(request.digest));
        SECP256K1.verify_ecdsa(message, &recoverable.to_standard(), &key).unwrap();
        assert_eq!(SECP256K1.recover_ecdsa(message, &recoverable).unwrap(), key);
    }
}

/// A message of one item is none of another one, of a batch of another size, or of a single signature: refused by its tag, before
/// any check that locks.
#[test]
fn a_message_fits_its_own_item_only() {
    let pair = Pair::new(62);
    let request = request([4; 32], "m");
    let (at, others) = (item(1, 3), [Some(item(0, 3)), Some(item(2, 3)), Some(item(1, 4)), None]);
    let node1 = |item: Option<Item>| {
        let (share, request) = (pair.node1.clone(), request.clone());
        match item {
            Some(item) => Node1::open_of_batch(share, request, item, &[9; 32], &mut rng(1)).unwrap(),
            None => Node1::open(share, request, &[9; 32], &mut rng(1)).unwrap(),
        }
    };
    let client = || Client::of_batch(pair.client.clone(), request.clone(), at, [9; 32]).unwrap();
    let (_, m1) = node1(Some(at));
    let (waiting, m2) = client().advance(&m1, &mut rng(2)).unwrap();
    let refused = Abort::peer(Node1Party, "session");
    for other in others {
        let (other, their_m1) = node1(other);
        assert_eq!(client().advance(&their_m1, &mut rng(2)).err(), Some(refused));
        assert!(!other.owns(&m2));
        let abort = other.advance(&m2, &mut rng(3)).err().unwrap();
        assert_eq!((abort.check(), abort.is_ban()), ("session", false));
    }
    let (_, [_, _, m3_of_item_0]) = sign(&pair, &request, item(0, 3), (&mut rng(2), &mut rng(1)));
    assert_eq!(waiting.finish(&m3_of_item_0).err(), Some(refused));
}

#[test]
fn a_batch_has_1_to_128_items() {
    for (index, count) in [(0, 1), (127, 128), (0, 128)] {
        Item::new(index, count).unwrap();
    }
    for (index, count) in [(0, 0), (1, 1), (128, 128), (128, 129), (0, 129), (0, u16::MAX), (u16::MAX, 128)] {
        assert!(Item::new(index, count).is_err(), "{index} of {count}");
    }
}
