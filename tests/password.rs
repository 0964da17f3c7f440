//! Passwords at node 1, hand-driven: what is charged, what is given back and on which proof, and what is refused without a charge.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::{Cluster, Key, MINUTE, blinded, call, digest, link, prover, refused, sealed};
use ed25519_dalek::{Signer, SigningKey};
use std::sync::Arc;
use trefoil::channel::Link;
use trefoil::clock::now_ms;
use trefoil::vault::opened_statement;
use trefoil::wire::node::{NodeReply, NodeRequest, PasswordOpen, PasswordOutcome, SessionId};
use trefoil::wire::{ChangePasswordBody, Curve, ErrorCode, Fixed, KdfParams, Op, SignedJob, ValidateBody};
use trefoil_protocol::Party;

fn validate(cluster: &Cluster, job_id: &str, key: &Key) -> SignedJob {
    cluster.job(Op::ValidatePassword, job_id, key.id(), MINUTE, ValidateBody { secrets: sealed() })
}

fn change(cluster: &Cluster, job_id: &str, key: &Key) -> SignedJob {
    let payload = ChangePasswordBody { kdf: KdfParams::default().to_body(), secrets: sealed() };
    cluster.job(Op::ChangePassword, job_id, key.id(), MINUTE, payload)
}

fn open(key: &Key, job: &SignedJob) -> PasswordOpen {
    PasswordOpen {
        job: job.clone(),
        epoch: key.share.epoch(),
        transcript: key.share.transcript(),
        blinded_password: blinded(key.id()).element(),
    }
}

/// A session whose evaluation has arrived.
struct Session {
    link: Arc<Link>,
    id: SessionId,
    digest: [u8; 32],
}

async fn opened(cluster: &Cluster, key: &Key, job: &SignedJob) -> Session {
    let link = link(&cluster.to1).await;
    match link.call(&call(NodeRequest::PasswordOpen(open(key, job)))).await.unwrap() {
        NodeReply::PasswordOpened { session, .. } => Session { link, id: session, digest: digest(job) },
        other => panic!("not opened: {other:?}"),
    }
}

impl Session {
    async fn close(&self, outcome: PasswordOutcome) -> NodeReply {
        self.link.call(&call(NodeRequest::PasswordClose { session: self.id, outcome })).await.unwrap()
    }

    fn proof(&self, by: &SigningKey, next: Option<[u8; 32]>) -> PasswordOutcome {
        let statement = opened_statement(&self.link.hash(), &self.digest, &self.id, next.as_ref());
        PasswordOutcome::Opened { proof: Fixed(by.sign(&statement).to_bytes()), next }
    }
}

