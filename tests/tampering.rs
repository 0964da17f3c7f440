//! A worker that alters what it forwards. For every operation and every field of its job, found by walking the job, so that a new
//! field is tried as well: both nodes refuse it, and store nothing. And what a worker says beside the job: wrong, it yields no
//! signature of anything else, no commit, no lock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::signer::{self, DIGEST, digest_input, frost, message_input, to_m2_altered};
use cluster::{Cluster, Key, MINUTE, blinded, call, fixed, link, refresh_proof, refused, sealed};
use ed25519_dalek::VerifyingKey;
use std::collections::BTreeSet;
use support::stored::contents;
use trefoil::auth;
use trefoil::fault::tamper::alterations;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest, PasswordOpen, SignOpen, SignOutcome};
use trefoil::wire::{
    ChangePasswordBody, Curve, ErrorCode, GenerateBody, KdfParams, KeysBody, Op, OrderBody, PublicKeyBody,
    RegisterBody, SignInput, SignedJob, ValidateBody, WhichJobBody,
};
use trefoil_protocol::Party;
use trefoil_protocol::frost::FrostClient;

/// Codes in which an altered job may end. Never one that says that the job was looked at as the initiator's.
const REFUSALS: &[ErrorCode] = &[ErrorCode::BadSignature, ErrorCode::MalformedJob, ErrorCode::NotAuthorised];

/// The keys of one cluster: one of each curve, and a third that may be destroyed.
struct Keys {
    secp256k1: Key,
    ed25519: Key,
    spare: Key,
}

async fn started() -> (Cluster, Keys) {
    let cluster = Cluster::start().await;
    let keys = Keys {
        secp256k1: cluster.committed_key("g1", Curve::Secp256k1).await,
        ed25519: cluster.committed_key("g2", Curve::Ed25519).await,
        spare: cluster.committed_key("g3", Curve::Ed25519).await,
    };
    (cluster, keys)
}

/// A good job of an operation, and whether it needs an authoriser.
fn job(cluster: &Cluster, keys: &Keys, op: Op, job_id: &str) -> SignedJob {
    let authorised =
        |job: SignedJob| SignedJob { authorisation: auth::authorise(&cluster.authoriser, &job.body), ..job };
    let shares =
        |op, id| cluster.job(op, job_id, id, MINUTE, GenerateBody::new(Curve::Ed25519, KdfParams::default(), sealed()));
    let id = keys.ed25519.id();
    match op {
        Op::Generate => shares(op, cluster.key_id(job_id)),
        Op::Recover => authorised(shares(op, keys.spare.id())),
        Op::Refresh => shares(op, id),
        Op::Sign => {
            let input = SignInput::Secp256k1 { digest: DIGEST, path: Some("m/0/1".to_owned()) };
            cluster.sign_job(job_id, keys.secp256k1.id(), &input)
        }
        Op::PublicKey => cluster.job(op, job_id, id, MINUTE, PublicKeyBody {}),
        Op::ValidatePassword | Op::ValidateShare => {
            cluster.job(op, job_id, id, MINUTE, ValidateBody { secrets: sealed() })
        }
        Op::ChangePassword => {
            let payload = ChangePasswordBody { kdf: KdfParams::default().to_body(), secrets: sealed() };
            cluster.job(op, job_id, id, MINUTE, payload)
        }
        Op::Freeze | Op::Unfreeze => cluster.job(op, job_id, id, MINUTE, OrderBody {}),
        Op::Destroy => authorised(cluster.job(op, job_id, keys.spare.id(), MINUTE, OrderBody {})),
        Op::Keys => {
            let payload = KeysBody { after: Some(id), limit: Some(7) };
            cluster.job(op, job_id, cluster.key_id(job_id), MINUTE, payload)
        }
        Op::RegisterKey => {
            let public_key = data_encoding::HEXLOWER.encode(&keys.ed25519.share.public_key());
            let (curve, label) = (Curve::Ed25519.to_string(), Some("till".to_owned()));
            cluster.job(op, job_id, id, MINUTE, RegisterBody { curve, public_key, label })
        }
        Op::Cancel | Op::JobStatus => {
            cluster.job(op, job_id, id, MINUTE, WhichJobBody { job_id: "another".parse().unwrap() })
        }
        Op::CancelRecovery => cluster.job(op, job_id, id, MINUTE, OrderBody {}),
    }
}

