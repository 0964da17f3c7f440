//! What a crash left undecided: node 2 asks node 1 through the workers, at their start and every minute. Node 1's signed word decides;
//! where it has prepared the attempt, too, a stored result commits it.

use super::failure::Failed;
use super::retry::call_deadline;
use super::{Shared, commit, nodes};
use crate::wire::Fixed;
use crate::wire::node::{NodeReply, NodeRequest, UndecidedAttempt};
use rand_core::{OsRng, RngCore};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Node 1's word about an attempt.
enum Word {
    Committed(Fixed<64>),
    Aborted(Fixed<64>),
    /// Prepared there as well; the job's result is, or will be, on this subject.
    Open(String),
}

/// Reconciles now and about every `every`, until told to stop.
pub async fn run(shared: Arc<Shared>, every: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        let round = async {
            if let Err(failed) = reconcile(&shared).await {
                tracing::debug!(%failed, "what is undecided cannot be asked");
            }
            // Half as long to half longer, so that many workers do not ask at once.
            let jitter = every.mul_f64(0.5 + f64::from(OsRng.next_u32()) / f64::from(u32::MAX));
            tokio::time::sleep(jitter).await;
        };
        tokio::select! {
            () = round => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

async fn reconcile(shared: &Shared) -> Result<(), Failed> {
    let listed = nodes::call(&shared.node2, call_deadline(), NodeRequest::Undecided, |reply| match reply {
        NodeReply::Undecided { attempts } => Ok(attempts),
        other => Err(other),
    });
    for attempt in listed.await? {
        let (key, transcript) = (attempt.statement.key_id, attempt.statement.transcript);
        match settle(shared, attempt).await {
            Ok(Some(what)) => tracing::info!(%key, transcript = %Fixed(transcript), what, "an attempt was undecided"),
            Ok(None) => {}
            Err(failed) => tracing::debug!(%key, %failed, "an attempt stays undecided"),
        }
    }
    Ok(())
}

/// Brings node 1's word about an attempt to node 2; what it was, if there is one.
async fn settle(shared: &Shared, attempt: UndecidedAttempt) -> Result<Option<&'static str>, Failed> {
    let (key_id, transcript) = (attempt.statement.key_id, attempt.statement.transcript);
    let word = nodes::call(&shared.node1, call_deadline(), NodeRequest::Decision { attempt }, |reply| match reply {
        NodeReply::Committed { signature } => Ok(Word::Committed(signature)),
        NodeReply::Aborted { signature } => Ok(Word::Aborted(signature)),
        NodeReply::NotCommitted { result_subject } => Ok(Word::Open(result_subject)),
        other => Err(other),
    });
    let follow = |request| {
        nodes::call(&shared.node2, call_deadline(), request, |reply| match reply {
            NodeReply::Committed { .. } | NodeReply::Aborted { .. } => Ok(()),
            other => Err(other),
        })
    };
    match word.await? {
        Word::Committed(evidence) => {
            follow(NodeRequest::Commit { key_id, transcript, evidence }).await?;
            Ok(Some("committed"))
        }
        Word::Aborted(evidence) => {
            follow(NodeRequest::Discard { key_id, transcript, evidence: Some(evidence) }).await?;
            Ok(Some("aborted"))
        }
        Word::Open(subject) => match commit::stored(shared, &subject).await? {
            Some(key) if key.key_id == key_id && key.transcript.0 == transcript => {
                commit::commit(shared, &key).await?;
                Ok(Some("committed by its stored result"))
            }
            _ => Ok(None),
        },
    }
}
