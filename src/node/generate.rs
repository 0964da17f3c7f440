//! Making shares at a node, of a new key or for an old one (generate, recover, refresh): open, five rounds, prepare.

use super::gate::{self, Found};
use super::material::{Material, PasswordKeys};
use super::sessions::{About, Claim};
use super::store::{Attempt, Quota};
use super::{Answer, Caller, Node, Refusal, Stage, aborted, about_job, curve_id, session_id};
use crate::fault;
use crate::vault::{OprfKey, refresh_statement};
use crate::wire::node::{Identities, KeyStatement, NodeReply, SessionId};
use crate::wire::{
    Attestation, Curve, ErrorCode, FIRST_EPOCH, Fixed, InitiatorId, Job, JobId, KeyId, Op, Payload, SignedJob,
};
use ed25519_dalek::VerifyingKey;
use rand_core::OsRng;
use std::sync::Arc;
use trefoil_protocol::keygen::{Context, NodeKeygen};
use trefoil_protocol::{Abort, KeyShare, Party};

const OPERATIONS: &[Op] = &[Op::Generate, Op::Recover, Op::Refresh];

/// What a run has reached.
pub struct GenerateStage {
    order: Order,
    /// The client's contribution, as it was opened with; the first round must bring the same.
    contribution: [u8; 32],
    oprf: Option<OprfKey>,
    progress: Progress,
}

/// Whose job makes which shares.
struct Order {
    initiator: InitiatorId,
    job_id: JobId,
    op: Op,
    curve: Curve,
    source: Option<Source>,
    label: Option<String>,
}

/// The shares that a recovery or refresh starts from.
#[derive(Clone, Copy)]
struct Source {
    key_id: KeyId,
    epoch: u32,
    transcript: [u8; 32],
}

impl Source {
    const fn of(attempt: &Attempt) -> Self {
        Self { key_id: attempt.key_id, epoch: attempt.epoch, transcript: attempt.transcript }
    }
}

/// What a job may start with.
enum Start {
    From(Option<Source>),
    /// Something else comes first, as this answer says.
    First(Box<NodeReply>),
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

