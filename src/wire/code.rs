//! The closed list of job error codes. What a worker does with each, and what a caller should do, is decided here only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a worker does with a job that ended in a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Store it as the job's result and acknowledge the job.
    Final,
    /// Try again with backoff; the code becomes the result when the job expires.
    Retry,
}

macro_rules! codes {
    ($($name:ident = $text:literal, $disposition:ident, $action:literal;)*) => {
        /// Why a job failed. The list is closed: a new code is a new version of the wire format.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum ErrorCode {
            $(#[doc = $action] #[serde(rename = $text)] $name,)*
        }

        impl ErrorCode {
            /// Every code, in the order of docs/wire.md.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code's text on the wire, such as `WRONG_PASSWORD`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Whether a worker tries the job again.
            #[must_use]
            pub const fn disposition(self) -> Disposition {
                match self { $(Self::$name => Disposition::$disposition),* }
            }

            /// What the caller should do, in one sentence.
            #[must_use]
            pub const fn action(self) -> &'static str {
                match self { $(Self::$name => $action),* }
            }
        }
    };
}

codes! {
    MalformedJob = "MALFORMED_JOB", Final, "Send one JSON object as docs/wire.md describes it.";
    UnknownField = "UNKNOWN_FIELD", Final, "Remove the named field; this version does not know it.";
    UnsupportedVersion = "UNSUPPORTED_VERSION", Final, "Send version 1 in both the header and the body.";
    UnsignedJob = "UNSIGNED_JOB", Final, "Sign the body and send the signature in the Trefoil-Signature header.";
    BadSignature = "BAD_SIGNATURE", Final, "Sign the exact body bytes with the initiator's key.";
    UnknownInitiator = "UNKNOWN_INITIATOR", Final, "Have the operators of both nodes add this initiator.";
    NotPermitted = "NOT_PERMITTED", Final, "Have the operators of both nodes grant this operation, curve or key to the initiator.";
    NotAuthorised = "NOT_AUTHORISED", Final, "Have a recovery authoriser that both nodes list sign this job.";
    JobSuperseded = "JOB_SUPERSEDED", Final, "A newer order about this key was carried out; send a new job if it is still meant.";
    JobCancelled = "JOB_CANCELLED", Final, "Send a new job with a new id if it is still meant; this one was cancelled.";
    JobStarted = "JOB_STARTED", Final, "Wait for the job's result; it is too late to cancel it.";
    JobExpired = "JOB_EXPIRED", Final, "Send a new job with a new id and a later expiry.";
    JobNotYetValid = "JOB_NOT_YET_VALID", Final, "Correct the clock of the backend and send a new job.";
    JobLifetimeTooLong = "JOB_LIFETIME_TOO_LONG", Final, "Send a new job that expires sooner after its issue.";
    JobTooLarge = "JOB_TOO_LARGE", Final, "Keep the body within the limits of docs/wire.md.";
    JobIdReused = "JOB_ID_REUSED", Final, "Use a new job id for a new body.";
    SubjectMismatch = "SUBJECT_MISMATCH", Final, "Publish to the subject that names the body's operation and key id.";
    LaneMismatch = "LANE_MISMATCH", Final, "Publish bulk jobs under mpc.bulk and all others under mpc.job.";
    UnsupportedLane = "UNSUPPORTED_LANE", Final, "Use the lane interactive or bulk, or leave the field out.";
    UnsupportedCurve = "UNSUPPORTED_CURVE", Final, "Use secp256k1 or ed25519.";
    UnsupportedOperation = "UNSUPPORTED_OPERATION", Final, "Use an operation that docs/wire.md lists.";
    UnsupportedMethod = "UNSUPPORTED_METHOD", Final, "Use the method mta or default.";
    CurveMismatch = "CURVE_MISMATCH", Final, "Name the curve that the key was generated on.";
    InvalidDigest = "INVALID_DIGEST", Final, "Send a digest of exactly 32 bytes as 64 lower-case hex digits.";
    InvalidMessage = "INVALID_MESSAGE", Final, "Send a digest for secp256k1, or a base64 message within the limit for ed25519.";
    InvalidBatch = "INVALID_BATCH", Final, "Send 1 to 128 items, and no digest, message or path beside them.";
    InvalidPath = "INVALID_PATH", Final, "Send a path such as m/0/1 of at most 16 steps, on secp256k1 only.";
    HardenedPath = "HARDENED_PATH", Final, "Use non-hardened steps; no party holds the whole key that hardened ones need.";
    InvalidLabel = "INVALID_LABEL", Final, "Use a label of at most 128 bytes without control characters.";
    PublicKeyMismatch = "PUBLIC_KEY_MISMATCH", Final, "Name the public key that the nodes attest for this key id.";
    InvalidKdf = "INVALID_KDF", Final, "Use KDF parameters within the limits of docs/wire.md.";
    UnknownWorkerKey = "UNKNOWN_WORKER_KEY", Final, "Get the current worker key from the operators and send a new job sealed to it.";
    SealBroken = "SEAL_BROKEN", Final, "Seal the secrets of exactly this job to the named worker key.";
    WrongPassword = "WRONG_PASSWORD", Final, "Ask for the password again; attempts are counted.";
    CorruptShare = "CORRUPT_SHARE", Final, "Send the encryptedShare exactly as it was returned.";
    CorruptSecretStore = "CORRUPT_SECRET_STORE", Final, "Send the secretStore exactly as it was returned.";
    ShareMismatch = "SHARE_MISMATCH", Final, "Send the encryptedShare and secretStore that belong to this key id.";
    UnknownKey = "UNKNOWN_KEY", Final, "Check the key id; the nodes hold no such key.";
    KeyNotReady = "KEY_NOT_READY", Final, "Wait for the result of the key's generation and send a new job.";
    KeyRetired = "KEY_RETIRED", Final, "Use the key id that replaced this one.";
    KeyLocked = "KEY_LOCKED", Final, "Stop using this share and recover the key; a cryptographic check failed.";
    KeyFrozen = "KEY_FROZEN", Final, "Have the key's owner lift the freeze.";
    KeyDestroyed = "KEY_DESTROYED", Final, "Nothing can be done; the key was destroyed.";
    KeyUnconfirmed = "KEY_UNCONFIRMED", Final, "Ask the operators; a node was restored from a backup, and the other one does not confirm the key.";
    ShareOutdated = "SHARE_OUTDATED", Final, "Have the node's operator restore a newer backup; what it holds of this key is not its current share.";
    StaleShare = "STALE_SHARE", Final, "Use the newest encryptedShare and secretStore of the key.";
    TooManyAttempts = "TOO_MANY_ATTEMPTS", Final, "Wait until the lockout is over before the next password attempt.";
    RecoveryPending = "RECOVERY_PENDING", Final, "Send a new recover job when the waiting time is over, or cancel the recovery if it is not meant.";
    ProtocolAbort = "PROTOCOL_ABORT", Final, "Ask the operators; a party sent what an honest one cannot.";
    PoisonJob = "POISON_JOB", Final, "Report the job id to the operators; it ended its workers repeatedly.";
    Internal = "INTERNAL", Final, "Report the job id to the operators.";
    NodeUnavailable = "NODE_UNAVAILABLE", Retry, "Send a new job when the nodes answer again.";
    KeyBusy = "KEY_BUSY", Retry, "Send fewer jobs for this key at a time.";
    Overloaded = "OVERLOADED", Retry, "Send the job again later.";
    RateLimited = "RATE_LIMITED", Retry, "Send fewer jobs a minute, or have the operators of both nodes raise the rate.";
}

impl core::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}
