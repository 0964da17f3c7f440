//! What nodes sign about keys, and how calls to them are encoded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use nkeys::KeyPair;
use trefoil::wire::node::{Call, NODE_VERSION, NodeRequest, SignOpen};
use trefoil::wire::{
    Attestation, Curve, Decision, DecisionKind, EpochState, EpochStatement, Fixed, InitiatorId, KeyId, SignedJob,
};

fn initiator() -> InitiatorId {
    KeyPair::new_from_raw(nkeys::KeyPairType::User, [1; 32]).unwrap().public_key().parse().unwrap()
}

fn attestation() -> Attestation {
    Attestation {
        initiator: initiator(),
        job_digest: [1; 32],
        key_id: KeyId([2; 16]),
        source_key_id: None,
        epoch: 0,
        curve: Curve::Secp256k1,
        public_key: vec![3; 33],
        chain_code: [4; 32],
        transcript: [5; 32],
    }
}

#[test]
fn attestations_cover_every_field() {
    let identity = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let signature = attestation().sign(&identity);
    let verify = |a: &Attestation| a.verify(&identity.verifying_key(), &signature);
    assert!(verify(&attestation()));
    let other: InitiatorId = KeyPair::new_user().public_key().parse().unwrap();
    for changed in [
        Attestation { initiator: other, ..attestation() },
        Attestation { job_digest: [0; 32], ..attestation() },
        Attestation { key_id: KeyId([0; 16]), ..attestation() },
        Attestation { source_key_id: Some(KeyId([2; 16])), ..attestation() },
        Attestation { epoch: 1, ..attestation() },
        Attestation { curve: Curve::Ed25519, ..attestation() },
        Attestation { public_key: vec![3; 32], ..attestation() },
        Attestation { chain_code: [0; 32], ..attestation() },
        Attestation { transcript: [0; 32], ..attestation() },
    ] {
        assert!(!verify(&changed), "{changed:?}");
    }
    let decision = |kind| Decision { kind, key_id: KeyId([2; 16]), epoch: 0, transcript: [5; 32] };
    let committed = decision(DecisionKind::Committed).sign(&identity);
    assert!(decision(DecisionKind::Committed).verify(&identity.verifying_key(), &committed));
    assert!(!decision(DecisionKind::Aborted).verify(&identity.verifying_key(), &committed));
    assert!(!attestation().verify(&identity.verifying_key(), &committed));
}

#[test]
fn words_about_an_epoch_cover_every_field() {
    let word = EpochStatement {
        nonce: [1; 32],
        key_id: KeyId([2; 16]),
        epoch: 3,
        transcript: [4; 32],
        state: EpochState::Active,
        successor: None,
    };
    let identity = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let signature = word.sign(&identity);
    let verify = |word: &EpochStatement| word.verify(&identity.verifying_key(), &signature);
    assert!(verify(&word));
    for changed in [
        EpochStatement { nonce: [0; 32], ..word.clone() },
        EpochStatement { key_id: KeyId([0; 16]), ..word.clone() },
        EpochStatement { epoch: 4, ..word.clone() },
        EpochStatement { transcript: [0; 32], ..word.clone() },
        EpochStatement { state: EpochState::Locked, ..word.clone() },
        EpochStatement { successor: Some(KeyId([2; 16])), ..word.clone() },
    ] {
        assert!(!verify(&changed), "{changed:?}");
    }
    // No other statement of the same node passes for it.
    let decision = Decision { kind: DecisionKind::Committed, key_id: KeyId([2; 16]), epoch: 3, transcript: [4; 32] };
    assert!(!decision.verify(&identity.verifying_key(), &signature));
}

#[test]
fn node_calls_survive_their_encoding() {
    let open = SignOpen {
        job: SignedJob { body: vec![1, 2, 3], signature: Fixed([7; 64]), authorisation: None },
        contribution: [1; 32],
        epoch: 3,
        ot_id: [2; 32],
        transcript: [3; 32],
        lease_token: u64::MAX,
        looked: false,
        blinded_password: [4; 32],
    };
    let call = Call {
        version: NODE_VERSION,
        deadline: 12,
        request: NodeRequest::FrostSign { open, commitments: Fixed([8; 64]) },
    };
    let bytes = postcard::to_allocvec(&call).unwrap();
    assert_eq!(bytes[0], NODE_VERSION);
    let Call { request: NodeRequest::FrostSign { open, commitments }, .. } = postcard::from_bytes(&bytes).unwrap()
    else {
        panic!("another request")
    };
    assert_eq!((open.job.body, open.lease_token, commitments.0), (vec![1, 2, 3], u64::MAX, [8; 64]));
    let m2 = NodeRequest::SignRound2 { session: [1; 16], m2: vec![5; 48_915] };
    let bytes = postcard::to_allocvec(&Call { version: NODE_VERSION, deadline: 12, request: m2 }).unwrap();
    assert!(bytes.len() < 48_915 + 32, "{}", bytes.len());
}
