//! What manages keys and jobs and runs no protocol: the list of keys, labels, cancelling, the state of a job, the end of a waiting
//! recovery. Payloads (`…Body`), and what their results hold.

use crate::wire::job::{Refusal, refuse};
use crate::wire::payload::read_curve;
use crate::wire::{Attestations, Curve, ErrorCode, JobId, KeyId, Op};
use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest label of a key, bytes of UTF-8.
pub const MAX_LABEL_BYTES: usize = 128;
/// Most keys of one list, and how many it has where the job does not say.
pub const MAX_LISTED: u32 = 100;

/// Payload of `keys`, as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeysBody {
    /// Where the list goes on: `next` of the list before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<KeyId>,
    /// Most keys to list, 1 to 100; 100 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub limit: Option<u32>,
}

/// Payload of `register-key`, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegisterBody {
    /// The key's curve.
    #[schemars(with = "Curve")]
    pub curve: String,
    /// The key's public key, hex: 33 bytes (secp256k1) or 32 (ed25519).
    #[schemars(regex(pattern = r"^([0-9a-f]{66}|[0-9a-f]{64})$"))]
    pub public_key: String,
    /// The key's label from now on, at most 128 bytes without control characters; empty takes it away, absent leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub label: Option<String>,
}

/// Payload of `cancel` and `job-status`, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WhichJobBody {
    /// The job that it is about, of the same initiator.
    pub job_id: JobId,
}

/// A checked payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manage {
    /// List the initiator's keys.
    Keys {
        /// The last key of the list before.
        after: Option<KeyId>,
        /// 1 to 100.
        limit: u32,
    },
    /// Check a key's curve and public key, and label it.
    Register {
        /// What the curve should be.
        curve: Curve,
        /// What the public key should be.
        public_key: Vec<u8>,
        /// The label from now on, empty for none; `None` leaves it.
        label: Option<String>,
    },
    /// Keep a job from being started.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// Tell how far a job is.
    JobStatus {
        /// The job.
        job: JobId,
    },
    /// End the key's waiting recovery.
    CancelRecovery,
}

impl Manage {
    /// The operation.
    #[must_use]
    pub const fn op(&self) -> Op {
        match self {
            Self::Keys { .. } => Op::Keys,
            Self::Register { .. } => Op::RegisterKey,
            Self::Cancel { .. } => Op::Cancel,
            Self::JobStatus { .. } => Op::JobStatus,
            Self::CancelRecovery => Op::CancelRecovery,
        }
    }

    /// The curve that it names.
    #[must_use]
    pub const fn curve(&self) -> Option<Curve> {
        match self {
            Self::Register { curve, .. } => Some(*curve),
            Self::Keys { .. } | Self::Cancel { .. } | Self::JobStatus { .. } | Self::CancelRecovery => None,
        }
    }
}

pub(super) fn read_keys(body: &KeysBody) -> Result<Manage, Refusal> {
    let limit = body.limit.unwrap_or(MAX_LISTED);
    if (1..=MAX_LISTED).contains(&limit) {
        Ok(Manage::Keys { after: body.after, limit })
    } else {
        refuse(ErrorCode::MalformedJob, "limit must be 1 to 100")
    }
}

pub(super) fn read_register(body: RegisterBody) -> Result<Manage, Refusal> {
    let curve = read_curve(&body.curve)?;
    let length = if curve == Curve::Secp256k1 { 33 } else { 32 };
    let public_key = HEXLOWER.decode(body.public_key.as_bytes()).ok().filter(|key| key.len() == length);
    let Some(public_key) = public_key else {
        return refuse(ErrorCode::PublicKeyMismatch, "publicKey is not one of this curve, in lower-case hex");
    };
    Ok(Manage::Register { curve, public_key, label: read_label(body.label)? })
}

/// Text that every list and log can show: no line ends, no escape sequences.
pub(super) fn read_label(label: Option<String>) -> Result<Option<String>, Refusal> {
    if label.as_ref().is_some_and(|label| label.len() > MAX_LABEL_BYTES || label.chars().any(char::is_control)) {
        return refuse(ErrorCode::InvalidLabel, "the label is longer than 128 bytes or has control characters");
    }
    Ok(label)
}

/// Keys of an initiator, by node 1's word: each can be checked by `public-key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyList {
    /// In the order of their ids. register-key: the one key.
    pub keys: Vec<KeyEntry>,
    /// There are more: `after` of the next list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<KeyId>,
}

/// A registered key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyEntry {
    /// The key.
    pub key_id: KeyId,
    /// Its curve.
    pub curve: Curve,
    /// Hex: 33 or 32 bytes.
    #[schemars(regex(pattern = r"^([0-9a-f]{66}|[0-9a-f]{64})$"))]
    pub public_key: String,
    /// Its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// When node 1 committed the key, unix milliseconds. A refresh changes nothing of it; a recovered key has its own.
    pub created_at: u64,
    /// Its state.
    pub state: ListedState,
    /// Which generation of its shares.
    pub epoch: u32,
    /// The key that it replaced, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_key_id: Option<KeyId>,
    /// `retired`: the key that replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_key_id: Option<KeyId>,
}

/// State of a registered key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ListedState {
    /// Signs.
    Active,
    /// Stopped by its owner.
    Frozen,
    /// A check failed; to be recovered or refreshed.
    Locked,
    /// Replaced by another key.
    Retired,
    /// Gone.
    Destroyed,
}

impl ListedState {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Frozen => "frozen",
            Self::Locked => "locked",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        }
    }
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobStatus {
    /// The job that it is about.
    pub job_id: JobId,
    /// How far.
    pub state: JobState,
    /// Where its result is, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_subject: Option<String>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum JobState {
    /// It has a result.
    Done,
    /// It will not be started.
    Cancelled,
    /// Node 1 has begun with it, and there is no result yet. A question that was answered without a result, too.
    Started,
    /// It is in the queue of the key that was named, and node 1 has not begun with it.
    Waiting,
    /// Neither the results nor node 1 nor that queue know it.
    Unknown,
}

impl JobState {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Started => "started",
            Self::Waiting => "waiting",
            Self::Unknown => "unknown",
        }
    }
}

/// The key has no waiting recovery any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecoveryCancelled {
    /// Both nodes' signatures over the statement that the recovery is cancelled.
    pub attestations: Attestations,
}
