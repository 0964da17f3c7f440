//! Many workers: they share the work, take over from each other, leave room beside a busy key, and lose nothing when they are told to
//! end. Shown by counts and by the order of events, which do not depend on how fast the machine is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::events::{Events, Heard};
use deployment::sessions::audited;
use deployment::{Deployment, digest, message, new_key, secrets, wait_until_empty};
use futures::StreamExt;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use support::PATIENCE;
use trefoil::client::{Backend, ClientError, SignedRequest, SigningMaterial};
use trefoil::wire::{Curve, EventOutcome, JobResult, Method, Outcome};

/// So long that whoever waits for a job's expiry is noticed.
const LIFETIME: Duration = Duration::from_secs(600);

/// Nodes, and workers that may be silent for so many seconds before their jobs go to others.
fn service(workers: u32, silent: u32) -> Deployment {
    let mut service = Deployment::start(0);
    service.worker_settings = vec![("TREFOIL_ACK_WAIT_SECONDS", silent.to_string())];
    for number in 1..=workers {
        service.start_worker(&format!("worker{number}"));
    }
    service
}

/// So many keys, mostly on the curve that signs faster.
async fn keys(backend: &Backend, count: usize) -> Vec<SigningMaterial> {
    let curve = |i: usize| if i.is_multiple_of(4) { Curve::Secp256k1 } else { Curve::Ed25519 };
    futures::stream::iter(0..count).map(|i| new_key(backend, curve(i))).buffered(4).collect().await
}

fn request(backend: &Backend, key: &SigningMaterial, number: usize) -> SignedRequest {
    let input = if key.public_key.len() == 32 { message(&number.to_string()) } else { digest(number as u8) };
    let reply = backend.reply_key().unwrap();
    backend.jobs().sign(key.key_id, Method::Default, &input, &secrets(key), &reply, LIFETIME).unwrap()
}

/// So many jobs, of all keys in turn.
fn requests(backend: &Backend, keys: &[SigningMaterial], count: usize) -> Vec<SignedRequest> {
    keys.iter().cycle().take(count).enumerate().map(|(i, key)| request(backend, key, i)).collect()
}

fn signed(result: JobResult) {
    assert!(matches!(result.outcome, Outcome::Ok { .. }), "{result:?}");
}

async fn result(backend: &Backend, request: &SignedRequest) {
    signed(backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap());
}

