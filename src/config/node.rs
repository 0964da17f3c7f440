//! Settings of `trefoil-node`.

use super::{ConfigError, NatsConfig, Settings, keys, read_metrics_listen};
use crate::policy::{Policy, PolicyError};
use crate::wire::InitiatorId;
use ed25519_dalek::{SigningKey, VerifyingKey};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use trefoil_protocol::{Party, Secret};

/// One node. Settings, with the environment's prefix left out:
///
/// | setting | meaning |
/// |---|---|
/// | `role` | `node1` (co-signer) or `node2` (recovery) |
/// | `nats_*` | see [`NatsConfig`] |
/// | `data_dir` | directory of the store, the slot file and the audit log; one process only |
/// | `master_key[_file]` | 32 bytes, hex or base64: wraps every share's data key |
/// | `identity_seed[_file]` | NKEY seed of the node's Ed25519 identity, which signs attestations |
/// | `noise_key[_file]` | X25519 private key of the channel: xkey seed (`SX…`), hex or base64 |
/// | `former_identities` (none) | list of the identities that this node had before, public: what it attested under them it attests again |
/// | `peer_identity` | the other node's Ed25519 identity, public; a list, while it is rotated |
/// | `workers` | list of the workers' X25519 public keys; nobody else gets a channel |
/// | `policy_file` | who may ask for what; see docs/policy.md |
/// | `authorisers` (none) | list of the recovery authorisers' public user NKEYs (`U…`); without one, what needs their consent is refused |
/// | `metrics_listen` (none) | address and port of `/metrics`, `/livez` and `/readyz`; port 0 takes a free one |
/// | limits | see [`NodeLimits`] |
/// | backups | see [`BackupSettings`] |
pub struct NodeConfig {
    /// `Node1` or `Node2`.
    pub role: Party,
    /// Connection to NATS.
    pub nats: NatsConfig,
    /// Directory of everything durable.
    pub data_dir: PathBuf,
    /// Wraps the data keys of the slot file, 32 bytes.
    pub master_key: Secret<[u8; 32]>,
    /// Signs attestations, commits and aborts.
    pub identity: SigningKey,
    /// X25519 private key of the channel, 32 bytes.
    pub noise_key: Secret<[u8; 32]>,
    /// Those that it had before.
    pub former_identities: Vec<VerifyingKey>,
    /// The other node's identities: one, and while it changes it the other.
    pub peer_identity: Vec<VerifyingKey>,
    /// X25519 public keys of the workers.
    pub workers: Vec<keys::NoisePublic>,
    /// Read again on SIGHUP.
    pub policy_file: PathBuf,
    /// Who may ask for what; everybody else is refused.
    pub policy: Policy,
    /// Recovery authorisers.
    pub authorisers: Vec<InitiatorId>,
    /// Where metrics and health are served; nowhere without it.
    pub metrics_listen: Option<SocketAddr>,
    /// Bounds of time and memory.
    pub limits: NodeLimits,
    /// Where backups go; without it there are none.
    pub backup: Option<BackupSettings>,
}

/// Backups of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSettings {
    /// `backup_dir`: where they are written; it must exist.
    pub directory: PathBuf,
    /// `backup_recipients`: public xkeys (`X…`), each of which opens them.
    pub recipients: Vec<String>,
    /// `backup_every_minutes` (on request only): how often the serving node takes one.
    pub every: Option<Duration>,
    /// `backup_keep` (30): how many of this node's are kept in the directory.
    pub keep: usize,
    /// `backup_slots_copy` (none): a copy of the slot file that is overwritten in place with each backup, on another medium.
    pub slots_copy: Option<PathBuf>,
}

