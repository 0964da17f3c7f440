//! What a backend checks before it believes a result: both nodes' attestations and commits of a key, and each signature.

use super::shares::Making;
use crate::wire::{
    Attestation, Attestations, Batch, CancelStatement, Curve, Decision, DecisionKind, Fixed, InitiatorId, KeyId,
    KeyResult, KeyState, OrderedState, RecoveryCancelled, SignInput, SignatureResult, StateResult, StateStatement,
};
use data_encoding::HEXLOWER;
use ed25519_dalek::VerifyingKey;
use k256::ecdsa::signature::hazmat::PrehashVerifier;
use k256::ecdsa::{RecoveryId, Signature as EcdsaSignature, VerifyingKey as EcdsaKey};
use trefoil_protocol::derive::{DerivationPath, derive_public};

/// The nodes' Ed25519 identities, pinned: handed over by their operators, never taken from a message.
#[derive(Debug, Clone)]
pub struct NodeIdentities {
    /// The co-signer's: one, and while it changes it the other.
    pub node1: Vec<VerifyingKey>,
    /// The recovery node's, the same.
    pub node2: Vec<VerifyingKey>,
}

/// A result that must not be believed. Somebody between the nodes and this process altered it, or a pinned identity is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// The key is not the one that was asked about.
    #[error("the result is about another key")]
    OtherKey,
    /// New shares are not of the key that they were to replace.
    #[error("the new shares are of another key than the old ones: keep the old share, and do not use the new")]
    AnotherKey,
    /// A node did not sign this public key.
    #[error("{0} did not attest this public key: do not use it, and check the pinned node identities")]
    NotAttested(&'static str),
    /// A node did not sign that it brought the key into this state.
    #[error("{0} did not sign that it carried out this order")]
    NotOrdered(&'static str),
    /// The result says that the key is active, and a node did not sign that.
    #[error("{0} did not sign that this key is committed: do not use it")]
    NotCommitted(&'static str),
    /// Not a key of its curve.
    #[error("the public key is not a point of its curve")]
    InvalidKey,
    /// The signature does not verify.
    #[error("the signature is not valid: {0}")]
    InvalidSignature(&'static str),
    /// The sealed secrets do not open, or are another job's.
    #[error("the sealed secrets of the result do not open: {0}")]
    SealBroken(String),
    /// The result lacks what its operation returns.
    #[error("the result is not one of this operation")]
    WrongShape,
}

/// A public key that both nodes attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestedKey {
    /// Whose it is, as the nodes attested.
    pub initiator: InitiatorId,
    /// The key.
    pub key_id: KeyId,
    /// After a recovery: the key that it replaced.
    pub source_key_id: Option<KeyId>,
    /// Its curve.
    pub curve: Curve,
    /// Which generation of its shares.
    pub epoch: u32,
    /// 33 bytes SEC1 compressed (secp256k1) or 32 bytes (ed25519).
    pub public_key: Vec<u8>,
    /// BIP-32 chain code.
    pub chain_code: [u8; 32],
    /// Transcript hash of the run that made the shares.
    pub transcript: [u8; 32],
    /// Digest of the job that made the shares.
    pub generated_by: [u8; 32],
    /// Whether both nodes have committed.
    pub state: KeyState,
    /// The proof.
    pub attestations: Attestations,
    /// The proof that it is active, where it is.
    pub commits: Option<Attestations>,
}

/// Checks that both nodes attested this key for this initiator, and that both signed its commit if it is said to be active. `job` is the digest of the job that the result answers, and
/// the one that made the key unless the result names another.
///
/// # Errors
/// [`Untrusted`].
pub fn attested_key(
    nodes: &NodeIdentities,
    initiator: &InitiatorId,
    key_id: KeyId,
    job: [u8; 32],
    key: &KeyResult,
) -> Result<AttestedKey, Untrusted> {
    if key.key_id != key_id {
        return Err(Untrusted::OtherKey);
    }
    let public_key = HEXLOWER.decode(key.public_key.as_bytes()).map_err(|_| Untrusted::InvalidKey)?;
    let usable = match key.curve {
        Curve::Secp256k1 => public_key.len() == 33 && EcdsaKey::from_sec1_bytes(&public_key).is_ok(),
        Curve::Ed25519 => ed25519_key(&public_key).is_some(),
    };
    if !usable {
        return Err(Untrusted::InvalidKey);
    }
    let generated_by = key.generated_by.map_or(job, |Fixed(digest)| digest);
    let statement = Attestation {
        initiator: initiator.clone(),
        job_digest: generated_by,
        key_id,
        source_key_id: key.source_key_id,
        epoch: key.epoch,
        curve: key.curve,
        public_key: public_key.clone(),
        chain_code: key.chain_code.0,
        transcript: key.transcript.0,
    };
    for (name, identity, signature) in
        [("node 1", &nodes.node1, &key.attestations.node1), ("node 2", &nodes.node2, &key.attestations.node2)]
    {
        if !statement.verify_any(identity, &signature.0) {
            return Err(Untrusted::NotAttested(name));
        }
    }
    let commits = match key.state {
        KeyState::Prepared => None,
        KeyState::Active => Some(verified_commits(nodes, key)?),
    };
    Ok(AttestedKey {
        initiator: initiator.clone(),
        key_id,
        source_key_id: key.source_key_id,
        curve: key.curve,
        epoch: key.epoch,
        public_key,
        chain_code: key.chain_code.0,
        transcript: key.transcript.0,
        generated_by,
        state: key.state,
        attestations: key.attestations.clone(),
        commits,
    })
}

/// Checks that new shares are what their job was to make: of the key that they replace, with everything that is known of it
/// unchanged but the epoch, and under the right id. What both nodes attested is checked before.
///
/// # Errors
/// [`Untrusted::AnotherKey`].
pub fn replaces(making: Making<'_>, key: &AttestedKey) -> Result<(), Untrusted> {
    let (old, source) = match making {
        Making::Generation => {
            return if key.source_key_id.is_none() { Ok(()) } else { Err(Untrusted::AnotherKey) };
        }
        Making::Recovery(old) => (old, Some(old.key_id)),
        Making::Refresh(old) => (old, None),
    };
    // What a recovery replaces may have been refreshed since its epoch was seen last.
    let next = old.epoch.is_none_or(|epoch| match making {
        Making::Refresh(_) => epoch.checked_add(1) == Some(key.epoch),
        _ => key.epoch > epoch,
    });
    let same = key.source_key_id == source
        && key.curve == old.curve
        && old.public_key.as_ref().is_none_or(|public_key| *public_key == key.public_key)
        && old.chain_code.is_none_or(|chain_code| chain_code == key.chain_code);
    if same && next { Ok(()) } else { Err(Untrusted::AnotherKey) }
}

/// Checks that both nodes brought this key into this state for this job.
///
/// # Errors
/// [`Untrusted`].
pub fn state(
    nodes: &NodeIdentities,
    initiator: &InitiatorId,
    job_digest: [u8; 32],
    key_id: KeyId,
    state: OrderedState,
    result: &StateResult,
) -> Result<(), Untrusted> {
    let statement = StateStatement { initiator: initiator.clone(), job_digest, key_id, state };
    let StateResult { state: said, attestations: Attestations { node1, node2 } } = result;
    for (name, identity, signature) in [("node 1", &nodes.node1, node1), ("node 2", &nodes.node2, node2)] {
        if *said != state || !statement.verify_any(identity, &signature.0) {
            return Err(Untrusted::NotOrdered(name));
        }
    }
    Ok(())
}

/// Verifies that both nodes say that a cancel-recovery job ended the key's waiting recovery.
///
/// # Errors
/// [`Untrusted::NotOrdered`].
pub fn recovery_cancelled(
    nodes: &NodeIdentities,
    initiator: &InitiatorId,
    job_digest: [u8; 32],
    key_id: KeyId,
    result: &RecoveryCancelled,
) -> Result<(), Untrusted> {
    let statement = CancelStatement { initiator: initiator.clone(), job_digest, key_id };
    let Attestations { node1, node2 } = &result.attestations;
    for (name, identity, signature) in [("node 1", &nodes.node1, node1), ("node 2", &nodes.node2, node2)] {
        if !statement.verify_any(identity, &signature.0) {
            return Err(Untrusted::NotOrdered(name));
        }
    }
    Ok(())
}

/// Both nodes' signed commits of a key. Without them a key may be lost: whoever relays the result may have dropped the attempt.
fn verified_commits(nodes: &NodeIdentities, key: &KeyResult) -> Result<Attestations, Untrusted> {
    let decision =
        Decision { kind: DecisionKind::Committed, key_id: key.key_id, epoch: key.epoch, transcript: key.transcript.0 };
    let commits = key.commits.as_ref().ok_or(Untrusted::NotCommitted("node 1"))?;
    for (name, identity, signature) in
        [("node 1", &nodes.node1, &commits.node1), ("node 2", &nodes.node2, &commits.node2)]
    {
        if !decision.verify_any(identity, &signature.0) {
            return Err(Untrusted::NotCommitted(name));
        }
    }
    Ok(commits.clone())
}

/// The public key that signatures of `input` verify under: the key itself, or its child along the input's path.
///
/// # Errors
/// [`Untrusted::InvalidKey`] if the path cannot be derived from this key.
pub fn signing_key(public_key: &[u8], chain_code: &[u8; 32], input: &SignInput) -> Result<Vec<u8>, Untrusted> {
    match input {
        SignInput::Secp256k1 { path: Some(path), .. } => {
            let path = DerivationPath::parse(path).map_err(|_| Untrusted::InvalidKey)?;
            let child = derive_public(public_key, chain_code, &path).map_err(|_| Untrusted::InvalidKey)?;
            Ok(child.public_key.to_vec())
        }
        _ => Ok(public_key.to_vec()),
    }
}

/// Checks a sign result against the key that the caller knows to be attested, and the input that it asked to sign.
///
/// # Errors
/// [`Untrusted`].
pub fn signature(
    public_key: &[u8],
    chain_code: &[u8; 32],
    input: &SignInput,
    result: &SignatureResult,
) -> Result<(), Untrusted> {
    let key = signing_key(public_key, chain_code, input)?;
    if result.curve != input.curve() || result.public_key != HEXLOWER.encode(&key) {
        return Err(Untrusted::OtherKey);
    }
    if input.curve() == Curve::Secp256k1 && result.recovery_id.is_none() {
        return Err(Untrusted::InvalidSignature("the recovery id is missing"));
    }
    signature_bytes(&key, input, &result.signature.0, result.recovery_id)
}

/// Checks a batch's signatures: as many as there are inputs, and each by [`signature`] against its own.
///
/// # Errors
/// [`Untrusted`].
pub fn signatures(
    public_key: &[u8],
    chain_code: &[u8; 32],
    batch: &Batch,
    results: &[SignatureResult],
) -> Result<(), Untrusted> {
    if results.len() != batch.items().len() {
        return Err(Untrusted::WrongShape);
    }
    let mut each = batch.items().iter().zip(results);
    each.try_for_each(|(input, result)| signature(public_key, chain_code, input, result))
}

/// Checks 64 signature bytes under a public key: ECDSA over the digest (low s, and the recovery id if there is one recovers the
/// key), or strict EdDSA over the message. A path in `input` is ignored: `key` is the key that signed.
///
/// # Errors
/// [`Untrusted::InvalidKey`] or [`Untrusted::InvalidSignature`].
pub fn signature_bytes(
    key: &[u8],
    input: &SignInput,
    signature: &[u8; 64],
    recovery_id: Option<u8>,
) -> Result<(), Untrusted> {
    match input {
        SignInput::Secp256k1 { digest, .. } => ecdsa(key, digest, signature, recovery_id),
        SignInput::Ed25519 { message } => {
            let key = ed25519_key(key).ok_or(Untrusted::InvalidKey)?;
            key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
                .map_err(|_| Untrusted::InvalidSignature("it does not fit key and message"))
        }
    }
}

fn ecdsa(key: &[u8], digest: &[u8; 32], signature: &[u8; 64], recovery_id: Option<u8>) -> Result<(), Untrusted> {
    let invalid = Untrusted::InvalidSignature;
    let key = EcdsaKey::from_sec1_bytes(key).map_err(|_| Untrusted::InvalidKey)?;
    let parsed = EcdsaSignature::from_slice(signature).map_err(|_| invalid("r or s is out of range"))?;
    if parsed.normalize_s() != parsed {
        return Err(invalid("s is not low"));
    }
    key.verify_prehash(digest, &parsed).map_err(|_| invalid("it does not fit key and digest"))?;
    if let Some(id) = recovery_id {
        let recovered = RecoveryId::from_byte(id)
            .and_then(|id| EcdsaKey::recover_from_prehash(digest, &parsed, id).ok())
            .ok_or(invalid("the recovery id recovers no key"))?;
        if recovered != key {
            return Err(invalid("the recovery id recovers another key"));
        }
    }
    Ok(())
}

pub(super) fn ed25519_key(bytes: &[u8]) -> Option<VerifyingKey> {
    let key = VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()?;
    (!key.is_weak()).then_some(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;
    use crate::client::OldKey;
    use ed25519_dalek::{Signer, SigningKey};
    use k256::ecdsa::SigningKey as EcdsaSigningKey;

    fn nodes() -> (SigningKey, SigningKey) {
        (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]))
    }

    fn attested() -> (NodeIdentities, InitiatorId, KeyResult) {
        let (node1, node2) = nodes();
        let initiator: InitiatorId = nkeys::KeyPair::new_user().public_key().parse().unwrap();
        let public_key = SigningKey::from_bytes(&[3; 32]).verifying_key().to_bytes().to_vec();
        let statement = Attestation {
            initiator: initiator.clone(),
            job_digest: [4; 32],
            key_id: KeyId([5; 16]),
            source_key_id: None,
            epoch: 1,
            curve: Curve::Ed25519,
            public_key: public_key.clone(),
            chain_code: [6; 32],
            transcript: [7; 32],
        };
        let key = KeyResult {
            key_id: KeyId([5; 16]),
            source_key_id: None,
            curve: Curve::Ed25519,
            epoch: 1,
            public_key: HEXLOWER.encode(&public_key),
            chain_code: Fixed([6; 32]),
            transcript: Fixed([7; 32]),
            generated_by: None,
            state: KeyState::Prepared,
            attestations: Attestations { node1: Fixed(statement.sign(&node1)), node2: Fixed(statement.sign(&node2)) },
            commits: None,
        };
        let pinned = NodeIdentities { node1: vec![node1.verifying_key()], node2: vec![node2.verifying_key()] };
        (pinned, initiator, key)
    }

    #[test]
    fn every_attested_field_is_bound() {
        let (pinned, initiator, key) = attested();
        let check = |key: &KeyResult| attested_key(&pinned, &initiator, KeyId([5; 16]), [4; 32], key);
        assert_eq!(check(&key).unwrap().public_key.len(), 32);
        let mut other = key.clone();
        other.public_key = HEXLOWER.encode(SigningKey::from_bytes(&[9; 32]).verifying_key().as_bytes());
        assert_eq!(check(&other), Err(Untrusted::NotAttested("node 1")));
        for change in [
            (|k| k.epoch = 2) as fn(&mut KeyResult),
            |k| k.chain_code = Fixed([0; 32]),
            |k| k.transcript = Fixed([0; 32]),
            |k| k.generated_by = Some(Fixed([0; 32])),
            |k| k.source_key_id = Some(KeyId([1; 16])),
            |k| k.attestations.node1 = k.attestations.node2,
        ] {
            let mut other = key.clone();
            change(&mut other);
            assert_eq!(check(&other), Err(Untrusted::NotAttested("node 1")));
        }
        let mut other = key.clone();
        other.attestations.node2 = other.attestations.node1;
        assert_eq!(check(&other), Err(Untrusted::NotAttested("node 2")));
        let mut other = key.clone();
        other.key_id = KeyId([0; 16]);
        assert_eq!(check(&other), Err(Untrusted::OtherKey));
        let mut other = key;
        other.public_key = "00".repeat(32); // a point of small order
        assert_eq!(check(&other), Err(Untrusted::InvalidKey));
    }

    #[test]
    fn new_shares_must_be_of_the_key_that_they_replace() {
        let (pinned, initiator, result) = attested();
        let new = attested_key(&pinned, &initiator, KeyId([5; 16]), [4; 32], &result).unwrap();
        let old = OldKey { epoch: Some(0), ..OldKey::from(&new) };
        assert_eq!(replaces(Making::Generation, &new), Ok(()));
        assert_eq!(replaces(Making::Refresh(&old), &new), Ok(()));
        // A recovery names what it replaced, nothing else does.
        let recovered = AttestedKey { key_id: KeyId([6; 16]), source_key_id: Some(old.key_id), ..new.clone() };
        assert_eq!(replaces(Making::Recovery(&old), &recovered), Ok(()));
        let another = Err(Untrusted::AnotherKey);
        assert_eq!(replaces(Making::Recovery(&old), &new), another);
        assert_eq!(replaces(Making::Recovery(&OldKey { key_id: KeyId([7; 16]), ..old.clone() }), &recovered), another);
        assert_eq!(replaces(Making::Refresh(&old), &recovered), another);
        assert_eq!(replaces(Making::Generation, &recovered), another);
        for other in [
            OldKey { public_key: Some(vec![9; 32]), ..old.clone() },
            OldKey { chain_code: Some([0; 32]), ..old.clone() },
            OldKey { curve: Curve::Secp256k1, ..old.clone() },
            OldKey { epoch: Some(1), ..old.clone() },
        ] {
            assert_eq!(replaces(Making::Refresh(&other), &new), another);
            assert_eq!(replaces(Making::Recovery(&other), &recovered), another);
        }
        // Since its owner saw it last the key may have been refreshed; what the owner has to refresh is of one epoch.
        let later = |key: &AttestedKey| AttestedKey { epoch: 3, ..key.clone() };
        assert_eq!(replaces(Making::Recovery(&old), &later(&recovered)), Ok(()));
        assert_eq!(replaces(Making::Refresh(&old), &later(&new)), another);
        // Where nothing is left but the id, the nodes' word counts.
        let unknown = OldKey { public_key: None, chain_code: None, epoch: None, ..old };
        assert_eq!(replaces(Making::Recovery(&unknown), &recovered), Ok(()));
    }

    #[test]
    fn an_active_key_needs_the_commits_of_both_nodes() {
        let (pinned, initiator, mut key) = attested();
        let check = |key: &KeyResult| attested_key(&pinned, &initiator, KeyId([5; 16]), [4; 32], key);
        let (node1, node2) = nodes();
        let commits = |kind, key_id, epoch, transcript| {
            let decision = Decision { kind, key_id, epoch, transcript };
            Some(Attestations { node1: Fixed(decision.sign(&node1)), node2: Fixed(decision.sign(&node2)) })
        };
        let (kind, id, transcript) = (DecisionKind::Committed, KeyId([5; 16]), [7; 32]);
        key.state = KeyState::Active;
        for worthless in [
            None,
            commits(DecisionKind::Aborted, id, 1, transcript),
            commits(kind, KeyId([6; 16]), 1, transcript),
            commits(kind, id, 2, transcript),
            commits(kind, id, 1, [8; 32]),
            Some(key.attestations.clone()),
        ] {
            key.commits = worthless;
            assert_eq!(check(&key), Err(Untrusted::NotCommitted("node 1")));
        }
        let good = commits(kind, id, 1, transcript);
        key.commits = good.clone();
        assert_eq!(check(&key).unwrap().commits, good);
        // One node does not speak for both.
        if let Some(commits) = &mut key.commits {
            commits.node2 = commits.node1;
        }
        assert_eq!(check(&key), Err(Untrusted::NotCommitted("node 2")));
        key.state = KeyState::Prepared;
        assert_eq!(check(&key).unwrap().commits, None);
    }

    #[test]
    fn ecdsa_wants_low_s_and_the_right_recovery_id() {
        let secret = EcdsaSigningKey::from_slice(&[8; 32]).unwrap();
        let key = secret.verifying_key().to_sec1_point(true).as_bytes().to_vec();
        let input = SignInput::Secp256k1 { digest: [9; 32], path: None };
        let (signed, id) = secret.sign_prehash_recoverable(&[9; 32]);
        let bytes: [u8; 64] = signed.to_bytes().into();
        signature_bytes(&key, &input, &bytes, Some(id.to_byte())).unwrap();
        signature_bytes(&key, &input, &bytes, None).unwrap();
        assert!(signature_bytes(&key, &input, &bytes, Some(id.to_byte() ^ 1)).is_err());
        let high: [u8; 64] =
            EcdsaSignature::from_scalars(signed.r().to_bytes(), (-*signed.s()).to_bytes()).unwrap().to_bytes().into();
        assert_eq!(signature_bytes(&key, &input, &high, None), Err(Untrusted::InvalidSignature("s is not low")));
        let other = SignInput::Secp256k1 { digest: [1; 32], path: None };
        assert!(signature_bytes(&key, &other, &bytes, None).is_err());
    }

    #[test]
    fn a_sign_result_must_name_the_expected_key() {
        let secret = SigningKey::from_bytes(&[3; 32]);
        let key = secret.verifying_key().to_bytes();
        let input = SignInput::Ed25519 { message: b"m".to_vec() };
        let mut result = SignatureResult {
            curve: Curve::Ed25519,
            method: crate::wire::Method::Default,
            signature: Fixed(secret.sign(b"m").to_bytes()),
            recovery_id: None,
            public_key: HEXLOWER.encode(&key),
            path: None,
        };
        signature(&key, &[0; 32], &input, &result).unwrap();
        result.public_key = "11".repeat(32);
        assert_eq!(signature(&key, &[0; 32], &input, &result), Err(Untrusted::OtherKey));
    }
}