/// Every request by which a worker may forward a job of this operation to this node.
async fn requests(cluster: &Cluster, keys: &Keys, op: Op, role: Party, job: &SignedJob) -> Vec<NodeRequest> {
    let (job, node1) = (job.clone(), role == Party::Node1);
    match op {
        Op::Generate | Op::Recover | Op::Refresh => {
            let contribution = [7; 32];
            let blinded_password = node1.then(|| blinded(keys.ed25519.id()).element());
            let proof = match blinded_password {
                Some(blinded) => refresh_proof(&*link(&cluster.to1).await, &job, &contribution, &blinded).await,
                None => None,
            };
            let mut all = vec![NodeRequest::GenerateOpen {
                job: job.clone(),
                contribution,
                blinded_password,
                proof,
                identities: None,
            }];
            if op != Op::Generate {
                all.push(NodeRequest::Source { job: job.clone() });
            }
            if op == Op::Refresh && node1 {
                all.push(NodeRequest::PasswordOpen(password_open(&keys.ed25519, &job)));
            }
            all
        }
        Op::Sign if node1 => vec![NodeRequest::SignOpen(cluster.open(&keys.secp256k1, &job, [7; 32], 0))],
        Op::ValidatePassword | Op::ValidateShare | Op::ChangePassword if node1 => {
            vec![NodeRequest::PasswordOpen(password_open(&keys.ed25519, &job))]
        }
        // Node 2 signs nothing, and knows no passwords.
        Op::Sign | Op::ValidatePassword | Op::ValidateShare | Op::ChangePassword => Vec::new(),
        Op::Freeze | Op::Unfreeze | Op::Destroy => vec![NodeRequest::Order { job }],
        Op::PublicKey => vec![NodeRequest::KeyInfo { job }],
        Op::Keys | Op::RegisterKey | Op::Cancel | Op::JobStatus if !node1 => Vec::new(),
        Op::Keys | Op::RegisterKey | Op::Cancel | Op::JobStatus | Op::CancelRecovery => {
            vec![NodeRequest::Manage { job }]
        }
    }
}

fn password_open(key: &Key, job: &SignedJob) -> PasswordOpen {
    PasswordOpen {
        job: job.clone(),
        epoch: key.share.epoch(),
        transcript: key.share.transcript(),
        blinded_password: blinded(key.id()).element(),
    }
}

async fn ask(cluster: &Cluster, role: Party, request: NodeRequest) -> NodeReply {
    if role == Party::Node1 { cluster.ask1(request).await } else { cluster.ask2(request).await }
}

