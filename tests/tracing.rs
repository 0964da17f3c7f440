//! One job's trace: from the backend through worker and nodes to the result, in JSON logs that hold ids and no payload.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::jetstream::{self, Context};
use deployment::{Deployment, Forge, PASSWORD, QUICK, digest, material, message, new_key, outcome, secrets};
use serde_json::Value;
use support::canary::{Canary, files, search};
use trefoil::client::Backend;
use trefoil::telemetry::trace::{HEADER, TraceContext};
use trefoil::wire::{Curve, JobId, KeyId, Outcome, subject};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn trace_of(parent: &str) -> &str {
    &parent[3..35]
}

/// The service with one worker, everything that it says in JSON.
fn verbose() -> Deployment {
    let mut service = Deployment::new();
    service.log = "trefoil=trace,info";
    service.node_settings = vec![("RUST_LOG_FORMAT", "json".to_owned())];
    service.worker_settings = service.node_settings.clone();
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker1");
    service
}

/// The spans of this name around the lines of a process's log.
fn spans(service: &mut Deployment, process: &str, name: &str) -> Vec<Value> {
    let log = service.process(process).log();
    let lines =
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}")));
    let around = lines.flat_map(|line| line["spans"].as_array().cloned().unwrap_or_default());
    around.filter(|span| span["name"] == name).collect()
}

/// What a result's message says of its trace.
async fn trace_of_result(backend: &Backend, jetstream: &Context, job: &JobId) -> Option<String> {
    let stream = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let subject = subject::result(backend.jobs().initiator(), job);
    let message = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    message.headers.get(HEADER).map(|value| value.as_str().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_trace_leads_through_all_processes_and_tells_no_secret() {
    let mut service = verbose();
    let mut backend = service.backend().await;
    backend.set_trace(TraceContext::parse(PARENT));
    let jetstream = jetstream::new(service.nats.connect().await);
    let mut canaries = vec![Canary::new("the password", PASSWORD)];
    let mut jobs: Vec<(JobId, KeyId)> = Vec::new();
    for (curve, input) in [(Curve::Secp256k1, digest(7)), (Curve::Ed25519, message("a message that is signed"))] {
        let new = backend.generate(curve, QUICK, deployment::password()).await.unwrap();
        backend.committed(&new.key, deployment::PATIENCE).await.unwrap();
        let key = material(&new);
        canaries.push(Canary::new("a share", &key.encrypted_share[120..]));
        canaries.push(Canary::new("a secretStore", &key.secret_store[60..]));
        let request = Forge::new(&backend).sign(&key, &input, &secrets(&key));
        assert!(matches!(outcome(&backend, &request).await.outcome, Outcome::Ok { .. }));
        let told = trace_of_result(&backend, &jetstream, &request.job_id).await.unwrap();
        assert_eq!(trace_of(&told), trace_of(PARENT));
        assert_ne!(told, PARENT, "a span of its own");
        backend.validate(&key, deployment::password(), false).await.unwrap();
        jobs.push((request.job_id, request.key_id));
    }
    canaries.push(Canary::new("what is signed", b"a message that is signed"));
    for process in ["worker1", "node1", "node2"] {
        assert!(service.process(process).terminate().success());
    }

    let is = |span: &Value, name: &str, value: &dyn std::fmt::Display| span[name] == value.to_string();
    for (job, key) in &jobs {
        let of_job =
            |span: &&Value| is(span, "job", job) && is(span, "key", key) && is(span, "trace", &trace_of(PARENT));
        let worker = spans(&mut service, "worker1", "job");
        assert!(worker.iter().filter(of_job).any(|span| span["op"] == "sign"), "{worker:#?}");
        let node = spans(&mut service, "node1", "call");
        for round in ["sign_close", if *job == jobs[0].0 { "sign_round2" } else { "frost_sign" }] {
            let found: Vec<_> = node.iter().filter(of_job).filter(|span| span["round"] == round).collect();
            assert!(
                found.iter().any(|span| span["session"].as_str().is_some_and(|id| id.len() == 32)),
                "{round}: {node:#?}"
            );
        }
    }
    let made = spans(&mut service, "node2", "call");
    assert!(
        made.iter().any(|span| is(span, "trace", &trace_of(PARENT)) && span["round"] == "generate_prepare"),
        "{made:#?}"
    );
    let searched = search(&files(&[service.folder.path()]), &canaries);
    assert!(searched > 10_000, "{searched}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_trace_is_none_and_the_command_line_passes_on_its_own() {
    let mut service = verbose();
    let backend = service.backend().await;
    let jetstream = jetstream::new(service.nats.connect().await);
    let key = new_key(&backend, Curve::Ed25519).await;
    for (number, bad) in [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned(),
        format!("{PARENT}-malicious"),
        "\"},{\"malicious\":\"".to_owned(),
        "malicious".repeat(5_000),
    ]
    .into_iter()
    .enumerate()
    {
        let text = format!("message {number}");
        let mut request = Forge::new(&backend).sign(&key, &message(&text), &secrets(&key));
        request.headers.insert(HEADER, bad.as_str());
        assert!(matches!(outcome(&backend, &request).await.outcome, Outcome::Ok { .. }));
        assert_eq!(trace_of_result(&backend, &jetstream, &request.job_id).await, None);
    }
    // Without one in its environment each job is a trace of its own.
    let request = Forge::new(&backend).sign(&key, &message("alone"), &secrets(&key));
    outcome(&backend, &request).await;
    let sign = ["generate", "--curve", "ed25519", "--memory-kib", "64", "--passes", "1", "--out", "key.json"];
    let done = service.cli().env("TRACEPARENT", PARENT).args(sign).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    assert!(service.process("worker1").terminate().success());
    let seen = spans(&mut service, "worker1", "job");
    assert!(seen.iter().any(|span| span["op"] == "generate" && span["trace"] == trace_of(PARENT)), "{seen:#?}");
    let alone = seen.iter().find(|span| span["job"] == request.job_id.as_str()).unwrap();
    assert!(alone["trace"].as_str().is_some_and(|trace| trace.len() == 32 && trace != trace_of(PARENT)), "{alone}");
    for process in ["worker1", "node1", "node2"] {
        assert!(!service.process(process).log().contains("malicious"), "{process}");
    }
}
