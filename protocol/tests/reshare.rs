//! Recovery and refresh: another line through the same secret, against an independent big-integer computation; and shares
//! of before and after do not mix. (How cheats and altered messages fail is tested with key generation's, which has the same
//! rounds: dkg_misbehaviour.rs and keygen.rs.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod harness;
mod pair;

use harness::{Case, Round, TestCurve, interpolate, rng, run_case, run_from, secret};
use pair::{Pair, Run, copy, generate, identity, request, run, run_with};
use proptest::prelude::*;
use rand_core::RngCore;
use trefoil_protocol::curve::{Ed25519, Secp256k1};
use trefoil_protocol::dkg::{Open, Setup};
use trefoil_protocol::frost::{FrostClient, node_sign};
use trefoil_protocol::keygen::{ClientKeygen, Context, NodeKeygen};
use trefoil_protocol::reshare::{Origin, Source};
use trefoil_protocol::{Abort, CurveId, KeyShare, Party};

const PAIRS: [(Party, Party); 3] =
    [(Party::Client, Party::Node1), (Party::Client, Party::Node2), (Party::Node1, Party::Node2)];
const CURVES: [CurveId; 2] = [CurveId::Secp256k1, CurveId::Ed25519];

/// The same key in other shares, and no old share goes with a new one.
fn check<C: TestCurve>(case: Case<'_>, new: &[KeyShare; 3]) {
    let (q, old) = (C::order(), case.old().unwrap());
    let [x, y] = [old, new].map(|shares| shares.each_ref().map(secret::<C>));
    let of = |secrets: &[num_bigint::BigUint; 3], party: Party| secrets[usize::from(party.point()) - 1].clone();
    let line = |a, b, i, j| interpolate(&q, (i, &of(a, i)), (j, &of(b, j)));
    let key = line(&x, &x, Party::Client, Party::Node1);
    for (i, j) in PAIRS {
        assert_eq!(line(&y, &y, i, j), key);
        assert_ne!(line(&x, &y, i, j), key);
        assert_ne!(line(&y, &x, i, j), key);
    }
    let times_g = |x: &num_bigint::BigUint| {
        let point = C::mul_generator(&C::decode_scalar(&C::from_integer(x)).unwrap());
        C::encode_point(&point).as_ref().to_vec()
    };
    let before = old[0].source();
    for (share, party) in new.iter().zip(Party::ALL) {
        let after = share.source();
        assert_eq!(after, new[0].source());
        assert_eq!((share.party(), after.curve), (party, C::CURVE));
        assert_eq!((&after.public_key, after.chain_code), (&before.public_key, before.chain_code));
        assert_eq!(after.epoch, before.epoch + 1);
        assert_eq!(after.key_id == before.key_id, matches!(case, Case::Refresh(_)));
        assert_ne!(after.transcript, before.transcript);
        for of_party in Party::ALL {
            assert_eq!(share.verifying_share(of_party), times_g(&of(&y, of_party)));
            assert_ne!(of(&x, of_party), of(&y, of_party));
        }
    }
}

