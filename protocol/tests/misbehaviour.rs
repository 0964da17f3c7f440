//! A peer that deviates in each field of each message of a signing: which check refuses it, who is named, and whether
//! the key is locked. The cheats that need the peer's secrets (one OT column, one RVOLE row) are tested beside the code.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod pair;

use pair::{Pair, request};
use trefoil_protocol::Abort;
use trefoil_protocol::Party::{Client, Node1 as Node1Party, Node1};

/// One bit of this byte of this message flipped: what comes out.
fn flip(pair: &Pair, message: u8, position: usize) -> Abort {
    let request = request([5; 32], "m/2");
    let result = pair.sign_with(&request, &request, 11, &mut |number, bytes| {
        if number == message {
            bytes[position] ^= 1;
        }
    });
    result.unwrap_err()
}

#[test]
fn every_field_is_checked_by_its_own_check() {
    let pair = Pair::new(20);
    let peer = Abort::peer;
    let lock = Abort::lock;
    let u = 8_704;
    let tau = 39_936;
    #[rustfmt::skip]
    let table = [
        // m1: contribution, epoch, ot_id, tag, commitment, nonce, U first and last, x, t
        (1, 0, peer(Node1, "session")),
        (1, 35, peer(Node1, "epoch")),
        (1, 40, peer(Node1, "ot_id")),
        (1, 70, peer(Node1, "session")),
        (1, 90, lock(Node1, "ot_consistency")),
        (1, 120, lock(Node1, "ot_consistency")),
        (1, 132, lock(Node1, "ot_consistency")),
        (1, 132 + u - 1, lock(Node1, "ot_consistency")),
        (1, 132 + u, lock(Node1, "ot_consistency")),
        (1, 132 + u + 16 + 31, lock(Node1, "ot_consistency")),
        // m2: tag, R2's sign, nonce, U, x, t, tau, eta, mu, Gamma_u, Gamma_v, psi
        (2, 0, peer(Client, "session")),
        (2, 16, lock(Client, "ot_consistency")),
        (2, 50, lock(Client, "ot_consistency")),
        (2, 65, lock(Client, "ot_consistency")),
        (2, 65 + u, lock(Client, "ot_consistency")),
        (2, 65 + u + 16, lock(Client, "ot_consistency")),
        (2, 65 + u + 48 + 31, lock(Client, "rvole_mu")),
        (2, 65 + u + 48 + tau - 1, lock(Client, "rvole_mu")),
        (2, 65 + u + 48 + tau + 31, lock(Client, "rvole_mu")),
        (2, 65 + u + 48 + tau + 32, lock(Client, "rvole_mu")),
        (2, 65 + u + 48 + tau + 64, peer(Client, "gamma_u")),
        (2, 65 + u + 48 + tau + 64 + 33, peer(Client, "gamma_v")),
        // Nothing checks psi2: a client that sends another than it keeps spoils its own transcript, and m3's tag says so.
        (2, 65 + u + 48 + tau + 64 + 66 + 31, peer(Node1, "session")),
        // m3: tag, R1's sign, salt, tau, eta, mu, Gamma_u, Gamma_v, psi, u, w
        (3, 0, peer(Node1, "session")),
        (3, 16, peer(Node1, "commitment")),
        (3, 60, peer(Node1, "commitment")),
        (3, 81 + 31, lock(Node1, "rvole_mu")),
        (3, 81 + tau - 1, lock(Node1, "rvole_mu")),
        (3, 81 + tau + 31, lock(Node1, "rvole_mu")),
        (3, 81 + tau + 32, lock(Node1, "rvole_mu")),
        (3, 81 + tau + 64, peer(Node1, "gamma_u")),
        (3, 81 + tau + 64 + 33, peer(Node1, "gamma_v")),
        (3, 81 + tau + 64 + 66 + 31, peer(Node1, "signature")),
        (3, 81 + tau + 64 + 66 + 63, peer(Node1, "signature")),
        (3, 81 + tau + 64 + 66 + 95, peer(Node1, "signature")),
    ];
    for (message, position, expected) in table {
        assert_eq!(flip(&pair, message, position), expected, "m{message}[{position}]");
    }
}

#[test]
fn wrong_lengths_are_harmless() {
    let pair = Pair::new(21);
    let request = request([5; 32], "m");
    for (message, culprit, check) in [(1, Node1, "m1_shape"), (2, Client, "m2_shape"), (3, Node1, "m3_shape")] {
        for change in [-1_000_000isize, -1, 1, 100_000] {
            let result = pair.sign_with(&request, &request, 1, &mut |number, bytes| {
                if number == message {
                    bytes.resize(bytes.len().saturating_add_signed(change), 0);
                }
            });
            assert_eq!(result.unwrap_err(), Abort::peer(culprit, check));
        }
    }
}

