//! What the tests of the store put into it.
#![allow(dead_code, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;
use trefoil::node::store::{Attempt, GuessLimits, KeyState, LedgerEntry, Order, Quota, RedbStore, StoreError};
use trefoil::wire::{Curve, ErrorCode, Fixed, InitiatorId, KeyId, Op};
use trefoil_protocol::{Party, Secret};
use zeroize::Zeroizing;

pub const KEY: KeyId = KeyId([7; 16]);
pub const NEW: KeyId = KeyId([8; 16]);
pub const CANARY: &[u8] = b"this is the secret share of node 1";
pub const LIMITS: GuessLimits = GuessLimits { attempts: 3, lockout: Duration::from_secs(60) };

pub fn open(directory: &Path) -> Result<RedbStore, StoreError> {
    RedbStore::open(directory, Party::Node1, Secret::new([9; 32]))
}

pub fn initiator() -> InitiatorId {
    nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, [3; 32]).unwrap().public_key().parse().unwrap()
}

/// So many keys of [`initiator`].
pub fn quota(max_keys: u64) -> Quota {
    Quota { owners: vec![initiator()], max_keys }
}

pub fn attempt(transcript: u8) -> Attempt {
    Attempt {
        initiator: initiator(),
        job_id: "job-1".parse().unwrap(),
        job_digest: [1; 32],
        key_id: KEY,
        source_key_id: None,
        source_transcript: None,
        epoch: 1,
        curve: Curve::Ed25519,
        public_key: vec![5; 32],
        chain_code: [6; 32],
        transcript: [transcript; 32],
        signature: Fixed([8; 64]),
        label: None,
    }
}

/// Made from the shares `source` of [`KEY`], under another id.
pub fn recovery(transcript: u8, source: u8) -> Attempt {
    Attempt { key_id: NEW, source_key_id: Some(KEY), ..refresh(transcript, source) }
}

/// Made from the shares `source` of [`KEY`], under its own id, each by a job of its own.
pub fn refresh(transcript: u8, source: u8) -> Attempt {
    Attempt { job_digest: [transcript; 32], source_transcript: Some([source; 32]), epoch: 2, ..attempt(transcript) }
}

pub fn order(key_id: KeyId, to: KeyState, issued_at: u64) -> Order {
    Order { job: job(&format!("order-{issued_at}"), issued_at as u8), key_id, to, issued_at }
}

pub fn job(id: &str, digest: u8) -> LedgerEntry {
    let job_id = id.parse().unwrap();
    LedgerEntry { initiator: initiator(), job_id, digest: [digest; 32], op: Op::Sign, expires_at: 10_000 }
}

/// A blinded password as no other.
pub fn element() -> [u8; 32] {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(0);
    [NEXT.fetch_add(1, Ordering::Relaxed); 32]
}

pub fn secret(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

pub fn refused<T>(result: Result<T, StoreError>) -> ErrorCode {
    match result {
        Err(StoreError::Refused(code)) => code,
        Err(StoreError::Replaced { .. }) => ErrorCode::KeyRetired,
        Err(StoreError::LockedOut { .. }) => ErrorCode::TooManyAttempts,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("was not refused"),
    }
}
