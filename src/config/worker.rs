//! Settings of `trefoil-worker`.

use super::{ConfigError, NatsConfig, Settings, keys, read_metrics_listen};
use crate::jobs::lease::LONGEST;
use crate::jobs::owners::{Names, Owners};
use crate::jobs::streams::StreamSettings;
use ed25519_dalek::VerifyingKey;
use nkeys::XKey;
use std::net::SocketAddr;
use std::time::Duration;
use trefoil_protocol::Secret;
use trefoil_protocol::ecdsa::batch::MAX_SIDE_BY_SIDE;

/// What a worker knows of one node.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// The node's Ed25519 identities, which verify its attestations and echoes: one, and while it changes it the other.
    pub identities: Vec<VerifyingKey>,
    /// The node's X25519 keys, which pin the channel: the same.
    pub noise: Vec<keys::NoisePublic>,
}

/// One worker. Settings, with the environment's prefix left out:
///
/// | setting | meaning |
/// |---|---|
/// | `nats_*` | see [`NatsConfig`] |
/// | `noise_key[_file]` | X25519 private key of the channel: xkey seed (`SX…`), hex or base64 |
/// | `node1_identity`, `node2_identity` | the nodes' Ed25519 identities, public; lists, while they are rotated |
/// | `node1_noise`, `node2_noise` | the nodes' X25519 keys, public; lists, while they are rotated |
/// | `sealing_keys[_file]` | xkey seeds (`SX…`) to which backends seal secrets, one a line, the newest first; old ones stay until the longest job age has passed; loaded again on SIGHUP |
/// | `initiators` | list of the `U…` keys whose jobs are worked on at all, `U…=U…` where one backend has several, `U…=-U…` where it had another one before, whose locks stay while its jobs are refused; what each of them may do is the nodes' decision |
/// | `concurrency` (64) | jobs worked on at once |
/// | `bulk_concurrency` (half of `concurrency`, at least 1) | the most of them that may be bulk jobs |
/// | `waiting` (256) | jobs in hand besides that wait for their key; the next one goes back to the queue for a while |
/// | `crypto_threads` (cores) | protocol steps and key derivations computed at once |
/// | `batch_items` (8) | items of a batch that are signed side by side, 1 to 9: each takes about 50 KB of a message to node 1 |
/// | `kdf_memory_kib` (327,680) | memory of all running key derivations together, at least 320 MiB; a quarter of it is for those of up to 64 MiB |
/// | `unlock_cache_seconds` (0: off) | how long a key's unwrapped data key is kept for its next job, at most 3,600: see SECURITY.md first |
/// | `key_queue` (64) | jobs of one key and lane that may wait inside this worker |
/// | `lease_seconds` (2) | how long other workers leave a key alone whose worker is gone; renewed every third of it |
/// | `reconcile_seconds` (60) | about how often node 2's open questions are brought to node 1 |
/// | `ack_wait_seconds` (2) | the consumer's redelivery time; in-progress is sent every third of it |
/// | `drain_seconds` (30) | how long running jobs may go on after SIGTERM |
/// | `metrics_listen` (none) | address and port of `/metrics`, `/livez` and `/readyz`; port 0 takes a free one |
/// | `metrics_seconds` (5) | how often a snapshot is published on `mpc.metrics.<workerId>`; 0: never |
/// | `replicas` (1) | replicas of the streams where this worker creates them |
/// | `jobs_per_key` (64) | the same: jobs of one key, operation and lane that may wait or run; the next is refused when it is published |
/// | `jobs_total` (1,000,000) | the same, of all keys of a lane |
/// | `results_kept_hours` (48) | the same: how long results are kept, at least twice the longest lifetime of a job |
pub struct WorkerConfig {
    /// Connection to NATS.
    pub nats: NatsConfig,
    /// X25519 private key of the channel, 32 bytes.
    pub noise_key: Secret<[u8; 32]>,
    /// The co-signer.
    pub node1: PeerConfig,
    /// The recovery node.
    pub node2: PeerConfig,
    /// Keys that open sealed secrets, at least one.
    pub sealing_keys: Vec<XKey>,
    /// Whose jobs are worked on, at least one.
    pub initiators: Owners,
    /// Jobs worked on at once.
    pub concurrency: usize,
    /// The most of them that may be bulk jobs, at least one.
    pub bulk_concurrency: usize,
    /// Jobs in hand besides that wait for their key.
    pub waiting: usize,
    /// Blocking threads for cryptography.
    pub crypto_threads: usize,
    /// Items of a batch that are signed side by side.
    pub batch_items: usize,
    /// Memory budget of key derivation, KiB.
    pub kdf_memory_kib: u32,
    /// How long unwrapped data keys are kept; zero: not at all.
    pub unlock_cache: Duration,
    /// Jobs of one key that may wait in this process.
    pub key_queue: usize,
    /// Life of a lease that is not renewed.
    pub lease: Duration,
    /// Redelivery time of the job consumer.
    pub ack_wait: Duration,
    /// How often node 2's open questions are brought to node 1.
    pub reconcile: Duration,
    /// Grace time of a drain.
    pub drain: Duration,
    /// Where metrics and health are served; nowhere without it.
    pub metrics_listen: Option<SocketAddr>,
    /// How often a snapshot is published; zero: never.
    pub metrics: Duration,
    /// What the streams are made with where they do not exist.
    pub streams: StreamSettings,
}

