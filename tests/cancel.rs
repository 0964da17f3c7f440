//! Cancelling a job that is not started, and how far a job is: at node 1, and through the whole service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod deployment;
mod support;

use async_nats::jetstream;
use cluster::{Cluster, Key, MINUTE, refused};
use deployment::{Deployment, PATIENCE, QUICK, code, message, new_key, outcome, password, secrets};
use nkeys::KeyPair;
use serde_json::Value;
use time::OffsetDateTime;
use trefoil::client::{Backend, ClientError, SignedRequest, SigningMaterial};
use trefoil::jobs::consumer::CONSUMER;
use trefoil::node::store::{LedgerEntry, RedbStore, Store, StoreError};
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{
    Curve, ErrorCode, JobId, JobState, KeyId, Method, Op, OrderBody, OrderedState, Outcome, SignInput, SignedJob,
    WhichJobBody,
};
use trefoil_protocol::{Party, Secret};

const HOUR: u64 = 3_600_000;

fn entry(id: &str, digest: u8) -> LedgerEntry {
    let initiator = KeyPair::new_from_raw(nkeys::KeyPairType::User, [3; 32]).unwrap().public_key().parse().unwrap();
    LedgerEntry { initiator, job_id: id.parse().unwrap(), digest: [digest; 32], op: Op::Sign, expires_at: 10_000 }
}

#[tokio::test]
async fn a_tombstone_is_there_after_a_restart_and_outlives_every_job() {
    let folder = tempfile::tempdir().unwrap();
    let open = || RedbStore::open(folder.path(), Party::Node1, Secret::new([9; 32])).unwrap();
    let store = open();
    let cancelled = Err(StoreError::Refused(ErrorCode::JobCancelled));
    let now = 1_000;
    store.cancel(entry("c1", 1), id("later"), now).await.unwrap();
    store.cancel(entry("c1", 1), id("later"), now).await.unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.admit(entry("later", 2)).await, cancelled);
    assert_eq!(store.check_ledger(&entry("later", 2)).map(|_| ()), cancelled);
    let state = |job: &str| store.job_state(&entry("x", 0).initiator, &id(job)).unwrap();
    assert_eq!(
        (state("later"), state("c1"), state("other")),
        (JobState::Cancelled, JobState::Started, JobState::Unknown)
    );
    // A job of that id that was issued a moment ahead of the node's clock, and lives as long as any may.
    store.prune(now + 30_000 + HOUR).await.unwrap();
    assert_eq!(store.admit(entry("later", 2)).await, cancelled);
    store.prune(now + 4 * HOUR).await.unwrap();
    assert_eq!(state("later"), JobState::Unknown);
    // What was admitted is started, whichever job says so; and no id serves two bodies.
    store.admit(entry("early", 3)).await.unwrap();
    let started = Err(StoreError::Refused(ErrorCode::JobStarted));
    assert_eq!(store.cancel(entry("c2", 4), id("early"), now).await, started);
    assert_eq!(store.cancel(entry("early", 5), id("x"), now).await, Err(StoreError::Refused(ErrorCode::JobIdReused)));
    store.admit(entry("early", 3)).await.unwrap();
}

fn id(text: &str) -> JobId {
    text.parse().unwrap()
}

fn about(cluster: &Cluster, op: Op, job_id: &str, key_id: KeyId, other: &str) -> SignedJob {
    cluster.job(op, job_id, key_id, MINUTE, WhichJobBody { job_id: id(other) })
}

async fn ask(cluster: &Cluster, job: &SignedJob) -> NodeReply {
    cluster.ask1(NodeRequest::Manage { job: job.clone() }).await
}

async fn state(cluster: &Cluster, key: &Key, other: &str) -> JobState {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let job_id = format!("q{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    match ask(cluster, &about(cluster, Op::JobStatus, &job_id, key.id(), other)).await {
        NodeReply::JobIs(state) => state,
        other => panic!("{other:?}"),
    }
}

