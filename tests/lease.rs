//! A key's lease across workers: in a real JetStream, and as processes see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{self, Context};
use deployment::sessions::{audited, sessions};
use deployment::{Deployment, Forge, digest, new_key, password, secrets, wait_until_empty};
use futures::{FutureExt, StreamExt};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use support::NatsServer;
use tokio::time::timeout;
use trefoil::client::{SignedRequest, SigningMaterial};
use trefoil::jobs::lease::{Attempt, Claim, Counters, Lease, Leases};
use trefoil::jobs::streams::{self, StreamSettings};
use trefoil::telemetry::metrics::WorkerMetrics;
use trefoil::wire::subject::{self, LEASES_STREAM};
use trefoil::wire::{Curve, Event, EventOutcome, JobResult, KeyId, Method, Outcome};

const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(20);
const KEY: KeyId = KeyId([7; 16]);
const TTL: Duration = Duration::from_secs(2);
/// So long that it does not end while a busy machine keeps a process waiting.
const LONG: Duration = Duration::from_secs(60);

async fn provisioned() -> (NatsServer, Context) {
    let server = NatsServer::start();
    let jetstream = jetstream::new(server.connect().await);
    streams::provision(&jetstream, &StreamSettings::default()).await.unwrap();
    (server, jetstream)
}

async fn leases(server: &NatsServer, worker: &str, ttl: Duration) -> Leases {
    let nats = server.connect().await;
    Leases::new(nats.clone(), jetstream::new(nats), worker, ttl)
}

/// Leases taken over, and lost, from now on.
fn counted(leases: &Leases) -> impl Fn() -> (u64, u64) {
    let metrics = WorkerMetrics::new().unwrap();
    let (takeovers, lost) = (metrics.lease_takeovers.clone(), metrics.lease_lost.clone());
    leases.count(Counters { takeovers: takeovers.clone(), lost: lost.clone() });
    move || (takeovers.get(), lost.get())
}

