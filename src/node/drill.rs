//! A drill: would this data directory, or this copy of one, bring the node back? Every share is decrypted and checked against
//! what both nodes know of it. Nothing is signed, and no byte is changed.

use super::generate::attestation;
use super::material::Material;
use super::store::{Attempt, Shares, StoppedStore, StoreError};
use crate::wire::KeyId;
use ed25519_dalek::VerifyingKey;
use std::path::Path;
use trefoil_protocol::{Party, Secret};

/// What a drill found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drilled {
    /// Shares that are whole.
    pub whole: u64,
    /// Those of them that bear the signature of a former identity of the node: whoever has that identity's seed could have signed them.
    pub former: u64,
    /// Keys that have ended, and have no share.
    pub ended: u64,
    /// Keys of a restored store that have not ended, and have no share: their data keys were gone when it was restored.
    pub lost: u64,
    /// Shares that are not whole, and why.
    pub broken: Vec<(KeyId, String)>,
}

/// Drills the data directory of a node that does not run.
///
/// # Errors
/// It cannot be read at all: it is another node's, another master key's, or open in a process.
pub fn drill(
    directory: &Path,
    role: Party,
    master: Secret<[u8; 32]>,
    identity: &VerifyingKey,
    former: &[VerifyingKey],
) -> Result<Drilled, StoreError> {
    let store = StoppedStore::open(directory)?;
    let shares = store.shares(role, master)?;
    let restored = store.quarantine()?.is_some();
    let mut drilled = Drilled::default();
    store.for_each(|stored| {
        let checked = match (stored.held, stored.state) {
            (true, _) => check(&shares, &stored.attempt, role).and_then(|()| signer(&stored.attempt, identity, former)),
            (false, Some(state)) if state.is_end() => {
                drilled.ended += 1;
                return;
            }
            (false, Some(_)) if restored => {
                drilled.lost += 1;
                return;
            }
            (false, Some(_)) => Err("its data key was destroyed".to_owned()),
            // Of a key that has other shares by now.
            (false, None) => return,
        };
        match checked {
            Ok(signer) => {
                drilled.whole += 1;
                drilled.former += u64::from(signer == Signer::Former);
            }
            Err(why) => drilled.broken.push((stored.attempt.key_id, why)),
        }
    })?;
    Ok(drilled)
}

/// Which identity of this node attested a share.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signer {
    Present,
    Former,
}

fn signer(attempt: &Attempt, identity: &VerifyingKey, former: &[VerifyingKey]) -> Result<Signer, String> {
    let attested = attestation(attempt);
    if attested.verify(identity, &attempt.signature.0) {
        Ok(Signer::Present)
    } else if attested.verify_any(former, &attempt.signature.0) {
        Ok(Signer::Former)
    } else {
        Err("this node's identity did not attest it".to_owned())
    }
}

fn check(shares: &Shares<'_>, attempt: &Attempt, role: Party) -> Result<(), String> {
    let holds = |holds: bool, otherwise: &str| if holds { Ok(()) } else { Err(otherwise.to_owned()) };
    let bytes = shares.read(attempt).map_err(|error| error.to_string())?;
    // Reading a share compares it with its verifying share.
    let material =
        Material::from_bytes(&bytes).ok_or("the share does not parse, or does not match its verifying share")?;
    let share = &material.share;
    holds(
        share.party() == role
            && share.key_id() == attempt.key_id.0
            && share.epoch() == attempt.epoch
            && share.transcript() == attempt.transcript
            && share.public_key() == attempt.public_key
            && share.chain_code() == attempt.chain_code,
        "the share is not the one that was attested",
    )?;
    holds(material.password.is_some() == (role == Party::Node1), "the keys that harden the password are missing")
}
