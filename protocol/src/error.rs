//! What can go wrong, by whose fault it is.

use crate::Party;

/// Why a run ended without a result. No variant ever carries a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Abort {
    /// The caller of this crate passed something unusable: a share of the wrong curve, a path too long.
    #[error("invalid input: {0}")]
    InvalidInput(&'static str),
    /// A peer sent something that an honest one cannot send.
    #[error("{culprit} failed the check `{check}`{}", if *ban { " (the key must be locked)" } else { "" })]
    Peer {
        /// Who sent it.
        culprit: Party,
        /// True only for the checks marked **lock** in docs/protocol.md: their failure leaks bits of long-lived
        /// OT state, so the key must be locked durably before anything else happens.
        ban: bool,
        /// The check's name, as in docs/protocol.md.
        check: &'static str,
    },
    /// An error in this crate.
    #[error("bug: {0}")]
    Bug(&'static str),
}

impl Abort {
    /// A failed check that ends this attempt only.
    #[must_use]
    pub const fn peer(culprit: Party, check: &'static str) -> Self {
        Self::Peer { culprit, ban: false, check }
    }

    /// A failed check after which the key must be locked for good (docs/protocol.md, sections 3 and 4).
    #[must_use]
    pub const fn lock(culprit: Party, check: &'static str) -> Self {
        Self::Peer { culprit, ban: true, check }
    }

    /// Must the key be locked?
    #[must_use]
    pub const fn is_ban(&self) -> bool {
        matches!(self, Self::Peer { ban: true, .. })
    }

    /// The failed check's name, or the fault's own name where no check failed.
    #[must_use]
    pub const fn check(&self) -> &'static str {
        match self {
            Self::InvalidInput(_) => "invalid_input",
            Self::Peer { check, .. } => check,
            Self::Bug(_) => "bug",
        }
    }
}

/// Result of a protocol step.
pub type Result<T> = core::result::Result<T, Abort>;
