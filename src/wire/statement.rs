//! What a node signs about a key: that it stored its share (the attestation), and what became of it.
//!
//! Every signature is Ed25519 by the node's identity over `0xFF ‖ tag ‖ 0x00 ‖ H(tag'; fields)`. The first byte keeps
//! it apart from anything a NATS server can ask a key to sign, the tag from every other signature of the same key.

use crate::wire::{Curve, InitiatorId, KeyId, OrderedState};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use trefoil_protocol::transcript::{Tag, hash};

/// The epoch of the shares that a generation makes; each reshare makes the next.
pub const FIRST_EPOCH: u32 = 1;

/// `0xFF ‖ label ‖ 0x00 ‖ digest`: the bytes under a signature.
pub(crate) fn signing_bytes(label: &str, digest: &[u8; 32]) -> Vec<u8> {
    [&[0xFF], label.as_bytes(), &[0], digest].concat()
}

/// How a node signs a statement, by its `signing_bytes`, and how that is checked.
macro_rules! signed_by_nodes {
    ($($statement:ident),*) => {$(
        impl $statement {
            /// Signs as a node.
            #[must_use]
            pub fn sign(&self, identity: &SigningKey) -> [u8; 64] {
                identity.sign(&self.signing_bytes()).to_bytes()
            }

            /// Whether a node with this identity signed exactly this.
            #[must_use]
            pub fn verify(&self, identity: &VerifyingKey, signature: &[u8; 64]) -> bool {
                identity.verify_strict(&self.signing_bytes(), &Signature::from_bytes(signature)).is_ok()
            }

            /// Whether a node signed exactly this that has one of these identities.
            #[must_use]
            pub fn verify_any(&self, identities: &[VerifyingKey], signature: &[u8; 64]) -> bool {
                identities.iter().any(|identity| self.verify(identity, signature))
            }
        }
    )*};
}
signed_by_nodes!(Attestation, StateStatement, EpochStatement, CancelStatement, Decision);

/// What both nodes sign when they have stored their shares: the attestation, and the signed `Prepared(T)` of the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// Who owns the key.
    pub initiator: InitiatorId,
    /// The digest of the job that made the shares.
    pub job_digest: [u8; 32],
    /// The key.
    pub key_id: KeyId,
    /// recover: the key that it replaces.
    pub source_key_id: Option<KeyId>,
    /// Which generation of its shares.
    pub epoch: u32,
    /// Its curve.
    pub curve: Curve,
    /// 33 or 32 bytes.
    pub public_key: Vec<u8>,
    /// BIP-32 chain code.
    pub chain_code: [u8; 32],
    /// Transcript hash T of the run that made the shares.
    pub transcript: [u8; 32],
}

impl Attestation {
    /// The bytes under the signature: 1 + 17 + 1 + 32.
    #[must_use]
    pub fn signing_bytes(&self) -> Vec<u8> {
        let source: &[u8] = self.source_key_id.as_ref().map_or(&[], |id| &id.0);
        let digest = hash(
            Tag::ATTEST,
            &[
                self.initiator.as_str().as_bytes(),
                &self.job_digest,
                &self.key_id.0,
                source,
                &self.epoch.to_be_bytes(),
                self.curve.as_str().as_bytes(),
                &self.public_key,
                &self.chain_code,
                &self.transcript,
            ],
        );
        signing_bytes("trefoil-attest-v1", &digest)
    }
}

/// What a node signs when it carried out an owner's order about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateStatement {
    /// The key's owner.
    pub initiator: InitiatorId,
    /// The digest of the job that ordered it.
    pub job_digest: [u8; 32],
    /// The key.
    pub key_id: KeyId,
    /// The state that this job brought the key into.
    pub state: OrderedState,
}

impl StateStatement {
    /// The bytes under the signature.
    #[must_use]
    pub fn signing_bytes(&self) -> Vec<u8> {
        let Self { initiator, job_digest, key_id, state } = self;
        let fields: [&[u8]; 4] = [initiator.as_str().as_bytes(), job_digest, &key_id.0, state.as_str().as_bytes()];
        signing_bytes("trefoil-state-v1", &hash(Tag::STATE, &fields))
    }
}

/// What a node knows of a key, told to the other one after that was restored from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EpochState {
    /// Nothing is committed; the shares that were asked for are prepared.
    Prepared,
    /// Signs.
    Active,
    /// Stopped by its owner.
    Frozen,
    /// A check failed.
    Locked,
    /// Another key took its place.
    Retired,
    /// Ended by its owner.
    Destroyed,
}

impl EpochState {
    /// As it enters the statement's hash.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Frozen => "frozen",
            Self::Locked => "locked",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        }
    }
}

/// A node's word about a key, for one restore of the other node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStatement {
    /// The restore's, so that no earlier word can be used again.
    pub nonce: [u8; 32],
    /// The key.
    pub key_id: KeyId,
    /// Which generation of its shares.
    pub epoch: u32,
    /// Transcript hash T of its shares.
    pub transcript: [u8; 32],
    /// Its state.
    pub state: EpochState,
    /// The key that took its place.
    pub successor: Option<KeyId>,
}

impl EpochStatement {
    /// The bytes under the signature.
    #[must_use]
    pub fn signing_bytes(&self) -> Vec<u8> {
        let Self { nonce, key_id, epoch, transcript, state, successor } = self;
        let successor: &[u8] = successor.as_ref().map_or(&[], |id| &id.0);
        let (epoch, state) = (epoch.to_be_bytes(), state.as_str().as_bytes());
        let fields: [&[u8]; 6] = [nonce, &key_id.0, &epoch, transcript, state, successor];
        signing_bytes("trefoil-epoch-v1", &hash(Tag::EPOCH, &fields))
    }
}

/// What a node signs when it has ended a key's waiting recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelStatement {
    /// The key's owner.
    pub initiator: InitiatorId,
    /// The digest of the cancel-recovery job.
    pub job_digest: [u8; 32],
    /// The key.
    pub key_id: KeyId,
}

impl CancelStatement {
    /// The bytes under the signature.
    #[must_use]
    pub fn signing_bytes(&self) -> Vec<u8> {
        let fields: [&[u8]; 3] = [self.initiator.as_str().as_bytes(), &self.job_digest, &self.key_id.0];
        signing_bytes("trefoil-recovery-cancelled-v1", &hash(Tag::RECOVERY_CANCELLED, &fields))
    }
}

/// What became of a prepared attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecisionKind {
    /// The attempt is the key.
    Committed,
    /// The attempt is void.
    Aborted,
}

/// A node's signed decision about the attempt `transcript` of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What was decided.
    pub kind: DecisionKind,
    /// The key.
    pub key_id: KeyId,
    /// Which generation of its shares.
    pub epoch: u32,
    /// Transcript hash T of the attempt.
    pub transcript: [u8; 32],
}

impl Decision {
    /// The bytes under the signature.
    #[must_use]
    pub fn signing_bytes(&self) -> Vec<u8> {
        let (tag, label) = match self.kind {
            DecisionKind::Committed => (Tag::COMMITTED, "trefoil-committed-v1"),
            DecisionKind::Aborted => (Tag::ABORTED, "trefoil-aborted-v1"),
        };
        let digest = hash(tag, &[&self.key_id.0, &self.epoch.to_be_bytes(), &self.transcript]);
        signing_bytes(label, &digest)
    }
}