/// Begins to sign; takes the key's slot from sessions of lower tokens.
async fn sign(cluster: &Cluster, key: &Key, job: &SignedJob, token: u64) -> NodeReply {
    let open = cluster.open(key, job, [1; 32], token);
    cluster.ask1(NodeRequest::SignOpen(open)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn node_1_begins_nothing_that_was_cancelled() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let input = SignInput::Secp256k1 { digest: [1; 32], path: None };
    let cancelled = cluster.sign_job("s1", key.id(), &input);
    let cancel = about(&cluster, Op::Cancel, "c1", key.id(), "s1");
    assert_eq!(state(&cluster, &key, "s1").await, JobState::Unknown);
    // Another initiator's cancellation is about a job of its own.
    let other = KeyPair::new_user();
    let more = format!(
        "[[initiators]]\nname = \"other\"\nkey = \"{}\"\noperations = [\"cancel\", \"job-status\"]\ncurves = []",
        other.public_key()
    );
    cluster.write_policy(&more);
    cluster.reload_policy(Party::Node1).await;
    let owner = std::mem::replace(&mut cluster.initiator, other);
    let foreign = about(&cluster, Op::Cancel, "c1", key.id(), "s1");
    assert!(matches!(ask(&cluster, &foreign).await, NodeReply::JobIs(JobState::Cancelled)));
    let other = std::mem::replace(&mut cluster.initiator, owner);
    assert_eq!(state(&cluster, &key, "s1").await, JobState::Unknown);
    for _ in 0..2 {
        assert!(matches!(ask(&cluster, &cancel).await, NodeReply::JobIs(JobState::Cancelled)));
    }
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
    let _ = cluster.to1.renew().await;
    assert_eq!(state(&cluster, &key, "s1").await, JobState::Cancelled);
    assert_eq!(refused(sign(&cluster, &key, &cancelled, 1).await), ErrorCode::JobCancelled);
    // Whatever the operation.
    for (op, name) in [(Op::Freeze, "f1"), (Op::Generate, "g2")] {
        let cancel = about(&cluster, Op::Cancel, &format!("c-{name}"), key.id(), name);
        assert!(matches!(ask(&cluster, &cancel).await, NodeReply::JobIs(JobState::Cancelled)));
        let request = match op {
            Op::Freeze => NodeRequest::Order { job: cluster.job(op, name, key.id(), MINUTE, OrderBody {}) },
            _ => NodeRequest::GenerateOpen {
                job: cluster.generate_job(name, Curve::Ed25519),
                contribution: [1; 32],
                blinded_password: Some(cluster::blinded(key.id()).element()),
                proof: None,
                identities: None,
            },
        };
        assert_eq!(refused(cluster.ask1(request).await), ErrorCode::JobCancelled);
    }
    // What has begun goes on, and is nobody else's business.
    let started = cluster.sign_job("s2", key.id(), &input);
    cluster::opened(sign(&cluster, &key, &started, 2).await);
    assert_eq!(state(&cluster, &key, "s2").await, JobState::Started);
    let late = about(&cluster, Op::Cancel, "c2", key.id(), "s2");
    assert_eq!(refused(ask(&cluster, &late).await), ErrorCode::JobStarted);
    cluster::opened(sign(&cluster, &key, &started, 2).await);
    let owner = std::mem::replace(&mut cluster.initiator, other);
    assert_eq!(state(&cluster, &key, "s2").await, JobState::Unknown);
    cluster.initiator = owner;
    // A body of its own under a used id, a job that names itself, and the node that is not asked.
    let reused = about(&cluster, Op::Cancel, "c1", key.id(), "s9");
    assert_eq!(refused(ask(&cluster, &reused).await), ErrorCode::JobIdReused);
    let itself = about(&cluster, Op::Cancel, "c9", key.id(), "c9");
    assert_eq!(refused(ask(&cluster, &itself).await), ErrorCode::MalformedJob);
    let elsewhere = cluster.ask2(NodeRequest::Manage { job: cancel.clone() }).await;
    assert_eq!(refused(elsewhere), ErrorCode::UnsupportedOperation);
    let path = cluster.data(Party::Node1).join(AUDIT_LOG);
    audit::verify(&path, None).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains("\"op\":\"cancel\"") && text.contains("\"decision\":\"cancelled\",\"reason\":\"s1\""));
}

/// Both at the same time, again and again: exactly one of them wins, and both say so.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_cancellation_and_a_delivery_exactly_one_wins() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let input = SignInput::Secp256k1 { digest: [1; 32], path: None };
    let (mut cancelled, mut started) = (0, 0);
    for round in 0..60 {
        let name = format!("s{round}");
        let job = cluster.sign_job(&name, key.id(), &input);
        let cancel = about(&cluster, Op::Cancel, &format!("c{round}"), key.id(), &name);
        let (said, signed) = if round % 2 == 0 {
            futures::join!(ask(&cluster, &cancel), sign(&cluster, &key, &job, 1 + round))
        } else {
            let (signed, said) = futures::join!(sign(&cluster, &key, &job, 1 + round), ask(&cluster, &cancel));
            (said, signed)
        };
        match (said, signed) {
            (NodeReply::JobIs(JobState::Cancelled), NodeReply::Refused { code: ErrorCode::JobCancelled, .. }) => {
                cancelled += 1;
            }
            (NodeReply::Refused { code: ErrorCode::JobStarted, .. }, NodeReply::SignOpened { .. }) => started += 1,
            (said, signed) => panic!("{said:?}, {}", matches!(signed, NodeReply::SignOpened { .. })),
        }
    }
    // With luck both happen; that each can is tested above.
    assert_eq!(cancelled + started, 60);
}

