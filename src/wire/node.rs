//! Calls from a worker to a node, inside the Noise channel: postcard after one version byte.

use crate::wire::{
    Base64, Curve, EpochStatement, ErrorCode, Fixed, InitiatorId, JobState, KeyEntry, KeyId, ListedState, SignedJob,
};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

mod name;

/// First byte of every call and reply.
pub const NODE_VERSION: u8 = 3;

/// `Vec<u8>` as bytes with a length, not as a sequence of numbers.
pub mod blob {
    use core::fmt;
    use serde::{Deserializer, Serializer, de};

    /// Writes the bytes.
    ///
    /// # Errors
    /// The serialiser's.
    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// The deserialiser's.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        d.deserialize_bytes(Visitor)
    }
}

/// Name of a session at a node, 16 random bytes.
pub type SessionId = [u8; 16];

/// A call.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Always [`NODE_VERSION`].
    pub version: u8,
    /// When the worker stops waiting, unix milliseconds.
    pub deadline: u64,
    /// What is asked for.
    pub request: NodeRequest,
}

/// Opens a signing session. Every field but the job is the worker's word; the job is the initiator's.
#[derive(Debug, Serialize, Deserialize)]
pub struct SignOpen {
    /// The job.
    pub job: SignedJob,
    /// The client's contribution to the session id.
    pub contribution: [u8; 32],
    /// The epoch of the client's share.
    pub epoch: u32,
    /// The client's OT state (secp256k1), zero for ed25519.
    pub ot_id: [u8; 32],
    /// Transcript hash T of the client's share.
    pub transcript: [u8; 32],
    /// Stream sequence of the worker's lease; a hint.
    pub lease_token: u64,
    /// Whether the worker has looked for a result of this job, and found none.
    pub looked: bool,
    /// OPRF input, ristretto255.
    pub blinded_password: [u8; 32],
}

/// How a signing session ended at the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum SignOutcome {
    /// The signature, 64 bytes: proof that the client's share was opened.
    Signature(Fixed<64>),
    /// The signatures of a batch, in the items' order.
    Signatures(Vec<Fixed<64>>),
    /// No signature.
    Abort {
        /// The check that failed.
        check: String,
        /// Whether it locks the key.
        ban: bool,
    },
}

/// Asks for the OPRF evaluation of one password, outside of any signing. Every field but the job is the worker's word.
#[derive(Debug, Serialize, Deserialize)]
pub struct PasswordOpen {
    /// The job: `validate-password`, `validate-share`, `change-password` or `refresh`.
    pub job: SignedJob,
    /// The epoch of the client's share.
    pub epoch: u32,
    /// Transcript hash T of the client's share.
    pub transcript: [u8; 32],
    /// OPRF input, ristretto255.
    pub blinded_password: [u8; 32],
}

/// What came of a password.
#[derive(Debug, Serialize, Deserialize)]
pub enum PasswordOutcome {
    /// It opened the secretStore.
    Opened {
        /// The data key's prover's signature over `vault::opened_statement`.
        proof: Fixed<64>,
        /// change-password: OPRF input of the new password.
        next: Option<[u8; 32]>,
    },
    /// It did not.
    Wrong,
    /// Something else failed.
    Abort {
        /// What.
        check: String,
    },
}

/// The identities under which both nodes act in a run that makes shares: each binds its own and the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// Node 1's, Ed25519.
    pub node1: [u8; 32],
    /// Node 2's.
    pub node2: [u8; 32],
}

