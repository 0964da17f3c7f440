//! What manages keys and jobs: questions to node 1, and the end of a waiting recovery at both nodes.

use super::failure::Failed;
use super::retry::Schedule;
use super::{Shared, commit, nodes};
use crate::channel::NodeChannel;
use crate::jobs::{queue, results};
use crate::wire::node::{NodeReply, NodeRequest};
use crate::wire::{
    Attestations, CancelStatement, ErrorCode, Fixed, Job, JobId, JobResult, JobState, JobStatus, KeyEntry, KeyList,
    Manage, Outcome, RecoveryCancelled, subject,
};
use trefoil_protocol::Party;

/// What a node says.
enum Said {
    Listed(KeyList),
    JobIs(JobState),
    RecoveryCancelled(Fixed<64>),
    /// The key waits for its commit; its generation's result is on this subject.
    NotCommitted(String),
}

/// Does what the job asks for, once.
///
/// # Errors
/// [`Failed`].
pub async fn manage(shared: &Shared, job: &Job, manage: &Manage, schedule: &Schedule) -> Result<Outcome, Failed> {
    match manage {
        Manage::Keys { .. } | Manage::Register { .. } => list(shared, job, schedule).await.map(Outcome::listed),
        Manage::Cancel { job: other } => cancel(shared, job, other, schedule).await.map(Outcome::of_job),
        Manage::JobStatus { job: other } => status(shared, job, other, schedule).await.map(Outcome::of_job),
        Manage::CancelRecovery => cancel_recovery(shared, job, schedule).await.map(Outcome::recovery_cancelled),
    }
}

async fn list(shared: &Shared, job: &Job, schedule: &Schedule) -> Result<KeyList, Failed> {
    let said = match ask(&shared.node1, job, schedule).await? {
        Said::NotCommitted(subject) => {
            commit::commit_stored(shared, job.key_id, &subject).await?;
            ask(&shared.node1, job, schedule).await?
        }
        said => said,
    };
    match said {
        Said::Listed(list) => Ok(list),
        said => Err(said.unexpected(Party::Node1)),
    }
}

/// Node 1 decides: nothing is done for a job that it has not begun with, and once it has, the job goes on.
async fn cancel(shared: &Shared, job: &Job, other: &JobId, schedule: &Schedule) -> Result<JobStatus, Failed> {
    if let Some(result) = results::find(&shared.jetstream, &job.initiator, other).await? {
        return match done(&result) {
            status @ JobStatus { state: JobState::Cancelled, .. } => Ok(status),
            _ => Err(Failed::new(ErrorCode::JobStarted, "the job has a result")),
        };
    }
    match ask(&shared.node1, job, schedule).await? {
        Said::JobIs(state) => Ok(JobStatus { job_id: other.clone(), state, result_subject: None }),
        said => Err(said.unexpected(Party::Node1)),
    }
}

async fn status(shared: &Shared, job: &Job, other: &JobId, schedule: &Schedule) -> Result<JobStatus, Failed> {
    let find = || results::find(&shared.jetstream, &job.initiator, other);
    if let Some(result) = find().await? {
        return Ok(done(&result));
    }
    let state = match ask(&shared.node1, job, schedule).await? {
        Said::JobIs(JobState::Unknown) => {
            let waits = queue::holds(&shared.jetstream, &job.initiator, other, &job.key_id).await?;
            if waits { JobState::Waiting } else { JobState::Unknown }
        }
        Said::JobIs(state) => state,
        said => return Err(said.unexpected(Party::Node1)),
    };
    // It may have ended while we looked for it elsewhere.
    Ok(match find().await? {
        Some(result) => done(&result),
        None => JobStatus { job_id: other.clone(), state, result_subject: None },
    })
}

/// How far a job is that has this result.
fn done(result: &JobResult) -> JobStatus {
    let cancelled = matches!(&result.outcome, Outcome::Error { error } if error.code == ErrorCode::JobCancelled);
    JobStatus {
        job_id: result.job_id.clone(),
        state: if cancelled { JobState::Cancelled } else { JobState::Done },
        result_subject: Some(subject::result(&result.initiator, &result.job_id)),
    }
}

async fn cancel_recovery(shared: &Shared, job: &Job, schedule: &Schedule) -> Result<RecoveryCancelled, Failed> {
    let (one, two) = futures::join!(ask(&shared.node1, job, schedule), ask(&shared.node2, job, schedule));
    let statement = CancelStatement { initiator: job.initiator.clone(), job_digest: job.digest, key_id: job.key_id };
    let signed = |node: Party, said: Said| match said {
        Said::RecoveryCancelled(signature) => {
            let identity = if node == Party::Node1 { &shared.nodes.node1 } else { &shared.nodes.node2 };
            let wrong =
                || Failed::new(ErrorCode::ProtocolAbort, format!("{node} signed something else than was asked"));
            statement.verify_any(identity, &signature.0).then_some(signature).ok_or_else(wrong)
        }
        said => Err(said.unexpected(node)),
    };
    let (one, two) = nodes::both(one, two)?;
    let attestations = Attestations { node1: signed(Party::Node1, one)?, node2: signed(Party::Node2, two)? };
    Ok(RecoveryCancelled { attestations })
}

impl Said {
    fn unexpected(self, node: Party) -> Failed {
        match self {
            Self::NotCommitted(_) => Failed::new(ErrorCode::KeyNotReady, "the key is not committed"),
            _ => Failed::unexpected(node),
        }
    }
}

async fn ask(node: &NodeChannel, job: &Job, schedule: &Schedule) -> Result<Said, Failed> {
    let request = NodeRequest::Manage { job: job.signed.clone() };
    nodes::call(node, schedule.call_deadline(), request, |reply| match reply {
        NodeReply::Listed { keys, next } => {
            Ok(Said::Listed(KeyList { keys: keys.into_iter().map(KeyEntry::from).collect(), next }))
        }
        NodeReply::JobIs(state) => Ok(Said::JobIs(state)),
        NodeReply::RecoveryCancelled { signature } => Ok(Said::RecoveryCancelled(signature)),
        NodeReply::NotCommitted { result_subject } => Ok(Said::NotCommitted(result_subject)),
        other => Err(other),
    })
    .await
}
