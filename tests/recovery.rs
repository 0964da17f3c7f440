//! Recovery and refresh, through the whole service: the key stays, its shares do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, PATIENCE, QUICK, digest, material, message, password};
use ed25519_dalek::Verifier;
use k256::ecdsa::signature::hazmat::PrehashVerifier;
use trefoil::client::{Backend, ClientError, NewKey, OldKey, SigningMaterial};
use trefoil::vault::Password;
use trefoil::wire::{Curve, ErrorCode, Failure, Method, SignInput};
use zeroize::Zeroizing;

fn other_password() -> Password {
    Password::new(Zeroizing::new(b"another password".to_vec())).unwrap()
}

fn failure<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Failure {
    match answer.unwrap_err() {
        ClientError::Job(failure) => failure,
        other => panic!("{other}"),
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> ErrorCode {
    failure(answer).code
}

fn input(curve: Curve) -> SignInput {
    match curve {
        Curve::Secp256k1 => digest(0xab),
        Curve::Ed25519 => message("after"),
    }
}

/// Signs, and verifies under a key that was known before, with nothing of this project's.
async fn signs(backend: &Backend, key: &SigningMaterial, curve: Curve, public_key: &[u8], password: Password) {
    let input = input(curve);
    let signed = backend.sign(key, Method::Default, &input, password).await.unwrap();
    match input {
        SignInput::Secp256k1 { digest, .. } => {
            let key = k256::ecdsa::VerifyingKey::from_sec1_bytes(public_key).unwrap();
            let signature = k256::ecdsa::Signature::from_slice(&signed.signature.0).unwrap();
            key.verify_prehash(&digest, &signature).unwrap();
        }
        SignInput::Ed25519 { message } => {
            let key = ed25519_dalek::VerifyingKey::from_bytes(public_key.try_into().unwrap()).unwrap();
            key.verify(&message, &ed25519_dalek::Signature::from_bytes(&signed.signature.0)).unwrap();
        }
    }
}

async fn generated(backend: &Backend, curve: Curve) -> NewKey {
    let mut new = backend.generate(curve, QUICK, password()).await.unwrap();
    new.key = backend.committed(&new.key, PATIENCE).await.unwrap();
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_recovered_and_refreshed_on_both_curves() {
    let service = Deployment::start(2);
    let backend = service.backend().await;
    for curve in [Curve::Secp256k1, Curve::Ed25519] {
        let old = generated(&backend, curve).await;
        let public_key = old.key.public_key.clone();
        let known = OldKey::from(&old.key);

        // Neither the old share nor the old password.
        let recovered = backend.recover(&known, QUICK, other_password(), &service.authoriser).await.unwrap();
        assert_ne!(recovered.key.key_id, old.key.key_id);
        assert_eq!(recovered.key.source_key_id, Some(old.key.key_id));
        assert_eq!((&recovered.key.public_key, recovered.key.chain_code), (&public_key, old.key.chain_code));
        assert_eq!(recovered.key.epoch, old.key.epoch + 1);
        let committed = backend.committed(&recovered.key, PATIENCE).await.unwrap();
        signs(&backend, &material(&recovered), curve, &public_key, other_password()).await;
        if curve == Curve::Secp256k1 {
            let child = SignInput::Secp256k1 { digest: [7; 32], path: Some("m/0/1".to_owned()) };
            backend.sign(&material(&recovered), Method::Mta, &child, other_password()).await.unwrap();
        }

        // The old share is refused everywhere, and it is said which key to use.
        let gone = failure(backend.sign(&material(&old), Method::Default, &input(curve), password()).await);
        assert_eq!((gone.code, gone.new_key_id), (ErrorCode::KeyRetired, Some(recovered.key.key_id)));
        let gone = failure(backend.public_key(old.key.key_id).await);
        assert_eq!((gone.code, gone.new_key_id), (ErrorCode::KeyRetired, Some(recovered.key.key_id)));
        assert_eq!(refused(backend.validate(&material(&old), password(), false).await), ErrorCode::KeyRetired);
        let again = failure(backend.recover(&known, QUICK, password(), &service.authoriser).await);
        assert_eq!((again.code, again.new_key_id), (ErrorCode::KeyRetired, Some(recovered.key.key_id)));
        let share = material(&old);
        let refresh = backend.refresh(&known, &share, password(), None, QUICK).await;
        assert_eq!(refused(refresh), ErrorCode::KeyRetired);

        // A refresh keeps the id; here with another password, then with the same.
        let mut newest = NewKey { key: committed, ..recovered };
        for (before, after) in [(other_password(), Some(password())), (password(), None)] {
            let known = OldKey::from(&newest.key);
            let mut refreshed = backend.refresh(&known, &material(&newest), before, after, QUICK).await.unwrap();
            assert_eq!((refreshed.key.key_id, refreshed.key.source_key_id), (newest.key.key_id, None));
            assert_eq!(refreshed.key.epoch, newest.key.epoch + 1);
            assert_eq!((&refreshed.key.public_key, refreshed.key.chain_code), (&public_key, newest.key.chain_code));
            refreshed.key = backend.committed(&refreshed.key, PATIENCE).await.unwrap();
            signs(&backend, &material(&refreshed), curve, &public_key, password()).await;
            backend.validate(&material(&refreshed), password(), false).await.unwrap();
            // What was copied before is of no use, with whatever password.
            let stale = material(&newest);
            for password in [password(), other_password()] {
                let signed = backend.sign(&stale, Method::Default, &input(curve), password).await;
                assert_eq!(refused(signed), ErrorCode::StaleShare);
            }
            assert_eq!(refused(backend.validate(&stale, password(), true).await), ErrorCode::StaleShare);
            let again = backend.refresh(&known, &stale, password(), None, QUICK).await;
            assert_eq!(refused(again), ErrorCode::StaleShare);
            newest = refreshed;
        }
    }
}
