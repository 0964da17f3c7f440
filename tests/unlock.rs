//! Workers that keep unwrapped data keys for a while: what a kept one does, and what it must not do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, PASSWORD, QUICK, digest, material, message, new_key, password};
use std::time::Duration;
use support::process::Process;
use trefoil::client::{Backend, ClientError, OldKey, SigningMaterial};
use trefoil::vault::Password;
use trefoil::wire::{Batch, Curve, ErrorCode, KdfParams, Method, OrderedState, SignInput};
use zeroize::Zeroizing;

const KEPT: [bool; 1] = [true];
const DERIVED: [bool; 1] = [false];

/// One worker that keeps data keys for so many seconds, and says how it came to each.
struct Service {
    deployment: Deployment,
    backend: Backend,
    /// Lines of the worker's log that were looked at.
    seen: usize,
}

impl Service {
    async fn new(seconds: u32) -> Self {
        let mut deployment = Deployment::new();
        deployment.worker_settings.push(("TREFOIL_UNLOCK_CACHE_SECONDS", seconds.to_string()));
        deployment.worker_settings.push(("RUST_LOG", "info,trefoil::worker=debug".to_owned()));
        for name in ["node1", "node2"] {
            deployment.start_node(name);
        }
        deployment.start_worker("worker1");
        let backend = deployment.backend().await;
        Self { deployment, backend, seen: 0 }
    }

    /// Signs; whether with a data key that was kept.
    async fn signs(&mut self, key: &SigningMaterial) -> [bool; 1] {
        self.sign(key, PASSWORD).await.unwrap();
        self.opened()
    }

    /// The next share that was opened: whether with a data key that was kept.
    fn opened(&mut self) -> [bool; 1] {
        let (seen, line) = self.deployment.process("worker1").wait_for_after(self.seen, "share opened");
        self.seen = seen;
        assert!(line.contains("kept=true") || line.contains("kept=false"), "{line}");
        [line.contains("kept=true")]
    }

    async fn sign(&self, key: &SigningMaterial, password: &[u8]) -> Result<(), ErrorCode> {
        let password = Password::new(Zeroizing::new(password.to_vec())).unwrap();
        match self.backend.sign(key, Method::Default, &input(key), password).await {
            Ok(_) => Ok(()),
            Err(ClientError::Job(failure)) => Err(failure.code),
            Err(other) => panic!("{other}"),
        }
    }

    async fn wrong(&self, key: &SigningMaterial, guesses: std::ops::Range<u8>) {
        for guess in guesses {
            assert_eq!(self.sign(key, &[guess]).await, Err(ErrorCode::WrongPassword), "guess {guess}");
        }
    }
}

