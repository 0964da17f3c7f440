//! Signing at node 1: ECDSA in two requests, FROST in one, and the worker's report. Batches begin in `batch`.

use super::audit::{AuditError, Event};
use super::batch::OpenBatch;
use super::gate::{self, Found};
use super::material::Material;
use super::sessions::{About, Busy, Claim, seen};
use super::store::Written;
use super::store::{BurnedSession, GuessLimits, GuessOutcome, Store, StoreError};
use super::{Answer, Caller, Node, Refusal, Stage, aborted, about_job, session_id};
use crate::clock::now_ms;
use crate::fault;
use crate::wire::node::{NodeReply, SessionId, SignOpen, SignOutcome};
use crate::wire::{Curve, ErrorCode, Fixed, Job, KeyId, Op, Payload, SignInput};
use data_encoding::HEXLOWER;
use futures::future::BoxFuture;
use rand_core::OsRng;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use trefoil_protocol::derive::DerivationPath;
use trefoil_protocol::ecdsa::node1::{Node1, Sent};
use trefoil_protocol::ecdsa::{M2_LEN, Request};
use trefoil_protocol::frost;
use trefoil_protocol::{Abort, Party};
use zeroize::Zeroizing;

/// Pause between attempts to store a lock.
const LOCK_RETRY: Duration = Duration::from_secs(1);

/// What a signing session has reached.
pub enum SignStage {
    /// m1 is out.
    Opened { node1: Box<Node1>, material: Arc<Material>, signed: String },
    /// m1 of some items of a batch is out.
    Batch(Box<OpenBatch>),
    /// m3 is out, of each item in a batch.
    Released(Vec<Sent>),
    /// Node 1's FROST share is out, of each item in a batch.
    FrostReleased(Vec<frost::Sent>),
}

impl SignStage {
    pub const fn is_unfinished(&self) -> bool {
        matches!(self, Self::Opened { .. } | Self::Batch(_))
    }
}

/// A sign job that passed every harmless check but those of its share's secrets, and holds its key's slot.
pub(super) struct Admitted {
    pub(super) job: Job,
    pub(super) busy: Busy<Stage>,
}

/// What a session's last message is made of, and the two writes that come before it leaves, under way.
#[must_use = "what is burned is there to be released"]
pub(super) struct Burning<T> {
    burned: Written<()>,
    logged: BoxFuture<'static, Result<(), AuditError>>,
    made: T,
}

/// Either the job goes on, or something else comes first.
pub(super) enum Entry {
    Admitted(Box<Admitted>),
    /// The answer that says so.
    First(Box<NodeReply>),
}

impl Node {
    /// Every check of a sign job that changes nothing, in the order: signature, permission, times, ledger, key, share.
    pub(super) async fn sign_entry(&self, caller: Caller, open: &SignOpen, curve: Curve) -> Result<Entry, Refusal> {
        if self.role != Party::Node1 {
            return Err(Refusal::new(ErrorCode::UnsupportedOperation, "node 2 does not sign"));
        }
        let job = self.admit(&open.job, &[Op::Sign])?;
        let refused = |refusal: Refusal| self.refuse(&job, refusal);
        let known = self.store.check_ledger(&gate::ledger_entry(&job)).map_err(|error| refused(error.into()))?;
        if known && !open.looked {
            return Ok(Entry::First(Box::new(NodeReply::Known)));
        }
        let key =
            match gate::find_share(self.store.as_ref(), &self.gate.policy(), &job, open.transcript).map_err(refused)? {
                Found::Committed(key) => key,
                Found::First(answer) => return Ok(Entry::First(answer)),
            };
        key.usable().map_err(|error| refused(error.into()))?;
        let attempt = key.attempt;
        if Some(attempt.curve) != job.curve() || attempt.curve != curve {
            return Err(refused(ErrorCode::CurveMismatch.into()));
        }
        if open.epoch != attempt.epoch || open.transcript != attempt.transcript {
            return Err(refused(ErrorCode::StaleShare.into()));
        }
        let about = About { share: Some(attempt.transcript), ..about_job(&job, caller.channel) };
        let busy = self.sessions.begin(session_id(), about, Claim::Signing { token: open.lease_token });
        let busy = busy.map_err(refused)?;
        if let Some(ended) = busy.preempted() {
            self.audit.note(self.about("sign", ended, "preempted", None));
        }
        Ok(Entry::Admitted(Box::new(Admitted { job, busy })))
    }