/// What a worker asks of a node.
#[derive(Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    /// secp256k1, node 1: open a session. Answer: `SignOpened`.
    SignOpen(SignOpen),
    /// secp256k1, node 1: m2 of docs/protocol.md. Answer: `SignRound3`.
    SignRound2 {
        /// The session.
        session: SessionId,
        /// 48,915 bytes.
        #[serde(with = "blob")]
        m2: Vec<u8>,
    },
    /// ed25519, node 1: nonces, signature share, done. Answer: `FrostSigned`.
    FrostSign {
        /// As for secp256k1.
        open: SignOpen,
        /// The client's nonce commitments.
        commitments: Fixed<64>,
    },
    /// secp256k1, node 1: open a session for a batch. Answer: `BatchOpened`.
    BatchOpen {
        /// As for one signature.
        open: SignOpen,
        /// Items of the first sub-batch, 1 to 9.
        items: u16,
    },
    /// m2 of a sub-batch, and what follows. Answer: `BatchRound`.
    BatchRound {
        /// The session.
        session: SessionId,
        /// 48,915 bytes an item.
        #[serde(with = "blob")]
        m2: Vec<u8>,
        /// Items of the next sub-batch, 1 to 9; 0 if none are left.
        next: u16,
    },
    /// ed25519, node 1: a whole batch. Answer: `BatchFrostSigned`.
    BatchFrost {
        /// As for one signature.
        open: SignOpen,
        /// The client's nonce commitments, a pair of its own for each item.
        commitments: Vec<Fixed<64>>,
    },
    /// How the session ended (m4). Answer: `Closed`.
    SignClose {
        /// The session.
        session: SessionId,
        /// How.
        outcome: SignOutcome,
    },
    /// Node 1: charge a password attempt and evaluate the OPRF. Answer: `PasswordOpened`.
    PasswordOpen(PasswordOpen),
    /// Node 1: what came of it. Answer: `PasswordClosed`.
    PasswordClose {
        /// The session.
        session: SessionId,
        /// What.
        outcome: PasswordOutcome,
    },
    /// What is known of the key that a recover or refresh job names, before its shares are dealt anew. Changes nothing. Answer:
    /// `Source`.
    Source {
        /// The job, a recovery with the authoriser's consent.
        job: SignedJob,
    },
    /// Start a key generation, recovery or refresh. Answer: `GenerateOpened`, or `ActsAs`.
    GenerateOpen {
        /// The job.
        job: SignedJob,
        /// The client's contribution to the session id.
        contribution: [u8; 32],
        /// Node 1 only: OPRF input.
        blinded_password: Option<[u8; 32]>,
        /// refresh at node 1 only: the old data key's prover's signature over `vault::refresh_statement`.
        proof: Option<Fixed<64>>,
        /// Those that the worker has in mind. None: the node's own, and the first that it knows the other by.
        identities: Option<Identities>,
    },
    /// Rounds 1 to 5 of docs/protocol.md, section 6. Answer: `GenerateRound`.
    GenerateRound {
        /// The session.
        session: SessionId,
        /// 1 to 5.
        round: u8,
        /// The round's message.
        #[serde(with = "blob")]
        payload: Vec<u8>,
    },
    /// Store the share durably. Answer: `Prepared`.
    GeneratePrepare {
        /// The session.
        session: SessionId,
        /// Node 1 only: public half of the data key's prover, Ed25519.
        prover: Option<[u8; 32]>,
    },
    /// Make a prepared attempt the key. Node 1's evidence is node 2's attestation, node 2's evidence is node 1's signed
    /// commit. Answer: `Committed`.
    Commit {
        /// The key.
        key_id: KeyId,
        /// The attempt.
        transcript: [u8; 32],
        /// The other node's signature.
        evidence: Fixed<64>,
    },
    /// Drop a prepared attempt. Node 1 decides, and only on the channel on which it was asked to prepare it; node 2 needs node
    /// 1's signed abort as evidence. Answer: `Aborted`.
    Discard {
        /// The key.
        key_id: KeyId,
        /// The attempt.
        transcript: [u8; 32],
        /// Node 2 only: node 1's signature.
        evidence: Option<Fixed<64>>,
    },
    /// A freeze, unfreeze or destroy job. Answer: `Ordered`.
    Order {
        /// The job, with the authoriser's consent where it needs one.
        job: SignedJob,
    },
    /// A job that manages keys or jobs: `keys`, `register-key` (answer: `Listed`), `cancel`, `job-status` (answer: `JobIs`),
    /// which are node 1's, or `cancel-recovery` (answer: `RecoveryCancelled`).
    Manage {
        /// The job.
        job: SignedJob,
    },
    /// A public-key job. Answer: `KeyInfo`.
    KeyInfo {
        /// The job.
        job: SignedJob,
    },
    /// Node 2: what it has prepared for a while, and has not heard a decision about. Node 1: nothing; it only says that it is there.
    /// Answer: `Undecided`.
    Undecided,
    /// Node 1: its decision about an attempt that node 2 has prepared. Answer: `Committed`, `Aborted`, or `NotCommitted` where it
    /// has prepared it, too.
    Decision {
        /// The attempt.
        attempt: UndecidedAttempt,
    },
    /// What this node knows of a key that the other one, restored from a backup, has in doubt. Answer: `EpochOf`.
    EpochOf {
        /// The key.
        key_id: KeyId,
        /// Transcript hash T of the shares that the other node has.
        transcript: [u8; 32],
        /// Of the other node's restore.
        nonce: [u8; 32],
    },
    /// The other node's answer to `EpochOf`. Answer: `Confirmed`, or `Unconfirmed` about another key that comes first.
    ConfirmEpoch {
        /// What it says.
        statement: EpochStatement,
        /// Its signature.
        signature: Fixed<64>,
    },
}

