//! Freeze, unfreeze and destroy at the nodes, hand-driven: who may order them, in which order they count, and what they leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::{Cluster, Key, MINUTE, call, digest, link, refused};
use nkeys::KeyPair;
use trefoil::auth;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, Op, OrderBody, OrderedState, SignInput, SignedJob, StateStatement};
use trefoil_protocol::Party;

fn order(cluster: &Cluster, op: Op, job_id: &str, key: &Key) -> SignedJob {
    cluster.job(op, job_id, key.id(), MINUTE, OrderBody {})
}

fn authorised(job: &SignedJob, by: &KeyPair) -> SignedJob {
    SignedJob { authorisation: auth::authorise(by, &job.body), ..job.clone() }
}

async fn send(cluster: &Cluster, role: Party, job: &SignedJob) -> NodeReply {
    let request = NodeRequest::Order { job: job.clone() };
    // A later order must be later by the clock.
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await }
}

async fn done(cluster: &Cluster, role: Party, job: &SignedJob) -> [u8; 64] {
    match send(cluster, role, job).await {
        NodeReply::Ordered { signature } => signature.0,
        other => panic!("not carried out: {other:?}"),
    }
}

/// What signing with the key ends in, if not in a session.
async fn signing(cluster: &Cluster, key: &Key, job_id: &str) -> Option<ErrorCode> {
    let input = SignInput::Secp256k1 { digest: [1; 32], path: None };
    let job = cluster.sign_job(job_id, key.id(), &input);
    let link = link(&cluster.to1).await;
    let open = cluster.open(key, &job, [1; 32], u64::MAX);
    match link.call(&call(NodeRequest::SignOpen(open))).await.unwrap() {
        NodeReply::SignOpened { .. } => None,
        other => Some(refused(other)),
    }
}

