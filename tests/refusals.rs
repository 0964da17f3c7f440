//! What a node refuses leaves nothing behind: every refusal of an authentic job has a code of its own, and the store is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::reshare::authorised;
use cluster::signer::{digest_input, message_input};
use cluster::{Cluster, Key, MINUTE, blinded, refused, sealed};
use nkeys::KeyPair;
use serde::Serialize;
use support::stored::contents;
use trefoil::auth::sign_job;
use trefoil::clock::now_ms;
use trefoil::wire::node::{NodeReply, NodeRequest, PasswordOpen};
use trefoil::wire::{
    Curve, Envelope, ErrorCode, GenerateBody, KdfParams, KeyId, Op, OrderBody, PublicKeyBody, SignInput, SignedJob,
    ValidateBody,
};
use trefoil_protocol::Party;

/// One thing that is refused.
struct Case {
    what: &'static str,
    request: NodeRequest,
    expected: ErrorCode,
}

fn case(what: &'static str, expected: ErrorCode, request: NodeRequest) -> Case {
    Case { what, request, expected }
}

async fn ask(cluster: &Cluster, role: Party, request: NodeRequest) -> NodeReply {
    if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await }
}

/// A job of any initiator and any times.
fn made<P: Serialize>(by: &KeyPair, op: Op, job_id: &str, key_id: KeyId, times: (u64, u64), payload: P) -> SignedJob {
    let envelope = Envelope {
        version: 1,
        op: op.to_string(),
        job_id: job_id.parse().unwrap(),
        lane: None,
        key_id,
        initiator: by.public_key().parse().unwrap(),
        issued_at: times.0,
        expires_at: times.1,
        reply_key: nkeys::XKey::new().public_key().parse().unwrap(),
        payload,
    };
    sign_job(by, envelope.to_bytes().unwrap()).unwrap()
}

fn sign_open(cluster: &Cluster, key: &Key, job: &SignedJob) -> NodeRequest {
    NodeRequest::SignOpen(cluster.open(key, job, [1; 32], 0))
}

fn validate(key: &Key, job: &SignedJob) -> NodeRequest {
    NodeRequest::PasswordOpen(PasswordOpen {
        job: job.clone(),
        epoch: key.share.epoch(),
        transcript: key.share.transcript(),
        blinded_password: blinded(key.id()).element(),
    })
}

fn open(role: Party, job: &SignedJob) -> NodeRequest {
    let blinded_password = (role == Party::Node1).then(|| blinded(KeyId([1; 16])).element());
    NodeRequest::GenerateOpen {
        job: job.clone(),
        contribution: [1; 32],
        blinded_password,
        proof: None,
        identities: None,
    }
}

fn order(job: &SignedJob) -> NodeRequest {
    NodeRequest::Order { job: job.clone() }
}

fn empty(cluster: &Cluster, op: Op, job_id: &str, id: KeyId) -> SignedJob {
    cluster.job(op, job_id, id, MINUTE, OrderBody {})
}

