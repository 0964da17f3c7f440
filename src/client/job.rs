//! Building jobs: seal the secrets, fill the envelope, sign the exact body bytes.

use crate::auth::{self, sign_job};
use crate::clock::now_ms;
use crate::seal::{Binding, SealError, Secrets, seal};
use crate::telemetry::trace::TraceContext;
use crate::wire::{
    Address, Batch, ChangePasswordBody, Curve, Envelope, GenerateBody, InitiatorId, Job, JobError, JobHeaders, JobId,
    KdfParams, KeyId, Lane, MAX_BODY_BYTES, Method, Op, OrderBody, OrderedState, PublicKeyBody, ReshareBody, SealKey,
    Sealed, SignBody, SignInput, VERSION, ValidateBody, subject,
};
use async_nats::HeaderMap;
use nkeys::KeyPair;
use rand_core::{OsRng, RngCore};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// A job, signed and ready to be published; publishing it again is safe.
#[derive(Debug, Clone)]
pub struct SignedRequest {
    /// `mpc.job.<op>.<keyId>`, or `mpc.bulk.<op>.<keyId>`.
    pub subject: String,
    /// Version, signature and trace.
    pub headers: HeaderMap,
    /// The signed bytes.
    pub body: Vec<u8>,
    /// Their SHA-256.
    pub digest: [u8; 32],
    /// The operation.
    pub op: Op,
    /// The job.
    pub job_id: JobId,
    /// Its key.
    pub key_id: KeyId,
    /// When it ends without a result, unix milliseconds.
    pub expires_at: u64,
}

impl SignedRequest {
    /// Adds a recovery authoriser's consent to exactly this body.
    ///
    /// # Errors
    /// [`BuildError::Key`] unless the key is a user NKEY with its seed.
    pub fn authorise(&mut self, authoriser: &KeyPair) -> Result<(), BuildError> {
        let consent = auth::authorise(authoriser, &self.body).ok_or(BuildError::Key)?;
        self.headers.insert(JobHeaders::AUTHORISER, consent.authoriser.as_str());
        let signature = data_encoding::BASE64.encode(&consent.signature.0);
        self.headers.insert(JobHeaders::AUTHORISER_SIGNATURE, signature);
        Ok(())
    }

    /// Whether every worker refuses these very bytes, headers and subject, so that the job will have a refusal and no result.
    /// Never true for what [`JobBuilder`] makes.
    pub(super) fn cannot_be_accepted(&self) -> bool {
        let parsed = Job::parse(&self.subject, JobHeaders::from_nats(Some(&self.headers)), &self.body);
        matches!(parsed, Err(JobError { address: Some(Address { refused: true, .. }), .. }))
    }
}

/// Why a job could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The worker key or the secrets are not usable.
    #[error("the secrets cannot be sealed: {0}")]
    Seal(#[from] SealError),
    /// The messages of a batch are too long together.
    #[error("the job would have more than {MAX_BODY_BYTES} bytes")]
    TooLarge,
    /// The signing key has no seed.
    #[error("the initiator's key cannot sign")]
    Key,
}

/// Builds the jobs of one initiator.
pub struct JobBuilder {
    key: KeyPair,
    initiator: InitiatorId,
    worker_key: SealKey,
    lane: Lane,
    /// What the jobs are part of.
    parent: Option<TraceContext>,
}

impl JobBuilder {
    /// For the initiator with this NKEY, sealing to this worker key. `None` unless the key is a user's.
    #[must_use]
    pub fn new(key: KeyPair, worker_key: SealKey) -> Option<Self> {
        let initiator = key.public_key().parse().ok()?;
        Some(Self { key, initiator, worker_key, lane: Lane::default(), parent: None })
    }

    /// The lane of the jobs that are built from now on; `interactive` unless it is set.
    pub const fn set_lane(&mut self, lane: Lane) {
        self.lane = lane;
    }

    /// What the jobs that are built from now on are part of: each is a span of this trace, or without one a trace of its own.
    pub const fn set_trace(&mut self, parent: Option<TraceContext>) {
        self.parent = parent;
    }

    /// The initiator's public name.
    #[must_use]
    pub const fn initiator(&self) -> &InitiatorId {
        &self.initiator
    }

