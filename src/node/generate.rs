//! Key generation at a node: open, five rounds, prepare.

use super::gate;
use super::material::{Material, PasswordKeys};
use super::store::Attempt;
use super::{Answer, Caller, Node, Refusal, Stage, aborted, about_job, curve_id, session_id};
use crate::clock::now_ms;
use crate::fault;
use crate::vault::OprfKey;
use crate::wire::node::{KeyStatement, NodeReply, SessionId};
use crate::wire::{Attestation, Curve, ErrorCode, FIRST_EPOCH, Fixed, InitiatorId, JobId, Op, Payload, SignedJob};
use ed25519_dalek::VerifyingKey;
use rand_core::OsRng;
use std::sync::Arc;
use trefoil_protocol::keygen::{Context, NodeKeygen};
use trefoil_protocol::{Abort, KeyShare, Party};

/// What a generation has reached.
pub struct GenerateStage {
    initiator: InitiatorId,
    job_id: JobId,
    curve: Curve,
    /// The client's contribution, as it was opened with; the first round must bring the same.
    contribution: [u8; 32],
    oprf: Option<OprfKey>,
    progress: Progress,
}

enum Progress {
    Running(Box<NodeKeygen>),
    /// Staged durably; asked again, the answer is the same.
    Staged(Box<KeyStatement>),
}

/// The round after the last: only the share is left to take.
const FINISHED: u8 = 6;

impl GenerateStage {
    pub const fn is_unfinished(&self) -> bool {
        matches!(self.progress, Progress::Running(_))
    }

    const fn round(&self) -> Option<u8> {
        match &self.progress {
            Progress::Running(keygen) => Some(keygen.round()),
            Progress::Staged(_) => None,
        }
    }
}

fn out_of_order() -> Refusal {
    Refusal::new(ErrorCode::ProtocolAbort, "the session does not wait for this message")
}

impl Node {
    pub(super) async fn generate_open(
        &self,
        caller: Caller,
        signed: &SignedJob,
        contribution: [u8; 32],
        blinded_password: Option<[u8; 32]>,
    ) -> Answer {
        let job = self.gate.admit(signed, Op::Generate, now_ms());
        let job = job.map_err(|(job, refusal)| match job {
            Some(job) => self.refuse(&job, refusal),
            None => refusal,
        })?;
        let Payload::Generate { curve, .. } = job.payload else { return Err(ErrorCode::MalformedJob.into()) };
        if blinded_password.is_some() != (self.role == Party::Node1) {
            return Err(Refusal::new(ErrorCode::ProtocolAbort, "node 1, and only it, takes a blinded password"));
        }
        if self.store.key(job.key_id)?.is_some() {
            return Err(self.refuse(&job, Refusal::new(ErrorCode::JobIdReused, "the key exists already")));
        }
        if let Some(max_keys) = self.max_keys(&job.initiator)
            && !self.store.has_room(&job.initiator, job.key_id, max_keys)?
        {
            let message = format!("this initiator may have {max_keys} keys, and has them");
            return Err(self.refuse(&job, Refusal::new(ErrorCode::NotPermitted, message)));
        }
        let busy = self.sessions.begin(session_id(), about_job(&job, caller.channel), None)?;
        let admitted = self.store.admit(gate::ledger_entry(&job)).await;
        admitted.map_err(|error| self.refuse(&job, error.into()))?;
        let own = self.identity.verifying_key();
        let (node1, node2) = if self.role == Party::Node1 { (own, self.peer) } else { (self.peer, own) };
        let context = Context {
            curve: curve_id(curve),
            key_id: job.key_id.0,
            epoch: FIRST_EPOCH,
            job_digest: job.digest,
            node1,
            node2,
        };
        let (role, identity) = (self.role, self.identity.clone());
        let step = self.pool.run(move || {
            let (oprf, evaluation) = match blinded_password {
                Some(blinded) => {
                    let key = OprfKey::generate(&mut OsRng).map_err(|_| Refusal::internal("no OPRF key"))?;
                    let refused = || aborted(Abort::peer(Party::Client, "oprf_element"));
                    let evaluation = key.evaluate(&blinded).ok_or_else(refused)?;
                    (Some(key), Some(evaluation))
                }
                None => (None, None),
            };
            let (keygen, own) = NodeKeygen::start(&context, role, &identity, &mut OsRng).map_err(aborted)?;
            Ok::<_, Refusal>((oprf, evaluation, keygen, own))
        });
        let (oprf, evaluation, keygen, own) = step.await??;
        self.audit.note(self.about("generate", busy.about(), "opened", None));
        fault::step("session", Op::Generate.as_str(), job.key_id);
        let session = busy.id();
        busy.park(Stage::Generate(Box::new(GenerateStage {
            initiator: job.initiator,
            job_id: job.job_id,
            curve,
            contribution,
            oprf,
            progress: Progress::Running(Box::new(keygen)),
        })));
        Ok(NodeReply::GenerateOpened { session, contribution: own, evaluation })
    }

