//! Keys locked for ever after a failed check: the client party's side of the lock (node 1 keeps its own).

use super::once::{self, Unavailable};
use crate::wire::subject::{self, BANS_STREAM};
use crate::wire::{Fixed, JobId, KeyId};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use serde::{Deserialize, Serialize};

/// Why one epoch of a key is locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ban {
    /// Always 1.
    pub version: u32,
    /// The key.
    pub key_id: KeyId,
    /// The epoch of its shares; recovery makes a new one.
    pub epoch: u32,
    /// The check that failed, named as in docs/protocol.md.
    pub check: String,
    /// Whose message failed it, such as `node1`.
    pub culprit: String,
    /// The job that ran.
    pub job_id: JobId,
    /// SHA-256 of that job's body.
    pub job_digest: Fixed<32>,
    /// Unix milliseconds.
    pub at: u64,
}

/// Locks the key's epoch. A second ban of the same epoch changes nothing.
///
/// # Errors
/// [`Unavailable`]; banning again is safe.
pub async fn record(jetstream: &Context, ban: &Ban) -> Result<(), Unavailable> {
    let body = serde_json::to_vec(ban).map_err(|e| Unavailable { stream: BANS_STREAM, reason: e.to_string() })?;
    once::put(jetstream, BANS_STREAM, &subject::ban(&ban.key_id, ban.epoch), HeaderMap::new(), body.into()).await?;
    Ok(())
}

/// Whether the key's epoch is locked. Any record counts, also one that cannot be read.
///
/// # Errors
/// [`Unavailable`]; the key must then not be used.
pub async fn is_banned(jetstream: &Context, key: &KeyId, epoch: u32) -> Result<bool, Unavailable> {
    Ok(once::get(jetstream, BANS_STREAM, &subject::ban(key, epoch)).await?.is_some())
}

/// As [`record`], tried until it is stored. Once begun it goes on by itself, also where the caller stops waiting.
pub async fn record_until_stored(jetstream: Context, ban: Ban) {
    let recording = tokio::spawn(async move {
        while let Err(error) = record(&jetstream, &ban).await {
            tracing::error!(key = %ban.key_id, %error, "a ban is not stored yet");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    });
    if let Err(error) = recording.await {
        tracing::error!(%error, "a ban was not recorded");
    }
}
