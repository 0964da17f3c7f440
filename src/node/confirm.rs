//! After a restore: what became of the keys since the backup was taken, this node hears from the other one.
//!
//! Workers carry the words, and can only suppress them: each is signed, and names the restore that it is for. A key does not move on
//! while its doubt lasts, for that takes both nodes; so the other node's word does not get old on its way.

use super::audit::{AuditError, Event};
use super::store::{KeyRecord, KeyState, Quarantine, Verdict};
use super::{Answer, Node, Refusal};
use crate::wire::node::NodeReply;
use crate::wire::{EpochState, EpochStatement, ErrorCode, Fixed, KeyId};
use data_encoding::HEXLOWER;
use trefoil_protocol::Party;

const fn shown(state: KeyState) -> EpochState {
    match state {
        KeyState::Active => EpochState::Active,
        KeyState::Retired => EpochState::Retired,
        KeyState::Frozen => EpochState::Frozen,
        KeyState::Locked => EpochState::Locked,
        KeyState::Destroyed => EpochState::Destroyed,
    }
}

impl Node {
    /// What this node knows of a key, for the other one's restore.
    pub(super) fn epoch_of(&self, key_id: KeyId, transcript: [u8; 32], nonce: [u8; 32]) -> Answer {
        // Two old backups must not confirm each other.
        if self.store.quarantine().is_some() && self.store.doubt(key_id)?.is_some() {
            let message = "this node was restored from a backup as well, and has not heard of the key either";
            return Err(Refusal::new(ErrorCode::KeyUnconfirmed, message));
        }
        let (state, attempt, successor) = match self.store.key(key_id)? {
            Some(KeyRecord { state, attempt, successor }) => (shown(state), attempt, successor),
            None => {
                let mut prepared = self.store.prepared(key_id)?.into_iter();
                let attempt = prepared.find(|attempt| attempt.transcript == transcript).ok_or(ErrorCode::UnknownKey)?;
                (EpochState::Prepared, attempt, None)
            }
        };
        let (epoch, transcript) = (attempt.epoch, attempt.transcript);
        let statement = EpochStatement { nonce, key_id, epoch, transcript, state, successor };
        let signature = Fixed(statement.sign(&self.identity));
        Ok(NodeReply::EpochOf { statement, signature })
    }

    /// The other node's word about a key in doubt.
    pub(super) async fn confirm_epoch(&self, statement: EpochStatement, signature: [u8; 64]) -> Answer {
        let Some(Quarantine { nonce, .. }) = self.store.quarantine() else {
            return Err(Refusal::new(ErrorCode::NotPermitted, "this node was not restored from a backup"));
        };
        if statement.nonce != nonce || !statement.verify_any(&self.peers, &signature) {
            let message = "not the other node's word for this restore";
            return Err(Refusal::new(ErrorCode::NotPermitted, message));
        }
        // Node 2 obeys node 1, to the end of its share. Node 1's share ends by its own decision or its owner's alone, so
        // node 2's word stops it and leaves it where it is.
        let key_id = statement.key_id;
        let verdict = self.store.confirm(statement.clone(), self.role == Party::Node2).await?;
        let (decision, reason) = match verdict {
            Verdict::Known => return Ok(NodeReply::Confirmed),
            Verdict::First { key_id, transcript } => {
                return Ok(NodeReply::Unconfirmed { key_id, transcript, nonce });
            }
            Verdict::Confirmed => ("confirmed", None),
            Verdict::Ended => (statement.state.as_str(), None),
            Verdict::Outdated => {
                tracing::error!(key = %key_id, epoch = statement.epoch, "the restored share of a key is outdated");
                ("refused", Some(ErrorCode::ShareOutdated.as_str().to_owned()))
            }
        };
        self.metrics.quarantine.dec();
        let digest = Some(HEXLOWER.encode(&statement.transcript));
        let (key_id, decision) = (Some(key_id.to_string()), decision.to_owned());
        self.audit.append(Event { key_id, digest, decision, reason, ..self.event("confirm") }).await?;
        Ok(NodeReply::Confirmed)
    }

    /// Says in log and audit log that the store was restored, while keys of it are in doubt.
    pub(super) async fn mark_quarantine(&self) -> Result<(), AuditError> {
        let Some(Quarantine { nonce, taken_at, head, .. }) = self.store.quarantine() else { return Ok(()) };
        let failed = |error: super::store::StoreError| AuditError::Io(error.to_string());
        let (unconfirmed, outdated) = self.store.doubts().map_err(failed)?;
        self.metrics.quarantine.set(i64::try_from(unconfirmed).unwrap_or(i64::MAX));
        if (unconfirmed, outdated) == (0, 0) {
            return Ok(());
        }
        tracing::warn!(
            unconfirmed,
            outdated,
            taken_at,
            "QUARANTINE: the store was restored from a backup; no key is used before the other node has confirmed it"
        );
        let event = Event {
            decision: "quarantined".to_owned(),
            digest: Some(HEXLOWER.encode(&nonce)),
            reason: head.map(|head| head.to_string()),
            ..self.event("node")
        };
        self.audit.append(event).await
    }
}
