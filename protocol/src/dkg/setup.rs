//! What the parties agree on before they start, and the order in which they stand.

use crate::curve::Group;
use crate::transcript::{PROTOCOL_REVISION, Tag, hash};
use crate::{Party, Result};
use ed25519_dalek::VerifyingKey;

/// What the three parties agree on before they start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who we are.
    pub party: Party,
    /// The id of the key that comes out.
    pub key_id: [u8; 16],
    /// The new shares' epoch.
    pub epoch: u32,
    /// SHA-256 of the signed job that asked for it.
    pub job_digest: [u8; 32],
    /// Node 1's pinned identity.
    pub node1: VerifyingKey,
    /// Node 2's pinned identity.
    pub node2: VerifyingKey,
}

impl Setup {
    pub(super) const fn identity_of(&self, party: Party) -> Option<&VerifyingKey> {
        match party {
            Party::Client => None,
            Party::Node1 => Some(&self.node1),
            Party::Node2 => Some(&self.node2),
        }
    }

    /// Applies `check` to each of the two others' messages.
    pub(super) fn each<M, T>(&self, messages: [M; 2], mut check: impl FnMut(Party, M) -> Result<T>) -> Result<[T; 2]> {
        let ([p, q], [m, n]) = (self.party.others(), messages);
        Ok([check(p, m)?, check(q, n)?])
    }

    /// The session id of a key generation.
    pub(super) fn sid<C: Group>(&self, [n1, n2, n3]: &[[u8; 32]; 3]) -> [u8; 32] {
        let Self { key_id, epoch, job_digest, .. } = self;
        let curve = C::CURVE.name().as_bytes();
        hash(
            Tag::DKG_SID,
            &[&PROTOCOL_REVISION.to_be_bytes(), curve, key_id, &epoch.to_be_bytes(), job_digest, n1, n2, n3],
        )
    }

    /// Own value and those of the others, in the order of the parties' points.
    pub(super) fn in_order<T>(&self, own: T, [first, second]: [T; 2]) -> [T; 3] {
        match self.party {
            Party::Client => [own, first, second],
            Party::Node1 => [first, own, second],
            Party::Node2 => [first, second, own],
        }
    }
}
