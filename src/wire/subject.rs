//! Subjects and streams. The tokens are types that cannot contain a dot, a wildcard or a space.

use crate::wire::{InitiatorId, JobId, KeyId, Lane, Op};

/// Work queue of interactive jobs.
pub const JOBS_STREAM: &str = "MPC_JOBS";
/// Work queue of bulk jobs.
pub const BULK_STREAM: &str = "MPC_BULK";
/// Results.
pub const RESULTS_STREAM: &str = "MPC_RESULTS";
/// Leases per key.
pub const LEASES_STREAM: &str = "MPC_LEASES";
/// Permanent bans.
pub const BANS_STREAM: &str = "MPC_BANS";

/// Every interactive job.
pub const ALL_JOBS: &str = "mpc.job.>";
/// Every bulk job.
pub const ALL_BULK: &str = "mpc.bulk.>";
/// Every result.
pub const ALL_RESULTS: &str = "mpc.result.>";
/// Every event.
pub const ALL_EVENTS: &str = "mpc.event.>";
/// Every worker's snapshots.
pub const ALL_METRICS: &str = "mpc.metrics.*";
/// Every lease.
pub const ALL_LEASES: &str = "mpc.lock.>";
/// Every ban.
pub const ALL_BANS: &str = "mpc.ban.>";

/// The work queue of a lane.
#[must_use]
pub const fn stream_of(lane: Lane) -> &'static str {
    match lane {
        Lane::Interactive => JOBS_STREAM,
        Lane::Bulk => BULK_STREAM,
    }
}

/// Every job of a lane.
#[must_use]
pub const fn all_of(lane: Lane) -> &'static str {
    match lane {
        Lane::Interactive => ALL_JOBS,
        Lane::Bulk => ALL_BULK,
    }
}

/// How the subjects of a lane's jobs begin.
const fn root(lane: Lane) -> &'static str {
    match lane {
        Lane::Interactive => "mpc.job",
        Lane::Bulk => "mpc.bulk",
    }
}

/// `mpc.job.<op>.<keyId>`, of a bulk job `mpc.bulk.<op>.<keyId>`
#[must_use]
pub fn job(lane: Lane, op: Op, key: &KeyId) -> String {
    format!("{}.{op}.{key}", root(lane))
}

/// `mpc.job.*.<keyId>`, in the bulk lane `mpc.bulk.*.<keyId>`: every job of a key.
#[must_use]
pub fn jobs_of(lane: Lane, key: &KeyId) -> String {
    format!("{}.*.{key}", root(lane))
}

/// Lane, and the tokens of operation and key, of a job subject.
#[must_use]
pub fn split_job(subject: &str) -> Option<(Lane, &str, &str)> {
    let of = |lane| Some((lane, subject.strip_prefix(root(lane))?.strip_prefix('.')?));
    let (lane, rest) = Lane::ALL.iter().find_map(|lane| of(*lane))?;
    let (op, key) = rest.split_once('.')?;
    (!key.contains('.')).then_some((lane, op, key))
}

/// `mpc.result.<initiator>.<jobId>`
#[must_use]
pub fn result(initiator: &InitiatorId, job: &JobId) -> String {
    format!("mpc.result.{initiator}.{job}")
}

/// `mpc.result.<initiator>.<jobId>.refused`: refusals of what the initiator did not send, or sent in conflict with an
/// earlier job. They must not occupy the job's one result.
#[must_use]
pub fn refused(initiator: &InitiatorId, job: &JobId) -> String {
    format!("mpc.result.{initiator}.{job}.refused")
}

/// `mpc.event.<op>.<initiator>`
#[must_use]
pub fn event(op: Op, initiator: &InitiatorId) -> String {
    format!("mpc.event.{op}.{initiator}")
}

/// `mpc.metrics.<workerId>`
#[must_use]
pub fn metrics(worker: &str) -> String {
    format!("mpc.metrics.{worker}")
}

/// `mpc.lock.<keyId>`
#[must_use]
pub fn lease(key: &KeyId) -> String {
    format!("mpc.lock.{key}")
}

/// `mpc.ban.<keyId>.<epoch>`
#[must_use]
pub fn ban(key: &KeyId, epoch: u32) -> String {
    format!("mpc.ban.{key}.{epoch}")
}

/// `mpc.api.<endpoint>`
#[must_use]
pub fn api(endpoint: &str) -> String {
    format!("mpc.api.{endpoint}")
}

/// `mpc.node.<name>.handshake`: where a node, `node1` or `node2`, answers Noise handshakes.
#[must_use]
pub fn node_handshake(name: &str) -> String {
    format!("mpc.node.{name}.handshake")
}

/// `mpc.node.<name>.i.<instance>`: one instance of a node, for the sessions that it holds.
#[must_use]
pub fn node_instance(name: &str, instance: &str) -> String {
    format!("mpc.node.{name}.i.{instance}")
}

/// `mpc.node.<name>.i.<instance>.large`: the same instance, by its connection for large calls.
#[must_use]
pub fn node_instance_large(name: &str, instance: &str) -> String {
    format!("{}.large", node_instance(name, instance))
}
