//! The waiting time of a recovery, as both nodes answer, and through the whole service and its command line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod deployment;
mod support;

use cluster::reshare::authorised;
use cluster::{Cluster, Key, MINUTE, digest, refused};
use deployment::{Deployment, PATIENCE, QUICK, message, new_key, password};
use nkeys::KeyPair;
use serde_json::Value;
use std::time::Duration;
use trefoil::client::{ClientError, OldKey, SigningMaterial};
use trefoil::clock::now_ms;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{CancelStatement, Curve, ErrorCode, Method, Op, OrderBody, SignedJob};
use trefoil_protocol::Party;

/// When the recovery may be executed that this job is told to wait for.
fn retry_at(reply: NodeReply) -> u64 {
    match reply {
        NodeReply::Refused { code: ErrorCode::RecoveryPending, retry_at: Some(retry_at), .. } => retry_at,
        other => panic!("not pending: {other:?}"),
    }
}

async fn manage(cluster: &Cluster, role: Party, job: &SignedJob) -> NodeReply {
    let request = NodeRequest::Manage { job: job.clone() };
    if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await }
}

fn cancel_job(cluster: &Cluster, job_id: &str, key: &Key) -> SignedJob {
    cluster.job(Op::CancelRecovery, job_id, key.id(), MINUTE, OrderBody {})
}

/// A later job must be later by the clock.
async fn tick() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

fn log(cluster: &Cluster, role: Party, decision: &str) -> usize {
    let path = cluster.data(role).join(AUDIT_LOG);
    audit::verify(&path, None).unwrap();
    std::fs::read_to_string(path).unwrap().matches(&format!("\"decision\":\"{decision}\"")).count()
}

