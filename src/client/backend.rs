//! A backend: publishes jobs, awaits their results, and returns only what it has verified.

use super::config::ClientConfig;
use super::job::{BuildError, JobBuilder, SignedRequest};
use super::results::Results;
use super::verify::{self, AttestedKey, NodeIdentities, Untrusted};
use crate::clock::now_ms;
use crate::jobs::once::Unavailable;
use crate::seal::{self, Binding, Secrets};
use crate::telemetry::trace::TraceContext;
use crate::vault::{LockedShare, Password};
use crate::wire::{
    Batch, Failure, InitiatorId, JobId, JobResult, KdfParams, KeyId, KeyState, Lane, Method, OrderedState, Outcome,
    SealKey, SignInput, SignatureResult, StateResult, subject,
};
use async_nats::HeaderMap;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode as JetStreamCode, message::PublishMessage};
use nkeys::{KeyPair, XKey};
use std::time::Duration;

/// After a job's expiry its result is awaited this much longer: clocks differ.
const GRACE: Duration = Duration::from_secs(5);
/// Before a publication is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a question may take at most.
const QUESTION: Duration = Duration::from_secs(10);
/// JetStream's code for a subject or stream that is full.
const FULL: JetStreamCode = JetStreamCode(10_077);

/// Why there is nothing to return.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The job ended in an error.
    #[error("{}: {} {}{}", .0.code, .0.message, .0.action, .0.new_key_id.map(|id| format!(" It is {id}.")).unwrap_or_default())]
    Job(Failure),
    /// A result came that must not be believed.
    #[error("refused a result: {0}")]
    Untrusted(#[from] Untrusted),
    /// The queue is full, for this key or altogether.
    #[error("the queue is full for this key: wait for running jobs, or send fewer at a time")]
    Busy,
    /// NATS, the streams or the workers cannot be reached.
    #[error("not available: {0}")]
    Unavailable(String),
    /// The job was published and the queue's acknowledgement did not come: it may be in the queue.
    #[error("the queue did not acknowledge the job, which may be in it: publish the same bytes again. {0}")]
    Unacknowledged(String),
    /// No result by the job's expiry.
    #[error("no result by the job's expiry: are workers running?")]
    Timeout,
    /// No result by the job's expiry, and a copy of the job was refused meanwhile: somebody published its body without the
    /// signature or on another subject. This says nothing about the job itself.
    #[error(
        "no result by the job's expiry; a copy of this job that somebody altered was refused ({}: {}), which says nothing about \
         the job itself. Check who may publish on mpc.job.>, and try again with a new job",
        .0.code, .0.message
    )]
    Refused(Failure),
    /// The job could not be built.
    #[error("cannot build the job: {0}")]
    Build(#[from] BuildError),
}

impl From<Unavailable> for ClientError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// What is needed to sign with a key, besides the password.
#[derive(Debug, Clone)]
pub struct SigningMaterial {
    /// The key.
    pub key_id: KeyId,
    /// Its attested public key.
    pub public_key: Vec<u8>,
    /// Its chain code.
    pub chain_code: [u8; 32],
    /// As generation returned it.
    pub encrypted_share: Vec<u8>,
    /// As generation returned it.
    pub secret_store: Vec<u8>,
}

fn signing_secrets(key: &SigningMaterial, password: Password) -> Secrets {
    Secrets {
        password: Some(password),
        encrypted_share: Some(key.encrypted_share.clone()),
        secret_store: Some(key.secret_store.clone()),
        ..Secrets::default()
    }
}

/// The connection of one initiator.
pub struct Backend {
    nats: async_nats::Client,
    jetstream: Context,
    pub(super) jobs: JobBuilder,
    /// Other names under which its keys may be attested.
    former: Vec<InitiatorId>,
    pub(super) nodes: NodeIdentities,
    pub(super) reply: XKey,
    pub(super) lifetime: Duration,
    results: Results,
}

