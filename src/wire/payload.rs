//! What jobs ask for: as JSON (`…Body`), and checked.

use crate::wire::job::{Refusal, refuse};
use crate::wire::manage::{Manage, read_label};
use crate::wire::{
    Base64, Batch, Curve, ErrorCode, InitiatorId, JobId, KeyId, Lane, Method, Op, OrderedState, SealKey, SignInput,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The common frame of every job body, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope<P> {
    /// Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The operation; the subject names it too.
    #[schemars(with = "Op")]
    pub op: String,
    /// The job's name, unique per initiator.
    pub job_id: JobId,
    /// How urgent it is; the subject says it too. Without it the job is interactive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Lane>")]
    pub lane: Option<String>,
    /// The key; the subject names it too. In a generate job it is derived from initiator and job id.
    pub key_id: KeyId,
    /// The public NKEY that signs the job.
    pub initiator: InitiatorId,
    /// When the job was made, unix milliseconds.
    pub issued_at: u64,
    /// When the job ends without a result, unix milliseconds.
    pub expires_at: u64,
    /// The xkey to which secrets in the result are sealed.
    pub reply_key: SealKey,
    /// What the operation needs.
    pub payload: P,
}

/// Secrets of a job or result, sealed to an xkey. What is inside: `Secrets` of docs/wire.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sealed {
    /// The recipient's public xkey: a worker key in a job, the reply key in a result.
    pub recipient_key: SealKey,
    /// The sender's public xkey, fresh for this box.
    pub sender_key: SealKey,
    /// `xkv1` ‖ nonce (24 bytes) ‖ NaCl box.
    #[serde(rename = "box")]
    pub sealed: Base64,
}

/// Payload of `generate`, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GenerateBody {
    /// The key's curve.
    #[schemars(with = "Curve")]
    pub curve: String,
    /// How the password becomes a key.
    pub kdf: KdfBody,
    /// The key's label, at most 128 bytes without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub label: Option<String>,
    /// The password, sealed to a worker key.
    pub secrets: Sealed,
}

/// Payload of `recover` and `refresh`, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReshareBody {
    /// The key's curve.
    #[schemars(with = "Curve")]
    pub curve: String,
    /// How the password of the new share becomes a key.
    pub kdf: KdfBody,
    /// The password of the new share, sealed to a worker key; for `refresh` password, encryptedShare, secretStore, and
    /// newPassword if there is to be another.
    pub secrets: Sealed,
}

/// KDF and parameters, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KdfBody {
    /// `argon2id`, or `hkdf` for a machine-made password of exactly 32 random bytes.
    #[schemars(extend("enum" = ["argon2id", "hkdf"]))]
    pub name: String,
    /// argon2id: memory in KiB, 8 to 262,144.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = 262_144))]
    pub memory_kib: Option<u32>,
    /// argon2id: passes, 1 to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub passes: Option<u32>,
}

/// Payload of `public-key`, as JSON: an empty object.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublicKeyBody {}

/// Payload of `validate-password` and `validate-share`, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValidateBody {
    /// Password and secretStore, for `validate-share` also encryptedShare, sealed to a worker key.
    pub secrets: Sealed,
}

/// Payload of `change-password`, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChangePasswordBody {
    /// How the new password becomes a key.
    pub kdf: KdfBody,
    /// Password, secretStore and newPassword, sealed to a worker key.
    pub secrets: Sealed,
}

/// Payload of `freeze`, `unfreeze` and `destroy`, as JSON: an empty object.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrderBody {}

/// How a password becomes a key, within the allowed limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KdfParams {
    /// Argon2id (RFC 9106), one lane.
    Argon2id {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over the memory.
        passes: u32,
    },
    /// HKDF-SHA-256, for passwords of exactly 32 random bytes.
    Hkdf,
}

impl KdfParams {
    /// Least and most memory in KiB.
    pub const MEMORY_KIB: core::ops::RangeInclusive<u32> = 8..=262_144;
    /// Fewest and most passes.
    pub const PASSES: core::ops::RangeInclusive<u32> = 1..=10;

    /// The same as JSON.
    #[must_use]
    pub fn to_body(self) -> KdfBody {
        match self {
            Self::Argon2id { memory_kib, passes } => {
                KdfBody { name: "argon2id".to_owned(), memory_kib: Some(memory_kib), passes: Some(passes) }
            }
            Self::Hkdf => KdfBody { name: "hkdf".to_owned(), memory_kib: None, passes: None },
        }
    }

    /// Whether the parameters are within the limits. Checked before memory is allocated.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        match self {
            Self::Argon2id { memory_kib, passes } => {
                Self::MEMORY_KIB.contains(&memory_kib) && Self::PASSES.contains(&passes)
            }
            Self::Hkdf => true,
        }
    }
}

