//! What a recovery or refresh begins with: what both nodes hold of the key, and that it is the same.
//!
//! A node is behind where a commit did not reach it, and new shares may be prepared whose result is stored: all of that is
//! finished first, because shares that were made from what is about to be replaced would be lost.

use super::failure::Failed;
use super::retry::Schedule;
use super::{Shared, commit, nodes};
use crate::channel::NodeChannel;
use crate::wire::node::{KeyStatement, NodeReply, NodeRequest};
use crate::wire::{Base64, Curve, ErrorCode, Fixed, Job};
use trefoil_protocol::reshare::Source;
use trefoil_protocol::{CurveId, KeyShare};

/// How often unfinished business is finished before one attempt; each time something of it is done for good.
const MAX_STEPS: u32 = 8;

/// What one node says.
enum Said {
    Source(Box<Answer>),
    /// The key itself waits for its commit; the result that holds the evidence is on this subject.
    NotCommitted(String),
}

struct Answer {
    statement: KeyStatement,
    verifying_shares: [Base64; 3],
    committed: Fixed<64>,
    prepared: Vec<String>,
}

/// The key as both nodes hold it now.
///
/// # Errors
/// A node's refusal (`NOT_AUTHORISED`, `KEY_RETIRED`, `KEY_FROZEN`, `RECOVERY_PENDING`, …), `CURVE_MISMATCH`, `NODE_UNAVAILABLE`, or `PROTOCOL_ABORT`
/// if the nodes disagree.
pub async fn agreed(shared: &Shared, job: &Job, curve: Curve, schedule: &Schedule) -> Result<Source, Failed> {
    let mut brought = None;
    for _ in 0..MAX_STEPS {
        let said = futures::join!(ask(&shared.node1, job, schedule), ask(&shared.node2, job, schedule));
        let (one, two) = match said {
            (Ok(Said::Source(one)), Ok(Said::Source(two))) if one.statement.epoch <= two.statement.epoch => (one, two),
            (Ok(Said::Source(one)), Ok(_)) => {
                commit::bring_forward(shared, job.key_id, one.statement.transcript, one.committed, &mut brought)
                    .await?;
                continue;
            }
            (Ok(Said::NotCommitted(subject)), _) => {
                commit::commit_stored(shared, job.key_id, &subject).await?;
                continue;
            }
            // Where a recovery waits at one node, the other must have been asked as well: it counts the time from then.
            (Err(failed), Ok(Said::NotCommitted(subject))) if failed.code == ErrorCode::RecoveryPending => {
                commit::commit_stored(shared, job.key_id, &subject).await?;
                continue;
            }
            (one, two) => {
                nodes::both(one, two)?;
                continue;
            }
        };
        let prepared = one.prepared.iter().chain(&two.prepared);
        if commit::finish_stored(shared, job.key_id, one.statement.epoch, prepared).await? {
            continue;
        }
        return same(*one, *two, curve);
    }
    Err(Failed::new(ErrorCode::KeyBusy, "the key's shares keep changing"))
}

/// Whether this share is of the key as the nodes hold it.
///
/// # Errors
/// `STALE_SHARE`, or `PROTOCOL_ABORT` if the nodes say something else of the very same shares.
pub fn is_of(source: &Source, share: &KeyShare) -> Result<(), Failed> {
    if share.transcript() != source.transcript {
        Err(Failed::new(ErrorCode::StaleShare, "the nodes hold other shares than this one's"))
    } else if share.source() != *source {
        Err(disagree("the nodes say something else of the key than its share"))
    } else {
        Ok(())
    }
}

/// What both say, if it is the same.
fn same(one: Answer, two: Answer, curve: Curve) -> Result<Source, Failed> {
    let said = KeyStatement { signature: one.statement.signature, ..two.statement };
    if said != one.statement || one.verifying_shares != two.verifying_shares {
        return Err(disagree("the nodes hold shares of different keys"));
    }
    if said.curve != curve {
        return Err(Failed::new(ErrorCode::CurveMismatch, "the key is of another curve"));
    }
    Ok(Source {
        curve: CurveId::from(curve),
        key_id: said.key_id.0,
        epoch: said.epoch,
        transcript: said.transcript,
        chain_code: said.chain_code,
        public_key: said.public_key,
        verifying_shares: one.verifying_shares.map(|Base64(bytes)| bytes),
    })
}

fn disagree(what: &str) -> Failed {
    Failed::new(ErrorCode::ProtocolAbort, what)
}

async fn ask(node: &NodeChannel, job: &Job, schedule: &Schedule) -> Result<Said, Failed> {
    let request = NodeRequest::Source { job: job.signed.clone() };
    nodes::call(node, schedule.call_deadline(), request, |reply| match reply {
        NodeReply::Source { statement, verifying_shares, committed, prepared } => {
            Ok(Said::Source(Box::new(Answer { statement, verifying_shares, committed, prepared })))
        }
        NodeReply::NotCommitted { result_subject } => Ok(Said::NotCommitted(result_subject)),
        other => Err(other),
    })
    .await
}
