//! What a worker counts is what became of its jobs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::jetstream::{self, Context};
use deployment::metrics::Scrape;
use deployment::{
    Deployment, Forge, PATIENCE, code, digest, message, new_key, outcome, password, secrets, wait_until_empty,
};
use futures::StreamExt;
use std::collections::BTreeMap;
use tokio::time::timeout;
use trefoil::client::Backend;
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Batch, Curve, ErrorCode, Event, EventOutcome, JobResult, Lane, Method, Op, Outcome};
use zeroize::Zeroizing;

/// Two nodes and a worker that serves its metrics and says something every second.
fn measured() -> Deployment {
    let mut service = Deployment::new();
    service.worker_settings = vec![("TREFOIL_METRICS_LISTEN", "127.0.0.1:0".to_owned())];
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker1");
    service
}

/// How often each operation ended in each code, `""` for those that were done.
type Tally = BTreeMap<(String, String), u64>;

fn entry(op: Option<Op>, code: Option<ErrorCode>) -> (String, String) {
    (op.map_or("", Op::as_str).to_owned(), code.map_or("", ErrorCode::as_str).to_owned())
}

/// Everything in the stream of results: the results, and how many refusals beside them.
async fn stored(jetstream: &Context) -> (Tally, BTreeMap<String, u64>) {
    let (mut tally, mut refused) = (Tally::new(), BTreeMap::new());
    let stream = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let state = &stream.cached_info().state;
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let result: JobResult = serde_json::from_slice(&message.payload).unwrap();
        let failed = match &result.outcome {
            Outcome::Ok { .. } => None,
            Outcome::Error { error } => Some(error.code),
        };
        if message.subject.ends_with(".refused") {
            *refused.entry(failed.unwrap().as_str().to_owned()).or_default() += 1;
        } else {
            *tally.entry(entry(result.op, failed)).or_default() += 1;
        }
    }
    (tally, refused)
}

/// The same as the worker has counted it.
fn counted(scrape: &Scrape) -> Tally {
    let label = |series: &str, name: &str| {
        series.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
    };
    let mut tally = Tally::new();
    for (series, value) in scrape.series("trefoil_jobs_total", &[]).filter(|(_, value)| *value > 0.0) {
        *tally.entry((label(series, "op"), label(series, "code"))).or_default() += value as u64;
    }
    tally
}

