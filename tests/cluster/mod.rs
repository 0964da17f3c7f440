//! Two real nodes on a real nats-server, and a hand-driven client party that speaks to them as a worker does.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod backed;
pub mod reshare;
pub mod signer;

use crate::support::NatsServer;
use async_nats::client::RequestErrorKind;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use nkeys::{KeyPair, XKey};
use rand_core::OsRng;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use trefoil::auth;
use trefoil::channel::{Link, NodeChannel};
use trefoil::clock::now_ms;
use trefoil::config::{NodeConfig, Settings};
use trefoil::node::NodeServer;
use trefoil::vault::{Blinded, Password, refresh_statement};
use trefoil::wire::node::{Call, KeyStatement, NODE_VERSION, NodeReply, NodeRequest, SessionId, SignOpen};
use trefoil::wire::subject;
use trefoil::wire::{
    Base64, Curve, Envelope, ErrorCode, FIRST_EPOCH, Fixed, GenerateBody, InitiatorId, JobId, KdfParams, KeyId, Lane,
    Method, Op, PublicKeyBody, Sealed, SignBody, SignInput, SignedJob,
};
use trefoil_protocol::keygen::{ClientKeygen, Context, Next};
use trefoil_protocol::{KeyShare, Party, Secret};
use zeroize::Zeroizing;

pub const MINUTE: u64 = 60_000;

/// The keys of one node and its data directory.
pub struct NodeIdentity {
    pub role: Party,
    pub seed: String,
    pub identity: VerifyingKey,
    noise: XKey,
    folder: TempDir,
}

