//! A node that was restored from an old backup, in the whole service: it believes the other node, says what it lacks, and an old
//! share of the client signs nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, PATIENCE, QUICK, digest, material, message, password};
use nkeys::XKey;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use trefoil::client::{Backend, ClientError, NewKey, OldKey, SigningMaterial};
use trefoil::wire::{Curve, ErrorCode, Failure, Method, OrderedState, SignInput};

/// A service whose nodes take backups.
fn backed() -> Deployment {
    let mut service = Deployment::new();
    let (folder, key) = (service.folder.path().to_owned(), XKey::new());
    std::fs::create_dir(folder.join("backups")).unwrap();
    std::fs::write(folder.join("seed"), key.seed().unwrap()).unwrap();
    service.node_settings = vec![
        ("TREFOIL_BACKUP_DIR", folder.join("backups").to_str().unwrap().to_owned()),
        ("TREFOIL_BACKUP_RECIPIENTS", key.public_key()),
        ("TREFOIL_BACKUP_SLOTS_COPY", format!("{}/{{role}}.slots", folder.display())),
    ];
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker1");
    service
}

fn operate(service: &Deployment, node: &str, arguments: &[&str]) -> Value {
    let mut command = support::command("trefoil");
    let done = command.envs(service.node_env(node)).args(arguments).arg("--json").output().unwrap();
    let told = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    assert_eq!(done.status.code(), Some(0), "{told}");
    told
}

fn backup(service: &Deployment, node: &str) -> PathBuf {
    operate(service, node, &["node", "backup"])["file"].as_str().unwrap().into()
}

