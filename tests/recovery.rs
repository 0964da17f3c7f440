//! Recovery and refresh, through the whole service: the key stays, its shares do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{
    Deployment, Forge, PATIENCE, QUICK, digest, material, message, password, secrets, stored_only, wait_until_empty,
};
use ed25519_dalek::Verifier;
use k256::ecdsa::signature::hazmat::PrehashVerifier;
use std::time::Duration;
use trefoil::client::{Backend, ClientError, Making, NewKey, OldKey, SignedRequest, SigningMaterial};
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Curve, ErrorCode, Failure, KeyId, Method, OrderedState, Outcome, SignInput};
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

fn job_code(error: &ClientError) -> ErrorCode {
    match error {
        ClientError::Job(failure) => failure.code,
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

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_password_and_a_lost_share_end_with_a_recovery() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let old = generated(&backend, Curve::Ed25519).await;
    // Somebody guessed until node 1 let in no more.
    let share = material(&old);
    while refused(backend.validate(&share, other_password(), true).await) != ErrorCode::TooManyAttempts {}
    assert_eq!(refused(backend.validate(&share, password(), true).await), ErrorCode::TooManyAttempts);
    // Nothing is left of the key but its id: then the nodes' word is what there is.
    let known =
        OldKey { key_id: old.key.key_id, curve: Curve::Ed25519, public_key: None, chain_code: None, epoch: None };
    let recovered = backend.recover(&known, QUICK, other_password(), &service.authoriser).await.unwrap();
    assert_eq!(recovered.key.public_key, old.key.public_key);
    backend.committed(&recovered.key, PATIENCE).await.unwrap();
    signs(&backend, &material(&recovered), Curve::Ed25519, &old.key.public_key, other_password()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_replaced_is_refused_and_stays_as_it_is() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let (key, other) = (generated(&backend, Curve::Ed25519).await, generated(&backend, Curve::Secp256k1).await);
    let (known, share) = (OldKey::from(&key.key), material(&key));
    let unchanged = async || {
        assert_eq!(backend.public_key(key.key.key_id).await.unwrap().transcript, key.key.transcript);
        signs(&backend, &share, Curve::Ed25519, &key.key.public_key, password()).await;
    };

    // A recovery without consent, with the initiator's own, with a stranger's, with an authoriser's for another job.
    let recovery = || backend.recovery(&known, QUICK, password(), Duration::from_secs(20)).unwrap();
    let run = async |request: SignedRequest| match backend.run(&request).await.unwrap().outcome {
        Outcome::Error { error } => error.code,
        Outcome::Ok { .. } => panic!("done"),
    };
    assert_eq!(run(recovery()).await, ErrorCode::NotAuthorised);
    for wrong in [&service.initiator, &nkeys::KeyPair::new_user()] {
        let mut request = recovery();
        request.authorise(wrong).unwrap();
        assert_eq!(run(request).await, ErrorCode::NotAuthorised);
    }
    let (mut consented, mut moved) = (recovery(), recovery());
    consented.authorise(&service.authoriser).unwrap();
    for header in ["Trefoil-Authoriser", "Trefoil-Authoriser-Signature"] {
        moved.headers.insert(header, consented.headers.get(header).unwrap().clone());
    }
    assert_eq!(run(moved).await, ErrorCode::NotAuthorised);
    let recover = async |known: &OldKey| refused(backend.recover(known, QUICK, password(), &service.authoriser).await);
    assert_eq!(recover(&OldKey { key_id: KeyId([7; 16]), ..known.clone() }).await, ErrorCode::UnknownKey);
    assert_eq!(recover(&OldKey { curve: Curve::Secp256k1, ..known.clone() }).await, ErrorCode::CurveMismatch);
    let limited = service.backend_with(&[("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap())]).await;
    let foreign = limited.recover(&known, QUICK, password(), &service.authoriser).await;
    assert_eq!(refused(foreign), ErrorCode::NotPermitted);
    unchanged().await;

    // A refresh without the right password and share.
    let refresh = async |share: &SigningMaterial, password, known: &OldKey| {
        refused(backend.refresh(known, share, password, Some(other_password()), QUICK).await)
    };
    assert_eq!(refresh(&share, other_password(), &known).await, ErrorCode::WrongPassword);
    let mut mixed = share.clone();
    mixed.encrypted_share = other.encrypted_share.clone();
    assert_eq!(refresh(&mixed, password(), &known).await, ErrorCode::ShareMismatch);
    mixed.encrypted_share = share.encrypted_share.clone();
    mixed.encrypted_share[150] ^= 1;
    assert_eq!(refresh(&mixed, password(), &known).await, ErrorCode::CorruptShare);
    mixed.encrypted_share = share.encrypted_share.clone();
    mixed.secret_store[150] ^= 1;
    assert_eq!(refresh(&mixed, password(), &known).await, ErrorCode::CorruptSecretStore);
    let wrong_curve = OldKey { curve: Curve::Secp256k1, ..known.clone() };
    assert_eq!(refresh(&share, password(), &wrong_curve).await, ErrorCode::CurveMismatch);
    let reply = Forge::new(&backend).reply;
    for lacking in [
        Secrets { encrypted_share: None, ..secrets(&share) },
        Secrets { secret_store: None, ..secrets(&share) },
        Secrets { password: None, ..secrets(&share) },
    ] {
        let lifetime = Duration::from_secs(20);
        let request = backend.jobs().refresh(known.key_id, known.curve, QUICK, &lacking, &reply, lifetime).unwrap();
        assert_eq!(run(request).await, ErrorCode::SealBroken);
    }
    unchanged().await;

    // A frozen key stays what it is, a destroyed one is gone.
    backend.order(key.key.key_id, OrderedState::Frozen, None).await.unwrap();
    assert_eq!(recover(&known).await, ErrorCode::KeyFrozen);
    assert_eq!(refresh(&share, password(), &known).await, ErrorCode::KeyFrozen);
    backend.order(key.key.key_id, OrderedState::Active, None).await.unwrap();
    unchanged().await;
    backend.order(key.key.key_id, OrderedState::Destroyed, Some(&service.authoriser)).await.unwrap();
    assert_eq!(recover(&known).await, ErrorCode::KeyDestroyed);
    assert_eq!(refresh(&share, password(), &known).await, ErrorCode::KeyDestroyed);
}

/// The result is stored, and no node has committed: what is left is the job in the queue, or the key's next use.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_becomes_the_key_by_redelivery_or_by_its_first_use() {
    let mut service = Deployment::impatient(1);
    let backend = service.backend_with(&[("TREFOIL_JOB_LIFETIME_SECONDS", "60".to_owned())]).await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let curve = Curve::Ed25519;
    let mut key = generated(&backend, curve).await;
    let public_key = key.key.public_key.clone();
    for (recovery, what) in [
        (true, "redelivery"),
        (false, "redelivery"),
        (true, "sign"),
        (false, "validate"),
        (false, "public-key"),
        (false, "recover"),
        (true, "recover"),
    ] {
        let known = OldKey::from(&key.key);
        let (making, request) = if recovery {
            let mut request = backend.recovery(&known, QUICK, password(), backend.lifetime()).unwrap();
            request.authorise(&service.authoriser).unwrap();
            (Making::Recovery(&known), request)
        } else {
            let share = material(&key);
            (Making::Refresh(&known), backend.refreshment(&known, &share, password(), None, QUICK).unwrap())
        };
        let result = stored_only(&mut service, &backend, &request).await;
        let mut new = backend.made(&request, making, result).unwrap();
        service.kill("worker1");
        if what != "redelivery" {
            jetstream.get_stream("MPC_JOBS").await.unwrap().purge().await.unwrap();
        }
        // Node 1 decides: to sign and to validate, node 2 need not be there.
        let alone = matches!(what, "sign" | "validate");
        service.start_node("node1");
        if !alone {
            service.start_node("node2");
        }
        service.start_worker("worker1");
        match what {
            "redelivery" => wait_until_empty(&jetstream).await,
            "sign" => signs(&backend, &material(&new), curve, &public_key, password()).await,
            "validate" => loop {
                match backend.validate(&material(&new), password(), false).await {
                    // The worker takes jobs a moment before it answers questions.
                    Err(ClientError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                    valid => break valid.unwrap(),
                }
            },
            // Which asks for nothing else.
            "public-key" => drop(backend.committed(&new.key, PATIENCE).await.unwrap()),
            _ => {
                // The next recovery of the old shares finds that there are newer ones already, and starts from those.
                let next = backend.recover(&known, QUICK, password(), &service.authoriser).await;
                if recovery {
                    let refused = failure(next);
                    assert_eq!((refused.code, refused.new_key_id), (ErrorCode::KeyRetired, Some(new.key.key_id)));
                } else {
                    new = next.unwrap();
                    assert_eq!(Some(new.key.epoch), known.epoch.map(|epoch| epoch + 2));
                }
            }
        }
        let stale = if recovery { ErrorCode::KeyRetired } else { ErrorCode::StaleShare };
        let old = backend.sign(&material(&key), Method::Default, &input(curve), password()).await;
        assert_eq!(refused(old), if what == "recover" { ErrorCode::KeyRetired } else { stale }, "{what}");
        if alone {
            service.start_node("node2");
        }
        // Whatever finished it at node 1: node 2 follows.
        new.key = backend.committed(&new.key, PATIENCE).await.unwrap();
        signs(&backend, &material(&new), curve, &public_key, password()).await;
        wait_until_empty(&jetstream).await;
        key = new;
    }
}

/// Whatever comes first, each job has an end, one share of the key signs, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_a_time_each_ends_and_one_share_lives() {
    let service = Deployment::start(2);
    let backend = service.backend().await;
    let key = generated(&backend, Curve::Ed25519).await;
    let (known, share) = (OldKey::from(&key.key), material(&key));
    let sign = |key: SigningMaterial| {
        let backend = &backend;
        async move { backend.sign(&key, Method::Default, &message("m"), password()).await }
    };
    let refresh = || backend.refresh(&known, &share, password(), None, QUICK);
    let recover = || backend.recover(&known, QUICK, password(), &service.authoriser);
    let (made, signed) = futures::join!(
        futures::future::join_all((0..6).map(async |i| if i % 2 == 0 { refresh().await } else { recover().await })),
        futures::future::join_all((0..12).map(|_| sign(share.clone()))),
    );
    let ended = [ErrorCode::StaleShare, ErrorCode::KeyRetired];
    for signed in signed {
        assert!(signed.as_ref().map_or_else(|error| ended.contains(&job_code(error)), |_| true), "{signed:?}");
    }
    let (new, lost): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    for error in lost {
        assert!(ended.contains(&refused(error)));
    }
    // Shares that were made and replaced at once are of no use either; the last ones are the key.
    let mut new: Vec<NewKey> = new.into_iter().map(Result::unwrap).collect();
    new.sort_by_key(|new| new.key.epoch);
    let last = new.pop().expect("one of them came first");
    backend.committed(&last.key, PATIENCE).await.unwrap();
    signs(&backend, &material(&last), Curve::Ed25519, &key.key.public_key, password()).await;
    for old in new.iter().map(material).chain([share.clone()]) {
        assert!(ended.contains(&refused(sign(old).await)));
    }
}
