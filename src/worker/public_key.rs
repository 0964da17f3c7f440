//! What both nodes say about a key.

use super::failure::Failed;
use super::{Shared, commit, nodes};
use crate::channel::NodeChannel;
use crate::wire::node::{KeyStatement, NodeReply, NodeRequest};
use crate::wire::{Attestations, ErrorCode, Fixed, Job, KeyResult};

/// What one node says.
enum Said {
    /// Its attestation, and its signed commit.
    Active(Box<KeyStatement>, Fixed<64>),
    /// The key waits for its commit; its generation's result is on this subject.
    NotCommitted(String),
}

/// How often unfinished business is finished before the nodes are asked once more.
const MAX_STEPS: u32 = 3;

/// Asks both nodes, and puts their words together where they agree. A key that waits for its commit, at both nodes or at node 2, gets
/// it first.
///
/// # Errors
/// A node's refusal (`UNKNOWN_KEY`, …), `KEY_NOT_READY` while the generation has no result, `NODE_UNAVAILABLE`, or
/// `PROTOCOL_ABORT` if the nodes disagree.
pub async fn public_key(shared: &Shared, job: &Job, deadline: u64) -> Result<KeyResult, Failed> {
    for _ in 0..MAX_STEPS {
        match ask_both(shared, job, deadline).await? {
            (Said::Active(said1, commit1), Said::Active(said2, _)) if said1.epoch > said2.epoch => {
                commit::bring_forward(shared, job.key_id, said1.transcript, commit1).await?;
            }
            (Said::Active(said1, commit1), Said::Active(said2, commit2)) => {
                return agreed(&said1, &said2, commit1, commit2);
            }
            (Said::NotCommitted(subject), _) | (_, Said::NotCommitted(subject)) => {
                commit::commit_stored(shared, job.key_id, &subject).await?;
            }
        }
    }
    Err(Failed::new(ErrorCode::KeyNotReady, "the key is not committed"))
}

fn agreed(said1: &KeyStatement, said2: &KeyStatement, node1: Fixed<64>, node2: Fixed<64>) -> Result<KeyResult, Failed> {
    KeyResult::agreed(said1, said2, Some(Attestations { node1, node2 }))
        .ok_or_else(|| Failed::new(ErrorCode::ProtocolAbort, "the nodes attest different keys"))
}

async fn ask_both(shared: &Shared, job: &Job, deadline: u64) -> Result<(Said, Said), Failed> {
    futures::try_join!(ask(&shared.node1, job, deadline), ask(&shared.node2, job, deadline))
}

async fn ask(node: &NodeChannel, job: &Job, deadline: u64) -> Result<Said, Failed> {
    let request = NodeRequest::KeyInfo { job: job.signed.clone() };
    nodes::call(node, deadline, request, |reply| match reply {
        NodeReply::KeyInfo { statement, committed } => Ok(Said::Active(Box::new(statement), committed)),
        NodeReply::NotCommitted { result_subject } => Ok(Said::NotCommitted(result_subject)),
        other => Err(other),
    })
    .await
}