const BOTH: [Party; 2] = [Party::Node1, Party::Node2];

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_keep_a_request_over_a_restart_and_let_a_second_job_execute_it() {
    let mut cluster = Cluster::with(&[("RECOVERY_WAIT_SECONDS", "5")]).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let first = cluster.recover_job("r1", &key);
    let before = now_ms();
    let mut told = Vec::new();
    for role in BOTH {
        let retry_at = retry_at(cluster.source(role, &first).await);
        assert!((before + 5_000..=now_ms() + 5_000).contains(&retry_at));
        told.push(retry_at);
    }
    tick().await;
    let early = cluster.recover_job("r2", &key);
    for role in BOTH {
        cluster.drain_node(role).await;
        cluster.start_node(role).await;
    }
    let _ = (cluster.to1.renew().await, cluster.to2.renew().await);
    for (role, told) in BOTH.into_iter().zip(&told) {
        for job in [&first, &early] {
            assert_eq!(retry_at(cluster.source(role, job).await), *told);
        }
        assert_eq!(log(&cluster, role, "requested"), 1);
    }
    // Nor can a worker leave the question out.
    let opening = NodeRequest::GenerateOpen {
        job: early.clone(),
        contribution: [1; 32],
        blinded_password: Some(cluster::blinded(key.id()).element()),
        proof: None,
        identities: None,
    };
    assert_eq!(retry_at(cluster.ask1(opening).await), told[0]);
    let over = told.iter().max().unwrap();
    tokio::time::sleep(Duration::from_millis(over.saturating_sub(now_ms()) + 1)).await;
    // They were signed before the wait was over.
    for job in [&first, &early] {
        assert_eq!(retry_at(cluster.source(Party::Node1, job).await), told[0]);
    }
    let new = cluster.recover(&key, "r3").await;
    assert_eq!(new.share.public_key(), key.share.public_key());
    cluster.commit(&new).await;
    for role in BOTH {
        tick().await;
        let job = cluster.recover_job(&format!("r4-{role}"), &key);
        assert_eq!(refused(cluster.source(role, &job).await), ErrorCode::KeyRetired);
        let job = cancel_job(&cluster, &format!("c-{role}"), &key);
        assert_eq!(refused(manage(&cluster, role, &job).await), ErrorCode::KeyRetired);
        assert_eq!(log(&cluster, role, "retired"), 1, "executed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_alone_cancels_a_recovery_and_no_replay_undoes_it() {
    let mut cluster = Cluster::with(&[("RECOVERY_WAIT_SECONDS", "3600")]).await;
    let other = KeyPair::new_user();
    let grant = format!(
        "[[initiators]]\nname = \"other\"\nkey = \"{}\"\noperations = [\"cancel-recovery\", \"recover\"]\ncurves = [\"ed25519\"]",
        other.public_key()
    );
    cluster.write_policy(&grant);
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let wrong_curve =
        authorised(&cluster.unauthorised_recover_job("r0", key.id(), Curve::Secp256k1), &cluster.authoriser);
    let unauthorised = cluster.unauthorised_recover_job("r0b", key.id(), Curve::Ed25519);
    for role in BOTH {
        cluster.reload_policy(role).await;
        // What is refused for another reason asks for nothing.
        assert_eq!(refused(cluster.source(role, &unauthorised).await), ErrorCode::NotAuthorised);
        assert_eq!(refused(cluster.source(role, &wrong_curve).await), ErrorCode::CurveMismatch);
        assert_eq!(log(&cluster, role, "requested"), 0);
    }
    let first = cluster.recover_job("r1", &key);
    tick().await;
    let early = cancel_job(&cluster, "c0", &key);
    tick().await;
    let second = cluster.recover_job("r2", &key);
    let owner = std::mem::replace(&mut cluster.initiator, other);
    let foreign = cancel_job(&cluster, "c1", &key);
    cluster.initiator = owner;
    tick().await;
    let cancel = cancel_job(&cluster, "c2", &key);
    tick().await;
    let third = cluster.recover_job("r3", &key);
    for role in BOTH {
        let told = retry_at(cluster.source(role, &second).await);
        assert_eq!(refused(manage(&cluster, role, &foreign).await), ErrorCode::NotPermitted);
        // Held back since before the request.
        assert_eq!(refused(manage(&cluster, role, &early).await), ErrorCode::JobSuperseded);
        assert_eq!(retry_at(cluster.source(role, &second).await), told);
        for _ in 0..2 {
            let NodeReply::RecoveryCancelled { signature } = manage(&cluster, role, &cancel).await else {
                panic!("not cancelled")
            };
            let (initiator, job_digest, key_id) = (cluster.initiator(), digest(&cancel), key.id());
            let statement = CancelStatement { initiator, job_digest, key_id };
            let identity = if role == Party::Node1 { &cluster.node1.identity } else { &cluster.node2.identity };
            assert!(statement.verify(identity, &signature.0));
            assert!(!CancelStatement { job_digest: [0; 32], ..statement }.verify(identity, &signature.0));
        }
        for older in [&first, &second] {
            assert_eq!(refused(cluster.source(role, older).await), ErrorCode::JobSuperseded);
        }
        assert!(retry_at(cluster.source(role, &third).await) >= told);
        assert_eq!(refused(manage(&cluster, role, &cancel).await), ErrorCode::JobSuperseded);
        retry_at(cluster.source(role, &third).await);
        assert_eq!((log(&cluster, role, "requested"), log(&cluster, role, "cancelled")), (2, 2));
    }
}

/// Runs a command of the command line; its JSON and exit code.
async fn cli(service: &Deployment, arguments: &[&str]) -> (Value, i32) {
    let mut command = service.cli();
    command.arg("--json").args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    let json = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{}", String::from_utf8_lossy(&done.stderr)));
    (json, done.status.code().unwrap())
}

async fn signs(service: &Deployment, key: &SigningMaterial) -> Result<(), ErrorCode> {
    match service.backend().await.sign(key, Method::Default, &message("m"), password()).await {
        Ok(_) => Ok(()),
        Err(ClientError::Job(failure)) => Err(failure.code),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_stops_a_recovery_that_nobody_meant_and_executes_the_one_that_is_meant() {
    let mut service = Deployment::new();
    service.node_settings = vec![("TREFOIL_RECOVERY_WAIT_SECONDS", "6".to_owned())];
    for node in ["node1", "node2"] {
        service.start_node(node);
    }
    service.start_worker("worker1");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    let id = key.key_id.to_string();
    std::fs::write(service.path("authoriser"), service.authoriser.seed().unwrap()).unwrap();
    let recover = async |out: &str| {
        let arguments = ["recover", "--key-id", &id, "--curve", "ed25519", "--out", out];
        let consent = ["--authoriser-seed-file", "authoriser", "--memory-kib", "64", "--passes", "1"];
        cli(&service, &[&arguments[..], &consent].concat()).await
    };
    let pending = |(answer, exit): (Value, i32)| {
        assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("RECOVERY_PENDING")), "{answer}");
        answer["error"]["retryAt"].as_u64().unwrap()
    };
    let first = pending(recover("new").await);
    assert_eq!(pending(recover("new").await), first, "asking again changes nothing");
    let (answer, exit) = cli(&service, &["cancel-recovery", "--key-id", &id]).await;
    assert_eq!((exit, answer["recovery"].as_str()), (0, Some("cancelled")), "{answer}");
    let (_, exit) = cli(&service, &["cancel-recovery", "--key-id", &id]).await;
    assert_eq!(exit, 0, "none waits, and that is fine");
    // The clock starts anew with the next request.
    let second = pending(recover("new").await);
    assert!(second > first);
    assert_eq!(signs(&service, &key).await, Ok(()), "the key works meanwhile");
    tokio::time::sleep(Duration::from_millis(second.saturating_sub(now_ms()) + 1)).await;
    let (answer, exit) = recover("new").await;
    assert_eq!((exit, answer["outcome"]["key"]["state"].as_str()), (0, Some("active")), "{answer}");
    assert_eq!(answer["outcome"]["key"]["sourceKeyId"], *id);
    assert_eq!(signs(&service, &key).await, Err(ErrorCode::KeyRetired));
    let (answer, exit) = cli(&service, &["cancel-recovery", "--key-id", &id]).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("KEY_RETIRED")), "{answer}");
}

