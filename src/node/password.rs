//! Passwords at node 1, outside of signing: one OPRF evaluation for one charged attempt, given back on proof that the client's data
//! key was unwrapped; and, only after that proof, the evaluation of a new password.

use super::gate::{self, Found};
use super::material::Material;
use super::sessions::{About, Claim};
use super::sign::{evaluate, shown};
use super::store::GuessOutcome;
use super::{Answer, Caller, Node, Refusal, Stage, about_job, session_id};
use crate::clock::now_ms;
use crate::vault::opened_statement;
use crate::wire::node::{NodeReply, PasswordOpen, PasswordOutcome, SessionId};
use crate::wire::{ErrorCode, Op};
use std::sync::Arc;
use trefoil_protocol::Party;

const OPERATIONS: &[Op] = &[Op::ValidatePassword, Op::ValidateShare, Op::ChangePassword, Op::Refresh];

/// An evaluation is out; its outcome is awaited.
pub struct PasswordStage {
    op: Op,
    material: Material,
}

impl Node {
    /// Every check that changes nothing, then the charge, then the evaluation.
    pub(super) async fn password_open(&self, caller: Caller, open: PasswordOpen) -> Answer {
        if self.role != Party::Node1 {
            return Err(Refusal::new(ErrorCode::UnsupportedOperation, "node 2 knows no passwords"));
        }
        let job = self.admit(&open.job, OPERATIONS)?;
        let refused = |refusal: Refusal| self.refuse(&job, refusal);
        self.store.check_ledger(&gate::ledger_entry(&job)).map_err(|error| refused(error.into()))?;
        let key =
            match gate::find_share(self.store.as_ref(), &self.gate.policy(), &job, open.transcript).map_err(refused)? {
                Found::Committed(key) => key,
                Found::First(answer) => return Ok(*answer),
            };
        // Whoever wants new shares proves the old password first, and a locked key waits for new shares.
        let usable = if job.op() == Op::Refresh { key.replaceable() } else { key.usable() };
        usable.map_err(|error| refused(error.into()))?;
        let attempt = key.attempt;
        if open.epoch != attempt.epoch || open.transcript != attempt.transcript {
            return Err(refused(ErrorCode::StaleShare.into()));
        }
        // No slot: nothing here can disturb a signing session of the same key.
        let about =
            About { share: Some(attempt.transcript), curve: Some(attempt.curve), ..about_job(&job, caller.channel) };
        let busy = self.sessions.begin(session_id(), about, Claim::Nothing)?;
        let (store, key_id, transcript) = (Arc::clone(&self.store), attempt.key_id, attempt.transcript);
        let blinded = open.blinded_password;
        let (material, evaluation) = self
            .pool
            .run(move || {
                let material = Self::material(store.as_ref(), key_id, transcript)?;
                let evaluation = evaluate(&material, &blinded)?;
                Ok::<_, Refusal>((material, evaluation))
            })
            .await??;
        self.charge(&job, busy.about(), transcript, blinded).await?;
        self.audit.append(self.about(job.op().as_str(), busy.about(), "opened", None)).await?;
        let session = busy.id();
        busy.park(Stage::Password(Box::new(PasswordStage { op: job.op(), material })));
        Ok(NodeReply::PasswordOpened { session, evaluation })
    }

    /// Ends a session's password attempt.
    pub(super) async fn settle(&self, about: &About, outcome: GuessOutcome) -> Result<(), Refusal> {
        let Some(share) = about.share else { return Err(Refusal::internal("a session without a share")) };
        self.store.settle((about.key_id, share), outcome, now_ms()).await?;
        self.metrics.settled(about, outcome);
        Ok(())
    }

    pub(super) async fn password_close(&self, caller: Caller, session: SessionId, outcome: PasswordOutcome) -> Answer {
        let wanted = |stage: &Stage| match stage {
            Stage::Password(stage) => stage.accepts(&outcome),
            _ => Err(Refusal::new(ErrorCode::ProtocolAbort, "not a password's session")),
        };
        let (busy, stage) = self.sessions.take(session, &caller.channel, wanted)?;
        let Stage::Password(stage) = stage else { return Err(ErrorCode::Internal.into()) };
        let about = Arc::clone(busy.about());
        let op = stage.op.as_str();
        match outcome {
            PasswordOutcome::Opened { proof, next } => {
                let statement = opened_statement(&about.channel, &about.job_digest, &session, next.as_ref());
                if !stage.material.proves(&statement, &proof.0) {
                    self.audit.note(self.about(op, &about, "closed", Some("proof_invalid")));
                    return Err(Refusal::new(ErrorCode::ProtocolAbort, "the proof does not verify"));
                }
                self.settle(&about, GuessOutcome::Right).await?;
                self.is_granted(&about)?;
                // The new password is evaluated for whoever has the data key already, so it is nobody's guess.
                let material = stage.material;
                let next = match next {
                    Some(next) => Some(self.pool.run(move || evaluate(&material, &next)).await??),
                    None => None,
                };
                let decision = if next.is_some() { "released" } else { "closed" };
                self.audit.append(self.about(op, &about, decision, None)).await?;
                self.metrics.session_completed(&about);
                Ok(NodeReply::PasswordClosed { next })
            }
            PasswordOutcome::Wrong => {
                self.settle(&about, GuessOutcome::Wrong).await?;
                let reason = ErrorCode::WrongPassword.as_str();
                self.audit.append(self.about(op, &about, "closed", Some(reason))).await?;
                Ok(NodeReply::PasswordClosed { next: None })
            }
            PasswordOutcome::Abort { check } => {
                self.audit.note(self.about(op, &about, "closed", Some(&shown(&check))));
                Ok(NodeReply::PasswordClosed { next: None })
            }
        }
    }
}

impl PasswordStage {
    /// Only a change of the password has a new one.
    fn accepts(&self, outcome: &PasswordOutcome) -> Result<(), Refusal> {
        match outcome {
            PasswordOutcome::Opened { next, .. } if next.is_some() != (self.op == Op::ChangePassword) => {
                Err(Refusal::new(ErrorCode::ProtocolAbort, "change-password, and only it, has a new password"))
            }
            _ => Ok(()),
        }
    }
}