#[test]
fn what_is_not_canonical_is_harmless() {
    let pair = Pair::new(22);
    let request = request([5; 32], "m");
    let (u, tau) = (8_704, 39_936);
    // A scalar of all ones, an off-curve x, the identity's and the compact form's prefixes, at each point and scalar.
    let mut cases: Vec<(u8, usize, &[u8])> = Vec::new();
    for at in [65 + u + 48, 65 + u + 48 + tau - 32, 65 + u + 48 + tau, 65 + u + 48 + tau + 64 + 66] {
        cases.push((2, at, &[0xff; 32]));
    }
    for at in [81, 81 + tau - 32, 81 + tau, 81 + tau + 130, 81 + tau + 162, 81 + tau + 194] {
        cases.push((3, at, &[0xff; 32]));
    }
    for (message, points) in
        [(2, [16, 65 + u + 48 + tau + 64, 65 + u + 48 + tau + 97]), (3, [16, 81 + tau + 64, 81 + tau + 97])]
    {
        for at in points {
            for bad in [[0u8; 33].as_slice(), &[5], &[4], &[0xff; 33]] {
                cases.push((message, at, bad));
            }
        }
    }
    for (message, at, bad) in cases {
        let result = pair.sign_with(&request, &request, 1, &mut |number, bytes| {
            if number == message {
                bytes[at..at + bad.len()].copy_from_slice(bad);
            }
        });
        let (culprit, check) = if message == 2 { (Client, "m2_shape") } else { (Node1, "m3_shape") };
        assert_eq!(result.unwrap_err(), Abort::peer(culprit, check), "m{message}[{at}]");
    }
}

/// Replay and splice: a message of another session, key or request is refused harmlessly, at its tag.
#[test]
fn messages_of_other_sessions_are_harmless() {
    let (pair, other_key) = (Pair::new(23), Pair::new(24));
    let request = request([5; 32], "m");
    let mut recorded = Vec::new();
    pair.sign_with(&request, &request, 1, &mut |number, bytes| recorded.push((number, bytes.clone()))).unwrap();
    other_key.sign_with(&request, &request, 1, &mut |number, bytes| recorded.push((number, bytes.clone()))).unwrap();
    for (message, bytes) in recorded {
        let result = pair.sign_with(&request, &request, 2, &mut |number, out| {
            if number == message {
                out.clone_from(&bytes);
            }
        });
        let abort = result.unwrap_err();
        assert!(!abort.is_ban(), "m{message}: {abort}");
        assert!(["session", "ot_id"].contains(&abort.check()), "m{message}: {abort}");
    }
}

#[test]
fn both_sides_must_mean_the_same_request() {
    let pair = Pair::new(25);
    let base = request([5; 32], "m/1");
    let mut others = vec![base.clone(), base.clone(), base.clone(), base.clone()];
    others[0].digest[0] ^= 1;
    others[1].job_digest[0] ^= 1;
    others[2].channel_hash[0] ^= 1;
    others[3].path = "m/2".parse().unwrap();
    for other in others {
        let result = pair.sign_with(&base, &other, 1, &mut |_, _| {});
        assert_eq!(result.unwrap_err(), Abort::peer(Node1, "session"));
    }
}

/// R2 = -R1 (which the client would have to guess) makes R the identity: refused before any check that can lock.
#[test]
fn a_nonce_point_that_cancels_is_harmless() {
    let pair = Pair::new(26);
    let request = request([5; 32], "m");
    let mut r1 = Vec::new();
    pair.sign_with(&request, &request, 3, &mut |number, bytes| {
        if number == 3 {
            r1 = bytes[16..49].to_vec();
        }
    })
    .unwrap();
    r1[0] ^= 1;
    let result = pair.sign_with(&request, &request, 3, &mut |number, bytes| {
        if number == 2 {
            bytes[16..49].copy_from_slice(&r1);
        }
    });
    assert_eq!(result.unwrap_err(), Abort::peer(Client, "nonce_point"));
}