    /// What finds an admitted job's secrets, and evaluates its blinded password: the last that may refuse. Blocking: call on the pool.
    pub(super) fn opening(
        &self,
        job: &Job,
        open: &SignOpen,
    ) -> impl FnOnce() -> Result<(Arc<Material>, [u8; 32]), Refusal> + Send + use<> {
        let (store, key_id, transcript) = (Arc::clone(&self.store), job.key_id, open.transcript);
        let (ot_id, blinded) = (open.ot_id, open.blinded_password);
        move || {
            let material = Self::material(store.as_ref(), key_id, transcript)?;
            if ot_id != material.share.ot_id() {
                return Err(ErrorCode::StaleShare.into());
            }
            let evaluation = evaluate(&material, &blinded)?;
            Ok((Arc::new(material), evaluation))
        }
    }

    /// What charges the password attempt at the key's share with this transcript hash. Call it after everything else that may refuse;
    /// nothing leaves before [`Node::charged`] says that it is durable.
    pub(super) fn charging(
        &self,
        job: &Job,
        transcript: [u8; 32],
        blinded: [u8; 32],
    ) -> impl FnOnce() -> Written<()> + Send + use<> {
        let limits = GuessLimits { attempts: self.limits.password_attempts, lockout: self.limits.password_lockout };
        let (store, entry, key) = (Arc::clone(&self.store), gate::ledger_entry(job), (job.key_id, transcript));
        move || store.charge(entry, key, blinded, limits, now_ms())
    }

    /// Waits for a charge.
    pub(super) async fn charged(&self, job: &Job, about: &About, charge: Written<()>) -> Result<(), Refusal> {
        let charged = charge.await;
        self.metrics.charged(about, &charged);
        charged.map_err(|error| self.refuse(job, error.into()))?;
        fault::step("charged", job.op().as_str(), job.key_id);
        Ok(())
    }

    /// Charges a password attempt, and waits for it.
    pub(super) async fn charge(
        &self,
        job: &Job,
        about: &About,
        transcript: [u8; 32],
        blinded: [u8; 32],
    ) -> Result<(), Refusal> {
        self.charged(job, about, self.charging(job, transcript, blinded)()).await
    }

    pub(super) async fn sign_open(&self, caller: Caller, open: SignOpen) -> Answer {
        let Admitted { job, busy } = match self.sign_entry(caller, &open, Curve::Secp256k1).await? {
            Entry::Admitted(admitted) => *admitted,
            Entry::First(answer) => return Ok(*answer),
        };
        let input = input_of(&job)?;
        let signed = signed_text(&input);
        let SignInput::Secp256k1 { digest, path } = input else { return Err(ErrorCode::CurveMismatch.into()) };
        let path = DerivationPath::parse(path.as_deref().unwrap_or("m")).map_err(|_| ErrorCode::InvalidPath)?;
        let request = Request { channel_hash: caller.channel, job_digest: job.digest, digest, path };
        let (opening, charging) =
            (self.opening(&job, &open), self.charging(&job, open.transcript, open.blinded_password));
        let step = move || {
            let (material, evaluation) = opening()?;
            // Nothing that a request says can be refused any more, so m1 is made while the charge is written, and leaves after both.
            let charge = charging();
            let opened = Node1::open(Arc::clone(&material.share), request, &open.contribution, &mut OsRng);
            Ok::<_, Refusal>((material, evaluation, charge, opened))
        };
        let (material, evaluation, charge, opened) = self.admitted(&job, self.pool.run(step).await?)?;
        self.charged(&job, busy.about(), charge).await?;
        let (node1, m1) = opened.map_err(aborted)?;
        self.audit.note(self.about("sign", busy.about(), "opened", None));
        let session = busy.id();
        busy.park(Stage::Sign(SignStage::Opened { node1: Box::new(node1), material, signed }));
        Ok(NodeReply::SignOpened { session, m1, evaluation })
    }

    /// Notes where the secrets of an admitted job refused it.
    pub(super) fn admitted<T>(&self, job: &Job, opened: Result<T, Refusal>) -> Result<T, Refusal> {
        opened.map_err(|refusal| match refusal.code {
            ErrorCode::StaleShare => self.refuse(job, refusal),
            _ => refusal,
        })
    }