/// Bounds of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLimits {
    /// `max_sessions` (default 1,024): sessions held in memory at once; a signing session is about 100 KB.
    pub max_sessions: usize,
    /// `session_ttl_seconds` (30): a session that hears nothing for so long is forgotten.
    pub session_ttl: Duration,
    /// `max_channels` (4,096): worker channels held at once, about 3 KB each.
    pub max_channels: usize,
    /// `crypto_threads` (the number of cores): protocol steps computed at once.
    pub crypto_threads: usize,
    /// `crypto_queue` (256): steps waiting for a thread; beyond it the answer is `OVERLOADED`.
    pub crypto_queue: usize,
    /// `password_attempts` (10): consecutive failures per key before `TOO_MANY_ATTEMPTS`.
    pub password_attempts: u32,
    /// `password_lockout_seconds` (900): how long a key then refuses.
    pub password_lockout: Duration,
    /// `undecided_after_seconds` (60): for how long node 2 has prepared what it asks node 1 about.
    pub undecided_after: Duration,
    /// `abort_after_seconds` (600): for how long node 1 is asked about shares that it never prepared before it declares them void.
    pub abort_after: Duration,
    /// `recovery_wait_seconds` (0): how long a recovery waits before a second job may execute it.
    pub recovery_wait: Duration,
    /// `recovery_window_seconds` (604,800): how long after that a second job may.
    pub recovery_window: Duration,
    /// `drain_seconds` (30): how long running sessions may go on after SIGTERM.
    pub drain: Duration,
}

impl NodeConfig {
    /// The identities of this node, public, the present one first.
    #[must_use]
    pub fn identities(&self) -> Vec<VerifyingKey> {
        std::iter::once(self.identity.verifying_key()).chain(self.former_identities.iter().copied()).collect()
    }

    /// Reads the process environment and the file that `TREFOIL_CONFIG` names.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn load() -> Result<Self, ConfigError> {
        Self::read(Settings::from_process())
    }

    /// Reads the given settings.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(mut settings: Settings) -> Result<Self, ConfigError> {
        let s = &mut settings;
        let role = s.required("role", |text| match text {
            "node1" => Ok(Party::Node1),
            "node2" => Ok(Party::Node2),
            _ => Err("must be node1 or node2"),
        });
        let nats = NatsConfig::read(s);
        let data_dir = s.required("data_dir", |text| Ok::<_, String>(PathBuf::from(text)));
        let master_key = s.secret("master_key", "32 bytes as hex or base64", keys::secret32, true);
        let identity = s.secret("identity_seed", "an NKEY seed of an Ed25519 key", keys::identity_private, true);
        let noise_key = s.secret("noise_key", "an xkey seed (SX…), hex or base64", keys::noise_private, true);
        let former_identities = s.list("former_identities", keys::identity_public);
        let peer_identity = s.some("peer_identity", keys::identity_public);
        let workers = s.list("workers", keys::noise_public);
        if workers.as_ref().is_some_and(Vec::is_empty) {
            s.problem("workers", "must name at least one worker's X25519 public key");
        }
        let policy = read_policy(s);
        let authorisers = s.list("authorisers", str::parse::<InitiatorId>);
        let metrics_listen = read_metrics_listen(s);
        let limits = NodeLimits::read(s);
        let backup = BackupSettings::read(s);
        if let (Some(own), Some(former), Some(peer)) = (&identity, &former_identities, &peer_identity) {
            // An attestation does not say which node made it: a key that stood for both would let one node's word pass for two.
            if peer.contains(&own.verifying_key()) {
                s.problem("peer_identity", "is this node's own identity");
            }
            if former.iter().any(|former| peer.contains(former)) {
                s.problem("peer_identity", "is also in former_identities, so it is this node's own");
            }
        }
        let config = (|| {
            let (policy_file, policy) = policy?;
            Some(Self {
                role: role?,
                nats: nats?,
                data_dir: data_dir?,
                master_key: master_key?,
                identity: identity?,
                noise_key: noise_key?,
                former_identities: former_identities?,
                peer_identity: peer_identity?,
                workers: workers?,
                policy_file,
                policy,
                authorisers: authorisers?,
                metrics_listen: metrics_listen?,
                limits: limits?,
                backup: backup?,
            })
        })();
        settings.finish(config)
    }
}

