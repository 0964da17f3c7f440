//! Freeze, unfreeze, destroy: both nodes are asked, node 1 first, and each carries the order out by itself.

use super::failure::Failed;
use super::retry::{Schedule, Stop};
use super::{Shared, commit, nodes};
use crate::channel::NodeChannel;
use crate::wire::node::{NodeReply, NodeRequest};
use crate::wire::{Attestations, ErrorCode, Fixed, Job, OrderedState, StateResult, StateStatement};
use trefoil_protocol::Party;

/// What one node says.
enum Said {
    Done(Fixed<64>),
    /// The key waits for its commit; its generation's result is on this subject.
    NotCommitted(String),
}

/// Has both nodes carry out the order, first node 1. Where node 2 cannot be asked, node 1 has carried it out all the same: an order
/// may be repeated.
///
/// # Errors
/// [`Stop`].
pub async fn order(
    shared: &Shared,
    job: &Job,
    state: OrderedState,
    schedule: &mut Schedule,
) -> Result<StateResult, Stop> {
    loop {
        match attempt(shared, job, state, schedule).await {
            Ok(result) => return Ok(result),
            Err(failed) => schedule.pause(failed).await?,
        }
    }
}

async fn attempt(shared: &Shared, job: &Job, state: OrderedState, schedule: &Schedule) -> Result<StateResult, Failed> {
    let mut committed = false;
    loop {
        let said1 = ask(&shared.node1, job, schedule.call_deadline()).await;
        // Node 1 comes first: what it has not begun with may still be cancelled there, and then node 2 must not have done it. Node
        // 1 decides, too, whether other shares have taken the key's place: node 2 must not destroy those of a key that lives
        // on. Beside that, a refusal of node 1 keeps node 2 from nothing.
        if let Err(failed) = &said1
            && (failed.is_retryable() || failed.code == ErrorCode::JobCancelled || state == OrderedState::Destroyed)
        {
            return Err(failed.clone());
        }
        if let Ok(Said::NotCommitted(subject)) = &said1
            && !committed
        {
            commit::commit_stored(shared, job.key_id, subject).await?;
            committed = true;
            continue;
        }
        let said2 = ask(&shared.node2, job, schedule.call_deadline()).await;
        match (said1?, said2?) {
            (Said::Done(node1), Said::Done(node2)) => {
                let statement = StateStatement {
                    initiator: job.initiator.clone(),
                    job_digest: job.digest,
                    key_id: job.key_id,
                    state,
                };
                let signed = [(Party::Node1, &shared.nodes.node1, &node1), (Party::Node2, &shared.nodes.node2, &node2)];
                for (node, identity, signature) in signed {
                    if !statement.verify_any(identity, &signature.0) {
                        let message = format!("{node} signed something else than was ordered");
                        return Err(Failed::new(ErrorCode::ProtocolAbort, message));
                    }
                }
                return Ok(StateResult { state, attestations: Attestations { node1, node2 } });
            }
            (_, Said::NotCommitted(subject)) if !committed => {
                commit::commit_stored(shared, job.key_id, &subject).await?;
                committed = true;
            }
            _ => return Err(Failed::new(ErrorCode::KeyNotReady, "the key is not committed")),
        }
    }
}

async fn ask(node: &NodeChannel, job: &Job, deadline: u64) -> Result<Said, Failed> {
    nodes::call(node, deadline, NodeRequest::Order { job: job.signed.clone() }, |reply| match reply {
        NodeReply::Ordered { signature } => Ok(Said::Done(signature)),
        NodeReply::NotCommitted { result_subject } => Ok(Said::NotCommitted(result_subject)),
        other => Err(other),
    })
    .await
}
