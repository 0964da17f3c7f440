//! What a worker tells of a job while it lives: life-cycle events. They may be lost; the result is the record.

use super::Shared;
use crate::clock::now_ms;
use crate::wire::{ErrorCode, Event, EventOutcome, Job, JobResult, Method, Op, Outcome, VERSION, subject};
use tokio::time::Instant;

/// Tells of one delivery of a job.
#[derive(Clone, Copy)]
pub struct Teller {
    /// When the job was taken from the queue.
    pub taken: Instant,
    /// How many workers ended with it before.
    pub crashes: u32,
}

impl Teller {
    /// The job is looked at.
    pub async fn started(self, shared: &Shared, job: &Job) {
        self.tell(shared, job, EventOutcome::Started, None).await;
    }

    /// This worker has just stored the job's result.
    pub async fn ended(self, shared: &Shared, job: &Job, result: &JobResult) {
        match &result.outcome {
            Outcome::Ok { .. } => {
                tracing::debug!("job done");
                self.tell(shared, job, EventOutcome::Completed, None).await;
            }
            Outcome::Error { error } => {
                tracing::info!(job = %job.job_id, code = %error.code, message = %error.message, "job failed");
                self.tell(shared, job, EventOutcome::Failed, Some(error.code)).await;
            }
        }
    }

    /// The job's result was there already. Who stored it has told of it, unless it ended before.
    pub async fn ended_before(self, shared: &Shared, job: &Job, result: &JobResult) {
        if self.crashes > 0 {
            self.ended(shared, job, result).await;
        }
    }

    /// Both nodes have committed the shares that it made.
    pub async fn committed(self, shared: &Shared, job: &Job) {
        self.tell(shared, job, EventOutcome::Committed, None).await;
    }

    async fn tell(self, shared: &Shared, job: &Job, outcome: EventOutcome, code: Option<ErrorCode>) {
        let (op, curve) = (job.op(), job.curve());
        let event = Event {
            version: VERSION,
            job_id: job.job_id.clone(),
            key_id: job.key_id,
            op,
            curve,
            method: curve.filter(|_| op == Op::Sign).map(Method::resolve),
            lane: job.lane,
            worker_id: shared.worker_id.clone(),
            outcome,
            code,
            duration_ms: if outcome == EventOutcome::Started { 0 } else { self.taken.elapsed().as_millis() as u64 },
            at: now_ms(),
        };
        if let Ok(body) = serde_json::to_vec(&event) {
            let _ = shared.nats.publish(subject::event(op, &job.initiator), body.into()).await;
        }
    }
}
