//! The accounts and permissions of deploy/nats, as `trefoil nats-accounts` writes them: the service runs on them, and each identity
//! is refused what is not its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::{Client, ConnectOptions, Event, RequestErrorKind};
use deployment::load::{self, Load};
use deployment::{Deployment, PASSWORD, digest, material, message, password};
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::collections::HashMap;
use support::{NatsServer, command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use trefoil::client::Backend;
use trefoil::wire::{Curve, KdfParams, Lane, Method};

const WHO: [&str; 8] = ["worker", "node1", "node2", "monitor", "operator", "system", "wallet", "other"];
const PREFIX: &str = "TREFOIL.JS.API";

/// The service behind the accounts, and the keys of all connections.
struct Guarded {
    service: Deployment,
    keys: HashMap<&'static str, KeyPair>,
}

impl Guarded {
    fn start() -> Self {
        let keys: HashMap<_, _> = WHO.iter().map(|who| (*who, KeyPair::new_user())).collect();
        let (initiator, limited) = (KeyPair::new_user(), KeyPair::new_user());
        let mut service = Deployment::on(NatsServer::with_config(&accounts(&keys, &initiator, &limited, &[])));
        (service.initiator, service.limited) = (initiator, limited);
        for (who, key) in &keys {
            std::fs::write(service.path(&format!("{who}.seed")), key.seed().unwrap()).unwrap();
        }
        let folder = service.folder.path().display().to_string();
        service.node_settings = vec![
            ("TREFOIL_NATS_NKEY_SEED_FILE", format!("{folder}/{{role}}.seed")),
            ("TREFOIL_NATS_INBOX_PREFIX", "_INBOX_{role}".to_owned()),
        ];
        service.worker_settings = vec![
            ("TREFOIL_NATS_NKEY_SEED_FILE", format!("{folder}/worker.seed")),
            ("TREFOIL_NATS_INBOX_PREFIX", "_INBOX_worker".to_owned()),
        ];
        service.start_node("node1");
        service.start_node("node2");
        service.start_worker("worker1");
        Self { service, keys }
    }

    fn seed(&self, who: &str) -> String {
        self.keys[who].seed().unwrap()
    }

    async fn backend(&self) -> Backend {
        let settings =
            [("TREFOIL_NATS_NKEY_SEED", self.seed("wallet")), ("TREFOIL_NATS_JETSTREAM_PREFIX", PREFIX.to_owned())];
        self.service.backend_with(&settings).await
    }

    /// Has the server take the accounts of these keys, and of more.
    fn reload(&self, more: &[(&str, String)]) {
        let Deployment { nats, initiator, limited, .. } = &self.service;
        nats.reload(&accounts(&self.keys, initiator, limited, more));
    }

    async fn connect(&self, who: &str) -> Identity {
        let (said, errors) = mpsc::unbounded_channel();
        let inbox =
            if self.keys.contains_key(who) && who != "wallet" { format!("_INBOX_{who}") } else { "_INBOX".to_owned() };
        let options =
            ConnectOptions::with_nkey(self.seed(who)).custom_inbox_prefix(inbox).event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    let _ = said.send(error.to_string());
                }
                std::future::ready(())
            });
        Identity { client: options.connect(self.service.nats.url()).await.unwrap(), errors }
    }
}