/// Two openings of one request by other randomness: neither's messages fit the other.
#[test]
fn contributions_of_both_sides_name_the_session() {
    use trefoil_protocol::ecdsa::{client, node1::Node1};
    let pair = Pair::new(27);
    let request = request([5; 32], "m");
    let open = |contribution: [u8; 32], seed| {
        Node1::open(pair.node1.clone(), request.clone(), &contribution, &mut pair::rng(seed)).unwrap()
    };
    let client = |contribution| client::Client::new(pair.client.clone(), request.clone(), contribution).unwrap();
    let (first, m1) = open([1; 32], 1);
    let (second, _) = open([1; 32], 2);
    // Another client contribution than node 1 was opened with.
    let refused = client([2; 32]).advance(&m1, &mut pair::rng(3)).err().unwrap();
    assert_eq!(refused, Abort::peer(Node1Party, "session"));
    let (_, m2) = client([1; 32]).advance(&m1, &mut pair::rng(3)).unwrap();
    assert!(first.owns(&m2) && !second.owns(&m2));
    assert!(!first.owns(&[]) && !first.owns(&[0; 16]) && !first.owns(&m2[..15]));
    assert_eq!(second.advance(&m2, &mut pair::rng(4)).err().unwrap(), Abort::peer(Client, "session"));
}

/// m4: node 1 believes no other signature than the session's.
#[test]
fn node_1_accepts_only_the_signature_of_its_session() {
    use trefoil_protocol::ecdsa::{client, node1::Node1};
    let pair = Pair::new(28);
    let request = request([5; 32], "m");
    let (node1, m1) = Node1::open(pair.node1.clone(), request.clone(), &[1; 32], &mut pair::rng(1)).unwrap();
    let client = client::Client::new(pair.client.clone(), request, [1; 32]).unwrap();
    let (client, m2) = client.advance(&m1, &mut pair::rng(2)).unwrap();
    let (m3, sent) = node1.advance(&m2, &mut pair::rng(3)).unwrap().release().unwrap();
    let signature = client.finish(&m3).unwrap();
    assert!(sent.accepts(&signature.bytes));
    for digest in [[5; 32], [6; 32]] {
        let other = pair.sign(&pair::request(digest, "m"), 9);
        assert!(!sent.accepts(&other.bytes), "a valid signature of another session");
    }
    for at in 0..64 {
        let mut bent = signature.bytes;
        bent[at] ^= 1;
        assert!(!sent.accepts(&bent), "byte {at}");
    }
    let s = k256::ecdsa::Signature::from_slice(&signature.bytes).unwrap().s();
    let mut high = signature.bytes;
    high[32..].copy_from_slice(&(-*s).to_bytes());
    assert!(!sent.accepts(&high));
}

/// What a stale share (another epoch or transcript, as after a refresh) meets is harmless.
#[test]
fn a_stale_share_is_harmless() {
    let pair = Pair::new(29);
    let request = request([5; 32], "m");
    // In the stored form: key id 3..19, epoch 19..23, transcript 23..55, chain code 55..87.
    for (at, check) in [(3, "session"), (22, "epoch"), (23, "session"), (55, "session")] {
        let mut bytes = pair.client.to_bytes();
        bytes[at] ^= 1;
        let client = std::sync::Arc::new(trefoil_protocol::KeyShare::from_bytes(&bytes).unwrap());
        let stale = Pair { client, node1: pair.node1.clone() };
        let path = if at == 55 { "m/1" } else { "m" };
        let request = trefoil_protocol::ecdsa::Request { path: path.parse().unwrap(), ..request.clone() };
        let refused = stale.sign_with(&request, &request, 1, &mut |_, _| {}).unwrap_err();
        assert_eq!(refused, Abort::peer(Node1Party, check), "byte {at}");
    }
}

/// Once the OT state is erased there is a share to recover from, and nothing to sign with.
#[test]
fn a_share_without_ot_state_cannot_sign() {
    use trefoil_protocol::ecdsa::{client, node1::Node1};
    let pair = Pair::new(30);
    let erased = |share: &trefoil_protocol::KeyShare| {
        let (whole, bytes) = (share.to_bytes(), share.to_bytes_without_ot());
        assert_eq!(*bytes, whole[..251]);
        let erased = trefoil_protocol::KeyShare::from_bytes(&bytes).unwrap();
        assert_eq!((erased.public_key(), erased.ot_id()), (share.public_key(), [0; 32]));
        std::sync::Arc::new(erased)
    };
    let request = request([5; 32], "m");
    assert!(client::Client::new(erased(&pair.client), request.clone(), [0; 32]).is_err());
    assert!(Node1::open(erased(&pair.node1), request, &[0; 32], &mut pair::rng(1)).is_err());
}
