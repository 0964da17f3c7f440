//! Jobs: what a backend signs and publishes. Reading one checks, in this order: size, headers, version, initiator,
//! signature, then every field; so a [`Job`] is always authentic and well-formed, and an error says where its result
//! may be published.

use crate::auth;
use crate::wire::manage::{Manage, WhichJobBody, read_keys, read_register};
use crate::wire::payload::{
    Envelope, OrderBody, Payload, PublicKeyBody, Sealed, ValidateBody, read_change_password, read_generate,
    read_reshare,
};
use crate::wire::sign::read_sign;
use crate::wire::strict::{self, Fault, Json};
use crate::wire::{Curve, ErrorCode, Fixed, InitiatorId, JobId, KeyId, Lane, Op, OrderedState, SealKey, subject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The only version of the wire format.
pub const VERSION: u32 = 1;
/// Longest job body in bytes.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// A job as it travels to the nodes: the exact body bytes and the initiator's signature over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedJob {
    /// The JSON body.
    #[serde(with = "super::node::blob")]
    pub body: Vec<u8>,
    /// Ed25519, 64 bytes.
    pub signature: Fixed<64>,
    /// A recovery authoriser's consent, where the operation needs one.
    pub authorisation: Option<Authorisation>,
}

/// A recovery authoriser's signature over a job: Ed25519 over `0xFF ‖ "trefoil-authorise-v1" ‖ 0x00 ‖ SHA-256(body)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorisation {
    /// Whose it says it is: a public user NKEY.
    pub authoriser: InitiatorId,
    /// 64 bytes.
    pub signature: Fixed<64>,
}

/// The headers of a published job.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobHeaders<'a> {
    /// `Trefoil-Version`.
    pub version: Option<&'a str>,
    /// `Trefoil-Signature`.
    pub signature: Option<&'a str>,
    /// `Trefoil-Authoriser`.
    pub authoriser: Option<&'a str>,
    /// `Trefoil-Authoriser-Signature`.
    pub authoriser_signature: Option<&'a str>,
}

impl<'a> JobHeaders<'a> {
    /// Name of the version header.
    pub const VERSION: &'static str = "Trefoil-Version";
    /// Name of the signature header.
    pub const SIGNATURE: &'static str = "Trefoil-Signature";

    /// Name of the header that names the authoriser.
    pub const AUTHORISER: &'static str = "Trefoil-Authoriser";
    /// Name of the header with the authoriser's signature.
    pub const AUTHORISER_SIGNATURE: &'static str = "Trefoil-Authoriser-Signature";

    /// Reads the headers.
    #[must_use]
    pub fn from_nats(headers: Option<&'a async_nats::HeaderMap>) -> Self {
        let get = |name: &str| headers.and_then(|h| h.get(name)).map(async_nats::HeaderValue::as_str);
        Self {
            version: get(Self::VERSION),
            signature: get(Self::SIGNATURE),
            authoriser: get(Self::AUTHORISER),
            authoriser_signature: get(Self::AUTHORISER_SIGNATURE),
        }
    }
}

/// An authentic, well-formed job. Time, permissions and the job id ledger are not checked here.
#[derive(Debug, Clone)]
pub struct Job {
    /// The job's name.
    pub job_id: JobId,
    /// How urgent it is.
    pub lane: Lane,
    /// The key.
    pub key_id: KeyId,
    /// Who signed it.
    pub initiator: InitiatorId,
    /// Unix milliseconds.
    pub issued_at: u64,
    /// Unix milliseconds.
    pub expires_at: u64,
    /// Secrets in the result are sealed to this key.
    pub reply_key: SealKey,
    /// What is asked for.
    pub payload: Payload,
    /// SHA-256 of the body, 32 bytes.
    pub digest: [u8; 32],
    /// The bytes that were signed.
    pub signed: SignedJob,
}

/// Where the result of a refused job may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The initiator that the body names.
    pub initiator: InitiatorId,
    /// The job id that the body names.
    pub job_id: JobId,
    /// Whether the initiator did not send this: then it must not occupy the job's one result.
    pub refused: bool,
}

