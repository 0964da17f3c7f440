//! Jobs as strangers send them: every refusal by its code, its address, and without repeating what was sent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use data_encoding::BASE64;
use nkeys::{KeyPair, XKey};
use proptest::prelude::*;
use serde_json::{Value, json};
use trefoil::auth::{TimePolicy, sign_job};
use trefoil::wire::node::Call;
use trefoil::wire::{
    Address, Curve, Disposition, ErrorCode, InitiatorId, Job, JobError, JobHeaders, JobId, KdfParams, KeyId, Lane,
    MAX_BODY_BYTES, Method, Op, Payload, SealKey, SignInput, subject,
};

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
fn sealed() -> Value {
    json!({
        "recipientKey": worker_key().public_key(),
        "senderKey": XKey::new_from_raw([3; 32]).public_key(),
        "box": "eGt2MQ==",
    })
}
fn generate() -> Value {
    json!({
        "version": 1, "op": "generate", "jobId": "job-1", "keyId": KeyId::derive(&initiator(), &job_id()),
        "initiator": initiator(), "issuedAt": 1_000, "expiresAt": 61_000,
        "replyKey": XKey::new_from_raw([4; 32]).public_key(),
        "payload": {
            "curve": "secp256k1", "kdf": { "name": "argon2id", "memoryKib": 19456, "passes": 2 }, "secrets": sealed(),
        },
    })
}
fn sign() -> Value {
    let mut job = generate();
    job["op"] = json!("sign");
    job["keyId"] = json!("ab".repeat(16));
    job["payload"] = json!({
        "curve": "secp256k1", "method": "mta", "digest": "cd".repeat(32), "path": "m/0/1", "secrets": sealed(),
    });
    job
}
fn sign_ed25519() -> Value {
    let mut job = sign();
    job["payload"] =
        json!({ "curve": "ed25519", "method": "default", "message": BASE64.encode(b"\0hello"), "secrets": sealed() });
    job
}
/// A recover or refresh job.
fn reshare(op: Op) -> Value {
    let mut job = generate();
    job["op"] = json!(op);
    job["keyId"] = json!("ab".repeat(16));
    job
}
fn public_key() -> Value {
    let mut job = sign();
    job["op"] = json!("public-key");
    job["payload"] = json!({});
    job
}

/// Signs a body as it is and publishes it on the subject that it names.
fn receive(body: &Value) -> Result<Job, JobError> {
    receive_bytes(&body.to_string(), body["op"].as_str().unwrap_or(""), body["keyId"].as_str().unwrap_or(""))
}
fn receive_bytes(body: &str, op: &str, key: &str) -> Result<Job, JobError> {
    let signed = sign_job(&initiator_key(), body.as_bytes().to_vec()).unwrap();
    let signature = BASE64.encode(&signed.signature.0);
    let headers = JobHeaders { version: Some("1"), signature: Some(&signature), ..JobHeaders::default() };
    // In the lane that the body names.
    let lane = serde_json::from_str::<Value>(body).ok().and_then(|body| body["lane"].as_str()?.parse().ok());
    let root = if lane == Some(Lane::Bulk) { "mpc.bulk" } else { "mpc.job" };
    let parsed = Job::parse(&format!("{root}.{op}.{key}"), headers, body.as_bytes());
    // What the worker accepts and what a node accepts differ only by the subject.
    let requested = Job::from_request(headers, body.as_bytes());
    assert_eq!(requested.map(|job| job.digest), Job::from_signed(&signed).map(|job| job.digest));
    match (&parsed, Job::from_signed(&signed)) {
        (Ok(one), Ok(two)) => assert_eq!(one.digest, two.digest),
        (Err(e), Ok(_)) => assert_eq!(e.code, ErrorCode::SubjectMismatch),
        (Err(one), Err(two)) => assert_eq!(*one, two),
        (Ok(_), Err(e)) => panic!("only a node refuses: {e}"),
    }
    parsed
}
fn own_address() -> Option<Address> {
    Some(Address { initiator: initiator(), job_id: job_id(), refused: false })
}
fn refused_address() -> Option<Address> {
    Some(Address { refused: true, ..own_address().unwrap() })
}

