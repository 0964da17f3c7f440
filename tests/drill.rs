//! `trefoil node drill` and `pending`: what a stopped node's data directory, or a copy of it, is worth.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::{Cluster, read};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use trefoil::wire::Curve;
use trefoil_protocol::Party;

/// Bytes of a slot.
const SLOT: usize = 64;

fn trefoil(env: &HashMap<String, String>, arguments: &[&str]) -> (Option<i32>, Value) {
    let done = support::command("trefoil").envs(env).args(arguments).arg("--json").output().unwrap();
    let object = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    (done.status.code(), object)
}

fn drill(env: &HashMap<String, String>, directory: &Path) -> (Option<i32>, Value) {
    trefoil(env, &["node", "drill", "--data-dir", directory.to_str().unwrap()])
}

fn message(object: &Value) -> &str {
    object["error"]["message"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_tells_a_good_backup_from_a_bad_one_and_changes_neither() {
    let mut cluster = Cluster::start().await;
    let ecdsa = cluster.committed_key("g1", Curve::Secp256k1).await;
    let replaced = cluster.committed_key("g2", Curve::Ed25519).await;
    let prepared = cluster.generate("g3", Curve::Ed25519).await;
    // The shares of before are nobody's loss, nor are they pending.
    let refreshed = cluster.refresh(&replaced, "f1").await;
    cluster.commit(&refreshed).await;
    let (data, env) = (cluster.data(Party::Node1), cluster.env(Party::Node1));
    let (code, told) = drill(&env, &data);
    assert_eq!(code, Some(2));
    assert!(message(&told).ends_with("the node is running: stop it to read its store"), "{told}");
    for role in [Party::Node1, Party::Node2] {
        cluster.drain_node(role).await;
        let (code, told) = trefoil(&cluster.env(role), &["node", "drill"]);
        assert_eq!(
            (code, told),
            (Some(0), json!({ "whole": 3, "former": 0, "ended": 0, "lost": 0, "broken": [] })),
            "{role}"
        );
    }
    let (code, told) = trefoil(&HashMap::new(), &["node", "pending", data.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    assert_eq!(told["prepared"].as_array().unwrap().len(), 1);
    assert_eq!(told["prepared"][0]["keyId"], prepared.id().to_string());
    assert_eq!(told["prepared"][0]["resultSubject"], format!("mpc.result.{}.g3", cluster.initiator()));

    let copy = tempfile::tempdir().unwrap();
    let files = ["store.redb", "slots"];
    let restore = || files.map(|name| std::fs::copy(data.join(name), copy.path().join(name)).unwrap());
    restore();
    assert_eq!(drill(&env, copy.path()).0, Some(0));
    assert_eq!(files.map(|name| read(&copy.path().join(name))), files.map(|name| read(&data.join(name))));

    // A data key that is altered, or overwritten, as that of a share which ended after the copy was made.
    for fill in [None, Some(0)] {
        let mut slots = read(&data.join("slots"));
        match fill {
            None => slots[SLOT + 20] ^= 1,
            Some(zero) => slots[SLOT..2 * SLOT].fill(zero),
        }
        std::fs::write(copy.path().join("slots"), &slots).unwrap();
        let (code, told) = drill(&env, copy.path());
        assert_eq!((code, &told["error"]["whole"]), (Some(4), &json!(2)), "{told}");
        let expected =
            json!([{ "keyId": ecdsa.id().to_string(), "why": "corrupt: the data key of a share is gone or altered" }]);
        assert_eq!(told["error"]["broken"], expected);
        assert_eq!(read(&copy.path().join("slots")), slots, "nothing is repaired or wiped");
    }
    std::fs::remove_file(copy.path().join("slots")).unwrap();
    let (code, told) = drill(&env, copy.path());
    assert_eq!(code, Some(2));
    assert!(message(&told).contains("the slot file is missing"), "{told}");
    restore();
    std::fs::copy(cluster.data(Party::Node2).join("slots"), copy.path().join("slots")).unwrap();
    assert!(message(&drill(&env, copy.path()).1).contains("the slot file belongs to another store"));
    restore();

    let with = |name: &str, value: String| {
        let mut env = env.clone();
        env.insert(name.to_owned(), value);
        drill(&env, copy.path())
    };
    let (code, told) = with("TREFOIL_MASTER_KEY", "08".repeat(32));
    assert_eq!(code, Some(2));
    assert!(message(&told).contains("the master key does not fit the store"), "{told}");
    assert!(message(&with("TREFOIL_ROLE", "node2".into()).1).contains("the store belongs to the other node"));
    let (code, told) = with("TREFOIL_IDENTITY_SEED", nkeys::KeyPair::new_server().seed().unwrap());
    assert_eq!((code, told["error"]["broken"].as_array().unwrap().len()), (Some(4), 3));
    assert_eq!(told["error"]["broken"][0]["why"], "this node's identity did not attest it");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(drill(&env, empty.path()).0, Some(2));
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "no store is made where there is none");

    // The node itself still starts; and with what it makes from now on, the old copy of its store is refused.
    for role in [Party::Node1, Party::Node2] {
        cluster.start_node(role).await;
    }
    cluster.to1.renew().await.unwrap();
    cluster.to2.renew().await.unwrap();
    for job in ["g4", "g5"] {
        cluster.generate(job, Curve::Ed25519).await;
    }
    cluster.drain_node(Party::Node1).await;
    std::fs::copy(data.join("slots"), copy.path().join("slots")).unwrap();
    let (code, told) = drill(&env, copy.path());
    assert_eq!(code, Some(2));
    assert!(message(&told).contains("the store is older than the slot file"), "{told}");
}
