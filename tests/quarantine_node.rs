//! Quarantine at the nodes, with a worker that lies: what is heard of a key counts once, from the other node, for this restore.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::backed::{Backed, file};
use cluster::signer::{frost, message_input};
use cluster::{Cluster, Key, MINUTE, refused};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, EpochState, EpochStatement, ErrorCode, Fixed, KeyId, KeysBody, Op};
use trefoil_protocol::Party;

/// What a restored node says of a key that it does not know to be current.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Doubt {
    key_id: KeyId,
    transcript: [u8; 32],
    nonce: [u8; 32],
}

fn doubt(reply: NodeReply) -> Doubt {
    match reply {
        NodeReply::Unconfirmed { key_id, transcript, nonce } => Doubt { key_id, transcript, nonce },
        other => panic!("not in doubt: {other:?}"),
    }
}

async fn ask(cluster: &Cluster, role: Party, request: NodeRequest) -> NodeReply {
    if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await }
}

fn other(role: Party) -> Party {
    if role == Party::Node1 { Party::Node2 } else { Party::Node1 }
}

async fn info(cluster: &Cluster, role: Party, key: &Key) -> NodeReply {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name = format!("i{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    ask(cluster, role, NodeRequest::KeyInfo { job: cluster.key_info_job(&name, key.id()) }).await
}

/// The other node's word.
async fn word(cluster: &Cluster, restored: Party, doubt: Doubt) -> (EpochStatement, Fixed<64>) {
    let Doubt { key_id, transcript, nonce } = doubt;
    match ask(cluster, other(restored), NodeRequest::EpochOf { key_id, transcript, nonce }).await {
        NodeReply::EpochOf { statement, signature } => (statement, signature),
        other => panic!("{other:?}"),
    }
}

async fn confirm(cluster: &Cluster, restored: Party, (statement, signature): (EpochStatement, Fixed<64>)) -> NodeReply {
    ask(cluster, restored, NodeRequest::ConfirmEpoch { statement, signature }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_other_node_confirms_and_only_for_this_restore() {
    let mut service = Backed::start().await;
    let key = service.cluster.committed_key("g1", Curve::Ed25519).await;
    let stranger = service.cluster.committed_key("g2", Curve::Ed25519).await;
    let made = file(&service.backup(Party::Node1).await);
    let not_restored = EpochStatement {
        nonce: [0; 32],
        key_id: key.id(),
        epoch: 1,
        transcript: key.share.transcript(),
        state: EpochState::Destroyed,
        successor: None,
    };
    let reply = confirm(&service.cluster, Party::Node1, (not_restored, Fixed([0; 64]))).await;
    assert_eq!(refused(reply), ErrorCode::NotPermitted);

    service.replace(Party::Node1, &made).await;
    let first = doubt(info(&service.cluster, Party::Node1, &key).await);
    assert_eq!((first.key_id, first.transcript), (key.id(), key.share.transcript()));
    let earlier = word(&service.cluster, Party::Node1, first).await;
    // Restored once more, before anybody brought it.
    service.replace(Party::Node1, &made).await;
    let cluster = &service.cluster;
    let second = doubt(info(cluster, Party::Node1, &key).await);
    assert_ne!(first.nonce, second.nonce);
    assert_eq!(refused(confirm(cluster, Party::Node1, earlier.clone()).await), ErrorCode::NotPermitted);

    let (statement, signature) = word(cluster, Party::Node1, second).await;
    assert_eq!((statement.state, statement.epoch), (EpochState::Active, 1));
    let altered = [
        // Its own earlier word, with the new restore's nonce written into it; its word about another key; a word of
        // node 1 itself; and every field by itself.
        (EpochStatement { nonce: second.nonce, ..earlier.0.clone() }, earlier.1),
        (EpochStatement { key_id: stranger.id(), ..statement.clone() }, signature),
        (EpochStatement { epoch: 2, ..statement.clone() }, signature),
        (EpochStatement { transcript: [1; 32], ..statement.clone() }, signature),
        (EpochStatement { state: EpochState::Destroyed, ..statement.clone() }, signature),
        (EpochStatement { successor: Some(stranger.id()), ..statement.clone() }, signature),
        (EpochStatement { nonce: [3; 32], ..statement.clone() }, signature),
        (statement.clone(), Fixed([7; 64])),
        (statement.clone(), Fixed(statement.sign(&ed25519_dalek::SigningKey::from_bytes(&[5; 32])))),
    ];
    for lie in altered {
        assert_eq!(refused(confirm(cluster, Party::Node1, lie).await), ErrorCode::NotPermitted);
    }
    // None of that has confirmed the key, or shut it out; and nothing else of it can be had before.
    assert_eq!(doubt(info(cluster, Party::Node1, &key).await), second);
    let job = cluster.sign_job("s1", key.id(), &message_input(b"m"));
    let open = NodeRequest::FrostSign { open: cluster.open(&key, &job, [1; 32], 0), commitments: Fixed([0; 64]) };
    assert_eq!(doubt(cluster.ask1(open).await), second);
    assert_eq!(doubt(cluster.source(Party::Node1, &cluster.recover_job("r1", &key)).await), second);

    for _ in 0..2 {
        let said = (statement.clone(), signature);
        assert!(matches!(confirm(cluster, Party::Node1, said).await, NodeReply::Confirmed));
    }
    assert!(matches!(info(cluster, Party::Node1, &key).await, NodeReply::KeyInfo { .. }));
    frost(cluster, &key, &job, b"m").await.unwrap();
    assert_eq!(doubt(info(cluster, Party::Node1, &stranger).await).key_id, stranger.id(), "one key at a time");
    // A key that the other node does not know at all is not confirmed by anybody.
    let nobodys = NodeRequest::EpochOf { key_id: KeyId([9; 16]), transcript: [9; 32], nonce: second.nonce };
    assert_eq!(refused(cluster.ask2(nobodys).await), ErrorCode::UnknownKey);
}

/// Prepared in the backup, committed after it: the restored node was on its way, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_in_the_backup_and_committed_since_is_caught_up() {
    for restored in [Party::Node1, Party::Node2] {
        let mut service = Backed::start().await;
        let cluster = &service.cluster;
        let (lost, stale) =
            (cluster.committed_key("g1", Curve::Ed25519).await, cluster.committed_key("g2", Curve::Secp256k1).await);
        let made = cluster.generate("g3", Curve::Ed25519).await;
        let losing = cluster.recover(&lost, "r0").await;
        // The first recovery's session has the key's turn.
        service.restart(Party::Node1).await;
        let cluster = &service.cluster;
        let recovered = cluster.recover(&lost, "r1").await;
        let refreshed = cluster.refresh(&stale, "f1").await;
        let backup = file(&service.backup(restored).await);
        let cluster = &service.cluster;
        for key in [&made, &recovered, &refreshed] {
            cluster.commit(key).await;
        }
        service.replace(restored, &backup).await;
        let cluster = &service.cluster;
        // The recovered key's old id first: its word is that another took its place, which has to be confirmed before.
        let old = doubt(info(cluster, restored, &lost).await);
        let said = word(cluster, restored, old).await;
        assert_eq!((said.0.state, said.0.successor), (EpochState::Retired, Some(recovered.id())));
        let first = doubt(confirm(cluster, restored, said).await);
        assert_eq!(first.key_id, recovered.id());
        for key in [&recovered, &made, &refreshed] {
            let transcript = key.share.transcript();
            let said = word(cluster, restored, Doubt { key_id: key.id(), transcript, nonce: old.nonce }).await;
            assert!(matches!(confirm(cluster, restored, said).await, NodeReply::Confirmed));
            match info(cluster, restored, key).await {
                NodeReply::KeyInfo { statement, .. } => assert_eq!(statement.transcript, transcript, "{restored}"),
                other => panic!("{other:?}"),
            }
        }
        match info(cluster, restored, &lost).await {
            NodeReply::Refused { code: ErrorCode::KeyRetired, successor, .. } => {
                assert_eq!(successor, Some(recovered.id()));
            }
            other => panic!("{other:?}"),
        }
        if restored == Party::Node1 {
            let job = cluster.job(Op::Keys, "k1", cluster.key_id("k1"), MINUTE, KeysBody::default());
            let NodeReply::Listed { keys, .. } = cluster.ask1(NodeRequest::Manage { job }).await else { panic!() };
            let listed = |key: &Key| keys.iter().any(|listed| listed.key_id == key.id());
            assert!(listed(&recovered) && listed(&made), "{keys:?}");
        }
        // The attempt that lost is no way back.
        let (key_id, transcript) = (losing.id(), losing.share.transcript());
        let evidence = losing.statement2.signature;
        let lie = ask(cluster, restored, NodeRequest::Commit { key_id, transcript, evidence }).await;
        assert!([ErrorCode::JobSuperseded, ErrorCode::NotPermitted].contains(&refused(lie)), "{restored}");
        let job = cluster.sign_job("s1", recovered.id(), &message_input(b"m"));
        frost(cluster, &recovered, &job, b"m").await.unwrap();
    }
}

/// Prepared in the backup at node 1 with all data keys still there, as with an old copy of the slot file: another attempt than the one
/// that became the key cannot be made the key by a worker that has its evidence.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_lost_is_not_committed_by_a_restored_node_1() {
    let mut service = Backed::start().await;
    let key = service.cluster.committed_key("g1", Curve::Ed25519).await;
    let losing = service.cluster.recover(&key, "r0").await;
    service.restart(Party::Node1).await;
    let winning = service.cluster.recover(&key, "r1").await;
    let undecided = service.cluster.generate("g2", Curve::Ed25519).await;
    let backup = file(&service.backup(Party::Node1).await);
    let slots = std::fs::read(service.slots_copy(Party::Node1)).unwrap();
    service.cluster.commit(&winning).await;
    let told = service.replace_with(Party::Node1, &backup, Some(&slots)).await;
    assert_eq!((told["dead"].as_u64(), told["newer"].as_u64()), (Some(0), Some(0)));
    let cluster = &service.cluster;
    let commit = |key: &Key| NodeRequest::Commit {
        key_id: key.id(),
        transcript: key.share.transcript(),
        evidence: key.statement2.signature,
    };
    let first = doubt(cluster.ask1(commit(&losing)).await);
    let asked = NodeRequest::EpochOf { key_id: first.key_id, transcript: first.transcript, nonce: first.nonce };
    assert_eq!(refused(cluster.ask2(asked).await), ErrorCode::UnknownKey, "node 2 knows that it lost");
    assert_eq!(doubt(cluster.ask1(commit(&losing)).await), first);
    // What nobody has decided is decided as ever, once node 2 has said so.
    let open = doubt(cluster.ask1(commit(&undecided)).await);
    let said = word(cluster, Party::Node1, open).await;
    assert_eq!(said.0.state, EpochState::Prepared);
    assert!(matches!(confirm(cluster, Party::Node1, said).await, NodeReply::Confirmed));
    cluster.commit(&undecided).await;
    let said = word(cluster, Party::Node1, doubt(cluster.ask1(commit(&winning)).await)).await;
    assert!(matches!(confirm(cluster, Party::Node1, said).await, NodeReply::Confirmed));
    assert_eq!(refused(cluster.ask1(commit(&losing)).await), ErrorCode::JobSuperseded);
    let job = cluster.sign_job("s1", winning.id(), &message_input(b"m"));
    frost(cluster, &winning, &job, b"m").await.unwrap();
}

/// Node 1 lost its decision with its disk, and heard from node 2 that nobody had decided; then node 2 followed the old decision.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_comes_back_late_finds_node_1s_share() {
    let mut service = Backed::start().await;
    let key = service.cluster.committed_key("g1", Curve::Ed25519).await;
    let recovered = service.cluster.recover(&key, "r1").await;
    let backup = file(&service.backup(Party::Node1).await);
    let slots = std::fs::read(service.slots_copy(Party::Node1)).unwrap();
    let (key_id, transcript) = (recovered.id(), recovered.share.transcript());
    let commit = |evidence| NodeRequest::Commit { key_id, transcript, evidence };
    let NodeReply::Committed { signature } = service.cluster.ask1(commit(recovered.statement2.signature)).await else {
        panic!("node 1 did not commit")
    };
    service.replace_with(Party::Node1, &backup, Some(&slots)).await;
    let cluster = &service.cluster;
    let open = doubt(cluster.ask1(commit(recovered.statement2.signature)).await);
    let said = word(cluster, Party::Node1, open).await;
    assert_eq!(said.0.state, EpochState::Prepared);
    assert!(matches!(confirm(cluster, Party::Node1, said).await, NodeReply::Confirmed));
    assert!(matches!(cluster.ask2(commit(signature)).await, NodeReply::Committed { .. }));

    let said = word(cluster, Party::Node1, doubt(info(cluster, Party::Node1, &key).await)).await;
    assert_eq!((said.0.state, said.0.successor), (EpochState::Retired, Some(recovered.id())));
    let first = doubt(confirm(cluster, Party::Node1, said).await);
    assert_eq!((first.key_id, first.transcript), (recovered.id(), transcript));
    let said = word(cluster, Party::Node1, first).await;
    assert!(matches!(confirm(cluster, Party::Node1, said).await, NodeReply::Confirmed));
    let job = cluster.sign_job("s1", recovered.id(), &message_input(b"m"));
    frost(cluster, &recovered, &job, b"m").await.unwrap();
}
