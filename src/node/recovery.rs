//! The waiting time of a recovery: the first job asks for it, a second one executes it. Meanwhile the owner, and the operator who
//! sees it in the audit log, can stop one that nobody meant.

use super::gate;
use super::store::{Asked, RecoveryRules};
use super::{Node, Refusal, about_job};
use crate::clock::now_ms;
use crate::wire::{ErrorCode, Job};

impl Node {
    /// Whether a recover job may go on, which passed every other check. `opens`: it begins now.
    ///
    /// # Errors
    /// `RECOVERY_PENDING` with the moment from which another job may; `JOB_SUPERSEDED` if a newer one cancelled it.
    pub(super) async fn recovery_is_due(&self, job: &Job, opens: bool) -> Result<(), Refusal> {
        let rules = RecoveryRules { wait: self.limits.recovery_wait, window: self.limits.recovery_window };
        let entry = gate::ledger_entry(job);
        match self.store.ask_recovery(entry, job.key_id, job.issued_at, opens, rules, now_ms()).await? {
            Asked::Granted => Ok(()),
            Asked::Pending { retry_at, new } => {
                if new {
                    tracing::warn!(key = %job.key_id, initiator = %job.initiator, retry_at, "a recovery was requested");
                    let about = about_job(job, [0; 32]);
                    self.audit.append(self.about("recover", &about, "requested", None)).await?;
                }
                let seconds = retry_at.saturating_sub(now_ms()).div_ceil(1_000);
                let message = format!("a job that is issued in {seconds} s or later executes the recovery");
                Err(Refusal { retry_at: Some(retry_at), ..Refusal::new(ErrorCode::RecoveryPending, message) })
            }
        }
    }
}
