//! What a node shows: compared with what was asked of it, and through drains, lost connections and full disks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod support;

use cluster::backed::Backed;
use cluster::signer::{digest_input, frost, message_input, to_m2};
use cluster::{Cluster, call, refused};
use futures::StreamExt;
use std::process::Command;
use std::time::{Duration, Instant};
use support::process::Process;
use support::scrape::{Scrape, Shown};
use tempfile::TempDir;
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::wire::node::{NodeReply, NodeRequest, SignOutcome};
use trefoil::wire::{Curve, ErrorCode, SignInput};
use trefoil_protocol::Party;

/// Long enough that no session ends by itself.
const SETTINGS: [(&str, &str); 2] = [("METRICS_LISTEN", "127.0.0.1:0"), ("SESSION_TTL_SECONDS", "600")];

/// A cluster's node 1 as a process.
struct Measured {
    cluster: Cluster,
    process: Process,
    shown: Shown,
    log: TempDir,
    starts: u32,
}

impl Measured {
    async fn start() -> Self {
        Self::of(Cluster::with(&SETTINGS).await).await
    }

    async fn of(mut cluster: Cluster) -> Self {
        cluster.drain_node(Party::Node1).await;
        let log = tempfile::tempdir().unwrap();
        let process = spawn(&cluster, &log, 1);
        let shown = Shown::of(&process);
        let mut measured = Self { cluster, process, shown, log, starts: 1 };
        measured.serving().await;
        measured
    }

    async fn serving(&mut self) {
        self.process.wait_for("serving");
        self.renew().await;
    }

