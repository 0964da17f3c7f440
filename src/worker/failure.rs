//! Why a job, or one attempt at it, failed: a code of the closed list, and a sentence for the job's sender.

use crate::channel::ChannelError;
use crate::compute::Undone;
use crate::jobs::once::Unavailable;
use crate::vault::VaultError;
use crate::wire::{Disposition, ErrorCode, Failure, KeyId, Outcome};
use trefoil_protocol::{Abort, Party};

/// A failure on its way to becoming the job's result, or the reason for another attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failed {
    /// From the closed list.
    pub code: ErrorCode,
    /// For the job's sender; holds nothing secret.
    pub message: String,
    /// When the next password attempt is let in, unix milliseconds.
    pub retry_at: Option<u64>,
    /// `KEY_RETIRED`: the key that replaced this one.
    pub successor: Option<KeyId>,
    /// A restored node waits for the other one's word about a key.
    pub unconfirmed: Option<Unconfirmed>,
}

/// What a restored node does not know of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unconfirmed {
    /// The restored node.
    pub node: Party,
    /// The key.
    pub key_id: KeyId,
    /// Transcript hash T of the shares that it has.
    pub transcript: [u8; 32],
    /// Of its restore.
    pub nonce: [u8; 32],
}

impl From<Unconfirmed> for Failed {
    fn from(unconfirmed: Unconfirmed) -> Self {
        let message = format!("{} was restored from a backup, and the key is not confirmed", unconfirmed.node);
        Self { unconfirmed: Some(unconfirmed), ..Self::new(ErrorCode::KeyUnconfirmed, message) }
    }
}

impl Failed {
    /// A failure with this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_at: None, successor: None, unconfirmed: None }
    }

    /// The failure as a job's outcome.
    pub fn outcome(self) -> Outcome {
        let (retry_at, new_key_id) = (self.retry_at, self.successor);
        Outcome::Error { error: Failure { retry_at, new_key_id, ..Failure::new(self.code, self.message) } }
    }

    /// Whether another attempt may succeed.
    pub fn is_retryable(&self) -> bool {
        self.code.disposition() == Disposition::Retry
    }

    /// A node could not be asked, or did not answer.
    pub fn channel(node: Party, error: ChannelError) -> Self {
        let code = match error {
            ChannelError::TooLarge => ErrorCode::JobTooLarge,
            // Not the node's word: whoever tampers with its answers can as well suppress them.
            ChannelError::Unavailable
            | ChannelError::Timeout
            | ChannelError::Lost
            | ChannelError::HandshakeRefused
            | ChannelError::Tampered => ErrorCode::NodeUnavailable,
        };
        Self::new(code, format!("{node}: {error}"))
    }

    /// A node answered something else than was asked.
    pub fn unexpected(node: Party) -> Self {
        Self::new(ErrorCode::ProtocolAbort, format!("{node} sent an answer of another kind"))
    }
}

/// A protocol step refused. A failed check that locks the key must be recorded before this is used as a result.
impl From<Abort> for Failed {
    fn from(abort: Abort) -> Self {
        let code = match abort {
            Abort::Peer { .. } => ErrorCode::ProtocolAbort,
            Abort::InvalidInput(_) | Abort::Bug(_) => ErrorCode::Internal,
        };
        Self::new(code, abort.to_string())
    }
}

/// The share could not be sealed or opened.
impl From<VaultError> for Failed {
    fn from(error: VaultError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// A protocol step was not done.
impl From<Undone> for Failed {
    fn from(undone: Undone) -> Self {
        let code = match undone {
            Undone::Full => ErrorCode::Overloaded,
            Undone::Panicked => ErrorCode::Internal,
        };
        Self::new(code, undone.to_string())
    }
}

/// JetStream is part of what must be available; from the sender's side it is this service that is overloaded.
impl From<Unavailable> for Failed {
    fn from(error: Unavailable) -> Self {
        Self::new(ErrorCode::Overloaded, error.to_string())
    }
}
