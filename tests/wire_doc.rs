//! The examples and the table of codes in docs/wire.md are what the code does, made from fixed keys. This test fails when
//! they differ; `TREFOIL_UPDATE_SCHEMAS=1` rewrites them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::SigningKey;
use nkeys::{KeyPair, KeyPairType, XKey};
use serde::Serialize;
use serde_json::json;
use std::fmt::Write;
use trefoil::auth::{job_signing_bytes, sign_job};
use trefoil::seal::{self, Binding};
use trefoil::wire::node::KeyStatement;
use trefoil::wire::{
    Attestation, Attestations, Batch, CancelStatement, Curve, Decision, DecisionKind, Disposition, DurationCount,
    Envelope, ErrorCode, Event, EventOutcome, Failure, Fixed, GenerateBody, InitiatorId, Job, JobCount, JobHeaders,
    JobId, JobResult, JobState, JobStatus, KdfParams, KeyEntry, KeyId, KeyList, KeyResult, Lane, ListedState, Method,
    NodesUp, Op, Outcome, PublicKeyBody, Sealed, SignBody, SignInput, SignatureResult, Snapshot, subject,
};

fn initiator_key() -> KeyPair {
    KeyPair::new_from_raw(KeyPairType::User, [1; 32]).unwrap()
}
fn initiator() -> InitiatorId {
    initiator_key().public_key().parse().unwrap()
}
fn worker_key() -> XKey {
    XKey::new_from_raw([2; 32])
}
fn sender_key() -> XKey {
    XKey::new_from_raw([3; 32])
}
fn reply_key() -> XKey {
    XKey::new_from_raw([4; 32])
}
fn job_id() -> JobId {
    "order-4711".parse().unwrap()
}
fn key_id() -> KeyId {
    KeyId::derive(&initiator(), &job_id())
}
fn binding() -> Binding {
    Binding { job_id: job_id(), key_id: key_id(), initiator: initiator() }
}

fn plaintext() -> String {
    json!({
        "version": 1, "jobId": job_id(), "keyId": key_id(), "initiator": initiator(),
        "password": BASE64.encode(b"correct horse battery staple"),
    })
    .to_string()
}

/// As `seal::seal`, with a fixed nonce.
fn sealed() -> Sealed {
    let sealed = sender_key().seal_with_nonce(plaintext().as_bytes(), &worker_key(), [5; 24].into()).unwrap();
    let sealed = Sealed {
        recipient_key: worker_key().public_key().parse().unwrap(),
        sender_key: sender_key().public_key().parse().unwrap(),
        sealed: sealed.into(),
    };
    let opened = seal::open(&worker_key(), &binding(), &sealed).unwrap();
    assert_eq!(opened.password.unwrap().expose(), b"correct horse battery staple");
    sealed
}

fn envelope<P: Serialize>(op: Op, job_id: &str, payload: P) -> Envelope<P> {
    Envelope {
        version: 1,
        op: op.to_string(),
        job_id: job_id.parse().unwrap(),
        lane: None,
        key_id: key_id(),
        initiator: initiator(),
        issued_at: 1_790_000_000_000,
        expires_at: 1_790_000_060_000,
        reply_key: reply_key().public_key().parse().unwrap(),
        payload,
    }
}

fn generate_job() -> Job {
    let payload = GenerateBody::new(Curve::Secp256k1, KdfParams::default(), sealed());
    let body = envelope(Op::Generate, job_id().as_str(), payload).to_bytes().unwrap();
    let signed = sign_job(&initiator_key(), body).unwrap();
    let signature = BASE64.encode(&signed.signature.0);
    let headers = JobHeaders { version: Some("1"), signature: Some(&signature), ..JobHeaders::default() };
    Job::parse(&subject::job(Lane::Interactive, Op::Generate, &key_id()), headers, &signed.body).unwrap()
}

fn sign_job_of(input: &SignInput) -> Job {
    let body = envelope(Op::Sign, "order-4712", SignBody::new(Method::Default, input, sealed())).to_bytes().unwrap();
    Job::from_signed(&sign_job(&initiator_key(), body).unwrap()).unwrap()
}

fn pretty(value: &impl Serialize) -> String {
    format!("```json\n{}\n```", serde_json::to_string_pretty(value).unwrap())
}

fn text(lines: &[(&str, String)]) -> String {
    let mut block = "```text\n".to_owned();
    for (name, value) in lines {
        writeln!(block, "{name:<14} {value}").unwrap();
    }
    block + "```"
}

