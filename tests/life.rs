//! The life of a key beside generating and signing, through the whole service and its command line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, Forge, PATIENCE, QUICK, code, digest, message, new_key, outcome, password, secrets};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;
use trefoil::client::{ClientConfig, ClientError, SignedRequest, SigningMaterial, verify};
use trefoil::config::Settings;
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Curve, ErrorCode, KdfParams, Method, OrderedState, Outcome, StateResult};
use zeroize::Zeroizing;

fn other_password() -> Password {
    Password::new(Zeroizing::new(b"another password".to_vec())).unwrap()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> ErrorCode {
    match answer.unwrap_err() {
        ClientError::Job(failure) => failure.code,
        other => panic!("{other}"),
    }
}

/// Runs a command of the command line; its JSON and exit code.
async fn cli(mut command: Command, arguments: &[&str]) -> (Value, i32) {
    command.arg("--json").args(arguments);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    let json = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{}", String::from_utf8_lossy(&done.stderr)));
    (json, done.status.code().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_tells_everything_apart_and_gives_right_passwords_back() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    for curve in [Curve::Ed25519, Curve::Secp256k1] {
        let key = new_key(&backend, curve).await;
        let other = new_key(&backend, curve).await;
        // Far more often than wrong passwords are let in.
        for round in 0..25 {
            backend.validate(&key, password(), round % 2 == 0).await.unwrap();
        }
        let job = |share: bool, change: &dyn Fn(&mut Secrets)| -> SignedRequest {
            let mut secrets = secrets(&key);
            change(&mut secrets);
            let lifetime = Duration::from_secs(20);
            backend.jobs().validate(key.key_id, share, &secrets, &forge.reply, lifetime).unwrap()
        };
        let flip = |bytes: &mut Option<Vec<u8>>, at: usize| bytes.as_mut().unwrap()[at] ^= 1;
        // As jobs in the queue, too.
        for share in [false, true] {
            let done = outcome(&backend, &job(share, &|_| {})).await;
            assert_eq!(done.outcome, Outcome::DONE);
        }
        let cases = [
            (job(false, &|s| s.password = Some(other_password())), ErrorCode::WrongPassword),
            (job(true, &|s| s.password = Some(other_password())), ErrorCode::WrongPassword),
            (job(false, &|s| flip(&mut s.secret_store, 150)), ErrorCode::CorruptSecretStore),
            (job(true, &|s| flip(&mut s.secret_store, 150)), ErrorCode::CorruptSecretStore),
            (job(true, &|s| flip(&mut s.encrypted_share, 150)), ErrorCode::CorruptShare),
            (job(true, &|s| s.encrypted_share = Some(other.encrypted_share.clone())), ErrorCode::ShareMismatch),
            (job(false, &|s| s.secret_store = Some(other.secret_store.clone())), ErrorCode::ShareMismatch),
            (job(true, &|s| s.encrypted_share = None), ErrorCode::SealBroken),
            (job(false, &|s| s.password = None), ErrorCode::SealBroken),
        ];
        for (request, expected) in cases {
            let result = outcome(&backend, &request).await;
            assert_eq!(code(&result), expected, "{result:?}");
        }
        // The password alone does not need the share.
        let done = outcome(&backend, &job(false, &|s| s.encrypted_share = None)).await;
        assert!(matches!(done.outcome, Outcome::Ok { .. }), "{done:?}");
        let limited = service.backend_with(&[("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap())]).await;
        assert_eq!(refused(limited.validate(&key, password(), true).await), ErrorCode::NotPermitted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_by_validation_ends_soon_and_says_when_to_come_back() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    for _ in 0..10 {
        assert_eq!(refused(backend.validate(&key, other_password(), true).await), ErrorCode::WrongPassword);
    }
    let before = trefoil::clock::now_ms();
    for only in [true, false] {
        let ClientError::Job(failure) = backend.validate(&key, password(), only).await.unwrap_err() else { panic!() };
        assert_eq!(failure.code, ErrorCode::TooManyAttempts);
        let retry_at = failure.retry_at.unwrap();
        assert!(retry_at > before && retry_at <= before + 900_000, "{retry_at}");
    }
    assert_eq!(
        refused(backend.sign(&key, Method::Default, &message("m"), password()).await),
        ErrorCode::TooManyAttempts,
        "signing is behind the same limit"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_opens_and_the_old_one_does_not() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    for (curve, input) in [(Curve::Ed25519, message("m")), (Curve::Secp256k1, digest(1))] {
        let old = new_key(&backend, curve).await;
        let wrong = backend.change_password(&old, other_password(), password(), QUICK).await;
        assert_eq!(refused(wrong), ErrorCode::WrongPassword);
        let store = backend.change_password(&old, password(), other_password(), QUICK).await.unwrap();
        assert_ne!(store, old.secret_store);
        let new = SigningMaterial { secret_store: store, ..old.clone() };
        backend.sign(&new, Method::Default, &input, other_password()).await.unwrap();
        assert_eq!(refused(backend.sign(&new, Method::Default, &input, password()).await), ErrorCode::WrongPassword);
        // Only fresh shares make the old pair worthless.
        backend.sign(&old, Method::Default, &input, password()).await.unwrap();
        // To another KDF and back.
        let secret = || Password::new(Zeroizing::new(vec![0x5a; 32])).unwrap();
        let store = backend.change_password(&new, other_password(), secret(), KdfParams::Hkdf).await.unwrap();
        let machine = SigningMaterial { secret_store: store, ..old.clone() };
        backend.validate(&machine, secret(), false).await.unwrap();
        let short = backend.change_password(&machine, secret(), password(), KdfParams::Hkdf).await;
        assert_eq!(refused(short), ErrorCode::InvalidKdf);
        let store = backend.change_password(&machine, secret(), password(), QUICK).await.unwrap();
        backend.validate(&SigningMaterial { secret_store: store, ..old.clone() }, password(), false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_validates_and_changes_passwords() {
    let service = Deployment::start(1);
    std::fs::write(service.path("new"), "another password\n").unwrap();
    let (made, exit) = cli(service.cli(), &["generate", "--curve", "ed25519", "--out", "k"]).await;
    assert_eq!(exit, 0, "{made}");
    let (answer, exit) = cli(service.cli(), &["validate", "--key", "k"]).await;
    assert_eq!((exit, &answer["passwordValid"], &answer["shareValid"]), (0, &Value::Bool(true), &Value::Bool(true)));
    let (answer, exit) = cli(service.cli(), &["validate", "--key", "k", "--password-only"]).await;
    assert_eq!((exit, &answer["shareValid"]), (0, &Value::Null));
    let (answer, exit) = cli(service.cli(), &["validate", "--key", "k", "--password-file", "new"]).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("WRONG_PASSWORD")));
    let before = std::fs::read(service.path("k")).unwrap();
    let wrong = ["change-password", "--key", "k", "--password-file", "new", "--new-password-file", "new"];
    let (answer, exit) = cli(service.cli(), &wrong).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("WRONG_PASSWORD")));
    assert_eq!(std::fs::read(service.path("k")).unwrap(), before, "a refused change leaves the key file alone");
    std::fs::write(service.path("k.bak"), "of an unfinished change").unwrap();
    let (answer, exit) = cli(service.cli(), &["change-password", "--key", "k", "--new-password-file", "new"]).await;
    assert_eq!(exit, 2, "{answer}");
    assert_eq!(std::fs::read(service.path("k")).unwrap(), before);
    std::fs::remove_file(service.path("k.bak")).unwrap();
    let (answer, exit) = cli(service.cli(), &["change-password", "--key", "k", "--new-password-file", "new"]).await;
    assert_eq!((exit, &answer["changed"]), (0, &Value::Bool(true)), "{answer}");
    assert!(!service.path("k.bak").exists(), "the old file went when the new one was known to open");
    let sign = ["sign", "--key", "k", "--message", "m", "--password-file", "new"];
    let (answer, exit) = cli(service.cli(), &sign).await;
    assert_eq!((exit, &answer["verified"]), (0, &Value::Bool(true)), "{answer}");
    let (answer, exit) = cli(service.cli(), &["validate", "--key", "k"]).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("WRONG_PASSWORD")));
    assert!(!String::from_utf8_lossy(&std::fs::read(service.path("k")).unwrap()).contains("another password"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_frozen_unfrozen_and_destroyed_by_command() {
    let service = Deployment::start(1);
    for (name, seed) in [("authoriser", &service.authoriser), ("stranger", &nkeys::KeyPair::new_user())] {
        std::fs::write(service.path(name), seed.seed().unwrap()).unwrap();
    }
    let (made, exit) = cli(service.cli(), &["generate", "--curve", "ed25519", "--out", "k"]).await;
    assert_eq!(exit, 0, "{made}");
    let sign = ["sign", "--key", "k", "--message", "m"];
    let (answer, exit) = cli(service.cli(), &["freeze", "--key", "k"]).await;
    assert_eq!((exit, answer["state"].as_str()), (0, Some("frozen")), "{answer}");
    let (answer, exit) = cli(service.cli(), &sign).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("KEY_FROZEN")));
    let (answer, exit) = cli(service.cli(), &["validate", "--key", "k"]).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("KEY_FROZEN")));
    let (answer, exit) = cli(service.cli(), &["unfreeze", "--key-id", made["keyId"].as_str().unwrap()]).await;
    assert_eq!((exit, answer["state"].as_str()), (0, Some("active")), "{answer}");
    assert_eq!(cli(service.cli(), &sign).await.1, 0);

    let destroy = ["destroy", "--key", "k"];
    for (more, exit, code) in [
        (&["--authoriser-seed-file", "stranger", "--yes"][..], 1, Some("NOT_AUTHORISED")),
        (&["--authoriser-seed-file", "authoriser"][..], 2, None),
        (&["--yes"][..], 2, None),
    ] {
        let (answer, got) = cli(service.cli(), &[&destroy[..], more].concat()).await;
        assert_eq!((got, answer["error"]["code"].as_str()), (exit, code), "{answer}");
    }
    // The owner makes the job, the authoriser consents elsewhere, the owner sends it.
    assert_eq!(cli(service.cli(), &["destroy", "--key", "k", "--save-job", "job"]).await.1, 0);
    let (answer, exit) =
        cli(service.cli(), &["authorise", "--job", "job", "--authoriser-seed-file", "authoriser"]).await;
    assert_eq!((exit, &answer["op"], &answer["keyId"]), (0, &Value::from("destroy"), &made["keyId"]), "{answer}");
    assert_eq!(cli(service.cli(), &sign).await.1, 0, "not sent yet");
    let (answer, exit) = cli(service.cli(), &["destroy", "--job", "job", "--yes"]).await;
    assert_eq!((exit, answer["state"].as_str()), (0, Some("destroyed")), "{answer}");
    let (answer, exit) = cli(service.cli(), &sign).await;
    assert_eq!((exit, answer["error"]["code"].as_str()), (1, Some("KEY_DESTROYED")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_key_can_be_frozen_and_both_nodes_must_say_so() {
    let mut service = Deployment::start(1);
    let backend = service.backend().await;
    let brief = service.backend_with(&[("TREFOIL_JOB_LIFETIME_SECONDS", "4".to_owned())]).await;
    let new = backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap();
    let key = deployment::material(&new);
    backend.order(key.key_id, OrderedState::Frozen, None).await.unwrap();
    assert_eq!(refused(backend.sign(&key, Method::Default, &message("m"), password()).await), ErrorCode::KeyFrozen);
    service.kill("node2");
    assert_eq!(refused(brief.order(key.key_id, OrderedState::Active, None).await), ErrorCode::NodeUnavailable);
    service.start_node("node2");
    let done = backend.order(key.key_id, OrderedState::Active, None).await.unwrap();
    backend.sign(&key, Method::Default, &message("m"), password()).await.unwrap();
    // A state that the nodes did not sign for this very job is not believed.
    let request =
        backend.jobs().order(key.key_id, OrderedState::Frozen, &backend.reply_key().unwrap(), PATIENCE).unwrap();
    let stale = StateResult { state: OrderedState::Frozen, ..done };
    let nodes = ClientConfig::read(Settings::from_env(service.client_env())).unwrap().nodes;
    let initiator = backend.jobs().initiator();
    let checked = verify::state(&nodes, initiator, request.digest, request.key_id, OrderedState::Frozen, &stale);
    assert_eq!(checked, Err(verify::Untrusted::NotOrdered("node 1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn public_keys_are_shown_in_every_encoding() {
    let service = Deployment::start(1);
    for curve in ["secp256k1", "ed25519"] {
        let (made, exit) = cli(service.cli(), &["generate", "--curve", curve, "--out", curve]).await;
        assert_eq!(exit, 0, "{made}");
    }
    let ask = async |more: &[&str]| cli(service.cli(), &[&["public-key", "--key"], more].concat()).await;
    let (answer, exit) = ask(&["secp256k1", "--all"]).await;
    let encodings = &answer["encodings"];
    assert_eq!((exit, &encodings["sec1-compressed"]), (0, &answer["publicKey"]), "{answer}");
    let ethereum = encodings["ethereum"].as_str().unwrap();
    assert!(ethereum.starts_with("0x") && ethereum.len() == 42);
    assert!(encodings["bitcoin"].as_str().unwrap().starts_with("bc1q"));
    // The child's address is that of the key that signs along the path.
    let digest = "11".repeat(32);
    let (signed, _) = cli(service.cli(), &["sign", "--key", "secp256k1", "--digest", &digest, "--path", "m/0/1"]).await;
    let (child, exit) = ask(&["secp256k1", "--encoding", "sec1-compressed", "--path", "m/0/1"]).await;
    assert_eq!((exit, &child["encodings"]["sec1-compressed"]), (0, &signed["publicKey"]), "{child}");
    let (answer, exit) = ask(&["ed25519", "--encoding", "solana"]).await;
    assert!(exit == 0 && answer["encodings"]["solana"].as_str().unwrap().len() > 40, "{answer}");
    for wrong in [
        &["ed25519", "--encoding", "ethereum"][..],
        &["ed25519", "--all", "--path", "m/0"],
        &["secp256k1", "--all", "--path", "m/0'"],
        &["secp256k1", "--path", "m/0"],
    ] {
        assert_eq!(ask(wrong).await.1, 2, "{wrong:?}");
    }
}