    pub(super) async fn sign_round2(self: &Arc<Self>, caller: Caller, session: SessionId, m2: Vec<u8>) -> Answer {
        let wanted = |stage: &Stage| match stage {
            // Bytes that do not even name the session cannot end it.
            Stage::Sign(SignStage::Opened { node1, .. }) if m2.len() == M2_LEN && node1.owns(&m2) => Ok(()),
            _ => Err(Refusal::new(ErrorCode::ProtocolAbort, "m2 does not belong to this session")),
        };
        let (busy, stage) = self.sessions.take(session, &caller.channel, wanted)?;
        let Stage::Sign(SignStage::Opened { node1, material, signed }) = stage else {
            return Err(Refusal::internal("a session changed while it was taken"));
        };
        let about = Arc::clone(busy.about());
        self.may_go_on(&about)?;
        let burned = burned_session(session, &about, &material);
        let (node, of) = (Arc::clone(self), Arc::clone(&about));
        let step = move || {
            let burn = node1.advance(&m2, &mut OsRng)?;
            // m3 is made while both are written, and leaves after them.
            let granted = node.is_granted(&of);
            Ok(granted.map(|()| node.burning(&of, node.store.burn(burned), vec![signed], || burn.release())))
        };
        let burning = match self.pool.run(step).await? {
            Ok(granted) => granted?,
            Err(abort) => return Err(self.failed(&busy, &material, abort).await?),
        };
        let (m3, sent) = self.burned(&busy, burning).await?.map_err(aborted)?;
        self.metrics.signed(&about, 1);
        busy.free_slot();
        busy.park(Stage::Sign(SignStage::Released(vec![sent])));
        Ok(NodeReply::SignRound3 { m3 })
    }

    /// Begins to burn what is about to be released, and to log what it signs; then makes it.
    pub(super) fn burning<T>(
        &self,
        about: &About,
        burned: Written<()>,
        signed: Vec<String>,
        make: impl FnOnce() -> T,
    ) -> Burning<T> {
        let logged = Box::pin(self.audit.begin(self.about_signing(about, signed)));
        Burning { burned, logged, made: make() }
    }

    /// What was made, when both are durable.
    pub(super) async fn burned<T>(&self, busy: &Busy<Stage>, burning: Burning<T>) -> Result<T, Refusal> {
        let (about, Burning { burned, logged, made }) = (busy.about(), burning);
        let (burned, logged) = tokio::join!(burned, logged);
        logged?;
        if let Err(error) = burned {
            let withdrawn = self.about("sign", about, "withdrawn", Some("the session was not burned"));
            self.audit.append_or_say(withdrawn).await;
            return Err(error.into());
        }
        // With the valid m2 the attempt was right.
        self.metrics.settled(about, GuessOutcome::Right);
        fault::step("burned", "sign", about.key_id);
        seen("signs", &busy.id());
        Ok(made)
    }

    /// What is made while both are written, when both are durable.
    pub(super) async fn burned_while<T>(
        &self,
        busy: &Busy<Stage>,
        burning: Burning<()>,
        making: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        let (burned, made) = tokio::join!(self.burned(busy, burning), making);
        burned.map(|()| made)
    }

    /// What a worker hears whose m2 failed a check; before that, the key is locked if the check locks it.
    pub(super) async fn failed(
        &self,
        busy: &Busy<Stage>,
        material: &Material,
        abort: Abort,
    ) -> Result<Refusal, Refusal> {
        if abort.is_ban() {
            self.lock(busy, material, abort.check()).await?;
        } else {
            self.audit.note(self.about("sign", busy.about(), "refused", Some(abort.check())));
        }
        Ok(aborted(abort))
    }