    /// A new channel. A handshake may still have gone to the process before.
    async fn renew(&self) {
        let started = Instant::now();
        while let Err(error) = self.cluster.to1.renew().await {
            assert!(started.elapsed() < support::PATIENCE, "no channel: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn restart(&mut self) {
        assert!(self.process.terminate().success());
        self.starts += 1;
        self.process = spawn(&self.cluster, &self.log, self.starts);
        self.shown = Shown::of(&self.process);
        self.serving().await;
    }

    /// `trefoil healthcheck` of the node: its exit code and what it says.
    fn healthcheck(&self) -> (Option<i32>, String) {
        let mut command = support::command("trefoil");
        command.env("TREFOIL_METRICS_LISTEN", self.shown.address());
        let done = command.arg("healthcheck").output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    }
}

/// Started so that its files can be limited later.
fn spawn(cluster: &Cluster, log: &TempDir, start: u32) -> Process {
    let mut command = Command::new("sh");
    // Without the trap the signal would end the process before the error could.
    command.args(["-c", "trap '' XFSZ; exec \"$0\""]).arg(support::binary("trefoil-node"));
    command.envs(cluster.env(Party::Node1));
    Process::spawn("trefoil-node", command, &log.path().join(format!("node1.{start}.log")))
}

/// From now on none of its files grows beyond this.
fn limit_files(node: &Process, bytes: u32) {
    let arguments = [format!("--pid={}", node.id()), format!("--fsize={bytes}:{bytes}")];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
}

fn requests(scrape: &Scrape, round: &str) -> f64 {
    scrape.value(&format!("trefoil_node_requests_total{{code=\"\",outcome=\"ok\",round=\"{round}\"}}"))
}

fn refusals(scrape: &Scrape, round: &str, code: ErrorCode) -> f64 {
    scrape.value(&format!("trefoil_node_requests_total{{code=\"{code}\",outcome=\"refused\",round=\"{round}\"}}"))
}

fn sessions(scrape: &Scrape, op: &str, curve: &str, outcome: &str) -> f64 {
    scrape.value(&format!("trefoil_sessions_total{{curve=\"{curve}\",op=\"{op}\",outcome=\"{outcome}\"}}"))
}

fn attempts(scrape: &Scrape) -> [f64; 4] {
    ["right", "wrong", "unknown", "refused"]
        .map(|outcome| scrape.value(&format!("trefoil_password_attempts_total{{outcome=\"{outcome}\"}}")))
}

fn keys(scrape: &Scrape) -> [f64; 2] {
    ["secp256k1", "ed25519"].map(|curve| scrape.get(&format!("trefoil_keys{{curve=\"{curve}\"}}")).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_counts_what_was_asked_of_it() {
    let mut node = Measured::start().await;
    let new = node.shown.scrape();
    // What alerts compare with before is there before anything happens.
    for outcome in ["right", "wrong", "unknown", "refused"] {
        assert_eq!(new.get(&format!("trefoil_password_attempts_total{{outcome=\"{outcome}\"}}")), Some(0.0));
    }
    for zero in [
        "replays_total",
        "key_locks_total",
        "audit_failures_total",
        "audit_lost_total",
        "store_failures_total",
        "sessions_open",
    ] {
        assert_eq!(new.get(&format!("trefoil_{zero}")), Some(0.0), "{zero}");
    }
    assert_eq!(new.get("trefoil_node_rejects_total{outcome=\"forged\"}"), Some(0.0));
    assert_eq!(new.get("trefoil_backup_timestamp_seconds"), None, "none are configured");
    assert_eq!(new.get("trefoil_certificate_expiry_timestamp_seconds"), None, "no TLS");
    assert_eq!(new.value("trefoil_nats_connected"), 1.0);
    assert_eq!(keys(&new), [0.0, 0.0]);
    assert!(new.value("process_start_time_seconds") > 0.0);

    let cluster = &node.cluster;
    let ecdsa = cluster.committed_key("g1", Curve::Secp256k1).await;
    let eddsa = cluster.committed_key("g2", Curve::Ed25519).await;
    let job = cluster.sign_job("s1", ecdsa.id(), &digest_input());
    to_m2(cluster, &ecdsa, &job, 0).await.unwrap().finish().await;
    let job = cluster.sign_job("s2", eddsa.id(), &message_input(b"hello"));
    frost(cluster, &eddsa, &job, b"hello").await.unwrap();
    // A wrong password; a session that another worker takes over; the same id for something else.
    let job = cluster.sign_job("s3", ecdsa.id(), &digest_input());
    let wrong = to_m2(cluster, &ecdsa, &job, 0).await.unwrap();
    let outcome = SignOutcome::Abort { check: ErrorCode::WrongPassword.as_str().to_owned(), ban: false };
    let close = NodeRequest::SignClose { session: wrong.session, outcome };
    assert!(matches!(wrong.link.call(&call(close)).await.unwrap(), NodeReply::Closed));
    let job = cluster.sign_job("s4", ecdsa.id(), &digest_input());
    let _left = to_m2(cluster, &ecdsa, &job, 0).await.unwrap();
    to_m2(cluster, &ecdsa, &job, 0).await.unwrap().finish().await;
    let other = cluster.sign_job("s1", ecdsa.id(), &SignInput::Secp256k1 { digest: [1; 32], path: None });
    assert_eq!(to_m2(cluster, &ecdsa, &other, 0).await.err(), Some(ErrorCode::JobIdReused));

    let scrape = node.shown.scrape();
    for (round, count) in [
        ("generate_open", 2.0),
        ("generate_round1", 2.0),
        ("generate_round5", 2.0),
        // The client asks for it twice.
        ("generate_prepare", 4.0),
        ("commit", 2.0),
        ("sign_open", 4.0),
        ("sign_round2", 2.0),
        ("frost_sign", 1.0),
        ("sign_close", 4.0),
    ] {
        assert_eq!(requests(&scrape, round), count, "{round}");
        let took = scrape.value(&format!("trefoil_node_request_duration_seconds_count{{round=\"{round}\"}}"));
        assert_eq!(took, if round == "sign_open" { 5.0 } else { count }, "{round}");
    }
    assert_eq!(refusals(&scrape, "sign_open", ErrorCode::JobIdReused), 1.0);
    assert_eq!(scrape.sum("trefoil_node_requests_total", &[("outcome", "refused")]), 1.0);
    assert_eq!(scrape.value("trefoil_replays_total"), 1.0);
    assert_eq!(sessions(&scrape, "generate", "secp256k1", "completed"), 1.0);
    assert_eq!(sessions(&scrape, "generate", "ed25519", "completed"), 1.0);
    assert_eq!(sessions(&scrape, "sign", "secp256k1", "completed"), 2.0);
    assert_eq!(sessions(&scrape, "sign", "ed25519", "completed"), 1.0);
    assert_eq!(sessions(&scrape, "sign", "secp256k1", "failed"), 1.0);
    assert_eq!(sessions(&scrape, "sign", "secp256k1", "forgotten"), 1.0);
    assert_eq!(scrape.sum("trefoil_sessions_total", &[]), 7.0);
    assert_eq!(scrape.value("trefoil_sessions_open"), 2.0, "the generations wait for their time to be over");
    assert_eq!(scrape.value("trefoil_partial_signatures_total{curve=\"secp256k1\"}"), 2.0);
    assert_eq!(scrape.value("trefoil_partial_signatures_total{curve=\"ed25519\"}"), 1.0);
    assert_eq!(attempts(&scrape), [3.0, 1.0, 1.0, 0.0]);
    assert_eq!(keys(&scrape), [1.0, 1.0]);
    assert!(scrape.value("trefoil_channels_open") >= 1.0);
    assert_eq!(scrape.value("trefoil_node_requests_in_flight"), 0.0);
    assert!(scrape.value("trefoil_store_commit_duration_seconds_count") >= 9.0);
    assert!(scrape.value("trefoil_audit_append_duration_seconds_count") >= 6.0);
    let health = [
        "audit_failures_total",
        "audit_lost_total",
        "store_failures_total",
        "key_locks_total",
        "nats_disconnects_total",
    ];
    assert!(health.iter().all(|name| scrape.get(&format!("trefoil_{name}")) == Some(0.0)));

    // A check that locks the key.
    let job = cluster.sign_job("s5", ecdsa.id(), &digest_input());
    let midway = to_m2(cluster, &ecdsa, &job, 0).await.unwrap();
    let mut m2 = midway.m2.clone();
    m2[16 + 33 + 16 + 100] ^= 1; // one bit of one column of U
    assert_eq!(refused(midway.send(m2).await), ErrorCode::ProtocolAbort);
    let scrape = node.shown.scrape();
    assert_eq!(scrape.value("trefoil_key_locks_total"), 1.0);
    assert_eq!(refusals(&scrape, "sign_round2", ErrorCode::ProtocolAbort), 1.0);
    assert_eq!(keys(&scrape), [1.0, 1.0], "a locked key waits for new shares");

    let before = audit::verify(&cluster.data(Party::Node1).join(AUDIT_LOG), None).unwrap().entries;
    node.restart().await;
    assert_eq!(keys(&node.shown.scrape()), [1.0, 1.0], "as counted when the store was opened");
    let written = audit::verify(&node.cluster.data(Party::Node1).join(AUDIT_LOG), None).unwrap().entries;
    // "stopped" is the old process's.
    let entries = node.shown.scrape().value("trefoil_audit_entries_total");
    assert_eq!(entries, (written - before - 1) as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_counts_what_it_was_not_asked() {
    let node = Measured::start().await;
    let cluster = &node.cluster;
    let mut tap = cluster.client.subscribe("mpc.node.node1.i.>").await.unwrap();
    cluster.client.flush().await.unwrap();
    let job = cluster.key_info_job("i", cluster.key_id("none"));
    assert_eq!(refused(cluster.ask1(NodeRequest::KeyInfo { job }).await), ErrorCode::UnknownKey);
    let seen = tap.next().await.unwrap();
    let mut forged = seen.payload.to_vec();
    forged[20] ^= 1;
    let mut unknown = seen.payload.to_vec();
    unknown[1] ^= 1;
    for payload in [seen.payload.to_vec(), forged, unknown, vec![]] {
        cluster.client.publish(seen.subject.clone(), payload.into()).await.unwrap();
    }
    cluster.client.publish("mpc.node.node1.handshake", "hello".into()).await.unwrap();
    cluster.client.flush().await.unwrap();
    let rejects = |scrape: &Scrape, outcome: &str| {
        scrape.get(&format!("trefoil_node_rejects_total{{outcome=\"{outcome}\"}}")).unwrap()
    };
    let scrape = node.shown.wait_until("all counted", |scrape| scrape.sum("trefoil_node_rejects_total", &[]) == 5.0);
    for (outcome, count) in
        [("replayed", 1.0), ("forged", 1.0), ("unknown_channel", 1.0), ("malformed", 2.0), ("stale", 0.0)]
    {
        assert_eq!(rejects(&scrape, outcome), count, "{outcome}");
    }
    assert_eq!(scrape.sum("trefoil_node_requests_total", &[]), 1.0, "no request was carried out twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_ready_while_it_can_serve() {
    let mut node = Measured::start().await;
    let well = (200, "ok\n".to_owned());
    assert_eq!(node.shown.get("/readyz"), Some(well.clone()));
    assert_eq!(node.healthcheck(), (Some(0), String::new()));

    node.cluster.nats.kill9();
    node.shown.wait_until_ready_says((503, "not connected to NATS\n"));
    assert_eq!(node.shown.get("/livez"), Some(well.clone()));
    let (code, said) = node.healthcheck();
    assert_eq!(code, Some(1));
    assert!(said.contains("not connected to NATS"), "{said}");
    node.shown.wait_until("disconnected", |scrape| {
        scrape.value("trefoil_nats_connected") == 0.0 && scrape.value("trefoil_nats_disconnects_total") == 1.0
    });
    node.cluster.nats.restart();
    node.shown.wait_until_ready_says((200, "ok\n"));
    node.shown.wait_until("connected", |scrape| scrape.value("trefoil_nats_connected") == 1.0);

    // A drain waits for this session.
    node.renew().await;
    let key = node.cluster.committed_key("g1", Curve::Secp256k1).await;
    let job = node.cluster.sign_job("s1", key.id(), &digest_input());
    let midway = to_m2(&node.cluster, &key, &job, 0).await.unwrap();
    node.process.signal("TERM");
    node.shown.wait_until_ready_says((503, "draining\n"));
    assert_eq!(node.shown.get("/livez"), Some(well));
    // It waits for no report of what came of it.
    assert!(matches!(midway.send(midway.m2.clone()).await, NodeReply::SignRound3 { .. }));
    assert!(node.process.wait().success());
    assert_eq!(node.shown.get("/livez"), None);
}

/// The process ends, so whoever reads its metrics must have heard why before.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_write_is_heard_before_it_ends() {
    let cluster = Cluster::with(&SETTINGS).await;
    let (job, contribution) = (cluster.generate_job("g1", Curve::Ed25519), [1; 32]);
    let blinded_password = Some(cluster::blinded(cluster.key_id("g1")).element());
    let question = NodeRequest::KeyInfo { job: cluster.key_info_job("i", cluster.key_id("none")) };
    let open = NodeRequest::GenerateOpen { job, contribution, blinded_password, proof: None, identities: None };
    let mut node = Measured::of(cluster).await;
    for (limit, request, why, metric) in [
        (1, question, "the audit log cannot be written", "trefoil_audit_failures_total"),
        (8_192, open, "the store cannot be written", "trefoil_store_failures_total"),
    ] {
        limit_files(&node.process, limit);
        let _ = node.cluster.to1.call(&call(request)).await;
        node.process.wait_for("the node ends when its metrics were read");
        assert_eq!(node.shown.get("/readyz"), Some((503, format!("{why}\n"))));
        assert!(node.shown.scrape().value(metric) >= 1.0, "{metric}");
        assert_eq!(node.process.wait().code(), Some(1));
        assert!(node.process.log().lines().last().unwrap().contains(why), "{}", node.process.log());
        node.starts += 1;
        node.process = spawn(&node.cluster, &node.log, node.starts);
        node.shown = Shown::of(&node.process);
        node.serving().await;
        assert_eq!(node.shown.scrape().value(metric), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_shows_when_its_newest_backup_was_made() {
    let Backed { cluster, folder, .. } = Backed::with(&SETTINGS).await;
    let mut node = Measured::of(cluster).await;
    let shown = |node: &Measured| node.shown.scrape().get("trefoil_backup_timestamp_seconds");
    assert_eq!(shown(&node), Some(0.0), "none yet");
    let env = node.cluster.env(Party::Node1);
    let (code, told) = cluster::backed::trefoil(&env, &["node", "backup"]).await;
    assert_eq!(code, Some(0), "{told}");
    let taken = told["takenAt"].as_u64().unwrap() as f64 / 1_000.0;
    assert_eq!(shown(&node), Some(taken));

    let hidden = folder.path().join("hidden");
    std::fs::rename(&env["TREFOIL_BACKUP_DIR"], &hidden).unwrap();
    let (code, failed) = cluster::backed::trefoil(&env, &["node", "backup"]).await;
    assert_ne!(code, Some(0), "{failed}");
    assert_eq!(shown(&node), Some(taken), "the last one still counts");
    assert_eq!(node.shown.scrape().value("trefoil_backup_failures_total"), 1.0);
    std::fs::rename(&hidden, &env["TREFOIL_BACKUP_DIR"]).unwrap();

    node.restart().await;
    let written = std::fs::metadata(cluster::backed::file(&told)).unwrap().modified().unwrap();
    let written = written.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert_eq!(shown(&node), Some(written), "by its file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_node_shows_how_many_keys_are_in_doubt() {
    let mut backed = Backed::with(&SETTINGS).await;
    for job in ["g1", "g2"] {
        backed.cluster.committed_key(job, Curve::Ed25519).await;
    }
    let told = backed.backup(Party::Node1).await;
    backed.replace(Party::Node1, &cluster::backed::file(&told)).await;
    let node = Measured::of(backed.cluster).await;
    let shown = || node.shown.scrape().value("trefoil_quarantine_keys");
    assert_eq!(shown(), 2.0);
    let job = node.cluster.key_info_job("i1", node.cluster.key_id("g1"));
    let question = NodeRequest::KeyInfo { job };
    let NodeReply::Unconfirmed { key_id, transcript, nonce } = node.cluster.ask1(question).await else {
        panic!("not in doubt")
    };
    let other = NodeRequest::EpochOf { key_id, transcript, nonce };
    let NodeReply::EpochOf { statement, signature } = node.cluster.ask2(other).await else { panic!("no word") };
    let confirmed = node.cluster.ask1(NodeRequest::ConfirmEpoch { statement, signature }).await;
    assert!(matches!(confirmed, NodeReply::Confirmed), "{confirmed:?}");
    assert_eq!(shown(), 1.0);
    assert_eq!(keys(&node.shown.scrape()), [0.0, 2.0]);
}
