//! A real worker process that alters each job after its own checks and before it forwards it: no job has another result than its
//! refusal, and the nodes' files are as they were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, code, digest, material, message, wait_until_empty};
use futures::StreamExt;
use serde::Serialize;
use support::stored::contents;
use trefoil::auth;
use trefoil::client::verify::{self, Untrusted};
use trefoil::client::{Backend, SignedRequest, SigningMaterial};
use trefoil::clock::now_ms;
use trefoil::fault::tamper::alterations;
use trefoil::node::AUDIT_LOG;
use trefoil::seal::{Binding, Secrets, seal};
use trefoil::wire::{
    ChangePasswordBody, Curve, Envelope, ErrorCode, GenerateBody, JobId, KdfParams, KeyId, KeysBody, Lane, Method, Op,
    OrderBody, Outcome, PublicKeyBody, RegisterBody, Sealed, SignBody, SignInput, SignedJob, ValidateBody,
    WhichJobBody,
};

/// Machine-made, so that it costs nothing to stretch it.
const SECRET: [u8; 32] = [0x5c; 32];

/// A backend, the keys that it uses, and its consenting authoriser.
struct Owner<'a> {
    service: &'a Deployment,
    backend: Backend,
    secp256k1: SigningMaterial,
    ed25519: SigningMaterial,
}

impl Owner<'_> {
    /// A good job, sealed to the workers, of this very id.
    fn job(&self, op: Op, job_id: &str) -> SignedRequest {
        let (id, key) = (job_id.parse::<JobId>().unwrap(), &self.ed25519);
        match op {
            Op::Generate => {
                let key_id = KeyId::derive(self.backend.jobs().initiator(), &id);
                self.with(op, id, key_id, |sealed| GenerateBody::new(Curve::Ed25519, KdfParams::Hkdf, sealed))
            }
            Op::Recover => {
                let body = |sealed| GenerateBody::new(Curve::Ed25519, KdfParams::Hkdf, sealed);
                self.consented(self.with(op, id, key.key_id, body))
            }
            Op::Refresh => {
                self.with(op, id, key.key_id, |sealed| GenerateBody::new(Curve::Ed25519, KdfParams::Hkdf, sealed))
            }
            Op::Sign if job_id.starts_with("ecdsa") => {
                let input = SignInput::Secp256k1 { digest: [7; 32], path: Some("m/0/1".to_owned()) };
                self.with(op, id, self.secp256k1.key_id, |sealed| SignBody::new(Method::Mta, &input, sealed))
            }
            Op::Sign => self.with(op, id, key.key_id, |sealed| SignBody::new(Method::Default, &message("m"), sealed)),
            Op::PublicKey => self.with(op, id, key.key_id, |_| PublicKeyBody {}),
            Op::ValidatePassword | Op::ValidateShare => {
                self.with(op, id, key.key_id, |secrets| ValidateBody { secrets })
            }
            Op::ChangePassword => {
                let kdf = KdfParams::Hkdf.to_body();
                self.with(op, id, key.key_id, |secrets| ChangePasswordBody { kdf, secrets })
            }
            Op::Freeze | Op::Unfreeze => self.with(op, id, key.key_id, |_| OrderBody {}),
            Op::Destroy => self.consented(self.with(op, id, key.key_id, |_| OrderBody {})),
            Op::Keys => {
                let key_id = KeyId::derive(self.backend.jobs().initiator(), &id);
                self.with(op, id, key_id, |_| KeysBody { after: Some(key.key_id), limit: Some(7) })
            }
            Op::RegisterKey => self.with(op, id, key.key_id, |_| RegisterBody {
                curve: Curve::Ed25519.to_string(),
                public_key: data_encoding::HEXLOWER.encode(&key.public_key),
                label: Some("till".to_owned()),
            }),
            Op::Cancel | Op::JobStatus => {
                self.with(op, id, key.key_id, |_| WhichJobBody { job_id: "another".parse().unwrap() })
            }
            Op::CancelRecovery => self.with(op, id, key.key_id, |_| OrderBody {}),
        }
    }

    fn with<P: Serialize>(
        &self,
        op: Op,
        job_id: JobId,
        key_id: KeyId,
        payload: impl FnOnce(Sealed) -> P,
    ) -> SignedRequest {
        let initiator = self.backend.jobs().initiator().clone();
        let binding = Binding { job_id: job_id.clone(), key_id, initiator: initiator.clone() };
        let key = if key_id == self.secp256k1.key_id { &self.secp256k1 } else { &self.ed25519 };
        let generates = matches!(op, Op::Generate | Op::Recover);
        let secrets = Secrets {
            password: Some(secret()),
            encrypted_share: matches!(op, Op::Sign | Op::ValidateShare | Op::Refresh)
                .then(|| key.encrypted_share.clone()),
            secret_store: (!generates).then(|| key.secret_store.clone()),
            new_password: (op == Op::ChangePassword).then(secret),
        };
        let sealed = seal(&self.service.sealing.public_key().parse().unwrap(), &binding, &secrets).unwrap();
        let issued_at = now_ms();
        let expires_at = issued_at + 60_000;
        let envelope = Envelope {
            version: 1,
            op: op.to_string(),
            job_id: job_id.clone(),
            lane: Some(Lane::Bulk.to_string()),
            key_id,
            initiator,
            issued_at,
            expires_at,
            reply_key: self.backend.reply_key().unwrap(),
            payload: payload(sealed),
        };
        self.backend.jobs().sign_body(op, job_id, key_id, expires_at, envelope.to_bytes().unwrap()).unwrap()
    }

    fn consented(&self, mut request: SignedRequest) -> SignedRequest {
        request.authorise(&self.service.authoriser).unwrap();
        request
    }

    /// How many alterations there are of the job that this request is.
    fn alterations(&self, request: &SignedRequest) -> usize {
        let signed = auth::sign_job(&self.service.initiator, request.body.clone()).unwrap();
        let consents = request.headers.get("Trefoil-Authoriser").is_some();
        let authorisation = consents.then(|| auth::authorise(&self.service.authoriser, &request.body).unwrap());
        alterations(&SignedJob { authorisation, ..signed }).len()
    }
}

