//! Every check of key generation, recovery and refresh, against a party or a relay that breaks exactly that rule and nothing else: its
//! hashes, proofs and signatures are made anew around the change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod harness;

use ed25519_dalek::SigningKey;
use harness::reference::{Cheat, Fields, Polynomial, echo_prefix, run_against};
use harness::{Case, Round, TestCurve, identity, interpolate, rng, run, run_case, secret, setup};
use num_bigint::BigUint;
use trefoil_protocol::curve::{Ed25519, Secp256k1};
use trefoil_protocol::dkg::{Open, Setup};
use trefoil_protocol::{Abort, Party};

/// Both honest parties must name the cheater and the check.
fn caught<C: TestCurve>((case, role): (Case<'_>, Party), cheat: &Cheat, check: &'static str, what: &str) {
    let aborts = match run_against::<C>(case, role, cheat) {
        Ok(_) => panic!("{what} by {role} went through in {case:?}"),
        Err(aborts) => aborts,
    };
    let expected = role.others().map(|p| (p, Abort::Peer { culprit: role, ban: false, check }));
    assert_eq!(aborts, expected, "{what} by {role} in {case:?}");
}

/// In a key generation, a recovery and a refresh, each party in turn, on this curve.
fn each_role<C: TestCurve>(f: impl Fn(Case<'_>, Party)) {
    for case in Case::all(&run::<C>(5)) {
        Party::ALL.into_iter().for_each(|role| f(case, role));
    }
}

fn dealing(change: impl Fn(&mut Fields) + 'static) -> Cheat {
    Cheat { dealing: Box::new(move |_, fields| change(fields)), ..Cheat::default() }
}

fn reveal(change: impl Fn(&mut Fields) + 'static) -> Cheat {
    Cheat { reveal: Box::new(move |_, fields| change(fields)), ..Cheat::default() }
}

fn both_curves(f: fn(Case<'_>, Party), g: fn(Case<'_>, Party)) {
    each_role::<Secp256k1>(f);
    each_role::<Ed25519>(g);
}

/// What only a key generation has.
fn both_curves_anew(f: fn(Case<'_>, Party), g: fn(Case<'_>, Party)) {
    Party::ALL.into_iter().for_each(|role| f(Case::Generate, role));
    Party::ALL.into_iter().for_each(|role| g(Case::Generate, role));
}

#[test]
fn a_second_implementation_written_from_the_specification_agrees() {
    fn agrees<C: TestCurve>(case: Case<'_>, role: Party) {
        let (shares, x) = run_against::<C>(case, role, &Cheat::default()).unwrap();
        let [p, r] = role.others();
        let (xp, xr) = (secret::<C>(&shares[0]), secret::<C>(&shares[1]));
        let key = interpolate(&C::order(), (p, &xp), (r, &xr));
        assert_eq!(interpolate(&C::order(), (role, &x), (p, &xp)), key);
        assert_eq!(interpolate(&C::order(), (role, &x), (r, &xr)), key);
        if let Some([client, node1, _]) = case.old() {
            let (a, b) = (secret::<C>(client), secret::<C>(node1));
            assert_eq!(interpolate(&C::order(), (Party::Client, &a), (Party::Node1, &b)), key);
        }
    }
    both_curves(agrees::<Secp256k1>, agrees::<Ed25519>);
}

#[test]
fn a_dealing_other_than_the_committed_one_is_refused() {
    fn refused<C: TestCurve>(case: Case<'_>, role: Party) {
        let commitment = Cheat { commitment: Box::new(|_, c| c[31] ^= 1), ..Cheat::default() };
        caught::<C>((case, role), &commitment, "dkg_commitment", "another commitment");
        let other_point = C::encode_point(&C::mul_generator(&7u64.into())).as_ref().to_vec();
        let other_slope = reveal(move |f| f.a1.clone_from(&other_point));
        let of_all = [("salt", (|f| f.salt[0] ^= 1) as fn(&mut Fields)), ("ephemeral", |f| f.ephemeral[0] ^= 1)];
        for (what, change) in of_all {
            caught::<C>((case, role), &reveal(change), "dkg_commitment", what);
        }
        if case.deals(role) {
            caught::<C>((case, role), &other_slope, "dkg_commitment", "slope");
        }
        if matches!(case, Case::Generate) {
            caught::<C>((case, role), &reveal(|f| f.chain_code_part[0] ^= 1), "dkg_commitment", "chain code");
            caught::<C>((case, role), &reveal(|f| f.a0 = f.a1.clone()), "dkg_commitment", "constant");
        }
    }
    both_curves(refused::<Secp256k1>, refused::<Ed25519>);
}

#[test]
fn a_proof_that_does_not_hold_is_refused() {
    fn refused<C: TestCurve>(case: Case<'_>, role: Party) {
        let next = |z: &mut Vec<u8>| *z = C::from_integer(&((C::to_integer(z) + 1u8) % C::order())).to_vec();
        caught::<C>((case, role), &dealing(move |f| next(&mut f.z)), "dkg_proof", "another response");
        caught::<C>((case, role), &dealing(|f| f.z = vec![0; 32]), "dkg_proof", "a zero response");
        caught::<C>((case, role), &dealing(|f| f.k = f.a1.clone()), "dkg_proof", "another nonce point");
        caught::<C>((case, role), &dealing(|f| f.a0 = f.a1.clone()), "dkg_proof", "a constant term not known");
        let other_party = Cheat { proof_for: Box::new(|_, p| p.1 = p.1.others()[0]), ..Cheat::default() };
        caught::<C>((case, role), &other_party, "dkg_proof", "another party's proof");
        let other_session = Cheat { proof_for: Box::new(|_, p| p.0[0] ^= 1), ..Cheat::default() };
        caught::<C>((case, role), &other_session, "dkg_proof", "another session's proof");
    }
    both_curves_anew(refused::<Secp256k1>, refused::<Ed25519>);
}

#[test]
fn points_and_scalars_that_are_not_canonical_are_refused() {
    fn refused<C: TestCurve>(points: Vec<Vec<u8>>) {
        for case in Case::all(&run::<C>(5)) {
            let by = (case, Party::Node1);
            let fresh = matches!(case, Case::Generate);
            for bad in &points {
                let (a, b, c) = (bad.clone(), bad.clone(), bad.clone());
                caught::<C>(by, &dealing(move |f| f.a1.clone_from(&b)), "dkg_shape", "slope");
                if fresh {
                    caught::<C>(by, &dealing(move |f| f.a0.clone_from(&a)), "dkg_shape", "constant");
                    caught::<C>(by, &dealing(move |f| f.k.clone_from(&c)), "dkg_shape", "nonce point");
                }
            }
            if fresh {
                caught::<C>(by, &dealing(|f| f.z = vec![0xff; 32]), "dkg_shape", "the largest scalar");
                caught::<C>(by, &dealing(|f| f.z = C::from_integer(&C::order()).to_vec()), "dkg_shape", "q");
            }
        }
    }
    refused::<Secp256k1>(harness::bad_secp256k1_points());
    refused::<Ed25519>(harness::bad_ed25519_points().into_iter().map(Vec::from).collect());
}

/// Dealers that deal another secret than theirs, and everything else by the rules: neither party takes such a share.
#[test]
fn a_dealer_that_deals_another_secret_is_refused() {
    type Change = (&'static str, fn(&mut BigUint, &BigUint));
    fn refused<C: TestCurve>(case: Case<'_>, role: Party) {
        if !case.deals(role) || matches!(case, Case::Generate) {
            return;
        }
        let of_all: [Change; 3] = [
            ("one more", |a0, q| *a0 = (&*a0 + 1u8) % q),
            ("its double and one", |a0, q| *a0 = (&*a0 * 2u8 + 1u8) % q),
            ("a secret of its own", |a0, _| *a0 = BigUint::from(42u8)),
        ];
        // Its share without its weight, with the weight of another pair, negated, and nothing at all.
        let of_recovery: [Change; 4] = [
            ("half or a third", |a0, q| *a0 = &*a0 * (q + 1u8) / 2u8 % q),
            ("its double", |a0, q| *a0 = &*a0 * 2u8 % q),
            ("the opposite", |a0, q| *a0 = (q - &*a0) % q),
            ("nothing", |a0, _| *a0 = BigUint::ZERO),
        ];
        let recovers = matches!(case, Case::Recover(_));
        for (what, change) in of_all.into_iter().chain(of_recovery.into_iter().filter(|_| recovers)) {
            let polynomial = Box::new(move |p: &mut Polynomial| change(&mut p.0, &C::order()));
            caught::<C>((case, role), &Cheat { polynomial, ..Cheat::default() }, "dkg_share", what);
        }
        // The old share, where zero belongs or the weighted share.
        let old = secret::<C>(&case.old().unwrap()[usize::from(role.point()) - 1]);
        let polynomial = Box::new(move |p: &mut Polynomial| p.0.clone_from(&old));
        caught::<C>((case, role), &Cheat { polynomial, ..Cheat::default() }, "dkg_share", "its share itself");
    }
    both_curves(refused::<Secp256k1>, refused::<Ed25519>);
}

/// A recovering client has nothing to deal: not in its dealing, and no sub-share.
#[test]
fn a_client_that_recovers_cannot_deal() {
    fn refused<C: TestCurve>() {
        let old = run::<C>(5);
        let by = (Case::Recover(&old), Party::Client);
        let point = C::encode_point(&C::mul_generator(&7u64.into())).as_ref().to_vec();
        caught::<C>(by, &dealing(move |f| f.a1.clone_from(&point)), "dkg_shape", "a slope");
        for len in [1, 32, 48] {
            let sealed = Cheat { sealed: Box::new(move |_, s| s.resize(len, 0)), ..Cheat::default() };
            caught::<C>(by, &sealed, "dkg_shape", "a sub-share");
        }
    }
    refused::<Secp256k1>();
    refused::<Ed25519>();
}

#[test]
fn an_echo_of_other_broadcasts_or_by_another_key_is_refused() {
    fn refused<C: TestCurve>(case: Case<'_>, role: Party) {
        let other = Cheat { echo: Box::new(|_, e| e[0] ^= 1), ..Cheat::default() };
        caught::<C>((case, role), &other, "dkg_echo", "another view, signed");
        if role == Party::Client {
            let signed = Cheat { signature: Box::new(|_, s| s.1 = identity(Party::Node1)), ..Cheat::default() };
            caught::<C>((case, role), &signed, "dkg_shape", "a signature where none belongs");
            return;
        }
        for (what, key) in [
            ("a stranger's signature", SigningKey::from_bytes(&[0x77; 32])),
            ("another party's signature", identity(role.others()[1]).unwrap_or(SigningKey::from_bytes(&[1; 32]))),
        ] {
            let cheat = Cheat { signature: Box::new(move |_, s| s.1 = Some(key.clone())), ..Cheat::default() };
            caught::<C>((case, role), &cheat, "dkg_echo", what);
        }
        let untagged = Cheat { signature: Box::new(|_, s| s.0.clear()), ..Cheat::default() };
        caught::<C>((case, role), &untagged, "dkg_echo", "a signature without the tag");
        let other = match case {
            Case::Generate => echo_prefix(Case::Refresh(&run::<C>(5))),
            Case::Recover(_) | Case::Refresh(_) => echo_prefix(Case::Generate),
        };
        let elsewhere = Cheat { signature: Box::new(move |_, s| s.0.clone_from(&other)), ..Cheat::default() };
        caught::<C>((case, role), &elsewhere, "dkg_echo", "a signature for another kind of run");
        let unsigned = Cheat { signature: Box::new(|_, s| s.1 = None), ..Cheat::default() };
        caught::<C>((case, role), &unsigned, "dkg_shape", "no signature");
    }
    both_curves(refused::<Secp256k1>, refused::<Ed25519>);
}

/// One party shows a different, well-made dealing to each of the others, and to each the echo that it expects.
#[test]
fn equivocation_is_seen_by_both_others() {
    fn seen<C: TestCurve>(case: Case<'_>, role: Party) {
        let [favoured, _] = role.others();
        let cheat = Cheat { dealing: Box::new(move |to, f| f.salt[0] ^= u8::from(to == favoured)), ..Cheat::default() };
        let aborts = run_against::<C>(case, role, &cheat).map(|_| ()).unwrap_err();
        let blamed: Vec<_> = aborts.iter().map(|(by, abort)| (*by, abort.check())).collect();
        // A party whose echo is checked first is named first; both abort before any sub-share leaves.
        assert_eq!(blamed, role.others().map(|p| (p, "dkg_echo")));
    }
    both_curves(seen::<Secp256k1>, seen::<Ed25519>);
}

#[test]
fn a_sub_share_that_does_not_fit_is_refused() {
    fn refused<C: TestCurve>(case: Case<'_>, role: Party) {
        if case.deals(role) {
            let share =
                |change: fn(&mut [u8; 32])| Cheat { share: Box::new(move |_, s| change(s)), ..Cheat::default() };
            let sealed =
                |change: fn(&mut Vec<u8>)| Cheat { sealed: Box::new(move |_, s| change(s)), ..Cheat::default() };
            let next = |s: &mut [u8; 32]| *s = C::from_integer(&((C::to_integer(s) + 1u8) % C::order()));
            caught::<C>((case, role), &share(next), "dkg_share", "share plus one");
            caught::<C>((case, role), &share(|s| *s = [0; 32]), "dkg_share", "zero");
            // The right value in another encoding, q more than it, where that has 32 bytes.
            let wrapped = share(|s| {
                let sum = C::to_integer(s) + C::order();
                *s = if sum.bits() <= 256 { C::from_integer(&sum) } else { [0xff; 32] };
            });
            caught::<C>((case, role), &wrapped, "dkg_share", "share plus q");
            caught::<C>((case, role), &sealed(|s| s[0] ^= 1), "dkg_share", "a flipped bit");
            caught::<C>((case, role), &sealed(|s| s[47] ^= 1), "dkg_share", "a flipped bit of the tag");
        }
        // Ephemerals that make the shared secret zero, which the cheater then seals with: anyone could open both.
        let one = core::array::from_fn(|i| u8::from(i == 0));
        for bad in [[0; 32], one] {
            let mut cheat = dealing(move |f| f.ephemeral = bad.to_vec());
            cheat.shared = Box::new(|_, shared| *shared = [0; 32]);
            caught::<C>((case, role), &cheat, "dkg_share", "an ephemeral of small order");
        }
    }
    both_curves(refused::<Secp256k1>, refused::<Ed25519>);
}

/// Every message, of every round, of every sender, at every length that is not its own.
#[test]
fn wrong_lengths_are_refused_and_change_nothing() {
    fn refused<C: TestCurve>(case: Case<'_>, from: Party) {
        for round in [Round::Open, Round::Commit, Round::Reveal, Round::Echo, Round::Deal] {
            for change in [
                (|m| m.clear()) as fn(&mut Vec<u8>),
                |m| m.truncate(m.len().saturating_sub(1)),
                |m| m.push(0),
                |m| m.resize(1 << 20, 0),
            ] {
                let mut changed = false;
                let outcome = run_case::<C>(case, 1, &mut |r, f, _, m| {
                    if (r, f) == (round, from) {
                        let len = m.len();
                        change(m);
                        changed |= m.len() != len;
                    }
                });
                let expected = from.others().map(|p| (p, Abort::peer(from, "dkg_shape")));
                match changed {
                    true => assert_eq!(outcome.map(|_| ()).unwrap_err(), expected, "{round:?} of {from}"),
                    // What is empty stays so.
                    false => assert!(round == Round::Deal && !case.deals(from)),
                }
            }
        }
    }
    both_curves(refused::<Secp256k1>, refused::<Ed25519>);
}

/// A relay that puts one party's message in another's place, or gives a party its own one back.
#[test]
fn messages_count_only_as_their_senders() {
    fn refused<C: TestCurve>(case: Case<'_>, victim: Party) {
        let mut recorded = Vec::new();
        run_case::<C>(case, 1, &mut |r, f, t, m| recorded.push((r, f, t, m.clone()))).unwrap();
        let find =
            |round, from, to| recorded.iter().find(|(r, f, t, _)| (*r, *f, *t) == (round, from, to)).unwrap().3.clone();
        for (round, checks) in [
            (Round::Open, ["dkg_commitment"].as_slice()),
            (Round::Commit, &["dkg_commitment"]),
            // (A recovering client's messages differ from a dealer's in their lengths.)
            (Round::Reveal, &["dkg_commitment", "dkg_shape"]),
            (Round::Echo, &["dkg_echo", "dkg_shape"]),
            (Round::Deal, &["dkg_share", "dkg_shape"]),
        ] {
            {
                let [a, b] = victim.others();
                // The two others' messages to the victim change places.
                let swapped = run_case::<C>(case, 1, &mut |r, f, t, m| {
                    if (r, t) == (round, victim) {
                        *m = find(round, if f == a { b } else { a }, victim);
                    }
                });
                // The victim receives what it sent to `a`.
                let reflected = run_case::<C>(case, 1, &mut |r, f, t, m| {
                    if (r, f, t) == (round, a, victim) {
                        *m = find(round, victim, a);
                    }
                });
                // What another party should have received.
                let misdirected = run_case::<C>(case, 1, &mut |r, f, t, m| {
                    if (r, f, t) == (round, a, victim) {
                        *m = find(round, a, b);
                    }
                });
                // (A client that deals nothing sends the same nothing to everybody, and receives it back.)
                for outcome in [swapped, reflected] {
                    let aborts = outcome.map(|_| ()).unwrap_err();
                    // (Swapping two contributions changes the session's name for one party only: others notice too.)
                    assert!(aborts.iter().any(|(by, _)| *by == victim), "{round:?} {victim}: {aborts:?}");
                    assert!(aborts.iter().all(|(_, e)| checks.contains(&e.check())), "{round:?} {victim}: {aborts:?}");
                }
                if round == Round::Deal && case.deals(a) {
                    let aborts = misdirected.map(|_| ()).unwrap_err();
                    assert_eq!(aborts, [(victim, Abort::peer(a, "dkg_share"))]);
                }
            }
        }
    }
    both_curves(refused::<Secp256k1>, refused::<Ed25519>);
}

/// Parties that do not mean the same key never get to deal.
#[test]
fn every_field_of_the_setup_is_bound() {
    let changes: [fn(&mut Setup); 3] = [|s| s.key_id[15] ^= 1, |s| s.epoch += 1, |s| s.job_digest[31] ^= 1];
    for change in changes {
        let start = |party: Party| {
            let mut setup = setup(party);
            if party == Party::Node2 {
                change(&mut setup);
            }
            Open::<Ed25519>::start(setup, &mut rng(party.point().into()))
        };
        let ((c, nc), (n1, nn1), (n2, nn2)) = (start(Party::Client), start(Party::Node1), start(Party::Node2));
        let (c, cc) = c.commit([&nn1, &nn2]).unwrap();
        let (n1, cn1) = n1.commit([&nc, &nn2]).unwrap();
        let (n2, cn2) = n2.commit([&nc, &nn1]).unwrap();
        assert_ne!(n1.sid(), n2.sid());
        let (c, dc) = c.reveal([&cn1, &cn2]).unwrap();
        let (n1, dn1) = n1.reveal([&cc, &cn2]).unwrap();
        let (n2, dn2) = n2.reveal([&cc, &cn1]).unwrap();
        let refused = |culprit| Some(Abort::peer(culprit, "dkg_commitment"));
        assert_eq!(c.echo([&dn1, &dn2], None).err(), refused(Party::Node2));
        assert_eq!(n1.echo([&dc, &dn2], identity(Party::Node1).as_ref()).err(), refused(Party::Node2));
        assert_eq!(n2.echo([&dc, &dn1], identity(Party::Node2).as_ref()).err(), refused(Party::Client));
    }
}

#[test]
fn an_identity_that_the_others_do_not_know_is_not_used() {
    let outcome = |identity_of: fn(Party) -> Option<SigningKey>| {
        let start = |party: Party| Open::<Ed25519>::start(setup(party), &mut rng(party.point().into()));
        let ((c, nc), (n1, nn1), (_, nn2)) = (start(Party::Client), start(Party::Node1), start(Party::Node2));
        let (c, _) = c.commit([&nn1, &nn2]).unwrap();
        let (n1, _) = n1.commit([&nc, &nn2]).unwrap();
        let zero = [0u8; 32];
        let (c, n1) = (c.reveal([&zero, &zero]).unwrap().0, n1.reveal([&zero, &zero]).unwrap().0);
        let client = c.echo([&zero, &zero], identity_of(Party::Client).as_ref()).map(|_| ()).unwrap_err();
        let node1 = n1.echo([&zero, &zero], identity_of(Party::Node1).as_ref()).map(|_| ()).unwrap_err();
        [client, node1].map(|abort| matches!(abort, Abort::InvalidInput(_)))
    };
    assert_eq!(outcome(identity), [false, false]);
    assert_eq!(outcome(|_| None), [false, true]);
    assert_eq!(outcome(|_| identity(Party::Node2)), [true, true]);
}

/// A share of another key generation fits neither verifying shares nor key: the oracle agrees that it must not.
#[test]
fn two_runs_never_share_a_line() {
    let a = harness::run::<Secp256k1>(1);
    let b = harness::run::<Secp256k1>(2);
    let of = |share, party| (party, secret::<Secp256k1>(share));
    let (p, x) = of(&a[0], Party::Client);
    let (r, y) = of(&b[1], Party::Node1);
    let mixed: BigUint = interpolate(&Secp256k1::order(), (p, &x), (r, &y));
    let key = interpolate(&Secp256k1::order(), (p, &x), (Party::Node1, &secret::<Secp256k1>(&a[1])));
    assert_ne!(mixed, key);
}
