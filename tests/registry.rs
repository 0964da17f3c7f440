//! The registry of keys: what generate, refresh and recover enter, labels, lists; at the store, at node 1, and through the whole service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod deployment;
mod stored;
mod support;

use cluster::{Cluster, Key, MINUTE, refused};
use deployment::Deployment;
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::ops::Bound;
use stored::{CANARY, KEY, NEW, attempt, initiator, job, open, order, recovery, refresh, secret};
use trefoil::node::store::{Attempt, KeyState, RedbStore, Registered, Store, StoreError};
use trefoil::wire::node::{ListedKey, NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, KeyId, KeysBody, ListedState, Op, RegisterBody, SignedJob};
use trefoil_protocol::Party;

fn all(store: &RedbStore) -> Vec<Registered> {
    store.registered(&initiator(), Bound::Unbounded, 100).unwrap().0
}

#[tokio::test]
async fn what_is_committed_is_registered_and_keeps_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    let labelled = Attempt { label: Some("till".to_owned()), ..attempt(1) };
    store.stage(labelled, secret(CANARY), None).await.unwrap();
    assert!(all(&store).is_empty(), "prepared, it is no key");
    store.commit(KEY, [1; 32]).await.unwrap();
    let first = all(&store).remove(0);
    assert_eq!((first.label.as_deref(), first.record.state), (Some("till"), KeyState::Active));
    let rename = |id: &str, label: &str, at| store.label(job(id, 1), KEY, Some(label.to_owned()), at);
    rename("l1", "counter", 1_000).await.unwrap();
    rename("l1", "ignored: the same job", 9_000).await.unwrap();
    // A label that was held back does not undo a newer one.
    let stale = rename("l2", "old", 1_000).await;
    assert_eq!(stale, Err(StoreError::Refused(ErrorCode::JobSuperseded)));
    drop(store);
    store = open(folder.path()).unwrap();
    assert_eq!(all(&store)[0].label.as_deref(), Some("counter"), "also after a restart");
    // A refresh changes neither name nor age, a recovery takes the name along.
    store.stage(refresh(2, 1), secret(CANARY), None).await.unwrap();
    store.commit(KEY, [2; 32]).await.unwrap();
    let refreshed = all(&store).remove(0);
    assert_eq!((refreshed.created_at, refreshed.label.as_deref()), (first.created_at, Some("counter")));
    assert_eq!(refreshed.record.attempt.epoch, 2);
    store.stage(recovery(3, 2), secret(CANARY), None).await.unwrap();
    store.commit(NEW, [3; 32]).await.unwrap();
    store.commit(NEW, [3; 32]).await.unwrap();
    let [old, new] = <[Registered; 2]>::try_from(all(&store)).unwrap();
    assert_eq!((old.record.state, old.record.successor), (KeyState::Retired, Some(NEW)));
    assert_eq!((new.label.as_deref(), new.record.attempt.source_key_id), (Some("counter"), Some(KEY)));
    assert!(new.created_at >= first.created_at);
    // What has ended keeps its name, and gets no other.
    let late = store.label(job("l3", 1), KEY, Some("late".to_owned()), 10_000).await;
    assert_eq!(late, Err(StoreError::Replaced { successor: NEW }));
    store.label(job("l4", 1), NEW, Some(String::new()), 10_000).await.unwrap();
    assert_eq!(all(&store)[1].label, None, "taken away");
    store.order(order(NEW, KeyState::Destroyed, 11_000)).await.unwrap();
    assert_eq!(all(&store)[1].record.state, KeyState::Destroyed);
    let unknown = store.label(job("l5", 1), KeyId([9; 16]), Some(String::new()), 1).await;
    assert_eq!(unknown, Err(StoreError::Refused(ErrorCode::UnknownKey)));
}

