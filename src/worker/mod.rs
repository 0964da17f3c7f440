//! A worker: takes jobs from the queue, plays the client party in them, stores one result per job. Stateless: everything that
//! matters is in JetStream or at the nodes, and any number of workers share the work.
//!
//! The way of a job: [`service`] pulls it, [`pipeline`] checks it, finds or makes its result and stores it, [`sign`] and
//! [`generate`] run the protocol with the nodes, [`commit`] finishes a generation,
//! [`password`] validates and changes passwords, [`orders`] has the nodes freeze and destroy keys.

#![allow(clippy::result_large_err, reason = "an answer of another kind is moved once, and never when all is well")]

mod api;
mod commit;
mod crypto;
mod failure;
mod generate;
mod nodes;
mod orders;
mod password;
mod pipeline;
mod public_key;
mod retry;
mod service;
mod sign;

pub use service::run;

use crate::auth::TimePolicy;
use crate::channel::NodeChannel;
use crate::client::verify::NodeIdentities;
use crate::jobs::keyed_mutex::{Guard, KeyedMutex};
use crate::seal::WorkerKeys;
use crate::vault::Vault;
use crate::wire::{ErrorCode, KeyId};
use async_nats::jetstream::Context;
use crypto::CryptoPool;
use failure::Failed;
use retry::{Schedule, Stop};

/// What all jobs of one worker use.
struct Shared {
    nats: async_nats::Client,
    jetstream: Context,
    node1: NodeChannel,
    node2: NodeChannel,
    /// The nodes' pinned identities.
    nodes: NodeIdentities,
    sealing: WorkerKeys,
    vault: Vault,
    keys: KeyedMutex<KeyId>,
    crypto: CryptoPool,
    times: TimePolicy,
    /// Names this process in events and logs.
    worker_id: String,
}

impl Shared {
    /// Waits for the key's turn in this process.
    ///
    /// # Errors
    /// The job goes away if too many wait for the key already; `KEY_BUSY` if the turn does not come in time.
    async fn hold(&self, key: KeyId, schedule: &mut Schedule) -> Result<Guard<KeyId>, Stop> {
        let busy = |why: String| Failed::new(ErrorCode::KeyBusy, why);
        loop {
            match tokio::time::timeout(schedule.left(), self.keys.lock(key)).await {
                Ok(Ok(guard)) => return Ok(guard),
                Ok(Err(full)) => schedule.leave(busy(full.to_string())).await?,
                Err(_) => return Err(busy("other jobs of this key took all the time".to_owned()).into()),
            }
        }
    }
}