    pub(super) async fn frost_sign(&self, caller: Caller, open: SignOpen, commitments: [u8; 64]) -> Answer {
        let Admitted { job, busy } = match self.sign_entry(caller, &open, Curve::Ed25519).await? {
            Entry::Admitted(admitted) => *admitted,
            Entry::First(answer) => return Ok(*answer),
        };
        let input = input_of(&job)?;
        let signed = signed_text(&input);
        let SignInput::Ed25519 { message } = input else { return Err(ErrorCode::CurveMismatch.into()) };
        let (opening, charging) =
            (self.opening(&job, &open), self.charging(&job, open.transcript, open.blinded_password));
        let step = move || {
            let (material, evaluation) = opening()?;
            let share = &material.share;
            let (own, z1, sent) = frost::node_sign(share, &message, &commitments, &mut OsRng).map_err(aborted)?;
            Ok::<_, Refusal>((own, z1, sent, evaluation, charging()))
        };
        let (commitments, share, sent, evaluation, charge) = self.admitted(&job, self.pool.run(step).await?)?;
        self.charged(&job, busy.about(), charge).await?;
        self.is_granted(busy.about())?;
        // The nonces are gone already; the entry is durable before the share leaves.
        self.audit.append(self.about_signing(busy.about(), vec![signed])).await?;
        let session = busy.id();
        seen("signs", &session);
        self.metrics.signed(busy.about(), 1);
        busy.free_slot();
        busy.park(Stage::Sign(SignStage::FrostReleased(vec![sent])));
        Ok(NodeReply::FrostSigned { session, commitments: Fixed(commitments), share, evaluation })
    }

    pub(super) async fn sign_close(&self, caller: Caller, session: SessionId, outcome: SignOutcome) -> Answer {
        let wanted = |stage: &Stage| match stage {
            Stage::Sign(_) => Ok(()),
            _ => Err(Refusal::new(ErrorCode::ProtocolAbort, "not a signing session")),
        };
        let (busy, stage) = self.sessions.take(session, &caller.channel, wanted)?;
        let Stage::Sign(stage) = stage else { return Err(ErrorCode::Internal.into()) };
        let about = Arc::clone(busy.about());
        let frost = matches!(stage, SignStage::FrostReleased(_));
        let outcome = match outcome {
            SignOutcome::Signature(signature) => SignOutcome::Signatures(vec![signature]),
            other => other,
        };
        match outcome {
            SignOutcome::Signature(_) => return Err(ErrorCode::Internal.into()),
            SignOutcome::Signatures(signatures) => {
                let valid = self.verify(stage, signatures).await?;
                // For ECDSA the valid m2 gave the attempt back already.
                if valid && frost {
                    self.settle(&about, GuessOutcome::Right).await?;
                }
                if valid {
                    self.metrics.session_completed(&about);
                }
                let reason = if valid { None } else { Some("signature_invalid") };
                self.audit.note(self.about("close", &about, "closed", reason));
            }
            // No check of FROST locks, so a worker that says so is wrong and only reports the end.
            SignOutcome::Abort { check, ban: true } if !frost => {
                // The worker's own check failed. Its word is enough: it is authentic, inside a session of a signed job, and a
                // worker that lies about it could as well have locked the key by its messages.
                let key = self.store.key(about.key_id)?.ok_or(ErrorCode::UnknownKey)?;
                let (store, key_id, transcript) = (Arc::clone(&self.store), about.key_id, key.attempt.transcript);
                if key.state.is_end() {
                    return Err(key.usable().err().map_or_else(|| ErrorCode::Internal.into(), Refusal::from));
                }
                // The share that it was about was replaced, and its OT state erased.
                if about.share != Some(transcript) {
                    return Err(ErrorCode::StaleShare.into());
                }
                let material = self.pool.run(move || Self::material(store.as_ref(), key_id, transcript)).await??;
                self.lock(&busy, &material, &shown(&check)).await?;
            }
            SignOutcome::Abort { check, .. } => {
                if check.eq_ignore_ascii_case(ErrorCode::WrongPassword.as_str()) {
                    self.settle(&about, GuessOutcome::Wrong).await?;
                }
                self.audit.note(self.about("close", &about, "closed", Some(&shown(&check))));
            }
        }
        drop(busy);
        Ok(NodeReply::Closed)
    }

