//! Whether a job is an initiator's, and of now: signatures and times. What an initiator may do is in [`crate::policy`].

use crate::wire::{Authorisation, ErrorCode, Fixed, InitiatorId, Job, SignedJob};
use ed25519_dalek::{Signature, VerifyingKey};
use nkeys::KeyPair;
use sha2::{Digest, Sha256};

/// The bytes under a job's signature: `0xFF ‖ "trefoil-job-v1" ‖ 0x00 ‖ SHA-256(body)`. No NATS server can make a
/// connection key sign them, as its nonces are ASCII.
#[must_use]
pub fn job_signing_bytes(digest: &[u8; 32]) -> Vec<u8> {
    crate::wire::signing_bytes("trefoil-job-v1", digest)
}

/// The bytes under an authoriser's signature: `0xFF ‖ "trefoil-authorise-v1" ‖ 0x00 ‖ SHA-256(body)`.
#[must_use]
pub fn authorise_signing_bytes(digest: &[u8; 32]) -> Vec<u8> {
    crate::wire::signing_bytes("trefoil-authorise-v1", digest)
}

/// Consents to a job as a recovery authoriser. `None` unless the key is a user NKEY with its seed.
#[must_use]
pub fn authorise(key: &KeyPair, body: &[u8]) -> Option<Authorisation> {
    let authoriser = key.public_key().parse().ok()?;
    let signature = key.sign(&authorise_signing_bytes(&Sha256::digest(body).into())).ok()?;
    Some(Authorisation { authoriser, signature: Fixed(signature.try_into().ok()?) })
}

/// Whether one of these authorisers, and not the initiator itself, consented to the job.
#[must_use]
pub fn is_authorised(job: &Job, authorisers: &[InitiatorId]) -> bool {
    let Some(Authorisation { authoriser, signature }) = &job.signed.authorisation else { return false };
    let known = authorisers.contains(authoriser) && *authoriser != job.initiator;
    known
        && VerifyingKey::from_bytes(authoriser.public_key()).is_ok_and(|key| {
            let signature = Signature::from_bytes(&signature.0);
            key.verify_strict(&authorise_signing_bytes(&job.digest), &signature).is_ok()
        })
}

/// Signs a body with an initiator's key.
///
/// # Errors
/// The key pair has no seed.
pub fn sign_job(key: &KeyPair, body: Vec<u8>) -> Result<SignedJob, nkeys::error::Error> {
    let digest = Sha256::digest(&body).into();
    let signature = key.sign(&job_signing_bytes(&digest))?;
    let signature = <[u8; 64]>::try_from(signature.as_slice())
        .map_err(|_| nkeys::error::Error::new(nkeys::error::ErrorKind::SignatureError, None))?;
    Ok(SignedJob { body, signature: Fixed(signature), authorisation: None })
}

/// Whether the initiator signed the body with this SHA-256. Strict: refuses small-order keys and non-canonical forms.
#[must_use]
pub fn verify_job_signature(initiator: &InitiatorId, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(initiator.public_key())
        .is_ok_and(|key| key.verify_strict(&job_signing_bytes(digest), &Signature::from_bytes(signature)).is_ok())
}

/// How far a job's times may be from this machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct TimePolicy {
    /// Longest `expiresAt - issuedAt`, milliseconds.
    pub max_lifetime_ms: u64,
    /// How far the backend's clock may be ahead, milliseconds.
    pub max_skew_ms: u64,
}

/// An hour to live, half a minute of clock difference.
impl Default for TimePolicy {
    fn default() -> Self {
        Self { max_lifetime_ms: 3_600_000, max_skew_ms: 30_000 }
    }
}

impl TimePolicy {
    /// Whether a job may be worked on at `now` (unix milliseconds).
    ///
    /// # Errors
    /// `JOB_LIFETIME_TOO_LONG`, `JOB_NOT_YET_VALID` or `JOB_EXPIRED`.
    pub const fn check(self, job: &Job, now: u64) -> Result<(), ErrorCode> {
        if job.expires_at.saturating_sub(job.issued_at) > self.max_lifetime_ms {
            Err(ErrorCode::JobLifetimeTooLong)
        } else if job.issued_at > now.saturating_add(self.max_skew_ms) {
            Err(ErrorCode::JobNotYetValid)
        } else if job.expires_at <= now {
            Err(ErrorCode::JobExpired)
        } else {
            Ok(())
        }
    }
}
