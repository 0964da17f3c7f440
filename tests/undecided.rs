//! What a crash left undecided: node 2 hears node 1's word through the workers, and an operator can drop what nobody ever will decide.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::backed::{Backed, file, trefoil};
use cluster::{Cluster, Key, refused, sealed};
use nkeys::XKey;
use rand_core::OsRng;
use std::time::{Duration, Instant};
use support::process::Process;
use trefoil::wire::node::{KeyStatement, NodeReply, NodeRequest, UndecidedAttempt};
use trefoil::wire::{Curve, ErrorCode, FIRST_EPOCH, Fixed, Job, JobResult, KeyResult, Outcome, SignedJob, subject};
use trefoil_protocol::Party;
use trefoil_protocol::keygen::ClientKeygen;

/// Both nodes at the shortest times.
const QUICK: &[(&str, &str)] = &[("UNDECIDED_AFTER_SECONDS", "1"), ("ABORT_AFTER_SECONDS", "1")];

/// A real worker beside the one that the test plays.
fn spawn_worker(cluster: &Cluster, folder: &tempfile::TempDir) -> Process {
    let mut command = support::command("trefoil-worker");
    let identity = |key: &ed25519_dalek::VerifyingKey| data_encoding::HEXLOWER.encode(key.as_bytes());
    command
        .env("TREFOIL_NATS_URL", cluster.nats.url())
        .env("TREFOIL_NOISE_KEY", cluster.worker.seed().unwrap())
        .env("TREFOIL_NODE1_IDENTITY", identity(&cluster.node1.identity))
        .env("TREFOIL_NODE2_IDENTITY", identity(&cluster.node2.identity))
        .env("TREFOIL_NODE1_NOISE", data_encoding::HEXLOWER.encode(&cluster.node1.noise_public()))
        .env("TREFOIL_NODE2_NOISE", data_encoding::HEXLOWER.encode(&cluster.node2.noise_public()))
        .env("TREFOIL_SEALING_KEYS", XKey::new().seed().unwrap())
        .env("TREFOIL_INITIATORS", cluster.initiator().to_string())
        .env("TREFOIL_RECONCILE_SECONDS", "1");
    let worker = Process::spawn("trefoil-worker", command, &folder.path().join("worker.log"));
    worker.wait_for("ready");
    worker
}

/// Prepared at node 2 and not at node 1: the worker died between.
async fn half_prepared(cluster: &Cluster, job_id: &str) -> KeyStatement {
    let job = cluster.generate_job(job_id, Curve::Ed25519);
    let context = cluster.context(Curve::Ed25519, cluster.key_id(job_id), FIRST_EPOCH, &job);
    let client = ClientKeygen::start(&context, &mut OsRng);
    let dealt = cluster.deal(job, job_id, cluster.key_id(job_id), client).await;
    let NodeReply::Prepared(statement) = dealt.prepare_at(Party::Node2).await else { panic!("not prepared") };
    statement
}

async fn commit_at_node_1(cluster: &Cluster, key: &Key) {
    let (key_id, transcript, evidence) = (key.id(), key.share.transcript(), key.statement2.signature);
    let NodeReply::Committed { .. } = cluster.ask1(NodeRequest::Commit { key_id, transcript, evidence }).await else {
        panic!("node 1 did not commit")
    };
}

