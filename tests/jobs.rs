//! The road of a job through a real JetStream: streams, redelivery, one record per subject, crash counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context, context::PublishErrorKind, stream::Config};
use futures::StreamExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::NatsServer;
use tokio::sync::{mpsc, watch};
use trefoil::jobs::attempts::{self, Attempt, POISON};
use trefoil::jobs::consumer::{self, ConsumerSettings, Delivery};
use trefoil::jobs::once::{self, Put};
use trefoil::jobs::place::Limits;
use trefoil::jobs::streams::{self, StreamError, StreamSettings};
use trefoil::wire::subject::{BANS_STREAM as BANS, JOBS_STREAM as JOBS, RESULTS_STREAM as RESULTS};
use trefoil::wire::{Lane, subject};

const PATIENCE: Duration = Duration::from_secs(20);
const ACK_WAIT: Duration = Duration::from_secs(2);

async fn provisioned(settings: &StreamSettings) -> (NatsServer, Context) {
    let server = NatsServer::start();
    let jetstream = jetstream::new(server.connect().await);
    streams::provision(&jetstream, settings).await.unwrap();
    (server, jetstream)
}

fn settings(in_hand: usize) -> ConsumerSettings {
    ConsumerSettings {
        queues: Lane::ALL.iter().map(|lane| (*lane, subject::stream_of(*lane).to_owned())).collect(),
        worker: "here".into(),
        // Long beside what a busy machine keeps a process waiting.
        ack_wait: ACK_WAIT,
        limits: Limits { slots: in_hand, bulk: (in_hand / 2).max(1), waiting: 1 },
        grace: Duration::from_secs(5),
    }
}

async fn publish(jetstream: &Context, subject: &str, body: &str) {
    jetstream.publish(subject.to_owned(), body.to_owned().into()).await.unwrap().await.unwrap();
}

async fn waiting(jetstream: &Context) -> u64 {
    jetstream.get_stream(JOBS).await.unwrap().cached_info().state.messages
}

/// Starts a consumer that sends its deliveries here.
fn deliveries(jetstream: &Context, in_hand: usize) -> (mpsc::UnboundedReceiver<Delivery>, watch::Sender<bool>) {
    deliveries_by(jetstream, settings(in_hand))
}

fn deliveries_by(
    jetstream: &Context,
    settings: ConsumerSettings,
) -> (mpsc::UnboundedReceiver<Delivery>, watch::Sender<bool>) {
    let (to, from) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(consumer::run(jetstream.clone(), settings, stopped, move |delivery| {
        let to = to.clone();
        async move {
            let _ = to.send(delivery);
        }
    }));
    (from, stop)
}