impl Backend {
    /// Connects; returns when the server has answered.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] if it does not within 10 s, or the configuration cannot be used.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let unavailable = |error: String| ClientError::Unavailable(error);
        let nats = config.nats.connect("trefoil-client").await.map_err(|error| unavailable(format!("{error:#}")))?;
        let answered = tokio::time::timeout(Duration::from_secs(10), nats.flush()).await;
        match answered {
            Ok(Ok(())) if nats.connection_state() == async_nats::connection::State::Connected => {}
            _ => return Err(unavailable(format!("no NATS server at {}", config.nats.servers.join(", ")))),
        }
        let mut jobs = JobBuilder::new(config.initiator, config.worker_key)
            .ok_or_else(|| unavailable("the initiator's key is not a user NKEY".to_owned()))?;
        jobs.set_lane(config.lane);
        jobs.set_trace(TraceContext::from_env());
        let jetstream = config.nats.jetstream(nats.clone());
        let results = Results::listen(jetstream.clone(), jobs.initiator().clone());
        let reply = config.reply.unwrap_or_default();
        Ok(Self {
            nats,
            jetstream,
            jobs,
            former: config.former_initiators,
            nodes: config.nodes,
            reply,
            lifetime: config.lifetime,
            results,
        })
    }

    /// The lane of the jobs from now on; at first the one of the settings.
    pub const fn set_lane(&mut self, lane: Lane) {
        self.jobs.set_lane(lane);
    }

    /// What the jobs are part of from now on; at first what the environment's `TRACEPARENT` says.
    pub const fn set_trace(&mut self, parent: Option<TraceContext>) {
        self.jobs.set_trace(parent);
    }

    /// How long a job lives, by the settings.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// Builds this initiator's jobs; for callers that publish themselves.
    #[must_use]
    pub const fn jobs(&self) -> &JobBuilder {
        &self.jobs
    }

    /// Signs, and verifies the signature under the attested public key (or its child along the input's path).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sign(
        &self,
        key: &SigningMaterial,
        method: Method,
        input: &SignInput,
        password: Password,
    ) -> Result<SignatureResult, ClientError> {
        let secrets = signing_secrets(key, password);
        let request = self.jobs.sign(key.key_id, method, input, &secrets, &self.reply_key()?, self.lifetime)?;
        match self.run(&request).await?.outcome {
            Outcome::Ok { signature: Some(signature), .. } => {
                verify::signature(&key.public_key, &key.chain_code, input, &signature)?;
                Ok(signature)
            }
            Outcome::Ok { .. } => Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => Err(ClientError::Job(error)),
        }
    }

    /// Signs a batch: one job, one password attempt, all signatures or none. Each is verified as [`Backend::sign`] verifies one; they are
    /// in the order of the inputs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn sign_batch(
        &self,
        key: &SigningMaterial,
        method: Method,
        batch: &Batch,
        password: Password,
    ) -> Result<Vec<SignatureResult>, ClientError> {
        let (secrets, reply) = (signing_secrets(key, password), self.reply_key()?);
        let request = self.jobs.sign_batch(key.key_id, method, batch, &secrets, &reply, self.lifetime)?;
        match self.run(&request).await?.outcome {
            Outcome::Ok { signatures: Some(signatures), .. } => {
                verify::signatures(&key.public_key, &key.chain_code, batch, &signatures)?;
                Ok(signatures)
            }
            Outcome::Ok { .. } => Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => Err(ClientError::Job(error)),
        }
    }

    /// Asks the workers' service whether the password opens the key's secretStore, and unless `password_only` its share too. Costs
    /// a password attempt, which a right password gives back. Yes is the worker's word; a signature is the proof.
    ///
    /// # Errors
    /// [`ClientError::Job`] with `WRONG_PASSWORD`, `CORRUPT_SECRET_STORE`, `CORRUPT_SHARE`, `SHARE_MISMATCH`, `STALE_SHARE`,
    /// `TOO_MANY_ATTEMPTS` (which says when to come back), or another code; any other [`ClientError`].
    pub async fn validate(
        &self,
        key: &SigningMaterial,
        password: Password,
        password_only: bool,
    ) -> Result<(), ClientError> {
        let secrets = Secrets {
            password: Some(password),
            encrypted_share: (!password_only).then(|| key.encrypted_share.clone()),
            secret_store: Some(key.secret_store.clone()),
            ..Secrets::default()
        };
        let lifetime = self.lifetime.min(QUESTION);
        let request = self.jobs.validate(key.key_id, !password_only, &secrets, &self.reply_key()?, lifetime)?;
        match self.ask(&request, lifetime + Duration::from_secs(1)).await?.outcome {
            Outcome::DONE => Ok(()),
            Outcome::Ok { .. } => Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => Err(ClientError::Job(error)),
        }
    }

    /// Puts the key's secretStore under another password, and returns the new one. The old one still opens with the old password:
    /// only fresh shares make it worthless.
    ///
    /// # Errors
    /// [`ClientError`], with the codes of [`Backend::validate`].
    pub async fn change_password(
        &self,
        key: &SigningMaterial,
        old: Password,
        new: Password,
        kdf: KdfParams,
    ) -> Result<Vec<u8>, ClientError> {
        let secrets = Secrets {
            password: Some(old),
            new_password: Some(new),
            secret_store: Some(key.secret_store.clone()),
            ..Secrets::default()
        };
        let request = self.jobs.change_password(key.key_id, kdf, &secrets, &self.reply_key()?, self.lifetime)?;
        let sealed = match self.run(&request).await?.outcome {
            Outcome::Ok {
                secrets: Some(sealed), key: None, signature: None, signatures: None, state: None, ..
            } => sealed,
            Outcome::Ok { .. } => return Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => return Err(ClientError::Job(error)),
        };
        let initiator = self.jobs.initiator().clone();
        let binding = Binding { job_id: request.job_id, key_id: key.key_id, initiator };
        let broken = |error: String| Untrusted::SealBroken(error);
        let secrets = seal::open(&self.reply, &binding, &sealed).map_err(|error| broken(error.to_string()))?;
        let store = secrets.secret_store.ok_or_else(|| broken("secretStore is missing".to_owned()))?;
        // The share that the caller keeps must fit the store that it gets.
        LockedShare::parse(key.key_id, &key.encrypted_share, &store).map_err(|error| broken(error.to_string()))?;
        Ok(store)
    }

    /// Brings a key into another state, at both nodes, and verifies that both say so. To destroy, `authoriser` must be one that
    /// both nodes list.
    ///
    /// # Errors
    /// [`ClientError`]; if only one node could be asked, what it did stands, and the same may be ordered again.
    pub async fn order(
        &self,
        key_id: KeyId,
        state: OrderedState,
        authoriser: Option<&KeyPair>,
    ) -> Result<StateResult, ClientError> {
        let mut request = self.jobs.order(key_id, state, &self.reply_key()?, self.lifetime)?;
        if let Some(authoriser) = authoriser {
            request.authorise(authoriser)?;
        }
        self.ordered(&request, state).await
    }

    /// The same for a request that was built before, and perhaps authorised elsewhere.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn ordered(&self, request: &SignedRequest, state: OrderedState) -> Result<StateResult, ClientError> {
        match self.run(request).await?.outcome {
            Outcome::Ok { state: Some(result), .. } => {
                let initiator = self.jobs.initiator();
                verify::state(&self.nodes, initiator, request.digest, request.key_id, state, &result)?;
                Ok(result)
            }
            Outcome::Ok { .. } => Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => Err(ClientError::Job(error)),
        }
    }

    /// Asks the workers' service what both nodes say about a key, and verifies it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn public_key(&self, key_id: KeyId) -> Result<AttestedKey, ClientError> {
        let lifetime = self.lifetime.min(QUESTION);
        let request = self.jobs.public_key(key_id, &self.reply_key()?, lifetime)?;
        let result = self.ask(&request, lifetime + Duration::from_secs(1)).await?;
        match result.outcome {
            // The nodes answer for committed keys only, so less than both commits is not their answer.
            Outcome::Ok { key: Some(key), .. } if key.state == KeyState::Active => {
                let attested = |owner| verify::attested_key(&self.nodes, owner, key_id, request.digest, &key);
                let own = attested(self.jobs.initiator());
                let former = || self.former.iter().find_map(|owner| attested(owner).ok());
                Ok(own.or_else(|untrusted| former().ok_or(untrusted))?)
            }
            Outcome::Ok { .. } => Err(Untrusted::WrongShape.into()),
            Outcome::Error { error } => Err(ClientError::Job(error)),
        }
    }

    /// Publishes a job and waits for its result: also where the queue's acknowledgement is lost, while the same bytes are published
    /// again. Safe to repeat with the same request. A request that every worker must refuse has its refusal as its result.
    ///
    /// # Errors
    /// [`ClientError`]; a job's own failure is in the result.
    pub async fn run(&self, request: &SignedRequest) -> Result<JobResult, ClientError> {
        let left = Duration::from_millis(request.expires_at.saturating_sub(now_ms())) + GRACE;
        let mut result = std::pin::pin!(self.results.expect(request).wait(left));
        let mut publishing = true;
        let mut lost = None;
        loop {
            tokio::select! {
                result = &mut result => return match (result, lost) {
                    (Err(ClientError::Timeout), Some(unacknowledged)) => Err(unacknowledged),
                    (result, _) => result,
                },
                sent = self.publish(request), if publishing => match sent {
                    Err(error @ ClientError::Unacknowledged(_)) => lost = Some(error),
                    Err(error) if lost.is_none() => return Err(error),
                    // After a lost acknowledgement no refusal tells that nothing is in the queue.
                    Err(_) => publishing = false,
                    Ok(()) => (publishing, lost) = (false, None),
                },
            }
        }
    }

    /// Puts a job into the queue, trying again while the answer does not come.
    ///
    /// # Errors
    /// [`ClientError::Unacknowledged`] if an answer was lost, and none came after; [`ClientError::Busy`] or
    /// [`ClientError::Unavailable`] if the job is not in the queue.
    pub async fn publish(&self, request: &SignedRequest) -> Result<(), ClientError> {
        let mut lost = None;
        let mut last = None;
        // A request on no job's subject is in no stream.
        let lane = subject::split_job(&request.subject).map_or_else(Lane::default, |(lane, ..)| lane);
        for _ in 0..3 {
            // The message id only spares the workers a repeated job; what makes repeating safe is the one result.
            let message = PublishMessage::build()
                .headers(request.headers.clone())
                .message_id(data_encoding::HEXLOWER.encode(&request.digest))
                .expected_stream(subject::stream_of(lane))
                .payload(request.body.clone().into());
            let sent = match self.jetstream.send_publish(request.subject.clone(), message).await {
                Ok(acknowledged) => acknowledged.await,
                Err(error) => Err(error),
            };
            let Err(error) = sent else { return Ok(()) };
            let said = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<jetstream::Error>());
            match (error.kind(), said) {
                (_, Some(said)) if said.error_code() == FULL => {
                    last = Some(ClientError::Busy);
                    break;
                }
                (PublishErrorKind::StreamNotFound | PublishErrorKind::MaxPayloadExceeded, _) | (_, Some(_)) => {
                    last = Some(ClientError::Unavailable(error.to_string()));
                }
                _ => lost = Some(ClientError::Unacknowledged(error.to_string())),
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(lost.or(last).unwrap_or(ClientError::Busy))
    }

    /// Asks the workers' service; nothing is stored.
    pub(super) async fn ask(&self, request: &SignedRequest, patience: Duration) -> Result<JobResult, ClientError> {
        let headers: HeaderMap = request.headers.clone();
        let message =
            async_nats::Request::new().headers(headers).payload(request.body.clone().into()).timeout(Some(patience));
        let subject = subject::api(request.op.as_str());
        let answer = self.nats.send_request(subject, message).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => ClientError::Unavailable("no worker is running".to_owned()),
            RequestErrorKind::TimedOut => ClientError::Timeout,
            _ => ClientError::Unavailable(error.to_string()),
        })?;
        let result: JobResult = serde_json::from_slice(&answer.payload).map_err(|_| {
            let said = answer.headers.as_ref().and_then(|h| h.get(async_nats::service::NATS_SERVICE_ERROR));
            ClientError::Unavailable(said.map_or("an unreadable answer".to_owned(), |error| error.as_str().to_owned()))
        })?;
        if result.job_digest.0 == request.digest { Ok(result) } else { Err(Untrusted::OtherKey.into()) }
    }

    /// The public half of the key that opens results.
    ///
    /// # Errors
    /// None that a valid xkey can cause.
    pub fn reply_key(&self) -> Result<SealKey, ClientError> {
        self.reply.public_key().parse().map_err(|_| ClientError::Build(BuildError::Key))
    }

    /// Awaits the result of a job that was published before.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], [`ClientError::Refused`] or [`ClientError::Unavailable`].
    pub async fn result_of(
        &self,
        job_id: &JobId,
        digest: [u8; 32],
        patience: Duration,
    ) -> Result<JobResult, ClientError> {
        self.results.expect_of(job_id, digest).wait(patience).await
    }
}
