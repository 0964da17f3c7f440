//! Deciding about prepared attempts, and telling what is known of a key.
//!
//! Node 1's commit is the decision: it needs node 2's attestation, which is node 2's signed "prepared". Node 2 obeys node 1's
//! signed decision. Neither needs a job, nor cares for its expiry: whoever holds the evidence may finish what was begun. To drop an
//! attempt takes more than its name, which is in a stored result: node 1 does it only for the worker that prepared it.

use super::gate::{self, Found};
use super::generate::attestation;
use super::store::Attempt;
use super::{Answer, Caller, Node, Refusal, Stage};
use crate::fault;
use crate::node::audit::Event;
use crate::wire::node::NodeReply;
use crate::wire::{Decision, DecisionKind, ErrorCode, FIRST_EPOCH, Fixed, KeyId, Op, SignedJob};
use data_encoding::HEXLOWER;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use trefoil_protocol::Party;

/// How long a worker may drop what it prepared: it does so as soon as it knows that the attempt will not be the job's result.
const REMEMBERED: Duration = Duration::from_secs(300);

/// Which channel asked to prepare which attempt, in memory: after a restart attempts can be committed, but no longer dropped.
#[derive(Default)]
pub struct Preparations(Mutex<HashMap<(KeyId, [u8; 32]), Preparation>>);

#[derive(Clone, Copy)]
struct Preparation {
    channel: [u8; 32],
    epoch: u32,
    at: Instant,
}

impl Preparations {
    /// Call before the attempt is staged: then whoever gives up waiting for that may drop it.
    pub fn remember(&self, attempt: &Attempt, channel: [u8; 32]) {
        let preparation = Preparation { channel, epoch: attempt.epoch, at: Instant::now() };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((attempt.key_id, attempt.transcript), preparation);
    }

    /// The epoch of an attempt that was prepared on this channel.
    fn epoch(&self, key_id: KeyId, transcript: [u8; 32], channel: &[u8; 32]) -> Option<u32> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(key_id, transcript)).filter(|found| found.channel == *channel).map(|found| found.epoch)
    }

    pub fn sweep(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, preparation| preparation.at.elapsed() < REMEMBERED);
    }
}

fn no_evidence(what: &str) -> Refusal {
    Refusal::new(ErrorCode::NotPermitted, format!("the evidence is not {what}"))
}

impl Node {
    pub(super) async fn commit(&self, key_id: KeyId, transcript: [u8; 32], evidence: [u8; 64]) -> Answer {
        let attempt = self.store.attempt(key_id, transcript)?.ok_or(ErrorCode::UnknownKey)?;
        let decision = Decision { kind: DecisionKind::Committed, key_id, epoch: attempt.epoch, transcript };
        let proven = match self.role {
            Party::Node1 => attestation(&attempt).verify_any(&self.peers, &evidence),
            _ => decision.verify_any(&self.peers, &evidence),
        };
        if !proven {
            return Err(no_evidence(if self.role == Party::Node1 {
                "node 2's attestation of this attempt"
            } else {
                "node 1's signed commit of this attempt"
            }));
        }
        // What node 1 decided after the backup that it was restored from, only node 2 knows. Node 2 is told the decision here.
        if self.role == Party::Node1
            && self.store.prepared(key_id)?.iter().any(|prepared| prepared.transcript == transcript)
            && let Some(first) = gate::doubtful(self.store.as_ref(), key_id, transcript)?
        {
            return Ok(first);
        }
        let op = fault::made_by(attempt.source_key_id, attempt.epoch);
        fault::step("committing", op, key_id);
        if let Err(error) = self.store.commit(key_id, transcript).await {
            let refusal = Refusal::from(error);
            let reason = Some(refusal.code.as_str().to_owned());
            let event = self.about_attempt("commit", key_id, transcript, Some(&attempt), "refused");
            self.audit.note(Event { reason, ..event });
            return Err(refusal);
        }
        fault::step("committed", op, key_id);
        if let Some((source, share)) = attempt.source() {
            self.sessions.end_share(source, share);
            let decision = if source == key_id { "replaced" } else { "retired" };
            let event = self.about_attempt("commit", source, share, Some(&attempt), decision);
            self.audit.append(Event { reason: Some(format!("by {key_id}")), ..event }).await?;
        }
        self.audit.append(self.about_attempt("commit", key_id, transcript, Some(&attempt), "committed")).await?;
        Ok(NodeReply::Committed { signature: Fixed(decision.sign(&self.identity)) })
    }

    pub(super) async fn discard(
        &self,
        caller: Caller,
        key_id: KeyId,
        transcript: [u8; 32],
        evidence: Option<[u8; 64]>,
    ) -> Answer {
        let attempt = self.store.attempt(key_id, transcript)?;
        let prepared = self.preparations.epoch(key_id, transcript, &caller.channel);
        let epoch = attempt.as_ref().map(|attempt| attempt.epoch).or(prepared).unwrap_or(FIRST_EPOCH);
        let decision = Decision { kind: DecisionKind::Aborted, key_id, epoch, transcript };
        let proven = match self.role {
            Party::Node1 => prepared.is_some(),
            _ => evidence.is_some_and(|evidence| decision.verify_any(&self.peers, &evidence)),
        };
        if !proven {
            return Err(if self.role == Party::Node1 {
                Refusal::new(ErrorCode::NotPermitted, "only the worker that prepared an attempt may drop it, and soon")
            } else {
                no_evidence("node 1's signed abort of this attempt")
            });
        }
        self.store.discard(key_id, transcript).await?;
        self.sessions.end_state(|stage| matches!(stage, Stage::Generate(stage) if stage.prepared(&transcript)));
        self.audit.append(self.about_attempt("discard", key_id, transcript, attempt.as_ref(), "aborted")).await?;
        Ok(NodeReply::Aborted { signature: Fixed(decision.sign(&self.identity)) })
    }

    pub(super) fn key_info(&self, signed: &SignedJob) -> Answer {
        let job = self.admit(signed, &[Op::PublicKey])?;
        // A question changes nothing, so its job is not entered into the ledger, only compared with it.
        self.store.check_ledger(&gate::ledger_entry(&job))?;
        match gate::find_key(self.store.as_ref(), &self.gate.policy(), &job)
            .map_err(|refusal| self.refuse(&job, refusal))?
        {
            Found::Committed(key) => {
                // Nobody should pay to a key that does not sign.
                key.usable().map_err(|error| self.refuse(&job, error.into()))?;
                let Attempt { key_id, epoch, transcript, .. } = key.attempt;
                let decision = Decision { kind: DecisionKind::Committed, key_id, epoch, transcript };
                let committed = Fixed(decision.sign(&self.identity));
                let prepared = self.prepared_to_replace(key_id)?;
                Ok(NodeReply::KeyInfo { statement: self.statement(&key.attempt), committed, prepared })
            }
            Found::First(answer) => Ok(*answer),
        }
    }

    pub(super) fn about_attempt(
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
