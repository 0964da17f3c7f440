//! A worker: takes jobs from the queue, plays the client party in them, stores one result per job. Stateless: everything that
//! matters is in JetStream or at the nodes, and any number of workers share the work.
//!
//! The way of a job: [`service`] pulls it, [`pipeline`] checks it, finds or makes its result and stores it, [`sign`] and
//! [`generate`] run the protocol with the nodes, [`commit`] finishes what makes shares, [`source`] asks what a recovery or refresh
//! begins with, [`password`] proves, validates and changes passwords, [`orders`] has the nodes freeze and destroy keys, [`manage`] lists
//! keys and cancels jobs.

#![allow(clippy::result_large_err, reason = "an answer of another kind is moved once, and never when all is well")]

mod acting;
mod api;
mod batch;
mod commit;
mod company;
mod confirm;
mod failure;
mod generate;
mod hold;
mod manage;
mod nodes;
mod orders;
mod password;
mod pipeline;
mod public_key;
mod reconcile;
mod retry;
mod sealing;
mod service;
mod sign;
mod snapshots;
mod source;
mod telling;
mod unlock;
mod watch;

pub use service::run;

use crate::auth::TimePolicy;
use crate::channel::NodeChannel;
use crate::client::verify::NodeIdentities;
use crate::compute::Compute;
use crate::jobs::keyed_mutex::KeyedMutex;
use crate::jobs::lease::Leases;
use crate::jobs::owners::Owners;
use crate::telemetry::metrics::WorkerMetrics;
use crate::vault::{UnlockCache, Vault};
use crate::wire::{ErrorCode, Job, KdfParams, KeyId, Lane};
use acting::Acting;
use async_nats::jetstream::Context;
use company::Companies;
use failure::Failed;
use hold::Luggage;
use retry::{Schedule, Stop};
use sealing::Sealing;
use std::sync::Arc;
use std::time::Duration;

/// What all jobs of one worker use.
struct Shared {
    nats: async_nats::Client,
    jetstream: Context,
    node1: NodeChannel,
    node2: NodeChannel,
    /// The nodes' pinned identities.
    nodes: NodeIdentities,
    /// Which of them the nodes use now.
    acting: Acting,
    sealing: Sealing,
    vault: Vault,
    /// Data keys of earlier jobs, where they are kept.
    unlocked: Option<UnlockCache>,
    keys: KeyedMutex<KeyId, Luggage>,
    leases: Leases,
    companies: Companies,
    crypto: Compute,
    /// Items of a batch that go side by side.
    batch_items: usize,
    times: TimePolicy,
    /// Whose jobs are worked on.
    initiators: Owners,
    /// How long results are kept.
    results_kept: Duration,
    /// Names this process in events and logs.
    worker_id: String,
    metrics: Arc<WorkerMetrics>,
}

impl Shared {
    /// Whether a job may cost this worker anything: its times, and its initiator.
    ///
    /// # Errors
    /// `UNKNOWN_INITIATOR`, or that the job is not valid now.
    fn admit(&self, job: &Job, now: u64) -> Result<(), Failed> {
        self.times.check(job, now).map_err(|code| Failed::new(code, "by this worker's clock"))?;
        if self.initiators.serves(&job.initiator) {
            Ok(())
        } else {
            Err(Failed::new(ErrorCode::UnknownInitiator, "the workers do not know this initiator"))
        }
    }

    /// Forgets what is kept of a key's data keys.
    fn forget_unlocked(&self, key: KeyId) {
        if let Some(cache) = &self.unlocked {
            cache.forget(key);
        }
    }

    /// Makes room for others where too many large key derivations wait already: a waiting job keeps a place that a small one needs.
    ///
    /// # Errors
    /// [`Stop::Away`], or `OVERLOADED` if it is too late for that.
    async fn room_for(&self, lane: Lane, kdf: KdfParams, schedule: &mut Schedule) -> Result<(), Stop> {
        while self.vault.of(lane).is_full(kdf) {
            schedule.leave(Failed::new(ErrorCode::Overloaded, "too many large key derivations wait")).await?;
        }
        Ok(())
    }
}
