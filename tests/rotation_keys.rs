//! The keys that sign jobs, that nodes sign with, and that open channels are replaced while jobs run, as docs/rotation.md says: no job is
//! lost, none ends in an error, and the old key is worth nothing in the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::load::{Load, job, keys, restart, results};
use deployment::{Deployment, NODE_READY, PATIENCE, QUICK, code, message, password};
use nkeys::{KeyPair, XKey};
use serde_json::Value;
use std::sync::Arc;
use trefoil::channel::{ChannelError, NodeChannel};
use trefoil::client::{Backend, ClientError, OldKey};
use trefoil::clock::now_ms;
use trefoil::config::keys::{noise_private, noise_public};
use trefoil::wire::{Curve, ErrorCode, KeyId, Method, Outcome};
use trefoil_protocol::Party;

const WORKERS: [&str; 2] = ["worker1", "worker2"];

/// Ends a node in good order and starts it again with the settings of now.
fn restart_node(service: &mut Deployment, name: &str) {
    assert!(service.running.remove(name).unwrap().terminate().success());
    service.launch_node(name);
    service.process(name).wait_for(NODE_READY);
}

async fn restart_workers(service: &mut Deployment, load: &Load) {
    for worker in WORKERS {
        restart(service, worker);
        load.more(5).await;
    }
}

/// Writes the policy of now, and has both nodes load it.
fn load_policies(service: &mut Deployment) {
    for node in ["node1", "node2"] {
        service.node_env(node);
        let process = service.process(node);
        let before = process.log().lines().count();
        process.signal("HUP");
        process.wait_for_after(before, "the policy was loaded again");
    }
}