async fn locked_out(cluster: &Cluster, key: &Key, job_id: &str) -> Option<u64> {
    let job = validate(cluster, job_id, key);
    match cluster.ask1(NodeRequest::PasswordOpen(open(key, &job))).await {
        NodeReply::Refused { code, retry_at, .. } => {
            assert_eq!(code, ErrorCode::TooManyAttempts);
            Some(retry_at.expect("it says when to come back"))
        }
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_counted_and_only_a_proof_gives_back() {
    let settings = [("PASSWORD_ATTEMPTS", "3"), ("PASSWORD_LOCKOUT_SECONDS", "10")];
    let mut cluster = Cluster::with(&settings).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let wrong = async |cluster: &Cluster, id: &str| {
        let session = opened(cluster, &key, &validate(cluster, id, &key)).await;
        assert!(matches!(session.close(PasswordOutcome::Wrong).await, NodeReply::PasswordClosed { next: None }));
    };
    wrong(&cluster, "w1").await;
    wrong(&cluster, "w2").await;
    // A right one forgives both.
    let session = opened(&cluster, &key, &validate(&cluster, "r1", &key)).await;
    let proof = session.proof(&prover(), None);
    assert!(matches!(session.close(proof).await, NodeReply::PasswordClosed { next: None }));
    wrong(&cluster, "w3").await;
    wrong(&cluster, "w4").await;
    // What does not prove anything forgives nothing, and ends the session.
    let other = opened(&cluster, &key, &validate(&cluster, "f0", &key)).await;
    let bad = [("f1", SigningKey::from_bytes(&[1; 32]), None), ("f2", prover(), Some(other.id))];
    for (id, by, session_id) in bad {
        let session = opened(&cluster, &key, &validate(&cluster, id, &key)).await;
        let signed =
            Session { id: session_id.unwrap_or(session.id), link: session.link.clone(), digest: session.digest };
        assert_eq!(refused(session.close(signed.proof(&by, None)).await), ErrorCode::ProtocolAbort);
        assert_eq!(refused(session.close(session.proof(&prover(), None)).await), ErrorCode::NodeUnavailable);
    }
    wrong(&cluster, "w5").await;
    let before = now_ms();
    let until = locked_out(&cluster, &key, "l1").await.expect("three wrong ones in a row");
    assert!(until > before && until <= now_ms() + 10_000, "{until} at {before}");
    // Signing is behind the same limit, and a restart forgets nothing.
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
    let _ = cluster.to1.renew().await;
    assert_eq!(locked_out(&cluster, &key, "l2").await, Some(until));
    tokio::time::sleep(std::time::Duration::from_millis(until.saturating_sub(now_ms()) + 50)).await;
    let session = opened(&cluster, &key, &validate(&cluster, "r2", &key)).await;
    let proof = session.proof(&prover(), None);
    assert!(matches!(session.close(proof).await, NodeReply::PasswordClosed { .. }));
    assert_eq!(locked_out(&cluster, &key, "l3").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_is_evaluated_only_for_whoever_opened_the_old_one() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let next = Some(blinded(key.id()).element());
    let session = opened(&cluster, &key, &change(&cluster, "c1", &key)).await;
    let forged = session.proof(&SigningKey::from_bytes(&[1; 32]), next);
    assert_eq!(refused(session.close(forged).await), ErrorCode::ProtocolAbort);
    // The proof names the new password: a relay cannot have another one evaluated.
    let session = opened(&cluster, &key, &change(&cluster, "c2", &key)).await;
    let PasswordOutcome::Opened { proof, .. } = session.proof(&prover(), next) else { unreachable!() };
    let swapped = PasswordOutcome::Opened { proof, next: Some(blinded(key.id()).element()) };
    assert_eq!(refused(session.close(swapped).await), ErrorCode::ProtocolAbort);
    // A validation evaluates one password, whoever asks.
    let session = opened(&cluster, &key, &validate(&cluster, "v1", &key)).await;
    assert_eq!(refused(session.close(session.proof(&prover(), next)).await), ErrorCode::ProtocolAbort);
    let session = opened(&cluster, &key, &change(&cluster, "c3", &key)).await;
    assert!(matches!(session.close(session.proof(&prover(), next)).await, NodeReply::PasswordClosed { next: Some(_) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_at_once_costs_no_attempt() {
    let cluster = Cluster::with(&[("PASSWORD_ATTEMPTS", "1")]).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let ask = async |open: PasswordOpen| refused(cluster.ask1(NodeRequest::PasswordOpen(open)).await);
    for round in 0..12 {
        let job = validate(&cluster, &format!("v{round}"), &key);
        let mut tampered = job.clone();
        tampered.body[20] ^= 1;
        assert_eq!(ask(open(&key, &tampered)).await, ErrorCode::BadSignature);
        assert_eq!(ask(PasswordOpen { epoch: 9, ..open(&key, &job) }).await, ErrorCode::StaleShare);
        assert_eq!(ask(PasswordOpen { transcript: [9; 32], ..open(&key, &job) }).await, ErrorCode::StaleShare);
        assert_eq!(ask(PasswordOpen { blinded_password: [0; 32], ..open(&key, &job) }).await, ErrorCode::ProtocolAbort);
        // A job for something else is no guess.
        let other = cluster.key_info_job(&format!("k{round}"), key.id());
        assert_eq!(ask(open(&key, &other)).await, ErrorCode::MalformedJob);
        assert_eq!(
            refused(cluster.ask2(NodeRequest::PasswordOpen(open(&key, &job))).await),
            ErrorCode::UnsupportedOperation
        );
    }
    let session = opened(&cluster, &key, &validate(&cluster, "v", &key)).await;
    // Nobody else's channel, and no signing session's answer.
    let other = cluster.to1.renew().await.unwrap();
    let close = || NodeRequest::PasswordClose { session: session.id, outcome: PasswordOutcome::Wrong };
    assert_eq!(refused(other.call(&call(close())).await.unwrap()), ErrorCode::NodeUnavailable);
    let proof = session.proof(&prover(), None);
    assert!(matches!(session.close(proof).await, NodeReply::PasswordClosed { .. }));
}