fn once<C: TestCurve>(seed: u64) {
    let old = harness::run::<C>(seed);
    for case in [Case::Recover(&old), Case::Refresh(&old)] {
        check::<C>(case, &harness::renew::<C>(case, seed + 1));
        // Nothing depends on the randomness that the old shares came from.
        check::<C>(case, &harness::renew::<C>(case, seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn new_shares_hold_the_same_key_and_no_old_share_goes_with_them(seed in any::<u32>()) {
        once::<Secp256k1>(seed.into());
        once::<Ed25519>(seed.into());
    }
}

/// Recoveries and refreshes in any order, each on the result of the one before.
#[test]
fn repeated_for_a_hundred_epochs() {
    fn repeat<C: TestCurve>() {
        let first = harness::run::<C>(1);
        let mut shares = harness::run::<C>(1);
        for epoch in 0..100u32 {
            let seed = u64::from(epoch) + 2;
            let recovers = rng(seed).next_u32().is_multiple_of(2);
            let case = if recovers { Case::Recover(&shares) } else { Case::Refresh(&shares) };
            let next = harness::renew::<C>(case, seed);
            check::<C>(case, &next);
            shares = next;
        }
        assert_eq!((shares[0].epoch(), shares[0].public_key()), (100, first[0].public_key()));
    }
    repeat::<Secp256k1>();
    repeat::<Ed25519>();
}

#[test]
fn the_same_randomness_gives_the_same_run() {
    fn record<C: TestCurve>(case: Case<'_>, seed: u64) -> (Vec<Vec<u8>>, [Vec<u8>; 3]) {
        let mut messages = Vec::new();
        let shares = run_case::<C>(case, seed, &mut |_, _, _, m| messages.push(m.clone())).unwrap();
        (messages, shares.map(|s| s.to_bytes().to_vec()))
    }
    fn reproducible<C: TestCurve>() {
        let old = harness::run::<C>(1);
        for case in [Case::Recover(&old), Case::Refresh(&old)] {
            assert_eq!(record::<C>(case, 1), record::<C>(case, 1));
            assert_ne!(record::<C>(case, 1), record::<C>(case, 2));
        }
    }
    reproducible::<Secp256k1>();
    reproducible::<Ed25519>();
}

#[test]
fn messages_have_the_specified_lengths() {
    fn lengths<C: TestCurve>() {
        let old = harness::run::<C>(1);
        for case in [Case::Recover(&old), Case::Refresh(&old)] {
            let mut seen = 0;
            let relay = &mut |round, from, _: Party, message: &mut Vec<u8>| {
                let expected = match round {
                    Round::Open | Round::Commit => 32,
                    Round::Reveal if !case.deals(from) => 64,
                    Round::Reveal => {
                        if C::CURVE == CurveId::Secp256k1 {
                            97
                        } else {
                            96
                        }
                    }
                    Round::Echo if from == Party::Client => 32,
                    Round::Echo => 96,
                    Round::Deal if !case.deals(from) => 0,
                    Round::Deal => 48,
                };
                assert_eq!(message.len(), expected, "{round:?} of {from}");
                seen += 1;
            };
            run_case::<C>(case, 3, relay).unwrap();
            assert_eq!(seen, 5 * 6);
        }
    }
    lengths::<Secp256k1>();
    lengths::<Ed25519>();
}

/// Parties that do not mean the same old shares, or the same new ones, never get to deal.
#[test]
fn everything_known_of_the_key_is_bound() {
    fn ends<C: TestCurve>(case: Case<'_>, node2: impl Fn() -> (Open<C>, [u8; 32])) {
        let open = |party: Party| match party {
            Party::Node2 => node2(),
            _ => case.open::<C>(party, &mut rng(party.point().into())),
        };
        let aborts = run_from::<C>(open, &mut |_, _, _, _| {}).map(|_| ()).unwrap_err();
        let refused = |by, culprit| (by, Abort::peer(culprit, "dkg_commitment"));
        let (client, node1, node2) = (Party::Client, Party::Node1, Party::Node2);
        assert_eq!(aborts, [refused(client, node2), refused(node1, node2), refused(node2, client)]);
    }
    fn bound<C: TestCurve>() {
        let (old, other) = (harness::run::<C>(1), harness::run::<C>(2));
        let refreshed = harness::renew::<C>(Case::Refresh(&old), 9);
        let bent = |share: &KeyShare, change: fn(&mut [u8])| {
            let mut bytes = share.to_bytes();
            change(&mut bytes);
            KeyShare::from_bytes(&bytes).unwrap()
        };
        // In the stored form: key id 3..19, epoch 19..23, transcript 23..55, chain code 55..87.
        let wrong = [
            bent(&old[2], |bytes| bytes[3] ^= 1),
            bent(&old[2], |bytes| bytes[22] = 1),
            bent(&old[2], |bytes| bytes[23] ^= 1),
            bent(&old[2], |bytes| bytes[86] ^= 1),
            // Other verifying shares of the same key, and another key.
            bent(&refreshed[2], |bytes| bytes[22] = 0),
            copy(&other[2]),
        ];
        for theirs in &wrong {
            let setup = |case: Case<'_>| Setup { epoch: theirs.epoch() + 1, ..case.setup(Party::Node2) };
            let (recover, refresh) = (Case::Recover(&old), Case::Refresh(&old));
            ends::<C>(recover, || Open::reshare(setup(recover), Origin::RecoverFrom(theirs), &mut rng(3)).unwrap());
            ends::<C>(refresh, || {
                let setup = Setup { key_id: theirs.key_id(), ..setup(refresh) };
                Open::reshare(setup, Origin::Refresh(theirs), &mut rng(3)).unwrap()
            });
        }
        for (case, change) in [
            (Case::Recover(&old), (|s| s.job_digest[31] ^= 1) as fn(&mut Setup)),
            (Case::Refresh(&old), |s| s.job_digest[31] ^= 1),
            (Case::Recover(&old), |s| s.key_id[0] ^= 0x80),
        ] {
            let mut setup = case.setup(Party::Node2);
            change(&mut setup);
            ends::<C>(case, || case.open_as(setup.clone(), &mut rng(3)));
        }
    }
    bound::<Secp256k1>();
    bound::<Ed25519>();
}

/// One party recovers while another refreshes.
#[test]
fn recovery_and_refresh_do_not_mix() {
    fn refused<C: TestCurve>() {
        let old = harness::run::<C>(1);
        let recover = Case::Recover(&old);
        let open = |party: Party| match party {
            Party::Node2 => Case::Refresh(&old).open::<C>(party, &mut rng(1)),
            _ => recover.open::<C>(party, &mut rng(party.point().into())),
        };
        let aborts = run_from::<C>(open, &mut |_, _, _, _| {}).map(|_| ()).unwrap_err();
        assert!(aborts.len() == 3 && aborts.iter().all(|(_, abort)| !abort.is_ban()));
    }
    refused::<Secp256k1>();
    refused::<Ed25519>();
}

/// What a client is told of a key is checked for what can be checked, and the rest ends the run.
#[test]
fn a_wrong_source_is_refused_harmlessly() {
    for curve in CURVES {
        let (old, other) = (generate(curve, 60), generate(curve, 61));
        let what = Run::Recover(&old);
        let (good, foreign) = (old[1].source(), other[1].source());
        let opens = |change: &dyn Fn(&mut Source)| {
            let mut source = good.clone();
            change(&mut source);
            let context = Context { epoch: source.epoch.wrapping_add(1), ..what.context() };
            ClientKeygen::recover(&context, &source, &mut rng(1)).map(|(client, _)| client)
        };
        let contradictions: [&dyn Fn(&mut Source); 9] = [
            &|s| s.public_key = foreign.public_key.clone(),
            &|s| s.public_key = s.verifying_shares[0].clone(),
            &|s| s.verifying_shares[0] = foreign.verifying_shares[0].clone(),
            &|s| s.verifying_shares[1] = foreign.verifying_shares[1].clone(),
            &|s| s.verifying_shares[2] = foreign.verifying_shares[2].clone(),
            &|s| s.verifying_shares.swap(1, 2),
            &|s| s.verifying_shares[1].push(0),
            &|s| s.public_key = Vec::new(),
            &|s| s.public_key = vec![0; curve.public_key_len()],
        ];
        for change in contradictions {
            let refused = opens(change).err().unwrap();
            assert_eq!(refused, Abort::InvalidInput("what is known of the key contradicts itself"));
        }
        // Consistent, and not what the nodes have.
        let others: [&dyn Fn(&mut Source); 6] = [
            &|s| s.epoch += 1,
            &|s| s.key_id[0] ^= 1,
            &|s| s.transcript[31] ^= 1,
            &|s| s.chain_code[31] ^= 1,
            &|s| *s = Source { key_id: s.key_id, ..foreign.clone() },
            // Other shares of the very same key.
            &|s| s.verifying_shares = run(Run::Refresh(&old), 62)[1].source().verifying_shares,
        ];
        for change in others {
            let client = opens(change).unwrap();
            let nodes = [Party::Node1, Party::Node2].map(|party| what.node(party, party.point().into()));
            let [node1, node2] = nodes;
            let refused = pair::drive(client, node1, node2, &mut |_, _, _, _| {}).err().unwrap();
            assert!(matches!(refused, Abort::Peer { ban: false, check: "dkg_commitment", .. }), "{refused}");
        }
    }
}

const OTHER_CURVE: Abort = Abort::InvalidInput("the old share is of another curve");

/// A run follows on its shares: curve, key id, epoch and party.
#[test]
fn a_run_that_does_not_follow_on_its_shares_is_not_opened() {
    for curve in CURVES {
        let old = generate(curve, 63);
        let [client, node1, node2] = &old;
        let other_curve = generate(if curve == CURVES[0] { CURVES[1] } else { CURVES[0] }, 63);
        let (recover, refresh) = (Run::Recover(&old).context(), Run::Refresh(&old).context());
        let invalid = |refused: Option<Abort>| matches!(refused, Some(Abort::InvalidInput(_)));
        let node = |context: &Context, share: &KeyShare, recovers: bool| {
            let (identity, mut rng) = (identity(Party::Node1), rng(1));
            match recovers {
                true => NodeKeygen::recover(context, share, &identity, &mut rng).err(),
                false => NodeKeygen::refresh(context, share, &identity, &mut rng).err(),
            }
        };
        for (good, recovers) in [(&recover, true), (&refresh, false)] {
            assert!(node(good, node1, recovers).is_none() && node(good, node2, recovers).is_none());
            assert!(invalid(node(good, client, recovers)));
            assert_eq!(node(good, &other_curve[1], recovers), Some(OTHER_CURVE));
            for epoch in [0, 2, u32::MAX] {
                assert!(invalid(node(&Context { epoch, ..good.clone() }, node1, recovers)));
            }
        }
        assert!(invalid(node(&refresh, node1, true)) && invalid(node(&recover, node1, false)));
        for wrong in [node1, node2, &other_curve[0]] {
            assert!(invalid(ClientKeygen::refresh(&refresh, wrong, &mut rng(1)).err()));
        }
        let source = node1.source();
        assert!(invalid(ClientKeygen::refresh(&recover, client, &mut rng(1)).err()));
        assert!(invalid(ClientKeygen::recover(&refresh, &source, &mut rng(1)).err()));
        assert_eq!(ClientKeygen::recover(&recover, &other_curve[1].source(), &mut rng(1)).err(), Some(OTHER_CURVE));
        for epoch in [0, 2] {
            let context = Context { epoch, ..recover.clone() };
            assert!(invalid(ClientKeygen::recover(&context, &source, &mut rng(1)).err()));
        }
        // The last epoch has none after it.
        let last = Source { epoch: u32::MAX, ..source };
        for epoch in [0, u32::MAX] {
            let context = Context { epoch, ..recover.clone() };
            assert!(invalid(ClientKeygen::recover(&context, &last, &mut rng(1)).err()));
        }
    }
}

/// A client that has its share refreshes; and only a client has lost it.
#[test]
fn each_party_brings_its_own_origin() {
    let old = harness::run::<Ed25519>(1);
    let (recover, refresh) = (Case::Recover(&old), Case::Refresh(&old));
    let source = old[1].source();
    let opens = |setup, origin| Open::<Ed25519>::reshare(setup, origin, &mut rng(1)).is_ok();
    for party in Party::ALL {
        let is_client = party == Party::Client;
        assert_eq!(opens(recover.setup(party), Origin::RecoverTo(&source)), is_client);
        for share in &old {
            let own = share.party() == party;
            assert_eq!(opens(recover.setup(party), Origin::RecoverFrom(share)), own && !is_client);
            assert_eq!(opens(refresh.setup(party), Origin::Refresh(share)), own);
        }
    }
}

/// Client and node 1 sign, whatever the curve.
fn signs(client: &KeyShare, node1: &KeyShare) -> Result<(), Abort> {
    if client.curve() == CurveId::Secp256k1 {
        let (pair, request) = (Pair::of(client, node1), request([5; 32], "m/1"));
        return pair.sign_with(&request, &request, 1, &mut |_, _| {}).map(|_| ());
    }
    let (session, commitments) = FrostClient::start(&mut rng(1));
    let (theirs, z1, _) = node_sign(node1, b"message", &commitments, &mut rng(2))?;
    let signature = session.finish(client, b"message", &theirs, &z1)?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&client.public_key().try_into().unwrap()).unwrap();
    key.verify_strict(b"message", &ed25519_dalek::Signature::from_bytes(&signature)).unwrap();
    Ok(())
}

#[test]
fn new_shares_sign_and_shares_of_two_epochs_fail_harmlessly() {
    for curve in CURVES {
        let first = generate(curve, 64);
        let refreshed = run(Run::Refresh(&first), 65);
        let recovered = run(Run::Recover(&refreshed), 66);
        let again = run(Run::Refresh(&recovered), 67);
        let epochs = [&first, &refreshed, &recovered, &again];
        for (i, clients) in epochs.iter().enumerate() {
            for (j, nodes) in epochs.iter().enumerate() {
                assert_eq!(clients[0].public_key(), nodes[1].public_key());
                let outcome = signs(&clients[0], &nodes[1]);
                if i == j {
                    outcome.unwrap();
                    continue;
                }
                let check = if curve == CurveId::Secp256k1 { "epoch" } else { "frost_share" };
                assert_eq!(outcome.unwrap_err(), Abort::peer(Party::Node1, check), "{curve} {i} {j}");
                // Even where the epoch is made to look alike.
                let mut bytes = clients[0].to_bytes();
                bytes[19..23].copy_from_slice(&nodes[1].epoch().to_be_bytes());
                let relabelled = KeyShare::from_bytes(&bytes).unwrap();
                let check = if curve == CurveId::Secp256k1 { "ot_id" } else { "frost_share" };
                assert_eq!(signs(&relabelled, &nodes[1]).unwrap_err(), Abort::peer(Party::Node1, check));
            }
        }
        for pair in epochs.windows(2) {
            assert_eq!(pair[0][0].ot_id() == pair[1][0].ot_id(), curve == CurveId::Ed25519);
        }
    }
}

/// A lock erases the OT state at node 1, or at both: recovery and refresh give a new one.
#[test]
fn a_locked_key_is_recovered_and_refreshed_without_its_ot_state() {
    let [client, node1, node2] = generate(CurveId::Secp256k1, 68);
    let erased = |share: &KeyShare| KeyShare::from_bytes(&share.to_bytes_without_ot()).unwrap();
    let locked = [copy(&client), erased(&node1), copy(&node2)];
    assert!(signs(&locked[0], &locked[1]).is_err());
    let both_locked = [erased(&client), erased(&node1), copy(&node2)];
    for old in [&locked, &both_locked] {
        for what in [Run::Recover(old), Run::Refresh(old)] {
            let new = run(what, 69);
            assert_eq!(new[0].public_key(), client.public_key());
            assert_ne!(new[1].ot_id(), node1.ot_id());
            assert_eq!(new[0].ot_id(), new[1].ot_id());
            signs(&new[0], &new[1]).unwrap();
        }
    }
}

/// A round's payload of another run, of this operation or another, all else honest.
#[test]
fn messages_of_another_run_or_operation_do_not_fit() {
    let old = generate(CurveId::Ed25519, 70);
    let mut recorded = Vec::new();
    for what in [Run::Generate(CurveId::Ed25519), Run::Recover(&old), Run::Refresh(&old)] {
        run_with(what, 71, &mut |round, from, to, m| recorded.push(((round, from, to), m.clone()))).unwrap();
    }
    for what in [Run::Recover(&old), Run::Refresh(&old)] {
        for (place, bytes) in recorded.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let mut changed = false;
            let outcome = run_with(what, 72, &mut |round, from, to, message| {
                if (round, from, to) == *place {
                    changed = message != bytes;
                    message.clone_from(bytes);
                }
            });
            assert!(changed && !outcome.err().unwrap().is_ban(), "{place:?}");
        }
    }
}

/// One bit of every fourth byte that passes, in either direction: some of every field.
#[test]
fn every_field_of_every_message_is_under_a_check() {
    let old = generate(CurveId::Ed25519, 80);
    for what in [Run::Recover(&old), Run::Refresh(&old)] {
        let mut places = Vec::new();
        run_with(what, 81, &mut |round, from, to, m| {
            places.extend((0..m.len()).step_by(4).map(|at| (round, from, to, at)))
        })
        .unwrap();
        for (index, place) in places.into_iter().enumerate() {
            let outcome = run_with(what, 81, &mut |round, from, to, message| {
                if (round, from, to) == (place.0, place.1, place.2) {
                    message[place.3] ^= 1 << (index % 8);
                }
            });
            assert!(matches!(outcome, Err(Abort::Peer { ban: false, .. })), "{place:?}");
        }
    }
}