async fn next(from: &mut mpsc::UnboundedReceiver<Delivery>) -> Delivery {
    tokio::time::timeout(PATIENCE, from.recv()).await.expect("a delivery in time").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_made_once_and_a_full_key_refuses_loudly() {
    let limits = StreamSettings { jobs_per_key: 2, ..StreamSettings::default() };
    let (_server, jetstream) = provisioned(&limits).await;
    let others: Vec<_> = (0..4).map(|_| streams::provision(&jetstream, &limits)).collect();
    for made in futures::future::join_all(others).await {
        made.unwrap();
    }
    publish(&jetstream, "mpc.job.sign.a", "1").await;
    publish(&jetstream, "mpc.job.sign.a", "2").await;
    let refused = jetstream.publish("mpc.job.sign.a", "3".into()).await.unwrap().await.unwrap_err();
    assert_eq!(refused.kind(), PublishErrorKind::Other);
    assert!(format!("{refused:?}").contains("10077"), "{refused:?}");
    publish(&jetstream, "mpc.job.sign.b", "1").await;
    assert_eq!(waiting(&jetstream).await, 3, "nothing was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_may_provision_at_once() {
    let server = NatsServer::start();
    let jetstream = jetstream::new(server.connect().await);
    let limits = StreamSettings::default();
    let made = (0..8).map(|_| streams::provision(&jetstream, &limits));
    for made in futures::future::join_all(made).await {
        made.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_could_drop_a_ban_stops_the_start() {
    let server = NatsServer::start();
    let jetstream = jetstream::new(server.connect().await);
    let config = Config {
        name: BANS.into(),
        subjects: vec!["mpc.ban.>".into()],
        max_age: Duration::from_secs(3600),
        ..Config::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let error = streams::provision(&jetstream, &StreamSettings::default()).await.unwrap_err();
    let StreamError::Unsafe { stream, problems } = error else { panic!("{error}") };
    assert_eq!(stream, BANS);
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bans_cannot_be_deleted_and_survive_a_killed_server() {
    let (mut server, jetstream) = provisioned(&StreamSettings::default()).await;
    let put = once::put(&jetstream, BANS, "mpc.ban.k.1", HeaderMap::new(), "ban".into()).await.unwrap();
    assert_eq!(put, Put::Stored);
    let stream = jetstream.get_stream(BANS).await.unwrap();
    assert!(stream.purge().await.is_err());
    assert!(stream.delete_message(1).await.is_err());
    server.kill9();
    server.restart();
    let jetstream = jetstream::new(server.connect().await);
    assert_eq!(once::get(&jetstream, BANS, "mpc.ban.k.1").await.unwrap().unwrap(), "ban");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_exactly_one_stores_and_all_learn_what_is_stored() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let writers = (0..32).map(|i| {
        let jetstream = jetstream.clone();
        async move {
            let body = format!("result {i}");
            once::put(&jetstream, RESULTS, "mpc.result.u.j", HeaderMap::new(), body.clone().into())
                .await
                .map(|p| (body, p))
        }
    });
    let outcomes: Vec<_> = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
    let stored: Vec<_> = outcomes.iter().filter(|(_, put)| *put == Put::Stored).collect();
    assert_eq!(stored.len(), 1);
    for (body, put) in &outcomes {
        if let Put::Existing(found) = put {
            assert_eq!(found, stored[0].0.as_bytes());
            assert_ne!(found, body.as_bytes());
        }
    }
    assert_eq!(once::get(&jetstream, RESULTS, "mpc.result.u.other").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_delivery_comes_back_and_an_acknowledged_one_does_not() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let (mut from, _stop) = deliveries(&jetstream, 4);
    publish(&jetstream, "mpc.job.sign.a", "x").await;
    let first = next(&mut from).await;
    assert_eq!((first.times_delivered, first.subject.as_str()), (1, "mpc.job.sign.a"));
    drop(first); // its worker died
    let second = next(&mut from).await;
    assert_eq!((second.times_delivered, &second.body[..]), (2, &b"x"[..]));
    second.acknowledge().await.unwrap();
    assert_eq!(waiting(&jetstream).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_job_stays_with_its_worker() {
    let (server, jetstream) = provisioned(&StreamSettings::default()).await;
    let watcher = server.connect().await;
    let mut said = support::subscribed(&watcher, "$JS.ACK.MPC_JOBS.>").await;
    // Said each two seconds.
    let patient = ConsumerSettings { ack_wait: Duration::from_secs(6), ..settings(4) };
    let (mut from, _stop) = deliveries_by(&jetstream, patient);
    publish(&jetstream, "mpc.job.sign.a", "x").await;
    let job = next(&mut from).await;
    // For longer than ack_wait only this keeps it here.
    for _ in 0..4 {
        let progress = tokio::time::timeout(PATIENCE, said.next()).await.unwrap().unwrap();
        assert_eq!(&progress.payload[..], b"+WPI");
    }
    assert!(from.try_recv().is_err(), "delivered twice");
    job.acknowledge().await.unwrap();
    assert_eq!(waiting(&jetstream).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_pulls_no_more_than_it_can_start_and_the_rest_goes_to_others() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    for i in 0..6 {
        publish(&jetstream, &format!("mpc.job.sign.{i}"), "x").await;
    }
    let (mut small, _stop_small) = deliveries(&jetstream, 2);
    let held = [next(&mut small).await, next(&mut small).await];
    let (mut large, _stop_large) = deliveries(&jetstream, 10);
    for _ in 0..4 {
        let job = next(&mut large).await;
        assert_eq!(job.times_delivered, 1);
        job.acknowledge().await.unwrap();
    }
    for job in held {
        job.acknowledge().await.unwrap();
    }
    assert_eq!(waiting(&jetstream).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_finishes_what_runs_and_leaves_the_rest_to_others() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let done = Arc::new(Mutex::new(0_u32));
    let (stop, stopped) = watch::channel(false);
    let (started, mut begun) = mpsc::unbounded_channel();
    let (go_on, told) = watch::channel(false);
    let counted = done.clone();
    let worker = tokio::spawn(consumer::run(jetstream.clone(), settings(2), stopped, move |delivery: Delivery| {
        let (done, started, mut told) = (counted.clone(), started.clone(), told.clone());
        async move {
            started.send(()).unwrap();
            told.wait_for(|told| *told).await.unwrap();
            *done.lock().unwrap() += 1;
            delivery.acknowledge().await.unwrap();
        }
    }));
    for i in 0..5 {
        publish(&jetstream, &format!("mpc.job.sign.{i}"), "x").await;
    }
    begun.recv().await.unwrap();
    begun.recv().await.unwrap();
    stop.send(true).unwrap();
    go_on.send(true).unwrap();
    let abandoned = tokio::time::timeout(PATIENCE, worker).await.unwrap().unwrap();
    assert_eq!((abandoned, *done.lock().unwrap()), (0, 2));
    assert_eq!(waiting(&jetstream).await, 3);
    let (mut others, _stop) = deliveries(&jetstream, 8);
    for _ in 0..3 {
        next(&mut others).await.acknowledge().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulling_goes_on_after_the_server_was_killed() {
    let (mut server, jetstream) = provisioned(&StreamSettings::default()).await;
    let (mut from, _stop) = deliveries(&jetstream, 4);
    publish(&jetstream, "mpc.job.sign.a", "before").await;
    next(&mut from).await.acknowledge().await.unwrap();
    server.kill9();
    server.restart();
    let other = jetstream::new(server.connect().await);
    publish(&other, "mpc.job.sign.a", "after").await;
    let job = next(&mut from).await;
    assert_eq!(&job.body[..], b"after");
    job.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_are_counted_and_jobs_given_back_are_not() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let (mut from, _stop) = deliveries(&jetstream, 4);
    publish(&jetstream, "mpc.job.sign.a", "x").await;
    let mut crashes = Vec::new();
    for (worker, crash) in [("a", false), ("b", true), ("c", false), ("d", true), ("e", true), ("f", true)] {
        let job = next(&mut from).await;
        let attempt = begin(&jetstream, worker, &job).await;
        crashes.push(attempt.crashes());
        if crash {
            drop(job);
        } else {
            attempt.returned().await.unwrap();
            job.give_back(Duration::from_millis(10)).await.unwrap();
        }
    }
    let job = next(&mut from).await;
    let attempt = begin(&jetstream, "g", &job).await;
    crashes.push(attempt.crashes());
    // A job that was given back alive is not what takes workers down.
    assert_eq!(crashes, [0, 0, 1, 0, 1, 2, 3]);
    assert!(attempt.crashes() >= POISON);
    // A worker that finds its own name has not died.
    assert_eq!(begin(&jetstream, "g", &job).await.crashes(), 3);
    assert_eq!(begin(&jetstream, "h", &job).await.crashes(), 4);
    // The same sequence in a stream made anew is another job.
    let other = Attempt::look(&jetstream, "g", (job.lane, job.sequence), "other".into(), 2).await.unwrap();
    assert_eq!(other.crashes(), 1);
}

async fn begin<'a>(jetstream: &'a Context, worker: &'a str, job: &Delivery) -> Attempt<'a> {
    let attempt = Attempt::look(jetstream, worker, (job.lane, job.sequence), "digest".into(), job.times_delivered);
    let attempt = attempt.await.unwrap();
    attempt.start().await.unwrap();
    attempt
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_could_drop_jobs_is_not_used() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let stream = jetstream.get_stream(JOBS).await.unwrap();
    let config = jetstream::consumer::pull::Config {
        durable_name: Some(consumer::CONSUMER.into()),
        max_deliver: 5,
        ..Default::default()
    };
    stream.create_consumer(config).await.unwrap();
    let (mut from, _stop) = deliveries(&jetstream, 1);
    publish(&jetstream, "mpc.job.sign.a", "x").await;
    assert!(tokio::time::timeout(Duration::from_secs(1), from.recv()).await.is_err(), "a job was taken");
    stream.delete_consumer(consumer::CONSUMER).await.unwrap();
    next(&mut from).await.acknowledge().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopping_worker_gives_back_is_no_crash() {
    use sha2::{Digest, Sha256};
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest("x"));
    let place = (Lane::Interactive, 1);
    let look = async |times| Attempt::look(&jetstream, "w", place, digest.clone(), times).await.unwrap();
    let left = async |times| attempts::not_started(&jetstream, "stops", place, digest.clone(), times).await.unwrap();
    left(1).await;
    assert_eq!(look(2).await.crashes(), 0);
    // Nor is it the end of what was counted before.
    look(2).await.start().await.unwrap();
    left(3).await;
    assert_eq!(look(4).await.crashes(), 1);
    look(4).await.start().await.unwrap();
    left(5).await;
    left(6).await;
    assert_eq!(look(7).await.crashes(), 2);
}

/// What the server sends to a worker that has been told to stop is delivered to others at once, until it sends no more.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_a_worker_that_listens_no_more() {
    let (_server, jetstream) = provisioned(&StreamSettings::default()).await;
    for round in 0..4 {
        let (stop, stopped) = watch::channel(false);
        let settings = ConsumerSettings { ack_wait: Duration::from_secs(600), ..settings(64) };
        let handle = |delivery: Delivery| async { delivery.acknowledge().await.unwrap() };
        let worker = tokio::spawn(consumer::run(jetstream.clone(), settings, stopped, handle));
        let publishing = futures::future::join_all((0..40).map(async |i| {
            publish(&jetstream, &format!("mpc.job.sign.{round}-{i}"), "x").await;
            if i == 5 {
                stop.send(true).unwrap();
            }
        }));
        publishing.await;
        worker.await.unwrap();
        // Whatever it has not done is there for another.
        let left = waiting(&jetstream).await;
        let (mut others, stop) = deliveries(&jetstream, 64);
        for _ in 0..left {
            next(&mut others).await.acknowledge().await.unwrap();
        }
        stop.send(true).unwrap();
    }
}