/// A node that is away is asked before the answer is final, and the later of both times counts.
#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_are_asked_and_a_stopped_one_shows_what_waits() {
    let mut service = Deployment::new();
    service.node_settings = vec![("TREFOIL_RECOVERY_WAIT_SECONDS", "3600".to_owned())];
    service.start_node("node1");
    service.node_settings = vec![("TREFOIL_RECOVERY_WAIT_SECONDS", "7200".to_owned())];
    service.start_node("node2");
    service.start_worker("worker1");
    let backend = service.backend().await;
    let key = backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap().key;
    backend.committed(&key, PATIENCE).await.unwrap();
    service.kill("node2");
    let (old, log, before) = (OldKey::from(&key), service.path("node1").join(AUDIT_LOG), now_ms());
    let authoriser = KeyPair::from_seed(&service.authoriser.seed().unwrap()).unwrap();
    let running = tokio::spawn(async move { backend.recover(&old, QUICK, password(), &authoriser).await.map(|_| ()) });
    while !std::fs::read_to_string(&log).unwrap().contains("\"requested\"") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.start_node("node2");
    let Err(ClientError::Job(failure)) = running.await.unwrap() else { panic!("executed") };
    assert_eq!(failure.code, ErrorCode::RecoveryPending);
    assert!(failure.retry_at.unwrap() >= before + 7_200_000, "node 2's time");
    assert!(service.process("node2").terminate().success());
    let data = service.path("node2");
    let (answer, exit) = cli(&service, &["node", "pending", data.to_str().unwrap()]).await;
    let waiting = &answer["recoveries"][0];
    assert_eq!((exit, waiting["keyId"].as_str()), (0, Some(key.key_id.to_string().as_str())), "{answer}");
    assert_eq!(waiting["retryAt"].as_u64(), failure.retry_at);
    let people = service.cli().args(["node", "pending", data.to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8(people.stdout).unwrap().contains("executable"));
}
