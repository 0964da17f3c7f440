//! A whole service for tests: nats-server, two nodes and any number of workers as processes, and a backend's library.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod cheat;
pub mod events;
pub mod load;
pub mod sessions;

use crate::support::process::Process;
use crate::support::{NatsServer, command};
use futures::StreamExt;
use nkeys::{KeyPair, XKey};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use trefoil::client::verify::NodeIdentities;
use trefoil::client::{Backend, ClientConfig, NewKey, SignedRequest, SigningMaterial};
use trefoil::config::Settings;
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Curve, ErrorCode, JobResult, KdfParams, Method, Op, Outcome, SealKey, SignInput};
use zeroize::Zeroizing;

/// What the processes print when they are ready.
pub const NODE_READY: &str = "serving";
pub const WORKER_READY: &str = "ready";

pub const PASSWORD: &[u8] = b"correct horse battery staple";

/// The secrets of one node.
pub struct NodeSeeds {
    pub identity: KeyPair,
    pub noise: XKey,
    /// Other identities and channel keys by which the others know it, public.
    pub other_identities: Vec<String>,
    pub other_noise: Vec<String>,
    /// Identities that it had before, public.
    pub former: Vec<String>,
}

impl NodeSeeds {
    fn new() -> Self {
        let (identity, noise) = (KeyPair::new_server(), XKey::new());
        Self { identity, noise, other_identities: Vec::new(), other_noise: Vec::new(), former: Vec::new() }
    }

    /// The identities by which the others know it, the present one first.
    pub fn identities(&self) -> String {
        [&[self.identity.public_key()], self.other_identities.as_slice()].concat().join(",")
    }

    fn noises(&self) -> String {
        [&[self.noise.public_key()], self.other_noise.as_slice()].concat().join(",")
    }
}

