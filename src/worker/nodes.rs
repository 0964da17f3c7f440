//! Calls to the nodes with typed answers.

use super::failure::{Failed, Unconfirmed};
use crate::channel::{Link, NodeChannel};
use crate::fault;
use crate::wire::ErrorCode;
use crate::wire::node::{Call, NODE_VERSION, NodeReply, NodeRequest};
use std::sync::Arc;
use trefoil_protocol::Party;

/// One session's way to one node: the link it was opened on, to its end.
#[derive(Clone)]
pub struct Session {
    node: Party,
    link: Arc<Link>,
}

impl Session {
    /// The current link to a node, after a handshake where there is none.
    ///
    /// # Errors
    /// `NODE_UNAVAILABLE`, by `deadline` (unix milliseconds).
    pub async fn begin(channel: &NodeChannel, deadline: u64) -> Result<Self, Failed> {
        let node = channel.node();
        let link = channel.link(deadline).await.map_err(|error| Failed::channel(node, error))?;
        Ok(Self { node, link })
    }

    /// Hash of the link's handshake, 32 bytes.
    pub fn channel_hash(&self) -> [u8; 32] {
        self.link.hash()
    }

    /// One call. `pick` takes the answer apart; what it gives back is an answer of another kind.
    ///
    /// # Errors
    /// The node's refusal with its code, `KEY_UNCONFIRMED` with what is missing, `NODE_UNAVAILABLE`, or `PROTOCOL_ABORT` for an answer of another kind.
    pub async fn call<T>(
        &self,
        deadline: u64,
        request: NodeRequest,
        pick: impl FnOnce(NodeReply) -> Result<T, NodeReply>,
    ) -> Result<T, Failed> {
        let call = Call { version: NODE_VERSION, deadline, request: fault::forwarded(request) };
        let reply = self.link.call(&call).await.map_err(|error| Failed::channel(self.node, error))?;
        picked(self.node, reply, pick)
    }
}

/// One call outside of any session; the node may see it twice.
///
/// # Errors
/// As [`Session::call`].
pub async fn call<T>(
    channel: &NodeChannel,
    deadline: u64,
    request: NodeRequest,
    pick: impl FnOnce(NodeReply) -> Result<T, NodeReply>,
) -> Result<T, Failed> {
    let call = Call { version: NODE_VERSION, deadline, request: fault::forwarded(request) };
    let reply = channel.call(&call).await.map_err(|error| Failed::channel(channel.node(), error))?;
    picked(channel.node(), reply, pick)
}

/// What both nodes were asked. One that could not be asked will be asked again: its word may be another than the other's. Of two
/// waiting times of a recovery the later one counts.
///
/// # Errors
/// What will pass comes first, then what will not, then `RECOVERY_PENDING`.
pub fn both<T, U>(one: Result<T, Failed>, two: Result<U, Failed>) -> Result<(T, U), Failed> {
    let pending = |failed: &Failed| failed.code == ErrorCode::RecoveryPending;
    match (one, two) {
        (Ok(one), Ok(two)) => Ok((one, two)),
        (Err(failed), Ok(_)) | (Ok(_), Err(failed)) => Err(failed),
        (Err(one), Err(two)) if pending(&one) && pending(&two) => {
            Err(if one.retry_at >= two.retry_at { one } else { two })
        }
        (Err(one), Err(two)) if two.is_retryable() || pending(&one) => Err(if one.is_retryable() { one } else { two }),
        (Err(one), Err(_)) => Err(one),
    }
}

fn picked<T>(node: Party, reply: NodeReply, pick: impl FnOnce(NodeReply) -> Result<T, NodeReply>) -> Result<T, Failed> {
    match pick(reply) {
        Ok(answer) => Ok(answer),
        Err(NodeReply::Refused { code, message, retry_at, successor }) => {
            Err(Failed { retry_at, successor, ..Failed::new(code, format!("{node}: {message}")) })
        }
        Err(NodeReply::Unconfirmed { key_id, transcript, nonce }) => {
            Err(Unconfirmed { node, key_id, transcript, nonce }.into())
        }
        Err(_) => Err(Failed::unexpected(node)),
    }
}
