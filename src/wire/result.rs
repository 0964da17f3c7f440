//! Results: what a worker stores on `mpc.result.<initiator>.<jobId>`, one per job for ever.

use crate::wire::node::KeyStatement;
use crate::wire::{
    Curve, ErrorCode, Fixed, InitiatorId, Job, JobId, JobStatus, KeyId, KeyList, Method, Op, RecoveryCancelled, Sealed,
    VERSION,
};
use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The result of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobResult {
    /// Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The job's name.
    pub job_id: JobId,
    /// The key; absent if the job was too malformed to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<KeyId>,
    /// Who signed the job.
    pub initiator: InitiatorId,
    /// The operation; absent if the job was too malformed to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// SHA-256 of the job's body.
    pub job_digest: Fixed<32>,
    /// Unix milliseconds.
    pub completed_at: u64,
    /// What came of it.
    pub outcome: Outcome,
}

impl JobResult {
    /// The result of a job that was understood.
    #[must_use]
    pub fn of(job: &Job, completed_at: u64, outcome: Outcome) -> Self {
        Self {
            version: VERSION,
            job_id: job.job_id.clone(),
            key_id: Some(job.key_id),
            initiator: job.initiator.clone(),
            op: Some(job.op()),
            job_digest: Fixed(job.digest),
            completed_at,
            outcome,
        }
    }
}

/// What came of a job.
#[allow(clippy::large_enum_variant, reason = "there is one per job, and it is not kept in collections")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "status", rename_all = "camelCase", deny_unknown_fields)]
pub enum Outcome {
    /// Done.
    Ok {
        /// generate, recover, refresh, public-key: the key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyResult>,
        /// sign: the signature.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<SignatureResult>,
        /// sign with items: a signature for each, in their order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signatures: Option<Vec<SignatureResult>>,
        /// generate, recover, refresh: encryptedShare and secretStore; change-password: secretStore; sealed to the reply key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secrets: Option<Sealed>,
        /// freeze, unfreeze, destroy: the key's state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<StateResult>,
        /// keys, register-key: what is registered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        list: Option<KeyList>,
        /// job-status, cancel: how far the other job is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<JobStatus>,
        /// cancel-recovery: what both nodes signed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recovery: Option<RecoveryCancelled>,
    },
    /// Not done.
    Error {
        /// Why.
        error: Failure,
    },
}

/// Done, with the named fields and no others.
macro_rules! ok {
    ($($field:ident),*) => {{
        let mut outcome = Outcome::DONE;
        $(if let Outcome::Ok { $field: told, .. } = &mut outcome {
            *told = Some($field);
        })*
        outcome
    }};
}

impl Outcome {
    /// Done, with nothing to tell.
    pub const DONE: Self = Self::Ok {
        key: None,
        signature: None,
        signatures: None,
        secrets: None,
        state: None,
        list: None,
        job: None,
        recovery: None,
    };

    /// A key.
    #[must_use]
    pub fn of_key(key: KeyResult) -> Self {
        ok!(key)
    }

    /// New shares, with the client's sealed one.
    #[must_use]
    pub fn generated(key: KeyResult, secrets: Sealed) -> Self {
        ok!(key, secrets)
    }

    /// A signature.
    #[must_use]
    pub fn signed(signature: SignatureResult) -> Self {
        ok!(signature)
    }

    /// The signatures of a batch.
    #[must_use]
    pub fn signed_batch(signatures: Vec<SignatureResult>) -> Self {
        ok!(signatures)
    }

    /// Sealed secrets alone.
    #[must_use]
    pub fn sealed(secrets: Sealed) -> Self {
        ok!(secrets)
    }

    /// The state that a key was brought into.
    #[must_use]
    pub fn ordered(state: StateResult) -> Self {
        ok!(state)
    }

    /// Registered keys.
    #[must_use]
    pub fn listed(list: KeyList) -> Self {
        ok!(list)
    }

    /// How far a job is.
    #[must_use]
    pub fn of_job(job: JobStatus) -> Self {
        ok!(job)
    }

    /// A recovery was cancelled.
    #[must_use]
    pub fn recovery_cancelled(recovery: RecoveryCancelled) -> Self {
        ok!(recovery)
    }