fn log(cluster: &Cluster, role: Party, decision: &str) -> usize {
    let path = cluster.data(role).join(AUDIT_LOG);
    audit::verify(&path, None).unwrap();
    std::fs::read_to_string(path).unwrap().matches(&format!("\"decision\":\"{decision}\"")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_key_signs_nothing_until_it_is_unfrozen() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    assert_eq!(signing(&cluster, &key, "s1").await, None);
    let freeze = order(&cluster, Op::Freeze, "f1", &key);
    let signature = done(&cluster, Party::Node1, &freeze).await;
    let statement = StateStatement {
        initiator: cluster.initiator(),
        job_digest: digest(&freeze),
        key_id: key.id(),
        state: OrderedState::Frozen,
    };
    assert!(statement.verify(&cluster.node1.identity, &signature));
    assert!(!StateStatement { state: OrderedState::Active, ..statement }.verify(&cluster.node1.identity, &signature));
    assert_eq!(signing(&cluster, &key, "s2").await, Some(ErrorCode::KeyFrozen));
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
    let _ = cluster.to1.renew().await;
    assert_eq!(signing(&cluster, &key, "s3").await, Some(ErrorCode::KeyFrozen), "also after a restart");
    // The same order again is the same answer, and one more of another id is none the worse.
    assert_eq!(done(&cluster, Party::Node1, &freeze).await, signature);
    done(&cluster, Party::Node1, &order(&cluster, Op::Freeze, "f2", &key)).await;
    done(&cluster, Party::Node2, &order(&cluster, Op::Freeze, "f3", &key)).await;
    done(&cluster, Party::Node1, &order(&cluster, Op::Unfreeze, "u1", &key)).await;
    assert_eq!(signing(&cluster, &key, "s4").await, None);
    assert_eq!((log(&cluster, Party::Node1, "frozen"), log(&cluster, Party::Node1, "active")), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn freezing_ends_a_session_that_is_open() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let input = SignInput::Secp256k1 { digest: [1; 32], path: None };
    let job = cluster.sign_job("s1", key.id(), &input);
    let link = link(&cluster.to1).await;
    let open = NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0));
    let (session, _) = cluster::opened(link.call(&call(open)).await.unwrap());
    done(&cluster, Party::Node1, &order(&cluster, Op::Freeze, "f1", &key)).await;
    let m2 = NodeRequest::SignRound2 { session, m2: vec![0; 10] };
    assert_eq!(refused(link.call(&call(m2)).await.unwrap()), ErrorCode::NodeUnavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_order_does_not_undo_a_newer_one() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let pause = || tokio::time::sleep(std::time::Duration::from_millis(5));
    let unfreeze = order(&cluster, Op::Unfreeze, "u1", &key);
    pause().await;
    let held_back = order(&cluster, Op::Unfreeze, "u2", &key);
    done(&cluster, Party::Node1, &unfreeze).await;
    pause().await;
    let freeze = order(&cluster, Op::Freeze, "f1", &key);
    done(&cluster, Party::Node1, &freeze).await;
    // Repeated, or held back and sent late: by a worker or broker that wants the key to sign.
    for stale in [&unfreeze, &held_back] {
        assert_eq!(refused(send(&cluster, Party::Node1, stale).await), ErrorCode::JobSuperseded);
    }
    assert_eq!(signing(&cluster, &key, "s1").await, Some(ErrorCode::KeyFrozen));
    pause().await;
    done(&cluster, Party::Node1, &order(&cluster, Op::Unfreeze, "u3", &key)).await;
    assert_eq!(refused(send(&cluster, Party::Node1, &freeze).await), ErrorCode::JobSuperseded);
    assert_eq!(signing(&cluster, &key, "s2").await, None);
    // An id that was used for another body.
    let reused = order(&cluster, Op::Freeze, "u3", &key);
    assert_eq!(refused(send(&cluster, Party::Node1, &reused).await), ErrorCode::JobIdReused);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_orders_and_only_an_authoriser_lets_a_key_be_destroyed() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = order(&cluster, Op::Destroy, "d1", &key);
    let other = order(&cluster, Op::Destroy, "d2", &key);
    let stranger = KeyPair::new_user();
    let mut borrowed = job.clone();
    borrowed.authorisation = auth::authorise(&cluster.authoriser, &other.body);
    let mut renamed = authorised(&job, &stranger);
    renamed.authorisation.as_mut().unwrap().authoriser = cluster.authoriser.public_key().parse().unwrap();
    let not_authorised =
        [job.clone(), authorised(&job, &stranger), authorised(&job, &cluster.initiator), borrowed, renamed];
    for role in [Party::Node1, Party::Node2] {
        for job in &not_authorised {
            assert_eq!(refused(send(&cluster, role, job).await), ErrorCode::NotAuthorised);
        }
        let mut tampered = authorised(&job, &cluster.authoriser);
        tampered.body[20] ^= 1;
        assert_eq!(refused(send(&cluster, role, &tampered).await), ErrorCode::BadSignature);
        let sign = cluster.sign_job("s0", key.id(), &SignInput::Secp256k1 { digest: [1; 32], path: None });
        assert_eq!(refused(send(&cluster, role, &sign).await), ErrorCode::MalformedJob);
        let unknown = cluster.job(Op::Freeze, "n1", trefoil::wire::KeyId([1; 16]), MINUTE, OrderBody {});
        assert_eq!(refused(send(&cluster, role, &unknown).await), ErrorCode::UnknownKey);
    }
    // A stranger with a key pair of its own, authorised or not.
    let owner = std::mem::replace(&mut cluster.initiator, KeyPair::new_user());
    let foreign = authorised(&order(&cluster, Op::Destroy, "x1", &key), &cluster.authoriser);
    assert_eq!(refused(send(&cluster, Party::Node1, &foreign).await), ErrorCode::UnknownInitiator);
    cluster.initiator = owner;
    assert_eq!(signing(&cluster, &key, "s1").await, None, "nothing of it changed anything");

    let good = authorised(&job, &cluster.authoriser);
    for role in [Party::Node1, Party::Node2] {
        let slots = cluster.data(role).join("slots");
        assert_ne!(cluster::read(&slots)[64..128], [0; 64]);
        done(&cluster, role, &good).await;
        assert_eq!(cluster::read(&slots)[64..128], [0; 64], "the share's data key is overwritten before the answer");
        done(&cluster, role, &good).await;
        assert_eq!(log(&cluster, role, "destroyed"), 2);
    }
    assert_eq!(signing(&cluster, &key, "s2").await, Some(ErrorCode::KeyDestroyed));
    let unfreeze = order(&cluster, Op::Unfreeze, "u1", &key);
    assert_eq!(refused(send(&cluster, Party::Node1, &unfreeze).await), ErrorCode::KeyDestroyed);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authorisers_nothing_is_destroyed() {
    let cluster = Cluster::with(&[("AUTHORISERS", "")]).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let job = authorised(&order(&cluster, Op::Destroy, "d1", &key), &cluster.authoriser);
    assert_eq!(refused(send(&cluster, Party::Node1, &job).await), ErrorCode::NotAuthorised);
    assert_eq!(refused(send(&cluster, Party::Node2, &job).await), ErrorCode::NotAuthorised);
}
