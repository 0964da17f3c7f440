//! The same work by `dkls23-core`, through its session types.

use dkls23_core::protocols::dkg_session::DkgSession;
use dkls23_core::protocols::sign_session::SignSession;
use dkls23_core::protocols::signing::SignData;
use dkls23_core::protocols::{Parameters, Party, PartyIndex};
use k256::Secp256k1;
use std::collections::BTreeMap;

const PARTIES: [u8; 3] = [1, 2, 3];

fn index(party: u8) -> PartyIndex {
    PartyIndex::new(party).unwrap()
}

/// Key generation of all three parties.
pub fn generate() -> Vec<Party<Secp256k1>> {
    let parameters = Parameters { threshold: 2, share_count: 3 };
    let session = |party| DkgSession::<Secp256k1>::new(parameters.clone(), index(party), vec![7; 32]);
    let mut sessions: Vec<_> = PARTIES.map(session).into();
    let fragments: Vec<_> = sessions.iter().map(DkgSession::phase1).collect();
    let (mut proofs, mut zero2, mut bip2) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (at, session) in sessions.iter_mut().enumerate() {
        let mine: Vec<_> = fragments.iter().map(|row| row[at]).collect();
        let (proof, zero, bip) = session.phase2(&mine).unwrap();
        proofs.push(proof);
        zero2.extend(zero);
        bip2.insert(index(PARTIES[at]), bip);
    }
    let (mut zero3, mut mul3, mut bip3) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (at, session) in sessions.iter_mut().enumerate() {
        let (zero, mul, bip) = session.phase3().unwrap();
        zero3.extend(zero);
        mul3.extend(mul);
        bip3.insert(index(PARTIES[at]), bip);
    }
    let finish = |(session, party): (DkgSession<Secp256k1>, u8)| {
        let me = index(party);
        let zero2: Vec<_> = zero2.iter().filter(|m| m.parties.receiver == me).cloned().collect();
        let zero3: Vec<_> = zero3.iter().filter(|m| m.parties.receiver == me).cloned().collect();
        let mul3: Vec<_> = mul3.iter().filter(|m| m.parties.receiver == me).cloned().collect();
        session.phase4(&proofs, &zero2, &zero3, &mul3, &bip2, &bip3, |_| String::new()).unwrap().0
    };
    sessions.into_iter().zip(PARTIES).map(finish).collect()
}

/// One signature of parties 1 and 2.
pub fn sign(parties: &[Party<Secp256k1>]) {
    let data = |other| SignData { sign_id: vec![1; 32], counterparties: vec![index(other)], message_hash: [7; 32] };
    let (mut first, from_first) = SignSession::new(&parties[0], data(2)).unwrap();
    let (mut second, from_second) = SignSession::new(&parties[1], data(1)).unwrap();
    let (to_second, to_first) = (first.phase2(&from_second).unwrap(), second.phase2(&from_first).unwrap());
    let shares = [first.phase3(&to_first).unwrap(), second.phase3(&to_second).unwrap()];
    // Only the client combines and verifies in Trefoil, so only one party does here.
    first.phase4(&shares, true).unwrap();
}