    pub(super) async fn generate_round(
        &self,
        caller: Caller,
        session: SessionId,
        round: u8,
        payload: Vec<u8>,
    ) -> Answer {
        let wanted = |stage: &Stage| match stage {
            Stage::Generate(stage) if stage.round() == Some(round) && round < FINISHED => Ok(()),
            _ => Err(out_of_order()),
        };
        let (busy, stage) = self.sessions.take(session, &caller.channel, wanted)?;
        let Stage::Generate(mut stage) = stage else { return Err(out_of_order()) };
        let Progress::Running(keygen) = stage.progress else { return Err(out_of_order()) };
        if round == 1 && !payload.starts_with(&stage.contribution) {
            return Err(aborted(Abort::peer(Party::Client, "contribution")));
        }
        let identity = self.identity.clone();
        match self.pool.run(move || keygen.advance(&payload, &identity)).await? {
            Ok((keygen, reply)) => {
                stage.progress = Progress::Running(Box::new(keygen));
                busy.park(Stage::Generate(stage));
                Ok(NodeReply::GenerateRound { payload: reply })
            }
            Err(abort) => {
                self.audit.note(self.about("generate", busy.about(), "refused", Some(abort.check())));
                Err(aborted(abort))
            }
        }
    }

    pub(super) async fn generate_prepare(
        &self,
        caller: Caller,
        session: SessionId,
        prover: Option<[u8; 32]>,
    ) -> Answer {
        if prover.is_some() != (self.role == Party::Node1) {
            return Err(Refusal::new(ErrorCode::ProtocolAbort, "node 1, and only it, takes a prover"));
        }
        if prover.is_some_and(|key| VerifyingKey::from_bytes(&key).is_err()) {
            return Err(aborted(Abort::peer(Party::Client, "prover")));
        }
        let wanted = |stage: &Stage| match stage {
            Stage::Generate(stage) if stage.round().is_none_or(|round| round == FINISHED) => Ok(()),
            _ => Err(out_of_order()),
        };
        let (busy, stage) = self.sessions.take(session, &caller.channel, wanted)?;
        let Stage::Generate(mut stage) = stage else { return Err(out_of_order()) };
        let statement = match stage.progress {
            Progress::Staged(statement) => *statement,
            Progress::Running(keygen) => {
                let share = keygen.finish().map_err(aborted)?;
                let about = Arc::clone(busy.about());
                let attempt = self.attest(&stage.initiator, &stage.job_id, stage.curve, about.job_digest, &share);
                let statement = statement(&attempt);
                let keys = stage.oprf.take().zip(prover).map(|(oprf, prover)| PasswordKeys { oprf, prover });
                let max_keys = self.max_keys(&stage.initiator);
                let material = Material { share: Arc::new(share), password: keys };
                self.preparations.remember(&attempt, caller.channel);
                let (op, key_id) = (fault::made_by(attempt.source_key_id, attempt.epoch), attempt.key_id);
                fault::step("preparing", op, key_id);
                self.store.stage(attempt, material.to_bytes(), max_keys).await?;
                fault::step("prepared", op, key_id);
                self.audit.append(self.about("generate", &about, "prepared", None)).await?;
                statement
            }
        };
        stage.progress = Progress::Staged(Box::new(statement.clone()));
        busy.park(Stage::Generate(stage));
        Ok(NodeReply::Prepared(statement))
    }

    /// How many keys an initiator may have: none once the policy no longer names it.
    fn max_keys(&self, initiator: &InitiatorId) -> Option<u64> {
        self.gate.policy().get(initiator).map_or(Some(0), |grant| grant.max_keys)
    }

    /// The attempt's public side with this node's attestation.
    fn attest(
        &self,
        initiator: &InitiatorId,
        job_id: &JobId,
        curve: Curve,
        job_digest: [u8; 32],
        share: &KeyShare,
    ) -> Attempt {
        let mut attempt = Attempt {
            initiator: initiator.clone(),
            job_id: job_id.clone(),
            job_digest,
            key_id: crate::wire::KeyId(share.key_id()),
            source_key_id: None,
            epoch: share.epoch(),
            curve,
            public_key: share.public_key(),
            chain_code: share.chain_code(),
            transcript: share.transcript(),
            signature: Fixed([0; 64]),
        };
        attempt.signature = Fixed(attestation(&attempt).sign(&self.identity));
        attempt
    }
}

/// What the nodes sign about an attempt.
pub fn attestation(attempt: &Attempt) -> Attestation {
    Attestation {
        initiator: attempt.initiator.clone(),
        job_digest: attempt.job_digest,
        key_id: attempt.key_id,
        source_key_id: attempt.source_key_id,
        epoch: attempt.epoch,
        curve: attempt.curve,
        public_key: attempt.public_key.clone(),
        chain_code: attempt.chain_code,
        transcript: attempt.transcript,
    }
}

/// An attempt as it is told to a worker.
pub fn statement(attempt: &Attempt) -> KeyStatement {
    KeyStatement {
        job_digest: attempt.job_digest,
        key_id: attempt.key_id,
        source_key_id: attempt.source_key_id,
        epoch: attempt.epoch,
        curve: attempt.curve,
        public_key: attempt.public_key.clone(),
        chain_code: attempt.chain_code,
        transcript: attempt.transcript,
        signature: attempt.signature,
    }
}
