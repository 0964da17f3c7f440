//! Why a share could not be sealed or opened.

use crate::wire::ErrorCode;

/// Why a share could not be sealed or opened. Says nothing about the secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The key commitment differs.
    #[error("the password does not open this secretStore")]
    WrongPassword,
    /// Not an encryptedShare of a known version, or changed since it was made.
    #[error("the encryptedShare is damaged")]
    CorruptShare,
    /// Not a secretStore of a known version, or changed since it was made.
    #[error("the secretStore is damaged")]
    CorruptSecretStore,
    /// The two are of different keys, epochs or attempts, or of another key than the job.
    #[error("encryptedShare and secretStore are not of one key")]
    ShareMismatch,
    /// KDF parameters out of range, or a password that the KDF does not take.
    #[error("{0}")]
    InvalidKdf(&'static str),
    /// Node 1 answered something that is not a group element.
    #[error("node 1's OPRF evaluation is not a group element")]
    BadEvaluation,
    /// A fault of this program.
    #[error("{0}")]
    Bug(&'static str),
}

impl VaultError {
    /// The code for the job's result.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::WrongPassword => ErrorCode::WrongPassword,
            Self::CorruptShare => ErrorCode::CorruptShare,
            Self::CorruptSecretStore => ErrorCode::CorruptSecretStore,
            Self::ShareMismatch => ErrorCode::ShareMismatch,
            Self::InvalidKdf(_) => ErrorCode::InvalidKdf,
            Self::BadEvaluation => ErrorCode::ProtocolAbort,
            Self::Bug(_) => ErrorCode::Internal,
        }
    }
}
