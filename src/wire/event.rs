//! Life-cycle events on `mpc.event.<op>.<initiator>`: at most once, for dashboards and webhooks, never a job's record.

use crate::wire::{Curve, ErrorCode, JobId, KeyId, Lane, Method, Op};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One step in a job's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The job.
    pub job_id: JobId,
    /// Its key.
    pub key_id: KeyId,
    /// Its operation.
    pub op: Op,
    /// The curve that it names, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<Curve>,
    /// sign: the method that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Its lane.
    pub lane: Lane,
    /// The worker that reports.
    pub worker_id: String,
    /// What happened.
    pub outcome: EventOutcome,
    /// Why, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Milliseconds since this worker took the job; 0 when it starts.
    pub duration_ms: u64,
    /// Unix milliseconds.
    pub at: u64,
}

/// What happened to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EventOutcome {
    /// A worker took it.
    Started,
    /// Its result is stored and says ok.
    Completed,
    /// Its result is stored and says error.
    Failed,
    /// generate, recover, refresh: both nodes have committed the new shares.
    Committed,
}