#[test]
fn well_formed_jobs_are_read() {
    let job = receive(&generate()).unwrap();
    assert_eq!((job.op(), job.curve(), &job.initiator), (Op::Generate, Some(Curve::Secp256k1), &initiator()));
    assert!(matches!(job.payload, Payload::Generate { kdf, .. } if kdf == KdfParams::default()));
    let job = receive(&sign()).unwrap();
    let Payload::Sign { method: Method::Mta, input: SignInput::Secp256k1 { digest, path }, .. } = job.payload else {
        panic!("not a signing job")
    };
    assert_eq!((digest, path.as_deref()), ([0xcd; 32], Some("m/0/1")));
    let job = receive(&sign_ed25519()).unwrap();
    let Payload::Sign { input: SignInput::Ed25519 { message }, .. } = job.payload else { panic!("not a signing job") };
    assert_eq!(message, b"\0hello");
    let mut empty = sign_ed25519();
    empty["payload"]["message"] = json!("");
    assert!(receive(&empty).is_ok());
    assert_eq!(receive(&public_key()).unwrap().op(), Op::PublicKey);
    for op in [Op::Recover, Op::Refresh] {
        let job = receive(&reshare(op)).unwrap();
        assert_eq!((job.op(), job.curve(), job.key_id), (op, Some(Curve::Secp256k1), KeyId([0xab; 16])));
        assert!(job.secrets().is_some());
    }
}

#[test]
fn a_job_says_which_key_it_makes() {
    let new = KeyId::derive(&initiator(), &job_id());
    let made = |job: Value| receive(&job).unwrap().made_key();
    assert_eq!(made(generate()), Some(new));
    assert_eq!(made(reshare(Op::Recover)), Some(new), "a new one, not the one that it replaces");
    assert_eq!(made(reshare(Op::Refresh)), Some(KeyId([0xab; 16])));
    assert_eq!((made(sign()), made(public_key())), (None, None));
}

