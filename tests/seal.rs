//! Sealed secrets open for the job that they were sealed for, and for nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use data_encoding::BASE64;
use nkeys::{KeyPair, XKey};
use serde_json::{Value, json};
use trefoil::auth::sign_job;
use trefoil::seal::{self, Binding, SealError, Secrets, WorkerKeys};
use trefoil::vault::Password;
use trefoil::wire::{ErrorCode, InitiatorId, Job, JobId, KeyId, SealKey};
use zeroize::Zeroizing;

const CANARY: &str = "correct-horse-battery-staple";

fn initiator_key() -> KeyPair {
    KeyPair::new_from_raw(nkeys::KeyPairType::User, [1; 32]).unwrap()
}
fn worker_key() -> XKey {
    XKey::new_from_raw([2; 32])
}
fn initiator() -> InitiatorId {
    initiator_key().public_key().parse().unwrap()
}
fn job_id() -> JobId {
    "job-1".parse().unwrap()
}
fn receive(body: &Value) -> Job {
    Job::from_signed(&sign_job(&initiator_key(), body.to_string().into_bytes()).unwrap()).unwrap()
}
fn binding() -> Binding {
    Binding { job_id: job_id(), key_id: KeyId([0xab; 16]), initiator: initiator() }
}
fn secrets() -> Secrets {
    Secrets {
        password: Some(Password::new(Zeroizing::new(CANARY.as_bytes().to_vec())).unwrap()),
        encrypted_share: Some(vec![1; 6_000]),
        secret_store: Some(vec![2; 220]),
        ..Secrets::default()
    }
}
fn worker_public() -> SealKey {
    worker_key().public_key().parse().unwrap()
}

#[test]
fn secrets_open_for_their_job_only() {
    let sealed = seal::seal(&worker_public(), &binding(), &secrets()).unwrap();
    let text = serde_json::to_string(&sealed).unwrap();
    assert!(!text.contains(CANARY) && !text.contains(&BASE64.encode(CANARY.as_bytes())));
    let opened = seal::open(&worker_key(), &binding(), &sealed).unwrap();
    assert_eq!(opened.password.unwrap().expose(), CANARY.as_bytes());
    assert_eq!((opened.encrypted_share, opened.secret_store), (Some(vec![1; 6_000]), Some(vec![2; 220])));
    let other: InitiatorId = KeyPair::new_user().public_key().parse().unwrap();
    for moved in [
        Binding { job_id: "job-2".parse().unwrap(), ..binding() },
        Binding { key_id: KeyId([0; 16]), ..binding() },
        Binding { initiator: other, ..binding() },
    ] {
        assert_eq!(seal::open(&worker_key(), &moved, &sealed).err(), Some(SealError::Broken));
    }
    assert_eq!(seal::open(&XKey::new(), &binding(), &sealed).err(), Some(SealError::Broken));
    let again = seal::seal(&worker_public(), &binding(), &secrets()).unwrap();
    assert_ne!(again.sender_key, sealed.sender_key, "the sender key is fresh for every box");
}

#[test]
fn a_damaged_box_does_not_open() {
    let sealed = seal::seal(&worker_public(), &binding(), &secrets()).unwrap();
    for at in (0..120).chain([sealed.sealed.0.len() - 1]) {
        let mut damaged = sealed.clone();
        damaged.sealed.0[at] ^= 1;
        assert_eq!(seal::open(&worker_key(), &binding(), &damaged).err(), Some(SealError::Broken), "byte {at}");
    }
    for length in [0, 3, 4, 27, 28, 29, 43, 44, 45] {
        let mut damaged = sealed.clone();
        damaged.sealed.0.truncate(length);
        assert_eq!(seal::open(&worker_key(), &binding(), &damaged).err(), Some(SealError::Broken), "{length} bytes");
    }
}

#[test]
fn odd_plaintexts_do_not_open() {
    let sender = XKey::new_from_raw([3; 32]);
    let open = |plaintext: &str| {
        let sealed = trefoil::wire::Sealed {
            recipient_key: worker_public(),
            sender_key: sender.public_key().parse().unwrap(),
            sealed: sender.seal(plaintext.as_bytes(), &worker_key()).unwrap().into(),
        };
        seal::open(&worker_key(), &binding(), &sealed)
    };
    let plain = json!({
        "version": 1, "jobId": "job-1", "keyId": "ab".repeat(16), "initiator": initiator(), "password": "cHc/",
    });
    assert_eq!(open(&plain.to_string()).unwrap().password.unwrap().expose(), b"pw?");
    // Some JSON writers escape the slash.
    assert!(open(&plain.to_string().replace('/', "\\/")).is_ok());
    let long = BASE64.encode(&[0; 1025]);
    for (field, value) in [
        ("version", json!(2)),
        ("extra", json!(1)),
        ("password", json!("pw?")),
        ("password", json!("")),
        ("password", json!(long)),
        ("password", json!(1)),
        ("keyId", Value::Null),
    ] {
        let mut odd = plain.clone();
        odd[field] = value;
        assert_eq!(open(&odd.to_string()).err(), Some(SealError::Broken), "{field}");
    }
    for odd in ["", "{}", "null", &plain.to_string().replace("\"version\":1", "\"version\":1,\"version\":1")] {
        assert_eq!(open(odd).err(), Some(SealError::Broken), "{odd}");
    }
}

#[test]
fn worker_keys_rotate() {
    let (new, old) = (XKey::new(), worker_key());
    let seeds = [new.seed().unwrap(), old.seed().unwrap()];
    let keys = WorkerKeys::from_seeds(seeds.iter().map(String::as_str)).unwrap();
    assert_eq!(keys.current().as_str(), new.public_key());
    let sealed = seal::seal(&worker_public(), &binding(), &secrets()).unwrap();
    let body = json!({
        "version": 1, "op": "sign", "jobId": job_id(), "keyId": binding().key_id, "initiator": initiator(),
        "issuedAt": 1, "expiresAt": 2, "replyKey": worker_public(),
        "payload": { "curve": "secp256k1", "method": "mta", "digest": "cd".repeat(32), "secrets": sealed },
    });
    let mut public_key = body.clone();
    public_key["op"] = json!("public-key");
    public_key["payload"] = json!({});
    let job = receive(&body);
    assert_eq!(keys.open(&job).unwrap().password.unwrap().expose(), CANARY.as_bytes());
    let gone = WorkerKeys::from_seeds([seeds[0].as_str()]).unwrap();
    assert_eq!(gone.open(&job).err().unwrap().code(), ErrorCode::UnknownWorkerKey);
    assert_eq!(keys.open(&receive(&public_key)).err(), Some(SealError::Broken));
    assert!(WorkerKeys::from_seeds([]).is_none());
    assert!(WorkerKeys::from_seeds(["SX"]).is_none());
    assert!(WorkerKeys::from_seeds([initiator_key().seed().unwrap().as_str()]).is_none());
}