/// What a node stores, and what its log says of jobs. What nothing waited for is in it before the entry that this waits for.
async fn kept(cluster: &Cluster, role: Party) -> (support::stored::Contents, Vec<audit::Event>) {
    cluster.reload_policy(role).await;
    let log = audit::Entries::open(&cluster.data(role).join(AUDIT_LOG), None).unwrap();
    let entries = log.map(|entry| entry.unwrap().1).filter(|event| event.op != "policy").collect();
    (contents(&cluster.data(role)), entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_altered_field_of_every_job_is_refused_and_leaves_nothing() {
    let (cluster, keys) = started().await;
    let mut tried = 0;
    for (number, op) in Op::ALL.iter().enumerate() {
        let good = job(&cluster, &keys, *op, &format!("job-{number}"));
        let altered = alterations(&good);
        assert_every_field_is_altered(&good, &altered.iter().map(|one| one.what.as_str()).collect());
        for role in [Party::Node1, Party::Node2] {
            let before = kept(&cluster, role).await;
            for alteration in &altered {
                for request in requests(&cluster, &keys, *op, role, &alteration.job).await {
                    let code = refused(ask(&cluster, role, request).await);
                    assert!(REFUSALS.contains(&code), "{op}, {}: {code}", alteration.what);
                    tried += 1;
                }
            }
            // An authentic job without its consent is refused too, and that is worth an entry in the log.
            let (now, log) = kept(&cluster, role).await;
            assert_eq!(now, before.0, "{op}: {role} stored something");
            assert!(log == before.1 || good.authorisation.is_some(), "{op}: {role} logged something");
            // As it was signed, the same is not refused: it was nothing else that was wrong.
            for request in requests(&cluster, &keys, *op, role, &good).await {
                let reply = ask(&cluster, role, request).await;
                assert!(!matches!(reply, NodeReply::Refused { .. }), "{op} at {role}: {reply:?}");
            }
        }
    }
    assert!(tried > 500, "only {tried} altered jobs were sent");
}

/// Compares with another walk through the body.
fn assert_every_field_is_altered(job: &SignedJob, altered: &BTreeSet<&str>) {
    fn walk(value: &serde_json::Value, path: &str, leaves: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(value, &path, leaves);
            }),
            serde_json::Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| walk(item, &format!("{path}[{index}]"), leaves));
            }
            _ => leaves.push(path.to_owned()),
        }
    }
    let mut leaves = Vec::new();
    walk(&serde_json::from_slice(&job.body).unwrap(), "", &mut leaves);
    assert!(leaves.len() >= 8);
    for leaf in leaves {
        assert!(altered.contains(format!("{leaf}: left out").as_str()), "{leaf} was not left out");
        assert!(altered.iter().any(|what| what.starts_with(&format!("{leaf}: another"))), "{leaf} was not altered");
    }
    assert!(altered.iter().filter(|what| what.starts_with("signature")).count() >= 3);
    assert_eq!(job.authorisation.is_some(), altered.iter().any(|what| what.starts_with("authorisation")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_signatures_of_different_jobs_do_not_go_together() {
    let (cluster, keys) = started().await;
    let jobs: Vec<_> = Op::ALL
        .iter()
        .enumerate()
        .map(|(number, op)| (*op, job(&cluster, &keys, *op, &format!("j{number}"))))
        .collect();
    for role in [Party::Node1, Party::Node2] {
        let before = contents(&cluster.data(role));
        for (op, one) in &jobs {
            for (other_op, other) in jobs.iter().filter(|(other, _)| other != op) {
                // The other's signature over this body.
                let mixed = SignedJob { signature: other.signature, ..one.clone() };
                for request in requests(&cluster, &keys, *op, role, &mixed).await {
                    assert_eq!(
                        refused(ask(&cluster, role, request).await),
                        ErrorCode::BadSignature,
                        "{op} by {other_op}"
                    );
                }
                // The other job as a whole, in this one's place. Some are told apart only later: the passwords' three share a
                // request, and so do those that make shares, and the orders.
                let same = |a: &NodeRequest, b: &NodeRequest| std::mem::discriminant(a) == std::mem::discriminant(b);
                let theirs = requests(&cluster, &keys, *other_op, role, other).await;
                for request in requests(&cluster, &keys, *op, role, other).await {
                    if !theirs.iter().any(|their| same(their, &request)) {
                        let code = refused(ask(&cluster, role, request).await);
                        assert!(
                            matches!(
                                code,
                                ErrorCode::MalformedJob | ErrorCode::NotPermitted | ErrorCode::UnsupportedOperation
                            ),
                            "{op} by {other_op}: {code}"
                        );
                    }
                }
                // The other's consent to this job.
                if let (Some(_), Some(consent)) = (&one.authorisation, &other.authorisation) {
                    let mixed = SignedJob { authorisation: Some(consent.clone()), ..one.clone() };
                    for request in requests(&cluster, &keys, *op, role, &mixed).await {
                        assert_eq!(refused(ask(&cluster, role, request).await), ErrorCode::NotAuthorised);
                    }
                }
            }
        }
        assert_eq!(contents(&cluster.data(role)), before, "{role} stored something");
    }
}

/// What the worker claims of the client's share and of itself. The pattern names every field: whoever adds one decides what
/// a lie about it may do.
#[tokio::test(flavor = "multi_thread")]
async fn a_lie_beside_the_job_signs_nothing_else_and_locks_nothing() {
    let (cluster, keys) = started().await;
    let key = &keys.secp256k1;
    let verifies = |bytes: &[u8; 64]| {
        use k256::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier};
        let public = VerifyingKey::from_sec1_bytes(&key.share.public_key()).unwrap();
        public.verify_prehash(&DIGEST, &Signature::from_slice(bytes).unwrap()).is_ok()
    };
    type Lie = (&'static str, fn(&mut SignOpen), Option<ErrorCode>);
    let SignOpen {
        job: _,
        contribution: _,
        epoch: _,
        ot_id: _,
        transcript: _,
        lease_token: _,
        // Whoever says so in vain signs once more what it may sign.
        looked: _,
        blinded_password: _,
    } = cluster.open(key, &cluster.sign_job("none", key.id(), &digest_input()), [9; 32], 0);
    let lies: [Lie; 8] = [
        ("epoch", |open| open.epoch += 1, Some(ErrorCode::StaleShare)),
        ("transcript", |open| open.transcript[0] ^= 1, Some(ErrorCode::StaleShare)),
        ("ot_id", |open| open.ot_id[0] ^= 1, Some(ErrorCode::StaleShare)),
        // Bound into the session id: found when m2 does not fit.
        ("contribution", |open| open.contribution[0] ^= 1, Some(ErrorCode::ProtocolAbort)),
        ("blinded_password", |open| open.blinded_password = [0xff; 32], Some(ErrorCode::ProtocolAbort)),
        // Another password's evaluation: worth nothing to whoever has the share already, and an attempt to whoever has not.
        ("blinded_password", |open| open.blinded_password = signer::other_element(), None),
        ("lease_token", |open| open.lease_token = u64::MAX, None),
        ("lease_token", |open| open.lease_token = 0, None),
    ];
    for (number, (what, lie, expected)) in lies.into_iter().enumerate() {
        let job = cluster.sign_job(&format!("lie-{number}"), key.id(), &digest_input());
        let reached = match to_m2_altered(&cluster, key, &job, 2 * number as u64 + 1, lie).await {
            Ok(midway) => midway.finished().await,
            Err(code) => Err(code),
        };
        match (reached, expected) {
            (Ok(signature), None) => assert!(verifies(&signature), "{what}"),
            (Err(code), Some(expected)) => assert_eq!(code, expected, "{what}"),
            (reached, expected) => panic!("{what}: {:?}, not {expected:?}", reached.map(|_| "signed")),
        }
        // The key is as good as before.
        let honest = cluster.sign_job(&format!("honest-{number}"), key.id(), &digest_input());
        let signature = to_m2_altered(&cluster, key, &honest, 2 * number as u64 + 2, |_| {})
            .await
            .unwrap()
            .finished()
            .await
            .unwrap();
        assert!(verifies(&signature), "after a lie about {what}");
    }
}

/// The same where shares are made: who contributed what, which node hardens the password, and who proves later that it was right.
#[tokio::test(flavor = "multi_thread")]
async fn a_lie_while_shares_are_made_prepares_nothing() {
    let (cluster, keys) = started().await;
    let stored = || [contents(&cluster.data(Party::Node1)), contents(&cluster.data(Party::Node2))];
    let element = blinded(keys.ed25519.id()).element();
    for (number, op) in [Op::Generate, Op::Recover, Op::Refresh].into_iter().enumerate() {
        let job = job(&cluster, &keys, op, &format!("lie-{number}"));
        for role in [Party::Node1, Party::Node2] {
            let (node1, channel) = if role == Party::Node1 { (true, &cluster.to1) } else { (false, &cluster.to2) };
            let link = link(channel).await;
            let proof = match role {
                Party::Node1 => refresh_proof(&link, &job, &[7; 32], &element).await,
                _ => None,
            };
            let open = |blinded_password| NodeRequest::GenerateOpen {
                job: job.clone(),
                contribution: [7; 32],
                blinded_password,
                proof,
                identities: None,
            };
            let before = stored();
            // The password is node 1's to harden, and its element an element.
            assert_eq!(refused(ask(&cluster, role, open((!node1).then_some(element))).await), ErrorCode::ProtocolAbort);
            assert_eq!(stored(), before, "{op} at {role}");
            let reply = link.call(&call(open(node1.then_some(element)))).await.unwrap();
            let NodeReply::GenerateOpened { session, .. } = reply else { panic!("{op} at {role}: {reply:?}") };
            let before = stored();
            let prepare = NodeRequest::GeneratePrepare { session, prover: node1.then_some(element) };
            assert_eq!(
                refused(link.call(&call(prepare)).await.unwrap()),
                ErrorCode::ProtocolAbort,
                "before its rounds"
            );
            // Another contribution than the one that the session was opened with ends it.
            let round = NodeRequest::GenerateRound { session, round: 1, payload: vec![8; 64] };
            assert_eq!(refused(link.call(&call(round)).await.unwrap()), ErrorCode::ProtocolAbort);
            let round = NodeRequest::GenerateRound { session, round: 1, payload: vec![7; 64] };
            assert_eq!(refused(link.call(&call(round)).await.unwrap()), ErrorCode::NodeUnavailable);
            assert_eq!(stored(), before, "{op} at {role}");
        }
    }
    let no_key = (0..=u8::MAX).map(|byte| [byte; 32]).find(|key| VerifyingKey::from_bytes(key).is_err());
    assert!(no_key.is_some());
    let dealt = cluster.deal_recovery(&keys.secp256k1, "dealt").await;
    let before = stored();
    for (role, prover) in [(Party::Node1, None), (Party::Node1, no_key), (Party::Node2, Some(element))] {
        assert_eq!(refused(dealt.prepare_with(role, prover).await), ErrorCode::ProtocolAbort, "{role}");
    }
    assert_eq!(stored(), before);
    let key = dealt.prepare().await;
    cluster.commit(&key).await;
    let honest = cluster.sign_job("honest", key.id(), &digest_input());
    to_m2_altered(&cluster, &key, &honest, 1, |_| {}).await.unwrap().finish().await;
}

/// The reported end of a session is the worker's word as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_false_report_forgives_no_guess_and_locks_no_ed25519_key() {
    let (cluster, keys) = started().await;
    let key = &keys.ed25519;
    let job = cluster.sign_job("s1", key.id(), &message_input(b"m"));
    let link = link(&cluster.to1).await;
    let (_, commitments) = FrostClient::start(&mut rand_core::OsRng);
    let request = NodeRequest::FrostSign { open: cluster.open(key, &job, [1; 32], 0), commitments: fixed(commitments) };
    let NodeReply::FrostSigned { session, .. } = link.call(&call(request)).await.unwrap() else { panic!("not signed") };
    let before = contents(&cluster.data(Party::Node1));
    let outcome = SignOutcome::Signature(fixed([1; 64]));
    let closed = link.call(&call(NodeRequest::SignClose { session, outcome })).await.unwrap();
    assert!(matches!(closed, NodeReply::Closed));
    assert_eq!(contents(&cluster.data(Party::Node1)), before, "a false signature settled something");
    let job = cluster.sign_job("s2", key.id(), &message_input(b"m"));
    frost(&cluster, key, &job, b"m").await.unwrap();
}

/// A commit goes by signatures of the nodes alone: of exactly this attempt, by exactly the other node.
#[tokio::test(flavor = "multi_thread")]
async fn no_evidence_but_the_right_one_commits() {
    let (cluster, keys) = started().await;
    let (one, other) = (cluster.generate("p1", Curve::Ed25519).await, cluster.generate("p2", Curve::Ed25519).await);
    let before = [contents(&cluster.data(Party::Node1)), contents(&cluster.data(Party::Node2))];
    let commit = |key: &Key, transcript: [u8; 32], evidence: [u8; 64]| NodeRequest::Commit {
        key_id: key.id(),
        transcript,
        evidence: fixed(evidence),
    };
    let right = one.statement2.signature.0;
    let mut wrong: Vec<[u8; 64]> =
        (0..64).map(|index| std::array::from_fn(|i| right[i] ^ u8::from(i == index))).collect();
    // Node 1's own word, and node 2's about another key.
    wrong.extend([
        one.statement1.signature.0,
        other.statement2.signature.0,
        keys.ed25519.statement2.signature.0,
        [0; 64],
    ]);
    for evidence in wrong {
        for role in [Party::Node1, Party::Node2] {
            let reply = ask(&cluster, role, commit(&one, one.share.transcript(), evidence)).await;
            assert_eq!(refused(reply), ErrorCode::NotPermitted);
        }
    }
    // Node 2 takes no attestation, and no decision about something else.
    assert_eq!(refused(cluster.ask2(commit(&one, one.share.transcript(), right)).await), ErrorCode::NotPermitted);
    assert_eq!(refused(cluster.ask1(commit(&one, other.share.transcript(), right)).await), ErrorCode::UnknownKey);
    assert_eq!(refused(cluster.ask1(commit(&other, one.share.transcript(), right)).await), ErrorCode::UnknownKey);
    let after = [contents(&cluster.data(Party::Node1)), contents(&cluster.data(Party::Node2))];
    assert_eq!(after, before);
    cluster.commit(&one).await;
}
