//! The floor: the same way through the same server and as many processes, without cryptography. What is left is what messages cost,
//! and no worker can be faster.
//!
//! A job of the real size is published, pulled by the same consumer, looked up in the results; a record like a lease is
//! written; three requests of the real sizes go to an echo process in the place of node 1; the result is stored by
//! compare-and-set, and the job acknowledged.

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures::StreamExt;
use std::time::Duration;
use tokio::sync::watch;
use trefoil::jobs::consumer::{self, ConsumerSettings, Delivery};
use trefoil::jobs::once;
use trefoil::jobs::place::Limits;
use trefoil::wire::Lane;
use trefoil_protocol::ecdsa::{M1_LEN, M2_LEN, M3_LEN};

const JOBS: &str = "FLOOR_JOBS";
pub const RESULTS: &str = "FLOOR_RESULTS";
const LEASES: &str = "FLOOR_LEASES";
const NODE: &str = "floor.node";
/// What the channel and the other fields of a message add, about.
const AROUND: usize = 150;
/// Bytes of a stored sign result, about.
const RESULT: usize = 620;

/// Requests to node 1: bytes there and back, besides the job itself in the first.
const ECDSA: [(usize, usize); 3] =
    [(AROUND + 200, AROUND + M1_LEN), (AROUND + M2_LEN, AROUND + M3_LEN), (AROUND, AROUND)];
const EDDSA: [(usize, usize); 2] = [(AROUND + 260, AROUND + 130), (AROUND, AROUND)];

/// Makes the streams, as those of the service are made.
pub async fn provision(client: async_nats::Client) {
    let jetstream = jetstream::new(client);
    for (name, subjects, retention) in [
        (JOBS, "floor.job.>", RetentionPolicy::WorkQueue),
        (RESULTS, "floor.result.>", RetentionPolicy::Limits),
        (LEASES, "floor.lock.>", RetentionPolicy::Limits),
    ] {
        let config = Config {
            name: name.into(),
            subjects: vec![subjects.into()],
            retention,
            discard: if name == LEASES { DiscardPolicy::Old } else { DiscardPolicy::New },
            max_messages_per_subject: if name == LEASES { 1 } else { -1 },
            ..Config::default()
        };
        jetstream.create_stream(config).await.unwrap();
    }
}

/// Forgets the results, which the server would keep in memory and go through at each collection of its heap.
pub async fn forget(client: async_nats::Client) {
    jetstream::new(client).get_stream(RESULTS).await.unwrap().purge().await.unwrap();
}

/// Runs one of the floor's processes if this is one: `echo`, or `worker`.
pub fn is_floor() -> bool {
    let (Ok(role), Ok(url)) = (std::env::var("FLOOR_ROLE"), std::env::var("FLOOR_URL")) else { return false };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(url).await.unwrap();
        if role == "echo" { echo(client).await } else { worker(client).await }
    });
    true
}

/// Answers each request with as many bytes as its first four name.
async fn echo(client: async_nats::Client) {
    let mut requests = client.subscribe(NODE).await.unwrap();
    client.flush().await.unwrap();
    println!("ready");
    while let Some(request) = requests.next().await {
        let client = client.clone();
        tokio::spawn(async move {
            let length = u32::from_be_bytes(*request.payload.first_chunk().unwrap()) as usize;
            let _ = client.publish(request.reply.unwrap(), vec![0; length].into()).await;
        });
    }
}

async fn worker(client: async_nats::Client) {
    let jetstream = jetstream::new(client.clone());
    let settings = ConsumerSettings {
        queues: vec![(Lane::Interactive, JOBS.to_owned())],
        worker: "floor".to_owned(),
        ack_wait: Duration::from_secs(2),
        limits: Limits { slots: 64, bulk: 1, waiting: 64 },
        grace: Duration::from_secs(5),
    };
    // The sender stays: a worker of the floor runs until it is killed.
    let (_keep, stop) = watch::channel(false);
    println!("ready");
    consumer::run(jetstream.clone(), settings, stop, move |delivery| {
        handle(client.clone(), jetstream.clone(), delivery)
    })
    .await;
}

async fn handle(client: async_nats::Client, jetstream: Context, delivery: Delivery) {
    let mut tokens = delivery.subject.split('.').skip(2);
    let (curve, key, name) = (tokens.next().unwrap(), tokens.next().unwrap(), tokens.next().unwrap());
    let result = format!("floor.result.{name}");
    assert!(once::get(&jetstream, RESULTS, &result).await.unwrap().is_none());
    let lease = format!("floor.lock.{key}");
    jetstream.publish(lease.clone(), name.to_owned().into()).await.unwrap().await.unwrap();
    let rounds: &[(usize, usize)] = if curve == "secp256k1" { &ECDSA } else { &EDDSA };
    for (round, (there, back)) in rounds.iter().enumerate() {
        let length = if round == 0 { there + delivery.body.len() } else { *there };
        let mut request = vec![0; length];
        request[..4].copy_from_slice(&(*back as u32).to_be_bytes());
        client.request(NODE, request.into()).await.unwrap();
    }
    let body = Bytes::from(vec![b'x'; RESULT]);
    once::put(&jetstream, RESULTS, &result, HeaderMap::new(), body).await.unwrap();
    delivery.acknowledge().await.unwrap();
    // Given back beside everything else, as a lease is.
    let _ = jetstream.publish(lease, Bytes::new()).await;
}
