//! What both nodes say about a key.

use super::failure::Failed;
use super::{Shared, commit, nodes};
use crate::channel::NodeChannel;
use crate::wire::node::{KeyStatement, NodeReply, NodeRequest};
use crate::wire::{Attestations, ErrorCode, Fixed, Job, KeyResult};

/// What one node says.
enum Said {
    Active(Box<Answer>),
    /// The key waits for its commit; the result that holds the evidence is on this subject.
    NotCommitted(String),
}

struct Answer {
    statement: KeyStatement,
    /// Its signed commit.
    committed: Fixed<64>,
    /// Where the results may be of new shares that wait for their commit.
    prepared: Vec<String>,
}

/// How often unfinished business is finished before the nodes are asked once more.
const MAX_STEPS: u32 = 4;

/// Asks both nodes, and puts their words together where they agree. Shares that wait for their commit, at both nodes or at node 2,
/// get it first.
///
/// # Errors
/// A node's refusal (`UNKNOWN_KEY`, …), `KEY_NOT_READY` while the key's first shares have no result, `NODE_UNAVAILABLE`, or
/// `PROTOCOL_ABORT` if the nodes disagree.
pub async fn public_key(shared: &Shared, job: &Job, deadline: u64) -> Result<KeyResult, Failed> {
    let mut brought = None;
    for _ in 0..MAX_STEPS {
        match ask_both(shared, job, deadline).await? {
            (Said::Active(one), Said::Active(two)) if one.statement.epoch <= two.statement.epoch => {
                let prepared = one.prepared.iter().chain(&two.prepared);
                if !commit::finish_stored(shared, job.key_id, one.statement.epoch, prepared).await? {
                    return agreed(&one, &two);
                }
            }
            (Said::Active(one), _) => {
                commit::bring_forward(shared, job.key_id, one.statement.transcript, one.committed, &mut brought)
                    .await?;
            }
            (Said::NotCommitted(subject), _) => commit::commit_stored(shared, job.key_id, &subject).await?,
        }
    }
    Err(Failed::new(ErrorCode::KeyNotReady, "the key is not committed"))
}

fn agreed(one: &Answer, two: &Answer) -> Result<KeyResult, Failed> {
    let commits = Attestations { node1: one.committed, node2: two.committed };
    KeyResult::agreed(&one.statement, &two.statement, Some(commits))
        .ok_or_else(|| Failed::new(ErrorCode::ProtocolAbort, "the nodes attest different keys"))
}

async fn ask_both(shared: &Shared, job: &Job, deadline: u64) -> Result<(Said, Said), Failed> {
    futures::try_join!(ask(&shared.node1, job, deadline), ask(&shared.node2, job, deadline))
}

async fn ask(node: &NodeChannel, job: &Job, deadline: u64) -> Result<Said, Failed> {
    let request = NodeRequest::KeyInfo { job: job.signed.clone() };
    nodes::call(node, deadline, request, |reply| match reply {
        NodeReply::KeyInfo { statement, committed, prepared } => {
            Ok(Said::Active(Box::new(Answer { statement, committed, prepared })))
        }
        NodeReply::NotCommitted { result_subject } => Ok(Said::NotCommitted(result_subject)),
        other => Err(other),
    })
    .await
}
