//! Sealing of secrets between a backend and the workers, with NATS xkeys (curve25519, XSalsa20-Poly1305): no stream, log
//! or broker ever holds a readable one. What is inside names the job that it belongs to, so a box cannot be moved to
//! another job.

use crate::vault::Password;
use crate::wire::{Base64, ErrorCode, InitiatorId, Job, JobId, KeyId, SealKey, Sealed, VERSION};
use core::fmt;
use data_encoding::BASE64;
use nkeys::XKey;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::collections::HashMap;
use zeroize::Zeroizing;

/// Secrets of one job or result.
#[derive(Default)]
pub struct Secrets {
    /// In jobs: the password; recover: the new one.
    pub password: Option<Password>,
    /// sign, refresh, and the results of generate, recover and refresh.
    pub encrypted_share: Option<Vec<u8>>,
    /// sign, refresh, and the results of generate, recover and refresh.
    pub secret_store: Option<Vec<u8>>,
    /// change-password, and refresh if it is to be another: the password to be.
    pub new_password: Option<Password>,
}

/// The job that secrets belong to; every field is checked when they are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The job's name.
    pub job_id: JobId,
    /// The key.
    pub key_id: KeyId,
    /// Who signs the job.
    pub initiator: InitiatorId,
}

impl Binding {
    /// The binding of this job, and of its result.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self { job_id: job.job_id.clone(), key_id: job.key_id, initiator: job.initiator.clone() }
    }
}

/// Why a box could not be made or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The box is sealed to a key that this process does not hold.
    #[error("the secrets are sealed to a key that is not a current worker key")]
    UnknownKey,
    /// The box does not open, or its content is not the secrets of this job.
    #[error("the sealed secrets do not open or belong to another job")]
    Broken,
}

impl SealError {
    /// The code for the job's result.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::UnknownKey => ErrorCode::UnknownWorkerKey,
            Self::Broken => ErrorCode::SealBroken,
        }
    }
}

/// Base64 that is erased when dropped.
struct SecretBytes(Zeroizing<Vec<u8>>);

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&Zeroizing::new(BASE64.encode(&self.0)))
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = SecretBytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("standard padded base64")
            }
            // Text without JSON escapes comes straight from the plaintext's buffer, so no other copy is made.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretBytes, E> {
                let decoded = BASE64.decode(text.as_bytes()).map_err(|_| E::custom("not base64"))?;
                Ok(SecretBytes(Zeroizing::new(decoded)))
            }
        }
        d.deserialize_str(Visitor)
    }
}

impl JsonSchema for SecretBytes {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "SecretBytes".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "contentEncoding": "base64", "writeOnly": true })
    }
}

/// What is inside a box, as JSON.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Secrets")]
pub struct SecretsBody {
    /// Always 1.
    #[schemars(range(min = 1, max = 1))]
    version: u32,
    /// The job's name.
    job_id: JobId,
    /// The key.
    key_id: KeyId,
    /// Who signed the job.
    initiator: InitiatorId,
    /// The password's bytes, 1 to 1,024; exactly 32 random ones for the KDF `hkdf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<SecretBytes>,
    /// Opaque; as it was returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encrypted_share: Option<Base64>,
    /// Opaque; as it was returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret_store: Option<Base64>,
    /// change-password, and refresh if it is to be another: the bytes of the password to be, as for `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new_password: Option<SecretBytes>,
}

/// Seals secrets to a recipient with a fresh sender key.
///
/// # Errors
/// [`SealError::UnknownKey`] if the recipient is not a valid xkey.
pub fn seal(recipient: &SealKey, binding: &Binding, secrets: &Secrets) -> Result<Sealed, SealError> {
    let public = XKey::from_public_key(recipient.as_str()).map_err(|_| SealError::UnknownKey)?;
    let sender = XKey::new();
    let plaintext = plaintext(binding, secrets)?;
    let sealed = sender.seal(&plaintext, &public).map_err(|_| SealError::Broken)?;
    let sender_key = sender.public_key().parse().map_err(|_| SealError::Broken)?;
    Ok(Sealed { recipient_key: recipient.clone(), sender_key, sealed: Base64(sealed) })
}

