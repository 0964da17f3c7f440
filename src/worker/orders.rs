//! Freeze, unfreeze, destroy: both nodes are asked, and each carries the order out by itself.

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

/// Has both nodes carry out the order. Where one cannot be asked, the other has carried it out all the same, except that nothing is
/// destroyed before node 1 has: an order may be repeated.
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
    // Node 1 decides whether other shares have taken the key's place: node 2 must not destroy those of a key that lives on.
    if state == OrderedState::Destroyed {
        ask(&shared.node1, job, schedule.call_deadline()).await?;
    }
    let mut committed = false;
    loop {
        let deadline = schedule.call_deadline();
        let asked = futures::join!(ask(&shared.node1, job, deadline), ask(&shared.node2, job, deadline));
        let (said1, said2) = match asked {
            // What will not get better by waiting is the answer.
            (Err(one), Err(two)) => return Err(if one.is_retryable() { two } else { one }),
            (one, two) => (one?, two?),
        };
        match (said1, said2) {
            (Said::Done(node1), Said::Done(node2)) => {
                let statement = StateStatement {
                    initiator: job.initiator.clone(),
                    job_digest: job.digest,
                    key_id: job.key_id,
                    state,
                };
                let signed = [(Party::Node1, &shared.nodes.node1, &node1), (Party::Node2, &shared.nodes.node2, &node2)];
                for (node, identity, signature) in signed {
                    if !statement.verify(identity, &signature.0) {
                        let message = format!("{node} signed something else than was ordered");
                        return Err(Failed::new(ErrorCode::ProtocolAbort, message));
                    }
                }
                return Ok(StateResult { state, attestations: Attestations { node1, node2 } });
            }
            (Said::NotCommitted(subject), _) | (_, Said::NotCommitted(subject)) if !committed => {
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