/// An attempt that node 2 has prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndecidedAttempt {
    /// The key's owner.
    pub initiator: InitiatorId,
    /// What node 2 attested.
    pub statement: KeyStatement,
}

/// What a node says about a key: its attestation's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatement {
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
    #[serde(with = "blob")]
    pub public_key: Vec<u8>,
    /// BIP-32 chain code.
    pub chain_code: [u8; 32],
    /// Transcript hash T.
    pub transcript: [u8; 32],
    /// The node's signature over the attestation of these fields and the initiator.
    pub signature: Fixed<64>,
}

/// A registered key, as node 1 tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// The key.
    pub key_id: KeyId,
    /// Its curve.
    pub curve: Curve,
    /// 33 or 32 bytes.
    #[serde(with = "blob")]
    pub public_key: Vec<u8>,
    /// Its label.
    pub label: Option<String>,
    /// Unix milliseconds.
    pub created_at: u64,
    /// Its state.
    pub state: ListedState,
    /// Which generation of its shares.
    pub epoch: u32,
    /// The key that it replaced.
    pub source_key_id: Option<KeyId>,
    /// The key that replaced it.
    pub successor: Option<KeyId>,
}

impl From<ListedKey> for KeyEntry {
    fn from(key: ListedKey) -> Self {
        Self {
            key_id: key.key_id,
            curve: key.curve,
            public_key: HEXLOWER.encode(&key.public_key),
            label: key.label,
            created_at: key.created_at,
            state: key.state,
            epoch: key.epoch,
            source_key_id: key.source_key_id,
            new_key_id: key.successor,
        }
    }
}

