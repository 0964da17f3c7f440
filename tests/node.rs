//! Two nodes against a hand-driven client: the whole life of a key, and what a node refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::signer::{DIGEST, close, digest_input, frost, message_input, to_m2};
use cluster::{Cluster, MINUTE, call, link, opened, refused};
use ed25519_dalek::{Signature, VerifyingKey};
use trefoil::channel::ChannelError;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{KeyStatement, NodeReply, NodeRequest, SignOpen, SignOutcome};
use trefoil::wire::{Curve, Decision, DecisionKind, ErrorCode, Fixed, KeyId, Op, SignInput, SignedJob};
use trefoil_protocol::Party;
use trefoil_protocol::ecdsa::M2_LEN;
use trefoil_protocol::frost::FrostClient;

fn audit_of(cluster: &Cluster, role: Party) -> Vec<serde_json::Value> {
    let path = cluster.data(role).join(AUDIT_LOG);
    audit::verify(&path, None).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(&line[65..]).unwrap()).collect()
}

fn decisions(log: &[serde_json::Value], decision: &str) -> usize {
    log.iter().filter(|entry| entry["decision"] == decision).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ecdsa_key_from_generation_to_signature() {
    let mut cluster = Cluster::start().await;
    let key = cluster.generate("g1", Curve::Secp256k1).await;
    assert_eq!(key.statement1.public_key, key.share.public_key());
    assert_eq!(key.statement1.transcript, key.statement2.transcript);

    // Prepared, not committed: the node says where the evidence is.
    let job = cluster.sign_job("s1", key.id(), &digest_input());
    let open = NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0));
    let NodeReply::NotCommitted { result_subject } = cluster.ask1(open).await else { panic!("committed") };
    assert_eq!(result_subject, format!("mpc.result.{}.g1", cluster.initiator()));

    cluster.commit(&key).await;
    cluster.commit(&key).await;
    let signature = to_m2(&cluster, &key, &job, 0).await.unwrap().finish().await;
    use k256::ecdsa::signature::hazmat::PrehashVerifier;
    let verifying = k256::ecdsa::VerifyingKey::from_sec1_bytes(&key.statement1.public_key).unwrap();
    verifying.verify_prehash(&DIGEST, &k256::ecdsa::Signature::from_slice(&signature).unwrap()).unwrap();

    for role in [Party::Node1, Party::Node2] {
        let info = NodeRequest::KeyInfo { job: cluster.key_info_job("i1", key.id()) };
        let reply = if role == Party::Node1 { cluster.ask1(info).await } else { cluster.ask2(info).await };
        let NodeReply::KeyInfo { statement, committed, .. } = reply else { panic!("{reply:?}") };
        let one = role == Party::Node1;
        assert_eq!(statement, if one { key.statement1.clone() } else { key.statement2.clone() });
        let KeyStatement { key_id, epoch, transcript, .. } = statement;
        let decision = Decision { kind: DecisionKind::Committed, key_id, epoch, transcript };
        let identity = if one { &cluster.node1.identity } else { &cluster.node2.identity };
        assert!(decision.verify(identity, &committed.0), "{role} proves its commit");
    }
    // What is only noted is on disk at the latest when the node has ended.
    cluster.drain_node(Party::Node1).await;
    let log = audit_of(&cluster, Party::Node1);
    assert_eq!((decisions(&log, "prepared"), decisions(&log, "released"), decisions(&log, "closed")), (1, 1, 1));
    assert!(log.iter().all(|entry| entry["reason"].is_null()), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eddsa_key_survives_restarts() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let public = VerifyingKey::from_bytes(&key.share.public_key().try_into().unwrap()).unwrap();
    for (n, message) in [b"".as_slice(), b"\0leading zero", &[7; 60_000]].into_iter().enumerate() {
        let job = cluster.sign_job(&format!("s{n}"), key.id(), &message_input(message));
        let signature = frost(&cluster, &key, &job, message).await.unwrap();
        public.verify_strict(message, &Signature::from_bytes(&signature)).unwrap();
        cluster.drain_node(Party::Node1).await;
        cluster.start_node(Party::Node1).await;
        // The first call on the old channel finds it gone, and the next one makes another.
        let question = || NodeRequest::KeyInfo { job: cluster.key_info_job("i", key.id()) };
        let old = link(&cluster.to1).await;
        assert_eq!(old.call(&call(question())).await.err(), Some(ChannelError::Lost));
        assert!(matches!(cluster.ask1(question()).await, NodeReply::Refused { .. } | NodeReply::KeyInfo { .. }));
        assert_ne!(link(&cluster.to1).await.hash(), old.hash());
    }
    // The curve's protocol is the key's, not the worker's choice.
    let job = cluster.sign_job("wrong-curve", key.id(), &digest_input());
    assert_eq!(to_m2(&cluster, &key, &job, 0).await.err(), Some(ErrorCode::CurveMismatch));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_slot_per_key() {
    let cluster = Cluster::with(&[("SESSION_TTL_SECONDS", "8")]).await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let [a, b, c] = ["a", "b", "c"].map(|id| cluster.sign_job(id, key.id(), &digest_input()));
    let first = to_m2(&cluster, &key, &a, 5).await.unwrap();
    assert_eq!(to_m2(&cluster, &key, &b, 5).await.err(), Some(ErrorCode::KeyBusy), "another job, no higher token");
    // The same job preempts, and its old session is over.
    let second = to_m2(&cluster, &key, &a, 0).await.unwrap();
    assert_eq!(refused(first.send(first.m2.clone()).await), ErrorCode::NodeUnavailable);
    // A higher token preempts.
    let third = to_m2(&cluster, &key, &b, 1).await.unwrap();
    assert_eq!(refused(second.send(second.m2.clone()).await), ErrorCode::NodeUnavailable);
    third.finish().await;
    // After m3 the slot is free, whatever the token was.
    to_m2(&cluster, &key, &c, 0).await.unwrap().finish().await;
    // A worker that lies about its token shuts the key out no longer than its session lives.
    let liar = to_m2(&cluster, &key, &a, u64::MAX).await.unwrap();
    assert_eq!(to_m2(&cluster, &key, &b, 7).await.err(), Some(ErrorCode::KeyBusy));
    let next = loop {
        match to_m2(&cluster, &key, &b, 7).await {
            Err(ErrorCode::KeyBusy) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            next => break next.unwrap(),
        }
    };
    next.finish().await;
    assert_eq!(refused(liar.send(liar.m2.clone()).await), ErrorCode::NodeUnavailable);
    // The log tells how each session ended, and who was refused.
    let log = audit_of(&cluster, Party::Node1);
    let of = |decision: &str| log.iter().filter(|entry| entry["op"] == "sign" && entry["decision"] == decision).count();
    assert_eq!(of("opened"), of("released") + of("preempted"));
    assert!(log.iter().filter(|entry| entry["reason"] == "KEY_BUSY").count() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_can_send_changes_nothing() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = cluster.sign_job("a", key.id(), &digest_input());
    let midway = to_m2(&cluster, &key, &job, 0).await.unwrap();
    let spliced = {
        let mut m2 = midway.m2.clone();
        m2[..16].fill(0);
        m2
    };
    for garbage in [vec![], vec![0; M2_LEN], midway.m2[1..].to_vec(), [&midway.m2[..], &[0]].concat(), spliced] {
        assert_eq!(refused(midway.send(garbage).await), ErrorCode::ProtocolAbort);
    }
    // From another channel the session does not exist.
    let other = cluster.to1.renew().await.unwrap();
    let request = NodeRequest::SignRound2 { session: midway.session, m2: midway.m2.clone() };
    assert_eq!(refused(other.call(&call(request)).await.unwrap()), ErrorCode::NodeUnavailable);
    // A stale or foreign share gets a harmless error.
    for change in 0..3 {
        let mut open = cluster.open(&key, &job, [1; 32], 0);
        match change {
            0 => open.epoch += 1,
            1 => open.transcript[0] ^= 1,
            _ => open.ot_id[0] ^= 1,
        }
        let job = cluster.sign_job(&format!("stale-{change}"), key.id(), &digest_input());
        open.job = job;
        // A busy slot would hide the check of ot_id.
        open.lease_token = 0;
        let code = refused(cluster.ask1(NodeRequest::SignOpen(open)).await);
        assert!(code == ErrorCode::StaleShare || (change == 2 && code == ErrorCode::KeyBusy), "{change}: {code}");
    }
    // And the session of before still ends in a signature.
    midway.finish().await;
    let mut open = cluster.open(&key, &cluster.sign_job("stale-ot", key.id(), &digest_input()), [1; 32], 0);
    open.ot_id[0] ^= 1;
    assert_eq!(refused(cluster.ask1(NodeRequest::SignOpen(open)).await), ErrorCode::StaleShare);
    let again = cluster.sign_job("after", key.id(), &digest_input());
    to_m2(&cluster, &key, &again, 0).await.unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_check_locks_the_key_for_good() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let other = cluster.committed_key("g2", Curve::Secp256k1).await;
    let job = cluster.sign_job("a", key.id(), &digest_input());
    let before = cluster::read(&cluster.data(Party::Node1).join("slots"));
    let midway = to_m2(&cluster, &key, &job, 0).await.unwrap();
    let mut m2 = midway.m2.clone();
    m2[16 + 33 + 16 + 100] ^= 1; // one bit of one column of U
    assert_eq!(refused(midway.send(m2).await), ErrorCode::ProtocolAbort);
    let after = cluster::read(&cluster.data(Party::Node1).join("slots"));
    assert_ne!(before[64..128], [0; 64]);
    assert_eq!(after[64..128], [0; 64], "the data key of share and OT state is overwritten before the answer");

    for round in 0..2 {
        let job = cluster.sign_job(&format!("b{round}"), key.id(), &digest_input());
        assert_eq!(to_m2(&cluster, &key, &job, u64::MAX).await.err(), Some(ErrorCode::KeyLocked));
        assert_eq!(refused(midway.send(midway.m2.clone()).await), ErrorCode::NodeUnavailable);
        cluster.drain_node(Party::Node1).await;
        cluster.start_node(Party::Node1).await;
        if round == 0 {
            assert_eq!(midway.link.call(&call(close(midway.session))).await.err(), Some(ChannelError::Lost));
            break;
        }
    }
    let job = cluster.sign_job("c", key.id(), &digest_input());
    assert_eq!(to_m2(&cluster, &key, &job, 0).await.err(), Some(ErrorCode::KeyLocked), "also after a restart");
    let log = audit_of(&cluster, Party::Node1);
    let locked: Vec<_> = log.iter().filter(|entry| entry["decision"] == "locked").collect();
    assert_eq!(locked.len(), 1);
    assert_eq!(locked[0]["reason"], "ot_consistency");
    // Nobody is told the public key of a key that does not sign.
    let question = NodeRequest::KeyInfo { job: cluster.key_info_job("i", key.id()) };
    assert_eq!(refused(cluster.ask1(question).await), ErrorCode::KeyLocked);
    let job = cluster.sign_job("d", other.id(), &digest_input());
    to_m2(&cluster, &other, &job, 0).await.unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_reports_a_failed_check_locks_too() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = cluster.sign_job("a", key.id(), &digest_input());
    let midway = to_m2(&cluster, &key, &job, 0).await.unwrap();
    let outcome = SignOutcome::Abort { check: "ot_consistency".into(), ban: true };
    let request = NodeRequest::SignClose { session: midway.session, outcome };
    assert!(matches!(midway.link.call(&call(request)).await.unwrap(), NodeReply::Closed));
    assert_eq!(to_m2(&cluster, &key, &job, 0).await.err(), Some(ErrorCode::KeyLocked));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_counted_and_right_ones_forgive() {
    let cluster = Cluster::with(&[("PASSWORD_ATTEMPTS", "3"), ("PASSWORD_LOCKOUT_SECONDS", "4")]).await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let wrong = async |n: usize| {
        let job = cluster.sign_job(&format!("w{n}"), key.id(), &digest_input());
        let midway = to_m2(&cluster, &key, &job, 0).await?;
        let outcome = SignOutcome::Abort { check: "wrong_password".into(), ban: false };
        let request = NodeRequest::SignClose { session: midway.session, outcome };
        assert!(matches!(midway.link.call(&call(request)).await.unwrap(), NodeReply::Closed));
        Ok(())
    };
    let right = async |n: usize| {
        let job = cluster.sign_job(&format!("r{n}"), key.id(), &digest_input());
        to_m2(&cluster, &key, &job, 0).await.map(|midway| async { midway.finish().await })
    };
    for n in 0..3 {
        wrong(2 * n).await.unwrap();
        wrong(2 * n + 1).await.unwrap();
        right(n).await.unwrap().await;
    }
    for n in 10..13 {
        wrong(n).await.unwrap();
    }
    assert_eq!(wrong(13).await, Err(ErrorCode::TooManyAttempts));
    assert_eq!(right(13).await.err(), Some(ErrorCode::TooManyAttempts));
    tokio::time::sleep(std::time::Duration::from_millis(4_100)).await;
    right(14).await.unwrap().await;
}

/// Lost packets make an honest worker ask again; they do not lock its key's owner out.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_again_and_what_failed_costs_no_attempt() {
    let cluster = Cluster::with(&[("PASSWORD_ATTEMPTS", "1")]).await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = cluster.sign_job("a", key.id(), &digest_input());
    let element = cluster::blinded(key.id()).element();
    let ask = async |blinded_password, job: &SignedJob| {
        let open = SignOpen { blinded_password, ..cluster.open(&key, job, [1; 32], 0) };
        cluster.ask1(NodeRequest::SignOpen(open)).await
    };
    for _ in 0..15 {
        assert!(matches!(ask(element, &job).await, NodeReply::SignOpened { .. }));
    }
    for n in 0..15 {
        let job = cluster.sign_job(&format!("bad{n}"), key.id(), &digest_input());
        // Idle, the session of before would keep the slot.
        let open = SignOpen { blinded_password: [0xFF; 32], ..cluster.open(&key, &job, [1; 32], 1 + n) };
        assert_eq!(refused(cluster.ask1(NodeRequest::SignOpen(open)).await), ErrorCode::ProtocolAbort);
    }
    to_m2(&cluster, &key, &job, 100).await.unwrap().finish().await;
}

/// With FROST the attempt is given back by the signature. One from an earlier session is public and proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_signature_forgives_no_guess() {
    let cluster = Cluster::with(&[("PASSWORD_ATTEMPTS", "1")]).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let job = |n: usize| cluster.sign_job(&format!("s{n}"), key.id(), &message_input(b"same"));
    for n in 0..20 {
        frost(&cluster, &key, &job(n), b"same").await.unwrap();
    }
    let old = frost(&cluster, &key, &job(20), b"same").await.unwrap();
    let guess = async |n: usize| {
        let (_, commitments) = FrostClient::start(&mut rand_core::OsRng);
        let open = cluster.open(&key, &job(n), [1; 32], 0);
        let request = NodeRequest::FrostSign { open, commitments: Fixed(commitments) };
        let NodeReply::FrostSigned { session, .. } = cluster.ask1(request).await else { return false };
        let close = NodeRequest::SignClose { session, outcome: SignOutcome::Signature(Fixed(old)) };
        matches!(cluster.ask1(close).await, NodeReply::Closed)
    };
    for n in 0..10 {
        assert!(guess(100 + n).await, "attempts whose end is not proven count against ten times the limit");
    }
    assert!(!guess(200).await);
    assert_eq!(frost(&cluster, &key, &job(201), b"same").await, Err(ErrorCode::TooManyAttempts));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_checked_by_the_node_itself() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let good = cluster.sign_job("a", key.id(), &digest_input());
    let open = |job: SignedJob| {
        let request = NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0));
        async { refused(cluster.ask1(request).await) }
    };
    // Every byte of the body is under the signature.
    for at in (0..good.body.len()).step_by(good.body.len() / 40) {
        let mut job = good.clone();
        job.body[at] ^= 1;
        let code = open(job).await;
        assert!(
            matches!(code, ErrorCode::BadSignature | ErrorCode::MalformedJob | ErrorCode::UnknownField),
            "byte {at}: {code}"
        );
    }
    let mut job = good.clone();
    job.signature.0[0] ^= 1;
    assert_eq!(open(job).await, ErrorCode::BadSignature);
    // A job for something else, a job of someone else, a job too early, too late, too long.
    assert_eq!(open(cluster.generate_job("g9", Curve::Secp256k1)).await, ErrorCode::MalformedJob);
    let body = trefoil::wire::SignBody::new(trefoil::wire::Method::Mta, &digest_input(), cluster::sealed());
    let short = cluster.job(Op::Sign, "short", key.id(), 1, body.clone());
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_eq!(open(short).await, ErrorCode::JobExpired);
    let long = cluster.job(Op::Sign, "long", key.id(), 61 * MINUTE, body.clone());
    assert_eq!(open(long).await, ErrorCode::JobLifetimeTooLong);
    let unknown = cluster.job(Op::Sign, "unknown", KeyId([1; 16]), MINUTE, body);
    assert_eq!(open(unknown).await, ErrorCode::UnknownKey);
    // The same id with another body, before and after.
    let midway = to_m2(&cluster, &key, &good, 0).await.unwrap();
    midway.finish().await;
    let other = cluster.sign_job("a", key.id(), &SignInput::Secp256k1 { digest: [1; 32], path: None });
    assert_eq!(open(other).await, ErrorCode::JobIdReused);
    to_m2(&cluster, &key, &good, 0).await.unwrap().finish().await;
    // Node 2 signs nothing.
    let request = NodeRequest::SignOpen(cluster.open(&key, &good, [1; 32], 0));
    assert_eq!(refused(cluster.ask2(request).await), ErrorCode::UnsupportedOperation);

    let mut stranger = Cluster::start().await;
    stranger.initiator = nkeys::KeyPair::new_user();
    let job = stranger.sign_job("x", key.id(), &digest_input());
    assert_eq!(open(job).await, ErrorCode::UnknownInitiator);
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_need_their_evidence() {
    let cluster = Cluster::start().await;
    let key = cluster.generate("g1", Curve::Ed25519).await;
    let again = cluster.generate_by(key.job.clone(), "g1", Curve::Ed25519).await;
    assert_ne!(key.share.transcript(), again.share.transcript());
    let (key_id, transcript) = (key.id(), key.share.transcript());
    let commit = |evidence| NodeRequest::Commit { key_id, transcript, evidence };
    for evidence in [key.statement1.signature, again.statement2.signature, Fixed([0; 64])] {
        assert_eq!(refused(cluster.ask1(commit(evidence)).await), ErrorCode::NotPermitted);
        assert_eq!(refused(cluster.ask2(commit(evidence)).await), ErrorCode::NotPermitted);
    }
    // Node 2 does not decide: it neither commits nor discards without node 1's word.
    assert_eq!(refused(cluster.ask2(commit(key.statement2.signature)).await), ErrorCode::NotPermitted);
    let discard = |evidence| NodeRequest::Discard { key_id, transcript, evidence };
    assert_eq!(refused(cluster.ask2(discard(None)).await), ErrorCode::NotPermitted);
    // Node 1 drops an attempt only for the worker that prepared it: to know its name is not enough, nor is to invent one.
    let prepared_on = link(&cluster.to1).await;
    cluster.to1.renew().await.unwrap();
    assert_eq!(refused(cluster.ask1(discard(None)).await), ErrorCode::NotPermitted);
    let unknown = NodeRequest::Discard { key_id, transcript: [9; 32], evidence: None };
    assert_eq!(refused(prepared_on.call(&call(unknown)).await.unwrap()), ErrorCode::NotPermitted);
    let on_its_link = async |evidence| prepared_on.call(&call(discard(evidence))).await.unwrap();
    let NodeReply::Aborted { signature } = on_its_link(None).await else { panic!("not aborted") };
    // What node 1 aborted it never commits, and node 2 obeys the abort but takes it for nothing else.
    assert_eq!(refused(cluster.ask1(commit(key.statement2.signature)).await), ErrorCode::UnknownKey);
    assert_eq!(refused(cluster.ask2(commit(signature)).await), ErrorCode::NotPermitted);
    assert!(matches!(cluster.ask2(discard(Some(signature))).await, NodeReply::Aborted { .. }));
    assert!(matches!(on_its_link(None).await, NodeReply::Aborted { .. }), "again is fine");
    // The other attempt becomes the key; then there is nothing left to discard.
    cluster.commit(&again).await;
    let discard = NodeRequest::Discard { key_id, transcript: again.share.transcript(), evidence: None };
    assert_eq!(refused(prepared_on.call(&call(discard)).await.unwrap()), ErrorCode::JobIdReused);
    let job = cluster.sign_job("s", key_id, &message_input(b"m"));
    frost(&cluster, &again, &job, b"m").await.unwrap();
    assert_eq!(frost(&cluster, &key, &job, b"m").await, Err(ErrorCode::StaleShare));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_finishes_what_it_began() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = cluster.sign_job("a", key.id(), &digest_input());
    let midway = to_m2(&cluster, &key, &job, 0).await.unwrap();
    let to1 = cluster.to1.clone();
    let late = cluster.sign_job("b", key.id(), &digest_input());
    // No higher token, which would preempt the open session before the drain begins.
    let opens: Vec<_> = (0..100).map(|_| cluster.open(&key, &late, [1; 32], 0)).collect();
    let finish = async {
        // New sessions are refused as soon as the drain has begun, and the open one goes on.
        for open in opens {
            match refused(to1.call(&call(NodeRequest::SignOpen(open))).await.unwrap()) {
                // It waits for the signature, and not for the worker's word that it has it.
                ErrorCode::NodeUnavailable => return midway.signed().await.unwrap(),
                ErrorCode::KeyBusy => tokio::task::yield_now().await,
                other => panic!("{other}"),
            }
        }
        panic!("the drain did not begin")
    };
    tokio::join!(cluster.drain_node(Party::Node1), finish);
    assert_eq!(decisions(&audit_of(&cluster, Party::Node1), "stopped"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_session_is_gone_after_a_restart() {
    let mut cluster = Cluster::with(&[("DRAIN_SECONDS", "1")]).await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = cluster.sign_job("a", key.id(), &digest_input());
    let link1 = link(&cluster.to1).await;
    let (session, _) =
        opened(link1.call(&call(NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0)))).await.unwrap());
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
    assert_eq!(link1.call(&call(close(session))).await.err(), Some(ChannelError::Lost));
    let reply = cluster.ask1(close(session)).await;
    assert_eq!(refused(reply), ErrorCode::NodeUnavailable, "never resumed");
    to_m2(&cluster, &key, &job, 0).await.unwrap().finish().await;
}