/// The node loses its database, and with `slots` the slot file too, which comes back as it was copied there.
fn restore(service: &mut Deployment, node: &str, backup: &std::path::Path, slots: Option<&std::path::Path>) -> Value {
    service.kill(node);
    let data = service.path(node);
    std::fs::remove_file(data.join("store.redb")).unwrap();
    let (seed, backup) = (service.path("seed"), backup.to_str().unwrap().to_owned());
    let mut arguments = vec!["node", "restore", &backup, "--seed-file", seed.to_str().unwrap()];
    if let Some(slots) = slots {
        std::fs::remove_file(data.join("slots")).unwrap();
        arguments.extend(["--slots", slots.to_str().unwrap()]);
    }
    let told = operate(service, node, &arguments);
    let drilled = operate(service, node, &["node", "drill"]);
    assert_eq!(drilled["lost"], told["dead"], "{drilled}");
    service.start_node(node);
    assert!(service.process(node).log().contains("QUARANTINE"), "said loudly");
    let entries = operate_audit(service, node);
    assert!(entries.contains(r#""decision":"quarantined""#), "{entries}");
    told
}

fn operate_audit(service: &Deployment, node: &str) -> String {
    std::fs::read_to_string(service.path(node).join("audit.log")).unwrap()
}

fn failure<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Failure {
    match answer.unwrap_err() {
        ClientError::Job(failure) => failure,
        other => panic!("{other}"),
    }
}

fn input(curve: Curve) -> SignInput {
    if curve == Curve::Secp256k1 { digest(0xab) } else { message("after") }
}

async fn sign(backend: &Backend, key: &SigningMaterial, curve: Curve) -> Result<(), Failure> {
    match backend.sign(key, Method::Default, &input(curve), password()).await {
        Ok(_) => Ok(()),
        Err(ClientError::Job(failure)) => Err(failure),
        Err(other) => panic!("{other}"),
    }
}

async fn generated(backend: &Backend, curve: Curve) -> NewKey {
    let mut new = backend.generate(curve, QUICK, password()).await.unwrap();
    new.key = backend.committed(&new.key, PATIENCE).await.unwrap();
    new
}

/// The keys of one curve, by what happens to them after the backup.
struct Keys {
    curve: Curve,
    nothing: NewKey,
    recovered: NewKey,
    refreshed: NewKey,
    frozen: NewKey,
    destroyed: NewKey,
}

impl Keys {
    async fn make(backend: &Backend, curve: Curve) -> Self {
        let make = || generated(backend, curve);
        let (nothing, recovered, refreshed) = (make().await, make().await, make().await);
        Self { curve, nothing, recovered, refreshed, frozen: make().await, destroyed: make().await }
    }

    /// Returns the newest shares of the recovered and of the refreshed key, and a key that is new.
    async fn live_on(&self, service: &Deployment, backend: &Backend) -> (NewKey, NewKey, NewKey) {
        let old = OldKey::from(&self.recovered.key);
        let recovered = backend.recover(&old, QUICK, password(), &service.authoriser).await.unwrap();
        backend.committed(&recovered.key, PATIENCE).await.unwrap();
        let (old, share) = (OldKey::from(&self.refreshed.key), material(&self.refreshed));
        let refreshed = backend.refresh(&old, &share, password(), None, QUICK).await.unwrap();
        backend.committed(&refreshed.key, PATIENCE).await.unwrap();
        backend.order(self.frozen.key.key_id, OrderedState::Frozen, None).await.unwrap();
        backend.order(self.destroyed.key.key_id, OrderedState::Destroyed, Some(&service.authoriser)).await.unwrap();
        (recovered, refreshed, generated(backend, self.curve).await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_share_signs_nothing_after_an_old_backup_of_node_1_came_back() {
    // With the slot file as it is, and with one that is as old as the backup, and has every old data key.
    for old_slots in [false, true] {
        let mut service = backed();
        let backend = service.backend().await;
        let mut keys = Vec::new();
        for curve in [Curve::Ed25519, Curve::Secp256k1] {
            keys.push(Keys::make(&backend, curve).await);
        }
        let made = backup(&service, "node1");
        let slots = service.path("slots-of-then");
        std::fs::copy(service.path("node1.slots"), &slots).unwrap();
        let mut later = Vec::new();
        for keys in &keys {
            later.push(keys.live_on(&service, &backend).await);
        }
        let before = backend.jobs();
        let (target, reply) = (&keys[0].nothing, backend.reply_key().unwrap());
        let secrets = deployment::secrets(&material(target));
        let early = before
            .sign(target.key.key_id, Method::Default, &message("m"), &secrets, &reply, Duration::from_secs(600))
            .unwrap();

        let told = restore(&mut service, "node1", &made, old_slots.then_some(slots.as_path()));
        // Of each curve one is recovered, refreshed and destroyed; and one recovered, refreshed and made new.
        let (dead, newer) = if old_slots { (0, 0) } else { (6, 6) };
        assert_eq!((told["keys"].as_u64(), told["dead"].as_u64()), (Some(10), Some(dead)), "{told}");
        assert_eq!(told["newer"].as_u64(), Some(newer), "{told}");
        assert_eq!(told["auditLog"], "continued");

        for (keys, (recovered, refreshed, new)) in keys.iter().zip(&later) {
            let curve = keys.curve;
            for _ in 0..2 {
                let old = sign(&backend, &material(&keys.recovered), curve).await.unwrap_err();
                assert_eq!((old.code, old.new_key_id), (ErrorCode::KeyRetired, Some(recovered.key.key_id)));
                let old = sign(&backend, &material(&keys.destroyed), curve).await.unwrap_err();
                assert_eq!(old.code, ErrorCode::KeyDestroyed);
                // The share of the epoch that both others have is gone: there is no signing with any other.
                for share in [&keys.refreshed, refreshed] {
                    let stale = sign(&backend, &material(share), curve).await.unwrap_err();
                    assert_eq!(stale.code, ErrorCode::ShareOutdated, "{}", stale.message);
                }
                for unknown in [recovered, new] {
                    let lost = sign(&backend, &material(unknown), curve).await.unwrap_err();
                    assert_eq!(lost.code, ErrorCode::UnknownKey);
                }
                let frozen = sign(&backend, &material(&keys.frozen), curve).await.unwrap_err();
                assert_eq!(frozen.code, ErrorCode::KeyFrozen);
                sign(&backend, &material(&keys.nothing), curve).await.unwrap();
            }
            backend.order(keys.frozen.key.key_id, OrderedState::Active, None).await.unwrap();
            sign(&backend, &material(&keys.frozen), curve).await.unwrap();
            backend.validate(&material(&keys.nothing), password(), true).await.unwrap();
        }
        let stale = deployment::outcome(&backend, &early).await;
        assert_eq!(deployment::code(&stale), ErrorCode::JobExpired, "the ledger may have known it");
        let log = operate_audit(&service, "node1");
        for entry in ["\"op\":\"confirm\",", "\"decision\":\"confirmed\"", "SHARE_OUTDATED", "\"decision\":\"retired\""]
        {
            assert!(log.contains(entry), "{entry}");
        }
        // What was confirmed stays so, and the shares that the backup did not know are not touched.
        service.kill("node1");
        service.start_node("node1");
        sign(&backend, &material(&keys[0].nothing), Curve::Ed25519).await.unwrap();
        if !old_slots {
            let used = std::fs::read(service.path("node1").join("slots")).unwrap();
            let used = used.chunks(64).skip(1).filter(|slot| **slot != [0; 64]).count() as u64;
            assert_eq!(used, 10 - dead + newer);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_2_follows_node_1_after_an_old_backup_came_back() {
    let mut service = backed();
    let backend = service.backend().await;
    let keys = Keys::make(&backend, Curve::Ed25519).await;
    let made = backup(&service, "node2");
    let (recovered, refreshed, new) = keys.live_on(&service, &backend).await;
    let told = restore(&mut service, "node2", &made, None);
    assert_eq!((told["keys"].as_u64(), told["dead"].as_u64(), told["newer"].as_u64()), (Some(5), Some(3), Some(3)));
    // Node 1 signs without node 2.
    for key in [&recovered, &refreshed, &new, &keys.nothing] {
        sign(&backend, &material(key), Curve::Ed25519).await.unwrap();
    }
    let recover = async |key: &NewKey| {
        let old = OldKey::from(&key.key);
        backend.recover(&old, QUICK, password(), &service.authoriser).await
    };
    let renewed = recover(&keys.nothing).await.unwrap();
    backend.committed(&renewed.key, PATIENCE).await.unwrap();
    sign(&backend, &material(&renewed), Curve::Ed25519).await.unwrap();
    assert_eq!(failure(recover(&keys.recovered).await).code, ErrorCode::KeyRetired);
    assert_eq!(failure(recover(&refreshed).await).code, ErrorCode::ShareOutdated);
    assert_eq!(failure(recover(&new).await).code, ErrorCode::UnknownKey);
    assert_eq!(failure(recover(&keys.frozen).await).code, ErrorCode::KeyFrozen);
    // Frozen by its owner, and so it stays at both until the owner says otherwise.
    backend.order(keys.frozen.key.key_id, OrderedState::Active, None).await.unwrap();
    backend.public_key(keys.frozen.key.key_id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_old_backups_do_not_confirm_each_other() {
    let mut service = backed();
    let backend = service.backend().await;
    let key = generated(&backend, Curve::Ed25519).await;
    let one = backup(&service, "node1");
    let two = backup(&service, "node2");
    let later = generated(&backend, Curve::Ed25519).await;
    let (late1, before2) = (backup(&service, "node1"), two.clone());
    restore(&mut service, "node1", &one, None);
    restore(&mut service, "node2", &two, None);
    let refused = sign(&backend, &material(&key), Curve::Ed25519).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::KeyUnconfirmed, "{}", refused.message);
    // A node that knows a key which the other one has lost is not believed by it, and has nobody to ask.
    restore(&mut service, "node1", &late1, None);
    let refused = sign(&backend, &material(&later), Curve::Ed25519).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::KeyUnconfirmed, "{}", refused.message);
    assert!(before2.exists());
    // While the other node is away, the job waits for it.
    service.kill("node2");
    let short = service.backend_with(&[("TREFOIL_JOB_LIFETIME_SECONDS", "3".to_owned())]).await;
    let waited = tokio::time::timeout(Duration::from_secs(30), sign(&short, &material(&key), Curve::Ed25519)).await;
    assert_eq!(waited.unwrap().unwrap_err().code, ErrorCode::NodeUnavailable);
}