/// The fields of the framed hash, so that a reader can check every step.
fn framed(tag: &str, fields: &[&[u8]]) -> String {
    let tag = format!("trefoil/v1/{tag}");
    let mut bytes = vec![tag.len() as u8];
    bytes.extend_from_slice(tag.as_bytes());
    for field in fields {
        bytes.extend_from_slice(&(field.len() as u32).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    HEXLOWER.encode(&bytes)
}

fn keys() -> String {
    text(&[
        ("initiator seed", initiator_key().seed().unwrap()),
        ("initiator", initiator().to_string()),
        ("worker seed", worker_key().seed().unwrap()),
        ("worker key", worker_key().public_key()),
        ("sender seed", sender_key().seed().unwrap()),
        ("sender key", sender_key().public_key()),
        ("reply seed", reply_key().seed().unwrap()),
        ("reply key", reply_key().public_key()),
        ("node 1", HEXLOWER.encode(node(1).verifying_key().as_bytes())),
        ("node 2", HEXLOWER.encode(node(2).verifying_key().as_bytes())),
    ])
}

fn key_id_example() -> String {
    text(&[
        ("job id", job_id().to_string()),
        ("hash input", framed("key-id", &[initiator().as_str().as_bytes(), job_id().as_str().as_bytes()])),
        ("key id", key_id().to_string()),
    ])
}

fn box_example() -> String {
    text(&[
        ("plaintext", plaintext()),
        ("nonce", HEXLOWER.encode(&[5; 24])),
        ("box", BASE64.encode(&sealed().sealed.0)),
    ])
}

fn job_example() -> String {
    let job = generate_job();
    text(&[
        ("subject", subject::job(Lane::Interactive, Op::Generate, &key_id())),
        ("header", format!("{}: 1", JobHeaders::VERSION)),
        ("header", format!("{}: {}", JobHeaders::SIGNATURE, BASE64.encode(&job.signed.signature.0))),
        ("body", String::from_utf8(job.signed.body.clone()).unwrap()),
        ("body SHA-256", HEXLOWER.encode(&job.digest)),
        ("signed bytes", HEXLOWER.encode(&job_signing_bytes(&job.digest))),
        ("result on", subject::result(&initiator(), &job_id())),
    ])
}

fn sign_payloads() -> String {
    let secp256k1 = SignInput::Secp256k1 { digest: [0xcd; 32], path: Some("m/0/1".to_owned()) };
    let ed25519 = SignInput::Ed25519 { message: b"hello".to_vec() };
    let mut blocks = vec![];
    for input in [secp256k1, ed25519] {
        let body: serde_json::Value = serde_json::from_slice(&sign_job_of(&input).signed.body).unwrap();
        let mut payload = body["payload"].clone();
        payload["secrets"]["box"] = json!("eGt2MQ…");
        blocks.push(pretty(&payload));
    }
    let items = Batch::new(vec![
        SignInput::Secp256k1 { digest: [0xcd; 32], path: Some("m/0/1".to_owned()) },
        SignInput::Secp256k1 { digest: [0xef; 32], path: None },
    ]);
    let body = SignBody::batch(Method::Default, &items.unwrap(), sealed());
    let body = envelope(Op::Sign, "order-4712", body).to_bytes().unwrap();
    assert!(Job::from_signed(&sign_job(&initiator_key(), body.clone()).unwrap()).is_ok());
    let mut payload = serde_json::from_slice::<serde_json::Value>(&body).unwrap()["payload"].clone();
    payload["secrets"]["box"] = json!("eGt2MQ…");
    blocks.push(pretty(&payload));
    let public_key = envelope(Op::PublicKey, "order-4713", PublicKeyBody::default()).to_bytes().unwrap();
    assert!(Job::from_signed(&sign_job(&initiator_key(), public_key).unwrap()).is_ok());
    blocks.join("\n\n")
}

fn reshare_payloads() -> String {
    let mut blocks = vec![];
    for op in [Op::Recover, Op::Refresh] {
        let payload = GenerateBody::new(Curve::Ed25519, KdfParams::default(), sealed());
        let body = envelope(op, "order-4714", payload).to_bytes().unwrap();
        let job = Job::from_signed(&sign_job(&initiator_key(), body.clone()).unwrap()).unwrap();
        assert_eq!((job.op(), job.made_key() == Some(key_id())), (op, op == Op::Refresh));
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let mut payload = body["payload"].clone();
        payload["secrets"]["box"] = json!("eGt2MQ…");
        blocks.push(payload);
    }
    assert_eq!(blocks[0], blocks[1], "one example serves for both");
    pretty(&blocks[0])
}

fn node(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[5 + number; 32])
}

fn statement(number: u8) -> KeyStatement {
    let mut statement = KeyStatement {
        job_digest: generate_job().digest,
        key_id: key_id(),
        source_key_id: None,
        epoch: 0,
        curve: Curve::Secp256k1,
        // The generator, as if the secret key were 1.
        public_key: HEXLOWER.decode(b"0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798").unwrap(),
        chain_code: [0x45; 32],
        transcript: [0x56; 32],
        signature: Fixed([0; 64]),
    };
    statement.signature = Fixed(attestation(&statement).sign(&node(number)));
    statement
}

fn key_result() -> KeyResult {
    let (one, two) = (statement(1), statement(2));
    let key = KeyResult::agreed(&one, &two, None).unwrap();
    assert_eq!(key.attestations, Attestations { node1: one.signature, node2: two.signature });
    let mut other = two.clone();
    other.chain_code = [0; 32];
    assert!(KeyResult::agreed(&one, &other, None).is_none());
    assert!(attestation(&one).verify(&node(1).verifying_key(), &one.signature.0));
    key
}

fn attestation(statement: &KeyStatement) -> Attestation {
    Attestation {
        initiator: initiator(),
        job_digest: statement.job_digest,
        key_id: statement.key_id,
        source_key_id: statement.source_key_id,
        epoch: statement.epoch,
        curve: statement.curve,
        public_key: statement.public_key.clone(),
        chain_code: statement.chain_code,
        transcript: statement.transcript,
    }
}

fn attestation_example() -> String {
    let key = key_result();
    let statement = statement(1);
    let epoch = statement.epoch.to_be_bytes();
    let initiator = initiator();
    let fields: [&[u8]; 9] = [
        initiator.as_str().as_bytes(),
        &statement.job_digest,
        &statement.key_id.0,
        &[],
        &epoch,
        statement.curve.as_str().as_bytes(),
        &statement.public_key,
        &statement.chain_code,
        &statement.transcript,
    ];
    text(&[
        ("hash input", framed("attest", &fields)),
        ("signed bytes", HEXLOWER.encode(&attestation(&statement).signing_bytes())),
        ("by node 1", key.attestations.node1.to_string()),
        ("by node 2", key.attestations.node2.to_string()),
    ])
}

fn commit_example() -> String {
    let KeyStatement { key_id, epoch, transcript, .. } = statement(1);
    let decision = Decision { kind: DecisionKind::Committed, key_id, epoch, transcript };
    text(&[
        ("hash input", framed("committed", &[&key_id.0, &epoch.to_be_bytes(), &transcript])),
        ("signed bytes", HEXLOWER.encode(&decision.signing_bytes())),
        ("by node 1", HEXLOWER.encode(&decision.sign(&node(1)))),
        ("by node 2", HEXLOWER.encode(&decision.sign(&node(2)))),
    ])
}

fn results() -> String {
    let mut shown = sealed();
    shown.recipient_key = reply_key().public_key().parse().unwrap();
    let ok = Outcome::generated(key_result(), shown);
    let generated = JobResult::of(&generate_job(), 1_790_000_000_412, ok);
    let job = sign_job_of(&SignInput::Ed25519 { message: b"hello".to_vec() });
    let signature = SignatureResult {
        curve: Curve::Ed25519,
        method: Method::resolve(Curve::Ed25519),
        signature: Fixed([0x77; 64]),
        recovery_id: None,
        public_key: "78".repeat(32),
        path: None,
    };
    let ok = Outcome::signed(signature);
    let signed = JobResult::of(&job, 1_790_000_000_029, ok);
    let failed =
        JobResult::of(&job, 1_790_000_000_031, Outcome::failed(ErrorCode::WrongPassword, "the password is wrong"));
    let mut retired = Failure::new(ErrorCode::KeyRetired, "node1: Use the key id that replaced this one.");
    retired.new_key_id = Some(KeyId::derive(&initiator(), &"order-4714".parse().unwrap()));
    let retired = JobResult::of(&job, 1_790_000_000_033, Outcome::Error { error: retired });
    let mut blocks = vec![];
    for result in [generated, signed, failed, retired] {
        let value = serde_json::to_value(&result).unwrap();
        assert_eq!(serde_json::from_value::<JobResult>(value.clone()).unwrap(), result);
        let mut extended = value.clone();
        extended["outcome"]["extra"] = json!(1);
        assert!(serde_json::from_value::<JobResult>(extended).is_err(), "unknown fields are refused");
        let mut value = value;
        if value["outcome"]["secrets"].is_object() {
            value["outcome"]["secrets"]["box"] = json!("eGt2MQ…");
        }
        blocks.push(pretty(&value));
    }
    blocks.join("\n\n")
}

fn manage_example() -> String {
    let list = KeyList {
        keys: vec![KeyEntry {
            key_id: key_id(),
            curve: Curve::Secp256k1,
            public_key: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".to_owned(),
            label: Some("till 1".to_owned()),
            created_at: 1_790_000_000_412,
            state: ListedState::Active,
            epoch: 1,
            source_key_id: None,
            new_key_id: None,
        }],
        next: Some(key_id()),
    };
    let result_subject = Some(subject::result(&initiator(), &job_id()));
    let status = JobStatus { job_id: job_id(), state: JobState::Done, result_subject };
    let statement = CancelStatement { initiator: initiator(), job_digest: generate_job().digest, key_id: key_id() };
    let (digest, id) = (generate_job().digest, key_id());
    let owner = initiator();
    let fields: [&[u8]; 3] = [owner.as_str().as_bytes(), &digest, &id.0];
    let signed = text(&[
        ("hash input", framed("recovery-cancelled", &fields)),
        ("signed bytes", HEXLOWER.encode(&statement.signing_bytes())),
    ]);
    [pretty(&Outcome::listed(list)), pretty(&Outcome::of_job(status)), signed].join("\n\n")
}

fn event() -> String {
    pretty(&Event {
        version: 1,
        job_id: job_id(),
        key_id: key_id(),
        op: Op::Generate,
        curve: Some(Curve::Secp256k1),
        method: None,
        lane: Lane::Interactive,
        worker_id: "worker-7f3a".to_owned(),
        outcome: EventOutcome::Completed,
        code: None,
        duration_ms: 412,
        at: 1_790_000_000_412,
    })
}

fn snapshot() -> String {
    let jobs = |op, curve, code, count| JobCount { op: Some(op), curve: Some(curve), code, count };
    pretty(&Snapshot {
        version: 1,
        worker_id: "worker-7f3a".to_owned(),
        build: "1.0.0".to_owned(),
        started_at: 1_790_000_000_000,
        at: 1_790_000_005_000,
        interval_ms: 5_000,
        draining: false,
        jobs: vec![
            jobs(Op::Sign, Curve::Secp256k1, None, 412),
            jobs(Op::Sign, Curve::Secp256k1, Some(ErrorCode::WrongPassword), 1),
        ],
        refused: 0,
        retries: 2,
        in_flight: 7,
        slots: 64,
        waiting: 0,
        durations: vec![
            DurationCount { above_ms: 4, to_ms: Some(6), count: 390 },
            DurationCount { above_ms: 6, to_ms: Some(8), count: 23 },
        ],
        nodes: NodesUp { node1: Some(true), node2: Some(true) },
    })
}

fn codes() -> String {
    let mut table = "| code | retried | what to do |\n|---|---|---|\n".to_owned();
    for code in ErrorCode::ALL {
        let retried = if code.disposition() == Disposition::Retry { "yes" } else { "" };
        writeln!(table, "| `{code}` | {retried} | {} |", code.action()).unwrap();
    }
    table.trim_end().to_owned()
}

#[test]
fn the_document_shows_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/wire.md");
    let before = std::fs::read_to_string(path).unwrap();
    let mut after = before.clone();
    for (name, block) in [
        ("keys", keys()),
        ("key-id", key_id_example()),
        ("box", box_example()),
        ("job", job_example()),
        ("sign-payloads", sign_payloads()),
        ("reshare-payloads", reshare_payloads()),
        ("attestation", attestation_example()),
        ("commit", commit_example()),
        ("results", results()),
        ("manage", manage_example()),
        ("event", event()),
        ("snapshot", snapshot()),
        ("codes", codes()),
    ] {
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("\n<!-- end {name} -->"));
        let start = after.find(&begin).unwrap_or_else(|| panic!("{begin} is missing")) + begin.len();
        let stop = start + after[start..].find(&end).unwrap_or_else(|| panic!("{end} is missing"));
        after.replace_range(start..stop, &block);
    }
    if std::env::var_os("TREFOIL_UPDATE_SCHEMAS").is_some() {
        std::fs::write(path, &after).unwrap();
    } else {
        assert!(before == after, "docs/wire.md differs; run the test with TREFOIL_UPDATE_SCHEMAS=1 and review");
    }
}
