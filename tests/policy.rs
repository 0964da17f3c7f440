//! The policy: read strictly, denied by default, enforced by the node itself, and loaded again while it serves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::{Cluster, refused};
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::process::Command;
use trefoil::auth::sign_job;
use trefoil::clock::now_ms;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::policy::{Denial, Limited, Policy, Rates};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, InitiatorId, Job, KeyId, Op, PublicKeyBody, SignInput};
use trefoil_protocol::Party;

const KEY: &str = "UCFIRY65OQE7DFP5KLNS2PF2LVZMUZYJX4OZIEQ36N2IQANUB5XVZ45L";
const FILE: &str = include_str!("fixtures/policy.toml");

fn problems(text: &str) -> Vec<String> {
    Policy::parse(text).err().map(|error| error.0.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

#[test]
fn all_names_of_an_initiator_are_one() {
    let keys: Vec<KeyPair> = (0..5).map(|_| KeyPair::new_user()).collect();
    let [new, old, former, other, stranger] = [0, 1, 2, 3, 4].map(|index: usize| keys[index].public_key());
    let grants = "operations = [\"public-key\"]\ncurves = []\njobs_per_minute = { public-key = 1 }";
    let file = |keys: &str, former: &str| {
        format!(
            "version = 1\n[[initiators]]\nname = \"shop\"\n{keys}\nformer = [{former}]\n{grants}\n\
             [[initiators]]\nname = \"other\"\nkey = \"{other}\"\n{grants}\n"
        )
    };
    let both = format!("keys = [\"{new}\", \"{old}\"]");
    let policy = Policy::parse(&file(&both, &format!("\"{former}\""))).unwrap();
    let id = |key: &str| key.parse::<InitiatorId>().unwrap();
    assert_eq!(policy.grants().len(), 2);
    for key in [&new, &old] {
        assert!([&new, &old, &former].iter().all(|owner| policy.owns(&id(key), &id(owner))));
        assert!(![&other, &stranger].iter().any(|owner| policy.owns(&id(key), &id(owner))));
        assert_eq!((policy.owners(&id(key)).len(), policy.owners(&id(key))[0].to_string()), (3, key.to_string()));
    }
    // A former name may do nothing, and is nobody else's.
    assert!(policy.get(&id(&former)).is_none() && !policy.owns(&id(&former), &id(&new)));
    assert!(policy.owns(&id(&other), &id(&other)) && !policy.owns(&id(&other), &id(&former)));
    // One rate for all names.
    let mut rates = Rates::default();
    let job = |key: &KeyPair| {
        let body = format!(
            r#"{{"version":1,"op":"public-key","jobId":"j","keyId":"{}","initiator":"{}","issuedAt":1,"expiresAt":90000,"replyKey":"{}","payload":{{}}}}"#,
            KeyId([1; 16]),
            key.public_key(),
            nkeys::XKey::new().public_key(),
        );
        trefoil::wire::Job::from_signed(&sign_job(key, body.into_bytes()).unwrap()).unwrap()
    };
    assert!(rates.take(&policy, &job(&keys[0]), 2).is_ok());
    assert!(rates.take(&policy, &job(&keys[1]), 2).is_err(), "the other name has none of its own");
    assert!(rates.take(&policy, &job(&keys[3]), 2).is_ok());
    for (keys, former, problem) in [
        (format!("key = \"{new}\"\n{both}"), String::new(), "line 5: initiator shop has both `key` and `keys`"),
        ("keys = []".to_owned(), String::new(), "line 4: `keys` must name at least one"),
        ("keys = [1]".to_owned(), String::new(), "line 4: `keys` must be public halves of user NKEYs (U…)"),
        (both.clone(), "2".to_owned(), "line 5: `former` must be public halves of user NKEYs (U…)"),
        (both.clone(), format!("\"{old}\""), &format!("line 2: {old} is listed twice")),
        (both, format!("\"{other}\""), &format!("line 9: {other} is listed twice")),
    ] {
        assert_eq!(problems(&file(&keys, &former)), [problem]);
    }
}

#[test]
fn a_good_file_says_what_it_grants_and_nothing_more() {
    let policy = Policy::parse(FILE).unwrap();
    let grant = policy.get(&KEY.parse().unwrap()).unwrap();
    assert_eq!((grant.name.as_str(), grant.raw_digests, grant.max_keys), ("shop", true, Some(1_000)));
    assert_eq!(grant.max_lifetime.as_secs(), 600);
    assert_eq!(grant.jobs_per_minute, [(Op::Generate, 10), (Op::Sign, 600)].into());
    let least = format!("version = 1\n[[initiators]]\nname = 'x'\nkey = '{KEY}'\noperations = []\ncurves = []\n");
    let policy = Policy::parse(&least).unwrap();
    let grant = policy.grants()[0];
    assert!(!grant.raw_digests && grant.operations.is_empty() && grant.curves.is_empty());
    assert_eq!((grant.max_lifetime.as_secs(), grant.max_keys, grant.jobs_per_minute.len()), (3_600, None, 0));
    assert_ne!(policy.digest(), Policy::parse(FILE).unwrap().digest());
}

#[test]
fn every_problem_is_named_at_once_with_its_line() {
    let text = format!(
        "version = 2\nversoin = 1\n\n[[initiators]]\nname = \"shop\"\nkey = \"SUxyz\"\noperations = [\"sign\", \"sing\"]\n\
         curves = \"ed25519\"\nraw_digest = true\nraw_digests = 1\nmax_lifetime_seconds = 3601\nmax_keys = -1\n\
         jobs_per_minute = {{ sign = 0, generate = 5, sing = 1 }}\n\n[[initiators]]\nname = \"\"\nkey = \"{KEY}\"\n\
         operations = [\"sign\", \"sign\"]\n"
    );
    let expected = [
        "line 1: `version` must be 1",
        "line 2: unknown key `versoin`",
        "line 6: `key` must be the public half of a user NKEY (U…)",
        "line 7: `operations`: unknown name `sing`",
        "line 8: `curves` must be a list",
        "line 9: unknown key `raw_digest`",
        "line 10: `raw_digests` must be true or false",
        "line 11: `max_lifetime_seconds` must be a whole number from 1 to 3600",
        "line 12: `max_keys` must be a whole number from 0 to 4294967295",
        "line 13: a rate must be a whole number from 1 to 60000",
        "line 13: a rate for `generate`, which is not among the operations",
        "line 13: unknown operation `sing`",
        "line 15: an initiator lacks `curves`",
        "line 16: `name` must be a text of 1 to 64 bytes",
        "line 18: `operations`: sign is listed twice",
    ];
    let mut found = problems(&text);
    found.sort();
    let mut expected = expected.map(str::to_owned);
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn nobody_is_listed_twice_and_an_empty_file_is_no_policy() {
    let entry = FILE.strip_prefix("version = 1\n").unwrap();
    let found = problems(&format!("{FILE}{entry}"));
    assert_eq!(found, ["line 13: the name shop is used twice".to_owned(), format!("line 13: {KEY} is listed twice")]);
    assert_eq!(problems(""), ["line 1: the policy lacks `version`", "line 1: the policy lacks `initiators`"]);
    assert_eq!(problems("version = 1\ninitiators = []").len(), 1);
    assert_eq!(problems("version = 1\ninitiators = [1]"), ["line 2: an initiator must be a table"]);
    assert_eq!(problems("version = 1\nversion = 1\nname = ]\n").len(), 2, "syntax too, every problem");
    assert_eq!(Policy::load("/does/not/exist".as_ref()).err().unwrap().0[0].line, 0);
}

/// A job of this initiator, as a node reads it.
fn job(initiator: &KeyPair, op: Op, payload: Value, job_id: &str, expires_at: u64) -> Job {
    let body = json!({
        "version": 1, "op": op, "jobId": job_id, "keyId": "00".repeat(16), "initiator": initiator.public_key(),
        "issuedAt": 1, "expiresAt": expires_at, "replyKey": nkeys::XKey::new().public_key(), "payload": payload,
    });
    Job::from_signed(&sign_job(initiator, body.to_string().into_bytes()).unwrap()).unwrap()
}

fn sign_payload(curve: &str) -> Value {
    let key = nkeys::XKey::new().public_key();
    let mut payload = json!({
        "curve": curve, "method": "default", "secrets": { "recipientKey": key, "senderKey": key, "box": "AAAA" },
    });
    if curve == "ed25519" {
        payload["message"] = json!("");
    } else {
        payload["digest"] = json!("11".repeat(32));
    }
    payload
}

fn policy(initiator: &KeyPair, grants: &str) -> Policy {
    let key = initiator.public_key();
    Policy::parse(&format!("version = 1\n[[initiators]]\nname = \"x\"\nkey = \"{key}\"\n{grants}")).unwrap()
}

#[test]
fn nothing_is_permitted_unless_it_is_granted() {
    let initiator = KeyPair::new_user();
    let ecdsa = job(&initiator, Op::Sign, sign_payload("secp256k1"), "a", 60_000);
    let eddsa = job(&initiator, Op::Sign, sign_payload("ed25519"), "b", 60_000);
    let question = job(&initiator, Op::PublicKey, json!({}), "c", 60_000);
    let denied = |policy: &Policy, job: &Job| policy.permit(job).err().map(|Denial { code, message }| (code, message));
    let unknown = denied(&Policy::parse(FILE).unwrap(), &ecdsa).unwrap();
    assert_eq!(unknown.0, ErrorCode::UnknownInitiator);
    let cases = [
        ("operations = []\ncurves = [\"secp256k1\", \"ed25519\"]\nraw_digests = true", [Some("ask for sign"); 2]),
        ("operations = [\"sign\"]\ncurves = []\nraw_digests = true", [Some("use secp256k1"), Some("use ed25519")]),
        ("operations = [\"sign\"]\ncurves = [\"secp256k1\"]\nraw_digests = true", [None, Some("use ed25519")]),
        ("operations = [\"sign\"]\ncurves = [\"secp256k1\", \"ed25519\"]", [Some("have raw digests signed"), None]),
    ];
    for (grants, expected) in cases {
        let policy = policy(&initiator, grants);
        for (job, expected) in [&ecdsa, &eddsa].into_iter().zip(expected) {
            let expected = expected.map(|what| (ErrorCode::NotPermitted, format!("this initiator may not {what}")));
            assert_eq!(denied(&policy, job), expected, "{grants}");
        }
        assert!(denied(&policy, &question).is_some());
    }
}

#[test]
fn a_rate_lets_through_so_many_jobs_a_minute_and_each_job_counts_once() {
    let initiator = KeyPair::new_user();
    let policy = policy(&initiator, "operations = [\"sign\"]\ncurves = [\"ed25519\"]\njobs_per_minute = { sign = 6 }");
    let job = |name: &str| job(&initiator, Op::Sign, sign_payload("ed25519"), name, 600_000);
    let mut rates = Rates::default();
    let start = 100_000;
    let jobs: Vec<Job> = (0..6).map(|n| job(&format!("a{n}"))).collect();
    for _ in 0..50 {
        for job in &jobs {
            assert_eq!(rates.take(&policy, job, start), Ok(()), "tried again, or replayed, it does not count again");
        }
    }
    let (b, c) = (job("b"), job("c"));
    let limited = |wait_ms, first| Err(Limited { rate: 6, wait_ms, first });
    assert_eq!(rates.take(&policy, &b, start), limited(10_000, true));
    assert_eq!(rates.take(&policy, &c, start + 4_000), limited(6_000, false), "only the first is for the audit log");
    assert_eq!(rates.take(&policy, &b, start + 9_999), limited(1, false));
    assert_eq!(rates.take(&policy, &b, start + 10_000), Ok(()));
    assert_eq!(rates.take(&policy, &c, start + 10_000), limited(10_000, true));
    // A clock set back neither fills the bucket nor stops it.
    assert_eq!(rates.take(&policy, &c, 5_000), limited(10_000, false));
    assert_eq!(rates.take(&policy, &c, 15_000), Ok(()));
    // Never more than a minute's worth, however long nobody came.
    let later: Vec<Job> = (0..7).map(|n| job(&format!("d{n}"))).collect();
    let passed = later.iter().filter(|job| rates.take(&policy, job, 500_000).is_ok()).count();
    assert_eq!(passed, 6);
    // Without a rate there is no limit, and what is not limited is not remembered.
    let free = super_policy(&initiator);
    rates.retain(&free);
    assert!((0..100).all(|n| rates.take(&free, &job(&format!("e{n}")), 500_000).is_ok()));
    assert_eq!(rates.take(&policy, &later[6], 500_000), Ok(()), "the bucket was forgotten with its rate");
}

fn super_policy(initiator: &KeyPair) -> Policy {
    policy(initiator, "operations = [\"sign\"]\ncurves = [\"ed25519\"]")
}

fn trefoil(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_trefoil")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

#[test]
fn check_policy_prints_what_is_granted_or_every_problem() {
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/policy.toml");
    let (code, out, _) = trefoil(&["node", "check-policy", good]);
    assert_eq!(code, Some(0));
    for part in ["shop", "generate, sign, public-key", "600 s at most", "1000 at most", "generate 10, sign 600"] {
        assert!(out.contains(part), "{part} missing in {out}");
    }
    let (_, out, _) = trefoil(&["node", "check-policy", good, "--json"]);
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["initiators"][0]["jobsPerMinute"], json!({ "generate": 10, "sign": 600 }));

    let bad = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(bad.path(), FILE.replace("raw_digests = true", "raw_digests = 2\nraw = 3")).unwrap();
    let bad = bad.path().to_str().unwrap();
    let (code, _, told) = trefoil(&["node", "check-policy", bad]);
    assert_eq!(code, Some(2));
    assert!(told.contains("line 8: ") && told.contains("line 9: unknown key `raw`"), "{told}");
    let (code, out, _) = trefoil(&["node", "check-policy", bad, "--json"]);
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, object["error"]["problems"][1]["line"].as_u64()), (Some(2), Some(9)));
    assert_eq!(trefoil(&["node", "check-policy", "/does/not/exist"]).0, Some(2));
}

fn entries(cluster: &Cluster, role: Party) -> Vec<audit::Event> {
    let log = audit::Entries::open(&cluster.data(role).join(AUDIT_LOG), None).unwrap();
    log.map(|entry| entry.unwrap().1).collect()
}

/// Reasons in node 1's log. What nothing waited for is in it before the entry that this waits for.
async fn reasons(cluster: &Cluster) -> Vec<String> {
    cluster.reload_policy(Party::Node1).await;
    entries(cluster, Party::Node1).into_iter().filter_map(|event| event.reason).collect()
}

/// Code and message of a refusal.
fn said(reply: NodeReply) -> (ErrorCode, String) {
    match reply {
        NodeReply::Refused { code, message, .. } => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_obeys_the_policy_that_it_was_given_last() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let input = SignInput::Secp256k1 { digest: [1; 32], path: None };
    let job = cluster.sign_job("s1", key.id(), &input);
    let open = || NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0));
    assert!(matches!(cluster.ask1(open()).await, NodeReply::SignOpened { .. }));

    // A bad file changes nothing, and is in the log.
    let good = std::fs::read_to_string(cluster.node1.policy()).unwrap();
    std::fs::write(cluster.node1.policy(), good.replace("raw_digests = true", "raw_digests = false\nraw = 1")).unwrap();
    cluster.reload_policy(Party::Node1).await;
    assert!(matches!(cluster.ask1(open()).await, NodeReply::SignOpened { .. }));

    std::fs::write(cluster.node1.policy(), good.replace("raw_digests = true", "raw_digests = false")).unwrap();
    cluster.reload_policy(Party::Node1).await;
    let refusal = said(cluster.ask1(open()).await);
    assert_eq!(refusal, (ErrorCode::NotPermitted, "this initiator may not have raw digests signed".to_owned()));

    cluster.write_policy("max_lifetime_seconds = 30");
    cluster.reload_policy(Party::Node1).await;
    let (code, message) = said(cluster.ask1(open()).await);
    assert_eq!((code, message.as_str()), (ErrorCode::JobLifetimeTooLong, "this initiator's jobs may live for 30 s"));

    assert_eq!(reasons(&cluster).await, ["POLICY_FILE", "NOT_PERMITTED", "JOB_LIFETIME_TOO_LONG"]);
    let policies: Vec<_> = entries(&cluster, Party::Node1).into_iter().filter(|event| event.op == "policy").collect();
    let decisions: Vec<_> = policies.iter().map(|event| event.decision.as_str()).collect();
    assert_eq!(decisions, ["loaded", "refused", "loaded", "loaded", "loaded"]);
    let digest = Policy::load(&cluster.node1.policy()).unwrap().digest();
    assert_eq!(policies[4].digest, Some(data_encoding::HEXLOWER.encode(&digest)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_used_up_by_the_initiators_own_jobs_only() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    cluster.write_policy("jobs_per_minute = { public-key = 3 }");
    cluster.reload_policy(Party::Node1).await;
    let info = |id: &str| NodeRequest::KeyInfo { job: cluster.key_info_job(id, key.id()) };
    // Strangers: another's signature, no signature, an unknown initiator, an expired job.
    let mut forged = cluster.key_info_job("x", key.id());
    forged.signature.0[5] ^= 1;
    let stale = cluster.job(Op::PublicKey, "y", key.id(), 1, PublicKeyBody {});
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    for _ in 0..10 {
        assert_eq!(refused(cluster.ask1(NodeRequest::KeyInfo { job: forged.clone() }).await), ErrorCode::BadSignature);
        assert_eq!(refused(cluster.ask1(NodeRequest::KeyInfo { job: stale.clone() }).await), ErrorCode::JobExpired);
    }
    // One job, many times: a worker that replays it, or tries it again.
    let one = cluster.key_info_job("a", key.id());
    for _ in 0..10 {
        let reply = cluster.ask1(NodeRequest::KeyInfo { job: one.clone() }).await;
        assert!(matches!(reply, NodeReply::KeyInfo { .. }), "{reply:?}");
    }
    for id in ["b", "c"] {
        assert!(matches!(cluster.ask1(info(id)).await, NodeReply::KeyInfo { .. }));
    }
    for n in 0..5 {
        let reply = cluster.ask1(info(&format!("d{n}"))).await;
        assert!(matches!(&reply, NodeReply::Refused { retry_at: Some(at), .. } if *at > now_ms()), "{reply:?}");
        let (code, message) = said(reply);
        assert_eq!(code, ErrorCode::RateLimited);
        assert!(message.starts_with("more than 3 public-key jobs a minute; room in "), "{message}");
    }
    let limited = reasons(&cluster).await.into_iter().filter(|reason| reason == "RATE_LIMITED");
    assert_eq!(limited.count(), 1, "the first of those in a row");
    // Other operations, and the jobs that were let through, go on; a policy without the rate ends it.
    assert!(matches!(cluster.ask1(NodeRequest::KeyInfo { job: one }).await, NodeReply::KeyInfo { .. }));
    cluster.write_policy("");
    cluster.reload_policy(Party::Node1).await;
    assert!(matches!(cluster.ask1(info("e")).await, NodeReply::KeyInfo { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initiator_has_no_more_keys_than_it_may() {
    let cluster = Cluster::start().await;
    cluster.write_policy("max_keys = 2");
    for role in [Party::Node1, Party::Node2] {
        cluster.reload_policy(role).await;
    }
    cluster.committed_key("g1", Curve::Ed25519).await;
    // Prepared counts.
    let second = cluster.generate_job("g2", Curve::Ed25519);
    cluster.generate_by(second.clone(), "g2", Curve::Ed25519).await;
    let open = |job| {
        let blinded_password = Some(cluster::blinded(KeyId([0; 16])).element());
        NodeRequest::GenerateOpen { job, contribution: [1; 32], blinded_password, proof: None, identities: None }
    };
    let (code, message) = said(cluster.ask1(open(cluster.generate_job("g3", Curve::Ed25519))).await);
    assert_eq!((code, message.as_str()), (ErrorCode::NotPermitted, "this initiator may have 2 keys, and has them"));
    assert!(matches!(cluster.ask1(open(second)).await, NodeReply::GenerateOpened { .. }), "the same key again");
    assert_eq!(reasons(&cluster).await, ["NOT_PERMITTED"]);
}

/// Whoever may publish jobs, and may not have them done, fills no audit log with them: neither at the gate nor behind it.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_tells_so_many_refusals_a_minute() {
    let cluster = Cluster::start().await;
    let codes = [ErrorCode::UnknownKey, ErrorCode::JobLifetimeTooLong, ErrorCode::UnknownInitiator];
    for code in codes {
        match code {
            ErrorCode::JobLifetimeTooLong => {
                cluster.write_policy("max_lifetime_seconds = 1");
                cluster.reload_policy(Party::Node1).await;
            }
            ErrorCode::UnknownInitiator => cluster.take_initiator_out().await,
            _ => {}
        }
        let job = cluster.key_info_job("i", cluster.key_id("none"));
        for _ in 0..100 {
            assert_eq!(refused(cluster.ask1(NodeRequest::KeyInfo { job: job.clone() }).await), code);
        }
    }
    cluster.reload_policy(Party::Node1).await;
    let log = entries(&cluster, Party::Node1);
    let count = |decision: &str, code: ErrorCode| {
        let told =
            log.iter().filter(|event| event.decision == decision && event.reason.as_deref() == Some(code.as_str()));
        told.count()
    };
    for code in codes {
        assert_eq!((count("refused", code), count("withheld", code)), (60, 1), "{code:?}");
    }
}
