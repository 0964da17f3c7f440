//! The worker's sealing keys: opens the secrets of jobs, and takes other keys while it works, so that they can be rotated under load
//! (docs/rotation.md).

use super::Shared;
use super::failure::Failed;
use super::retry::{Schedule, Stop};
use crate::config::WorkerConfig;
use crate::jobs::bans::Bans;
use crate::jobs::owners::Owners;
use crate::seal::{SealError, Secrets, WorkerKeys};
use crate::wire::{InitiatorId, Job, SealKey};
use async_nats::jetstream::Context;
use nkeys::XKey;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::signal::unix::Signal;
use zeroize::Zeroizing;

/// The keys of the moment, and the bans, whose records are made with them.
pub struct Sealing {
    keys: RwLock<Arc<Keys>>,
    pub bans: Bans,
}

struct Keys {
    open: WorkerKeys,
    /// Who was seen to use which older key.
    late: Mutex<HashSet<(SealKey, InitiatorId)>>,
}

impl Sealing {
    /// With these keys, the newest first, for jobs of these initiators. `None` if there are no keys.
    pub fn new(keys: &[XKey], owners: Owners) -> Option<Self> {
        let seeds = seeds(keys)?;
        Some(Self { keys: RwLock::new(Arc::new(Keys::new(&seeds)?)), bans: Bans::serving(texts(&seeds), owners)? })
    }

    /// The key that new jobs should be sealed to.
    pub fn current(&self) -> SealKey {
        self.keys().open.current().clone()
    }

    /// Takes these keys, the newest first, in place of those that it has. Jobs in hand are not disturbed. False, and nothing changed, if
    /// there are none.
    fn replace(&self, keys: &[XKey]) -> bool {
        let Some(seeds) = seeds(keys) else { return false };
        let (Some(keys), true) = (Keys::new(&seeds), self.bans.replace_seeds(texts(&seeds))) else { return false };
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        true
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Keys {
    fn new(seeds: &[Zeroizing<String>]) -> Option<Self> {
        Some(Self { open: WorkerKeys::from_seeds(texts(seeds))?, late: Mutex::default() })
    }

    /// Says once who still seals to which older key: while somebody does, it must stay.
    fn note(&self, job: &Job) {
        let Some(key) = job.secrets().map(|sealed| &sealed.recipient_key).filter(|key| *key != self.open.current())
        else {
            return;
        };
        let seen = (key.clone(), job.initiator.clone());
        if self.late.lock().unwrap_or_else(PoisonError::into_inner).insert(seen) {
            tracing::info!(sealing_key = %key, initiator = %job.initiator, "jobs are sealed to an older key");
        }
    }
}

fn seeds(keys: &[XKey]) -> Option<Vec<Zeroizing<String>>> {
    keys.iter().map(|key| key.seed().ok().map(Zeroizing::new)).collect()
}

fn texts(seeds: &[Zeroizing<String>]) -> impl Iterator<Item = &str> {
    seeds.iter().map(|seed| seed.as_str())
}

impl Shared {
    /// Opens the secrets of a job.
    ///
    /// # Errors
    /// `SEAL_BROKEN`. Where this worker lacks the key, another may have it, one that was given new keys before or after this one: a
    /// young job goes back to the queue, any other ends as `UNKNOWN_WORKER_KEY`.
    pub(super) fn unseal(&self, job: &Job, schedule: &Schedule) -> Result<Secrets, Stop> {
        let keys = self.sealing.keys();
        match keys.open.open(job) {
            Ok(secrets) => {
                keys.note(job);
                Ok(secrets)
            }
            Err(error) => {
                let failed = Failed::new(error.code(), error.to_string());
                Err(if error == SealError::UnknownKey { schedule.elsewhere(failed) } else { failed.into() })
            }
        }
    }
}

/// Reads the settings again at each hangup, and takes the sealing keys that they have now. Settings with any problem change nothing.
pub async fn reload(shared: Arc<Shared>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        let read = tokio::task::spawn_blocking(WorkerConfig::load).await;
        match read.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string())) {
            Ok(config) if shared.sealing.replace(&config.sealing_keys) => {
                let (count, current) = (config.sealing_keys.len(), shared.sealing.current());
                tracing::info!(count, sealing_key = %current, "sealing keys loaded; other settings need a restart");
                tokio::spawn(renew_bans(shared.sealing.bans.clone(), shared.jetstream.clone()));
            }
            Ok(_) => tracing::error!("the sealing keys are kept: there are no others"),
            Err(error) => tracing::error!(%error, "the sealing keys are kept: the settings cannot be used"),
        }
    }
}

/// So that an older sealing seed can be taken away later without unlocking a key.
pub async fn renew_bans(bans: Bans, jetstream: Context) {
    while let Err(error) = bans.renew(&jetstream).await {
        tracing::warn!(%error, "the bans cannot be read");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}