impl Address {
    /// The subject to publish the result on.
    #[must_use]
    pub fn subject(&self) -> String {
        if self.refused {
            subject::refused(&self.initiator, &self.job_id)
        } else {
            subject::result(&self.initiator, &self.job_id)
        }
    }
}

/// A job that was refused before anything was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct JobError {
    /// Why.
    pub code: ErrorCode,
    /// What exactly, for the sender; repeats nothing that was sent except cut and cleaned field names.
    pub message: String,
    /// Where the result may go, if the body names an initiator and a job id.
    pub address: Option<Address>,
}

/// A refusal on its way to becoming a [`JobError`].
pub(super) type Refusal = (ErrorCode, String);

pub(super) fn refuse<T>(code: ErrorCode, message: &str) -> Result<T, Refusal> {
    Err((code, message.to_owned()))
}

/// Lets `?` turn a [`Fault`] into a refusal.
struct JobErrorParts(Refusal);

impl From<Fault> for JobErrorParts {
    fn from(fault: Fault) -> Self {
        let code = if fault.unknown_field { ErrorCode::UnknownField } else { ErrorCode::MalformedJob };
        Self((code, fault.to_string()))
    }
}

impl From<Refusal> for JobErrorParts {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

/// The initiator's signature, and an authoriser's consent where there is one.
type Signatures = ([u8; 64], Option<Authorisation>);

impl Job {
    /// Reads a job as it was published on this subject, which names its lane, operation and key.
    ///
    /// # Errors
    /// A [`JobError`] that says where its result may go: the job's own subject if the initiator signed exactly this
    /// and published it here, the `.refused` subject otherwise.
    pub fn parse(subject: &str, headers: JobHeaders<'_>, body: &[u8]) -> Result<Self, JobError> {
        let job = Self::from_request(headers, body)?;
        let key = job.key_id.to_string();
        let (code, message) = match subject::split_job(subject) {
            Some((lane, op, named)) if op == job.op().as_str() && named == key => {
                if lane == job.lane {
                    return Ok(job);
                }
                (ErrorCode::LaneMismatch, "the subject is of another lane than the body")
            }
            _ => (ErrorCode::SubjectMismatch, "the subject names another operation or key than the body"),
        };
        // Whoever can publish may repeat a signed job elsewhere, so this is not the initiator's doing.
        let address = Address { initiator: job.initiator, job_id: job.job_id, refused: true };
        Err(JobError { code, message: message.to_owned(), address: Some(address) })
    }

    /// Reads a job that was sent as a request, on a subject that names neither lane nor operation nor key.
    ///
    /// # Errors
    /// As [`Job::parse`], without the subject.
    pub fn from_request(headers: JobHeaders<'_>, body: &[u8]) -> Result<Self, JobError> {
        Self::read(body, Self::read_headers(headers))
    }

    /// Reads a job as a node receives it.
    ///
    /// # Errors
    /// As [`Job::parse`], without the subject.
    pub fn from_signed(signed: &SignedJob) -> Result<Self, JobError> {
        Self::read(&signed.body, Ok((signed.signature.0, signed.authorisation.clone())))
    }

    /// The operation.
    #[must_use]
    pub const fn op(&self) -> Op {
        match self.payload {
            Payload::Generate { .. } => Op::Generate,
            Payload::Sign { .. } | Payload::SignBatch { .. } => Op::Sign,
            Payload::PublicKey => Op::PublicKey,
            Payload::Validate { share: false, .. } => Op::ValidatePassword,
            Payload::Validate { share: true, .. } => Op::ValidateShare,
            Payload::ChangePassword { .. } => Op::ChangePassword,
            Payload::Recover { .. } => Op::Recover,
            Payload::Refresh { .. } => Op::Refresh,
            Payload::Order(OrderedState::Frozen) => Op::Freeze,
            Payload::Order(OrderedState::Active) => Op::Unfreeze,
            Payload::Order(OrderedState::Destroyed) => Op::Destroy,
            Payload::Manage(ref manage) => manage.op(),
        }
    }

