//! Attempts that node 2 has prepared and node 1 has not decided, as far as node 2 knows. Workers carry question and answer, at their
//! start and every minute; node 1's signed word is what node 2 obeys.

use super::audit::Event;
use super::store::{Attempt, Standing, StoreError};
use super::{Answer, Node, Refusal};
use crate::clock::now_ms;
use crate::wire::node::{NodeReply, UndecidedAttempt};
use crate::wire::{Attestation, Decision, DecisionKind, ErrorCode, Fixed, KeyId, subject};
use data_encoding::HEXLOWER;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use trefoil_protocol::Party;

/// Attempts of one answer.
const LISTED: usize = 64;
/// Attempts that node 1 was asked about and does not know, remembered at once: about 100 bytes each.
const MAX_ASKED: usize = 65_536;

/// When node 1 was first asked about attempts that it does not know, in memory: a restart only makes them wait again.
#[derive(Default)]
pub struct Asked(Mutex<HashMap<(KeyId, [u8; 32]), Times>>);

struct Times {
    first: Instant,
    last: Instant,
}

impl Asked {
    /// How long it is that this was first asked.
    fn since(&self, key_id: KeyId, transcript: [u8; 32]) -> Duration {
        let (mut asked, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if asked.len() >= MAX_ASKED && !asked.contains_key(&(key_id, transcript)) {
            return Duration::ZERO;
        }
        let entry = asked.entry((key_id, transcript)).or_insert(Times { first: now, last: now });
        entry.last = now;
        now.duration_since(entry.first)
    }

    /// Forgets what nobody asks about any more.
    pub fn sweep(&self, after: Duration) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, times| times.last.elapsed() < after.max(Duration::from_secs(3_600)));
    }
}

fn attestation(asked: &UndecidedAttempt) -> Attestation {
    let said = &asked.statement;
    Attestation {
        initiator: asked.initiator.clone(),
        job_digest: said.job_digest,
        key_id: said.key_id,
        source_key_id: said.source_key_id,
        epoch: said.epoch,
        curve: said.curve,
        public_key: said.public_key.clone(),
        chain_code: said.chain_code,
        transcript: said.transcript,
    }
}

impl Node {
    /// Node 2: what it has prepared for a while, some of it. Node 1 decides, so nothing is undecided there.
    pub(super) fn undecided(&self) -> Answer {
        if self.role != Party::Node2 {
            return Ok(NodeReply::Undecided { attempts: Vec::new() });
        }
        let before = now_ms().saturating_sub(self.limits.undecided_after.as_millis() as u64);
        let listed = self.store.undecided(before, LISTED)?;
        let attempts = listed
            .iter()
            .map(|attempt| UndecidedAttempt {
                initiator: attempt.initiator.clone(),
                statement: self.statement(attempt),
            })
            .collect();
        Ok(NodeReply::Undecided { attempts })
    }

    /// Node 1: its decision about an attempt that node 2 has prepared. One that it does not know, and still does not after a
    /// while, is void from now on: it can have been cut off before it came here.
    pub(super) async fn decision(&self, asked: UndecidedAttempt) -> Answer {
        if self.role != Party::Node1 {
            return Err(Refusal::new(ErrorCode::UnsupportedOperation, "node 1 decides"));
        }
        let attested = attestation(&asked);
        if !attested.verify_any(&self.peers, &asked.statement.signature.0) {
            return Err(Refusal::new(ErrorCode::NotPermitted, "node 2 did not attest this attempt"));
        }
        let Attestation { key_id, epoch, transcript, .. } = attested;
        let decided = |kind| {
            let signature = Fixed(Decision { kind, key_id, epoch, transcript }.sign(&self.identity));
            Ok(match kind {
                DecisionKind::Committed => NodeReply::Committed { signature },
                DecisionKind::Aborted => NodeReply::Aborted { signature },
            })
        };
        let generated = attested.source_key_id.is_none() && epoch == crate::wire::FIRST_EPOCH;
        match self.store.standing(key_id, transcript, generated).await? {
            Standing::Committed => decided(DecisionKind::Committed),
            Standing::Void => decided(DecisionKind::Aborted),
            Standing::Prepared(attempt) => {
                let result_subject = subject::result(&attempt.initiator, &attempt.job_id);
                Ok(NodeReply::NotCommitted { result_subject })
            }
            // It may have been committed here, after the backup was taken.
            Standing::Unknown if self.store.quarantine().is_some() => {
                Err(Refusal::new(ErrorCode::KeyUnconfirmed, "this node was restored, and may have decided before"))
            }
            Standing::Unknown if self.asked.since(key_id, transcript) < self.limits.abort_after => {
                Err(Refusal::new(ErrorCode::KeyNotReady, "it may still be on its way to this node"))
            }
            Standing::Unknown => {
                self.store.discard(key_id, transcript).await?;
                let event = self.about_attempt("discard", key_id, transcript, None, "aborted");
                self.audit.append(Event { reason: Some("never prepared here".to_owned()), ..event }).await?;
                decided(DecisionKind::Aborted)
            }
        }
    }

    /// Drops a prepared attempt because node 1's operator says so: its job has no result that names it, and never will.
    ///
    /// # Errors
    /// It is not node 1, or the attempt is not prepared; the store or the audit log failed.
    pub async fn discard_by_operator(&self, attempt: &Attempt) -> anyhow::Result<()> {
        anyhow::ensure!(self.role == Party::Node1, "node 2 follows node 1: discard it there");
        let (key_id, transcript) = (attempt.key_id, attempt.transcript);
        match self.store.standing(key_id, transcript, attempt.source().is_none()).await? {
            Standing::Prepared(_) => {}
            _ => return Err(StoreError::Refused(ErrorCode::JobIdReused).into()),
        }
        self.store.discard(key_id, transcript).await?;
        let event = self.about_attempt("discard", key_id, transcript, Some(attempt), "aborted");
        tracing::info!(key = %key_id, transcript = HEXLOWER.encode(&transcript), "discarded by the operator");
        self.audit.append(Event { reason: Some("by the operator".to_owned()), ..event }).await?;
        Ok(())
    }
}