/// The policy file's path and content; each of its problems is a problem of its own.
fn read_policy(s: &mut Settings) -> Option<(PathBuf, Policy)> {
    let path = s.required("policy_file", |text| Ok::<_, String>(PathBuf::from(text)))?;
    match Policy::load(&path) {
        Ok(policy) => Some((path, policy)),
        Err(PolicyError(problems)) => {
            for problem in problems {
                s.problem("policy_file", problem);
            }
            None
        }
    }
}

impl BackupSettings {
    /// `Some(None)` where there are to be no backups.
    #[allow(clippy::option_option, reason = "a problem, nothing, or settings")]
    fn read(s: &mut Settings) -> Option<Option<Self>> {
        let path = |text: &str| Ok::<_, String>(Some(PathBuf::from(text)));
        let directory = s.or("backup_dir", None, path);
        let recipients = s.list("backup_recipients", |text| {
            nkeys::XKey::from_public_key(text).map(|key| key.public_key()).map_err(|_| "must be public xkeys (X…)")
        });
        let every = s.number("backup_every_minutes", 0, 0..=525_600);
        let keep = s.number("backup_keep", 30, 1..=1_000_000);
        let slots_copy = s.or("backup_slots_copy", None, path);
        let (directory, recipients, slots_copy) = (directory?, recipients?, slots_copy?);
        match directory {
            Some(_) if recipients.is_empty() => s.problem("backup_recipients", "must name who can open the backups"),
            None if !recipients.is_empty() => s.problem("backup_dir", "must say where the backups go"),
            None if slots_copy.is_some() => s.problem("backup_slots_copy", "is made with backups: set backup_dir too"),
            _ => {}
        }
        let every = Some(every?).filter(|minutes| *minutes > 0).map(|minutes| Duration::from_secs(minutes * 60));
        let keep = keep? as usize;
        Some(directory.map(|directory| Self { directory, recipients, every, keep, slots_copy }))
    }
}

impl NodeLimits {
    fn read(s: &mut Settings) -> Option<Self> {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
        let max_sessions = s.number("max_sessions", 1_024, 1..=65_536);
        let session_ttl = s.number("session_ttl_seconds", 30, 1..=600);
        let max_channels = s.number("max_channels", 4_096, 1..=65_536);
        let crypto_threads = s.number("crypto_threads", cores, 1..=1_024);
        let crypto_queue = s.number("crypto_queue", 256, 1..=65_536);
        let password_attempts = s.number("password_attempts", 10, 1..=1_000);
        let password_lockout = s.number("password_lockout_seconds", 900, 1..=86_400);
        let undecided_after = s.number("undecided_after_seconds", 60, 1..=86_400);
        let abort_after = s.number("abort_after_seconds", 600, 1..=86_400);
        let recovery_wait = s.number("recovery_wait_seconds", 0, 0..=31_536_000);
        let recovery_window = s.number("recovery_window_seconds", 604_800, 60..=31_536_000);
        if let (Some(wait), Some(window)) = (recovery_wait, recovery_window)
            && window < wait
        {
            // Where one node heard of the first job only, its wait may end after the other one's window.
            s.problem("recovery_window_seconds", "must not be shorter than recovery_wait_seconds");
        }
        let drain = s.number("drain_seconds", 30, 1..=600);
        // The bounds above fit every target of these conversions.
        Some(Self {
            max_sessions: max_sessions? as usize,
            session_ttl: Duration::from_secs(session_ttl?),
            max_channels: max_channels? as usize,
            crypto_threads: crypto_threads? as usize,
            crypto_queue: crypto_queue? as usize,
            password_attempts: password_attempts? as u32,
            password_lockout: Duration::from_secs(password_lockout?),
            undecided_after: Duration::from_secs(undecided_after?),
            abort_after: Duration::from_secs(abort_after?),
            recovery_wait: Duration::from_secs(recovery_wait?),
            recovery_window: Duration::from_secs(recovery_window?),
            drain: Duration::from_secs(drain?),
        })
    }
}