impl NodeIdentity {
    fn new(role: Party) -> Self {
        let identity = KeyPair::new_server();
        let (_, public) = nkeys::from_public_key(&identity.public_key()).unwrap();
        Self {
            role,
            seed: identity.seed().unwrap(),
            identity: VerifyingKey::from_bytes(&public).unwrap(),
            noise: XKey::new(),
            folder: TempDir::new().unwrap(),
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    pub fn noise_public(&self) -> [u8; 32] {
        nkeys::from_public_key(&self.noise.public_key()).unwrap().1
    }
}

pub struct Cluster {
    pub nats: NatsServer,
    pub client: async_nats::Client,
    pub node1: NodeIdentity,
    pub node2: NodeIdentity,
    pub initiator: KeyPair,
    /// The recovery authoriser that both nodes list.
    pub authoriser: KeyPair,
    pub worker: XKey,
    settings: Vec<(String, String)>,
    servers: HashMap<Party, NodeServer>,
    pub to1: NodeChannel,
    pub to2: NodeChannel,
}

/// A generated key at the client, not yet committed unless [`Cluster::commit`] was called.
pub struct Key {
    pub share: Arc<KeyShare>,
    pub statement1: KeyStatement,
    pub statement2: KeyStatement,
    pub job: SignedJob,
    pub job_id: String,
}

impl Key {
    pub fn id(&self) -> KeyId {
        KeyId(self.share.key_id())
    }
}

/// A run after its rounds: every party has its share, and none has stored it.
pub struct Dealt {
    pub share: Arc<KeyShare>,
    pub job: SignedJob,
    pub job_id: String,
    links: [Arc<Link>; 2],
    sessions: [SessionId; 2],
}

impl Dealt {
    /// Has one node store its share.
    pub async fn prepare_at(&self, role: Party) -> NodeReply {
        let index = usize::from(role == Party::Node2);
        self.prepare_with(role, (index == 0).then(|| prover().verifying_key().to_bytes())).await
    }

    /// The same by a worker that says what it likes about the prover.
    pub async fn prepare_with(&self, role: Party, prover: Option<[u8; 32]>) -> NodeReply {
        let index = usize::from(role == Party::Node2);
        let request = NodeRequest::GeneratePrepare { session: self.sessions[index], prover };
        self.links[index].call(&call(request)).await.unwrap()
    }

    /// Has both nodes store their shares, node 2 first.
    pub async fn prepare(self) -> Key {
        let mut statements = Vec::new();
        for role in [Party::Node2, Party::Node2, Party::Node1, Party::Node1] {
            match self.prepare_at(role).await {
                NodeReply::Prepared(statement) => statements.push(statement),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(statements[0], statements[1], "asked twice, the answer is the same");
        let Self { share, job, job_id, .. } = self;
        Key { share, statement1: statements[2].clone(), statement2: statements[0].clone(), job, job_id }
    }
}

pub fn call(request: NodeRequest) -> Call {
    Call { version: NODE_VERSION, deadline: now_ms() + 20_000, request }
}

/// The code of a refusal; anything else fails the test.
pub fn refused(reply: NodeReply) -> ErrorCode {
    match reply {
        NodeReply::Refused { code, .. } => code,
        other => panic!("not refused: {other:?}"),
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more settings for both nodes, in which `{role}` stands for each one's name.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let nats = NatsServer::start();
        let client = nats.connect().await;
        let (node1, node2) = (NodeIdentity::new(Party::Node1), NodeIdentity::new(Party::Node2));
        let worker = XKey::new();
        let private = Arc::new(Secret::new(nkeys::decode_seed(&worker.seed().unwrap()).unwrap().1));
        let to = |node: &NodeIdentity| {
            NodeChannel::new(client.clone(), node.role, Arc::clone(&private), vec![node.noise_public()])
        };
        let (to1, to2) = (to(&node1), to(&node2));
        let settings = settings.iter().map(|(key, value)| (format!("TREFOIL_{key}"), (*value).to_owned())).collect();
        let (initiator, authoriser) = (KeyPair::new_user(), KeyPair::new_user());
        let servers = HashMap::new();
        let mut cluster =
            Self { nats, client, node1, node2, initiator, authoriser, worker, settings, servers, to1, to2 };
        cluster.start_node(Party::Node1).await;
        cluster.start_node(Party::Node2).await;
        cluster
    }

    /// The configuration of a node, as environment variables.
    pub fn env(&self, role: Party) -> HashMap<String, String> {
        let (own, peer) = if role == Party::Node1 { (&self.node1, &self.node2) } else { (&self.node2, &self.node1) };
        if !own.policy().exists() {
            self.write_policy("");
        }
        let mut env: HashMap<String, String> = [
            ("TREFOIL_ROLE", role.to_string()),
            ("TREFOIL_NATS_URL", self.nats.url()),
            ("TREFOIL_DATA_DIR", own.data().to_str().unwrap().to_owned()),
            ("TREFOIL_MASTER_KEY", "07".repeat(32)),
            ("TREFOIL_IDENTITY_SEED", own.seed.clone()),
            ("TREFOIL_NOISE_KEY", own.noise.seed().unwrap()),
            ("TREFOIL_PEER_IDENTITY", data_encoding::HEXLOWER.encode(peer.identity.as_bytes())),
            ("TREFOIL_WORKERS", self.worker.public_key()),
            ("TREFOIL_POLICY_FILE", own.policy().to_str().unwrap().to_owned()),
            ("TREFOIL_AUTHORISERS", self.authoriser.public_key()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let own = self.settings.iter().map(|(key, value)| (key.clone(), value.replace("{role}", &role.to_string())));
        env.extend(own);
        env
    }

    /// The policy of both nodes: the initiator may do everything, with more lines about it. They load it when they start.
    pub fn write_policy(&self, more: &str) {
        let text = format!(
            "version = 1\n[[initiators]]\nname = \"shop\"\nkey = \"{}\"\noperations = {}\ncurves = {}\nraw_digests = true\n{more}\n",
            self.initiator.public_key(),
            serde_json::to_string(Op::ALL).unwrap(),
            serde_json::to_string(Curve::ALL).unwrap(),
        );
        for node in [&self.node1, &self.node2] {
            std::fs::write(node.policy(), &text).unwrap();
        }
    }

    /// What SIGHUP does.
    pub async fn reload_policy(&self, role: Party) {
        self.servers[&role].reload_policy().await;
    }

    /// The initiator has another key by now, and both nodes were told that the present one signs nothing any more.
    pub async fn take_initiator_out(&self) {
        let (next, former) = (KeyPair::new_user().public_key(), self.initiator.public_key());
        for (node, role) in [(&self.node1, Party::Node1), (&self.node2, Party::Node2)] {
            let policy = std::fs::read_to_string(node.policy()).unwrap();
            let present = format!("key = \"{former}\"");
            assert!(policy.contains(&present));
            let text = policy.replace(&present, &format!("key = \"{next}\"\nformer = [\"{former}\"]"));
            std::fs::write(node.policy(), text).unwrap();
            self.reload_policy(role).await;
        }
    }

    pub async fn start_node(&mut self, role: Party) {
        let config = NodeConfig::read(Settings::from_env(self.env(role))).unwrap_or_else(|error| panic!("{error}"));
        self.servers.insert(role, NodeServer::start(config).await.unwrap());
        self.until_heard(role, true).await;
    }

    /// Ends a node in good order.
    pub async fn drain_node(&mut self, role: Party) {
        self.servers.remove(&role).unwrap().drain().await.unwrap();
        self.until_heard(role, false).await;
    }

    /// Until the server has read what a node sent it when it began or ended: another connection may be ahead of that.
    pub async fn until_heard(&self, role: Party, expected: bool) {
        let subject = subject::node_handshake(&role.to_string());
        let ask = || async_nats::Request::new().timeout(Some(Duration::from_millis(500)));
        loop {
            // No handshake at all: the node refuses it, and nothing else follows.
            match self.client.send_request(subject.clone(), ask()).await {
                Ok(_) if expected => return,
                Err(error) if !expected && error.kind() == RequestErrorKind::NoResponders => return,
                _ => {}
            }
        }
    }

    /// Until the server has read what a node subscribed to on its connection for large calls.
    pub async fn until_large_heard(&self, role: Party) {
        let ping = format!("$SRV.PING.trefoil-{role}-large");
        while self.client.request(ping.clone(), "".into()).await.is_err() {}
    }

    pub fn initiator(&self) -> InitiatorId {
        self.initiator.public_key().parse().unwrap()
    }

    /// A job body signed by the cluster's initiator.
    pub fn job<P: Serialize>(&self, op: Op, job_id: &str, key_id: KeyId, lifetime: u64, payload: P) -> SignedJob {
        let envelope = Envelope {
            version: 1,
            op: op.to_string(),
            job_id: job_id.parse().unwrap(),
            // Named, so that whatever alters a job's fields has it to alter.
            lane: Some(Lane::Bulk.to_string()),
            key_id,
            initiator: self.initiator(),
            issued_at: now_ms(),
            expires_at: now_ms() + lifetime,
            reply_key: XKey::new().public_key().parse().unwrap(),
            payload,
        };
        auth::sign_job(&self.initiator, envelope.to_bytes().unwrap()).unwrap()
    }

    pub fn generate_job(&self, job_id: &str, curve: Curve) -> SignedJob {
        let key_id = self.key_id(job_id);
        self.job(Op::Generate, job_id, key_id, MINUTE, GenerateBody::new(curve, KdfParams::default(), sealed()))
    }

    pub fn sign_job(&self, job_id: &str, key_id: KeyId, input: &SignInput) -> SignedJob {
        self.job(Op::Sign, job_id, key_id, MINUTE, SignBody::new(Method::Default, input, sealed()))
    }

    pub fn key_info_job(&self, job_id: &str, key_id: KeyId) -> SignedJob {
        self.job(Op::PublicKey, job_id, key_id, MINUTE, PublicKeyBody {})
    }

    pub fn key_id(&self, job_id: &str) -> KeyId {
        KeyId::derive(&self.initiator(), &job_id.parse::<JobId>().unwrap())
    }

    pub async fn ask1(&self, request: NodeRequest) -> NodeReply {
        self.to1.call(&call(request)).await.unwrap()
    }

    pub async fn ask2(&self, request: NodeRequest) -> NodeReply {
        self.to2.call(&call(request)).await.unwrap()
    }

    /// Runs a key generation to its end at both nodes, without the commit.
    pub async fn generate(&self, job_id: &str, curve: Curve) -> Key {
        self.generate_by(self.generate_job(job_id, curve), job_id, curve).await
    }

    /// The same for a given job: each run is another attempt.
    pub async fn generate_by(&self, job: SignedJob, job_id: &str, curve: Curve) -> Key {
        let context = self.context(curve, self.key_id(job_id), FIRST_EPOCH, &job);
        let client = ClientKeygen::start(&context, &mut OsRng);
        self.deal(job, job_id, self.key_id(job_id), client).await.prepare().await
    }

    pub fn context(&self, curve: Curve, key_id: KeyId, epoch: u32, job: &SignedJob) -> Context {
        Context {
            curve: curve.into(),
            key_id: key_id.0,
            epoch,
            job_digest: digest(job),
            node1: self.node1.identity,
            node2: self.node2.identity,
        }
    }

    /// Opens a run at both nodes and goes through its rounds; nothing is stored yet.
    pub async fn deal(
        &self,
        job: SignedJob,
        job_id: &str,
        key_id: KeyId,
        (mut client, contribution): (ClientKeygen, [u8; 32]),
    ) -> Dealt {
        let links = [link(&self.to1).await, link(&self.to2).await];
        let mut sessions = [[0; 16]; 2];
        let mut replies = Vec::new();
        for (index, link) in links.iter().enumerate() {
            let blinded_password = (index == 0).then(|| blinded(key_id).element());
            let proof = match blinded_password {
                Some(blinded) => refresh_proof(link, &job, &contribution, &blinded).await,
                None => None,
            };
            let request =
                NodeRequest::GenerateOpen { job: job.clone(), contribution, blinded_password, proof, identities: None };
            match link.call(&call(request)).await.unwrap() {
                NodeReply::GenerateOpened { session, contribution, evaluation } => {
                    assert_eq!(evaluation.is_some(), index == 0);
                    sessions[index] = session;
                    replies.push(contribution.to_vec());
                }
                other => panic!("not opened: {other:?}"),
            }
        }
        let mut round = 0;
        let share = loop {
            match client.advance(&replies[0], &replies[1]).unwrap() {
                Next::Done(share) => break share,
                Next::Continue { state, to_node1, to_node2 } => {
                    client = state;
                    round += 1;
                    for (index, payload) in [to_node1, to_node2].into_iter().enumerate() {
                        let request = NodeRequest::GenerateRound { session: sessions[index], round, payload };
                        match links[index].call(&call(request)).await.unwrap() {
                            NodeReply::GenerateRound { payload } => replies[index] = payload,
                            other => panic!("{other:?}"),
                        }
                    }
                }
            }
        };
        Dealt { share: Arc::new(share), job, job_id: job_id.to_owned(), links, sessions }
    }

    /// Commits at node 1, then at node 2.
    pub async fn commit(&self, key: &Key) {
        let (key_id, transcript) = (key.id(), key.share.transcript());
        let request = |evidence| NodeRequest::Commit { key_id, transcript, evidence };
        let NodeReply::Committed { signature } = self.ask1(request(key.statement2.signature)).await else {
            panic!("node 1 did not commit")
        };
        let NodeReply::Committed { .. } = self.ask2(request(signature)).await else { panic!("node 2 did not follow") };
    }

    pub async fn committed_key(&self, job_id: &str, curve: Curve) -> Key {
        let key = self.generate(job_id, curve).await;
        self.commit(&key).await;
        key
    }

    /// An opening of a signing session as an honest worker makes it.
    pub fn open(&self, key: &Key, job: &SignedJob, contribution: [u8; 32], lease_token: u64) -> SignOpen {
        SignOpen {
            job: job.clone(),
            contribution,
            epoch: key.share.epoch(),
            ot_id: key.share.ot_id(),
            transcript: key.share.transcript(),
            lease_token,
            looked: true,
            blinded_password: blinded(key.id()).element(),
        }
    }

    pub fn data(&self, role: Party) -> PathBuf {
        if role == Party::Node1 { self.node1.data() } else { self.node2.data() }
    }
}

pub fn opened(reply: NodeReply) -> (SessionId, Vec<u8>) {
    match reply {
        NodeReply::SignOpened { session, m1, .. } => (session, m1),
        other => panic!("not opened: {other:?}"),
    }
}

pub async fn link(channel: &NodeChannel) -> Arc<Link> {
    let deadline = now_ms() + 20_000;
    loop {
        match channel.link(deadline).await {
            Ok(link) => return link,
            // A node that was just restarted: a handshake may still have gone to the one before.
            Err(_) if now_ms() < deadline => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            Err(error) => panic!("no link: {error}"),
        }
    }
}

/// Stands in for the prover of the client's data key: what is kept here has none.
pub fn prover() -> SigningKey {
    SigningKey::from_bytes(&[0x42; 32])
}

/// For a refresh that node 1 would admit: that the old share was opened for a run on this channel.
pub async fn refresh_proof(
    node1: &Link,
    job: &SignedJob,
    contribution: &[u8; 32],
    blinded: &[u8; 32],
) -> Option<Fixed<64>> {
    if serde_json::from_slice::<serde_json::Value>(&job.body).ok()?["op"] != "refresh" {
        return None;
    }
    match node1.call(&call(NodeRequest::Source { job: job.clone() })).await.unwrap() {
        NodeReply::Source { statement, .. } => {
            let share = (statement.key_id, statement.epoch, statement.transcript);
            let statement = refresh_statement(&node1.hash(), &digest(job), share, contribution, blinded);
            Some(Fixed(prover().sign(&statement).to_bytes()))
        }
        _ => None,
    }
}

pub fn blinded(key_id: KeyId) -> Blinded {
    let password = Password::new(Zeroizing::new(b"correct horse".to_vec())).unwrap();
    Blinded::new(key_id, &password, &mut OsRng).unwrap()
}

pub fn digest(job: &SignedJob) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(&job.body).into()
}

/// Secrets that no node opens.
pub fn sealed() -> Sealed {
    let key = || XKey::new().public_key().parse().unwrap();
    Sealed { recipient_key: key(), sender_key: key(), sealed: Base64(vec![1; 100]) }
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

pub fn fixed(bytes: [u8; 64]) -> Fixed<64> {
    Fixed(bytes)
}
