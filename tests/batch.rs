//! Batches, in the whole service and at a node that a hand-driven worker talks to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod cluster;
mod deployment;
mod support;

use cluster::{Cluster, Key, call, link, refused};
use deployment::{Deployment, Forge, code, new_key, outcome, password, secrets};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use trefoil::channel::Link;
use trefoil::client::{Backend, ClientError, SignedRequest, SigningMaterial, verify};
use trefoil::node::{AUDIT_LOG, audit};
use trefoil::vault::Password;
use trefoil::wire::node::{NodeReply, NodeRequest, SessionId, SignOutcome};
use trefoil::wire::{
    Batch, Curve, ErrorCode, Fixed, JobResult, Method, Op, OrderBody, Outcome, SignBody, SignInput, SignedJob,
};
use trefoil_protocol::Party;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::client::{Client, Round2};
use trefoil_protocol::ecdsa::{Item, M1_LEN, M2_LEN, M3_LEN, Request};
use zeroize::Zeroizing;

const PATHS: [Option<&str>; 5] = [None, Some("m"), Some("m/0"), Some("m/0/1"), Some("m/2147483647")];

/// So many items: paths differ from one to the next, digests and messages repeat.
fn batch(curve: Curve, count: usize) -> Batch {
    let item = |n: usize| match curve {
        Curve::Secp256k1 => SignInput::Secp256k1 { digest: [n as u8 / 7; 32], path: PATHS[n % 5].map(str::to_owned) },
        Curve::Ed25519 => SignInput::Ed25519 { message: vec![0; n / 3] },
    };
    Batch::new((0..count).map(item).collect()).unwrap()
}

fn sign_request(backend: &Backend, key: &SigningMaterial, batch: &Batch) -> SignedRequest {
    let (reply, lifetime) = (backend.reply_key().unwrap(), Duration::from_secs(30));
    backend.jobs().sign_batch(key.key_id, Method::Default, batch, &secrets(key), &reply, lifetime).unwrap()
}

/// The signatures of a result, verified.
fn verified(key: &SigningMaterial, batch: &Batch, result: &JobResult) -> Vec<[u8; 64]> {
    let Outcome::Ok { signatures: Some(signatures), signature: None, .. } = &result.outcome else {
        panic!("{result:?}")
    };
    verify::signatures(&key.public_key, &key.chain_code, batch, signatures).unwrap();
    signatures.iter().map(|signature| signature.signature.0).collect()
}

