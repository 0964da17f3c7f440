//! Deciding about prepared attempts, and telling what is known of a key.
//!
//! Node 1's commit is the decision: it needs node 2's attestation, which is node 2's signed "prepared". Node 2 obeys node 1's
//! signed decision. Neither needs a job, nor cares for its expiry: whoever holds the evidence may finish what was begun.

use super::gate::{self, Found};
use super::generate::{attestation, statement};
use super::store::Attempt;
use super::{Answer, Node, Refusal};
use crate::clock::now_ms;
use crate::node::audit::Event;
use crate::wire::node::NodeReply;
use crate::wire::{Decision, DecisionKind, ErrorCode, FIRST_EPOCH, Fixed, KeyId, Op, SignedJob};
use data_encoding::HEXLOWER;
use trefoil_protocol::Party;

fn no_evidence(what: &str) -> Refusal {
    Refusal::new(ErrorCode::NotPermitted, format!("the evidence is not {what}"))
}

impl Node {
    pub(super) async fn commit(&self, key_id: KeyId, transcript: [u8; 32], evidence: [u8; 64]) -> Answer {
        let attempt = gate::find_attempt(self.store.as_ref(), key_id, transcript)?.ok_or(ErrorCode::UnknownKey)?;
        let decision = Decision { kind: DecisionKind::Committed, key_id, epoch: attempt.epoch, transcript };
        let proven = match self.role {
            Party::Node1 => attestation(&attempt).verify(&self.peer, &evidence),
            _ => decision.verify(&self.peer, &evidence),
        };
        if !proven {
            return Err(no_evidence(if self.role == Party::Node1 {
                "node 2's attestation of this attempt"
            } else {
                "node 1's signed commit of this attempt"
            }));
        }
        let attempt = self.store.commit(key_id, transcript).await?;
        self.audit.append(self.about_attempt("commit", key_id, transcript, Some(&attempt), "committed")).await?;
        Ok(NodeReply::Committed { signature: Fixed(decision.sign(&self.identity)) })
    }

    pub(super) async fn discard(&self, key_id: KeyId, transcript: [u8; 32], evidence: Option<[u8; 64]>) -> Answer {
        let attempt = gate::find_attempt(self.store.as_ref(), key_id, transcript)?;
        let epoch = attempt.as_ref().map_or(FIRST_EPOCH, |attempt| attempt.epoch);
        let decision = Decision { kind: DecisionKind::Aborted, key_id, epoch, transcript };
        if self.role != Party::Node1 && !evidence.is_some_and(|evidence| decision.verify(&self.peer, &evidence)) {
            return Err(no_evidence("node 1's signed abort of this attempt"));
        }
        self.store.discard(key_id, transcript).await?;
        self.audit.append(self.about_attempt("discard", key_id, transcript, attempt.as_ref(), "aborted")).await?;
        Ok(NodeReply::Aborted { signature: Fixed(decision.sign(&self.identity)) })
    }

    pub(super) fn key_info(&self, signed: &SignedJob) -> Answer {
        let job = self.gate.admit(signed, Op::PublicKey, now_ms());
        let job = job.map_err(|(job, refusal)| match job {
            Some(job) => self.refuse(&job, refusal),
            None => refusal,
        })?;
        // A question changes nothing, so its job is not entered into the ledger, only compared with it.
        self.store.check_ledger(&gate::ledger_entry(&job))?;
        match gate::find_key(self.store.as_ref(), &job).map_err(|refusal| self.refuse(&job, refusal))? {
            Found::Committed(key) => Ok(NodeReply::KeyInfo { statement: statement(&key.attempt), active: true }),
            Found::Prepared(result_subject) => Ok(NodeReply::NotCommitted { result_subject }),
        }
    }

    fn about_attempt(
        &self,
        op: &str,
        key_id: KeyId,
        transcript: [u8; 32],
        attempt: Option<&Attempt>,
        decision: &str,
    ) -> Event {
        Event {
            initiator: attempt.map(|attempt| attempt.initiator.to_string()),
            job_id: attempt.map(|attempt| attempt.job_id.to_string()),
            key_id: Some(key_id.to_string()),
            digest: Some(HEXLOWER.encode(&transcript)),
            decision: decision.to_owned(),
            ..self.event(op)
        }
    }
}