/// Results stored altogether.
async fn stored(jetstream: &async_nats::jetstream::Context) -> u64 {
    jetstream.get_stream("MPC_RESULTS").await.unwrap().cached_info().state.messages
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_share_the_load_of_many_keys() {
    const JOBS: usize = 480;
    let service = service(4, 10);
    let backend = service.backend().await;
    let keys = keys(&backend, 24).await;
    let mut events = Events::listen(&service).await;
    // Every worker has room for more than are under way at any time. So it is their turn that decides who gets a job, and not who is
    // faster, or gets more of the processor.
    let load = requests(&backend, &keys, JOBS);
    let run = futures::stream::iter(&load).map(|request| backend.run(request)).buffer_unordered(24);
    run.for_each(async |result| signed(result.unwrap())).await;
    events.until(|events| events.count(EventOutcome::Completed) == JOBS).await;
    let shares = events.completed();
    let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
    assert!(shares.len() == 4 && *most <= 2 * *least, "{shares:?}");
}

/// What a worker had in hand when this was done to it is done by the others.
async fn taken_over(signal: &str) {
    let mut service = service(3, 1);
    let backend = service.backend().await;
    let keys = keys(&backend, 9).await;
    let mut events = Events::listen(&service).await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let before = stored(&jetstream).await;
    // A silent node 1 keeps the jobs in their workers' hands.
    service.process("node1").signal("STOP");
    let load = requests(&backend, &keys, 9);
    for request in &load {
        backend.publish(request).await.unwrap();
    }
    events.until(|events| events.count(EventOutcome::Started) == load.len()).await;
    let had = |worker: &str| -> Vec<&SignedRequest> {
        load.iter().filter(|job| events.of(&job.job_id, EventOutcome::Started).contains(&worker)).collect()
    };
    let names = ["worker1", "worker2", "worker3"];
    let victim = names.into_iter().max_by_key(|name| had(&service.worker_id(name)).len()).unwrap();
    let gone = service.worker_id(victim);
    let jobs = had(&gone);
    assert!(jobs.len() >= 3, "{jobs:?}");
    service.process(victim).signal(signal);
    service.process("node1").signal("CONT");
    for request in &load {
        result(&backend, request).await;
    }
    events.until(|events| events.count(EventOutcome::Completed) == load.len()).await;
    for job in &jobs {
        let done = events.of(&job.job_id, EventOutcome::Completed);
        assert!(!done.contains(&gone.as_str()), "{done:?}");
        // Begun by the one, done by another.
        let begun = events.of(&job.job_id, EventOutcome::Started);
        assert!(begun.contains(&gone.as_str()) && begun.contains(&done[0]), "{begun:?} {done:?}");
    }
    let mut results = load.len();
    if signal == "STOP" {
        // It wakes up with jobs in hand that have their results. The keys' next jobs, for which it is alone, come after those.
        service.process(victim).signal("CONT");
        for name in names.into_iter().filter(|name| *name != victim) {
            service.kill(name);
        }
        for request in requests(&backend, &keys, 9) {
            signed(backend.run(&request).await.unwrap());
            results += 1;
        }
    }
    wait_until_empty(&jetstream).await;
    assert_eq!(stored(&jetstream).await - before, results as u64, "one result each");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_worker_are_done_by_others() {
    taken_over("KILL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_stopped_worker_are_done_by_others() {
    taken_over("STOP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_with_500_jobs_stops_nobody() {
    const HOT: usize = 500;
    /// Jobs of one key that the queue takes, by the default settings.
    const CAP: usize = 64;
    let mut service = service(0, 10);
    service.worker_settings.push(("TREFOIL_LEASE_SECONDS", "10".to_owned()));
    service.start_worker("worker1");
    service.start_worker("worker2");
    let backend = service.backend().await;
    let (hot, others) = (new_key(&backend, Curve::Ed25519).await, keys(&backend, 4).await);
    let mut events = Events::listen(&service).await;
    let crowd: Vec<_> = (0..HOT).map(|i| request(&backend, &hot, i)).collect();
    let offered = crowd.iter().map(async |request| {
        let mut pause = Duration::from_millis(20);
        // At the cap: as a backend does that is told so.
        while let Err(ClientError::Busy) = backend.publish(request).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        result(&backend, request).await;
    });
    let marker = events.marker();
    let beside = others.iter().map(async |key| {
        for i in 0..10 {
            let request = request(&backend, key, i);
            marker.publish(&request).await;
            result(&backend, &request).await;
        }
    });
    let mut crowd_done = std::pin::pin!(futures::future::join_all(offered));
    tokio::select! {
        _ = &mut crowd_done => panic!("the crowd was gone before the others had begun"),
        _ = futures::future::join_all(beside) => {}
    }
    crowd_done.await;
    events.until(|events| events.count(EventOutcome::Completed) == HOT + 40).await;
    // Each exactly once, and node 1 was never asked for a key that another job had.
    assert_eq!(events.events().filter(|event| event.outcome == EventOutcome::Completed).count(), HOT + 40);
    let audited = audited(&service);
    let released: Vec<_> =
        audited.iter().filter(|[.., decision, _]| decision == "released").map(|[job, ..]| job).collect();
    assert_eq!((released.len(), released.iter().collect::<HashSet<_>>().len()), (HOT + 40, HOT + 40));
    // But by a worker that got no lease in time.
    let orderly = audited.iter().all(|[.., decision, _]| decision == "released" || decision == "opened");
    assert!(orderly || service.without_leases(), "{audited:?}");
    // What was published beside it waited for no more of the crowd than was in the queue before it.
    let mut worst = 0;
    for (at, heard) in events.heard.iter().enumerate() {
        let Heard::Mark(job) = heard else { continue };
        let rest =
            || events.heard[at..].iter().filter_map(|heard| if let Heard::Event(e) = heard { Some(e) } else { None });
        let begun = rest().find(|event| event.job_id.as_str() == job.as_str()).unwrap();
        let before = rest().take_while(|event| event.job_id != begun.job_id);
        // By the worker that began it, so that one which gets no processor does not count.
        let passed = before.filter(|event| {
            (event.key_id, event.outcome, &event.worker_id) == (hot.key_id, EventOutcome::Started, &begun.worker_id)
        });
        worst = worst.max(passed.count());
    }
    assert!(worst <= 2 * CAP, "{worst} jobs of the hot key were begun before another key's");
}

/// Tells some of two workers to end while jobs run, starts others instead where none is left, and checks that it cost nobody anything.
async fn ended_under_load(ended: &[&str]) {
    const JOBS: usize = 240;
    // A job that a worker loses sight of would stay away for so long that it is missed.
    let mut service = service(0, 600);
    service.worker_settings.push(("TREFOIL_CONCURRENCY", "8".to_owned()));
    service.start_worker("worker1");
    service.start_worker("worker2");
    let backend = service.backend().await;
    let keys = keys(&backend, 24).await;
    let jetstream = async_nats::jetstream::new(service.nats.connect().await);
    let before = stored(&jetstream).await;
    let mut events = Events::listen(&service).await;
    let load = requests(&backend, &keys, JOBS);
    // More than both can work on, so that there are always some in the queue.
    let running =
        futures::stream::iter(&load).for_each_concurrent(24, async |job| signed(backend.run(job).await.unwrap()));
    let stopping = async {
        events.until(|events| events.count(EventOutcome::Completed) >= JOBS / 8).await;
        for name in ended {
            service.process(name).signal("TERM");
        }
        for name in ended {
            let mut worker = service.running.remove(*name).unwrap();
            let (status, log) = tokio::task::spawn_blocking(move || (worker.wait(), worker.log())).await.unwrap();
            assert!(status.success() && log.contains("stopped") && !log.contains("jobs in hand"), "{status}: {log}");
        }
        if service.running.keys().all(|name| name.starts_with("node")) {
            service.start_worker("worker3");
            service.start_worker("worker4");
        }
    };
    futures::join!(running, stopping);
    wait_until_empty(&jetstream).await;
    assert_eq!(stored(&jetstream).await - before, JOBS as u64, "one result each");
    events.until(|events| events.count(EventOutcome::Completed) == JOBS).await;
    // Whoever began a job has finished it, and nobody has begun it again.
    for request in &load {
        let [begun, done] =
            [EventOutcome::Started, EventOutcome::Completed].map(|outcome| events.of(&request.job_id, outcome));
        assert!(begun.len() == 1 && begun == done, "{begun:?} {done:?}");
    }
    let workers: HashSet<_> = events.events().map(|event| &event.worker_id).collect();
    assert!(workers.len() > ended.len(), "{workers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_under_load_costs_nobody_anything() {
    ended_under_load(&["worker1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_all_of_them() {
    ended_under_load(&["worker1", "worker2"]).await;
}

/// Not a test: `cargo test --test many_workers -- --ignored --nocapture how_long_a_takeover_takes` (docs/performance.md).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
#[allow(clippy::print_stdout)]
async fn how_long_a_takeover_takes() {
    const ROUNDS: usize = 20;
    let mut service = Deployment::start(0);
    // The default settings, which the other tests shorten.
    let (ack_wait, lease) = (2, 2);
    service.worker_settings =
        vec![("TREFOIL_ACK_WAIT_SECONDS", ack_wait.to_string()), ("TREFOIL_LEASE_SECONDS", lease.to_string())];
    service.start_worker("survivor");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    println!("ack_wait {ack_wait} s, life of a lease {lease} s, {ROUNDS} rounds each; from the signal to the results");
    for signal in ["KILL", "STOP"] {
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            service.process("survivor").signal("STOP");
            service.start_worker("victim");
            // Until the server knows that nobody asks there.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            let mut events = Events::listen(&service).await;
            let leases = service.nats.connect().await;
            let mut leases = support::subscribed(&leases, "mpc.lock.*").await;
            service.process("node1").signal("STOP");
            let (running, next) = (request(&backend, &key, 1), request(&backend, &key, 2));
            backend.publish(&running).await.unwrap();
            events.until(|events| events.count(EventOutcome::Started) == 1).await;
            // It has the lease: whoever takes its job, or the next one, meets that.
            tokio::time::timeout(PATIENCE, leases.next()).await.unwrap().unwrap();
            service.process("victim").signal(signal);
            let since = Instant::now();
            service.process("node1").signal("CONT");
            service.process("survivor").signal("CONT");
            backend.publish(&next).await.unwrap();
            let timed = async |request| {
                result(&backend, request).await;
                since.elapsed()
            };
            let (first, second) = futures::join!(timed(&running), timed(&next));
            took[0].push(first);
            took[1].push(second);
            service.kill("victim");
        }
        for (what, mut took) in ["the job in hand", "the key's next job"].into_iter().zip(took) {
            took.sort();
            let (p50, most) = (took[took.len() / 2].as_millis(), took[took.len() - 1].as_millis());
            println!("SIG{signal}, {what}: p50 {p50} ms, longest {most} ms");
        }
    }
}
