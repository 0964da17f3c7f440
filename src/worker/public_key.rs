//! What both nodes say about a key.

use super::Shared;
use super::failure::Failed;
use super::nodes;
use crate::channel::NodeChannel;
use crate::wire::node::{KeyStatement, NodeReply, NodeRequest};
use crate::wire::{Attestations, ErrorCode, Fixed, Job, KeyResult, KeyState};
use data_encoding::HEXLOWER;

/// Asks both nodes, and puts their words together where they agree.
///
/// # Errors
/// A node's refusal (`UNKNOWN_KEY`, …), `NODE_UNAVAILABLE`, or `PROTOCOL_ABORT` if they disagree.
pub async fn public_key(shared: &Shared, job: &Job, deadline: u64) -> Result<KeyResult, Failed> {
    let (node1, node2) = futures::try_join!(ask(&shared.node1, job, deadline), ask(&shared.node2, job, deadline))?;
    let ((said1, active1), (said2, active2)) = (node1, node2);
    // The signatures differ; what is signed must not.
    if (KeyStatement { signature: said2.signature, ..said1.clone() }) != said2 {
        return Err(Failed::new(ErrorCode::ProtocolAbort, "the nodes attest different keys"));
    }
    let state = if active1 && active2 { KeyState::Active } else { KeyState::Prepared };
    Ok(KeyResult {
        key_id: said1.key_id,
        source_key_id: said1.source_key_id,
        curve: said1.curve,
        epoch: said1.epoch,
        public_key: HEXLOWER.encode(&said1.public_key),
        chain_code: Fixed(said1.chain_code),
        transcript: Fixed(said1.transcript),
        generated_by: Some(Fixed(said1.job_digest)),
        state,
        attestations: Attestations { node1: said1.signature, node2: said2.signature },
    })
}

async fn ask(node: &NodeChannel, job: &Job, deadline: u64) -> Result<(KeyStatement, bool), Failed> {
    let request = NodeRequest::KeyInfo { job: job.signed.clone() };
    nodes::call(node, deadline, request, |reply| match reply {
        NodeReply::KeyInfo { statement, active } => Ok((statement, active)),
        other => Err(other),
    })
    .await
}