    /// Is this the run that prepared the attempt?
    pub fn prepared(&self, transcript: &[u8; 32]) -> bool {
        matches!(&self.progress, Progress::Staged(statement) if statement.transcript == *transcript)
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
        (contribution, blinded_password, proof): ([u8; 32], Option<[u8; 32]>, Option<Fixed<64>>),
        identities: Option<Identities>,
    ) -> Answer {
        let job = self.admit(signed, OPERATIONS)?;
        let own = self.identity.verifying_key();
        let Some(peer) = self.peer(identities)? else {
            return Ok(NodeReply::ActsAs { identity: own.to_bytes() });
        };
        let Some((curve, key_id)) = job.curve().zip(job.made_key()) else { return Err(ErrorCode::MalformedJob.into()) };
        if blinded_password.is_some() != (self.role == Party::Node1) {
            return Err(Refusal::new(ErrorCode::ProtocolAbort, "node 1, and only it, takes a blinded password"));
        }
        self.store.check_ledger(&gate::ledger_entry(&job)).map_err(|error| self.refuse(&job, error.into()))?;
        let source = match self.may_start(&job, key_id).map_err(|refusal| self.refuse(&job, refusal))? {
            Start::From(source) => source,
            Start::First(answer) => return Ok(*answer),
        };
        let old = match source {
            Some(source) => Some(self.old_material(source).await?),
            None => None,
        };
        // Before anything is claimed or written: without the old share's password there is no refresh, whoever signed the job.
        match (source.zip(old.as_ref()), blinded_password, &proof) {
            (Some((source, old)), Some(blinded), Some(proof)) if job.op() == Op::Refresh => {
                let share = (source.key_id, source.epoch, source.transcript);
                let statement = refresh_statement(&caller.channel, &job.digest, share, &contribution, &blinded);
                if !old.proves(&statement, &proof.0) {
                    let message = "the key's present share was not opened for this run";
                    return Err(self.refuse(&job, Refusal::new(ErrorCode::StaleShare, message)));
                }
            }
            (_, blinded, proof) => {
                if proof.is_some() || (job.op() == Op::Refresh && blinded.is_some()) {
                    let message = "a refresh at node 1, and nothing else, has a proof of the old share";
                    return Err(self.refuse(&job, Refusal::new(ErrorCode::ProtocolAbort, message)));
                }
            }
        }
        if job.op() == Op::Recover {
            self.recovery_is_due(&job, true).await.map_err(|refusal| self.refuse(&job, refusal))?;
        }
        let about = About { share: source.map(|source| source.transcript), ..about_job(&job, caller.channel) };
        // Where two workers could hold one node each, neither would get on: so one node says whose turn it is.
        let claim = match source {
            Some(_) if self.role == Party::Node1 => Claim::Resharing,
            _ => Claim::Nothing,
        };
        let busy = self.sessions.begin(session_id(), about, claim)?;
        let admitted = self.store.admit(gate::ledger_entry(&job)).await;
        admitted.map_err(|error| self.refuse(&job, error.into()))?;
        let (node1, node2) = if self.role == Party::Node1 { (own, peer) } else { (peer, own) };
        let epoch = source.map_or(Some(FIRST_EPOCH), |source| source.epoch.checked_add(1));
        let epoch = epoch.ok_or_else(|| Refusal::internal("the key has no epoch left"))?;
        let context = Context { curve: curve_id(curve), key_id: key_id.0, epoch, job_digest: job.digest, node1, node2 };
        let (role, identity, op) = (self.role, self.identity.clone(), job.op());
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
            let (keygen, own) = match old {
                None => NodeKeygen::start(&context, role, &identity, &mut OsRng),
                Some(old) if op == Op::Recover => NodeKeygen::recover(&context, &old.share, &identity, &mut OsRng),
                Some(old) => NodeKeygen::refresh(&context, &old.share, &identity, &mut OsRng),
            }
            .map_err(aborted)?;
            Ok::<_, Refusal>((oprf, evaluation, keygen, own))
        });
        let (oprf, evaluation, keygen, own) = step.await??;
        self.audit.note(self.about(op.as_str(), busy.about(), "opened", None));
        fault::step("session", op.as_str(), job.key_id);
        let label = match job.payload {
            Payload::Generate { label, .. } if self.role == Party::Node1 => label,
            _ => None,
        };
        let session = busy.id();
        busy.park(Stage::Generate(Box::new(GenerateStage {
            order: Order { initiator: job.initiator, job_id: job.job_id, op, curve, source, label },
            contribution,
            oprf,
            progress: Progress::Running(Box::new(keygen)),
        })));
        Ok(NodeReply::GenerateOpened { session, contribution: own, evaluation })
    }

    async fn old_material(&self, source: Source) -> Result<Material, Refusal> {
        let store = Arc::clone(&self.store);
        self.pool.run(move || Self::material(store.as_ref(), source.key_id, source.transcript)).await?
    }

    /// Whether the job may have shares made, and of which; changes nothing.
    fn may_start(&self, job: &Job, key_id: KeyId) -> Result<Start, Refusal> {
        let source = match job.op() {
            Op::Generate => None,
            _ => match self.origin(job)? {
                Found::Committed(key) if key.attempt.job_digest == job.digest => {
                    return Err(Refusal::new(ErrorCode::JobIdReused, "the job has made the key's shares already"));
                }
                Found::Committed(key) => Some(Source::of(&key.attempt)),
                Found::First(answer) => return Ok(Start::First(answer)),
            },
        };
        if job.op() != Op::Refresh && self.store.key(key_id)?.is_some() {
            return Err(Refusal::new(ErrorCode::JobIdReused, "the key exists already"));
        }
        // A key that takes the place of another one does not add to their number.
        if source.is_none()
            && let Some(quota) = self.quota(&job.initiator)
            && !self.store.has_room(&quota, key_id)?
        {
            let message = format!("this initiator may have {} keys, and has them", quota.max_keys);
            return Err(Refusal::new(ErrorCode::NotPermitted, message));
        }
        Ok(Start::From(source))
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
        self.may_go_on(busy.about())?;
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
                self.audit.note(self.about(stage.order.op.as_str(), busy.about(), "refused", Some(abort.check())));
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
            // Only said again: that does not hold the key's slot any longer.
            Progress::Staged(statement) => {
                stage.progress = Progress::Staged(statement.clone());
                busy.put_back(Stage::Generate(stage));
                return Ok(NodeReply::Prepared(*statement));
            }
            Progress::Running(keygen) => {
                self.may_go_on(busy.about())?;
                let share = keygen.finish().map_err(aborted)?;
                let about = Arc::clone(busy.about());
                let attempt = self.attest(&stage.order, about.job_digest, &share);
                let statement = self.statement(&attempt);
                let keys = stage.oprf.take().zip(prover).map(|(oprf, prover)| PasswordKeys { oprf, prover });
                let quota = self.quota(&stage.order.initiator);
                let material = Material { share: Arc::new(share), password: keys };
                self.preparations.remember(&attempt, caller.channel);
                let (op, key_id) = (stage.order.op.as_str(), attempt.key_id);
                fault::step("preparing", op, key_id);
                self.is_granted(&about)?;
                if let Err(error) = self.store.stage(attempt, material.to_bytes(), quota).await {
                    let refusal = Refusal::from(error);
                    self.audit.note(self.about(op, &about, "refused", Some(refusal.code.as_str())));
                    return Err(refusal);
                }
                fault::step("prepared", op, key_id);
                self.audit.append(self.about(op, &about, "prepared", None)).await?;
                self.metrics.session_completed(&about);
                statement
            }
        };
        stage.progress = Progress::Staged(Box::new(statement.clone()));
        busy.park(Stage::Generate(stage));
        Ok(NodeReply::Prepared(statement))
    }

    /// How many keys an initiator may have, where the policy says so: none once the policy no longer names it.
    fn quota(&self, initiator: &InitiatorId) -> Option<Quota> {
        let policy = self.gate.policy();
        let max_keys = policy.get(initiator).map_or(Some(0), |grant| grant.max_keys)?;
        Some(Quota { owners: policy.owners(initiator), max_keys })
    }

    /// The other node's identity in a run for which the worker has these in mind; `None` if it has another one of this node in mind.
    ///
    /// # Errors
    /// `NODE_UNAVAILABLE`: this node does not know the other one by that, yet or any more.
    fn peer(&self, identities: Option<Identities>) -> Result<Option<VerifyingKey>, Refusal> {
        let unknown =
            || Refusal::new(ErrorCode::NodeUnavailable, "the other node acts under an identity not listed here");
        let Some(Identities { node1, node2 }) = identities else {
            return self.peers.first().copied().ok_or_else(unknown).map(Some);
        };
        let (own, other) = if self.role == Party::Node1 { (node1, node2) } else { (node2, node1) };
        if own != self.identity.verifying_key().to_bytes() {
            return Ok(None);
        }
        self.peers.iter().find(|peer| *peer.as_bytes() == other).copied().ok_or_else(unknown).map(Some)
    }

    /// An attempt as it is told to a worker. What this node attested under an identity that it had before, it attests anew; what none of its
    /// own attested is told as it was stored, and nobody believes it.
    pub(super) fn statement(&self, attempt: &Attempt) -> KeyStatement {
        let attested = attestation(attempt);
        let signature = match attested.verify_any(&self.former, &attempt.signature.0) {
            true => Fixed(attested.sign(&self.identity)),
            false => attempt.signature,
        };
        KeyStatement { signature, ..statement(attempt) }
    }

    /// The attempt's public side with this node's attestation.
    fn attest(&self, order: &Order, job_digest: [u8; 32], share: &KeyShare) -> Attempt {
        let key_id = KeyId(share.key_id());
        let mut attempt = Attempt {
            initiator: order.initiator.clone(),
            job_id: order.job_id.clone(),
            job_digest,
            key_id,
            source_key_id: order.source.map(|source| source.key_id).filter(|source| *source != key_id),
            source_transcript: order.source.map(|source| source.transcript),
            epoch: share.epoch(),
            curve: order.curve,
            public_key: share.public_key(),
            chain_code: share.chain_code(),
            transcript: share.transcript(),
            signature: Fixed([0; 64]),
            label: order.label.clone(),
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

/// An attempt as it is stored.
fn statement(attempt: &Attempt) -> KeyStatement {
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