/// What the command line writes for these keys.
fn accounts(
    keys: &HashMap<&'static str, KeyPair>,
    initiator: &KeyPair,
    limited: &KeyPair,
    more: &[(&str, String)],
) -> String {
    let public = |who: &str| keys[who].public_key();
    let mut trefoil = command("trefoil");
    trefoil.arg("nats-accounts");
    for who in &WHO[..6] {
        trefoil.args([format!("--{who}"), public(who)]);
    }
    trefoil.args(["--backend".to_owned(), format!("WALLET={},{}", public("wallet"), initiator.public_key())]);
    trefoil.args(["--backend".to_owned(), format!("OTHER={},{}", public("other"), limited.public_key())]);
    for (who, key) in more {
        trefoil.args([format!("--{who}"), key.clone()]);
    }
    let done = trefoil.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// A connection, and what the server says against it.
struct Identity {
    client: Client,
    errors: mpsc::UnboundedReceiver<String>,
}

impl Identity {
    /// The server's word on what was just sent: refusals come in the order of what they refuse, so what has none has passed when a
    /// refusal comes that must.
    async fn refused(&mut self, kind: &str, subject: &str) -> bool {
        self.client.publish("nobody.may", "".into()).await.unwrap();
        self.client.flush().await.unwrap();
        let wanted = format!("Permissions Violation for {kind} to \"{subject}\"").to_lowercase();
        let mut refused = false;
        loop {
            let said = timeout(support::PATIENCE, self.errors.recv())
                .await
                .expect("the server answers")
                .unwrap()
                .to_lowercase();
            refused |= said.contains(&wanted);
            if said.contains("nobody.may") {
                return refused;
            }
        }
    }

    async fn may_publish(&mut self, subject: &str) -> bool {
        self.client.publish(subject.to_owned(), "".into()).await.unwrap();
        !self.refused("Publish", subject).await
    }

    async fn may_subscribe(&mut self, subject: &str) -> bool {
        let subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        let refused = self.refused("Subscription", subject).await;
        drop(subscription);
        !refused
    }

    /// The answer to a request of JetStream, or `None` where nobody is there to ask.
    async fn ask(&self, subject: &str, body: Value) -> Option<Value> {
        match self.client.request(subject.to_owned(), body.to_string().into()).await {
            Ok(answer) => Some(serde_json::from_slice(&answer.payload).unwrap_or(Value::Null)),
            Err(error) => {
                assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{subject}: {error}");
                None
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_runs_within_its_permissions() {
    let guarded = Guarded::start();
    let mut backend = guarded.backend().await;
    for (curve, lane) in [(Curve::Secp256k1, Lane::Interactive), (Curve::Ed25519, Lane::Bulk)] {
        backend.set_lane(lane);
        let new = backend.generate(curve, KdfParams::Hkdf, password_32()).await.unwrap();
        backend.committed(&new.key, support::PATIENCE).await.unwrap();
        let key = material(&new);
        let input = if curve == Curve::Ed25519 { message("m") } else { digest(7) };
        backend.sign(&key, Method::Default, &input, password_32()).await.unwrap();
        backend.validate(&key, password_32(), false).await.unwrap();
        assert!(backend.validate(&key, password(), true).await.is_err(), "a wrong password");
    }
    // A worker that was away finds its streams again, and reads the bans.
    guarded.service.running["worker1"].signal("TERM");
    let mut guarded = guarded;
    guarded.service.process("worker1").wait();
    guarded.service.start_worker("worker1");
    let new = backend.generate(Curve::Ed25519, KdfParams::Hkdf, password_32()).await.unwrap();
    backend.committed(&new.key, support::PATIENCE).await.unwrap();
    // Whoever watches sees what the worker tells of itself.
    let mut top = command("trefoil");
    top.args(["top", "--once", "--json"]).current_dir(guarded.service.folder.path());
    top.env("TREFOIL_NATS_URL", guarded.service.nats.url()).env("TREFOIL_NATS_NKEY_SEED", guarded.seed("monitor"));
    let seen = top.env("TREFOIL_NATS_INBOX_PREFIX", "_INBOX_monitor").output().unwrap();
    let said: Value = serde_json::from_slice(seen.stdout.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(said["workerId"], guarded.service.worker_id("worker1"), "{seen:?}");
    assert!(said["jobs"].as_array().is_some_and(|jobs| !jobs.is_empty()), "{said}");
    let log = guarded.service.nats.log();
    let violations: Vec<&str> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(violations.is_empty(), "{violations:#?}");
}

fn password_32() -> trefoil::vault::Password {
    trefoil::vault::Password::new(zeroize::Zeroizing::new([PASSWORD, b"...."].concat())).unwrap()
}

/// Subjects with the place of an id in them.
const ID: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn each_identity_is_refused_what_is_not_its_own() {
    let guarded = Guarded::start();
    let own = guarded.service.initiator.public_key();
    let job = format!("mpc.job.sign.{ID}");
    let bulk = format!("mpc.bulk.sign.{ID}");
    let result = format!("mpc.result.{own}.job");
    let (lease, ban, attempt) = (format!("mpc.lock.{ID}"), format!("mpc.ban.{ID}.0"), "mpc.attempt.1".to_owned());
    let delete = |stream: &str| format!("$JS.API.STREAM.DELETE.{stream}");
    let alter = ["MPC_JOBS", "MPC_BULK", "MPC_RESULTS", "MPC_BANS", "MPC_LEASES"].map(|stream| {
        ["DELETE", "PURGE", "UPDATE", "MSG.DELETE", "SNAPSHOT"].map(|what| format!("$JS.API.STREAM.{what}.{stream}"))
    });
    let alter: Vec<&str> = alter.iter().flatten().map(String::as_str).collect();

    let mut worker = guarded.connect("worker").await;
    for subject in
        [&alter[..], &[&job, &bulk, "mpc.job.sign", "$SYS.REQ.SERVER.PING", "$JS.API.CONSUMER.DELETE.MPC_JOBS.workers"]]
            .concat()
    {
        assert!(!worker.may_publish(subject).await, "a worker publishes {subject}");
    }
    for subject in
        [&job, "mpc.job.>", "mpc.bulk.>", "mpc.result.>", "mpc.node.node1.>", "_INBOX.>", "_INBOX_operator.>", ">"]
    {
        assert!(!worker.may_subscribe(subject).await, "a worker subscribes {subject}");
    }
    assert!(worker.may_subscribe("_INBOX_worker.x").await);

    for (who, other) in [("node1", "node2"), ("node2", "node1")] {
        let mut node = guarded.connect(who).await;
        let [own, others] = [who, other].map(|name| format!("mpc.node.{name}.handshake"));
        for subject in [
            &job,
            &bulk,
            &result,
            &lease,
            &ban,
            &own,
            &others,
            "mpc.event.sign.x",
            "$JS.API.INFO",
            "mpc.api.public-key",
        ] {
            assert!(!node.may_publish(subject).await, "{who} publishes {subject}");
        }
        for subject in [&others, "mpc.job.>", "mpc.bulk.>", "mpc.node.>", "mpc.result.>", "mpc.api.>", ">"] {
            assert!(!node.may_subscribe(subject).await, "{who} subscribes {subject}");
        }
        assert!(node.may_subscribe(&own).await);
    }

    let mut monitor = guarded.connect("monitor").await;
    let read = "$JS.API.STREAM.MSG.GET.MPC_RESULTS";
    let next = "$JS.API.CONSUMER.MSG.NEXT.MPC_JOBS.workers";
    let make = "$JS.API.CONSUMER.CREATE.MPC_RESULTS.x";
    for subject in
        [&alter[..], &[&job, &bulk, &result, &lease, &ban, &attempt, read, next, make, "mpc.event.sign.x"]].concat()
    {
        assert!(!monitor.may_publish(subject).await, "the monitor publishes {subject}");
    }
    for subject in ["mpc.job.>", "mpc.bulk.>", "mpc.result.>", "mpc.lock.>", "_INBOX_worker.>", ">"] {
        assert!(!monitor.may_subscribe(subject).await, "the monitor subscribes {subject}");
    }
    let info = monitor.ask("$JS.API.STREAM.INFO.MPC_JOBS", json!({})).await.unwrap();
    assert_eq!(info["config"]["name"], "MPC_JOBS", "the monitor sees the state of a stream");
    assert!(monitor.may_subscribe("mpc.event.>").await);

    let mut operator = guarded.connect("operator").await;
    for subject in [&job, &bulk, &result, &lease, &ban, &attempt, "mpc.node.node1.handshake", "mpc.event.sign.x"] {
        assert!(!operator.may_publish(subject).await, "the operator publishes {subject}");
    }
    for subject in ["mpc.job.>", "mpc.bulk.>", "mpc.result.>", "_INBOX_worker.>"] {
        assert!(!operator.may_subscribe(subject).await, "the operator subscribes {subject}");
    }

    let mut backend = guarded.connect("wallet").await;
    for subject in
        [&result, &lease, &ban, &attempt, "mpc.node.node1.handshake", "mpc.event.sign.x", &delete("MPC_JOBS"), next]
    {
        assert!(!backend.may_publish(subject).await, "a backend publishes {subject}");
    }
    for subject in ["mpc.job.>", "mpc.bulk.>", "mpc.result.>", "mpc.lock.>", "mpc.api.>", ">"] {
        assert!(!backend.may_subscribe(subject).await, "a backend subscribes {subject}");
    }
}

/// Backends have JetStream of their own results, and of nothing else: what is not imported has nobody to answer it.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_reads_its_own_results_only() {
    let guarded = Guarded::start();
    let (own, others) = (guarded.service.initiator.public_key(), guarded.service.limited.public_key());
    let backend = guarded.connect("wallet").await;
    let api = |what: &str| format!("{PREFIX}.{what}");
    for what in [
        "STREAM.MSG.GET.MPC_RESULTS",
        "STREAM.INFO.MPC_RESULTS",
        "STREAM.DELETE.MPC_RESULTS",
        "CONSUMER.MSG.NEXT.MPC_JOBS.workers",
    ] {
        assert_eq!(backend.ask(&api(what), json!({})).await, None, "{what}");
    }
    let result = |initiator: &str| api(&format!("DIRECT.GET.MPC_RESULTS.mpc.result.{initiator}.job"));
    assert_eq!(backend.ask(&result(&others), json!({})).await, None);
    assert!(backend.ask(&result(&own), json!({})).await.is_some(), "its own has an answer: not found");
    let consumer = |initiator: &str| api(&format!("CONSUMER.CREATE.MPC_RESULTS.mine.mpc.result.{initiator}.>"));
    let config = |initiator: &str| {
        json!({ "stream_name": "MPC_RESULTS", "config": {
            "name": "mine", "ack_policy": "none", "deliver_policy": "all", "max_deliver": 1, "mem_storage": true,
            "inactive_threshold": 5_000_000_000_u64, "filter_subject": format!("mpc.result.{initiator}.>"),
        } })
    };
    assert_eq!(backend.ask(&consumer(&others), config(&others)).await, None);
    let refused = backend.ask(&consumer(&own), config(&others)).await.unwrap();
    assert!(refused["error"]["code"].is_u64(), "another filter than the subject's: {refused}");
    let made = backend.ask(&consumer(&own), config(&own)).await.unwrap();
    assert_eq!(made["name"], "mine", "{made}");
}

/// Each key beside its old one, then the process, then the key alone: no job is lost, none ends in an error.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_connections_are_replaced_under_load() {
    let mut guarded = Guarded::start();
    let keys = load::keys(&guarded.backend().await).await;
    let load = Load::start(guarded.backend().await, keys);
    load.more(5).await;
    let next: HashMap<_, _> =
        ["worker", "node1", "node2", "wallet"].into_iter().map(|who| (who, KeyPair::new_user())).collect();
    let more = next.iter().map(|(who, key)| match *who {
        "wallet" => ("backend", format!("WALLET={},{}", key.public_key(), guarded.service.initiator.public_key())),
        who => (who, key.public_key()),
    });
    guarded.reload(&more.collect::<Vec<_>>());
    load.more(5).await;
    let mut old = Vec::new();
    for (who, key) in next {
        old.push(guarded.keys.insert(who, key).unwrap());
        std::fs::write(guarded.service.path(&format!("{who}.seed")), guarded.seed(who)).unwrap();
        let process = if who == "worker" { "worker1" } else { who };
        match who {
            "wallet" => load.move_to(guarded.backend().await).await,
            _ => assert!(guarded.service.running.remove(process).unwrap().terminate().success()),
        }
        match who {
            "wallet" => {}
            "worker" => guarded.service.start_worker(process),
            node => guarded.service.start_node(node),
        }
        load.more(5).await;
    }
    guarded.reload(&[]);
    load.more(5).await;
    let url = guarded.service.nats.url();
    for key in old {
        let late = ConnectOptions::with_nkey(key.seed().unwrap()).connect(&url).await;
        assert!(late.is_err(), "an old key is let in");
    }
    load.stop().await;
}

/// A key is in one place, and what signs jobs does not connect.
#[test]
fn a_key_has_one_use() {
    let keys: Vec<String> = (0..9).map(|_| KeyPair::new_user().public_key()).collect();
    let run = |more: &[String]| {
        let mut trefoil = command("trefoil");
        trefoil.arg("nats-accounts");
        for (who, key) in WHO[..6].iter().zip(&keys) {
            trefoil.args([format!("--{who}"), key.clone()]);
        }
        trefoil.args(["--backend".to_owned(), format!("WALLET={},{}", keys[6], keys[7])]);
        let done = trefoil.args(more).output().unwrap();
        (done.status.code().unwrap(), String::from_utf8([done.stdout, done.stderr].concat()).unwrap())
    };
    let backend = |name: &str, connection: &str, initiator: &str| {
        ["--backend".to_owned(), format!("{name}={connection},{initiator}")]
    };
    // Each key has all the permissions, and each signer its results.
    let (exit, text) = run(&backend("WALLET", &keys[6], &keys[8]));
    assert_eq!(exit, 0, "{text}");
    for line in text.lines().filter(|line| line.contains(&keys[7])) {
        assert!(text.contains(&line.replace(&keys[7], &keys[8])), "{line}");
    }
    let (exit, text) = run(&["--node1".to_owned(), keys[8].clone()]);
    assert_eq!((exit, text.matches("mpc.node.node1.>\", \"$SRV.>").count()), (0, 2), "{text}");
    for more in [
        ["--worker".to_owned(), keys[1].clone()],
        backend("OTHER", &keys[0], &keys[8]),
        backend("OTHER", &keys[8], &keys[7]),
        backend("OTHER", &keys[8], &keys[0]),
        backend("OTHER", &keys[7], &keys[8]),
    ] {
        let (exit, text) = run(&more);
        assert!(exit == 2 && text.contains("given twice"), "{more:?} {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_connect() {
    let guarded = Guarded::start();
    let url = guarded.service.nats.url();
    for options in [ConnectOptions::new(), ConnectOptions::with_nkey(KeyPair::new_user().seed().unwrap())] {
        let connected = options.connect(&url).await;
        assert!(connected.is_err(), "a stranger is let in");
    }
}