/// `sign_batch` verifies each signature under the attested key, or the child that it derives itself, in order.
#[tokio::test(flavor = "multi_thread")]
async fn batches_of_every_size_are_signed_on_both_curves() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    for curve in [Curve::Secp256k1, Curve::Ed25519] {
        let key = new_key(&backend, curve).await;
        for count in [1, 2, 8, 9, 127, 128] {
            let batch = batch(curve, count);
            let signed = backend.sign_batch(&key, Method::Default, &batch, password()).await.unwrap();
            let distinct: HashSet<_> = signed.iter().map(|signed| signed.signature.0).collect();
            assert_eq!(distinct.len(), count, "the same digest twice has two signatures");
        }
        // The longest messages that fit, together.
        if curve == Curve::Ed25519 {
            let messages = (0..2).map(|n| SignInput::Ed25519 { message: vec![n; 65_536] }).collect();
            let batch = Batch::new(messages).unwrap();
            backend.sign_batch(&key, Method::Default, &batch, password()).await.unwrap();
            let much = Batch::new(vec![SignInput::Ed25519 { message: vec![0; 65_536] }; 3]).unwrap();
            let error = backend.sign_batch(&key, Method::Default, &much, password()).await.unwrap_err();
            assert!(matches!(error, ClientError::Build(_)), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_batch_is_said_with_the_items_index() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let (secp, ed) = (new_key(&backend, Curve::Secp256k1).await, new_key(&backend, Curve::Ed25519).await);
    let good = || sign_request(&backend, &secp, &batch(Curve::Secp256k1, 4));
    let items = |change: &dyn Fn(&mut Vec<Value>)| {
        forge.edit(&good(), |body| change(body["payload"]["items"].as_array_mut().unwrap()))
    };
    let field = |name: &str, value: Value| forge.edit(&good(), |body| body["payload"][name] = value);
    let other_curve = forge.edit(&sign_request(&backend, &ed, &batch(Curve::Ed25519, 2)), |body| {
        body["payload"]["items"][1] = json!({ "message": "", "path": "m" });
    });
    use ErrorCode::{
        HardenedPath, InvalidBatch, InvalidDigest, InvalidMessage, InvalidPath, MalformedJob, UnknownField,
    };
    let cases = [
        (items(&|items| items.clear()), InvalidBatch, "1 to 128"),
        (items(&|items| *items = vec![items[0].clone(); 129]), InvalidBatch, "1 to 128"),
        (field("digest", json!("5a".repeat(32))), InvalidBatch, "beside its items"),
        (field("message", json!("")), InvalidBatch, "beside its items"),
        (field("path", json!("m")), InvalidBatch, "beside its items"),
        (items(&|items| items[3]["digest"] = json!("5a")), InvalidDigest, "item 3: "),
        (items(&|items| items[2] = json!({})), InvalidDigest, "item 2: "),
        (items(&|items| items[1]["message"] = json!("")), InvalidMessage, "item 1: "),
        (items(&|items| items[0]["path"] = json!("m/x")), InvalidPath, "item 0: "),
        (items(&|items| items[2]["path"] = json!("m/0'")), HardenedPath, "item 2: "),
        (items(&|items| items[2]["extra"] = json!(1)), UnknownField, "items.2: "),
        (items(&|items| items[3] = json!(1)), MalformedJob, "items.3: "),
        (other_curve, InvalidPath, "item 1: "),
    ];
    for (request, expected, place) in cases {
        let result = outcome(&backend, &request).await;
        assert_eq!(code(&result), expected, "{result:?}");
        let Outcome::Error { error } = result.outcome else { panic!() };
        assert!(error.message.contains(place), "{}", error.message);
    }
    let eddsa = sign_request(&backend, &ed, &batch(Curve::Ed25519, 2));
    let crossed = forge.edit(&eddsa, |body| body["payload"]["curve"] = json!("secp256k1"));
    assert_eq!(code(&outcome(&backend, &crossed).await), InvalidMessage);
    // Nothing of it cost a password attempt, and the good one is signed.
    verified(&secp, &batch(Curve::Secp256k1, 4), &outcome(&backend, &good()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_one_password_attempt() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    for curve in [Curve::Secp256k1, Curve::Ed25519] {
        let key = new_key(&backend, curve).await;
        let attempt = async |guess: &[u8]| {
            let guess = Password::new(Zeroizing::new(guess.to_vec())).unwrap();
            match backend.sign_batch(&key, Method::Default, &batch(curve, 20), guess).await {
                Ok(_) => None,
                Err(ClientError::Job(failure)) => Some(failure.code),
                Err(other) => panic!("{other}"),
            }
        };
        // Nine wrong ones, and a right one gives all back.
        for _ in 0..2 {
            for guess in 0..9 {
                assert_eq!(attempt(&[guess]).await, Some(ErrorCode::WrongPassword));
            }
            assert_eq!(attempt(deployment::PASSWORD).await, None);
        }
    }
}

/// Processes that die between two sub-batches.
#[cfg(feature = "faults")]
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_cut_off_is_signed_anew() {
    let mut service = Deployment::new();
    service.faults = true;
    service.silent = 1;
    for name in ["node1", "node2", "worker"] {
        std::fs::create_dir_all(service.path("faults").join(name)).unwrap();
    }
    for name in ["node1", "node2"] {
        service.start_node(name);
    }
    for name in ["worker1", "worker2"] {
        service.start_worker(name);
    }
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let batch = batch(Curve::Secp256k1, 30);
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    for (process, step) in [("worker", "sub-batch sign * 2 kill"), ("node1", "burned sign * 3 kill")] {
        let armed = service.path("faults").join(process).join("step");
        std::fs::write(&armed, step).unwrap();
        let request = sign_request(&backend, &key, &batch);
        let run = outcome(&backend, &request);
        let restart = async {
            while armed.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if process == "node1" {
                service.kill("node1");
                service.start_node("node1");
            }
        };
        let (result, ()) = futures::join!(run, restart);
        assert_eq!(verified(&key, &batch, &result).len(), 30, "{step}");
        deployment::wait_until_empty(&jetstream).await;
    }
    // Each of the two began anew: a session was opened once more, and what was released twice has two signatures.
    let log = std::fs::read_to_string(service.folder.path().join("node1").join(AUDIT_LOG)).unwrap();
    let of = |decision: &str| log.lines().filter(|line| line.contains(&format!(r#""decision":"{decision}""#))).count();
    assert!(of("opened") >= 5, "{log}");
    assert!(of("released") >= 2 * 4 + 2 + 3, "{log}");
}

// At a node, by a worker of our own.

/// What the job signs, item by item.
fn ecdsa_job(cluster: &Cluster, key: &Key, id: &str, count: usize) -> (SignedJob, Batch) {
    let batch = batch(Curve::Secp256k1, count);
    let body = SignBody::batch(Method::Default, &batch, cluster::sealed());
    (cluster.job(Op::Sign, id, key.id(), cluster::MINUTE, body), batch)
}

/// A worker with some items between m2 and m3.
struct Midway {
    link: Arc<Link>,
    session: SessionId,
    requests: Vec<Request>,
    first: usize,
    waiting: Vec<Round2>,
    m2: Vec<u8>,
}

impl Midway {
    async fn open(cluster: &Cluster, key: &Key, id: &str, count: usize, items: u16) -> Result<Self, ErrorCode> {
        let (job, batch) = ecdsa_job(cluster, key, id, count);
        let link = link(&cluster.to1).await;
        let request = |input: &SignInput| {
            let SignInput::Secp256k1 { digest, path } = input else { panic!() };
            let path = DerivationPath::parse(path.as_deref().unwrap_or("m")).unwrap();
            Request { channel_hash: link.hash(), job_digest: cluster::digest(&job), digest: *digest, path }
        };
        let requests = batch.items().iter().map(request).collect();
        let open = cluster.open(key, &job, [9; 32], 0);
        match link.call(&call(NodeRequest::BatchOpen { open, items })).await.unwrap() {
            NodeReply::BatchOpened { session, m1, .. } => {
                assert_eq!(m1.len(), usize::from(items) * M1_LEN);
                let mut midway = Self { link, session, requests, first: 0, waiting: Vec::new(), m2: Vec::new() };
                midway.advance(key, &m1);
                Ok(midway)
            }
            NodeReply::Refused { code, .. } => Err(code),
            other => panic!("{other:?}"),
        }
    }

    fn advance(&mut self, key: &Key, m1: &[u8]) {
        self.m2.clear();
        for (index, m1) in (self.first..).zip(m1.chunks(M1_LEN)) {
            let item = Item::new(index as u16, self.requests.len() as u16).unwrap();
            let client = Client::of_batch(key.share.clone(), self.requests[index].clone(), item, [9; 32]).unwrap();
            let (round2, m2) = client.advance(m1, &mut rand_core::OsRng).unwrap();
            self.waiting.push(round2);
            self.m2.extend_from_slice(&m2);
        }
    }

    async fn send(&self, m2: Vec<u8>, next: u16) -> NodeReply {
        self.link.call(&call(NodeRequest::BatchRound { session: self.session, m2, next })).await.unwrap()
    }

    /// An honest round; the signatures of these items.
    async fn round(&mut self, key: &Key, next: u16) -> Vec<[u8; 64]> {
        let NodeReply::BatchRound { m3, m1 } = self.send(self.m2.clone(), next).await else { panic!("no m3") };
        assert_eq!(m1.len(), usize::from(next) * M1_LEN);
        assert_eq!(m3.len(), self.waiting.len() * M3_LEN);
        let waiting = std::mem::take(&mut self.waiting);
        self.first += waiting.len();
        let signed = waiting.into_iter().zip(m3.chunks(M3_LEN)).map(|(round2, m3)| round2.finish(m3).unwrap().bytes);
        let signed = signed.collect();
        self.advance(key, &m1);
        signed
    }

    async fn close(&self, signatures: Vec<[u8; 64]>) -> NodeReply {
        let outcome = SignOutcome::Signatures(signatures.into_iter().map(Fixed).collect());
        self.link.call(&call(NodeRequest::SignClose { session: self.session, outcome })).await.unwrap()
    }
}

fn log(cluster: &Cluster) -> Vec<audit::Event> {
    let mut entries = audit::Entries::open(&cluster.data(Party::Node1).join(AUDIT_LOG), None).unwrap();
    entries.by_ref().map(|entry| entry.unwrap().1).collect()
}

/// What the log says of a job's end. Nobody waits for that entry to be durable, so it may come a little later than the answer.
async fn closing(cluster: &Cluster, job_id: &str) -> Option<String> {
    loop {
        let closed = |entry: &audit::Event| entry.decision == "closed" && entry.job_id.as_deref() == Some(job_id);
        if let Some(entry) = log(cluster).into_iter().find(closed) {
            return entry.reason;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_what_every_item_signs_before_it_is_released() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let mut midway = Midway::open(&cluster, &key, "a", 12, 9).await.unwrap();
    let mut signed = midway.round(&key, 3).await;
    signed.extend(midway.round(&key, 0).await);
    assert!(matches!(midway.close(signed).await, NodeReply::Closed));
    let entries = log(&cluster);
    let released: Vec<_> = entries.iter().filter(|entry| entry.decision == "released").collect();
    assert_eq!(released.iter().map(|entry| entry.signed.len()).collect::<Vec<_>>(), [9, 3]);
    let said: Vec<String> = released.iter().flat_map(|entry| entry.signed.clone()).collect();
    let signed = batch(Curve::Secp256k1, 12);
    let expected = signed.items().iter().map(|input| match input {
        SignInput::Secp256k1 { digest, path: Some(path) } => format!("{} {path}", Fixed(*digest)),
        SignInput::Secp256k1 { digest, path: None } => Fixed(*digest).to_string(),
        SignInput::Ed25519 { .. } => panic!(),
    });
    assert!(expected.eq(said));
    assert_eq!(closing(&cluster, "a").await, None, "each of the signatures was verified");
    // One of another item's in its place is noticed.
    let mut midway = Midway::open(&cluster, &key, "b", 3, 3).await.unwrap();
    let mut signed = midway.round(&key, 0).await;
    signed.swap(0, 2);
    assert!(matches!(midway.close(signed).await, NodeReply::Closed));
    assert_eq!(closing(&cluster, "b").await.as_deref(), Some("signature_invalid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_items_is_harmless() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    for (items, count) in [(0, 3), (4, 3), (10, 12), (u16::MAX, 12)] {
        let refused = Midway::open(&cluster, &key, &format!("n{items}"), count, items).await.err();
        assert_eq!(refused, Some(ErrorCode::ProtocolAbort), "{items} of {count}");
    }
    // A batch is no single signature, and the other way round.
    let (job, _) = ecdsa_job(&cluster, &key, "x", 2);
    let open = NodeRequest::SignOpen(cluster.open(&key, &job, [1; 32], 0));
    assert_eq!(refused(cluster.ask1(open).await), ErrorCode::MalformedJob);
    let job = cluster.sign_job("y", key.id(), &cluster::signer::digest_input());
    let open = NodeRequest::BatchOpen { open: cluster.open(&key, &job, [1; 32], 0), items: 1 };
    assert_eq!(refused(cluster.ask1(open).await), ErrorCode::MalformedJob);

    let mut midway = Midway::open(&cluster, &key, "a", 12, 3).await.unwrap();
    let m2 = midway.m2.clone();
    let swapped = [&m2[M2_LEN..2 * M2_LEN], &m2[..M2_LEN], &m2[2 * M2_LEN..]].concat();
    let twice = [&m2[..M2_LEN], &m2[..M2_LEN], &m2[2 * M2_LEN..]].concat();
    let mut renamed = m2.clone();
    renamed[2 * M2_LEN] ^= 1;
    let lengths = [vec![], m2[..2 * M2_LEN].to_vec(), m2[1..].to_vec(), [&m2[..], &m2[..M2_LEN]].concat()];
    for garbage in [swapped, twice, renamed].into_iter().chain(lengths) {
        assert_eq!(refused(midway.send(garbage, 9).await), ErrorCode::ProtocolAbort);
    }
    for next in [0, 10, u16::MAX] {
        assert_eq!(refused(midway.send(m2.clone(), next).await), ErrorCode::ProtocolAbort, "{next} next");
    }
    // And the session of before still ends in signatures.
    midway.round(&key, 9).await;
    midway.round(&key, 0).await;
    assert_eq!(refused(midway.send(m2, 0).await), ErrorCode::ProtocolAbort, "after the last");
}

/// A cheat in one item, beside a failure of another one that ends nothing but the attempt: the key is locked all the same, and no
/// item is released.
#[tokio::test(flavor = "multi_thread")]
async fn a_cheat_in_one_item_locks_the_key() {
    let mut cluster = Cluster::start().await;
    for (cheat, first_fails) in [(0, false), (2, true), (2, false)] {
        let id = format!("g{cheat}{first_fails}");
        let key = cluster.committed_key(&id, Curve::Secp256k1).await;
        let mut midway = Midway::open(&cluster, &key, &format!("a{id}"), 6, 3).await.unwrap();
        midway.round(&key, 3).await;
        let mut m2 = midway.m2.clone();
        if first_fails {
            // R2 that is no point: m2_shape, harmless.
            m2[16..49].fill(0xff);
        }
        m2[cheat * M2_LEN + 16 + 33 + 16 + 100] ^= 1;
        let reply = midway.send(m2, 0).await;
        let NodeReply::Refused { code, message, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(code, ErrorCode::ProtocolAbort);
        assert_eq!(
            message, "client failed the check `ot_consistency` (the key must be locked)",
            "and no item is named"
        );
        assert_eq!(Midway::open(&cluster, &key, "b", 1, 1).await.err(), Some(ErrorCode::KeyLocked));
        let entries = log(&cluster);
        let last: Vec<_> = entries.iter().filter(|entry| entry.key_id == Some(key.id().to_string())).collect();
        let decisions: Vec<_> = last.iter().map(|entry| entry.decision.as_str()).collect();
        assert!(decisions.windows(3).any(|three| three == ["opened", "released", "locked"]), "{decisions:?}");
        assert_eq!(decisions.iter().filter(|decision| **decision == "released").count(), 1, "{decisions:?}");
    }
    cluster.drain_node(Party::Node1).await;
    cluster.start_node(Party::Node1).await;
}

/// A failure that locks nothing ends the batch, and the key stays usable.
#[tokio::test(flavor = "multi_thread")]
async fn another_failure_in_one_item_ends_the_batch_only() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let midway = Midway::open(&cluster, &key, "a", 3, 3).await.unwrap();
    let mut m2 = midway.m2.clone();
    let gamma_u = M2_LEN - 32 - 66;
    m2[M2_LEN + gamma_u] ^= 1;
    assert_eq!(refused(midway.send(m2, 0).await), ErrorCode::ProtocolAbort);
    assert_eq!(refused(midway.send(midway.m2.clone(), 0).await), ErrorCode::NodeUnavailable, "consumed");
    let entries = log(&cluster);
    assert!(entries.iter().all(|entry| entry.decision != "released"), "none of the three");
    Midway::open(&cluster, &key, "b", 1, 1).await.unwrap().round(&key, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_frozen_between_two_sub_batches_signs_no_more_items() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let mut midway = Midway::open(&cluster, &key, "a", 6, 3).await.unwrap();
    midway.round(&key, 3).await;
    let job = cluster.job(Op::Freeze, "f", key.id(), cluster::MINUTE, OrderBody {});
    assert!(matches!(cluster.ask1(NodeRequest::Order { job }).await, NodeReply::Ordered { .. }));
    let code = refused(midway.send(midway.m2.clone(), 0).await);
    assert!(matches!(code, ErrorCode::KeyFrozen | ErrorCode::NodeUnavailable), "{code}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initiator_that_is_taken_out_between_two_sub_batches_has_no_more_items_signed() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let mut midway = Midway::open(&cluster, &key, "a", 6, 3).await.unwrap();
    midway.round(&key, 3).await;
    cluster.take_initiator_out().await;
    assert_eq!(refused(midway.send(midway.m2.clone(), 0).await), ErrorCode::NodeUnavailable, "ended");
    assert_eq!(Midway::open(&cluster, &key, "a", 6, 3).await.err(), Some(ErrorCode::UnknownInitiator));
}

/// The same job again, as after a worker's death, takes the key's slot; another one has to wait.
#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_batch_gives_way_to_its_own_redelivery_only() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    let mut first = Midway::open(&cluster, &key, "a", 6, 3).await.unwrap();
    first.round(&key, 3).await;
    assert_eq!(Midway::open(&cluster, &key, "b", 2, 2).await.err(), Some(ErrorCode::KeyBusy));
    let (job, _) = ecdsa_job(&cluster, &key, "a", 6);
    // The body has other sealed secrets and times now: to this node it is another job with a used id.
    let open = NodeRequest::BatchOpen { open: cluster.open(&key, &job, [1; 32], 0), items: 3 };
    assert_eq!(refused(cluster.ask1(open).await), ErrorCode::JobIdReused);
    first.round(&key, 0).await;
    Midway::open(&cluster, &key, "b", 2, 2).await.unwrap().round(&key, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_as_much_of_a_rate_as_it_has_items() {
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Secp256k1).await;
    cluster.write_policy("jobs_per_minute = { sign = 3 }");
    cluster.reload_policy(Party::Node1).await;
    // More than there ever is room for: nobody waits for that.
    assert_eq!(Midway::open(&cluster, &key, "a", 4, 1).await.err(), Some(ErrorCode::NotPermitted));
    Midway::open(&cluster, &key, "b", 2, 2).await.unwrap().round(&key, 0).await;
    assert_eq!(Midway::open(&cluster, &key, "c", 2, 2).await.err(), Some(ErrorCode::RateLimited));
    Midway::open(&cluster, &key, "d", 1, 1).await.unwrap().round(&key, 0).await;
    assert_eq!(Midway::open(&cluster, &key, "e", 1, 1).await.err(), Some(ErrorCode::RateLimited));
}

/// On ed25519 as well: as many commitments as items, and each share answers its own.
#[tokio::test(flavor = "multi_thread")]
async fn frost_items_are_sessions_of_their_own() {
    use trefoil_protocol::frost::FrostClient;
    let cluster = Cluster::start().await;
    let key = cluster.committed_key("g1", Curve::Ed25519).await;
    let batch = batch(Curve::Ed25519, 5);
    let job = |id: &str| {
        let body = SignBody::batch(Method::Default, &batch, cluster::sealed());
        cluster.job(Op::Sign, id, key.id(), cluster::MINUTE, body)
    };
    let start = |count: usize| -> (Vec<FrostClient>, Vec<Fixed<64>>) {
        let started = (0..count).map(|_| FrostClient::start(&mut rand_core::OsRng));
        started.map(|(client, commitments)| (client, Fixed(commitments))).unzip()
    };
    for (n, count) in [0, 4, 6].into_iter().enumerate() {
        let open = cluster.open(&key, &job(&format!("n{n}")), [1; 32], 0);
        let request = NodeRequest::BatchFrost { open, commitments: start(count).1 };
        assert_eq!(refused(cluster.ask1(request).await), ErrorCode::ProtocolAbort);
    }
    let link = link(&cluster.to1).await;
    let (clients, commitments) = start(5);
    let open = cluster.open(&key, &job("a"), [1; 32], 0);
    let reply = link.call(&call(NodeRequest::BatchFrost { open, commitments })).await.unwrap();
    let NodeReply::BatchFrostSigned { session, shares, .. } = reply else { panic!("{reply:?}") };
    let distinct: HashSet<_> = shares.iter().map(|(commitments, _)| commitments.0).collect();
    assert_eq!((shares.len(), distinct.len()), (5, 5));
    let texts = batch.items().iter().map(|input| match input {
        SignInput::Ed25519 { message } => message.clone(),
        SignInput::Secp256k1 { .. } => panic!(),
    });
    let mut signed = Vec::new();
    for ((client, text), (theirs, z1)) in clients.into_iter().zip(texts).zip(shares) {
        signed.push(Fixed(client.finish(&key.share, &text, &theirs.0, &z1).unwrap()));
    }
    let close = |signatures| NodeRequest::SignClose { session, outcome: SignOutcome::Signatures(signatures) };
    assert!(matches!(link.call(&call(close(signed))).await.unwrap(), NodeReply::Closed));
    let entries = log(&cluster);
    let released = entries.iter().find(|entry| entry.decision == "released").unwrap();
    assert_eq!(released.signed.len(), 5);
    assert_eq!(closing(&cluster, "a").await, None);
}

/// A backend believes as many signatures as it asked for, each under its own key and for its own digest.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_believes_no_signature_in_anothers_place() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let batch = batch(Curve::Secp256k1, 8);
    let signed = backend.sign_batch(&key, Method::Default, &batch, password()).await.unwrap();
    let check = |signed: &[_]| verify::signatures(&key.public_key, &key.chain_code, &batch, signed);
    check(&signed).unwrap();
    assert!(check(&signed[1..]).is_err());
    assert!(check(&[signed.clone(), signed[..1].to_vec()].concat()).is_err());
    let mut swapped = signed;
    swapped.swap(0, 7);
    assert!(check(&swapped).is_err());
    // The message of one is no batch, and the result of one no batch's.
    let single = backend.sign(&key, Method::Default, &batch.items()[0], password()).await.unwrap();
    assert!(verify::signatures(&key.public_key, &key.chain_code, &batch, &[single]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_signs_batches() {
    let service = Deployment::start(1);
    let run = |arguments: &[&str]| {
        let done = service.cli().args(arguments).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    for (curve, items) in [
        ("secp256k1", [json!({ "digest": "5a".repeat(32) }), json!({ "digest": "5b".repeat(32), "path": "m/0/1" })]),
        ("ed25519", [json!({ "message": "" }), json!({ "message": "aGVsbG8=" })]),
    ] {
        let key = format!("{curve}.json");
        assert_eq!(run(&["generate", "--curve", curve, "--out", &key]).0, Some(0));
        std::fs::write(service.path("items"), json!(items).to_string()).unwrap();
        let (status, stdout, stderr) = run(&["--json", "sign", "--key", &key, "--batch", "items"]);
        assert_eq!(status, Some(0), "{stdout}{stderr}");
        let answer: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((answer["signatures"].as_array().unwrap().len(), &answer["verified"]), (2, &json!(true)));
        std::fs::write(service.path("items"), format!("{}\n{}\n", items[0], items[1])).unwrap();
        let (status, stdout, stderr) = run(&["sign", "--key", &key, "--batch", "items"]);
        assert_eq!((status, stdout.lines().count()), (Some(0), 3), "{stdout}{stderr}");
    }
    std::fs::write(service.path("items"), "{\"digest\": \"5a\"}").unwrap();
    let (status, _, stderr) = run(&["sign", "--key", "secp256k1.json", "--batch", "items"]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("item 0: digest is not 64"), "{stderr}");
    assert_eq!(run(&["sign", "--key", "secp256k1.json", "--batch", "items", "--digest", "5a"]).0, Some(2));
}