    /// The key whose shares the job makes, if it makes any: a new one, for `refresh` the one that it names.
    #[must_use]
    pub fn made_key(&self) -> Option<KeyId> {
        match self.payload {
            Payload::Generate { .. } | Payload::Recover { .. } => Some(KeyId::derive(&self.initiator, &self.job_id)),
            Payload::Refresh { .. } => Some(self.key_id),
            Payload::Sign { .. }
            | Payload::SignBatch { .. }
            | Payload::PublicKey
            | Payload::Validate { .. }
            | Payload::ChangePassword { .. }
            | Payload::Order(_)
            | Payload::Manage(_) => None,
        }
    }

    /// What the job takes from a rate: a batch as many as it has items, everything else one.
    #[must_use]
    pub fn weight(&self) -> u64 {
        match &self.payload {
            Payload::SignBatch { batch, .. } => batch.items().len() as u64,
            _ => 1,
        }
    }

    /// The curve that the job names, if it names one.
    #[must_use]
    pub const fn curve(&self) -> Option<Curve> {
        match &self.payload {
            Payload::Generate { curve, .. } | Payload::Recover { curve, .. } | Payload::Refresh { curve, .. } => {
                Some(*curve)
            }
            Payload::Sign { input, .. } => Some(input.curve()),
            Payload::SignBatch { batch, .. } => Some(batch.curve()),
            Payload::Manage(manage) => manage.curve(),
            Payload::PublicKey | Payload::Validate { .. } | Payload::ChangePassword { .. } | Payload::Order(_) => None,
        }
    }

    /// The sealed secrets, if the operation has any.
    #[must_use]
    pub const fn secrets(&self) -> Option<&Sealed> {
        match &self.payload {
            Payload::Generate { secrets, .. }
            | Payload::Recover { secrets, .. }
            | Payload::Refresh { secrets, .. }
            | Payload::Sign { secrets, .. }
            | Payload::SignBatch { secrets, .. }
            | Payload::Validate { secrets, .. }
            | Payload::ChangePassword { secrets, .. } => Some(secrets),
            Payload::PublicKey | Payload::Order(_) | Payload::Manage(_) => None,
        }
    }

    fn read_headers(headers: JobHeaders<'_>) -> Result<Signatures, Refusal> {
        let Some(signature) = headers.signature else {
            return refuse(ErrorCode::UnsignedJob, "the Trefoil-Signature header is missing");
        };
        if headers.version != Some("1") {
            return refuse(ErrorCode::UnsupportedVersion, "the Trefoil-Version header is not 1");
        }
        let decode = |text: &str| data_encoding::BASE64.decode(text.as_bytes()).ok().and_then(|b| b.try_into().ok());
        let signature = decode(signature);
        let signature =
            signature.ok_or((ErrorCode::BadSignature, "the signature is not 64 bytes of base64".to_owned()))?;
        let authorisation = match (headers.authoriser, headers.authoriser_signature) {
            (None, None) => None,
            (Some(authoriser), Some(signature)) => authoriser
                .parse()
                .ok()
                .zip(decode(signature))
                .map(|(authoriser, signature)| Some(Authorisation { authoriser, signature: Fixed(signature) }))
                .ok_or((ErrorCode::NotAuthorised, "the authoriser's headers cannot be read".to_owned()))?,
            _ => return refuse(ErrorCode::NotAuthorised, "one of the authoriser's two headers is missing"),
        };
        Ok((signature, authorisation))
    }

    fn read(body: &[u8], signature: Result<Signatures, Refusal>) -> Result<Self, JobError> {
        let named = super::peek::peek(body);
        if body.len() > MAX_BODY_BYTES {
            let message = format!("the body has more than {MAX_BODY_BYTES} bytes");
            // Its signature is not looked at, so this must not occupy a job's result.
            let address = named.address(true);
            return Err(JobError { code: ErrorCode::JobTooLarge, message, address });
        }
        let mut authentic = false;
        Self::read_fields(body, signature, &named, &mut authentic).map_err(|JobErrorParts((code, message))| {
            let address = named.address(!authentic);
            JobError { code, message, address }
        })
    }

