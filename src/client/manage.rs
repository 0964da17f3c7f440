//! Keys and jobs of an initiator: the list of keys, labels, how far a job is, cancelling a job or a waiting recovery.

use super::backend::{Backend, ClientError};
use super::job::random_job_id;
use super::verify::{self, Untrusted};
use crate::wire::{
    Curve, JobId, JobStatus, KeyEntry, KeyId, KeyList, KeysBody, Op, OrderBody, Outcome, RecoveryCancelled,
    RegisterBody, WhichJobBody,
};
use data_encoding::HEXLOWER;
use std::time::Duration;

/// How long a question may take at most.
const QUESTION: Duration = Duration::from_secs(10);

impl Backend {
    /// Asks the workers' service for registered keys, ended ones too: at most `limit` (1 to 100), behind `after`. It is node 1's word,
    /// told by a worker, which may leave keys out; [`Backend::public_key`] proves one that it names.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn keys(&self, after: Option<KeyId>, limit: u32) -> Result<KeyList, ClientError> {
        let job_id = random_job_id();
        let key_id = KeyId::derive(self.jobs().initiator(), &job_id);
        match self.question(Op::Keys, job_id, key_id, KeysBody { after, limit: Some(limit) }).await? {
            Outcome::Ok { list: Some(list), .. } => Ok(list),
            other => Err(refusal(other)),
        }
    }

    /// Has node 1 check a key's curve and public key, and label it: an empty label takes it away, `None` leaves it.
    ///
    /// # Errors
    /// [`ClientError::Job`] with `UNKNOWN_KEY`, `CURVE_MISMATCH`, `PUBLIC_KEY_MISMATCH`, `INVALID_LABEL` or another code; any
    /// other [`ClientError`].
    pub async fn register_key(
        &self,
        key_id: KeyId,
        curve: Curve,
        public_key: &[u8],
        label: Option<String>,
    ) -> Result<KeyEntry, ClientError> {
        let payload = RegisterBody { curve: curve.to_string(), public_key: HEXLOWER.encode(public_key), label };
        let (reply, lifetime) = (self.reply_key()?, self.lifetime);
        let request = self.jobs().build(Op::RegisterKey, random_job_id(), key_id, payload, &reply, lifetime)?;
        match self.run(&request).await?.outcome {
            Outcome::Ok { list: Some(KeyList { mut keys, .. }), .. } => match (keys.pop(), keys.is_empty()) {
                (Some(key), true) if key.key_id == key_id => Ok(key),
                _ => Err(Untrusted::WrongShape.into()),
            },
            other => Err(refusal(other)),
        }
    }

    /// Asks how far one of this initiator's jobs is. `key_id` is the job's; in another key's queue it is not looked for. The answer is
    /// the worker's word.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn job_status(&self, key_id: KeyId, job: &JobId) -> Result<JobStatus, ClientError> {
        self.about_job(Op::JobStatus, key_id, job).await
    }

    /// Keeps one of this initiator's jobs from being started. `key_id` is the job's.
    ///
    /// # Errors
    /// [`ClientError::Job`] with `JOB_STARTED` if it is too late, or another code; any other [`ClientError`].
    pub async fn cancel_job(&self, key_id: KeyId, job: &JobId) -> Result<JobStatus, ClientError> {
        self.about_job(Op::Cancel, key_id, job).await
    }

    /// Ends a key's waiting recovery at both nodes, and verifies that both say so. Recover jobs that were issued earlier are
    /// refused from then on. It is fine where none waits.
    ///
    /// # Errors
    /// [`ClientError::Job`] with `JOB_SUPERSEDED` if a newer recovery was requested, `KEY_RETIRED` if it was executed, or another code;
    /// any other [`ClientError`]. If only one node could be asked, what it did stands: do it again.
    pub async fn cancel_recovery(&self, key_id: KeyId) -> Result<RecoveryCancelled, ClientError> {
        let (reply, lifetime) = (self.reply_key()?, self.lifetime);
        let request = self.jobs().build(Op::CancelRecovery, random_job_id(), key_id, OrderBody {}, &reply, lifetime)?;
        match self.run(&request).await?.outcome {
            Outcome::Ok { recovery: Some(result), .. } => {
                verify::recovery_cancelled(&self.nodes, self.jobs().initiator(), request.digest, key_id, &result)?;
                Ok(result)
            }
            other => Err(refusal(other)),
        }
    }

    async fn about_job(&self, op: Op, key_id: KeyId, job: &JobId) -> Result<JobStatus, ClientError> {
        let payload = WhichJobBody { job_id: job.clone() };
        match self.question(op, random_job_id(), key_id, payload).await? {
            Outcome::Ok { job: Some(status), .. } if status.job_id == *job => Ok(status),
            other => Err(refusal(other)),
        }
    }

    async fn question<P: serde::Serialize>(
        &self,
        op: Op,
        job_id: JobId,
        key_id: KeyId,
        payload: P,
    ) -> Result<Outcome, ClientError> {
        let lifetime = self.lifetime.min(QUESTION);
        let request = self.jobs().build(op, job_id, key_id, payload, &self.reply_key()?, lifetime)?;
        Ok(self.ask(&request, lifetime + Duration::from_secs(1)).await?.outcome)
    }
}

/// What an outcome means that is not the one that was asked for.
fn refusal(outcome: Outcome) -> ClientError {
    match outcome {
        Outcome::Error { error } => ClientError::Job(error),
        Outcome::Ok { .. } => Untrusted::WrongShape.into(),
    }
}