async fn carried_out(cluster: &Cluster, job: &SignedJob) {
    for role in [Party::Node1, Party::Node2] {
        assert!(matches!(ask(cluster, role, order(job)).await, NodeReply::Ordered { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_leaves_no_trace_in_the_store() {
    let settings = [("PASSWORD_ATTEMPTS", "1")];
    let mut cluster = Cluster::with(&settings).await;
    let (ecdsa, eddsa) =
        (cluster.committed_key("g1", Curve::Secp256k1).await, cluster.committed_key("g2", Curve::Ed25519).await);
    let prepared = cluster.generate("g3", Curve::Ed25519).await;
    let (frozen, destroyed, retired) = (
        cluster.committed_key("g4", Curve::Secp256k1).await,
        cluster.committed_key("g5", Curve::Secp256k1).await,
        cluster.committed_key("g6", Curve::Secp256k1).await,
    );
    // An order that is older than the next, which is carried out.
    let old_order = empty(&cluster, Op::Freeze, "old", frozen.id());
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    carried_out(&cluster, &empty(&cluster, Op::Freeze, "freeze", frozen.id())).await;
    carried_out(&cluster, &authorised(&empty(&cluster, Op::Destroy, "destroy", destroyed.id()), &cluster.authoriser))
        .await;
    let recovered = cluster.recover(&retired, "recover").await;
    cluster.commit(&recovered).await;
    let refreshed = cluster.refresh(&eddsa, "refresh").await;
    cluster.commit(&refreshed).await;
    let lost = cluster.recover(&ecdsa, "lost").await;
    // The worker that prepared it is gone, and its session with the node's restart.
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
    while cluster.to1.renew().await.is_err() {}
    let won = cluster.refresh(&ecdsa, "won").await;
    cluster.commit(&won).await;
    // One wrong password is one too many.
    let limited = cluster.committed_key("g7", Curve::Secp256k1).await;
    let guess = cluster.job(Op::ValidatePassword, "guess", limited.id(), MINUTE, ValidateBody { secrets: sealed() });
    let link = cluster::link(&cluster.to1).await;
    let NodeReply::PasswordOpened { session, .. } =
        link.call(&cluster::call(validate(&limited, &guess))).await.unwrap()
    else {
        panic!("not opened")
    };
    let wrong = NodeRequest::PasswordClose { session, outcome: trefoil::wire::node::PasswordOutcome::Wrong };
    assert!(matches!(link.call(&cluster::call(wrong)).await.unwrap(), NodeReply::PasswordClosed { .. }));

    let stranger = KeyPair::new_user();
    let (now, own) = (now_ms(), &cluster.initiator);
    let body = || GenerateBody::new(Curve::Ed25519, KdfParams::default(), sealed());
    for role in [Party::Node1, Party::Node2] {
        let new = |by: &KeyPair, job_id: &str, times: (u64, u64)| {
            let key_id = KeyId::derive(&by.public_key().parse().unwrap(), &job_id.parse().unwrap());
            open(role, &made(by, Op::Generate, job_id, key_id, times, body()))
        };
        let question = |by: &KeyPair, id| NodeRequest::KeyInfo {
            job: made(by, Op::PublicKey, "q", id, (now, now + MINUTE), PublicKeyBody {}),
        };
        let wrong_consent = authorised(&empty(&cluster, Op::Destroy, "d1", won.id()), &stranger);
        let own_consent = authorised(&empty(&cluster, Op::Destroy, "d2", won.id()), own);
        let mut cases = vec![
            case(
                "an initiator that the policy does not name",
                ErrorCode::UnknownInitiator,
                new(&stranger, "n1", (now, now + MINUTE)),
            ),
            case("a stranger's question", ErrorCode::UnknownInitiator, question(&stranger, won.id())),
            case("too late", ErrorCode::JobExpired, new(own, "n2", (now - MINUTE, now - 1))),
            case("too early", ErrorCode::JobNotYetValid, new(own, "n3", (now + 10 * MINUTE, now + 11 * MINUTE))),
            case("too long", ErrorCode::JobLifetimeTooLong, new(own, "n4", (now, now + 61 * MINUTE))),
            case("a used id with another body", ErrorCode::JobIdReused, new(own, "g1", (now, now + MINUTE))),
            case(
                "no consent to the end of a key",
                ErrorCode::NotAuthorised,
                order(&empty(&cluster, Op::Destroy, "d0", won.id())),
            ),
            case("a stranger's consent", ErrorCode::NotAuthorised, order(&wrong_consent)),
            case("the initiator's own consent", ErrorCode::NotAuthorised, order(&own_consent)),
            case(
                "a recovery without consent",
                ErrorCode::NotAuthorised,
                open(role, &cluster.unauthorised_recover_job("r0", won.id(), Curve::Secp256k1)),
            ),
            case("an older order", ErrorCode::JobSuperseded, order(&old_order)),
            case(
                "an order about no key",
                ErrorCode::UnknownKey,
                order(&empty(&cluster, Op::Freeze, "o1", KeyId([9; 16]))),
            ),
            case(
                "an order about a destroyed key",
                ErrorCode::KeyDestroyed,
                order(&empty(&cluster, Op::Freeze, "o2", destroyed.id())),
            ),
            case(
                "an order about a retired key",
                ErrorCode::KeyRetired,
                order(&empty(&cluster, Op::Freeze, "o3", retired.id())),
            ),
            case("a question about no key", ErrorCode::UnknownKey, question(own, KeyId([9; 16]))),
            case("a question about a frozen key", ErrorCode::KeyFrozen, question(own, frozen.id())),
            case("a question about a retired key", ErrorCode::KeyRetired, question(own, retired.id())),
            case("a recovery of no key", ErrorCode::UnknownKey, {
                let job = cluster.unauthorised_recover_job("r1", KeyId([9; 16]), Curve::Ed25519);
                open(role, &authorised(&job, &cluster.authoriser))
            }),
            case(
                "a recovery of a retired key",
                ErrorCode::KeyRetired,
                open(role, &cluster.recover_job("r2", &retired)),
            ),
            case("a refresh of a frozen key", ErrorCode::KeyFrozen, open(role, &cluster.refresh_job("r3", &frozen))),
            case(
                "a refresh of a destroyed key",
                ErrorCode::KeyDestroyed,
                open(role, &cluster.refresh_job("r4", &destroyed)),
            ),
            case(
                "a commit of what lost",
                ErrorCode::JobSuperseded,
                NodeRequest::Commit {
                    key_id: lost.id(),
                    transcript: lost.share.transcript(),
                    evidence: if role == Party::Node1 { lost.statement2.signature } else { decision(&cluster, &lost) },
                },
            ),
        ];
        if role == Party::Node1 {
            let sign = |job_id: &str, key: &Key, input: &SignInput| {
                sign_open(&cluster, key, &cluster.sign_job(job_id, key.id(), input))
            };
            let digest = digest_input();
            let theirs = made(&stranger, Op::Sign, "s0", won.id(), (now, now + MINUTE), OrderBody {});
            cases.extend([
                case("another's key", ErrorCode::MalformedJob, sign_open(&cluster, &won, &theirs)),
                case("a message for a digest's key", ErrorCode::CurveMismatch, sign("s1", &won, &message_input(b"m"))),
                case("a share before its refresh", ErrorCode::StaleShare, sign("s2", &ecdsa, &digest)),
                case("a share before its recovery", ErrorCode::KeyRetired, sign("s3", &retired, &digest)),
                case("a frozen key", ErrorCode::KeyFrozen, sign("s4", &frozen, &digest)),
                case("a destroyed key", ErrorCode::KeyDestroyed, sign("s5", &destroyed, &digest)),
                case("a used id", ErrorCode::JobIdReused, sign("g1", &won, &digest)),
                case("one guess too many", ErrorCode::TooManyAttempts, sign("s6", &limited, &digest)),
                case("one question too many", ErrorCode::TooManyAttempts, {
                    let body = ValidateBody { secrets: sealed() };
                    validate(&limited, &cluster.job(Op::ValidatePassword, "v1", limited.id(), MINUTE, body))
                }),
                case("a password of a stale share", ErrorCode::StaleShare, {
                    let body = ValidateBody { secrets: sealed() };
                    validate(&ecdsa, &cluster.job(Op::ValidateShare, "v2", ecdsa.id(), MINUTE, body))
                }),
            ]);
        }
        let before = contents(&cluster.data(role));
        for Case { what, request, expected } in cases {
            assert_eq!(refused(ask(&cluster, role, request).await), expected, "{what}, at {role}");
            assert_eq!(contents(&cluster.data(role)), before, "{role} stored something of {what}");
        }
        // Not a refusal, and no trace either.
        let early = sign_open(&cluster, &prepared, &cluster.sign_job("p1", prepared.id(), &message_input(b"m")));
        if role == Party::Node1 {
            assert!(matches!(ask(&cluster, role, question(own, prepared.id())).await, NodeReply::NotCommitted { .. }));
            drop(early);
        }
        assert_eq!(contents(&cluster.data(role)), before);
    }
}

/// What node 1 would have signed, had it committed this attempt.
fn decision(cluster: &Cluster, key: &Key) -> trefoil::wire::Fixed<64> {
    let seed = nkeys::decode_seed(&cluster.node1.seed).unwrap().1;
    let identity = ed25519_dalek::SigningKey::from_bytes(&seed);
    let decision = trefoil::wire::Decision {
        kind: trefoil::wire::DecisionKind::Committed,
        key_id: key.id(),
        epoch: key.share.epoch(),
        transcript: key.share.transcript(),
    };
    cluster::fixed(decision.sign(&identity))
}

/// A NATS server chooses what a connection key signs. Whatever it chooses, a job's body even, it gets no job's signature by it; nor is
/// one kind of our own signatures another.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_a_servers_nonce_is_no_jobs() {
    let cluster = Cluster::start().await;
    let good = cluster.generate_job("g1", Curve::Ed25519);
    let digest = cluster::digest(&good);
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes).into_bytes();
    let nonces = [
        good.body.clone(),
        digest.to_vec(),
        hex(&digest),
        data_encoding::BASE64URL_NOPAD.encode(&digest).into_bytes(),
        [b"trefoil-job-v1\0".as_slice(), &digest].concat(),
        // A server's nonces are text; this is what the first byte of ours becomes in one.
        [String::from("\u{ff}trefoil-job-v1\0").as_bytes(), &digest].concat(),
        // Signed by us, and for something else.
        trefoil::auth::authorise_signing_bytes(&digest),
    ];
    for nonce in nonces {
        let signature = cluster.initiator.sign(&nonce).unwrap().try_into().unwrap();
        let job = SignedJob { signature: cluster::fixed(signature), ..good.clone() };
        for role in [Party::Node1, Party::Node2] {
            assert_eq!(refused(ask(&cluster, role, open(role, &job)).await), ErrorCode::BadSignature);
        }
        // Nor is the signature of a job an authoriser's consent to it.
        let destroy = empty(&cluster, Op::Destroy, "d1", KeyId([1; 16]));
        let body = trefoil::auth::job_signing_bytes(&cluster::digest(&destroy));
        let signature = cluster::fixed(cluster.authoriser.sign(&body).unwrap().try_into().unwrap());
        let authoriser = cluster.authoriser.public_key().parse().unwrap();
        let authorisation = Some(trefoil::wire::Authorisation { authoriser, signature });
        let job = SignedJob { authorisation, ..destroy };
        assert_eq!(refused(ask(&cluster, Party::Node1, order(&job)).await), ErrorCode::NotAuthorised);
    }
    assert!(matches!(cluster.ask1(open(Party::Node1, &good)).await, NodeReply::GenerateOpened { .. }));
}

/// What a worker or broker kept is of no use to it later: an id means one body for ever, over restarts; jobs that make shares make them
/// once; and nothing is begun after its expiry.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_were_kept_do_nothing_twice() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let recovered = cluster.recover(&key, "r1").await;
    cluster.commit(&recovered).await;
    let refreshed = cluster.refresh(&recovered, "f1").await;
    cluster.commit(&refreshed).await;
    let soon = cluster.job(Op::PublicKey, "q1", refreshed.id(), 1_500, PublicKeyBody {});
    let info = || NodeRequest::KeyInfo { job: soon.clone() };
    assert!(matches!(cluster.ask1(info()).await, NodeReply::KeyInfo { .. }));
    let signed = cluster.sign_job("s1", refreshed.id(), &digest_input());
    cluster::signer::to_m2(&cluster, &refreshed, &signed, 1).await.unwrap().finish().await;
    for round in ["before a restart", "after it"] {
        let before = [contents(&cluster.data(Party::Node1)), contents(&cluster.data(Party::Node2))];
        for role in [Party::Node1, Party::Node2] {
            for (job, expected) in [
                (&key.job, ErrorCode::JobIdReused),
                (&recovered.job, ErrorCode::KeyRetired),
                (&refreshed.job, ErrorCode::JobIdReused),
            ] {
                assert_eq!(refused(ask(&cluster, role, open(role, job)).await), expected, "{role}, {round}");
            }
        }
        let other = SignInput::Secp256k1 { digest: [1; 32], path: None };
        let other = cluster.sign_job("s1", refreshed.id(), &other);
        assert_eq!(
            refused(cluster.ask1(sign_open(&cluster, &refreshed, &other)).await),
            ErrorCode::JobIdReused,
            "{round}"
        );
        assert_eq!([contents(&cluster.data(Party::Node1)), contents(&cluster.data(Party::Node2))], before, "{round}");
        for role in [Party::Node1, Party::Node2] {
            cluster.drain_node(role).await;
            cluster.start_node(role).await;
            let channel = if role == Party::Node1 { &cluster.to1 } else { &cluster.to2 };
            while channel.renew().await.is_err() {}
        }
    }
    while now_ms() <= serde_json::from_slice::<serde_json::Value>(&soon.body).unwrap()["expiresAt"].as_u64().unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(refused(cluster.ask1(info()).await), ErrorCode::JobExpired);
}