    /// An error outcome.
    #[must_use]
    pub fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Error { error: Failure::new(code, message) }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// From the closed list.
    pub code: ErrorCode,
    /// What happened, for people.
    pub message: String,
    /// What to do, for people.
    pub action: String,
    /// Whether a new job with the same content may succeed later without anything else changing.
    pub retryable: bool,
    /// `TOO_MANY_ATTEMPTS`, `RATE_LIMITED`, `RECOVERY_PENDING`: when the next one is let in, unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<u64>,
    /// `KEY_RETIRED`: the key that replaced this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_key_id: Option<KeyId>,
}

impl Failure {
    /// A failure whose action and retryability follow from its code.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retryable = code.disposition() == crate::wire::Disposition::Retry;
        let action = code.action().to_owned();
        Self { code, message: message.into(), action, retryable, retry_at: None, new_key_id: None }
    }
}

/// A key, with what both nodes signed about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyResult {
    /// The key.
    pub key_id: KeyId,
    /// recover: the key that it replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_key_id: Option<KeyId>,
    /// Its curve.
    pub curve: Curve,
    /// Which generation of its shares.
    pub epoch: u32,
    /// 33 bytes SEC1 compressed (secp256k1) or 32 bytes (ed25519), hex.
    #[schemars(regex(pattern = r"^([0-9a-f]{66}|[0-9a-f]{64})$"))]
    pub public_key: String,
    /// BIP-32 chain code.
    pub chain_code: Fixed<32>,
    /// Transcript hash of the run that made the shares.
    pub transcript: Fixed<32>,
    /// The digest of the job that made the shares; the attestations are over it. Absent: the digest of this result's
    /// own job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated_by: Option<Fixed<32>>,
    /// Whether both nodes have committed.
    pub state: KeyState,
    /// Both nodes' signatures over the attestation statement.
    pub attestations: Attestations,
    /// `active`: both nodes' signatures over the decision that this attempt is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commits: Option<Attestations>,
}

impl KeyResult {
    /// What both nodes say about a key, if they say the same: active with their signed commits, else prepared.
    #[must_use]
    pub fn agreed(node1: &KeyStatement, node2: &KeyStatement, commits: Option<Attestations>) -> Option<Self> {
        let same = KeyStatement { signature: node1.signature, ..node2.clone() } == *node1;
        same.then(|| Self {
            key_id: node1.key_id,
            source_key_id: node1.source_key_id,
            curve: node1.curve,
            epoch: node1.epoch,
            public_key: HEXLOWER.encode(&node1.public_key),
            chain_code: Fixed(node1.chain_code),
            transcript: Fixed(node1.transcript),
            generated_by: Some(Fixed(node1.job_digest)),
            state: if commits.is_some() { KeyState::Active } else { KeyState::Prepared },
            attestations: Attestations { node1: node1.signature, node2: node2.signature },
            commits,
        })
    }
}

/// Whether a key is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum KeyState {
    /// Stored by both nodes. It may yet be dropped, so nothing must be paid to it.
    Prepared,
    /// Committed by both nodes, as `commits` proves.
    Active,
}

/// A state that a key's owner can bring it into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OrderedState {
    /// Signs.
    Active,
    /// Does not sign until it is unfrozen.
    Frozen,
    /// Never signs again: the nodes' shares are gone.
    Destroyed,
}

impl OrderedState {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Frozen => "frozen",
            Self::Destroyed => "destroyed",
        }
    }
}

/// A key's state, with what both nodes signed about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateResult {
    /// The state that the job brought the key into.
    pub state: OrderedState,
    /// Both nodes' signatures over the state statement.
    pub attestations: Attestations,
}

/// Ed25519 signatures of the two nodes' identities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attestations {
    /// Node 1's.
    pub node1: Fixed<64>,
    /// Node 2's.
    pub node2: Fixed<64>,
}

/// A signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignatureResult {
    /// The key's curve.
    pub curve: Curve,
    /// The method that ran.
    pub method: Method,
    /// r ‖ s, 32 bytes each, low s (secp256k1); R ‖ S of RFC 8032 (ed25519).
    pub signature: Fixed<64>,
    /// secp256k1: 0 to 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 3))]
    pub recovery_id: Option<u8>,
    /// The key that the signature verifies under, hex: the derived one if there is a path.
    #[schemars(regex(pattern = r"^([0-9a-f]{66}|[0-9a-f]{64})$"))]
    pub public_key: String,
    /// The derivation path that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}