fn info_job(cluster: &Cluster, key: trefoil::wire::KeyId) -> SignedJob {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    cluster.key_info_job(&format!("i{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)), key)
}

/// Asks a node about a key until it says what is wanted.
async fn until(cluster: &Cluster, role: Party, key: trefoil::wire::KeyId, wanted: impl Fn(&NodeReply) -> bool) {
    let started = Instant::now();
    loop {
        let request = NodeRequest::KeyInfo { job: info_job(cluster, key) };
        let reply = if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await };
        if wanted(&reply) {
            return;
        }
        assert!(started.elapsed() < support::PATIENCE, "{role} stays at {reply:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_committed(reply: &NodeReply) -> bool {
    matches!(reply, NodeReply::KeyInfo { .. })
}

fn is_unknown(reply: &NodeReply) -> bool {
    matches!(reply, NodeReply::Refused { code: ErrorCode::UnknownKey, .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_rounds_bring_node_1s_word_to_node_2() {
    let cluster = Cluster::with(QUICK).await;
    let followed = cluster.generate("followed", Curve::Ed25519).await;
    commit_at_node_1(&cluster, &followed).await;
    let half = half_prepared(&cluster, "half").await;
    let source = cluster.committed_key("source", Curve::Ed25519).await;
    let recovered = cluster.recover(&source, "recovered").await;
    commit_at_node_1(&cluster, &recovered).await;
    let stored = cluster.generate("stored", Curve::Ed25519).await;
    let open = cluster.generate("open", Curve::Ed25519).await;
    let folder = tempfile::tempdir().unwrap();
    let worker = spawn_worker(&cluster, &folder);

    // Node 1 has decided; node 1 has never heard of it.
    until(&cluster, Party::Node2, followed.id(), is_committed).await;
    until(&cluster, Party::Node2, recovered.id(), is_committed).await;
    until(&cluster, Party::Node2, half.key_id, is_unknown).await;
    worker.wait_for("committed");
    worker.wait_for("aborted");
    // Prepared at both, with a result that names it.
    let result = {
        let key = KeyResult::agreed(&stored.statement1, &stored.statement2, None).unwrap();
        let job = Job::from_signed(&stored.job).unwrap();
        JobResult::of(&job, trefoil::clock::now_ms(), Outcome::generated(key, sealed()))
    };
    let jetstream = async_nats::jetstream::new(cluster.client.clone());
    let named = subject::result(&cluster.initiator(), &"stored".parse().unwrap());
    jetstream.publish(named, serde_json::to_vec(&result).unwrap().into()).await.unwrap().await.unwrap();
    for role in [Party::Node1, Party::Node2] {
        until(&cluster, role, stored.id(), is_committed).await;
    }
    // And without one: nobody decides it, in however many rounds.
    for role in [Party::Node1, Party::Node2] {
        until(&cluster, role, open.id(), |reply| matches!(reply, NodeReply::NotCommitted { .. })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_1_decides_only_what_node_2_attested_and_drops_nothing_early() {
    let cluster = Cluster::with(&[("UNDECIDED_AFTER_SECONDS", "3600"), ("ABORT_AFTER_SECONDS", "3600")]).await;
    let statement = half_prepared(&cluster, "half").await;
    let attempt = UndecidedAttempt { initiator: cluster.initiator(), statement };
    let ask = |attempt: &UndecidedAttempt| NodeRequest::Decision { attempt: attempt.clone() };
    assert_eq!(refused(cluster.ask1(ask(&attempt)).await), ErrorCode::KeyNotReady, "it may be on its way");
    assert_eq!(refused(cluster.ask2(ask(&attempt)).await), ErrorCode::UnsupportedOperation);
    let NodeReply::Undecided { attempts } = cluster.ask1(NodeRequest::Undecided).await else { panic!() };
    assert_eq!(attempts, [], "node 1 has nothing to ask");
    let said = &attempt.statement;
    let forged = [
        KeyStatement { transcript: [1; 32], ..said.clone() },
        KeyStatement { epoch: 2, ..said.clone() },
        KeyStatement { signature: Fixed([2; 64]), ..said.clone() },
    ];
    for statement in forged {
        let lie = UndecidedAttempt { statement, ..attempt.clone() };
        assert_eq!(refused(cluster.ask1(ask(&lie)).await), ErrorCode::NotPermitted);
    }
    let stranger = UndecidedAttempt {
        initiator: nkeys::KeyPair::new_user().public_key().parse().unwrap(),
        statement: said.clone(),
    };
    assert_eq!(refused(cluster.ask1(ask(&stranger)).await), ErrorCode::NotPermitted);
    let NodeReply::Undecided { attempts } = cluster.ask2(NodeRequest::Undecided).await else { panic!() };
    assert_eq!(attempts, [], "nothing is asked about before it is a while old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_node_1_drops_nothing_that_it_may_have_decided() {
    let mut service = Backed::with(QUICK).await;
    let backup = file(&service.backup(Party::Node1).await);
    let key = service.cluster.generate("g1", Curve::Ed25519).await;
    commit_at_node_1(&service.cluster, &key).await;
    service.replace(Party::Node1, &backup).await;
    let cluster = &service.cluster;
    let attempt = UndecidedAttempt { initiator: cluster.initiator(), statement: key.statement2.clone() };
    for _ in 0..3 {
        let asked = cluster.ask1(NodeRequest::Decision { attempt: attempt.clone() }).await;
        assert_eq!(refused(asked), ErrorCode::KeyUnconfirmed);
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    until(cluster, Party::Node2, key.id(), |reply| matches!(reply, NodeReply::NotCommitted { .. })).await;
    let NodeReply::Undecided { attempts } = cluster.ask2(NodeRequest::Undecided).await else { panic!() };
    assert_eq!(attempts, [attempt]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_of_node_1_drops_what_no_result_names() {
    let mut cluster = Cluster::with(QUICK).await;
    let open = cluster.generate("open", Curve::Ed25519).await;
    let committed = cluster.committed_key("g1", Curve::Ed25519).await;
    let env = |role| (cluster.env(role), cluster.data(role).to_str().unwrap().to_owned());
    let ((env1, data1), (env2, data2)) = (env(Party::Node1), env(Party::Node2));
    for role in [Party::Node1, Party::Node2] {
        cluster.drain_node(role).await;
    }
    let transcript = data_encoding::HEXLOWER.encode(&open.share.transcript());
    let (code, told) = trefoil(&env1, &["node", "pending", &data1]).await;
    assert_eq!((code, &told["prepared"][0]["transcript"]), (Some(0), &transcript.clone().into()), "{told}");
    assert!(told["prepared"][0]["since"].as_u64().unwrap() > trefoil::clock::now_ms() - 600_000);
    let other = data_encoding::HEXLOWER.encode(&committed.share.transcript());
    for (env, data, which) in [(&env2, &data2, &transcript), (&env1, &data1, &other)] {
        let (code, told) = trefoil(env, &["node", "pending", data, "--discard", which, "--yes"]).await;
        assert_eq!(code, Some(2), "{told}");
    }
    let unsure =
        support::command("trefoil").envs(&env1).args(["node", "pending", &data1, "--discard", &transcript]).output();
    assert_eq!(unsure.unwrap().status.code(), Some(2));
    let (code, told) = trefoil(&env1, &["node", "pending", &data1, "--discard", &transcript, "--yes"]).await;
    assert_eq!((code, &told["discarded"]["transcript"]), (Some(0), &transcript.clone().into()), "{told}");
    assert_eq!(trefoil(&env1, &["node", "pending", &data1]).await.1["prepared"], serde_json::json!([]));
    let log = std::fs::read_to_string(cluster.data(Party::Node1).join("audit.log")).unwrap();
    assert!(log.contains("by the operator"), "{log}");
    for role in [Party::Node1, Party::Node2] {
        cluster.start_node(role).await;
    }
    cluster.to1.renew().await.unwrap();
    cluster.to2.renew().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _worker = spawn_worker(&cluster, &folder);
    until(&cluster, Party::Node2, open.id(), is_unknown).await;
    until(&cluster, Party::Node1, committed.id(), is_committed).await;
}
