//! A node that was restored from a backup uses a key only after the other node has said what became of it. Workers carry that word:
//! the first use of a key confirms it. They cannot make one up, and one of an earlier restore is worth nothing.

use super::failure::{Failed, Unconfirmed};
use super::retry::{Schedule, Stop, call_deadline};
use super::{Shared, nodes};
use crate::wire::node::{NodeReply, NodeRequest};
use crate::wire::{EpochStatement, ErrorCode, Fixed};
use trefoil_protocol::Party;

/// Most confirmations on the way to one answer: of both nodes, and of a key that took another one's place.
const MAX: u32 = 4;

/// The confirmations of one piece of work.
#[derive(Default)]
pub struct Confirming {
    done: u32,
}

impl Confirming {
    /// Has the key confirmed that stopped the work, so that it can begin again.
    ///
    /// # Errors
    /// What stopped the work, if it was something else; what stopped the confirmation.
    pub async fn after(&mut self, shared: &Shared, stop: Stop, schedule: &mut Schedule) -> Result<(), Stop> {
        match stop {
            Stop::Failed(failed) if failed.unconfirmed.is_some() => match self.heard(shared, failed).await {
                // Nothing was heard: the work begins again all the same, and stops here again.
                Err(failed) if failed.is_retryable() => schedule.pause(failed).await,
                heard => Ok(heard?),
            },
            stop => Err(stop),
        }
    }

    /// The same without a schedule.
    ///
    /// # Errors
    /// As [`Confirming::after`].
    pub async fn heard(&mut self, shared: &Shared, failed: Failed) -> Result<(), Failed> {
        let Some(mut unconfirmed) = failed.unconfirmed else { return Err(failed) };
        while self.done < MAX {
            let heard = confirm(shared, unconfirmed).await?;
            self.done += 1;
            match heard {
                None => return Ok(()),
                Some(first) => unconfirmed = first,
            }
        }
        Err(failed)
    }
}

/// Carries the other node's word to the restored one. Some other key may have to come first.
async fn confirm(shared: &Shared, unconfirmed: Unconfirmed) -> Result<Option<Unconfirmed>, Failed> {
    let Unconfirmed { node, key_id, transcript, nonce } = unconfirmed;
    let (restored, other) =
        if node == Party::Node1 { (&shared.node1, &shared.node2) } else { (&shared.node2, &shared.node1) };
    let ask = NodeRequest::EpochOf { key_id, transcript, nonce };
    let said: Result<(EpochStatement, Fixed<64>), Failed> =
        nodes::call(other, call_deadline(), ask, |reply| match reply {
            NodeReply::EpochOf { statement, signature } => Ok((statement, signature)),
            other => Err(other),
        })
        .await;
    let (statement, signature) = said.map_err(|failed| match failed.code {
        ErrorCode::UnknownKey => Failed::new(ErrorCode::KeyUnconfirmed, failed.message),
        _ => failed,
    })?;
    tracing::info!(key = %key_id, %node, state = statement.state.as_str(), "a restored node hears of a key");
    nodes::call(restored, call_deadline(), NodeRequest::ConfirmEpoch { statement, signature }, |reply| match reply {
        NodeReply::Confirmed => Ok(None),
        NodeReply::Unconfirmed { key_id, transcript, nonce } => {
            Ok(Some(Unconfirmed { node, key_id, transcript, nonce }))
        }
        other => Err(other),
    })
    .await
}