    /// Is there the session's own signature of each item, in order?
    async fn verify(&self, stage: SignStage, signatures: Vec<Fixed<64>>) -> Result<bool, Refusal> {
        let verified = match stage {
            SignStage::Opened { .. } | SignStage::Batch(_) => return Ok(false),
            SignStage::Released(sent) if sent.len() == signatures.len() => {
                let items = sent.into_iter().zip(signatures).collect();
                let accepts = |(sent, Fixed(bytes)): (Sent, Fixed<64>)| sent.accepts(&bytes);
                self.pool.run_each(items, accepts).await?
            }
            SignStage::FrostReleased(sent) if sent.len() == signatures.len() => {
                let items = sent.into_iter().zip(signatures).collect();
                let accepts = |(sent, Fixed(bytes)): (frost::Sent, Fixed<64>)| sent.accepts(&bytes);
                self.pool.run_each(items, accepts).await?
            }
            SignStage::Released(_) | SignStage::FrostReleased(_) => return Ok(false),
        };
        Ok(verified.into_iter().all(|valid| valid))
    }

    /// An audit entry about signatures whose last message is about to leave.
    pub(super) fn about_signing(&self, about: &About, signed: Vec<String>) -> Event {
        Event { signed, ..self.about("sign", about, "released", None) }
    }

    /// Locks a key for good: durably, OT state erased, other sessions ended, logged; only then may anybody be answered. The
    /// caller holds the busy session, and with it the key's slot, until then.
    async fn lock(&self, busy: &Busy<Stage>, material: &Material, check: &str) -> Result<(), Refusal> {
        let about = busy.about();
        tracing::error!(key = %about.key_id, check, "a check failed: the key is locked");
        let transcript = material.share.transcript();
        self.sessions.block(about.key_id, transcript);
        if let Err(error) = self.store.lock(about.key_id, transcript, material.to_bytes_without_ot()).await {
            // The key is blocked in memory; the disk must learn of it before a restart forgets.
            let (store, key, kept) =
                (Arc::clone(&self.store), (about.key_id, transcript), material.to_bytes_without_ot());
            let unstored = Arc::clone(&self.unstored_locks);
            unstored.fetch_add(1, Ordering::AcqRel);
            tokio::spawn(async move {
                lock_until_stored(store, key, kept).await;
                unstored.fetch_sub(1, Ordering::AcqRel);
            });
            return Err(error.into());
        }
        self.audit.append(self.about("sign", about, "locked", Some(check))).await?;
        Ok(())
    }
}

/// Repeats a lock that the store failed to write, until it is written or the share is gone.
async fn lock_until_stored(store: Arc<dyn Store>, (key_id, share): (KeyId, [u8; 32]), kept: Zeroizing<Vec<u8>>) {
    while let Err(error @ (StoreError::Failed(_) | StoreError::Refused(ErrorCode::Overloaded))) =
        store.lock(key_id, share, kept.clone()).await
    {
        tracing::error!(key = %key_id, %error, "the lock of a key is not durable yet: do not restart, mend the disk");
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

pub(super) fn evaluate(material: &Material, blinded: &[u8; 32]) -> Result<[u8; 32], Refusal> {
    let keys = material.password.as_ref().ok_or_else(|| Refusal::internal("the key has no OPRF key"))?;
    let refused = || aborted(Abort::peer(Party::Client, "oprf_element"));
    keys.oprf.evaluate(blinded).ok_or_else(refused)
}

/// A worker's text, cut and cleaned for the log.
pub(super) fn shown(check: &str) -> String {
    check.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(64).collect()
}

/// A session that is about to be released, for the store.
pub(super) fn burned_session(session: SessionId, about: &About, material: &Material) -> BurnedSession {
    BurnedSession {
        session,
        key_id: about.key_id,
        transcript: material.share.transcript(),
        job_digest: about.job_digest,
        time: now_ms(),
    }
}

/// The one input of a job that is no batch.
fn input_of(job: &Job) -> Result<SignInput, Refusal> {
    match &job.payload {
        Payload::Sign { input, .. } => Ok(input.clone()),
        _ => Err(Refusal::new(ErrorCode::MalformedJob, "the job is a batch")),
    }
}

/// What is signed, for the audit log: the digest and its path, or the message's SHA-256.
pub(super) fn signed_text(input: &SignInput) -> String {
    match input {
        SignInput::Secp256k1 { digest, path: Some(path) } => format!("{} {path}", HEXLOWER.encode(digest)),
        SignInput::Secp256k1 { digest, path: None } => HEXLOWER.encode(digest),
        SignInput::Ed25519 { message } => HEXLOWER.encode(&Sha256::digest(message)),
    }
}
