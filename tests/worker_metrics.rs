//! What a worker counts is what became of its jobs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::jetstream::{self, Context};
use deployment::{
    Deployment, Forge, PATIENCE, code, digest, message, new_key, outcome, password, secrets, wait_until_empty,
};
use futures::StreamExt;
use std::collections::BTreeMap;
use support::scrape::{Scrape, Shown};
use tokio::time::timeout;
use trefoil::client::Backend;
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Batch, Curve, ErrorCode, Event, EventOutcome, JobResult, Lane, Method, Op, Outcome, Snapshot};
use zeroize::Zeroizing;

/// Two nodes and a worker that serves its metrics and says something every second.
fn measured() -> Deployment {
    let mut service = Deployment::new();
    service.worker_settings =
        vec![("TREFOIL_METRICS_LISTEN", "127.0.0.1:0".to_owned()), ("TREFOIL_METRICS_SECONDS", "1".to_owned())];
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker1");
    service
}

/// What the worker shows.
fn shown(service: &Deployment) -> Shown {
    Shown::with(&service.running["worker1"], PATIENCE)
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

async fn heard(snapshots: &mut async_nats::Subscriber) -> Snapshot {
    let message = timeout(PATIENCE, snapshots.next()).await.expect("a snapshot").unwrap();
    serde_json::from_slice(&message.payload).unwrap()
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
    shown(service)
        .wait_until("counted", |scrape| scrape.sum("trefoil_jobs_refused_total", &[("code", "BAD_SIGNATURE")]) == 1.0);

    // Tried again later.
    service.kill("node1");
    let waiting = forge.sign(&eddsa, &message("later"), &secrets(&eddsa));
    backend.publish(&waiting).await.unwrap();
    shown(service).wait_until("counted", |scrape| {
        scrape.sum("trefoil_job_retries_total", &[("op", "sign"), ("code", "NODE_UNAVAILABLE")]) >= 1.0
    });
    service.start_node("node1");
    let result = outcome(backend, &waiting).await;
    assert!(matches!(result.outcome, Outcome::Ok { .. }), "{result:?}");
    2 + 3 + 4 + 1 + 2 + 1 + 1 + 1 + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_events_and_snapshots_say_what_the_results_say() {
    let mut service = measured();
    let nats = service.nats.connect().await;
    let jetstream = jetstream::new(nats.clone());
    let mut events = support::subscribed(&nats, "mpc.event.>").await;
    let mut snapshots = support::subscribed(&nats, "mpc.metrics.*").await;
    let backend = service.backend().await;
    let results = known_set(&mut service, &backend).await;
    wait_until_empty(&jetstream).await;

    let idle = |scrape: &Scrape| {
        scrape.sum("trefoil_jobs_in_flight", &[]) == 0.0 && scrape.sum("trefoil_jobs_waiting", &[]) == 0.0
    };
    let scrape = shown(&service).wait_until("idle", idle);
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

    // The next snapshot says the same.
    let snapshot = loop {
        let snapshot = heard(&mut snapshots).await;
        if snapshot.jobs.iter().map(|jobs| jobs.count).sum::<u64>() == results && snapshot.in_flight == 0 {
            break snapshot;
        }
    };
    let mut told = Tally::new();
    for jobs in &snapshot.jobs {
        *told.entry(entry(jobs.op, jobs.code)).or_default() += jobs.count;
    }
    assert_eq!(told, tally);
    assert_eq!(snapshot.worker_id, service.worker_id("worker1"));
    assert_eq!(snapshot.durations.iter().map(|range| range.count).sum::<u64>(), timed as u64);
    assert_eq!((snapshot.refused, snapshot.retries), (refused.values().sum(), retries as u64));
    assert_eq!((snapshot.slots, snapshot.waiting, snapshot.interval_ms, snapshot.draining), (64, 0, 1_000, false));
    assert_eq!((snapshot.nodes.node1, snapshot.nodes.node2), (Some(true), Some(true)));

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

/// Both queue gauges come from the server; who does not answer is not shown as of a while ago.
#[tokio::test(flavor = "multi_thread")]
async fn queues_nodes_and_readiness_follow_what_comes_and_goes() {
    let mut service = measured();
    let worker = |service: &Deployment, enough: &dyn Fn(&Scrape) -> bool| {
        shown(service).wait_until("so", enough);
    };
    let up = |scrape: &Scrape, node: &str| scrape.series("trefoil_node_up", &[("node", node)]).next().map(|(_, up)| up);
    // Before any job, and without one.
    worker(&service, &|scrape| up(scrape, "node1") == Some(1.0) && up(scrape, "node2") == Some(1.0));
    worker(&service, &|scrape| scrape.series("trefoil_queue_jobs", &[]).count() == 2);
    assert_eq!(shown(&service).get("/readyz").unwrap(), (200, "ok\n".to_owned()));
    assert_eq!(shown(&service).get("/livez").unwrap(), (200, "ok\n".to_owned()));

    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Ed25519).await;
    service.kill("node1");
    worker(&service, &|scrape| up(scrape, "node1") == Some(0.0) && up(scrape, "node2") == Some(1.0));
    let forge = Forge::new(&backend);
    let waiting = forge.sign(&key, &message("m"), &secrets(&key));
    backend.publish(&waiting).await.unwrap();
    worker(&service, &|scrape| {
        scrape.sum("trefoil_queue_jobs", &[("lane", "interactive")]) == 1.0
            && scrape.sum("trefoil_queue_oldest_seconds", &[("lane", "interactive")]) > 0.0
            && scrape.sum("trefoil_queue_jobs", &[("lane", "bulk")]) == 0.0
    });
    service.start_node("node1");
    outcome(&backend, &waiting).await;
    worker(&service, &|scrape| {
        up(scrape, "node1") == Some(1.0)
            && scrape.sum("trefoil_queue_jobs", &[]) == 0.0
            && scrape.sum("trefoil_queue_oldest_seconds", &[]) == 0.0
            && scrape.sum("trefoil_results_kept", &[]) >= 2.0
            && scrape.sum("trefoil_result_readers", &[]) == 1.0
    });

    // NATS goes, and comes back.
    service.nats.kill9();
    shown(&service).wait_until_ready_says((503, "not connected to NATS\n"));
    assert_eq!(shown(&service).get("/livez").unwrap().0, 200);
    worker(&service, &|scrape| {
        scrape.series("trefoil_queue_jobs", &[]).count() == 0
            && scrape.series("trefoil_queue_oldest_seconds", &[]).count() == 0
    });
    service.nats.restart();
    shown(&service).wait_until_ready_says((200, "ok\n"));
    worker(&service, &|scrape| scrape.series("trefoil_queue_jobs", &[]).count() == 2);

    // Told to end with a job in hand that a silent node 1 keeps there, and another one that waits for the key.
    service.process("node1").signal("STOP");
    backend.publish(&forge.sign(&key, &message("held"), &secrets(&key))).await.unwrap();
    worker(&service, &|scrape| scrape.sum("trefoil_jobs_in_flight", &[("op", "sign")]) == 1.0);
    backend.publish(&forge.sign(&key, &message("next"), &secrets(&key))).await.unwrap();
    worker(&service, &|scrape| {
        scrape.sum("trefoil_jobs_waiting", &[]) == 1.0
            && scrape.sum("trefoil_jobs_in_flight", &[]) == 1.0
            && scrape.sum("trefoil_mutex_contended_total", &[]) >= 1.0
    });
    let nats = service.nats.connect().await;
    let mut snapshots = support::subscribed(&nats, "mpc.metrics.*").await;
    service.process("worker1").signal("TERM");
    shown(&service).wait_until_ready_says((503, "draining\n"));
    assert_eq!(shown(&service).get("/livez").unwrap().0, 200);
    service.process("node1").signal("CONT");
    assert!(service.process("worker1").wait().success());
    // Its last word: everything that it had in hand is done.
    while {
        let snapshot = heard(&mut snapshots).await;
        !(snapshot.draining && snapshot.in_flight == 0)
    } {}
}