/// The service. Processes end when this is dropped.
pub struct Deployment {
    pub nats: NatsServer,
    pub folder: TempDir,
    pub initiator: KeyPair,
    /// A second backend that may only sign, and only with ed25519.
    pub limited: KeyPair,
    /// The recovery authoriser that both nodes list.
    pub authoriser: KeyPair,
    pub sealing: XKey,
    pub reply: XKey,
    pub nodes: [NodeSeeds; 2],
    pub worker_noise: XKey,
    /// Other channel keys of workers that the nodes know, public.
    pub other_workers: Vec<String>,
    /// Other keys with which the backend signs, and keys with which it did.
    pub other_initiators: Vec<String>,
    pub former_initiators: Vec<String>,
    pub running: HashMap<String, Process>,
    /// Whether the processes are told where to fail: by files in `faults/<node1, node2 or worker>`.
    pub faults: bool,
    /// Where a process reaches NATS, by its name, if not at the server itself.
    pub routes: HashMap<String, String>,
    /// What the processes log: a filter of `RUST_LOG`, the usual one if empty.
    pub log: &'static str,
    /// How long workers may be silent before their jobs go to others, seconds. Long beside what a busy machine keeps a process waiting;
    /// short where workers are killed and others wait for that.
    pub silent: u32,
    /// Settings that every worker gets besides the usual.
    pub worker_settings: Vec<(&'static str, String)>,
    /// The same of every node; `{role}` stands for its name.
    pub node_settings: Vec<(&'static str, String)>,
    started: u32,
}

impl Deployment {
    /// A nats-server and nothing else yet.
    pub fn new() -> Self {
        Self::on(NatsServer::start())
    }

    /// On this server, nothing else yet.
    pub fn on(nats: NatsServer) -> Self {
        Self {
            nats,
            folder: TempDir::new().unwrap(),
            initiator: KeyPair::new_user(),
            limited: KeyPair::new_user(),
            authoriser: KeyPair::new_user(),
            sealing: XKey::new(),
            reply: XKey::new(),
            nodes: [NodeSeeds::new(), NodeSeeds::new()],
            worker_noise: XKey::new(),
            other_workers: Vec::new(),
            other_initiators: Vec::new(),
            former_initiators: Vec::new(),
            running: HashMap::new(),
            faults: false,
            routes: HashMap::new(),
            log: "",
            silent: 10,
            worker_settings: Vec::new(),
            node_settings: Vec::new(),
            started: 0,
        }
    }

    /// Two nodes and this many workers, ready.
    pub fn start(workers: u32) -> Self {
        Self::new().with(workers)
    }

    /// The same for a test that kills workers while they have jobs in hand, and has others go on.
    pub fn impatient(workers: u32) -> Self {
        let mut service = Self::new();
        service.silent = 1;
        service.with(workers)
    }

    fn with(mut self, workers: u32) -> Self {
        self.start_node("node1");
        self.start_node("node2");
        for number in 1..=workers {
            self.start_worker(&format!("worker{number}"));
        }
        self
    }

    /// The address at which this process reaches NATS.
    fn route(&self, name: &str) -> String {
        self.routes.get(name).cloned().unwrap_or_else(|| self.nats.url())
    }

    fn spawn(&mut self, name: &str, mut command: Command) {
        self.started += 1;
        if !self.log.is_empty() {
            command.env("RUST_LOG", self.log);
        }
        let log = self.folder.path().join(format!("{name}.{}.log", self.started));
        let process = Process::spawn(name, command, &log);
        self.running.insert(name.to_owned(), process);
    }

    /// Settings of a node, as environment. Its data directory exists.
    pub fn node_env(&self, name: &str) -> HashMap<String, String> {
        let index = usize::from(name == "node2");
        let (own, peer) = (&self.nodes[index], &self.nodes[1 - index]);
        let data = self.folder.path().join(name);
        std::fs::create_dir_all(&data).unwrap();
        let policy = self.folder.path().join(format!("{name}.policy.toml"));
        let operations = serde_json::to_string(Op::ALL).unwrap();
        let text = format!(
            "version = 1\n\
             [[initiators]]\nname = \"backend\"\nkeys = {}\nformer = {}\noperations = {operations}\n\
             curves = [\"secp256k1\", \"ed25519\"]\nraw_digests = true\n\
             [[initiators]]\nname = \"limited\"\nkey = \"{}\"\noperations = [\"sign\"]\ncurves = [\"ed25519\"]\n",
            serde_json::to_string(&[&[self.initiator.public_key()], self.other_initiators.as_slice()].concat())
                .unwrap(),
            serde_json::to_string(&self.former_initiators).unwrap(),
            self.limited.public_key(),
        );
        std::fs::write(&policy, text).unwrap();
        [
            ("TREFOIL_ROLE", name.to_owned()),
            ("TREFOIL_NATS_URL", self.route(name)),
            ("TREFOIL_DATA_DIR", data.to_str().unwrap().to_owned()),
            ("TREFOIL_MASTER_KEY", format!("{:02x}", index + 7).repeat(32)),
            ("TREFOIL_IDENTITY_SEED", own.identity.seed().unwrap()),
            ("TREFOIL_NOISE_KEY", own.noise.seed().unwrap()),
            ("TREFOIL_PEER_IDENTITY", peer.identities()),
            ("TREFOIL_FORMER_IDENTITIES", own.former.join(",")),
            ("TREFOIL_WORKERS", [&[self.worker_noise.public_key()], self.other_workers.as_slice()].concat().join(",")),
            ("TREFOIL_AUTHORISERS", self.authoriser.public_key()),
            ("TREFOIL_POLICY_FILE", policy.to_str().unwrap().to_owned()),
        ]
        .into_iter()
        .chain(self.node_settings.iter().map(|(key, value)| (*key, value.replace("{role}", name))))
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    /// Starts a node and waits until it serves; one that ran before finds its data again.
    pub fn start_node(&mut self, name: &str) {
        self.launch_node(name);
        self.process(name).wait_for(NODE_READY);
    }

    /// Starts a node and does not wait.
    pub fn launch_node(&mut self, name: &str) {
        let mut process = command("trefoil-node");
        process.envs(self.node_env(name));
        if self.faults {
            process.env("TREFOIL_FAULTS", self.path("faults").join(name));
        }
        self.spawn(name, process);
    }

    /// Settings of a worker, as environment.
    pub fn worker_env(&self, name: &str) -> HashMap<String, String> {
        let [node1, node2] = &self.nodes;
        [
            ("TREFOIL_NATS_URL", self.route(name)),
            ("TREFOIL_NOISE_KEY", self.worker_noise.seed().unwrap()),
            ("TREFOIL_NODE1_IDENTITY", node1.identities()),
            ("TREFOIL_NODE2_IDENTITY", node2.identities()),
            ("TREFOIL_NODE1_NOISE", node1.noises()),
            ("TREFOIL_NODE2_NOISE", node2.noises()),
            ("TREFOIL_SEALING_KEYS_FILE", self.sealing_keys().display().to_string()),
            ("TREFOIL_INITIATORS", format!("{},{}", self.served().join("="), self.limited.public_key())),
            ("TREFOIL_ACK_WAIT_SECONDS", self.silent.to_string()),
        ]
        .into_iter()
        .chain(self.worker_settings.iter().map(|(key, value)| (*key, value.clone())))
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    /// The same as a worker's setting has them.
    fn served(&self) -> Vec<String> {
        let former = |name: String| if self.former_initiators.contains(&name) { format!("-{name}") } else { name };
        self.initiator_names().into_iter().map(former).collect()
    }

    /// All keys of the backend, the present one first.
    fn initiator_names(&self) -> Vec<String> {
        [&[self.initiator.public_key()], self.other_initiators.as_slice(), &self.former_initiators].concat()
    }

    /// Starts a worker and waits until it takes jobs.
    pub fn start_worker(&mut self, name: &str) {
        self.launch_worker(name);
        self.process(name).wait_for(WORKER_READY);
    }

    /// Starts a worker and does not wait.
    pub fn launch_worker(&mut self, name: &str) {
        let mut process = command("trefoil-worker");
        process.envs(self.worker_env(name));
        if self.faults {
            process.env("TREFOIL_FAULTS", self.path("faults").join("worker"));
        }
        self.spawn(name, process);
    }

    /// The file of the workers' sealing keys, made with the first of them.
    pub fn sealing_keys(&self) -> PathBuf {
        let path = self.path("sealing.keys");
        if !path.exists() {
            std::fs::write(&path, self.sealing.seed().unwrap()).unwrap();
        }
        path
    }

    /// What a backend pins of the nodes.
    pub fn identities(&self) -> NodeIdentities {
        let identity = |node: &NodeSeeds| {
            let (_, public) = nkeys::from_public_key(&node.identity.public_key()).unwrap();
            ed25519_dalek::VerifyingKey::from_bytes(&public).unwrap()
        };
        NodeIdentities { node1: vec![identity(&self.nodes[0])], node2: vec![identity(&self.nodes[1])] }
    }

    pub fn kill(&mut self, name: &str) {
        self.running.remove(name).unwrap().kill9();
    }

    /// Stops both nodes (SIGSTOP), or has them go on.
    pub fn nodes_are_silent(&self, silent: bool) {
        for node in ["node1", "node2"] {
            self.running[node].signal(if silent { "STOP" } else { "CONT" });
        }
    }

    /// Whether a worker went on without a lease because JetStream did not answer in time.
    pub fn without_leases(&self) -> bool {
        self.running.iter().any(|(name, process)| name.starts_with("worker") && process.log().contains("no leases"))
    }

    pub fn process(&mut self, name: &str) -> &mut Process {
        self.running.get_mut(name).unwrap()
    }

    /// Settings of the backend, as environment.
    pub fn client_env(&self) -> HashMap<String, String> {
        [
            ("TREFOIL_NATS_URL", self.nats.url()),
            ("TREFOIL_INITIATOR_SEED", self.initiator.seed().unwrap()),
            ("TREFOIL_FORMER_INITIATORS", self.initiator_names().split_off(1).join(",")),
            ("TREFOIL_NODE1_IDENTITY", self.nodes[0].identities()),
            ("TREFOIL_NODE2_IDENTITY", self.nodes[1].identities()),
            ("TREFOIL_WORKER_KEY", self.sealing.public_key()),
            ("TREFOIL_REPLY_SEED", self.reply.seed().unwrap()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// A backend with more or other settings.
    pub async fn backend_with(&self, settings: &[(&str, String)]) -> Backend {
        let mut env = self.client_env();
        env.extend(settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        Backend::connect(ClientConfig::read(Settings::from_env(env)).unwrap()).await.unwrap()
    }

    pub async fn backend(&self) -> Backend {
        self.backend_with(&[]).await
    }

    /// The command line with the backend's settings.
    pub fn cli(&self) -> Command {
        let mut process = command("trefoil");
        process.current_dir(self.folder.path()).envs(self.client_env());
        process.env("TREFOIL_PASSWORD", std::str::from_utf8(PASSWORD).unwrap());
        process
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub fn password() -> Password {
    Password::new(Zeroizing::new(PASSWORD.to_vec())).unwrap()
}

pub fn material(new: &NewKey) -> SigningMaterial {
    SigningMaterial {
        key_id: new.key.key_id,
        public_key: new.key.public_key.clone(),
        chain_code: new.key.chain_code,
        encrypted_share: new.encrypted_share.clone(),
        secret_store: new.secret_store.clone(),
    }
}

/// The code that a result ends in; panics for a success.
pub fn code(result: &JobResult) -> ErrorCode {
    match &result.outcome {
        Outcome::Error { error } => error.code,
        Outcome::Ok { .. } => panic!("succeeded: {result:?}"),
    }
}

/// Publishes a request as it stands and awaits whatever is stored for it.
pub async fn outcome(backend: &Backend, request: &SignedRequest) -> JobResult {
    tokio::time::timeout(Duration::from_secs(40), backend.run(request)).await.expect("answered in time").unwrap()
}

/// Makes the requests that a well-behaved backend cannot.
pub struct Forge<'a> {
    pub backend: &'a Backend,
    pub reply: SealKey,
}

impl<'a> Forge<'a> {
    pub fn new(backend: &'a Backend) -> Self {
        Self { reply: backend.reply_key().unwrap(), backend }
    }

    /// A good sign request.
    pub fn sign(&self, key: &SigningMaterial, input: &SignInput, secrets: &Secrets) -> SignedRequest {
        let lifetime = Duration::from_secs(600);
        self.backend.jobs().sign(key.key_id, Method::Default, input, secrets, &self.reply, lifetime).unwrap()
    }

    /// The request with its body changed, and signed again.
    pub fn edit(&self, request: &SignedRequest, change: impl FnOnce(&mut serde_json::Value)) -> SignedRequest {
        let mut body = serde_json::from_slice(&request.body).unwrap();
        change(&mut body);
        self.signed(request, serde_json::to_vec(&body).unwrap())
    }

    /// The request with another body, signed.
    pub fn signed(&self, request: &SignedRequest, body: Vec<u8>) -> SignedRequest {
        let SignedRequest { op, job_id, key_id, expires_at, .. } = request.clone();
        let made = self.backend.jobs().sign_body(op, job_id, key_id, expires_at, body).unwrap();
        SignedRequest { subject: request.subject.clone(), ..made }
    }
}

pub fn secrets(key: &SigningMaterial) -> Secrets {
    Secrets {
        password: Some(password()),
        encrypted_share: Some(key.encrypted_share.clone()),
        secret_store: Some(key.secret_store.clone()),
        ..Secrets::default()
    }
}

pub const QUICK: KdfParams = KdfParams::Argon2id { memory_kib: 64, passes: 1 };

pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn new_key(backend: &Backend, curve: Curve) -> SigningMaterial {
    let new = backend.generate(curve, QUICK, password()).await.unwrap();
    backend.committed(&new.key, PATIENCE).await.unwrap();
    material(&new)
}

pub fn message(text: &str) -> SignInput {
    SignInput::Ed25519 { message: text.as_bytes().to_vec() }
}

pub fn digest(byte: u8) -> SignInput {
    SignInput::Secp256k1 { digest: [byte; 32], path: None }
}

pub async fn wait_until_empty(jetstream: &async_nats::jetstream::Context) {
    let started = Instant::now();
    for queue in ["MPC_JOBS", "MPC_BULK"] {
        while jetstream.get_stream(queue).await.unwrap().cached_info().state.messages > 0 {
            assert!(started.elapsed() < PATIENCE, "jobs are left in {queue}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Has worker1 make shares, store their result, and not commit them: the nodes are gone between the two, and stay
/// away. Earlier results are lost.
pub async fn stored_only(service: &mut Deployment, backend: &Backend, request: &SignedRequest) -> JobResult {
    let nats = service.nats.connect().await;
    let jetstream = async_nats::jetstream::new(nats.clone());
    let mut started = crate::support::subscribed(&nats, format!("mpc.event.{}.*", request.op)).await;
    // Silent nodes keep the worker from a result until there is no stream for it.
    service.nodes_are_silent(true);
    backend.publish(request).await.unwrap();
    tokio::time::timeout(PATIENCE, started.next()).await.unwrap().unwrap();
    jetstream.delete_stream("MPC_RESULTS").await.unwrap();
    service.nodes_are_silent(false);
    service.process("worker1").wait_for("the result is not stored yet");
    service.kill("node1");
    service.kill("node2");
    trefoil::jobs::streams::provision(&jetstream, &Default::default()).await.unwrap();
    let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
    service.process("worker1").wait_for("the key waits for its commit");
    result
}