impl WorkerConfig {
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
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
        let nats = NatsConfig::read(s);
        let noise_key = s.secret("noise_key", "an xkey seed (SX…), hex or base64", keys::noise_private, true);
        let node1 = PeerConfig::read(s, "node1");
        let node2 = PeerConfig::read(s, "node2");
        if let (Some(node1), Some(node2)) = (&node1, &node2) {
            if node1.identities.iter().any(|identity| node2.identities.contains(identity)) {
                s.problem("node2_identity", "is node 1's identity");
            }
            if node1.noise.iter().any(|key| node2.noise.contains(key)) {
                s.problem("node2_noise", "is node 1's key");
            }
        }
        let sealing_keys = s.secret("sealing_keys", "xkey seeds (SX…), one a line", seeds, true);
        let initiators = s.list("initiators", str::parse::<Names>).and_then(|backends| {
            Owners::new(backends).map_err(|key| s.problem("initiators", format_args!("{key} is named twice"))).ok()
        });
        if initiators.as_ref().is_some_and(Owners::is_empty) {
            s.problem("initiators", "must name at least one initiator's public key (U…)");
        }
        let concurrency = s.number("concurrency", 64, 1..=4_096);
        let slots = concurrency.unwrap_or(1);
        let bulk_concurrency = s.number("bulk_concurrency", (slots / 2).max(1), 1..=slots);
        let waiting = s.number("waiting", 256, 1..=65_536);
        let crypto_threads = s.number("crypto_threads", cores, 1..=1_024);
        let batch_items = s.number("batch_items", 8, 1..=MAX_SIDE_BY_SIDE as u64);
        let kdf_memory_kib = s.number("kdf_memory_kib", 327_680, 1_024..=67_108_864);
        let unlock_cache = s.number("unlock_cache_seconds", 0, 0..=3_600);
        let key_queue = s.number("key_queue", 64, 1..=4_096);
        let lease = s.number("lease_seconds", 2, 1..=LONGEST);
        let ack_wait = s.number("ack_wait_seconds", 2, 1..=600);
        let reconcile = s.number("reconcile_seconds", 60, 1..=86_400);
        let drain = s.number("drain_seconds", 30, 1..=600);
        let metrics_listen = read_metrics_listen(s);
        let metrics = s.number("metrics_seconds", 5, 0..=3_600);
        let replicas = s.number("replicas", 1, 1..=5);
        let jobs_per_key = s.number("jobs_per_key", 64, 1..=100_000);
        let jobs_total = s.number("jobs_total", 1_000_000, 1..=1_000_000_000);
        let results_kept = s.number("results_kept_hours", 48, 2..=87_600);
        // The bounds above fit every target of these conversions.
        let config = (|| {
            Some(Self {
                nats: nats?,
                noise_key: noise_key?,
                node1: node1?,
                node2: node2?,
                sealing_keys: sealing_keys?,
                initiators: initiators?,
                concurrency: concurrency? as usize,
                bulk_concurrency: bulk_concurrency? as usize,
                waiting: waiting? as usize,
                crypto_threads: crypto_threads? as usize,
                batch_items: batch_items? as usize,
                kdf_memory_kib: kdf_memory_kib? as u32,
                unlock_cache: Duration::from_secs(unlock_cache?),
                key_queue: key_queue? as usize,
                lease: Duration::from_secs(lease?),
                ack_wait: Duration::from_secs(ack_wait?),
                reconcile: Duration::from_secs(reconcile?),
                drain: Duration::from_secs(drain?),
                metrics: Duration::from_secs(metrics?),
                metrics_listen: metrics_listen?,
                streams: StreamSettings {
                    replicas: replicas? as usize,
                    jobs_per_key: jobs_per_key? as i64,
                    jobs_total: jobs_total? as i64,
                    results_kept: Duration::from_secs(results_kept? * 3_600),
                },
            })
        })();
        settings.finish(config)
    }
}

impl PeerConfig {
    fn read(s: &mut Settings, node: &str) -> Option<Self> {
        let identities = s.some(&format!("{node}_identity"), keys::identity_public);
        let noise = s.some(&format!("{node}_noise"), keys::noise_public);
        Some(Self { identities: identities?, noise: noise? })
    }
}

fn seeds(text: &str) -> Option<Vec<XKey>> {
    let keys: Option<Vec<_>> = text
        .split([',', ' ', '\n'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| XKey::from_seed(part).ok())
        .collect();
    keys.filter(|keys| !keys.is_empty())
}