/// Path of a field, new value (null removes it), code. Applied to a job that is fine without the change.
#[test]
fn every_field_that_is_wrong_has_its_code() {
    use ErrorCode::*;
    let too_long = BASE64.encode(&vec![0; 65_537]);
    let longest = BASE64.encode(&vec![0; 65_536]);
    let hardened = ["m/0'", "m/0h", "m/2147483648", "m/1/99999999999999999999"];
    let bad_paths = ["", "m/", "0/1", "m//1", "m/01", "m/-1", "m/+1", "m/1/", "m/x", "M/0", "m/0/1 "];
    let long_path = format!("m{}", "/0".repeat(17));
    let mut cases: Vec<(Value, &str, Value, ErrorCode)> = vec![
        (sign(), "/version", json!(2), UnsupportedVersion),
        (sign(), "/version", json!("1"), MalformedJob),
        (sign(), "/version", Value::Null, MalformedJob),
        (sign(), "/op", json!("revive"), UnsupportedOperation),
        (sign(), "/op", json!("SIGN"), UnsupportedOperation),
        (sign(), "/op", json!(1), MalformedJob),
        (sign(), "/keyId", json!("ab".repeat(15)), MalformedJob),
        (sign(), "/keyId", json!("AB".repeat(16)), MalformedJob),
        (sign(), "/issuedAt", json!(-1), MalformedJob),
        (sign(), "/issuedAt", json!(1.5), MalformedJob),
        (sign(), "/issuedAt", json!("1000"), MalformedJob),
        (sign(), "/expiresAt", json!(1_000), MalformedJob),
        (sign(), "/expiresAt", Value::Null, MalformedJob),
        (sign(), "/replyKey", json!("X"), MalformedJob),
        (sign(), "/replyKey", json!(initiator()), MalformedJob),
        (sign(), "/payload", json!([]), MalformedJob),
        (sign(), "/payload", Value::Null, MalformedJob),
        (sign(), "/extra", json!(1), UnknownField),
        (sign(), "/payload/extra", json!(1), UnknownField),
        (sign(), "/payload/secrets/extra", json!(1), UnknownField),
        (generate(), "/payload/kdf/parallelism", json!(1), UnknownField),
        (generate(), "/payload/method", json!("mta"), UnknownField),
        (public_key(), "/payload/curve", json!("ed25519"), UnknownField),
        (sign(), "/payload/curve", json!("p256"), UnsupportedCurve),
        (sign(), "/payload/curve", json!("Secp256k1"), UnsupportedCurve),
        (generate(), "/payload/curve", json!("sr25519"), UnsupportedCurve),
        (sign(), "/payload/curve", json!(1), MalformedJob),
        (sign(), "/payload/method", json!("frost"), UnsupportedMethod),
        (sign(), "/lane", json!("slow"), UnsupportedLane),
        (sign(), "/lane", json!("Bulk"), UnsupportedLane),
        (sign(), "/lane", json!(""), UnsupportedLane),
        (sign(), "/lane", json!(1), MalformedJob),
        (sign(), "/payload/lane", json!("bulk"), UnknownField),
        (sign(), "/payload/digest", json!("cd".repeat(31)), InvalidDigest),
        (sign(), "/payload/digest", json!("cd".repeat(33)), InvalidDigest),
        (sign(), "/payload/digest", json!("CD".repeat(32)), InvalidDigest),
        (sign(), "/payload/digest", json!(format!("0x{}", "cd".repeat(31))), InvalidDigest),
        (sign(), "/payload/digest", json!(""), InvalidDigest),
        (sign(), "/payload/digest", Value::Null, InvalidDigest),
        (sign(), "/payload/message", json!(""), InvalidMessage),
        (sign(), "/payload/path", json!(long_path), InvalidPath),
        (sign_ed25519(), "/payload/message", json!(too_long), InvalidMessage),
        (sign_ed25519(), "/payload/message", json!("not base64"), InvalidMessage),
        (sign_ed25519(), "/payload/message", json!("AA"), InvalidMessage),
        (sign_ed25519(), "/payload/message", Value::Null, InvalidMessage),
        (sign_ed25519(), "/payload/digest", json!("cd".repeat(32)), InvalidMessage),
        (sign_ed25519(), "/payload/path", json!("m/0"), InvalidPath),
        (generate(), "/keyId", json!("ab".repeat(16)), MalformedJob),
        (generate(), "/payload/kdf/name", json!("scrypt"), InvalidKdf),
        (generate(), "/payload/kdf/name", json!("hkdf"), InvalidKdf),
        (generate(), "/payload/kdf/memoryKib", json!(7), InvalidKdf),
        (generate(), "/payload/kdf/memoryKib", json!(262_145), InvalidKdf),
        (generate(), "/payload/kdf/memoryKib", json!(4_294_967_296u64), MalformedJob),
        (generate(), "/payload/kdf/memoryKib", Value::Null, InvalidKdf),
        (generate(), "/payload/kdf/passes", json!(0), InvalidKdf),
        (generate(), "/payload/kdf/passes", json!(11), InvalidKdf),
        (generate(), "/payload/secrets/box", json!("%"), MalformedJob),
        (generate(), "/payload/secrets", Value::Null, MalformedJob),
    ];
    for op in [Op::Recover, Op::Refresh] {
        cases.extend([
            (reshare(op), "/payload/curve", json!("p256"), UnsupportedCurve),
            (reshare(op), "/payload/kdf/name", json!("scrypt"), InvalidKdf),
            (reshare(op), "/payload/kdf/passes", json!(11), InvalidKdf),
            (reshare(op), "/payload/kdf", Value::Null, MalformedJob),
            (reshare(op), "/payload/method", json!("mta"), UnknownField),
            (reshare(op), "/payload/newPassword", json!("hunter2"), UnknownField),
            (reshare(op), "/payload/secrets", Value::Null, MalformedJob),
            (reshare(op), "/keyId", json!("ab"), MalformedJob),
        ]);
    }
    cases.extend(hardened.map(|path| (sign(), "/payload/path", json!(path), HardenedPath)));
    cases.extend(bad_paths.map(|path| (sign(), "/payload/path", json!(path), InvalidPath)));
    for (mut job, pointer, value, code) in cases {
        set(&mut job, pointer, value.clone());
        let error = receive(&job).expect_err(pointer);
        assert_eq!(error.code, code, "{pointer} = {value}: {}", error.message);
        assert_eq!(error.address, own_address(), "{pointer} = {value}");
        assert!(error.message.len() < 200, "{}", error.message);
    }
    for message in [longest, BASE64.encode(b"")] {
        let mut job = sign_ed25519();
        job["payload"]["message"] = json!(message);
        assert!(receive(&job).is_ok());
    }
    for path in ["m", "m/0", "m/2147483647", &format!("m{}", "/0".repeat(16))] {
        let mut job = sign();
        job["payload"]["path"] = json!(path);
        assert!(receive(&job).is_ok(), "{path}");
    }
}