fn secret() -> trefoil::vault::Password {
    trefoil::vault::Password::new(zeroize::Zeroizing::new(SECRET.to_vec())).unwrap()
}

async fn key(backend: &Backend, curve: Curve) -> SigningMaterial {
    let new = backend.generate(curve, KdfParams::Hkdf, secret()).await.unwrap();
    backend.committed(&new.key, deployment::PATIENCE).await.unwrap();
    material(&new)
}

/// Everything that the nodes keep, their logs included.
fn kept(service: &Deployment) -> Vec<(support::stored::Contents, Vec<u8>)> {
    let of = |node: &str| {
        let data = service.path(node);
        (contents(&data), std::fs::read(data.join(AUDIT_LOG)).unwrap())
    };
    vec![of("node1"), of("node2")]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampering_worker_gets_nothing_from_the_nodes() {
    let mut service = Deployment::start(0);
    service.worker_settings = vec![("TREFOIL_TAMPER", "1".to_owned())];
    service.start_worker("worker1");
    let backend = service.backend_with(&[("TREFOIL_LANE", "bulk".to_owned())]).await;
    let (secp256k1, ed25519) = (key(&backend, Curve::Secp256k1).await, key(&backend, Curve::Ed25519).await);
    wait_until_empty(&async_nats::jetstream::new(service.nats.connect().await)).await;
    let owner = Owner { service: &service, backend, secp256k1, ed25519 };

    let mut jobs = Vec::new();
    let curves = [("ecdsa", Op::Sign)];
    for (name, op) in Op::ALL.iter().map(|op| (op.as_str(), *op)).chain(curves) {
        let count = owner.alterations(&owner.job(op, &format!("{name}-tamper-000")));
        assert!(count > 15, "{name}: {count}");
        jobs.extend((0..count).map(|number| owner.job(op, &format!("{name}-tamper-{number:03}"))));
    }
    assert!(jobs.len() > 300, "{} jobs", jobs.len());
    let before = kept(&service);
    let backend = &owner.backend;
    // The queue takes 64 jobs of a key at a time.
    let results = futures::stream::iter(&jobs).map(|job| async move { (job, backend.run(job).await.unwrap()) });
    let mut results = results.buffer_unordered(24);
    let mut authority = 0;
    while let Some((job, result)) = results.next().await {
        let refusal = code(&result);
        authority += usize::from(refusal == ErrorCode::NotAuthorised);
        let expected = matches!(refusal, ErrorCode::BadSignature | ErrorCode::MalformedJob | ErrorCode::NotAuthorised);
        assert!(expected, "{}: {refusal}", job.job_id);
    }
    drop(results);
    assert!(authority > 0, "no missing consent was noticed");
    for ((stored, log), (before, logged)) in kept(&service).into_iter().zip(before) {
        assert_eq!(stored, before);
        // Authentic jobs without their consent are logged, as refused.
        let new = String::from_utf8(log[logged.len()..].to_vec()).unwrap();
        assert!(new.lines().all(|line| line.contains("NOT_AUTHORISED")), "{new}");
    }
    // The worker's log says what it did, and the keys are none the worse for it.
    let told = service.running["worker1"].log();
    assert!(told.contains("FAULT INJECTION"), "a test build says what it is");
    for (key, input) in [(&owner.secp256k1, digest(1)), (&owner.ed25519, message("m"))] {
        backend.sign(key, Method::Default, &input, secret()).await.unwrap();
    }
}

/// Whole jobs, well signed, in each other's places.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_swaps_jobs_signs_nothing_that_was_not_asked_for() {
    let mut service = Deployment::start(0);
    service.worker_settings = vec![("TREFOIL_TAMPER", "1".to_owned())];
    service.start_worker("worker1");
    let backend = service.backend_with(&[("TREFOIL_LANE", "bulk".to_owned())]).await;
    let (secp256k1, ed25519) = (key(&backend, Curve::Secp256k1).await, key(&backend, Curve::Ed25519).await);
    let other = key(&backend, Curve::Ed25519).await;
    let owner = Owner { service: &service, backend, secp256k1, ed25519 };
    let backend = &owner.backend;
    for (name, key, input) in [("ecdsa", &owner.secp256k1, digest(1)), ("eddsa", &owner.ed25519, message("another"))] {
        // The one that will be forwarded in the other's place.
        backend.sign(key, Method::Default, &input, secret()).await.unwrap();
        let swapped = backend.run(&owner.job(Op::Sign, &format!("{name}-tamper-swap"))).await.unwrap();
        assert_eq!(code(&swapped), ErrorCode::ProtocolAbort, "{name}");
        // Not locked by it.
        backend.sign(key, Method::Default, &input, secret()).await.unwrap();
    }
    // An order about one key in place of one about another: the answer does not fit the question.
    backend.order(other.key_id, trefoil::wire::OrderedState::Frozen, None).await.unwrap();
    let swapped = backend.run(&owner.job(Op::Freeze, "freeze-tamper-swap")).await.unwrap();
    assert_eq!(code(&swapped), ErrorCode::ProtocolAbort);
    backend.sign(&owner.ed25519, Method::Default, &message("m"), secret()).await.unwrap();
    // The answer to a question about another key is the worker's to give, and the backend's to refuse.
    backend.public_key(owner.secp256k1.key_id).await.unwrap();
    let asked = owner.job(Op::PublicKey, "public-tamper-swap");
    let Outcome::Ok { key: Some(key), .. } = backend.run(&asked).await.unwrap().outcome else { panic!("no answer") };
    let (initiator, nodes) = (backend.jobs().initiator(), service.identities());
    let believed = verify::attested_key(&nodes, initiator, asked.key_id, asked.digest, &key);
    assert!(matches!(believed, Err(Untrusted::OtherKey)), "{believed:?}");
}