/// Jobs that end in every way: well, in errors, refused, and after they went back to the queue. How many results they have.
async fn known_set(service: &mut Deployment, backend: &Backend) -> u64 {
    let (ecdsa, eddsa) = (new_key(backend, Curve::Secp256k1).await, new_key(backend, Curve::Ed25519).await);
    for number in 0..3 {
        backend.sign(&ecdsa, Method::Default, &digest(number), password()).await.unwrap();
    }
    for number in 0..4 {
        backend.sign(&eddsa, Method::Default, &message(&number.to_string()), password()).await.unwrap();
    }
    let batch = Batch::new((0..3).map(digest).collect()).unwrap();
    backend.sign_batch(&ecdsa, Method::Default, &batch, password()).await.unwrap();

    // Errors.
    let forge = Forge::new(backend);
    let wrong =
        || Secrets { password: Some(Password::new(Zeroizing::new(b"wrong".to_vec())).unwrap()), ..secrets(&eddsa) };
    for _ in 0..2 {
        let result = outcome(backend, &forge.sign(&eddsa, &message("m"), &wrong())).await;
        assert_eq!(code(&result), ErrorCode::WrongPassword);
    }
    let other_curve = forge.sign(&eddsa, &digest(1), &secrets(&eddsa));
    assert_eq!(code(&outcome(backend, &other_curve).await), ErrorCode::CurveMismatch);
    // One that is no job, but says whose it is.
    let good = forge.sign(&eddsa, &message("good"), &secrets(&eddsa));
    let unknown = forge.edit(&good, |body| body["nonsense"] = serde_json::json!(1));
    assert_eq!(code(&outcome(backend, &unknown).await), ErrorCode::UnknownField);

    // Refused: the same id with another body, and a body that the initiator did not sign.
    let first = forge.sign(&eddsa, &message("first"), &secrets(&eddsa));
    outcome(backend, &first).await;
    let again = forge.edit(&first, |body| body["expiresAt"] = (first.expires_at - 1).into());
    assert_eq!(code(&outcome(backend, &again).await), ErrorCode::JobIdReused);
    let mut altered = forge.sign(&eddsa, &message("altered"), &secrets(&eddsa));
    altered.body.push(b' ');
    backend.publish(&altered).await.unwrap();
    Scrape::until(&service.running["worker1"], |scrape| {
        scrape.sum("trefoil_jobs_refused_total", &[("code", "BAD_SIGNATURE")]) == 1.0
    });

    // Tried again later.
    service.kill("node1");
    let waiting = forge.sign(&eddsa, &message("later"), &secrets(&eddsa));
    backend.publish(&waiting).await.unwrap();
    Scrape::until(&service.running["worker1"], |scrape| {
        scrape.sum("trefoil_job_retries_total", &[("op", "sign"), ("code", "NODE_UNAVAILABLE")]) >= 1.0
    });
    service.start_node("node1");
    let result = outcome(backend, &waiting).await;
    assert!(matches!(result.outcome, Outcome::Ok { .. }), "{result:?}");
    2 + 3 + 4 + 1 + 2 + 1 + 1 + 1 + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_and_events_say_what_the_results_say() {
    let mut service = measured();
    let nats = service.nats.connect().await;
    let jetstream = jetstream::new(nats.clone());
    let mut events = nats.subscribe("mpc.event.>").await.unwrap();
    nats.flush().await.unwrap();
    let backend = service.backend().await;
    let results = known_set(&mut service, &backend).await;
    wait_until_empty(&jetstream).await;

    let worker = &service.running["worker1"];
    let idle = |scrape: &Scrape| {
        scrape.sum("trefoil_jobs_in_flight", &[]) == 0.0 && scrape.sum("trefoil_jobs_waiting", &[]) == 0.0
    };
    let scrape = Scrape::until(worker, idle);
    let (tally, refused) = stored(&jetstream).await;
    assert_eq!(tally.values().sum::<u64>(), results);
    assert_eq!(counted(&scrape), tally);
    for (code, count) in [("JOB_ID_REUSED", 1), ("BAD_SIGNATURE", 1)] {
        assert_eq!(refused[code], count);
    }
    for (code, count) in &refused {
        assert_eq!(scrape.sum("trefoil_jobs_refused_total", &[("code", code)]), *count as f64, "{code}");
    }
    let signed = [("op", "sign"), ("curve", "secp256k1"), ("method", "mta"), ("outcome", "ok"), ("code", "")];
    assert_eq!(scrape.sum("trefoil_jobs_total", &signed), 4.0);

    // Each result of a readable job was timed, and its way there.
    let timed = scrape.sum("trefoil_job_duration_seconds_count", &[]);
    assert_eq!(timed as u64, results - 1);
    assert_eq!(scrape.sum("trefoil_jobs_total", &[("op", "")]), 1.0, "of nothing that can be read");
    let count = |name: &str, labels: &[(&str, &str)]| scrape.sum(&format!("{name}_count"), labels) as u64;
    let taken = results + refused.values().sum::<u64>();
    assert_eq!(count("trefoil_job_queue_wait_seconds", &[("lane", Lane::Interactive.as_str())]), taken);
    let rounds = |round: &str| count("trefoil_round_duration_seconds", &[("round", round), ("node", "node1")]);
    // Four, the first one of the same id, the later one, and two with the wrong password. More only where something was tried again.
    for (round, answered) in [
        ("sign_open", 3),
        ("sign_round2", 3),
        ("batch_open", 1),
        ("batch_round", 1),
        ("generate_open", 2),
        ("generate_round3", 2),
        ("generate_prepare", 2),
        ("frost_sign", 8),
    ] {
        assert!(rounds(round) >= answered, "{round}: {}", rounds(round));
    }
    assert_eq!(count("trefoil_publish_duration_seconds", &[]), results - 1);
    assert!(count("trefoil_kdf_duration_seconds", &[]) >= 15);
    assert!(count("trefoil_lock_wait_seconds", &[("op", "sign")]) >= 12);
    let retries = scrape.sum("trefoil_job_retries_total", &[]);
    assert!(retries >= 1.0 && scrape.sum("trefoil_job_redeliveries_total", &[("op", "sign")]) >= retries);
    for node in ["node1", "node2"] {
        assert_eq!(scrape.sum("trefoil_node_up", &[("node", node)]), 1.0, "{node}");
        assert!(scrape.sum("trefoil_clock_offset_seconds", &[("node", node)]).abs() < 60.0);
        assert_eq!(scrape.sum("trefoil_key_locks_total", &[("node", node)]), 0.0);
    }
    assert_eq!(scrape.sum("trefoil_job_slots", &[]), 64.0);

    // One event of each result that a job has, after it was stored, and none of anything else.
    let mut told = Tally::new();
    while told.values().sum::<u64>() < results - 1 {
        let message = timeout(PATIENCE, events.next()).await.expect("an event of each result").unwrap();
        let event: Event = serde_json::from_slice(&message.payload).unwrap();
        match event.outcome {
            EventOutcome::Completed | EventOutcome::Failed => {
                *told.entry(entry(Some(event.op), event.code)).or_default() += 1
            }
            EventOutcome::Started | EventOutcome::Committed => {}
        }
    }
    let mut of_jobs = tally;
    of_jobs.retain(|(op, _), _| !op.is_empty());
    assert_eq!(told, of_jobs);
}