/// Opens a box with the recipient's key pair.
///
/// # Errors
/// [`SealError::Broken`].
pub fn open(recipient: &XKey, binding: &Binding, sealed: &Sealed) -> Result<Secrets, SealError> {
    let sender = XKey::from_public_key(sealed.sender_key.as_str()).map_err(|_| SealError::Broken)?;
    let plaintext = Zeroizing::new(recipient.open(&sealed.sealed.0, &sender).map_err(|_| SealError::Broken)?);
    // The error is dropped because its text may repeat the plaintext.
    let body: SecretsBody = serde_json::from_slice(&plaintext).map_err(|_| SealError::Broken)?;
    let named = Binding { job_id: body.job_id, key_id: body.key_id, initiator: body.initiator };
    if body.version != VERSION || named != *binding {
        return Err(SealError::Broken);
    }
    let password = |bytes: Option<SecretBytes>| {
        bytes.map(|SecretBytes(bytes)| Password::new(bytes)).transpose().map_err(|_| SealError::Broken)
    };
    Ok(Secrets {
        password: password(body.password)?,
        new_password: password(body.new_password)?,
        encrypted_share: body.encrypted_share.map(|Base64(bytes)| bytes),
        secret_store: body.secret_store.map(|Base64(bytes)| bytes),
    })
}

fn plaintext(binding: &Binding, secrets: &Secrets) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    let secret = |password: &Option<Password>| {
        password.as_ref().map(|password| SecretBytes(Zeroizing::new(password.expose().to_vec())))
    };
    let body = SecretsBody {
        version: VERSION,
        job_id: binding.job_id.clone(),
        key_id: binding.key_id,
        initiator: binding.initiator.clone(),
        password: secret(&secrets.password),
        new_password: secret(&secrets.new_password),
        encrypted_share: secrets.encrypted_share.clone().map(Base64),
        secret_store: secrets.secret_store.clone().map(Base64),
    };
    // Large enough never to be moved while it grows, which would leave a copy of the password behind.
    let capacity = 8192 + 2 * (length(&secrets.encrypted_share) + length(&secrets.secret_store));
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *bytes, &body).map_err(|_| SealError::Broken)?;
    Ok(bytes)
}

/// The xkeys whose boxes the workers open: the newest, which new jobs should use, and older ones until the longest job
/// lifetime is over.
pub struct WorkerKeys {
    current: SealKey,
    by_public: HashMap<SealKey, XKey>,
}

impl WorkerKeys {
    /// From seeds `SX…`, the newest first. `None` if there are none or one is invalid.
    #[must_use]
    pub fn from_seeds<'a>(seeds: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut current = None;
        let mut by_public = HashMap::new();
        for seed in seeds {
            let key = XKey::from_seed(seed).ok()?;
            let public: SealKey = key.public_key().parse().ok()?;
            current.get_or_insert_with(|| public.clone());
            by_public.insert(public, key);
        }
        Some(Self { current: current?, by_public })
    }

    /// The public key that new jobs should be sealed to.
    #[must_use]
    pub const fn current(&self) -> &SealKey {
        &self.current
    }

    /// Opens the secrets of a job.
    ///
    /// # Errors
    /// `UNKNOWN_WORKER_KEY` or `SEAL_BROKEN`; the latter also for an operation without secrets.
    pub fn open(&self, job: &Job) -> Result<Secrets, SealError> {
        let sealed = job.secrets().ok_or(SealError::Broken)?;
        let key = self.by_public.get(&sealed.recipient_key).ok_or(SealError::UnknownKey)?;
        open(key, &Binding::of(job), sealed)
    }
}
