//! What manages keys and jobs: the registry and the ledger, which are node 1's, and the end of a waiting recovery, which both
//! nodes carry out.

use super::gate::{self, Found};
use super::store::{KeyState, Registered};
use super::{Answer, Node, Refusal, about_job};
use crate::clock::now_ms;
use crate::wire::node::{ListedKey, NodeReply};
use crate::wire::{
    CancelStatement, Curve, ErrorCode, Fixed, Job, JobId, JobState, KeyId, ListedState, Manage, Op, Payload, SignedJob,
};
use std::ops::Bound;
use trefoil_protocol::Party;

const OPERATIONS: &[Op] = &[Op::Keys, Op::RegisterKey, Op::Cancel, Op::JobStatus, Op::CancelRecovery];

impl Node {
    pub(super) async fn manage(&self, signed: &SignedJob) -> Answer {
        let job = self.admit(signed, OPERATIONS)?;
        let Payload::Manage(manage) = job.payload.clone() else { return Err(ErrorCode::MalformedJob.into()) };
        if self.role != Party::Node1 && manage != Manage::CancelRecovery {
            return Err(Refusal::new(ErrorCode::UnsupportedOperation, "node 1 is asked about keys and jobs"));
        }
        let answer = match manage {
            Manage::Keys { after, limit } => self.list_keys(&job, after, limit),
            Manage::Register { curve, public_key, label } => self.register(&job, curve, &public_key, label).await,
            Manage::Cancel { job: other } => self.cancel_job(&job, &other).await,
            Manage::JobStatus { job: other } => self.job_state(&job, &other),
            Manage::CancelRecovery => self.cancel_recovery(&job).await,
        };
        answer.map_err(|refusal| self.refuse(&job, refusal))
    }

    fn list_keys(&self, job: &Job, after: Option<KeyId>, limit: u32) -> Answer {
        self.store.check_ledger(&gate::ledger_entry(job))?;
        let (mut keys, mut more) = (Vec::new(), false);
        for owner in self.gate.policy().owners(&job.initiator) {
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let (found, rest) = self.store.registered(&owner, from, limit)?;
            keys.extend(found);
            more |= rest;
        }
        keys.sort_by_key(|key| key.record.attempt.key_id);
        more |= keys.len() > limit as usize;
        keys.truncate(limit as usize);
        let next = keys.last().filter(|_| more).map(|last| last.record.attempt.key_id);
        Ok(NodeReply::Listed { keys: keys.into_iter().map(listed).collect(), next })
    }

    /// Checks what the owner believes about a key, and labels it.
    async fn register(&self, job: &Job, curve: Curve, public_key: &[u8], label: Option<String>) -> Answer {
        let key = match gate::find_key(self.store.as_ref(), &self.gate.policy(), job)? {
            Found::Committed(key) => key,
            Found::First(answer) => return Ok(*answer),
        };
        if key.attempt.curve != curve {
            return Err(ErrorCode::CurveMismatch.into());
        }
        if key.attempt.public_key != public_key {
            return Err(ErrorCode::PublicKeyMismatch.into());
        }
        self.store.label(gate::ledger_entry(job), job.key_id, label, job.issued_at).await?;
        self.audit.append(self.about("register-key", &about_job(job, [0; 32]), "registered", None)).await?;
        let (keys, _) = self.store.registered(&key.attempt.initiator, Bound::Included(job.key_id), 1)?;
        Ok(NodeReply::Listed { keys: keys.into_iter().map(listed).collect(), next: None })
    }

    async fn cancel_job(&self, job: &Job, other: &JobId) -> Answer {
        self.store.cancel(gate::ledger_entry(job), other.clone(), now_ms()).await?;
        self.audit.append(self.about("cancel", &about_job(job, [0; 32]), "cancelled", Some(other.as_str()))).await?;
        Ok(NodeReply::JobIs(JobState::Cancelled))
    }

    fn job_state(&self, job: &Job, other: &JobId) -> Answer {
        self.store.check_ledger(&gate::ledger_entry(job))?;
        Ok(NodeReply::JobIs(self.store.job_state(&job.initiator, other)?))
    }

    async fn cancel_recovery(&self, job: &Job) -> Answer {
        if let Found::First(answer) = gate::find_key(self.store.as_ref(), &self.gate.policy(), job)? {
            return Ok(*answer);
        }
        let waited = self.store.cancel_recovery(gate::ledger_entry(job), job.key_id, job.issued_at).await?;
        let reason = (!waited).then_some("no recovery was waiting");
        self.audit.append(self.about("cancel-recovery", &about_job(job, [0; 32]), "cancelled", reason)).await?;
        let statement =
            CancelStatement { initiator: job.initiator.clone(), job_digest: job.digest, key_id: job.key_id };
        Ok(NodeReply::RecoveryCancelled { signature: Fixed(statement.sign(&self.identity)) })
    }
}

fn listed(key: Registered) -> ListedKey {
    let Registered { record, label, created_at } = key;
    let state = match record.state {
        KeyState::Active => ListedState::Active,
        KeyState::Frozen => ListedState::Frozen,
        KeyState::Locked => ListedState::Locked,
        KeyState::Retired => ListedState::Retired,
        KeyState::Destroyed => ListedState::Destroyed,
    };
    ListedKey {
        key_id: record.attempt.key_id,
        curve: record.attempt.curve,
        public_key: record.attempt.public_key,
        label,
        created_at,
        state,
        epoch: record.attempt.epoch,
        source_key_id: record.attempt.source_key_id,
        successor: record.successor,
    }
}
