//! Making a prepared key the key. Node 1 decides, on node 2's word that it is prepared; node 2 follows node 1's signed decision.
//! Everything here may be repeated, by any worker, at any time after the result is stored.

use super::Shared;
use super::confirm::Confirming;
use super::failure::Failed;
use super::nodes;
use super::retry::call_deadline;
use crate::channel::NodeChannel;
use crate::fault;
use crate::jobs::results;
use crate::wire::node::{NodeReply, NodeRequest};
use crate::wire::{ErrorCode, Fixed, JobResult, KeyId, KeyResult, Outcome};

/// Commits the attempt whose result is stored.
///
/// # Errors
/// `NODE_UNAVAILABLE` if a node cannot be asked: to be repeated. Otherwise the node's refusal.
pub async fn commit(shared: &Shared, key: &KeyResult) -> Result<(), Failed> {
    let mut confirming = Confirming::default();
    loop {
        match attempt(shared, key).await {
            Err(failed) => confirming.heard(shared, failed).await?,
            done => return done,
        }
    }
}

async fn attempt(shared: &Shared, key: &KeyResult) -> Result<(), Failed> {
    let request =
        |evidence: Fixed<64>| NodeRequest::Commit { key_id: key.key_id, transcript: key.transcript.0, evidence };
    let committed = nodes::call(&shared.node1, call_deadline(), request(key.attestations.node2), decision).await?;
    let op = fault::made_by(key.source_key_id, key.epoch);
    fault::step("decided", op, key.key_id);
    nodes::call(&shared.node2, call_deadline(), request(committed), decision).await?;
    fault::step("followed", op, key.key_id);
    Ok(())
}

/// Commits what the result on this subject names: a node said that the key is prepared and its generation's result is there.
///
/// # Errors
/// As [`commit`]; `KEY_NOT_READY` if no such result is stored.
pub async fn commit_stored(shared: &Shared, key_id: KeyId, subject: &str) -> Result<(), Failed> {
    match stored(shared, subject).await?.filter(|key| key.key_id == key_id) {
        Some(key) => commit(shared, &key).await,
        None => Err(Failed::new(ErrorCode::KeyNotReady, "the job that makes the key has no result yet")),
    }
}

/// The key whose new shares the result on this subject holds, if there is one.
///
/// # Errors
/// `OVERLOADED` if JetStream cannot be asked.
pub async fn stored(shared: &Shared, subject: &str) -> Result<Option<KeyResult>, Failed> {
    if !subject.starts_with("mpc.result.") {
        return Ok(None);
    }
    let result = results::find_at(&shared.jetstream, subject).await?;
    Ok(result.as_ref().and_then(generated).cloned())
}

/// Commits new shares of a key whose result is stored on one of these subjects, if any are of a later epoch than its shares are.
/// True if there were: the key is no longer what the nodes said.
///
/// # Errors
/// `NODE_UNAVAILABLE`, `OVERLOADED`: to be repeated.
pub async fn finish_stored(
    shared: &Shared,
    key_id: KeyId,
    epoch: u32,
    subjects: impl Iterator<Item = &String>,
) -> Result<bool, Failed> {
    for subject in subjects {
        let Some(key) = stored(shared, subject).await? else { continue };
        if key.epoch <= epoch || (key.key_id != key_id && key.source_key_id != Some(key_id)) {
            continue;
        }
        match commit(shared, &key).await {
            Ok(()) => return Ok(true),
            Err(failed) if failed.is_retryable() => return Err(failed),
            // An attempt that can no longer become the key is no obstacle.
            Err(failed) => tracing::info!(key = %key_id, %failed, "prepared shares stay behind"),
        }
    }
    Ok(false)
}

/// Has node 2 follow node 1, whose signed commit of this attempt it has not heard of. `brought` is the attempt that it was brought to
/// before.
///
/// # Errors
/// `NODE_UNAVAILABLE`: to be repeated. `PROTOCOL_ABORT` if node 2 cannot follow, or followed and says something else all the same.
pub async fn bring_forward(
    shared: &Shared,
    key_id: KeyId,
    transcript: [u8; 32],
    evidence: Fixed<64>,
    brought: &mut Option<[u8; 32]>,
) -> Result<(), Failed> {
    if brought.replace(transcript) == Some(transcript) {
        return Err(Failed::new(ErrorCode::ProtocolAbort, "the nodes hold different shares of the key"));
    }
    let request = NodeRequest::Commit { key_id, transcript, evidence };
    let followed = nodes::call(&shared.node2, call_deadline(), request, decision).await;
    followed.map_err(|failed| {
        if failed.is_retryable() {
            return failed;
        }
        let message = format!("node 2 does not hold the shares that node 1 committed: {failed}");
        Failed::new(ErrorCode::ProtocolAbort, message)
    })?;
    tracing::info!(key = %key_id, "node 2 was behind node 1 and followed");
    Ok(())
}

/// The key whose new shares a stored result holds.
pub fn generated(result: &JobResult) -> Option<&KeyResult> {
    match &result.outcome {
        Outcome::Ok { key: Some(key), secrets: Some(_), .. } => Some(key),
        _ => None,
    }
}

/// Drops a prepared attempt that will not become the key: in the background, as the job that made it may be at its end. Best
/// effort: what stays prepared harms nothing, but takes room at the nodes. Node 1 agrees only on the link on which it was asked to
/// prepare the attempt, which is the current one unless it was just renewed or lost.
pub fn discard(shared: &Shared, key_id: KeyId, transcript: [u8; 32]) {
    tokio::spawn(discard_at(shared.node1.clone(), shared.node2.clone(), key_id, transcript));
}

async fn discard_at(node1: NodeChannel, node2: NodeChannel, key_id: KeyId, transcript: [u8; 32]) {
    let request = |evidence| NodeRequest::Discard { key_id, transcript, evidence };
    let dropped = async {
        let aborted = nodes::call(&node1, call_deadline(), request(None), decision).await?;
        nodes::call(&node2, call_deadline(), request(Some(aborted)), decision).await
    };
    if let Err(error) = dropped.await {
        tracing::info!(key = %key_id, %error, "a prepared attempt stays behind");
    }
}

fn decision(reply: NodeReply) -> Result<Fixed<64>, NodeReply> {
    match reply {
        NodeReply::Committed { signature } | NodeReply::Aborted { signature } => Ok(signature),
        other => Err(other),
    }
}
