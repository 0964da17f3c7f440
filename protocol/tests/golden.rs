//! A fixed run's messages, hashed: whatever changes what the parties compute changes this, and then
//! `PROTOCOL_REVISION` must go up, or parties of different versions lock each other's keys.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod pair;

use pair::{Pair, Run, generate_with, request, run_with};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use trefoil_protocol::CurveId;
use trefoil_protocol::ecdsa::Item;
use trefoil_protocol::ecdsa::client::Client;
use trefoil_protocol::ecdsa::node1::Node1;
use trefoil_protocol::transcript::PROTOCOL_REVISION;

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn a_fixed_run_is_what_this_revision_computes() {
    let mut keygen = Sha256::new();
    for curve in [CurveId::Secp256k1, CurveId::Ed25519] {
        generate_with(curve, 1, &mut |_, _, _, message| keygen.update(&*message)).unwrap();
    }
    let mut reshare = Sha256::new();
    for curve in [CurveId::Secp256k1, CurveId::Ed25519] {
        let old = pair::generate(curve, 1);
        for what in [Run::Recover(&old), Run::Refresh(&old)] {
            run_with(what, 1, &mut |_, _, _, message| reshare.update(&*message)).unwrap();
        }
    }
    let mut signing = Sha256::new();
    let request = request([3; 32], "m/1");
    let pair = Pair::new(1);
    pair.sign_with(&request, &request, 1, &mut |_, message| signing.update(&*message)).unwrap();
    let mut batch = Sha256::new();
    for index in 0..2 {
        let item = Item::new(index, 2).unwrap();
        let (mut c, mut n) = (pair::rng(1), pair::rng(2));
        let (node1, m1) = Node1::open_of_batch(pair.node1.clone(), request.clone(), item, &[9; 32], &mut n).unwrap();
        let client = Client::of_batch(pair.client.clone(), request.clone(), item, [9; 32]).unwrap();
        let (client, m2) = client.advance(&m1, &mut c).unwrap();
        let (m3, _) = node1.advance(&m2, &mut n).unwrap().release().unwrap();
        client.finish(&m3).unwrap();
        [m1, m2, m3].iter().for_each(|message| batch.update(message));
    }
    assert_eq!(hex(batch), "e5b287142eaf272f2fdb7d450337e71bbd2201900e40c59d2aefb73745ca1121");
    assert_eq!(
        (PROTOCOL_REVISION, hex(keygen).as_str(), hex(reshare).as_str(), hex(signing).as_str()),
        (
            1,
            "a484fe9ab92209a176d55e878669841eed8c6610bcba109664451d996e9a1b42",
            "858b8839cd89cb9abdcbf540ac44e22014e60676ba8b6a19cf711d4dd8bf7f47",
            "ee2f1e35e70bc7f0e6811e095df0e10405e0699ee758d65870293ef803375e00",
        ),
    );
}