async fn all_keys(backend: &Backend) -> Vec<KeyId> {
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = backend.keys(after, 2).await.unwrap();
        listed.extend(page.keys.iter().map(|key| key.key_id));
        after = page.next;
        if after.is_none() {
            return listed;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initiators_key_is_replaced_and_its_keys_stay_its_own() {
    let mut service = Deployment::start(2);
    let before = service.backend().await;
    let signing = keys(&before).await;
    let load = Load::start(service.backend().await, signing.clone());
    load.more(5).await;
    // Step 2: nodes, then workers.
    let old = std::mem::replace(&mut service.initiator, KeyPair::new_user());
    service.other_initiators = vec![old.public_key()];
    load_policies(&mut service);
    restart_workers(&mut service, &load).await;
    // Step 3: the backend. The old key still signs, also with a key that was made under the new one.
    let after = service.backend().await;
    load.move_to(service.backend().await).await;
    load.more(5).await;
    let made = deployment::new_key(&after, Curve::Ed25519).await;
    let input = message("m");
    before.sign(&made, Method::Default, &input, password()).await.unwrap();
    let mut all: Vec<KeyId> = signing.iter().chain([&made]).map(|key| key.key_id).collect();
    all.sort();
    assert_eq!(all_keys(&after).await, all);
    assert_eq!(all_keys(&before).await, all);
    // What was attested under the old name is believed, and by nobody who does not have that name.
    let known = after.public_key(signing[0].key_id).await.unwrap();
    assert_eq!(known.initiator.to_string(), old.public_key());
    let unnamed = service.backend_with(&[("TREFOIL_FORMER_INITIATORS", String::new())]).await;
    assert!(matches!(unnamed.public_key(signing[0].key_id).await, Err(ClientError::Untrusted(_))));
    let stranger = [("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap())];
    let stranger = service.backend_with(&stranger).await;
    let result = stranger.run(&job(&stranger, &signing[0], PATIENCE)).await.unwrap();
    assert_eq!(code(&result), ErrorCode::NotPermitted);
    // Step 5: the old key signs nothing any more, and what it owned stays.
    service.former_initiators = std::mem::take(&mut service.other_initiators);
    load_policies(&mut service);
    load.more(5).await;
    let result = before.run(&job(&before, &signing[0], PATIENCE)).await.unwrap();
    assert_eq!(code(&result), ErrorCode::UnknownInitiator);
    // Nor does a worker take its jobs.
    restart_workers(&mut service, &load).await;
    let Outcome::Error { error } = before.run(&job(&before, &signing[0], PATIENCE)).await.unwrap().outcome else {
        panic!()
    };
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::UnknownInitiator, "the workers do not know this initiator")
    );
    let done = load.stop().await;
    // Beside the load: the keys, the job of each backend at its turn, and the three that were refused.
    assert_eq!(results(&service).await, done + signing.len() + 5);
    // New shares are the new name's.
    let second = after.recover(&OldKey::from(&known), QUICK, password(), &service.authoriser).await.unwrap();
    after.committed(&second.key, PATIENCE).await.unwrap();
    assert_eq!(second.key.initiator.to_string(), service.initiator.public_key());
    let other = after.public_key(signing[1].key_id).await.unwrap();
    let refreshed = after.refresh(&OldKey::from(&other), &signing[1], password(), None, QUICK).await.unwrap();
    after.committed(&refreshed.key, PATIENCE).await.unwrap();
    assert_eq!(refreshed.key.initiator.to_string(), service.initiator.public_key());
    all.push(second.key.key_id);
    all.sort();
    assert_eq!(all_keys(&after).await, all, "each once, whatever name it is under");
    let mine = service.backend_with(&[("TREFOIL_FORMER_INITIATORS", String::new())]).await;
    assert_eq!(mine.public_key(second.key.key_id).await.unwrap().public_key, known.public_key);
}

/// Generates keys without a pause, beside the load of signing.
struct Making {
    over: Arc<std::sync::atomic::AtomicBool>,
    task: tokio::task::JoinHandle<usize>,
}

impl Making {
    fn start(backend: Backend) -> Self {
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let end = over.clone();
        let task = tokio::spawn(async move {
            let mut made = 0;
            while !end.load(std::sync::atomic::Ordering::SeqCst) {
                let new = backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap();
                backend.committed(&new.key, PATIENCE).await.unwrap();
                made += 1;
            }
            made
        });
        Self { over, task }
    }

    async fn stop(self) -> usize {
        self.over.store(true, std::sync::atomic::Ordering::SeqCst);
        self.task.await.unwrap()
    }
}

async fn identity_rotated(index: usize) {
    let [node, peer] = [["node1", "node2"][index], ["node2", "node1"][index]];
    let mut service = Deployment::new();
    // A node that ends waits for open sessions, also for those that were given up while the other one was away.
    service.node_settings = vec![("TREFOIL_DRAIN_SECONDS", "2".to_owned())];
    for name in ["node1", "node2"] {
        service.start_node(name);
    }
    for name in WORKERS {
        service.start_worker(name);
    }
    let generated = service
        .cli()
        .args(["generate", "--curve", "ed25519", "--memory-kib", "64", "--passes", "1", "--out", "k.key"])
        .output();
    let generated = generated.unwrap();
    assert!(generated.status.success(), "{generated:?}");
    let signing = keys(&service.backend().await).await;
    let load = Load::start(service.backend().await, signing.clone());
    // Step 2: everybody knows both.
    let next = KeyPair::new_server();
    service.nodes[index].other_identities = vec![next.public_key()];
    let knows_both = service.backend().await;
    let making = Making::start(service.backend().await);
    restart_node(&mut service, peer);
    load.more(5).await;
    restart_workers(&mut service, &load).await;
    load.move_to(service.backend().await).await;
    // Step 3: the node.
    let old = std::mem::replace(&mut service.nodes[index].identity, next);
    service.nodes[index].other_identities = vec![old.public_key()];
    service.nodes[index].former = vec![old.public_key()];
    restart_node(&mut service, node);
    load.more(5).await;
    let made = making.stop().await;
    assert!(made > 0);
    let earlier = knows_both.public_key(signing[0].key_id).await.unwrap();
    // Step 4: the old key files have the old evidence, until it is renewed.
    let update = |service: &Deployment| {
        let mut cli = service.cli();
        cli.args(["public-key", "--key", "k.key", "--update"]).output().unwrap()
    };
    let forgotten = service.path("forgotten.key");
    std::fs::copy(service.path("k.key"), &forgotten).unwrap();
    assert!(update(&service).status.success());
    // Step 5: nobody knows the old one.
    service.nodes[index].other_identities.clear();
    restart_node(&mut service, peer);
    load.more(5).await;
    restart_workers(&mut service, &load).await;
    load.move_to(service.backend().await).await;
    load.more(5).await;
    let backend = service.backend().await;
    for key in &signing {
        // Attested anew: what was made under the old identity is believed under the new one.
        assert_eq!(backend.public_key(key.key_id).await.unwrap().public_key, key.public_key);
    }
    load.stop().await;
    results(&service).await;
    let refreshed = backend.refresh(&OldKey::from(&earlier), &signing[0], password(), None, QUICK).await.unwrap();
    backend.committed(&refreshed.key, PATIENCE).await.unwrap();
    deployment::new_key(&backend, Curve::Secp256k1).await;
    assert!(update(&service).status.success(), "the key file does not need the old one any more");
    // Nor is it needed to renew one that has nothing but its signature, as where it was taken away at once.
    let shown = |service: &Deployment, more: &[&str]| {
        let mut cli = service.cli();
        cli.args(["public-key", "--key", "forgotten.key"]).args(more).output().unwrap().status.code()
    };
    assert_eq!(shown(&service, &[]), Some(4), "not believed");
    let mut other: Value = serde_json::from_slice(&std::fs::read(&forgotten).unwrap()).unwrap();
    other["key"]["chainCode"] = "00".repeat(32).into();
    let genuine = std::fs::read(&forgotten).unwrap();
    std::fs::write(&forgotten, other.to_string()).unwrap();
    assert_eq!(shown(&service, &["--update"]), Some(4), "another key");
    std::fs::write(&forgotten, genuine).unwrap();
    assert_eq!(shown(&service, &["--update"]), Some(0));
    assert_eq!(shown(&service, &[]), Some(0));
    let setting = ["TREFOIL_NODE1_IDENTITY", "TREFOIL_NODE2_IDENTITY"][index];
    let late = service.backend_with(&[(setting, old.public_key())]).await;
    assert!(matches!(late.public_key(signing[1].key_id).await, Err(ClientError::Untrusted(_))), "the old one is gone");
    // What is stored is whole under the new identity and the former ones, and under the new one alone it is not.
    for name in ["node1", "node2"] {
        assert!(service.running.remove(name).unwrap().terminate().success());
    }
    let drill = |env: std::collections::HashMap<String, String>| {
        let done = support::command("trefoil").envs(env).args(["--json", "node", "drill"]).output().unwrap();
        (done.status.code(), serde_json::from_slice::<Value>(&done.stdout).unwrap())
    };
    let env = service.node_env(node);
    let (exit, told) = drill(env.clone());
    assert_eq!(exit, Some(0), "{told}");
    assert!(told["former"].as_u64() > Some(0) && told["former"].as_u64() < told["whole"].as_u64(), "{told}");
    let (exit, told) = drill(env.into_iter().filter(|(key, _)| key != "TREFOIL_FORMER_IDENTITIES").collect());
    assert_eq!(exit, Some(4), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_1_takes_another_identity_without_an_error() {
    identity_rotated(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_2_takes_another_identity_without_an_error() {
    identity_rotated(1).await;
}

/// Whether a node lets in a worker with this channel key that knows it by that one.
async fn shakes_hands(service: &Deployment, node: Party, worker: &XKey, known: &str) -> bool {
    let private = noise_private(&worker.seed().unwrap()).unwrap();
    let client = service.nats.connect().await;
    let channel = NodeChannel::new(client, node, Arc::new(private), vec![noise_public(known).unwrap()]);
    let deadline = now_ms() + PATIENCE.as_millis() as u64;
    match channel.link(deadline).await {
        Ok(_) => true,
        Err(ChannelError::HandshakeRefused) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_channel_keys_are_replaced_without_an_error() {
    let mut service = Deployment::start(2);
    let signing = keys(&service.backend().await).await;
    let load = Load::start(service.backend().await, signing.clone());
    load.more(5).await;
    for (index, (node, party)) in [("node1", Party::Node1), ("node2", Party::Node2)].into_iter().enumerate() {
        let next = XKey::new();
        service.nodes[index].other_noise = vec![next.public_key()];
        restart_workers(&mut service, &load).await;
        let old = std::mem::replace(&mut service.nodes[index].noise, next);
        service.nodes[index].other_noise = vec![old.public_key()];
        restart_node(&mut service, node);
        load.more(5).await;
        service.nodes[index].other_noise.clear();
        restart_workers(&mut service, &load).await;
        let worker = XKey::from_seed(&service.worker_noise.seed().unwrap()).unwrap();
        assert!(!shakes_hands(&service, party, &worker, &old.public_key()).await, "the old one is gone");
        assert!(shakes_hands(&service, party, &worker, &service.nodes[index].noise.public_key()).await);
    }
    let done = load.stop().await;
    assert_eq!(results(&service).await, done + signing.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_channel_key_is_replaced_without_an_error() {
    let mut service = Deployment::start(2);
    let signing = keys(&service.backend().await).await;
    let load = Load::start(service.backend().await, signing.clone());
    load.more(5).await;
    let next = XKey::new();
    service.other_workers = vec![next.public_key()];
    for node in ["node1", "node2"] {
        restart_node(&mut service, node);
        load.more(5).await;
    }
    let old = std::mem::replace(&mut service.worker_noise, next);
    service.other_workers = vec![old.public_key()];
    restart_workers(&mut service, &load).await;
    service.other_workers.clear();
    for (index, (node, party)) in [("node1", Party::Node1), ("node2", Party::Node2)].into_iter().enumerate() {
        restart_node(&mut service, node);
        load.more(5).await;
        let known = service.nodes[index].noise.public_key();
        assert!(!shakes_hands(&service, party, &old, &known).await, "the old one is gone");
        assert!(shakes_hands(&service, party, &service.worker_noise, &known).await);
    }
    let done = load.stop().await;
    assert_eq!(results(&service).await, done + signing.len());
}
