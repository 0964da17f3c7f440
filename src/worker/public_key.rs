//! What both nodes say about a key.

use super::failure::Failed;
use super::{Shared, commit, nodes};
use crate::channel::NodeChannel;
use crate::wire::node::{KeyStatement, NodeReply, NodeRequest};
use crate::wire::{Attestations, ErrorCode, Fixed, Job, KeyResult, KeyState};
use data_encoding::HEXLOWER;

/// What one node says.
enum Said {
    Active(KeyStatement),
    /// The key waits for its commit; its generation's result is on this subject.
    NotCommitted(String),
}

/// Asks both nodes, and puts their words together where they agree. A key that waits for its commit gets it first.
///
/// # Errors
/// A node's refusal (`UNKNOWN_KEY`, …), `KEY_NOT_READY` while the generation has no result, `NODE_UNAVAILABLE`, or
/// `PROTOCOL_ABORT` if the nodes disagree.
pub async fn public_key(shared: &Shared, job: &Job, deadline: u64) -> Result<KeyResult, Failed> {
    match ask_both(shared, job, deadline).await? {
        (Said::Active(said1), Said::Active(said2)) => agreed(said1, said2),
        (Said::NotCommitted(subject), _) | (_, Said::NotCommitted(subject)) => {
            commit::commit_stored(shared, job.key_id, &subject, deadline).await?;
            match ask_both(shared, job, deadline).await? {
                (Said::Active(said1), Said::Active(said2)) => agreed(said1, said2),
                _ => Err(Failed::new(ErrorCode::KeyNotReady, "the key is not committed")),
            }
        }
    }
}

fn agreed(said1: KeyStatement, said2: KeyStatement) -> Result<KeyResult, Failed> {
    // The signatures differ; what is signed must not.
    if (KeyStatement { signature: said2.signature, ..said1.clone() }) != said2 {
        return Err(Failed::new(ErrorCode::ProtocolAbort, "the nodes attest different keys"));
    }
    Ok(KeyResult {
        key_id: said1.key_id,
        source_key_id: said1.source_key_id,
        curve: said1.curve,
        epoch: said1.epoch,
        public_key: HEXLOWER.encode(&said1.public_key),
        chain_code: Fixed(said1.chain_code),
        transcript: Fixed(said1.transcript),
        generated_by: Some(Fixed(said1.job_digest)),
        state: KeyState::Active,
        attestations: Attestations { node1: said1.signature, node2: said2.signature },
    })
}

async fn ask_both(shared: &Shared, job: &Job, deadline: u64) -> Result<(Said, Said), Failed> {
    futures::try_join!(ask(&shared.node1, job, deadline), ask(&shared.node2, job, deadline))
}

async fn ask(node: &NodeChannel, job: &Job, deadline: u64) -> Result<Said, Failed> {
    let request = NodeRequest::KeyInfo { job: job.signed.clone() };
    nodes::call(node, deadline, request, |reply| match reply {
        NodeReply::KeyInfo { statement, active: true } => Ok(Said::Active(statement)),
        NodeReply::NotCommitted { result_subject } => Ok(Said::NotCommitted(result_subject)),
        other => Err(other),
    })
    .await
}
