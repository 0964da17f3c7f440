//! The composed key generation, recovery and refresh: payload shapes, order, replays and splices. What is inside the payloads is tested in
//! dkg_misbehaviour.rs and beside the OT setup.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod pair;

use pair::{Run, context, generate, identity, rng, run_with};
use trefoil_protocol::Party::{self, Client, Node1, Node2};
use trefoil_protocol::keygen::NodeKeygen;
use trefoil_protocol::{Abort, CurveId, KeyShare};

const CURVES: [CurveId; 2] = [CurveId::Secp256k1, CurveId::Ed25519];

/// Every kind of run. (A refresh on secp256k1 has the messages of one on ed25519, and the OT messages of a recovery.)
fn each_run(mut f: impl FnMut(Run<'_>, &str)) {
    for curve in CURVES {
        let old: [KeyShare; 3] = generate(curve, 39);
        f(Run::Generate(curve), &format!("generate {curve}"));
        f(Run::Recover(&old), &format!("recover {curve}"));
        if curve == CurveId::Ed25519 {
            f(Run::Refresh(&old), "refresh ed25519");
        }
    }
}

#[test]
fn all_parties_hold_shares_of_one_key() {
    for curve in CURVES {
        let [client, node1, node2] = generate(curve, 40);
        for share in [&node1, &node2] {
            assert_eq!(share.public_key(), client.public_key());
            assert_eq!(share.chain_code(), client.chain_code());
            assert_eq!(share.transcript(), client.transcript());
        }
        assert_eq!(client.ot_id(), node1.ot_id());
        assert_eq!(client.ot_id() == [0; 32], curve == CurveId::Ed25519);
        assert_eq!([client.party(), node1.party(), node2.party()], Party::ALL);
    }
}

/// Payloads of another length, to either node, in each round, and replies of another length: refused, never a lock.
#[test]
fn wrong_lengths_end_the_attempt() {
    each_run(|what, name| {
        for round in 0..=5u8 {
            for (from, to) in [(Client, Node1), (Client, Node2), (Node1, Client), (Node2, Client)] {
                for change in [-1_000_000isize, -1, 1, 70_000] {
                    let mut hit = false;
                    let result = run_with(what, 41, &mut |r, f, t, message| {
                        if (r, f, t) == (round, from, to) && !(message.is_empty() && change < 0) {
                            message.resize(message.len().saturating_add_signed(change), 0);
                            hit = true;
                        }
                    });
                    if hit {
                        let abort = result.err().unwrap();
                        assert!(
                            matches!(abort, Abort::Peer { ban: false, .. }),
                            "{name}: {round} {from}->{to} {change}: {abort}"
                        );
                    }
                }
            }
        }
    });
}

/// One byte of each message changed on its way: the attempt ends before anybody holds a share that the others do not.
#[test]
fn every_message_is_under_a_check() {
    each_run(|what, name| {
        for round in 0..=5u8 {
            for (from, to) in [(Client, Node1), (Client, Node2), (Node1, Client), (Node2, Client)] {
                for position in [0usize, 40, 100, 200, 400, 9_000, 40_000] {
                    let mut hit = false;
                    let result = run_with(what, 42, &mut |r, f, t, message| {
                        if (r, f, t) == (round, from, to) && position < message.len() {
                            message[position] ^= 1;
                            hit = true;
                        }
                    });
                    if hit {
                        let abort = result.err().unwrap();
                        assert!(
                            matches!(abort, Abort::Peer { ban: false, .. }),
                            "{name}: {round} {from}->{to} [{position}]: {abort}"
                        );
                    }
                }
            }
        }
    });
}

/// A round's payload of another run, all else honest.
#[test]
fn messages_of_another_run_do_not_fit() {
    each_run(|what, name| {
        let mut recorded = Vec::new();
        run_with(what, 43, &mut |round, from, to, message| recorded.push(((round, from, to), message.clone())))
            .unwrap();
        for (place, bytes) in recorded.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let result = run_with(what, 44, &mut |round, from, to, message| {
                if (round, from, to) == *place {
                    message.clone_from(bytes);
                }
            });
            assert!(!result.err().unwrap().is_ban(), "{name}: {place:?}");
        }
    });
}

#[test]
fn rounds_have_one_order() {
    let context = context(CurveId::Ed25519);
    let start = || NodeKeygen::start(&context, Node1, &identity(Node1), &mut rng(1)).unwrap().0;
    assert!(NodeKeygen::start(&context, Client, &identity(Node1), &mut rng(1)).is_err());
    assert!(start().finish().is_err());
    assert_eq!(start().round(), 1);
    // The round-1 payload again, as round 2: commitments of the same length, which no dealing opens; round 3 tells.
    let (second, _) = start().advance(&[1; 64], &identity(Node1)).unwrap();
    let (third, _) = second.advance(&[1; 64], &identity(Node1)).unwrap();
    assert_eq!(third.round(), 3);
    let refused = third.advance(&[1; 448], &identity(Node1)).err().unwrap();
    assert_eq!(refused, Abort::peer(Client, "dkg_commitment"));
    // A node whose identity is not the pinned one cannot take part.
    let (second, _) = start().advance(&[1; 64], &identity(Node2)).unwrap();
    let (third, _) = second.advance(&[1; 64], &identity(Node2)).unwrap();
    assert!(matches!(third.advance(&[1; 448], &identity(Node2)).err().unwrap(), Abort::InvalidInput(_)));
}
