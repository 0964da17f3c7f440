//! Recovery and refresh at two nodes, hand-driven: who may have them, what they leave, and what is over when they are decided.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::reshare::{
    CONTRIBUTION, NODES, authorised, commit_request, decide, decisions, follow, held, lock, open, open_request, order,
    refused_everywhere, restart, sign, successor,
};
use cluster::signer::{digest_input, frost, message_input, other_element, to_m2};
use cluster::{Cluster, Key, MINUTE, blinded, call, digest, fixed, link, prover, refused, sealed};
use ed25519_dalek::{Signer, SigningKey};
use nkeys::KeyPair;
use support::stored::contents;
use trefoil::auth;
use trefoil::clock::now_ms;
use trefoil::vault::{opened_statement, refresh_statement};
use trefoil::wire::node::{NodeReply, NodeRequest, PasswordOpen};
use trefoil::wire::{
    Curve, Decision, DecisionKind, ErrorCode, Fixed, GenerateBody, KdfParams, KeyId, Op, SignedJob, ValidateBody,
};
use trefoil_protocol::Party;
use trefoil_protocol::frost::FrostClient;

#[tokio::test(flavor = "multi_thread")]
async fn a_recovered_key_signs_and_the_old_share_never_again() {
    let mut cluster = Cluster::start().await;
    let mut keys = Vec::new();
    for curve in Curve::ALL.iter().copied() {
        let old = cluster.committed_key(&format!("g-{curve}"), curve).await;
        let new = cluster.recover(&old, &format!("r-{curve}")).await;
        assert_ne!(new.id(), old.id());
        assert_eq!(new.statement1.source_key_id, Some(old.id()));
        assert_eq!(new.statement1.epoch, old.statement1.epoch + 1);
        assert_eq!(new.share.public_key(), old.share.public_key());
        assert_eq!(new.share.chain_code(), old.share.chain_code());
        // Prepared only: the old share still signs, the new one is to be committed first.
        sign(&cluster, &old, &format!("s1-{curve}")).await.unwrap();
        let info = NodeRequest::KeyInfo { job: cluster.key_info_job("i", new.id()) };
        let NodeReply::NotCommitted { result_subject } = cluster.ask1(info).await else { panic!("committed") };
        assert_eq!(result_subject, format!("mpc.result.{}.r-{curve}", cluster.initiator()));
        cluster.commit(&new).await;
        sign(&cluster, &new, &format!("s2-{curve}")).await.unwrap();
        assert_eq!(sign(&cluster, &old, &format!("s3-{curve}")).await, Err(ErrorCode::KeyRetired));
        assert_eq!(successor(&cluster, &old).await, Some(new.id()));
        // Nor is it recovered or refreshed again.
        let again = cluster.recover_job(&format!("r2-{curve}"), &old);
        assert_eq!(refused_everywhere(&cluster, &again).await, ErrorCode::KeyRetired);
        keys.extend([old, new]);
    }
    for role in NODES {
        assert_eq!(decisions(&cluster, role, "retired"), 2);
        let keys: Vec<&Key> = keys.iter().collect();
        assert_eq!(held(&mut cluster, role, &keys).await, [false, true, false, true], "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_key_signs_and_the_old_share_never_again() {
    let mut cluster = Cluster::start().await;
    let mut keys = Vec::new();
    for curve in Curve::ALL.iter().copied() {
        let old = cluster.committed_key(&format!("g-{curve}"), curve).await;
        let new = cluster.refresh(&old, &format!("r-{curve}")).await;
        assert_eq!((new.id(), new.statement1.source_key_id), (old.id(), None));
        assert_eq!(new.statement1.epoch, old.statement1.epoch + 1);
        assert_eq!(new.share.public_key(), old.share.public_key());
        assert_eq!(new.share.chain_code(), old.share.chain_code());
        sign(&cluster, &old, &format!("s1-{curve}")).await.unwrap();
        cluster.commit(&new).await;
        sign(&cluster, &new, &format!("s2-{curve}")).await.unwrap();
        assert_eq!(sign(&cluster, &old, &format!("s3-{curve}")).await, Err(ErrorCode::StaleShare));
        // The job is done, so a worker that replays it cannot make the new share stale.
        for role in NODES {
            assert_eq!(refused(open(&cluster, role, &new.job).await), ErrorCode::JobIdReused);
        }
        // And once more from there.
        let newest = cluster.refresh(&new, &format!("r2-{curve}")).await;
        cluster.commit(&newest).await;
        sign(&cluster, &newest, &format!("s4-{curve}")).await.unwrap();
        assert_eq!(sign(&cluster, &new, &format!("s5-{curve}")).await, Err(ErrorCode::StaleShare));
        keys.extend([old, new, newest]);
    }
    for role in NODES {
        assert_eq!(decisions(&cluster, role, "replaced"), 4);
        let keys: Vec<&Key> = keys.iter().collect();
        assert_eq!(held(&mut cluster, role, &keys).await, [false, false, true, false, false, true], "{role}");
    }
}

/// Begun with the old share, not finished with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_signing_session_of_the_old_share_ends_with_it() {
    let cluster = Cluster::start().await;
    let old = cluster.committed_key("g1", Curve::Secp256k1).await;
    let refreshed = cluster.refresh(&old, "f1").await;
    let job = cluster.sign_job("s1", old.id(), &digest_input());
    let midway = to_m2(&cluster, &old, &job, 0).await.unwrap();
    cluster.commit(&refreshed).await;
    assert_eq!(refused(midway.send(midway.m2.clone()).await), ErrorCode::NodeUnavailable, "try again, it says");
    assert_eq!(to_m2(&cluster, &old, &job, 0).await.err(), Some(ErrorCode::StaleShare));

    let recovered = cluster.recover(&refreshed, "r1").await;
    let job = cluster.sign_job("s2", refreshed.id(), &digest_input());
    let midway = to_m2(&cluster, &refreshed, &job, 0).await.unwrap();
    cluster.commit(&recovered).await;
    assert_eq!(refused(midway.send(midway.m2.clone()).await), ErrorCode::NodeUnavailable);
    assert_eq!(to_m2(&cluster, &refreshed, &job, 0).await.err(), Some(ErrorCode::KeyRetired));
    // A commit that is repeated ends no session of what is the key by now.
    let job = cluster.sign_job("s3", recovered.id(), &digest_input());
    let midway = to_m2(&cluster, &recovered, &job, 0).await.unwrap();
    for key in [&refreshed, &recovered] {
        cluster.commit(key).await;
    }
    midway.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_needs_an_authorisers_consent_at_each_node() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let job = cluster.unauthorised_recover_job("r1", key.id(), Curve::Ed25519);
    let other = cluster.unauthorised_recover_job("r2", key.id(), Curve::Ed25519);
    let stranger = KeyPair::new_user();
    let borrowed = SignedJob { authorisation: auth::authorise(&cluster.authoriser, &other.body), ..job.clone() };
    let mut renamed = authorised(&job, &stranger);
    renamed.authorisation.as_mut().unwrap().authoriser = cluster.authoriser.public_key().parse().unwrap();
    let own = authorised(&job, &cluster.initiator);
    for job in [job.clone(), authorised(&job, &stranger), own, borrowed, renamed] {
        assert_eq!(refused_everywhere(&cluster, &job).await, ErrorCode::NotAuthorised);
    }
    let mut tampered = authorised(&job, &cluster.authoriser);
    tampered.body[20] ^= 1;
    assert_eq!(refused_everywhere(&cluster, &tampered).await, ErrorCode::BadSignature);
    // Nothing of it is in any ledger: another body under the same job id is the first that the nodes know.
    let new = cluster.recover(&key, "r1").await;
    assert_eq!(refused_everywhere(&cluster, &authorised(&job, &cluster.authoriser)).await, ErrorCode::JobIdReused);
    cluster.commit(&new).await;
    sign(&cluster, &new, "s1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_of_a_living_key_gets_new_shares() {
    let mut cluster = Cluster::start().await;
    let thief = KeyPair::new_user();
    cluster.write_policy(&format!(
        "[[initiators]]\nname = \"thief\"\nkey = \"{}\"\noperations = [\"recover\", \"refresh\"]\ncurves = [\"ed25519\"]\n\
         [[initiators]]\nname = \"clerk\"\nkey = \"{}\"\noperations = [\"sign\"]\ncurves = [\"ed25519\"]\n",
        thief.public_key(),
        KeyPair::new_user().public_key(),
    ));
    for role in NODES {
        cluster.reload_policy(role).await;
    }
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let jobs = |cluster: &Cluster, n: &str| {
        [cluster.recover_job(&format!("r-{n}"), &key), cluster.refresh_job(&format!("f-{n}"), &key)]
    };
    let owner = std::mem::replace(&mut cluster.initiator, thief);
    for job in jobs(&cluster, "thief") {
        assert_eq!(refused_everywhere(&cluster, &job).await, ErrorCode::NotPermitted);
    }
    cluster.initiator = owner;
    for op in [Op::Recover, Op::Refresh] {
        let job = |id: &str, key_id, curve| {
            let body = GenerateBody::new(curve, KdfParams::default(), sealed());
            authorised(&cluster.job(op, id, key_id, MINUTE, body), &cluster.authoriser)
        };
        let wrong_curve = job(&format!("c-{op}"), key.id(), Curve::Secp256k1);
        assert_eq!(refused_everywhere(&cluster, &wrong_curve).await, ErrorCode::CurveMismatch);
        let unknown = job(&format!("u-{op}"), KeyId([1; 16]), Curve::Ed25519);
        assert_eq!(refused_everywhere(&cluster, &unknown).await, ErrorCode::UnknownKey);
    }
    // A key that is only prepared: where the evidence is by which it is committed.
    let prepared = cluster.generate("g2", Curve::Ed25519).await;
    for role in NODES {
        for reply in [
            cluster.source(role, &cluster.recover_job("r-p", &prepared)).await,
            open(&cluster, role, &cluster.refresh_job("f-p", &prepared)).await,
        ] {
            let NodeReply::NotCommitted { result_subject } = reply else { panic!("{reply:?}") };
            assert_eq!(result_subject, format!("mpc.result.{}.g2", cluster.initiator()));
        }
    }
    order(&cluster, Op::Freeze, "o1", key.id()).await;
    for job in jobs(&cluster, "frozen") {
        assert_eq!(refused_everywhere(&cluster, &job).await, ErrorCode::KeyFrozen);
    }
    order(&cluster, Op::Destroy, "o2", key.id()).await;
    for job in jobs(&cluster, "destroyed") {
        assert_eq!(refused_everywhere(&cluster, &job).await, ErrorCode::KeyDestroyed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_key_signs_again_with_new_shares() {
    let mut cluster = Cluster::start().await;
    for (n, restarted) in [false, true].into_iter().enumerate() {
        let key = cluster.committed_key(&format!("g{n}"), Curve::Secp256k1).await;
        lock(&cluster, &key, &format!("l{n}")).await;
        if restarted {
            restart(&mut cluster, Party::Node1).await;
        }
        assert_eq!(sign(&cluster, &key, &format!("a{n}")).await, Err(ErrorCode::KeyLocked));
        // The password is proven for a refresh, and for nothing else.
        let ask_password = |job| PasswordOpen {
            job,
            epoch: key.share.epoch(),
            transcript: key.share.transcript(),
            blinded_password: blinded(key.id()).element(),
        };
        let job =
            cluster.job(Op::ValidatePassword, &format!("v{n}"), key.id(), MINUTE, ValidateBody { secrets: sealed() });
        assert_eq!(refused(cluster.ask1(NodeRequest::PasswordOpen(ask_password(job))).await), ErrorCode::KeyLocked);
        let job = cluster.refresh_job(&format!("f{n}"), &key);
        let reply = cluster.ask1(NodeRequest::PasswordOpen(ask_password(job))).await;
        assert!(matches!(reply, NodeReply::PasswordOpened { .. }), "{reply:?}");

        let refreshed = cluster.refresh(&key, &format!("f-{n}")).await;
        // The share that is prepared can mend the lock, so its use asks for its commit.
        let job = cluster.sign_job(&format!("b{n}"), refreshed.id(), &digest_input());
        let use_it = NodeRequest::SignOpen(cluster.open(&refreshed, &job, [1; 32], 0));
        assert!(matches!(cluster.ask1(use_it).await, NodeReply::NotCommitted { .. }));
        cluster.commit(&refreshed).await;
        sign(&cluster, &refreshed, &format!("c{n}")).await.unwrap();
        assert_eq!(sign(&cluster, &key, &format!("d{n}")).await, Err(ErrorCode::StaleShare));

        lock(&cluster, &refreshed, &format!("m{n}")).await;
        if restarted {
            restart(&mut cluster, Party::Node1).await;
        }
        let recovered = cluster.recover(&refreshed, &format!("r{n}")).await;
        cluster.commit(&recovered).await;
        sign(&cluster, &recovered, &format!("e{n}")).await.unwrap();
        assert_eq!(sign(&cluster, &refreshed, &format!("h{n}")).await, Err(ErrorCode::KeyRetired));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_outlasts_new_shares() {
    let cluster = Cluster::start().await;
    let mut key = cluster.committed_key("g1", Curve::Ed25519).await;
    for (n, op) in [Op::Refresh, Op::Recover].into_iter().enumerate() {
        let new = match op {
            Op::Refresh => cluster.refresh(&key, &format!("n{n}")).await,
            _ => cluster.recover(&key, &format!("n{n}")).await,
        };
        order(&cluster, Op::Freeze, &format!("f{n}"), key.id()).await;
        cluster.commit(&new).await;
        assert_eq!(sign(&cluster, &new, &format!("a{n}")).await, Err(ErrorCode::KeyFrozen));
        order(&cluster, Op::Unfreeze, &format!("u{n}"), new.id()).await;
        sign(&cluster, &new, &format!("b{n}")).await.unwrap();
        key = new;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_attempts_one_is_decided_for() {
    let mut cluster = Cluster::start().await;
    let old = cluster.committed_key("g1", Curve::Ed25519).await;
    let recovered = cluster.recover(&old, "r1").await;
    // The worker that prepared it is gone, and its session with the node's restart.
    restart(&mut cluster, Party::Node1).await;
    let refreshed = cluster.refresh(&old, "f1").await;
    for role in NODES {
        let NodeReply::Source { prepared, statement, committed, .. } =
            cluster.source(role, &cluster.refresh_job("f2", &old)).await
        else {
            panic!("no source")
        };
        let mut subjects = prepared.clone();
        subjects.sort();
        assert_eq!(subjects, ["f1", "r1"].map(|job| format!("mpc.result.{}.{job}", cluster.initiator())));
        // And each node proves what is committed.
        let identity = if role == Party::Node1 { &cluster.node1.identity } else { &cluster.node2.identity };
        let (key_id, epoch, transcript) = (old.id(), old.share.epoch(), old.share.transcript());
        assert_eq!((statement.key_id, statement.transcript), (key_id, transcript));
        let decision = Decision { kind: DecisionKind::Committed, key_id, epoch, transcript };
        assert!(decision.verify(identity, &committed.0), "{role}");
    }
    let decision = decide(&cluster, &refreshed).await;
    let lost = commit_request(&recovered, recovered.statement2.signature);
    assert_eq!(refused(cluster.ask1(lost).await), ErrorCode::JobSuperseded);
    // Node 2 has not heard of it yet, and obeys node 1's signature about this attempt only.
    for evidence in [recovered.statement1.signature, recovered.statement2.signature, decision, fixed([0; 64])] {
        assert_eq!(refused(cluster.ask2(commit_request(&recovered, evidence)).await), ErrorCode::NotPermitted);
    }
    for evidence in [refreshed.statement1.signature, refreshed.statement2.signature] {
        assert_eq!(refused(cluster.ask2(commit_request(&refreshed, evidence)).await), ErrorCode::NotPermitted);
    }
    follow(&cluster, &refreshed, decision).await;
    sign(&cluster, &refreshed, "s1").await.unwrap();
    let job = cluster.sign_job("s2", recovered.id(), &message_input(b"m"));
    assert_eq!(frost(&cluster, &recovered, &job, b"m").await, Err(ErrorCode::UnknownKey));
    for role in NODES {
        let held = held(&mut cluster, role, &[&old, &recovered, &refreshed]).await;
        assert_eq!(held, [false, false, true], "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_use_of_prepared_shares_asks_for_their_commit() {
    let cluster = Cluster::start().await;
    for curve in Curve::ALL.iter().copied() {
        let old = cluster.committed_key(&format!("g-{curve}"), curve).await;
        let new = cluster.refresh(&old, &format!("f-{curve}")).await;
        let (_, commitments) = FrostClient::start(&mut rand_core::OsRng);
        let sign = |id: &str| match curve {
            Curve::Secp256k1 => cluster.sign_job(id, old.id(), &digest_input()),
            Curve::Ed25519 => cluster.sign_job(id, old.id(), &message_input(b"m")),
        };
        let request = |key: &Key, id: &str| {
            let open = cluster.open(key, &sign(&format!("{id}-{curve}")), [1; 32], u64::MAX);
            match curve {
                Curve::Secp256k1 => NodeRequest::SignOpen(open),
                Curve::Ed25519 => NodeRequest::FrostSign { open, commitments: Fixed(commitments) },
            }
        };
        let job = cluster.job(
            Op::ValidatePassword,
            &format!("v-{curve}"),
            old.id(),
            MINUTE,
            ValidateBody { secrets: sealed() },
        );
        let password = NodeRequest::PasswordOpen(PasswordOpen {
            job,
            epoch: new.share.epoch(),
            transcript: new.share.transcript(),
            blinded_password: blinded(new.id()).element(),
        });
        for request in [request(&new, "a"), password] {
            let reply = cluster.ask1(request).await;
            let NodeReply::NotCommitted { result_subject } = reply else { panic!("{reply:?}") };
            assert_eq!(result_subject, format!("mpc.result.{}.f-{curve}", cluster.initiator()));
        }
        let reply = cluster.ask1(request(&old, "b")).await;
        assert!(matches!(reply, NodeReply::SignOpened { .. } | NodeReply::FrostSigned { .. }), "{reply:?}");
        cluster.commit(&new).await;
        let reply = cluster.ask1(request(&new, "c")).await;
        assert!(matches!(reply, NodeReply::SignOpened { .. } | NodeReply::FrostSigned { .. }), "{reply:?}");
        assert_eq!(refused(cluster.ask1(request(&old, "d")).await), ErrorCode::StaleShare);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_at_a_time_makes_new_shares_of_a_key() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let first = cluster.deal_refresh(&key, "f1").await;
    let (second, third) = (cluster.recover_job("r1", &key), cluster.refresh_job("f2", &key));
    for job in [&second, &third] {
        assert_eq!(refused(open(&cluster, Party::Node1, job).await), ErrorCode::KeyBusy);
        let reply = open(&cluster, Party::Node2, job).await;
        assert!(matches!(reply, NodeReply::GenerateOpened { .. }), "one node is enough to say so: {reply:?}");
    }
    // Signing goes on beside it, and so does the job itself, anew.
    sign(&cluster, &key, "s1").await.unwrap();
    let again = open(&cluster, Party::Node1, &first.job).await;
    assert!(matches!(again, NodeReply::GenerateOpened { .. }), "{again:?}");
    assert_eq!(refused(first.prepare_at(Party::Node1).await), ErrorCode::NodeUnavailable, "the run of before is over");
    // Dropped, it makes room at once.
    let prepared = cluster.deal(first.job.clone(), "f1", key.id(), cluster.refresh_client(&key, &first.job)).await;
    assert_eq!(refused(open(&cluster, Party::Node1, &second).await), ErrorCode::KeyBusy);
    let prepared = prepared.prepare().await;
    assert_eq!(refused(open(&cluster, Party::Node1, &second).await), ErrorCode::KeyBusy, "its result is on its way");
    let (key_id, transcript) = (key.id(), prepared.share.transcript());
    let reply = cluster.ask1(NodeRequest::Discard { key_id, transcript, evidence: None }).await;
    let NodeReply::Aborted { signature } = reply else { panic!("{reply:?}") };
    let reply = cluster.ask2(NodeRequest::Discard { key_id, transcript, evidence: Some(signature) }).await;
    assert!(matches!(reply, NodeReply::Aborted { .. }), "{reply:?}");
    // Decided, it says what is there instead.
    let recovered = cluster.recover(&key, "r2").await;
    assert_eq!(refused(open(&cluster, Party::Node1, &second).await), ErrorCode::KeyBusy);
    cluster.commit(&recovered).await;
    assert_eq!(refused(open(&cluster, Party::Node1, &second).await), ErrorCode::KeyRetired);
}

/// A refresh makes the client's share worthless, and the rounds of one can be played without it. So a signed job is not enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_needs_proof_that_the_old_share_was_opened() {
    let cluster = Cluster::start().await;
    for curve in Curve::ALL.iter().copied() {
        let before = cluster.committed_key(&format!("g-{curve}"), curve).await;
        let key = cluster.refresh(&before, &format!("b-{curve}")).await;
        cluster.commit(&key).await;
        let job = cluster.refresh_job(&format!("f-{curve}"), &key);
        let other = cluster.refresh_job(&format!("o-{curve}"), &key);
        let blinded = blinded(key.id()).element();
        let store = contents(&cluster.data(Party::Node1));
        let link = link(&cluster.to1).await;
        let (hash, id, digest) = (link.hash(), key.id(), digest(&job));
        let share = |key: &Key| (id, key.share.epoch(), key.share.transcript());
        let signed = |by: &SigningKey, statement: Vec<u8>| Some(Fixed(by.sign(&statement).to_bytes()));
        let (good, c) = (prover(), &CONTRIBUTION);
        let (epoch, transcript) = (key.share.epoch(), key.share.transcript());
        let stranger = SigningKey::from_bytes(&[1; 32]);
        let wrong = [
            ("another's", signed(&stranger, refresh_statement(&hash, &digest, share(&key), c, &blinded))),
            ("channel", signed(&good, refresh_statement(&[1; 32], &digest, share(&key), c, &blinded))),
            ("job", signed(&good, refresh_statement(&hash, &cluster::digest(&other), share(&key), c, &blinded))),
            ("share", signed(&good, refresh_statement(&hash, &digest, share(&before), c, &blinded))),
            ("key", signed(&good, refresh_statement(&hash, &digest, (KeyId([1; 16]), epoch, transcript), c, &blinded))),
            ("epoch", signed(&good, refresh_statement(&hash, &digest, (id, epoch + 1, transcript), c, &blinded))),
            ("contribution", signed(&good, refresh_statement(&hash, &digest, share(&key), &[2; 32], &blinded))),
            ("password", signed(&good, refresh_statement(&hash, &digest, share(&key), c, &other_element()))),
            ("statement", signed(&good, opened_statement(&hash, &digest, &[1; 16], None))),
        ];
        for (what, proof) in wrong {
            let reply = link.call(&call(open_request(&job, Some(blinded), proof))).await.unwrap();
            assert_eq!(refused(reply), ErrorCode::StaleShare, "{what}");
        }
        // None where there has to be one; one where there is nothing to prove, or nobody to see it.
        let proof = signed(&good, refresh_statement(&hash, &digest, share(&key), c, &blinded));
        let recovery = cluster.recover_job(&format!("r-{curve}"), &key);
        let generation = cluster.generate_job(&format!("n-{curve}"), curve);
        for (job, proof) in [(&job, None), (&recovery, proof), (&generation, proof)] {
            let reply = link.call(&call(open_request(job, Some(blinded), proof))).await.unwrap();
            assert_eq!(refused(reply), ErrorCode::ProtocolAbort);
        }
        assert_eq!(refused(cluster.ask2(open_request(&job, None, proof)).await), ErrorCode::ProtocolAbort);
        assert_eq!(contents(&cluster.data(Party::Node1)), store, "it stored something");
        // Nothing of it is in the way.
        let reply = link.call(&call(open_request(&job, Some(blinded), proof))).await.unwrap();
        assert!(matches!(reply, NodeReply::GenerateOpened { .. }), "{reply:?}");
        sign(&cluster, &key, &format!("s-{curve}")).await.unwrap();
    }
}

/// Else whoever has one signed job could keep the owner from ever replacing the shares.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_only_repeats_itself_or_has_expired_keeps_no_other_out() {
    let cluster = Cluster::with(&[("SESSION_TTL_SECONDS", "5")]).await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let dealt = cluster.deal_refresh(&key, "f1").await;
    let statement = dealt.prepare_at(Party::Node1).await;
    let NodeReply::Prepared(statement) = statement else { panic!("{statement:?}") };
    let next = cluster.refresh_job("f2", &key);
    let end = now_ms() + MINUTE / 2;
    loop {
        let again = dealt.prepare_at(Party::Node1).await;
        match open(&cluster, Party::Node1, &next).await {
            NodeReply::GenerateOpened { .. } => break,
            busy => assert_eq!(refused(busy), ErrorCode::KeyBusy),
        }
        let NodeReply::Prepared(said) = again else { panic!("{again:?}") };
        assert_eq!(said, statement);
        assert!(now_ms() < end, "a prepared run holds the key for as long as it says so");
    }
    assert_eq!(refused(dealt.prepare_at(Party::Node1).await), ErrorCode::NodeUnavailable);

    // As long as a run needs, and a wait.
    let cluster = Cluster::start().await;
    let short = |job_id: &str, key: &Key| {
        let body = GenerateBody::new(Curve::Ed25519, KdfParams::default(), sealed());
        cluster.job(Op::Refresh, job_id, key.id(), 8_000, body)
    };
    let mut keys = Vec::new();
    for id in ["g1", "g2", "g3"] {
        keys.push(cluster.committed_key(id, Curve::Ed25519).await);
    }
    let opened = open(&cluster, Party::Node1, &short("e1", &keys[0])).await;
    let NodeReply::GenerateOpened { session, .. } = opened else { panic!("{opened:?}") };
    let mut runs = Vec::new();
    for (id, key) in [("e2", &keys[1]), ("e3", &keys[2])] {
        let job = short(id, key);
        runs.push(cluster.deal(job.clone(), id, key.id(), cluster.refresh_client(key, &job)).await);
    }
    let prepared = runs[1].prepare_at(Party::Node1).await;
    let NodeReply::Prepared(prepared) = prepared else { panic!("{prepared:?}") };
    let last = serde_json::from_slice::<serde_json::Value>(&runs[1].job.body).unwrap()["expiresAt"].as_u64().unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(last.saturating_sub(now_ms()) + 1)).await;
    let store = contents(&cluster.data(Party::Node1));
    let round = NodeRequest::GenerateRound { session, round: 1, payload: CONTRIBUTION.to_vec() };
    assert_eq!(refused(cluster.ask1(round).await), ErrorCode::JobExpired);
    for role in NODES {
        assert_eq!(refused(runs[0].prepare_at(role).await), ErrorCode::JobExpired);
    }
    let NodeReply::Prepared(said) = runs[1].prepare_at(Party::Node1).await else { panic!("it is prepared") };
    assert_eq!((said, contents(&cluster.data(Party::Node1))), (prepared, store));
    for (key, id) in keys.iter().zip(["n1", "n2"]) {
        let new = cluster.refresh(key, id).await;
        cluster.commit(&new).await;
        sign(&cluster, &new, &format!("s-{id}")).await.unwrap();
    }
}

/// Each node is restarted after each step: it comes back with exactly what was decided.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_any_two_steps_changes_nothing() {
    let mut cluster = Cluster::with(&[("DRAIN_SECONDS", "1")]).await;
    for (n, op) in [Op::Recover, Op::Refresh].into_iter().enumerate() {
        let gone = if op == Op::Recover { ErrorCode::KeyRetired } else { ErrorCode::StaleShare };
        let old = cluster.committed_key(&format!("g{n}"), Curve::Ed25519).await;
        let both = async |cluster: &mut Cluster| {
            restart(cluster, Party::Node1).await;
            restart(cluster, Party::Node2).await;
        };
        // Prepared at node 2 alone, by a run that is never finished.
        let lost = match op {
            Op::Recover => cluster.deal_recovery(&old, &format!("l{n}")).await,
            _ => cluster.deal_refresh(&old, &format!("l{n}")).await,
        };
        let reply = lost.prepare_at(Party::Node2).await;
        assert!(matches!(reply, NodeReply::Prepared(_)), "{reply:?}");
        both(&mut cluster).await;
        sign(&cluster, &old, &format!("a{n}")).await.unwrap();
        // Prepared at both.
        let new = match op {
            Op::Recover => cluster.recover(&old, &format!("n{n}")).await,
            _ => cluster.refresh(&old, &format!("n{n}")).await,
        };
        both(&mut cluster).await;
        sign(&cluster, &old, &format!("b{n}")).await.unwrap();
        let question = cluster.refresh_job(&format!("q{n}"), &old);
        for (role, expected) in [(Party::Node1, 1), (Party::Node2, 2)] {
            let reply = cluster.source(role, &question).await;
            let NodeReply::Source { prepared, .. } = reply else { panic!("{reply:?}") };
            assert_eq!(prepared.len(), expected, "{role}");
        }
        // Decided at node 1, unknown at node 2.
        let decision = decide(&cluster, &new).await;
        both(&mut cluster).await;
        assert_eq!(sign(&cluster, &old, &format!("c{n}")).await, Err(gone));
        sign(&cluster, &new, &format!("d{n}")).await.unwrap();
        let reply = cluster.source(Party::Node2, &question).await;
        let NodeReply::Source { statement, prepared, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((statement.transcript, prepared.len()), (old.share.transcript(), 2));
        // Node 1 says by its signature what node 2 has missed.
        let next = cluster.refresh_job(&format!("x{n}"), &new);
        let reply = cluster.source(Party::Node1, &next).await;
        let NodeReply::Source { statement, committed, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((statement.transcript, committed), (new.share.transcript(), decision));
        follow(&cluster, &new, committed).await;
        both(&mut cluster).await;
        let reply = cluster.source(Party::Node2, &next).await;
        let NodeReply::Source { statement, prepared, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((statement.transcript, prepared.len()), (new.share.transcript(), 0));
        assert_eq!(sign(&cluster, &old, &format!("e{n}")).await, Err(gone));
        sign(&cluster, &new, &format!("f{n}")).await.unwrap();
        // Said again, by whoever did not see it through, it is as it was; and again after what follows.
        let newest = cluster.refresh(&new, &format!("y{n}")).await;
        for _ in 0..2 {
            assert_eq!(decide(&cluster, &new).await, decision);
            follow(&cluster, &new, decision).await;
            cluster.commit(&newest).await;
        }
        sign(&cluster, &newest, &format!("z{n}")).await.unwrap();
    }
}

/// Whoever is taken out of the policies while its jobs are under way gets nothing more of what they were for.
#[tokio::test(flavor = "multi_thread")]
async fn an_initiator_that_is_taken_out_ends_what_it_has_open() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let other = cluster.committed_key("g2", Curve::Ed25519).await;
    let signing = to_m2(&cluster, &key, &cluster.sign_job("s", key.id(), &digest_input()), 0).await.unwrap();
    let refreshed = cluster.deal_refresh(&key, "f").await;
    let recovered = cluster.deal_recovery(&other, "r").await;
    let prepared = cluster.generate("g3", Curve::Ed25519).await;
    cluster.take_initiator_out().await;
    assert_eq!(refused(signing.send(signing.m2.clone()).await), ErrorCode::NodeUnavailable);
    for role in NODES {
        assert_eq!(refused(refreshed.prepare_at(role).await), ErrorCode::NodeUnavailable, "{role}");
        assert_eq!(refused(recovered.prepare_at(role).await), ErrorCode::NodeUnavailable, "{role}");
    }
    // What was prepared before may be an honest job's, and somebody's only share: whether it counts is the operators' to say.
    cluster.commit(&prepared).await;
}