    fn read_fields(
        body: &[u8],
        signature: Result<Signatures, Refusal>,
        named: &super::peek::Named,
        authentic: &mut bool,
    ) -> Result<Self, JobErrorParts> {
        let (signature, authorisation) = signature?;
        let digest: [u8; 32] = Sha256::digest(body).into();
        if let Some(initiator) = &named.initiator {
            if !auth::verify_job_signature(initiator, &digest, &signature) {
                return Err((ErrorCode::BadSignature, "the signature does not fit the body".to_owned()).into());
            }
            *authentic = true;
        }
        let json = strict::parse(body)?;
        if named.version.is_some_and(|version| version != u64::from(VERSION)) {
            return Err((ErrorCode::UnsupportedVersion, "the body's version is not 1".to_owned()).into());
        }
        let envelope: Envelope<Json> = strict::read(json)?;
        let Envelope { job_id, key_id, initiator, issued_at, expires_at, reply_key, .. } = envelope;
        // A body whose initiator could be read strictly but not by `peek` would have escaped the signature check.
        if named.initiator.as_ref() != Some(&initiator) || named.job_id.as_ref() != Some(&job_id) {
            return Err((ErrorCode::MalformedJob, "initiator or jobId cannot be read".to_owned()).into());
        }
        if expires_at <= issued_at {
            return Err((ErrorCode::MalformedJob, "expiresAt is not after issuedAt".to_owned()).into());
        }
        let lane = envelope.lane.map_or(Ok(Lane::default()), |lane| lane.parse());
        let lane = lane.map_err(|_| (ErrorCode::UnsupportedLane, "the lane is not known".to_owned()))?;
        let op: Op = envelope
            .op
            .parse()
            .map_err(|_| (ErrorCode::UnsupportedOperation, "the operation is not known".to_owned()))?;
        let payload = match op {
            Op::Generate => read_generate(strict::read_field("payload", envelope.payload)?)?,
            Op::Recover | Op::Refresh => read_reshare(op, strict::read_field("payload", envelope.payload)?)?,
            Op::Sign => read_sign(strict::read_field("payload", envelope.payload)?)?,
            Op::PublicKey => {
                let PublicKeyBody {} = strict::read_field("payload", envelope.payload)?;
                Payload::PublicKey
            }
            Op::ValidatePassword | Op::ValidateShare => {
                let ValidateBody { secrets } = strict::read_field("payload", envelope.payload)?;
                Payload::Validate { share: op == Op::ValidateShare, secrets }
            }
            Op::ChangePassword => read_change_password(strict::read_field("payload", envelope.payload)?)?,
            Op::Freeze | Op::Unfreeze | Op::Destroy => {
                let OrderBody {} = strict::read_field("payload", envelope.payload)?;
                Payload::Order(match op {
                    Op::Freeze => OrderedState::Frozen,
                    Op::Unfreeze => OrderedState::Active,
                    _ => OrderedState::Destroyed,
                })
            }
            Op::Keys => Payload::Manage(read_keys(&strict::read_field("payload", envelope.payload)?)?),
            Op::RegisterKey => Payload::Manage(read_register(strict::read_field("payload", envelope.payload)?)?),
            Op::Cancel | Op::JobStatus => {
                let WhichJobBody { job_id: job } = strict::read_field("payload", envelope.payload)?;
                if job == job_id {
                    return Err((ErrorCode::MalformedJob, "the job names itself".to_owned()).into());
                }
                Payload::Manage(if op == Op::Cancel { Manage::Cancel { job } } else { Manage::JobStatus { job } })
            }
            Op::CancelRecovery => {
                let OrderBody {} = strict::read_field("payload", envelope.payload)?;
                Payload::Manage(Manage::CancelRecovery)
            }
        };
        if matches!(op, Op::Generate | Op::Keys) && key_id != KeyId::derive(&initiator, &job_id) {
            return Err((ErrorCode::MalformedJob, "keyId is not the one of initiator and jobId".to_owned()).into());
        }
        let signed = SignedJob { body: body.to_vec(), signature: Fixed(signature), authorisation };
        Ok(Self { job_id, lane, key_id, initiator, issued_at, expires_at, reply_key, payload, digest, signed })
    }
}