/// A node's answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum NodeReply {
    /// To `SignOpen`.
    SignOpened {
        /// The session.
        session: SessionId,
        /// 8,884 bytes.
        #[serde(with = "blob")]
        m1: Vec<u8>,
        /// OPRF evaluation.
        evaluation: [u8; 32],
    },
    /// To `SignRound2`.
    SignRound3 {
        /// 40,243 bytes.
        #[serde(with = "blob")]
        m3: Vec<u8>,
    },
    /// To `FrostSign`.
    FrostSigned {
        /// The session.
        session: SessionId,
        /// Node 1's nonce commitments.
        commitments: Fixed<64>,
        /// Node 1's signature share.
        share: [u8; 32],
        /// OPRF evaluation.
        evaluation: [u8; 32],
    },
    /// To `BatchOpen`.
    BatchOpened {
        /// The session.
        session: SessionId,
        /// 8,884 bytes an item of the first sub-batch.
        #[serde(with = "blob")]
        m1: Vec<u8>,
        /// OPRF evaluation.
        evaluation: [u8; 32],
    },
    /// To `BatchRound`.
    BatchRound {
        /// 40,243 bytes an item of this sub-batch.
        #[serde(with = "blob")]
        m3: Vec<u8>,
        /// 8,884 bytes an item of the next one.
        #[serde(with = "blob")]
        m1: Vec<u8>,
    },
    /// To `BatchFrost`.
    BatchFrostSigned {
        /// The session.
        session: SessionId,
        /// Node 1's nonce commitments and signature share for each item.
        shares: Vec<(Fixed<64>, [u8; 32])>,
        /// OPRF evaluation.
        evaluation: [u8; 32],
    },
    /// To `SignClose`.
    Closed,
    /// To `PasswordOpen`.
    PasswordOpened {
        /// The session.
        session: SessionId,
        /// OPRF evaluation.
        evaluation: [u8; 32],
    },
    /// To `PasswordClose`.
    PasswordClosed {
        /// OPRF evaluation of the new password, if there was one.
        next: Option<[u8; 32]>,
    },
    /// To `Source`.
    Source {
        /// What the node attested of the committed attempt.
        statement: KeyStatement,
        /// Of client, node 1 and node 2: 33 or 32 bytes each.
        verifying_shares: [Base64; 3],
        /// The node's signature over the `Decision` that the attempt is committed.
        committed: Fixed<64>,
        /// Where the results are, `mpc.result.…`, of jobs that prepared new shares of this key: one of them may be stored, and wait
        /// for its commit.
        prepared: Vec<String>,
    },
    /// To `GenerateOpen`.
    GenerateOpened {
        /// The session.
        session: SessionId,
        /// The node's contribution to the session id.
        contribution: [u8; 32],
        /// Node 1 only: OPRF evaluation.
        evaluation: Option<[u8; 32]>,
    },
    /// To `GenerateOpen` with another identity of this node: the one under which it acts. Nothing was begun.
    ActsAs {
        /// Ed25519.
        identity: [u8; 32],
    },
    /// To `GenerateRound`.
    GenerateRound {
        /// The round's message.
        #[serde(with = "blob")]
        payload: Vec<u8>,
    },
    /// To `GeneratePrepare`.
    Prepared(KeyStatement),
    /// To `Commit`.
    Committed {
        /// Over the `Decision`.
        signature: Fixed<64>,
    },
    /// To `Discard`.
    Aborted {
        /// Over the `Decision`.
        signature: Fixed<64>,
    },
    /// To `Order`.
    Ordered {
        /// Over the `StateStatement`.
        signature: Fixed<64>,
    },
    /// To `Manage`: registered keys.
    Listed {
        /// In the order of their ids.
        keys: Vec<ListedKey>,
        /// There are more, after this one.
        next: Option<KeyId>,
    },
    /// To `Manage`: how far the ledger has a job; `Cancelled`, `Started` or `Unknown`.
    JobIs(JobState),
    /// To `Manage`: the key has no waiting recovery any more.
    RecoveryCancelled {
        /// Over the `CancelStatement`.
        signature: Fixed<64>,
    },
    /// To `KeyInfo`.
    KeyInfo {
        /// What the node attested.
        statement: KeyStatement,
        /// The node's signature over the `Decision` that the attempt is committed.
        committed: Fixed<64>,
        /// As in `Source`.
        prepared: Vec<String>,
    },
    /// To what opens a signing session: an earlier one got as far as the password attempt, so the job may have its result; look first. No
    /// session was opened.
    Known,
    /// The shares that are asked for are prepared, not committed: where the result is of the job that made them, which holds the
    /// evidence to commit them.
    NotCommitted {
        /// `mpc.result.…` of the job that made the shares.
        result_subject: String,
    },
    /// This node was restored from a backup, and must hear of the key from the other one first: `EpochOf` there, then
    /// `ConfirmEpoch` here.
    Unconfirmed {
        /// The key.
        key_id: KeyId,
        /// Transcript hash T of the shares that are here.
        transcript: [u8; 32],
        /// Of this restore.
        nonce: [u8; 32],
    },
    /// To `Undecided`.
    Undecided {
        /// At most 64; others have their turn another time.
        attempts: Vec<UndecidedAttempt>,
    },
    /// To `EpochOf`.
    EpochOf {
        /// What this node knows of the key.
        statement: EpochStatement,
        /// Over that.
        signature: Fixed<64>,
    },
    /// To `ConfirmEpoch`: heard. Whether the key can be used is for the next request to find out.
    Confirmed,
    /// No.
    Refused {
        /// Why.
        code: ErrorCode,
        /// For the sender of the job.
        message: String,
        /// `TOO_MANY_ATTEMPTS`, `RATE_LIMITED`, `RECOVERY_PENDING`: when the next one is let in, unix milliseconds.
        retry_at: Option<u64>,
        /// `KEY_RETIRED`: the key that replaced this one.
        successor: Option<KeyId>,
    },
}