#[tokio::test]
async fn lists_go_on_where_they_ended() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let other = KeyPair::new_user().public_key().parse().unwrap();
    for key in [0, 1, 5, 0xFF] {
        let key_id = KeyId([key; 16]);
        store.stage(Attempt { key_id, ..attempt(1) }, secret(CANARY), None).await.unwrap();
        store.commit(key_id, [1; 32]).await.unwrap();
    }
    let page = |from, limit| {
        let (keys, more) = store.registered(&initiator(), from, limit).unwrap();
        (keys.iter().map(|key| key.record.attempt.key_id.0[0]).collect::<Vec<_>>(), more)
    };
    assert_eq!(page(Bound::Unbounded, 100), (vec![0, 1, 5, 0xFF], false));
    assert_eq!(page(Bound::Unbounded, 2), (vec![0, 1], true));
    assert_eq!(page(Bound::Excluded(KeyId([1; 16])), 2), (vec![5, 0xFF], false));
    assert_eq!(page(Bound::Included(KeyId([1; 16])), 1), (vec![1], true));
    assert_eq!(page(Bound::Excluded(KeyId([0xFF; 16])), 2), (vec![], false));
    assert!(store.registered(&other, Bound::Unbounded, 100).unwrap().0.is_empty());
}

async fn manage(cluster: &Cluster, job: &SignedJob) -> NodeReply {
    cluster.ask1(NodeRequest::Manage { job: job.clone() }).await
}

fn listed(reply: NodeReply) -> Vec<ListedKey> {
    match reply {
        NodeReply::Listed { keys, .. } => keys,
        other => panic!("no list: {other:?}"),
    }
}

fn keys_job(cluster: &Cluster, job_id: &str) -> SignedJob {
    cluster.job(Op::Keys, job_id, cluster.key_id(job_id), MINUTE, KeysBody::default())
}

