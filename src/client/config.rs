//! Settings of a backend that uses this library, such as the command line.

use crate::client::verify::NodeIdentities;
use crate::config::{ConfigError, NatsConfig, Settings, keys};
use crate::wire::{InitiatorId, Lane, SealKey};
use nkeys::{KeyPair, XKey};
use std::time::Duration;
use zeroize::Zeroizing;

/// One backend. Settings, with the environment's prefix left out:
///
/// | setting | meaning |
/// |---|---|
/// | `nats_*` | see [`NatsConfig`] |
/// | `initiator_seed[_file]` | NKEY seed (`SU…`) that signs jobs; never the connection's |
/// | `former_initiators` (none) | public keys that this backend signed with before, or that other instances of it sign with: keys attested to them are its own, too |
/// | `node1_identity`, `node2_identity` | the nodes' Ed25519 identities, as their operators handed them over; lists, while they are rotated |
/// | `worker_key` | the workers' current sealing key (`X…`) |
/// | `reply_seed[_file]` | xkey seed (`SX…`) that opens secrets in results; without it each process makes one, and results are lost with the process that asked for them (`trefoil generate` keeps its own in the draft until the key file is written) |
/// | `job_lifetime_seconds` (60) | after this long a job ends without a result |
/// | `lane` (`interactive`) | how its jobs wait: `interactive`, or `bulk` for what nobody waits for |
/// | `password[_file]` | the password, instead of a prompt |
pub struct ClientConfig {
    /// Connection to NATS.
    pub nats: NatsConfig,
    /// Signs jobs.
    pub initiator: KeyPair,
    /// Other names of the same backend.
    pub former_initiators: Vec<InitiatorId>,
    /// The nodes' pinned identities.
    pub nodes: NodeIdentities,
    /// Secrets are sealed to it.
    pub worker_key: SealKey,
    /// Opens secrets in results.
    pub reply: Option<XKey>,
    /// Lifetime of jobs.
    pub lifetime: Duration,
    /// How jobs wait.
    pub lane: Lane,
    /// The password, if it is configured.
    pub password: Option<Zeroizing<String>>,
}

impl ClientConfig {
    /// Reads the given settings.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn read(mut settings: Settings) -> Result<Self, ConfigError> {
        let s = &mut settings;
        let nats = NatsConfig::read(s);
        let initiator = s.secret("initiator_seed", "an NKEY seed of a user (SU…)", user_seed, true);
        let former_initiators = s.list("former_initiators", str::parse::<InitiatorId>);
        let node1 = s.some("node1_identity", keys::identity_public);
        let node2 = s.some("node2_identity", keys::identity_public);
        if let (Some(node1), Some(node2)) = (&node1, &node2)
            && node1.iter().any(|identity| node2.contains(identity))
        {
            s.problem("node2_identity", "is node 1's identity");
        }
        let worker_key = s.required("worker_key", str::parse::<SealKey>);
        let reply = s.secret("reply_seed", "an xkey seed (SX…)", |text| XKey::from_seed(text).ok(), false);
        let lifetime = s.number("job_lifetime_seconds", 60, 1..=3_600);
        let lane = s.or("lane", Lane::default(), str::parse::<Lane>);
        let password = s.content("password", false);
        let config = (|| {
            Some(Self {
                nats: nats?,
                initiator: initiator?,
                former_initiators: former_initiators?,
                nodes: NodeIdentities { node1: node1?, node2: node2? },
                worker_key: worker_key?,
                reply,
                lifetime: Duration::from_secs(lifetime?),
                lane: lane?,
                password,
            })
        })();
        settings.finish(config)
    }
}

fn user_seed(text: &str) -> Option<KeyPair> {
    let pair = KeyPair::from_seed(text).ok()?;
    pair.public_key().starts_with('U').then_some(pair)
}
