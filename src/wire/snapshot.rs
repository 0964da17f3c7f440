//! Snapshots of the workers on `mpc.metrics.<workerId>`: at most once, at a fixed interval, for whoever watches (`trefoil top`).

use crate::wire::{Curve, ErrorCode, Op};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a worker counts, as of now. Counts are since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The worker, as in events; another one after each start.
    pub worker_id: String,
    /// Version of its program.
    pub build: String,
    /// When it started, unix milliseconds.
    pub started_at: u64,
    /// Unix milliseconds.
    pub at: u64,
    /// Milliseconds until the next one.
    pub interval_ms: u64,
    /// It takes no more jobs. After the last one of these nothing more comes.
    pub draining: bool,
    /// Jobs whose result it stored.
    pub jobs: Vec<JobCount>,
    /// What it refused beside the results.
    pub refused: u64,
    /// Times that it gave a job back to the queue for a while.
    pub retries: u64,
    /// Jobs being worked on.
    pub in_flight: u64,
    /// The most that may be, of the lane `interactive`.
    pub slots: u64,
    /// Jobs in hand that wait for their key.
    pub waiting: u64,
    /// How long the jobs took, from taken to result stored: ranges in which there are any, shortest first.
    pub durations: Vec<DurationCount>,
    /// Whether the nodes answered last; not there before they were asked.
    pub nodes: NodesUp,
}

/// Jobs of one kind that ended in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobCount {
    /// The operation; not there for what cannot be read as a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// The curve, if the jobs name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<Curve>,
    /// Why they failed; not there if they were done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// How many.
    pub count: u64,
}

/// Jobs that took about as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DurationCount {
    /// Longer than this, milliseconds.
    pub above_ms: u64,
    /// At most this, milliseconds; not there for what took longer than the last bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_ms: Option<u64>,
    /// How many.
    pub count: u64,
}

/// Which nodes answered last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodesUp {
    /// The co-signer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node1: Option<bool>,
    /// The recovery node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node2: Option<bool>,
}
