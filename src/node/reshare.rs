//! What a recovery or a refresh starts from: the committed shares of the key that the job names. The rounds are those of `generate`.
//!
//! A recovery can take over a key, so its owner's word is not enough: each node asks for an authoriser's consent, too.

use super::gate::{self, Found};
use super::store::Attempt;
use super::{Answer, Node, Refusal};
use crate::auth;
use crate::wire::node::NodeReply;
use crate::wire::{Base64, Decision, DecisionKind, ErrorCode, Fixed, Job, KeyId, Op, SignedJob};
use std::collections::BTreeSet;
use std::sync::Arc;

const OPERATIONS: &[Op] = &[Op::Recover, Op::Refresh];

impl Node {
    /// The key whose shares the job wants replaced, if it may; changes nothing.
    pub(super) fn origin(&self, job: &Job) -> Result<Found, Refusal> {
        if job.op() == Op::Recover && !auth::is_authorised(job, &self.authorisers) {
            return Err(ErrorCode::NotAuthorised.into());
        }
        let found = gate::find_key(self.store.as_ref(), &self.gate.policy(), job)?;
        if let Found::Committed(key) = &found {
            key.replaceable()?;
            if job.curve() != Some(key.attempt.curve) {
                return Err(ErrorCode::CurveMismatch.into());
            }
        }
        Ok(found)
    }

    /// Where the results are, or will be, of the jobs that prepared new shares of a key.
    pub(super) fn prepared_to_replace(&self, key_id: KeyId) -> Result<Vec<String>, Refusal> {
        let subjects: BTreeSet<_> = self.store.replacements(key_id)?.iter().map(gate::result_of).collect();
        Ok(subjects.into_iter().collect())
    }

    pub(super) async fn source(&self, signed: &SignedJob) -> Answer {
        let job = self.admit(signed, OPERATIONS)?;
        let refused = |refusal: Refusal| self.refuse(&job, refusal);
        // A question changes nothing, so its job is not entered into the ledger, only compared with it.
        self.store.check_ledger(&gate::ledger_entry(&job)).map_err(|error| refused(error.into()))?;
        let attempt = match self.origin(&job).map_err(refused)? {
            Found::Committed(key) => key.attempt,
            Found::First(answer) => return Ok(*answer),
        };
        if job.op() == Op::Recover {
            self.recovery_is_due(&job, false).await.map_err(refused)?;
        }
        let Attempt { key_id, epoch, transcript, .. } = attempt;
        let prepared = self.prepared_to_replace(key_id)?;
        let store = Arc::clone(&self.store);
        let material = self.pool.run(move || Self::material(store.as_ref(), key_id, transcript)).await??;
        let decision = Decision { kind: DecisionKind::Committed, key_id, epoch, transcript };
        Ok(NodeReply::Source {
            statement: self.statement(&attempt),
            verifying_shares: material.share.source().verifying_shares.map(Base64),
            committed: Fixed(decision.sign(&self.identity)),
            prepared,
        })
    }
}
