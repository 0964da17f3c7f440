//! Under which of its pinned identities each node acts now. Key generation and resharing bind both, and each node knows the other's by its own
//! settings; the worker only says which pair it has in mind, so that both mean the same one while an identity is rotated.

use ed25519_dalek::VerifyingKey;
use std::sync::{Mutex, PoisonError};
use trefoil_protocol::Party;

pub struct Acting(Mutex<[VerifyingKey; 2]>);

impl Acting {
    /// At first the first of each. `None` if one has none.
    pub fn new(node1: &[VerifyingKey], node2: &[VerifyingKey]) -> Option<Self> {
        Some(Self(Mutex::new([*node1.first()?, *node2.first()?])))
    }

    /// The pair of now, node 1's first.
    pub fn now(&self) -> [VerifyingKey; 2] {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node said that it acts under another one. True if that is pinned.
    pub fn heard(&self, node: Party, said: &[u8; 32], pinned: &[VerifyingKey]) -> bool {
        let Some(found) = pinned.iter().find(|pinned| pinned.as_bytes() == said) else { return false };
        let mut acting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [node1, node2] = &mut *acting;
        *(if node == Party::Node1 { node1 } else { node2 }) = *found;
        true
    }
}
