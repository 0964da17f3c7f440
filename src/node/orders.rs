//! What a key's owner orders: freeze, unfreeze, destroy. Each node carries it out by itself, on its own check of every signature.
//!
//! An order counts only if it was issued after the key's last one. So a worker or broker that holds an order back, or repeats an old
//! one, cannot undo a newer one with it.

use super::gate::{self, Found};
use super::store::{KeyState, Order};
use super::{Answer, Node, Refusal, about_job};
use crate::auth;
use crate::wire::node::NodeReply;
use crate::wire::{ErrorCode, Fixed, Op, OrderedState, Payload, SignedJob, StateStatement};

const OPERATIONS: &[Op] = &[Op::Freeze, Op::Unfreeze, Op::Destroy];

impl Node {
    pub(super) async fn order(&self, signed: &SignedJob) -> Answer {
        let job = self.admit(signed, OPERATIONS)?;
        let Payload::Order(state) = job.payload else { return Err(ErrorCode::MalformedJob.into()) };
        let refused = |refusal: Refusal| self.refuse(&job, refusal);
        // It cannot be undone, so the owner's key alone is not enough.
        if state == OrderedState::Destroyed && !auth::is_authorised(&job, &self.authorisers) {
            return Err(refused(ErrorCode::NotAuthorised.into()));
        }
        if let Found::First(answer) = gate::find_key(self.store.as_ref(), &self.gate.policy(), &job).map_err(refused)? {
            return Ok(*answer);
        }
        let to = match state {
            OrderedState::Active => KeyState::Active,
            OrderedState::Frozen => KeyState::Frozen,
            OrderedState::Destroyed => KeyState::Destroyed,
        };
        let order = Order { job: gate::ledger_entry(&job), key_id: job.key_id, to, issued_at: job.issued_at };
        self.store.order(order).await.map_err(|error| refused(error.into()))?;
        if to != KeyState::Active {
            self.sessions.end(job.key_id);
        }
        let about = about_job(&job, [0; 32]);
        self.audit.append(self.about(job.op().as_str(), &about, state.as_str(), None)).await?;
        let statement = StateStatement { initiator: job.initiator, job_digest: job.digest, key_id: job.key_id, state };
        Ok(NodeReply::Ordered { signature: Fixed(statement.sign(&self.identity)) })
    }
}