fn sign_request(backend: &Backend, key: &SigningMaterial, text: &str) -> SignedRequest {
    let reply = backend.reply_key().unwrap();
    backend.jobs().sign(key.key_id, Method::Default, &message(text), &secrets(key), &reply, PATIENCE).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_the_queue_is_found_and_cancelled() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    let done = sign_request(&backend, &key, "done");
    outcome(&backend, &done).await;
    let status = backend.job_status(key.key_id, &done.job_id).await.unwrap();
    assert_eq!(status.state, JobState::Done);
    let subject = format!("mpc.result.{}.{}", backend.jobs().initiator(), done.job_id);
    assert_eq!(status.result_subject, Some(subject));
    assert_eq!(job_code(backend.cancel_job(key.key_id, &done.job_id).await), ErrorCode::JobStarted);
    let none = backend.job_status(key.key_id, &id("none")).await.unwrap();
    assert_eq!((none.state, none.result_subject), (JobState::Unknown, None));

    // The queue delivers nothing, while workers answer questions.
    let jetstream = jetstream::new(service.nats.connect().await);
    let queue = jetstream.get_stream("MPC_JOBS").await.unwrap();
    let for_now = OffsetDateTime::now_utc() + time::Duration::hours(1);
    queue.pause_consumer(CONSUMER, for_now).await.unwrap();
    let (cancelled, kept) = (sign_request(&backend, &key, "cancelled"), sign_request(&backend, &key, "kept"));
    for request in [&cancelled, &kept] {
        backend.publish(request).await.unwrap();
    }
    // Copies with another signature, on the same subject: not the initiator's.
    let mut forged = sign_request(&backend, &key, "forged");
    forged.body.push(b' ');
    backend.publish(&forged).await.unwrap();
    let state = async |job: &SignedRequest| backend.job_status(key.key_id, &job.job_id).await.unwrap().state;
    assert_eq!((state(&cancelled).await, state(&kept).await), (JobState::Waiting, JobState::Waiting));
    assert_eq!(state(&forged).await, JobState::Unknown);
    let other_key = backend.job_status(KeyId([1; 16]), &kept.job_id).await.unwrap();
    assert_eq!(other_key.state, JobState::Unknown, "only in the queue that was named");
    let about = |command, job: &SignedRequest| {
        let (id, key) = (job.job_id.to_string(), key.key_id.to_string());
        cli(&service, &["job", command, "--job-id", &id, "--key-id", &key])
    };
    let (answer, exit) = about("cancel", &cancelled);
    assert_eq!((exit, answer["state"].as_str()), (0, Some("cancelled")), "{answer}");
    let (answer, exit) = about("status", &cancelled);
    assert_eq!((exit, answer["state"].as_str(), answer.get("resultSubject")), (0, Some("cancelled"), None), "{answer}");
    // Whoever may only sign learns nothing and cancels nothing.
    let limited = service.backend_with(&[("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap())]).await;
    assert_eq!(job_code(limited.cancel_job(key.key_id, &kept.job_id).await), ErrorCode::NotPermitted);
    assert_eq!(job_code(limited.job_status(key.key_id, &kept.job_id).await), ErrorCode::NotPermitted);
    queue.resume_consumer(CONSUMER).await.unwrap();
    assert_eq!(code(&outcome(&backend, &cancelled).await), ErrorCode::JobCancelled);
    assert!(matches!(outcome(&backend, &kept).await.outcome, Outcome::Ok { .. }));
    assert_eq!(state(&cancelled).await, JobState::Cancelled);
    backend.cancel_job(key.key_id, &cancelled.job_id).await.unwrap();
    let (answer, exit) = about("cancel", &kept);
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("JOB_STARTED")), "{answer}");
    // A cancelled order leaves the key at both nodes as it was, and a cancelled generation makes none.
    queue.pause_consumer(CONSUMER, for_now).await.unwrap();
    let (reply, jobs) = (backend.reply_key().unwrap(), backend.jobs());
    let freeze = jobs.order(key.key_id, OrderedState::Frozen, &reply, PATIENCE).unwrap();
    let generate = backend.generation(Curve::Ed25519, QUICK, password(), None).unwrap();
    for request in [&freeze, &generate] {
        backend.publish(request).await.unwrap();
        backend.cancel_job(request.key_id, &request.job_id).await.unwrap();
    }
    queue.resume_consumer(CONSUMER).await.unwrap();
    for request in [&freeze, &generate] {
        assert_eq!(code(&outcome(&backend, request).await), ErrorCode::JobCancelled);
    }
    assert_eq!(backend.public_key(key.key_id).await.unwrap().key_id, key.key_id);
    assert_eq!(job_code(backend.public_key(generate.key_id).await), ErrorCode::UnknownKey);
}

/// Runs a command of the command line; its JSON and exit code.
fn cli(service: &Deployment, arguments: &[&str]) -> (Value, i32) {
    let done = service.cli().arg("--json").args(arguments).output().unwrap();
    (serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}")), done.status.code().unwrap())
}

fn job_code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> ErrorCode {
    match answer.unwrap_err() {
        ClientError::Job(failure) => failure.code,
        other => panic!("{other}"),
    }
}
