//! Canaries: whatever the service does with passwords and shares, none of them can be read anywhere afterwards. Not in a log, with every
//! level of it switched on, not in a file of JetStream's, not in a node's database; neither as it is nor in hex or base64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, PATIENCE, QUICK, digest, material, message};
use support::canary::{Canary, files, search};
use trefoil::client::{Backend, ClientError, NewKey, OldKey, SigningMaterial};
use trefoil::vault::Password;
use trefoil::wire::{Curve, ErrorCode, KdfParams, Method, OrderedState};
use zeroize::Zeroizing;

/// The passwords, by what they are for.
const PASSWORDS: &[(&str, &[u8])] = &[
    ("the first password", b"canary-first-7f3a91c2"),
    ("a wrong password", b"canary-wrong-0b52e6d8"),
    ("a changed password", b"canary-changed-c19d44aa"),
    ("a recovery's password", b"canary-recovered-5e8f0713"),
    ("a refresh's password", b"canary-refreshed-a6b2d95e"),
    ("a machine's password", &[0xc5; 32]),
];

fn password(number: usize) -> Password {
    Password::new(Zeroizing::new(PASSWORDS[number].1.to_vec())).unwrap()
}

/// What of a share is secret, behind the names and lengths at its beginning, which are not.
fn canaries_of(name: &str, key: &SigningMaterial) -> Vec<Canary> {
    vec![
        Canary::new(&format!("secretStore {name}"), &key.secret_store[60..]),
        Canary::new(&format!("encryptedShare {name}"), &key.encrypted_share[120..]),
        // A part of it, too, should something cut it up.
        Canary::new(&format!("a part of encryptedShare {name}"), &key.encrypted_share[140..172]),
    ]
}

fn code<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> ErrorCode {
    match outcome.unwrap_err() {
        ClientError::Job(failure) => failure.code,
        other => panic!("{other}"),
    }
}

async fn committed(backend: &Backend, new: NewKey) -> NewKey {
    let key = backend.committed(&new.key, PATIENCE).await.unwrap();
    NewKey { key, ..new }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_writes_a_readable_secret_anywhere() {
    let mut service = Deployment::new();
    service.log = "trace";
    for node in ["node1", "node2"] {
        service.start_node(node);
    }
    service.start_worker("worker1");
    let backend = service.backend().await;
    let mut canaries: Vec<_> = PASSWORDS.iter().map(|(name, secret)| Canary::new(name, secret)).collect();
    for (curve, input) in [(Curve::Secp256k1, digest(1)), (Curve::Ed25519, message("m"))] {
        let first = committed(&backend, backend.generate(curve, QUICK, password(0)).await.unwrap()).await;
        let mut key = material(&first);
        canaries.extend(canaries_of("of a new key", &key));
        backend.sign(&key, Method::Default, &input, password(0)).await.unwrap();
        assert_eq!(code(backend.sign(&key, Method::Default, &input, password(1)).await), ErrorCode::WrongPassword);
        let mut broken = key.clone();
        broken.encrypted_share[200] ^= 1;
        assert_eq!(code(backend.sign(&broken, Method::Default, &input, password(0)).await), ErrorCode::CorruptShare);
        backend.validate(&key, password(0), true).await.unwrap();
        backend.validate(&key, password(0), false).await.unwrap();
        assert_eq!(code(backend.validate(&key, password(1), false).await), ErrorCode::WrongPassword);
        key.secret_store = backend.change_password(&key, password(0), password(2), QUICK).await.unwrap();
        canaries.extend(canaries_of("after a change", &key));
        backend.order(key.key_id, OrderedState::Frozen, None).await.unwrap();
        assert_eq!(code(backend.sign(&key, Method::Default, &input, password(2)).await), ErrorCode::KeyFrozen);
        backend.order(key.key_id, OrderedState::Active, None).await.unwrap();

        let known = OldKey::from(&first.key);
        let recovered = backend.recover(&known, QUICK, password(3), &service.authoriser).await.unwrap();
        let recovered = committed(&backend, recovered).await;
        canaries.extend(canaries_of("of a recovery", &material(&recovered)));
        assert_eq!(code(backend.sign(&key, Method::Default, &input, password(2)).await), ErrorCode::KeyRetired);
        let known = OldKey::from(&recovered.key);
        let (now, next) = (password(3), Some(password(4)));
        let refreshed = backend.refresh(&known, &material(&recovered), now, next, QUICK).await.unwrap();
        let refreshed = committed(&backend, refreshed).await;
        canaries.extend(canaries_of("of a refresh", &material(&refreshed)));
        backend.sign(&material(&refreshed), Method::Default, &input, password(4)).await.unwrap();
        backend.order(refreshed.key.key_id, OrderedState::Destroyed, Some(&service.authoriser)).await.unwrap();
        let gone = backend.sign(&material(&refreshed), Method::Default, &input, password(4)).await;
        assert_eq!(code(gone), ErrorCode::KeyDestroyed);

        let machine = backend.generate(curve, KdfParams::Hkdf, password(5)).await.unwrap();
        backend.sign(&material(&machine), Method::Default, &input, password(5)).await.unwrap();
    }
    let mut log = 0;
    for name in ["node1", "node2", "worker1"] {
        assert!(service.process(name).terminate().success());
        log += service.process(name).log().len();
    }
    // It removes files while it runs.
    service.nats.kill9();
    let written = files(&[service.folder.path(), &service.nats.store()]);
    let searched = search(&written, &canaries);
    assert!(log > 50_000 && searched > log, "only {log} bytes of logs, and {searched} in all");
}