    /// A job that generates a key; its id follows from initiator and job id. `secrets` holds the password.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn generate(
        &self,
        job_id: JobId,
        curve: Curve,
        kdf: KdfParams,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        self.generate_labelled(job_id, None, (curve, kdf), secrets, reply, lifetime)
    }

    /// The same with a label for the key, at most 128 bytes without control characters.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn generate_labelled(
        &self,
        job_id: JobId,
        label: Option<String>,
        (curve, kdf): (Curve, KdfParams),
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let key_id = KeyId::derive(&self.initiator, &job_id);
        let sealed = seal(&self.worker_key, &self.binding(&job_id, key_id), secrets)?;
        let payload = GenerateBody { label, ..GenerateBody::new(curve, kdf, sealed) };
        self.build(Op::Generate, job_id, key_id, payload, reply, lifetime)
    }

    /// A job that gives a key new shares under a new id. `secrets` holds the new password. [`SignedRequest::authorise`] must
    /// follow.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn recover(
        &self,
        key_id: KeyId,
        curve: Curve,
        kdf: KdfParams,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let (job_id, sealed) = self.sealed(key_id, secrets)?;
        self.build(Op::Recover, job_id, key_id, ReshareBody::new(curve, kdf, sealed), reply, lifetime)
    }

    /// A job that gives a key new shares under its own id. `secrets` holds password, encryptedShare, secretStore, and the new
    /// password if there is to be another.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn refresh(
        &self,
        key_id: KeyId,
        curve: Curve,
        kdf: KdfParams,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let (job_id, sealed) = self.sealed(key_id, secrets)?;
        self.build(Op::Refresh, job_id, key_id, ReshareBody::new(curve, kdf, sealed), reply, lifetime)
    }

    /// A job that signs. `secrets` holds password, encryptedShare and secretStore.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn sign(
        &self,
        key_id: KeyId,
        method: Method,
        input: &SignInput,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let (job_id, sealed) = self.sealed(key_id, secrets)?;
        self.build(Op::Sign, job_id, key_id, SignBody::new(method, input, sealed), reply, lifetime)
    }

    /// A job that signs several inputs, in this order. `secrets` as for one.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn sign_batch(
        &self,
        key_id: KeyId,
        method: Method,
        batch: &Batch,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let (job_id, sealed) = self.sealed(key_id, secrets)?;
        let request = self.build(Op::Sign, job_id, key_id, SignBody::batch(method, batch, sealed), reply, lifetime)?;
        if request.body.len() > MAX_BODY_BYTES { Err(BuildError::TooLarge) } else { Ok(request) }
    }

    /// A job that asks for the public key.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn public_key(&self, key_id: KeyId, reply: &SealKey, lifetime: Duration) -> Result<SignedRequest, BuildError> {
        self.build(Op::PublicKey, random_job_id(), key_id, PublicKeyBody {}, reply, lifetime)
    }

    /// A job that asks whether the password opens the secretStore, or with `share` the encryptedShare. `secrets` holds them.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn validate(
        &self,
        key_id: KeyId,
        share: bool,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let op = if share { Op::ValidateShare } else { Op::ValidatePassword };
        let (job_id, secrets) = self.sealed(key_id, secrets)?;
        self.build(op, job_id, key_id, ValidateBody { secrets }, reply, lifetime)
    }

    /// A job that puts the secretStore under another password. `secrets` holds password, secretStore and new password.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn change_password(
        &self,
        key_id: KeyId,
        kdf: KdfParams,
        secrets: &Secrets,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let (job_id, secrets) = self.sealed(key_id, secrets)?;
        let payload = ChangePasswordBody { kdf: kdf.to_body(), secrets };
        self.build(Op::ChangePassword, job_id, key_id, payload, reply, lifetime)
    }

    /// A job that brings a key into another state. To destroy it, [`SignedRequest::authorise`] must follow.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn order(
        &self,
        key_id: KeyId,
        state: OrderedState,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let op = match state {
            OrderedState::Frozen => Op::Freeze,
            OrderedState::Active => Op::Unfreeze,
            OrderedState::Destroyed => Op::Destroy,
        };
        self.build(op, random_job_id(), key_id, OrderBody {}, reply, lifetime)
    }

    /// Signs a body and puts headers and subject to it.
    ///
    /// # Errors
    /// [`BuildError::Key`].
    pub fn sign_body(
        &self,
        op: Op,
        job_id: JobId,
        key_id: KeyId,
        expires_at: u64,
        body: Vec<u8>,
    ) -> Result<SignedRequest, BuildError> {
        let signed = sign_job(&self.key, body).map_err(|_| BuildError::Key)?;
        let mut headers = HeaderMap::new();
        headers.insert(JobHeaders::VERSION, "1");
        headers.insert(JobHeaders::SIGNATURE, data_encoding::BASE64.encode(&signed.signature.0));
        // Beside the job, not in it: nobody has to believe it. A job without one is as good.
        if let Ok(trace) = self.parent.map_or_else(TraceContext::random, TraceContext::child) {
            trace.write(&mut headers);
        }
        let digest = Sha256::digest(&signed.body).into();
        let subject = subject::job(self.lane, op, &key_id);
        Ok(SignedRequest { subject, headers, body: signed.body, digest, op, job_id, key_id, expires_at })
    }

    /// A new job's id, and its secrets sealed for it.
    fn sealed(&self, key_id: KeyId, secrets: &Secrets) -> Result<(JobId, Sealed), BuildError> {
        let job_id = random_job_id();
        let sealed = seal(&self.worker_key, &self.binding(&job_id, key_id), secrets)?;
        Ok((job_id, sealed))
    }

    fn binding(&self, job_id: &JobId, key_id: KeyId) -> Binding {
        Binding { job_id: job_id.clone(), key_id, initiator: self.initiator.clone() }
    }

    pub(super) fn build<P: Serialize>(
        &self,
        op: Op,
        job_id: JobId,
        key_id: KeyId,
        payload: P,
        reply: &SealKey,
        lifetime: Duration,
    ) -> Result<SignedRequest, BuildError> {
        let issued_at = now_ms();
        let expires_at = issued_at.saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
        let envelope = Envelope {
            version: VERSION,
            op: op.to_string(),
            job_id: job_id.clone(),
            // What is left out means the same to workers that do not know lanes.
            lane: (self.lane != Lane::default()).then(|| self.lane.to_string()),
            key_id,
            initiator: self.initiator.clone(),
            issued_at,
            expires_at,
            reply_key: reply.clone(),
            payload,
        };
        let body = envelope.to_bytes().map_err(|_| BuildError::Seal(SealError::Broken))?;
        self.sign_body(op, job_id, key_id, expires_at, body)
    }
}

/// A job id of 128 random bits.
#[must_use]
pub fn random_job_id() -> JobId {
    let mut bytes = [0; 16];
    OsRng.fill_bytes(&mut bytes);
    JobId::random(bytes)
}