fn register_job(cluster: &Cluster, job_id: &str, key: &Key, change: impl FnOnce(&mut Value)) -> SignedJob {
    let public_key = data_encoding::HEXLOWER.encode(&key.share.public_key());
    let mut payload = json!(RegisterBody { curve: "ed25519".to_owned(), public_key, label: Some("till".to_owned()) });
    change(&mut payload);
    cluster.job(Op::RegisterKey, job_id, key.id(), MINUTE, payload)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_true_of_an_own_key_is_registered() {
    let mut cluster = Cluster::start().await;
    let other = KeyPair::new_user();
    let grant = format!(
        "[[initiators]]\nname = \"other\"\nkey = \"{}\"\noperations = [\"keys\", \"register-key\"]\ncurves = [\"ed25519\"]",
        other.public_key()
    );
    cluster.write_policy(&grant);
    cluster.reload_policy(Party::Node1).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let wrong: [(&str, Value, ErrorCode); 12] = [
        ("curve", "secp256k1".into(), ErrorCode::PublicKeyMismatch),
        ("curve", "p256".into(), ErrorCode::UnsupportedCurve),
        ("publicKey", "11".repeat(32).into(), ErrorCode::PublicKeyMismatch),
        ("publicKey", "11".repeat(31).into(), ErrorCode::PublicKeyMismatch),
        ("publicKey", "AB".repeat(32).into(), ErrorCode::PublicKeyMismatch),
        ("publicKey", "".into(), ErrorCode::PublicKeyMismatch),
        ("publicKey", Value::Null, ErrorCode::MalformedJob),
        ("label", "a".repeat(129).into(), ErrorCode::InvalidLabel),
        ("label", "two\nlines".into(), ErrorCode::InvalidLabel),
        ("label", "\u{1b}[2J".into(), ErrorCode::InvalidLabel),
        ("label", "\u{85}".into(), ErrorCode::InvalidLabel),
        ("colour", "red".into(), ErrorCode::UnknownField),
    ];
    for (number, (field, value, code)) in wrong.into_iter().enumerate() {
        let job = register_job(&cluster, &format!("w{number}"), &key, |payload| payload[field] = value.clone());
        assert_eq!(refused(manage(&cluster, &job).await), code, "{field}: {value}");
    }
    // A key of the other curve, whose public key is of the right length.
    let secp256k1 = cluster.committed_key("g2", Curve::Secp256k1).await;
    let job = register_job(&cluster, "w20", &secp256k1, |payload| payload["publicKey"] = "11".repeat(32).into());
    assert_eq!(refused(manage(&cluster, &job).await), ErrorCode::CurveMismatch);
    let plain = listed(manage(&cluster, &keys_job(&cluster, "k1")).await);
    assert!(plain.iter().all(|key| key.label.is_none()), "nothing of it left a trace: {plain:?}");
    for limit in [0, 101] {
        let (id, payload) = (format!("k-{limit}"), KeysBody { after: None, limit: Some(limit) });
        let job = cluster.job(Op::Keys, &id, cluster.key_id(&id), MINUTE, payload);
        assert_eq!(refused(manage(&cluster, &job).await), ErrorCode::MalformedJob);
    }
    let elsewhere = cluster.job(Op::Keys, "k2", key.id(), MINUTE, KeysBody::default());
    assert_eq!(refused(manage(&cluster, &elsewhere).await), ErrorCode::MalformedJob, "its id is derived");

    let longest = "ü".repeat(64);
    let good = register_job(&cluster, "r1", &key, |payload| payload["label"] = longest.clone().into());
    for _ in 0..2 {
        assert_eq!(listed(manage(&cluster, &good).await)[0].label.as_deref(), Some(longest.as_str()));
    }
    let check = register_job(&cluster, "r2", &key, |payload| {
        payload.as_object_mut().unwrap().remove("label");
    });
    let entry = listed(manage(&cluster, &check).await).remove(0);
    assert_eq!((entry.label.as_deref(), entry.state), (Some(longest.as_str()), ListedState::Active), "it stays");
    assert_eq!((entry.key_id, entry.public_key, entry.epoch), (key.id(), key.share.public_key(), 1));
    // A prepared key is committed first.
    let prepared = cluster.generate("g3", Curve::Ed25519).await;
    let early = register_job(&cluster, "r3", &prepared, |_| {});
    assert!(matches!(manage(&cluster, &early).await, NodeReply::NotCommitted { .. }));
    // Another initiator sees nothing, and names nothing.
    let owner = std::mem::replace(&mut cluster.initiator, other);
    assert!(listed(manage(&cluster, &keys_job(&cluster, "k9")).await).is_empty());
    let foreign = register_job(&cluster, "r9", &key, |_| {});
    assert_eq!(refused(manage(&cluster, &foreign).await), ErrorCode::NotPermitted);
    cluster.initiator = owner;
    let mut ids: Vec<_> = listed(manage(&cluster, &keys_job(&cluster, "k3")).await);
    assert!(ids.is_sorted_by_key(|key| key.key_id.0));
    ids.retain(|entry| entry.label.is_some());
    assert_eq!(ids.len(), 1);
    let node2 = cluster.ask2(NodeRequest::Manage { job: keys_job(&cluster, "k4") }).await;
    assert_eq!(refused(node2), ErrorCode::UnsupportedOperation);
}

/// Runs a command of the command line; its JSON and exit code.
fn cli(service: &Deployment, arguments: &[&str]) -> (Value, i32) {
    let done = service.cli().arg("--json").args(arguments).output().unwrap();
    (serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}")), done.status.code().unwrap())
}

#[test]
fn keys_are_listed_labelled_and_followed_through_their_life() {
    let service = Deployment::start(1);
    let quick = ["--memory-kib", "64", "--passes", "1"];
    let done = |arguments: &[&str]| {
        let (answer, exit) = cli(&service, arguments);
        assert_eq!(exit, 0, "{arguments:?}: {answer}");
        answer
    };
    let failed = |code: &str, arguments: &[&str]| {
        let (answer, exit) = cli(&service, arguments);
        assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some(code)), "{arguments:?}: {answer}");
    };
    let generate = |curve, file, label: &[&str]| {
        done(&[&["generate", "--curve", curve, "--out", file][..], &quick, label].concat())
    };
    let first = generate("ed25519", "first", &["--label", "till 1"]);
    let second = generate("secp256k1", "second", &[]);
    failed(
        "INVALID_LABEL",
        &[&["generate", "--curve", "ed25519", "--out", "x", "--label", "a\tb"][..], &quick].concat(),
    );
    let entry = |list: &Value, key: &Value| {
        list["keys"].as_array().unwrap().iter().find(|entry| entry["keyId"] == *key).cloned().unwrap_or_default()
    };
    let list = done(&["keys", "list"]);
    let (one, two) = (entry(&list, &first["keyId"]), entry(&list, &second["keyId"]));
    assert_eq!(
        (&one["label"], &one["publicKey"], &one["state"]),
        (&json!("till 1"), &first["publicKey"], &json!("active"))
    );
    assert_eq!((two.get("label"), &two["curve"], &two["epoch"]), (None, &json!("secp256k1"), &json!(1)));
    done(&["keys", "register", "--key", "second", "--label", "till 2"]);
    let (id, public_key) = (second["keyId"].as_str().unwrap(), second["publicKey"].as_str().unwrap());
    let by_id = ["keys", "register", "--key-id", id, "--curve", "secp256k1", "--public-key"];
    assert_eq!(done(&[&by_id[..], &[public_key]].concat())["label"], "till 2");
    failed("PUBLIC_KEY_MISMATCH", &[&by_id[..], &[&"02".repeat(33)]].concat());
    let ed25519 = ["keys", "register", "--key-id", id, "--curve", "ed25519", "--public-key", &public_key[2..]];
    failed("CURVE_MISMATCH", &ed25519);
    let unknown =
        ["keys", "register", "--key-id", &"00".repeat(16), "--curve", "secp256k1", "--public-key", public_key];
    failed("UNKNOWN_KEY", &unknown);
    failed("INVALID_LABEL", &["keys", "register", "--key", "second", "--label", "\u{7}"]);
    assert_eq!(service.cli().args(["keys", "register", "--key-id", id]).output().unwrap().status.code(), Some(2));
    // Page by page.
    let page = done(&["keys", "list", "--limit", "1"]);
    let next = page["next"].as_str().unwrap().to_owned();
    let rest = done(&["keys", "list", "--limit", "1", "--after", &next]);
    assert_eq!(rest.get("next"), Some(&Value::Null));
    let both = [&page["keys"][0]["keyId"], &rest["keys"][0]["keyId"]];
    assert!(both[0].as_str() < both[1].as_str());

    // A refresh changes the epoch only; a recovery takes the label along; what has ended is shown when asked for.
    done(&[&["refresh", "--key", "second"][..], &quick].concat());
    let refreshed = entry(&done(&["keys", "list"]), &second["keyId"]);
    assert_eq!((&refreshed["epoch"], &refreshed["label"]), (&json!(2), &json!("till 2")));
    assert_eq!(refreshed["createdAt"], two["createdAt"]);
    std::fs::write(service.path("authoriser"), service.authoriser.seed().unwrap()).unwrap();
    let consent = ["--authoriser-seed-file", "authoriser"];
    let recovered = done(&[&["recover", "--out", "third", "--key", "second"][..], &consent, &quick].concat());
    let nothing = "00".repeat(16);
    let unknown = ["recover", "--out", "fourth", "--key-id", &nothing, "--curve", "ed25519"];
    failed("UNKNOWN_KEY", &[&unknown[..], &consent, &quick].concat());
    let live = done(&["keys", "list"]);
    let new = entry(&live, &recovered["keyId"]);
    assert_eq!((&new["label"], &new["sourceKeyId"]), (&json!("till 2"), &second["keyId"]));
    assert_eq!(entry(&live, &second["keyId"]), Value::Null);
    let old = entry(&done(&["keys", "list", "--all"]), &second["keyId"]);
    assert_eq!((&old["state"], &old["newKeyId"]), (&json!("retired"), &recovered["keyId"]));
    failed("KEY_RETIRED", &[&by_id[..], &[public_key, "--label", "x"]].concat());
    // For people, too.
    let people = service.cli().args(["keys", "list"]).output().unwrap();
    let text = String::from_utf8(people.stdout).unwrap();
    assert!(text.contains("till 1") && text.contains("active") && text.contains("T"), "{text}");
    // Deny is the default.
    let mut stranger = service.cli();
    stranger.env("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap()).args(["--json", "keys", "list"]);
    let answer = stranger.output().unwrap();
    assert_eq!(answer.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&answer.stdout).unwrap()["error"]["code"], "NOT_PERMITTED");
}