fn set(job: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let object = job.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value.is_null() {
        object.remove(field);
    } else {
        object.insert(field.to_owned(), value);
    }
}

#[test]
fn unknown_fields_are_named() {
    let mut job = sign();
    job["payload"]["derivationPath"] = json!("m/0");
    assert_eq!(receive(&job).unwrap_err().message, "payload: unknown field `derivationPath`");
    let mut job = sign();
    job[format!("<script>{}", "x".repeat(1_000))] = json!(1);
    let message = receive(&job).unwrap_err().message;
    assert!(message.len() < 80 && !message.contains('<'), "{message}");
}

#[test]
fn duplicate_keys_are_refused_at_every_depth() {
    let body = sign().to_string();
    for (from, to) in [
        (r#""version":1"#, r#""version":1,"version":1"#),
        (r#""method":"mta""#, r#""method":"mta","method":"mta""#),
        (r#""method":"mta""#, r#""method":"mta","\u006dethod":"default""#),
        (r#""box":"#, r#""box":"AAAA","box":"#),
        (r#""jobId":"job-1""#, r#""jobId":"job-1","jobId":"job-2""#),
    ] {
        let doubled = body.replacen(from, to, 1);
        assert_ne!(doubled, body);
        let error = receive_bytes(&doubled, "sign", &"ab".repeat(16)).unwrap_err();
        assert_eq!(error.code, ErrorCode::MalformedJob, "{to}");
        assert!(error.message.starts_with("duplicate key"), "{}", error.message);
        assert_eq!(error.address, own_address());
    }
}

#[test]
fn malformed_json_is_addressed_if_it_names_its_sender() {
    let body = public_key().to_string();
    let key = "ab".repeat(16);
    // serde_json sorts keys: initiator and jobId come before what is broken here.
    for broken in [
        body.replace("\"version\":1", "\"version\":01"),
        body.replace('}', ""),
        format!("{body} {body}"),
        body.replace("{}", "{]"),
        body.replace("\"payload\"", "\"pay\u{1}load\""),
        body.replace("{}", &format!("{}{}", "[".repeat(5_000), "]".repeat(5_000))),
    ] {
        let error = receive_bytes(&broken, "public-key", &key).unwrap_err();
        assert_eq!((error.code, error.address), (ErrorCode::MalformedJob, own_address()), "{broken:.300}");
    }
    for hopeless in ["", "{", "null", "[]", "\"x\"", "{\"jobId\":\"job-1\"", "\u{feff}{}", "{\"initiator\":\"U\"}"] {
        let error = receive_bytes(hopeless, "public-key", &key).unwrap_err();
        assert_eq!((error.code, error.address), (ErrorCode::MalformedJob, None), "{hopeless}");
    }
    let mut nameless = public_key();
    nameless["jobId"] = json!("with.dot");
    assert_eq!(receive(&nameless).unwrap_err().address, None);
}

#[test]
fn whoever_did_not_sign_cannot_occupy_the_result() {
    let body = sign().to_string();
    let good = sign_job(&initiator_key(), body.clone().into_bytes()).unwrap().signature.0;
    let header = |signature: &[u8]| BASE64.encode(signature);
    let parse = |version, signature: Option<&str>, body: &str| {
        let headers = JobHeaders { version, signature, ..JobHeaders::default() };
        Job::parse(&format!("mpc.job.sign.{}", "ab".repeat(16)), headers, body.as_bytes())
    };
    assert!(parse(Some("1"), Some(&header(&good)), &body).is_ok());
    let mut flipped = good;
    flipped[0] ^= 1;
    // The same key over the body alone, over its hash alone, and under another tag: all are somebody else's messages.
    let digest: [u8; 32] = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(&body)).into();
    let plain = initiator_key().sign(body.as_bytes()).unwrap();
    let hashed = initiator_key().sign(&digest).unwrap();
    let tagged = initiator_key().sign(&[b"\xfftrefoil-attest-v1\0".as_slice(), &digest].concat()).unwrap();
    let stranger = sign_job(&KeyPair::new_user(), body.clone().into_bytes()).unwrap().signature.0;
    let cases = [
        (Some("1"), None, ErrorCode::UnsignedJob),
        (None, Some(header(&good)), ErrorCode::UnsupportedVersion),
        (Some("2"), Some(header(&good)), ErrorCode::UnsupportedVersion),
        (Some("1"), Some(header(&flipped)), ErrorCode::BadSignature),
        (Some("1"), Some(header(&good[..63])), ErrorCode::BadSignature),
        (Some("1"), Some("%".to_owned()), ErrorCode::BadSignature),
        (Some("1"), Some(header(&plain)), ErrorCode::BadSignature),
        (Some("1"), Some(header(&hashed)), ErrorCode::BadSignature),
        (Some("1"), Some(header(&tagged)), ErrorCode::BadSignature),
        (Some("1"), Some(header(&stranger)), ErrorCode::BadSignature),
        (Some("1"), Some(header(&[0; 64])), ErrorCode::BadSignature),
    ];
    for (version, signature, code) in cases {
        let error = parse(version, signature.as_deref(), &body).unwrap_err();
        assert_eq!((error.code, error.address), (code, refused_address()), "{version:?} {signature:?}");
    }
    // The initiator did not sign the authoriser's headers, so what is wrong with them is not the job's result.
    let name = KeyPair::new_user().public_key();
    let text = header(&good);
    for (authoriser, authoriser_signature) in [
        (Some(name.as_str()), None),
        (None, Some(text.as_str())),
        (Some("U"), Some(text.as_str())),
        (Some(name.as_str()), Some("%")),
    ] {
        let headers = JobHeaders { version: Some("1"), signature: Some(&text), authoriser, authoriser_signature };
        let error = Job::parse(&format!("mpc.job.sign.{}", "ab".repeat(16)), headers, body.as_bytes()).unwrap_err();
        assert_eq!((error.code, error.address), (ErrorCode::NotAuthorised, refused_address()));
    }
    let error = parse(Some("1"), Some(&header(&good)), &body.replace("m/0/1", "m/0/2")).unwrap_err();
    assert_eq!((error.code, error.address), (ErrorCode::BadSignature, refused_address()));
    assert_eq!(refused_address().unwrap().subject(), format!("mpc.result.{}.job-1.refused", initiator()));
    assert_eq!(own_address().unwrap().subject(), format!("mpc.result.{}.job-1", initiator()));
}

#[test]
fn subject_and_body_must_agree() {
    let body = sign().to_string();
    let key = "ab".repeat(16);
    for (op, key) in [("sign", "ab".repeat(15) + "ac"), ("generate", key.clone()), ("", key), ("sign", String::new())] {
        let error = receive_bytes(&body, op, &key).unwrap_err();
        assert_eq!((error.code, error.address), (ErrorCode::SubjectMismatch, refused_address()), "{op} {key}");
    }
}

#[test]
fn the_lane_is_in_the_signed_body_and_in_the_subject() {
    let signature = |body: &str| BASE64.encode(&sign_job(&initiator_key(), body.into()).unwrap().signature.0);
    let parse = |body: &str, lane| {
        let signature = signature(body);
        let headers = JobHeaders { version: Some("1"), signature: Some(&signature), ..JobHeaders::default() };
        Job::parse(&subject::job(lane, Op::Sign, &KeyId([0xab; 16])), headers, body.as_bytes())
    };
    for (named, lane) in
        [(None, Lane::Interactive), (Some("interactive"), Lane::Interactive), (Some("bulk"), Lane::Bulk)]
    {
        let mut job = sign();
        set(&mut job, "/lane", json!(named));
        let body = job.to_string();
        assert_eq!(parse(&body, lane).unwrap().lane, lane);
        let other = if lane == Lane::Bulk { Lane::Interactive } else { Lane::Bulk };
        let error = parse(&body, other).unwrap_err();
        assert_eq!((error.code, error.address), (ErrorCode::LaneMismatch, refused_address()), "{named:?}");
        // Nothing waits where an answer comes at once.
        let signature = signature(&body);
        let headers = JobHeaders { version: Some("1"), signature: Some(&signature), ..JobHeaders::default() };
        assert_eq!(Job::from_request(headers, body.as_bytes()).unwrap().lane, lane);
    }
}

#[test]
fn every_changed_byte_of_a_signed_job_is_refused() {
    let signed = sign_job(&initiator_key(), sign().to_string().into_bytes()).unwrap();
    for at in 0..signed.body.len() {
        let mut changed = signed.clone();
        changed.body[at] ^= 1;
        assert!(Job::from_signed(&changed).is_err(), "byte {at}");
    }
    for at in 0..64 {
        let mut changed = signed.clone();
        changed.signature.0[at] ^= 1;
        let error = Job::from_signed(&changed).unwrap_err();
        assert_eq!((error.code, error.address), (ErrorCode::BadSignature, refused_address()), "byte {at}");
    }
}

#[test]
fn oversized_bodies_are_refused_unread() {
    let padded = |length: usize| {
        let body = public_key().to_string();
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    let key = "ab".repeat(16);
    assert!(receive_bytes(&padded(MAX_BODY_BYTES), "public-key", &key).is_ok());
    let error = receive_bytes(&padded(MAX_BODY_BYTES + 1), "public-key", &key).unwrap_err();
    assert_eq!(error.code, ErrorCode::JobTooLarge);
    assert!(error.address.is_some_and(|address| address.refused), "unverified, so it cannot occupy the job's result");
}

#[test]
fn messages_never_repeat_what_was_sent() {
    let mut cases = vec![];
    for pointer in [
        "/op",
        "/keyId",
        "/issuedAt",
        "/replyKey",
        "/payload",
        "/payload/curve",
        "/payload/method",
        "/payload/digest",
        "/payload/message",
        "/payload/path",
        "/payload/secrets",
        "/payload/secrets/box",
        "/payload/secrets/senderKey",
        "/version",
        "/expiresAt",
    ] {
        let mut job = sign();
        set(&mut job, pointer, json!(CANARY));
        cases.push(receive(&job).expect_err(pointer));
    }
    let mut job = generate();
    job["payload"]["kdf"] = json!(CANARY);
    cases.push(receive(&job).unwrap_err());
    for error in cases {
        assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let signed = sign_job(&initiator_key(), body).unwrap();
        prop_assert!(Job::from_signed(&signed).is_err());
    }

    /// Cut, repeat or overwrite a piece of a good job, and sign the outcome.
    #[test]
    fn mutated_jobs_never_panic(
        which in 0usize..4,
        at in any::<prop::sample::Index>(),
        length in 0usize..40,
        with in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:\\0e-.null".to_vec())], 0..20),
    ) {
        let mut body = [generate, sign, sign_ed25519, public_key][which]().to_string().into_bytes();
        let start = at.index(body.len());
        let end = (start + length).min(body.len());
        body.splice(start..end, with);
        let signed = sign_job(&initiator_key(), body).unwrap();
        if let Err(error) = Job::from_signed(&signed) {
            prop_assert!(error.message.len() < 300);
            prop_assert!(error.message.chars().all(|c| !c.is_control()));
        }
    }

    #[test]
    fn node_calls_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = postcard::from_bytes::<Call>(&bytes);
    }

    #[test]
    fn a_job_id_is_one_subject_token(text in "\\PC{0,70}") {
        if let Ok(id) = text.parse::<JobId>() {
            prop_assert!(!id.as_str().contains(['.', '*', '>', ' ']));
            prop_assert_eq!(id.as_str(), text);
        }
    }
}

#[test]
fn ids_are_strict() {
    for bad in ["", "a.b", "a b", "a*", ">", "é", &"a".repeat(65)] {
        assert!(bad.parse::<JobId>().is_err(), "{bad}");
    }
    let text = initiator().to_string();
    let account = KeyPair::new_account().public_key();
    let seed = KeyPair::new_user().seed().unwrap();
    let mut typo = text.clone();
    typo.replace_range(10..11, if &text[10..11] == "A" { "B" } else { "A" });
    for bad in ["", "U", &account, &seed, &typo, &text.to_lowercase(), &text[..55]] {
        assert!(bad.parse::<InitiatorId>().is_err(), "{bad}");
    }
    assert!(worker_key().public_key().parse::<SealKey>().is_ok());
    assert!(worker_key().seed().unwrap().parse::<SealKey>().is_err());
    assert!(text.parse::<SealKey>().is_err());
}

#[test]
fn key_ids_follow_from_initiator_and_job() {
    let id = |job: &str| KeyId::derive(&initiator(), &job.parse().unwrap());
    assert_eq!(id("job-1"), id("job-1"));
    assert_ne!(id("job-1"), id("job-2"));
    let other: InitiatorId = KeyPair::new_user().public_key().parse().unwrap();
    assert_ne!(KeyId::derive(&other, &job_id()), id("job-1"));
}

#[test]
fn job_subjects_split_into_lane_and_two_tokens() {
    let key = KeyId([0xab; 16]);
    for (lane, begins) in [(Lane::Interactive, "mpc.job."), (Lane::Bulk, "mpc.bulk.")] {
        let text = subject::job(lane, Op::PublicKey, &key);
        assert!(text.starts_with(begins), "{text}");
        assert_eq!(subject::split_job(&text), Some((lane, "public-key", "ab".repeat(16).as_str())));
    }
    for bad in ["mpc.job.sign", "mpc.job.sign.a.b", "mpc.result.sign.a", "mpc.job.", "mpc.bulk", "mpc.bulks.sign.a", ""]
    {
        assert_eq!(subject::split_job(bad), None, "{bad}");
    }
}

#[test]
fn codes_are_unique_and_say_what_to_do() {
    let texts: std::collections::HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
    assert_eq!(texts.len(), ErrorCode::ALL.len());
    for code in ErrorCode::ALL {
        assert!(code.action().ends_with('.') && code.action().len() < 120, "{code}");
        assert_eq!(serde_json::to_value(code).unwrap(), json!(code.as_str()));
    }
    let retried: Vec<_> = ErrorCode::ALL.iter().filter(|c| c.disposition() == Disposition::Retry).collect();
    assert_eq!(
        retried,
        [&ErrorCode::NodeUnavailable, &ErrorCode::KeyBusy, &ErrorCode::Overloaded, &ErrorCode::RateLimited]
    );
}

#[test]
fn times_are_checked_at_their_limits() {
    let policy = TimePolicy { max_lifetime_ms: 60_000, max_skew_ms: 500 };
    let job = receive(&sign()).unwrap();
    assert_eq!(policy.check(&job, 499), Err(ErrorCode::JobNotYetValid));
    assert_eq!(policy.check(&job, 500), Ok(()));
    assert_eq!(policy.check(&job, 60_999), Ok(()));
    assert_eq!(policy.check(&job, 61_000), Err(ErrorCode::JobExpired));
    let mut long = sign();
    long["expiresAt"] = json!(61_001);
    assert_eq!(policy.check(&receive(&long).unwrap(), 2_000), Err(ErrorCode::JobLifetimeTooLong));
    long["expiresAt"] = json!(u64::MAX);
    assert_eq!(policy.check(&receive(&long).unwrap(), u64::MAX), Err(ErrorCode::JobLifetimeTooLong));
}