fn input(key: &SigningMaterial) -> SignInput {
    if key.public_key.len() == 32 { message("m") } else { digest(1) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_data_key_signs_for_the_right_password_only() {
    let mut service = Service::new(3_600).await;
    for curve in [Curve::Secp256k1, Curve::Ed25519] {
        let key = new_key(&service.backend, curve).await;
        let other = new_key(&service.backend, curve).await;
        assert_eq!(service.signs(&key).await, DERIVED, "the first time");
        assert_eq!(service.signs(&key).await, KEPT);
        let batch = Batch::new(vec![input(&key); 12]).unwrap();
        service.backend.sign_batch(&key, Method::Default, &batch, password()).await.unwrap();
        assert_eq!(service.opened(), KEPT);
        assert_eq!(service.signs(&other).await, DERIVED, "another key");
        // Wrong is wrong, and ends it.
        service.wrong(&key, 0..1).await;
        assert_eq!(service.signs(&key).await, DERIVED);
        assert_eq!(service.signs(&other).await, KEPT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_1_counts_as_ever() {
    let mut service = Service::new(3_600).await;
    let key = new_key(&service.backend, Curve::Ed25519).await;
    assert_eq!(service.signs(&key).await, DERIVED);
    // A kept one gives the attempts back, as a derived one does.
    for _ in 0..11 {
        assert_eq!(service.signs(&key).await, KEPT);
    }
    service.wrong(&key, 0..9).await;
    assert_eq!(service.signs(&key).await, DERIVED);
    assert_eq!(service.signs(&key).await, KEPT);
    // The first of these ten meets a kept one, and is charged with the others.
    service.wrong(&key, 0..10).await;
    assert_eq!(service.sign(&key, PASSWORD).await, Err(ErrorCode::TooManyAttempts));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_ends_with_its_use() {
    let mut service = Service::new(3_600).await;
    let new = service.backend.generate(Curve::Secp256k1, QUICK, password()).await.unwrap();
    let made = service.backend.committed(&new.key, Duration::from_secs(30)).await.unwrap();
    let key = material(&new);
    assert_eq!(service.signs(&key).await, DERIVED);
    assert_eq!(service.signs(&key).await, KEPT);
    // An order ends it, whatever the order is.
    for state in [OrderedState::Frozen, OrderedState::Active] {
        service.backend.order(key.key_id, state, None).await.unwrap();
    }
    assert_eq!(service.signs(&key).await, DERIVED);
    // A changed password makes another store, also where the password is the same.
    let store = service.backend.change_password(&key, password(), password(), QUICK).await.unwrap();
    let changed = SigningMaterial { secret_store: store, ..key.clone() };
    assert_eq!(service.signs(&changed).await, DERIVED);
    assert_eq!(service.signs(&key).await, DERIVED);
    assert_eq!(service.signs(&changed).await, KEPT);
    // A damaged share is a damaged share.
    let mut damaged = key.clone();
    damaged.encrypted_share[200] ^= 1;
    assert_eq!(service.sign(&damaged, PASSWORD).await, Err(ErrorCode::CorruptShare));
    assert_eq!(service.signs(&key).await, DERIVED, "a refusal ends it");
    // New shares.
    let old = OldKey::from(&made);
    let refreshed = service.backend.refresh(&old, &key, password(), None, QUICK).await.unwrap();
    service.backend.committed(&refreshed.key, Duration::from_secs(30)).await.unwrap();
    assert_eq!(service.sign(&key, PASSWORD).await, Err(ErrorCode::StaleShare));
    assert_eq!(service.signs(&material(&refreshed)).await, DERIVED);
    assert_eq!(service.signs(&material(&refreshed)).await, KEPT);
    let authoriser = &service.deployment.authoriser;
    service.backend.order(key.key_id, OrderedState::Destroyed, Some(authoriser)).await.unwrap();
    assert_eq!(service.sign(&material(&refreshed), PASSWORD).await, Err(ErrorCode::KeyDestroyed));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_for_longer_or_where_it_saves_nothing() {
    let mut service = Service::new(1).await;
    let key = new_key(&service.backend, Curve::Ed25519).await;
    assert_eq!(service.signs(&key).await, DERIVED);
    tokio::time::sleep(Duration::from_millis(1_001)).await;
    assert_eq!(service.signs(&key).await, DERIVED);
    let machine_made = || Password::new(Zeroizing::new(vec![7; 32])).unwrap();
    let mut service = Service::new(3_600).await;
    let new = service.backend.generate(Curve::Ed25519, KdfParams::Hkdf, machine_made()).await.unwrap();
    for _ in 0..2 {
        service.sign(&material(&new), &[7; 32]).await.unwrap();
        assert_eq!(service.opened(), DERIVED);
    }
    let mut service = Service::new(0).await;
    let key = new_key(&service.backend, Curve::Ed25519).await;
    for _ in 0..3 {
        assert_eq!(service.signs(&key).await, DERIVED);
    }
}

/// Where no memory can be locked, nothing is kept in memory that is not: the worker does not start, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_lock_memory_says_so() {
    let mut service = Deployment::new();
    let worker = |service: &Deployment, name: &str| {
        let log = service.path(&format!("{name}.log"));
        // Root may lock as much as it wants, unless it gives that up.
        let mut limited = std::process::Command::new("sh");
        limited.args([
            "-c",
            "ulimit -l 0; [ $(id -u) -ne 0 ] || exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock \"$0\"; exec \"$0\"",
        ]);
        limited.arg(support::binary("trefoil-worker")).envs(service.worker_env("limited"));
        Process::spawn(name, limited, &log)
    };
    service.worker_settings.push(("TREFOIL_UNLOCK_CACHE_SECONDS", "60".to_owned()));
    let mut refused = worker(&service, "refused");
    assert_eq!(refused.wait().code(), Some(1));
    assert!(refused.log().contains("unlock_cache_seconds: 64 KiB of memory cannot be locked"), "{}", refused.log());
    service.worker_settings.clear();
    let mut without = worker(&service, "without");
    without.wait_for("ready");
    assert!(without.terminate().success());
}
