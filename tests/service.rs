//! The whole service as processes: every job ends in the right result, whatever goes wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{
    Deployment, Forge, PATIENCE, QUICK, code, digest, material, message, new_key, outcome, password, secrets,
    wait_until_empty,
};
use ed25519_dalek::SigningKey;
use futures::StreamExt;
use nkeys::{KeyPair, XKey};
use rand_core::OsRng;
use serde_json::json;
use std::time::{Duration, Instant};
use support::stored::contents;
use trefoil::client::{ClientError, Making, SignedRequest, SigningMaterial, random_job_id};
use trefoil::seal::{Binding, Secrets, seal};
use trefoil::vault::{DataKey, KdfPool, KeyBinding, OprfKey, Password, Vault};
use trefoil::wire::{
    Attestation, Attestations, Curve, ErrorCode, Fixed, Job, JobHeaders, JobResult, KdfParams, KeyId, KeyResult,
    KeyState, Lane, Method, Op, OrderedState, Outcome, SignInput, subject,
};
use trefoil_protocol::CurveId;
use zeroize::Zeroizing;

#[tokio::test(flavor = "multi_thread")]
async fn generates_and_signs_on_both_curves() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    for text in ["", "\0leading zero", "hello"] {
        for method in [Method::Default, Method::Mta] {
            let signed = backend.sign(&key, method, &message(text), password()).await.unwrap();
            assert_eq!(signed.method, Method::Default);
        }
    }
    let key = new_key(&backend, Curve::Secp256k1).await;
    for path in [None, Some("m".to_owned()), Some("m/0/1".to_owned()), Some("m/2147483647".to_owned())] {
        for method in [Method::Default, Method::Mta] {
            let input = SignInput::Secp256k1 { digest: [7; 32], path: path.clone() };
            // `sign` verifies under the attested key, or the child that it derives itself.
            let signed = backend.sign(&key, method, &input, password()).await.unwrap();
            assert_eq!(signed.method, Method::Mta);
        }
    }
    let secret = || Password::new(Zeroizing::new(vec![0x5a; 32])).unwrap();
    let new = backend.generate(Curve::Secp256k1, KdfParams::Hkdf, secret()).await.unwrap();
    backend.sign(&material(&new), Method::Mta, &digest(1), secret()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secrets_get_codes_of_their_own() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    for (curve, input, other_input) in
        [(Curve::Ed25519, message("m"), digest(1)), (Curve::Secp256k1, digest(1), message("m"))]
    {
        let (key, other) = (new_key(&backend, curve).await, new_key(&backend, curve).await);
        let sent = |change: &dyn Fn(&mut Secrets)| {
            let mut secrets = secrets(&key);
            change(&mut secrets);
            forge.sign(&key, &input, &secrets)
        };
        let flip = |bytes: &mut Option<Vec<u8>>, at: usize| bytes.as_mut().unwrap()[at] ^= 1;
        let wrong = |bytes: &[u8]| Some(Password::new(Zeroizing::new(bytes.to_vec())).unwrap());
        let cases = [
            (sent(&|s| s.password = wrong(b"wrong")), ErrorCode::WrongPassword),
            (sent(&|s| flip(&mut s.encrypted_share, 200)), ErrorCode::CorruptShare),
            (sent(&|s| flip(&mut s.encrypted_share, 0)), ErrorCode::CorruptShare),
            (sent(&|s| s.encrypted_share = Some(Vec::new())), ErrorCode::CorruptShare),
            (sent(&|s| flip(&mut s.secret_store, 100)), ErrorCode::CorruptSecretStore),
            (sent(&|s| s.secret_store = Some(vec![0; 5_000])), ErrorCode::CorruptSecretStore),
            (sent(&|s| s.encrypted_share = Some(other.encrypted_share.clone())), ErrorCode::ShareMismatch),
            (sent(&|s| *s = secrets(&other)), ErrorCode::ShareMismatch),
            (sent(&|s| s.password = None), ErrorCode::SealBroken),
            (forge.sign(&key, &other_input, &secrets(&key)), ErrorCode::CurveMismatch),
        ];
        for (request, expected) in cases {
            let result = outcome(&backend, &request).await;
            assert_eq!(code(&result), expected, "{result:?}");
        }
        backend.sign(&key, Method::Default, &input, password()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_jobs_get_codes_of_their_own_and_the_worker_goes_on() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let (ed, secp) = (new_key(&backend, Curve::Ed25519).await, new_key(&backend, Curve::Secp256k1).await);
    let good = || forge.sign(&ed, &message("m"), &secrets(&ed));
    let ecdsa = || forge.sign(&secp, &digest(1), &secrets(&secp));
    let payload = |name: &str, value: serde_json::Value| {
        let name = name.to_owned();
        move |body: &mut serde_json::Value| body["payload"][name] = value
    };
    let field = |name: &str, value: serde_json::Value| {
        let name = name.to_owned();
        move |body: &mut serde_json::Value| body[name] = value
    };
    let generate = |kdf: serde_json::Value| {
        let secrets = Secrets { password: Some(password()), ..Secrets::default() };
        let lifetime = Duration::from_secs(20);
        let jobs = backend.jobs();
        let made = jobs.generate(random_job_id(), Curve::Ed25519, QUICK, &secrets, &forge.reply, lifetime);
        forge.edit(&made.unwrap(), payload("kdf", kdf))
    };
    let cut = {
        let request = good();
        let body = request.body[..request.body.len() - 3].to_vec();
        forge.signed(&request, body)
    };
    let moved = {
        let (one, two) = (good(), good());
        let two: serde_json::Value = serde_json::from_slice(&two.body).unwrap();
        forge.edit(&one, payload("secrets", two["payload"]["secrets"].clone()))
    };
    let stranger_sealed = {
        let stranger = XKey::new();
        forge.edit(&good(), |body| {
            body["payload"]["secrets"]["recipientKey"] = json!(stranger.public_key());
            // Not so young that another worker might get the key yet.
            body["issuedAt"] = json!(trefoil::clock::now_ms() - 10_000);
        })
    };
    let unsigned = {
        let mut request = good();
        request.headers = async_nats::HeaderMap::new();
        request
    };
    let wrong_signer = {
        let mut request = good();
        let other = trefoil::auth::sign_job(&KeyPair::new_user(), request.body.clone()).unwrap();
        request.headers.insert("Trefoil-Signature", data_encoding::BASE64.encode(&other.signature.0));
        request
    };
    let old_header = {
        let mut request = good();
        request.headers.insert("Trefoil-Version", "2");
        request
    };
    let misplaced = {
        let mut request = good();
        request.subject = subject::job(Lane::Interactive, Op::Sign, &secp.key_id);
        request
    };
    let other_lane = {
        let mut request = good();
        request.subject = subject::job(Lane::Bulk, Op::Sign, &ed.key_id);
        request
    };
    let oversized = {
        let request = good();
        let mut body = request.body.clone();
        body.resize(300 * 1024, b' ');
        forge.signed(&request, body)
    };
    let now = trefoil::clock::now_ms();
    let times = |issued: u64, expires: u64| {
        forge.edit(&good(), move |body| {
            body["issuedAt"] = json!(issued);
            body["expiresAt"] = json!(expires);
        })
    };
    let cases = [
        (cut, ErrorCode::MalformedJob),
        (forge.edit(&good(), field("colour", json!("red"))), ErrorCode::UnknownField),
        (forge.edit(&good(), payload("colour", json!("red"))), ErrorCode::UnknownField),
        (forge.edit(&good(), field("version", json!(2))), ErrorCode::UnsupportedVersion),
        (old_header, ErrorCode::UnsupportedVersion),
        (unsigned, ErrorCode::UnsignedJob),
        (wrong_signer, ErrorCode::BadSignature),
        (misplaced, ErrorCode::SubjectMismatch),
        (other_lane, ErrorCode::LaneMismatch),
        (oversized, ErrorCode::JobTooLarge),
        (times(now - 60_000, now - 1_000), ErrorCode::JobExpired),
        (times(now + 600_000, now + 660_000), ErrorCode::JobNotYetValid),
        (times(now, now + 7_200_000), ErrorCode::JobLifetimeTooLong),
        (forge.edit(&ecdsa(), payload("digest", json!("00".repeat(31)))), ErrorCode::InvalidDigest),
        (forge.edit(&ecdsa(), payload("digest", json!("00".repeat(33)))), ErrorCode::InvalidDigest),
        (forge.edit(&ecdsa(), payload("path", json!("m/0'"))), ErrorCode::HardenedPath),
        (forge.edit(&ecdsa(), payload("path", json!("0/1"))), ErrorCode::InvalidPath),
        (forge.edit(&ecdsa(), payload("curve", json!("p256"))), ErrorCode::UnsupportedCurve),
        (forge.edit(&ecdsa(), payload("method", json!("gg20"))), ErrorCode::UnsupportedMethod),
        (forge.edit(&good(), payload("message", json!("not base64!"))), ErrorCode::InvalidMessage),
        (forge.edit(&good(), field("op", json!("export"))), ErrorCode::UnsupportedOperation),
        (forge.edit(&good(), field("lane", json!("slow"))), ErrorCode::UnsupportedLane),
        // The body says bulk, and is where it was.
        (forge.edit(&good(), field("lane", json!("bulk"))), ErrorCode::LaneMismatch),
        (generate(json!({ "name": "argon2id", "memoryKib": 4_000_000, "passes": 1 })), ErrorCode::InvalidKdf),
        (moved, ErrorCode::SealBroken),
        (stranger_sealed, ErrorCode::UnknownWorkerKey),
    ];
    let stored = || ["node1", "node2"].map(|node| contents(&service.path(node)));
    let before = stored();
    for (request, expected) in cases {
        let result = outcome(&backend, &request).await;
        assert_eq!(code(&result), expected, "{result:?}");
        assert_eq!((&result.job_id, result.job_digest), (&request.job_id, Fixed(request.digest)));
    }
    assert_eq!(stored(), before, "a job that was refused left something at a node");
    // What names nobody gets no answer, and does no harm.
    for body in ["", "null", "[]", "{}", "{\"jobId\":7}", &"[".repeat(100_000)] {
        let subject = subject::job(Lane::Interactive, Op::Sign, &ed.key_id);
        async_nats::jetstream::new(service.nats.connect().await)
            .publish(subject, body.to_owned().into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    backend.sign(&ed, Method::Default, &message("still here"), password()).await.unwrap();
    backend.sign(&secp, Method::Mta, &digest(9), password()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_decide_who_may_do_what() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;

    let stranger = service.backend_with(&[("TREFOIL_INITIATOR_SEED", KeyPair::new_user().seed().unwrap())]).await;
    let refused = |error: ClientError| match error {
        ClientError::Job(failure) => failure.code,
        other => panic!("{other}"),
    };
    // The worker knows that by itself: it takes no password apart, and asks no node, for somebody whom it does not know.
    let costly = KdfParams::Argon2id { memory_kib: 262_144, passes: 10 };
    match stranger.generate(Curve::Ed25519, costly, password()).await.unwrap_err() {
        ClientError::Job(failure) => {
            assert_eq!(failure.code, ErrorCode::UnknownInitiator);
            assert!(failure.message.contains("the workers do not know"), "{}", failure.message);
        }
        other => panic!("{other}"),
    }
    assert_eq!(refused(stranger.public_key(key.key_id).await.unwrap_err()), ErrorCode::UnknownInitiator);

    let limited = service.backend_with(&[("TREFOIL_INITIATOR_SEED", service.limited.seed().unwrap())]).await;
    let error = limited.generate(Curve::Ed25519, QUICK, password()).await.unwrap_err();
    assert_eq!(refused(error), ErrorCode::NotPermitted);
    // Somebody else's key, with everything that its owner has.
    let error = limited.sign(&key, Method::Default, &message("m"), password()).await.unwrap_err();
    assert_eq!(refused(error), ErrorCode::NotPermitted);
    let error = backend.public_key(KeyId([9; 16])).await.unwrap_err();
    assert_eq!(refused(error), ErrorCode::UnknownKey);

    // Well-formed secrets of a key that the nodes have never seen.
    let key_id = KeyId([3; 16]);
    let vault = Vault::new(KdfPool::new(1024, 1));
    let begun = vault.begin(key_id, password(), QUICK, &mut OsRng).await.unwrap();
    let evaluation = OprfKey::generate(&mut OsRng).unwrap().evaluate(&begun.blinded_password()).unwrap();
    let binding = KeyBinding { curve: CurveId::Ed25519, epoch: 1, key_id, transcript: [1; 32], ot_id: [0; 32] };
    let stored = begun.seal(binding, &[0; 100], &DataKey::generate(&mut OsRng), &evaluation, &mut OsRng).unwrap();
    let unknown = SigningMaterial {
        key_id,
        encrypted_share: stored.encrypted_share,
        secret_store: stored.secret_store,
        ..key.clone()
    };
    let error = backend.sign(&unknown, Method::Default, &message("m"), password()).await.unwrap_err();
    assert_eq!(refused(error), ErrorCode::UnknownKey);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_passwords_ends_soon() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let mut codes = Vec::new();
    for guess in 0..12 {
        let guess = Password::new(Zeroizing::new(format!("guess {guess}").into_bytes())).unwrap();
        match backend.sign(&key, Method::Mta, &digest(1), guess).await.unwrap_err() {
            ClientError::Job(failure) => codes.push(failure.code),
            other => panic!("{other}"),
        }
    }
    assert_eq!(codes[..10], [ErrorCode::WrongPassword; 10]);
    assert_eq!(codes[10..], [ErrorCode::TooManyAttempts; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_has_one_result_however_often_it_is_sent() {
    let service = Deployment::start(2);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let key = new_key(&backend, Curve::Ed25519).await;
    let request = forge.sign(&key, &message("m"), &secrets(&key));
    let first = outcome(&backend, &request).await;
    assert!(matches!(first.outcome, Outcome::Ok { .. }));
    // Past the server's own deduplication, as a plain publication.
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    for _ in 0..5 {
        let sent = jetstream.publish_with_headers(
            request.subject.clone(),
            request.headers.clone(),
            request.body.clone().into(),
        );
        sent.await.unwrap().await.unwrap();
    }
    let reused = forge.edit(&request, |body| body["payload"]["message"] = json!("b3RoZXI="));
    assert_eq!(code(&outcome(&backend, &reused).await), ErrorCode::JobIdReused);
    assert_eq!(outcome(&backend, &request).await, first);
    wait_until_empty(&jetstream).await;
    let stored = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let subject = subject::result(backend.jobs().initiator(), &request.job_id);
    let mut subjects = stored.info_with_subjects(subject).await.unwrap();
    assert_eq!(subjects.next().await.unwrap().unwrap().1, 1);
    // Nor is it signed again: node 1 knew each copy, and the worker found the result.
    let log = std::fs::read_to_string(service.path("node1").join(trefoil::node::AUDIT_LOG)).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains(r#""decision":"released""#)).count(), 1);
}

/// A job that ended in an error stays ended when its cause is gone: a copy of it is not signed for node 1 alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_failed_is_not_signed_later() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let key = new_key(&backend, Curve::Ed25519).await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    backend.order(key.key_id, OrderedState::Frozen, None).await.unwrap();
    let request = forge.sign(&key, &message("m"), &secrets(&key));
    let failed = outcome(&backend, &request).await;
    assert_eq!(code(&failed), ErrorCode::KeyFrozen);
    backend.order(key.key_id, OrderedState::Active, None).await.unwrap();
    let copy =
        jetstream.publish_with_headers(request.subject.clone(), request.headers.clone(), request.body.clone().into());
    copy.await.unwrap().await.unwrap();
    backend.sign(&key, Method::Default, &message("other"), password()).await.unwrap();
    wait_until_empty(&jetstream).await;
    assert_eq!(outcome(&backend, &request).await, failed);
    let log = std::fs::read_to_string(service.path("node1").join(trefoil::node::AUDIT_LOG)).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains(r#""decision":"released""#)).count(), 1);
}

/// Whoever may publish jobs can have a copy of a job refused, under the job's own digest.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_copy_does_not_hide_the_jobs_result() {
    let mut service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let key = new_key(&backend, Curve::Ed25519).await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    // One without the signature, one on the subject of another key; returns when both are refused.
    let copy = async |request: &SignedRequest| {
        let elsewhere = subject::job(Lane::Interactive, Op::Sign, &KeyId([9; 16]));
        for (subject, headers, expected) in [
            (request.subject.clone(), async_nats::HeaderMap::new(), ErrorCode::UnsignedJob),
            (elsewhere, request.headers.clone(), ErrorCode::SubjectMismatch),
        ] {
            let sent = jetstream.publish_with_headers(subject, headers, request.body.clone().into());
            sent.await.unwrap().await.unwrap();
            let subject = subject::refused(backend.jobs().initiator(), &request.job_id);
            let started = Instant::now();
            loop {
                let refusal = trefoil::jobs::results::find_at(&jetstream, &subject).await.unwrap();
                if refusal.is_some_and(|r| r.job_digest == Fixed(request.digest) && code(&r) == expected) {
                    break;
                }
                assert!(started.elapsed() < PATIENCE, "not refused with {expected}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let signed = |result: JobResult| matches!(result.outcome, Outcome::Ok { signature: Some(_), .. });

    // Refused before the job is sent: seen at the first look.
    let request = forge.sign(&key, &message("m"), &secrets(&key));
    copy(&request).await;
    assert!(signed(outcome(&backend, &request).await));
    // Refused while the job waits for a node: heard, and seen again and again.
    let request = forge.sign(&key, &message("m"), &secrets(&key));
    service.process("node1").signal("STOP");
    let (result, ()) = futures::join!(outcome(&backend, &request), async {
        copy(&request).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        service.process("node1").signal("CONT");
    });
    assert!(signed(result));
    // Nothing but copies: told at the end of the wait, and as what it is.
    let request = forge.sign(&key, &message("m"), &secrets(&key));
    copy(&request).await;
    let error = backend.result_of(&request.job_id, request.digest, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused(_)), "{error}");
    assert!(error.to_string().contains("says nothing about the job itself"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_acknowledgement_is_no_failure() {
    let mut service = Deployment::start(1);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    // The queue keeps what it gets and acknowledges nothing.
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let mut config = jetstream.get_stream("MPC_JOBS").await.unwrap().cached_info().config.clone();
    config.no_ack = true;
    jetstream.update_stream(&config).await.unwrap();
    backend.generate(Curve::Ed25519, QUICK, password()).await.unwrap();
    // Also where the job takes longer than publishing it three times does.
    service.process("node1").signal("STOP");
    let input = message("m");
    let (signed, ()) = futures::join!(backend.sign(&key, Method::Default, &input, password()), async {
        tokio::time::sleep(Duration::from_secs(17)).await;
        service.process("node1").signal("CONT");
    });
    signed.unwrap();
}

/// Answers the next job as a lying worker or broker would: with a result made from the job's.
async fn lie(service: &Deployment, make: impl FnOnce(JobResult) -> JobResult) {
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let results = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = results.create_consumer(config).await.unwrap().messages().await.unwrap();
    let message = tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
    let sequence = message.info().unwrap().stream_sequence;
    let result = make(serde_json::from_slice(&message.payload).unwrap());
    results.delete_message(sequence).await.unwrap();
    let subject = subject::result(&result.initiator, &result.job_id);
    jetstream.publish(subject, serde_json::to_vec(&result).unwrap().into()).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_substituted_public_key_is_refused() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let forge = Forge::new(&backend);
    let secrets = Secrets { password: Some(password()), ..Secrets::default() };
    let mine = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key();
    let request = backend
        .jobs()
        .generate(random_job_id(), Curve::Ed25519, QUICK, &secrets, &forge.reply, Duration::from_secs(20))
        .unwrap();
    backend.publish(&request).await.unwrap();
    lie(&service, |mut result| {
        let Outcome::Ok { key: Some(key), .. } = &mut result.outcome else { panic!("{result:?}") };
        key.public_key = data_encoding::HEXLOWER.encode(mine.as_bytes());
        result
    })
    .await;
    let result = backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
    let refused = backend.made(&request, Making::Generation, result).unwrap_err();
    assert!(matches!(refused, ClientError::Untrusted(_)), "{refused}");
    assert!(refused.to_string().contains("node 1 did not attest"), "{refused}");
}

/// No worker and no node runs: the test takes the job itself, as a worker that has been taken over would, and answers with a
/// key of its own, attested by nodes of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_lying_worker_gets_no_key_file_written() {
    let service = Deployment::new();
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    trefoil::jobs::streams::provision(&jetstream, &Default::default()).await.unwrap();
    let out = service.path("key.json");
    let mut cli = service.cli();
    cli.args(["--json", "generate", "--curve", "ed25519", "--out"]).arg(&out);
    let cli = tokio::task::spawn_blocking(move || cli.output().unwrap());

    let jobs = jetstream.get_stream("MPC_JOBS").await.unwrap();
    let consumer = async_nats::jetstream::consumer::pull::Config::default();
    let mut messages = jobs.create_consumer(consumer).await.unwrap().messages().await.unwrap();
    let message = tokio::time::timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
    let job = Job::parse(&message.subject, JobHeaders::from_nats(message.headers.as_ref()), &message.payload).unwrap();
    let (own_key, own_node) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let statement = Attestation {
        initiator: job.initiator.clone(),
        job_digest: job.digest,
        key_id: job.key_id,
        source_key_id: None,
        epoch: 1,
        curve: Curve::Ed25519,
        public_key: own_key.verifying_key().as_bytes().to_vec(),
        chain_code: [3; 32],
        transcript: [4; 32],
    };
    let signature = Fixed(statement.sign(&own_node));
    let key = KeyResult {
        key_id: job.key_id,
        source_key_id: None,
        curve: Curve::Ed25519,
        epoch: 1,
        public_key: data_encoding::HEXLOWER.encode(own_key.verifying_key().as_bytes()),
        chain_code: Fixed([3; 32]),
        transcript: Fixed([4; 32]),
        generated_by: None,
        state: KeyState::Prepared,
        attestations: Attestations { node1: signature, node2: signature },
        commits: None,
    };
    let sealed = seal(&job.reply_key, &Binding::of(&job), &Secrets::default()).unwrap();
    let outcome = Outcome::generated(key, sealed);
    let result = JobResult::of(&job, trefoil::clock::now_ms(), outcome);
    trefoil::jobs::results::store(&jetstream, &result).await.unwrap();

    let done = cli.await.unwrap();
    assert_eq!(done.status.code(), Some(4), "{done:?}");
    assert!(String::from_utf8(done.stdout).unwrap().contains("did not attest"));
    assert!(!out.exists());
}