/// 19 MiB, two passes (OWASP's first recommendation): 25 ms on one core.
impl Default for KdfParams {
    fn default() -> Self {
        Self::Argon2id { memory_kib: 19_456, passes: 2 }
    }
}

impl GenerateBody {
    /// The payload of a generate job, without a label.
    #[must_use]
    pub fn new(curve: Curve, kdf: KdfParams, secrets: Sealed) -> Self {
        Self { curve: curve.to_string(), kdf: kdf.to_body(), label: None, secrets }
    }
}

impl ReshareBody {
    /// The payload of a recover or refresh job.
    #[must_use]
    pub fn new(curve: Curve, kdf: KdfParams, secrets: Sealed) -> Self {
        Self { curve: curve.to_string(), kdf: kdf.to_body(), secrets }
    }
}

impl<P: Serialize> Envelope<P> {
    /// The body bytes to sign and publish.
    ///
    /// # Errors
    /// None that these types can cause; the signature is serde's.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// A checked payload.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Generate a key.
    Generate {
        /// The key's curve.
        curve: Curve,
        /// How the password becomes a key.
        kdf: KdfParams,
        /// The key's label.
        label: Option<String>,
        /// The sealed password.
        secrets: Sealed,
    },
    /// Sign.
    Sign {
        /// The method that was asked for; [`Method::resolve`] gives the one that runs.
        method: Method,
        /// What to sign; names the curve.
        input: SignInput,
        /// The sealed password, share and secret store.
        secrets: Sealed,
    },
    /// Sign several inputs; the operation is `sign` too.
    SignBatch {
        /// As for one.
        method: Method,
        /// What to sign; names the curve.
        batch: Batch,
        /// The sealed password, share and secret store.
        secrets: Sealed,
    },
    /// Return the public key.
    PublicKey,
    /// Say whether the password opens the secretStore, and with `share` the encryptedShare too.
    Validate {
        /// Whether it is `validate-share`.
        share: bool,
        /// The sealed password and secretStore, and the encryptedShare for `validate-share`.
        secrets: Sealed,
    },
    /// Put the secretStore under another password.
    ChangePassword {
        /// How the new password becomes a key.
        kdf: KdfParams,
        /// The sealed password, secretStore and new password.
        secrets: Sealed,
    },
    /// Give the key new shares under a new id: the client's old one is lost, or not trusted.
    Recover {
        /// The key's curve.
        curve: Curve,
        /// How the new password becomes a key.
        kdf: KdfParams,
        /// The sealed new password.
        secrets: Sealed,
    },
    /// Give the key new shares under its own id.
    Refresh {
        /// The key's curve.
        curve: Curve,
        /// How the new share's password becomes a key.
        kdf: KdfParams,
        /// The sealed password, share and secret store, and a new password if there is to be one.
        secrets: Sealed,
    },
    /// Bring the key into this state.
    Order(OrderedState),
    /// What manages keys and jobs.
    Manage(Manage),
}

pub(super) fn read_curve(name: &str) -> Result<Curve, Refusal> {
    name.parse().map_err(|_| (ErrorCode::UnsupportedCurve, "the curve is not secp256k1 or ed25519".to_owned()))
}

fn read_kdf(body: &KdfBody) -> Result<KdfParams, Refusal> {
    let kdf = match (body.name.as_str(), body.memory_kib, body.passes) {
        ("argon2id", Some(memory_kib), Some(passes)) => KdfParams::Argon2id { memory_kib, passes },
        ("hkdf", None, None) => KdfParams::Hkdf,
        _ => return refuse(ErrorCode::InvalidKdf, "kdf is neither argon2id with memoryKib and passes nor hkdf alone"),
    };
    if kdf.is_allowed() {
        Ok(kdf)
    } else {
        refuse(ErrorCode::InvalidKdf, "memoryKib must be 8 to 262144 and passes 1 to 10")
    }
}

pub(super) fn read_generate(body: GenerateBody) -> Result<Payload, Refusal> {
    let (curve, kdf, label) = (read_curve(&body.curve)?, read_kdf(&body.kdf)?, read_label(body.label)?);
    Ok(Payload::Generate { curve, kdf, label: label.filter(|label| !label.is_empty()), secrets: body.secrets })
}

pub(super) fn read_reshare(op: Op, body: ReshareBody) -> Result<Payload, Refusal> {
    let (curve, kdf, secrets) = (read_curve(&body.curve)?, read_kdf(&body.kdf)?, body.secrets);
    Ok(match op {
        Op::Refresh => Payload::Refresh { curve, kdf, secrets },
        _ => Payload::Recover { curve, kdf, secrets },
    })
}

pub(super) fn read_change_password(body: ChangePasswordBody) -> Result<Payload, Refusal> {
    Ok(Payload::ChangePassword { kdf: read_kdf(&body.kdf)?, secrets: body.secrets })
}