/// An attempt, made again while JetStream takes longer to answer than anybody waits.
async fn attempt(mut claim: Claim) -> Attempt {
    let answered = async {
        loop {
            match claim.attempt().await {
                Ok(attempt) => return attempt,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    };
    timeout(PATIENCE, answered).await.unwrap()
}

async fn taken(claim: Claim) -> Lease {
    match attempt(claim).await {
        Attempt::Got(lease) => lease,
        Attempt::Busy => panic!("another has it"),
    }
}

async fn is_busy(claim: Claim) -> bool {
    matches!(attempt(claim).await, Attempt::Busy)
}

/// The same as [`attempt`] of who waits for the lease.
async fn waited_for(leases: Leases, job: [u8; 32]) -> Lease {
    let waited = async {
        loop {
            match leases.claim(KEY, &job).wait().await {
                Ok(lease) => return lease,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    };
    timeout(PATIENCE, waited).await.unwrap()
}

async fn stored(jetstream: &Context) -> Option<StreamMessage> {
    let stream = jetstream.get_stream_no_info(LEASES_STREAM).await.unwrap();
    stream.get_last_raw_message_by_subject(&subject::lease(&KEY)).await.ok()
}

/// What is stored of this lease, which may be renewed meanwhile.
async fn stored_of(jetstream: &Context, lease: &Lease) -> StreamMessage {
    let started = Instant::now();
    loop {
        match stored(jetstream).await {
            Some(message) if message.sequence == lease.token() => return message,
            _ => assert!(started.elapsed() < PATIENCE, "the token is not that of what is stored"),
        }
    }
}

fn ttl_of(headers: &HeaderMap) -> u64 {
    headers.get("Nats-TTL").expect("it has a TTL").as_str().parse().unwrap()
}

/// Takes a lease as a worker does that is killed with it in hand.
fn taken_by_a_dead_worker(server: &NatsServer, worker: &'static str, job: [u8; 32], ttl: Duration) -> u64 {
    let url = server.url();
    let life = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let token = runtime.block_on(async {
            let nats = async_nats::connect(url).await.unwrap();
            let leases = Leases::new(nats.clone(), jetstream::new(nats), worker, ttl);
            let lease = taken(leases.claim(KEY, &job)).await;
            let token = lease.token();
            std::mem::forget(lease);
            token
        });
        runtime.shutdown_background();
        token
    });
    life.join().unwrap()
}

/// On one thread, where nothing is written before this test waits for something.
#[tokio::test]
async fn who_gives_up_while_a_lease_is_written_leaves_none_behind() {
    let (server, _) = provisioned().await;
    let watcher = server.connect().await;
    let mut said = support::subscribed(&watcher, subject::lease(&KEY)).await;
    let leases = leases(&server, "a", Duration::from_secs(600)).await;
    let mut claim = leases.claim(KEY, &[1; 32]);
    assert!(claim.attempt().now_or_never().is_none(), "it is on its way");
    let mut message = async || timeout(PATIENCE, said.next()).await.unwrap().unwrap();
    assert!(!message().await.payload.is_empty());
    assert!(message().await.payload.is_empty(), "it was ended, though nobody ever had it");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_grow_and_whatever_is_written_has_a_ttl() {
    let (server, jetstream) = provisioned().await;
    let (a, b) = (leases(&server, "a", LONG).await, leases(&server, "b", LONG).await);
    let watcher = server.connect().await;
    let mut said = support::subscribed(&watcher, subject::lease(&KEY)).await;
    let mut ended = async || loop {
        let message = timeout(PATIENCE, said.next()).await.unwrap().unwrap();
        if message.payload.is_empty() {
            return ttl_of(&message.headers.unwrap());
        }
    };
    let ttl = LONG.as_secs();
    let mut tokens = Vec::new();
    // Over nothing, over the end of a lease of one's own, over another's; each ends with an empty message.
    for leases in [&a, &a, &b, &a] {
        let lease = taken(leases.claim(KEY, &[1; 32])).await;
        tokens.push(lease.token());
        assert_eq!(ttl_of(&stored_of(&jetstream, &lease).await.headers), ttl);
        drop(lease);
        leases.ended().await;
        assert_eq!(ended().await, 1);
    }
    // Renewed, it has one as well: the trap of what looks like an update.
    let mut lease = taken(a.claim(KEY, &[1; 32])).await;
    let first = lease.token();
    lease.serve(&[2; 32]);
    while lease.token() == first {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let message = stored_of(&jetstream, &lease).await;
    assert_eq!(ttl_of(&message.headers), ttl);
    assert!(String::from_utf8_lossy(&message.payload).contains(&"02".repeat(32)), "it names the new job");
    tokens.extend([first, lease.token()]);
    // Taken over, too.
    let taken_over = taken(b.claim(KEY, &[2; 32])).await;
    assert_eq!(ttl_of(&stored_of(&jetstream, &taken_over).await.headers), ttl);
    tokens.push(taken_over.token());
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    drop(taken_over);
    b.ended().await;
    // And so it all goes away by itself.
    let started = Instant::now();
    while stored(&jetstream).await.is_some() {
        assert!(started.elapsed() < PATIENCE, "it is immortal");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_job_waits_and_the_same_job_does_not() {
    let (server, _) = provisioned().await;
    // Renewed every two seconds.
    let life = Duration::from_secs(6);
    let (a, b) = (leases(&server, "a", life).await, leases(&server, "b", life).await);
    let [of_a, of_b] = [&a, &b].map(counted);
    let first = taken(a.claim(KEY, &[1; 32])).await;
    assert!(is_busy(b.claim(KEY, &[2; 32])).await);
    // Another key is another lease.
    drop(taken(b.claim(KeyId([8; 16]), &[2; 32])).await);
    let watcher = server.connect().await;
    let mut said = support::subscribed(&watcher, subject::lease(&KEY)).await;
    let waiting = tokio::spawn(waited_for(b.clone(), [2; 32]));
    // It is renewed for longer than its life, and stays.
    for _ in 0..4 {
        let renewed = timeout(PATIENCE, said.next()).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&renewed.payload).contains(r#""worker":"a""#), "{renewed:?}");
    }
    assert!(!waiting.is_finished() && !first.is_lost());
    let token = first.token();
    drop(first);
    let second = waiting.await.unwrap();
    assert!(second.token() > token);
    // Delivered again elsewhere, the same job takes it over, and the first one learns of it.
    let same = taken(a.claim(KEY, &[2; 32])).await;
    assert!(same.token() > second.token());
    let started = Instant::now();
    while !second.is_lost() {
        assert!(started.elapsed() < PATIENCE, "not told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((of_a(), of_b()), ((1, 0), (0, 1)), "taken over, and lost");
    // What was lost is not ended: whoever has it keeps it.
    drop(second);
    b.ended().await;
    assert!(is_busy(b.claim(KEY, &[3; 32])).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_workers_lease_ends_by_itself_and_its_job_does_not_wait_for_that() {
    let (server, _) = provisioned().await;
    let alive = leases(&server, "alive", TTL).await;
    // So long that its end, and what comes at twice its life, are far apart.
    let life = TTL * 3;
    for same in [true, false] {
        let job = [u8::from(same); 32];
        let token = taken_by_a_dead_worker(&server, "dead", job, life);
        let died = Instant::now();
        let next = if same {
            taken(alive.claim(KEY, &job)).await
        } else {
            assert!(is_busy(alive.claim(KEY, &[9; 32])).await);
            let next = waited_for(alive.clone(), [9; 32]).await;
            assert!(died.elapsed() < life * 2, "it was taken over: {:?}", died.elapsed());
            next
        };
        assert!(next.token() > token);
        drop(next);
        alive.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_never_ends_does_not_shut_a_key_out() {
    let (server, jetstream) = provisioned().await;
    // As a client writes it that loses the TTL.
    let record = format!(r#"{{"worker":"x","job":"{}"}}"#, "00".repeat(32));
    jetstream.publish(subject::lease(&KEY), record.into()).await.unwrap().await.unwrap();
    let leases = leases(&server, "a", Duration::from_secs(1)).await;
    let of_a = counted(&leases);
    assert!(is_busy(leases.claim(KEY, &[1; 32])).await);
    let lease = waited_for(leases.clone(), [1; 32]).await;
    assert_eq!(of_a(), (1, 0));
    assert_eq!(ttl_of(&stored_of(&jetstream, &lease).await.headers), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_never_ends_does_not_shut_out_jobs_that_wait_for_a_short_time_only() {
    let (server, jetstream) = provisioned().await;
    let record = format!(r#"{{"worker":"x","job":"{}"}}"#, "00".repeat(32));
    jetstream.publish(subject::lease(&KEY), record.into()).await.unwrap().await.unwrap();
    let leases = leases(&server, "a", Duration::from_secs(1)).await;
    let started = Instant::now();
    // As a job does that must run alone and goes back to the queue each time.
    let short = Duration::from_millis(300);
    while !matches!(timeout(short, leases.claim(KEY, &[1; 32]).wait()).await, Ok(Ok(_))) {
        assert!(started.elapsed() < PATIENCE, "never taken over");
        tokio::time::sleep(AGAIN).await;
    }
    assert!(started.elapsed() > Duration::from_secs(2), "it may yet have been renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_stream_nobody_waits_for_leases() {
    let (server, jetstream) = provisioned().await;
    let leases = leases(&server, "a", TTL).await;
    jetstream.delete_stream(LEASES_STREAM).await.unwrap();
    assert!(leases.claim(KEY, &[1; 32]).attempt().await.is_err());
    assert!(leases.claim(KEY, &[1; 32]).wait().await.is_err());
    streams::provision(&jetstream, &StreamSettings::default()).await.unwrap();
    let started = Instant::now();
    while leases.claim(KEY, &[1; 32]).attempt().await.is_err() {
        assert!(started.elapsed() < PATIENCE, "never asked again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_go_on_growing_after_the_server_was_killed() {
    let (mut server, _) = provisioned().await;
    let before = taken_by_a_dead_worker(&server, "a", [1; 32], TTL);
    server.kill9();
    server.restart();
    let after = waited_for(leases(&server, "b", TTL).await, [2; 32]).await;
    assert!(after.token() > before);
}

fn jobs(forge: &Forge<'_>, key: &SigningMaterial, count: u8) -> Vec<SignedRequest> {
    (0..count).map(|i| forge.sign(key, &digest(i), &secrets(key))).collect()
}

fn signed(result: JobResult) {
    assert!(matches!(result.outcome, Outcome::Ok { .. }), "{result:?}");
}

async fn heard(events: &mut async_nats::Subscriber, wanted: impl Fn(&Event) -> bool) -> Event {
    let hear = async {
        loop {
            let event: Event = serde_json::from_slice(&events.next().await.unwrap().payload).unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, hear).await.expect("it happens")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_have_one_session_of_a_key_at_a_time_and_each_has_its_turn() {
    let mut service = Deployment::start(0);
    service.worker_settings = vec![("TREFOIL_LEASE_SECONDS", "10".to_owned())];
    service.start_worker("worker1");
    service.start_worker("worker2");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let nats = service.nats.connect().await;
    let mut events = support::subscribed(&nats, "mpc.event.sign.*").await;
    let forge = Forge::new(&backend);
    let requests = jobs(&forge, &key, 60);
    let results = requests.iter().map(|request| backend.run(request));
    for result in futures::future::join_all(results).await {
        signed(result.unwrap());
    }
    let (opened, preempted, refused) = sessions(&service);
    // Who gets no lease in time goes on without, and node 1 keeps them apart.
    let alone = service.without_leases();
    assert!(opened - preempted == 60 && (alone || preempted + refused == 0), "{opened}, {preempted}, {refused}");
    let mut workers = HashSet::new();
    for _ in 0..60 {
        workers.insert(heard(&mut events, |event| event.outcome == EventOutcome::Completed).await.worker_id);
    }
    assert_eq!(workers.len(), 2);
}

/// A job that has its key's lease, and waits for node 1, which is stopped.
async fn in_session(service: &mut Deployment, forge: &Forge<'_>, key: &SigningMaterial) -> SignedRequest {
    let before = audited(service).len();
    let jetstream = jetstream::new(service.nats.connect().await);
    let stream = jetstream.get_stream_no_info(LEASES_STREAM).await.unwrap();
    // A silent node 1 keeps the job in its worker's hands.
    service.process("node1").signal("STOP");
    let request = forge.sign(key, &digest(1), &secrets(key));
    forge.backend.publish(&request).await.unwrap();
    let (lease, job) = (subject::lease(&key.key_id), data_encoding::HEXLOWER.encode(&request.digest));
    let waited = Instant::now();
    let held = async || match stream.get_last_raw_message_by_subject(&lease).await {
        Ok(message) => String::from_utf8_lossy(&message.payload).contains(&job),
        Err(_) => false,
    };
    while !held().await {
        assert!(waited.elapsed() < PATIENCE, "no lease is taken");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(audited(service).len(), before);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_of_a_killed_worker_does_not_wait_for_its_own_lease() {
    let mut service = Deployment::new();
    service.start_node("node1");
    service.start_node("node2");
    // So long that whoever waits for its end is noticed.
    service.worker_settings = vec![("TREFOIL_LEASE_SECONDS", "60".to_owned())];
    service.silent = 1;
    service.start_worker("worker1");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let forge = Forge::new(&backend);
    let request = in_session(&mut service, &forge, &key).await;
    let another = forge.sign(&key, &digest(2), &secrets(&key));
    backend.publish(&another).await.unwrap();
    service.kill("worker1");
    service.start_worker("worker2");
    service.process("node1").signal("CONT");
    // The other job may be the first that comes; then it waits for the one that has the lease.
    for request in [&request, &another] {
        signed(backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap());
    }
    let (_, _, refused) = sessions(&service);
    assert_eq!(refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_past_its_lease_changes_nothing() {
    let mut service = Deployment::new();
    service.start_node("node1");
    service.start_node("node2");
    service.worker_settings = vec![("TREFOIL_LEASE_SECONDS", "1".to_owned())];
    service.silent = 1;
    service.start_worker("worker1");
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let forge = Forge::new(&backend);
    let request = in_session(&mut service, &forge, &key).await;
    service.process("worker1").signal("STOP");
    service.process("node1").signal("CONT");
    service.start_worker("worker2");
    signed(backend.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap());
    // Others have had the key since.
    for i in 2..6 {
        backend.sign(&key, Method::Mta, &digest(i), password()).await.unwrap();
    }
    let nats = service.nats.connect().await;
    let jetstream = jetstream::new(nats.clone());
    let mut results = jetstream.get_stream("MPC_RESULTS").await.unwrap();
    let stored = results.info().await.unwrap().state.messages;
    service.process("worker1").signal("CONT");
    // It works on as before: the key's next job, for which it is alone, comes after what it had in hand.
    service.kill("worker2");
    backend.sign(&key, Method::Mta, &digest(7), password()).await.unwrap();
    wait_until_empty(&jetstream).await;
    assert_eq!(results.info().await.unwrap().state.messages, stored + 1, "a second result");
    sessions(&service);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_when_leases_cannot_be_had_and_when_the_server_was_killed() {
    let mut service = Deployment::start(2);
    let backend = service.backend().await;
    let key = new_key(&backend, Curve::Secp256k1).await;
    let jetstream = jetstream::new(service.nats.connect().await);
    jetstream.delete_stream(LEASES_STREAM).await.unwrap();
    let forge = Forge::new(&backend);
    let sign = async |count| {
        let requests = jobs(&forge, &key, count);
        for result in futures::future::join_all(requests.iter().map(|request| backend.run(request))).await {
            signed(result.unwrap());
        }
    };
    sign(20).await;
    sessions(&service);
    streams::provision(&jetstream, &StreamSettings::default()).await.unwrap();
    let requests = jobs(&forge, &key, 20);
    for request in &requests {
        backend.publish(request).await.unwrap();
    }
    service.nats.kill9();
    service.nats.restart();
    for request in &requests {
        signed(backend.result_of(&request.job_id, request.digest, Duration::from_secs(40)).await.unwrap());
    }
    sessions(&service);
}

/// Processor time that a process has used so far, in milliseconds.
fn cpu(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // User and system time, in ticks of 10 ms.
    [11, 12].iter().map(|at| fields[*at].parse::<u64>().unwrap() * 10).sum()
}

/// Not a test: `cargo test --release --test lease -- --ignored --nocapture what_a_lease_costs` (docs/performance.md).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
#[allow(clippy::print_stdout)]
async fn what_a_lease_costs() {
    const BLOCK: usize = 100;
    let mut service = Deployment::start(1);
    let processes = [service.process("worker1").id(), service.nats.id()];
    let backend = service.backend().await;
    // No password stretching, so that little else is measured.
    let key = new_key(&backend, Curve::Secp256k1).await;
    let jetstream = jetstream::new(service.nats.connect().await);
    let (mut took, mut used) = ([Vec::new(), Vec::new()], [[0; 2]; 2]);
    for block in 0..12 {
        let with = block % 2;
        if with == 0 {
            jetstream.delete_stream(LEASES_STREAM).await.unwrap();
        } else {
            streams::provision(&jetstream, &StreamSettings::default()).await.unwrap();
        }
        // The worker asks again after two seconds.
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        let before = processes.map(cpu);
        for _ in 0..BLOCK {
            let started = Instant::now();
            backend.sign(&key, Method::Mta, &digest(1), password()).await.unwrap();
            took[with].push(started.elapsed());
        }
        for (used, (after, before)) in used[with].iter_mut().zip(processes.map(cpu).into_iter().zip(before)) {
            *used += after - before;
        }
    }
    for ((with, mut took), used) in ["without", "with"].into_iter().zip(took).zip(used) {
        took.sort();
        let at = |percent: usize| took[took.len() * percent / 100].as_micros();
        let [worker, server] = used.map(|ms| ms * 1_000 / took.len() as u64);
        println!("{with} leases: {} jobs, p5 {} us, p50 {} us, p99 {} us", took.len(), at(5), at(50), at(99));
        println!("    processor time a job: worker {worker} us, nats-server {server} us");
    }
}
