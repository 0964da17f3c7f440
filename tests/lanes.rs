//! Two lanes: what nobody waits for does not delay what somebody waits for, and is done all the same. Counted, not timed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use Lane::{Bulk, Interactive};
use async_nats::jetstream::{self, Context, context::PublishErrorKind};
use deployment::{Deployment, PATIENCE, code, message, new_key, password, secrets, wait_until_empty};
use futures::{FutureExt, StreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::NatsServer;
use tokio::sync::{mpsc, watch};
use trefoil::client::{Backend, SignedRequest, SigningMaterial};
use trefoil::jobs::attempts::Attempt;
use trefoil::jobs::consumer::{self, ConsumerSettings, Delivery};
use trefoil::jobs::place::Limits;
use trefoil::jobs::streams::{self, StreamSettings};
use trefoil::wire::{Curve, ErrorCode, Event, EventOutcome, JobState, Lane, Method, Outcome, subject};

async fn provisioned(settings: &StreamSettings) -> (NatsServer, Context) {
    let server = NatsServer::start();
    let jetstream = jetstream::new(server.connect().await);
    streams::provision(&jetstream, settings).await.unwrap();
    (server, jetstream)
}

/// Publishes so many jobs, which are none, for keys of their own.
async fn publish(jetstream: &Context, lane: Lane, count: usize) {
    let root = if lane == Bulk { "mpc.bulk" } else { "mpc.job" };
    for number in 0..count {
        jetstream.publish(format!("{root}.sign.{number}"), "x".into()).await.unwrap().await.unwrap();
    }
}

async fn queued(jetstream: &Context, lane: Lane) -> u64 {
    jetstream.get_stream(subject::stream_of(lane)).await.unwrap().cached_info().state.messages
}

/// A worker whose jobs are in our hands.
struct Hands {
    from: mpsc::UnboundedReceiver<Delivery>,
    stop: watch::Sender<bool>,
    worker: tokio::task::JoinHandle<usize>,
}

impl Hands {
    fn new(jetstream: &Context, slots: usize, bulk: usize) -> Self {
        let settings = ConsumerSettings {
            queues: Lane::ALL.iter().map(|lane| (*lane, subject::stream_of(*lane).to_owned())).collect(),
            worker: "here".into(),
            ack_wait: Duration::from_secs(2),
            limits: Limits { slots, bulk, waiting: 1 },
            grace: Duration::from_secs(5),
        };
        let ((to, from), (stop, stopped)) = (mpsc::unbounded_channel(), watch::channel(false));
        let worker = tokio::spawn(consumer::run(jetstream.clone(), settings, stopped, move |delivery| {
            let to = to.clone();
            async move {
                let _ = to.send(delivery);
            }
        }));
        Self { from, stop, worker }
    }

    async fn next(&mut self) -> Delivery {
        tokio::time::timeout(PATIENCE, self.from.recv()).await.expect("a delivery in time").unwrap()
    }

    /// The next delivery, which is of this lane.
    async fn next_of(&mut self, lane: Lane) -> Delivery {
        let next = self.next().await;
        assert_eq!(next.lane, lane, "{}", next.subject);
        next
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_jobs_keep_no_slot_from_interactive_ones() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    publish(&jetstream, Bulk, 200).await;
    let mut hands = Hands::new(&jetstream, 4, 2);
    let held = [hands.next_of(Bulk).await, hands.next_of(Bulk).await];
    // Every slot of the worker is for them, over and over, and no further bulk job is begun.
    for _ in 0..3 {
        publish(&jetstream, Interactive, 4).await;
        let mut together = Vec::new();
        for _ in 0..4 {
            together.push(hands.next_of(Interactive).await);
        }
        for job in together {
            job.acknowledge().await.unwrap();
        }
    }
    assert!(hands.from.recv().now_or_never().is_none());
    for job in held {
        job.acknowledge().await.unwrap();
    }
    for _ in 2..200 {
        hands.next_of(Bulk).await.acknowledge().await.unwrap();
    }
    assert_eq!(queued(&jetstream, Bulk).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn interactive_jobs_do_not_stop_the_bulk_lane() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    publish(&jetstream, Interactive, 20).await;
    let mut hands = Hands::new(&jetstream, 2, 1);
    // All slots work on interactive jobs, and more of those wait than will ever be done here.
    let _working = [hands.next_of(Interactive).await, hands.next_of(Interactive).await];
    publish(&jetstream, Bulk, 10).await;
    for _ in 0..10 {
        let one = hands.next_of(Bulk).await;
        // One at a time is what it gets.
        assert!(hands.from.recv().now_or_never().is_none());
        one.acknowledge().await.unwrap();
    }
    assert_eq!((queued(&jetstream, Interactive).await, queued(&jetstream, Bulk).await), (20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_refuses_its_own_jobs_only() {
    let settings = StreamSettings { jobs_per_key: 5, jobs_total: 3, ..StreamSettings::default() };
    let (_server, jetstream) = provisioned(&settings).await;
    publish(&jetstream, Bulk, 3).await;
    let refused = jetstream.publish("mpc.bulk.sign.x", "x".into()).await.unwrap().await.unwrap_err();
    assert_eq!(refused.kind(), PublishErrorKind::Other, "{refused}");
    assert!(refused.to_string().contains("10077"), "{refused}");
    publish(&jetstream, Interactive, 3).await;
}

/// A deployment from before there were lanes has one queue.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_queue_is_left_as_it_is_and_gets_a_second_beside_it() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    jetstream.delete_stream("MPC_BULK").await.unwrap();
    publish(&jetstream, Interactive, 3).await;
    let before = jetstream.get_stream("MPC_JOBS").await.unwrap().cached_info().config.clone();
    streams::provision(&jetstream, &StreamSettings { jobs_per_key: 7, ..StreamSettings::default() }).await.unwrap();
    let after = jetstream.get_stream("MPC_JOBS").await.unwrap().cached_info().clone();
    assert_eq!((after.config, after.state.messages), (before, 3));
    assert_eq!(queued(&jetstream, Bulk).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_gives_back_the_jobs_of_both_lanes() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    publish(&jetstream, Interactive, 5).await;
    publish(&jetstream, Bulk, 5).await;
    let mut hands = Hands::new(&jetstream, 2, 1);
    let held = [hands.next().await, hands.next().await, hands.next().await];
    hands.stop.send(true).unwrap();
    let abandoned = tokio::time::timeout(PATIENCE, hands.worker).await.unwrap().unwrap();
    assert_eq!(abandoned, 0, "what is in our hands is no longer in the worker's");
    for job in held {
        job.acknowledge().await.unwrap();
    }
    assert_eq!(queued(&jetstream, Interactive).await + queued(&jetstream, Bulk).await, 7);
    let mut others = Hands::new(&jetstream, 8, 8);
    for _ in 0..7 {
        others.next().await.acknowledge().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_lane_counts_the_crashes_of_its_own_jobs() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let look =
        async |lane, worker, job: &str| Attempt::look(&jetstream, worker, (lane, 1), job.to_owned(), 2).await.unwrap();
    look(Bulk, "a", "bulk").await.start().await.unwrap();
    // The first job of the other queue has the same number.
    look(Interactive, "a", "other").await.returned().await.unwrap();
    assert_eq!(look(Bulk, "b", "bulk").await.crashes(), 2);
    assert_eq!(look(Interactive, "b", "other").await.crashes(), 0);
}

/// A sign job in the backend's lane.
fn job(backend: &Backend, key: &SigningMaterial, text: &str) -> SignedRequest {
    let (jobs, reply) = (backend.jobs(), backend.reply_key().unwrap());
    jobs.sign(key.key_id, Method::Default, &message(text), &secrets(key), &reply, Duration::from_secs(300)).unwrap()
}

async fn bulk_backend(service: &Deployment) -> Backend {
    service.backend_with(&[("TREFOIL_LANE", "bulk".to_owned())]).await
}

async fn keys(backend: &Backend, count: usize) -> Vec<SigningMaterial> {
    let mut keys = Vec::new();
    for _ in 0..count {
        keys.push(new_key(backend, Curve::Ed25519).await);
    }
    keys
}

fn is_ok(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Ok { signature: Some(_), .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_queued_bulk_jobs_do_not_delay_interactive_ones() {
    let mut service = Deployment::start(1);
    let (backend, bulk) = (service.backend().await, bulk_backend(&service).await);
    let keys = keys(&backend, 9).await;
    // It ends in order, so that no lease of its is left.
    service.running.remove("worker1").unwrap().terminate();
    // Eight keys with 25 jobs each, all there before a worker is.
    let flood: Vec<_> = (0..200).map(|n| job(&bulk, &keys[n % 8], &format!("bulk {n}"))).collect();
    for request in &flood {
        bulk.publish(request).await.unwrap();
    }
    // Four of the nine keys have nothing to do with the flood's; the others have a queue of it.
    let urgent: Vec<_> = (0..12).map(|n| job(&backend, &keys[[8, n % 8][n % 2]], &format!("urgent {n}"))).collect();
    let nats = service.nats.connect().await;
    let mut events = support::subscribed(&nats, "mpc.event.sign.*").await;
    service.worker_settings =
        vec![("TREFOIL_CONCURRENCY", "4".to_owned()), ("TREFOIL_BULK_CONCURRENCY", "2".to_owned())];
    service.start_worker("worker2");
    let mut next = async || {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time").unwrap();
        serde_json::from_slice::<Event>(&event.payload).unwrap()
    };
    while next().await.outcome != EventOutcome::Started {}
    let published = urgent.iter().map(|request| backend.publish(request));
    futures::future::try_join_all(published).await.unwrap();

    let (mut begun, mut done, mut overtaken) = (false, BTreeSet::new(), 0);
    while done.len() < urgent.len() {
        let event = next().await;
        match (event.lane, event.outcome) {
            (Interactive, EventOutcome::Started) => begun = true,
            (Interactive, EventOutcome::Completed) => _ = done.insert(event.job_id),
            (Bulk, EventOutcome::Started) if begun => overtaken += 1,
            (_, EventOutcome::Failed) => panic!("{event:?}"),
            _ => {}
        }
    }
    // About as many as there are slots for them, times the rounds in which four slots do twelve jobs.
    assert!(overtaken <= 40, "{overtaken} bulk jobs were begun before twelve interactive ones were done");
    for (from, requests) in [(&backend, &urgent), (&bulk, &flood)] {
        for request in requests {
            let result = from.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
            assert!(is_ok(&result.outcome), "{result:?}");
        }
    }
    wait_until_empty(&jetstream::new(nats)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_jobs_are_done_under_a_steady_load_of_interactive_ones() {
    let mut service = Deployment::start(0);
    service.worker_settings =
        vec![("TREFOIL_CONCURRENCY", "2".to_owned()), ("TREFOIL_BULK_CONCURRENCY", "1".to_owned())];
    service.start_worker("worker1");
    let (backend, bulk) = (Arc::new(service.backend().await), bulk_backend(&service).await);
    let keys = Arc::new(keys(&backend, 3).await);
    // Six at a time for two slots, of the very keys that the bulk jobs are for.
    let over = Arc::new(AtomicBool::new(false));
    let people: Vec<_> = (0..6)
        .map(|me| {
            let (backend, keys, over) = (backend.clone(), keys.clone(), over.clone());
            tokio::spawn(async move {
                let mut signed = 0;
                while !over.load(Ordering::SeqCst) {
                    backend.sign(&keys[me % 3], Method::Default, &message("m"), password()).await.unwrap();
                    signed += 1;
                }
                signed
            })
        })
        .collect();
    for number in 0..12 {
        let result = bulk.run(&job(&bulk, &keys[number % 3], "bulk")).await.unwrap();
        assert!(is_ok(&result.outcome), "{result:?}");
    }
    over.store(true, Ordering::SeqCst);
    for person in people {
        assert!(person.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_job_is_published_found_and_cancelled_from_the_command_line() {
    let service = Deployment::start(1);
    let backend = service.backend().await;
    let cli = |arguments: &[&str]| {
        let done = service.cli().arg("--json").args(arguments).output().unwrap();
        let answer = serde_json::from_slice(&done.stdout).unwrap_or(serde_json::Value::Null);
        (done.status.code().unwrap(), answer)
    };
    assert_eq!(cli(&["generate", "--curve", "ed25519", "--kdf", "argon2id", "--out", "a.key", "--lane", "bulk"]).0, 0);
    let jetstream = jetstream::new(service.nats.connect().await);
    let last =
        async |lane| jetstream.get_stream(subject::stream_of(lane)).await.unwrap().cached_info().state.last_sequence;
    assert_eq!((last(Interactive).await, last(Bulk).await), (0, 1));
    let (exit, signed) = cli(&["sign", "--key", "a.key", "--message", "m", "--lane", "bulk"]);
    assert_eq!((exit, signed["verified"].as_bool()), (0, Some(true)), "{signed}");
    assert_eq!((last(Interactive).await, last(Bulk).await), (0, 2));
    assert_eq!(cli(&["sign", "--key", "a.key", "--message", "m"]).0, 0);
    assert_eq!((last(Interactive).await, last(Bulk).await), (1, 2));
    assert_eq!(cli(&["sign", "--key", "a.key", "--message", "m", "--lane", "slow"]).0, 2);

    // The bulk queue delivers nothing, while workers answer questions.
    let key = new_key(&backend, Curve::Ed25519).await;
    let queue = jetstream.get_stream("MPC_BULK").await.unwrap();
    let for_now = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    queue.pause_consumer(consumer::CONSUMER, for_now).await.unwrap();
    let bulk = bulk_backend(&service).await;
    let request = job(&bulk, &key, "m");
    bulk.publish(&request).await.unwrap();
    assert_eq!(bulk.job_status(key.key_id, &request.job_id).await.unwrap().state, JobState::Waiting);
    let (job_id, key_id) = (request.job_id.to_string(), key.key_id.to_string());
    let (exit, answer) = cli(&["job", "cancel", "--job-id", &job_id, "--key-id", &key_id]);
    assert_eq!((exit, answer["state"].as_str()), (0, Some("cancelled")), "{answer}");
    queue.resume_consumer(consumer::CONSUMER).await.unwrap();
    let result = bulk.result_of(&request.job_id, request.digest, PATIENCE).await.unwrap();
    assert_eq!(code(&result), ErrorCode::JobCancelled);
}
