//! From a stretched password, or a data key that was kept, to the client's share.

use super::failure::Failed;
use crate::vault::{Begun, Blinded, DataKey, Kept, KeyBinding, LockedShare, Spot, VaultError};
use crate::wire::ErrorCode;
use std::sync::Arc;
use trefoil_protocol::{CurveId, KeyShare};

/// The client's share, before and after node 1's first OPRF evaluation.
pub(super) enum Access {
    /// With the password stretched; and where the data key is to be kept, if it is.
    Locked(Box<Begun>, Option<Spot>),
    /// With the data key kept from an earlier job.
    Kept(Box<Blinded>, Kept),
    Open(Arc<KeyShare>),
    /// Only while it is being opened, and after that failed, or was not begun, which takes a machine that has no more threads.
    Lost,
}

impl Access {
    /// The share, opened with node 1's evaluation the first time.
    ///
    /// # Errors
    /// `WRONG_PASSWORD`, `CORRUPT_SECRET_STORE`, `CORRUPT_SHARE`, `PROTOCOL_ABORT` for an evaluation that is none.
    pub(super) fn unlock(self, locked: &LockedShare, evaluation: &[u8; 32]) -> Result<Arc<KeyShare>, Failed> {
        let read = |key: &DataKey| read_share(&key.open(locked)?, locked.binding());
        let kept = matches!(self, Self::Kept(..));
        let share = match self {
            Self::Locked(begun, spot) => {
                let key = begun.unwrap_key(locked.store(), evaluation)?;
                let share = read(&key)?;
                // The password was right: it opened the store, and the store's key the share.
                if let Some(spot) = spot {
                    spot.keep(&key, &*begun.output(evaluation)?)?;
                }
                share
            }
            Self::Kept(blinded, kept) => read(&kept.open(&*blinded.finalize(evaluation)?)?)?,
            Self::Open(share) => return Ok(share),
            Self::Lost => return Err(Failed::new(ErrorCode::Internal, "the share was not opened")),
        };
        tracing::debug!(key = %locked.binding().key_id, kept, "share opened");
        Ok(Arc::new(share))
    }
}

/// A password that the stored KDF does not take: the parameters are within the limits, so it is the password that is wrong.
pub(super) fn unsuitable(error: VaultError) -> VaultError {
    match error {
        VaultError::InvalidKdf(_) => VaultError::WrongPassword,
        other => other,
    }
}

/// The opened share, if it is the one that it was said to be.
pub(super) fn read_share(bytes: &[u8], binding: &KeyBinding) -> Result<KeyShare, Failed> {
    let share = KeyShare::from_bytes(bytes).map_err(|_| corrupt())?;
    let same = share.curve() == binding.curve
        && share.key_id() == binding.key_id.0
        && share.epoch() == binding.epoch
        && share.transcript() == binding.transcript
        && (share.curve() == CurveId::Ed25519 || share.ot_id() == binding.ot_id);
    if same { Ok(share) } else { Err(corrupt()) }
}

fn corrupt() -> Failed {
    Failed::new(ErrorCode::CorruptShare, "the opened share is not a share of this key")
}
