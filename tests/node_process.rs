//! The node as a process: what it prints when it cannot start, what a kill leaves, how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::signer::{digest_input, to_m2};
use cluster::{Cluster, call, digest, link, refused};
use futures::StreamExt;
use support::process::Process;
use trefoil::channel::ChannelError;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest};
use trefoil::wire::{Curve, ErrorCode, SignInput};
use trefoil_protocol::Party;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::Request;
use trefoil_protocol::ecdsa::client::Client;

fn spawn(cluster: &Cluster, log: &tempfile::TempDir) -> Process {
    let mut command = support::command("trefoil-node");
    command.envs(cluster.env(Party::Node1));
    Process::spawn("trefoil-node", command, &log.path().join("node1.log"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_has_burned_what_it_released() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    cluster.drain_node(Party::Node1).await;
    let log = tempfile::tempdir().unwrap();
    let mut node = spawn(&cluster, &log);
    node.wait_for("serving");
    cluster.until_heard(Party::Node1, true).await;

    let input = SignInput::Secp256k1 { digest: [3; 32], path: Some("m/0/7".into()) };
    let job = cluster.sign_job("s1", key.id(), &input);
    let _ = cluster.to1.call(&call(NodeRequest::KeyInfo { job: job.clone() })).await.unwrap();
    let link = link(&cluster.to1).await;
    let path = DerivationPath::parse("m/0/7").unwrap();
    let request = Request { channel_hash: link.hash(), job_digest: digest(&job), digest: [3; 32], path };
    let open = NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0));
    let (session, m1) = cluster::opened(link.call(&call(open)).await.unwrap());
    let client = Client::new(key.share.clone(), request, [1; 32]).unwrap();
    let (client, m2) = client.advance(&m1, &mut rand_core::OsRng).unwrap();
    let round2 = NodeRequest::SignRound2 { session, m2: m2.clone() };
    let NodeReply::SignRound3 { m3 } = link.call(&call(round2)).await.unwrap() else { panic!("no m3") };
    node.kill9();
    client.finish(&m3).unwrap();
    let path = cluster.data(Party::Node1).join(AUDIT_LOG);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().last().unwrap().contains(r#""decision":"released""#), "{text}");
    audit::verify(&path, None).unwrap();

    let mut node = spawn(&cluster, &log);
    node.wait_for("serving");
    cluster.until_heard(Party::Node1, true).await;
    let again = NodeRequest::SignRound2 { session, m2 };
    assert_eq!(link.call(&call(again)).await.err(), Some(ChannelError::Lost));
    let info = NodeRequest::KeyInfo { job: cluster.key_info_job("i1", key.id()) };
    assert!(matches!(cluster.ask1(info).await, NodeReply::KeyInfo { .. }));
    // The ledger survived too.
    let other = cluster.sign_job("s1", key.id(), &SignInput::Secp256k1 { digest: [4; 32], path: None });
    let open = NodeRequest::SignOpen(cluster.open(&key, &other, [1; 32], 0));
    assert_eq!(refused(cluster.ask1(open).await), ErrorCode::JobIdReused);
    assert!(node.terminate().success());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().last().unwrap().contains(r#""decision":"stopped""#));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_says_why() {
    let mut cluster = Cluster::start().await;
    let log = tempfile::tempdir().unwrap();
    // The data directory is in use.
    let mut node = spawn(&cluster, &log);
    assert_eq!(node.wait().code(), Some(1));
    assert!(node.log().contains("another process has the store open"), "{}", node.log());
    cluster.drain_node(Party::Node1).await;

    let mut command = support::command("trefoil-node");
    command.env("TREFOIL_ROLE", "node9").env("TREFOIL_TYPO", "1");
    let mut node = Process::spawn("trefoil-node", command, &log.path().join("bad.log"));
    assert_eq!(node.wait().code(), Some(1));
    for problem in ["role:", "typo: unknown setting", "nats_url: must be set", "master_key: must be set"] {
        assert!(node.log().contains(problem), "{problem} missing in {}", node.log());
    }

    // A log that somebody shortened.
    let path = cluster.data(Party::Node1).join(AUDIT_LOG);
    cluster.start_node(Party::Node1).await;
    cluster.committed_key("g1", Curve::Ed25519).await;
    cluster.drain_node(Party::Node1).await;
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{}\n", text.lines().next().unwrap())).unwrap();
    let mut node = spawn(&cluster, &log);
    assert_eq!(node.wait().code(), Some(1));
    assert!(node.log().contains("the log ends at 1 entries"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ends_when_told_to_while_nats_is_away() {
    let mut cluster = Cluster::start().await;
    cluster.drain_node(Party::Node1).await;
    let log = tempfile::tempdir().unwrap();
    let mut node = spawn(&cluster, &log);
    node.wait_for("serving");
    cluster.nats.kill9();
    assert!(node.terminate().success());
    let path = cluster.data(Party::Node1).join(AUDIT_LOG);
    let entries = || std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(entries().last().unwrap().contains(r#""decision":"stopped""#));
    // And where there was no server from the start.
    let before = entries().len();
    let mut node = spawn(&cluster, &log);
    node.wait_for("nats");
    assert!(node.terminate().success());
    assert_eq!(entries().len(), before, "it never started to serve");
}

/// A node whose files can grow no further from the moment that its end is near.
fn spawn_limited(cluster: &Cluster, log: &tempfile::TempDir) -> Process {
    let mut command = std::process::Command::new("sh");
    // Without the trap the signal would end the process before the error could.
    command.args(["-c", "trap '' XFSZ; exec \"$0\""]).arg(support::binary("trefoil-node"));
    command.envs(cluster.env(Party::Node1));
    Process::spawn("trefoil-node", command, &log.path().join("limited.log"))
}

fn limit_files(node: &Process, bytes: u32) {
    let arguments = [format!("--pid={}", node.id()), format!("--fsize={bytes}:{bytes}")];
    assert!(std::process::Command::new("prlimit").args(arguments).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_write_says_so_and_ends() {
    let mut cluster = Cluster::start().await;
    cluster.drain_node(Party::Node1).await;
    let log = tempfile::tempdir().unwrap();
    // A refused question writes into the log only, and its answer does not wait for that.
    let question = NodeRequest::KeyInfo { job: cluster.key_info_job("i", cluster.key_id("none")) };
    let (job, contribution) = (cluster.generate_job("g1", Curve::Ed25519), [1; 32]);
    let blinded_password = Some(cluster::blinded(cluster.key_id("g1")).element());
    let open = NodeRequest::GenerateOpen { job, contribution, blinded_password, proof: None, identities: None };
    for (limit, request, code, said) in [
        (1, question, ErrorCode::UnknownKey, "the audit log cannot be written"),
        // Not the job's fault: it is tried again.
        (8_192, open, ErrorCode::NodeUnavailable, "the store cannot be written"),
    ] {
        let mut node = spawn_limited(&cluster, &log);
        node.wait_for("serving");
        cluster.until_heard(Party::Node1, true).await;
        let link = cluster.to1.renew().await.unwrap();
        limit_files(&node, limit);
        // It may be gone before its answer is.
        if let Ok(answer) = link.call(&call(request)).await {
            assert_eq!(refused(answer), code);
        }
        assert_eq!(node.wait().code(), Some(1));
        // Its last word, which is why it ended; the writers complain before.
        assert!(node.log().lines().last().unwrap().contains(said), "{}", node.log());
    }
    // With room again it serves again.
    let mut node = spawn(&cluster, &log);
    node.wait_for("serving");
    assert!(node.terminate().success());
}

/// m3 is made while both writes are under way.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_burned_and_logged_is_not_released() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    cluster.drain_node(Party::Node1).await;
    let log = tempfile::tempdir().unwrap();
    let audit = cluster.data(Party::Node1).join(AUDIT_LOG);
    for (job_id, log_grows) in [("s1", false), ("s2", true)] {
        let mut node = spawn_limited(&cluster, &log);
        node.wait_for("serving");
        cluster.until_heard(Party::Node1, true).await;
        cluster.to1.renew().await.unwrap();
        let job = cluster.sign_job(job_id, key.id(), &digest_input());
        let midway = to_m2(&cluster, &key, &job, 0).await.unwrap();
        // The store's pages are far behind the log's end.
        let length = std::fs::metadata(&audit).unwrap().len() as u32;
        limit_files(&node, if log_grows { length + 4_096 } else { 1 });
        let round2 = NodeRequest::SignRound2 { session: midway.session, m2: midway.m2.clone() };
        // It may be gone before its answer is.
        if let Ok(answer) = midway.link.call(&call(round2)).await {
            assert_eq!(refused(answer), ErrorCode::NodeUnavailable);
        }
        assert_eq!(node.wait().code(), Some(1));
        let text = std::fs::read_to_string(&audit).unwrap();
        for decision in ["released", "withdrawn"] {
            assert_eq!(text.contains(&format!("\"decision\":\"{decision}\"")), log_grows, "{decision}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_loads_the_policy_again() {
    let mut cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    cluster.drain_node(Party::Node1).await;
    let log = tempfile::tempdir().unwrap();
    let mut node = spawn(&cluster, &log);
    node.wait_for("serving");
    cluster.until_heard(Party::Node1, true).await;
    let question = || NodeRequest::KeyInfo { job: cluster.key_info_job("i", key.id()) };
    let _ = cluster.to1.call(&call(question())).await;
    assert!(matches!(cluster.ask1(question()).await, NodeReply::KeyInfo { .. }));

    let good = std::fs::read_to_string(cluster.node1.policy()).unwrap();
    let path = cluster.node1.policy();
    std::fs::write(&path, good.replace("raw_digests", "raw_digest")).unwrap();
    node.signal("HUP");
    node.wait_for("the old policy stays in force");
    assert!(node.log().contains("line 7: unknown key `raw_digest`"), "{}", node.log());
    assert!(matches!(cluster.ask1(question()).await, NodeReply::KeyInfo { .. }));

    std::fs::write(&path, good.replace("\"public-key\",", "").replace(",\"public-key\"", "")).unwrap();
    node.signal("HUP");
    node.wait_for("the policy was loaded again");
    assert_eq!(refused(cluster.ask1(question()).await), ErrorCode::NotPermitted);
    assert!(node.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_are_shown_by_nats() {
    let cluster = Cluster::start().await;
    for role in [Party::Node1, Party::Node2] {
        cluster.until_large_heard(role).await;
    }
    let mut answers = cluster.client.subscribe("inbox").await.unwrap();
    cluster.client.publish_with_reply("$SRV.INFO", "inbox", "".into()).await.unwrap();
    let mut services = Vec::new();
    for _ in 0..4 {
        let info: serde_json::Value = serde_json::from_slice(&answers.next().await.unwrap().payload).unwrap();
        services.push((info["name"].as_str().unwrap().to_owned(), info["endpoints"].as_array().unwrap().len()));
    }
    services.sort();
    // Handshakes and calls; large calls come by a connection of their own.
    let expected = [("trefoil-node1", 2), ("trefoil-node1-large", 1), ("trefoil-node2", 2), ("trefoil-node2-large", 1)];
    assert_eq!(services, expected.map(|(name, endpoints)| (name.to_owned(), endpoints)));
}

/// Nothing that a node writes or logs holds a secret in the clear.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_the_disk_or_the_log() {
    let mut cluster = Cluster::start().await;
    cluster.drain_node(Party::Node1).await;
    let log = tempfile::tempdir().unwrap();
    let mut node = spawn(&cluster, &log);
    node.wait_for("serving");
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    assert!(node.terminate().success());
    let mut files: Vec<Vec<u8>> =
        ["store.redb", "slots", AUDIT_LOG].map(|name| cluster::read(&cluster.data(Party::Node1).join(name))).into();
    files.push(node.log().into_bytes());
    let env = cluster.env(Party::Node1);
    for name in ["TREFOIL_MASTER_KEY", "TREFOIL_IDENTITY_SEED", "TREFOIL_NOISE_KEY"] {
        let canary = env[name].as_bytes();
        assert!(files.iter().all(|file| !file.windows(canary.len()).any(|window| window == canary)), "{name}");
    }
    // The master key's bytes, and the fixed start of a stored share.
    let share = [&[1_u8, 2, 2], &key.id().0[..]].concat();
    for canary in [vec![7; 32], share] {
        assert!(files.iter().all(|file| !file.windows(canary.len()).any(|window| window == canary)));
    }
}
